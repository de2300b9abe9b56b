//! A MESSAGE as a client meets it: checked once where it lies, and read there.
//!
//! Invariant: a view is made only of a whole frame that has passed every check of section 2 of the
//! protocol page, so reading its parts cannot fail. It shares the memory that its frame was read
//! into, so taking a message off the stream allocates nothing.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};

use super::batch;
use super::broker::{self, MessageHead, Role};
use super::{Handle, Placed, WireError};
use crate::attributes::{Block, Fields};
use crate::{Attributes, ContentType, Gap, GroupId, GroupName, NameId, Sequence};

/// A message on its way to a client, in the memory that it was read into.
///
/// It keeps that memory alive: all that was read at once, or all of a long message. Whoever keeps
/// many messages for long keeps copies of what it needs of them.
#[derive(Clone)]
pub struct MessageView {
    /// What was read with it. One handle for many messages: each of them has only to count.
    memory: Arc<Landed>,
    /// Where its frame begins there.
    at: u32,
    /// Where its parts begin, and the last one ends, from the frame's beginning; of one of several that
    /// lie apart, from the beginning of these.
    attributes_at: u32,
    payload_at: u32,
    end: u32,
    /// Which of its frame's messages it is. Those after the first share its head.
    number: u32,
    /// Its frame is a MESSAGES.
    is_one_of_many: bool,
}

/// What was read at once, or one frame of it, and what it refers to.
#[derive(Debug)]
pub(super) struct Landed {
    pub(super) bytes: Bytes,
    /// Where that is which lies apart, once it was found.
    pub(super) found: Option<Arc<dyn PayloadFound>>,
    /// By which name its reader knows the group, where that is kept for all messages at once.
    pub(super) group: OnceLock<GroupName>,
}

impl Landed {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { bytes, found: None, group: OnceLock::new() }
    }

    /// The messages of a MESSAGES that lie apart, or the frame.
    #[inline]
    pub(super) fn entries(&self) -> &[u8] {
        match &self.found {
            Some(found) => found.bytes(),
            None => &self.bytes,
        }
    }
}

/// A payload that lies apart, where a client has found it.
pub trait PayloadFound: fmt::Debug + Send + Sync {
    /// The bytes. They stay as they are for as long as this is kept.
    fn bytes(&self) -> &[u8];

    /// Itself, for who has found it.
    fn as_any(&self) -> &dyn Any;
}

impl MessageView {
    /// Whether the frame that `unread` begins with is a MESSAGE; false while that is not known.
    #[inline]
    #[must_use]
    pub fn is_next(unread: &[u8]) -> bool {
        broker::is_message(unread)
    }

    /// Takes the first frame off `unread`, which [`is_next`](Self::is_next); `None` if it has not
    /// come whole, and then nothing is taken.
    ///
    /// # Errors
    ///
    /// The offence. The stream cannot be trusted any more.
    #[inline]
    pub fn decode(unread: &mut BytesMut) -> Result<Option<Self>, WireError> {
        let Some(layout) = broker::message_layout(unread)? else {
            return Ok(None);
        };
        let memory = Arc::new(Landed::new(unread.split_to(layout.length).freeze()));
        Ok(Some(Self::of_checked(memory, 0, layout)))
    }

    #[inline(always)]
    fn of_checked(memory: Arc<Landed>, at: usize, layout: broker::Layout) -> Self {
        Self {
            at: place(at),
            attributes_at: place(layout.attributes_at),
            payload_at: place(layout.payload_at),
            end: place(layout.length),
            memory,
            number: 0,
            is_one_of_many: false,
        }
    }

    /// One of several that came in one frame: where its attributes, its payload and its end are.
    #[inline(always)]
    pub(super) fn of_batch(memory: Arc<Landed>, parts: [u32; 3], number: u32) -> Self {
        let [attributes_at, payload_at, end] = parts;
        Self { memory, at: 0, attributes_at, payload_at, end, number, is_one_of_many: true }
    }

    /// Its frame, and what was read behind it.
    #[inline]
    fn bytes(&self) -> &[u8] {
        &self.memory.bytes[self.at as usize..]
    }

    /// What its parts lie in.
    #[inline]
    fn parts(&self) -> &[u8] {
        if self.is_one_of_many { self.memory.entries() } else { self.bytes() }
    }

    /// Everything that MESSAGE says beside the message itself.
    #[must_use]
    pub fn head(&self) -> MessageHead {
        batch::head_of(broker::checked_head(self.bytes()), self.number)
    }

    /// Whether it is a group's message and nothing more: none that was retained, came through a peer
    /// endpoint or after a gap, or brings descriptors; and its payload is in it. Nearly all are.
    #[inline]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.is_one_of_many || broker::is_plain(self.bytes())
    }

    /// Whose queue it was in.
    #[inline]
    #[must_use]
    pub fn endpoint(&self) -> Handle {
        broker::endpoint_of(self.bytes())
    }

    /// Its place in the order (G2).
    #[inline]
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        batch::sequence_of(broker::sequence_of(self.bytes()), self.number)
    }

    /// The group that it was sent to; `None` if it was sent to this endpoint itself.
    #[inline]
    #[must_use]
    pub fn group(&self) -> Option<GroupId> {
        broker::group_of(self.bytes())
    }

    /// The name of that group, if it came with others and was [given](super::BatchView::set_group_name).
    #[must_use]
    pub fn group_name(&self) -> Option<&GroupName> {
        self.memory.group.get()
    }

    /// Whether the group retained it, from before the endpoint's join.
    #[inline]
    #[must_use]
    pub fn retained(&self) -> bool {
        broker::is_retained(self.bytes())
    }

    /// Whether it asks for a reply, or is one.
    #[inline]
    #[must_use]
    pub fn role(&self) -> Role {
        broker::role_in(self.bytes())
    }

    /// The name that it was sent to; see [`MessageHead::name`].
    #[must_use]
    pub fn name(&self) -> Option<NameId> {
        broker::name_of(self.bytes())
    }

    /// What the membership missed just before it.
    #[must_use]
    pub fn missed(&self) -> Option<Gap> {
        broker::gap_of(self.bytes())
    }

    /// How many descriptors come with it.
    #[inline]
    #[must_use]
    pub fn descriptors(&self) -> u8 {
        self.bytes()[6]
    }

    /// Whether its descriptors could not be brought here.
    #[inline]
    #[must_use]
    pub fn descriptors_lost(&self) -> bool {
        broker::descriptors_lost_of(self.bytes())
    }

    /// What CREDIT returns for it: the bytes of attributes and payload, or of a payload that was lent a
    /// part ([`lent_queued_bytes`](crate::lent_queued_bytes)).
    #[inline]
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        if self.is_one_of_many {
            return u64::from(self.end - self.attributes_at);
        }
        let length = self.placed().map_or(self.tail().len() as u64, |placed| placed.length);
        let lent = broker::is_lent(self.bytes());
        let payload = if lent { crate::lent_queued_bytes(length) } else { length };
        u64::from(self.payload_at - self.attributes_at) + payload
    }

    /// Whether the payload lies apart, by itself.
    #[inline]
    fn is_apart(&self) -> bool {
        !self.is_one_of_many && broker::is_apart(self.bytes())
    }

    /// Where the payload lies, if it lies apart.
    #[inline]
    #[must_use]
    pub fn placed(&self) -> Option<Placed> {
        self.is_apart()
            .then(|| Placed::decode(self.tail()).expect("it was checked when the view was made"))
    }

    /// Says where the payload that lies apart was found. Until then it seems to be empty.
    ///
    /// # Panics
    ///
    /// The message has been cloned, or came with others in what was read: one whose payload lies apart
    /// does not.
    pub fn set_found(&mut self, found: Arc<dyn PayloadFound>) {
        Arc::get_mut(&mut self.memory).expect("its frame is its own").found = Some(found);
    }

    /// Where the payload that lies apart was found.
    #[inline]
    #[must_use]
    pub fn found(&self) -> Option<&dyn PayloadFound> {
        if self.is_one_of_many { None } else { self.memory.found.as_deref() }
    }

    /// Where it was found with others, if it came with them and they lie apart.
    #[must_use]
    pub fn found_among(&self) -> Option<&dyn PayloadFound> {
        if self.is_one_of_many { self.memory.found.as_deref() } else { None }
    }

    #[inline]
    fn tail(&self) -> &[u8] {
        &self.parts()[self.payload_at as usize..self.end as usize]
    }

    /// The payload's bytes.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        match self.found() {
            Some(found) => found.bytes(),
            None if self.is_apart() => &[],
            None => self.tail(),
        }
    }

    /// The payload's bytes, without a copy unless they lie apart.
    #[must_use]
    pub fn into_payload(self) -> Bytes {
        if self.memory.found.is_some() || self.is_apart() {
            return Bytes::copy_from_slice(self.payload());
        }
        self.slice(self.payload_at, self.end)
    }

    /// The memory of the whole frame. Whoever has it when the message is gone may read the next one
    /// into it ([`Bytes::try_into_mut`]).
    #[must_use]
    pub fn frame(&self) -> Bytes {
        self.slice(0, self.end)
    }

    /// A part of the frame.
    fn slice(&self, from: u32, to: u32) -> Bytes {
        self.memory.bytes.slice((self.at + from) as usize..(self.at + to) as usize)
    }

    /// The attributes, without a copy.
    #[must_use]
    pub fn attributes(&self) -> Attributes {
        Attributes::from_checked(match self.found_among() {
            Some(_) => Bytes::copy_from_slice(self.block_bytes()),
            None => self.slice(self.attributes_at, self.payload_at),
        })
    }

    /// The key; see [`Attributes::key`].
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        self.block().key()
    }

    /// The operation; see [`Attributes::operation`].
    #[must_use]
    pub fn operation(&self) -> Option<&str> {
        self.block().operation()
    }

    /// What the payload is; see [`Attributes::content_type`].
    #[inline]
    #[must_use]
    pub fn content_type(&self) -> ContentType {
        self.block().content_type()
    }

    /// The fields; see [`Attributes::fields`].
    #[must_use]
    pub fn fields(&self) -> Fields<'_> {
        self.block().fields()
    }

    /// The value of a field; see [`Attributes::field`].
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.block().field(name)
    }

    #[inline]
    fn block(&self) -> Block<'_> {
        Block::of_checked(self.block_bytes())
    }

    #[inline]
    fn block_bytes(&self) -> &[u8] {
        &self.parts()[self.attributes_at as usize..self.payload_at as usize]
    }
}

/// Messages that came in a row and are all [plain](MessageView::is_plain).
#[derive(Debug)]
pub struct PlainRun {
    memory: Arc<Landed>,
    at: usize,
}

impl PlainRun {
    /// Takes those off `unread` that it begins with and that have come whole; `None` if there are none,
    /// which says nothing of what its first frame is.
    #[must_use]
    pub fn take(unread: &mut BytesMut) -> Option<Self> {
        let mut end = 0;
        while let Some(length) = broker::plain_length(&unread[end..]) {
            end += length;
        }
        if end == 0 {
            return None;
        }
        Some(Self { memory: Arc::new(Landed::new(unread.split_to(end).freeze())), at: 0 })
    }
}

impl Iterator for PlainRun {
    type Item = Result<MessageView, WireError>;

    /// The next message, or the offence that it is. After that the stream cannot be trusted any more.
    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let layout = match broker::message_layout(&self.memory.bytes[self.at..]) {
            Ok(layout) => layout?,
            Err(error) => return Some(Err(error)),
        };
        let message = MessageView::of_checked(Arc::clone(&self.memory), self.at, layout);
        self.at += layout.length;
        Some(Ok(message))
    }
}

impl PartialEq for MessageView {
    fn eq(&self, other: &Self) -> bool {
        self.head() == other.head()
            && self.block_bytes() == other.block_bytes()
            && self.tail() == other.tail()
            && self.payload() == other.payload()
    }
}

impl Eq for MessageView {}

impl fmt::Debug for MessageView {
    /// Says how long the payload is: payloads never go to logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageView")
            .field("head", &self.head())
            .field("attributes", &self.attributes())
            .field("payload", &format_args!("{} bytes", self.payload().len()))
            .finish()
    }
}

#[inline]
fn place(at: usize) -> u32 {
    u32::try_from(at).expect("what is read at once is shorter than 2^32 bytes")
}
