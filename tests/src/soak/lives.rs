//! Programs that are killed, stopped, or have no memory.

use std::collections::VecDeque;
use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use bus_core::MemberFlags;
use bus_core::wire::{ClientFrame, Response};
use bytes::BytesMut;
use nix::sys::signal::Signal;

use super::Field;
use crate::process::Process;
use crate::programs;
use crate::raw::{RawClient, id, send_frame};

/// Listeners, senders in mid-stream, owners of names and services are killed as fast as planned.
pub(super) fn killed(field: &mut Field<'_>) -> String {
    let Field { broker, plan, random } = field;
    let lines: String = (0..20_000).map(|line| format!("line {line} of many\n")).collect();
    let input = broker.file_with("victims.input", lines);
    let stays = broker.unisono("listen victims --drop-when-full --json");
    let stays = stays.output_to(&broker.file("victims")).start();
    broker.until_members("victims", "somebody stays", |members| !members.is_empty());
    let began = Instant::now();
    let pause = Duration::from_secs(1) / plan.kills_per_second;
    let mut alive: VecDeque<Process> = VecDeque::new();
    let mut killed = 0_u32;
    while began.elapsed() < plan.each {
        let launch = match random.below(5) {
            0 => broker.unisono("listen victims --json"),
            1 => broker.unisono("own org.example.Victim --shared"),
            2 => broker.unisono("serve org.example.Served --shared -- cat"),
            _ => broker.unisono("send victims --lines --json --file").arg(&input),
        };
        alive.push_back(launch.output_to(&broker.file("victims.output")).start());
        // Some have just begun, some are in mid-stream.
        if alive.len() > 12 {
            let victim = alive.swap_remove_back(random.below(alive.len())).unwrap();
            victim.signal_if_there(Signal::SIGKILL);
            killed += 1;
        }
        let due = began + pause * (killed + 12);
        std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
    }
    for victim in &alive {
        victim.signal_if_there(Signal::SIGKILL);
        killed += 1;
    }
    drop(alive);
    let rate = f64::from(killed) / began.elapsed().as_secs_f64();
    let _ = stays.end_by(Signal::SIGKILL);
    let heard = fs::read_to_string(broker.file("victims")).map_or(0, |text| text.lines().count());
    check_order(&broker.file("victims"));
    format!("{killed} killed, {rate:.0} a second, while {heard} lines of theirs were heard")
}

/// What was heard of those who died is in order, and nothing of it comes twice.
fn check_order(path: &std::path::Path) {
    crate::trace::Trace::read_cut(path).assert_ordered();
}

/// Members are stopped: their senders wait for as long as the stall limit, and then go on.
pub(super) fn stopped_readers(field: &mut Field<'_>) -> String {
    let Field { broker, plan, .. } = field;
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
    format!("{evicted} put out, the longest after {:.1} s", longest.as_secs_f64())
}

/// Senders stop in the middle of a frame, and some die there.
pub(super) fn stopped_senders(field: &mut Field<'_>) -> String {
    let Field { broker, plan, random } = field;
    let began = Instant::now();
    let mut member = broker.raw();
    let group = member.join_with("halves", MemberFlags::DROP_WHEN_FULL).unwrap();
    let mut stopped: VecDeque<RawClient> = VecDeque::new();
    let (mut halves, mut finished) = (0_u32, 0_u32);
    while began.elapsed() < plan.each {
        let mut sender = broker.raw();
        let serial = sender.next_serial();
        let payload = random.bytes(1 + random.clone().below(100_000));
        let frame = send_frame(id(serial), bus_core::Destination::Group(group), &payload);
        let mut bytes = BytesMut::new();
        ClientFrame::Send(frame).encode(&mut bytes).unwrap();
        let half = 1 + random.below(bytes.len() - 1);
        sender.write(&bytes[..half]);
        halves += 1;
        if random.below(4) == 0 {
            sender.write(&bytes[half..]);
            assert!(sender.outcome(serial).is_ok(), "what was finished is sent");
            finished += 1;
        }
        stopped.push_back(sender);
        if stopped.len() > 64 {
            stopped.pop_front();
        }
    }
    drop(stopped);
    // A process that is stopped between any two of its instructions.
    let input = broker.file("victims.input");
    let sender = broker.unisono("send halves --lines --json --file").arg(&input);
    let mut sender = sender.output_to(&broker.file("victims.output")).start();
    for _ in 0..20 {
        if !sender.runs() {
            break;
        }
        sender.signal_if_there(Signal::SIGSTOP);
        member.ping();
        sender.signal_if_there(Signal::SIGCONT);
    }
    sender.signal_if_there(Signal::SIGKILL);
    drop(sender);
    format!("{halves} frames cut, {finished} of them finished later")
}

/// Listeners that may not have the memory for what is sent to them.
pub(super) fn without_memory(field: &mut Field<'_>) -> String {
    let Field { broker, plan, .. } = field;
    let began = Instant::now();
    let mut sender = broker.raw();
    let mut died = 0;
    while died == 0 || began.elapsed() < plan.each {
        let group = format!("memory.{died}");
        let script = format!("ulimit -v 60000; exec \"$0\" listen {group} --json");
        let listener = super::shell(broker, &script, &programs::unisono());
        let mut listener = listener.output_to(&broker.file("memory")).start();
        broker.until_members(&group, "it is a member", |members| members.len() == 1);
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
    format!("{died} listeners died of messages of 15 MiB")
}
