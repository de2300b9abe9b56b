//! Bad luck, a lot of it, and what is left at the end.
//!
//! One broker lives through all trials, one after the other, while two listeners and a sender that
//! have nothing to do with any of it go about their business on a group of their own. At the end
//! their histories are verified (order, duplicates, loss); the broker's descriptors, connections and
//! memory are compared with what they were at its start; and each line of its log at `warn` or above
//! has to be of a fault that was injected (`soak/log`). Trials that would starve the whole broker (of
//! descriptors, of a disk) have one of their own.
//!
//! All trials run twice, briefly first. Memory is compared with the start and with the end of the first
//! round, each time once the broker has said that it gave back what it does not need (`soak/memory`).
//! A little of the soak has one round.
//!
//! | file | what |
//! |---|---|
//! | here | the plan, the bystanders, the reckoning |
//! | `soak/lives` | programs that are killed, stopped in mid-frame, and without memory |
//! | `soak/loans` | programs that lend payloads and keep them, killed |
//! | `soak/zygote`, `soak/victims` | a process that makes clients to be killed, and its near end |
//! | `soak/floods` | connections and descriptors, in masses |
//! | `soak/bytes` | slow bytes, and lies about lengths |
//! | `soak/want` | a broker without descriptors, some whose logs have no room or no reader |
//! | `soak/log` | what the log may say |
//! | `soak/memory` | what a broker occupies, and what it may keep |
//! | `fuzz` | the fuzz targets |

mod bytes;
mod floods;
mod lives;
pub mod loans;
mod log;
mod memory;
mod victims;
mod want;
mod zygote;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;

use self::log::{Fault, Faults};
use self::memory::Memory;
use self::victims::Victims;
pub use self::zygote::zygote;
use crate::broker::Broker;
use crate::deadline::eventually;
use crate::fuzz;
use crate::process::Process;
use crate::random::Random;
use crate::trace::Trace;

/// How much bad luck.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For how long each trial goes on, those apart that have an end of their own.
    pub each: Duration,
    /// How many idle connections to hold at once.
    pub connections: usize,
    /// How many clients to kill in a second.
    pub kills_per_second: u32,
    /// Whether there is a first round, to compare with its end.
    pub twice: bool,
    /// What random numbers come from.
    pub seed: u64,
    /// The program `soak`: it also makes the clients that are killed.
    pub soak: PathBuf,
}

impl<'a> Field<'a> {
    fn new(broker: &'a Broker, plan: Plan) -> Self {
        Self {
            broker,
            random: Random::new(plan.seed),
            victims: Victims::start(&plan.soak, broker.socket()),
            faults: Faults::default(),
            findings: Vec::new(),
            plan,
        }
    }
}

impl Plan {
    /// All of it within so much time, roughly.
    #[must_use]
    pub fn within(time: Duration, soak: PathBuf) -> Self {
        // The first round is short, and the idle connections and the reckoning take their time.
        let trials = u32::try_from(TRIALS.len() + fuzz::TARGETS.len()).unwrap();
        let each = time / (trials + 2);
        Self { each, connections: 10_000, kills_per_second: 100, twice: true, seed: 1, soak }
    }

    /// A little of everything.
    #[must_use]
    pub fn brief(soak: PathBuf) -> Self {
        let each = Duration::from_millis(700);
        Self { each, connections: 400, kills_per_second: 100, twice: false, seed: 1, soak }
    }
}

/// Where trials happen.
#[derive(Debug)]
pub(crate) struct Field<'a> {
    broker: &'a Broker,
    plan: Plan,
    random: Random,
    victims: Victims,
    /// What was done, and may be logged.
    faults: Faults,
    /// What should not be.
    findings: Vec<String>,
}

type Trial = fn(&mut Field<'_>) -> String;

const TRIALS: [(&str, Trial); 13] = [
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
    ("a log without a reader", want::unread_log),
];

/// What the broker holds.
#[derive(Clone, Copy, Debug)]
struct Holdings {
    descriptors: usize,
    memory: Memory,
}

/// Runs all of it; figures are handed to `tell` as they come. What was found that should not be is
/// what is returned.
pub fn run(plan: &Plan, mut tell: impl FnMut(&str)) -> Vec<String> {
    let broker = Broker::with(CONFIG);
    let before = holdings(&broker);
    let bystanders = Bystanders::start(&broker);
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    tell(&format!("descriptors that the system allows a process: {hard}"));
    tell(&format!("broker at its start: {before}"));
    let brief = Plan { each: (plan.each / 10).min(Duration::from_secs(2)), ..plan.clone() };
    let mut field = Field::new(&broker, brief);
    let warm = plan.twice.then(|| {
        for (_, trial) in TRIALS {
            trial(&mut field);
        }
        let _ = settled(&broker, before, BYSTANDERS);
        memory::until_given_back(&broker);
        let warm = settled(&broker, before, BYSTANDERS);
        tell(&format!("after everything once: {warm}"));
        warm
    });
    field.plan = plan.clone();
    for (name, trial) in TRIALS {
        let began = Instant::now();
        let figures = trial(&mut field);
        let now = settled(&broker, before, BYSTANDERS);
        let took = began.elapsed().as_secs_f64();
        tell(&format!("{name}: {figures}; {took:.1} s; broker then: {now}"));
        if let Some(warm) = warm.filter(|warm| warm.descriptors != now.descriptors) {
            field.findings.push(format!("{name}: {warm} before, {now} after"));
        }
    }
    let Field { faults, mut findings, victims, .. } = field;
    drop(victims);
    for target in fuzz::TARGETS {
        match target.run(plan.seed, plan.each) {
            Ok(inputs) => tell(&format!("fuzzing {}: {inputs} inputs, nothing found", target.name)),
            Err(finding) => findings.push(finding),
        }
    }
    let end = settled(&broker, before, BYSTANDERS);
    tell(&bystanders.end(&broker));
    let _ = settled(&broker, before, 0);
    memory::until_given_back(&broker);
    let last = settled(&broker, before, 0);
    tell(&format!("at the end: {end}; without bystanders: {last}; at the start: {before}"));
    if last.descriptors != before.descriptors {
        findings.push(format!("descriptors: {before} at the start, {last} at the end"));
    }
    findings.extend(last.memory.beyond(before.memory, memory::KEPT_KIB));
    if let Some(warm) = warm {
        findings.extend(last.memory.beyond(warm.memory, memory::GROWTH_KIB));
    }
    let (told, unexplained) = faults.compare(&broker.log());
    tell(&format!("log: {told}"));
    findings.extend(unexplained);
    findings
}

/// Stalled readers are put out soon, who does not greet waits not long, and one process may open more
/// than ten thousand connections: that is half of what is lent, a quarter of what there is.
const CONFIG: &str = "greeting = \"2s\"\n[limits]\nstall = \"300ms\"\nconnections = 32768\n\
    user_connections = 32768\nuser_endpoints = 32768\nuser_connection_rate = 100000\n\
    [log]\nformat = \"json\"\n";

/// What it may say of who connects faster than that. A machine that has nothing else to do can.
const TOO_FAST: &str = "the limit user_connection_rate";

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} descriptors, {}", self.descriptors, self.memory)
    }
}

fn holdings(broker: &Broker) -> Holdings {
    Holdings { descriptors: broker.descriptors(), memory: Memory::of(broker.pid()) }
}

/// The holdings once there are so many connections, and as many descriptors beside these as at the
/// start: what else was open is closed when it has not been used for a while.
fn settled(broker: &Broker, start: Holdings, connections: u64) -> Holdings {
    // Who asks is one more.
    broker.until("the others have gone", |stats| stats.connections == connections + 1);
    let most = start.descriptors + usize::try_from(connections).unwrap();
    eventually("all else is closed", || {
        let descriptors = broker.descriptors();
        if descriptors <= most { Ok(()) } else { Err(format!("{descriptors}, not {most}")) }
    });
    holdings(broker)
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
    /// By sockets alone: rings would come and go with the traffic, and descriptors with them.
    fn start(broker: &Broker) -> Self {
        let traces = [0, 1].map(|number| broker.file(&format!("bystander.{number}")));
        let listener = |trace: &PathBuf| {
            let listener = broker.unisono("listen bystanders --json").output_to(trace);
            listener.env("UNISONO_TRANSPORT", "socket").start()
        };
        let listeners = traces.iter().map(listener).collect();
        broker.until_members("bystanders", "both are there", |members| members.len() == 2);
        let receipts = broker.file("bystander.receipts");
        let sender = broker.unisono("send bystanders --lines --json --timeout 50s");
        let mut sender =
            sender.env("UNISONO_TRANSPORT", "socket").input_piped().output_to(&receipts).start();
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
