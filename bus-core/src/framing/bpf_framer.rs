//! A framer that is a BPF program, and what its result means.
//!
//! Invariant: the program sees what the kernel would show it, and its result is read as the kernel
//! reads it: the low 32 bits, signed. So a program made for a KCM socket frames the same messages
//! here.

use std::num::NonZeroUsize;

use super::bpf::{Outcome, Program, VerifyError};
use super::object::{self, ObjectError};
use super::{FrameError, Framer, Unread};

/// Frames messages with a BPF program written for the kernel's KCM sockets.
///
/// The program reads the message's header with packet loads (`load_byte`, `load_half`,
/// `load_word`), which are big-endian and end the program with "need more" past the bytes so far.
/// Through its context it can read `skb->len`, the number of bytes so far, and nothing else.
///
/// | it returns, as a signed 32-bit number | then |
/// |---|---|
/// | 0 | more bytes are needed to tell |
/// | above 0 | that is the length of the message, its header included |
/// | below 0 | that error number ends the stream ([`FrameError::Program`]) |
///
/// ```
/// use bus_core::framing::{BpfFramer, Framer, Unread};
///
/// // r6 = r1; r0 = load_word(skb, 0); r0 += 4; exit
/// let code = [0xbf, 0x16, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0,
///             0x07, 0x00, 0, 0, 4, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
/// let thrift = BpfFramer::load(&code)?;
/// let unread = Unread::from(&[0, 0, 0, 2, b'h', b'i'][..]);
/// assert_eq!(thrift.measure(unread)?.map(|n| n.get()), Some(6));
/// assert_eq!(thrift.measure(Unread::from(&[0, 0][..]))?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct BpfFramer(Program);

/// Why a file holds no framing program. The configuration is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The object file does not have it in a form that can be loaded.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The program is not one that may run.
    #[error(transparent)]
    Program(#[from] VerifyError),
}

impl BpfFramer {
    /// Loads the program of an object file made by `clang -target bpf`, or raw instructions; which
    /// of the two is seen from the bytes.
    ///
    /// In an object file the program is the one in section [`SECTION`].
    ///
    /// # Errors
    ///
    /// [`LoadError`], with the instruction at fault where there is one.
    pub fn load(file: &[u8]) -> Result<Self, LoadError> {
        // No program begins like this: it would be a shift with an offset.
        let code =
            if file.starts_with(object::MAGIC) { object::section(file, SECTION)? } else { file };
        Ok(Self(Program::verify(code, CONTEXT_WORDS)?))
    }

    /// The program itself.
    #[must_use]
    pub const fn program(&self) -> &Program {
        &self.0
    }
}

impl Framer for BpfFramer {
    fn measure(&self, unread: Unread<'_>) -> Result<Option<NonZeroUsize>, FrameError> {
        let length = u32::try_from(unread.len()).unwrap_or(u32::MAX);
        let result = match self.0.run(unread, &[length]) {
            Outcome::PastEnd => return Ok(None),
            Outcome::Returned(value) => low_half(value),
        };
        match usize::try_from(result) {
            Ok(length) => Ok(NonZeroUsize::new(length)),
            Err(_) => Err(FrameError::Program { result }),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the kernel reads an int")]
const fn low_half(value: u64) -> i32 {
    value as i32
}

/// The section that a framing program stands in.
pub const SECTION: &str = "socket_kcm";
/// `skb->len` alone.
const CONTEXT_WORDS: usize = 1;
