//! A clock that costs next to nothing to read, for decisions that need no precision.

use rustix::time::{ClockId, clock_gettime};

/// An instant of the kernel's coarse clock, which moves on every few milliseconds. Two that are
/// equal were read within one such step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick {
    seconds: i64,
    nanoseconds: i64,
}

impl Tick {
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::MonotonicCoarse);
        Self { seconds: now.tv_sec, nanoseconds: now.tv_nsec }
    }

    #[cfg(test)]
    pub(crate) fn from_seconds(seconds: i64) -> Self {
        Self { seconds, nanoseconds: 0 }
    }
}
