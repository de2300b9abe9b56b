//! Doors for the models in `loom-tests`. Not part of the library: no user's build has this module.
//!
//! Models go through the public interface wherever it reaches. It does not reach the ring on its
//! own, whose invariant must hold whatever the queue around it does, nor the list of mutants.

use std::sync::Arc;

use crate::id::EndpointId;
use crate::message::{Credentials, Destination, Message, Payload};
use crate::queue::{self, Consumer, Entry, Producer};
use crate::sync::Mutant;

/// The names of all mutants.
pub fn mutants() -> impl Iterator<Item = &'static str> {
    Mutant::ALL.iter().map(|(name, _)| *name)
}

/// The end of a ring that messages go into.
#[derive(Debug)]
pub struct RingIn(Producer);

/// The end of a ring that messages come out of.
#[derive(Debug)]
pub struct RingOut(Consumer);

/// A ring with at least `places` places.
#[must_use]
pub fn ring(places: usize) -> (RingIn, RingOut) {
    let (producer, consumer) = queue::ring(places);
    (RingIn(producer), RingOut(consumer))
}

impl RingIn {
    /// Appends a message. False if no slot is free.
    pub fn push(&mut self, payload: impl Into<Payload>) -> bool {
        let nobody = Credentials { uid: 0, pid: 0 };
        let to = Destination::Endpoint(EndpointId::from_raw(0));
        let message = Message::new(EndpointId::from_raw(0), nobody, to, payload.into().into());
        let entry = Entry::Message { message: Arc::new(message), missed: None };
        self.0.push(entry).is_ok()
    }
}

impl RingOut {
    /// Takes the oldest message's payload.
    pub fn pop(&mut self) -> Option<Payload> {
        match self.0.pop()? {
            Entry::Message { message, .. } => Some(message.payload().clone()),
            other => unreachable!("only messages were pushed, and not {other:?}"),
        }
    }
}
