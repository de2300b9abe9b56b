//! LOOK: what the bus has counted and recorded, with the programs that the roster knows.

use std::time::Duration;

use bus_core::wire::inside::{
    Awaited, EndpointTraffic, Fate, GroupTraffic, Known, Look, MAX_LOOK, QueueTimes, Refusal, Seen,
    Story, To, WaitingSend,
};
use bus_core::wire::{Failure, FailureCode};
use bus_core::{About, EndpointId, Sequence, Why};

use crate::broker::Shared;
use crate::ingress::Ingress;

/// Looks, on behalf of somebody who may.
pub(super) fn look(look: &Look, shared: &Shared) -> Result<Seen, Box<Failure>> {
    Ok(match look {
        Look::Groups { after, max } => {
            let max = page(*max);
            let mut groups = shared.bus.group_counts(after.as_ref(), max + 1);
            let more = groups.len() > max;
            groups.truncate(max);
            Seen::Groups { groups: groups.into_iter().map(group).collect(), more }
        }
        Look::Endpoints { after, max } => {
            let (endpoints, more) = shared.bus.endpoint_traffic(*after, page(*max));
            let endpoints = endpoints.into_iter().map(|known| endpoint(known, shared)).collect();
            Seen::Endpoints { endpoints, more }
        }
        Look::Connections { after, max } => {
            let (connections, more) = shared.roster.list(*after, page(*max));
            Seen::Connections { connections, more }
        }
        Look::Waits { after, max } => {
            let max = page(*max);
            let mut waits = shared.bus.waiting_sends(*after, max + 1);
            let more = waits.len() > max;
            waits.truncate(max);
            Seen::Waits { waits: waits.into_iter().map(|w| waiting(w, shared)).collect(), more }
        }
        Look::Ingresses => {
            let ingresses = shared.ingresses().iter().map(|ingress| Ingress::traffic(ingress));
            Seen::Ingresses { ingresses: ingresses.collect() }
        }
        Look::Why { sequence, after, max } => {
            Seen::Why(Box::new(why(*sequence, *after, page(*max), shared)))
        }
        Look::Refusals { endpoint, group, max } => {
            let about = match (endpoint, group) {
                (None, None) => About::Anybody,
                (Some(endpoint), None) => About::Endpoint(*endpoint),
                (None, Some(name)) => match shared.bus.find_group(name) {
                    Some(group) => About::Group(group.id),
                    None => {
                        let text = format!("there is no group {name}");
                        return Err(Box::new(Failure::new(FailureCode::NoSuchGroup, text)));
                    }
                },
                (Some(_), Some(_)) => {
                    let text = "refusals are those of an endpoint or of a group";
                    return Err(Box::new(Failure::new(FailureCode::BadRequest, text)));
                }
            };
            let refusals = shared.bus.refusals(about, page(*max));
            Seen::Refusals { refusals: refusals.iter().map(|r| refusal(r, shared)).collect() }
        }
        _ => {
            let text = "this broker does not know what is to be looked at";
            return Err(Box::new(Failure::new(FailureCode::Unsupported, text)));
        }
    })
}

/// The size of a part: what was asked for, within what fits a frame.
fn page(max: u32) -> usize {
    usize::try_from(max.clamp(1, MAX_LOOK)).unwrap_or(1)
}

/// What is asked of the bus at a time, where all of it is wanted: joins wait for as long as one part takes.
const A_PART: usize = 512;

/// All groups, for the metrics.
pub(crate) fn all_groups(shared: &Shared) -> Vec<GroupTraffic> {
    let mut all: Vec<GroupTraffic> = Vec::new();
    loop {
        let after = all.last().map(|last| last.group.clone());
        let part = shared.bus.group_counts(after.as_ref(), A_PART);
        let last = part.len() < A_PART;
        all.extend(part.into_iter().map(group));
        if last {
            return all;
        }
    }
}

/// All endpoints, without their programs, for the metrics.
pub(crate) fn all_endpoints(shared: &Shared) -> Vec<bus_core::EndpointTraffic> {
    let mut all: Vec<bus_core::EndpointTraffic> = Vec::new();
    loop {
        let after = all.last().map(|last| last.id);
        let (part, more) = shared.bus.endpoint_traffic(after, A_PART);
        let none = part.is_empty();
        all.extend(part);
        if !more || none {
            return all;
        }
    }
}

fn group(known: bus_core::GroupCounts) -> GroupTraffic {
    GroupTraffic {
        group: known.name,
        group_id: known.id,
        members: known.members,
        messages: known.traffic.messages,
        bytes: known.traffic.bytes,
        deliveries: known.traffic.deliveries,
        dropped: known.traffic.dropped,
    }
}

/// What is told of an endpoint.
pub(crate) fn endpoint(known: bus_core::EndpointTraffic, shared: &Shared) -> EndpointTraffic {
    EndpointTraffic {
        endpoint: known.id,
        of: shared.roster.whose(known.id, known.credentials),
        groups: known.groups.0,
        memberships: u32::try_from(known.groups.1).unwrap_or(u32::MAX),
        received_messages: known.received.0,
        received_bytes: known.received.1,
        sent_messages: known.sent_messages,
        sent_bytes: known.sent.bytes,
        refused: known.sent.refused,
        waits: known.sent.waits,
        waited_us: micros(known.sent.waited),
        queued_messages: known.queued.0,
        queued_bytes: known.queued.1,
        capacity: known.capacity,
        full_since_sequence: known.full_since,
        dropped: known.dropped,
        blocks: known.blocks.into(),
        blocked_sends: known.blocked,
        blocked_us: micros(known.blocked_time),
        open_requests: known.open_requests,
        time_in_queue: QueueTimes::from(&known.time_in_queue),
    }
}

fn waiting(known: bus_core::WaitingSend, shared: &Shared) -> WaitingSend {
    let awaited = known.at.iter().map(|(endpoint, credentials)| Awaited {
        endpoint: *endpoint,
        of: shared.roster.whose(*endpoint, *credentials),
    });
    WaitingSend {
        ticket: known.ticket,
        sender: known.sender,
        of: shared.roster.whose(known.sender, known.credentials),
        to: To::new(known.to, known.group),
        bytes: known.bytes,
        waited_us: micros(known.waited),
        waits_for: awaited.collect(),
        stood_us: micros(known.stood),
    }
}

fn why(sequence: Sequence, after: Option<EndpointId>, most: usize, shared: &Shared) -> Story {
    let nothing = |known| Story {
        sequence,
        known,
        oldest: None,
        sender: None,
        of: None,
        to: To::default(),
        commit_time: 0,
        bytes: 0,
        recipients: 0,
        incomplete: false,
        fates: Vec::new(),
        more: false,
    };
    let story = match shared.bus.why(sequence, after, most) {
        Why::Message(story) => *story,
        Why::TooOld(oldest) => {
            return Story { oldest: Some(oldest), ..nothing(Known::TooOld) };
        }
        Why::Unknown => return nothing(Known::Unknown),
        _ => return nothing(Known::Off),
    };
    let whose = |id, credentials: Option<_>| credentials.map(|c| shared.roster.whose(id, c));
    let fates = story
        .fates
        .iter()
        .map(|told| Fate { of: whose(told.endpoint, told.credentials), ..Fate::from(told) });
    Story {
        sender: Some(story.sender),
        of: whose(story.sender, story.credentials),
        to: To::new(story.to, story.group.clone()),
        commit_time: story.time,
        bytes: story.bytes,
        recipients: story.recipients,
        incomplete: story.incomplete,
        fates: fates.collect(),
        more: story.more,
        ..nothing(Known::Message)
    }
}

fn refusal(known: &bus_core::Refusal, shared: &Shared) -> Refusal {
    Refusal {
        sender: known.sender,
        of: shared.roster.whose(known.sender, known.credentials),
        to: To::new(known.to, None),
        time: known.time,
        bytes: known.bytes,
        by: known.text(),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
