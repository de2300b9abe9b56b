//! Control messages: what is asked, answered and told outside the hot path, as CBOR maps.
//!
//! Invariant: every message is a map with text keys, and keys that a version does not know are
//! passed over; a later version adds keys and never changes what one means. An operation, kind or
//! code that is unknown is told apart from a body that is wrong. The first can be answered, and
//! nothing else is lost.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::cbor::{self, CborError, DecodeError};
use super::filter_form::BAD_FILTER;
use super::inside::{Look, QueueTimes, Seen};
use super::names::{self, ClaimChanged, NameInfo, Owner, OwnerChanged};
use super::seen::{self, Copied, MonitoredChange};
use super::{EvictionReason, FailureCode, GoodbyeCode, OutcomeCode, ViewNotice, WireError};
use crate::{
    Amounts, Description, EndpointId, Filter, Gap, GroupId, GroupName, Holders, Interest, Limits,
    MemberFlags, NAMED_RECIPIENTS, NameError, NameFlags, NameId, Retain, Sequence,
};

/// The client's greeting, its first frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// All versions that the client speaks.
    pub versions: Vec<u16>,
    /// Features that it would use. Version 1 has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// What the program calls itself, for logs and listings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
}

impl Hello {
    /// The greeting of a client that speaks this version.
    #[must_use]
    pub fn new() -> Self {
        Self { versions: vec![super::VERSION], ..Self::default() }
    }

    /// The highest version that both sides speak.
    ///
    /// ```
    /// use bus_core::wire::Hello;
    ///
    /// let hello = Hello { versions: vec![1, 2, 7], ..Hello::default() };
    /// assert_eq!(hello.common_version(&[1, 2]), Some(2));
    /// assert_eq!(hello.common_version(&[3]), None);
    /// ```
    #[must_use]
    pub fn common_version(&self, ours: &[u16]) -> Option<u16> {
        let known = self.versions.iter().filter(|version| ours.contains(version));
        known.copied().max()
    }
}

/// The broker's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both sides speak from here on.
    pub version: u16,
    /// Those of the client's features that are switched on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Which bus this is.
    pub incarnation: Incarnation,
    /// The id of the endpoint with handle 0.
    pub endpoint: EndpointId,
    /// The bounds of the bus.
    #[serde(with = "super::limits_form")]
    pub limits: Limits,
}

/// Which bus: made at its start. Ids and sequences of another incarnation mean nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation([u8; 16]);

impl Incarnation {
    /// An incarnation of these bytes, which should be random.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes as they stand on the wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Incarnation {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Incarnation {
    /// Bytes, or 32 hexadecimal digits where a person reads.
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(self) } else { s.serialize_bytes(&self.0) }
    }
}

impl<'de> Deserialize<'de> for Incarnation {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Incarnation;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("16 bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Incarnation, E> {
                <[u8; 16]>::try_from(bytes)
                    .map(Incarnation)
                    .map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }
        d.deserialize_bytes(Visitor)
    }
}

/// What a client asks for with CALL. The endpoint in the frame's header is the one that asks.
///
/// Groups are named once, where they are looked up, made or joined; from then on they are known by
/// id, so that nothing reaches a new group that has taken an old one's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Request {
    /// Are you there? Answered by [`Response::Pong`].
    Ping,
    /// What broker is this? Answered by [`Response::Status`].
    Status,
    /// How is it doing? Answered by [`Response::Stats`].
    Stats,
    /// Read the rules of the policy again. Answered by [`Response::Reloaded`].
    Reload,
    /// What goes on inside, and why? For the bus's own user. Answered by [`Response::Seen`].
    Look(Look),
    /// Who holds how much? A listing, answered by [`Response::Accounts`]: of the user who asks, and
    /// of all users to the one that the broker runs as and to root.
    Accounts,
    /// Opens an endpoint under the handle in the frame's header. Answered by
    /// [`Response::Opened`].
    OpenEndpoint,
    /// Closes the endpoint; its handle is free again with the answer, [`Response::Closed`].
    CloseEndpoint,
    /// Stops receiving: leaves all groups, and what is sent to the endpoint fails (G9). What is
    /// queued stays readable. Answered by [`Response::Shut`].
    ShutdownReceive,
    /// Makes an open group without joining it. Answered by [`Response::Created`].
    Create {
        /// Its name.
        group: GroupName,
        /// What it retains for those who join later; nothing without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retain: Option<Retain>,
        /// Milliseconds after which a member that makes its senders wait is stalled; those of the
        /// bus without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stall_ms: Option<u32>,
    },
    /// Makes a gated group, whose owner the endpoint is. Answered by [`Response::Created`].
    CreateGated {
        /// Its name.
        group: GroupName,
        /// How many candidates may wait; the limit `backlog` if missing, and at most.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backlog: Option<u16>,
        /// As for [`Create`](Self::Create).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stall_ms: Option<u32>,
    },
    /// Connects to the owner of a gated group and asks to be admitted; a [`Join`](Self::Join) of
    /// the group then waits for the decision. Answered by [`Response::Connected`].
    Connect {
        /// Its name.
        group: GroupName,
        /// How the endpoint would like to be a member; the owner decides.
        #[serde(default, with = "flag_names", skip_serializing_if = "MemberFlags::is_empty")]
        flags: MemberFlags,
        /// What it wants to hear, if not everything.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        filter: Option<Filter>,
    },
    /// Takes back the request to be admitted; a [`Join`](Self::Join) that waits fails with
    /// `cancelled`. Answered by [`Response::Withdrawn`].
    Withdraw {
        /// The group's name.
        group: GroupName,
    },
    /// The owner admits a candidate. Answered by [`Response::Changed`].
    Admit {
        /// The gated group.
        group_id: GroupId,
        /// The candidate.
        endpoint: EndpointId,
        /// How it is a member from now on.
        #[serde(default, with = "flag_names", skip_serializing_if = "MemberFlags::is_empty")]
        flags: MemberFlags,
        /// Its peer endpoint misses its messages to the group rather than make it wait.
        #[serde(default, skip_serializing_if = "is_false")]
        drop_at_peer: bool,
        /// What the member is to hear, if not everything; it is not told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        filter: Option<Filter>,
    },
    /// The owner refuses a candidate. Answered by [`Response::Refused`].
    Refuse {
        /// The gated group.
        group_id: GroupId,
        /// The candidate.
        endpoint: EndpointId,
        /// Why, for the candidate.
        #[serde(default)]
        text: String,
    },
    /// The owner puts a member out. Answered by [`Response::Changed`].
    Expel {
        /// The gated group.
        group_id: GroupId,
        /// The member.
        endpoint: EndpointId,
        /// Why, for the member.
        #[serde(default)]
        text: String,
    },
    /// The owner changes how an endpoint is a member. Answered by [`Response::Changed`].
    SetTerms {
        /// The gated group.
        group_id: GroupId,
        /// The member.
        endpoint: EndpointId,
        /// How it is a member from now on.
        #[serde(default, with = "flag_names", skip_serializing_if = "MemberFlags::is_empty")]
        flags: MemberFlags,
        /// Its peer endpoint misses its messages to the group rather than make it wait.
        #[serde(default, skip_serializing_if = "is_false")]
        drop_at_peer: bool,
        /// What the member is to hear, if not everything; it is not told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        filter: Option<Filter>,
    },
    /// The owner or the candidate ends the connection between them, and the candidate's memberships
    /// in the owner's groups. Answered by [`Response::Changed`].
    ClosePeer {
        /// The peer endpoint.
        peer: EndpointId,
    },
    /// Joins a group. Answered by [`Response::Joined`], or for a gated group by
    /// [`Response::Admitted`] once its owner has decided.
    Join {
        /// Its name.
        group: GroupName,
        /// How the endpoint wants to be a member.
        #[serde(default, with = "flag_names", skip_serializing_if = "MemberFlags::is_empty")]
        flags: MemberFlags,
        /// Whether to make the group if it does not exist.
        #[serde(default, skip_serializing_if = "is_false")]
        create: bool,
        /// What of the group it wants; everything without one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        filter: Option<Filter>,
        /// What it retains, if this join makes it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retain: Option<Retain>,
        /// Whether to tell first what the group retains.
        #[serde(default, skip_serializing_if = "is_false")]
        state: bool,
    },
    /// Changes what a member wants of a group. Answered by [`Response::FilterSet`].
    SetFilter {
        /// The group's id.
        group_id: GroupId,
        /// The new filter; without one, everything is wanted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        filter: Option<Filter>,
    },
    /// Ends a membership. Answered by [`Response::Left`].
    Leave {
        /// Its id.
        group_id: GroupId,
    },
    /// Makes the endpoint a monitor of everything, or of one group. Answered by
    /// [`Response::Monitoring`].
    Monitor {
        /// The group's name, if only one is wanted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<GroupName>,
    },
    /// Ends that. Answered by [`Response::Unmonitored`].
    Unmonitor,
    /// Begins to watch a group's membership, or changes what is told of it (G4). Answered by
    /// [`Response::Watching`].
    WatchGroup {
        /// Its name.
        group: GroupName,
        /// What to tell.
        #[serde(default, skip_serializing_if = "is_members")]
        interest: Interest,
        /// Whether to make the group if it does not exist.
        #[serde(default, skip_serializing_if = "is_false")]
        create: bool,
    },
    /// Ends a watch on a group's membership. Answered by [`Response::Unwatched`].
    UnwatchGroup {
        /// Its id.
        group_id: GroupId,
    },
    /// Looks a name up. Answered by [`Response::Group`].
    FindGroup {
        /// The name.
        group: GroupName,
    },
    /// Lists groups by name, ascending. Answered by [`Response::Groups`], in parts.
    Groups,
    /// Claims a well-known name: to own it, or to wait for it. Claiming it again changes flags and
    /// description. Answered by [`Response::Claimed`].
    OwnName {
        /// The name.
        name: GroupName,
        /// How it is claimed.
        #[serde(default, with = "names::flag_names", skip_serializing_if = "NameFlags::is_empty")]
        flags: NameFlags,
        /// What the service says of itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        description: Option<Box<Description>>,
    },
    /// Gives a claim up. Answered by [`Response::Released`].
    ReleaseName {
        /// The name's id.
        name_id: NameId,
    },
    /// Looks a well-known name up. Answered by [`Response::Name`].
    FindName {
        /// The name.
        name: GroupName,
    },
    /// Lists well-known names that have owners, ascending. Answered by [`Response::Names`], in
    /// parts.
    Names,
    /// What does the service of this name say of itself? Answered by [`Response::Description`].
    DescribeName {
        /// The name.
        name: GroupName,
    },
    /// Asks to be told of changes of a name's owners. Answered by [`Response::NameWatched`].
    WatchName {
        /// The name, which nobody has to own.
        name: GroupName,
    },
    /// Ends such a watch. Answered by [`Response::Unwatched`].
    UnwatchName {
        /// The name's id.
        name_id: NameId,
    },
    /// Lists the members of a group by id, ascending. Answered by [`Response::Members`], in parts.
    Members {
        /// The group's id.
        group_id: GroupId,
    },
    /// Asks for a pool of buffers to lend payloads from. MEMORY brings it, and then
    /// [`Response::Pool`] comes.
    CreatePool {
        /// How many buffers.
        buffers: u32,
        /// Bytes of each.
        bytes: u64,
        /// The group whose members may read it in place, if they trust; then it serves no other
        /// destination.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group_id: Option<GroupId>,
    },
    /// The client has mapped its pool: from now on nobody else can map it for writing. Answered by
    /// [`Response::PoolSealed`].
    SealPool {
        /// Which.
        pool: u32,
    },
    /// Gives a pool back. What was lent from it stays so until it is completed. Answered by
    /// [`Response::PoolDropped`].
    DropPool {
        /// Which.
        pool: u32,
    },
    /// Cancels a request of this endpoint: its outcome is `cancelled`, in the queue like any other.
    CancelRequest {
        /// The request's sequence.
        request: Sequence,
    },
    /// Says that a request that this endpoint was sent will not be answered.
    DeclineRequest {
        /// The request's sequence.
        request: Sequence,
    },
}

impl Request {
    /// The text under `op` of every request of this version.
    pub const OPERATIONS: &'static [&'static str] = &[
        "ping",
        "status",
        "stats",
        "reload",
        "look",
        "accounts",
        "open-endpoint",
        "close-endpoint",
        "shutdown-receive",
        "create",
        "create-gated",
        "connect",
        "withdraw",
        "admit",
        "refuse",
        "expel",
        "set-terms",
        "close-peer",
        "join",
        "set-filter",
        "leave",
        "monitor",
        "unmonitor",
        "watch-group",
        "unwatch-group",
        "find-group",
        "groups",
        "own-name",
        "release-name",
        "find-name",
        "names",
        "describe-name",
        "watch-name",
        "unwatch-name",
        "members",
        "create-pool",
        "seal-pool",
        "drop-pool",
        "cancel-request",
        "decline-request",
    ];

    /// Reads the body of a CALL.
    ///
    /// # Errors
    ///
    /// What is wrong with it; [`Failure::from`] makes the answer.
    pub fn decode(body: &[u8]) -> Result<Self, ControlError> {
        cbor::decode(body).map_err(|error| match error {
            DecodeError::Malformed(error) => error.into(),
            DecodeError::Content(text) => Self::explain(body, text),
        })
    }

    /// Why serde refused a well-formed body, more exactly than its words say.
    fn explain(body: &[u8], text: String) -> ControlError {
        if let Some(op) = cbor::text_under(body, "op")
            && !Self::OPERATIONS.contains(&op)
        {
            return ControlError::UnknownOperation(clip(op, 64).to_owned());
        }
        for key in ["group", "name"] {
            if let Some(Err(error)) = cbor::text_under(body, key).map(str::parse::<GroupName>) {
                return error.into();
            }
        }
        let description = cbor::item_under(body, "description").map(cbor::decode::<Description>);
        if let Some(Err(DecodeError::Content(text))) = description {
            return ControlError::Description(clip(&text, 256).to_owned());
        }
        match text.strip_prefix(BAD_FILTER) {
            Some(text) => ControlError::Filter(clip(text, 256).to_owned()),
            None => ControlError::Content(clip(&text, 256).to_owned()),
        }
    }
}

/// The broker's answer to a CALL that did what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Response {
    /// To [`Request::Ping`].
    Pong,
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Stats`].
    Stats(Box<Stats>),
    /// To [`Request::Reload`]: the new rules are in force.
    Reloaded {
        /// How many rules there are now beside the built-in one.
        rules: u32,
        /// What has changed and is not in force: each with what it takes.
        pending: Vec<String>,
    },
    /// To [`Request::Look`].
    Seen(Box<Seen>),
    /// To [`Request::Accounts`]; in parts.
    Accounts {
        /// The next of them: each user, and then his connections.
        accounts: Vec<AccountInfo>,
    },
    /// To [`Request::OpenEndpoint`].
    Opened {
        /// The new endpoint's id.
        endpoint: EndpointId,
    },
    /// To [`Request::CloseEndpoint`].
    Closed,
    /// To [`Request::ShutdownReceive`].
    Shut {
        /// Its place in the order: nothing later reaches the endpoint.
        sequence: Sequence,
    },
    /// To [`Request::CancelRequest`] and [`Request::DeclineRequest`].
    RequestEnded {
        /// Whether that ended it. It may have had its outcome already.
        ended: bool,
    },
    /// To [`Request::CreatePool`].
    Pool {
        /// How SENDs name it: the number of the MEMORY that has come before.
        pool: u32,
    },
    /// To [`Request::SealPool`].
    PoolSealed,
    /// To [`Request::DropPool`].
    PoolDropped,
    /// To [`Request::Create`].
    Created {
        /// The new group.
        group_id: GroupId,
        /// Its place in the order.
        sequence: Sequence,
    },
    /// To [`Request::Join`].
    Joined {
        /// The group.
        group_id: GroupId,
        /// Its place in the order: every later message of the group comes (G4).
        sequence: Sequence,
        /// Whether this join made the group.
        created: bool,
        /// Members, this one counted.
        members: u32,
    },
    /// To [`Request::SetFilter`].
    FilterSet {
        /// Its place in the order: every later message of the group is selected by the new filter.
        sequence: Sequence,
    },
    /// To [`Request::Connect`].
    Connected {
        /// The group.
        group_id: GroupId,
        /// Where in the order the owner is told.
        sequence: Sequence,
        /// The group's owner, whose private messages have it as their sender.
        owner: EndpointId,
        /// Where to send private messages for the owner.
        peer: EndpointId,
    },
    /// To [`Request::Join`] of a gated group, once its owner has admitted the endpoint.
    Admitted {
        /// The group.
        group_id: GroupId,
        /// Its place in the order: every later message of the group comes (G4).
        sequence: Sequence,
        /// Members, this one counted.
        members: u32,
        /// How the endpoint is a member, as the owner decided.
        #[serde(default, with = "known_flag_names", skip_serializing_if = "MemberFlags::is_empty")]
        flags: MemberFlags,
        /// The group's owner.
        owner: EndpointId,
        /// Where to send private messages for the owner.
        peer: EndpointId,
    },
    /// To what an owner changes: [`Request::Admit`], [`Request::Expel`], [`Request::SetTerms`],
    /// [`Request::ClosePeer`].
    Changed {
        /// Its place in the order.
        sequence: Sequence,
    },
    /// To [`Request::Refuse`].
    Refused,
    /// To [`Request::Withdraw`].
    Withdrawn,
    /// To [`Request::Leave`].
    Left {
        /// Its place in the order: nothing later of the group comes (G4).
        sequence: Sequence,
    },
    /// To [`Request::Monitor`].
    Monitoring {
        /// Its place in the order: everything later is told.
        sequence: Sequence,
    },
    /// To [`Request::Unmonitor`].
    Unmonitored {
        /// Its place in the order: nothing later is told.
        sequence: Sequence,
    },
    /// To [`Request::WatchGroup`].
    Watching {
        /// The group.
        group_id: GroupId,
        /// Its place in the order: every later change of the membership is told (G4).
        sequence: Sequence,
        /// Members there.
        members: u32,
    },
    /// To [`Request::UnwatchGroup`] and [`Request::UnwatchName`].
    Unwatched {
        /// Its place in the order: no later change is told.
        sequence: Sequence,
    },
    /// To [`Request::FindGroup`].
    Group(GroupInfo),
    /// To [`Request::Groups`]: the next of them.
    Groups {
        /// The place in the order of the whole listing: what is later is not in it.
        sequence: Sequence,
        /// Ascending by name.
        groups: Vec<GroupInfo>,
    },
    /// To [`Request::OwnName`].
    Claimed {
        /// The name's id.
        name_id: NameId,
        /// Its place in the order: an owner gets every later message to the name (G4).
        sequence: Sequence,
        /// 0 for an owner, else how many there are before it.
        #[serde(default)]
        position: u32,
    },
    /// To [`Request::ReleaseName`].
    Released {
        /// Its place in the order: nothing sent to the name later comes (G4).
        sequence: Sequence,
    },
    /// To [`Request::FindName`].
    Name(NameInfo),
    /// To [`Request::Names`]: the next of them.
    Names {
        /// The place in the order of the whole listing: what is later is not in it.
        sequence: Sequence,
        /// Ascending by name.
        names: Vec<NameInfo>,
    },
    /// To [`Request::DescribeName`].
    Description(Box<Description>),
    /// To [`Request::WatchName`].
    NameWatched {
        /// The name's id.
        name_id: NameId,
        /// Its place in the order: every later change is told (G4).
        sequence: Sequence,
        /// Who owned it then.
        owners: Vec<Owner>,
    },
    /// To [`Request::Members`]: the next of them.
    Members {
        /// The place in the order at which the whole listing is the view.
        sequence: Sequence,
        /// Ascending by endpoint.
        members: Vec<MemberInfo>,
    },
}

/// One group in a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Its name.
    pub name: GroupName,
    /// Its id.
    pub group_id: GroupId,
    /// How many members it has.
    pub members: u32,
    /// The endpoint that made it, if that still lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creator: Option<EndpointId>,
    /// What it retains for those who join later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain: Option<Retain>,
    /// Its creator decides who is a member.
    #[serde(default, skip_serializing_if = "is_false")]
    pub gated: bool,
}

/// One member in a listing, and how far its endpoint has come with reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// User id of its process, from its `connect()`.
    pub uid: u32,
    /// Process id, from its `connect()`.
    pub pid: u32,
    /// How it is a member. A flag that the reader does not know is left out.
    #[serde(default, with = "known_flag_names")]
    pub flags: MemberFlags,
    /// Messages in its queue, of all its groups.
    pub queued_messages: u64,
    /// Bytes in its queue.
    pub queued_bytes: u64,
    /// Messages that its queue holds before it has no room.
    pub capacity: u64,
    /// Messages of this group that it did not get because it had no room (G7).
    pub dropped: u64,
    /// The sequence at which its queue became full, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_since_sequence: Option<Sequence>,
    /// Waiting sends that wait for it.
    pub blocks: u64,
}

/// What broker this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the broker program.
    pub version: String,
    /// Version of the wire protocol on this connection.
    pub protocol: u16,
    /// Where it listens, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Which bus this is.
    pub incarnation: Incarnation,
    /// The broker's process id.
    pub pid: u32,
    /// Whole seconds since its start.
    pub uptime_seconds: u64,
    /// The bounds of the bus.
    #[serde(with = "super::limits_form")]
    pub limits: Limits,
}

/// How the broker is doing. Counters count since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Sends that wait for room now.
    pub waiting_sends: u64,
    /// Requests that have no outcome yet.
    pub open_requests: u64,
    /// Endpoints now.
    pub endpoints: u64,
    /// Groups now.
    pub groups: u64,
    /// Well-known names that are claimed or watched now.
    pub names: u64,
    /// Connections now.
    pub connections: u64,
    /// Messages committed.
    pub messages: u64,
    /// Bytes of these, attributes and payloads, each counted once.
    pub message_bytes: u64,
    /// Messages put into queues: one with three recipients counts three.
    pub deliveries: u64,
    /// Deliveries that did not happen because a drop-when-full member had no room.
    pub dropped: u64,
    /// Sends refused, for whatever reason.
    pub refused: u64,
    /// Connections ended because their peer broke the protocol.
    pub protocol_errors: u64,
    /// Bytes read from connections.
    pub bytes_read: u64,
    /// Bytes written to connections.
    pub bytes_written: u64,
    /// Connections refused because there were as many as there may be.
    pub connections_refused: u64,
    /// Times that memory which was needed no more was looked for and given back to the system.
    pub memory_given_back: u64,
    /// Lines that were not logged, because many were like them.
    pub log_lines_suppressed: u64,
    /// Lines that were logged and not written, because nobody took them from standard error.
    pub log_lines_lost: u64,
    /// How long the broker has been running.
    pub uptime_us: u64,
    /// How long messages were in queues.
    pub time_in_queue: QueueTimes,
}

/// What a user's connections hold and may hold, or what one of them holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountInfo {
    /// Which user.
    pub uid: u32,
    /// Of a connection: its number, as in the broker's log. Without it the entry is of all
    /// connections of the user, and comes before theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<u64>,
    /// Of a connection: its process id; 0 if the broker cannot see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What it holds, or they hold.
    #[serde(default)]
    pub held: Amounts,
    /// Of a user: the limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Amounts>,
    /// Of a user: what each connection has in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assured: Option<Amounts>,
    /// Of a user: how often something was refused, since the user has had connections without a
    /// break.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Amounts>,
}

/// Who held what when a limit of a user was met; see [`crate::Holders`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Held {
    /// Whose limit it is.
    pub uid: u32,
    /// What was asked for.
    pub asked: u64,
    /// What the connection holds.
    pub connection: u64,
    /// What the connections of its process hold of what is lent.
    pub program: u64,
    /// What all connections of the user hold of what is lent.
    pub user: u64,
    /// What is lent to all of them together at most.
    pub lent: u64,
    /// The process that holds the most of it.
    pub most_pid: u32,
    /// What that holds.
    pub most: u64,
}

impl From<&Holders> for Held {
    fn from(holders: &Holders) -> Self {
        let Holders { uid, asked, connection, program, user, lent, most_pid, most } = *holders;
        Self { uid, asked, connection, program, user, lent, most_pid, most }
    }
}

/// Why something that was asked for did not happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text} ({code})")]
pub struct Failure {
    /// For programs.
    pub code: FailureCode,
    /// For people: what happened, to whom.
    #[serde(default)]
    pub text: String,
    /// With `would-block`: recipients without room, the first [`NAMED_RECIPIENTS`] of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub full: Vec<EndpointId>,
    /// With `would-block`: how many have no room.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub full_count: u32,
    /// With `limit-exceeded` and `too-large`: the name of the limit in [`Limits`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_value: Option<u64>,
    /// With a limit of a user: who holds what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// With `back-off`: how long to wait before it is worth trying again.
    #[serde(
        default,
        rename = "retry_after_ms",
        with = "optional_milliseconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure with a text for people, of which at most [`MAX_TEXT_BYTES`] are kept.
    #[must_use]
    pub fn new(code: FailureCode, text: impl Into<String>) -> Self {
        Self {
            code,
            text: clipped(text.into()),
            full: Vec::new(),
            full_count: 0,
            limit: None,
            limit_value: None,
            held: None,
            retry_after: None,
        }
    }

    /// Names recipients without room: the first [`NAMED_RECIPIENTS`] of `full`, of `count` in all.
    #[must_use]
    pub fn with_full(mut self, full: &[EndpointId], count: u32) -> Self {
        self.full = full[..full.len().min(NAMED_RECIPIENTS)].to_vec();
        self.full_count = count;
        self
    }

    /// Names the limit that stands in the way, by its name in [`Limits`], and its value.
    #[must_use]
    pub fn with_limit(mut self, name: &str, value: u64) -> Self {
        self.limit = Some(clip(name, 64).to_owned());
        self.limit_value = Some(value);
        self
    }

    /// Says who holds what of it.
    #[must_use]
    pub fn with_held(mut self, held: Option<Held>) -> Self {
        self.held = held;
        self
    }

    /// Says when it is worth trying again.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }
}

impl From<&ControlError> for Failure {
    /// The answer to a call that could not be read.
    fn from(error: &ControlError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Something that the broker tells an endpoint outside its queue's messages.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// Messages were dropped, and none of their group came after them to say so (G7).
    Gap {
        /// The group.
        group_id: GroupId,
        /// What is missing.
        gap: Gap,
    },
    /// The endpoint was put out of a group: nothing of the group comes after this (G8).
    Evicted {
        /// The group.
        group_id: GroupId,
        /// Where in the order the membership ended.
        sequence: Sequence,
        /// Why.
        reason: EvictionReason,
        /// For how long it had held senders up.
        stalled: Duration,
        /// Messages in its queue that it had not taken.
        queued_messages: u64,
        /// How long it may join this group again only with `DROP_WHEN_FULL`.
        back_off: Duration,
    },
    /// The membership of a watched group has changed (G4). It takes a place in the queue.
    View(Box<ViewNotice>),
    /// Changes of a watched group's membership were missed, and none came after them to say so.
    ViewsLost {
        /// The group.
        group_id: GroupId,
        /// What is missing.
        gap: Gap,
    },
    /// A request of this endpoint gets no reply.
    Outcome {
        /// The request's sequence.
        request: Sequence,
        /// The place of the outcome in the order.
        sequence: Sequence,
        /// Why.
        why: OutcomeCode,
    },
    /// Nobody waits any more for the reply to a request that this endpoint was sent.
    RequestEnded {
        /// The request's sequence.
        request: Sequence,
        /// Why.
        why: OutcomeCode,
    },
    /// All that a group retained at the place of a join has been told: what follows is later.
    Current {
        /// The group.
        group_id: GroupId,
        /// The place of the join.
        sequence: Sequence,
        /// How many retained messages came.
        messages: u32,
    },
    /// The endpoint has come to own a name that it waited for, or does not own it any more.
    Claim(Box<ClaimChanged>),
    /// The owners of a watched name have changed (G4).
    Owner(Box<OwnerChanged>),
    /// Changes of a watched name's owners were not told for want of room. Look it up again.
    OwnersLost {
        /// The name.
        name_id: NameId,
        /// What is missing.
        gap: Gap,
    },
    /// The owner of a gated group has put the endpoint out: nothing of the group comes after this.
    Expelled {
        /// The group.
        group_id: GroupId,
        /// Where in the order the membership ended.
        sequence: Sequence,
        /// The owner's words.
        text: String,
    },
    /// Somebody asks to be admitted to a gated group that the endpoint owns. It takes a place in the
    /// queue.
    Candidate {
        /// The group.
        group_id: GroupId,
        /// Its name.
        group: GroupName,
        /// Where in the order it asked.
        sequence: Sequence,
        /// The candidate.
        candidate: EndpointId,
        /// User id of its process, from its `connect()`.
        uid: u32,
        /// Process id, from its `connect()`.
        pid: u32,
        /// The peer endpoint through which its messages come.
        peer: EndpointId,
        /// How it would like to be a member.
        flags: MemberFlags,
    },
    /// Messages of a member to a gated group were dropped at its peer endpoint, and none of its
    /// came after them to say so (G7).
    PeerGap {
        /// The group.
        group_id: GroupId,
        /// The peer endpoint.
        peer: EndpointId,
        /// What is missing.
        gap: Gap,
    },
    /// What a member sends to a gated group does not go to its peer endpoint any more, because that
    /// was full for the stall limit (G8).
    PeerStalled {
        /// The group.
        group_id: GroupId,
        /// The peer endpoint.
        peer: EndpointId,
        /// Where in the order that was.
        sequence: Sequence,
    },
    /// The owner of a gated group has changed this member's flags, or what its peer endpoint cost
    /// it.
    FlagsChanged {
        /// The group.
        group_id: GroupId,
        /// How the endpoint is a member now.
        flags: MemberFlags,
        /// From where in the order on.
        sequence: Sequence,
    },
    /// The candidate or member at the other side of a peer endpoint is gone, or has closed it.
    PeerClosed {
        /// The peer endpoint.
        peer: EndpointId,
        /// Where in the order that was.
        sequence: Sequence,
    },
    /// All that was queued before `shutdown-receive` has come: nothing follows for this endpoint.
    ReceiveEnded,
    /// The next MESSAGE for this endpoint is a copy of one that went elsewhere.
    Monitored(Box<Copied>),
    /// Something that a monitor sees beside messages and views. It takes a place.
    MonitoredChange(Box<MonitoredChange>),
    /// The membership of some group has changed, as a monitor is told. It takes a place.
    MonitoredView(Box<ViewNotice>),
    /// A monitor has missed something, and nothing came after it to say so.
    MonitorGap {
        /// What is missing.
        gap: Gap,
    },
    /// A kind of a later version. Pass over it.
    Unknown {
        /// The text under `type`.
        kind: String,
        /// The body as it came.
        body: Bytes,
        /// Whether it takes a place in the queue, for which credit is to be returned.
        charged: bool,
    },
}

/// [`Notice`] as it stands on the wire.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum NoticeForm {
    Gap {
        group_id: GroupId,
        count: u64,
        first: Sequence,
        last: Sequence,
    },
    Evicted {
        group_id: GroupId,
        sequence: Sequence,
        reason: EvictionReason,
        #[serde(default, rename = "stalled_ms", with = "milliseconds")]
        stalled: Duration,
        #[serde(default)]
        queued_messages: u64,
        #[serde(default, rename = "back_off_ms", with = "milliseconds")]
        back_off: Duration,
    },
    MonitoredView(Box<ViewNotice>),
    MonitorGap {
        count: u64,
        first: Sequence,
        last: Sequence,
    },
    View(Box<ViewNotice>),
    ViewsLost {
        group_id: GroupId,
        count: u64,
        first: Sequence,
        last: Sequence,
    },
    Outcome {
        request: Sequence,
        sequence: Sequence,
        why: OutcomeCode,
    },
    RequestEnded {
        request: Sequence,
        why: OutcomeCode,
    },
    Current {
        group_id: GroupId,
        sequence: Sequence,
        messages: u32,
    },
    Expelled {
        group_id: GroupId,
        sequence: Sequence,
        #[serde(default)]
        text: String,
    },
    Candidate {
        group_id: GroupId,
        group: GroupName,
        sequence: Sequence,
        candidate: EndpointId,
        uid: u32,
        pid: u32,
        peer: EndpointId,
        #[serde(default, with = "known_flag_names", skip_serializing_if = "MemberFlags::is_empty")]
        flags: MemberFlags,
    },
    PeerGap {
        group_id: GroupId,
        peer: EndpointId,
        count: u64,
        first: Sequence,
        last: Sequence,
    },
    PeerStalled {
        group_id: GroupId,
        peer: EndpointId,
        sequence: Sequence,
    },
    PeerClosed {
        peer: EndpointId,
        sequence: Sequence,
    },
    ReceiveEnded,
    FlagsChanged {
        group_id: GroupId,
        #[serde(default, with = "known_flag_names")]
        flags: MemberFlags,
        sequence: Sequence,
    },
}

impl Notice {
    /// Whether it takes a place of its endpoint's queue: one message of no bytes.
    #[must_use]
    pub fn is_charged(&self) -> bool {
        match self {
            Self::View(_)
            | Self::MonitoredView(_)
            | Self::MonitoredChange(_)
            | Self::Owner(_)
            | Self::Candidate { .. } => true,
            Self::Unknown { charged, .. } => *charged,
            _ => false,
        }
    }

    fn from_form(form: NoticeForm) -> Self {
        match form {
            NoticeForm::Gap { group_id, count, first, last } => {
                Self::Gap { group_id, gap: Gap { count, first, last } }
            }
            NoticeForm::Evicted {
                group_id,
                sequence,
                reason,
                stalled,
                queued_messages,
                back_off,
            } => Self::Evicted { group_id, sequence, reason, stalled, queued_messages, back_off },
            NoticeForm::View(view) => Self::View(view),
            NoticeForm::MonitoredView(view) => Self::MonitoredView(view),
            NoticeForm::MonitorGap { count, first, last } => {
                Self::MonitorGap { gap: Gap { count, first, last } }
            }
            NoticeForm::Current { group_id, sequence, messages } => {
                Self::Current { group_id, sequence, messages }
            }
            NoticeForm::ViewsLost { group_id, count, first, last } => {
                Self::ViewsLost { group_id, gap: Gap { count, first, last } }
            }
            NoticeForm::Outcome { request, sequence, why } => {
                Self::Outcome { request, sequence, why }
            }
            NoticeForm::RequestEnded { request, why } => Self::RequestEnded { request, why },
            NoticeForm::Expelled { group_id, sequence, text } => {
                Self::Expelled { group_id, sequence, text }
            }
            NoticeForm::Candidate {
                group_id,
                group,
                sequence,
                candidate,
                uid,
                pid,
                peer,
                flags,
            } => Self::Candidate { group_id, group, sequence, candidate, uid, pid, peer, flags },
            NoticeForm::PeerGap { group_id, peer, count, first, last } => {
                Self::PeerGap { group_id, peer, gap: Gap { count, first, last } }
            }
            NoticeForm::PeerStalled { group_id, peer, sequence } => {
                Self::PeerStalled { group_id, peer, sequence }
            }
            NoticeForm::PeerClosed { peer, sequence } => Self::PeerClosed { peer, sequence },
            NoticeForm::ReceiveEnded => Self::ReceiveEnded,
            NoticeForm::FlagsChanged { group_id, flags, sequence } => {
                Self::FlagsChanged { group_id, flags, sequence }
            }
        }
    }

    const KINDS: &'static [&'static str] = &[
        "gap",
        "evicted",
        "view",
        "views-lost",
        "current",
        "outcome",
        "request-ended",
        "expelled",
        "candidate",
        "peer-gap",
        "peer-stalled",
        "peer-closed",
        "flags-changed",
        "receive-ended",
        "monitored-view",
        "monitor-gap",
    ];

    /// The notice, if the header's flag is that of its type.
    fn checked(self, charged: bool) -> Result<Self, ControlError> {
        if self.is_charged() == charged {
            return Ok(self);
        }
        Err(ControlError::Content("the flag CHARGED is not that of its type".into()))
    }

    /// Reads the body of a NOTICE whose header says whether it is `charged`.
    pub(super) fn decode(body: &[u8], charged: bool) -> Result<Self, ControlError> {
        if cbor::text_under(body, "type").is_some_and(|kind| names::Form::KINDS.contains(&kind)) {
            return decode::<names::Form>(body).map(Self::from).and_then(|n| n.checked(charged));
        }
        if cbor::text_under(body, "type").is_some_and(|kind| seen::Form::KINDS.contains(&kind)) {
            return decode::<seen::Form>(body).map(Self::from).and_then(|n| n.checked(charged));
        }
        match cbor::decode(body) {
            Ok(form) => Self::from_form(form).checked(charged),
            Err(DecodeError::Malformed(error)) => Err(error.into()),
            Err(DecodeError::Content(text)) => match cbor::text_under(body, "type") {
                Some(kind) if !Self::KINDS.contains(&kind) => Ok(Self::Unknown {
                    kind: kind.to_owned(),
                    body: Bytes::copy_from_slice(body),
                    charged,
                }),
                _ => Err(ControlError::Content(clip(&text, 256).to_owned())),
            },
        }
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        let form = match self {
            Self::Gap { group_id, gap } => NoticeForm::Gap {
                group_id: *group_id,
                count: gap.count,
                first: gap.first,
                last: gap.last,
            },
            Self::Evicted { group_id, sequence, reason, stalled, queued_messages, back_off } => {
                NoticeForm::Evicted {
                    group_id: *group_id,
                    sequence: *sequence,
                    reason: reason.clone(),
                    stalled: *stalled,
                    queued_messages: *queued_messages,
                    back_off: *back_off,
                }
            }
            Self::View(view) => NoticeForm::View(view.clone()),
            Self::Monitored(copied) => {
                return cbor::encode(out, &seen::Form::Monitored((**copied).clone()));
            }
            Self::MonitoredChange(change) => {
                return cbor::encode(out, &seen::Form::from(&**change));
            }
            Self::ReceiveEnded => NoticeForm::ReceiveEnded,
            Self::FlagsChanged { group_id, flags, sequence } => {
                NoticeForm::FlagsChanged { group_id: *group_id, flags: *flags, sequence: *sequence }
            }
            Self::MonitoredView(view) => NoticeForm::MonitoredView(view.clone()),
            Self::MonitorGap { gap } => {
                NoticeForm::MonitorGap { count: gap.count, first: gap.first, last: gap.last }
            }
            Self::Current { group_id, sequence, messages } => NoticeForm::Current {
                group_id: *group_id,
                sequence: *sequence,
                messages: *messages,
            },
            Self::ViewsLost { group_id, gap } => NoticeForm::ViewsLost {
                group_id: *group_id,
                count: gap.count,
                first: gap.first,
                last: gap.last,
            },
            Self::Outcome { request, sequence, why } => {
                NoticeForm::Outcome { request: *request, sequence: *sequence, why: why.clone() }
            }
            Self::RequestEnded { request, why } => {
                NoticeForm::RequestEnded { request: *request, why: why.clone() }
            }
            Self::Claim(claim) => return cbor::encode(out, &names::Form::from(&**claim)),
            Self::Owner(change) => return cbor::encode(out, &names::Form::from(&**change)),
            Self::OwnersLost { name_id, gap } => {
                let Gap { count, first, last } = *gap;
                let name_id = *name_id;
                let form = names::Form::OwnerChangesLost { name_id, count, first, last };
                return cbor::encode(out, &form);
            }
            Self::Expelled { group_id, sequence, text } => NoticeForm::Expelled {
                group_id: *group_id,
                sequence: *sequence,
                text: clip(text, MAX_TEXT_BYTES).to_owned(),
            },
            Self::Candidate { group_id, group, sequence, candidate, uid, pid, peer, flags } => {
                NoticeForm::Candidate {
                    group_id: *group_id,
                    group: group.clone(),
                    sequence: *sequence,
                    candidate: *candidate,
                    uid: *uid,
                    pid: *pid,
                    peer: *peer,
                    flags: *flags,
                }
            }
            Self::PeerGap { group_id, peer, gap } => NoticeForm::PeerGap {
                group_id: *group_id,
                peer: *peer,
                count: gap.count,
                first: gap.first,
                last: gap.last,
            },
            Self::PeerStalled { group_id, peer, sequence } => {
                NoticeForm::PeerStalled { group_id: *group_id, peer: *peer, sequence: *sequence }
            }
            Self::PeerClosed { peer, sequence } => {
                NoticeForm::PeerClosed { peer: *peer, sequence: *sequence }
            }
            Self::Unknown { body, .. } => return out.extend_from_slice(body),
        };
        cbor::encode(out, &form);
    }
}

/// The last frame of a side that ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// For programs.
    pub code: GoodbyeCode,
    /// For people.
    #[serde(default)]
    pub text: String,
}

impl Goodbye {
    /// A farewell with a text for people, of which at most [`MAX_TEXT_BYTES`] are kept.
    #[must_use]
    pub fn new(code: GoodbyeCode, text: impl Into<String>) -> Self {
        Self { code, text: clipped(text.into()) }
    }
}

impl From<&WireError> for Goodbye {
    /// What to tell a peer whose bytes are no frames.
    fn from(error: &WireError) -> Self {
        Self::new(GoodbyeCode::BadFrame, error.to_string())
    }
}

/// Why a control message cannot be read, though its frame is whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The body is not one CBOR value of the kind that control messages use.
    #[error("not a control message: {0}")]
    Malformed(#[from] CborError),
    /// The operation belongs to another version; the caller does without.
    #[error("operation {0:?} is unknown")]
    UnknownOperation(String),
    /// A name in it is no name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A filter in it is none.
    #[error("{0}")]
    Filter(String),
    /// A description in it is none.
    #[error("{0}")]
    Description(String),
    /// It is well-formed, and not what its operation or kind asks for.
    #[error("{0}")]
    Content(String),
}

impl ControlError {
    /// What to answer with.
    #[must_use]
    pub fn code(&self) -> FailureCode {
        match self {
            Self::UnknownOperation(_) => FailureCode::Unsupported,
            Self::Name(_) => FailureCode::BadName,
            Self::Filter(_) => FailureCode::BadFilter,
            Self::Description(_) => FailureCode::BadDescription,
            Self::Malformed(_) | Self::Content(_) => FailureCode::BadRequest,
        }
    }
}

/// Reads a body of which nothing more exact can be said than serde does.
pub(super) fn decode<T: de::DeserializeOwned>(body: &[u8]) -> Result<T, ControlError> {
    cbor::decode(body).map_err(|error| match error {
        DecodeError::Malformed(error) => error.into(),
        DecodeError::Content(text) => ControlError::Content(clip(&text, 256).to_owned()),
    })
}

/// A list of names; one that is unknown is an error, because it asks for something.
mod flag_names {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::MemberFlags;

    pub(in super::super) fn serialize<S: Serializer>(
        flags: &MemberFlags,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        // Gathered first: of an iterator whose length is unknown serde would make an indefinite
        // array, which control messages do not use.
        s.collect_seq(super::names_of(*flags).collect::<Vec<_>>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<MemberFlags, D::Error> {
        let names = Vec::<String>::deserialize(d)?;
        names.iter().try_fold(MemberFlags::empty(), |flags, name| {
            let flag = super::flag_of(name).ok_or_else(|| {
                de::Error::custom(format_args!(
                    "member flag {:?} is unknown",
                    super::clip(name, 64)
                ))
            })?;
            Ok(flags | flag)
        })
    }
}

/// A list of names; one that is unknown is passed over, because it only tells something.
pub(super) mod known_flag_names {
    use serde::{Deserialize, Deserializer};

    use super::MemberFlags;

    pub(in super::super) use super::flag_names::serialize;

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<MemberFlags, D::Error> {
        let names = Vec::<String>::deserialize(d)?;
        Ok(names.iter().filter_map(|name| super::flag_of(name)).collect())
    }
}

/// A duration as whole milliseconds.
pub(super) mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(in super::super) fn count(duration: Duration) -> u64 {
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn serialize<S: Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(count(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_millis)
    }
}

/// The same where there may be none.
mod optional_milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::milliseconds;

    #[expect(clippy::ref_option, reason = "serde calls it so")]
    pub(super) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        duration.map(milliseconds::count).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(d)?.map(Duration::from_millis))
    }
}

fn names_of(flags: MemberFlags) -> impl Iterator<Item = &'static str> {
    FLAG_NAMES.iter().filter(move |(flag, _)| flags.contains(*flag)).map(|(_, name)| *name)
}

fn flag_of(name: &str) -> Option<MemberFlags> {
    FLAG_NAMES.iter().find(|(_, known)| *known == name).map(|(flag, _)| *flag)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
pub(super) fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_members(interest: &Interest) -> bool {
    *interest == Interest::Members
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// The first `most` bytes of a text, or a little less where a character would be cut.
pub(super) fn clip(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

fn clipped(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    text
}

/// The longest text for people in a failure or a farewell.
pub const MAX_TEXT_BYTES: usize = 1024;

const FLAG_NAMES: [(MemberFlags, &str); 4] = [
    (MemberFlags::LOOPBACK, "loopback"),
    (MemberFlags::SEND_TO_PEER, "send-to-peer"),
    (MemberFlags::DROP_WHEN_FULL, "drop-when-full"),
    (MemberFlags::LEAVE_WHEN_FULL, "leave-when-full"),
];
