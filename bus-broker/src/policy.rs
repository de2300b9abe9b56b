//! Who may do what on a bus: rules, and how they decide.
//!
//! **The last rule that fits decides; before all rules stands a built-in one that allows everything
//! to the user that the broker runs as and to root, and nothing to others.** (To a client that came in
//! at a socket with an identity it allows nothing but to connect.) So what stands later in a file,
//! and in a later file, overrides what stands before it, and a decision always has one rule to name.
//!
//! Invariants:
//! - A [`Policy`] that exists is right and never changes. A reload makes another one, which is taken
//!   whole or not at all.
//! - What is not known of a client never helps it: a rule that asks for it does not fit if it
//!   allows, and fits if it denies.
//! - Deciding does no I/O: users and groups were looked up when the rules were read.

use std::{fmt, path::Path, sync::Arc};

use bus_core::GroupName;
use serde::{Deserialize, Serialize};

pub(crate) use gate::{Gate, RulesInForce};
pub(crate) use process::ProcessIdentity;
pub(crate) use subjects::Subjects;

mod form;
mod gate;
mod passwd;
pub(crate) mod process;
mod reload;
mod subjects;

pub(crate) use form::{RuleForms, read_directory};
pub use passwd::{NoSuchGroup, NoSuchUser, group_id, groups_of, user_id};
pub use reload::{ReloadError, Reloaded};

/// The rules of one bus, those that fit last at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whose bus it is.
    owner: u32,
    rules: Vec<Rule>,
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Action {
    /// To be a client at all.
    Connect,
    /// To own a well-known name, or to wait for it.
    Own,
    /// To send to a name, requests included, and to see who owns it.
    Call,
    /// To make a group.
    Create,
    /// To be a member of a group, and so to hear it.
    Join,
    /// To see who is in a group or owns a name, and changes of that.
    Watch,
    /// To send to a group.
    Send,
    /// To send to an endpoint by its number. Replies, and messages between the owner of a gated
    /// group and its candidates, are always allowed.
    Direct,
    /// To get a copy of every message, of one group or of all.
    Monitor,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) place: RulePlace,
    pub(crate) effect: Effect,
    /// Empty for all actions.
    pub(crate) actions: Vec<Action>,
    /// Empty for all names.
    pub(crate) on: Vec<Pattern>,
    /// To whom it applies; every condition has to hold.
    pub(crate) who: Vec<Condition>,
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Allow,
    Deny,
}

/// Something about a client; one of the alternatives has to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Users(Vec<u32>),
    UserGroups(Vec<u32>),
    Executables(Vec<Pattern>),
    Sandboxes(Vec<Pattern>),
    Labels(Vec<Pattern>),
    Sockets(Vec<Pattern>),
}

/// A name, or with a star at its end all that begin so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    text: Box<str>,
    is_prefix: bool,
}

/// Where a rule stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RulePlace {
    /// In a file.
    File {
        /// Which one.
        path: Arc<Path>,
        /// Its first line, counted from 1.
        line: usize,
    },
    /// Before all files: everything to the bus's own user and root, nothing to others.
    BuiltIn,
}

/// Who asks: one connection's peer, as the kernel and the broker know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Subject {
    /// Its user.
    pub uid: u32,
    /// Its groups; none if they are not known.
    pub user_groups: Option<Vec<u32>>,
    /// The file that its process was executing when it connected, if that is known.
    pub executable: Option<String>,
    /// Whether it is in a sandbox.
    pub sandbox: Sandbox,
    /// What a security module of the kernel calls it.
    pub label: Option<String>,
    /// The identity of the listening socket that it came in at, if that has one.
    pub socket: Option<String>,
}

/// Whether a process is in a sandbox that says who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sandbox {
    /// It could not be found out.
    #[default]
    Unknown,
    /// In none that is known here.
    Outside,
    /// The application's id.
    Application(String),
}

/// What the rules say, and which of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decision {
    /// Whether it may.
    pub allowed: bool,
    /// The rule that decided.
    pub rule: RulePlace,
}

impl Policy {
    /// No rules: the bus of `owner` alone.
    #[must_use]
    pub fn private(owner: u32) -> Self {
        Self { owner, rules: Vec::new() }
    }

    /// The same for another user.
    #[must_use]
    pub fn of_owner(mut self, owner: u32) -> Self {
        self.owner = owner;
        self
    }

    /// With these rules before its own.
    pub(crate) fn after(mut self, mut earlier: Vec<Rule>) -> Self {
        earlier.append(&mut self.rules);
        self.rules = earlier;
        self
    }

    /// How many rules there are beside the built-in one.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// Whether `subject` may do that to the group or name `on`; without one, to every group there
    /// can be (that is what a monitor of everything asks for).
    ///
    /// ```
    /// use bus_broker::{Action, Config, Subject};
    ///
    /// let text = r#"
    /// [[policy]]
    /// allow = ["connect", "call"]
    /// on = ["org.example.*"]
    /// users = [1000]
    /// "#;
    /// let policy = Config::from_toml(text, "bus.toml".as_ref())?.policy.of_owner(0);
    /// let mut alice = Subject::default();
    /// alice.uid = 1000;
    /// let clock = "org.example.Clock".parse()?;
    /// let decision = policy.decide(&alice, Action::Call, Some(&clock));
    /// assert!(decision.allowed);
    /// assert_eq!(decision.rule.to_string(), "bus.toml:2");
    /// assert!(!policy.decide(&alice, Action::Own, Some(&clock)).allowed);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn decide(&self, subject: &Subject, action: Action, on: Option<&GroupName>) -> Decision {
        let on = on.map(GroupName::as_str);
        let rule = self.rules.iter().rev().find(|rule| rule.fits(subject, action, on));
        match rule {
            Some(rule) => {
                Decision { allowed: rule.effect == Effect::Allow, rule: rule.place.clone() }
            }
            None => Decision { allowed: self.built_in(subject, action), rule: RulePlace::BuiltIn },
        }
    }

    /// Whether nothing at all is denied to `subject`, so that nobody has to ask.
    pub(crate) fn allows_everything(&self, subject: &Subject) -> bool {
        // After the last rule that is about everything, only what allows.
        for rule in self.rules.iter().rev() {
            if rule.effect == Effect::Deny && rule.may_fit(subject) {
                return false;
            }
            let is_about_everything = rule.actions.is_empty() && rule.on.is_empty();
            if rule.effect == Effect::Allow && is_about_everything && rule.may_fit(subject) {
                return true;
            }
        }
        self.is_trusted(subject)
    }

    /// Whether some rule asks what only a look at the client's process tells.
    pub(crate) fn asks_for_processes(&self) -> bool {
        let asks = |condition: &Condition| {
            matches!(condition, Condition::Executables(_) | Condition::Sandboxes(_))
        };
        self.rules.iter().any(|rule| rule.who.iter().any(asks))
    }

    /// Whether it is the user whose bus this is, or root, at no socket for somebody else.
    pub(crate) fn is_trusted(&self, subject: &Subject) -> bool {
        (subject.uid == self.owner || subject.uid == 0) && subject.socket.is_none()
    }

    fn built_in(&self, subject: &Subject, action: Action) -> bool {
        self.is_trusted(subject) || (subject.socket.is_some() && action == Action::Connect)
    }
}

impl Rule {
    fn fits(&self, subject: &Subject, action: Action, on: Option<&str>) -> bool {
        (self.actions.is_empty() || self.actions.contains(&action))
            && self.covers(action, on)
            && self.may_fit(subject)
    }

    /// Whether the rule speaks about this group or name; with `"*"` and names, about what is done
    /// with names. Of "all there can be", a rule about some
    /// of them forbids the whole and allows only a part.
    fn covers(&self, action: Action, on: Option<&str>) -> bool {
        if self.on.is_empty() {
            return true;
        }
        if matches!(action, Action::Connect | Action::Direct) {
            // About no name: only a rule that says the word means it.
            return !self.actions.is_empty();
        }
        match on {
            Some(name) => self.on.iter().any(|pattern| pattern.fits(name)),
            None => self.effect == Effect::Deny || self.on.iter().any(Pattern::is_everything),
        }
    }

    /// Whether it applies to this client, whatever it does.
    fn may_fit(&self, subject: &Subject) -> bool {
        let unknown = self.effect == Effect::Deny;
        self.who.iter().all(|condition| condition.holds(subject).unwrap_or(unknown))
    }
}

impl Condition {
    /// None if it is not known.
    fn holds(&self, subject: &Subject) -> Option<bool> {
        let one_of = |patterns: &[Pattern], text: &str| patterns.iter().any(|p| p.fits(text));
        match self {
            Self::Users(users) => Some(users.contains(&subject.uid)),
            Self::UserGroups(wanted) => {
                let groups = subject.user_groups.as_ref()?;
                Some(groups.iter().any(|group| wanted.contains(group)))
            }
            Self::Executables(patterns) => {
                subject.executable.as_ref().map(|path| one_of(patterns, path))
            }
            Self::Sandboxes(patterns) => match &subject.sandbox {
                Sandbox::Unknown => None,
                Sandbox::Outside => Some(false),
                Sandbox::Application(id) => Some(one_of(patterns, id)),
            },
            Self::Labels(patterns) => subject.label.as_ref().map(|label| one_of(patterns, label)),
            Self::Sockets(patterns) => {
                Some(subject.socket.as_ref().is_some_and(|socket| one_of(patterns, socket)))
            }
        }
    }
}

impl Pattern {
    /// A text, or one with a star at its end.
    pub(crate) fn new(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(prefix) => Self { text: prefix.into(), is_prefix: true },
            None => Self { text: text.into(), is_prefix: false },
        }
    }

    fn fits(&self, text: &str) -> bool {
        match self.is_prefix {
            true => text.starts_with(&*self.text),
            false => *text == *self.text,
        }
    }

    fn is_everything(&self) -> bool {
        self.is_prefix && self.text.is_empty()
    }
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Connect,
        Self::Own,
        Self::Call,
        Self::Create,
        Self::Join,
        Self::Watch,
        Self::Send,
        Self::Direct,
        Self::Monitor,
    ];

    /// The word for it in a rule.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Own => "own",
            Self::Call => "call",
            Self::Create => "create",
            Self::Join => "join",
            Self::Watch => "watch",
            Self::Send => "send",
            Self::Direct => "direct",
            Self::Monitor => "monitor",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for RulePlace {
    /// `FILE:LINE`, or `built-in`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::BuiltIn => f.write_str("built-in"),
        }
    }
}

impl fmt::Display for Decision {
    /// Which rule says what.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.rule, self.allowed) {
            (RulePlace::BuiltIn, true) => f.write_str("allowed by the built-in rule"),
            (RulePlace::BuiltIn, false) => f.write_str("no rule allows it"),
            (place, true) => write!(f, "allowed by {place}"),
            (place, false) => write!(f, "denied by {place}"),
        }
    }
}

#[cfg(test)]
mod tests;
