//! Writability of a destination, told by the broker.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bus_core::wire::Serial;

use crate::drive::Drive;
use crate::error::WatchError;
use crate::group::Route;
use crate::message::Outgoing;
use crate::state::{CallError, Interest};
use crate::waits::Wake;

/// Becomes ready when a send to the watched destination would not block. It stays ready; ask for
/// another watch for the next time. Dropping it ends the watch.
///
/// As a future it needs somebody who dispatches; see
/// [`Endpoint::receive_async`](crate::Endpoint::receive_async).
#[derive(Debug)]
#[must_use = "the answer is known only to whoever waits for it"]
pub struct Writable {
    route: Route,
    watch: Watch,
    drive: Drive,
}

#[derive(Debug)]
enum Watch {
    Asked(Serial),
    Answered(Result<(), WatchError>),
}

impl Writable {
    pub(crate) fn new(route: Route, mut about: Outgoing) -> Self {
        let inner = &route.endpoint.inner;
        let watch = match about.attributes(inner.connection.plain_attributes()) {
            Ok(attributes) => {
                let target = route.target.clone();
                match inner.connection.lock().watch(inner.key, target, attributes) {
                    Ok(serial) => Watch::Asked(serial),
                    Err(error) => Watch::Answered(Err(WatchError::from_call(error, &route.target))),
                }
            }
            Err(error) => Watch::Answered(Err(error.into())),
        };
        Self { route, watch, drive: Drive::default() }
    }

    /// Waits until a send would not block.
    ///
    /// # Errors
    ///
    /// The destination is gone, or the broker is.
    pub fn wait(mut self) -> Result<(), WatchError> {
        self.wait_until(None).map(|_| ())
    }

    /// Waits at most `timeout`; `false` if it passed first. The watch goes on.
    ///
    /// # Errors
    ///
    /// The destination is gone, or the broker is.
    pub fn wait_deadline(&mut self, timeout: Duration) -> Result<bool, WatchError> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    /// Whether the answer has arrived; does the I/O that is possible without blocking.
    ///
    /// # Errors
    ///
    /// The destination is gone, or the broker is.
    pub fn is_writable(&mut self) -> Result<bool, WatchError> {
        if let Watch::Asked(serial) = self.watch {
            let mut state = self.route.endpoint.inner.connection.lock();
            state.turn();
            let answer = state.take_writable(serial);
            drop(state);
            match answer {
                Some(answer) => self.answered(answer),
                None => return Ok(false),
            }
        }
        self.answer().map(|()| true)
    }

    fn wait_until(&mut self, deadline: Option<Instant>) -> Result<bool, WatchError> {
        if let Watch::Asked(serial) = self.watch {
            let connection = &self.route.endpoint.inner.connection;
            let answer = connection.wait(Interest::Answer(serial), None, deadline, |state| {
                state.take_writable(serial)
            });
            match answer {
                Some(answer) => self.answered(answer),
                None => return Ok(false),
            }
        }
        self.answer().map(|()| true)
    }

    fn answered(&mut self, answer: Result<(), CallError>) {
        let target = &self.route.target;
        self.watch = Watch::Answered(answer.map_err(|error| WatchError::from_call(error, target)));
    }

    fn answer(&self) -> Result<(), WatchError> {
        match &self.watch {
            Watch::Answered(answer) => answer.clone(),
            Watch::Asked(_) => unreachable!("the caller has seen to the answer"),
        }
    }
}

impl Future for Writable {
    type Output = Result<(), WatchError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Watch::Asked(serial) = this.watch {
            let connection = &this.route.endpoint.inner.connection;
            let polled = this.drive.poll(connection, cx, |cx| {
                let mut state = connection.lock();
                state.before_sleep();
                if let Some(answer) = state.take_writable(serial) {
                    return Poll::Ready(answer);
                }
                state.set_wake(Interest::Answer(serial), Wake::Task(cx.waker().clone()));
                Poll::Pending
            });
            let Poll::Ready(answer) = polled else {
                return Poll::Pending;
            };
            this.answered(answer);
        }
        Poll::Ready(this.answer())
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        if let Watch::Asked(serial) = self.watch {
            self.route.endpoint.inner.connection.lock().unwatch(serial);
        }
    }
}
