//! What is measured side by side, what each of them does not promise, and how to get it.

use std::{env, path::PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::client::zeromq_is_installed;
use super::plan::Workload;

/// A system that carries messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum System {
    /// Ours
    #[value(skip)]
    Unisono,
    /// Ours, through rings in shared memory
    #[value(skip)]
    UnisonoRing,
    /// The reference message bus
    DbusDaemon,
    /// The fast message bus; this program acts as its controller
    DbusBroker,
    /// A message bus in Rust
    Busd,
    /// No broker: a write to a Unix socket for each receiver
    RawUnix,
    /// A broker of ours that copies bytes and does nothing else
    Relay,
    /// The same with one system call for each message at each place
    RelayPlain,
    /// ZeroMQ, without a broker
    Zeromq,
    /// A NATS server, over loopback TCP
    Nats,
    /// No broker: one datagram to all
    UdpMulticast,
    /// No broker and no safety: memory that all have mapped, and a futex; large only
    SharedMemory,
    /// The same with a process in the middle that copies, and wakes each receiver; large only
    SharedMemoryBroker,
    /// No safety and next to no work: bare processes that take turns; rtt and lockstep only
    Turns,
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unisono => "unisono",
            Self::UnisonoRing => "unisono-ring",
            Self::DbusDaemon => "dbus-daemon",
            Self::DbusBroker => "dbus-broker",
            Self::Busd => "busd",
            Self::RawUnix => "raw-unix",
            Self::Relay => "relay",
            Self::RelayPlain => "relay-plain",
            Self::Zeromq => "zeromq",
            Self::Nats => "nats",
            Self::UdpMulticast => "udp-multicast",
            Self::SharedMemory => "shared-memory",
            Self::SharedMemoryBroker => "shared-memory-broker",
            Self::Turns => "turns",
        }
    }

    /// What carries its bytes.
    pub(crate) fn transport(self) -> &'static str {
        match self {
            Self::Nats => "tcp",
            Self::UdpMulticast => "udp",
            Self::UnisonoRing => "ring",
            Self::SharedMemory | Self::SharedMemoryBroker | Self::Turns => "memory",
            _ => "socket",
        }
    }

    /// What it does not guarantee that we do.
    pub(crate) fn lacks(self) -> &'static str {
        match self {
            Self::Unisono | Self::UnisonoRing => "",
            Self::DbusDaemon => {
                "all or nothing; back-pressure: it queues, then refuses or disconnects"
            }
            Self::DbusBroker => {
                "all or nothing; back-pressure: it disconnects who is over its quota"
            }
            Self::Busd => "one order; all or nothing; back-pressure beyond the socket",
            Self::RawUnix => {
                "one order; all or nothing; isolation: one slow receiver stops the sender"
            }
            Self::Relay | Self::RelayPlain => {
                "isolation: one slow receiver stops everybody; groups, policy, limits; all or nothing"
            }
            Self::Zeromq => "one order; no loss: it drops at its high-water mark",
            Self::Nats => "one order; all or nothing; back-pressure: it disconnects slow readers",
            Self::UdpMulticast => "no loss; one order; any flow control; who sent it",
            Self::SharedMemory => {
                "everything but one order of one sender: whoever has it mapped can write what others read"
            }
            Self::Turns => "everything, and to sleep when there is nothing to do",
            Self::SharedMemoryBroker => {
                "everything but one order of one sender: its process in the middle knows no groups and no limits"
            }
        }
    }

    /// Whether it keeps one order of all senders at all receivers.
    pub(crate) fn promises_one_order(self) -> bool {
        matches!(
            self,
            Self::Unisono
                | Self::UnisonoRing
                | Self::DbusDaemon
                | Self::DbusBroker
                | Self::Relay
                | Self::RelayPlain
                | Self::SharedMemory
                | Self::SharedMemoryBroker
                | Self::Turns
        )
    }

    /// Whether it is ours, whatever carries its bytes.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Unisono | Self::UnisonoRing)
    }

    /// Whether it marks what is the least, in memory that all have mapped.
    pub(crate) fn is_memory(self) -> bool {
        matches!(self, Self::SharedMemory | Self::SharedMemoryBroker | Self::Turns)
    }

    /// Whether nothing is lost while senders keep within the window.
    pub(crate) fn is_lossless(self) -> bool {
        self != Self::UdpMulticast
    }

    /// Why a workload cannot be run with it.
    pub(crate) fn cannot(self, workload: Workload, size: usize) -> Option<&'static str> {
        match self {
            _ if self.is_ours() => None,
            Self::Turns if matches!(workload, Workload::Rtt | Workload::Lockstep) => None,
            Self::Turns => Some("it has one message under way"),
            _ if self.is_memory() && workload != Workload::Large => {
                Some("it is about large payloads")
            }
            _ if workload == Workload::Fair => Some("its sends do not wait"),
            _ if workload == Workload::Filter => Some("its filters are others, or it has none"),
            Self::RawUnix | Self::Relay | Self::RelayPlain if workload.is_about_connections() => {
                Some("it has no greeting")
            }
            Self::Zeromq if workload.is_about_connections() => Some("it has no broker"),
            Self::UdpMulticast if workload.is_about_connections() => Some("it has no connections"),
            Self::UdpMulticast if workload == Workload::Rtt => Some("it is one-way"),
            Self::UdpMulticast if workload == Workload::Lockstep => {
                Some("one lost message would end it")
            }
            Self::UdpMulticast if size > MOST_DATAGRAM => {
                Some("a datagram has at most 65000 bytes")
            }
            _ => None,
        }
    }

    /// The program that it needs, if any.
    pub(crate) fn program(self) -> Option<&'static str> {
        match self {
            Self::DbusDaemon => Some("dbus-daemon"),
            Self::DbusBroker => Some("dbus-broker"),
            Self::Busd => Some("busd"),
            Self::Nats => Some("nats-server"),
            _ => None,
        }
    }

    /// What to do to have it measured; none if it is there.
    pub(crate) fn missing(self) -> Option<String> {
        if self == Self::Zeromq {
            let text = "libzmq.so.5 is not installed; Debian: apt-get install libzmq5";
            return (!zeromq_is_installed()).then(|| text.to_owned());
        }
        let program = self.program()?;
        if find(program).is_some() {
            return None;
        }
        let get = match self {
            Self::Busd => "cargo install busd",
            Self::DbusDaemon => "Debian: apt-get install dbus-daemon",
            Self::DbusBroker => "Debian: apt-get install dbus-broker",
            _ => "Debian: apt-get install nats-server",
        };
        Some(format!("{program} is not installed; {get}"))
    }
}

/// Where a program lies. Those of the system are often not in a user's PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let also = ["/usr/bin", "/usr/sbin", "/usr/local/bin"].map(PathBuf::from);
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo/bin"));
    env::split_paths(&path)
        .chain(also)
        .chain(home)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// What an IPv4 datagram holds, less headers and a margin.
const MOST_DATAGRAM: usize = 65_000;
