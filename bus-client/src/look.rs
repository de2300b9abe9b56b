//! Seeing inside the broker: counters, sends that wait and for whom, what became of a message.

use bus_core::Sequence;
use bus_core::wire::inside::{Look, MAX_LOOK, Seen, Story};
use bus_core::wire::{Request, Response};

use crate::bus::Bus;
use crate::error::QueryError;

impl Bus {
    /// Looks inside the broker, and gives one part of a list: at most 256 entries. Blocks for one
    /// round trip.
    ///
    /// ```no_run
    /// use bus_client::{Bus, inside::{Look, Seen}};
    ///
    /// let bus = Bus::connect()?;
    /// let Seen::Waits { waits, .. } = bus.look(Look::Waits { after: None, max: 10 })? else {
    ///     unreachable!("it is what was asked for");
    /// };
    /// for wait in waits {
    ///     println!("{:?} waits for {:?}", wait.of, wait.waits_for);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`QueryError`]; only the user that the broker runs as, and root, may look.
    pub fn look(&self, look: Look) -> Result<Seen, QueryError> {
        self.ask(Request::Look(look), |response| match response {
            Response::Seen(seen) => Some(*seen),
            _ => None,
        })
    }

    /// What became of a message at each of its recipients, as the broker's flight recorder knows
    /// it. Blocks for a round trip for each 256 recipients.
    ///
    /// # Errors
    ///
    /// As [`look`](Self::look).
    pub fn why(&self, sequence: Sequence) -> Result<Story, QueryError> {
        let part = |after| {
            let look = Look::Why { sequence, after, max: MAX_LOOK };
            self.ask(Request::Look(look), |response| match response {
                Response::Seen(seen) => match *seen {
                    Seen::Why(story) => Some(*story),
                    _ => None,
                },
                _ => None,
            })
        };
        let mut whole = part(None)?;
        while whole.more {
            let next = part(whole.fates.last().map(|fate| fate.endpoint))?;
            whole.more = next.more && !next.fates.is_empty();
            whole.incomplete |= next.incomplete;
            whole.fates.extend(next.fates);
        }
        Ok(whole)
    }
}
