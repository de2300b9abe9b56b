//! One stream of an ingress: bytes in, messages to a group, one at a time.
//!
//! Invariant: while a message waits for room in the group, nothing more is taken off the stream,
//! and that time does not count for the message that comes next. So the order of the stream is the
//! order in the group, and its program is held back by nothing but its own socket.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bus_core::framing::{Assembly, Unread};
use bus_core::wire::{COPY_BYTES, Handle, LaneNumber};
use bus_core::{Credentials, Draft, Endpoint, Lane, Submitted};
use bytes::{Buf, Bytes, BytesMut};

use super::{Ingress, IngressPlace};
use crate::connection::{Context, End};
use crate::inbox::{Part, Signal, Token};
use crate::protocol::Progress;
use crate::transport::Arrived;

/// The conversation with a program that does not know that there is one.
#[derive(Debug)]
pub(crate) struct IngressStream {
    token: Token,
    line: Option<Line>,
    assembly: Assembly,
    /// Since when a message waits in the bus.
    waits_since: Option<Instant>,
    /// Time that messages have waited, all together: it does not count for those behind them.
    waited: Duration,
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
    _endpoint: Endpoint,
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
        // Nobody here has a use for descriptors; they are closed.
        *arrived = Arrived::default();
        if let Some(end) = self.failed.take() {
            return Err(end);
        }
        let began = Instant::now();
        for count in 1_u32.. {
            if self.waits_since.is_some() {
                return Ok(Progress::Waits);
            }
            if count.is_multiple_of(MESSAGES_A_LOOK) && began.elapsed() > TURN {
                return Ok(Progress::TurnOver);
            }
            let now = self.counted(began);
            let found = self.assembly.next(&*self.ingress.framer, Unread::from(&unread[..]), now);
            match found.map_err(failed)? {
                None => return Ok(Progress::Needs(self.assembly.length().map_or(0, Into::into))),
                Some(length) => {
                    let message = take(unread, length);
                    self.send(message, context)?;
                }
            }
        }
        Ok(Progress::TurnOver)
    }

    fn send(&mut self, message: Bytes, context: &mut Context<'_>) -> Result<(), End> {
        let draft = Draft { attributes: self.ingress.attributes.clone(), ..Draft::from(message) };
        let line = match &mut self.line {
            Some(line) => line,
            None => {
                let line = Line::open(self.token, context)?;
                self.line.insert(line)
            }
        };
        let submitted = line.lane.submit(self.ingress.destination, draft, line.waker.clone());
        match submitted.map_err(failed)? {
            Submitted::Committed(_) => {}
            Submitted::Waiting => {
                self.waits_since = Some(Instant::now());
                *context.waiting_sends += 1;
            }
        }
        Ok(())
    }

    /// The message that waited has its outcome.
    pub(crate) fn ready(&mut self, context: &mut Context<'_>) {
        let outcome = self.line.as_mut().and_then(|line| line.lane.poll_outcome());
        let Some(outcome) = outcome else { return };
        self.stop_waiting(context);
        self.failed = outcome.err().map(failed);
    }

    /// Whether it would take anything off the stream now.
    pub(crate) fn takes_input(&self) -> bool {
        self.waits_since.is_none()
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
        let now = self.counted(Instant::now());
        if self.waits_since.is_some() {
            return Ok(());
        }
        self.assembly.expire(now).map_err(failed)
    }

    pub(crate) fn close(&mut self, context: &mut Context<'_>) {
        self.stop_waiting(context);
        self.line = None;
    }

    fn stop_waiting(&mut self, context: &mut Context<'_>) {
        if let Some(since) = self.waits_since.take() {
            self.waited += since.elapsed();
            *context.waiting_sends -= 1;
        }
    }

    fn counted(&self, now: Instant) -> Instant {
        now.checked_sub(self.waited).unwrap_or(now)
    }
}

impl Line {
    fn open(token: Token, context: &Context<'_>) -> Result<Self, End> {
        let bus = &context.shared.bus;
        let endpoint = bus.open_endpoint(Credentials::UNAUTHENTICATED).map_err(failed)?;
        let lane = endpoint.lane().map_err(failed)?;
        let part = Part::Lane(Handle::FIRST, LaneNumber::FIRST);
        let waker = Signal::waker(context.inbox, token, part);
        Ok(Self { lane, waker, _endpoint: endpoint })
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

/// How long one stream's messages are sent before others have their turn.
const TURN: Duration = Duration::from_millis(1);
/// How often the clock is looked at meanwhile.
const MESSAGES_A_LOOK: u32 = 16;
