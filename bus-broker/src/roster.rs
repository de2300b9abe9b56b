//! Who is connected: which program and user is behind a connection and behind an endpoint.
//!
//! Invariant: a [`Client`] is on the roster from when its connection is taken over by a thread until
//! that is dropped, an endpoint as long as its port or stream has it: both are guards. The roster is
//! locked when one of them comes or goes, and by who asks; no message passes here.
//!
//! What the system calls a program is read from `/proc` when somebody first wants to know, and kept:
//! a connection that nobody asks about costs no system call. By then the process may be gone, and
//! then what was learnt when it connected has to do, its executable file, or what the program calls
//! itself. From the sandbox of the program `bus-broker` `/proc` is not to be seen, so there it is these
//! two. None of it proves anything; uid and pid do.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use bus_core::wire::inside::{ConnectionTraffic, MAX_PROGRAM_BYTES, Whose};
use bus_core::{Credentials, EndpointId};

use crate::broker::Shared;
use crate::tally::Tally;

/// All connections, and whose endpoints are whose.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    clients: Mutex<BTreeMap<u64, Arc<Client>>>,
    endpoints: Mutex<HashMap<EndpointId, Arc<Client>>>,
}

/// What is known of a connection's other end.
#[derive(Debug)]
pub(crate) struct Client {
    number: u64,
    credentials: Credentials,
    /// The ingress that it came in at.
    ingress: Option<Box<str>>,
    /// The identity of the socket that it came in at, if that has one.
    socket: Option<Box<str>>,
    /// The file that its process executed when it connected, without its directory.
    executable: Option<Box<str>>,
    calls_itself: OnceLock<Box<str>>,
    /// The name of its process's command.
    command: OnceLock<Option<Box<str>>>,
    endpoints: AtomicU32,
    /// Written by the thread that has the connection.
    pub(crate) bytes_read: Tally,
    pub(crate) bytes_written: Tally,
    since: Instant,
}

/// A connection on the roster; dropping it takes it off.
#[derive(Debug)]
pub(crate) struct ClientEntry {
    shared: Arc<Shared>,
    client: Arc<Client>,
}

/// Where a connection came from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CameFrom<'a> {
    /// From a program.
    Program {
        /// The file that it executes, if that is known.
        executable: Option<&'a str>,
        /// The identity of the socket that it came in at, if that has one.
        socket: Option<&'a str>,
    },
    /// At the ingress of this identity.
    Ingress(&'a str),
}

/// An endpoint on the roster; dropping it takes it off.
#[derive(Debug)]
pub(crate) struct EndpointEntry {
    shared: Arc<Shared>,
    client: Arc<Client>,
    endpoint: EndpointId,
}

impl Client {
    /// The program, for people: its command's name, or its file's, or what it calls itself.
    pub(crate) fn program(&self) -> Option<String> {
        self.command().or_else(|| self.calls_itself.get().cloned().map(String::from))
    }

    /// What the system says of it.
    fn command(&self) -> Option<String> {
        let command = || command_of(self.credentials.pid).map(Box::from);
        let found = || command().or_else(|| self.executable.clone());
        self.command.get_or_init(found).clone().map(String::from)
    }

    /// What it calls itself in its greeting.
    pub(crate) fn set_name(&self, name: &str) {
        let name = &name[..name.floor_char_boundary(MOST_NAME_BYTES)];
        // A second greeting is refused elsewhere.
        let _ = self.calls_itself.set(name.into());
    }

    /// What a line of the log is about. Made for the line: a span that lives as long as its
    /// connection would cost each idle one memory, and the table of spans never gives any back.
    pub(crate) fn span(&self) -> tracing::Span {
        let (number, Credentials { uid, pid }) = (self.number, self.credentials);
        match self.ingress.as_deref() {
            Some(identity) => tracing::info_span!("ingress", number, identity),
            None => {
                tracing::info_span!("connection", number, uid, pid, socket = self.socket.as_deref())
            }
        }
    }

    pub(crate) fn credentials(&self) -> Credentials {
        self.credentials
    }

    /// Whose connection it is.
    pub(crate) fn whose(&self) -> Whose {
        let Credentials { uid, pid } = self.credentials;
        let program = self.program().map(|mut program| {
            program.truncate(program.floor_char_boundary(MAX_PROGRAM_BYTES));
            program
        });
        Whose { uid, pid, connection: Some(self.number), program }
    }

    fn traffic(&self) -> ConnectionTraffic {
        ConnectionTraffic {
            connection: self.number,
            uid: self.credentials.uid,
            pid: self.credentials.pid,
            program: self.command(),
            calls_itself: self.calls_itself.get().cloned().map(String::from),
            ingress: self.ingress.clone().map(String::from),
            endpoints: self.endpoints.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.get(),
            bytes_written: self.bytes_written.get(),
            age_us: u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl Roster {
    /// Whose an endpoint is; of one that no connection has, what the bus knows.
    pub(crate) fn whose(&self, endpoint: EndpointId, credentials: Credentials) -> Whose {
        // Let go before anything is read from the system.
        let client = lock(&self.endpoints).get(&endpoint).cloned();
        match client {
            Some(client) => client.whose(),
            None => Whose { uid: credentials.uid, pid: credentials.pid, ..Whose::default() },
        }
    }

    /// The program whose endpoint this is.
    pub(crate) fn program(&self, endpoint: EndpointId) -> Option<String> {
        let client = lock(&self.endpoints).get(&endpoint).cloned();
        client.and_then(|client| client.program())
    }

    /// What program a process is, as one of its connections knows.
    pub(crate) fn program_of(&self, process: Credentials) -> Option<String> {
        let is_its = |client: &&Arc<Client>| client.credentials == process;
        let client = lock(&self.clients).values().rev().find(is_its).cloned();
        client.and_then(|client| client.program())
    }

    /// Connections by number, at most `most`, those after `after`; and whether there are more.
    pub(crate) fn list(&self, after: Option<u64>, most: usize) -> (Vec<ConnectionTraffic>, bool) {
        let from = after.map_or(Unbounded, Excluded);
        let mut listed: Vec<_> = {
            let clients = lock(&self.clients);
            clients.range((from, Unbounded)).take(most + 1).map(|(_, c)| Arc::clone(c)).collect()
        };
        let more = listed.len() > most;
        listed.truncate(most);
        (listed.iter().map(|client| client.traffic()).collect(), more)
    }
}

impl Roster {
    /// Gives back what it needed for more.
    pub(crate) fn shrink(&self) {
        lock(&self.endpoints).shrink_to_fit();
    }
}

impl ClientEntry {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        number: u64,
        credentials: Credentials,
        came: CameFrom<'_>,
    ) -> Self {
        let (executable, socket, ingress) = match came {
            CameFrom::Program { executable, socket } => {
                (executable.map(file_name), socket.map(Box::from), None)
            }
            CameFrom::Ingress(identity) => (None, None, Some(identity.into())),
        };
        let client = Arc::new(Client {
            number,
            credentials,
            ingress,
            socket,
            executable,
            calls_itself: OnceLock::new(),
            command: OnceLock::new(),
            endpoints: AtomicU32::new(0),
            bytes_read: Tally::default(),
            bytes_written: Tally::default(),
            since: Instant::now(),
        });
        lock(&shared.roster.clients).insert(number, Arc::clone(&client));
        Self { shared: Arc::clone(shared), client }
    }

    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }
}

impl Drop for ClientEntry {
    fn drop(&mut self) {
        lock(&self.shared.roster.clients).remove(&self.client.number);
    }
}

impl EndpointEntry {
    pub(crate) fn new(shared: &Arc<Shared>, client: &Arc<Client>, endpoint: EndpointId) -> Self {
        lock(&shared.roster.endpoints).insert(endpoint, Arc::clone(client));
        client.endpoints.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(shared), client: Arc::clone(client), endpoint }
    }
}

impl Drop for EndpointEntry {
    fn drop(&mut self) {
        lock(&self.shared.roster.endpoints).remove(&self.endpoint);
        self.client.endpoints.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing that can panic runs under this lock")
}

fn file_name(path: &str) -> Box<str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let shown = |c: char| if c.is_control() { '?' } else { c };
    name.chars().map(shown).collect()
}

/// What the system calls a process's command: at most 15 bytes, of which those that are no text are
/// replaced. None if the process is gone, or in a namespace that is not seen from here.
fn command_of(pid: u32) -> Option<String> {
    if pid == 0 {
        return None;
    }
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name = String::from_utf8_lossy(&name);
    let shown = |c: char| if c.is_control() { '?' } else { c };
    Some(name.trim_end_matches('\n').chars().map(shown).collect())
}

/// What is kept of what a program calls itself.
const MOST_NAME_BYTES: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_of_a_process_is_known_while_it_lives() {
        let own = command_of(std::process::id()).unwrap();
        assert!(!own.is_empty() && own.len() <= 15 && !own.contains('\n'), "{own:?}");
        assert_eq!(command_of(0), None);
        assert_eq!(command_of(u32::MAX), None);
    }
}
