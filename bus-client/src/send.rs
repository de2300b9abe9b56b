//! Sends under way.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::error::SendError;
use crate::message::Receipt;

/// A send that has left and is not yet answered. Dropping it does not take the message back.
///
/// As a future it needs somebody who dispatches; see [`Group::send_async`](crate::Group::send_async).
#[derive(Debug)]
#[must_use = "the outcome is known only to whoever waits for it"]
pub struct PendingSend {}

impl PendingSend {
    /// Waits for the outcome, as [`Group::send`](crate::Group::send) does.
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub fn wait(self) -> Result<Receipt, SendError> {
        unimplemented!()
    }

    /// As [`wait`](Self::wait), but cancels once `timeout` has passed; the broker's word decides.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](SendError::TimedOut): it reached nobody.
    pub fn wait_deadline(self, timeout: Duration) -> Result<Receipt, SendError> {
        let _ = timeout;
        unimplemented!()
    }

    /// The outcome, if it has arrived. Does the I/O that is possible without blocking. Gives the
    /// outcome once; `None` for ever after.
    pub fn try_wait(&mut self) -> Option<Result<Receipt, SendError>> {
        unimplemented!()
    }

    /// Asks the broker to take the message back if it still waits. The outcome then is a receipt
    /// or [`Cancelled`](SendError::Cancelled).
    pub fn cancel(&self) {
        unimplemented!()
    }
}

impl Future for PendingSend {
    type Output = Result<Receipt, SendError>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
}

/// A send as a future; see [`Group::send_async`](crate::Group::send_async). Dropping it before it is done cancels the send
/// if it still waits.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct SendFuture {}

impl Future for SendFuture {
    type Output = Result<Receipt, SendError>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
}
