//! The bus's 8 locks, and how an operation takes some of them.
//!
//! Invariant: locks are taken in ascending order, and all of them are held before the first push.
//! The instant at which the last one is held and all checks have passed is the commit point. Two
//! messages with a common recipient need a common lock, so their commit points are ordered and
//! every common recipient sees that order (G2); and since everybody ascends, no cycle of waits can
//! form.
//!
//! Each lock guards the producer's side of the queues of the endpoints that hash to it, and a
//! clock. A commit draws its sequence from the clocks of the locks that it holds: one more than
//! the largest of them and of what its sender has seen, made unique by the number of the lowest
//! held lock, and all held clocks are set to it. (Lamport's clocks, one per lock.) In every queue
//! sequences rise, because a queue's lock is held by each commit that reaches it; two commits with
//! the same tick and the same lowest lock would both hold that lock, and the second would have
//! seen the first one's tick. One shared counter would give the same order and cost senders to
//! disjoint recipients the line it lives on.

use bitvec::array::BitArray;
use bitvec::order::Lsb0;
use crossbeam_utils::CachePadded;

use crate::id::{EndpointId, Sequence};
use crate::intake::Intake;
use crate::recorder::{RecorderSize, Track};
use crate::sync::{Mutant, Mutex, MutexGuard, mutated};
use crate::table::Table;

/// How many locks a bus has.
pub const LOCKS: usize = 8;

/// Bits of a sequence that hold the number of the lowest held lock.
const LOCK_BITS: u32 = LOCKS.trailing_zeros();

/// By how much the sequences exceed each other that one commit draws.
pub(crate) const STEP: u64 = 1 << LOCK_BITS;

/// The sequence that was drawn so many after this one, by the same commit.
pub(crate) fn later(sequence: Sequence, count: u64) -> Sequence {
    Sequence::from_raw(sequence.get().wrapping_add(count * STEP))
}

/// Which of the bus's 8 locks covers an endpoint, a group without recipients, or a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LockIndex(u8);

impl LockIndex {
    /// The lock for a hash: its lowest bits.
    #[expect(clippy::cast_possible_truncation, reason = "a remainder by 8 fits")]
    pub(crate) const fn from_hash(hash: u64) -> Self {
        Self((hash % LOCKS as u64) as u8)
    }

    pub(crate) fn at(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of the bus's locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LockBits(BitArray<[u8; 1], Lsb0>);

impl LockBits {
    pub(crate) const NONE: Self = Self(BitArray::ZERO);

    pub(crate) fn all() -> Self {
        Self(BitArray::new([u8::MAX]))
    }

    pub(crate) fn one(lock: LockIndex) -> Self {
        let mut bits = Self::NONE;
        bits.insert(lock);
        bits
    }

    /// The locks that cover at least one of the counted endpoints.
    pub(crate) fn covering(per_lock: &[u32; LOCKS]) -> Self {
        let mut bits = Self::NONE;
        for (at, count) in per_lock.iter().enumerate() {
            bits.0.set(at, *count != 0);
        }
        bits
    }

    pub(crate) fn insert(&mut self, lock: LockIndex) {
        self.0.set(lock.at(), true);
    }

    pub(crate) fn insert_all(&mut self, others: Self) {
        self.0 |= others.0;
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0.not_any()
    }
}

/// What one lock guards.
#[derive(Debug)]
pub(crate) struct Shard {
    /// Ticks of the last commit that held this lock.
    clock: u64,
    /// The producer's sides of the queues of the endpoints that hash here.
    pub(crate) intakes: Table<Intake>,
    /// What commits whose lowest lock this is have done.
    pub(crate) counters: Counters,
    /// The last of these commits, for who asks what became of them.
    pub(crate) track: Track,
}

/// Counts of one lock's commits. Kept under the lock, so that counting costs no shared line.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) messages: u64,
    /// Of these, each counted once.
    pub(crate) bytes: u64,
    pub(crate) deliveries: u64,
    pub(crate) dropped: u64,
    pub(crate) requests: u64,
    /// Requests that have their outcome.
    pub(crate) answered: u64,
}

#[derive(Debug)]
pub(crate) struct LockSet {
    locks: [CachePadded<Mutex<Shard>>; LOCKS],
}

impl LockSet {
    pub(crate) fn new(recorder: RecorderSize) -> Self {
        let shard = || Shard {
            clock: 0,
            intakes: Table::new(),
            counters: Counters::default(),
            track: Track::new(recorder),
        };
        Self { locks: std::array::from_fn(|_| CachePadded::new(Mutex::new(shard()))) }
    }

    /// Takes the locks of `bits` in ascending order.
    pub(crate) fn acquire(&self, bits: LockBits) -> Held<'_> {
        let mut guards = [const { None }; LOCKS];
        if mutated(Mutant::LocksOutOfOrder) && bits.0[LOCKS - 1] {
            for at in bits.0.iter_ones().rev() {
                guards[at] = Some(self.locks[at].lock());
            }
            return Held { guards };
        }
        for (at, guard) in guards.iter_mut().enumerate() {
            if bits.0[at] {
                *guard = Some(self.locks[at].lock());
            }
        }
        Held { guards }
    }

    /// Takes one lock.
    pub(crate) fn acquire_one(&self, lock: LockIndex) -> MutexGuard<'_, Shard> {
        self.locks[lock.at()].lock()
    }

    /// Gives back the memory of places behind the last one that is taken; the caller has the
    /// directory, so nobody is about to take one.
    pub(crate) fn shrink(&self) {
        for lock in &self.locks {
            let mut shard = lock.lock();
            if shard.intakes.is_loose() {
                shard.intakes.shrink();
            }
        }
    }
}

/// Locks that are held; dropping this releases them.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    guards: [Option<MutexGuard<'a, Shard>>; LOCKS],
}

impl Held<'_> {
    fn shards(&mut self) -> impl Iterator<Item = (usize, &mut Shard)> {
        let guards = self.guards.iter_mut().enumerate();
        guards.filter_map(|(at, guard)| guard.as_deref_mut().map(|shard| (at, shard)))
    }

    /// The producer's side of an endpoint's queue, if the endpoint is still there.
    pub(crate) fn intake(&mut self, place: IntakePlace) -> Option<&mut Intake> {
        let shard = self.guards[place.lock.at()].as_deref_mut()?;
        shard
            .intakes
            .get_mut(place.slot as usize)
            .filter(|intake| intake.id() == place.id || mutated(Mutant::SlotNotCompared))
    }

    /// Takes an endpoint out of its shard; the caller drops it once the locks are released.
    pub(crate) fn remove(&mut self, place: IntakePlace) -> Option<Intake> {
        self.intake(place)?;
        let shard = self.guards[place.lock.at()].as_deref_mut()?;
        shard.intakes.remove(place.slot as usize)
    }

    /// Draws the next sequence after `seen`, the largest that the sender knows of.
    pub(crate) fn draw(&mut self, seen: Sequence) -> Sequence {
        self.draw_many(seen, 1)
    }

    /// Draws so many sequences: gives the first one, the others come [`later`], one by one.
    pub(crate) fn draw_many(&mut self, seen: Sequence, count: u64) -> Sequence {
        let mut tick = seen.get() >> LOCK_BITS;
        let mut lowest = None;
        for (at, shard) in self.shards() {
            if !(mutated(Mutant::SequenceFromOneClock) && lowest.is_some()) {
                tick = tick.max(shard.clock);
            }
            lowest.get_or_insert(at);
        }
        tick += 1;
        for (at, shard) in self.shards() {
            if !(mutated(Mutant::AdvanceOneClock) && Some(at) != lowest) {
                shard.clock = tick + count - 1;
            }
        }
        if mutated(Mutant::SequenceWithoutLock) {
            lowest = None;
        }
        Sequence::from_raw(tick << LOCK_BITS | lowest.unwrap_or(0) as u64)
    }

    /// A sequence that no commit before this instant exceeds, and every later one does in any queue
    /// whose lock is held.
    pub(crate) fn now(&mut self) -> Sequence {
        let tick = self.shards().map(|(_, shard)| shard.clock).max().unwrap_or(0);
        Sequence::from_raw(tick << LOCK_BITS | (LOCKS as u64 - 1))
    }

    /// The counters of all held locks together.
    pub(crate) fn sum_counters(&mut self) -> Counters {
        let mut sum = Counters::default();
        for (_, shard) in self.shards() {
            sum.messages += shard.counters.messages;
            sum.bytes += shard.counters.bytes;
            sum.deliveries += shard.counters.deliveries;
            sum.dropped += shard.counters.dropped;
            sum.requests += shard.counters.requests;
            sum.answered += shard.counters.answered;
        }
        sum
    }

    /// The counters of this commit: those of the lowest held lock.
    pub(crate) fn counters(&mut self) -> Option<&mut Counters> {
        self.lowest().map(|(_, shard)| &mut shard.counters)
    }

    /// The lowest held lock, and what it guards: where this commit is counted.
    pub(crate) fn lowest(&mut self) -> Option<(usize, &mut Shard)> {
        self.shards().next()
    }
}

/// Where the producer's side of an endpoint's queue lives. Slots are reused, ids are not, so a
/// stale place finds nobody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IntakePlace {
    pub(crate) id: EndpointId,
    pub(crate) lock: LockIndex,
    pub(crate) slot: u32,
}
