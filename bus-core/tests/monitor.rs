//! A monitor sees everything at its place, slows nobody, and is told what it missed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::fd::OwnedFd;

use bus_core::{
    Addressee, Bus, Change, Condition, Credentials, Delivery, Destination, Draft, Endpoint,
    EndpointId, Filter, Gap, GroupName, JoinOptions, Kind, Limits, MemberEvent, MemberFlags,
    MonitorError, Monitored, NameFlags, OwnOptions, Receiver, RequestEnd, Sequence, Terms,
};

fn bus(queue_messages: u32) -> Bus {
    Bus::new(Limits { queue_messages, ..Limits::default() }, 3).unwrap()
}

fn endpoint(bus: &Bus) -> Endpoint {
    bus.open_endpoint(Credentials { uid: 1000, pid: 7 }).unwrap()
}

fn name() -> GroupName {
    "org.example.Seen".parse().unwrap()
}

#[derive(Debug, PartialEq)]
enum Seen {
    Message(String, Addressee, Sequence, Option<Gap>),
    View(Change, Sequence, Option<Gap>),
    Owner(Option<EndpointId>, Option<EndpointId>, Sequence),
    Outcome(Sequence, RequestEnd, Sequence),
    Member(EndpointId, MemberEvent, MemberFlags, Sequence),
    Gap(Gap),
}

fn take(reader: &mut Receiver) -> Vec<Seen> {
    std::iter::from_fn(|| reader.try_receive().ok())
        .map(|delivery| match delivery {
            Delivery::Monitored { seen: Monitored::Message { message, to }, missed } => {
                assert!(message.descriptors().is_empty());
                let text = String::from_utf8(message.payload().to_vec()).unwrap();
                Seen::Message(text, to, message.sequence(), missed)
            }
            Delivery::Monitored { seen: Monitored::View(change), missed } => {
                Seen::View(change.change, change.sequence, missed)
            }
            Delivery::Monitored { seen: Monitored::Owner(change), .. } => {
                let id = |holder: Option<bus_core::Holder>| holder.map(|holder| holder.endpoint);
                Seen::Owner(id(change.old), id(change.new), change.sequence)
            }
            Delivery::Monitored { seen: Monitored::Outcome(seen), .. } => {
                let outcome = seen.outcome;
                Seen::Outcome(outcome.request, outcome.why, outcome.sequence)
            }
            Delivery::Monitored { seen: Monitored::Member(change), .. } => {
                Seen::Member(change.endpoint, change.event, change.flags, change.sequence)
            }
            Delivery::MonitorGap { gap } => Seen::Gap(gap),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn g4_a_monitor_sees_every_message_and_change_from_its_place_on() {
    let bus = bus(64);
    let (watcher, member, sender) = (endpoint(&bus), endpoint(&bus), endpoint(&bus));
    let joined = member.join(&name(), JoinOptions::create()).unwrap();
    let to = Destination::Group(joined.group);
    let mut lane = sender.lane().unwrap();
    lane.send(to, "before").unwrap();
    let begun = watcher.monitor(None).unwrap();
    let first = lane.send(to, "1").unwrap();
    let direct = lane.send(Destination::Endpoint(member.id()), "2").unwrap();
    assert_eq!((first.recipients, direct.recipients), (1, 1), "a monitor is no recipient");
    let left = member.leave(joined.group).unwrap();
    let ended = watcher.unmonitor().unwrap();
    lane.send(Destination::Endpoint(member.id()), "after").unwrap();
    let group = Addressee::Group(joined.group, name());
    assert_eq!(
        take(&mut watcher.receiver().unwrap()),
        [
            Seen::Message("1".into(), group, first.sequence, None),
            Seen::Message("2".into(), Addressee::Endpoint(member.id()), direct.sequence, None),
            Seen::View(Change::Left, left, None),
        ]
    );
    assert!(begun < first.sequence && left < ended);
    assert_eq!(watcher.unmonitor(), None);
}

fn request(lane: &mut bus_core::Lane, to: Destination) -> Sequence {
    let draft = Draft { kind: Kind::Request { repeatable: false }, ..Draft::from("?") };
    lane.try_send(to, draft).unwrap().sequence
}

#[test]
fn g4_a_monitor_sees_requests_replies_and_outcomes_at_their_places() {
    let bus = bus(64);
    let second = std::time::Duration::from_secs(1);
    bus.tick(100 * second);
    let (watcher, caller, service) = (endpoint(&bus), endpoint(&bus), endpoint(&bus));
    watcher.monitor(None).unwrap();
    let owned = service.own_name(&name(), OwnOptions::new(NameFlags::empty())).unwrap();
    let (mut asking, mut answering) = (caller.lane().unwrap(), service.lane().unwrap());
    let mut asked = service.receiver().unwrap();
    let answered = request(&mut asking, Destination::Name(owned.name));
    asked.try_receive().unwrap();
    let refusal = Draft { kind: Kind::Refusal, ..Draft::from("no") };
    let reply = answering.try_send(Destination::Caller(answered), refusal).unwrap().sequence;
    let cancelled = request(&mut asking, Destination::Endpoint(service.id()));
    assert!(caller.cancel_request(cancelled));
    let late = request(&mut asking, Destination::Endpoint(service.id()));
    for at in 101..=130 {
        bus.tick(at * second);
    }
    let declined = request(&mut asking, Destination::Name(owned.name));
    asked.try_receive().unwrap();
    assert!(service.decline_request(declined));
    let released = service.release_name(owned.name).unwrap();

    let mut reader = watcher.receiver().unwrap();
    let mut roles = Vec::new();
    let mut seen = Vec::new();
    while let Ok(delivery) = reader.try_receive() {
        match delivery {
            Delivery::Monitored { seen: Monitored::Message { message, to }, .. } => {
                let role = (message.is_request(), message.answers(), message.is_refusal());
                roles.push((message.sequence(), role, to));
            }
            Delivery::Monitored { seen: Monitored::Outcome(outcome), .. } => {
                assert_eq!((outcome.caller, outcome.asked), (caller.id(), service.id()));
                seen.push((outcome.outcome.request, outcome.outcome.why));
            }
            Delivery::Monitored { seen: Monitored::Owner(change), .. } => {
                assert!([owned.sequence, released].contains(&change.sequence));
            }
            other => panic!("{other:?}"),
        }
    }
    let at_name = || Addressee::Name(owned.name, name(), service.id());
    let direct = || Addressee::Endpoint(service.id());
    let asks = (true, None, false);
    assert_eq!(
        roles,
        [
            (answered, asks, at_name()),
            (reply, (false, Some(answered), true), Addressee::Endpoint(caller.id())),
            (cancelled, asks, direct()),
            (late, asks, direct()),
            (declined, asks, at_name()),
        ]
    );
    let (cancels, late, gone) = (RequestEnd::Cancelled, RequestEnd::TimedOut, RequestEnd::Gone);
    assert_eq!(seen, [(cancelled, cancels), (roles[3].0, late), (declined, gone)]);
}

#[test]
fn g4_a_monitor_sees_what_happens_at_gates_and_who_owns_names() {
    let bus = bus(64);
    let (watcher, owner, guest) = (endpoint(&bus), endpoint(&bus), endpoint(&bus));
    watcher.monitor(None).unwrap();
    let (gate, created) = owner.create_gated(&name(), None).unwrap();
    let none = MemberFlags::empty();
    let loopback = MemberFlags::LOOPBACK;
    let asks = || guest.connect(&name(), loopback).unwrap();
    let first = asks();
    let asked = first.sequence();
    owner.refuse(gate, guest.id(), "no").unwrap();
    drop(first);
    let withdrawn = asks();
    let asked_again = withdrawn.sequence();
    withdrawn.withdraw().unwrap_err();
    let admitted = asks();
    let asked_last = admitted.sequence();
    let joined = owner.admit(gate, guest.id(), Terms::default()).unwrap();
    let key: Condition = "key^=a.".parse().unwrap();
    let filtered = guest.set_filter(gate, Some(Filter::new([vec![key]]).unwrap())).unwrap();
    let terms = owner.set_terms(gate, guest.id(), Terms::new(loopback)).unwrap();
    let owned = owner.own_name(&name(), OwnOptions::new(NameFlags::empty())).unwrap();
    let (owner_id, guest_id) = (owner.id(), guest.id());
    drop(owner);

    let seen = take(&mut watcher.receiver().unwrap());
    let member = |event, flags, at| Seen::Member(guest_id, event, flags, at);
    let places = |seen: &Seen| match seen {
        Seen::Member(_, _, _, at) | Seen::View(_, at, _) | Seen::Owner(_, _, at) => *at,
        other => panic!("{other:?}"),
    };
    let (refused, took_back, gone) = (places(&seen[2]), places(&seen[4]), places(&seen[10]));
    assert_eq!(
        seen[..9],
        [
            Seen::Member(owner_id, MemberEvent::Created, none, created),
            member(MemberEvent::Asked, loopback, asked),
            member(MemberEvent::Refused, none, refused),
            member(MemberEvent::Asked, loopback, asked_again),
            member(MemberEvent::Withdrawn, none, took_back),
            member(MemberEvent::Asked, loopback, asked_last),
            Seen::View(Change::Joined, joined.sequence, None),
            member(MemberEvent::Filter, none, filtered),
            member(MemberEvent::Terms, loopback, terms),
        ]
    );
    assert_eq!(seen[9], Seen::Owner(None, Some(owner_id), owned.sequence));
    let end = [
        Seen::Member(owner_id, MemberEvent::OwnerGone, none, gone),
        Seen::Owner(Some(owner_id), None, gone),
    ];
    assert_eq!(seen[10..], end);
    let all: Vec<Sequence> = seen.iter().map(places).collect();
    assert!(all.is_sorted(), "{all:?}");
}

#[test]
fn g7_a_slow_monitor_slows_nobody_and_is_told_what_it_missed() {
    let bus = bus(2);
    let (watcher, sender, receiver) = (endpoint(&bus), endpoint(&bus), endpoint(&bus));
    watcher.monitor(None).unwrap();
    let mut lane = sender.lane().unwrap();
    let mut reader = receiver.receiver().unwrap();
    let places: Vec<Sequence> = (0..10)
        .map(|number: u32| {
            let to = Destination::Endpoint(receiver.id());
            let receipt = lane.try_send(to, number.to_string()).unwrap();
            reader.try_receive().unwrap();
            receipt.sequence
        })
        .collect();
    let mut watching = watcher.receiver().unwrap();
    let gap = Gap { count: 8, first: places[2], last: places[9] };
    let seen = take(&mut watching);
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[2], Seen::Gap(gap));
    let to = Destination::Endpoint(receiver.id());
    for number in ["a", "b", "c"] {
        lane.try_send(to, number).unwrap();
        reader.try_receive().unwrap();
    }
    watching.drain().unwrap();
    watching.release(1, 1).unwrap();
    let last = lane.try_send(to, "d").unwrap();
    let seen = take(&mut watching);
    assert!(
        matches!(&seen[1], Seen::Message(text, _, place, Some(gap))
            if text == "d" && *place == last.sequence && gap.count == 1),
        "{seen:?}"
    );
}

#[test]
fn a_monitor_of_one_group_sees_no_other() {
    let bus = bus(64);
    let (watcher, member) = (endpoint(&bus), endpoint(&bus));
    watcher.monitor(Some(name())).unwrap();
    let seen = member.join(&name(), JoinOptions::create()).unwrap();
    let other = member.join(&"other".parse().unwrap(), JoinOptions::create()).unwrap();
    let mut lane = member.lane().unwrap();
    lane.send(Destination::Group(other.group), "unseen").unwrap();
    lane.send(Destination::Endpoint(watcher.id()), "direct").unwrap();
    lane.send(Destination::Group(seen.group), "seen").unwrap();
    let mut reader = watcher.receiver().unwrap();
    let Ok(Delivery::Monitored { .. }) = reader.try_receive() else { panic!("the join") };
    let Ok(Delivery::Message { .. }) = reader.try_receive() else { panic!("its own message") };
    assert!(matches!(&take(&mut reader)[..], [Seen::Message(text, ..)] if text == "seen"));
}

#[test]
fn a_monitor_keeps_no_descriptors() {
    let bus = bus(64);
    let (watcher, receiver, sender) = (endpoint(&bus), endpoint(&bus), endpoint(&bus));
    watcher.monitor(None).unwrap();
    let file: OwnedFd = File::open("/dev/null").unwrap().into();
    let draft = Draft { descriptors: vec![file], ..Draft::from("file") };
    sender.lane().unwrap().send(Destination::Endpoint(receiver.id()), draft).unwrap();
    let Ok(Delivery::Message { message, .. }) = receiver.receiver().unwrap().try_receive() else {
        panic!()
    };
    assert_eq!(message.descriptors().len(), 1);
    let seen = take(&mut watcher.receiver().unwrap());
    assert!(matches!(&seen[..], [Seen::Message(text, ..)] if text == "file"));
}

#[test]
fn g8_monitors_are_few_and_go_with_their_endpoints() {
    let bus = Bus::new(Limits { monitors: 1, ..Limits::default() }, 3).unwrap();
    let (one, other) = (endpoint(&bus), endpoint(&bus));
    one.monitor(None).unwrap();
    one.monitor(Some(name())).unwrap();
    assert!(matches!(other.monitor(None), Err(MonitorError::Limit(_))));
    drop(one);
    other.monitor(None).unwrap();
    other.shutdown_receive();
    assert!(matches!(other.monitor(None), Err(MonitorError::ReceiveShut(_))));
    endpoint(&bus).monitor(None).unwrap();
}
