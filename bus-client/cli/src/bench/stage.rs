//! One run: a folder, a broker, its clients; go; what came of it.
//!
//! Invariant: everything of a run is fresh and goes with it, so runs do not warm or hurt each
//! other. The clocks of all processes are read while nobody is at work: before the first is told to
//! go, and after the last has said that it is done.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    client,
    plan::{Go, Limit, Plan, Ready, Report, Role, Task, Workload},
    process::{Patience, Process},
    record::Latencies,
    shared::Shared,
    system::{System, find},
};
use crate::signals::Notice;

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) deliveries: u64,
    pub(crate) elapsed: Duration,
    pub(crate) cpu: Duration,
    /// The broker's part of it.
    pub(crate) broker_cpu: Option<Duration>,
    /// Messages that were sent.
    pub(crate) sent: u64,
    /// CPU time in which receivers read payloads.
    pub(crate) reading: Duration,
    /// Of the broker, in KiB at its peak.
    pub(crate) broker_rss: Option<u64>,
    pub(crate) latencies: Latencies,
    pub(crate) waits: Latencies,
    pub(crate) lost: u64,
    pub(crate) misplaced: u64,
    pub(crate) one_order: bool,
    pub(crate) overtaken_max: u64,
    /// Connections made.
    pub(crate) connected: u64,
    /// Of the broker, for each connection that does nothing.
    pub(crate) kib_per_connection: Option<f64>,
}

/// A broker, where the system has one.
#[derive(Debug)]
struct Broker {
    process: Process,
    /// A dbus-broker lives while its controller is there.
    _controller: Option<UnixStream>,
}

/// Runs a plan once. The plan's folder and port are filled in here.
pub(crate) fn run(plan: &Plan, notice: &Notice) -> io::Result<Outcome> {
    let dir = TempDir::with_prefix("unisono-bench-")?;
    let plan = Plan { dir: dir.path().to_owned(), port: free_port()?, ..plan.clone() };
    Shared::create(&plan)?;
    let _memory = plan.system.is_memory().then(|| client::make_memory(&plan)).transpose()?;
    let patience =
        Patience { interrupt: notice.as_fd(), deadline: Instant::now() + allowance(&plan) };
    let mut broker = broker(&plan, patience)?;
    let outcome = perform(&plan, broker.as_mut(), patience);
    let broker_runs = broker.as_mut().is_none_or(|broker| broker.process.runs());
    outcome.map_err(|error| {
        if broker_runs || error.kind() == io::ErrorKind::Interrupted {
            return error;
        }
        io::Error::other(format!("its broker has ended: {error}"))
    })
}

fn perform(
    plan: &Plan,
    broker: Option<&mut Broker>,
    patience: Patience<'_>,
) -> io::Result<Outcome> {
    let broker = broker.map(|broker| &broker.process);
    let mut receivers = if plan.workload.is_about_connections() {
        Vec::new()
    } else {
        workers(plan, plan.receivers, Role::Receiver)?
    };
    let mut senders = match plan.workload {
        Workload::Connect | Workload::Idle => workers(plan, plan.senders, |_| Role::Connector)?,
        // The fan-out sender is one more.
        Workload::Fair => workers(plan, 1 + plan.senders, Role::Sender)?,
        _ => workers(plan, plan.senders, Role::Sender)?,
    };
    let mut go = Go::default();
    for receiver in &mut receivers {
        let ready: Ready = receiver.hear(patience)?;
        go.receivers.push(ready.address);
    }
    for sender in &mut senders {
        let _: Ready = sender.hear(patience)?;
    }
    let cpu = |receivers: &[Process], senders: &[Process]| -> io::Result<Duration> {
        let all = receivers.iter().chain(senders).chain(broker);
        all.map(Process::cpu).sum()
    };
    let memory_before = broker.map(Process::memory).transpose()?;
    let before = cpu(&receivers, &senders)?;
    let broker_before = broker.map(Process::cpu).transpose()?;
    for process in receivers.iter_mut().chain(&mut senders) {
        process.tell(&go)?;
    }
    let sent = hear_all(&mut senders, patience)?;
    let received = hear_all(&mut receivers, patience)?;
    let after = cpu(&receivers, &senders)?;
    let broker_after = broker.map(Process::cpu).transpose()?;
    if plan.workload == Workload::Idle {
        // What the last connection left to be done or given back is over by then.
        thread::sleep(SETTLED);
    }
    let memory = broker.map(Process::memory).transpose()?;

    let mut outcome = judge(plan, &sent, &received);
    outcome.cpu = after.saturating_sub(before);
    outcome.broker_cpu =
        broker_after.zip(broker_before).map(|(after, before)| after.saturating_sub(before));
    outcome.broker_rss = memory.map(|(_, peak)| peak);
    if plan.workload == Workload::Idle
        && let (Some((before, _)), Some((now, _))) = (memory_before, memory)
    {
        let grown = now.saturating_sub(before) as f64;
        outcome.kib_per_connection = Some(grown / outcome.connected.max(1) as f64);
    }
    Ok(outcome)
}

fn workers(plan: &Plan, count: usize, role: impl Fn(usize) -> Role) -> io::Result<Vec<Process>> {
    let start = |index| {
        let role = role(index);
        let mut process = Process::worker(format!("{} {role:?}", plan.system.name()))?;
        let plan = plan.clone();
        process.tell(&Task { plan, role })?;
        Ok(process)
    };
    (0..count).map(start).collect()
}

fn hear_all(processes: &mut [Process], patience: Patience<'_>) -> io::Result<Vec<Report>> {
    let all = processes.iter_mut();
    all.map(|process| process.hear(patience)).collect()
}

/// Adds up what the processes tell, and compares it.
pub(crate) fn judge(plan: &Plan, sent: &[Report], received: &[Report]) -> Outcome {
    let about_connections = plan.workload.is_about_connections();
    let rtt = plan.workload == Workload::Rtt;
    // In a round trip the sender receives too.
    let receiving: Vec<&Report> = match plan.workload {
        Workload::Rtt => sent.iter().chain(received).collect(),
        Workload::Connect | Workload::Idle => Vec::new(),
        _ => received.iter().collect(),
    };
    let deliveries = receiving.iter().map(|report| report.messages).sum();
    let started = sent.iter().map(|report| report.started).min();
    let ends = if rtt || about_connections { sent } else { received };
    let finished = ends.iter().map(|report| report.finished).max();
    let elapsed = finished.zip(started).map_or(0, |(f, s)| f.saturating_sub(s));
    let mut latencies = Latencies::new();
    let mut waits = Latencies::new();
    for report in sent.iter().chain(received) {
        latencies.add_pairs(&report.latencies);
        waits.add_pairs(&report.waits);
    }
    let expected = expected(plan, sent, received.len());
    let misplaced: u64 = receiving.iter().map(|report| report.misplaced).sum();
    // Those that hear the same streams.
    let apart = if plan.workload == Workload::Filter { plan.streams() } else { 1 };
    let mut like = receiving.iter().zip(receiving.iter().skip(apart));
    let digests_agree = like.all(|(one, next)| one.digest == next.digest);
    Outcome {
        deliveries,
        elapsed: Duration::from_nanos(elapsed),
        cpu: Duration::ZERO,
        sent: sent.iter().map(|report| report.messages).sum(),
        reading: Duration::from_nanos(received.iter().map(|report| report.reading).sum()),
        broker_cpu: None,
        broker_rss: None,
        latencies,
        waits,
        lost: expected.saturating_sub(deliveries),
        misplaced,
        one_order: digests_agree && misplaced == 0,
        overtaken_max: received.iter().map(|r| r.overtaken_max).max().unwrap_or(0),
        connected: if about_connections {
            sent.iter().map(|report| report.messages).sum()
        } else {
            0
        },
        kib_per_connection: None,
    }
}

/// How many deliveries there ought to be.
fn expected(plan: &Plan, sent: &[Report], receivers: usize) -> u64 {
    let all: u64 = sent.iter().map(|report| report.messages).sum();
    match plan.workload {
        Workload::Connect | Workload::Idle => 0,
        Workload::Rtt => 2 * all,
        Workload::Fair => {
            let to_all = sent.first().map_or(0, |report| report.messages);
            to_all * receivers as u64 + (all - to_all)
        }
        Workload::Filter => {
            let readers = |stream| (0..receivers).filter(|r| r % plan.senders == stream).count();
            let sent = sent.iter().enumerate();
            sent.map(|(stream, report)| report.messages * readers(stream) as u64).sum()
        }
        _ => all * receivers as u64,
    }
}

/// How long a run may take: far more than it should.
fn allowance(plan: &Plan) -> Duration {
    match plan.limit {
        Limit::Nanoseconds(time) => Duration::from_nanos(time) + PATIENCE,
        // At least 5000 messages or 200 connections a second.
        Limit::Count(count) => Duration::from_millis(5 * count) + PATIENCE,
    }
}

fn broker(plan: &Plan, patience: Patience<'_>) -> io::Result<Option<Broker>> {
    let what = format!("the broker of {}", plan.system.name());
    let process = match plan.system {
        System::RawUnix | System::UdpMulticast | System::Zeromq | System::SharedMemory => {
            return Ok(None);
        }
        System::Unisono
        | System::UnisonoRing
        | System::Relay
        | System::RelayPlain
        | System::SharedMemoryBroker
        | System::Turns => {
            let mut process = Process::worker(what)?;
            let (plan, role) = (plan.clone(), Role::Broker);
            process.tell(&Task { plan, role })?;
            let _: Ready = process.hear(patience)?;
            return Ok(Some(Broker { process, _controller: None }));
        }
        System::DbusBroker => return dbus_broker(plan, what).map(Some),
        System::DbusDaemon => {
            let config = plan.dir.join("dbus.conf");
            fs::write(&config, dbus_config(plan))?;
            let option = prefixed("--config-file=", config.as_os_str());
            let words = [option.as_os_str(), "--nofork".as_ref(), "--nopidfile".as_ref()];
            program(plan, &words, what)?
        }
        System::Busd => {
            let address = prefixed("--address=unix:path=", plan.socket().as_os_str());
            program(plan, &[&address], what)?
        }
        System::Nats => {
            let config = plan.dir.join("nats.conf");
            fs::write(&config, nats_config(plan.port))?;
            program(plan, &["-c".as_ref(), config.as_os_str()], what)?
        }
    };
    let mut broker = Broker { process, _controller: None };
    wait_until_it_listens(plan, &mut broker.process)?;
    Ok(Some(broker))
}

fn program(plan: &Plan, words: &[&OsStr], what: String) -> io::Result<Process> {
    let program = installed(plan.system)?;
    let words = [program.as_os_str()].into_iter().chain(words.iter().copied());
    Process::program(&plan.pin, words, Stdio::null(), log_file(plan)?, what)
}

fn installed(system: System) -> io::Result<OsString> {
    let program = system.program().and_then(find);
    let program = program.ok_or_else(|| io::Error::other("it is not installed"))?;
    Ok(program.into_os_string())
}

/// A dbus-broker is given its socket by a controller, usually its launcher; here by us, so that no
/// service manager has a part in it.
fn dbus_broker(plan: &Plan, what: String) -> io::Result<Broker> {
    let listener = UnixListener::bind(plan.socket())?;
    // It accepts until there is nobody left to accept.
    listener.set_nonblocking(true)?;
    let (ours, theirs) = UnixStream::pair()?;
    let program = installed(plan.system)?;
    let words = [
        program.as_os_str(),
        "--controller".as_ref(),
        "0".as_ref(),
        "--machine-id".as_ref(),
        "0123456789abcdef0123456789abcdef".as_ref(),
        "--max-bytes".as_ref(),
        "100000000000".as_ref(),
        "--max-fds".as_ref(),
        "1000000".as_ref(),
        "--max-matches".as_ref(),
        "100000000".as_ref(),
        "--max-objects".as_ref(),
        "100000000".as_ref(),
    ];
    let stdin = Stdio::from(OwnedFd::from(theirs));
    let process = Process::program(&plan.pin, words, stdin, log_file(plan)?, what)?;
    // An answer is due at once; a broker that ended would be the end of the socket as well.
    ours.set_read_timeout(Some(PATIENCE))?;
    let controller = client::add_listener(ours, listener.as_fd())?;
    Ok(Broker { process, _controller: Some(controller) })
}

fn wait_until_it_listens(plan: &Plan, broker: &mut Process) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let listens = match plan.system {
            System::Nats => TcpStream::connect((Ipv4Addr::LOCALHOST, plan.port)).map(drop),
            _ => UnixStream::connect(plan.socket()).map(drop),
        };
        match listens {
            Ok(()) => return Ok(()),
            Err(_) if !broker.runs() => {
                let said = fs::read_to_string(log(plan)).unwrap_or_default();
                let said = said.trim();
                return Err(io::Error::other(format!("its broker ended at once: {said}")));
            }
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// What a broker of somebody else says: of interest only if it ends.
fn log(plan: &Plan) -> PathBuf {
    plan.dir.join("log")
}

fn log_file(plan: &Plan) -> io::Result<Stdio> {
    fs::File::create(log(plan)).map(Stdio::from)
}

/// A port that was free a moment ago.
fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

fn prefixed(prefix: &str, rest: &OsStr) -> OsString {
    let mut word = OsString::from(prefix);
    word.push(rest);
    word
}

/// Everything is allowed, and no limit is ever met.
fn dbus_config(plan: &Plan) -> String {
    let limits = [
        "max_incoming_bytes",
        "max_outgoing_bytes",
        "max_message_size",
        "max_completed_connections",
        "max_incomplete_connections",
        "max_connections_per_user",
        "max_names_per_connection",
        "max_match_rules_per_connection",
        "max_replies_per_connection",
    ];
    let limits: String = limits
        .iter()
        .map(|name| {
            let most = if *name == "max_message_size" { 134_217_728 } else { 1_000_000_000 };
            format!("<limit name=\"{name}\">{most}</limit>")
        })
        .collect();
    format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\
         <busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
         <policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>\
         <allow eavesdrop=\"true\"/><allow own=\"*\"/></policy>{limits}</busconfig>",
        plan.socket().display()
    )
}

fn nats_config(port: u16) -> String {
    format!(
        "listen: 127.0.0.1:{port}\nmax_payload: 64MB\nmax_pending: 1GB\n\
         write_deadline: \"60s\"\nlogfile: \"/dev/null\"\n"
    )
}

const PATIENCE: Duration = Duration::from_secs(60);
const SETTLED: Duration = Duration::from_millis(200);
