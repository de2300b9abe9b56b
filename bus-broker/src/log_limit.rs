//! How often the same thing is logged of the same peer.
//!
//! Every line at `warn` or above that can come again and again goes through here; the others are of a start,
//! or of an end. A test reads the source for it.
//!
//! Invariant: of one kind of event and one peer, in one [`WINDOW`], the first [`FIRST`] are logged,
//! then the tenth, the hundredth and so on, each with the number of those that were left out since
//! the line before. So what somebody makes happen a million times is a dozen lines, and the log
//! shows that it was a million. What is left out when a window ends is told with the next line of
//! this event and peer, and counted in any case.
//!
//! A peer is a process, not a connection: who is thrown out comes back with another connection. The
//! table is bounded; when it is full of peers, all others share one place (G8).

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bus_core::Credentials;

use crate::tally::Counter;

/// What is logged about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LogEvent {
    /// It broke the protocol.
    Protocol,
    /// There was no place for it.
    NoPlace,
    /// It did not greet in time.
    TooSlow,
    /// A member was evicted.
    Evicted,
    /// The system has no socket for us.
    Accept,
    /// The system has no socket for who asks for the metrics.
    Scraper,
    /// There is no place for who comes in.
    Refusing,
    /// There is no place for another stream of an ingress.
    Stream,
    /// A service starts.
    Starting,
    /// A service has not started.
    NotStarted,
    /// The helper does not do what it is there for.
    Helper,
    /// The system does not watch a socket or a bell.
    Watch,
    /// The system has no memory for payloads, or does not give one out.
    Memory,
    /// The policy was read again.
    Reload,
}

/// What to do about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Log it, and say how many like it were left out since the last line.
    Log {
        /// How many.
        suppressed: u64,
    },
    /// Leave it out.
    Suppress,
}

#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    peers: Mutex<HashMap<(LogEvent, Option<PeerKey>), Past>>,
    suppressed: Counter,
}

/// A process and its user.
type PeerKey = (u32, u32);

#[derive(Debug)]
struct Past {
    began: Instant,
    /// In this window.
    seen: u64,
    /// Since the last line.
    suppressed: u64,
}

impl LogLimit {
    /// Has an event logged that is nobody's but the broker's own, unless it is to be left out.
    pub(crate) fn log_of_broker(&self, event: LogEvent, say: impl FnOnce(u64)) {
        self.log(event, Credentials { uid: 0, pid: 0 }, say);
    }

    /// Has an event of a peer's logged, unless it is to be left out; `say` gets to know how many like it
    /// were left out since the last line.
    pub(crate) fn log(&self, event: LogEvent, peer: Credentials, say: impl FnOnce(u64)) {
        if let Verdict::Log { suppressed } = self.ask(event, peer, Instant::now()) {
            say(suppressed);
        }
    }

    /// Whether an event of a peer's is to be logged.
    fn ask(&self, event: LogEvent, peer: Credentials, now: Instant) -> Verdict {
        let mut peers = self.peers.lock().expect("nothing that can panic runs under this lock");
        let mut key = (event, Some((peer.uid, peer.pid)));
        if peers.len() >= MOST_PEERS && !peers.contains_key(&key) {
            peers.retain(|_, past| now.saturating_duration_since(past.began) < WINDOW);
            if peers.len() >= MOST_PEERS {
                key = (event, None);
            }
        }
        let past = peers.entry(key).or_insert(Past { began: now, seen: 0, suppressed: 0 });
        if now.saturating_duration_since(past.began) >= WINDOW {
            (past.began, past.seen) = (now, 0);
        }
        past.seen += 1;
        if past.seen <= FIRST || is_power_of_ten(past.seen) {
            return Verdict::Log { suppressed: std::mem::take(&mut past.suppressed) };
        }
        past.suppressed += 1;
        drop(peers);
        self.suppressed.add(1);
        Verdict::Suppress
    }

    /// How many lines were left out.
    pub(crate) fn suppressed(&self) -> u64 {
        self.suppressed.get()
    }
}

fn is_power_of_ten(mut count: u64) -> bool {
    while count > 1 && count.is_multiple_of(10) {
        count /= 10;
    }
    count == 1
}

/// How many of one kind are logged in a window before they are thinned out.
const FIRST: u64 = 5;
/// How long a window is.
const WINDOW: Duration = Duration::from_secs(60);
/// Events of peers of which is kept what was logged.
const MOST_PEERS: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(pid: u32) -> Credentials {
        Credentials { uid: 1000, pid }
    }

    #[test]
    fn g8_a_thousand_of_one_kind_are_a_few_lines_that_count_them_all() {
        let (limit, now) = (LogLimit::default(), Instant::now());
        let (mut lines, mut left_out) = (0, 0);
        for _ in 0..1_000 {
            if let Verdict::Log { suppressed } = limit.ask(LogEvent::Protocol, peer(1), now) {
                lines += 1;
                left_out += suppressed;
            }
        }
        assert_eq!((lines, lines + left_out), (8, 1_000), "5, the 10th, the 100th, the 1000th");
        assert_eq!(limit.suppressed(), left_out);
        let other = limit.ask(LogEvent::Protocol, peer(2), now);
        assert_eq!(other, Verdict::Log { suppressed: 0 }, "another peer has lines of its own");
        let event = limit.ask(LogEvent::TooSlow, peer(1), now);
        assert_eq!(event, Verdict::Log { suppressed: 0 }, "and so has another event");
    }

    /// Of those that can come twice each says how many were left out, and so has asked.
    #[test]
    fn g8_every_line_that_can_come_again_and_again_is_limited() {
        const ONCE: [&str; 15] = [
            // Of a signal, which takes the right to end it.
            "cannot reload",
            // Our own bug, and a panic in tests.
            "a frame could not be written",
            // Of a reload, which is limited as a whole.
            "not in force",
            "nobody has this name",
            "a service file is left out",
            "reloaded the policy",
            "in the sandbox",
            "no sandbox, as the configuration says",
            "this kernel has no landlock: files are not out of reach",
            "the limit of descriptors cannot be raised",
            "the helper cannot be told",
            "the helper has ended: no service is started any more",
            "metrics are not served any more",
            "cannot read signals; ending",
            "lines of the log are missing here: nobody took them in time",
        ];
        let mut lines = 0;
        let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                let (text, _) = text.split_once("#[cfg(test)]\nmod tests {").unwrap_or((&text, ""));
                for call in ["tracing::warn!(", "tracing::error!("] {
                    for (at, _) in text.match_indices(call) {
                        let line = text[at..].split_once(");").map_or("", |(line, _)| line);
                        lines += 1;
                        let is_limited = line.contains("suppressed");
                        let comes_once = ONCE.iter().any(|once| line.contains(once));
                        assert!(is_limited || comes_once, "{}: {line}", path.display());
                    }
                }
            }
        }
        assert!(lines > 20, "{lines}");
    }

    #[test]
    fn a_new_window_begins_with_what_was_left_out_of_the_last() {
        let (limit, now) = (LogLimit::default(), Instant::now());
        for _ in 0..8 {
            limit.ask(LogEvent::Protocol, peer(1), now);
        }
        let later = limit.ask(LogEvent::Protocol, peer(1), now + WINDOW);
        assert_eq!(later, Verdict::Log { suppressed: 3 });
    }

    #[test]
    fn g8_more_peers_than_are_kept_share_one_place() {
        let (limit, now) = (LogLimit::default(), Instant::now());
        let lines = (0..100_000).filter(|pid| {
            matches!(limit.ask(LogEvent::Protocol, peer(*pid), now), Verdict::Log { .. })
        });
        let lines = lines.count();
        assert!(lines <= MOST_PEERS + 10, "{lines}");
        assert!(limit.peers.lock().unwrap().len() <= MOST_PEERS + 1);
    }
}
