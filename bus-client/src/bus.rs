//! A connection and the endpoints on it.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bus_core::{EndpointId, GroupId, Limits, NameError, Sequence};

use crate::builder::Builder;
use crate::error::{
    BrokerGone, ConnectError, CreateError, JoinError, OpenError, QueryError, ReceiveError,
};
use crate::group::{Group, JoinOptions, Member, RemoteEndpoint};
use crate::info::{GroupInfo, Members, RoundTrip, Stats, Status};
use crate::message::Event;

/// A connection to a broker, and the first endpoint on it: what [`Endpoint`] can do, a bus can.
///
/// Cheap to clone; the connection ends when the last handle made from it is gone.
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
    #[must_use]
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Starts a broker in a thread of this process and connects to it. The broker ends with the
    /// last handle of this bus. To let others in, see [`EmbeddedBroker`](crate::EmbeddedBroker).
    ///
    /// # Errors
    ///
    /// No descriptor or no thread was to be had.
    #[cfg(feature = "embedded")]
    pub fn embedded() -> Result<Self, ConnectError> {
        unimplemented!()
    }

    /// The bus's incarnation: ids and sequences of another one mean nothing here.
    #[must_use]
    pub fn incarnation(&self) -> [u8; 16] {
        unimplemented!()
    }

    /// The bus's bounds, as the broker told them.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        unimplemented!()
    }

    /// Opens another endpoint on the same connection, with an id and a queue of its own.
    ///
    /// # Errors
    ///
    /// A bound is reached, or the connection has ended.
    pub fn open_endpoint(&self) -> Result<Endpoint, OpenError> {
        unimplemented!()
    }

    /// Says goodbye and ends the connection, for every handle made from it. What was queued here
    /// can still be received; sends in flight are [`Unknown`](crate::SendError::Unknown).
    pub fn close(&self) {
        unimplemented!()
    }
}

/// An identity on the bus with one queue: it joins groups, sends and receives.
///
/// Cheap to clone, and each method may be called from any thread. It is closed when the last
/// handle made from it (groups, members, lanes, pending sends) is gone.
#[derive(Clone, Debug)]
pub struct Endpoint {}

impl Endpoint {
    /// This endpoint's id.
    #[must_use]
    pub fn endpoint_id(&self) -> EndpointId {
        unimplemented!()
    }

    /// Joins a group, and creates it if it does not exist. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`JoinError`].
    pub fn join(&self, group: &str) -> Result<Member, JoinError> {
        self.join_with(group, JoinOptions::new())
    }

    /// Joins a group with options. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`JoinError`].
    pub fn join_with(&self, group: &str, options: JoinOptions) -> Result<Member, JoinError> {
        let _ = (group, options);
        unimplemented!()
    }

    /// Joins a group, as a future.
    pub fn join_async(&self, group: &str, options: JoinOptions) -> JoinFuture {
        let _ = (group, options);
        unimplemented!()
    }

    /// Creates a group without joining it. It lives while this endpoint does or it has a member.
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create(&self, group: &str) -> Result<Group, CreateError> {
        let _ = group;
        unimplemented!()
    }

    /// A handle to send to a group. Nothing is asked of the broker yet.
    ///
    /// # Errors
    ///
    /// The name breaks the rules for names.
    pub fn group(&self, name: &str) -> Result<Group, NameError> {
        let _ = name;
        unimplemented!()
    }

    /// A handle to send to one endpoint directly.
    #[must_use]
    pub fn endpoint(&self, id: EndpointId) -> RemoteEndpoint {
        let _ = id;
        unimplemented!()
    }

    /// Another line of sends of this endpoint, for a thread of its own: what waits in one lane
    /// does not hold back the others. Use it with [`Group::on_lane`].
    ///
    /// # Errors
    ///
    /// The endpoint has all its lanes (16, unless the broker says otherwise).
    pub fn lane(&self) -> Result<Lane, OpenError> {
        unimplemented!()
    }

    /// Waits for the next event.
    ///
    /// # Errors
    ///
    /// The broker is gone and all that had arrived was received.
    pub fn receive(&self) -> Result<Event, ReceiveError> {
        unimplemented!()
    }

    /// The next event if there is one. Does the I/O that is possible without blocking.
    ///
    /// # Errors
    ///
    /// The broker is gone and all that had arrived was received.
    pub fn try_receive(&self) -> Result<Option<Event>, ReceiveError> {
        unimplemented!()
    }

    /// Waits at most `timeout` for the next event; `None` if none came.
    ///
    /// # Errors
    ///
    /// The broker is gone and all that had arrived was received.
    pub fn receive_deadline(&self, timeout: Duration) -> Result<Option<Event>, ReceiveError> {
        let _ = timeout;
        unimplemented!()
    }

    /// The next event, as a future.
    ///
    /// Without the feature `tokio` the future needs somebody who calls
    /// [`dispatch`](Self::dispatch), or a thread that waits in any blocking call of this
    /// connection. Dropping it loses no event.
    pub fn receive_async(&self) -> ReceiveFuture {
        unimplemented!()
    }

    /// All events, as they come, until the broker is gone. Each step blocks as
    /// [`receive`](Self::receive) does.
    #[must_use]
    pub fn events(&self) -> Events {
        unimplemented!()
    }

    /// Leaves all groups and takes no more messages: what is sent here fails with `EPIPE`. What
    /// was queued stays readable, and this endpoint may still send. Nothing later than the
    /// returned place arrives.
    ///
    /// # Errors
    ///
    /// The connection has ended.
    pub fn shutdown_receive(&self) -> Result<Sequence, QueryError> {
        unimplemented!()
    }

    /// All groups, by name. Long lists take several round trips.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn groups(&self) -> Result<Vec<GroupInfo>, QueryError> {
        unimplemented!()
    }

    /// A group and how many members it has; `None` if there is no such group.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn find_group(&self, group: &str) -> Result<Option<(GroupId, u32)>, QueryError> {
        let _ = group;
        unimplemented!()
    }

    /// The members of a group. Long lists take several round trips.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn members(&self, group: &str) -> Result<Members, QueryError> {
        let _ = group;
        unimplemented!()
    }

    /// The bus's live counters.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn stats(&self) -> Result<Stats, QueryError> {
        unimplemented!()
    }

    /// What the broker is and how it is set.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn status(&self) -> Result<Status, QueryError> {
        unimplemented!()
    }

    /// Asks the broker for a sign of life, and says how long it took.
    ///
    /// # Errors
    ///
    /// The connection has ended.
    pub fn ping(&self) -> Result<RoundTrip, QueryError> {
        unimplemented!()
    }

    /// Does all the I/O that is possible without blocking, and wakes futures and threads that
    /// got what they wait for. For main loops: call it when [`as_fd`](AsFd::as_fd) is readable,
    /// then [`try_receive`](Self::try_receive) until it gives `None`.
    ///
    /// # Errors
    ///
    /// The connection has ended. What had arrived can still be received.
    pub fn dispatch(&self) -> Result<(), BrokerGone> {
        unimplemented!()
    }

    /// As [`dispatch`](Self::dispatch), but waits at most `timeout` for something to do.
    ///
    /// # Errors
    ///
    /// The connection has ended. What had arrived can still be received.
    pub fn dispatch_timeout(&self, timeout: Duration) -> Result<(), BrokerGone> {
        let _ = timeout;
        unimplemented!()
    }

    /// Holds back the writing of sends until the guard is dropped, a good part of a buffer is
    /// full, or somebody waits: many small sends then leave in one system call.
    pub fn cork(&self) -> Cork {
        unimplemented!()
    }

    /// The descriptor for [`AsFd`], with the error that making it may have.
    ///
    /// # Errors
    ///
    /// This process has no descriptor left.
    pub fn pollable(&self) -> io::Result<BorrowedFd<'_>> {
        unimplemented!()
    }
}

/// One descriptor for any main loop: poll it for reading only. It is readable when
/// [`Endpoint::dispatch`] has something to do (output included), or an event waits to be received.
impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }
}

impl AsFd for Bus {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.endpoint.as_fd()
    }
}

/// A line of sends of one endpoint; see [`Endpoint::lane`]. Cheap to clone; its number is free
/// again when the last handle is gone.
#[derive(Clone, Debug)]
pub struct Lane {}

/// Holds back writing; see [`Endpoint::cork`].
#[derive(Debug)]
#[must_use = "writing is held back only while the guard lives"]
pub struct Cork {}

/// The next event; see [`Endpoint::receive_async`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct ReceiveFuture {}

impl Future for ReceiveFuture {
    type Output = Result<Event, ReceiveError>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
}

/// A join; see [`Endpoint::join_async`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct JoinFuture {}

impl Future for JoinFuture {
    type Output = Result<Member, JoinError>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
}

/// Iterator over events; see [`Endpoint::events`]. After an error it ends.
#[derive(Debug)]
pub struct Events {}

impl Iterator for Events {
    type Item = Result<Event, ReceiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        unimplemented!()
    }
}
