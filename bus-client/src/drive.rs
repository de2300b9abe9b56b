//! Who does the I/O while a future waits.
//!
//! By itself a future only registers its waker: a thread in a blocking call, or whoever calls
//! `dispatch`, does the I/O and calls it. With the feature `tokio`, inside a runtime, the future
//! also waits for the connection's descriptor on the runtime's reactor, and dispatches when it is
//! readable. Each future does so for itself, so that none depends on another being polled.

use std::task::{Context, Poll};

use crate::connection::Connection;

/// A future's part in the I/O of its connection.
#[derive(Default)]
pub(crate) struct Drive {
    #[cfg(feature = "tokio")]
    readiness: crate::reactor::Readiness,
}

impl Drive {
    /// Polls `step`, and between its polls the connection.
    pub(crate) fn poll<T>(
        &mut self,
        connection: &std::sync::Arc<Connection>,
        cx: &mut Context<'_>,
        mut step: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        loop {
            if let Poll::Ready(done) = step(cx) {
                return Poll::Ready(done);
            }
            if !self.dispatched(connection, cx) {
                return Poll::Pending;
            }
        }
    }

    /// Dispatches if the reactor says that there is something to do; else it wakes the task when
    /// there is.
    #[cfg(feature = "tokio")]
    fn dispatched(
        &mut self,
        connection: &std::sync::Arc<Connection>,
        cx: &mut Context<'_>,
    ) -> bool {
        self.readiness.poll_dispatch(connection, cx).is_ready()
    }

    #[cfg(not(feature = "tokio"))]
    fn dispatched(
        &mut self,
        _connection: &std::sync::Arc<Connection>,
        _cx: &mut Context<'_>,
    ) -> bool {
        false
    }
}

impl std::fmt::Debug for Drive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drive").finish_non_exhaustive()
    }
}
