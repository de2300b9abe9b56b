//! Where clients come in: a listening socket, and who its clients are if it says so.
//!
//! A door with an identity is for clients that are known by where they came in, whatever their user:
//! a sandbox's launcher puts the socket into the sandbox and nothing else of the bus. So a sandbox
//! needs no proxy process, and what its clients may do is a matter of rules. Such a door has a number
//! of connections of its own, and since all that a client holds is bounded for its connection, a
//! budget of its own with it.

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

    /// One for those whom the configuration names.
    pub(crate) fn of(config: &SocketConfig, listener: Listener) -> Self {
        let sign = Sign {
            identity: config.identity.as_str().to_owned(),
            most: config.connections.get(),
            inside: AtomicU32::new(0),
        };
        Self { listener, sign: Some(Arc::new(sign)) }
    }

    /// Who its clients are.
    pub(crate) fn identity(&self) -> Option<&str> {
        self.sign.as_deref().map(|sign| sign.identity.as_str())
    }

    /// A place for another connection; the limit, if all are taken.
    pub(crate) fn take_place(&self) -> Result<Option<DoorPlace>, u32> {
        let Some(sign) = &self.sign else { return Ok(None) };
        let add_one = |inside| (inside < sign.most).then_some(inside + 1);
        let taken = sign.inside.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add_one);
        taken.map(|_| Some(DoorPlace(Arc::clone(sign)))).map_err(|_| sign.most)
    }
}

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
