//! Who watches a group is told of its changes at their places in the order (G4).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bus_core::{
    Bus, Change, Credentials, Delivery, Destination, Endpoint, Gap, GroupName, Interest,
    JoinOptions, Limits, Receiver, Sequence, ViewChange,
};

fn bus(queue_messages: u32) -> Bus {
    Bus::new(Limits { queue_messages, ..Limits::default() }, 3).unwrap()
}

fn endpoint(bus: &Bus) -> Endpoint {
    bus.open_endpoint(Credentials { uid: 1000, pid: 7 }).unwrap()
}

fn name() -> GroupName {
    "org.example.Watched".parse().unwrap()
}

/// What a delivery was, and where in the order.
#[derive(Debug, PartialEq)]
enum Seen {
    Message(Sequence),
    View(Change, u32, Sequence, Option<Gap>),
    ViewsLost(Gap),
}

fn take(reader: &mut Receiver) -> Vec<Seen> {
    std::iter::from_fn(|| reader.try_receive().ok())
        .map(|delivery| match delivery {
            Delivery::Message { message, .. } => Seen::Message(message.sequence()),
            Delivery::View { change, missed } => {
                let ViewChange { change, members, sequence, .. } = &*change;
                Seen::View(*change, *members, *sequence, missed)
            }
            Delivery::ViewsLost { gap, .. } => Seen::ViewsLost(gap),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn g4_changes_stand_between_the_messages_before_and_after_them() {
    let bus = bus(64);
    let (watcher, member, sender) = (endpoint(&bus), endpoint(&bus), endpoint(&bus));
    let joined = watcher.join(&name(), JoinOptions::create()).unwrap();
    let to = Destination::Group(joined.group);
    watcher.watch_group(&name(), Interest::Members, false).unwrap();
    let mut lane = sender.lane().unwrap();
    let mut reader = watcher.receiver().unwrap();

    let first = lane.send(to, "1").unwrap();
    let join = member.join(&name(), JoinOptions::create()).unwrap();
    let second = lane.send(to, "2").unwrap();
    let left = member.leave(joined.group).unwrap();
    let third = lane.send(to, "3").unwrap();
    assert_eq!(
        take(&mut reader),
        [
            Seen::Message(first.sequence),
            Seen::View(Change::Joined, 2, join.sequence, None),
            Seen::Message(second.sequence),
            Seen::View(Change::Left, 1, left, None),
            Seen::Message(third.sequence),
        ]
    );
    assert_eq!((second.recipients, third.recipients), (2, 1));
    let view = bus.members(joined.group).unwrap();
    assert_eq!(view.len(), 1);
    assert!(view.sequence() >= third.sequence);
}

#[test]
fn g4_a_watcher_without_room_makes_nobody_wait_and_learns_what_it_missed() {
    let bus = bus(2);
    let watcher = endpoint(&bus);
    watcher.watch_group(&name(), Interest::Members, true).unwrap();
    let members: Vec<Endpoint> = (0..5).map(|_| endpoint(&bus)).collect();
    let joins: Vec<Sequence> = (members.iter())
        .map(|member| member.join(&name(), JoinOptions::create()).unwrap().sequence)
        .collect();
    let mut reader = watcher.receiver().unwrap();
    let lost = Gap { count: 3, first: joins[2], last: joins[4] };
    assert_eq!(
        take(&mut reader),
        [
            Seen::View(Change::Joined, 1, joins[0], None),
            Seen::View(Change::Joined, 2, joins[1], None),
            Seen::ViewsLost(lost),
        ]
    );
    // With the next change, where that comes first.
    drop(members);
    let told = take(&mut reader);
    assert!(matches!(told[0], Seen::View(Change::Closed, 4, _, None)), "{told:?}");
    let later = endpoint(&bus);
    assert!(matches!(told[2], Seen::ViewsLost(Gap { count: 3, .. })), "{told:?}");
    later.join(&name(), JoinOptions::create()).unwrap();
    assert!(matches!(take(&mut reader)[..], [Seen::View(Change::Joined, 1, _, None)]));
}

#[test]
fn g4_a_publisher_learns_when_somebody_listens_and_when_nobody_does() {
    let bus = bus(64);
    let (publisher, a, b) = (endpoint(&bus), endpoint(&bus), endpoint(&bus));
    let watching = publisher.watch_group(&name(), Interest::Anybody, true).unwrap();
    assert_eq!(watching.members, 0);
    let mut reader = publisher.receiver().unwrap();
    let first = a.join(&name(), JoinOptions::create()).unwrap().sequence;
    b.join(&name(), JoinOptions::create()).unwrap();
    a.leave(watching.group).unwrap();
    let last = b.leave(watching.group).unwrap();
    assert_eq!(
        take(&mut reader),
        [Seen::View(Change::Joined, 1, first, None), Seen::View(Change::Left, 0, last, None)]
    );
    publisher.unwatch_group(watching.group).unwrap();
    a.join(&name(), JoinOptions::create()).unwrap();
    assert_eq!(take(&mut reader), []);
}

#[test]
fn g9_the_end_of_a_group_is_told_and_ends_the_watch() {
    let bus = bus(64);
    let (watcher, member) = (endpoint(&bus), endpoint(&bus));
    let joined = member.join(&name(), JoinOptions::create()).unwrap();
    watcher.watch_group(&name(), Interest::Members, false).unwrap();
    let mut reader = watcher.receiver().unwrap();
    drop(member);
    let Ok(Delivery::View { change, .. }) = reader.try_receive() else { panic!() };
    assert_eq!((change.change, change.members, change.ended), (Change::Closed, 0, true));
    assert_eq!(change.group, joined.group);
    assert_eq!(watcher.unwatch_group(joined.group), None);
    assert!(bus.find_group(&name()).is_none());
}
