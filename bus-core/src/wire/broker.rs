//! Frames from the broker to a client.

use std::fmt;

use bytes::{Bytes, BytesMut};

use super::batch::{self, MessagesFrame, ReceiptsFrame};
use super::body::{self, both};
use super::client::outline;
use super::header::{FLAGS_OFFSET, Header, KIND_OFFSET, Outline, Shape, u16_at, u32_at, u64_at};
use super::{
    BrokerRings, EncodeError, Failure, Goodbye, HEADER_BYTES, Handle, MAX_FRAME_BYTES, MemoryKind,
    Notice, Placed, Response, SendId, Serial, Welcome, WireError,
};
use crate::{
    Attributes, CompletedRange, Credentials, EndpointId, Gap, GroupId, MAX_BATCH_BYTES, NameId,
    Receipt, Sequence,
};

/// One frame from the broker to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerFrame {
    /// The answer to the greeting: the first frame, once.
    Welcome(Box<Welcome>),
    /// A CALL did what it was asked for.
    Done {
        /// Who asked.
        endpoint: Handle,
        /// The CALL's serial.
        serial: Serial,
        /// What came of it.
        response: Response,
    },
    /// Some of the answer to a CALL, whose end [`Done`](Self::Done) is. Listings come so.
    Part {
        /// Who asked.
        endpoint: Handle,
        /// The CALL's serial.
        serial: Serial,
        /// The next entries.
        response: Response,
    },
    /// A CALL or WATCH did nothing, or a listing was given up.
    Error {
        /// Who asked.
        endpoint: Handle,
        /// The CALL's or WATCH's serial.
        serial: Serial,
        /// Why.
        failure: Box<Failure>,
    },
    /// A SEND was committed.
    Receipt {
        /// Which.
        id: SendId,
        /// Where it stands in the order.
        receipt: Receipt,
    },
    /// A SEND was not committed, and has reached nobody (G1).
    Refused {
        /// Which.
        id: SendId,
        /// Why.
        failure: Box<Failure>,
    },
    /// SENDs of one lane were committed together.
    Receipts(Box<ReceiptsFrame>),
    /// A message for an endpoint.
    Message(Box<MessageFrame>),
    /// Messages of one sender to one group, for an endpoint, which follow each other.
    Messages(Box<MessagesFrame>),
    /// Something else that an endpoint is told.
    Notice {
        /// Who.
        endpoint: Handle,
        /// What.
        notice: Notice,
    },
    /// A send to what a WATCH named would not block now. Ask again for the next time.
    Writable {
        /// Who asked.
        endpoint: Handle,
        /// The WATCH's serial.
        serial: Serial,
    },
    /// Payloads that this client has lent and that are free again: numbers of its own choice.
    Completed(CompletedRange),
    /// Memory that MESSAGEs to this client lie in, or that it may lend.
    Memory {
        /// How MESSAGEs name it.
        id: u32,
        /// What it is.
        kind: MemoryKind,
        /// Its length in bytes.
        length: u64,
        /// How many descriptors come with the frame's first byte; 0 if they could not be brought.
        descriptors: u8,
    },
    /// No further MESSAGE will lie in this memory.
    Forget {
        /// Which.
        id: u32,
    },
    /// A payload that lay apart is here now, and not there any more.
    Moved {
        /// The number that its MESSAGE gave it.
        hold: u32,
        /// The bytes.
        payload: Bytes,
    },
    /// The descriptors of the last frame that had some are off the socket.
    DescriptorsTaken,
    /// About rings in shared memory.
    Rings(BrokerRings),
    /// The last frame.
    Goodbye(Goodbye),
}

/// A message on its way to a client.
#[derive(Clone, PartialEq, Eq)]
pub struct MessageFrame {
    /// What MESSAGE says beside the message itself.
    pub head: MessageHead,
    /// Key, operation, content type, fields.
    pub attributes: Attributes,
    /// The bytes.
    pub payload: Bytes,
}

impl MessageFrame {
    /// What CREDIT returns for it, unless it is retained: the bytes of attributes and payload, or of
    /// a payload that was lent a part ([`lent_queued_bytes`](crate::lent_queued_bytes)).
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        let length = self.placed().map_or(self.payload.len() as u64, |placed| placed.length);
        let payload = if self.head.lent { crate::lent_queued_bytes(length) } else { length };
        self.attributes.encoded().len() as u64 + payload
    }

    /// Where the payload lies, if it lies apart.
    #[must_use]
    pub fn placed(&self) -> Option<Placed> {
        if self.head.apart { Placed::decode(&self.payload).ok() } else { None }
    }
}

impl From<MessageFrame> for BrokerFrame {
    fn from(message: MessageFrame) -> Self {
        Self::Message(Box::new(message))
    }
}

impl fmt::Debug for MessageFrame {
    /// Says how long the payload is: payloads never go to logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageFrame")
            .field("head", &self.head)
            .field("attributes", &self.attributes)
            .field("payload", &format_args!("{} bytes", self.payload.len()))
            .finish()
    }
}

/// What MESSAGE says beside the message itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageHead {
    /// Whose queue it was in.
    pub endpoint: Handle,
    /// Its place in the order (G2).
    pub sequence: Sequence,
    /// The group that it was sent to; `None` if it was sent to this endpoint itself, or to a name.
    pub group: Option<GroupId>,
    /// The name that it was sent to, and that this endpoint owned then. Means nothing with a group;
    /// a reply and a request that is given again do not say it.
    pub name: Option<NameId>,
    /// Who sent it.
    pub sender: EndpointId,
    /// 1, 2, 3 ... for each sender.
    pub sender_serial: u64,
    /// When it was committed, in nanoseconds since the Unix epoch.
    pub commit_time: u64,
    /// Nanoseconds since the Unix epoch after which it is of no use; 0 for never.
    pub deadline: u64,
    /// Whose endpoint the sender is.
    pub credentials: Credentials,
    /// Messages of this group that were dropped just before this one (G7).
    pub missed: Option<Gap>,
    /// It was sent before the endpoint joined, and the group retains it. It takes no place in the
    /// queue.
    pub retained: bool,
    /// The payload lies apart: in its place stands a [`Placed`](super::Placed).
    pub apart: bool,
    /// Its sender has lent the payload, wherever it is now: it takes a part of its length in the queue.
    pub lent: bool,
    /// How many descriptors come with the frame's first byte.
    pub descriptors: u8,
    /// The message had descriptors, and they could not be delivered here.
    pub descriptors_lost: bool,
    /// The peer endpoint through which it came, if this endpoint owns a gated group and it did.
    pub peer: Option<EndpointId>,
    /// Whether it asks for a reply or is one. Then it was sent to this endpoint, and has no group.
    pub role: Role,
}

impl MessageHead {
    /// Of a message to a group of which nothing more is to be said than what every message has: that is
    /// for the caller to set.
    #[inline]
    #[must_use]
    pub const fn to_group(endpoint: Handle, group: GroupId) -> Self {
        Self {
            endpoint,
            sequence: Sequence::from_raw(0),
            group: Some(group),
            name: None,
            sender: EndpointId::from_raw(0),
            sender_serial: 0,
            commit_time: 0,
            deadline: 0,
            credentials: Credentials::UNAUTHENTICATED,
            missed: None,
            retained: false,
            apart: false,
            lent: false,
            descriptors: 0,
            descriptors_lost: false,
            role: Role::Plain,
            peer: None,
        }
    }
}

/// What a message is to its receiver, as a MESSAGE tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It asks for nothing and answers nothing.
    #[default]
    Plain,
    /// Its sender waits for a reply.
    Request {
        /// The request's first sequence, if another endpoint was given it before, and died.
        first: Option<Sequence>,
    },
    /// It is the reply to a request of this endpoint.
    Reply {
        /// The request's sequence.
        request: Sequence,
        /// It says no.
        refusal: bool,
    },
}

impl BrokerFrame {
    /// Takes the first frame off `unread`; `None` if it has not come whole, and then nothing is
    /// taken. Everything else is as with [`ClientFrame::decode`](super::ClientFrame::decode).
    ///
    /// # Errors
    ///
    /// The offence. The stream cannot be trusted any more: say
    /// [`Goodbye::from(&error)`](Goodbye) and close.
    pub fn decode(unread: &mut BytesMut) -> Result<Option<Self>, WireError> {
        let Some(header) = Header::decode(unread, shape_of)? else {
            return Ok(None);
        };
        let Some(bytes) = unread.get(HEADER_BYTES..header.length) else {
            return Ok(None);
        };
        let endpoint = header.endpoint();
        let frame = match header.shape.kind {
            kind::MESSAGE => return Self::decode_message(&header, unread),
            kind::MESSAGES => {
                let messages = MessagesFrame::decode(unread)?;
                return Ok(messages.map(|messages| Self::Messages(Box::new(messages))));
            }
            kind::RECEIPTS => Self::Receipts(Box::new(batch::receipts(&header, bytes)?)),
            kind::RECEIPT => Self::Receipt {
                id: header.send_id(),
                receipt: Receipt {
                    sequence: Sequence::from_raw(u64_at(bytes, 0)),
                    sender_serial: u64_at(bytes, 8),
                    after: Sequence::from_raw(u64_at(bytes, 16)),
                    recipients: u32_at(bytes, 24),
                    dropped: u32_at(bytes, 28),
                    completion: None,
                },
            },
            kind::WRITABLE => Self::Writable { endpoint, serial: header.serial() },
            kind::COMPLETED => {
                let (first, last) = (u32_at(bytes, 0), u32_at(bytes, 4));
                Self::Completed(CompletedRange::new(first, last, header.flags & COPIED != 0))
            }
            kind::MEMORY => {
                let frame = header.shape.name;
                let kind = MemoryKind::of(frame, bytes[4])?;
                body::zero(frame, "reserved", u32_at(bytes, 4) >> 8)?;
                let (id, length) = (u32_at(bytes, 0), u64_at(bytes, 8));
                Self::Memory { id, kind, length, descriptors: header.descriptors }
            }
            kind::FORGET => Self::Forget { id: u32_at(bytes, 0) },
            kind::MOVED => {
                let hold = u32_at(bytes, 0);
                let frame = unread.split_to(header.length).freeze();
                let payload = frame.slice(HEADER_BYTES + MOVED.fixed..);
                return Ok(Some(Self::Moved { hold, payload }));
            }
            both::DESCRIPTORS_TAKEN => Self::DescriptorsTaken,
            _ => match BrokerRings::decode(&header, bytes)? {
                Some(rings) => Self::Rings(rings),
                None => Self::decode_control(&header, bytes)?,
            },
        };
        body::pass(unread, header.length);
        Ok(Some(frame))
    }

    /// How many bytes `unread` must have before [`decode`](Self::decode) can get further; see
    /// [`ClientFrame::bytes_needed`](super::ClientFrame::bytes_needed).
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode).
    pub fn bytes_needed(unread: &[u8]) -> Result<usize, WireError> {
        Ok(Header::decode(unread, shape_of)?.map_or(HEADER_BYTES, |header| header.length))
    }

    /// Appends the frame to `out`.
    ///
    /// # Errors
    ///
    /// It is longer than such a frame may be; `out` is as it was.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        match self {
            Self::Welcome(welcome) => body::put_control(out, Outline::new(&WELCOME), welcome),
            Self::Done { endpoint, serial, response } => {
                let outline = Outline::new(&DONE).endpoint(*endpoint).serial(*serial);
                body::put_control(out, outline, response)
            }
            Self::Part { endpoint, serial, response } => {
                let outline = Outline::new(&PART).endpoint(*endpoint).serial(*serial);
                body::put_control(out, outline, response)
            }
            Self::Error { endpoint, serial, failure } => {
                let outline = Outline::new(&ERROR).endpoint(*endpoint).serial(*serial);
                body::put_control(out, outline, failure)
            }
            Self::Receipt { id, receipt } => {
                encode_receipt(out, *id, receipt);
                Ok(())
            }
            Self::Refused { id, failure } => {
                body::put_control(out, outline(&REFUSED, *id), failure)
            }
            Self::Message(message) => {
                encode_message(out, &message.head, &message.attributes, &message.payload)
            }
            Self::Messages(messages) => {
                messages.encode(out);
                Ok(())
            }
            Self::Receipts(sends) => sends.encode(out),
            Self::Notice { endpoint, notice } => {
                let charged = if notice.is_charged() { CHARGED } else { 0 };
                let outline = Outline::new(&NOTICE).flags(charged).endpoint(*endpoint);
                body::put_with(out, outline, |out| notice.encode(out))
            }
            Self::Writable { endpoint, serial } => {
                let outline = Outline::new(&WRITABLE).endpoint(*endpoint).serial(*serial);
                body::put(out, outline, &[]);
                Ok(())
            }
            Self::Completed(range) => {
                let mut fixed = [0; COMPLETED.fixed];
                fixed[0..4].copy_from_slice(&range.first.to_le_bytes());
                fixed[4..8].copy_from_slice(&range.last.to_le_bytes());
                let copied = if range.copied { COPIED } else { 0 };
                body::put(out, Outline::new(&COMPLETED).flags(copied), &fixed);
                Ok(())
            }
            Self::Memory { id, kind, length, descriptors } => {
                let mut fixed = [0; MEMORY.fixed];
                fixed[0..4].copy_from_slice(&id.to_le_bytes());
                fixed[4] = kind.number();
                fixed[8..16].copy_from_slice(&length.to_le_bytes());
                body::put(out, Outline::new(&MEMORY).descriptors(*descriptors), &fixed);
                Ok(())
            }
            Self::Forget { id } => {
                body::put(out, Outline::new(&FORGET), &id.to_le_bytes());
                Ok(())
            }
            Self::Moved { hold, payload } => body::put_with(out, Outline::new(&MOVED), |out| {
                out.extend_from_slice(&hold.to_le_bytes());
                out.extend_from_slice(payload);
            }),
            Self::DescriptorsTaken => {
                body::put(out, Outline::new(&both::DESCRIPTORS_TAKEN_SHAPE), &[]);
                Ok(())
            }
            Self::Rings(rings) => {
                rings.encode(out);
                Ok(())
            }
            Self::Goodbye(goodbye) => {
                body::put_control(out, Outline::new(&both::GOODBYE_SHAPE), goodbye)
            }
        }
    }

    /// The kinds with a CBOR body. Not inlined: what serde needs on the stack would be paid for by
    /// every MESSAGE.
    #[inline(never)]
    fn decode_control(header: &Header, bytes: &[u8]) -> Result<Self, WireError> {
        let name = header.shape.name;
        let endpoint = header.endpoint();
        Ok(match header.shape.kind {
            kind::WELCOME => Self::Welcome(body::control(name, bytes)?),
            kind::REFUSED => {
                Self::Refused { id: header.send_id(), failure: body::control(name, bytes)? }
            }
            kind::DONE => Self::Done {
                endpoint,
                serial: header.serial(),
                response: body::control(name, bytes)?,
            },
            kind::PART => Self::Part {
                endpoint,
                serial: header.serial(),
                response: body::control(name, bytes)?,
            },
            kind::ERROR => Self::Error {
                endpoint,
                serial: header.serial(),
                failure: body::control(name, bytes)?,
            },
            kind::NOTICE => Self::Notice {
                endpoint,
                notice: Notice::decode(bytes, header.flags & CHARGED != 0)
                    .map_err(|problem| WireError::Body { frame: name, problem })?,
            },
            both::GOODBYE => Self::Goodbye(body::control(name, bytes)?),
            kind => unreachable!("kind {kind:#04x} has a shape and no decoder"),
        })
    }

    #[inline]
    fn decode_message(header: &Header, unread: &mut BytesMut) -> Result<Option<Self>, WireError> {
        let layout = check_message(header, &unread[..header.length])?;
        let head = checked_head(&unread[..header.length]);
        let block = layout.payload_at - layout.attributes_at;
        let (attributes, payload) =
            body::take_tail(unread, layout.attributes_at, header.length, block);
        Ok(Some(Self::Message(Box::new(MessageFrame { head, attributes, payload }))))
    }
}

/// Where the parts of a MESSAGE lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) length: usize,
    pub(super) attributes_at: usize,
    pub(super) payload_at: usize,
}

/// Whether the first frame of `unread` is a MESSAGE.
#[inline]
pub(super) fn is_message(unread: &[u8]) -> bool {
    unread.get(KIND_OFFSET) == Some(&kind::MESSAGE)
}

/// Whether the first frame of `unread` is a MESSAGES.
#[inline]
pub(super) fn is_messages(unread: &[u8]) -> bool {
    unread.get(KIND_OFFSET) == Some(&kind::MESSAGES)
}

/// How long the frame is that `unread` begins with, if it is a [plain](is_plain) MESSAGE and has come
/// whole. It is not checked.
#[inline]
pub(super) fn plain_length(unread: &[u8]) -> Option<usize> {
    if !is_message(unread) || !is_plain(unread) {
        return None;
    }
    let length = usize::try_from(u32_at(unread, 0)).ok()?;
    (HEADER_BYTES + MESSAGE.fixed..=unread.len()).contains(&length).then_some(length)
}

/// Checks the MESSAGE that `unread` begins with; `None` if it has not come whole.
#[inline]
pub(super) fn message_layout(unread: &[u8]) -> Result<Option<Layout>, WireError> {
    let Some(header) = Header::decode(unread, shape_of)? else {
        return Ok(None);
    };
    match unread.get(..header.length) {
        Some(frame) => check_message(&header, frame).map(Some),
        None => Ok(None),
    }
}

/// Checks what a MESSAGE has beyond its header.
#[inline]
fn check_message(header: &Header, frame: &[u8]) -> Result<Layout, WireError> {
    let name = header.shape.name;
    if role_of(header.flags, u64_at(frame, GROUP_AT)).is_none() {
        let given = header.flags.into();
        return Err(WireError::Value { frame: name, field: "combination of flags", given });
    }
    let lost = u16_at(frame, LOST_AT);
    if lost > 1 {
        return Err(WireError::Value {
            frame: name,
            field: "descriptors lost",
            given: lost.into(),
        });
    }
    MESSAGE.all_flags(header.flags, frame[FURTHER_AT])?;
    body::zero(name, "reserved", u32_at(frame, FURTHER_AT) >> 8)?;
    let mut attributes_at = HEADER_BYTES + MESSAGE.fixed;
    if header.flags & MISSED != 0 {
        let gap = frame.get(attributes_at..attributes_at + GAP_BYTES).ok_or(WireError::Length {
            frame: "MESSAGE after a gap",
            given: header.length,
            least: attributes_at + GAP_BYTES,
            most: MAX_FRAME_BYTES,
        })?;
        decode_gap(name, gap)?;
        attributes_at += GAP_BYTES;
    }
    if header.flags & PEER != 0 {
        frame.get(attributes_at..attributes_at + PEER_BYTES).ok_or(WireError::Length {
            frame: "MESSAGE through a peer endpoint",
            given: header.length,
            least: attributes_at + PEER_BYTES,
            most: MAX_FRAME_BYTES,
        })?;
        attributes_at += PEER_BYTES;
    }
    let block = body::attributes(name, &frame[attributes_at..], u16_at(frame, BLOCK_AT))?;
    if is_apart(frame) {
        Placed::decode(&frame[attributes_at + block..])?;
    }
    Ok(Layout { length: header.length, attributes_at, payload_at: attributes_at + block })
}

/// The head of a MESSAGE that was checked.
#[inline]
pub(super) fn checked_head(frame: &[u8]) -> MessageHead {
    MessageHead {
        endpoint: endpoint_of(frame),
        sequence: sequence_of(frame),
        group: group_of(frame),
        name: name_of(frame),
        sender: EndpointId::from_raw(u64_at(frame, 32)),
        sender_serial: u64_at(frame, 40),
        commit_time: u64_at(frame, 48),
        deadline: u64_at(frame, 56),
        credentials: Credentials { uid: u32_at(frame, 64), pid: u32_at(frame, 68) },
        missed: gap_of(frame),
        retained: is_retained(frame),
        apart: is_apart(frame),
        lent: is_lent(frame),
        descriptors: frame[6],
        descriptors_lost: descriptors_lost_of(frame),
        role: role_in(frame),
        peer: peer_of(frame),
    }
}

/// The peer endpoint through which a checked MESSAGE came.
#[inline]
pub(super) fn peer_of(frame: &[u8]) -> Option<EndpointId> {
    let flags = frame[FLAGS_OFFSET];
    let gap = if flags & MISSED == 0 { 0 } else { GAP_BYTES };
    let at = HEADER_BYTES + MESSAGE.fixed + gap;
    (flags & PEER != 0).then(|| EndpointId::from_raw(u64_at(frame, at)))
}

/// What a MESSAGE that was checked is to its receiver.
#[inline]
pub(super) fn role_in(frame: &[u8]) -> Role {
    role_of(frame[FLAGS_OFFSET], u64_at(frame, GROUP_AT)).unwrap_or_default()
}

#[inline]
pub(super) fn endpoint_of(frame: &[u8]) -> Handle {
    Handle::from_raw(u32_at(frame, 8))
}

#[inline]
pub(super) fn sequence_of(frame: &[u8]) -> Sequence {
    Sequence::from_raw(u64_at(frame, 16))
}

#[inline]
pub(super) fn group_of(frame: &[u8]) -> Option<GroupId> {
    (frame[FLAGS_OFFSET] & UNICAST == 0).then(|| GroupId::from_raw(u64_at(frame, GROUP_AT)))
}

/// Whether a MESSAGE says nothing that only some say: it has no flags, and went to a group.
#[inline]
pub(super) fn is_plain(frame: &[u8]) -> bool {
    frame.len() >= HEADER_BYTES + MESSAGE.fixed
        && frame[FLAGS_OFFSET] == 0
        && frame[6] == 0
        && u16_at(frame, LOST_AT) == 0
        && u32_at(frame, FURTHER_AT) == 0
}

#[inline]
pub(super) fn name_of(frame: &[u8]) -> Option<NameId> {
    let (flags, id) = (frame[FLAGS_OFFSET], u64_at(frame, GROUP_AT));
    let says_name = flags & UNICAST != 0 && id != 0;
    let is_name = says_name && role_of(flags, id).is_some_and(|role| !says_sequence(role));
    is_name.then(|| NameId::from_raw(id))
}

#[inline]
pub(super) fn descriptors_lost_of(frame: &[u8]) -> bool {
    u16_at(frame, LOST_AT) == 1
}

#[inline]
pub(super) fn is_retained(frame: &[u8]) -> bool {
    frame[FLAGS_OFFSET] & RETAINED != 0
}

/// Whether a reference stands in the place of the payload.
#[inline]
pub(super) fn is_apart(frame: &[u8]) -> bool {
    frame[FURTHER_AT] & APART != 0
}

/// Whether the payload was lent.
#[inline]
pub(super) fn is_lent(frame: &[u8]) -> bool {
    frame[FURTHER_AT] & LENT != 0
}

#[inline]
pub(super) fn gap_of(frame: &[u8]) -> Option<Gap> {
    (frame[FLAGS_OFFSET] & MISSED != 0).then(|| read_gap(&frame[HEADER_BYTES + MESSAGE.fixed..]))
}

/// Appends a RECEIPT.
pub fn encode_receipt(out: &mut BytesMut, id: SendId, receipt: &Receipt) {
    let mut fixed = [0; RECEIPT.fixed];
    write_receipt(&mut fixed, receipt);
    fixed[28..32].copy_from_slice(&receipt.dropped.to_le_bytes());
    body::put(out, outline(&RECEIPT, id), &fixed);
}

/// Writes what a RECEIPT and a RECEIPTS have in common.
pub(super) fn write_receipt(fixed: &mut [u8], receipt: &Receipt) {
    fixed[0..8].copy_from_slice(&receipt.sequence.get().to_le_bytes());
    fixed[8..16].copy_from_slice(&receipt.sender_serial.to_le_bytes());
    fixed[16..24].copy_from_slice(&receipt.after.get().to_le_bytes());
    fixed[24..28].copy_from_slice(&receipt.recipients.to_le_bytes());
}

/// Writes what a MESSAGE and a MESSAGES have in common behind the header.
#[inline(always)]
pub(super) fn write_common(place: &mut [u8], head: &MessageHead, group: u64) {
    place[16..24].copy_from_slice(&head.sequence.get().to_le_bytes());
    place[24..32].copy_from_slice(&group.to_le_bytes());
    place[32..40].copy_from_slice(&head.sender.get().to_le_bytes());
    place[40..48].copy_from_slice(&head.sender_serial.to_le_bytes());
    place[48..56].copy_from_slice(&head.commit_time.to_le_bytes());
    place[56..64].copy_from_slice(&head.deadline.to_le_bytes());
    place[64..68].copy_from_slice(&head.credentials.uid.to_le_bytes());
    place[68..72].copy_from_slice(&head.credentials.pid.to_le_bytes());
}

/// Appends all of a MOVED but its payload, which the caller writes next, of just this length.
///
/// # Panics
///
/// The payload is longer than a frame can hold.
pub fn encode_moved_head(out: &mut BytesMut, hold: u32, payload_bytes: usize) {
    let body = u32::try_from(payload_bytes).ok().and_then(|bytes| bytes.checked_add(4));
    let body = body.filter(|body| *body as usize <= MOVED.most);
    let mut place = [0; HEADER_BYTES + MOVED.fixed];
    Outline::new(&MOVED).write(&mut place, body.expect("payloads are shorter than frames"));
    place[HEADER_BYTES..].copy_from_slice(&hold.to_le_bytes());
    out.extend_from_slice(&place);
}

/// Appends a MESSAGE without taking ownership of anything, and without an allocation but `out`'s
/// own.
///
/// Inlined, so that who knows that a message has no gap and no peer pays for none.
///
/// # Errors
///
/// The payload is longer than a frame can hold; `out` is as it was.
#[inline(always)]
pub fn encode_message(
    out: &mut BytesMut,
    head: &MessageHead,
    attributes: &Attributes,
    payload: &[u8],
) -> Result<(), EncodeError> {
    put_message_head(out, head, attributes, payload.len(), payload.len())?;
    out.extend_from_slice(payload);
    Ok(())
}

/// Appends all of a MESSAGE but its payload, which the caller writes next, of just this length: so
/// a long payload goes to the socket from where it lies, to any number of recipients.
///
/// # Errors
///
/// As [`encode_message`].
pub fn encode_message_head(
    out: &mut BytesMut,
    head: &MessageHead,
    attributes: &Attributes,
    payload_bytes: usize,
) -> Result<(), EncodeError> {
    put_message_head(out, head, attributes, payload_bytes, 0)
}

/// How long the frame of such a message is.
#[must_use]
pub fn message_bytes(head: &MessageHead, attributes: &Attributes, payload_bytes: usize) -> usize {
    HEADER_BYTES + MESSAGE.fixed + extra_bytes(head) + attributes.encoded().len() + payload_bytes
}

/// Bytes of what stands between the fixed part and the attributes.
#[inline]
fn extra_bytes(head: &MessageHead) -> usize {
    let gap = if head.missed.is_some() { GAP_BYTES } else { 0 };
    let peer = if head.peer.is_some() { PEER_BYTES } else { 0 };
    gap + peer
}

/// Appends header, fixed part, gap, peer endpoint and attributes, and makes room for `more` bytes.
///
/// They are written where they stay: a copy of what has just been written in parts waits for the
/// writes.
#[inline(always)]
fn put_message_head(
    out: &mut BytesMut,
    head: &MessageHead,
    attributes: &Attributes,
    payload_bytes: usize,
    more: usize,
) -> Result<(), EncodeError> {
    let extra = extra_bytes(head);
    let (block, body) = body::tail_lengths(&MESSAGE, extra, attributes, payload_bytes)?;
    let descriptors = body::checked_descriptors(&MESSAGE, head.descriptors)?;
    let missed = if head.missed.is_some() { MISSED } else { 0 };
    let unicast = if head.group.is_none() { UNICAST } else { 0 };
    let name = head.name.map_or(0, NameId::get);
    let through_peer = if head.peer.is_some() { PEER } else { 0 };
    let (role, group) = match head.role {
        Role::Plain => (0, head.group.map_or(name, GroupId::get)),
        Role::Request { first: None } => (REQUEST, name),
        Role::Request { first: Some(first) } => (REQUEST | REPEATED, first.get()),
        Role::Reply { request, refusal: false } => (REPLY, request.get()),
        Role::Reply { request, refusal: true } => (REPLY | REFUSAL, request.get()),
    };
    let retained = if head.retained { RETAINED } else { 0 };
    let used = HEADER_BYTES + MESSAGE.fixed + extra;
    let attributes = attributes.encoded();
    let start = out.len();
    out.reserve(used + attributes.len() + more);
    out.extend_from_slice(&EMPTY_HEAD[..used]);
    let place = &mut out[start..];
    Outline::new(&MESSAGE)
        .flags(missed | unicast | retained | role | through_peer)
        .descriptors(descriptors)
        .endpoint(head.endpoint)
        .write(place, body);
    write_common(place, head, group);
    place[72..74].copy_from_slice(&block.to_le_bytes());
    place[74..76].copy_from_slice(&u16::from(head.descriptors_lost).to_le_bytes());
    let apart = if head.apart { APART } else { 0 };
    place[FURTHER_AT] = if head.lent { apart | LENT } else { apart };
    if let Some(gap) = head.missed {
        place[80..88].copy_from_slice(&gap.count.to_le_bytes());
        place[88..96].copy_from_slice(&gap.first.get().to_le_bytes());
        place[96..104].copy_from_slice(&gap.last.get().to_le_bytes());
    }
    if let Some(peer) = head.peer {
        place[used - PEER_BYTES..used].copy_from_slice(&peer.get().to_le_bytes());
    }
    if !attributes.is_empty() {
        out.extend_from_slice(attributes);
    }
    Ok(())
}

/// Whether the field of the group holds a request's sequence.
#[inline]
fn says_sequence(role: Role) -> bool {
    matches!(role, Role::Reply { .. } | Role::Request { first: Some(_) })
}

/// What the flags of a MESSAGE make of it; none if they do not go together.
#[inline]
fn role_of(flags: u8, sequence: u64) -> Option<Role> {
    let sequence = Sequence::from_raw(sequence);
    let refusal = flags & REFUSAL != 0;
    Some(match flags & (UNICAST | REQUEST | REPLY | REPEATED | REFUSAL) {
        0 | UNICAST => Role::Plain,
        flags if flags == UNICAST | REQUEST => Role::Request { first: None },
        flags if flags == UNICAST | REQUEST | REPEATED => Role::Request { first: Some(sequence) },
        flags if flags & !REFUSAL == UNICAST | REPLY => Role::Reply { request: sequence, refusal },
        _ => return None,
    })
}

fn decode_gap(frame: &'static str, bytes: &[u8]) -> Result<Gap, WireError> {
    let (count, first, last) = (u64_at(bytes, 0), u64_at(bytes, 8), u64_at(bytes, 16));
    if count == 0 || first > last {
        return Err(WireError::Value {
            frame,
            field: "count of a gap from first to last",
            given: count,
        });
    }
    Ok(read_gap(bytes))
}

fn read_gap(bytes: &[u8]) -> Gap {
    Gap {
        count: u64_at(bytes, 0),
        first: Sequence::from_raw(u64_at(bytes, 8)),
        last: Sequence::from_raw(u64_at(bytes, 16)),
    }
}

pub(super) fn shape_of(kind: u8) -> Option<&'static Shape> {
    Some(match kind {
        kind::WELCOME => &WELCOME,
        kind::DONE => &DONE,
        kind::ERROR => &ERROR,
        kind::PART => &PART,
        kind::RECEIPT => &RECEIPT,
        kind::REFUSED => &REFUSED,
        kind::MESSAGE => &MESSAGE,
        kind::MESSAGES => &MESSAGES,
        kind::RECEIPTS => &RECEIPTS,
        kind::NOTICE => &NOTICE,
        kind::WRITABLE => &WRITABLE,
        kind::COMPLETED => &COMPLETED,
        kind::MEMORY => &MEMORY,
        kind::FORGET => &FORGET,
        kind::MOVED => &MOVED,
        both::DESCRIPTORS_TAKEN => &both::DESCRIPTORS_TAKEN_SHAPE,
        both::GOODBYE => &both::GOODBYE_SHAPE,
        _ => return BrokerRings::shape_of(kind),
    })
}

mod kind {
    pub(super) const WELCOME: u8 = 0x81;
    pub(super) const DONE: u8 = 0x82;
    pub(super) const ERROR: u8 = 0x83;
    pub(super) const PART: u8 = 0x84;
    pub(super) const RECEIPT: u8 = 0x90;
    pub(super) const REFUSED: u8 = 0x91;
    pub(super) const MESSAGE: u8 = 0x92;
    pub(super) const NOTICE: u8 = 0x93;
    pub(super) const WRITABLE: u8 = 0x94;
    pub(super) const MESSAGES: u8 = 0x95;
    pub(super) const RECEIPTS: u8 = 0x96;
    pub(super) const COMPLETED: u8 = 0xa8;
    pub(super) const MEMORY: u8 = 0xa9;
    pub(super) const FORGET: u8 = 0xaa;
    pub(super) const MOVED: u8 = 0xab;
}

/// Flag of MESSAGE: a gap follows the fixed part.
const MISSED: u8 = 1;
/// Flag of MESSAGE: it was sent to this endpoint or to a name of it, not to a group.
const UNICAST: u8 = 2;
/// Flag of MESSAGE: the group retained it, and it takes no place of the queue.
const RETAINED: u8 = 4;
/// Flag of NOTICE: it takes a place of the queue, as a message of no bytes.
const CHARGED: u8 = 1;
/// Flag of COMPLETED: the bytes were copied after all.
const COPIED: u8 = 1;
/// Further flag of MESSAGE and MESSAGES: the payload lies apart, or all messages do.
pub(super) const APART: u8 = 1;
/// Further flag of MESSAGE: the payload was lent, wherever it is now.
const LENT: u8 = 2;
const REQUEST: u8 = 8;
const REPLY: u8 = 16;
const REPEATED: u8 = 32;
const REFUSAL: u8 = 128;
/// Flag of MESSAGE: it came through a peer endpoint, whose id follows the fixed part and the gap.
const PEER: u8 = 64;
/// The peer endpoint's id.
const PEER_BYTES: usize = 8;
/// Count, first and last sequence.
const GAP_BYTES: usize = 24;
/// Where a MESSAGE has its group, the length of its attributes, and "descriptors lost".
const GROUP_AT: usize = HEADER_BYTES + 8;
const BLOCK_AT: usize = HEADER_BYTES + 56;
const LOST_AT: usize = HEADER_BYTES + 58;
/// Where it has its flags beyond the header's eight.
pub(super) const FURTHER_AT: usize = HEADER_BYTES + 60;
/// All of a MESSAGE before its attributes, with a gap and a peer endpoint.
const MESSAGE_HEAD_BYTES: usize = HEADER_BYTES + MESSAGE.fixed + GAP_BYTES + PEER_BYTES;
static EMPTY_HEAD: [u8; MESSAGE_HEAD_BYTES] = [0; MESSAGE_HEAD_BYTES];
/// The longest DONE.
const MAX_DONE_BODY: usize = 1 << 20;
/// The longest PART.
const MAX_PART_BODY: usize = 64 << 10;
/// The longest NOTICE.
const MAX_NOTICE_BODY: usize = 64 << 10;

const WELCOME: Shape =
    Shape { most: both::MAX_SMALL_BODY, ..Shape::plain(kind::WELCOME, "WELCOME") };
const DONE: Shape =
    Shape { endpoint: true, serial: true, most: MAX_DONE_BODY, ..Shape::plain(kind::DONE, "DONE") };
const PART: Shape =
    Shape { endpoint: true, serial: true, most: MAX_PART_BODY, ..Shape::plain(kind::PART, "PART") };
const ERROR: Shape = Shape {
    endpoint: true,
    serial: true,
    most: both::MAX_SMALL_BODY,
    ..Shape::plain(kind::ERROR, "ERROR")
};
const RECEIPT: Shape = Shape {
    endpoint: true,
    lane: true,
    serial: true,
    ..Shape::fixed(kind::RECEIPT, "RECEIPT", 32)
};
const REFUSED: Shape = Shape {
    endpoint: true,
    lane: true,
    serial: true,
    most: both::MAX_SMALL_BODY,
    ..Shape::plain(kind::REFUSED, "REFUSED")
};
const MESSAGE: Shape = Shape {
    flags: MISSED | UNICAST | RETAINED | REQUEST | REPLY | REPEATED | PEER | REFUSAL,
    further: APART | LENT,
    descriptors: true,
    endpoint: true,
    fixed: 64,
    most: MAX_FRAME_BYTES - HEADER_BYTES,
    ..Shape::plain(kind::MESSAGE, "MESSAGE")
};
pub(super) const MESSAGES: Shape = Shape {
    further: APART,
    endpoint: true,
    fixed: MESSAGE.fixed + 8,
    most: MESSAGE.fixed + 8 + MAX_BATCH_BYTES,
    ..Shape::plain(kind::MESSAGES, "MESSAGES")
};
pub(super) const RECEIPTS: Shape = Shape {
    endpoint: true,
    lane: true,
    fixed: 36,
    most: 32 + MAX_BATCH_BYTES / 2,
    ..Shape::plain(kind::RECEIPTS, "RECEIPTS")
};
const NOTICE: Shape = Shape {
    flags: CHARGED,
    endpoint: true,
    most: MAX_NOTICE_BODY,
    ..Shape::plain(kind::NOTICE, "NOTICE")
};
const COMPLETED: Shape = Shape { flags: COPIED, ..Shape::fixed(kind::COMPLETED, "COMPLETED", 8) };
const MEMORY: Shape = Shape { descriptors: true, ..Shape::fixed(kind::MEMORY, "MEMORY", 16) };
const FORGET: Shape = Shape::fixed(kind::FORGET, "FORGET", 4);
const MOVED: Shape =
    Shape { fixed: 4, most: MAX_FRAME_BYTES - HEADER_BYTES, ..Shape::plain(kind::MOVED, "MOVED") };
const WRITABLE: Shape =
    Shape { endpoint: true, serial: true, ..Shape::plain(kind::WRITABLE, "WRITABLE") };
