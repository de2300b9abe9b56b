//! Sends to well-known names against changes of their owners (G4, G5).

use std::sync::Arc;

use bus_core_modelled::{
    Delivery, Destination, Draft, Endpoint, Kind, Limits, NameFlags, NameId, OwnOptions,
    RequestEnd, SendError,
};
use loom::thread;

use crate::given::{
    Alarm, bus, bus_with, endpoints, explore, explore_many, lane, queued, reader, sent, texts,
    waits,
};

fn own(endpoint: &Endpoint, flags: NameFlags) -> bus_core_modelled::Claimed {
    let name = "n".parse().expect("a good name");
    endpoint.own_name(&name, OwnOptions::new(flags)).expect("may claim")
}

fn to(name: NameId) -> Destination {
    Destination::Name(name)
}

/// Given a sender that has loaded the owner and not yet locked, when another endpoint takes the
/// name over in that gap, then the message goes to exactly one of them: to the new owner just if
/// it is later than the change, and the old one is told of its loss after it.
///
/// The clock of the old owner's lock is far ahead of the new one's.
#[test]
fn g4_a_message_goes_to_who_owns_the_name_at_its_place() {
    explore(|| {
        let bus = bus(8);
        let [alice, bob, carol] = endpoints(&bus);
        let name = own(&alice, NameFlags::ALLOW_REPLACEMENT).name;
        let mut carols = lane(&carol);
        sent(&mut carols, to(name), "early");
        let replacing = thread::spawn(move || {
            let claimed = own(&bob, NameFlags::REPLACE_EXISTING);
            (bob, claimed.sequence)
        });
        let receipt = sent(&mut carols, to(name), "message");
        let (bob, changed) = replacing.join().unwrap();
        let (old, new) = (queued(&alice), queued(&bob));
        let late = receipt.sequence > changed;
        assert_eq!(receipt.recipients, 1);
        assert_eq!(texts(&new), if late { vec!["message"] } else { vec![] });
        assert_eq!(old.len(), if late { 2 } else { 3 });
        assert_eq!(old.last().map(|last| last.sequence), Some(changed), "told last of all");
    });
}

/// Given an owner that goes, when a message is sent and another one waits for the name, then the
/// message is in one of their queues, and never in none.
#[test]
fn g4_a_message_is_never_lost_between_two_owners() {
    explore(|| {
        let bus = bus(8);
        let [alice, bob, carol] = endpoints(&bus);
        let name = own(&alice, NameFlags::empty()).name;
        own(&bob, NameFlags::empty());
        let mut carols = lane(&carol);
        let releasing = thread::spawn(move || {
            let released = alice.release_name(name).expect("it had it");
            (queued(&alice), released)
        });
        let receipt = sent(&mut carols, to(name), "message");
        let (old, released) = releasing.join().unwrap();
        let new = queued(&bob);
        assert_eq!(texts(&old).len() + texts(&new).len(), 2, "acquired, and the message once");
        assert_eq!(new[0].sequence, released, "who gets it is told first");
        assert_eq!(new.len() == 2, receipt.sequence > released);
    });
}

/// Given a name whose owner is full, when a send goes to wait while the owner gives the name to one
/// that has room, then the send is committed there, or ends where nobody has the name.
#[test]
fn g5_a_send_that_waits_for_a_name_goes_on_with_its_next_owner() {
    for next in [true, false] {
        explore(move || {
            let bus = bus(1);
            let [alice, bob, carol] = endpoints(&bus);
            let name = own(&alice, NameFlags::empty()).name;
            if next {
                own(&bob, NameFlags::empty());
            }
            let mut carols = lane(&carol);
            sent(&mut carols, to(name), "fills");
            let releasing = thread::spawn(move || {
                alice.release_name(name).expect("it had it");
                alice
            });
            let alarm = Arc::new(Alarm::default());
            let mut outcome = match carols.submit(to(name), "message", alarm.waker()) {
                Ok(bus_core_modelled::Submitted::Waiting) => None,
                Ok(bus_core_modelled::Submitted::Committed(receipt)) => Some(Ok(receipt)),
                Err(error) => Some(Err(error)),
            };
            let alice = releasing.join().unwrap();
            while outcome.is_none() {
                alarm.wait();
                outcome = carols.poll_outcome();
            }
            assert_eq!(texts(&queued(&alice)), ["fills"]);
            if next {
                assert!(outcome.unwrap().is_ok());
                assert_eq!(texts(&queued(&bob)), ["Acquired", "message"]);
            } else {
                assert_eq!(outcome, Some(Err(SendError::NoSuchName(name))));
            }
        });
    }
}

/// Given a send that waits at two full workers, when both make room at the same time, then exactly
/// one is given it.
#[test]
fn g5_a_send_to_a_shared_name_is_given_to_whoever_makes_room() {
    explore_many(|| {
        let bus = bus(1);
        let [alice, bob, carol] = endpoints(&bus);
        let name = own(&alice, NameFlags::SHARED).name;
        own(&bob, NameFlags::SHARED);
        let mut carols = lane(&carol);
        sent(&mut carols, to(name), "fills");
        sent(&mut carols, to(name), "fills");
        waits(&mut carols, to(name), "message");
        let one = |worker: Endpoint| {
            move || {
                reader(&worker).try_receive().expect("it was filled");
                worker
            }
        };
        let reading = thread::spawn(one(bob));
        let alice = one(alice)();
        let bob = reading.join().unwrap();
        let outcome = carols.poll_outcome().expect("decided by who made room");
        assert_eq!(outcome.map(|receipt| receipt.recipients), Ok(1));
        assert_eq!(queued(&alice).len() + queued(&bob).len(), 1);
    });
}

/// Given a send that goes to wait at two full workers, when one of them makes room meanwhile, then
/// it is committed, whichever of them that is.
#[test]
fn g5_a_place_freed_at_any_worker_while_a_send_goes_to_wait_is_not_lost() {
    for second in [false, true] {
        explore(move || {
            let bus = bus(1);
            let [alice, bob, carol] = endpoints(&bus);
            let name = own(&alice, NameFlags::SHARED).name;
            own(&bob, NameFlags::SHARED);
            let mut carols = lane(&carol);
            sent(&mut carols, to(name), "fills");
            sent(&mut carols, to(name), "fills");
            let (frees, full) = if second { (bob, alice) } else { (alice, bob) };
            let reading = thread::spawn(move || {
                reader(&frees).try_receive().expect("it was filled");
                frees
            });
            let alarm = Arc::new(Alarm::default());
            let submitted = carols.submit(to(name), "message", alarm.waker()).expect("it may wait");
            let frees = reading.join().unwrap();
            if submitted == bus_core_modelled::Submitted::Waiting {
                alarm.wait();
                carols.poll_outcome().expect("decided").expect("committed");
            }
            assert_eq!(texts(&queued(&frees)), ["message"]);
            assert_eq!(texts(&queued(&full)), ["fills"]);
        });
    }
}

/// Given a repeatable request whose worker dies, when the only other worker, which is full, dies at
/// the same time, then the caller gets exactly one outcome.
#[test]
fn g9_a_request_given_again_while_the_last_worker_dies_has_one_outcome() {
    explore(|| {
        let limits = Limits { queue_messages: 1, requests: 2, ..Limits::default() };
        let bus = bus_with(limits);
        let [alice, bob, carol] = endpoints(&bus);
        let name = own(&alice, NameFlags::SHARED).name;
        own(&bob, NameFlags::SHARED);
        let mut carols = lane(&carol);
        let kind = Kind::Request { repeatable: true };
        let request = carols.try_send(to(name), Draft { kind, ..Draft::from("request") });
        let request = request.expect("room").sequence;
        sent(&mut carols, Destination::Endpoint(bob.id()), "fills");
        let mut alices = reader(&alice);
        assert!(matches!(alices.try_receive(), Ok(Delivery::Message { .. })));
        let dying = thread::spawn(move || drop(bob));
        drop(alice);
        drop(alices);
        dying.join().unwrap();
        let mut carols = reader(&carol);
        match carols.try_receive() {
            Ok(Delivery::Outcome(outcome)) => {
                assert_eq!((outcome.request, outcome.why), (request, RequestEnd::Gone));
            }
            other => panic!("{other:?} where an outcome was expected"),
        }
        assert!(carols.try_receive().is_err(), "one outcome");
    });
}
