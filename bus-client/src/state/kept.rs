//! What an endpoint has on the bus, as the requests that make it again.
//!
//! Kept only where the connection comes back. A request that was granted is kept as it was asked,
//! under what it gave; asking for the same thing again replaces it, and whatever ends the thing
//! forgets it. So after a loss, repeating what is kept in the order in which it was granted gives an
//! endpoint all that it had, and nothing that it had given up. How much that is, is bounded by the
//! limits of the broker that granted it.

use std::time::Instant;

use bus_core::wire::{FailureCode, Request, Response};
use bus_core::{EndpointId, GroupId, NameId, Sequence};

use crate::reconnect::{Fate, Possession};

/// What one endpoint has.
#[derive(Debug, Default)]
pub(super) struct Kept {
    things: Vec<Thing>,
    last: u32,
}

/// Which thing, for the endpoint's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ThingId(u32);

/// One thing, and how it stands with the present broker.
#[derive(Debug)]
pub(super) struct Thing {
    pub(super) id: ThingId,
    pub(super) what: Possession,
    pub(super) request: Request,
    /// Its owner decides, and may take as long as it likes.
    pub(super) gated: bool,
    pub(super) now: Standing,
    /// How often this broker was asked for it again.
    pub(super) attempts: u32,
}

/// How a thing stands with the present broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    There(Ids),
    Asked,
    /// To be asked for again.
    Waiting {
        until: Instant,
    },
    /// Nothing was asked yet.
    Away,
}

/// What a thing is known by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ids {
    group: Option<GroupId>,
    name: Option<NameId>,
    peer: Option<EndpointId>,
}

/// What a granted request gives: the thing, where in the order, and its ids.
pub(super) struct Grant {
    pub(super) what: Possession,
    pub(super) at: Option<Sequence>,
    gated: bool,
    ids: Ids,
}

/// Whether a request gives something that is to be kept, or changes that.
pub(super) fn is_kept(request: &Request) -> bool {
    matches!(
        request,
        Request::Join { .. }
            | Request::Create { .. }
            | Request::CreateGated { .. }
            | Request::OwnName { .. }
            | Request::WatchGroup { .. }
            | Request::WatchName { .. }
            | Request::Monitor { .. }
            | Request::ShutdownReceive
            | Request::SetFilter { .. }
    )
}

/// What the answer to a request has given.
pub(super) fn grant(request: &Request, response: &Response) -> Option<Grant> {
    let (what, at, ids) = match (request, response) {
        (Request::Join { group, .. }, Response::Joined { group_id, sequence, .. }) => {
            let ids = Ids { group: Some(*group_id), ..Ids::default() };
            (Possession::Member(group.clone()), Some(*sequence), ids)
        }
        (Request::Join { group, .. }, Response::Admitted { group_id, sequence, peer, .. }) => {
            let ids = Ids { group: Some(*group_id), peer: Some(*peer), ..Ids::default() };
            (Possession::Member(group.clone()), Some(*sequence), ids)
        }
        (Request::Create { group, .. }, Response::Created { group_id, sequence }) => {
            let ids = Ids { group: Some(*group_id), ..Ids::default() };
            (Possession::Group(group.clone()), Some(*sequence), ids)
        }
        (Request::CreateGated { group, .. }, Response::Created { group_id, sequence }) => {
            let ids = Ids { group: Some(*group_id), ..Ids::default() };
            (Possession::Gate(group.clone()), Some(*sequence), ids)
        }
        (Request::OwnName { name, .. }, Response::Claimed { name_id, sequence, .. }) => {
            let ids = Ids { name: Some(*name_id), ..Ids::default() };
            (Possession::Name(name.clone()), Some(*sequence), ids)
        }
        (Request::WatchGroup { group, .. }, Response::Watching { group_id, sequence, .. }) => {
            let ids = Ids { group: Some(*group_id), ..Ids::default() };
            (Possession::Watch(group.clone()), Some(*sequence), ids)
        }
        (Request::WatchName { name }, Response::NameWatched { name_id, sequence, .. }) => {
            let ids = Ids { name: Some(*name_id), ..Ids::default() };
            (Possession::NameWatch(name.clone()), Some(*sequence), ids)
        }
        (Request::Monitor { group }, Response::Monitoring { sequence }) => {
            (Possession::Monitor(group.clone()), Some(*sequence), Ids::default())
        }
        (Request::ShutdownReceive, Response::Shut { sequence }) => {
            (Possession::Shutdown, Some(*sequence), Ids::default())
        }
        _ => return None,
    };
    Some(Grant { what, at, gated: matches!(response, Response::Admitted { .. }), ids })
}

/// Whether what could not be had may be had later: others come back as we do, and not all at once.
pub(super) fn may_come(code: &FailureCode) -> bool {
    matches!(
        code,
        FailureCode::NoSuchGroup
            | FailureCode::NoSuchName
            | FailureCode::OwnerGone
            | FailureCode::LimitExceeded
            | FailureCode::BackOff
    )
}

impl Kept {
    /// A request was granted.
    pub(super) fn keep(&mut self, request: Request, response: &Response) {
        if let Request::SetFilter { group_id, filter: new } = request {
            let there = |thing: &&mut Thing| thing.group() == Some(group_id);
            if let Some(thing) = self.things.iter_mut().find(there)
                && let Request::Join { filter, .. } = &mut thing.request
            {
                *filter = new;
            }
            return;
        }
        let Some(Grant { what, gated, ids, .. }) = grant(&request, response) else {
            return;
        };
        match what {
            Possession::Shutdown => {
                self.things.retain(|thing| !matches!(thing.what, Possession::Member(_)));
            }
            Possession::Monitor(_) => self.forget_monitor(),
            _ => {}
        }
        let now = Standing::There(ids);
        let at = match self.things.iter().position(|thing| thing.what == what) {
            Some(at) => {
                (self.things[at].request, self.things[at].now) = (request, now);
                at
            }
            None => {
                self.last += 1;
                let id = ThingId(self.last);
                self.things.push(Thing { id, what, request, gated, now, attempts: 0 });
                self.things.len() - 1
            }
        };
        self.things[at].leave_making_to_owner(gated);
    }

    /// Something that was asked for again is there.
    pub(super) fn restored(&mut self, id: ThingId, grant: &Grant) -> bool {
        let Some(thing) = self.get(id) else {
            return false;
        };
        thing.now = Standing::There(grant.ids);
        thing.leave_making_to_owner(grant.gated);
        true
    }

    /// A request that ends something is about to be made.
    pub(super) fn will_end(&mut self, request: &Request) {
        match request {
            Request::Leave { group_id } => self.end_membership(*group_id),
            Request::ReleaseName { name_id } => self.end_claim(*name_id),
            Request::UnwatchGroup { group_id } => self.things.retain(|thing| {
                !matches!(thing.what, Possession::Watch(_)) || thing.group() != Some(*group_id)
            }),
            Request::UnwatchName { name_id } => self.things.retain(|thing| {
                !matches!(thing.what, Possession::NameWatch(_)) || thing.name() != Some(*name_id)
            }),
            Request::Unmonitor => self.forget_monitor(),
            _ => {}
        }
    }

    /// A membership has ended, by whatever cause.
    pub(super) fn end_membership(&mut self, group: GroupId) {
        self.things.retain(|thing| {
            !matches!(thing.what, Possession::Member(_)) || thing.group() != Some(group)
        });
    }

    /// A claim has ended, by whatever cause.
    pub(super) fn end_claim(&mut self, name: NameId) {
        self.things.retain(|thing| {
            !matches!(thing.what, Possession::Name(_)) || thing.name() != Some(name)
        });
    }

    /// Something is wanted no more.
    pub(super) fn forget(&mut self, what: &Possession) -> Option<Thing> {
        let at = self.things.iter().position(|thing| thing.what == *what)?;
        Some(self.things.remove(at))
    }

    fn forget_monitor(&mut self) {
        self.things.retain(|thing| !matches!(thing.what, Possession::Monitor(_)));
    }

    pub(super) fn find(&self, what: &Possession) -> Option<&Thing> {
        self.things.iter().find(|thing| thing.what == *what)
    }

    pub(super) fn get(&mut self, id: ThingId) -> Option<&mut Thing> {
        self.things.iter_mut().find(|thing| thing.id == id)
    }

    pub(super) fn drop_thing(&mut self, id: ThingId) {
        self.things.retain(|thing| thing.id != id);
    }

    /// The broker is lost.
    pub(super) fn depart(&mut self) {
        for thing in &mut self.things {
            (thing.now, thing.attempts) = (Standing::Away, 0);
        }
    }

    /// What is to be asked for now, in the order in which it was granted.
    pub(super) fn due(&self, now: Instant) -> Vec<(ThingId, Request)> {
        let due = self.things.iter().filter(|thing| match thing.now {
            Standing::Away => true,
            Standing::Waiting { until } => until <= now,
            Standing::There(_) | Standing::Asked => false,
        });
        due.map(|thing| (thing.id, thing.request.clone())).collect()
    }

    /// When to look again.
    pub(super) fn next(&self) -> Option<Instant> {
        let waiting = self.things.iter().filter_map(|thing| match thing.now {
            Standing::Waiting { until } => Some(until),
            _ => None,
        });
        waiting.min()
    }
}

impl Thing {
    /// A gated group is its owner's to make: an open one of the name would keep the owner out.
    fn leave_making_to_owner(&mut self, gated: bool) {
        self.gated = gated;
        if gated && let Request::Join { create, .. } = &mut self.request {
            *create = false;
        }
    }

    /// The present id of its group.
    pub(super) fn group(&self) -> Option<GroupId> {
        match self.now {
            Standing::There(ids) => ids.group,
            _ => None,
        }
    }

    /// The present id of its name.
    pub(super) fn name(&self) -> Option<NameId> {
        match self.now {
            Standing::There(ids) => ids.name,
            _ => None,
        }
    }

    /// The present peer endpoint of a membership in a gated group.
    pub(super) fn peer(&self) -> Option<EndpointId> {
        match self.now {
            Standing::There(ids) => ids.peer,
            _ => None,
        }
    }
}

/// What is told of a thing that is not there yet.
pub(super) fn waiting(code: &str) -> Fate {
    Fate::Waiting { code: code.to_owned() }
}

#[cfg(test)]
mod tests {
    use bus_core::{Filter, GroupName, MemberFlags};

    use super::*;

    fn name(text: &str) -> GroupName {
        text.parse().unwrap()
    }

    fn join(group: &str, create: bool) -> Request {
        Request::Join {
            group: name(group),
            flags: MemberFlags::LOOPBACK,
            create,
            filter: None,
            retain: None,
            state: false,
        }
    }

    fn joined(id: u64) -> Response {
        Response::Joined {
            group_id: GroupId::from_raw(id),
            sequence: Sequence::from_raw(9),
            created: false,
            members: 1,
        }
    }

    fn requests(kept: &mut Kept) -> Vec<Request> {
        kept.depart();
        kept.due(Instant::now()).into_iter().map(|(_, request)| request).collect()
    }

    #[test]
    fn what_was_granted_is_asked_for_again_in_its_order() {
        let mut kept = Kept::default();
        let created =
            Response::Created { group_id: GroupId::from_raw(3), sequence: Sequence::from_raw(1) };
        let create = Request::Create { group: name("a"), retain: None, stall_ms: None };
        kept.keep(create.clone(), &created);
        kept.keep(join("b", true), &joined(4));
        kept.keep(join("a", true), &joined(3));
        assert_eq!(requests(&mut kept), [create, join("b", true), join("a", true)]);
    }

    #[test]
    fn what_has_ended_is_not() {
        type End = fn(&mut Kept);
        let rows: [(&str, End); 3] = [
            ("left", |kept| kept.will_end(&Request::Leave { group_id: GroupId::from_raw(4) })),
            ("evicted", |kept| kept.end_membership(GroupId::from_raw(4))),
            ("forgotten", |kept| drop(kept.forget(&Possession::Member(name("b"))))),
        ];
        for (case, end) in rows {
            let mut kept = Kept::default();
            kept.keep(join("b", true), &joined(4));
            kept.keep(join("c", true), &joined(5));
            end(&mut kept);
            assert_eq!(requests(&mut kept), [join("c", true)], "{case}");
        }
    }

    #[test]
    fn a_filter_that_was_changed_is_the_one_that_is_asked_for() {
        let mut kept = Kept::default();
        kept.keep(join("b", true), &joined(4));
        let filter: Filter = "key=x".parse().unwrap();
        let change =
            Request::SetFilter { group_id: GroupId::from_raw(4), filter: Some(filter.clone()) };
        kept.keep(change, &Response::FilterSet { sequence: Sequence::from_raw(9) });
        let Request::Join { filter: asked, .. } = requests(&mut kept).remove(0) else {
            panic!("a join");
        };
        assert_eq!(asked, Some(filter));
    }

    #[test]
    fn a_gated_group_is_left_to_its_owner_to_make() {
        let mut kept = Kept::default();
        let admitted = Response::Admitted {
            group_id: GroupId::from_raw(4),
            sequence: Sequence::from_raw(9),
            members: 1,
            flags: MemberFlags::empty(),
            owner: EndpointId::from_raw(1),
            peer: EndpointId::from_raw(2),
        };
        kept.keep(join("b", true), &admitted);
        assert_eq!(requests(&mut kept), [join("b", false)]);
    }
}
