//! Frames by which a connection goes over to rings in shared memory, and back.
//!
//! Each is the last of its direction that goes the old way, or asks for that: so each direction is
//! one stream of frames, wherever its bytes travel.

use super::header::{Header, Outline, Shape, u32_at};
use super::{WireError, body};
use bytes::BytesMut;

/// What a client says of rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientRings {
    /// It would use rings; answered by [`BrokerRings::Offered`] or [`BrokerRings::Refused`].
    Wanted,
    /// It has mapped them: the last frame that it writes to the socket.
    Taken,
    /// It cannot use them. Both sides forget them.
    Declined,
    /// After [`BrokerRings::End`], the last frame that it writes to its ring.
    Left,
}

/// What a broker says of rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerRings {
    /// Here they are: four descriptors come along. Answered by [`ClientRings::Taken`] or
    /// [`ClientRings::Declined`].
    Offered {
        /// Bytes of the client's ring.
        submission_bytes: u32,
        /// Bytes of the broker's ring.
        delivery_bytes: u32,
    },
    /// There are none now. The client may ask again later.
    Refused,
    /// The last frame that the broker writes to the socket.
    Begin,
    /// The last frame that the broker writes to its ring.
    End,
}

/// Descriptors of [`BrokerRings::Offered`].
pub const RINGS_DESCRIPTORS: u8 = 4;
/// The feature by which greetings say that rings are understood.
pub const RINGS_FEATURE: &str = "rings";

impl ClientRings {
    pub(super) fn shape_of(kind: u8) -> Option<&'static Shape> {
        Some(match kind {
            0x20 => &WANTED,
            0x21 => &TAKEN,
            0x22 => &DECLINED,
            0x23 => &LEFT,
            _ => return None,
        })
    }

    pub(super) fn decode(kind: u8) -> Option<Self> {
        Some(match kind {
            0x20 => Self::Wanted,
            0x21 => Self::Taken,
            0x22 => Self::Declined,
            0x23 => Self::Left,
            _ => return None,
        })
    }

    pub(super) fn encode(self, out: &mut BytesMut) {
        let shape = match self {
            Self::Wanted => &WANTED,
            Self::Taken => &TAKEN,
            Self::Declined => &DECLINED,
            Self::Left => &LEFT,
        };
        body::put(out, Outline::new(shape), &[]);
    }
}

impl BrokerRings {
    pub(super) fn shape_of(kind: u8) -> Option<&'static Shape> {
        Some(match kind {
            0xa0 => &OFFERED,
            0xa1 => &REFUSED,
            0xa2 => &BEGIN,
            0xa3 => &END,
            _ => return None,
        })
    }

    pub(super) fn decode(header: &Header, body: &[u8]) -> Result<Option<Self>, WireError> {
        Ok(Some(match header.shape.kind {
            0xa0 => {
                if header.descriptors != RINGS_DESCRIPTORS {
                    return Err(WireError::Value {
                        frame: header.shape.name,
                        field: "number of descriptors",
                        given: header.descriptors.into(),
                    });
                }
                Self::Offered { submission_bytes: u32_at(body, 0), delivery_bytes: u32_at(body, 4) }
            }
            0xa1 => Self::Refused,
            0xa2 => Self::Begin,
            0xa3 => Self::End,
            _ => return Ok(None),
        }))
    }

    pub(super) fn encode(self, out: &mut BytesMut) {
        match self {
            Self::Offered { submission_bytes, delivery_bytes } => {
                let mut fixed = [0; OFFERED.fixed];
                fixed[..4].copy_from_slice(&submission_bytes.to_le_bytes());
                fixed[4..].copy_from_slice(&delivery_bytes.to_le_bytes());
                body::put(out, Outline::new(&OFFERED).descriptors(RINGS_DESCRIPTORS), &fixed);
            }
            Self::Refused => body::put(out, Outline::new(&REFUSED), &[]),
            Self::Begin => body::put(out, Outline::new(&BEGIN), &[]),
            Self::End => body::put(out, Outline::new(&END), &[]),
        }
    }
}

const WANTED: Shape = Shape::plain(0x20, "RINGS_WANTED");
const TAKEN: Shape = Shape::plain(0x21, "RINGS_TAKEN");
const DECLINED: Shape = Shape::plain(0x22, "RINGS_DECLINED");
const LEFT: Shape = Shape::plain(0x23, "RINGS_LEFT");
const OFFERED: Shape = Shape { descriptors: true, ..Shape::fixed(0xa0, "RINGS", 8) };
const REFUSED: Shape = Shape::plain(0xa1, "RINGS_REFUSED");
const BEGIN: Shape = Shape::plain(0xa2, "RINGS_BEGIN");
const END: Shape = Shape::plain(0xa3, "RINGS_END");
