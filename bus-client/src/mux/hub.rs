//! Who gets what has come: handles in rotation, what each has to take, and who sleeps.
//!
//! A handle is *asking* from when it is made, or found nothing to take, until something is given
//! to it. Those who ask stand in the rotation; what one readiness brought goes to the first of them,
//! all of it, and that one asks again only when it has taken it all and comes back. So batches go
//! round, a handle whose thread is at work gets nothing to sit on, and what waits here is bounded:
//! streams are read only while somebody asks and nothing is held.
//!
//! Invariants, all under the hub's one lock:
//! - who stands in the rotation is enabled and has nothing to take;
//! - if something is held, nobody asks: whoever begins to ask is given it first, so that nothing
//!   that comes later overtakes it;
//! - while a thread sleeps here there is a leader, or a follower that was told to become it. The
//!   leader sleeps on descriptors and not on its condition variable, and is woken by the bell.
//!
//! A handle's shelf has a lock of its own, taken inside of the hub's: taking a message off a
//! shelf meets nobody but who puts messages there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use slab::Slab;

use super::readiness::{Bell, Pollable};
use super::{ReceiveError, Steering};

/// A handle's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat(usize);

/// A thread that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiter(usize);

/// What a thread sleeps for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Something to take.
    Receive(Seat),
    /// Room in a stream, or that its message has gone.
    Send,
}

/// How a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slept {
    /// It led: it has to see to what is ready now, for all.
    Led,
    /// Another one woke it.
    Followed,
    /// The time is over.
    TimedOut,
}

/// What the leader has to look for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    /// Streams may be read.
    pub(super) input: bool,
}

/// What whoever waits does for all.
pub(super) trait Work {
    /// Does what is ready now; never blocks. `reader` is the handle on whose behalf, if any.
    fn dispatch(&self, reader: Option<Seat>);

    /// Sleeps on descriptors, as the leader.
    fn sleep(&self, watch: Watch, left: Option<Duration>);
}

/// How long a call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    None,
    Until(Instant),
    Endless,
}

impl Patience {
    pub(super) fn within(timeout: Duration) -> Self {
        // What no clock can count is for ever.
        Instant::now().checked_add(timeout).map_or(Self::Endless, Self::Until)
    }

    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Until(at) => Some(at),
            _ => None,
        }
    }
}

/// Handles, what is held for them, and their sleepers.
#[derive(Debug)]
pub(super) struct Hub<T> {
    state: Mutex<State<T>>,
    /// Wakes the leader.
    pub(super) bell: Bell,
    steering: Steering,
    /// How often there was room.
    rooms: AtomicU64,
}

/// What one handle has to take.
#[derive(Debug)]
pub(super) struct Shelf<T> {
    items: Mutex<Items<T>>,
    pollable: Pollable,
}

#[derive(Debug)]
struct Items<T> {
    queue: VecDeque<T>,
    /// A send that found no room may be tried again.
    room: bool,
    /// Its descriptor is known to the application, and has to be kept true.
    polled: bool,
    /// What the descriptor says.
    raised: bool,
}

#[derive(Debug)]
struct State<T> {
    seats: Slab<Place<T>>,
    rotation: VecDeque<Seat>,
    held: VecDeque<T>,
    waiters: Slab<Arc<Condvar>>,
    idle: Vec<Arc<Condvar>>,
    followers: VecDeque<(Waiter, Reason)>,
    leader: Option<Leader>,
    /// A follower that was told to lead, and has not come to it yet.
    told: Option<Waiter>,
    closed: bool,
    moved: u64,
}

#[derive(Debug)]
struct Place<T> {
    shelf: Arc<Shelf<T>>,
    enabled: bool,
    asking: bool,
    wants_room: bool,
}

#[derive(Clone, Copy, Debug)]
struct Leader {
    reason: Reason,
    input: bool,
    rung: bool,
}

/// Numbers of the hub at one instant.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    pub(super) handles: usize,
    pub(super) held: usize,
    pub(super) moved: u64,
}

impl<T> Hub<T> {
    pub(super) fn new(bell: Bell, steering: Steering) -> Self {
        let state = State {
            seats: Slab::new(),
            rotation: VecDeque::new(),
            held: VecDeque::new(),
            waiters: Slab::new(),
            idle: Vec::new(),
            followers: VecDeque::new(),
            leader: None,
            told: None,
            closed: false,
            moved: 0,
        };
        Self { state: Mutex::new(state), bell, steering, rooms: AtomicU64::new(0) }
    }

    /// Makes a place for a handle, which asks from now on; `None` if there are `most` already.
    pub(super) fn open(&self, pollable: Pollable, most: usize) -> Option<(Seat, Arc<Shelf<T>>)> {
        let mut state = self.lock();
        if state.seats.len() >= most {
            return None;
        }
        let items = Items { queue: VecDeque::new(), room: false, polled: false, raised: false };
        let shelf = Arc::new(Shelf { items: Mutex::new(items), pollable });
        let place =
            Place { shelf: Arc::clone(&shelf), enabled: true, asking: false, wants_room: false };
        let seat = Seat(state.seats.insert(place));
        self.ask_in(&mut state, seat);
        Some((seat, shelf))
    }

    /// Ends a handle. What it had not taken goes to the others.
    pub(super) fn close_seat(&self, seat: Seat) {
        self.disable(seat);
        self.lock().seats.remove(seat.0);
    }

    /// The handle found nothing to take. False if there is something now.
    pub(super) fn ask(&self, seat: Seat) -> bool {
        self.ask_in(&mut self.lock(), seat)
    }

    fn ask_in(&self, state: &mut State<T>, seat: Seat) -> bool {
        let place = &mut state.seats[seat.0];
        if !place.shelf.is_empty() {
            return false;
        }
        if !place.enabled || place.asking {
            return true;
        }
        place.asking = true;
        state.rotation.push_back(seat);
        if !state.held.is_empty() {
            let held = std::mem::take(&mut state.held);
            self.deliver_in(state, held.into_iter(), None);
            return false;
        }
        if let Some(leader) = &mut state.leader
            && !leader.input
        {
            // It sleeps without an eye on the streams.
            leader.ring(&self.bell);
        }
        true
    }

    /// Takes, and if there is nothing asks, looks at what is ready, and waits.
    pub(super) fn take_until<R>(
        &self,
        work: &impl Work,
        seat: Seat,
        shelf: &Shelf<T>,
        patience: Patience,
        mut take: impl FnMut() -> Option<R>,
    ) -> Result<R, ReceiveError> {
        if let Some(taken) = take() {
            return Ok(taken);
        }
        let mut slept = false;
        let result = loop {
            if self.ask(seat) && patience == Patience::None {
                work.dispatch(Some(seat));
            }
            if let Some(taken) = take() {
                break Ok(taken);
            }
            if self.is_closed() {
                break Err(ReceiveError::Closed);
            }
            if patience == Patience::None {
                break Err(ReceiveError::WouldBlock);
            }
            slept = true;
            let (reason, deadline) = (Reason::Receive(seat), patience.deadline());
            let sleep = |watch, left| work.sleep(watch, left);
            let slept = self.sleep(reason, deadline, || !shelf.is_empty(), sleep);
            if slept == Slept::Led {
                work.dispatch(Some(seat));
            }
            if let Some(taken) = take() {
                break Ok(taken);
            }
            if slept == Slept::TimedOut || is_over(deadline) {
                break Err(ReceiveError::TimedOut);
            }
        };
        if slept {
            self.hand_on();
        }
        result
    }

    /// Whether streams may be read: somebody asks. Of what is read then, nothing has to be held,
    /// or no more than what other threads read at the same time.
    pub(super) fn may_read(&self) -> bool {
        self.lock().may_read()
    }

    /// Gives all that one readiness brought to one handle: the one whose turn it is, or that of the
    /// thread that has read it.
    pub(super) fn deliver(&self, batch: &mut Vec<T>, reader: Option<Seat>) {
        if !batch.is_empty() {
            let reader = reader.filter(|_| self.steering == Steering::Reader);
            self.deliver_in(&mut self.lock(), batch.drain(..), reader);
        }
    }

    fn deliver_in(
        &self,
        state: &mut State<T>,
        batch: impl Iterator<Item = T>,
        reader: Option<Seat>,
    ) {
        let reader = state.rotation.iter().position(|seat| Some(*seat) == reader);
        match state.rotation.remove(reader.unwrap_or(0)) {
            None => state.held.extend(batch),
            Some(seat) => {
                let place = &mut state.seats[seat.0];
                place.asking = false;
                place.shelf.put(batch);
                state.wake(&self.bell, |reason| reason == Reason::Receive(seat));
            }
        }
    }

    /// The handle is to receive nothing more. What it had to take goes to the next in turn, in its
    /// order, or is held until somebody asks.
    pub(super) fn disable(&self, seat: Seat) {
        let mut state = self.lock();
        let place = &mut state.seats[seat.0];
        place.enabled = false;
        place.asking = false;
        let moved = place.shelf.clear();
        state.rotation.retain(|other| *other != seat);
        if !moved.is_empty() {
            state.moved += moved.len() as u64;
            if state.held.is_empty() {
                self.deliver_in(&mut state, moved.into_iter(), None);
            } else {
                state.held.extend(moved);
            }
        }
    }

    /// The handle may receive again, and asks.
    pub(super) fn enable(&self, seat: Seat) {
        let mut state = self.lock();
        state.seats[seat.0].enabled = true;
        self.ask_in(&mut state, seat);
    }

    pub(super) fn is_enabled(&self, seat: Seat) -> bool {
        self.lock().seats[seat.0].enabled
    }

    /// Sleeps, as leader or follower, until something may have changed for `reason`.
    ///
    /// `ready` is asked under the lock, and with what it says nothing is slept through: whoever
    /// changes its answer does so before waking, or under the lock. `sleep` waits on descriptors.
    pub(super) fn sleep(
        &self,
        reason: Reason,
        deadline: Option<Instant>,
        ready: impl FnOnce() -> bool,
        sleep: impl FnOnce(Watch, Option<Duration>),
    ) -> Slept {
        let mut state = self.lock();
        if state.closed || ready() {
            return Slept::Followed;
        }
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Slept::TimedOut;
        }
        if state.leader.is_none() && !state.gives_way(reason, self.steering) {
            let watch = Watch { input: state.may_read() };
            state.leader = Some(Leader { reason, input: watch.input, rung: false });
            drop(state);
            sleep(watch, left);
            if self.lock().leader.take().is_some_and(|leader| leader.rung) {
                self.bell.quiet();
            }
            return Slept::Led;
        }
        let condvar = state.idle.pop().unwrap_or_default();
        let waiter = Waiter(state.waiters.insert(Arc::clone(&condvar)));
        state.followers.push_back((waiter, reason));
        let timed_out = match deadline {
            None => {
                condvar.wait(&mut state);
                false
            }
            Some(at) => condvar.wait_until(&mut state, at).timed_out(),
        };
        state.followers.retain(|(follower, _)| *follower != waiter);
        state.told = state.told.filter(|told| *told != waiter);
        state.waiters.remove(waiter.0);
        if state.idle.len() < IDLE_KEPT {
            state.idle.push(condvar);
        }
        if timed_out { Slept::TimedOut } else { Slept::Followed }
    }

    /// To be called by whoever has slept and does not sleep again: somebody else has to lead.
    pub(super) fn hand_on(&self) {
        let state = &mut *self.lock();
        if state.leader.is_some() || state.told.is_some() {
            return;
        }
        // Rather the one whose turn it is: it can take what it reads. Else one who receives.
        let first = state.rotation.front().map(|seat| Reason::Receive(*seat));
        let followers = &state.followers;
        let at = followers.iter().position(|(_, reason)| Some(*reason) == first);
        let receives = |(_, reason): &(Waiter, Reason)| matches!(reason, Reason::Receive(_));
        let at = at.or_else(|| followers.iter().position(receives)).unwrap_or(0);
        if let Some((follower, _)) = state.followers.remove(at) {
            state.told = Some(follower);
            state.waiters[follower.0].notify_one();
        }
    }

    /// A send of this handle found no room; it is told when to try again.
    pub(super) fn want_room(&self, seat: Seat) {
        self.lock().seats[seat.0].wants_room = true;
    }

    /// How often there was room. Who looks at this before it tries, and sleeps only while it is the
    /// same, misses none.
    pub(super) fn rooms(&self) -> u64 {
        self.rooms.load(Ordering::Relaxed)
    }

    /// There may be room: wakes all who wait for some.
    pub(super) fn room(&self) {
        let mut state = self.lock();
        // Under the lock, as is the look of who is about to sleep.
        self.rooms.fetch_add(1, Ordering::Relaxed);
        for (_, place) in &mut state.seats {
            if std::mem::take(&mut place.wants_room) {
                place.shelf.set_room(true);
            }
        }
        state.wake(&self.bell, |reason| reason == Reason::Send);
    }

    /// Nobody sleeps any more, from now on.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for (_, place) in &state.seats {
            place.shelf.set_room(true);
        }
        state.wake(&self.bell, |_| true);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(super) fn numbers(&self) -> Numbers {
        let state = self.lock();
        let (handles, held) = (state.seats.len(), state.held.len());
        Numbers { handles, held, moved: state.moved }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock()
    }
}

impl<T> State<T> {
    fn may_read(&self) -> bool {
        !self.rotation.is_empty() && self.held.is_empty() && !self.closed
    }

    /// Whether a thread lets one lead that was told to and is about to: it would read what is for
    /// that one, and wake it for that.
    fn gives_way(&self, reason: Reason, steering: Steering) -> bool {
        self.told.is_some()
            && steering == Steering::Rotate
            && self.rotation.front().is_none_or(|seat| Reason::Receive(*seat) != reason)
    }

    fn wake(&mut self, bell: &Bell, whom: impl Fn(Reason) -> bool) {
        if let Some(leader) = &mut self.leader
            && whom(leader.reason)
        {
            leader.ring(bell);
        }
        for (follower, reason) in &self.followers {
            if whom(*reason) {
                self.waiters[follower.0].notify_one();
            }
        }
    }
}

impl Leader {
    fn ring(&mut self, bell: &Bell) {
        if !std::mem::replace(&mut self.rung, true) {
            bell.ring();
        }
    }
}

impl<T> Shelf<T> {
    /// The next one to take.
    pub(super) fn pop(&self) -> Option<T> {
        let mut items = self.items.lock();
        let item = items.queue.pop_front()?;
        self.show(&mut items);
        Some(item)
    }

    /// The next ones, at most `most`.
    pub(super) fn pop_many(&self, most: usize, into: &mut Vec<T>) -> usize {
        let mut items = self.items.lock();
        let count = most.min(items.queue.len());
        into.extend(items.queue.drain(..count));
        self.show(&mut items);
        count
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.lock().queue.is_empty()
    }

    /// Says on the descriptor that a send may be tried again, or no longer so.
    pub(super) fn set_room(&self, room: bool) {
        let mut items = self.items.lock();
        if items.room != room {
            items.room = room;
            self.show(&mut items);
        }
    }

    /// The descriptor, which is true from now on.
    pub(super) fn pollable(&self) -> &Pollable {
        let mut items = self.items.lock();
        items.polled = true;
        self.show(&mut items);
        &self.pollable
    }

    /// The descriptor, without a promise to the application.
    pub(super) fn pollable_quietly(&self) -> &Pollable {
        &self.pollable
    }

    fn put(&self, batch: impl Iterator<Item = T>) {
        let mut items = self.items.lock();
        items.queue.extend(batch);
        self.show(&mut items);
    }

    fn clear(&self) -> VecDeque<T> {
        let mut items = self.items.lock();
        let queue = std::mem::take(&mut items.queue);
        self.show(&mut items);
        queue
    }

    fn show(&self, items: &mut Items<T>) {
        let raised = items.room || !items.queue.is_empty();
        if items.polled && raised != items.raised {
            items.raised = raised;
            self.pollable.raise(raised);
        }
    }
}

/// Whether a deadline is over.
pub(super) fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|at| at <= Instant::now())
}

/// Condition variables that are kept for the next who waits.
const IDLE_KEPT: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::readiness::Readiness;
    use super::*;

    struct Given {
        hub: Hub<u32>,
        readiness: Readiness,
        seats: Vec<(Seat, Arc<Shelf<u32>>)>,
    }

    fn given(handles: usize) -> Given {
        let readiness = Readiness::new().unwrap();
        let hub = Hub::new(Bell::new().unwrap(), Steering::Rotate);
        let seats =
            (0..handles).map(|_| hub.open(readiness.pollable().unwrap(), 99).unwrap()).collect();
        Given { hub, readiness, seats }
    }

    impl Given {
        fn deliver(&self, batch: &[u32]) {
            self.hub.deliver(&mut batch.to_vec(), None);
        }

        fn take(&self, at: usize) -> Vec<u32> {
            let mut taken = Vec::new();
            self.seats[at].1.pop_many(usize::MAX, &mut taken);
            taken
        }
    }

    #[test]
    fn batches_go_round_and_who_does_not_come_back_gets_none() {
        let given = given(3);
        for batch in [[1, 2], [3, 4]] {
            given.deliver(&batch);
        }
        assert_eq!((given.take(0), given.take(1), given.take(2)), (vec![1, 2], vec![3, 4], vec![]));
        given.deliver(&[5]);
        assert!(!given.hub.may_read(), "nobody asks");
        assert_eq!(given.take(2), [5]);
        assert!(given.hub.ask(given.seats[1].0) && given.hub.ask(given.seats[0].0));
        given.deliver(&[6]);
        given.deliver(&[7]);
        assert_eq!((given.take(1), given.take(0)), (vec![6], vec![7]));
    }

    #[test]
    fn what_is_held_goes_first_to_whoever_asks_and_nothing_is_read_before() {
        let given = given(1);
        let (seat, _) = given.seats[0];
        given.deliver(&[1]);
        given.hub.disable(seat);
        assert_eq!(given.hub.numbers().held, 1);
        assert!(!given.hub.may_read());
        let other = given.hub.open(given.readiness.pollable().unwrap(), 99).unwrap();
        assert_eq!(other.1.pop(), Some(1));
        assert!(given.hub.ask(other.0) && given.hub.may_read());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Come(u8),
        Take(usize),
        Ask(usize),
        Disable(usize),
        Enable(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..4_u8).prop_map(Step::Come),
            (0..3_usize).prop_map(Step::Take),
            (0..3_usize).prop_map(Step::Ask),
            (0..3_usize).prop_map(Step::Disable),
            (0..3_usize).prop_map(Step::Enable),
        ]
    }

    /// The rules of the header, said as simply as can be.
    #[derive(Default)]
    struct Model {
        shelves: [Vec<u32>; 3],
        asking: Vec<usize>,
        disabled: [bool; 3],
        held: Vec<u32>,
    }

    impl Model {
        fn give(&mut self, batch: Vec<u32>) {
            if self.asking.is_empty() {
                self.held.extend(batch);
            } else {
                let first = self.asking.remove(0);
                self.shelves[first].extend(batch);
            }
        }

        fn ask(&mut self, at: usize) {
            if self.disabled[at] || !self.shelves[at].is_empty() || self.asking.contains(&at) {
                return;
            }
            if self.held.is_empty() {
                self.asking.push(at);
            } else {
                self.shelves[at] = std::mem::take(&mut self.held);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Nothing is lost, doubled or turned round, and it goes to whom the rules name.
        #[test]
        fn the_hub_does_as_the_model(steps in proptest::collection::vec(step(), 0..60)) {
            let given = given(3);
            let mut model = Model { asking: vec![0, 1, 2], ..Model::default() };
            let mut next = 0;
            for step in steps {
                match step {
                    Step::Come(count) => {
                        let may = !model.asking.is_empty() && model.held.is_empty();
                        prop_assert_eq!(given.hub.may_read(), may);
                        if may {
                            let batch: Vec<u32> = (next..next + u32::from(count)).collect();
                            next += u32::from(count);
                            given.deliver(&batch);
                            model.give(batch);
                        }
                    }
                    Step::Take(at) => {
                        prop_assert_eq!(given.take(at), std::mem::take(&mut model.shelves[at]));
                    }
                    Step::Ask(at) => {
                        model.ask(at);
                        let empty = given.hub.ask(given.seats[at].0);
                        prop_assert_eq!(empty, model.shelves[at].is_empty());
                    }
                    Step::Disable(at) => {
                        model.disabled[at] = true;
                        model.asking.retain(|other| *other != at);
                        let moved = std::mem::take(&mut model.shelves[at]);
                        match moved.is_empty() {
                            true => {}
                            false if model.held.is_empty() => model.give(moved),
                            false => model.held.extend(moved),
                        }
                        given.hub.disable(given.seats[at].0);
                    }
                    Step::Enable(at) => {
                        model.disabled[at] = false;
                        model.ask(at);
                        given.hub.enable(given.seats[at].0);
                    }
                }
                prop_assert_eq!(given.hub.numbers().held, model.held.len());
                prop_assert!(model.held.is_empty() || model.asking.is_empty());
            }
        }
    }
}
