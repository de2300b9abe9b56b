//! Joins with the state of a group: what processes get, and that nothing is missing or twice.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bus_client::{Bus, Event, JoinOptions, Outgoing, Retain, Sequence};
use bus_core::wire::{BrokerFrame, ClientFrame, Handle, Notice, Request, Response};
use bus_core::{Destination, MemberFlags};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::broker::Broker;
use tests::deadline::{DEADLINE, eventually};
use tests::raw::{RawClient, name};
use tests::transports::run_by_each;

fn connect(broker: &Broker) -> Bus {
    let socket = broker.socket().to_str().unwrap();
    Bus::builder().address(socket).connect().unwrap()
}

/// Asks to join with the state, and does not wait for the answer.
fn join_with_state(client: &mut RawClient, group: &str) -> Sequence {
    let request = Request::Join {
        group: name(group),
        flags: MemberFlags::empty(),
        create: false,
        filter: None,
        retain: None,
        state: true,
    };
    match client.call(request) {
        Ok(Response::Joined { sequence, .. }) => sequence,
        other => panic!("{other:?}"),
    }
}

/// One visit: the state, where the join was, what followed.
struct Visit {
    state: BTreeMap<String, Sequence>,
    joined: Sequence,
    followed: Vec<Sequence>,
}

fn visit(broker: &Broker, group: &str, follow: usize) -> Visit {
    let bus = connect(broker);
    let member = bus.join_with(group, JoinOptions::new().create(false).with_state(true)).unwrap();
    let joined = member.joined().sequence;
    let (mut state, mut followed) = (BTreeMap::new(), Vec::new());
    let mut is_current = false;
    while !is_current || followed.len() < follow {
        match bus.receive_deadline(DEADLINE).unwrap().expect("in time") {
            Event::Message(message) if message.retained() => {
                assert!(!is_current, "the state comes first");
                let key = String::from_utf8(message.key().unwrap().to_vec()).unwrap();
                assert_eq!(message.group(), Some(group));
                assert_eq!(state.insert(key, message.sequence()), None, "one of each key");
            }
            Event::Current(current) => {
                assert_eq!((current.sequence, current.messages as usize), (joined, state.len()));
                is_current = true;
            }
            Event::Message(message) => {
                assert!(is_current, "what follows comes after the state");
                followed.push(message.sequence());
            }
            other => panic!("{other:?}"),
        }
    }
    Visit { state, joined, followed }
}

/// avahi#9, cockpit#5792, Tmds.DBus#57: between a snapshot and a subscription something was lost, or undone.
///
/// The race between a snapshot and the subscription after it, which there is none of here: several
/// senders update keys while others join with the state.
#[test]
fn g4_every_joiner_has_the_whole_state_under_load_no_hole_and_nothing_twice() {
    const KEYS: u32 = 20;
    let broker = Broker::start();
    let owner = connect(&broker);
    let _group = owner.create_retaining("prices", Retain::keys(KEYS)).unwrap();
    let stop = AtomicBool::new(false);
    let (mut sent, mut visits) = (BTreeMap::new(), Vec::new());
    thread::scope(|scope| {
        let senders: Vec<_> = (0..3)
            .map(|seed| {
                let (broker, stop) = (&broker, &stop);
                scope.spawn(move || {
                    let bus = connect(broker);
                    let group = bus.group("prices").unwrap();
                    let mut sent = BTreeMap::new();
                    let mut number: u32 = seed;
                    while !stop.load(Ordering::Relaxed) {
                        let key = format!("k{}", number % KEYS);
                        let message = Outgoing::text(number.to_string()).key(key.clone());
                        sent.insert(group.send(message).unwrap().sequence, key);
                        number += 7;
                    }
                    sent
                })
            })
            .collect();
        let visitors: Vec<_> = (0..3)
            .map(|_| {
                let broker = &broker;
                scope
                    .spawn(move || (0..15).map(|_| visit(broker, "prices", 20)).collect::<Vec<_>>())
            })
            .collect();
        for visitor in visitors {
            visits.extend(visitor.join().unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sent.extend(sender.join().unwrap());
        }
    });
    for Visit { state, joined, followed } in visits {
        let mut reference = BTreeMap::new();
        for (sequence, key) in sent.range(..joined) {
            reference.insert(key.clone(), *sequence);
        }
        assert_eq!(state, reference, "the state at {joined}");
        let until = *followed.last().unwrap();
        let after: Vec<_> = sent.range(joined..=until).map(|(sequence, _)| *sequence).collect();
        assert_eq!(followed, after, "after {joined}");
    }
}

#[test]
fn g8_a_state_goes_out_as_its_reader_reads_and_beside_its_queue() {
    const MESSAGES: u32 = 1_000;
    const BYTES: usize = 4_000;
    let broker = Broker::with_limits("queue_messages = 4");
    let owner = connect(&broker);
    let retain = Retain { bytes: 8 << 20, ..Retain::last(MESSAGES) };
    let group = owner.create_retaining("large", retain).unwrap();
    let payload = vec![7; BYTES];
    let cork = owner.cork();
    let sends: Vec<_> = (0..MESSAGES).map(|_| group.start_send(payload.clone()).unwrap()).collect();
    drop(cork);
    let places: Vec<Sequence> =
        sends.into_iter().map(|send| send.wait().unwrap().sequence).collect();
    let mut others = Vec::new();
    let before = broker.resident_kib();
    for _ in 0..16 {
        // It reads no further than its answer.
        let mut client = broker.raw();
        let joined = join_with_state(&mut client, "large");
        others.push((client, joined));
    }
    let grown = broker.resident_kib().saturating_sub(before);
    // 4 MB are stored once, and 64 MB would be on their way. A socket takes some 200 KiB.
    assert!(grown < 24 << 10, "{grown} KiB");
    for (mut client, joined) in others {
        // Nothing is given back, and all of it comes.
        for place in &places {
            let message = client.message();
            assert!(message.head.retained);
            assert_eq!((message.head.sequence, message.payload.len()), (*place, BYTES));
        }
        match client.notice() {
            Notice::Current { sequence, messages, .. } => {
                assert_eq!((sequence, messages), (joined, MESSAGES));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn g8_a_visitor_that_never_reads_its_states_is_refused_more_of_them() {
    const ROUNDS: usize = 200;
    let broker = Broker::with_limits("retained_bytes = 65536");
    let owner = connect(&broker);
    let retain = Retain { bytes: 65_536, ..Retain::last(1) };
    let group = owner.create_retaining("heavy", retain).unwrap();
    group.send(vec![7; 60_000]).unwrap();
    let mut visitor = broker.raw();
    let group_id = visitor.find("heavy").unwrap();
    // Its socket and the broker's buffer take some; then states stay unread in its queue.
    for _ in 0..ROUNDS {
        let join = Request::Join {
            group: name("heavy"),
            flags: MemberFlags::empty(),
            create: false,
            filter: None,
            retain: None,
            state: true,
        };
        for request in [join, Request::Leave { group_id }] {
            let serial = visitor.next_serial();
            visitor.say(&ClientFrame::Call { endpoint: Handle::FIRST, serial, request });
        }
    }
    let mut limited = 0;
    let mut answers = 0;
    while answers < 2 * ROUNDS {
        match visitor.hear() {
            BrokerFrame::Error { failure, .. } => {
                answers += 1;
                if failure.limit.is_some_and(|limit| limit.contains("retained")) {
                    limited += 1;
                }
            }
            BrokerFrame::Done { .. } => answers += 1,
            BrokerFrame::Message(_) | BrokerFrame::Notice { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(limited > 0, "it was refused some");
    broker.raw().ping();
}

#[test]
fn g8_a_group_that_retains_takes_no_descriptors() {
    let broker = Broker::start();
    let owner = connect(&broker);
    let _group = owner.create_retaining("files", Retain::last(1)).unwrap();
    let before = broker.descriptors();
    let mut sender = broker.raw();
    let group = Destination::Group(sender.find("files").unwrap());
    let (_, writer) = rustix::pipe::pipe().unwrap();
    let serial = sender.post_descriptors(group, b"x", &[writer.as_fd()]);
    let failure = sender.outcome(serial).unwrap_err();
    assert_eq!(failure.code.as_str(), "limit-exceeded");
    drop(sender);
    eventually("it is closed", || match broker.descriptors() {
        count if count == before => Ok(()),
        count => Err(format!("{count} rather than {before}")),
    });
}

#[test]
fn listen_with_state_prints_it_first_and_says_when_it_is_current() {
    let broker = Broker::start();
    let create = broker.unisono("create weather --retain keys --json").start();
    let created: Value = serde_json::from_str(&create.line()).unwrap();
    assert_eq!(created["type"], "created");
    for (key, text) in [("north", "rain"), ("south", "sun"), ("north", "wind")] {
        let send = format!("send weather {text} --key {key}");
        let _ = broker.unisono(&send).run().with(0);
    }
    let listen = broker.unisono("listen weather --json --with-state --count 1").start();
    let line = || -> Value { serde_json::from_str(&listen.line()).unwrap() };
    let joined = line();
    assert_eq!(joined["type"], "joined");
    for (key, text) in [("south", "sun"), ("north", "wind")] {
        let line = line();
        assert_eq!(line["type"], "retained", "{line}");
        assert_eq!((&line["key"], &line["payload"]), (&key.into(), &text.into()));
        assert!(line["sequence"].as_u64() < joined["sequence"].as_u64());
    }
    let state = line();
    assert_eq!((&state["type"], &state["messages"]), (&"state".into(), &2.into()));
    assert_eq!(state["sequence"], joined["sequence"]);
    let _ = broker.unisono("send weather snow --key south").run().with(0);
    assert_eq!(line()["payload"], "snow");
    let _ = listen.end().with(0);
    let groups = broker.unisono("groups --json").run().with(0).json_lines();
    assert_eq!(groups[0]["retain"]["per_key"], true, "{groups:?}");
    let _ = create.end_by(Signal::SIGTERM).with(0);
    broker.until("the group has gone with its creator", |stats| stats.groups == 0);
}

#[test]
fn what_is_promised_does_not_depend_on_how_bytes_travel() {
    run_by_each(&[4, 8]);
}
