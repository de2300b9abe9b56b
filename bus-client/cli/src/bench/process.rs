//! The processes of a run, seen from the one that started them.
//!
//! Invariant: a process is killed and waited for when its value is dropped, so that a run leaves
//! none behind, however it ends.

use std::{
    ffi::OsStr,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::fd::{AsFd as _, BorrowedFd},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{time::clock_getcpuclockid, unistd::Pid};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use serde::{Serialize, de::DeserializeOwned};

/// A process of a run.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    what: String,
}

/// What makes waiting for a process end without it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience<'a> {
    /// Readable once the user wants no more.
    pub(crate) interrupt: BorrowedFd<'a>,
    pub(crate) deadline: Instant,
}

impl Process {
    /// Starts this very program with other arguments; `what` names it in errors.
    pub(crate) fn worker(what: String) -> io::Result<Self> {
        Self::spawn(command()?, Stdio::piped(), Stdio::piped(), what)
    }

    /// Starts another program, on these CPUs; it does not outlive us. Its standard input and error
    /// are as given, and it has no standard output.
    pub(crate) fn program<'a>(
        pin: &[usize],
        words: impl IntoIterator<Item = &'a OsStr>,
        stdin: Stdio,
        stderr: Stdio,
        what: String,
    ) -> io::Result<Self> {
        let mut command = command()?;
        command.stderr(stderr);
        command.args(pin.iter().map(|cpu| format!("--pin={cpu}")));
        command.arg("--").args(words);
        Self::spawn(command, stdin, Stdio::null(), what)
    }

    fn spawn(mut command: Command, stdin: Stdio, stdout: Stdio, what: String) -> io::Result<Self> {
        let mut child = command.stdin(stdin).stdout(stdout).spawn()?;
        Ok(Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(BufReader::new),
            child,
            what,
        })
    }

    /// Tells it something.
    pub(crate) fn tell<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
        line.push(b'\n');
        let stdin = self.stdin.as_mut();
        let stdin = stdin.ok_or_else(|| io::Error::other("it listens no more"))?;
        stdin.write_all(&line).map_err(|error| self.about(error))
    }

    /// Waits for what it says next.
    pub(crate) fn hear<T: DeserializeOwned>(&mut self, patience: Patience<'_>) -> io::Result<T> {
        let mut line = Vec::new();
        loop {
            let stdout = self.stdout.as_mut();
            let stdout = stdout.ok_or_else(|| io::Error::other("it says nothing"))?;
            if stdout.buffer().is_empty()
                && let Err(error) = wait(stdout.get_ref().as_fd(), patience)
            {
                return Err(self.about(error));
            }
            let bytes = stdout.fill_buf()?;
            if bytes.is_empty() {
                return Err(self.ended());
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
            let taken = end.map_or(bytes.len(), |end| end + 1);
            stdout.consume(taken);
            if end.is_some() {
                return serde_json::from_slice(&line).map_err(|error| self.about(error));
            }
        }
    }

    /// The CPU time that it has used, all threads of it.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        let time = clock_getcpuclockid(Pid::from_raw(pid))?.now()?;
        Ok(time.into())
    }

    /// Its resident memory in KiB: now, and at its peak.
    pub(crate) fn memory(&self) -> io::Result<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.ok_or_else(|| io::Error::other(format!("no {name} of {}", self.what)))
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn ended(&mut self) -> io::Error {
        let how = match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        io::Error::other(format!("{} ended too early: {how}", self.what))
    }

    /// Keeps the kind: who is interrupted does not fail.
    fn about(&self, error: impl Into<io::Error>) -> io::Error {
        let error = error.into();
        io::Error::new(error.kind(), format!("{}: {error}", self.what))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command() -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(VERB);
    Ok(command)
}

fn wait(fd: BorrowedFd<'_>, patience: Patience<'_>) -> io::Result<()> {
    loop {
        let left = patience.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::other("it did not answer in time"));
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds =
            [fd, patience.interrupt].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut fds, Some(&left)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) if !fds[1].revents().is_empty() => {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The hidden verb of this program that makes it a worker.
const VERB: &str = "bench-worker";
