//! A repeatable request to a name, given again when the endpoint that was asked died (SPEC 3).
//!
//! Invariant: giving a request again changes its entry under its caller's lock, at the commit of
//! the new message, and only while the entry is there. So whatever happens meanwhile, the request
//! has one outcome: a reply of who died cannot come any more, and the deadline, the caller that
//! cancels, and this find the entry or find it gone. If it cannot be given again, its outcome is
//! [`RequestEnd::Gone`].
//!
//! A message that was taken off its queue is kept for this only if it is at most
//! `limits.reply_bytes` long and has no descriptors: so what is kept is bounded by the number of
//! unanswered requests (G8).

use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};

use crate::bus::BusInner;
use crate::id::Sequence;
use crate::lock_set::{IntakePlace, LockBits};
use crate::message::{Destination, Message};
use crate::request::RequestEnd;
use crate::send::{Attempt, Effects, Outgoing, Standing};
use crate::sync::{Mutant, Mutex, mutated};
use crate::wait::{Entered, WaitKey};

/// A request that waits for room at the next worker, on behalf of nobody's lane.
struct Again {
    bus: Weak<BusInner>,
    caller: IntakePlace,
    id: Sequence,
    /// Held while the wait begins, so that a wake-up finds the key.
    key: Mutex<Option<WaitKey>>,
}

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        let Some(bus) = self.bus.upgrade() else {
            return;
        };
        let key = self.key.lock().take();
        let outcome = key.and_then(|key| bus.waiting.lock().take_outcome(key));
        if let Some(Err(_)) = outcome {
            bus.end_request(self.caller, self.id, RequestEnd::Gone);
        }
    }
}

impl BusInner {
    /// Whether a message that was taken is kept, to be given to another endpoint.
    pub(crate) fn is_kept(&self, message: &Message) -> bool {
        message.is_repeatable()
            && matches!(message.destination(), Destination::Name(_))
            && message.descriptors().is_empty()
            && message.bytes() <= u64::from(self.limits.reply_bytes)
    }

    /// The endpoint that was asked is gone: gives the request to another one that owns its name, or
    /// ends it.
    pub(crate) fn give_again(
        &self,
        caller: IntakePlace,
        id: Sequence,
        message: Option<&Arc<Message>>,
    ) {
        let message = message.filter(|message| self.is_kept(message));
        if message.is_none_or(|message| !self.try_again(caller, id, message)) {
            self.end_request(caller, id, RequestEnd::Gone);
        }
    }

    /// False if it cannot be given again.
    fn try_again(&self, caller: IntakePlace, id: Sequence, message: &Message) -> bool {
        let sender = {
            let mut held = self.locks.acquire(LockBits::one(caller.lock));
            let found = held.intake(caller);
            found.and_then(|intake| {
                Some((intake.requests.find(id)?.until, Arc::clone(&intake.core)))
            })
        };
        let Some((until, sender)) = sender else {
            // It has its outcome already.
            return true;
        };
        let Ok(route) = self.route(message.destination(), sender.id()) else {
            return false;
        };
        let mut outgoing = Outgoing::new(sender, route, Arc::new(message.again(caller, id)));
        outgoing.until = Some(until);
        let mut effects = Effects::default();
        let attempt = self.attempt(&mut outgoing, Standing::Newcomer, &mut effects);
        let given = match attempt {
            Ok(Attempt::Committed(_)) => true,
            Err(_) => false,
            Ok(_) => {
                let key = Mutex::new(None);
                let again = Arc::new(Again { bus: self.this.clone(), caller, id, key });
                let place = again.key.lock();
                let place = (!mutated(Mutant::AgainWithoutKey)).then_some(place);
                let waker = Some(Waker::from(Arc::clone(&again)));
                let entered = self.waiting.lock().enter(self, outgoing, waker, &mut effects);
                match entered {
                    Ok(Entered::Committed(_)) => true,
                    Ok(Entered::Waiting(key)) => {
                        *place.unwrap_or_else(|| again.key.lock()) = Some(key);
                        true
                    }
                    Err(_) => false,
                }
            }
        };
        effects.run();
        given
    }
}
