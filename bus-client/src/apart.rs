//! Payloads that lie beside the stream: buffers that this program lends, and what it is given to read
//! in place.
//!
//! Invariants:
//! - What is read as `&[u8]` nobody writes while it is: it lies in memory of the broker's until this
//!   program releases it, or in a file that was checked to be sealed against every change, or it is a
//!   copy.
//! - What was handed out is released exactly once, when the last handle on it is gone, and without I/O
//!   or a lock of the connection where that may be held: a number is put on a list ([`Chores`]).
//!
//! | file | what it knows |
//! |---|---|
//! | here | what is to be told to the broker by and by, and memory as it was introduced |
//! | `apart/found` | a payload where it was found |
//! | `apart/pool`, `apart/file` | what is lent |
//! | `apart/choice` | how a flagged send travels |
//! | `apart/calibration` | from which size on lending pays |
//! | `state/apart` | which payloads are lent, and what the broker says of memory |

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bus_memory::Mapping;
use parking_lot::Mutex;

use crate::connection::Connection;

mod calibration;
mod choice;
mod file;
mod found;
mod handles;
mod pool;

pub use calibration::Calibration;
pub use choice::Way;
pub(crate) use choice::{Given, OwnPool, choose};
pub use file::SealedFile;
pub(crate) use found::{Found, Place};
pub use found::{Revoked, View};
pub use handles::Completions;
pub(crate) use pool::{Buffer, PoolMemory};
pub use pool::{Pool, PoolBuffer, PoolError};

/// Memory that MESSAGEs lie in, as the broker introduced it.
#[derive(Debug)]
pub(crate) enum Region {
    /// The broker's own.
    Arena(Arc<Mapping>),
    /// Another client's, and the words that say what of it is lent.
    Lent(Arc<LentRegion>),
    /// A pool for this client to map for writing.
    Pool { file: OwnedFd, length: usize },
    /// It did not come: this process has no room for it. What lies there has to be fetched.
    Missing,
}

/// Another client's pool.
#[derive(Debug)]
pub(crate) struct LentRegion {
    pub(crate) memory: Mapping,
    pub(crate) words: Mapping,
}

/// What is to be told to the broker by and by.
#[derive(Debug, Default)]
pub(crate) struct Chores {
    any: AtomicBool,
    list: Mutex<List>,
    connection: OnceLock<Weak<Connection>>,
}

/// What is on the list.
#[derive(Debug, Default)]
pub(crate) struct List {
    /// Payloads that are read no more.
    pub(crate) released: Vec<u32>,
    released_bytes: usize,
    /// Somebody waits for it, or it is much.
    is_urgent: bool,
    /// Pools that are used no more.
    pub(crate) pools: Vec<u32>,
}

/// How soon the broker should hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Haste {
    /// With the next thing that it is told: nobody waits.
    None,
    /// Somebody may want its buffer back.
    Some,
}

impl Chores {
    pub(crate) fn set_connection(&self, connection: Weak<Connection>) {
        let _ = self.connection.set(connection);
    }

    pub(crate) fn connection(&self) -> Option<Arc<Connection>> {
        self.connection.get()?.upgrade()
    }

    /// Whether there is anything to tell. A thread that has put something there sees to it that it is
    /// looked at again.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Whether somebody waits to be told.
    pub(crate) fn any_urgent(&self) -> bool {
        self.any() && self.list.lock().is_urgent
    }

    pub(crate) fn take(&self) -> List {
        self.any.store(false, Ordering::Release);
        std::mem::take(&mut *self.list.lock())
    }

    /// A payload is read no more.
    pub(crate) fn release(&self, hold: u32, bytes: usize, haste: Haste) {
        let mut list = self.list.lock();
        list.released.push(hold);
        list.released_bytes += bytes;
        let count = list.released.len();
        let many = count >= MANY || count >= SOME && list.released_bytes >= MANY_BYTES;
        let is_urgent = haste == Haste::Some || many;
        list.is_urgent |= is_urgent;
        drop(list);
        self.any.store(true, Ordering::Release);
        if is_urgent {
            self.hurry();
        }
    }

    /// A pool is used no more.
    pub(crate) fn drop_pool(&self, pool: u32) {
        let mut list = self.list.lock();
        list.pools.push(pool);
        list.is_urgent = true;
        drop(list);
        self.any.store(true, Ordering::Release);
        self.hurry();
    }

    /// Tells now, if nobody has the connection's lock; who has it may be this very thread. Else whoever
    /// sleeps for the connection is woken and does it.
    fn hurry(&self) {
        if let Some(connection) = self.connection() {
            connection.do_chores();
        }
    }
}

/// Releases that are told at once, whoever waits.
const MANY: usize = 64;
/// The same of their bytes: what is written next goes where these lay, which is in the caches yet. But not
/// fewer than these at a time: a write for each payload of 1 MiB costs more than that saves, and who sleeps for
/// longer than a nap tells all of them before.
const MANY_BYTES: usize = 512 << 10;
const SOME: usize = 4;
