//! What frames of both directions share: bodies, and the frames that either side may send.

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::header::{Outline, Shape};
use super::{COPY_BYTES, EncodeError, HEADER_BYTES, MAX_DESCRIPTORS, WireError, cbor, control};
use crate::Attributes;
use crate::attributes;

/// Frames that either side may send.
pub(super) mod both {
    use super::Shape;

    pub(in super::super) const DESCRIPTORS_TAKEN: u8 = 0x16;
    pub(in super::super) const GOODBYE: u8 = 0x1f;

    pub(in super::super) const DESCRIPTORS_TAKEN_SHAPE: Shape =
        Shape::plain(DESCRIPTORS_TAKEN, "DESCRIPTORS_TAKEN");
    pub(in super::super) const GOODBYE_SHAPE: Shape =
        Shape { most: MAX_SMALL_BODY, ..Shape::plain(GOODBYE, "GOODBYE") };

    /// The longest body of greetings, failures and farewells.
    pub(in super::super) const MAX_SMALL_BODY: usize = 4 << 10;
}

/// Reads a CBOR body that fills its frame.
pub(super) fn control<T: DeserializeOwned>(
    frame: &'static str,
    body: &[u8],
) -> Result<T, WireError> {
    control::decode(body).map_err(|problem| WireError::Body { frame, problem })
}

/// Checks the attributes at the start of `tail`, and gives the length of their block.
#[inline]
pub(super) fn attributes(
    frame: &'static str,
    tail: &[u8],
    length: u16,
) -> Result<usize, WireError> {
    let length = usize::from(length);
    let block = tail.get(..length).ok_or(WireError::AttributesCut {
        frame,
        given: length,
        left: tail.len(),
    })?;
    attributes::check(block).map_err(|problem| WireError::Attributes { frame, problem })?;
    Ok(length)
}

/// A length that is checked elsewhere, as a number to show.
pub(super) fn small(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Checks a field that means nothing yet.
#[inline]
pub(super) fn zero(frame: &'static str, field: &'static str, value: u32) -> Result<(), WireError> {
    if value == 0 { Ok(()) } else { Err(WireError::not_zero(frame, field, value)) }
}

/// Takes the frame of `length` bytes off `unread`, and gives its attributes, which were checked
/// and have `block` bytes from `at` on, and its payload, which is the rest.
#[inline]
pub(super) fn take_tail(
    unread: &mut BytesMut,
    at: usize,
    length: usize,
    block: usize,
) -> (Attributes, Bytes) {
    let mut tail = if length - at <= COPY_BYTES {
        let tail = Bytes::copy_from_slice(&unread[at..length]);
        pass(unread, length);
        tail
    } else {
        unread.split_to(length).freeze().split_off(at)
    };
    if block == 0 {
        return (Attributes::EMPTY, tail);
    }
    let attributes = tail.split_to(block);
    (Attributes::from_checked(attributes), tail)
}

/// Passes over a frame that was read where it lay.
pub(super) fn pass(unread: &mut BytesMut, length: usize) {
    unread.advance(length);
}

/// Appends a frame with this body, of the one length that its kind has.
pub(super) fn put(out: &mut BytesMut, outline: Outline, body: &[u8]) {
    debug_assert_eq!(body.len(), outline.shape.fixed, "{}", outline.shape.name);
    let mut header = [0; HEADER_BYTES];
    let length = u32::try_from(body.len()).expect("fixed bodies are a few bytes");
    outline.write(&mut header, length);
    out.reserve(HEADER_BYTES + body.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(body);
}

/// Appends a frame with a CBOR body.
pub(super) fn put_control<T: Serialize>(
    out: &mut BytesMut,
    outline: Outline,
    value: &T,
) -> Result<(), EncodeError> {
    put_with(out, outline, |out| cbor::encode(out, value))
}

/// Appends a frame whose body `write` appends, and takes it back if it is too long.
pub(super) fn put_with(
    out: &mut BytesMut,
    outline: Outline,
    write: impl FnOnce(&mut BytesMut),
) -> Result<(), EncodeError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    write(out);
    match body_length(outline.shape, out.len() - start - HEADER_BYTES) {
        Ok(body) => {
            outline.write(&mut out[start..], body);
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// Lengths of the attributes' block and of the whole body of a SEND or MESSAGE.
#[inline]
pub(super) fn tail_lengths(
    shape: &'static Shape,
    extra: usize,
    attributes: &Attributes,
    payload: usize,
) -> Result<(u16, u32), EncodeError> {
    let block = attributes.encoded().len();
    let body = payload.saturating_add(shape.fixed + extra + block);
    let block = u16::try_from(block).expect("attributes that exist are within their limit");
    Ok((block, body_length(shape, body)?))
}

#[inline]
fn body_length(shape: &'static Shape, length: usize) -> Result<u32, EncodeError> {
    u32::try_from(length).ok().filter(|_| length <= shape.most).ok_or(EncodeError::TooLong {
        frame: shape.name,
        given: length,
        most: shape.most,
    })
}

pub(super) fn checked_descriptors(
    shape: &'static Shape,
    descriptors: u8,
) -> Result<u8, EncodeError> {
    if descriptors <= MAX_DESCRIPTORS {
        Ok(descriptors)
    } else {
        Err(EncodeError::Descriptors { frame: shape.name, given: descriptors })
    }
}
