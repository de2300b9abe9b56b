//! The first 16 bytes of each payload: which message it is, and when it was sent.

use rustix::time::{ClockId, clock_gettime};

/// What a payload begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    word: u64,
    /// Nanoseconds of the monotonic clock, which all processes share; 0 if not taken.
    pub(crate) time: u64,
}

impl Stamp {
    /// Bytes that it takes.
    pub(crate) const BYTES: usize = 16;

    pub(crate) fn new(stream: usize, serial: u64, last: bool, time: u64) -> Self {
        debug_assert!(serial < LAST && stream < 1 << 16);
        let last = if last { LAST } else { 0 };
        Self { word: (stream as u64) << STREAM_SHIFT | last | serial, time }
    }

    /// The stream and the serial in it in one number.
    pub(crate) fn word(self) -> u64 {
        self.word
    }

    pub(crate) fn stream(self) -> usize {
        usize::try_from(self.word >> STREAM_SHIFT).expect("16 bits")
    }

    pub(crate) fn serial(self) -> u64 {
        self.word & (LAST - 1)
    }

    /// Whether the stream ends with this message.
    pub(crate) fn is_last(self) -> bool {
        self.word & LAST != 0
    }

    pub(crate) fn write(self, payload: &mut [u8]) {
        payload[..8].copy_from_slice(&self.word.to_le_bytes());
        payload[8..16].copy_from_slice(&self.time.to_le_bytes());
    }

    /// None if that is too short to be one of ours.
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let (word, rest) = payload.split_first_chunk()?;
        Some(Self {
            word: u64::from_le_bytes(*word),
            time: u64::from_le_bytes(*rest.first_chunk()?),
        })
    }
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let (seconds, nanoseconds) = (time.tv_sec, time.tv_nsec);
    u64::try_from(seconds * 1_000_000_000 + nanoseconds).expect("it starts at 0")
}

const STREAM_SHIFT: u32 = 48;
const LAST: u64 = 1 << 47;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for stamp in [
            Stamp::new(0, 0, false, 0),
            Stamp::new(65_535, LAST - 1, true, u64::MAX),
            Stamp::new(3, 17, true, 5),
        ] {
            let mut payload = [0; 20];
            stamp.write(&mut payload);
            assert_eq!(Stamp::read(&payload), Some(stamp));
        }
        let stamp = Stamp::new(3, 17, true, 5);
        assert_eq!((stamp.stream(), stamp.serial()), (3, 17));
        assert!(stamp.is_last() && !Stamp::new(3, 17, false, 5).is_last());
        assert_eq!(Stamp::read(&[0; 15]), None);
    }
}
