//! One look at the broker's counters.
//!
//! Invariant: what is fetched is bounded, whatever the bus holds; `more` says that there was more.

use bus_client::inside::{EndpointTraffic, GroupTraffic, Look, MAX_LOOK, Seen, WaitingSend};
use bus_client::{Bus, Stats};

use crate::exit::Failure;

/// Counters at one time.
#[derive(Debug, Default)]
pub(super) struct Sample {
    pub(super) stats: Stats,
    pub(super) groups: Vec<GroupTraffic>,
    pub(super) endpoints: Vec<EndpointTraffic>,
    pub(super) waits: Vec<WaitingSend>,
    /// Not everything was fetched.
    pub(super) more: bool,
}

impl Sample {
    /// Asks the broker. The parts of a list are a moment apart; rates come out of long intervals.
    pub(super) fn take(bus: &Bus) -> Result<Self, Failure> {
        let mut sample = Self { stats: bus.stats()?, ..Self::default() };
        for _ in 0..MOST_PARTS {
            let after = sample.groups.last().map(|group| group.group.clone());
            let Seen::Groups { groups, more } = bus.look(Look::Groups { after, max: MAX_LOOK })?
            else {
                break;
            };
            let none = groups.is_empty();
            sample.groups.extend(groups);
            if !more || none {
                break;
            }
            sample.more |= sample.groups.len() >= MOST_PARTS * MAX_LOOK as usize;
        }
        for _ in 0..MOST_PARTS {
            let after = sample.endpoints.last().map(|endpoint| endpoint.endpoint);
            let look = Look::Endpoints { after, max: MAX_LOOK };
            let Seen::Endpoints { endpoints, more } = bus.look(look)? else { break };
            let none = endpoints.is_empty();
            sample.endpoints.extend(endpoints);
            if !more || none {
                break;
            }
            sample.more |= sample.endpoints.len() >= MOST_PARTS * MAX_LOOK as usize;
        }
        let look = Look::Waits { after: None, max: MAX_LOOK };
        if let Seen::Waits { waits, more } = bus.look(look)? {
            sample.waits = waits;
            sample.more |= more;
        }
        Ok(sample)
    }
}

/// Parts of a list that are fetched at most.
const MOST_PARTS: usize = 40;
