//! Receive filters, by the guarantees that they take part in.

use std::task::Waker;
use std::time::Duration;

use bus_core::{
    Attributes, Condition, Destination, Draft, Filter, FilterChangeError, FilterProgram, GroupId,
    JoinError, JoinOptions, LimitExceeded, Limits, MemberFlags, Receipt, SendError, Submitted,
};

use crate::given::{Party, Wakes, assert_rising, bus, bus_with, full, outcome};

fn filter(text: &str) -> Filter {
    text.parse().unwrap()
}

/// A filter that is a program: whether the byte at 0, the key's first if there is a key, is set.
fn program() -> Filter {
    // r6 = r1; r0 = the byte at 0; exit
    let code = [0xbf, 0x16, 0, 0, 0, 0, 0, 0, 0x30, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    Filter::new([vec![Condition::Program(FilterProgram::load(&code).unwrap())]]).unwrap()
}

fn join(party: &Party, group: &str, accepts: &str) -> GroupId {
    join_with(party, group, JoinOptions::create().filtered(filter(accepts)))
}

fn join_with(party: &Party, group: &str, options: JoinOptions) -> GroupId {
    party.endpoint.join(&group.parse().unwrap(), options).unwrap().group
}

fn key(key: &str) -> Attributes {
    Attributes::builder().key(key).build().unwrap()
}

/// A message whose payload is its key.
fn keyed(text: &str) -> Draft {
    Draft { attributes: key(text), ..Draft::from(text) }
}

fn try_send(from: &mut Party, to: GroupId, text: &str) -> Result<Receipt, SendError> {
    from.lane.try_send(Destination::Group(to), keyed(text))
}

fn send(from: &mut Party, to: GroupId, text: &str) -> Receipt {
    try_send(from, to, text).unwrap()
}

#[test]
fn g2_a_message_that_nobody_wants_has_its_place_too() {
    let bus = bus(4);
    let (mut sender, mut reader) = (Party::on(&bus), Party::on(&bus));
    let group = join(&reader, "g", "key^=a.");
    let receipts = ["b", "a.1", "c", "a.2"].map(|text| send(&mut sender, group, text));
    assert_eq!(receipts.map(|receipt| receipt.recipients), [0, 1, 0, 1]);
    assert_rising(&receipts.map(|receipt| receipt.sequence));
    assert_eq!(reader.take_all(), ["a.1", "a.2"]);
}

#[test]
fn g4_a_filter_changes_at_a_place_in_the_order() {
    let bus = bus(8);
    let (mut sender, mut reader) = (Party::on(&bus), Party::on(&bus));
    let group = join(&reader, "g", "key=a");
    let before = send(&mut sender, group, "b");
    let changed = reader.endpoint.set_filter(group, Some(filter("key=b"))).unwrap();
    let after = send(&mut sender, group, "b");
    send(&mut sender, group, "a");
    let removed = reader.endpoint.set_filter(group, None).unwrap();
    let last = send(&mut sender, group, "a");
    assert_rising(&[before.sequence, changed, after.sequence, removed, last.sequence]);
    assert_eq!(reader.take_all(), ["b", "a"]);

    let stranger = Party::on(&bus);
    let refused = stranger.endpoint.set_filter(group, None);
    assert_eq!(refused, Err(FilterChangeError::NotAMember(group, stranger.id())));
}

#[test]
fn a_member_with_loopback_hears_of_its_own_what_it_wants() {
    let bus = bus(4);
    let mut both = Party::on(&bus);
    let options = JoinOptions::create().with(MemberFlags::LOOPBACK).filtered(filter("key=a"));
    let group = join_with(&both, "g", options);
    let mut other = Party::on(&bus);
    join(&other, "g", "key=b");
    assert_eq!(send(&mut both, group, "a").recipients, 1);
    assert_eq!(send(&mut both, group, "b").recipients, 1);
    assert_eq!(send(&mut other, group, "b").recipients, 0, "not its own");
    assert_eq!((both.take_all(), other.take_all()), (vec!["a".to_owned()], vec!["b".to_owned()]));
}

#[test]
fn g5_a_send_does_not_wait_for_a_member_that_rejects_it() {
    let bus = bus(1);
    let (mut sender, full_one, mut other) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let group = join(&full_one, "g", "key=a");
    join(&other, "g", "key^=");
    sender.send(full_one.id(), "fills");
    assert_eq!(send(&mut sender, group, "b").recipients, 1);
    assert_eq!(other.take(), "b");
    assert_eq!(full(try_send(&mut sender, group, "a")), (vec![full_one.id()], 1));
}

#[test]
fn g5_a_filter_that_rejects_a_waiting_send_lets_it_go() {
    let bus = bus(1);
    let (mut sender, full_one, mut other) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let group = full_one.join("g");
    other.join("g");
    sender.send(full_one.id(), "fills");
    let wakes = Wakes::new();
    let to = Destination::Group(group);
    let submitted = sender.lane.submit(to, keyed("a"), wakes.waker()).unwrap();
    assert_eq!(submitted, Submitted::Waiting);
    full_one.endpoint.set_filter(group, Some(filter("key^="))).unwrap();
    assert_eq!(wakes.count(), 0, "it is still wanted");
    let changed = full_one.endpoint.set_filter(group, Some(filter("key=b"))).unwrap();
    assert_eq!(wakes.count(), 1);
    let receipt = outcome(&mut sender.lane).unwrap();
    assert_eq!(receipt.recipients, 1);
    assert!(receipt.sequence > changed);
    assert_eq!(other.take(), "a");
}

#[test]
fn g5_a_waiting_send_reaches_who_wants_it_when_it_goes() {
    let bus = bus(1);
    let (mut sender, mut reader, mut late) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let group = reader.join("g");
    join(&late, "g", "key=b");
    sender.send(reader.id(), "fills");
    let submitted =
        sender.lane.submit(Destination::Group(group), keyed("a"), Waker::noop().clone());
    assert_eq!(submitted, Ok(Submitted::Waiting));
    late.endpoint.set_filter(group, None).unwrap();
    reader.take();
    assert_eq!(outcome(&mut sender.lane).unwrap().recipients, 2);
    assert_eq!((reader.take(), late.take()), ("a".to_owned(), "a".to_owned()));
}

#[test]
fn g6_writability_is_that_of_a_key() {
    let bus = bus(1);
    let (mut sender, full_one) = (Party::on(&bus), Party::on(&bus));
    let group = join(&full_one, "g", "key^=a.");
    sender.send(full_one.id(), "fills");
    let to = Destination::Group(group);
    let wakes = Wakes::new();
    let watch = |sender: &Party, text: &str| {
        sender.endpoint.watch_writable_for(to, key(text), wakes.waker()).unwrap()
    };
    assert!(watch(&sender, "b").is_none(), "nobody lacks room for it");
    assert!(sender.endpoint.watch_writable(to, wakes.waker()).unwrap().is_none());
    let mut watching = watch(&sender, "a.1").expect("not writable");
    full_one.endpoint.set_filter(group, Some(filter("key=a.2"))).unwrap();
    assert_eq!((wakes.count(), watching.outcome()), (1, Some(Ok(()))), "it is not wanted any more");
    assert!(send(&mut sender, group, "a.1").recipients == 0);
    assert!(watch(&sender, "a.2").is_some());
}

#[test]
fn g6_a_program_is_taken_to_accept_what_is_not_known_yet() {
    let bus = bus(1);
    let (mut sender, full_one) = (Party::on(&bus), Party::on(&bus));
    let group = join_with(&full_one, "g", JoinOptions::create().filtered(program()));
    sender.send(full_one.id(), "fills");
    let to = Destination::Group(group);
    let mut watching = sender.endpoint.watch_writable(to, Waker::noop().clone()).unwrap().unwrap();
    assert_eq!(watching.outcome(), None);
    assert_eq!(sender.lane.try_send(to, &[0][..]).unwrap().recipients, 0, "it is rejected");
    assert!(sender.lane.try_send(to, &[1][..]).is_err());
}

#[test]
fn g7_what_a_filter_rejects_is_no_loss() {
    let bus = bus(1);
    let (mut sender, mut dropper) = (Party::on(&bus), Party::on(&bus));
    let options = JoinOptions::create().with(MemberFlags::DROP_WHEN_FULL);
    let group = join_with(&dropper, "g", options.filtered(filter("key=a")));
    let dropped = |receipt: Receipt| (receipt.recipients, receipt.dropped);
    assert_eq!(dropped(send(&mut sender, group, "a")), (1, 0));
    assert_eq!(dropped(send(&mut sender, group, "b")), (0, 0));
    let lost = send(&mut sender, group, "a");
    assert_eq!(dropped(lost), (0, 1));
    dropper.take();
    let (_, gap) = dropper.take_gap();
    assert_eq!((gap.count, gap.first, gap.last), (1, lost.sequence, lost.sequence));
}

#[test]
fn g8_filters_of_an_endpoint_are_bounded() {
    // Two conditions of one byte each.
    let bus = bus_with(Limits { filter_bytes: 2 * 65, ..Limits::default() });
    let member = Party::on(&bus);
    let first = join(&member, "one", "key=a");
    join(&member, "two", "key=a");
    let limit = LimitExceeded::clone;
    let third = member.join("three");
    let error = match member.endpoint.set_filter(third, Some(filter("key=a"))) {
        Err(FilterChangeError::Limit(error)) => limit(&error),
        other => panic!("{other:?}"),
    };
    assert_eq!((error.limit, error.value), ("filter_bytes", 130));
    let options = JoinOptions::create().filtered(filter("key=a"));
    let refused = member.endpoint.join(&"four".parse().unwrap(), options);
    assert_eq!(refused, Err(JoinError::Limit(error)));
    assert!(bus.find_group(&"four".parse().unwrap()).is_none(), "and nothing was created");
    member.endpoint.set_filter(first, Some(filter("key=b"))).unwrap();
    member.endpoint.set_filter(first, None).unwrap();
    member.endpoint.set_filter(third, Some(filter("key=a"))).unwrap();
}

#[test]
fn g8_programs_of_a_group_are_bounded() {
    let bus = bus_with(Limits { filter_instructions: 6, ..Limits::default() });
    let [a, b, c] = [(); 3].map(|()| Party::on(&bus));
    let options = || JoinOptions::create().filtered(program());
    let group = join_with(&a, "g", options());
    join_with(&b, "g", options());
    let refused = c.endpoint.join(&"g".parse().unwrap(), options());
    let Err(JoinError::Limit(error)) = refused else { panic!("{refused:?}") };
    assert_eq!((error.limit, error.value), ("filter_instructions", 6));
    c.join("g");
    let refused = c.endpoint.set_filter(group, Some(program()));
    assert_eq!(refused, Err(FilterChangeError::Limit(error)));
    b.endpoint.set_filter(group, Some(program())).unwrap();
    b.endpoint.leave(group).unwrap();
    c.endpoint.set_filter(group, Some(program())).unwrap();

    let twice = Filter::any([program(), program(), program()]).unwrap();
    let other = JoinOptions::create().filtered(twice);
    assert!(c.endpoint.join(&"alone".parse().unwrap(), other).is_err());
    assert!(bus.find_group(&"alone".parse().unwrap()).is_none(), "and nothing was created");
}

/// The clock runs for every full recipient of every waiting send, also where two of them go to one
/// group and have nobody in common.
#[test]
fn g8_stuck_members_with_different_filters_are_evicted_together() {
    let stall = Duration::from_secs(10);
    let bus = bus_with(Limits { queue_messages: 1, stall, ..Limits::default() });
    let mut now = Duration::from_secs(1_000_000);
    bus.tick(now);
    let stuck = ["a", "b"].map(|wanted| {
        let party = Party::on(&bus);
        let group = join(&party, "g", &format!("key={wanted}"));
        (party, group, wanted)
    });
    let mut senders = [(); 2].map(|()| Party::on(&bus));
    for ((party, group, wanted), sender) in stuck.iter().zip(&mut senders) {
        sender.send(party.id(), "fills");
        let waker = Waker::noop().clone();
        let submitted = sender.lane.submit(Destination::Group(*group), keyed(wanted), waker);
        assert_eq!(submitted, Ok(Submitted::Waiting));
    }
    let mut evicted = Vec::new();
    for _ in 0..102 {
        now += Duration::from_millis(100);
        evicted.extend(bus.tick(now).iter().map(|eviction| eviction.endpoint));
    }
    assert_eq!(evicted, stuck.each_ref().map(|(party, ..)| party.id()));
    for sender in &mut senders {
        assert_eq!(outcome(&mut sender.lane).unwrap().recipients, 0);
    }
}
