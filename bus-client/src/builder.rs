//! Where the broker is, and how to connect to it.

use std::any::Any;
use std::env;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use bus_core::wire::Hello;

use crate::bus::Bus;
use crate::connection::{Connection, GreetingError};
use crate::error::{BrokerGone, ConnectError};
use crate::inbox::Amount;
use crate::transport;

/// Settings for a connection.
///
/// ```no_run
/// use std::time::Duration;
///
/// let bus = bus_client::Bus::builder()
///     .address("unix:/run/user/1000/unisono/bus")
///     .program("clock")
///     .timeout(Duration::from_secs(1))
///     .connect()?;
/// # Ok::<(), bus_client::ConnectError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "settings connect nothing until `connect`"]
pub struct Builder {
    address: Option<String>,
    program: Option<String>,
    timeout: Duration,
    backlog: Amount,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self { address: None, program: None, timeout: GREETING_TIMEOUT, backlog: BACKLOG }
    }

    /// Where the broker is: `PATH` or `unix:PATH`. Without it `UNISONO_ADDRESS` and then
    /// `$XDG_RUNTIME_DIR/unisono/bus` are taken.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// What this program calls itself, for the broker's logs. At most 255 bytes are kept.
    pub fn program(mut self, name: impl Into<String>) -> Self {
        let mut name = name.into();
        name.truncate(name.floor_char_boundary(MAX_PROGRAM_BYTES));
        self.program = Some(name);
        self
    }

    /// How long to wait for the broker's greeting; 10 s unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How much an endpoint takes in beyond its queue while a send waits: 256 messages or 1 MiB
    /// unless set. Zero messages switch the backlog off.
    pub fn backlog(mut self, messages: u32, bytes: u64) -> Self {
        self.backlog = Amount { messages, bytes };
        self
    }

    /// Connects. Blocks until the broker has answered the greeting, at most for the time set.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub fn connect(self) -> Result<Bus, ConnectError> {
        let path = match &self.address {
            Some(address) => parse(address)?,
            None => default_path(env::var_os("UNISONO_ADDRESS"), env::var_os("XDG_RUNTIME_DIR"))?,
        };
        let address = path.display().to_string();
        let socket = transport::connect(&path, self.timeout)
            .map_err(|source| ConnectError::Unreachable { address: address.clone(), source })?;
        self.connect_socket(socket, &address, None)
    }

    /// Greets the broker at the other end of a connected socket.
    pub(crate) fn connect_socket(
        self,
        socket: OwnedFd,
        address: &str,
        keep: Option<Box<dyn Any + Send + Sync>>,
    ) -> Result<Bus, ConnectError> {
        let mut hello = Hello::new();
        hello.program = self.program;
        let address = address.to_owned();
        match Connection::open(socket, hello, self.timeout, self.backlog, keep) {
            Ok(connection) => Ok(Bus::new(connection)),
            Err(GreetingError::Refused { code, text }) => {
                Err(ConnectError::Refused { address, code, text })
            }
            Err(GreetingError::TimedOut) => {
                Err(ConnectError::TimedOut { address, after: self.timeout })
            }
            Err(GreetingError::Gone(reason)) => {
                Err(ConnectError::Gone { address, gone: BrokerGone::new(reason) })
            }
            Err(GreetingError::System(error)) => Err(error.into()),
        }
    }
}

/// The path in an address.
fn parse(address: &str) -> Result<PathBuf, ConnectError> {
    let bad = |why| ConnectError::BadAddress { address: address.to_owned(), why };
    let path = match address.split_once(':') {
        Some(("unix", path)) => path,
        // A path may have a colon, though not before its first slash.
        Some((scheme, _)) if !scheme.contains('/') => {
            return Err(bad("its transport is not unix"));
        }
        _ => address,
    };
    if path.is_empty() {
        return Err(bad("it is empty"));
    }
    if path.contains('\0') {
        return Err(bad("it contains a NUL"));
    }
    Ok(path.into())
}

/// The path that two variables of the environment lead to.
fn default_path(
    address: Option<OsString>,
    runtime_dir: Option<OsString>,
) -> Result<PathBuf, ConnectError> {
    if let Some(address) = address.filter(|address| !address.is_empty()) {
        return match address.to_str() {
            Some(address) => parse(address),
            // Bytes that are no text are a path.
            None => Ok(address.into()),
        };
    }
    let runtime_dir = runtime_dir.filter(|dir| !dir.is_empty()).ok_or(ConnectError::NoAddress)?;
    Ok(PathBuf::from(runtime_dir).join("unisono").join("bus"))
}

/// How long to wait for a greeting, unless the application says otherwise.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// What an endpoint takes in beyond its queue: one more queue.
const BACKLOG: Amount = Amount { messages: 256, bytes: 1 << 20 };
const MAX_PROGRAM_BYTES: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_unix_and_a_path() {
        for (address, expected) in [
            ("/run/bus", Some("/run/bus")),
            ("unix:/run/bus", Some("/run/bus")),
            ("bus", Some("bus")),
            ("./a:b", Some("./a:b")),
            ("tcp:localhost", None),
            ("unix:", None),
            ("", None),
            ("a\0b", None),
        ] {
            let path = parse(address).ok();
            assert_eq!(path, expected.map(PathBuf::from), "{address:?}");
        }
    }

    #[test]
    fn the_environment_is_asked_in_order() {
        let some = |text: &str| Some(OsString::from(text));
        let path = |address, dir| default_path(address, dir).unwrap();
        assert_eq!(path(some("unix:/a"), some("/b")), PathBuf::from("/a"));
        assert_eq!(path(None, some("/b")), PathBuf::from("/b/unisono/bus"));
        assert_eq!(path(some(""), some("/b")), PathBuf::from("/b/unisono/bus"));
        let error = default_path(None, some("")).unwrap_err().to_string();
        assert!(error.contains("--address"), "{error}");
        assert!(error.contains("UNISONO_ADDRESS"), "{error}");
    }
}
