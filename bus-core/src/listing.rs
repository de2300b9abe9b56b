//! Listings: groups, names, and members of a group, one entry at a time, for one place in the order.
//!
//! Invariant: a listing holds no lock between two entries and keeps no copy of what it lists, so it
//! may be read as slowly as its reader likes, or be given up, and costs nobody anything. The members
//! are those of one immutable snapshot: exactly the view at the listing's sequence. Of groups and
//! names there is no snapshot; they are counted as they begin, and what has begun later than the
//! listing is passed over. So a listing of them has everything that was there at its sequence
//! and is there still, and nothing that came later. What is told about an entry (depths of
//! queues, numbers of members, owners) is as it was when the entry was taken.

use std::iter::FusedIterator;
use std::sync::Arc;

use crate::bus::{Bus, GroupInfo, MemberInfo};
use crate::directory::Directory;
use crate::id::{GroupId, Sequence};
use crate::lock_set::LockBits;
use crate::membership::{Member, Membership};
use crate::name::GroupName;
use crate::name_registry::NameInfo;

/// All groups in the order of their names. Made by [`Bus::groups`]; taking an entry does not block.
pub type Groups = ByName<GroupInfo>;

/// All names that somebody owns, in their order. Made by [`Bus::names`]; taking an entry does not
/// block.
pub type Names = ByName<NameInfo>;

/// A listing of what has names, in their order: [`Groups`] or [`Names`].
#[derive(Debug)]
pub struct ByName<T> {
    bus: Bus,
    sequence: Sequence,
    /// How many had begun then.
    newest: u64,
    after: Option<GroupName>,
    /// The first behind a name that is one of so many first beginnings.
    next: fn(&Directory, Option<&GroupName>, u64) -> Option<T>,
    name: fn(&T) -> &GroupName,
}

/// The members of a group in the order of their endpoint ids. Made by [`Bus::members`]; taking an
/// entry does not block.
#[derive(Debug)]
pub struct Members {
    bus: Bus,
    sequence: Sequence,
    membership: Arc<Membership>,
    at: usize,
}

impl ByName<GroupInfo> {
    pub(crate) fn new(bus: Bus) -> Self {
        let next = |directory: &Directory, after: Option<&GroupName>, newest: u64| {
            let mut rest = directory.groups_after(after);
            rest.find(|record| record.group.id.get() <= newest).map(GroupInfo::of)
        };
        Self::begin(bus, |directory| directory.newest_group().get(), next, |info| &info.name)
    }
}

impl ByName<NameInfo> {
    pub(crate) fn new(bus: Bus) -> Self {
        let next = |directory: &Directory, after: Option<&GroupName>, newest: u64| {
            directory.registry.owned_after(after, newest)
        };
        Self::begin(bus, |directory| directory.registry.beginnings(), next, |info| &info.name)
    }
}

impl<T> ByName<T> {
    fn begin(
        bus: Bus,
        newest: fn(&Directory) -> u64,
        next: fn(&Directory, Option<&GroupName>, u64) -> Option<T>,
        name: fn(&T) -> &GroupName,
    ) -> Self {
        let directory = bus.inner.directory.lock();
        let newest = newest(&directory);
        let sequence = bus.inner.locks.acquire(LockBits::all()).now();
        drop(directory);
        Self { bus, sequence, newest, after: None, next, name }
    }

    /// Where in the order the listing stands: nothing that began later is in it.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }
}

impl<T> Iterator for ByName<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let directory = self.bus.inner.directory.lock();
        let info = (self.next)(&directory, self.after.as_ref(), self.newest)?;
        self.after = Some((self.name)(&info).clone());
        Some(info)
    }
}

impl Members {
    /// None if there is no such group.
    pub(crate) fn new(bus: Bus, group: GroupId) -> Option<Self> {
        let group = Arc::clone(&bus.inner.directory.lock().group(group)?.group);
        let mut held = bus.inner.locks.acquire(LockBits::all());
        let (membership, sequence) = (group.membership(), held.now());
        drop(held);
        Some(Self { bus, sequence, membership, at: 0 })
    }

    /// The members are those that hold right after this sequence.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    fn info(&self, member: &Member) -> MemberInfo {
        let place = member.place;
        let shard = self.bus.inner.locks.acquire_one(place.lock);
        let intake = shard.intakes.get(place.slot as usize);
        let intake = intake.filter(|intake| intake.id() == place.id);
        // Who has been closed since has an empty queue, and was a member nevertheless.
        let (queued_messages, queued_bytes) = intake.map_or((0, 0), |intake| intake.depth());
        let capacity = u64::from(self.bus.limits().queue_messages);
        MemberInfo {
            endpoint: place.id,
            credentials: member.credentials,
            flags: member.flags,
            queued_messages,
            queued_bytes,
            capacity: intake.map_or(capacity, |intake| intake.core.capacity.messages),
            dropped: member.drops.as_ref().map_or(0, |drops| drops.total()),
            full_since: intake.and_then(|intake| intake.full_since()),
            blocks: intake.map_or(0, |intake| intake.core.blocks()),
        }
    }
}

impl Iterator for Members {
    type Item = MemberInfo;

    fn next(&mut self) -> Option<MemberInfo> {
        let info = self.info(self.membership.members().get(self.at)?);
        self.at += 1;
        Some(info)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let rest = self.membership.members().len() - self.at;
        (rest, Some(rest))
    }
}

impl ExactSizeIterator for Members {}
impl FusedIterator for Members {}
