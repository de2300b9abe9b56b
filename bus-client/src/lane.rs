//! A lane's sends on this side: which wait here, and how many the broker has.
//!
//! Invariants: sends leave in the order in which they were put here (G3). What has left and is not
//! answered stays within the window that the broker has told, or the broker would end the
//! connection. While a send of the *alone* kind has left and is not answered, nothing follows it:
//! it may come back (only its own sender's room was missing, and it is to be tried again) or be
//! refused without anybody waiting, and then nothing that was sent after it has overtaken it or
//! falls with it.

use std::collections::VecDeque;

use bus_core::wire::Serial;

use crate::inbox::Amount;

/// The sends of one lane, on this side.
#[derive(Debug, Default)]
pub(crate) struct LaneState {
    waiting: VecDeque<Serial>,
    left: Amount,
    alone: Option<Serial>,
    /// A pipelined send that does not wait was refused, and the application has not yet resumed.
    pub(crate) refused: bool,
    /// Whether a handle of this lane exists, so that its number is taken.
    pub(crate) open: bool,
}

impl LaneState {
    /// Whether nothing of the lane is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.left == Amount::default()
    }

    /// Puts a send last.
    pub(crate) fn push(&mut self, serial: Serial) {
        self.waiting.push_back(serial);
    }

    /// Puts a send that came back first.
    pub(crate) fn push_front(&mut self, serial: Serial) {
        self.waiting.push_front(serial);
    }

    /// The send that is to leave next, if the window and those before it let it.
    pub(crate) fn next(&self, window: Amount) -> Option<Serial> {
        if self.alone.is_some() || !self.left.below(window) {
            return None;
        }
        self.waiting.front().copied()
    }

    /// The oldest send that has not left.
    pub(crate) fn front(&self) -> Option<Serial> {
        self.waiting.front().copied()
    }

    /// The first send leaves.
    pub(crate) fn leave(&mut self, serial: Serial, bytes: u64, alone: bool) {
        let first = self.waiting.pop_front();
        debug_assert_eq!(first, Some(serial), "only the first leaves");
        self.left.messages += 1;
        self.left.bytes += bytes;
        if alone {
            self.alone = Some(serial);
        }
    }

    /// A send that had left is answered.
    pub(crate) fn answered(&mut self, serial: Serial, bytes: u64) {
        self.left.messages -= 1;
        self.left.bytes -= bytes;
        if self.alone == Some(serial) {
            self.alone = None;
        }
    }

    /// A send that had not left is given up; `false` if it is not here.
    pub(crate) fn remove(&mut self, serial: Serial) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| *waiting != serial);
        self.waiting.len() < before
    }

    /// Forgets everything: there is no broker any more.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
        self.left = Amount::default();
        self.alone = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Amount = Amount { messages: 2, bytes: 100 };

    fn serial(number: u32) -> Serial {
        Serial::new(number).unwrap()
    }

    fn lane(count: u32) -> LaneState {
        let mut lane = LaneState::default();
        for number in 1..=count {
            lane.push(serial(number));
        }
        lane
    }

    #[test]
    fn g8_no_more_leaves_than_the_window_holds() {
        let mut lane = lane(3);
        lane.leave(serial(1), 10, false);
        lane.leave(serial(2), 10, false);
        assert_eq!(lane.next(WINDOW), None);
        lane.answered(serial(1), 10);
        assert_eq!(lane.next(WINDOW), Some(serial(3)));
    }

    #[test]
    fn g8_the_send_that_crosses_the_bytes_leaves_and_the_next_waits() {
        let mut lane = lane(2);
        assert_eq!(lane.next(WINDOW), Some(serial(1)));
        lane.leave(serial(1), 5000, false);
        assert_eq!(lane.next(WINDOW), None);
        lane.answered(serial(1), 5000);
        assert_eq!(lane.next(WINDOW), Some(serial(2)));
    }

    #[test]
    fn g3_nothing_follows_a_send_that_may_come_back() {
        let mut lane = lane(2);
        lane.leave(serial(1), 10, true);
        assert_eq!(lane.next(WINDOW), None);
        lane.answered(serial(1), 10);
        lane.push_front(serial(1));
        assert_eq!(lane.next(WINDOW), Some(serial(1)), "it is first again");
        lane.leave(serial(1), 10, true);
        lane.answered(serial(1), 10);
        assert_eq!(lane.next(WINDOW), Some(serial(2)));
    }

    #[test]
    fn g5_a_send_that_is_given_up_holds_back_nobody() {
        let mut lane = lane(2);
        assert!(lane.remove(serial(1)));
        assert!(!lane.remove(serial(1)));
        assert_eq!(lane.next(WINDOW), Some(serial(2)));
        lane.leave(serial(2), 1, false);
        lane.answered(serial(2), 1);
        assert!(lane.is_idle());
    }
}
