//! A group's members at one generation: immutable, sorted by endpoint id, without duplicates.
//!
//! A change makes a new one. A send keeps the one it knows and compares generations under the
//! locks, so that the look-up and the sorting are paid for by who changes the group and not by
//! who sends to it.

use std::sync::Arc;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::filter::MemberFilters;
use crate::filter::index::FilterIndex;
use crate::gated::Peer;
use crate::id::{EndpointId, Generation};
use crate::intake::Drops;
use crate::lock_set::{IntakePlace, LOCKS, LockBits};
use crate::message::Credentials;
use crate::view::Watcher;

bitflags! {
    /// What a membership asks for.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(transparent)]
    pub struct MemberFlags: u8 {
        /// The member's own messages come back to it.
        const LOOPBACK = 1;
        /// In a gated group: the member's messages also go to its peer endpoint.
        const SEND_TO_PEER = 2;
        /// The member misses messages while its queue has no room, rather than make senders wait;
        /// it is told what it missed (G7).
        const DROP_WHEN_FULL = 4;
        /// The member leaves the group when its queue has no room for a message of it, rather than
        /// make senders wait; it is told. With `DROP_WHEN_FULL` it never comes to that.
        const LEAVE_WHEN_FULL = 8;
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) place: IntakePlace,
    /// Whose it is, for listings that outlast the endpoint.
    pub(crate) credentials: Credentials,
    pub(crate) flags: MemberFlags,
    /// Where losses are counted; present with `DROP_WHEN_FULL` only.
    pub(crate) drops: Option<Arc<Drops>>,
    /// What it wants to hear, if not everything.
    pub(crate) filters: Option<Arc<MemberFilters>>,
    /// With `SEND_TO_PEER`: where its own messages go besides.
    pub(crate) peer: Option<Arc<Peer>>,
}

impl Member {
    fn leaves_when_full(&self) -> bool {
        self.flags.contains(MemberFlags::LEAVE_WHEN_FULL)
    }
}

#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) generation: Generation,
    /// The generation since which who gets what has been the same.
    pub(crate) audience: Generation,
    /// The group has ended, and this is the last generation of it.
    pub(crate) ended: bool,
    members: Box<[Member]>,
    watchers: Arc<[Watcher]>,
    /// Some member has `LEAVE_WHEN_FULL`.
    leavers: bool,
    /// How many members each lock covers, so that the set without one of them is known at once.
    per_lock: [u32; LOCKS],
    filters: FilterIndex,
    /// Where those without a filter stand. Kept only while others have one.
    unfiltered: Box<[u32]>,
}

impl Membership {
    pub(crate) fn empty() -> Self {
        let filters = FilterIndex::default();
        Self::new(Generation(0), Box::default(), Arc::new([]), filters, false)
    }

    fn new(
        generation: Generation,
        members: Box<[Member]>,
        watchers: Arc<[Watcher]>,
        filters: FilterIndex,
        ended: bool,
    ) -> Self {
        let (mut per_lock, mut leavers) = ([0; LOCKS], false);
        for member in &members {
            per_lock[member.place.lock.at()] += 1;
            leavers |= member.leaves_when_full();
        }
        let unfiltered = if filters.is_empty() {
            Box::default()
        } else {
            let members = (0..).zip(&members);
            members.filter(|(_, member)| member.filters.is_none()).map(|(at, _)| at).collect()
        };
        let audience = generation;
        Self {
            generation,
            audience,
            ended,
            members,
            watchers,
            leavers,
            per_lock,
            filters,
            unfiltered,
        }
    }

    /// Whether some member leaves rather than make a sender wait.
    pub(crate) fn has_leavers(&self) -> bool {
        self.leavers
    }

    /// Whether this endpoint is such a member.
    pub(crate) fn leaves_when_full(&self, id: EndpointId) -> bool {
        self.leavers && self.position(id).is_some_and(|at| self.members[at].leaves_when_full())
    }

    /// Whether the recipients of a message are to be selected.
    pub(crate) fn has_filters(&self) -> bool {
        !self.filters.is_empty()
    }

    /// The filters of all members, to be looked up in.
    pub(crate) fn filters(&self) -> &FilterIndex {
        &self.filters
    }

    /// Where members without a filter stand, ascending; only if there are others.
    pub(crate) fn unfiltered(&self) -> &[u32] {
        &self.unfiltered
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    fn find(&self, id: EndpointId) -> Result<usize, usize> {
        self.members.binary_search_by_key(&id, |member| member.place.id)
    }

    pub(crate) fn position(&self, id: EndpointId) -> Option<usize> {
        self.find(id).ok()
    }

    fn next(&self) -> Generation {
        Generation(self.generation.0 + 1)
    }

    /// The next generation, with `member` in it; instead of what it was before, if it was one.
    pub(crate) fn with(&self, member: Member) -> Self {
        let (at, rest) = match self.find(member.place.id) {
            Ok(at) => (at, at + 1),
            Err(at) => (at, at),
        };
        let mut members = Vec::with_capacity(self.members.len() + 1);
        members.extend_from_slice(&self.members[..at]);
        let mut filters = self.filters.clone();
        if let Some(old) = self.members[at..rest].first().and_then(|old| old.filters.as_ref()) {
            filters.remove(member.place.id, old);
        }
        if let Some(new) = &member.filters {
            filters.add(member.place.id, new);
        }
        members.push(member);
        members.extend_from_slice(&self.members[rest..]);
        Self::new(self.next(), members.into(), Arc::clone(&self.watchers), filters, false)
    }

    /// The next generation, with other filters of the member at `at`.
    pub(crate) fn with_filters(&self, at: usize, new: Option<Arc<MemberFilters>>) -> Self {
        let mut members = self.members.clone();
        let mut filters = self.filters.clone();
        let id = members[at].place.id;
        if let Some(old) = members[at].filters.take() {
            filters.remove(id, &old);
        }
        if let Some(new) = &new {
            filters.add(id, new);
        }
        members[at].filters = new;
        Self::new(self.next(), members, Arc::clone(&self.watchers), filters, self.ended)
    }

    /// The next generation, without endpoint `id`, and ended if nobody keeps the group alive.
    pub(crate) fn without(&self, id: EndpointId, creator_lives: bool) -> Self {
        let mut members = self.members.to_vec();
        let mut filters = self.filters.clone();
        if let Some(at) = self.position(id)
            && let Some(old) = members.remove(at).filters
        {
            filters.remove(id, &old);
        }
        let ended = members.is_empty() && !creator_lives;
        Self::new(self.next(), members.into(), Arc::clone(&self.watchers), filters, ended)
    }

    /// The next generation, in which the members named by `which` send to no peer endpoint.
    pub(crate) fn without_peers(&self, which: impl Fn(EndpointId) -> bool) -> Self {
        let mut members = self.members.clone();
        for member in members.iter_mut().filter(|member| which(member.place.id)) {
            member.flags.remove(MemberFlags::SEND_TO_PEER);
            member.peer = None;
        }
        let filters = self.filters.clone();
        Self::new(self.next(), members, Arc::clone(&self.watchers), filters, self.ended)
    }

    pub(crate) fn watchers(&self) -> &[Watcher] {
        &self.watchers
    }

    /// The next generation, with `watcher` in it, instead of one of the same endpoint.
    pub(crate) fn with_watcher(&self, watcher: Watcher) -> Self {
        let others = self.watchers.iter().filter(|w| w.place.id != watcher.place.id);
        let watchers = others.cloned().chain([watcher.clone()]).collect();
        let (members, filters) = (self.members.clone(), self.filters.clone());
        let next = Self::new(self.next(), members, watchers, filters, self.ended);
        Self { audience: self.audience, ..next }
    }

    /// The same generation, before it is published, without the watcher `id`.
    pub(crate) fn forget_watcher(mut self, id: EndpointId) -> Self {
        let others = self.watchers.iter().filter(|watcher| watcher.place.id != id);
        self.watchers = others.cloned().collect();
        self
    }

    /// The next generation, without the watcher `id`.
    pub(crate) fn without_watcher(&self, id: EndpointId) -> Self {
        let watchers = Arc::clone(&self.watchers);
        let (members, filters) = (self.members.clone(), self.filters.clone());
        let next = Self::new(self.next(), members, watchers, filters, self.ended);
        Self { audience: self.audience, ..next.forget_watcher(id) }
    }

    /// The locks that cover the recipients: all members but the one at `skip`.
    pub(crate) fn locks_without(&self, skip: Option<usize>) -> LockBits {
        let mut per_lock = self.per_lock;
        if let Some(at) = skip {
            per_lock[self.members[at].place.lock.at()] -= 1;
        }
        LockBits::covering(&per_lock)
    }
}

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;
    use crate::lock_set::LockIndex;

    fn member(id: u64) -> Member {
        let place =
            IntakePlace { id: EndpointId::from_raw(id), lock: LockIndex::from_hash(id), slot: 0 };
        Member {
            place,
            credentials: Credentials { uid: 0, pid: 0 },
            flags: MemberFlags::empty(),
            drops: None,
            filters: None,
            peer: None,
        }
    }

    fn ids(membership: &Membership) -> Vec<u64> {
        membership.members().iter().map(|member| member.place.id.get()).collect()
    }

    #[test]
    fn stays_sorted_and_counts_generations() {
        let mut membership = Membership::empty();
        for id in [5, 1, 9, 3] {
            membership = membership.with(member(id));
        }
        assert_eq!(ids(&membership), [1, 3, 5, 9]);
        assert_eq!(membership.generation, Generation(4));
        let left = membership.without(EndpointId::from_raw(5), true);
        assert_eq!((ids(&left), left.generation), (vec![1, 3, 9], Generation(5)));
    }

    #[test]
    fn who_watches_is_no_part_of_the_audience() {
        use crate::intake::Lost;
        use crate::view::Interest;

        let membership = Membership::empty().with(member(1)).with(member(5));
        let place = member(7).place;
        let lost = Arc::new(Drops::new(crate::id::GroupId::from_raw(1), Lost::Views));
        let watched = membership.with_watcher(Watcher { place, interest: Interest::Members, lost });
        let again = watched.without_watcher(place.id);
        assert_eq!([watched.audience, again.audience], [membership.audience; 2]);
        assert!(again.generation > watched.generation);
        let left = again.without(EndpointId::from_raw(5), true);
        assert_eq!(left.audience, left.generation);
    }

    #[test]
    fn locks_cover_the_recipients_and_no_more() {
        // 1 and 9 share lock 1; 2 has lock 2 alone.
        let membership = Membership::empty().with(member(1)).with(member(2)).with(member(9));
        let one = LockBits::one(LockIndex::from_hash(1));
        let mut both = one;
        both.insert(LockIndex::from_hash(2));
        assert_eq!(membership.locks_without(None), both);
        assert_eq!(membership.locks_without(Some(0)), both, "9 is still there");
        assert_eq!(membership.locks_without(Some(1)), one, "2 was alone behind its lock");
    }

    #[test]
    fn filters_narrow_the_locks_to_those_who_accept() {
        use crate::Attributes;
        use crate::filter::selection::Selection;
        use crate::filter::{Seen, Subject};

        let wants = |id, text: &str| {
            let own = text.parse().expect("a good filter");
            Member { filters: MemberFilters::new(Some(own), None), ..member(id) }
        };
        // 1, 2 and 9 have locks 1, 2 and 1.
        let membership = Membership::empty().with(wants(1, "key^=a."));
        let membership = membership.with(wants(2, "key^=b.")).with(wants(9, "key=a.x"));
        let mut selection = Selection::default();
        let mut chosen = |membership: &Membership, skip, key: &str| {
            let attributes = Attributes::builder().key(key).build().expect("a short key");
            let subject = Subject { attributes: &attributes, payload: Some(Seen::Bytes(&[])) };
            selection.choose(membership, skip, subject);
            (selection.positions().to_vec(), selection.locks())
        };
        let lock = |at| LockBits::one(LockIndex::from_hash(at));
        assert_eq!(chosen(&membership, None, "a.x"), (vec![0, 2], lock(1)));
        assert_eq!(chosen(&membership, Some(0), "a.x"), (vec![2], lock(1)));
        assert_eq!(chosen(&membership, None, "b.x"), (vec![1], lock(2)), "a disjoint set of locks");
        assert_eq!(chosen(&membership, None, "c"), (vec![], LockBits::NONE));

        let all = membership.with(member(3));
        let (positions, locks) = chosen(&all, None, "b.x");
        let mut both = lock(2);
        both.insert(LockIndex::from_hash(3));
        assert_eq!((positions, locks), (vec![1, 2], both), "who has no filter is always there");

        let gone = all.without(EndpointId::from_raw(2), true);
        assert_eq!(chosen(&gone, None, "b.x"), (vec![1], lock(3)));
        let at = gone.position(EndpointId::from_raw(9)).expect("it is a member");
        let changed = gone.with_filters(at, None);
        assert_eq!(chosen(&changed, None, "b.x").0, [1, 2]);
        let unfiltered = changed.with_filters(0, None);
        assert!(!unfiltered.has_filters() && unfiltered.unfiltered().is_empty());
    }

    #[test]
    fn both_filters_of_a_member_must_accept() {
        use crate::Attributes;
        use crate::filter::selection::Selection;
        use crate::filter::{Seen, Subject};

        let filter = |text: &str| Some(text.parse().expect("a good filter"));
        let filters = MemberFilters::new(filter("key^=a."), filter("field.n=1"));
        let membership = Membership::empty().with(Member { filters, ..member(1) });
        for (key, n, accepted) in [("a.x", "1", 1), ("a.x", "2", 0), ("b.x", "1", 0)] {
            let attributes = Attributes::builder().key(key).field("n", n).build();
            let attributes = attributes.expect("short attributes");
            let subject = Subject { attributes: &attributes, payload: Some(Seen::Bytes(&[])) };
            let mut selection = Selection::default();
            selection.choose(&membership, None, subject);
            assert_eq!(selection.positions().len(), accepted, "{key}, {n}");
        }
    }

    #[test]
    fn ends_with_its_last_member_unless_the_creator_lives() {
        let membership = Membership::empty().with(member(1));
        assert!(!membership.without(EndpointId::from_raw(1), true).ended);
        assert!(membership.without(EndpointId::from_raw(1), false).ended);
    }
}
