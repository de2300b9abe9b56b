//! What the bus says of itself: groups, members, counters.

use bus_core::{GroupName, MemberFlags};

use crate::given::{Party, bus, bus_with};

#[test]
fn groups_are_listed_by_name_in_pages() {
    let bus = bus(8);
    let owner = Party::on(&bus);
    for name in ["delta", "alpha", "charlie", "bravo", "echo"] {
        owner.endpoint.create_group(&name.parse().unwrap()).unwrap();
    }
    let mut listed: Vec<String> = Vec::new();
    let mut after: Option<GroupName> = None;
    loop {
        let page = bus.groups(after.as_ref(), 2);
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 2);
        after = Some(last.name.clone());
        listed.extend(page.iter().map(|group| group.name.to_string()));
    }
    assert_eq!(listed, ["alpha", "bravo", "charlie", "delta", "echo"]);
    assert_eq!(bus.groups(None, 0), []);
}

#[test]
fn members_are_listed_by_id_in_pages_with_their_queues() {
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

    let mut listed = Vec::new();
    let mut after = None;
    loop {
        let view = bus.members(group, after, 2).unwrap();
        listed.extend(view.members);
        after = listed.last().map(|member| member.endpoint);
        if !view.more {
            break;
        }
    }
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
    let view = bus.members(group, None, 10).unwrap();
    let left = b.endpoint.leave(group).unwrap();
    assert!(joined.sequence <= view.sequence && view.sequence < left);
    assert_eq!(view.members.len(), 2);
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
