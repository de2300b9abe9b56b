//! Where messages end in a stream of bytes, without any I/O.
//!
//! A [`Framer`] is told the bytes so far and answers how long the message is that they begin, that
//! it needs more to tell, or that the stream is broken. An [`Assembly`] is one stream's state
//! around it: what the framer has seen, how long a message may be and take.
//!
//! Invariant: no message has length 0 and none is longer than the maximum, so every answer moves
//! the stream on or ends it, and what a stream makes its reader hold is bounded. A framer keeps no
//! state and sees the whole beginning of a message each time; so how the bytes were cut on their
//! way, and where a ring wraps, changes no message.
//!
//! | file | what it knows |
//! |---|---|
//! | `unread` | the bytes so far, as two slices |
//! | `length_prefix`, `unisono` | the framers built in |
//! | `bpf_framer` | a framer that is a program, and what its result means |
//! | `bpf` | the program: what is accepted, and how it runs |
//! | `object` | the program inside the object file that clang makes |
//! | `assembly` | limits of one stream: length, time, progress |

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

mod assembly;
pub mod bpf;
mod bpf_framer;
mod length_prefix;
pub mod object;
mod unisono;
mod unread;

pub use assembly::Assembly;
pub use bpf_framer::{BpfFramer, LoadError, SECTION};
pub use length_prefix::{Endianness, LengthPrefix, LengthPrefixError, MAX_OFFSET_BYTES, Width};
pub use unisono::Unisono;
pub use unread::Unread;

/// Tells where a message ends.
///
/// A framer is pure: the same bytes always get the same answer, so one value serves any number of
/// streams and threads.
///
/// ```
/// use std::num::NonZeroUsize;
/// use bus_core::framing::{FrameError, Framer, Unread};
///
/// /// Messages of 16 bytes each.
/// #[derive(Debug)]
/// struct Records;
///
/// impl Framer for Records {
///     fn measure(&self, _: Unread<'_>) -> Result<Option<NonZeroUsize>, FrameError> {
///         Ok(NonZeroUsize::new(16))
///     }
/// }
/// # assert!(Records.measure(Unread::new(&[], &[])).is_ok_and(|n| n.is_some()));
/// ```
pub trait Framer: fmt::Debug + Send + Sync {
    /// Says how many bytes the message has that `unread` begins, its header included; `None` while
    /// there are too few bytes to tell.
    ///
    /// The length may be more than has come so far: the rest is then awaited without asking again.
    ///
    /// # Errors
    ///
    /// The stream is broken, and what follows on it means nothing: stop reading it.
    fn measure(&self, unread: Unread<'_>) -> Result<Option<NonZeroUsize>, FrameError>;
}

impl<F: Framer + ?Sized> Framer for &F {
    fn measure(&self, unread: Unread<'_>) -> Result<Option<NonZeroUsize>, FrameError> {
        (**self).measure(unread)
    }
}

impl<F: Framer + ?Sized> Framer for Box<F> {
    fn measure(&self, unread: Unread<'_>) -> Result<Option<NonZeroUsize>, FrameError> {
        (**self).measure(unread)
    }
}

impl<F: Framer + ?Sized> Framer for Arc<F> {
    fn measure(&self, unread: Unread<'_>) -> Result<Option<NonZeroUsize>, FrameError> {
        (**self).measure(unread)
    }
}

/// Why no message can be found in a stream any more.
///
/// The stream is not to be read or written again: its position is unknown, and what was sent may
/// be half there. Post [`errno`](Self::errno) to its owner, answer senders with `EPIPE`, and go on
/// with the other streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The message is longer than may be, or is not delimited within what may be (`EMSGSIZE`).
    #[error("a message of {given} bytes, and the most is {maximum}")]
    TooLong {
        /// Its length in bytes; what is there already, where the framer still wants more.
        given: u64,
        /// The most that is accepted, in bytes.
        maximum: usize,
    },
    /// The message is said to end within its own header (`EPROTO`).
    #[error("a message of {given} bytes, and its header has {least}")]
    TooShort {
        /// The length said, in bytes.
        given: u64,
        /// The least that is possible, in bytes.
        least: usize,
    },
    /// The message is said to end within bytes that were not enough to tell its length (`EPROTO`).
    #[error("a message of {given} bytes, when {seen} were not enough to tell")]
    NoProgress {
        /// The length said, in bytes.
        given: usize,
        /// How many bytes the framer had already seen and asked for more.
        seen: usize,
    },
    /// What begins as Unisono's greeting is another (`EPROTO`).
    #[error("byte {at} of the greeting is {given:#04x}")]
    Greeting {
        /// Offset of the first byte that differs.
        at: usize,
        /// That byte.
        given: u8,
    },
    /// The framing program ended the stream with an error number of its own (that number).
    #[error("the framing program answered {result}")]
    Program {
        /// What it returned, below 0.
        result: i32,
    },
    /// The message was not complete in time (`ETIMEDOUT`).
    #[error("a message not complete {millis} ms after its first byte")]
    TimedOut {
        /// The time-out, in milliseconds.
        millis: u64,
    },
}

impl FrameError {
    /// The error number that is posted on the stream, positive, as Linux counts on x86, Arm and
    /// RISC-V.
    ///
    /// A program that returns what is no error number (below -4095) broke its protocol: `EPROTO`.
    ///
    /// ```
    /// use bus_core::framing::FrameError;
    ///
    /// let refused = FrameError::Program { result: -22 };
    /// assert_eq!(std::io::Error::from_raw_os_error(refused.errno()).kind(),
    ///            std::io::ErrorKind::InvalidInput);
    /// ```
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match *self {
            Self::TooLong { .. } => EMSGSIZE,
            Self::TooShort { .. } | Self::NoProgress { .. } | Self::Greeting { .. } => EPROTO,
            Self::TimedOut { .. } => ETIMEDOUT,
            Self::Program { result } => match result {
                LEAST_RESULT..0 => -result,
                _ => EPROTO,
            },
        }
    }
}

const EPROTO: i32 = 71;
const EMSGSIZE: i32 = 90;
const ETIMEDOUT: i32 = 110;
/// The kernel keeps no greater number for errors.
const LEAST_RESULT: i32 = -4095;

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_the_number_that_the_kernel_posts() {
        let program = |result| FrameError::Program { result };
        let long = FrameError::TooLong { given: 9, maximum: 8 };
        let short = FrameError::TooShort { given: 1, least: 4 };
        let rows = [
            ("EMSGSIZE", long, 90),
            ("EPROTO, short", short, 71),
            ("EPROTO, no progress", FrameError::NoProgress { given: 3, seen: 3 }, 71),
            ("EPROTO, greeting", FrameError::Greeting { at: 4, given: 0 }, 71),
            ("ETIMEDOUT", FrameError::TimedOut { millis: 1 }, 110),
            ("the program's", program(-1), 1),
            ("the program's greatest", program(-4095), 4095),
            ("none of the kernel's", program(-4096), 71),
            ("the least of all", program(i32::MIN), 71),
        ];
        for (case, error, errno) in rows {
            assert_eq!(error.errno(), errno, "{case}");
        }
    }

    #[test]
    fn a_framer_behind_a_pointer_answers_the_same() {
        let bytes = Unread::from(&[16, 0, 0, 0][..]);
        let direct = Unisono.measure(bytes);
        assert_eq!(direct, Ok(NonZeroUsize::new(16)));
        let boxed: Box<dyn Framer> = Box::new(Unisono);
        let shared: Arc<dyn Framer> = Arc::new(Unisono);
        assert_eq!(Framer::measure(&boxed, bytes), direct);
        assert_eq!(Framer::measure(&shared, bytes), direct);
        assert_eq!(Framer::measure(&&Unisono, bytes), direct);
    }
}
