//! What an I/O thread counts: cells that it alone writes, added up by who asks.
//!
//! Invariant: each of these cells is written by one thread, so counting is a load, an addition and a
//! store to a line that no other thread writes; a read or a write of a socket costs nobody else
//! anything. Nothing depends on them, so they are relaxed.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows, with one writer at a time.
#[derive(Debug, Default)]
pub(crate) struct Tally(AtomicU64);

impl Tally {
    pub(crate) fn add(&self, count: usize) {
        if count != 0 {
            self.0.store(self.get().wrapping_add(count as u64), Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that only grows, and that many threads count; for what is rare.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(crate) fn add(&self, count: u64) {
        if count != 0 {
            self.0.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one I/O thread counts beside what the bus does.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct ThreadCounters {
    /// Sends and their refusals as clients were told.
    pub(crate) refused: Tally,
    pub(crate) protocol_errors: Tally,
    pub(crate) bytes_read: Tally,
    pub(crate) bytes_written: Tally,
    /// Connections that were refused; the first thread accepts.
    pub(crate) connections_refused: Tally,
    /// Times that it gave memory back.
    pub(crate) reliefs: Tally,
}

/// The counters of all threads together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) refused: u64,
    pub(crate) protocol_errors: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
    pub(crate) connections_refused: u64,
    pub(crate) reliefs: u64,
}

impl Counters {
    pub(crate) fn add(&mut self, thread: &ThreadCounters) {
        self.refused += thread.refused.get();
        self.protocol_errors += thread.protocol_errors.get();
        self.bytes_read += thread.bytes_read.get();
        self.bytes_written += thread.bytes_written.get();
        self.connections_refused += thread.connections_refused.get();
        self.reliefs += thread.reliefs.get();
    }
}
