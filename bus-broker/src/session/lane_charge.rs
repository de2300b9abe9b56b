//! What a lane's sends that wait at the broker are charged (G10: from acceptance until commit).
//!
//! Invariant: while nobody looks, the charge is what the lane holds: so many sends, and their bytes.
//! Nobody looks while the lane's own connection acts, so a send that takes its place in the call
//! that has brought it is never charged, and costs nothing here. The lane says what it holds after
//! everything that it does.

use bus_core::{Account, Charge, LimitExceeded, Resource};

/// A lane's charge.
#[derive(Debug)]
pub(super) struct LaneCharge {
    messages: Charge,
    bytes: Charge,
}

impl LaneCharge {
    pub(super) fn new(account: &Account) -> Self {
        let messages = account.nothing(Resource::Messages);
        Self { messages, bytes: account.nothing(Resource::Bytes) }
    }

    /// The lane holds so much.
    ///
    /// # Errors
    ///
    /// It is more than before and a limit is reached: the charge is what it was.
    pub(super) fn set(&mut self, messages: usize, bytes: u64) -> Result<(), LimitExceeded> {
        let before = self.messages.amount();
        self.messages.set(messages as u64)?;
        self.bytes.set(bytes).inspect_err(|_| self.messages.lower(before))
    }
}

#[cfg(test)]
mod tests {
    use bus_core::{Ledger, Limits, Process};

    use super::*;

    #[test]
    fn what_is_refused_leaves_the_charge_as_it_was() {
        let limits = Limits { user_bytes: 10, ..Limits::default() };
        let account = Ledger::new(&limits).open(1, 1, Process::Pid(1));
        let held = || (account.held().get(Resource::Messages), account.held().get(Resource::Bytes));
        let mut charge = LaneCharge::new(&account);
        charge.set(2, 5).unwrap();
        assert!(charge.set(3, 50).is_err());
        assert_eq!(held(), (2, 5));
        charge.set(1, 3).unwrap();
        assert_eq!(held(), (1, 3));
        drop(charge);
        assert_eq!(held(), (0, 0));
    }
}
