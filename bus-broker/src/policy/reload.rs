//! Taking the rules anew, from the files that they came from.
//!
//! Invariant: the new rules are in force as a whole or not at all. Whatever is wrong with a file,
//! the old ones stay, and who asked is told the file, line and column.

use crate::{broker::Shared, config::ConfigError, service::read_services};

/// Why the rules are still the old ones. Mend the file and reload again.
#[derive(Debug, thiserror::Error)]
#[error("the rules are as they were: {0}")]
pub struct ReloadError(#[from] ConfigError);

impl Shared {
    /// Reads the rules again, and reviews every connection by them; service files too, of which those
    /// that are wrong are left out. Says how many rules there are.
    pub(crate) fn reload(&self) -> Result<u32, ReloadError> {
        let rules = self.config.policy_anew()?.of_owner(self.policy.get().owner);
        let count = u32::try_from(rules.rule_count()).unwrap_or(u32::MAX);
        self.policy.replace(rules);
        self.review_connections();
        if self.helper.get().is_some() {
            self.services.replace(read_services(&self.config.service_directories()));
        }
        tracing::info!(rules = count, "reloaded the policy");
        Ok(count)
    }
}
