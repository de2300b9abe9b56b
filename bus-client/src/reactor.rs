//! The connection's descriptor on tokio's reactor (feature `tokio`).
//!
//! Invariant: readiness is cleared only after a dispatch that found no more input, and what comes
//! after that dispatch makes the descriptor ready anew. So no input is left lying while a task
//! waits for readiness.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};

use crate::connection::Connection;

/// The registration of a connection with the reactor of the runtime that used it last.
#[derive(Debug, Default)]
pub(crate) struct Reactor {
    registered: Mutex<Option<(Id, Arc<AsyncFd<OwnedFd>>)>>,
}

impl Reactor {
    /// The descriptor, registered with the current runtime's reactor; `None` outside of any, or
    /// where registering fails. Then somebody else must drive the connection.
    fn descriptor(&self, connection: &Connection) -> Option<Arc<AsyncFd<OwnedFd>>> {
        let runtime = Handle::try_current().ok()?.id();
        let mut registered = self.registered.lock();
        if let Some((id, descriptor)) = &*registered
            && *id == runtime
        {
            return Some(Arc::clone(descriptor));
        }
        // A descriptor of its own, because a reactor takes each only once.
        let own = connection.pollable().try_clone_to_owned().ok()?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe because of types that may close their descriptor; an \
                      OwnedFd does not"
        )]
        let descriptor = AsyncFd::with_interest(own, Interest::READABLE).ok()?;
        let descriptor = Arc::new(descriptor);
        connection.lock().set_driven();
        *registered = Some((runtime, Arc::clone(&descriptor)));
        Some(descriptor)
    }
}

/// One future's wait for the descriptor.
#[derive(Default)]
pub(crate) struct Readiness {
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl Readiness {
    /// Ready when the connection was dispatched, once.
    pub(crate) fn poll_dispatch(
        &mut self,
        connection: &Arc<Connection>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if self.waiting.is_none() {
            let Some(descriptor) = connection.reactor.descriptor(connection) else {
                return Poll::Pending;
            };
            let connection = Arc::clone(connection);
            self.waiting = Some(Box::pin(dispatch(connection, descriptor)));
        }
        let Some(waiting) = &mut self.waiting else {
            unreachable!("made above");
        };
        match waiting.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(dispatched) => {
                self.waiting = None;
                match dispatched {
                    Ok(()) => Poll::Ready(()),
                    // The runtime is ending; its tasks are, too.
                    Err(_) => Poll::Pending,
                }
            }
        }
    }
}

async fn dispatch(
    connection: Arc<Connection>,
    descriptor: Arc<AsyncFd<OwnedFd>>,
) -> io::Result<()> {
    let mut ready = descriptor.readable().await?;
    let mut state = connection.lock();
    state.dispatch();
    if state.is_drained() {
        ready.clear_ready();
    }
    Ok(())
}
