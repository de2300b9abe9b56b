//! `unisono policy check`: what the rules say, from the files alone; `unisono reload`.
//!
//! No broker is asked by the first: it reads what the broker would read, with the same code, and
//! names the rule. So a rule can be tried before it is in force.

use std::path::{Path, PathBuf};

use bus_broker::{Action, Config, Sandbox, Subject, group_id, groups_of, user_id};
use bus_client::Bus;
use serde::Serialize;

use crate::{
    cli,
    exit::{Exit, Failure},
    output::Output,
};

/// Says whether the rules allow what the options describe, and which rule decides.
pub(crate) fn check(options: &cli::PolicyCheck, output: &mut Output) -> Result<Exit, Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::new(Exit::Usage, error);
    let owner = match &options.owner {
        Some(owner) => user_id(owner).map_err(|error| usage(&error))?,
        None => rustix::process::geteuid().as_raw(),
    };
    let policy = config(options)?.whole_policy().map_err(Failure::error)?.of_owner(owner);
    let name = options.name.as_deref().filter(|_| has_name(options.action));
    let name = name.map(str::parse).transpose().map_err(|error| usage(&error))?;
    if name.is_none() && has_name(options.action) && options.action != Action::Monitor {
        return Err(usage(&format_args!("{} is about a name; give one", options.action)));
    }
    let decision = policy.decide(&subject(options)?, options.action, name.as_ref());
    if options.json {
        output.json(&Answer { allowed: decision.allowed, rule: decision.rule.to_string() })?;
    } else {
        output.line(&decision.to_string())?;
    }
    Ok(if decision.allowed { Exit::Done } else { Exit::Error })
}

/// Has the broker read its rules again.
pub(crate) fn reload(bus: &Bus, output: &mut Output) -> Result<Exit, Failure> {
    let reloaded = bus.reload()?;
    output.line(&format!("{} rules", reloaded.rules))?;
    for change in &reloaded.pending {
        output.line(change)?;
    }
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Answer {
    allowed: bool,
    rule: String,
}

fn config(options: &cli::PolicyCheck) -> Result<Config, Failure> {
    let mut config = match &options.config {
        Some(path) => Config::read(path).map_err(Failure::error)?,
        None => match default_config() {
            Some(path) => Config::read(&path).map_err(Failure::error)?,
            None => Config::default(),
        },
    };
    config.policy_directories.extend(options.directory.iter().cloned());
    Ok(config)
}

/// The file that the packaged user bus reads, if it is there.
fn default_config() -> Option<PathBuf> {
    let path = Path::new(SESSION_CONFIG);
    path.exists().then(|| path.to_owned())
}

fn subject(options: &cli::PolicyCheck) -> Result<Subject, Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::new(Exit::Usage, error);
    let mut subject = Subject::default();
    subject.uid = match &options.user {
        Some(user) => user_id(user).map_err(|error| usage(&error))?,
        None => rustix::process::geteuid().as_raw(),
    };
    let mut groups = groups_of(&options.user.clone().unwrap_or_else(|| subject.uid.to_string()));
    for group in &options.user_group {
        groups.push(group_id(group).map_err(|error| usage(&error))?);
    }
    subject.user_groups = Some(groups);
    subject.executable = options.exe.as_ref().map(|path| path.to_string_lossy().into_owned());
    subject.sandbox = match &options.sandbox {
        Some(id) => Sandbox::Application(id.clone()),
        None => Sandbox::Outside,
    };
    subject.label.clone_from(&options.label);
    subject.socket.clone_from(&options.socket);
    Ok(subject)
}

fn has_name(action: Action) -> bool {
    !matches!(action, Action::Connect | Action::Direct)
}

/// Where the packaged user bus has its configuration.
const SESSION_CONFIG: &str = "/etc/unisono/session.toml";
