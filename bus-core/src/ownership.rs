//! Who owns a well-known name at one generation, and who waits to: immutable, like a membership.
//!
//! Invariant: claims are all exclusive or all shared. Of exclusive ones the first owns the name and
//! the others wait in their order; shared ones own it together, as workers of one service. So a
//! name that is claimed has an owner, and a claim that waits becomes the owner's exactly when those
//! before it have gone.

use std::sync::Arc;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::description::Description;
use crate::id::{EndpointId, Generation};
use crate::intake::{Drops, EndpointCore};
use crate::lock_set::{IntakePlace, LockBits};

bitflags! {
    /// How a name is claimed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(transparent)]
    pub struct NameFlags: u8 {
        /// Others that ask with `REPLACE_EXISTING` may take the name over.
        const ALLOW_REPLACEMENT = 1;
        /// Take the name over from an owner that allows it.
        const REPLACE_EXISTING = 2;
        /// Fail rather than wait for the name; and once replaced, do not wait to own it again.
        const DO_NOT_QUEUE = 4;
        /// Own the name together with others that say the same: each message to it is given to one
        /// of them. Nobody waits for such a name, and nobody is replaced.
        const SHARED = 8;
    }
}

/// An endpoint that owns a name or waits to.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) core: Arc<EndpointCore>,
    pub(crate) flags: NameFlags,
    pub(crate) description: Option<Arc<Description>>,
    /// How often it was replaced and waits again, since the endpoint has last asked.
    pub(crate) requeues: u8,
}

/// How often an owner is put back into the queue unasked: what it has to be told is bounded by
/// what it asks for, also where a transport takes it out of the queue and nobody reads it.
pub(crate) const MOST_REQUEUES: u8 = 8;

impl Claim {
    pub(crate) fn id(&self) -> EndpointId {
        self.core.id()
    }

    fn is_shared(&self) -> bool {
        self.flags.contains(NameFlags::SHARED)
    }
}

/// Who is told of changes of a name's owners.
#[derive(Clone, Debug)]
pub(crate) struct OwnerWatcher {
    pub(crate) place: IntakePlace,
    /// Changes that it missed.
    pub(crate) lost: Arc<Drops>,
}

/// Why a claim was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// This one owns the name, and the claim is not to wait.
    Taken(EndpointId),
    /// Others claim it shared, and this one does not, or the other way round.
    OtherKind,
}

#[derive(Debug)]
pub(crate) struct Ownership {
    pub(crate) generation: Generation,
    claims: Box<[Claim]>,
    watchers: Arc<[OwnerWatcher]>,
    /// The locks that cover the owners.
    locks: LockBits,
}

impl Ownership {
    pub(crate) fn vacant() -> Self {
        Self::new(Generation(0), Box::default(), Arc::new([]))
    }

    fn new(generation: Generation, claims: Box<[Claim]>, watchers: Arc<[OwnerWatcher]>) -> Self {
        let mut ownership = Self { generation, claims, watchers, locks: LockBits::NONE };
        let mut locks = LockBits::NONE;
        for owner in ownership.owners() {
            locks.insert(owner.core.place.lock);
        }
        ownership.locks = locks;
        ownership
    }

    fn next(&self, claims: Vec<Claim>) -> Self {
        let generation = Generation(self.generation.0 + 1);
        Self::new(generation, claims.into(), Arc::clone(&self.watchers))
    }

    pub(crate) fn claims(&self) -> &[Claim] {
        &self.claims
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.claims.first().is_some_and(Claim::is_shared)
    }

    /// Those that own the name now: one, all of a shared one, or nobody.
    pub(crate) fn owners(&self) -> &[Claim] {
        if self.is_shared() { &self.claims } else { &self.claims[..self.claims.len().min(1)] }
    }

    /// The one owner, if there is exactly one.
    pub(crate) fn sole_owner(&self) -> Option<EndpointId> {
        match self.owners() {
            [owner] => Some(owner.id()),
            _ => None,
        }
    }

    pub(crate) fn owns(&self, id: EndpointId) -> bool {
        self.owners().iter().any(|owner| owner.id() == id)
    }

    /// Where a claim stands: 0 for an owner, else how many are before it.
    pub(crate) fn position(&self, id: EndpointId) -> Option<usize> {
        if self.owns(id) {
            return Some(0);
        }
        self.claims.iter().position(|claim| claim.id() == id)
    }

    pub(crate) fn locks(&self) -> LockBits {
        self.locks
    }

    pub(crate) fn watchers(&self) -> &[OwnerWatcher] {
        &self.watchers
    }

    /// Nobody claims the name and nobody watches it.
    pub(crate) fn ended(&self) -> bool {
        self.claims.is_empty() && self.watchers.is_empty()
    }

    /// The next generation, with `claim` in it, instead of an earlier one of the same endpoint.
    /// `may_wait` says whether an owner that is replaced may wait to own it again.
    pub(crate) fn with(
        &self,
        mut claim: Claim,
        may_wait: impl FnOnce(&Claim) -> bool,
    ) -> Result<Self, Refusal> {
        let id = claim.id();
        let mut claims = self.claims.to_vec();
        let at = claims.iter().position(|other| other.id() == id);
        if claims.iter().any(|other| other.id() != id && other.is_shared() != claim.is_shared()) {
            return Err(Refusal::OtherKind);
        }
        if let Some(at) = at {
            claim.description = claim.description.or_else(|| claims[at].description.clone());
        }
        let owner = claims.first().filter(|owner| owner.id() != id && !claim.is_shared());
        let replaces = owner.is_some_and(|owner| {
            owner.flags.contains(NameFlags::ALLOW_REPLACEMENT)
                && claim.flags.contains(NameFlags::REPLACE_EXISTING)
        });
        match owner {
            Some(_) if replaces => {
                if let Some(at) = at {
                    claims.remove(at);
                }
                let former = &mut claims[0];
                let waits = !former.flags.contains(NameFlags::DO_NOT_QUEUE)
                    && former.requeues < MOST_REQUEUES
                    && may_wait(former);
                if waits {
                    former.requeues += 1;
                    claims.insert(0, claim);
                } else {
                    claims[0] = claim;
                }
            }
            Some(owner) if claim.flags.contains(NameFlags::DO_NOT_QUEUE) => {
                return Err(Refusal::Taken(owner.id()));
            }
            _ => match at {
                Some(at) => claims[at] = claim,
                None => claims.push(claim),
            },
        }
        Ok(self.next(claims))
    }

    /// The next generation, without the claim and the watch of `id`, as far as asked.
    pub(crate) fn without(&self, id: EndpointId, gone: Gone) -> Self {
        let mut claims = self.claims.to_vec();
        if gone != Gone::Watch {
            claims.retain(|claim| claim.id() != id);
        }
        let mut next = self.next(claims);
        if gone != Gone::Claim {
            let others = self.watchers.iter().filter(|watcher| watcher.place.id != id);
            next.watchers = others.cloned().collect();
        }
        next
    }

    /// The next generation, with `watcher` in it.
    pub(crate) fn with_watcher(&self, watcher: OwnerWatcher) -> Self {
        let mut next = self.next(self.claims.to_vec());
        let others = self.watchers.iter().filter(|other| other.place.id != watcher.place.id);
        next.watchers = others.cloned().chain([watcher.clone()]).collect();
        next
    }
}

/// What of an endpoint a name loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    Claim,
    Watch,
    Both,
}
