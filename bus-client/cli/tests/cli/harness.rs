//! A broker, and processes of the program under test whose lines can be waited for.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use bus_client::{Bus, EmbeddedBroker, Limits};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// One deadline for everything: far beyond what any step takes, so that reaching it is a failure.
const DEADLINE: Duration = Duration::from_secs(60);

/// A bus of one's own.
pub(crate) struct Fixture {
    broker: EmbeddedBroker,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default())
    }

    /// With limits other than the usual ones.
    pub(crate) fn with(limits: Limits) -> Self {
        let broker = EmbeddedBroker::builder().limits(limits).start();
        Self { broker: broker.expect("a broker") }
    }

    pub(crate) fn connect(&self) -> Bus {
        self.broker.connect().expect("connects")
    }

    pub(crate) fn address(&self) -> &str {
        self.broker.address()
    }

    /// The program on this bus.
    pub(crate) fn unisono<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = unisono(arguments);
        command.env("UNISONO_ADDRESS", self.address());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, line: &str) -> Output {
        output(self.unisono(line.split_whitespace()))
    }

    /// As [`run`](Self::run), with this on its standard input.
    pub(crate) fn run_with(&self, line: &str, input: &[u8]) -> Output {
        let mut running = Running::start(self.unisono(line.split_whitespace()));
        let mut stdin = running.stdin();
        let input = input.to_owned();
        // A program that fails may leave some of it unread.
        let writer = thread::spawn(move || stdin.write_all(&input).is_ok());
        let output = running.finish();
        writer.join().expect("joins");
        output
    }

    /// Starts the program, and does not wait for it.
    pub(crate) fn start(&self, line: &str) -> Running {
        Running::start(self.unisono(line.split_whitespace()))
    }

    /// Starts `listen --json`, and waits until it has joined; that line is given back too.
    pub(crate) fn listen(&self, line: &str) -> (Running, Value) {
        let running = self.start(&format!("listen --json {line}"));
        let joined = running.json();
        assert_eq!(joined["type"], "joined", "{joined}");
        (running, joined)
    }

    pub(crate) fn shutdown(self) {
        self.broker.shutdown();
    }
}

/// The program without a bus.
pub(crate) fn unisono<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unisono"));
    command.args(arguments).env_remove("UNISONO_ADDRESS").env_remove("XDG_RUNTIME_DIR");
    command
}

/// Runs a command to its end, with nothing on its standard input.
pub(crate) fn output(mut command: Command) -> Output {
    command.stdin(Stdio::null());
    Running::start(command).finish()
}

/// A process that runs.
pub(crate) struct Running {
    child: Child,
    lines: Option<Receiver<String>>,
    stderr: Option<thread::JoinHandle<Vec<u8>>>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        thread::spawn(move || {
            let mut stdout = stdout;
            let mut line = Vec::new();
            while stdout.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8(std::mem::take(&mut line)).expect("UTF-8");
                // A test that wants no more lines closes the pipe.
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        let mut stderr = child.stderr.take().expect("piped");
        let stderr = thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            text
        });
        Self { child, lines: Some(lines), stderr: Some(stderr) }
    }

    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("not taken before")
    }

    /// The next line that it prints, without the newline.
    pub(crate) fn line(&self) -> String {
        let lines = self.lines.as_ref().expect("not closed");
        let line = lines.recv_timeout(DEADLINE).expect("a line");
        line.strip_suffix('\n').expect("a whole line").to_owned()
    }

    /// The next line, as JSON.
    pub(crate) fn json(&self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).expect(&line)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// Waits for its end; gives what it printed since the last line that was taken.
    pub(crate) fn finish(mut self) -> Output {
        drop(self.child.stdin.take());
        let mut stdout = Vec::new();
        if let Some(lines) = self.lines.take() {
            loop {
                match lines.recv_timeout(DEADLINE) {
                    Ok(line) => stdout.extend_from_slice(line.as_bytes()),
                    Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                    Err(timeout) => panic!("it prints no end: {timeout}"),
                }
            }
        }
        let stderr = self.stderr.take().expect("not taken before").join().expect("joins");
        let status = self.child.wait().expect("waited for");
        Output { status, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a test wants to know about an ended process.
pub(crate) trait Ended {
    /// Its exit status; panics with what it said if that is another.
    fn assert_code(self, code: i32) -> Self;
    fn text(&self) -> &str;
    fn error(&self) -> &str;
    fn lines(&self) -> Vec<Value>;
}

impl Ended for Output {
    #[track_caller]
    fn assert_code(self, code: i32) -> Self {
        let (status, signal) = (self.status.code(), self.status.signal());
        assert_eq!(
            (status, signal),
            (Some(code), None),
            "stdout: {}\nstderr: {}",
            String::from_utf8_lossy(&self.stdout),
            String::from_utf8_lossy(&self.stderr),
        );
        self
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("UTF-8")
    }

    fn error(&self) -> &str {
        std::str::from_utf8(&self.stderr).expect("UTF-8")
    }

    fn lines(&self) -> Vec<Value> {
        let lines = self.text().lines();
        lines.map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

/// The message lines among them.
pub(crate) fn messages(lines: &[Value]) -> Vec<&Value> {
    lines.iter().filter(|line| line["type"] == "message").collect()
}
