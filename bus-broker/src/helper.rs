//! The helper of the program `bus-broker`: a process of its own that does what the broker gives up
//! the right to do when it enters its sandbox, namely to start services and to look at the processes
//! of clients.
//!
//! It is this program again, started before the sandbox closes, and hears of nothing but what the
//! broker asks. The two speak over a pair of sockets that keep messages apart; a message is a small
//! TOML document. A broker that was taken over can have the helper start what service files name: an
//! order has a service's name, and the helper reads the file itself. It cannot name a command.
//!
//! Invariants:
//! - The helper ends with the broker: it reads the end of the socket.
//! - What it starts are its own children, and it waits for each of those by its descriptor. So the
//!   broker has no children but the helper, takes no SIGCHLD, and a broker that is embedded in another
//!   program, which has no helper, takes nobody's.
//! - Nothing that a client does makes it wait: at a process with file systems of its own it looks in a
//!   thread of which there is a bounded number. And nobody waits for an answer longer than
//!   [`LOOK_TAKES`], whatever is wrong with the helper itself ([`HelperLink::expire`]).

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use crate::{
    broker::{Origin, Peer, Shared},
    log_limit::LogEvent,
    policy::{ProcessIdentity, process::peer_process},
    service::{ServiceFile, Starter},
};
use words::{Order, Report};

pub use process::run_helper;

mod process;
mod words;

/// A helper that runs, and what it was asked and has not answered.
#[derive(Debug)]
pub struct Helper {
    socket: OwnedFd,
    child: Option<Child>,
}

/// What a broker has of its helper.
#[derive(Debug)]
pub(crate) struct HelperLink {
    socket: OwnedFd,
    /// By their numbers, which rise as their times do.
    looks: Mutex<BTreeMap<u64, (Instant, Parked)>>,
    parked: AtomicUsize,
    last_look: AtomicU64,
}

/// Somebody who has come in, and whose process is being looked at.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) socket: OwnedFd,
    pub(crate) peer: Box<Peer>,
    pub(crate) place: crate::broker::ConnectionPlace,
}

impl Helper {
    /// Starts one: this very program, with the argument that makes it the helper. It is given
    /// nothing else but the standard error, for the errors of what it starts.
    ///
    /// # Errors
    ///
    /// The system gives no sockets or no process.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let child = Command::new("/proc/self/exe")
            .arg(HELPER_ARGUMENT)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { socket: ours, child: Some(child) })
    }

    pub(crate) fn into_link(mut self) -> (Arc<HelperLink>, Option<Child>) {
        let link = HelperLink {
            socket: self.socket,
            looks: Mutex::default(),
            parked: AtomicUsize::new(0),
            last_look: AtomicU64::new(0),
        };
        (Arc::new(link), self.child.take())
    }
}

impl HelperLink {
    /// Tells the helper which services there are, and what they get to know of the bus.
    pub(crate) fn introduce(&self, shared: &Shared) {
        let address = shared.address.as_ref().map(|path| path.display().to_string());
        let directories = shared.config.service_directories();
        let commands = shared.config.commands;
        self.say(&Order::Introduce { address, directories, commands })
            .unwrap_or_else(|error| tracing::warn!(%error, "the helper cannot be told"));
    }

    /// Has a client's process looked at; it goes on once that is done. Given back if that cannot
    /// be.
    pub(crate) fn look_at(&self, pid: u32, parked: Parked) -> Result<(), Parked> {
        let Some(process) = peer_process(&parked.socket) else { return Err(parked) };
        let look = self.last_look.fetch_add(1, Ordering::Relaxed) + 1;
        self.looks().insert(look, (Instant::now() + 2 * LOOK_TAKES, parked));
        self.parked.fetch_add(1, Ordering::Relaxed);
        match words::send(&self.socket, &Order::Look { look, pid }, Some(process.as_fd())) {
            Ok(()) => Ok(()),
            Err(_) => self.unpark(look).map_or(Ok(()), Err),
        }
    }

    /// Lets those in whose look has taken too long, as unknown, and says when the next one has. The
    /// thread that accepts calls it before it sleeps.
    pub(crate) fn expire(&self, now: Instant, shared: &Shared) -> Option<Instant> {
        if self.parked.load(Ordering::Relaxed) == 0 {
            return None;
        }
        loop {
            let (look, until) = match self.looks().first_key_value() {
                Some((look, (until, _))) => (*look, *until),
                None => return None,
            };
            if until > now {
                return Some(until);
            }
            shared.log_limit.log_of_broker(LogEvent::Helper, |suppressed| {
                tracing::warn!(
                    suppressed,
                    "the helper does not answer: a client is let in unknown"
                );
            });
            self.looked(look, ProcessIdentity::default(), shared);
        }
    }

    fn unpark(&self, look: u64) -> Option<Parked> {
        let (_, parked) = self.looks().remove(&look)?;
        self.parked.fetch_sub(1, Ordering::Relaxed);
        Some(parked)
    }

    /// Takes what the helper says until it ends. Blocks.
    pub(crate) fn attend(&self, shared: &Shared) {
        let mut buffer = words::buffer();
        loop {
            match words::receive::<Report>(&self.socket, &mut buffer) {
                Ok(Some((Report::Ended { start, why }, _))) => shared.services.ended(start, &why),
                Ok(Some((Report::Looked { look, executable, sandbox }, _))) => {
                    let sandbox = sandbox.into();
                    self.looked(look, ProcessIdentity { executable, sandbox }, shared);
                }
                Ok(None) => break,
                Err(error) => shared.log_limit.log_of_broker(LogEvent::Helper, |suppressed| {
                    tracing::error!(%error, suppressed, "the helper cannot be understood");
                }),
            }
        }
        let looks: Vec<u64> = self.looks().keys().copied().collect();
        for look in looks {
            self.looked(look, ProcessIdentity::default(), shared);
        }
        shared.services.starter_ended();
        if !shared.is_stopping() {
            tracing::error!("the helper has ended: no service is started any more");
        }
    }

    fn looked(&self, look: u64, process: ProcessIdentity, shared: &Shared) {
        let Some(Parked { socket, mut peer, place }) = self.unpark(look) else { return };
        peer.subject.executable = process.executable;
        peer.subject.sandbox = process.sandbox;
        // The only other answer is that the broker ends, and then it is closed.
        let _ = shared.assign(socket, Origin::Client(peer), place);
    }

    fn say(&self, order: &Order) -> io::Result<()> {
        words::send(&self.socket, order, None)
    }

    fn looks(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, (Instant, Parked)>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Starter for HelperLink {
    fn start(&self, start: u64, service: &ServiceFile) -> io::Result<()> {
        self.say(&Order::Start { start, name: service.name.clone() })
    }

    fn arrived(&self, start: u64) {
        // If it cannot be told, it reports a time-out of a start that nobody waits for.
        let _ = self.say(&Order::Arrived { start });
    }
}

impl Drop for HelperLink {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

/// What makes the program `bus-broker` its own helper.
pub const HELPER_ARGUMENT: &str = "--helper";
/// How long a look at a process may take; what it has not told by then is not known.
const LOOK_TAKES: Duration = Duration::from_secs(2);
/// Flags of every message: nobody is signalled, and nobody waits.
const SEND: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);
