//! What a monitor is told, as it stands on the wire: where the next copy went, and changes.
//!
//! Invariant: a change takes a place in the monitor's queue and says so in its frame's header, as a
//! `view` does; `monitored` takes none, because the MESSAGE after it does.

use serde::{Deserialize, Serialize};

use super::{CopyCode, MemberCode, OutcomeCode, Owner, OwnerChanged};
use crate::{
    Addressee, EndpointId, Gap, GroupId, GroupName, MemberChange, MemberEvent, MemberFlags,
    Message, NameId, Sequence,
};

/// Where the next MESSAGE for a monitor went, and what it is to who got it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// The group that it went to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// The endpoint that it went to, if it went to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<EndpointId>,
    /// The name under which that endpoint got it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<GroupName>,
    /// What it is.
    #[serde(default = "message", skip_serializing_if = "is_message")]
    pub kind: CopyCode,
    /// The sequence of the request that it answers, or as which it was first given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Sequence>,
}

impl Copied {
    /// What is to be told of a message that went there.
    #[must_use]
    pub fn new(message: &Message, to: Addressee) -> Self {
        let (group, to, name) = match to {
            Addressee::Group(_, group) => (Some(group), None, None),
            Addressee::Endpoint(to) => (None, Some(to), None),
            Addressee::Name(_, name, to) => (None, Some(to), Some(name)),
        };
        let kind = match message.answers() {
            Some(_) if message.is_refusal() => CopyCode::Refusal,
            Some(_) => CopyCode::Reply,
            None if message.is_request() => CopyCode::Request,
            None => CopyCode::Message,
        };
        Self { group, to, name, kind, request: message.answers().or(message.repeats()) }
    }
}

/// A change that a monitor sees. It takes a place in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MonitoredChange {
    /// The owners of a name have changed.
    Owner(OwnerChanged),
    /// A request gets no reply.
    Outcome(MonitoredOutcome),
    /// Something happened to a member or a candidate.
    Member(MonitoredMember),
}

/// A request that gets no reply, as a monitor is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitoredOutcome {
    /// The request's sequence.
    pub request: Sequence,
    /// The place of the outcome in the order.
    pub sequence: Sequence,
    /// Why.
    pub why: OutcomeCode,
    /// The endpoint that has asked.
    pub caller: EndpointId,
    /// The endpoint that was asked.
    pub asked: EndpointId,
    /// What the monitor missed just before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<Gap>,
}

/// Something that happened to a member or a candidate, as a monitor is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitoredMember {
    /// The group.
    pub group_id: GroupId,
    /// Its name.
    pub group: GroupName,
    /// Where in the order it happened.
    pub sequence: Sequence,
    /// What happened.
    pub change: MemberCode,
    /// To whom.
    pub endpoint: EndpointId,
    /// User id of its process, from its `connect()`.
    pub uid: u32,
    /// Process id, from its `connect()`.
    pub pid: u32,
    /// The member's flags after it, or a candidate's wishes.
    #[serde(
        default,
        with = "super::control::known_flag_names",
        skip_serializing_if = "MemberFlags::is_empty"
    )]
    pub flags: MemberFlags,
    /// What the monitor missed just before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<Gap>,
}

impl MonitoredMember {
    /// The notice of a change.
    #[must_use]
    pub fn new(change: &MemberChange, missed: Option<Gap>) -> Self {
        Self {
            group_id: change.group,
            group: change.name.clone(),
            sequence: change.sequence,
            change: change.event.into(),
            endpoint: change.endpoint,
            uid: change.credentials.uid,
            pid: change.credentials.pid,
            flags: change.flags,
            missed,
        }
    }
}

impl From<MemberEvent> for MemberCode {
    fn from(event: MemberEvent) -> Self {
        match event {
            MemberEvent::Created => Self::Created,
            MemberEvent::Asked => Self::Asked,
            MemberEvent::Refused => Self::Refused,
            MemberEvent::Withdrawn => Self::Withdrawn,
            MemberEvent::Terms => Self::Terms,
            MemberEvent::Filter => Self::Filter,
            MemberEvent::PeerStalled => Self::PeerStalled,
            MemberEvent::PeerClosed => Self::PeerClosed,
            MemberEvent::OwnerGone => Self::OwnerGone,
        }
    }
}

/// A notice for a monitor, as it stands on the wire.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(super) enum Form {
    Monitored(Copied),
    MonitoredOwner {
        name_id: NameId,
        name: GroupName,
        sequence: Sequence,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        old: Option<Owner>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        new: Option<Owner>,
        owners: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        missed: Option<Gap>,
    },
    MonitoredOutcome(MonitoredOutcome),
    MonitoredMember(MonitoredMember),
}

impl Form {
    pub(super) const KINDS: &'static [&'static str] =
        &["monitored", "monitored-owner", "monitored-outcome", "monitored-member"];
}

impl From<&MonitoredChange> for Form {
    fn from(change: &MonitoredChange) -> Self {
        match change.clone() {
            MonitoredChange::Owner(change) => {
                let OwnerChanged { name_id, name, sequence, old, new, owners, missed } = change;
                Self::MonitoredOwner { name_id, name, sequence, old, new, owners, missed }
            }
            MonitoredChange::Outcome(outcome) => Self::MonitoredOutcome(outcome),
            MonitoredChange::Member(member) => Self::MonitoredMember(member),
        }
    }
}

impl From<Form> for super::Notice {
    fn from(form: Form) -> Self {
        Self::MonitoredChange(Box::new(match form {
            Form::Monitored(copied) => return Self::Monitored(Box::new(copied)),
            Form::MonitoredOwner { name_id, name, sequence, old, new, owners, missed } => {
                let change = OwnerChanged { name_id, name, sequence, old, new, owners, missed };
                MonitoredChange::Owner(change)
            }
            Form::MonitoredOutcome(outcome) => MonitoredChange::Outcome(outcome),
            Form::MonitoredMember(member) => MonitoredChange::Member(member),
        }))
    }
}

fn message() -> CopyCode {
    CopyCode::Message
}

fn is_message(kind: &CopyCode) -> bool {
    *kind == CopyCode::Message
}
