//! The helper's own side: what it does with orders, until the broker ends.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use bus_core::GroupName;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags},
};

use super::{
    LOOK_TAKES,
    words::{self, Order, Report},
};
use crate::{
    config::CommandServices,
    policy::ProcessIdentity,
    service::{ServiceFile, What, read_services},
};

/// Serves the broker at the other end of the standard input, until it ends. For the program
/// `bus-broker` alone, which calls it when its argument says so.
#[must_use]
pub fn run_helper() -> ExitCode {
    let Ok(socket) = io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    // What it starts is not to have the socket as its standard input.
    if let Ok(null) = std::fs::File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
    }
    let mut work = Work::new(socket);
    let mut buffer = words::buffer();
    loop {
        match work.turn(&mut buffer) {
            Ok(true) => {}
            Ok(false) => return ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bus-broker: helper: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
}

#[derive(Debug)]
struct Work {
    socket: Arc<OwnedFd>,
    address: Option<String>,
    directories: Vec<PathBuf>,
    commands: CommandServices,
    starts: BTreeMap<u64, Start>,
    looking: Arc<AtomicUsize>,
}

/// Something that was started.
#[derive(Debug)]
struct Start {
    /// Until it has ended.
    child: Option<(Child, OwnedFd)>,
    /// Until when it has to own its name, unless it does.
    until: Option<Instant>,
    /// Its end says nothing of the service: it only asked the service manager.
    asks_manager: bool,
}

impl Work {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Arc::new(socket),
            address: None,
            directories: Vec::new(),
            commands: CommandServices::default(),
            starts: BTreeMap::new(),
            looking: Arc::default(),
        }
    }

    /// Waits for something and does what it asks for. False once the broker has ended.
    fn turn(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let (mut ended, mut ordered) = (Vec::new(), false);
        {
            let children = self.starts.iter().filter_map(|(start, known)| {
                known.child.as_ref().map(|(_, process)| (*start, process))
            });
            let children: Vec<(u64, &OwnedFd)> = children.collect();
            let processes =
                children.iter().map(|(_, process)| PollFd::new(*process, PollFlags::IN));
            let mut polled = vec![PollFd::new(&*self.socket, PollFlags::IN)];
            polled.extend(processes);
            let timeout = self.next_deadline().map(timespec);
            match rustix::event::poll(&mut polled, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            ordered |= !polled[0].revents().is_empty();
            for (at, (start, _)) in children.iter().enumerate() {
                if !polled[at + 1].revents().is_empty() {
                    ended.push(*start);
                }
            }
        }
        for start in ended {
            self.child_ended(start);
        }
        self.end_late();
        if !ordered {
            return Ok(true);
        }
        match words::receive::<Order>(&self.socket, buffer)? {
            None => return Ok(false),
            Some((Order::Introduce { address, directories, commands }, _)) => {
                (self.address, self.directories) = (address, directories);
                self.commands = commands;
            }
            Some((Order::Start { start, name }, _)) => self.start(start, &name),
            Some((Order::Arrived { start }, _)) => {
                if let Some(known) = self.starts.get_mut(&start) {
                    known.until = None;
                    self.forget_if_over(start);
                }
            }
            Some((Order::Look { look, pid }, process)) => self.look(look, pid, process),
        }
        Ok(true)
    }

    fn start(&mut self, start: u64, name: &GroupName) {
        let Some(service) = read_services(&self.directories).remove(name) else {
            return self.tell_ended(start, "its service file is gone".to_owned());
        };
        let mut command = self.command(&service);
        let started = command.spawn().and_then(|child| {
            let process = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
            process.map(|process| (child, process)).map_err(io::Error::from)
        });
        match started {
            Ok(child) => {
                let asks_manager = matches!(service.what, What::Unit(_));
                let until = Instant::now().checked_add(service.timeout);
                let known = Start { child: Some(child), until, asks_manager };
                self.starts.insert(start, known);
            }
            Err(error) => {
                let program = command.get_program().to_string_lossy().into_owned();
                self.tell_ended(start, format!("{program}: {error}"));
            }
        }
    }

    fn command(&self, service: &ServiceFile) -> Command {
        let mut command = match &service.what {
            What::Command(words) if self.commands == CommandServices::Systemd => {
                let mut command = ask_manager("systemd-run");
                command.args(["--quiet", "--collect", "--wait", "--service-type=exec"]);
                let address = self.address.as_ref().map(|address| ("UNISONO_ADDRESS", address));
                let said = service.environment.iter().map(|(name, value)| (name.as_str(), value));
                for (name, value) in address.into_iter().chain(said) {
                    command.arg(format!("--setenv={name}={value}"));
                }
                command.arg(format!("--property=SyslogIdentifier={}", service.name));
                command.arg("--").args(words);
                command
            }
            What::Command(words) => {
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]);
                if let Some(address) = &self.address {
                    command.env("UNISONO_ADDRESS", address);
                }
                command.envs(&service.environment);
                command
            }
            What::Unit(unit) => {
                let mut command = ask_manager("systemctl");
                command.args(["--quiet", "--no-ask-password", "start", "--"].map(OsStr::new));
                command.arg(unit);
                command
            }
        };
        // Its own group: what is typed at the broker's terminal is not for it. Its output goes with
        // the broker's log.
        command.stdin(Stdio::null()).stdout(stderr_of_ours()).process_group(0);
        // These say where the broker's own service manager is.
        for variable in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
            command.env_remove(variable);
        }
        command
    }

    fn child_ended(&mut self, start: u64) {
        let Some(known) = self.starts.get_mut(&start) else { return };
        let Some((child, _)) = &mut known.child else { return };
        let Ok(Some(status)) = child.try_wait() else { return };
        known.child = None;
        let why = match (known.until, known.asks_manager) {
            // It had its name.
            (None, _) => None,
            (Some(_), true) if status.success() => None,
            (Some(_), true) => Some(format!("systemctl could not start its unit ({status})")),
            (Some(_), false) => Some(without_name(status)),
        };
        if let Some(why) = why {
            known.until = None;
            self.tell_ended(start, why);
        }
        self.forget_if_over(start);
    }

    fn end_late(&mut self) {
        let now = Instant::now();
        let is_late = |known: &Start| known.until.is_some_and(|until| until <= now);
        let late: Vec<u64> =
            self.starts.iter().filter(|(_, known)| is_late(known)).map(|(s, _)| *s).collect();
        for start in late {
            if let Some(known) = self.starts.get_mut(&start) {
                known.until = None;
                if let Some((child, _)) = &mut known.child {
                    // It has failed, and the next start is to find nothing of it. Its end is
                    // waited for like any other.
                    let _ = child.kill();
                }
                self.tell_ended(start, "it did not claim its name in time".to_owned());
                self.forget_if_over(start);
            }
        }
    }

    fn forget_if_over(&mut self, start: u64) {
        let is_over = |known: &Start| known.child.is_none() && known.until.is_none();
        if self.starts.get(&start).is_some_and(is_over) {
            self.starts.remove(&start);
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let until = self.starts.values().filter_map(|known| known.until).min()?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    fn tell_ended(&self, start: u64, why: String) {
        // The broker's side of the socket is read by a thread that does nothing else.
        let _ = words::report(&*self.socket, &Report::Ended { start, why });
    }

    /// Looks at a process: in a thread of its own if it has file systems of its own, which may answer
    /// never.
    fn look(&self, look: u64, pid: u32, process: Option<OwnedFd>) {
        let socket = Arc::clone(&self.socket);
        let looking = Arc::clone(&self.looking);
        let unknown = ProcessIdentity::default();
        let Some(process) = process else { return answer(&socket, look, unknown) };
        if let Some(found) = ProcessIdentity::look_at_once(process.as_fd(), pid) {
            return answer(&socket, look, found);
        }
        if looking.fetch_add(1, Ordering::Relaxed) >= MOST_LOOKS {
            looking.fetch_sub(1, Ordering::Relaxed);
            return answer(&socket, look, unknown);
        }
        let (tell, told) = mpsc::channel();
        let looker = move || {
            let _ = tell.send(ProcessIdentity::look(process.as_fd(), pid));
            looking.fetch_sub(1, Ordering::Relaxed);
        };
        let waiter = move || {
            let identity = told.recv_timeout(LOOK_TAKES).unwrap_or_default();
            answer(&socket, look, identity);
        };
        let started = thread::Builder::new().spawn(looker).and_then(|_| {
            // Nobody waits for either: one ends with the look, the other in time.
            thread::Builder::new().spawn(waiter)
        });
        if started.is_err() {
            answer(&self.socket, look, ProcessIdentity::default());
        }
    }
}

/// A program that speaks to the user's service manager, or to the system's where there is none.
fn ask_manager(program: &str) -> Command {
    let mut command = Command::new(program);
    if std::env::var_os("XDG_RUNTIME_DIR").is_some() {
        command.arg("--user");
    }
    command
}

fn answer(socket: &OwnedFd, look: u64, identity: ProcessIdentity) {
    let ProcessIdentity { executable, sandbox } = identity;
    let report = Report::Looked { look, executable, sandbox: sandbox.into() };
    if words::report(socket, &report).is_err() {
        // Too long: that it is not known fits always.
        let sandbox = words::SandboxWord::Unknown;
        let _ = words::report(socket, &Report::Looked { look, executable: None, sandbox });
    }
}

fn without_name(status: ExitStatus) -> String {
    format!("it ended ({status}) without claiming its name")
}

fn stderr_of_ours() -> Stdio {
    let ours: BorrowedFd<'_> = rustix::stdio::stderr();
    ours.try_clone_to_owned().map_or_else(|_| Stdio::null(), Stdio::from)
}

fn timespec(duration: Duration) -> Timespec {
    let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX - 1) + 1;
    Timespec { tv_sec: millis / 1_000, tv_nsec: (millis % 1_000) * 1_000_000 }
}

/// Looks at a time.
const MOST_LOOKS: usize = 64;
