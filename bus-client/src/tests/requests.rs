//! Requests against a scripted broker: what comes early, what nobody asked for, what is lost.

use std::thread;

use bus_core::wire::{
    BrokerFrame, Handle, MessageFrame, Notice, OutcomeCode, Request, Role, SendFlags,
};
use bus_core::{Attributes, Destination, EndpointId, Sequence};

use crate::testing::{FakeBroker, PATIENCE, head, pair};
use crate::{CallError, Event, GoneReason, ReceiveError};

const CALLEE: EndpointId = EndpointId::from_raw(8);

fn reply(sequence: u64, request: u64) -> BrokerFrame {
    let request = Sequence::from_raw(request);
    let mut head = head(sequence);
    (head.group, head.role) = (None, Role::Reply { request, refusal: false });
    BrokerFrame::Message(Box::new(MessageFrame {
        head,
        attributes: Attributes::EMPTY,
        payload: b"four".as_slice().into(),
    }))
}

fn request(sequence: u64) -> BrokerFrame {
    let mut head = head(sequence);
    (head.group, head.role) = (None, Role::Request { first: None });
    BrokerFrame::Message(Box::new(MessageFrame {
        head,
        attributes: Attributes::EMPTY,
        payload: b"2+2".as_slice().into(),
    }))
}

fn notice(notice: Notice) -> BrokerFrame {
    BrokerFrame::Notice { endpoint: Handle::FIRST, notice }
}

#[test]
fn an_outcome_that_overtakes_its_receipt_is_kept() {
    let (bus, mut broker) = pair();
    let calling = thread::spawn(move || (bus.call(CALLEE, "2+2"), bus));
    let send = broker.send();
    assert!(send.head.flags.contains(SendFlags::REQUEST));
    assert_eq!(send.head.destination, Destination::Endpoint(CALLEE));
    broker.put(&reply(5, 1));
    broker.receipt(send.head.id);
    let (outcome, _bus) = calling.join().unwrap();
    assert_eq!(outcome.unwrap().text(), Some("four"));
    broker.await_credit(1, 4);
}

#[test]
fn what_nobody_asked_for_ends_the_connection() {
    let (bus, mut broker) = pair();
    for n in 0..=u64::from(bus.limits().requests) {
        broker.put(&reply(n + 1, 1_000 + n));
    }
    match bus.receive() {
        Err(ReceiveError::BrokerGone(gone)) => {
            assert!(matches!(gone.reason(), GoneReason::Protocol(_)), "{gone}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_whose_broker_goes_says_so() {
    let (bus, mut broker) = pair();
    let calling = thread::spawn(move || bus.call(CALLEE, "2+2"));
    let send = broker.send();
    broker.receipt(send.head.id);
    drop(broker);
    assert!(matches!(calling.join().unwrap(), Err(CallError::BrokerGone(_))));
}

#[test]
fn a_call_that_is_dropped_before_its_receipt_is_cancelled_after_it() {
    let (bus, mut broker) = pair();
    let call = bus.start_call(CALLEE, "2+2").unwrap();
    let send = broker.send();
    drop(call);
    assert_eq!(broker.cancel(), send.head.id);
    broker.receipt(send.head.id);
    let dispatching = thread::spawn(move || {
        // Ends with the connection.
        while bus.receive().is_ok() {}
    });
    let (endpoint, serial, asked) = loop {
        match broker.next() {
            bus_core::wire::ClientFrame::Call { endpoint, serial, request } => {
                break (endpoint, serial, request);
            }
            bus_core::wire::ClientFrame::Flush => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(asked, Request::CancelRequest { request: Sequence::from_raw(1) });
    broker.done((endpoint, serial), bus_core::wire::Response::RequestEnded { ended: false });
    // The reply was faster; its place comes back though nobody takes it.
    broker.put(&reply(2, 1));
    broker.await_credit(1, 4);
    drop(broker);
    dispatching.join().unwrap();
}

#[test]
fn a_request_whose_end_comes_first_is_not_handed_out() {
    let (bus, mut broker) = pair();
    broker.put(&request(1));
    let (request_, why) = (Sequence::from_raw(1), OutcomeCode::Cancelled);
    broker.put(&notice(Notice::RequestEnded { request: request_, why }));
    broker.put(&request(2));
    // Read together, so that the end is known when the first is taken.
    let message = match bus.receive_deadline(PATIENCE).unwrap() {
        Some(Event::Message(message)) => message,
        other => panic!("{other:?}"),
    };
    assert!(message.sequence() <= Sequence::from_raw(2));
    drop(message);
    declines_what_it_took(broker, bus);
}

#[test]
fn a_request_of_a_batch_can_be_answered() {
    let (bus, mut broker) = pair();
    broker.put(&request(1));
    let mut events = Vec::new();
    bus.receive_batch(&mut events, 8).unwrap();
    let message = events.pop().and_then(Event::into_message).unwrap();
    let _pending = message.start_reply("four").unwrap();
    let send = broker.send();
    assert!(matches!(send.head.destination, Destination::Caller(_)));
}

/// The second request is declined when it is dropped; the first perhaps too.
fn declines_what_it_took(mut broker: FakeBroker, bus: crate::Bus) {
    while let Ok(Some(Event::Message(message))) = bus.try_receive() {
        drop(message);
    }
    let mut declined = Vec::new();
    while !declined.contains(&Sequence::from_raw(2)) {
        let (_, _, call) = broker.call();
        match call {
            Request::DeclineRequest { request } => declined.push(request),
            other => panic!("{other:?}"),
        }
    }
}
