//! Threads that sleep in the read itself.

use std::sync::{Arc, mpsc};
use std::thread;

use bus_core::wire::Response;

use crate::long_read::LongRead;
use crate::state::Interest;
use crate::testing::{FIRST, PATIENCE, pair};
use crate::waits::{WaiterId, Wake};
use crate::{Bus, SendError};

/// A thread that leads, and sleeps in a read.
fn falls_asleep(bus: &Bus) -> (WaiterId, LongRead) {
    let mut state = bus.inner.connection.lock();
    let id = state.waits().enter();
    assert!(state.waits().lead(id));
    (id, state.begin_long_read(true).expect("there is nothing else to wait for"))
}

/// It has slept. Whether that has brought something.
fn wakes_up(bus: &Bus, (id, read): (WaiterId, LongRead)) -> bool {
    let mut state = bus.inner.connection.lock();
    let transport = Arc::clone(state.transport());
    state.waits().woke(&transport);
    state.waits().exit(id);
    state.end_long_read(read)
}

fn sleeps_in_reads(bus: &Bus) -> bool {
    let mut state = bus.inner.connection.lock();
    let read = state.begin_long_read(true);
    read.map(|read| state.end_long_read(read)).is_some()
}

#[test]
fn g2_nobody_reads_beside_a_sleeper_so_what_he_has_read_comes_first() {
    let (bus, mut broker) = pair();
    let (id, mut read) = falls_asleep(&bus);
    broker.message(b"one");
    read.sleep();
    broker.message(b"two");
    assert!(bus.try_receive().unwrap().is_none(), "the sleeper has it");
    assert!(wakes_up(&bus, (id, read)));
    for payload in [b"one", b"two"] {
        let message = bus.receive_deadline(PATIENCE).unwrap().unwrap().into_message().unwrap();
        assert_eq!(message.payload(), payload);
    }
    assert!(!sleeps_in_reads(&bus), "somebody else wanted to read");
}

#[test]
fn who_was_rung_for_while_he_slept_in_a_read_polls_from_then_on() {
    let (bus, _broker) = pair();
    assert!(sleeps_in_reads(&bus));
    let asleep = falls_asleep(&bus);
    {
        let mut state = bus.inner.connection.lock();
        let transport = Arc::clone(state.transport());
        state.waits().wake_leader(&transport);
    }
    assert!(!wakes_up(&bus, asleep));
    assert!(!sleeps_in_reads(&bus));
}

#[test]
fn g6_a_leader_that_sleeps_again_is_rung_for_by_who_takes_in_what_it_waits_for() {
    let (bus, mut broker) = pair();
    let id = {
        let mut state = bus.inner.connection.lock();
        let transport = Arc::clone(state.transport());
        let id = state.waits().enter();
        assert!(state.waits().lead(id));
        state.waits().woke(&transport);
        assert!(state.waits().lead(id), "it found nothing, and sleeps again");
        state.set_wake(Interest::Inbox(0), Wake::Thread(id));
        id
    };
    broker.message(b"x");
    while bus.inner.connection.lock().arrivals() == 0 {
        bus.dispatch().unwrap();
    }
    let mut state = bus.inner.connection.lock();
    assert!(state.waits().is_rung());
    let transport = Arc::clone(state.transport());
    state.waits().woke(&transport);
    state.waits().exit(id);
}

/// Given a thread that sleeps in a read and one that has come since and follows,
/// when the first has what it waits for and leaves,
/// then the other one reads.
#[test]
fn who_leaves_after_a_sleep_without_others_hands_on_to_who_has_come_since() {
    let (bus, mut broker) = pair();
    // A connection that has been quiet for a while, and has written nothing since.
    (0..64).for_each(|_| bus.inner.connection.lock().begin_poll());
    let receiving = thread::spawn({
        let bus = bus.clone();
        move || bus.receive().unwrap()
    });
    while !bus.inner.connection.lock().waits().is_led() {
        thread::yield_now();
    }
    let (answered, answer) = mpsc::channel();
    thread::spawn({
        let bus = bus.clone();
        move || answered.send(bus.ping().is_ok()).unwrap()
    });
    let (handle, serial, _) = broker.call();
    while !bus.inner.connection.lock().waits().is_followed() {
        thread::yield_now();
    }
    broker.message(b"x");
    receiving.join().unwrap();
    broker.done((handle, serial), Response::Pong);
    assert!(answer.recv_timeout(PATIENCE).expect("it sleeps beside its answer"));
}

#[test]
fn who_has_written_polls_once() {
    let (bus, mut broker) = pair();
    let _send = bus.endpoint(FIRST).start_send("x").unwrap();
    assert!(!sleeps_in_reads(&bus), "it would be woken when this is read");
    assert!(!sleeps_in_reads(&bus), "and has not slept since");
    bus.inner.connection.lock().begin_poll();
    assert!(sleeps_in_reads(&bus));
    assert_eq!(broker.send().payload, &b"x"[..]);
}

#[test]
fn a_read_in_which_nothing_comes_ends_and_is_not_tried_again_at_once() {
    let (bus, _broker) = pair();
    let (id, mut read) = falls_asleep(&bus);
    read.sleep();
    assert!(!wakes_up(&bus, (id, read)));
    let mut state = bus.inner.connection.lock();
    assert!(state.begin_long_read(false).is_none(), "it would wake up for nothing again");
    assert!(state.begin_long_read(true).is_some(), "unless it has to in any case");
}

#[test]
fn g9_what_a_sleeper_has_read_is_there_though_another_thread_finds_the_broker_gone() {
    let (bus, mut broker) = pair();
    let (id, mut read) = falls_asleep(&bus);
    broker.message(b"last");
    drop(broker);
    let send = bus.endpoint(FIRST).start_send("nobody is there").unwrap();
    read.sleep();
    assert!(wakes_up(&bus, (id, read)));
    let last = bus.receive().unwrap().into_message().unwrap();
    assert_eq!(last.payload(), b"last");
    assert!(bus.receive().is_err());
    assert!(matches!(send.wait(), Err(SendError::Unknown(_))));
}

/// Given threads that receive and others that only look,
/// when messages come one by one,
/// then each has been taken in once, and nobody sleeps beside one.
#[test]
fn g6_threads_that_sleep_and_threads_that_look_share_a_connection() {
    // Fewer than the queue holds.
    const MESSAGES: usize = 200;
    let (bus, mut broker) = pair();
    let sleeping = thread::spawn({
        let bus = bus.clone();
        move || bus.events().map_while(Result::ok).count()
    });
    let looking = thread::spawn({
        let bus = bus.clone();
        move || {
            let mut count = 0;
            while let Ok(event) = bus.try_receive() {
                count += usize::from(event.is_some());
            }
            count
        }
    });
    for number in 0..MESSAGES {
        broker.message(&number.to_le_bytes());
        thread::yield_now();
    }
    drop(broker);
    assert_eq!(sleeping.join().unwrap() + looking.join().unwrap(), MESSAGES);
}
