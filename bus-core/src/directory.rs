//! Who and what is on the bus: endpoints, groups, names. One mutex guards it, and every change of a
//! membership is made with it held, so changes are made one at a time.
//!
//! Sends come here only to resolve a destination that their lane does not know yet.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use ahash::HashMap;

use crate::account::{Charge, Process};
use crate::gated::PeerRecord;
use crate::group::Group;
use crate::id::{EndpointId, GroupId};
use crate::intake::{Drops, EndpointCore};
use crate::name::GroupName;
use crate::name_registry::{Name, NameRegistry};

#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// In boxes, because a table is at times three quarters empty.
    pub(crate) endpoints: HashMap<EndpointId, Box<EndpointRecord>>,
    groups: HashMap<GroupId, GroupRecord>,
    names: BTreeMap<GroupName, GroupId>,
    /// Peer endpoints by their own ids.
    pub(crate) peers: HashMap<EndpointId, PeerRecord>,
    last_endpoint: u64,
    last_group: u64,
    back_offs: HashMap<(Process, GroupName), BackOff>,
    /// Well-known names.
    pub(crate) registry: NameRegistry,
}

/// How long a process may join a group again only with `DROP_WHEN_FULL`: it doubles with every
/// eviction, and is forgotten when it has been over for [`MOST_BACK_OFF`].
///
/// Kept by process and group, so that neither a reconnection nor another program of the same user
/// changes it.
#[derive(Clone, Copy, Debug)]
struct BackOff {
    until: Duration,
    length: Duration,
}

/// The longest back-off.
const MOST_BACK_OFF: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(crate) struct EndpointRecord {
    pub(crate) core: Arc<EndpointCore>,
    pub(crate) memberships: Vec<Belonging>,
    /// Groups whose membership it watches.
    pub(crate) watching: Vec<Arc<Group>>,
    /// Names that it owns or waits for.
    pub(crate) names: Vec<Paid<Arc<Name>>>,
    /// Names whose owners it watches.
    pub(crate) watched_names: Vec<Arc<Name>>,
    /// It is a monitor.
    pub(crate) monitoring: bool,
    /// The same list that its intake has.
    pub(crate) drops: Vec<Arc<Drops>>,
    /// Groups that it created and that live.
    pub(crate) created: Vec<GroupId>,
    pub(crate) receive_shut: bool,
    /// Peer endpoints of the gated groups that it owns.
    pub(crate) peers: BTreeSet<EndpointId>,
    /// Peer endpoints that it has at owners of gated groups.
    pub(crate) connections: Vec<EndpointId>,
    /// What it is charged for itself.
    pub(crate) _charge: Option<Charge>,
}

/// A group that an endpoint is in, and what its account is charged for that.
#[derive(Debug)]
pub(crate) struct Belonging {
    pub(crate) group: Arc<Group>,
    pub(crate) _charge: Option<Charge>,
    /// For the filter of its own.
    pub(crate) filter: Option<Charge>,
}

impl Deref for Belonging {
    type Target = Arc<Group>;

    fn deref(&self) -> &Arc<Group> {
        &self.group
    }
}

/// Something, and what an account is charged for it: given back with it.
#[derive(Debug)]
pub(crate) struct Paid<T> {
    value: T,
    _charge: Option<Charge>,
}

impl<T> Paid<T> {
    pub(crate) fn new(value: T, charge: Option<Charge>) -> Self {
        Self { value, _charge: charge }
    }
}

impl<T> Deref for Paid<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

#[derive(Debug)]
pub(crate) struct GroupRecord {
    pub(crate) group: Arc<Group>,
    /// None once the creator is gone.
    pub(crate) creator: Option<EndpointId>,
    /// In a gated group: how many wait for the owner's decision.
    pub(crate) candidates: u16,
    /// What its creator is charged, until it ends: for itself, and for what it may retain.
    pub(crate) _charges: [Option<Charge>; 2],
}

impl Directory {
    /// Gives back what the tables do not need any more.
    pub(crate) fn shrink(&mut self) {
        self.endpoints.shrink_to_fit();
        self.groups.shrink_to_fit();
        self.peers.shrink_to_fit();
        self.back_offs.shrink_to_fit();
    }

    pub(crate) fn with_ids_after(after: u64) -> Self {
        let mut directory = Self { last_endpoint: after, last_group: after, ..Self::default() };
        directory.registry.count_ids_after(after);
        directory
    }

    /// Ids are counted and never reused: at a million a second they last half a million years.
    pub(crate) fn next_endpoint_id(&mut self) -> EndpointId {
        self.last_endpoint += 1;
        EndpointId::from_raw(self.last_endpoint)
    }

    pub(crate) fn next_group_id(&mut self) -> GroupId {
        self.last_group += 1;
        GroupId::from_raw(self.last_group)
    }

    /// The last group that was made; later ones have greater ids.
    pub(crate) fn newest_group(&self) -> GroupId {
        GroupId::from_raw(self.last_group)
    }

    pub(crate) fn add_group(
        &mut self,
        group: Arc<Group>,
        creator: EndpointId,
        charges: [Option<Charge>; 2],
    ) {
        self.names.insert(group.name.clone(), group.id);
        let record =
            GroupRecord { creator: Some(creator), candidates: 0, _charges: charges, group };
        self.groups.insert(record.group.id, record);
    }

    pub(crate) fn group_count(&self) -> usize {
        self.groups.len()
    }

    pub(crate) fn group(&self, id: GroupId) -> Option<&GroupRecord> {
        self.groups.get(&id)
    }

    pub(crate) fn group_mut(&mut self, id: GroupId) -> Option<&mut GroupRecord> {
        self.groups.get_mut(&id)
    }

    pub(crate) fn named(&self, name: &GroupName) -> Option<&GroupRecord> {
        self.group(*self.names.get(name)?)
    }

    /// Notes an eviction at `now`, and says how long the back-off is.
    ///
    /// This is wall time: an idle bus is not ticked, and its running time stands still.
    pub(crate) fn begin_back_off(
        &mut self,
        process: Process,
        name: &GroupName,
        first: Duration,
        now: Duration,
    ) -> Duration {
        self.back_offs.retain(|_, known| now < known.until + MOST_BACK_OFF);
        let before = self.back_offs.get(&(process, name.clone())).map(|known| known.length);
        let length = before.map_or(first, |before| (before * 2).min(MOST_BACK_OFF));
        let until = now + length;
        self.back_offs.insert((process, name.clone()), BackOff { until, length });
        length
    }

    /// What is left of a back-off.
    pub(crate) fn back_off(
        &self,
        process: Process,
        name: &GroupName,
        now: Duration,
    ) -> Option<Duration> {
        if self.back_offs.is_empty() {
            return None;
        }
        let known = self.back_offs.get(&(process, name.clone()))?;
        known.until.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Groups in the order of their names, those after `after`.
    pub(crate) fn groups_after(
        &self,
        after: Option<&GroupName>,
    ) -> impl Iterator<Item = &GroupRecord> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.names.range((from, Unbounded)).filter_map(|(_, id)| self.groups.get(id))
    }

    /// The creator of a group is gone.
    pub(crate) fn orphan(&mut self, id: GroupId) {
        if let Some(record) = self.groups.get_mut(&id) {
            record.creator = None;
        }
    }

    /// Forgets a group that has ended.
    pub(crate) fn remove_group(&mut self, id: GroupId) {
        let Some(record) = self.groups.remove(&id) else {
            return;
        };
        self.names.remove(&record.group.name);
        let creator = record.creator.and_then(|id| self.endpoints.get_mut(&id));
        if let Some(creator) = creator {
            creator.created.retain(|created| *created != id);
        }
    }
}
