//! Buffers that a sender writes and lends: memory that the broker has made.
//!
//! Invariant: its size is fixed, so reading it cannot fault whatever the sender does; and once sealed
//! nobody but the sender can ever map it for writing, so it may be shown to readers. What it says is the
//! sender's until the broker has copied it: nothing here is taken for anything but bytes.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, sync::Arc};

use bus_core::{Audience, GroupId, lease};
use bus_memory::Segment;

use super::Piece;
use super::ledger::Pinned;

/// A sender's buffers.
#[derive(Debug)]
pub(crate) struct Pool {
    memory: Segment,
    /// For each buffer a word that changes when it is lent no longer. Only the broker writes them.
    words: Segment,
    buffers: u32,
    bytes: usize,
    stride: usize,
    sealed: AtomicBool,
    /// For each buffer, whether it is lent.
    lent: Mutex<Vec<bool>>,
    /// The group whose members may read it in place.
    group: Option<GroupId>,
    /// Those of them who have been shown it. Nobody else ever is.
    shown_to: Mutex<Option<Audience>>,
    _charge: Pinned,
}

impl Pool {
    /// A pool of `buffers` buffers of `bytes` bytes each, on somebody's charge.
    pub(crate) fn new(
        buffers: u32,
        bytes: usize,
        group: Option<GroupId>,
        charge: Pinned,
    ) -> io::Result<Arc<Self>> {
        let stride = stride(bytes);
        let count = buffers as usize;
        let memory = Segment::for_a_writer("unisono-pool", stride * count)?;
        let words = Segment::for_readers("unisono-words", 8 * count)?;
        Ok(Arc::new(Self {
            memory,
            words,
            buffers,
            bytes,
            stride,
            sealed: AtomicBool::new(false),
            lent: Mutex::new(vec![false; count]),
            group,
            shown_to: Mutex::new(None),
            _charge: charge,
        }))
    }

    /// Nobody maps it for writing from now on who has not.
    pub(crate) fn seal(&self) -> io::Result<()> {
        if !self.sealed.swap(true, Ordering::Relaxed) {
            self.memory.seal()?;
        }
        Ok(())
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Relaxed)
    }

    pub(crate) fn len(&self) -> usize {
        self.memory.len()
    }

    /// The group that it is for, if it is for one only.
    pub(crate) fn group(&self) -> Option<GroupId> {
        self.group
    }

    /// Lends a buffer; gives its generation. None if there is no such buffer, it is shorter, or lent.
    pub(crate) fn lend(&self, buffer: u32, length: u64) -> Option<u64> {
        if buffer >= self.buffers || length > self.bytes as u64 {
            return None;
        }
        let mut lent = self.lent.lock().expect("nothing panics under this lock");
        let place = lent.get_mut(buffer as usize)?;
        if std::mem::replace(place, true) {
            return None;
        }
        Some(self.words.mapping().word(8 * buffer as usize).load(Ordering::Relaxed))
    }

    pub(super) fn give_back(&self, buffer: u32) {
        let mut lent = self.lent.lock().expect("nothing panics under this lock");
        lent[buffer as usize] = false;
    }

    /// Says that what was lent with this generation is so no longer.
    pub(super) fn revoke(&self, buffer: u32, generation: u64) {
        let word = self.words.mapping().word(8 * buffer as usize);
        lease::revoke(word, generation.wrapping_add(1));
    }

    /// Whether those who have this audience may read it in place. Whoever has seen it may see all of it,
    /// so it is for one audience for ever.
    pub(crate) fn may_be_shown_to(&self, audience: Audience) -> bool {
        if self.group != Some(audience.group()) {
            return false;
        }
        let mut shown_to = self.shown_to.lock().expect("nothing panics under this lock");
        *shown_to.get_or_insert(audience) == audience
    }

    pub(crate) fn offset(&self, buffer: u32) -> usize {
        self.stride * buffer as usize
    }

    pub(super) fn copy_out(&self, buffer: u32, into: &mut [u8]) {
        self.memory.mapping().copy_out(self.offset(buffer), into);
    }

    pub(super) fn copy_to(&self, buffer: u32, piece: &Piece) {
        piece.fill_from(self.memory.mapping(), self.offset(buffer));
    }

    /// The memory and the words.
    pub(crate) fn files(&self) -> [BorrowedFd<'_>; 2] {
        [self.memory.as_fd(), self.words.as_fd()]
    }
}

/// Bytes from one buffer to the next.
pub(crate) fn stride(bytes: usize) -> usize {
    bytes.next_multiple_of(4096)
}
