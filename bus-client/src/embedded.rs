//! A broker in a thread of this process (feature `embedded`).
//!
//! Invariant: the broker's threads have ended when its guard is dropped. The guard outlives the
//! connections that depend on it: [`Bus::embedded`] keeps it inside the connection, behind the
//! socket, so that the client says goodbye to a broker that still listens.

use std::collections::hash_map::RandomState;
use std::fs::{self, DirBuilder};
use std::hash::BuildHasher;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::{env, process};

use bus_broker::{BindError, Broker, BrokerHandle, Config, Listen};
use bus_core::Limits;

use crate::bus::Bus;
use crate::error::ConnectError;

/// A broker in a thread of this process, with a socket that other processes can connect to.
/// Dropping it ends the broker and removes the socket; its clients are told.
///
/// It touches no signals, limits, umask or sandbox of its process.
///
/// ```
/// use bus_client::{Bus, EmbeddedBroker};
///
/// let broker = EmbeddedBroker::start()?;
/// let here = broker.connect()?;
/// // Another process would do the same with this address.
/// let there = Bus::builder().address(broker.address()).connect()?;
/// here.join("org.example.Chat")?;
/// let receipt = there.group("org.example.Chat")?.send("hello")?;
/// assert_eq!(receipt.recipients, 1);
/// assert_eq!(here.receive()?.into_message().unwrap().text(), Some("hello"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct EmbeddedBroker {
    running: Running,
    address: String,
    /// Removed last, when nobody listens in it any more.
    _directory: Option<PrivateDirectory>,
}

/// Settings of an embedded broker.
#[derive(Clone, Debug, Default)]
#[must_use = "settings start nothing until `start`"]
pub struct EmbeddedBuilder {
    path: Option<PathBuf>,
    limits: Limits,
    threads: Option<std::num::NonZeroUsize>,
}

impl EmbeddedBroker {
    /// Starts a broker on a socket in a new directory of its own, which only this user may enter.
    ///
    /// # Errors
    ///
    /// No place for a socket, no descriptor, no thread.
    pub fn start() -> Result<Self, ConnectError> {
        Self::builder().start()
    }

    /// Starts a broker on a socket at `path`.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start); also if another broker listens there.
    pub fn listen(path: &Path) -> Result<Self, ConnectError> {
        Self::builder().path(path).start()
    }

    /// Settings: where to listen, limits, threads.
    pub fn builder() -> EmbeddedBuilder {
        EmbeddedBuilder::default()
    }

    /// The address for others: for `--address` or `UNISONO_ADDRESS`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Connects to it, without the socket's path.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub fn connect(&self) -> Result<Bus, ConnectError> {
        let socket = self.running.handle.connect().map_err(not_connected)?;
        Bus::builder().connect_socket(socket, &self.address, None)
    }

    /// Ends the broker, tells its clients, and waits for its threads. Dropping it does the same.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl EmbeddedBuilder {
    /// Listens at this path, rather than in a new directory.
    pub fn path(mut self, path: impl Into<PathBuf>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// The bounds of the bus.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How many threads serve it; unless set, as many as there are cores, at most 4.
    pub fn threads(mut self, threads: std::num::NonZeroUsize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Starts the broker.
    ///
    /// # Errors
    ///
    /// No place for a socket, no descriptor, no thread; a limit out of its range; another broker
    /// at the path.
    pub fn start(self) -> Result<EmbeddedBroker, ConnectError> {
        let mut directory = None;
        let path = match self.path {
            Some(path) => path,
            None => directory.insert(PrivateDirectory::new()?).path.join("bus"),
        };
        let mut config = Config::default();
        config.listen = Listen::Path(path.clone());
        config.limits = self.limits;
        config.threads = self.threads;
        Ok(EmbeddedBroker {
            running: Running::start(&config)?,
            address: path.display().to_string(),
            _directory: directory,
        })
    }
}

impl Bus {
    /// Starts a broker in a thread of this process and connects to it. The broker ends with the
    /// last handle of this bus. To let others in, see [`EmbeddedBroker`].
    ///
    /// ```
    /// use bus_client::{Bus, JoinOptions};
    ///
    /// let bus = Bus::embedded()?;
    /// let echo = bus.join_with("echo", JoinOptions::new().loopback(true))?;
    /// echo.send("hello")?;
    /// assert_eq!(bus.receive()?.into_message().unwrap().text(), Some("hello"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// No descriptor or no thread was to be had.
    pub fn embedded() -> Result<Self, ConnectError> {
        let mut config = Config::default();
        config.listen = Listen::Nowhere;
        let running = Running::start(&config)?;
        let socket = running.handle.connect().map_err(not_connected)?;
        Self::builder().connect_socket(socket, "the embedded broker", Some(Box::new(running)))
    }
}

/// A broker that runs. Dropping it ends the broker and waits for its threads.
#[derive(Debug)]
struct Running {
    handle: BrokerHandle,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(config: &Config) -> Result<Self, ConnectError> {
        let broker = Broker::bind(config).map_err(not_bound)?;
        let handle = broker.handle();
        let thread = thread::Builder::new().name("bus-broker".to_owned()).spawn(move || {
            // Its clients see its end; there is nobody else here to be told.
            let _ = broker.run();
        })?;
        Ok(Self { handle, thread: Some(thread) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.shutdown();
        if let Some(thread) = self.thread.take() {
            // A panic of the broker has ended its connections; this thread goes on.
            let _ = thread.join();
        }
    }
}

/// A new directory that only this user may enter, removed when dropped.
#[derive(Debug)]
struct PrivateDirectory {
    path: PathBuf,
}

impl PrivateDirectory {
    fn new() -> io::Result<Self> {
        let parent = env::var_os("XDG_RUNTIME_DIR")
            .filter(|dir| !dir.is_empty())
            .map_or_else(env::temp_dir, PathBuf::from);
        let mut tries = 0;
        loop {
            // Each is seeded anew. Who guesses the name gains nothing: it must not exist.
            let random = RandomState::new().hash_one(tries);
            let path = parent.join(format!("unisono-{}-{random:016x}", process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < 16 => {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn not_bound(error: BindError) -> ConnectError {
    ConnectError::System(io::Error::other(error))
}

fn not_connected(error: bus_broker::ConnectError) -> ConnectError {
    ConnectError::System(io::Error::other(error))
}
