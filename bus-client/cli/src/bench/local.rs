//! The bus as a library: a thread for each sender and receiver, and no broker.
//!
//! What is measured is the order itself: commit, queues, wake-ups, and nothing of sockets.

use std::{
    io,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use bus_core::{
    Attributes, Bus, Condition, Credentials, Delivery, Destination, Draft, Endpoint, Filter,
    GroupName, JoinOptions, Limits, Message, Pattern,
};
use rustix::{
    process::geteuid,
    thread::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

use super::{
    plan::{Limit, Plan, Report, Workload},
    record::Record,
    stage::{Outcome, judge},
    stamp::{Stamp, now},
};

/// Whether a workload makes sense without processes.
pub(crate) fn cannot(workload: Workload) -> Option<&'static str> {
    match workload {
        Workload::Fanout | Workload::Fanin | Workload::Large | Workload::Lockstep => None,
        Workload::Rtt | Workload::Filter => None,
        _ => Some("it is about connections or about processes"),
    }
}

/// Runs a plan once, in this process.
pub(crate) fn run(plan: &Plan) -> io::Result<Outcome> {
    if !plan.pin.is_empty() {
        let mut cpus = CpuSet::new();
        plan.pin.iter().for_each(|cpu| cpus.set(*cpu));
        sched_setaffinity(None, &cpus)?;
    }
    // It is about speed: a receiver that gets no processor for long is no fault of the bus.
    let limits = Limits { stall: STALL, ..plan.limits() };
    let bus = Bus::new(limits, SEED).map_err(io::Error::other)?;
    let name: GroupName = "bench".parse().map_err(io::Error::other)?;
    let stage = Arc::new(Stage {
        plan: plan.clone(),
        start: Barrier::new(plan.senders + plan.receivers + 1),
        arrived: AtomicU64::new(0),
        failed: AtomicBool::new(false),
    });
    let open = || -> io::Result<Endpoint> {
        let (uid, pid) = (geteuid().as_raw(), std::process::id());
        let endpoint = bus.open_endpoint(Credentials { uid, pid });
        endpoint.map_err(io::Error::other)
    };
    let mut receivers = Vec::new();
    let mut members = Vec::new();
    for index in 0..plan.receivers {
        let endpoint = open()?;
        let mut options = JoinOptions::create();
        if let Some(key) = plan.key_of(index % plan.streams()) {
            let wanted = Condition::Key(Pattern::exactly(key));
            options = options.filtered(Filter::new([vec![wanted]]).map_err(io::Error::other)?);
        }
        let joined = endpoint.join(&name, options);
        members.push((endpoint.id(), joined.map_err(io::Error::other)?.group));
        receivers.push(endpoint);
    }
    let Some((first, group)) = members.first().copied() else {
        return Err(io::Error::other("there is nobody to receive"));
    };
    let to = match plan.workload {
        Workload::Rtt => Destination::Endpoint(first),
        _ => Destination::Group(group),
    };
    let receivers: Vec<_> = receivers
        .into_iter()
        .enumerate()
        .map(|(index, endpoint)| start(&stage, move |stage| receive(stage, &endpoint, index)))
        .collect();
    let mut senders = Vec::new();
    for index in 0..plan.senders {
        let endpoint = open()?;
        senders.push(start(&stage, move |stage| match stage.plan.workload {
            Workload::Rtt => call(stage, &endpoint, to),
            _ => send(stage, &endpoint, to, index),
        }));
    }
    let before = cpu();
    stage.start.wait();
    // The bus reads no clock: those that wait are served in turn by the time that it is told.
    while !senders.iter().chain(&receivers).all(Running::is_finished) {
        let time = clock_gettime(ClockId::Realtime);
        bus.tick(Duration::try_from(time).map_err(io::Error::other)?);
        thread::sleep(TICK);
    }
    let sent = join(senders)?;
    let received = join(receivers)?;
    let mut outcome = judge(plan, &sent, &received);
    outcome.cpu = cpu().saturating_sub(before);
    Ok(outcome)
}

/// What the threads share.
#[derive(Debug)]
struct Stage {
    plan: Plan,
    start: Barrier,
    /// Messages received, for lockstep.
    arrived: AtomicU64,
    failed: AtomicBool,
}

type Running = thread::JoinHandle<io::Result<Report>>;

fn start(
    stage: &Arc<Stage>,
    work: impl FnOnce(&Stage) -> io::Result<Report> + Send + 'static,
) -> Running {
    let stage = Arc::clone(stage);
    thread::spawn(move || {
        let report = work(&stage);
        if report.is_err() {
            stage.failed.store(true, Ordering::Release);
        }
        report
    })
}

fn join(threads: Vec<Running>) -> io::Result<Vec<Report>> {
    let panicked = |_| io::Error::other("a thread panicked");
    threads.into_iter().map(|thread| thread.join().map_err(panicked)?).collect()
}

fn send(stage: &Stage, endpoint: &Endpoint, to: Destination, index: usize) -> io::Result<Report> {
    let plan = &stage.plan;
    let mut lane = endpoint.lane().map_err(io::Error::other)?;
    let mut payload = vec![0; plan.size];
    let key = plan.key_of(index).map(|key| Attributes::builder().key(key).build());
    let attributes = key.transpose().map_err(io::Error::other)?.unwrap_or_default();
    stage.start.wait();
    let started = now();
    let (mut serial, mut ended) = (0, false);
    while !ended {
        let time = match plan.stamps_all() || serial % STAMP_EVERY == 0 {
            true => now(),
            false => 0,
        };
        ended = is_last(plan.limit, serial, time, started);
        Stamp::new(index, serial, ended, time).write(&mut payload);
        let draft = Draft { attributes: attributes.clone(), ..Draft::from(payload.as_slice()) };
        lane.send(to, draft).map_err(io::Error::other)?;
        serial += 1;
        while plan.workload == Workload::Lockstep
            && stage.arrived.load(Ordering::Acquire) < serial * plan.receivers as u64
        {
            if stage.failed.load(Ordering::Acquire) {
                return Err(io::Error::other("a receiver failed"));
            }
            thread::yield_now();
        }
    }
    Ok(Report { started, finished: now(), messages: serial, ..Report::default() })
}

fn receive(stage: &Stage, endpoint: &Endpoint, index: usize) -> io::Result<Report> {
    let plan = &stage.plan;
    let mut receiver =
        endpoint.receiver().ok_or_else(|| io::Error::other("it has a reader already"))?;
    let mut lane = match plan.workload {
        Workload::Rtt => Some(endpoint.lane().map_err(io::Error::other)?),
        _ => None,
    };
    let mut record = Record::new(plan.streams(), &plan.streams_of(index), plan.size);
    stage.start.wait();
    let started = now();
    let mut last = None;
    while !record.is_whole() {
        let message = message(receiver.receive())?;
        if last >= Some(message.sequence()) {
            return Err(io::Error::other("the sequence does not rise (G2)"));
        }
        last = Some(message.sequence());
        record.take(message.payload());
        if plan.workload == Workload::Lockstep {
            stage.arrived.fetch_add(1, Ordering::AcqRel);
        }
        if let Some(lane) = &mut lane {
            let back = Destination::Endpoint(message.sender());
            let payload = message.payload().as_bytes().clone();
            lane.send(back, bus_core::Payload::from(payload)).map_err(io::Error::other)?;
        }
    }
    let mut report = record.report(started, now());
    if lane.is_some() {
        report.latencies.clear();
    }
    Ok(report)
}

fn call(stage: &Stage, endpoint: &Endpoint, to: Destination) -> io::Result<Report> {
    let plan = &stage.plan;
    let mut lane = endpoint.lane().map_err(io::Error::other)?;
    let mut receiver =
        endpoint.receiver().ok_or_else(|| io::Error::other("it has a reader already"))?;
    let mut payload = vec![0; plan.size];
    let mut record = Record::new(1, &[0], plan.size);
    stage.start.wait();
    let started = now();
    let mut serial = 0;
    while !record.is_whole() {
        let time = now();
        let last = is_last(plan.limit, serial, time, started);
        Stamp::new(0, serial, last, time).write(&mut payload);
        lane.send(to, payload.as_slice()).map_err(io::Error::other)?;
        record.take(message(receiver.receive())?.payload());
        serial += 1;
    }
    Ok(record.report(started, now()))
}

fn message(delivery: Result<Delivery, bus_core::ReceiveError>) -> io::Result<Arc<Message>> {
    match delivery.map_err(io::Error::other)? {
        Delivery::Message { message, .. } => Ok(message),
        other => Err(io::Error::other(format!("no message, but {other:?}"))),
    }
}

fn is_last(limit: Limit, serial: u64, time: u64, started: u64) -> bool {
    match limit {
        Limit::Count(count) => serial + 1 >= count,
        Limit::Nanoseconds(most) => time != 0 && time - started >= most,
    }
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("it starts at 0")
}

const TICK: Duration = Duration::from_millis(10);
const STALL: Duration = Duration::from_secs(600);
const SEED: u64 = 4;
const STAMP_EVERY: u64 = 16;
