//! Sleeping in the read itself.
//!
//! Who waits for input, and has nothing to write, needs no `poll` before the read: a read that blocks is one
//! system call where these are two, and of a message that comes alone its system calls are most of the cost.
//! It is made as a leader sleeps, with the lock released, into memory that is taken out of the inflow.
//!
//! A socket wakes those who sleep in a read also when the other end has read what they wrote, and a poll
//! for input does not; so who has just written polls.
//!
//! Invariants:
//! - While it lasts nobody else reads ([`Inflow::lend`](crate::inflow::Inflow::lend)), so what comes is taken
//!   in in the order in which it was read.
//! - It ends by input, by the end of the stream, or after [`NAP`]. Nothing else ends it: not the bell, not room
//!   for output, not a timer. So it is made only by a thread that would look again soon by itself; and once
//!   anybody had to ring for such a thread, or would have read in its place, the connection's threads poll
//!   from then on ([`Waits::is_left_alone`](crate::waits::Waits::is_left_alone)). One wake-up of a connection
//!   may so be late by `NAP`, and none is lost.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustix::io::Errno;

use crate::transport::{Read, Transport};

/// How long a thread sleeps before it looks whether credit is to be returned that was put off.
pub(crate) const NAP: Duration = Duration::from_millis(10);

/// A read under way, with what it needs of the connection.
#[derive(Debug)]
pub(crate) struct LongRead {
    transport: Arc<Transport>,
    pub(crate) landed: Landed,
}

/// Where a long read puts what comes, and what that was.
#[derive(Debug)]
pub(crate) struct Landed {
    /// What of the inflow's memory is free.
    pub(crate) block: BytesMut,
    /// How much of it is read into at most.
    pub(crate) room: usize,
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) read: Result<Read, Errno>,
}

impl LongRead {
    pub(crate) fn new(transport: Arc<Transport>, landed: Landed) -> Self {
        Self { transport, landed }
    }

    /// Sleeps until there is input, the stream has ended, or [`NAP`] has passed.
    pub(crate) fn sleep(&mut self) {
        let Landed { block, room, descriptors, read } = &mut self.landed;
        *read = self.transport.read_patiently(&mut block[..*room], descriptors);
    }

    /// Which socket was read.
    pub(crate) fn transport(&self) -> &Arc<Transport> {
        &self.transport
    }
}

impl Landed {
    pub(crate) fn new(block: BytesMut, room: usize) -> Self {
        Self { block, room, descriptors: Vec::new(), read: Err(Errno::AGAIN) }
    }
}
