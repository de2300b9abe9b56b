//! The reader of a queue: one at a time, woken when asleep, and never believed about credit.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::thread;

use bus_core::{CreditError, Delivery, ReceiveError};

use crate::given::{Party, Wakes, bus, full, now, soon};

#[test]
fn an_endpoint_has_one_reader_at_a_time_and_the_next_goes_on_where_it_stopped() {
    let bus = bus(4);
    let mut sender = Party::on(&bus);
    let party = Party::on(&bus);
    assert!(party.endpoint.receiver().is_none(), "the seat is taken");
    for text in ["1", "2", "3"] {
        sender.send(party.id(), text);
    }
    let mut first = party.reader;
    assert!(first.try_receive().is_ok());
    // Drained, and its place is still taken.
    assert!(first.drain().is_some());
    drop(first);
    let mut second = party.endpoint.receiver().expect("the seat is free");
    let Some(Delivery::Message { message, .. }) = second.drain() else { panic!() };
    assert_eq!(crate::given::text(&message), "3");
    assert!(second.release(2, 2).is_ok(), "what the first one drained too");
    assert!(second.release(1, 0).is_err());
}

#[test]
fn a_seat_taken_before_the_first_message_gets_it() {
    let bus = bus(4);
    let (mut sender, mut party) = (Party::on(&bus), Party::on(&bus));
    assert_eq!(party.reader.try_receive().unwrap_err(), ReceiveError::Empty);
    sender.send(party.id(), "first");
    assert_eq!(party.take(), "first");
}

#[test]
fn credit_beyond_what_is_out_frees_nothing() {
    let bus = bus(2);
    let (mut sender, mut party) = (Party::on(&bus), Party::on(&bus));
    sender.send(party.id(), "12345");
    sender.send(party.id(), "678");
    assert!(party.reader.release(1, 0).is_err(), "nothing is drained");
    assert!(party.reader.drain().is_some());
    for (messages, bytes) in [(2, 5), (1, 6), (u64::MAX, 0), (0, u64::MAX)] {
        let refused: CreditError = party.reader.release(messages, bytes).unwrap_err();
        assert_eq!((refused.messages, refused.bytes), (messages, bytes), "what was asked");
        assert_eq!((refused.held_messages, refused.held_bytes), (1, 5));
    }
    full(sender.try_send(party.id(), "x"));
    party.reader.release(1, 5).unwrap();
    assert!(sender.try_send(party.id(), "x").is_ok());
}

#[test]
fn credit_may_come_back_in_parts() {
    let bus = bus(1);
    let (mut sender, mut party) = (Party::on(&bus), Party::on(&bus));
    sender.send(party.id(), "12345");
    assert!(party.reader.drain().is_some());
    party.reader.release(0, 2).unwrap();
    party.reader.release(0, 3).unwrap();
    full(sender.try_send(party.id(), "x"));
    party.reader.release(1, 0).unwrap();
    assert!(sender.try_send(party.id(), "x").is_ok());
}

#[test]
fn a_reader_that_is_awake_is_not_woken_and_one_that_sleeps_is_woken_once() {
    let bus = bus(4);
    let (mut sender, mut party) = (Party::on(&bus), Party::on(&bus));
    let wakes = Wakes::new();
    assert!(party.reader.sleep(wakes.waker()));
    sender.send(party.id(), "1");
    sender.send(party.id(), "2");
    assert_eq!(wakes.count(), 1);
    assert!(!party.reader.sleep(wakes.waker()), "there is something");
    sender.send(party.id(), "3");
    assert_eq!(wakes.count(), 1);
    assert_eq!(party.take_all(), ["1", "2", "3"]);
}

#[test]
fn a_blocked_reader_gets_what_comes_and_the_end() {
    let bus = bus(4);
    let mut sender = Party::on(&bus);
    let Party { endpoint, mut reader, .. } = Party::on(&bus);
    let id = endpoint.id();
    thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut texts = Vec::new();
            loop {
                match reader.receive() {
                    Ok(Delivery::Message { message, .. }) => {
                        texts.push(crate::given::text(&message));
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(error) => return (texts, error),
                }
            }
        });
        for i in 0..100 {
            let text = i.to_string();
            sender.lane.send_deadline(bus_core::Destination::Endpoint(id), text, soon()).unwrap();
        }
        drop(endpoint);
        let (texts, error) = reading.join().unwrap();
        assert_eq!(texts, (0..100).map(|i| i.to_string()).collect::<Vec<_>>());
        assert_eq!(error, ReceiveError::Ended);
    });
}

#[test]
fn a_deadline_ends_the_waiting_for_a_message() {
    let bus = bus(4);
    let mut party = Party::on(&bus);
    let past = now();
    assert_eq!(party.reader.receive_deadline(past).unwrap_err(), ReceiveError::Empty);
}

#[test]
fn a_task_waits_for_a_message_without_a_thread() {
    let bus = bus(4);
    let (mut sender, mut party) = (Party::on(&bus), Party::on(&bus));
    let wakes = Wakes::new();
    let waker = wakes.waker();
    let mut context = Context::from_waker(&waker);
    let id = party.id();
    let mut receive = pin!(poll_fn(|context| party.reader.poll_receive(context)));
    assert!(receive.as_mut().poll(&mut context).is_pending());
    sender.send(id, "x");
    assert_eq!(wakes.count(), 1);
    assert!(matches!(
        receive.as_mut().poll(&mut context),
        Poll::Ready(Ok(Delivery::Message { .. }))
    ));
}
