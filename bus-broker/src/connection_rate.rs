//! How often a user, and one of his processes, may connect.
//!
//! A token bucket each: it holds as many connections as may be made in a second, and fills at that
//! rate. A process has half of its user's, so one that connects in a circle leaves the other half to
//! the rest. A bucket is kept as the time at which it will be full again (the generic cell rate
//! algorithm), so one that is full is forgotten and nothing runs to fill it.
//!
//! Invariant: nobody is counted who is refused, so who waits as long as he is told gets in unless
//! others were faster.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bus_core::Process;

/// The buckets of all who have connected within the last second.
#[derive(Debug)]
pub(crate) struct ConnectionRate {
    /// Connections of one user in a second.
    rate: u32,
    full_at: HashMap<Who, Instant>,
    tidy_at: usize,
}

/// Whose bucket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Who {
    User(u32),
    Process(u32, Process),
}

impl ConnectionRate {
    pub(crate) fn new(rate: u64) -> Self {
        let mut new = Self { rate: 1, full_at: HashMap::new(), tidy_at: TIDY_FROM };
        new.set_rate(rate);
        new
    }

    /// From now on it is so many a second. When a bucket is full again stays as it was counted.
    pub(crate) fn set_rate(&mut self, rate: u64) {
        self.rate = u32::try_from(rate).unwrap_or(u32::MAX).max(1);
    }

    /// Counts a connection.
    ///
    /// # Errors
    ///
    /// There were too many just now: how long to wait.
    pub(crate) fn count(
        &mut self,
        uid: u32,
        process: Process,
        now: Instant,
    ) -> Result<(), Duration> {
        if self.full_at.len() >= self.tidy_at {
            self.full_at.retain(|_, at| *at > now);
            self.tidy_at = TIDY_FROM.max(2 * self.full_at.len());
        }
        let half = self.rate.div_ceil(2);
        let both = [(Who::User(uid), self.rate), (Who::Process(uid, process), half)];
        let mut next = [now; 2];
        for ((who, rate), next) in both.iter().zip(&mut next) {
            let full_at = self.full_at.get(who).copied().unwrap_or(now).max(now);
            *next = full_at + SECOND / *rate;
            if let Some(late) = next.checked_duration_since(now + SECOND).filter(|d| !d.is_zero()) {
                return Err(late);
            }
        }
        self.full_at.extend(both.iter().map(|(who, _)| *who).zip(next));
        Ok(())
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// Buckets from which the full ones are looked for.
const TIDY_FROM: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(pid: u32) -> Process {
        Process::Pid(pid)
    }

    /// How many connections a process can make at once.
    fn burst(rate: &mut ConnectionRate, process: Process, now: Instant) -> usize {
        (0..).take_while(|_| rate.count(1000, process, now).is_ok()).count()
    }

    #[test]
    fn a_process_has_half_of_its_users_and_leaves_the_other() {
        let now = Instant::now();
        let mut rate = ConnectionRate::new(100);
        assert_eq!(burst(&mut rate, pid(1), now), 50);
        assert_eq!(burst(&mut rate, pid(2), now), 50);
        assert_eq!(burst(&mut rate, pid(3), now), 0, "the user has had his");
        assert!(rate.count(1001, pid(1), now).is_ok(), "another user");
    }

    #[test]
    fn who_waits_as_long_as_he_is_told_gets_in() {
        let start = Instant::now();
        let mut rate = ConnectionRate::new(10);
        burst(&mut rate, pid(1), start);
        let wait = rate.count(1000, pid(1), start).unwrap_err();
        assert!(wait <= Duration::from_millis(200), "{wait:?}");
        assert!(rate.count(1000, pid(1), start + wait - Duration::from_millis(1)).is_err());
        assert!(rate.count(1000, pid(1), start + wait).is_ok());
        let later = start + Duration::from_secs(3);
        assert_eq!(burst(&mut rate, pid(1), later), 5, "no more than a second's are saved up");
    }

    #[test]
    fn buckets_that_are_full_are_forgotten() {
        let start = Instant::now();
        let mut rate = ConnectionRate::new(1 << 20);
        for n in 0..4_000 {
            let later = start + Duration::from_millis(u64::from(n) * 10);
            rate.count(1000, pid(n), later).unwrap();
        }
        assert!(rate.full_at.len() <= TIDY_FROM);
    }
}
