//! One attached stream: its two halves, its state, its counters, and the owner's hold on it.
//!
//! Invariant: a stream breaks once, with one error, and is then neither read nor written. Its
//! socket lives in three places: the two halves, each used only under its lock, and the owner's
//! [`Stream`]. To unattach is to take it out of both halves; so when the owner has it back nobody
//! else does, and no bytes are lost on the way.
//!
//! The event that a stream has broken is the hang-up of a pipe: the multiplexor closes the reading
//! end, and the owner's writing end shows `POLLERR`, asked for or not, for as long as it is polled.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bus_core::framing::{FrameError, Framer};
use parking_lot::Mutex;

use super::incoming::Incoming;
use super::outgoing::Outgoing;
use super::shared::Shared;

/// Why a stream is used no more.
///
/// Unattach it, and close it or mend what it says: it is not in step with its messages any more,
/// except after [`Closed`](Self::Closed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The peer has ended it, between two messages.
    #[error("the peer has ended the stream")]
    Closed,
    /// The peer has ended it in the middle of a message. The beginning can be had back.
    #[error("the peer has ended the stream within a message")]
    Cut,
    /// No message can be found in it any more.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The system refused to read or write it.
    #[error("the stream failed: {}", std::io::Error::from_raw_os_error(*errno))]
    System {
        /// The error number.
        errno: i32,
    },
}

impl StreamError {
    /// The error number that the kernel would post on the socket.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Closed | Self::Cut => EPIPE,
            Self::Frame(error) => error.errno(),
            Self::System { errno } => *errno,
        }
    }
}

/// What went through a stream, or through all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamCounters {
    /// Messages that came whole.
    pub received_messages: u64,
    /// Bytes that were read.
    pub received_bytes: u64,
    /// Reads that brought something: what one brought went to one handle.
    pub readinesses: u64,
    /// Messages that were written whole.
    pub sent_messages: u64,
    /// Bytes that were written.
    pub sent_bytes: u64,
    /// Times that its socket took no more.
    pub full: u64,
}

/// The owner's hold on an attached stream.
///
/// As a descriptor ([`AsFd`]) it is the socket itself, for statistics (`TCP_INFO`, say); do not read
/// or write it. Dropping this leaves the stream attached until it breaks or the multiplexor goes.
#[derive(Debug)]
#[must_use = "without it the stream can be neither unattached nor watched"]
pub struct Stream {
    pub(super) core: Arc<StreamCore>,
    pub(super) socket: Arc<OwnedFd>,
    pub(super) alarm: OwnedFd,
    pub(super) shared: Arc<Shared>,
}

/// A stream that is its owner's again.
#[derive(Debug)]
#[non_exhaustive]
pub struct Detached {
    /// The socket, as it was attached.
    pub socket: OwnedFd,
    /// Bytes that were read and not delivered: the beginning of a message, or what broke the
    /// stream.
    pub unread: Vec<u8>,
    /// The rest of a message that is half written. Write it before anything else if the stream is
    /// to be used on; empty if the stream is broken.
    pub unsent: Vec<u8>,
    /// Why it was broken, if it was.
    pub error: Option<StreamError>,
    /// What went through it.
    pub counters: StreamCounters,
}

impl Stream {
    /// Becomes `POLLERR` when the stream breaks: poll it for no event at all, or put it into an
    /// epoll set with none. It stays so.
    #[must_use]
    pub fn broken_event(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }

    /// Why the stream is broken, if it is.
    #[must_use]
    pub fn error(&self) -> Option<StreamError> {
        self.core.error()
    }

    /// What went through it so far.
    #[must_use]
    pub fn counters(&self) -> StreamCounters {
        self.core.counters.get()
    }

    /// Takes the stream back from the multiplexor, whole or broken. Does not block, but for calls
    /// on it that are under way and do not block either.
    ///
    /// A send that waits for the rest of its message here ends with
    /// [`SendError::Broken`](super::SendError::Broken).
    #[must_use]
    pub fn unattach(self) -> Detached {
        let Self { core, socket, alarm: _, shared } = self;
        shared.unattach(&core, socket)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A stream, as the multiplexor knows it.
#[derive(Debug)]
pub(super) struct StreamCore {
    pub(super) key: usize,
    pub(super) framer: Arc<dyn Framer>,
    pub(super) timed: bool,
    pub(super) incoming: Mutex<Incoming>,
    pub(super) outgoing: Mutex<Outgoing>,
    pub(super) counters: Counters,
    /// Handles that stay on it.
    pub(super) stayers: AtomicUsize,
    /// Its socket took no more when it was written to last.
    pub(super) full: AtomicBool,
    alive: AtomicBool,
    end: Mutex<End>,
}

#[derive(Debug)]
struct End {
    error: Option<StreamError>,
    /// The reading end of the owner's pipe; closed when the stream breaks.
    alarm: Option<OwnedFd>,
}

impl StreamCore {
    pub(super) fn new(
        key: usize,
        framer: Arc<dyn Framer>,
        timed: bool,
        incoming: Incoming,
        outgoing: Outgoing,
        alarm: OwnedFd,
    ) -> Self {
        Self {
            key,
            framer,
            timed,
            incoming: Mutex::new(incoming),
            outgoing: Mutex::new(outgoing),
            counters: Counters::default(),
            stayers: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            alive: AtomicBool::new(true),
            end: Mutex::new(End { error: None, alarm: Some(alarm) }),
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    pub(super) fn error(&self) -> Option<StreamError> {
        self.end.lock().error
    }

    /// It is used no more. With an error: it breaks; false if it is broken or unattached already.
    pub(super) fn end(&self, error: Option<StreamError>) -> bool {
        let mut end = self.end.lock();
        if !self.alive.swap(false, Ordering::AcqRel) {
            return false;
        }
        end.error = error;
        end.alarm = None;
        true
    }
}

/// Counters that many threads count in.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) received_messages: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) readinesses: AtomicU64,
    pub(super) sent_messages: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) full: AtomicU64,
}

impl Counters {
    pub(super) fn get(&self) -> StreamCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StreamCounters {
            received_messages: get(&self.received_messages),
            received_bytes: get(&self.received_bytes),
            readinesses: get(&self.readinesses),
            sent_messages: get(&self.sent_messages),
            sent_bytes: get(&self.sent_bytes),
            full: get(&self.full),
        }
    }
}

impl std::ops::AddAssign for StreamCounters {
    fn add_assign(&mut self, other: Self) {
        self.received_messages += other.received_messages;
        self.received_bytes += other.received_bytes;
        self.readinesses += other.readinesses;
        self.sent_messages += other.sent_messages;
        self.sent_bytes += other.sent_bytes;
        self.full += other.full;
    }
}

/// Adds to one of them.
pub(super) fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

const EPIPE: i32 = 32;
