//! CALLs about well-known names, and what their owners and watchers are told.

use bus_core::{
    Delivery, Gap, GroupName, Holder, NameId, NameNotice, OwnOptions, OwnerChange,
    wire::{
        ClaimChanged, Failure, FailureCode, Handle, NameInfo, Notice, Owner, OwnerChanged, Request,
        Response,
    },
};

use super::{Session, failure, listings::name_info};
use crate::broker::Shared;

impl Session {
    /// Acts on a CALL about names. None if it is about something else.
    pub(super) fn call_of_names(
        &mut self,
        handle: Handle,
        request: &Request,
        shared: &Shared,
    ) -> Option<Result<Response, Box<Failure>>> {
        let bus = &shared.bus;
        Some(match request {
            Request::OwnName { name, flags, description } => self.port(handle).and_then(|port| {
                let mut options = OwnOptions::new(*flags);
                options.description = description.as_deref().cloned();
                let claimed = port.endpoint().own_name(name, options);
                let claimed = claimed.map_err(|error| failure::of_own(&error))?;
                if claimed.position == 0 {
                    shared.services.owned(claimed.name);
                }
                Ok(Response::Claimed {
                    name_id: claimed.name,
                    sequence: claimed.sequence,
                    position: claimed.position,
                })
            }),
            Request::ReleaseName { name_id } => self.port(handle).and_then(|port| {
                let sequence = port.endpoint().release_name(*name_id);
                let sequence = sequence.ok_or_else(|| not_claimed(name_id.get()))?;
                Ok(Response::Released { sequence })
            }),
            Request::WatchName { name } => self.port(handle).and_then(|port| {
                let watching = port.endpoint().watch_name(name);
                let watching = watching.map_err(|error| failure::of_own(&error))?;
                Ok(Response::NameWatched {
                    name_id: watching.name,
                    sequence: watching.sequence,
                    owners: watching.owners.into_iter().map(Owner::from).collect(),
                })
            }),
            Request::UnwatchName { name_id } => self.port(handle).and_then(|port| {
                let sequence = port.endpoint().unwatch_name(*name_id);
                let sequence = sequence.ok_or_else(|| not_watching(name_id.get()))?;
                Ok(Response::Unwatched { sequence })
            }),
            Request::FindName { name } => {
                // Also of a name that has an owner: should that go, the id stays, and what is sent
                // there starts the service.
                let service = shared.services.id_of(bus, name);
                let owned = bus.find_name(name).map(name_info);
                let found = owned.or_else(|| service.map(|id| not_owned_yet(name.clone(), id)));
                found.map(Response::Name).ok_or_else(|| {
                    let text = format!("nobody owns name {name}");
                    Box::new(Failure::new(FailureCode::NoSuchName, text))
                })
            }
            Request::DescribeName { name } => match bus.describe_name(name) {
                Some(description) => Ok(Response::Description(Box::new((*description).clone()))),
                None => Err(Box::new(if bus.find_name(name).is_some() {
                    let text = format!("the owner of name {name} says nothing of itself");
                    Failure::new(FailureCode::NoDescription, text)
                } else {
                    Failure::new(FailureCode::NoSuchName, format!("nobody owns name {name}"))
                })),
            },
            _ => return None,
        })
    }
}

/// The name of a service that is started when somebody sends to it.
fn not_owned_yet(name: GroupName, name_id: NameId) -> NameInfo {
    NameInfo {
        name,
        name_id,
        owners: Vec::new(),
        owner_count: 0,
        waiting: 0,
        shared: false,
        described: false,
    }
}

fn not_claimed(id: u64) -> Box<Failure> {
    let text = format!("this endpoint has no claim of name {id}");
    Box::new(Failure::new(FailureCode::NotClaimed, text))
}

fn not_watching(id: u64) -> Box<Failure> {
    let text = format!("the endpoint does not watch name {id}");
    Box::new(Failure::new(FailureCode::NotWatching, text))
}

/// What is told of a change of a name's owners.
pub(super) fn owner_changed(change: &OwnerChange, missed: Option<Gap>) -> OwnerChanged {
    let owner = |holder: Option<Holder>| holder.map(Owner::from);
    OwnerChanged {
        name_id: change.name,
        name: change.text.clone(),
        sequence: change.sequence,
        old: owner(change.old),
        new: owner(change.new),
        owners: change.owners,
        missed,
    }
}

/// What an endpoint is told about names.
pub(super) fn notice_of(delivery: &Delivery) -> Option<Notice> {
    match delivery {
        Delivery::Name(notice) => {
            let NameNotice { name, text, sequence, event, .. } = &**notice;
            let (name_id, name) = (*name, text.clone());
            let claim = ClaimChanged { name_id, name, sequence: *sequence, event: *event };
            Some(Notice::Claim(Box::new(claim)))
        }
        Delivery::Owner { change, missed } => {
            Some(Notice::Owner(Box::new(owner_changed(change, *missed))))
        }
        Delivery::OwnersLost { name, gap } => {
            Some(Notice::OwnersLost { name_id: *name, gap: *gap })
        }
        _ => None,
    }
}
