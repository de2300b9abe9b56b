//! What receivers do with large payloads, and how much of their time that is.
//!
//! Invariant: whoever copies out has all bytes in memory of its own when it is done, and whoever reads in
//! place has looked at each line of the processor's cache that they lie in. The time that this takes is
//! the thread's own, so that of others and of sleep is no part of it. To ask for it is a call of the
//! kernel, which would be counted as what the system costs that is measured; so it is asked for with one
//! payload of a few, and what asking takes is taken off again.

use std::hint::black_box;

use rustix::time::{ClockId, clock_gettime};

use super::plan::{Plan, Reading};

/// A receiver's way with payloads.
#[derive(Debug)]
pub(crate) struct Reader {
    how: Option<Reading>,
    /// Where payloads are copied to that come elsewhere.
    own: Option<Vec<u8>>,
    watch: Watch,
}

/// The CPU time of the thread that something takes, as told by some of the times that it is done.
#[derive(Debug)]
struct Watch {
    times: u64,
    timed: u64,
    /// Nanoseconds, of those that were timed.
    spent: u64,
    /// Nanoseconds that asking takes.
    asking: u64,
}

impl Reader {
    pub(crate) fn new(plan: &Plan) -> Self {
        let own = plan.apart.then(|| vec![0; plan.size]);
        Self { how: plan.reading, own, watch: Watch::new() }
    }

    /// Reads a payload, and gives it on.
    pub(crate) fn read(&mut self, payload: &[u8], sink: &mut dyn FnMut(&[u8])) {
        match (self.how, &mut self.own) {
            (Some(Reading::CopyOut), Some(own)) if own.len() == payload.len() => {
                self.watch.time(|| own.copy_from_slice(payload));
                sink(own);
            }
            (Some(Reading::InPlace), _) => {
                self.watch.time(|| {
                    black_box(sum(payload));
                });
                sink(payload);
            }
            _ => sink(payload),
        }
    }

    /// Nanoseconds of CPU time.
    pub(crate) fn spent(&self) -> u64 {
        self.watch.spent()
    }
}

impl Watch {
    fn new() -> Self {
        let questions = (0..100).map(|_| {
            let began = own_time();
            own_time() - began
        });
        Self { times: 0, timed: 0, spent: 0, asking: questions.min().unwrap_or(0) }
    }

    fn time(&mut self, act: impl FnOnce()) {
        let is_timed = self.times.is_multiple_of(TIMED_EVERY);
        self.times += 1;
        if !is_timed {
            return act();
        }
        let began = own_time();
        act();
        self.spent += (own_time() - began).saturating_sub(self.asking);
        self.timed += 1;
    }

    /// If the others took as long as those that were timed.
    fn spent(&self) -> u64 {
        let all = u128::from(self.spent) * u128::from(self.times);
        let spent = all.checked_div(u128::from(self.timed)).unwrap_or(0);
        u64::try_from(spent).expect("nobody has used the processor for centuries")
    }
}

/// The sum of the first word of each 64 bytes.
fn sum(payload: &[u8]) -> u64 {
    let words = payload.chunks(LINE).filter_map(|line| line.first_chunk());
    words.fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

fn own_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let (seconds, nanoseconds) = (time.tv_sec, time.tv_nsec);
    u64::try_from(seconds * 1_000_000_000 + nanoseconds).expect("it starts at 0")
}

const LINE: usize = 64;
/// Prime, so that it is not always the first of those that come at once.
const TIMED_EVERY: u64 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_counts_once() {
        let mut payload = vec![0; 200];
        for (at, byte) in [(0, 1), (64, 2), (128, 4), (192, 8), (72, 100)] {
            payload[at] = byte;
        }
        assert_eq!(sum(&payload), 15);
    }

    #[test]
    fn what_is_not_timed_counts_as_what_is() {
        let mut watch = Watch { times: 0, timed: 0, spent: 0, asking: 0 };
        assert_eq!(watch.spent(), 0);
        let mut acts = 0;
        (0..TIMED_EVERY + 1).for_each(|_| watch.time(|| acts += 1));
        assert_eq!((acts, watch.timed), (TIMED_EVERY + 1, 2));
        watch.spent = 10;
        assert_eq!(watch.spent(), 5 * (TIMED_EVERY + 1));
    }
}
