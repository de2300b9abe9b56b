//! A broker in a thread of this process (feature `embedded`).

use std::path::Path;

use crate::bus::Bus;
use crate::error::ConnectError;

/// A broker in a thread of this process, with a socket that other processes can connect to.
/// Dropping it ends the broker and removes the socket; its clients are told.
///
/// It touches no signals, limits, umask or sandbox of its process.
#[derive(Debug)]
pub struct EmbeddedBroker {}

impl EmbeddedBroker {
    /// Starts a broker on a socket in a new directory of its own, which only this user may enter.
    ///
    /// # Errors
    ///
    /// No place for a socket, no descriptor, no thread.
    pub fn start() -> Result<Self, ConnectError> {
        unimplemented!()
    }

    /// Starts a broker on a socket at `path`.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start); also if another broker listens there.
    pub fn listen(path: &Path) -> Result<Self, ConnectError> {
        let _ = path;
        unimplemented!()
    }

    /// The address for others: for `--address` or `UNISONO_ADDRESS`.
    #[must_use]
    pub fn address(&self) -> &str {
        unimplemented!()
    }

    /// Connects to it.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub fn connect(&self) -> Result<Bus, ConnectError> {
        unimplemented!()
    }

    /// Ends the broker, tells its clients, and waits for its thread.
    pub fn shutdown(self) {
        unimplemented!()
    }
}
