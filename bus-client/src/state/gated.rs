//! Gated groups: what owners and members are told, and what admissions change here.

use std::sync::Arc;

use bus_core::wire::{Handle, Notice, Request};
use bus_core::{GroupId, GroupName};

use super::State;
use super::call::Purpose;
use super::endpoint::{EndpointState, KnownGroup, named};
use super::target::GroupTarget;
use crate::gated::{Candidate, Expelled, FlagsChanged, PeerGap, PeerNotice, Terms};
use crate::inbox::Item;
use crate::message::Event;

impl EndpointState {
    /// What the application gets for a notice about gated groups.
    pub(super) fn gated_event(&mut self, notice: Notice) -> Event {
        match notice {
            Notice::Candidate { group_id, group, sequence, candidate, uid, pid, peer, flags } => {
                let asked = (group_id, group, sequence);
                let candidate = Candidate::new(asked, candidate, (uid, pid), peer, flags);
                Event::Candidate(Box::new(candidate))
            }
            Notice::Expelled { group_id, sequence, text } => {
                let group = self.name_of(group_id);
                self.forget_left(bus_core::Sequence::from_raw(sequence.get().saturating_add(1)));
                Event::Expelled(Expelled { group, group_id, sequence, reason: text })
            }
            Notice::PeerGap { group_id, peer, gap } => {
                let group = self.name_of(group_id);
                Event::PeerGap(PeerGap { peer, gap: named(gap, group_id, group) })
            }
            Notice::PeerStalled { group_id, peer, sequence } => {
                let group = self.name_of(group_id);
                Event::PeerStalled(PeerNotice { group, peer, sequence })
            }
            Notice::FlagsChanged { group_id, flags, sequence } => {
                let group = self.name_of(group_id);
                let terms = Terms { flags, ..Terms::new() };
                Event::FlagsChanged(FlagsChanged { group, group_id, terms, sequence })
            }
            Notice::PeerClosed { peer, sequence } => {
                Event::PeerClosed(PeerNotice { group: None, peer, sequence })
            }
            other => unreachable!("{other:?} is not about gated groups"),
        }
    }
}

impl State {
    /// Takes in a notice about gated groups.
    pub(super) fn gated_notice(&mut self, handle: Handle, notice: Notice) -> Result<(), String> {
        let ended = match &notice {
            Notice::Expelled { group_id, sequence, .. } => Some((*group_id, *sequence)),
            _ => None,
        };
        self.deliver(handle, Item::Gated(Box::new(notice)))?;
        if let Some((group_id, sequence)) = ended {
            self.left(handle.get() as usize, group_id, sequence);
        }
        Ok(())
    }

    /// An endpoint owns a gated group: messages through peer endpoints come from it.
    pub(super) fn owns(&mut self, key: usize, group: &Arc<GroupTarget>, id: GroupId) {
        self.resolved(group, id);
        if let Some(endpoint) = self.endpoints.get_mut(key) {
            let known = KnownGroup { name: group.name().clone(), left: None };
            endpoint.groups.insert(id, known);
        }
    }

    /// Nobody waits for an admission any more: the request is taken back, if there is one.
    pub(super) fn withdraw(&mut self, key: usize, group: GroupName) {
        if let Ok(serial) = self.call(key, Purpose::Plain, Request::Withdraw { group }) {
            self.abandon(serial);
        }
    }
}
