//! Counters that the processes of a run share: how far receivers are, and when to stop.
//!
//! Invariant: the mapping has a fixed layout that all processes compute from the same plan, and
//! every word in it is only ever accessed as an atomic; each counter has one writer, except
//! `arrived`, which is only added to, and bells, which are handed over by exchanges. So no process can
//! see a torn or an undone value. A sender that sleeps beside its bell has said before how far
//! receivers have to be, and looks again after that; a receiver looks at the bell after it has said
//! how far it is. So one of the two sees the other, and the last receiver to come so far rings.
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
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    thread,
    time::Duration,
};

use rustix::{
    io::Errno,
    mm::{MapFlags, ProtFlags},
    thread::futex,
};

use super::plan::Plan;

/// Where somebody says how many messages there are, to those who wait beside it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Board {
    OfAll,
    /// Of a process in the middle.
    OfBroker,
    /// Of one receiver.
    Of(usize),
}

/// The counters of a run, mapped into this process.
#[derive(Debug)]
pub(crate) struct Shared {
    base: NonNull<AtomicU64>,
    words: usize,
    streams: usize,
    receivers: usize,
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
        })
    }

    /// Receiver `receiver` has had this many messages of a stream.
    pub(crate) fn publish(&self, receiver: usize, stream: usize, count: u64) {
        self.word(self.cell(receiver, stream)).store(count, Ordering::Release);
    }

    /// As [`publish`](Self::publish), and wakes who sleeps in [`sleep_until`](Self::sleep_until), if this
    /// was what it waits for.
    pub(crate) fn publish_and_wake(&self, receiver: usize, stream: usize, count: u64) {
        self.publish(receiver, stream, count);
        // Between the count and the look at the bell; its counterpart is in `sleep_until`.
        fence(Ordering::SeqCst);
        let bell = self.bell(stream);
        if bell.load(Ordering::Acquire) == ASLEEP
            && self.floor(stream) >= self.word(self.wanted(stream)).load(Ordering::Relaxed)
            && bell.swap(AWAKE, Ordering::AcqRel) == ASLEEP
        {
            // An error would be one of the address, which is ours.
            let _ = futex::wake(bell, futex::Flags::empty(), 1);
        }
    }

    /// Waits until every receiver has had `count` messages of a stream, and looks from time to time.
    pub(crate) fn wait_floor(&self, stream: usize, count: u64) -> u64 {
        loop {
            let floor = self.floor(stream);
            if floor >= count {
                return floor;
            }
            // Saturated: there is enough queued for the receivers meanwhile.
            thread::sleep(PAUSE);
        }
    }

    /// Waits until every receiver has had `count` messages of a stream, and is woken then. For messages
    /// that take so long that a waking is little, and so few at a time that a look from time to time
    /// would come when nothing is left to be done.
    pub(crate) fn sleep_until(&self, stream: usize, count: u64) -> io::Result<u64> {
        let bell = self.bell(stream);
        loop {
            let floor = self.floor(stream);
            if floor >= count {
                return Ok(floor);
            }
            self.word(self.wanted(stream)).store(count, Ordering::Relaxed);
            bell.store(ASLEEP, Ordering::Release);
            fence(Ordering::SeqCst);
            if self.floor(stream) < count {
                wait_while(bell, ASLEEP)?;
            }
            bell.store(AWAKE, Ordering::Relaxed);
        }
    }

    /// So many messages lie in memory that all have mapped; wakes those who wait beside this board.
    pub(crate) fn announce(&self, board: Board, count: u32) {
        let announced = self.half(self.board(board));
        announced.store(count, Ordering::Release);
        // Between the count and the look at who sleeps; its counterpart is the addition below.
        fence(Ordering::SeqCst);
        if self.half(self.board(board) + SLEEPERS).load(Ordering::Relaxed) > 0 {
            // An error would be one of the address, which is ours.
            let _ = futex::wake(announced, futex::Flags::empty(), EVERYBODY);
        }
    }

    /// Waits until there are others than this many, and says how many.
    pub(crate) fn wait_announced(&self, board: Board, had: u32) -> io::Result<u32> {
        let announced = self.half(self.board(board));
        let sleepers = self.half(self.board(board) + SLEEPERS);
        loop {
            let count = announced.load(Ordering::Acquire);
            if count != had {
                return Ok(count);
            }
            sleepers.fetch_add(1, Ordering::SeqCst);
            let slept = wait_while(announced, had);
            sleepers.fetch_sub(1, Ordering::Relaxed);
            slept?;
        }
    }

    /// How many messages of a stream every receiver has had.
    pub(crate) fn floor(&self, stream: usize) -> u64 {
        let had = |receiver| self.word(self.cell(receiver, stream)).load(Ordering::Acquire);
        (0..self.receivers).map(had).min().unwrap_or(u64::MAX)
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
            wait_while(self.arrived(), now)?;
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
        self.row(receiver) + LINE + stream
    }

    /// Where the words of a receiver begin: its board, then what it has had.
    fn row(&self, receiver: usize) -> usize {
        debug_assert!(receiver < self.receivers);
        HEAD + self.streams * LINE + receiver * row(self.streams)
    }

    fn board(&self, board: Board) -> usize {
        match board {
            Board::OfAll => ANNOUNCED,
            Board::OfBroker => LENT,
            Board::Of(receiver) => self.row(receiver),
        }
    }

    /// What the sender of a stream waits for; its bell is beside it.
    fn wanted(&self, stream: usize) -> usize {
        debug_assert!(stream < self.streams);
        HEAD + stream * LINE
    }

    fn bell(&self, stream: usize) -> &AtomicU32 {
        self.half(self.wanted(stream) + 1)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.words, "a word outside of the mapping");
        // SAFETY: the mapping covers `words` aligned words, lives as long as `self`, and is only
        // ever accessed through atomics.
        unsafe { self.base.add(index).as_ref() }
    }

    /// The first half of a word, which is used as this half only.
    fn half(&self, index: usize) -> &AtomicU32 {
        let word = ptr::from_ref(self.word(index)).cast::<AtomicU32>();
        // SAFETY: the word is in the mapping, aligned for less, and lives as long as `self`.
        unsafe { &*word }
    }

    fn arrived(&self) -> &AtomicU32 {
        self.half(0)
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

/// Sleeps while a word has this value, or less long.
fn wait_while(word: &AtomicU32, value: u32) -> io::Result<()> {
    match futex::wait(word, futex::Flags::empty(), value, None) {
        Ok(()) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn words(plan: &Plan) -> usize {
    HEAD + plan.streams() * LINE + plan.receivers * row(plan.streams())
}

/// Receivers do not share cache lines.
fn row(streams: usize) -> usize {
    LINE + streams.next_multiple_of(LINE)
}

/// Words of a cache line.
const LINE: usize = 8;
/// `arrived`, `stop`, what is announced to all and what is lent have a line each.
const HEAD: usize = 4 * LINE;
const STOP: usize = LINE;
const ANNOUNCED: usize = 2 * LINE;
const LENT: usize = 3 * LINE;
/// The word behind a board's.
const SLEEPERS: usize = 1;
const PAUSE: Duration = Duration::from_micros(50);
const EVERYBODY: u32 = i32::MAX.unsigned_abs();
/// What a bell says of the sender whose it is.
const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn plan(dir: &tempfile::TempDir) -> Plan {
        let plan = Plan { receivers: 2, dir: dir.path().to_owned(), ..Plan::example(64) };
        Shared::create(&plan).unwrap();
        plan
    }

    #[test]
    fn a_sender_sleeps_until_the_last_receiver_is_so_far() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(&dir);
        let (tell, told) = mpsc::channel();
        let of_sender = plan.clone();
        thread::spawn(move || {
            let sender = Shared::open(&of_sender).unwrap();
            for count in 1..=ROUNDS {
                tell.send(sender.sleep_until(0, count).unwrap()).unwrap();
            }
        });
        let receivers = Shared::open(&plan).unwrap();
        for count in 1..=ROUNDS {
            receivers.publish_and_wake(0, 0, count);
            assert!(told.try_recv().is_err(), "one has not had it");
            receivers.publish_and_wake(1, 0, count);
            assert_eq!(told.recv_timeout(PATIENCE), Ok(count));
        }
    }

    #[test]
    fn who_waits_for_an_announcement_is_woken() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(&dir);
        let (tell, told) = mpsc::channel();
        for _ in 0..2 {
            let (plan, tell) = (plan.clone(), tell.clone());
            thread::spawn(move || {
                let receiver = Shared::open(&plan).unwrap();
                for had in 0..ROUNDS {
                    let had = u32::try_from(had).unwrap();
                    tell.send(receiver.wait_announced(Board::OfAll, had).unwrap()).unwrap();
                }
            });
        }
        let sender = Shared::open(&plan).unwrap();
        for count in 1..=u32::try_from(ROUNDS).unwrap() {
            sender.announce(Board::OfAll, count);
            for _ in 0..2 {
                assert_eq!(told.recv_timeout(PATIENCE), Ok(count));
            }
        }
    }

    const ROUNDS: u64 = 2000;
}
