//! Connections that nobody has any more, and that descriptors in queues keep open.
//!
//! A client is dead when the last descriptor of its connection is closed. That may lie in a queue of
//! this bus: in a socket that somebody has sent, and to whose other end the client has sent its
//! connection before it ended. Then the queue keeps the client, and may be the client's own. The kernel
//! finds such circles among sockets, but this one goes through the broker.
//!
//! Invariant: what lies in queues for a process that has ended does not keep anything open for longer
//! than two looks, each a stall limit after the one before. A connection is ended whose process has ended, that has said nothing from one look
//! to the next, and for which messages with descriptors wait. A connection that was left to another
//! process is one like any while it speaks, or has no such messages to take.
//!
//! It is looked only while descriptors are under way: who sends some says so to all threads.

use std::time::{Duration, Instant};

/// When a thread looks at its connections.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    look_at: Option<Instant>,
}

impl Orphans {
    /// There are descriptors under way: looks after this time, as long as a reader may be silent while
    /// others wait for it.
    pub(crate) fn expect(&mut self, now: Instant, every: Duration) {
        self.look_at = self.look_at.or_else(|| now.checked_add(every));
    }

    /// When to look next.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether it is time; another look follows only if [`expect`](Self::expect) says so.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        self.look_at.take_if(|at| *at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_looked_once_for_all_that_is_expected_meanwhile() {
        let mut orphans = Orphans::default();
        let now = Instant::now();
        const EVERY: Duration = Duration::from_secs(10);
        assert!(!orphans.is_due(now + EVERY));
        orphans.expect(now, EVERY);
        orphans.expect(now + EVERY / 2, EVERY);
        assert_eq!(orphans.next_look(), Some(now + EVERY));
        assert!(!orphans.is_due(now));
        assert!(orphans.is_due(now + EVERY));
        assert!(!orphans.is_due(now + EVERY));
    }
}
