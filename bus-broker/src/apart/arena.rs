//! Memory in which the broker puts payloads for its clients to read.
//!
//! Invariant: bytes of a segment are written only while they belong to a [`Piece`] that nobody has been
//! told of yet, and a piece is given back when the last message and the last client that have it let go.
//! So what a client reads stays as it is until it says that it is done.
//!
//! A segment is sealed against everybody else's writing and against holes, so memory goes back to the
//! system only as a whole segment: one that has served nobody for a while is retired. One into which
//! nothing new comes, and which a single connection still reads, is *kept* by that: it is told, and
//! is charged the whole of it. Places are given out lowest first, so that few pages are in use, and these
//! are warm. All pages are taken when it is made, so that want of memory is an error, and readers find no
//! holes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;

use bus_core::Credentials;
use bus_memory::{Mapping, Segment};
use bytes::Bytes;

use crate::log_limit::{LogEvent, LogLimit};

/// Segments for one audience, or for one connection.
#[derive(Debug)]
pub(crate) struct Arena {
    budget: Arc<Budget>,
    segments: Mutex<Vec<Arc<ArenaSegment>>>,
}

/// A piece of memory that clients map.
#[derive(Debug)]
pub(crate) struct ArenaSegment {
    number: u64,
    memory: Segment,
    /// Places that are taken, ascending.
    taken: Mutex<Vec<(usize, usize)>>,
    /// Something was put here since the last sweep.
    used: AtomicBool,
    /// Nothing was between the last two sweeps.
    quiet: AtomicBool,
    /// Connections that have something here to read.
    holders: AtomicU32,
    /// Connections that have it mapped, to be told of its end, and when one alone keeps it.
    readers: Mutex<Vec<Waker>>,
    /// Whose payload it was made for.
    uid: u32,
    budget: Arc<Budget>,
}

/// A place in a segment; given back when dropped.
#[derive(Debug)]
pub(crate) struct Piece {
    segment: Arc<ArenaSegment>,
    offset: usize,
    length: usize,
    /// The segment was made for it.
    is_first: bool,
}

/// How much memory all arenas may have. What is made for one user's payloads is at most as much as it
/// leaves to others.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: Mutex<Used>,
    log_limit: Arc<LogLimit>,
}

#[derive(Debug, Default)]
struct Used {
    all: u64,
    by_user: HashMap<u32, u64>,
}

impl Budget {
    pub(super) fn new(limit: u64, log_limit: Arc<LogLimit>) -> Self {
        Self { limit, used: Mutex::default(), log_limit }
    }

    fn take(&self, uid: u32, bytes: u64) -> bool {
        let mut used = self.used.lock().expect("nothing panics under this lock");
        let of_user = used.by_user.get(&uid).copied().unwrap_or(0).saturating_add(bytes);
        let all = used.all.saturating_add(bytes);
        let fits = all <= self.limit && of_user <= self.limit - all;
        if fits {
            used.all = all;
            used.by_user.insert(uid, of_user);
        }
        fits
    }

    fn give_back(&self, uid: u32, bytes: u64) {
        let mut used = self.used.lock().expect("nothing panics under this lock");
        used.all -= bytes;
        if let Some(of_user) = used.by_user.get_mut(&uid) {
            *of_user -= bytes;
            if *of_user == 0 {
                used.by_user.remove(&uid);
            }
        }
    }
}

impl Arena {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, segments: Mutex::default() }
    }

    /// A place for `length` bytes of a user's; none if there is no memory for it.
    pub(crate) fn place(&self, uid: u32, length: usize) -> Option<Piece> {
        let mut segments = self.segments.lock().expect("nothing panics under this lock");
        for segment in &*segments {
            if let Some(offset) = segment.take(length) {
                let segment = Arc::clone(segment);
                return Some(Piece { segment, offset, length, is_first: false });
            }
        }
        let segment = Arc::new(ArenaSegment::new(uid, length, &self.budget)?);
        let offset = segment.take(length)?;
        segments.push(Arc::clone(&segment));
        Some(Piece { segment, offset, length, is_first: true })
    }

    /// Whether it has no memory.
    pub(super) fn is_empty(&self) -> bool {
        self.segments.lock().expect("nothing panics under this lock").is_empty()
    }

    /// Takes out the segments that have served nobody since the last call.
    pub(super) fn take_unused(&self) -> Vec<Arc<ArenaSegment>> {
        let mut segments = self.segments.lock().expect("nothing panics under this lock");
        segments
            .extract_if(.., |segment| {
                !segment.used.swap(false, Ordering::Relaxed) && Arc::strong_count(segment) == 1
            })
            .collect()
    }

    /// The segments that have become quiet although somebody reads them. Before
    /// [`take_unused`](Self::take_unused).
    pub(super) fn newly_quiet(&self) -> Vec<Arc<ArenaSegment>> {
        let segments = self.segments.lock().expect("nothing panics under this lock");
        let quiet = segments.iter().filter(|segment| {
            !segment.used.load(Ordering::Relaxed)
                && Arc::strong_count(segment) > 1
                && !segment.quiet.swap(true, Ordering::Relaxed)
        });
        quiet.cloned().collect()
    }
}

impl ArenaSegment {
    fn new(uid: u32, least: usize, budget: &Arc<Budget>) -> Option<Self> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let length = least.max(SEGMENT_BYTES).next_multiple_of(PAGE_BYTES);
        if !budget.take(uid, length as u64) {
            return None;
        }
        let made = Segment::for_readers("unisono-arena", length)
            .and_then(|memory| memory.take_pages().map(|()| memory));
        let memory = match made {
            Ok(memory) => memory,
            Err(error) => {
                budget.give_back(uid, length as u64);
                budget.log_limit.log(LogEvent::Memory, Credentials { uid, pid: 0 }, |suppressed| {
                    tracing::warn!(%error, uid, suppressed, "no memory for payloads: they go by the sockets");
                });
                return None;
            }
        };
        memory.mapping().prepare();
        Some(Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            memory,
            taken: Mutex::default(),
            used: AtomicBool::new(true),
            quiet: AtomicBool::new(false),
            holders: AtomicU32::new(0),
            readers: Mutex::default(),
            uid,
            budget: Arc::clone(budget),
        })
    }

    /// Never used again for another one in this process.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn memory(&self) -> &Segment {
        &self.memory
    }

    /// Calls the waker when the segment is gone, and when it may be that one connection alone keeps it.
    pub(crate) fn tell(&self, waker: Waker) {
        self.readers.lock().expect("nothing panics under this lock").push(waker);
    }

    /// One connection more has something here to read.
    pub(crate) fn enter(&self) {
        self.holders.fetch_add(1, Ordering::Relaxed);
        if self.quiet.load(Ordering::Relaxed) {
            self.tell_readers();
        }
    }

    /// One connection reads nothing here any more.
    pub(crate) fn leave(&self) {
        self.holders.fetch_sub(1, Ordering::Relaxed);
        if self.quiet.load(Ordering::Relaxed) {
            self.tell_readers();
        }
    }

    /// Whether who has something here to read is the only reason for it to be.
    pub(crate) fn is_kept_by_one(&self) -> bool {
        self.quiet.load(Ordering::Relaxed) && self.holders.load(Ordering::Relaxed) == 1
    }

    pub(super) fn tell_readers(&self) {
        let readers = self.readers.lock().expect("nothing panics under this lock").clone();
        readers.iter().for_each(Waker::wake_by_ref);
    }

    /// The lowest place with room.
    fn take(&self, length: usize) -> Option<usize> {
        let length = length.max(LEAST_PLACE).next_multiple_of(ALIGNMENT);
        let mut taken = self.taken.lock().expect("nothing panics under this lock");
        let mut start = 0;
        let mut at = taken.len();
        for (index, (from, to)) in taken.iter().enumerate() {
            if start + length <= *from {
                at = index;
                break;
            }
            start = *to;
        }
        if start + length > self.memory.len() {
            return None;
        }
        taken.insert(at, (start, start + length));
        self.used.store(true, Ordering::Relaxed);
        self.quiet.store(false, Ordering::Relaxed);
        Some(start)
    }

    fn give_back(&self, offset: usize) {
        let mut taken = self.taken.lock().expect("nothing panics under this lock");
        if let Ok(index) = taken.binary_search_by_key(&offset, |(from, _)| *from) {
            taken.remove(index);
        }
    }
}

impl Drop for ArenaSegment {
    fn drop(&mut self) {
        self.budget.give_back(self.uid, self.memory.len() as u64);
        let readers = self.readers.get_mut().map(std::mem::take).unwrap_or_default();
        readers.into_iter().for_each(Waker::wake);
    }
}

impl Piece {
    pub(crate) fn segment(&self) -> &Arc<ArenaSegment> {
        &self.segment
    }

    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes of memory that had to be made for it, which takes about as long as to copy so many.
    pub(crate) fn made_bytes(&self) -> usize {
        if self.is_first { self.segment.memory.len() } else { 0 }
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        self.segment.memory.mapping().copy_in_for_others(self.offset, bytes);
    }

    pub(super) fn copy_from(&self, other: &Self) {
        self.fill_from(other.segment.memory.mapping(), other.offset);
    }

    pub(super) fn fill_from(&self, source: &Mapping, from: usize) {
        self.segment.memory.mapping().copy_from(self.offset, source, from, self.length);
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        let mut bytes = vec![0; self.length];
        self.segment.memory.mapping().copy_out(self.offset, &mut bytes);
        bytes.into()
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.segment.give_back(self.offset);
    }
}

/// Segments have this length, or what one payload needs.
const SEGMENT_BYTES: usize = 4 << 20;
const PAGE_BYTES: usize = 4096;
/// Two payloads never share a line of the cache.
const ALIGNMENT: usize = 64;
/// What a payload takes at least, one of no bytes too: no two begin at one place, and so few fit a segment
/// that looking through its places is soon done, whoever fills it.
const LEAST_PLACE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(limit: u64) -> (Arena, Arc<Budget>) {
        let budget = Arc::new(Budget::new(limit, Arc::default()));
        (Arena::new(Arc::clone(&budget)), budget)
    }

    #[test]
    fn places_do_not_overlap_and_are_used_again() {
        let (arena, _) = arena(64 << 20);
        let one = arena.place(1, 5000).unwrap();
        let two = arena.place(1, 1 << 20).unwrap();
        assert_eq!((one.made_bytes(), two.made_bytes()), (SEGMENT_BYTES, 0));
        let three = arena.place(1, 6000).unwrap();
        assert_eq!((one.offset, two.offset), (0, 5056));
        assert_eq!(three.offset, 5056 + (1 << 20));
        drop(two);
        assert_eq!(arena.place(1, 1 << 19).unwrap().offset, 5056, "the lowest that is free");
        assert_eq!(arena.place(1, 2 << 20).unwrap().offset, 5056 + (1 << 20) + 6016);
        one.write(b"first");
        assert_eq!(&one.to_bytes()[..5], b"first");
    }

    #[test]
    fn g10_payloads_of_few_bytes_or_none_have_places_of_their_own_and_few_fit_a_segment() {
        let (arena, _) = arena(64 << 20);
        let first = arena.place(1, 5000).unwrap();
        let empty = arena.place(2, 0).unwrap();
        assert_ne!(empty.offset, first.offset);
        drop(empty);
        assert_ne!(arena.place(1, 1).unwrap().offset, first.offset, "it is still there");
        drop(first);
        let fit = SEGMENT_BYTES / LEAST_PLACE;
        let pieces: Vec<_> = (0..=fit).map(|_| arena.place(1, 1).unwrap()).collect();
        let is_with_first = |at: usize| Arc::ptr_eq(&pieces[at].segment, &pieces[0].segment);
        assert!(is_with_first(fit - 1) && !is_with_first(fit));
        assert!(fit <= 1024);
    }

    #[test]
    fn g8_memory_is_bounded_and_comes_back() {
        let (arena, budget) = arena(16 << 20);
        let large = arena.place(1, 3 << 20).unwrap();
        let other = arena.place(1, 3 << 20).unwrap();
        assert!(arena.place(1, 3 << 20).is_none(), "two segments of four are all for one user");
        let third = arena.place(2, 3 << 20).unwrap();
        assert!(arena.place(2, 3 << 20).is_none(), "as much as is left");
        drop(third);
        drop((large, other));
        assert_eq!(arena.take_unused().len(), 0, "used since the last sweep");
        assert_eq!(arena.take_unused().len(), 3);
        assert!(arena.is_empty());
        let used = budget.used.lock().unwrap();
        assert_eq!((used.all, used.by_user.len()), (0, 0));
    }
}
