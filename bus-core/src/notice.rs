//! What the bus tells an endpoint at a place in the order, beside messages.

use std::time::Duration;

use crate::id::{EndpointId, GroupId, Sequence};
use crate::membership::MemberFlags;
use crate::message::Credentials;
use crate::name::GroupName;

/// Why a member was put out of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvictionCause {
    /// It was stalled (G8): for the stall limit its queue had no room while senders waited for it,
    /// and it took less than one queue's capacity. It may join again with `DROP_WHEN_FULL` at once,
    /// and without it when its back-off is over.
    Stalled,
    /// Its queue had no room for a message, and it is a member with `LEAVE_WHEN_FULL`. It may join
    /// again at once.
    Full,
    /// The owner of the gated group has expelled it, for this reason. It may ask to be admitted
    /// again.
    Expelled(Box<str>),
    /// The owner of the gated group has closed the member's peer endpoint.
    PeerClosed,
    /// Nobody was put out: the owner of the gated group did not read, and so members of it send to
    /// their peer endpoints no more. Only [`Bus::tick`](crate::Bus::tick) tells this, for a log.
    PeerStalled,
    /// It was a worker of a shared name, held up those who send to it, and is none any more.
    /// [`Eviction::name`] is that name, and it belongs to no group. Only
    /// [`Bus::tick`](crate::Bus::tick) tells this, for a log; the worker has a notice of its own.
    WorkerStalled,
}

/// Somebody asks to be admitted to a gated group; its owner is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// The group.
    pub group: GroupId,
    /// Its name.
    pub name: GroupName,
    /// Where in the order it asked.
    pub sequence: Sequence,
    /// Who asks. To this endpoint go the owner's private messages.
    pub endpoint: EndpointId,
    /// Whose endpoint that is.
    pub credentials: Credentials,
    /// The peer endpoint through which messages of it arrive.
    pub peer: EndpointId,
    /// The flags that it would like to have.
    pub wishes: MemberFlags,
}

/// What happens to a peer endpoint, and its owner is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerChange {
    /// It was full for the stall limit while its member waited for it, and the owner read too
    /// little (G8): the member's messages to the group come here no more. The owner may set the
    /// flag again.
    Stalled,
    /// The candidate or member has closed it, or is gone.
    Closed,
}

/// A member that was put out of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Eviction {
    /// The member.
    pub endpoint: EndpointId,
    /// Whose it is.
    pub credentials: Credentials,
    /// The group.
    pub group: GroupId,
    /// The group's name.
    pub name: GroupName,
    /// Where in the order the membership ended: nothing of the group after this arrives.
    pub sequence: Sequence,
    /// Why.
    pub cause: EvictionCause,
    /// For how long it had held up senders.
    pub stalled: Duration,
    /// Messages in its queue that it had not taken.
    pub queued_messages: u64,
    /// How long it may join this group again only with `DROP_WHEN_FULL`.
    pub back_off: Duration,
}
