//! Requests: each gets exactly one outcome, the reply or the bus's word why there will be none.
//!
//! # Who decides
//!
//! Invariant: a request that is unanswered has an entry among its caller's [`Requests`], under the
//! caller's lock. Whoever takes the entry out puts the outcome into the caller's queue before the
//! lock is released. So there is one outcome, whoever comes first: the reply (a send, `send.rs`),
//! the deadline ([`BusInner::expire`]), the caller that cancels, or the end of the endpoint that was
//! asked. The entry is made by the commit of the request, which holds both endpoints' locks.
//!
//! # The place for the outcome
//!
//! An entry keeps a place in its caller's queue, beyond the queue's capacity, until the outcome has
//! been read. So the outcome never waits for room, except for a reply of more than
//! `limits.reply_bytes`: that one waits for room in the queue as any direct message does, and the
//! bus's memory for what its readers do not take stays bounded (G8). A request is refused when its
//! caller has `limits.requests` such places in use: unanswered requests, outcomes of the bus that
//! were not drained, and messages by which its queue is beyond its capacity.
//!
//! # Who was asked
//!
//! Requests that an endpoint has taken off its queue are in its [`Asked`], a mutex of its own that
//! is taken after all others. A reply names the request by its sequence and is looked up there, so
//! only who was asked can answer. Those that lie in the queue when the endpoint ends are found by
//! whoever drops the queue.
//!
//! Two looks close the gap between the two tables: a reader notes that it was asked, and then looks
//! whether the request is still unanswered; who takes an entry out of the caller's table looks
//! afterwards whether the other side has noted it. So the asked endpoint is told that nobody waits
//! any more ([`Delivery::RequestEnded`](crate::Delivery)), or does not get the request at all.
//!
//! # Deadlines
//!
//! An endpoint with unanswered requests stands once in [`Deadlines`], with the time of its next look.
//! It is put there only by a request whose deadline is earlier than that, so a request that is
//! answered in time costs one comparison. A look says first that none is planned and then looks, so
//! a request that is committed meanwhile is seen by the look or plans the next one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::account::Charge;
use crate::bus::{BusInner, LimitExceeded};
use crate::id::{EndpointId, Sequence};
use crate::intake::{EndpointCore, ReaderState};
use crate::lock_set::{IntakePlace, LockBits};
use crate::message::Message;
use crate::monitor::{Monitored, SeenOutcome};
use crate::queue::Consumer;
use crate::send::{Effects, Outgoing, Receipt, Route, SendError};
use crate::sync::{AtomicU64, Mutant, Mutex, Ordering, mutated};
use crate::wait::Changed;

/// What a message is to its recipient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A message that asks for nothing; or, to a [`Caller`](crate::Destination::Caller), its answer.
    #[default]
    Message,
    /// It asks for a reply and has exactly one outcome.
    Request {
        /// It may be given to another endpoint when the first one dies without having answered.
        /// Only one that was sent to a name, without descriptors, and of at most
        /// `limits.reply_bytes` if it was taken already; else the outcome is
        /// [`RequestEnd::Gone`].
        repeatable: bool,
    },
    /// An answer that says no, in the terms of the application. For a reply only.
    Refusal,
}

/// Why a request has no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RequestEnd {
    /// The other side has gone: the endpoint that was asked was closed before it answered, or
    /// dropped the request; or, as that endpoint is told, the caller was closed or receives nothing
    /// any more.
    Gone,
    /// Its deadline came.
    TimedOut,
    /// Its caller cancelled it.
    Cancelled,
}

/// The outcome of a request that gets no reply; in its caller's queue, at its place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The request's sequence.
    pub request: Sequence,
    /// The place of this outcome in the order.
    pub sequence: Sequence,
    /// Why there will be no reply.
    pub why: RequestEnd,
}

/// Nobody waits any more for the reply to a request that this endpoint has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ended {
    /// The request's sequence, as it was delivered.
    pub request: Sequence,
    /// Why.
    pub why: RequestEnd,
}

/// What a request carries beside a message's parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requested {
    pub(crate) caller: IntakePlace,
    /// The request's first sequence, if it is given again.
    pub(crate) first: Option<Sequence>,
}

/// A request that has no outcome yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open {
    /// Its sequence; the first one, if it was given again.
    pub(crate) id: Sequence,
    /// The sequence under which the callee got it.
    pub(crate) asked_as: Sequence,
    pub(crate) callee: IntakePlace,
    /// The bus's running time, in nanoseconds, at which it is over.
    pub(crate) until: u64,
}

/// An endpoint's unanswered requests, and the places that it keeps for outcomes. Under its lock.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// In the order of their ids. The memory is made before the first, for as many as there may be.
    open: Vec<Open>,
    /// Outcomes of the bus that were ever pushed.
    pushed: u64,
    /// What the account is charged: one for each that is open.
    charge: Option<Charge>,
}

impl Requests {
    pub(crate) fn has_memory_for(&self, most: usize) -> bool {
        self.open.capacity() >= most
    }

    /// Takes the memory for entries, and gives back what is to be dropped without the lock.
    pub(crate) fn give_memory(&mut self, mut memory: Vec<Open>) -> Vec<Open> {
        memory.clone_from(&self.open);
        std::mem::replace(&mut self.open, memory)
    }

    pub(crate) fn open_count(&self) -> u64 {
        self.open.len() as u64
    }

    /// Outcomes of the bus that the reader has not drained.
    pub(crate) fn undrained(&self, drained: u64) -> u64 {
        self.pushed - drained
    }

    pub(crate) fn count_outcome(&mut self) {
        self.pushed += 1;
    }

    fn at(&self, id: Sequence) -> Option<usize> {
        self.open.binary_search_by_key(&id, |open| open.id).ok()
    }

    /// The unanswered request of this id.
    pub(crate) fn find(&self, id: Sequence) -> Option<&Open> {
        self.at(id).map(|at| &self.open[at])
    }

    pub(crate) fn insert(&mut self, open: Open, charge: Option<Charge>) {
        debug_assert!(self.open.len() < self.open.capacity(), "its memory was made before");
        debug_assert!(self.open.last().is_none_or(|last| last.id < open.id), "sequences rise");
        self.open.push(open);
        match (&mut self.charge, charge) {
            (Some(charge), Some(one)) => charge.absorb(one),
            (none, one) => *none = one,
        }
    }

    /// Gives back what is charged for those that are open no more.
    fn settle(&mut self) {
        if let Some(charge) = &mut self.charge {
            charge.lower(self.open.len() as u64);
        }
    }

    /// A request was given to another endpoint.
    pub(crate) fn given_again(&mut self, id: Sequence, asked_as: Sequence, callee: IntakePlace) {
        if let Some(at) = self.at(id) {
            (self.open[at].asked_as, self.open[at].callee) = (asked_as, callee);
        }
    }

    /// Takes a request out: whoever does so owes its outcome.
    pub(crate) fn take(&mut self, id: Sequence) -> Option<Open> {
        let at = self.at(id)?;
        if mutated(Mutant::OutcomeTwice) {
            return Some(self.open[at]);
        }
        let open = self.open.remove(at);
        self.settle();
        Some(open)
    }

    /// The first request that is over by now, taken out.
    fn take_due(&mut self, now: u64) -> Option<Open> {
        let at = self.open.iter().position(|open| open.until <= now)?;
        let open = self.open.remove(at);
        self.settle();
        Some(open)
    }

    /// When the next one is over.
    fn next_deadline(&self) -> Option<u64> {
        self.open.iter().map(|open| open.until).min()
    }

    /// Takes all of them; the endpoint gets no outcomes any more.
    pub(crate) fn take_all(&mut self) -> Vec<Open> {
        let open = std::mem::take(&mut self.open);
        self.settle();
        open
    }
}

/// A request that an endpoint has taken and not yet answered.
#[derive(Clone, Debug)]
pub(crate) struct AskedFor {
    pub(crate) caller: IntakePlace,
    pub(crate) id: Sequence,
    /// Kept if it can be given again; see `repeat.rs`.
    message: Option<Arc<Message>>,
}

/// What an endpoint was asked, and what it is to be told of it. Taken after all other locks.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// A tree, because an empty one takes little: most endpoints are never asked.
    requests: BTreeMap<Sequence, AskedFor>,
    ended: VecDeque<Ended>,
}

impl Asked {
    pub(crate) fn find(&self, request: Sequence) -> Option<AskedFor> {
        self.requests.get(&request).cloned()
    }

    pub(crate) fn remove(&mut self, request: Sequence) -> Option<AskedFor> {
        self.requests.remove(&request)
    }

    /// Notes what the reader is to be told; false if it has not been asked, or has answered.
    fn end(&mut self, request: Sequence, why: RequestEnd) -> bool {
        if self.requests.remove(&request).is_none() {
            return false;
        }
        if self.ended.len() >= MOST_ENDED {
            // The reader will be told by the refusal of its reply.
            self.ended.pop_front();
        }
        self.ended.push_back(Ended { request, why });
        true
    }

    /// The reader does not get it after all.
    fn forget(&mut self, request: Sequence) {
        if self.requests.remove(&request).is_none() {
            self.ended.retain(|ended| ended.request != request);
        }
    }

    pub(crate) fn take_ended(&mut self) -> Option<Ended> {
        self.ended.pop_front()
    }

    pub(crate) fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }
}

/// When the bus next looks at the deadlines of which endpoint.
#[derive(Debug)]
pub(crate) struct Deadlines {
    looks: Mutex<BTreeMap<(u64, EndpointId), Arc<EndpointCore>>>,
    /// The first of them; [`NEVER`] if there is none.
    next: AtomicU64,
}

/// The time of a look that is not planned.
pub(crate) const NEVER: u64 = u64::MAX;

/// Ends of requests that an endpoint is told; when it reads none, the oldest are forgotten.
const MOST_ENDED: usize = 256;

impl Default for Deadlines {
    fn default() -> Self {
        Self { looks: Mutex::new(BTreeMap::new()), next: AtomicU64::new(NEVER) }
    }
}

impl Deadlines {
    /// Running time of the next look.
    fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    fn note_next(&self, looks: &BTreeMap<(u64, EndpointId), Arc<EndpointCore>>) {
        let next = looks.keys().next().map_or(NEVER, |(at, _)| *at);
        self.next.store(next, Ordering::Relaxed);
    }

    /// Sees to it that the endpoint is looked at by `until`.
    fn plan(&self, core: &Arc<EndpointCore>, until: u64) {
        if core.next_look() <= until {
            return;
        }
        let mut looks = self.looks.lock();
        let before = core.next_look();
        if before <= until {
            return;
        }
        let replaced = looks.remove(&(before, core.id()));
        looks.insert((until, core.id()), Arc::clone(core));
        core.set_next_look(until);
        // A closed endpoint has been forgotten already, or is about to be: either this sees it
        // closed, or `forget` finds the entry.
        let forgotten = core.is_closed().then(|| looks.remove(&(until, core.id())));
        self.note_next(&looks);
        drop(looks);
        drop((replaced, forgotten));
    }

    /// Takes an endpoint whose look is due.
    fn take_due(&self, now: u64) -> Option<Arc<EndpointCore>> {
        let mut looks = self.looks.lock();
        let entry = looks.first_entry().filter(|entry| entry.key().0 <= now)?;
        let core = entry.remove();
        if !mutated(Mutant::LookBeforeNone) {
            core.set_next_look(NEVER);
        }
        self.note_next(&looks);
        Some(core)
    }

    /// The endpoint is closed.
    fn forget(&self, core: &EndpointCore) {
        let mut looks = self.looks.lock();
        let forgotten = looks.remove(&(core.next_look(), core.id()));
        self.note_next(&looks);
        drop(looks);
        drop(forgotten);
    }
}

impl BusInner {
    /// The running time at which a request is over, and its deadline in nanoseconds since the Unix
    /// epoch. A bus that has never been told the time has no default deadline to tell.
    pub(crate) fn request_deadline(&self, deadline: u64) -> Result<(u64, u64), SendError> {
        let (now, running) = (self.now(), nanos(self.running()));
        if deadline == 0 {
            let default = nanos(self.limits.request_deadline);
            let told = if now == 0 { 0 } else { now.saturating_add(default) };
            return Ok((running.saturating_add(default), told));
        }
        let left = deadline.saturating_sub(now);
        if left == 0 {
            return Err(SendError::DeadlinePassed);
        }
        Ok((running.saturating_add(left), deadline))
    }

    /// Makes the memory for an endpoint's requests, and its queue for their outcomes.
    pub(crate) fn open_requests(&self, core: &EndpointCore) {
        self.open_queue(core);
        let most = usize::from(self.limits.requests);
        let memory = Vec::with_capacity(most);
        let mut shard = self.locks.acquire_one(core.place.lock);
        let intake = shard.intakes.get_mut(core.place.slot as usize);
        let old = intake
            .filter(|intake| intake.id() == core.id() && !intake.requests.has_memory_for(most))
            .map(|intake| intake.requests.give_memory(memory));
        drop(shard);
        drop(old);
    }

    /// Where the reply to a request that `core` has taken goes.
    pub(crate) fn route_to_caller(
        &self,
        core: &EndpointCore,
        request: Sequence,
    ) -> Result<Route, SendError> {
        let asked = core.asked().find(request).ok_or(SendError::NoSuchRequest(request))?;
        Ok(Route::Caller { place: asked.caller, id: asked.id, request })
    }

    /// What follows the commit of a request or a reply, with the 8 locks released.
    #[cold]
    pub(crate) fn after_commit(&self, outgoing: &Outgoing, receipt: &Receipt) {
        if let Some(until) = outgoing.until {
            debug_assert_eq!(receipt.recipients, 1, "a request goes to one endpoint");
            self.deadlines.plan(&outgoing.sender, until);
        }
        if let Route::Caller { request, .. } = outgoing.route {
            outgoing.sender.asked().remove(request);
            outgoing.sender.owe_less();
        }
    }

    /// A reader has taken a request off its queue. False if it is not to have it: nobody waits for
    /// the reply any more, or it could not give one.
    pub(crate) fn hand_over(&self, core: &EndpointCore, message: &Arc<Message>) -> bool {
        let Some(requested) = message.requested() else {
            return true;
        };
        let request = message.sequence();
        let (caller, id) = (requested.caller, requested.first.unwrap_or(request));
        let note = || {
            let message = self.is_kept(message).then(|| Arc::clone(message));
            core.asked().requests.insert(request, AskedFor { caller, id, message });
        };
        if !mutated(Mutant::AskedNotedLate) {
            note();
        }
        let waited_for = self.is_unanswered(caller, id);
        if mutated(Mutant::AskedNotedLate) {
            note();
        }
        // Who closes an endpoint first says so and then takes what it was asked.
        if waited_for && !core.is_closed() {
            return true;
        }
        core.asked().forget(request);
        if waited_for {
            self.give_again(caller, id, Some(message));
        }
        false
    }

    /// Whether somebody waits for the outcome of a request; one whose deadline has come gets it.
    fn is_unanswered(&self, caller: IntakePlace, id: Sequence) -> bool {
        let until = {
            let mut held = self.locks.acquire(LockBits::one(caller.lock));
            held.intake(caller).and_then(|intake| intake.requests.find(id)).map(|open| open.until)
        };
        match until {
            Some(until) if until > nanos(self.running()) => true,
            Some(_) => {
                self.end_request(caller, id, RequestEnd::TimedOut);
                false
            }
            None => false,
        }
    }

    /// Gives a request an outcome of the bus, unless it has one. False if it has.
    pub(crate) fn end_request(&self, caller: IntakePlace, id: Sequence, why: RequestEnd) -> bool {
        let mut effects = Effects::default();
        effects.reserve(1);
        let (mut held, monitors) = self.hold_seen(LockBits::one(caller.lock), &mut effects);
        let Some(intake) = held.intake(caller) else {
            return false;
        };
        let Some(open) = intake.requests.take(id) else {
            return false;
        };
        let core = Arc::clone(&intake.core);
        let sequence = held.draw(core.seen());
        let outcome = Outcome { request: id, sequence, why };
        if let Some(intake) = held.intake(caller) {
            intake.push_outcome(outcome);
            effects.wake(intake.take_reader());
        }
        count_answered(&mut held);
        if let Some(monitors) = &monitors {
            monitors.tell(&mut held, &seen(outcome, &core, &open), &mut effects);
        }
        drop(held);
        effects.run();
        self.after_end(&core, &open, why);
        true
    }

    /// A request has ended without a reply: tells who was asked, and whoever waits to reply.
    fn after_end(&self, caller: &EndpointCore, open: &Open, why: RequestEnd) {
        self.tell_asked(open, why);
        self.end_waiting_replies(caller);
    }

    /// Replies that wait for room find that nobody waits for them.
    fn end_waiting_replies(&self, caller: &EndpointCore) {
        if caller.blocks() == 0 {
            return;
        }
        let mut effects = Effects::default();
        let changed = Changed { endpoints: vec![caller.id()], ..Changed::default() };
        self.waiting.lock().recheck(self, &changed, &mut effects);
        effects.run();
    }

    /// The endpoint that was asked owes one answer less; and is told that nobody waits any more, if
    /// it has taken the request and has not said itself that it will not answer.
    fn tell_asked(&self, open: &Open, why: RequestEnd) {
        let core = {
            let mut held = self.locks.acquire(LockBits::one(open.callee.lock));
            held.intake(open.callee).map(|intake| Arc::clone(&intake.core))
        };
        let Some(core) = core else {
            return;
        };
        core.owe_less();
        if !core.asked().end(open.asked_as, why) {
            return;
        }
        let reader = {
            let mut held = self.locks.acquire(LockBits::one(open.callee.lock));
            held.intake(open.callee).and_then(|intake| intake.tell_apart())
        };
        if let Some(reader) = reader
            && !mutated(Mutant::EndWakesNobody)
        {
            reader.wake();
        }
    }

    /// Ends what is over by now.
    pub(crate) fn expire(&self) {
        let now = nanos(self.running());
        if self.deadlines.next() > now {
            return;
        }
        while let Some(core) = self.deadlines.take_due(now) {
            let most = usize::from(self.limits.requests);
            let mut over = Vec::with_capacity(most);
            let mut effects = Effects::default();
            effects.reserve(1);
            let (mut held, monitors) = self.hold_seen(LockBits::one(core.place.lock), &mut effects);
            let mut reader = None;
            let mut next = None;
            while let Some(intake) = held.intake(core.place) {
                next = intake.requests.next_deadline();
                let Some(open) = intake.requests.take_due(now) else {
                    break;
                };
                let sequence = held.draw(core.seen());
                let outcome = Outcome { request: open.id, sequence, why: RequestEnd::TimedOut };
                if let Some(intake) = held.intake(core.place) {
                    intake.push_outcome(outcome);
                    reader = reader.or(intake.take_reader());
                }
                count_answered(&mut held);
                if let Some(monitors) = &monitors {
                    // Who was told is awake, so there is one waker of each at most.
                    monitors.tell(&mut held, &seen(outcome, &core, &open), &mut effects);
                }
                over.push(open);
            }
            drop(held);
            if mutated(Mutant::LookBeforeNone) {
                core.set_next_look(NEVER);
            }
            if let Some(next) = next {
                self.deadlines.plan(&core, next);
            }
            effects.wake(reader);
            effects.run();
            for open in over {
                self.after_end(&core, &open, RequestEnd::TimedOut);
            }
        }
    }

    /// How long until the next deadline of a request, as the bus counts time; none if no request
    /// waits.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        match self.deadlines.next() {
            NEVER => None,
            at => Some(Duration::from_nanos(at.saturating_sub(nanos(self.running())))),
        }
    }

    /// An endpoint is closed: nobody waits for the outcomes of its requests, `open`, and nobody
    /// will answer what it was asked.
    pub(crate) fn close_requests(&self, core: &EndpointCore, open: Vec<Open>) {
        self.deadlines.forget(core);
        self.abandon_requests(open);
        let asked = std::mem::take(&mut core.asked().requests);
        for asked in asked.into_values() {
            self.give_again(asked.caller, asked.id, asked.message.as_ref());
        }
    }

    /// The caller of these requests takes no outcomes any more.
    pub(crate) fn abandon_requests(&self, open: Vec<Open>) {
        for open in open {
            self.tell_asked(&open, RequestEnd::Gone);
        }
    }

    /// Drops what was queued for an endpoint that is closed and that nobody reads any more.
    pub(crate) fn drop_queue(&self, (fresh, state): (Option<Consumer>, Option<Box<ReaderState>>)) {
        let rings = state.and_then(|state| state.consumer).into_iter().chain(fresh);
        for entry in rings.flat_map(|mut ring| std::iter::from_fn(move || ring.pop())) {
            if let Some(message) = entry.into_message()
                && let Some(requested) = message.requested()
            {
                let id = requested.first.unwrap_or(message.sequence());
                self.give_again(requested.caller, id, Some(&message));
            }
        }
    }

    /// The endpoint that was asked will not answer. False if it was not asked, or has answered.
    pub(crate) fn decline(&self, core: &EndpointCore, request: Sequence) -> bool {
        let asked = core.asked().remove(request);
        asked.is_some_and(|asked| self.end_request(asked.caller, asked.id, RequestEnd::Gone))
    }
}

/// What monitors are told of an outcome.
fn seen(outcome: Outcome, caller: &EndpointCore, open: &Open) -> Monitored {
    Monitored::Outcome(SeenOutcome { outcome, caller: caller.id(), asked: open.callee.id })
}

/// A request has its outcome; a lock is held.
pub(crate) fn count_answered(held: &mut crate::lock_set::Held<'_>) {
    if let Some(counters) = held.counters() {
        counters.answered += 1;
    }
}

/// Whether one more request finds memory and a place for its outcome.
pub(crate) fn check_limit(intake: &crate::intake::Intake, limit: u16) -> Result<(), LimitExceeded> {
    let used = usize::try_from(intake.outcome_places()).unwrap_or(usize::MAX);
    LimitExceeded::check("requests", used, limit)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
