//! Several messages of one sender to one group that take their places together.
//!
//! A sender that has more than one message ready, about which nothing is special, pays once for what
//! each of them would cost: locks, checks, an entry in each queue. Each message keeps a sequence and a
//! serial of its own, so nothing of the order is other than if they had been sent one by one, and
//! nobody had come between them.
//!
//! Invariant: a batch is committed only if every recipient is of the plain kind and has room for all
//! of it. Whatever stands in the way (a member that drops or leaves, a filter, a waiting send,
//! a monitor, a full queue) makes it no batch: nothing has happened then, and the messages are to be
//! sent one by one, each with its own outcome (G1).
//!
//! A batch is one piece of memory, in which the messages stand as a
//! [MESSAGES frame](crate::wire) brings them: a transport writes the same bytes to every recipient.

use std::fmt;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::attributes::Attributes;
use crate::audience::Audience;
use crate::bus::BusInner;
use crate::id::{EndpointId, GroupId, Sequence};
use crate::inside::Committed;
use crate::intake::{EndpointCore, Intake};
use crate::lock_set;
use crate::message::{Credentials, Destination, Draft, Message, Stamp};
use crate::payload::Payload;
use crate::send::{Effects, Receipt, Route};
use crate::sync::{Mutant, mutated};

/// Messages that are to become a [`Batch`].
///
/// ```
/// use bus_core::{Attributes, Bus, BatchDraft, Credentials, JoinOptions, Limits};
///
/// let bus = Bus::new(Limits::default(), 7)?;
/// let me = Credentials { uid: 1000, pid: 1 };
/// let (alice, bob) = (bus.open_endpoint(me)?, bus.open_endpoint(me)?);
/// let chat = bob.join(&"org.example.Chat".parse()?, JoinOptions::create())?.group;
/// let mut batch = BatchDraft::default();
/// batch.push(&Attributes::EMPTY, b"one");
/// batch.push(&Attributes::EMPTY, b"two");
/// let receipts = alice.lane()?.try_send_batch(chat, batch).expect("there is room");
/// assert!(receipts.get(1).unwrap().sequence > receipts.get(0).unwrap().sequence);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
pub struct BatchDraft {
    entries: BytesMut,
    messages: u32,
    /// Bytes of the longest payload.
    longest: usize,
    /// All of it, and as what it is to be kept.
    kept: Option<(Bytes, Payload)>,
}

impl BatchDraft {
    /// Adds a message.
    ///
    /// # Panics
    ///
    /// The payload has 2^32 bytes or more.
    pub fn push(&mut self, attributes: &Attributes, payload: &[u8]) {
        self.push_checked(attributes.encoded(), payload);
    }

    /// Adds a message whose block of attributes has been checked.
    #[inline]
    pub(crate) fn push_checked(&mut self, attributes: &[u8], payload: &[u8]) {
        let head = Entry::head(attributes.len(), payload.len());
        self.entries.reserve(head.len() + attributes.len() + payload.len());
        self.entries.put_slice(&head);
        self.entries.put_slice(attributes);
        self.entries.put_slice(payload);
        self.messages += 1;
        self.longest = self.longest.max(payload.len());
    }

    /// How many messages there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.messages
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Makes room for so many bytes.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.entries.reserve(bytes);
    }

    /// Whether a message with so many bytes of attributes and of payload would be one too many, or make the
    /// whole longer than a batch is ([`MAX_BATCH_MESSAGES`], [`MAX_BATCH_BYTES`]).
    #[inline]
    #[must_use]
    pub fn has_room_for(&self, attributes: usize, payload: usize) -> bool {
        let more = ENTRY_HEAD_BYTES + attributes + payload;
        self.messages < MAX_BATCH_MESSAGES && self.entries.len() + more <= MAX_BATCH_BYTES
    }

    pub(crate) fn entries(&self) -> &[u8] {
        self.kept.as_ref().map_or(&self.entries, |(bytes, _)| bytes)
    }

    /// Says how the messages are to be kept, as one payload; for a transport that can show its readers
    /// one copy of them ([`Batch::payload`]). No more can be added.
    ///
    /// # Panics
    ///
    /// The payload has another length than the bytes that it is made of; or this was called before.
    #[must_use]
    pub fn kept_as(mut self, keep: impl FnOnce(Bytes) -> Payload) -> Self {
        let bytes = fitted(std::mem::take(&mut self.entries));
        let payload = keep(bytes.clone());
        assert_eq!(payload.len(), bytes.len(), "it is the same bytes");
        self.kept = Some((bytes, payload));
        self
    }

    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// The bytes that the messages take in a queue.
    pub(crate) fn charged_bytes(&self) -> u64 {
        (self.entries().len() - self.messages as usize * ENTRY_HEAD_BYTES) as u64
    }
}

/// The bytes in memory of about their own size: a batch may lie in queues for long, and what it keeps is to
/// be what it is charged for.
fn fitted(bytes: BytesMut) -> Bytes {
    let is_loose = bytes.capacity() > 2 * bytes.len() + 1024;
    if is_loose { Bytes::copy_from_slice(&bytes) } else { bytes.freeze() }
}

impl fmt::Debug for BatchDraft {
    /// Says how many there are: payloads never go to logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchDraft").field("messages", &self.messages).finish_non_exhaustive()
    }
}

/// Messages of one sender to one group that took their places together. Nothing is special about any
/// of them: no deadline, no descriptors, nothing was missed before it, and its payload is with it.
pub struct Batch {
    sender: EndpointId,
    credentials: Credentials,
    group: GroupId,
    messages: u32,
    charged_bytes: u64,
    entries: Bytes,
    kept: Option<Payload>,
    /// That of the first message.
    stamp: Stamp,
}

impl Batch {
    pub(crate) fn new(sender: &EndpointCore, group: GroupId, draft: BatchDraft) -> Self {
        let charged_bytes = draft.charged_bytes();
        let (sender, credentials) = (sender.id(), sender.credentials);
        let BatchDraft { entries, messages, kept, .. } = draft;
        let (entries, kept) = match kept {
            Some((bytes, payload)) => (bytes, Some(payload)),
            None => (fitted(entries), None),
        };
        let stamp = Stamp::NONE;
        Self { sender, credentials, group, messages, charged_bytes, entries, kept, stamp }
    }

    /// The endpoint that sent them.
    #[must_use]
    pub fn sender(&self) -> EndpointId {
        self.sender
    }

    /// Whose endpoint that was.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.credentials
    }

    /// The group that they were sent to.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// How many messages there are: two or more.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.messages
    }

    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// The first one's place in the order of the bus (G2). The others follow, [`STEP`](Self::STEP) by
    /// `STEP`.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.stamp.sequence
    }

    /// The last one's place in the order.
    #[must_use]
    pub fn last_sequence(&self) -> Sequence {
        lock_set::later(self.stamp.sequence, u64::from(self.messages.saturating_sub(1)))
    }

    /// By how much a sequence exceeds the one before it in the batch.
    pub const STEP: u64 = lock_set::STEP;

    /// The first one's [`Message::sender_serial`]; those of the others follow.
    #[must_use]
    pub fn sender_serial(&self) -> u64 {
        self.stamp.sender_serial
    }

    /// When all of them were committed; see [`Message::commit_time`].
    #[must_use]
    pub fn commit_time(&self) -> u64 {
        self.stamp.commit_time
    }

    /// The bytes that they take in a queue.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        self.charged_bytes
    }

    /// The messages, one after the other. Each is made when it is asked for, and shares the memory of
    /// all.
    pub fn messages(self: &Arc<Self>) -> impl Iterator<Item = Arc<Message>> + use<> {
        Unrolling::new(Arc::clone(self))
    }

    /// The messages as a MESSAGES frame brings them.
    #[must_use]
    pub fn entries(&self) -> &Bytes {
        &self.entries
    }

    /// The same, as the payload that the sender's transport has made of it.
    #[must_use]
    pub fn payload(&self) -> Option<&Payload> {
        self.kept.as_ref()
    }

    /// Every member of the group, at the place of the batch in the order: each is entitled to all of
    /// it.
    #[must_use]
    pub fn audience(&self) -> Option<Audience> {
        self.stamp.audience.map(|generation| Audience::new(self.group, generation))
    }

    /// A message, from the bytes at its place among the entries.
    fn message(&self, number: u32, attributes: Bytes, payload: Bytes) -> Message {
        let attributes = Attributes::from_checked(attributes);
        let draft = Draft { attributes, payload: payload.into(), ..Draft::default() };
        let to = Destination::Group(self.group);
        let mut message = Message::new(self.sender, self.credentials, to, draft);
        message.stamp(Stamp {
            sequence: lock_set::later(self.stamp.sequence, number.into()),
            sender_serial: self.stamp.sender_serial + u64::from(number),
            ..self.stamp
        });
        message
    }
}

impl fmt::Debug for Batch {
    /// Says how many there are: payloads never go to logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("sender", &self.sender)
            .field("group", &self.group)
            .field("sequence", &self.stamp.sequence)
            .field("messages", &self.messages)
            .finish_non_exhaustive()
    }
}

/// The messages of a batch, one after the other, for who takes one at a time.
#[derive(Debug)]
pub(crate) struct Unrolling {
    batch: Arc<Batch>,
    next: u32,
    rest: Bytes,
}

impl Unrolling {
    pub(crate) fn new(batch: Arc<Batch>) -> Self {
        let rest = batch.entries.clone();
        Self { batch, next: 0, rest }
    }
}

impl Iterator for Unrolling {
    type Item = Arc<Message>;

    fn next(&mut self) -> Option<Arc<Message>> {
        let entry = Entry::first(&self.rest)?;
        self.rest.advance(ENTRY_HEAD_BYTES);
        let attributes = self.rest.split_to(entry.attributes);
        let payload = self.rest.split_to(entry.payload);
        let message = self.batch.message(self.next, attributes, payload);
        self.next += 1;
        Some(Arc::new(message))
    }
}

/// How a message stands among the entries: 8 bytes, its attributes, its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Bytes of the block of attributes.
    pub(crate) attributes: usize,
    /// Bytes of the payload.
    pub(crate) payload: usize,
}

impl Entry {
    #[inline]
    fn head(attributes: usize, payload: usize) -> [u8; ENTRY_HEAD_BYTES] {
        let payload = u32::try_from(payload).expect("payloads are shorter than 2^32 bytes");
        let attributes = u32::try_from(attributes).expect("attributes are within their limit");
        (u64::from(payload) | u64::from(attributes) << 32).to_le_bytes()
    }

    /// The one that `entries` begins with; none if its bytes are not all there.
    #[inline]
    pub(crate) fn first(entries: &[u8]) -> Option<Self> {
        let head = u64::from_le_bytes(*entries.first_chunk()?);
        let part = |bits: u64| usize::try_from(bits & u64::from(u32::MAX)).ok();
        let entry = Self { payload: part(head)?, attributes: part(head >> 32)? };
        let there = entries.len() - ENTRY_HEAD_BYTES;
        let fits = entry.attributes.checked_add(entry.payload).is_some_and(|all| all <= there);
        fits.then_some(entry)
    }

    /// Bytes of all of it.
    #[inline]
    pub(crate) fn len(self) -> usize {
        ENTRY_HEAD_BYTES + self.attributes + self.payload
    }
}

/// Bytes of a batch, 8 for each message included. What a socket or ring takes at once is no more.
pub const MAX_BATCH_BYTES: usize = 64 << 10;

/// Messages of a batch: they are counted and recorded while its locks are held.
pub const MAX_BATCH_MESSAGES: u32 = 1024;

/// What stands before the attributes of an entry.
pub(crate) const ENTRY_HEAD_BYTES: usize = 8;

/// Messages were not sent together; nothing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fits} of the messages could be sent together")]
pub struct NoBatch {
    fits: u32,
}

impl NoBatch {
    /// Something else than room stands in the way.
    pub const NEVER: Self = Self { fits: 0 };

    /// About how many of the first could be sent together now. The others, and all if there are fewer
    /// than two, are to be sent one by one.
    #[must_use]
    pub fn fits(self) -> u32 {
        self.fits
    }
}

/// The bus's answer to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchReceipt {
    first: Receipt,
    messages: u32,
}

impl BatchReceipt {
    /// That of the first message.
    #[must_use]
    pub const fn first(&self) -> &Receipt {
        &self.first
    }

    /// How many messages there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.messages
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// The receipt of the message of this number, from 0 on.
    #[must_use]
    pub fn get(&self, number: u32) -> Option<Receipt> {
        (number < self.messages).then(|| self.first.later(number))
    }
}

impl Receipt {
    /// The receipt of the message that is so many behind this one's in a batch.
    #[must_use]
    pub fn later(self, number: u32) -> Self {
        let sequence = lock_set::later(self.sequence, number.into());
        let sender_serial = self.sender_serial.wrapping_add(number.into());
        Self { sequence, sender_serial, ..self }
    }
}

impl BusInner {
    /// Commits a batch, if nothing at all stands in its way. None if the membership has moved.
    pub(crate) fn commit_batch(
        &self,
        sender: &EndpointCore,
        route: &Route,
        batch: &mut Arc<Batch>,
        effects: &mut Effects,
    ) -> Option<Result<BatchReceipt, NoBatch>> {
        if !route.is_plain_group() {
            // It may be by now.
            return route.is_current().then_some(Err(NoBatch::NEVER));
        }
        if self.monitors.list().is_some() {
            return Some(Err(NoBatch::NEVER));
        }
        effects.reserve(route.most_recipients());
        let (messages, bytes) = (batch.messages, batch.charged_bytes);
        let mut held = self.locks.acquire(route.locks());
        if !route.is_current() {
            return None;
        }
        if !self.monitors.are(None) || sender.is_closed() {
            return Some(Err(NoBatch::NEVER));
        }
        let fits = route.recipients().map(|recipient| {
            let is_plain = |intake: &&mut Intake| {
                !intake.is_receive_shut()
                    && recipient.drops.is_none()
                    && intake.is_of(sender.user)
                    && intake.core.waiting_sends() == 0
            };
            let intake = held.intake(recipient.place).filter(is_plain);
            intake.map_or(0, |intake| intake.room_for(messages, bytes))
        });
        let fits = fits.min().unwrap_or(messages);
        if fits < messages && !mutated(Mutant::BatchWithoutRoom) {
            return Some(Err(NoBatch { fits }));
        }
        let after = sender.taken();
        let drawn = if mutated(Mutant::BatchDrawsOne) { 1 } else { messages };
        let sequence = held.draw_many(sender.seen(), drawn.into());
        let last = lock_set::later(sequence, u64::from(messages) - 1);
        let sender_serial = sender.record_sent(last, messages.into());
        let (commit_time, audience) = (self.now(), route.audience());
        let stamp = Stamp { sequence, sender_serial, commit_time, audience };
        Arc::get_mut(batch).expect("nobody has a batch before its commit").stamp = stamp;
        let mut recipients = 0;
        for recipient in route.recipients() {
            if let Some(intake) = held.intake(recipient.place) {
                intake.push_batch(batch);
                effects.wake(intake.take_reader());
                recipients += 1;
            }
        }
        let first =
            Receipt { sequence, sender_serial, after, recipients, dropped: 0, completion: None };
        let receipt = BatchReceipt { first, messages };
        let log = self.begin_log(&mut held, route);
        let mut entries = &batch.entries[..];
        for number in 0..messages {
            let entry = Entry::first(entries).expect("there are as many as messages");
            entries = &entries[entry.len()..];
            let bytes = (entry.attributes + entry.payload) as u64;
            let receipt = receipt.get(number).expect("there are as many as messages");
            log.end(
                &mut held,
                route,
                &Committed { sender: sender.id(), commit_time, bytes },
                &receipt,
            );
        }
        Some(Ok(receipt))
    }
}

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn g8_a_batch_keeps_no_more_memory_than_about_its_bytes() {
        let draft = |messages: usize| {
            let mut draft = BatchDraft::default();
            draft.reserve(MAX_BATCH_BYTES);
            (0..messages).for_each(|_| draft.push(&Attributes::EMPTY, &[7; 64]));
            draft
        };
        for messages in [2, 100, 900] {
            let length = draft(messages).entries().len();
            let mut kept = Bytes::new();
            let _ = draft(messages).kept_as(|bytes| {
                kept = bytes.clone();
                bytes.into()
            });
            for bytes in [kept, fitted(draft(messages).entries)] {
                assert_eq!(bytes.len(), length);
                let capacity = bytes.try_into_mut().map_or(length, |bytes| bytes.capacity());
                assert!(capacity <= 2 * length + 1024, "{capacity} for {length}");
            }
        }
    }
}
