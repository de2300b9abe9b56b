//! What the bus keeps of an endpoint: a part under its lock, and a part that needs none.
//!
//! Invariant: everything that a commit changes is in [`Intake`], which lives under the endpoint's
//! lock; everything that the reader changes is an atomic in [`EndpointCore`]. Room is the
//! difference of the two, and a commit that reads an old value of the reader's part sees less room
//! than there is, never more. What that can delay is a waiting send, and the fences in
//! [`EndpointCore::free`] and [`EndpointCore::register`] rule it out there.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use crossbeam_utils::CachePadded;

use crate::account::{Account, Charge, Process, Resource};
use crate::batch::{Batch, Unrolling};
use crate::bus::LimitExceeded;
use crate::filter::{Seen, Subject, index::MemberFilters};
use crate::id::{EndpointId, GroupId, NameId, Sequence};
use crate::limits::Limits;
use crate::lock_set::{self, IntakePlace};
use crate::membership::MemberFlags;
use crate::message::{Credentials, Gap, Message};
use crate::monitor::Monitored;
use crate::name_change::{NOTICES_PER_CLAIM, NameNotice};
use crate::notice::{Candidate, Eviction, PeerChange};
use crate::queue::{Consumer, Entry, Producer};
use crate::request::{Asked, NEVER, Outcome, Requests};
use crate::retained::Retained;
use crate::share::{Amount, ShareSlot, ShareTable, Shares};
use crate::sync::{AtomicBool, AtomicU64, Mutant, Mutex, MutexGuard, Ordering, fence, mutated};
use crate::tally::{Blocking, Dwell, LONGEST_RUN, LaneTallies, ReaderTimes, Run};
use crate::view::ViewChange;

/// How much a queue holds before it has no room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// Memberships, each of which reserves a place for the notice of its end (G8).
    memberships: u64,
    /// Unanswered requests, each of which keeps a place for its outcome.
    requests: u64,
    /// Places that claims of names reserve for what has to be told of them.
    claims: u64,
}

impl Capacity {
    pub(crate) fn of(limits: &Limits) -> Self {
        Self {
            messages: limits.queue_messages.into(),
            bytes: limits.queue_bytes,
            memberships: limits.memberships.into(),
            requests: limits.requests.into(),
            claims: NOTICES_PER_CLAIM * u64::from(limits.names_claimed),
        }
    }

    /// What a peer endpoint may take of its owner's queue: as the limits say, and half of it at
    /// most, so that no member fills it alone.
    pub(crate) fn of_share(limits: &Limits) -> Self {
        let half = |whole: u64, share: u64| share.min(whole / 2).max(1);
        Self {
            messages: half(limits.queue_messages.into(), limits.peer_messages.into()),
            bytes: half(limits.queue_bytes, limits.peer_bytes),
            memberships: 0,
            requests: 0,
            ..Self::of(limits)
        }
    }

    /// Places of the ring behind the queue: its capacity, the reserve place, one for the outcome of
    /// each request, those of claims of names, and for each membership one for its end and one for
    /// what its group retained.
    pub(crate) fn ring_places(self) -> usize {
        let kept = 2 * self.memberships + self.claims + self.requests;
        usize::try_from(self.messages + 1 + kept).unwrap_or(usize::MAX)
    }
}

/// What was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Messages,
    Views,
    /// Changes of a name's owners; of no group.
    Owners(NameId),
    /// Messages of a member that its peer endpoint had no room for.
    AtPeer(EndpointId),
    /// Not a loss, but told in the same way: what happened to a peer endpoint.
    Peer(EndpointId, PeerChange),
    /// Nor this: the member's flags were changed to these.
    Flags(MemberFlags),
    /// Of all that a monitor sees.
    Monitored,
}

/// A membership's losses (G7), or a watch's (G4). Written under its endpoint's lock only, so the atomics order
/// nothing: they let the record be shared without a second lock.
#[derive(Debug)]
pub(crate) struct Drops {
    pub(crate) group: GroupId,
    pub(crate) lost: Lost,
    count: AtomicU64,
    first: AtomicU64,
    last: AtomicU64,
    total: AtomicU64,
}

impl Drops {
    pub(crate) fn new(group: GroupId, lost: Lost) -> Self {
        let zero = || AtomicU64::new(0);
        Self { group, lost, count: zero(), first: zero(), last: zero(), total: zero() }
    }

    pub(crate) fn of_name(name: NameId) -> Self {
        Self::new(GroupId::from_raw(0), Lost::Owners(name))
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.count.load(Ordering::Relaxed) != 0
    }

    /// Messages dropped since the membership began.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// The same, of messages to groups.
    pub(crate) fn missed_messages(&self) -> u64 {
        if self.lost == Lost::Messages { self.total() } else { 0 }
    }

    fn record(&self, sequence: Sequence) {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 {
            self.first.store(sequence.get(), Ordering::Relaxed);
        }
        self.last.store(sequence.get(), Ordering::Relaxed);
        self.count.store(count + 1, Ordering::Relaxed);
        self.total.store(self.total.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn take(&self) -> Option<Gap> {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 {
            return None;
        }
        self.count.store(0, Ordering::Relaxed);
        Some(Gap {
            count,
            first: Sequence::from_raw(self.first.load(Ordering::Relaxed)),
            last: Sequence::from_raw(self.last.load(Ordering::Relaxed)),
        })
    }
}

/// The producer's side of an endpoint's queue: what a commit reads and changes, under the lock.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) core: Arc<EndpointCore>,
    /// Copies of what `core` says: a commit to many looks at few lines of memory for each.
    id: EndpointId,
    /// Whose queue it is.
    user: u32,
    most_messages: u64,
    most_bytes: u64,
    /// None until the endpoint can receive something: idle connections cost no ring.
    producer: Option<Producer>,
    pushed_messages: u64,
    pushed_bytes: u64,
    /// What the reader had released when last looked at: not more than it has now, which can only
    /// make the queue look fuller than it is. Most commits find room by it, and leave the reader's
    /// line alone.
    seen_released: Cell<(u64, u64)>,
    pushed_ends: u64,
    pushed_retained: u64,
    pushed_retained_bytes: u64,
    pushed_notices: u64,
    pushed_candidates: u64,
    reserve: Reserve,
    /// What other users' messages take of it; made for the first of them.
    shares: Option<Box<ShareTable>>,
    /// Who to wake when something arrives; the reader leaves it here when it goes to sleep.
    reader: Option<Waker>,
    /// The losses of its memberships with `DROP_WHEN_FULL`, and of past ones not yet reported.
    drops: Vec<Arc<Drops>>,
    /// It has called `shutdown_receive`.
    receive_shut: bool,
    full_since: Sequence,
    /// Its requests that have no outcome yet.
    pub(crate) requests: Requests,
}

/// When the reserve place is free again: once the reader has taken one message and as many bytes
/// as the message that used it. So it holds one message at most, whatever its size.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reserve {
    free_at_messages: u64,
    free_at_bytes: u64,
}

impl Reserve {
    /// A message of so many bytes uses it, when so many messages and bytes have been taken.
    pub(crate) fn used((messages, taken_bytes): (u64, u64), bytes: u64) -> Self {
        Self { free_at_messages: messages + 1, free_at_bytes: taken_bytes + bytes }
    }

    pub(crate) fn is_free(self, (messages, bytes): (u64, u64)) -> bool {
        messages >= self.free_at_messages && bytes >= self.free_at_bytes
    }
}

impl Intake {
    pub(crate) fn new(core: Arc<EndpointCore>) -> Self {
        let (id, user, capacity) = (core.place.id, core.user, core.capacity);
        Self {
            core,
            id,
            user,
            most_messages: capacity.messages,
            most_bytes: capacity.bytes,
            producer: None,
            pushed_messages: 0,
            pushed_bytes: 0,
            seen_released: Cell::new((0, 0)),
            pushed_ends: 0,
            pushed_retained: 0,
            pushed_retained_bytes: 0,
            pushed_notices: 0,
            pushed_candidates: 0,
            reserve: Reserve::default(),
            shares: None,
            reader: None,
            drops: Vec::new(),
            receive_shut: false,
            full_since: Sequence::from_raw(0),
            requests: Requests::default(),
        }
    }

    pub(crate) fn id(&self) -> EndpointId {
        self.id
    }

    pub(crate) fn has_producer(&self) -> bool {
        self.producer.is_some()
    }

    pub(crate) fn attach(&mut self, producer: Producer) {
        self.producer = Some(producer);
    }

    pub(crate) fn is_receive_shut(&self) -> bool {
        self.receive_shut
    }

    pub(crate) fn shut_receive(&mut self) {
        self.receive_shut = true;
    }

    /// Replaces the list of losses and gives back the old one, to be dropped without the lock.
    pub(crate) fn replace_drops(&mut self, drops: Vec<Arc<Drops>>) -> Vec<Arc<Drops>> {
        std::mem::replace(&mut self.drops, drops)
    }

    /// Messages and bytes that were ever put in.
    pub(crate) fn pushed(&self) -> (u64, u64) {
        (self.pushed_messages, self.pushed_bytes)
    }

    /// Messages and bytes that wait to be taken.
    pub(crate) fn depth(&self) -> (u64, u64) {
        let released = self.core.released();
        (self.pushed_messages - released.0, self.pushed_bytes - released.1)
    }

    /// Below both limits; the message that crosses the byte limit is still taken.
    pub(crate) fn has_room(&self) -> bool {
        self.has_room_after(self.seen_released.get())
            || !mutated(Mutant::RoomSeenOnce) && {
                let released = self.core.released();
                self.seen_released.set(released);
                self.has_room_after(released)
            }
    }

    /// How many of so many messages, which have so many bytes, there is room for without going beyond
    /// either limit. If it is not all, it is about as many.
    pub(crate) fn room_for(&self, messages: u32, bytes: u64) -> u32 {
        let left = |released: (u64, u64)| {
            let places = self.most_messages.saturating_sub(self.pushed_messages - released.0);
            (places, self.most_bytes.saturating_sub(self.pushed_bytes - released.1))
        };
        let fits = |(places, room): (u64, u64)| places >= messages.into() && room >= bytes;
        if fits(left(self.seen_released.get())) {
            return messages;
        }
        let released = self.core.released();
        self.seen_released.set(released);
        let (places, room) = left(released);
        if fits((places, room)) {
            return messages;
        }
        let share = u64::from(messages) * room.min(bytes) / bytes.max(1);
        u32::try_from(places.min(share)).unwrap_or(messages).min(messages - 1)
    }

    fn has_room_after(&self, (messages, bytes): (u64, u64)) -> bool {
        self.pushed_messages - messages < self.most_messages
            && self.pushed_bytes - bytes < self.most_bytes
    }

    /// Whether a waiting send that keeps the reserve place may go beyond the capacity, or beyond a
    /// user's share.
    pub(crate) fn has_reserve(&self, share: Option<ShareSlot>) -> bool {
        match (share, self.share_parts()) {
            (Some(slot), Some((table, shares))) => table.has_reserve(shares, slot),
            _ => self.reserve.is_free(self.core.released()),
        }
    }

    /// Whether it is this user's queue.
    #[inline]
    pub(crate) fn is_of(&self, user: u32) -> bool {
        self.user == user
    }

    /// Whether messages of this user take a share, and there is no table to count it in yet.
    pub(crate) fn lacks_shares(&self, user: u32) -> bool {
        self.user != user && self.shares.is_none()
    }

    /// Begins to count what other users' messages take, with this table.
    pub(crate) fn attach_shares(&mut self, table: &mut Option<Box<ShareTable>>) {
        self.shares = table.take();
    }

    /// The share that messages of this user take; none if it is the queue's own user.
    #[inline]
    pub(crate) fn share_of(&mut self, user: u32) -> Option<ShareSlot> {
        if self.user == user { None } else { self.foreign_share(user) }
    }

    #[cold]
    fn foreign_share(&mut self, user: u32) -> Option<ShareSlot> {
        let (table, shares) = (self.shares.as_deref_mut()?, self.core.shares.get()?);
        Some(table.slot_of(shares, user))
    }

    fn share_parts(&self) -> Option<(&ShareTable, &Shares)> {
        Some((self.shares.as_deref()?, self.core.shares.get()?))
    }

    /// Whether the queue has room, or a user's share of it.
    pub(crate) fn has_room_of(&self, share: Option<ShareSlot>) -> bool {
        let (Some(slot), Some((table, shares))) = (share, self.share_parts()) else {
            return self.has_room();
        };
        let capacity = Amount { messages: self.most_messages, bytes: self.most_bytes };
        let (messages, bytes) = self.depth();
        table.has_room(shares, slot, capacity, Amount { messages, bytes })
    }

    /// The sequence that filled it, if it is full.
    pub(crate) fn full_since(&self) -> Option<Sequence> {
        (!self.has_room()).then_some(self.full_since)
    }

    /// Puts a message into the queue. The caller has seen room or the reserve place.
    pub(crate) fn push(
        &mut self,
        message: Arc<Message>,
        missed: Option<Gap>,
        user: Option<ShareSlot>,
    ) {
        self.charge_user(user, message.charged_bytes());
        self.charge(message.sequence(), message.charged_bytes());
        match missed {
            None => self.push_entry(|| Entry::Message { message, user }),
            Some(missed) => self.push_entry(|| Entry::AfterGap { message, missed, user }),
        }
    }

    /// Puts a batch into the queue. The caller has seen room for all of it.
    pub(crate) fn push_batch(&mut self, batch: &Arc<Batch>) {
        self.pushed_messages += u64::from(batch.len());
        self.pushed_bytes += batch.charged_bytes();
        if !self.has_room() {
            self.full_since = batch.last_sequence();
        }
        self.push_entry(|| Entry::Batch(Arc::clone(batch)));
    }

    /// A foreign user's message takes its share. Before it takes its place: what is left is as the
    /// checks found it.
    #[inline]
    fn charge_user(&mut self, user: Option<ShareSlot>, bytes: u64) {
        let Some(slot) = user else {
            return;
        };
        let beyond = !self.has_room_of(user);
        if let (Some(table), Some(shares)) = (self.shares.as_deref_mut(), self.core.shares.get()) {
            table.charge(shares, slot, bytes, beyond);
        }
    }

    /// Puts a message into the queue that came through a peer endpoint, whose share is charged as
    /// well.
    pub(crate) fn push_from_peer(
        &mut self,
        message: Arc<Message>,
        missed: Option<Gap>,
        share: Arc<EndpointCore>,
        user: Option<ShareSlot>,
    ) {
        self.charge_user(user, message.charged_bytes());
        self.charge(message.sequence(), message.charged_bytes());
        self.push_entry(|| Entry::FromPeer { message, missed, share, user });
    }

    /// Takes a place. This is all that happens at a peer endpoint: its messages lie in its owner's
    /// queue.
    pub(crate) fn charge(&mut self, sequence: Sequence, bytes: u64) {
        if !self.has_room() {
            self.reserve = Reserve::used(self.core.released(), bytes);
        }
        self.pushed_messages += 1;
        self.pushed_bytes += bytes;
        if !self.has_room() {
            self.full_since = sequence;
        }
    }

    #[inline(always)]
    fn push_entry(&mut self, entry: impl FnOnce() -> Entry) {
        let pushed = self.producer.as_mut().is_some_and(|producer| producer.push(entry));
        debug_assert!(pushed, "the ring has a slot for each place");
    }

    /// Tells of a change in a group, if there is room that nobody is owed; it takes a place.
    pub(crate) fn tell(&mut self, change: &Arc<ViewChange>, lost: &Arc<Drops>) {
        let entry = |missed| Entry::View { change: Arc::clone(change), missed };
        self.tell_change(change.sequence, lost, entry);
    }

    /// The same for any change that somebody watches.
    pub(crate) fn tell_change(
        &mut self,
        sequence: Sequence,
        lost: &Arc<Drops>,
        entry: impl FnOnce(Option<Gap>) -> Entry,
    ) {
        let owed = self.core.waiting_sends() != 0 && !mutated(Mutant::NoticePassesOlder);
        if !self.has_room() || owed {
            self.drop_message(lost, sequence);
            return;
        }
        self.push_entry(|| entry(lost.take()));
        self.pushed_messages += 1;
        if !self.has_room() {
            self.full_since = sequence;
        }
    }

    /// Puts a reply into the place that its request has kept, whether or not there is room.
    pub(crate) fn push_reply(&mut self, message: Arc<Message>) {
        let (sequence, bytes) = (message.sequence(), message.charged_bytes());
        let had_room = self.has_room();
        self.push_entry(|| Entry::Message { message, user: None });
        self.pushed_messages += 1;
        self.pushed_bytes += bytes;
        if had_room && !self.has_room() {
            self.full_since = sequence;
        }
    }

    /// Puts the bus's word on a request into the place that the request has kept.
    pub(crate) fn push_outcome(&mut self, outcome: Outcome) {
        self.push_entry(|| Entry::Outcome(outcome));
        self.requests.count_outcome();
    }

    /// Places for outcomes that are in use: those of unanswered requests, those of outcomes of the
    /// bus that were not drained, and messages beyond the capacity, which are replies.
    ///
    /// Only what takes a message off the queue makes this less without freeing a place, so the ring
    /// holds everything: nothing but a reply in its kept place, and one message in the reserve
    /// place, goes beyond the capacity.
    pub(crate) fn outcome_places(&self) -> u64 {
        let drained = self.core.reading.drained_outcomes.load(Ordering::Acquire);
        let beyond = self.depth().0.saturating_sub(self.core.capacity.messages);
        self.requests.open_count() + self.requests.undrained(drained) + beyond
    }

    /// Something is to be told that stands in no place; gives the sleeping reader's waker.
    pub(crate) fn tell_apart(&mut self) -> Option<Waker> {
        self.core.gaps_pending.store(true, Ordering::Relaxed);
        self.take_reader()
    }

    /// Tells what became of a claim of a name, in a place that the claim had reserved.
    pub(crate) fn push_notice(&mut self, notice: Box<NameNotice>) {
        self.push_entry(|| Entry::Name(notice));
        self.pushed_notices += 1;
    }

    /// Notices about names that the reader has not drained yet: their places are still taken.
    pub(crate) fn unread_notices(&self) -> u64 {
        self.pushed_notices - self.core.reading.drained_notices.load(Ordering::Acquire)
    }

    /// Tells a monitor, if there is room that nobody is owed. Gives the sleeping reader's waker.
    pub(crate) fn push_monitored(&mut self, seen: &Monitored, lost: &Arc<Drops>) -> Option<Waker> {
        if !self.has_room() || self.core.waiting_sends() != 0 {
            self.drop_message(lost, seen.sequence());
            return self.take_reader_of_gap();
        }
        let missed = lost.take();
        self.push_entry(|| Entry::Monitored { seen: seen.clone(), missed });
        self.pushed_messages += 1;
        self.pushed_bytes += seen.charged_bytes();
        if !self.has_room() {
            self.full_since = seen.sequence();
        }
        self.take_reader()
    }

    /// Tells of the end of a membership, in the place that it had reserved.
    pub(crate) fn push_end(&mut self, eviction: Box<Eviction>) {
        self.push_entry(|| Entry::Evicted(eviction));
        self.pushed_ends += 1;
    }

    /// Tells of what a group retained. The caller has made sure that there is a place for it.
    pub(crate) fn push_retained(&mut self, retained: Box<Retained>) {
        self.pushed_retained += 1;
        self.pushed_retained_bytes += retained.bytes;
        self.push_entry(|| Entry::Retained(retained));
    }

    /// Retained states that the reader has not drained to their ends, and their bytes.
    pub(crate) fn unread_retained(&self) -> (u64, u64) {
        let reading = &self.core.reading;
        let count = self.pushed_retained - reading.drained_retained.load(Ordering::Acquire);
        let bytes = reading.drained_retained_bytes.load(Ordering::Acquire);
        (count, self.pushed_retained_bytes - bytes)
    }

    /// Ends of memberships that the reader has not drained yet: their places are still taken.
    pub(crate) fn unread_ends(&self) -> u64 {
        self.pushed_ends - self.core.reading.drained_ends.load(Ordering::Acquire)
    }

    /// Tells of a candidate, if there is room that nobody is owed; it takes a place. Gives the
    /// notice back otherwise.
    pub(crate) fn push_candidate(
        &mut self,
        candidate: Box<Candidate>,
    ) -> Result<(), Box<Candidate>> {
        if !self.has_room() || self.core.waiting_sends() != 0 {
            return Err(candidate);
        }
        self.charge(candidate.sequence, 0);
        self.push_entry(|| Entry::Candidate(candidate));
        self.pushed_candidates += 1;
        Ok(())
    }

    /// Candidates whose places have not been freed yet.
    pub(crate) fn unread_candidates(&self) -> u64 {
        self.pushed_candidates - self.core.reading.freed_candidates.load(Ordering::Acquire)
    }

    /// Counts a message that this member did not get.
    pub(crate) fn drop_message(&mut self, drops: &Drops, sequence: Sequence) {
        drops.record(sequence);
        self.core.gaps_pending.store(true, Ordering::Relaxed);
    }

    /// The gap to report with the next message of a membership.
    pub(crate) fn take_gap(drops: Option<&Arc<Drops>>) -> Option<Gap> {
        drops.and_then(|drops| drops.take())
    }

    /// Whether nothing is queued: all has been drained, and its places are free again.
    fn is_empty(&self) -> bool {
        self.producer.as_ref().is_none_or(Producer::is_drained) && self.depth().0 == 0
    }

    /// A gap to report on its own: once everything that was queued has been taken.
    ///
    /// Drained is not enough. Behind a transport whose application has stopped reading, the ring
    /// is empty and every place taken, so each message that is dropped would be a gap of its own.
    pub(crate) fn take_lone_gap(&mut self) -> Option<(Lost, GroupId, Gap)> {
        if !self.is_empty() && !mutated(Mutant::LoneGapEarly) {
            return None;
        }
        let found =
            self.drops.iter().find_map(|drops| Some((drops.lost, drops.group, drops.take()?)));
        // Ends of requests are noted before this lock is taken to say so.
        if found.is_none() && !self.core.asked().has_ended() {
            self.core.gaps_pending.store(false, Ordering::Relaxed);
        }
        found
    }

    /// After a drop: takes the sleeping reader's waker, if the gap can be told now.
    pub(crate) fn take_reader_of_gap(&mut self) -> Option<Waker> {
        // Pairs with the fence in `free`: either this sees the last place freed, or the reader,
        // who asks for a gap after freeing it, sees this one.
        if !mutated(Mutant::NoFenceInDrop) {
            fence(Ordering::SeqCst);
        }
        if self.is_empty() { self.take_reader() } else { None }
    }

    /// Takes the sleeping reader's waker, to be called once the locks are released.
    pub(crate) fn take_reader(&mut self) -> Option<Waker> {
        self.reader.take()
    }

    /// Leaves `waker` for the next push, if there is nothing to read now. Gives back the waker
    /// that is to be dropped without the lock.
    pub(crate) fn sleep(&mut self, waker: Waker) -> Result<Option<Waker>, Waker> {
        let drained = self.producer.as_ref().is_none_or(Producer::is_drained);
        let gaps = self.core.has_gaps()
            && (self.depth().0 == 0 || self.core.asked().has_ended())
            && !mutated(Mutant::SleepBesideGap);
        if !mutated(Mutant::SleepWithoutLook) && (!drained || gaps || self.receive_shut) {
            return Err(waker);
        }
        Ok(self.reader.replace(waker))
    }
}

/// The part of an endpoint that needs no lock, shared by its handles and by the bus.
#[derive(Debug)]
pub(crate) struct EndpointCore {
    pub(crate) place: IntakePlace,
    /// Who takes its messages: itself, or for a peer endpoint its owner.
    pub(crate) reader: EndpointId,
    pub(crate) credentials: Credentials,
    /// Whose it is, as accounts see it: what came in at a socket with an identity is that's.
    pub(crate) user: u32,
    /// What other users' messages take of its queue; made for the first of them.
    pub(crate) shares: OnceLock<Box<Shares>>,
    /// What is charged for what it has; an endpoint of this process's own may have none.
    pub(crate) account: Option<Account>,
    pub(crate) capacity: Capacity,
    reading: CachePadded<Reading>,
    /// Registered waiting sends (low half), and who else wants to know of a free place (high half):
    /// writability watches, and those who wait for a user's share of the queue.
    interest: AtomicU64,
    /// Highest sequence of its own sends.
    sent: AtomicU64,
    serial: AtomicU64,
    /// There may be gaps, or ends of requests, to be told beside the queue.
    gaps_pending: AtomicBool,
    /// Set once, with all locks held, so that any lock shows it.
    closed: AtomicBool,
    lanes: AtomicU64,
    watches: AtomicU64,
    /// Running time of the bus's next look at the deadlines of its requests.
    next_look: AtomicU64,
    asked: Mutex<Asked>,
    /// Requests that it was given and that have no outcome yet.
    owed: AtomicU64,
    pub(crate) seat: Mutex<Seat>,
    /// What its lanes have sent.
    pub(crate) sending: LaneTallies,
    /// How long it has made sends wait.
    pub(crate) blocking: Blocking,
    /// What its reader has taken; made with its ring.
    dwell: OnceLock<Box<Dwell>>,
    /// Where its reader counts with others.
    together: OnceLock<ReaderTimes>,
}

/// What the reader moves.
#[derive(Debug)]
struct Reading {
    released_messages: AtomicU64,
    released_bytes: AtomicU64,
    /// Ends of memberships taken off the ring.
    drained_ends: AtomicU64,
    /// Outcomes of requests, other than replies, taken off the ring.
    drained_outcomes: AtomicU64,
    /// Retained states drained to their ends, and their bytes.
    drained_retained: AtomicU64,
    drained_retained_bytes: AtomicU64,
    /// Notices about names taken off the ring.
    drained_notices: AtomicU64,
    /// Places freed that notices of candidates took.
    freed_candidates: AtomicU64,
    /// Highest sequence taken.
    taken: AtomicU64,
}

/// The reader's place: whoever takes it out is the one reader.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    pub(crate) occupied: bool,
    /// The consumer of a ring that was made while somebody sat here.
    pub(crate) fresh: Option<Consumer>,
    /// How far reading had come when the last reader left; in a box, because where somebody reads
    /// there is none.
    pub(crate) state: Option<Box<ReaderState>>,
}

impl Seat {
    /// The endpoint is closed: takes out what nobody can read any more, for the caller to drop
    /// without the lock. None while somebody reads.
    pub(crate) fn close(&mut self) -> Option<(Option<Consumer>, Option<Box<ReaderState>>)> {
        (!self.occupied).then(|| (self.fresh.take(), self.state.take()))
    }
}

/// How far a reader is with what a group retained.
#[derive(Debug)]
pub(crate) struct Retelling {
    group: GroupId,
    sequence: Sequence,
    filters: Option<Arc<MemberFilters>>,
    rest: std::vec::IntoIter<Arc<Message>>,
    bytes: u64,
    told: u32,
}

impl Retelling {
    pub(crate) fn new(retained: Retained) -> Self {
        let Retained { group, sequence, filters, messages, bytes } = retained;
        Self { group, sequence, filters, rest: messages.into_iter(), bytes, told: 0 }
    }

    /// The next message, or None once all were told.
    pub(crate) fn next(&mut self) -> Option<Arc<Message>> {
        let filters = self.filters.as_deref();
        let passes = |message: &Message| {
            let payload = Some(Seen::Of(message.payload()));
            let subject = Subject { attributes: message.attributes(), payload };
            filters.is_none_or(|filters| filters.pass(subject))
        };
        let next = self.rest.find(|message| passes(message))?;
        self.told += 1;
        Some(next)
    }

    /// The group, the place of the join, how many messages were told, and the bytes of the state.
    pub(crate) fn end(self) -> (GroupId, Sequence, u32, u64) {
        (self.group, self.sequence, self.told, self.bytes)
    }
}

/// The reader's own state, handed from one [`Receiver`](crate::Receiver) to the next.
#[derive(Debug, Default)]
pub(crate) struct ReaderState {
    pub(crate) consumer: Option<Consumer>,
    pub(crate) drained_messages: u64,
    pub(crate) drained_bytes: u64,
    /// A batch of which a part has been drained.
    pub(crate) unrolling: Option<Unrolling>,
    /// What a group retained, of which a part has been drained.
    pub(crate) retained: Option<Box<Retelling>>,
    /// Drained messages whose places were freed at once: nobody waits for what they ask.
    pub(crate) passed_over: u64,
    /// What was drained, takes a place still, and is counted elsewhere as well.
    pub(crate) charged: VecDeque<Charged>,
    /// Messages that were drained and take their places still, the oldest first; no more than the
    /// queue has places.
    runs: VecDeque<Run>,
    /// Which of the drained messages are other users', the oldest first.
    foreign: VecDeque<Foreign>,
}

/// A message in the reader's hands that takes a user's share of the queue.
#[derive(Debug)]
struct Foreign {
    /// As that of [`Charged`].
    number: u64,
    bytes: u64,
    share: ShareSlot,
}

impl ReaderState {
    /// Notes that a message was drained last.
    pub(crate) fn drained(&mut self, message: &Message) {
        let (time, sequence) = (message.commit_time(), message.sequence());
        let last = self.drained_messages - self.passed_over;
        match self.runs.back_mut() {
            Some(run) if run.time == time && run.count < LONGEST_RUN => {
                *run = Run { last, count: run.count + 1, time, sequence };
            }
            _ => self.runs.push_back(Run { last, count: 1, time, sequence }),
        }
    }

    /// Notes that a batch was drained last. Its runs are no longer than others'.
    pub(crate) fn drained_batch(&mut self, batch: &Batch) {
        let messages = u64::from(batch.len());
        let before = self.drained_messages - self.passed_over - messages;
        let time = batch.commit_time();
        let mut noted = 0;
        while noted < messages {
            let count = LONGEST_RUN.min(messages - noted);
            noted += count;
            let sequence = lock_set::later(batch.sequence(), noted - 1);
            self.runs.push_back(Run { last: before + noted, count, time, sequence });
        }
    }

    /// So many messages' places are free: notes how long those were in the queue.
    pub(crate) fn freed(&mut self, core: &EndpointCore, freed: u64, now: u64) {
        let freed = freed - self.passed_over;
        while let Some(run) = self.runs.pop_front_if(|run| run.last <= freed) {
            let Some(dwell) = core.dwell() else { continue };
            // Without a clock there are no times.
            if run.time != 0 {
                let nanos = now.saturating_sub(run.time);
                dwell.add(nanos, run.count);
                if let Some(together) = core.together() {
                    together.add(nanos, run.count);
                }
            }
            dwell.acknowledge(run.sequence);
        }
    }

    /// Notes that what was drained last takes a user's share.
    #[inline]
    pub(crate) fn charge_user(&mut self, bytes: u64, share: Option<ShareSlot>) {
        if let Some(share) = share {
            let number = self.drained_messages - self.passed_over;
            self.foreign.push_back(Foreign { number, bytes, share });
        }
    }

    /// Gives back what the first `freed` drained messages take of users' shares.
    pub(crate) fn free_shares(&mut self, core: &EndpointCore, freed: u64) {
        if self.foreign.is_empty() {
            return;
        }
        let freed = freed - self.passed_over;
        while let Some(foreign) = self.foreign.pop_front_if(|foreign| foreign.number <= freed) {
            core.free_share(Some(foreign.share), foreign.bytes);
        }
    }

    /// Notes that what was drained last is counted elsewhere as well.
    pub(crate) fn charge(&mut self, bytes: u64, share: Option<Arc<EndpointCore>>) {
        let number = self.drained_messages - self.passed_over;
        self.charged.push_back(Charged { number, bytes, share });
    }
}

/// Something in the reader's hands that is to be counted as freed elsewhere as well.
#[derive(Debug)]
pub(crate) struct Charged {
    /// Which of the drained messages it is, of those that were not passed over.
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    /// The share of a peer endpoint that it takes; without one it is the notice of a candidate.
    pub(crate) share: Option<Arc<EndpointCore>>,
}

const ONE_SEND: u64 = 1;
const ONE_WATCH: u64 = 1 << 32;

/// What is registered at a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// A send that waits for room.
    Send,
    /// Somebody who wants to know when there is room.
    Watch,
}

/// What an endpoint has a bounded number of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Opened {
    Lane,
    Watch,
}

impl Interest {
    pub(crate) const fn unit(self) -> u64 {
        match self {
            Self::Send => ONE_SEND,
            Self::Watch => ONE_WATCH,
        }
    }

    /// How many sends there are among all that is registered.
    pub(crate) fn sends(interest: u64) -> u32 {
        u32::try_from(interest & (ONE_WATCH - 1)).unwrap_or(u32::MAX)
    }
}

impl EndpointCore {
    pub(crate) fn new(place: IntakePlace, credentials: Credentials, capacity: Capacity) -> Self {
        Self::read_by(place.id, place, credentials, capacity)
    }

    /// A peer endpoint: its messages are taken by `reader`.
    pub(crate) fn read_by(
        reader: EndpointId,
        place: IntakePlace,
        credentials: Credentials,
        capacity: Capacity,
    ) -> Self {
        let zero = || AtomicU64::new(0);
        let reading = Reading {
            released_messages: zero(),
            released_bytes: zero(),
            drained_ends: zero(),
            drained_outcomes: zero(),
            drained_retained: zero(),
            drained_retained_bytes: zero(),
            drained_notices: zero(),
            freed_candidates: zero(),
            taken: zero(),
        };
        Self {
            place,
            reader,
            credentials,
            user: credentials.uid,
            shares: OnceLock::new(),
            account: None,
            capacity,
            reading: CachePadded::new(reading),
            interest: zero(),
            sent: zero(),
            serial: zero(),
            gaps_pending: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            lanes: zero(),
            watches: zero(),
            next_look: AtomicU64::new(NEVER),
            asked: Mutex::new(Asked::default()),
            owed: zero(),
            seat: Mutex::new(Seat::default()),
            sending: LaneTallies::default(),
            blocking: Blocking::default(),
            dwell: OnceLock::new(),
            together: OnceLock::new(),
        }
    }

    pub(crate) fn id(&self) -> EndpointId {
        self.place.id
    }

    /// Charges its account, if it has one.
    pub(crate) fn charge(
        &self,
        resource: Resource,
        amount: u64,
    ) -> Result<Option<Charge>, LimitExceeded> {
        self.account.as_ref().map(|account| account.charge(resource, amount)).transpose()
    }

    /// Which process it belongs to.
    pub(crate) fn process(&self) -> Process {
        let pid = Process::Pid(self.credentials.pid);
        self.account.as_ref().map_or(pid, Account::process)
    }

    /// It may receive from now on.
    pub(crate) fn begin_dwell(&self) {
        self.dwell.get_or_init(Box::default);
    }

    /// Its reader counts with others from now on, if it does not already.
    pub(crate) fn count_with(&self, together: &ReaderTimes) {
        self.together.get_or_init(|| together.clone());
    }

    /// Where its reader counts with others.
    pub(crate) fn together(&self) -> Option<&ReaderTimes> {
        self.together.get()
    }

    /// What its reader has taken, if it could ever receive.
    pub(crate) fn dwell(&self) -> Option<&Dwell> {
        self.dwell.get().map(|dwell| &**dwell)
    }

    /// Messages that it has sent.
    pub(crate) fn serials(&self) -> u64 {
        self.serial.load(Ordering::Relaxed)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn has_gaps(&self) -> bool {
        self.gaps_pending.load(Ordering::Relaxed)
    }

    /// Counts a lane or a watch in, if there are fewer than `most`.
    pub(crate) fn open(&self, what: Opened, most: u64) -> bool {
        let before = self.opened(what).fetch_add(1, Ordering::Relaxed);
        if before >= most {
            self.opened(what).fetch_sub(1, Ordering::Relaxed);
        }
        before < most
    }

    pub(crate) fn shut(&self, what: Opened) {
        self.opened(what).fetch_sub(1, Ordering::Relaxed);
    }

    fn opened(&self, what: Opened) -> &AtomicU64 {
        match what {
            Opened::Lane => &self.lanes,
            Opened::Watch => &self.watches,
        }
    }

    fn released(&self) -> (u64, u64) {
        // The reader stores bytes before messages and this reads messages before bytes, so a
        // message that is seen released is seen with its bytes.
        let messages = self.reading.released_messages.load(Ordering::Acquire);
        (messages, self.reading.released_bytes.load(Ordering::Acquire))
    }

    /// Frees places: the application has taken so many messages and bytes. True if somebody waits
    /// for them and is to be served.
    ///
    /// Only the reader calls this, so the counts have one writer.
    pub(crate) fn free(&self, messages: u64, bytes: u64) -> bool {
        let advance = |counter: &AtomicU64, by: u64| {
            counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Release);
        };
        advance(&self.reading.released_bytes, bytes);
        advance(&self.reading.released_messages, messages);
        if !mutated(Mutant::NoFenceInRelease) {
            // Pairs with the fence in `register`: either this sees the registration, or the look
            // that follows the registration sees the freed place.
            fence(Ordering::SeqCst);
        }
        self.interest.load(Ordering::Relaxed) != 0
    }

    /// Messages and bytes freed so far, for the reader's own checks.
    pub(crate) fn freed(&self) -> (u64, u64) {
        self.released()
    }

    /// Gives a user's share of one message back; before its place is freed.
    pub(crate) fn free_share(&self, share: Option<ShareSlot>, bytes: u64) {
        if let (Some(slot), Some(shares)) = (share, self.shares.get()) {
            shares.free(slot, bytes);
        }
    }

    /// Counts a waiting send or a watch in, at the queue or at a user's share of it. The caller looks
    /// for room once more after this.
    pub(crate) fn register(&self, share: Option<ShareSlot>, interest: Interest) {
        let mut unit = interest.unit();
        if let (Some(slot), Some(shares)) = (share, self.shares.get()) {
            shares.register(slot, interest);
            // A queue in which a share has no room is not full: nobody else waits for this.
            unit = if mutated(Mutant::ShareWaitsAlone) { 0 } else { ONE_WATCH };
        }
        self.interest.fetch_add(unit, Ordering::Relaxed);
        if !mutated(Mutant::NoFenceInRegister) {
            // See `free`.
            fence(Ordering::SeqCst);
        }
    }

    pub(crate) fn unregister(&self, share: Option<ShareSlot>, interest: Interest) {
        let mut unit = interest.unit();
        if let (Some(slot), Some(shares)) = (share, self.shares.get()) {
            shares.unregister(slot, interest);
            unit = if mutated(Mutant::ShareWaitsAlone) { 0 } else { ONE_WATCH };
        }
        self.interest.fetch_sub(unit, Ordering::Relaxed);
    }

    /// Sends that wait in a line: the queue's own, or that of a user's share.
    #[inline]
    pub(crate) fn waiting_sends_at(&self, share: Option<ShareSlot>) -> u32 {
        match share {
            None => self.waiting_sends(),
            Some(slot) => self.shares.get().map_or(0, |shares| shares.waiting_sends(slot)),
        }
    }

    /// Sends that wait for this queue.
    pub(crate) fn waiting_sends(&self) -> u32 {
        Interest::sends(self.interest.load(Ordering::Relaxed))
    }

    /// Sends that wait for this queue, or for their user's share of it.
    pub(crate) fn blocks(&self) -> u32 {
        let shares = self.shares.get().into_iter();
        let shares = shares.flat_map(|shares| shares.wanted().map(|at| shares.waiting_sends(at)));
        self.waiting_sends() + shares.sum::<u32>()
    }

    /// The reader has drained the end of a membership: its place is free.
    pub(crate) fn drain_end(&self) {
        let drained = &self.reading.drained_ends;
        drained.store(drained.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// The reader has drained an outcome of the bus: its place is free.
    pub(crate) fn drain_outcome(&self) {
        let drained = &self.reading.drained_outcomes;
        drained.store(drained.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// What it was asked; no other lock is taken while this is held.
    pub(crate) fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock()
    }

    /// It was given a request; its lock is held.
    pub(crate) fn owe(&self) {
        self.owed.fetch_add(1, Ordering::Relaxed);
    }

    /// A request that it was given has its outcome.
    pub(crate) fn owe_less(&self) {
        self.owed.fetch_sub(1, Ordering::Relaxed);
    }

    /// Requests that it was given and that have no outcome yet. A count to compare workers by; nothing
    /// else depends on it.
    pub(crate) fn owed(&self) -> u64 {
        self.owed.load(Ordering::Relaxed)
    }

    /// Changed with the bus's list of looks held only.
    pub(crate) fn next_look(&self) -> u64 {
        self.next_look.load(Ordering::Relaxed)
    }

    pub(crate) fn set_next_look(&self, at: u64) {
        self.next_look.store(at, Ordering::Relaxed);
    }

    /// The reader has drained a retained state to its end.
    pub(crate) fn drain_retained(&self, bytes: u64) {
        let advance = |counter: &AtomicU64, by: u64| {
            counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Release);
        };
        advance(&self.reading.drained_retained_bytes, bytes);
        advance(&self.reading.drained_retained, 1);
    }

    /// The reader has drained a notice about a name: its place is free.
    pub(crate) fn drain_notice(&self) {
        let drained = &self.reading.drained_notices;
        drained.store(drained.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// The reader has freed the place of a candidate's notice.
    pub(crate) fn free_candidate(&self) {
        let freed = &self.reading.freed_candidates;
        freed.store(freed.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    pub(crate) fn taken(&self) -> Sequence {
        Sequence::from_raw(self.reading.taken.load(Ordering::Relaxed))
    }

    pub(crate) fn take(&self, sequence: Sequence) {
        self.reading.taken.store(sequence.get(), Ordering::Relaxed);
    }

    /// The highest sequence that a send of this endpoint must follow (G3).
    pub(crate) fn seen(&self) -> Sequence {
        let sent = Sequence::from_raw(self.sent.load(Ordering::Relaxed));
        if mutated(Mutant::TakenNotFollowed) {
            return sent;
        }
        if mutated(Mutant::SentNotFollowed) {
            return self.taken();
        }
        self.taken().max(sent)
    }

    /// Takes the next serials and remembers the last sequence; called at the commit point. Gives the
    /// first serial.
    pub(crate) fn record_sent(&self, sequence: Sequence, messages: u64) -> u64 {
        self.sent.fetch_max(sequence.get(), Ordering::Relaxed);
        self.serial.fetch_add(messages, Ordering::Relaxed) + 1
    }
}
