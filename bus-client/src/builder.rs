//! Where the broker is, and how to connect to it.

use std::any::Any;
use std::env;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use bus_core::wire::{
    BATCHES_FEATURE, FEATURE_APART, FEATURE_LEND, FEATURE_TRUST_OWN_USER, Hello, RINGS_FEATURE,
};

use crate::bus::Bus;
use crate::connection::{Connection, GreetingError};
use crate::error::{BrokerGone, ConnectError};
use crate::inbox::Amount;
use crate::reconnect::Reconnect;
use crate::state::Comeback;
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
    reconnect: Option<Reconnect>,
    transport: Option<Transport>,
    lends: Option<Reading>,
    trusts_own_user: bool,
}

/// What becomes of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The application reads them.
    Read,
    /// Nobody does.
    PassedOver,
}

/// How the bytes of a connection travel. What is promised is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// Through the socket while little is said, and after sixteen messages as [`Ring`](Self::Ring):
    /// making rings takes as long as some hundred messages through them save.
    #[default]
    Auto,
    /// Through the socket.
    Socket,
    /// Through memory that is shared with the broker, from the first message on and while there are
    /// some; through the socket where the broker has none to share.
    Ring,
}

impl std::str::FromStr for Transport {
    type Err = ConnectError;

    fn from_str(text: &str) -> Result<Self, ConnectError> {
        match text {
            "auto" => Ok(Self::Auto),
            "socket" => Ok(Self::Socket),
            "ring" => Ok(Self::Ring),
            _ => Err(ConnectError::BadTransport { transport: text.to_owned() }),
        }
    }
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            address: None,
            program: None,
            timeout: GREETING_TIMEOUT,
            backlog: BACKLOG,
            reconnect: None,
            transport: None,
            lends: None,
            trusts_own_user: false,
        }
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

    /// Switches on that large payloads are sent without copies, or with one: then a send can be flagged
    /// ([`Outgoing::zerocopy`](crate::Outgoing::zerocopy)), and
    /// [`completions`](crate::Bus::completions) say when what was lent is free again. They have to be
    /// read: unread ones count against a limit, and past it a flagged send fails with
    /// [`NoBuffers`](crate::SendError::NoBuffers).
    pub fn zerocopy(mut self) -> Self {
        self.lends = Some(Reading::Read);
        self
    }

    /// As [`zerocopy`](Self::zerocopy), for a program that only wants its buffers back, which they come
    /// by themselves: completions are passed over.
    pub fn zerocopy_quietly(mut self) -> Self {
        self.lends = Some(Reading::PassedOver);
        self
    }

    /// Trusts programs of this program's own user so far as to read what they send where they can still
    /// write it, if they sent it from a [pool for the group](crate::Bus::pool_for). Such a message has
    /// bytes only as copies; see [`Message::view`](crate::Message::view). Without this every payload is
    /// a copy that the broker made, or cannot be changed by anybody.
    pub fn trust_own_user(mut self) -> Self {
        self.trusts_own_user = true;
        self
    }

    /// Comes back when the broker ends: looks for another one at the same address, and asks it for
    /// what each endpoint had, with the same options: groups that it had created or was a member
    /// of, names, watches. Without this, the end of the broker is the end of the connection.
    ///
    /// All handles stay as they are; ids, those of endpoints included, are new. Each endpoint gets
    /// [`Event::Reconnected`](crate::Event::Reconnected) at the place where the one connection ended
    /// and the next begins. What was in flight is [`SendError::Unknown`](crate::SendError::Unknown)
    /// or, for a call, [`CallError::BrokerGone`](crate::CallError::BrokerGone), and is not sent
    /// again; a request that was received and not answered cannot be answered any more. Until the
    /// broker is back receiving waits, as do sends to groups and names that may wait for room; all
    /// else fails with [`BrokerGone`], and can be tried again once
    /// [`Bus::wait_connected`] says so.
    ///
    /// As for everything, it takes a thread that waits in some call, or somebody who dispatches: the
    /// descriptor to poll tells when there is something to do. A broker that ends the connection
    /// because of what we did, or that does not let us in, ends it for good.
    ///
    /// ```no_run
    /// use bus_client::{Bus, Event, Reconnect};
    ///
    /// let bus = Bus::builder().reconnect(Reconnect::new()).connect()?;
    /// bus.join("org.example.Chat")?;
    /// for event in bus.events() {
    ///     match event? {
    ///         Event::Message(message) => println!("{:?}", message.text()),
    ///         Event::Reconnected(back) => {
    ///             let from = back.joined("org.example.Chat");
    ///             println!("complete up to {:?}, and again from {from:?} on", back.last);
    ///         }
    ///         _ => {}
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reconnect(mut self, how: Reconnect) -> Self {
        self.reconnect = Some(how);
        self
    }

    /// How the bytes travel. Without it `UNISONO_TRANSPORT` (`auto`, `socket` or `ring`) says so, and else
    /// it is [`Transport::Auto`].
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = Some(transport);
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
        self.greet(socket, &address, Some(path), None)
    }

    /// Greets the broker at the other end of a connected socket.
    /// Where there is no path, nobody can come back.
    #[cfg(any(test, feature = "embedded"))]
    pub(crate) fn connect_socket(
        self,
        socket: OwnedFd,
        address: &str,
        keep: Option<Box<dyn Any + Send + Sync>>,
    ) -> Result<Bus, ConnectError> {
        self.greet(socket, address, None, keep)
    }

    fn greet(
        self,
        socket: OwnedFd,
        address: &str,
        path: Option<PathBuf>,
        keep: Option<Box<dyn Any + Send + Sync>>,
    ) -> Result<Bus, ConnectError> {
        let transport = match (self.transport, env::var("UNISONO_TRANSPORT")) {
            (Some(transport), _) => transport,
            (None, Ok(text)) if !text.is_empty() => text.parse()?,
            (None, _) => Transport::default(),
        };
        let mut hello = Hello::new();
        if transport != Transport::Socket {
            hello.features.push(RINGS_FEATURE.to_owned());
        }
        hello.program = self.program;
        hello.features.push(BATCHES_FEATURE.to_owned());
        hello.features.push(FEATURE_APART.to_owned());
        if self.lends.is_some() {
            hello.features.push(FEATURE_LEND.to_owned());
        }
        if self.trusts_own_user {
            hello.features.push(FEATURE_TRUST_OWN_USER.to_owned());
        }
        let address = address.to_owned();
        let lends = self.lends;
        let comeback = path
            .zip(self.reconnect)
            .map(|(path, how)| Comeback::new(path, hello.clone(), self.timeout, how));
        match Connection::open(socket, hello, self.timeout, self.backlog, comeback, lends, keep) {
            Ok(connection) => {
                if transport == Transport::Auto {
                    connection.lock().wish_rings_later();
                }
                Ok(Bus::new(connection))
            }
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
