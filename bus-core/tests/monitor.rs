//! A monitor sees everything at its place, slows nobody, and is told what it missed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::fd::OwnedFd;

use bus_core::{
    Addressee, Bus, Change, Credentials, Delivery, Destination, Draft, Endpoint, Gap, GroupName,
    JoinOptions, Limits, MonitorError, Monitored, Receiver, Sequence,
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
