//! What a bus offers for payloads apart: pools, completions, and what was measured.

use bus_core::{CompletedRange, GroupId};

use super::{Calibration, Pool, PoolError};
use crate::bus::Bus;

impl Bus {
    /// Asks for a pool of buffers, each of `bytes` bytes, to be written, sent with
    /// [`Outgoing::lent`](crate::Outgoing::lent) and had back when the recipients are done. Blocks for some
    /// round trips.
    ///
    /// The broker makes the memory. What is sent from it is copied once, by the broker, for all recipients
    /// together; see [`pool_for`](Self::pool_for) for none at all.
    ///
    /// # Errors
    ///
    /// See [`PoolError`].
    pub fn pool(&self, buffers: u32, bytes: usize) -> Result<Pool, PoolError> {
        Pool::new(self.connection(), buffers, bytes, None)
    }

    /// As [`pool`](Self::pool), for one group: those of its members that
    /// [trust](crate::Builder::trust_own_user) this program's user read the buffers in place, without any
    /// copy. They can see whatever is written there, from the first message on and until they leave, so
    /// nothing for others belongs there, and the broker takes it for no other destination. When the
    /// group's membership changes what is sent is copied again, and completions say so; then a new pool
    /// brings the members of now together.
    ///
    /// # Errors
    ///
    /// See [`PoolError`].
    pub fn pool_for(&self, group: GroupId, buffers: u32, bytes: usize) -> Result<Pool, PoolError> {
        Pool::new(self.connection(), buffers, bytes, Some(group))
    }

    /// The completions that have come, oldest first: ranges of numbers of flagged sends whose payloads are
    /// free again. A completion says nothing else, and not that anybody has read them. Never blocks; a
    /// completion that waits to be read makes the [descriptor](std::os::fd::AsFd) readable.
    pub fn completions(&self) -> Completions<'_> {
        self.connection().lock().turn();
        Completions { bus: self }
    }

    /// Waits until there are completions to read; false if that took longer than `timeout`, or the
    /// connection has ended.
    pub fn wait_completions(&self, timeout: std::time::Duration) -> bool {
        let deadline = std::time::Instant::now().checked_add(timeout);
        let interest = crate::state::Interest::Anything;
        self.connection()
            .wait(interest, None, deadline, |state| {
                (state.has_completions() || state.gone().is_some()).then(|| state.has_completions())
            })
            .unwrap_or(false)
    }

    /// What was measured when this connection was made, if it lends.
    #[must_use]
    pub fn calibration(&self) -> Option<&Calibration> {
        self.connection().calibration()
    }
}

/// Completions that have come; see [`Bus::completions`].
#[derive(Debug)]
pub struct Completions<'a> {
    bus: &'a Bus,
}

impl Iterator for Completions<'_> {
    type Item = CompletedRange;

    fn next(&mut self) -> Option<CompletedRange> {
        self.bus.connection().lock().read_completion()
    }
}
