//! The processes of the demonstration.
//!
//! Invariant: a process that was started is waited for, or killed when its `Crew` is dropped;
//! nothing outlives the demonstration. (Were the demonstration itself killed, its broker would go
//! with it, and every process ends when the broker is gone.)

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::exit::Failure;

/// A process to be started: this program with a verb of its own.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    arguments: Vec<OsString>,
}

impl Process {
    /// `name` is how it is called when it fails.
    pub(super) fn new<const N: usize>(name: String, arguments: [&str; N]) -> Self {
        Self { name, arguments: arguments.iter().map(OsString::from).collect() }
    }

    pub(super) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }
}

/// The processes that run.
#[derive(Debug)]
pub(super) struct Crew {
    program: PathBuf,
    address: String,
    running: Vec<(String, Child)>,
}

impl Crew {
    pub(super) fn new(address: String) -> Result<Self, Failure> {
        Ok(Self {
            program: std::env::current_exe()
                .map_err(|error| Failure::about("cannot find this program", error))?,
            address,
            running: Vec::new(),
        })
    }

    /// Starts a process, and gives what it prints.
    pub(super) fn start(&mut self, process: Process) -> Result<ChildStdout, Failure> {
        let child = self.spawn(process, Stdio::piped())?;
        Ok(child.stdout.take().expect("it was asked for"))
    }

    /// Starts a process that prints into a file.
    pub(super) fn start_into(&mut self, process: Process, path: &Path) -> Result<(), Failure> {
        let file = File::create(path).map_err(|error| Failure::about(path.display(), error))?;
        self.spawn(process, file.into()).map(|_| ())
    }

    fn spawn(&mut self, process: Process, stdout: Stdio) -> Result<&mut Child, Failure> {
        let Process { name, arguments } = process;
        let child = Command::new(&self.program)
            .args(arguments)
            .arg("--quiet")
            .arg("--address")
            .arg(&self.address)
            .stdin(Stdio::null())
            .stdout(stdout)
            .spawn()
            .map_err(|error| Failure::about(format_args!("cannot start {name}"), error))?;
        self.running.push((name, child));
        Ok(&mut self.running.last_mut().expect("just pushed").1)
    }

    /// Waits for all to end well.
    pub(super) fn wait(mut self, deadline: Instant) -> Result<(), Failure> {
        while let Some((name, child)) = self.running.last_mut() {
            let about = |error| Failure::about(&*name, error);
            if child.try_wait().map_err(about)?.is_none()
                && !ends_before(child, deadline).map_err(about)?
            {
                return Err(Failure::about(&*name, "has not ended"));
            }
            let status = child.wait().map_err(about)?;
            if !status.success() {
                return Err(Failure::about(&*name, status));
            }
            self.running.pop();
        }
        Ok(())
    }

    /// Tells if one of them has failed.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        for (name, child) in &mut self.running {
            let ended = child.try_wait().map_err(|error| Failure::about(&*name, error))?;
            if let Some(status) = ended.filter(|status| !status.success()) {
                return Err(Failure::about(name, status));
            }
        }
        Ok(())
    }
}

/// Waits for the child's end, but not beyond the deadline; tells whether it has ended.
fn ends_before(child: &Child, deadline: Instant) -> io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(ended) => return Ok(ended > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // The senders first: they would complain of members that go.
        for (_, child) in self.running.iter_mut().rev() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
