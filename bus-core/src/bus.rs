//! The bus: one ordering domain, and the changes of membership that take a place in its order.
//!
//! Invariant: a change of a membership is made with the directory held (one at a time), and
//! published with all 8 locks held. So while a send holds any of its locks, no membership changes,
//! and what it has compared stays true until it releases them (G4).
//!
//! Locks are taken in this order: waiting room, directory, the 8 locks ascending, a reader's seat.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ahash::RandomState;

use crate::Endpoint;
use crate::account::{Account, Charge, Holders, Resource};
use crate::description::Description;
use crate::directory::{Belonging, Directory, EndpointRecord, GroupRecord};
use crate::filter::{Filter, MemberFilters};
use crate::gated::{Peer, PeerRecord, Severed, Ticket};
use crate::group::Group;
use crate::id::{EndpointId, GroupId, Sequence};
use crate::intake::{Capacity, Drops, EndpointCore, Intake, Lost};
use crate::limits::Limits;
use crate::listing::{Groups, Members, Names};
use crate::lock_set::{Held, IntakePlace, LockBits, LockIndex, LockSet};
use crate::member_change::{MemberChange, MemberEvent, ToBeSeen};
use crate::membership::{Member, MemberFlags, Membership};
use crate::message::{Credentials, Destination};
use crate::monitor::Monitors;
use crate::name::GroupName;
use crate::name_change::NameStep;
use crate::name_registry::NameInfo;
use crate::name_route::NameRoute;
use crate::notice::{Eviction, EvictionCause};
use crate::queue;
use crate::recorder::{Ending, PutOut, Recorder, RecorderSize};
use crate::request::Deadlines;
use crate::retained::{Retain, Retained};
use crate::send::{Effects, Outgoing, Route, SendError};
use crate::sync::{Aside, AtomicU64, Mutant, Mutex, MutexGuard, Ordering, mutated};
use crate::tally::{ReaderTimes, TimeInQueue};
use crate::view::{Change, Step};
use crate::wait::{Changed, Stalled, WaitingRoom};

/// One ordering domain: a lock set, groups, and one serial order of all messages (G2).
///
/// Cheap to clone; all clones are the same bus. Nothing here does I/O, starts a thread or reads a
/// clock: callers bring the threads, and [`tick`](Self::tick) brings the time.
///
/// ```
/// use bus_core::{Bus, Credentials, Delivery, Destination, JoinOptions, Limits};
///
/// let bus = Bus::new(Limits::default(), 7)?;
/// let me = Credentials { uid: 1000, pid: 1 };
/// let (alice, bob) = (bus.open_endpoint(me)?, bus.open_endpoint(me)?);
/// let chat = bob.join(&"org.example.Chat".parse()?, JoinOptions::create())?.group;
///
/// let receipt = alice.lane()?.send(Destination::Group(chat), "hello")?;
/// assert_eq!(receipt.recipients, 1);
///
/// let mut reader = bob.receiver().expect("nobody else reads");
/// let Delivery::Message { message, .. } = reader.receive()? else { panic!() };
/// assert_eq!(&**message.payload(), b"hello");
/// assert_eq!(message.sequence(), receipt.sequence);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Bus {
    pub(crate) inner: Arc<BusInner>,
}

#[derive(Debug)]
pub(crate) struct BusInner {
    /// For wakers that outlast the call which made them.
    pub(crate) this: Weak<Self>,
    pub(crate) limits: Limits,
    hasher: RandomState,
    pub(crate) waiting: Mutex<WaitingRoom>,
    pub(crate) directory: Mutex<Directory>,
    pub(crate) locks: LockSet,
    pub(crate) monitors: Monitors,
    pub(crate) deadlines: Deadlines,
    pub(crate) recorder: Recorder,
    /// Times in queues of endpoints that have been closed.
    pub(crate) past_dwell: Aside<TimeInQueue>,
    /// Where readers count together.
    pub(crate) reader_times: Aside<Vec<ReaderTimes>>,
    /// What the last tick was told, in nanoseconds since the Unix epoch; it becomes `now` once it
    /// counts in `running`. So a deadline that is made of both comes late in a race, never early.
    told: AtomicU64,
    /// Nanoseconds since the Unix epoch at the last tick.
    now: AtomicU64,
    /// Nanoseconds that the bus has been running for: the sum of the times between ticks, of which
    /// one counts [`LONGEST_TICK`] at most. A suspended machine stalls nobody.
    running: AtomicU64,
    /// Running time of the last look at those who wait.
    looked: AtomicU64,
}

/// How often those who wait are looked at, in nanoseconds of running time.
const LOOK_EVERY_NANOS: u64 = 50_000_000;

/// What one tick adds at most to the time that stalls and patience are measured in.
const LONGEST_TICK: Duration = Duration::from_secs(1);

/// A bound was reached (G8).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the limit {limit} of {value} is reached{}", by(.holders.as_deref()))]
#[non_exhaustive]
pub struct LimitExceeded {
    /// Which field of [`Limits`].
    pub limit: &'static str,
    /// Its value.
    pub value: u64,
    /// Of a user's limit: who holds what. Any other is of the endpoint, group or bus alone.
    pub holders: Option<Box<Holders>>,
}

fn by(holders: Option<&Holders>) -> String {
    holders.map_or_else(String::new, |holders| format!(": {holders}"))
}

impl LimitExceeded {
    /// A limit that is not a user's.
    #[must_use]
    pub const fn new(limit: &'static str, value: u64) -> Self {
        Self { limit, value, holders: None }
    }

    pub(crate) fn check(
        limit: &'static str,
        held: usize,
        value: impl Into<u64>,
    ) -> Result<(), Self> {
        let value = value.into();
        if (held as u64) < value { Ok(()) } else { Err(Self::new(limit, value)) }
    }
}

/// Why an endpoint could not join a group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// No group has this name, and the join was not to create one.
    #[error("there is no group {0}; join with the option to create it")]
    NoSuchGroup(GroupName),
    /// The endpoint is a member already; leave first to come back with other flags.
    #[error("endpoint {1} is a member of group {0} already")]
    AlreadyMember(GroupName, EndpointId),
    /// The flag belongs to gated groups, whose owner sets it.
    #[error("the flag SEND_TO_PEER is set by the owner of a gated group, and {0} is open")]
    SendToPeer(GroupName),
    /// The group is gated: ask its owner with [`connect`](Endpoint::connect).
    #[error("group {0} is gated: its owner decides who is admitted")]
    Gated(GroupName),
    /// The group is open; join it.
    #[error("group {0} is open: it is joined, and nobody admits")]
    Open(GroupName),
    /// The owner is not in its group; it hears members with `SEND_TO_PEER`. To be a member as well,
    /// open another endpoint.
    #[error("endpoint {1} owns gated group {0}, and its owner is no member")]
    Owner(GroupName, EndpointId),
    /// The owner of the gated group is gone, or receives nothing any more: nobody is admitted.
    #[error("the owner of group {0} is gone, and nobody is admitted any more")]
    OwnerGone(GroupName),
    /// The owner's queue has no room, so it cannot be told. Try again later.
    #[error("the owner of group {0} has no room in its queue to be told of another candidate")]
    OwnerBusy(GroupName),
    /// It waits to be admitted already.
    #[error("endpoint {1} waits to be admitted to group {0} already")]
    AlreadyCandidate(GroupName, EndpointId),
    /// The owner has refused.
    #[error("the owner of group {group} has refused: {reason}")]
    Refused {
        /// The group.
        group: GroupName,
        /// The owner's words.
        reason: Box<str>,
    },
    /// The candidate has taken its request back.
    #[error("the request to be admitted to group {0} was withdrawn")]
    Withdrawn(GroupName),
    /// The endpoint receives nothing any more.
    #[error("endpoint {0} receives nothing any more")]
    ReceiveShut(EndpointId),
    /// The process was evicted from the group because it did not read (G8). It may join with
    /// `DROP_WHEN_FULL` now, or without it later.
    #[error(
        "this process was evicted from group {0} because it did not read; for another {1:.1?} it \
         may join only with DROP_WHEN_FULL"
    )]
    BackOff(GroupName, Duration),
    /// The endpoint has been closed.
    #[error("endpoint {0} has been closed")]
    Closed(EndpointId),
    /// A bound was reached.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
}

/// Why a group could not be created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The name is taken by a living group.
    #[error("group {0} exists already")]
    Exists(GroupName),
    /// The endpoint receives nothing any more, so it could not be told of candidates.
    #[error("endpoint {0} receives nothing any more")]
    ReceiveShut(EndpointId),
    /// The endpoint has been closed.
    #[error("endpoint {0} has been closed")]
    Closed(EndpointId),
    /// Its stall limit is none that a group may have.
    #[error("a stall limit is 100 ms to 10 minutes, and not {0:?}")]
    Stall(Duration),
    /// A bound was reached.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
}

/// How an open group is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupOptions {
    /// What it retains for those who join later.
    pub retain: Option<Retain>,
    /// After how long a member that makes its senders wait is stalled (G8): 100 ms to 10 minutes,
    /// [`Limits::stall`] if none is given.
    pub stall: Option<Duration>,
}

/// Why an endpoint could not leave a group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaveError {
    /// It is not a member.
    #[error("endpoint {1} is not a member of group {0}")]
    NotAMember(GroupId, EndpointId),
}

/// How to join a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinOptions {
    /// What the membership asks for.
    pub flags: MemberFlags,
    /// Create the group if there is none of the name.
    pub create: bool,
    /// What of the group is wanted; everything without it.
    pub filter: Option<Filter>,
    /// What the group retains, if this join creates it.
    pub retain: Option<Retain>,
    /// Get what the group retains first, at the place of the join
    /// ([`Delivery::Retained`](crate::Delivery::Retained)).
    pub state: bool,
}

impl JoinOptions {
    /// No flags, and the group is created if there is none.
    #[must_use]
    pub fn create() -> Self {
        Self { create: true, ..Self::default() }
    }

    /// The same with other flags.
    #[must_use]
    pub fn with(self, flags: MemberFlags) -> Self {
        Self { flags, ..self }
    }

    /// The same with a filter.
    #[must_use]
    pub fn filtered(self, filter: Filter) -> Self {
        Self { filter: Some(filter), ..self }
    }

    /// The same for a joiner that wants what the group retains.
    #[must_use]
    pub fn with_state(self) -> Self {
        Self { state: true, ..self }
    }

    /// The same with what the group retains, if this join creates it.
    #[must_use]
    pub fn retaining(self, retain: Retain) -> Self {
        Self { retain: Some(retain), ..self }
    }
}

/// A membership that has begun: every message of the group after `sequence` arrives (G4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Joined {
    /// The group.
    pub group: GroupId,
    /// The place of the join in the order.
    pub sequence: Sequence,
    /// The group was made by this join.
    pub created: bool,
    /// How many members there are now, this one included.
    pub members: u32,
    /// How it is a member; in a gated group the owner decides that.
    pub flags: MemberFlags,
}

/// A group, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupInfo {
    /// Its id.
    pub id: GroupId,
    /// Its name.
    pub name: GroupName,
    /// How many members it has.
    pub members: u32,
    /// The endpoint that created it, while that lives.
    pub creator: Option<EndpointId>,
    /// What it retains for those who join later.
    pub retain: Option<Retain>,
    /// Its owner, who is the creator, decides who is admitted.
    pub gated: bool,
}

impl GroupInfo {
    pub(crate) fn of(record: &GroupRecord) -> Self {
        Self {
            id: record.group.id,
            name: record.group.name.clone(),
            members: count(record.group.membership().members().len()),
            creator: record.creator,
            retain: record.group.retain(),
            gated: record.group.is_gated(),
        }
    }
}

/// A member, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberInfo {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whose it is.
    pub credentials: Credentials,
    /// What its membership asks for.
    pub flags: MemberFlags,
    /// Messages in its queue that it has not taken.
    pub queued_messages: u64,
    /// Bytes of these.
    pub queued_bytes: u64,
    /// How many messages its queue holds.
    pub capacity: u64,
    /// Messages of this group that were dropped for it.
    pub dropped: u64,
    /// The sequence of the message that filled its queue, if it is full.
    pub full_since: Option<Sequence>,
    /// Sends that wait for it.
    pub blocks: u32,
}

/// What the bus has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Endpoints that are open.
    pub endpoints: usize,
    /// Groups that live.
    pub groups: usize,
    /// Sends that wait for room.
    pub waiting_sends: usize,
    /// Well-known names that are claimed or watched.
    pub names: usize,
    /// Messages committed.
    pub messages: u64,
    /// Bytes of these, attributes and payloads, each counted once.
    pub bytes: u64,
    /// Places taken in queues by them.
    pub deliveries: u64,
    /// Times a drop-when-full member missed one.
    pub dropped: u64,
    /// Requests that have no outcome yet.
    pub open_requests: u64,
}

impl Bus {
    /// Makes a bus. `seed` decides which endpoints share a lock; where endpoints are opened by
    /// strangers it should be random.
    ///
    /// # Errors
    ///
    /// A limit is out of its range.
    pub fn new(limits: Limits, seed: u64) -> Result<Self, crate::LimitError> {
        Self::recording(limits, seed, RecorderSize::off())
    }

    /// As [`new`](Self::new), with the ids of endpoints, groups and names counted from `after` on.
    /// A broker that may follow another one gives ids that no earlier one has given, so that a stale
    /// id finds nobody rather than a stranger, also after a restart.
    ///
    /// # Errors
    ///
    /// A limit is out of its range.
    pub fn with_ids_after(
        limits: Limits,
        seed: u64,
        after: u64,
    ) -> Result<Self, crate::LimitError> {
        Self::recording_after(limits, seed, after, RecorderSize::off())
    }

    /// As [`new`](Self::new), with a flight recorder, which [`why`](Self::why) asks.
    ///
    /// # Errors
    ///
    /// A limit is out of its range.
    pub fn recording(
        limits: Limits,
        seed: u64,
        recorder: RecorderSize,
    ) -> Result<Self, crate::LimitError> {
        Self::recording_after(limits, seed, 0, recorder)
    }

    /// Both: [`with_ids_after`](Self::with_ids_after) and [`recording`](Self::recording).
    ///
    /// # Errors
    ///
    /// A limit is out of its range.
    pub fn recording_after(
        limits: Limits,
        seed: u64,
        after: u64,
        recorder: RecorderSize,
    ) -> Result<Self, crate::LimitError> {
        limits.check()?;
        let hasher = RandomState::with_seeds(seed, 0, 0, 0);
        let inner = |this: &Weak<BusInner>| BusInner {
            this: this.clone(),
            limits,
            hasher,
            waiting: Mutex::new(WaitingRoom::default()),
            directory: Mutex::new(Directory::with_ids_after(after)),
            locks: LockSet::new(recorder),
            monitors: Monitors::default(),
            deadlines: Deadlines::default(),
            recorder: Recorder::new(recorder),
            past_dwell: Aside::default(),
            reader_times: Aside::default(),
            told: AtomicU64::new(0),
            now: AtomicU64::new(0),
            running: AtomicU64::new(0),
            looked: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new_cyclic(inner) })
    }

    /// The bounds that this bus keeps.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// Opens an endpoint, with an empty queue and no memberships. Does not block.
    ///
    /// # Errors
    ///
    /// The limit `endpoints` is reached.
    pub fn open_endpoint(&self, credentials: Credentials) -> Result<Endpoint, LimitExceeded> {
        let core = self.inner.open_endpoint(credentials, None)?;
        Ok(Endpoint::new(self.clone(), core))
    }

    /// The same for an endpoint of which an account is charged for everything that it has: itself,
    /// its memberships with their filters, groups, names and requests.
    ///
    /// # Errors
    ///
    /// A limit of the bus or of the account's user is reached; who reaches one later is refused by
    /// the call that would.
    pub fn open_endpoint_for(
        &self,
        credentials: Credentials,
        account: &Account,
    ) -> Result<Endpoint, LimitExceeded> {
        let core = self.inner.open_endpoint(credentials, Some(account.clone()))?;
        Ok(Endpoint::new(self.clone(), core))
    }

    /// Tells the bus the time, since the Unix epoch. Does not block.
    ///
    /// Messages are stamped with the time of the last tick. Where senders wait, call this a few
    /// times a second: it is how members that are stalled are found and evicted (G8), and waiting
    /// sends that are stuck on a dead recipient no longer hold back younger ones. Where requests
    /// are unanswered, call it when [`next_deadline`](Self::next_deadline) has passed and once a
    /// second: one tick counts a second at most. A bus without ticks keeps every other promise,
    /// evicts nobody, and lets no request time out.
    ///
    /// Gives back whom it has evicted, for a log.
    pub fn tick(&self, now: Duration) -> Vec<Eviction> {
        self.inner.tick(now)
    }

    /// How long until a request may time out, from the last [`tick`](Self::tick) on; none if no
    /// request waits. Does not block.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.inner.next_deadline()
    }

    /// Looks a group up by its name. Does not block.
    #[must_use]
    pub fn find_group(&self, name: &GroupName) -> Option<GroupInfo> {
        let directory = self.inner.directory.lock();
        directory.named(name).map(GroupInfo::of)
    }

    /// Lists the groups, in the order of their names. Neither this nor taking an entry blocks.
    #[must_use]
    pub fn groups(&self) -> Groups {
        Groups::new(self.clone())
    }

    /// Lists the members of a group, in the order of their ids; none if there is no such group.
    /// Neither this nor taking an entry blocks.
    ///
    /// The membership is the one that holds at the listing's sequence, however long it takes; the
    /// state of a queue is what is found when its member is taken.
    #[must_use]
    pub fn members(&self, group: GroupId) -> Option<Members> {
        Members::new(self.clone(), group)
    }

    /// Looks a well-known name up. None if nobody owns it. Does not block.
    #[must_use]
    pub fn find_name(&self, name: &GroupName) -> Option<NameInfo> {
        self.inner.find_name(name)
    }

    /// Lists the names that have owners, in their order. Neither this nor taking an entry blocks.
    #[must_use]
    pub fn names(&self) -> Names {
        Names::new(self.clone())
    }

    /// What the owner of a name says of itself; of a shared one, the first worker that says
    /// something. None if nobody owns it, or none of them does. Does not block.
    #[must_use]
    pub fn describe_name(&self, name: &GroupName) -> Option<Arc<Description>> {
        self.inner.description(name)
    }

    /// Gives back the memory of tables that many endpoints have needed and that those who are left
    /// do not. Whoever sends meanwhile may wait for as long as these are copied, some milliseconds
    /// for ten thousand: for times when many have gone.
    ///
    /// ```
    /// let bus = bus_core::Bus::new(bus_core::Limits::default(), 1)?;
    /// let many: Vec<_> = (0..100)
    ///     .map(|_| bus.open_endpoint(bus_core::Credentials::UNAUTHENTICATED))
    ///     .collect::<Result<_, _>>()?;
    /// drop(many);
    /// bus.shrink();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shrink(&self) {
        // With the directory held, nobody is about to take the place of an endpoint.
        let mut directory = self.inner.directory.lock();
        directory.shrink();
        self.inner.locks.shrink();
        drop(directory);
        self.inner.waiting.lock().shrink();
    }

    /// What the bus has done and holds. Does not block.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let waiting_sends = self.inner.waiting.lock().sending();
        let directory = self.inner.directory.lock();
        let counters = self.inner.locks.acquire(LockBits::all()).sum_counters();
        Stats {
            endpoints: directory.endpoints.len(),
            groups: directory.group_count(),
            waiting_sends,
            names: directory.registry.len(),
            messages: counters.messages,
            bytes: counters.bytes,
            deliveries: counters.deliveries,
            dropped: counters.dropped,
            open_requests: counters.requests - counters.answered,
        }
    }
}

/// What kind of group is made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GroupKind {
    /// Who wants to is a member; it may retain messages.
    Open(Option<Retain>),
    /// Its owner admits members, and so many candidates may wait.
    Gated { backlog: u16 },
}

/// How an endpoint becomes a member.
#[derive(Debug)]
pub(crate) struct MemberEntry {
    pub(crate) flags: MemberFlags,
    pub(crate) filters: Option<Arc<MemberFilters>>,
    /// It wants what the group retains.
    pub(crate) state: bool,
    pub(crate) peer: Option<Arc<Peer>>,
    /// Who has waited for it.
    pub(crate) ticket: Option<Arc<Ticket>>,
    /// What its account is charged for the membership, and for the filter of its own.
    pub(crate) charges: [Option<Charge>; 2],
}

/// What makes an endpoint leave groups.
#[derive(Debug)]
pub(crate) enum Departure {
    Leave(GroupId),
    /// The end of the membership is told in the queue.
    Evict(Box<Eviction>),
    ShutReceive,
    Close,
}

impl BusInner {
    pub(crate) fn lock_of(&self, id: u64) -> LockIndex {
        // A model says by its choice of endpoints which of them share a lock.
        let hash = if cfg!(bus_loom) { id } else { self.hasher.hash_one(id) };
        LockIndex::from_hash(hash)
    }

    /// Nanoseconds since the Unix epoch at the last tick.
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Acquire)
    }

    /// Time since the Unix epoch, at the last tick.
    fn ticked(&self) -> Duration {
        Duration::from_nanos(self.now())
    }

    /// How long the bus has been running, at the last tick.
    pub(crate) fn running(&self) -> Duration {
        Duration::from_nanos(self.running.load(Ordering::Relaxed))
    }

    fn tick(&self, now: Duration) -> Vec<Eviction> {
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let before = self.told.swap(nanos, Ordering::Relaxed);
        let passed = Duration::from_nanos(nanos.saturating_sub(before)).min(LONGEST_TICK);
        if before != 0 {
            let passed = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
            self.running.fetch_add(passed, Ordering::Relaxed);
        }
        self.now.store(nanos, Ordering::Release);
        self.expire();
        // Threads that tick in every turn pay for one addition, not for a look at all who wait.
        let running = self.running.load(Ordering::Relaxed);
        let looked = self.looked.load(Ordering::Relaxed);
        let due = running.saturating_sub(looked) >= LOOK_EVERY_NANOS;
        let ours = |at: &AtomicU64| {
            at.compare_exchange(looked, running, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        if !due || !ours(&self.looked) {
            return Vec::new();
        }
        let mut effects = Effects::default();
        let stalled = self.waiting.lock().tick(self, self.running(), &mut effects);
        effects.run();
        let mut evicted = Vec::new();
        for stalled in &stalled {
            let names = stalled.names.iter();
            evicted.extend(names.filter_map(|name| self.put_out_of_name(stalled, *name)));
        }
        for stalled in &stalled {
            let groups = stalled.groups.iter();
            evicted.extend(groups.filter_map(|group| self.evict(stalled, *group)));
        }
        evicted
    }

    fn evict(&self, stalled: &Stalled, group: GroupId) -> Option<Eviction> {
        if let Some(revoked) = self.revoke(stalled, group) {
            return Some(revoked);
        }
        let core = &stalled.core;
        let eviction = {
            let mut directory = self.directory.lock();
            let known = &directory.group(group)?.group;
            let (name, leaves) =
                (known.name.clone(), known.membership().leaves_when_full(core.id()));
            // It may have left meanwhile, and then it has held up nobody.
            let record = directory.endpoints.get(&core.id())?;
            if !record.memberships.iter().any(|joined| joined.id == group) {
                return None;
            }
            let (process, stall) = (core.process(), known.stall.unwrap_or(self.limits.stall));
            // Who leaves of its own accord has made nobody wait.
            let (cause, back_off) = if leaves {
                (EvictionCause::Full, Duration::ZERO)
            } else {
                let back_off = directory.begin_back_off(process, &name, stall, self.ticked());
                (EvictionCause::Stalled, back_off)
            };
            Eviction {
                endpoint: core.id(),
                credentials: core.credentials,
                group,
                name,
                sequence: Sequence::from_raw(0),
                cause,
                stalled: stalled.time,
                queued_messages: stalled.queued_messages,
                back_off,
            }
        };
        let sequence = self.depart(core, Departure::Evict(Box::new(eviction.clone())))?;
        Some(Eviction { sequence, ..eviction })
    }

    /// Puts out those whom a send needs and who leave rather than make it wait. Whether it is to be
    /// tried again: some were, or by now nobody is full any more.
    #[cold]
    pub(crate) fn put_out_leavers(&self, outgoing: &Outgoing) -> bool {
        let Destination::Group(group) = outgoing.route.destination() else {
            return false;
        };
        let full = self.find_full(outgoing);
        let again = full.is_empty() || full.iter().any(|full| full.leaves);
        for full in full.into_iter().filter(|full| full.leaves) {
            // Who has left meanwhile is not in the way either.
            let _ = self.evict(&Stalled::leaver(full.core, full.queued_messages), group);
        }
        again
    }

    fn open_endpoint(
        &self,
        credentials: Credentials,
        account: Option<Account>,
    ) -> Result<Arc<EndpointCore>, LimitExceeded> {
        let mut directory = self.directory.lock();
        LimitExceeded::check("endpoints", directory.endpoints.len(), self.limits.endpoints)?;
        let charge = |account: &Account| account.charge(Resource::Endpoints, 1);
        let charge = account.as_ref().map(charge).transpose()?;
        let id = directory.next_endpoint_id();
        let lock = self.lock_of(id.get());
        // Slots are given out and taken back with the directory held, so this one stays vacant.
        let slot = self.locks.acquire_one(lock).intakes.vacant_key();
        #[expect(clippy::cast_possible_truncation, reason = "endpoints are limited to 2^24")]
        let place = IntakePlace { id, lock, slot: slot as u32 };
        let mut core = EndpointCore::new(place, credentials, Capacity::of(&self.limits));
        core.user = account.as_ref().map_or(credentials.uid, Account::uid);
        core.account = account;
        let core = Arc::new(core);
        let intake = Intake::new(Arc::clone(&core));
        self.locks.acquire_one(lock).intakes.insert(intake);
        let record = EndpointRecord {
            core: Arc::clone(&core),
            memberships: Vec::new(),
            watching: Vec::new(),
            names: Vec::new(),
            watched_names: Vec::new(),
            monitoring: false,
            drops: Vec::new(),
            created: Vec::new(),
            receive_shut: false,
            peers: BTreeSet::new(),
            connections: Vec::new(),
            _charge: charge,
        };
        directory.endpoints.insert(id, Box::new(record));
        Ok(core)
    }

    /// Gives an endpoint its ring, before the first message that may come.
    pub(crate) fn open_queue(&self, core: &EndpointCore) {
        let (lock, slot) = (core.place.lock, core.place.slot as usize);
        let has = |shard: &crate::lock_set::Shard| {
            (shard.intakes.get(slot))
                .is_none_or(|intake| intake.id() != core.id() || intake.has_producer())
        };
        if has(&self.locks.acquire_one(lock)) {
            return;
        }
        let (producer, consumer) = queue::ring(core.capacity.ring_places());
        core.begin_dwell();
        let mut shard = self.locks.acquire_one(lock);
        if has(&shard) && !mutated(Mutant::QueueMadeTwice) {
            drop(shard);
            return;
        }
        shard.intakes[slot].attach(producer);
        core.seat.lock().fresh = Some(consumer);
    }

    /// All locks, as every change of a membership needs them.
    pub(crate) fn hold_all(&self, core: &EndpointCore) -> Held<'_> {
        if mutated(Mutant::ChangeTakesOneLock) {
            return self.locks.acquire(LockBits::one(core.place.lock));
        }
        self.locks.acquire(LockBits::all())
    }

    pub(crate) fn create_group(
        &self,
        creator: &EndpointCore,
        name: &GroupName,
        kind: GroupKind,
        stall: Option<Duration>,
    ) -> Result<(GroupId, Sequence), CreateError> {
        let bounds = Duration::from_millis(100)..=Duration::from_secs(600);
        if let Some(stall) = stall.filter(|stall| !bounds.contains(stall)) {
            return Err(CreateError::Stall(stall));
        }
        let mut directory = self.directory.lock();
        if directory.named(name).is_some() {
            return Err(CreateError::Exists(name.clone()));
        }
        if matches!(kind, GroupKind::Gated { .. }) {
            let record = directory.endpoints.get(&creator.id());
            if record.is_some_and(|record| record.receive_shut) {
                return Err(CreateError::ReceiveShut(creator.id()));
            }
            self.open_queue(creator);
        }
        let group = self.add_group(&mut directory, creator.id(), name, kind, stall)?;
        let group = group.ok_or(CreateError::Closed(creator.id()))?;
        let mut effects = Effects::default();
        let made = || MemberChange::new(&group, creator, MemberEvent::Created);
        let mut seen = self.to_be_seen(&mut effects, made);
        let mut held = self.hold_all(creator);
        let sequence = held.draw(creator.seen());
        ToBeSeen::tell(&mut seen, &mut held, sequence, &mut effects);
        drop(held);
        drop(directory);
        effects.run();
        Ok((group.id, sequence))
    }

    /// None if the creator is gone.
    fn add_group(
        &self,
        directory: &mut Directory,
        creator: EndpointId,
        name: &GroupName,
        kind: GroupKind,
        stall: Option<Duration>,
    ) -> Result<Option<Arc<Group>>, LimitExceeded> {
        LimitExceeded::check("groups", directory.group_count(), self.limits.groups)?;
        if let (GroupKind::Open(Some(retain)), Some(record)) =
            (kind, directory.endpoints.get(&creator))
        {
            let others = record.created.iter().filter_map(|id| directory.group(*id));
            retain.check(others.filter_map(|other| other.group.retain()), &self.limits)?;
        }
        let id = directory.next_group_id();
        let Some(record) = directory.endpoints.get_mut(&creator) else {
            return Ok(None);
        };
        let limit = self.limits.groups_created;
        LimitExceeded::check("groups_created", record.created.len(), limit)?;
        let one = record.core.charge(Resource::Groups, 1)?;
        let retains = match kind {
            GroupKind::Open(Some(retain)) if retain.messages > 0 => {
                record.core.charge(Resource::RetainedBytes, retain.bytes)?
            }
            _ => None,
        };
        record.created.push(id);
        let group = match kind {
            GroupKind::Open(retain) => {
                let group = Group::new(id, name.clone(), self.lock_of(!id.get()), None);
                group.retaining(retain, &self.hasher)
            }
            GroupKind::Gated { backlog } => {
                Group::new(id, name.clone(), self.lock_of(!id.get()), Some(backlog))
            }
        };
        let group = Arc::new(group.stalling_after(stall));
        directory.add_group(Arc::clone(&group), creator, [one, retains]);
        Ok(Some(group))
    }

    /// The group of a name, and whether it was made for this.
    pub(crate) fn find_or_add_group(
        &self,
        directory: &mut Directory,
        creator: EndpointId,
        name: &GroupName,
        create: bool,
        retain: Option<Retain>,
    ) -> Result<(Arc<Group>, bool), JoinError> {
        if let Some(record) = directory.named(name) {
            return Ok((Arc::clone(&record.group), false));
        }
        if !create {
            return Err(JoinError::NoSuchGroup(name.clone()));
        }
        let group = self.add_group(directory, creator, name, GroupKind::Open(retain), None)?;
        Ok((group.ok_or(JoinError::Closed(creator))?, true))
    }

    pub(crate) fn join(
        &self,
        core: &EndpointCore,
        name: &GroupName,
        options: JoinOptions,
    ) -> Result<Joined, JoinError> {
        let id = core.id();
        if options.flags.contains(MemberFlags::SEND_TO_PEER) {
            return Err(JoinError::SendToPeer(name.clone()));
        }
        let mut directory = self.directory.lock();
        if directory.named(name).is_some_and(|known| known.group.is_gated()) {
            return Err(JoinError::Gated(name.clone()));
        }
        self.may_join(&mut directory, core, name, options.flags, options.state)?;
        if let Some(filter) = &options.filter {
            self.check_filter_bytes(&directory, id, filter, 0)?;
        }
        let filters = MemberFilters::new(options.filter, None);
        if let Some(filters) = &filters {
            // Before a group is made that it could not be in.
            self.check_instructions(&Membership::empty(), None, Some(filters))?;
        }
        let charges = Self::charge_membership(core, filters.as_deref())?;
        let (group, created) =
            self.find_or_add_group(&mut directory, id, name, options.create, options.retain)?;
        let (flags, state) = (options.flags, options.state);
        let entry = MemberEntry { flags, filters, state, peer: None, ticket: None, charges };
        let joined = self.enter(core, directory, &group, entry)?;
        Ok(Joined { created, ..joined })
    }

    /// Charges an endpoint's account for a membership, and for the filter of its own.
    pub(crate) fn charge_membership(
        core: &EndpointCore,
        filters: Option<&MemberFilters>,
    ) -> Result<[Option<Charge>; 2], LimitExceeded> {
        let membership = core.charge(Resource::Memberships, 1)?;
        let filter = match filters.and_then(|filters| filters.own.as_ref()) {
            Some(filter) => core.charge(Resource::FilterBytes, filter.bytes())?,
            None => None,
        };
        Ok([membership, filter])
    }

    /// Whether an endpoint may become a member of a group of this name with these flags.
    pub(crate) fn may_join(
        &self,
        directory: &mut Directory,
        core: &EndpointCore,
        name: &GroupName,
        flags: MemberFlags,
        state: bool,
    ) -> Result<(), JoinError> {
        let id = core.id();
        let record = (directory.endpoints.get_mut(&id)).ok_or(JoinError::Closed(id))?;
        if record.receive_shut {
            return Err(JoinError::ReceiveShut(id));
        }
        if record.memberships.iter().any(|group| group.name == *name) {
            return Err(JoinError::AlreadyMember(name.clone(), id));
        }
        let memberships = self.limits.memberships;
        LimitExceeded::check("memberships", record.memberships.len(), memberships)?;
        // Losses not yet told outlast their membership; without a bound an endpoint that comes and
        // goes and never reads would pile them up. Those that have been told count no more.
        record.keep_drops(&[], None);
        let past = record.past_losses();
        LimitExceeded::check("memberships (losses not yet read)", past, memberships)?;

        // Ends that have not been read hold the places that their memberships had reserved.
        let shard = self.locks.acquire_one(core.place.lock);
        let intake = shard.intakes.get(core.place.slot as usize);
        let unread = intake.map_or(0, Intake::unread_ends);
        let (states, state_bytes) = intake.map_or((0, 0), Intake::unread_retained);
        drop(shard);
        if state {
            let states = usize::try_from(states).unwrap_or(usize::MAX);
            LimitExceeded::check("memberships (retained state not yet read)", states, memberships)?;
            let (bytes, most) = (state_bytes, self.limits.retained_bytes);
            if bytes >= most.max(1) {
                let limit = "retained_bytes (not yet read)";
                return Err(LimitExceeded::new(limit, most).into());
            }
        }
        let held = record.memberships.len() + usize::try_from(unread).unwrap_or(usize::MAX);
        LimitExceeded::check("memberships (ends not yet read)", held, memberships)?;
        self.check_back_off(directory, core, name, flags)
    }

    /// Whether an eviction not long ago forbids a membership with these flags (G8).
    pub(crate) fn check_back_off(
        &self,
        directory: &Directory,
        core: &EndpointCore,
        name: &GroupName,
        flags: MemberFlags,
    ) -> Result<(), JoinError> {
        if flags.contains(MemberFlags::DROP_WHEN_FULL) {
            return Ok(());
        }
        match directory.back_off(core.process(), name, self.ticked()) {
            Some(left) => Err(JoinError::BackOff(name.clone(), left)),
            None => Ok(()),
        }
    }

    /// Makes an endpoint a member; it has been seen that it may be. Who asked for it with a ticket
    /// is told.
    pub(crate) fn enter(
        &self,
        core: &EndpointCore,
        mut directory: MutexGuard<'_, Directory>,
        group: &Arc<Group>,
        entry: MemberEntry,
    ) -> Result<Joined, JoinError> {
        let id = core.id();
        let MemberEntry { flags, filters, state, peer, ticket, charges: [charge, filter] } = entry;
        let before = group.membership();
        LimitExceeded::check("members", before.members().len(), self.limits.members)?;
        self.check_instructions(&before, None, filters.as_deref())?;

        self.open_queue(core);
        let record = directory.endpoints.get_mut(&id).ok_or(JoinError::Closed(id))?;
        let drops = record.member_drops(group.id, flags);
        let belonging = Belonging { group: Arc::clone(group), _charge: charge, filter };
        record.memberships.push(belonging);
        record.keep_drops(&[], drops.as_ref());
        let retained = || Retained::new(group.id, group.retain()).filtered(filters.as_ref());
        let mut retained = state.then(retained);
        let credentials = core.credentials;
        let member = Member { place: core.place, credentials, flags, drops, filters, peer };
        let next = before.with(member);
        let members = count(next.members().len());
        let drops = record.drops.clone();
        let step = Step::new(group, &before, next, core, Change::Joined);
        if mutated(Mutant::StateBeforeJoin)
            && let Some(retained) = &mut retained
        {
            group.copy_retained(retained);
        }
        let joined =
            |sequence| Joined { group: group.id, sequence, created: false, members, flags };
        let sequence = match ticket {
            Some(ticket) => self.publish_admission(core, directory, step, drops, &ticket, joined),
            None => self.publish_join(core, directory, step, drops, retained),
        };
        Ok(joined(sequence))
    }

    /// Takes an endpoint out of groups, at one place in the order. None if it was not there.
    pub(crate) fn depart(&self, core: &EndpointCore, departure: Departure) -> Option<Sequence> {
        let id = core.id();
        let mut directory = self.directory.lock();
        let record = directory.endpoints.get_mut(&id)?;
        let closing = matches!(departure, Departure::Close);
        let one = match &departure {
            Departure::Leave(group) => Some(*group),
            Departure::Evict(eviction) => Some(eviction.group),
            Departure::ShutReceive | Departure::Close => None,
        };
        let mut was_shut = false;
        let left: Vec<Belonging> = match one {
            Some(group) => {
                let joined = &mut record.memberships;
                let at = joined.iter().position(|joined| joined.id == group)?;
                vec![joined.remove(at)]
            }
            None => {
                was_shut = std::mem::replace(&mut record.receive_shut, true);
                std::mem::take(&mut record.memberships)
            }
        };
        let leaving: Vec<Arc<Group>> = left.iter().map(|left| Arc::clone(left)).collect();
        let watching =
            if one.is_none() { std::mem::take(&mut record.watching) } else { Vec::new() };
        let was_monitor = one.is_none() && std::mem::take(&mut record.monitoring);
        let put_out = match &departure {
            Departure::Evict(eviction) => PutOut::of(&eviction.cause),
            _ => None,
        };
        let change = match departure {
            Departure::Leave(_) | Departure::ShutReceive => Change::Left,
            Departure::Evict(_) => Change::Evicted,
            Departure::Close => Change::Closed,
        };
        // What is dropped between here and the locks still finds its place in the list.
        record.keep_drops(&leaving, None);
        let drops = record.drops.clone();
        let mut severed =
            if one.is_none() { directory.sever(id, closing) } else { Severed::default() };
        let record = directory.endpoints.get_mut(&id).filter(|_| closing);
        let created = record.map_or_else(Vec::new, |record| std::mem::take(&mut record.created));
        for group in &created {
            directory.orphan(*group);
        }
        // Groups that it leaves, and groups that only its life kept alive.
        let orphaned = created.iter().filter_map(|group| directory.group(*group));
        let orphaned = orphaned.map(|record| &record.group).filter(|group| {
            group.membership().members().is_empty() && !leaving.iter().any(|g| g.id == group.id)
        });
        let orphaned: Vec<&Arc<Group>> = orphaned.collect();
        let only_watched = watching.iter().filter(|group| {
            !leaving.iter().any(|other| other.id == group.id)
                && !orphaned.iter().any(|other| other.id == group.id)
        });
        let step = |group: &Arc<Group>, change| {
            let creator = directory.group(group.id).and_then(|record| record.creator);
            let before = group.membership();
            let next = before.without(id, creator.is_some());
            let watched = watching.iter().any(|watched| watched.id == group.id);
            let next = if watched { next.forget_watcher(id) } else { next };
            Step::new(group, &before, next, core, change)
        };
        let mut steps: Vec<Step> = (leaving.iter().map(|group| step(group, change)))
            .chain(orphaned.iter().map(|group| step(group, Change::Ended)))
            .collect();
        steps.extend(only_watched.map(|group| Step::unwatch(group, id)));
        // Their members go on, and send to no peer endpoint any more.
        let bereft = std::mem::take(&mut severed.groups);
        // Once: whoever receives nothing has had no peer endpoints since.
        for group in bereft.into_iter().filter(|_| !was_shut) {
            if group.membership().members().is_empty() || mutated(Mutant::GoneOwnerKeepsPeers) {
                continue;
            }
            severed.bereave(&group);
            let next = group.membership().without_peers(|_| true);
            let watched = watching.iter().any(|watched| watched.id == group.id);
            let next = if watched { next.forget_watcher(id) } else { next };
            steps.retain(|step| step.group.id != group.id);
            let gone = MemberChange::new(&group, core, MemberEvent::OwnerGone);
            steps.push(Step::unseen(&group, next).aside([gone]));
        }
        let mut ended_peers = Vec::with_capacity(severed.peers.len());
        let mut retired = Vec::with_capacity(steps.len());
        let given_up = if one.is_none() { Self::give_names_up(&mut directory, id) } else { vec![] };
        let mut names = given_up;
        let mut retired_owners = Vec::with_capacity(names.len());

        let mut effects = Effects::default();
        let monitors = self.monitors.list();
        let seen = steps.iter().map(Step::seen_count).sum::<usize>() + names.len();
        let copies = monitors.as_ref().map_or(0, |list| list.len() * seen);
        let wakes: usize = names.iter().map(NameStep::wakes).sum();
        effects.reserve(steps.iter().map(Step::watchers).sum::<usize>() + wakes + copies);
        let fewer_monitors = was_monitor.then(|| self.monitors.without(id));
        let mut held = self.hold_all(core);
        let sequence = held.draw(core.seen());
        for step in &mut steps {
            retired.push(step.publish(&mut held, sequence, &mut effects));
            if let Some(monitors) = &monitors {
                step.seen().for_each(|seen| monitors.tell(&mut held, &seen, &mut effects));
            }
        }
        for step in &mut names {
            retired_owners.push(step.publish(&mut held, sequence, &mut effects));
            if let (Some(monitors), Some(seen)) = (&monitors, step.seen()) {
                monitors.tell(&mut held, &seen, &mut effects);
            }
        }
        let old_monitors = fewer_monitors.map(|next| self.monitors.publish(&held, next));
        let mut reader = None;
        let mut old_drops = None;
        let mut requests = Vec::new();
        if let Some(intake) = held.intake(core.place) {
            old_drops = Some(intake.replace_drops(drops));
            match departure {
                Departure::Leave(_) => {}
                Departure::Evict(mut eviction) => {
                    eviction.sequence = sequence;
                    intake.push_end(eviction);
                    reader = intake.take_reader();
                }
                Departure::ShutReceive => {
                    intake.shut_receive();
                    requests = intake.requests.take_all();
                    reader = intake.take_reader();
                }
                Departure::Close => {
                    core.close();
                    requests = intake.requests.take_all();
                    reader = intake.take_reader();
                }
            }
        }
        if let Some(counters) = held.counters() {
            // Whoever takes no outcomes any more has none to wait for.
            counters.answered += requests.len() as u64;
        }
        let intake = if closing { held.remove(core.place) } else { None };
        ended_peers.extend(severed.places().map(|place| held.remove(place)));
        drop(held);

        if closing {
            self.note_ending(core, sequence);
        }
        for (step, before) in steps.iter().zip(&retired) {
            let group = (step.group.id, &step.group.name);
            self.recorder.membership_changed(group, before, &step.next, sequence, put_out);
        }
        for step in steps.iter().filter(|step| step.next.ended) {
            directory.remove_group(step.group.id);
            for watcher in step.next.watchers() {
                if let Some(record) = directory.endpoints.get_mut(&watcher.place.id) {
                    record.watching.retain(|group| group.id != step.group.id);
                }
            }
        }
        for step in &names {
            step.settle(&mut directory);
        }
        if closing {
            directory.endpoints.remove(&id);
        }
        let closed = one.is_none().then_some(id);
        let changed = Changed {
            groups: steps.iter().map(|step| step.group.id).collect(),
            names: names.iter().map(|step| step.name.id).collect(),
            endpoints: closed.into_iter().chain(severed.ids()).collect(),
        };
        self.finish_severed(&mut directory, severed, sequence, &mut effects);
        drop(directory);
        // The end of a queue may be the last one, and then its messages go with it.
        drop((retired, retired_owners, old_drops, intake, ended_peers, old_monitors, left));

        effects.wake(reader);
        self.waiting.lock().recheck(self, &changed, &mut effects);
        effects.run();
        if closing {
            self.close_requests(core, requests);
        } else {
            self.abandon_requests(requests);
        }
        Some(sequence)
    }

    /// Keeps what an endpoint has come to that is closed.
    fn note_ending(&self, core: &EndpointCore, sequence: Sequence) {
        let mut taken = Sequence::from_raw(0);
        if let Some(dwell) = core.dwell() {
            if core.together().is_none() {
                self.past_dwell.lock().add(&dwell.sum());
            }
            taken = dwell.acknowledged();
        }
        let (endpoint, credentials, handed) = (core.id(), core.credentials, core.taken());
        self.recorder.ended(Ending { endpoint, credentials, sequence, handed, taken });
    }

    /// Resolves a destination for a lane that does not know it.
    pub(crate) fn route(&self, to: Destination, sender: EndpointId) -> Result<Route, SendError> {
        match to {
            Destination::Group(id) => {
                let directory = self.directory.lock();
                let record = directory.group(id).ok_or(SendError::NoSuchGroup(id))?;
                let group = Arc::clone(&record.group);
                drop(directory);
                Ok(Route::to_group(group, sender))
            }
            Destination::Name(id) => {
                let directory = self.directory.lock();
                let name = directory.registry.get(id).ok_or(SendError::NoSuchName(id))?;
                let name = Arc::clone(name);
                drop(directory);
                Ok(Route::Name(NameRoute::new(name)))
            }
            Destination::Endpoint(id) => {
                let directory = self.directory.lock();
                let Some(record) = directory.endpoints.get(&id) else {
                    // A peer endpoint is there for its candidate, and for nobody else.
                    let peer = directory.peers.get(&id).filter(|peer| peer.candidate == sender);
                    let address = peer.map(PeerRecord::address);
                    return address.map(Route::Peer).ok_or(SendError::NoSuchEndpoint(id));
                };
                let core = Arc::clone(&record.core);
                drop(directory);
                self.open_queue(&core);
                Ok(Route::Endpoint(core.place))
            }
            // A lane asks its own endpoint; nobody else can send there.
            Destination::Caller(request) => Err(SendError::NoSuchRequest(request)),
        }
    }

    /// The reader of `core` has freed places and somebody is registered there.
    pub(crate) fn serve(&self, core: &EndpointCore) {
        let mut effects = Effects::default();
        self.waiting.lock().serve(self, core, &mut effects);
        effects.run();
    }
}

impl EndpointRecord {
    /// Rebuilds the list of losses: those of current memberships and of the ones that end just now,
    /// `more`, and past ones that have not been told.
    pub(crate) fn keep_drops(&mut self, leaving: &[Arc<Group>], more: Option<&Arc<Drops>>) {
        let mut drops = std::mem::take(&mut self.drops);
        drops.retain(|drops| {
            // Whose flags they were is no member any more.
            if matches!(drops.lost, Lost::Flags(_)) {
                let joined = |joined: &Belonging| joined.id == drops.group;
                return drops.is_pending() && self.memberships.iter().any(joined);
            }
            drops.is_pending()
                || self.is_current(drops)
                || leaving.iter().any(|group| group.id == drops.group)
        });
        self.drops = drops;
        if let Some(more) = more
            && !self.drops.iter().any(|drops| Arc::ptr_eq(drops, more))
        {
            self.drops.push(Arc::clone(more));
        }
    }

    /// The membership, the watch, or the peer endpoint to which these losses belong has not ended.
    fn is_current(&self, drops: &Drops) -> bool {
        let group = drops.group;
        match drops.lost {
            Lost::Messages => self.memberships.iter().any(|joined| joined.id == group),
            Lost::Views => self.watching.iter().any(|watched| watched.id == group),
            Lost::Owners(name) => self.watched_names.iter().any(|n| n.id == name),
            Lost::AtPeer(peer) => self.peers.contains(&peer),
            Lost::Peer(..) | Lost::Flags(_) => false,
            Lost::Monitored => self.monitoring,
        }
    }

    /// Losses that have outlasted their membership or watch.
    pub(crate) fn past_losses(&self) -> usize {
        let own = |drops: &&Arc<Drops>| matches!(drops.lost, Lost::Messages | Lost::Views);
        let past = |drops: &&Arc<Drops>| !self.is_current(drops);
        self.drops.iter().filter(own).filter(past).count()
    }

    /// What it has yet to be told of peer endpoints that are no more.
    pub(crate) fn unread_notes(&self) -> usize {
        let about_peers =
            |drops: &&Arc<Drops>| matches!(drops.lost, Lost::AtPeer(_) | Lost::Peer(..));
        let past = |drops: &&Arc<Drops>| drops.is_pending() && !self.is_current(drops);
        self.drops.iter().filter(about_peers).filter(past).count()
    }

    /// Where losses of a kind are counted: where they were before, if that is still to be told.
    pub(crate) fn drops_of(&self, group: GroupId, lost: Lost) -> Arc<Drops> {
        let known = |drops: &&Arc<Drops>| drops.group == group && drops.lost == lost;
        let known = self.drops.iter().find(known).cloned();
        known.unwrap_or_else(|| Arc::new(Drops::new(group, lost)))
    }

    /// Where the losses of a membership are counted, if its flags let it lose any.
    pub(crate) fn member_drops(&self, group: GroupId, flags: MemberFlags) -> Option<Arc<Drops>> {
        let drops = flags.contains(MemberFlags::DROP_WHEN_FULL);
        drops.then(|| self.drops_of(group, Lost::Messages))
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
