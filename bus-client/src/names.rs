//! Well-known names: owning one, sending to whoever owns one, and who owns which.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bus_core::wire::{self, Request, Response};
use bus_core::{
    Description, EndpointId, Gap, GroupName, NameError, NameEvent, NameFlags, NameId, Receipt,
    Sequence,
};
use serde::Serialize;

use crate::bus::{Endpoint, Lane};
use crate::error::{OwnError, QueryError, SendError};
use crate::group::{Route, sending};
use crate::message::{Message, Outgoing};
use crate::request::{CallError, CallFuture, PendingCall};
use crate::send::{PendingSend, SendFuture};
use crate::state::{Form, NameTarget, Purpose, Target};
use crate::watch::Writable;

/// How to own a name.
///
/// ```
/// use bus_client::{Describe, NameOptions};
///
/// // One of several workers, which says what it does.
/// let clock = Describe::new("Tells the time.").operation::<(), u64>("now", "Seconds.").finish()?;
/// let options = NameOptions::new().shared(true).describe(clock);
/// assert_ne!(options, NameOptions::new());
/// # Ok::<(), bus_client::DescribeError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameOptions {
    flags: NameFlags,
    description: Option<Description>,
}

impl NameOptions {
    /// Fails if somebody else owns the name, and nobody can take it over.
    #[must_use]
    pub fn new() -> Self {
        Self { flags: NameFlags::DO_NOT_QUEUE, description: None }
    }

    fn set(mut self, flag: NameFlags, yes: bool) -> Self {
        self.flags.set(flag, yes);
        self
    }

    /// Whether to wait for a name that somebody else owns, and to wait for it again once replaced.
    /// [`Event::NameAcquired`](crate::Event::NameAcquired) tells when it has come.
    #[must_use]
    pub fn wait(self, yes: bool) -> Self {
        self.set(NameFlags::DO_NOT_QUEUE, !yes)
    }

    /// Whether another endpoint that asks for it may take the name over.
    /// [`Event::NameLost`](crate::Event::NameLost) tells of it.
    #[must_use]
    pub fn allow_replacement(self, yes: bool) -> Self {
        self.set(NameFlags::ALLOW_REPLACEMENT, yes)
    }

    /// Whether to take the name over from an owner that allows it.
    #[must_use]
    pub fn replace(self, yes: bool) -> Self {
        self.set(NameFlags::REPLACE_EXISTING, yes)
    }

    /// Whether to own the name together with others that say the same: each message to it is
    /// given to one of them.
    #[must_use]
    pub fn shared(self, yes: bool) -> Self {
        self.set(NameFlags::SHARED, yes)
    }

    /// What the service says of itself, for [`Endpoint::describe_name`]; [`Describe`](crate::Describe)
    /// makes it from the service's types.
    #[must_use]
    pub fn describe(self, description: Description) -> Self {
        Self { description: Some(description), ..self }
    }
}

/// A name that this endpoint owns or waits for. Dropping it gives the name up.
///
/// That the name comes or goes meanwhile is told by
/// [`Event::NameAcquired`](crate::Event::NameAcquired) and
/// [`Event::NameLost`](crate::Event::NameLost).
#[derive(Debug)]
#[must_use = "the name is given up when this is dropped"]
pub struct OwnedName {
    endpoint: Endpoint,
    name: GroupName,
    name_id: NameId,
    sequence: Sequence,
    position: u32,
    released: bool,
}

impl OwnedName {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &GroupName {
        &self.name
    }

    /// Its id. A name that everybody has given up comes back with another.
    #[must_use]
    pub fn id(&self) -> NameId {
        self.name_id
    }

    /// The place of the claim in the order: an owner gets every later message to the name.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// How many were before it when it asked: 0 if it has owned the name from the start.
    #[must_use]
    pub fn position(&self) -> u32 {
        self.position
    }

    /// Gives the name up, or stops waiting for it, and says where in the order: nothing sent to
    /// the name later arrives. `None` if it was lost before. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// The connection has ended, and the claim with it.
    pub fn release(mut self) -> Result<Option<Sequence>, QueryError> {
        self.released = true;
        let inner = &self.endpoint.inner;
        let name_id = inner.connection.lock().releasing(inner.key, &self.name);
        let name_id = name_id.unwrap_or(self.name_id);
        let request = Request::ReleaseName { name_id };
        let purpose = Purpose::ReleaseName(name_id);
        let released =
            inner.connection.call(inner.key, purpose, request, |response| match response {
                Response::Released { sequence } => Some(sequence),
                _ => None,
            });
        match released.map_err(|error| QueryError::from_call(error, Some(&self.name))) {
            Ok(sequence) => Ok(Some(sequence)),
            Err(QueryError::Refused { code, .. }) if code == "not-claimed" => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for OwnedName {
    fn drop(&mut self) {
        if !self.released {
            let inner = &self.endpoint.inner;
            let mut state = inner.connection.lock();
            let name_id = state.releasing(inner.key, &self.name).unwrap_or(self.name_id);
            state.release_name(inner.key, name_id);
        }
    }
}

/// A well-known name to send to: its owner of the moment at which a message takes its place in
/// the order gets it; of several workers, one. Cheap to clone.
///
/// The broker knows names by id. The handle looks the id up when it is first needed, and once more
/// when nobody owns the name of that id any more.
#[derive(Clone, Debug)]
pub struct Name {
    route: Route,
    target: Arc<NameTarget>,
}

sending!(Name);

impl Name {
    /// Asks whoever owns the name, and waits for the reply; see
    /// [`RemoteEndpoint::call`](crate::RemoteEndpoint::call). Of several workers one is asked.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn call(&self, message: impl Into<Outgoing>) -> Result<Message, CallError> {
        self.route.call(message.into())
    }

    /// Asks, and waits only until the request has left; see
    /// [`RemoteEndpoint::start_call`](crate::RemoteEndpoint::start_call).
    ///
    /// # Errors
    ///
    /// What is found before it leaves; the rest is the outcome of the pending call.
    pub fn start_call(&self, message: impl Into<Outgoing>) -> Result<PendingCall, CallError> {
        self.route.start_call(message.into())
    }

    /// Asks, as a future; see [`RemoteEndpoint::call_async`](crate::RemoteEndpoint::call_async).
    pub fn call_async(&self, message: impl Into<Outgoing>) -> CallFuture {
        self.route.call_async(message.into())
    }

    pub(crate) fn target(&self) -> Target {
        Target::Name(Arc::clone(&self.target))
    }

    /// The name as text.
    #[must_use]
    pub fn name(&self) -> &GroupName {
        self.target.name()
    }

    /// The name's id, if it was needed so far.
    #[must_use]
    pub fn id(&self) -> Option<NameId> {
        self.target.id()
    }
}

/// A watch on who owns a name: every change after [`sequence`](Self::sequence) comes as
/// [`Event::OwnerChanged`](crate::Event::OwnerChanged). It ends with [`end`](Self::end) or with its
/// endpoint; dropping the handle ends nothing.
#[derive(Clone, Debug)]
pub struct NameWatch {
    endpoint: Endpoint,
    name: GroupName,
    name_id: NameId,
    sequence: Sequence,
    owners: Vec<Owner>,
}

impl NameWatch {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &GroupName {
        &self.name
    }

    /// Where in the order the watch began.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Who owned the name then; of a shared one some.
    #[must_use]
    pub fn owners(&self) -> &[Owner] {
        &self.owners
    }

    /// Ends the watch: no change later than the returned place is told. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// There is none any more, or the connection has ended.
    pub fn end(&self) -> Result<Sequence, QueryError> {
        let inner = &self.endpoint.inner;
        let name_id = inner.connection.lock().unwatching(inner.key, &self.name);
        let request = Request::UnwatchName { name_id: name_id.unwrap_or(self.name_id) };
        let ended =
            inner.connection.call(inner.key, Purpose::Plain, request, |response| match response {
                Response::Unwatched { sequence } => Some(sequence),
                _ => None,
            });
        ended.map_err(|error| QueryError::from_call(error, Some(&self.name)))
    }
}

/// An endpoint that owns a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Owner {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// User id of its process.
    pub uid: u32,
    /// Its process.
    pub pid: u32,
}

impl From<wire::Owner> for Owner {
    fn from(owner: wire::Owner) -> Self {
        Self { endpoint: owner.endpoint, uid: owner.uid, pid: owner.pid }
    }
}

/// A name that somebody owns, as [`Endpoint::names`] lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NameInfo {
    /// The name.
    pub name: GroupName,
    /// Its id.
    pub name_id: NameId,
    /// Who owns it; of one that is shared by many, some of them.
    pub owners: Vec<Owner>,
    /// How many own it.
    pub owner_count: u32,
    /// How many wait to own it.
    pub waiting: u32,
    /// Several may own it together.
    pub shared: bool,
    /// Its service says something of itself; see [`Endpoint::describe_name`].
    pub described: bool,
}

impl From<wire::NameInfo> for NameInfo {
    fn from(info: wire::NameInfo) -> Self {
        Self {
            name: info.name,
            name_id: info.name_id,
            owners: info.owners.into_iter().map(Owner::from).collect(),
            owner_count: info.owner_count,
            waiting: info.waiting,
            shared: info.shared,
            described: info.described,
        }
    }
}

/// A name has come to this endpoint, which waited for it: every later message to it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NameAcquired {
    /// The name.
    pub name: GroupName,
    /// Its id.
    pub name_id: NameId,
    /// Where in the order.
    pub sequence: Sequence,
}

/// A name has gone from this endpoint: nothing sent to it later arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NameLost {
    /// The name.
    pub name: GroupName,
    /// Its id.
    pub name_id: NameId,
    /// Where in the order.
    pub sequence: Sequence,
    /// Who has it now. None if this was one of several workers, and has held up who sends to it.
    pub by: Option<EndpointId>,
    /// This endpoint waits to own it again, and comes first.
    pub waits: bool,
}

/// The owners of a watched name have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnerChange {
    /// The name.
    pub name: GroupName,
    /// Its id.
    pub name_id: NameId,
    /// Where in the order.
    pub sequence: Sequence,
    /// Who owned it and does not any more.
    pub old: Option<Owner>,
    /// Who owns it now and did not.
    pub new: Option<Owner>,
    /// How many own it now.
    pub owners: u32,
    /// Changes that this endpoint had no room for, just before this one.
    pub missed: Option<Gap>,
}

impl From<wire::OwnerChanged> for OwnerChange {
    fn from(change: wire::OwnerChanged) -> Self {
        Self {
            name: change.name,
            name_id: change.name_id,
            sequence: change.sequence,
            old: change.old.map(Owner::from),
            new: change.new.map(Owner::from),
            owners: change.owners,
            missed: change.missed,
        }
    }
}

/// Changes of a watched name's owners that this endpoint had no room for. Look the name up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnerChangesLost {
    /// The name's id.
    pub name_id: NameId,
    /// How many, and where in the order.
    pub gap: Gap,
}

pub(crate) fn event_of(claim: wire::ClaimChanged) -> crate::Event {
    let wire::ClaimChanged { name_id, name, sequence, event } = claim;
    let lost =
        |name, by, waits| crate::Event::NameLost(NameLost { name, name_id, sequence, by, waits });
    match event {
        NameEvent::Acquired => crate::Event::NameAcquired(NameAcquired { name, name_id, sequence }),
        NameEvent::Replaced { by, queued } => lost(name, Some(by), queued),
        _ => lost(name, None, false),
    }
}

impl Endpoint {
    /// Owns a well-known name, so that others can send to it without knowing who this is. Fails
    /// if somebody else owns it. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`OwnError`].
    pub fn own_name(&self, name: &str) -> Result<OwnedName, OwnError> {
        self.own_name_with(name, NameOptions::new())
    }

    /// Owns a well-known name, or waits for it. Asking again for a name that one has changes the
    /// options; the guard that was there before then gives up the same claim. Blocks for one round
    /// trip.
    ///
    /// # Errors
    ///
    /// See [`OwnError`].
    pub fn own_name_with(&self, name: &str, options: NameOptions) -> Result<OwnedName, OwnError> {
        let name: GroupName = name.parse()?;
        let purpose = Purpose::OwnName(name.clone());
        let NameOptions { flags, description } = options;
        let description = description.map(Box::new);
        let request = Request::OwnName { name: name.clone(), flags, description };
        let claimed =
            self.inner.connection.call(
                self.inner.key,
                purpose,
                request,
                |response| match response {
                    Response::Claimed { name_id, sequence, position } => {
                        Some((name_id, sequence, position))
                    }
                    _ => None,
                },
            );
        let (name_id, sequence, position) =
            claimed.map_err(|error| OwnError::from_call(error, &name))?;
        let endpoint = self.clone();
        Ok(OwnedName { endpoint, name, name_id, sequence, position, released: false })
    }

    /// A handle to send to whoever owns a name. Nothing is asked of the broker yet.
    ///
    /// # Errors
    ///
    /// It breaks the rules for names.
    pub fn name(&self, name: &str) -> Result<Name, NameError> {
        let target = self.inner.connection.lock().name(&name.parse()?);
        let route = Route::new(self.clone(), Target::Name(Arc::clone(&target)));
        Ok(Name { route, target })
    }

    /// All names that somebody owns, in their order. Blocks until they are here;
    /// [`list_names`](Self::list_names) gives them as they come.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn names(&self) -> Result<Vec<NameInfo>, QueryError> {
        self.list_names()?.collect()
    }

    /// Who owns a name; `None` if nobody does. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn find_name(&self, name: &str) -> Result<Option<NameInfo>, QueryError> {
        let name: GroupName = name.parse()?;
        let request = Request::FindName { name: name.clone() };
        let found = self.ask_about(request, &name, |response| match response {
            Response::Name(info) => Some(NameInfo::from(info)),
            _ => None,
        });
        match found {
            Ok(info) => Ok(Some(info)),
            Err(QueryError::NoSuchName(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the service of a name says of itself. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// Nobody owns the name, or its owner says nothing; see [`QueryError`].
    pub fn describe_name(&self, name: &str) -> Result<Description, QueryError> {
        let name: GroupName = name.parse()?;
        let request = Request::DescribeName { name: name.clone() };
        self.ask_about(request, &name, |response| match response {
            Response::Description(description) => Some(*description),
            _ => None,
        })
    }

    /// Watches who owns a name, also one that nobody owns yet: each later change comes as
    /// [`Event::OwnerChanged`](crate::Event::OwnerChanged). Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`OwnError`].
    pub fn watch_name(&self, name: &str) -> Result<NameWatch, OwnError> {
        let name: GroupName = name.parse()?;
        let request = Request::WatchName { name: name.clone() };
        let watched =
            self.inner.connection.call(self.inner.key, Purpose::Plain, request, |response| {
                match response {
                    Response::NameWatched { name_id, sequence, owners } => {
                        Some((name_id, sequence, owners))
                    }
                    _ => None,
                }
            });
        let (name_id, sequence, owners) =
            watched.map_err(|error| OwnError::from_call(error, &name))?;
        let owners = owners.into_iter().map(Owner::from).collect();
        Ok(NameWatch { endpoint: self.clone(), name, name_id, sequence, owners })
    }

    fn ask_about<T>(
        &self,
        request: Request,
        name: &GroupName,
        pick: impl FnOnce(Response) -> Option<T>,
    ) -> Result<T, QueryError> {
        let answer = self.inner.connection.call(self.inner.key, Purpose::Plain, request, pick);
        answer.map_err(|error| QueryError::from_call(error, Some(name)))
    }
}
