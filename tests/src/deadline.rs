//! Waiting for what is no event.

use std::time::{Duration, Instant};

/// One deadline for everything: far beyond what any step takes, also on a busy machine, so that
/// reaching it is a failure.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Looks until it finds; what it saw last is in the message if it never does.
///
/// # Panics
///
/// At the deadline.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(instead) => {
                assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}, but {instead}")
            }
        }
        // What is looked at needs the processor too. Nothing depends on how long this is.
        std::thread::park_timeout(PAUSE);
    }
}

const PAUSE: Duration = Duration::from_millis(1);
