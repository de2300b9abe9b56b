//! `unisono bench`: how fast the bus is, beside its peers, and whether it kept its word meanwhile.
//!
//! Reading order: [`mod@plan`] says what a run is; [`mod@system`] what is measured; [`mod@stage`] performs a
//! run with [`process`]es that are [`worker`]s; [`client`] has the least that each system needs to
//! be spoken to, [`relay`] the naive broker; [`shared`], [`stamp`] and [`record`] are what workers
//! count with, [`reading`] what they do with large payloads; [`report`] makes figures of it, [`large`]
//! those of large payloads; [`local`] does without processes.
//!
//! Invariant: the systems of one comparison are run in turn, and each run begins at another of
//! them, so what disturbs the machine for a while disturbs all of them alike.

mod client;
mod large;
mod local;
mod options;
mod plan;
mod process;
mod reading;
mod record;
mod relay;
mod report;
mod shared;
mod stage;
mod stamp;
mod system;
mod turns;
mod worker;

use std::{io, path::PathBuf};

use clap::ValueEnum as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub(crate) use options::{NOTES, Options, WorkerOptions};

use self::{
    large::Beside,
    options::{Peer, Transport},
    plan::{Limit, LimitsOf, Plan, Reading, Workload},
    report::Figures,
    stage::Outcome,
    system::System,
};
use crate::{
    exit::{Exit, Failure},
    output::Output,
    signals::Notice,
};

/// Measures, and prints what it found.
pub(crate) fn run(
    options: &Options,
    notice: &Notice,
    output: &mut Output,
) -> Result<Exit, Failure> {
    notice.ask();
    let mut systems = systems(options, output);
    systems.retain(|system| fits(*system, options, output));
    let large = options.workload == Workload::Large && !options.in_process;
    let readings = match large {
        true => options.reading.iter().copied().map(Some).collect(),
        false => vec![None],
    };
    let all = readings.iter().flat_map(|reading| systems.iter().map(move |s| (*s, *reading)));
    let mut plans: Vec<Plan> = all.map(|(system, how)| plan(options, system, how)).collect();
    check(options, &plans[0])?;
    let beside = large.then(|| Beside::new(&mut plans));
    let mut outcomes = measure(options, &plans, notice, output)?;
    let beside = beside.map(|beside| beside.figures(&mut plans, &mut outcomes));
    let transport = |plan: &Plan| match options.in_process {
        true => "in-process",
        false => plan.system.transport(),
    };
    let measured = plans.iter().zip(&outcomes);
    let mut all: Vec<Figures> = measured
        .filter(|(_, outcomes)| !outcomes.is_empty())
        .map(|(plan, outcomes)| Figures::new(plan, transport(plan), outcomes))
        .collect();
    let comparisons = all.chunk_by_mut(|one, next| one.reading() == next.reading());
    comparisons.for_each(report::compare);
    if let Some(beside) = &beside {
        all.iter_mut().for_each(|figures| figures.add(beside));
    }
    if options.json {
        output.json(&all)?;
    } else {
        output.line(&title(&plans[0], options))?;
        for of_one in all.chunk_by(|one, next| one.reading() == next.reading()) {
            if let Some(reading) = of_one[0].reading() {
                output.line(&format!("{reading}:"))?;
            }
            output.line(&report::table(of_one).to_string())?;
        }
        if let Some(beside) = &beside {
            output.line(&beside.told())?;
        }
    }
    let broken: Vec<&str> =
        all.iter().filter(|figures| figures.is_broken()).map(Figures::system).collect();
    if broken.is_empty() {
        return Ok(Exit::Done);
    }
    Err(Failure::error(format_args!("order or completeness did not hold: {}", broken.join(", "))))
}

/// What a process does that `bench` has started.
pub(crate) fn work(options: &WorkerOptions) -> Result<Exit, Failure> {
    worker::run(&options.command, &options.pin)?;
    Ok(Exit::Done)
}

/// Ours first, then the peers that were asked for and are there.
fn systems(options: &Options, output: &Output) -> Vec<System> {
    let mut systems = Vec::new();
    for transport in &options.transport {
        let system = match transport {
            Transport::Socket => System::Unisono,
            Transport::Ring => System::UnisonoRing,
        };
        if !systems.contains(&system) {
            systems.push(system);
        }
    }
    let asked = options.peer.iter().flat_map(|peer| match peer {
        Peer::One(system) => std::slice::from_ref(system),
        Peer::All => System::value_variants(),
    });
    for system in asked {
        if systems.contains(system) {
            continue;
        }
        match system.missing() {
            None => systems.push(*system),
            Some(why) => output.note(&format!("{}: {why}", system.name())),
        }
    }
    systems
}

fn fits(system: System, options: &Options, output: &Output) -> bool {
    let size = size(options);
    match system.cannot(options.workload, size) {
        None => true,
        Some(why) => {
            let (name, workload) = (system.name(), options.workload.name());
            output.note(&format!("{name}: not measured with {workload}: {why}"));
            false
        }
    }
}

fn plan(options: &Options, system: System, reading: Option<Reading>) -> Plan {
    let workload = options.workload;
    let (senders, receivers) = workload.default_counts();
    let given = |given: Option<u16>, default| given.map_or(default, usize::from);
    let (senders, receivers) = match workload {
        Workload::Rtt => (1, 1),
        Workload::Connect => (given(options.senders, senders), 0),
        _ => (given(options.senders, senders), given(options.receivers, receivers)),
    };
    let nanoseconds = u64::try_from(options.seconds.as_nanos()).unwrap_or(u64::MAX);
    Plan {
        system,
        workload,
        senders,
        receivers,
        size: size(options),
        batch: match workload {
            Workload::Fanout | Workload::Fanin | Workload::Large | Workload::Filter => {
                usize::from(options.batch)
            }
            _ => 1,
        },
        limits: match workload {
            Workload::Fair => LimitsOf::Default,
            _ => options.limits,
        },
        limit: options.count.map_or(Limit::Nanoseconds(nanoseconds), Limit::Count),
        pin: options.pin.as_ref().map_or_else(Vec::new, |pin| pin.0.clone()),
        slow: usize::from(options.slow),
        reading,
        flagged: workload == Workload::Large && system.is_ours() && !options.in_process,
        apart: false,
        dir: PathBuf::new(),
        port: 0,
    }
}

fn size(options: &Options) -> usize {
    let given = options.size.map(|size| size as usize);
    given.unwrap_or_else(|| options.workload.default_size())
}

fn check(options: &Options, plan: &Plan) -> Result<(), Failure> {
    let usage = |text: &str| Err(Failure::new(Exit::Usage, text));
    let name = plan.workload.name();
    if plan.workload == Workload::Lockstep && plan.senders != 1 {
        return usage("lockstep has one sender");
    }
    if plan.slow > 0 && plan.workload != Workload::Fair {
        return usage("--slow is for fair");
    }
    if plan.slow > plan.receivers {
        return usage("--slow counts some of the receivers");
    }
    if plan.workload == Workload::Fair && plan.senders > plan.receivers {
        return usage("fair has at most as many small senders as receivers");
    }
    if plan.workload == Workload::Filter && plan.senders > plan.receivers {
        return usage("filter has at least one receiver for each sender");
    }
    if let Some(why) = local::cannot(plan.workload).filter(|_| options.in_process) {
        return usage(&format!("{name} has no --in-process: {why}"));
    }
    if options.batch > 1 && plan.batch == 1 {
        return usage(&format!("{name} has nothing to batch"));
    }
    Ok(())
}

/// The outcomes of each plan's runs. A peer that cannot be run is left out, and said so.
fn measure(
    options: &Options,
    plans: &[Plan],
    notice: &Notice,
    output: &Output,
) -> Result<Vec<Vec<Outcome>>, Failure> {
    let runs = usize::from(options.runs);
    let progress = progress(output, runs * plans.len());
    let mut outcomes: Vec<Vec<Outcome>> = plans.iter().map(|_| Vec::new()).collect();
    let mut failed = vec![false; plans.len()];
    for run in 0..runs {
        for turn in 0..plans.len() {
            let index = (run + turn) % plans.len();
            let plan = &plans[index];
            let name = plan.system.name();
            progress.set_message(format!("{name}, run {}", run + 1));
            if !failed[index] {
                let outcome = match options.in_process {
                    true => local::run(plan),
                    false => stage::run(plan, notice),
                };
                match outcome {
                    Ok(outcome) => outcomes[index].push(outcome),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                        // The user wants no more: as quiet an end as that of a closed pipe.
                        return Err(Failure::ClosedPipe);
                    }
                    Err(error) if plan.system.is_ours() => {
                        return Err(Failure::about(name, error));
                    }
                    Err(error) => {
                        failed[index] = true;
                        outcomes[index].clear();
                        progress.suspend(|| {
                            output.note(&format!("{name} is left out: {error}"));
                        });
                    }
                }
            }
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    Ok(outcomes)
}

fn progress(output: &Output, runs: usize) -> ProgressBar {
    if !output.shows_progress() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left")
        .expect("the template is well-formed");
    ProgressBar::with_draw_target(Some(runs as u64), ProgressDrawTarget::stderr()).with_style(style)
}

fn title(plan: &Plan, options: &Options) -> String {
    let what = match plan.workload {
        Workload::Connect => format!("{} processes that connect", plan.senders),
        Workload::Idle => format!("{} connections", plan.receivers),
        Workload::Fair => format!(
            "a fan-out sender among {} small ones to {} receivers ({} slow), {} bytes",
            plan.senders, plan.receivers, plan.slow, plan.size
        ),
        Workload::Filter => format!(
            "{} streams, each wanted by its part of {} receivers, {} bytes, {} a write",
            plan.senders, plan.receivers, plan.size, plan.batch
        ),
        _ => format!(
            "{} to {}, {} bytes, {} a write",
            plan.senders, plan.receivers, plan.size, plan.batch
        ),
    };
    let limits = plan.limits.name();
    let medians = match options.runs {
        1 => "1 run".to_owned(),
        runs => format!("medians of {runs} runs"),
    };
    format!("{}: {what}, {limits} limits; {medians}", plan.workload.name())
}
