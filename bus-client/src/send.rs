//! Sends under way.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bus_core::Receipt;
use bus_core::wire::Serial;

use crate::bus::{Endpoint, LaneInner};
use crate::drive::Drive;
use crate::error::SendError;
use crate::state::{CancelReason, Interest, NewSend, Sender};
use crate::waits::Wake;

/// A send that has left and is not yet answered. Dropping it does not take the message back.
///
/// As a future it needs somebody who dispatches; see
/// [`Endpoint::receive_async`](crate::Endpoint::receive_async).
#[derive(Debug)]
#[must_use = "the outcome is known only to whoever waits for it"]
pub struct PendingSend {
    endpoint: Endpoint,
    /// Keeps the lane's number taken while something of it is under way.
    _lane: Option<Arc<LaneInner>>,
    /// `None` once the outcome was given.
    serial: Option<Serial>,
    drive: Drive,
}

impl PendingSend {
    pub(crate) fn new(endpoint: Endpoint, lane: Option<Arc<LaneInner>>, serial: Serial) -> Self {
        Self { endpoint, _lane: lane, serial: Some(serial), drive: Drive::default() }
    }

    /// Waits for the outcome, as [`Group::send`](crate::Group::send) does.
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    ///
    /// # Panics
    ///
    /// If [`try_wait`](Self::try_wait) has given the outcome already.
    pub fn wait(self) -> Result<Receipt, SendError> {
        self.finish(None)
    }

    /// As [`wait`](Self::wait), but cancels once `timeout` has passed; the broker's word decides.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](SendError::TimedOut): it reached nobody.
    ///
    /// # Panics
    ///
    /// If [`try_wait`](Self::try_wait) has given the outcome already.
    pub fn wait_deadline(self, timeout: Duration) -> Result<Receipt, SendError> {
        self.finish(Instant::now().checked_add(timeout))
    }

    /// The outcome, if it has arrived. Does the I/O that is possible without blocking. Gives the
    /// outcome once; `None` for ever after.
    pub fn try_wait(&mut self) -> Option<Result<Receipt, SendError>> {
        let serial = self.serial?;
        let mut state = self.endpoint.inner.connection.lock();
        let answer = state.take_answer(serial).or_else(|| {
            state.hurry(serial);
            state.turn();
            state.take_answer(serial)
        })?;
        state.unblock(serial);
        self.serial = None;
        Some(answer)
    }

    /// Asks the broker to take the message back if it still waits. The outcome then is a receipt
    /// or [`Cancelled`](SendError::Cancelled).
    pub fn cancel(&self) {
        if let Some(serial) = self.serial {
            let mut state = self.endpoint.inner.connection.lock();
            state.cancel(serial, CancelReason::Asked);
        }
    }

    /// Waits until the message has left; an error that is known by then is given at once.
    pub(crate) fn departed(mut self) -> Result<Self, SendError> {
        let serial = self.serial.expect("it was just made");
        let connection = &self.endpoint.inner.connection;
        if let Err(error) = connection.wait_departure(serial) {
            self.serial = None;
            return Err(error);
        }
        Ok(self)
    }

    /// Waits for the outcome; once the deadline has passed, the broker is asked to cancel.
    pub(crate) fn finish(mut self, deadline: Option<Instant>) -> Result<Receipt, SendError> {
        let serial = self.serial.expect("a send whose outcome was given has none to wait for");
        let connection = &self.endpoint.inner.connection;
        let wait = |deadline| {
            connection.wait(Interest::Answer(serial), Some(serial), deadline, |state| {
                state.take_answer(serial)
            })
        };
        let answer = wait(deadline).unwrap_or_else(|| {
            connection.lock().cancel(serial, CancelReason::TimedOut);
            wait(None).expect("without a deadline, waiting ends with an answer")
        });
        self.serial = None;
        answer
    }
}

impl Drop for PendingSend {
    fn drop(&mut self) {
        if let Some(serial) = self.serial {
            self.endpoint.inner.connection.lock().abandon(serial);
        }
    }
}

impl Future for PendingSend {
    type Output = Result<Receipt, SendError>;

    /// # Panics
    ///
    /// If it is polled again after it was ready.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let serial = this.serial.expect("a send was polled after it was ready");
        let answer = poll_answer(&this.endpoint, &mut this.drive, serial, cx);
        if answer.is_ready() {
            this.serial = None;
        }
        answer
    }
}

fn poll_answer(
    endpoint: &Endpoint,
    drive: &mut Drive,
    serial: Serial,
    cx: &mut Context<'_>,
) -> Poll<Result<Receipt, SendError>> {
    let connection = &endpoint.inner.connection;
    drive.poll(connection, cx, |cx| {
        let mut state = connection.lock();
        if let Some(answer) = state.take_answer(serial) {
            state.unblock(serial);
            return Poll::Ready(answer);
        }
        state.set_wake(Interest::Answer(serial), Wake::Task(cx.waker().clone()));
        state.block(serial, Sender::Task(cx.waker().clone()));
        state.before_sleep();
        match state.take_answer(serial) {
            None => Poll::Pending,
            Some(answer) => {
                state.unblock(serial);
                Poll::Ready(answer)
            }
        }
    })
}

/// A send as a future; see [`Group::send_async`](crate::Group::send_async). Dropping it before it
/// is done cancels the send if it still waits.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct SendFuture {
    stage: SendStage,
    drive: Drive,
}

#[derive(Debug)]
enum SendStage {
    Ready(Endpoint, Box<NewSend>),
    Failed(SendError),
    Sent(Endpoint, Serial),
    Done,
}

impl SendFuture {
    pub(crate) fn new(endpoint: Endpoint, new: Result<Box<NewSend>, SendError>) -> Self {
        match new {
            Ok(new) => {
                let stage = SendStage::Ready(endpoint, new);
                Self { stage, drive: Drive::default() }
            }
            Err(error) => Self::failed(error),
        }
    }

    /// One that has failed before it began.
    pub(crate) fn failed(error: SendError) -> Self {
        Self { stage: SendStage::Failed(error), drive: Drive::default() }
    }
}

impl Future for SendFuture {
    type Output = Result<Receipt, SendError>;

    /// # Panics
    ///
    /// If it is polled again after it was ready.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { stage, drive } = self.get_mut();
        let (endpoint, serial) = match std::mem::replace(stage, SendStage::Done) {
            SendStage::Sent(endpoint, serial) => (endpoint, serial),
            SendStage::Done => panic!("a send was polled after it was ready"),
            SendStage::Failed(error) => return Poll::Ready(Err(error)),
            SendStage::Ready(endpoint, new) => {
                let sent = endpoint.inner.connection.lock().send(new);
                match sent {
                    Ok(serial) => (endpoint, serial),
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
        };
        let answer = poll_answer(&endpoint, drive, serial, cx);
        if answer.is_pending() {
            *stage = SendStage::Sent(endpoint, serial);
        }
        answer
    }
}

impl Drop for SendFuture {
    fn drop(&mut self) {
        if let SendStage::Sent(endpoint, serial) = &self.stage {
            let mut state = endpoint.inner.connection.lock();
            state.cancel(*serial, CancelReason::Asked);
            state.abandon(*serial);
        }
    }
}
