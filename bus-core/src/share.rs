//! How much of a queue the messages of one other user may take (G10).
//!
//! Invariant: a message of a user to another user's endpoint takes its place in the queue only
//! while what that user's messages take of it is less than half of the room left: of what the
//! messages of all others leave. So one user never fills a queue that is not his, two leave a
//! quarter, and whoever comes finds room. Who holds nothing may have one message in any case, if
//! the queue has room for it; and as everywhere, the message that crosses a limit of bytes is
//! still taken, and one message may use the reserve place.
//!
//! What a user was given here is counted under the queue's lock, at the commit
//! ([`ShareTable`]); what the reader has given back, in atomics ([`Shares`]). The difference is
//! what his messages take now, and a commit that reads an old value sees less room than there is.
//!
//! A share has a line of its own for sends that wait (`wait.rs`), because a queue in which one user
//! has his share is not full: others pass. Who waits in it is registered at the queue as well, as
//! one who wants to know: room of the queue is also room of the share, so whoever frees a place
//! looks here too.
//!
//! A table has a fixed number of rows, is made before the locks for the first foreign message, and
//! a row that nobody holds or waits for is the next user's. The last row is for all users that find
//! no other one; they count as one.

use std::num::NonZeroU8;

use crate::intake::{Interest, Reserve};
use crate::sync::{AtomicU64, Mutant, Ordering, mutated};

/// How many users a queue tells apart at a time; the last of them may be several.
const ROWS: usize = if cfg!(bus_loom) { 2 } else { 32 };

/// A row of a queue's table, counted from 1: so that "none" is one byte too, which every commit
/// hands on for each recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ShareSlot(NonZeroU8);

/// The row of those who find no other one.
#[expect(clippy::cast_possible_truncation, reason = "there are few rows")]
const LAST: ShareSlot = ShareSlot(NonZeroU8::new(ROWS as u8).expect("there are rows"));

impl ShareSlot {
    fn at(self) -> usize {
        usize::from(self.0.get()) - 1
    }

    fn all() -> impl Iterator<Item = Self> {
        (1..=LAST.0.get()).filter_map(NonZeroU8::new).map(Self)
    }
}

/// Messages and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Amount {
    /// What a user may have where others leave this much: he has room while he holds less.
    fn half(self) -> Self {
        Self { messages: (self.messages / 2).max(1), bytes: (self.bytes / 2).max(1) }
    }

    fn is_below(self, limit: Self) -> bool {
        self.messages < limit.messages && self.bytes < limit.bytes
    }
}

/// What users were given of a queue that is not theirs. Lives under the queue's lock.
#[derive(Debug)]
pub(crate) struct ShareTable {
    rows: [Row; ROWS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    user: u32,
    given: Amount,
    reserve: Reserve,
}

impl ShareTable {
    pub(crate) fn new() -> Self {
        Self { rows: [Row::default(); ROWS] }
    }

    /// The row of a user: the one that he has, or one that nobody needs, or the last one.
    pub(crate) fn slot_of(&mut self, shares: &Shares, user: u32) -> ShareSlot {
        let mut vacant = None;
        for slot in ShareSlot::all().take(ROWS - 1) {
            let own = self.rows[slot.at()].user == user;
            if (own || vacant.is_none()) && !self.is_used(shares, slot) {
                vacant = vacant.or(Some(slot));
            } else if own {
                return slot;
            }
        }
        // Who may have messages in the last row gets no other one beside it.
        match vacant {
            Some(vacant) if !self.is_used(shares, LAST) => {
                self.rows[vacant.at()].user = user;
                vacant
            }
            _ => LAST,
        }
    }

    fn is_used(&self, shares: &Shares, slot: ShareSlot) -> bool {
        self.held(shares, slot).messages != 0 || shares.is_wanted(slot)
    }

    /// What a user's messages take now.
    fn held(&self, shares: &Shares, slot: ShareSlot) -> Amount {
        let (given, back) = (self.rows[slot.at()].given, shares.freed(slot));
        Amount { messages: given.messages - back.messages, bytes: given.bytes - back.bytes }
    }

    /// Whether he may have one more, of a queue of that capacity in which so much lies.
    pub(crate) fn has_room(
        &self,
        shares: &Shares,
        slot: ShareSlot,
        capacity: Amount,
        queued: Amount,
    ) -> bool {
        let held = self.held(shares, slot);
        // What lies there was counted a moment before or after what he holds of it.
        let left =
            |most: u64, queued: u64, held: u64| most.saturating_sub(queued.saturating_sub(held));
        let left = Amount {
            messages: left(capacity.messages, queued.messages, held.messages),
            bytes: left(capacity.bytes, queued.bytes, held.bytes),
        };
        held.is_below(left.half()) || mutated(Mutant::ShareUnbounded)
    }

    pub(crate) fn has_reserve(&self, shares: &Shares, slot: ShareSlot) -> bool {
        let freed = shares.freed(slot);
        self.rows[slot.at()].reserve.is_free((freed.messages, freed.bytes))
    }

    /// A message takes its place; `beyond` says that it had no room, and uses the reserve place.
    pub(crate) fn charge(&mut self, shares: &Shares, slot: ShareSlot, bytes: u64, beyond: bool) {
        let row = &mut self.rows[slot.at()];
        if beyond {
            let freed = shares.freed(slot);
            row.reserve = Reserve::used((freed.messages, freed.bytes), bytes);
        }
        row.given.messages += 1;
        row.given.bytes += bytes;
    }
}

/// What the reader gives back, and who waits. Needs no lock.
#[derive(Debug)]
pub(crate) struct Shares {
    rows: [SharedRow; ROWS],
}

#[derive(Debug)]
struct SharedRow {
    freed_messages: AtomicU64,
    freed_bytes: AtomicU64,
    /// As that of a queue, see [`Interest`].
    interest: AtomicU64,
}

impl Shares {
    pub(crate) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        let row = |_| SharedRow { freed_messages: zero(), freed_bytes: zero(), interest: zero() };
        Self { rows: std::array::from_fn(row) }
    }

    fn freed(&self, slot: ShareSlot) -> Amount {
        let row = &self.rows[slot.at()];
        // Messages first, as for a queue: a message that is seen freed is seen with its bytes.
        let messages = row.freed_messages.load(Ordering::Acquire);
        Amount { messages, bytes: row.freed_bytes.load(Ordering::Acquire) }
    }

    /// The reader gives one message's place back. Only it calls this, and frees the queue's own
    /// place after it: the fence there is the fence for both.
    pub(crate) fn free(&self, slot: ShareSlot, bytes: u64) {
        let row = &self.rows[slot.at()];
        let advance = |counter: &AtomicU64, by: u64| {
            counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Release);
        };
        advance(&row.freed_bytes, bytes);
        advance(&row.freed_messages, 1);
    }

    /// Somebody waits for this share, or keeps its reserve place: the row stays its user's.
    fn is_wanted(&self, slot: ShareSlot) -> bool {
        self.rows[slot.at()].interest.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn register(&self, slot: ShareSlot, interest: Interest) {
        self.rows[slot.at()].interest.fetch_add(interest.unit(), Ordering::Relaxed);
    }

    pub(crate) fn unregister(&self, slot: ShareSlot, interest: Interest) {
        self.rows[slot.at()].interest.fetch_sub(interest.unit(), Ordering::Relaxed);
    }

    /// Sends that wait for this share.
    pub(crate) fn waiting_sends(&self, slot: ShareSlot) -> u32 {
        Interest::sends(self.rows[slot.at()].interest.load(Ordering::Relaxed))
    }

    /// The shares for which somebody waits.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = ShareSlot> {
        ShareSlot::all().filter(|slot| self.is_wanted(*slot))
    }
}

#[cfg(all(test, not(bus_loom)))]
mod tests {
    use super::*;

    const CAPACITY: Amount = Amount { messages: 16, bytes: 1 << 20 };

    fn push(table: &mut ShareTable, shares: &Shares, user: u32, queued: &mut Amount) -> bool {
        let slot = table.slot_of(shares, user);
        let room = table.has_room(shares, slot, CAPACITY, *queued);
        if room {
            table.charge(shares, slot, 1, false);
            queued.messages += 1;
            queued.bytes += 1;
        }
        room
    }

    #[test]
    fn g10_each_user_gets_half_of_what_those_before_him_leave() {
        let (mut table, shares) = (ShareTable::new(), Shares::new());
        let mut queued = Amount::default();
        let mut fill = |user: u32| {
            let before = queued.messages;
            while push(&mut table, &shares, user, &mut queued) {}
            queued.messages - before
        };
        let taken: Vec<u64> = (1..=6).map(&mut fill).collect();
        assert_eq!(taken, [8, 4, 2, 1, 1, 1], "until the queue itself is full at the fifth");
    }

    #[test]
    fn a_row_that_nobody_needs_is_the_next_users_and_the_last_one_is_shared() {
        let (mut table, shares) = (ShareTable::new(), Shares::new());
        let mut queued = Amount::default();
        assert!(push(&mut table, &shares, 1, &mut queued));
        let first = table.slot_of(&shares, 1);
        let second = table.slot_of(&shares, 2);
        assert_ne!(first, second);
        assert_eq!(table.slot_of(&shares, 3), second, "nobody holds anything there");
        shares.register(second, Interest::Send);
        assert_ne!(table.slot_of(&shares, 4), second, "somebody waits there");
        shares.unregister(second, Interest::Send);
        shares.free(first, 1);
        assert_eq!(table.slot_of(&shares, 5), first, "what was held was given back");
        let slots: Vec<ShareSlot> = ShareSlot::all().take(ROWS - 1).collect();
        for slot in &slots {
            shares.register(*slot, Interest::Send);
        }
        let last = table.slot_of(&shares, 6);
        assert_eq!(last.at(), ROWS - 1);
        assert_eq!(table.slot_of(&shares, 7), last, "they count as one");
    }
}
