//! Programs that lend payloads, read them and keep them are killed, stopped and started again at random.
//!
//! Invariant: whatever a program reads is what one other has sent, from its first byte to its last. And
//! once all are gone the broker has no memory for payloads: neither mapped nor as a descriptor.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::lives::EVICTED;
use super::{CONFIG, Fault, Field, Plan, holdings, memory, settled};
use crate::broker::Broker;
use crate::loans;
use crate::process::Process;
use crate::random::Random;

/// As long as the plan says.
pub(super) fn killed(field: &mut Field<'_>) -> String {
    let Field { broker, plan, random, faults, .. } = field;
    let began = Instant::now();
    let mut parts: Vec<Part> = Vec::new();
    let (mut killed, mut stopped) = (0_u32, 0_u32);
    for number in 0..PARTS {
        parts.push(Part::start(broker, number, random));
    }
    while began.elapsed() < plan.each {
        std::thread::park_timeout(PAUSE);
        let part = &mut parts[random.below(PARTS)];
        match random.below(4) {
            // What it has lent, or is shown, is as it left it, between any two instructions.
            0 => {
                part.process.signal_if_there(Signal::SIGSTOP);
                stopped += 1;
            }
            1 => part.process.signal_if_there(Signal::SIGCONT),
            _ => {
                let number = part.number;
                part.end();
                *part = Part::start(broker, number, random);
                killed += 1;
            }
        }
    }
    for part in &mut parts {
        part.end();
    }
    drop(parts);
    loans::until_no_memory(broker);
    // Who stands does not read, and who was let go on may stand for want of a turn.
    let what = "programs that lend and keep";
    let fault = Fault { what, message: EVICTED, about: "loans", program: None, each: false };
    faults.injected(fault, u64::from(killed + stopped) + PARTS as u64);
    format!(
        "{killed} killed, {stopped} stopped among {PARTS} that lend and keep; nothing torn, no memory left"
    )
}

/// A program, and where it writes what it finds.
#[derive(Debug)]
struct Part {
    number: usize,
    process: Process,
    output: std::path::PathBuf,
}

impl Part {
    fn start(broker: &Broker, number: usize, random: &mut Random) -> Self {
        let output = broker.file(&format!("loans.{number}"));
        let what = if number.is_multiple_of(3) { "lend-all" } else { "keep-all" };
        let launch = loans::launch(broker, &format!("{what} loans {}", random.draw() >> 8));
        let launch = match random.below(2) {
            0 => launch.env("UNISONO_TRANSPORT", "ring"),
            _ => launch,
        };
        Self { number, process: launch.output_to(&output).start(), output }
    }

    fn end(&mut self) {
        self.process.signal_if_there(Signal::SIGKILL);
        let said = std::fs::read_to_string(&self.output).unwrap_or_default();
        assert!(said.is_empty(), "{said}");
    }
}

/// Nothing but this, on a broker of its own; figures are handed to `tell`. What was found that should not be
/// is what is returned.
pub fn alone(plan: &Plan, mut tell: impl FnMut(&str)) -> Vec<String> {
    let broker = Broker::with(CONFIG);
    let before = holdings(&broker);
    let mut field = Field::new(&broker, plan.clone());
    tell(&killed(&mut field));
    let _ = settled(&broker, before, 0);
    memory::until_given_back(&broker);
    let after = settled(&broker, before, 0);
    tell(&format!("the broker: {before} at the start, {after} at the end"));
    let Field { faults, mut findings, .. } = field;
    if after.descriptors != before.descriptors {
        findings.push(format!("descriptors: {before} at the start, {after} at the end"));
    }
    findings.extend(after.memory.beyond(before.memory, memory::KEPT_KIB));
    let (told, unexplained) = faults.compare(&broker.log());
    tell(&format!("log: {told}"));
    findings.extend(unexplained);
    findings
}

const PARTS: usize = 9;
const PAUSE: Duration = Duration::from_millis(25);
