//! Who is in a group, as it changes: events for those who want every change at its place in the
//! order, and a handle for publishers that only want to know whether anybody listens.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bus_core::wire::{ChangeCode, Response, ViewNotice};
use bus_core::{Credentials, EndpointId, GroupId, GroupName, Interest as Told, Sequence};

use crate::bus::Endpoint;
use crate::drive::Drive;
use crate::error::WatchError;
use crate::group::Group;
use crate::info::{MemberInfo, Members};
use crate::message::Gap;
use crate::state::{CallError, Interest as Wait};
use crate::waits::Wake;

/// What happened to a membership.
pub type Change = ChangeCode;

/// A change of a watched group's membership, at its place in the order (G4).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ViewChange {
    /// The group.
    pub group: GroupName,
    /// Its id.
    pub group_id: GroupId,
    /// Where in the order it happened.
    pub sequence: Sequence,
    /// What happened.
    pub change: Change,
    /// Whose membership.
    pub endpoint: EndpointId,
    /// The user and process of that endpoint, as the kernel knew them when it connected.
    pub credentials: Credentials,
    /// How many members there are after it.
    pub members: u32,
    /// The group has ended with it, and so has the watch.
    pub ended: bool,
    /// Changes of this group that this endpoint had no room for, just before this one.
    pub missed: Option<Gap>,
}

impl From<ViewNotice> for ViewChange {
    fn from(notice: ViewNotice) -> Self {
        let missed = notice.missed.map(|gap| Gap {
            group: Some(notice.group.clone()),
            group_id: notice.group_id,
            count: gap.count,
            first: gap.first,
            last: gap.last,
        });
        Self {
            group: notice.group,
            group_id: notice.group_id,
            sequence: notice.sequence,
            change: notice.change,
            endpoint: notice.endpoint,
            credentials: Credentials { uid: notice.uid, pid: notice.pid },
            members: notice.members,
            ended: notice.ended,
            missed,
        }
    }
}

/// How to watch a group's membership.
///
/// ```
/// use bus_client::WatchOptions;
///
/// // Only whether anybody is there, and only of a group that exists.
/// let options = WatchOptions::new().edges(true).create(false);
/// assert_ne!(options, WatchOptions::new());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchOptions {
    edges: bool,
    create: bool,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl WatchOptions {
    /// Every change, and the group is created if it does not exist.
    #[must_use]
    pub const fn new() -> Self {
        Self { edges: false, create: true }
    }

    /// Only the changes from nobody to somebody and back.
    #[must_use]
    pub const fn edges(mut self, yes: bool) -> Self {
        self.edges = yes;
        self
    }

    /// Whether to create the group if it does not exist. True at first.
    #[must_use]
    pub const fn create(mut self, yes: bool) -> Self {
        self.create = yes;
        self
    }
}

/// A watch on a group's membership: every change after [`sequence`](Self::sequence) comes as
/// [`Event::View`](crate::Event::View). It ends with [`end`](Self::end), with its endpoint, or with
/// the group; dropping the handle ends nothing.
#[derive(Clone, Debug)]
pub struct MembersWatch {
    endpoint: Endpoint,
    group: GroupName,
    group_id: GroupId,
    sequence: Sequence,
    members: u32,
}

impl MembersWatch {
    pub(crate) fn begin(
        endpoint: &Endpoint,
        group: &str,
        options: WatchOptions,
    ) -> Result<Self, WatchError> {
        let name: GroupName = group.parse()?;
        let told = if options.edges { Told::Anybody } else { Told::Members };
        let inner = &endpoint.inner;
        let asked =
            inner.connection.lock().watch_group(inner.key, &name, Some(told), options.create);
        let failed = |error| WatchError::from_group_call(error, &name);
        let (group_id, sequence, members) =
            inner.connection.finish_call(asked.map_err(failed)?, watching).map_err(failed)?;
        Ok(Self { endpoint: endpoint.clone(), group: name, group_id, sequence, members })
    }

    /// The group's name.
    #[must_use]
    pub fn group(&self) -> &GroupName {
        &self.group
    }

    /// The group's id.
    #[must_use]
    pub fn group_id(&self) -> GroupId {
        self.group_id
    }

    /// Where in the order the watch began.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// How many members there were then.
    #[must_use]
    pub fn members(&self) -> u32 {
        self.members
    }

    /// Ends the watch. Changes that have not arrived by then are passed over. Blocks for one round
    /// trip.
    ///
    /// # Errors
    ///
    /// The connection has ended.
    pub fn end(self) -> Result<(), WatchError> {
        let inner = &self.endpoint.inner;
        let asked = inner.connection.lock().end_watch(inner.key, &self.group);
        let failed = |error| WatchError::from_group_call(error, &self.group);
        let Some(asked) = asked else {
            return Ok(());
        };
        let answered = inner.connection.finish_call(asked.map_err(failed)?, |response| {
            matches!(response, Response::Unwatched { .. } | Response::Watching { .. }).then_some(())
        });
        match answered.map_err(failed) {
            // The group has ended meanwhile, and the watch with it.
            Err(WatchError::Refused { code, .. }) if code == "not-watching" => Ok(()),
            answered => answered,
        }
    }
}

fn watching(response: Response) -> Option<(GroupId, Sequence, u32)> {
    match response {
        Response::Watching { group_id, sequence, members } => Some((group_id, sequence, members)),
        _ => None,
    }
}

/// Whether anybody is in a group, kept up to date: so that a publisher spares itself work that
/// nobody would see. Dropping it ends the watch.
///
/// It costs one place of the endpoint's queue for the moment in which a change arrives, and nothing
/// has to be received. What it says is what has arrived: a member that has just joined may not be
/// known yet, and misses what is not sent because of that.
///
/// ```
/// # use bus_client::{Bus, EmbeddedBroker};
/// # let broker = EmbeddedBroker::start()?;
/// # let (publisher, other) = (broker.connect()?, broker.connect()?);
/// let frames = publisher.group("org.example.Frames")?;
/// let interest = frames.watch_interest()?;
/// assert!(!interest.is_anybody()?);
/// other.join("org.example.Frames")?;
/// interest.wait(true)?;
/// frames.send("worth the work")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "the watch ends when this is dropped"]
pub struct Interest {
    endpoint: Endpoint,
    group: GroupName,
}

impl Interest {
    pub(crate) fn begin(endpoint: &Endpoint, group: &GroupName) -> Result<Self, WatchError> {
        let inner = &endpoint.inner;
        let asked = inner.connection.lock().watch_group(inner.key, group, None, true);
        // From here on its end gives back what was counted.
        let interest = Self { endpoint: endpoint.clone(), group: group.clone() };
        let failed = |error| WatchError::from_group_call(error, group);
        inner.connection.finish_call(asked.map_err(failed)?, watching).map_err(failed)?;
        Ok(interest)
    }

    /// Whether anybody is there, by what has arrived. Does the I/O that is possible without
    /// blocking.
    ///
    /// # Errors
    ///
    /// The connection has ended, or the group did and could not be watched again.
    pub fn is_anybody(&self) -> Result<bool, WatchError> {
        let inner = &self.endpoint.inner;
        let mut state = inner.connection.lock();
        state.turn();
        state.is_anybody(inner.key, &self.group).map_err(|error| self.failed(error))
    }

    /// Waits until somebody is there (`true`), or nobody (`false`). Blocks.
    ///
    /// # Errors
    ///
    /// As [`is_anybody`](Self::is_anybody).
    pub fn wait(&self, anybody: bool) -> Result<(), WatchError> {
        self.wait_until(anybody, None).map(|_| ())
    }

    /// As [`wait`](Self::wait), and at most `timeout`; `false` if it passed first.
    ///
    /// # Errors
    ///
    /// As [`is_anybody`](Self::is_anybody).
    pub fn wait_deadline(&self, anybody: bool, timeout: Duration) -> Result<bool, WatchError> {
        self.wait_until(anybody, Instant::now().checked_add(timeout))
    }

    /// As [`wait`](Self::wait), as a future. See
    /// [`Endpoint::receive_async`](crate::Endpoint::receive_async) for who drives it.
    pub fn wait_async(&self, anybody: bool) -> InterestFuture<'_> {
        InterestFuture { interest: self, anybody, drive: Drive::default() }
    }

    fn wait_until(&self, anybody: bool, deadline: Option<Instant>) -> Result<bool, WatchError> {
        let inner = &self.endpoint.inner;
        let found = inner.connection.wait(Wait::Views(inner.key), None, deadline, |state| {
            match state.is_anybody(inner.key, &self.group) {
                Ok(now) if now != anybody => None,
                found => Some(found),
            }
        });
        found.map_or(Ok(false), |found| found.map(|_| true).map_err(|error| self.failed(error)))
    }

    fn failed(&self, error: CallError) -> WatchError {
        WatchError::from_group_call(error, &self.group)
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let inner = &self.endpoint.inner;
        inner.connection.lock().end_interest(inner.key, &self.group);
    }
}

/// Somebody, or nobody, is in a group; see [`Interest::wait_async`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct InterestFuture<'a> {
    interest: &'a Interest,
    anybody: bool,
    drive: Drive,
}

impl Future for InterestFuture<'_> {
    type Output = Result<(), WatchError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { interest, anybody, drive } = self.get_mut();
        let inner = &interest.endpoint.inner;
        let connection = &inner.connection;
        let found = drive.poll(connection, cx, |cx| {
            let mut state = connection.lock();
            state.before_sleep();
            match state.is_anybody(inner.key, &interest.group) {
                Ok(now) if now != *anybody => {}
                found => return Poll::Ready(found),
            }
            state.set_wake(Wait::Views(inner.key), Wake::Task(cx.waker().clone()));
            Poll::Pending
        });
        found.map(|found| found.map(|_| ()).map_err(|error| interest.failed(error)))
    }
}

impl Group {
    /// Keeps an eye on whether anybody is in this group; creates it if it does not exist. Blocks
    /// for one round trip.
    ///
    /// # Errors
    ///
    /// See [`WatchError`].
    pub fn watch_interest(&self) -> Result<Interest, WatchError> {
        Interest::begin(self.endpoint(), self.name())
    }
}

impl Members {
    /// Brings the list forward by a change that was told; `false` if it has it already, because it
    /// was fetched later in the order. So a list that was fetched after a watch began, and every
    /// change since, give the members that hold at each message.
    ///
    /// A member that is added has no flags and an empty queue here: a change does not tell them.
    pub fn apply(&mut self, change: &ViewChange) -> bool {
        if change.sequence <= self.sequence {
            return false;
        }
        self.sequence = change.sequence;
        let place = self.members.binary_search_by_key(&change.endpoint, |member| member.endpoint);
        match (place, &change.change) {
            (Err(at), Change::Joined) => {
                let Credentials { uid, pid } = change.credentials;
                let member = MemberInfo::new(change.endpoint, uid, pid);
                self.members.insert(at, member);
            }
            (Ok(at), change) if *change != Change::Joined => {
                self.members.remove(at);
            }
            _ => {}
        }
        true
    }
}
