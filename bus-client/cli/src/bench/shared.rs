//! Counters that the processes of a run share: how far receivers are, and when to stop.
//!
//! Invariant: the mapping has a fixed layout that all processes compute from the same plan, and
//! every word in it is only ever accessed as an atomic; each counter has one writer, except
//! `arrived`, which is only added to. So no process can see a torn or an undone value.
//!
//! This is the same flow control for every system measured, and costs a store a message.
//!
//! # Safety
//!
//! The mapping lives as long as the value, is aligned to a page, and covers every word whose index
//! passes the check in `word`. Another process that truncates the file would make an access fault;
//! the file is in a folder of this run alone.
#![expect(unsafe_code, reason = "memory that processes share has no safe interface")]

use std::{
    fs::OpenOptions,
    io,
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use rustix::{
    io::Errno,
    mm::{MapFlags, ProtFlags},
    thread::futex,
};

use super::plan::Plan;

/// The counters of a run, mapped into this process.
#[derive(Debug)]
pub(crate) struct Shared {
    base: NonNull<AtomicU64>,
    words: usize,
    streams: usize,
    receivers: usize,
    pause: Duration,
}

impl Shared {
    /// Makes the file of a run.
    pub(crate) fn create(plan: &Plan) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).open(plan.counters())?;
        file.set_len((words(plan) * 8) as u64)
    }

    /// Maps it.
    pub(crate) fn open(plan: &Plan) -> io::Result<Self> {
        let words = words(plan);
        Ok(Self {
            base: map(&plan.counters(), words * 8)?,
            words,
            streams: plan.streams(),
            receivers: plan.receivers,
            pause: PAUSE.max(PAUSE_A_MIB * u32::try_from(plan.size >> 20).unwrap_or(0)),
        })
    }

    /// Receiver `receiver` has had this many messages of a stream.
    pub(crate) fn publish(&self, receiver: usize, stream: usize, count: u64) {
        self.word(self.cell(receiver, stream)).store(count, Ordering::Release);
    }

    /// Waits until every receiver has had `count` messages of a stream.
    pub(crate) fn wait_floor(&self, stream: usize, count: u64) -> u64 {
        loop {
            let floor = (0..self.receivers)
                .map(|r| self.word(self.cell(r, stream)).load(Ordering::Acquire))
                .min()
                .unwrap_or(u64::MAX);
            if floor >= count {
                return floor;
            }
            // Saturated: there is enough queued for the receivers meanwhile.
            thread::sleep(self.pause);
        }
    }

    /// A receiver has the message of the present step. The last one wakes the sender.
    pub(crate) fn arrive(&self) {
        let before = self.arrived().fetch_add(1, Ordering::AcqRel);
        let receivers = u32::try_from(self.receivers).expect("the options bound it");
        if before.wrapping_add(1).is_multiple_of(receivers) {
            // An error would be one of the address, which is ours.
            let _ = futex::wake(self.arrived(), futex::Flags::empty(), 1);
        }
    }

    /// Waits until all receivers have arrived for the `steps`-th time.
    pub(crate) fn wait_arrived(&self, steps: u64) -> io::Result<()> {
        let target = steps * self.receivers as u64;
        let target = u32::try_from(target).map_err(|_| io::Error::other("too many steps"))?;
        loop {
            let now = self.arrived().load(Ordering::Acquire);
            if now >= target {
                return Ok(());
            }
            match futex::wait(self.arrived(), futex::Flags::empty(), now, None) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Tells those who ask that it is enough.
    pub(crate) fn stop(&self) {
        self.word(STOP).store(1, Ordering::Release);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.word(STOP).load(Ordering::Acquire) != 0
    }

    fn cell(&self, receiver: usize, stream: usize) -> usize {
        debug_assert!(stream < self.streams);
        HEAD + receiver * row(self.streams) + stream
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.words, "a word outside of the mapping");
        // SAFETY: the mapping covers `words` aligned words, lives as long as `self`, and is only
        // ever accessed through atomics.
        unsafe { self.base.add(index).as_ref() }
    }

    fn arrived(&self) -> &AtomicU32 {
        // SAFETY: word 0 is in the mapping, aligned for less, and used as this half only.
        unsafe { self.base.cast::<AtomicU32>().as_ref() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `map` gave, and no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.words * 8) };
    }
}

fn map(path: &Path, bytes: usize) -> io::Result<NonNull<AtomicU64>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // SAFETY: the kernel chooses the address, so nothing of ours is replaced.
    let base = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &file,
            0,
        )
    }?;
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))
}

fn words(plan: &Plan) -> usize {
    HEAD + plan.receivers * row(plan.streams())
}

/// Receivers do not share cache lines.
fn row(streams: usize) -> usize {
    streams.next_multiple_of(LINE)
}

/// Words of a cache line.
const LINE: usize = 8;
/// `arrived` and `stop` have a line each.
const HEAD: usize = 2 * LINE;
const STOP: usize = LINE;
const PAUSE: Duration = Duration::from_micros(50);
/// Large payloads take their time: to look more often would be work of the benchmark's own.
const PAUSE_A_MIB: Duration = Duration::from_micros(250);
