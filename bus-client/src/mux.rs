//! N handles over M byte streams to one destination: messages instead of bytes, shared by threads.
//!
//! What KCM does in the kernel, in user space. Streams (connected Unix or TCP sockets) are
//! *attached*, each with a [`Framer`] that tells where its messages end.
//! *Handles* send and receive whole messages: a message sent goes on one stream in one piece, and a
//! message that arrives goes whole to one handle. All handles are alike, and each has a descriptor
//! of its own to poll.
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use bus_client::mux::{Attach, Flavour, Multiplexor};
//! use bus_core::framing::{Endianness, LengthPrefix, Width};
//!
//! let framer = LengthPrefix::new(0, Width::One, Endianness::Big, 1)?;
//! let (ours, theirs) = UnixStream::pair()?;
//! let mux = Multiplexor::new(Flavour::Datagram)?;
//! let stream = mux.attach(ours, framer, Attach::new())?;
//! let (first, second) = (mux.handle()?, mux.handle()?);
//!
//! // The peer is a multiplexor here as well; it could be any program.
//! let peer = Multiplexor::new(Flavour::Datagram)?;
//! let _theirs = peer.attach(theirs, framer, Attach::new())?;
//! let peer = peer.handle()?;
//!
//! peer.send(b"\x02hi")?;
//! assert_eq!(first.receive()?, b"\x02hi"[..]);
//! peer.send(b"\x02ho")?;
//! assert_eq!(second.receive()?, b"\x02ho"[..], "the next one goes to the next handle");
//! let detached = stream.unattach();
//! assert!(detached.error.is_none() && detached.unread.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Receiving
//!
//! What one readiness of one stream brings (one read, of up to 64 KiB) goes to the handle that has
//! asked for the longest time; that one gets nothing more until it has taken it all and asks again,
//! and the next readiness goes to the next handle. So messages that come together are worked on
//! together, and a handle whose thread is busy is passed over. ([`Steering::Reader`] lets the thread that
//! reads keep what it has read.) Messages of one stream reach one handle
//! in their order; between handles there is none.
//!
//! Streams are read only while a handle asks. Otherwise what comes stays in the sockets, and their
//! senders wait: that is the flow control. So what is held in memory is bounded by one read for each
//! handle and stream, and one message under way for each stream.
//!
//! [`Handle::disable_receive`] is for a thread that will be busy for a while: what it has not taken
//! goes to the others.
//!
//! # Sending
//!
//! A handle stays on one stream while there is room there; then it moves to the one with the least
//! load. Several messages go together, on one stream and with one system call, by
//! [`Handle::send_many`], by [`Handle::send_more`] ("more is to come") and as a *super message*: one
//! [`Handle::send`] of several messages' bytes. The multiplexor does not look into what it sends.
//!
//! # When a stream breaks
//!
//! The other streams go on. The owner of the broken one sees it on
//! [`Stream::broken_event`], takes it back with [`Stream::unattach`], with the bytes that were read
//! and not delivered, and attaches a new one if it likes.
//!
//! A message that was written in part when its stream died is sent again, whole, on another stream,
//! as in the kernel: the peer cannot have had all of it. (A super message is one message here, so its
//! first parts may come twice; use `send_many` where that matters.) If there is no other stream, a
//! send that waits ends with [`SendError::Broken`] (`EPIPE`); one that did not wait has been
//! accepted, and goes on the next stream that is attached. What was written whole may have been
//! lost with the stream, as with any socket. A batch stays on its stream to the end, and so ends with
//! `Broken`.
//!
//! # Threads
//!
//! Handles and the multiplexor can be used from any thread. The library starts none: of the threads
//! that wait in any call one watches all streams and does the work for all, and who polls
//! descriptors does it in [`Handle::dispatch`] or any other call. What a socket did not take at once
//! goes on the wire, and a time-out is noticed, only while somebody waits, polls or calls; and that a
//! stream has ended is noticed when it is read, so while a handle asks, or when it is written.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bus_core::framing::Framer;
use bytes::Bytes;

mod handle;
mod hub;
mod incoming;
mod outgoing;
mod readiness;
mod shared;
mod stream;
mod workers;

pub use handle::{Handle, Received};
pub use stream::{Detached, Stream, StreamCounters, StreamError};
pub use workers::{Worker, Workers};

use hub::Work;
use shared::Shared;

/// Streams to one destination, and the handles that share them. Cheap to clone.
///
/// It lives while it, a handle or an attached stream's [`Stream`] does.
#[derive(Clone, Debug)]
pub struct Multiplexor {
    shared: Arc<Shared>,
}

/// What kind of socket a handle is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// One call, one message; a message longer than the buffer of a short read is cut, and the
    /// read says so.
    #[default]
    Datagram,
    /// A message may be sent and read in pieces; a short read leaves the rest for the next.
    SeqPacket,
}

/// Which of the handles that ask gets what one readiness has brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Steering {
    /// The one that has asked for the longest time, as in the kernel: the load is spread evenly, and
    /// each batch may have to wake another thread.
    #[default]
    Rotate,
    /// That of the thread that has read it, if it asks: a thread that is awake stays so and wakes
    /// nobody, and the others get what it cannot manage. For short work.
    Reader,
}

/// Settings of a multiplexor.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Options {
    /// What its handles are like.
    pub flavour: Flavour,
    /// Who gets what comes.
    pub steering: Steering,
    /// Bytes of the longest message that may be sent, and of what one call may send together.
    pub send_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        let (flavour, steering) = (Flavour::default(), Steering::default());
        Self { flavour, steering, send_bytes: 16 << 20 }
    }
}

/// How a stream is attached.
#[derive(Debug, Default)]
pub struct Attach {
    maximum: Option<NonZeroUsize>,
    timeout: Option<Option<Duration>>,
    unread: Vec<u8>,
}

impl Attach {
    /// As the socket says: messages of at most `SO_RCVBUF` bytes, complete within `SO_RCVTIMEO`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of the longest message that is received. A longer one breaks the stream (`EMSGSIZE`).
    #[must_use]
    pub fn maximum(mut self, bytes: NonZeroUsize) -> Self {
        self.maximum = Some(bytes);
        self
    }

    /// How long a message may take from its first byte to its last, `None` for ever. A later one
    /// breaks the stream (`ETIMEDOUT`). The peer is not blamed for what lies in the socket because
    /// no handle asks, nor for having to wait for room there.
    #[must_use]
    pub fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Bytes that have been read from the stream already, [`Detached::unread`] for example.
    #[must_use]
    pub fn unread(mut self, unread: Vec<u8>) -> Self {
        self.unread = unread;
        self
    }
}

impl Multiplexor {
    /// A multiplexor without streams and handles.
    ///
    /// # Errors
    ///
    /// The system has no descriptors left.
    pub fn new(flavour: Flavour) -> io::Result<Self> {
        Self::with(Options { flavour, ..Options::default() })
    }

    /// The same with all settings.
    ///
    /// # Errors
    ///
    /// The system has no descriptors left.
    pub fn with(options: Options) -> io::Result<Self> {
        Ok(Self { shared: Arc::new(Shared::new(options)?) })
    }

    /// Makes a handle. It is the next in turn after those that ask already.
    ///
    /// # Errors
    ///
    /// There are [`MAX_HANDLES`], or the system has no descriptors left.
    pub fn handle(&self) -> Result<Handle, HandleError> {
        Handle::new(&self.shared)
    }

    /// Attaches a connected stream socket: a `TcpStream`, a `UnixStream` or any other.
    ///
    /// Its flags are left as they are. From here on only the multiplexor may read and write it.
    ///
    /// # Errors
    ///
    /// See [`AttachError`]; the stream is closed then.
    pub fn attach(
        &self,
        socket: impl Into<OwnedFd>,
        framer: impl Framer + 'static,
        attach: Attach,
    ) -> Result<Stream, AttachError> {
        self.shared.attach(socket.into(), Arc::new(framer), attach)
    }

    /// Does what is ready now for all handles: reads, writes, time-outs. Never blocks. For a main
    /// loop that has no handle.
    pub fn dispatch(&self) {
        self.shared.dispatch(None);
    }

    /// Ends all waiting, now and later: receivers get what is there, and then
    /// [`ReceiveError::Closed`]; senders that would wait, [`SendError::Closed`].
    pub fn close(&self) {
        self.shared.hub.close();
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }
}

/// Numbers of a multiplexor, each right at some moment of the call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Handles there are.
    pub handles: usize,
    /// Streams that are attached, broken ones included.
    pub streams: usize,
    /// Streams ever attached.
    pub attached: u64,
    /// Streams unattached.
    pub unattached: u64,
    /// Streams that broke.
    pub broken: u64,
    /// Those of them that broke with `EMSGSIZE`.
    pub too_long: u64,
    /// Those of them that broke with `ETIMEDOUT`.
    pub timed_out: u64,
    /// Messages that no handle asks for, held now.
    pub held_messages: usize,
    /// Messages that were taken from a handle that was disabled or dropped.
    pub moved_messages: u64,
    /// Times that messages of a dead stream were begun anew on another.
    pub resent: u64,
    /// Times that a handle went from one stream to another.
    pub changed_stream: u64,
    /// What went through all streams, past ones included.
    pub streams_together: StreamCounters,
}

/// A message that was received, whole. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Message(Bytes);

impl Message {
    /// Its bytes, copied if they are shared.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        self.0.into()
    }

    fn after(&self, at: usize) -> Self {
        Self(self.0.slice(at..))
    }
}

impl Deref for Message {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq<[u8]> for Message {
    fn eq(&self, other: &[u8]) -> bool {
        *self.0 == *other
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Message {
    /// Says how long it is: payloads do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a message of {} bytes", self.0.len())
    }
}

/// Why a stream was not attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Its socket has messages of its own, or is no socket.
    #[error("the descriptor is no stream socket")]
    NotAStream,
    /// Unattach another one first.
    #[error("the multiplexor has {MAX_STREAMS} streams already")]
    TooMany,
    /// The system refused.
    #[error("cannot {action} the stream: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

/// Why there is no further handle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandleError {
    /// Drop another one first.
    #[error("the multiplexor has {MAX_HANDLES} handles already")]
    TooMany,
    /// The system has no descriptors left.
    #[error("cannot make a descriptor for a handle: {0}")]
    System(#[from] io::Error),
}

/// Why nothing was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// Nothing is there now; poll the handle's descriptor, or wait.
    #[error("there is nothing to receive now")]
    WouldBlock,
    /// Nothing came before the deadline.
    #[error("nothing came in time")]
    TimedOut,
    /// [`Multiplexor::close`] was called, and everything has been taken.
    #[error("the multiplexor is closed")]
    Closed,
}

/// Why a message was not sent. No part of it goes on any stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// No stream has room now; the handle's descriptor becomes readable when one may have.
    #[error("no stream has room now")]
    WouldBlock,
    /// No stream had room before the deadline.
    #[error("no stream had room in time")]
    TimedOut,
    /// `EPIPE`: no stream is attached and alive, or the one of this batch has died. Of a batch, and
    /// of several messages of one call, some may have arrived.
    #[error("the stream is broken, and there is no other")]
    Broken,
    /// A message has at least one byte.
    #[error("the message is empty")]
    Empty,
    /// The message, or all that is to go together, is too long; nothing of it is sent.
    #[error("{given} bytes to be sent together, and the most is {limit}")]
    TooLarge {
        /// Its bytes.
        given: usize,
        /// See [`Options::send_bytes`].
        limit: usize,
    },
    /// Only handles of [`Flavour::SeqPacket`] send in pieces.
    #[error("a datagram handle sends whole messages only")]
    WholeOnly,
    /// [`Multiplexor::close`] was called.
    #[error("the multiplexor is closed")]
    Closed,
}

/// Handles of one multiplexor.
pub const MAX_HANDLES: usize = 1024;
/// Streams of one multiplexor.
pub const MAX_STREAMS: usize = 1024;
