//! A payload that lies apart, where it was found.
//!
//! # Safety
//!
//! References are made to mapped memory in two cases. In an arena the bytes were written by the broker
//! before it told of them, nobody else can write there (the file is sealed against it, which was
//! checked), and the broker writes there again only after this payload was released, which happens
//! when it is dropped. A file was checked to be sealed against every change. Bytes that their sender can
//! still write are only copied.
#![expect(unsafe_code, reason = "payloads are read where they lie")]

use std::any::Any;
use std::sync::{Arc, OnceLock};

use bus_core::lease;
use bus_core::wire::{MessageView, PayloadFound};
use bus_memory::Mapping;
use bytes::Bytes;

use super::{Chores, Haste, LentRegion, Way};
use crate::state::Interest;

/// A payload that was found; released when dropped.
#[derive(Debug)]
pub(crate) struct Found {
    place: Place,
    offset: usize,
    length: usize,
    hold: u32,
    chores: Arc<Chores>,
    /// The broker's copy, once it was given anew.
    moved: OnceLock<Bytes>,
    /// A copy of what is lent.
    copy: OnceLock<Bytes>,
}

#[derive(Debug)]
pub(crate) enum Place {
    /// The broker's memory.
    Arena(Arc<Mapping>),
    /// A file that nobody can change.
    File(Mapping),
    /// Memory of the sender's.
    Lent { region: Arc<LentRegion>, word: u32, generation: u64 },
    /// Nowhere that this process could look; it has been asked for.
    Elsewhere,
}

/// The bytes are not lent any more, and the broker that has the copy is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the payload was lent and is so no longer, and the broker that has its copy is gone")]
pub struct Revoked;

impl Found {
    pub(crate) fn new(
        place: Place,
        offset: usize,
        length: usize,
        hold: u32,
        chores: Arc<Chores>,
    ) -> Self {
        let (moved, copy) = (OnceLock::new(), OnceLock::new());
        Self { place, offset, length, hold, chores, moved, copy }
    }

    /// Whether its bytes can be had without waiting for the broker.
    pub(crate) fn is_here(&self) -> bool {
        !matches!(self.place, Place::Elsewhere) || self.moved.get().is_some()
    }

    /// Whether the bytes of a message can be had without waiting for the broker.
    pub(crate) fn is_here_in(message: &MessageView) -> bool {
        message.found().is_none_or(Self::is_found)
    }

    /// Whether the bytes can be had without waiting for the broker.
    pub(crate) fn is_found(found: &dyn PayloadFound) -> bool {
        found.as_any().downcast_ref::<Self>().is_none_or(Self::is_here)
    }

    /// Whether the broker may give it anew.
    pub(crate) fn may_move(&self) -> bool {
        matches!(self.place, Place::Lent { .. } | Place::Elsewhere)
    }

    /// The broker's copy has come.
    pub(crate) fn set_moved(&self, bytes: Bytes) {
        let _ = self.moved.set(bytes);
    }

    /// How it came here.
    pub(crate) fn way(&self) -> Way {
        match self.place {
            Place::Arena(_) => Way::Arena,
            Place::File(_) => Way::File,
            Place::Lent { .. } => Way::Buffer,
            Place::Elsewhere => Way::Inline,
        }
    }

    pub(crate) fn is_lent(&self) -> bool {
        matches!(self.place, Place::Lent { .. })
    }

    /// Copies a part out; the copy is of what was sent, or it is none.
    fn read_at(&self, at: usize, into: &mut [u8]) -> Result<(), Revoked> {
        let Place::Lent { region, word, generation } = &self.place else {
            into.copy_from_slice(&self.stable().ok_or(Revoked)?[at..at + into.len()]);
            return Ok(());
        };
        if self.moved.get().is_none() {
            region.memory.copy_out(self.offset + at, into);
            let word = region.words.word(8 * *word as usize);
            if lease::still_lent(word, *generation) {
                return Ok(());
            }
        }
        let moved = self.wait_for_moved().ok_or(Revoked)?;
        into.copy_from_slice(&moved[at..at + into.len()]);
        Ok(())
    }

    /// The bytes where they lie, if nobody writes there.
    #[inline]
    fn stable(&self) -> Option<&[u8]> {
        let mapping = match &self.place {
            Place::Arena(mapping) => mapping,
            Place::File(mapping) => mapping,
            Place::Lent { .. } | Place::Elsewhere => {
                return self.moved.get().map(|bytes| &bytes[..]);
            }
        };
        // SAFETY: see the header: an arena's bytes stay until this is dropped, a file's for ever.
        Some(unsafe { mapping.bytes(self.offset, self.length) })
    }

    /// The broker gives a copy before it takes the original away, so it is there or on its way.
    fn wait_for_moved(&self) -> Option<&Bytes> {
        if self.moved.get().is_none()
            && let Some(connection) = self.chores.connection()
        {
            connection.wait(Interest::Anything, None, None, |state| {
                // Another broker would know nothing of it.
                let over = state.gone().is_some() || !Arc::ptr_eq(state.all_chores(), &self.chores);
                (self.moved.get().is_some() || over).then_some(())
            });
        }
        self.moved.get()
    }
}

impl PayloadFound for Found {
    fn bytes(&self) -> &[u8] {
        if let Some(bytes) = self.stable() {
            return bytes;
        }
        self.copy.get_or_init(|| {
            let mut bytes = vec![0; self.length];
            match self.read_at(0, &mut bytes) {
                Ok(()) => bytes.into(),
                Err(Revoked) => Bytes::new(),
            }
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        let haste = match self.place {
            Place::Arena(_) | Place::Elsewhere => Haste::None,
            Place::File(_) | Place::Lent { .. } => Haste::Some,
        };
        self.chores.release(self.hold, self.length, haste);
    }
}

/// A payload to be read in parts, where it lies.
///
/// What its sender can still write ([`is_lent`](Self::is_lent)) is copied out part by part, and each part is
/// checked after it was copied: a part that was read is a part of what was sent. When the loan has ended
/// meanwhile the reader goes on from the broker's copy, and notices nothing.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    how: How<'a>,
}

#[derive(Clone, Copy, Debug)]
enum How<'a> {
    Bytes(&'a [u8]),
    Found(&'a Found),
}

impl<'a> View<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { how: How::Bytes(bytes) }
    }

    pub(crate) fn of(found: &'a Found) -> Self {
        match found.stable() {
            Some(bytes) => Self::new(bytes),
            None => Self { how: How::Found(found) },
        }
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.how {
            How::Bytes(bytes) => bytes.len(),
            How::Found(found) => found.length,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the sender can still write the bytes, so that they have to be copied to be read.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        matches!(self.how, How::Found(found) if found.is_lent())
    }

    /// The bytes where they lie, if nobody can write them.
    #[must_use]
    pub fn as_slice(&self) -> Option<&'a [u8]> {
        match self.how {
            How::Bytes(bytes) => Some(bytes),
            How::Found(_) => None,
        }
    }

    /// Copies the part that begins at `at` out. Where the loan has ended it may wait for the broker's
    /// copy, which is on its way.
    ///
    /// # Errors
    ///
    /// See [`Revoked`].
    ///
    /// # Panics
    ///
    /// The part goes beyond the payload.
    pub fn read_at(&self, at: usize, into: &mut [u8]) -> Result<(), Revoked> {
        match self.how {
            How::Bytes(bytes) => {
                into.copy_from_slice(&bytes[at..at + into.len()]);
                Ok(())
            }
            How::Found(found) => {
                let end = at.checked_add(into.len());
                assert!(end.is_some_and(|end| end <= found.length), "within the payload");
                found.read_at(at, into)
            }
        }
    }

    /// Gives `each` the bytes in order, in parts: all at once if nobody can write them, else 4 KiB at a
    /// time, copied where the processor's nearest cache has them.
    ///
    /// # Errors
    ///
    /// See [`Revoked`]. What was given by then is what was sent.
    pub fn for_each_part(&self, mut each: impl FnMut(&[u8])) -> Result<(), Revoked> {
        let How::Found(found) = self.how else {
            each(self.as_slice().unwrap_or_default());
            return Ok(());
        };
        let mut part = [0; PART_BYTES];
        let mut at = 0;
        while at < found.length {
            let part = &mut part[..PART_BYTES.min(found.length - at)];
            found.read_at(at, part)?;
            each(part);
            at += part.len();
        }
        Ok(())
    }
}

const PART_BYTES: usize = 4 << 10;
