//! What the bus says of itself: groups, members, counters.

use bus_core::{MemberFlags, OwnOptions};

use crate::given::{Party, bus, bus_with};

#[test]
fn groups_are_listed_by_name() {
    let bus = bus(8);
    let owner = Party::on(&bus);
    assert_eq!(bus.groups().count(), 0);
    for name in ["delta", "alpha", "charlie", "bravo", "echo"] {
        owner.endpoint.create_group(&name.parse().unwrap()).unwrap();
    }
    let listed: Vec<String> = bus.groups().map(|group| group.name.to_string()).collect();
    assert_eq!(listed, ["alpha", "bravo", "charlie", "delta", "echo"]);
}

#[test]
fn g4_a_listing_of_groups_has_what_was_there_and_is_still_and_nothing_later() {
    let bus = bus(8);
    let owner = Party::on(&bus);
    let create = |name: &str| owner.endpoint.create_group(&name.parse().unwrap()).unwrap();
    create("b");
    create("d");
    let other = Party::on(&bus);
    other.endpoint.create_group(&"f".parse().unwrap()).unwrap();
    other.endpoint.create_group(&"h".parse().unwrap()).unwrap();
    let mut listing = bus.groups();
    assert_eq!(listing.next().unwrap().name.as_str(), "b");
    let (_, later) = create("c");
    assert!(listing.sequence() < later);
    drop(other);
    // A group of an old name is another one.
    create("f");
    let rest: Vec<String> = listing.map(|group| group.name.to_string()).collect();
    assert_eq!(rest, ["d"]);
}

#[test]
fn g4_a_listing_of_names_has_what_was_owned_and_is_still_and_nothing_later() {
    let bus = bus(8);
    let (a, b) = (Party::on(&bus), Party::on(&bus));
    let own = |party: &Party, name: &str| {
        party.endpoint.own_name(&name.parse().unwrap(), OwnOptions::default()).unwrap()
    };
    own(&a, "a");
    own(&a, "c");
    own(&b, "d");
    own(&a, "d");
    own(&b, "e");
    a.endpoint.watch_name(&"f".parse().unwrap()).unwrap();
    let mut listing = bus.names();
    assert_eq!(listing.next().unwrap().name.as_str(), "a");
    assert!(listing.sequence() < own(&a, "b").sequence);
    own(&a, "f");
    // The name "d" goes on with another owner; "e" has none for a while.
    drop(b);
    own(&a, "e");
    let rest: Vec<_> = listing.map(|n| (n.name.to_string(), n.owners[0].endpoint)).collect();
    assert_eq!(rest, [("c".to_owned(), a.id()), ("d".to_owned(), a.id())]);
}

#[test]
fn g4_a_listing_of_members_is_the_view_at_its_sequence_however_long_it_takes() {
    let bus = bus(8);
    let members: Vec<Party> = (0..4).map(|_| Party::on(&bus)).collect();
    let joined: Vec<_> = members.iter().map(|member| member.join("g")).collect();
    let group = joined[0];
    let ids: Vec<_> = members.iter().map(Party::id).collect();
    let mut listing = bus.members(group).unwrap();
    assert_eq!(listing.next().unwrap().endpoint, ids[0]);
    let late = Party::on(&bus);
    late.join("g");
    let left = members[1].endpoint.leave(group).unwrap();
    assert!(listing.sequence() < left);
    drop(members);
    let rest: Vec<_> = listing.map(|member| (member.endpoint, member.credentials)).collect();
    assert_eq!(rest, ids[1..].iter().map(|id| (*id, crate::given::ME)).collect::<Vec<_>>());
}

#[test]
fn members_are_listed_by_id_with_their_queues() {
    let bus = bus(2);
    let mut sender = Party::on(&bus);
    let mut members: Vec<Party> = (0..5).map(|_| Party::on(&bus)).collect();
    let mut group = None;
    for member in &members {
        group = Some(member.join_with("g", MemberFlags::LOOPBACK));
    }
    let group = group.unwrap();
    sender.send(group, "12345");
    let filled = sender.send(members[1].id(), "123").sequence;
    sender.wait(members[1].id(), "waits");
    members[0].take();

    let listed: Vec<_> = bus.members(group).unwrap().collect();
    let ids: Vec<_> = members.iter().map(Party::id).collect();
    assert_eq!(listed.iter().map(|m| m.endpoint).collect::<Vec<_>>(), ids);
    let row = |at: usize| {
        let m = &listed[at];
        (m.queued_messages, m.queued_bytes, m.capacity, m.full_since, m.blocks)
    };
    assert_eq!(row(0), (0, 0, 2, None, 0));
    assert_eq!(row(1), (2, 8, 2, Some(filled), 1));
    assert_eq!(row(2), (1, 5, 2, None, 0));
    assert_eq!(listed[2].flags, MemberFlags::LOOPBACK);
    assert_eq!(listed[2].credentials, crate::given::ME);
}

#[test]
fn a_view_tells_the_place_in_the_order_at_which_it_holds() {
    let bus = bus(8);
    let (a, b) = (Party::on(&bus), Party::on(&bus));
    let group = a.join("g");
    let joined = b.endpoint.join(&"g".parse().unwrap(), bus_core::JoinOptions::default()).unwrap();
    let view = bus.members(group).unwrap();
    let left = b.endpoint.leave(group).unwrap();
    assert!(joined.sequence <= view.sequence() && view.sequence() < left);
    assert_eq!(view.len(), 2);
}

#[test]
fn counters_count_commits_deliveries_losses_and_waits() {
    let bus = bus(1);
    let (mut sender, a, b) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let group = a.join("g");
    b.join_with("g", MemberFlags::DROP_WHEN_FULL);
    sender.send(b.id(), "fills");
    sender.send(group, "dropped for b");
    assert!(sender.try_send(group, "refused").is_err());
    sender.wait(group, "waits");
    let stats = bus.stats();
    assert_eq!((stats.messages, stats.deliveries, stats.dropped), (2, 2, 1));
    assert_eq!((stats.endpoints, stats.groups, stats.waiting_sends), (3, 1, 1));
    sender.lane.cancel();
    assert_eq!(bus.stats().waiting_sends, 0);
}

#[test]
fn messages_say_who_sent_them_where_and_when() {
    let bus = bus_with(bus_core::Limits::default());
    bus.tick(std::time::Duration::from_nanos(1_234));
    let (mut sender, mut member) = (Party::on(&bus), Party::on(&bus));
    let group = member.join("g");
    let receipt = sender.send(group, "x");
    let message = member.take_message();
    assert_eq!(message.sender(), sender.id());
    assert_eq!(message.credentials(), crate::given::ME);
    assert_eq!(message.destination(), bus_core::Destination::Group(group));
    assert_eq!(message.sequence(), receipt.sequence);
    assert_eq!((message.commit_time(), message.deadline()), (1_234, 0));
}
