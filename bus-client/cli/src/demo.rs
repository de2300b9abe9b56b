//! `unisono demo`: the main job with nothing prepared.
//!
//! A broker in this process; several processes of this very program that listen, and several that
//! send the lines of a text, all at the same time. At the end each listener's message lines have
//! one SHA-256, because there is one order (G2) and nothing is missing (G1), and `verify` agrees.
//!
//! Reading order: here the plan; `crew` holds the processes; `traces` the files and digests.

mod crew;
mod traces;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::ChildStdout,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use bus_client::EmbeddedBroker;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::{
    crew::{Crew, Process},
    traces::{Folder, Summary},
};
use crate::{
    cli,
    exit::{Exit, Failure},
    output::Output,
    signals::Signals,
    verify,
};

/// Runs the demonstration; the status is 0 only if all digests are equal and `verify` agrees.
pub(crate) fn run(
    options: &cli::Demo,
    signals: Signals,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let plan = Plan::new(options)?;
    let (events, arrivals) = mpsc::channel();
    watch_signals(signals, events.clone())?;
    let broker = EmbeddedBroker::start()?;
    output.line(&format!(
        "{} members, {} senders, {} messages each: {} deliveries",
        options.members,
        options.senders,
        options.messages,
        plan.total * options.members,
    ))?;

    let started = Instant::now();
    let heard = Arc::new(AtomicU64::new(0));
    // Dropped last, when the processes have ended and so have their outputs.
    let mut recorders = Recorders::default();
    let mut crew = Crew::new(broker.address().to_owned())?;
    for number in 1..=options.members {
        let stdout = crew.start(listener(&plan, number))?;
        recorders.start(number, stdout, &plan.folder, &heard, &events)?;
    }
    for number in 1..=options.senders {
        let receipts = plan.folder.receipts(number);
        crew.start_into(sender(options, &plan, number), &receipts)?;
    }
    drop(events);

    let progress = progress(output, plan.total * options.members);
    let deadline = started + options.timeout;
    let mut look = || {
        progress.set_position(heard.load(Ordering::Relaxed));
        crew.check()
    };
    let summaries = match collect(&plan, options, &arrivals, deadline, &mut look) {
        Ok(summaries) => summaries,
        // An interrupt is no failure; the processes and the folder go with their owners.
        Err(Stop::Interrupted) => return Ok(Exit::Done),
        Err(Stop::Failed(failure)) => return Err(failure),
    };
    crew.wait(deadline)?;
    broker.shutdown();
    progress.finish_and_clear();
    conclude(options, &plan, &summaries, started.elapsed(), output)
}

/// The threads that record what the members print. They hold the folder, and it is removed only
/// if they have ended when the program does.
#[derive(Debug, Default)]
struct Recorders(Vec<thread::JoinHandle<()>>);

impl Recorders {
    fn start(
        &mut self,
        number: u64,
        stdout: ChildStdout,
        folder: &Folder,
        heard: &Arc<AtomicU64>,
        events: &mpsc::Sender<Happened>,
    ) -> Result<(), Failure> {
        let (folder, heard, events) = (folder.clone(), Arc::clone(heard), events.clone());
        let recorder = thread::Builder::new()
            .name(format!("member {number}"))
            .spawn(move || {
                let summary = folder.record(number, stdout, &heard);
                // Nobody listens any more once the demonstration has failed.
                let _ = events.send(Happened::Recorded(summary));
            })
            .map_err(|error| Failure::about("cannot start a thread", error))?;
        self.0.push(recorder);
        Ok(())
    }
}

impl Drop for Recorders {
    fn drop(&mut self) {
        for recorder in self.0.drain(..) {
            // One that panicked has said so itself.
            let _ = recorder.join();
        }
    }
}

/// What was prepared.
#[derive(Debug)]
struct Plan {
    folder: Folder,
    input: PathBuf,
    /// Messages of all senders together.
    total: u64,
}

impl Plan {
    fn new(options: &cli::Demo) -> Result<Self, Failure> {
        let folder = Folder::new(options.traces.as_deref())?;
        let text = match &options.file {
            Some(path) => fs::read(path).map_err(|error| Failure::about(path.display(), error))?,
            None => TEXT.as_bytes().to_owned(),
        };
        let input = folder.input();
        write_lines(&input, &text, options.messages)?;
        Ok(Self { folder, input, total: options.messages * options.senders })
    }
}

/// Writes as many lines as a sender sends, the text repeated as often as that takes.
fn write_lines(path: &Path, text: &[u8], count: u64) -> Result<(), Failure> {
    let about = |error| Failure::about(path.display(), error);
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let lines = text.split(|byte| *byte == b'\n').cycle();
    let mut file = BufWriter::new(fs::File::create(path).map_err(about)?);
    for line in lines.take(usize::try_from(count).map_err(Failure::error)?) {
        file.write_all(line).map_err(about)?;
        file.write_all(b"\n").map_err(about)?;
    }
    file.flush().map_err(about)
}

fn listener(plan: &Plan, number: u64) -> Process {
    Process::new(format!("member {number}"), ["listen", GROUP, "--json", "--count"])
        .arg(plan.total.to_string())
}

fn sender(options: &cli::Demo, plan: &Plan, number: u64) -> Process {
    Process::new(format!("sender {number}"), ["send", GROUP, "--json", "--lines", "--wait-members"])
        .arg(options.members.to_string())
        .arg("--file")
        .arg(&plan.input)
}

/// What the main thread waits for.
#[derive(Debug)]
enum Happened {
    /// A member's output has ended.
    Recorded(Result<Summary, Failure>),
    /// SIGINT or SIGTERM.
    Interrupted,
}

#[derive(Debug)]
enum Stop {
    Interrupted,
    Failed(Failure),
}

fn watch_signals(signals: Signals, events: mpsc::Sender<Happened>) -> Result<(), Failure> {
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if signals.wait().is_ok() {
                let _ = events.send(Happened::Interrupted);
            }
        })
        .map(|_| ())
        .map_err(|error| Failure::about("cannot start a thread", error))
}

/// Waits until every member's output has ended; has a `look` at things meanwhile.
fn collect(
    plan: &Plan,
    options: &cli::Demo,
    arrivals: &mpsc::Receiver<Happened>,
    deadline: Instant,
    look: &mut impl FnMut() -> Result<(), Failure>,
) -> Result<Vec<Summary>, Stop> {
    let mut summaries = Vec::new();
    while u64::try_from(summaries.len()).is_ok_and(|n| n < options.members) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let timeout = options.timeout;
            let failure = Failure::error(format_args!("not done within {timeout:?}"));
            return Err(Stop::Failed(failure));
        }
        match arrivals.recv_timeout(left.min(REDRAW)) {
            Ok(Happened::Recorded(summary)) => {
                summaries.push(whole(summary, plan).map_err(Stop::Failed)?);
            }
            Ok(Happened::Interrupted) => return Err(Stop::Interrupted),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                unreachable!("the signal thread holds a sender")
            }
        }
        look().map_err(Stop::Failed)?;
    }
    summaries.sort_by_key(|summary| summary.number);
    Ok(summaries)
}

/// A member's summary, if it received all messages.
fn whole(summary: Result<Summary, Failure>, plan: &Plan) -> Result<Summary, Failure> {
    let summary = summary?;
    let Summary { number, messages, .. } = summary;
    if messages == plan.total {
        return Ok(summary);
    }
    let total = plan.total;
    Err(Failure::error(format_args!("member {number} ended after {messages} of {total} messages")))
}

fn conclude(
    options: &cli::Demo,
    plan: &Plan,
    summaries: &[Summary],
    took: Duration,
    output: &mut Output,
) -> Result<Exit, Failure> {
    for line in table(summaries).lines() {
        output.line(&line)?;
    }
    let receipts: Vec<_> = (1..=options.senders).map(|n| plan.folder.receipts(n)).collect();
    let report = verify::verify(&plan.folder.whole_traces(options.members), &receipts)?;
    output.bytes(format!("verify: {report}").as_bytes())?;
    if let Some(dir) = &options.traces {
        let dir = dir.display();
        output.line(&format!("look yourself: sha256sum {dir}/*.jsonl"))?;
        output.line(&format!(
            "               unisono verify {dir}/*.jsonl --sends {dir}/{}/*.jsonl",
            traces::SENDS
        ))?;
    }
    let digests: BTreeSet<_> = summaries.iter().map(|s| &s.sha256).collect();
    if digests.len() == 1 {
        let (n, took) = (summaries.len(), took.as_secs_f64());
        output.line(&format!("one order: all {n} digests are equal, after {took:.1} s"))?;
    } else {
        output.line(&format!("{} different digests", digests.len()))?;
    }
    Ok(match (report.is_clean(), digests.len()) {
        (true, 1) => Exit::Done,
        (false, _) => Exit::Violation,
        (true, _) => Exit::Error,
    })
}

fn table(summaries: &[Summary]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header([
            "member",
            "messages",
            "seconds",
            "per second",
            "SHA-256 of its message lines",
        ]);
    for summary in summaries {
        let seconds = summary.took.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "for a person's eyes")]
        let rate = summary.messages as f64 / seconds.max(1e-9);
        table.add_row([
            summary.number.to_string(),
            summary.messages.to_string(),
            format!("{seconds:.3}"),
            format!("{rate:.0}"),
            summary.sha256.clone(),
        ]);
    }
    for column in table.column_iter_mut().take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn progress(output: &Output, total: u64) -> ProgressBar {
    if !output.shows_progress() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} deliveries, {per_sec}")
        .expect("the template is well-formed");
    ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style)
}

const GROUP: &str = "org.unisono.Demo";

/// How often progress is redrawn.
const REDRAW: Duration = Duration::from_millis(100);

/// What is sent unless `--file` says otherwise.
const TEXT: &str = include_str!("../demo/the-ferry.txt");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_that_comes_along_is_of_some_length_and_plain() {
        assert!(TEXT.lines().count() >= 200, "{}", TEXT.lines().count());
        assert!(TEXT.lines().all(|line| line.len() <= 100 && !line.contains('\t')));
    }

    #[test]
    fn the_text_is_repeated_to_as_many_lines_as_are_sent() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("input");
        write_lines(&path, b"a\n\nb\n", 5).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), "a\n\nb\na\n\n");
        write_lines(&path, b"", 2).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), "\n\n");
    }

    #[test]
    fn the_table_has_a_row_for_each_member_with_its_whole_digest() {
        let summary = Summary {
            number: 1,
            messages: 1_000,
            took: Duration::from_millis(500),
            sha256: "ab".repeat(32),
        };
        let text = table(&[summary]).to_string();
        assert!(text.contains(&"ab".repeat(32)) && text.contains("2000"), "{text}");
    }
}
