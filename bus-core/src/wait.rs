//! Sends that wait for room, and how far they can be overtaken (G5, G6).
//!
//! A waiting send is committed on its behalf by whoever makes room for it: a reader that frees a
//! place, a member that leaves, a tick. So there is no time between a wake-up and its use in which
//! somebody else could take the place, no wake-up that is not used, and no herd: who sleeps is
//! woken when its send has been decided.
//!
//! # The rules
//!
//! 1. Each waiting send has a ticket, and is registered at *one* queue that it lacks. When that
//!    queue frees a place, its sends are tried in the order of their tickets. One that finds
//!    another recipient full moves there; its place goes to the next. At its own sender's queue a
//!    send waits only if it lacks no other, and a blocking one ends with `OwnQueueFull` then.
//! 2. Nobody takes a place in a queue at which an older send is registered. A newcomer serves those
//!    first, and then sees what is left. A waiting send moves there and gets in line: the reader
//!    that freed the place has seen that somebody is registered and is on its way to serve them.
//!    So nobody passes a send at the queue it waits for.
//! 3. A send that is registered elsewhere does not hold back others: a fan-out that waits for a
//!    dead member costs the healthy ones nothing.
//! 4. By rule 3, a fan-out can be offered a place in one queue, find another full, and the other
//!    way round, for ever: two readers half a period apart do that. After [`MISSED_OFFERS`] such
//!    offers a send is *senior*, and may use the reserve place that each queue has beyond its
//!    capacity. Others never use it, so they cannot take it away; it is free again when the
//!    reader has taken one message, and as many bytes as the message that used it.
//! 5. Among seniors, a younger one leaves a reserve place to an older one that needs it too. Unless
//!    the older one is *stuck*: the queue at which it is registered has freed nothing for
//!    [`PATIENCE`].
//!
//! # The bound
//!
//! While its recipients read (each at least one message within [`PATIENCE`]), a waiting send is
//! overtaken at the queue it waits for at most [`MISSED_OFFERS`] times: rules 1 and 2 let nobody
//! younger pass there but when the offer was its own and it could not use it. Wherever it moves,
//! it was offered a place and missed it, whoever made it look. From then on it lacks
//! only recipients whose reserve place is taken, by rule 5 nobody younger takes one, so what it
//! lacks shrinks with every message that one of those recipients takes, and is nothing when each
//! has taken one.
//!
//! # Locks
//!
//! The waiting room is a mutex of its own, taken before the directory and the bus's 8 locks. A send
//! that meets neither a full queue nor a waiting send never takes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use ahash::{HashMap, HashSet};
use slab::Slab;

use crate::bus::BusInner;
use crate::id::{EndpointId, GroupId};
use crate::intake::{EndpointCore, Interest};
use crate::message::Destination;
use crate::send::{Attempt, Effects, FullRecipients, Outgoing, Receipt, SendError, Standing};
use crate::sync::{Mutant, mutated};

/// Offers of a place that a waiting send misses, because another recipient is full, before it may
/// use reserve places. With two readers at 60 Hz half a period apart this is 33 ms.
pub const MISSED_OFFERS: u32 = 4;

/// A waiting send whose queue has freed nothing for this long no longer holds back younger ones.
pub const PATIENCE: Duration = Duration::from_millis(250);

/// Order of arrival among waiting sends.
type Ticket = u64;

/// A waiting send in the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitKey(usize);

#[derive(Debug)]
struct Wait {
    ticket: Ticket,
    interest: Interest,
    /// None once it has been decided.
    outgoing: Option<Outgoing>,
    /// The queue at which it is registered.
    at: Option<EndpointId>,
    missed_offers: u32,
    senior: Option<Progress>,
    waker: Option<Waker>,
    outcome: Option<Result<Option<Receipt>, SendError>>,
}

/// Whether a queue still moves.
#[derive(Clone, Copy, Debug)]
struct Progress {
    freed: u64,
    since: Duration,
    stuck: bool,
}

/// What is registered at one queue.
#[derive(Debug)]
struct Line {
    core: Arc<EndpointCore>,
    sends: BTreeMap<Ticket, WaitKey>,
    watches: BTreeMap<Ticket, WaitKey>,
}

impl Line {
    fn of(&mut self, interest: Interest) -> &mut BTreeMap<Ticket, WaitKey> {
        match interest {
            Interest::Send => &mut self.sends,
            Interest::Watch => &mut self.watches,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct WaitingRoom {
    tickets: Ticket,
    waits: Slab<Wait>,
    lines: HashMap<EndpointId, Line>,
    seniors: BTreeMap<Ticket, WaitKey>,
    /// Undecided sends, for the counters.
    sending: usize,
    /// A senior has gone, is stuck, or may need other queues than before: others may go on.
    seniors_moved: bool,
    /// Since when endpoints have been full while sends waited for them.
    stalls: HashMap<EndpointId, Progress>,
}

/// An endpoint that is stalled, and the groups in which it holds up senders.
#[derive(Debug)]
pub(crate) struct Stalled {
    pub(crate) core: Arc<EndpointCore>,
    pub(crate) groups: Vec<GroupId>,
    /// For how long.
    pub(crate) time: Duration,
    pub(crate) queued_messages: u64,
}

/// What a send that met a full queue or a waiting send came to.
#[derive(Debug)]
pub(crate) enum Entered {
    Committed(Receipt),
    Waiting(WaitKey),
}

/// How a wait came out of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    Decided,
    /// It stays registered where it was: that queue has no room for it.
    Rests,
    /// It moved to another queue.
    Moved,
}

impl WaitingRoom {
    /// Takes in a send that could not be committed at once. With a waker it waits, without one it
    /// would block.
    pub(crate) fn enter(
        &mut self,
        bus: &BusInner,
        mut outgoing: Outgoing,
        waker: Option<Waker>,
        effects: &mut Effects,
    ) -> Result<Entered, SendError> {
        let own = outgoing.sender.id();
        let (at, waker) = match (self.try_newcomer(bus, &mut outgoing, effects), waker) {
            (Ok(Attempt::Full { full, at }), Some(waker)) if !full.is_only(own) => (at, waker),
            (Ok(Attempt::Owed { at }), Some(waker)) => (at, waker),
            (attempt, waker) => {
                let blocking = waker.is_some();
                effects.discard(Some(outgoing), waker);
                return match attempt? {
                    Attempt::Committed(receipt) => Ok(Entered::Committed(receipt)),
                    Attempt::Full { .. } if blocking => Err(SendError::OwnQueueFull),
                    Attempt::Full { full, .. } => Err(SendError::WouldBlock {
                        full: Box::new(full),
                    }),
                    Attempt::Owed { at } => Err(SendError::WouldBlock {
                        full: Box::new(FullRecipients::one(at.id())),
                    }),
                    Attempt::Writable => unreachable!("a send has a message"),
                };
            }
        };
        let key = self.insert(Interest::Send, outgoing, waker);
        self.register(key, &at);
        if !mutated(Mutant::NoSecondLook) {
            self.settle(bus, key, effects);
        }
        self.after_seniors(bus, effects);
        match self.take_outcome(key) {
            Some(Ok(Some(receipt))) => Ok(Entered::Committed(receipt)),
            Some(Err(error)) => Err(error),
            Some(Ok(None)) | None => Ok(Entered::Waiting(key)),
        }
    }

    /// Takes in somebody who wants to know when a route is writable. None if it is now.
    pub(crate) fn watch(
        &mut self,
        bus: &BusInner,
        mut outgoing: Outgoing,
        waker: Waker,
        effects: &mut Effects,
    ) -> Result<Option<WaitKey>, SendError> {
        let at = match self.try_newcomer(bus, &mut outgoing, effects) {
            Ok(Attempt::Full { at, .. } | Attempt::Owed { at }) => at,
            settled => {
                effects.discard(Some(outgoing), Some(waker));
                return settled.map(|_| None);
            }
        };
        let key = self.insert(Interest::Watch, outgoing, waker);
        self.register(key, &at);
        self.settle(bus, key, effects);
        match self.take_outcome(key) {
            Some(outcome) => outcome.map(|_| None),
            None => Ok(Some(key)),
        }
    }

    /// Tries somebody who has not waited, and first serves queues that owe places to those who
    /// have.
    ///
    /// Each turn serves one queue; more turns than a few can only come from readers that free
    /// places meanwhile, and then the newcomer is in line like others.
    fn try_newcomer(
        &mut self,
        bus: &BusInner,
        outgoing: &mut Outgoing,
        effects: &mut Effects,
    ) -> Result<Attempt, SendError> {
        for _ in 0..16 {
            match bus.attempt(outgoing, Standing::Newcomer, None, effects)? {
                Attempt::Owed { at } => self.serve(bus, at.id(), effects),
                settled => return Ok(settled),
            }
        }
        bus.attempt(outgoing, Standing::Newcomer, None, effects)
    }

    fn insert(&mut self, interest: Interest, outgoing: Outgoing, waker: Waker) -> WaitKey {
        let ticket = self.tickets;
        self.tickets += 1;
        self.sending += usize::from(interest == Interest::Send);
        WaitKey(self.waits.insert(Wait {
            ticket,
            interest,
            outgoing: Some(outgoing),
            at: None,
            missed_offers: 0,
            senior: None,
            waker: Some(waker),
            outcome: None,
        }))
    }

    fn register(&mut self, key: WaitKey, core: &Arc<EndpointCore>) {
        let wait = &mut self.waits[key.0];
        wait.at = Some(core.id());
        let line = self.lines.entry(core.id()).or_insert_with(|| Line {
            core: Arc::clone(core),
            sends: BTreeMap::new(),
            watches: BTreeMap::new(),
        });
        line.of(wait.interest).insert(wait.ticket, key);
        core.register(wait.interest);
    }

    fn unregister(&mut self, key: WaitKey) {
        let wait = &mut self.waits[key.0];
        let Some(at) = wait.at.take() else { return };
        let Some(line) = self.lines.get_mut(&at) else {
            return;
        };
        line.of(wait.interest).remove(&wait.ticket);
        line.core.unregister(wait.interest);
        if line.sends.is_empty() && line.watches.is_empty() {
            self.lines.remove(&at);
        }
    }

    /// A place was freed at `queue`: commits what can be.
    pub(crate) fn serve(&mut self, bus: &BusInner, queue: EndpointId, effects: &mut Effects) {
        self.serve_line(bus, queue, Interest::Send, effects);
        if !mutated(Mutant::ServeNoWatches) {
            self.serve_line(bus, queue, Interest::Watch, effects);
        }
        self.after_seniors(bus, effects);
    }

    fn serve_line(
        &mut self,
        bus: &BusInner,
        queue: EndpointId,
        interest: Interest,
        effects: &mut Effects,
    ) {
        let mut next = 0;
        let mut no_room = false;
        loop {
            let Some(line) = self.lines.get_mut(&queue) else {
                return;
            };
            let mut rest = line.of(interest).range(next..);
            let first = if mutated(Mutant::YoungestFirst) {
                rest.next_back()
            } else {
                rest.next()
            };
            let Some((ticket, key)) = first.map(|(ticket, key)| (*ticket, *key)) else {
                return;
            };
            next = ticket + 1;
            if no_room && self.waits[key.0].senior.is_none() {
                if self.seniors.is_empty() {
                    return;
                }
                continue;
            }
            match self.settle(bus, key, effects) {
                // Without the reserve place this queue has nothing for the next ones either.
                Settled::Rests if self.waits[key.0].senior.is_none() => no_room = true,
                Settled::Rests | Settled::Decided | Settled::Moved => {}
            }
            if mutated(Mutant::ServeOnlyOne) {
                return;
            }
        }
    }

    /// A send was offered a place and could not use it.
    fn miss_offer(&mut self, bus: &BusInner, key: WaitKey) {
        let wait = &mut self.waits[key.0];
        wait.missed_offers += 1;
        let due = wait.missed_offers >= MISSED_OFFERS && wait.interest == Interest::Send;
        if due && wait.senior.is_none() && !mutated(Mutant::NoReservePlace) {
            wait.senior = Some(Progress {
                freed: 0,
                since: bus.running(),
                stuck: false,
            });
            self.seniors.insert(wait.ticket, key);
        }
    }

    /// Tries to decide a wait; registers it at a queue that it lacks if it cannot be.
    ///
    /// Each look that finds a new queue full is followed by another one after the registration
    /// there, so a place that was freed in between is not lost.
    fn settle(&mut self, bus: &BusInner, key: WaitKey, effects: &mut Effects) -> Settled {
        let mut settled = Settled::Rests;
        loop {
            let wait = &mut self.waits[key.0];
            let Some(mut outgoing) = wait.outgoing.take() else {
                return Settled::Decided;
            };
            let (ticket, registered, senior) = (wait.ticket, wait.at, wait.senior.is_some());
            let turn = Turn { room: self, ticket };
            let standing = if senior {
                Standing::Senior(turn)
            } else {
                Standing::Waiter(turn)
            };
            let attempt = bus.attempt(&mut outgoing, standing, registered, effects);
            let sender = outgoing.sender.id();
            let wait = &mut self.waits[key.0];
            wait.outgoing = Some(outgoing);
            match attempt {
                Err(error) => self.decide(key, Err(error), effects),
                Ok(Attempt::Committed(receipt)) => self.decide(key, Ok(Some(receipt)), effects),
                Ok(Attempt::Writable) => self.decide(key, Ok(None), effects),
                Ok(Attempt::Full { full, .. })
                    if full.is_only(sender) && wait.interest == Interest::Send =>
                {
                    self.decide(key, Err(SendError::OwnQueueFull), effects);
                }
                Ok(Attempt::Full { at, .. } | Attempt::Owed { at }) => {
                    if wait.at == Some(at.id()) || mutated(Mutant::StayRegistered) {
                        return settled;
                    }
                    self.unregister(key);
                    self.register(key, &at);
                    self.miss_offer(bus, key);
                    settled = Settled::Moved;
                    if mutated(Mutant::NoSecondLook) {
                        return settled;
                    }
                    continue;
                }
            }
            return Settled::Decided;
        }
    }

    fn decide(
        &mut self,
        key: WaitKey,
        outcome: Result<Option<Receipt>, SendError>,
        effects: &mut Effects,
    ) {
        self.unregister(key);
        let wait = &mut self.waits[key.0];
        self.sending -= usize::from(wait.interest == Interest::Send);
        wait.outcome = Some(outcome);
        effects.discard(wait.outgoing.take(), None);
        effects.wake(wait.waker.take());
        if wait.senior.is_some() {
            self.seniors.remove(&wait.ticket);
            self.seniors_moved = true;
        }
    }

    /// Lets the seniors go on that a senior has left a reserve place to.
    fn after_seniors(&mut self, bus: &BusInner, effects: &mut Effects) {
        while std::mem::take(&mut self.seniors_moved) {
            let keys: Vec<WaitKey> = self.seniors.values().copied().collect();
            for key in keys {
                self.settle(bus, key, effects);
            }
        }
    }

    /// What a wait came to; the wait is gone then.
    pub(crate) fn take_outcome(
        &mut self,
        key: WaitKey,
    ) -> Option<Result<Option<Receipt>, SendError>> {
        let outcome = self.waits.get_mut(key.0)?.outcome.take()?;
        self.waits.remove(key.0);
        Some(outcome)
    }

    /// Ends a wait: with what it came to already, or with `Cancelled`.
    pub(crate) fn cancel(
        &mut self,
        bus: &BusInner,
        key: WaitKey,
        effects: &mut Effects,
    ) -> Result<Option<Receipt>, SendError> {
        if let Some(outcome) = self.take_outcome(key) {
            if mutated(Mutant::CancelForgetsOutcome) {
                return Err(SendError::Cancelled);
            }
            return outcome;
        }
        if mutated(Mutant::CancelLeavesSend) {
            return Err(SendError::Cancelled);
        }
        // Who cancels needs no wake-up.
        effects.discard(None, self.waits[key.0].waker.take());
        self.decide(key, Err(SendError::Cancelled), effects);
        self.after_seniors(bus, effects);
        self.take_outcome(key).unwrap_or(Err(SendError::Cancelled))
    }

    /// Puts another waker in the place of a wait's, and gives back the old one; or the new one if
    /// the wait has been decided. The caller drops it without the lock.
    pub(crate) fn replace_waker(
        &mut self,
        key: WaitKey,
        waker: Waker,
    ) -> Result<Option<Waker>, Waker> {
        match self.waits.get_mut(key.0) {
            Some(wait) if wait.outgoing.is_some() => Ok(wait.waker.replace(waker)),
            _ => Err(waker),
        }
    }

    /// Groups or an endpoint have changed: tries every wait that they matter to.
    pub(crate) fn recheck(&mut self, bus: &BusInner, changed: &Changed, effects: &mut Effects) {
        if mutated(Mutant::LeaveServesNobody) {
            return;
        }
        let mut keys: Vec<(Ticket, WaitKey)> = (self.waits.iter())
            .filter(|(_, wait)| changed.concerns(wait))
            .map(|(at, wait)| (wait.ticket, WaitKey(at)))
            .collect();
        keys.sort_unstable_by_key(|(ticket, _)| *ticket);
        for (_, key) in keys {
            self.settle(bus, key, effects);
        }
        // A senior that no longer needs a queue leaves its reserve place to a younger one, which
        // may be registered there without having anything to do with what has changed.
        self.seniors_moved |= !self.seniors.is_empty() && !mutated(Mutant::ChangeKeepsClaims);
        self.after_seniors(bus, effects);
    }

    /// Time has passed: finds the senior sends that are stuck, and the endpoints that are stalled.
    pub(crate) fn tick(
        &mut self,
        bus: &BusInner,
        now: Duration,
        effects: &mut Effects,
    ) -> Vec<Stalled> {
        self.find_stuck(now);
        self.after_seniors(bus, effects);
        self.find_stalled(bus, now, effects)
    }

    fn find_stuck(&mut self, now: Duration) {
        for key in self.seniors.values() {
            let wait = &mut self.waits[key.0];
            let (Some(progress), Some(at)) = (&mut wait.senior, wait.at) else {
                continue;
            };
            let Some(line) = self.lines.get(&at) else {
                continue;
            };
            let freed = line.core.freed().0;
            if freed != progress.freed {
                *progress = Progress {
                    freed,
                    since: now,
                    stuck: false,
                };
            } else if !progress.stuck && now.saturating_sub(progress.since) >= PATIENCE {
                progress.stuck = true;
                self.seniors_moved = true;
            }
        }
    }

    /// The endpoints that have been full for the stall limit while sends waited for them, and have
    /// taken less than one queue's capacity in that time (G8).
    ///
    /// Every full recipient of every waiting send is looked at, not only those at which sends are
    /// registered: so the clock runs for all of them at once, and many dead members cost one stall
    /// limit together. Of endpoints that wait for each other only one is given up at a time.
    fn find_stalled(
        &mut self,
        bus: &BusInner,
        now: Duration,
        effects: &mut Effects,
    ) -> Vec<Stalled> {
        if self.sending == 0 {
            self.stalls.clear();
            return Vec::new();
        }
        let mut full: HashMap<EndpointId, Stalled> = HashMap::default();
        let mut seen: HashSet<Destination> = HashSet::default();
        for (_, wait) in &self.waits {
            let (Interest::Send, Some(outgoing)) = (wait.interest, &wait.outgoing) else {
                continue;
            };
            let destination = outgoing.route.destination();
            if !seen.insert(destination) {
                continue;
            }
            for (core, queued_messages) in bus.find_full(outgoing) {
                let stalled = full.entry(core.id()).or_insert_with(|| Stalled {
                    core,
                    groups: Vec::new(),
                    time: Duration::ZERO,
                    queued_messages,
                });
                if let Destination::Group(group) = destination {
                    stalled.groups.push(group);
                }
            }
        }
        self.stalls.retain(|id, _| full.contains_key(id));
        let limit = bus.limits.stall;
        full.retain(|id, stalled| {
            let freed = stalled.core.freed().0;
            let progress = Progress {
                freed,
                since: now,
                stuck: false,
            };
            let before = self.stalls.entry(*id).or_insert(progress);
            if freed - before.freed >= stalled.core.capacity.messages {
                *before = progress;
            }
            stalled.time = now.saturating_sub(before.since);
            stalled.time >= limit
        });
        if full.is_empty() {
            return Vec::new();
        }
        self.spare_cycles(&mut full, now);
        for id in full.keys() {
            self.stalls.remove(id);
            self.give_up_unicasts(*id, effects);
        }
        let mut stalled: Vec<Stalled> = full.into_values().collect();
        stalled.sort_unstable_by_key(|stalled| stalled.core.id());
        stalled
    }

    /// Keeps those that wait for nobody else who is stalled. If all do, keeps one: its end may let
    /// the others go on, and their clocks start again.
    fn spare_cycles(&mut self, full: &mut HashMap<EndpointId, Stalled>, now: Duration) {
        let mut waits_for_stalled: HashSet<EndpointId> = HashSet::default();
        for (_, wait) in &self.waits {
            let Some(outgoing) = &wait.outgoing else {
                continue;
            };
            let sender = outgoing.sender.id();
            if full.contains_key(&sender)
                && full
                    .keys()
                    .any(|id| *id != sender && outgoing.route.needs(*id))
            {
                waits_for_stalled.insert(sender);
            }
        }
        if waits_for_stalled.len() == full.len() {
            let oldest = full
                .values()
                .map(|s| (std::cmp::Reverse(s.time), s.core.id()))
                .min();
            waits_for_stalled.retain(|id| oldest.is_none_or(|(_, oldest)| *id != oldest));
        }
        for id in waits_for_stalled {
            if let Some(stalled) = full.remove(&id) {
                let freed = stalled.core.freed().0;
                self.stalls.insert(
                    id,
                    Progress {
                        freed,
                        since: now,
                        stuck: false,
                    },
                );
            }
        }
    }

    /// Direct sends to a stalled endpoint end with an error: there is no group to put it out of.
    fn give_up_unicasts(&mut self, id: EndpointId, effects: &mut Effects) {
        let to = Destination::Endpoint(id);
        let keys: Vec<WaitKey> = (self.waits.iter())
            .filter(|(_, wait)| {
                let outgoing = wait.outgoing.as_ref();
                outgoing.is_some_and(|outgoing| outgoing.route.destination() == to)
            })
            .map(|(at, _)| WaitKey(at))
            .collect();
        for key in keys {
            self.decide(key, Err(SendError::RecipientStalled(id)), effects);
        }
    }

    /// Sends that wait now.
    pub(crate) fn sending(&self) -> usize {
        self.sending
    }
}

/// A waiting send's place among the others, while it is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn<'a> {
    room: &'a WaitingRoom,
    ticket: Ticket,
}

impl Turn<'_> {
    /// Whether an older send is registered at a queue.
    pub(crate) fn follows_another_at(self, queue: EndpointId) -> bool {
        let line = self.room.lines.get(&queue);
        let first = line.and_then(|line| line.sends.keys().next());
        first.is_some_and(|first| *first < self.ticket)
    }

    /// Whether an older senior send that is not stuck needs a place in a queue: its reserve place
    /// is for that one first.
    pub(crate) fn is_claimed_by_older(self, queue: EndpointId) -> bool {
        let older = self.room.seniors.range(..self.ticket);
        let claims = |wait: &Wait| {
            let stuck = wait.senior.is_some_and(|progress| progress.stuck);
            let route = wait.outgoing.as_ref().map(|outgoing| &outgoing.route);
            (!stuck || mutated(Mutant::StuckKeepsClaims))
                && route.is_some_and(|route| route.needs(queue))
        };
        older.map(|(_, key)| &self.room.waits[key.0]).any(claims)
    }
}

/// What a change of membership was about.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    pub(crate) groups: Vec<GroupId>,
    pub(crate) endpoint: Option<EndpointId>,
}

impl Changed {
    fn concerns(&self, wait: &Wait) -> bool {
        let Some(outgoing) = &wait.outgoing else {
            return false;
        };
        let destination = match outgoing.route.destination() {
            Destination::Group(group) => self.groups.contains(&group),
            Destination::Endpoint(id) => self.endpoint == Some(id),
        };
        destination
            || self
                .endpoint
                .is_some_and(|id| wait.at == Some(id) || outgoing.sender.id() == id)
    }
}
