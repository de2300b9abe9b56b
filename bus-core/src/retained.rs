//! What a group retains for those who join later: its last messages, or the last of each key.
//!
//! Invariant: a store changes only while its group's home lock is held, and every send to a group
//! that retains takes that lock beside those of its recipients. So updates have one order, also
//! between senders whose recipients have nothing in common, and it is that of their sequences. A
//! join holds all locks while it copies the store: each message is either in the copy or comes
//! after the join, and none is both (G4).
//!
//! Under the locks nothing is allocated and nothing dropped. The slots and the table of keys are
//! made with the store; what is displaced stays in its slot, dead, until a later send takes it away
//! to be dropped without a lock. Each send adds one and takes at least one if there is any, so one
//! slot more than there may be messages is enough, and what is dead is never more than the store
//! may hold.
//!
//! A copy is of pointers: [`MAX_RETAINED_MESSAGES`] bounds how long a join keeps everybody else out.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use ahash::RandomState;
use serde::{Deserialize, Serialize};

use crate::bus::LimitExceeded;
use crate::filter::index::MemberFilters;
use crate::id::{GroupId, Sequence};
use crate::limits::Limits;
use crate::message::Message;

/// The most messages that one group retains.
pub const MAX_RETAINED_MESSAGES: u32 = 4_096;

/// What a group retains, told where it is created.
///
/// When one of its bounds is reached, the messages whose place in the order is the oldest go. A
/// message that is larger than all of `bytes` is not retained, nor is then what was retained under
/// its key. A group that retains takes no descriptors: they would stay open for as long as it lives.
///
/// ```
/// use bus_core::Retain;
///
/// assert_eq!(Retain::last(1).messages, 1);
/// assert!(Retain::keys(100).per_key);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Retain {
    /// The last message of each key, and none without a key; otherwise the last messages of all.
    #[serde(default)]
    pub per_key: bool,
    /// How many, at most [`MAX_RETAINED_MESSAGES`].
    pub messages: u32,
    /// Bytes of their attributes and payloads together.
    #[serde(default = "default_bytes")]
    pub bytes: u64,
}

impl Retain {
    /// Bytes unless told otherwise.
    pub const DEFAULT_BYTES: u64 = 1 << 20;

    /// The last so many messages.
    #[must_use]
    pub const fn last(messages: u32) -> Self {
        Self { per_key: false, messages, bytes: Self::DEFAULT_BYTES }
    }

    /// The last message of each of so many keys.
    #[must_use]
    pub const fn keys(messages: u32) -> Self {
        Self { per_key: true, messages, bytes: Self::DEFAULT_BYTES }
    }

    /// Whether `others` of the same creator leave room for this.
    pub(crate) fn check(
        self,
        others: impl Iterator<Item = Self>,
        limits: &Limits,
    ) -> Result<(), LimitExceeded> {
        let within = |limit, given: u64, value: u64| {
            if given <= value { Ok(()) } else { Err(LimitExceeded::new(limit, value)) }
        };
        let one = u64::from(MAX_RETAINED_MESSAGES);
        within("retained_messages (of one group)", self.messages.into(), one)?;
        let (mut messages, mut bytes) = (u64::from(self.messages), self.bytes);
        for other in others {
            messages = messages.saturating_add(other.messages.into());
            bytes = bytes.saturating_add(other.bytes);
        }
        within("retained_messages", messages, limits.retained_messages.into())?;
        within("retained_bytes", bytes, limits.retained_bytes)
    }
}

fn default_bytes() -> u64 {
    Retain::DEFAULT_BYTES
}

/// What a joiner gets of a store: one entry of its queue, at the place of its join.
#[derive(Debug)]
pub(crate) struct Retained {
    pub(crate) group: GroupId,
    /// The place of the join.
    pub(crate) sequence: Sequence,
    /// What the joiner wants of them; asked when they are read, and not under the locks.
    pub(crate) filters: Option<Arc<MemberFilters>>,
    /// In their order.
    pub(crate) messages: Vec<Arc<Message>>,
    pub(crate) bytes: u64,
}

impl Retained {
    /// An empty one, with room for what a group retains.
    pub(crate) fn new(group: GroupId, retain: Option<Retain>) -> Box<Self> {
        let most = retain.map_or(0, |retain| retain.messages as usize);
        let sequence = Sequence::from_raw(0);
        let messages = Vec::with_capacity(most);
        Box::new(Self { group, sequence, filters: None, messages, bytes: 0 })
    }

    /// The same for a joiner with filters.
    pub(crate) fn filtered(mut self: Box<Self>, filters: Option<&Arc<MemberFilters>>) -> Box<Self> {
        self.filters = filters.cloned();
        self
    }
}

/// A retained message in the table of keys.
struct Keyed(Arc<Message>);

impl Keyed {
    fn key(&self) -> &[u8] {
        self.0.attributes().key().unwrap_or_default()
    }
}

impl Borrow<[u8]> for Keyed {
    fn borrow(&self) -> &[u8] {
        self.key()
    }
}

impl Hash for Keyed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl PartialEq for Keyed {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Keyed {}

/// A place for one message: free, in the line of the living, or dead.
struct Slot {
    message: Option<Arc<Message>>,
    /// The next one of the living that is older, or none.
    older: u32,
    /// The next one that is newer; of the free and of the dead the next one of their kind.
    newer: u32,
}

/// No slot.
const NONE: u32 = u32::MAX;

/// What a group retains now.
pub(crate) struct Store {
    retain: Retain,
    slots: Box<[Slot]>,
    /// Slot of each key. Made twice as large as it needs to be, so that it cleans up after
    /// removals in place and never grows.
    keys: HashMap<Keyed, u32, RandomState>,
    oldest: u32,
    newest: u32,
    free: u32,
    dead: u32,
    messages: u32,
    bytes: u64,
}

impl Store {
    pub(crate) fn new(retain: Retain, hasher: RandomState) -> Self {
        let slots: Box<[Slot]> = (0..=retain.messages)
            .map(|at| {
                let newer = if at == retain.messages { NONE } else { at + 1 };
                Slot { message: None, older: NONE, newer }
            })
            .collect();
        let keys = if retain.per_key { 2 * retain.messages as usize + 2 } else { 0 };
        Self {
            retain,
            slots,
            keys: HashMap::with_capacity_and_hasher(keys, hasher),
            oldest: NONE,
            newest: NONE,
            free: 0,
            dead: NONE,
            messages: 0,
            bytes: 0,
        }
    }

    /// Takes in a message at its commit point. Displaced ones go to `displaced`, as many as that
    /// has room for, and it has room for one at least.
    pub(crate) fn put(&mut self, message: &Arc<Message>, displaced: &mut Vec<Arc<Message>>) {
        self.retain_message(message);
        while displaced.len() < displaced.capacity()
            && let Some(dead) = self.slots.get_mut(self.dead as usize)
        {
            displaced.extend(dead.message.take());
            let at = std::mem::replace(&mut self.dead, dead.newer);
            self.set_free(at);
        }
    }

    fn retain_message(&mut self, message: &Arc<Message>) {
        if self.retain.per_key {
            let Some(key) = message.attributes().key() else {
                return;
            };
            if let Some((_, at)) = self.keys.remove_entry(key) {
                self.bury(at);
            }
        }
        let bytes = message.bytes();
        if bytes > self.retain.bytes {
            return;
        }
        while self.messages == self.retain.messages || self.bytes + bytes > self.retain.bytes {
            self.bury_oldest();
        }
        let at = self.free;
        let Some(slot) = self.slots.get_mut(at as usize) else {
            debug_assert!(false, "there is a slot more than messages, and one is freed for each");
            return;
        };
        self.free = slot.newer;
        *slot = Slot { message: Some(Arc::clone(message)), older: self.newest, newer: NONE };
        match self.slots.get_mut(self.newest as usize) {
            Some(newest) => newest.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
        self.messages += 1;
        self.bytes += bytes;
        if self.retain.per_key {
            self.keys.insert(Keyed(Arc::clone(message)), at);
        }
    }

    fn bury_oldest(&mut self) {
        let at = self.oldest;
        if self.retain.per_key
            && let Some(message) = &self.slots[at as usize].message
            && let Some(key) = message.attributes().key()
        {
            self.keys.remove(key);
        }
        self.bury(at);
    }

    /// Takes a message out of the line of the living. Its slot keeps it, so nothing is dropped.
    fn bury(&mut self, at: u32) {
        let slot = &mut self.slots[at as usize];
        let (older, newer) = (slot.older, slot.newer);
        let bytes = slot.message.as_ref().map_or(0, |message| message.bytes());
        slot.newer = std::mem::replace(&mut self.dead, at);
        match self.slots.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
        match self.slots.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
        self.messages -= 1;
        self.bytes -= bytes;
    }

    fn set_free(&mut self, at: u32) {
        self.slots[at as usize].newer = std::mem::replace(&mut self.free, at);
    }

    /// Copies what is retained, oldest first. Allocates nothing if `retained` was made for this.
    pub(crate) fn copy_to(&self, retained: &mut Retained) {
        let mut at = self.oldest;
        while let Some(slot) = self.slots.get(at as usize) {
            retained.messages.extend(slot.message.clone());
            at = slot.newer;
        }
        retained.bytes = self.bytes;
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("retain", &self.retain)
            .field("messages", &self.messages)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::message::{Destination, Draft, Stamp};
    use crate::{Attributes, Credentials, EndpointId};

    fn message(sequence: u64, key: Option<u8>, bytes: usize) -> Arc<Message> {
        let mut attributes = Attributes::builder();
        if let Some(key) = key {
            attributes = attributes.key([key]);
        }
        let draft = Draft {
            attributes: attributes.build().expect("a short key"),
            payload: vec![0; bytes].into(),
            ..Draft::default()
        };
        let mut message = Message::new(
            EndpointId::from_raw(1),
            Credentials { uid: 0, pid: 0 },
            Destination::Group(GroupId::from_raw(1)),
            draft,
        );
        let sequence = Sequence::from_raw(sequence);
        message.stamp(Stamp { sequence, sender_serial: 1, commit_time: 0, audience: None });
        Arc::new(message)
    }

    /// What the documentation of [`Retain`] says, without regard to cost.
    struct Reference(Retain, VecDeque<Arc<Message>>);

    impl Reference {
        fn put(&mut self, message: &Arc<Message>) {
            let Self(retain, kept) = self;
            let key = |message: &Arc<Message>| message.attributes().key().map(<[u8]>::to_vec);
            if retain.per_key {
                if key(message).is_none() {
                    return;
                }
                kept.retain(|other| key(other) != key(message));
            }
            if message.bytes() > retain.bytes {
                return;
            }
            kept.push_back(Arc::clone(message));
            let bytes = |kept: &VecDeque<Arc<Message>>| -> u64 {
                kept.iter().map(|message| message.bytes()).sum()
            };
            while kept.len() > retain.messages as usize || bytes(kept) > retain.bytes {
                kept.pop_front();
            }
        }
    }

    fn sequences<'a>(messages: impl IntoIterator<Item = &'a Arc<Message>>) -> Vec<u64> {
        messages.into_iter().map(|message| message.sequence().get()).collect()
    }

    proptest! {
        #[test]
        fn a_store_retains_what_a_plain_list_would_and_gives_everything_else_back(
            per_key in any::<bool>(),
            messages in 1..6_u32,
            puts in proptest::collection::vec((proptest::option::of(0..8_u8), 0..60_usize), 1..80),
        ) {
            let retain = Retain { per_key, messages, bytes: 100 };
            let mut store = Store::new(retain, RandomState::with_seeds(1, 2, 3, 4));
            let mut reference = Reference(retain, VecDeque::new());
            let capacity = store.keys.capacity();
            let mut all = Vec::new();
            for ((key, bytes), sequence) in puts.into_iter().zip(1..) {
                let message = message(sequence, key, bytes);
                let mut displaced = Vec::with_capacity(1);
                store.put(&message, &mut displaced);
                prop_assert_eq!(displaced.capacity(), 1, "no room was made under the lock");
                reference.put(&message);
                all.push(message);
                let mut copy = Retained::new(GroupId::from_raw(1), Some(retain));
                store.copy_to(&mut copy);
                prop_assert_eq!(sequences(&copy.messages), sequences(&reference.1));
                let sum: u64 = copy.messages.iter().map(|message| message.bytes()).sum();
                prop_assert_eq!(copy.bytes, sum);
                prop_assert_eq!(store.keys.capacity(), capacity);
                let held = store.slots.iter().filter(|slot| slot.message.is_some()).count();
                prop_assert!(held <= messages as usize + 1);
            }
            drop((store, reference));
            for message in all {
                prop_assert_eq!(Arc::strong_count(&message), 1, "nothing is kept");
            }
        }
    }
}
