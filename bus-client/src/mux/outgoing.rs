//! Messages on their way into one stream.
//!
//! Invariant: the bytes of a message follow each other on its stream. What the socket did not take
//! is kept here, whole from the start of the message that was cut, and nothing else is written to
//! the stream before the rest of it. So at most one call's messages wait in each stream; and when the
//! stream dies, the cut message and those behind it can be sent whole on another: its peer cannot
//! have had the whole of it.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

/// Messages that one call hands over, to go on one stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parcel<'a> {
    /// The bytes.
    pub(super) slices: &'a [&'a [u8]],
    /// Where in them each message ends, in rising order; the last is the end of them all.
    pub(super) ends: &'a [usize],
    /// How many of the bytes have gone on streams that have died since: whole messages.
    pub(super) from: usize,
}

impl Parcel<'_> {
    pub(super) fn total(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The beginning of the message that holds the byte at `at`.
    fn start_of(&self, at: usize) -> usize {
        let before = self.ends.partition_point(|&end| end <= at);
        before.checked_sub(1).map_or(0, |index| self.ends[index])
    }

    /// Messages that end after `from` and not after `to`.
    pub(super) fn messages(&self, from: usize, to: usize) -> usize {
        let until = |at| self.ends.partition_point(|&end| end <= at);
        until(to) - until(from)
    }

    fn write(&self, socket: impl AsFd, at: usize) -> Result<usize, Errno> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let (mut count, mut skip) = (0, at);
        for slice in self.slices {
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            let Some(place) = slices.get_mut(count) else { break };
            *place = IoSlice::new(&slice[skip..]);
            (count, skip) = (count + 1, 0);
        }
        write(socket, &slices[..count])
    }

    /// What is to be kept when the socket took the bytes before `at` and no more.
    pub(super) fn cut_at(&self, at: usize, ticket: Option<Arc<Ticket>>) -> Cut {
        let start = self.start_of(at);
        let mut bytes = Vec::with_capacity(self.total() - start);
        let mut skip = start;
        for slice in self.slices {
            let from = skip.min(slice.len());
            bytes.extend_from_slice(&slice[from..]);
            skip -= from;
        }
        let ends = self.ends.iter().filter(|&&end| end > start).map(|end| end - start).collect();
        Cut { bytes: bytes.into(), ends, written: at - start, ticket }
    }
}

/// The sending half of a stream.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// None once the stream is unattached.
    pub(super) socket: Option<Arc<OwnedFd>>,
    pub(super) cut: Option<Cut>,
    /// Somebody is told when there is room.
    pub(super) watched: bool,
}

/// Messages of which the first is written in part.
#[derive(Debug)]
pub(super) struct Cut {
    bytes: Bytes,
    ends: Vec<usize>,
    written: usize,
    ticket: Option<Arc<Ticket>>,
}

/// How a sender that waits learns what came of its messages.
#[derive(Debug, Default)]
pub(super) struct Ticket(AtomicU8);

/// What came of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    UnderWay,
    Gone,
    Lost,
}

impl Ticket {
    pub(super) fn fate(&self) -> Fate {
        match self.0.load(Ordering::Acquire) {
            0 => Fate::UnderWay,
            1 => Fate::Gone,
            _ => Fate::Lost,
        }
    }
}

impl Cut {
    /// Whether somebody waits for it who can be told that it is lost.
    pub(super) fn is_waited_for(&self) -> bool {
        // The sender holds one of two references; it gives it up when it waits no more.
        self.ticket.as_ref().is_some_and(|ticket| Arc::strong_count(ticket) > 1)
    }

    pub(super) fn lose(self) {
        if let Some(ticket) = self.ticket {
            ticket.0.store(2, Ordering::Release);
        }
    }

    /// From the beginning of the message that was cut, to be sent elsewhere.
    pub(super) fn rewound(mut self) -> Self {
        let whole = self.ends.partition_point(|&end| end <= self.written);
        if let Some(start) = whole.checked_sub(1).map(|last| self.ends[last]) {
            self.bytes = self.bytes.slice(start..);
            self.ends.drain(..whole);
            self.ends.iter_mut().for_each(|end| *end -= start);
        }
        self.written = 0;
        self
    }

    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// Messages that are not written whole.
    pub(super) fn messages(&self) -> usize {
        self.ends.len() - self.ends.partition_point(|&end| end <= self.written)
    }

    /// Writes what the socket takes. True once all is written.
    pub(super) fn go_on(&mut self, socket: impl AsFd) -> Result<bool, Errno> {
        while self.written < self.bytes.len() {
            match write(socket.as_fd(), &[IoSlice::new(&self.bytes[self.written..])]) {
                Ok(count) => self.written += count,
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        if let Some(ticket) = &self.ticket {
            ticket.0.store(1, Ordering::Release);
        }
        Ok(true)
    }
}

/// How far a write came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// Where in the parcel the socket stopped.
    pub(super) at: usize,
    /// Why, if not at its end.
    pub(super) error: Option<Errno>,
}

impl Outgoing {
    pub(super) const fn new(socket: Arc<OwnedFd>) -> Self {
        Self { socket: Some(socket), cut: None, watched: false }
    }
}

/// Writes a parcel as far as the socket takes it.
pub(super) fn write_parcel(parcel: &Parcel<'_>, socket: impl AsFd) -> Written {
    let mut at = parcel.from;
    while at < parcel.total() {
        match parcel.write(socket.as_fd(), at) {
            Ok(count) => at += count,
            Err(error) => return Written { at, error: Some(error) },
        }
    }
    Written { at, error: None }
}

fn write(socket: impl AsFd, slices: &[IoSlice<'_>]) -> Result<usize, Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    retry_on_intr(|| {
        let mut control = SendAncillaryBuffer::default();
        sendmsg(&socket, slices, &mut control, flags)
    })
}

/// Slices of one write.
const MAX_SLICES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_parcel_keeps_the_cut_message_whole_and_those_behind_it() {
        let slices: [&[u8]; 3] = [b"one", b"two", b"three"];
        let parcel = Parcel { slices: &slices, ends: &[3, 6, 11], from: 0 };
        let rows = [
            (0, "onetwothree", 0, 3),
            (2, "onetwothree", 2, 3),
            (3, "twothree", 0, 2),
            (5, "twothree", 2, 2),
            (10, "three", 4, 1),
        ];
        for (at, bytes, written, messages) in rows {
            let cut = parcel.cut_at(at, None);
            assert_eq!((&cut.bytes[..], cut.written), (bytes.as_bytes(), written), "cut at {at}");
            assert_eq!(cut.messages(), messages, "cut at {at}");
            assert_eq!(cut.rewound().rest(), bytes.as_bytes());
        }
    }

    #[test]
    fn what_was_written_whole_is_not_sent_again() {
        let slices: [&[u8]; 1] = [b"onetwothree"];
        let mut cut = Parcel { slices: &slices, ends: &[3, 6, 11], from: 0 }.cut_at(1, None);
        cut.written = 7;
        let rewound = cut.rewound();
        assert_eq!((rewound.rest(), &rewound.ends[..]), (&b"three"[..], &[5][..]));
    }
}
