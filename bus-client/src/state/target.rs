//! Where sends and watches go, and how a group's name becomes its id. (`names.rs`: the same of
//! well-known names.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bus_core::wire::{Failure, Request, Serial};
use bus_core::{Destination, EndpointId, GroupId, GroupName, Sequence};

use super::call::{CallError, Purpose};
use super::names::NameTarget;
use super::request::AskedState;
use super::send::Stage;
use super::{Entry, State};

/// A group's name, and its id once it is known.
///
/// The fields are atomic so that handles can be shared; they change under the connection's lock
/// only, so nothing is ordered by them.
#[derive(Debug)]
pub(crate) struct GroupTarget {
    name: GroupName,
    /// 0 while it is unknown: the broker has no such group id.
    id: AtomicU64,
    /// Somebody is looking it up.
    resolving: AtomicBool,
}

impl GroupTarget {
    pub(crate) fn new(name: GroupName) -> Self {
        Self { name, id: AtomicU64::new(0), resolving: AtomicBool::new(false) }
    }

    pub(crate) fn name(&self) -> &GroupName {
        &self.name
    }

    pub(crate) fn id(&self) -> Option<GroupId> {
        match self.id.load(Ordering::Relaxed) {
            0 => None,
            id => Some(GroupId::from_raw(id)),
        }
    }

    /// The broker is lost, and its ids with it.
    pub(super) fn depart(&self) {
        self.set_id(None);
        self.resolving.store(false, Ordering::Relaxed);
    }

    pub(super) fn set_id(&self, id: Option<GroupId>) {
        self.id.store(id.map_or(0, GroupId::get), Ordering::Relaxed);
    }
}

/// Where a send or watch goes.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Group(Arc<GroupTarget>),
    Endpoint(EndpointId),
    /// The caller of a request that this endpoint was sent.
    Caller(Sequence, Arc<AskedState>),
    Name(Arc<NameTarget>),
}

impl Target {
    pub(super) fn destination(&self) -> Option<Destination> {
        match self {
            Self::Group(group) => group.id().map(Destination::Group),
            Self::Endpoint(id) => Some(Destination::Endpoint(*id)),
            Self::Caller(request, _) => Some(Destination::Caller(*request)),
            Self::Name(name) => name.id().map(Destination::Name),
        }
    }
}

impl State {
    /// The handle of a name. Handles of one name share what is known of it.
    pub(crate) fn group(&mut self, name: &GroupName) -> Arc<GroupTarget> {
        if let Some(group) = self.groups.get(name) {
            return Arc::clone(group);
        }
        if self.groups.len() >= GROUPS_KEPT {
            self.groups.retain(|_, group| Arc::strong_count(group) > 1);
        }
        let group = Arc::new(GroupTarget::new(name.clone()));
        self.groups.insert(name.clone(), Arc::clone(&group));
        group
    }

    /// Looks a group up for a send or watch, unless that is under way.
    ///
    /// # Errors
    ///
    /// It was not asked, and nobody else has. The asker cannot wait for an answer.
    pub(super) fn resolve(
        &mut self,
        key: usize,
        target: &Target,
        asker: Serial,
    ) -> Result<(), CallError> {
        let group = match target {
            Target::Group(group) => group,
            Target::Name(name) => return self.resolve_name(key, name, asker),
            Target::Endpoint(_) | Target::Caller(..) => return Ok(()),
        };
        if group.resolving.load(Ordering::Relaxed) {
            return Ok(());
        }
        let purpose = Purpose::Resolve { group: Arc::clone(group), asker };
        let request = Request::FindGroup { group: group.name().clone() };
        let serial = self.call(key, purpose, request)?;
        self.abandon(serial);
        group.resolving.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// A group's id is known: from a look-up, or because this connection made or joined it.
    pub(super) fn resolved(&mut self, group: &GroupTarget, id: GroupId) {
        group.set_id(Some(id));
        group.resolving.store(false, Ordering::Relaxed);
        self.after_lookup();
    }

    /// A look-up has failed. Only the one that asked fails with it: others may have come since, and
    /// the group too.
    pub(super) fn unresolved(&mut self, group: &GroupTarget, asker: Serial, failure: &Failure) {
        group.resolving.store(false, Ordering::Relaxed);
        self.lookup_failed(asker, failure);
    }

    pub(super) fn lookup_failed(&mut self, asker: Serial, failure: &Failure) {
        match self.pending.get(asker) {
            Some(Entry::Send(send)) if matches!(send.stage, Stage::Queued { .. }) => {
                let error = send.error(failure, &self.limits);
                self.end_send(asker, Err(error));
            }
            Some(Entry::Watch(_)) => {
                self.answer_watch(asker, Err(CallError::Failed(Box::new(failure.clone()))));
            }
            _ => {}
        }
        self.after_lookup();
    }

    pub(super) fn after_lookup(&mut self) {
        for serial in std::mem::take(&mut self.queued_watches) {
            self.start_watch(serial);
        }
        self.pump_all();
    }
}

/// Handles of groups that are shared by name.
const GROUPS_KEPT: usize = 1024;
