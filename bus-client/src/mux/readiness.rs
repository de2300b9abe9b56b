//! What the multiplexor sleeps on, and what applications poll.
//!
//! Two epoll instances are shared by all: one over the streams' input and the clock of unfinished
//! messages, one over those streams whose output could not go on. Each handle has an epoll instance
//! of its own over both and over a bell; that is the descriptor that applications poll for reading.
//! A handle that receives nothing looks away from the input. All are level-triggered.
//!
//! Invariant: a stream is asked for writability only while something waits for it, and a handle's
//! descriptor shows input only while that handle would be given some or could read it; so no poll
//! loop spins.
//!
//! The bell of a handle is an eventfd at 0, which can always be written to: asking epoll for that
//! makes the handle's descriptor readable, without a count to be kept.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::hub::Watch;

/// An eventfd that is rung and silenced.
#[derive(Debug)]
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(super) fn ring(&self) {
        // It fails only when it is above zero already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    pub(super) fn quiet(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// The descriptor of one handle.
#[derive(Debug)]
pub(super) struct Pollable {
    epoll: OwnedFd,
    bell: OwnedFd,
}

impl Pollable {
    /// Makes it readable whatever the streams do, or no longer so.
    pub(super) fn raise(&self, on: bool) {
        let flags = if on { EventFlags::OUT } else { EventFlags::empty() };
        let _ = epoll::modify(&self.epoll, &self.bell, EventData::new_u64(0), flags);
    }
}

impl AsFd for Pollable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// The descriptors that all handles share.
#[derive(Debug)]
pub(super) struct Readiness {
    input: OwnedFd,
    output: OwnedFd,
    timer: OwnedFd,
    /// When the timer rings next, if it is set.
    rings_at: Mutex<Option<Instant>>,
}

/// What is ready.
#[derive(Debug, Default)]
pub(super) struct Ready {
    /// Keys of streams.
    pub(super) streams: Vec<usize>,
    /// Unfinished messages are to be looked at.
    pub(super) timer: bool,
}

impl Readiness {
    pub(super) fn new() -> io::Result<Self> {
        let input = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let output = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&input, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        Ok(Self { input, output, timer, rings_at: Mutex::new(None) })
    }

    /// A descriptor for a handle that receives.
    pub(super) fn pollable(&self) -> io::Result<Pollable> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &bell, EventData::new_u64(0), EventFlags::empty())?;
        epoll::add(&epoll, &self.input, EventData::new_u64(1), EventFlags::IN)?;
        epoll::add(&epoll, &self.output, EventData::new_u64(2), EventFlags::IN)?;
        Ok(Pollable { epoll, bell })
    }

    /// Lets a handle's descriptor show input, or no longer so.
    pub(super) fn show_input(&self, pollable: &Pollable, on: bool) {
        let flags = if on { EventFlags::IN } else { EventFlags::empty() };
        let _ = epoll::modify(&pollable.epoll, &self.input, EventData::new_u64(1), flags);
    }

    pub(super) fn add_stream(&self, socket: impl AsFd, key: usize) -> io::Result<()> {
        Ok(epoll::add(&self.input, socket, EventData::new_u64(key as u64), EventFlags::IN)?)
    }

    pub(super) fn remove_input(&self, socket: impl AsFd) {
        let _ = epoll::delete(&self.input, &socket);
    }

    /// Watches a stream for room, or no longer so.
    pub(super) fn watch_output(&self, socket: impl AsFd, key: usize, on: bool) {
        let _ = if on {
            epoll::add(&self.output, socket, EventData::new_u64(key as u64), EventFlags::OUT)
        } else {
            epoll::delete(&self.output, socket)
        };
    }

    /// Streams that can be read now.
    pub(super) fn input(&self) -> Ready {
        take(&self.input)
    }

    /// Streams that can be written to now, of those that are watched for it.
    pub(super) fn output(&self) -> Ready {
        take(&self.output)
    }

    /// Sees to it that [`Ready::timer`] comes within this time; earlier if it was set so.
    pub(super) fn ring_within(&self, time: Duration) {
        let Some(at) = Instant::now().checked_add(time) else { return };
        let mut rings_at = self.rings_at.lock();
        if rings_at.is_none_or(|earlier| at < earlier) {
            *rings_at = Some(at);
            // 0 would mean never.
            self.set_timer(time.max(Duration::from_micros(1)));
        }
    }

    /// The timer was seen: it is not set any more.
    pub(super) fn timer_seen(&self) {
        let mut rings_at = self.rings_at.lock();
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        *rings_at = None;
    }

    fn set_timer(&self, time: Duration) {
        let zero = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let it_value =
            rustix::time::Timespec { tv_sec: seconds, tv_nsec: time.subsec_nanos().into() };
        let new = Itimerspec { it_interval: zero, it_value };
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &new);
    }

    /// Sleeps until something that is watched is ready, the bell is rung, or the time is over. May
    /// return early.
    pub(super) fn sleep(&self, bell: &Bell, watch: Watch, timeout: Option<Duration>) {
        let mut waits = [
            PollFd::new(&bell.0, PollFlags::IN),
            PollFd::new(&self.output, PollFlags::IN),
            PollFd::new(&self.input, PollFlags::IN),
        ];
        let count = if watch.input { 3 } else { 2 };
        // What no clock can count is for ever.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // A signal, or what else: who sleeps looks again anyway.
        let _ = poll(&mut waits[..count], timeout.as_ref());
    }
}

fn take(epoll: &OwnedFd) -> Ready {
    let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 32];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut ready = Ready::default();
    let count = loop {
        match epoll::wait(epoll, &mut events[..], Some(&now)) {
            Ok(count) => break count,
            Err(Errno::INTR) => {}
            Err(_) => break 0,
        }
    };
    for event in &events[..count] {
        let data = event.data;
        match usize::try_from(data.u64()) {
            Ok(key) if data.u64() != TIMER => ready.streams.push(key),
            _ => ready.timer = true,
        }
    }
    ready
}

/// Epoll's word for the timer. No key of a stream is as large.
const TIMER: u64 = u64::MAX;
