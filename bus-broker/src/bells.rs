//! Clients that sleep beside their rings, and have something there.
//!
//! Invariant: all of them are rung at the end of the turn that has brought it, unless there is more input; and then
//! at the latest when the bound is over, which is about what waking so many takes. So what comes meanwhile
//! goes with the same waking, and input that never ends keeps nobody asleep.

use std::time::{Duration, Instant};

use crate::inbox::Token;

/// Connections whose clients are to be rung, each once.
#[derive(Debug, Default)]
pub(crate) struct Bells {
    whose: Vec<Token>,
    /// When ringing was put off first.
    since: Option<Instant>,
}

impl Bells {
    /// One more, which is not among them.
    pub(crate) fn push(&mut self, token: Token) {
        self.whose.push(token);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.whose.is_empty()
    }

    /// Those to be rung at the end of a turn: all, or none yet if there is more to read.
    pub(crate) fn take_due(&mut self, now: Instant, has_more: bool) -> Vec<Token> {
        let sleepers = u32::try_from(self.whose.len()).unwrap_or(u32::MAX);
        let bound = WAITS.saturating_mul(sleepers).min(WAITS_MOST);
        let since = *self.since.get_or_insert(now);
        if has_more && now.saturating_duration_since(since) < bound {
            return Vec::new();
        }
        self.since = None;
        std::mem::take(&mut self.whose)
    }
}

/// How long a bell may wait for each of those that are to be rung: about what waking takes.
const WAITS: Duration = Duration::from_micros(8);
/// The longest that a bell waits.
const WAITS_MOST: Duration = Duration::from_micros(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn bells(sleepers: u64) -> Bells {
        let mut bells = Bells::default();
        (0..sleepers).for_each(|number| bells.push(Token::from_u64(number)));
        bells
    }

    #[test]
    fn all_are_rung_at_once_when_there_is_no_more_input() {
        let mut bells = bells(3);
        assert_eq!(bells.take_due(Instant::now(), false).len(), 3);
        assert!(bells.is_empty());
    }

    #[test]
    fn input_that_never_ends_puts_bells_off_as_long_as_waking_takes_and_no_longer() {
        for (sleepers, micros) in [(1, 8), (8, 64), (200, 500)] {
            let (mut bells, begin) = (bells(sleepers), Instant::now());
            let bound = Duration::from_micros(micros);
            assert!(bells.take_due(begin, true).is_empty());
            assert!(bells.take_due(begin + bound - Duration::from_micros(1), true).is_empty());
            assert_eq!(bells.take_due(begin + bound, true).len() as u64, sleepers);
            // Those that come after it have the whole bound again.
            bells.push(Token::from_u64(0));
            assert!(bells.take_due(begin + 2 * bound, true).is_empty());
        }
    }
}
