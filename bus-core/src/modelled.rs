//! Doors for the models in `loom-tests`. Not part of the library: no user's build has this module.
//!
//! Models go through the public interface wherever it reaches. It does not reach the ring on its
//! own, whose invariant must hold whatever the queue around it does, nor the list of mutants.

use std::sync::Arc;

use crate::id::EndpointId;
use crate::lock_set::{LockBits, LockIndex, LockSet};
use crate::message::{Credentials, Destination, Message};
use crate::payload::Payload;
use crate::queue::{self, Consumer, Entry, Producer};
use crate::recorder::RecorderSize;
use crate::sync::Mutant;
use crate::tally::GroupTally;

/// The names of all mutants.
pub fn mutants() -> impl Iterator<Item = &'static str> {
    Mutant::ALL.iter().map(|(name, _)| *name)
}

/// The end of a ring that messages go into.
#[derive(Debug)]
pub struct RingIn(Producer);

/// The end of a ring that messages come out of.
#[derive(Debug)]
pub struct RingOut(Consumer);

/// A ring with at least `places` places.
#[must_use]
pub fn ring(places: usize) -> (RingIn, RingOut) {
    let (producer, consumer) = queue::ring(places);
    (RingIn(producer), RingOut(consumer))
}

impl RingIn {
    /// Appends a message. False if no slot is free.
    pub fn push(&mut self, payload: impl Into<Payload>) -> bool {
        let nobody = Credentials { uid: 0, pid: 0 };
        let to = Destination::Endpoint(EndpointId::from_raw(0));
        let message = Message::new(EndpointId::from_raw(0), nobody, to, payload.into().into());
        self.0.push(|| Entry::Message { message: Arc::new(message), user: None })
    }
}

impl RingOut {
    /// Takes the oldest message's payload.
    pub fn pop(&mut self) -> Option<Payload> {
        let message = self.0.pop()?.into_message();
        Some(message.expect("only messages were pushed").payload().clone())
    }
}

/// Memory of one side of a ring in shared memory, in which loom sees who touches which cell.
#[derive(Debug)]
pub struct ModelMemory {
    /// The page's words, in the order of [`WORDS`].
    words: Vec<crate::sync::AtomicU64>,
    heads: Vec<crate::sync::AtomicU64>,
    cells: Vec<crate::sync::UnsafeCell<[u8; 56]>>,
}

// SAFETY: what it is for is that loom finds two threads at one cell at a time.
#[expect(unsafe_code, reason = "loom checks every access")]
unsafe impl Sync for ModelMemory {}

/// Offsets of the page's words.
const WORDS: [usize; 6] = [0, 128, 256, 384, 512, 1024];

impl ModelMemory {
    /// Memory for a ring of so many cells.
    #[must_use]
    pub fn new(cells: usize) -> Self {
        let word = |_| crate::sync::AtomicU64::new(0);
        Self {
            words: (0..WORDS.len()).map(word).collect(),
            heads: (0..cells).map(word).collect(),
            cells: (0..cells).map(|_| crate::sync::UnsafeCell::new([0; 56])).collect(),
        }
    }

    fn cell(at: usize) -> (usize, usize) {
        ((at - 4096) / 64, (at - 4096) % 64)
    }
}

impl crate::ring::Memory for ModelMemory {
    fn word(&self, at: usize) -> &crate::sync::AtomicU64 {
        match WORDS.iter().position(|word| *word == at) {
            Some(index) => &self.words[index],
            None => &self.heads[Self::cell(at).0],
        }
    }

    #[expect(unsafe_code, reason = "loom checks every access")]
    fn put(&self, at: usize, bytes: &[u8]) {
        let (cell, from) = Self::cell(at);
        // SAFETY: loom ends the model if somebody else is at this cell.
        self.cells[cell].with_mut(|place| unsafe {
            (&mut (*place))[from - 8..from - 8 + bytes.len()].copy_from_slice(bytes);
        });
    }

    #[expect(unsafe_code, reason = "loom checks every access")]
    fn get(&self, at: usize, into: &mut [u8]) {
        let (cell, from) = Self::cell(at);
        // SAFETY: as above.
        self.cells[cell].with(|place| unsafe {
            into.copy_from_slice(&(&(*place))[from - 8..from - 8 + into.len()]);
        });
    }
}

/// The two ends of a ring of so few cells that a model wraps it. Records have one cell each.
#[must_use]
pub fn shared_ring(
    cells: u32,
) -> (
    crate::ring::RingWriter<crate::sync::RingArc<ModelMemory>>,
    crate::ring::RingReader<crate::sync::RingArc<ModelMemory>>,
) {
    let side = || crate::sync::RingArc::new(ModelMemory::new(cells as usize));
    let (writers, readers) = (side(), side());
    let size = crate::ring::RingSize::of_cells(cells);
    (
        crate::ring::RingWriter::new(writers.clone(), readers.clone(), size),
        crate::ring::RingReader::new(readers, writers, size),
    )
}

/// What a group's commits count, and the locks under which they do.
#[derive(Debug)]
pub struct Counted {
    locks: LockSet,
    tally: GroupTally,
}

/// Nothing has been counted yet.
#[must_use]
pub fn counted() -> Counted {
    Counted { locks: LockSet::new(RecorderSize::off()), tally: GroupTally::seen() }
}

impl Counted {
    /// Counts one commit that holds these locks.
    pub fn commit(&self, locks: &[u64]) {
        let mut bits = LockBits::NONE;
        locks.iter().for_each(|lock| bits.insert(LockIndex::from_hash(*lock)));
        let mut held = self.locks.acquire(bits);
        if let Some((lowest, _)) = held.lowest() {
            self.tally.add(lowest, 0, 0, 0);
        }
    }

    /// How many commits were counted.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.tally.sum().messages
    }
}
