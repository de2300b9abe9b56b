//! What the connections of each user have pinned.
//!
//! Invariant: what is charged is given back exactly when its [`Pinned`] is dropped. A user without any is
//! not remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bus_core::Limits;

/// Bytes pinned by each user.
#[derive(Debug)]
pub(crate) struct Ledger {
    pinned_bytes: u64,
    pool_bytes: u64,
    users: Mutex<HashMap<u32, User>>,
}

#[derive(Debug, Default)]
struct User {
    pinned: u64,
    pools: u64,
    files: u64,
}

/// A charge on a user; given back when dropped.
#[derive(Debug)]
pub(crate) struct Pinned {
    ledger: Arc<Ledger>,
    uid: u32,
    what: What,
    bytes: u64,
}

/// What a user is charged for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A lent buffer.
    Buffer,
    /// A lent file: a descriptor as well.
    File,
    /// A pool.
    Pool,
}

/// Which limit a charge would have passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PastLimit {
    pub(crate) name: &'static str,
    pub(crate) value: u64,
}

impl Ledger {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            pinned_bytes: limits.pinned_bytes,
            pool_bytes: limits.pool_bytes,
            users: Mutex::default(),
        }
    }

    pub(crate) fn charge(
        self: &Arc<Self>,
        uid: u32,
        what: What,
        bytes: u64,
    ) -> Result<Pinned, PastLimit> {
        let mut users = self.users.lock().expect("nothing panics under this lock");
        let user = users.entry(uid).or_default();
        let (used, name, value) = match what {
            What::Buffer | What::File => (user.pinned, "pinned_bytes", self.pinned_bytes),
            What::Pool => (user.pools, "pool_bytes", self.pool_bytes),
        };
        if used.saturating_add(bytes) > value {
            return Err(PastLimit { name, value });
        }
        if what == What::File && user.files >= FILES {
            return Err(PastLimit { name: "lent files", value: FILES });
        }
        match what {
            What::Buffer => user.pinned += bytes,
            What::File => {
                user.pinned += bytes;
                user.files += 1;
            }
            What::Pool => user.pools += bytes,
        }
        Ok(Pinned { ledger: Arc::clone(self), uid, what, bytes })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut users = self.ledger.users.lock().expect("nothing panics under this lock");
        let Some(user) = users.get_mut(&self.uid) else { return };
        match self.what {
            What::Buffer => user.pinned -= self.bytes,
            What::File => {
                user.pinned -= self.bytes;
                user.files -= 1;
            }
            What::Pool => user.pools -= self.bytes,
        }
        if (user.pinned, user.pools) == (0, 0) {
            users.remove(&self.uid);
        }
    }
}

/// Files that one user may have lent: descriptors of the broker's.
const FILES: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g8_what_a_user_pins_is_bounded_and_given_back() {
        let limits = Limits { pinned_bytes: 100, pool_bytes: 50, ..Limits::default() };
        let ledger = Arc::new(Ledger::new(&limits));
        let one = ledger.charge(1, What::Buffer, 60).unwrap();
        let past = ledger.charge(1, What::File, 41).unwrap_err();
        assert_eq!((past.name, past.value), ("pinned_bytes", 100));
        let _other = ledger.charge(2, What::Buffer, 100).unwrap();
        let _pool = ledger.charge(1, What::Pool, 50).unwrap();
        assert_eq!(ledger.charge(1, What::Pool, 1).unwrap_err().name, "pool_bytes");
        drop(one);
        let _again = ledger.charge(1, What::File, 100).unwrap();
    }
}
