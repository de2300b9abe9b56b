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
    path::{Path, PathBuf},
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
    let mut crew = Crew::new(broker.address().to_owned())?;
    let heard = Arc::new(AtomicU64::new(0));
    for number in 1..=options.members {
        let stdout = crew.start(listener(&plan, number))?;
        let (folder, heard, events) = (plan.folder.clone(), Arc::clone(&heard), events.clone());
        thread::Builder::new()
            .name(format!("member {number}"))
            .spawn(move || {
                let summary = folder.record(number, stdout, &heard);
                // Nobody listens any more once the demonstration has failed.
                let _ = events.send(Happened::Recorded(number, summary));
            })
            .map_err(|error| Failure::about("cannot start a thread", error))?;
    }
    for number in 1..=options.senders {
        crew.start_into(
            sender(options, &plan, number),
            &plan.folder.receipts(number),
        )?;
    }
    drop(events);

    let progress = progress(output, plan.total * options.members);
    let deadline = started + options.timeout;
    let summaries = match collect(&plan, options, &arrivals, &heard, &progress, deadline) {
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
            Some(path) => {
                fs::read_to_string(path).map_err(|error| Failure::about(path.display(), error))?
            }
            None => TEXT.to_owned(),
        };
        let input = folder.input();
        write_lines(&input, &text, options.messages)?;
        Ok(Self {
            folder,
            input,
            total: options.messages * options.senders,
        })
    }
}

/// Writes as many lines as a sender sends, the text repeated as often as that takes.
fn write_lines(path: &Path, text: &str, count: u64) -> Result<(), Failure> {
    let about = |error| Failure::about(path.display(), error);
    if text.is_empty() {
        return Err(Failure::error("the text has no lines"));
    }
    let mut file = std::io::BufWriter::new(fs::File::create(path).map_err(about)?);
    let count = usize::try_from(count).map_err(Failure::error)?;
    for line in text.lines().cycle().take(count) {
        std::io::Write::write_all(&mut file, line.as_bytes()).map_err(about)?;
        std::io::Write::write_all(&mut file, b"\n").map_err(about)?;
    }
    std::io::Write::flush(&mut file).map_err(about)
}

fn listener(plan: &Plan, number: u64) -> Process {
    Process::new(
        format!("member {number}"),
        ["listen", GROUP, "--json", "--count"],
    )
    .arg(plan.total.to_string())
}

fn sender(options: &cli::Demo, plan: &Plan, number: u64) -> Process {
    Process::new(
        format!("sender {number}"),
        ["send", GROUP, "--json", "--lines", "--wait-members"],
    )
    .arg(options.members.to_string())
    .arg("--file")
    .arg(&plan.input)
}

/// What the main thread waits for.
#[derive(Debug)]
enum Happened {
    /// A member's output has ended.
    Recorded(u64, Result<Summary, Failure>),
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

/// Waits until every member's output has ended.
fn collect(
    plan: &Plan,
    options: &cli::Demo,
    arrivals: &mpsc::Receiver<Happened>,
    heard: &AtomicU64,
    progress: &ProgressBar,
    deadline: Instant,
) -> Result<Vec<Summary>, Stop> {
    let mut summaries = Vec::new();
    let failed = |text: String| Stop::Failed(Failure::error(text));
    while u64::try_from(summaries.len()).is_ok_and(|n| n < options.members) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let heard = heard.load(Ordering::Relaxed);
            return Err(failed(format!(
                "not done within {:?}: {heard} deliveries",
                options.timeout
            )));
        }
        match arrivals.recv_timeout(left.min(REDRAW)) {
            Ok(Happened::Recorded(number, summary)) => {
                let summary = summary.map_err(Stop::Failed)?;
                if summary.messages != plan.total {
                    let (got, total) = (summary.messages, plan.total);
                    return Err(failed(format!(
                        "member {number} ended after {got} of {total} messages"
                    )));
                }
                summaries.push(summary);
            }
            Ok(Happened::Interrupted) => return Err(Stop::Interrupted),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                unreachable!("the signal thread holds a sender")
            }
        }
        progress.set_position(heard.load(Ordering::Relaxed));
    }
    summaries.sort_by_key(|summary| summary.number);
    Ok(summaries)
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
    let receipts: Vec<_> = (1..=options.senders)
        .map(|n| plan.folder.receipts(n))
        .collect();
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
        output.line(&format!(
            "one order: all {n} digests are equal, after {took:.1} s"
        ))?;
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
        assert!(
            TEXT.lines()
                .all(|line| line.len() <= 100 && !line.contains('\t'))
        );
    }

    #[test]
    fn the_text_is_repeated_to_as_many_lines_as_are_sent() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("input");
        write_lines(&path, "a\n\nb", 5).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), "a\n\nb\na\n\n");
        assert!(write_lines(&path, "", 5).is_err());
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
        assert!(
            text.contains(&"ab".repeat(32)) && text.contains("2000"),
            "{text}"
        );
    }
}
