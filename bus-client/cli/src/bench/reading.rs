//! What receivers do with large payloads, and how much of their time that is.
//!
//! Invariant: whoever copies out has all bytes in memory of its own when it is done, and whoever reads in
//! place has looked at each line of the processor's cache that they lie in. The time that this takes is
//! the thread's own, so that of others and of sleep is no part of it.

use std::hint::black_box;

use rustix::time::{ClockId, clock_gettime};

use super::plan::{Plan, Reading};

/// A receiver's way with payloads.
#[derive(Debug)]
pub(crate) struct Reader {
    how: Option<Reading>,
    /// Where payloads are copied to that come elsewhere.
    own: Option<Vec<u8>>,
    spent: u64,
}

impl Reader {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self { how: plan.reading, own: plan.apart.then(|| vec![0; plan.size]), spent: 0 }
    }

    /// Reads a payload, and gives it on.
    pub(crate) fn read(&mut self, payload: &[u8], sink: &mut dyn FnMut(&[u8])) {
        match (self.how, &mut self.own) {
            (Some(Reading::CopyOut), Some(own)) if own.len() == payload.len() => {
                let began = own_time();
                own.copy_from_slice(payload);
                self.spent += own_time() - began;
                sink(own);
            }
            (Some(Reading::InPlace), _) => {
                let began = own_time();
                black_box(sum(payload));
                self.spent += own_time() - began;
                sink(payload);
            }
            _ => sink(payload),
        }
    }

    /// Nanoseconds of CPU time.
    pub(crate) fn spent(&self) -> u64 {
        self.spent
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
}
