//! Sends, from their lane to their answer.
//!
//! Only [`pump`](State::pump) puts sends into the outbox. It keeps to the lane's window and order, to
//! one frame with descriptors under way, and to a bound for the outbox.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bus_core::wire::{
    ClientFrame, Failure, FailureCode, LENT_BYTES, LaneNumber, SendFlags, SendHead, SendId, Serial,
};
use bus_core::{Attributes, Destination, EndpointId, Limits, Receipt};
use bytes::Bytes;

use super::apart::Again;
use super::call::CallError;
use super::target::Target;
use super::{Entry, Flagged, LentOut, State, TOO_MUCH_PENDING, Urgency, handle};
use crate::clock::Tick;
use crate::error::SendError;
use crate::inbox::Amount;
use crate::lane::Departure;
use crate::waits::Wake;

/// What a send does when there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// It waits.
    Wait,
    /// It is refused, and so is what its lane has behind it until the application resumes.
    TryPipelined,
    /// It is refused. Nothing is behind it, because nothing follows it before its answer.
    TryAlone,
}

/// A message on its way.
#[derive(Debug)]
pub(crate) struct NewSend {
    pub(crate) endpoint: usize,
    pub(crate) lane: LaneNumber,
    pub(crate) target: Target,
    pub(crate) attributes: Attributes,
    pub(crate) payload: Bytes,
    /// Whether its bytes are not to be copied, and how it travels then.
    pub(crate) flagged: Flagged,
    pub(crate) descriptors: Option<Arc<[OwnedFd]>>,
    pub(crate) form: Form,
    pub(crate) independent: bool,
    /// Whether to look the group up again, once, if the one that we know has ended. Not for
    /// pipelined sends: others may have left behind them.
    pub(crate) retry_stale: bool,
    /// Nobody waits for its answer yet.
    pub(crate) unhurried: bool,
    pub(crate) ask: Ask,
}

/// What a message asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ask {
    #[default]
    Nothing,
    /// A reply, by a time in nanoseconds since the Unix epoch, or 0.
    Reply { repeatable: bool, deadline: u64 },
    /// It is a reply that says no.
    Refusal,
}

#[derive(Debug)]
pub(super) struct SendEntry {
    pub(super) new: Box<NewSend>,
    pub(super) stage: Stage,
    pub(super) cancel: Option<CancelReason>,
    pub(super) wake: Option<Wake>,
    /// Wake already when it leaves, not only when it is answered.
    pub(super) wake_when_left: bool,
    pub(super) abandoned: bool,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// In its lane's queue. `own_room`: it came back for want of its sender's own room.
    Queued {
        own_room: bool,
    },
    /// With the broker.
    Left {
        to: Destination,
        /// Which departure of its lane it was.
        departure: u64,
    },
    Answered(Result<Receipt, SendError>),
}

/// Why a send is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CancelReason {
    Asked,
    TimedOut,
    /// This endpoint has to read first.
    Deadlock(EndpointId),
}

impl CancelReason {
    pub(super) fn error(self) -> SendError {
        match self {
            Self::Asked => SendError::Cancelled,
            Self::TimedOut => SendError::TimedOut,
            Self::Deadlock(endpoint) => SendError::WouldDeadlock(endpoint),
        }
    }
}

impl SendEntry {
    pub(super) fn id(&self, serial: Serial) -> SendId {
        SendId { endpoint: handle(self.new.endpoint), lane: self.new.lane, serial }
    }

    pub(super) fn charge(&self) -> u64 {
        let payload = match self.new.flagged {
            // What refers to it.
            Flagged::Lent(_) | Flagged::Left(_) => LENT_BYTES,
            Flagged::No | Flagged::Inline => self.new.payload.len(),
        };
        (self.new.attributes.encoded().len() + payload) as u64
    }

    /// What a refusal means for this send.
    pub(super) fn error(&self, failure: &Failure, limits: &Limits) -> SendError {
        let text = || failure.text.clone();
        match (&failure.code, &self.new.target) {
            (FailureCode::NoSuchGroup, Target::Group(group)) => {
                SendError::NoSuchGroup(group.name().clone())
            }
            (FailureCode::GroupEnded, Target::Group(group)) => {
                SendError::GroupEnded(group.name().clone())
            }
            (FailureCode::NoSuchName, Target::Name(name)) => {
                SendError::NoSuchName(name.name().clone())
            }
            (FailureCode::NoSuchEndpoint, Target::Endpoint(id)) => SendError::NoSuchEndpoint(*id),
            (FailureCode::EndpointClosed, Target::Endpoint(id)) => SendError::ReceiverShut(*id),
            (FailureCode::NotAMember, Target::Group(group)) => {
                SendError::NotAMember(group.name().clone())
            }
            (FailureCode::WouldBlock, _) => {
                SendError::WouldBlock { full: failure.full.clone(), full_count: failure.full_count }
            }
            (FailureCode::Cancelled, _) => self.cancel.unwrap_or(CancelReason::Asked).error(),
            (FailureCode::OwnQueueFull, _) => match self.cancel {
                Some(reason) => reason.error(),
                None => SendError::OwnQueueFull,
            },
            (FailureCode::LaneRefused, _) => SendError::LaneRefused,
            (FailureCode::NoSuchRequest, Target::Caller(request, _)) => {
                SendError::NoSuchRequest(*request)
            }
            (FailureCode::TimedOut, _) => SendError::TimedOut,
            (FailureCode::TooLarge, _) => SendError::TooLarge {
                bytes: self.new.payload.len() as u64,
                limit: u64::from(limits.payload_bytes),
            },
            (FailureCode::RecipientStalled, _) => SendError::RecipientStalled,
            (FailureCode::NoBuffers, _) => SendError::NoBuffers {
                limit: failure.limit.clone().unwrap_or_default(),
                text: text(),
            },
            (FailureCode::LimitExceeded, _) => SendError::LimitExceeded(text()),
            (FailureCode::PermissionDenied, _) => SendError::PermissionDenied(text()),
            (code, _) => SendError::Refused { code: code.as_str().to_owned(), text: text() },
        }
    }
}

impl State {
    /// Puts a send into its lane. It leaves at once if it can.
    pub(crate) fn send(&mut self, new: Box<NewSend>) -> Result<Serial, SendError> {
        if let Target::Caller(request, asked) = &new.target
            && asked.is_lost()
        {
            return Err(SendError::NoSuchRequest(*request));
        }
        if let Some(gone) = &self.gone {
            // What may wait, and does not go by an id of the old broker's, waits for the next one.
            let by_name = matches!(new.target, Target::Group(_) | Target::Name(_));
            if !self.is_away() || new.form != Form::Wait || !by_name {
                return Err(SendError::BrokerGone(gone.clone()));
            }
        }
        self.admit_flagged(&new.flagged)?;
        let (key, lane) = (new.endpoint, new.lane);
        let serial = self.pending.insert(|| {
            Entry::Send(SendEntry {
                new,
                stage: Stage::Queued { own_room: false },
                cancel: None,
                wake: None,
                wake_when_left: false,
                abandoned: false,
            })
        });
        let serial = serial.ok_or_else(|| SendError::LimitExceeded(TOO_MUCH_PENDING.to_owned()))?;
        self.queued_sends += 1;
        self.endpoints[key].lanes[lane.index()].push(serial);
        self.pump(key, lane);
        self.flush(Urgency::Soon);
        Ok(serial)
    }

    /// Whether the send has left, or is answered already.
    ///
    /// # Errors
    ///
    /// The answer, if it is an error. The send's entry is gone then.
    pub(crate) fn departure_of(&mut self, serial: Serial) -> Result<bool, SendError> {
        match self.pending.get(serial) {
            Some(Entry::Send(SendEntry { stage: Stage::Queued { .. }, .. })) => Ok(false),
            Some(Entry::Send(SendEntry { stage: Stage::Answered(Err(_)), .. })) => {
                match self.take_answer(serial) {
                    Some(Err(error)) => Err(error),
                    _ => unreachable!("it was there a moment ago"),
                }
            }
            _ => Ok(true),
        }
    }

    /// Takes the send's answer, and its entry with it.
    pub(crate) fn take_answer(&mut self, serial: Serial) -> Option<Result<Receipt, SendError>> {
        match self.pending.get(serial) {
            Some(Entry::Send(SendEntry { stage: Stage::Answered(_), .. })) => {}
            _ => return None,
        }
        match self.pending.remove(serial) {
            Some(Entry::Send(SendEntry { stage: Stage::Answered(answer), .. })) => Some(answer),
            _ => unreachable!("it was there a moment ago"),
        }
    }

    /// Takes a send back: at once if it has not left, else the broker decides.
    pub(crate) fn cancel(&mut self, serial: Serial, reason: CancelReason) {
        let send = match self.pending.get_mut(serial) {
            Some(Entry::Send(send)) => send,
            Some(Entry::Request(_)) => {
                self.cancel_request(serial, reason);
                return self.flush(Urgency::Soon);
            }
            _ => return,
        };
        if send.cancel.is_some() {
            return;
        }
        match send.stage {
            Stage::Answered(_) => {}
            Stage::Queued { .. } => {
                send.cancel = Some(reason);
                self.end_send(serial, Err(reason.error()));
            }
            Stage::Left { .. } => {
                send.cancel = Some(reason);
                let id = send.id(serial);
                self.outbox.put(&ClientFrame::Cancel(id));
                self.hurry(serial);
            }
        }
        self.flush(Urgency::Soon);
    }

    /// Somebody waits for the answer of this send, so its receipt is not to be put off.
    pub(crate) fn hurry(&mut self, serial: Serial) {
        let Some(Entry::Send(send)) = self.pending.get_mut(serial) else {
            return;
        };
        send.new.unhurried = false;
        let Stage::Left { departure, .. } = send.stage else {
            return;
        };
        let lane = &mut self.endpoints[send.new.endpoint].lanes[send.new.lane.index()];
        if lane.is_put_off(departure) {
            lane.hurry();
            self.outbox.put(&ClientFrame::Flush);
        }
    }

    /// Nobody will ask for the answer of this send or call.
    pub(crate) fn abandon(&mut self, serial: Serial) {
        self.unblock(serial);
        let answered = match self.pending.get_mut(serial) {
            Some(Entry::Send(send)) => {
                send.abandoned = true;
                send.wake = None;
                matches!(send.stage, Stage::Answered(_))
            }
            Some(Entry::Call(call)) => {
                call.abandoned = true;
                call.wake = None;
                call.answer.is_some()
            }
            Some(Entry::Request(_)) => return self.abandon_request(serial),
            _ => false,
        };
        if answered {
            self.pending.remove(serial);
        }
    }

    /// Lets every send leave that can.
    pub(super) fn pump_all(&mut self) {
        if self.queued_sends > 0 {
            for key in self.keys() {
                self.pump_endpoint(key);
            }
        }
    }

    pub(super) fn pump_endpoint(&mut self, key: usize) {
        let lanes = self.endpoints.get(key).map_or(0, |e| e.lanes.len());
        if self.queued_sends == 0 {
            return;
        }
        for number in 0..lanes {
            if let Some(lane) = u8::try_from(number).ok().and_then(LaneNumber::new) {
                self.pump(key, lane);
            }
        }
    }

    /// Lets sends of a lane leave, in their order, as far as they can.
    pub(super) fn pump(&mut self, key: usize, lane: LaneNumber) {
        let window = window_of(&self.limits);
        if self.endpoints[key].lanes[lane.index()].ends_recall() {
            self.put_resume(key, lane);
        }
        while self.gone.is_none()
            && self.outbox.bytes() < OUTBOX_BYTES
            && let Some(serial) = self.endpoints[key].lanes[lane.index()].next(window)
        {
            if !self.leave(serial) {
                return;
            }
        }
    }

    /// Lets the first send of a lane leave; `false` if it has to wait.
    pub(super) fn leave(&mut self, serial: Serial) -> bool {
        let Some(Entry::Send(send)) = self.pending.get(serial) else {
            unreachable!("what is in a lane has an entry");
        };
        let (key, lane) = (send.new.endpoint, send.new.lane);
        let file = matches!(send.new.flagged, Flagged::Lent(LentOut::File(..)));
        if (file || send.new.descriptors.is_some()) && self.descriptors_under_way {
            return false;
        }
        if matches!(send.stage, Stage::Queued { own_room: true }) {
            if !self.endpoints[key].inbox.has_room() {
                return false;
            }
            if let Some(credit) = self.endpoints[key].inbox.return_all(Tick::now()) {
                // Not by put_credit, which would come back here.
                self.outbox.put(&ClientFrame::Credit {
                    endpoint: handle(key),
                    messages: credit.messages,
                    bytes: credit.bytes,
                });
            }
        }
        let lends = matches!(send.new.flagged, Flagged::Lent(_));
        if lends && send.new.target.destination().is_some() {
            self.lend_now(serial);
        }
        self.note_traffic(1);
        let Some(Entry::Send(send)) = self.pending.get_mut(serial) else {
            unreachable!("it was there a moment ago");
        };
        let Some(to) = send.new.target.destination() else {
            let target = send.new.target.clone();
            return match self.resolve(key, &target, serial) {
                Ok(()) => false,
                Err(CallError::Gone(_)) => false,
                Err(CallError::Failed(_)) => {
                    let text = TOO_MUCH_PENDING.to_owned();
                    self.end_send(serial, Err(SendError::LimitExceeded(text)));
                    true
                }
            };
        };
        let endpoint = &mut self.endpoints[key];
        let alone = send.new.form == Form::TryAlone;
        let charge = send.charge();
        let lane_state = &endpoint.lanes[lane.index()];
        let unhurried = send.new.unhurried && (send.wake.is_none() || send.wake_when_left);
        let kind = match alone {
            true => Departure::Alone,
            false if unhurried && lane_state.may_put_off(charge, window_of(&self.limits)) => {
                Departure::PutOff
            }
            false => Departure::InRow,
        };
        let mut flags = SendFlags::empty();
        flags.set(SendFlags::RECEIPT_MAY_WAIT, kind == Departure::PutOff);
        flags.set(SendFlags::NONBLOCK, send.new.form != Form::Wait);
        flags.set(SendFlags::INDEPENDENT, send.new.independent);
        flags.set(SendFlags::APART, matches!(send.new.flagged, Flagged::Left(_)));
        flags.set(SendFlags::REFUSAL, send.new.ask == Ask::Refusal);
        let mut deadline = 0;
        if let Ask::Reply { repeatable, deadline: until } = send.new.ask {
            flags.set(SendFlags::REQUEST, true);
            flags.set(SendFlags::REPEATABLE, repeatable);
            deadline = until;
        }
        let descriptors = send.new.descriptors.clone();
        let head = SendHead {
            id: send.id(serial),
            destination: to,
            flags,
            deadline,
            descriptors: descriptors
                .as_ref()
                .map_or(0, |d| u8::try_from(d.len()).unwrap_or(u8::MAX)),
        };
        let has_descriptors = descriptors.is_some();
        let put = self.outbox.put_send(&head, &send.new.attributes, &send.new.payload, descriptors);
        if put.is_err() {
            let bytes = send.new.payload.len() as u64;
            let limit = u64::from(self.limits.payload_bytes);
            self.end_send(serial, Err(SendError::TooLarge { bytes, limit }));
            return true;
        }
        let departure = endpoint.lanes[lane.index()].leave(serial, charge, kind);
        send.stage = Stage::Left { to, departure };
        let wake = if send.wake_when_left { send.wake.take() } else { None };
        self.queued_sends -= 1;
        self.descriptors_under_way |= has_descriptors;
        if let Some(wake) = wake {
            self.waits.wake(wake, &self.transport);
        }
        true
    }

    /// What a send lends is lent from now on, and its payload is what refers to it.
    fn lend_now(&mut self, serial: Serial) {
        let Some(Entry::Send(send)) = self.pending.get_mut(serial) else { return };
        let Flagged::Lent(out) = std::mem::take(&mut send.new.flagged) else { return };
        if let LentOut::Buffer(buffer, length) = &out
            && !self.knows(buffer)
        {
            // It was written before the broker of now was there.
            let payload = buffer.copy(*length).into();
            if let Some(Entry::Send(send)) = self.pending.get_mut(serial) {
                (send.new.flagged, send.new.payload) = (Flagged::Inline, payload);
            }
            return;
        }
        let (flagged, reference, file) = self.lend(out);
        let Some(Entry::Send(send)) = self.pending.get_mut(serial) else {
            unreachable!("it was there a moment ago");
        };
        (send.new.flagged, send.new.payload) = (flagged, reference);
        if let Some(file) = file {
            let own =
                send.new.descriptors.take().map(|own| own.iter().map(OwnedFd::try_clone).collect());
            let mut all: Vec<OwnedFd> = own.and_then(Result::ok).unwrap_or_default();
            all.push(file);
            send.new.descriptors = Some(all.into());
        }
    }

    /// A send that was refused is to leave once more: what it lent is to be lent anew. False if that is
    /// not to be had any more.
    fn lend_again(&mut self, serial: Serial) -> bool {
        let Some(Entry::Send(send)) = self.pending.get_mut(serial) else { return false };
        let Flagged::Left(number) = send.new.flagged else { return true };
        let has_file = send.new.descriptors.is_some();
        let Some(again) = self.take_lent(number, has_file) else { return false };
        let Some(Entry::Send(send)) = self.pending.get_mut(serial) else { return false };
        match again {
            Again::Buffer(out) => send.new.flagged = Flagged::Lent(out),
            Again::Reference(number, reference) => {
                (send.new.flagged, send.new.payload) = (Flagged::Left(number), reference);
            }
        }
        true
    }

    /// Whether the send is first in its lane and its group is being looked up.
    pub(super) fn waits_for_lookup(&self, serial: Serial) -> bool {
        let Some(Entry::Send(send)) = self.pending.get(serial) else {
            return false;
        };
        let lane = &self.endpoints[send.new.endpoint].lanes[send.new.lane.index()];
        matches!(send.stage, Stage::Queued { .. })
            && lane.front() == Some(serial)
            && send.new.target.destination().is_none()
    }

    /// Checks that an answer belongs to a send that has left, and says whether that is a request.
    pub(super) fn check_send(&self, frame: &str, id: SendId) -> Result<bool, String> {
        match self.pending.get(id.serial) {
            Some(Entry::Send(send))
                if send.id(id.serial) == id && matches!(send.stage, Stage::Left { .. }) =>
            {
                Ok(matches!(send.new.ask, Ask::Reply { .. }))
            }
            _ => Err(format!(
                "{frame} for a send that was not made: serial {} of handle {} in lane {}",
                id.serial, id.endpoint, id.lane
            )),
        }
    }

    pub(super) fn refused(&mut self, id: SendId, failure: &Failure) {
        let Some(Entry::Send(send)) = self.pending.get_mut(id.serial) else {
            unreachable!("checked by the caller");
        };
        let key = send.new.endpoint;
        let lane = &mut self.endpoints[key].lanes[id.lane.index()];
        let fell_with_another = failure.code == FailureCode::LaneRefused;
        if failure.code == FailureCode::OwnQueueFull && send.new.form == Form::Wait {
            lane.recall();
        }
        if fell_with_another && lane.recalls() {
            // It fell with one that is sent again, and so is this.
            return match send.cancel {
                None => self.come_back(id, false),
                Some(reason) => self.end_send(id.serial, Err(reason.error())),
            };
        }
        match send.new.form {
            Form::TryPipelined if !fell_with_another => lane.refused = true,
            // The broker refuses what follows, and nothing has followed yet.
            Form::TryAlone if !fell_with_another && !lane.refused => self.put_resume(key, id.lane),
            _ => {}
        }
        let Some(Entry::Send(send)) = self.pending.get_mut(id.serial) else {
            unreachable!("checked by the caller");
        };
        if send.cancel.is_none() {
            match (&failure.code, &send.new.target, &send.stage) {
                (FailureCode::OwnQueueFull, _, _) if send.new.form == Form::Wait => {
                    return match self.lend_again(id.serial) {
                        true => self.come_back(id, true),
                        false => self.end_refused(id, failure),
                    };
                }
                (
                    FailureCode::NoSuchGroup | FailureCode::GroupEnded,
                    Target::Group(group),
                    Stage::Left { to: Destination::Group(used), .. },
                ) => {
                    if group.id() == Some(*used) {
                        group.set_id(None);
                    }
                    if std::mem::take(&mut send.new.retry_stale) && self.lend_again(id.serial) {
                        return self.come_back(id, false);
                    }
                }
                (
                    FailureCode::NoSuchName,
                    Target::Name(name),
                    Stage::Left { to: Destination::Name(used), .. },
                ) => {
                    if name.id() == Some(*used) {
                        name.set_id(None);
                    }
                    if std::mem::take(&mut send.new.retry_stale) && self.lend_again(id.serial) {
                        return self.come_back(id, false);
                    }
                }
                _ => {}
            }
        }
        self.end_refused(id, failure);
    }

    fn end_refused(&mut self, id: SendId, failure: &Failure) {
        let Some(Entry::Send(send)) = self.pending.get(id.serial) else {
            unreachable!("checked by the caller");
        };
        let error = send.error(failure, &self.limits);
        self.end_send(id.serial, Err(error));
    }

    /// A send that had left goes back to the front of its lane.
    pub(super) fn come_back(&mut self, id: SendId, own_room: bool) {
        let Some(Entry::Send(send)) = self.pending.get_mut(id.serial) else {
            unreachable!("checked by the caller");
        };
        send.stage = Stage::Queued { own_room };
        let key = send.new.endpoint;
        let lane = &mut self.endpoints[key].lanes[id.lane.index()];
        lane.answered(id.serial, send.charge());
        lane.push_front(id.serial);
        self.queued_sends += 1;
        self.pump(key, id.lane);
    }

    /// A send has its outcome, wherever it was.
    pub(super) fn end_send(&mut self, serial: Serial, answer: Result<Receipt, SendError>) {
        if let Some((key, number)) = self.end_left(serial, answer) {
            self.pump(key, number);
        }
    }

    /// The same, and leaves it to the caller to go on with the lane that it gives.
    pub(super) fn end_left(
        &mut self,
        serial: Serial,
        answer: Result<Receipt, SendError>,
    ) -> Option<(usize, LaneNumber)> {
        let Some(Entry::Send(send)) = self.pending.get_mut(serial) else {
            return None;
        };
        let (key, number) = (send.new.endpoint, send.new.lane);
        let lane = &mut self.endpoints[key].lanes[number.index()];
        match send.stage {
            Stage::Queued { .. } => {
                if lane.remove(serial) {
                    self.queued_sends -= 1;
                }
            }
            Stage::Left { .. } => lane.answered(serial, send.charge()),
            Stage::Answered(_) => return None,
        }
        if matches!(send.new.flagged, Flagged::No) && send.wake.is_none() && !send.abandoned {
            // Nearly all: nobody sleeps for it.
            send.stage = Stage::Answered(answer);
            self.woken(None);
        } else {
            self.answer_send(serial, answer);
        }
        Some((key, number))
    }

    pub(super) fn answer_send(&mut self, serial: Serial, answer: Result<Receipt, SendError>) {
        let Some(Entry::Send(send)) = self.pending.get_mut(serial) else {
            return;
        };
        let flagged = std::mem::take(&mut send.new.flagged);
        let number = self.flagged_answered(&flagged, answer.is_ok());
        let Some(Entry::Send(send)) = self.pending.get_mut(serial) else { return };
        let answer = answer.map(|mut receipt| {
            receipt.completion = number;
            receipt
        });
        send.stage = Stage::Answered(answer);
        let (wake, abandoned) = (send.wake.take(), send.abandoned);
        if abandoned {
            self.pending.remove(serial);
        }
        self.woken(wake);
    }
}

fn window_of(limits: &Limits) -> Amount {
    Amount { messages: limits.lane_messages, bytes: limits.lane_bytes }
}

/// Output beyond which no further send leaves its lane. The one that crosses this still does.
const OUTBOX_BYTES: usize = 1 << 20;
