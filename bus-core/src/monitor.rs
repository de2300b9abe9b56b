//! Monitors: endpoints that get a copy of every message and see every change that takes a place in
//! the order: of memberships, of owners of names, and the outcomes of requests that get no reply.
//!
//! Invariant: a commit that has looked for monitors and found these holds their locks too, and
//! compares under its locks whether they are still the ones; a change of monitors holds all 8. So a
//! monitor gets everything that takes its place after its own began, at that place, and nothing
//! later than its end (G4).
//!
//! A monitor is no recipient: nobody waits for it, no receipt counts it, and what it has no room for
//! it misses and is told (G7). It is given no descriptors, and keeps none open: a message that has
//! some is copied for it without them, before any lock.
//!
//! Without monitors a send costs two loads of a line that never changes, and the branches on them.

use std::sync::Arc;

use crate::bus::{BusInner, LimitExceeded};
use crate::id::{EndpointId, GroupId, NameId, Sequence};
use crate::intake::{Drops, EndpointCore, Lost};
use crate::lock_set::{Held, IntakePlace, LockBits};
use crate::member_change::MemberChange;
use crate::message::Message;
use crate::name::GroupName;
use crate::name_change::OwnerChange;
use crate::request::Outcome;
use crate::send::Effects;
use crate::sync::{AtomicU64, Mutant, Ordering, Snapshot, mutated};
use crate::view::ViewChange;

/// What a monitor sees.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Monitored {
    /// A message that was committed.
    Message {
        /// The message, without its descriptors.
        message: Arc<Message>,
        /// Where it went.
        to: Addressee,
    },
    /// A change of some group's membership.
    View(Arc<ViewChange>),
    /// Something else that happened to a member or a candidate.
    Member(Arc<MemberChange>),
    /// A change of a name's owners.
    Owner(Arc<OwnerChange>),
    /// A request that gets no reply.
    Outcome(SeenOutcome),
}

/// A request that gets no reply, as monitors are told. (A reply is a message.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeenOutcome {
    /// What the caller is told.
    pub outcome: Outcome,
    /// The caller.
    pub caller: EndpointId,
    /// The endpoint that was asked.
    pub asked: EndpointId,
}

/// Where a message went that a monitor sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressee {
    /// To a group.
    Group(GroupId, GroupName),
    /// To one endpoint.
    Endpoint(EndpointId),
    /// To a name, and so to this endpoint, which owned it.
    Name(NameId, GroupName, EndpointId),
}

impl Monitored {
    pub(crate) fn sequence(&self) -> Sequence {
        match self {
            Self::Message { message, .. } => message.sequence(),
            Self::View(change) => change.sequence,
            Self::Member(change) => change.sequence,
            Self::Owner(change) => change.sequence,
            Self::Outcome(seen) => seen.outcome.sequence,
        }
    }

    /// What it takes of a queue.
    pub(crate) fn charged_bytes(&self) -> u64 {
        match self {
            Self::Message { message, .. } => message.charged_bytes(),
            Self::View(_) | Self::Member(_) | Self::Owner(_) | Self::Outcome(_) => 0,
        }
    }

    fn group(&self) -> Option<&GroupName> {
        match self {
            Self::Message { to: Addressee::Group(_, name), .. } => Some(name),
            Self::View(change) => Some(&change.name),
            Self::Member(change) => Some(&change.name),
            Self::Message { .. } | Self::Owner(_) | Self::Outcome(_) => None,
        }
    }
}

/// Why an endpoint cannot monitor the bus.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// The endpoint receives nothing any more.
    #[error("endpoint {0} receives nothing any more")]
    ReceiveShut(EndpointId),
    /// The endpoint has been closed.
    #[error("endpoint {0} has been closed")]
    Closed(EndpointId),
    /// A bound was reached.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
}

#[derive(Clone, Debug)]
struct Monitor {
    place: IntakePlace,
    /// Only what is about this group, if any.
    group: Option<GroupName>,
    lost: Arc<Drops>,
}

/// All monitors of one moment.
#[derive(Debug)]
pub(crate) struct MonitorList {
    version: u64,
    monitors: Box<[Monitor]>,
    locks: LockBits,
}

impl MonitorList {
    fn new(version: u64, monitors: Vec<Monitor>) -> Self {
        let mut locks = LockBits::NONE;
        for monitor in &monitors {
            locks.insert(monitor.place.lock);
        }
        Self { version, monitors: monitors.into(), locks }
    }

    pub(crate) fn len(&self) -> usize {
        self.monitors.len()
    }

    pub(crate) fn locks(&self) -> LockBits {
        self.locks
    }

    /// Tells the monitors; their locks are held.
    pub(crate) fn tell(&self, held: &mut Held<'_>, seen: &Monitored, effects: &mut Effects) {
        for monitor in &self.monitors {
            if monitor.group.as_ref().is_some_and(|group| seen.group() != Some(group)) {
                continue;
            }
            let Some(intake) = held.intake(monitor.place) else {
                continue;
            };
            effects.wake(intake.push_monitored(seen, &monitor.lost));
        }
    }
}

/// The bus's monitors.
pub(crate) struct Monitors {
    list: Snapshot<MonitorList>,
    /// Version of the list; 0 while it is empty.
    version: AtomicU64,
}

impl Default for Monitors {
    fn default() -> Self {
        let none = MonitorList::new(0, Vec::new());
        Self { list: Snapshot::new(Arc::new(none)), version: AtomicU64::new(0) }
    }
}

impl std::fmt::Debug for Monitors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitors").finish_non_exhaustive()
    }
}

impl Monitors {
    /// The monitors, if there are any, or those of shortly before: compare under the locks.
    pub(crate) fn list(&self) -> Option<Arc<MonitorList>> {
        (self.version.load(Ordering::Relaxed) != 0).then(|| self.list.load())
    }

    /// Whether these are the monitors. While any lock is held that cannot change.
    pub(crate) fn are(&self, list: Option<&MonitorList>) -> bool {
        let version = self.version.load(Ordering::Acquire);
        version == list.map_or(0, |list| list.version) || mutated(Mutant::MonitorsNotCompared)
    }

    /// Publishes the next list; all locks are held. Gives back the one before it, to be dropped
    /// when they are released.
    pub(crate) fn publish(&self, _all: &Held<'_>, next: Arc<MonitorList>) -> Arc<MonitorList> {
        let version = if next.monitors.is_empty() { 0 } else { next.version };
        let before = self.list.swap(next);
        self.version.store(version, Ordering::Release);
        before
    }

    /// The list after this one without `id`; the directory is held.
    pub(crate) fn without(&self, id: EndpointId) -> Arc<MonitorList> {
        let list = self.list.load();
        let others = list.monitors.iter().filter(|monitor| monitor.place.id != id);
        Arc::new(MonitorList::new(list.version + 1, others.cloned().collect()))
    }

    fn with(&self, monitor: Monitor) -> Arc<MonitorList> {
        let list = self.list.load();
        let others = list.monitors.iter().filter(|other| other.place.id != monitor.place.id);
        let monitors = others.cloned().chain([monitor.clone()]).collect();
        Arc::new(MonitorList::new(list.version + 1, monitors))
    }
}

impl BusInner {
    /// Takes `locks` and those of the monitors, for a commit that does not hold the directory.
    pub(crate) fn hold_seen(
        &self,
        locks: LockBits,
        effects: &mut Effects,
    ) -> (Held<'_>, Option<Arc<MonitorList>>) {
        loop {
            let monitors = self.monitors.list();
            let mut all = locks;
            if let Some(monitors) = &monitors {
                all.insert_all(monitors.locks());
                effects.reserve(monitors.len());
            }
            let held = self.locks.acquire(all);
            let are = self.monitors.are(monitors.as_deref());
            if are || mutated(Mutant::OutcomeMonitorsNotCompared) {
                return (held, monitors);
            }
        }
    }

    /// Makes an endpoint a monitor of everything, or of one group; again, changes which.
    pub(crate) fn monitor(
        &self,
        core: &EndpointCore,
        group: Option<GroupName>,
    ) -> Result<Sequence, MonitorError> {
        let id = core.id();
        let mut directory = self.directory.lock();
        let record = directory.endpoints.get_mut(&id).ok_or(MonitorError::Closed(id))?;
        if record.receive_shut {
            return Err(MonitorError::ReceiveShut(id));
        }
        if !record.monitoring {
            let others = self.monitors.list().map_or(0, |list| list.len());
            LimitExceeded::check("monitors", others, self.limits.monitors)?;
        }
        self.open_queue(core);
        let own = |drops: &&Arc<Drops>| drops.lost == Lost::Monitored;
        let lost = record.drops.iter().find(own).cloned();
        let nowhere = GroupId::from_raw(0);
        let lost = lost.unwrap_or_else(|| Arc::new(Drops::new(nowhere, Lost::Monitored)));
        record.monitoring = true;
        record.keep_drops(&[], Some(&lost));
        let drops = record.drops.clone();
        let next = self.monitors.with(Monitor { place: core.place, group, lost });
        let mut held = self.hold_all(core);
        let sequence = held.draw(core.seen());
        let old_drops = held.intake(core.place).map(|intake| intake.replace_drops(drops));
        let old = self.monitors.publish(&held, next);
        drop(held);
        drop(directory);
        drop((old, old_drops));
        Ok(sequence)
    }

    /// Ends that; None if the endpoint is no monitor.
    pub(crate) fn unmonitor(&self, core: &EndpointCore) -> Option<Sequence> {
        let mut directory = self.directory.lock();
        let record = directory.endpoints.get_mut(&core.id())?;
        if !std::mem::take(&mut record.monitoring) {
            return None;
        }
        let next = self.monitors.without(core.id());
        let mut held = self.hold_all(core);
        let sequence = held.draw(core.seen());
        let old = self.monitors.publish(&held, next);
        drop(held);
        drop(directory);
        drop(old);
        Some(sequence)
    }
}
