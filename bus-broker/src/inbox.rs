//! What other threads have for an I/O thread, and how they wake it.
//!
//! Invariant: nothing lies in the inbox of a thread that sleeps. The lock covers both the posts and
//! the word "sleeps": the thread says that it sleeps only when it has seen the inbox empty, and who
//! posts to one that said so takes the word back and rings the bell, once. A thread that is
//! awake is not rung: it looks again before it sleeps.
//!
//! The inbox is bounded by what exists (G8): a [`Signal`] is in it at most once, and newcomers count
//! as connections from the moment they are posted.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
};

use bus_core::wire::{Handle, LaneNumber, Serial};
use bus_core::{Bus, GroupId, ReaderTimes};
use rustix::event::EventfdFlags;

use crate::broker::Newcomer;
use crate::tally::ThreadCounters;

/// One I/O thread's inbox.
#[derive(Debug)]
pub(crate) struct Inbox {
    shelf: Mutex<Shelf>,
    bell: OwnedFd,
    /// Connections of the thread, those still in the inbox included.
    connections: AtomicUsize,
    /// What the thread counts; it alone writes there.
    pub(crate) counters: ThreadCounters,
    /// The same, in the bus: what its connections' readers come to.
    times: OnceLock<ReaderTimes>,
}

/// What is in it.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    /// Parts of connections that have something to do.
    pub(crate) signals: Vec<Arc<Signal>>,
    /// Connections to be taken over.
    pub(crate) newcomers: Vec<Newcomer>,
    /// The broker ends.
    pub(crate) stop: bool,
    /// The rules of the policy have changed.
    pub(crate) review: bool,
    /// Descriptors are under way.
    pub(crate) orphans: bool,
    asleep: bool,
    closed: bool,
}

/// Names a connection of one I/O thread: a place in its table, and which of those that were there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Which part of a connection has something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// An endpoint's queue has something to read.
    Queue(Handle),
    /// A lane's head has its outcome.
    Lane(Handle, LaneNumber),
    /// A watched destination may be writable.
    Watch(Handle, Serial),
    /// The owner of a gated group may have decided on a request.
    Admission(Handle, GroupId),
    /// Payloads that the connection has lent are free again.
    Completions,
    /// Memory that the connection was given has ended, or a payload is to be given anew.
    Memory,
}

/// The waker of one part of one connection.
pub(crate) struct Signal {
    inbox: Arc<Inbox>,
    token: Token,
    part: Part,
    posted: AtomicBool,
}

impl Inbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            shelf: Mutex::default(),
            connections: AtomicUsize::new(0),
            counters: ThreadCounters::default(),
            times: OnceLock::new(),
            bell: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Hands a connection over. False if the thread has ended, and then it is closed.
    pub(crate) fn post_newcomer(&self, newcomer: Newcomer) -> bool {
        self.post(|shelf| shelf.newcomers.push(newcomer))
    }

    /// Counts connections of the thread: one more, or one less.
    pub(crate) fn load(&self) -> &AtomicUsize {
        &self.connections
    }

    /// Where the readers of the thread's connections count together.
    pub(crate) fn reader_times(&self, bus: &Bus) -> &ReaderTimes {
        self.times.get_or_init(|| bus.reader_times())
    }

    /// Tells the thread to end.
    pub(crate) fn post_stop(&self) {
        self.post(|shelf| shelf.stop = true);
    }

    /// Tells the thread that the rules have changed.
    pub(crate) fn post_review(&self) {
        self.post(|shelf| shelf.review = true);
    }

    /// Tells the thread that descriptors are under way.
    pub(crate) fn post_orphans(&self) {
        self.post(|shelf| shelf.orphans = true);
    }

    /// Takes everything out. The vectors that come in are empty and are left in its place, so that
    /// a busy thread allocates nothing.
    pub(crate) fn take(&self, empty: Shelf) -> Shelf {
        let mut shelf = self.lock();
        shelf.asleep = false;
        std::mem::replace(&mut *shelf, empty)
    }

    /// Whether there is something to do. Who is about to sleep asks [`fall_asleep`](Self::fall_asleep).
    pub(crate) fn has_something(&self) -> bool {
        !self.lock().is_empty()
    }

    /// Says "I sleep", unless there is something to do; then the answer is `false`.
    pub(crate) fn fall_asleep(&self) -> bool {
        let mut shelf = self.lock();
        shelf.asleep = shelf.is_empty();
        shelf.asleep
    }

    /// Says "I am awake": nobody has to ring, because the thread looks before it sleeps again. What
    /// it posts to itself meanwhile would ring too, and cost three system calls a message.
    pub(crate) fn wake_up(&self) {
        self.lock().asleep = false;
    }

    /// Silences the bell, once it was heard.
    pub(crate) fn silence(&self) {
        let mut rings = [0; 8];
        // It is non-blocking, and EAGAIN says that it is silent already.
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&self.bell, &mut rings));
    }

    /// Nobody will look any more: empties it, and takes nothing from now on.
    pub(crate) fn close(&self) {
        let closed = Shelf { closed: true, ..Shelf::default() };
        let left = std::mem::replace(&mut *self.lock(), closed);
        // Dropped without the lock: what is in there may well post.
        drop(left);
    }

    fn post(&self, put: impl FnOnce(&mut Shelf)) -> bool {
        let mut shelf = self.lock();
        if shelf.closed {
            return false;
        }
        put(&mut shelf);
        let ring = std::mem::take(&mut shelf.asleep);
        drop(shelf);
        if ring {
            let one = 1_u64.to_ne_bytes();
            // EAGAIN would mean that it has been rung 2^64 times and is still heard.
            let _ = rustix::io::retry_on_intr(|| rustix::io::write(&self.bell, &one));
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("nothing that can panic runs under this lock")
    }
}

impl AsFd for Inbox {
    /// The bell, for epoll.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Shelf {
    fn is_empty(&self) -> bool {
        let words = self.stop || self.review || self.orphans;
        self.signals.is_empty() && self.newcomers.is_empty() && !words
    }
}

impl Token {
    /// The number that epoll keeps for the connection.
    pub(crate) fn as_u64(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.generation)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the two halves of as_u64")]
    pub(crate) fn from_u64(number: u64) -> Self {
        Self { index: (number >> 32) as u32, generation: number as u32 }
    }
}

impl Signal {
    /// A waker for `part` of connection `token` of the thread that owns `inbox`.
    pub(crate) fn waker(inbox: &Arc<Inbox>, token: Token, part: Part) -> Waker {
        Waker::from(Arc::new(Self {
            inbox: Arc::clone(inbox),
            token,
            part,
            posted: AtomicBool::new(false),
        }))
    }

    /// Takes note that the part is about to be looked at: from now on it can be posted again.
    pub(crate) fn acknowledge(&self) -> (Token, Part) {
        // Read-modify-write on both sides: who finds it posted knows that the look which this
        // acknowledges comes later and sees what the waker saw.
        self.posted.swap(false, Ordering::AcqRel);
        (self.token, self.part)
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.posted.swap(true, Ordering::AcqRel) {
            self.inbox.post(|shelf| shelf.signals.push(Arc::clone(self)));
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {:?}", self.part, self.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rung(inbox: &Inbox) -> bool {
        let mut rings = [0; 8];
        rustix::io::read(&inbox.bell, &mut rings).is_ok()
    }

    fn part(number: u32) -> (Token, Part) {
        let token = Token { index: number, generation: 1 };
        (token, Part::Queue(Handle::FIRST))
    }

    fn waker(inbox: &Arc<Inbox>, number: u32) -> Waker {
        let (token, part) = part(number);
        Signal::waker(inbox, token, part)
    }

    #[test]
    fn only_a_sleeper_is_rung_and_only_once() {
        let inbox = Arc::new(Inbox::new().unwrap());
        waker(&inbox, 1).wake_by_ref();
        assert!(!rung(&inbox), "it is awake");
        assert!(!inbox.fall_asleep(), "something is there");
        assert_eq!(inbox.take(Shelf::default()).signals.len(), 1);
        assert!(inbox.fall_asleep());
        waker(&inbox, 2).wake_by_ref();
        waker(&inbox, 3).wake_by_ref();
        assert!(rung(&inbox));
        assert!(!rung(&inbox), "the second post found it woken");
        assert_eq!(inbox.take(Shelf::default()).signals.len(), 2);
        assert!(inbox.fall_asleep());
        inbox.wake_up();
        waker(&inbox, 4).wake_by_ref();
        assert!(!rung(&inbox), "woken by something else, and not asleep any more");
        assert!(!inbox.fall_asleep());
    }

    #[test]
    fn g8_a_signal_is_posted_once_until_it_is_looked_at() {
        let inbox = Arc::new(Inbox::new().unwrap());
        let waker = waker(&inbox, 7);
        waker.wake_by_ref();
        waker.wake_by_ref();
        let shelf = inbox.take(Shelf::default());
        assert_eq!(shelf.signals.len(), 1);
        assert_eq!(shelf.signals[0].acknowledge(), part(7));
        waker.wake_by_ref();
        assert_eq!(inbox.take(Shelf::default()).signals.len(), 1);
    }

    #[test]
    fn stop_wakes() {
        let inbox = Inbox::new().unwrap();
        assert!(inbox.fall_asleep());
        inbox.post_stop();
        assert!(rung(&inbox));
        assert!(inbox.take(Shelf::default()).stop);
    }
}
