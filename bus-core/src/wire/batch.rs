//! Several messages in one frame, several receipts in one frame, and the SENDs that become such.
//!
//! Invariant: MESSAGES has the fixed part of a MESSAGE, that of its first message, so a
//! [`MessageView`] reads its head in either; and every entry has been checked before the first one is
//! handed out. What a SEND asks for beyond delivery (a reply, descriptors, a deadline, a payload apart)
//! makes it a frame of its own.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::broker::{self, MESSAGES, MessageFrame, MessageHead, RECEIPTS};
use super::client::{self, SendFlags, SendHead, SendId};
use super::header::{Header, Outline, u32_at, u64_at};
use super::view::{Landed, MessageView, PayloadFound};
use super::{
    EncodeError, HEADER_BYTES, Handle, LaneNumber, PLACED_BYTES, Placed, Serial, WireError, body,
};
use crate::attributes::{self, Attributes};
use crate::batch::{Batch, BatchDraft, ENTRY_HEAD_BYTES, Entry, MAX_BATCH_BYTES};
use crate::{Destination, GroupId, GroupName, Receipt, Sequence};

/// The feature that a client asks for MESSAGES and RECEIPTS with.
pub const BATCHES_FEATURE: &str = "batches";

/// SENDs of one lane to one group that came in a row, and about which nothing is special.
#[derive(Debug)]
pub struct SendRun {
    /// Who sends, and in which lane.
    pub lane: (Handle, LaneNumber),
    /// Where they go.
    pub group: GroupId,
    /// What each of them is called.
    pub serials: Vec<Serial>,
    /// The messages, in the same order.
    pub batch: BatchDraft,
    /// Nobody waits for any of the receipts.
    pub receipts_may_wait: bool,
    /// Bytes of their frames.
    pub length: usize,
}

impl SendRun {
    /// From which lane and to which group a run goes that [`gather`](Self::gather) would find at the start of
    /// `unread`.
    #[must_use]
    pub fn begins(unread: &[u8], too_long: usize) -> Option<((Handle, LaneNumber), GroupId)> {
        let first = PlainSend::at(unread, too_long)?;
        let Destination::Group(group) = first.head.destination else { return None };
        let next = PlainSend::at(unread.get(first.length..)?, too_long)?;
        let id = first.head.id;
        next.is_like(&first.head).then_some(((id.endpoint, id.lane), group))
    }

    /// Looks for two or more at the start of `unread`, `most` at most, and takes nothing off it. A
    /// payload of `too_long` bytes ends the run.
    ///
    /// Something that is no frame ends it as well: who decodes it meets the error.
    #[must_use]
    pub fn gather(unread: &[u8], too_long: usize, most: u32) -> Option<Self> {
        let first = PlainSend::at(unread, too_long)?;
        let mut next = PlainSend::at(unread.get(first.length..)?, too_long)?;
        let head = first.head;
        let Destination::Group(group) = head.destination else { return None };
        if !next.is_like(&head) {
            return None;
        }
        let mut batch = BatchDraft::default();
        batch.reserve(unread.len().min(MAX_BATCH_BYTES));
        batch.push_checked(first.attributes, first.payload);
        let lane = (head.id.endpoint, head.id.lane);
        let (serials, length) = (vec![head.id.serial], first.length);
        let receipts_may_wait = first.receipt_may_wait();
        let mut run = Self { lane, group, serials, batch, receipts_may_wait, length };
        while run.batch.len() < most
            && next.is_like(&head)
            && run.batch.has_room_for(next.attributes.len(), next.payload.len())
        {
            run.batch.push_checked(next.attributes, next.payload);
            run.serials.push(next.head.id.serial);
            run.receipts_may_wait &= next.receipt_may_wait();
            run.length += next.length;
            match PlainSend::at(&unread[run.length..], too_long) {
                Some(send) => next = send,
                None => break,
            }
        }
        Some(run)
    }
}

/// A SEND to a group of which nothing is to be said but attributes and payload.
struct PlainSend<'a> {
    head: SendHead,
    attributes: &'a [u8],
    payload: &'a [u8],
    length: usize,
}

impl<'a> PlainSend<'a> {
    #[inline(always)]
    fn at(unread: &'a [u8], too_long: usize) -> Option<Self> {
        let (head, attributes_at, payload_at, length) = client::plain_send(unread)?;
        let (attributes, payload) =
            (&unread[attributes_at..payload_at], &unread[payload_at..length]);
        (payload.len() < too_long).then_some(Self { head, attributes, payload, length })
    }

    /// Whether it goes the same way as one with this `head`.
    #[inline(always)]
    fn is_like(&self, head: &SendHead) -> bool {
        (self.head.id.endpoint, self.head.id.lane) == (head.id.endpoint, head.id.lane)
            && self.head.destination == head.destination
    }

    #[inline(always)]
    fn receipt_may_wait(&self) -> bool {
        self.head.flags.contains(SendFlags::RECEIPT_MAY_WAIT)
    }
}

/// Flags of a SEND that is committed at once means nothing to.
pub(super) const OF_NO_ACCOUNT: SendFlags =
    SendFlags::NONBLOCK.union(SendFlags::INDEPENDENT).union(SendFlags::RECEIPT_MAY_WAIT);

/// Appends all of a MESSAGES but its entries, which the caller writes next
/// ([`Batch::entries`]): they are the same for every recipient.
pub fn encode_batch_head(out: &mut BytesMut, endpoint: Handle, batch: &Batch) {
    put_head(out, &head_of_batch(endpoint, batch), batch.len(), batch.entries().len());
}

/// Appends a MESSAGES whose entries lie apart.
pub fn encode_batch_apart(out: &mut BytesMut, endpoint: Handle, batch: &Batch, placed: &Placed) {
    let head = MessageHead { apart: true, ..head_of_batch(endpoint, batch) };
    put_head(out, &head, batch.len(), PLACED_BYTES);
    out.extend_from_slice(&placed.encode());
}

fn head_of_batch(endpoint: Handle, batch: &Batch) -> MessageHead {
    MessageHead {
        sequence: batch.sequence(),
        sender: batch.sender(),
        sender_serial: batch.sender_serial(),
        commit_time: batch.commit_time(),
        credentials: batch.credentials(),
        ..MessageHead::to_group(endpoint, batch.group())
    }
}

fn put_head(out: &mut BytesMut, head: &MessageHead, messages: u32, entries: usize) {
    let mut place = [0; HEADER_BYTES + MESSAGES.fixed];
    let body = u32::try_from(MESSAGES.fixed + entries).expect("batches are bounded");
    Outline::new(&MESSAGES).endpoint(head.endpoint).write(&mut place, body);
    broker::write_common(&mut place, head, head.group.map_or(0, GroupId::get));
    place[broker::FURTHER_AT] = if head.apart { broker::APART } else { 0 };
    place[COUNT_AT..COUNT_AT + 4].copy_from_slice(&messages.to_le_bytes());
    out.reserve(place.len() + entries);
    out.extend_from_slice(&place);
}

/// SENDs of one lane, by their serials, and where in the order they were committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptsFrame {
    /// Who has sent, and in which lane.
    pub lane: (Handle, LaneNumber),
    /// Which sends.
    pub serials: Vec<Serial>,
    /// The receipt of the first.
    pub first: Receipt,
}

impl ReceiptsFrame {
    /// Each send, and its receipt.
    pub fn each(&self) -> impl Iterator<Item = (SendId, Receipt)> {
        let (endpoint, lane) = self.lane;
        let each = self.serials.iter().zip(0..);
        each.map(move |(serial, number)| {
            (SendId { endpoint, lane, serial: *serial }, self.first.later(number))
        })
    }

    /// Appends the frame.
    ///
    /// # Errors
    ///
    /// There are more serials than a frame holds, which is more than a batch has messages.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        let mut fixed = [0; RECEIPTS.fixed - 4];
        broker::write_receipt(&mut fixed, &self.first);
        let (endpoint, lane) = self.lane;
        body::put_with(out, Outline::new(&RECEIPTS).endpoint(endpoint).lane(lane), |out| {
            out.reserve(fixed.len() + 4 * self.serials.len());
            out.extend_from_slice(&fixed);
            for serial in &self.serials {
                out.extend_from_slice(&serial.get().to_le_bytes());
            }
        })
    }
}

/// Reads the body of a RECEIPTS.
pub(super) fn receipts(header: &Header, bytes: &[u8]) -> Result<ReceiptsFrame, WireError> {
    let frame = RECEIPTS.name;
    body::zero(frame, "reserved", u32_at(bytes, 28))?;
    let (numbers, rest) = bytes[RECEIPTS.fixed - 4..].as_chunks::<4>();
    body::zero(frame, "remainder of the length by 4", body::small(rest.len()))?;
    let serials = numbers.iter().map(|number| Serial::new(u32::from_le_bytes(*number)));
    let serials: Option<_> = serials.collect();
    let first = Receipt {
        sequence: Sequence::from_raw(u64_at(bytes, 0)),
        sender_serial: u64_at(bytes, 8),
        after: Sequence::from_raw(u64_at(bytes, 16)),
        recipients: u32_at(bytes, 24),
        dropped: 0,
        completion: None,
    };
    let lane = (header.endpoint(), header.lane());
    Ok(ReceiptsFrame { lane, serials: serials.ok_or(WireError::NoSerial { frame })?, first })
}

/// Messages of one frame that a client has yet to take.
#[derive(Debug)]
pub struct BatchView {
    memory: Arc<Landed>,
    /// How many have been taken.
    taken: u32,
    messages: u32,
    /// Where the next one begins, and the last one ends.
    at: u32,
    end: u32,
    /// The messages have been looked at, and are what they should be.
    is_checked: bool,
}

impl BatchView {
    /// Whether the frame that `unread` begins with is a MESSAGES; false while that is not known.
    #[inline]
    #[must_use]
    pub fn is_next(unread: &[u8]) -> bool {
        broker::is_messages(unread)
    }

    /// Takes the first frame off `unread`, which [`is_next`](Self::is_next); `None` if it has not
    /// come whole, and then nothing is taken.
    ///
    /// # Errors
    ///
    /// The offence. The stream cannot be trusted any more.
    pub fn decode(unread: &mut BytesMut) -> Result<Option<Self>, WireError> {
        let Some(header) = Header::decode(unread, broker::shape_of)? else {
            return Ok(None);
        };
        let Some(frame) = unread.get(..header.length) else {
            return Ok(None);
        };
        let messages = check_fixed(frame)?;
        let (at, end) = match broker::is_apart(frame) {
            true => (0, entries_apart(frame)?.length),
            false => (HEADER_BYTES + MESSAGES.fixed, header.length as u64),
        };
        let memory = Arc::new(Landed::new(unread.split_to(header.length).freeze()));
        let end = u32::try_from(end).unwrap_or(u32::MAX);
        let mut view = Self { memory, taken: 0, messages, at: place(at), end, is_checked: false };
        if view.placed().is_none() {
            view.check()?;
        }
        Ok(Some(view))
    }

    /// Where the messages lie, if they lie apart.
    #[must_use]
    pub fn placed(&self) -> Option<Placed> {
        let frame = &self.memory.bytes;
        broker::is_apart(frame)
            .then(|| entries_apart(frame).expect("it was checked when the view was made"))
    }

    /// Says where the messages were found. They are to be [checked](Self::check) once they are there.
    ///
    /// # Panics
    ///
    /// Some have been taken.
    pub fn set_found(&mut self, found: Arc<dyn PayloadFound>) {
        Arc::get_mut(&mut self.memory).expect("none was taken").found = Some(found);
    }

    /// Where the messages were found, if they lie apart.
    #[must_use]
    pub fn found(&self) -> Option<&dyn PayloadFound> {
        self.memory.found.as_deref()
    }

    /// Looks whether the messages are what the frame says.
    ///
    /// # Errors
    ///
    /// The offence. The stream cannot be trusted any more.
    pub fn check(&mut self) -> Result<(), WireError> {
        if !self.is_checked {
            let entries = self.memory.entries().get(self.at as usize..self.end as usize);
            check_entries(entries.unwrap_or_default(), self.messages)?;
            self.is_checked = true;
        }
        Ok(())
    }

    /// Whether the messages can be taken.
    #[inline]
    #[must_use]
    pub fn is_checked(&self) -> bool {
        self.is_checked
    }

    /// Has the messages that are taken know their group by this name, unless they have one already.
    pub fn set_group_name(&mut self, name: &GroupName) {
        self.memory.group.get_or_init(|| name.clone());
    }

    /// Whose queue they were in.
    #[must_use]
    pub fn endpoint(&self) -> Handle {
        broker::endpoint_of(&self.memory.bytes)
    }

    /// The group that they were sent to.
    #[inline]
    #[must_use]
    pub fn group(&self) -> Option<GroupId> {
        broker::group_of(&self.memory.bytes)
    }

    /// How many are left.
    #[inline]
    #[must_use]
    pub fn len(&self) -> u32 {
        self.messages - self.taken
    }

    /// Whether all have been taken.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What CREDIT returns for those that are left.
    #[inline]
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        let heads = u64::from(self.len()) * ENTRY_HEAD_BYTES as u64;
        u64::from(self.end - self.at).saturating_sub(heads)
    }
}

impl BatchView {
    /// Takes messages, `most` of them at most, and puts what `make` makes of each into `out`; none before
    /// they were [checked](Self::check). Gives the sequence of the last.
    ///
    /// Inlined, and a list of known length, so that each is made where it stays: what is written in parts and
    /// then moved waits for the writes.
    #[inline(always)]
    pub fn take_into<T>(
        &mut self,
        most: usize,
        out: &mut Vec<T>,
        mut make: impl FnMut(MessageView) -> T,
    ) -> Option<Sequence> {
        let count = most.min(self.len() as usize);
        if !self.is_checked || count == 0 {
            return None;
        }
        let memory = &self.memory;
        // Looked up once for all.
        let entries = &memory.entries()[..self.end as usize];
        let (mut at, mut number) = (self.at as usize, self.taken);
        out.extend((0..count).map(|_| {
            let parts = parts_at(entries, at);
            let view = MessageView::of_batch(Arc::clone(memory), parts, number);
            (at, number) = (parts[2] as usize, number + 1);
            make(view)
        }));
        (self.at, self.taken) = (place(at), number);
        Some(sequence_of(broker::sequence_of(&memory.bytes), number - 1))
    }
}

impl Iterator for BatchView {
    type Item = MessageView;

    /// The next message; none before they were [checked](BatchView::check).
    fn next(&mut self) -> Option<MessageView> {
        if !self.is_checked || self.is_empty() {
            return None;
        }
        let parts = parts_at(&self.memory.entries()[..self.end as usize], self.at as usize);
        let view = MessageView::of_batch(Arc::clone(&self.memory), parts, self.taken);
        (self.at, self.taken) = (parts[2], self.taken + 1);
        Some(view)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.len() as usize))
    }
}

/// Where the message that begins at `at` has its attributes, its payload and its end.
#[inline(always)]
fn parts_at(entries: &[u8], at: usize) -> [u32; 3] {
    let entry = Entry::first(&entries[at..]).expect("there are as many as were checked");
    let attributes_at = at + ENTRY_HEAD_BYTES;
    let payload_at = attributes_at + entry.attributes;
    [place(attributes_at), place(payload_at), place(payload_at + entry.payload)]
}

/// A MESSAGES frame as an owner of its parts has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessagesFrame {
    /// What it says of the first message, and of the others but for sequence and serial.
    pub head: MessageHead,
    /// How many messages there are.
    pub count: u32,
    /// The messages.
    pub entries: Entries,
}

/// Where the messages of a MESSAGES are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entries {
    /// In it: each message's attributes and payload.
    Here(Vec<(Attributes, Bytes)>),
    /// Apart.
    Apart(Placed),
}

impl MessagesFrame {
    /// The messages, each as if it had come in a MESSAGE of its own. None where they lie apart.
    #[must_use]
    pub fn into_messages(self) -> Vec<MessageFrame> {
        let Entries::Here(messages) = self.entries else { return Vec::new() };
        let each = messages.into_iter().zip(0..);
        each.map(|((attributes, payload), number)| {
            let head = head_of(self.head, number);
            MessageFrame { head, attributes, payload }
        })
        .collect()
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        match &self.entries {
            Entries::Here(messages) => {
                let mut batch = BatchDraft::default();
                for (attributes, payload) in messages {
                    batch.push(attributes, payload);
                }
                put_head(out, &self.head, self.count, batch.entries().len());
                out.extend_from_slice(batch.entries());
            }
            Entries::Apart(placed) => {
                put_head(out, &self.head, self.count, PLACED_BYTES);
                out.extend_from_slice(&placed.encode());
            }
        }
    }

    pub(super) fn decode(unread: &mut BytesMut) -> Result<Option<Self>, WireError> {
        let Some(view) = BatchView::decode(unread)? else {
            return Ok(None);
        };
        let (head, count) = (broker::checked_head(&view.memory.bytes), view.messages);
        let entries = match view.placed() {
            Some(placed) => Entries::Apart(placed),
            None => {
                Entries::Here(view.map(|view| (view.attributes(), view.into_payload())).collect())
            }
        };
        Ok(Some(Self { head, count, entries }))
    }
}

/// The head of the message of this number, from that of the first one.
pub(super) fn head_of(first: MessageHead, number: u32) -> MessageHead {
    MessageHead {
        sequence: sequence_of(first.sequence, number),
        sender_serial: first.sender_serial.wrapping_add(number.into()),
        ..first
    }
}

/// The sequence of the message of this number.
#[inline]
pub(super) fn sequence_of(first: Sequence, number: u32) -> Sequence {
    Sequence::from_raw(first.get().wrapping_add(u64::from(number) * Batch::STEP))
}

/// Checks what a MESSAGES says before its messages, and gives their number.
fn check_fixed(frame: &[u8]) -> Result<u32, WireError> {
    let name = MESSAGES.name;
    body::zero(name, "lengths", u32_at(frame, 72))?;
    MESSAGES.all_flags(0, frame[76])?;
    body::zero(name, "reserved", u32_at(frame, 76) >> 8)?;
    body::zero(name, "reserved", u32_at(frame, COUNT_AT + 4))?;
    let (deadline, messages) = (u64_at(frame, 56), u32_at(frame, COUNT_AT));
    if deadline != 0 {
        return Err(WireError::Value { frame: name, field: "deadline", given: deadline });
    }
    if messages == 0 {
        return Err(count(messages));
    }
    Ok(messages)
}

/// Where the messages of a MESSAGES lie that says so.
fn entries_apart(frame: &[u8]) -> Result<Placed, WireError> {
    let placed = Placed::decode(&frame[HEADER_BYTES + MESSAGES.fixed..])?;
    if placed.length > MAX_BATCH_BYTES as u64 {
        let (frame, field) = (MESSAGES.name, "length apart");
        return Err(WireError::Value { frame, field, given: placed.length });
    }
    Ok(placed)
}

/// Checks that there are as many messages as were announced, each of them right.
fn check_entries(mut entries: &[u8], announced: u32) -> Result<(), WireError> {
    let mut messages = 0;
    while let Some(entry) = Entry::first(entries) {
        // Most have none.
        if entry.attributes > 0 {
            let block = &entries[ENTRY_HEAD_BYTES..][..entry.attributes];
            attributes::check(block)
                .map_err(|problem| WireError::Attributes { frame: MESSAGES.name, problem })?;
        }
        entries = &entries[entry.len()..];
        messages += 1;
    }
    if entries.is_empty() && messages == announced { Ok(()) } else { Err(count(announced)) }
}

fn count(given: u32) -> WireError {
    WireError::Value { frame: MESSAGES.name, field: "count", given: given.into() }
}

#[inline]
fn place(at: usize) -> u32 {
    u32::try_from(at).expect("frames are shorter than 2^32 bytes")
}

/// Where a MESSAGES says how many there are.
const COUNT_AT: usize = HEADER_BYTES + 64;
