//! A broker: one bus, the sockets that lead to it, and the threads that serve them.
//!
//! The library touches nothing of its process but what it was given: no signals, no limits, no
//! umask, no standard streams. All that is the business of the program `bus-broker`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::SocketAddrUnix;

use bus_core::wire::Incarnation;
use bus_core::{
    Account, Bus, Charge, Credentials, Ledger, LimitError, LimitExceeded, Process, Resource,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::rand::GetRandomFlags;

use crate::apart::Payloads;
use crate::config::ConfigError;
use crate::config::{Config, Listen};
use crate::credentials::PeerCredentials;
use crate::door::{Door, DoorPlace, account_of};
use crate::event_loop::IoThread;
use crate::helper::{Helper, HelperLink};
use crate::inbox::Inbox;
use crate::ingress::{
    Ingress, IngressAddress, IngressConfig, IngressError, IngressListener, IngressPlace,
};
use crate::listener::{ListenError, Listener};
use crate::log_limit::LogLimit;
use crate::metrics::Metrics;
use crate::peer_process;
use crate::policy::{ReloadError, Reloaded, RulesInForce, Subject, Subjects};
use crate::roster::Roster;
use crate::service::{Services, Starter, read_services};
use crate::tally::Counters;

/// A broker that is ready to serve: clients can connect, and are answered once it runs.
///
/// ```
/// use bus_broker::{Broker, Config, Listen};
///
/// let mut config = Config::default();
/// config.listen = Listen::Nowhere;
/// let broker = Broker::bind(&config)?;
/// let handle = broker.handle();
/// let running = std::thread::spawn(|| broker.run());
///
/// let _client = handle.connect()?;
/// handle.shutdown();
/// running.join().expect("no panic")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    threads: Vec<IoThread>,
    ingress_addresses: Vec<IngressAddress>,
    metrics: Option<Metrics>,
}

/// Speaks to a broker from elsewhere in its process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BrokerHandle {
    shared: Arc<Shared>,
}

/// Why there is no broker. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The socket; see there.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The socket for metrics; see there.
    #[error("metrics: {0}")]
    Metrics(#[source] ListenError),
    /// A limit is out of its range.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The rules of the policy cannot be read; mend them.
    #[error(transparent)]
    Policy(#[from] ConfigError),
    /// An ingress cannot be opened; mend its settings.
    #[error("ingress {listen}: {source}")]
    Ingress {
        /// Which one.
        listen: IngressAddress,
        /// Why.
        source: Box<IngressError>,
    },
    /// The system refused what every broker needs.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// Why a broker stopped without being told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The system refused what the event loop cannot do without.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A thread panicked: a defect of the broker. The others were ended in good order.
    #[error("an i/o thread panicked")]
    Panicked,
}

/// Why a connection within the process was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The broker has ended or is about to.
    #[error("the broker has ended")]
    Ended,
    /// The broker, or this user, has as many connections as it may have.
    #[error(transparent)]
    LimitExceeded(#[from] LimitExceeded),
    /// The system gave no pair of sockets.
    #[error("cannot make a pair of sockets: {0}")]
    System(#[from] io::Error),
}

/// What all threads of a broker share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) bus: Bus,
    /// Who holds how much.
    pub(crate) ledger: Ledger,
    pub(crate) incarnation: Incarnation,
    pub(crate) started: Instant,
    /// How long a connection may take to say HELLO.
    pub(crate) greeting: Duration,
    pub(crate) address: Option<PathBuf>,
    pub(crate) policy: RulesInForce,
    pub(crate) subjects: Subjects,
    /// Connections that a user may make in a second.
    pub(crate) connection_rate: AtomicU64,
    pub(crate) config: Config,
    /// The addresses of all sockets that clients connect to.
    doors: Vec<SocketAddrUnix>,
    pub(crate) services: Services,
    pub(crate) helper: OnceLock<Arc<HelperLink>>,
    /// Who is connected.
    pub(crate) roster: Roster,
    pub(crate) log_limit: Arc<LogLimit>,
    ingresses: OnceLock<Vec<Arc<Ingress>>>,
    /// Payloads that lie beside the streams.
    pub(crate) payloads: Payloads,
    inboxes: Vec<Arc<Inbox>>,
    connections: AtomicUsize,
    owns_process: AtomicBool,
    /// In which second of its run it was last told to look for orphans.
    orphans_expected: AtomicU64,
    stopping: AtomicBool,
}

impl Shared {
    /// Whether a descriptor is a client's end of a connection to this broker. In a queue it would keep
    /// its client alive, and with it the queue, for as long as nobody takes it.
    pub(crate) fn is_own_connection(&self, descriptor: &OwnedFd) -> bool {
        let peer = rustix::net::getpeername(descriptor).ok().flatten();
        let peer = peer.and_then(|peer| SocketAddrUnix::try_from(peer).ok());
        peer.is_some_and(|peer| self.doors.contains(&peer))
    }
}

fn own_address(door: &Door) -> Option<SocketAddrUnix> {
    SocketAddrUnix::try_from(rustix::net::getsockname(door).ok()?).ok()
}

/// A connection that has been accepted and has no thread yet.
#[derive(Debug)]
pub(crate) struct Newcomer {
    pub(crate) socket: OwnedFd,
    pub(crate) origin: Origin,
    pub(crate) place: ConnectionPlace,
}

/// Where a connection has come in.
#[derive(Debug)]
pub(crate) enum Origin {
    /// At a socket of the bus.
    Client(Box<Peer>),
    /// At an ingress.
    Ingress(IngressPlace),
}

/// Who has come in at a socket of the bus.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) credentials: PeerCredentials,
    pub(crate) subject: Subject,
    /// Given back with the connection.
    pub(crate) door: Option<DoorPlace>,
}

/// One of the connections that the limit allows; given back when dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPlace {
    shared: Arc<Shared>,
    /// The thread that has the connection, once one has.
    thread: Option<Arc<Inbox>>,
    account: Account,
    _charge: Charge,
}

impl Broker {
    /// Makes a broker and binds its socket. Clients can connect from now on.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn bind(config: &Config) -> Result<Self, BindError> {
        let listener = match &config.listen {
            Listen::Default => Some(Listener::bind_default()?),
            Listen::Path(path) => Some(Listener::bind(path)?),
            Listen::Nowhere => None,
        };
        Self::new(config, listener.into_iter().map(Door::main).collect())
    }

    /// Makes a broker that serves listening sockets which somebody else has bound;
    /// [`Config::listen`] is not used.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn with_sockets(config: &Config, sockets: Vec<OwnedFd>) -> Result<Self, BindError> {
        let passed = |socket| Listener::passed(socket).map(Door::main);
        let doors = sockets.into_iter().map(passed).collect::<Result<_, _>>();
        Self::new(config, doors.map_err(system("use a socket that was passed"))?)
    }

    fn new(config: &Config, mut doors: Vec<Door>) -> Result<Self, BindError> {
        let address = doors.first().map(|door| door.listener.address().to_owned());
        for (at, socket) in config.socket.iter().enumerate() {
            doors.push(Door::of(socket, at, Listener::bind(&socket.path)?));
        }
        let mut random = [0; 32];
        fill_randomly(&mut random).map_err(system("get random bytes"))?;
        let (incarnation, rest) = random.split_at(16);
        let incarnation = incarnation.try_into().expect("split at 16");
        let (seed, series) = rest.split_at(8);
        let number = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("8 of 16"));
        let (seed, series) = (number(seed), number(series) % ID_SERIES * IDS_IN_A_SERIES);

        let inboxes = (0..config.thread_count())
            .map(|_| Inbox::new().map(Arc::new))
            .collect::<io::Result<Vec<_>>>()
            .map_err(system("make an eventfd"))?;
        let ledger = Ledger::new(&config.limits);
        for (uid, limits) in config.users.limits(&config.limits) {
            ledger.set_limits(uid, limits);
        }
        for (at, socket) in config.socket.iter().enumerate() {
            ledger.set_limits(account_of(at), socket.budget(&config.limits));
        }
        let log_limit = Arc::<LogLimit>::default();
        let shared = Arc::new(Shared {
            ledger,
            bus: Bus::recording_after(config.limits.clone(), seed, series, config.recorder.size())?,
            incarnation: Incarnation::from_bytes(incarnation),
            started: Instant::now(),
            greeting: config.greeting,
            address,
            policy: RulesInForce::new(config.whole_policy()?),
            subjects: Subjects::default(),
            connection_rate: AtomicU64::new(config.limits.user_connection_rate),
            config: config.clone(),
            doors: doors.iter().filter_map(own_address).collect(),
            services: Services::new(Arc::clone(&log_limit)),
            helper: OnceLock::new(),
            roster: Roster::default(),
            log_limit: Arc::clone(&log_limit),
            ingresses: OnceLock::new(),
            payloads: Payloads::new(&config.limits, config.apart_from_bytes, log_limit),
            inboxes: inboxes.clone(),
            connections: AtomicUsize::new(0),
            owns_process: AtomicBool::new(false),
            orphans_expected: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        });
        let ingresses = config.ingress.iter().map(|ingress| open_ingress(ingress, &shared.bus));
        let ingresses = ingresses.collect::<Result<Vec<_>, _>>()?;
        let opened = ingresses.iter().map(|listener| Arc::clone(&listener.ingress));
        shared.ingresses.get_or_init(|| opened.collect());
        let ingress_addresses = ingresses.iter().filter_map(IngressListener::address).collect();
        let metrics = Metrics::bind(&config.metrics).map_err(BindError::Metrics)?;
        // The first thread accepts for all.
        let mut sockets = Some((doors, ingresses));
        let threads = inboxes
            .into_iter()
            .map(|inbox| {
                let (doors, ingresses) = sockets.take().unwrap_or_default();
                IoThread::new(Arc::clone(&shared), inbox, doors, ingresses)
            })
            .collect::<io::Result<Vec<_>>>()
            .map_err(system("make an epoll instance"))?;
        Ok(Self { shared, threads, ingress_addresses, metrics })
    }

    /// Gives it a helper: from now on services are started, and clients' processes looked at, by
    /// that. Starts a thread that reads what it says.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn attach(&self, helper: Helper) -> io::Result<()> {
        let (link, child) = helper.into_link();
        self.shared.services.replace(read_services(&self.shared.config.service_directories()));
        link.introduce(&self.shared);
        self.shared.services.set_starter(Arc::clone(&link) as Arc<dyn Starter>);
        let _ = self.shared.helper.set(Arc::clone(&link));
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name("bus-helper".to_owned()).spawn(move || {
            link.attend(&shared);
            // It has ended; that is the one child there is.
            if let Some(mut child) = child {
                let _ = child.wait();
            }
        })?;
        Ok(())
    }

    /// Tells it that nothing else of weight is in this process: then it has the C library give memory
    /// back to the system after it has needed more for a while.
    pub fn own_process(&self) {
        self.shared.owns_process.store(true, Ordering::Relaxed);
    }

    /// Something to speak to it with, from other threads too.
    #[must_use]
    pub fn handle(&self) -> BrokerHandle {
        BrokerHandle { shared: Arc::clone(&self.shared) }
    }

    /// Where it listens, if it does.
    #[must_use]
    pub fn address(&self) -> Option<&Path> {
        self.shared.address.as_deref()
    }

    /// Where its ingresses listen, in the order of the configuration, with the ports that the
    /// system chose.
    #[must_use]
    pub fn ingress_addresses(&self) -> &[IngressAddress] {
        &self.ingress_addresses
    }

    /// Makes a connection within this process; see [`BrokerHandle::connect`].
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub fn connect(&self) -> Result<OwnedFd, ConnectError> {
        self.handle().connect()
    }

    /// Serves until [`BrokerHandle::shutdown`]. Blocks this thread, which is one of the I/O
    /// threads; the others are started here and have ended when this returns.
    ///
    /// # Errors
    ///
    /// See [`RunError`]. All connections have been closed in any case.
    pub fn run(self) -> Result<(), RunError> {
        let Self { shared, threads, ingress_addresses: _, metrics } = self;
        let metrics = metrics.map(|metrics| metrics.start(Arc::clone(&shared))).transpose();
        // It ends with this call.
        let _metrics = match metrics {
            Ok(metrics) => metrics,
            Err(source) => {
                shared.stop();
                return Err(RunError::System { action: "start a thread for metrics", source });
            }
        };
        let mut threads = threads.into_iter();
        let first = threads.next().expect("there is at least one thread");
        let others = threads.enumerate().map(|(at, thread)| {
            thread::Builder::new().name(format!("bus-io-{}", at + 1)).spawn(move || thread.run())
        });
        let others: io::Result<Vec<JoinHandle<_>>> = others.collect();
        if others.is_err() {
            shared.stop();
        }
        // This one as well when others are missing: it tells those who have connected.
        let mut result = first.run();
        shared.stop();
        match others {
            Ok(others) => {
                for other in others {
                    let ended = other.join().unwrap_or(Err(RunError::Panicked));
                    result = result.and(ended);
                }
            }
            Err(source) => {
                let action = "start a thread";
                result = result.and(Err(RunError::System { action, source }));
            }
        }
        result
    }
}

impl BrokerHandle {
    /// Ends the broker: it accepts nobody any more, tells its clients, and [`Broker::run`] returns
    /// once they have been told, or after a second. Does not block.
    pub fn shutdown(&self) {
        self.shared.stop();
    }

    /// Reads the rules of the policy again from where they came, and ends the connections that have
    /// what the new ones forbid; the limits of users as well, which hold for who connects from now
    /// on. Says what else has changed and is not in force. Reads files, else does not block.
    ///
    /// # Errors
    ///
    /// A file cannot be read or is wrong, and the rules are as they were.
    pub fn reload(&self) -> Result<Reloaded, ReloadError> {
        self.shared.reload()
    }

    /// Makes a connection to the broker within this process: a blocking Unix stream socket, closed
    /// on exec. Its credentials are this process's.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub fn connect(&self) -> Result<OwnedFd, ConnectError> {
        if self.shared.is_stopping() {
            return Err(ConnectError::Ended);
        }
        let (theirs, ours) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(io::Error::from)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(io::Error::from)?;
        let credentials = PeerCredentials::of(&ours).map_err(io::Error::from)?;
        let process = peer_process::of(&ours, credentials.pid, &self.shared.ledger);
        let place = self.shared.take_connection_place(credentials.uid, credentials.pid, process)?;
        let subject = credentials.subject(&ours, None);
        let peer = Box::new(Peer { credentials, subject, door: None });
        if self.shared.assign(ours, Origin::Client(peer), place) {
            Ok(theirs)
        } else {
            Err(ConnectError::Ended)
        }
    }

    /// Where the broker listens, if it does.
    #[must_use]
    pub fn address(&self) -> Option<&Path> {
        self.shared.address.as_deref()
    }
}

impl Shared {
    /// Whether the process is the broker's own.
    pub(crate) fn owns_process(&self) -> bool {
        self.owns_process.load(Ordering::Relaxed)
    }

    /// Connections now, those included that no thread has taken over yet.
    pub(crate) fn connection_count(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// What all threads have counted.
    pub(crate) fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.inboxes.iter().for_each(|inbox| sum.add(&inbox.counters));
        sum
    }

    /// The ingresses that are open.
    pub(crate) fn ingresses(&self) -> &[Arc<Ingress>] {
        self.ingresses.get().map_or(&[], Vec::as_slice)
    }

    /// Opens the account of a connection and counts the connection in, for its user and for all.
    ///
    /// # Errors
    ///
    /// The limit of either.
    pub(crate) fn take_connection_place(
        self: &Arc<Self>,
        uid: u32,
        pid: u32,
        process: Process,
    ) -> Result<ConnectionPlace, LimitExceeded> {
        let account = self.ledger.open(uid, pid, process);
        let charge = account.charge(Resource::Connections, 1)?;
        let limit = self.bus.limits().connections;
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        let add_one = |count| (count < most).then_some(count + 1);
        match self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add_one) {
            Ok(_) => Ok(ConnectionPlace {
                shared: Arc::clone(self),
                thread: None,
                account,
                _charge: charge,
            }),
            Err(_) => Err(LimitExceeded::new("connections", limit.into())),
        }
    }

    /// The same for a stream of an ingress, of which nobody knows whose it is: each is by itself.
    pub(crate) fn take_stream_place(self: &Arc<Self>) -> Result<ConnectionPlace, LimitExceeded> {
        let Credentials { uid, pid } = Credentials::UNAUTHENTICATED;
        let process = Process::Unknown(self.ledger.next_number());
        self.take_connection_place(uid, pid, process)
    }

    /// Gives a connection to the thread that has the fewest. False if the broker ends.
    pub(crate) fn assign(
        &self,
        socket: OwnedFd,
        origin: Origin,
        mut place: ConnectionPlace,
    ) -> bool {
        let thread = (self.inboxes.iter()).min_by_key(|inbox| inbox.load().load(Ordering::Relaxed));
        let thread = thread.expect("there is at least one thread");
        thread.load().fetch_add(1, Ordering::Relaxed);
        place.thread = Some(Arc::clone(thread));
        thread.post_newcomer(Newcomer { socket, origin, place })
    }

    /// The rules have changed: every thread looks whether its connections may have what they have.
    pub(crate) fn review_connections(&self) {
        for inbox in &self.inboxes {
            inbox.post_review();
        }
    }

    /// Descriptors are under way: has all threads look for orphans in a while. Those that are about to
    /// look need not be told again and again, so this is done once a second.
    pub(crate) fn expect_orphans(&self) {
        let second = self.started.elapsed().as_secs() + 1;
        if self.orphans_expected.swap(second, Ordering::Relaxed) != second {
            self.inboxes.iter().for_each(|inbox| inbox.post_orphans());
        }
    }

    /// Whether descriptors are under way.
    pub(crate) fn carries_descriptors(&self) -> bool {
        let held = |uid| self.ledger.usage(uid).map(|user| user.held.get(Resource::Descriptors));
        self.ledger.users().into_iter().filter_map(held).any(|held| held != 0)
    }

    /// Whether the broker is about to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        if !self.stopping.swap(true, Ordering::Relaxed) {
            for inbox in &self.inboxes {
                inbox.post_stop();
            }
        }
    }
}

impl ConnectionPlace {
    /// What is charged for what the connection has.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.load().fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn open_ingress(config: &IngressConfig, bus: &Bus) -> Result<IngressListener, BindError> {
    let opened = Ingress::open(config, bus)
        .and_then(|ingress| IngressListener::bind(&config.listen, ingress));
    let listener = opened.map_err(|source| BindError::Ingress {
        listen: config.listen.clone(),
        source: Box::new(source),
    })?;
    let identity = config.identity.as_str();
    let address = listener.address().map(|address| address.to_string());
    tracing::info!(identity, address, feeds = %config.feeds, "ingress");
    Ok(listener)
}

fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> BindError {
    move |error| BindError::System { action, source: error.into() }
}

fn fill_randomly(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        filled += rustix::io::retry_on_intr(|| {
            rustix::rand::getrandom(&mut *rest, GetRandomFlags::empty())
        })?;
    }
    Ok(())
}

/// Each incarnation counts ids from a place of its own, so that what a program remembers of the one
/// before finds nobody. Ids stay below 2^53, which every JSON reader takes as they are.
const ID_SERIES: u64 = 1_000_000_000;
const IDS_IN_A_SERIES: u64 = 1_000_000;
