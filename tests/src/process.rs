//! A program that a test starts, feeds, listens to, signals, and whose end it waits for.
//!
//! Invariant: a process does not outlive its [`Process`], and never waits for the test: a thread of
//! its own takes its lines and its errors as they come.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::deadline::{DEADLINE, eventually};

/// A program that is about to be started.
#[derive(Debug)]
pub struct Launch {
    command: Command,
    output: Option<File>,
    input: Stdio,
}

impl Launch {
    /// A program without arguments; nothing on its standard input.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env_remove("UNISONO_ADDRESS");
        command.env_remove("XDG_RUNTIME_DIR");
        Self { command, output: None, input: Stdio::null() }
    }

    /// Adds arguments: the words of a line.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.command.args(line.split_whitespace());
        self
    }

    /// Adds one argument, whatever is in it.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Its standard output goes to a file rather than to [`Process::line`].
    #[must_use]
    pub fn output_to(mut self, path: &Path) -> Self {
        self.output = Some(File::create(path).unwrap());
        self
    }

    /// Its standard input is a file.
    #[must_use]
    pub fn input_from(mut self, path: &Path) -> Self {
        self.input = File::open(path).unwrap().into();
        self
    }

    /// Its standard input is a pipe, for [`Process::feed`].
    #[must_use]
    pub fn input_piped(mut self) -> Self {
        self.input = Stdio::piped();
        self
    }

    /// Starts it.
    #[must_use]
    pub fn start(mut self) -> Process {
        let what = format!("{:?}", self.command);
        let stdout = match self.output {
            Some(file) => file.into(),
            None => Stdio::piped(),
        };
        self.command.stdin(self.input).stdout(stdout);
        let mut child = self.command.stderr(Stdio::piped()).spawn().expect(&what);
        let stdin = child.stdin.take();
        let lines = child.stdout.take().map(lines_of);
        let mut stderr = child.stderr.take().unwrap();
        let (send, errors) = channel();
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            let _ = send.send(String::from_utf8_lossy(&text).into_owned());
        });
        Process { what, child, stdin, lines, errors }
    }

    /// Runs it to its end.
    #[must_use]
    pub fn run(self) -> Ended {
        self.start().end()
    }
}

fn lines_of(stdout: impl Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = channel();
    thread::spawn(move || {
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        while stdout.read_line(&mut line).is_ok_and(|count| count > 0) {
            // A test that wants no more lines has closed its end, and so does this.
            if send.send(std::mem::take(&mut line)).is_err() {
                break;
            }
        }
    });
    lines
}

/// A program that runs.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Option<Receiver<String>>,
    errors: Receiver<String>,
}

impl Process {
    /// The next line that it prints, without its newline.
    #[track_caller]
    pub fn line(&self) -> String {
        let lines = self.lines.as_ref().expect("its output is not taken elsewhere");
        match lines.recv_timeout(DEADLINE) {
            Ok(line) => line.trim_end_matches('\n').to_owned(),
            Err(error) => panic!("{}: no line: {error}", self.what),
        }
    }

    /// The next line; none if it ends without one.
    #[must_use]
    pub fn first_line(&self) -> Option<String> {
        let line = self.lines.as_ref()?.recv_timeout(DEADLINE).ok()?;
        Some(line.trim_end().to_owned())
    }

    /// The next line, as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).expect(&line)
    }

    /// Nobody reads its output from here on.
    pub fn close_output(&mut self) {
        self.lines = None;
    }

    /// Its standard input, to write to as the test likes.
    pub fn stdin(&mut self) -> ChildStdin {
        self.stdin.take().expect("piped, and not taken before")
    }

    /// Writes these lines to its standard input, and closes that at their end. The thread ends
    /// before if the process does, and tells how many lines it wrote.
    pub fn feed<L: AsRef<str>>(
        &mut self,
        lines: impl Iterator<Item = L> + Send + 'static,
    ) -> JoinHandle<u64> {
        let mut stdin = self.stdin();
        thread::spawn(move || {
            let mut written = 0;
            for line in lines {
                if writeln!(stdin, "{}", line.as_ref()).is_err() {
                    break;
                }
                written += 1;
            }
            written
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, signal).expect(&self.what);
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal_if_there(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        // Nobody has taken its end, so the number is its own.
        let _ = kill(pid, signal);
    }

    /// Stops it, and waits until it stands.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        until_stopped(self.pid());
    }

    /// Lets it go on after [`stop`](Self::stop).
    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// At the deadline.
    #[must_use]
    #[track_caller]
    pub fn end(mut self) -> Ended {
        drop(self.stdin.take());
        let mut output = String::new();
        if let Some(lines) = self.lines.take() {
            loop {
                match lines.recv_timeout(DEADLINE) {
                    Ok(line) => output.push_str(&line),
                    Err(RecvTimeoutError::Disconnected) => break,
                    Err(error) => panic!("{}: it does not end: {error}", self.what),
                }
            }
        }
        let errors = match self.errors.recv_timeout(DEADLINE) {
            Ok(errors) => errors,
            Err(error) => panic!("{}: it does not end: {error}", self.what),
        };
        let status = self.child.wait().unwrap();
        Ended { what: std::mem::take(&mut self.what), status, output, errors }
    }

    /// Sends it a signal and waits for its end.
    #[must_use]
    #[track_caller]
    pub fn end_by(self, signal: Signal) -> Ended {
        self.signal(signal);
        self.end()
    }
}

/// Waits until a process that got SIGSTOP stands.
pub(crate) fn until_stopped(pid: u32) {
    let stat = format!("/proc/{pid}/stat");
    eventually("stopped", || {
        let text = std::fs::read_to_string(&stat).unwrap();
        // The state follows the name, which stands in parentheses.
        match text.rsplit_once(") ") {
            Some((_, rest)) if rest.starts_with('T') => Ok(()),
            _ => Err(text),
        }
    });
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is left of a process.
#[derive(Debug)]
pub struct Ended {
    what: String,
    status: ExitStatus,
    /// What it printed since the last line that was taken.
    pub output: String,
    /// What it said on standard error.
    pub errors: String,
}

impl Ended {
    /// Its exit status was this; `what` it was about is in the message if it was not.
    #[track_caller]
    pub fn with(self, code: i32) -> Self {
        assert_eq!(
            (self.status.code(), self.status.signal()),
            (Some(code), None),
            "{}\nstdout: {}\nstderr: {}",
            self.what,
            self.output,
            self.errors
        );
        self
    }

    /// Its exit status, if it ended by itself.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// It was ended by this signal.
    #[track_caller]
    pub fn killed_by(self, signal: Signal) -> Self {
        assert_eq!(self.status.signal(), Some(signal as i32), "{}", self.what);
        self
    }

    /// Its lines, as JSON.
    pub fn json_lines(&self) -> Vec<Value> {
        let lines = self.output.lines();
        lines.map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}
