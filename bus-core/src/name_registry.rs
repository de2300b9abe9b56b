//! Well-known names: which there are, and how endpoints come to own them and give them up.
//!
//! Invariant: a name lives while somebody claims it or watches it, and its id is never reused; so
//! a send that goes by an id finds the name's owner of that moment or nobody, never the owner of
//! another name. Owners change with the directory held (one change at a time) and are published
//! with all 8 locks held, as memberships are (G4). After each change the sends that wait for the
//! name are looked at again (G5).
//!
//! The rules are of D-Bus's kind. Who asks for a name that has an owner waits for it, in the order
//! of asking, unless it said `DO_NOT_QUEUE`. An owner is replaced only if it allows that and the
//! other one asks for it; it then waits again, first of all, unless it said `DO_NOT_QUEUE`, has left too
//! many notices unread to be told of more, or was put back so often since it last asked. A close
//! releases.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ahash::HashMap;

use crate::account::Resource;
use crate::bus::{BusInner, LimitExceeded};
use crate::description::{Description, DescriptionError};
use crate::directory::{Directory, Paid};
use crate::id::{EndpointId, Generation, GroupId, NameId, Sequence};
use crate::intake::{Drops, EndpointCore, Intake};
use crate::lock_set::{Held, LockIndex};
use crate::name::GroupName;
use crate::name_change::{Actor, Holder, NOTICES_PER_CLAIM, NameStep};
use crate::notice::{Eviction, EvictionCause};
use crate::ownership::{Claim, Gone, NameFlags, OwnerWatcher, Ownership, Refusal};
use crate::send::Effects;
use crate::sync::{AtomicU64, Mutant, MutexGuard, Ordering, Snapshot, mutated};
use crate::wait::{Changed, Stalled};

/// A name that lives or has lived, as senders see it: owners, and a generation to compare.
pub(crate) struct Name {
    pub(crate) id: NameId,
    pub(crate) text: GroupName,
    /// The lock that a send takes while nobody owns the name.
    pub(crate) home: LockIndex,
    ownership: Snapshot<Ownership>,
    generation: AtomicU64,
    /// Which worker is next among equals. Whoever chooses holds the locks of all workers.
    turn: AtomicU64,
    /// The how many-eth beginning of ownership on the bus its present one is. Read and written with
    /// the directory held.
    began: AtomicU64,
}

impl Name {
    fn new(id: NameId, text: GroupName, home: LockIndex) -> Self {
        let ownership = Snapshot::new(Arc::new(Ownership::vacant()));
        let zero = || AtomicU64::new(0);
        Self { id, text, home, ownership, generation: zero(), turn: zero(), began: zero() }
    }

    /// The owners, or those shortly before: compare with [`generation`](Self::generation) under
    /// the locks.
    pub(crate) fn ownership(&self) -> Arc<Ownership> {
        self.ownership.load()
    }

    /// The current generation. While any of the locks is held it cannot change, because a change
    /// holds them all.
    pub(crate) fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// Publishes new owners; all locks are held. Gives back those before.
    pub(crate) fn publish(&self, _all: &Held<'_>, next: Arc<Ownership>) -> Arc<Ownership> {
        let generation = next.generation;
        let before = self.ownership.swap(next);
        self.generation.store(generation.0, Ordering::Release);
        before
    }

    #[expect(clippy::cast_possible_truncation, reason = "a number of workers")]
    pub(crate) fn turn(&self) -> usize {
        self.turn.load(Ordering::Relaxed) as usize
    }

    pub(crate) fn set_turn(&self, turn: usize) {
        self.turn.store(turn as u64, Ordering::Relaxed);
    }

    fn info(&self) -> NameInfo {
        let ownership = self.ownership();
        let owners = ownership.owners();
        let waiting = ownership.claims().len() - owners.len();
        NameInfo {
            id: self.id,
            name: self.text.clone(),
            owners: owners.iter().take(LISTED_OWNERS).map(|o| Holder::of(&o.core)).collect(),
            owner_count: count(owners.len()),
            waiting: count(waiting),
            shared: ownership.is_shared(),
            described: owners.iter().any(|owner| owner.description.is_some()),
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Name").field("id", &self.id).field("text", &self.text).finish()
    }
}

/// How many owners of a shared name a listing shows.
pub const LISTED_OWNERS: usize = 8;

/// A name, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NameInfo {
    /// Its id.
    pub id: NameId,
    /// The name.
    pub name: GroupName,
    /// Who owns it; of a shared one the first [`LISTED_OWNERS`].
    pub owners: Vec<Holder>,
    /// How many own it.
    pub owner_count: u32,
    /// How many wait to own it.
    pub waiting: u32,
    /// Several may own it together.
    pub shared: bool,
    /// It has a description.
    pub described: bool,
}

/// How to claim a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnOptions {
    /// What the claim asks for.
    pub flags: NameFlags,
    /// What the service says of itself. Without one, what an earlier claim of the same endpoint
    /// said stays.
    pub description: Option<Description>,
}

impl OwnOptions {
    /// With these flags, and no description.
    #[must_use]
    pub fn new(flags: NameFlags) -> Self {
        Self { flags, description: None }
    }

    /// The same with a description.
    #[must_use]
    pub fn describe(self, description: Description) -> Self {
        Self { description: Some(description), ..self }
    }
}

/// A claim of a name that was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claimed {
    /// The name's id.
    pub name: NameId,
    /// The place of the claim in the order: as an owner, this endpoint gets every later message
    /// to the name.
    pub sequence: Sequence,
    /// 0 for an owner, else how many there are before it, the owner counted.
    pub position: u32,
}

/// A watch on a name's owners that has begun: every change after `sequence` is told (G4).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NameWatching {
    /// The name's id.
    pub name: NameId,
    /// Where in the order the watch began.
    pub sequence: Sequence,
    /// Who owned it then; of a shared one the first [`LISTED_OWNERS`].
    pub owners: Vec<Holder>,
}

/// Why a name could not be claimed or watched. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OwnError {
    /// Another endpoint owns it, and the claim was not to wait. Ask without `DO_NOT_QUEUE` to
    /// wait.
    #[error("name {0} is owned by endpoint {1}")]
    Taken(GroupName, EndpointId),
    /// A name is shared by all who claim it, or by none. Claim it as the others do.
    #[error("name {0} is shared by those who own it, or is not, and the claim says otherwise")]
    OtherKind(GroupName),
    /// The endpoint receives nothing any more.
    #[error("endpoint {0} receives nothing any more")]
    ReceiveShut(EndpointId),
    /// The endpoint has been closed.
    #[error("endpoint {0} has been closed")]
    Closed(EndpointId),
    /// The description is not whole; mend what the error names.
    #[error(transparent)]
    Description(#[from] DescriptionError),
    /// A bound was reached; of `description_bytes`: shorten the description.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
}

/// The names of a bus, by text and by id.
#[derive(Debug, Default)]
pub(crate) struct NameRegistry {
    by_text: BTreeMap<GroupName, Arc<Name>>,
    by_id: HashMap<NameId, Arc<Name>>,
    last: u64,
    /// How often a name that nobody owned was claimed.
    beginnings: u64,
}

impl NameRegistry {
    pub(crate) fn count_ids_after(&mut self, after: u64) {
        self.last = after;
    }

    /// Names that are claimed or watched.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn get(&self, id: NameId) -> Option<&Arc<Name>> {
        self.by_id.get(&id)
    }

    fn named(&self, text: &GroupName) -> Option<&Arc<Name>> {
        self.by_text.get(text)
    }

    pub(crate) fn count(&self) -> usize {
        self.by_id.len()
    }

    /// How many names have come to be owned so far.
    pub(crate) fn beginnings(&self) -> u64 {
        self.beginnings
    }

    /// The next name after `after` that is owned and has been since one of the first `newest`
    /// beginnings.
    pub(crate) fn owned_after(&self, after: Option<&GroupName>, newest: u64) -> Option<NameInfo> {
        let old = |name: &&Arc<Name>| name.began.load(Ordering::Relaxed) <= newest;
        let mut infos = self.after(after).filter(old).map(|name| name.info());
        infos.find(|info| info.owner_count != 0)
    }

    fn after(&self, after: Option<&GroupName>) -> impl Iterator<Item = &Arc<Name>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.by_text.range((from, Unbounded)).map(|(_, name)| name)
    }

    fn add(&mut self, name: &Arc<Name>) {
        self.by_text.insert(name.text.clone(), Arc::clone(name));
        self.by_id.insert(name.id, Arc::clone(name));
    }

    /// Forgets a name that nobody claims or watches.
    pub(crate) fn remove(&mut self, name: &Name) {
        if self.by_id.remove(&name.id).is_some() {
            self.by_text.remove(&name.text);
        }
    }
}

impl BusInner {
    /// The name of a text; a new one is not in the registry yet.
    fn find_or_make_name(
        &self,
        directory: &mut Directory,
        text: &GroupName,
    ) -> Result<Arc<Name>, LimitExceeded> {
        if let Some(name) = directory.registry.named(text) {
            return Ok(Arc::clone(name));
        }
        let registry = &mut directory.registry;
        LimitExceeded::check("names", registry.count(), self.limits.names)?;
        registry.last += 1;
        let id = NameId::from_raw(registry.last);
        Ok(Arc::new(Name::new(id, text.clone(), self.lock_of(!id.get()))))
    }

    /// Whether an endpoint's queue can keep a place for everything that may have to be told of so
    /// many claims, beside what is in it.
    fn can_be_told(&self, core: &EndpointCore, claims: usize, more: u64) -> bool {
        let shard = self.locks.acquire_one(core.place.lock);
        let intake = shard.intakes.get(core.place.slot as usize);
        let unread = intake.filter(|i| i.id() == core.id()).map_or(0, Intake::unread_notices);
        let most = NOTICES_PER_CLAIM * u64::from(self.limits.names_claimed);
        unread + more + NOTICES_PER_CLAIM * claims as u64 <= most
    }

    pub(crate) fn own_name(
        &self,
        core: &Arc<EndpointCore>,
        text: &GroupName,
        options: OwnOptions,
    ) -> Result<Claimed, OwnError> {
        let id = core.id();
        if let Some(description) = &options.description {
            description.check()?;
            let limit = self.limits.description_bytes;
            let given = description.charged_bytes();
            LimitExceeded::check("description_bytes", given.saturating_sub(1), limit)?;
        }
        let description = options.description.map(Arc::new);
        let claim =
            Claim { core: Arc::clone(core), flags: options.flags, description, requeues: 0 };

        let mut directory = self.directory.lock();
        let record = directory.endpoints.get(&id).ok_or(OwnError::Closed(id))?;
        if record.receive_shut {
            return Err(OwnError::ReceiveShut(id));
        }
        let held = record.names.len();
        let known = record.names.iter().any(|name| name.text == *text);
        let most = self.limits.names_claimed;
        if !known {
            LimitExceeded::check("names_claimed", held, most)?;
            if !self.can_be_told(core, held + 1, 0) {
                let limit = "names_claimed (notices not yet read)";
                return Err(LimitExceeded::new(limit, most.into()).into());
            }
        }
        let name = self.find_or_make_name(&mut directory, text)?;
        let before = name.ownership();
        if !known {
            LimitExceeded::check("name_claims", before.claims().len(), self.limits.name_claims)?;
        }
        let may_wait = |former: &Claim| {
            let record = directory.endpoints.get(&former.id());
            record.is_some_and(|record| self.can_be_told(&former.core, record.names.len(), 1))
        };
        let next = before.with(claim, may_wait).map_err(|refusal| match refusal {
            Refusal::Taken(owner) => OwnError::Taken(text.clone(), owner),
            Refusal::OtherKind => OwnError::OtherKind(text.clone()),
        })?;
        let position = next.position(id).map_or(0, count);
        let charge = if known { None } else { core.charge(Resource::Names, 1)? };
        self.open_queue(core);
        if before.owners().is_empty() {
            directory.registry.beginnings += 1;
            name.began.store(directory.registry.beginnings, Ordering::Relaxed);
        }
        directory.registry.add(&name);
        if !known && let Some(record) = directory.endpoints.get_mut(&id) {
            record.names.push(Paid::new(Arc::clone(&name), charge));
        }
        let step = NameStep::new(&name, &before, next, Actor::Endpoint(id));
        let sequence = self.publish_name(core, directory, step, None);
        Ok(Claimed { name: name.id, sequence, position })
    }

    /// Gives a claim up. None if there is none.
    pub(crate) fn release_name(&self, core: &EndpointCore, name: NameId) -> Option<Sequence> {
        Some(self.end_claim(core, name, Actor::Endpoint(core.id()))?.1)
    }

    /// A worker that holds up who sends to a shared name is none any more (G8). Gives back what is
    /// to be logged.
    pub(crate) fn put_out_of_name(&self, stalled: &Stalled, name: NameId) -> Option<Eviction> {
        let core = &stalled.core;
        let (name, sequence) = self.end_claim(core, name, Actor::Stall)?;
        Some(Eviction {
            endpoint: core.id(),
            credentials: core.credentials,
            group: GroupId::from_raw(0),
            name,
            sequence,
            cause: EvictionCause::WorkerStalled,
            stalled: stalled.time,
            queued_messages: stalled.queued_messages,
            back_off: Duration::ZERO,
        })
    }

    fn end_claim(
        &self,
        core: &EndpointCore,
        name: NameId,
        by: Actor,
    ) -> Option<(GroupName, Sequence)> {
        let id = core.id();
        let mut directory = self.directory.lock();
        let record = directory.endpoints.get_mut(&id)?;
        let at = record.names.iter().position(|claimed| claimed.id == name)?;
        let name = Arc::clone(&record.names[at]);
        let before = name.ownership();
        if by == Actor::Stall && before.owners().len() < 2 {
            return None;
        }
        record.names.remove(at);
        let step = NameStep::new(&name, &before, before.without(id, Gone::Claim), by);
        Some((name.text.clone(), self.publish_name(core, directory, step, None)))
    }

    pub(crate) fn watch_name(
        &self,
        core: &EndpointCore,
        text: &GroupName,
    ) -> Result<NameWatching, OwnError> {
        let id = core.id();
        let mut directory = self.directory.lock();
        let record = directory.endpoints.get_mut(&id).ok_or(OwnError::Closed(id))?;
        if record.receive_shut {
            return Err(OwnError::ReceiveShut(id));
        }
        let known = record.watched_names.iter().any(|name| name.text == *text);
        if !known {
            let watches = self.limits.watches;
            LimitExceeded::check("watches", record.watched_names.len(), watches)?;
            // As for groups: what was lost and not yet told outlasts its watch.
            record.keep_drops(&[], None);
            let past = record.past_losses();
            LimitExceeded::check("watches (losses not yet read)", past, watches)?;
        }
        let name = self.find_or_make_name(&mut directory, text)?;
        let before = name.ownership();
        let owners = name.info().owners;
        let watcher = before.watchers().iter().find(|watcher| watcher.place.id == id);
        let lost = match watcher {
            Some(watcher) => Arc::clone(&watcher.lost),
            None => {
                let watchers = before.watchers().len();
                LimitExceeded::check("members (watchers)", watchers, self.limits.members)?;
                Arc::new(Drops::of_name(name.id))
            }
        };
        self.open_queue(core);
        directory.registry.add(&name);
        let record = directory.endpoints.get_mut(&id).ok_or(OwnError::Closed(id))?;
        if !known {
            record.watched_names.push(Arc::clone(&name));
        }
        record.keep_drops(&[], Some(&lost));
        let drops = record.drops.clone();
        let next = before.with_watcher(OwnerWatcher { place: core.place, lost });
        let step = NameStep::new(&name, &before, next, Actor::Endpoint(id));
        let sequence = self.publish_name(core, directory, step, Some(drops));
        Ok(NameWatching { name: name.id, sequence, owners })
    }

    /// Ends a watch. None if there is none.
    pub(crate) fn unwatch_name(&self, core: &EndpointCore, name: NameId) -> Option<Sequence> {
        let id = core.id();
        let mut directory = self.directory.lock();
        let record = directory.endpoints.get_mut(&id)?;
        let at = record.watched_names.iter().position(|watched| watched.id == name)?;
        let name = record.watched_names.remove(at);
        record.keep_drops(&[], None);
        let drops = record.drops.clone();
        let before = name.ownership();
        let next = before.without(id, Gone::Watch);
        let step = NameStep::new(&name, &before, next, Actor::Endpoint(id));
        Some(self.publish_name(core, directory, step, Some(drops)))
    }

    /// Publishes one step at its place in the order, and looks at the sends that wait for the
    /// name.
    fn publish_name(
        &self,
        core: &EndpointCore,
        mut directory: MutexGuard<'_, Directory>,
        mut step: NameStep,
        drops: Option<Vec<Arc<Drops>>>,
    ) -> Sequence {
        let mut effects = Effects::default();
        let monitors = self.monitors.list();
        effects.reserve(step.wakes() + monitors.as_ref().map_or(0, |list| list.len()));
        let mut held = self.hold_all(core);
        let sequence = held.draw(core.seen());
        let intake = held.intake(core.place);
        let old_drops = intake.zip(drops).map(|(intake, drops)| intake.replace_drops(drops));
        let old = step.publish(&mut held, sequence, &mut effects);
        if let (Some(monitors), Some(seen)) = (&monitors, step.seen()) {
            monitors.tell(&mut held, &seen, &mut effects);
        }
        drop(held);
        step.settle(&mut directory);
        drop(directory);
        drop((old, old_drops));
        if !mutated(Mutant::OwnerChangeServesNobody) {
            let changed = Changed { names: vec![step.name.id], ..Changed::default() };
            self.waiting.lock().recheck(self, &changed, &mut effects);
        }
        effects.run();
        sequence
    }

    /// What becomes of an endpoint's names when it closes or receives nothing any more: taken out
    /// of its record, to be published with the rest of its departure.
    pub(crate) fn give_names_up(directory: &mut Directory, id: EndpointId) -> Vec<NameStep> {
        let Some(record) = directory.endpoints.get_mut(&id) else {
            return Vec::new();
        };
        let claimed = std::mem::take(&mut record.names);
        let mut watched = std::mem::take(&mut record.watched_names);
        let mut steps = Vec::with_capacity(claimed.len() + watched.len());
        let mut step = |name: &Arc<Name>, gone| {
            let before = name.ownership();
            let next = before.without(id, gone);
            steps.push(NameStep::new(name, &before, next, Actor::Endpoint(id)));
        };
        for name in &claimed {
            let before = watched.len();
            watched.retain(|watched| watched.id != name.id);
            step(name, if watched.len() == before { Gone::Claim } else { Gone::Both });
        }
        for name in &watched {
            step(name, Gone::Watch);
        }
        steps
    }

    pub(crate) fn find_name(&self, text: &GroupName) -> Option<NameInfo> {
        let directory = self.directory.lock();
        let info = directory.registry.named(text)?.info();
        (info.owner_count != 0).then_some(info)
    }

    pub(crate) fn description(&self, text: &GroupName) -> Option<Arc<Description>> {
        let directory = self.directory.lock();
        let ownership = directory.registry.named(text)?.ownership();
        ownership.owners().iter().find_map(|owner| owner.description.clone())
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
