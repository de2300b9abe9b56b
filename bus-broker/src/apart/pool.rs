//! Buffers that a sender writes and lends: memory that the broker has made.
//!
//! Invariant: its size is fixed, so reading it cannot fault whatever the sender does; and once sealed
//! nobody but the sender can ever map it for writing, so it may be shown to readers. What it says is the
//! sender's until the broker has copied it: nothing here is taken for anything but bytes.
//!
//! Who was shown it sees whatever is written there later. So it serves one audience for ever; and when
//! others are entitled to the group's messages its sender is told, and writes to another one.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, sync::Arc};

use std::task::Waker;

use bus_core::{Audience, Bus, Charge, GroupId, lease};
use bus_memory::{FileError, Segment};

use super::Piece;

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
    shown: Mutex<Shown>,
    /// Called when others are entitled to what the group gets.
    outdated: Waker,
    /// Connections that have it mapped, to be told of its end.
    readers: Mutex<Vec<Waker>>,
    _charge: Charge,
}

/// Those members who may look at all that is written there. Nobody else ever can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    ToNobody,
    To(Audience),
    /// Others are entitled now to what the group gets, and the sender was told.
    Outdated,
}

impl Pool {
    /// A pool of `buffers` buffers of `bytes` bytes each, on somebody's charge. `outdated` is called when
    /// it should be written no more: see [`outdate`](Self::outdate).
    pub(crate) fn new(
        buffers: u32,
        bytes: usize,
        group: Option<GroupId>,
        outdated: Waker,
        charge: Charge,
    ) -> io::Result<Arc<Self>> {
        let stride = stride(bytes);
        let count = buffers as usize;
        let memory = Segment::for_a_writer("unisono-pool", stride * count)?;
        let words = Segment::for_readers("unisono-words", 8 * count)?;
        words.take_pages()?;
        Ok(Arc::new(Self {
            memory,
            words,
            buffers,
            bytes,
            stride,
            sealed: AtomicBool::new(false),
            lent: Mutex::new(vec![false; count]),
            group,
            shown: Mutex::new(Shown::ToNobody),
            outdated,
            readers: Mutex::default(),
            _charge: charge,
        }))
    }

    /// Nobody maps it for writing from now on who has not. Its sender has taken all its pages: it takes
    /// longer than others are to wait for their turn, and whoever reads a hole would pay for it.
    pub(crate) fn seal(&self) -> Result<(), FileError> {
        if !self.is_sealed() {
            self.memory.seal()?;
            bus_memory::check_fixed_size(self.memory.as_fd(), self.len() as u64)?;
            self.sealed.store(true, Ordering::Relaxed);
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

    /// Whether those who have this audience may read it in place.
    pub(crate) fn may_be_shown_to(&self, audience: Audience, bus: &Bus) -> bool {
        if self.group != Some(audience.group()) {
            return false;
        }
        let mut shown = self.shown.lock().expect("nothing panics under this lock");
        match *shown {
            Shown::To(shown_to) => shown_to == audience,
            Shown::ToNobody if bus.wake_when_changed(audience, self.outdated.clone()) => {
                *shown = Shown::To(audience);
                true
            }
            Shown::ToNobody | Shown::Outdated => false,
        }
    }

    /// Whether its sender is to be told, now, that others are entitled to what the group gets than
    /// those who were shown it.
    pub(crate) fn outdate(&self, bus: &Bus) -> bool {
        let mut shown = self.shown.lock().expect("nothing panics under this lock");
        let outdated = match *shown {
            Shown::To(audience) => !bus.wake_when_changed(audience, self.outdated.clone()),
            Shown::ToNobody | Shown::Outdated => false,
        };
        if outdated {
            *shown = Shown::Outdated;
        }
        outdated
    }

    /// Calls the waker when the pool is gone.
    pub(crate) fn tell(&self, waker: Waker) {
        self.readers.lock().expect("nothing panics under this lock").push(waker);
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

impl Drop for Pool {
    fn drop(&mut self) {
        let readers = self.readers.get_mut().map(std::mem::take).unwrap_or_default();
        readers.into_iter().for_each(Waker::wake);
    }
}

/// Bytes from one buffer to the next.
pub(crate) fn stride(bytes: usize) -> usize {
    bytes.next_multiple_of(4096)
}
