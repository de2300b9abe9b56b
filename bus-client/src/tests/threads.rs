use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bus_core::wire::{ClientFrame, Request, Response};

use crate::Event;
use crate::testing::{GROUP, PATIENCE, pair};

#[test]
fn many_callers_each_get_their_own_answer() {
    let (bus, mut broker) = pair();
    let callers: Vec<_> = (0..8)
        .map(|number| {
            let bus = bus.clone();
            thread::spawn(move || {
                (0..50).all(|_| {
                    let name = format!("g{number}");
                    let info = bus.find_group(&name).unwrap().unwrap();
                    info.name.as_str() == name
                })
            })
        })
        .collect();
    let answering = thread::spawn(move || {
        let mut held = None;
        for _ in 0..8 * 50 {
            let (handle, serial, request) = broker.call();
            let Request::FindGroup { group } = request else {
                panic!("{request:?}");
            };
            let info = bus_core::wire::GroupInfo {
                name: group,
                group_id: GROUP,
                members: 0,
                creator: None,
                retain: None,
                gated: false,
            };
            let answer = ((handle, serial), Response::Group(info));
            // Two by two in the wrong order, as long as there can be two.
            match held.take() {
                Some((id, response)) => {
                    broker.done(answer.0, answer.1);
                    broker.done(id, response);
                }
                None if broker.is_quiet() => broker.done(answer.0, answer.1),
                None => held = Some(answer),
            }
        }
        if let Some((id, response)) = held {
            broker.done(id, response);
        }
    });
    for caller in callers {
        assert!(caller.join().unwrap());
    }
    answering.join().unwrap();
}

#[test]
fn many_senders_and_receivers_share_one_connection() {
    const SENDERS: usize = 6;
    const EACH: usize = 200;
    let (bus, mut broker) = pair();
    let group = bus.group("g").unwrap();
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let group = group.clone();
            thread::spawn(move || {
                let mut before = 0;
                for _ in 0..EACH {
                    let sequence = group.send("x").unwrap().sequence.get();
                    assert!(before < sequence);
                    before = sequence;
                }
            })
        })
        .collect();
    let (received, counts) = mpsc::channel();
    for _ in 0..3 {
        let (bus, received) = (bus.clone(), received.clone());
        thread::spawn(move || {
            let count = bus.events().filter(|event| matches!(event, Ok(Event::Message(_)))).count();
            received.send(count).unwrap();
        });
    }
    broker.found(GROUP);
    for number in 0..SENDERS * EACH {
        let send = broker.send();
        if number % 3 == 0 {
            broker.message(b"m");
        }
        broker.receipt(send.head.id);
    }
    for sender in senders {
        sender.join().unwrap();
    }
    drop(broker);
    let total: usize = (0..3).map(|_| counts.recv_timeout(PATIENCE).unwrap()).sum();
    assert_eq!(total, SENDERS * EACH / 3);
}

#[test]
fn whoever_has_what_it_wants_hands_the_socket_on() {
    let (bus, mut broker) = pair();
    let receiving = thread::spawn({
        let bus = bus.clone();
        move || bus.receive().unwrap().into_message().unwrap()
    });
    let pinging = thread::spawn({
        let bus = bus.clone();
        move || bus.ping()
    });
    let (handle, serial, _) = broker.call();
    broker.done((handle, serial), Response::Pong);
    pinging.join().unwrap().unwrap();
    broker.message(b"later");
    assert_eq!(receiving.join().unwrap().payload(), b"later");
    // And once more with the receiver alone.
    broker.message(b"again");
    assert!(bus.receive().is_ok());
}

#[test]
fn a_follower_keeps_its_own_deadline() {
    let (bus, mut broker) = pair();
    let leading = thread::spawn({
        let bus = bus.clone();
        move || bus.receive()
    });
    let event = bus.receive_deadline(Duration::from_millis(5)).unwrap();
    assert!(event.is_none());
    broker.message(b"x");
    assert!(leading.join().unwrap().is_ok());
}

#[test]
fn output_that_was_stuck_goes_on_while_others_wait() {
    let (bus, mut broker) = pair();
    let group = bus.group("g").unwrap();
    let waiting = thread::spawn({
        let bus = bus.clone();
        move || bus.receive()
    });
    let looking_up = thread::spawn({
        let group = group.clone();
        move || group.start_send(vec![1; 700_000]).map(|_| ())
    });
    broker.found(GROUP);
    looking_up.join().unwrap().unwrap();
    // More than a socket holds, so the thread that waits has to write the rest.
    assert_eq!(broker.send().payload.len(), 700_000);
    drop(broker);
    assert!(waiting.join().unwrap().is_err());
}

#[test]
fn a_thread_that_cancels_lets_another_leave() {
    let limits = bus_core::Limits { lane_messages: 1, ..bus_core::Limits::default() };
    let (bus, mut broker) = crate::testing::pair_with(limits, crate::Builder::new());
    let group = bus.group("g").unwrap();
    let first = {
        let starting = thread::spawn({
            let group = group.clone();
            move || group.start_send("first")
        });
        broker.found(GROUP);
        starting.join().unwrap().unwrap()
    };
    let sent = broker.send();
    let starting = thread::spawn({
        let group = group.clone();
        move || group.start_send("second").map(|_| ())
    });
    while bus.inner.connection.lock().queued_sends() == 0 {
        thread::yield_now();
    }
    first.cancel();
    assert!(matches!(broker.next(), ClientFrame::Cancel(_)));
    broker.refuse(sent.head.id, bus_core::wire::FailureCode::Cancelled);
    starting.join().unwrap().unwrap();
    assert_eq!(broker.send().payload, &b"second"[..]);
}

/// Given two workers that receive and reply,
/// when one that received last waits for its reply and the other waits to receive,
/// then nobody is told to read.
#[test]
fn g5_a_worker_waits_for_its_reply_while_another_waits_to_receive() {
    let limits = bus_core::Limits { queue_messages: 1, ..bus_core::Limits::default() };
    let builder = crate::Builder::new().backlog(0, 0);
    let (bus, mut broker) = crate::testing::pair_with(limits, builder);
    let other = thread::spawn({
        let bus = bus.clone();
        move || bus.receive().unwrap().into_message().unwrap()
    });
    broker.message(b"1");
    // Whoever gets the first, both have received before the reply waits.
    assert_eq!(other.join().unwrap().payload(), b"1");
    broker.await_credit(1, 1);
    let worker = thread::spawn({
        let bus = bus.clone();
        move || {
            let request = bus.receive().unwrap().into_message().unwrap();
            bus.endpoint(request.sender()).send("reply")
        }
    });
    broker.message(b"2");
    let reply = broker.send();
    broker.await_credit(2, 2);
    let waiting = thread::spawn({
        let bus = bus.clone();
        move || bus.receive().unwrap().into_message().unwrap()
    });
    while !bus.inner.connection.lock().is_read(0) {
        thread::yield_now();
    }
    broker.message(b"3");
    assert_eq!(waiting.join().unwrap().payload(), b"3");
    broker.receipt(reply.head.id);
    assert!(worker.join().unwrap().is_ok());
}
