//! A lane with the bus behind it: the queue says what is next, the bus says how it went, the client
//! is told.

use std::{
    os::fd::OwnedFd,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bus_core::{
    Account, BatchDraft, Destination, Draft, GroupId, Kind, Lane, Limits, NoBatch, Receipt,
    Resource, SendError, Submitted,
    wire::{
        Failure, FailureCode, Handle, LENT_BYTES, LaneNumber, ReceiptsFrame, SendFlags, SendHead,
        SendId, SendRun, Serial, encode_receipt,
    },
};

use super::{
    failure,
    lane_charge::LaneCharge,
    lane_queue::{
        Arrival, Cancellation, LaneQueue, Outcome, Patience, Place, Window, WindowExceeded,
    },
    refuse,
};
use crate::{
    apart::LargeSends,
    broker::Shared,
    connection::Context,
    output::Output,
    service::{Asked, NotStarted, Wait},
};

/// A lane of an endpoint of a connection.
#[derive(Debug)]
pub(super) struct SendingLane {
    queue: LaneQueue<(Destination, Draft, Option<Box<Failure>>)>,
    lane: Lane,
    waker: Waker,
    /// The head waits in the bus.
    waits: bool,
    /// The head, while the service that it goes to is being started.
    parked: Option<Parked>,
    /// The head once more, while it waits in the bus for a name that a service would be started for:
    /// should its owner go meanwhile, it is handed in again.
    again: Option<Box<(Place, Destination, Draft)>>,
    charge: LaneCharge,
    /// What of it is large when it goes together.
    large: LargeSends,
    /// Its client knows of receipts that come together.
    knows_batches: bool,
}

/// A send to a name that nobody owns yet.
#[derive(Debug)]
struct Parked {
    place: Place,
    destination: Destination,
    draft: Draft,
    wait: Arc<Wait>,
}

impl SendingLane {
    pub(super) fn new(
        lane: Lane,
        waker: Waker,
        limits: &Limits,
        account: &Account,
        knows_batches: bool,
    ) -> Self {
        let window = Window {
            messages: usize::try_from(limits.lane_messages).unwrap_or(usize::MAX),
            bytes: limits.lane_bytes,
        };
        let charge = LaneCharge::new(account);
        Self {
            queue: LaneQueue::new(window),
            lane,
            waker,
            waits: false,
            parked: None,
            again: None,
            charge,
            large: LargeSends::default(),
            knows_batches,
        }
    }

    /// Takes a SEND in, and hands the bus what it can take; not what is denied.
    pub(super) fn send(
        &mut self,
        head: &SendHead,
        (draft, denied): (Draft, Option<Box<Failure>>),
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Result<(), WindowExceeded> {
        let place = place_of(head, window_bytes(&draft));
        let is_first = self.queue.len() == 0;
        let charged = match is_first {
            true => Ok(()),
            false => self.charge.set(self.queue.len() + 1, self.queue.bytes() + place.bytes),
        };
        if let Err(limit) = charged {
            self.queue.refuse(place);
            refuse(head.id, failure::of_limit(&limit), output, context);
            return Ok(());
        }
        match self.queue.arrive(place, (head.destination, draft, denied))? {
            Arrival::Queued if is_first => {
                self.go_on(head.id.endpoint, head.id.lane, output, context);
                self.pay_for_first(head.id, output, context);
            }
            // Something is ahead of it.
            Arrival::Queued => {}
            Arrival::Refused => {
                self.settle();
                refuse(head.id, lane_refused(), output, context);
            }
        }
        Ok(())
    }

    /// Whether a send would be handed to the bus at once.
    pub(super) fn is_clear(&self) -> bool {
        self.queue.is_clear()
    }

    /// Commits SENDs that came in a row, if nothing stands in the way of any, and answers them.
    ///
    /// # Errors
    ///
    /// Something does, and nothing was done.
    pub(super) fn send_batch(
        &mut self,
        run: SendRun,
        output: &mut Output,
        context: &Context<'_>,
    ) -> Result<(), NoBatch> {
        if !self.queue.is_clear() {
            return Err(NoBatch::NEVER);
        }
        let SendRun { lane, group, serials, batch, receipts_may_wait, .. } = run;
        let first = self.commit_together(group, batch, context)?;
        self.answer_together(ReceiptsFrame { lane, serials, first }, receipts_may_wait, output);
        Ok(())
    }

    /// Commits messages of this lane that nothing of it is ahead of, and gives the first one's receipt.
    fn commit_together(
        &mut self,
        group: GroupId,
        batch: BatchDraft,
        context: &Context<'_>,
    ) -> Result<Receipt, NoBatch> {
        let uid = context.client.credentials().uid;
        let payloads = &context.shared.payloads;
        let batch = batch.kept_as(|bytes| self.large.payload(uid, bytes, payloads));
        self.lane.try_send_batch(group, batch).map(|receipts| *receipts.first())
    }

    /// Answers what was committed together: with one frame, if the client knows it.
    fn answer_together(&self, sends: ReceiptsFrame, may_wait: bool, output: &mut Output) {
        let out = if may_wait { output.unhurried_frames() } else { output.frames() };
        if self.knows_batches {
            sends.encode(out).expect("a batch is bounded");
        } else {
            sends.each().for_each(|(id, receipt)| encode_receipt(out, id, &receipt));
        }
    }

    /// A SEND has come that was not kept.
    pub(super) fn refuse_send(
        &mut self,
        head: &SendHead,
        failure: Failure,
        output: &mut Output,
        context: &mut Context<'_>,
    ) {
        self.queue.refuse(place_of(head, 0));
        refuse(head.id, failure, output, context);
    }

    /// A send that found the lane empty has had its turn: if it waits it is charged, or ends if that
    /// is too much.
    fn pay_for_first(&mut self, id: SendId, output: &mut Output, context: &mut Context<'_>) {
        if self.queue.len() == 0 {
            return;
        }
        let Err(limit) = self.charge.set(self.queue.len(), self.queue.bytes()) else {
            return;
        };
        if self.parked.take().is_some() {
            self.answer_denied(id.endpoint, id.lane, failure::of_limit(&limit), output, context);
            return self.settle();
        }
        // It may have been committed meanwhile, and then it has its receipt.
        let Some(outcome) = self.lane.cancel() else {
            return;
        };
        self.stop_waiting(context);
        match outcome {
            Err(SendError::Cancelled) => {
                let _ = self.queue.finish(Outcome::Refused);
                refuse(id, failure::of_limit(&limit), output, context);
            }
            outcome => self.answer(id.endpoint, id.lane, outcome, output, context),
        }
        self.settle();
    }

    /// The lane holds less than before.
    fn settle(&mut self) {
        let less = self.charge.set(self.queue.len(), self.queue.bytes());
        debug_assert!(less.is_ok(), "less is never refused");
    }

    /// The head's waker was called.
    pub(super) fn decided(
        &mut self,
        endpoint: Handle,
        number: LaneNumber,
        output: &mut Output,
        context: &mut Context<'_>,
    ) {
        if let Some(outcome) = self.parked.as_ref().and_then(|parked| parked.wait.outcome()) {
            self.service_decided(endpoint, number, outcome, output, context);
            self.settle();
        } else if let Some(outcome) = self.lane.poll_outcome() {
            let again = self.again.take();
            self.stop_waiting(context);
            if matches!(outcome, Err(SendError::NoSuchName(_)))
                && let Some(again) = again
            {
                let (place, destination, draft) = *again;
                if !self.hand_over(endpoint, number, place, destination, draft, output, context) {
                    return self.settle();
                }
            } else {
                // It was there when the wait began.
                let ended = matches!(outcome, Err(SendError::NoSuchGroup(_)));
                let code = ended.then_some(FailureCode::GroupEnded);
                self.answer_as(endpoint, number, outcome, code, output, context);
            }
            self.go_on(endpoint, number, output, context);
            self.settle();
        }
    }

    pub(super) fn cancel(&mut self, id: SendId, output: &mut Output, context: &mut Context<'_>) {
        match self.queue.cancel(id.serial) {
            Cancellation::Unknown => {}
            Cancellation::Removed => {
                self.settle();
                refuse(id, cancelled(), output, context);
            }
            Cancellation::IsHead if self.parked.take().is_some() => {
                self.answer_denied(id.endpoint, id.lane, cancelled(), output, context);
                self.go_on(id.endpoint, id.lane, output, context);
                self.settle();
            }
            Cancellation::IsHead => {
                if let Some(outcome) = self.lane.cancel() {
                    self.stop_waiting(context);
                    self.answer(id.endpoint, id.lane, outcome, output, context);
                    self.go_on(id.endpoint, id.lane, output, context);
                    self.settle();
                }
            }
        }
    }

    pub(super) fn cancel_all(
        &mut self,
        endpoint: Handle,
        number: LaneNumber,
        output: &mut Output,
        context: &mut Context<'_>,
    ) {
        for serial in self.queue.take_waiting() {
            let id = send_id(endpoint, number, serial);
            refuse(id, cancelled(), output, context);
        }
        if self.parked.take().is_some() {
            self.answer_denied(endpoint, number, cancelled(), output, context);
        } else if let Some(outcome) = self.lane.cancel() {
            self.stop_waiting(context);
            self.answer(endpoint, number, outcome, output, context);
        }
        self.settle();
    }

    pub(super) fn resume(&mut self) {
        self.queue.resume();
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waits
    }

    /// Hands sends to the bus until one has to wait.
    fn go_on(
        &mut self,
        endpoint: Handle,
        number: LaneNumber,
        output: &mut Output,
        context: &mut Context<'_>,
    ) {
        let (mut most, mut singly) = (FIRST_TOGETHER, 0);
        loop {
            if singly == 0 && self.queue.len() > 1 {
                match self.go_on_together((endpoint, number), most, output, context) {
                    Ok(()) => {
                        most = most.saturating_mul(4);
                        continue;
                    }
                    Err(tried) => singly = tried.max(1),
                }
            }
            singly = singly.saturating_sub(1);
            let Some((place, (destination, draft, denied))) = self.queue.next() else {
                return;
            };
            if let Some(failure) = denied {
                self.answer_denied(endpoint, number, *failure, output, context);
                continue;
            }
            if !self.hand_over(endpoint, number, place, destination, draft, output, context) {
                return;
            }
        }
    }

    /// Commits the first of those whose turn is next together, `most` at most, and answers them.
    ///
    /// # Errors
    ///
    /// Nothing was done: there are not two that can go together, or so many are not to be tried again.
    fn go_on_together(
        &mut self,
        lane: (Handle, LaneNumber),
        mut most: u32,
        output: &mut Output,
        context: &Context<'_>,
    ) -> Result<(), u32> {
        loop {
            let (group, batch) = together(self.queue.ready(), most).ok_or(0_u32)?;
            let messages = batch.len();
            match self.commit_together(group, batch, context) {
                Ok(first) => {
                    let (serials, may_wait) = self.queue.finish_together(messages as usize);
                    self.answer_together(ReceiptsFrame { lane, serials, first }, may_wait, output);
                    return Ok(());
                }
                Err(refused) if (2..messages).contains(&refused.fits()) => most = refused.fits(),
                Err(_) => return Err(messages),
            }
        }
    }

    /// Hands the head to the bus, or has the service started that it goes to. True if it was
    /// answered, false if it waits.
    ///
    /// A name that had an owner when that was looked at may have none when the head comes there. So
    /// what goes to a service is handed in again, as if it came now.
    #[expect(clippy::too_many_arguments, reason = "where to answer, what, and where to")]
    fn hand_over(
        &mut self,
        endpoint: Handle,
        number: LaneNumber,
        place: Place,
        destination: Destination,
        mut draft: Draft,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> bool {
        loop {
            let mut again = None;
            if let Destination::Name(name) = destination {
                let Shared { services, bus, .. } = &**context.shared;
                let until = || until(&mut draft, bus.limits());
                let asker = || context.client.whose();
                let failure = match services.ask(bus, name, asker, until, &self.waker) {
                    Asked::Go => None,
                    Asked::Wait(wait) if place.patience == Patience::Wait => {
                        self.parked = Some(Parked { place, destination, draft, wait });
                        return false;
                    }
                    Asked::Wait(_) => Some(Failure::new(
                        FailureCode::WouldBlock,
                        "the service is being started, and the send would not wait",
                    )),
                    Asked::Failed(text) => Some(Failure::new(FailureCode::NotStarted, text)),
                };
                if let Some(failure) = failure {
                    self.answer_denied(endpoint, number, failure, output, context);
                    return true;
                }
                again = services.knows(name).then(|| once_more(&draft, context.account)).flatten();
            }
            match (self.submit(place.patience, destination, draft, context), again) {
                (None, again) => {
                    self.again = again.map(|draft| Box::new((place, destination, draft)));
                    return false;
                }
                (Some(Err(SendError::NoSuchName(_))), Some(again)) => draft = again,
                (Some(outcome), _) => {
                    self.answer(endpoint, number, outcome, output, context);
                    return true;
                }
            }
        }
    }

    /// Hands the head to the bus. None if it waits there.
    fn submit(
        &mut self,
        patience: Patience,
        destination: Destination,
        draft: Draft,
        context: &mut Context<'_>,
    ) -> Option<Result<Receipt, SendError>> {
        Some(match patience {
            Patience::Refuse => self.lane.try_send(destination, draft),
            Patience::Wait => match self.lane.submit(destination, draft, self.waker.clone()) {
                Ok(Submitted::Committed(receipt)) => Ok(receipt),
                Ok(Submitted::Waiting) => {
                    self.waits = true;
                    *context.waiting_sends += 1;
                    return None;
                }
                Err(error) => Err(error),
            },
        })
    }

    /// The service that the head goes to has come, or will not.
    fn service_decided(
        &mut self,
        endpoint: Handle,
        number: LaneNumber,
        outcome: Result<(), NotStarted>,
        output: &mut Output,
        context: &mut Context<'_>,
    ) {
        let Some(parked) = self.parked.take() else { return };
        match outcome {
            Ok(()) => {
                let Parked { place, destination, draft, .. } = parked;
                if !self.hand_over(endpoint, number, place, destination, draft, output, context) {
                    return;
                }
            }
            Err(why) => {
                let failure = match why {
                    NotStarted::Failed(text) => Failure::new(FailureCode::NotStarted, &*text),
                    NotStarted::TimedOut => failure::of_send(&SendError::DeadlinePassed),
                };
                self.answer_denied(endpoint, number, failure, output, context);
            }
        }
        self.go_on(endpoint, number, output, context);
    }

    fn answer(
        &mut self,
        endpoint: Handle,
        number: LaneNumber,
        outcome: Result<Receipt, SendError>,
        output: &mut Output,
        context: &Context<'_>,
    ) {
        self.answer_as(endpoint, number, outcome, None, output, context);
    }

    /// Answers the head; with `code` if the waiting has shown more than the error says.
    fn answer_as(
        &mut self,
        endpoint: Handle,
        number: LaneNumber,
        outcome: Result<Receipt, SendError>,
        code: Option<FailureCode>,
        output: &mut Output,
        context: &Context<'_>,
    ) {
        let kind = match outcome {
            Ok(_) => Outcome::Committed,
            Err(SendError::OwnQueueFull) => Outcome::OwnQueueFull,
            Err(_) => Outcome::Refused,
        };
        let Some(finished) = self.queue.finish(kind) else {
            return;
        };
        let id = send_id(endpoint, number, finished.head);
        match outcome {
            Ok(receipt) if finished.receipt_may_wait => {
                encode_receipt(output.unhurried_frames(), id, &receipt);
            }
            Ok(receipt) => encode_receipt(output.frames(), id, &receipt),
            Err(error) => {
                let mut failure = failure::of_send(&error);
                failure.code = code.unwrap_or(failure.code);
                refuse(id, failure, output, context);
            }
        }
        for serial in finished.fallen {
            let id = send_id(endpoint, number, serial);
            refuse(id, lane_refused(), output, context);
        }
    }

    /// Answers the head, which the bus did not get: the policy did not allow it when it came, or its
    /// service has not started. It takes its turn in the lane, so that what depends on it falls with
    /// it, as with any refused send.
    fn answer_denied(
        &mut self,
        endpoint: Handle,
        number: LaneNumber,
        failure: Failure,
        output: &mut Output,
        context: &Context<'_>,
    ) {
        let Some(finished) = self.queue.finish(Outcome::Refused) else {
            return;
        };
        refuse(send_id(endpoint, number, finished.head), failure, output, context);
        for serial in finished.fallen {
            let id = send_id(endpoint, number, serial);
            refuse(id, lane_refused(), output, context);
        }
    }

    fn stop_waiting(&mut self, context: &mut Context<'_>) {
        self.again = None;
        if std::mem::take(&mut self.waits) {
            *context.waiting_sends -= 1;
        }
    }
}

/// The first sends of a lane as a batch: two or more to one group about which nothing is special, `most` at
/// most.
fn together<'a>(
    sends: impl Iterator<Item = &'a (Destination, Draft, Option<Box<Failure>>)>,
    most: u32,
) -> Option<(GroupId, BatchDraft)> {
    let mut batch = BatchDraft::default();
    let mut to = None;
    for (destination, draft, denied) in sends {
        let Destination::Group(group) = *destination else { break };
        let Draft { attributes, payload, deadline, descriptors, kind, charge } = draft;
        let is_plain = denied.is_none()
            && payload.len() < ABOVE_TOGETHER
            && !payload.was_lent()
            && *deadline == 0
            && descriptors.is_empty()
            && *kind == Kind::Message
            && charge.is_none();
        let fits =
            batch.len() < most && batch.has_room_for(attributes.encoded().len(), payload.len());
        if !is_plain || !fits || *to.get_or_insert(group) != group {
            break;
        }
        batch.push(attributes, payload.as_bytes());
    }
    to.filter(|_| batch.len() > 1).map(|group| (group, batch))
}

/// The same draft, for another attempt; none if its descriptors cannot be had twice.
fn once_more(draft: &Draft, account: &Account) -> Option<Draft> {
    let count = draft.descriptors.len();
    let charge = match count {
        0 => None,
        _ => Some(account.charge(Resource::Descriptors, count as u64).ok()?),
    };
    let descriptors = draft.descriptors.iter().map(OwnedFd::try_clone);
    Some(Draft {
        attributes: draft.attributes.clone(),
        payload: draft.payload.clone(),
        deadline: draft.deadline,
        descriptors: descriptors.collect::<Result<_, _>>().ok()?,
        kind: draft.kind,
        charge,
    })
}

/// Until when a request to a service may wait. One without a deadline gets the default here: it counts
/// from the request's arrival, not from the service's.
fn until(draft: &mut Draft, limits: &Limits) -> Option<Instant> {
    if !matches!(draft.kind, Kind::Request { .. }) {
        return None;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    if draft.deadline == 0 {
        draft.deadline = nanos(now.saturating_add(limits.request_deadline));
    }
    let left = Duration::from_nanos(draft.deadline.saturating_sub(nanos(now)));
    Instant::now().checked_add(left)
}

fn place_of(head: &SendHead, bytes: u64) -> Place {
    Place {
        serial: head.id.serial,
        bytes,
        patience: if head.flags.contains(SendFlags::NONBLOCK) {
            Patience::Refuse
        } else {
            Patience::Wait
        },
        independent: head.flags.contains(SendFlags::INDEPENDENT),
        receipt_may_wait: head.flags.contains(SendFlags::RECEIPT_MAY_WAIT),
    }
}

/// What a SEND takes of its lane's window: what has come with it.
fn window_bytes(draft: &Draft) -> u64 {
    let payload = if draft.payload.was_lent() { LENT_BYTES } else { draft.payload.len() };
    (draft.attributes.encoded().len() + payload) as u64
}

fn send_id(endpoint: Handle, lane: LaneNumber, serial: Serial) -> SendId {
    SendId { endpoint, lane, serial }
}

fn lane_refused() -> Failure {
    Failure::new(
        FailureCode::LaneRefused,
        "an earlier send of this lane was refused, and the lane has not been resumed",
    )
}

fn cancelled() -> Failure {
    failure::of_send(&SendError::Cancelled)
}

/// A payload from here on goes alone: that it is copied once more costs more than what a batch saves.
pub(super) const ABOVE_TOGETHER: usize = 16 << 10;
/// How many that have waited are tried together first, and then four times as many each time: to gather what
/// finds no room is in vain.
const FIRST_TOGETHER: u32 = 16;

#[cfg(test)]
mod tests {
    use bus_core::{EndpointId, MAX_BATCH_MESSAGES};

    use super::*;

    type Send = (Destination, Draft, Option<Box<Failure>>);

    fn plain(group: u64) -> Send {
        (Destination::Group(GroupId::from_raw(group)), Draft::from(&b"plain"[..]), None)
    }

    fn with(change: impl FnOnce(&mut Send)) -> Send {
        let mut send = plain(1);
        change(&mut send);
        send
    }

    /// How many of the first go together, `most` at most.
    fn count(sends: &[Send], most: u32) -> Option<u32> {
        together(sends.iter(), most).map(|(group, batch)| {
            assert_eq!(group.get(), 1);
            batch.len()
        })
    }

    #[test]
    fn what_is_special_about_a_send_ends_a_batch_before_it() {
        let special = [
            plain(2),
            with(|send| send.0 = Destination::Endpoint(EndpointId::from_raw(1))),
            with(|send| send.1.deadline = 1),
            with(|send| send.1.kind = Kind::Request { repeatable: false }),
            with(|send| send.1.kind = Kind::Refusal),
            with(|send| send.1.descriptors.push(std::io::pipe().unwrap().0.into())),
            with(|send| send.1.payload = vec![0; ABOVE_TOGETHER].into()),
            with(|send| send.2 = Some(Box::new(lane_refused()))),
        ];
        for other in special {
            let sends = [plain(1), plain(1), other, plain(1)];
            assert_eq!(count(&sends, u32::MAX), Some(2), "{:?}", sends[2]);
            assert_eq!(count(&sends[1..], u32::MAX), None);
        }
    }

    #[test]
    fn a_batch_is_within_its_bounds() {
        let sends: Vec<_> = (0..2000).map(|_| plain(1)).collect();
        assert_eq!(count(&sends, 16), Some(16));
        assert_eq!(count(&sends, u32::MAX), Some(MAX_BATCH_MESSAGES));
        let long = || with(|send| send.1.payload = vec![0; ABOVE_TOGETHER - 1].into());
        let sends: Vec<_> = (0..8).map(|_| long()).collect();
        assert!(count(&sends, u32::MAX).is_some_and(|fit| fit < 8));
    }
}
