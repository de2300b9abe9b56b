//! What waits to be written to one connection.
//!
//! Invariants:
//! - Bytes leave in the order in which they were put in, and descriptors with the first byte of
//!   their frame.
//! - It is bounded (G8) by those who fill it: messages are taken from a queue only while
//!   [`has_room_for_messages`](Output::has_room_for_messages), so the rest stays in the queue, where
//!   it is charged; and a connection is read only while
//!   [`has_room_for_answers`](Output::has_room_for_answers), so a client that does not read its
//!   answers gets to ask nothing more. The second counts only bytes that lie here: a large payload
//!   is shared with the other recipients, and must not keep its reader from returning credit.

use std::{collections::VecDeque, io::IoSlice, mem, os::fd::OwnedFd, sync::Arc};

use bus_core::Message;
use bytes::{Buf, Bytes, BytesMut};

/// Bytes and descriptors on their way out.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// What comes before `tail`.
    sealed: VecDeque<Segment>,
    /// Where small frames are written, one after the other.
    tail: BytesMut,
    /// Bytes in `sealed`.
    sealed_bytes: usize,
    /// Those of them that belong to a message which others share.
    shared_bytes: usize,
    descriptors_lost: bool,
    /// Something in it is waited for; otherwise all of it may go out with what comes next.
    urgent: bool,
}

#[derive(Debug)]
struct Segment {
    bytes: Bytes,
    shared: bool,
    descriptors: Option<Attached>,
    /// It has no bytes: those behind it go another way.
    turn: Option<Turn>,
}

/// Which way output goes from a place in it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// By the ring.
    ToRings,
    /// By the socket.
    ToSocket,
}

/// Descriptors that leave with the first byte of a segment.
#[derive(Debug)]
struct Attached {
    carried: Carried,
    /// What is sent instead if the system takes no more descriptors.
    without: Bytes,
}

/// Whose descriptors they are.
#[derive(Debug)]
pub(crate) enum Carried {
    Message(Arc<Message>),
    Files(Arc<[OwnedFd]>),
}

/// The first piece of output, and what goes with its first byte.
#[derive(Debug)]
pub(crate) struct Front<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) descriptors: &'a [OwnedFd],
}

/// One write: as much as goes out with one system call.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    slices: [IoSlice<'a>; MAX_SLICES],
    count: usize,
    pub(crate) bytes: usize,
    pub(crate) descriptors: &'a [OwnedFd],
}

impl Output {
    /// Where to write frames that are copied.
    pub(crate) fn frames(&mut self) -> &mut BytesMut {
        self.urgent = true;
        &mut self.tail
    }

    /// Where to write frames that nobody waits for.
    pub(crate) fn unhurried_frames(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// What was put off is now waited for.
    pub(crate) fn hurry(&mut self) {
        self.urgent = !self.is_empty();
    }

    /// Whether it is to be written now, and not with what comes next.
    pub(crate) fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// Appends bytes that others hold as well.
    pub(crate) fn push_shared(&mut self, bytes: Bytes) {
        self.urgent = true;
        self.seal();
        self.sealed_bytes += bytes.len();
        self.shared_bytes += bytes.len();
        self.sealed.push_back(Segment { bytes, shared: true, descriptors: None, turn: None });
    }

    /// What is put in from here on goes another way.
    pub(crate) fn push_turn(&mut self, turn: Turn) {
        self.seal();
        let bytes = Bytes::new();
        let turn = Some(turn);
        self.sealed.push_back(Segment { bytes, shared: false, descriptors: None, turn });
    }

    /// Whether it goes another way from some place on.
    pub(crate) fn has_turn(&self) -> bool {
        self.sealed.iter().any(|segment| segment.turn.is_some())
    }

    /// Takes a turn that is next.
    pub(crate) fn take_turn(&mut self) -> Option<Turn> {
        let turn = self.sealed.front()?.turn?;
        self.sealed.pop_front();
        Some(turn)
    }

    /// The first piece up to the next turn.
    pub(crate) fn front(&self) -> Option<Front<'_>> {
        let Some(first) = self.sealed.front() else {
            let bytes = &self.tail[..];
            return (!bytes.is_empty()).then_some(Front { bytes, descriptors: &[] });
        };
        if first.turn.is_some() {
            return None;
        }
        let attached = first.descriptors.as_ref();
        let descriptors = attached.map_or(&[][..], |attached| attached.carried.descriptors());
        Some(Front { bytes: &first.bytes, descriptors })
    }

    /// Appends the head of a frame that brings the descriptors of `carried`, and what to say
    /// instead if they cannot be sent.
    pub(crate) fn push_with_descriptors(&mut self, head: Bytes, without: Bytes, carried: Carried) {
        self.urgent = true;
        self.seal();
        self.sealed_bytes += head.len();
        self.sealed.push_back(Segment {
            bytes: head,
            shared: false,
            descriptors: Some(Attached { carried, without }),
            turn: None,
        });
    }

    /// All of it, if that is one piece that brings nothing, which most output is.
    pub(crate) fn only_frames(&self) -> Option<&[u8]> {
        self.sealed.is_empty().then_some(&self.tail[..])
    }

    /// Whether another message may be taken from a queue.
    pub(crate) fn has_room_for_messages(&self) -> bool {
        self.len() < MESSAGES_BYTES
    }

    /// Whether the client may ask for more.
    pub(crate) fn has_room_for_answers(&self) -> bool {
        self.len() - self.shared_bytes < ANSWERS_BYTES
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.sealed_bytes + self.tail.len()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What to write next. A batch ends before a frame with descriptors, which begins the next one.
    pub(crate) fn batch(&self) -> Batch<'_> {
        let mut batch =
            Batch { slices: [IoSlice::new(&[]); MAX_SLICES], count: 0, bytes: 0, descriptors: &[] };
        for segment in &self.sealed {
            if segment.turn.is_some() {
                return batch;
            }
            if let Some(attached) = &segment.descriptors {
                if batch.count > 0 {
                    return batch;
                }
                batch.descriptors = attached.carried.descriptors();
            }
            if !batch.push(&segment.bytes) {
                return batch;
            }
        }
        if !self.tail.is_empty() {
            batch.push(&self.tail);
        }
        batch
    }

    /// Takes note that the first `count` bytes are out.
    pub(crate) fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let Some(first) = self.sealed.front_mut() else {
                self.tail.advance(count);
                return;
            };
            first.descriptors = None;
            let step = count.min(first.bytes.len());
            first.bytes.advance(step);
            count -= step;
            self.sealed_bytes -= step;
            if first.shared {
                self.shared_bytes -= step;
            }
            if first.bytes.is_empty() {
                self.sealed.pop_front();
            }
        }
    }

    /// Sends the next frame without its descriptors, marked so: the system takes no more of them.
    pub(crate) fn lose_descriptors(&mut self) {
        if let Some(first) = self.sealed.front_mut()
            && let Some(attached) = first.descriptors.take()
        {
            self.sealed_bytes -= first.bytes.len();
            self.sealed_bytes += attached.without.len();
            first.bytes = attached.without;
            self.descriptors_lost = true;
        }
    }

    /// Whether descriptors of a message are in it.
    pub(crate) fn holds_descriptors(&self) -> bool {
        let attached = self.sealed.iter().filter_map(|segment| segment.descriptors.as_ref());
        attached.into_iter().any(|attached| matches!(attached.carried, Carried::Message(_)))
    }

    /// Whether descriptors were lost since the last call.
    pub(crate) fn take_descriptors_lost(&mut self) -> bool {
        mem::take(&mut self.descriptors_lost)
    }

    /// Brings memory to write into, if there is none.
    pub(crate) fn lend(&mut self, spare: &mut SpareBuffers) {
        if self.tail.capacity() == 0 {
            self.tail = spare.take();
        }
    }

    /// Gives the memory back once all is written: an idle connection holds none.
    pub(crate) fn give_back(&mut self, spare: &mut SpareBuffers) {
        if self.is_empty() {
            self.urgent = false;
            let mut buffer = mem::take(&mut self.tail);
            buffer.clear();
            spare.keep(buffer);
        }
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            let bytes = self.tail.split().freeze();
            self.sealed_bytes += bytes.len();
            self.sealed.push_back(Segment { bytes, shared: false, descriptors: None, turn: None });
        }
    }
}

impl Carried {
    fn descriptors(&self) -> &[OwnedFd] {
        match self {
            Self::Message(message) => message.descriptors(),
            Self::Files(files) => files,
        }
    }
}

impl<'a> Batch<'a> {
    pub(crate) fn slices(&self) -> &[IoSlice<'a>] {
        &self.slices[..self.count]
    }

    fn push(&mut self, bytes: &'a [u8]) -> bool {
        let Some(place) = self.slices.get_mut(self.count) else {
            return false;
        };
        *place = IoSlice::new(bytes);
        self.count += 1;
        self.bytes += bytes.len();
        true
    }
}

/// Buffers that a thread lends to those of its connections that have something to say.
#[derive(Debug, Default)]
pub(crate) struct SpareBuffers {
    buffers: Vec<BytesMut>,
    bytes: usize,
}

impl SpareBuffers {
    fn take(&mut self) -> BytesMut {
        let buffer = self.buffers.pop().unwrap_or_default();
        self.bytes -= buffer.capacity();
        buffer
    }

    fn keep(&mut self, buffer: BytesMut) {
        let bytes = buffer.capacity();
        if bytes > 0 && self.buffers.len() < MAX_SPARE && self.bytes + bytes <= MAX_SPARE_BYTES {
            self.bytes += bytes;
            self.buffers.push(buffer);
        }
    }
}

/// Bytes beyond which no further message is taken from a queue. About what a socket takes at once.
const MESSAGES_BYTES: usize = 256 << 10;
/// Bytes beyond which the client is not read until it has read.
const ANSWERS_BYTES: usize = 1 << 20;
/// Slices of one write. More gain nothing: shared payloads are large.
const MAX_SLICES: usize = 64;
/// Spare buffers of a thread. More are freed.
const MAX_SPARE: usize = 16;
/// Their bytes together: four that are as full as messages may make them.
const MAX_SPARE_BYTES: usize = 4 * MESSAGES_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    fn text(batch: &Batch<'_>) -> Vec<u8> {
        batch.slices().concat()
    }

    /// The core makes messages only by committing them.
    fn message_with_descriptor() -> Carried {
        Carried::Message(crate::testing::message_with_descriptor())
    }

    #[test]
    fn what_is_behind_a_turn_waits_for_it() {
        let mut output = Output::default();
        output.frames().extend_from_slice(b"before");
        output.push_turn(Turn::ToRings);
        output.frames().extend_from_slice(b"after");
        assert_eq!(text(&output.batch()), b"before");
        assert_eq!(output.front().unwrap().bytes, b"before");
        assert_eq!((output.take_turn(), output.has_turn()), (None, true));
        output.advance(6);
        assert!(output.batch().slices().is_empty() && output.front().is_none());
        assert_eq!(output.take_turn(), Some(Turn::ToRings));
        assert_eq!(output.front().unwrap().bytes, b"after");
        assert!(!output.has_turn());
    }

    trait Concat {
        fn concat(&self) -> Vec<u8>;
    }

    impl Concat for [IoSlice<'_>] {
        fn concat(&self) -> Vec<u8> {
            self.iter().flat_map(|slice| slice.iter().copied()).collect()
        }
    }

    #[test]
    fn bytes_leave_in_their_order_whatever_their_kind() {
        let mut output = Output::default();
        output.frames().extend_from_slice(b"head ");
        output.push_shared(Bytes::from_static(b"payload "));
        output.frames().extend_from_slice(b"tail");
        assert_eq!(text(&output.batch()), b"head payload tail");
        output.advance(7);
        assert_eq!(text(&output.batch()), b"yload tail");
        output.frames().extend_from_slice(b" more");
        output.advance(8);
        assert_eq!(text(&output.batch()), b"il more");
        output.advance(7);
        assert!(output.is_empty());
    }

    #[test]
    fn a_batch_begins_with_the_frame_that_brings_descriptors() {
        let mut output = Output::default();
        output.frames().extend_from_slice(b"before ");
        let (head, without) = (Bytes::from_static(b"with "), Bytes::from_static(b"without "));
        output.push_with_descriptors(head, without, message_with_descriptor());
        output.frames().extend_from_slice(b"after");
        let batch = output.batch();
        assert_eq!((text(&batch).as_slice(), batch.descriptors.len()), (&b"before "[..], 0));
        output.advance(7);
        let batch = output.batch();
        assert_eq!((text(&batch).as_slice(), batch.descriptors.len()), (&b"with after"[..], 1));
        output.advance(1);
        assert_eq!(output.batch().descriptors.len(), 0, "they went with the first byte");
    }

    #[test]
    fn lost_descriptors_are_told() {
        let mut output = Output::default();
        let (head, without) = (Bytes::from_static(b"with"), Bytes::from_static(b"without"));
        output.push_with_descriptors(head, without, message_with_descriptor());
        output.lose_descriptors();
        let batch = output.batch();
        assert_eq!((text(&batch).as_slice(), batch.descriptors.len()), (&b"without"[..], 0));
        assert_eq!(output.len(), 7);
        assert!(output.take_descriptors_lost());
        assert!(!output.take_descriptors_lost());
    }

    #[test]
    fn g8_messages_stop_first_then_answers_and_shared_payloads_stop_no_answers() {
        let mut output = Output::default();
        output.push_shared(Bytes::from(vec![0; 16 << 20]));
        assert!(!output.has_room_for_messages());
        assert!(output.has_room_for_answers());
        output.frames().resize(ANSWERS_BYTES, 0);
        assert!(!output.has_room_for_answers());
        output.advance(output.len());
        assert!(output.has_room_for_messages() && output.has_room_for_answers());
    }

    #[test]
    fn what_nobody_waits_for_goes_out_with_what_comes_next() {
        let mut output = Output::default();
        output.unhurried_frames().extend_from_slice(b"receipt ");
        assert!(!output.is_urgent());
        output.frames().extend_from_slice(b"answer");
        assert!(output.is_urgent());
        assert_eq!(text(&output.batch()), b"receipt answer");
        output.advance(14);
        output.give_back(&mut SpareBuffers::default());
        assert!(!output.is_urgent());
        output.unhurried_frames().extend_from_slice(b"receipt");
        output.hurry();
        assert!(output.is_urgent(), "it was asked for");
    }

    #[test]
    fn an_idle_connection_holds_no_buffer() {
        let mut spare = SpareBuffers::default();
        let mut output = Output::default();
        output.lend(&mut spare);
        output.frames().extend_from_slice(b"frame");
        output.give_back(&mut spare);
        assert_eq!(output.len(), 5, "not while something waits");
        output.advance(5);
        output.give_back(&mut spare);
        assert_eq!((output.tail.capacity(), spare.buffers.len()), (0, 1));
        output.lend(&mut spare);
        assert!(output.tail.capacity() > 0 && output.tail.is_empty());
        assert_eq!(spare.bytes, 0);
    }

    #[test]
    fn g8_spare_buffers_are_bounded_in_number_and_bytes() {
        let mut spare = SpareBuffers::default();
        for _ in 0..2 * MAX_SPARE {
            spare.keep(BytesMut::with_capacity(ANSWERS_BYTES / 3));
        }
        assert_eq!((spare.buffers.len(), spare.bytes), (3, ANSWERS_BYTES / 3 * 3));
        while spare.take().capacity() > 0 {}
        assert_eq!(spare.bytes, 0);
        for _ in 0..2 * MAX_SPARE {
            spare.keep(BytesMut::with_capacity(100));
        }
        assert_eq!(spare.buffers.len(), MAX_SPARE);
    }
}
