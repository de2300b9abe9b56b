//! The program `bus-broker` as a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use bus_core::wire::{BrokerFrame, GoodbyeCode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::raw_client::RawClient;

/// A running broker; it is killed if a test forgets it.
struct Program {
    child: Child,
    stdout: BufReader<ChildStdout>,
    path: PathBuf,
}

impl Program {
    fn start(command: &mut Command, path: &Path) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, format!("listening on {}\n", path.display()));
        Self { child, stdout, path: path.to_owned() }
    }

    fn listening(directory: &Path) -> Self {
        let path = directory.join("unisono").join("bus");
        Self::start(Command::new(BROKER).arg("--listen").arg(&path), &path)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for a good end, and checks that nothing more was written.
    fn ended(mut self) {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sigterm_and_sigint_tell_clients_and_leave_no_socket() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let directory = tempfile::tempdir().unwrap();
        let program = Program::listening(directory.path());
        let path = program.path.clone();
        let mut client = RawClient::connect(&path);
        client.join("chat");
        program.signal(signal);
        assert_eq!(client.goodbye().unwrap().code, GoodbyeCode::Shutdown, "{signal}");
        program.ended();
        assert!(!path.exists(), "{signal}");
    }
}

#[test]
fn the_default_path_is_in_the_runtime_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("unisono").join("bus");
    let mut command = Command::new(BROKER);
    command.env("XDG_RUNTIME_DIR", directory.path());
    let program = Program::start(&mut command, &path);
    RawClient::connect(&path).ping();
    program.signal(Signal::SIGTERM);
    program.ended();
}

#[test]
fn without_a_runtime_directory_it_fails_and_names_the_option() {
    let output = Command::new(BROKER).env_remove("XDG_RUNTIME_DIR").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--listen"), "{text}");
}

#[test]
fn a_second_broker_on_the_path_fails_and_the_first_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::listening(directory.path());
    let output = Command::new(BROKER).arg("--listen").arg(&program.path).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("another broker listens on"), "{text}");
    RawClient::connect(&program.path).ping();
}

#[test]
fn a_broker_that_was_killed_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::listening(directory.path());
    let path = program.path.clone();
    drop(program);
    assert!(path.exists(), "it had no time to tidy up");
    let program = Program::listening(directory.path());
    RawClient::connect(&program.path).ping();
}

#[test]
fn a_configuration_error_has_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("broker.toml");
    std::fs::write(&file, "threads = 1\n[limits]\nlanes = 17\n").unwrap();
    let output = Command::new(BROKER).arg("--config").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("broker.toml:3:9: limit lanes is 17"), "{text}");
}

#[test]
fn g8_out_of_descriptors_newcomers_are_told_and_old_clients_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus");
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg("ulimit -n 32; exec \"$0\" --listen \"$1\"").arg(BROKER).arg(&path);
    let program = Program::start(&mut command, &path);

    let mut clients = Vec::new();
    let refused = loop {
        let mut client = RawClient::silent(UnixStream::connect(&path).unwrap());
        client.write(b"UNISONO\n");
        client.say(&bus_core::wire::ClientFrame::Hello(bus_core::wire::Hello::new()));
        match client.hear() {
            BrokerFrame::Welcome(_) => clients.push(client),
            BrokerFrame::Goodbye(goodbye) => break goodbye,
            other => panic!("{other:?}"),
        }
        assert!(clients.len() < 32, "more connections than descriptors");
    };
    assert_eq!(refused.code, GoodbyeCode::LimitExceeded);
    assert!(clients.len() > 10);
    for client in &mut clients {
        client.ping();
    }
    let mut last = clients.pop().unwrap();
    let connections = clients.len() as u64;
    clients.clear();
    last.wait_for(|stats| stats.connections == 1);
    assert!(connections > 1);
    RawClient::connect(&path).ping();
    drop(program);
}

#[test]
fn a_socket_from_the_service_manager_is_served_and_left() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus");
    let socket = UnixListener::bind(&path).unwrap();
    // Inherited as standard input, and moved to where the manager would put it.
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\"";
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).arg(BROKER).stdin(OwnedFd::from(socket));
    let program = Program::start(&mut command, &path);
    RawClient::connect(&path).ping();
    program.signal(Signal::SIGTERM);
    program.ended();
    assert!(path.exists(), "it is the manager's");
}

const BROKER: &str = env!("CARGO_BIN_EXE_bus-broker");
