//! Readers that are slow, stopped or gone, with real processes: who waits, who misses, who is told.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bus_core::wire::{EvictionReason, FailureCode, Notice, Request};
use bus_core::{Destination, MemberFlags};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::broker::Broker;
use tests::deadline::eventually;
use tests::process::Process;
use tests::senders::{Senders, all_lines, lines, verify};
use tests::trace::{Trace, assert_identical, assert_streams};
use tests::transports::run_by_each;

/// Three listeners, of which the last is about to be stopped.
struct Listeners {
    free: [(Process, PathBuf); 2],
    stopped: Process,
    trace: PathBuf,
}

impl Listeners {
    fn start(broker: &Broker, how: &str) -> Self {
        let listen = |name: &str, line: &str| {
            let path = broker.file(name);
            (broker.listener(line, &path), path)
        };
        let free = [listen("one", "busy"), listen("two", "busy")];
        let (stopped, trace) = listen("three", &format!("busy {how}"));
        Self { free, stopped, trace }
    }

    /// Stops the third in mid-stream.
    fn stop_third(&self) {
        eventually("the third gets messages", || {
            let text = fs::read_to_string(&self.trace).unwrap();
            let first = text.lines().nth(1).is_some();
            first.then_some(()).ok_or(text)
        });
        self.stopped.stop();
    }

    /// Waits until all four senders wait for the third, and hence until it goes on. (Counting those
    /// that wait would not do: for moments they wait for the others.)
    fn until_all_wait(&self, broker: &Broker) {
        let third = self.stopped.pid();
        broker.until_members("busy", "all senders wait", |members| {
            let mut members = members.iter();
            members.any(|member| member.pid == third && member.blocks == 4)
        });
    }

    /// The free ones leave; gives their traces.
    fn end_free(free: [(Process, PathBuf); 2]) -> [Trace; 2] {
        free.map(|(process, path)| {
            let _ = process.end_by(Signal::SIGINT).with(0);
            Trace::read(&path)
        })
    }
}

/// What `unisono stats --json` says under `key`.
fn stat(broker: &Broker, key: &str) -> u64 {
    let lines = broker.unisono("stats --json").run().with(0).json_lines();
    lines[0][key].as_u64().unwrap_or_else(|| panic!("{key} in {lines:?}"))
}

/// The line of `unisono members --json` about this process.
fn member(broker: &Broker, pid: u32) -> Value {
    let members = broker.unisono("members busy --json").run().with(0);
    let lines = members.json_lines().into_iter();
    let mut own = lines.filter(|line| line["pid"] == pid);
    own.next().expect(&members.output)
}

#[test]
fn g5_senders_wait_for_a_stopped_listener_and_go_on_when_it_does() {
    let broker = Broker::with_limits("stall = \"600s\"");
    let listeners = Listeners::start(&broker, "");
    let senders = Senders::start(&broker, "busy", 4);
    listeners.stop_third();
    listeners.until_all_wait(&broker);
    assert_eq!(stat(&broker, "waiting_sends"), 4);
    let third = member(&broker, listeners.stopped.pid());
    assert_eq!(third["blocks"], 4, "{third}");
    assert_eq!(third["capacity"], 256, "{third}");
    assert!(third["queued_messages"].as_u64() >= Some(256), "{third}");
    assert!(third["full_since_sequence"].is_u64(), "{third}");
    let free = member(&broker, listeners.free[0].0.pid());
    assert_eq!(free["blocks"], 0, "{free}");
    // Nobody gets anything while all wait.
    let sent = stat(&broker, "messages");
    assert_eq!(stat(&broker, "messages"), sent);

    listeners.stopped.go_on();
    broker.until("senders go on", |stats| stats.messages > sent + 1_000);
    let sent = senders.end();
    let _ = listeners.stopped.end_by(Signal::SIGINT).with(0);
    let [one, two] = Listeners::end_free(listeners.free);
    let three = Trace::read(&listeners.trace);
    assert_streams(&one, &all_lines(&sent));
    assert_identical(&[one, two, three]);
    let traces = ["one", "two", "three"].map(|name| broker.file(name));
    let receipts: Vec<&Path> = sent.iter().map(|sent| sent.receipts.as_path()).collect();
    verify(&broker, traces.iter().map(PathBuf::as_path), receipts);
}

#[test]
fn g5_senders_that_wait_for_a_stopped_listener_go_on_when_it_is_killed() {
    let broker = Broker::with_limits("stall = \"600s\"");
    let listeners = Listeners::start(&broker, "");
    let senders = Senders::start(&broker, "busy", 4);
    listeners.stop_third();
    listeners.until_all_wait(&broker);
    let waiting = broker.raw().stats();
    let _ = listeners.stopped.end_by(Signal::SIGKILL).killed_by(Signal::SIGKILL);
    broker.until("senders go on", |stats| stats.messages > waiting.messages + 1_000);
    let sent = senders.end();
    let [one, two] = Listeners::end_free(listeners.free);
    assert_streams(&one, &all_lines(&sent));
    Trace::read_cut(&listeners.trace).assert_beginning_of(&one);
    assert_identical(&[one, two]);
}

#[test]
fn g5_a_sender_that_is_killed_while_it_waits_has_sent_what_had_room_and_no_more() {
    let broker = Broker::with_limits("stall = \"600s\"");
    let path = broker.file("trace");
    let listener = broker.listener("held", &path);
    listener.stop();
    let mut senders = Senders::start(&broker, "held", 2);
    broker.until("both wait", |stats| stats.waiting_sends == 2);
    let committed = broker.raw().stats().messages;
    let dead = senders.kill_one();
    let stats = broker.until("one waits", |stats| stats.waiting_sends == 1);
    assert_eq!(stats.messages, committed);
    listener.go_on();
    let sent = senders.end();
    let _ = listener.end_by(Signal::SIGINT).with(0);
    let trace = Trace::read(&path);
    trace.assert_ordered();
    let streams: Vec<Vec<&str>> = trace.by_sender().into_values().collect();
    let early = trace.messages.iter().take(usize::try_from(committed).unwrap());
    for own in &streams {
        let of_dead = own.first() == dead.lines.first().map(String::as_str).as_ref();
        let all = if of_dead { &dead.lines } else { &sent[0].lines };
        assert!(own.iter().zip(all).all(|(heard, sent)| heard == sent));
        assert!(of_dead || own.len() == all.len());
    }
    // What is later than the kill is the other one's.
    let early: Vec<_> = early.collect();
    let survivor = trace.messages.last().unwrap().sender;
    let late = &trace.messages[early.len()..];
    assert!(late.iter().all(|heard| heard.sender == survivor));
}

#[test]
fn g7_nobody_waits_for_a_stopped_listener_that_drops_and_it_is_told_what_it_missed() {
    let broker = Broker::with_limits("stall = \"600s\"");
    let listeners = Listeners::start(&broker, "--drop-when-full");
    let senders = Senders::start(&broker, "busy", 4);
    listeners.stop_third();
    broker.until("it misses some", |stats| stats.dropped > 1_000);
    // They end while it stands.
    let mut sent = all_lines(&senders.end());
    assert_eq!(stat(&broker, "waiting_sends"), 0);
    let third = member(&broker, listeners.stopped.pid());
    let dropped = third["dropped"].as_u64().unwrap();
    assert!(dropped > 1_000, "{third}");
    assert_eq!(third["flags"], serde_json::json!(["drop-when-full"]), "{third}");
    assert_eq!(stat(&broker, "dropped"), dropped);

    listeners.stopped.go_on();
    let receipt = broker.unisono("send busy --json and-one-more").run().with(0);
    sent.push(vec!["and-one-more".to_owned()]);
    // It may still be full; then it misses this one too.
    let missed_too = receipt.json_lines()[0]["dropped"].as_u64().unwrap_or(0);
    let _ = listeners.stopped.end_by(Signal::SIGINT).with(0);
    let [one, two] = Listeners::end_free(listeners.free);
    assert_streams(&one, &sent);
    let three = Trace::read(&listeners.trace);
    assert_eq!(three.missed_count(), dropped + missed_too);
    three.assert_part_of(&one);
    assert_identical(&[one, two]);
    let traces = ["one", "two", "three"].map(|name| broker.file(name));
    verify(&broker, traces.iter().map(PathBuf::as_path), []);
}

/// nats-server#57, dbus-broker#192: "why was I closed?", and what became of what was under way.
#[test]
fn g8_a_stopped_listener_is_evicted_told_why_and_the_senders_go_on() {
    // Far longer than any reader here takes, but for the one that stands.
    let broker = Broker::with_limits("stall = \"2s\"");
    let listeners = Listeners::start(&broker, "");
    let senders = Senders::start(&broker, "busy", 4);
    listeners.stop_third();
    let pid = listeners.stopped.pid().to_string();
    broker.until_logged(&["evicted", &pid]);
    let after = broker.raw().stats().messages;
    broker.until("senders go on", |stats| stats.messages > after + 1_000);
    let sent = senders.end();
    listeners.stopped.go_on();
    let ended = listeners.stopped.end().with(4);
    assert!(ended.errors.contains("evicted"), "{}", ended.errors);
    let [one, two] = Listeners::end_free(listeners.free);
    assert_streams(&one, &all_lines(&sent));
    let three = Trace::read(&listeners.trace);
    let reason = three.evicted.as_deref().unwrap();
    assert!(reason.starts_with("stalled for 2."), "{reason}");
    three.assert_beginning_of(&one);
    assert!(three.messages.len() < one.messages.len());
    assert_identical(&[one, two]);
}

#[test]
fn g8_a_stopped_listener_may_leave_instead_and_nobody_waits() {
    let broker = Broker::with_limits("stall = \"600s\"");
    let listeners = Listeners::start(&broker, "--leave-when-full");
    let senders = Senders::start(&broker, "busy", 4);
    listeners.stop_third();
    broker.until("it has left", |stats| stats.endpoints > 0 && members(&broker, "busy") == 2);
    let after = broker.raw().stats().messages;
    broker.until("senders go on", |stats| stats.messages > after + 1_000);
    let sent = senders.end();
    listeners.stopped.go_on();
    let _ = listeners.stopped.end().with(4);
    let [one, two] = Listeners::end_free(listeners.free);
    assert_streams(&one, &all_lines(&sent));
    let three = Trace::read(&listeners.trace);
    assert_eq!(three.evicted.as_deref(), Some("left: its queue was full"));
    three.assert_beginning_of(&one);
    assert_identical(&[one, two]);
}

fn members(broker: &Broker, group: &str) -> usize {
    let listed = broker.unisono(&format!("members {group} --json")).start().end().with(0);
    listed.json_lines().len()
}

#[test]
fn g8_a_group_made_with_a_stall_limit_evicts_by_that() {
    let broker = Broker::with_limits("stall = \"600s\"");
    let maker = broker.unisono("create busy --stall 200ms --json").start();
    assert_eq!(maker.json()["type"], "created");
    let mut deaf = broker.raw();
    deaf.join("busy");
    let mut sender = broker.raw();
    let group = Destination::Group(sender.join("busy"));
    for _ in 0..257 {
        // The last one waits until the member is put out.
        assert!(sender.send(group, b"x").is_ok());
    }
    broker.until_logged(&["evicted"]);
    let too_short = broker.unisono("create other --stall 99ms").start().end();
    assert!(too_short.with(1).errors.contains("100 ms to 10 minutes"));
}

#[test]
fn g8_a_member_that_never_reads_is_evicted_and_may_return_only_if_it_drops_for_a_while() {
    let broker = Broker::with_limits("stall = \"1s\"");
    let (mut deaf, mut sender) = (broker.raw(), broker.raw());
    let group = Destination::Group(deaf.join("held"));
    for _ in 0..256 {
        assert_eq!(sender.send(group, b"x").unwrap().recipients, 1);
    }
    // It waits until the member is put out. Nobody else is there, so the group may have ended.
    let last = sender.send(group, b"waits");
    let reached = last.as_ref().map_or(0, |receipt| receipt.recipients);
    assert_eq!(reached, 0, "{last:?}");
    // The back-off is of the process and the group's name.
    let refused = deaf.join_with("held", MemberFlags::empty()).unwrap_err();
    assert_eq!(refused.code, FailureCode::BackOff);
    let left = refused.retry_after.unwrap();
    assert!(left > Duration::ZERO && left <= Duration::from_secs(1), "{left:?}");
    let again = deaf.join_with("held", MemberFlags::DROP_WHEN_FULL).unwrap();
    for _ in 0..256 {
        deaf.message();
    }
    match deaf.notice() {
        Notice::Evicted { group_id, reason, stalled, queued_messages, back_off, .. } => {
            assert_eq!(Destination::Group(group_id), group);
            assert_eq!(reason, EvictionReason::Stalled);
            assert!(stalled >= Duration::from_secs(1), "{stalled:?}");
            assert_eq!(queued_messages, 256);
            assert_eq!(back_off, Duration::from_secs(1));
        }
        other => panic!("{other:?}"),
    }
    deaf.credit(256, 256);
    deaf.call(Request::Leave { group_id: again }).unwrap();
    eventually("the back-off ends", || {
        let joined = deaf.join_with("held", MemberFlags::empty());
        joined.map_err(|failure| failure.to_string())
    });
}

#[test]
fn g8_a_direct_send_to_an_endpoint_that_never_reads_ends_with_recipient_stalled() {
    let broker = Broker::with_limits("stall = \"300ms\"\nqueue_messages = 2");
    let (deaf, mut sender) = (broker.raw(), broker.raw());
    let address = deaf.address();
    sender.send(address, b"1").unwrap();
    sender.send(address, b"2").unwrap();
    let refused = sender.send(address, b"3").unwrap_err();
    assert_eq!(refused.code, FailureCode::RecipientStalled);
    let mine = sender.address();
    sender.send(mine, b"goes on").unwrap();
}

#[test]
fn g10_a_member_that_never_reads_holds_up_its_group_and_nothing_else() {
    let broker = Broker::with_limits("stall = \"600s\"");
    let mut deaf = broker.raw();
    let held = Destination::Group(deaf.join("held"));
    // Both of its memberships deliver into the one full queue, and only they wait.
    deaf.join("held.too");
    let sender = Senders::start(&broker, "held", 1);
    let too = Senders::start(&broker, "held.too", 1);
    broker.until("both wait", |stats| stats.waiting_sends == 2);
    let listener = broker.listener("free --count 10000", &broker.file("free"));
    let input = broker.file_with("input", lines(7, 10_000).join("\n"));
    let free = broker.unisono("send free --lines").input_from(&input);
    let _ = free.run().with(0);
    let _ = listener.end().with(0);
    assert_streams(&Trace::read(&broker.file("free")), &[lines(7, 10_000)]);
    let stats = broker.raw().stats();
    assert_eq!((stats.waiting_sends, stats.dropped), (2, 0));
    let mut other = broker.raw();
    let refused = other.try_send(held, b"x").unwrap_err();
    assert_eq!(refused.full, [deaf.endpoint()]);
    // When it goes, its groups end, and those that wait are told.
    drop(deaf);
    for senders in [sender, too] {
        for (_, ended) in senders.stop() {
            let ended = ended.with(1);
            assert!(ended.errors.contains("group"), "{}", ended.errors);
        }
    }
}

#[test]
fn g7_a_member_that_never_reads_and_drops_holds_up_nobody_and_knows_its_gaps() {
    let broker = Broker::start();
    let mut deaf = broker.raw();
    let group = deaf.join_with("dropping", MemberFlags::DROP_WHEN_FULL).unwrap();
    let listener = broker.listener("dropping --count 3003", &broker.file("all"));
    let input = broker.file_with("input", lines(0, 3_000).join("\n"));
    let send = broker.unisono("send dropping --lines --json").input_from(&input);
    let receipts = send.run().with(0).json_lines();
    let dropped = receipts.iter().filter(|line| line["dropped"] == 1).count();
    assert_eq!(dropped, 3_000 - 256);
    let places = |line: &Value| line["sequence"].as_u64().unwrap();
    // Room, while messages are left: the next message of the group tells the gap.
    let first = deaf.receive();
    assert_eq!(first.head.missed, None);
    deaf.ping();
    let mut sender = broker.raw();
    let destination = Destination::Group(group);
    let next = sender.send(destination, b"next").unwrap();
    assert_eq!((next.recipients, next.dropped), (2, 0));
    for receipt in &receipts[1..256] {
        let message = deaf.message();
        assert_eq!(message.head.sequence.get(), places(receipt));
        assert_eq!(message.head.missed, None);
    }
    let told = deaf.message().head;
    assert_eq!(told.sequence, next.sequence);
    let gap = told.missed.unwrap();
    assert_eq!(gap.count, 3_000 - 256);
    assert_eq!(gap.first.get(), places(&receipts[256]));
    assert_eq!(gap.last.get(), places(&receipts[2_999]));
    // Full again, and all is taken at once: a notice of its own tells the gap.
    let full = sender.send(destination, b"missed").unwrap();
    assert_eq!(full.dropped, 1);
    let held = lines(0, 256);
    let bytes: usize = held[1..].iter().map(String::len).sum();
    deaf.credit(256, (bytes + "next".len()) as u64);
    match deaf.notice() {
        Notice::Gap { group_id, gap } => {
            assert_eq!(group_id, group);
            assert_eq!((gap.count, gap.first, gap.last), (1, full.sequence, full.sequence));
        }
        other => panic!("{other:?}"),
    }
    sender.send(destination, b"last").unwrap();
    assert_eq!(deaf.receive().head.missed, None);
    let _ = listener.end().with(0);
    assert_eq!(Trace::read(&broker.file("all")).messages.len(), 3_003);
}

#[test]
fn g8_nobody_is_stalled_while_the_broker_itself_stands() {
    let broker = Broker::with_limits("stall = \"3s\"\nqueue_messages = 2");
    let (mut member, mut sender) = (broker.raw(), broker.raw());
    let group = Destination::Group(member.join("held"));
    sender.send(group, b"1").unwrap();
    sender.send(group, b"2").unwrap();
    let waits = sender.post(group, b"3");
    broker.until("it waits", |stats| stats.waiting_sends == 1);
    broker.stop();
    // Longer than the stall limit.
    let ping = broker.unisono("ping --timeout 3500ms").run();
    broker.go_on();
    let _ = ping.with(3);
    for payload in [b"1", b"2", b"3"] {
        assert_eq!(member.receive().payload[..], payload[..]);
    }
    sender.outcome(waits).unwrap();
    assert!(!broker.log().contains("evicted"), "{}", broker.log());
}

/// dbus-broker#346 and #377, systemd#35411: memory that balloons behind a reader that does not read.
#[test]
fn g8_what_members_that_never_read_keep_is_bounded() {
    let broker = Broker::start();
    let mut deaf: Vec<_> = (0..8).map(|_| broker.raw()).collect();
    let mut group = None;
    for member in &mut deaf {
        group = Some(member.join_with("flood", MemberFlags::DROP_WHEN_FULL).unwrap());
    }
    let group = Destination::Group(group.unwrap());
    let mut sender = broker.raw();
    let payload = vec![7; 256 << 10];
    sender.send(group, &payload).unwrap();
    let before = broker.resident_kib();
    let mut dropped = 0;
    for _ in 0..500 {
        dropped += sender.send(group, &payload).unwrap().dropped;
    }
    assert!(dropped > 8 * 480, "{dropped}");
    let grown = broker.resident_kib().saturating_sub(before);
    // 125 MiB were sent. A queue holds 1 MiB and what crosses it, and all queues hold the same.
    assert!(grown < 32 << 10, "{grown} KiB");
}

#[test]
fn what_is_promised_does_not_depend_on_how_bytes_travel() {
    run_by_each(&[5, 7]);
}
