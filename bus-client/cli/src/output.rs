//! Standard output, a line at a time.
//!
//! Invariant: a line is handed to the kernel whole before the next one is begun, and nothing is
//! kept back. So whoever reads us sees each message when it arrives, and a process that is killed
//! leaves at most one partial line, at the end.

use std::{
    io::{self, IsTerminal},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use serde::Serialize;

use crate::exit::Failure;

/// Standard output.
#[derive(Debug)]
pub(crate) struct Output {
    stdout: io::Stdout,
    line: Vec<u8>,
    quiet: bool,
}

impl Output {
    /// Notes go to standard error, unless `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { stdout: io::stdout(), line: Vec::new(), quiet }
    }

    /// Prints `value` as one line of JSON.
    pub(crate) fn json<T: Serialize>(&mut self, value: &T) -> Result<(), Failure> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, value).map_err(Failure::error)?;
        self.end_line()
    }

    /// Prints a line of text.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.line.clear();
        self.line.extend_from_slice(text.as_bytes());
        self.end_line()
    }

    /// Prints bytes as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        write_all(self.stdout.as_fd(), bytes)
    }

    /// Tells a person something that is no output.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("unisono: {text}");
        }
    }

    /// Whether a person may be shown progress.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    fn end_line(&mut self) -> Result<(), Failure> {
        self.line.push(b'\n');
        let written = write_all(self.stdout.as_fd(), &self.line);
        // One huge message must not pin its memory for ever.
        if self.line.capacity() > KEPT_BYTES {
            self.line = Vec::new();
        }
        written
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stdout.as_fd()
    }
}

/// Writes to the descriptor itself: `std`'s line buffer would split long lines, and a pipe that
/// somebody made non-blocking must not lose the rest of one.
fn write_all(out: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Failure> {
    while !bytes.is_empty() {
        match rustix::io::write(out, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_writable(out)?,
            Err(error) => return Err(failure(error)),
        }
    }
    Ok(())
}

fn wait_writable(out: BorrowedFd<'_>) -> Result<(), Failure> {
    let mut fds = [PollFd::from_borrowed_fd(out, PollFlags::OUT)];
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(failure(error)),
    }
}

fn failure(error: Errno) -> Failure {
    if error == Errno::PIPE {
        Failure::ClosedPipe
    } else {
        Failure::about("standard output", io::Error::from(error))
    }
}

/// Memory kept between lines.
const KEPT_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use rustix::{fs::OFlags, pipe::pipe};

    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_closed_pipe_ends_quietly_with_0() {
        let (reader, writer) = pipe().expect("a pipe");
        drop(reader);
        let failure = write_all(writer.as_fd(), b"x").expect_err("nobody reads");
        assert_eq!(failure.exit(), Exit::Done);
        assert!(matches!(failure, Failure::ClosedPipe));
    }

    #[test]
    fn a_full_non_blocking_pipe_loses_nothing() {
        let (reader, writer) = pipe().expect("a pipe");
        rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK).expect("set");
        let sent = vec![b'x'; 1 << 20];
        let copy = sent.clone();
        let thread = std::thread::spawn(move || write_all(writer.as_fd(), &copy).is_ok());
        let mut got = Vec::new();
        io::Read::read_to_end(&mut std::fs::File::from(reader), &mut got).expect("read");
        assert!(thread.join().expect("joins"));
        assert_eq!(got, sent);
    }
}
