//! The 16 bytes that begin every frame, and what each kind of frame may say in them.
//!
//! Invariant: a [`Header`] that exists keeps every rule of its kind: its length lies between the
//! kind's least and most, its flags are known, and fields that mean nothing there are zero. So
//! whoever has one may take memory for the frame, and reads the body's fixed part without looking
//! at lengths again.

use std::fmt;
use std::num::NonZeroU32;

use bytes::{BufMut as _, BytesMut};

use super::WireError;

/// An endpoint of one connection: the client's number for it, meaningless elsewhere.
///
/// The client chooses it when it opens the endpoint; [`Handle::FIRST`] exists from the greeting on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(u32);

impl Handle {
    /// The endpoint that every connection has.
    pub const FIRST: Self = Self(0);

    /// Takes a number from the wire, or a fresh one of the client's choice.
    #[inline]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// The number as it stands on the wire.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Which of an endpoint's lanes, 0 to 15.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneNumber(u8);

impl LaneNumber {
    /// The lane that every endpoint has.
    pub const FIRST: Self = Self(0);

    /// The lane of this number, if there can be one.
    #[inline]
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < MAX_LANES { Some(Self(number)) } else { None }
    }

    /// The number as it stands on the wire.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The number as an index into a table of [`MAX_LANES`] lanes.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The client's number for one thing that it asked for; the answer repeats it. Never 0.
///
/// It is the client's business not to use one again before its answer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(NonZeroU32);

impl Serial {
    /// The one to begin with.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The serial of this number, unless it is 0.
    #[inline]
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number as it stands on the wire.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The one after this; the first follows the last.
    #[must_use]
    pub fn next(self) -> Self {
        self.0.checked_add(1).map_or(Self::FIRST, Self)
    }
}

macro_rules! display_as_number {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.get().fmt(f)
            }
        }
    )*};
}

display_as_number!(Handle LaneNumber Serial);

/// The 16 bytes that begin every frame, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Bytes of the whole frame, these 16 included.
    pub(super) length: usize,
    pub(super) shape: &'static Shape,
    pub(super) flags: u8,
    pub(super) descriptors: u8,
    lane: u8,
    endpoint: u32,
    serial: u32,
}

/// What one kind of frame may say in its header, and how long it may be.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) kind: u8,
    pub(super) name: &'static str,
    /// All flags that the kind knows.
    pub(super) flags: u8,
    /// Those beyond the header's eight, which SEND and MESSAGE have in their body.
    pub(super) further: u8,
    /// Whether descriptors may come with it.
    pub(super) descriptors: bool,
    pub(super) endpoint: bool,
    pub(super) lane: bool,
    pub(super) serial: bool,
    /// Bytes of the fixed part of the body: the least that it may have.
    pub(super) fixed: usize,
    /// The most bytes that the body may have.
    pub(super) most: usize,
}

impl Shape {
    /// A kind that uses no field of the header and has no body.
    pub(super) const fn plain(kind: u8, name: &'static str) -> Self {
        Self {
            kind,
            name,
            flags: 0,
            further: 0,
            descriptors: false,
            endpoint: false,
            lane: false,
            serial: false,
            fixed: 0,
            most: 0,
        }
    }

    /// The flags of a kind that has further ones: the header's are the lower half.
    #[inline(always)]
    pub(super) fn all_flags(&self, lower: u8, further: u8) -> Result<u16, WireError> {
        let all = u16::from_le_bytes([lower, further]);
        if further & !self.further == 0 { Ok(all) } else { Err(self.unknown_flags(all)) }
    }

    fn unknown_flags(&self, given: u16) -> WireError {
        let known = u16::from_le_bytes([self.flags, self.further]);
        WireError::UnknownFlags { frame: self.name, given, known }
    }

    /// The same with a body of one length.
    pub(super) const fn fixed(kind: u8, name: &'static str, body: usize) -> Self {
        Self { fixed: body, most: body, ..Self::plain(kind, name) }
    }
}

impl Header {
    /// Reads and checks the header at the start of `unread`; `None` if it is not all there.
    ///
    /// The length is looked at as soon as its own four bytes have come, and the kind with it as
    /// soon as that byte has: a bad peer is found out before it makes anybody wait.
    ///
    /// Inlined, so that it stays in registers: handed over in memory, byte fields that are written
    /// one by one and read together cost more than all the checks.
    #[inline(always)]
    pub(super) fn decode(
        unread: &[u8],
        shape_of: impl Fn(u8) -> Option<&'static Shape>,
    ) -> Result<Option<Self>, WireError> {
        let Some(&kind) = unread.get(KIND_OFFSET) else {
            return Ok(None);
        };
        let shape = shape_of(kind).ok_or(WireError::UnknownKind { kind })?;
        let length = u32_at(unread, 0);
        let least = HEADER_BYTES + shape.fixed;
        let most = HEADER_BYTES + shape.most;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if !(least..=most).contains(&length) {
            return Err(WireError::Length { frame: shape.name, given: length, least, most });
        }
        let Some(bytes) = unread.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = Self {
            length,
            shape,
            flags: bytes[5],
            descriptors: bytes[6],
            lane: bytes[7],
            endpoint: u32_at(bytes, 8),
            serial: u32_at(bytes, 12),
        };
        header.check()?;
        Ok(Some(header))
    }

    #[inline(always)]
    fn check(&self) -> Result<(), WireError> {
        let Shape { name, .. } = *self.shape;
        if self.flags & !self.shape.flags != 0 {
            return Err(self.shape.unknown_flags(self.flags.into()));
        }
        let most = if self.shape.descriptors { MAX_DESCRIPTORS } else { 0 };
        if self.descriptors > most {
            return Err(WireError::Descriptors { frame: name, given: self.descriptors, most });
        }
        let most = if self.shape.lane { MAX_LANES - 1 } else { 0 };
        if self.lane > most {
            return Err(WireError::Lane { frame: name, given: self.lane, most });
        }
        if !self.shape.endpoint && self.endpoint != 0 {
            return Err(WireError::not_zero(name, "endpoint", self.endpoint));
        }
        match (self.shape.serial, self.serial) {
            (true, 0) => Err(WireError::NoSerial { frame: name }),
            (false, serial) if serial != 0 => Err(WireError::not_zero(name, "serial", serial)),
            _ => Ok(()),
        }
    }

    pub(super) const fn endpoint(&self) -> Handle {
        Handle(self.endpoint)
    }

    pub(super) fn lane(&self) -> LaneNumber {
        LaneNumber(self.lane)
    }

    /// The serial of a kind that has one.
    pub(super) fn serial(&self) -> Serial {
        Serial::new(self.serial).expect("0 is refused for kinds that have a serial")
    }
}

/// The header of a frame to be written.
#[derive(Clone, Copy)]
pub(super) struct Outline {
    pub(super) shape: &'static Shape,
    pub(super) flags: u8,
    pub(super) descriptors: u8,
    pub(super) lane: LaneNumber,
    pub(super) endpoint: Handle,
    pub(super) serial: Option<Serial>,
}

impl Outline {
    #[inline]
    pub(super) const fn new(shape: &'static Shape) -> Self {
        Self {
            shape,
            flags: 0,
            descriptors: 0,
            lane: LaneNumber::FIRST,
            endpoint: Handle::FIRST,
            serial: None,
        }
    }

    #[inline]
    pub(super) const fn endpoint(self, endpoint: Handle) -> Self {
        Self { endpoint, ..self }
    }

    #[inline]
    pub(super) const fn lane(self, lane: LaneNumber) -> Self {
        Self { lane, ..self }
    }

    #[inline]
    pub(super) const fn serial(self, serial: Serial) -> Self {
        Self { serial: Some(serial), ..self }
    }

    #[inline]
    pub(super) const fn flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }

    #[inline]
    pub(super) const fn descriptors(self, descriptors: u8) -> Self {
        Self { descriptors, ..self }
    }

    /// Writes the header of a frame with this much body into the first 16 bytes of `place`.
    #[inline]
    pub(super) fn write(self, place: &mut [u8], body: u32) {
        let [first, second] = self.words(body);
        place[0..8].copy_from_slice(&first.to_le_bytes());
        place[8..16].copy_from_slice(&second.to_le_bytes());
    }

    /// The header of a frame with this much body.
    #[inline]
    pub(super) fn words(self, body: u32) -> [u64; 2] {
        let length = HEADER_BYTES_U32 + body;
        let kind = u32::from_le_bytes([self.shape.kind, self.flags, self.descriptors, self.lane.0]);
        let serial = self.serial.map_or(0, Serial::get);
        let word = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [word(length, kind), word(self.endpoint.0, serial)]
    }
}

/// Appends words in the order of bytes that the protocol has.
///
/// Each goes where it stays: what is written in small parts and read in larger ones right after waits for
/// the writes.
#[inline(always)]
pub(super) fn put_words<const N: usize>(out: &mut BytesMut, words: [u64; N]) {
    words.into_iter().for_each(|word| out.put_u64_le(word));
}

#[inline]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(chunk_at(bytes, at))
}

#[inline]
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(chunk_at(bytes, at))
}

#[inline]
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(chunk_at(bytes, at))
}

#[inline]
fn chunk_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("no frame is shorter than the fixed part of its kind")
}

/// Bytes of the header.
pub const HEADER_BYTES: usize = 16;
const HEADER_BYTES_U32: u32 = 16;
pub(super) const KIND_OFFSET: usize = 4;
pub(super) const FLAGS_OFFSET: usize = 5;
/// Lanes of one endpoint.
pub const MAX_LANES: u8 = 16;
/// Descriptors of one frame.
pub const MAX_DESCRIPTORS: u8 = 16;
