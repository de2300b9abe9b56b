//! Lanes: first-in-first-out lines of sends, and watches for writability.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::account::{Charge, Resource};
use crate::attributes::Attributes;
use crate::batch::{Batch, BatchDraft, BatchReceipt, MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, NoBatch};
use crate::bus::{Bus, LimitExceeded};
use crate::endpoint::WatchError;
use crate::id::{EndpointId, GroupId};
use crate::intake::{EndpointCore, Opened};
use crate::message::{Destination, Draft, Message};
use crate::recorder::{RefusalReason, RefusalRecord};
use crate::request::{Kind, Requested};
use crate::send::{Attempt, Effects, Outgoing, Receipt, Route, SendError, Standing};
use crate::sync::{Mutant, Parker, mutated};
use crate::tally::LaneTally;
use crate::wait::{Entered, WaitKey};

/// How many destinations a lane keeps resolved.
const CACHED_ROUTES: usize = 8;

/// A first-in-first-out line of sends of one endpoint (G3).
///
/// A lane keeps the recipient lists of the destinations that it used last, so that a send whose
/// list is current takes no lock but those of its recipients. At most one send of a lane waits in
/// the bus; who wants a longer line keeps it, and submits the next when the one before is decided.
#[derive(Debug)]
pub struct Lane {
    bus: Bus,
    core: Arc<EndpointCore>,
    /// Most recently used last.
    routes: Vec<Route>,
    waiting: Option<WaitKey>,
    effects: Effects,
    /// The endpoint has memory for its requests.
    may_ask: bool,
    tally: Arc<LaneTally>,
    /// Bytes of the waiting send, and since when of the bus's running time it waits.
    waiting_since: (u64, Duration),
}

/// How a submitted send stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Submitted {
    /// It has its place in the order.
    Committed(Receipt),
    /// It waits; the waker is called once it has been decided, and
    /// [`poll_outcome`](Lane::poll_outcome) says how.
    Waiting,
}

impl Lane {
    pub(crate) fn new(bus: Bus, core: Arc<EndpointCore>) -> Self {
        let (routes, effects) = (Vec::new(), Effects::default());
        let (tally, waiting_since) = (core.sending.open(), (0, Duration::ZERO));
        Self { bus, core, routes, waiting: None, effects, may_ask: false, tally, waiting_since }
    }

    /// The endpoint that it sends for.
    #[must_use]
    pub fn endpoint(&self) -> EndpointId {
        self.core.id()
    }

    /// Sends if all recipients have room now. Never blocks.
    ///
    /// # Errors
    ///
    /// [`SendError::WouldBlock`] if a recipient has none; otherwise what makes the send impossible.
    pub fn try_send(
        &mut self,
        to: Destination,
        draft: impl Into<Draft>,
    ) -> Result<Receipt, SendError> {
        match self.start(to, draft.into(), None)? {
            Submitted::Committed(receipt) => Ok(receipt),
            Submitted::Waiting => Err(SendError::LaneBusy),
        }
    }

    /// Sends several messages to a group at once, if nothing stands in the way of any: every recipient
    /// is of the plain kind and has room for all of them, nobody waits, filters or monitors, and they
    /// are within [`MAX_BATCH_BYTES`] and [`MAX_BATCH_MESSAGES`]. Never blocks.
    ///
    /// # Errors
    ///
    /// Something does. None of them was sent; sent one by one each has its own outcome.
    pub fn try_send_batch(
        &mut self,
        group: GroupId,
        batch: BatchDraft,
    ) -> Result<BatchReceipt, NoBatch> {
        let limits = self.bus.limits();
        let too_long = batch.longest() > limits.payload_bytes as usize
            || batch.entries().len() > MAX_BATCH_BYTES
            || batch.len() > MAX_BATCH_MESSAGES;
        if self.waiting.is_some() || too_long || batch.len() < 2 {
            return Err(NoBatch::NEVER);
        }
        let bytes = batch.charged_bytes();
        // What is not committed is dropped with no lock held.
        let mut batch = Arc::new(Batch::new(&self.core, group, batch));
        for _ in 0..2 {
            let to = Destination::Group(group);
            let route = self.take_route(to).map_err(|_| NoBatch::NEVER)?;
            let bus = &self.bus.inner;
            let receipt = bus.commit_batch(&self.core, &route, &mut batch, &mut self.effects);
            self.effects.run();
            // One that is not current any more is resolved anew.
            if let Some(receipt) = receipt {
                keep_route(&mut self.routes, route);
                return receipt.inspect(|_| self.tally.bytes.add(bytes));
            }
        }
        Err(NoBatch::NEVER)
    }

    /// Sends once all recipients have room. Does not block: where the send has to wait, `waker` is
    /// called when it has been decided.
    ///
    /// It is committed on this lane's behalf by whoever makes room, so it takes its place whether
    /// or not the lane is looked at again.
    ///
    /// # Errors
    ///
    /// What makes the send impossible, [`SendError::LaneBusy`] while an earlier one waits.
    pub fn submit(
        &mut self,
        to: Destination,
        draft: impl Into<Draft>,
        waker: Waker,
    ) -> Result<Submitted, SendError> {
        self.start(to, draft.into(), Some(waker))
    }

    /// Starts a send, and counts it.
    fn start(
        &mut self,
        to: Destination,
        draft: Draft,
        waker: Option<Waker>,
    ) -> Result<Submitted, SendError> {
        let bytes = (draft.attributes.encoded().len() + draft.payload.len()) as u64;
        let started = self.attempt(to, draft, waker);
        match &started {
            Ok(Submitted::Committed(_)) => self.tally.bytes.add(bytes),
            Ok(Submitted::Waiting) => {
                self.tally.waits.add(1);
                self.waiting_since = (bytes, self.bus.inner.running());
            }
            Err(error) => self.note_refusal(to, bytes, error),
        }
        started
    }

    #[cold]
    fn note_refusal(&self, to: Destination, bytes: u64, error: &SendError) {
        self.tally.refused.add(1);
        let bus = &self.bus.inner;
        if bus.recorder.is_on() {
            bus.recorder.refused(RefusalRecord {
                sender: self.core.id(),
                credentials: self.core.credentials,
                to,
                time: bus.now(),
                bytes,
                why: RefusalReason::of(error),
            });
        }
    }

    fn attempt(
        &mut self,
        to: Destination,
        mut draft: Draft,
        waker: Option<Waker>,
    ) -> Result<Submitted, SendError> {
        if self.waiting.is_some() {
            return Err(SendError::LaneBusy);
        }
        let limits = self.bus.limits();
        if draft.payload.len() > limits.payload_bytes as usize {
            let (given, limit) = (draft.payload.len(), limits.payload_bytes);
            return Err(SendError::TooLarge { given, limit });
        }
        if draft.descriptors.len() > usize::from(limits.descriptors) {
            let (given, limit) = (draft.descriptors.len(), limits.descriptors);
            return Err(SendError::TooManyDescriptors { given, limit });
        }
        let (until, charge) = match draft.kind {
            Kind::Message => (None, None),
            _ => self.prepare(to, &mut draft)?,
        };
        let route = self.take_route(to)?;
        if route.retaining().is_some() && !draft.descriptors.is_empty() {
            let given = draft.descriptors.len();
            self.routes.push(route);
            return Err(SendError::TooManyDescriptors { given, limit: 0 });
        }
        let to = match &route {
            Route::Caller { id, .. } => Destination::Caller(*id),
            _ => to,
        };
        let mut message = Message::new(self.core.id(), self.core.credentials, to, draft);
        if until.is_some() {
            message = message.request(Requested { caller: self.core.place, first: None });
        }
        let mut outgoing = Outgoing::new(Arc::clone(&self.core), route, Arc::new(message));
        outgoing.until = until;
        outgoing.charge = charge;
        let bus = &self.bus.inner;
        let mut attempt = bus.attempt(&mut outgoing, Standing::Newcomer, &mut self.effects)?;
        while matches!(attempt, Attempt::Full { .. })
            && outgoing.route.has_leavers()
            && !mutated(Mutant::LeaverStays)
            && bus.put_out_leavers(&outgoing)
        {
            attempt = bus.attempt(&mut outgoing, Standing::Newcomer, &mut self.effects)?;
        }
        let submitted = match attempt {
            Attempt::Committed(receipt) => {
                keep_route(&mut self.routes, outgoing.route);
                Ok(Submitted::Committed(receipt))
            }
            Attempt::Full { .. } if waker.is_none() => {
                keep_route(&mut self.routes, outgoing.route);
                Err(SendError::WouldBlock { full: Box::new(self.effects.full) })
            }
            Attempt::Full { .. } | Attempt::Owed { .. } | Attempt::Writable | Attempt::NoShares => {
                keep_route(&mut self.routes, outgoing.route.clone());
                let mut room = bus.waiting.lock();
                room.enter(bus, outgoing, waker, &mut self.effects).map(|entered| match entered {
                    Entered::Committed(receipt) => Submitted::Committed(receipt),
                    Entered::Waiting(key) => {
                        self.waiting = Some(key);
                        Submitted::Waiting
                    }
                })
            }
        };
        self.effects.run();
        submitted
    }

    /// Makes ready for a request, and gives the running time at which it is over, and what is
    /// charged for it.
    #[cold]
    fn prepare(
        &mut self,
        to: Destination,
        draft: &mut Draft,
    ) -> Result<(Option<u64>, Option<Charge>), SendError> {
        let bus = &self.bus.inner;
        match (draft.kind, to) {
            (Kind::Refusal, Destination::Caller(_)) => Ok((None, None)),
            (Kind::Refusal, _) | (_, Destination::Caller(_) | Destination::Group(_)) => {
                Err(SendError::WrongKind)
            }
            (Kind::Message | Kind::Request { .. }, _) => {
                let (until, deadline) = bus.request_deadline(draft.deadline)?;
                draft.deadline = deadline;
                if !std::mem::replace(&mut self.may_ask, true) {
                    bus.open_requests(&self.core);
                }
                let charge = self.core.charge(Resource::Requests, 1);
                Ok((Some(until), charge.map_err(SendError::RequestLimit)?))
            }
        }
    }

    /// Takes a destination's route out of the cache, or resolves it. It goes back, as the most
    /// recently used, once the send has shown that it still leads somewhere.
    fn take_route(&mut self, to: Destination) -> Result<Route, SendError> {
        if let Destination::Caller(request) = to {
            return self.bus.inner.route_to_caller(&self.core, request);
        }
        if let Some(at) = self.routes.iter().rposition(|route| route.destination() == to) {
            return Ok(self.routes.remove(at));
        }
        if self.routes.len() >= CACHED_ROUTES {
            self.routes.remove(0);
        }
        self.bus.inner.route(to, self.core.id())
    }

    /// What the waiting send came to. None while it waits, or if there is none.
    pub fn poll_outcome(&mut self) -> Option<Result<Receipt, SendError>> {
        let outcome = self.bus.inner.waiting.lock().take_outcome(self.waiting?)?;
        self.waiting = None;
        Some(self.decided(outcome))
    }

    /// Counts what the waiting send came to.
    fn decided(&self, outcome: Result<Option<Receipt>, SendError>) -> Result<Receipt, SendError> {
        let (bytes, since) = self.waiting_since;
        let waited = self.bus.inner.running().saturating_sub(since);
        self.tally.waited_nanos.add(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX));
        match &outcome {
            Ok(_) => self.tally.bytes.add(bytes),
            Err(_) => self.tally.refused.add(1),
        }
        receipt_of(outcome)
    }

    /// Whether a send of this lane waits, or has been decided and not yet been asked for.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.waiting.is_some()
    }

    /// Ends the waiting send: with [`SendError::Cancelled`], or with the receipt that came first.
    /// None if none waits.
    pub fn cancel(&mut self) -> Option<Result<Receipt, SendError>> {
        let key = self.waiting.take()?;
        let bus = &self.bus.inner;
        let outcome = bus.waiting.lock().cancel(bus, key, &mut self.effects);
        self.effects.run();
        Some(self.decided(outcome))
    }

    /// Sends, and blocks the thread until all recipients have room.
    ///
    /// # Errors
    ///
    /// What makes the send impossible. [`SendError::OwnQueueFull`] if the only one without room is
    /// the sender itself.
    pub fn send(&mut self, to: Destination, draft: impl Into<Draft>) -> Result<Receipt, SendError> {
        self.send_until(to, draft.into(), |parker| {
            parker.park();
            true
        })
    }

    /// As [`send`](Self::send), until `deadline`.
    ///
    /// # Errors
    ///
    /// [`SendError::Cancelled`] once the deadline has come, and then it has reached nobody;
    /// otherwise as [`send`](Self::send).
    pub fn send_deadline(
        &mut self,
        to: Destination,
        draft: impl Into<Draft>,
        deadline: Instant,
    ) -> Result<Receipt, SendError> {
        self.send_until(to, draft.into(), |parker| parker.park_deadline(deadline))
    }

    fn send_until(
        &mut self,
        to: Destination,
        draft: Draft,
        park: impl Fn(&Parker) -> bool,
    ) -> Result<Receipt, SendError> {
        let parker = Arc::new(Parker::default());
        if let Submitted::Committed(receipt) = self.start(to, draft, Some(parker.waker()))? {
            return Ok(receipt);
        }
        loop {
            if let Some(outcome) = self.poll_outcome() {
                return outcome;
            }
            if !park(&parker) {
                return self.cancel().unwrap_or(Err(SendError::Cancelled));
            }
        }
    }

    /// Sends, and lets a task wait until all recipients have room.
    ///
    /// Dropping the future cancels the send if it still waits.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn send_async(
        &mut self,
        to: Destination,
        draft: impl Into<Draft>,
    ) -> Result<Receipt, SendError> {
        let mut draft = Some(draft.into());
        let mut guard = CancelOnDrop { lane: self, waits: false };
        std::future::poll_fn(move |context| guard.poll(to, &mut draft, context)).await
    }
}

/// Keeps a route for the next send there. The next reply goes elsewhere.
fn keep_route(routes: &mut Vec<Route>, route: Route) {
    if !matches!(route, Route::Caller { .. }) {
        routes.push(route);
    }
}

/// A send that is cancelled when its future is dropped.
struct CancelOnDrop<'a> {
    lane: &'a mut Lane,
    /// The lane's waiting send is this future's. One that was submitted before is not.
    waits: bool,
}

impl CancelOnDrop<'_> {
    fn poll(
        &mut self,
        to: Destination,
        draft: &mut Option<Draft>,
        context: &Context<'_>,
    ) -> Poll<Result<Receipt, SendError>> {
        if let Some(draft) = draft.take() {
            return match self.lane.start(to, draft, Some(context.waker().clone())) {
                Ok(Submitted::Committed(receipt)) => Poll::Ready(Ok(receipt)),
                Ok(Submitted::Waiting) => {
                    self.waits = true;
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(error)),
            };
        }
        let Some(key) = self.lane.waiting else {
            return Poll::Ready(Err(SendError::Cancelled));
        };
        let waker = context.waker().clone();
        let old = self.lane.bus.inner.waiting.lock().replace_waker(key, waker);
        match old {
            Ok(_) => Poll::Pending,
            Err(_) => {
                self.waits = false;
                let outcome = self.lane.poll_outcome();
                Poll::Ready(outcome.unwrap_or(Err(SendError::Cancelled)))
            }
        }
    }
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.lane.cancel();
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.cancel();
        self.core.sending.close(&self.tally);
        self.core.shut(Opened::Lane);
    }
}

fn receipt_of(outcome: Result<Option<Receipt>, SendError>) -> Result<Receipt, SendError> {
    outcome.map(|receipt| receipt.expect("a decided send has a receipt"))
}

/// Somebody who is woken once a destination is writable; dropping it ends that.
#[derive(Debug)]
pub struct Watch {
    bus: Bus,
    core: Arc<EndpointCore>,
    key: Option<WaitKey>,
}

impl Watch {
    pub(crate) fn begin(
        bus: &Bus,
        core: &Arc<EndpointCore>,
        to: Destination,
        about: Attributes,
        waker: Waker,
    ) -> Result<Option<Self>, WatchError> {
        let most = u64::from(bus.limits().watches);
        if !core.open(Opened::Watch, most) {
            return Err(LimitExceeded::new("watches", most).into());
        }
        let mut watch = Self { bus: bus.clone(), core: Arc::clone(core), key: None };
        let route = bus.inner.route(to, core.id())?;
        let outgoing = Outgoing::asking(Arc::clone(core), route, Box::new(about));
        let mut effects = Effects::default();
        let key = bus.inner.waiting.lock().watch(&bus.inner, outgoing, waker, &mut effects);
        effects.run();
        watch.key = key?;
        Ok(watch.key.is_some().then_some(watch))
    }

    /// Whether the destination has become writable, or why a send there would fail. None while it
    /// is not writable.
    pub fn outcome(&mut self) -> Option<Result<(), SendError>> {
        let outcome = self.bus.inner.waiting.lock().take_outcome(self.key?)?;
        self.key = None;
        Some(outcome.map(|_| ()))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let bus = &self.bus.inner;
            let mut effects = Effects::default();
            // Whether it had become writable matters to nobody any more.
            drop(bus.waiting.lock().cancel(bus, key, &mut effects));
            effects.run();
        }
        self.core.shut(Opened::Watch);
    }
}
