//! Waiting for the bus, for a signal, or for nobody to read any more: whichever comes first.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use bus_client::Bus;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::{exit::Failure, output::Output, signals::Notice};

/// What ended the waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Something may have come on the bus: receive, and wait again.
    Bus,
    Signal,
    Timeout,
}

/// What a verb that prints what comes waits for.
#[derive(Debug)]
pub(crate) struct Idle<'a> {
    bus: &'a Bus,
    descriptor: BorrowedFd<'a>,
    notice: &'a Notice,
}

impl<'a> Idle<'a> {
    pub(crate) fn new(bus: &'a Bus, notice: &'a Notice) -> Self {
        Self { bus, descriptor: bus.as_fd(), notice }
    }

    /// Waits at most as long as there is `left`.
    pub(crate) fn wait(&self, output: &Output, left: Option<Duration>) -> Result<Woken, Failure> {
        let left = left.map(Timespec::try_from).transpose().map_err(Failure::error)?;
        let mut fds = [
            PollFd::from_borrowed_fd(self.descriptor, PollFlags::IN),
            PollFd::from_borrowed_fd(self.notice.as_fd(), PollFlags::IN),
            // No events are asked for: what is told anyway is that nobody reads any more.
            PollFd::from_borrowed_fd(output.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return Ok(Woken::Timeout),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Failure::error(std::io::Error::from(error))),
        }
        if !fds[1].revents().is_empty() {
            return Ok(Woken::Signal);
        }
        if fds[2].revents().contains(PollFlags::ERR) {
            return Err(Failure::ClosedPipe);
        }
        // The loss of the broker is told by the next receive, after all that had arrived.
        let _ = self.bus.dispatch();
        Ok(Woken::Bus)
    }
}
