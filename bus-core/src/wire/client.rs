//! Frames from a client to the broker.

use std::fmt;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::batch::OF_NO_ACCOUNT;
use super::body::{self, both};
use super::header::{Header, KIND_OFFSET, Outline, Shape, put_words, u16_at, u32_at, u64_at};
use super::{
    ClientRings, ControlError, EncodeError, Goodbye, HEADER_BYTES, Handle, Hello, LaneNumber, Lent,
    MAX_FRAME_BYTES, MAX_RELEASED, Request, Serial, WireError,
};
use crate::{Attributes, Destination, EndpointId, GroupId, MAX_ATTRIBUTES_BYTES, NameId, Sequence};

/// One frame from a client to the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// The greeting: the first frame, once.
    Hello(Hello),
    /// Asks for something outside the order of sends; answered by DONE or ERROR.
    Call {
        /// Who asks.
        endpoint: Handle,
        /// Repeated in the answer.
        serial: Serial,
        /// What is asked.
        request: Request,
    },
    /// A CALL whose frame is whole and whose body cannot be read. The stream is as good as before:
    /// answer ERROR with `Failure::from(&problem)` and go on.
    BadCall {
        /// Who asks.
        endpoint: Handle,
        /// Repeated in the answer.
        serial: Serial,
        /// What is wrong.
        problem: ControlError,
        /// The body as it came.
        body: Bytes,
    },
    /// A message; answered by exactly one RECEIPT or REFUSED.
    Send(SendFrame),
    /// Gives up a SEND that may still wait. That SEND's own answer says what became of it.
    Cancel(SendId),
    /// Ends the refusal of a lane's later sends after a non-blocking one was refused (G3).
    Resume {
        /// Whose lane.
        endpoint: Handle,
        /// Which.
        lane: LaneNumber,
    },
    /// Asks for all answers that were put off (see [`SendFlags::RECEIPT_MAY_WAIT`]).
    Flush,
    /// Messages taken by the application: their places are free again.
    Credit {
        /// Whose queue.
        endpoint: Handle,
        /// How many MESSAGE frames.
        messages: u32,
        /// Their charged bytes: attributes and payload.
        bytes: u64,
    },
    /// Asks to be told, once, when a send would not block; answered by WRITABLE or ERROR.
    Watch {
        /// Who asks.
        endpoint: Handle,
        /// Repeated in the answer.
        serial: Serial,
        /// Where the send would go.
        destination: Destination,
        /// What it would say of itself, for filters.
        attributes: Attributes,
    },
    /// Takes a WATCH back. An answer may already be under way.
    Unwatch {
        /// Who asked.
        endpoint: Handle,
        /// The WATCH's serial.
        serial: Serial,
    },
    /// Payloads that lie apart and that the client reads no more: the numbers that their MESSAGEs
    /// gave them.
    Release(Vec<u32>),
    /// Asks for the bytes of a payload that lies where the client cannot look; answered by MOVED.
    Fetch {
        /// The number that its MESSAGE gave it.
        hold: u32,
    },
    /// The descriptors of the last frame that had some are off the socket.
    DescriptorsTaken,
    /// About rings in shared memory.
    Rings(ClientRings),
    /// The last frame.
    Goodbye(Goodbye),
}

/// Which SEND: its answer and its CANCEL say the same three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SendId {
    /// Who sends.
    pub endpoint: Handle,
    /// In which lane.
    pub lane: LaneNumber,
    /// The client's number for it.
    pub serial: Serial,
}

/// A message on its way to the broker.
#[derive(Clone, PartialEq, Eq)]
pub struct SendFrame {
    /// What SEND says beside the message itself.
    pub head: SendHead,
    /// Key, operation, content type, fields.
    pub attributes: Attributes,
    /// The bytes.
    pub payload: Bytes,
}

/// What SEND says beside the message itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendHead {
    /// Who sends, in which lane, under which serial.
    pub id: SendId,
    /// Where it goes.
    pub destination: Destination,
    /// How it is sent.
    pub flags: SendFlags,
    /// Nanoseconds since the Unix epoch after which it is of no use; 0 for never. Version 1
    /// carries it and does nothing with it.
    pub deadline: u64,
    /// How many descriptors come with the frame's first byte.
    pub descriptors: u8,
}

bitflags::bitflags! {
    /// How a message is sent.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SendFlags: u16 {
        /// Refuse with `would-block` rather than wait for room.
        const NONBLOCK = 1;
        /// Not refused because an earlier one of its lane was (G3).
        const INDEPENDENT = 2;
        /// It asks for a reply.
        const REQUEST = 16;
        /// With [`REQUEST`](Self::REQUEST): it may be given to another endpoint if the first one
        /// dies without having answered.
        const REPEATABLE = 64;
        /// With a [`Caller`](Destination::Caller) as its destination: the reply says no. The same
        /// bit as [`REPEATABLE`](Self::REPEATABLE), which a reply cannot be.
        const REFUSAL = 64;
        /// Nobody waits for the receipt: it goes out with the next thing that this client is told,
        /// or after a short while. [`ClientFrame::Flush`] asks for it. A refusal does not wait.
        const RECEIPT_MAY_WAIT = 128;
        /// The payload lies apart: in its place stands a [`Lent`](super::Lent).
        const APART = 256;
    }
}

impl fmt::Debug for SendFrame {
    /// Says how long the payload is: payloads never go to logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendFrame")
            .field("head", &self.head)
            .field("attributes", &self.attributes)
            .field("payload", &format_args!("{} bytes", self.payload.len()))
            .finish()
    }
}

/// What a frame is, as far as its beginning says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameHead {
    /// A SEND.
    Send(SendHead),
    /// A CALL.
    Call {
        /// On behalf of which endpoint.
        endpoint: Handle,
        /// What its answer will name.
        serial: Serial,
    },
    /// Any other.
    Other,
}

impl ClientFrame {
    /// Takes the first frame off `unread`; `None` if it has not come whole, and then nothing is
    /// taken.
    ///
    /// A message of up to [`COPY_BYTES`](super::COPY_BYTES) is copied out; a longer one keeps the
    /// memory of `unread` alive. See [`bytes_needed`](Self::bytes_needed) for how to give it
    /// memory of its own.
    ///
    /// ```
    /// use bus_core::wire::{ClientFrame, Handle, Request, Serial};
    /// use bytes::BytesMut;
    ///
    /// let call = ClientFrame::Call {
    ///     endpoint: Handle::FIRST,
    ///     serial: Serial::FIRST,
    ///     request: Request::Ping,
    /// };
    /// let mut bytes = BytesMut::new();
    /// call.encode(&mut bytes)?;
    /// bytes.extend_from_slice(&[0xff]);
    /// assert_eq!(ClientFrame::decode(&mut bytes)?, Some(call));
    /// assert_eq!(bytes[..], [0xff], "the rest stays for the next call");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
        let name = header.shape.name;
        let frame = match header.shape.kind {
            kind::SEND => return Self::decode_send(&header, unread),
            kind::CANCEL => Self::Cancel(header.send_id()),
            kind::RESUME => Self::Resume { endpoint: header.endpoint(), lane: header.lane() },
            kind::FLUSH => Self::Flush,
            kind::CREDIT => {
                body::zero(name, "reserved", u32_at(bytes, 4))?;
                Self::Credit {
                    endpoint: header.endpoint(),
                    messages: u32_at(bytes, 0),
                    bytes: u64_at(bytes, 8),
                }
            }
            kind::WATCH => {
                check_flags(&header)?;
                let (fixed, block) = bytes.split_at(WATCH.fixed);
                let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
                body::attributes(name, block, length)?;
                Self::Watch {
                    endpoint: header.endpoint(),
                    serial: header.serial(),
                    destination: destination(&header, u64_at(fixed, 0)),
                    attributes: Attributes::from_checked(Bytes::copy_from_slice(block)),
                }
            }
            kind::UNWATCH => Self::Unwatch { endpoint: header.endpoint(), serial: header.serial() },
            kind::FETCH => Self::Fetch { hold: u32_at(bytes, 0) },
            kind::RELEASE => {
                let (numbers, rest) = bytes.as_chunks::<4>();
                body::zero(name, "remainder of the length by 4", body::small(rest.len()))?;
                Self::Release(numbers.iter().map(|number| u32::from_le_bytes(*number)).collect())
            }
            both::DESCRIPTORS_TAKEN => Self::DescriptorsTaken,
            kind => match ClientRings::decode(kind) {
                Some(rings) => Self::Rings(rings),
                None => Self::decode_control(&header, bytes)?,
            },
        };
        body::pass(unread, header.length);
        Ok(Some(frame))
    }

    /// How many bytes `unread` must have before [`decode`](Self::decode) can get further: the
    /// whole first frame, or a header, if not even that is there.
    ///
    /// A reader whose buffer has less room than that takes a new one of just this size and moves
    /// the few bytes over; then a big message is read straight into the memory in which it stays.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode).
    pub fn bytes_needed(unread: &[u8]) -> Result<usize, WireError> {
        Ok(Header::decode(unread, shape_of)?.map_or(HEADER_BYTES, |header| header.length))
    }

    /// What the first frame in `unread` is, from its first [`HEAD_BYTES`](Self::HEAD_BYTES) alone:
    /// enough to refuse it without having kept it. None if less has come.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode).
    pub fn peek(unread: &[u8]) -> Result<Option<FrameHead>, WireError> {
        let Some(header) = Header::decode(unread, shape_of)? else {
            return Ok(None);
        };
        Ok(Some(match header.shape.kind {
            kind::SEND => match unread.get(HEADER_BYTES..Self::HEAD_BYTES) {
                Some(fixed) => FrameHead::Send(decode_send_head(&header, fixed)?),
                None => return Ok(None),
            },
            kind::CALL => FrameHead::Call { endpoint: header.endpoint(), serial: header.serial() },
            _ => FrameHead::Other,
        }))
    }

    /// Bytes of a frame with which [`peek`](Self::peek) knows what it is.
    pub const HEAD_BYTES: usize = HEADER_BYTES + SEND.fixed;

    /// Appends the frame to `out`.
    ///
    /// # Errors
    ///
    /// It is longer than such a frame may be; `out` is as it was.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        match self {
            Self::Hello(hello) => body::put_control(out, Outline::new(&HELLO), hello),
            Self::Call { endpoint, serial, request } => {
                let outline = Outline::new(&CALL).endpoint(*endpoint).serial(*serial);
                body::put_control(out, outline, request)
            }
            Self::BadCall { endpoint, serial, body, .. } => {
                let outline = Outline::new(&CALL).endpoint(*endpoint).serial(*serial);
                body::put_with(out, outline, |out| out.extend_from_slice(body))
            }
            Self::Send(send) => encode_send(out, &send.head, &send.attributes, &send.payload),
            Self::Cancel(id) => {
                body::put(out, outline(&CANCEL, *id), &[]);
                Ok(())
            }
            Self::Resume { endpoint, lane } => {
                let outline = Outline::new(&RESUME).endpoint(*endpoint).lane(*lane);
                body::put(out, outline, &[]);
                Ok(())
            }
            Self::Flush => {
                body::put(out, Outline::new(&FLUSH), &[]);
                Ok(())
            }
            Self::Credit { endpoint, messages, bytes } => {
                let mut fixed = [0; CREDIT.fixed];
                fixed[0..4].copy_from_slice(&messages.to_le_bytes());
                fixed[8..16].copy_from_slice(&bytes.to_le_bytes());
                body::put(out, Outline::new(&CREDIT).endpoint(*endpoint), &fixed);
                Ok(())
            }
            Self::Watch { endpoint, serial, destination, attributes } => {
                let (flag, id) = destination_bits(*destination);
                let outline = Outline::new(&WATCH).flags(flag).endpoint(*endpoint).serial(*serial);
                body::put_with(out, outline, |out| {
                    out.extend_from_slice(&id.to_le_bytes());
                    out.extend_from_slice(attributes.encoded());
                })
            }
            Self::Unwatch { endpoint, serial } => {
                let outline = Outline::new(&UNWATCH).endpoint(*endpoint).serial(*serial);
                body::put(out, outline, &[]);
                Ok(())
            }
            Self::Fetch { hold } => {
                body::put(out, Outline::new(&FETCH), &hold.to_le_bytes());
                Ok(())
            }
            Self::Release(holds) => body::put_with(out, Outline::new(&RELEASE), |out| {
                holds.iter().for_each(|hold| out.extend_from_slice(&hold.to_le_bytes()));
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
    /// every SEND.
    #[inline(never)]
    fn decode_control(header: &Header, body: &[u8]) -> Result<Self, WireError> {
        let name = header.shape.name;
        Ok(match header.shape.kind {
            kind::HELLO => Self::Hello(body::control(name, body)?),
            kind::CALL => match Request::decode(body) {
                Ok(request) => {
                    Self::Call { endpoint: header.endpoint(), serial: header.serial(), request }
                }
                Err(problem) => Self::BadCall {
                    endpoint: header.endpoint(),
                    serial: header.serial(),
                    problem,
                    body: Bytes::copy_from_slice(body),
                },
            },
            both::GOODBYE => Self::Goodbye(body::control(name, body)?),
            kind => unreachable!("kind {kind:#04x} has a shape and no decoder"),
        })
    }

    #[inline]
    fn decode_send(header: &Header, unread: &mut BytesMut) -> Result<Option<Self>, WireError> {
        let name = header.shape.name;
        let (fixed, tail) = unread[HEADER_BYTES..header.length].split_at(SEND.fixed);
        let head = decode_send_head(header, fixed)?;
        let block = body::attributes(name, tail, u16_at(fixed, 16))?;
        if head.flags.contains(SendFlags::APART) {
            Lent::decode(&tail[block..])?;
        }
        let (attributes, payload) =
            body::take_tail(unread, HEADER_BYTES + SEND.fixed, header.length, block);
        Ok(Some(Self::Send(SendFrame { head, attributes, payload })))
    }
}

/// The SEND that `unread` begins with, if it has come whole and asks for nothing but to be delivered to
/// a group: its head, where its attributes, its payload and its end are. None says nothing of what
/// it is.
#[inline(always)]
pub(super) fn plain_send(unread: &[u8]) -> Option<(SendHead, usize, usize, usize)> {
    if unread.get(KIND_OFFSET) != Some(&kind::SEND) {
        return None;
    }
    let header = Header::decode(unread, shape_of).ok()??;
    let frame = unread.get(..header.length)?;
    let (fixed, tail) = frame[HEADER_BYTES..].split_at(SEND.fixed);
    let head = decode_send_head(&header, fixed).ok()?;
    let is_plain = OF_NO_ACCOUNT.contains(head.flags)
        && matches!(head.destination, Destination::Group(_))
        && head.deadline == 0
        && head.descriptors == 0;
    if !is_plain {
        return None;
    }
    let block = body::attributes(header.shape.name, tail, u16_at(fixed, 16)).ok()?;
    let attributes_at = HEADER_BYTES + SEND.fixed;
    Some((head, attributes_at, attributes_at + block, header.length))
}

/// What stands in a SEND before its attributes.
#[inline]
fn decode_send_head(header: &Header, fixed: &[u8]) -> Result<SendHead, WireError> {
    let flags = SEND.all_flags(header.flags, fixed[18])?;
    body::zero(header.shape.name, "reserved", fixed[19].into())?;
    check_flags(header)?;
    Ok(SendHead {
        id: header.send_id(),
        destination: destination(header, u64_at(fixed, 0)),
        flags: SendFlags::from_bits_truncate(flags),
        deadline: u64_at(fixed, 8),
        descriptors: header.descriptors,
    })
}

/// Appends a SEND without taking ownership of anything, and without an allocation but `out`'s own.
///
/// # Errors
///
/// The payload is longer than a frame can hold; `out` is as it was.
pub fn encode_send(
    out: &mut BytesMut,
    head: &SendHead,
    attributes: &Attributes,
    payload: &[u8],
) -> Result<(), EncodeError> {
    put_send_head(out, head, attributes, payload.len(), payload.len())?;
    out.extend_from_slice(payload);
    Ok(())
}

/// Appends all of a SEND but its payload, which the caller writes next, of just this length: so a
/// long payload goes to the socket from where it lies.
///
/// # Errors
///
/// As [`encode_send`].
pub fn encode_send_head(
    out: &mut BytesMut,
    head: &SendHead,
    attributes: &Attributes,
    payload_bytes: usize,
) -> Result<(), EncodeError> {
    put_send_head(out, head, attributes, payload_bytes, 0)
}

/// Appends header, fixed part and attributes, and makes room for `more` bytes.
#[inline(always)]
fn put_send_head(
    out: &mut BytesMut,
    head: &SendHead,
    attributes: &Attributes,
    payload_bytes: usize,
    more: usize,
) -> Result<(), EncodeError> {
    let (block, body) = body::tail_lengths(&SEND, 0, attributes, payload_bytes)?;
    let (flag, id) = destination_bits(head.destination);
    let [flags, further] = head.flags.bits().to_le_bytes();
    let [first, second] = outline(&SEND, head.id)
        .flags(flags | flag)
        .descriptors(body::checked_descriptors(&SEND, head.descriptors)?)
        .words(body);
    out.reserve(HEADER_BYTES + SEND.fixed + usize::from(block) + more);
    put_words(out, [first, second, id, head.deadline]);
    out.put_u32_le(u32::from(block) | u32::from(further) << 16);
    out.extend_from_slice(attributes.encoded());
    Ok(())
}

impl Header {
    /// Which SEND a frame is about, of a kind that has lane and serial.
    pub(super) fn send_id(&self) -> SendId {
        SendId { endpoint: self.endpoint(), lane: self.lane(), serial: self.serial() }
    }
}

/// The header of a frame about one SEND.
pub(super) fn outline(shape: &'static Shape, id: SendId) -> Outline {
    Outline::new(shape).endpoint(id.endpoint).lane(id.lane).serial(id.serial)
}

fn destination(header: &Header, id: u64) -> Destination {
    if header.flags & TO_ENDPOINT != 0 {
        Destination::Endpoint(EndpointId::from_raw(id))
    } else if header.flags & REPLY != 0 {
        Destination::Caller(Sequence::from_raw(id))
    } else if header.flags & TO_NAME != 0 {
        Destination::Name(NameId::from_raw(id))
    } else {
        Destination::Group(GroupId::from_raw(id))
    }
}

/// One destination, and nothing but what can be said of it.
fn check_flags(header: &Header) -> Result<(), WireError> {
    let is = |flag: u8| header.flags & flag != 0;
    let (request, reply) = (is(lower(SendFlags::REQUEST)), is(REPLY));
    let either = is(lower(SendFlags::REPEATABLE));
    let destinations = [reply, is(TO_ENDPOINT), is(TO_NAME)].into_iter().filter(|is| *is);
    if destinations.count() > 1 || (reply && request) || (either && !request && !reply) {
        let (frame, given) = (header.shape.name, header.flags.into());
        return Err(WireError::Value { frame, field: "combination of flags", given });
    }
    Ok(())
}

/// The flags that stand in the header.
const fn lower(flags: SendFlags) -> u8 {
    flags.bits().to_le_bytes()[0]
}

/// The flags that stand in the body.
const fn further(flags: SendFlags) -> u8 {
    flags.bits().to_le_bytes()[1]
}

fn destination_bits(destination: Destination) -> (u8, u64) {
    match destination {
        Destination::Group(id) => (0, id.get()),
        Destination::Endpoint(id) => (TO_ENDPOINT, id.get()),
        Destination::Caller(request) => (REPLY, request.get()),
        Destination::Name(id) => (TO_NAME, id.get()),
    }
}

fn shape_of(kind: u8) -> Option<&'static Shape> {
    Some(match kind {
        kind::HELLO => &HELLO,
        kind::CALL => &CALL,
        kind::SEND => &SEND,
        kind::CANCEL => &CANCEL,
        kind::RESUME => &RESUME,
        kind::FLUSH => &FLUSH,
        kind::CREDIT => &CREDIT,
        kind::WATCH => &WATCH,
        kind::UNWATCH => &UNWATCH,
        kind::RELEASE => &RELEASE,
        kind::FETCH => &FETCH,
        both::DESCRIPTORS_TAKEN => &both::DESCRIPTORS_TAKEN_SHAPE,
        both::GOODBYE => &both::GOODBYE_SHAPE,
        _ => return ClientRings::shape_of(kind),
    })
}

mod kind {
    pub(super) const HELLO: u8 = 0x01;
    pub(super) const CALL: u8 = 0x02;
    pub(super) const SEND: u8 = 0x10;
    pub(super) const CANCEL: u8 = 0x11;
    pub(super) const RESUME: u8 = 0x12;
    pub(super) const FLUSH: u8 = 0x17;
    pub(super) const CREDIT: u8 = 0x13;
    pub(super) const WATCH: u8 = 0x14;
    pub(super) const UNWATCH: u8 = 0x15;
    pub(super) const RELEASE: u8 = 0x28;
    pub(super) const FETCH: u8 = 0x29;
}

/// Flag of SEND and WATCH: the destination is an endpoint.
const TO_ENDPOINT: u8 = 4;
/// Flag of SEND: the destination is the sequence of the request that it answers.
const REPLY: u8 = 32;
/// Flag of SEND and WATCH: the destination is a well-known name.
const TO_NAME: u8 = 8;
/// The longest CALL.
const MAX_CALL_BODY: usize = 64 << 10;

const HELLO: Shape = Shape { most: both::MAX_SMALL_BODY, ..Shape::plain(kind::HELLO, "HELLO") };
const CALL: Shape =
    Shape { endpoint: true, serial: true, most: MAX_CALL_BODY, ..Shape::plain(kind::CALL, "CALL") };
const SEND: Shape = Shape {
    flags: lower(SendFlags::all()) | TO_ENDPOINT | TO_NAME | REPLY,
    further: further(SendFlags::all()),
    descriptors: true,
    endpoint: true,
    lane: true,
    serial: true,
    fixed: 20,
    most: MAX_FRAME_BYTES - HEADER_BYTES,
    ..Shape::plain(kind::SEND, "SEND")
};
const CANCEL: Shape =
    Shape { endpoint: true, lane: true, serial: true, ..Shape::plain(kind::CANCEL, "CANCEL") };
const RESUME: Shape = Shape { endpoint: true, lane: true, ..Shape::plain(kind::RESUME, "RESUME") };
const FLUSH: Shape = Shape::plain(kind::FLUSH, "FLUSH");
const CREDIT: Shape = Shape { endpoint: true, ..Shape::fixed(kind::CREDIT, "CREDIT", 16) };
const WATCH: Shape = Shape {
    flags: TO_ENDPOINT | TO_NAME,
    endpoint: true,
    serial: true,
    fixed: 8,
    most: 8 + MAX_ATTRIBUTES_BYTES,
    ..Shape::plain(kind::WATCH, "WATCH")
};
const FETCH: Shape = Shape::fixed(kind::FETCH, "FETCH", 4);
const RELEASE: Shape =
    Shape { fixed: 4, most: 4 * MAX_RELEASED, ..Shape::plain(kind::RELEASE, "RELEASE") };
const UNWATCH: Shape =
    Shape { endpoint: true, serial: true, ..Shape::plain(kind::UNWATCH, "UNWATCH") };
