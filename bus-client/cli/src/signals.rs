//! SIGINT and SIGTERM end the program quietly.
//!
//! Invariant: the signals are blocked before the first thread starts, so that every thread inherits
//! the mask and only the descriptor made here ever takes them. There is no handler and nothing that
//! has to be async-signal-safe. A signal that was ignored when we were started stays ignored, as
//! `nohup` and background jobs expect.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal},
    signalfd::{SfdFlags, SignalFd, siginfo},
};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};

/// Signals that are blocked and read from a descriptor.
#[derive(Debug)]
pub(crate) struct Signals {
    descriptor: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Blocks SIGINT, SIGTERM and `also`. Call it before any thread is started.
    pub(crate) fn block(also: &[Signal]) -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM].iter().chain(also) {
            set.add(*signal);
        }
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self { descriptor: SignalFd::with_flags(&set, flags)?, before })
    }

    /// The mask that was in force before; a command that we start gets it back.
    pub(crate) fn mask_before(&self) -> &SigSet {
        &self.before
    }

    /// Waits for the next signal.
    pub(crate) fn wait(&self) -> io::Result<siginfo> {
        loop {
            if let Some(info) = self.descriptor.read_signal()? {
                return Ok(info);
            }
            wait_readable(self.descriptor.as_fd(), None)?;
        }
    }

    /// Starts a thread that ends the process with status 0 at the first signal, or, where somebody
    /// [asked for notice](Notice::ask), at the second one or when the grace is over.
    ///
    /// A thread rather than a check in every loop, because a verb may be anywhere: in a call to a
    /// broker that is stopped, or in a write to a pipe that nobody empties.
    pub(crate) fn end_quietly(self) -> io::Result<Arc<Notice>> {
        let notice = Arc::new(Notice {
            asked: AtomicBool::new(false),
            given: AtomicBool::new(false),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let told = Arc::clone(&notice);
        thread::Builder::new().name("signals".to_owned()).spawn(move || self.run(&told))?;
        Ok(notice)
    }

    fn run(&self, notice: &Notice) {
        // An error here would be one of descriptors that we own; ending is then right as well.
        if self.wait().is_ok() && notice.asked.load(Ordering::Acquire) {
            notice.given.store(true, Ordering::Release);
            if rustix::io::write(&notice.event, &1_u64.to_ne_bytes()).is_ok() {
                let _ = wait_readable(self.descriptor.as_fd(), Some(GRACE));
            }
        }
        process::exit(0);
    }
}

/// How a verb that has something to say at its end hears that it should.
#[derive(Debug)]
pub(crate) struct Notice {
    asked: AtomicBool,
    given: AtomicBool,
    event: OwnedFd,
}

impl Notice {
    /// From now on the first signal makes this descriptor readable, and the process ends a grace
    /// later if it has not done so by itself.
    pub(crate) fn ask(&self) {
        self.asked.store(true, Ordering::Release);
    }

    /// Whether the signal has come; cheaper than a look at the descriptor.
    pub(crate) fn given(&self) -> bool {
        self.given.load(Ordering::Acquire)
    }
}

impl AsFd for Notice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

fn wait_readable(fd: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<()> {
    let limit = limit
        .map(|d| Timespec::try_from(d).map_err(|_| io::ErrorKind::InvalidInput))
        .transpose()?;
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match poll(&mut fds, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How long a listener may take to leave its groups and finish its trace.
const GRACE: Duration = Duration::from_secs(1);
