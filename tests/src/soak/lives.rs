//! Programs that are killed, stopped, or have no memory.

use std::collections::VecDeque;
use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use bus_core::MemberFlags;
use bus_core::wire::{ClientFrame, Response};
use bytes::BytesMut;
use nix::sys::signal::Signal;

use super::victims::{End, Storm, Victim};
use super::zygote::GROUP;
use super::{Fault, Field};
use crate::raw::{RawClient, id, send_frame};

/// Clients of every kind are killed as fast as planned, each at a random age and in whatever it is
/// doing, under the load that they make.
pub(super) fn killed(field: &mut Field<'_>) -> String {
    let Field { broker, plan, victims, .. } = field;
    let stays = broker.unisono(&format!("listen {GROUP} --drop-when-full --json"));
    let stays = stays.output_to(&broker.file("victims")).start();
    broker.until_members(GROUP, "somebody stays", |members| !members.is_empty());
    // What this machine can do at all, just now: with processes that do nothing.
    let possible = victims.storm(1, 0, plan.each.min(Duration::from_millis(300))).rate;
    let storm = victims.storm(CROWD, plan.kills_per_second, plan.each);
    let _ = stays.end_by(Signal::SIGKILL);
    let heard = fs::read_to_string(broker.file("victims")).map_or(0, |text| text.lines().count());
    check_order(&broker.file("victims"));
    let Storm { killed, ended, rate } = storm;
    if ended > 0 {
        field.findings.push(format!("{ended} clients ended before they were killed"));
    }
    let wanted = f64::from(field.plan.kills_per_second);
    let mut note = String::new();
    if rate < 0.95 * wanted {
        note = format!(", TOO FEW: {wanted} were asked for");
        // Else it is the machine, and that is said.
        if possible > 2.0 * wanted {
            field.findings.push(format!("clients killed: {rate:.0} a second, not {wanted}"));
        }
    }
    // Without a turn of the processor for long enough a client does not read.
    for message in [EVICTED, PUT_OUT] {
        let what = "clients that were to be killed";
        let (about, program) = if message == EVICTED { (GROUP, None) } else { ("org.", None) };
        let fault = Fault { what, message, about, program, each: false };
        field.faults.injected(fault, killed + CROWD);
    }
    format!(
        "{killed} killed, {rate:.0} a second{note} (of processes that do nothing: {possible:.0}), \
         while {heard} lines of theirs were heard"
    )
}

/// How many are alive at once.
const CROWD: u64 = 12;
pub(super) const EVICTED: &str = "evicted: it did not read while senders waited for it";
const PUT_OUT: &str = "put out of a shared name: it did not read while senders waited for a worker";

/// What was heard of those who died is in order, and nothing of it comes twice.
fn check_order(path: &std::path::Path) {
    crate::trace::Trace::read_cut(path).assert_ordered();
}

/// Members are stopped: their senders wait for as long as the stall limit, and then go on.
pub(super) fn stopped_readers(field: &mut Field<'_>) -> String {
    let Field { broker, plan, faults, .. } = field;
    let began = Instant::now();
    let mut sender = broker.raw();
    let (mut evicted, mut longest) = (0, Duration::ZERO);
    while evicted == 0 || began.elapsed() < plan.each {
        let group = format!("stopped.{evicted}");
        let reader = broker.unisono(&format!("listen {group} --json"));
        let reader = reader.output_to(&broker.file("stopped")).start();
        broker.until_members(&group, "it is a member", |members| members.len() == 1);
        reader.stop();
        let id = sender.find(&group).unwrap();
        let since = Instant::now();
        // The queue, what the socket holds, and one more: until it is put out.
        while sender.members(&group).is_ok_and(|members| !members.is_empty()) {
            let _ = sender.send(bus_core::Destination::Group(id), &[0; 32 << 10]);
        }
        longest = longest.max(since.elapsed());
        evicted += 1;
        reader.go_on();
        let _ = reader.end_by(Signal::SIGKILL);
    }
    let (message, about, program) = (EVICTED, "stopped.", Some("unisono"));
    let fault = Fault { what: "stopped readers", message, about, program, each: true };
    faults.injected(fault, evicted);
    format!("{evicted} put out, the longest after {:.1} s", longest.as_secs_f64())
}

/// Senders stop in the middle of a frame. Some go on and finish it, some are killed, some close
/// their connection there; and one is stopped between any two of its instructions.
pub(super) fn stopped_senders(field: &mut Field<'_>) -> String {
    let Field { broker, plan, random, victims, .. } = field;
    let began = Instant::now();
    let mut member = broker.raw();
    let group = member.join_with("halves", MemberFlags::DROP_WHEN_FULL).unwrap();
    let mut cut: VecDeque<RawClient> = VecDeque::new();
    let mut stopped: VecDeque<Victim> = VecDeque::new();
    let [mut halves, mut stops, mut finished, mut killed] = [0_u32; 4];
    while stops == 0 || began.elapsed() < plan.each {
        let sender = victims.make("half");
        sender.until_stopped();
        stops += 1;
        stopped.push_back(sender);
        for _ in 0..10 {
            let mut sender = broker.raw();
            let serial = sender.next_serial();
            let payload = random.bytes(1 + random.clone().below(100_000));
            let frame = send_frame(id(serial), bus_core::Destination::Group(group), &payload);
            let mut bytes = BytesMut::new();
            ClientFrame::Send(frame).encode(&mut bytes).unwrap();
            sender.write(&bytes[..1 + random.below(bytes.len() - 1)]);
            halves += 1;
            cut.push_back(sender);
        }
        // Nobody else waits for any of them.
        member.ping();
        cut.drain(..cut.len().saturating_sub(64));
        if stopped.len() > 16 {
            let sender = stopped.pop_front().unwrap();
            if random.below(2) == 0 {
                assert_eq!(victims.kill(sender), End::Killed);
                killed += 1;
            } else {
                sender.go_on();
                assert_eq!(victims.end(sender), End::Exited(0), "what is finished is sent");
                finished += 1;
            }
        }
    }
    for sender in stopped {
        sender.go_on();
        assert_eq!(victims.end(sender), End::Exited(0), "what is finished is sent");
        finished += 1;
    }
    drop(cut);
    member.join_with(GROUP, MemberFlags::DROP_WHEN_FULL).unwrap();
    let sender = victims.make("sender");
    let mut random_stops = 0;
    while random_stops < 20 {
        sender.stop();
        member.ping();
        sender.go_on();
        random_stops += 1;
    }
    let _ = victims.kill(sender);
    format!(
        "{stops} senders stopped in mid-frame, of which {finished} went on and finished it and \
         {killed} were killed; {halves} frames cut by closing; one sender stopped {random_stops} times"
    )
}

/// From now on a process may not have the memory for one more large message, whatever it has now.
fn limit_memory(pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let has = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let has: u64 = has.split_whitespace().next().unwrap().parse().unwrap();
    let most = Some((has << 10) + (8 << 20));
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap());
    let limit = rustix::process::Rlimit { current: most, maximum: most };
    rustix::process::prlimit(pid, rustix::process::Resource::As, limit).unwrap();
}

/// Listeners that may not have the memory for what is sent to them.
pub(super) fn without_memory(field: &mut Field<'_>) -> String {
    let Field { broker, plan, faults, .. } = field;
    let began = Instant::now();
    let mut sender = broker.raw();
    let mut died = 0;
    while died == 0 || began.elapsed() < plan.each {
        let group = format!("memory.{died}");
        let listener = broker.unisono(&format!("listen {group} --json"));
        let mut listener = listener.output_to(&broker.file("memory")).start();
        broker.until_members(&group, "it is a member", |members| members.len() == 1);
        limit_memory(listener.pid());
        let id = sender.find(&group).unwrap();
        while listener.runs() && sender.find(&group).is_ok() {
            let _ = sender.send(bus_core::Destination::Group(id), &vec![b'x'; 15 << 20]);
        }
        listener.signal_if_there(Signal::SIGKILL);
        drop(listener);
        died += 1;
    }
    assert!(matches!(sender.call(bus_core::wire::Request::Ping), Ok(Response::Pong)));
    let _ = sender.stream.flush();
    // Who is about to die may first be too slow.
    let (message, about, program) = (EVICTED, "memory.", Some("unisono"));
    let fault = Fault { what: "listeners without memory", message, about, program, each: false };
    faults.injected(fault, died);
    format!("{died} listeners died of messages of 15 MiB")
}
