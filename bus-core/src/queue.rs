//! An endpoint's bounded queue: a ring with one producer at a time and one reader.
//!
//! Invariant: slots from `head` to `tail` (taken modulo the length) hold entries and belong to the
//! reader; all others are empty and belong to the producer. Only the producer moves `tail`, only
//! the reader moves `head`, and each publishes its move after it has finished with the slot, so a
//! slot is never touched by both.
//!
//! That there is one producer and one reader is a matter of types: [`Producer`] and [`Consumer`]
//! cannot be cloned and move through `&mut self`. The producer lives behind its endpoint's lock,
//! so whoever commits holds it; the consumer lives in the endpoint's one
//! [`Receiver`](crate::Receiver). So the reader drains without any lock.
//!
//! # Safety
//!
//! The slots are the crate's only `unsafe` code. [`Ring`] is `Sync` because of the invariant above.
#![expect(unsafe_code, reason = "slots are handed between two threads without a lock")]

use std::fmt;
use std::mem::MaybeUninit;

use crossbeam_utils::CachePadded;

use crate::Gap;
use crate::batch::Batch;
use crate::intake::EndpointCore;
use crate::message::Message;
use crate::monitor::Monitored;
use crate::name_change::{NameNotice, OwnerChange};
use crate::notice::{Candidate, Eviction};
use crate::request::Outcome;
use crate::retained::Retained;
use crate::share::ShareSlot;
use crate::sync::{AtomicU64, Mutant, Ordering, RingArc as Arc, UnsafeCell, mutated};
use crate::view::ViewChange;

/// What a queue holds.
#[derive(Debug)]
pub(crate) enum Entry {
    Message {
        message: std::sync::Arc<Message>,
        /// The share of a foreign user that is charged as well (G10).
        user: Option<ShareSlot>,
    },
    /// A message before which others of its group were dropped for this endpoint (G7). A kind of its
    /// own, because few are: what is written in parts and read whole at once waits for the writes.
    AfterGap {
        message: std::sync::Arc<Message>,
        missed: Gap,
        /// As of [`Message`](Self::Message).
        user: Option<ShareSlot>,
    },
    /// Several messages, each with a place of its own in the queue.
    Batch(std::sync::Arc<Batch>),
    /// A message that came through a peer endpoint, whose share is charged as well.
    FromPeer {
        message: std::sync::Arc<Message>,
        missed: Option<Gap>,
        share: std::sync::Arc<EndpointCore>,
        user: Option<ShareSlot>,
    },
    /// A change in a group that the endpoint watches.
    View {
        change: std::sync::Arc<ViewChange>,
        /// Changes that it missed just before this one.
        missed: Option<Gap>,
    },
    /// What a monitor sees.
    Monitored {
        seen: Monitored,
        /// What it missed just before.
        missed: Option<Gap>,
    },
    /// What a group retained, at the place of a join, beside the queue's capacity.
    Retained(Box<Retained>),
    /// A change of owners of a name that the endpoint watches.
    Owner {
        change: std::sync::Arc<OwnerChange>,
        /// Changes that it missed just before this one.
        missed: Option<Gap>,
    },
    /// What became of a claim of a name, in a place that the claim has reserved for it (G8).
    Name(Box<NameNotice>),
    /// The end of a membership, in the place that the membership has reserved for it (G8).
    Evicted(Box<Eviction>),
    /// The outcome of a request that gets no reply, in the place that the request has kept.
    Outcome(Outcome),
    /// Somebody asks to be admitted to a gated group of the endpoint's.
    Candidate(Box<Candidate>),
}

impl Entry {
    /// The message, if it is one for this endpoint and not a monitor's copy.
    pub(crate) fn into_message(self) -> Option<std::sync::Arc<Message>> {
        match self {
            Self::Message { message, .. }
            | Self::AfterGap { message, .. }
            | Self::FromPeer { message, .. } => Some(message),
            _ => None,
        }
    }
}

/// A commit to many touches an entry in as many rings: who makes it longer is to know.
const _: () = assert!(size_of::<Entry>() <= 80);

struct Ring {
    slots: Box<[UnsafeCell<MaybeUninit<Entry>>]>,
    /// Entries ever pushed.
    tail: CachePadded<AtomicU64>,
    /// Entries ever popped.
    head: CachePadded<AtomicU64>,
}

// SAFETY: a slot is reached only through the one `Producer` (when it is empty) or the one
// `Consumer` (when it holds an entry), as the module's invariant says; entries are `Send`.
unsafe impl Sync for Ring {}
// SAFETY: a `Ring` owns its entries, and they are `Send`.
unsafe impl Send for Ring {}

impl Ring {
    fn slot(&self, position: u64) -> &UnsafeCell<MaybeUninit<Entry>> {
        // The length is a power of two, so the remainder is right across the wrap of `u64` too.
        // The length is a power of two.
        #[expect(clippy::cast_possible_truncation, reason = "the remainder fits the length")]
        let index = (position & (self.slots.len() as u64 - 1)) as usize;
        &self.slots[index]
    }

    /// The ordering that publishes a finished slot to the other side.
    fn publish(mutant: Mutant) -> Ordering {
        if mutated(mutant) { Ordering::Relaxed } else { Ordering::Release }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Both ends are gone: what is left belongs to nobody else.
        let tail = self.tail.load(Ordering::Acquire);
        let mut head = self.head.load(Ordering::Acquire);
        while head != tail {
            // SAFETY: slots from `head` to `tail` hold entries, and `&mut self` is exclusive.
            self.slot(head).with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            head += 1;
        }
    }
}

/// The end that entries go into. It lives under its endpoint's lock.
pub(crate) struct Producer {
    ring: Arc<Ring>,
    tail: u64,
    /// The reader's position when last looked at: behind or equal to the real one, which can only
    /// make the ring look fuller than it is.
    head: u64,
}

/// The end that entries come out of.
pub(crate) struct Consumer {
    ring: Arc<Ring>,
    head: u64,
    /// The producer's position when last looked at.
    tail: u64,
}

/// Makes a ring with at least `places` places.
pub(crate) fn ring(places: usize) -> (Producer, Consumer) {
    let length = places.next_power_of_two();
    let ring = Arc::new(Ring {
        slots: (0..length).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
        tail: CachePadded::new(AtomicU64::new(0)),
        head: CachePadded::new(AtomicU64::new(0)),
    });
    let producer = Producer { ring: Arc::clone(&ring), tail: 0, head: 0 };
    (producer, Consumer { ring, head: 0, tail: 0 })
}

impl Producer {
    /// Whether a push would succeed.
    pub(crate) fn has_slot(&mut self) -> bool {
        let length = self.ring.slots.len() as u64;
        if self.tail - self.head < length {
            return true;
        }
        self.head = self.ring.head.load(Ordering::Acquire);
        self.tail - self.head < length
    }

    /// Appends what `entry` makes; false, and it is not made, if no slot is free.
    ///
    /// Inlined, so that an entry is made where it stays: a copy of one that has just been written
    /// in parts waits for the writes.
    #[inline(always)]
    pub(crate) fn push(&mut self, entry: impl FnOnce() -> Entry) -> bool {
        if !self.has_slot() {
            return false;
        }
        self.ring.slot(self.tail).with_mut(|slot| {
            let entry = entry();
            // SAFETY: `has_slot` saw this slot's former entry popped (Acquire on `head`), so it is
            // empty and ours; there is no other producer.
            unsafe { (*slot).write(entry) };
        });
        self.tail += 1;
        self.ring.tail.store(self.tail, Ring::publish(Mutant::TailRelaxed));
        true
    }

    /// Whether the reader has popped everything.
    pub(crate) fn is_drained(&self) -> bool {
        self.ring.head.load(Ordering::Acquire) == self.tail
    }
}

impl Consumer {
    /// Takes the oldest entry.
    pub(crate) fn pop(&mut self) -> Option<Entry> {
        if self.head == self.tail {
            self.tail = self.ring.tail.load(Ordering::Acquire);
            if self.head == self.tail {
                return None;
            }
        }
        // SAFETY: `tail` was published after this slot was written (Acquire above), and there is
        // no other consumer; the slot counts as empty from here on.
        let entry = self.ring.slot(self.head).with(|slot| unsafe { (*slot).assume_init_read() });
        self.head += 1;
        self.ring.head.store(self.head, Ring::publish(Mutant::HeadRelaxed));
        Some(entry)
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("tail", &self.tail).finish_non_exhaustive()
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("head", &self.head).finish_non_exhaustive()
    }
}
