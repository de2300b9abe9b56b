//! Requests and replies: calls that wait for one outcome, and messages that are to be answered.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bus_core::wire::{OutcomeCode, Role, Serial};
use bus_core::{EndpointId, Receipt, Sequence};

use crate::bus::{Endpoint, Lane, LaneInner};
use crate::drive::Drive;
use crate::error::{BrokerGone, SendError};
use crate::group::Route;
use crate::message::{Message, Outgoing};
use crate::names::Name;
use crate::send::{PendingSend, SendFuture};
use crate::state::{Answer, AskedState, CancelReason, Form, Interest, Sender, State, Target};
use crate::waits::Wake;

/// Why a call has no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The other side answered, and says no in its own terms: look at the message.
    #[error("refused: {}", refusal_text(.0))]
    Refused(Box<Message>),
    /// Who was asked was closed before it answered, or dropped the request. Whether it has done
    /// what was asked is not known.
    #[error("whoever was asked has gone without an answer")]
    Gone,
    /// The deadline came first. Whether it was done is not known.
    #[error("timed out")]
    TimedOut,
    /// It was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The request has reached nobody.
    #[error(transparent)]
    Send(SendError),
    /// The connection was lost while the call waited. Whether it was done is not known.
    #[error(transparent)]
    BrokerGone(BrokerGone),
    /// An outcome that this library does not know.
    #[error("no reply: {0}")]
    Other(String),
}

fn refusal_text(message: &Message) -> String {
    match (message.operation(), message.text()) {
        (Some(operation), Some("")) | (Some(operation), None) => operation.to_owned(),
        (Some(operation), Some(text)) => format!("{operation}: {text}"),
        (None, text) => text.unwrap_or("without a word").to_owned(),
    }
}

impl From<SendError> for CallError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::TimedOut => Self::TimedOut,
            SendError::Cancelled => Self::Cancelled,
            SendError::BrokerGone(gone) | SendError::Unknown(gone) => Self::BrokerGone(gone),
            other => Self::Send(other),
        }
    }
}

fn outcome(answer: Result<Answer, SendError>) -> Result<Message, CallError> {
    match answer? {
        Answer::Reply(reply) => {
            let message = Message::new(reply.message, None, None, reply.attached);
            if message.is_refusal() {
                Err(CallError::Refused(Box::new(message)))
            } else {
                Ok(message)
            }
        }
        Answer::Ended(OutcomeCode::Gone) => Err(CallError::Gone),
        Answer::Ended(OutcomeCode::TimedOut) => Err(CallError::TimedOut),
        Answer::Ended(OutcomeCode::Cancelled) => Err(CallError::Cancelled),
        Answer::Ended(other) => Err(CallError::Other(other.as_str().to_owned())),
        Answer::Lost(gone) => Err(CallError::BrokerGone(gone)),
    }
}

/// A call that has left and waits for its outcome. Dropping it cancels the call; the request may
/// have been acted on all the same.
///
/// As a future it needs somebody who dispatches; see
/// [`Endpoint::receive_async`](crate::Endpoint::receive_async).
#[derive(Debug)]
#[must_use = "dropping a pending call cancels it"]
pub struct PendingCall {
    endpoint: Endpoint,
    _lane: Option<Arc<LaneInner>>,
    /// None once the outcome was given.
    serial: Option<Serial>,
    drive: Drive,
}

impl PendingCall {
    /// Waits for the reply.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    ///
    /// # Panics
    ///
    /// If [`try_wait`](Self::try_wait) has given the outcome already.
    pub fn wait(mut self) -> Result<Message, CallError> {
        let serial = self.serial.expect("a call whose outcome was given has none to wait for");
        let connection = &self.endpoint.inner.connection;
        let answer = connection
            .wait(Interest::Answer(serial), Some(serial), None, |state| state.take_outcome(serial))
            .expect("without a deadline, waiting ends with an outcome");
        self.serial = None;
        outcome(answer)
    }

    /// The outcome, if it has arrived. Does the I/O that is possible without blocking. Gives the
    /// outcome once; `None` for ever after.
    pub fn try_wait(&mut self) -> Option<Result<Message, CallError>> {
        let serial = self.serial?;
        let mut state = self.endpoint.inner.connection.lock();
        let answer = state.take_outcome(serial).or_else(|| {
            state.turn();
            state.take_outcome(serial)
        })?;
        state.unblock(serial);
        self.serial = None;
        Some(outcome(answer))
    }

    /// Asks the broker to end the call. The outcome then is [`CallError::Cancelled`], or what came
    /// first.
    pub fn cancel(&self) {
        if let Some(serial) = self.serial {
            self.endpoint.inner.connection.lock().cancel(serial, CancelReason::Asked);
        }
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        if let Some(serial) = self.serial {
            give_up(&self.endpoint, serial);
        }
    }
}

fn give_up(endpoint: &Endpoint, serial: Serial) {
    let mut state = endpoint.inner.connection.lock();
    state.cancel(serial, CancelReason::Asked);
    state.abandon(serial);
}

impl Future for PendingCall {
    type Output = Result<Message, CallError>;

    /// # Panics
    ///
    /// If it is polled again after it was ready.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let serial = this.serial.expect("a call was polled after it was ready");
        let answer = poll_outcome(&this.endpoint, &mut this.drive, serial, cx);
        if answer.is_ready() {
            this.serial = None;
        }
        answer.map(outcome)
    }
}

fn poll_outcome(
    endpoint: &Endpoint,
    drive: &mut Drive,
    serial: Serial,
    cx: &mut Context<'_>,
) -> Poll<Result<Answer, SendError>> {
    let connection = &endpoint.inner.connection;
    let take = |state: &mut State| {
        let answer = state.take_outcome(serial)?;
        state.unblock(serial);
        Some(answer)
    };
    drive.poll(connection, cx, |cx| {
        let mut state = connection.lock();
        if let Some(answer) = take(&mut state) {
            return Poll::Ready(answer);
        }
        state.set_wake(Interest::Answer(serial), Wake::Task(cx.waker().clone()));
        state.block(serial, Sender::Task(cx.waker().clone()));
        state.before_sleep();
        take(&mut state).map_or(Poll::Pending, Poll::Ready)
    })
}

/// A call as a future; see [`RemoteEndpoint::call_async`](crate::RemoteEndpoint::call_async).
/// Dropping it before it is done cancels the call.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct CallFuture {
    stage: CallStage,
}

#[derive(Debug)]
enum CallStage {
    Ready(Box<(Route, Outgoing)>),
    Asked(PendingCall),
    Done,
}

impl Future for CallFuture {
    type Output = Result<Message, CallError>;

    /// # Panics
    ///
    /// If it is polled again after it was ready.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let stage = &mut self.get_mut().stage;
        let mut call = match std::mem::replace(stage, CallStage::Done) {
            CallStage::Asked(call) => call,
            CallStage::Ready(ready) => match ready.0.begin_call(ready.1) {
                Ok(call) => call,
                Err(error) => return Poll::Ready(Err(error)),
            },
            CallStage::Done => panic!("a call was polled after it was ready"),
        };
        let answer = Pin::new(&mut call).poll(cx);
        if answer.is_pending() {
            *stage = CallStage::Asked(call);
        }
        answer
    }
}

impl Route {
    /// Puts a request into its lane.
    fn begin_call(&self, message: Outgoing) -> Result<PendingCall, CallError> {
        let new = self.prepare_call(message)?;
        let serial = self.endpoint.inner.connection.lock().send(new)?;
        Ok(PendingCall {
            endpoint: self.endpoint.clone(),
            _lane: self.lane_handle(),
            serial: Some(serial),
            drive: Drive::default(),
        })
    }

    pub(crate) fn call(&self, message: Outgoing) -> Result<Message, CallError> {
        self.begin_call(message)?.wait()
    }

    /// Puts a request into its lane, and waits until it has left.
    pub(crate) fn start_call(&self, message: Outgoing) -> Result<PendingCall, CallError> {
        let mut call = self.begin_call(message)?;
        let serial = call.serial.expect("it was just made");
        let connection = &self.endpoint.inner.connection;
        if let Err(error) = connection.wait_departure(serial) {
            call.serial = None;
            return Err(error.into());
        }
        Ok(call)
    }

    pub(crate) fn call_async(&self, message: Outgoing) -> CallFuture {
        CallFuture { stage: CallStage::Ready(Box::new((self.clone(), message))) }
    }
}

/// What a message that asks for a reply keeps of where it came from.
#[derive(Debug)]
pub(crate) struct Asked {
    endpoint: Endpoint,
    request: Sequence,
    state: Arc<AskedState>,
    /// It needs no word from here any more.
    settled: AtomicBool,
}

impl Asked {
    pub(crate) fn new(endpoint: Endpoint, request: Sequence, state: Arc<AskedState>) -> Self {
        Self { endpoint, request, state, settled: AtomicBool::new(false) }
    }

    fn route(&self) -> Route {
        Route::new(self.endpoint.clone(), Target::Caller(self.request, Arc::clone(&self.state)))
    }

    fn settle(&self, decline: bool) {
        if !self.settled.swap(true, Ordering::Relaxed) {
            let inner = &self.endpoint.inner;
            inner.connection.lock().forget_asked(inner.key, self.request, &self.state, decline);
        }
    }

    /// The reply has left, or it is of no use.
    fn settle_if<T>(&self, sent: &Result<T, SendError>) {
        if matches!(sent, Ok(_) | Err(SendError::NoSuchRequest(_))) {
            self.settle(false);
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.settle(true);
    }
}

/// Requests. A message that [is a request](Self::is_request) is answered once, with
/// [`reply`](Self::reply) or [`refuse`](Self::refuse); one that is dropped without an answer is
/// declined, and its caller gets [`CallError::Gone`].
impl Message {
    /// Whether the sender waits for a reply.
    #[must_use]
    pub fn is_request(&self) -> bool {
        matches!(self.role(), Role::Request { .. })
    }

    /// The first sequence of a request that somebody else was given before, and died.
    #[must_use]
    pub fn repeats(&self) -> Option<Sequence> {
        match self.role() {
            Role::Request { first } => first,
            _ => None,
        }
    }

    /// The request that it answers, if it is a reply.
    #[must_use]
    pub fn answers(&self) -> Option<Sequence> {
        match self.role() {
            Role::Reply { request, .. } => Some(request),
            _ => None,
        }
    }

    /// Whether it is a reply that says no.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self.role(), Role::Reply { refusal: true, .. })
    }

    /// Why nobody waits for the reply any more, as far as this connection has been told:
    /// [`CallError::Gone`], [`TimedOut`](CallError::TimedOut) or
    /// [`Cancelled`](CallError::Cancelled). None while somebody may. A reply that is sent all the
    /// same is refused and harms nobody.
    #[must_use]
    pub fn ended(&self) -> Option<CallError> {
        match self.asked()?.state.ended()? {
            OutcomeCode::TimedOut => Some(CallError::TimedOut),
            OutcomeCode::Cancelled => Some(CallError::Cancelled),
            _ => Some(CallError::Gone),
        }
    }

    /// Answers the request, and waits until the reply has its place in the order.
    ///
    /// A reply of up to `limits.reply_bytes` (4 KiB, unless the broker says otherwise) never waits
    /// for room; a longer one waits for room in its caller's queue, as any message does.
    ///
    /// # Errors
    ///
    /// [`NoSuchRequest`](SendError::NoSuchRequest) if nobody waits for it, for the second reply,
    /// and if the message is no request.
    pub fn reply(&self, message: impl Into<Outgoing>) -> Result<Receipt, SendError> {
        self.answer(message.into(), None)?.finish(None)
    }

    /// As [`reply`](Self::reply), through another lane of the endpoint that was asked.
    ///
    /// # Errors
    ///
    /// As [`reply`](Self::reply).
    ///
    /// # Panics
    ///
    /// If `lane` belongs to another endpoint.
    pub fn reply_on(
        &self,
        lane: &Lane,
        message: impl Into<Outgoing>,
    ) -> Result<Receipt, SendError> {
        self.answer(message.into(), Some(lane))?.finish(None)
    }

    /// Answers the request, and waits only until the reply has left.
    ///
    /// # Errors
    ///
    /// What is found before it leaves; the rest is in the receipt.
    pub fn start_reply(&self, message: impl Into<Outgoing>) -> Result<PendingSend, SendError> {
        self.answer(message.into(), None)?.departed()
    }

    /// Answers the request, as a future. Dropping it before it is done cancels the reply if that
    /// still waits.
    pub fn reply_async(&self, message: impl Into<Outgoing>) -> SendFuture {
        let Some(asked) = self.asked() else {
            return SendFuture::failed(SendError::NoSuchRequest(self.sequence()));
        };
        let new = asked.route().prepare(message.into(), Form::Wait, false);
        asked.settle_if(&new);
        SendFuture::new(asked.endpoint.clone(), new)
    }

    /// Answers the request with a no in the application's terms: its operation may name the
    /// offence, its payload tell more. The caller gets [`CallError::Refused`].
    ///
    /// # Errors
    ///
    /// As [`reply`](Self::reply).
    pub fn refuse(&self, message: impl Into<Outgoing>) -> Result<Receipt, SendError> {
        self.answer(message.into().refusing(), None)?.finish(None)
    }

    fn answer(&self, message: Outgoing, lane: Option<&Lane>) -> Result<PendingSend, SendError> {
        let asked = self.asked().ok_or(SendError::NoSuchRequest(self.sequence()))?;
        let mut route = asked.route();
        if let Some(lane) = lane {
            route.set_lane(lane);
        }
        let sent = route.prepare(message, Form::Wait, false).and_then(|new| route.start(new));
        asked.settle_if(&sent);
        sent
    }
}

/// Whom to ask: an endpoint by its id, or whoever owns a name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Callee {
    /// One endpoint.
    Endpoint(EndpointId),
    /// The owner of a name; of several workers, one.
    Name(Name),
}

impl From<&Name> for Callee {
    fn from(name: &Name) -> Self {
        Self::Name(name.clone())
    }
}

impl From<EndpointId> for Callee {
    fn from(id: EndpointId) -> Self {
        Self::Endpoint(id)
    }
}

impl Endpoint {
    /// Asks, and waits for the reply; see [`RemoteEndpoint::call`](crate::RemoteEndpoint::call).
    ///
    /// ```no_run
    /// use bus_client::{Bus, Outgoing};
    ///
    /// let bus = Bus::connect()?;
    /// # let calculator = bus.endpoint_id();
    /// let request = Outgoing::cbor(&(2, 2))?.operation("Add");
    /// let sum: i32 = bus.call(calculator, request)?.decode()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn call(
        &self,
        to: impl Into<Callee>,
        message: impl Into<Outgoing>,
    ) -> Result<Message, CallError> {
        self.route_to(to.into()).call(message.into())
    }

    /// Asks, and does not wait for the reply; see
    /// [`RemoteEndpoint::start_call`](crate::RemoteEndpoint::start_call).
    ///
    /// # Errors
    ///
    /// What is found before the request leaves.
    pub fn start_call(
        &self,
        to: impl Into<Callee>,
        message: impl Into<Outgoing>,
    ) -> Result<PendingCall, CallError> {
        self.route_to(to.into()).start_call(message.into())
    }

    /// Asks, as a future; see [`RemoteEndpoint::call_async`](crate::RemoteEndpoint::call_async).
    pub fn call_async(&self, to: impl Into<Callee>, message: impl Into<Outgoing>) -> CallFuture {
        self.route_to(to.into()).call_async(message.into())
    }

    fn route_to(&self, callee: Callee) -> Route {
        let target = match callee {
            Callee::Endpoint(id) => Target::Endpoint(id),
            Callee::Name(name) => name.target(),
        };
        Route::new(self.clone(), target)
    }
}
