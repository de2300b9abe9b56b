//! What comes out of a queue, and what goes to a send.

use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use bus_core::{
    Attributes, ContentType, Credentials, EndpointId, GroupId, GroupName, Sequence,
    wire::{MessageView, Role},
};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::apart::{Found, Given, PoolBuffer, SealedFile, View, Way};
use crate::error::{DecodeError, EncodeError, MessageError};
use crate::gated::{Candidate, Expelled, FlagsChanged, PeerGap, PeerNotice};
use crate::inflow::Attached;
use crate::monitor::{Monitored, MonitoredChange};
use crate::names::{NameAcquired, NameLost, OwnerChange, OwnerChangesLost};
use crate::reconnect::{Reconnected, Restored};
use crate::request::Asked;
use crate::views::ViewChange;

/// What an endpoint receives. More kinds will come: keep a `_` arm.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A message.
    Message(Message),
    /// Messages of a drop-when-full membership were dropped, and the queue has run empty since.
    /// (Where another message of the group followed, that one tells it: [`Message::missed`].)
    Gap(Gap),
    /// The endpoint is no longer a member of a group, because it made senders wait for too long.
    /// Nothing of the group comes after this.
    Evicted(Box<Evicted>),
    /// All that a group retained before this endpoint joined it
    /// [with its state](crate::JoinOptions::with_state) has been received, as messages that are
    /// [`retained`](Message::retained); what follows of the group is later than the join.
    Current(Current),
    /// The membership of a group that [`watch_members`](crate::Endpoint::watch_members) watches has
    /// changed.
    View(Box<ViewChange>),
    /// A name that this endpoint waited for is its own now.
    NameAcquired(NameAcquired),
    /// A name that this endpoint owned is another's now, or not this endpoint's any more.
    NameLost(NameLost),
    /// The owners of a name that [`watch_name`](crate::Endpoint::watch_name) watches have changed.
    OwnerChanged(Box<OwnerChange>),
    /// Changes of a watched name's owners were missed for want of room, and the queue has run empty
    /// since. Look the name up with [`find_name`](crate::Endpoint::find_name).
    OwnerChangesLost(OwnerChangesLost),
    /// Somebody asks to be admitted to a gated group that this endpoint owns.
    Candidate(Box<Candidate>),
    /// The owner of a gated group has put this endpoint out.
    Expelled(Expelled),
    /// This owner of a gated group has missed messages of a member, and the queue has run empty
    /// since. (Where another one of its followed, that one tells it: [`Message::missed`].)
    PeerGap(PeerGap),
    /// What a member sends does not come to this owner any more, because it did not read for the
    /// stall limit. [`Gate::set_terms`](crate::Gate::set_terms) brings it back.
    PeerStalled(PeerNotice),
    /// A candidate or member of this owner's is gone, or has closed the connection.
    PeerClosed(PeerNotice),
    /// How this endpoint is a member of a gated group was changed.
    FlagsChanged(FlagsChanged),
    /// A copy of a message, for a [monitor](crate::Endpoint::monitor).
    Monitored(Box<Monitored>),
    /// A change of some group's membership, for a monitor.
    MonitoredView(Box<ViewChange>),
    /// Something else that a monitor sees: owners of names, requests without a reply, what happens
    /// to members beside that they come and go.
    MonitoredChange(Box<MonitoredChange>),
    /// What a monitor has missed for want of room, and the queue has run empty since. (Where
    /// something else followed, that tells it.)
    MonitorGap(Gap),
    /// Changes of a watched membership were missed for want of room, and the queue has run empty
    /// since. Fetch the present list with [`members`](crate::Endpoint::members).
    ViewsLost(Gap),
    /// The connection was lost and is there again, which happens only with
    /// [`Builder::reconnect`](crate::Builder::reconnect). All events before this one belong to the
    /// old connection, all after it to the new one; what was sent in between may be missing.
    Reconnected(Box<Reconnected>),
    /// After a reconnection: what became of something that could not be had at once.
    Restored(Box<Restored>),
}

/// Messages are moved about a few times each: who makes an event longer is to know.
const _: () = assert!(size_of::<Event>() <= 64);

impl Event {
    /// The message, if it is one.
    #[inline]
    #[must_use]
    pub fn into_message(self) -> Option<Message> {
        match self {
            Self::Message(message) => Some(message),
            _ => None,
        }
    }
}

/// Messages of one group that a drop-when-full member has missed (G7), or changes of its membership
/// that a watcher has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// The group's name, where the library still knows it.
    pub group: Option<GroupName>,
    /// The group.
    pub group_id: GroupId,
    /// How many were missed.
    pub count: u64,
    /// The first missed message's place in the order.
    pub first: Sequence,
    /// The last missed message's place in the order.
    pub last: Sequence,
}

/// The end of a membership that was stalled (G8), or was to end rather than make senders wait.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Evicted {
    /// The group's name, where the library still knows it.
    pub group: Option<GroupName>,
    /// The group.
    pub group_id: GroupId,
    /// Where in the order the membership ended.
    pub sequence: Sequence,
    /// For how long the endpoint had made senders wait.
    pub stalled: Duration,
    /// Messages in its queue that it had not taken.
    pub queued_messages: u64,
    /// How long it may join the group again only with
    /// [`drop_when_full`](crate::JoinOptions::drop_when_full).
    pub back_off: Duration,
    /// It was not stalled: its queue was full, and it had
    /// [`leave_when_full`](crate::JoinOptions::leave_when_full).
    pub left_when_full: bool,
}

/// The end of what a group has retained: from here on a member is up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Current {
    /// The group's name, where the library still knows it.
    pub group: Option<GroupName>,
    /// The group.
    pub group_id: GroupId,
    /// The place of the join: nothing before it is missing, nothing after it came yet.
    pub sequence: Sequence,
    /// How many retained messages came.
    pub messages: u32,
}

/// A message as received.
///
/// It keeps the memory that it was read into: up to 64 KiB of what came with it, or all of a longer
/// message. Whoever keeps many messages keeps copies of what it needs of them.
#[derive(Debug)]
pub struct Message {
    message: MessageView,
    group: Option<GroupName>,
    special: Option<Box<Special>>,
}

/// What most messages have none of, so that they are moved about less.
#[derive(Debug, Default)]
struct Special {
    missed: Option<Gap>,
    attached: Option<Box<Attached>>,
    /// The name that it was sent to.
    name: Option<GroupName>,
    /// Where the reply goes from, if it is a request.
    asked: Option<Asked>,
    /// It came by a connection that was lost before it was received.
    orphan: bool,
}

impl Message {
    pub(crate) fn new(
        message: MessageView,
        group: Option<GroupName>,
        missed: Option<Gap>,
        attached: Option<Box<Attached>>,
    ) -> Self {
        let mut new = Self::plain(message, group);
        if missed.is_some() || attached.is_some() {
            new.special = Some(Box::new(Special { missed, attached, ..Special::default() }));
        }
        new
    }

    /// One that nothing is special about.
    #[inline(always)]
    pub(crate) fn plain(message: MessageView, group: Option<GroupName>) -> Self {
        Self { message, group, special: None }
    }

    fn attached_mut(&mut self) -> Option<&mut Attached> {
        self.special.as_mut()?.attached.as_deref_mut()
    }

    /// Says from where it is answered.
    pub(crate) fn set_asked(&mut self, asked: Asked) {
        self.special.get_or_insert_default().asked = Some(asked);
    }

    pub(crate) fn set_orphan(&mut self) {
        self.special.get_or_insert_default().orphan = true;
    }

    pub(crate) fn is_orphan(&self) -> bool {
        self.special.as_ref().is_some_and(|special| special.orphan)
    }

    pub(crate) fn asked(&self) -> Option<&Asked> {
        self.special.as_ref()?.asked.as_ref()
    }

    pub(crate) fn role(&self) -> Role {
        self.message.role()
    }

    /// The same, sent to a name.
    pub(crate) fn with_name(mut self, name: Option<GroupName>) -> Self {
        if name.is_some() {
            self.special.get_or_insert_default().name = name;
        }
        self
    }

    /// Its place in the order of the bus. In one endpoint's queue these rise (G2).
    #[inline]
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.message.sequence()
    }

    /// The well-known name it was sent to, which this endpoint owned then; `None` if it was sent
    /// to a group or to this endpoint directly.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.special.as_ref()?.name.as_ref().map(GroupName::as_str)
    }

    /// The group it was sent to; `None` if it was sent to this endpoint, directly or by a name.
    #[inline]
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        self.group.as_ref().or_else(|| self.message.group_name()).map(GroupName::as_str)
    }

    /// The id of the group it was sent to; `None` if it was sent to this endpoint directly.
    #[must_use]
    pub fn group_id(&self) -> Option<GroupId> {
        self.message.group()
    }

    /// Who sent it; answer with [`Endpoint::endpoint`](crate::Endpoint::endpoint).
    #[inline]
    #[must_use]
    pub fn sender(&self) -> EndpointId {
        self.message.head().sender
    }

    /// The peer endpoint through which it came, if this endpoint owns a gated group and the sender
    /// is its candidate or member: a private message, or with a [`group`](Self::group) what the
    /// member sent to that.
    #[must_use]
    pub fn peer(&self) -> Option<EndpointId> {
        self.message.head().peer
    }

    /// 1, 2, 3 ... for each sender.
    #[inline]
    #[must_use]
    pub fn sender_serial(&self) -> u64 {
        self.message.head().sender_serial
    }

    /// The sender's user and process, as the kernel knew them when it connected. The process may
    /// be gone, and its number be another's by now.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.message.head().credentials
    }

    /// When the message took its place in the order, by the broker's clock.
    #[inline]
    #[must_use]
    pub fn commit_time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.message.head().commit_time)
    }

    /// The key, if the sender set one.
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        self.message.key()
    }

    /// The operation, if the sender named one.
    #[must_use]
    pub fn operation(&self) -> Option<&str> {
        self.message.operation()
    }

    /// The fields `name=value`, in the sender's order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.message.fields()
    }

    /// The value of the field of this name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.message.field(name)
    }

    /// What the payload's bytes are, as the sender says.
    #[must_use]
    pub fn content_type(&self) -> ContentType {
        self.message.content_type()
    }

    /// The payload's bytes.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.message.payload()
    }

    /// The payload to be read in parts where it lies. It matters only for what its sender can still
    /// write: [`payload`](Self::payload) copies all of that first.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        match self.found() {
            Some(found) => View::of(found),
            None => View::new(self.message.payload()),
        }
    }

    /// How its bytes came here.
    #[must_use]
    pub fn way(&self) -> Way {
        let among = self.message.found_among().and_then(|found| found.as_any().downcast_ref());
        self.found().or(among).map_or(Way::Inline, Found::way)
    }

    fn found(&self) -> Option<&Found> {
        self.message.found()?.as_any().downcast_ref()
    }

    /// The payload's bytes, without a copy where the library holds no other part of them.
    #[must_use]
    pub fn into_payload(self) -> Vec<u8> {
        self.message.into_payload().into()
    }

    /// When it is of no use any more, by the broker's clock, if that was said. A request always
    /// has such a time.
    #[must_use]
    pub fn deadline(&self) -> Option<SystemTime> {
        let nanos = self.message.head().deadline;
        (nanos != 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos))
    }

    /// The payload as text, if it is UTF-8, whatever its content type.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        str::from_utf8(self.message.payload()).ok()
    }

    /// The payload as a value, by its content type: CBOR or JSON.
    ///
    /// # Errors
    ///
    /// The message says that it is neither, or the payload is no `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        match self.content_type() {
            ContentType::Cbor => decode_cbor(self.payload()),
            ContentType::Json => serde_json::from_slice(self.payload())
                .map_err(|error| DecodeError::Json(error.to_string())),
            other => Err(DecodeError::Untyped(other)),
        }
    }

    /// Takes the descriptors that came with it, each close-on-exec. The second call gets none.
    #[must_use]
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.attached_mut()
            .map(|attached| std::mem::take(&mut attached.descriptors))
            .unwrap_or_default()
    }

    /// Whether the message had descriptors that this process had no room for.
    #[must_use]
    pub fn descriptors_lost(&self) -> bool {
        let attached = self.special.as_ref().and_then(|special| special.attached.as_ref());
        attached.is_some_and(|attached| attached.lost)
    }

    /// Whether it was sent before this endpoint joined, and comes because the group retains it. Its
    /// sequence is the original one.
    #[must_use]
    pub fn retained(&self) -> bool {
        self.message.retained()
    }

    /// What a drop-when-full membership missed of this group just before this message.
    #[must_use]
    pub fn missed(&self) -> Option<&Gap> {
        self.special.as_ref()?.missed.as_ref()
    }
}

fn decode_cbor<T: DeserializeOwned>(mut payload: &[u8]) -> Result<T, DecodeError> {
    let value = ciborium::from_reader(&mut payload)
        .map_err(|error| DecodeError::Cbor(error.to_string()))?;
    if payload.is_empty() {
        Ok(value)
    } else {
        Err(DecodeError::Cbor(format!("{} bytes follow the value", payload.len())))
    }
}

/// A message to send.
///
/// Text, bytes and vectors convert into it, so that `group.send("hello")` works.
///
/// ```
/// use bus_client::Outgoing;
///
/// let message = Outgoing::text("21.5").key("kitchen").field("unit", "celsius");
/// let typed = Outgoing::cbor(&("kitchen", 21.5))?;
/// # let _ = (message, typed);
/// # Ok::<(), bus_client::EncodeError>(())
/// ```
#[derive(Debug, Default)]
pub struct Outgoing {
    pub(crate) payload: Bytes,
    pub(crate) content_type: ContentType,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) operation: Option<String>,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) independent: bool,
    pub(crate) refusal: bool,
    pub(crate) repeatable: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) given: Option<Given>,
    pub(crate) zerocopy: bool,
    pub(crate) way: Option<Way>,
}

impl Outgoing {
    /// A payload of bytes that mean what the programs agreed on.
    #[must_use]
    pub fn bytes(payload: impl Into<Vec<u8>>) -> Self {
        Self::with(payload.into(), ContentType::Bytes)
    }

    /// A payload of text.
    #[must_use]
    pub fn text(payload: impl Into<String>) -> Self {
        Self::with(payload.into().into_bytes(), ContentType::Text)
    }

    /// A value, written as CBOR.
    ///
    /// # Errors
    ///
    /// The value's `Serialize` refuses.
    pub fn cbor<T: Serialize + ?Sized>(value: &T) -> Result<Self, EncodeError> {
        let mut bytes = Vec::new();
        match ciborium::into_writer(value, &mut bytes) {
            Ok(()) => Ok(Self::with(bytes, ContentType::Cbor)),
            Err(e) => Err(EncodeError { format: "CBOR", why: e.to_string() }),
        }
    }

    /// A value, written as JSON.
    ///
    /// # Errors
    ///
    /// The value's `Serialize` refuses, or a map has keys that are no text.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, EncodeError> {
        match serde_json::to_vec(value) {
            Ok(bytes) => Ok(Self::with(bytes, ContentType::Json)),
            Err(e) => Err(EncodeError { format: "JSON", why: e.to_string() }),
        }
    }

    /// A payload that was written to a buffer of a [`Pool`](crate::Pool), which is lent until all
    /// recipients are done. This is [flagged](Self::zerocopy).
    #[must_use]
    pub fn lent(buffer: PoolBuffer) -> Self {
        Self { given: Some(Given::Buffer(buffer)), zerocopy: true, ..Self::default() }
    }

    /// A payload that is a file which nobody can change any more. This is [flagged](Self::zerocopy).
    #[must_use]
    pub fn file(file: SealedFile) -> Self {
        Self { given: Some(Given::File(file)), zerocopy: true, ..Self::default() }
    }

    /// Asks for the payload's bytes not to be copied on their way, if that pays: then the send takes a
    /// number ([`Receipt::completion`](bus_core::Receipt)), and a
    /// [completion](crate::Bus::completions) says when the bytes are free again and whether they were
    /// copied after all. It needs [`Builder::zerocopy`](crate::Builder::zerocopy). An empty payload takes no
    /// number, and [calls](crate::Name::call) pass the flag over.
    #[must_use]
    pub fn zerocopy(mut self) -> Self {
        self.zerocopy = true;
        self
    }

    /// Forces how a flagged payload leaves, which otherwise follows from its size.
    #[must_use]
    pub fn travel(mut self, way: Way) -> Self {
        self.way = Some(way);
        self
    }

    /// Says what the payload's bytes are. The library does not look whether they are.
    #[must_use]
    pub fn content_type(mut self, content_type: ContentType) -> Self {
        self.content_type = content_type;
        self
    }

    /// Sets the key, at most 255 bytes. It is checked by the send.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Some(key.as_ref().to_vec());
        self
    }

    /// Names an operation, at most 255 bytes. It is checked by the send.
    #[must_use]
    pub fn operation(mut self, operation: impl Into<String>) -> Self {
        self.operation = Some(operation.into());
        self
    }

    /// Adds a field `name=value`; at most 16, 4 KiB together. It is checked by the send.
    #[must_use]
    pub fn field(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// Sends a descriptor along; at most 16. The receiver gets one of its own for the same open
    /// file; this one is closed once the message has gone.
    #[must_use]
    pub fn descriptor(mut self, descriptor: impl Into<OwnedFd>) -> Self {
        self.descriptors.push(descriptor.into());
        self
    }

    /// Says that this message means something without those before it in its lane: a pipelined
    /// send is then not refused because an earlier one was.
    #[must_use]
    pub fn independent(mut self) -> Self {
        self.independent = true;
        self
    }

    /// For a call: how long it may take, instead of the bus's default (25 s).
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// For a call: it does no harm twice, so it may be given to another worker of a service when
    /// the first one dies without having answered. Only of a request that was sent to a
    /// name, without descriptors, and short if it was received already; else the outcome is
    /// [`CallError::Gone`](crate::CallError::Gone).
    #[must_use]
    pub fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }

    pub(crate) fn refusing(mut self) -> Self {
        self.refusal = true;
        self
    }

    /// The block of attributes for the wire. Those that say nothing but a content type are made
    /// once for each connection.
    pub(crate) fn attributes(
        &mut self,
        plain: &PlainAttributes,
    ) -> Result<Attributes, MessageError> {
        if self.key.is_none() && self.operation.is_none() && self.fields.is_empty() {
            match self.content_type {
                ContentType::Bytes => return Ok(Attributes::EMPTY),
                ContentType::Text => return Ok(plain.text.clone()),
                ContentType::Cbor => return Ok(plain.cbor.clone()),
                ContentType::Json => return Ok(plain.json.clone()),
                _ => {}
            }
        }
        let mut builder = Attributes::builder().content_type(self.content_type);
        if let Some(key) = self.key.take() {
            builder = builder.key(key);
        }
        if let Some(operation) = self.operation.take() {
            builder = builder.operation(operation);
        }
        for (name, value) in self.fields.drain(..) {
            builder = builder.field(name, value);
        }
        builder.build().map_err(|e| MessageError(e.to_string()))
    }

    fn with(payload: Vec<u8>, content_type: ContentType) -> Self {
        Self { payload: payload.into(), content_type, ..Self::default() }
    }
}

/// Attributes that say nothing but what the payload is.
#[derive(Debug)]
pub(crate) struct PlainAttributes {
    text: Attributes,
    cbor: Attributes,
    json: Attributes,
}

impl PlainAttributes {
    pub(crate) fn new() -> Self {
        let only = |content_type| {
            let built = Attributes::builder().content_type(content_type).build();
            built.expect("a content type alone is within every limit")
        };
        Self {
            text: only(ContentType::Text),
            cbor: only(ContentType::Cbor),
            json: only(ContentType::Json),
        }
    }
}

impl From<&str> for Outgoing {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Outgoing {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl From<&[u8]> for Outgoing {
    fn from(bytes: &[u8]) -> Self {
        Self::bytes(bytes)
    }
}

impl<const N: usize> From<&[u8; N]> for Outgoing {
    fn from(bytes: &[u8; N]) -> Self {
        Self::bytes(bytes.as_slice())
    }
}

impl From<Vec<u8>> for Outgoing {
    fn from(bytes: Vec<u8>) -> Self {
        Self::bytes(bytes)
    }
}
