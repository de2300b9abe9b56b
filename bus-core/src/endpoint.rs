//! An endpoint, as its owner holds it: joins and leaves, its lanes, its reader.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use crate::attributes::Attributes;
use crate::bus::{
    Bus, CreateError, Departure, GroupKind, GroupOptions, JoinError, JoinOptions, Joined,
    LeaveError, LimitExceeded,
};
use crate::filter::{Filter, FilterChangeError};
use crate::gated::{Candidacy, GateError, Terms};
use crate::id::{EndpointId, GroupId, NameId, Sequence};
use crate::intake::{EndpointCore, Opened};
use crate::lane::{Lane, Watch};
use crate::membership::MemberFlags;
use crate::message::{Credentials, Destination};
use crate::monitor::MonitorError;
use crate::name::GroupName;
use crate::name_registry::{Claimed, NameWatching, OwnError, OwnOptions};
use crate::receiver::Receiver;
use crate::request::RequestEnd;
use crate::retained::Retain;
use crate::send::SendError;
use crate::tally::ReaderTimes;
use crate::view::{Interest, Watching};

/// An identity on the bus, with one bounded queue.
///
/// Dropping it closes the endpoint: it leaves its groups at one place in the order, its waiting
/// sends end with [`SendError::Closed`], sends to it fail, and nothing of its own takes a place
/// afterwards (G9). What was queued can still be read.
///
/// No call blocks. They may be made from any thread.
#[derive(Debug)]
pub struct Endpoint {
    bus: Bus,
    core: Arc<EndpointCore>,
}

impl Endpoint {
    pub(crate) fn new(bus: Bus, core: Arc<EndpointCore>) -> Self {
        Self { bus, core }
    }

    /// Its id, never reused.
    #[must_use]
    pub fn id(&self) -> EndpointId {
        self.core.id()
    }

    /// Which of the bus's [`LOCKS`](crate::LOCKS) locks covers its queue. Sends to recipients
    /// behind different locks do not wait for each other.
    #[must_use]
    pub fn lock(&self) -> usize {
        self.core.place.lock.at()
    }

    /// Whose it is.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.core.credentials
    }

    /// The bus that it is on.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Creates an open group without joining it. It lives while this endpoint does, or while it
    /// has a member.
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create_group(&self, name: &GroupName) -> Result<(GroupId, Sequence), CreateError> {
        self.create_group_with(name, GroupOptions::default())
    }

    /// As [`create_group`](Self::create_group), of a group that differs in some way.
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create_group_with(
        &self,
        name: &GroupName,
        options: GroupOptions,
    ) -> Result<(GroupId, Sequence), CreateError> {
        let kind = GroupKind::Open(options.retain);
        self.bus.inner.create_group(&self.core, name, kind, options.stall)
    }

    /// As [`create_group`](Self::create_group), of a group that retains messages for those who join
    /// later [with their state](JoinOptions::state).
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create_retaining(
        &self,
        name: &GroupName,
        retain: Retain,
    ) -> Result<(GroupId, Sequence), CreateError> {
        let retain = Some(retain);
        self.create_group_with(name, GroupOptions { retain, ..GroupOptions::default() })
    }

    /// Creates a gated group, whose owner this endpoint is: it is told of each candidate, and
    /// decides who is admitted. `backlog` candidates may wait at a time; the limit `backlog` if
    /// none is given, and at most.
    ///
    /// The owner is no member. It hears what members with `SEND_TO_PEER` send, and what candidates
    /// and members send to it privately.
    ///
    /// ```
    /// use bus_core::{Bus, Credentials, Delivery, Destination, Limits, MemberFlags, Terms};
    ///
    /// let bus = Bus::new(Limits::default(), 7)?;
    /// let me = Credentials { uid: 1000, pid: 1 };
    /// let (owner, guest) = (bus.open_endpoint(me)?, bus.open_endpoint(me)?);
    /// let name = "org.example.Club".parse()?;
    /// owner.create_gated(&name, None)?;
    ///
    /// let request = guest.connect(&name, MemberFlags::empty())?;
    /// let mut reader = owner.receiver().expect("nobody else reads");
    /// let Delivery::Candidate(candidate) = reader.receive()? else { panic!() };
    /// assert_eq!(candidate.endpoint, guest.id());
    ///
    /// owner.admit(candidate.group, candidate.endpoint, Terms::new(MemberFlags::SEND_TO_PEER))?;
    /// let club = Destination::Group(request.wait()?.group);
    /// guest.lane()?.send(club, "hello")?;
    /// let Delivery::FromPeer { peer, message, .. } = reader.receive()? else { panic!() };
    /// assert_eq!((peer, &**message.payload()), (candidate.peer, &b"hello"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create_gated(
        &self,
        name: &GroupName,
        backlog: Option<u16>,
    ) -> Result<(GroupId, Sequence), CreateError> {
        self.create_gated_with(name, backlog, None)
    }

    /// As [`create_gated`](Self::create_gated), of a group with a
    /// [stall limit of its own](GroupOptions::stall).
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create_gated_with(
        &self,
        name: &GroupName,
        backlog: Option<u16>,
        stall: Option<Duration>,
    ) -> Result<(GroupId, Sequence), CreateError> {
        let most = self.bus.limits().backlog;
        let backlog = backlog.map_or(most, |backlog| backlog.min(most));
        self.bus.inner.create_group(&self.core, name, GroupKind::Gated { backlog }, stall)
    }

    /// Connects to the owner of a gated group and asks to be admitted. Private messages to the
    /// owner pass from now on. `wishes` are shown to the owner, who decides.
    ///
    /// # Errors
    ///
    /// See [`JoinError`]. With the limit `backlog` too many wait; try again later.
    pub fn connect(&self, name: &GroupName, wishes: MemberFlags) -> Result<Candidacy, JoinError> {
        self.connect_with(name, wishes, None)
    }

    /// As [`connect`](Self::connect), with a filter of its own that holds from the admission on.
    ///
    /// # Errors
    ///
    /// See [`JoinError`].
    pub fn connect_with(
        &self,
        name: &GroupName,
        wishes: MemberFlags,
        filter: Option<Filter>,
    ) -> Result<Candidacy, JoinError> {
        self.bus.inner.connect(&self.bus, &self.core, name, wishes, filter)
    }

    /// Admits a candidate to a gated group of this endpoint's: it gets every later message of it
    /// (G4).
    ///
    /// # Errors
    ///
    /// See [`GateError`]; nothing has changed then.
    pub fn admit(
        &self,
        group: GroupId,
        candidate: EndpointId,
        terms: Terms,
    ) -> Result<Joined, GateError> {
        self.bus.inner.admit(&self.core, group, candidate, terms)
    }

    /// Refuses a candidate, and tells it why. It is disconnected, unless it is in another group of
    /// this owner's or waits for one.
    ///
    /// # Errors
    ///
    /// See [`GateError`].
    pub fn refuse(
        &self,
        group: GroupId,
        candidate: EndpointId,
        reason: &str,
    ) -> Result<(), GateError> {
        self.bus.inner.refuse(&self.core, group, candidate, reason)
    }

    /// Puts a member out of a gated group of this endpoint's, and tells it why, at a place in the
    /// order. It stays connected: private messages pass, and it may ask again.
    ///
    /// # Errors
    ///
    /// See [`GateError`].
    pub fn expel(
        &self,
        group: GroupId,
        member: EndpointId,
        reason: &str,
    ) -> Result<Sequence, GateError> {
        self.bus.inner.expel(&self.core, group, member, reason)
    }

    /// Changes how an endpoint is a member of a gated group of this endpoint's, at a place in the
    /// order (G4). Sends that wait for what does not matter any more go on (G5).
    ///
    /// # Errors
    ///
    /// See [`GateError`].
    pub fn set_terms(
        &self,
        group: GroupId,
        member: EndpointId,
        terms: Terms,
    ) -> Result<Sequence, GateError> {
        self.bus.inner.set_terms(&self.core, group, member, terms)
    }

    /// Closes a peer endpoint, as its owner or as its candidate. Memberships of the candidate in
    /// the owner's groups end, each at its place in the order. None if it is neither's.
    pub fn close_peer(&self, peer: EndpointId) -> Option<Sequence> {
        self.bus.inner.close_peer(&self.core, peer)
    }

    /// Becomes a member of an open group: every later message of it arrives (G4).
    ///
    /// # Errors
    ///
    /// See [`JoinError`]; nothing has changed then.
    pub fn join(&self, name: &GroupName, options: JoinOptions) -> Result<Joined, JoinError> {
        self.bus.inner.join(&self.core, name, options)
    }

    /// Ends a membership, and says where in the order: nothing later arrives (G4).
    ///
    /// # Errors
    ///
    /// It is not a member.
    pub fn leave(&self, group: GroupId) -> Result<Sequence, LeaveError> {
        let departed = self.bus.inner.depart(&self.core, Departure::Leave(group));
        departed.ok_or(LeaveError::NotAMember(group, self.id()))
    }

    /// Changes what is wanted of a group, or wants everything again, and says from where in the
    /// order on: every later message is selected by the new filter (G4). Sends that wait only for
    /// this member, and that it does not want any more, go on.
    ///
    /// # Errors
    ///
    /// See [`FilterChangeError`]; the old filter holds then.
    pub fn set_filter(
        &self,
        group: GroupId,
        filter: Option<Filter>,
    ) -> Result<Sequence, FilterChangeError> {
        self.bus.inner.set_filter(&self.core, group, filter)
    }

    /// Begins to watch a group's membership: every later change is told at its place in the order
    /// (G4). Watching again changes what is told. A watch does not keep the group alive.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join); the limit is `watches`.
    pub fn watch_group(
        &self,
        name: &GroupName,
        interest: Interest,
        create: bool,
    ) -> Result<Watching, JoinError> {
        self.bus.inner.watch_group(&self.core, name, interest, create)
    }

    /// Ends a watch on a group's membership: no later change is told. None if there is none.
    pub fn unwatch_group(&self, group: GroupId) -> Option<Sequence> {
        self.bus.inner.unwatch_group(&self.core, group)
    }

    /// Claims a well-known name: owns it from the place in the order that comes back, or waits for
    /// it, and then [`Delivery::Name`](crate::Delivery::Name) tells when that changes. Claiming it
    /// again changes the flags and the description.
    ///
    /// ```
    /// use bus_core::{Bus, Credentials, Destination, Limits, OwnOptions};
    ///
    /// let bus = Bus::new(Limits::default(), 7)?;
    /// let me = Credentials { uid: 1000, pid: 1 };
    /// let (clock, user) = (bus.open_endpoint(me)?, bus.open_endpoint(me)?);
    /// let name = clock.own_name(&"org.example.Clock".parse()?, OwnOptions::default())?.name;
    /// let receipt = user.lane()?.send(Destination::Name(name), "what time is it?")?;
    /// assert_eq!(receipt.recipients, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`OwnError`]; nothing has changed then.
    pub fn own_name(&self, name: &GroupName, options: OwnOptions) -> Result<Claimed, OwnError> {
        self.bus.inner.own_name(&self.core, name, options)
    }

    /// Gives a name up, or stops waiting for it, and says where in the order: nothing sent to the
    /// name later arrives. None if it was not claimed.
    pub fn release_name(&self, name: NameId) -> Option<Sequence> {
        self.bus.inner.release_name(&self.core, name)
    }

    /// Begins to watch who owns a name, also one that nobody owns yet: every later change is told
    /// at its place in the order (G4).
    ///
    /// # Errors
    ///
    /// As [`own_name`](Self::own_name); the limit is `watches`.
    pub fn watch_name(&self, name: &GroupName) -> Result<NameWatching, OwnError> {
        self.bus.inner.watch_name(&self.core, name)
    }

    /// Ends a watch on a name's owners. None if there is none.
    pub fn unwatch_name(&self, name: NameId) -> Option<Sequence> {
        self.bus.inner.unwatch_name(&self.core, name)
    }

    /// Becomes a monitor: gets a copy of every message, and of every change of a membership, from
    /// here on; of one group only if one is named. Nobody waits for it: what it has no room for it
    /// misses, and is told. Again, it changes what is wanted.
    ///
    /// Whether the endpoint may see all of that is for the caller to know.
    ///
    /// # Errors
    ///
    /// See [`MonitorError`].
    pub fn monitor(&self, group: Option<GroupName>) -> Result<Sequence, MonitorError> {
        self.bus.inner.monitor(&self.core, group)
    }

    /// Ends that, and says where in the order. None if it is no monitor.
    pub fn unmonitor(&self) -> Option<Sequence> {
        self.bus.inner.unmonitor(&self.core)
    }

    /// Leaves all groups, gives up all names and receives nothing more; it may still send (G9). What is sent to it
    /// fails with [`SendError::ReceiveShut`]; what was queued stays readable.
    ///
    /// Says where in the order that was; a second call says another, later place.
    pub fn shutdown_receive(&self) -> Sequence {
        let departed = self.bus.inner.depart(&self.core, Departure::ShutReceive);
        departed.unwrap_or_else(|| self.core.seen())
    }

    /// Opens a line of sends. What goes through one lane keeps its order (G3); lanes do not wait
    /// for each other.
    ///
    /// # Errors
    ///
    /// The limit `lanes` is reached. Dropping a lane gives it back.
    pub fn lane(&self) -> Result<Lane, LimitExceeded> {
        let most = u64::from(self.bus.limits().lanes);
        if !self.core.open(Opened::Lane, most) {
            return Err(LimitExceeded::new("lanes", most));
        }
        Ok(Lane::new(self.bus.clone(), Arc::clone(&self.core)))
    }

    /// Cancels a request of this endpoint: its outcome is [`RequestEnd::Cancelled`], in the queue
    /// like any other. False if it has an outcome already, or never was.
    ///
    /// [`RequestEnd::Cancelled`]: crate::RequestEnd::Cancelled
    pub fn cancel_request(&self, request: Sequence) -> bool {
        self.bus.inner.end_request(self.core.place, request, RequestEnd::Cancelled)
    }

    /// Says that a request that this endpoint has taken will not be answered; its caller is told
    /// [`RequestEnd::Gone`]. False if it is not waiting for an answer from here.
    ///
    /// A request that is neither answered nor declined ends with its deadline, or with this
    /// endpoint.
    ///
    /// [`RequestEnd::Gone`]: crate::RequestEnd::Gone
    pub fn decline_request(&self, request: Sequence) -> bool {
        self.bus.inner.decline(&self.core, request)
    }

    /// Takes the reader's place, if nobody has it. Who drains the queue is one at a time.
    #[must_use]
    pub fn receiver(&self) -> Option<Receiver> {
        Receiver::take_seat(self.bus.clone(), Arc::clone(&self.core))
    }

    /// The same for one of many readers that one thread has: they count how long messages were in their
    /// queues together, too.
    ///
    /// ```
    /// use bus_core::{Bus, Credentials, Destination, JoinOptions, Limits};
    ///
    /// let bus = Bus::new(Limits::default(), 7)?;
    /// let me = Credentials { uid: 1000, pid: 1 };
    /// bus.tick(std::time::Duration::from_secs(1));
    /// let (alice, bob) = (bus.open_endpoint(me)?, bus.open_endpoint(me)?);
    /// let mut reader = bob.receiver_with(&bus.reader_times()).expect("nobody else reads");
    /// let chat = bob.join(&"org.example.Chat".parse()?, JoinOptions::create())?.group;
    /// alice.lane()?.send(Destination::Group(chat), "hello")?;
    /// reader.receive()?;
    /// drop((reader, bob));
    /// assert_eq!(bus.time_in_queues().count(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn receiver_with(&self, together: &ReaderTimes) -> Option<Receiver> {
        self.core.count_with(together);
        self.receiver()
    }

    /// Asks whether a send from here to `to` would find room everywhere, and if not, to be woken
    /// when it would (G6). None if it would now.
    ///
    /// Being woken is no reservation: another sender may be faster, and then the answer to the next
    /// question is no again.
    ///
    /// # Errors
    ///
    /// The destination is not there, or the limit `watches` is reached.
    pub fn watch_writable(
        &self,
        to: Destination,
        waker: Waker,
    ) -> Result<Option<Watch>, WatchError> {
        self.watch_writable_for(to, Attributes::EMPTY, waker)
    }

    /// As [`watch_writable`](Self::watch_writable), for a message of these attributes: of a group,
    /// only members whose filters may accept it matter. A filter that is a program is taken to.
    ///
    /// # Errors
    ///
    /// As [`watch_writable`](Self::watch_writable), which is for a message without attributes.
    pub fn watch_writable_for(
        &self,
        to: Destination,
        attributes: Attributes,
        waker: Waker,
    ) -> Result<Option<Watch>, WatchError> {
        Watch::begin(&self.bus, &self.core, to, attributes, waker)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.bus.inner.depart(&self.core, Departure::Close);
        // Without a reader nobody can have what is queued any more. It is dropped here, with no
        // lock held, and not by whoever has the last lane or waiting send of this endpoint.
        let queue = self.core.seat.lock().close();
        if let Some(queue) = queue {
            self.bus.inner.drop_queue(queue);
        }
    }
}

/// Why a destination cannot be watched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// A send there would fail, room or not.
    #[error(transparent)]
    Destination(#[from] SendError),
    /// A bound was reached; end another watch first.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
}
