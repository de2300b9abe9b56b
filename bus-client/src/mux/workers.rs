//! Threads that share connections to the bus, as handles share streams.
//!
//! Each connection is an endpoint of its own, and no order is promised between workers: what one
//! look at one connection brings goes to one worker, in its order, and the next look's to the next
//! worker. A connection is read only while a worker asks, so what nobody works on stays in its
//! queue, where the bus's flow control sees it.
//!
//! Invariant: what is taken off a connection is delivered before anybody else takes from it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::hub::{Hub, Patience, Seat, Shelf, Watch, Work};
use super::readiness::{Bell, Readiness};
use super::{HandleError, MAX_HANDLES, Steering};
use crate::{Bus, Event, JoinError, JoinOptions, Member, ReceiveError};

/// Connections to one bus, shared by worker threads. Cheap to clone.
///
/// For an application whose threads are all alike: requests, jobs or events are taken by whoever is
/// free, and each thread has a descriptor of its own to poll. With one connection it spares
/// connections; with several, their frames are decoded in parallel.
///
/// ```
/// use bus_client::{EmbeddedBroker, Event, Workers};
///
/// let broker = EmbeddedBroker::start()?;
/// let workers = Workers::new([broker.connect()?, broker.connect()?])?;
/// workers.join("org.example.Jobs")?;
/// let (one, two) = (workers.worker()?, workers.worker()?);
///
/// let jobs = broker.connect()?.group("org.example.Jobs")?;
/// jobs.send("a job")?;
/// assert!(matches!(one.receive()?, Event::Message(job) if job.text() == Some("a job")));
/// jobs.send("another")?;
/// assert!(matches!(two.receive()?, Event::Message(job) if job.text() == Some("another")));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Workers {
    shared: Arc<Shared>,
}

/// One of the workers: for one thread, though any may use it.
///
/// As a descriptor it is to be polled for reading. Dropping it gives what it had not taken to the
/// others.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    seat: Seat,
    shelf: Arc<Shelf<Event>>,
    /// Which connection it sends on.
    sends_on: usize,
}

#[derive(Debug)]
struct Shared {
    hub: Hub<Event>,
    readiness: Readiness,
    connections: Vec<Connection>,
    /// Why the last connection ended, and how many are left.
    end: Mutex<(Option<ReceiveError>, usize)>,
}

#[derive(Debug)]
struct Connection {
    bus: Bus,
    /// Taken by whoever takes events; true once there will be none any more.
    reading: Mutex<bool>,
    joined: AtomicUsize,
    workers: AtomicUsize,
}

impl Workers {
    /// Shares these connections. From here on events are to be received through workers only.
    ///
    /// # Errors
    ///
    /// The system has no descriptors left.
    pub fn new(connections: impl IntoIterator<Item = Bus>) -> io::Result<Self> {
        let connection = |bus| Connection {
            bus,
            reading: Mutex::new(false),
            joined: AtomicUsize::new(0),
            workers: AtomicUsize::new(0),
        };
        let connections: Vec<_> = connections.into_iter().map(connection).collect();
        let readiness = Readiness::new()?;
        for (key, connection) in connections.iter().enumerate() {
            readiness.add_stream(&connection.bus, key)?;
        }
        let end = Mutex::new((None, connections.len()));
        let hub = Hub::new(Bell::new()?, Steering::Rotate);
        Ok(Self { shared: Arc::new(Shared { hub, readiness, connections, end }) })
    }

    /// Makes a worker. It sends on the connection on which the fewest do.
    ///
    /// # Errors
    ///
    /// There are [`MAX_HANDLES`], or the system has no descriptors left.
    pub fn worker(&self) -> Result<Worker, HandleError> {
        let shared = &self.shared;
        let pollable = shared.readiness.pollable()?;
        let (seat, shelf) = shared.hub.open(pollable, MAX_HANDLES).ok_or(HandleError::TooMany)?;
        let sends_on = shared.least(|connection| &connection.workers);
        Ok(Worker { shared: Arc::clone(shared), seat, shelf, sends_on })
    }

    /// Joins a group, on the connection that has joined the fewest: one of them, because each is an
    /// endpoint of its own and would get every message. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// See [`JoinError`].
    ///
    /// # Panics
    ///
    /// There is no connection.
    pub fn join(&self, group: &str) -> Result<Member, JoinError> {
        self.join_with(group, JoinOptions::new())
    }

    /// The same with options.
    ///
    /// # Errors
    ///
    /// See [`JoinError`].
    ///
    /// # Panics
    ///
    /// There is no connection.
    pub fn join_with(&self, group: &str, options: JoinOptions) -> Result<Member, JoinError> {
        let at = self.shared.least(|connection| &connection.joined);
        self.shared.connections[at].bus.join_with(group, options)
    }

    /// The connections, as they were given.
    pub fn connections(&self) -> impl Iterator<Item = &Bus> {
        self.shared.connections.iter().map(|connection| &connection.bus)
    }
}

impl Worker {
    /// The connection that it sends on. Take a [`lane`](crate::Endpoint::lane) there for sends that
    /// other workers' are not to hold back.
    ///
    /// # Panics
    ///
    /// There is no connection.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.shared.connections[self.sends_on].bus
    }

    /// Waits for the next event.
    ///
    /// # Errors
    ///
    /// All connections have ended, and everything that had arrived was received.
    pub fn receive(&self) -> Result<Event, ReceiveError> {
        loop {
            if let Some(event) = self.take(Patience::Endless)? {
                return Ok(event);
            }
        }
    }

    /// The next event if there is one for this worker. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive).
    pub fn try_receive(&self) -> Result<Option<Event>, ReceiveError> {
        self.take(Patience::None)
    }

    /// Waits at most `timeout` for the next event; `None` if none came.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive).
    pub fn receive_deadline(&self, timeout: Duration) -> Result<Option<Event>, ReceiveError> {
        self.take(Patience::within(timeout))
    }

    /// Receives no more from now on: what it has not taken goes to the other workers, in its order.
    pub fn disable_receive(&self) {
        self.shared.hub.disable(self.seat);
        self.shared.readiness.show_input(self.shelf.pollable_quietly(), false);
    }

    /// Receives again: it is the last in turn.
    pub fn enable_receive(&self) {
        self.shared.readiness.show_input(self.shelf.pollable_quietly(), true);
        self.shared.hub.enable(self.seat);
    }

    fn take(&self, patience: Patience) -> Result<Option<Event>, ReceiveError> {
        let Shared { hub, end, .. } = &*self.shared;
        let taken =
            hub.take_until(&*self.shared, self.seat, &self.shelf, patience, || self.shelf.pop());
        match taken {
            Ok(event) => Ok(Some(event)),
            Err(super::ReceiveError::Closed) => match end.lock().0.clone() {
                Some(error) => Err(error),
                // There never was one.
                None => Ok(None),
            },
            Err(_) => Ok(None),
        }
    }
}

impl AsFd for Worker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shelf.pollable().as_fd()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(connection) = self.shared.connections.get(self.sends_on) {
            connection.workers.fetch_sub(1, Ordering::Relaxed);
        }
        self.shared.hub.close_seat(self.seat);
    }
}

impl Shared {
    /// Counts one more at the connection that has the fewest.
    fn least(&self, counter: impl Fn(&Connection) -> &AtomicUsize) -> usize {
        let counters = self.connections.iter().map(counter).enumerate();
        let least = counters.min_by_key(|(_, counter)| counter.load(Ordering::Relaxed));
        let Some((at, counter)) = least else { return 0 };
        counter.fetch_add(1, Ordering::Relaxed);
        at
    }

    /// One look at one connection: what it brings goes to one worker.
    fn read(&self, connection: &Connection) {
        let Some(mut over) = connection.reading.try_lock() else { return };
        if *over {
            return;
        }
        let mut batch = Vec::new();
        let ended = loop {
            match connection.bus.try_receive() {
                Ok(Some(event)) => batch.push(event),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
            if batch.len() == BATCH {
                break None;
            }
        };
        self.hub.deliver(&mut batch, None);
        if let Some(error) = ended {
            *over = true;
            self.readiness.remove_input(&connection.bus);
            let mut end = self.end.lock();
            end.0 = Some(error);
            end.1 -= 1;
            if end.1 == 0 {
                self.hub.close();
            }
        }
    }
}

impl Work for Shared {
    fn dispatch(&self, _: Option<Seat>) {
        if !self.hub.may_read() {
            return;
        }
        for key in self.readiness.input().streams {
            if !self.hub.may_read() {
                return;
            }
            self.read(&self.connections[key]);
        }
    }

    fn sleep(&self, watch: Watch, left: Option<Duration>) {
        self.readiness.sleep(&self.hub.bell, watch, left);
    }
}

/// Events of one look at a connection.
const BATCH: usize = 64;
