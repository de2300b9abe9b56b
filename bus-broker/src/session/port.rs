//! One endpoint of a connection: its queue's reader, its lanes, its watches.
//!
//! Invariant: the queue's reader either is in the session's list of readable ports, or holds a
//! message that waits for its turn, or sleeps with its waker in the bus. So no message lies in a
//! queue that nobody will look at.

use std::{
    collections::{BTreeMap, VecDeque},
    task::Waker,
};

use bus_core::{
    Attributes, CreditError, Delivery, Destination, Draft, Endpoint, NoBatch, ReaderTimes,
    Receiver, Watch,
    wire::{
        BrokerFrame, Failure, FailureCode, Handle, LaneNumber, MAX_LANES, SendHead, SendId,
        SendRun, Serial,
    },
};

use super::gated::Candidacies;
use super::{failure, lane_queue::WindowExceeded, refuse, say, sending::SendingLane};
use crate::{
    connection::Context,
    inbox::{Part, Signal, Token},
    output::Output,
    roster::EndpointEntry,
};

/// An endpoint of a connection.
///
/// Fields are dropped in their order: sends, watches and requests end before the endpoint closes.
#[derive(Debug)]
pub(super) struct Port {
    handle: Handle,
    /// By their numbers; as many as the highest that was used. Most endpoints use one.
    lanes: Vec<Option<Box<SendingLane>>>,
    watches: BTreeMap<Serial, Watch>,
    pub(super) candidacies: Candidacies,
    receiver: Receiver,
    waker: Waker,
    /// It does not sleep.
    awake: bool,
    /// What was taken off the queue and waits. Rarely anything.
    held: VecDeque<Delivery>,
    /// Its client knows of receipts that come together.
    knows_batches: bool,
    /// Nothing more will come than is in the queue.
    receive_shut: bool,
    /// And the client was told that it has had all.
    end_told: bool,
    endpoint: Endpoint,
    _entry: EndpointEntry,
}

impl Port {
    pub(super) fn new(
        handle: Handle,
        endpoint: Endpoint,
        waker: Waker,
        entry: EndpointEntry,
        times: &ReaderTimes,
        knows_batches: bool,
    ) -> Self {
        let receiver = endpoint.receiver_with(times).expect("nobody else knows this endpoint yet");
        Self {
            handle,
            lanes: Vec::new(),
            watches: BTreeMap::new(),
            candidacies: Candidacies::default(),
            receiver,
            waker,
            awake: false,
            held: VecDeque::new(),
            knows_batches,
            receive_shut: false,
            end_told: false,
            endpoint,
            _entry: entry,
        }
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// It stops sleeping; false if it was awake.
    pub(super) fn wake(&mut self) -> bool {
        !std::mem::replace(&mut self.awake, true)
    }

    pub(super) fn next_delivery(&mut self) -> Option<Delivery> {
        self.held.pop_front().or_else(|| self.receiver.drain())
    }

    /// Keeps a message that has to wait.
    pub(super) fn hold(&mut self, delivery: Delivery) {
        self.held.push_front(delivery);
    }

    /// Whether messages with descriptors wait here. Takes all that is queued off the ring, to see; it
    /// is to be read again after this.
    pub(super) fn holds_descriptors(&mut self) -> bool {
        self.held.extend(std::iter::from_fn(|| self.receiver.drain()));
        self.held.iter().any(|delivery| match delivery {
            Delivery::Message { message, .. } | Delivery::FromPeer { message, .. } => {
                !message.descriptors().is_empty()
            }
            _ => false,
        })
    }

    /// Leaves its waker in the bus, unless there is something to read. True too if nothing will
    /// ever come.
    pub(super) fn fall_asleep(&mut self) -> bool {
        // Once receiving is shut, what is in the queue is all, and the bus lets nobody sleep.
        if self.receive_shut || self.receiver.sleep(self.waker.clone()) {
            self.awake = false;
        }
        !self.awake
    }

    /// Whether the client is to be told now that nothing comes any more.
    pub(super) fn take_end(&mut self) -> bool {
        let ends = self.receive_shut && !self.end_told && self.receiver.is_over();
        self.end_told |= ends;
        ends
    }

    pub(super) fn shutdown_receive(&mut self) -> bus_core::Sequence {
        let sequence = self.endpoint.shutdown_receive();
        self.receive_shut = true;
        sequence
    }

    /// Takes credit. True if that has left something to be told.
    pub(super) fn release(&mut self, messages: u32, bytes: u64) -> Result<bool, CreditError> {
        self.receiver.release(messages.into(), bytes)?;
        Ok(self.receiver.has_lone_gap())
    }

    pub(super) fn send(
        &mut self,
        token: Token,
        head: &SendHead,
        draft: (Draft, Option<Box<Failure>>),
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Result<(), WindowExceeded> {
        let id = head.id;
        let at = id.lane.index();
        if at >= self.lanes.len() {
            self.lanes.reserve_exact(at + 1 - self.lanes.len());
            self.lanes.resize_with(at + 1, || None);
        }
        let place = &mut self.lanes[at];
        let lane = match place {
            Some(lane) => lane,
            None => match self.endpoint.lane() {
                Ok(lane) => {
                    let part = Part::Lane(self.handle, id.lane);
                    let waker = Signal::waker(context.inbox, token, part);
                    let limits = context.shared.bus.limits();
                    let (account, knows_batches) = (context.account, self.knows_batches);
                    let lane = SendingLane::new(lane, waker, limits, account, knows_batches);
                    place.insert(Box::new(lane))
                }
                Err(error) => {
                    refuse(id, failure::of_limit(&error), output, context);
                    return Ok(());
                }
            },
        };
        lane.send(head, draft, output, context)
    }

    /// Sends several messages at once, if that can be; see [`SendingLane::send_batch`].
    pub(super) fn send_batch(
        &mut self,
        run: SendRun,
        output: &mut Output,
        context: &Context<'_>,
    ) -> Result<(), NoBatch> {
        let lane = self.lane_mut(run.lane.1).ok_or(NoBatch::NEVER)?;
        lane.send_batch(run, output, context)
    }

    /// A SEND has come that was not kept.
    pub(super) fn refuse_send(
        &mut self,
        head: &SendHead,
        failure: Failure,
        output: &mut Output,
        context: &mut Context<'_>,
    ) {
        match self.lane_mut(head.id.lane) {
            Some(lane) => lane.refuse_send(head, failure, output, context),
            // Nothing is in it that could depend on this one.
            None => refuse(head.id, failure, output, context),
        }
    }

    pub(super) fn cancel(&mut self, id: SendId, output: &mut Output, context: &mut Context<'_>) {
        if let Some(lane) = self.lane_mut(id.lane) {
            lane.cancel(id, output, context);
        }
    }

    pub(super) fn resume(&mut self, lane: LaneNumber) {
        if let Some(lane) = self.lane_mut(lane) {
            lane.resume();
        }
    }

    pub(super) fn lane_decided(
        &mut self,
        number: LaneNumber,
        output: &mut Output,
        context: &mut Context<'_>,
    ) {
        let handle = self.handle;
        if let Some(lane) = self.lane_mut(number) {
            lane.decided(handle, number, output, context);
        }
    }

    /// Whether a send of this lane would be handed to the bus at once; none if nothing has come by it yet.
    pub(super) fn is_clear(&self, number: LaneNumber) -> Option<bool> {
        Some(self.lanes.get(number.index())?.as_ref()?.is_clear())
    }

    fn lane_mut(&mut self, number: LaneNumber) -> Option<&mut SendingLane> {
        self.lanes.get_mut(number.index())?.as_deref_mut()
    }

    /// Answers every send that has no answer: it is cancelled, unless the bus was faster.
    pub(super) fn cancel_sends(&mut self, output: &mut Output, context: &mut Context<'_>) {
        let lanes = (0..MAX_LANES).filter_map(LaneNumber::new);
        for (number, lane) in lanes.zip(&mut self.lanes) {
            if let Some(lane) = lane {
                lane.cancel_all(self.handle, number, output, context);
            }
        }
    }

    /// Lanes whose heads wait in the bus.
    pub(super) fn waiting_lanes(&self) -> usize {
        let lanes = self.lanes.iter().flatten();
        lanes.filter(|lane| lane.is_waiting()).count()
    }

    pub(super) fn watch(
        &mut self,
        token: Token,
        serial: Serial,
        (destination, attributes): (Destination, Attributes),
        output: &mut Output,
        context: &mut Context<'_>,
    ) {
        if self.watches.contains_key(&serial) {
            let text = format!("watch {serial} has not been answered yet");
            let failure = Failure::new(FailureCode::BadRequest, text);
            return self.say_watch_failed(serial, failure, output);
        }
        let part = Part::Watch(self.handle, serial);
        let waker = Signal::waker(context.inbox, token, part);
        match self.endpoint.watch_writable_for(destination, attributes, waker) {
            Ok(Some(watch)) => {
                self.watches.insert(serial, watch);
            }
            Ok(None) => self.say_writable(serial, output),
            Err(error) => self.say_watch_failed(serial, failure::of_watch(&error), output),
        }
    }

    pub(super) fn unwatch(&mut self, serial: Serial) {
        self.watches.remove(&serial);
    }

    pub(super) fn watch_decided(&mut self, serial: Serial, output: &mut Output) {
        let Some(outcome) = self.watches.get_mut(&serial).and_then(Watch::outcome) else {
            return;
        };
        self.watches.remove(&serial);
        match outcome {
            Ok(()) => self.say_writable(serial, output),
            Err(error) => self.say_watch_failed(serial, failure::of_send(&error), output),
        }
    }

    /// Answers every watch that has no answer.
    pub(super) fn cancel_watches(&mut self, output: &mut Output) {
        for serial in std::mem::take(&mut self.watches).into_keys() {
            let failure = Failure::new(FailureCode::Cancelled, "the endpoint is closed");
            self.say_watch_failed(serial, failure, output);
        }
    }

    fn say_writable(&self, serial: Serial, output: &mut Output) {
        let endpoint = self.handle;
        say(BrokerFrame::Writable { endpoint, serial }, output);
    }

    fn say_watch_failed(&self, serial: Serial, failure: Failure, output: &mut Output) {
        let frame =
            BrokerFrame::Error { endpoint: self.handle, serial, failure: Box::new(failure) };
        say(frame, output);
    }
}
