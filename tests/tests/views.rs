//! Who is in a group, as watchers in other processes see it: every change at its place, losses
//! told, and the list that holds at each message.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bus_client::{Bus, Change, Event, Interest, Members, Sequence};
use bus_core::wire::{BrokerFrame, ChangeCode, GoodbyeCode, Notice, Request, Response, ViewNotice};
use bus_core::{Destination, GroupId, Interest as Told};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::broker::Broker;
use tests::deadline::DEADLINE;
use tests::random::Random;
use tests::raw::{RawClient, name};
use tests::transports::run_by_each;

fn connect(broker: &Broker) -> Bus {
    let socket = broker.socket().to_str().unwrap();
    Bus::builder().address(socket).connect().unwrap()
}

fn watch(client: &mut RawClient, group: &str, interest: Told) -> (GroupId, Sequence) {
    let request = Request::WatchGroup { group: name(group), interest, create: true };
    match client.call(request) {
        Ok(Response::Watching { group_id, sequence, .. }) => (group_id, sequence),
        other => panic!("{other:?}"),
    }
}

fn view(client: &mut RawClient) -> ViewNotice {
    match client.notice() {
        Notice::View(view) => *view,
        other => panic!("{other:?} where a view was expected"),
    }
}

#[test]
fn g4_changes_stand_between_the_messages_before_and_after_them() {
    let broker = Broker::start();
    let (mut watcher, mut other, mut sender) = (broker.raw(), broker.raw(), broker.raw());
    let group = Destination::Group(watcher.join("watched"));
    watch(&mut watcher, "watched", Told::Members);
    let mut places = Vec::new();
    places.push(sender.send(group, b"1").unwrap().sequence);
    let Destination::Group(group_id) = group else { panic!() };
    let request = Request::Join {
        group: name("watched"),
        flags: Default::default(),
        create: false,
        filter: None,
        retain: None,
        state: false,
    };
    match other.call(request) {
        Ok(Response::Joined { sequence, .. }) => places.push(sequence),
        other => panic!("{other:?}"),
    }
    places.push(sender.send(group, b"2").unwrap().sequence);
    match other.call(Request::Leave { group_id }) {
        Ok(Response::Left { sequence }) => places.push(sequence),
        other => panic!("{other:?}"),
    }
    places.push(sender.send(group, b"3").unwrap().sequence);
    let mut seen = Vec::new();
    while seen.len() < places.len() {
        match watcher.hear() {
            BrokerFrame::Message(message) => seen.push((message.head.sequence, None)),
            BrokerFrame::Notice { notice: Notice::View(view), .. } => {
                assert_eq!((view.endpoint, view.group_id), (other.endpoint(), group_id));
                assert_eq!(view.pid, std::process::id());
                seen.push((view.sequence, Some((view.change, view.members))));
            }
            other => panic!("{other:?}"),
        }
    }
    let what = [None, Some((ChangeCode::Joined, 2)), None, Some((ChangeCode::Left, 1)), None];
    let expected: Vec<_> = places.into_iter().zip(what).collect();
    assert_eq!(seen, expected);
}

#[test]
fn g4_a_view_holds_a_place_until_its_credit_comes_and_what_is_missed_is_told() {
    let broker = Broker::with_limits("queue_messages = 2");
    let mut watcher = broker.raw();
    watch(&mut watcher, "crowd", Told::Members);
    let mut members: Vec<RawClient> = (0..5).map(|_| broker.raw()).collect();
    for member in &mut members {
        member.join("crowd");
    }
    assert_eq!(view(&mut watcher).members, 1);
    assert_eq!(view(&mut watcher).members, 2);
    // Nothing else comes before a place is given back.
    watcher.ping();
    watcher.credit(1, 0);
    watcher.ping();
    let mut late = broker.raw();
    late.join("crowd");
    let next = view(&mut watcher);
    assert_eq!((next.change, next.members), (ChangeCode::Joined, 6));
    assert_eq!(next.missed.map(|gap| gap.count), Some(3));
    // The queue is full once more, and then runs empty.
    let mut later = broker.raw();
    later.join("crowd");
    watcher.credit(2, 0);
    match watcher.notice() {
        Notice::ViewsLost { gap, .. } => assert_eq!(gap.count, 1),
        other => panic!("{other:?}"),
    }
    // That one had no place, so there is no credit for it.
    watcher.credit(1, 0);
    assert_eq!(watcher.goodbye().unwrap().code, GoodbyeCode::Protocol);
}

#[test]
fn g4_edges_are_told_to_who_asks_for_no_more() {
    let broker = Broker::start();
    let mut publisher = broker.raw();
    let (group_id, _) = watch(&mut publisher, "edges", Told::Anybody);
    let members: Vec<_> = (0..3).map(|_| broker.unisono("listen edges").start()).collect();
    assert_eq!((view(&mut publisher).change, 1), (ChangeCode::Joined, 1));
    broker.until_members("edges", "all there", |members| members.len() == 3);
    for member in members {
        let _ = member.end_by(Signal::SIGKILL);
    }
    let last = view(&mut publisher);
    assert_eq!((last.change, last.members, last.ended), (ChangeCode::Closed, 0, false));
    assert!(matches!(
        publisher.call(Request::UnwatchGroup { group_id }),
        Ok(Response::Unwatched { .. })
    ));
    let again = publisher.call(Request::UnwatchGroup { group_id }).unwrap_err();
    assert_eq!(again.code.as_str(), "not-watching");
    let _member = broker.raw().join("edges");
    publisher.ping();
}

/// With the list that was fetched after the watch began, and each change since, a member knows who
/// gets a message: its receipt says the same number.
#[test]
fn g4_every_member_can_list_the_view_that_holds_at_a_message() {
    let broker = Broker::start();
    let watcher = connect(&broker);
    watcher.join("busy").unwrap();
    watcher.watch_members("busy").unwrap();
    let mut list = watcher.members("busy").unwrap();
    let visiting = AtomicUsize::new(3);
    let mut at = BTreeMap::new();
    let recipients = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let sender = connect(&broker);
            let group = sender.group("busy").unwrap();
            let mut receipts = BTreeMap::new();
            loop {
                let last = visiting.load(Ordering::Relaxed) == 0;
                let receipt = group.send(if last { "last" } else { "more" }).unwrap();
                receipts.insert(receipt.sequence, receipt.recipients as usize);
                if last {
                    return receipts;
                }
            }
        });
        for seed in 1..=3 {
            let (broker, visiting) = (&broker, &visiting);
            scope.spawn(move || come_and_go(broker, seed, visiting));
        }
        loop {
            match watcher.receive_deadline(DEADLINE).unwrap().expect("in time") {
                Event::Message(message) => {
                    at.insert(message.sequence(), list.members.len());
                    if message.text() == Some("last") {
                        break;
                    }
                }
                Event::View(change) => {
                    assert_eq!(change.missed, None);
                    if list.apply(&change) {
                        assert_eq!(list.members.len(), change.members as usize, "{change:?}");
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        sending.join().unwrap()
    });
    assert_eq!(at, recipients);
    assert!(recipients.values().max() > Some(&1), "somebody came");
}

fn come_and_go(broker: &Broker, seed: u64, visiting: &AtomicUsize) {
    let mut random = Random::new(seed);
    for _ in 0..20 {
        let visitor = connect(broker);
        let member = visitor.join("busy").unwrap();
        for _ in 0..random.below(20) {
            visitor.receive_deadline(DEADLINE).unwrap().expect("the sender goes on");
        }
        if random.below(2) == 0 {
            member.leave().unwrap();
        }
    }
    visiting.fetch_sub(1, Ordering::Relaxed);
}

#[test]
fn a_publisher_spares_itself_work_that_nobody_would_see() {
    let broker = Broker::start();
    let publisher = connect(&broker);
    let frames = publisher.group("frames").unwrap();
    let interest: Interest = frames.watch_interest().unwrap();
    assert!(!interest.is_anybody().unwrap());
    for _ in 0..3 {
        let listener = broker.unisono("listen frames").start();
        assert!(interest.wait_deadline(true, DEADLINE).unwrap());
        frames.send("worth it").unwrap();
        assert_eq!(listener.line(), "worth it");
        let _ = listener.end_by(Signal::SIGKILL);
        assert!(interest.wait_deadline(false, DEADLINE).unwrap());
    }
    assert!(publisher.try_receive().unwrap().is_none(), "nothing has to be received");
    drop(interest);
    broker.until("nobody watches", |stats| stats.groups == 1);
}

#[test]
fn watch_prints_the_list_and_then_every_change() {
    let broker = Broker::start();
    let first = broker.unisono("listen hall").start();
    broker.until_members("hall", "the first", |members| members.len() == 1);
    let watch = broker.unisono("watch hall --json").start();
    let line = || -> Value { serde_json::from_str(&watch.line()).unwrap() };
    let list = line();
    assert_eq!((&list["type"], &list["group"]), (&"view".into(), &"hall".into()));
    let first_endpoint = list["members"][0]["endpoint"].clone();
    assert!(first_endpoint.is_u64(), "{list}");
    let second = broker.unisono("listen hall --drop-when-full").start();
    let joined = line();
    assert_eq!(joined["type"], "change");
    assert_eq!((&joined["change"], &joined["members"]), (&"joined".into(), &2.into()));
    assert!(joined["sequence"].as_u64() > list["sequence"].as_u64());
    let _ = first.end_by(Signal::SIGKILL);
    let closed = line();
    assert_eq!((&closed["change"], &closed["endpoint"]), (&"closed".into(), &first_endpoint));
    let _ = second.end_by(Signal::SIGKILL);
    let last = line();
    assert_eq!((&last["members"], &last["ended"]), (&0.into(), &true.into()));
    assert_eq!(line()["reason"], "group-ended");
    let _ = watch.end().with(0);
    let ended = broker.unisono("watch nobody.here --no-create").run().with(1);
    assert!(ended.errors.contains("nobody.here"), "{}", ended.errors);
}

#[test]
fn watch_with_edges_tells_only_those() {
    let broker = Broker::start();
    let watch = broker.unisono("watch hall --edges --count 2").start();
    assert_eq!(watch.line(), "hall: 0 members");
    let members = [0; 2].map(|_| broker.unisono("listen hall").start());
    broker.until_members("hall", "both", |members| members.len() == 2);
    for member in members {
        let _ = member.end_by(Signal::SIGKILL);
    }
    let line = watch.line();
    assert!(line.contains("joined, 1 members"), "{line}");
    let line = watch.line();
    assert!(line.contains("closed, 0 members"), "{line}");
    let _ = watch.end().with(0);
}

#[test]
fn a_list_that_is_brought_forward_passes_over_what_it_has() {
    let broker = Broker::start();
    let watcher = connect(&broker);
    watcher.watch_members("early").unwrap();
    let member = connect(&broker);
    member.join("early").unwrap();
    let mut list: Members = watcher.members("early").unwrap();
    let Some(Event::View(change)) = watcher.receive_deadline(DEADLINE).unwrap() else { panic!() };
    assert_eq!(change.change, Change::Joined);
    assert!(!list.apply(&change), "the list is later");
    assert_eq!(list.members.len(), 1);
}

#[test]
fn what_is_promised_does_not_depend_on_how_bytes_travel() {
    run_by_each(&[4]);
}
