//! What the bus counts, so that somebody can see what it does: of groups, endpoints and lanes.
//!
//! Invariant: each count has one writer at a time, so counting is a plain load, addition and store
//! to memory that nobody else writes, and costs no sender a line that it shares with others. Who
//! asks adds up what the writers have left. Why there is one writer:
//!
//! | count | its writer |
//! |---|---|
//! | [`GroupTally`], a cell for each lock | whoever holds that lock and no lower one, at a commit |
//! | [`LaneTally`] | the lane's owner, who has it alone |
//! | [`Dwell`] | the endpoint's one reader |
//! | [`ReaderTimes`] | the one thread that has all readers that count there |
//! | [`Blocking`] | whoever holds the waiting room |
//!
//! Nothing depends on a count, so they are relaxed, and one that is read meanwhile may be a moment
//! old. Times are differences of what [`Bus::tick`](crate::Bus::tick) was told, and as precise.

use std::sync::Arc;
use std::time::Duration;

use crate::id::Sequence;
use crate::lock_set::LOCKS;
use crate::sync::{Aside, Mutant, Tally, mutated};

/// What was sent to a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupTraffic {
    /// Messages committed.
    pub messages: u64,
    /// Bytes of these, attributes and payloads, each once.
    pub bytes: u64,
    /// Places taken in queues by them.
    pub deliveries: u64,
    /// Times a drop-when-full member missed one.
    pub dropped: u64,
}

/// What was sent to a group, in a cell for each lock.
#[derive(Debug, Default)]
pub(crate) struct GroupTally {
    cells: [GroupCell; LOCKS],
}

/// On a line of its own: two commits that hold different locks share none.
#[derive(Debug, Default)]
#[repr(align(64))]
struct GroupCell {
    messages: Tally,
    bytes: Tally,
    deliveries: Tally,
    dropped: Tally,
}

impl GroupTally {
    /// One that a model explores.
    #[cfg(bus_loom)]
    pub(crate) fn seen() -> Self {
        let cell = || GroupCell { messages: Tally::seen(), ..GroupCell::default() };
        Self { cells: std::array::from_fn(|_| cell()) }
    }

    /// Counts a commit; `lowest` is the lowest lock that it holds.
    #[inline]
    pub(crate) fn add(&self, lowest: usize, bytes: u64, deliveries: u32, dropped: u32) {
        let lowest = if mutated(Mutant::TallyInOneCell) { 0 } else { lowest };
        let Some(cell) = self.cells.get(lowest) else {
            return;
        };
        cell.messages.add(1);
        cell.bytes.add(bytes);
        cell.deliveries.add(deliveries.into());
        if dropped != 0 {
            cell.dropped.add(dropped.into());
        }
    }

    pub(crate) fn sum(&self) -> GroupTraffic {
        let mut sum = GroupTraffic::default();
        for cell in &self.cells {
            sum.messages += cell.messages.get();
            sum.bytes += cell.bytes.get();
            sum.deliveries += cell.deliveries.get();
            sum.dropped += cell.dropped.get();
        }
        sum
    }
}

/// What was sent from an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sent {
    /// Bytes of messages committed, attributes and payloads.
    pub bytes: u64,
    /// Sends that had to wait for room.
    pub waits: u64,
    /// How long these have waited, all together; those that wait now not counted.
    pub waited: Duration,
    /// Sends that were refused, those included that would have had to wait.
    pub refused: u64,
}

/// What a lane has sent.
#[derive(Debug, Default)]
pub(crate) struct LaneTally {
    pub(crate) bytes: Tally,
    pub(crate) waits: Tally,
    pub(crate) waited_nanos: Tally,
    pub(crate) refused: Tally,
}

/// What all lanes of an endpoint have sent.
#[derive(Debug, Default)]
pub(crate) struct LaneTallies(Aside<Lanes>);

#[derive(Debug, Default)]
struct Lanes {
    open: Vec<Arc<LaneTally>>,
    /// Of lanes that have ended.
    past: Sent,
}

impl LaneTallies {
    pub(crate) fn open(&self) -> Arc<LaneTally> {
        let lane = Arc::new(LaneTally::default());
        self.0.lock().open.push(Arc::clone(&lane));
        lane
    }

    /// The lane ends; what it has sent stays counted.
    pub(crate) fn close(&self, lane: &Arc<LaneTally>) {
        let mut lanes = self.0.lock();
        lanes.past.add(lane);
        lanes.open.retain(|open| !Arc::ptr_eq(open, lane));
        if lanes.open.is_empty() {
            lanes.open = Vec::new();
        }
    }

    pub(crate) fn sum(&self) -> Sent {
        let lanes = self.0.lock();
        let mut sum = lanes.past;
        lanes.open.iter().for_each(|lane| sum.add(lane));
        sum
    }
}

impl Sent {
    fn add(&mut self, lane: &LaneTally) {
        self.bytes += lane.bytes.get();
        self.waits += lane.waits.get();
        self.waited += Duration::from_nanos(lane.waited_nanos.get());
        self.refused += lane.refused.get();
    }
}

/// The upper ends of the ranges of [`TimeInQueue`], in nanoseconds; the last one has none.
pub const DWELL_BOUNDS: [u64; DWELL_RANGES - 1] = [
    100_000,
    300_000,
    1_000_000,
    3_000_000,
    10_000_000,
    30_000_000,
    100_000_000,
    300_000_000,
    1_000_000_000,
    3_000_000_000,
    10_000_000_000,
];

const DWELL_RANGES: usize = 12;

/// How long messages were in queues: from their commits until their places were free again, which
/// behind a broker is when the application has given the credit back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimeInQueue {
    /// How many were in each of the ranges that end at [`DWELL_BOUNDS`], and beyond.
    pub counts: [u64; DWELL_RANGES],
    /// Their times, all together.
    pub total: Duration,
}

impl TimeInQueue {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The end of the range in which the `share`-th of all are, in thousandths: 500 for half of
    /// them. None without any, or if they are in the last range, which has no end.
    ///
    /// ```
    /// let mut time = bus_core::TimeInQueue::default();
    /// time.counts[0] = 98;
    /// time.counts[5] = 2;
    /// assert_eq!(time.at_most(500).unwrap().as_micros(), 100);
    /// assert_eq!(time.at_most(990).unwrap().as_millis(), 30);
    /// ```
    #[must_use]
    pub fn at_most(&self, share: u64) -> Option<Duration> {
        let count = self.count();
        let wanted = count.saturating_mul(share).div_ceil(1_000).max(1);
        let mut below = 0;
        for (counted, bound) in self.counts.iter().zip(DWELL_BOUNDS) {
            below += counted;
            if below >= wanted {
                return Some(Duration::from_nanos(bound));
            }
        }
        None
    }

    /// Adds what another one has.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.total += other.total;
    }
}

/// What a reader's messages have come to.
#[derive(Debug, Default)]
pub(crate) struct Dwell {
    counts: [Tally; DWELL_RANGES],
    nanos: Tally,
    acknowledged: Tally,
}

impl Dwell {
    /// `count` messages have been in the queue for `nanos`.
    pub(crate) fn add(&self, nanos: u64, count: u64) {
        let range = DWELL_BOUNDS.iter().position(|bound| nanos <= *bound);
        if let Some(cell) = self.counts.get(range.unwrap_or(DWELL_RANGES - 1)) {
            cell.add(count);
        }
        self.nanos.add(nanos.saturating_mul(count));
    }

    /// The application has taken everything up to here.
    pub(crate) fn acknowledge(&self, sequence: Sequence) {
        self.acknowledged.set(sequence.get());
    }

    /// Up to where the application is known to have taken everything.
    pub(crate) fn acknowledged(&self) -> Sequence {
        Sequence::from_raw(self.acknowledged.get())
    }

    pub(crate) fn sum(&self) -> TimeInQueue {
        let mut sum = TimeInQueue::default();
        for (count, cell) in sum.counts.iter_mut().zip(&self.counts) {
            *count = cell.get();
        }
        sum.total = Duration::from_nanos(self.nanos.get());
        sum
    }
}

/// Where readers of one thread count together how long messages were in their queues, so that who asks
/// for the sum looks at a place for each thread and not for each endpoint.
///
/// It is a number that only one thread at a time may change: readers that count here are to be used by
/// one thread, as a broker's connections are. Where that does not hold some are not counted.
#[derive(Clone, Debug)]
pub struct ReaderTimes(Arc<Dwell>);

impl ReaderTimes {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn add(&self, nanos: u64, count: u64) {
        self.0.add(nanos, count);
    }

    pub(crate) fn sum(&self) -> TimeInQueue {
        self.0.sum()
    }
}

/// How long an endpoint has made sends wait.
#[derive(Debug, Default)]
pub(crate) struct Blocking {
    pub(crate) sends: Tally,
    pub(crate) nanos: Tally,
}

/// Messages in a reader's hands that were drained one after the other: they were committed at the
/// same tick, so that their times are the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Which of the drained messages the last one is.
    pub(crate) last: u64,
    pub(crate) count: u64,
    pub(crate) time: u64,
    pub(crate) sequence: Sequence,
}

/// How many messages one run has at most: until all of them are taken, none is known to be.
pub(crate) const LONGEST_RUN: u64 = 32;

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_in_its_range() {
        let dwell = Dwell::default();
        for (nanos, range) in [(0, 0), (100_000, 0), (100_001, 1), (1_000_000_000, 8)] {
            let before = dwell.sum().counts[range];
            dwell.add(nanos, 3);
            assert_eq!(dwell.sum().counts[range], before + 3, "{nanos}");
        }
        dwell.add(u64::MAX / 2, 1);
        let sum = dwell.sum();
        assert_eq!((sum.counts[11], sum.count()), (1, 13));
        assert_eq!(sum.at_most(1_000), None, "the last range has no end");
    }

    #[test]
    fn lanes_that_have_ended_stay_counted() {
        let lanes = LaneTallies::default();
        let (one, two) = (lanes.open(), lanes.open());
        one.bytes.add(5);
        two.bytes.add(7);
        two.waits.add(1);
        lanes.close(&one);
        assert_eq!((lanes.sum().bytes, lanes.sum().waits), (12, 1));
        lanes.close(&two);
        assert_eq!((lanes.sum().bytes, lanes.sum().waits), (12, 1));
    }
}
