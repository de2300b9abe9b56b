//! Bad luck, a lot of it, and what is left at the end.
//!
//! One broker lives through all trials, one after the other, while two listeners and a sender that
//! have nothing to do with any of it go about their business on a group of their own. At the end
//! their histories are verified (order, duplicates, loss), and the broker's descriptors, connections
//! and memory are compared with what they were before; its log is read for lines that nobody can
//! explain. Trials that would starve the whole broker (of descriptors, of a disk) have one of their
//! own.
//!
//! Memory has a starting point only after everything has happened once: the allocator keeps what it
//! has had. So all trials run twice, briefly first, and what is compared is the end of the first
//! round and the end of the second.
//!
//! | file | trials |
//! |---|---|
//! | here | the plan, the bystanders, the reckoning |
//! | `soak/lives` | programs that are killed, stopped in mid-frame, and without memory |
//! | `soak/loans` | programs that lend payloads and keep them, killed |
//! | `soak/floods` | connections and descriptors, in masses |
//! | `soak/bytes` | slow bytes, and lies about lengths |
//! | `soak/want` | a broker without descriptors, one whose log has no room |
//! | `fuzz` | the fuzz targets |

mod bytes;
mod floods;
mod lives;
pub mod loans;
mod want;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;

use crate::broker::Broker;
use crate::deadline::eventually;
use crate::fuzz;
use crate::process::Process;
use crate::random::Random;
use crate::trace::Trace;

/// How much bad luck.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// For how long each trial goes on, those apart that have an end of their own.
    pub each: Duration,
    /// How many idle connections to hold at once.
    pub connections: usize,
    /// How many clients to kill in a second.
    pub kills_per_second: u32,
    /// What random numbers come from.
    pub seed: u64,
}

impl Plan {
    /// All of it within so much time, roughly.
    #[must_use]
    pub fn within(time: Duration) -> Self {
        // The first round is short, and the idle connections and the reckoning take their time.
        let trials = u32::try_from(TRIALS.len() + fuzz::TARGETS.len()).unwrap();
        Self { each: time / (trials + 2), connections: 10_000, kills_per_second: 100, seed: 1 }
    }

    /// A little of everything.
    #[must_use]
    pub fn brief() -> Self {
        Self { each: Duration::from_millis(700), connections: 400, kills_per_second: 100, seed: 1 }
    }
}

/// Where trials happen.
#[derive(Debug)]
pub(crate) struct Field<'a> {
    broker: &'a Broker,
    plan: Plan,
    random: Random,
}

type Trial = fn(&mut Field<'_>) -> String;

const TRIALS: [(&str, Trial); 12] = [
    ("clients killed", lives::killed),
    ("readers stopped", lives::stopped_readers),
    ("senders stopped", lives::stopped_senders),
    ("clients without memory", lives::without_memory),
    ("payloads lent", loans::killed),
    ("connections", floods::connections),
    ("idle connections", floods::idle),
    ("descriptors", floods::descriptors),
    ("slow bytes", bytes::slow),
    ("lies about lengths", bytes::lies),
    ("a broker without descriptors", want::descriptors),
    ("a log without room", want::disk),
];

/// What the broker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    resident_kib: u64,
}

/// Runs all of it; figures are handed to `tell` as they come. What was found that should not be is
/// what is returned.
pub fn run(plan: Plan, mut tell: impl FnMut(&str)) -> Vec<String> {
    let mut findings = Vec::new();
    let broker = Broker::with(CONFIG);
    let before = holdings(&broker);
    let alone = sockets(&broker);
    let bystanders = Bystanders::start(&broker);
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    tell(&format!("descriptors that the system allows a process: {hard}"));
    let warm = {
        let plan = Plan { each: (plan.each / 10).min(Duration::from_secs(2)), ..plan };
        let mut field = Field { broker: &broker, plan, random: Random::new(plan.seed) };
        for (_, trial) in TRIALS {
            trial(&mut field);
        }
        settled(&broker, alone)
    };
    let mut field = Field { broker: &broker, plan, random: Random::new(plan.seed + 1) };
    for (name, trial) in TRIALS {
        let began = Instant::now();
        let figures = trial(&mut field);
        let now = settled(&broker, alone);
        tell(&format!(
            "{name}: {figures}; {:.1} s; broker then: {} descriptors, {} KiB",
            began.elapsed().as_secs_f64(),
            now.descriptors,
            now.resident_kib,
        ));
        if now.descriptors != warm.descriptors {
            findings.push(format!("{name}: {warm:?} before, {now:?} after"));
        }
    }
    for target in fuzz::TARGETS {
        match target.run(plan.seed, plan.each) {
            Ok(inputs) => tell(&format!("fuzzing {}: {inputs} inputs, nothing found", target.name)),
            Err(finding) => findings.push(finding),
        }
    }
    tell("fuzzing a ring: no target yet");
    let end = settled(&broker, alone);
    tell(&bystanders.end(&broker));
    let last = settled_at(&broker, alone, 0);
    tell(&format!("broker at the start: {before:?}"));
    tell(&format!("after everything once: {warm:?}; at the end: {end:?}; alone: {last:?}"));
    if last.descriptors != before.descriptors {
        findings.push(format!("descriptors: {before:?} at the start, {last:?} at the end"));
    }
    let most = warm.resident_kib + warm.resident_kib / 10 + TOLERANCE_KIB;
    if end.resident_kib > most {
        findings.push(format!("memory: {warm:?} after everything once, {end:?} at the end"));
    }
    let (told, unexplained) = read_log(&broker.log());
    tell(&format!("log: {told}"));
    findings.extend(unexplained);
    findings
}

/// What memory may differ by beside a tenth: what an allocator with an arena for each thread keeps.
const TOLERANCE_KIB: u64 = 4 << 10;

/// Stalled readers are put out soon, and a process may open many connections.
const CONFIG: &str = "[limits]\nstall = \"300ms\"\nconnections = 16384\n\
    user_connections = 16384\nuser_endpoints = 16384\nuser_connection_rate = 100000\n";

fn holdings(broker: &Broker) -> Holdings {
    Holdings { descriptors: broker.descriptors(), resident_kib: broker.resident_kib() }
}

/// The holdings once only the bystanders are there.
fn settled(broker: &Broker, alone: usize) -> Holdings {
    settled_at(broker, alone, BYSTANDERS)
}

/// The holdings once there are so many connections; `alone`, without any, it has so many sockets.
fn settled_at(broker: &Broker, alone: usize, connections: u64) -> Holdings {
    // Who asks is one more.
    broker.until("the others have gone", |stats| stats.connections == connections + 1);
    eventually("nobody asks", || {
        let sockets = sockets(broker);
        let most = alone + usize::try_from(connections).unwrap();
        if sockets <= most {
            Ok(())
        } else {
            Err(format!("{sockets} sockets, {alone} without any"))
        }
    });
    holdings(broker)
}

/// How many sockets the broker has.
fn sockets(broker: &Broker) -> usize {
    let directory = format!("/proc/{}/fd", broker.pid());
    let open = fs::read_dir(directory).unwrap().filter_map(|entry| {
        let target = fs::read_link(entry.ok()?.path()).ok()?;
        target.to_str()?.starts_with("socket:").then_some(())
    });
    open.count()
}

/// Two listeners and a sender that nothing should happen to.
#[derive(Debug)]
struct Bystanders {
    traces: [PathBuf; 2],
    receipts: PathBuf,
    listeners: Vec<Process>,
    sender: Process,
    enough: Arc<AtomicBool>,
    feed: JoinHandle<u64>,
}

const BYSTANDERS: u64 = 3;

impl Bystanders {
    fn start(broker: &Broker) -> Self {
        let traces = [0, 1].map(|number| broker.file(&format!("bystander.{number}")));
        let listeners = traces.iter().map(|trace| broker.listener("bystanders", trace)).collect();
        let receipts = broker.file("bystander.receipts");
        let sender = broker.unisono("send bystanders --lines --json --timeout 50s");
        let mut sender = sender.input_piped().output_to(&receipts).start();
        let enough = Arc::new(AtomicBool::new(false));
        let feed = sender.feed({
            let enough = Arc::clone(&enough);
            (0_u64..).take_while(move |_| !enough.load(Ordering::Relaxed)).map(|number| {
                // A steady trickle: what is measured is whether it goes on.
                thread::park_timeout(TRICKLE);
                number.to_string()
            })
        });
        Self { traces, receipts, listeners, sender, enough, feed }
    }

    fn end(self, broker: &Broker) -> String {
        self.enough.store(true, Ordering::Relaxed);
        let sent = self.feed.join().unwrap();
        let _ = self.sender.end().with(0);
        for listener in self.listeners {
            let _ = listener.end_by(Signal::SIGINT).with(0);
        }
        let heard = self.traces.each_ref().map(|trace| Trace::read(trace));
        crate::trace::assert_identical(&heard);
        assert_eq!(u64::try_from(heard[0].messages.len()).unwrap(), sent, "all that was sent");
        let traces = self.traces.iter().map(PathBuf::as_path);
        crate::senders::verify(broker, traces, [self.receipts.as_path()]);
        format!("bystanders: {sent} messages to 2 members, in one order, none lost, none twice")
    }
}

const TRICKLE: Duration = Duration::from_millis(2);

/// What the lines above `info` say, and those that nobody can explain.
fn read_log(log: &str) -> (String, Vec<String>) {
    let mut counts = BTreeMap::<&str, usize>::new();
    let mut unexplained = Vec::new();
    for line in log.lines() {
        let level = ["ERROR", "WARN"].into_iter().find(|level| line.contains(level));
        let Some(level) = level else { continue };
        let known = EXPLAINED.iter().find(|(part, _)| line.contains(part));
        match known {
            Some((part, _)) if level == "WARN" => *counts.entry(part).or_default() += 1,
            _ if unexplained.len() < 10 => unexplained.push(format!("in the log: {line}")),
            _ => {}
        }
    }
    let mut told = String::new();
    for (part, why) in EXPLAINED {
        if let Some(count) = counts.get(part) {
            let _ = write!(told, "{count} lines '{part}' ({why}); ");
        }
    }
    (if told.is_empty() { "nothing at warn or above".to_owned() } else { told }, unexplained)
}

/// Lines at `warn`, and what they come from. At `error` nothing is explained.
const EXPLAINED: [(&str, &str); 6] = [
    ("evicted", "readers that were stopped"),
    ("protocol", "clients that lied"),
    ("bad frame", "clients that lied"),
    ("refused", "more connections than there may be"),
    ("greeting", "slow bytes"),
    ("descriptors", "descriptors that nobody took"),
];

/// Runs a shell command line on this bus: `$0` is the program.
fn shell(broker: &Broker, script: &str, program: &Path) -> crate::process::Launch {
    broker.launch("sh").arg("-c").arg(script).arg(program)
}
