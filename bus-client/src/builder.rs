//! Where the broker is, and how to connect to it.

use std::time::Duration;

use crate::bus::Bus;
use crate::error::ConnectError;
use crate::message::GREETING_TIMEOUT;

/// Settings for a connection.
#[derive(Clone, Debug)]
pub struct Builder {
    address: Option<String>,
    program: Option<String>,
    timeout: Duration,
    backlog_messages: u32,
    backlog_bytes: u64,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            address: None,
            program: None,
            timeout: GREETING_TIMEOUT,
            backlog_messages: 256,
            backlog_bytes: 1 << 20,
        }
    }

    /// Where the broker is: `PATH` or `unix:PATH`. Without it `UNISONO_ADDRESS` and then
    /// `$XDG_RUNTIME_DIR/unisono/bus` are taken.
    #[must_use]
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// What this program calls itself, for the broker's logs.
    #[must_use]
    pub fn program(mut self, name: impl Into<String>) -> Self {
        self.program = Some(name.into());
        self
    }

    /// How long to wait for the broker's greeting; 10 s unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How much an endpoint takes in beyond its queue while a send waits: 256 messages or 1 MiB
    /// unless set. Zero messages switch the backlog off.
    #[must_use]
    pub fn backlog(mut self, messages: u32, bytes: u64) -> Self {
        self.backlog_messages = messages;
        self.backlog_bytes = bytes;
        self
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub fn connect(self) -> Result<Bus, ConnectError> {
        let _ = (
            self.address,
            self.program,
            self.timeout,
            self.backlog_messages,
            self.backlog_bytes,
        );
        unimplemented!()
    }
}
