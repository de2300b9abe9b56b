//! What comes out of a queue, and what goes to a send.

use std::fmt;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use bus_core::{EndpointId, GroupId, GroupName, Sequence};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{DecodeError, EncodeError};

/// What an endpoint receives. More kinds will come: keep a `_` arm.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A message.
    Message(Message),
    /// Messages of a drop-when-full membership were dropped, and the queue has run empty since.
    /// (Where another message of the group followed, that one tells it: [`Message::missed`].)
    Gap(Gap),
}

impl Event {
    /// The message, if it is one.
    #[must_use]
    pub fn into_message(self) -> Option<Message> {
        match self {
            Self::Message(message) => Some(message),
            Self::Gap(_) => None,
        }
    }
}

/// Messages of one group that a drop-when-full member has missed (G7).
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

/// Who sent a message, as the kernel knew it when the sender connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Process id. The process may be gone, and the number be another's by now.
    pub pid: u32,
}

/// What the bytes of a payload are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ContentType {
    /// Anything.
    #[default]
    Bytes,
    /// UTF-8 text. (The sender says so; [`Message::text`] checks.)
    Text,
    /// A value in CBOR.
    Cbor,
    /// A value in JSON.
    Json,
}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes",
            Self::Text => "text",
            Self::Cbor => "CBOR",
            Self::Json => "JSON",
        })
    }
}

/// A message as received.
#[derive(Debug)]
pub struct Message {
    _stub: Bytes,
}

impl Message {
    /// Its place in the order of the bus. In one endpoint's queue these rise (G2).
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        unimplemented!()
    }

    /// The group it was sent to; `None` if it was sent to this endpoint directly.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        unimplemented!()
    }

    /// The id of the group it was sent to; `None` if it was sent to this endpoint directly.
    #[must_use]
    pub fn group_id(&self) -> Option<GroupId> {
        unimplemented!()
    }

    /// Who sent it; answer with [`Endpoint::endpoint`](crate::Endpoint::endpoint).
    #[must_use]
    pub fn sender(&self) -> EndpointId {
        unimplemented!()
    }

    /// 1, 2, 3 ... for each sender.
    #[must_use]
    pub fn sender_serial(&self) -> u64 {
        unimplemented!()
    }

    /// The sender's process, as the kernel knew it when it connected.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        unimplemented!()
    }

    /// When the message took its place in the order, by the broker's clock.
    #[must_use]
    pub fn commit_time(&self) -> SystemTime {
        unimplemented!()
    }

    /// The key, if the sender set one.
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        unimplemented!()
    }

    /// The operation, if the sender named one.
    #[must_use]
    pub fn operation(&self) -> Option<&str> {
        unimplemented!()
    }

    /// The fields `name=value`, in the sender's order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        [].into_iter()
    }

    /// What the payload's bytes are.
    #[must_use]
    pub fn content_type(&self) -> ContentType {
        unimplemented!()
    }

    /// The payload's bytes.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        unimplemented!()
    }

    /// The payload's bytes, without a copy where the library holds no other part of them.
    #[must_use]
    pub fn into_payload(self) -> Vec<u8> {
        unimplemented!()
    }

    /// The payload as text, if it is UTF-8, whatever its content type.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        unimplemented!()
    }

    /// The payload as a value, by its content type: CBOR or JSON.
    ///
    /// # Errors
    ///
    /// The message says that it is neither, or the payload is no `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        unimplemented!()
    }

    /// Takes the descriptors that came with it, each close-on-exec. The second call gets none.
    #[must_use]
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        unimplemented!()
    }

    /// Whether the message had descriptors that this process had no room for.
    #[must_use]
    pub fn descriptors_lost(&self) -> bool {
        unimplemented!()
    }

    /// What a drop-when-full membership missed of this group just before this message.
    #[must_use]
    pub fn missed(&self) -> Option<&Gap> {
        unimplemented!()
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
            Err(e) => Err(EncodeError {
                format: "CBOR",
                why: e.to_string(),
            }),
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
            Err(e) => Err(EncodeError {
                format: "JSON",
                why: e.to_string(),
            }),
        }
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

    fn with(payload: Vec<u8>, content_type: ContentType) -> Self {
        Self {
            payload: payload.into(),
            content_type,
            ..Self::default()
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

/// Where a sent message stands in the order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// Its place in the order of the bus.
    pub sequence: Sequence,
    /// 1, 2, 3 ... of the sending endpoint; refused sends take none.
    pub sender_serial: u64,
    /// The highest sequence that the sending endpoint had been delivered before: the message
    /// follows everything up to there (G3).
    pub after: Sequence,
    /// How many queues it was put into.
    pub recipients: u32,
    /// Drop-when-full members that had no room and missed it.
    pub dropped: u32,
}

/// How long an application waits when it says nothing: for a greeting.
pub(crate) const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
