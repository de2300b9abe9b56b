//! Requests of this connection's endpoints from their receipt to their outcome, and what these
//! endpoints were asked.
//!
//! A request is a send until its receipt, which tells its sequence; then it waits here for the one
//! outcome that the broker promises. Outcomes do not go to the inbox, but a reply holds its place in
//! the queue like any message until somebody has taken it. One that comes before its request's
//! receipt is kept aside; there are never more of these than an endpoint may have requests.

use std::collections::HashMap;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bus_core::wire::{MessageView, OutcomeCode, Request, SendId, Serial};
use bus_core::{Receipt, Sequence};

use super::call::Purpose;
use super::send::{Ask, CancelReason, Stage};
use super::{Entry, State, Urgency};
use crate::clock::Tick;
use crate::error::{BrokerGone, SendError};
use crate::inflow::Attached;
use crate::waits::Wake;

/// What the requests of one endpoint need.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Those that have a receipt and no outcome.
    open: HashMap<Sequence, Serial>,
    early: HashMap<Sequence, Answer>,
    /// Requests that the application has, or that lie in the inbox.
    asked: HashMap<Sequence, Arc<AskedState>>,
}

impl Requests {
    /// The broker is lost, and with it all who have asked.
    pub(super) fn depart(&mut self) {
        self.open.clear();
        self.early.clear();
        for (_, asked) in self.asked.drain() {
            asked.lose();
        }
    }
}

/// A request that waits for its outcome.
#[derive(Debug)]
pub(super) struct RequestEntry {
    endpoint: usize,
    request: Sequence,
    answer: Option<Answer>,
    pub(super) wake: Option<Wake>,
    abandoned: bool,
    /// Its reply, if there is one, came by a connection that was lost, and has no place any more.
    orphan: bool,
}

/// The outcome of a request that the broker has accepted.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(Box<Reply>),
    Ended(OutcomeCode),
    Lost(BrokerGone),
}

/// A reply as it came.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) message: MessageView,
    pub(crate) attached: Option<Box<Attached>>,
}

/// Whether anybody waits for the reply to a request that this program was sent.
#[derive(Debug, Default)]
pub(crate) struct AskedState(AtomicU8);

impl AskedState {
    /// One whose broker is lost.
    pub(crate) fn lost() -> Self {
        Self(AtomicU8::new(LOST))
    }

    fn lose(&self) {
        self.0.store(LOST, Ordering::Relaxed);
    }

    /// Whether it was asked by way of a broker that is lost: its number may be another's now.
    pub(crate) fn is_lost(&self) -> bool {
        self.0.load(Ordering::Relaxed) == LOST
    }

    /// Why nobody waits any more, as far as is known.
    pub(crate) fn ended(&self) -> Option<OutcomeCode> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(OutcomeCode::TimedOut),
            2 => Some(OutcomeCode::Cancelled),
            // LOST among them.
            _ => Some(OutcomeCode::Gone),
        }
    }

    fn end(&self, why: &OutcomeCode) {
        let code = match why {
            OutcomeCode::TimedOut => 1,
            OutcomeCode::Cancelled => 2,
            _ => 3,
        };
        self.0.store(code, Ordering::Relaxed);
    }
}

impl State {
    // ---- What this program asks

    /// A request was committed: from here on it waits for its outcome.
    pub(super) fn asked(&mut self, id: SendId, receipt: &Receipt) {
        let Some(Entry::Send(send)) = self.pending.get_mut(id.serial) else {
            unreachable!("checked by the caller");
        };
        let key = send.new.endpoint;
        let over = send.cancel.is_some() || send.abandoned;
        let entry = RequestEntry {
            endpoint: key,
            request: receipt.sequence,
            answer: None,
            wake: send.wake.take(),
            abandoned: send.abandoned,
            orphan: false,
        };
        let charge = send.charge();
        if let Some(place) = self.pending.get_mut(id.serial) {
            *place = Entry::Request(entry);
        }
        let endpoint = &mut self.endpoints[key];
        endpoint.lanes[id.lane.index()].answered(id.serial, charge);
        let early = endpoint.requests.early.remove(&receipt.sequence);
        match early {
            Some(answer) => self.answer_request(id.serial, answer),
            None => {
                endpoint.requests.open.insert(receipt.sequence, id.serial);
                if over {
                    self.put_cancel(key, receipt.sequence);
                }
            }
        }
        self.pump(key, id.lane);
    }

    fn put_cancel(&mut self, key: usize, request: Sequence) {
        let call = self.call(key, Purpose::Plain, Request::CancelRequest { request });
        if let Ok(serial) = call {
            self.abandon(serial);
        }
    }

    /// A reply has come.
    pub(super) fn reply_arrived(
        &mut self,
        key: usize,
        request: Sequence,
        reply: Reply,
    ) -> Result<(), String> {
        let bytes = reply.message.charged_bytes();
        if let Some(endpoint) = self.endpoints.get_mut(key).filter(|endpoint| !endpoint.closing) {
            endpoint.inbox.hold_aside(bytes)?;
        }
        self.outcome_arrived(key, request, Answer::Reply(Box::new(reply)))
    }

    /// The outcome of a request has come.
    pub(super) fn outcome_arrived(
        &mut self,
        key: usize,
        request: Sequence,
        answer: Answer,
    ) -> Result<(), String> {
        let most = usize::from(self.limits.requests);
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return Err(format!("an outcome for handle {key}, which is not open"));
        };
        if endpoint.closing {
            return Ok(());
        }
        match endpoint.requests.open.remove(&request) {
            Some(serial) => self.answer_request(serial, answer),
            None if endpoint.requests.early.len() >= most => {
                return Err(format!("an outcome for request {request}, which was not made"));
            }
            None => {
                endpoint.requests.early.insert(request, answer);
            }
        }
        Ok(())
    }

    pub(super) fn answer_request(&mut self, serial: Serial, answer: Answer) {
        let Some(Entry::Request(request)) = self.pending.get_mut(serial) else {
            return;
        };
        request.answer = Some(answer);
        if request.abandoned {
            // Takes the reply's place back.
            drop(self.take_outcome(serial));
        } else {
            let wake = request.wake.take();
            self.woken(wake);
        }
    }

    /// The endpoint gets no outcomes any more: those that have not come will not.
    pub(super) fn end_requests(&mut self, key: usize) {
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return;
        };
        let open = std::mem::take(&mut endpoint.requests.open);
        for serial in open.into_values() {
            self.answer_request(serial, Answer::Ended(OutcomeCode::Gone));
        }
    }

    /// The broker is lost: nobody will answer this one any more.
    pub(super) fn lose_request(&mut self, serial: Serial, gone: &BrokerGone) {
        let Some(Entry::Request(request)) = self.pending.get_mut(serial) else {
            return;
        };
        request.orphan = true;
        if request.answer.is_none() {
            self.answer_request(serial, Answer::Lost(gone.clone()));
        }
    }

    /// Takes the outcome of a request, and its entry with it: why it was not made, or what came of
    /// it.
    pub(crate) fn take_outcome(&mut self, serial: Serial) -> Option<Result<Answer, SendError>> {
        match self.pending.get(serial)? {
            Entry::Send(send) if matches!(send.stage, Stage::Answered(_)) => {
                Some(Err(self.take_answer(serial)?.err()?))
            }
            Entry::Request(RequestEntry { answer: Some(_), .. }) => {
                let Some(Entry::Request(request)) = self.pending.remove(serial) else {
                    unreachable!("it was there a moment ago");
                };
                let answer = request.answer?;
                if let Answer::Reply(reply) = &answer
                    && !request.orphan
                {
                    self.free_aside(request.endpoint, reply.message.charged_bytes());
                }
                Some(Ok(answer))
            }
            _ => None,
        }
    }

    fn free_aside(&mut self, key: usize, bytes: u64) {
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return;
        };
        endpoint.inbox.free_aside(bytes);
        if let Some(credit) = endpoint.inbox.return_some(Tick::now()) {
            self.put_credit(key, credit);
            self.flush(Urgency::Soon);
        }
    }

    /// Ends a request that has its receipt; the outcome still comes. Not for want of reading: the
    /// outcome has a place of its own.
    pub(super) fn cancel_request(&mut self, serial: Serial, reason: CancelReason) {
        if matches!(reason, CancelReason::Deadlock(_)) {
            return;
        }
        if let Some(Entry::Request(request)) = self.pending.get(serial)
            && request.answer.is_none()
        {
            self.put_cancel(request.endpoint, request.request);
        }
    }

    /// Nobody will ask for the outcome of this request.
    pub(super) fn abandon_request(&mut self, serial: Serial) {
        let Some(Entry::Request(request)) = self.pending.get_mut(serial) else {
            return;
        };
        (request.abandoned, request.wake) = (true, None);
        if request.answer.is_some() {
            drop(self.take_outcome(serial));
        }
    }

    /// Whether an entry is a request of this endpoint.
    pub(super) fn is_request_of(entry: &Entry, key: usize) -> bool {
        matches!(entry, Entry::Request(request) if request.endpoint == key)
    }

    /// Whether a send is a request. Its receipt need not be hurried: who waits for it waits for the
    /// outcome, which brings it along.
    pub(super) fn is_request(&self, serial: Serial) -> bool {
        let entry = self.pending.get(serial);
        matches!(entry, Some(Entry::Send(send)) if matches!(send.new.ask, Ask::Reply { .. }))
    }

    // ---- What this program is asked

    /// A request has arrived for an endpoint.
    pub(super) fn request_arrived(&mut self, key: usize, request: Sequence) {
        if let Some(endpoint) = self.endpoints.get_mut(key) {
            endpoint.requests.asked.insert(request, Arc::default());
        }
    }

    /// Nobody waits for the reply any more.
    pub(super) fn request_ended(&mut self, key: usize, request: Sequence, why: &OutcomeCode) {
        let endpoint = self.endpoints.get_mut(key);
        if let Some(asked) = endpoint.and_then(|endpoint| endpoint.requests.asked.get(&request)) {
            asked.end(why);
        }
    }

    /// What is known of a request that is handed out.
    pub(crate) fn asked_state(&self, key: usize, request: Sequence) -> Arc<AskedState> {
        let asked = self.endpoints.get(key).and_then(|e| e.requests.asked.get(&request));
        asked.map(Arc::clone).unwrap_or_default()
    }

    /// Whether a request in the inbox is of no use any more; then it is forgotten.
    pub(super) fn is_over(&mut self, key: usize, request: Sequence) -> bool {
        let asked = &mut self.endpoints[key].requests.asked;
        let over = asked.get(&request).is_some_and(|asked| asked.ended().is_some());
        if over {
            asked.remove(&request);
        }
        over
    }

    /// A request was answered, or nobody here will.
    pub(crate) fn forget_asked(
        &mut self,
        key: usize,
        request: Sequence,
        state: &AskedState,
        decline: bool,
    ) {
        let Some(endpoint) = self.endpoints.get_mut(key).filter(|_| !state.is_lost()) else {
            return;
        };
        let asked = endpoint.requests.asked.remove(&request);
        let waited_for = asked.is_some_and(|asked| asked.ended().is_none());
        if decline
            && waited_for
            && !self.endpoints[key].closing
            && let Ok(serial) = self.call(key, Purpose::Plain, Request::DeclineRequest { request })
        {
            self.abandon(serial);
            self.flush(Urgency::Soon);
        }
    }
}

/// What an [`AskedState`] holds when its broker is lost.
const LOST: u8 = 4;
