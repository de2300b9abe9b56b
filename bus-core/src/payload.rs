//! The bytes of a message: with it, or apart from it.
//!
//! Invariant: whoever reads a payload as bytes reads what nobody can write any more. Of a payload that
//! lies apart its maker makes such bytes when they are asked for, once; so a filter never sees memory
//! that the sender can change under it, and where nobody looks nothing is copied.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

/// The bytes of a message: stored once, shared by all recipients, cheap to clone.
#[derive(Clone)]
pub struct Payload(Repr);

#[derive(Clone)]
enum Repr {
    Bytes(Bytes),
    Apart(Arc<dyn PayloadApart>),
}

/// A payload that lies elsewhere, such as in memory that its sender has lent.
///
/// It is dropped with the last message that has it, which may be on any thread that uses the bus, and
/// never under a lock of the bus.
pub trait PayloadApart: Any + fmt::Debug + Send + Sync {
    /// How many bytes it has.
    fn len(&self) -> usize;

    /// Whether it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, which nobody can write any more: if that takes a copy, it is made once. Called
    /// without locks of the bus.
    fn settled(&self) -> &Bytes;

    /// Whether its memory was its sender's, and it came as a reference to that. Else it came like any
    /// other, and only its recipients are to find it elsewhere.
    fn was_lent(&self) -> bool;
}

impl Payload {
    /// A payload that lies elsewhere.
    #[must_use]
    pub fn apart(payload: Arc<dyn PayloadApart>) -> Self {
        Self(Repr::Apart(payload))
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Repr::Bytes(bytes) => bytes.len(),
            Repr::Apart(apart) => apart.len(),
        }
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it takes of a queue's bytes: all of them, or of a payload that was lent a part
    /// ([`lent_queued_bytes`]).
    #[must_use]
    #[inline]
    pub fn queued_bytes(&self) -> u64 {
        match &self.0 {
            Repr::Bytes(bytes) => bytes.len() as u64,
            Repr::Apart(apart) if apart.was_lent() => lent_queued_bytes(apart.len() as u64),
            Repr::Apart(apart) => apart.len() as u64,
        }
    }

    /// The shared bytes themselves, for a transport.
    #[inline]
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        match &self.0 {
            Repr::Bytes(bytes) => bytes,
            Repr::Apart(apart) => apart.settled(),
        }
    }

    /// Whether it lies elsewhere.
    #[inline]
    #[must_use]
    pub fn is_apart(&self) -> bool {
        matches!(self.0, Repr::Apart(_))
    }

    /// Whether its sender has lent it (see [`PayloadApart::was_lent`]).
    #[inline]
    #[must_use]
    pub fn was_lent(&self) -> bool {
        matches!(&self.0, Repr::Apart(apart) if apart.was_lent())
    }

    /// What it is, if it lies elsewhere and is a `T`.
    #[must_use]
    pub fn as_apart<T: PayloadApart>(&self) -> Option<&T> {
        match &self.0 {
            Repr::Bytes(_) => None,
            Repr::Apart(apart) => (&**apart as &dyn Any).downcast_ref(),
        }
    }
}

/// What a lent payload of this length takes of a queue's bytes: a sixteenth, rounded up.
///
/// Its memory is not the queue's: it is its sender's, then an arena's, and both have bounds of their
/// own. But a queue must not keep as much of it as there are places: who does not read would hold memory
/// without end, or use up what its senders may lend. So a queue of `queue_bytes` has at most 16 times
/// that of lent payloads, and the one that crosses.
#[must_use]
pub const fn lent_queued_bytes(length: u64) -> u64 {
    length.div_ceil(LENT_BYTES_EACH)
}

/// Bytes of a lent payload that take one byte of a queue.
const LENT_BYTES_EACH: u64 = 16;

impl Default for Payload {
    fn default() -> Self {
        Self(Repr::Bytes(Bytes::new()))
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Payload {}

impl Deref for Payload {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self(Repr::Bytes(bytes))
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(Bytes::from(bytes))
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Self {
        Self::from(Bytes::from(text))
    }
}

impl From<&[u8]> for Payload {
    /// Copies the bytes.
    fn from(bytes: &[u8]) -> Self {
        Self::from(Bytes::copy_from_slice(bytes))
    }
}

impl From<&str> for Payload {
    /// Copies the text.
    fn from(text: &str) -> Self {
        text.as_bytes().into()
    }
}

impl fmt::Debug for Payload {
    /// Says how long it is: payloads never go to logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
