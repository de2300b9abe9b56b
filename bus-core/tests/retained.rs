//! Who joins with the state of a group gets what it retains, and then everything after the join.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bus_core::{
    Attributes, Bus, Condition, Credentials, Delivery, Destination, Draft, Endpoint, Filter,
    GroupName, JoinError, JoinOptions, Limits, MAX_RETAINED_MESSAGES, Pattern, Receiver, Retain,
    SendError, Sequence,
};

fn bus_with(limits: Limits) -> Bus {
    Bus::new(limits, 3).unwrap()
}

fn bus() -> Bus {
    bus_with(Limits::default())
}

fn endpoint(bus: &Bus) -> Endpoint {
    bus.open_endpoint(Credentials { uid: 1000, pid: 7 }).unwrap()
}

fn name(text: &str) -> GroupName {
    text.parse().unwrap()
}

fn keyed(key: &str, payload: &str) -> Draft {
    let attributes = Attributes::builder().key(key).build().unwrap();
    Draft { attributes, payload: payload.into(), ..Draft::default() }
}

/// What a delivery was.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Retained(String, Sequence),
    Current(u32, Sequence),
    Message(String, Sequence),
}

fn seen(delivery: Delivery) -> Seen {
    let text = |payload: &[u8]| String::from_utf8(payload.to_vec()).unwrap();
    match delivery {
        Delivery::Retained { message } => {
            Seen::Retained(text(message.payload()), message.sequence())
        }
        Delivery::Current { messages, sequence, .. } => Seen::Current(messages, sequence),
        Delivery::Message { message, missed: None } => {
            Seen::Message(text(message.payload()), message.sequence())
        }
        other => panic!("{other:?}"),
    }
}

fn take(reader: &mut Receiver) -> Vec<Seen> {
    std::iter::from_fn(|| reader.try_receive().ok()).map(seen).collect()
}

#[test]
fn g4_a_joiner_gets_the_last_of_each_key_at_its_place_and_then_what_follows() {
    let bus = bus();
    let (creator, joiner) = (endpoint(&bus), endpoint(&bus));
    let (group, _) = creator.create_retaining(&name("state"), Retain::keys(8)).unwrap();
    let to = Destination::Group(group);
    let mut lane = creator.lane().unwrap();
    let mut send = |key: &str, payload: &str| lane.send(to, keyed(key, payload)).unwrap().sequence;
    send("a", "a1");
    let b = send("b", "b1");
    let a = send("a", "a2");
    let other = joiner.join(&name("other"), JoinOptions::create()).unwrap().group;
    let mut aside = creator.lane().unwrap();
    let before = aside.send(Destination::Group(other), "before").unwrap().sequence;
    let joined = joiner.join(&name("state"), JoinOptions::default().with_state()).unwrap();
    let after = send("a", "a3");
    assert_eq!(
        take(&mut joiner.receiver().unwrap()),
        [
            Seen::Message("before".into(), before),
            Seen::Retained("b1".into(), b),
            Seen::Retained("a2".into(), a),
            Seen::Current(2, joined.sequence),
            Seen::Message("a3".into(), after),
        ]
    );
    assert!(a < joined.sequence && joined.sequence < after);
    assert_eq!(bus.find_group(&name("state")).unwrap().retain, Some(Retain::keys(8)));
}

#[test]
fn g4_a_group_that_nobody_is_in_retains_too_and_nothing_is_retained_unasked() {
    let bus = bus();
    let (creator, joiner) = (endpoint(&bus), endpoint(&bus));
    let (last, _) = creator.create_retaining(&name("last"), Retain::last(2)).unwrap();
    let mut lane = creator.lane().unwrap();
    for text in ["1", "2", "3"] {
        let receipt = lane.send(Destination::Group(last), text).unwrap();
        assert_eq!(receipt.recipients, 0);
    }
    let mut reader = joiner.receiver().unwrap();
    joiner.join(&name("last"), JoinOptions::default().with_state()).unwrap();
    let texts: Vec<_> = take(&mut reader)
        .into_iter()
        .filter_map(|seen| match seen {
            Seen::Retained(text, _) => Some(text),
            _ => None,
        })
        .collect();
    assert_eq!(texts, ["2", "3"]);
    joiner.leave(last).unwrap();
    joiner.join(&name("last"), JoinOptions::default()).unwrap();
    assert_eq!(take(&mut reader), [], "it did not ask for it");
    let joined = joiner.join(&name("plain"), JoinOptions::create().with_state()).unwrap();
    assert_eq!(take(&mut reader), [Seen::Current(0, joined.sequence)], "there is nothing");
}

#[test]
fn g4_a_joiners_filter_holds_for_what_is_retained_too() {
    let bus = bus();
    let (creator, joiner) = (endpoint(&bus), endpoint(&bus));
    let (group, _) = creator.create_retaining(&name("state"), Retain::keys(8)).unwrap();
    let to = Destination::Group(group);
    let mut lane = creator.lane().unwrap();
    for (key, payload) in [("a.x", "1"), ("b.x", "2"), ("a.y", "3")] {
        lane.send(to, keyed(key, payload)).unwrap();
    }
    let filter = Filter::new([vec![Condition::Key(Pattern::prefix("a."))]]).unwrap();
    let options = JoinOptions::default().with_state().filtered(filter);
    let joined = joiner.join(&name("state"), options).unwrap();
    let seen = take(&mut joiner.receiver().unwrap());
    let texts: Vec<_> = seen.iter().map(|seen| format!("{seen:?}").contains("Retained")).collect();
    assert_eq!(texts, [true, true, false]);
    assert_eq!(seen[2], Seen::Current(2, joined.sequence));
}

#[test]
fn g4_what_is_retained_takes_no_place_of_the_queue() {
    let bus = bus_with(Limits { queue_messages: 2, ..Limits::default() });
    let (creator, joiner) = (endpoint(&bus), endpoint(&bus));
    let (group, _) = creator.create_retaining(&name("many"), Retain::last(10)).unwrap();
    let to = Destination::Group(group);
    let mut lane = creator.lane().unwrap();
    for number in 0..10 {
        lane.send(to, number.to_string()).unwrap();
    }
    joiner.join(&name("many"), JoinOptions::default().with_state()).unwrap();
    lane.try_send(to, "10").unwrap();
    lane.try_send(to, "11").unwrap();
    assert!(matches!(lane.try_send(to, "12"), Err(SendError::WouldBlock { .. })));
    let seen = take(&mut joiner.receiver().unwrap());
    let texts: Vec<_> = seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Retained(text, _) | Seen::Message(text, _) => text.parse::<u32>().ok(),
            Seen::Current(..) => None,
        })
        .collect();
    assert_eq!(texts, (0..12).collect::<Vec<u32>>());
}

#[test]
fn g3_what_a_joiner_sends_follows_the_state_that_it_has_taken() {
    let bus = bus();
    let (creator, joiner) = (endpoint(&bus), endpoint(&bus));
    let (group, _) = creator.create_retaining(&name("cause"), Retain::last(1)).unwrap();
    let sent = creator.lane().unwrap().send(Destination::Group(group), "state").unwrap();
    let joined = joiner.join(&name("cause"), JoinOptions::default().with_state()).unwrap();
    let mut reader = joiner.receiver().unwrap();
    assert!(matches!(reader.try_receive(), Ok(Delivery::Retained { .. })));
    let to = Destination::Endpoint(creator.id());
    let reply = joiner.lane().unwrap().send(to, "so").unwrap();
    assert!(reply.sequence > joined.sequence && joined.sequence > sent.sequence);
    assert_eq!(reply.after, joined.sequence);
}

#[test]
fn g8_stores_and_states_that_are_not_read_are_bounded() {
    let bus = bus_with(Limits { retained_messages: 10, retained_bytes: 100, ..Limits::default() });
    let creator = endpoint(&bus);
    let small = Retain { bytes: 60, ..Retain::last(5) };
    creator.create_retaining(&name("a"), small).unwrap();
    let limit = |error: &dyn std::error::Error| error.to_string();
    let error = creator.create_retaining(&name("b"), small).unwrap_err();
    assert!(limit(&error).contains("retained_bytes"), "{error}");
    let many = Retain { bytes: 1, ..Retain::last(6) };
    let error = creator.create_retaining(&name("b"), many).unwrap_err();
    assert!(limit(&error).contains("retained_messages"), "{error}");
    let huge = Retain { bytes: 1, ..Retain::last(MAX_RETAINED_MESSAGES + 1) };
    let error = creator.create_retaining(&name("b"), huge).unwrap_err();
    assert!(limit(&error).contains("of one group"), "{error}");
    // A message beyond the store's bytes is delivered, and not retained.
    let to = Destination::Group(bus.find_group(&name("a")).unwrap().id);
    let mut lane = creator.lane().unwrap();
    lane.send(to, vec![7; 50]).unwrap();
    lane.send(to, vec![7; 61]).unwrap();
    // A visitor that never reads what it asks for.
    let visitor = endpoint(&bus);
    let state = JoinOptions::default().with_state();
    let mut joins = 0;
    let refused = loop {
        match visitor.join(&name("a"), state.clone()) {
            Ok(joined) => {
                joins += 1;
                visitor.leave(joined.group).unwrap();
            }
            Err(refused) => break refused,
        }
    };
    assert_eq!(joins, 2, "50 bytes are below 100, and 100 are not");
    assert!(matches!(&refused, JoinError::Limit(limit) if limit.limit.contains("not yet read")));
    let mut reader = visitor.receiver().unwrap();
    while reader.try_receive().is_ok() {}
    visitor.join(&name("a"), state).unwrap();
}

#[test]
fn g8_states_of_empty_stores_are_bounded_by_the_memberships() {
    let bus = bus_with(Limits { memberships: 3, ..Limits::default() });
    let (creator, visitor) = (endpoint(&bus), endpoint(&bus));
    let (group, _) = creator.create_group(&name("empty")).unwrap();
    let state = JoinOptions::default().with_state();
    for _ in 0..3 {
        visitor.join(&name("empty"), state.clone()).unwrap();
        visitor.leave(group).unwrap();
    }
    assert!(matches!(visitor.join(&name("empty"), state), Err(JoinError::Limit(_))));
    visitor.join(&name("empty"), JoinOptions::default()).unwrap();
}

#[test]
fn g8_a_group_that_retains_keeps_no_descriptors_open() {
    let bus = bus();
    let creator = endpoint(&bus);
    let (group, _) = creator.create_retaining(&name("files"), Retain::last(1)).unwrap();
    let file: OwnedFd = File::open("/dev/null").unwrap().into();
    let draft = Draft { descriptors: vec![file], ..Draft::from("x") };
    let refused = creator.lane().unwrap().send(Destination::Group(group), draft).unwrap_err();
    assert_eq!(refused, SendError::TooManyDescriptors { given: 1, limit: 0 });
}

/// Several senders update keys while others join with the state: what a joiner has at the end is
/// what everybody has, and every value after its join reached it once.
#[test]
fn g4_a_snapshot_and_what_follows_are_the_whole_state_whoever_races() {
    const KEYS: u32 = 5;
    let bus = bus_with(Limits { queue_messages: 4, ..Limits::default() });
    let creator = endpoint(&bus);
    let (group, _) = creator.create_retaining(&name("race"), Retain::keys(KEYS)).unwrap();
    let to = Destination::Group(group);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let senders: Vec<_> = (0..3)
            .map(|seed: u32| {
                let (bus, stop) = (&bus, &stop);
                scope.spawn(move || {
                    let sender = endpoint(bus);
                    let mut lane = sender.lane().unwrap();
                    let mut sent = BTreeMap::new();
                    let mut number = seed;
                    while !stop.load(Ordering::Relaxed) {
                        let key = format!("k{}", number % KEYS);
                        let receipt = lane.send(to, keyed(&key, &format!("{seed}.{number}")));
                        sent.insert(receipt.unwrap().sequence, key);
                        number += 3;
                    }
                    sent
                })
            })
            .collect();
        let joiners: Vec<_> = (0..4)
            .map(|_| {
                let bus = &bus;
                scope.spawn(move || {
                    let mut visits = Vec::new();
                    for _ in 0..40 {
                        visits.push(visit(bus));
                    }
                    visits
                })
            })
            .collect();
        let visits: Vec<_> = joiners.into_iter().flat_map(|join| join.join().unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for sender in senders {
            all.extend(sender.join().unwrap());
        }
        for Visit { state, joined, followed, until } in visits {
            let mut reference = BTreeMap::new();
            for (sequence, key) in all.range(..joined) {
                reference.insert(key.clone(), *sequence);
            }
            assert_eq!(state, reference, "the state at {joined}");
            let after: Vec<_> = all.range(joined..=until).map(|(sequence, _)| *sequence).collect();
            assert_eq!(followed, after, "no hole and nothing twice after {joined}");
        }
    });
}

struct Visit {
    state: BTreeMap<String, Sequence>,
    joined: Sequence,
    followed: Vec<Sequence>,
    until: Sequence,
}

fn visit(bus: &Bus) -> Visit {
    let visitor = endpoint(bus);
    let joined = visitor.join(&name("race"), JoinOptions::default().with_state()).unwrap();
    let mut reader = visitor.receiver().unwrap();
    let (mut state, mut followed, mut is_current) = (BTreeMap::new(), Vec::new(), false);
    while followed.len() < 10 {
        match reader.receive().unwrap() {
            Delivery::Retained { message } => {
                assert!(!is_current);
                let key = String::from_utf8(message.attributes().key().unwrap().to_vec()).unwrap();
                assert_eq!(state.insert(key, message.sequence()), None, "one of each key");
            }
            Delivery::Current { sequence, messages, .. } => {
                assert_eq!((sequence, messages as usize), (joined.sequence, state.len()));
                is_current = true;
            }
            Delivery::Message { message, .. } => {
                assert!(is_current);
                followed.push(message.sequence());
            }
            other => panic!("{other:?}"),
        }
    }
    let until = *followed.last().unwrap();
    Visit { state, joined: joined.sequence, followed, until }
}
