//! Calls: what is asked outside the order of sends, and what the answers change here.

use std::collections::VecDeque;
use std::sync::Arc;

use bus_core::wire::{ClientFrame, Failure, FailureCode, Request, Response, Serial};
use bus_core::{GroupId, GroupName, NameId, Sequence};

use super::endpoint::KnownGroup;
use super::kept::{self, ThingId};
use super::names::NameTarget;
use super::send::Stage;
use super::target::{GroupTarget, Target};
use super::{Entry, State, TOO_MUCH_PENDING, Urgency, handle};
use crate::error::BrokerGone;
use crate::waits::Wake;

#[derive(Debug)]
pub(super) struct CallEntry {
    pub(super) endpoint: usize,
    pub(super) purpose: Purpose,
    pub(super) answer: Option<Result<Response, CallError>>,
    /// What of it has come before its end.
    pub(super) parts: VecDeque<Response>,
    pub(super) wake: Option<Wake>,
    pub(super) abandoned: bool,
    /// What is kept for a time after the broker, if it is granted.
    pub(super) kept: Option<Box<Request>>,
    /// It asks for something that the endpoint had at another broker; nobody waits for it.
    pub(super) restores: Option<ThingId>,
}

/// What an answer to a call changes here, beside that somebody waits for it.
#[derive(Debug)]
pub(crate) enum Purpose {
    Plain,
    /// Asks for a list, which comes in parts.
    List,
    /// Looks a group up for the send or watch `asker`, which fails if there is none.
    Resolve {
        group: Arc<GroupTarget>,
        asker: Serial,
    },
    Create(Arc<GroupTarget>),
    /// Creates a gated group.
    Own(Arc<GroupTarget>),
    Join(Arc<GroupTarget>),
    Leave(GroupId),
    /// Looks a well-known name up for the send or watch `asker`, which fails if nobody owns it.
    ResolveName {
        name: Arc<NameTarget>,
        asker: Serial,
    },
    OwnName(GroupName),
    ReleaseName(NameId),
    WatchGroup(GroupName),
    Open,
    /// Opens an endpoint again, at another broker.
    Reopen,
    Close,
}

/// Why a call did nothing.
#[derive(Clone, Debug)]
pub(crate) enum CallError {
    Failed(Box<Failure>),
    Gone(BrokerGone),
}

impl State {
    /// Asks the broker.
    pub(crate) fn call(
        &mut self,
        key: usize,
        purpose: Purpose,
        request: Request,
    ) -> Result<Serial, CallError> {
        if let Some(gone) = &self.gone {
            return Err(CallError::Gone(gone.clone()));
        }
        let joins = matches!(&purpose, Purpose::Join(_) | Purpose::OwnName(_));
        let entry = Entry::Call(Box::new(CallEntry {
            endpoint: key,
            purpose,
            answer: None,
            parts: VecDeque::new(),
            wake: None,
            abandoned: false,
            kept: (self.comes_back() && kept::is_kept(&request)).then(|| Box::new(request.clone())),
            restores: None,
        }));
        let Some(serial) = self.pending.insert(|| entry) else {
            let text = TOO_MUCH_PENDING;
            return Err(CallError::Failed(Box::new(Failure::new(
                FailureCode::LimitExceeded,
                text,
            ))));
        };
        if joins {
            self.endpoints[key].joining += 1;
        }
        if self.comes_back()
            && let Some(endpoint) = self.endpoints.get_mut(key)
        {
            endpoint.kept.will_end(&request);
        }
        self.outbox.put(&ClientFrame::Call { endpoint: handle(key), serial, request });
        Ok(serial)
    }

    /// Takes the call's answer, and its entry with it.
    pub(crate) fn take_response(&mut self, serial: Serial) -> Option<Result<Response, CallError>> {
        match self.pending.get(serial) {
            Some(Entry::Call(call)) if call.answer.is_some() => {}
            _ => return None,
        }
        match self.pending.remove(serial) {
            Some(Entry::Call(call)) => call.answer,
            _ => unreachable!("it was there a moment ago"),
        }
    }

    pub(super) fn answer_call(&mut self, serial: Serial, answer: Result<Response, CallError>) {
        let Some(Entry::Call(call)) = self.pending.get_mut(serial) else {
            return;
        };
        call.answer = Some(answer);
        let (wake, abandoned) = (call.wake.take(), call.abandoned || call.restores.is_some());
        if abandoned {
            self.pending.remove(serial);
        } else {
            self.woken(wake);
        }
    }

    pub(super) fn done(&mut self, serial: Serial, response: Response) -> Result<(), String> {
        let Some(Entry::Call(call)) = self.pending.get_mut(serial) else {
            return Err(format!("DONE for a call that was not made: serial {serial}"));
        };
        let key = call.endpoint;
        let abandoned = call.abandoned;
        let (kept, restores) = (call.kept.take(), call.restores);
        // The purpose has served when the answer is here.
        match (std::mem::replace(&mut call.purpose, Purpose::Plain), &response) {
            (Purpose::Plain | Purpose::List, _) => {}
            (Purpose::Resolve { group, .. }, Response::Group(info)) => {
                self.resolved(&group, info.group_id);
            }
            (Purpose::Create(group), Response::Created { group_id, .. }) => {
                self.resolved(&group, *group_id);
            }
            (Purpose::Own(group), Response::Created { group_id, .. }) => {
                self.owns(key, &group, *group_id);
            }
            (
                Purpose::Join(group),
                Response::Joined { group_id, .. } | Response::Admitted { group_id, .. },
            ) => {
                self.joined(key, &group, *group_id);
                if abandoned {
                    self.leave_group(key, *group_id);
                }
            }
            (Purpose::Leave(group_id), Response::Left { sequence }) => {
                self.left(key, group_id, *sequence);
            }
            (Purpose::WatchGroup(name), Response::Watching { group_id, sequence, members }) => {
                self.watching(key, &name, *group_id, *sequence, *members);
            }
            (Purpose::ResolveName { name, .. }, Response::Name(info)) => {
                self.name_resolved(&name, info.name_id);
            }
            (Purpose::OwnName(name), Response::Claimed { name_id, .. }) => {
                self.claimed(key, &name, *name_id);
            }
            (Purpose::ReleaseName(id), Response::Released { .. }) => self.released(key, id),
            (Purpose::Open, Response::Opened { endpoint: id }) => {
                let endpoint = &mut self.endpoints[key];
                (endpoint.id, endpoint.opening) = (*id, false);
            }
            (Purpose::Reopen, Response::Opened { endpoint }) => self.reopened(key, Ok(*endpoint)),
            (Purpose::Close, Response::Closed) => self.closed(key),
            (purpose, response) => {
                return Err(format!("DONE answers {purpose:?} with {response:?}"));
            }
        }
        if let Some(id) = restores {
            self.restored(key, id, &response);
        } else if let (Some(request), Some(endpoint)) = (kept, self.endpoints.get_mut(key))
            && !abandoned
        {
            endpoint.kept.keep(*request, &response);
        }
        self.answer_call(serial, Ok(response));
        Ok(())
    }

    pub(super) fn failed(&mut self, serial: Serial, failure: Box<Failure>) {
        match self.pending.get_mut(serial) {
            Some(Entry::Call(call)) => {
                let key = call.endpoint;
                let restores = call.restores;
                let purpose = std::mem::replace(&mut call.purpose, Purpose::Plain);
                let comes = restores.is_some_and(|id| self.not_restored(key, id, &failure));
                match purpose {
                    Purpose::Resolve { group, asker } => {
                        self.unresolved(&group, asker, &failure);
                    }
                    Purpose::Join(_) => {
                        self.endpoints[key].joining -= 1;
                        self.wake_receivers(key);
                    }
                    Purpose::ResolveName { name, asker } => {
                        self.name_unresolved(&name, asker, &failure);
                    }
                    Purpose::OwnName(_) => self.claim_failed(key),
                    Purpose::ReleaseName(id) => self.released(key, id),
                    Purpose::Open => {
                        self.endpoints.remove(key);
                    }
                    Purpose::Close => self.closed(key),
                    Purpose::WatchGroup(_) if comes => {}
                    Purpose::WatchGroup(name) => self.watch_group_failed(key, &name, &failure),
                    Purpose::Reopen => self.reopened(key, Err(&failure)),
                    Purpose::Plain
                    | Purpose::List
                    | Purpose::Create(_)
                    | Purpose::Own(_)
                    | Purpose::Leave(_) => {}
                }
                self.answer_call(serial, Err(CallError::Failed(failure)));
            }
            Some(Entry::Watch(watch)) => {
                if failure.code == FailureCode::NoSuchGroup
                    && std::mem::take(&mut watch.retry_stale)
                    && let Target::Group(group) = &watch.target
                {
                    group.set_id(None);
                    watch.left = false;
                    self.start_watch(serial);
                } else if let (FailureCode::NoSuchName, Target::Name(name)) =
                    (&failure.code, &watch.target)
                    && std::mem::take(&mut watch.retry_stale)
                {
                    name.set_id(None);
                    watch.left = false;
                    self.start_watch(serial);
                } else {
                    self.answer_watch(serial, Err(CallError::Failed(failure)));
                }
            }
            // A watch's answer may have crossed with giving it up.
            Some(Entry::Send(_) | Entry::Request(_)) | None => {}
        }
    }

    pub(super) fn joined(&mut self, key: usize, group: &Arc<GroupTarget>, id: GroupId) {
        let endpoint = &mut self.endpoints[key];
        endpoint.joining -= 1;
        let known = KnownGroup { name: group.name().clone(), left: None };
        if endpoint.groups.insert(id, known).is_some_and(|before| before.left.is_some()) {
            endpoint.left_groups -= 1;
        }
        self.resolved(group, id);
        self.wake_receivers(key);
    }

    pub(super) fn left(&mut self, key: usize, group: GroupId, sequence: Sequence) {
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return;
        };
        endpoint.kept.end_membership(group);
        let Some(known) = endpoint.groups.get_mut(&group) else {
            return;
        };
        if known.left.replace(sequence).is_none() {
            endpoint.left_groups += 1;
        }
        if endpoint.left_groups > LEFT_GROUPS_KEPT
            && let Some((&oldest, _)) = endpoint
                .groups
                .iter()
                .filter(|(_, known)| known.left.is_some())
                .min_by_key(|(_, known)| known.left)
        {
            endpoint.groups.remove(&oldest);
            endpoint.left_groups -= 1;
        }
    }

    /// Leaves a group that somebody joined and then lost interest in.
    pub(super) fn leave_group(&mut self, key: usize, group_id: GroupId) {
        if let Ok(serial) = self.call(key, Purpose::Leave(group_id), Request::Leave { group_id }) {
            self.abandon(serial);
        }
    }

    pub(super) fn closed(&mut self, key: usize) {
        self.endpoints.remove(key);
        // What was abandoned before the endpoint was closed gets no answer any more. An answer to
        // a call that still comes changes nothing here, for the key may be another's by then.
        for serial in self.pending.serials() {
            let belongs = match self.pending.get_mut(serial) {
                Some(Entry::Send(send)) => send.new.endpoint == key,
                Some(Entry::Watch(watch)) => watch.endpoint == key,
                Some(Entry::Call(call)) => {
                    if call.endpoint == key {
                        call.purpose = Purpose::Plain;
                    }
                    false
                }
                Some(entry @ Entry::Request(_)) => Self::is_request_of(entry, key),
                None => false,
            };
            if belongs
                && let Some(Entry::Send(send)) = self.pending.remove(serial)
                && matches!(send.stage, Stage::Queued { .. })
            {
                self.queued_sends -= 1;
            }
        }
    }

    /// Nobody wants to be a member any more: leaves as soon as the join is answered.
    pub(crate) fn abandon_join(&mut self, serial: Serial) {
        let (key, group) = match self.pending.get(serial) {
            Some(Entry::Call(call)) => {
                let group = match &call.purpose {
                    Purpose::Join(group) => Some(group.name().clone()),
                    _ => None,
                };
                (call.endpoint, group)
            }
            _ => return,
        };
        match self.take_response(serial) {
            Some(Ok(Response::Joined { group_id, .. } | Response::Admitted { group_id, .. })) => {
                self.leave_group(key, group_id);
            }
            Some(_) => {}
            None => {
                self.abandon(serial);
                // The owner of a gated group may take its time, or never decide.
                if let Some(group) = group {
                    self.withdraw(key, group);
                }
            }
        }
        self.flush(Urgency::Soon);
    }

    /// Nobody waits for the outcome of a request to be admitted that no join has asked for.
    pub(crate) fn abandon_candidacy(&mut self, key: usize, group: GroupName) {
        if self.endpoints.get(key).is_some_and(|endpoint| !endpoint.closing) {
            self.withdraw(key, group);
            self.flush(Urgency::Soon);
        }
    }
}

/// Groups left whose names are kept for messages that may still come.
const LEFT_GROUPS_KEPT: usize = 1024;
