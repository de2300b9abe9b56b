//! All that the threads of a connection share, under one lock: what was asked, what has come, and
//! what each frame does to it.
//!
//! Nothing here blocks and nothing here calls out. Wakers are gathered and called by
//! [`connection`](crate::connection) when the lock is released.
//!
//! Invariant: each send, call and watch has an entry until it is answered and its asker has the
//! answer, or has gone ([`Entry`]). When the broker is lost, every entry is answered at once; so
//! nobody who waits for an entry waits for ever.
//!
//! | file | what it knows |
//! |---|---|
//! | here | the connection as a whole: frames in, bytes out, who is to be woken |
//! | `state/endpoint` | an endpoint's inbox, lanes and groups |
//! | `state/target` | names of groups, and their ids |
//! | `state/names` | well-known names, and their ids |
//! | `state/send` | a send from its lane to its answer |
//! | `state/request` | what this program asks and is asked, from receipt to outcome |
//! | `state/relief` | reading ahead for those who wait for a send |
//! | `state/call`, `state/watch` | other questions, and what their answers change |
//! | `state/rings` | going over to rings in shared memory, and back |
//! | `state/apart` | payloads beside the stream, lent and found |
//! | `state/views` | who is in a group that is watched |
//! | `state/kept`, `state/away` | what endpoints have, and the time between two brokers |

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;

use bus_core::wire::{
    BatchView, BrokerFrame, ClientFrame, Copied, EvictionReason, Goodbye, GoodbyeCode, Handle,
    Incarnation, Notice, PlacedIn, ReceiptsFrame, Role, Serial,
};
use bus_core::{EndpointId, GroupName, Limits};
use bus_memory::ForkMark;
use rustix::io::Errno;
use slab::Slab;

use crate::builder::Reading;
use crate::error::{BrokerGone, GoneReason, SendError};
use crate::inbox::{Amount, Item};
use crate::inflow::{Arrival, Filled, Frame, Inflow, Missed};
use crate::lane::LaneState;
use crate::long_read::LongRead;
use crate::outbox::{Outbox, Written};
use crate::pending::Pending;
use crate::transport::{Output, Transport};
use crate::waits::{Waits, Wake};

mod apart;
mod away;
mod call;
mod endpoint;
mod gated;
mod kept;
mod listing;
mod names;
mod relief;
mod request;
mod rings;
mod send;
mod target;
mod views;
mod watch;

use apart::Apart;
pub(crate) use apart::{Flagged, LentOut};
pub(crate) use away::Comeback;
use call::CallEntry;
pub(crate) use call::{CallError, Purpose};
use endpoint::EndpointState;
pub(crate) use names::NameTarget;
use relief::Reader;
pub(crate) use relief::Sender;
use request::RequestEntry;
pub(crate) use request::{Answer, AskedState, Reply};
pub(crate) use rings::RingWish;
pub(crate) use send::{Ask, CancelReason, Form, NewSend};
use send::{SendEntry, Stage};
pub(crate) use target::{GroupTarget, Target};
use watch::WatchEntry;

/// Something asked of the broker.
#[derive(Debug)]
enum Entry {
    Send(SendEntry),
    // There are few of these, and a table of sends is to be short.
    Call(Box<CallEntry>),
    Watch(Box<WatchEntry>),
    Request(RequestEntry),
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
    names: HashMap<GroupName, Arc<NameTarget>>,
    /// Sends that have not left.
    queued_sends: usize,
    /// Watches whose group is being looked up.
    queued_watches: Vec<Serial>,
    apart: Apart,
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
    /// Sleeps before one in a read is tried again that is not needed for credit.
    polls: u32,
    /// Something was written since the last sleep.
    has_written: bool,
    /// Something happened that a main loop cannot see on the socket.
    attention: bool,
    /// Somebody has the pollable descriptor.
    polled: bool,
    signalled: bool,
    /// A main loop was told that a dispatch is due, and has not dispatched since.
    summoned: bool,
    rings: RingWish,
    /// Messages before they are asked for.
    rings_after: u32,
    /// Where there are rings or much is written: tells a child from its parent without a system
    /// call.
    fork_mark: Option<ForkMark>,
    looks_for_fork: u32,
    /// Why there is no broker.
    gone: Option<BrokerGone>,
    incarnation: Incarnation,
    /// How another broker is looked for, if that is wanted and not given up.
    comeback: Option<Box<Comeback>>,
}

impl State {
    pub(crate) fn new(
        transport: Arc<Transport>,
        inflow: Inflow,
        limits: Limits,
        (incarnation, first): (Incarnation, EndpointId),
        backlog: Amount,
        comeback: Option<Comeback>,
        lends: Option<Reading>,
    ) -> Self {
        let quiet = lends.map(|reading| reading == Reading::PassedOver);
        let apart = Apart::new(quiet, limits.completions);
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
            names: HashMap::new(),
            queued_sends: 0,
            queued_watches: Vec::new(),
            apart,
            descriptors_under_way: false,
            blocked: Vec::new(),
            waits: Waits::default(),
            onlookers: Vec::new(),
            arrivals: 0,
            drained: true,
            polls: POLLS_AFTER_SILENCE,
            has_written: false,
            attention: false,
            polled: false,
            signalled: false,
            summoned: false,
            rings: RingWish::None,
            rings_after: 1,
            fork_mark: None,
            looks_for_fork: 0,
            gone: None,
            incarnation,
            comeback: comeback.map(Box::new),
        };
        let key = state.insert_endpoint();
        debug_assert_eq!(key, 0, "the greeting's endpoint has handle 0");
        state.endpoints[key].id = first;
        // What came with the greeting is looked at like everything that comes later.
        state.take_frames();
        state
    }

    // ---- The connection as a whole

    /// Why the connection has ended. Not while another broker is looked for.
    pub(crate) fn gone(&self) -> Option<&BrokerGone> {
        self.gone.as_ref().filter(|_| !self.is_away())
    }

    /// Why there is no broker, whether or not another one is looked for.
    pub(crate) fn lost(&self) -> Option<&BrokerGone> {
        self.gone.as_ref()
    }

    /// What the thread that leads is to sleep on.
    pub(crate) fn transport(&self) -> &Arc<Transport> {
        &self.transport
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

    /// Ends the connection from this side, once all that the socket takes is written.
    pub(crate) fn close(&mut self) {
        if self.is_away() && self.pid == std::process::id() {
            return self.end(Some(GoneReason::ClosedHere));
        }
        if self.gone.is_some() || self.is_fork() {
            return;
        }
        self.flush(Urgency::Now);
        // The end of the stream says it all; a farewell would wake the broker once more.
        self.lose(GoneReason::ClosedHere);
    }

    fn farewell(&mut self, code: GoodbyeCode, text: &str) {
        self.outbox.put(&ClientFrame::Goodbye(Goodbye::new(code, text)));
        let _ = self.outbox.write(&self.transport);
    }

    /// Notes that the connection has ended, and answers everybody.
    fn lose(&mut self, reason: GoneReason) {
        if self.gone.is_some() {
            return;
        }
        let forked = reason == GoneReason::Forked;
        let gone = BrokerGone::new(reason.clone());
        self.gone = Some(gone.clone());
        if !forked {
            // In a forked child the socket is still its parent's.
            self.transport.shut_down();
            self.transport.drop_rings();
        }
        (self.rings, self.fork_mark) = (RingWish::None, None);
        self.outbox.clear();
        self.output = Output::Idle;
        self.queued_sends = 0;
        self.queued_watches.clear();
        for (_, endpoint) in &mut self.endpoints {
            endpoint.joining = 0;
            endpoint.inbox.forget_unfound();
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
                Some(Entry::Request(_)) => self.lose_request(serial, &gone),
                _ => {}
            }
        }
        self.lose_apart();
        self.depart(&reason);
        self.wake_all();
    }

    fn wake_all(&mut self) {
        for key in self.keys() {
            self.wake_receivers(key);
            self.wake_view_waiters(key);
        }
        for wake in std::mem::take(&mut self.onlookers) {
            self.waits.wake(wake, &self.transport);
        }
        self.waits.wake_threads(&self.transport);
        self.attention = true;
    }

    /// Whether this process is a child of the one that connected; then the connection is lost.
    fn is_fork(&mut self) -> bool {
        if self.is_same_process() {
            return false;
        }
        self.lose(GoneReason::Forked);
        true
    }

    fn is_same_process(&mut self) -> bool {
        if let Some(mark) = &self.fork_mark {
            return mark.is_same_process();
        }
        if self.pid != std::process::id() {
            return false;
        }
        self.looks_for_fork += 1;
        if self.looks_for_fork == MARK_AFTER {
            self.looks_for_fork = 0;
            self.fork_mark = ForkMark::new().ok();
        }
        true
    }

    #[cfg(test)]
    pub(crate) fn pretend_to_be_forked(&mut self) {
        self.pid += 1;
    }

    #[cfg(test)]
    pub(crate) fn summon(&mut self) {
        self.attention = true;
    }

    #[cfg(test)]
    pub(crate) fn queued_sends(&self) -> usize {
        self.queued_sends
    }

    #[cfg(test)]
    pub(crate) fn is_read(&self, key: usize) -> bool {
        self.endpoints[key].reading > 0
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

    /// As [`before_sleep`](Self::before_sleep), for a thread that comes back soon even if nothing
    /// happens: it may keep credit, and releases that nobody waits for, and says whether it does.
    pub(crate) fn before_nap(&mut self) -> bool {
        if self.gone.is_none() && !self.is_fork() && !self.is_settled(true) {
            self.flush(Urgency::Now);
        }
        self.gone.is_none() && (self.owes_credit() || self.has_chores())
    }

    /// Whether [`before_sleep`](Self::before_sleep) has nothing to do, or [`before_nap`](Self::before_nap) if
    /// it is to be a nap.
    pub(crate) fn is_settled(&self, naps: bool) -> bool {
        let keeps = match naps {
            true => !self.has_urgent_chores(),
            false => !self.has_chores() && !self.owes_credit(),
        };
        self.gone.is_none() && self.outbox.is_empty() && keeps
    }

    /// What the leader needs to sleep in a read; `None` if it has to poll, or should. `naps` says that it is to
    /// come back soon in any case.
    pub(crate) fn begin_long_read(&mut self, naps: bool) -> Option<LongRead> {
        // With rings, or where somebody polls, more than the socket is to be waited for. And who has written
        // and sleeps in a read is woken when that is read: a poll tells the two apart.
        let waits_for_more = self.has_written
            || self.output != Output::Idle
            || self.rings == RingWish::Have
            || self.polled
            || self.gone.is_some()
            || !self.waits.is_left_alone();
        if waits_for_more || (!naps && self.polls > 0) || !self.transport.can_block() {
            return None;
        }
        let landed = self.inflow.lend()?;
        self.waits.falls_deaf();
        Some(LongRead::new(Arc::clone(&self.transport), landed))
    }

    /// The leader goes to sleep in a poll.
    pub(crate) fn begin_poll(&mut self) {
        self.has_written = false;
        self.polls = self.polls.saturating_sub(1);
    }

    /// Takes in what a long read has brought; `false` if that was nothing.
    pub(crate) fn end_long_read(&mut self, read: LongRead) -> bool {
        if !Arc::ptr_eq(read.transport(), &self.transport) {
            // What a broker had to say that is given up already.
            return self.read();
        }
        let (filled, missed) = self.inflow.take_back(read.landed);
        if missed == Missed::Somebody {
            self.waits.note_disturbance();
        }
        let something = self.read_on(Some(filled));
        self.polls = if something { 0 } else { POLLS_AFTER_SILENCE };
        something
    }

    /// All I/O that is possible without blocking.
    pub(crate) fn turn(&mut self) {
        self.before_sleep();
        self.transport.look_at_socket();
        self.read();
        self.flush(Urgency::Now);
    }

    /// Takes in what has come, and writes nothing that a cork holds back.
    pub(crate) fn take_in(&mut self) {
        if self.gone.is_none() && !self.is_fork() {
            self.transport.look_at_socket();
            self.read();
        }
    }

    /// As [`turn`](Self::turn), for the main loop that polls the descriptor.
    pub(crate) fn dispatch(&mut self) {
        self.attention = false;
        self.summoned = false;
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
            let gone = self.gone().is_some();
            // A child must not touch its parent's.
            let has_rings = self.rings == RingWish::Have && self.is_same_process();
            let beside_input = has_rings && !self.transport.arm();
            // What a dispatch deals with; the rest is for the application to take.
            let due = self.attention || beside_input;
            let wanted = due
                || self.has_completions()
                || self
                    .endpoints
                    .iter()
                    .any(|(_, endpoint)| endpoint.polled && endpoint.is_ready(gone));
            // A loop that polls for edges needs one of its own for each dispatch that is due.
            let summons = due && !std::mem::replace(&mut self.summoned, due);
            if self.signalled && (summons || !wanted) {
                self.transport.signal(false);
                self.signalled = false;
            }
            if wanted && !self.signalled {
                self.transport.signal(true);
                self.signalled = true;
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
        // What nobody waits for goes with what is said, or before a sleep.
        if urgency == Urgency::Now || !self.outbox.is_empty() || self.has_urgent_chores() {
            self.put_chores();
        }
        if urgency == Urgency::Soon && self.corks > 0 && self.outbox.bytes() < CORK_BYTES {
            return;
        }
        while !self.outbox.is_empty() && !self.is_fork() {
            self.has_written = true;
            match self.outbox.write(&self.transport) {
                Ok(Written::All) => {
                    // Sends may have waited for room in the outbox.
                    self.pump_all();
                }
                Ok(Written::Blocked) if self.transport.is_ring_full() => {
                    return self.set_output(Output::RingFull);
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
        if self.inflow.is_lent() && matches!(error, Errno::PIPE | Errno::CONNRESET) {
            // Who sleeps in a read is woken by the end too, and has what came before it.
            return;
        }
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
        self.read_on(None)
    }

    /// As [`read`](Self::read), where the first read was made already.
    fn read_on(&mut self, mut first: Option<Result<Filled, Errno>>) -> bool {
        let before = self.arrivals;
        if self.comeback.is_some() {
            self.look_after();
        }
        for _ in 0..READS_IN_A_ROW {
            if self.gone.is_some() {
                break;
            }
            let filled = first.take().unwrap_or_else(|| self.inflow.fill(&self.transport));
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
        if !self.blocked.is_empty() {
            self.relieve();
        }
        if !self.is_settled(true) {
            self.flush(Urgency::Soon);
        }
        let something = self.arrivals != before || self.gone().is_some();
        if something && !self.onlookers.is_empty() {
            for wake in std::mem::take(&mut self.onlookers) {
                self.waits.wake(wake, &self.transport);
            }
        }
        something
    }

    fn take_frames(&mut self) {
        while self.gone.is_none() {
            if let Err(offence) = self.take_plain_frames() {
                self.break_off(&offence);
                return;
            }
            if self.inflow.is_empty() {
                return;
            }
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

    /// Takes in the messages that nothing is special about, up to a frame that is something else.
    /// What [`arrive`](Self::arrive) does with each, without what it asks of each: where little
    /// comes at a time, the code that runs is cold, and its length is what a message costs.
    fn take_plain_frames(&mut self) -> Result<(), String> {
        let Some(run) = self.inflow.plain_run() else {
            return Ok(());
        };
        // What comes in a row is mostly for one endpoint.
        let mut before: Option<Handle> = None;
        let mut count = 0;
        for message in run {
            let message = message.map_err(|error| error.to_string())?;
            let handle = message.endpoint();
            count += 1;
            if before != Some(handle) {
                if let Some(before) = before {
                    self.wake_receivers(before.get() as usize);
                }
                before = Some(handle);
                if let Some(copied) = self.monitored_next(handle) {
                    let item = Item::Monitored { message, copied };
                    open(&mut self.endpoints, handle)?.take_in(item)?;
                    continue;
                }
            }
            let endpoint = open(&mut self.endpoints, handle)?;
            if !endpoint.closing {
                endpoint.inbox.push_plain(message)?;
            }
        }
        if let Some(before) = before {
            self.wake_receivers(before.get() as usize);
        }
        self.arrivals += u64::from(count);
        self.note_traffic(count);
        Ok(())
    }

    /// The broker did what it may not do.
    pub(crate) fn break_off(&mut self, offence: &str) {
        if self.gone.is_none() {
            self.farewell(GoodbyeCode::Protocol, offence);
            self.lose(GoneReason::Protocol(offence.into()));
        }
    }

    fn arrive(&mut self, arrival: Arrival) -> Result<(), String> {
        let mut attached = arrival.attached;
        let mut message = match arrival.frame {
            Frame::Message(message) => message,
            Frame::Batch(batch) => return self.batch_arrived(batch),
            Frame::Other(BrokerFrame::Rings(rings)) => {
                return self.rings_frame(rings, attached);
            }
            Frame::Other(BrokerFrame::Memory { id, kind, length, descriptors }) => {
                if descriptors > 0 {
                    self.outbox.put(&ClientFrame::DescriptorsTaken);
                }
                let files = attached.map(|attached| attached.descriptors).unwrap_or_default();
                return self.memory_came(id, kind, length, files);
            }
            Frame::Other(frame) => return self.arrive_other(frame),
        };
        if message.descriptors() > 0 {
            self.outbox.put(&ClientFrame::DescriptorsTaken);
        }
        self.note_traffic(1);
        if let Some(placed) = message.placed() {
            let file = match (placed.within, &mut attached) {
                (PlacedIn::File, Some(attached)) => attached.descriptors.pop(),
                _ => None,
            };
            self.find_payload(&mut message, placed, file)?;
        }
        let endpoint = message.endpoint();
        if let Some(copied) = self.monitored_next(endpoint) {
            return self.deliver(endpoint, Item::Monitored { message, copied });
        }
        let key = endpoint.get() as usize;
        match message.role() {
            Role::Plain => {}
            Role::Request { .. } => self.request_arrived(key, message.sequence()),
            Role::Reply { request, .. } => {
                let reply = Reply { message, attached };
                return self.reply_arrived(key, request, reply);
            }
        }
        self.deliver(endpoint, Item::Message { message, attached })
    }

    /// Messages have come together, about which nothing is special.
    fn batch_arrived(&mut self, mut batch: BatchView) -> Result<(), String> {
        self.note_traffic(batch.len());
        if let Some(placed) = batch.placed() {
            let found = self.find(placed, None)?;
            let is_here = found.is_here();
            batch.set_found(found);
            if is_here {
                batch.check().map_err(|error| error.to_string())?;
            }
        }
        let handle = batch.endpoint();
        let endpoint = open(&mut self.endpoints, handle)?;
        if endpoint.monitored_next.is_some() {
            return Err("MESSAGES where a monitor's copy was announced".to_owned());
        }
        if !endpoint.closing {
            endpoint.inbox.push_batch(batch)?;
        }
        self.wake_receivers(handle.get() as usize);
        Ok(())
    }

    /// Sends were committed together.
    fn receipts_arrived(&mut self, sends: &ReceiptsFrame) -> Result<(), String> {
        for (id, receipt) in sends.each() {
            if self.check_send("RECEIPTS", id)? {
                return Err("RECEIPTS for a request".to_owned());
            }
            self.end_left(id.serial, Ok(receipt));
        }
        let (endpoint, lane) = sends.lane;
        self.pump(endpoint.get() as usize, lane);
        Ok(())
    }

    fn arrive_other(&mut self, frame: BrokerFrame) -> Result<(), String> {
        match frame {
            BrokerFrame::Message(_) | BrokerFrame::Messages(_) | BrokerFrame::Rings(_) => {
                unreachable!("dealt with where it was read")
            }
            BrokerFrame::Memory { .. } => unreachable!("memory comes with its descriptors"),
            BrokerFrame::Completed(range) => {
                self.completed(range);
                Ok(())
            }
            BrokerFrame::Forget { id } => {
                self.forget(id);
                Ok(())
            }
            BrokerFrame::Moved { hold, payload } => self.moved(hold, payload),
            BrokerFrame::Notice { endpoint, notice } => match notice {
                Notice::Outcome { request, why, .. } => {
                    self.outcome_arrived(endpoint.get() as usize, request, Answer::Ended(why))
                }
                Notice::RequestEnded { request, why } => {
                    self.request_ended(endpoint.get() as usize, request, &why);
                    Ok(())
                }
                Notice::Gap { group_id, gap } => {
                    self.deliver(endpoint, Item::Gap { group_id, gap })
                }
                Notice::Evicted {
                    group_id,
                    sequence,
                    reason,
                    stalled,
                    queued_messages,
                    back_off,
                } => {
                    let left_when_full = reason == EvictionReason::Full;
                    self.deliver(
                        endpoint,
                        Item::Evicted {
                            group_id,
                            sequence,
                            stalled,
                            queued_messages,
                            back_off,
                            left_when_full,
                        },
                    )?;
                    self.left(endpoint.get() as usize, group_id, sequence);
                    Ok(())
                }
                Notice::View(view) => self.view_changed(endpoint, view),
                notice @ (Notice::Candidate { .. }
                | Notice::Expelled { .. }
                | Notice::PeerGap { .. }
                | Notice::PeerStalled { .. }
                | Notice::FlagsChanged { .. }
                | Notice::PeerClosed { .. }) => self.gated_notice(endpoint, notice),
                Notice::ViewsLost { group_id, gap } => self.views_lost(endpoint, group_id, gap),
                Notice::Monitored(copied) => {
                    if let Some(state) = self.endpoints.get_mut(endpoint.get() as usize) {
                        state.monitored_next = Some(copied);
                    }
                    Ok(())
                }
                Notice::MonitoredView(view) => self.deliver(endpoint, Item::MonitoredView(view)),
                Notice::ReceiveEnded => {
                    self.receive_ended(endpoint.get() as usize);
                    Ok(())
                }
                Notice::MonitoredChange(change) => {
                    self.deliver(endpoint, Item::MonitoredChange(change))
                }
                Notice::MonitorGap { gap } => self.deliver(endpoint, Item::MonitorGap { gap }),
                Notice::Current { group_id, sequence, messages } => {
                    self.deliver(endpoint, Item::Current { group_id, sequence, messages })
                }
                Notice::Claim(claim) => self.claim_changed(endpoint, claim),
                Notice::Owner(change) => self.deliver(endpoint, Item::Owner(change)),
                Notice::OwnersLost { name_id, gap } => {
                    self.deliver(endpoint, Item::OwnersLost { name_id, gap })
                }
                other if other.is_charged() => self.pass_over(endpoint),
                _ => Ok(()),
            },
            BrokerFrame::Receipt { id, receipt } => {
                if self.check_send("RECEIPT", id)? {
                    self.asked(id, &receipt);
                } else {
                    self.end_send(id.serial, Ok(receipt));
                }
                Ok(())
            }
            BrokerFrame::Receipts(sends) => self.receipts_arrived(&sends),
            BrokerFrame::Refused { id, failure } => {
                self.check_send("REFUSED", id)?;
                self.refused(id, &failure);
                Ok(())
            }
            BrokerFrame::Done { serial, response, .. } => self.done(serial, response),
            BrokerFrame::Part { serial, response, .. } => self.part(serial, response),
            BrokerFrame::Error { serial, failure, .. } => {
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
                self.lose(away::said(goodbye));
                Ok(())
            }
            BrokerFrame::Welcome(_) => Err("a second WELCOME".to_owned()),
        }
    }

    /// Where a message went, if it is a monitor's copy: the notice before it has said so.
    fn monitored_next(&mut self, handle: Handle) -> Option<Box<Copied>> {
        self.endpoints.get_mut(handle.get() as usize)?.monitored_next.take()
    }

    fn deliver(&mut self, handle: Handle, item: Item) -> Result<(), String> {
        open(&mut self.endpoints, handle)?.take_in(item)?;
        self.wake_receivers(handle.get() as usize);
        Ok(())
    }

    fn wake_receivers(&mut self, key: usize) {
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return;
        };
        if let [Wake::Thread(id)] = endpoint.receivers[..]
            && self.waits.is_awake(id)
        {
            return;
        }
        for wake in endpoint.receivers.drain(..) {
            self.waits.wake(wake, &self.transport);
        }
    }

    // ---- Who waits for what

    fn woken(&mut self, wake: Option<Wake>) {
        match wake {
            Some(wake) => self.waits.wake(wake, &self.transport),
            // Nobody sleeps for it; a main loop may want to ask.
            None => self.attention = true,
        }
    }

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
                    Some(Entry::Request(request)) => request.wake = Some(wake),
                    None => {}
                }
            }
            Interest::Inbox(key) => {
                let endpoint = &mut self.endpoints[key];
                if matches!(wake, Wake::Task(_)) {
                    Reader::note_waiting(&mut endpoint.reader);
                }
                let receivers = &mut endpoint.receivers;
                if !receivers.iter().any(|other| is_same(other, &wake)) {
                    receivers.push(wake);
                }
            }
            Interest::Views(key) => {
                let waiters = &mut self.endpoints[key].views.waiters;
                if !waiters.iter().any(|other| is_same(other, &wake)) {
                    waiters.push(wake);
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
                    Some(Entry::Request(request)) => &mut request.wake,
                    None => return,
                };
                *place = None;
            }
            Interest::Inbox(key) => {
                if let Some(endpoint) = self.endpoints.get_mut(key) {
                    endpoint.receivers.retain(|other| !is_same(other, wake));
                }
            }
            Interest::Views(key) => {
                if let Some(endpoint) = self.endpoints.get_mut(key) {
                    endpoint.views.waiters.retain(|other| !is_same(other, wake));
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
    /// That a membership which an endpoint watches changes.
    Views(usize),
    /// That anything arrives.
    Anything,
}

/// The endpoint for which a message has come.
fn open(endpoints: &mut Slab<EndpointState>, handle: Handle) -> Result<&mut EndpointState, String> {
    let endpoint = endpoints.get_mut(handle.get() as usize);
    endpoint.ok_or_else(|| format!("a message for handle {handle}, which is not open"))
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
/// Looks for a fork by a system call before a page is taken for them.
const MARK_AFTER: u32 = 64;
/// Sleeps that are no long reads, at first and after one that brought nothing.
const POLLS_AFTER_SILENCE: u32 = 16;
/// Output that a cork holds back.
const CORK_BYTES: usize = 64 << 10;
/// Reads before others get their turn at the lock.
const READS_IN_A_ROW: usize = 16;
