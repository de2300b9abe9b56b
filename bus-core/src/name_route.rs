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

use crate::intake::EndpointCore;
use crate::lock_set::{Held, IntakePlace, LockBits};
use crate::name_registry::Name;
use crate::ownership::Ownership;
use crate::send::{Attempt, FullRecipient, FullRecipients, SendError, Standing};
use crate::share::ShareSlot;
use crate::sync::{Mutant, mutated};
use crate::wait::Place;

/// Where a send to a name goes.
#[derive(Clone, Debug)]
pub(crate) struct NameRoute {
    pub(crate) name: Arc<Name>,
    pub(crate) ownership: Arc<Ownership>,
    /// Which of the owners gets the message, once it has been chosen.
    chosen: usize,
    /// Where it would wait at each of the owners, as the last choice has found it: for its user's
    /// share of the queue, or for the queue.
    shares: Box<[Option<ShareSlot>]>,
}

impl NameRoute {
    pub(crate) fn new(name: Arc<Name>) -> Self {
        let ownership = name.ownership();
        let shares = vec![None; ownership.owners().len()].into();
        Self { name, ownership, chosen: 0, shares }
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

    /// Where it would wait at each of the owners.
    pub(crate) fn shares(&self) -> &[Option<ShareSlot>] {
        &self.shares
    }

    /// The owners that have no room for messages of this user, if none has.
    pub(crate) fn find_full(&self, held: &mut Held<'_>, user: u32) -> Vec<FullRecipient> {
        let owners = self.ownership.owners();
        let full = owners.iter().filter_map(|owner| {
            held.intake(owner.core.place).and_then(|intake| FullRecipient::of(intake, user))
        });
        let full: Vec<_> = full.collect();
        if full.len() == owners.len() { full } else { Vec::new() }
    }

    /// Chooses who gets the message. None if that is done; `commits` says that it will be sent.
    pub(crate) fn choose(
        &mut self,
        held: &mut Held<'_>,
        sender: &EndpointCore,
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
            if intake.lacks_shares(sender.user) {
                return Ok(Some(Attempt::NoShares));
            }
            let share = intake.share_of(sender.user);
            let lacks = |share| {
                let room = intake.has_room_of(share);
                (!room || standing.owes(&intake.core, share)).then_some(room)
            };
            let lacking = lacks(None).or_else(|| {
                let lacking = share.and_then(|_| lacks(share));
                self.shares[at] = share.filter(|_| lacking.is_some());
                lacking
            });
            match lacking {
                Some(false) => full.add(place.id),
                Some(true) => owed = owed.or(Some(at)),
                None if free.is_none_or(|(least, _)| load < least) => free = Some((load, at)),
                None => {}
            }
        }
        if let Some((_, at)) = free {
            self.chosen = at;
            if commits && owners.len() > 1 {
                self.name.set_turn(at + 1);
            }
            return Ok(None);
        }
        let at = owed.unwrap_or(turn);
        let at = Place { core: Arc::clone(&owners[at].core), share: self.shares[at] };
        let only_owed = full.count() == 0 || (owed.is_some() && full.is_only(sender.id()));
        Ok(Some(if only_owed { Attempt::Owed { at } } else { Attempt::Full { at } }))
    }
}
