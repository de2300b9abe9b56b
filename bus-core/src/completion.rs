//! Which of the payloads that a connection has lent are free again, as ranges of numbers.
//!
//! Invariants:
//! - Every number that was [taken](Completions::take_number) and completed is read exactly once. A
//!   range never has a number twice, nor one of another range, nor numbers of which some were copied
//!   and others not.
//! - Numbers that are taken and not read, with those that are [admitted](Completions::admit) and have
//!   none yet, are at most the limit. So the queue of ranges is bounded without a bound of its own:
//!   each range has a number that nobody has read.
//!
//! The order of completion is whatever it is. A number that continues the last range extends it,
//! and any other begins a range of its own: whoever lends in order and gets back in order reads one
//! range, however many numbers it has.

use std::collections::VecDeque;
use std::task::Waker;

use crate::sync::{Mutant, Mutex, mutated};

/// Numbers that are completed, from `first` to `last`, both included. They wrap: after 4294967295
/// comes 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompletedRange {
    /// The first number.
    pub first: u32,
    /// The last number.
    pub last: u32,
    /// Whether the bytes were copied after all: then asking for no copy has saved none.
    pub copied: bool,
}

impl CompletedRange {
    /// A range of one number.
    #[must_use]
    pub const fn one(number: u32, copied: bool) -> Self {
        Self { first: number, last: number, copied }
    }

    /// A range of these numbers.
    #[must_use]
    pub const fn new(first: u32, last: u32, copied: bool) -> Self {
        Self { first, last, copied }
    }

    /// How many numbers it has; 0 stands for all 2^32.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.last.wrapping_sub(self.first).wrapping_add(1)
    }

    /// Whether it has this number.
    #[must_use]
    pub const fn contains(&self, number: u32) -> bool {
        number.wrapping_sub(self.first) <= self.last.wrapping_sub(self.first)
    }

    /// The numbers, one by one.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        let more = self.last.wrapping_sub(self.first);
        (0..=more).map(move |step| self.first.wrapping_add(step))
    }
}

/// A connection has as many lent payloads and unread completions as it may have. Read completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} payloads are lent or their completions unread")]
pub struct CompletionsFull {
    /// The limit.
    pub limit: u32,
}

/// The numbers of one connection: taken, completed, read.
///
/// ```
/// use bus_core::Completions;
///
/// let mut completions = Completions::new(16);
/// let numbers: Vec<u32> = (0..3)
///     .map(|_| {
///         completions.admit()?;
///         Ok::<_, bus_core::CompletionsFull>(completions.take_number())
///     })
///     .collect::<Result<_, _>>()?;
/// for number in numbers {
///     completions.complete(number, false);
/// }
/// let range = completions.read().expect("three numbers");
/// assert_eq!((range.first, range.last, range.copied), (0, 2, false));
/// assert_eq!(completions.read(), None);
/// # Ok::<(), bus_core::CompletionsFull>(())
/// ```
#[derive(Debug)]
pub struct Completions {
    limit: u32,
    next: u32,
    /// Admitted, and neither given up nor read.
    unread: u32,
    ranges: VecDeque<CompletedRange>,
}

impl Completions {
    /// No numbers yet; the first is 0.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self::starting_at(0, limit)
    }

    /// No numbers yet; the first is `next`.
    #[must_use]
    pub fn starting_at(next: u32, limit: u32) -> Self {
        Self { limit, next, unread: 0, ranges: VecDeque::new() }
    }

    /// Keeps a place for one that is about to be lent.
    ///
    /// # Errors
    ///
    /// See [`CompletionsFull`].
    pub fn admit(&mut self) -> Result<(), CompletionsFull> {
        if self.unread >= self.limit {
            return Err(CompletionsFull { limit: self.limit });
        }
        self.unread += 1;
        Ok(())
    }

    /// Gives up a place that was kept: what was to be lent took no number.
    pub fn give_up(&mut self) {
        debug_assert!(self.unread > 0, "who gives up was admitted");
        self.unread = self.unread.saturating_sub(1);
    }

    /// The number of the one that was lent in a place that was kept.
    pub fn take_number(&mut self) -> u32 {
        let number = self.next;
        self.next = number.wrapping_add(1);
        number
    }

    /// Takes note that a number is completed.
    pub fn complete(&mut self, number: u32, copied: bool) {
        extend(&mut self.ranges, number, copied);
    }

    /// Takes the oldest range. Never blocks.
    pub fn read(&mut self) -> Option<CompletedRange> {
        let range = self.ranges.pop_front()?;
        self.unread = self.unread.saturating_sub(range.count());
        Some(range)
    }

    /// Whether there is something to read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many are lent, or completed and not read.
    #[must_use]
    pub fn unread(&self) -> u32 {
        self.unread
    }
}

/// Completions on their way from whoever lets go last to the one that has lent.
///
/// Invariant: a completion that finds the queue's waker takes and calls it, and a reader leaves its
/// waker only while the queue is empty, both under one lock: so no completion lies there unseen. Once
/// closed the queue takes nothing: who has lent is gone.
#[derive(Debug, Default)]
pub struct CompletionQueue(Mutex<Queued>);

#[derive(Debug, Default)]
struct Queued {
    ranges: VecDeque<CompletedRange>,
    waker: Option<Waker>,
    closed: bool,
}

impl CompletionQueue {
    /// Nothing is completed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A payload is free again. Called with no lock held; calls the reader's waker.
    pub fn complete(&self, number: u32, copied: bool) {
        let mut queued = self.0.lock();
        if queued.closed {
            return;
        }
        extend(&mut queued.ranges, number, copied);
        let waker = queued.waker.take();
        drop(queued);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes the oldest range; if there is none, leaves the waker to be called for the next.
    pub fn read(&self, waker: &Waker) -> Option<CompletedRange> {
        let mut queued = self.0.lock();
        let range = queued.ranges.pop_front();
        if range.is_none() {
            if mutated(Mutant::CompletionUnseen) {
                drop(queued);
                queued = self.0.lock();
            }
            queued.waker = Some(waker.clone());
        }
        range
    }

    /// Who has lent is gone.
    pub fn close(&self) {
        let mut queued = self.0.lock();
        queued.closed = true;
        let waker = queued.waker.take();
        drop(queued);
        drop(waker);
    }
}

fn extend(ranges: &mut VecDeque<CompletedRange>, number: u32, copied: bool) {
    match ranges.back_mut() {
        Some(tail) if tail.copied == copied && tail.last.wrapping_add(1) == number => {
            tail.last = number;
        }
        _ => ranges.push_back(CompletedRange::one(number, copied)),
    }
}

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn lent(completions: &mut Completions) -> u32 {
        completions.admit().expect("there is a place");
        completions.take_number()
    }

    #[test]
    fn what_continues_the_tail_extends_it_and_nothing_else_does() {
        let mut completions = Completions::new(16);
        (0..8).for_each(|_| {
            lent(&mut completions);
        });
        for (number, copied) in
            [(0, false), (1, false), (3, false), (2, false), (4, true), (5, true)]
        {
            completions.complete(number, copied);
        }
        let read: Vec<_> = std::iter::from_fn(|| completions.read()).collect();
        let range = CompletedRange::new;
        assert_eq!(
            read,
            [range(0, 1, false), range(3, 3, false), range(2, 2, false), range(4, 5, true)]
        );
    }

    #[test]
    fn the_counter_wraps_and_a_range_goes_across() {
        let mut completions = Completions::starting_at(u32::MAX - 1, 16);
        let numbers: Vec<_> = (0..4).map(|_| lent(&mut completions)).collect();
        assert_eq!(numbers, [u32::MAX - 1, u32::MAX, 0, 1]);
        numbers.iter().for_each(|number| completions.complete(*number, false));
        let range = completions.read().unwrap();
        assert_eq!((range.first, range.last, range.count()), (u32::MAX - 1, 1, 4));
        assert!(range.contains(u32::MAX) && range.contains(0) && !range.contains(2));
        assert_eq!(range.numbers().collect::<Vec<_>>(), numbers);
    }

    #[test]
    fn g8_what_is_unread_counts_against_the_limit_and_what_failed_does_not() {
        let mut completions = Completions::new(2);
        let first = lent(&mut completions);
        completions.admit().unwrap();
        assert_eq!(completions.admit(), Err(CompletionsFull { limit: 2 }));
        completions.give_up();
        let second = lent(&mut completions);
        assert_eq!(second, first + 1, "what failed took no number");
        completions.complete(first, false);
        assert!(completions.admit().is_err(), "completed, and not read");
        completions.read().unwrap();
        completions.admit().unwrap();
    }

    proptest! {
        /// Against a set: each number is read once, with the mark that it was completed with, and
        /// ranges that could be one are one.
        #[test]
        fn every_number_is_read_once_with_its_mark(
            start in prop_oneof![Just(0), Just(u32::MAX - 20), any::<u32>()],
            steps in prop::collection::vec((0..4_u8, any::<prop::sample::Index>(), any::<bool>()), 1..200),
        ) {
            let mut completions = Completions::starting_at(start, 32);
            let (mut lent, mut done, mut admitted) = (Vec::new(), Vec::new(), 0_u32);
            let mut expected = start;
            let mut read = BTreeSet::new();
            for (step, index, copied) in steps {
                match step {
                    0 => match completions.admit() {
                        Ok(()) => {
                            admitted += 1;
                            let number = completions.take_number();
                            prop_assert_eq!(number, expected);
                            expected = expected.wrapping_add(1);
                            lent.push(number);
                        }
                        Err(_) => prop_assert_eq!(admitted, 32),
                    },
                    1 if admitted < 32 => {
                        completions.admit().unwrap();
                        completions.give_up();
                    }
                    2 if !lent.is_empty() => {
                        let number = lent.remove(index.index(lent.len()));
                        completions.complete(number, copied);
                        done.push((number, copied));
                    }
                    3 => {
                        if let Some(range) = completions.read() {
                            for number in range.numbers() {
                                // In the order of completion, and no other number between.
                                prop_assert_eq!(done.remove(0), (number, range.copied));
                                prop_assert!(read.insert(number));
                                admitted -= 1;
                            }
                        } else {
                            prop_assert!(done.is_empty());
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!(completions.unread(), admitted);
                prop_assert_eq!(completions.is_empty(), done.is_empty());
            }
            // What is read in a row and fits together was not torn apart.
            let mut last: Option<CompletedRange> = None;
            while let Some(range) = completions.read() {
                if let Some(last) = last {
                    prop_assert!(last.copied != range.copied || last.last.wrapping_add(1) != range.first);
                }
                last = Some(range);
            }
        }
    }
}
