//! A change of a name's owners: what is published, and who is told.
//!
//! Invariant: a change is told under the same locks under which it is published, so who becomes
//! the owner finds "acquired" before the first message to the name, and who was it finds "lost"
//! after the last (G4). Both stand in places that the claim has reserved in the queue, so they can
//! always be told: two for each claim, because a claim that ends in between asks anew. Watchers
//! are told as of a membership: a notice never waits, and who has no room is told what it lost.

use std::sync::Arc;

use crate::directory::Directory;
use crate::id::{EndpointId, NameId, Sequence};
use crate::intake::EndpointCore;
use crate::lock_set::{Held, IntakePlace};
use crate::message::Credentials;
use crate::monitor::Monitored;
use crate::name::GroupName;
use crate::name_registry::Name;
use crate::ownership::{Claim, Ownership};
use crate::queue::Entry;
use crate::send::Effects;

/// Places that a claim reserves: to be told that the name was acquired, and lost.
pub(crate) const NOTICES_PER_CLAIM: u64 = 2;

/// What happened to an endpoint's claim of a name without its own doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameEvent {
    /// It waited for the name and owns it now: later messages to the name come here.
    Acquired,
    /// Another endpoint has taken the name over: no later message to the name comes here.
    Replaced {
        /// Who has it now.
        by: EndpointId,
        /// This one waits to own it again, and comes first.
        queued: bool,
    },
    /// It was a worker that held up those who send to a shared name, and is none any more (G8).
    Stalled,
}

/// An endpoint is told what became of its claim of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NameNotice {
    /// The name's id.
    pub name: NameId,
    /// The name.
    pub text: GroupName,
    /// Where in the order it happened.
    pub sequence: Sequence,
    /// What happened.
    pub event: NameEvent,
}

/// An endpoint and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whose endpoint.
    pub credentials: Credentials,
}

impl Holder {
    pub(crate) fn of(core: &EndpointCore) -> Self {
        Self { endpoint: core.id(), credentials: core.credentials }
    }
}

/// A change of a name's owners, as its watchers are told (G4).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnerChange {
    /// The name's id. One whose last owner and watcher have gone comes back with another.
    pub name: NameId,
    /// The name.
    pub text: GroupName,
    /// Where in the order it happened.
    pub sequence: Sequence,
    /// Who owned it and does not any more.
    pub old: Option<Holder>,
    /// Who owns it now and did not.
    pub new: Option<Holder>,
    /// How many own it now: one at most, unless it is shared.
    pub owners: u32,
}

/// Who made a change, and so knows of it from a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Actor {
    Endpoint(EndpointId),
    /// The bus puts out a worker that is stalled.
    Stall,
}

/// Owners that are about to be published, and what will be told.
#[derive(Debug)]
pub(crate) struct NameStep {
    pub(crate) name: Arc<Name>,
    next: Arc<Ownership>,
    told: Option<Arc<OwnerChange>>,
    notices: Vec<(IntakePlace, Box<NameNotice>)>,
    /// Whose claim ends without its own doing.
    ended: Option<EndpointId>,
}

impl NameStep {
    pub(crate) fn new(name: &Arc<Name>, before: &Ownership, next: Ownership, by: Actor) -> Self {
        let gone = |these: &Ownership, those: &Ownership| -> Option<Claim> {
            these.owners().iter().find(|owner| !those.owns(owner.id())).cloned()
        };
        let (old, new) = (gone(before, &next), gone(&next, before));
        let holder = |claim: &Option<Claim>| claim.as_ref().map(|claim| Holder::of(&claim.core));
        let changes = old.is_some() || new.is_some();
        let told = changes.then(|| {
            Arc::new(OwnerChange {
                name: name.id,
                text: name.text.clone(),
                sequence: Sequence::from_raw(0),
                old: holder(&old),
                new: holder(&new),
                owners: u32::try_from(next.owners().len()).unwrap_or(u32::MAX),
            })
        });
        let mut notices = Vec::new();
        let mut notify = |claim: &Claim, event| {
            let notice = NameNotice {
                name: name.id,
                text: name.text.clone(),
                sequence: Sequence::from_raw(0),
                event,
            };
            notices.push((claim.core.place, Box::new(notice)));
        };
        let mut ended = None;
        if let Some(old) = old.filter(|old| by != Actor::Endpoint(old.id())) {
            let queued = next.position(old.id()).is_some();
            ended = (!queued).then(|| old.id());
            match &new {
                Some(new) => notify(&old, NameEvent::Replaced { by: new.id(), queued }),
                None => notify(&old, NameEvent::Stalled),
            }
        }
        if let Some(new) = new.filter(|new| by != Actor::Endpoint(new.id())) {
            notify(&new, NameEvent::Acquired);
        }
        Self { name: Arc::clone(name), next: Arc::new(next), told, notices, ended }
    }

    /// How many may have to be woken.
    pub(crate) fn wakes(&self) -> usize {
        self.next.watchers().len() + self.notices.len()
    }

    /// Publishes the owners and tells who is concerned; all locks are held. Gives back what was
    /// published before, to be dropped when they are released.
    pub(crate) fn publish(
        &mut self,
        held: &mut Held<'_>,
        sequence: Sequence,
        effects: &mut Effects,
    ) -> Arc<Ownership> {
        let before = self.name.publish(held, Arc::clone(&self.next));
        for (place, mut notice) in self.notices.drain(..) {
            notice.sequence = sequence;
            if let Some(intake) = held.intake(place) {
                intake.push_notice(notice);
                effects.wake(intake.take_reader());
            }
        }
        if let Some(told) = &mut self.told {
            Arc::get_mut(told).expect("nobody has a change before it happens").sequence = sequence;
            for watcher in self.next.watchers() {
                if let Some(intake) = held.intake(watcher.place) {
                    let change = Arc::clone(told);
                    let entry = |missed| Entry::Owner { change, missed };
                    intake.tell_change(sequence, &watcher.lost, entry);
                    effects.wake(intake.take_reader());
                }
            }
        }
        before
    }

    /// What monitors are told of it, once it is published.
    pub(crate) fn seen(&self) -> Option<Monitored> {
        self.told.as_ref().map(|told| Monitored::Owner(Arc::clone(told)))
    }

    /// Forgets what has ended with this change.
    pub(crate) fn settle(&self, directory: &mut Directory) {
        let id = self.name.id;
        if let Some(record) = self.ended.and_then(|ended| directory.endpoints.get_mut(&ended)) {
            record.names.retain(|name| name.id != id);
        }
        if self.next.ended() {
            directory.registry.remove(&self.name);
        }
    }
}
