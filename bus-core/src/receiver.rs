//! The reader of an endpoint's queue.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::batch::{Batch, Unrolling};
use crate::bus::Bus;
use crate::id::{EndpointId, GroupId, NameId, Sequence};
use crate::intake::{EndpointCore, Lost, ReaderState, Retelling};
use crate::membership::MemberFlags;
use crate::message::{Gap, Message};
use crate::monitor::Monitored;
use crate::name_change::{NameNotice, OwnerChange};
use crate::notice::{Candidate, Eviction, PeerChange};
use crate::queue::Entry;
use crate::request::{Ended, Outcome};
use crate::share::ShareSlot;
use crate::sync::{Mutant, Parker, mutated};
use crate::view::ViewChange;

/// What comes out of a queue.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Delivery {
    /// A message, in the order of the bus.
    Message {
        /// The message, shared with its other recipients.
        message: Arc<Message>,
        /// What this member missed of the message's group just before it (G7).
        missed: Option<Gap>,
    },
    /// Messages of one sender to one group that took their places together. Only
    /// [`Receiver::drain`] gives them so; who receives gets each as a [`Message`](Self::Message).
    Batch(Arc<Batch>),
    /// A message that came through a peer endpoint: a private one from a candidate or member of a
    /// gated group that this endpoint owns, or what a member with `SEND_TO_PEER` sent to the group.
    FromPeer {
        /// The peer endpoint.
        peer: EndpointId,
        /// The message.
        message: Arc<Message>,
        /// What was missed of the messages that this member sent to the group just before it.
        missed: Option<Gap>,
    },
    /// Somebody asks to be admitted to a gated group of this endpoint's. It takes a place in the
    /// queue, and no bytes.
    Candidate(Box<Candidate>),
    /// What this owner missed of a member's messages to the group, told once its queue was empty.
    PeerGap {
        /// The group.
        group: GroupId,
        /// The member's peer endpoint.
        peer: EndpointId,
        /// What was missed.
        gap: Gap,
    },
    /// Something happened to a peer endpoint of this owner's, told once its queue was empty.
    Peer {
        /// The group that it is about; for the end of a peer endpoint the one to which its
        /// candidate connected.
        group: GroupId,
        /// The peer endpoint.
        peer: EndpointId,
        /// What happened.
        change: PeerChange,
        /// Where in the order.
        sequence: Sequence,
    },
    /// A change in a group that this endpoint watches (G4). It takes a place in the queue, and no
    /// bytes.
    View {
        /// The change, shared with the other watchers.
        change: Arc<ViewChange>,
        /// Changes of this group that were missed just before it.
        missed: Option<Gap>,
    },
    /// Changes of a watched group that were missed, told once the queue was empty. Fetch the view
    /// that holds now.
    ViewsLost {
        /// The group.
        group: GroupId,
        /// What was missed.
        gap: Gap,
    },
    /// A message that was sent before this endpoint joined, and that the group retains. It takes no
    /// place in the queue. All of them come together, in their order, at the place of the join.
    Retained {
        /// The message, with its original sequence.
        message: Arc<Message>,
    },
    /// All that a group retained at the place of a join has been told: what follows of the group
    /// is later than `sequence`.
    Current {
        /// The group.
        group: GroupId,
        /// The place of the join.
        sequence: Sequence,
        /// How many retained messages there were.
        messages: u32,
    },
    /// A change of owners of a name that this endpoint watches (G4). It takes a place in the queue,
    /// and no bytes.
    Owner {
        /// The change, shared with the other watchers.
        change: Arc<OwnerChange>,
        /// Changes of this name's owners that were missed just before it.
        missed: Option<Gap>,
    },
    /// Changes of a watched name's owners that were missed, told once the queue was empty. Look
    /// the name up again.
    OwnersLost {
        /// The name.
        name: NameId,
        /// What was missed.
        gap: Gap,
    },
    /// What became of this endpoint's claim of a name: from here on it owns it, or does not. It
    /// takes no place of a message.
    Name(Box<NameNotice>),
    /// A copy of what happened on the bus, for a monitor. It takes a place in the queue, and of a
    /// message the bytes.
    Monitored {
        /// What happened.
        seen: Monitored,
        /// What this monitor missed just before it.
        missed: Option<Gap>,
    },
    /// What a monitor missed, told once its queue was empty.
    MonitorGap {
        /// What was missed.
        gap: Gap,
    },
    /// The owner of a gated group has changed this member's flags, or what its peer endpoint cost it
    /// (G8). Told once its queue was empty; of several changes the last.
    Flags {
        /// The group.
        group: GroupId,
        /// How it is a member now.
        flags: MemberFlags,
        /// From where in the order on.
        sequence: Sequence,
    },
    /// The endpoint was put out of a group: nothing of it comes after this (G8).
    Evicted(Box<Eviction>),
    /// A request of this endpoint gets no reply, and why. It takes neither a place nor bytes from
    /// messages.
    Outcome(Outcome),
    /// Nobody waits any more for the reply to a request that this endpoint has taken. Told once its
    /// queue was empty, and not at all to an endpoint that reads too little; a reply that is sent
    /// all the same is refused.
    RequestEnded(Ended),
    /// What this member missed of a group, told once its queue was empty (G7).
    Gap {
        /// The group.
        group: GroupId,
        /// What was missed.
        gap: Gap,
    },
}

/// Why there is nothing to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// Nothing yet: the queue is empty, or the deadline came first.
    #[error("there is nothing to receive yet")]
    Empty,
    /// Nothing ever again: the endpoint was closed or has called `shutdown_receive`, and everything
    /// that was queued has been taken.
    #[error("the endpoint receives nothing any more")]
    Ended,
}

/// Why credit was refused: it would have freed places that are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "credit for {messages} messages and {bytes} bytes, and only {held_messages} messages and \
     {held_bytes} bytes are out"
)]
#[non_exhaustive]
pub struct CreditError {
    /// Messages given back.
    pub messages: u64,
    /// Bytes given back.
    pub bytes: u64,
    /// Messages drained and not yet given back.
    pub held_messages: u64,
    /// Bytes drained and not yet given back.
    pub held_bytes: u64,
}

/// The one reader of an endpoint's queue; dropping it gives the place to the next.
///
/// It drains without any lock. Two ways of use, not to be mixed carelessly:
///
/// - [`receive`](Self::receive) and its relatives take a message and free its place at once, as an
///   application in this process does.
/// - [`drain`](Self::drain) takes a message and leaves its place taken until
///   [`release`](Self::release), as a transport does whose application is elsewhere.
pub struct Receiver {
    bus: Bus,
    core: Arc<EndpointCore>,
    state: ReaderState,
}

impl Receiver {
    pub(crate) fn take_seat(bus: Bus, core: Arc<EndpointCore>) -> Option<Self> {
        let state = {
            let mut seat = core.seat.lock();
            if std::mem::replace(&mut seat.occupied, true) && !mutated(Mutant::SeatTakenTwice) {
                return None;
            }
            seat.state.take()
        };
        Some(Self { bus, core, state: state.map_or_else(ReaderState::default, |state| *state) })
    }

    /// A message was taken off the queue. False if it is to be passed over: it asks, and nobody
    /// waits for the answer any more.
    #[inline]
    fn note_drained(&mut self, message: &Arc<Message>, user: Option<ShareSlot>) -> bool {
        let bytes = message.charged_bytes();
        self.state.drained_messages += 1;
        self.state.drained_bytes += bytes;
        self.core.take(message.sequence());
        if message.is_request() && !self.bus.inner.hand_over(&self.core, message) {
            self.state.passed_over += 1;
            self.core.free_share(user, bytes);
            if self.core.free(1, bytes) {
                self.bus.inner.serve(&self.core);
            }
            return false;
        }
        self.state.drained(message);
        self.state.charge_user(bytes, user);
        true
    }

    /// Takes the next delivery off the queue, and leaves its place taken, or its places. Never blocks.
    ///
    /// This alone gives whole batches.
    pub fn drain(&mut self) -> Option<Delivery> {
        if let Some(message) = self.unroll() {
            return Some(Delivery::Message { message, missed: None });
        }
        if let Some(retelling) = &mut self.state.retained {
            if let Some(message) = retelling.next() {
                return Some(Delivery::Retained { message });
            }
            return self.end_retelling();
        }
        if self.state.consumer.is_none() {
            self.state.consumer = self.core.seat.lock().fresh.take();
        }
        loop {
            match self.state.consumer.as_mut().and_then(|consumer| consumer.pop()) {
                Some(Entry::Message { message, user }) => {
                    if self.note_drained(&message, user) {
                        return Some(Delivery::Message { message, missed: None });
                    }
                }
                Some(Entry::AfterGap { message, missed, user }) => {
                    if self.note_drained(&message, user) {
                        return Some(Delivery::Message { message, missed: Some(missed) });
                    }
                }
                Some(Entry::Batch(batch)) => {
                    self.state.drained_messages += u64::from(batch.len());
                    self.state.drained_bytes += batch.charged_bytes();
                    self.core.take(batch.last_sequence());
                    self.state.drained_batch(&batch);
                    return Some(Delivery::Batch(batch));
                }
                Some(Entry::FromPeer { message, missed, share, user }) => {
                    self.state.drained_messages += 1;
                    self.state.drained_bytes += message.charged_bytes();
                    self.core.take(message.sequence());
                    let bytes = message.charged_bytes();
                    if message.is_request() && !self.bus.inner.hand_over(&self.core, &message) {
                        self.state.passed_over += 1;
                        self.core.free_share(user, bytes);
                        for queue in [&share, &self.core] {
                            if queue.free(1, bytes) {
                                self.bus.inner.serve(queue);
                            }
                        }
                        continue;
                    }
                    let peer = share.id();
                    self.state.drained(&message);
                    self.state.charge(bytes, Some(share));
                    self.state.charge_user(bytes, user);
                    return Some(Delivery::FromPeer { peer, message, missed });
                }
                Some(Entry::Candidate(candidate)) => {
                    self.state.drained_messages += 1;
                    self.core.take(candidate.sequence);
                    self.state.charge(0, None);
                    return Some(Delivery::Candidate(candidate));
                }
                Some(Entry::View { change, missed }) => {
                    self.state.drained_messages += 1;
                    self.core.take(change.sequence);
                    return Some(Delivery::View { change, missed });
                }
                Some(Entry::Evicted(eviction)) => {
                    self.core.drain_end();
                    self.core.take(eviction.sequence);
                    return Some(Delivery::Evicted(eviction));
                }
                Some(Entry::Monitored { seen, missed }) => {
                    self.state.drained_messages += 1;
                    self.state.drained_bytes += seen.charged_bytes();
                    self.core.take(seen.sequence());
                    return Some(Delivery::Monitored { seen, missed });
                }
                Some(Entry::Retained(retained)) => {
                    // Its place is that of the join, so what is sent from here on follows that.
                    self.core.take(retained.sequence);
                    self.state.retained = Some(Box::new(Retelling::new(*retained)));
                    return self.drain();
                }
                Some(Entry::Owner { change, missed }) => {
                    self.state.drained_messages += 1;
                    self.core.take(change.sequence);
                    return Some(Delivery::Owner { change, missed });
                }
                Some(Entry::Name(notice)) => {
                    self.core.drain_notice();
                    self.core.take(notice.sequence);
                    return Some(Delivery::Name(notice));
                }
                Some(Entry::Outcome(outcome)) => {
                    self.core.drain_outcome();
                    self.core.take(outcome.sequence);
                    return Some(Delivery::Outcome(outcome));
                }
                None => break,
            }
        }
        if !self.core.has_gaps() {
            return None;
        }
        let ended = self.core.asked().take_ended();
        if let Some(ended) = ended {
            return Some(Delivery::RequestEnded(ended));
        }
        let mut shard = self.bus.inner.locks.acquire_one(self.core.place.lock);
        let intake = shard.intakes.get_mut(self.core.place.slot as usize)?;
        if intake.id() != self.core.id() {
            return None;
        }
        Some(match intake.take_lone_gap()? {
            (Lost::Messages, group, gap) => Delivery::Gap { group, gap },
            (Lost::Views, group, gap) => Delivery::ViewsLost { group, gap },
            (Lost::Owners(name), _, gap) => Delivery::OwnersLost { name, gap },
            (Lost::AtPeer(peer), group, gap) => Delivery::PeerGap { group, peer, gap },
            (Lost::Peer(peer, change), group, gap) => {
                Delivery::Peer { group, peer, change, sequence: gap.last }
            }
            (Lost::Monitored, _, gap) => Delivery::MonitorGap { gap },
            (Lost::Flags(flags), group, gap) => {
                Delivery::Flags { group, flags, sequence: gap.last }
            }
        })
    }

    /// The next message of a batch that is taken one by one.
    fn unroll(&mut self) -> Option<Arc<Message>> {
        let message = self.state.unrolling.as_mut()?.next();
        if message.is_none() {
            self.state.unrolling = None;
        }
        message
    }

    fn end_retelling(&mut self) -> Option<Delivery> {
        let (group, sequence, messages, bytes) = self.state.retained.take()?.end();
        self.core.drain_retained(bytes);
        Some(Delivery::Current { group, sequence, messages })
    }

    /// Frees the places of so many drained messages: the application has taken them.
    ///
    /// Does not block. Where sends wait for room here they are committed in this call, so it can
    /// take the time of a few sends.
    ///
    /// # Errors
    ///
    /// More than was drained and not yet freed; nothing is freed then.
    pub fn release(&mut self, messages: u64, bytes: u64) -> Result<(), CreditError> {
        let (freed_messages, freed_bytes) = self.core.freed();
        let held_messages = self.state.drained_messages - freed_messages;
        let held_bytes = self.state.drained_bytes - freed_bytes;
        if messages > held_messages || bytes > held_bytes {
            return Err(CreditError { messages, bytes, held_messages, held_bytes });
        }
        self.free(messages, bytes);
        Ok(())
    }

    /// Frees places, and what they were of peer endpoints' shares; serves those who wait for them.
    fn free(&mut self, messages: u64, bytes: u64) {
        let freed = self.core.freed().0 + messages;
        if !mutated(Mutant::ShareFreedLate) {
            self.state.free_shares(&self.core, freed);
        }
        let owed = self.core.free(messages, bytes);
        self.state.free_shares(&self.core, freed);
        self.state.freed(&self.core, freed, self.bus.inner.now());
        if !self.state.charged.is_empty() {
            self.free_charged();
        }
        if owed {
            self.bus.inner.serve(&self.core);
        }
    }

    fn free_charged(&mut self) {
        // Places are given back in the order in which they were taken.
        let freed = self.core.freed().0 - self.state.passed_over;
        let charged = &mut self.state.charged;
        while let Some(charged) = charged.pop_front_if(|charged| charged.number <= freed) {
            let Some(share) = charged.share else {
                self.core.free_candidate();
                continue;
            };
            if share.free(1, charged.bytes) && !mutated(Mutant::ShareServesNobody) {
                self.bus.inner.serve(&share);
            }
        }
    }

    /// Whether there may be a gap to drain on its own, now that all places are free. To be asked
    /// after a [`release`](Self::release) by a reader that sleeps: its own doing does not wake it.
    #[must_use]
    pub fn has_lone_gap(&self) -> bool {
        self.core.has_gaps() && self.core.freed().0 == self.state.drained_messages
    }

    /// Whether nothing will ever come any more, now that [`drain`](Self::drain) has found nothing: the
    /// endpoint has been closed or has called `shutdown_receive`, and no loss is yet to be told.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.has_ended() && !self.core.has_gaps()
    }

    /// Leaves `waker` to be woken once, when there is something to take or the endpoint has ended.
    /// False if that is so now: take it first.
    ///
    /// A reader that has not said that it sleeps is never woken.
    pub fn sleep(&mut self, waker: Waker) -> bool {
        let mut shard = self.bus.inner.locks.acquire_one(self.core.place.lock);
        let slot = self.core.place.slot as usize;
        let intake = shard.intakes.get_mut(slot).filter(|intake| intake.id() == self.core.id());
        let left = match intake {
            Some(intake) => intake.sleep(waker),
            None => Err(waker),
        };
        // The refused waker, or the one before, is dropped without the lock.
        drop(shard);
        left.is_ok()
    }

    /// Takes the next delivery and frees its place. Never blocks.
    ///
    /// # Errors
    ///
    /// There is nothing, for now or for ever.
    pub fn try_receive(&mut self) -> Result<Delivery, ReceiveError> {
        if let Some(delivery) = self.drain_and_release() {
            return Ok(delivery);
        }
        if !self.has_ended() {
            return Err(ReceiveError::Empty);
        }
        if mutated(Mutant::EndWithoutLook) {
            return Err(ReceiveError::Ended);
        }
        // An endpoint that has ended gets nothing more, so what the queue says after that is final.
        self.drain_and_release().ok_or(ReceiveError::Ended)
    }

    fn drain_and_release(&mut self) -> Option<Delivery> {
        if let Some(message) = self.unroll() {
            return Some(self.release_one(message));
        }
        match self.drain()? {
            Delivery::Batch(batch) => {
                self.state.unrolling = Some(Unrolling::new(batch));
                self.unroll().map(|message| self.release_one(message))
            }
            delivery => {
                self.release_drained();
                Some(delivery)
            }
        }
    }

    /// Frees the place of a message out of a batch: the others keep theirs.
    fn release_one(&mut self, message: Arc<Message>) -> Delivery {
        if mutated(Mutant::BatchFreedWhole) {
            self.release_drained();
        } else {
            self.free(1, message.charged_bytes());
        }
        Delivery::Message { message, missed: None }
    }

    fn has_ended(&self) -> bool {
        if self.core.is_closed() {
            return true;
        }
        let shard = self.bus.inner.locks.acquire_one(self.core.place.lock);
        let intake = shard.intakes.get(self.core.place.slot as usize);
        intake.is_none_or(|i| i.id() != self.core.id() || i.is_receive_shut())
    }

    fn release_drained(&mut self) {
        let (messages, bytes) = self.core.freed();
        let (messages, bytes) =
            (self.state.drained_messages - messages, self.state.drained_bytes - bytes);
        if messages != 0 {
            self.free(messages, bytes);
        }
    }

    /// Takes the next delivery and frees its place, or leaves the task's waker.
    ///
    /// # Errors
    ///
    /// The endpoint has ended.
    pub fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Delivery, ReceiveError>> {
        loop {
            match self.try_receive() {
                Err(ReceiveError::Empty) if self.sleep(context.waker().clone()) => {
                    return Poll::Pending;
                }
                Err(ReceiveError::Empty) => {}
                taken => return Poll::Ready(taken),
            }
        }
    }

    /// Waits for the next delivery, takes it and frees its place. Blocks the thread.
    ///
    /// # Errors
    ///
    /// The endpoint has ended.
    pub fn receive(&mut self) -> Result<Delivery, ReceiveError> {
        self.receive_until(|parker| {
            parker.park();
            true
        })
    }

    /// As [`receive`](Self::receive), until `deadline`.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Empty`] once the deadline has come, or the endpoint has ended.
    pub fn receive_deadline(&mut self, deadline: Instant) -> Result<Delivery, ReceiveError> {
        self.receive_until(|parker| parker.park_deadline(deadline))
    }

    fn receive_until(&mut self, park: impl Fn(&Parker) -> bool) -> Result<Delivery, ReceiveError> {
        // Made when it is needed: a reader that finds something allocates nothing.
        let mut parker: Option<Arc<Parker>> = None;
        loop {
            match self.try_receive() {
                Err(ReceiveError::Empty) => {}
                taken => return taken,
            }
            let parker = parker.get_or_insert_default();
            if self.sleep(parker.waker()) && !park(parker) {
                return self.try_receive();
            }
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let state = Box::new(std::mem::take(&mut self.state));
        let mut seat = self.core.seat.lock();
        seat.state = Some(state);
        seat.occupied = false;
        let queue = if self.core.is_closed() { seat.close() } else { None };
        drop(seat);
        if let Some(queue) = queue {
            self.bus.inner.drop_queue(queue);
        }
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("endpoint", &self.core.id()).finish_non_exhaustive()
    }
}
