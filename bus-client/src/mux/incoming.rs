//! The bytes that a stream has brought, cut into messages.
//!
//! Invariant: what is here is the beginning of one message, or nothing: whole messages leave with
//! the read that completes them. A message that is longer than the buffer gets memory of its own
//! length as soon as that is known, is read right into it, and is handed over in it.
//!
//! A message is late only if the socket holds no more of it: nobody is blamed for what lies there
//! unread. And where so much lay there that its sender may have had to wait for us, the time since
//! we last saw the socket empty does not count.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus_core::framing::{Assembly, FrameError, Framer, Unread};
use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, recv};

use super::{Message, StreamError};

/// The receiving half of a stream.
#[derive(Debug)]
pub(super) struct Incoming {
    /// None once the stream is unattached.
    pub(super) socket: Option<Arc<OwnedFd>>,
    assembly: Assembly,
    timed: bool,
    /// When the socket was last seen empty, and what was read since.
    empty_at: Instant,
    since_empty: usize,
    /// Time that is not counted, all together.
    forgiven: Duration,
    /// All of it is initialised; `start..end` is what has come and is not taken.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// A message that is longer than the buffer, as far as it has come.
    large: Option<Vec<u8>>,
}

/// What a read brought beside messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) bytes: usize,
    pub(super) end: bool,
    /// The socket held no more.
    drained: bool,
}

impl Incoming {
    pub(super) fn new(
        socket: Arc<OwnedFd>,
        maximum: NonZeroUsize,
        timeout: Option<Duration>,
        unread: Vec<u8>,
    ) -> Self {
        let end = unread.len();
        Self {
            socket: Some(socket),
            assembly: Assembly::new(maximum, timeout),
            timed: timeout.is_some(),
            empty_at: Instant::now(),
            since_empty: 0,
            forgiven: Duration::ZERO,
            buffer: unread,
            start: 0,
            end,
            large: None,
        }
    }

    /// Reads once, and appends the messages that are whole now to `batch`.
    ///
    /// # Errors
    ///
    /// The stream is broken; the messages before that are in `batch` all the same.
    pub(super) fn read(
        &mut self,
        framer: &dyn Framer,
        batch: &mut Vec<Message>,
    ) -> Result<usize, StreamError> {
        let Some(read) = self.receive()? else {
            if self.timed {
                let now = self.judge(true);
                self.assembly.expire(now)?;
            }
            return Ok(0);
        };
        if read.end {
            let cut = self.assembly.in_message();
            return Err(if cut { StreamError::Cut } else { StreamError::Closed });
        }
        self.since_empty += read.bytes;
        let now = self.judge(read.drained);
        self.cut(framer, now, batch)?;
        Ok(read.bytes)
    }

    /// Cuts what is there already into messages.
    pub(super) fn cut(
        &mut self,
        framer: &dyn Framer,
        now: Instant,
        batch: &mut Vec<Message>,
    ) -> Result<(), FrameError> {
        if let Some(large) = &self.large {
            if self.assembly.next(framer, Unread::from(&large[..]), now)?.is_some()
                && let Some(large) = self.large.take()
            {
                batch.push(Message::from(Bytes::from(large)));
            }
            return Ok(());
        }
        loop {
            let unread = &self.buffer[self.start..self.end];
            let Some(length) = self.assembly.next(framer, Unread::from(unread), now)? else {
                break;
            };
            batch.push(Message::from(Bytes::copy_from_slice(&unread[..length])));
            self.start += length;
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if let Some(length) = self.assembly.length()
            && length.get() > self.buffer.len().max(READ_BYTES)
        {
            let mut large = Vec::with_capacity(length.get());
            large.extend_from_slice(&self.buffer[self.start..self.end]);
            (self.start, self.end) = (0, 0);
            self.large = Some(large);
        }
        Ok(())
    }

    /// `None` if nothing is there.
    fn receive(&mut self) -> Result<Option<Read>, StreamError> {
        let Some(socket) = self.socket.clone() else { return Ok(None) };
        let received = if let Some(large) = &mut self.large {
            let room = large.capacity() - large.len();
            let received = retry_on_intr(|| {
                let (bytes, _) = recv(&socket, spare_capacity(large), RecvFlags::DONTWAIT)?;
                Ok(bytes)
            });
            received.map(|bytes| (bytes, room))
        } else {
            self.make_room();
            let free = &mut self.buffer[self.end..];
            let room = free.len();
            let received = retry_on_intr(|| recv(&socket, &mut *free, RecvFlags::DONTWAIT));
            received.map(|(bytes, _)| {
                self.end += bytes;
                (bytes, room)
            })
        };
        match received {
            Ok((bytes, room)) => Ok(Some(Read { bytes, end: bytes == 0, drained: bytes < room })),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(StreamError::System { errno: error.raw_os_error() }),
        }
    }

    /// Sees to it that the buffer has a place for at least one byte more: the whole of it at the
    /// beginning of a message, else what its beginning leaves, and twice as much if that is
    /// nothing. A framer that never gets enough meets the maximum first.
    fn make_room(&mut self) {
        if self.buffer.len() < READ_BYTES {
            self.buffer.resize(READ_BYTES, 0);
        }
        if self.buffer.len() - self.end < READ_BYTES / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
    }

    /// The time by which the message under way is judged.
    fn judge(&mut self, drained: bool) -> Instant {
        if !self.timed {
            return self.empty_at;
        }
        let now = Instant::now();
        if drained {
            if self.since_empty >= BACKLOG_BYTES {
                self.forgiven += now - self.empty_at;
            }
            (self.empty_at, self.since_empty) = (now, 0);
        }
        let now = self.counted(now);
        match self.assembly.deadline() {
            Some(deadline) if !drained => {
                now.min(deadline.checked_sub(Duration::from_nanos(1)).unwrap_or(now))
            }
            _ => now,
        }
    }

    fn counted(&self, now: Instant) -> Instant {
        now.checked_sub(self.forgiven).unwrap_or(now)
    }

    /// How long until the message under way is late; `None` if none is, or it has any time.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let deadline = self.assembly.deadline()?;
        Some(deadline.saturating_duration_since(self.counted(Instant::now())))
    }

    pub(super) fn take_unread(&mut self) -> Vec<u8> {
        let mut unread = self.large.take().unwrap_or_default();
        unread.extend_from_slice(&self.buffer[self.start..self.end]);
        (self.start, self.end) = (0, 0);
        unread
    }
}

/// What lies in a socket unread while its sender may be waiting for room: far less than it holds.
const BACKLOG_BYTES: usize = 16 << 10;
/// Bytes of one read, and so of one batch: a third of what a socket holds by default.
pub(super) const READ_BYTES: usize = 64 << 10;
