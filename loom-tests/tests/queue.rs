//! The ring behind a queue: one producer, one reader, and no lock between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bus_core_modelled::modelled::ring;
use bytes::Bytes;
use loom::thread;

use crate::given::{bus, endpoints, explore, lane, reader, taken, texts, to};

/// Given a ring of two places, when a producer pushes three entries while the reader pops, then
/// each slot is handed over finished, also when it is used again, and the order is kept.
#[test]
fn ring_hands_over_finished_slots_across_its_wrap() {
    explore(|| {
        let (mut producer, mut consumer) = ring(2);
        let pushing = thread::spawn(move || {
            for text in ["1", "2", "3"] {
                while !producer.push(text) {
                    thread::yield_now();
                }
            }
        });
        for text in ["1", "2", "3"] {
            let payload = loop {
                match consumer.pop() {
                    Some(payload) => break payload,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(&*payload, text.as_bytes());
        }
        pushing.join().unwrap();
        assert_eq!(consumer.pop(), None);
    });
}

/// Given a ring with an entry in it, when one end pops that and is dropped while the other end pushes
/// another and is dropped, then each entry is dropped once: the popped one by its taker, the other
/// one by whoever is last.
#[test]
fn ring_drops_what_is_left_once() {
    struct Counted(Arc<AtomicUsize>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            b"counted"
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    explore(|| {
        let dropped = Arc::new(AtomicUsize::new(0));
        let counted = || Bytes::from_owner(Counted(Arc::clone(&dropped)));
        let (mut producer, mut consumer) = ring(2);
        assert!(producer.push(counted()));
        let last = counted();
        let pushing = thread::spawn(move || assert!(producer.push(last)));
        drop(consumer.pop().unwrap());
        drop(consumer);
        pushing.join().unwrap();
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
    });
}

/// Given a queue of one place, when a sender sends three messages, each once there is room, and a
/// reader takes them as they come, then it takes all three in order: the ring wraps and nobody
/// sleeps beside what it waits for.
#[test]
fn queue_of_one_place_wraps_between_a_sender_and_a_reader_that_wait() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob] = endpoints(&bus);
        let (mut sending, bob_place) = (lane(&alice), to(&bob));
        let sender = thread::spawn(move || {
            for text in ["1", "2", "3"] {
                sending.send(bob_place, text).unwrap();
            }
        });
        let mut reading = reader(&bob);
        let all: Vec<_> = (0..3).map(|_| taken(reading.receive().unwrap())).collect();
        assert_eq!(texts(&all), ["1", "2", "3"]);
        sender.join().unwrap();
    });
}
