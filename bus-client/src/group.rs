//! Where messages go: a group by its name, or one endpoint by its id.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bus_core::wire::{LaneNumber, Request, Response};
use bus_core::{EndpointId, Filter, GroupId, GroupName, MemberFlags, Receipt, Retain, Sequence};

use crate::apart::{Given, choose};
use crate::bus::{Endpoint, Lane, LaneInner};
use crate::error::{FilterChangeError, LeaveError, SendError};
use crate::info::Joined;
use crate::message::{Message, Outgoing};
use crate::reconnect::Possession;
use crate::request::{CallError, CallFuture, PendingCall};
use crate::send::{PendingSend, SendFuture};
use crate::state::{Ask, Form, GroupTarget, NewSend, Purpose, Target};
use crate::watch::Writable;

/// How a group is made.
///
/// ```
/// use std::time::Duration;
/// use bus_client::GroupOptions;
///
/// // Whoever makes senders wait for a second is put out.
/// let options = GroupOptions::new().stall(Duration::from_secs(1));
/// assert_ne!(options, GroupOptions::new());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupOptions {
    pub(crate) retain: Option<Retain>,
    pub(crate) backlog: Option<u16>,
    stall: Option<Duration>,
}

impl GroupOptions {
    /// Retains nothing; everything else as the broker has it.
    #[must_use]
    pub const fn new() -> Self {
        Self { retain: None, backlog: None, stall: None }
    }

    /// Retains messages for those who join later [with its state](JoinOptions::with_state).
    #[must_use]
    pub const fn retain(mut self, retain: Retain) -> Self {
        self.retain = Some(retain);
        self
    }

    /// After how long a member that makes senders to the group wait is stalled, and evicted: 100 ms
    /// to 10 minutes.
    #[must_use]
    pub const fn stall(mut self, stall: Duration) -> Self {
        self.stall = Some(stall);
        self
    }

    /// Of a gated group: so many candidates may wait at a time, 64 at most unless the broker says
    /// otherwise.
    #[must_use]
    pub const fn backlog(mut self, candidates: u16) -> Self {
        self.backlog = Some(candidates);
        self
    }

    /// What is too long for the wire is too long for the broker too.
    pub(crate) fn stall_ms(self) -> Option<u32> {
        self.stall.map(|stall| u32::try_from(stall.as_millis()).unwrap_or(u32::MAX))
    }
}

/// How to join a group.
///
/// ```
/// use bus_client::JoinOptions;
///
/// // A dashboard: it may miss messages, and nobody waits for it.
/// let options = JoinOptions::new().drop_when_full(true);
/// assert_ne!(options, JoinOptions::new());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinOptions {
    pub(crate) loopback: bool,
    pub(crate) drop_when_full: bool,
    pub(crate) leave_when_full: bool,
    pub(crate) create: bool,
    pub(crate) filter: Option<Filter>,
    pub(crate) retain: Option<Retain>,
    pub(crate) state: bool,
}

impl Default for JoinOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl JoinOptions {
    pub(crate) fn flags(&self) -> MemberFlags {
        let mut flags = MemberFlags::empty();
        flags.set(MemberFlags::LOOPBACK, self.loopback);
        flags.set(MemberFlags::DROP_WHEN_FULL, self.drop_when_full);
        flags.set(MemberFlags::LEAVE_WHEN_FULL, self.leave_when_full);
        flags
    }

    /// Creates the group if it does not exist; no loopback; senders wait for this member.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            loopback: false,
            drop_when_full: false,
            leave_when_full: false,
            create: true,
            filter: None,
            retain: None,
            state: false,
        }
    }

    /// Whether the member's own messages come back to it.
    #[must_use]
    pub const fn loopback(mut self, yes: bool) -> Self {
        self.loopback = yes;
        self
    }

    /// Whether this member misses messages while its queue is full, rather than make senders
    /// wait. It is told what it missed.
    #[must_use]
    pub const fn drop_when_full(mut self, yes: bool) -> Self {
        self.drop_when_full = yes;
        self
    }

    /// Whether this member leaves when its queue has no room for a message, rather than make senders
    /// wait. It is told as of an eviction ([`Event::Evicted`](crate::Event::Evicted)), may come back at
    /// once, and what was queued stays readable. With
    /// [`drop_when_full`](Self::drop_when_full) it never comes to that.
    #[must_use]
    pub const fn leave_when_full(mut self, yes: bool) -> Self {
        self.leave_when_full = yes;
        self
    }

    /// Receives only what this filter accepts; the rest is not sent here, and senders wait for this
    /// member only with what it wants. Without one, everything is wanted.
    ///
    /// ```
    /// use bus_client::JoinOptions;
    ///
    /// let options = JoinOptions::new().filter("key^=sensor. && field.unit=C".parse()?);
    /// # drop(options);
    /// # Ok::<(), bus_client::FilterError>(())
    /// ```
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// Whether to create the group if it does not exist. True at first.
    #[must_use]
    pub const fn create(mut self, yes: bool) -> Self {
        self.create = yes;
        self
    }

    /// What the group retains for those who join later, if this join creates it.
    #[must_use]
    pub const fn retain(mut self, retain: Retain) -> Self {
        self.retain = Some(retain);
        self
    }

    /// Whether to get first what the group retains; [`Event::Current`](crate::Event::Current) ends
    /// it, also where it is nothing.
    #[must_use]
    pub const fn with_state(mut self, yes: bool) -> Self {
        self.state = yes;
        self
    }
}

/// A group to send to, by its name. One need not be a member. Cheap to clone.
///
/// The broker knows groups by id. The handle looks the id up when it is first needed. When the
/// group that it knew has ended and another has taken the name, a send that waits for its answer
/// looks it up once more; a pipelined one fails, and the next finds the new group.
#[derive(Clone, Debug)]
pub struct Group {
    route: Route,
    target: Arc<GroupTarget>,
}

/// One endpoint to send to, by its id. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RemoteEndpoint {
    route: Route,
}

/// A membership. It ends with [`leave`](Self::leave), or with its endpoint; dropping the handle
/// ends nothing, so that a program which only receives need not keep it.
///
/// It is a [`Group`] to send to as well.
#[derive(Clone, Debug)]
pub struct Member {
    group: Group,
    joined: Joined,
}

/// From where and by which lane something is sent, and where it goes.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) endpoint: Endpoint,
    /// The endpoint's first lane, if none.
    lane: Option<Arc<LaneInner>>,
    pub(crate) target: Target,
}

impl std::ops::Deref for Member {
    type Target = Group;

    fn deref(&self) -> &Group {
        &self.group
    }
}

impl Member {
    pub(crate) fn new(endpoint: Endpoint, target: Arc<GroupTarget>, joined: Joined) -> Self {
        Self { group: Group::new(endpoint, target), joined }
    }

    /// What the join did: the place in the order, whether it created the group, how many members.
    /// Of later joins, after a reconnection, [`Event::Reconnected`](crate::Event::Reconnected) tells.
    #[must_use]
    pub fn joined(&self) -> &Joined {
        &self.joined
    }

    /// In a gated group, where to send private messages for the owner.
    #[must_use]
    pub fn peer(&self) -> Option<RemoteEndpoint> {
        let admission = self.joined.admission.as_ref()?;
        let endpoint = &self.group.route.endpoint;
        let now = endpoint.inner.connection.lock().peer_of(endpoint.inner.key, self.group.name());
        Some(endpoint.endpoint(now.unwrap_or(admission.peer)))
    }

    /// The group as one to send to, without the membership.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Changes what is wanted of the group, or wants everything again: every message of the group
    /// later than the returned place is selected by the new filter. Sends that wait only for this
    /// member, with what it does not want any more, go on. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`FilterChangeError`]; the old filter holds then.
    pub fn set_filter(&self, filter: Option<Filter>) -> Result<Sequence, FilterChangeError> {
        let inner = &self.group.route.endpoint.inner;
        let what = Possession::Member(self.group.name().clone());
        let group_id = inner.connection.lock().group_of(inner.key, &what);
        let group_id = group_id.unwrap_or(self.joined.group_id);
        let request = Request::SetFilter { group_id, filter };
        inner
            .connection
            .call(inner.key, Purpose::Plain, request, |response| match response {
                Response::FilterSet { sequence } => Some(sequence),
                _ => None,
            })
            .map_err(|error| FilterChangeError::from_call(error, self.group.name()))
    }

    /// Leaves the group. Nothing later than the returned place arrives; what came earlier may
    /// still be in the queue. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// Not a member any more, or the connection has ended.
    pub fn leave(&self) -> Result<Sequence, LeaveError> {
        let inner = &self.group.route.endpoint.inner;
        let group_id = inner.connection.lock().leaving(inner.key, self.group.name());
        let group_id = group_id.unwrap_or(self.joined.group_id);
        let purpose = Purpose::Leave(group_id);
        inner
            .connection
            .call(inner.key, purpose, Request::Leave { group_id }, |response| match response {
                Response::Left { sequence } => Some(sequence),
                _ => None,
            })
            .map_err(|error| LeaveError::from_call(error, self.group.name()))
    }
}

macro_rules! sending {
    ($type:ident) => {
        impl $type {
            /// Sends, and waits until the message has its place in the order: until every
            /// recipient has room. Meanwhile messages that arrive are taken into a bounded
            /// backlog, so that programs that wait for each other go on.
            ///
            /// # Errors
            ///
            /// See [`SendError`]; [`WouldDeadlock`](SendError::WouldDeadlock) when this program
            /// must read first.
            pub fn send(&self, message: impl Into<Outgoing>) -> Result<Receipt, SendError> {
                let new = self.route.prepare(message.into(), Form::Wait, true)?;
                self.route.start(new)?.finish(None)
            }

            /// Sends if every recipient has room now. Blocks for one round trip to the broker,
            /// and while those before it in its lane wait, but never for its own recipients.
            ///
            /// # Errors
            ///
            /// [`WouldBlock`](SendError::WouldBlock) names those without room.
            pub fn try_send(&self, message: impl Into<Outgoing>) -> Result<Receipt, SendError> {
                let new = self.route.prepare(message.into(), Form::TryAlone, true)?;
                self.route.start(new)?.finish(None)
            }

            /// As [`send`](Self::send), but gives up once `timeout` has passed. Then the broker
            /// is asked to cancel, and its word decides: a receipt if the message was faster.
            ///
            /// # Errors
            ///
            /// [`TimedOut`](SendError::TimedOut): it reached nobody.
            pub fn send_deadline(
                &self,
                message: impl Into<Outgoing>,
                timeout: Duration,
            ) -> Result<Receipt, SendError> {
                let deadline = Instant::now().checked_add(timeout);
                let new = self.route.prepare(message.into(), Form::Wait, true)?;
                self.route.start(new)?.finish(deadline)
            }

            /// Sends without waiting for the receipt. Blocks while the lane's window is full
            /// (64 messages or 1 MiB unanswered, unless the broker says otherwise), and until
            /// the message has left.
            ///
            /// Messages of one lane keep their order. The message is written at once, unless a
            /// [`Cork`](crate::Cork) is held. If it may need room in the sender's own queue (the
            /// sender is a member with loopback), the next message of the lane leaves only after
            /// its answer.
            ///
            /// # Errors
            ///
            /// What is found before the message leaves; the rest is in the receipt.
            pub fn start_send(
                &self,
                message: impl Into<Outgoing>,
            ) -> Result<PendingSend, SendError> {
                let new = self.route.prepare(message.into(), Form::Wait, false)?;
                self.route.depart(new)
            }

            /// As [`start_send`](Self::start_send), but the broker refuses the message if a
            /// recipient has no room. After that it refuses what the lane has behind it, unless
            /// that was marked [`independent`](Outgoing::independent), until
            /// [`resume`](Self::resume).
            ///
            /// # Errors
            ///
            /// What is found before the message leaves; the rest is in the receipt.
            pub fn start_try_send(
                &self,
                message: impl Into<Outgoing>,
            ) -> Result<PendingSend, SendError> {
                let new = self.route.prepare(message.into(), Form::TryPipelined, false)?;
                self.route.depart(new)
            }

            /// Lets the lane take messages again after one of
            /// [`start_try_send`](Self::start_try_send) was refused.
            pub fn resume(&self) {
                let inner = &self.route.endpoint.inner;
                inner.connection.lock().resume(inner.key, self.route.lane());
            }

            /// Sends, as a future. It enters its lane when it is first polled; dropping it before
            /// it is done cancels it if it still waits. It fails with
            /// [`WouldDeadlock`](SendError::WouldDeadlock) only in the task that receives as well.
            ///
            /// See [`Endpoint::receive_async`] for who drives it.
            pub fn send_async(&self, message: impl Into<Outgoing>) -> SendFuture {
                let new = self.route.prepare(message.into(), Form::Wait, true);
                SendFuture::new(self.route.endpoint.clone(), new)
            }

            /// Asks to be told when a send there would not block (G6). One answer for each
            /// watch. Blocks for nothing.
            pub fn watch_writable(&self) -> Writable {
                Writable::new(self.route.clone(), Outgoing::bytes([]))
            }

            /// As [`watch_writable`](Self::watch_writable), for a message with the key, operation
            /// and fields of this one: members whose filters reject it do not matter. Its payload
            /// is not looked at, and a filter that is a program is taken to accept it.
            pub fn watch_writable_for(&self, message: impl Into<Outgoing>) -> Writable {
                Writable::new(self.route.clone(), message.into())
            }

            /// The same destination, sending through another lane.
            ///
            /// # Panics
            ///
            /// If `lane` belongs to another endpoint.
            #[must_use]
            pub fn on_lane(&self, lane: &Lane) -> Self {
                let mut other = self.clone();
                other.route.set_lane(lane);
                other
            }
        }
    };
}

pub(crate) use sending;

sending!(Group);
sending!(RemoteEndpoint);

impl Group {
    pub(crate) fn new(endpoint: Endpoint, target: Arc<GroupTarget>) -> Self {
        Self {
            route: Route { endpoint, lane: None, target: Target::Group(Arc::clone(&target)) },
            target,
        }
    }

    /// The group's name.
    #[must_use]
    pub fn name(&self) -> &GroupName {
        self.target.name()
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.route.endpoint
    }

    /// The group's id, if it was needed so far.
    #[must_use]
    pub fn id(&self) -> Option<GroupId> {
        self.target.id()
    }
}

impl RemoteEndpoint {
    pub(crate) fn new(endpoint: Endpoint, id: EndpointId) -> Self {
        Self { route: Route { endpoint, lane: None, target: Target::Endpoint(id) } }
    }

    /// The endpoint's id.
    #[must_use]
    pub fn id(&self) -> EndpointId {
        match &self.route.target {
            Target::Endpoint(id) => *id,
            _ => unreachable!("it is made with an endpoint"),
        }
    }

    /// Asks, and waits for the reply. Blocks until the outcome is there: at the latest at the
    /// deadline, which is the bus's default unless [`Outgoing::timeout`] says otherwise. Meanwhile
    /// messages that arrive are taken into a bounded backlog, as for a send.
    ///
    /// The reply does not come out of [`Endpoint::receive`]. It has its place in the order all the
    /// same: its [`sequence`](Message::sequence) says which received messages stand before it, and
    /// those that are received later may.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn call(&self, message: impl Into<Outgoing>) -> Result<Message, CallError> {
        self.route.call(message.into())
    }

    /// Asks, and waits only until the request has left. An endpoint may have 64 calls without an
    /// outcome, unless the broker says otherwise.
    ///
    /// # Errors
    ///
    /// What is found before it leaves; the rest is the outcome of the pending call.
    pub fn start_call(&self, message: impl Into<Outgoing>) -> Result<PendingCall, CallError> {
        self.route.start_call(message.into())
    }

    /// Asks, as a future. The request leaves when it is first polled; dropping the future cancels
    /// the call.
    ///
    /// See [`Endpoint::receive_async`] for who drives it.
    pub fn call_async(&self, message: impl Into<Outgoing>) -> CallFuture {
        self.route.call_async(message.into())
    }
}

impl Route {
    pub(crate) fn new(endpoint: Endpoint, target: Target) -> Self {
        Self { endpoint, lane: None, target }
    }

    pub(crate) fn lane_handle(&self) -> Option<Arc<LaneInner>> {
        self.lane.clone()
    }

    /// A request, ready to be sent.
    pub(crate) fn prepare_call(&self, message: Outgoing) -> Result<Box<NewSend>, SendError> {
        let (repeatable, timeout) = (message.repeatable, message.timeout);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let deadline = timeout.map_or(0, |timeout| {
            u64::try_from(now.saturating_add(timeout).as_nanos()).unwrap_or(u64::MAX)
        });
        // A request's receipt is not told, so it could say no number.
        let message = match message.given {
            Some(Given::Buffer(buffer)) => {
                Outgoing { payload: buffer.to_vec().into(), given: None, ..message }
            }
            _ => message,
        };
        let mut new = self.prepare(Outgoing { zerocopy: false, ..message }, Form::Wait, true)?;
        // The receipt comes with the outcome, if nothing else is told before.
        (new.ask, new.unhurried) = (Ask::Reply { repeatable, deadline }, true);
        Ok(new)
    }

    pub(crate) fn lane(&self) -> LaneNumber {
        self.lane.as_ref().map_or(LaneNumber::FIRST, |lane| lane.number)
    }

    pub(crate) fn set_lane(&mut self, lane: &Lane) {
        assert!(
            Arc::ptr_eq(&lane.inner.endpoint, &self.endpoint.inner),
            "a lane belongs to one endpoint, and cannot carry what another one sends"
        );
        self.lane = Some(Arc::clone(&lane.inner));
    }

    /// Checks a message against the bounds of the bus.
    pub(crate) fn prepare(
        &self,
        mut message: Outgoing,
        form: Form,
        retry_stale: bool,
    ) -> Result<Box<NewSend>, SendError> {
        let connection = &self.endpoint.inner.connection;
        let limits = connection.limits();
        let (bytes, limit) = (message.payload.len() as u64, limits.payload_bytes.into());
        if bytes > limit {
            return Err(SendError::TooLarge { bytes, limit });
        }
        let (given, limit) = (message.descriptors.len(), limits.descriptors.into());
        if given > limit {
            return Err(SendError::TooManyDescriptors { given, limit });
        }
        let (payload, flagged) = choose(
            connection,
            std::mem::take(&mut message.payload),
            message.given.take(),
            message.zerocopy,
            message.way,
        )?;
        Ok(Box::new(NewSend {
            endpoint: self.endpoint.inner.key,
            lane: self.lane(),
            target: self.target.clone(),
            attributes: message.attributes(connection.plain_attributes())?,
            payload,
            flagged,
            descriptors: (given > 0).then(|| message.descriptors.into()),
            form,
            independent: message.independent,
            retry_stale,
            // What is not sent again by itself is pipelined: others follow before its answer.
            unhurried: !retry_stale,
            ask: if message.refusal { Ask::Refusal } else { Ask::Nothing },
        }))
    }

    /// Puts a message into its lane.
    pub(crate) fn start(&self, new: Box<NewSend>) -> Result<PendingSend, SendError> {
        let serial = self.endpoint.inner.connection.lock().send(new)?;
        Ok(PendingSend::new(self.endpoint.clone(), self.lane.clone(), serial))
    }

    /// The same, and waits until it has left. Nearly every one leaves at once.
    pub(crate) fn depart(&self, new: Box<NewSend>) -> Result<PendingSend, SendError> {
        let mut state = self.endpoint.inner.connection.lock();
        let serial = state.send(new)?;
        let has_left = state.departure_of(serial)?;
        drop(state);
        let pending = PendingSend::new(self.endpoint.clone(), self.lane.clone(), serial);
        if has_left { Ok(pending) } else { pending.departed() }
    }
}
