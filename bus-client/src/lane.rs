//! A lane's sends on this side: which wait here, and how many the broker has.
//!
//! Invariants: sends leave in the order in which they were put here (G3). What has left and is not
//! answered stays within the window that the broker has told, or the broker would end the
//! connection. While a send of the *alone* kind has left and is not answered, nothing follows it:
//! it may be refused without anybody waiting, and then nothing falls with it. Where only their
//! sender's own room was missing, the broker stops the lane, and all that had left *come back*: they
//! are put first again, in their order, and nothing leaves before the last of them is here.

use std::collections::VecDeque;

use bus_core::wire::Serial;

use crate::inbox::Amount;

/// The sends of one lane, on this side.
#[derive(Debug, Default)]
pub(crate) struct LaneState {
    waiting: VecDeque<Serial>,
    left: Amount,
    alone: Option<Serial>,
    /// So many of those that wait have come back, and more may; the broker has stopped the lane.
    recalled: Option<usize>,
    /// How many have left.
    departures: u64,
    /// The last of them whose receipt was asked for at once; the broker tells those before it
    /// along with it.
    hurried: u64,
    /// What has left after that one.
    unhurried: Amount,
    /// A pipelined send that does not wait was refused, and the application has not yet resumed.
    pub(crate) refused: bool,
    /// Whether a handle of this lane exists, so that its number is taken.
    pub(crate) open: bool,
}

/// How a send leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// Others may follow it.
    InRow,
    /// Others may follow it, and its receipt may wait.
    PutOff,
    /// Nothing follows it before its answer.
    Alone,
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

    /// Puts a send that came back first, behind those that came back before it.
    pub(crate) fn push_front(&mut self, serial: Serial) {
        let at = self.recalled.as_mut().map_or(0, |recalled| {
            *recalled += 1;
            *recalled - 1
        });
        self.waiting.insert(at, serial);
    }

    /// The broker has stopped the lane: what has left comes back.
    pub(crate) fn recall(&mut self) {
        self.recalled.get_or_insert(0);
    }

    /// The connection that it was on is gone: what the broker has refused there counts no more.
    pub(crate) fn forget_refusals(&mut self) {
        self.refused = false;
        self.recalled = None;
    }

    /// Whether what has left comes back.
    pub(crate) fn recalls(&self) -> bool {
        self.recalled.is_some()
    }

    /// Whether all have come back just now: the broker is to let the lane go on.
    pub(crate) fn ends_recall(&mut self) -> bool {
        self.left == Amount::default() && self.recalled.take().is_some()
    }

    /// The send that is to leave next, if the window and those before it let it.
    pub(crate) fn next(&self, window: Amount) -> Option<Serial> {
        if self.alone.is_some() || self.recalled.is_some() || !self.left.below(window) {
            return None;
        }
        self.waiting.front().copied()
    }

    /// The oldest send that has not left.
    pub(crate) fn front(&self) -> Option<Serial> {
        self.waiting.front().copied()
    }

    /// Whether the receipt of the next send may be put off, if nobody waits for it: at least one
    /// in half a window is not, so that the window opens in time.
    pub(crate) fn may_put_off(&self, bytes: u64, window: Amount) -> bool {
        self.unhurried.messages + 1 < window.messages.div_ceil(2)
            && self.unhurried.bytes.saturating_add(bytes) < window.bytes.div_ceil(2)
    }

    /// Whether the receipt of a departure is put off, and nothing later brings it.
    pub(crate) fn is_put_off(&self, departure: u64) -> bool {
        departure > self.hurried
    }

    /// Every receipt is asked for.
    pub(crate) fn hurry(&mut self) {
        self.hurried = self.departures;
        self.unhurried = Amount::default();
    }

    /// The first send leaves, as this departure.
    pub(crate) fn leave(&mut self, serial: Serial, bytes: u64, kind: Departure) -> u64 {
        let first = self.waiting.pop_front();
        debug_assert_eq!(first, Some(serial), "only the first leaves");
        self.left.messages += 1;
        self.left.bytes += bytes;
        self.departures += 1;
        if kind == Departure::PutOff {
            self.unhurried.messages += 1;
            self.unhurried.bytes += bytes;
        } else {
            self.hurry();
        }
        if kind == Departure::Alone {
            self.alone = Some(serial);
        }
        self.departures
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
        let Some(at) = self.waiting.iter().position(|waiting| *waiting == serial) else {
            return false;
        };
        self.waiting.remove(at);
        self.recalled = self.recalled.map(|recalled| recalled - usize::from(at < recalled));
        true
    }

    /// Forgets everything: there is no broker any more.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
        self.left = Amount::default();
        self.alone = None;
        self.recalled = None;
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
        lane.leave(serial(1), 10, Departure::InRow);
        lane.leave(serial(2), 10, Departure::InRow);
        assert_eq!(lane.next(WINDOW), None);
        lane.answered(serial(1), 10);
        assert_eq!(lane.next(WINDOW), Some(serial(3)));
    }

    #[test]
    fn g8_the_send_that_crosses_the_bytes_leaves_and_the_next_waits() {
        let mut lane = lane(2);
        assert_eq!(lane.next(WINDOW), Some(serial(1)));
        lane.leave(serial(1), 5000, Departure::InRow);
        assert_eq!(lane.next(WINDOW), None);
        lane.answered(serial(1), 5000);
        assert_eq!(lane.next(WINDOW), Some(serial(2)));
    }

    #[test]
    fn some_receipt_of_each_half_window_is_asked_for_and_brings_those_before_it() {
        let window = Amount { messages: 8, bytes: 100 };
        let mut lane = lane(8);
        let mut put_off = Vec::new();
        for number in 1..=8 {
            let may = lane.may_put_off(1, window);
            put_off.push(may);
            let kind = if may { Departure::PutOff } else { Departure::InRow };
            assert_eq!(lane.leave(serial(number), 1, kind), u64::from(number));
        }
        assert_eq!(put_off, [true, true, true, false, true, true, true, false]);
        assert!(!lane.is_put_off(7), "the eighth brings it");
        assert!(!lane.may_put_off(50, window), "half of the bytes");
    }

    #[test]
    fn g3_nothing_follows_a_send_that_may_come_back() {
        let mut lane = lane(2);
        lane.leave(serial(1), 10, Departure::Alone);
        assert_eq!(lane.next(WINDOW), None);
        lane.answered(serial(1), 10);
        lane.push_front(serial(1));
        assert_eq!(lane.next(WINDOW), Some(serial(1)), "it is first again");
        lane.leave(serial(1), 10, Departure::Alone);
        lane.answered(serial(1), 10);
        assert_eq!(lane.next(WINDOW), Some(serial(2)));
    }

    #[test]
    fn g3_sends_that_come_back_are_first_again_in_their_order() {
        let window = Amount { messages: 4, bytes: 100 };
        let mut lane = lane(5);
        for number in 1..=4 {
            lane.leave(serial(number), 1, Departure::InRow);
        }
        lane.answered(serial(1), 1);
        lane.recall();
        lane.push_front(serial(1));
        assert_eq!(lane.next(window), None, "others are under way");
        for number in [2, 3] {
            lane.answered(serial(number), 1);
            lane.push_front(serial(number));
            assert!(!lane.ends_recall());
        }
        // One is given up meanwhile, and one was independent and is committed.
        assert!(lane.remove(serial(2)));
        lane.answered(serial(4), 1);
        assert!(lane.ends_recall() && !lane.ends_recall());
        for number in [1, 3, 5] {
            assert_eq!(lane.next(window), Some(serial(number)));
            lane.leave(serial(number), 1, Departure::InRow);
        }
    }

    #[test]
    fn g5_a_send_that_is_given_up_holds_back_nobody() {
        let mut lane = lane(2);
        assert!(lane.remove(serial(1)));
        assert!(!lane.remove(serial(1)));
        assert_eq!(lane.next(WINDOW), Some(serial(2)));
        lane.leave(serial(2), 1, Departure::InRow);
        lane.answered(serial(2), 1);
        assert!(lane.is_idle());
    }
}
