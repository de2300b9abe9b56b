//! CALLs about gated groups: what owners decide, and candidates who wait for it.
//!
//! Invariant: a `join` of a gated group is answered once: when the owner has decided, when the
//! request is taken back, or when its endpoint is closed. Until then it holds nothing back; it is
//! kept by its [`Port`](super::port::Port), whose end withdraws it.

use std::collections::BTreeMap;

use std::time::Duration;

use bus_core::{
    Candidacy, Endpoint, EndpointId, Filter, GateError, GroupId, GroupName, JoinError, Joined,
    MemberFlags, Sequence, Terms,
    wire::{BrokerFrame, Failure, FailureCode, Handle, Request, Response, Serial},
};

use super::{Session, answer_call, failure, no_such_port, port::Port};
use crate::{
    connection::Context,
    inbox::{Part, Signal},
    output::Output,
};

type Answer = Result<Response, Box<Failure>>;

/// The requests of one endpoint to be admitted, decided or not, that no `join` has asked about.
#[derive(Debug, Default)]
pub(super) struct Candidacies(BTreeMap<GroupId, Waiting>);

/// One of them.
#[derive(Debug)]
struct Waiting {
    name: GroupName,
    candidacy: Candidacy,
    /// The `join` that waits for the decision.
    join: Option<Serial>,
}

impl Session {
    /// Acts on a CALL about gated groups. None if it is about something else; `Some(None)` if it is
    /// answered later.
    pub(super) fn gated_call(
        &mut self,
        handle: Handle,
        serial: Serial,
        request: &Request,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Option<Option<Answer>> {
        let gated = match request {
            Request::Join { group, .. } => {
                context.shared.bus.find_group(group).is_some_and(|info| info.gated)
            }
            Request::CreateGated { .. }
            | Request::Connect { .. }
            | Request::Withdraw { .. }
            | Request::Admit { .. }
            | Request::Refuse { .. }
            | Request::Expel { .. }
            | Request::SetTerms { .. }
            | Request::ClosePeer { .. } => true,
            _ => false,
        };
        if !gated {
            return None;
        }
        let token = self.token;
        let Some(port) = self.ports.get_mut(handle) else {
            return Some(Some(Err(Box::new(no_such_port(handle)))));
        };
        let answer = match request {
            Request::Join { group, flags, filter, .. } => {
                let part = |group| Part::Admission(handle, group);
                let waker = |group| Signal::waker(context.inbox, token, part(group));
                return Some(
                    port.join_gated(group, *flags, filter.as_ref(), serial, waker).transpose(),
                );
            }
            Request::Connect { group, flags, filter } => {
                port.connect(group, *flags, filter.as_ref())
            }
            Request::Withdraw { group } => port.withdraw(group, output, context),
            request => owner_call(port.endpoint(), request),
        };
        Some(Some(answer))
    }

    /// The owner of a group may have decided.
    pub(super) fn admission_decided(
        &mut self,
        handle: Handle,
        group: GroupId,
        output: &mut Output,
        context: &Context<'_>,
    ) {
        if let Some(port) = self.ports.get_mut(handle)
            && let Some((serial, answer)) = port.decided(group)
        {
            answer_call(handle, serial, answer, output, context);
        }
    }
}

/// What only the owner of a gated group asks for.
fn owner_call(endpoint: &Endpoint, request: &Request) -> Answer {
    let changed = |sequence: Result<Sequence, GateError>| match sequence {
        Ok(sequence) => Ok(Response::Changed { sequence }),
        Err(error) => Err(Box::new(failure::of_gate(&error))),
    };
    let terms = |flags: MemberFlags, drop_at_peer: bool, filter: &Option<Filter>| {
        let mut terms = Terms::new(flags);
        terms.drop_at_peer = drop_at_peer;
        terms.filter.clone_from(filter);
        terms
    };
    match request {
        Request::CreateGated { group, backlog, stall_ms } => {
            let stall = stall_ms.map(|ms| Duration::from_millis(ms.into()));
            let created = endpoint.create_gated_with(group, *backlog, stall);
            let (group_id, sequence) = created.map_err(|e| failure::of_create(&e))?;
            Ok(Response::Created { group_id, sequence })
        }
        Request::Admit { group_id, endpoint: candidate, flags, drop_at_peer, filter } => {
            let terms = terms(*flags, *drop_at_peer, filter);
            let admitted = endpoint.admit(*group_id, *candidate, terms);
            changed(admitted.map(|joined| joined.sequence))
        }
        Request::Refuse { group_id, endpoint: candidate, text } => {
            let refused = endpoint.refuse(*group_id, *candidate, text);
            refused.map_err(|e| failure::of_gate(&e))?;
            Ok(Response::Refused)
        }
        Request::Expel { group_id, endpoint: member, text } => {
            changed(endpoint.expel(*group_id, *member, text))
        }
        Request::SetTerms { group_id, endpoint: member, flags, drop_at_peer, filter } => {
            let terms = terms(*flags, *drop_at_peer, filter);
            changed(endpoint.set_terms(*group_id, *member, terms))
        }
        Request::ClosePeer { peer } => match endpoint.close_peer(*peer) {
            Some(sequence) => Ok(Response::Changed { sequence }),
            None => {
                let text = format!("there is no peer endpoint {peer} of this endpoint's");
                Err(Box::new(Failure::new(FailureCode::NoSuchEndpoint, text)))
            }
        },
        _ => Err(Box::new(Failure::new(FailureCode::Unsupported, "no request of an owner"))),
    }
}

impl Port {
    /// Asks to be admitted.
    fn connect(
        &mut self,
        name: &GroupName,
        wishes: MemberFlags,
        filter: Option<&Filter>,
    ) -> Answer {
        let most = self.endpoint().bus().limits().memberships;
        if self.candidacies.0.len() >= usize::from(most) {
            let text = format!("{most} requests to be admitted have not been asked about");
            let failure = Failure::new(FailureCode::LimitExceeded, text);
            return Err(Box::new(failure.with_limit("memberships", most.into())));
        }
        if self.candidacies.find(name).is_some() {
            let error = JoinError::AlreadyCandidate(name.clone(), self.endpoint().id());
            return Err(Box::new(failure::of_join(&error)));
        }
        let connected = self.endpoint().connect_with(name, wishes, filter.cloned());
        let candidacy = connected.map_err(|error| failure::of_join(&error))?;
        let group_id = candidacy.group();
        let response = Response::Connected {
            group_id,
            sequence: candidacy.sequence(),
            owner: candidacy.owner(),
            peer: candidacy.peer(),
        };
        let request = Waiting { name: name.clone(), candidacy, join: None };
        self.candidacies.0.insert(group_id, request);
        Ok(response)
    }

    /// Joins a gated group. `Ok(None)` if the owner has not decided, and then the answer comes with
    /// [`decided`](Self::decided).
    fn join_gated(
        &mut self,
        name: &GroupName,
        wishes: MemberFlags,
        filter: Option<&Filter>,
        serial: Serial,
        waker: impl Fn(GroupId) -> std::task::Waker,
    ) -> Result<Option<Response>, Box<Failure>> {
        let group = match self.candidacies.find(name) {
            Some(group) => group,
            None => match self.connect(name, wishes, filter)? {
                Response::Connected { group_id, .. } => group_id,
                response => unreachable!("a connect is not answered by {response:?}"),
            },
        };
        let endpoint = self.endpoint().id();
        let Some(request) = self.candidacies.0.get_mut(&group) else {
            unreachable!("it was found or made just now");
        };
        if request.join.is_some() {
            let error = JoinError::AlreadyCandidate(name.clone(), endpoint);
            return Err(Box::new(failure::of_join(&error)));
        }
        request.join = Some(serial);
        if request.candidacy.sleep(waker(group)) {
            return Ok(None);
        }
        self.decided(group).map(|(_, answer)| answer).transpose()
    }

    /// The outcome of a request, and the `join` that waits for it.
    fn decided(&mut self, group: GroupId) -> Option<(Serial, Answer)> {
        let request = self.candidacies.0.get_mut(&group)?;
        let serial = request.join?;
        let outcome = request.candidacy.poll_outcome()?;
        let (owner, peer) = (request.candidacy.owner(), request.candidacy.peer());
        self.candidacies.0.remove(&group);
        Some((serial, answer_of(outcome, owner, peer)))
    }

    /// Takes a request back. A `join` that waits gets its answer first.
    fn withdraw(&mut self, name: &GroupName, output: &mut Output, context: &Context<'_>) -> Answer {
        let group = self.candidacies.find(name);
        let request = group.and_then(|group| self.candidacies.0.remove(&group));
        let Some(request) = request else {
            let text = format!("no request of this endpoint's to be admitted to {name} waits");
            return Err(Box::new(Failure::new(FailureCode::NoCandidate, text)));
        };
        let (owner, peer) = (request.candidacy.owner(), request.candidacy.peer());
        let outcome = request.candidacy.withdraw();
        match (request.join, outcome) {
            (Some(serial), outcome) => {
                let answer = answer_of(outcome, owner, peer);
                let handle = self.handle();
                answer_call(handle, serial, answer, output, context);
            }
            // It was admitted, and nobody has asked: it is undone.
            (None, Ok(joined)) => drop(self.endpoint().leave(joined.group)),
            (None, Err(_)) => {}
        }
        Ok(Response::Withdrawn)
    }

    /// Answers every `join` that has no answer; the requests end.
    pub(super) fn cancel_joins(&mut self, output: &mut Output) {
        for request in std::mem::take(&mut self.candidacies).0.into_values() {
            let endpoint = self.handle();
            if let Some(serial) = request.join {
                let failure = Failure::new(FailureCode::Cancelled, "the endpoint is closed");
                let failure = Box::new(failure);
                super::say(BrokerFrame::Error { endpoint, serial, failure }, output);
            }
        }
    }
}

impl Candidacies {
    fn find(&self, name: &GroupName) -> Option<GroupId> {
        self.0.iter().find(|(_, request)| request.name == *name).map(|(group, _)| *group)
    }
}

fn answer_of(outcome: Result<Joined, JoinError>, owner: EndpointId, peer: EndpointId) -> Answer {
    let joined = outcome.map_err(|error| failure::of_join(&error))?;
    Ok(Response::Admitted {
        group_id: joined.group,
        sequence: joined.sequence,
        members: joined.members,
        flags: joined.flags,
        owner,
        peer,
    })
}
