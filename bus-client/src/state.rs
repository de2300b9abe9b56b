//! All that the threads of a connection share, under one lock: what was asked, what has come, and
//! what each frame does to it.
//!
//! Nothing here blocks and nothing here calls out. Wakers are gathered and called by
//! [`connection`](crate::connection) when the lock is released.
//!
//! Invariants:
//! - Each send, call and watch has an entry until it is answered and its asker has the answer, or
//!   has gone ([`Entry`]). When the broker is lost, every entry is answered at once; so nobody who
//!   waits for an entry waits for ever.
//! - Sends are put into the outbox by [`pump`](State::pump) alone, which keeps to the lane's window
//!   and order, to one frame with descriptors under way, and to a bound for the outbox.
//! - What an endpoint receives is not handed out while its group is unknown and a join is not yet
//!   answered: the answer, which may be overtaken by the first messages, tells the name.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::thread::ThreadId;

use bus_core::wire::{
    BrokerFrame, ClientFrame, Failure, FailureCode, Goodbye, GoodbyeCode, Handle, LaneNumber,
    MAX_LANES, Notice, Request, Response, SendFlags, SendHead, SendId, Serial,
};
use bus_core::{
    Attributes, Destination, EndpointId, GroupId, GroupName, Limits, MemberFlags, Receipt, Sequence,
};
use bytes::Bytes;
use rustix::io::Errno;
use slab::Slab;

use crate::error::{BrokerGone, GoneReason, SendError};
use crate::inbox::{Amount, Inbox, Item};
use crate::inflow::{Arrival, Filled, Inflow};
use crate::lane::LaneState;
use crate::message::{Event, Evicted, Gap, Message};
use crate::outbox::{Outbox, Written};
use crate::pending::Pending;
use crate::transport::{Output, Transport};
use crate::waits::{Waits, Wake};

/// A group's name, and its id once it is known.
///
/// The fields are atomic so that handles can be shared; they change under the connection's lock
/// only, so nothing is ordered by them.
#[derive(Debug)]
pub(crate) struct GroupTarget {
    name: GroupName,
    /// 0 while it is unknown: the broker has no such group id.
    id: AtomicU64,
    /// Somebody is looking it up.
    resolving: AtomicBool,
}

impl GroupTarget {
    pub(crate) fn new(name: GroupName) -> Self {
        Self {
            name,
            id: AtomicU64::new(0),
            resolving: AtomicBool::new(false),
        }
    }

    pub(crate) fn name(&self) -> &GroupName {
        &self.name
    }

    pub(crate) fn id(&self) -> Option<GroupId> {
        match self.id.load(Ordering::Relaxed) {
            0 => None,
            id => Some(GroupId::from_raw(id)),
        }
    }

    fn set_id(&self, id: Option<GroupId>) {
        self.id.store(id.map_or(0, GroupId::get), Ordering::Relaxed);
    }
}

/// Where a send or watch goes.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Group(Arc<GroupTarget>),
    Endpoint(EndpointId),
}

impl Target {
    fn destination(&self) -> Option<Destination> {
        match self {
            Self::Group(group) => group.id().map(Destination::Group),
            Self::Endpoint(id) => Some(Destination::Endpoint(*id)),
        }
    }
}

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

/// Something asked of the broker.
#[derive(Debug)]
enum Entry {
    Send(SendEntry),
    Call(CallEntry),
    Watch(WatchEntry),
}

/// A message on its way.
#[derive(Debug)]
pub(crate) struct NewSend {
    pub(crate) endpoint: usize,
    pub(crate) lane: LaneNumber,
    pub(crate) target: Target,
    pub(crate) attributes: Attributes,
    pub(crate) payload: Bytes,
    pub(crate) descriptors: Option<Arc<[OwnedFd]>>,
    pub(crate) form: Form,
    pub(crate) independent: bool,
    /// Whether to look the group up again, once, if the one that we know has ended. Not for
    /// pipelined sends: others may have left behind them.
    pub(crate) retry_stale: bool,
}

#[derive(Debug)]
struct SendEntry {
    new: NewSend,
    stage: Stage,
    cancel: Option<CancelReason>,
    wake: Option<Wake>,
    /// Wake already when it leaves, not only when it is answered.
    wake_when_left: bool,
    abandoned: bool,
}

#[derive(Debug)]
enum Stage {
    /// In its lane's queue. `own_room`: it came back for want of its sender's own room.
    Queued {
        own_room: bool,
    },
    /// With the broker.
    Left {
        to: Destination,
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
    fn error(self) -> SendError {
        match self {
            Self::Asked => SendError::Cancelled,
            Self::TimedOut => SendError::TimedOut,
            Self::Deadlock(endpoint) => SendError::WouldDeadlock(endpoint),
        }
    }
}

#[derive(Debug)]
struct CallEntry {
    endpoint: usize,
    purpose: Purpose,
    answer: Option<Result<Response, CallError>>,
    wake: Option<Wake>,
    abandoned: bool,
}

/// What an answer to a call changes here, beside that somebody waits for it.
#[derive(Debug)]
pub(crate) enum Purpose {
    Plain,
    /// Looks a group up for the send or watch `asker`, which fails if there is none.
    Resolve {
        group: Arc<GroupTarget>,
        asker: Serial,
    },
    Create(Arc<GroupTarget>),
    Join {
        group: Arc<GroupTarget>,
        flags: MemberFlags,
    },
    Leave(GroupId),
    Open,
    Close,
}

/// Why a call did nothing.
#[derive(Clone, Debug)]
pub(crate) enum CallError {
    Failed(Box<Failure>),
    Gone(BrokerGone),
}

#[derive(Debug)]
struct WatchEntry {
    endpoint: usize,
    target: Target,
    /// Whether it has left; else it waits for its group to be looked up.
    left: bool,
    retry_stale: bool,
    answer: Option<Result<(), CallError>>,
    wake: Option<Wake>,
}

/// Who waits for a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Thread(ThreadId),
    Task,
}

/// Who received from an endpoint last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    Nobody,
    Thread(ThreadId),
    Task,
}

impl Sender {
    /// Whether the endpoint with this reader may go unread while this sender waits. A task may
    /// share its thread with anybody, so a task is in doubt with every thread that blocks.
    fn keeps_from_reading(self, reader: Reader) -> bool {
        match (self, reader) {
            (_, Reader::Nobody | Reader::Task) => true,
            (Self::Thread(sender), Reader::Thread(reader)) => sender == reader,
            (Self::Task, Reader::Thread(_)) => false,
        }
    }
}

/// One endpoint of the connection.
#[derive(Debug)]
struct EndpointState {
    id: EndpointId,
    inbox: Inbox,
    receivers: Vec<Wake>,
    reader: Reader,
    lanes: Vec<LaneState>,
    groups: HashMap<GroupId, KnownGroup>,
    /// How many of `groups` were left.
    left_groups: usize,
    /// Groups, joined or about to be, from which a message of this endpoint's own comes back and
    /// needs room here.
    loopbacks: Vec<GroupName>,
    joining: usize,
    closing: bool,
    /// A main loop polls for this endpoint.
    polled: bool,
}

/// A group that messages may come from.
#[derive(Debug)]
struct KnownGroup {
    name: GroupName,
    /// Where the endpoint left it: later messages need it no more.
    left: Option<Sequence>,
}

impl EndpointState {
    /// Whether there is something to receive.
    fn is_ready(&self, gone: bool) -> bool {
        match self.inbox.front() {
            None => false,
            Some(_) if gone || self.joining == 0 => true,
            Some(Item::Message { message, .. }) => message
                .head
                .group
                .is_none_or(|group| self.groups.contains_key(&group)),
            Some(Item::Gap { group_id, .. } | Item::Evicted { group_id, .. }) => {
                self.groups.contains_key(group_id)
            }
        }
    }

    fn name_of(&self, group: GroupId) -> Option<GroupName> {
        self.groups.get(&group).map(|known| known.name.clone())
    }

    /// Forgets groups that were left before `now` in the order: nothing of theirs can follow.
    fn forget_left(&mut self, now: Sequence) {
        if self.left_groups > 0 {
            self.groups
                .retain(|_, known| known.left.is_none_or(|left| left >= now));
            self.left_groups = self
                .groups
                .values()
                .filter(|known| known.left.is_some())
                .count();
        }
    }
}

/// All that the threads of a connection share.
#[derive(Debug)]
pub(crate) struct State {
    transport: Arc<Transport>,
    limits: Limits,
    backlog: Amount,
    pid: u32,
    inflow: Inflow,
    outbox: Outbox,
    output: Output,
    corks: usize,
    pending: Pending<Entry>,
    endpoints: Slab<EndpointState>,
    /// One more than the highest key that `endpoints` has had.
    keys_end: usize,
    groups: HashMap<GroupName, Arc<GroupTarget>>,
    /// Sends that have not left.
    queued_sends: usize,
    /// Watches whose group is being looked up.
    queued_watches: Vec<Serial>,
    /// A frame with descriptors has left, and the broker has not said that it has taken them.
    descriptors_under_way: bool,
    /// Sends that somebody waits for without being able to read.
    blocked: Vec<(Serial, Sender)>,
    waits: Waits,
    /// Who waits for anything to happen.
    onlookers: Vec<Wake>,
    /// How many frames have come.
    arrivals: u64,
    /// Whether the last read found no more.
    drained: bool,
    /// Something happened that a main loop cannot see on the socket.
    attention: bool,
    /// Somebody has the pollable descriptor.
    polled: bool,
    signalled: bool,
    gone: Option<BrokerGone>,
}

impl State {
    pub(crate) fn new(
        transport: Arc<Transport>,
        inflow: Inflow,
        limits: Limits,
        first: EndpointId,
        backlog: Amount,
    ) -> Self {
        let mut state = Self {
            transport,
            limits,
            backlog,
            pid: std::process::id(),
            inflow,
            outbox: Outbox::default(),
            output: Output::Idle,
            corks: 0,
            pending: Pending::new(),
            endpoints: Slab::new(),
            keys_end: 0,
            groups: HashMap::new(),
            queued_sends: 0,
            queued_watches: Vec::new(),
            descriptors_under_way: false,
            blocked: Vec::new(),
            waits: Waits::default(),
            onlookers: Vec::new(),
            arrivals: 0,
            drained: true,
            attention: false,
            polled: false,
            signalled: false,
            gone: None,
        };
        let key = state.insert_endpoint();
        debug_assert_eq!(key, 0, "the greeting's endpoint has handle 0");
        state.endpoints[key].id = first;
        // What came with the greeting is looked at like everything that comes later.
        state.take_frames();
        state
    }

    // ---- The connection as a whole

    pub(crate) fn gone(&self) -> Option<&BrokerGone> {
        self.gone.as_ref()
    }

    pub(crate) fn waits(&mut self) -> &mut Waits {
        &mut self.waits
    }

    pub(crate) fn output(&self) -> Output {
        self.output
    }

    /// Whether the last read found no more input.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_drained(&self) -> bool {
        self.drained
    }

    pub(crate) fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// Ends the connection from this side, politely where the socket lets us.
    pub(crate) fn close(&mut self) {
        if self.gone.is_some() || self.is_fork() {
            return;
        }
        self.flush(Urgency::Now);
        self.farewell(GoodbyeCode::Done, "");
        self.lose(GoneReason::ClosedHere);
    }

    fn farewell(&mut self, code: GoodbyeCode, text: &str) {
        self.outbox
            .put(&ClientFrame::Goodbye(Goodbye::new(code, text)));
        let _ = self.outbox.write(&self.transport);
    }

    /// Notes that the connection has ended, and answers everybody.
    fn lose(&mut self, reason: GoneReason) {
        if self.gone.is_some() {
            return;
        }
        let forked = reason == GoneReason::Forked;
        let gone = BrokerGone::new(reason);
        self.gone = Some(gone.clone());
        if !forked {
            // In a forked child the socket is still its parent's.
            self.transport.shut_down();
        }
        self.outbox.clear();
        self.output = Output::Idle;
        self.queued_sends = 0;
        self.queued_watches.clear();
        for (_, endpoint) in &mut self.endpoints {
            endpoint.joining = 0;
            endpoint.lanes.iter_mut().for_each(LaneState::clear);
        }
        for serial in self.pending.serials() {
            match self.pending.get(serial) {
                Some(Entry::Send(send)) => {
                    let error = match send.stage {
                        Stage::Queued { .. } => SendError::BrokerGone(gone.clone()),
                        Stage::Left { .. } => SendError::Unknown(gone.clone()),
                        Stage::Answered(_) => continue,
                    };
                    self.answer_send(serial, Err(error));
                }
                Some(Entry::Call(call)) if call.answer.is_none() => {
                    self.answer_call(serial, Err(CallError::Gone(gone.clone())));
                }
                Some(Entry::Watch(watch)) if watch.answer.is_none() => {
                    self.answer_watch(serial, Err(CallError::Gone(gone.clone())));
                }
                _ => {}
            }
        }
        for key in self.keys() {
            self.wake_receivers(key);
        }
        for wake in std::mem::take(&mut self.onlookers) {
            self.waits.wake(wake, &self.transport);
        }
        self.waits.wake_threads(&self.transport);
        self.attention = true;
    }

    /// Whether this process is a child of the one that connected; then the connection is lost.
    fn is_fork(&mut self) -> bool {
        if self.pid == std::process::id() {
            return false;
        }
        self.lose(GoneReason::Forked);
        true
    }

    #[cfg(test)]
    pub(crate) fn pretend_to_be_forked(&mut self) {
        self.pid += 1;
    }

    #[cfg(test)]
    pub(crate) fn queued_sends(&self) -> usize {
        self.queued_sends
    }

    #[cfg(test)]
    pub(crate) fn known_groups(&self, key: usize) -> usize {
        self.endpoints[key].groups.len()
    }

    /// For the thread that is about to sleep or to read: writes what can be written, returns all
    /// credit.
    pub(crate) fn before_sleep(&mut self) {
        if self.gone.is_none() && !self.is_fork() {
            self.return_all_credit();
            self.flush(Urgency::Now);
        }
    }

    /// All I/O that is possible without blocking.
    pub(crate) fn turn(&mut self) {
        self.before_sleep();
        self.read();
        self.flush(Urgency::Now);
    }

    /// As [`turn`](Self::turn), for the main loop that polls the descriptor.
    pub(crate) fn dispatch(&mut self) {
        self.attention = false;
        self.turn();
    }

    /// The system did not let a thread sleep.
    pub(crate) fn sleep_failed(&mut self, error: &std::io::Error) {
        self.lose(GoneReason::Io(error.kind(), error.to_string().into()));
    }

    /// Brings the pollable descriptor up to date, and gives the wakers to call once the lock is
    /// released.
    #[must_use = "a task whose waker is dropped sleeps for ever"]
    pub(crate) fn settle(&mut self) -> Vec<Waker> {
        if self.polled {
            let gone = self.gone.is_some();
            let wanted = self.attention
                || self
                    .endpoints
                    .iter()
                    .any(|(_, endpoint)| endpoint.polled && endpoint.is_ready(gone));
            if wanted != self.signalled {
                self.signalled = wanted;
                self.transport.signal(wanted);
            }
        }
        self.waits.take_wakers()
    }

    /// Somebody is about to poll for this endpoint.
    pub(crate) fn set_polled(&mut self, key: usize) {
        self.polled = true;
        // Once, for what happened before; a loop may ask for the descriptor at every turn.
        self.attention |= !std::mem::replace(&mut self.endpoints[key].polled, true);
    }

    /// Somebody is about to poll for whatever comes, and calls [`dispatch`](Self::dispatch).
    #[cfg(feature = "tokio")]
    pub(crate) fn set_driven(&mut self) {
        self.polled = true;
        self.attention = true;
    }

    /// A thread has stopped waiting. If it led and left input behind, and nobody follows, main
    /// loops must be told: they may have been told of that input once already.
    pub(crate) fn stopped_waiting(&mut self) {
        if !self.waits.hand_on() && !self.drained {
            self.attention = true;
        }
    }

    // ---- Output

    pub(crate) fn cork(&mut self) {
        self.corks += 1;
    }

    pub(crate) fn uncork(&mut self) {
        self.corks -= 1;
        self.flush(Urgency::Soon);
    }

    /// Writes what the socket takes.
    pub(crate) fn flush(&mut self, urgency: Urgency) {
        if self.gone.is_some() {
            return;
        }
        if urgency == Urgency::Soon && self.corks > 0 && self.outbox.bytes() < CORK_BYTES {
            return;
        }
        while !self.outbox.is_empty() && !self.is_fork() {
            match self.outbox.write(&self.transport) {
                Ok(Written::All) => {
                    // Sends may have waited for room in the outbox.
                    self.pump_all();
                }
                Ok(Written::Blocked) => return self.set_output(Output::Pending),
                Ok(Written::TooManyDescriptors(serial)) => {
                    self.descriptors_under_way = false;
                    self.end_send(
                        serial,
                        Err(SendError::LimitExceeded(
                            "the kernel takes no more descriptors under way for this user"
                                .to_owned(),
                        )),
                    );
                }
                Err(error) => return self.output_failed(error),
            }
        }
        self.set_output(Output::Idle);
    }

    /// The broker reads no more. Perhaps it has said why.
    fn output_failed(&mut self, error: Errno) {
        self.outbox.clear();
        self.set_output(Output::Idle);
        while self.gone.is_none() {
            match self.inflow.fill(&self.transport) {
                Ok(Filled::More) => self.take_frames(),
                Ok(Filled::Drained | Filled::End) | Err(_) => {
                    self.take_frames();
                    break;
                }
            }
        }
        self.lose(match error {
            Errno::PIPE | Errno::CONNRESET => GoneReason::Closed,
            error => io_reason(error),
        });
    }

    fn set_output(&mut self, output: Output) {
        if self.output != output && self.gone.is_none() {
            self.output = output;
            self.transport.watch_output(output);
            if output == Output::Pending {
                // Who sleeps in poll does not know of it yet.
                self.waits.wake_leader(&self.transport);
            }
        }
    }

    // ---- Input

    /// Takes in what is there, up to a bound; `false` if there was nothing. The caller has been at
    /// [`before_sleep`](Self::before_sleep).
    pub(crate) fn read(&mut self) -> bool {
        let before = self.arrivals;
        for _ in 0..READS_IN_A_ROW {
            if self.gone.is_some() {
                break;
            }
            let filled = self.inflow.fill(&self.transport);
            self.take_frames();
            match filled {
                Ok(Filled::More) => self.drained = false,
                Ok(Filled::Drained) => {
                    self.drained = true;
                    break;
                }
                Ok(Filled::End) | Err(Errno::CONNRESET) => self.lose(GoneReason::Closed),
                Err(error) => self.lose(io_reason(error)),
            }
        }
        self.relieve();
        self.flush(Urgency::Soon);
        let something = self.arrivals != before || self.gone.is_some();
        if something {
            for wake in std::mem::take(&mut self.onlookers) {
                self.waits.wake(wake, &self.transport);
            }
        }
        something
    }

    fn take_frames(&mut self) {
        while self.gone.is_none() {
            let outcome = match self.inflow.next() {
                Ok(Some(arrival)) => {
                    self.arrivals += 1;
                    self.arrive(arrival)
                }
                Ok(None) => return,
                Err(offence) => Err(offence),
            };
            if let Err(offence) = outcome {
                self.break_off(&offence);
            }
        }
    }

    /// The broker did what it may not do.
    pub(crate) fn break_off(&mut self, offence: &str) {
        if self.gone.is_none() {
            self.farewell(GoodbyeCode::Protocol, offence);
            self.lose(GoneReason::Protocol(offence.into()));
        }
    }

    fn arrive(&mut self, arrival: Arrival) -> Result<(), String> {
        match arrival.frame {
            BrokerFrame::Message(message) => {
                let announced = message.head.descriptors > 0;
                if announced {
                    self.outbox.put(&ClientFrame::DescriptorsTaken);
                }
                let item = Item::Message {
                    descriptors_lost: arrival.descriptors_lost || message.head.descriptors_lost,
                    descriptors: arrival.descriptors,
                    message,
                };
                let Item::Message { message, .. } = &item else {
                    unreachable!("made two lines above");
                };
                self.deliver(message.head.endpoint, item)
            }
            BrokerFrame::Notice { endpoint, notice } => match notice {
                Notice::Gap { group_id, gap } => {
                    self.deliver(endpoint, Item::Gap { group_id, gap })
                }
                Notice::Evicted {
                    group_id,
                    sequence,
                    stalled,
                    queued_messages,
                    back_off,
                    ..
                } => {
                    let item = Item::Evicted {
                        group_id,
                        sequence,
                        stalled,
                        queued_messages,
                        back_off,
                    };
                    self.deliver(endpoint, item)?;
                    self.left(endpoint.get() as usize, group_id, sequence);
                    Ok(())
                }
                _ => Ok(()),
            },
            BrokerFrame::Receipt { id, receipt } => {
                self.check_send("RECEIPT", id)?;
                self.end_send(id.serial, Ok(receipt));
                Ok(())
            }
            BrokerFrame::Refused { id, failure } => {
                self.check_send("REFUSED", id)?;
                self.refused(id, &failure);
                Ok(())
            }
            BrokerFrame::Done {
                serial, response, ..
            } => self.done(serial, response),
            BrokerFrame::Error {
                serial, failure, ..
            } => {
                self.failed(serial, failure);
                Ok(())
            }
            BrokerFrame::Writable { serial, .. } => {
                // It may have crossed with giving up.
                self.answer_watch(serial, Ok(()));
                Ok(())
            }
            BrokerFrame::DescriptorsTaken => {
                if !std::mem::take(&mut self.descriptors_under_way) {
                    return Err("DESCRIPTORS_TAKEN without descriptors under way".to_owned());
                }
                self.pump_all();
                Ok(())
            }
            BrokerFrame::Goodbye(goodbye) => {
                self.lose(GoneReason::Goodbye {
                    code: goodbye.code.as_str().into(),
                    text: goodbye.text.into(),
                });
                Ok(())
            }
            BrokerFrame::Welcome(_) => Err("a second WELCOME".to_owned()),
        }
    }

    fn deliver(&mut self, handle: Handle, item: Item) -> Result<(), String> {
        let key = handle.get() as usize;
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return Err(format!("a message for handle {handle}, which is not open"));
        };
        if endpoint.closing {
            return Ok(());
        }
        endpoint.inbox.push(item)?;
        self.wake_receivers(key);
        Ok(())
    }

    fn wake_receivers(&mut self, key: usize) {
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return;
        };
        for wake in std::mem::take(&mut endpoint.receivers) {
            self.waits.wake(wake, &self.transport);
        }
    }

    // ---- Endpoints

    fn insert_endpoint(&mut self) -> usize {
        let capacity = Amount {
            messages: self.limits.queue_messages,
            bytes: self.limits.queue_bytes,
        };
        let lanes = usize::from(self.limits.lanes.clamp(1, MAX_LANES));
        let mut endpoint = EndpointState {
            id: EndpointId::from_raw(0),
            inbox: Inbox::new(capacity, self.backlog),
            receivers: Vec::new(),
            reader: Reader::Nobody,
            lanes: (0..lanes).map(|_| LaneState::default()).collect(),
            groups: HashMap::new(),
            left_groups: 0,
            loopbacks: Vec::new(),
            joining: 0,
            closing: false,
            polled: false,
        };
        endpoint.lanes[0].open = true;
        let key = self.endpoints.insert(endpoint);
        self.keys_end = self.keys_end.max(key + 1);
        key
    }

    /// Asks for a further endpoint; gives its key and the call.
    pub(crate) fn open_endpoint(&mut self) -> Result<(usize, Serial), CallError> {
        let key = self.insert_endpoint();
        match self.call(key, Purpose::Open, Request::OpenEndpoint) {
            Ok(serial) => Ok((key, serial)),
            Err(error) => {
                self.endpoints.remove(key);
                Err(error)
            }
        }
    }

    /// The last handle of an endpoint is gone.
    pub(crate) fn close_endpoint(&mut self, key: usize) {
        if self.gone.is_some() {
            return;
        }
        let endpoint = &mut self.endpoints[key];
        endpoint.closing = true;
        while endpoint.inbox.take().is_some() {}
        endpoint.receivers.clear();
        if let Ok(serial) = self.call(key, Purpose::Close, Request::CloseEndpoint) {
            self.abandon(serial);
        }
        self.flush(Urgency::Now);
    }

    /// Takes a free lane; `None` if all are taken.
    pub(crate) fn open_lane(&mut self, key: usize) -> Option<LaneNumber> {
        let lanes = &mut self.endpoints[key].lanes;
        let free = lanes.iter().position(|lane| !lane.open && lane.is_idle())?;
        lanes[free].open = true;
        u8::try_from(free).ok().and_then(LaneNumber::new)
    }

    pub(crate) fn close_lane(&mut self, key: usize, lane: LaneNumber) {
        if let Some(endpoint) = self.endpoints.get_mut(key) {
            endpoint.lanes[lane.index()].open = false;
            self.resume(key, lane);
        }
    }

    /// The application goes on after a pipelined send that does not wait was refused.
    pub(crate) fn resume(&mut self, key: usize, lane: LaneNumber) {
        if std::mem::take(&mut self.endpoints[key].lanes[lane.index()].refused) {
            self.put_resume(key, lane);
            self.flush(Urgency::Soon);
        }
    }

    fn put_resume(&mut self, key: usize, lane: LaneNumber) {
        if self.gone.is_none() {
            self.outbox.put(&ClientFrame::Resume {
                endpoint: handle(key),
                lane,
            });
        }
    }

    /// Takes the next event of an endpoint, if there is one.
    pub(crate) fn take_event(&mut self, key: usize, reader: Reader) -> Option<Event> {
        let gone = self.gone.is_some();
        let endpoint = &mut self.endpoints[key];
        endpoint.reader = reader;
        if !endpoint.is_ready(gone) {
            return None;
        }
        let item = endpoint.inbox.take()?;
        let credit = endpoint.inbox.return_some();
        let event = endpoint.event(item);
        if let Some(credit) = credit {
            self.put_credit(key, credit);
            self.flush(Urgency::Now);
        }
        Some(event)
    }

    fn put_credit(&mut self, key: usize, credit: Amount) {
        if self.gone.is_some() || self.endpoints[key].closing {
            return;
        }
        self.outbox.put(&ClientFrame::Credit {
            endpoint: handle(key),
            messages: credit.messages,
            bytes: credit.bytes,
        });
        // A send may have come back for want of this very room.
        self.pump_endpoint(key);
    }

    fn return_all_credit(&mut self) {
        for key in self.keys() {
            let endpoint = self.endpoints.get_mut(key);
            if let Some(credit) = endpoint.and_then(|endpoint| endpoint.inbox.return_all()) {
                self.put_credit(key, credit);
            }
        }
    }

    /// Somebody waits for a send and cannot read meanwhile.
    pub(crate) fn block(&mut self, serial: Serial, sender: Sender) {
        if !self.blocked.contains(&(serial, sender)) {
            self.blocked.push((serial, sender));
        }
        self.relieve();
    }

    pub(crate) fn unblock(&mut self, serial: Serial) {
        self.blocked.retain(|(blocked, _)| *blocked != serial);
    }

    /// Takes messages into the backlogs of endpoints that cannot be read while sends wait, so that
    /// others who wait for those endpoints go on. Where even that does not help, the send gives up.
    fn relieve(&mut self) {
        if self.blocked.is_empty() || self.gone.is_some() {
            return;
        }
        let mut stuck = Vec::new();
        for key in self.keys() {
            let Some(endpoint) = self.endpoints.get_mut(key) else {
                continue;
            };
            if endpoint.inbox.is_empty() || endpoint.closing {
                continue;
            }
            let (id, reader) = (endpoint.id, endpoint.reader);
            let mut kept = self
                .blocked
                .iter()
                .filter(|(_, sender)| sender.keeps_from_reading(reader))
                .map(|(serial, _)| *serial)
                .peekable();
            if kept.peek().is_none() {
                continue;
            }
            endpoint.inbox.fill_backlog();
            if endpoint.inbox.is_stuck() {
                stuck.extend(kept.map(|serial| (serial, id)));
            }
        }
        self.return_all_credit();
        for (serial, endpoint) in stuck {
            if !self.waits_for_lookup(serial) {
                self.cancel(serial, CancelReason::Deadlock(endpoint));
            }
        }
        self.flush(Urgency::Soon);
    }

    // ---- Sends

    /// Puts a send into its lane. It leaves at once if it can.
    pub(crate) fn send(&mut self, new: NewSend) -> Result<Serial, SendError> {
        if let Some(gone) = &self.gone {
            return Err(SendError::BrokerGone(gone.clone()));
        }
        let (key, lane) = (new.endpoint, new.lane);
        let entry = Entry::Send(SendEntry {
            new,
            stage: Stage::Queued { own_room: false },
            cancel: None,
            wake: None,
            wake_when_left: false,
            abandoned: false,
        });
        let serial = self
            .pending
            .insert(entry)
            .map_err(|_| SendError::LimitExceeded(TOO_MUCH_PENDING.to_owned()))?;
        self.queued_sends += 1;
        self.endpoints[key].lanes[lane.index()].push(serial);
        self.pump(key, lane);
        self.flush(Urgency::Soon);
        Ok(serial)
    }

    /// Whether the send has left (or is answered already).
    pub(crate) fn has_left(&self, serial: Serial) -> bool {
        match self.pending.get(serial) {
            Some(Entry::Send(send)) => !matches!(send.stage, Stage::Queued { .. }),
            _ => true,
        }
    }

    /// Takes the send's answer, and its entry with it.
    pub(crate) fn take_answer(&mut self, serial: Serial) -> Option<Result<Receipt, SendError>> {
        match self.pending.get(serial) {
            Some(Entry::Send(SendEntry {
                stage: Stage::Answered(_),
                ..
            })) => {}
            _ => return None,
        }
        match self.pending.remove(serial) {
            Some(Entry::Send(SendEntry {
                stage: Stage::Answered(answer),
                ..
            })) => Some(answer),
            _ => unreachable!("it was there a moment ago"),
        }
    }

    /// Takes the send's answer if that is an error.
    pub(crate) fn take_failure(&mut self, serial: Serial) -> Option<SendError> {
        match self.pending.get(serial) {
            Some(Entry::Send(SendEntry {
                stage: Stage::Answered(Err(_)),
                ..
            })) => self.take_answer(serial)?.err(),
            _ => None,
        }
    }

    /// Takes a send back: at once if it has not left, else the broker decides.
    pub(crate) fn cancel(&mut self, serial: Serial, reason: CancelReason) {
        let Some(Entry::Send(send)) = self.pending.get_mut(serial) else {
            return;
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
            }
        }
        self.flush(Urgency::Soon);
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
            _ => false,
        };
        if answered {
            self.pending.remove(serial);
        }
    }

    /// Nobody wants to be a member any more: leaves as soon as the join is answered.
    pub(crate) fn abandon_join(&mut self, serial: Serial) {
        let key = match self.pending.get(serial) {
            Some(Entry::Call(call)) => call.endpoint,
            _ => return,
        };
        match self.take_response(serial) {
            Some(Ok(Response::Joined { group_id, .. })) => self.leave_group(key, group_id),
            Some(_) => {}
            None => self.abandon(serial),
        }
        self.flush(Urgency::Soon);
    }

    /// Lets every send leave that can.
    fn pump_all(&mut self) {
        if self.queued_sends > 0 {
            for key in self.keys() {
                self.pump_endpoint(key);
            }
        }
    }

    fn pump_endpoint(&mut self, key: usize) {
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
    fn pump(&mut self, key: usize, lane: LaneNumber) {
        let window = Amount {
            messages: self.limits.lane_messages,
            bytes: self.limits.lane_bytes,
        };
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
    fn leave(&mut self, serial: Serial) -> bool {
        let Some(Entry::Send(send)) = self.pending.get(serial) else {
            unreachable!("what is in a lane has an entry");
        };
        let (key, lane) = (send.new.endpoint, send.new.lane);
        if send.new.descriptors.is_some() && self.descriptors_under_way {
            return false;
        }
        if matches!(send.stage, Stage::Queued { own_room: true }) {
            if !self.endpoints[key].inbox.has_room() {
                return false;
            }
            if let Some(credit) = self.endpoints[key].inbox.return_all() {
                // Not by put_credit, which would come back here.
                self.outbox.put(&ClientFrame::Credit {
                    endpoint: handle(key),
                    messages: credit.messages,
                    bytes: credit.bytes,
                });
            }
        }
        let Some(Entry::Send(send)) = self.pending.get_mut(serial) else {
            unreachable!("it was there a moment ago");
        };
        let Some(to) = send.new.target.destination() else {
            let target = send.new.target.clone();
            self.resolve(key, &target, serial);
            return false;
        };
        let endpoint = &mut self.endpoints[key];
        let alone = match send.new.form {
            Form::TryAlone => true,
            Form::TryPipelined => false,
            Form::Wait => endpoint.may_reach_itself(&send.new.target),
        };
        let mut flags = SendFlags::empty();
        flags.set(SendFlags::NONBLOCK, send.new.form != Form::Wait);
        flags.set(SendFlags::INDEPENDENT, send.new.independent);
        let descriptors = send.new.descriptors.clone();
        let head = SendHead {
            id: send.id(serial),
            destination: to,
            flags,
            deadline: 0,
            descriptors: descriptors
                .as_ref()
                .map_or(0, |d| u8::try_from(d.len()).unwrap_or(u8::MAX)),
        };
        let has_descriptors = descriptors.is_some();
        let charge = send.charge();
        let put = self
            .outbox
            .put_send(&head, &send.new.attributes, &send.new.payload, descriptors);
        if put.is_err() {
            let bytes = send.new.payload.len() as u64;
            let limit = u64::from(self.limits.payload_bytes);
            self.end_send(serial, Err(SendError::TooLarge { bytes, limit }));
            return true;
        }
        send.stage = Stage::Left { to };
        let wake = if send.wake_when_left {
            send.wake.take()
        } else {
            None
        };
        endpoint.lanes[lane.index()].leave(serial, charge, alone);
        self.queued_sends -= 1;
        self.descriptors_under_way |= has_descriptors;
        if let Some(wake) = wake {
            self.waits.wake(wake, &self.transport);
        }
        true
    }

    /// Whether the send is first in its lane and its group is being looked up.
    fn waits_for_lookup(&self, serial: Serial) -> bool {
        let Some(Entry::Send(send)) = self.pending.get(serial) else {
            return false;
        };
        let lane = &self.endpoints[send.new.endpoint].lanes[send.new.lane.index()];
        matches!(send.stage, Stage::Queued { .. })
            && lane.front() == Some(serial)
            && send.new.target.destination().is_none()
    }

    /// Checks that an answer belongs to a send that has left.
    fn check_send(&self, frame: &str, id: SendId) -> Result<(), String> {
        match self.pending.get(id.serial) {
            Some(Entry::Send(send))
                if send.id(id.serial) == id && matches!(send.stage, Stage::Left { .. }) =>
            {
                Ok(())
            }
            _ => Err(format!(
                "{frame} for a send that was not made: serial {} of handle {} in lane {}",
                id.serial, id.endpoint, id.lane
            )),
        }
    }

    fn refused(&mut self, id: SendId, failure: &Failure) {
        let Some(Entry::Send(send)) = self.pending.get_mut(id.serial) else {
            unreachable!("checked by the caller");
        };
        let key = send.new.endpoint;
        let lane = &mut self.endpoints[key].lanes[id.lane.index()];
        let fell_with_another = failure.code == FailureCode::LaneRefused;
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
                    return self.come_back(id, true);
                }
                (
                    FailureCode::NoSuchGroup | FailureCode::GroupEnded,
                    Target::Group(group),
                    Stage::Left {
                        to: Destination::Group(used),
                    },
                ) => {
                    if group.id() == Some(*used) {
                        group.set_id(None);
                    }
                    if std::mem::take(&mut send.new.retry_stale) {
                        return self.come_back(id, false);
                    }
                }
                _ => {}
            }
        }
        let error = send.error(failure, &self.limits);
        self.end_send(id.serial, Err(error));
    }

    /// A send that had left goes back to the front of its lane.
    fn come_back(&mut self, id: SendId, own_room: bool) {
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
    fn end_send(&mut self, serial: Serial, answer: Result<Receipt, SendError>) {
        let Some(Entry::Send(send)) = self.pending.get(serial) else {
            return;
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
            Stage::Answered(_) => return,
        }
        self.answer_send(serial, answer);
        self.pump(key, number);
    }

    fn answer_send(&mut self, serial: Serial, answer: Result<Receipt, SendError>) {
        let Some(Entry::Send(send)) = self.pending.get_mut(serial) else {
            return;
        };
        send.stage = Stage::Answered(answer);
        let (wake, abandoned) = (send.wake.take(), send.abandoned);
        if abandoned {
            self.pending.remove(serial);
        }
        self.woken(wake);
    }

    fn woken(&mut self, wake: Option<Wake>) {
        match wake {
            Some(wake) => self.waits.wake(wake, &self.transport),
            // Nobody sleeps for it; a main loop may want to ask.
            None => self.attention = true,
        }
    }

    // ---- Calls

    /// Asks the broker.
    pub(crate) fn call(
        &mut self,
        key: usize,
        purpose: Purpose,
        request: Request,
    ) -> Result<Serial, CallError> {
        if let Some(gone) = &self.gone {
            return Err(CallError::Gone(gone.clone()));
        }
        if let Purpose::Join { group, flags } = &purpose {
            let endpoint = &mut self.endpoints[key];
            endpoint.joining += 1;
            if needs_own_room(*flags) {
                endpoint.loopbacks.push(group.name().clone());
            }
        }
        let entry = Entry::Call(CallEntry {
            endpoint: key,
            purpose,
            answer: None,
            wake: None,
            abandoned: false,
        });
        let Ok(serial) = self.pending.insert(entry) else {
            let text = TOO_MUCH_PENDING;
            return Err(CallError::Failed(Box::new(Failure::new(
                FailureCode::LimitExceeded,
                text,
            ))));
        };
        self.outbox.put(&ClientFrame::Call {
            endpoint: handle(key),
            serial,
            request,
        });
        Ok(serial)
    }

    /// Takes the call's answer, and its entry with it.
    pub(crate) fn take_response(&mut self, serial: Serial) -> Option<Result<Response, CallError>> {
        match self.pending.get(serial) {
            Some(Entry::Call(CallEntry {
                answer: Some(_), ..
            })) => {}
            _ => return None,
        }
        match self.pending.remove(serial) {
            Some(Entry::Call(call)) => call.answer,
            _ => unreachable!("it was there a moment ago"),
        }
    }

    fn answer_call(&mut self, serial: Serial, answer: Result<Response, CallError>) {
        let Some(Entry::Call(call)) = self.pending.get_mut(serial) else {
            return;
        };
        call.answer = Some(answer);
        let (wake, abandoned) = (call.wake.take(), call.abandoned);
        if abandoned {
            self.pending.remove(serial);
        } else {
            self.woken(wake);
        }
    }

    fn done(&mut self, serial: Serial, response: Response) -> Result<(), String> {
        let Some(Entry::Call(call)) = self.pending.get_mut(serial) else {
            return Err(format!(
                "DONE for a call that was not made: serial {serial}"
            ));
        };
        let key = call.endpoint;
        let abandoned = call.abandoned;
        // The purpose has served when the answer is here.
        match (
            std::mem::replace(&mut call.purpose, Purpose::Plain),
            &response,
        ) {
            (Purpose::Plain, _) => {}
            (Purpose::Resolve { group, .. }, Response::Group(info)) => {
                self.resolved(&group, Some(info.group_id));
            }
            (Purpose::Create(group), Response::Created { group_id, .. }) => {
                self.resolved(&group, Some(*group_id));
            }
            (Purpose::Join { group, .. }, Response::Joined { group_id, .. }) => {
                self.joined(key, &group, *group_id);
                if abandoned {
                    self.leave_group(key, *group_id);
                }
            }
            (Purpose::Leave(group_id), Response::Left { sequence }) => {
                self.left(key, group_id, *sequence);
            }
            (Purpose::Open, Response::Opened { endpoint }) => self.endpoints[key].id = *endpoint,
            (Purpose::Close, Response::Closed) => self.closed(key),
            (purpose, response) => {
                return Err(format!("DONE answers {purpose:?} with {response:?}"));
            }
        }
        self.answer_call(serial, Ok(response));
        Ok(())
    }

    fn failed(&mut self, serial: Serial, failure: Box<Failure>) {
        match self.pending.get_mut(serial) {
            Some(Entry::Call(call)) => {
                let key = call.endpoint;
                match std::mem::replace(&mut call.purpose, Purpose::Plain) {
                    Purpose::Resolve { group, asker } => {
                        self.unresolved(&group, asker, &failure);
                    }
                    Purpose::Join { group, flags } => {
                        self.endpoints[key].joining -= 1;
                        self.forget_loopback(key, group.name(), flags);
                        self.wake_receivers(key);
                    }
                    Purpose::Open => {
                        self.endpoints.remove(key);
                    }
                    Purpose::Close => self.closed(key),
                    Purpose::Plain | Purpose::Create(_) | Purpose::Leave(_) => {}
                }
                self.answer_call(serial, Err(CallError::Failed(failure)));
            }
            Some(Entry::Watch(watch)) => {
                if failure.code == FailureCode::NoSuchGroup
                    && std::mem::take(&mut watch.retry_stale)
                    && let Target::Group(group) = &watch.target
                {
                    group.set_id(None);
                    watch.left = false;
                    self.start_watch(serial);
                } else {
                    self.answer_watch(serial, Err(CallError::Failed(failure)));
                }
            }
            // A watch's answer may have crossed with giving it up.
            Some(Entry::Send(_)) | None => {}
        }
    }

    fn joined(&mut self, key: usize, group: &Arc<GroupTarget>, id: GroupId) {
        let endpoint = &mut self.endpoints[key];
        endpoint.joining -= 1;
        let known = KnownGroup {
            name: group.name().clone(),
            left: None,
        };
        if endpoint
            .groups
            .insert(id, known)
            .is_some_and(|before| before.left.is_some())
        {
            endpoint.left_groups -= 1;
        }
        self.resolved(group, Some(id));
        self.wake_receivers(key);
    }

    fn left(&mut self, key: usize, group: GroupId, sequence: Sequence) {
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return;
        };
        let Some(known) = endpoint.groups.get_mut(&group) else {
            return;
        };
        if known.left.replace(sequence).is_none() {
            endpoint.left_groups += 1;
        }
        let name = known.name.clone();
        if endpoint.left_groups > LEFT_GROUPS_KEPT
            && let Some((&oldest, _)) = endpoint
                .groups
                .iter()
                .filter(|(_, known)| known.left.is_some())
                .min_by_key(|(_, known)| known.left)
        {
            endpoint.groups.remove(&oldest);
            endpoint.left_groups -= 1;
        }
        self.forget_loopback(key, &name, MemberFlags::LOOPBACK);
    }

    fn forget_loopback(&mut self, key: usize, name: &GroupName, flags: MemberFlags) {
        let loopbacks = &mut self.endpoints[key].loopbacks;
        if needs_own_room(flags)
            && let Some(at) = loopbacks.iter().position(|loopback| loopback == name)
        {
            loopbacks.swap_remove(at);
        }
    }

    /// Leaves a group that somebody joined and then lost interest in.
    fn leave_group(&mut self, key: usize, group_id: GroupId) {
        if let Ok(serial) = self.call(key, Purpose::Leave(group_id), Request::Leave { group_id }) {
            self.abandon(serial);
        }
    }

    fn closed(&mut self, key: usize) {
        self.endpoints.remove(key);
        // What was abandoned before the endpoint was closed gets no answer any more. An answer to
        // a call that still comes changes nothing here, for the key may be another's by then.
        for serial in self.pending.serials() {
            let belongs = match self.pending.get_mut(serial) {
                Some(Entry::Send(send)) => send.new.endpoint == key,
                Some(Entry::Watch(watch)) => watch.endpoint == key,
                Some(Entry::Call(call)) => {
                    if call.endpoint == key {
                        call.purpose = Purpose::Plain;
                    }
                    false
                }
                None => false,
            };
            if belongs
                && let Some(Entry::Send(send)) = self.pending.remove(serial)
                && matches!(send.stage, Stage::Queued { .. })
            {
                self.queued_sends -= 1;
            }
        }
    }

    // ---- Groups by name

    /// The handle of a name. Handles of one name share what is known of it.
    pub(crate) fn group(&mut self, name: &GroupName) -> Arc<GroupTarget> {
        if let Some(group) = self.groups.get(name) {
            return Arc::clone(group);
        }
        if self.groups.len() >= GROUPS_KEPT {
            self.groups.retain(|_, group| Arc::strong_count(group) > 1);
        }
        let group = Arc::new(GroupTarget::new(name.clone()));
        self.groups.insert(name.clone(), Arc::clone(&group));
        group
    }

    /// Looks a group up for a send or watch, unless that is under way.
    fn resolve(&mut self, key: usize, target: &Target, asker: Serial) {
        let Target::Group(group) = target else {
            return;
        };
        if group.resolving.swap(true, Ordering::Relaxed) {
            return;
        }
        let purpose = Purpose::Resolve {
            group: Arc::clone(group),
            asker,
        };
        let request = Request::FindGroup {
            group: group.name().clone(),
        };
        match self.call(key, purpose, request) {
            Ok(serial) => self.abandon(serial),
            Err(_) => group.resolving.store(false, Ordering::Relaxed),
        }
    }

    fn resolved(&mut self, group: &GroupTarget, id: Option<GroupId>) {
        group.set_id(id);
        group.resolving.store(false, Ordering::Relaxed);
        for serial in std::mem::take(&mut self.queued_watches) {
            self.start_watch(serial);
        }
        self.pump_all();
    }

    fn unresolved(&mut self, group: &Arc<GroupTarget>, asker: Serial, failure: &Failure) {
        // First the one that asked, so that its lane is not held up by it once more.
        match self.pending.get(asker) {
            Some(Entry::Send(send)) if matches!(send.stage, Stage::Queued { .. }) => {
                let error = send.error(failure, &self.limits);
                group.resolving.store(false, Ordering::Relaxed);
                self.end_send(asker, Err(error));
            }
            Some(Entry::Watch(_)) => {
                self.answer_watch(asker, Err(CallError::Failed(Box::new(failure.clone()))));
            }
            _ => {}
        }
        if group.id().is_none() {
            self.resolved(group, None);
        }
    }

    // ---- Watches

    pub(crate) fn watch(&mut self, key: usize, target: Target) -> Result<Serial, CallError> {
        if let Some(gone) = &self.gone {
            return Err(CallError::Gone(gone.clone()));
        }
        let entry = Entry::Watch(WatchEntry {
            endpoint: key,
            target,
            left: false,
            retry_stale: true,
            answer: None,
            wake: None,
        });
        let serial = self.pending.insert(entry).map_err(|_| {
            CallError::Failed(Box::new(Failure::new(
                FailureCode::LimitExceeded,
                TOO_MUCH_PENDING,
            )))
        })?;
        self.start_watch(serial);
        self.flush(Urgency::Soon);
        Ok(serial)
    }

    fn start_watch(&mut self, serial: Serial) {
        let Some(Entry::Watch(watch)) = self.pending.get_mut(serial) else {
            return;
        };
        if watch.left || watch.answer.is_some() {
            return;
        }
        let key = watch.endpoint;
        match watch.target.destination() {
            Some(destination) => {
                watch.left = true;
                self.outbox.put(&ClientFrame::Watch {
                    endpoint: handle(key),
                    serial,
                    destination,
                });
            }
            None => {
                let target = watch.target.clone();
                self.queued_watches.push(serial);
                self.resolve(key, &target, serial);
            }
        }
    }

    /// Takes the watch's answer, and its entry with it.
    pub(crate) fn take_writable(&mut self, serial: Serial) -> Option<Result<(), CallError>> {
        match self.pending.get(serial) {
            Some(Entry::Watch(WatchEntry {
                answer: Some(_), ..
            })) => {}
            _ => return None,
        }
        match self.pending.remove(serial) {
            Some(Entry::Watch(watch)) => watch.answer,
            _ => unreachable!("it was there a moment ago"),
        }
    }

    /// Ends a watch that nobody waits for any more.
    pub(crate) fn unwatch(&mut self, serial: Serial) {
        let Some(Entry::Watch(watch)) = self.pending.get(serial) else {
            return;
        };
        let (key, open) = (watch.endpoint, watch.left && watch.answer.is_none());
        self.pending.remove(serial);
        self.queued_watches.retain(|queued| *queued != serial);
        if open && self.gone.is_none() {
            self.outbox.put(&ClientFrame::Unwatch {
                endpoint: handle(key),
                serial,
            });
            self.flush(Urgency::Soon);
        }
    }

    fn answer_watch(&mut self, serial: Serial, answer: Result<(), CallError>) {
        let Some(Entry::Watch(watch)) = self.pending.get_mut(serial) else {
            return;
        };
        if watch.answer.is_none() {
            watch.answer = Some(answer);
            let wake = watch.wake.take();
            self.woken(wake);
        }
    }

    // ---- Who waits for what

    /// Registers who is to be woken. Whoever is woken registers again if it goes on waiting.
    pub(crate) fn set_wake(&mut self, interest: Interest, wake: Wake) {
        match interest {
            Interest::Departure(serial) | Interest::Answer(serial) => {
                match self.pending.get_mut(serial) {
                    Some(Entry::Send(send)) => {
                        send.wake_when_left = matches!(interest, Interest::Departure(_));
                        send.wake = Some(wake);
                    }
                    Some(Entry::Call(call)) => call.wake = Some(wake),
                    Some(Entry::Watch(watch)) => watch.wake = Some(wake),
                    None => {}
                }
            }
            Interest::Inbox(key) => {
                let receivers = &mut self.endpoints[key].receivers;
                if !receivers.iter().any(|other| is_same(other, &wake)) {
                    receivers.push(wake);
                }
            }
            Interest::Anything => {
                if !self.onlookers.iter().any(|other| is_same(other, &wake)) {
                    self.onlookers.push(wake);
                }
            }
        }
    }

    /// Takes back what a thread has registered.
    pub(crate) fn clear_wake(&mut self, interest: Interest, wake: &Wake) {
        match interest {
            Interest::Departure(serial) | Interest::Answer(serial) => {
                let place = match self.pending.get_mut(serial) {
                    Some(Entry::Send(send)) => &mut send.wake,
                    Some(Entry::Call(call)) => &mut call.wake,
                    Some(Entry::Watch(watch)) => &mut watch.wake,
                    None => return,
                };
                *place = None;
            }
            Interest::Inbox(key) => {
                if let Some(endpoint) = self.endpoints.get_mut(key) {
                    endpoint.receivers.retain(|other| !is_same(other, wake));
                }
            }
            Interest::Anything => self.onlookers.retain(|other| !is_same(other, wake)),
        }
    }

    pub(crate) fn endpoint_id(&self, key: usize) -> EndpointId {
        self.endpoints[key].id
    }

    /// Where keys of endpoints may lie. Those between that are free are passed over.
    fn keys(&self) -> Range<usize> {
        0..self.keys_end
    }
}

/// When output is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Unless a cork holds it back.
    Soon,
    /// Now, because somebody waits or is about to.
    Now,
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// That a send leaves, or is answered.
    Departure(Serial),
    /// That a send, call or watch is answered.
    Answer(Serial),
    /// That something arrives for an endpoint.
    Inbox(usize),
    /// That anything arrives.
    Anything,
}

impl SendEntry {
    fn id(&self, serial: Serial) -> SendId {
        SendId {
            endpoint: handle(self.new.endpoint),
            lane: self.new.lane,
            serial,
        }
    }

    fn charge(&self) -> u64 {
        (self.new.attributes.encoded().len() + self.new.payload.len()) as u64
    }

    /// What a refusal means for this send.
    fn error(&self, failure: &Failure, limits: &Limits) -> SendError {
        let text = || failure.text.clone();
        match (&failure.code, &self.new.target) {
            (FailureCode::NoSuchGroup, Target::Group(group)) => {
                SendError::NoSuchGroup(group.name().clone())
            }
            (FailureCode::GroupEnded, Target::Group(group)) => {
                SendError::GroupEnded(group.name().clone())
            }
            (FailureCode::NoSuchEndpoint, Target::Endpoint(id)) => SendError::NoSuchEndpoint(*id),
            (FailureCode::EndpointClosed, Target::Endpoint(id)) => SendError::ReceiverShut(*id),
            (FailureCode::WouldBlock, _) => SendError::WouldBlock {
                full: failure.full.clone(),
                full_count: failure.full_count,
            },
            (FailureCode::Cancelled, _) => self.cancel.unwrap_or(CancelReason::Asked).error(),
            (FailureCode::OwnQueueFull, _) => match self.cancel {
                Some(reason) => reason.error(),
                None => SendError::OwnQueueFull,
            },
            (FailureCode::LaneRefused, _) => SendError::LaneRefused,
            (FailureCode::TooLarge, _) => SendError::TooLarge {
                bytes: self.new.payload.len() as u64,
                limit: u64::from(limits.payload_bytes),
            },
            (FailureCode::RecipientStalled, _) => SendError::RecipientStalled,
            (FailureCode::LimitExceeded, _) => SendError::LimitExceeded(text()),
            (FailureCode::PermissionDenied, _) => SendError::PermissionDenied(text()),
            (code, _) => SendError::Refused {
                code: code.as_str().to_owned(),
                text: text(),
            },
        }
    }
}

impl EndpointState {
    /// Whether a message to this target may need room in this endpoint's own queue.
    fn may_reach_itself(&self, target: &Target) -> bool {
        match target {
            Target::Endpoint(id) => *id == self.id,
            Target::Group(group) => self.loopbacks.contains(group.name()),
        }
    }

    /// What the application gets for an item.
    fn event(&mut self, item: Item) -> Event {
        match item {
            Item::Message {
                message,
                descriptors,
                descriptors_lost,
            } => {
                let group = message.head.group.and_then(|group| self.name_of(group));
                let missed = match (message.head.missed, message.head.group) {
                    (Some(gap), Some(group_id)) => Some(named(gap, group_id, group.clone())),
                    _ => None,
                };
                self.forget_left(message.head.sequence);
                Event::Message(Message::new(
                    message,
                    group,
                    missed,
                    descriptors,
                    descriptors_lost,
                ))
            }
            Item::Gap { group_id, gap } => Event::Gap(named(gap, group_id, self.name_of(group_id))),
            Item::Evicted {
                group_id,
                sequence,
                stalled,
                queued_messages,
                back_off,
            } => {
                let group = self.name_of(group_id);
                // Its place in the order is its own, so the name has served.
                self.forget_left(Sequence::from_raw(sequence.get().saturating_add(1)));
                Event::Evicted(Evicted {
                    group,
                    group_id,
                    sequence,
                    stalled,
                    queued_messages,
                    back_off,
                })
            }
        }
    }
}

fn named(gap: bus_core::Gap, group_id: GroupId, group: Option<GroupName>) -> Gap {
    Gap {
        group,
        group_id,
        count: gap.count,
        first: gap.first,
        last: gap.last,
    }
}

/// Whether a membership of these flags makes the sender's own room count.
fn needs_own_room(flags: MemberFlags) -> bool {
    flags.contains(MemberFlags::LOOPBACK) && !flags.contains(MemberFlags::DROP_WHEN_FULL)
}

fn handle(key: usize) -> Handle {
    Handle::from_raw(u32::try_from(key).expect("the broker allows a few thousand endpoints"))
}

fn is_same(one: &Wake, other: &Wake) -> bool {
    match (one, other) {
        (Wake::Thread(one), Wake::Thread(other)) => one == other,
        (Wake::Task(one), Wake::Task(other)) => one.will_wake(other),
        _ => false,
    }
}

fn io_reason(error: Errno) -> GoneReason {
    let error = std::io::Error::from(error);
    GoneReason::Io(error.kind(), error.to_string().into())
}

const TOO_MUCH_PENDING: &str = "a connection has at most 1048576 operations pending";
/// Output that a cork holds back.
const CORK_BYTES: usize = 64 << 10;
/// Output beyond which no further send leaves its lane. The one that crosses this still does.
const OUTBOX_BYTES: usize = 1 << 20;
/// Reads before others get their turn at the lock.
const READS_IN_A_ROW: usize = 16;
/// Handles of groups that are shared by name.
const GROUPS_KEPT: usize = 1024;
/// Groups left whose names are kept for messages that may still come.
const LEFT_GROUPS_KEPT: usize = 1024;
