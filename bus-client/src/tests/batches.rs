use bus_core::wire::{
    BrokerFrame, ClientFrame, Entries, GoodbyeCode, Handle, MemoryKind, MessageHead, MessagesFrame,
    Placed, PlacedIn, Serial,
};
use bus_core::{Attributes, Limits};
use bytes::{BufMut, Bytes, BytesMut};

use crate::testing::{FakeBroker, PATIENCE, head, pair, pair_with, receipts};
use crate::{Builder, Bus, Event, Member, Way};

fn messages(texts: &[&'static str]) -> BrokerFrame {
    let each = texts.iter().map(|text| (Attributes::EMPTY, Bytes::from_static(text.as_bytes())));
    let entries = Entries::Here(each.collect());
    let count = u32::try_from(texts.len()).unwrap();
    BrokerFrame::Messages(Box::new(MessagesFrame { head: head(80), count, entries }))
}

/// Messages as they lie among others.
fn entries(texts: &[&str]) -> Bytes {
    let mut entries = BytesMut::new();
    for text in texts {
        entries.put_u32_le(u32::try_from(text.len()).unwrap());
        entries.put_u32_le(0);
        entries.put_slice(text.as_bytes());
    }
    entries.freeze()
}

fn apart(count: u32, length: u64) -> BrokerFrame {
    let within = PlacedIn::Arena { memory: 2 };
    let placed = Placed { hold: 5, within, offset: 0, length };
    let head = MessageHead { apart: true, ..head(80) };
    let entries = Entries::Apart(placed);
    BrokerFrame::Messages(Box::new(MessagesFrame { head, count, entries }))
}

fn received(bus: &Bus) -> (u64, u64, String) {
    match bus.receive_deadline(PATIENCE).unwrap() {
        Some(Event::Message(message)) => {
            let text = message.text().unwrap().to_owned();
            (message.sequence().get(), message.sender_serial(), text)
        }
        other => panic!("{other:?} where a message was expected"),
    }
}

fn joined(bus: &Bus, broker: &mut FakeBroker) -> Member {
    let joining = bus.clone();
    let joining = std::thread::spawn(move || joining.join("g").unwrap());
    broker.join();
    joining.join().unwrap()
}

fn small_queue(messages: u32) -> Limits {
    Limits { queue_messages: messages, ..Limits::default() }
}

#[test]
fn messages_of_one_frame_are_received_one_by_one_and_each_is_credited() {
    let (bus, mut broker) = pair();
    broker.put(&messages(&["one", "three", "two"]));
    assert_eq!(received(&bus), (80, 80, "one".to_owned()));
    assert_eq!(received(&bus), (88, 81, "three".to_owned()));
    broker.message(b"after");
    assert_eq!(received(&bus), (96, 82, "two".to_owned()));
    assert_eq!(received(&bus).2, "after");
    assert!(bus.try_receive().unwrap().is_none());
    broker.await_credit(4, 3 + 5 + 3 + 5);
}

#[test]
fn a_batch_of_events_ends_in_the_middle_of_a_frame() {
    let (bus, mut broker) = pair();
    let _member = joined(&bus, &mut broker);
    broker.put(&messages(&["1", "2", "3", "4", "5"]));
    broker.message(b"6");
    let mut events = Vec::new();
    let mut texts = Vec::new();
    while texts.len() < 6 {
        bus.receive_batch(&mut events, 2).unwrap();
        assert!(events.len() <= 2);
        let each = events.drain(..).map(|event| event.into_message().unwrap());
        texts.extend(each.map(|message| {
            assert_eq!(message.group(), Some("g"));
            message.text().unwrap().to_owned()
        }));
    }
    assert_eq!(texts, ["1", "2", "3", "4", "5", "6"]);
}

#[test]
fn g8_a_batch_beyond_the_credit_ends_the_connection() {
    let (bus, mut broker) = pair_with(small_queue(3), Builder::new());
    broker.put(&messages(&["1", "2", "3"]));
    assert_eq!(received(&bus).2, "1");
    broker.await_credit(1, 1);
    broker.put(&messages(&["4", "5"]));
    let _ = bus.dispatch();
    assert_eq!(broker.farewell().code, GoodbyeCode::Protocol);
}

#[test]
fn what_came_in_a_batch_is_there_when_the_broker_is_lost() {
    let (bus, mut broker) = pair();
    broker.put(&messages(&["1", "2", "3"]));
    assert_eq!(received(&bus).2, "1");
    drop(broker);
    assert_eq!(received(&bus).2, "2");
    assert_eq!(received(&bus).2, "3");
    assert!(bus.receive_deadline(PATIENCE).is_err());
}

/// Given memory that the broker could not bring, when messages lie there, then the client asks for them,
/// nothing overtakes them, and they come.
#[test]
fn messages_that_lie_where_the_client_cannot_look_are_fetched() {
    let (bus, mut broker) = pair();
    let bytes = entries(&["one", "two"]);
    broker.put(&BrokerFrame::Memory {
        id: 2,
        kind: MemoryKind::Arena,
        length: 4096,
        descriptors: 0,
    });
    broker.put(&apart(2, bytes.len() as u64));
    broker.message(b"after");
    assert!(bus.try_receive().unwrap().is_none(), "they come first");
    assert_eq!(broker.next(), ClientFrame::Fetch { hold: 5 });
    broker.put(&BrokerFrame::Moved { hold: 5, payload: bytes });
    let Some(Event::Message(message)) = bus.receive_deadline(PATIENCE).unwrap() else {
        panic!("no message");
    };
    assert_eq!((message.text(), message.way()), (Some("one"), Way::Inline));
    assert_eq!(message.view().len(), 3);
    assert_eq!(received(&bus).2, "two");
    assert_eq!(received(&bus).2, "after");
    drop(message);
    let _ = bus.try_receive().unwrap();
    assert_eq!(broker.next(), ClientFrame::Release(vec![5]));
    broker.await_credit(3, 3 + 3 + 5);
}

#[test]
fn messages_apart_that_are_not_what_was_announced_end_the_connection() {
    for (count, bytes) in [(3, entries(&["one", "two"])), (2, Bytes::from_static(&[0xff; 22]))] {
        let (bus, mut broker) = pair();
        broker.put(&BrokerFrame::Memory {
            id: 2,
            kind: MemoryKind::Arena,
            length: 4096,
            descriptors: 0,
        });
        broker.put(&apart(count, bytes.len() as u64));
        assert!(bus.try_receive().unwrap().is_none());
        assert_eq!(broker.next(), ClientFrame::Fetch { hold: 5 });
        broker.put(&BrokerFrame::Moved { hold: 5, payload: bytes });
        let _ = bus.dispatch();
        assert_eq!(broker.farewell().code, GoodbyeCode::Protocol);
        assert!(bus.receive_deadline(PATIENCE).is_err(), "and none of them comes");
    }
}

#[test]
fn messages_that_were_never_found_are_given_up_with_the_broker() {
    let (bus, mut broker) = pair();
    broker.message(b"before");
    broker.put(&BrokerFrame::Memory {
        id: 2,
        kind: MemoryKind::Arena,
        length: 4096,
        descriptors: 0,
    });
    broker.put(&apart(2, 22));
    broker.message(b"after");
    assert_eq!(received(&bus).2, "before");
    assert!(bus.try_receive().unwrap().is_none());
    drop(broker);
    assert_eq!(received(&bus).2, "after");
    assert!(bus.receive_deadline(PATIENCE).is_err());
}

#[test]
fn receipts_of_one_frame_answer_each_send() {
    let (bus, mut broker) = pair();
    let group = joined(&bus, &mut broker);
    let sends: Vec<_> = (0..3).map(|_| group.start_send("hello").unwrap()).collect();
    let serials: Vec<_> = (0..3).map(|_| broker.send().head.id.serial).collect();
    broker.put(&receipts(Handle::FIRST, &serials, 800));
    let answers: Vec<_> = sends.into_iter().map(|send| send.wait().unwrap()).collect();
    assert!(answers.iter().map(|receipt| receipt.sequence.get()).eq([800, 808, 816]));
    assert!(answers.iter().map(|receipt| receipt.sender_serial).eq([7, 8, 9]));
}

#[test]
fn receipts_for_a_send_that_was_not_made_end_the_connection() {
    let (bus, mut broker) = pair();
    broker.put(&receipts(Handle::FIRST, &[Serial::FIRST], 800));
    let _ = bus.dispatch();
    assert_eq!(broker.farewell().code, GoodbyeCode::Protocol);
}
