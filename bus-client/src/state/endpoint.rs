//! An endpoint of the connection: its inbox, its lanes, and the groups that messages come from.
//!
//! What it receives is not handed out while its group is unknown and a join is not yet answered:
//! the answer, which may be overtaken by the first messages, tells the name.

use std::task::Waker;

use ahash::HashMap;
use bus_core::wire::{ClientFrame, Copied, LaneNumber, MAX_LANES, Notice, Request, Role, Serial};
use bus_core::{EndpointId, GroupId, GroupName, Sequence};

use super::away::{Departure, Return};
use super::call::{CallError, Purpose};
use super::kept::Kept;
use super::names::Claims;
use super::relief::Reader;
use super::request::Requests;
use super::views::Views;
use super::{State, Urgency, handle};
use crate::apart::Found;
use crate::clock::Tick;
use crate::inbox::{Amount, Inbox, Item, Queued};
use crate::lane::LaneState;
use crate::message::{Current, Event, Evicted, Gap, Message};
use crate::monitor::{self, Monitored};
use crate::names::{OwnerChangesLost, event_of};
use crate::waits::Wake;

/// One endpoint of the connection.
#[derive(Debug)]
pub(super) struct EndpointState {
    pub(super) id: EndpointId,
    pub(super) inbox: Inbox,
    pub(super) receivers: Vec<Wake>,
    /// Nobody has received from it, if none.
    pub(super) reader: Option<Reader>,
    /// Threads that wait to receive from it, those included that were woken and have not yet run.
    pub(super) reading: usize,
    pub(super) lanes: Vec<LaneState>,
    pub(super) groups: HashMap<GroupId, KnownGroup>,
    /// How many of `groups` were left.
    pub(super) left_groups: usize,
    pub(super) joining: usize,
    pub(super) views: Views,
    pub(super) requests: Requests,
    pub(super) claims: Claims,
    /// Where the next message went, which is a monitor's copy.
    pub(super) monitored_next: Option<Box<Copied>>,
    /// Nothing comes any more but what is in the inbox.
    pub(super) receive_ended: bool,
    /// The broker has not answered for it yet.
    pub(super) opening: bool,
    pub(super) closing: bool,
    /// The highest sequence that the application was told of.
    pub(super) last: Option<Sequence>,
    /// What it has, where the connection comes back.
    pub(super) kept: Kept,
    /// Where the last connection ended, while there is none.
    pub(super) departed: Option<Departure>,
    /// What is to be told of the return, until it has been told.
    pub(super) returning: Option<Box<Return>>,
    /// A main loop polls for this endpoint.
    pub(super) polled: bool,
}

/// A group that messages may come from.
#[derive(Debug)]
pub(super) struct KnownGroup {
    pub(super) name: GroupName,
    /// Where the endpoint left it: later messages need it no more.
    pub(super) left: Option<Sequence>,
}

impl EndpointState {
    /// Takes in what has come, unless nobody will receive it any more.
    ///
    /// # Errors
    ///
    /// The broker has sent more than it had credit for.
    pub(super) fn take_in(&mut self, item: Item) -> Result<(), &'static str> {
        if self.closing { Ok(()) } else { self.inbox.push(item) }
    }

    /// Whether there is something to receive.
    pub(super) fn is_ready(&self, gone: bool) -> bool {
        let front = match self.inbox.front() {
            Some(Queued::One(item)) => Some(item),
            Some(Queued::Batch(batch)) => {
                let known = |group| self.groups.contains_key(&group);
                let is_known = self.joining == 0 || batch.group().is_none_or(known);
                return batch.is_checked() && (gone || is_known);
            }
            None => None,
        };
        match front {
            None => false,
            // At the end of all, it tells what it knows.
            Some(Item::Reconnected) => {
                gone || self.returning.as_ref().is_none_or(|returned| returned.is_ready())
            }
            Some(Item::Message { message, .. }) if !Found::is_here_in(message) => gone,
            Some(_) if gone || self.joining == 0 => true,
            Some(Item::Message { message, .. }) => {
                message.group().is_none_or(|group| self.groups.contains_key(&group))
                    && message.name().is_none_or(|name| self.claims.knows(name))
            }
            Some(
                Item::Gap { group_id, .. }
                | Item::Evicted { group_id, .. }
                | Item::Current { group_id, .. },
            ) => self.groups.contains_key(group_id),
            Some(Item::Gated(notice)) => match &**notice {
                Notice::Expelled { group_id, .. } | Notice::FlagsChanged { group_id, .. } => {
                    self.groups.contains_key(group_id)
                }
                _ => true,
            },
            Some(Item::Old(_) | Item::Restored(_)) => true,
            Some(Item::Name(_) | Item::Owner(_) | Item::OwnersLost { .. }) => true,
            Some(
                Item::View(_)
                | Item::ViewsLost { .. }
                | Item::Monitored { .. }
                | Item::MonitoredView(_)
                | Item::MonitoredChange(_)
                | Item::MonitorGap { .. },
            ) => true,
        }
    }

    pub(super) fn name_of(&self, group: GroupId) -> Option<GroupName> {
        self.groups.get(&group).map(|known| known.name.clone())
    }

    /// Forgets groups that were left before `now` in the order: nothing of theirs can follow.
    pub(super) fn forget_left(&mut self, now: Sequence) {
        if self.left_groups > 0 {
            self.groups.retain(|_, known| known.left.is_none_or(|left| left >= now));
            self.left_groups = self.groups.values().filter(|known| known.left.is_some()).count();
        }
    }

    /// What the application gets for an item.
    pub(super) fn event(&mut self, item: Item) -> Event {
        match item {
            Item::Message { message, attached } => {
                let group = message.group().and_then(|group| self.name_of(group));
                let missed = match (message.missed(), message.group()) {
                    (Some(gap), Some(group_id)) => Some(named(gap, group_id, group.clone())),
                    _ => None,
                };
                self.forget_left(message.sequence());
                if !message.retained() {
                    self.last = self.last.max(Some(message.sequence()));
                }
                let name = message.name().and_then(|name| self.claims.name_of(name).cloned());
                let message = Message::new(message, group, missed, attached);
                Event::Message(message.with_name(name))
            }
            Item::Old(event) => *event,
            Item::Reconnected => self.returned(),
            Item::Restored(restored) => Event::Restored(restored),
            Item::Name(claim) => event_of(*claim),
            Item::Owner(change) => Event::OwnerChanged(Box::new((*change).into())),
            Item::OwnersLost { name_id, gap } => {
                Event::OwnerChangesLost(OwnerChangesLost { name_id, gap })
            }
            Item::Current { group_id, sequence, messages } => {
                let group = self.name_of(group_id);
                Event::Current(Current { group, group_id, sequence, messages })
            }
            Item::Gated(notice) => self.gated_event(*notice),
            Item::Monitored { message, copied } => {
                let missed = message.missed().map(monitor::gap);
                let (to, role) = monitor::read(*copied, message.group());
                let message = Message::new(message, to.group().cloned(), missed, None);
                Event::Monitored(Box::new(Monitored { to, role, message }))
            }
            Item::MonitoredChange(change) => Event::MonitoredChange(Box::new((*change).into())),
            Item::MonitoredView(notice) => Event::MonitoredView(Box::new((*notice).into())),
            Item::MonitorGap { gap } => Event::MonitorGap(monitor::gap(gap)),
            Item::View(notice) => {
                self.last = self.last.max(Some(notice.sequence));
                Event::View(Box::new((*notice).into()))
            }
            Item::ViewsLost { group_id, gap } => {
                Event::ViewsLost(named(gap, group_id, self.views.name_of(group_id)))
            }
            Item::Gap { group_id, gap } => {
                self.last = self.last.max(Some(gap.last));
                Event::Gap(named(gap, group_id, self.name_of(group_id)))
            }
            Item::Evicted {
                group_id,
                sequence,
                stalled,
                queued_messages,
                back_off,
                left_when_full,
            } => {
                self.last = self.last.max(Some(sequence));
                let group = self.name_of(group_id);
                // Its place in the order is its own, so the name has served.
                self.forget_left(Sequence::from_raw(sequence.get().saturating_add(1)));
                Event::Evicted(Box::new(Evicted {
                    group,
                    group_id,
                    sequence,
                    stalled,
                    queued_messages,
                    back_off,
                    left_when_full,
                }))
            }
        }
    }
}

impl State {
    pub(super) fn insert_endpoint(&mut self) -> usize {
        let capacity =
            Amount { messages: self.limits.queue_messages, bytes: self.limits.queue_bytes };
        let lanes = usize::from(self.limits.lanes.clamp(1, MAX_LANES));
        let mut endpoint = EndpointState {
            id: EndpointId::from_raw(0),
            inbox: Inbox::new(capacity, self.backlog),
            receivers: Vec::new(),
            reader: None,
            reading: 0,
            lanes: (0..lanes).map(|_| LaneState::default()).collect(),
            groups: HashMap::default(),
            left_groups: 0,
            joining: 0,
            views: Views::default(),
            requests: Requests::default(),
            claims: Claims::default(),
            monitored_next: None,
            receive_ended: false,
            opening: false,
            closing: false,
            last: None,
            kept: Kept::default(),
            departed: None,
            returning: None,
            polled: false,
        };
        endpoint.lanes[0].open = true;
        endpoint.inbox.allow_replies(self.limits.requests, self.limits.reply_bytes);
        let key = self.endpoints.insert(endpoint);
        self.keys_end = self.keys_end.max(key + 1);
        key
    }

    /// Asks for a further endpoint; gives its key and the call.
    pub(crate) fn open_endpoint(&mut self) -> Result<(usize, Serial), CallError> {
        let key = self.insert_endpoint();
        self.endpoints[key].opening = true;
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
        if self.is_away() {
            self.closed(key);
        }
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

    pub(super) fn put_resume(&mut self, key: usize, lane: LaneNumber) {
        if self.gone.is_none() {
            self.outbox.put(&ClientFrame::Resume { endpoint: handle(key), lane });
        }
    }

    /// All has come for an endpoint that receives nothing any more.
    pub(super) fn receive_ended(&mut self, key: usize) {
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return;
        };
        endpoint.receive_ended = true;
        self.end_requests(key);
        self.wake_receivers(key);
    }

    /// Whether nothing will be received any more by an endpoint, for which nothing was found.
    pub(crate) fn has_received_all(&self, key: usize) -> bool {
        self.endpoints.get(key).is_some_and(|endpoint| endpoint.receive_ended)
    }

    /// Whether anything has come for an endpoint that was not taken.
    #[inline]
    pub(crate) fn has_items(&self, key: usize) -> bool {
        self.endpoints.get(key).is_some_and(|endpoint| !endpoint.inbox.is_empty())
    }

    /// Takes the next event of an endpoint, if there is one, for the calling thread or a task on
    /// it.
    pub(crate) fn take_event(&mut self, key: usize, task: Option<&Waker>) -> Option<Event> {
        let event = self.take_owing(key, task)?;
        self.return_some_credit(key);
        Some(event)
    }

    /// Returns what is due of an endpoint's credit.
    pub(crate) fn return_some_credit(&mut self, key: usize) {
        if let Some(credit) = self.endpoints[key].inbox.return_some(Tick::now()) {
            self.put_credit(key, credit);
            self.flush(Urgency::Now);
        }
    }

    /// As [`take_event`](Self::take_event), and leaves the credit to a caller who takes several.
    pub(crate) fn take_owing(&mut self, key: usize, task: Option<&Waker>) -> Option<Event> {
        let gone = self.gone().is_some();
        let endpoint = &mut self.endpoints[key];
        Reader::note(&mut endpoint.reader, task);
        if !endpoint.is_ready(gone) {
            return None;
        }
        let item = endpoint.inbox.take()?;
        if let Item::Message { message, .. } = &item
            && matches!(message.role(), Role::Request { .. })
            && self.is_over(key, message.sequence())
        {
            // Nobody waits for the reply any more.
            if let Some(credit) = self.endpoints[key].inbox.return_some(Tick::now()) {
                self.put_credit(key, credit);
                self.flush(Urgency::Soon);
            }
            return self.take_owing(key, task);
        }
        Some(self.endpoints[key].event(item))
    }

    /// Takes messages that nothing is special about, until `events` has `end` events or something
    /// else is next. What [`take_event`](Self::take_event) does for a thread, but the credit of all
    /// is returned at once.
    pub(crate) fn take_plain(&mut self, key: usize, events: &mut Vec<Event>, end: usize) {
        let endpoint = &mut self.endpoints[key];
        // Else one may have to wait, or be the last that needs a group's name.
        if endpoint.joining > 0 || endpoint.left_groups > 0 {
            return;
        }
        let before = events.len();
        // What comes in a row is mostly of one group.
        let mut known: (Option<GroupId>, Option<GroupName>) = (None, None);
        while events.len() < end {
            if let Some(Queued::Batch(batch)) = endpoint.inbox.front() {
                let group = batch.group().and_then(|group| endpoint.name_of(group));
                let most = end - events.len();
                let make = |message| Event::Message(Message::plain(message, None));
                let taken = endpoint.inbox.take_of_batch(most, group.as_ref(), events, make);
                // None of one that lies where nobody can look yet.
                let Some(last) = taken else { break };
                endpoint.last = Some(last);
                continue;
            }
            let Some(message) = endpoint.inbox.take_plain() else { break };
            let group = message.group();
            if known.0 != group {
                known = (group, group.and_then(|group| endpoint.name_of(group)));
            }
            endpoint.last = Some(message.sequence());
            events.push(Event::Message(Message::plain(message, known.1.clone())));
        }
        if events.len() == before {
            return;
        }
        Reader::note(&mut endpoint.reader, None);
        self.return_some_credit(key);
    }

    pub(super) fn put_credit(&mut self, key: usize, credit: Amount) {
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

    /// Whether places are free that the broker does not know of.
    pub(super) fn owes_credit(&self) -> bool {
        self.endpoints.iter().any(|(_, endpoint)| endpoint.inbox.owes())
    }

    pub(super) fn return_all_credit(&mut self) {
        if !self.owes_credit() {
            return;
        }
        let now = Tick::now();
        for key in self.keys() {
            let endpoint = self.endpoints.get_mut(key);
            if let Some(credit) = endpoint.and_then(|endpoint| endpoint.inbox.return_all(now)) {
                self.put_credit(key, credit);
            }
        }
    }
}

pub(super) fn named(gap: bus_core::Gap, group_id: GroupId, group: Option<GroupName>) -> Gap {
    Gap { group, group_id, count: gap.count, first: gap.first, last: gap.last }
}
