//! What an endpoint has on the bus by name, and the names behind ids: for who decides what may be
//! had, and decides anew.
//!
//! Invariant: all of it is read from the directory under its lock, so it is what held at one moment.
//! Nothing here changes anything.

use crate::bus::Bus;
use crate::endpoint::Endpoint;
use crate::id::{EndpointId, GroupId, NameId};
use crate::name::GroupName;

/// Something that an endpoint has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holding {
    /// It is a member of this group.
    Member(GroupName),
    /// It made this group, which lives.
    Creator(GroupName),
    /// It watches the membership of this group.
    Watcher(GroupName),
    /// It owns this name, or waits for it.
    Claim(GroupName),
    /// It watches who owns this name.
    OwnerWatcher(GroupName),
}

impl Endpoint {
    /// What it has, in no order. Does not block.
    #[must_use]
    pub fn holdings(&self) -> Vec<Holding> {
        let directory = self.bus().inner.directory.lock();
        let Some(record) = directory.endpoints.get(&self.id()) else {
            return Vec::new();
        };
        let created = record.created.iter().filter_map(|id| directory.group(*id));
        let members = record.memberships.iter().map(|g| Holding::Member(g.name.clone()));
        let creators = created.map(|known| Holding::Creator(known.group.name.clone()));
        let watchers = record.watching.iter().map(|g| Holding::Watcher(g.name.clone()));
        let claims = record.names.iter().map(|n| Holding::Claim(n.text.clone()));
        let owners = record.watched_names.iter().map(|n| Holding::OwnerWatcher(n.text.clone()));
        members.chain(creators).chain(watchers).chain(claims).chain(owners).collect()
    }
}

impl Bus {
    /// What a group is called. None if it has ended. Does not block.
    #[must_use]
    pub fn group_name(&self, group: GroupId) -> Option<GroupName> {
        let directory = self.inner.directory.lock();
        directory.group(group).map(|known| known.group.name.clone())
    }

    /// The text of a well-known name. None if nobody owns, awaits or watches it any more. Does not
    /// block.
    #[must_use]
    pub fn name_text(&self, name: NameId) -> Option<GroupName> {
        let directory = self.inner.directory.lock();
        directory.registry.get(name).map(|known| known.text.clone())
    }

    /// Whether somebody owns that name now. Does not block.
    #[must_use]
    pub fn is_owned(&self, name: NameId) -> bool {
        let directory = self.inner.directory.lock();
        let known = directory.registry.get(name);
        known.is_some_and(|known| !known.ownership().owners().is_empty())
    }

    /// Whether it is the private address of a member at the owner of a gated group. Does not block.
    #[must_use]
    pub fn is_peer(&self, endpoint: EndpointId) -> bool {
        self.inner.directory.lock().peers.contains_key(&endpoint)
    }
}
