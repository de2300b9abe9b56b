//! A condition that is a BPF program, and what the program sees.
//!
//! The interpreter and the verifier are those of stream framing
//! ([`framing::bpf`](crate::framing::bpf)): forward jumps only, no calls, no address that is a
//! number. A run therefore ends after at most as many steps as there are instructions.

use std::fmt;

use bytes::Bytes;

use super::{Seen, Subject};
use crate::framing::bpf::{Outcome, Program, VerifyError};
use crate::framing::{LoadError, Unread, object};

/// A verified program that accepts or rejects messages. Cheap to clone.
///
/// It loads from the message with packet loads (`load_byte`, `load_half`, `load_word`, big-endian):
/// first the bytes of the key, none if there is no key, and then those of the payload. Through its
/// context it reads words of 32 bits:
///
/// | offset | word |
/// |--:|--|
/// | 0 | bytes of key and payload together (`skb->len`) |
/// | 4 | bytes of the key, which is where the payload begins |
/// | 8 | content type: 0 bytes, 1 text, 2 CBOR, 3 JSON |
///
/// A load past the end rejects the message. Otherwise it is accepted, whole, if the low 32 bits of
/// the result are not 0.
///
/// ```
/// use bus_core::{Attributes, Condition, Filter, FilterProgram};
///
/// // r6 = r1; r0 = the byte at 1; exit
/// let code = [0xbf, 0x16, 0, 0, 0, 0, 0, 0, 0x30, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
/// let filter = Filter::new([vec![Condition::Program(FilterProgram::load(&code)?)]])?;
/// let message = Attributes::builder().key("k").build()?;
/// assert!(filter.accepts(&message, &[7]), "the payload begins behind the key");
/// assert!(!filter.accepts(&message, &[0]));
/// assert!(!filter.accepts(&message, &[]), "past the end");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct FilterProgram {
    /// As it was given, for the wire.
    code: Bytes,
    program: Program,
}

impl FilterProgram {
    /// Loads the program of an object file made by `clang -target bpf`, or raw instructions; which
    /// of the two is seen from the bytes. In an object file it is the one in section [`SECTION`].
    ///
    /// # Errors
    ///
    /// [`LoadError`], with the instruction at fault where there is one.
    pub fn load(file: &[u8]) -> Result<Self, LoadError> {
        let code =
            if file.starts_with(object::MAGIC) { object::section(file, SECTION)? } else { file };
        Ok(Self::from_code(Bytes::copy_from_slice(code))?)
    }

    /// Verifies raw instructions.
    pub(crate) fn from_code(code: Bytes) -> Result<Self, VerifyError> {
        let program = Program::verify(&code, CONTEXT_WORDS)?;
        Ok(Self { code, program })
    }

    /// Its instructions as they are loaded, 8 bytes each.
    #[must_use]
    pub fn code(&self) -> &Bytes {
        &self.code
    }

    /// How many instructions it has: no run takes more steps.
    #[must_use]
    pub fn instructions(&self) -> usize {
        self.program.instructions()
    }

    pub(super) fn accepts(&self, subject: Subject<'_>) -> bool {
        let Some(payload) = subject.payload.map(Seen::bytes) else {
            return true;
        };
        let key = subject.attributes.key().unwrap_or_default();
        let word = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let context = [
            word(key.len() + payload.len()),
            word(key.len()),
            subject.attributes.content_type().to_byte().into(),
        ];
        match self.program.run(Unread::new(key, payload), &context) {
            Outcome::Returned(result) => result & u64::from(u32::MAX) != 0,
            Outcome::PastEnd => false,
        }
    }
}

impl PartialEq for FilterProgram {
    fn eq(&self, other: &Self) -> bool {
        self.code == other.code
    }
}

impl Eq for FilterProgram {}

impl fmt::Debug for FilterProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.program.fmt(f)
    }
}

/// The section of an object file that a filter stands in.
pub const SECTION: &str = "socket";
/// Words of a filter's context.
pub const CONTEXT_WORDS: usize = 3;
