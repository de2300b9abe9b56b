//! The thin clients: for each system, the least that sends, receives, calls and connects.
//!
//! Invariant: a client is connected and hears what it is to hear when it has been made, so that a
//! run may start once all of a run's clients have been made. Each does no more work than it must:
//! what is marshalled is marshalled once, a batch is one write, and a read takes what is there.

mod dbus;
mod memory;
mod nats;
mod stream;
mod udp;
mod unisono;
mod zeromq;

use std::{any::Any, io};

pub(crate) use dbus::add_listener;
pub(crate) use memory::{copy_for_all, make_memory};
pub(crate) use stream::wait;
pub(crate) use zeromq::is_installed as zeromq_is_installed;

use super::{
    plan::{Go, Plan},
    stamp::Stamp,
    system::System,
    turns,
};

/// Sends to all receivers.
pub(crate) trait Sender {
    /// Sends a message for each stamp, with one write if it can.
    fn send(&mut self, stamps: &[Stamp]) -> io::Result<()>;

    /// Waits until all that was sent has been accepted, where the system tells.
    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Receives.
pub(crate) trait Receiver {
    /// Waits for a message, and gives what came with it. `TimedOut` where nothing comes and more
    /// cannot be relied on.
    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()>;

    /// Waits for a message, and takes all that is there, at most a queue.
    fn drain(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.receive(sink)
    }
}

/// One end of a round trip.
pub(crate) trait Caller {
    /// Sends, and waits for what comes back.
    fn call(&mut self, stamp: Stamp, sink: &mut dyn FnMut(&[u8])) -> io::Result<()>;
}

/// The other end.
pub(crate) trait Responder {
    /// Where it is called.
    fn address(&self) -> String;

    /// Waits for a call and answers it with its own payload.
    fn respond(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()>;
}

pub(crate) fn sender(plan: &Plan, index: usize) -> io::Result<Box<dyn Sender>> {
    Ok(match plan.system {
        System::Unisono | System::UnisonoRing => Box::new(unisono::GroupSender::new(plan)?),
        System::DbusDaemon | System::DbusBroker | System::Busd => {
            Box::new(dbus::SignalSender::new(plan)?)
        }
        System::RawUnix => Box::new(stream::DirectSender::new(plan)?),
        System::Relay | System::RelayPlain => Box::new(stream::RelaySender::new(plan)?),
        System::Nats => Box::new(nats::Publisher::new(plan)?),
        System::UdpMulticast => Box::new(udp::Sender::new(plan)?),
        System::Zeromq => Box::new(zeromq::Publisher::new(plan, index)?),
        System::SharedMemory => Box::new(memory::Writer::new(plan)?),
        System::SharedMemoryBroker => Box::new(memory::Lender::new(plan)?),
        System::Turns => Box::new(turns::End::sender(plan)?),
    })
}

pub(crate) fn receiver(plan: &Plan, index: usize) -> io::Result<Box<dyn Receiver>> {
    Ok(match plan.system {
        System::Unisono | System::UnisonoRing => {
            Box::new(unisono::MemberReceiver::new(plan, index)?)
        }
        System::DbusDaemon | System::DbusBroker | System::Busd => {
            Box::new(dbus::SignalReceiver::new(plan)?)
        }
        System::RawUnix => Box::new(stream::DirectReceiver::new(plan, index)?),
        System::Relay | System::RelayPlain => Box::new(stream::RelayReceiver::new(plan)?),
        System::Nats => Box::new(nats::Subscriber::new(plan)?),
        System::UdpMulticast => Box::new(udp::Receiver::new(plan)?),
        System::Zeromq => Box::new(zeromq::Subscriber::new(plan)?),
        System::SharedMemory | System::SharedMemoryBroker => {
            Box::new(memory::Looker::new(plan, index)?)
        }
        System::Turns => Box::new(turns::End::receiver(plan, index)?),
    })
}

/// Connects; `call` may need the address that [`Responder::address`] gave, so it is made in two
/// steps.
pub(crate) type MakeCaller = Box<dyn FnOnce(&Go) -> io::Result<Box<dyn Caller>>>;

pub(crate) fn caller(plan: &Plan) -> io::Result<MakeCaller> {
    Ok(match plan.system {
        System::Unisono | System::UnisonoRing => {
            let connected = unisono::DirectCaller::connect(plan)?;
            Box::new(move |go| Ok(Box::new(connected.to(first(go)?)?)))
        }
        System::DbusDaemon | System::DbusBroker | System::Busd => {
            let (connection, size) = (dbus::Connection::open(plan)?, plan.size);
            Box::new(move |go| {
                let caller = dbus::MethodCaller::new(connection, first(go)?, size);
                Ok(Box::new(caller))
            })
        }
        System::RawUnix | System::Relay | System::RelayPlain => {
            let caller = stream::StreamCaller::new(plan)?;
            Box::new(move |_| Ok(Box::new(caller)))
        }
        System::Nats => {
            let caller = nats::NatsCaller::new(plan)?;
            Box::new(move |_| Ok(Box::new(caller)))
        }
        System::Zeromq => {
            let caller = zeromq::End::caller(plan)?;
            Box::new(move |_| Ok(Box::new(caller)))
        }
        System::Turns => {
            let caller = turns::End::sender(plan)?;
            Box::new(move |_| Ok(Box::new(caller)))
        }
        System::UdpMulticast | System::SharedMemory | System::SharedMemoryBroker => {
            return Err(unsupported(plan));
        }
    })
}

pub(crate) fn responder(plan: &Plan) -> io::Result<Box<dyn Responder>> {
    Ok(match plan.system {
        System::Unisono | System::UnisonoRing => Box::new(unisono::DirectResponder::new(plan)?),
        System::DbusDaemon | System::DbusBroker | System::Busd => {
            Box::new(dbus::MethodResponder::new(plan)?)
        }
        System::RawUnix | System::Relay | System::RelayPlain => {
            Box::new(stream::StreamResponder::new(plan)?)
        }
        System::Nats => Box::new(nats::NatsResponder::new(plan)?),
        System::Zeromq => Box::new(zeromq::End::responder(plan)?),
        System::Turns => Box::new(turns::End::receiver(plan, 0)?),
        System::UdpMulticast | System::SharedMemory | System::SharedMemoryBroker => {
            return Err(unsupported(plan));
        }
    })
}

/// Connects and is greeted; the connection lives as long as the value.
pub(crate) fn connect(plan: &Plan) -> io::Result<Box<dyn Any>> {
    Ok(match plan.system {
        System::Unisono | System::UnisonoRing => Box::new(unisono::connect(plan)?),
        System::DbusDaemon | System::DbusBroker | System::Busd => {
            Box::new(dbus::Connection::open(plan)?)
        }
        System::Nats => Box::new(nats::connect(plan)?),
        System::RawUnix
        | System::Relay
        | System::RelayPlain
        | System::UdpMulticast
        | System::SharedMemory
        | System::SharedMemoryBroker
        | System::Turns
        | System::Zeromq => {
            return Err(unsupported(plan));
        }
    })
}

/// The fan-out sender of `fair`: each send waits until it has its place.
pub(crate) fn waiting_sender(plan: &Plan) -> io::Result<Box<dyn Sender>> {
    match plan.system {
        System::Unisono | System::UnisonoRing => Ok(Box::new(unisono::WaitingSender::new(plan)?)),
        _ => Err(unsupported(plan)),
    }
}

/// A small sender of `fair`, which writes to these receivers in turn.
pub(crate) fn small_sender(plan: &Plan, receivers: &[usize]) -> io::Result<Box<dyn Sender>> {
    match plan.system {
        System::Unisono | System::UnisonoRing => {
            Ok(Box::new(unisono::SmallSender::new(plan, receivers)?))
        }
        _ => Err(unsupported(plan)),
    }
}

fn first(go: &Go) -> io::Result<&str> {
    let first = go.receivers.first().map(String::as_str);
    first.ok_or_else(|| io::Error::other("no address of the other end was told"))
}

fn unsupported(plan: &Plan) -> io::Error {
    io::Error::other(format!("{} has no {}", plan.system.name(), plan.workload.name()))
}

/// Bytes that were read and not yet taken.
///
/// Invariant: `start <= end <= bytes.len()`, and what is between them is in the order of the
/// stream.
#[derive(Debug)]
pub(crate) struct Inbound {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbound {
    /// Room for two messages of `most` bytes, and for many small ones.
    pub(crate) fn new(most: usize) -> Self {
        Self { bytes: vec![0; (2 * most).max(256 << 10)], start: 0, end: 0 }
    }

    /// Room for what a relay's client or the relay itself is to take with one read.
    pub(crate) fn of_relay(plan: &Plan) -> Self {
        match plan.system {
            System::RelayPlain => Self { bytes: vec![0; plan.size], start: 0, end: 0 },
            _ => Self::new(plan.size),
        }
    }

    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.end - self.start);
        self.start += bytes;
    }

    /// One read. The end of the stream is an error: no run ends that way.
    pub(crate) fn fill(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() {
            return Err(io::Error::other("a message is larger than it can be"));
        }
        loop {
            match from.read(&mut self.bytes[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.end += n;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Connects to a Unix socket that may not be there yet.
fn connect_socket(path: &std::path::Path) -> io::Result<std::os::unix::net::UnixStream> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if std::time::Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(2)),
        }
    }
}

/// How long another process of the run may take to listen.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
