//! The lock around [`State`], and the threads that sleep with it released.
//!
//! A thread that waits here does the connection's work meanwhile if nobody else does; [`waits`]
//! says how the threads agree on who. Wakers are called when the lock is released, never under it.
//!
//! After `fork`, a child must not touch the socket: both would read parts of one stream. Each I/O
//! compares the process id and ends the child's copy of the connection, leaving the parent's alone.
//!
//! [`waits`]: crate::waits

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice};
use std::ops::{Deref, DerefMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bus_core::Limits;
use bus_core::wire::{
    BrokerFrame, ClientFrame, FEATURE_LEND, Hello, MAGIC, RINGS_FEATURE, Request, Response, Serial,
    VERSION, Welcome,
};
use bytes::{Buf, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use crate::apart::{Calibration, OwnPool, Pool};
use crate::builder::Reading;
use crate::error::{GoneReason, SendError};
use crate::inbox::Amount;
use crate::inflow::{Filled, Frame, Inflow};
use crate::long_read::NAP;
use crate::message::PlainAttributes;
use crate::state::{CallError, Comeback, Interest, Purpose, Sender, State, Urgency};
use crate::transport::{Beacon, Output, Transport, say_at_once};
use crate::waits::Wake;

/// One connection to a broker. It ends when the last reference to it is gone.
pub(crate) struct Connection {
    state: Mutex<State>,
    beacon: Arc<Beacon>,
    limits: Limits,
    plain: PlainAttributes,
    /// From which size on lending pays, if this connection lends.
    calibration: Option<Calibration>,
    own_pool: OwnPool,
    #[cfg(feature = "tokio")]
    pub(crate) reactor: crate::reactor::Reactor,
    /// What must outlive the connection, such as an embedded broker.
    _keep: Option<Box<dyn Any + Send + Sync>>,
}

/// Why there was no greeting.
#[derive(Debug)]
pub(crate) enum GreetingError {
    /// The broker said goodbye instead.
    Refused { code: String, text: String },
    /// The time passed.
    TimedOut,
    /// The stream ended, or was none of this protocol.
    Gone(GoneReason),
    /// The system failed us.
    System(io::Error),
}

/// What became of a sleep without others.
enum Nap<T> {
    /// It has brought what was wished for.
    Wished(T),
    /// It has not, and something else or nothing.
    Over { came: bool },
    /// It would not do.
    NotAlone,
}

/// The lock, held. Letting it go calls the wakers that were gathered under it.
pub(crate) struct Locked<'a> {
    guard: Option<MutexGuard<'a, State>>,
}

impl Connection {
    /// Greets the broker at the other end of a connected socket.
    pub(crate) fn open(
        socket: OwnedFd,
        hello: Hello,
        timeout: Duration,
        backlog: Amount,
        comeback: Option<Comeback>,
        lends: Option<Reading>,
        keep: Option<Box<dyn Any + Send + Sync>>,
    ) -> Result<Self, GreetingError> {
        let mut greeting = BytesMut::from(&MAGIC[..]);
        ClientFrame::Hello(hello)
            .encode(&mut greeting)
            .map_err(|error| GreetingError::System(io::Error::other(error)))?;
        // The broker answers while what it takes to wait for it is made.
        greeting.advance(say_at_once(&socket, &greeting));
        let beacon = Beacon::new(comeback.is_some()).map(Arc::new);
        let beacon = beacon.map_err(GreetingError::System)?;
        let transport = Transport::new(socket, Arc::clone(&beacon));
        let transport = transport.map_err(GreetingError::System)?;
        let mut inflow = Inflow::new();
        let welcome = greet(&transport, &mut inflow, greeting, timeout)?;
        let transport = Arc::new(transport);
        let lends = lends.filter(|_| welcome.features.iter().any(|of| of == FEATURE_LEND));
        let mut state = State::new(
            Arc::clone(&transport),
            inflow,
            welcome.limits.clone(),
            (welcome.incarnation, welcome.endpoint),
            backlog,
            comeback,
            lends,
        );
        if welcome.features.iter().any(|feature| feature == RINGS_FEATURE) {
            state.wish_rings();
        }
        Ok(Self {
            calibration: lends.map(|_| Calibration::measure()),
            own_pool: OwnPool::default(),
            state: Mutex::new(state),
            beacon,
            limits: welcome.limits,
            plain: PlainAttributes::new(),
            #[cfg(feature = "tokio")]
            reactor: crate::reactor::Reactor::default(),
            _keep: keep,
        })
    }

    /// The bounds that the first broker has told. A later one checks for itself.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn calibration(&self) -> Option<&Calibration> {
        self.calibration.as_ref()
    }

    /// A pool of the connection's own with buffers of at least this length, if it lends.
    pub(crate) fn own_pool(self: &Arc<Self>, bytes: usize) -> Option<Pool> {
        self.calibration.as_ref()?;
        self.own_pool.get(self, bytes)
    }

    /// Tells the broker what is on the list, unless somebody has the lock: then who sleeps is woken and
    /// does it, or who calls next.
    pub(crate) fn do_chores(&self) {
        match self.state.try_lock() {
            Some(guard) => Locked { guard: Some(guard) }.flush(Urgency::Now),
            None => self.beacon.ring(),
        }
    }

    pub(crate) fn plain_attributes(&self) -> &PlainAttributes {
        &self.plain
    }

    pub(crate) fn pollable(&self) -> BorrowedFd<'_> {
        self.beacon.pollable()
    }

    pub(crate) fn lock(&self) -> Locked<'_> {
        Locked { guard: Some(self.state.lock()) }
    }

    /// Waits until `wish` gives something, doing the connection's work meanwhile; `None` once
    /// `deadline` has passed. `wish` must give something when the connection is gone.
    ///
    /// `blocked` is a send that the calling thread waits for and because of which it cannot read.
    pub(crate) fn wait<T>(
        &self,
        interest: Interest,
        blocked: Option<Serial>,
        deadline: Option<Instant>,
        mut wish: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.lock();
        if let Some(wished) = wish(&mut state) {
            return Some(wished);
        }
        let mut lively = true;
        if let (Interest::Inbox(key), None, None) = (interest, blocked, deadline) {
            match self.nap_alone(&mut state, key, &mut wish) {
                Nap::Wished(wished) => return Some(wished),
                Nap::Over { came } => lively = came,
                Nap::NotAlone => {}
            }
        }
        if let Some(serial) = blocked {
            state.block(serial, Sender::Thread(thread::current().id()));
        }
        if let Interest::Inbox(key) = interest {
            state.starts_reading(key);
        }
        let id = state.waits().enter();
        // Where messages keep coming, credit is returned by the quarter (see `inbox`). Only the
        // leader may put it off, because only it knows that it will come back.
        // Whether anything has happened since `wish` was asked.
        let mut asked = blocked.is_none();
        let wished = loop {
            let naps = lively && blocked.is_none() && !state.waits().is_led();
            asked &= state.is_settled(naps);
            let naps = if naps {
                state.before_nap()
            } else {
                state.before_sleep();
                false
            };
            asked &= state.lost().is_none();
            if !asked && let Some(wished) = wish(&mut state) {
                break Some(wished);
            }
            let mut timeout =
                match deadline.map(|deadline| deadline.checked_duration_since(Instant::now())) {
                    None => None,
                    Some(Some(left)) if !left.is_zero() => Some(left),
                    Some(_) => break None,
                };
            state.set_wake(interest, Wake::Thread(id));
            if state.waits().lead(id) {
                let may_nap = lively && timeout.is_none_or(|left| left >= NAP);
                if may_nap && let Some(mut read) = state.begin_long_read(naps) {
                    state.unlocked(|| read.sleep());
                    state.waits().woke(read.transport());
                    lively = state.end_long_read(read);
                    if let Some(wished) = wish(&mut state) {
                        break Some(wished);
                    }
                    asked = true;
                    continue;
                }
                if naps {
                    timeout = Some(timeout.map_or(NAP, |left| left.min(NAP)));
                }
                state.begin_poll();
                let output = state.output();
                let transport = Arc::clone(state.transport());
                let slept = state.unlocked(|| transport.wait(output, timeout));
                state.waits().woke(&transport);
                if let Err(error) = slept {
                    state.sleep_failed(&error);
                }
                lively = state.read();
                if let Some(wished) = wish(&mut state) {
                    break Some(wished);
                }
                asked = true;
            } else {
                asked = false;
                let condvar = state.waits().follow(id);
                state.sleep_on(&condvar, timeout);
                state.waits().unfollow(id);
            }
        };
        state.clear_wake(interest, &Wake::Thread(id));
        state.waits().exit(id);
        if let Interest::Inbox(key) = interest {
            state.stops_reading(key);
        }
        if let Some(serial) = blocked {
            state.unblock(serial);
        }
        state.stopped_waiting();
        wished
    }

    /// Waits until a send has left.
    ///
    /// # Errors
    ///
    /// Its answer, if that is an error. Its entry is gone then.
    pub(crate) fn wait_departure(&self, serial: Serial) -> Result<(), SendError> {
        self.wait(Interest::Departure(serial), Some(serial), None, |state| {
            state.departure_of(serial).map(|has_left| has_left.then_some(())).transpose()
        })
        .expect("without a deadline, waiting ends with the departure")
    }

    /// What [`wait`](Self::wait) does first for a thread that waits to receive: one sleep in a read. It looks
    /// again soon, so nothing is made by which others could wake it; that is most of the way of a message that
    /// comes alone.
    fn nap_alone<T>(
        &self,
        state: &mut Locked<'_>,
        key: usize,
        wish: &mut impl FnMut(&mut State) -> Option<T>,
    ) -> Nap<T> {
        if !state.is_settled(true) || state.waits().is_led() {
            return Nap::NotAlone;
        }
        let naps = state.before_nap();
        let Some(mut read) = state.begin_long_read(naps) else {
            return Nap::NotAlone;
        };
        let leads = state.waits().lead_alone();
        debug_assert!(leads, "nobody led above");
        state.starts_reading(key);
        state.unlocked(|| read.sleep());
        state.waits().woke(read.transport());
        let came = state.end_long_read(read);
        let wished = wish(state);
        state.stops_reading(key);
        match wished {
            Some(wished) => {
                state.stopped_waiting();
                Nap::Wished(wished)
            }
            None => Nap::Over { came },
        }
    }

    /// Asks the broker and waits for the answer, of which `pick` takes what it wants.
    pub(crate) fn call<T>(
        &self,
        endpoint: usize,
        purpose: Purpose,
        request: Request,
        pick: impl FnOnce(Response) -> Option<T>,
    ) -> Result<T, CallError> {
        let serial = self.lock().call(endpoint, purpose, request)?;
        self.finish_call(serial, pick)
    }

    /// Waits for the answer to a call.
    pub(crate) fn finish_call<T>(
        &self,
        serial: Serial,
        pick: impl FnOnce(Response) -> Option<T>,
    ) -> Result<T, CallError> {
        let response = self
            .wait(Interest::Answer(serial), None, None, |state| state.take_response(serial))
            .expect("without a deadline, waiting ends with an answer")?;
        self.pick(response, pick)
    }

    /// Takes what is wanted of an answer. A broker that answers something else is not to be
    /// trusted any more.
    pub(crate) fn pick<T>(
        &self,
        response: Response,
        pick: impl FnOnce(Response) -> Option<T>,
    ) -> Result<T, CallError> {
        pick(response).ok_or_else(|| {
            let mut state = self.lock();
            state.break_off("DONE with the answer to another question");
            CallError::Gone(state.lost().cloned().unwrap_or_else(|| {
                unreachable!("the connection was broken off a line above");
            }))
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.state.get_mut().close();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl<'a> Locked<'a> {
    fn guard(&mut self) -> &mut MutexGuard<'a, State> {
        self.guard.as_mut().expect("the lock is held until the drop")
    }

    /// Does something with the lock released.
    fn unlocked<T>(&mut self, action: impl FnOnce() -> T) -> T {
        let wakers = self.settle();
        MutexGuard::unlocked(self.guard(), || {
            wakers.into_iter().for_each(std::task::Waker::wake);
            action()
        })
    }

    /// Sleeps with the lock released until the condition variable is notified.
    fn sleep_on(&mut self, condvar: &parking_lot::Condvar, timeout: Option<Duration>) {
        let wakers = self.settle();
        if !wakers.is_empty() {
            // What is awaited may happen meanwhile, so the caller looks again before it sleeps.
            MutexGuard::unlocked(self.guard(), || {
                wakers.into_iter().for_each(std::task::Waker::wake);
            });
            return;
        }
        match timeout {
            Some(timeout) => {
                condvar.wait_for(self.guard(), timeout);
            }
            None => condvar.wait(self.guard()),
        }
    }
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.guard.as_ref().expect("the lock is held until the drop")
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.guard()
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let wakers = self.settle();
        self.guard = None;
        wakers.into_iter().for_each(std::task::Waker::wake);
    }
}

/// Writes what is left of the greeting and reads the broker's.
fn greet(
    transport: &Transport,
    inflow: &mut Inflow,
    mut out: BytesMut,
    timeout: Duration,
) -> Result<Welcome, GreetingError> {
    let deadline = Instant::now().checked_add(timeout);
    loop {
        while !out.is_empty() {
            match transport.write(&[IoSlice::new(&out)], &[]) {
                Ok(written) => out.advance(written),
                Err(Errno::AGAIN) => break,
                // Perhaps it has said why.
                Err(Errno::PIPE | Errno::CONNRESET) => out.clear(),
                Err(error) => return Err(GreetingError::System(error.into())),
            }
        }
        // There is no answer before the question is heard.
        let output = if out.is_empty() { Output::Idle } else { Output::Pending };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(GreetingError::TimedOut);
        }
        transport.wait(output, left).map_err(GreetingError::System)?;
        let filled = match inflow.fill(transport) {
            Ok(filled) => filled,
            Err(Errno::CONNRESET) => Filled::End,
            Err(error) => return Err(GreetingError::System(error.into())),
        };
        let arrival = inflow
            .next()
            .map_err(|offence| GreetingError::Gone(GoneReason::Protocol(offence.into())))?;
        match arrival.map(|arrival| arrival.frame) {
            Some(Frame::Other(BrokerFrame::Welcome(welcome))) => return check(*welcome),
            Some(Frame::Other(BrokerFrame::Goodbye(goodbye))) => {
                return Err(GreetingError::Refused {
                    code: goodbye.code.as_str().to_owned(),
                    text: goodbye.text,
                });
            }
            Some(_) => return Err(GreetingError::Gone(offence("a frame before WELCOME"))),
            None if filled == Filled::End => return Err(GreetingError::Gone(GoneReason::Closed)),
            None => {}
        }
    }
}

/// What a greeting must say for anything to work.
pub(crate) fn check(welcome: Welcome) -> Result<Welcome, GreetingError> {
    if welcome.version != VERSION {
        return Err(GreetingError::Gone(offence("WELCOME with a version that was not offered")));
    }
    // A later broker may allow more than this library would; without these nothing works.
    let limits = &welcome.limits;
    for (name, limit) in [
        ("queue_messages", limits.queue_messages.into()),
        ("queue_bytes", limits.queue_bytes),
        ("lane_messages", limits.lane_messages.into()),
        ("lane_bytes", limits.lane_bytes),
    ] {
        if limit == 0 {
            return Err(GreetingError::Gone(offence(&format!("WELCOME: {name} is 0"))));
        }
    }
    Ok(welcome)
}

fn offence(text: &str) -> GoneReason {
    GoneReason::Protocol(text.into())
}
