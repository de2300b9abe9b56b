//! Where clients come in: a listening socket, and who its clients are if it says so.
//!
//! A door with an identity is for clients that are known by where they came in, whatever their user:
//! a sandbox's launcher puts the socket into the sandbox and nothing else of the bus. So a sandbox
//! needs no proxy process, and what its clients may do is a matter of rules. Its clients pay from an
//! account of the door's own, whatever their user: so a sandbox takes nothing of what the session's
//! programs have, and no program of the session can take what is the sandbox's.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{config::SocketConfig, listener::Listener};

/// One of a broker's listening sockets.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) listener: Listener,
    sign: Option<Arc<Sign>>,
}

/// What stands over a door.
#[derive(Debug)]
struct Sign {
    identity: String,
    /// Whose account its clients have.
    account: u32,
    most: u32,
    inside: AtomicU32,
}

/// One of the connections that a door may have; given back when dropped.
#[derive(Debug)]
pub(crate) struct DoorPlace(Arc<Sign>);

impl Door {
    /// The bus's own.
    pub(crate) fn main(listener: Listener) -> Self {
        Self { listener, sign: None }
    }

    /// One for those whom the configuration names, the `at`-th that it has.
    pub(crate) fn of(config: &SocketConfig, at: usize, listener: Listener) -> Self {
        let sign = Sign {
            identity: config.identity.as_str().to_owned(),
            account: account_of(at),
            most: config.connections.get(),
            inside: AtomicU32::new(0),
        };
        Self { listener, sign: Some(Arc::new(sign)) }
    }

    /// Who its clients are.
    pub(crate) fn identity(&self) -> Option<&str> {
        self.sign.as_deref().map(|sign| sign.identity.as_str())
    }

    /// Whose account its clients have, if not their users'.
    pub(crate) fn account(&self) -> Option<u32> {
        self.sign.as_deref().map(|sign| sign.account)
    }

    /// A place for another connection; the limit, if all are taken.
    pub(crate) fn take_place(&self) -> Result<Option<DoorPlace>, u32> {
        let Some(sign) = &self.sign else { return Ok(None) };
        let add_one = |inside| (inside < sign.most).then_some(inside + 1);
        let taken = sign.inside.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add_one);
        taken.map(|_| Some(DoorPlace(Arc::clone(sign)))).map_err(|_| sign.most)
    }
}

/// The account of the `at`-th door with an identity. It stands among those of users, at the end of
/// their numbers, where the kernel's have room for 65,535 that no system gives away.
pub(crate) fn account_of(at: usize) -> u32 {
    FIRST_ACCOUNT.saturating_add(u32::try_from(at).unwrap_or(u32::MAX)).min(u32::MAX - 1)
}

/// 2^32 - 65,536.
const FIRST_ACCOUNT: u32 = 0xffff_0000;

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for DoorPlace {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}
