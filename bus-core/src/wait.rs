//! Sends that wait for room, and how far they can be overtaken (G5, G6).
//!
//! A waiting send is committed on its behalf by whoever makes room for it: a reader that frees a
//! place, a member that leaves, a tick. So there is no time between a wake-up and its use in which
//! somebody else could take the place, no wake-up that is not used, and no herd: who sleeps is
//! woken when its send has been decided.
//!
//! # The rules
//!
//! 1. Each waiting send has a ticket, and stands in line at *one* queue that it lacks. A line is in
//!    the order of tickets, and nobody takes a place in a queue past an older send in its line: no
//!    newcomer, no send that waits elsewhere, no drop-when-full member.
//! 2. When a queue frees a place, the first in its line is tried. It is committed if all its
//!    recipients have a place for it. If one has none, it moves to the line there, and the next one
//!    is tried.
//! 3. A send holds nobody back at queues where it does not stand in line: a fan-out that waits for
//!    a dead member costs the healthy ones nothing.
//! 4. By rule 3 a fan-out could be offered a place in one queue, find another full, and the other
//!    way round, for ever: two readers half a period apart do that. So each queue has a *reserve
//!    place* beyond its capacity. A send that moves on *keeps* the reserve place of the queue that
//!    it leaves. Only those who keep it may use it, and the oldest of them first. It is free again
//!    when the reader has taken one message, and as many bytes as the message that used it.
//! 5. What is kept and cannot be used is not withheld for ever: who stands in one line for
//!    [`PATIENCE`] gives up what it keeps elsewhere; and if a place has been kept for that long and
//!    none of those who keep it was committed, the first of them that can use it may, whatever its
//!    age. So neither one send that waits for a dead recipient nor many that take turns withhold a
//!    place from those who have all others.
//!
//! 6. A send to a name needs *one* of its workers, and stands in line at each of them. Whichever
//!    frees a place first and has it as the first in line commits it, and then it leaves the other
//!    lines. So it is overtaken at no worker (rule 1), never moves on, and keeps nothing.
//!
//! 7. In another user's queue a send needs room twice: in the queue, and in what its user may have of
//!    it (`share.rs`). Each has a line, and the rules hold for both alike. Who stands in the line of
//!    a share holds up nobody at the queue: it is not full. Room of the queue is room of the share as
//!    well, so who frees a place serves the queue's line first and then those of its shares.
//!
//! # The bound
//!
//! While its recipients read, a waiting send stands in line at each of them at most once, and
//! misses at most [`MISSED_OFFERS`] offers of each. It leaves a line only when it is the first there
//! and the queue has room (rule 1), and keeps the reserve place, which is free: a reserve place in
//! use means that the queue is beyond its capacity, and then it has no room. So what it lacks
//! shrinks with each move. Only older sends can take what it keeps, each once; and it stands in a
//! line for those that are older and for two messages to be taken at most.
//!
//! Meanwhile younger sends overtake it at recipients where it does not stand in line, by rule 3: at
//! most by what those take until the one at which it stands has taken that.
//!
//! What "while its recipients read" means: no line, and no older send, keeps it for [`PATIENCE`].
//! What is slower can cost it what it keeps, and then it stands in a line once more: its place
//! there is the one of its age.
//!
//! # Locks
//!
//! The waiting room is a mutex of its own, taken before the directory and the bus's 8 locks. A send
//! that meets neither a full queue nor a waiting send never takes it.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use ahash::{HashMap, HashSet};
use slab::Slab;

use crate::bus::BusInner;
use crate::id::{EndpointId, GroupId, NameId};
use crate::intake::{EndpointCore, Interest};
use crate::message::Destination;
use crate::name::GroupName;
use crate::ownership::{Claim, Ownership};
use crate::send::{
    Attempt, Effects, FullRecipient, FullRecipients, Outgoing, Receipt, SendError, Standing,
};
use crate::share::ShareSlot;
use crate::sync::{Mutant, mutated};

/// Offers of one recipient's place that a waiting send can miss, because another recipient is full,
/// while its recipients read and no older send takes what it keeps. The bound of G5.
pub const MISSED_OFFERS: u32 = 1;

/// A waiting send that has stood in one line for this long gives up the places that it keeps
/// elsewhere; and a place that was kept for so long without use is for whoever can use it.
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
    /// Where it stands in line, and since when of the bus's running time.
    at: Stand,
    since: Duration,
    /// Since when it waits.
    began: Duration,
    /// The queues whose reserve places it keeps.
    kept: Vec<Line>,
    waker: Option<Waker>,
    outcome: Option<Result<Option<Receipt>, SendError>>,
}

/// Where a wait stands in line.
#[derive(Clone, Debug)]
enum Stand {
    Nowhere,
    /// At a queue that it lacks.
    Queue(Place),
    /// At all workers of a name, for room in their queues or for its user's share of them.
    Workers(Arc<Ownership>, Box<[Option<ShareSlot>]>),
}

impl Stand {
    /// Where a send is to wait that lacks the queue `at`.
    fn of(outgoing: &Outgoing, at: Place) -> Self {
        match outgoing.route.name() {
            Some(route) if !mutated(Mutant::WaitAtOneWorker) => {
                Self::Workers(Arc::clone(&route.ownership), route.shares().into())
            }
            _ => Self::Queue(at),
        }
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        let (one, workers, shares) = match self {
            Self::Nowhere => (None, &[][..], &[][..]),
            Self::Queue(place) => (Some(place.clone()), &[][..], &[][..]),
            Self::Workers(ownership, shares) => (None, ownership.owners(), &**shares),
        };
        let workers = workers.iter().zip(shares);
        let place = |(worker, share): (&Claim, &Option<ShareSlot>)| Place {
            core: Arc::clone(&worker.core),
            share: *share,
        };
        one.into_iter().chain(workers.map(place))
    }

    fn is_at(&self, line: Line) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Queue(place) => place.line() == line,
            Self::Workers(ownership, shares) => {
                let mut workers = ownership.owners().iter().zip(shares);
                workers
                    .any(|(worker, share)| worker.core.id() == line.queue && *share == line.share)
            }
        }
    }

    /// Whether it is in any line at an endpoint.
    fn touches(&self, id: EndpointId) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Queue(place) => place.core.id() == id,
            Self::Workers(ownership, _) => ownership.owns(id),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Queue(one), Self::Queue(other)) => one.line() == other.line(),
            (Self::Workers(one, shares), Self::Workers(other, others)) => {
                one.generation == other.generation && shares == others
            }
            _ => false,
        }
    }
}

/// Names a line: that of a queue, or that of a user's share of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Line {
    pub(crate) queue: EndpointId,
    pub(crate) share: Option<ShareSlot>,
}

/// Where one can stand in line.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) core: Arc<EndpointCore>,
    pub(crate) share: Option<ShareSlot>,
}

impl Place {
    pub(crate) fn line(&self) -> Line {
        Line { queue: self.core.id(), share: self.share }
    }
}

/// How much a queue had freed at a time: messages and bytes.
#[derive(Clone, Copy, Debug)]
struct Progress {
    freed: (u64, u64),
    since: Duration,
}

/// Who stands in one line, and who keeps its reserve place.
#[derive(Debug)]
struct Standers {
    place: Place,
    sends: BTreeMap<Ticket, WaitKey>,
    watches: BTreeMap<Ticket, WaitKey>,
    keepers: BTreeSet<Ticket>,
    /// Since when of the bus's running time the reserve place is kept, and none of those who keep
    /// it has been committed.
    unused_since: Duration,
}

impl Standers {
    fn of(&mut self, interest: Interest) -> &mut BTreeMap<Ticket, WaitKey> {
        match interest {
            Interest::Send => &mut self.sends,
            Interest::Watch => &mut self.watches,
        }
    }

    /// Whether the oldest of those who keep the reserve place still withholds it from the others.
    fn is_withheld(&self, now: Duration) -> bool {
        now.saturating_sub(self.unused_since) < PATIENCE || mutated(Mutant::UnusedStaysWithheld)
    }

    fn is_empty(&self) -> bool {
        self.sends.is_empty() && self.watches.is_empty() && self.keepers.is_empty()
    }
}

#[derive(Debug, Default)]
pub(crate) struct WaitingRoom {
    tickets: Ticket,
    waits: Slab<Wait>,
    lines: HashMap<Line, Standers>,
    /// Those that keep reserve places.
    keepers: BTreeMap<Ticket, WaitKey>,
    /// Undecided sends, for the counters.
    sending: usize,
    /// Lines in which the first may have got a place, or another one has become the first. Empty
    /// whenever the room is left.
    unsettled: Vec<Line>,
    /// Since when endpoints have been full while sends waited for them.
    stalls: HashMap<EndpointId, Progress>,
    /// The bus's running time when it was last looked at here.
    clock: Duration,
}

/// An endpoint that is stalled, and the groups in which it holds up senders.
#[derive(Debug)]
pub(crate) struct Stalled {
    pub(crate) core: Arc<EndpointCore>,
    pub(crate) groups: Vec<GroupId>,
    /// Names that it shares with other workers, which are all full.
    pub(crate) names: Vec<NameId>,
    /// For how long.
    pub(crate) time: Duration,
    pub(crate) queued_messages: u64,
    /// The stall limit of each of the groups.
    limits: Vec<Duration>,
    /// Others than senders to groups wait for it, and by the bus's limit too long.
    overdue: bool,
    /// It has room, but not for the one user whose sends wait, who has his share of its queue.
    for_one_user: bool,
}

impl Stalled {
    fn new(core: Arc<EndpointCore>, queued_messages: u64) -> Self {
        let (groups, names, limits) = (Vec::new(), Vec::new(), Vec::new());
        let (time, overdue) = (Duration::ZERO, false);
        let for_one_user = true;
        Self { core, groups, names, time, queued_messages, limits, overdue, for_one_user }
    }

    /// A member that leaves before it is.
    pub(crate) fn leaver(core: Arc<EndpointCore>, queued_messages: u64) -> Self {
        Self::new(core, queued_messages)
    }

    /// A sender to a group waits for it, and may have to for so long.
    fn note_group(&mut self, group: GroupId, limit: Duration) {
        match self.groups.iter().position(|known| *known == group) {
            Some(at) => self.limits[at] = self.limits[at].min(limit),
            None => {
                self.groups.push(group);
                self.limits.push(limit);
            }
        }
    }

    /// Keeps what has waited too long. Whether something that is left waits on.
    fn keep_overdue(&mut self, limit: Duration) -> bool {
        let (time, others) = (self.time, self.overdue);
        self.overdue &= time >= limit;
        if !self.overdue {
            self.names.clear();
        }
        let mut limits = std::mem::take(&mut self.limits).into_iter();
        let before = self.groups.len();
        self.groups.retain(|_| limits.next().is_some_and(|limit| time >= limit));
        self.groups.len() < before || (others && !self.overdue)
    }
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
            (Ok(Attempt::Full { at }), Some(waker)) if !effects.full.is_only(own) => (at, waker),
            (Ok(Attempt::Owed { at }), Some(waker)) => (at, waker),
            (attempt, waker) => {
                let blocking = waker.is_some();
                effects.discard(Some(outgoing), waker);
                return match attempt? {
                    Attempt::Committed(receipt) => Ok(Entered::Committed(receipt)),
                    Attempt::Full { .. } if blocking => Err(SendError::OwnQueueFull),
                    Attempt::Full { .. } => {
                        Err(SendError::WouldBlock { full: Box::new(effects.full) })
                    }
                    Attempt::Owed { at } => {
                        let full = FullRecipients::one(at.core.id());
                        Err(SendError::WouldBlock { full: Box::new(full) })
                    }
                    Attempt::Writable | Attempt::NoShares => {
                        unreachable!("a send has a message, and shares were made")
                    }
                };
            }
        };
        let at = Stand::of(&outgoing, at);
        let key = self.insert(bus, Interest::Send, outgoing, waker);
        self.register(bus, key, at);
        if !mutated(Mutant::NoSecondLook) {
            self.settle(bus, key, effects);
        }
        self.serve_unsettled(bus, effects);
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
            Ok(Attempt::Full { at } | Attempt::Owed { at }) => at,
            settled => {
                effects.discard(Some(outgoing), Some(waker));
                return settled.map(|_| None);
            }
        };
        let at = Stand::of(&outgoing, at);
        let key = self.insert(bus, Interest::Watch, outgoing, waker);
        self.register(bus, key, at);
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
            match bus.attempt(outgoing, Standing::Newcomer, effects)? {
                Attempt::Owed { at } => {
                    self.unsettled.push(at.line());
                    self.serve_unsettled(bus, effects);
                }
                settled => return Ok(settled),
            }
        }
        bus.attempt(outgoing, Standing::Newcomer, effects)
    }

    fn insert(
        &mut self,
        bus: &BusInner,
        interest: Interest,
        outgoing: Outgoing,
        waker: Waker,
    ) -> WaitKey {
        let ticket = self.tickets;
        self.tickets += 1;
        self.sending += usize::from(interest == Interest::Send);
        WaitKey(self.waits.insert(Wait {
            ticket,
            interest,
            outgoing: Some(outgoing),
            at: Stand::Nowhere,
            since: Duration::ZERO,
            began: bus.running(),
            kept: Vec::new(),
            waker: Some(waker),
            outcome: None,
        }))
    }

    fn register(&mut self, bus: &BusInner, key: WaitKey, at: Stand) {
        let wait = &mut self.waits[key.0];
        for place in at.places() {
            let line = self.lines.entry(place.line()).or_insert_with(|| Standers {
                place: place.clone(),
                sends: BTreeMap::new(),
                watches: BTreeMap::new(),
                keepers: BTreeSet::new(),
                unused_since: Duration::ZERO,
            });
            line.of(wait.interest).insert(wait.ticket, key);
            place.core.register(place.share, wait.interest);
        }
        wait.at = at;
        wait.since = bus.running();
    }

    fn unregister(&mut self, key: WaitKey) {
        let wait = &mut self.waits[key.0];
        for place in std::mem::replace(&mut wait.at, Stand::Nowhere).places() {
            let (at, core) = (place.line(), &place.core);
            let Some(line) = self.lines.get_mut(&at) else {
                continue;
            };
            let was_first = line.sends.keys().next() == Some(&wait.ticket);
            line.of(wait.interest).remove(&wait.ticket);
            core.unregister(at.share, wait.interest);
            if wait.interest == Interest::Send {
                let stood = self.clock.saturating_sub(wait.since);
                core.blocking.sends.add(1);
                core.blocking.nanos.add(u64::try_from(stood.as_nanos()).unwrap_or(u64::MAX));
            }
            if line.is_empty() {
                self.lines.remove(&at);
            } else if was_first && !line.sends.is_empty() && !mutated(Mutant::ServeOnlyOne) {
                self.unsettled.push(at);
            }
        }
    }

    /// A place was freed at a queue: commits what can be.
    pub(crate) fn serve(&mut self, bus: &BusInner, core: &EndpointCore, effects: &mut Effects) {
        let queue = core.id();
        let shares = core.shares.get().into_iter().flat_map(|shares| shares.wanted());
        self.unsettled.extend(shares.map(|share| Line { queue, share: Some(share) }));
        // The last one is the first to be served.
        self.unsettled.push(Line { queue, share: None });
        self.serve_unsettled(bus, effects);
    }

    fn serve_unsettled(&mut self, bus: &BusInner, effects: &mut Effects) {
        while let Some(line) = self.unsettled.pop() {
            self.serve_first(bus, line, effects);
        }
    }

    /// Tries the first in a line; who leaves it makes the next one the first. Then, if sends leave
    /// something over, those who only want to know.
    fn serve_first(&mut self, bus: &BusInner, queue: Line, effects: &mut Effects) {
        let Some(line) = self.lines.get(&queue) else {
            return;
        };
        let first = if mutated(Mutant::YoungestFirst) {
            line.sends.values().next_back()
        } else {
            line.sends.values().next()
        };
        if let Some(key) = first.copied() {
            let settled = self.settle(bus, key, effects);
            let more = |line: &Standers| !line.sends.is_empty();
            if settled != Settled::Rests && self.lines.get(&queue).is_some_and(more) {
                return;
            }
        }
        if mutated(Mutant::ServeNoWatches) {
            return;
        }
        while let Some(line) = self.lines.get(&queue)
            && let Some(key) = line.watches.values().next().copied()
        {
            if self.settle(bus, key, effects) == Settled::Rests {
                return;
            }
        }
    }

    /// Tries to decide a wait; moves it to the line of a queue that it lacks if it cannot be.
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
            let generation = outgoing.route.generation();
            let now = bus.running();
            self.clock = now;
            let turn = Turn { lines: &self.lines, ticket: wait.ticket, at: &wait.at, now };
            let attempt = bus.attempt(&mut outgoing, Standing::Waiter(turn), effects);
            let changed = outgoing.route.generation() != generation;
            let sender = outgoing.sender.id();
            let interest = wait.interest;
            wait.outgoing = Some(outgoing);
            match attempt {
                Err(error) => self.decide(key, Err(error), effects),
                Ok(Attempt::Committed(receipt)) => {
                    self.use_kept(bus, key);
                    self.decide(key, Ok(Some(receipt)), effects);
                }
                Ok(Attempt::Writable) => self.decide(key, Ok(None), effects),
                Ok(Attempt::NoShares) => unreachable!("an attempt makes them"),
                Ok(Attempt::Full { .. })
                    if effects.full.is_only(sender) && interest == Interest::Send =>
                {
                    self.decide(key, Err(SendError::OwnQueueFull), effects);
                }
                Ok(Attempt::Full { at } | Attempt::Owed { at }) => {
                    if changed && !mutated(Mutant::ChangeKeepsClaims) {
                        self.give_up(key, Given::NotNeeded);
                    }
                    let wait = &self.waits[key.0];
                    let Some(at) = wait.outgoing.as_ref().map(|send| Stand::of(send, at)) else {
                        return Settled::Decided;
                    };
                    if wait.at.is_same(&at) || mutated(Mutant::StayRegistered) {
                        return settled;
                    }
                    self.keep(bus, key);
                    self.unregister(key);
                    self.register(bus, key, at);
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

    /// A send leaves the line of a queue that has a place for it: it keeps the reserve place there.
    fn keep(&mut self, bus: &BusInner, key: WaitKey) {
        let wait = &mut self.waits[key.0];
        let (Interest::Send, Stand::Queue(place), Some(outgoing)) =
            (wait.interest, &wait.at, &wait.outgoing)
        else {
            return;
        };
        let at = place.line();
        // It moves as well from a queue that is no recipient any more, or is its sender's own.
        if !outgoing.route.needs(at.queue) || outgoing.sender.id() == at.queue {
            return;
        }
        let Some(line) = self.lines.get_mut(&at) else {
            return;
        };
        if line.keepers.is_empty() {
            line.unused_since = bus.running();
        }
        if line.keepers.insert(wait.ticket) {
            if at.share.is_some() {
                // So that the share stays its user's.
                place.core.register(at.share, Interest::Watch);
            }
            wait.kept.push(at);
            self.keepers.insert(wait.ticket, key);
        }
    }

    /// A send that keeps places has been committed: the next oldest ones have their time.
    fn use_kept(&mut self, bus: &BusInner, key: WaitKey) {
        for queue in &self.waits[key.0].kept {
            if let Some(line) = self.lines.get_mut(queue) {
                line.unused_since = bus.running();
            }
        }
    }

    /// A send gives up reserve places; those in line there may go on.
    fn give_up(&mut self, key: WaitKey, what: Given) {
        let wait = &mut self.waits[key.0];
        let kept = std::mem::take(&mut wait.kept);
        let (ticket, at, outgoing) = (wait.ticket, &wait.at, wait.outgoing.as_ref());
        let stays = |line: &Line| match what {
            Given::All => false,
            Given::Elsewhere => at.is_at(*line),
            Given::NotNeeded => outgoing.is_some_and(|outgoing| outgoing.route.needs(line.queue)),
        };
        let (stay, go): (Vec<_>, Vec<_>) = kept.into_iter().partition(stays);
        wait.kept = stay;
        if wait.kept.is_empty() {
            self.keepers.remove(&ticket);
        }
        for queue in go {
            let Some(line) = self.lines.get_mut(&queue) else {
                continue;
            };
            line.keepers.remove(&ticket);
            if queue.share.is_some() {
                line.place.core.unregister(queue.share, Interest::Watch);
            }
            if line.is_empty() {
                self.lines.remove(&queue);
            } else if !line.sends.is_empty() && !mutated(Mutant::GiveUpServesNobody) {
                self.unsettled.push(queue);
            }
        }
    }

    fn decide(
        &mut self,
        key: WaitKey,
        outcome: Result<Option<Receipt>, SendError>,
        effects: &mut Effects,
    ) {
        self.unregister(key);
        self.give_up(key, Given::All);
        let wait = &mut self.waits[key.0];
        self.sending -= usize::from(wait.interest == Interest::Send);
        wait.outcome = Some(outcome);
        effects.discard(wait.outgoing.take(), None);
        effects.wake(wait.waker.take());
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
        self.clock = bus.running();
        // Who cancels needs no wake-up.
        effects.discard(None, self.waits[key.0].waker.take());
        self.decide(key, Err(SendError::Cancelled), effects);
        self.serve_unsettled(bus, effects);
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
        self.serve_unsettled(bus, effects);
    }

    /// Time has passed: finds who has stood in one line for too long to keep places elsewhere, and
    /// the endpoints that are stalled.
    pub(crate) fn tick(
        &mut self,
        bus: &BusInner,
        now: Duration,
        effects: &mut Effects,
    ) -> Vec<Stalled> {
        self.clock = now;
        // The oldest first: what it gives up may be all that a younger one lacks, which then has
        // nothing to give up.
        let mut next = 0;
        while let Some((ticket, key)) = self.keepers.range(next..).next() {
            let key = *key;
            next = ticket + 1;
            let stood = now.saturating_sub(self.waits[key.0].since);
            if stood >= PATIENCE && !mutated(Mutant::StuckKeepsClaims) {
                self.give_up(key, Given::Elsewhere);
                self.serve_unsettled(bus, effects);
            }
        }
        if !self.keepers.is_empty() {
            let free = |line: &Standers| !line.keepers.is_empty() && !line.is_withheld(now);
            let queues = self.lines.iter().filter(|(_, line)| free(line));
            self.unsettled.extend(queues.map(|(queue, _)| *queue));
        }
        self.end_overdue(now, effects);
        let stalled = self.find_stalled(bus, now, effects);
        self.serve_unsettled(bus, effects);
        stalled
    }

    /// Requests whose deadline has come before they could be delivered.
    fn end_overdue(&mut self, now: Duration, effects: &mut Effects) {
        let overdue = |wait: &Wait| {
            let until = wait.outgoing.as_ref().and_then(|outgoing| outgoing.until);
            until.is_some_and(|until| u128::from(until) <= now.as_nanos())
        };
        let keys = self.waits.iter().filter(|(_, wait)| overdue(wait));
        for key in keys.map(|(at, _)| WaitKey(at)).collect::<Vec<_>>() {
            self.decide(key, Err(SendError::DeadlinePassed), effects);
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
        let mut seen: HashSet<(Destination, u32)> = HashSet::default();
        for (_, wait) in &self.waits {
            let (Interest::Send, Some(outgoing)) = (wait.interest, &wait.outgoing) else {
                continue;
            };
            let destination = outgoing.route.destination();
            // Two messages of one user to one destination need room in the same queues, but for
            // filters and the senders' own peer endpoints.
            let differs = outgoing.route.is_selective() || outgoing.route.has_peer();
            if !seen.insert((destination, outgoing.sender.user)) && !differs {
                continue;
            }
            let of_group = outgoing.route.stall().unwrap_or(bus.limits.stall);
            for found in bus.find_full(outgoing) {
                let FullRecipient { core, queued_messages, leaves, for_one_user } = found;
                let stalled =
                    full.entry(core.id()).or_insert_with(|| Stalled::new(core, queued_messages));
                stalled.for_one_user &= for_one_user;
                if let Destination::Group(group) = destination {
                    stalled.note_group(group, if leaves { Duration::ZERO } else { of_group });
                    continue;
                }
                stalled.overdue = true;
                if let Destination::Name(name) = destination
                    && outgoing.route.sole_recipient().is_none()
                    && !stalled.names.contains(&name)
                {
                    stalled.names.push(name);
                }
            }
        }
        self.stalls.retain(|id, _| full.contains_key(id));
        let limit = bus.limits.stall;
        let mut over: HashSet<EndpointId> = HashSet::default();
        full.retain(|id, stalled| {
            let freed = stalled.core.freed();
            let progress = Progress { freed, since: now };
            let before = self.stalls.entry(*id).or_insert(progress);
            // A queue's capacity is consumed by a few large messages as well as by many small ones.
            // Who has room, and only not for one user, need not have consumed more than that one
            // may have of it.
            let capacity = stalled.core.capacity;
            let parts = if stalled.for_one_user { 2 } else { 1 };
            if freed.0 - before.freed.0 >= capacity.messages / parts
                || freed.1 - before.freed.1 >= capacity.bytes / parts
            {
                *before = progress;
            }
            stalled.time = now.saturating_sub(before.since);
            let more = stalled.keep_overdue(limit);
            let any = stalled.overdue || !stalled.groups.is_empty();
            if any && !more {
                // Whatever waits for it next is another matter.
                over.insert(*id);
            }
            any
        });
        if full.is_empty() {
            return Vec::new();
        }
        self.spare_cycles(&mut full, now);
        for (id, stalled) in &full {
            if over.contains(id) {
                self.stalls.remove(id);
            }
            if stalled.overdue {
                self.give_up_unicasts(*id, effects);
            }
        }
        let mut stalled: Vec<Stalled> = full.into_values().collect();
        stalled.sort_unstable_by_key(|stalled| stalled.core.id());
        stalled
    }

    /// Keeps those that wait for nobody else who is stalled. If all do, keeps one: its end may let
    /// the others go on, and their clocks start again.
    fn spare_cycles(&mut self, full: &mut HashMap<EndpointId, Stalled>, now: Duration) {
        // What is full at a peer endpoint, its owner does not read.
        let stuck: HashSet<EndpointId> = full.values().map(|s| s.core.reader).collect();
        let mut waits_for_stalled: HashSet<EndpointId> = HashSet::default();
        for (_, wait) in &self.waits {
            let Some(outgoing) = &wait.outgoing else {
                continue;
            };
            let sender = outgoing.sender.id();
            let others = |s: &Stalled| s.core.reader != sender && outgoing.route.needs(s.core.id());
            if stuck.contains(&sender) && full.values().any(others) {
                waits_for_stalled.insert(sender);
            }
        }
        if waits_for_stalled.len() == stuck.len() {
            let oldest = full.values().map(|s| (std::cmp::Reverse(s.time), s.core.reader)).min();
            waits_for_stalled.retain(|id| oldest.is_none_or(|(_, oldest)| *id != oldest));
        }
        full.retain(|id, stalled| {
            let spared = waits_for_stalled.contains(&stalled.core.reader);
            if spared {
                let freed = stalled.core.freed();
                self.stalls.insert(*id, Progress { freed, since: now });
            }
            !spared
        });
    }

    /// Direct sends to a stalled endpoint end with an error: there is no group to put it out of.
    fn give_up_unicasts(&mut self, id: EndpointId, effects: &mut Effects) {
        // Sent to it, to a peer endpoint of it, to a name of it, or as a reply.
        let to_it = |wait: &Wait| {
            let route = &wait.outgoing.as_ref()?.route;
            let direct = route.sole_recipient() == Some(id) && route.is_current();
            match route.destination() {
                Destination::Endpoint(to) => route.needs(id).then_some(to),
                _ => direct.then_some(id),
            }
        };
        let keys: Vec<(WaitKey, EndpointId)> = (self.waits.iter())
            .filter_map(|(at, wait)| Some((WaitKey(at), to_it(wait)?)))
            .collect();
        for (key, to) in keys {
            self.decide(key, Err(SendError::RecipientStalled(to)), effects);
        }
    }

    /// Gives back the memory of its tables, once nobody waits.
    pub(crate) fn shrink(&mut self) {
        if self.waits.is_empty() {
            self.waits = Slab::new();
            self.lines.shrink_to_fit();
            self.stalls.shrink_to_fit();
        }
    }

    /// Sends that wait now.
    pub(crate) fn sending(&self) -> usize {
        self.sending
    }

    /// Sends that wait, in the order in which they came: at most `most`, those after `after`.
    /// Looks at each wait once, and keeps no more than it gives.
    pub(crate) fn list(&self, now: Duration, after: Option<u64>, most: usize) -> Vec<Waiting> {
        let sends = self.waits.iter().filter(|(_, wait)| {
            wait.interest == Interest::Send
                && wait.outgoing.is_some()
                && after.is_none_or(|after| wait.ticket > after)
        });
        let mut first: BinaryHeap<(Ticket, usize)> = BinaryHeap::with_capacity(most + 1);
        for (at, wait) in sends {
            first.push((wait.ticket, at));
            if first.len() > most {
                first.pop();
            }
        }
        let listed = first.into_sorted_vec().into_iter();
        listed
            .filter_map(|(_, at)| {
                let wait = &self.waits[at];
                let outgoing = wait.outgoing.as_ref()?;
                let message = outgoing.message.as_deref();
                Some(Waiting {
                    ticket: wait.ticket,
                    sender: Arc::clone(&outgoing.sender),
                    to: outgoing.route.destination(),
                    group: outgoing.route.group_name(),
                    bytes: message.map_or(0, |message| message.bytes()),
                    waited: now.saturating_sub(wait.began),
                    at: wait.at.places().take(MOST_LISTED).map(|place| place.core).collect(),
                    stood: now.saturating_sub(wait.since),
                })
            })
            .collect()
    }
}

/// Queues of which one waiting send is said to stand in line.
const MOST_LISTED: usize = 16;

/// A send that waits, as it is listed.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) ticket: u64,
    pub(crate) sender: Arc<EndpointCore>,
    pub(crate) to: Destination,
    pub(crate) group: Option<GroupName>,
    pub(crate) bytes: u64,
    pub(crate) waited: Duration,
    /// The queues in whose lines it stands.
    pub(crate) at: Vec<Arc<EndpointCore>>,
    /// How long it has stood there.
    pub(crate) stood: Duration,
}

/// Which reserve places a send gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    All,
    /// Those where it does not stand in line.
    Elsewhere,
    /// Those of queues that are no recipients of it any more.
    NotNeeded,
}

/// A waiting send's place among the others, while it is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn<'a> {
    lines: &'a HashMap<Line, Standers>,
    ticket: Ticket,
    at: &'a Stand,
    now: Duration,
}

impl Turn<'_> {
    /// Whether it stands in a line.
    pub(crate) fn is_at(self, line: Line) -> bool {
        self.at.is_at(line)
    }

    /// Whether an older send stands in a line.
    pub(crate) fn follows_another_at(self, line: Line) -> bool {
        let line = self.lines.get(&line);
        let first = line.and_then(|line| line.sends.keys().next());
        first.is_some_and(|first| *first < self.ticket)
    }

    /// Whether it keeps the reserve place of a line.
    pub(crate) fn keeps(self, line: Line) -> bool {
        let line = self.lines.get(&line);
        line.is_some_and(|line| line.keepers.contains(&self.ticket))
    }

    /// Whether the reserve place of a line is for it, if it is free: it keeps it, nobody older
    /// withholds it, and nobody older stands in line there.
    pub(crate) fn may_use_reserve(self, queue: Line) -> bool {
        let Some(line) = self.lines.get(&queue) else {
            return false;
        };
        let oldest = line.keepers.first() == Some(&self.ticket);
        line.keepers.contains(&self.ticket)
            && (oldest || !line.is_withheld(self.now) || mutated(Mutant::ReservePassesOlder))
            && !self.follows_another_at(queue)
            && !mutated(Mutant::NoReservePlace)
    }
}

/// What a change of membership was about.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    pub(crate) groups: Vec<GroupId>,
    pub(crate) names: Vec<NameId>,
    pub(crate) endpoints: Vec<EndpointId>,
}

impl Changed {
    fn concerns(&self, wait: &Wait) -> bool {
        let Some(outgoing) = &wait.outgoing else {
            return false;
        };
        let destination = match outgoing.route.destination() {
            Destination::Group(group) => self.groups.contains(&group),
            Destination::Name(name) => self.names.contains(&name),
            Destination::Endpoint(_) | Destination::Caller(_) => {
                self.endpoints.iter().any(|id| outgoing.route.needs(*id))
            }
        };
        let sender = outgoing.sender.id();
        destination || self.endpoints.iter().any(|id| wait.at.touches(*id) || sender == *id)
    }
}
