//! Unisono's own protocol as a framing, so that a stream of it can be multiplexed like any other.
//!
//! Invariant: an answer depends on nothing but the bytes of this message. The greeting that a
//! client writes first is told from a frame by its bytes alone, since read as a length it would be
//! above every maximum.

use std::num::NonZeroUsize;

use super::{FrameError, Framer, Unread};
use crate::wire::{HEADER_BYTES, MAGIC, MAX_FRAME_BYTES};

/// Frames a stream of Unisono's protocol, in either direction.
///
/// Each frame is a message, and so is the greeting. What a frame says beside its length is for
/// [`wire`](crate::wire) to judge.
///
/// ```
/// use bus_core::framing::{Framer, Unisono, Unread};
/// use bus_core::wire::MAGIC;
///
/// let greeting = Unisono.measure(Unread::from(&MAGIC[..]))?;
/// assert_eq!(greeting.map(|n| n.get()), Some(8));
/// let frame = Unisono.measure(Unread::from(&[16, 0, 0, 0][..]))?;
/// assert_eq!(frame.map(|n| n.get()), Some(16));
/// # Ok::<(), bus_core::framing::FrameError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unisono;

impl Framer for Unisono {
    #[inline]
    fn measure(&self, unread: Unread<'_>) -> Result<Option<NonZeroUsize>, FrameError> {
        let Some(bytes) = unread.array(0) else {
            return Ok(None);
        };
        if MAGIC.starts_with(&bytes) {
            return greeting(unread);
        }
        let given = u32::from_le_bytes(bytes);
        let length = usize::try_from(given).unwrap_or(usize::MAX);
        if length < HEADER_BYTES {
            return Err(FrameError::TooShort { given: given.into(), least: HEADER_BYTES });
        }
        if length > MAX_FRAME_BYTES {
            return Err(FrameError::TooLong { given: given.into(), maximum: MAX_FRAME_BYTES });
        }
        Ok(NonZeroUsize::new(length))
    }
}

/// A message that begins as the greeting does: it is the greeting or nothing.
#[cold]
fn greeting(unread: Unread<'_>) -> Result<Option<NonZeroUsize>, FrameError> {
    for (at, &expected) in MAGIC.iter().enumerate() {
        match unread.byte(at) {
            None => return Ok(None),
            Some(given) if given != expected => return Err(FrameError::Greeting { at, given }),
            Some(_) => {}
        }
    }
    Ok(NonZeroUsize::new(MAGIC.len()))
}

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    fn measure(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
        let found = Unisono.measure(Unread::from(bytes))?;
        Ok(found.map(NonZeroUsize::get))
    }

    #[test]
    fn the_greeting_is_a_message_and_cannot_be_a_frame() {
        let as_length = u32::from_le_bytes([MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3]]);
        assert!(as_length as usize > MAX_FRAME_BYTES);
        for cut in 0..MAGIC.len() {
            assert_eq!(measure(&MAGIC[..cut]), Ok(None), "{cut} bytes");
        }
        assert_eq!(measure(&MAGIC), Ok(Some(8)));
        let error = FrameError::Greeting { at: 5, given: b'F' };
        assert_eq!(measure(b"UNISOF"), Err(error));
    }

    #[test]
    fn a_frame_has_the_length_in_its_first_four_bytes() {
        assert_eq!(measure(&[]), Ok(None));
        assert_eq!(measure(&[20, 0, 0]), Ok(None));
        assert_eq!(measure(&[20, 0, 0, 0]), Ok(Some(20)));
        let most = u32::try_from(MAX_FRAME_BYTES).unwrap();
        assert_eq!(measure(&most.to_le_bytes()), Ok(Some(MAX_FRAME_BYTES)));
    }

    #[test]
    fn a_length_that_no_frame_has_ends_the_stream() {
        for given in [0_u32, 1, 15] {
            let error = FrameError::TooShort { given: given.into(), least: 16 };
            assert_eq!(measure(&given.to_le_bytes()), Err(error));
        }
        let over = u32::try_from(MAX_FRAME_BYTES).unwrap() + 1;
        for given in [over, u32::MAX] {
            let error = FrameError::TooLong { given: given.into(), maximum: MAX_FRAME_BYTES };
            assert_eq!(measure(&given.to_le_bytes()), Err(error));
        }
    }
}
