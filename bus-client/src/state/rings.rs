//! Going over to rings in shared memory, and back: what is said about it.
//!
//! They are asked for once some messages have gone either way, and not before: a connection that
//! says nothing has none. Where the broker has none to give, or this process cannot map them, the
//! connection keeps to its socket and asks again much later.

use bus_core::wire::{BrokerRings, ClientFrame, ClientRings};
use bus_memory::ForkMark;

use super::State;
use crate::inflow::Attached;
use crate::rings::{Rings, Turn};

/// Whether there are rings, or are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingWish {
    /// None are wanted, or the broker knows none.
    None,
    /// They are asked for after so many messages.
    After { messages: u32, refusals: u32 },
    /// The broker was asked.
    Asked { refusals: u32 },
    /// There are some.
    Have,
}

impl State {
    /// Asks for rings at the next message; or after as many as are
    /// [worth it](Self::wish_rings_later).
    pub(crate) fn wish_rings(&mut self) {
        self.rings = RingWish::After { messages: self.rings_after, refusals: 0 };
    }

    /// Asks for rings only once a connection has said enough for them to pay.
    pub(crate) fn wish_rings_later(&mut self) {
        self.rings_after = AFTER_SOME;
        if self.rings != RingWish::None {
            self.wish_rings();
        }
    }

    /// A message has come or is about to go.
    pub(super) fn note_traffic(&mut self, count: u32) {
        if let RingWish::After { messages, refusals } = &mut self.rings {
            *messages = messages.saturating_sub(count);
            if *messages == 0 {
                self.rings = RingWish::Asked { refusals: *refusals };
                self.outbox.put(&ClientFrame::Rings(ClientRings::Wanted));
            }
        }
    }

    pub(super) fn rings_frame(
        &mut self,
        frame: BrokerRings,
        attached: Option<Box<Attached>>,
    ) -> Result<(), String> {
        match (frame, self.rings) {
            (
                BrokerRings::Offered { submission_bytes, delivery_bytes },
                RingWish::Asked { refusals },
            ) => {
                let files = attached.map(|attached| attached.descriptors).unwrap_or_default();
                let rings = Rings::map(files, submission_bytes, delivery_bytes);
                self.fork_mark = ForkMark::new()
                    .ok()
                    .filter(|_| rings.is_some_and(|rings| self.transport.set_rings(rings)));
                if self.fork_mark.is_some() {
                    self.rings = RingWish::Have;
                    self.outbox.put(&ClientFrame::Rings(ClientRings::Taken));
                    self.outbox.put_turn(Turn::ToRings);
                } else {
                    self.outbox.put(&ClientFrame::Rings(ClientRings::Declined));
                    self.refused_rings(refusals);
                }
            }
            (BrokerRings::Refused, RingWish::Asked { refusals }) => self.refused_rings(refusals),
            (BrokerRings::Begin, RingWish::Have) => {
                let early = self.inflow.take_rest();
                if !self.transport.turn_in(early) {
                    return Err("RINGS_BEGIN without rings".to_owned());
                }
                // Another thread that sleeps has not told the broker so.
                self.waits.wake_leader(&self.transport);
            }
            (BrokerRings::End, RingWish::Have) => {
                if !self.inflow.take_rest().is_empty() || !self.transport.turn_in_back() {
                    return Err("something comes behind RINGS_END".to_owned());
                }
                self.outbox.put(&ClientFrame::Rings(ClientRings::Left));
                self.outbox.put_turn(Turn::ToSocket);
                self.fork_mark = None;
                self.rings = RingWish::After { messages: AFTER_SOME, refusals: 0 };
            }
            (frame, _) => return Err(format!("{frame:?} about rings, and that is not next")),
        }
        Ok(())
    }

    fn refused_rings(&mut self, refusals: u32) {
        let messages = AFTER_REFUSAL << refusals.min(MOST_DOUBLINGS);
        self.rings = RingWish::After { messages, refusals: refusals + 1 };
    }
}

/// Messages before rings are asked for, or asked for again that were taken back because nothing went.
const AFTER_SOME: u32 = 16;
/// Messages before rings are asked for again that were refused; doubled each time.
const AFTER_REFUSAL: u32 = 1024;
const MOST_DOUBLINGS: u32 = 10;
