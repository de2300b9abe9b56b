//! What a broker occupies, and what it may keep of what it had.
//!
//! Compared is the memory that is its own: anonymous pages. Pages of its program's file are counted
//! apart; they come as code runs for the first time, and the system takes them when it wants them.

use std::fmt;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// In KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) own: u64,
    file: u64,
    shared: u64,
}

impl Memory {
    pub(super) fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            number.unwrap().parse().unwrap()
        };
        Self { own: kib("RssAnon:"), file: kib("RssFile:"), shared: kib("RssShmem:") }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { own, file, shared } = self;
        write!(f, "{own} KiB of its own ({file} of its program, {shared} shared)")
    }
}

impl Memory {
    /// The most that a broker may keep that began with this, and once had so many connections.
    pub(super) fn with_kept(self, connections: usize) -> u64 {
        self.own + KEPT_KIB + connections as u64 * TABLES_BYTES / 1024
    }
}

/// Waits until a broker has given back what it does not need, which it does some seconds after it
/// needed it; but not for ever.
pub(super) fn until_given_back(pid: u32, most: u64) {
    let until = Instant::now() + GIVES_BACK;
    while Instant::now() < until && Memory::of(pid).own > most {
        thread::park_timeout(Duration::from_millis(20));
    }
}

/// Longer than the broker pauses between two times.
const GIVES_BACK: Duration = Duration::from_secs(15);
/// What is kept by design: the flight recorder (1 MiB), the log's two buffers (256 KiB), what threads
/// read into and write from, and stacks that were used.
const KEPT_KIB: u64 = 2 << 10;
/// Of tables that have grown for a connection and its endpoint, and do not shrink.
const TABLES_BYTES: u64 = 768;
