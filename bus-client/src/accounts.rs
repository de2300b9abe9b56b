//! Who holds how much of what the bus has to give: the accounts of users and their connections.

use std::collections::BTreeMap;

use bus_core::wire::{self, Request, Response};
use bus_core::{Amounts, Sequence};
use serde::Serialize;

use crate::bus::Endpoint;
use crate::error::QueryError;
use crate::listing::Listing;

/// What a user's connections hold and may hold, or what one of them holds.
///
/// Amounts are by the name of what is counted: `connections`, `endpoints`, `messages` and `bytes` that
/// wait at the broker, `descriptors`, `memberships`, `groups`, `retained_bytes`, `names`,
/// `filter_bytes`, `requests`, `pinned_bytes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AccountInfo {
    /// Which user.
    pub uid: u32,
    /// Of a connection: its number, as in the broker's log. Without it the entry is of all
    /// connections of the user, and comes before theirs.
    pub connection: Option<u64>,
    /// Of a connection: its process id; 0 if the broker cannot see it.
    pub pid: Option<u32>,
    /// What it holds, or they hold.
    pub held: BTreeMap<&'static str, u64>,
    /// Of a user: the limits.
    pub limits: Option<BTreeMap<&'static str, u64>>,
    /// Of a user: what each connection has in any case.
    pub assured: Option<BTreeMap<&'static str, u64>>,
    /// Of a user: how often something was refused, since the user has had connections without a
    /// break.
    pub refused: Option<BTreeMap<&'static str, u64>>,
}

impl From<wire::AccountInfo> for AccountInfo {
    fn from(info: wire::AccountInfo) -> Self {
        let named = |amounts: Amounts| -> BTreeMap<_, _> {
            amounts.iter().map(|(resource, amount)| (resource.name(), amount)).collect()
        };
        Self {
            uid: info.uid,
            connection: info.connection,
            pid: info.pid,
            held: named(info.held),
            limits: info.limits.map(named),
            assured: info.assured.map(named),
            refused: info.refused.map(named),
        }
    }
}

impl Endpoint {
    /// Who holds how much: each user, and then his connections. Blocks until the first are here.
    ///
    /// Root and the user that the broker runs as see all users; others see themselves.
    ///
    /// ```no_run
    /// # let bus = bus_client::Bus::connect()?;
    /// for account in bus.list_accounts()? {
    ///     let account = account?;
    ///     println!("{} {:?} {:?}", account.uid, account.pid, account.held);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn list_accounts(&self) -> Result<Listing<AccountInfo>, QueryError> {
        Listing::begin(self, Request::Accounts, None, |response| match response {
            Response::Accounts { accounts } => {
                let accounts = accounts.into_iter().map(AccountInfo::from).collect();
                Some((Sequence::from_raw(0), accounts))
            }
            _ => None,
        })
    }
}
