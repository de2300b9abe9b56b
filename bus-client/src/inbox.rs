//! What has arrived for one endpoint and was not yet received, and the credit that goes back.
//!
//! The endpoint's queue is one queue in two places: the broker keeps what it has not delivered,
//! and this inbox keeps the rest; the places of both together are the queue's capacity. A message
//! holds its place until its credit is returned.
//!
//! Invariants:
//! - Items leave in the order in which they came (G2).
//! - `items` is the backlog, then the rest. What is in the backlog has given its place back
//!   already, so that senders go on while the application cannot read; the backlog is bounded.
//! - `held` counts the places of the rest, `owed` those that the application has freed and the
//!   broker does not know of. Together they never exceed the capacity by more than the one message
//!   that crosses it and the one that has a place kept for it, or the broker has broken the
//!   protocol.
//!
//! Returning credit costs a frame, and the broker a wake-up, so it is gathered: up to a quarter of
//! the capacity, and within one tick of a coarse clock. So an application that
//! reads in a row returns places by the quarter, and one that takes its time returns each at once.
//! Whoever is about to sleep for longer returns all ([`return_all`](Inbox::return_all)).

use std::collections::VecDeque;

use std::time::Duration;

use bus_core::wire::{
    BatchView, ClaimChanged, Copied, MessageView, MonitoredChange, OwnerChanged, ViewNotice,
    WireError,
};
use bus_core::{
    Gap, GroupId, GroupName, MAX_ATTRIBUTES_BYTES, MAX_RETAINED_MESSAGES, NameId, Sequence,
};

use crate::apart::Found;
use crate::clock::Tick;
use crate::inflow::Attached;
use crate::message::Event;
use crate::reconnect::Restored;

/// An amount of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) messages: u32,
    pub(crate) bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.messages += 1;
        self.bytes += bytes;
    }

    fn sub(&mut self, bytes: u64) {
        self.messages -= 1;
        self.bytes -= bytes;
    }

    fn plus(self, other: Self) -> Self {
        let messages = self.messages.saturating_add(other.messages);
        Self { messages, bytes: self.bytes.saturating_add(other.bytes) }
    }

    fn minus(self, other: Self) -> Self {
        Self { messages: self.messages - other.messages, bytes: self.bytes - other.bytes }
    }

    /// Of a batch.
    fn of(batch: &BatchView) -> Self {
        Self { messages: batch.len(), bytes: batch.charged_bytes() }
    }

    /// Whether something of this amount has room for one more: below both limits.
    pub(crate) fn below(self, limit: Self) -> bool {
        self.messages < limit.messages && self.bytes < limit.bytes
    }
}

/// One thing that has arrived.
#[derive(Debug)]
pub(crate) enum Item {
    Message {
        message: MessageView,
        attached: Option<Box<Attached>>,
    },
    Gap {
        group_id: GroupId,
        gap: Gap,
    },
    Evicted {
        group_id: GroupId,
        sequence: Sequence,
        stalled: Duration,
        queued_messages: u64,
        back_off: Duration,
        left_when_full: bool,
    },
    View(Box<ViewNotice>),
    Monitored {
        message: MessageView,
        copied: Box<Copied>,
    },
    MonitoredView(Box<ViewNotice>),
    MonitoredChange(Box<MonitoredChange>),
    MonitorGap {
        gap: Gap,
    },
    ViewsLost {
        group_id: GroupId,
        gap: Gap,
    },
    Current {
        group_id: GroupId,
        sequence: Sequence,
        messages: u32,
    },
    Name(Box<ClaimChanged>),
    Owner(Box<OwnerChanged>),
    OwnersLost {
        name_id: NameId,
        gap: Gap,
    },
    /// A notice about gated groups.
    Gated(Box<bus_core::wire::Notice>),
    /// Something that came by a connection which was lost, as the application gets it.
    Old(Box<Event>),
    /// Here one connection ended, and another begins.
    Reconnected,
    /// What became of something that could not be had at once after that.
    Restored(Box<Restored>),
}

impl Item {
    /// A plain message.
    fn of(message: MessageView) -> Self {
        Self::Message { message, attached: None }
    }

    /// What it holds of the queue. Most notices hold nothing; nor does what a group has retained.
    #[inline]
    fn charge(&self) -> Option<u64> {
        match self {
            Self::Message { message, .. } if message.retained() => None,
            Self::Message { message, .. } => Some(message.charged_bytes()),
            Self::Gated(notice) => notice.is_charged().then_some(0),
            Self::Monitored { message, .. } => Some(message.charged_bytes()),
            Self::View(_) | Self::MonitoredView(_) | Self::MonitoredChange(_) | Self::Owner(_) => {
                Some(0)
            }
            Self::Gap { .. }
            | Self::Evicted { .. }
            | Self::ViewsLost { .. }
            | Self::MonitorGap { .. }
            | Self::Current { .. }
            | Self::Name(_)
            | Self::Old(_)
            | Self::Reconnected
            | Self::Restored(_)
            | Self::OwnersLost { .. } => None,
        }
    }
}

/// What lies in an inbox.
#[derive(Debug)]
pub(crate) enum Queued {
    One(Item),
    /// Messages that came in one frame: one item each, made when it is taken.
    Batch(BatchView),
}

impl Queued {
    /// What it holds of the queue.
    fn charge(&self) -> Option<Amount> {
        match self {
            Self::One(item) => item.charge().map(|bytes| Amount { messages: 1, bytes }),
            Self::Batch(batch) => Some(Amount::of(batch)),
        }
    }
}

/// What has arrived for one endpoint.
#[derive(Debug)]
pub(crate) struct Inbox {
    items: VecDeque<Queued>,
    capacity: Amount,
    /// What replies may take beyond it, in the places that their requests have kept.
    beyond: Amount,
    held: Amount,
    owed: Amount,
    /// When places were returned last.
    returned: Option<Tick>,
    backlog_limit: Amount,
    backlog: Amount,
    /// How many items at the front are in the backlog, notices counted.
    backlog_items: usize,
    notices: usize,
}

impl Inbox {
    pub(crate) fn new(capacity: Amount, backlog_limit: Amount) -> Self {
        Self {
            items: VecDeque::new(),
            capacity,
            beyond: Amount::default(),
            held: Amount::default(),
            owed: Amount::default(),
            returned: None,
            backlog_limit,
            backlog: Amount::default(),
            backlog_items: 0,
            notices: 0,
        }
    }

    /// Takes in what arrived.
    ///
    /// # Errors
    ///
    /// The broker has sent more than it had credit for.
    #[inline]
    pub(crate) fn push(&mut self, item: Item) -> Result<(), &'static str> {
        match item.charge() {
            Some(bytes) => {
                if !self.is_within_credit() {
                    return Err(BEYOND_CREDIT);
                }
                self.held.add(bytes);
            }
            None => {
                // At most a gap and an end for each membership, and three notes of each peer endpoint
                // of gated groups, are under way at a time.
                if self.notices >= MAX_NOTICES {
                    return Err("more notices than an endpoint can have");
                }
                self.notices += 1;
            }
        }
        self.items.push_back(Queued::One(item));
        Ok(())
    }

    /// Takes in messages that came in one frame. The broker sends no batch beyond the capacity.
    ///
    /// # Errors
    ///
    /// As [`push`](Self::push).
    pub(crate) fn push_batch(&mut self, batch: BatchView) -> Result<(), &'static str> {
        let held = self.held.plus(Amount::of(&batch));
        let used = held.plus(self.owed);
        if used.messages > self.capacity.messages || used.bytes > self.capacity.bytes {
            return Err("MESSAGES beyond the credit of its endpoint");
        }
        self.held = held;
        self.items.push_back(Queued::Batch(batch));
        Ok(())
    }

    /// As [`push`](Self::push), of a [plain](MessageView::is_plain) message.
    ///
    /// Inlined with what makes the message and with what hands it out, as all that nearly every message
    /// passes: a message that is written in parts and then moved as a whole waits for the writes.
    ///
    /// # Errors
    ///
    /// As `push`.
    #[inline(always)]
    pub(crate) fn push_plain(&mut self, message: MessageView) -> Result<(), &'static str> {
        if !self.is_within_credit() {
            return Err(BEYOND_CREDIT);
        }
        self.held.add(message.charged_bytes());
        self.items.push_back(Queued::One(Item::Message { message, attached: None }));
        Ok(())
    }

    /// Takes note of something that has a place and is not handed out: the place is owed at once.
    ///
    /// # Errors
    ///
    /// The broker has sent more than it had credit for.
    pub(crate) fn pass_over(&mut self) -> Result<(), &'static str> {
        if !self.is_within_credit() {
            return Err("NOTICE beyond the credit of its endpoint");
        }
        self.owed.add(0);
        Ok(())
    }

    /// Whether the broker may have sent one more: below the capacity, or into the place that is
    /// kept for a send that has waited long.
    #[inline]
    fn is_within_credit(&self) -> bool {
        let used = self.held.plus(self.owed);
        used.below(self.capacity)
            || (used.messages <= self.capacity.messages.saturating_add(self.beyond.messages)
                && used.bytes
                    <= (self.capacity.bytes)
                        .saturating_add(MAX_MESSAGE_BYTES)
                        .saturating_add(self.beyond.bytes))
    }

    /// Says how many replies may come beyond the capacity, and how long these are at most.
    pub(crate) fn allow_replies(&mut self, requests: u16, reply_bytes: u32) {
        let messages = u32::from(requests);
        let all = u64::from(self.capacity.messages) + u64::from(messages);
        self.beyond = Amount { messages, bytes: all.saturating_mul(reply_bytes.into()) };
    }

    /// A reply has come: it holds a place like a message that is not handed out yet.
    ///
    /// # Errors
    ///
    /// The broker has sent more than it had credit for.
    pub(crate) fn hold_aside(&mut self, bytes: u64) -> Result<(), &'static str> {
        if !self.is_within_credit() {
            return Err("a reply beyond the credit of its endpoint");
        }
        self.held.add(bytes);
        Ok(())
    }

    /// Somebody has taken a reply. Its place is owed to the broker.
    pub(crate) fn free_aside(&mut self, bytes: u64) {
        self.held.sub(bytes);
        self.owed.add(bytes);
    }

    /// Puts something last that the library has to say.
    pub(crate) fn tell(&mut self, item: Item) {
        debug_assert_eq!(item.charge(), None, "only what the broker sends has a place");
        self.notices += 1;
        self.items.push_back(Queued::One(item));
    }

    /// The broker is lost: gives out all that has come, and owes nobody anything.
    pub(crate) fn orphan(&mut self) -> VecDeque<Item> {
        self.held = Amount::default();
        self.owed = Amount::default();
        self.backlog = Amount::default();
        (self.backlog_items, self.notices) = (0, 0);
        let mut items = VecDeque::with_capacity(self.items.len());
        for queued in self.items.drain(..) {
            match queued {
                Queued::One(item) => items.push_back(item),
                Queued::Batch(batch) => items.extend(batch.map(Item::of)),
            }
        }
        items
    }

    pub(crate) fn front(&self) -> Option<&Queued> {
        self.items.front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Hands out the oldest item. Its place is owed to the broker.
    pub(crate) fn take(&mut self) -> Option<Item> {
        if let Some(Queued::Batch(batch)) = self.items.front_mut() {
            let message = batch.next()?;
            let is_over = batch.is_empty();
            let taken = Amount { messages: 1, bytes: message.charged_bytes() };
            self.taken_of_batch(taken, is_over);
            return Some(Item::of(message));
        }
        let Some(Queued::One(item)) = self.items.pop_front() else {
            return None;
        };
        self.taken(item.charge());
        Some(item)
    }

    /// The oldest item was handed out.
    #[inline]
    fn taken(&mut self, charge: Option<u64>) {
        let in_backlog = self.backlog_items > 0;
        if in_backlog {
            self.backlog_items -= 1;
        }
        match charge {
            None => self.notices -= 1,
            Some(bytes) if in_backlog => self.backlog.sub(bytes),
            Some(bytes) => {
                self.held.sub(bytes);
                self.owed.add(bytes);
            }
        }
    }

    /// As [`take`](Self::take), if it is a [plain](MessageView::is_plain) message.
    #[inline(always)]
    pub(crate) fn take_plain(&mut self) -> Option<MessageView> {
        let Some(Queued::One(Item::Message { message, attached: None })) = self.items.front()
        else {
            return None;
        };
        if !message.is_plain() {
            return None;
        }
        let bytes = message.charged_bytes();
        let Some(Queued::One(Item::Message { message, .. })) = self.items.pop_front() else {
            unreachable!("it was looked at above")
        };
        self.taken(Some(bytes));
        Some(message)
    }

    /// Hands out messages of the batch that is the oldest, `most` of them at most, and gives the sequence
    /// of the last; nothing if it is none. They know the group by its name.
    #[inline(always)]
    pub(crate) fn take_of_batch<T>(
        &mut self,
        most: usize,
        group: Option<&GroupName>,
        out: &mut Vec<T>,
        make: impl FnMut(MessageView) -> T,
    ) -> Option<Sequence> {
        let Some(Queued::Batch(batch)) = self.items.front_mut() else {
            return None;
        };
        if let Some(name) = group {
            batch.set_group_name(name);
        }
        let before = Amount::of(batch);
        let last = batch.take_into(most, out, make);
        let after = Amount::of(batch);
        self.taken_of_batch(before.minus(after), after.messages == 0);
        last
    }

    /// Messages of the batch that is the oldest were handed out.
    #[inline]
    fn taken_of_batch(&mut self, taken: Amount, is_over: bool) {
        if self.backlog_items > 0 {
            self.backlog = self.backlog.minus(taken);
            self.backlog_items -= usize::from(is_over);
        } else {
            self.held = self.held.minus(taken);
            self.owed = self.owed.plus(taken);
        }
        if is_over {
            self.items.pop_front();
        }
    }

    /// Looks at messages that lie apart and could not be looked at when they were announced.
    ///
    /// # Errors
    ///
    /// They are not what they should be.
    pub(crate) fn check_found(&mut self) -> Result<(), WireError> {
        let batches = self.items.iter_mut().filter_map(|queued| match queued {
            Queued::Batch(batch) => Some(batch),
            Queued::One(_) => None,
        });
        for batch in batches.filter(|batch| batch.found().is_none_or(Found::is_found)) {
            batch.check()?;
        }
        Ok(())
    }

    /// Nothing will come any more: gives up messages that lie where this process cannot look.
    pub(crate) fn forget_unfound(&mut self) {
        for at in (0..self.items.len()).rev() {
            let Some(Queued::Batch(batch)) = self.items.get(at) else { continue };
            if batch.is_checked() {
                continue;
            }
            let amount = Amount::of(batch);
            if at < self.backlog_items {
                self.backlog_items -= 1;
                self.backlog = self.backlog.minus(amount);
            } else {
                self.held = self.held.minus(amount);
            }
            self.items.remove(at);
        }
    }

    /// Moves what the backlog has room for into it. Its places are owed to the broker.
    pub(crate) fn fill_backlog(&mut self) {
        while self.backlog.below(self.backlog_limit)
            && let Some(queued) = self.items.get(self.backlog_items)
        {
            if let Some(amount) = queued.charge() {
                self.held = self.held.minus(amount);
                self.owed = self.owed.plus(amount);
                self.backlog = self.backlog.plus(amount);
            }
            self.backlog_items += 1;
        }
    }

    /// Whether others may be waiting for this endpoint and only the application can help: the
    /// queue and the backlog are full.
    pub(crate) fn is_stuck(&self) -> bool {
        !self.held.below(self.capacity) && !self.backlog.below(self.backlog_limit)
    }

    /// Whether the queue has room once the broker knows what it is owed.
    pub(crate) fn has_room(&self) -> bool {
        self.held.below(self.capacity)
    }

    /// What is to be returned after a [`take`](Self::take): nothing, or all that is owed.
    pub(crate) fn return_some(&mut self, now: Tick) -> Option<Amount> {
        let quarter = Amount {
            messages: self.capacity.messages.div_ceil(4),
            bytes: self.capacity.bytes.div_ceil(4),
        };
        let due = !self.owed.below(quarter) || self.returned != Some(now);
        if due { self.return_all(now) } else { None }
    }

    /// Whether places are owed.
    pub(crate) fn owes(&self) -> bool {
        self.owed != Amount::default()
    }

    /// All that is owed, if anything is.
    pub(crate) fn return_all(&mut self, now: Tick) -> Option<Amount> {
        if !self.owes() {
            return None;
        }
        self.returned = Some(now);
        Some(std::mem::take(&mut self.owed))
    }
}

const BEYOND_CREDIT: &str = "MESSAGE beyond the credit of its endpoint";
/// What the longest message is charged: 16 MiB of payload, and its attributes.
const MAX_MESSAGE_BYTES: u64 = (16 << 20) + MAX_ATTRIBUTES_BYTES as u64;
/// Notices that may wait to be received, and with them messages that groups have retained.
const MAX_NOTICES: usize = 4096 + 64 * (MAX_RETAINED_MESSAGES as usize + 1);

#[cfg(test)]
mod tests {
    use bus_core::Attributes;
    use bus_core::wire::encode_message;
    use bytes::BytesMut;

    use super::*;
    use crate::testing::head;

    fn message(sequence: u64, bytes: usize) -> Item {
        let mut frame = BytesMut::new();
        encode_message(&mut frame, &head(sequence), &Attributes::EMPTY, &vec![0; bytes]).unwrap();
        Item::Message { message: MessageView::decode(&mut frame).unwrap().unwrap(), attached: None }
    }

    fn gap() -> Item {
        Item::Gap {
            group_id: GroupId::from_raw(1),
            gap: Gap { count: 1, first: Sequence::from_raw(1), last: Sequence::from_raw(1) },
        }
    }

    fn amount(messages: u32, bytes: u64) -> Amount {
        Amount { messages, bytes }
    }

    fn at(second: i64) -> Tick {
        Tick::from_seconds(second)
    }

    fn inbox(capacity: u32, backlog: u32) -> Inbox {
        Inbox::new(amount(capacity, 1000), amount(backlog, 1000))
    }

    #[test]
    fn places_are_counted_until_their_credit_is_returned() {
        let mut inbox = inbox(2, 0);
        inbox.push(message(1, 10)).unwrap();
        inbox.push(message(2, 5)).unwrap();
        assert!(!inbox.has_room());
        inbox.push(message(3, 5)).expect("one has a place kept");
        assert!(inbox.push(message(4, 1)).is_err(), "beyond the credit");
        inbox.take().unwrap();
        assert!(inbox.push(message(4, 1)).is_err(), "taken and not returned");
        assert_eq!(inbox.return_all(at(0)), Some(amount(1, 10)));
        assert_eq!(inbox.return_all(at(0)), None, "each place is returned once");
        inbox.push(message(4, 1)).unwrap();
    }

    #[test]
    fn the_message_that_crosses_the_bytes_fills_the_queue() {
        let mut inbox = inbox(8, 0);
        inbox.push(message(1, 999)).unwrap();
        assert!(inbox.has_room());
        inbox.push(message(2, 5000)).unwrap();
        assert!(!inbox.has_room());
    }

    #[test]
    fn the_backlog_returns_places_and_keeps_the_order() {
        let mut inbox = inbox(4, 2);
        for sequence in 1..=4 {
            inbox.push(message(sequence, 1)).unwrap();
        }
        inbox.fill_backlog();
        assert_eq!(inbox.return_all(at(0)), Some(amount(2, 2)));
        assert!(!inbox.is_stuck());
        inbox.push(gap()).unwrap();
        inbox.push(message(5, 1)).unwrap();
        inbox.push(message(6, 1)).unwrap();
        assert!(inbox.is_stuck(), "queue and backlog are full");
        inbox.fill_backlog();
        assert_eq!(inbox.return_all(at(0)), None);

        let mut taken = Vec::new();
        while let Some(item) = inbox.take() {
            if let Item::Message { message, .. } = item {
                taken.push(message.sequence().get());
            }
        }
        assert_eq!(taken, [1, 2, 3, 4, 5, 6]);
        assert_eq!(
            inbox.return_all(at(0)),
            Some(amount(4, 4)),
            "those of the backlog were returned before"
        );
        assert_eq!((inbox.held, inbox.backlog), (amount(0, 0), amount(0, 0)));
    }

    #[test]
    fn an_application_that_reads_in_a_row_returns_places_by_the_quarter() {
        let mut inbox = inbox(64, 0);
        inbox.returned = Some(at(0));
        for sequence in 1..=64 {
            inbox.push(message(sequence, 1)).unwrap();
        }
        let mut returned = Vec::new();
        while inbox.take().is_some() {
            returned.extend(inbox.return_some(at(0)).map(|credit| credit.messages));
        }
        assert_eq!(returned, [16; 4]);
    }

    #[test]
    fn an_application_that_takes_its_time_returns_each_place_at_once() {
        let mut inbox = inbox(64, 0);
        for sequence in 1..=64 {
            inbox.push(message(sequence, 1)).unwrap();
        }
        for second in 1..=64 {
            inbox.take().unwrap();
            assert_eq!(inbox.return_some(at(second)), Some(amount(1, 1)));
        }
    }

    #[test]
    fn notices_hold_no_place_and_are_bounded() {
        let mut inbox = inbox(1, 0);
        for _ in 0..MAX_NOTICES {
            inbox.push(gap()).unwrap();
        }
        assert!(inbox.push(gap()).is_err());
        assert!(inbox.has_room());
        while inbox.take().is_some() {}
        assert_eq!(inbox.return_all(at(0)), None);
    }
}
