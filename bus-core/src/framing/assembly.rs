//! What one stream remembers between two looks at its bytes: which message it is in the middle of,
//! and what that message may still cost.
//!
//! Invariant: a broken stream stays broken, and a message that is under way has a length that was
//! checked or a framer that has been asked about every byte that is there. So the framer is asked
//! once per arrival and not at all while a known length fills up, a peer that sends one byte at a
//! time buys no more than one run of the framer with each, and none gets past the maximum or the
//! time-out.
//!
//! The rules are those of the kernel's strparser, which KCM uses. It takes a length for progress
//! if it goes beyond what an earlier look had already seen. So a Thrift length of 0xffffffff, which
//! the program makes into 3, is a message of 3 bytes if its four bytes came together, and `EPROTO`
//! if they came one by one. Ours adds one rule: a framer that wants more than the maximum gets
//! `EMSGSIZE`, because the buffer is bounded.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use super::{FrameError, Framer, Unread};

/// Assembles the messages of one stream.
///
/// It holds no bytes: the caller keeps them, shows them to [`next`](Self::next), and takes each
/// message off before it asks again.
///
/// ```
/// use std::num::NonZeroUsize;
/// use std::time::{Duration, Instant};
/// use bus_core::framing::{Assembly, Endianness, LengthPrefix, Unread, Width};
///
/// let framer = LengthPrefix::new(0, Width::One, Endianness::Big, 1)?;
/// let maximum = NonZeroUsize::new(100).expect("100 is not 0");
/// let mut stream = Assembly::new(maximum, Some(Duration::from_secs(5)));
/// let now = Instant::now();
///
/// let mut bytes: &[u8] = &[2, b'h', b'i', 1];
/// assert_eq!(stream.next(&framer, Unread::from(bytes), now)?, Some(3));
/// bytes = &bytes[3..];
/// assert_eq!(stream.next(&framer, Unread::from(bytes), now)?, None, "the rest is to come");
/// assert_eq!(stream.deadline(), Some(now + Duration::from_secs(5)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Assembly {
    maximum: NonZeroUsize,
    timeout: Option<Duration>,
    /// Bytes of the message under way that the framer has been shown, and wanted more.
    seen: usize,
    /// Its length, once known.
    length: Option<NonZeroUsize>,
    /// When its first byte was there. Without it, nothing was seen and no length is known.
    since: Option<Instant>,
    broken: Option<FrameError>,
}

impl Assembly {
    /// A stream at its start, whose messages have at most `maximum` bytes and are complete within
    /// `timeout` of their first byte; `None` gives them any time.
    ///
    /// The kernel's defaults are the stream's `SO_RCVBUF` and `SO_RCVTIMEO`, where 0 is `None`.
    #[must_use]
    pub const fn new(maximum: NonZeroUsize, timeout: Option<Duration>) -> Self {
        Self { maximum, timeout, seen: 0, length: None, since: None, broken: None }
    }

    /// How many of the unread bytes are the next message, or `None` if it is not all there.
    ///
    /// After `Some(n)` the caller takes `n` bytes off the front, and asks again with the rest.
    /// `unread` is all that has come of the message under way, so it never gets shorter in
    /// between. `now` is looked at only if the message is incomplete: one that is complete is in
    /// time.
    ///
    /// # Errors
    ///
    /// The stream is broken, and answers the same for ever. What it had buffered is its owner's.
    pub fn next(
        &mut self,
        framer: &(impl Framer + ?Sized),
        unread: Unread<'_>,
        now: Instant,
    ) -> Result<Option<usize>, FrameError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        self.advance(framer, unread, now).map_err(|error| self.fail(error))
    }

    #[inline]
    fn advance(
        &mut self,
        framer: &(impl Framer + ?Sized),
        unread: Unread<'_>,
        now: Instant,
    ) -> Result<Option<usize>, FrameError> {
        let length = match self.length {
            None if unread.len() > self.seen => self.measure(framer, unread)?,
            known => known,
        };
        if let Some(length) = length
            && length.get() <= unread.len()
        {
            if self.since.is_some() {
                (self.seen, self.length, self.since) = (0, None, None);
            }
            return Ok(Some(length.get()));
        }
        self.await_more(unread.len(), length, now)?;
        Ok(None)
    }

    fn await_more(
        &mut self,
        there: usize,
        length: Option<NonZeroUsize>,
        now: Instant,
    ) -> Result<(), FrameError> {
        if there > 0 {
            (self.seen, self.length) = (there, length);
            self.since.get_or_insert(now);
        }
        self.in_time(now)
    }

    #[inline]
    fn measure(
        &self,
        framer: &(impl Framer + ?Sized),
        unread: Unread<'_>,
    ) -> Result<Option<NonZeroUsize>, FrameError> {
        let maximum = self.maximum.get();
        let too_long = |given: usize| FrameError::TooLong {
            given: u64::try_from(given).unwrap_or(u64::MAX),
            maximum,
        };
        match framer.measure(unread)? {
            None if unread.len() >= maximum => Err(too_long(unread.len())),
            Some(length) if length > self.maximum => Err(too_long(length.get())),
            Some(length) if length.get() <= self.seen => {
                Err(FrameError::NoProgress { given: length.get(), seen: self.seen })
            }
            answer => Ok(answer),
        }
    }

    /// When the message under way must be complete; `None` if none is, or any time will do.
    ///
    /// Call [`expire`](Self::expire) then.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if self.broken.is_some() {
            return None;
        }
        // A time-out beyond what the clock can say is none.
        self.since?.checked_add(self.timeout?)
    }

    /// Breaks the stream if the message under way has run out of time.
    ///
    /// # Errors
    ///
    /// The stream is broken, by this or by something earlier.
    pub fn expire(&mut self, now: Instant) -> Result<(), FrameError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        self.in_time(now).map_err(|error| self.fail(error))
    }

    /// Whether some of a message has come, and not all: an end of the stream would cut it.
    #[must_use]
    pub const fn in_message(&self) -> bool {
        self.since.is_some()
    }

    /// How many bytes the message under way has, once that is known: who reads may take memory for
    /// just that many.
    #[must_use]
    pub const fn length(&self) -> Option<NonZeroUsize> {
        self.length
    }

    /// Why the stream is broken, if it is.
    #[must_use]
    pub const fn broken(&self) -> Option<FrameError> {
        self.broken
    }

    fn in_time(&self, now: Instant) -> Result<(), FrameError> {
        match (self.deadline(), self.timeout) {
            (Some(deadline), Some(timeout)) if now >= deadline => Err(FrameError::TimedOut {
                millis: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            }),
            _ => Ok(()),
        }
    }

    fn fail(&mut self, error: FrameError) -> FrameError {
        self.broken = Some(error);
        error
    }
}
