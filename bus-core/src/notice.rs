//! What the bus tells an endpoint at a place in the order, beside messages.

use std::time::Duration;

use crate::id::{EndpointId, GroupId, Sequence};
use crate::message::Credentials;
use crate::name::GroupName;

/// A member that was put out of a group because it was stalled (G8): for the stall limit its queue
/// had no room while senders waited for it, and it took less than one queue's capacity.
///
/// It may join again with `DROP_WHEN_FULL` at once, and without it when its back-off is over.
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
    /// For how long it had held up senders.
    pub stalled: Duration,
    /// Messages in its queue that it had not taken.
    pub queued_messages: u64,
    /// How long it may join this group again only with `DROP_WHEN_FULL`.
    pub back_off: Duration,
}
