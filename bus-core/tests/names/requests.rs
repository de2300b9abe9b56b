//! Requests to names: exactly one of the owners is asked, and a repeatable one is given again when
//! that one dies.

use bus_core::{
    Delivery, Destination, Draft, Kind, Limits, Message, NameFlags, NameId, RequestEnd, SendError,
};
use std::sync::Arc;

use crate::given::{NONE, Party, bus, bus_with};

fn ask(party: &mut Party, to: NameId, repeatable: bool) -> bus_core::Sequence {
    let draft = Draft { kind: Kind::Request { repeatable }, ..Draft::from("2+2") };
    party.lane.try_send(Destination::Name(to), draft).unwrap().sequence
}

fn taken(party: &mut Party) -> Arc<Message> {
    match party.reader.try_receive() {
        Ok(Delivery::Message { message, .. }) => message,
        other => panic!("{other:?} where a message was expected"),
    }
}

fn outcome(party: &mut Party) -> (bus_core::Sequence, RequestEnd) {
    match party.reader.try_receive() {
        Ok(Delivery::Outcome(outcome)) => (outcome.request, outcome.why),
        other => panic!("{other:?} where an outcome was expected"),
    }
}

fn reply(party: &mut Party, request: &Message) -> Result<bus_core::Receipt, SendError> {
    party.lane.try_send(Destination::Caller(request.sequence()), "4")
}

#[test]
fn the_owner_of_a_name_is_asked_and_answers() {
    let bus = bus(8);
    let (mut owner, mut caller) = (Party::on(&bus), Party::on(&bus));
    let name = owner.owns("a", NONE);
    let request = ask(&mut caller, name, false);
    let asked = taken(&mut owner);
    assert!(asked.is_request());
    reply(&mut owner, &asked).unwrap();
    assert_eq!(taken(&mut caller).answers(), Some(request));
}

#[test]
fn g9_a_request_that_is_not_repeatable_ends_with_who_was_asked() {
    for read in [false, true] {
        let bus = bus(8);
        let [mut one, mut two, mut caller] = [(); 3].map(|()| Party::on(&bus));
        let name = one.owns("a", NameFlags::SHARED);
        two.owns("a", NameFlags::SHARED);
        let request = ask(&mut caller, name, false);
        if read {
            taken(&mut one);
        }
        drop(one);
        assert_eq!(outcome(&mut caller), (request, RequestEnd::Gone), "read: {read}");
        assert_eq!(two.take_all(), Vec::<String>::new());
    }
}

/// Whether the one that died had taken it or not.
#[test]
fn g9_a_repeatable_request_is_given_to_another_worker() {
    for read in [false, true] {
        let bus = bus(8);
        let [mut one, mut two, mut caller] = [(); 3].map(|()| Party::on(&bus));
        let name = one.owns("a", NameFlags::SHARED);
        two.owns("a", NameFlags::SHARED);
        let request = ask(&mut caller, name, true);
        if read {
            taken(&mut one);
        }
        drop(one);
        let again = taken(&mut two);
        assert_eq!(again.repeats(), Some(request), "read: {read}");
        assert!(again.sequence() > request);
        assert_eq!(&**again.payload(), b"2+2");
        reply(&mut two, &again).unwrap();
        assert_eq!(taken(&mut caller).answers(), Some(request), "named as its caller knows it");
        assert_eq!(bus.stats().open_requests, 0);
    }
}

#[test]
fn g5_a_request_that_is_given_again_waits_for_room() {
    let bus = bus(1);
    let [mut one, mut two, mut caller] = [(); 3].map(|()| Party::on(&bus));
    let name = one.owns("a", NameFlags::SHARED);
    two.owns("a", NameFlags::SHARED);
    let request = ask(&mut caller, name, true);
    two.lane.try_send(Destination::Endpoint(two.id()), "fills").unwrap();
    taken(&mut one);
    drop(one);
    assert_eq!(bus.stats().waiting_sends, 1);
    assert_eq!(&**taken(&mut two).payload(), b"fills");
    let again = taken(&mut two);
    assert_eq!(again.repeats(), Some(request));
    assert_eq!(bus.stats().waiting_sends, 0);
    // And when nobody is left, there is an outcome all the same.
    drop(two);
    assert_eq!(outcome(&mut caller), (request, RequestEnd::Gone));
    assert_eq!(bus.stats().open_requests, 0);
}

#[test]
fn g9_a_request_that_waits_to_be_given_again_ends_with_the_last_worker() {
    let bus = bus(1);
    let [mut one, mut two, mut caller] = [(); 3].map(|()| Party::on(&bus));
    let name = one.owns("a", NameFlags::SHARED);
    two.owns("a", NameFlags::SHARED);
    let request = ask(&mut caller, name, true);
    two.lane.try_send(Destination::Endpoint(two.id()), "fills").unwrap();
    taken(&mut one);
    drop(one);
    drop(two);
    assert_eq!(outcome(&mut caller), (request, RequestEnd::Gone));
    assert_eq!((bus.stats().open_requests, bus.stats().waiting_sends), (0, 0));
}

/// What was taken and is long is not kept for another one.
#[test]
fn g8_what_is_kept_to_be_given_again_is_bounded() {
    let bus = bus_with(Limits { reply_bytes: 2, ..Limits::default() });
    let [mut one, mut two, mut caller] = [(); 3].map(|()| Party::on(&bus));
    let name = one.owns("a", NameFlags::SHARED);
    two.owns("a", NameFlags::SHARED);
    let request = ask(&mut caller, name, true);
    taken(&mut one);
    drop(one);
    assert_eq!(outcome(&mut caller), (request, RequestEnd::Gone));
    assert_eq!(two.take_all(), Vec::<String>::new());
}
