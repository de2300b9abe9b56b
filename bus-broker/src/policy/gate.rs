//! What one connection may do: its subject, and the decisions about it that were made already.
//!
//! Invariant: a decision is kept only for the generation of rules under which it was made, so after
//! a reload each is made anew. Ids of groups and names are never used again, so a kept decision is
//! never about another group than the one that was asked for.
//!
//! To whom nothing is denied pays a load and a comparison for each message; others a look-up by the
//! destination's id.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bus_core::{
    Destination, GroupId, GroupName, NameId,
    wire::{Failure, FailureCode},
};

use super::{Action, Decision, Policy, Subject};

/// The rules that are in force, shared by all threads.
#[derive(Debug)]
pub(crate) struct RulesInForce {
    rules: Mutex<Arc<Policy>>,
    generation: AtomicU64,
}

/// One connection's.
#[derive(Debug)]
pub(crate) struct Gate {
    subject: Arc<Subject>,
    rules: Arc<Policy>,
    generation: u64,
    /// Nothing is denied.
    open: bool,
    /// Made for the first decision that is worth keeping.
    #[expect(clippy::box_collection, reason = "most connections have none, and it is six words")]
    sends: Option<Box<HashMap<Route, bool>>>,
}

/// A destination about which something was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Route {
    Group(GroupId),
    Name(NameId),
}

impl RulesInForce {
    pub(crate) fn new(rules: Policy) -> Self {
        Self { rules: Mutex::new(Arc::new(rules)), generation: AtomicU64::new(1) }
    }

    /// Puts others in their place. From when this returns, every decision is by the new ones.
    pub(crate) fn replace(&self, rules: Policy) {
        let mut current = self.lock();
        *current = Arc::new(rules);
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn get(&self) -> Arc<Policy> {
        Arc::clone(&self.lock())
    }

    fn with_generation(&self) -> (Arc<Policy>, u64) {
        let rules = self.lock();
        (Arc::clone(&rules), self.generation.load(Ordering::Acquire))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Policy>> {
        // Nothing under it panics, and what it holds is whole at any time.
        self.rules.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Gate {
    pub(crate) fn new(subject: Arc<Subject>, in_force: &RulesInForce) -> Self {
        let (rules, generation) = in_force.with_generation();
        let open = rules.allows_everything(&subject);
        Self { subject, rules, generation, open, sends: None }
    }

    /// Whether it may; the failure names the rule.
    pub(crate) fn check(
        &mut self,
        in_force: &RulesInForce,
        action: Action,
        on: Option<&GroupName>,
    ) -> Result<(), Box<Failure>> {
        self.refresh(in_force);
        if self.open {
            return Ok(());
        }
        let decision = self.rules.decide(&self.subject, action, on);
        if decision.allowed { Ok(()) } else { Err(self.refusal(action, on, &decision)) }
    }

    /// Whether it may do one of these.
    pub(crate) fn check_any(
        &mut self,
        in_force: &RulesInForce,
        actions: &[Action],
        on: &GroupName,
    ) -> Result<(), Box<Failure>> {
        let mut result = Ok(());
        for action in actions {
            result = self.check(in_force, *action, Some(on));
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Whether it may do one of these, by the rules it was last checked by: a listing that is under
    /// way goes on as it began.
    pub(crate) fn sees(&self, actions: &[Action], on: &GroupName) -> bool {
        let may = |action: &Action| self.rules.decide(&self.subject, *action, Some(on)).allowed;
        self.open || actions.iter().any(may)
    }

    /// Whether it may send there.
    pub(crate) fn check_send(
        &mut self,
        in_force: &RulesInForce,
        bus: &bus_core::Bus,
        destination: Destination,
    ) -> Result<(), Box<Failure>> {
        self.refresh(in_force);
        if self.open {
            return Ok(());
        }
        let (action, route) = match destination {
            Destination::Group(id) => (Action::Send, Route::Group(id)),
            Destination::Name(id) => (Action::Call, Route::Name(id)),
            // Only who was asked can answer, and it is owed to who asked.
            Destination::Caller(_) => return Ok(()),
            Destination::Endpoint(id) => {
                let decision = self.rules.decide(&self.subject, Action::Direct, None);
                if decision.allowed || bus.is_peer(id) {
                    return Ok(());
                }
                return Err(self.refusal(Action::Direct, None, &decision));
            }
        };
        if self.sends.as_ref().and_then(|sends| sends.get(&route)) == Some(&true) {
            return Ok(());
        }
        let text = match route {
            Route::Group(id) => bus.group_name(id),
            Route::Name(id) => bus.name_text(id),
        };
        // There is no such destination, and the bus has better words for that.
        let Some(text) = text else { return Ok(()) };
        let decision = self.rules.decide(&self.subject, action, Some(&text));
        let sends = self.sends.get_or_insert_default();
        if sends.len() >= MOST_KEPT {
            sends.clear();
        }
        sends.insert(route, decision.allowed);
        if decision.allowed { Ok(()) } else { Err(self.refusal(action, Some(&text), &decision)) }
    }

    /// Whether it is the bus's own user, or root.
    pub(crate) fn is_trusted(&self) -> bool {
        self.rules.is_trusted(&self.subject)
    }

    fn refresh(&mut self, in_force: &RulesInForce) {
        if self.generation == in_force.generation.load(Ordering::Acquire) {
            return;
        }
        (self.rules, self.generation) = in_force.with_generation();
        self.open = self.rules.allows_everything(&self.subject);
        self.sends = None;
    }

    fn refusal(&self, action: Action, on: Option<&GroupName>, decision: &Decision) -> Box<Failure> {
        let who = match &self.subject.socket {
            Some(socket) => format!("{socket} (user {})", self.subject.uid),
            None => format!("user {}", self.subject.uid),
        };
        let what = match (action, on) {
            (Action::Connect, _) => "connect to this bus".to_owned(),
            (Action::Own, Some(name)) => format!("own name {name}"),
            (Action::Call, Some(name)) => format!("call name {name}"),
            (Action::Send, Some(group)) => format!("send to group {group}"),
            (Action::Direct, _) => "send to endpoints directly".to_owned(),
            (Action::Monitor, None) => "monitor the bus".to_owned(),
            (action, Some(name)) => format!("{action} {name}"),
            (action, None) => format!("{action} everything"),
        };
        let text = format!("{who} may not {what}: {decision}");
        Box::new(Failure::new(FailureCode::PermissionDenied, text))
    }
}

/// Decisions kept for a connection; more make it forget all of them.
const MOST_KEPT: usize = 1_024;
