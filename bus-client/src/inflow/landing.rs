//! Where reads put their bytes, and where short messages stay.
//!
//! A read fills the rest of a block, and what came is cut off it: so a message is copied once, by the
//! kernel or out of a ring. Invariant: a block is used again only by whoever is the last to have any
//! of it, so nothing that the application still has changes; and few are kept.

use std::ops::DerefMut as _;

use bytes::{Bytes, BytesMut};

#[derive(Debug)]
pub(super) struct Landing {
    /// What of the present block was not read into.
    free: BytesMut,
    /// The ends of former blocks: once all else of one is gone, its end is the way to its memory.
    spent: Vec<Bytes>,
    /// The most that is read at once. It grows with what comes, so that an idle connection is small.
    ask: usize,
}

impl Landing {
    pub(super) fn new() -> Self {
        Self { free: BytesMut::zeroed(FIRST_READ_BYTES), spent: Vec::new(), ask: FIRST_READ_BYTES }
    }

    /// Sees to it that a read has room, behind the `beginning` of a frame.
    pub(super) fn make_room(&mut self, beginning: &mut BytesMut) {
        if self.free.len() >= self.ask / 4 {
            return;
        }
        let length = self.ask + beginning.len();
        let mut block = self.unused().unwrap_or_default();
        block.clear();
        block.resize(length, 0);
        block[..beginning.len()].copy_from_slice(beginning);
        *beginning = block.split_to(beginning.len());
        let end = std::mem::replace(&mut self.free, block).freeze();
        if self.spent.len() == KEPT_BLOCKS {
            self.spent.remove(0);
        }
        self.spent.push(end);
    }

    /// Memory that nobody has any more: the newest, which the processor's caches know best.
    fn unused(&mut self) -> Option<BytesMut> {
        let at = self.spent.iter().rposition(Bytes::is_unique)?;
        self.spent.remove(at).try_into_mut().ok()
    }

    /// Where a read may put its bytes.
    pub(super) fn free(&mut self) -> &mut [u8] {
        let most = self.ask.min(self.free.len());
        &mut self.free.deref_mut()[..most]
    }

    /// Cuts off what a read has put there. It joins what was cut off before without a copy, if that was
    /// not moved.
    pub(super) fn take(&mut self, count: usize) -> BytesMut {
        self.free.split_to(count)
    }

    /// Gives out the memory that a read may fill, and how much of it that is at most.
    pub(super) fn lend(&mut self) -> (BytesMut, usize) {
        let most = self.ask.min(self.free.len());
        (std::mem::take(&mut self.free), most)
    }

    /// Takes back what was [lent](Self::lend).
    pub(super) fn take_back(&mut self, free: BytesMut) {
        self.free = free;
    }

    /// A read has filled all that it was given.
    pub(super) fn grow(&mut self) {
        self.ask = (2 * self.ask).min(READ_BYTES);
    }

    /// What comes next is read elsewhere, but for its beginning.
    pub(super) fn shrink(&mut self) {
        self.ask = FIRST_READ_BYTES;
    }
}

/// What is read at once from a connection that has not had more to read.
const FIRST_READ_BYTES: usize = 4 << 10;
/// The most that is read at once, large frames apart.
const READ_BYTES: usize = 64 << 10;
/// Former blocks that are kept: as many as an application has in hand while it works off a batch.
const KEPT_BLOCKS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// What a read of so many bytes does.
    fn read(landing: &mut Landing, unread: &mut BytesMut, count: usize) {
        landing.make_room(unread);
        landing.free()[..count].fill(7);
        unread.unsplit(landing.take(count));
    }

    #[test]
    fn what_comes_in_parts_joins_without_a_copy() {
        let (mut landing, mut unread) = (Landing::new(), BytesMut::new());
        read(&mut landing, &mut unread, 100);
        let place = unread.as_ptr();
        read(&mut landing, &mut unread, 200);
        assert_eq!((unread.as_ptr(), unread.len()), (place, 300));
        assert!(unread.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_beginning_goes_on_in_the_next_block() {
        let (mut landing, mut unread) = (Landing::new(), BytesMut::new());
        read(&mut landing, &mut unread, FIRST_READ_BYTES);
        read(&mut landing, &mut unread, FIRST_READ_BYTES / 2);
        let place = unread.as_ptr();
        read(&mut landing, &mut unread, FIRST_READ_BYTES / 2);
        assert_eq!((unread.as_ptr(), unread.len()), (place, 2 * FIRST_READ_BYTES));
        assert!(unread.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_block_is_used_again_once_the_application_has_let_go_of_it() {
        let (mut landing, mut unread) = (Landing::new(), BytesMut::new());
        read(&mut landing, &mut unread, FIRST_READ_BYTES);
        let held = unread.split_to(10).freeze();
        let rest = unread.split().freeze();
        let place = held.as_ptr();
        read(&mut landing, &mut unread, FIRST_READ_BYTES);
        assert!(!unread.as_ptr_range().contains(&place), "the application still has a part of it");
        drop((held, rest));
        unread.clear();
        read(&mut landing, &mut unread, 0);
        read(&mut landing, &mut unread, 1);
        assert_eq!(unread.as_ptr(), place);
    }

    #[test]
    fn g8_few_blocks_are_kept_and_a_trickle_needs_but_a_small_one() {
        let (mut landing, mut unread) = (Landing::new(), BytesMut::new());
        let mut held = Vec::new();
        for _ in 0..100 {
            read(&mut landing, &mut unread, FIRST_READ_BYTES);
            held.push(unread.split().freeze());
        }
        assert!(landing.spent.len() <= KEPT_BLOCKS);
        assert!(landing.free.capacity() <= FIRST_READ_BYTES);
        for _ in 0..8 {
            landing.grow();
        }
        landing.make_room(&mut unread);
        assert_eq!(landing.free().len(), READ_BYTES);
    }
}
