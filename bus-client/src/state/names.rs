//! Well-known names: handles to send to, and those that an endpoint has claimed.
//!
//! A name's id means nothing once nobody claims or watches the name, so it is looked up again when
//! the broker does not know it any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bus_core::wire::{ClaimChanged, Failure, Handle, Request, Serial};
use bus_core::{GroupName, NameEvent, NameId};

use super::call::{CallError, Purpose};
use super::{State, Urgency};
use crate::inbox::Item;

/// A name, and its id once it is known.
///
/// The fields are atomic so that handles can be shared; they change under the connection's lock
/// only, so nothing is ordered by them.
#[derive(Debug)]
pub(crate) struct NameTarget {
    name: GroupName,
    /// 0 while it is unknown: the broker has no such id.
    id: AtomicU64,
    /// Somebody is looking it up.
    resolving: AtomicBool,
}

impl NameTarget {
    fn new(name: GroupName) -> Self {
        Self { name, id: AtomicU64::new(0), resolving: AtomicBool::new(false) }
    }

    pub(crate) fn name(&self) -> &GroupName {
        &self.name
    }

    pub(crate) fn id(&self) -> Option<NameId> {
        match self.id.load(Ordering::Relaxed) {
            0 => None,
            id => Some(NameId::from_raw(id)),
        }
    }

    /// The broker is lost, and its ids with it.
    pub(super) fn depart(&self) {
        self.set_id(None);
        self.resolving.store(false, Ordering::Relaxed);
    }

    pub(super) fn set_id(&self, id: Option<NameId>) {
        self.id.store(id.map_or(0, NameId::get), Ordering::Relaxed);
    }
}

/// The names that an endpoint has claimed, and those that messages may still come through.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Whether the claim still stands.
    names: BTreeMap<NameId, (GroupName, bool)>,
}

impl Claims {
    pub(super) fn name_of(&self, id: NameId) -> Option<&GroupName> {
        self.names.get(&id).map(|(name, _)| name)
    }

    pub(super) fn knows(&self, id: NameId) -> bool {
        self.names.contains_key(&id)
    }

    fn begin(&mut self, id: NameId, name: GroupName) {
        self.names.insert(id, (name, true));
        let past = self.names.iter().filter(|(_, (_, stands))| !stands);
        if past.clone().count() > PAST_NAMES_KEPT
            && let Some((&oldest, _)) = past.into_iter().next()
        {
            self.names.remove(&oldest);
        }
    }

    fn end(&mut self, id: NameId) {
        if let Some((_, stands)) = self.names.get_mut(&id) {
            *stands = false;
        }
    }
}

impl State {
    /// The handle of a name. Handles of one name share what is known of it.
    pub(crate) fn name(&mut self, name: &GroupName) -> Arc<NameTarget> {
        if let Some(target) = self.names.get(name) {
            return Arc::clone(target);
        }
        if self.names.len() >= NAMES_KEPT {
            self.names.retain(|_, target| Arc::strong_count(target) > 1);
        }
        let target = Arc::new(NameTarget::new(name.clone()));
        self.names.insert(name.clone(), Arc::clone(&target));
        target
    }

    /// Looks a name up for a send or watch, unless that is under way.
    pub(super) fn resolve_name(
        &mut self,
        key: usize,
        target: &Arc<NameTarget>,
        asker: Serial,
    ) -> Result<(), CallError> {
        if target.resolving.load(Ordering::Relaxed) {
            return Ok(());
        }
        let purpose = Purpose::ResolveName { name: Arc::clone(target), asker };
        let request = Request::FindName { name: target.name().clone() };
        let serial = self.call(key, purpose, request)?;
        self.abandon(serial);
        target.resolving.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn name_resolved(&mut self, target: &NameTarget, id: NameId) {
        target.set_id(Some(id));
        target.resolving.store(false, Ordering::Relaxed);
        self.after_lookup();
    }

    pub(super) fn name_unresolved(&mut self, target: &NameTarget, asker: Serial, why: &Failure) {
        target.resolving.store(false, Ordering::Relaxed);
        self.lookup_failed(asker, why);
    }

    pub(super) fn claimed(&mut self, key: usize, name: &GroupName, id: NameId) {
        let endpoint = &mut self.endpoints[key];
        endpoint.joining -= 1;
        endpoint.claims.begin(id, name.clone());
        if let Some(target) = self.names.get(name).cloned() {
            target.set_id(Some(id));
        }
        self.wake_receivers(key);
    }

    pub(super) fn claim_failed(&mut self, key: usize) {
        self.endpoints[key].joining -= 1;
        self.wake_receivers(key);
    }

    pub(super) fn released(&mut self, key: usize, id: NameId) {
        if let Some(endpoint) = self.endpoints.get_mut(key) {
            endpoint.claims.end(id);
            endpoint.kept.end_claim(id);
        }
    }

    /// Gives a name up that nobody holds any more; nobody waits for the answer.
    pub(crate) fn release_name(&mut self, key: usize, id: NameId) {
        let request = Request::ReleaseName { name_id: id };
        if let Ok(serial) = self.call(key, Purpose::ReleaseName(id), request) {
            self.abandon(serial);
            self.flush(Urgency::Soon);
        }
    }

    /// The broker tells what became of a claim.
    pub(super) fn claim_changed(
        &mut self,
        endpoint: Handle,
        claim: Box<ClaimChanged>,
    ) -> Result<(), String> {
        if !matches!(claim.event, NameEvent::Acquired | NameEvent::Replaced { queued: true, .. }) {
            self.released(endpoint.get() as usize, claim.name_id);
        }
        self.deliver(endpoint, Item::Name(claim))
    }
}

/// Handles of names that are shared.
const NAMES_KEPT: usize = 1024;
/// Names given up whose texts are kept for messages that may still come.
const PAST_NAMES_KEPT: usize = 256;
