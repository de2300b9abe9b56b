//! Ingress: a socket for programs that know nothing of Unisono, whose messages feed a group or a
//! name.
//!
//! Each connection is a stream of messages in the program's own format, cut by the listener's
//! framer. Each message, header and all, is sent to the listener's group in the order of its
//! stream, and nothing is answered; or it is a request to the listener's name, and the payloads of
//! the replies go back on the stream, as they are and in the order of the requests.
//!
//! Invariants:
//! - Such a message never passes for one of a user's: its credentials are
//!   [`Credentials::UNAUTHENTICATED`], which no connection of the bus's own protocol can have. The
//!   listener's identity stands in the field `ingress`.
//! - A stream whose message waits for room in the group is not read, so its program waits as it
//!   would for any slow server. What it makes the broker hold is one read, one message under way
//!   and one that waits.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bus_core::framing::{
    BpfFramer, Endianness, Framer, LengthPrefix, LengthPrefixError, LoadError, Unisono, Width,
};
use bus_core::wire::inside::IngressTraffic;
use bus_core::{
    Attributes, AttributesError, Bus, CreateError, Credentials, Destination, Endpoint, GroupId,
    GroupName, LimitExceeded, OwnError,
};
use serde::Deserialize;

use crate::listener::ListenError;
use crate::tally::Counter;

pub(crate) use listener::IngressListener;
pub(crate) use stream::IngressStream;

mod listener;
mod stream;

/// A socket for programs that know nothing of Unisono: `[[ingress]]` in a configuration.
///
/// ```
/// use bus_broker::{Config, IngressTarget};
///
/// let text = r#"
/// [[ingress]]
/// listen = "tcp:127.0.0.1:9090"
/// identity = "org.example.Thermometer"
/// group = "org.example.Readings"
/// framing = { kind = "length-prefix", width = 4, bias = 4 }
/// timeout = "10s"
/// "#;
/// let config = Config::from_toml(text, "bus.toml".as_ref())?;
/// assert!(matches!(&config.ingress[0].feeds, IngressTarget::Group(name)
///     if name.as_str() == "org.example.Readings"));
/// # Ok::<(), bus_broker::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Form")]
#[non_exhaustive]
pub struct IngressConfig {
    /// Where programs connect.
    pub listen: IngressAddress,
    /// Who its messages are said to come from, in their field `ingress`. A name, so that receivers
    /// can compare it; it proves nothing of the program at the other end.
    pub identity: GroupName,
    /// What is fed: `group = "NAME"` or `name = "NAME"`.
    pub feeds: IngressTarget,
    /// Where messages end.
    pub framing: Framing,
    /// Bytes of the longest message; by default what the socket's `SO_RCVBUF` says, and never more
    /// than the bus's payloads may have. A longer one ends its stream.
    pub maximum: Option<NonZeroU32>,
    /// How long a message may take from its first byte to its last; a later one ends its stream.
    /// 0 for ever.
    pub timeout: Duration,
    /// Streams at a time; further ones are closed at once.
    pub connections: NonZeroU32,
}

/// What an ingress feeds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IngressTarget {
    /// A group, which is made when the broker starts. Nothing is answered.
    Group(GroupName),
    /// Whoever owns a name is asked, once for each message; the replies go back in the order of the
    /// requests. A request that gets none ends its stream.
    Name(GroupName),
}

/// An ingress as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    listen: IngressAddress,
    identity: GroupName,
    group: Option<GroupName>,
    name: Option<GroupName>,
    framing: Framing,
    #[serde(default)]
    maximum: Option<NonZeroU32>,
    #[serde(default = "default_timeout", with = "bus_core::duration_text")]
    timeout: Duration,
    #[serde(default = "default_connections")]
    connections: NonZeroU32,
}

impl TryFrom<Form> for IngressConfig {
    type Error = &'static str;

    fn try_from(form: Form) -> Result<Self, Self::Error> {
        let feeds = match (form.group, form.name) {
            (Some(group), None) => IngressTarget::Group(group),
            (None, Some(name)) => IngressTarget::Name(name),
            _ => return Err("an ingress feeds either a group or a name"),
        };
        let Form { listen, identity, framing, maximum, timeout, connections, .. } = form;
        Ok(Self { listen, identity, feeds, framing, maximum, timeout, connections })
    }
}

impl fmt::Display for IngressTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(name) => write!(f, "group {name}"),
            Self::Name(name) => write!(f, "name {name}"),
        }
    }
}

/// Where an ingress listens: `unix:PATH`, or `tcp:ADDRESS:PORT` with an address of this machine's
/// loopback.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
#[non_exhaustive]
pub enum IngressAddress {
    /// A Unix socket for this user only.
    Unix(PathBuf),
    /// A loopback address; with port 0 the system chooses one. Every program of this machine can
    /// connect to it, whoever's it is.
    Tcp(SocketAddr),
}

/// An address that is none for an ingress. Name another one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IngressAddressError {
    /// Neither of the two forms.
    #[error("{0:?} is neither unix:PATH nor tcp:ADDRESS:PORT")]
    Form(String),
    /// Other machines could reach it, and nobody is authenticated.
    #[error("{0} is no loopback address, and an ingress authenticates nobody")]
    NotLoopback(SocketAddr),
}

/// How messages are told apart.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Framing {
    /// An unsigned length in a fixed place of the header.
    LengthPrefix {
        /// Bytes before it.
        #[serde(default)]
        offset: usize,
        /// Its bytes: 1, 2, 4 or 8.
        width: usize,
        /// Which of them comes first.
        #[serde(default)]
        endianness: ByteOrder,
        /// Added to what it says; the sum is the length of the whole message.
        #[serde(default)]
        bias: i64,
    },
    /// A BPF program, as clang makes it or raw.
    Bpf {
        /// Its file.
        file: PathBuf,
    },
    /// Unisono's own frames.
    Unisono,
}

/// Which byte of a number comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ByteOrder {
    /// The most significant one.
    #[default]
    Big,
    /// The least significant one.
    Little,
}

/// Why there is no such ingress. Mend the configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IngressError {
    /// The framing could frame nothing.
    #[error(transparent)]
    Prefix(#[from] LengthPrefixError),
    /// A length has 1, 2, 4 or 8 bytes.
    #[error("a length of {0} bytes, and it has 1, 2, 4 or 8")]
    Width(usize),
    /// The program cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The program may not run.
    #[error("{path}: {source}")]
    Program {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: LoadError,
    },
    /// Messages may be longer than what the bus carries.
    #[error("a maximum of {given} bytes, and the bus's payloads have at most {limit}")]
    Maximum {
        /// The maximum given.
        given: u32,
        /// `payload_bytes` of the limits.
        limit: u32,
    },
    /// The identity is too long for a field.
    #[error(transparent)]
    Identity(#[from] AttributesError),
    /// A bound of the bus was reached before it was open.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// The group cannot be made.
    #[error(transparent)]
    Group(#[from] CreateError),
    /// The name cannot be watched.
    #[error(transparent)]
    Name(#[from] OwnError),
    /// The socket cannot be made.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system refused the address.
    #[error("cannot listen: {0}")]
    System(#[from] io::Error),
}

/// An ingress that is open: what all its streams share.
#[derive(Debug)]
pub(crate) struct Ingress {
    identity: GroupName,
    framer: Box<dyn Framer>,
    maximum: Option<NonZeroU32>,
    payload_bytes: u32,
    timeout: Option<Duration>,
    attributes: Attributes,
    destination: Destination,
    /// The name that it feeds, if it is one.
    name: Option<GroupName>,
    /// It created the group or watches the name, which lives while this does.
    _creator: Endpoint,
    most: u32,
    streams: AtomicU32,
    feeds: String,
    pub(crate) counts: IngressCounts,
}

/// What has come in at an ingress. A stream adds to it once for each read, not for each message.
#[derive(Debug, Default)]
pub(crate) struct IngressCounts {
    accepted: Counter,
    refused: Counter,
    pub(crate) failed: Counter,
    pub(crate) messages: Counter,
    pub(crate) bytes: Counter,
    pub(crate) replies: Counter,
}

/// One of the streams that an ingress may have; given back when dropped.
#[derive(Debug)]
pub(crate) struct IngressPlace {
    ingress: Arc<Ingress>,
}

impl Ingress {
    pub(crate) fn open(config: &IngressConfig, bus: &Bus) -> Result<Arc<Self>, IngressError> {
        let limit = bus.limits().payload_bytes;
        if let Some(maximum) = config.maximum
            && maximum.get() > limit
        {
            return Err(IngressError::Maximum { given: maximum.get(), limit });
        }
        let attributes = Attributes::builder().field(FIELD, config.identity.as_str()).build()?;
        let creator = bus.open_endpoint(Credentials::UNAUTHENTICATED)?;
        let destination = match &config.feeds {
            IngressTarget::Group(group) => Destination::Group(find_or_create(&creator, group)?),
            // A name that is watched lives, whether or not somebody owns it.
            IngressTarget::Name(name) => Destination::Name(creator.watch_name(name)?.name),
        };
        Ok(Arc::new(Self {
            identity: config.identity.clone(),
            framer: config.framing.load()?,
            maximum: config.maximum,
            payload_bytes: limit,
            timeout: (!config.timeout.is_zero()).then_some(config.timeout),
            attributes,
            destination,
            name: match &config.feeds {
                IngressTarget::Name(name) => Some(name.clone()),
                IngressTarget::Group(_) => None,
            },
            _creator: creator,
            most: config.connections.get(),
            streams: AtomicU32::new(0),
            feeds: config.feeds.to_string(),
            counts: IngressCounts::default(),
        }))
    }

    pub(crate) fn identity(&self) -> &str {
        self.identity.as_str()
    }

    /// Counts a stream that is refused.
    pub(crate) fn count_refused(&self) {
        self.counts.refused.add(1);
    }

    /// What has come in.
    pub(crate) fn traffic(&self) -> IngressTraffic {
        IngressTraffic {
            ingress: self.identity().to_owned(),
            feeds: self.feeds.clone(),
            streams: self.streams.load(Ordering::Relaxed).into(),
            accepted: self.counts.accepted.get(),
            refused: self.counts.refused.get(),
            failed: self.counts.failed.get(),
            messages: self.counts.messages.get(),
            bytes: self.counts.bytes.get(),
            replies: self.counts.replies.get(),
        }
    }

    /// A place for another stream; `None` if all are taken.
    pub(crate) fn take_place(self: &Arc<Self>) -> Option<IngressPlace> {
        let add_one = |count| (count < self.most).then_some(count + 1);
        self.streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add_one).ok()?;
        self.counts.accepted.add(1);
        Some(IngressPlace { ingress: Arc::clone(self) })
    }
}

impl IngressPlace {
    pub(crate) fn identity(&self) -> &str {
        self.ingress.identity()
    }
}

impl Drop for IngressPlace {
    fn drop(&mut self) {
        self.ingress.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Framing {
    fn load(&self) -> Result<Box<dyn Framer>, IngressError> {
        Ok(match self {
            Self::Unisono => Box::new(Unisono),
            Self::LengthPrefix { offset, width, endianness, bias } => {
                let width = Width::from_bytes(*width).ok_or(IngressError::Width(*width))?;
                let order = match endianness {
                    ByteOrder::Big => Endianness::Big,
                    ByteOrder::Little => Endianness::Little,
                };
                Box::new(LengthPrefix::new(*offset, width, order, *bias)?)
            }
            Self::Bpf { file } => {
                let path = || file.clone();
                let bytes = std::fs::read(file)
                    .map_err(|source| IngressError::Unreadable { path: path(), source })?;
                let framer = BpfFramer::load(&bytes)
                    .map_err(|source| IngressError::Program { path: path(), source })?;
                Box::new(framer)
            }
        })
    }
}

impl FromStr for IngressAddress {
    type Err = IngressAddressError;

    fn from_str(text: &str) -> Result<Self, IngressAddressError> {
        let form = || IngressAddressError::Form(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", address)) => {
                let address: SocketAddr = address.parse().map_err(|_| form())?;
                if !address.ip().is_loopback() {
                    return Err(IngressAddressError::NotLoopback(address));
                }
                Ok(Self::Tcp(address))
            }
            _ => Err(form()),
        }
    }
}

impl TryFrom<String> for IngressAddress {
    type Error = IngressAddressError;

    fn try_from(text: String) -> Result<Self, IngressAddressError> {
        text.parse()
    }
}

impl fmt::Display for IngressAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

fn find_or_create(creator: &Endpoint, group: &GroupName) -> Result<GroupId, CreateError> {
    match creator.create_group(group) {
        Ok((group, _)) => Ok(group),
        // Another ingress feeds it too.
        Err(CreateError::Exists(name)) => match creator.bus().find_group(&name) {
            Some(info) => Ok(info.id),
            None => Err(CreateError::Exists(name)),
        },
        Err(error) => Err(error),
    }
}

fn default_timeout() -> Duration {
    Duration::from_secs(30)
}

fn default_connections() -> NonZeroU32 {
    const { NonZeroU32::new(64).expect("64 is not 0") }
}

/// The field that names the listener.
const FIELD: &str = "ingress";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_on_the_loopback() {
        let parse = |text: &str| text.parse::<IngressAddress>();
        assert_eq!(parse("unix:/run/x"), Ok(IngressAddress::Unix("/run/x".into())));
        for good in ["tcp:127.0.0.1:80", "tcp:[::1]:0", "tcp:127.1.2.3:9"] {
            assert_eq!(parse(good).unwrap().to_string(), good);
        }
        for far in ["tcp:0.0.0.0:80", "tcp:10.0.0.1:80", "tcp:[::]:80"] {
            assert!(matches!(parse(far), Err(IngressAddressError::NotLoopback(_))), "{far}");
        }
        for bad in ["", "unix:", "/run/x", "tcp:localhost:80", "tcp:127.0.0.1", "udp:127.0.0.1:8"] {
            assert!(matches!(parse(bad), Err(IngressAddressError::Form(_))), "{bad}");
        }
    }
}
