//! Lines from standard input or a file, without ever blocking in a read.
//!
//! Invariant: a line is given out once it is whole, that is, once its newline or the end of the
//! input has been read. At most one line and one read are buffered, and a line is bounded.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

/// An input that is read as it becomes readable.
#[derive(Debug)]
pub(crate) struct Input {
    source: Source,
    buffer: Vec<u8>,
    /// Where the first line that was not given out begins.
    start: usize,
    /// Up to where the buffer holds no newline.
    searched: usize,
    ended: bool,
    read_bytes: u64,
}

#[derive(Debug)]
enum Source {
    Stdin(io::Stdin),
    File(File),
}

/// Why there is no line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoLine {
    /// Read more first.
    NotYet,
    /// There will be none.
    Ended,
    /// The line is longer than the limit; it has not been given out.
    TooLong,
}

impl Input {
    /// Opens a file, or standard input for `-` or no path.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        let source = match path {
            Some(path) if path.as_os_str() != "-" => Source::File(File::open(path)?),
            _ => Source::Stdin(io::stdin()),
        };
        Ok(Self { source, buffer: Vec::new(), start: 0, searched: 0, ended: false, read_bytes: 0 })
    }

    /// How long the input is, where that is known.
    pub(crate) fn total_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::fstat(self).ok()?;
        let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        regular.then(|| u64::try_from(stat.st_size).ok()).flatten()
    }

    /// How much has been read.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Whether the end of the input has been read.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Reads once, when the descriptor is readable. Blocks if it is not.
    pub(crate) fn fill(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        let length = self.buffer.len();
        self.buffer.resize(length + READ_BYTES, 0);
        let result = read_some(source_fd(&self.source), &mut self.buffer[length..]);
        let read = result.as_ref().map_or(0, |n| *n);
        self.buffer.truncate(length + read);
        self.ended = result? == 0;
        self.read_bytes += u64::try_from(read).expect("a read fits the address space");
        Ok(())
    }

    /// The next whole line without its newline, at most `limit` bytes long.
    pub(crate) fn next_line(&mut self, limit: usize) -> Result<&[u8], NoLine> {
        let rest = &self.buffer[self.searched..];
        let (end, next) = match rest.iter().position(|b| *b == b'\n') {
            Some(at) => (self.searched + at, self.searched + at + 1),
            None => {
                self.searched = self.buffer.len();
                let unfinished = self.buffer.len() - self.start;
                if unfinished > limit {
                    return Err(NoLine::TooLong);
                }
                if !self.ended {
                    return Err(NoLine::NotYet);
                }
                if unfinished == 0 {
                    return Err(NoLine::Ended);
                }
                (self.buffer.len(), self.buffer.len())
            }
        };
        if end - self.start > limit {
            return Err(NoLine::TooLong);
        }
        let line = self.start..end;
        self.start = next;
        self.searched = next;
        Ok(&self.buffer[line])
    }

    /// All of the input, if it is at most `limit` bytes long; `None` if it is longer.
    pub(crate) fn read_whole(self, limit: usize) -> io::Result<Option<Vec<u8>>> {
        self.read_whole_telling(limit, |_| {})
    }

    /// As [`read_whole`](Self::read_whole); `tell` hears how many bytes have been read.
    pub(crate) fn read_whole_telling(
        mut self,
        limit: usize,
        mut tell: impl FnMut(u64),
    ) -> io::Result<Option<Vec<u8>>> {
        while !self.ended {
            self.fill()?;
            tell(self.read_bytes);
            if self.buffer.len() > limit {
                return Ok(None);
            }
        }
        Ok(Some(self.buffer))
    }
}

impl AsFd for Input {
    fn as_fd(&self) -> BorrowedFd<'_> {
        source_fd(&self.source)
    }
}

fn source_fd(source: &Source) -> BorrowedFd<'_> {
    match source {
        Source::Stdin(stdin) => stdin.as_fd(),
        Source::File(file) => file.as_fd(),
    }
}

/// Somebody may have made the descriptor non-blocking, so that `AGAIN` is no end.
fn read_some(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(fd, &mut *buffer) {
            Ok(n) => return Ok(n),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_readable(fd)?,
            Err(error) => return Err(error.into()),
        }
    }
}

fn wait_readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

const READ_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn lines(text: &[u8], limit: usize) -> (Vec<Vec<u8>>, NoLine) {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text).expect("written");
        let mut input = Input::open(Some(file.path())).expect("opened");
        let mut lines = Vec::new();
        loop {
            match input.next_line(limit) {
                Ok(line) => lines.push(line.to_vec()),
                Err(NoLine::NotYet) => input.fill().expect("read"),
                Err(end) => return (lines, end),
            }
        }
    }

    #[test]
    fn each_line_is_given_out_once_empty_ones_too() {
        for (text, expected) in [
            (&b""[..], vec![]),
            (b"\n", vec![&b""[..]]),
            (b"a", vec![b"a"]),
            (b"a\n", vec![b"a"]),
            (b"a\n\nb\r\n\xff", vec![b"a", b"", b"b\r", b"\xff"]),
        ] {
            assert_eq!(
                lines(text, 10),
                (expected.iter().map(|l| l.to_vec()).collect(), NoLine::Ended)
            );
        }
    }

    #[test]
    fn lines_longer_than_a_read_are_whole() {
        let long = vec![b'x'; READ_BYTES * 2 + 5];
        let text = [&b"first\n"[..], &long, b"\nlast"].concat();
        let (lines, end) = lines(&text, 1 << 20);
        assert_eq!(end, NoLine::Ended);
        assert_eq!(lines, [b"first".to_vec(), long, b"last".to_vec()]);
    }

    #[test]
    fn a_line_at_the_limit_passes_and_one_past_it_does_not() {
        assert_eq!(lines(b"12345\n123456\n", 5), (vec![b"12345".to_vec()], NoLine::TooLong));
        assert_eq!(lines(b"12345", 5), (vec![b"12345".to_vec()], NoLine::Ended));
        assert_eq!(lines(b"123456", 5), (vec![], NoLine::TooLong));
    }

    #[test]
    fn a_whole_input_past_the_limit_is_refused() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"12345\n").expect("written");
        for (limit, expected) in [(6, Some(b"12345\n".to_vec())), (5, None)] {
            let input = Input::open(Some(file.path())).expect("opened");
            assert_eq!(input.total_bytes(), Some(6));
            assert_eq!(input.read_whole(limit).expect("read"), expected, "{limit}");
        }
    }
}
