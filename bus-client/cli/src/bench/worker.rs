//! A process of a run: it is told its task on standard input, sets up, says so, and goes when told.
//!
//! Invariant: nothing that is measured happens before `go`, and the process stays until its
//! standard input ends, so that whoever measures can still ask the kernel what it has used. It
//! never outlives the one that started it.

use std::{
    any::Any,
    ffi::OsString,
    io::{self, BufRead as _, Write as _},
    os::unix::process::CommandExt as _,
    process::Command,
    thread,
    time::Duration,
};

use bus_broker::{Broker, Config, Listen};
use rustix::{
    process::{Resource, Signal, getrlimit, set_parent_process_death_signal, setrlimit},
    thread::{CpuSet, sched_setaffinity},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    client,
    plan::{Go, Limit, Plan, Ready, Report, Role, Task, Workload},
    reading::Reader,
    record::{Latencies, Record},
    relay,
    shared::Shared,
    stamp::{Stamp, now},
    system::System,
    turns,
};
use crate::exit::Failure;

/// Becomes another program, or does its task.
pub(crate) fn run(become_program: &[OsString], pin: &[usize]) -> Result<(), Failure> {
    done(if become_program.is_empty() { work() } else { exec(become_program, pin) })
}

fn done(outcome: io::Result<()>) -> Result<(), Failure> {
    outcome.map_err(|error| Failure::about("bench", error))
}

/// A broker of somebody else: it stays on our CPUs and does not outlive us.
fn exec(command: &[OsString], pin: &[usize]) -> io::Result<()> {
    settle(pin)?;
    Err(Command::new(&command[0]).args(&command[1..]).exec())
}

fn work() -> io::Result<()> {
    let task: Task = hear()?;
    settle(&task.plan.pin)?;
    let plan = &task.plan;
    match task.role {
        Role::Broker => return broker(plan),
        Role::Sender(0) if plan.workload == Workload::Rtt => caller(plan)?,
        Role::Receiver(_) if plan.workload == Workload::Rtt => responder(plan)?,
        Role::Sender(0) if plan.workload == Workload::Fair => fan_out(plan)?,
        Role::Sender(index) if plan.workload == Workload::Fair => small(plan, index)?,
        Role::Sender(index) => sender(plan, index)?,
        Role::Receiver(index) => receiver(plan, index)?,
        Role::Connector => connector(plan)?,
    }
    // Until then our clocks can be read.
    io::stdin().lock().lines().for_each(drop);
    Ok(())
}

fn settle(pin: &[usize]) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if !pin.is_empty() {
        let mut cpus = CpuSet::new();
        pin.iter().for_each(|cpu| cpus.set(*cpu));
        sched_setaffinity(None, &cpus)?;
    }
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files)?;
    Ok(())
}

fn hear<T: DeserializeOwned>() -> io::Result<T> {
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line)? == 0 {
        return Err(io::Error::other("told nothing"));
    }
    serde_json::from_str(&line).map_err(io::Error::other)
}

fn say<T: Serialize>(value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

fn ready() -> io::Result<Go> {
    ready_at(String::new())
}

fn ready_at(address: String) -> io::Result<Go> {
    say(&Ready { address })?;
    hear()
}

fn broker(plan: &Plan) -> io::Result<()> {
    let listening = || say(&Ready::default());
    if matches!(plan.system, System::Relay | System::RelayPlain) {
        return relay::run(plan, listening);
    }
    if plan.system == System::Turns {
        return turns::run(plan, listening);
    }
    if plan.system == System::SharedMemoryBroker {
        return client::copy_for_all(plan, listening);
    }
    let mut config = Config::default();
    config.listen = Listen::Path(plan.socket());
    config.limits = plan.limits();
    let broker = Broker::bind(&config).map_err(io::Error::other)?;
    listening()?;
    broker.run().map_err(io::Error::other)
}

/// When a sender has sent enough.
#[derive(Debug)]
struct Pace {
    limit: Limit,
    started: u64,
}

impl Pace {
    fn start(limit: Limit) -> Self {
        Self { limit, started: now() }
    }

    /// Whether the message of this serial is the last; `time` is now, or 0 if nobody looked.
    fn is_last(&self, serial: u64, time: u64) -> bool {
        match self.limit {
            Limit::Count(count) => serial + 1 >= count,
            Limit::Nanoseconds(most) => time != 0 && time - self.started >= most,
        }
    }

    fn report(&self, messages: u64) -> Report {
        Report { started: self.started, finished: now(), messages, ..Report::default() }
    }
}

fn sender(plan: &Plan, index: usize) -> io::Result<()> {
    let shared = Shared::open(plan)?;
    let mut client = client::sender(plan, index)?;
    let lockstep = plan.workload == Workload::Lockstep;
    ready()?;
    let pace = Pace::start(plan.limit);
    let (mut serial, mut stamped, mut ended) = (0, 0, false);
    let mut allowed = plan.window().unwrap_or(u64::MAX);
    let mut stamps = Vec::with_capacity(plan.batch);
    while !ended {
        if serial + plan.batch as u64 > allowed {
            let window = plan.window().unwrap_or(u64::MAX);
            let after = serial + plan.batch as u64;
            let floor = match plan.workload {
                // As soon as two writes may go: waiting for more lets those who are done first run dry.
                Workload::Large => shared.sleep_until(index, after + plan.batch as u64 - window)?,
                _ => shared.wait_floor(index, after - window),
            };
            allowed = floor + window;
        }
        stamps.clear();
        for _ in 0..plan.batch {
            let take = plan.stamps_all() || serial == 0 || serial - stamped >= STAMP_EVERY;
            let time = if take { now() } else { 0 };
            stamped = if take { serial } else { stamped };
            ended = pace.is_last(serial, time);
            stamps.push(Stamp::new(index, serial, ended, time));
            serial += 1;
            if ended {
                break;
            }
        }
        client.send(&stamps)?;
        if lockstep {
            shared.wait_arrived(serial)?;
        }
    }
    client.finish()?;
    say(&pace.report(serial))
}

fn receiver(plan: &Plan, index: usize) -> io::Result<()> {
    let shared = Shared::open(plan)?;
    let mut client = client::receiver(plan, index)?;
    let heard = plan.streams_of(index);
    let mut record = Record::new(plan.streams(), &heard, plan.size);
    if plan.workload == Workload::Fair {
        record = record.watch_stream_0();
    }
    let mut reader = Reader::new(plan);
    let lockstep = plan.workload == Workload::Lockstep;
    // A message that takes long is told of when it was read, whatever else came with it: else several
    // that come at once would hold their sender up until the last of them.
    let large = plan.workload == Workload::Large;
    for stream in (0..plan.streams()).filter(|stream| !heard.contains(stream)) {
        // What it does not hear holds nobody up.
        shared.publish(index, stream, u64::MAX);
    }
    let slow = (index < plan.slow).then(|| Ticks::new(index, plan.slow));
    ready()?;
    let started = now();
    let mut last = started;
    while !record.is_whole() {
        let outcome = match &slow {
            Some(ticks) => {
                ticks.wait();
                client.drain(&mut |payload| record.take(payload))
            }
            None => client.receive(&mut |payload| {
                reader.read(payload, &mut |payload| record.take(payload));
                if lockstep {
                    shared.arrive();
                }
                if large {
                    let tell =
                        |of: &usize| shared.publish_and_wake(index, *of, record.progress(*of));
                    heard.iter().for_each(tell);
                }
            }),
        };
        match outcome {
            Ok(()) => {}
            // What is missing by now is lost; the sender knows how much that is.
            Err(error) if error.kind() == io::ErrorKind::TimedOut && record.received() == 0 => {
                last = now();
                if last - started > FIRST_WITHIN {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
            Err(error) => return Err(error),
        }
        if !plan.system.is_lossless() {
            last = now();
        }
        for stream in &heard {
            shared.publish(index, *stream, record.progress(*stream));
        }
    }
    if plan.system.is_lossless() {
        last = now();
    }
    let report = record.report(started, last);
    say(&Report { reading: reader.spent(), ..report })
}

/// 60 times a second, each slow reader at another time.
#[derive(Debug)]
struct Ticks {
    phase: u64,
}

impl Ticks {
    fn new(index: usize, of: usize) -> Self {
        Self { phase: PERIOD * index as u64 / of as u64 }
    }

    /// Sleeps until the next one.
    fn wait(&self) {
        let past = (now() + PERIOD - self.phase) % PERIOD;
        thread::sleep(Duration::from_nanos(PERIOD - past));
    }
}

fn caller(plan: &Plan) -> io::Result<()> {
    let make = client::caller(plan)?;
    let go = ready()?;
    let mut client = make(&go)?;
    let mut record = Record::new(1, &[0], plan.size);
    let pace = Pace::start(plan.limit);
    let mut serial = 0;
    while !record.is_whole() {
        let time = now();
        let stamp = Stamp::new(0, serial, pace.is_last(serial, time), time);
        client.call(stamp, &mut |payload| record.take(payload))?;
        serial += 1;
    }
    say(&record.report(pace.started, now()))
}

fn responder(plan: &Plan) -> io::Result<()> {
    let mut client = client::responder(plan)?;
    let mut record = Record::new(1, &[0], plan.size);
    ready_at(client.address())?;
    let started = now();
    while !record.is_whole() {
        client.respond(&mut |payload| record.take(payload))?;
    }
    // The latency of the way there is none of a round trip.
    let mut report = record.report(started, now());
    report.latencies.clear();
    say(&report)
}

/// Sends to all, and notes how long each send waited for its place.
fn fan_out(plan: &Plan) -> io::Result<()> {
    let shared = Shared::open(plan)?;
    let mut client = client::waiting_sender(plan)?;
    ready()?;
    let pace = Pace::start(plan.limit);
    let mut waits = Latencies::new();
    let (mut serial, mut ended) = (0, false);
    while !ended {
        let time = now();
        ended = pace.is_last(serial, time);
        client.send(&[Stamp::new(0, serial, ended, time)])?;
        waits.since(time);
        serial += 1;
    }
    shared.stop();
    let mut report = pace.report(serial);
    report.waits = waits.pairs();
    say(&report)
}

/// Sends to some receivers in turn, each alone, until the fan-out sender has had enough.
fn small(plan: &Plan, index: usize) -> io::Result<()> {
    let shared = Shared::open(plan)?;
    let mine: Vec<usize> = (index - 1..plan.receivers).step_by(plan.senders).collect();
    let mut client = client::small_sender(plan, &mine)?;
    ready()?;
    let pace = Pace::start(plan.limit);
    let mut serial = 0;
    loop {
        let ended = shared.is_stopped();
        for receiver in &mine {
            client.send(&[Stamp::new(1 + receiver, serial, ended, now())])?;
        }
        serial += 1;
        if ended {
            break;
        }
    }
    client.finish()?;
    say(&pace.report(serial * mine.len() as u64))
}

/// Connects, one after the other; for `idle` they all stay.
fn connector(plan: &Plan) -> io::Result<()> {
    // What only the first connection brings into memory, such as code, is not each one's.
    let _first = (plan.workload == Workload::Idle).then(|| client::connect(plan)).transpose()?;
    ready()?;
    let pace = Pace::start(plan.limit);
    let mut latencies = Latencies::new();
    let mut kept: Vec<Box<dyn Any>> = Vec::new();
    let mut count = 0;
    loop {
        let time = now();
        let connection = client::connect(plan)?;
        latencies.since(time);
        if plan.workload == Workload::Idle {
            kept.push(connection);
        }
        let ended = match plan.workload {
            Workload::Idle => kept.len() >= plan.receivers.div_ceil(plan.senders),
            _ => pace.is_last(count, now()),
        };
        count += 1;
        if ended {
            break;
        }
    }
    let mut report = pace.report(count);
    report.latencies = latencies.pairs();
    say(&report)?;
    io::stdin().lock().lines().for_each(drop);
    drop(kept);
    Ok(())
}

/// A clock is read for one message in so many, where many are under way.
const STAMP_EVERY: u64 = 16;
/// Nanoseconds.
const PERIOD: u64 = 1_000_000_000 / 60;
/// Nanoseconds: how long the first message may take where none is promised to come.
const FIRST_WITHIN: u64 = 5_000_000_000;
