//! Messages that say their length in a fixed field of their header.
//!
//! Invariant: a [`LengthPrefix`] that exists can delimit some message, and every length that it
//! answers covers the header up to the end of the field. So a stream framed by it always moves on,
//! and no field, however large, wraps round to a short message.

use std::num::NonZeroUsize;

use super::{FrameError, Framer, Unread};

/// How many bytes the length field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    One,
    /// 16 bits.
    Two,
    /// 32 bits.
    Four,
    /// 64 bits.
    Eight,
}

impl Width {
    /// The width of this many bytes, if a field can have it.
    #[must_use]
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::One),
            2 => Some(Self::Two),
            4 => Some(Self::Four),
            8 => Some(Self::Eight),
            _ => None,
        }
    }

    /// How many bytes these are.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    const fn most(self) -> u64 {
        match self {
            Self::One => u8::MAX as u64,
            Self::Two => u16::MAX as u64,
            Self::Four => u32::MAX as u64,
            Self::Eight => u64::MAX,
        }
    }
}

/// Which byte of a number comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endianness {
    /// The most significant one: network byte order.
    Big,
    /// The least significant one.
    Little,
}

/// Frames messages by an unsigned length in a fixed place of their header.
///
/// The whole message, header included, has as many bytes as the field says plus the bias. For a
/// field that counts what follows it, the bias is the bytes up to its end; for one that counts the
/// whole message, it is 0.
///
/// A message that would end before the end of its own field is an error (`EPROTO`), and one
/// longer than memory is `EMSGSIZE`; nothing wraps. (A BPF program that computes in 32 bits does:
/// see [`BpfFramer`](super::BpfFramer).)
///
/// ```
/// use bus_core::framing::{Endianness, Framer, LengthPrefix, Unread, Width};
///
/// // Thrift's framed transport: four bytes, most significant first, then that many more.
/// let thrift = LengthPrefix::new(0, Width::Four, Endianness::Big, 4)?;
/// let unread = Unread::from(&[0, 0, 0, 2, b'h', b'i', 0, 0][..]);
/// assert_eq!(thrift.measure(unread)?.map(|n| n.get()), Some(6));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthPrefix {
    offset: usize,
    width: Width,
    endianness: Endianness,
    bias: i64,
}

/// Why there is no such length prefix. The configuration is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LengthPrefixError {
    /// The field stands further on than anybody's header is long.
    #[error("a length field at offset {given}, and the highest is {MAX_OFFSET_BYTES}")]
    Offset {
        /// The offset given, in bytes.
        given: usize,
    },
    /// Even the greatest length that the field can hold, with the bias, ends before the field does.
    #[error("with bias {bias} the longest message has {longest} bytes, and the header {header}")]
    Bias {
        /// The bias given, in bytes.
        bias: i64,
        /// Bytes of the longest message that could be said.
        longest: u64,
        /// Bytes up to the end of the field.
        header: usize,
    },
}

impl LengthPrefix {
    /// A field of `width` at `offset` bytes from the start of the message; `bias` is added to what
    /// it says.
    ///
    /// # Errors
    ///
    /// [`LengthPrefixError`] if no message could ever be framed so.
    pub fn new(
        offset: usize,
        width: Width,
        endianness: Endianness,
        bias: i64,
    ) -> Result<Self, LengthPrefixError> {
        if offset > MAX_OFFSET_BYTES {
            return Err(LengthPrefixError::Offset { given: offset });
        }
        let header = offset + width.bytes();
        let longest = width.most().saturating_add_signed(bias);
        if longest < header as u64 {
            return Err(LengthPrefixError::Bias { bias, longest, header });
        }
        Ok(Self { offset, width, endianness, bias })
    }

    #[inline]
    fn field(&self, unread: Unread<'_>) -> Option<u64> {
        // One branch for the order of the bytes, none in the usual case of a width known at the
        // call: this runs for every message.
        let big = self.endianness == Endianness::Big;
        Some(match self.width {
            Width::One => unread.byte(self.offset)?.into(),
            Width::Two => {
                let bytes = unread.array(self.offset)?;
                let field = u16::from_le_bytes(bytes);
                if big { field.swap_bytes() } else { field }.into()
            }
            Width::Four => {
                let bytes = unread.array(self.offset)?;
                let field = u32::from_le_bytes(bytes);
                if big { field.swap_bytes() } else { field }.into()
            }
            Width::Eight => {
                let bytes = unread.array(self.offset)?;
                let field = u64::from_le_bytes(bytes);
                if big { field.swap_bytes() } else { field }
            }
        })
    }
}

impl Framer for LengthPrefix {
    #[inline]
    fn measure(&self, unread: Unread<'_>) -> Result<Option<NonZeroUsize>, FrameError> {
        let Some(field) = self.field(unread) else {
            return Ok(None);
        };
        let given = field.saturating_add_signed(self.bias);
        let least = self.offset + self.width.bytes();
        if given < least as u64 {
            return Err(FrameError::TooShort { given, least });
        }
        usize::try_from(given)
            .map(NonZeroUsize::new)
            .map_err(|_| FrameError::TooLong { given, maximum: usize::MAX })
    }
}

/// The highest offset of a length field.
pub const MAX_OFFSET_BYTES: usize = 1 << 16;

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_in_its_place_width_and_order() {
        use Endianness::{Big, Little};
        use Width::{Eight, Four, One, Two};
        let bytes = [9, 0, 0, 0, 0, 0, 0, 0, 11, 1];
        let rows = [
            ("one byte", 0, One, Big, 0, Some(9)),
            ("one byte, biased down", 0, One, Little, -3, Some(6)),
            ("two, little", 0, Two, Little, 2, Some(11)),
            ("two, big", 0, Two, Big, 0, Some(0x900)),
            ("four, at an offset", 5, Four, Big, 9, Some(9 + 11)),
            ("four, little", 0, Four, Little, 4, Some(13)),
            ("eight, big", 1, Eight, Big, 9, Some(20)),
            ("eight, little", 0, Eight, Little, 0, Some(9)),
            ("the last byte", 9, One, Big, 10, Some(11)),
            ("past the end", 10, One, Big, 11, None),
            ("partly past the end", 7, Four, Big, 11, None),
        ];
        for (case, offset, width, endianness, bias, length) in rows {
            let framer = LengthPrefix::new(offset, width, endianness, bias).expect(case);
            for seam in 0..=bytes.len() {
                let (first, second) = bytes.split_at(seam);
                let found = framer.measure(Unread::new(first, second));
                assert_eq!(found, Ok(length.and_then(NonZeroUsize::new)), "{case}");
            }
        }
    }

    #[test]
    fn a_message_that_ends_in_its_own_header_is_refused() {
        let four = LengthPrefix::new(2, Width::Four, Endianness::Big, 0).unwrap();
        let measure = |field: u32| {
            let mut bytes = [0; 6];
            bytes[2..].copy_from_slice(&field.to_be_bytes());
            four.measure(Unread::from(&bytes[..]))
        };
        for given in [0, 1, 5] {
            let least = 6;
            let error = FrameError::TooShort { given: given.into(), least };
            assert_eq!(measure(given), Err(error));
            assert_eq!(error.errno(), 71, "EPROTO");
        }
        assert_eq!(measure(6), Ok(NonZeroUsize::new(6)));
        let below = LengthPrefix::new(0, Width::One, Endianness::Big, -10).unwrap();
        let error = FrameError::TooShort { given: 0, least: 1 };
        assert_eq!(below.measure(Unread::from(&[3][..])), Err(error));
    }

    #[test]
    fn the_greatest_length_does_not_wrap() {
        let thrift = LengthPrefix::new(0, Width::Four, Endianness::Big, 4).unwrap();
        let found = thrift.measure(Unread::from(&[0xff; 4][..])).unwrap();
        assert_eq!(found.map(NonZeroUsize::get), Some(0x1_0000_0003));
        let wide = LengthPrefix::new(0, Width::Eight, Endianness::Little, 8).unwrap();
        let found = wide.measure(Unread::from(&[0xff; 8][..])).unwrap();
        assert_eq!(found, Some(NonZeroUsize::MAX));
    }

    #[test]
    fn a_prefix_that_frames_nothing_is_refused() {
        let offset = LengthPrefix::new(MAX_OFFSET_BYTES + 1, Width::One, Endianness::Big, 0);
        let given = MAX_OFFSET_BYTES + 1;
        assert_eq!(offset, Err(LengthPrefixError::Offset { given }));
        let bias = LengthPrefix::new(1, Width::One, Endianness::Big, -254);
        let error = LengthPrefixError::Bias { bias: -254, longest: 1, header: 2 };
        assert_eq!(bias, Err(error));
        assert!(LengthPrefix::new(1, Width::One, Endianness::Big, -253).is_ok());
        let far = LengthPrefix::new(300, Width::One, Endianness::Big, 0);
        assert!(far.is_err(), "255 bytes cannot cover a field at 300");
    }

    #[test]
    fn a_width_has_one_two_four_or_eight_bytes() {
        for bytes in 0..10 {
            let width = Width::from_bytes(bytes);
            assert_eq!(width.is_some(), [1, 2, 4, 8].contains(&bytes), "{bytes}");
            assert!(width.is_none_or(|width| width.bytes() == bytes));
        }
    }
}
