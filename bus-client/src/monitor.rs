//! Monitors: seeing everything that happens on the bus, without anybody waiting for it.

use bus_core::wire::{self, Copied, CopyCode, Request, Response};
use bus_core::{Credentials, EndpointId, GroupId, GroupName, Sequence};

use crate::bus::Endpoint;
use crate::error::WatchError;
use crate::info::flag_names;
use crate::message::{Gap, Message};
use crate::names::OwnerChange;
use crate::state::Purpose;

/// A copy of a message that went elsewhere. It has no descriptors.
#[derive(Debug)]
#[non_exhaustive]
pub struct Monitored {
    /// Where it went.
    pub to: Addressee,
    /// What it is to who got it.
    pub role: Role,
    /// The message; [`missed`](Message::missed) tells what this monitor missed just before it.
    pub message: Message,
}

/// Where a message went that a monitor sees.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Addressee {
    /// To a group.
    #[non_exhaustive]
    Group {
        /// Its id.
        id: Option<GroupId>,
        /// Its name.
        name: Option<GroupName>,
    },
    /// To one endpoint.
    Endpoint(EndpointId),
    /// To a well-known name.
    #[non_exhaustive]
    Name {
        /// The name.
        name: GroupName,
        /// The endpoint that owned it, and got the message.
        endpoint: EndpointId,
    },
}

impl Addressee {
    /// The group's name, if it went to a group.
    #[must_use]
    pub fn group(&self) -> Option<&GroupName> {
        match self {
            Self::Group { name, .. } => name.as_ref(),
            Self::Endpoint(_) | Self::Name { .. } => None,
        }
    }

    /// The endpoint that got it, if it went to one.
    #[must_use]
    pub fn endpoint(&self) -> Option<EndpointId> {
        match self {
            Self::Group { .. } => None,
            Self::Endpoint(endpoint) | Self::Name { endpoint, .. } => Some(*endpoint),
        }
    }
}

/// What a message is to who got it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// It asks for nothing and answers nothing.
    #[default]
    Plain,
    /// Its sender waits for a reply.
    #[non_exhaustive]
    Request {
        /// The request's first sequence, if another endpoint was given it before, and died.
        first: Option<Sequence>,
    },
    /// It answers the request of this sequence.
    #[non_exhaustive]
    Reply {
        /// The request.
        request: Sequence,
        /// It says no.
        refusal: bool,
    },
}

/// Something that a monitor sees beside messages and changes of memberships.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MonitoredChange {
    /// The owners of a name have changed.
    #[non_exhaustive]
    Owner {
        /// How. Its own `missed` is empty.
        change: OwnerChange,
        /// What this monitor missed just before.
        missed: Option<Gap>,
    },
    /// A request gets no reply.
    Outcome(MonitoredOutcome),
    /// Something happened to a member of a group, or to who wants to be one.
    Member(MonitoredMember),
}

/// A request that gets no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MonitoredOutcome {
    /// The request's sequence.
    pub request: Sequence,
    /// The place of the outcome in the order.
    pub sequence: Sequence,
    /// Why: `gone`, `timed-out`, `cancelled`.
    pub why: String,
    /// The endpoint that has asked.
    pub caller: EndpointId,
    /// The endpoint that was asked.
    pub asked: EndpointId,
    /// What this monitor missed just before.
    pub missed: Option<Gap>,
}

/// Something that happened to a member of a group, or to who wants to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MonitoredMember {
    /// The group.
    pub group: GroupName,
    /// Its id.
    pub group_id: GroupId,
    /// Where in the order it happened.
    pub sequence: Sequence,
    /// What: `created`, `asked`, `refused`, `withdrawn`, `terms`, `filter`, `peer-stalled`,
    /// `peer-closed`, `owner-gone`.
    pub change: String,
    /// To whom.
    pub endpoint: EndpointId,
    /// Whose endpoint that is.
    pub credentials: Credentials,
    /// The member's flags after it, or a candidate's wishes.
    pub flags: Vec<String>,
    /// What this monitor missed just before.
    pub missed: Option<Gap>,
}

impl From<wire::MonitoredChange> for MonitoredChange {
    fn from(change: wire::MonitoredChange) -> Self {
        match change {
            wire::MonitoredChange::Owner(mut change) => {
                let missed = change.missed.take().map(gap);
                Self::Owner { change: change.into(), missed }
            }
            wire::MonitoredChange::Outcome(seen) => Self::Outcome(MonitoredOutcome {
                request: seen.request,
                sequence: seen.sequence,
                why: seen.why.as_str().to_owned(),
                caller: seen.caller,
                asked: seen.asked,
                missed: seen.missed.map(gap),
            }),
            wire::MonitoredChange::Member(seen) => Self::Member(MonitoredMember {
                group: seen.group,
                group_id: seen.group_id,
                sequence: seen.sequence,
                change: seen.change.as_str().to_owned(),
                endpoint: seen.endpoint,
                credentials: Credentials { uid: seen.uid, pid: seen.pid },
                flags: flag_names(seen.flags),
                missed: seen.missed.map(gap),
            }),
        }
    }
}

/// Where a copied message went, and what it is.
pub(crate) fn read(copied: Copied, id: Option<GroupId>) -> (Addressee, Role) {
    let to = match (copied.to, copied.name) {
        (Some(endpoint), Some(name)) => Addressee::Name { name, endpoint },
        (Some(endpoint), None) => Addressee::Endpoint(endpoint),
        (None, _) => Addressee::Group { id, name: copied.group },
    };
    let role = match (copied.kind, copied.request) {
        (CopyCode::Request, first) => Role::Request { first },
        (CopyCode::Reply, Some(request)) => Role::Reply { request, refusal: false },
        (CopyCode::Refusal, Some(request)) => Role::Reply { request, refusal: true },
        _ => Role::Plain,
    };
    (to, role)
}

/// A loss of all that a monitor sees: of no group.
pub(crate) fn gap(gap: bus_core::Gap) -> Gap {
    let group_id = GroupId::from_raw(0);
    Gap { group: None, group_id, count: gap.count, first: gap.first, last: gap.last }
}

impl Endpoint {
    /// Makes this endpoint a monitor: every message that is committed from the returned place on
    /// comes as [`Event::Monitored`](crate::Event::Monitored), whoever it is for, every change
    /// of a membership as [`Event::MonitoredView`](crate::Event::MonitoredView), and what else takes
    /// a place in the order as [`Event::MonitoredChange`](crate::Event::MonitoredChange); only what
    /// is about one group if it is named. Nobody waits for a monitor: what it has no room for it misses, and is
    /// told. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// The policy does not let this program see everything, or there are enough monitors.
    pub fn monitor(&self, group: Option<&str>) -> Result<Sequence, WatchError> {
        let group = group.map(str::parse::<GroupName>).transpose()?;
        self.ask_monitor(Request::Monitor { group })
    }

    /// Ends that. What was copied before may still come. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// It is no monitor, or the connection has ended.
    pub fn unmonitor(&self) -> Result<Sequence, WatchError> {
        self.ask_monitor(Request::Unmonitor)
    }

    fn ask_monitor(&self, request: Request) -> Result<Sequence, WatchError> {
        let answer =
            self.inner.connection.call(self.inner.key, Purpose::Plain, request, |response| {
                match response {
                    Response::Monitoring { sequence } | Response::Unmonitored { sequence } => {
                        Some(sequence)
                    }
                    _ => None,
                }
            });
        answer.map_err(WatchError::from_any_call)
    }
}
