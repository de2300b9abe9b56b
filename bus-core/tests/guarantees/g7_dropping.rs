//! G7: what a drop-when-full member misses is told to it exactly, and costs others nothing.

use bus_core::{Delivery, Destination, Gap, GroupId, MemberFlags, ReceiveError, Sequence};

use crate::given::{Party, Wakes, bus, outcome};

fn dropping(party: &Party, group: &str) -> GroupId {
    party.join_with(group, MemberFlags::DROP_WHEN_FULL)
}

fn gap(sequences: &[Sequence]) -> Gap {
    Gap { count: sequences.len() as u64, first: sequences[0], last: sequences[sequences.len() - 1] }
}

/// Takes a message with what was missed before it.
fn take(party: &mut Party) -> (String, Option<Gap>) {
    match party.reader.try_receive() {
        Ok(Delivery::Message { message, missed }) => (crate::given::text(&message), missed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn g7_a_gap_is_told_with_the_next_message_of_its_group() {
    let bus = bus(2);
    let (mut sender, mut member, mut other) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let group = dropping(&member, "g");
    other.join("g");
    for text in ["1", "2"] {
        sender.send(group, text);
        other.take();
    }
    let mut missed = Vec::new();
    for text in ["3", "4", "5"] {
        let receipt = sender.send(group, text);
        assert_eq!((receipt.recipients, receipt.dropped), (1, 1));
        missed.push(receipt.sequence);
        assert_eq!(other.take(), text, "others do not notice");
    }
    assert_eq!(take(&mut member), ("1".into(), None));
    // A message of another kind does not carry the gap of the group.
    sender.send(member.id(), "direct");
    assert_eq!(take(&mut member), ("2".into(), None));
    sender.send(group, "6");
    assert_eq!(take(&mut member), ("direct".into(), None));
    assert_eq!(take(&mut member), ("6".into(), Some(gap(&missed))));
    sender.send(group, "7");
    assert_eq!(take(&mut member), ("7".into(), None), "told once");
    assert_eq!(bus.stats().dropped, 3);
}

#[test]
fn g7_a_gap_is_told_alone_once_the_queue_is_empty() {
    let bus = bus(1);
    let (mut sender, mut member) = (Party::on(&bus), Party::on(&bus));
    let group = dropping(&member, "g");
    sender.send(group, "1");
    let missed = [sender.send(group, "2").sequence];
    let wakes = Wakes::new();
    assert!(!member.reader.sleep(wakes.waker()), "there is something");
    assert_eq!(member.take(), "1");
    assert!(!member.reader.sleep(wakes.waker()), "a gap is something");
    assert_eq!(member.take_gap(), (group, gap(&missed)));
    assert_eq!(member.reader.try_receive().unwrap_err(), ReceiveError::Empty);
    assert!(member.reader.sleep(wakes.waker()));
    sender.send(group, "3");
    assert_eq!(wakes.count(), 1);
    assert_eq!(take(&mut member), ("3".into(), None));
}

#[test]
fn g7_gaps_of_groups_are_told_apart() {
    let bus = bus(1);
    let (mut sender, mut member) = (Party::on(&bus), Party::on(&bus));
    let (red, blue) = (dropping(&member, "red"), dropping(&member, "blue"));
    sender.send(member.id(), "fills");
    let missed_red = [sender.send(red, "r").sequence, sender.send(red, "r").sequence];
    let missed_blue = [sender.send(blue, "b").sequence];
    member.take();
    sender.send(blue, "b");
    assert_eq!(take(&mut member), ("b".into(), Some(gap(&missed_blue))));
    assert_eq!(member.take_gap(), (red, gap(&missed_red)));
}

#[test]
fn g7_a_gap_is_told_after_a_leave_too() {
    let bus = bus(1);
    let (mut sender, mut member) = (Party::on(&bus), Party::on(&bus));
    let group = dropping(&member, "g");
    sender.send(group, "1");
    let missed = [sender.send(group, "2").sequence, sender.send(group, "3").sequence];
    let left = member.endpoint.leave(group).unwrap();
    assert!(missed[1] < left);
    assert_eq!(member.take(), "1");
    assert_eq!(member.take_gap(), (group, gap(&missed)));
}

#[test]
fn g7_a_gap_is_told_after_shutdown_receive_too_and_then_it_ends() {
    let bus = bus(1);
    let (mut sender, mut member) = (Party::on(&bus), Party::on(&bus));
    let group = dropping(&member, "g");
    sender.send(group, "1");
    let missed = [sender.send(group, "2").sequence];
    member.endpoint.shutdown_receive();
    assert_eq!(member.take(), "1");
    assert_eq!(member.take_gap(), (group, gap(&missed)));
    assert_eq!(member.reader.try_receive().unwrap_err(), ReceiveError::Ended);
}

#[test]
fn g7_coming_back_does_not_lose_a_gap_that_was_not_told() {
    for flags in [MemberFlags::DROP_WHEN_FULL, MemberFlags::empty()] {
        let bus = bus(1);
        let (mut sender, mut member) = (Party::on(&bus), Party::on(&bus));
        let keeper = Party::on(&bus);
        let group = keeper.join_with("g", MemberFlags::DROP_WHEN_FULL);
        dropping(&member, "g");
        sender.send(group, "1");
        let missed = [sender.send(group, "2").sequence];
        member.endpoint.leave(group).unwrap();
        member.join_with("g", flags);
        assert_eq!(member.take(), "1");
        assert_eq!(member.take_gap(), (group, gap(&missed)), "{flags:?}");
        sender.send(group, "3");
        assert_eq!(take(&mut member), ("3".into(), None));
    }
}

#[test]
fn g7_a_gap_behind_drained_messages_is_told_when_their_places_are_free() {
    let bus = bus(1);
    let (mut sender, mut member) = (Party::on(&bus), Party::on(&bus));
    let group = dropping(&member, "g");
    sender.send(group, "1");
    assert!(member.reader.drain().is_some());
    let wakes = Wakes::new();
    assert!(member.reader.sleep(wakes.waker()));
    let missed = [sender.send(group, "dropped").sequence, sender.send(group, "dropped").sequence];
    assert_eq!(wakes.count(), 0, "the application has not taken the first");
    assert!(!member.reader.has_lone_gap());
    member.reader.release(1, 1).unwrap();
    assert!(member.reader.has_lone_gap());
    assert!(!member.reader.sleep(wakes.waker()), "a gap is something");
    assert_eq!(member.take_gap(), (group, gap(&missed)));
    assert!(member.reader.drain().is_none());
    assert!(!member.reader.has_lone_gap());
}

#[test]
fn g7_the_place_that_an_older_send_waits_for_is_not_taken_by_a_dropping_membership() {
    let bus = bus(1);
    let (mut waits, mut floods, mut reader) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let flood = dropping(&reader, "flood");
    floods.send(flood, "fills");
    waits.wait(reader.id(), "waits");
    for _ in 0..10 {
        assert_eq!(floods.send(flood, "x").dropped, 1);
    }
    assert_eq!(reader.take(), "fills");
    assert!(outcome(&mut waits.lane).is_ok());
    assert_eq!(floods.send(flood, "x").dropped, 1);
    assert_eq!(reader.take(), "waits");
    let (group, gap) = reader.take_gap();
    assert_eq!((group, gap.count), (flood, 11));
}

#[test]
fn g7_the_counter_of_a_membership_shows_its_losses() {
    let bus = bus(1);
    let (mut sender, member) = (Party::on(&bus), Party::on(&bus));
    let group = dropping(&member, "g");
    for _ in 0..4 {
        sender.send(group, "x");
    }
    let member = bus.members(group).unwrap().next().unwrap();
    assert_eq!(member.dropped, 3);
    assert_eq!(member.flags, MemberFlags::DROP_WHEN_FULL);
}

#[test]
fn g7_dropping_and_blocking_members_of_one_group_each_keep_their_way() {
    let bus = bus(1);
    let (mut sender, mut blocks, mut drops) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let group = blocks.join("g");
    dropping(&drops, "g");
    sender.send(group, "1");
    // Both are full: it waits for the one that blocks.
    sender.wait(group, "2");
    blocks.take();
    let receipt = outcome(&mut sender.lane).unwrap();
    assert_eq!((receipt.recipients, receipt.dropped), (1, 1));
    // Refused sends drop nothing.
    assert!(sender.try_send(Destination::Group(group), "3").is_err());
    assert_eq!(blocks.take_all(), ["2"]);
    assert_eq!(drops.take(), "1");
    assert_eq!(drops.take_gap(), (group, gap(&[receipt.sequence])));
}
