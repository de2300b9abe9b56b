//! Who holds how much, as a listing: each user, and then his connections.
//!
//! Invariant: who asks sees the accounts of his own user, or of the socket that he came in at; only root
//! and the user that the broker runs as see all. Nothing of it waits here but how far it has got.

use std::collections::VecDeque;

use bus_core::wire::{AccountInfo, Response};
use bus_core::{ConnectionUsage, Ledger, UserUsage};

/// A listing of accounts that is under way.
#[derive(Debug)]
pub(super) struct Accounts {
    ledger: Ledger,
    /// Users that have not been told to their ends.
    users: VecDeque<u32>,
    /// The last connection of the first of them that was told, if he has been told himself.
    after: Option<u64>,
}

impl Accounts {
    /// What may be seen: one user's, or all.
    pub(super) fn seen_by(user: Option<u32>, ledger: &Ledger) -> Self {
        let shown = |uid: &u32| user.is_none_or(|user| user == *uid);
        let users = ledger.users().into_iter().filter(shown).collect();
        Self { ledger: ledger.clone(), users, after: None }
    }

    /// The next entries, and whether they are the last.
    pub(super) fn part(&mut self) -> (Response, bool) {
        let mut accounts = Vec::with_capacity(PART);
        while accounts.len() < PART
            && let Some(uid) = self.users.front().copied()
        {
            let Some(after) = self.after else {
                accounts.extend(self.ledger.usage(uid).map(user_info));
                self.after = Some(0);
                continue;
            };
            let most = PART - accounts.len();
            let next = self.ledger.connections(uid, after, most);
            match next.last() {
                Some(last) => self.after = Some(last.number),
                None => {
                    self.users.pop_front();
                    self.after = None;
                }
            }
            accounts.extend(next.into_iter().map(|connection| connection_info(uid, &connection)));
        }
        (Response::Accounts { accounts }, self.users.is_empty())
    }
}

fn user_info(user: UserUsage) -> AccountInfo {
    AccountInfo {
        uid: user.uid,
        held: user.held,
        limits: Some(user.limits),
        assured: Some(user.assured),
        refused: Some(user.refused),
        ..AccountInfo::default()
    }
}

fn connection_info(uid: u32, connection: &ConnectionUsage) -> AccountInfo {
    AccountInfo {
        uid,
        connection: Some(connection.number),
        pid: Some(connection.pid),
        held: connection.held,
        ..AccountInfo::default()
    }
}

/// Entries of a part: a user's is about a kilobyte.
const PART: usize = 16;
