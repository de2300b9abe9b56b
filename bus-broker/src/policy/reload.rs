//! Taking the rules anew, from the files that they came from.
//!
//! Invariant: the new rules are in force as a whole or not at all. Whatever is wrong with a file,
//! the old ones stay, and who asked is told the file, line and column.

use crate::{broker::Shared, config::ConfigError};

/// Why the rules are still the old ones. Mend the file and reload again.
#[derive(Debug, thiserror::Error)]
#[error("the rules are as they were: {0}")]
pub struct ReloadError(#[from] ConfigError);

impl Shared {
    /// Reads the rules again, and reviews every connection by them. Says how many there are.
    pub(crate) fn reload(&self) -> Result<u32, ReloadError> {
        let rules = self.config.policy_anew()?.of_owner(self.policy.get().owner);
        let count = u32::try_from(rules.rule_count()).unwrap_or(u32::MAX);
        self.policy.replace(rules);
        self.review_connections();
        tracing::info!(rules = count, "reloaded the policy");
        Ok(count)
    }
}
