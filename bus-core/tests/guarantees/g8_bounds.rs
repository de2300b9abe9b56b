//! G8: everything is bounded: each limit at its value, and one past it.

use bus_core::{
    Bus, CreateError, Delivery, Endpoint, GroupName, Interest, JoinError, JoinOptions,
    LimitExceeded, Limits, MemberFlags,
};

use crate::given::{ME, Party, bus_with, full};

fn name(n: usize) -> GroupName {
    format!("g{n}").parse().unwrap()
}

fn exceeded(error: LimitExceeded) -> (&'static str, u64) {
    (error.limit, error.value)
}

fn endpoint(bus: &Bus) -> Endpoint {
    bus.open_endpoint(ME).unwrap()
}

#[test]
fn g8_endpoints_at_their_limit() {
    let bus = bus_with(Limits { endpoints: 2, ..Limits::default() });
    let (first, _second) = (endpoint(&bus), endpoint(&bus));
    let refused = bus.open_endpoint(ME).unwrap_err();
    assert_eq!(exceeded(refused), ("endpoints", 2));
    drop(first);
    assert!(bus.open_endpoint(ME).is_ok());
}

#[test]
fn g8_groups_and_created_groups_at_their_limits() {
    let bus = bus_with(Limits { groups: 3, groups_created: 2, ..Limits::default() });
    let (a, b) = (endpoint(&bus), endpoint(&bus));
    let (first, _) = a.create_group(&name(1)).unwrap();
    a.join(&name(2), JoinOptions::create()).unwrap();
    let refused = a.create_group(&name(3)).unwrap_err();
    let CreateError::Limit(limit) = refused else { panic!("{refused}") };
    assert_eq!(exceeded(limit), ("groups_created", 2));
    let refused = a.join(&name(3), JoinOptions::create()).unwrap_err();
    assert!(matches!(refused, JoinError::Limit(_)), "{refused}");
    b.create_group(&name(3)).unwrap();
    let CreateError::Limit(limit) = b.create_group(&name(4)).unwrap_err() else { panic!() };
    assert_eq!(exceeded(limit), ("groups", 3));
    assert_eq!(b.create_group(&name(1)), Err(CreateError::Exists(name(1))));
    // A group that ends gives its place back, to the bus and to its creator.
    b.join(&name(1), JoinOptions::default()).unwrap();
    b.leave(first).unwrap();
    assert!(bus.find_group(&name(1)).is_some(), "its creator lives");
    drop(a);
    assert!(bus.find_group(&name(1)).is_none());
    assert!(b.create_group(&name(1)).is_ok());
}

#[test]
fn g8_memberships_at_their_limit() {
    let bus = bus_with(Limits { memberships: 2, ..Limits::default() });
    let member = endpoint(&bus);
    let first = member.join(&name(1), JoinOptions::create()).unwrap();
    member.join(&name(2), JoinOptions::create()).unwrap();
    let JoinError::Limit(limit) = member.join(&name(3), JoinOptions::create()).unwrap_err() else {
        panic!()
    };
    assert_eq!(exceeded(limit), ("memberships", 2));
    assert!(bus.find_group(&name(3)).is_none());
    member.leave(first.group).unwrap();
    assert!(member.join(&name(3), JoinOptions::create()).is_ok());
}

/// Who comes, misses something, goes and never reads cannot pile up what it has to be told.
#[test]
fn g8_losses_that_were_not_read_are_bounded_and_reading_them_makes_room() {
    let bus = bus_with(Limits { memberships: 2, queue_messages: 1, ..Limits::default() });
    let (mut sender, mut member) = (Party::on(&bus), Party::on(&bus));
    sender.send(member.id(), "fills");
    let options = JoinOptions::create().with(MemberFlags::DROP_WHEN_FULL);
    let mut joined = 0;
    let refused = loop {
        match member.endpoint.join(&name(joined), options.clone()) {
            Ok(join) => {
                sender.send(join.group, "missed");
                member.endpoint.leave(join.group).unwrap();
                joined += 1;
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, JoinError::Limit(_)), "{refused}");
    assert_eq!(joined, 2, "as many as memberships");
    member.take();
    for _ in 0..joined {
        assert_eq!(member.take_gap().1.count, 1);
    }
    // What was told is forgotten at the next change.
    assert!(member.endpoint.join(&name(joined), options).is_ok());
}

/// The same for who watches groups.
#[test]
fn g8_changes_that_were_not_read_are_bounded_and_reading_them_makes_room() {
    let bus = bus_with(Limits { watches: 2, queue_messages: 1, ..Limits::default() });
    let (mut sender, mut watcher, member) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    sender.send(watcher.id(), "fills");
    let mut watched = 0;
    let watch = |watcher: &Party, n| {
        let interest = Interest::Members;
        watcher.endpoint.watch_group(&name(n), interest, true)
    };
    let refused = loop {
        match watch(&watcher, watched) {
            Ok(watching) => {
                member.endpoint.join(&name(watched), JoinOptions::default()).unwrap();
                watcher.endpoint.unwatch_group(watching.group).unwrap();
                watched += 1;
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, JoinError::Limit(_)), "{refused}");
    assert_eq!(watched, 2, "as many as watches");
    watcher.take();
    for _ in 0..watched {
        let lost = watcher.reader.try_receive();
        assert!(matches!(lost, Ok(Delivery::ViewsLost { .. })), "{lost:?}");
    }
    assert!(watch(&watcher, watched).is_ok());
}

#[test]
fn g8_watches_of_groups_at_their_limit() {
    let bus = bus_with(Limits { watches: 2, ..Limits::default() });
    let watcher = endpoint(&bus);
    for interest in [Interest::Members, Interest::Anybody] {
        for n in 0..2 {
            watcher
                .watch_group(&name(n), interest, true)
                .expect("the same two, differently the second time");
        }
    }
    let refused = watcher.watch_group(&name(2), Interest::Members, true).unwrap_err();
    let JoinError::Limit(limit) = refused else { panic!("{refused}") };
    assert_eq!(exceeded(limit), ("watches", 2));
    assert!(bus.find_group(&name(2)).is_none());
}

#[test]
fn g8_members_at_their_limit() {
    let bus = bus_with(Limits { members: 2, ..Limits::default() });
    let (a, b, c) = (endpoint(&bus), endpoint(&bus), endpoint(&bus));
    let joined = a.join(&name(1), JoinOptions::create()).unwrap();
    b.join(&name(1), JoinOptions::create()).unwrap();
    let JoinError::Limit(limit) = c.join(&name(1), JoinOptions::create()).unwrap_err() else {
        panic!()
    };
    assert_eq!(exceeded(limit), ("members", 2));
    a.leave(joined.group).unwrap();
    assert_eq!(c.join(&name(1), JoinOptions::create()).unwrap().members, 2);
}

#[test]
fn g8_lanes_at_their_limit() {
    let bus = bus_with(Limits::default());
    let sender = endpoint(&bus);
    let lanes: Vec<_> = (0..16).map(|_| sender.lane().unwrap()).collect();
    assert_eq!(exceeded(sender.lane().unwrap_err()), ("lanes", 16));
    drop(lanes);
    assert!(sender.lane().is_ok());
}

#[test]
fn g8_a_queue_holds_its_capacity_and_no_more() {
    let bus = bus_with(Limits { queue_messages: 3, ..Limits::default() });
    let (mut sender, mut reader) = (Party::on(&bus), Party::on(&bus));
    for i in 0..3 {
        sender.send(reader.id(), &i.to_string());
    }
    assert_eq!(full(sender.try_send(reader.id(), "x")).1, 1);
    assert_eq!(reader.take_all(), ["0", "1", "2"]);
}

#[test]
fn g8_limits_out_of_range_make_no_bus() {
    type Set = fn(&mut Limits, u64);
    #[expect(clippy::cast_possible_truncation, reason = "the table's values fit")]
    let cases: [(&str, Set, u64, u64); 5] = [
        ("queue_messages", |l, n| l.queue_messages = n as u32, 1, 1 << 20),
        ("queue_bytes", |l, n| l.queue_bytes = n, 1, 1 << 40),
        ("payload_bytes", |l, n| l.payload_bytes = n as u32, 1, 16 << 20),
        ("lanes", |l, n| l.lanes = n as u8, 1, 16),
        ("members", |l, n| l.members = n as u32, 1, 1 << 20),
    ];
    for (case, set, least, most) in cases {
        for (value, good) in [(least - 1, false), (least, true), (most, true), (most + 1, false)] {
            let mut limits = Limits::default();
            set(&mut limits, value);
            let made = Bus::new(limits, 1);
            assert_eq!(made.is_ok(), good, "{case} {value}");
            if let Err(error) = made {
                assert_eq!(error.name, case);
            }
        }
    }
}
