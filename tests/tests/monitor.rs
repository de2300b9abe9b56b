//! A monitor in a process of its own: it sees everything, and slows nobody.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use bus_core::Destination;
use bus_core::wire::{BrokerFrame, Notice, Request, Response};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::broker::Broker;
use tests::deadline::eventually;
use tests::raw::RawClient;

fn monitor(client: &mut RawClient) {
    match client.call(Request::Monitor { group: None }) {
        Ok(Response::Monitoring { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn monitor_shows_messages_direct_ones_too_and_who_comes_and_goes() {
    let broker = Broker::start();
    let monitor = broker.unisono("monitor --json").start();
    let line = || -> Value { serde_json::from_str(&monitor.line()).unwrap() };
    assert_eq!(line()["type"], "monitoring");
    let (mut member, mut sender) = (broker.raw(), broker.raw());
    let group = Destination::Group(member.join("seen"));
    let joined = line();
    assert_eq!((&joined["type"], &joined["change"]), (&"change".into(), &"joined".into()));
    assert_eq!((&joined["group"], &joined["members"]), (&"seen".into(), &1.into()));
    let receipt = sender.send(group, b"to all").unwrap();
    assert_eq!(receipt.recipients, 1);
    let message = line();
    assert_eq!((&message["group"], &message["payload"]), (&"seen".into(), &"to all".into()));
    assert_eq!(message["sequence"], receipt.sequence.get());
    assert_eq!(message["sender"], sender.endpoint().get());
    sender.send(member.address(), b"to one").unwrap();
    let message = line();
    assert_eq!(
        (&message["to"], &message["payload"]),
        (&member.endpoint().get().into(), &"to one".into())
    );
    drop(member);
    let closed = line();
    assert_eq!((&closed["change"], &closed["members"]), (&"closed".into(), &0.into()));
    monitor.signal(Signal::SIGINT);
    assert_eq!(line()["reason"], "signal");
    let _ = monitor.end().with(0);
}

#[test]
fn monitor_shows_requests_names_gates_and_outcomes() {
    let broker = Broker::start();
    let monitor = broker.unisono("monitor --json").start();
    let line = || -> Value { serde_json::from_str(&monitor.line()).unwrap() };
    assert_eq!(line()["type"], "monitoring");
    let serve = broker.unisono("serve org.example.Echo --json -- cat").start();
    let owner = line();
    assert_eq!((&owner["type"], &owner["name"]), (&"owner".into(), &"org.example.Echo".into()));
    assert!(owner["old"].is_null() && owner["owners"] == 1);
    let called = broker.unisono("call org.example.Echo Say hello").run().with(0);
    assert_eq!(called.output, "hello\n");
    let request = line();
    assert_eq!(request["kind"], "request");
    assert_eq!((&request["to"], &request["to_name"]), (&owner["new"], &owner["name"]));
    assert_eq!((&request["operation"], &request["payload"]), (&"Say".into(), &"hello".into()));
    let reply = line();
    assert_eq!((&reply["kind"], &reply["request"]), (&"reply".into(), &request["sequence"]));
    assert_eq!(reply["to"], request["sender"]);
    let _ = serve.end_by(Signal::SIGKILL);
    let gone = line();
    assert_eq!((&gone["type"], &gone["old"]), (&"owner".into(), &owner["new"]));

    let mut silent = broker.raw();
    let to = silent.endpoint().get();
    let late = broker.unisono(&format!("call {to} Say hello --timeout 200ms")).run();
    assert_ne!(late.code(), Some(0));
    let asked = line();
    let outcome = line();
    assert_eq!((&outcome["type"], &outcome["why"]), (&"outcome".into(), &"timed-out".into()));
    assert_eq!((&outcome["request"], &outcome["asked"]), (&asked["sequence"], &to.into()));
    silent.ping();

    let gate = broker.unisono("admit club --json --loopback").start();
    let created = line();
    assert_eq!((&created["type"], &created["change"]), (&"member".into(), &"created".into()));
    let member = broker.unisono("listen club --json").start();
    let asked = line();
    assert_eq!((&asked["change"], &asked["group"]), (&"asked".into(), &"club".into()));
    assert_eq!(line()["change"], "joined");
    let _ = gate.end_by(Signal::SIGKILL);
    assert_eq!(line()["change"], "owner-gone");
    let _ = member.end_by(Signal::SIGKILL);
    assert_eq!(line()["change"], "closed");
}

/// dbus-broker#232 and #381, systemd#13381: monitors that are thrown out when slow, or slow the bus.
#[test]
fn g7_a_monitor_that_reads_nothing_slows_nobody_and_knows_what_it_missed() {
    const MESSAGES: u64 = 20_000;
    let broker = Broker::start();
    let mut deaf = broker.raw();
    monitor(&mut deaf);
    let listener = broker.unisono("listen busy --quiet --count 20000").start();
    let lines: String = (0..MESSAGES).map(|number| format!("{number}\n")).collect();
    let input = broker.file_with("input", lines);
    let send = broker.unisono("send busy --lines --json --wait-members 1").input_from(&input);
    let receipts = send.run().with(0).json_lines();
    let places: BTreeSet<u64> =
        receipts.iter().map(|line| line["sequence"].as_u64().unwrap()).collect();
    assert_eq!(places.len() as u64, MESSAGES);
    assert!(receipts.iter().all(|line| line["recipients"] == 1 && line.get("dropped").is_none()));
    let _ = listener.end_by(Signal::SIGKILL);
    // What it has, and what it is told that it missed, is all that there was.
    let (mut seen, mut missed, mut bytes, mut held) = (0, 0, 0, 0);
    while seen + missed < MESSAGES {
        match deaf.hear() {
            BrokerFrame::Message(message) => {
                let gap = message.head.missed.map_or(0, |gap| gap.count);
                missed += gap;
                seen += u64::from(places.contains(&message.head.sequence.get()));
                held += 1;
                bytes += message.charged_bytes();
            }
            BrokerFrame::Notice { notice: Notice::MonitoredView(_), .. } => held += 1,
            BrokerFrame::Notice { notice: Notice::MonitorGap { gap }, .. } => missed += gap.count,
            BrokerFrame::Notice { notice: Notice::Monitored { .. }, .. } => {}
            other => panic!("{other:?}"),
        }
        if held == 256 {
            deaf.credit(held, bytes);
            (held, bytes) = (0, 0);
        }
    }
    assert!(seen >= 200 && missed > 0, "{seen} and {missed}");
}

#[test]
fn a_monitor_that_reads_nothing_keeps_no_descriptors_open() {
    let broker = Broker::start();
    let mut deaf = broker.raw();
    monitor(&mut deaf);
    let (mut receiver, mut sender) = (broker.raw(), broker.raw());
    let before = broker.descriptors();
    let (_, writer) = rustix::pipe::pipe().unwrap();
    for _ in 0..20 {
        let serial = sender.post_descriptors(receiver.address(), b"x", &[writer.as_fd(); 16]);
        sender.outcome(serial).unwrap();
        let message = receiver.receive();
        assert_eq!(message.head.descriptors, 16);
        receiver.descriptors.clear();
        receiver.say(&bus_core::wire::ClientFrame::DescriptorsTaken);
    }
    eventually("they are closed", || match broker.descriptors() {
        count if count <= before => Ok(()),
        count => Err(format!("{count} rather than {before}")),
    });
}

#[test]
fn g8_there_are_few_monitors() {
    let broker = Broker::with_limits("monitors = 2");
    let mut monitors = [broker.raw(), broker.raw()];
    monitors.iter_mut().for_each(monitor);
    let mut third = broker.raw();
    let refused = third.call(Request::Monitor { group: None }).unwrap_err();
    assert_eq!(refused.limit.as_deref(), Some("monitors"));
    drop(monitors);
    eventually("one place is free", || {
        third.call(Request::Monitor { group: None }).map(|_| ()).map_err(|e| e.text)
    });
}
