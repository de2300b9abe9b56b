//! The reader's place: one at a time drains a queue, and hands over all of it.

use std::sync::Arc;
use std::task::Waker;

use loom::thread;

use crate::given::{
    assert_one_order, bus, endpoints, explore, lane, queued, reader, sent, taken, texts, to,
};

/// Given a queue with three messages, when two threads ask for the reader's place and each takes one
/// message if it gets it, then each message is taken once, in order.
#[test]
fn one_reader_at_a_time_and_the_next_goes_on_where_it_stopped() {
    explore(|| {
        let bus = bus(4);
        let [alice, bob] = endpoints(&bus);
        let mut alices = lane(&alice);
        for text in ["1", "2", "3"] {
            sent(&mut alices, to(&bob), text);
        }
        let bob = Arc::new(bob);
        let take_one = |bob: &bus_core_modelled::Endpoint| {
            let mut reading = bob.receiver()?;
            reading.try_receive().ok().map(taken)
        };
        let other = Arc::clone(&bob);
        let reading = thread::spawn(move || take_one(&other));
        let mine = take_one(&bob);
        let others = reading.join().unwrap();
        let mut all: Vec<_> = mine.into_iter().chain(others).collect();
        assert!(!all.is_empty(), "one of them got the place");
        all.sort_by_key(|taken| taken.sequence);
        all.extend(queued(&bob));
        assert_eq!(texts(&all), ["1", "2", "3"]);
        assert_one_order(&[&all]);
    });
}

/// Given an endpoint that has no queue yet, because nobody could send to it, when the first message
/// comes while somebody sits in the reader's place, then the reader gets it.
#[test]
fn a_queue_that_is_made_while_its_reader_waits_is_handed_to_it() {
    explore(|| {
        let bus = bus(4);
        let [alice, bob] = endpoints(&bus);
        let (mut alices, to_bob) = (lane(&alice), to(&bob));
        let mut reading = reader(&bob);
        let sending = thread::spawn(move || sent(&mut alices, to_bob, "first"));
        assert_eq!(taken(reading.receive().unwrap()).text, "first");
        sending.join().unwrap();
    });
}

/// Given a reader that went to sleep and then gave up its place, when the next one goes to sleep while
/// a message comes, then the next one takes the message.
#[test]
fn the_next_reader_is_woken_and_not_the_one_before() {
    explore(|| {
        let bus = bus(4);
        let [alice, bob] = endpoints(&bus);
        let (mut alices, to_bob) = (lane(&alice), to(&bob));
        let mut before = reader(&bob);
        assert!(before.sleep(Waker::noop().clone()));
        drop(before);
        let sending = thread::spawn(move || sent(&mut alices, to_bob, "message"));
        let mut reading = reader(&bob);
        assert_eq!(taken(reading.receive().unwrap()).text, "message");
        sending.join().unwrap();
    });
}

/// Given an endpoint that has no queue yet, when two senders send to it at once, then both find or make
/// the same one, and the reader gets both messages.
#[test]
fn a_queue_that_two_senders_make_at_once_is_one() {
    explore(|| {
        let bus = bus(4);
        let [alice, bob, carol] = endpoints(&bus);
        let (mut alices, mut carols, to_bob) = (lane(&alice), lane(&carol), to(&bob));
        let sending = thread::spawn(move || sent(&mut alices, to_bob, "alice"));
        sent(&mut carols, to_bob, "carol");
        sending.join().unwrap();
        let all = queued(&bob);
        assert_one_order(&[&all]);
        assert_eq!(all.len(), 2);
    });
}
