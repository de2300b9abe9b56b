//! A send to a name: to its owner, or to one of the workers that share it.
//!
//! Invariant: who gets a message is chosen at its commit point, with the locks of all owners held
//! and their generation compared. So it goes to one endpoint that owns the name at its place in
//! the order, never to nobody and never to two, and both the one that loses the name and the one
//! that gets it agree with that place (G4).
//!
//! Of workers that have room which no older waiting send is owed, the one with the fewest messages
//! in its queue, or requests that it has not answered, is given the message; among equals they take turns. If none has room the send waits
//! at all of them, see `wait.rs`.

use std::sync::Arc;

use crate::id::EndpointId;
use crate::lock_set::{Held, IntakePlace, LockBits};
use crate::name_registry::Name;
use crate::ownership::{Claim, Ownership};
use crate::send::{Attempt, FullRecipients, SendError, Standing};
use crate::sync::{Mutant, mutated};

/// Where a send to a name goes.
#[derive(Clone, Debug)]
pub(crate) struct NameRoute {
    pub(crate) name: Arc<Name>,
    pub(crate) ownership: Arc<Ownership>,
    /// Which of the owners gets the message, once it has been chosen.
    chosen: usize,
}

impl NameRoute {
    pub(crate) fn new(name: Arc<Name>) -> Self {
        let ownership = name.ownership();
        Self { name, ownership, chosen: 0 }
    }

    pub(crate) fn locks(&self) -> LockBits {
        let locks = self.ownership.locks();
        if locks.is_empty() { LockBits::one(self.name.home) } else { locks }
    }

    /// Whether the owners are still the name's current ones; asked under the route's locks.
    pub(crate) fn is_current(&self) -> bool {
        self.name.generation() == self.ownership.generation || mutated(Mutant::SkipOwnershipCheck)
    }

    /// Who gets the message.
    pub(crate) fn recipient(&self) -> Option<IntakePlace> {
        self.ownership.owners().get(self.chosen).map(|owner| owner.core.place)
    }

    /// The owners that have no room, if none has.
    pub(crate) fn find_full<'a>(&'a self, held: &mut Held<'_>) -> Vec<(&'a Claim, u64)> {
        let owners = self.ownership.owners();
        let full = |owner: &'a Claim| {
            let intake = held.intake(owner.core.place)?;
            (!intake.has_room()).then(|| (owner, intake.depth().0))
        };
        let full: Vec<_> = owners.iter().filter_map(full).collect();
        if full.len() == owners.len() { full } else { Vec::new() }
    }

    /// Chooses who gets the message. None if that is done; `commits` says that it will be sent.
    pub(crate) fn choose(
        &mut self,
        held: &mut Held<'_>,
        sender: EndpointId,
        standing: Standing<'_>,
        commits: bool,
        full: &mut FullRecipients,
    ) -> Result<Option<Attempt>, SendError> {
        let owners = self.ownership.owners();
        if owners.is_empty() {
            return Err(SendError::NoSuchName(self.name.id));
        }
        *full = FullRecipients::none();
        let mut free: Option<(u64, usize)> = None;
        let mut owed = None;
        let turn = self.name.turn() % owners.len();
        for at in (turn..owners.len()).chain(0..turn) {
            let place = owners[at].core.place;
            let Some(intake) = held.intake(place).filter(|intake| !intake.is_receive_shut()) else {
                // Who closes gives its names up under the same locks, so nobody comes here.
                continue;
            };
            // What lies in its queue, or what it has taken and owes a reply to: requests are in both
            // until their places are given back.
            let load = intake.depth().0.max(intake.core.owed());
            if !intake.has_room() {
                full.add(place.id);
            } else if standing.owes(&intake.core) {
                owed = owed.or(Some(at));
            } else if free.is_none_or(|(least, _)| load < least) {
                free = Some((load, at));
            }
        }
        if let Some((_, at)) = free {
            self.chosen = at;
            if commits && owners.len() > 1 {
                self.name.set_turn(at + 1);
            }
            return Ok(None);
        }
        let at = Arc::clone(&owners[owed.unwrap_or(turn)].core);
        let only_owed = full.count() == 0 || (owed.is_some() && full.is_only(sender));
        Ok(Some(if only_owed { Attempt::Owed { at } } else { Attempt::Full { at } }))
    }
}
