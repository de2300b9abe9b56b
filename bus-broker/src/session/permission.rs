//! Which of the policy's actions a CALL is, and what becomes of a connection when the rules change.
//!
//! Invariant: every operation of the protocol is named here, with what it takes; one that is not is
//! the owner's alone until somebody has said what it takes. What only touches things that the
//! endpoint has already, and got by an operation that was allowed, needs nothing.

use bus_core::{
    GroupName, Holding,
    wire::{Failure, FailureCode, Goodbye, GoodbyeCode, Handle, Request, inside::Look},
};

use super::Session;
use crate::{broker::Shared, connection::End, policy::Action};

type Checked = Result<(), Box<Failure>>;

impl Session {
    /// Whether the connection may ask for that; the failure names the rule. A join that may make
    /// its group only if somebody is allowed to loses that wish.
    pub(super) fn permit(&mut self, request: &mut Request, shared: &Shared) -> Checked {
        let rules = &shared.policy;
        match request {
            Request::Ping
            | Request::Status
            | Request::Stats
            | Request::Accounts
            | Request::OpenEndpoint
            | Request::CloseEndpoint
            | Request::ShutdownReceive
            | Request::Withdraw { .. }
            | Request::Admit { .. }
            | Request::Refuse { .. }
            | Request::Expel { .. }
            | Request::SetTerms { .. }
            | Request::ClosePeer { .. }
            | Request::SetFilter { .. }
            | Request::Leave { .. }
            | Request::Unmonitor
            | Request::UnwatchGroup { .. }
            | Request::ReleaseName { .. }
            | Request::UnwatchName { .. }
            | Request::CancelRequest { .. }
            | Request::DeclineRequest { .. }
            // Memory to send from; what is sent is looked at as always.
            | Request::CreatePool { .. }
            | Request::SealPool { .. }
            | Request::DropPool { .. }
            // These show only what may be seen.
            | Request::Groups
            | Request::Names => Ok(()),
            Request::Create { group, .. } | Request::CreateGated { group, .. } => {
                self.gate.check(rules, Action::Create, Some(group))
            }
            Request::Connect { group, .. } => self.gate.check(rules, Action::Join, Some(group)),
            Request::Join { group, create, .. } => {
                self.gate.check(rules, Action::Join, Some(group))?;
                self.permit_making(group, create, shared)
            }
            Request::WatchGroup { group, create, .. } => {
                self.gate.check(rules, Action::Watch, Some(group))?;
                self.permit_making(group, create, shared)
            }
            Request::Monitor { group } => {
                self.gate.check(rules, Action::Monitor, group.as_ref())
            }
            Request::FindGroup { group } => self.gate.check_any(rules, &SEES_GROUP, group),
            Request::Members { group_id, .. } => match shared.bus.group_name(*group_id) {
                Some(group) => self.gate.check(rules, Action::Watch, Some(&group)),
                None => Ok(()),
            },
            Request::OwnName { name, .. } => self.gate.check(rules, Action::Own, Some(name)),
            Request::FindName { name } | Request::DescribeName { name } => {
                self.gate.check_any(rules, &SEES_NAME, name)
            }
            Request::WatchName { name } => self.gate.check(rules, Action::Watch, Some(name)),
            Request::Reload => self.permit_owner("reload the policy"),
            // Who looks inside learns who talks to whom, as a monitor does: of one group, or of all.
            Request::Look(Look::Refusals { endpoint: None, group: Some(group), .. }) => {
                self.gate.check(rules, Action::Monitor, Some(group))
            }
            Request::Look(_) => self.gate.check(rules, Action::Monitor, None),
            _ => self.permit_owner("ask for this"),
        }
    }

    /// Only the user whose bus this is, and root, whatever the rules say.
    pub(super) fn permit_owner(&self, what: &str) -> Checked {
        if self.gate.is_trusted() {
            return Ok(());
        }
        let text = format!("only the user that the broker runs as may {what}");
        Err(Box::new(Failure::new(FailureCode::PermissionDenied, text)))
    }

    fn permit_making(&mut self, group: &GroupName, create: &mut bool, shared: &Shared) -> Checked {
        if !*create {
            return Ok(());
        }
        let checked = self.gate.check(&shared.policy, Action::Create, Some(group));
        // Should it end meanwhile, it is not made again.
        *create = checked.is_ok();
        if shared.bus.find_group(group).is_some() { Ok(()) } else { checked }
    }

    /// The rules have changed. A connection that has what it may no longer have ends, with the rule
    /// as the reason: so nothing forbidden goes on, and its program is told what happened in one
    /// place, not for each thing it held.
    pub(crate) fn review(&mut self, shared: &Shared) -> Result<(), End> {
        let denied = |failure: Box<Failure>| {
            let text = format!("the rules have changed: {}", failure.text);
            End::Denied(Goodbye::new(GoodbyeCode::PermissionDenied, text))
        };
        let rules = &shared.policy;
        self.gate.check(rules, Action::Connect, None).map_err(denied)?;
        let held: Vec<Holding> =
            self.ports.iter().flat_map(|port| port.endpoint().holdings()).collect();
        for holding in &held {
            let (action, on) = match holding {
                Holding::Member(group) => (Action::Join, group),
                Holding::Creator(group) => (Action::Create, group),
                Holding::Watcher(group) => (Action::Watch, group),
                Holding::Claim(name) => (Action::Own, name),
                Holding::OwnerWatcher(name) => (Action::Watch, name),
                _ => continue,
            };
            self.gate.check(rules, action, Some(on)).map_err(denied)?;
        }
        let monitors: Vec<Option<GroupName>> = self.monitors.values().cloned().collect();
        for group in monitors {
            self.gate.check(rules, Action::Monitor, group.as_ref()).map_err(denied)?;
        }
        Ok(())
    }

    /// Notes what an endpoint monitors: the bus keeps it, but does not tell.
    pub(super) fn note_monitor(&mut self, handle: Handle, monitors: Option<Option<GroupName>>) {
        match monitors {
            Some(group) => self.monitors.insert(handle, group),
            None => self.monitors.remove(&handle),
        };
    }
}

/// Whoever may do one of these with a group may know that it is there.
pub(super) const SEES_GROUP: [Action; 4] =
    [Action::Send, Action::Join, Action::Watch, Action::Create];
/// The same for a name.
pub(super) const SEES_NAME: [Action; 3] = [Action::Call, Action::Watch, Action::Own];

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not named falls to the owner alone, which is safe and may be wrong.
    #[test]
    fn every_operation_is_named() {
        let this = include_str!("permission.rs");
        for operation in Request::OPERATIONS {
            let words = operation.split('-').map(|word| {
                let (first, rest) = word.split_at(1);
                first.to_uppercase() + rest
            });
            let variant: String = words.collect();
            let is_named = |end: char| this.contains(&format!("Request::{variant}{end}"));
            assert!([' ', '\n', '('].into_iter().any(is_named), "{operation}");
        }
    }
}
