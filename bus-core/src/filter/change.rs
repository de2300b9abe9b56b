//! A filter that is changed later: a change of the membership like any other, at a place in the
//! order (G4).
//!
//! Invariant: it holds all 8 locks while it publishes, so a message is selected for by the filter
//! that holds at its place; and afterwards it looks at every send that waits for the group, because
//! it may have taken away the recipient that one lacks (G5).

use std::sync::Arc;

use crate::account::Resource;
use crate::bus::{BusInner, LimitExceeded};
use crate::directory::Directory;
use crate::id::{EndpointId, GroupId, Sequence};
use crate::intake::EndpointCore;
use crate::member_change::{MemberChange, MemberEvent};
use crate::membership::Membership;
use crate::send::Effects;
use crate::sync::{Mutant, mutated};
use crate::view::Step;
use crate::wait::Changed;

use super::{Filter, MemberFilters};

/// Why a filter was not changed. The old one holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterChangeError {
    /// It is not a member: join first, with the filter.
    #[error("endpoint {1} is not a member of group {0}")]
    NotAMember(GroupId, EndpointId),
    /// A bound was reached.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
}

impl BusInner {
    /// Sets, changes or removes the own filter of `core`'s membership, and says where in the order.
    /// The one that the owner of a gated group has set on its behalf stays.
    pub(crate) fn set_filter(
        &self,
        core: &EndpointCore,
        group: GroupId,
        filter: Option<Filter>,
    ) -> Result<Sequence, FilterChangeError> {
        let id = core.id();
        let mut directory = self.directory.lock();
        let found = directory.endpoints.get(&id).and_then(|record| {
            let group = record.memberships.iter().find(|joined| joined.id == group)?;
            Some((record, group))
        });
        let (record, group) = found.ok_or(FilterChangeError::NotAMember(group, id))?;
        let before = group.membership();
        let at = before.position(id).ok_or(FilterChangeError::NotAMember(group.id, id))?;
        let old = before.members()[at].filters.as_deref();
        let (own, owners) = old.map_or((None, None), |old| (old.own.clone(), old.owners.clone()));
        if let Some(filter) = &filter {
            let instead = own.as_ref().map_or(0, Filter::bytes);
            self.check_filter_bytes(&directory, id, filter, instead)?;
        }
        let bytes = filter.as_ref().map_or(0, Filter::bytes);
        let filters = MemberFilters::new(filter, owners);
        self.check_instructions(&before, old, filters.as_deref())?;
        let group = Arc::clone(group);
        let flags = before.members()[at].flags;
        let seen = MemberChange::new(&group, core, MemberEvent::Filter).with_flags(flags);
        let step = Step::unseen(&group, before.with_filters(at, filters)).aside([seen]);
        let changed = Changed { groups: vec![group.id], ..Changed::default() };
        let drops = record.drops.clone();
        if let Some(record) = directory.endpoints.get_mut(&id)
            && let Some(joined) = record.memberships.iter_mut().find(|other| other.id == group.id)
        {
            match &mut joined.filter {
                Some(charge) => charge.set(bytes)?,
                none => *none = core.charge(Resource::FilterBytes, bytes)?,
            }
        }
        let sequence = self.publish_one(core, directory, step, drops);
        if !mutated(Mutant::FilterServesNobody) {
            let mut effects = Effects::default();
            self.waiting.lock().recheck(self, &changed, &mut effects);
            effects.run();
        }
        Ok(sequence)
    }

    /// Whether an endpoint may have one more filter of its own, instead of one of so many bytes.
    pub(crate) fn check_filter_bytes(
        &self,
        directory: &Directory,
        id: EndpointId,
        filter: &Filter,
        instead: u64,
    ) -> Result<(), LimitExceeded> {
        let own = |filters: &MemberFilters| filters.own.as_ref().map(Filter::bytes);
        self.check_bytes(directory, id, filter.bytes(), instead, "filter_bytes", own)
    }

    /// Whether owners of gated groups may have one more filter on behalf of an endpoint, instead of
    /// one of so many bytes. Counted apart from the endpoint's own, so that no owner takes those.
    pub(crate) fn check_owners_filter_bytes(
        &self,
        directory: &Directory,
        id: EndpointId,
        filter: &Filter,
        instead: u64,
    ) -> Result<(), LimitExceeded> {
        let limit = "filter_bytes (of owners, on behalf of one member)";
        let owners = |filters: &MemberFilters| filters.owners.as_ref().map(Filter::bytes);
        self.check_bytes(directory, id, filter.bytes(), instead, limit, owners)
    }

    fn check_bytes(
        &self,
        directory: &Directory,
        id: EndpointId,
        more: u64,
        instead: u64,
        limit: &'static str,
        bytes: impl Fn(&MemberFilters) -> Option<u64>,
    ) -> Result<(), LimitExceeded> {
        let Some(record) = directory.endpoints.get(&id) else {
            return Ok(());
        };
        let held_in = |membership: &Membership| {
            let at = membership.position(id)?;
            bytes(membership.members()[at].filters.as_ref()?)
        };
        let groups = record.memberships.iter();
        let held: u64 = groups.filter_map(|group| held_in(&group.membership())).sum();
        let value = self.limits.filter_bytes.into();
        if held - instead + more > value {
            return Err(LimitExceeded::new(limit, value));
        }
        Ok(())
    }

    /// Whether a group may have these filters of a member instead of the old ones: programs are run
    /// by every send, so all of them together are bounded.
    pub(crate) fn check_instructions(
        &self,
        before: &Membership,
        old: Option<&MemberFilters>,
        new: Option<&MemberFilters>,
    ) -> Result<(), LimitExceeded> {
        let (old, new) = (old.map_or(0, count), new.map_or(0, count));
        let value = self.limits.filter_instructions.into();
        if new > old && before.filters().instructions() - old + new > value {
            return Err(LimitExceeded::new("filter_instructions", value));
        }
        Ok(())
    }
}

fn count(filters: &MemberFilters) -> u64 {
    filters.instructions()
}
