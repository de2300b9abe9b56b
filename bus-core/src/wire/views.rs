//! What a watcher of a group's membership is told (G4), as it stands on the wire.
//!
//! Invariant: a `view` takes a place in its endpoint's queue and says so in its frame's header, so
//! that a client which does not know the notice still returns the place.

use serde::{Deserialize, Serialize};

use super::ChangeCode;
use crate::{Change, EndpointId, Gap, GroupId, GroupName, Sequence, ViewChange};

/// A change of a watched group's membership, at its place in the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewNotice {
    /// The group.
    pub group_id: GroupId,
    /// Its name.
    pub group: GroupName,
    /// Where in the order it happened.
    pub sequence: Sequence,
    /// What happened.
    pub change: ChangeCode,
    /// Whose membership.
    pub endpoint: EndpointId,
    /// User id of its process, from its `connect()`.
    pub uid: u32,
    /// Process id, from its `connect()`.
    pub pid: u32,
    /// Members after it.
    pub members: u32,
    /// The group has ended with it, and the watch too.
    #[serde(default, skip_serializing_if = "super::control::is_false")]
    pub ended: bool,
    /// Changes of this group that the watcher had no room for, just before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<Gap>,
}

impl ViewNotice {
    /// The notice of a change.
    #[must_use]
    pub fn new(change: &ViewChange, missed: Option<Gap>) -> Self {
        Self {
            group_id: change.group,
            group: change.name.clone(),
            sequence: change.sequence,
            change: change.change.into(),
            endpoint: change.endpoint,
            uid: change.credentials.uid,
            pid: change.credentials.pid,
            members: change.members,
            ended: change.ended,
            missed,
        }
    }
}

impl From<Change> for ChangeCode {
    fn from(change: Change) -> Self {
        match change {
            Change::Joined => Self::Joined,
            Change::Left => Self::Left,
            Change::Evicted => Self::Evicted,
            Change::Closed => Self::Closed,
            Change::Ended => Self::Ended,
        }
    }
}
