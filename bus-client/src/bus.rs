//! A connection and the endpoints on it.

use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bus_core::wire::{LaneNumber, Request, Response, Serial};
use bus_core::{EndpointId, GroupName, Limits, NameError, Retain, Sequence};

use crate::builder::Builder;
use crate::connection::Connection;
use crate::drive::Drive;
use crate::error::{
    BrokerGone, ConnectError, CreateError, JoinError, OpenError, QueryError, ReceiveError,
    WatchError,
};
use crate::gated::{Candidacy, Gate, joined};
use crate::group::{Group, GroupOptions, JoinOptions, Member, RemoteEndpoint};
use crate::info::{GroupInfo, Members, Reloaded, RoundTrip, Stats, Status};
use crate::message::Event;
use crate::request::Asked;
use crate::state::{AskedState, CallError, GroupTarget, Interest, Purpose, State};
use crate::views::{MembersWatch, WatchOptions};
use crate::waits::Wake;

/// A connection to a broker, and the first endpoint on it: what [`Endpoint`] can do, a bus can.
///
/// Cheap to clone; the connection ends when the last handle made from it is gone. Whoever waits in
/// any call does the connection's work for all, so there is no thread in the background.
///
/// A connection does not survive `fork`: in the child every operation fails with
/// [`GoneReason::Forked`](crate::GoneReason::Forked), and the parent's connection is left alone.
/// A child that was forked while another thread was inside the library may find its lock taken for
/// ever, so a program with threads should `exec`.
///
/// ```no_run
/// use bus_client::{Bus, Event};
///
/// let bus = Bus::connect()?;
/// let chat = bus.join("org.example.Chat")?;
/// chat.send("hello")?;
/// for event in bus.events() {
///     if let Event::Message(message) = event? {
///         println!("{}: {}", message.sender(), message.text().unwrap_or("(no text)"));
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Bus {
    endpoint: Endpoint,
}

impl std::ops::Deref for Bus {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Bus {
    /// Connects to the broker at `UNISONO_ADDRESS`, or else `$XDG_RUNTIME_DIR/unisono/bus`.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`]; without both variables [`ConnectError::NoAddress`].
    pub fn connect() -> Result<Self, ConnectError> {
        Self::builder().connect()
    }

    /// Settings for a connection: address, program name, backlog.
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn new(connection: Connection) -> Self {
        let connection = Arc::new(connection);
        connection.lock().set_connection(Arc::downgrade(&connection));
        Self { endpoint: Endpoint { inner: Arc::new(EndpointInner { connection, key: 0 }) } }
    }

    /// The bus's incarnation: ids and sequences of another one mean nothing here.
    #[must_use]
    pub fn incarnation(&self) -> [u8; 16] {
        *self.connection().lock().incarnation().as_bytes()
    }

    /// Whether there is a broker at the other end, as far as is known. With
    /// [`Builder::reconnect`] another one may be looked for meanwhile.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection().lock().lost().is_none()
    }

    /// Waits at most `timeout` until there is a broker; tells whether there is. Does the
    /// connection's work meanwhile.
    ///
    /// # Errors
    ///
    /// The connection has ended, and does not come back.
    pub fn wait_connected(&self, timeout: Duration) -> Result<bool, BrokerGone> {
        let deadline = Instant::now().checked_add(timeout);
        let there = self.connection().wait(Interest::Anything, None, deadline, |state| {
            match (state.gone(), state.lost()) {
                (Some(gone), _) => Some(Err(gone.clone())),
                (None, Some(_)) => None,
                (None, None) => Some(Ok(true)),
            }
        });
        there.unwrap_or(Ok(false))
    }

    /// The bus's bounds, as the broker told them; with [`Builder::reconnect`], the first broker.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        self.connection().limits()
    }

    /// Opens another endpoint on the same connection, with an id and a queue of its own. Blocks
    /// for one round trip.
    ///
    /// # Errors
    ///
    /// A bound is reached, or the connection has ended.
    pub fn open_endpoint(&self) -> Result<Endpoint, OpenError> {
        let connection = self.connection();
        let (key, serial) = connection.lock().open_endpoint()?;
        connection.finish_call(serial, |response| {
            matches!(response, Response::Opened { .. }).then_some(())
        })?;
        Ok(Endpoint { inner: Arc::new(EndpointInner { connection: Arc::clone(connection), key }) })
    }

    /// Says goodbye and ends the connection, for every handle made from it. What was queued here
    /// can still be received; sends in flight are [`Unknown`](crate::SendError::Unknown).
    pub fn close(&self) {
        self.connection().lock().close();
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.inner.connection
    }
}

/// An identity on the bus with one queue: it joins groups, sends and receives.
///
/// Cheap to clone, and each method may be called from any thread. It is closed when the last
/// handle made from it (groups, members, lanes, pending sends) is gone.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub(crate) inner: Arc<EndpointInner>,
}

/// An endpoint that is open. Dropping the last reference closes it.
#[derive(Debug)]
pub(crate) struct EndpointInner {
    pub(crate) connection: Arc<Connection>,
    pub(crate) key: usize,
}

impl Drop for EndpointInner {
    fn drop(&mut self) {
        // With the last endpoint the connection ends, and there is nothing to be said before.
        if Arc::strong_count(&self.connection) > 1 {
            self.connection.lock().close_endpoint(self.key);
        }
    }
}

impl Endpoint {
    /// This endpoint's id. After a reconnection it is another one.
    #[must_use]
    pub fn endpoint_id(&self) -> EndpointId {
        self.inner.connection.lock().endpoint_id(self.inner.key)
    }

    /// Joins a group, and creates it if it does not exist. Blocks for one round trip; if the group
    /// is gated, until its owner has decided.
    ///
    /// # Errors
    ///
    /// See [`JoinError`].
    pub fn join(&self, group: &str) -> Result<Member, JoinError> {
        self.join_with(group, JoinOptions::new())
    }

    /// Joins a group with options. Blocks for one round trip; if the group is gated, until its owner
    /// has decided.
    ///
    /// # Errors
    ///
    /// See [`JoinError`].
    pub fn join_with(&self, group: &str, options: JoinOptions) -> Result<Member, JoinError> {
        let name: GroupName = group.parse()?;
        let connection = &self.inner.connection;
        let (serial, target) = self.start_join(&name, options)?;
        let joined = connection
            .finish_call(serial, joined)
            .map_err(|error| JoinError::from_call(error, &name))?;
        Ok(Member::new(self.clone(), target, joined))
    }

    /// Joins a group, as a future. If it is dropped before it is done, the endpoint leaves again.
    ///
    /// See [`receive_async`](Self::receive_async) for who drives it.
    pub fn join_async(&self, group: &str, options: JoinOptions) -> JoinFuture {
        let stage = match group.parse() {
            Ok(name) => JoinStage::Ready(name, options),
            Err(error) => JoinStage::Failed(error),
        };
        JoinFuture { endpoint: self.clone(), stage, drive: Drive::default() }
    }

    pub(crate) fn start_join(
        &self,
        name: &GroupName,
        options: JoinOptions,
    ) -> Result<(Serial, Arc<GroupTarget>), JoinError> {
        let flags = options.flags();
        let mut state = self.inner.connection.lock();
        let group = state.group(name);
        let JoinOptions { create, filter, retain, state: with_state, .. } = options;
        let request =
            Request::Join { group: name.clone(), flags, create, filter, retain, state: with_state };
        let purpose = Purpose::Join(Arc::clone(&group));
        let serial = state
            .call(self.inner.key, purpose, request)
            .map_err(|error| JoinError::from_call(error, name))?;
        Ok((serial, group))
    }

    /// Watches who joins and leaves a group: each later change comes as
    /// [`Event::View`], at its place among the messages. Creates the group if it does not exist.
    /// Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`WatchError`](crate::WatchError).
    pub fn watch_members(&self, group: &str) -> Result<MembersWatch, WatchError> {
        self.watch_members_with(group, WatchOptions::new())
    }

    /// Watches a group's membership with options. Watching it again changes them. Blocks for one
    /// round trip.
    ///
    /// # Errors
    ///
    /// See [`WatchError`](crate::WatchError).
    pub fn watch_members_with(
        &self,
        group: &str,
        options: WatchOptions,
    ) -> Result<MembersWatch, WatchError> {
        MembersWatch::begin(self, group, options)
    }

    /// Creates a group without joining it. It lives while this endpoint does or it has a member.
    /// Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create(&self, group: &str) -> Result<Group, CreateError> {
        self.create_with(group, GroupOptions::new())
    }

    /// As [`create`](Self::create), of a group that retains messages for those who join later
    /// [with its state](JoinOptions::with_state).
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create_retaining(&self, group: &str, retain: Retain) -> Result<Group, CreateError> {
        self.create_with(group, GroupOptions::new().retain(retain))
    }

    /// As [`create`](Self::create), of a group that differs in some way.
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create_with(&self, group: &str, options: GroupOptions) -> Result<Group, CreateError> {
        let name: GroupName = group.parse()?;
        let connection = &self.inner.connection;
        let target = connection.lock().group(&name);
        let purpose = Purpose::Create(Arc::clone(&target));
        let (retain, stall_ms) = (options.retain, options.stall_ms());
        let request = Request::Create { group: name.clone(), retain, stall_ms };
        connection
            .call(self.inner.key, purpose, request, |response| {
                matches!(response, Response::Created { .. }).then_some(())
            })
            .map_err(|error| CreateError::from_call(error, &name))?;
        Ok(Group::new(self.clone(), target))
    }

    /// Creates a gated group, whose owner this endpoint is: each candidate comes as
    /// [`Event::Candidate`], and [`Gate::admit`] makes it a member. The owner is no member itself.
    /// Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create_gated(&self, group: &str) -> Result<Gate, CreateError> {
        Gate::create(self, group, GroupOptions::new())
    }

    /// As [`create_gated`](Self::create_gated), of a group that differs in some way. A gated group
    /// retains nothing.
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create_gated_with(
        &self,
        group: &str,
        options: GroupOptions,
    ) -> Result<Gate, CreateError> {
        Gate::create(self, group, options)
    }

    /// Connects to the owner of a gated group and asks to be admitted; `options` are wishes that
    /// the owner is shown. [`join`](Self::join) does this too and waits for the decision; this is
    /// for who wants to send the owner private messages before. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`JoinError`].
    pub fn connect_to(&self, group: &str, options: JoinOptions) -> Result<Candidacy, JoinError> {
        Candidacy::begin(self, group, options)
    }

    /// A handle to send to a group. Nothing is asked of the broker yet.
    ///
    /// # Errors
    ///
    /// The name breaks the rules for names.
    pub fn group(&self, name: &str) -> Result<Group, NameError> {
        let target = self.inner.connection.lock().group(&name.parse()?);
        Ok(Group::new(self.clone(), target))
    }

    /// A handle to send to one endpoint directly. Nothing is asked of the broker yet.
    #[must_use]
    pub fn endpoint(&self, id: EndpointId) -> RemoteEndpoint {
        RemoteEndpoint::new(self.clone(), id)
    }

    /// Another line of sends of this endpoint, for a thread of its own: what waits in one lane
    /// does not hold back the others. Use it with [`Group::on_lane`].
    ///
    /// # Errors
    ///
    /// The endpoint has all its lanes (16, unless the broker says otherwise), or a lane that was
    /// given up still has sends under way.
    pub fn lane(&self) -> Result<Lane, OpenError> {
        let connection = &self.inner.connection;
        let number = connection.lock().open_lane(self.inner.key);
        let number = number.ok_or_else(|| {
            OpenError::LimitExceeded(format!(
                "an endpoint has at most {} lanes",
                connection.limits().lanes
            ))
        })?;
        Ok(Lane { inner: Arc::new(LaneInner { endpoint: Arc::clone(&self.inner), number }) })
    }

    /// Waits for the next event.
    ///
    /// # Errors
    ///
    /// The broker is gone and all that had arrived was received.
    pub fn receive(&self) -> Result<Event, ReceiveError> {
        self.receive_until(None)
            .map(|event| event.expect("without a deadline, waiting ends with an event"))
    }

    /// The next event if there is one. Does the I/O that is possible without blocking.
    ///
    /// # Errors
    ///
    /// The broker is gone and all that had arrived was received.
    pub fn try_receive(&self) -> Result<Option<Event>, ReceiveError> {
        let mut state = self.inner.connection.lock();
        if let Some(received) = self.take(&mut state, None) {
            return received.map(Some);
        }
        state.turn();
        self.take(&mut state, None).transpose()
    }

    /// Waits at most `timeout` for the next event; `None` if none came.
    ///
    /// # Errors
    ///
    /// The broker is gone and all that had arrived was received.
    pub fn receive_deadline(&self, timeout: Duration) -> Result<Option<Event>, ReceiveError> {
        self.receive_until(Instant::now().checked_add(timeout))
    }

    /// Waits for an event, and takes up to `most` of those that have come: appends them to
    /// `events`, in their order, and says how many. Where many small messages arrive, this costs
    /// less than a [`receive`](Self::receive) for each.
    ///
    /// # Errors
    ///
    /// The broker is gone and all that had arrived was received.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let bus = bus_client::Bus::connect()?;
    /// let mut events = Vec::new();
    /// loop {
    ///     bus.receive_batch(&mut events, 256)?;
    ///     for event in events.drain(..) {
    ///         println!("{event:?}");
    ///     }
    /// }
    /// # #[expect(unreachable_code, reason = "the loop has no end")]
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn receive_batch(
        &self,
        events: &mut Vec<Event>,
        most: usize,
    ) -> Result<usize, ReceiveError> {
        let before = events.len();
        let end = before.saturating_add(most.max(1));
        self.inner
            .connection
            .wait(Interest::Inbox(self.inner.key), None, None, |state| {
                let mut owes = false;
                while events.len() < end && state.has_items(self.inner.key) {
                    state.take_plain(self.inner.key, events, end);
                    if events.len() == end || !state.has_items(self.inner.key) {
                        break;
                    }
                    match state.take_owing(self.inner.key, None) {
                        Some(event) => events.push(self.with_origin(state, event)),
                        None => break,
                    }
                    owes = true;
                }
                if owes {
                    // For all at once: a return each time that some is due is a write each time.
                    state.return_some_credit(self.inner.key);
                }
                match events.len() - before {
                    0 => self.ended(state).map(Err),
                    taken => Some(Ok(taken)),
                }
            })
            .expect("without a deadline, waiting ends with an event")
    }

    fn receive_until(&self, deadline: Option<Instant>) -> Result<Option<Event>, ReceiveError> {
        self.inner
            .connection
            .wait(Interest::Inbox(self.inner.key), None, deadline, |state| {
                match state.has_items(self.inner.key) {
                    true => self.take(state, None),
                    false => self.ended(state).map(Err),
                }
            })
            .transpose()
    }

    fn take(&self, state: &mut State, task: Option<&Waker>) -> Option<Result<Event, ReceiveError>> {
        self.take_event(state, task).map(Ok).or_else(|| self.ended(state).map(Err))
    }

    /// Why there will be no event any more, if there will be none.
    fn ended(&self, state: &State) -> Option<ReceiveError> {
        let ended = state.has_received_all(self.inner.key).then_some(ReceiveError::Ended);
        ended.or_else(|| gone(state))
    }

    /// The next event that has come. A request knows from where it is answered.
    fn take_event(&self, state: &mut State, task: Option<&Waker>) -> Option<Event> {
        let event = state.take_event(self.inner.key, task)?;
        Some(self.with_origin(state, event))
    }

    /// A request is told from where it is answered.
    fn with_origin(&self, state: &mut State, mut event: Event) -> Event {
        if let Event::Message(message) = &mut event
            && message.is_request()
        {
            let request = message.sequence();
            let asked = match message.is_orphan() {
                true => Arc::new(AskedState::lost()),
                false => state.asked_state(self.inner.key, request),
            };
            message.set_asked(Asked::new(self.clone(), request, asked));
        }
        event
    }

    /// The next event, as a future. Dropping it loses no event.
    ///
    /// Inside a tokio runtime, with the feature `tokio`, it drives the connection itself.
    /// Elsewhere it needs somebody who calls [`dispatch`](Self::dispatch), or a thread that waits
    /// in any blocking call of this connection; its waker is called from there.
    pub fn receive_async(&self) -> ReceiveFuture {
        ReceiveFuture { endpoint: self.clone(), drive: Drive::default() }
    }

    /// All events, as they come, until the broker is gone or this endpoint has received all that
    /// came before it [stopped receiving](Self::shutdown_receive). Each step blocks as
    /// [`receive`](Self::receive) does.
    #[must_use]
    pub fn events(&self) -> Events {
        Events { endpoint: self.clone(), ended: false }
    }

    /// Leaves all groups and takes no more messages: what is sent here fails with `EPIPE`. What
    /// was queued stays readable, and this endpoint may still send. Nothing later than the
    /// returned place arrives. Blocks for one round trip.
    ///
    /// A [`receive`](Self::receive) that finds nothing any more ends with
    /// [`ReceiveError::Ended`]. Calls of this endpoint that have no outcome by then have
    /// [`CallError::Gone`](crate::CallError::Gone).
    ///
    /// # Errors
    ///
    /// The connection has ended.
    pub fn shutdown_receive(&self) -> Result<Sequence, QueryError> {
        self.ask(Request::ShutdownReceive, |response| match response {
            Response::Shut { sequence } => Some(sequence),
            _ => None,
        })
    }

    /// All groups, by name. Blocks until they are here; [`list_groups`](Self::list_groups) gives
    /// them as they come.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn groups(&self) -> Result<Vec<GroupInfo>, QueryError> {
        self.list_groups()?.collect()
    }

    /// Looks a group up; `None` if there is no such group. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn find_group(&self, group: &str) -> Result<Option<GroupInfo>, QueryError> {
        match self.look_up(&group.parse()?) {
            Ok(info) => Ok(Some(info)),
            Err(QueryError::NoSuchGroup(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn look_up(&self, name: &GroupName) -> Result<GroupInfo, QueryError> {
        let request = Request::FindGroup { group: name.clone() };
        let found =
            self.inner.connection.call(self.inner.key, Purpose::Plain, request, |response| {
                match response {
                    Response::Group(info) => Some(GroupInfo::from(info)),
                    _ => None,
                }
            });
        found.map_err(|error| QueryError::from_call(error, Some(name)))
    }

    /// The members of a group at one place in the order. Blocks until they are here;
    /// [`list_members`](Self::list_members) gives them as they come.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn members(&self, group: &str) -> Result<Members, QueryError> {
        let listing = self.list_members(group)?;
        let sequence = listing.sequence();
        Ok(Members { sequence, members: listing.collect::<Result<_, _>>()? })
    }

    /// The bus's live counters. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn stats(&self) -> Result<Stats, QueryError> {
        self.ask(Request::Stats, |response| match response {
            Response::Stats(stats) => Some(Stats::from(*stats)),
            _ => None,
        })
    }

    /// What the broker is and how it is set. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn status(&self) -> Result<Status, QueryError> {
        self.ask(Request::Status, |response| match response {
            Response::Status(status) => Some(Status::from(*status)),
            _ => None,
        })
    }

    /// Has the broker read the rules of its policy again, and the limits of users, and says how
    /// many rules there are and what else has changed that is not in force. Only the user whose bus
    /// it is may ask. Connections that have what the new rules forbid are ended.
    /// Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`QueryError`]; with a mistake in a file the old rules stay, and the text says where it
    /// is.
    pub fn reload(&self) -> Result<Reloaded, QueryError> {
        self.ask(Request::Reload, |response| match response {
            Response::Reloaded { rules, pending } => Some(Reloaded { rules, pending }),
            _ => None,
        })
    }

    /// Asks the broker for a sign of life, and says how long it took.
    ///
    /// # Errors
    ///
    /// The connection has ended.
    pub fn ping(&self) -> Result<RoundTrip, QueryError> {
        let start = Instant::now();
        self.ask(Request::Ping, |response| matches!(response, Response::Pong).then_some(()))?;
        Ok(start.elapsed())
    }

    pub(crate) fn ask<T>(
        &self,
        request: Request,
        pick: impl FnOnce(Response) -> Option<T>,
    ) -> Result<T, QueryError> {
        self.inner
            .connection
            .call(self.inner.key, Purpose::Plain, request, pick)
            .map_err(|error| QueryError::from_call(error, None))
    }

    /// Does all the I/O that is possible without blocking, and wakes futures and threads that
    /// got what they wait for. For main loops: call it when the descriptor ([`AsFd`]) is readable,
    /// then [`try_receive`](Self::try_receive) until it gives `None`.
    ///
    /// # Errors
    ///
    /// The connection has ended. What had arrived can still be received.
    pub fn dispatch(&self) -> Result<(), BrokerGone> {
        let mut state = self.inner.connection.lock();
        state.dispatch();
        alive(&state)
    }

    /// As [`dispatch`](Self::dispatch), but waits at most `timeout` for something to do.
    ///
    /// # Errors
    ///
    /// The connection has ended. What had arrived can still be received.
    pub fn dispatch_timeout(&self, timeout: Duration) -> Result<(), BrokerGone> {
        let deadline = Instant::now().checked_add(timeout);
        let connection = &self.inner.connection;
        let before = {
            let mut state = connection.lock();
            let before = state.arrivals();
            state.dispatch();
            before
        };
        connection.wait(Interest::Anything, None, deadline, |state| {
            (state.arrivals() != before || state.gone().is_some()).then_some(())
        });
        alive(&connection.lock())
    }

    /// Holds back the writing of sends until the guard is dropped, 64 KiB have come together, or
    /// somebody waits: many small sends then leave in one system call.
    ///
    /// ```no_run
    /// # let bus = bus_client::Bus::connect()?;
    /// let group = bus.group("org.example.Log")?;
    /// let cork = bus.cork();
    /// let pending = ["one", "two", "three"].map(|line| group.start_send(line));
    /// drop(cork);
    /// for send in pending {
    ///     send?.wait()?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cork(&self) -> Cork {
        self.inner.connection.lock().cork();
        Cork { connection: Arc::clone(&self.inner.connection) }
    }
}

fn gone(state: &State) -> Option<ReceiveError> {
    state.gone().map(|gone| ReceiveError::BrokerGone(gone.clone()))
}

fn alive(state: &State) -> Result<(), BrokerGone> {
    state.gone().map_or(Ok(()), |gone| Err(gone.clone()))
}

/// One descriptor for any main loop: poll it for reading only. It is readable when
/// [`Endpoint::dispatch`] has something to do (output included), or an event of an endpoint whose
/// descriptor was asked for waits to be received. It is the same for all endpoints of a connection.
impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.connection.lock().set_polled(self.inner.key);
        self.inner.connection.pollable()
    }
}

impl AsFd for Bus {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.endpoint.as_fd()
    }
}

/// A line of sends of one endpoint; see [`Endpoint::lane`]. Cheap to clone; its number is free
/// again when the last handle is gone, destinations on it included.
#[derive(Clone, Debug)]
pub struct Lane {
    pub(crate) inner: Arc<LaneInner>,
}

/// A lane that is taken. Dropping the last reference frees it.
#[derive(Debug)]
pub(crate) struct LaneInner {
    pub(crate) endpoint: Arc<EndpointInner>,
    pub(crate) number: LaneNumber,
}

impl Drop for LaneInner {
    fn drop(&mut self) {
        let mut state = self.endpoint.connection.lock();
        state.close_lane(self.endpoint.key, self.number);
    }
}

/// Holds back writing; see [`Endpoint::cork`].
#[derive(Debug)]
#[must_use = "writing is held back only while the guard lives"]
pub struct Cork {
    connection: Arc<Connection>,
}

impl Drop for Cork {
    fn drop(&mut self) {
        self.connection.lock().uncork();
    }
}

/// The next event; see [`Endpoint::receive_async`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct ReceiveFuture {
    endpoint: Endpoint,
    drive: Drive,
}

impl Future for ReceiveFuture {
    type Output = Result<Event, ReceiveError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { endpoint, drive } = self.get_mut();
        let connection = &endpoint.inner.connection;
        drive.poll(connection, cx, |cx| {
            let mut state = connection.lock();
            if let Some(received) = endpoint.take(&mut state, Some(cx.waker())) {
                return Poll::Ready(received);
            }
            let wake = Wake::Task(cx.waker().clone());
            state.set_wake(Interest::Inbox(endpoint.inner.key), wake);
            state.before_sleep();
            Poll::Pending
        })
    }
}

/// A join; see [`Endpoint::join_async`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct JoinFuture {
    endpoint: Endpoint,
    stage: JoinStage,
    drive: Drive,
}

#[derive(Debug)]
enum JoinStage {
    Ready(GroupName, JoinOptions),
    Asked(GroupName, Arc<GroupTarget>, Serial),
    Failed(NameError),
    Done,
}

impl Future for JoinFuture {
    type Output = Result<Member, JoinError>;

    /// # Panics
    ///
    /// If it is polled again after it was ready.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { endpoint, stage, drive } = self.get_mut();
        match std::mem::replace(stage, JoinStage::Done) {
            JoinStage::Failed(error) => return Poll::Ready(Err(error.into())),
            JoinStage::Done => panic!("a join was polled after it was ready"),
            JoinStage::Ready(name, options) => match endpoint.start_join(&name, options) {
                Ok((serial, target)) => *stage = JoinStage::Asked(name, target, serial),
                Err(error) => return Poll::Ready(Err(error)),
            },
            asked @ JoinStage::Asked(..) => *stage = asked,
        }
        let JoinStage::Asked(name, target, serial) = &*stage else {
            unreachable!("all other stages were left above");
        };
        let connection = &endpoint.inner.connection;
        let answer = drive.poll(connection, cx, |cx| poll_response(connection, *serial, cx));
        let Poll::Ready(answer) = answer else {
            return Poll::Pending;
        };
        let outcome = answer
            .and_then(|response| connection.pick(response, joined))
            .map(|joined| Member::new(endpoint.clone(), Arc::clone(target), joined))
            .map_err(|error| JoinError::from_call(error, name));
        *stage = JoinStage::Done;
        Poll::Ready(outcome)
    }
}

fn poll_response(
    connection: &Connection,
    serial: Serial,
    cx: &mut Context<'_>,
) -> Poll<Result<Response, CallError>> {
    let mut state = connection.lock();
    state.before_sleep();
    if let Some(answer) = state.take_response(serial) {
        return Poll::Ready(answer);
    }
    state.set_wake(Interest::Answer(serial), Wake::Task(cx.waker().clone()));
    Poll::Pending
}

impl Drop for JoinFuture {
    fn drop(&mut self) {
        if let JoinStage::Asked(_, _, serial) = self.stage {
            self.endpoint.inner.connection.lock().abandon_join(serial);
        }
    }
}

/// Iterator over events; see [`Endpoint::events`]. After an error it ends.
#[derive(Debug)]
pub struct Events {
    endpoint: Endpoint,
    ended: bool,
}

impl Iterator for Events {
    type Item = Result<Event, ReceiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let event = self.endpoint.receive();
        self.ended = event.is_err();
        if let Err(ReceiveError::Ended) = event {
            return None;
        }
        Some(event)
    }
}
