//! A broker of a test's own: the program `bus-broker` on a socket in a directory that goes with it.
//!
//! Invariant: it is killed when it is dropped. A test that has passed, and has not ended its broker,
//! fails if the broker has died meanwhile or a thread of it has panicked; of one that fails, the
//! broker's log is printed.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bus_core::wire::{MemberInfo, Stats};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::deadline::eventually;
use crate::process::{Launch, Process, until_stopped};
use crate::programs;
use crate::raw::RawClient;

/// A running broker.
#[derive(Debug)]
pub struct Broker {
    directory: TempDir,
    socket: PathBuf,
    child: Child,
    stdout: BufReader<ChildStdout>,
    log: Arc<Mutex<String>>,
    log_reader: Option<JoinHandle<()>>,
    unread: Option<ChildStderr>,
    ended: bool,
}

impl Broker {
    /// A broker with the defaults.
    #[must_use]
    pub fn start() -> Self {
        Self::with("")
    }

    /// A broker with these lines under `[limits]`.
    #[must_use]
    pub fn with_limits(limits: &str) -> Self {
        Self::with(&format!("[limits]\n{limits}\n"))
    }

    /// A broker with this configuration file.
    #[must_use]
    pub fn with(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus");
        Self::start_in(directory, socket, config, &[])
    }

    /// A broker with this configuration file, and with these variables in its environment.
    #[must_use]
    pub fn with_environment(config: &str, environment: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus");
        Self::start_in(directory, socket, config, environment)
    }

    /// A broker whose log nobody reads until [`read_log`](Self::read_log).
    #[must_use]
    pub fn with_unread_log(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus");
        Self::start_unread(&[], directory, socket, config, &[])
    }

    /// A broker run by another program, with these words before its own.
    #[must_use]
    pub fn run_by(before: &[&str], config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus");
        Self::start_as(before, directory, socket, config, &[])
    }

    fn start_in(
        directory: TempDir,
        socket: PathBuf,
        config: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::start_as(&[], directory, socket, config, environment)
    }

    fn start_as(
        before: &[&str],
        directory: TempDir,
        socket: PathBuf,
        config: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let mut broker = Self::start_unread(before, directory, socket, config, environment);
        broker.read_log();
        broker
    }

    fn start_unread(
        before: &[&str],
        directory: TempDir,
        socket: PathBuf,
        config: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let file = directory.path().join("broker.toml");
        // A look for leaks forks and opens files, which the sandbox is there to prevent.
        let unconfined = if programs::are_sanitized() { "sandbox = \"off\"\n" } else { "" };
        fs::write(&file, format!("{unconfined}{config}")).unwrap();
        let broker = programs::bus_broker();
        let mut words = before.iter().map(OsStr::new).chain([broker.as_os_str()]);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .arg("--listen")
            .arg(&socket)
            .arg("--config")
            .arg(&file)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let unread = child.stderr.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let broker = Self {
            directory,
            socket,
            child,
            stdout,
            log: Arc::default(),
            log_reader: None,
            unread,
            ended: false,
        };
        assert_eq!(line, format!("listening on {}\n", broker.socket.display()));
        broker
    }

    /// Begins to read its log.
    pub fn read_log(&mut self) {
        let stderr = BufReader::new(self.unread.take().expect("nobody reads it yet"));
        let log = Arc::clone(&self.log);
        self.log_reader = Some(std::thread::spawn(move || {
            for line in stderr.lines() {
                let mut log = log.lock().unwrap();
                log.push_str(&line.unwrap());
                log.push('\n');
            }
        }));
    }

    /// A new broker on the same socket, after this one has ended.
    #[must_use]
    pub fn again(mut self) -> Self {
        assert!(self.ended, "there is one already");
        // The directory lives on, and this one's remains go.
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        let socket = self.socket.clone();
        Self::start_in(directory, socket, "", &[])
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A file in its directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file in its directory, with this in it.
    #[must_use]
    pub fn file_with(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.file(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// A client that is nothing but the codec.
    #[must_use]
    pub fn raw(&self) -> RawClient {
        RawClient::connect(&self.socket)
    }

    /// The command line on this bus, about to be started with the words of `line`.
    #[must_use]
    pub fn unisono(&self, line: &str) -> Launch {
        self.launch(programs::unisono()).line(line)
    }

    /// A program on this bus.
    #[must_use]
    pub fn launch(&self, program: impl AsRef<std::ffi::OsStr>) -> Launch {
        Launch::new(program).env("UNISONO_ADDRESS", &self.socket)
    }

    /// A started `listen --json`, that has joined and prints to `trace`.
    #[must_use]
    pub fn listener(&self, line: &str, trace: &Path) -> Process {
        let mut process = self.unisono("listen --json").line(line).output_to(trace).start();
        let joined = eventually("joined", || match fs::read_to_string(trace) {
            Ok(text) if text.contains('\n') => Ok(true),
            _ if !process.runs() => Ok(false),
            other => Err(format!("{other:?}")),
        });
        if !joined {
            let _ = process.end().with(0);
            panic!("it ended before it joined");
        }
        process
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many descriptors it has open.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        open.count()
    }

    /// Memory that it occupies, in KiB.
    #[must_use]
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.unwrap().parse().unwrap()
    }

    /// Asks until its counters are like this.
    #[track_caller]
    pub fn until(&self, what: &str, reached: impl Fn(&Stats) -> bool) -> Stats {
        let mut client = self.raw();
        eventually(what, || {
            let stats = client.stats();
            if reached(&stats) { Ok(stats) } else { Err(format!("{stats:?}")) }
        })
    }

    /// Asks until the members of a group are like this.
    #[track_caller]
    pub fn until_members(
        &self,
        group: &str,
        what: &str,
        reached: impl Fn(&[MemberInfo]) -> bool,
    ) -> Vec<MemberInfo> {
        let mut client = self.raw();
        eventually(what, || match client.members(group) {
            Ok(members) if reached(&members) => Ok(members),
            other => Err(format!("{other:?}")),
        })
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has logged a line with all of these in it.
    #[track_caller]
    pub fn until_logged(&self, parts: &[&str]) {
        eventually("logged", || {
            let log = self.log();
            let mut lines = log.lines();
            if lines.any(|line| parts.iter().all(|part| line.contains(part))) {
                Ok(())
            } else {
                Err(format!("{parts:?} is not in:\n{log}"))
            }
        });
    }

    /// Waits until its log, in JSON, has told so many events with this message, those counted that it says
    /// it left out; gives the lines.
    #[track_caller]
    pub fn until_counted(&self, message: &str, count: u64) -> Vec<Value> {
        eventually("the last one is logged", || {
            let log = self.log();
            let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
            let lines: Vec<Value> =
                lines.filter(|line| line["fields"]["message"] == message).collect();
            let left_out = |line: &Value| line["fields"]["suppressed"].as_u64().unwrap();
            let events = lines.len() as u64 + lines.iter().map(left_out).sum::<u64>();
            if events == count { Ok(lines) } else { Err(log) }
        })
    }

    /// Tells it to end, and does not wait.
    pub fn signal(&mut self, signal: Signal) {
        self.kill(signal);
        self.ended = true;
    }

    /// Has it read its policy again.
    pub fn hang_up(&self) {
        self.kill(Signal::SIGHUP);
    }

    /// Stops it, and waits until it stands.
    pub fn stop(&self) {
        self.kill(Signal::SIGSTOP);
        until_stopped(self.pid());
    }

    /// Lets it go on after [`stop`](Self::stop).
    pub fn go_on(&self) {
        self.kill(Signal::SIGCONT);
    }

    fn kill(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, signal).unwrap();
    }

    /// Waits for the end that it was told to come to, and checks that it wrote nothing more to its
    /// standard output.
    pub fn ended(&mut self) -> ExitStatus {
        assert!(self.ended, "nobody told it to end");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "standard output has one line");
        self.child.wait().unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let died = if self.ended { None } else { self.child.try_wait().unwrap() };
        if programs::are_sanitized() && !self.ended && died.is_none() && !std::thread::panicking() {
            // It looks for leaks when it ends by itself.
            self.go_on();
            self.kill(Signal::SIGTERM);
            assert!(self.child.wait().unwrap().success(), "a leak:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.log_reader.take() {
            let _ = reader.join();
        }
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("the broker's log:\n{log}");
            return;
        }
        assert_eq!(died, None, "the broker has ended by itself:\n{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}
