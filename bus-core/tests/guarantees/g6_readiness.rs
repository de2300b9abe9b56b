//! G6: readiness tells the truth, and is asked by level.

use bus_core::{
    Destination, EndpointId, LimitExceeded, Limits, MemberFlags, SendError, WatchError,
};

use crate::given::{Party, Wakes, bus, bus_with, full, outcome};

#[test]
fn g6_would_block_names_up_to_16_full_recipients_and_counts_all() {
    for members in [1, 15, 16, 17, 40] {
        let bus = bus(1);
        let (mut sender, mut fills) = (Party::on(&bus), Party::on(&bus));
        let parties: Vec<Party> = (0..members).map(|_| Party::on(&bus)).collect();
        let has_room = Party::on(&bus);
        let mut group = has_room.join("g");
        for party in &parties {
            group = party.join("g");
            fills.send(party.id(), "fills");
        }
        let ids: Vec<EndpointId> = parties.iter().take(16).map(Party::id).collect();
        let (named, count) = full(sender.try_send(group, "x"));
        assert_eq!((named, count as usize), (ids, members));
    }
}

#[test]
fn g6_a_watch_is_asked_by_level_and_woken_at_the_edge() {
    let bus = bus(1);
    let (mut sender, mut a, mut b) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let group = a.join("g");
    b.join("g");
    let to = Destination::Group(group);
    let watch = |sender: &Party, wakes: &std::sync::Arc<Wakes>| {
        sender.endpoint.watch_writable(to, wakes.waker()).unwrap()
    };
    let wakes = Wakes::new();
    assert!(watch(&sender, &wakes).is_none(), "writable now");
    assert!(watch(&sender, &wakes).is_none(), "and still");

    sender.send(group, "fills both");
    let mut watching = watch(&sender, &wakes).expect("not writable");
    assert_eq!(watching.outcome(), None);
    b.take();
    a.send(b.id(), "full again");
    a.take();
    assert_eq!((wakes.count(), watching.outcome()), (0, None), "b is full");
    b.take();
    assert_eq!(wakes.count(), 1);
    assert_eq!(watching.outcome(), Some(Ok(())));
    assert_eq!(watching.outcome(), None, "told once");
    assert!(watch(&sender, &wakes).is_none(), "by level");
    assert!(sender.try_send(group, "fits").is_ok());
    assert!(watch(&sender, &wakes).is_some());
}

#[test]
fn g6_room_that_older_sends_are_owed_is_not_writable() {
    let bus = bus(1);
    let (mut waits, watches, mut reader) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    waits.send(reader.id(), "first");
    waits.wait(reader.id(), "second");
    let wakes = Wakes::new();
    let mut watch = watches.endpoint.watch_writable(reader.here(), wakes.waker()).unwrap().unwrap();
    reader.take();
    assert_eq!((wakes.count(), watch.outcome()), (0, None), "the place was the older send's");
    assert!(outcome(&mut waits.lane).is_ok());
    reader.take();
    assert_eq!((wakes.count(), watch.outcome()), (1, Some(Ok(()))));
}

#[test]
fn g6_drop_when_full_members_never_make_a_group_unwritable() {
    let bus = bus(1);
    let (mut sender, member) = (Party::on(&bus), Party::on(&bus));
    let group = member.join_with("g", MemberFlags::DROP_WHEN_FULL);
    sender.send(group, "fills");
    let to = Destination::Group(group);
    let wakes = Wakes::new();
    assert!(sender.endpoint.watch_writable(to, wakes.waker()).unwrap().is_none());
    assert!(sender.try_send(group, "dropped").is_ok());
}

#[test]
fn g6_whatever_makes_room_or_ends_the_destination_wakes_a_watch() {
    type Happens = fn(&mut Party, Option<Party>) -> Option<Party>;
    let cases: [(&str, Happens, bool); 4] = [
        (
            "leave",
            |_, member| {
                let member = member.unwrap();
                let group = member.endpoint.bus().find_group(&"g".parse().unwrap());
                member.endpoint.leave(group.unwrap().id).unwrap();
                Some(member)
            },
            true,
        ),
        ("close", |_, _| None, true),
        (
            "shutdown_receive",
            |_, member| {
                member.as_ref().unwrap().endpoint.shutdown_receive();
                member
            },
            true,
        ),
        (
            "end of the sender",
            |sender, member| {
                let other = Party::on(sender.endpoint.bus());
                drop(std::mem::replace(sender, other));
                member
            },
            false,
        ),
    ];
    for (case, happens, writable) in cases {
        let bus = bus(1);
        let (mut sender, creator, member) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
        let (group, _) = creator.endpoint.create_group(&"g".parse().unwrap()).unwrap();
        member.join("g");
        sender.send(group, "fills");
        let wakes = Wakes::new();
        let to = Destination::Group(group);
        let watch = sender.endpoint.watch_writable(to, wakes.waker()).unwrap();
        let mut watch = watch.expect("not writable");
        let _left = happens(&mut sender, Some(member));
        let expected = if writable { Ok(()) } else { Err(SendError::Closed) };
        assert_eq!((wakes.count(), watch.outcome()), (1, Some(expected)), "{case}");
    }
}

#[test]
fn g6_a_watch_of_what_is_not_there_fails() {
    let bus = bus(1);
    let (mut sender, member) = (Party::on(&bus), Party::on(&bus));
    let group = member.join("g");
    let id = member.id();
    sender.send(id, "fills");
    let wakes = Wakes::new();
    let watch = |to| sender.endpoint.watch_writable(to, wakes.waker());
    let mut to_group = watch(Destination::Group(group)).unwrap().unwrap();
    let mut to_it = watch(Destination::Endpoint(id)).unwrap().unwrap();
    drop(member);
    assert_eq!(
        (to_group.outcome(), to_it.outcome()),
        (Some(Err(SendError::NoSuchGroup(group))), Some(Err(SendError::NoSuchEndpoint(id))))
    );
    assert_eq!(wakes.count(), 2);
    assert_eq!(
        watch(Destination::Endpoint(id)).unwrap_err(),
        WatchError::Destination(SendError::NoSuchEndpoint(id))
    );
    assert_eq!(
        watch(Destination::Group(group)).unwrap_err(),
        WatchError::Destination(SendError::NoSuchGroup(group))
    );
}

#[test]
fn g6_watches_at_their_limit() {
    let bus = bus_with(Limits { queue_messages: 1, watches: 2, ..Limits::default() });
    let (mut sender, mut reader) = (Party::on(&bus), Party::on(&bus));
    let wakes = Wakes::new();
    let watch = |sender: &Party| sender.endpoint.watch_writable(reader.here(), wakes.waker());
    for _ in 0..3 {
        assert!(watch(&sender).unwrap().is_none(), "what is answered at once is not outstanding");
    }
    sender.send(reader.id(), "fills");
    let first = watch(&sender).unwrap();
    let second = watch(&sender).unwrap();
    let WatchError::Limit(LimitExceeded { limit, value, .. }) = watch(&sender).unwrap_err() else {
        panic!()
    };
    assert_eq!((limit, value), ("watches", 2));
    drop(first);
    let third = watch(&sender).unwrap();
    drop(second);
    reader.take();
    assert_eq!(wakes.count(), 1, "dropped watches are woken by nothing");
    assert_eq!(third.unwrap().outcome(), Some(Ok(())));
}
