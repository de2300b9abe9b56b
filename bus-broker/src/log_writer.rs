//! Lines of the log on their way to standard error, written by a thread of their own.
//!
//! Invariant: who logs never waits for who reads the log. A line is copied into a buffer of at most
//! [`BUFFER`] bytes under a lock that is held for such copies and nothing else, or it is lost and
//! counted; only the writer's thread enters the kernel. So a pipe that nobody reads, a terminal that
//! stands, a file on a disk that hangs or is full cost lines and nothing else.
//!
//! Once a line is lost, all that follow are lost until the writer has taken the buffer. So what was
//! lost is one gap between two lines, and a line of its own says there how many it was; it comes as
//! soon as somebody reads again. Lines that the system refuses to take (a full disk) count as lost
//! too.
//!
//! The thread is started apart ([`LogWriter::start`]), because it is to live in the sandbox; until
//! then lines lie in the buffer. What is in it when the program ends is written within
//! [`LAST_WORDS`], or by nobody.
//!
//! Not `tracing-appender`: it counts lines and not bytes, starts its thread when it is made, and
//! does not say where something was lost.

use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::stderr;
use tracing::Dispatch;
use tracing_subscriber::fmt::MakeWriter;

use crate::tally::Counter;

/// The log of this process, which writes what is logged. Dropping it waits a moment for what has
/// not been written yet.
#[derive(Debug)]
#[must_use = "dropped, it writes what there is and then nothing more"]
pub struct LogWriter {
    queue: Arc<Queue>,
    /// Writes at once; for what the writer's thread has to say itself.
    direct: Dispatch,
    is_started: bool,
}

/// Where lines wait.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    lines: Mutex<Lines>,
    /// There is something to write, or nothing any more.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Lost behind `bytes`, and not told.
    lost: u64,
    /// The writer has some in its hands.
    is_writing: bool,
}

/// How many lines this process has lost. Of the process, as standard error is.
static LOST: Counter = Counter::new();

/// How many lines of the log could not be written.
pub(crate) fn lost() -> u64 {
    LOST.get()
}

impl LogWriter {
    pub(crate) fn new(queue: Arc<Queue>, direct: Dispatch) -> Self {
        Self { queue, direct, is_started: false }
    }

    /// Starts the thread that writes.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn start(&mut self) -> io::Result<()> {
        let (queue, direct) = (Arc::clone(&self.queue), self.direct.clone());
        let work = move || {
            loop {
                queue.write_some(&direct);
            }
        };
        thread::Builder::new().name("bus-log".to_owned()).spawn(work)?;
        self.is_started = true;
        Ok(())
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        let mut lines = self.queue.lines();
        if !self.is_started && !lines.is_done() && stderr_takes_some(LAST_WORDS) {
            drop(lines);
            return self.queue.write_some(&self.direct);
        }
        // Its thread writes them, and it may be that nobody takes them.
        if self.is_started {
            let patience = LAST_WORDS;
            let waited =
                self.queue.changed.wait_timeout_while(lines, patience, |lines| !lines.is_done());
            lines = waited.expect(UNPOISONED).0;
        }
        drop(lines);
    }
}

impl Queue {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().expect(UNPOISONED)
    }

    /// Keeps a line, or counts it as lost. Never blocks for longer than a copy.
    fn put(&self, line: &[u8]) {
        let mut lines = self.lines();
        if lines.lost > 0 || lines.bytes.len() + line.len() > BUFFER {
            lines.lost += 1;
            LOST.add(1);
            return;
        }
        let was_done = lines.is_done();
        lines.bytes.extend_from_slice(line);
        drop(lines);
        if was_done {
            self.changed.notify_all();
        }
    }

    /// Waits until there is something, and writes it, however long that takes.
    fn write_some(&self, direct: &Dispatch) {
        let lines = self.lines();
        let mut lines = self.changed.wait_while(lines, |lines| lines.is_done()).expect(UNPOISONED);
        let bytes = mem::take(&mut lines.bytes);
        let lost = mem::take(&mut lines.lost);
        lines.is_writing = true;
        drop(lines);
        let unwritten = write_out(&bytes);
        LOST.add(unwritten);
        if lost > 0 {
            tracing::dispatcher::with_default(direct, || {
                tracing::warn!(lost, "lines of the log are missing here: nobody took them in time");
            });
        }
        self.lines().is_writing = false;
        self.changed.notify_all();
    }
}

impl Lines {
    fn is_done(&self) -> bool {
        self.bytes.is_empty() && self.lost == 0 && !self.is_writing
    }
}

/// Writes to standard error, and says how many lines it did not take.
fn write_out(mut bytes: &[u8]) -> u64 {
    while !bytes.is_empty() {
        match rustix::io::write(stderr(), bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // Somebody has made it non-blocking for all who have it.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&stderr(), PollFlags::OUT)], None);
            }
            Err(_) => return bytes.iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
    0
}

/// Whether a short line can be written to standard error, within so long.
pub fn stderr_takes_some(patience: Duration) -> bool {
    let patience = patience.try_into().ok();
    let stderr = stderr();
    let mut asked = [PollFd::new(&stderr, PollFlags::OUT)];
    poll(&mut asked, patience.as_ref()).is_ok_and(|ready| ready > 0)
}

/// What the subscriber writes to: a line comes in one call.
#[derive(Debug)]
pub(crate) struct Line<'a>(&'a Queue);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// As [`Queue`], for a subscriber.
#[derive(Clone, Debug)]
pub(crate) struct Queued(pub(crate) Arc<Queue>);

impl<'a> MakeWriter<'a> for Queued {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(&self.0)
    }
}

/// The lines that wait; as many again may be in the writer's hands.
const BUFFER: usize = 128 << 10;
/// How long the end of the program waits for the end of its log.
pub const LAST_WORDS: Duration = Duration::from_secs(1);
const UNPOISONED: &str = "nothing that can panic runs under this lock";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g8_what_nobody_writes_is_bounded_and_lost_in_one_piece() {
        let queue = Queue::default();
        let long = vec![b'x'; BUFFER / 4];
        for _ in 0..4 {
            queue.put(&long);
        }
        let before = lost();
        queue.put(b"one too many\n");
        // It would have room, were there no gap before it.
        queue.lines().bytes.truncate(10);
        queue.put(b"short\n");
        let lines = queue.lines();
        assert_eq!((lines.bytes.len(), lines.lost), (10, 2));
        assert!(lost() >= before + 2);
    }
}
