//! Writability of a destination, told by the broker.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::error::WatchError;

/// Becomes ready when a send to the watched destination would not block. Dropping it ends the
/// watch.
#[derive(Debug)]
#[must_use = "the answer is known only to whoever waits for it"]
pub struct Writable {}

impl Writable {
    /// Waits until a send would not block.
    ///
    /// # Errors
    ///
    /// The destination is gone, or the broker is.
    pub fn wait(self) -> Result<(), WatchError> {
        unimplemented!()
    }

    /// Waits at most `timeout`; `false` if it passed first. The watch goes on.
    ///
    /// # Errors
    ///
    /// The destination is gone, or the broker is.
    pub fn wait_deadline(&mut self, timeout: Duration) -> Result<bool, WatchError> {
        let _ = timeout;
        unimplemented!()
    }

    /// Whether the answer has arrived; does the I/O that is possible without blocking.
    ///
    /// # Errors
    ///
    /// The destination is gone, or the broker is.
    pub fn is_writable(&mut self) -> Result<bool, WatchError> {
        unimplemented!()
    }
}

impl Future for Writable {
    type Output = Result<(), WatchError>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
}
