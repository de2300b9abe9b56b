//! Views (G4): who watches a group's membership is told of each change, at its place in the order.
//!
//! Invariant: a change is told under the same locks under which it is published, so a watcher
//! finds it between the messages before and after it. A notice never waits and makes nobody wait:
//! a watcher without room misses it, and is told which ones it missed, as for messages (G7); the
//! view that holds now can always be fetched with [`Bus::members`](crate::Bus::members).

use std::sync::Arc;
use std::task::Waker;

use serde::{Deserialize, Serialize};

use crate::bus::{BusInner, JoinError, LimitExceeded};
use crate::directory::Directory;
use crate::group::Group;
use crate::id::{EndpointId, GroupId, Sequence};
use crate::intake::{Drops, EndpointCore, Lost};
use crate::lock_set::{Held, IntakePlace};
use crate::member_change::MemberChange;
use crate::membership::Membership;
use crate::message::Credentials;
use crate::monitor::Monitored;
use crate::name::GroupName;
use crate::retained::Retained;
use crate::send::Effects;
use crate::sync::{Mutant, MutexGuard, mutated};

/// What a watcher wants to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interest {
    /// Every change of the membership.
    #[default]
    Members,
    /// Only when the group goes from nobody to somebody and back, so that a publisher can spare
    /// itself the work.
    Anybody,
}

/// What happened to a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// It began.
    Joined,
    /// The member left, or receives nothing any more.
    Left,
    /// The member was stalled (G8).
    Evicted,
    /// The member's endpoint was closed.
    Closed,
    /// No membership: the group ended because its creator is gone and nobody is left.
    Ended,
}

/// A change of a group's membership, as its watchers are told (G4).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ViewChange {
    /// The group.
    pub group: GroupId,
    /// Its name.
    pub name: GroupName,
    /// Where in the order it happened.
    pub sequence: Sequence,
    /// Whose membership.
    pub endpoint: EndpointId,
    /// Whose endpoint.
    pub credentials: Credentials,
    /// What happened.
    pub change: Change,
    /// How many members there are after it.
    pub members: u32,
    /// The group has ended with it; nothing of it comes after this.
    pub ended: bool,
}

/// A watch on a group that has begun: every change after `sequence` is told (G4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Watching {
    /// The group.
    pub group: GroupId,
    /// Where in the order the watch began.
    pub sequence: Sequence,
    /// How many members there were then.
    pub members: u32,
}

/// One watcher of a group; part of its membership, and immutable like it.
#[derive(Clone, Debug)]
pub(crate) struct Watcher {
    pub(crate) place: IntakePlace,
    pub(crate) interest: Interest,
    /// Changes that it missed.
    pub(crate) lost: Arc<Drops>,
}

/// A membership that is about to be published, and what its watchers will be told.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) group: Arc<Group>,
    pub(crate) next: Arc<Membership>,
    told: Option<Arc<ViewChange>>,
    /// What only monitors are told of it.
    asides: Vec<Arc<MemberChange>>,
    /// It takes the group from nobody to somebody, or back.
    edge: bool,
    /// Where those were who waited for a change: dropped when no lock is held.
    woken: Vec<Waker>,
}

impl Step {
    /// A step in which `who` comes or goes.
    pub(crate) fn new(
        group: &Arc<Group>,
        before: &Membership,
        next: Membership,
        who: &EndpointCore,
        change: Change,
    ) -> Self {
        let (old, new) = (before.members().len(), next.members().len());
        let told = Some(Arc::new(ViewChange {
            group: group.id,
            name: group.name.clone(),
            sequence: Sequence::from_raw(0),
            endpoint: who.id(),
            credentials: who.credentials,
            change,
            members: u32::try_from(new).unwrap_or(u32::MAX),
            ended: next.ended,
        }));
        let edge = (old == 0) != (new == 0) || next.ended;
        let (asides, woken) = (Vec::new(), Vec::new());
        Self { group: Arc::clone(group), next: Arc::new(next), told, asides, edge, woken }
    }

    /// A step in which the watcher `id` goes.
    pub(crate) fn unwatch(group: &Arc<Group>, id: EndpointId) -> Self {
        Self::unseen(group, group.membership().without_watcher(id))
    }

    /// A step in which nobody comes or goes: who watches changes, or what a member asks for.
    pub(crate) fn unseen(group: &Arc<Group>, next: Membership) -> Self {
        let (told, asides, woken) = (None, Vec::new(), Vec::new());
        let (group, next) = (Arc::clone(group), Arc::new(next));
        Self { group, next, told, asides, edge: false, woken }
    }

    /// The same step, of which monitors are told these too.
    pub(crate) fn aside(mut self, changes: impl IntoIterator<Item = MemberChange>) -> Self {
        self.asides.extend(changes.into_iter().map(Arc::new));
        self
    }

    /// Publishes the membership and tells its watchers; all locks are held. Gives back the
    /// membership before it, to be dropped when they are released.
    pub(crate) fn publish(
        &mut self,
        held: &mut Held<'_>,
        sequence: Sequence,
        effects: &mut Effects,
    ) -> Arc<Membership> {
        let before = self.group.publish(held, Arc::clone(&self.next));
        if before.audience != self.next.audience {
            self.woken = self.group.take_on_change();
            self.woken.drain(..).for_each(|waker| effects.wake(Some(waker)));
        }
        for change in &mut self.asides {
            MemberChange::stand(change, sequence);
        }
        if let Some(told) = &mut self.told {
            Arc::get_mut(told).expect("nobody has a change before it happens").sequence = sequence;
            let watchers = self.next.watchers().iter();
            for watcher in watchers.filter(|w| w.interest == Interest::Members || self.edge) {
                if let Some(intake) = held.intake(watcher.place) {
                    intake.tell(told, &watcher.lost);
                    effects.wake(intake.take_reader());
                }
            }
        }
        before
    }

    /// What monitors are told of it, once it is published.
    pub(crate) fn seen(&self) -> impl Iterator<Item = Monitored> {
        let views = self.told.iter().map(|told| Monitored::View(Arc::clone(told)));
        let asides = self.asides.iter().map(|change| Monitored::Member(Arc::clone(change)));
        views.chain(asides)
    }

    /// How many things that is.
    pub(crate) fn seen_count(&self) -> usize {
        usize::from(self.told.is_some()) + self.asides.len()
    }

    /// How many watchers there are to wake, and others who wait for a change.
    pub(crate) fn watchers(&self) -> usize {
        self.next.watchers().len() + self.group.wakers_on_change()
    }
}

impl BusInner {
    /// Begins a watch, or changes what it is about.
    pub(crate) fn watch_group(
        &self,
        core: &EndpointCore,
        name: &GroupName,
        interest: Interest,
        create: bool,
    ) -> Result<Watching, JoinError> {
        let id = core.id();
        let mut directory = self.directory.lock();
        let record = (directory.endpoints.get_mut(&id)).ok_or(JoinError::Closed(id))?;
        if record.receive_shut {
            return Err(JoinError::ReceiveShut(id));
        }
        if !record.watching.iter().any(|group| group.name == *name) {
            let watches = self.limits.watches;
            LimitExceeded::check("watches", record.watching.len(), watches)?;
            // As for memberships: what was lost and not yet told outlasts its watch.
            record.keep_drops(&[], None);
            let past = record.past_losses();
            LimitExceeded::check("watches (losses not yet read)", past, watches)?;
        }
        let group = self.find_or_add_group(&mut directory, id, name, create, None)?.0;
        self.open_queue(core);
        let record = directory.endpoints.get_mut(&id).ok_or(JoinError::Closed(id))?;
        let before = group.membership();
        let lost = match before.watchers().iter().find(|watcher| watcher.place.id == id) {
            Some(watcher) => Arc::clone(&watcher.lost),
            None => {
                let watchers = before.watchers().len();
                LimitExceeded::check("members (watchers)", watchers, self.limits.members)?;
                record.watching.push(Arc::clone(&group));
                let past =
                    |drops: &&Arc<Drops>| drops.group == group.id && drops.lost == Lost::Views;
                let past = record.drops.iter().find(past).cloned();
                past.unwrap_or_else(|| Arc::new(Drops::new(group.id, Lost::Views)))
            }
        };
        record.keep_drops(&[], Some(&lost));
        let drops = record.drops.clone();
        let watcher = Watcher { place: core.place, interest, lost };
        let members = u32::try_from(before.members().len()).unwrap_or(u32::MAX);
        let step = Step::unseen(&group, before.with_watcher(watcher));
        let sequence = self.publish_one(core, directory, step, drops);
        Ok(Watching { group: group.id, sequence, members })
    }

    /// Ends a watch. None if there is none.
    pub(crate) fn unwatch_group(&self, core: &EndpointCore, group: GroupId) -> Option<Sequence> {
        let mut directory = self.directory.lock();
        let record = directory.endpoints.get_mut(&core.id())?;
        let at = record.watching.iter().position(|watched| watched.id == group)?;
        let group = record.watching.remove(at);
        record.keep_drops(std::slice::from_ref(&group), None);
        let drops = record.drops.clone();
        let step = Step::unwatch(&group, core.id());
        Some(self.publish_one(core, directory, step, drops))
    }

    /// Publishes one step, at its place in the order. The directory is let go before watchers are
    /// woken: a waker may ask the bus something.
    pub(crate) fn publish_one(
        &self,
        core: &EndpointCore,
        directory: MutexGuard<'_, Directory>,
        step: Step,
        drops: Vec<Arc<Drops>>,
    ) -> Sequence {
        self.publish_join(core, directory, step, drops, None)
    }

    /// The same, and tells `core` there what the group has retained, if that is wanted.
    pub(crate) fn publish_join(
        &self,
        core: &EndpointCore,
        directory: MutexGuard<'_, Directory>,
        step: Step,
        drops: Vec<Arc<Drops>>,
        retained: Option<Box<Retained>>,
    ) -> Sequence {
        let mut effects = Effects::default();
        let sequence =
            self.publish_then(core, directory, step, drops, retained, &mut effects, |_, _, _| {});
        effects.run();
        sequence
    }

    /// As [`publish_join`](Self::publish_join), and does something more with the directory still
    /// held; the caller runs the effects.
    #[expect(clippy::too_many_arguments, reason = "what is published, and what follows")]
    pub(crate) fn publish_then(
        &self,
        core: &EndpointCore,
        mut directory: MutexGuard<'_, Directory>,
        mut step: Step,
        drops: Vec<Arc<Drops>>,
        retained: Option<Box<Retained>>,
        effects: &mut Effects,
        then: impl FnOnce(&mut Directory, Sequence, &mut Effects),
    ) -> Sequence {
        let monitors = self.monitors.list();
        let copies = monitors.as_ref().map_or(0, |list| list.len() * step.seen_count());
        effects.reserve(step.watchers() + copies + 1);
        let mut held = self.hold_all(core);
        let sequence = held.draw(core.seen());
        let old_drops = held.intake(core.place).map(|intake| intake.replace_drops(drops));
        let old = step.publish(&mut held, sequence, effects);
        if let Some(monitors) = &monitors {
            step.seen().for_each(|seen| monitors.tell(&mut held, &seen, effects));
        }
        if let Some(mut retained) = retained
            && let Some(intake) = held.intake(core.place)
        {
            retained.sequence = sequence;
            if !mutated(Mutant::StateBeforeJoin) {
                step.group.copy_retained(&mut retained);
            }
            intake.push_retained(retained);
            effects.wake(intake.take_reader());
        }
        drop(held);
        let group = (step.group.id, &step.group.name);
        self.recorder.membership_changed(group, &old, &step.next, sequence, None);
        then(&mut directory, sequence, effects);
        drop(directory);
        drop((old, old_drops));
        sequence
    }
}
