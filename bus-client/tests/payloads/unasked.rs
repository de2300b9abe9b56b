//! Large payloads that nobody has asked to be treated as such, against a real broker in this process:
//! written once, read in place by all who may, by either transport.

use bus_client::{Bus, EmbeddedBroker, Limits, Message, Outgoing, Transport, Way};

use super::{broker, message, pattern};

/// A payload that is large, and one that is not.
const LARGE: usize = 256 << 10;
const SMALL: usize = 100;

/// Queues that hold many large payloads.
fn deep() -> Limits {
    Limits { queue_bytes: 256 << 20, ..Limits::default() }
}

fn bus(broker: &EmbeddedBroker, transport: Transport) -> Bus {
    Bus::builder().address(broker.address()).transport(transport).connect().unwrap()
}

#[test]
fn g2_a_large_payload_is_written_once_and_read_in_place_among_small_ones_in_one_order() {
    let (broker, _dir) = broker(deep());
    let ways = [Transport::Ring, Transport::Socket, Transport::Auto];
    let readers = ways.map(|way| bus(&broker, way));
    let _members: Vec<_> = readers.iter().map(|reader| reader.join("frames").unwrap()).collect();
    let senders = ways.map(|way| bus(&broker, way));
    for number in 0..60 {
        let length = if number % 3 == 0 { LARGE + number } else { SMALL };
        let group = senders[number % 3].group("frames").unwrap();
        let _ = group.send(pattern(number, length)).unwrap();
    }
    for number in 0..60 {
        for reader in &readers {
            let message = message(reader);
            let way = if number % 3 == 0 { Way::Arena } else { Way::Inline };
            assert_eq!(message.way(), way, "{number}");
            assert_eq!(message.payload(), pattern(number, message.payload().len()), "{number}");
        }
    }
}

#[test]
fn a_receiver_holds_what_it_was_given_and_goes_on_up_to_its_budget_and_beyond_it_gets_copies() {
    let (broker, _dir) = broker(deep());
    let [holder, other, sender] = [Transport::Ring; 3].map(|way| bus(&broker, way));
    let _members = [&holder, &other].map(|bus| bus.join("held").unwrap());
    let group = sender.group("held").unwrap();
    let length = 4 << 20;
    let mut held = Vec::new();
    for number in 0..24_u8 {
        let _ = group.send(Outgoing::bytes(vec![number; length])).unwrap();
        held.push(message(&holder));
        // Who lets go reads on in place all the while.
        assert_eq!(message(&other).way(), Way::Arena, "{number}");
    }
    let ways: Vec<Way> = held.iter().map(Message::way).collect();
    let in_place = ways.iter().take_while(|way| **way == Way::Arena).count();
    assert_eq!(in_place, 16, "64 MiB");
    assert!(ways[in_place..].iter().all(|way| *way == Way::Inline), "{ways:?}");
    // In any order, and all of them are what they were.
    for number in (0..24).rev().step_by(2).chain((0..24).step_by(2)) {
        let expected = vec![u8::try_from(number).unwrap(); length];
        assert!(held[number].payload() == expected, "{number}");
    }
    drop(held);
    holder.ping().unwrap();
    let _ = group.send(Outgoing::bytes(vec![99; length])).unwrap();
    assert_eq!(message(&holder).way(), Way::Arena, "there is room again");
}
