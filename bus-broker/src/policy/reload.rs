//! Taking the rules anew, and the limits of users, from the files that they came from.
//!
//! Invariant: the new rules are in force as a whole or not at all. Whatever is wrong with a file,
//! the old ones stay, and who asked is told the file, line and column.
//!
//! What was built from at the start stays as it is: queues have their size, and the sandbox has
//! closed. So that nobody believes a change to be in force that is not, each is named, to who asked
//! and in the log.

use std::sync::atomic::Ordering;

use tracing::Dispatch;

use crate::{
    broker::Shared,
    config::{Config, ConfigError},
    door::account_of,
    log_limit::LogEvent,
    sandbox::SandboxMode,
    service::read_services,
};

/// Why the rules are still the old ones. Mend the file and reload again.
#[derive(Debug, thiserror::Error)]
#[error("the rules are as they were: {source}{hint}")]
pub struct ReloadError {
    #[source]
    source: ConfigError,
    /// What may be the matter if the file is right.
    hint: &'static str,
}

/// What a reload has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reloaded {
    /// How many rules there are now beside the built-in one.
    pub rules: u32,
    /// What has changed and is not in force: each with what it takes.
    pub pending: Vec<String>,
}

impl Shared {
    /// Reads rules and limits of users again, and reviews every connection by the rules; service
    /// files too, of which those that are wrong are left out.
    pub(crate) fn reload(&self) -> Result<Reloaded, ReloadError> {
        let mut result = None;
        self.log_limit.log_of_broker(LogEvent::Reload, |suppressed| {
            let _entered = tracing::info_span!("reload", suppressed).entered();
            result = Some(self.read_again());
        });
        // What it would log is left out.
        let quietly = || tracing::dispatcher::with_default(&Dispatch::none(), || self.read_again());
        result.unwrap_or_else(quietly)
    }

    fn read_again(&self) -> Result<Reloaded, ReloadError> {
        let config = self.config.anew().map_err(|source| ReloadError { source, hint: "" })?;
        let rules = config.whole_policy().map_err(|source| {
            let hint = self.hint_of_sandbox(&config);
            ReloadError { source, hint }
        })?;
        let rules = rules.of_owner(self.policy.get().owner);
        let count = u32::try_from(rules.rule_count()).unwrap_or(u32::MAX);
        self.policy.replace(rules);
        let mut pending = self.config.pending_changes(&config);
        pending.extend(self.take_limits(&config));
        self.review_connections();
        if self.helper.get().is_some() {
            self.services.replace(read_services(&self.config.service_directories()));
        }
        for change in &pending {
            tracing::warn!(change, "not in force");
        }
        tracing::info!(rules = count, "reloaded the policy");
        Ok(Reloaded { rules: count, pending })
    }

    /// Limits of users hold for who connects from now on.
    fn take_limits(&self, config: &Config) -> Vec<String> {
        let limits = &config.limits;
        self.connection_rate.store(limits.user_connection_rate, Ordering::Relaxed);
        let users = config.users.limits(limits);
        // The sockets are those that there are, whatever the file has now.
        let sockets = self.config.socket.iter().enumerate().map(|(at, socket)| {
            let now = config.socket.iter().find(|other| other.identity == socket.identity);
            (account_of(at), now.unwrap_or(socket).budget(limits))
        });
        let users: Vec<_> = users.chain(sockets).collect();
        let connected = self.ledger.replace_limits(limits.of_user(), users).into_iter();
        let text = |uid| {
            format!("limits of user {uid}: in force once all connections of that user are closed")
        };
        connected.map(text).collect()
    }

    fn hint_of_sandbox(&self, config: &Config) -> &'static str {
        let known = &self.config.policy_directories;
        let added = config.policy_directories.iter().any(|directory| !known.contains(directory));
        if added && self.config.sandbox != SandboxMode::Off {
            "; the sandbox was closed at the start, and what was added since needs a restart"
        } else {
            ""
        }
    }
}
