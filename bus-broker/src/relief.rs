//! Memory that was needed and is not any more goes back to the system.
//!
//! The C library keeps what was freed, in case it is needed again: after ten thousand connections or
//! a few large messages a broker would occupy for weeks what it needed for a moment. So a thread that
//! has closed many connections or read many bytes since the last time ([`Since::is_much`]) cuts its
//! tables, lets go of its spare buffers, and has the library look, [`AFTER`] the event and not more often
//! than every [`PAUSE`]: what lies in whole free pages is given back. Each time is counted
//! (`memory_given_back`), so that one can wait for it. An idle broker has nothing to look for, and does not wake up.
//!
//! Only in a process that is the broker's own ([`Broker::own_process`](crate::Broker::own_process)):
//! the memory of another program is not ours to look through.
//!
//! # Safety
//!
//! `malloc_trim` takes a number and no pointer, may be called at any time by any thread, and gives
//! back only pages in which nothing is allocated.
#![expect(unsafe_code, reason = "a function of the C library that nobody has wrapped")]

use std::time::{Duration, Instant};

/// When one thread looks.
#[derive(Debug)]
pub(crate) struct Relief {
    since: Since,
    last: Option<Instant>,
    due: Option<Instant>,
}

/// What has happened since the last look.
#[derive(Clone, Copy, Debug, Default)]
struct Since {
    /// Connections that were closed.
    closed: u32,
    /// The bytes that had been read by then.
    bytes: u64,
}

impl Relief {
    pub(crate) fn new() -> Self {
        Self { since: Since::default(), last: None, due: None }
    }

    /// A connection was closed; `is_loose` if the table of connections has become much too long.
    pub(crate) fn closed(&mut self, is_loose: bool) {
        self.since.closed = self.since.closed.saturating_add(if is_loose { MANY } else { 1 });
    }

    /// When to look next, if there may be something: `bytes` were read by now, ever.
    pub(crate) fn next_look(&mut self, bytes: u64, now: Instant) -> Option<Instant> {
        if self.due.is_none() && self.since.is_much(bytes) {
            let rested = self.last.map_or(now, |last| last + PAUSE);
            self.due = Some(rested.max(now + AFTER));
        }
        self.due
    }

    /// Whether it is time. From then on it counts anew.
    pub(crate) fn is_due(&mut self, bytes: u64, now: Instant) -> bool {
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        self.due = None;
        self.last = Some(now);
        self.since = Since { closed: 0, bytes };
        true
    }
}

impl Since {
    fn is_much(self, bytes: u64) -> bool {
        self.closed >= MANY || bytes.wrapping_sub(self.bytes) >= MUCH
    }
}

/// Gives back what is free. Takes some milliseconds where that is much.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: see above.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Connections of which some megabytes may be left.
const MANY: u32 = 100;
/// Bytes read of which some megabytes may be left.
const MUCH: u64 = 4 << 20;
/// How long after the event: what is not over yet goes on for a while, mostly.
const AFTER: Duration = Duration::from_secs(1);
/// What is given back has to be taken again where it was needed after all.
const PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_after_much_and_seldom() {
        let mut relief = Relief::new();
        let start = Instant::now();
        assert_eq!(relief.next_look(MUCH - 1, start), None);
        let first = relief.next_look(MUCH, start).unwrap();
        assert_eq!(first, start + AFTER);
        assert!(!relief.is_due(MUCH, start));
        assert!(relief.is_due(MUCH + 5, first));
        assert!(!relief.is_due(MUCH + 5, first), "once");
        assert_eq!(relief.next_look(MUCH + 5, first), None, "nothing since");
        for _ in 0..MANY {
            relief.closed(false);
        }
        assert_eq!(relief.next_look(MUCH + 5, first), Some(first + PAUSE));
        assert!(relief.is_due(MUCH + 5, first + PAUSE));
        relief.closed(true);
        let next = relief.next_look(MUCH + 5, first + PAUSE);
        assert_eq!(next, Some(first + 2 * PAUSE), "one behind whose place there was nobody");
    }
}
