//! Processes that send lines for as long as a test wants them to.
//!
//! They do not end by themselves, so whatever happens meanwhile happens in mid-stream, however fast
//! or slow the machine is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::broker::Broker;
use crate::deadline::eventually;
use crate::process::{Ended, Process};

/// Several processes `send --lines`, fed by a thread each.
#[derive(Debug)]
pub struct Senders {
    running: Vec<Sender>,
    enough: Arc<AtomicBool>,
}

/// One of them.
#[derive(Debug)]
struct Sender {
    number: usize,
    process: Process,
    feed: JoinHandle<u64>,
    receipts: PathBuf,
}

/// What one of them has sent.
#[derive(Debug)]
pub struct Sent {
    /// All lines that it was given.
    pub lines: Vec<String>,
    /// Its receipts, as `send --json` printed them.
    pub receipts: PathBuf,
}

impl Senders {
    /// Starts so many processes that send to `group`.
    #[must_use]
    pub fn start(broker: &Broker, group: &str, count: usize) -> Self {
        Self::with(broker, &format!("{group} --lines"), count)
    }

    /// Starts so many processes with this line of arguments.
    #[must_use]
    pub fn with(broker: &Broker, line: &str, count: usize) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let start = |number| {
            let receipts = broker.file(&format!("receipts.{number}"));
            let launch = broker.unisono("send --json").line(line).input_piped();
            let mut process = launch.output_to(&receipts).start();
            let enough = Arc::clone(&enough);
            let lines = (0_u64..)
                .take_while(move |_| !enough.load(Ordering::Relaxed))
                .map(move |line| text(number, line));
            let feed = process.feed(lines);
            Sender { number, process, feed, receipts }
        };
        Self { running: (0..count).map(start).collect(), enough }
    }

    /// Takes one out and kills it, in mid-stream: it has had a receipt. (Another may have had none, if what
    /// there was room for was taken before it began.)
    pub fn kill_one(&mut self) -> Sent {
        let has_receipt =
            |sender: &Sender| fs::metadata(&sender.receipts).is_ok_and(|file| file.len() > 0);
        let number = eventually("a receipt", || {
            self.running.iter().position(has_receipt).ok_or_else(|| "no sender has one".to_owned())
        });
        let mut sender = self.running.remove(number);
        assert!(sender.process.runs());
        let ended = sender.process.end_by(nix::sys::signal::Signal::SIGKILL);
        let _ = ended.killed_by(nix::sys::signal::Signal::SIGKILL);
        Sent { lines: lines(sender.number, sender.feed.join().unwrap()), receipts: sender.receipts }
    }

    /// Gives them no more lines, and waits for each to have sent what it was given.
    #[must_use]
    #[track_caller]
    pub fn end(self) -> Vec<Sent> {
        let (sent, ended): (Vec<Sent>, Vec<Ended>) = self.stop().into_iter().unzip();
        for ended in ended {
            let _ = ended.with(0);
        }
        sent
    }

    /// As [`end`](Self::end), however they end.
    #[must_use]
    #[track_caller]
    pub fn stop(self) -> Vec<(Sent, Ended)> {
        self.enough.store(true, Ordering::Relaxed);
        let stop = |sender: Sender| {
            // Its standard input ends when the thread does, which the process's going on allows.
            let ended = sender.process.end();
            let written = sender.feed.join().unwrap();
            let sent = Sent { lines: lines(sender.number, written), receipts: sender.receipts };
            (sent, ended)
        };
        self.running.into_iter().map(stop).collect()
    }
}

/// All lines of all of them, for [`crate::trace::assert_streams`].
#[must_use]
pub fn all_lines(sent: &[Sent]) -> Vec<Vec<String>> {
    sent.iter().map(|sent| sent.lines.clone()).collect()
}

/// Asks `unisono verify` about traces and receipts.
///
/// # Panics
///
/// It found a violation.
#[track_caller]
pub fn verify<'a>(
    broker: &Broker,
    traces: impl IntoIterator<Item = &'a Path>,
    receipts: impl IntoIterator<Item = &'a Path>,
) {
    let mut launch = broker.unisono("verify");
    for trace in traces {
        launch = launch.arg(trace);
    }
    let mut receipts = receipts.into_iter().peekable();
    if receipts.peek().is_some() {
        launch = launch.arg("--sends");
    }
    for path in receipts {
        launch = launch.arg(path);
    }
    let _ = launch.run().with(0);
}

/// The text of a line, different for each sender; now and then it is empty, and now and then long.
#[must_use]
pub fn text(sender: usize, line: u64) -> String {
    match line % 100 {
        42 => String::new(),
        77 => format!("{sender} {line} {}", "long ".repeat(200)),
        _ => format!("{sender} {line}"),
    }
}

/// The first so many lines of a sender.
#[must_use]
pub fn lines(sender: usize, count: u64) -> Vec<String> {
    (0..count).map(|line| text(sender, line)).collect()
}
