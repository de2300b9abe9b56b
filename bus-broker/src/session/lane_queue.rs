//! The sends of one lane that the broker has accepted and not yet answered.
//!
//! Invariants:
//! - First in, first out: only the head is ever handed to the bus, and the next one when the head
//!   has its outcome; or the first ones together, which have one at once. So sends of a lane commit in the
//!   order in which they came (G3).
//! - Each accepted send is answered once: it leaves the queue exactly where its serial is handed to
//!   the caller, by [`finish`](LaneQueue::finish) (the head and those that fall with it) or
//!   by [`cancel`](LaneQueue::cancel).
//! - What waits is bounded by the window, in messages and bytes (G8). A client that keeps to the
//!   window never meets it here, so exceeding it is a fault of the client.
//! - After a refused send that would not wait, and after one that could not because its sender's own
//!   queue was full, everything behind it that was not marked independent is refused: at once what is
//!   here, and on arrival what comes before the resume. A send that
//!   the client wrote before it knew of the refusal can therefore not overtake it (G3), and the
//!   resume needs no place in the queue.
//!
//! This file does no I/O and knows nothing of the bus: the caller submits, and says how it went.

use std::collections::VecDeque;

use bus_core::wire::Serial;

/// A lane's sends, oldest first.
#[derive(Debug)]
pub(super) struct LaneQueue<T> {
    window: Window,
    /// The send that the bus has: it counts, but what it sends is no longer here.
    head: Option<Place>,
    waiting: VecDeque<(Place, T)>,
    /// Bytes of head and waiting.
    bytes: u64,
    refuses: bool,
}

/// How much of a lane may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) messages: usize,
    /// The send that crosses this is still taken.
    pub(super) bytes: u64,
}

/// A send, but for what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) serial: Serial,
    /// Bytes charged to the lane.
    pub(super) bytes: u64,
    pub(super) patience: Patience,
    /// Not refused because an earlier one was.
    pub(super) independent: bool,
    /// Nobody waits for the receipt.
    pub(super) receipt_may_wait: bool,
}

/// What a send does when a recipient has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// It waits.
    Wait,
    /// It is refused, and those that depend on it are.
    Refuse,
}

/// What became of a send that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a refused send is answered by the caller"]
pub(super) enum Arrival {
    /// It has its place; see [`LaneQueue::next`].
    Queued,
    /// The lane refuses until it is resumed. It has no place.
    Refused,
}

/// The client sent more than the window allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{messages} sends of {bytes} bytes wait in the lane, and its window is full")]
pub(super) struct WindowExceeded {
    pub(super) messages: usize,
    pub(super) bytes: u64,
}

/// How the head ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has its place in the order.
    Committed,
    /// It reached nobody.
    Refused,
    /// It reached nobody: its sender has to make room in its own queue first, and will send it again.
    /// What is behind it must not overtake it.
    OwnQueueFull,
}

/// Who is answered when the head has ended.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "each of these is answered by the caller"]
pub(super) struct Finished {
    pub(super) head: Serial,
    pub(super) receipt_may_wait: bool,
    /// Refused with the head, in their order.
    pub(super) fallen: Vec<Serial>,
}

/// What a cancellation met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the send may have to be answered, or cancelled in the bus"]
pub(super) enum Cancellation {
    /// It was waiting for its turn and is gone; the caller answers it.
    Removed,
    /// The bus has it; the caller cancels it there.
    IsHead,
    /// No such send: it had its answer already, or never was.
    Unknown,
}

impl<T> LaneQueue<T> {
    pub(super) fn new(window: Window) -> Self {
        Self { window, head: None, waiting: VecDeque::new(), bytes: 0, refuses: false }
    }

    /// Takes a send that arrived.
    pub(super) fn arrive(&mut self, place: Place, send: T) -> Result<Arrival, WindowExceeded> {
        if self.refuses && !place.independent {
            return Ok(Arrival::Refused);
        }
        let messages = self.len();
        if messages >= self.window.messages || self.bytes >= self.window.bytes {
            return Err(WindowExceeded { messages, bytes: self.bytes });
        }
        self.bytes += place.bytes;
        self.waiting.push_back((place, send));
        Ok(Arrival::Queued)
    }

    /// A send that arrived is refused for want of something other than its place: as if it had had
    /// its turn.
    pub(super) fn refuse(&mut self, place: Place) {
        self.refuses |= place.patience == Patience::Refuse;
    }

    /// Whether a send that arrived now would be handed out at once.
    pub(super) fn is_clear(&self) -> bool {
        self.len() == 0 && !self.refuses
    }

    /// Bytes of those that have no answer yet.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hands out the next send, which becomes the head, unless there is a head.
    pub(super) fn next(&mut self) -> Option<(Place, T)> {
        if self.head.is_some() {
            return None;
        }
        let (place, send) = self.waiting.pop_front()?;
        self.head = Some(place);
        Some((place, send))
    }

    /// The sends whose turn is next, in their order; none while there is a head.
    pub(super) fn ready(&self) -> impl Iterator<Item = &T> {
        let ready = if self.head.is_some() { 0 } else { self.waiting.len() };
        self.waiting.iter().take(ready).map(|(_, send)| send)
    }

    /// The first so many of these were committed together. Gives their serials, and whether nobody waits for
    /// any receipt.
    pub(super) fn finish_together(&mut self, count: usize) -> (Vec<Serial>, bool) {
        debug_assert!(self.head.is_none() && count <= self.waiting.len(), "they were ready");
        let mut may_wait = true;
        let finished = self.waiting.drain(..count).map(|(place, _)| {
            self.bytes -= place.bytes;
            may_wait &= place.receipt_may_wait;
            place.serial
        });
        (finished.collect(), may_wait)
    }

    /// Takes note of how the head ended. `None` if there is none.
    pub(super) fn finish(&mut self, outcome: Outcome) -> Option<Finished> {
        let head = self.head.take()?;
        self.bytes -= head.bytes;
        let stops = match outcome {
            Outcome::Committed => false,
            Outcome::Refused => head.patience == Patience::Refuse,
            Outcome::OwnQueueFull => true,
        };
        let fallen = if stops {
            self.refuses = true;
            self.remove_dependents()
        } else {
            Vec::new()
        };
        let Place { serial, receipt_may_wait, .. } = head;
        Some(Finished { head: serial, receipt_may_wait, fallen })
    }

    /// Takes out a send that has not had its turn.
    pub(super) fn cancel(&mut self, serial: Serial) -> Cancellation {
        if self.head.is_some_and(|head| head.serial == serial) {
            return Cancellation::IsHead;
        }
        let found = self.waiting.iter().position(|(place, _)| place.serial == serial);
        let Some((place, _)) = found.and_then(|at| self.waiting.remove(at)) else {
            return Cancellation::Unknown;
        };
        self.bytes -= place.bytes;
        Cancellation::Removed
    }

    /// Takes out all sends that have not had their turn; the caller answers them.
    pub(super) fn take_waiting(&mut self) -> Vec<Serial> {
        let taken = self.waiting.drain(..);
        let (serials, bytes): (Vec<Serial>, Vec<u64>) =
            taken.map(|(place, _)| (place.serial, place.bytes)).unzip();
        self.bytes -= bytes.iter().sum::<u64>();
        serials
    }

    /// The client knows of the refusal and goes on.
    pub(super) fn resume(&mut self) {
        self.refuses = false;
    }

    /// Sends that have no answer yet.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.head.is_some())
    }

    fn remove_dependents(&mut self) -> Vec<Serial> {
        let mut fallen = Vec::new();
        let bytes = &mut self.bytes;
        self.waiting.retain(|(place, _)| {
            if !place.independent {
                fallen.push(place.serial);
                *bytes -= place.bytes;
            }
            place.independent
        });
        fallen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serial(number: u32) -> Serial {
        Serial::new(number).unwrap()
    }

    fn waits(number: u32) -> Place {
        Place {
            serial: serial(number),
            bytes: 10,
            patience: Patience::Wait,
            independent: false,
            receipt_may_wait: false,
        }
    }

    fn refuses(number: u32) -> Place {
        Place { patience: Patience::Refuse, ..waits(number) }
    }

    fn independent(place: Place) -> Place {
        Place { independent: true, ..place }
    }

    /// A lane with these sends queued, none of them handed out.
    fn lane(places: &[Place]) -> LaneQueue<()> {
        let mut lane = LaneQueue::new(Window { messages: 4, bytes: 100 });
        for place in places {
            assert_eq!(lane.arrive(*place, ()), Ok(Arrival::Queued));
        }
        lane
    }

    fn next(lane: &mut LaneQueue<()>) -> Option<u32> {
        lane.next().map(|(place, ())| place.serial.get())
    }

    #[test]
    fn g3_sends_are_handed_out_one_at_a_time_in_their_order() {
        let mut lane = lane(&[waits(1), waits(2)]);
        assert_eq!(next(&mut lane), Some(1));
        assert_eq!(next(&mut lane), None, "the head has no outcome yet");
        let finished = lane.finish(Outcome::Committed).unwrap();
        assert_eq!((finished.head, finished.fallen), (serial(1), vec![]));
        assert_eq!(next(&mut lane), Some(2));
        assert_eq!(lane.len(), 1);
    }

    #[test]
    fn g3_the_first_are_finished_together_and_none_behind_a_head() {
        let quiet = Place { receipt_may_wait: true, ..waits(1) };
        let mut lane = lane(&[quiet, quiet, waits(3), waits(4)]);
        assert_eq!(lane.ready().count(), 4);
        assert_eq!(lane.finish_together(2), (vec![serial(1), serial(1)], true));
        assert_eq!((lane.len(), lane.bytes()), (2, 20));
        assert_eq!(lane.finish_together(1), (vec![serial(3)], false));
        assert_eq!(next(&mut lane), Some(4));
        assert_eq!(lane.ready().count(), 0);
    }

    #[test]
    fn g3_a_refused_send_takes_those_behind_it_along() {
        let mut lane = lane(&[waits(1), refuses(2), waits(3), independent(waits(4))]);
        assert_eq!(next(&mut lane), Some(1));
        let _ = lane.finish(Outcome::Committed);
        assert_eq!(next(&mut lane), Some(2));
        let finished = lane.finish(Outcome::Refused).unwrap();
        assert_eq!((finished.head, finished.fallen), (serial(2), vec![serial(3)]));
        assert_eq!(next(&mut lane), Some(4), "independent ones go on");
    }

    #[test]
    fn g3_what_comes_before_the_resume_is_refused_too() {
        let mut lane = lane(&[refuses(1), independent(waits(2))]);
        assert_eq!(next(&mut lane), Some(1));
        let _ = lane.finish(Outcome::Refused);
        assert_eq!(next(&mut lane), Some(2), "and this one waits in the bus");
        assert_eq!(lane.arrive(waits(3), ()), Ok(Arrival::Refused));
        lane.resume();
        assert_eq!(lane.arrive(waits(4), ()), Ok(Arrival::Queued));
        let _ = lane.finish(Outcome::Committed);
        assert_eq!(next(&mut lane), Some(4));
    }

    #[test]
    fn a_refused_send_that_was_ready_to_wait_stops_nobody() {
        let mut lane = lane(&[waits(1), waits(2)]);
        assert_eq!(next(&mut lane), Some(1));
        let finished = lane.finish(Outcome::Refused).unwrap();
        assert_eq!(finished.fallen, vec![]);
        assert_eq!(next(&mut lane), Some(2));
    }

    #[test]
    fn g3_a_send_that_is_refused_on_arrival_takes_those_behind_it_along() {
        let mut lane = lane(&[waits(1)]);
        lane.refuse(waits(2));
        assert_eq!(lane.arrive(waits(3), ()), Ok(Arrival::Queued), "it was ready to wait");
        lane.refuse(refuses(4));
        assert_eq!(lane.arrive(waits(5), ()), Ok(Arrival::Refused));
        assert_eq!((lane.len(), lane.bytes()), (2, 20));
    }

    #[test]
    fn g3_nothing_overtakes_a_send_that_waits_for_its_own_senders_room() {
        let mut lane = lane(&[waits(1), waits(2), independent(waits(3))]);
        assert_eq!(next(&mut lane), Some(1));
        let finished = lane.finish(Outcome::OwnQueueFull).unwrap();
        assert_eq!((finished.head, finished.fallen), (serial(1), vec![serial(2)]));
        assert_eq!(lane.arrive(waits(4), ()), Ok(Arrival::Refused));
        assert_eq!(next(&mut lane), Some(3), "independent ones go on");
        let _ = lane.finish(Outcome::Committed);
        lane.resume();
        assert_eq!(lane.arrive(waits(1), ()), Ok(Arrival::Queued));
    }

    #[test]
    fn g8_the_window_bounds_messages() {
        let mut lane = lane(&[waits(1), waits(2), waits(3), waits(4)]);
        assert_eq!(lane.arrive(waits(5), ()), Err(WindowExceeded { messages: 4, bytes: 40 }));
        assert_eq!(next(&mut lane), Some(1));
        assert!(lane.arrive(waits(5), ()).is_err(), "the head counts");
        let _ = lane.finish(Outcome::Committed);
        assert_eq!(lane.arrive(waits(5), ()), Ok(Arrival::Queued));
    }

    #[test]
    fn g8_the_window_bounds_bytes_and_takes_the_one_that_crosses() {
        let big = Place { bytes: 99, ..waits(1) };
        let mut lane = lane(&[big, waits(2)]);
        assert_eq!(lane.arrive(waits(3), ()), Err(WindowExceeded { messages: 2, bytes: 109 }));
        assert_eq!(lane.cancel(serial(1)), Cancellation::Removed);
        assert_eq!(lane.arrive(waits(3), ()), Ok(Arrival::Queued));
    }

    #[test]
    fn g5_cancel_finds_the_head_the_waiting_and_nobody() {
        let mut lane = lane(&[waits(1), waits(2), waits(3)]);
        assert_eq!(next(&mut lane), Some(1));
        assert_eq!(lane.cancel(serial(1)), Cancellation::IsHead);
        assert_eq!(lane.cancel(serial(2)), Cancellation::Removed);
        assert_eq!(lane.cancel(serial(2)), Cancellation::Unknown);
        let _ = lane.finish(Outcome::Refused);
        assert_eq!(next(&mut lane), Some(3));
        let _ = lane.finish(Outcome::Committed);
        assert_eq!((lane.len(), lane.bytes), (0, 0));
    }

    #[test]
    fn an_outcome_without_a_head_answers_nobody() {
        assert_eq!(lane(&[waits(1)]).finish(Outcome::Committed), None);
    }
}
