//! Sends that wait, readers that make room, and wake-ups that must not be lost (G5, G6).

use std::sync::Arc;

use bus_core_modelled::{MemberFlags, SendError};
use loom::thread;

use crate::given::{
    Alarm, assert_one_order, bus, endpoints, explore, explore_many, group, join, lane, queued,
    reader, sent, take_all, taken, texts, to, waits,
};

/// Given a full queue, when a sender finds it full and goes to wait while its reader takes a
/// message, then one of the two sees the other: the send is committed.
#[test]
fn g5_a_place_freed_while_a_send_goes_to_wait_is_not_lost() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob] = endpoints(&bus);
        let (mut alices, to_bob) = (lane(&alice), to(&bob));
        sent(&mut alices, to_bob, "first");
        let sending = thread::spawn(move || alices.send(to_bob, "second").unwrap());
        let mut reading = reader(&bob);
        assert_eq!(taken(reading.try_receive().unwrap()).text, "first");
        let receipt = sending.join().unwrap();
        let rest = take_all(&mut reading);
        assert_eq!((texts(&rest), rest[0].sequence), (vec!["second"], receipt.sequence));
    });
}

/// Given an empty queue, when its reader finds it empty and goes to sleep while a message comes,
/// then the reader takes the message.
#[test]
fn g5_a_message_that_comes_while_its_reader_goes_to_sleep_wakes_it() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob] = endpoints(&bus);
        let (mut alices, to_bob) = (lane(&alice), to(&bob));
        let sending = thread::spawn(move || sent(&mut alices, to_bob, "message"));
        let mut reading = reader(&bob);
        assert_eq!(taken(reading.receive().unwrap()).text, "message");
        sending.join().unwrap();
    });
}

/// Given two full members, when a fan-out send waits for both and a small one for one of them, and
/// each reader takes what comes, then both sends get through, in one order.
#[test]
fn g5_a_fan_out_and_a_small_send_both_get_through() {
    explore_many(|| {
        let bus = bus(1);
        let [alice, bob, carol, dave] = endpoints(&bus);
        let both = group("g", &[&alice, &bob]);
        let to_bob = to(&bob);
        let (mut carols, mut daves) = (lane(&carol), lane(&dave));
        sent(&mut carols, both, "first");
        let wide = thread::spawn(move || carols.send(both, "wide").unwrap());
        let small = thread::spawn(move || daves.send(to_bob, "small").unwrap());
        let (mut at_alice, mut at_bob) = (reader(&alice), reader(&bob));
        let mut alices = vec![taken(at_alice.receive().unwrap())];
        let bobs = [(); 3].map(|()| taken(at_bob.receive().unwrap()));
        wide.join().unwrap();
        small.join().unwrap();
        alices.extend(take_all(&mut at_alice));
        assert_eq!(texts(&alices), ["first", "wide"]);
        assert_one_order(&[&alices, &bobs]);
    });
}

/// Given a send that waits for a full queue, when the queue's reader frees a place and a newcomer
/// comes at the same time, then the place is for who has waited.
#[test]
fn g5_a_newcomer_does_not_pass_a_waiting_send() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob, carol] = endpoints(&bus);
        let (mut alices, mut carols, to_bob) = (lane(&alice), lane(&carol), to(&bob));
        sent(&mut alices, to_bob, "first");
        waits(&mut alices, to_bob, "waited");
        let coming = thread::spawn(move || carols.try_send(to_bob, "newcomer"));
        let mut reading = reader(&bob);
        reading.try_receive().unwrap();
        let newcomer = coming.join().unwrap();
        assert!(matches!(newcomer, Err(SendError::WouldBlock { .. })), "{newcomer:?}");
        assert!(alices.poll_outcome().unwrap().is_ok());
        assert_eq!(texts(&take_all(&mut reading)), ["waited"]);
    });
}

/// Given an older send that waits at queue 2, and a younger one for 1 and 2 that waits at 1, when
/// both queues' readers free a place at the same time, then the place at 2 is for the older one,
/// whichever reader comes first.
#[test]
fn g5_a_waiting_send_does_not_pass_an_older_one_at_another_queue() {
    explore(|| {
        let bus = bus(1);
        let [one, two, three, four] = endpoints(&bus);
        let both = group("g", &[&one, &two]);
        let (mut threes, mut fours) = (lane(&three), lane(&four));
        sent(&mut threes, both, "first");
        waits(&mut threes, to(&two), "older");
        waits(&mut fours, both, "younger");
        let mut at_one = reader(&one);
        let reading = thread::spawn(move || at_one.try_receive().unwrap());
        let mut at_two = reader(&two);
        at_two.try_receive().unwrap();
        reading.join().unwrap();
        assert!(threes.poll_outcome().is_some());
        assert_eq!(fours.poll_outcome(), None);
        assert_eq!(texts(&take_all(&mut at_two)), ["older", "younger"]);
        assert!(fours.poll_outcome().is_some());
    });
}

/// Given two sends that wait for one queue, the younger one just coming, when a place is freed, then
/// it is the older one's.
#[test]
fn g5_places_are_given_in_the_order_of_arrival() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob, carol] = endpoints(&bus);
        let (mut alices, mut carols, to_bob) = (lane(&alice), lane(&carol), to(&bob));
        sent(&mut alices, to_bob, "first");
        waits(&mut alices, to_bob, "older");
        let coming = thread::spawn(move || {
            waits(&mut carols, to_bob, "younger");
            carols
        });
        let mut reading = reader(&bob);
        reading.try_receive().unwrap();
        let mut carols = coming.join().unwrap();
        assert_eq!(carols.poll_outcome(), None);
        assert_eq!(texts(&take_all(&mut reading)), ["older", "younger"]);
        assert!(carols.poll_outcome().is_some());
    });
}

/// Given a place that the first in line cannot use, because another recipient of its is full, when
/// a second one comes in line at that moment, then the place is the second one's.
#[test]
fn g5_a_place_that_is_not_used_passes_on() {
    explore(|| {
        let bus = bus(1);
        let [one, two, three, four] = endpoints(&bus);
        let both = group("g", &[&one, &two]);
        let to_one = to(&one);
        let (mut threes, mut fours) = (lane(&three), lane(&four));
        sent(&mut threes, both, "first");
        waits(&mut threes, both, "wide");
        let small = thread::spawn(move || fours.send(to_one, "small").unwrap());
        let mut at_one = reader(&one);
        at_one.try_receive().unwrap();
        small.join().unwrap();
        assert_eq!(texts(&take_all(&mut at_one)), ["small"]);
        assert_eq!(threes.poll_outcome(), None);
        let mut at_two = reader(&two);
        assert_eq!(texts(&take_all(&mut at_two)), ["first", "wide"]);
    });
}

/// Given two sends that wait for one queue, when its reader frees two places with one release, as a
/// transport does, while a third one goes to wait, then the two are committed, in their order.
#[test]
fn g5_places_that_are_freed_together_are_all_used() {
    explore(|| {
        let bus = bus(2);
        let [alice, bob, carol, dave] = endpoints(&bus);
        let (mut alices, mut carols, mut daves) = (lane(&alice), lane(&carol), lane(&dave));
        let to_bob = to(&bob);
        sent(&mut alices, to_bob, "1");
        sent(&mut alices, to_bob, "2");
        waits(&mut alices, to_bob, "3");
        waits(&mut carols, to_bob, "4");
        let coming = thread::spawn(move || {
            waits(&mut daves, to_bob, "5");
            daves
        });
        let mut reading = reader(&bob);
        reading.drain().unwrap();
        reading.drain().unwrap();
        reading.release(2, 2).unwrap();
        let _daves = coming.join().unwrap();
        assert!(alices.poll_outcome().is_some());
        assert!(carols.poll_outcome().is_some());
        assert_eq!(texts(&take_all(&mut reading)), ["3", "4", "5"]);
    });
}

/// Given a destination that is not writable, when somebody asks to be woken while the reader frees
/// the place, then it is told or woken, and then finds room.
#[test]
fn g6_a_watch_is_woken_when_there_is_room() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob] = endpoints(&bus);
        let (mut alices, to_bob) = (lane(&alice), to(&bob));
        sent(&mut alices, to_bob, "first");
        let watching = thread::spawn(move || {
            let alarm = Arc::new(Alarm::default());
            if let Some(mut watch) = alice.watch_writable(to_bob, alarm.waker()).unwrap() {
                alarm.wait();
                assert_eq!(watch.outcome(), Some(Ok(())));
            }
            sent(&mut alices, to_bob, "second");
        });
        let mut reading = reader(&bob);
        reading.try_receive().unwrap();
        watching.join().unwrap();
        assert_eq!(texts(&take_all(&mut reading)), ["second"]);
    });
}

/// Given a member with `LOOPBACK` whose own queue and another member's are full, when its send waits
/// and the other member reads, then the send ends with `OwnQueueFull`: its sender, which is blocked
/// in it, would be waiting for itself.
#[test]
fn g5_a_send_that_lacks_only_its_own_room_is_told_so() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob] = endpoints(&bus);
        let both = join(&alice, "g", MemberFlags::LOOPBACK);
        join(&bob, "g", MemberFlags::empty());
        let mut alices = lane(&alice);
        sent(&mut alices, both, "first");
        let sending = thread::spawn(move || alices.send(both, "second"));
        let mut at_bob = reader(&bob);
        at_bob.try_receive().unwrap();
        assert_eq!(sending.join().unwrap(), Err(SendError::OwnQueueFull));
        assert_eq!(take_all(&mut at_bob), []);
        assert_eq!(texts(&queued(&alice)), ["first"]);
    });
}
