//! The time without a broker, where the connection comes back.
//!
//! While it is away, `gone` says why, as when it has ended for good: so nothing is written, and
//! what asks the broker something fails. What is different: receiving waits rather than fails, and a
//! send that may wait, and that goes by name, lies in its lane until a broker is there. All that was
//! under way when the broker was lost has ended with that, so nothing is sent twice.
//!
//! Invariants:
//! - An endpoint's events of one connection all come before those of the next, with
//!   [`Item::Reconnected`] between them. It is not handed out before everything that the endpoint
//!   had was answered for, gated groups apart; so it can tell from where on nothing is missing.
//! - What came by a lost connection and is unread is resolved to events at once ([`Item::Old`]),
//!   because ids mean something else from then on; and it owes the next broker no credit.
//! - What is unread of one lost connection is kept, and of those after it nothing, until it was
//!   read: so an application that does not read costs the same however often brokers come and go.
//! - Whoever waits, or polls the descriptor, is woken by the beacon's timer when there is something
//!   to be done here.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus_core::wire::{
    BrokerFrame, ClientFrame, Failure, Goodbye, GoodbyeCode, Hello, Incarnation, MAGIC,
    RINGS_FEATURE, Request, Response, Welcome,
};
use bus_core::{EndpointId, GroupId, GroupName, NameId, Sequence};
use bytes::BytesMut;

use super::call::Purpose;
use super::endpoint::EndpointState;
use super::kept::{self, Grant, Standing, ThingId};
use super::send::Stage;
use super::{Entry, State, Urgency};
use crate::connection;
use crate::error::{BrokerGone, GoneReason, SendError};
use crate::inbox::Item;
use crate::inflow::{Filled, Frame, Inflow};
use crate::lane::LaneState;
use crate::message::Event;
use crate::reconnect::{Fate, Possession, Reconnect, Reconnected, Restored};
use crate::transport::{self, Output};

/// How the connection comes back.
#[derive(Debug)]
pub(crate) struct Comeback {
    path: PathBuf,
    hello: Hello,
    /// How long to wait for a greeting.
    patience: Duration,
    policy: Reconnect,
    phase: Phase,
    /// Attempts in a row that led nowhere.
    failures: u32,
    /// When the present connection began, or the last one was lost.
    since: Instant,
    /// When something is to be asked for again.
    again: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    There,
    /// Until the next attempt.
    Resting(Instant),
    /// A broker was called, and is to greet by this time.
    Greeting(Instant),
}

/// Where an endpoint's events of the last connection end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure {
    before: Incarnation,
    last: Option<Sequence>,
    skipped: u32,
}

/// What an endpoint is told when the connection is there again.
#[derive(Debug)]
pub(super) struct Return {
    from: Departure,
    incarnation: Incarnation,
    /// Whether the endpoint itself is there.
    opened: bool,
    /// What was asked for, and with which of these the answer is still waited for.
    restored: Vec<(ThingId, Restored)>,
    open: Vec<ThingId>,
}

impl Comeback {
    pub(crate) fn new(path: PathBuf, hello: Hello, patience: Duration, policy: Reconnect) -> Self {
        Self {
            path,
            hello,
            patience,
            policy,
            phase: Phase::There,
            failures: 0,
            since: Instant::now(),
            again: None,
        }
    }
}

impl Return {
    pub(super) fn is_ready(&self) -> bool {
        self.opened && self.open.is_empty()
    }

    fn event(self, endpoint: EndpointId) -> Event {
        Event::Reconnected(Box::new(Reconnected {
            before: *self.from.before.as_bytes(),
            last: self.from.last,
            skipped: self.from.skipped,
            incarnation: *self.incarnation.as_bytes(),
            endpoint,
            restored: self.restored.into_iter().map(|(_, restored)| restored).collect(),
        }))
    }
}

impl EndpointState {
    /// The event that stands between two connections.
    pub(super) fn returned(&mut self) -> Event {
        let returned = self.returning.take().expect("it is made with its item");
        returned.event(self.id)
    }

    /// The broker is lost: what came from it stands alone from here on.
    fn depart(&mut self, before: Incarnation) {
        let items = self.inbox.orphan();
        let marker = items.iter().position(|item| matches!(item, Item::Reconnected));
        let unread = match marker {
            // Of what the last connection brought nothing was looked at.
            Some(at) if at > 0 || !self.is_back() => at,
            _ => items.len(),
        };
        let whole = unread == items.len();
        for item in items.into_iter().take(unread) {
            let mut event = match item {
                Item::Old(event) => *event,
                item => self.event(item),
            };
            if let Event::Message(message) = &mut event
                && message.is_request()
            {
                message.set_orphan();
            }
            self.inbox.tell(Item::Old(Box::new(event)));
        }
        let last = self.last.take();
        self.departed = Some(match self.returning.take() {
            Some(returned) if !whole => {
                Departure { skipped: returned.from.skipped.saturating_add(1), ..returned.from }
            }
            _ => Departure { before, last, skipped: 0 },
        });
        self.lanes.iter_mut().for_each(LaneState::forget_refusals);
        self.groups.clear();
        self.left_groups = 0;
        self.joining = 0;
        self.claims = Default::default();
        self.monitored_next = None;
        self.requests.depart();
        self.kept.depart();
        self.views.depart(|name| self.kept.find(&Possession::Watch(name.clone())).is_some());
    }

    fn is_back(&self) -> bool {
        self.returning.as_ref().is_some_and(|returned| returned.is_ready())
    }

    /// What became of something that was asked for again. What the marker cannot tell any more is
    /// told by itself; `None` says that nothing is new.
    fn tell_fate(&mut self, id: ThingId, what: Possession, fate: Option<Fate>) {
        let told = self.returning.as_mut();
        if let Some(told) = told.filter(|told| told.open.contains(&id)) {
            told.open.retain(|open| *open != id);
            let place = told.restored.iter_mut().find(|(of, _)| *of == id);
            if let (Some((_, restored)), Some(fate)) = (place, fate) {
                restored.fate = fate;
            }
        } else if let Some(fate) = fate.filter(|fate| !matches!(fate, Fate::Waiting { .. })) {
            self.inbox.tell(Item::Restored(Box::new(Restored { what, fate })));
        }
    }
}

impl State {
    /// Whether there is no broker, and another one is looked for.
    pub(crate) fn is_away(&self) -> bool {
        self.comeback.as_ref().is_some_and(|comeback| comeback.phase != Phase::There)
    }

    /// Whether what endpoints have is kept for a time after the broker.
    pub(super) fn comes_back(&self) -> bool {
        self.comeback.is_some()
    }

    /// The incarnation of the bus that this is, or was last, a connection to.
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The broker is lost and everybody has an answer: looks for another one, if that makes sense.
    pub(super) fn depart(&mut self, reason: &GoneReason) {
        let Some(comeback) = &mut self.comeback else {
            return;
        };
        if !may_return(reason) {
            self.comeback = None;
            return;
        }
        let calm = comeback.since.elapsed() > comeback.policy.calm();
        comeback.failures = if calm { 0 } else { comeback.failures.saturating_add(1) };
        comeback.since = Instant::now();
        comeback.again = None;
        // Who waits for anything to happen has got it.
        self.arrivals += 1;
        for group in self.groups.values() {
            group.depart();
        }
        for name in self.names.values() {
            name.depart();
        }
        let before = self.incarnation;
        self.endpoints.retain(|_, endpoint| !endpoint.closing && !endpoint.opening);
        for (_, endpoint) in &mut self.endpoints {
            endpoint.depart(before);
        }
        self.descriptors_under_way = false;
        self.drained = true;
        self.rest();
    }

    /// Waits for the next attempt. The first one is made at once.
    fn rest(&mut self) {
        self.transport.retire();
        self.inflow = Inflow::new();
        self.output = Output::Away;
        let comeback = self.comeback.as_mut().expect("only a connection that comes back rests");
        let mut pause = match comeback.failures {
            0 => Duration::ZERO,
            failures => comeback.policy.pause(failures),
        };
        if let Some(patience) = comeback.policy.patience() {
            let left = patience.saturating_sub(comeback.since.elapsed());
            if left.is_zero() && comeback.failures > 0 {
                return self.end(None);
            }
            pause = pause.min(left);
        }
        comeback.phase = Phase::Resting(Instant::now() + pause);
        self.transport.set_timer(Some(pause));
        self.waits.wake_leader(&self.transport);
    }

    /// Does what is due: looks for a broker, or asks for what was not to be had.
    pub(super) fn look_after(&mut self) {
        let Some(comeback) = &self.comeback else {
            return;
        };
        if self.pid != std::process::id() {
            // The beacon is shared with the parent.
            let gone = BrokerGone::new(GoneReason::Forked);
            self.comeback = None;
            self.gone = Some(gone.clone());
            return self.give_up(&gone);
        }
        let now = Instant::now();
        match comeback.phase {
            Phase::Resting(until) if now >= until => self.knock(now),
            Phase::Greeting(until) => self.listen(now >= until),
            Phase::There if comeback.again.is_some_and(|again| now >= again) => {
                for key in self.keys() {
                    self.ask_for_due(key, now);
                }
                self.plan();
            }
            Phase::Resting(_) | Phase::There => {}
        }
    }

    fn knock(&mut self, now: Instant) {
        let comeback = self.comeback.as_mut().expect("the caller has looked");
        let mut greeting = BytesMut::from(&MAGIC[..]);
        let hello = ClientFrame::Hello(comeback.hello.clone()).encode(&mut greeting);
        let socket = transport::connect_now(&comeback.path);
        let met = socket.and_then(|socket| self.transport.renewed(socket));
        let (Ok(()), Ok(transport)) = (hello, met) else {
            return self.try_later();
        };
        self.transport = Arc::new(transport);
        // A socket that is new has room for a greeting.
        if self.transport.write(&[IoSlice::new(&greeting)], &[]) != Ok(greeting.len()) {
            return self.try_later();
        }
        comeback.phase = Phase::Greeting(now + comeback.patience);
        self.transport.set_timer(Some(comeback.patience));
        self.output = Output::Idle;
        // It sleeps without a socket.
        self.waits.wake_leader(&self.transport);
    }

    fn listen(&mut self, late: bool) {
        let filled = self.inflow.fill(&self.transport);
        match self.inflow.next().map(|arrival| arrival.map(|arrival| arrival.frame)) {
            Ok(Some(Frame::Other(BrokerFrame::Welcome(welcome)))) => {
                match connection::check(*welcome) {
                    Ok(welcome) => self.arrive_back(welcome),
                    Err(_) => self.end(Some(GoneReason::Protocol("a WELCOME that is none".into()))),
                }
            }
            Ok(Some(Frame::Other(BrokerFrame::Goodbye(goodbye)))) => {
                let reason = said(goodbye);
                if may_return(&reason) { self.try_later() } else { self.end(Some(reason)) }
            }
            Ok(Some(_)) | Err(_) => {
                self.end(Some(GoneReason::Protocol("a frame before WELCOME".into())));
            }
            Ok(None) if late || !matches!(filled, Ok(Filled::More | Filled::Drained)) => {
                self.try_later();
            }
            Ok(None) => {}
        }
    }

    fn try_later(&mut self) {
        if let Some(comeback) = &mut self.comeback {
            comeback.failures = comeback.failures.saturating_add(1);
        }
        self.rest();
    }

    /// A broker has greeted us.
    fn arrive_back(&mut self, welcome: Welcome) {
        let comeback = self.comeback.as_mut().expect("the caller has looked");
        (comeback.phase, comeback.since) = (Phase::There, Instant::now());
        let now = comeback.since;
        if welcome.features.iter().any(|feature| feature == RINGS_FEATURE) {
            self.wish_rings();
        }
        self.incarnation = welcome.incarnation;
        self.limits = welcome.limits;
        self.gone = None;
        self.arrivals += 1;
        self.attention = true;
        self.transport.set_timer(None);
        for key in self.keys() {
            let is_first = key == 0;
            let Some(endpoint) = self.endpoints.get_mut(key) else {
                if is_first {
                    // The greeting brings an endpoint that nobody here has any more.
                    self.call_and_forget(key, Purpose::Plain, Request::CloseEndpoint);
                }
                continue;
            };
            if is_first {
                endpoint.id = welcome.endpoint;
            }
            let from = endpoint.departed.take().unwrap_or(Departure {
                before: welcome.incarnation,
                last: None,
                skipped: 0,
            });
            let incarnation = welcome.incarnation;
            endpoint.returning = Some(Box::new(Return {
                from,
                incarnation,
                opened: is_first,
                restored: Vec::new(),
                open: Vec::new(),
            }));
            endpoint.inbox.tell(Item::Reconnected);
            endpoint.inbox.allow_replies(self.limits.requests, self.limits.reply_bytes);
            if !is_first {
                self.call_and_forget(key, Purpose::Reopen, Request::OpenEndpoint);
            }
            self.ask_for_due(key, now);
            self.wake_receivers(key);
        }
        self.plan();
        self.take_frames();
        self.pump_all();
        self.flush(Urgency::Now);
    }

    fn call_and_forget(&mut self, key: usize, purpose: Purpose, request: Request) {
        if let Ok(serial) = self.call(key, purpose, request) {
            self.abandon(serial);
        }
    }

    /// Asks for what an endpoint had and has not.
    fn ask_for_due(&mut self, key: usize, now: Instant) {
        let Some(endpoint) = self.endpoints.get(key).filter(|endpoint| !endpoint.closing) else {
            return;
        };
        for (id, request) in endpoint.kept.due(now) {
            let purpose = self.purpose_of(&request);
            let Ok(serial) = self.call(key, purpose, request) else {
                return;
            };
            if let Some(Entry::Call(call)) = self.pending.get_mut(serial) {
                (call.kept, call.restores) = (None, Some(id));
            }
            let endpoint = &mut self.endpoints[key];
            let Some(thing) = endpoint.kept.get(id) else {
                continue;
            };
            let (what, gated, is_new) =
                (thing.what.clone(), thing.gated, thing.now == Standing::Away);
            thing.attempts += 1;
            thing.now = Standing::Asked;
            if let Some(told) = endpoint.returning.as_mut().filter(|_| is_new) {
                told.restored.push((id, Restored { what, fate: kept::waiting("") }));
                if !gated {
                    told.open.push(id);
                }
            }
        }
    }

    fn purpose_of(&mut self, request: &Request) -> Purpose {
        match request {
            Request::Join { group, .. } => Purpose::Join(self.group(group)),
            Request::Create { group, .. } => Purpose::Create(self.group(group)),
            Request::CreateGated { group, .. } => Purpose::Own(self.group(group)),
            Request::OwnName { name, .. } => Purpose::OwnName(name.clone()),
            Request::WatchGroup { group, .. } => Purpose::WatchGroup(group.clone()),
            _ => Purpose::Plain,
        }
    }

    /// Something that was asked for again is answered for.
    pub(super) fn restored(&mut self, key: usize, id: ThingId, response: &Response) {
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return;
        };
        let granted = endpoint.kept.get(id).and_then(|thing| kept::grant(&thing.request, response));
        let Some(grant) = granted else {
            // It was given up meanwhile.
            return self.give_back(key, response);
        };
        endpoint.kept.restored(id, &grant);
        let Grant { what, at, .. } = grant;
        endpoint.tell_fate(id, what, at.map(Fate::At));
        self.wake_receivers(key);
    }

    fn give_back(&mut self, key: usize, response: &Response) {
        match response {
            Response::Joined { group_id, .. } | Response::Admitted { group_id, .. } => {
                self.leave_group(key, *group_id);
            }
            Response::Claimed { name_id, .. } => self.release_name(key, *name_id),
            Response::Watching { group_id, .. } => {
                let request = Request::UnwatchGroup { group_id: *group_id };
                self.call_and_forget(key, Purpose::Plain, request);
            }
            Response::NameWatched { name_id, .. } => {
                let request = Request::UnwatchName { name_id: *name_id };
                self.call_and_forget(key, Purpose::Plain, request);
            }
            Response::Monitoring { .. } => {
                self.call_and_forget(key, Purpose::Plain, Request::Unmonitor);
            }
            _ => {}
        }
    }

    /// Something that was asked for again was refused. Tells whether it will be asked for once more.
    pub(super) fn not_restored(&mut self, key: usize, id: ThingId, failure: &Failure) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return false;
        };
        let Some(thing) = endpoint.kept.get(id) else {
            return false;
        };
        let what = thing.what.clone();
        let code = failure.code.as_str().to_owned();
        let comes = kept::may_come(&failure.code);
        let fate = if comes {
            let pause = match (&self.comeback, failure.retry_after) {
                (_, Some(after)) => after,
                (Some(comeback), None) => comeback.policy.pause(thing.attempts),
                (None, None) => Duration::ZERO,
            };
            thing.now = Standing::Waiting { until: Instant::now() + pause };
            Fate::Waiting { code }
        } else {
            endpoint.kept.drop_thing(id);
            Fate::Lost { code, text: failure.text.clone() }
        };
        endpoint.tell_fate(id, what, Some(fate));
        self.wake_receivers(key);
        self.plan();
        comes
    }

    /// An endpoint is there again, with a new id; or the broker does not take it.
    pub(super) fn reopened(&mut self, key: usize, answer: Result<EndpointId, &Failure>) {
        match answer {
            Ok(id) => {
                if let Some(endpoint) = self.endpoints.get_mut(key) {
                    endpoint.id = id;
                    if let Some(told) = &mut endpoint.returning {
                        told.opened = true;
                    }
                    self.wake_receivers(key);
                }
            }
            Err(failure) => self.lose(GoneReason::Goodbye {
                code: GoodbyeCode::LimitExceeded.as_str().into(),
                text: failure.text.as_str().into(),
            }),
        }
    }

    /// Sets the timer for what is to be asked for again.
    fn plan(&mut self) {
        let next = self.endpoints.iter().filter_map(|(_, endpoint)| endpoint.kept.next()).min();
        if let Some(comeback) = &mut self.comeback
            && comeback.phase == Phase::There
            && comeback.again != next
        {
            comeback.again = next;
            self.transport.set_timer(next.map(|at| at.saturating_duration_since(Instant::now())));
        }
    }

    /// Nobody is looked for any more.
    pub(super) fn end(&mut self, reason: Option<GoneReason>) {
        self.transport.retire();
        self.comeback = None;
        if let Some(reason) = reason {
            self.gone = Some(BrokerGone::new(reason));
        }
        // Main loops are to notice, at any time from here on.
        self.transport.set_timer(Some(Duration::ZERO));
        let Some(gone) = self.gone.clone() else {
            unreachable!("what is away is gone");
        };
        self.give_up(&gone);
    }

    /// What has waited for a broker waits no more.
    fn give_up(&mut self, gone: &BrokerGone) {
        self.output = Output::Away;
        self.queued_sends = 0;
        for (_, endpoint) in &mut self.endpoints {
            endpoint.lanes.iter_mut().for_each(LaneState::clear);
        }
        for serial in self.pending.serials() {
            if let Some(Entry::Send(send)) = self.pending.get(serial)
                && matches!(send.stage, Stage::Queued { .. })
            {
                self.answer_send(serial, Err(SendError::BrokerGone(gone.clone())));
            }
        }
        self.wake_all();
    }

    // ---- What endpoints have

    /// The present id of a group that an endpoint is a member of, which it is about to leave: it is
    /// not asked for again.
    pub(crate) fn leaving(&mut self, key: usize, group: &GroupName) -> Option<GroupId> {
        let what = Possession::Member(group.clone());
        self.endpoints.get_mut(key)?.kept.forget(&what)?.group()
    }

    /// The present id of a name that an endpoint is about to release: it is not asked for again.
    pub(crate) fn releasing(&mut self, key: usize, name: &GroupName) -> Option<NameId> {
        let what = Possession::Name(name.clone());
        self.endpoints.get_mut(key)?.kept.forget(&what)?.name()
    }

    /// The same of a watch on a name.
    pub(crate) fn unwatching(&mut self, key: usize, name: &GroupName) -> Option<NameId> {
        let what = Possession::NameWatch(name.clone());
        self.endpoints.get_mut(key)?.kept.forget(&what)?.name()
    }

    /// The present id of a group, by what an endpoint has of it.
    pub(crate) fn group_of(&self, key: usize, what: &Possession) -> Option<GroupId> {
        self.endpoints.get(key)?.kept.find(what)?.group()
    }

    /// The present peer endpoint of a membership in a gated group.
    pub(crate) fn peer_of(&self, key: usize, group: &GroupName) -> Option<EndpointId> {
        let what = Possession::Member(group.clone());
        self.endpoints.get(key)?.kept.find(&what)?.peer()
    }
}

/// Whether another broker, or this one, may take us in after that.
fn may_return(reason: &GoneReason) -> bool {
    match reason {
        GoneReason::Closed | GoneReason::Io(..) => true,
        GoneReason::Goodbye { code, .. } => matches!(
            GoodbyeCode::from(&**code),
            GoodbyeCode::Shutdown
                | GoodbyeCode::LimitExceeded
                | GoodbyeCode::NotReading
                | GoodbyeCode::TooSlow
        ),
        GoneReason::Protocol(_) | GoneReason::ClosedHere | GoneReason::Forked => false,
    }
}

pub(super) fn said(goodbye: Goodbye) -> GoneReason {
    GoneReason::Goodbye { code: goodbye.code.as_str().into(), text: goodbye.text.into() }
}
