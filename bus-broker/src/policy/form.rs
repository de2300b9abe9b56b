//! Rules as they are written: `[[policy]]` in TOML.
//!
//! Invariant: what is written is taken as it stands or refused with its place; a word that is not
//! known is never passed over. A user who does not exist (any more, or yet) is no mistake of the
//! file: such a rule fits nobody, and a warning says so.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bus_core::GroupName;
use serde::Deserialize;
use toml::Spanned;

use super::{Action, Condition, Effect, Pattern, Rule, RulePlace, passwd::Accounts};
use crate::config::{ConfigError, Place};

/// The rules of one file, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct RuleForms(Vec<Spanned<RuleForm>>);

/// A file that has nothing but rules.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    #[serde(default)]
    policy: RuleForms,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleForm {
    allow: Option<Actions>,
    deny: Option<Actions>,
    on: Option<Vec<NamePattern>>,
    users: Option<Vec<Account>>,
    user_groups: Option<Vec<Account>>,
    executables: Option<Vec<PathPattern>>,
    sandboxes: Option<Vec<NamePattern>>,
    labels: Option<Vec<String>>,
    sockets: Option<Vec<NamePattern>>,
}

/// Words for actions; none for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "\"*\" or an array of connect, own, call, create, join, watch, send, direct, monitor"
)]
enum Actions {
    All(Star),
    These(Vec<Action>),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
enum Star {
    #[serde(rename = "*")]
    Star,
}

/// A user or a group, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a number or a name")]
enum Account {
    Number(u32),
    Name(String),
}

/// `org.example.Clock`, `org.example.*` or `*`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct NamePattern(Pattern);

/// `/usr/bin/clock` or `/usr/lib/clock/*`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct PathPattern(Pattern);

impl TryFrom<String> for NamePattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let name = match text.strip_suffix('*') {
            Some("") => return Ok(Self(Pattern::new("*"))),
            Some(prefix) => prefix.strip_suffix('.').ok_or_else(|| {
                format!("the star of {text:?} does not follow a dot: org.example.* is a pattern")
            })?,
            None => &text,
        };
        name.parse::<GroupName>().map_err(|error| error.to_string())?;
        Ok(Self(Pattern::new(&text)))
    }
}

impl TryFrom<String> for PathPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let path = match text.strip_suffix('*') {
            Some(directory) if !directory.ends_with('/') => {
                return Err(format!("the star of {text:?} does not follow a slash"));
            }
            Some(directory) => directory,
            None => &text,
        };
        if !path.starts_with('/') || path.contains("/../") || path.contains('*') {
            return Err(format!("{text:?} is no absolute path, with /* at its end at most"));
        }
        Ok(Self(Pattern::new(&text)))
    }
}

impl RuleForms {
    /// The rules of a file whose text is this.
    pub(crate) fn rules(&self, text: &str, path: &Path) -> Result<Vec<Rule>, ConfigError> {
        if self.0.is_empty() {
            return Ok(Vec::new());
        }
        let accounts = Accounts::read();
        let path: Arc<Path> = path.into();
        let rule = |form: &Spanned<RuleForm>| {
            let place = Place::of(text, form.span().start);
            form.get_ref().rule(&path, place, &accounts).map_err(|message| ConfigError::Wrong {
                path: path.to_path_buf(),
                place,
                message,
            })
        };
        self.0.iter().map(rule).collect()
    }
}

impl RuleForm {
    fn rule(&self, path: &Arc<Path>, place: Place, accounts: &Accounts) -> Result<Rule, String> {
        let (effect, actions) = match (&self.allow, &self.deny) {
            (Some(actions), None) => (Effect::Allow, actions),
            (None, Some(actions)) => (Effect::Deny, actions),
            _ => return Err("a rule has either allow or deny".to_owned()),
        };
        let actions = match actions {
            Actions::All(Star::Star) => Vec::new(),
            Actions::These(actions) if actions.is_empty() => {
                return Err("a rule about no action; \"*\" is all of them".to_owned());
            }
            Actions::These(actions) => actions.clone(),
        };
        let place = RulePlace::File { path: Arc::clone(path), line: place.line };
        let ids = |accounts: &[Account], find: &dyn Fn(&str) -> Option<u32>| {
            let id = |account: &Account| match account {
                Account::Number(id) => Some(*id),
                Account::Name(name) => {
                    let id = find(name);
                    if id.is_none() {
                        tracing::warn!(rule = %place, name, "nobody has this name");
                    }
                    id
                }
            };
            accounts.iter().filter_map(id).collect::<Vec<_>>()
        };
        let names = |patterns: &[NamePattern]| -> Vec<Pattern> {
            patterns.iter().map(|pattern| pattern.0.clone()).collect()
        };
        let mut who = Vec::new();
        if let Some(users) = &self.users {
            who.push(Condition::Users(ids(users, &|name| accounts.user(name))));
        }
        if let Some(groups) = &self.user_groups {
            who.push(Condition::UserGroups(ids(groups, &|name| accounts.group(name))));
        }
        if let Some(paths) = &self.executables {
            let paths = paths.iter().map(|pattern| pattern.0.clone()).collect();
            who.push(Condition::Executables(paths));
        }
        if let Some(ids) = &self.sandboxes {
            who.push(Condition::Sandboxes(names(ids)));
        }
        if let Some(labels) = &self.labels {
            let labels = labels.iter().map(|label| Pattern::new(label)).collect();
            who.push(Condition::Labels(labels));
        }
        if let Some(sockets) = &self.sockets {
            who.push(Condition::Sockets(names(sockets)));
        }
        let on = self.on.as_deref().map(names);
        if on.as_ref().is_some_and(Vec::is_empty) {
            return Err("a rule about no name; without on it is about all".to_owned());
        }
        Ok(Rule { place, effect, actions, on: on.unwrap_or_default(), who })
    }
}

/// The rules of a directory: its files `*.toml`, in the order of their names. A directory that does
/// not exist has none.
pub(crate) fn read_directory(directory: &Path) -> Result<Vec<Rule>, ConfigError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| ConfigError::Unreadable { path, source }
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(directory)(error)),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<io::Result<Vec<PathBuf>>>().map_err(unreadable(directory))?;
    paths.retain(|path| path.extension().is_some_and(|end| end == "toml"));
    paths.sort_unstable();
    let mut rules = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).map_err(unreadable(&path))?;
        let file: RuleFile = toml::from_str(&text)
            .map_err(|error| ConfigError::from_parser(&error, &text, &path))?;
        rules.extend(file.policy.rules(&text, &path)?);
    }
    Ok(rules)
}
