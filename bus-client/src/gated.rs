//! Gated groups, from both sides: the owner that decides who is admitted, and who asks for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bus_core::wire::{Request, Response, Serial};
use bus_core::{Credentials, EndpointId, Filter, GroupId, GroupName, MemberFlags, Sequence};

use crate::bus::Endpoint;
use crate::error::{CreateError, GateError, JoinError};
use crate::group::{GroupOptions, JoinOptions, Member, RemoteEndpoint};
use crate::info::Joined;
use crate::message::Gap;
use crate::reconnect::Possession;
use crate::state::{GroupTarget, Interest, Purpose};

/// How an owner lets somebody be a member of its gated group.
///
/// ```
/// use bus_client::Terms;
///
/// // The owner hears what the member sends, and would rather miss some of it than make it wait.
/// let terms = Terms::new().send_to_peer(true).drop_at_peer(true);
/// assert_ne!(terms, Terms::new());
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Terms {
    pub(crate) flags: MemberFlags,
    pub(crate) drop_at_peer: bool,
    pub(crate) filter: Option<Filter>,
}

impl Terms {
    /// No loopback, nothing to the owner, and senders wait for the member.
    #[must_use]
    pub const fn new() -> Self {
        Self { flags: MemberFlags::empty(), drop_at_peer: false, filter: None }
    }

    /// The names of what is set, as the command line and listings have them.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        let rows = [
            (self.flags.contains(MemberFlags::LOOPBACK), "loopback"),
            (self.flags.contains(MemberFlags::SEND_TO_PEER), "send-to-peer"),
            (self.flags.contains(MemberFlags::DROP_WHEN_FULL), "drop-when-full"),
            (self.flags.contains(MemberFlags::LEAVE_WHEN_FULL), "leave-when-full"),
            (self.drop_at_peer, "drop-at-peer"),
        ];
        rows.into_iter().filter_map(|(set, name)| set.then_some(name)).collect()
    }

    fn with(mut self, flag: MemberFlags, yes: bool) -> Self {
        self.flags.set(flag, yes);
        self
    }

    /// Whether the member's own messages come back to it.
    #[must_use]
    pub fn loopback(self, yes: bool) -> Self {
        self.with(MemberFlags::LOOPBACK, yes)
    }

    /// Whether what the member sends to the group goes to the owner too, through the member's peer
    /// endpoint; the member waits while that has no room.
    #[must_use]
    pub fn send_to_peer(self, yes: bool) -> Self {
        self.with(MemberFlags::SEND_TO_PEER, yes)
    }

    /// Whether the member misses messages while its queue is full, rather than make senders wait.
    #[must_use]
    pub fn drop_when_full(self, yes: bool) -> Self {
        self.with(MemberFlags::DROP_WHEN_FULL, yes)
    }

    /// Whether the member leaves when its queue has no room for a message, rather than make senders
    /// wait.
    #[must_use]
    pub fn leave_when_full(self, yes: bool) -> Self {
        self.with(MemberFlags::LEAVE_WHEN_FULL, yes)
    }

    /// Whether the owner misses the member's messages while its peer endpoint has no room, rather
    /// than make the member wait.
    #[must_use]
    pub fn drop_at_peer(mut self, yes: bool) -> Self {
        self.drop_at_peer = yes;
        self
    }

    /// What the member is to hear of the group, if not everything. It cannot see, change or remove
    /// this; it may have a filter of its own, and then both must accept.
    #[must_use]
    pub fn filter(mut self, filter: Option<Filter>) -> Self {
        self.filter = filter;
        self
    }
}

/// Somebody asks to be admitted to a gated group. Answer with [`Gate::admit`] or [`Gate::refuse`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Candidate {
    /// The group.
    pub group: GroupName,
    /// Its id.
    pub group_id: GroupId,
    /// Where in the order it asked.
    pub sequence: Sequence,
    /// Who asks. Private messages to it go to this endpoint.
    pub endpoint: EndpointId,
    /// Its user and process, as the kernel knew them when it connected.
    pub credentials: Credentials,
    /// The peer endpoint through which messages of it come; see [`Message::peer`](crate::Message::peer).
    pub peer: EndpointId,
    /// How it would like to be a member.
    pub wishes: Terms,
}

impl Candidate {
    pub(crate) fn new(
        (group_id, group, sequence): (GroupId, GroupName, Sequence),
        endpoint: EndpointId,
        (uid, pid): (u32, u32),
        peer: EndpointId,
        flags: MemberFlags,
    ) -> Self {
        let credentials = Credentials { uid, pid };
        let wishes = Terms { flags, drop_at_peer: false, filter: None };
        Self { group, group_id, sequence, endpoint, credentials, peer, wishes }
    }
}

/// The end of a membership by the owner's will. The endpoint may ask to be admitted again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Expelled {
    /// The group's name, where the library still knows it.
    pub group: Option<GroupName>,
    /// The group.
    pub group_id: GroupId,
    /// Where in the order the membership ended: nothing of the group comes after this.
    pub sequence: Sequence,
    /// The owner's words.
    pub reason: String,
}

/// Messages of a member to the group that its peer endpoint had no room for (G7).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerGap {
    /// The peer endpoint.
    pub peer: EndpointId,
    /// What is missing.
    pub gap: Gap,
}

/// What happened to a peer endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerNotice {
    /// The group that it is about, if it is about one and the library knows it.
    pub group: Option<GroupName>,
    /// The peer endpoint.
    pub peer: EndpointId,
    /// Where in the order it happened.
    pub sequence: Sequence,
}

/// The owner of a gated group has changed how this endpoint is a member, or the broker has taken
/// `send-to-peer` from it because the owner did not read.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FlagsChanged {
    /// The group's name, where the library still knows it.
    pub group: Option<GroupName>,
    /// The group.
    pub group_id: GroupId,
    /// The flags that it has now. The rest of the terms is not told.
    pub terms: Terms,
    /// From where in the order on.
    pub sequence: Sequence,
}

/// What a member of a gated group knows of its admission.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Admission {
    /// The group's owner, whose private messages have it as their sender.
    pub owner: EndpointId,
    /// Where private messages for the owner go.
    pub peer: EndpointId,
    /// The flags with which the owner lets it be a member. The rest of the terms is not told.
    pub terms: Terms,
}

/// A gated group, in its owner's hands: see [`Endpoint::create_gated`].
///
/// Candidates come as [`Event::Candidate`](crate::Event::Candidate). The group's members go on when
/// the owner is gone; nobody is admitted then.
///
/// Every call blocks for one round trip.
#[derive(Clone, Debug)]
pub struct Gate {
    endpoint: Endpoint,
    name: GroupName,
    group_id: GroupId,
    sequence: Sequence,
}

impl Gate {
    pub(crate) fn create(
        endpoint: &Endpoint,
        group: &str,
        options: GroupOptions,
    ) -> Result<Self, CreateError> {
        let name: GroupName = group.parse()?;
        let connection = &endpoint.inner.connection;
        let target = connection.lock().group(&name);
        let (backlog, stall_ms) = (options.backlog, options.stall_ms());
        let request = Request::CreateGated { group: name.clone(), backlog, stall_ms };
        let purpose = Purpose::Own(Arc::clone(&target));
        let created =
            connection.call(endpoint.inner.key, purpose, request, |response| match response {
                Response::Created { group_id, sequence } => Some((group_id, sequence)),
                _ => None,
            });
        let (group_id, sequence) = created.map_err(|error| CreateError::from_call(error, &name))?;
        Ok(Self { endpoint: endpoint.clone(), name, group_id, sequence })
    }

    /// The group's name.
    #[must_use]
    pub fn name(&self) -> &GroupName {
        &self.name
    }

    /// The group's id.
    #[must_use]
    pub fn group_id(&self) -> GroupId {
        self.group_id
    }

    /// Where in the order it was made.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Admits a candidate: it gets every message of the group later than the returned place.
    ///
    /// # Errors
    ///
    /// See [`GateError`].
    pub fn admit(&self, candidate: EndpointId, terms: Terms) -> Result<Sequence, GateError> {
        let Terms { flags, drop_at_peer, filter } = terms;
        let (group_id, endpoint) = (self.now(), candidate);
        self.change(Request::Admit { group_id, endpoint, flags, drop_at_peer, filter })
    }

    /// Refuses a candidate and tells it why, in at most 1024 bytes.
    ///
    /// # Errors
    ///
    /// See [`GateError`].
    pub fn refuse(&self, candidate: EndpointId, reason: &str) -> Result<(), GateError> {
        let request =
            Request::Refuse { group_id: self.now(), endpoint: candidate, text: reason.to_owned() };
        self.ask(request, |response| matches!(response, Response::Refused).then_some(()))
    }

    /// Puts a member out and tells it why, in at most 1024 bytes. Nothing that is sent to the group
    /// later than the returned place reaches it. It stays connected.
    ///
    /// # Errors
    ///
    /// See [`GateError`].
    pub fn expel(&self, member: EndpointId, reason: &str) -> Result<Sequence, GateError> {
        self.change(Request::Expel {
            group_id: self.now(),
            endpoint: member,
            text: reason.to_owned(),
        })
    }

    /// Changes how somebody is a member, at the returned place in the order.
    ///
    /// # Errors
    ///
    /// See [`GateError`].
    pub fn set_terms(&self, member: EndpointId, terms: Terms) -> Result<Sequence, GateError> {
        let Terms { flags, drop_at_peer, filter } = terms;
        let (group_id, endpoint) = (self.now(), member);
        self.change(Request::SetTerms { group_id, endpoint, flags, drop_at_peer, filter })
    }

    /// Ends the connection to a candidate or member, and its memberships in all groups of this
    /// owner's.
    ///
    /// # Errors
    ///
    /// See [`GateError`].
    pub fn close_peer(&self, peer: EndpointId) -> Result<Sequence, GateError> {
        self.change(Request::ClosePeer { peer })
    }

    /// The group's present id: after a reconnection, it is another one.
    fn now(&self) -> GroupId {
        let inner = &self.endpoint.inner;
        let what = Possession::Gate(self.name.clone());
        inner.connection.lock().group_of(inner.key, &what).unwrap_or(self.group_id)
    }

    fn change(&self, request: Request) -> Result<Sequence, GateError> {
        self.ask(request, |response| match response {
            Response::Changed { sequence } => Some(sequence),
            _ => None,
        })
    }

    fn ask<T>(
        &self,
        request: Request,
        pick: impl FnOnce(Response) -> Option<T>,
    ) -> Result<T, GateError> {
        let inner = &self.endpoint.inner;
        let answer = inner.connection.call(inner.key, Purpose::Plain, request, pick);
        answer.map_err(|error| GateError::from_call(error, &self.name))
    }
}

/// A request to be admitted to a gated group; see [`Endpoint::connect_to`]. Private messages to the
/// owner pass from its begin on, and go on after an admission and a leave.
///
/// Dropping it takes the request back; if the owner was faster, the endpoint leaves again.
#[derive(Debug)]
#[must_use = "dropping it takes the request back"]
pub struct Candidacy {
    endpoint: Endpoint,
    target: Arc<GroupTarget>,
    options: JoinOptions,
    owner: EndpointId,
    peer: EndpointId,
    sequence: Sequence,
    /// The call that waits for the owner's decision.
    join: Option<Serial>,
    over: bool,
}

impl Candidacy {
    pub(crate) fn begin(
        endpoint: &Endpoint,
        group: &str,
        options: JoinOptions,
    ) -> Result<Self, JoinError> {
        let name: GroupName = group.parse()?;
        let inner = &endpoint.inner;
        let request = Request::Connect {
            group: name.clone(),
            flags: options.flags(),
            filter: options.filter.clone(),
        };
        let connected =
            inner.connection.call(inner.key, Purpose::Plain, request, |response| match response {
                Response::Connected { sequence, owner, peer, .. } => Some((sequence, owner, peer)),
                _ => None,
            });
        let (sequence, owner, peer) =
            connected.map_err(|error| JoinError::from_call(error, &name))?;
        let target = inner.connection.lock().group(&name);
        let endpoint = endpoint.clone();
        Ok(Self { endpoint, target, options, owner, peer, sequence, join: None, over: false })
    }

    /// The group's owner, whose private messages have it as their sender.
    #[must_use]
    pub fn owner(&self) -> EndpointId {
        self.owner
    }

    /// Where to send private messages for the owner.
    #[must_use]
    pub fn peer(&self) -> RemoteEndpoint {
        self.endpoint.endpoint(self.peer)
    }

    /// Where in the order the owner is told of the request.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Waits for the owner's decision.
    ///
    /// # Errors
    ///
    /// [`RefusedByOwner`](JoinError::RefusedByOwner), [`OwnerGone`](JoinError::OwnerGone), or the
    /// connection has ended.
    pub fn join(mut self) -> Result<Member, JoinError> {
        let joined = self.wait(None)?;
        Ok(joined.expect("without a deadline, waiting ends with a decision"))
    }

    /// Waits at most `timeout` for the owner's decision; `None` if it has not decided.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join). It is over then.
    pub fn join_deadline(&mut self, timeout: Duration) -> Result<Option<Member>, JoinError> {
        self.wait(Instant::now().checked_add(timeout))
    }

    fn wait(&mut self, deadline: Option<Instant>) -> Result<Option<Member>, JoinError> {
        let name = self.target.name().clone();
        let connection = &self.endpoint.inner.connection;
        let serial = match self.join {
            Some(serial) => serial,
            None => {
                let (serial, _) = self.endpoint.start_join(&name, self.options.clone())?;
                *self.join.insert(serial)
            }
        };
        let answer = connection
            .wait(Interest::Answer(serial), None, deadline, |state| state.take_response(serial));
        let Some(answer) = answer else {
            return Ok(None);
        };
        self.over = true;
        let joined = answer.and_then(|response| connection.pick(response, joined));
        let joined = joined.map_err(|error| JoinError::from_call(error, &name))?;
        Ok(Some(Member::new(self.endpoint.clone(), Arc::clone(&self.target), joined)))
    }
}

impl Drop for Candidacy {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let inner = &self.endpoint.inner;
        let mut state = inner.connection.lock();
        match self.join {
            Some(serial) => state.abandon_join(serial),
            None => state.abandon_candidacy(inner.key, self.target.name().clone()),
        }
    }
}

/// What the answer to a join says.
pub(crate) fn joined(response: Response) -> Option<Joined> {
    match response {
        Response::Joined { group_id, sequence, created, members } => {
            Some(Joined { group_id, sequence, created, members, admission: None })
        }
        Response::Admitted { group_id, sequence, members, flags, owner, peer } => {
            let terms = Terms { flags, drop_at_peer: false, filter: None };
            let admission = Some(Admission { owner, peer, terms });
            Some(Joined { group_id, sequence, created: false, members, admission })
        }
        _ => None,
    }
}
