//! One stream of an ingress: bytes in, messages to a group or requests to a name, replies out.
//!
//! Invariant: while a message waits for room, or as many requests as may be are unanswered, nothing
//! more is taken off the stream, and that time does not count for the message that comes next. So
//! the order of the stream is the order on the bus, and its program is held back by nothing but its
//! own socket.
//!
//! Replies go out in the order of their requests, whichever is answered first: the program counts
//! on that, because its messages are not numbered for anybody here. Therefore a request that gets
//! no reply ends the stream: there is nothing that could stand in its place.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bus_core::framing::{Assembly, Unread};
use bus_core::wire::{COPY_BYTES, Handle, LaneNumber};
use bus_core::{
    Credentials, Delivery, Destination, Draft, Endpoint, Kind, Lane, Message, Receipt, Receiver,
    SendError, Sequence, Submitted,
};
use bytes::{Buf, Bytes, BytesMut};

use super::{Ingress, IngressPlace};
use crate::broker::Shared;
use crate::connection::{Context, End};
use crate::inbox::{Part, Signal, Token};
use crate::output::Output;
use crate::protocol::Progress;
use crate::roster::EndpointEntry;
use crate::service::{Asked, NotStarted, Wait};
use crate::tally::Counter;
use crate::transport::Arrived;

/// The conversation with a program that does not know that there is one.
#[derive(Debug)]
pub(crate) struct IngressStream {
    token: Token,
    line: Option<Line>,
    assembly: Assembly,
    /// Since when nothing is taken off the stream.
    waits_since: Option<Instant>,
    /// Time that messages have waited, all together: it does not count for those behind them.
    waited: Duration,
    /// A message waits for room in the bus.
    is_submitted: bool,
    /// A request, while the service that it goes to is being started.
    parked: Option<(Draft, Arc<Wait>)>,
    /// A request once more, while it waits in the bus: should its service go meanwhile, that is
    /// started again.
    again: Option<Draft>,
    /// The program will send nothing more.
    input_over: bool,
    failed: Option<End>,
    ingress: Arc<Ingress>,
    _place: IngressPlace,
}

/// The way onto the bus, opened with the first message.
///
/// Fields are dropped in their order: what waits ends before the endpoint closes.
#[derive(Debug)]
struct Line {
    lane: Lane,
    waker: Waker,
    replies: Option<Replies>,
    _endpoint: Endpoint,
    _entry: EndpointEntry,
}

/// Requests that are not answered to the program, in their order, and their replies as they come.
#[derive(Debug)]
struct Replies {
    open: VecDeque<(Sequence, Option<Arc<Message>>)>,
    most: usize,
    receiver: Receiver,
    waker: Waker,
    /// It does not sleep.
    awake: bool,
}

impl IngressStream {
    /// `receive_buffer` is the socket's, in bytes: the longest message unless the ingress says.
    pub(crate) fn new(token: Token, place: IngressPlace, receive_buffer: usize) -> Self {
        let ingress = Arc::clone(&place.ingress);
        let bound = |bytes: u32| usize::try_from(bytes).unwrap_or(usize::MAX);
        let maximum = match ingress.maximum {
            Some(maximum) => bound(maximum.get()),
            None => receive_buffer.min(bound(ingress.payload_bytes)),
        };
        let maximum = NonZeroUsize::new(maximum).unwrap_or(NonZeroUsize::MIN);
        Self {
            token,
            line: None,
            assembly: Assembly::new(maximum, ingress.timeout),
            waits_since: None,
            waited: Duration::ZERO,
            is_submitted: false,
            parked: None,
            again: None,
            input_over: false,
            failed: None,
            ingress,
            _place: place,
        }
    }

    /// Takes whole messages off `unread` until one has to wait.
    pub(crate) fn input(
        &mut self,
        unread: &mut BytesMut,
        arrived: &mut Arrived,
        context: &mut Context<'_>,
    ) -> Result<Progress, End> {
        let (mut messages, mut bytes) = (0, 0);
        let progress = self.take_messages(unread, arrived, context, |message| {
            messages += 1;
            bytes += message.len() as u64;
        });
        let counts = &self.ingress.counts;
        counts.messages.add(messages);
        counts.bytes.add(bytes);
        progress
    }

    fn take_messages(
        &mut self,
        unread: &mut BytesMut,
        arrived: &mut Arrived,
        context: &mut Context<'_>,
        mut count: impl FnMut(&Bytes),
    ) -> Result<Progress, End> {
        // Nobody here has a use for descriptors; they are closed.
        *arrived = Arrived::default();
        self.failure()?;
        let began = Instant::now();
        for number in 1_u32.. {
            if self.is_held() {
                self.waits_since.get_or_insert(began);
                return Ok(Progress::Waits);
            }
            if number.is_multiple_of(MESSAGES_A_LOOK) && began.elapsed() > TURN {
                return Ok(Progress::TurnOver);
            }
            let now = self.counted(began);
            let found = self.assembly.next(&*self.ingress.framer, Unread::from(&unread[..]), now);
            match found.map_err(failed)? {
                None => return Ok(Progress::Needs(self.assembly.length().map_or(0, Into::into))),
                Some(length) => {
                    let message = take(unread, length);
                    count(&message);
                    self.send(message, context)?;
                }
            }
        }
        Ok(Progress::TurnOver)
    }

    fn send(&mut self, message: Bytes, context: &mut Context<'_>) -> Result<(), End> {
        let mut draft =
            Draft { attributes: self.ingress.attributes.clone(), ..Draft::from(message) };
        if self.ingress.asks() {
            draft.kind = Kind::Request { repeatable: false };
        }
        if self.line.is_none() {
            self.line = Some(Line::open(self.token, &self.ingress, context)?);
        }
        self.hand_over(draft, context)
    }

    /// Hands a message to the bus, or has the service started that it goes to: whoever asks through
    /// an ingress is as good as another client.
    fn hand_over(&mut self, mut draft: Draft, context: &mut Context<'_>) -> Result<(), End> {
        let Some(line) = &mut self.line else { return Ok(()) };
        let to = self.ingress.destination;
        loop {
            let mut again = None;
            if let (Destination::Name(id), Some(name)) = (to, &self.ingress.name) {
                let Shared { services, bus, .. } = &**context.shared;
                // It is one that somebody has asked for from here on.
                let is_service = services.knows(id) || services.id_of(bus, name).is_some();
                // The requests of a stream have no deadline of their own to wait for.
                match services.ask(bus, id, || context.client.whose(), || None, &line.waker) {
                    Asked::Go => {}
                    Asked::Wait(wait) => {
                        self.parked = Some((draft, wait));
                        return Ok(());
                    }
                    Asked::Failed(text) => return Err(End::Ingress(text)),
                }
                again = is_service.then(|| Draft {
                    attributes: draft.attributes.clone(),
                    payload: draft.payload.clone(),
                    kind: draft.kind,
                    ..Draft::default()
                });
            }
            match (line.lane.submit(to, draft, line.waker.clone()), again) {
                (Ok(Submitted::Committed(receipt)), _) => line.asked(&receipt),
                (Ok(Submitted::Waiting), again) => {
                    self.again = again;
                    self.is_submitted = true;
                    *context.waiting_sends += 1;
                }
                // Its owner has gone just now.
                (Err(SendError::NoSuchName(_)), Some(again)) => {
                    draft = again;
                    continue;
                }
                (Err(error), _) => return Err(failed(error)),
            }
            return Ok(());
        }
    }

    /// The service that a request waits for has come, or will not.
    fn take_service(&mut self, context: &mut Context<'_>) {
        let outcome = self.parked.as_ref().and_then(|(_, wait)| wait.outcome());
        let Some(outcome) = outcome else { return };
        let Some((draft, _)) = self.parked.take() else { return };
        let went = match outcome {
            Ok(()) => self.hand_over(draft, context),
            Err(NotStarted::Failed(text)) => Err(End::Ingress(text.to_string())),
            Err(NotStarted::TimedOut) => Err(failed(SendError::DeadlinePassed)),
        };
        if let Err(end) = went {
            self.failed = Some(end);
        }
        self.stop_waiting();
    }

    /// The message that waited has its outcome, or a reply has come.
    pub(crate) fn ready(&mut self, part: Part, context: &mut Context<'_>) {
        self.take_service(context);
        // Also before a reply is looked at: it cannot be there before its request is known here.
        self.take_outcome(context);
        if let Part::Queue(_) = part
            && let Some(replies) = self.replies()
        {
            replies.awake = true;
        }
    }

    fn take_outcome(&mut self, context: &mut Context<'_>) {
        let outcome = self.line.as_mut().and_then(|line| line.lane.poll_outcome());
        let Some(outcome) = outcome else { return };
        self.is_submitted = false;
        *context.waiting_sends -= 1;
        let again = self.again.take();
        match (outcome, again) {
            (Err(SendError::NoSuchName(_)), Some(draft)) => {
                if let Err(end) = self.hand_over(draft, context) {
                    self.failed = Some(end);
                }
            }
            (Ok(receipt), _) => {
                if let Some(line) = &mut self.line {
                    line.asked(&receipt);
                }
            }
            (Err(error), _) => self.failed = Some(failed(error)),
        }
        self.stop_waiting();
    }

    /// Puts the replies whose turn it is into `output`, while it has room.
    pub(crate) fn fill(&mut self, output: &mut Output) {
        let ingress = Arc::clone(&self.ingress);
        let Some(replies) = self.replies() else { return };
        if let Err(end) = replies.fill(output, &ingress.counts.replies) {
            self.failed = Some(end);
        }
        self.stop_waiting();
    }

    /// Whether `fill` would find replies now.
    pub(crate) fn has_more(&self) -> bool {
        let replies = self.line.as_ref().and_then(|line| line.replies.as_ref());
        replies.is_some_and(|replies| replies.awake)
    }

    /// The program has closed its end, or at least will not write any more. True if there is
    /// something to wait for yet.
    pub(crate) fn end_input(&mut self) -> bool {
        self.input_over = true;
        !self.is_done()
    }

    /// Why the stream ends, if what came from the bus has ended it.
    pub(crate) fn failure(&mut self) -> Result<(), End> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Whether nothing comes in any more, and nothing is to go out.
    pub(crate) fn is_done(&self) -> bool {
        let replies = self.line.as_ref().and_then(|line| line.replies.as_ref());
        self.input_over && replies.is_none_or(|replies| replies.open.is_empty())
    }

    /// Whether it would take anything off the stream now.
    pub(crate) fn takes_input(&self) -> bool {
        !(self.is_held() || self.input_over)
    }

    /// When the message under way is late; `None` if none is, or if the stream is not read.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.waits_since.is_some() {
            return None;
        }
        self.assembly.deadline()?.checked_add(self.waited)
    }

    /// Ends the stream if the message under way is late.
    pub(crate) fn expire(&mut self) -> Result<(), End> {
        if self.waits_since.is_some() {
            return Ok(());
        }
        let now = self.counted(Instant::now());
        self.assembly.expire(now).map_err(failed)
    }

    /// It has ended with an error.
    pub(crate) fn count_failure(&self) {
        self.ingress.counts.failed.add(1);
    }

    pub(crate) fn close(&mut self, context: &mut Context<'_>) {
        if std::mem::take(&mut self.is_submitted) {
            *context.waiting_sends -= 1;
        }
        (self.parked, self.again) = (None, None);
        self.line = None;
    }

    fn is_held(&self) -> bool {
        let replies = self.line.as_ref().and_then(|line| line.replies.as_ref());
        self.is_submitted
            || self.parked.is_some()
            || replies.is_some_and(|replies| replies.open.len() >= replies.most)
    }

    fn stop_waiting(&mut self) {
        if !self.is_held()
            && let Some(since) = self.waits_since.take()
        {
            self.waited += since.elapsed();
        }
    }

    fn replies(&mut self) -> Option<&mut Replies> {
        self.line.as_mut()?.replies.as_mut()
    }

    fn counted(&self, now: Instant) -> Instant {
        now.checked_sub(self.waited).unwrap_or(now)
    }
}

impl Line {
    fn open(token: Token, ingress: &Ingress, context: &Context<'_>) -> Result<Self, End> {
        let bus = &context.shared.bus;
        let endpoint =
            bus.open_endpoint_for(Credentials::UNAUTHENTICATED, context.account).map_err(failed)?;
        let lane = endpoint.lane().map_err(failed)?;
        let waker = |part| Signal::waker(context.inbox, token, part);
        let replies = ingress.asks().then(|| Replies {
            open: VecDeque::new(),
            most: usize::from(bus.limits().requests).min(MOST_REQUESTS),
            receiver: (endpoint.receiver_with(context.inbox.reader_times(bus)))
                .expect("nobody else knows this endpoint"),
            waker: waker(Part::Queue(Handle::FIRST)),
            awake: true,
        });
        let waker = waker(Part::Lane(Handle::FIRST, LaneNumber::FIRST));
        let entry = EndpointEntry::new(context.shared, context.client, endpoint.id());
        Ok(Self { lane, waker, replies, _endpoint: endpoint, _entry: entry })
    }

    /// A message has taken its place; if it was a request, its reply is owed.
    fn asked(&mut self, receipt: &Receipt) {
        if let Some(replies) = &mut self.replies {
            replies.open.push_back((receipt.sequence, None));
        }
    }
}

impl Replies {
    fn fill(&mut self, output: &mut Output, written: &Counter) -> Result<(), End> {
        while self.awake && output.has_room_for_messages() {
            match self.receiver.drain() {
                Some(delivery) => self.take(delivery)?,
                None if self.receiver.sleep(self.waker.clone()) => self.awake = false,
                None => {}
            }
            self.say(output, written)?;
        }
        Ok(())
    }

    fn take(&mut self, delivery: Delivery) -> Result<(), End> {
        match delivery {
            Delivery::Message { message, .. } => {
                let answers = message.answers();
                match self.open.iter_mut().find(|(request, _)| Some(*request) == answers) {
                    Some((_, reply)) => *reply = Some(message),
                    // Somebody has sent to this endpoint of his own accord: it has no use for that.
                    None => self.release(&message)?,
                }
            }
            Delivery::Outcome(outcome) => {
                let why = outcome.why;
                return Err(End::Ingress(format!("a request got no reply: {why:?}")));
            }
            // It is in no group and watches nothing.
            _ => {}
        }
        Ok(())
    }

    fn say(&mut self, output: &mut Output, written: &Counter) -> Result<(), End> {
        while let Some((_, Some(reply))) = self.open.front() {
            let reply = Arc::clone(reply);
            self.open.pop_front();
            let payload = reply.payload();
            if payload.len() > SHARE_BYTES {
                output.push_shared(payload.as_bytes().clone());
            } else {
                output.frames().extend_from_slice(payload);
            }
            self.release(&reply)?;
            written.add(1);
        }
        Ok(())
    }

    fn release(&mut self, message: &Message) -> Result<(), End> {
        self.receiver.release(1, message.charged_bytes()).map_err(failed)
    }
}

impl Ingress {
    /// Whether its messages are requests.
    fn asks(&self) -> bool {
        !matches!(self.destination, Destination::Group(_))
    }
}

fn failed(error: impl std::error::Error) -> End {
    End::Ingress(error.to_string())
}

/// A long message stays in the memory that it was read into, unless that is mostly others'.
fn take(unread: &mut BytesMut, length: usize) -> Bytes {
    if length > COPY_BYTES && unread.capacity() <= 2 * length {
        return unread.split_to(length).freeze();
    }
    let message = Bytes::copy_from_slice(&unread[..length]);
    unread.advance(length);
    message
}

/// Requests of one stream that may be unanswered.
const MOST_REQUESTS: usize = 16;
/// Payloads above this go to the socket from where they lie.
const SHARE_BYTES: usize = 4 << 10;
/// How long one stream's messages are sent before others have their turn.
const TURN: Duration = Duration::from_millis(1);
/// How often the clock is looked at meanwhile.
const MESSAGES_A_LOOK: u32 = 16;
