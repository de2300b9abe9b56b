//! Services that are started when somebody sends to their name and nobody owns it.
//!
//! Invariants:
//! - Of each service at most one start is under way, however many send meanwhile: the first finds it
//!   idle, under its lock, and the others find the start.
//! - Who waits is told once: the name has an owner, or why it will have none. Every start ends: with
//!   the claim of the name, with the end of what was started, with its time-out, or with the end of
//!   who starts things ([`Starter`]). So nobody waits for ever; a request not beyond its deadline,
//!   which the I/O threads look at before they sleep ([`Services::expire`]).
//! - How many wait is bounded for each service; what they wait with is charged to their lanes.
//!
//! The name of a service that somebody asked for is watched by an endpoint of the broker's own, so
//! that it keeps its id while nobody owns it: what is sent to it while it starts goes to who will own
//! it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
    time::Instant,
};

use bus_core::wire::inside::Whose;
use bus_core::{Bus, Credentials, Endpoint, GroupName, NameId};

use crate::log_limit::{LogEvent, LogLimit};

pub(crate) use file::{ServiceFile, What, default_directories, read_services};

mod file;

/// Who starts things on the broker's behalf. Neither call blocks.
pub(crate) trait Starter: Send + Sync + fmt::Debug {
    /// Starts a service. What becomes of it comes back as [`Services::ended`].
    fn start(&self, start: u64, service: &ServiceFile) -> io::Result<()>;

    /// What was started has come to own its name.
    fn arrived(&self, start: u64);
}

/// The services of one bus.
#[derive(Debug, Default)]
pub(crate) struct Services {
    starter: OnceLock<Arc<dyn Starter>>,
    known: Mutex<BTreeMap<GroupName, Arc<ServiceFile>>>,
    /// Those that somebody has asked for.
    asked: RwLock<HashMap<NameId, Arc<Service>>>,
    any_asked: AtomicBool,
    last_start: AtomicU64,
    /// How many starts are under way.
    starting: AtomicUsize,
    log_limit: Arc<LogLimit>,
}

/// A service that somebody has asked for.
#[derive(Debug)]
struct Service {
    name: GroupName,
    state: Mutex<State>,
    /// It watches the name.
    _keeper: Endpoint,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Starting {
        start: u64,
        waiting: Vec<Arc<Wait>>,
        /// Who was the first to ask for it.
        asker: Box<Whose>,
    },
}

/// A send that waits for a service.
#[derive(Debug)]
pub(crate) struct Wait {
    outcome: Mutex<Option<Result<(), NotStarted>>>,
    /// The deadline of a request.
    until: Option<Instant>,
    waker: Waker,
}

/// Why a send does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotStarted {
    /// The service has not started.
    Failed(Arc<str>),
    /// It has not started before the request's deadline.
    TimedOut,
}

/// What becomes of a send to a name.
#[derive(Debug)]
pub(crate) enum Asked {
    /// It is no service's, or has an owner.
    Go,
    /// The service is being started; the waker is called when that has ended.
    Wait(Arc<Wait>),
    /// It cannot be started.
    Failed(String),
}

impl Services {
    pub(crate) fn new(log_limit: Arc<LogLimit>) -> Self {
        Self { log_limit, ..Self::default() }
    }

    #[cfg(test)]
    fn with(known: BTreeMap<GroupName, Arc<ServiceFile>>) -> Self {
        Self { known: Mutex::new(known), ..Self::default() }
    }

    /// Names who starts things. Without, no service is ever started.
    pub(crate) fn set_starter(&self, starter: Arc<dyn Starter>) {
        let _ = self.starter.set(starter);
    }

    /// Puts other services in the place of those that are known. Starts under way go on.
    pub(crate) fn replace(&self, known: BTreeMap<GroupName, Arc<ServiceFile>>) {
        *lock(&self.known) = known;
    }

    /// The id of a service's name, whether or not somebody owns it now. None if there is no such
    /// service.
    pub(crate) fn id_of(&self, bus: &Bus, name: &GroupName) -> Option<NameId> {
        self.starter.get()?;
        if !lock(&self.known).contains_key(name) {
            return None;
        }
        let mut asked = self.asked.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, _)) = asked.iter().find(|(_, service)| service.name == *name) {
            return Some(*id);
        }
        // If the bus has no place for it, its name is as unknown as without a service.
        let keeper = bus.open_endpoint(Credentials::UNAUTHENTICATED).ok()?;
        let id = keeper.watch_name(name).ok()?.name;
        let service = Service { name: name.clone(), state: Mutex::default(), _keeper: keeper };
        asked.insert(id, Arc::new(service));
        self.any_asked.store(true, Ordering::Release);
        Some(id)
    }

    /// Whether a service would be started for a name.
    pub(crate) fn knows(&self, name: NameId) -> bool {
        self.any_asked.load(Ordering::Acquire) && self.service(name).is_some()
    }

    /// Somebody sends to a name, and would wait for its service until then.
    pub(crate) fn ask(
        &self,
        bus: &Bus,
        name: NameId,
        asker: impl FnOnce() -> Whose,
        until: impl FnOnce() -> Option<Instant>,
        waker: &Waker,
    ) -> Asked {
        if !self.any_asked.load(Ordering::Acquire) || bus.is_owned(name) {
            return Asked::Go;
        }
        let Some(service) = self.service(name) else { return Asked::Go };
        let Some(starter) = self.starter.get() else { return Asked::Go };
        let Some(file) = lock(&self.known).get(&service.name).cloned() else { return Asked::Go };
        let mut state = lock(&service.state);
        // It was claimed, and that was told, before the lock.
        if bus.is_owned(name) {
            return Asked::Go;
        }
        let wait =
            || Arc::new(Wait { outcome: Mutex::default(), until: until(), waker: waker.clone() });
        match &mut *state {
            State::Starting { waiting, .. } => {
                waiting.retain(|wait| Arc::strong_count(wait) > 1);
                if waiting.len() >= usize::from(file.queue) {
                    return Asked::Failed(format!(
                        "service {} is being started, and {} sends wait for it already",
                        service.name, file.queue
                    ));
                }
                let wait = wait();
                waiting.push(Arc::clone(&wait));
                Asked::Wait(wait)
            }
            State::Idle => {
                let start = self.last_start.fetch_add(1, Ordering::Relaxed) + 1;
                let asker = Box::new(asker());
                let (peer, Whose { program, .. }) = (process_of(&asker), &*asker);
                let Credentials { uid, pid } = peer;
                if let Err(error) = starter.start(start, &file) {
                    self.log_limit.log(LogEvent::NotStarted, peer, |suppressed| {
                        tracing::warn!(
                            service = %service.name, %error, program, uid, pid, suppressed,
                            "cannot be started"
                        );
                    });
                    return Asked::Failed(format!(
                        "service {} cannot be started: {error}",
                        service.name
                    ));
                }
                self.log_limit.log(LogEvent::Starting, peer, |suppressed| {
                    tracing::info!(
                        service = %service.name, start, program, uid, pid, suppressed, "starting"
                    );
                });
                let wait = wait();
                *state = State::Starting { start, waiting: vec![Arc::clone(&wait)], asker };
                self.starting.fetch_add(1, Ordering::Relaxed);
                Asked::Wait(wait)
            }
        }
    }

    /// A name has an owner from now on.
    pub(crate) fn owned(&self, name: NameId) {
        if !self.any_asked.load(Ordering::Acquire) {
            return;
        }
        let Some(service) = self.service(name) else { return };
        let state = std::mem::take(&mut *lock(&service.state));
        if let State::Starting { start, waiting, .. } = state {
            self.starting.fetch_sub(1, Ordering::Relaxed);
            if let Some(starter) = self.starter.get() {
                starter.arrived(start);
            }
            tell(&waiting, &Ok(()));
        }
    }

    /// A start has ended without the claim of its name.
    pub(crate) fn ended(&self, start: u64, why: &str) {
        let asked = self.asked.read().unwrap_or_else(PoisonError::into_inner);
        let services: Vec<_> = asked.values().cloned().collect();
        drop(asked);
        for service in services {
            let mut state = lock(&service.state);
            let is_it = matches!(&*state, State::Starting { start: its, .. } if *its == start);
            if is_it && let State::Starting { waiting, asker, .. } = std::mem::take(&mut *state) {
                drop(state);
                self.starting.fetch_sub(1, Ordering::Relaxed);
                let (peer, Whose { program, .. }) = (process_of(&asker), &*asker);
                let Credentials { uid, pid } = peer;
                self.log_limit.log(LogEvent::NotStarted, peer, |suppressed| {
                    tracing::warn!(
                        service = %service.name, start, why, program, uid, pid, suppressed,
                        "has not started"
                    );
                });
                let text = format!("service {} has not started: {why}", service.name);
                tell(&waiting, &Err(NotStarted::Failed(text.into())));
                return;
            }
        }
    }

    /// Ends the waits whose time has come, and says when the next one has. Whoever has asked in a
    /// turn calls it before it sleeps.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        if self.starting.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let asked = self.asked.read().unwrap_or_else(PoisonError::into_inner);
        let services: Vec<_> = asked.values().cloned().collect();
        drop(asked);
        let mut next: Option<Instant> = None;
        for service in services {
            let mut late = Vec::new();
            if let State::Starting { waiting, .. } = &mut *lock(&service.state) {
                late.extend(waiting.extract_if(.., |wait| wait.until.is_some_and(|at| at <= now)));
                let soonest = waiting.iter().filter_map(|wait| wait.until).min();
                next = next.into_iter().chain(soonest).min();
            }
            tell(&late, &Err(NotStarted::TimedOut));
        }
        next
    }

    /// Who starts things is gone.
    pub(crate) fn starter_ended(&self) {
        let asked = self.asked.read().unwrap_or_else(PoisonError::into_inner);
        let starts: Vec<u64> = asked
            .values()
            .filter_map(|service| match &*lock(&service.state) {
                State::Starting { start, .. } => Some(*start),
                State::Idle => None,
            })
            .collect();
        drop(asked);
        for start in starts {
            self.ended(start, "the broker's helper has ended");
        }
    }

    fn service(&self, name: NameId) -> Option<Arc<Service>> {
        let asked = self.asked.read().unwrap_or_else(PoisonError::into_inner);
        asked.get(&name).cloned()
    }
}

impl Wait {
    /// How the start ended, if it has.
    pub(crate) fn outcome(&self) -> Option<Result<(), NotStarted>> {
        lock(&self.outcome).clone()
    }
}

fn process_of(asker: &Whose) -> Credentials {
    Credentials { uid: asker.uid, pid: asker.pid }
}

fn tell(waiting: &[Arc<Wait>], outcome: &Result<(), NotStarted>) {
    for wait in waiting {
        *lock(&wait.outcome) = Some(outcome.clone());
        wait.waker.wake_by_ref();
    }
}

/// What these locks guard is whole at any time, whoever panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
