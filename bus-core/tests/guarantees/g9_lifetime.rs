//! G9: how long groups and endpoints live, and who is told when they end.

use std::collections::HashSet;
use std::sync::Arc;

use bus_core::{Delivery, Destination, EndpointId, GroupId, JoinError, ReceiveError, SendError};

use crate::given::{ME, Party, Wakes, bus, soon};

#[test]
fn g9_a_group_lives_while_its_creator_lives_or_it_has_a_member() {
    let bus = bus(8);
    let name = "g".parse().unwrap();
    let (creator, member) = (Party::on(&bus), Party::on(&bus));
    let (group, _) = creator.endpoint.create_group(&name).unwrap();
    member.join("g");
    member.endpoint.leave(group).unwrap();
    assert!(bus.find_group(&name).is_some(), "its creator lives");
    member.join("g");
    let creator_id = creator.id();
    assert_eq!(bus.find_group(&name).unwrap().creator, Some(creator_id));
    drop(creator);
    let info = bus.find_group(&name).unwrap();
    assert_eq!((info.id, info.creator, info.members), (group, None, 1));
    member.endpoint.leave(group).unwrap();
    assert!(bus.find_group(&name).is_none());
    assert_eq!(bus.stats().groups, 0);
    let again = member.join("g");
    assert_ne!(again, group, "a new group, a new id");
}

#[test]
fn g9_a_creator_that_is_the_last_member_takes_the_group_with_it() {
    let bus = bus(8);
    let creator = Party::on(&bus);
    let group = creator.join("g");
    let mut sender = Party::on(&bus);
    sender.send(group, "x");
    drop(creator);
    assert!(bus.find_group(&"g".parse().unwrap()).is_none());
    assert_eq!(sender.try_send(group, "x"), Err(SendError::NoSuchGroup(group)));
}

#[test]
fn g9_the_end_of_an_empty_group_is_noticed_by_who_has_its_route_cached() {
    let bus = bus(8);
    let (creator, mut sender) = (Party::on(&bus), Party::on(&bus));
    let (group, _) = creator.endpoint.create_group(&"g".parse().unwrap()).unwrap();
    assert_eq!(sender.send(group, "x").recipients, 0);
    drop(creator);
    assert_eq!(sender.try_send(group, "x"), Err(SendError::NoSuchGroup(group)));
}

#[test]
fn g9_ids_are_never_reused_and_stale_ones_find_nobody() {
    let bus = bus(8);
    let mut sender = Party::on(&bus);
    let mut seen = HashSet::new();
    let mut stale = Vec::new();
    for _ in 0..50 {
        let party = Party::on(&bus);
        assert!(seen.insert(party.id()));
        // The sender has the route in its cache, and the slot is used again at once.
        sender.send(party.id(), "x");
        stale.push(party.id());
    }
    for id in stale {
        assert_eq!(sender.try_send(id, "x"), Err(SendError::NoSuchEndpoint(id)));
    }
    let never = EndpointId::from_raw(u64::MAX);
    assert_eq!(sender.try_send(never, "x"), Err(SendError::NoSuchEndpoint(never)));
    let no_group = GroupId::from_raw(u64::MAX);
    assert_eq!(sender.try_send(no_group, "x"), Err(SendError::NoSuchGroup(no_group)));
    assert!(bus.members(no_group).is_none());
}

#[test]
fn g9_shutdown_receive_leaves_all_groups_keeps_what_was_queued_and_still_sends() {
    let bus = bus(8);
    let (mut me, mut other) = (Party::on(&bus), Party::on(&bus));
    let (red, blue) = (me.join("red"), me.join("blue"));
    other.join("blue");
    other.send(red, "queued");
    let shut = me.endpoint.shutdown_receive();
    assert_eq!(other.send(blue, "not for me").recipients, 0);
    assert_eq!(other.try_send(me.id(), "x"), Err(SendError::ReceiveShut(me.id())));
    assert_eq!(
        me.endpoint.join(&"red".parse().unwrap(), bus_core::JoinOptions::create()),
        Err(JoinError::ReceiveShut(me.id()))
    );
    assert!(me.send(blue, "still sends").sequence > shut);
    assert_eq!(other.take_all(), ["still sends"]);
    assert_eq!(me.take(), "queued");
    assert_eq!(me.reader.try_receive().unwrap_err(), ReceiveError::Ended);
    assert!(me.endpoint.shutdown_receive() >= shut);
}

#[test]
fn g9_the_end_wakes_the_reader_that_sleeps() {
    let bus = bus(8);
    let (shuts, closes) = (Party::on(&bus), Party::on(&bus));
    let mut readers = [shuts.reader, closes.reader];
    let wakes: Vec<_> = readers
        .iter_mut()
        .map(|reader| {
            let wakes = Wakes::new();
            assert!(reader.sleep(wakes.waker()));
            wakes
        })
        .collect();
    shuts.endpoint.shutdown_receive();
    drop(closes.endpoint);
    for (reader, wakes) in readers.iter_mut().zip(wakes) {
        assert_eq!(wakes.count(), 1);
        assert_eq!(reader.try_receive().unwrap_err(), ReceiveError::Ended);
        assert!(!reader.sleep(Wakes::new().waker()), "it has ended");
        assert_eq!(reader.receive_deadline(soon()).unwrap_err(), ReceiveError::Ended);
    }
}

#[test]
fn g9_what_was_queued_stays_readable_after_the_close() {
    let bus = bus(8);
    let mut sender = Party::on(&bus);
    let Party { endpoint, mut reader, .. } = Party::on(&bus);
    sender.send(endpoint.id(), "queued");
    drop(endpoint);
    let Ok(Delivery::Message { message, .. }) = reader.try_receive() else { panic!() };
    assert_eq!(crate::given::text(&message), "queued");
    assert_eq!(reader.try_receive().unwrap_err(), ReceiveError::Ended);
}

#[test]
fn g9_a_closed_endpoint_leaves_nothing_behind() {
    let bus = bus(1);
    let before = bus.stats();
    {
        let (mut a, b) = (Party::on(&bus), Party::on(&bus));
        let group = a.join("g");
        b.join("g");
        a.send(group, "x");
        a.wait(group, "y");
        Party::on(&bus).wait(b.here(), "z");
    }
    let after = bus.stats();
    assert_eq!(
        (after.endpoints, after.groups, after.waiting_sends),
        (before.endpoints, before.groups, before.waiting_sends)
    );
    assert!(bus.open_endpoint(ME).is_ok());
}

#[test]
fn g9_tables_that_shrink_keep_those_who_are_left() {
    let bus = bus(8);
    let many: Vec<_> = (0..1_000).map(|_| Party::on(&bus)).collect();
    let mut left: Vec<_> = many.into_iter().enumerate().collect();
    left.retain(|(number, _)| number % 100 == 50);
    bus.shrink();
    let groups: Vec<GroupId> = left.iter().map(|(_, party)| party.join("g")).collect();
    let group = groups[0];
    let mut late = Party::on(&bus);
    assert_eq!(late.send(group, "to all").recipients, 10);
    for (_, party) in &mut left {
        assert_eq!(late.send(party.here(), "to one").recipients, 1);
        assert_eq!(party.take(), "to all");
        assert_eq!(party.take(), "to one");
    }
}

#[test]
fn g9_a_lane_outlives_its_endpoint_without_harm() {
    let bus = bus(8);
    let reader = Party::on(&bus);
    let mut lane = {
        let endpoint = bus.open_endpoint(ME).unwrap();
        endpoint.lane().unwrap()
    };
    assert_eq!(lane.try_send(reader.here(), "x"), Err(SendError::Closed));
    assert_eq!(
        lane.try_send(Destination::Endpoint(lane.endpoint()), "x"),
        Err(SendError::NoSuchEndpoint(lane.endpoint()))
    );
}

#[test]
fn g9_what_nobody_can_read_any_more_is_dropped_at_once() {
    for receiver_first in [true, false] {
        let bus = bus(8);
        let mut sender = Party::on(&bus);
        let Party { endpoint, reader, lane } = Party::on(&bus);
        let owner = Arc::new([1_u8; 8]);
        let payload = bytes::Bytes::from_owner(Shared(Arc::clone(&owner)));
        let to = Destination::Endpoint(endpoint.id());
        sender.lane.try_send(to, payload).unwrap();
        assert_eq!(Arc::strong_count(&owner), 2);
        if receiver_first {
            drop(reader);
            drop(endpoint);
        } else {
            drop(endpoint);
            assert_eq!(Arc::strong_count(&owner), 2, "it can be read");
            drop(reader);
        }
        assert_eq!(Arc::strong_count(&owner), 1, "{receiver_first}");
        drop(lane);
    }
}

struct Shared(Arc<[u8; 8]>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &*self.0
    }
}
