//! The broker library over real sockets, spoken to by a client that is nothing but the codec.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use bus_broker::{Broker, BrokerHandle, Config, ConnectError, Listen, RunError};
use bus_core::wire::{
    BATCHES_FEATURE, BrokerFrame, ClientFrame, FailureCode, Goodbye, GoodbyeCode, Handle, Hello,
    LaneNumber, MAGIC, MessageFrame, Notice, Request, Response, SendFlags, SendId, Serial,
};
use bus_core::{Attributes, Destination, EndpointId, GroupId, Limits, MemberFlags};
use bytes::BytesMut;
use raw_client::{RawClient, id, name, send_frame};

mod program;
mod raw_client;

/// A broker in this process.
struct Fixture {
    handle: BrokerHandle,
    running: Option<JoinHandle<Result<(), RunError>>>,
}

impl Fixture {
    fn new() -> Self {
        Self::with(Limits::default(), 2)
    }

    fn with(limits: Limits, threads: usize) -> Self {
        let mut config = Config::default();
        config.limits = limits;
        config.threads = threads.try_into().ok();
        Self::of(config)
    }

    fn of(mut config: Config) -> Self {
        config.listen = Listen::Nowhere;
        let broker = Broker::bind(&config).unwrap();
        Self { handle: broker.handle(), running: Some(std::thread::spawn(|| broker.run())) }
    }

    fn stream(&self) -> UnixStream {
        self.handle.connect().unwrap().into()
    }

    fn client(&self) -> RawClient {
        RawClient::greeted(self.stream())
    }

    fn end(&mut self) {
        self.handle.shutdown();
        if let Some(running) = self.running.take() {
            running.join().expect("no panic").expect("a good end");
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

fn small_queue(messages: u32) -> Limits {
    Limits { queue_messages: messages, ..Limits::default() }
}

/// A member whose queue of `capacity` is full, a sender, and the group.
fn full_member(fixture: &Fixture, capacity: u32) -> (RawClient, RawClient, Destination) {
    let (mut member, mut sender) = (fixture.client(), fixture.client());
    let group = Destination::Group(member.join("full"));
    for _ in 0..capacity {
        let serial = sender.post(group, b"fills");
        sender.outcome(serial).unwrap();
    }
    for _ in 0..capacity {
        member.message();
    }
    (member, sender, group)
}

#[test]
fn the_greeting_tells_limits_and_endpoint() {
    let fixture = Fixture::with(small_queue(7), 1);
    let (first, second) = (fixture.client(), fixture.client());
    let (first, second) = (first.welcome.unwrap(), second.welcome.unwrap());
    assert_eq!(first.version, 1);
    assert_eq!(first.limits.queue_messages, 7);
    assert_eq!(first.incarnation, second.incarnation);
    assert_ne!(first.endpoint, second.endpoint);
}

#[test]
fn g2_two_members_hear_four_senders_in_one_order() {
    let fixture = Fixture::new();
    let (mut one, mut two) = (fixture.client(), fixture.client());
    let group = Destination::Group(one.join("chat"));
    two.join("chat");
    let senders: Vec<_> = (0..4_u8)
        .map(|number| {
            let mut sender = fixture.client();
            std::thread::spawn(move || {
                for message in 0..500_u32 {
                    let mut payload = vec![number];
                    payload.extend(message.to_le_bytes());
                    let serial = sender.post(group, &payload);
                    let receipt = sender.outcome(serial).unwrap();
                    assert_eq!(receipt.recipients, 2);
                    assert_eq!(receipt.sender_serial, u64::from(message) + 1);
                }
            })
        })
        .collect();
    let readers = [one, two].map(|mut member| {
        std::thread::spawn(move || {
            let heard = (0..2_000).map(|_| {
                let message = member.receive();
                (message.head.sequence, message.head.sender, message.payload)
            });
            heard.collect::<Vec<_>>()
        })
    });
    let [one, two] = readers.map(|reader| reader.join().unwrap());
    for sender in senders {
        sender.join().unwrap();
    }
    assert!(one.is_sorted_by(|a, b| a.0 < b.0), "sequences rise");
    assert_eq!(one, two);
}

#[test]
fn many_frames_in_one_write_are_all_answered() {
    let fixture = Fixture::new();
    let (mut member, mut sender) = (fixture.client(), fixture.client());
    let group = Destination::Group(member.join("burst"));
    let mut bytes = BytesMut::new();
    let serials: Vec<Serial> = (0..60).map(|_| sender.next_serial()).collect();
    for serial in &serials {
        let frame = send_frame(id(*serial), group, b"small", SendFlags::empty(), 0);
        frame.encode(&mut bytes).unwrap();
    }
    sender.write(&bytes);
    for serial in serials {
        sender.outcome(serial).unwrap();
    }
    for _ in 0..60 {
        assert_eq!(&member.receive().payload[..], b"small");
    }
}

#[test]
fn frames_that_come_byte_by_byte_are_whole_in_the_end() {
    let fixture = Fixture::new();
    let mut client = RawClient::silent(fixture.stream());
    let mut bytes = BytesMut::from(&MAGIC[..]);
    ClientFrame::Hello(Hello::new()).encode(&mut bytes).unwrap();
    for byte in bytes {
        client.write(&[byte]);
    }
    assert!(matches!(client.hear(), BrokerFrame::Welcome(_)));
    client.ping();
}

#[test]
fn the_largest_payload_arrives_and_one_byte_more_is_too_large() {
    let fixture = Fixture::new();
    let (mut member, mut sender) = (fixture.client(), fixture.client());
    let group = Destination::Group(member.join("large"));
    let most = Limits::default().payload_bytes as usize;
    let payload: Vec<u8> = (0..=250).cycle().take(most).collect();
    let reader = std::thread::spawn(move || member.receive().payload);
    let serial = sender.post(group, &payload);
    assert_eq!(sender.outcome(serial).unwrap().recipients, 1);
    assert!(reader.join().unwrap() == payload, "the bytes are the same");

    let serial = sender.post(group, &vec![0; most + 1]);
    let refused = sender.outcome(serial).unwrap_err();
    assert_eq!(refused.code, FailureCode::TooLarge);
    assert_eq!(refused.limit_value, Some(most as u64));
    sender.ping();
}

#[test]
fn what_is_no_greeting_ends_that_connection_only() {
    let fixture = Fixture::new();
    let mut innocent = fixture.client();
    for garbage in [&b"\0AUTH EXTERNAL\r\n"[..], b"UNISONO!", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stranger = RawClient::silent(fixture.stream());
        stranger.write(garbage);
        assert_eq!(stranger.goodbye(), None, "{garbage:?}: closed, without a word it knows");
    }
    innocent.ping();
    innocent.wait_for(|stats| stats.protocol_errors == 3 && stats.connections == 1);
}

#[test]
fn a_bad_frame_is_named_and_ends_that_connection_only() {
    let fixture = Fixture::new();
    let mut innocent = fixture.client();
    for (case, bytes, says) in [
        ("unknown kind", [16, 0, 0, 0, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "0x77"),
        ("length of 4 GiB", [255, 255, 255, 255, 0x10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], "SEND"),
        ("length of 0", [0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], "SEND"),
    ] {
        let mut bad = fixture.client();
        bad.write(&bytes);
        let goodbye = bad.goodbye().expect(case);
        assert_eq!(goodbye.code, GoodbyeCode::BadFrame, "{case}");
        assert!(goodbye.text.contains(says), "{case}: {}", goodbye.text);
    }
    innocent.ping();
}

#[test]
fn frames_out_of_turn_end_that_connection() {
    let fixture = Fixture::new();
    let mut early = RawClient::silent(fixture.stream());
    early.write(&MAGIC);
    early.say(&ClientFrame::DescriptorsTaken);
    assert_eq!(early.goodbye().unwrap().code, GoodbyeCode::Protocol);

    let mut twice = fixture.client();
    twice.say(&ClientFrame::Hello(Hello::new()));
    assert_eq!(twice.goodbye().unwrap().code, GoodbyeCode::Protocol);

    let mut liar = fixture.client();
    liar.say(&ClientFrame::DescriptorsTaken);
    assert_eq!(liar.goodbye().unwrap().code, GoodbyeCode::Protocol);

    let mut future = RawClient::silent(fixture.stream());
    future.write(&MAGIC);
    let hello = Hello { versions: vec![999], ..Hello::default() };
    future.say(&ClientFrame::Hello(hello));
    assert_eq!(future.goodbye().unwrap().code, GoodbyeCode::NoCommonVersion);
}

#[test]
fn a_client_that_stops_inside_a_frame_costs_nobody_anything() {
    let fixture = Fixture::with(Limits::default(), 1);
    let (mut member, mut sender) = (fixture.client(), fixture.client());
    let group = Destination::Group(member.join("half"));
    let mut halves = Vec::new();
    for size in [10, 20_000, 1 << 20] {
        let mut half = fixture.client();
        let mut bytes = BytesMut::new();
        let serial = half.next_serial();
        let frame = send_frame(id(serial), group, &vec![0; size], SendFlags::empty(), 0);
        frame.encode(&mut bytes).unwrap();
        half.write(&bytes[..bytes.len() / 2]);
        halves.push(half);
    }
    let serial = sender.post(group, b"whole");
    assert_eq!(sender.outcome(serial).unwrap().recipients, 1);
    assert_eq!(&member.receive().payload[..], b"whole");
    drop(halves);
    member.wait_for(|stats| stats.connections == 2 && stats.endpoints == 2);
}

#[test]
fn g8_more_than_the_window_of_a_lane_ends_that_connection() {
    let limits = Limits { lane_messages: 3, ..small_queue(2) };
    let fixture = Fixture::with(limits, 1);
    let (mut member, mut sender, group) = full_member(&fixture, 2);
    for _ in 0..3 {
        sender.post(group, b"waits");
    }
    sender.ping();
    sender.post(group, b"one too many");
    let goodbye = sender.goodbye().unwrap();
    assert_eq!(goodbye.code, GoodbyeCode::Protocol);
    assert!(goodbye.text.contains("window"), "{}", goodbye.text);
    member.wait_for_waiting_sends(0);
    member.credit(2, 10);
    member.ping();
}

#[test]
fn receipts_that_may_wait_come_when_asked_for_and_by_themselves() {
    let fixture = Fixture::new();
    let (mut member, mut sender) = (fixture.client(), fixture.client());
    let group = Destination::Group(member.join("group"));
    let flags = SendFlags::RECEIPT_MAY_WAIT;
    let asked = [b"a", b"b"].map(|text| sender.post_with(group, text, flags));
    sender.say(&ClientFrame::Flush);
    let left = sender.post_with(group, b"c", flags);
    for serial in asked.into_iter().chain([left]) {
        assert_eq!(sender.outcome(serial).unwrap().recipients, 1);
        member.receive();
    }
}

#[test]
fn g5_a_cancelled_send_has_reached_nobody() {
    let fixture = Fixture::with(small_queue(2), 2);
    let (mut member, mut sender, group) = full_member(&fixture, 2);
    let (head, second, third) =
        (sender.post(group, b"head"), sender.post(group, b"second"), sender.post(group, b"third"));
    member.wait_for_waiting_sends(1);
    sender.cancel(second);
    assert_eq!(sender.outcome(second).unwrap_err().code, FailureCode::Cancelled);
    sender.cancel(head);
    assert_eq!(sender.outcome(head).unwrap_err().code, FailureCode::Cancelled);
    sender.cancel(head);
    member.credit(1, 5);
    sender.outcome(third).unwrap();
    assert_eq!(&member.message().payload[..], b"third");
}

#[test]
fn g5_nothing_else_is_held_back_by_a_send_that_waits() {
    let fixture = Fixture::with(small_queue(2), 1);
    let (member, mut sender, group) = full_member(&fixture, 2);
    let own = sender.join("own");
    let waits = sender.post(group, b"waits");
    let free = Destination::Endpoint(sender.endpoint());
    // Another lane of the same endpoint.
    let serial = sender.next_serial();
    let other = SendId { lane: LaneNumber::new(5).unwrap(), ..id(serial) };
    sender.say(&send_frame(other, free, b"overtakes", SendFlags::empty(), 0));
    sender.outcome(serial).unwrap();
    assert_eq!(&sender.receive().payload[..], b"overtakes");
    // Another endpoint of the same connection.
    let handle = Handle::from_raw(9);
    let Ok(Response::Opened { .. }) = sender.call_as(handle, Request::OpenEndpoint) else {
        panic!("no second endpoint")
    };
    let serial = sender.next_serial();
    let second = SendId { endpoint: handle, ..id(serial) };
    sender.say(&send_frame(second, free, b"too", SendFlags::empty(), 0));
    sender.outcome(serial).unwrap();
    // Leave and shutdown.
    let left = sender.call(Request::Leave { group_id: own });
    assert!(matches!(left, Ok(Response::Left { .. })), "{left:?}");
    let shut = sender.call(Request::ShutdownReceive);
    assert!(matches!(shut, Ok(Response::Shut { .. })), "{shut:?}");
    assert_eq!(&sender.receive().payload[..], b"too", "what was queued stays readable");
    drop(member);
    let ended = sender.outcome(waits).unwrap_err();
    assert_eq!(ended.code, FailureCode::GroupEnded, "it went with its last member");
}

#[test]
fn g9_what_is_sent_to_one_who_shut_down_fails() {
    let fixture = Fixture::new();
    let (mut deaf, mut sender) = (fixture.client(), fixture.client());
    deaf.call(Request::ShutdownReceive).unwrap();
    let serial = sender.post(Destination::Endpoint(deaf.endpoint()), b"hello?");
    assert_eq!(sender.outcome(serial).unwrap_err().code, FailureCode::EndpointClosed);
    let serial = deaf.post(Destination::Endpoint(sender.endpoint()), b"still talking");
    deaf.outcome(serial).unwrap();
    assert_eq!(&sender.receive().payload[..], b"still talking");
}

#[test]
fn g5_room_commits_a_waiting_send_on_another_thread() {
    let fixture = Fixture::with(small_queue(2), 2);
    let (mut member, mut sender, group) = full_member(&fixture, 2);
    let waits: Vec<_> = (0..20).map(|_| sender.post(group, b"waits")).collect();
    member.wait_for_waiting_sends(1);
    member.credit(2, 10);
    for serial in waits {
        sender.outcome(serial).unwrap();
        assert_eq!(&member.receive().payload[..], b"waits");
    }
    member.wait_for_waiting_sends(0);
}

#[test]
fn g3_a_refused_lane_refuses_until_it_is_resumed() {
    let fixture = Fixture::with(small_queue(2), 2);
    let (mut member, mut sender, group) = full_member(&fixture, 2);
    let free = Destination::Endpoint(sender.endpoint());
    let refused = sender.post_with(group, b"1", SendFlags::NONBLOCK);
    let fallen = sender.post(free, b"2");
    let independent = sender.post_with(free, b"3", SendFlags::INDEPENDENT);
    let refusal = sender.outcome(refused).unwrap_err();
    assert_eq!(refusal.code, FailureCode::WouldBlock);
    assert_eq!((refusal.full, refusal.full_count), (vec![member.endpoint()], 1));
    assert_eq!(sender.outcome(fallen).unwrap_err().code, FailureCode::LaneRefused);
    sender.outcome(independent).unwrap();
    assert_eq!(&sender.receive().payload[..], b"3");
    sender.resume();
    member.credit(2, 10);
    member.ping();
    let serial = sender.post_with(group, b"4", SendFlags::NONBLOCK);
    sender.outcome(serial).unwrap();
    assert_eq!(&member.receive().payload[..], b"4");
}

#[test]
fn g5_a_send_that_lacks_only_its_senders_room_fails() {
    let fixture = Fixture::with(small_queue(1), 1);
    let mut alone = fixture.client();
    let to_self = Destination::Endpoint(alone.endpoint());
    let serial = alone.post(to_self, b"fills");
    alone.outcome(serial).unwrap();
    let serial = alone.post(to_self, b"no room");
    assert_eq!(alone.outcome(serial).unwrap_err().code, FailureCode::OwnQueueFull);
}

#[test]
fn g6_a_watch_is_answered_once_there_is_room() {
    let fixture = Fixture::with(small_queue(2), 2);
    let (mut member, mut sender, group) = full_member(&fixture, 2);
    let watch = |sender: &mut RawClient, destination| {
        let serial = sender.next_serial();
        sender.say(&ClientFrame::Watch {
            endpoint: Handle::FIRST,
            serial,
            destination,
            attributes: Attributes::EMPTY,
        });
        serial
    };
    let writable = |sender: &mut RawClient, wanted: Serial| {
        sender.hear_that(|frame| match frame {
            BrokerFrame::Writable { serial, .. } if *serial == wanted => Some(Ok(())),
            BrokerFrame::Error { serial, failure, .. } if *serial == wanted => {
                Some(Err(failure.code.clone()))
            }
            _ => None,
        })
    };
    let serial = watch(&mut sender, group);
    let given_up = watch(&mut sender, group);
    sender.say(&ClientFrame::Unwatch { endpoint: Handle::FIRST, serial: given_up });
    sender.ping();
    member.credit(1, 5);
    assert_eq!(writable(&mut sender, serial), Ok(()));
    let serial = watch(&mut sender, group);
    assert_eq!(writable(&mut sender, serial), Ok(()), "level-triggered");
    let serial = watch(&mut sender, Destination::Group(GroupId::from_raw(77)));
    assert_eq!(writable(&mut sender, serial), Err(FailureCode::NoSuchGroup));
}

#[test]
fn g7_a_member_that_drops_learns_its_gap() {
    let fixture = Fixture::with(small_queue(2), 2);
    let (mut member, mut sender) = (fixture.client(), fixture.client());
    let group = member.join_with("dropping", MemberFlags::DROP_WHEN_FULL);
    let mut receipts = Vec::new();
    for _ in 0..5 {
        let serial = sender.post(Destination::Group(group), b"four");
        receipts.push(sender.outcome(serial).unwrap());
    }
    let dropped: Vec<u32> = receipts.iter().map(|receipt| receipt.dropped).collect();
    assert_eq!(dropped, [0, 0, 1, 1, 1]);
    member.message();
    member.message();
    member.credit(2, 8);
    let gap = member.hear_that(|frame| match frame {
        BrokerFrame::Notice { notice: Notice::Gap { group_id, gap }, .. } => {
            Some((*group_id, *gap))
        }
        _ => None,
    });
    assert_eq!(gap.0, group);
    assert_eq!(gap.1.count, 3);
    assert_eq!((gap.1.first, gap.1.last), (receipts[2].sequence, receipts[4].sequence));
}

#[test]
fn g8_credit_for_what_was_never_delivered_ends_that_connection() {
    let fixture = Fixture::new();
    let (mut member, mut sender) = (fixture.client(), fixture.client());
    let group = Destination::Group(member.join("credit"));
    let serial = sender.post(group, b"one");
    sender.outcome(serial).unwrap();
    member.message();
    member.credit(1, 4);
    assert_eq!(member.goodbye().unwrap().code, GoodbyeCode::Protocol);
    sender.wait_for(|stats| stats.endpoints == 1);
}

#[test]
fn descriptors_travel_with_their_message() {
    let fixture = Fixture::new();
    let (mut member, mut sender) = (fixture.client(), fixture.client());
    let group = Destination::Group(member.join("descriptors"));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"through the bus").unwrap();
    let serial = sender.post_with_descriptors(group, b"two files", &[file.as_fd(), file.as_fd()]);
    assert!(matches!(sender.hear(), BrokerFrame::DescriptorsTaken));
    sender.outcome(serial).unwrap();

    let message = member.message();
    assert_eq!(message.head.descriptors, 2);
    assert_eq!(member.descriptors.len(), 2);
    let mut arrived = std::fs::File::from(member.descriptors.pop_front().unwrap());
    let mut text = String::new();
    arrived.rewind().unwrap();
    arrived.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through the bus");
}

#[test]
fn one_frame_with_descriptors_is_out_at_a_time_and_the_order_stays() {
    let fixture = Fixture::new();
    let (mut member, mut sender) = (fixture.client(), fixture.client());
    let group = Destination::Group(member.join("descriptors"));
    let file = tempfile::tempfile().unwrap();
    for payload in [b"1", b"2"] {
        let serial = sender.post_with_descriptors(group, payload, &[file.as_fd()]);
        sender.outcome(serial).unwrap();
    }
    let serial = sender.post(group, b"3");
    sender.outcome(serial).unwrap();

    assert_eq!(&member.message().payload[..], b"1");
    member.ping();
    assert_eq!(member.descriptors.len(), 1, "the second one waits");
    member.say(&ClientFrame::DescriptorsTaken);
    assert_eq!(&member.message().payload[..], b"2");
    assert_eq!(&member.message().payload[..], b"3");
    assert_eq!(member.descriptors.len(), 2);
}

#[test]
fn descriptors_without_a_frame_for_them_end_that_connection() {
    let fixture = Fixture::new();
    let mut innocent = fixture.client();
    let file = tempfile::tempfile().unwrap();
    let to = Destination::Endpoint(innocent.endpoint());

    let mut plain = fixture.client();
    let mut bytes = BytesMut::new();
    let frame = send_frame(id(Serial::FIRST), to, b"none", SendFlags::empty(), 0);
    frame.encode(&mut bytes).unwrap();
    plain.write_with_descriptors(&bytes, &[file.as_fd()]);
    assert_eq!(plain.goodbye().unwrap().code, GoodbyeCode::Protocol);

    let mut short = fixture.client();
    short.say(&send_frame(id(Serial::FIRST), to, b"one", SendFlags::empty(), 1));
    assert_eq!(short.goodbye().unwrap().code, GoodbyeCode::Protocol);

    let mut many = fixture.client();
    let mut bytes = BytesMut::new();
    let frame = send_frame(id(Serial::FIRST), to, b"many", SendFlags::empty(), 16);
    frame.encode(&mut bytes).unwrap();
    many.write_with_descriptors(&bytes, &[file.as_fd(); 17]);
    assert_eq!(many.goodbye().unwrap().code, GoodbyeCode::Protocol);
    innocent.ping();
}

#[test]
fn g8_a_client_that_does_not_read_its_answers_is_not_read_and_loses_none() {
    let fixture = Fixture::with(Limits::default(), 1);
    let (mut rude, mut polite) = (fixture.client(), fixture.client());
    const CALLS: u32 = 100_000;
    let mut stream = rude.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let mut bytes = BytesMut::new();
        for number in 1..=CALLS {
            let call = ClientFrame::Call {
                endpoint: Handle::FIRST,
                serial: Serial::new(number).unwrap(),
                request: Request::Ping,
            };
            call.encode(&mut bytes).unwrap();
        }
        stream.write_all(&bytes).unwrap();
    });
    // Until the broker has as many answers as it is ready to keep, and then some.
    polite.wait_for(|stats| stats.bytes_read > 1 << 20);
    polite.ping();
    for number in 1..=CALLS {
        let BrokerFrame::Done { serial, .. } = rude.hear() else { panic!("no answer {number}") };
        assert_eq!(serial.get(), number);
    }
    writer.join().unwrap();
}

#[test]
fn g10_a_member_that_does_not_read_its_socket_leaves_others_alone() {
    let fixture = Fixture::with(Limits::default(), 1);
    let (mut stuck, mut healthy, mut sender) =
        (fixture.client(), fixture.client(), fixture.client());
    let group = stuck.join("shared");
    let free = Destination::Group(healthy.join("free"));
    let payload = vec![7; 64 << 10];
    // The queue takes 1 MiB and the message that crosses it.
    for _ in 0..16 {
        let serial = sender.post(Destination::Group(group), &payload);
        sender.outcome(serial).unwrap();
    }
    let waits = sender.post(Destination::Group(group), &payload);
    healthy.wait_for_waiting_sends(1);
    let mut other = fixture.client();
    for _ in 0..100 {
        let serial = other.post(free, &payload);
        other.outcome(serial).unwrap();
        healthy.receive();
    }
    drop(stuck);
    assert_eq!(sender.outcome(waits).unwrap_err().code, FailureCode::GroupEnded);
}

#[test]
fn g8_a_stalled_member_is_evicted_and_told_and_the_sender_goes_on() {
    let limits = Limits { stall: Duration::from_millis(100), ..small_queue(2) };
    let fixture = Fixture::with(limits, 2);
    let (mut member, mut sender, group) = full_member(&fixture, 2);
    let waits = sender.post(group, b"waits");
    assert_eq!(sender.outcome(waits).unwrap().recipients, 0);
    let (evicted_from, queued) = member.hear_that(|frame| match frame {
        BrokerFrame::Notice {
            notice: Notice::Evicted { group_id, queued_messages, .. }, ..
        } => Some((*group_id, *queued_messages)),
        _ => None,
    });
    assert_eq!(Destination::Group(evicted_from), group);
    assert_eq!(queued, 2);
    let again = Request::Join {
        group: name("full"),
        flags: MemberFlags::empty(),
        create: true,
        filter: None,
        retain: None,
        state: false,
    };
    let refused = member.call(again).unwrap_err();
    assert_eq!(refused.code, FailureCode::BackOff);
    assert!(refused.retry_after.is_some());
    member.join_with("full", MemberFlags::DROP_WHEN_FULL);
}

#[test]
fn a_client_that_says_goodbye_is_gone() {
    let fixture = Fixture::new();
    let (mut leaver, mut other) = (fixture.client(), fixture.client());
    leaver.join("left");
    leaver.say(&ClientFrame::Goodbye(Goodbye::new(GoodbyeCode::Done, "bye")));
    assert_eq!(leaver.goodbye(), None, "closed without another word");
    other.wait_for(|stats| stats.endpoints == 1 && stats.groups == 0 && stats.connections == 1);
}

#[test]
fn endpoints_of_a_connection_have_their_own_queues_and_answers() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let second = Handle::from_raw(7);
    let Ok(Response::Opened { endpoint }) = client.call_as(second, Request::OpenEndpoint) else {
        panic!("not opened")
    };
    let again = client.call_as(second, Request::OpenEndpoint).unwrap_err();
    assert_eq!(again.code, FailureCode::BadRequest);
    let serial = client.post(Destination::Endpoint(endpoint), b"to the second");
    client.outcome(serial).unwrap();
    assert_eq!(client.message().head.endpoint, second);
    client.call_as(second, Request::CloseEndpoint).unwrap();
    let serial = client.post(Destination::Endpoint(endpoint), b"too late");
    assert_eq!(client.outcome(serial).unwrap_err().code, FailureCode::NoSuchEndpoint);
    let gone = client.call_as(second, Request::CloseEndpoint).unwrap_err();
    assert_eq!(gone.code, FailureCode::NoSuchEndpoint);
}

#[test]
fn closing_an_endpoint_answers_its_sends() {
    let fixture = Fixture::with(small_queue(2), 1);
    let (_member, mut sender, group) = full_member(&fixture, 2);
    let (head, second) = (sender.post(group, b"head"), sender.post(group, b"second"));
    sender.call(Request::CloseEndpoint).unwrap();
    for serial in [head, second] {
        assert_eq!(sender.outcome(serial).unwrap_err().code, FailureCode::Cancelled);
    }
    let serial = sender.post(group, b"from nobody");
    assert_eq!(sender.outcome(serial).unwrap_err().code, FailureCode::NoSuchEndpoint);
}

#[test]
fn listings_come_in_parts_that_nobody_asks_for() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let handles: Vec<Handle> = (0..4).map(Handle::from_raw).collect();
    for handle in &handles[1..] {
        client.call_as(*handle, Request::OpenEndpoint).unwrap();
    }
    let names: Vec<String> = (1000..1200).map(|number| format!("group.g{number}")).collect();
    for (at, group) in names.iter().enumerate() {
        let create = Request::Create { group: name(group), retain: None, stall_ms: None };
        client.call_as(handles[at % handles.len()], create).unwrap();
    }
    let serial = client.begin(Request::Groups);
    let frames = client.hear_until(|frame| ends(frame, serial));
    assert_eq!(groups_of(&frames), names);
    assert_eq!(frames.len(), 4, "of 64 each");
    let sequences = frames.iter().filter_map(|frame| match frame {
        BrokerFrame::Part { response: Response::Groups { sequence, .. }, .. }
        | BrokerFrame::Done { response: Response::Groups { sequence, .. }, .. } => Some(*sequence),
        _ => None,
    });
    assert_eq!(sequences.collect::<BTreeSet<_>>().len(), 1, "one place in the order");
    client.join("group.g1000");
    let found = client.call(Request::FindGroup { group: name("group.g1000") });
    let Ok(Response::Group(info)) = found else { panic!("{found:?}") };
    assert_eq!((info.members, info.creator), (1, Some(client.endpoint())));
    let request = Request::Members { group_id: info.group_id };
    let Ok(Response::Members { members, .. }) = client.call(request) else { panic!("no members") };
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].endpoint, client.endpoint());
    assert_eq!(members[0].pid, std::process::id());
}

/// It ends the answer to a CALL that did what it was asked for.
fn ends(frame: &BrokerFrame, call: Serial) -> bool {
    matches!(frame, BrokerFrame::Done { serial, .. } if *serial == call)
}

/// The names of all groups that are listed in frames.
fn groups_of(frames: &[BrokerFrame]) -> Vec<String> {
    let groups = frames.iter().filter_map(|frame| match frame {
        BrokerFrame::Part { response: Response::Groups { groups, .. }, .. }
        | BrokerFrame::Done { response: Response::Groups { groups, .. }, .. } => Some(groups),
        _ => None,
    });
    groups.flatten().map(|group| group.name.to_string()).collect()
}

#[test]
fn g8_a_listing_goes_on_as_its_reader_makes_room_and_waits_in_the_broker_as_a_place_only() {
    let fixture = Fixture::new();
    let mut maker = fixture.client();
    let long = "x".repeat(240);
    let names: Vec<String> = (1000..5000).map(|number| format!("{long}{number}")).collect();
    for (at, group) in names.iter().enumerate() {
        let handle = Handle::from_raw(1 + u32::try_from(at / 1000).unwrap());
        if at % 1000 == 0 {
            maker.call_as(handle, Request::OpenEndpoint).unwrap();
        }
        maker
            .call_as(handle, Request::Create { group: name(group), retain: None, stall_ms: None })
            .unwrap();
    }
    let mut reader = fixture.client();
    let group = reader.join("late");
    // More than a socket and an output hold, and nobody reads.
    let serial = reader.begin(Request::Groups);
    let mut frames = vec![reader.hear()];
    let mut other = fixture.client();
    let ping = reader.begin(Request::Ping);
    // The end of a group that was not told yet is seen; nothing that begins is.
    let last = Handle::from_raw(4);
    maker.call_as(last, Request::CloseEndpoint).unwrap();
    let create =
        Request::Create { group: name(&format!("{long}9999")), retain: None, stall_ms: None };
    maker.call(create).unwrap();
    let sent = other.post(Destination::Group(group), b"between the parts");
    other.outcome(sent).unwrap();
    frames.extend(reader.hear_until(|frame| ends(frame, serial)));
    let listed = groups_of(&frames);
    let expected: Vec<&str> =
        ["late"].into_iter().chain(names[..3000].iter().map(String::as_str)).collect();
    assert_eq!(listed, expected, "the rest was not made before there was room");
    assert!(frames.iter().any(|frame| ends(frame, ping)), "a listing holds no other call back");
    let is_message = |frame: &BrokerFrame| matches!(frame, BrokerFrame::Message(_));
    assert!(frames.iter().any(is_message), "nor messages");
}

#[test]
fn a_listing_that_is_given_up_ends_with_cancelled_and_so_many_may_be_under_way() {
    let fixture = Fixture::new();
    let mut maker = fixture.client();
    let long = "x".repeat(240);
    for number in 0..1000 {
        let group = name(&format!("{long}{number}"));
        maker.call(Request::Create { group, retain: None, stall_ms: None }).unwrap();
    }
    let mut reader = fixture.client();
    let serials: Vec<Serial> = (0..8).map(|_| reader.begin(Request::Groups)).collect();
    for serial in &serials[1..] {
        reader.say(&ClientFrame::Unwatch { endpoint: Handle::FIRST, serial: *serial });
    }
    let mut ends = BTreeMap::new();
    while ends.len() < serials.len() {
        match reader.hear() {
            BrokerFrame::Done { serial, .. } => ends.insert(serial, None),
            BrokerFrame::Error { serial, failure, .. } => ends.insert(serial, Some(failure.code)),
            _ => None,
        };
    }
    assert_eq!(ends[&serials[0]], None);
    for (at, serial) in serials.iter().enumerate().skip(1) {
        let code = if at < 4 { FailureCode::Cancelled } else { FailureCode::LimitExceeded };
        let end = ends[serial].clone();
        assert!(end.is_none() || end == Some(code), "{at}: {end:?}");
    }
    // What ended so is not told of any more.
    reader.call(Request::Ping).unwrap();
}

#[test]
fn g9_what_was_queued_comes_before_the_farewell() {
    const MESSAGES: u32 = 200;
    let mut fixture = Fixture::new();
    let (mut reader, mut sender) = (fixture.client(), fixture.client());
    let group = Destination::Group(reader.join("g"));
    let payload = vec![b'x'; 5_000];
    let file = std::fs::File::open("/dev/null").unwrap();
    // More than a socket and an output hold; and descriptors, of which one message's are under way
    // at a time.
    for number in 0..MESSAGES {
        let serial = if number % 50 == 0 {
            sender.post_with_descriptors(group, &payload, &[file.as_fd()])
        } else {
            sender.post(group, &payload)
        };
        sender.outcome(serial).unwrap();
    }
    let ending = std::thread::spawn(move || fixture.end());
    let (mut heard, mut lost) = (0, 0);
    loop {
        match reader.hear() {
            BrokerFrame::Message(message) => {
                heard += 1;
                lost += u32::from(message.head.descriptors_lost);
                assert_eq!(message.payload.len(), payload.len());
            }
            BrokerFrame::Goodbye(goodbye) => {
                assert_eq!(goodbye.code, GoodbyeCode::Shutdown);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((heard, lost), (MESSAGES, 3));
    assert_eq!(reader.try_hear(), None);
    ending.join().unwrap();
}

#[test]
fn g3_a_lane_whose_senders_own_queue_is_full_refuses_what_follows_until_it_resumes() {
    let limits = Limits { queue_messages: 2, ..Limits::default() };
    let fixture = Fixture::with(limits, 1);
    let mut client = fixture.client();
    let group = Destination::Group(client.join_with("g", MemberFlags::LOOPBACK));
    let serials: Vec<Serial> = (0..5).map(|_| client.post(group, b"x")).collect();
    let codes: Vec<_> =
        serials.iter().map(|serial| client.outcome(*serial).map_err(|f| f.code)).collect();
    assert!(codes[0].is_ok() && codes[1].is_ok());
    assert_eq!(codes[2].as_ref().unwrap_err(), &FailureCode::OwnQueueFull);
    for code in &codes[3..] {
        assert_eq!(code.as_ref().unwrap_err(), &FailureCode::LaneRefused);
    }
    client.receive();
    let stopped = client.post(group, b"too early");
    assert_eq!(client.outcome(stopped).unwrap_err().code, FailureCode::LaneRefused);
    client.resume();
    let again = client.post(group, b"again");
    client.outcome(again).unwrap();
}

#[test]
fn two_hundred_connections_hear_each_other() {
    let fixture = Fixture::new();
    let mut clients: Vec<RawClient> = (0..200).map(|_| fixture.client()).collect();
    let mut group = None;
    for client in &mut clients {
        group = Some(client.join("crowd"));
    }
    let group = Destination::Group(group.unwrap());
    let mut senders = [fixture.client(), fixture.client()];
    let sent: Vec<Serial> =
        senders.iter_mut().map(|sender| sender.post(group, b"hello all")).collect();
    for (sender, serial) in senders.iter_mut().zip(sent) {
        assert_eq!(sender.outcome(serial).unwrap().recipients, 200);
    }
    let mut order: Option<Vec<EndpointId>> = None;
    for client in &mut clients {
        let heard = vec![client.receive().head.sender, client.receive().head.sender];
        assert_eq!(*order.get_or_insert_with(|| heard.clone()), heard);
    }
    drop(clients);
    senders[0].wait_for(|stats| stats.connections == 2 && stats.groups == 0);
}

#[test]
fn g8_connections_above_the_limit_are_told() {
    let limits = Limits { connections: 3, ..Limits::default() };
    let fixture = Fixture::with(limits, 1);
    let clients: Vec<RawClient> = (0..3).map(|_| fixture.client()).collect();
    let refused = fixture.handle.connect().unwrap_err();
    assert!(
        matches!(refused, ConnectError::LimitExceeded(ref limit) if limit.value == 3),
        "{refused}"
    );
    drop(clients);
    let deadline = std::time::Instant::now() + raw_client::DEADLINE;
    while fixture.handle.connect().is_err() {
        assert!(std::time::Instant::now() < deadline, "places come back");
        std::thread::yield_now();
    }
}

#[test]
fn shutdown_tells_clients_whatever_they_wait_for() {
    let mut fixture = Fixture::with(small_queue(2), 2);
    let (mut member, mut sender, group) = full_member(&fixture, 2);
    sender.post(group, b"waits");
    member.wait_for_waiting_sends(1);
    fixture.end();
    assert_eq!(member.goodbye().unwrap().code, GoodbyeCode::Shutdown);
    // The goodbye is the answer: not that the group has ended, if the other one was told first.
    assert_eq!(sender.goodbye().unwrap().code, GoodbyeCode::Shutdown);
    let refused = fixture.handle.connect().unwrap_err();
    assert!(matches!(refused, ConnectError::Ended), "{refused}");
}

#[test]
fn a_call_that_cannot_be_read_is_answered_and_the_connection_goes_on() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    // {"op": "dance"}
    let body = b"\xa1\x62op\x65dance";
    let mut bytes = vec![
        16 + u8::try_from(body.len()).unwrap(),
        0,
        0,
        0,
        0x02,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        42,
        0,
        0,
        0,
    ];
    bytes.extend(body);
    client.write(&bytes);
    let BrokerFrame::Error { serial, failure, .. } = client.hear() else { panic!("no error") };
    assert_eq!((serial.get(), failure.code), (42, FailureCode::Unsupported));
    client.ping();
}

#[test]
fn a_passed_socket_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus");
    let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let broker = Broker::with_sockets(&Config::default(), vec![OwnedFd::from(socket)]).unwrap();
    assert_eq!(broker.address(), Some(path.as_path()));
    let handle = broker.handle();
    let running = std::thread::spawn(|| broker.run());
    let mut client = RawClient::connect(&path);
    client.ping();
    handle.shutdown();
    running.join().unwrap().unwrap();
    assert_eq!(client.goodbye().unwrap().code, GoodbyeCode::Shutdown);
}

#[test]
fn a_greeting_that_does_not_come_in_time_ends_that_connection() {
    let mut config = Config::default();
    config.greeting = Duration::from_millis(500);
    let fixture = Fixture::of(config);
    let mut greeted = fixture.client();
    // One says nothing at all, and one begins and does not go on.
    let mut silent = RawClient::silent(fixture.stream());
    let mut slow = RawClient::silent(fixture.stream());
    slow.write(b"UNISONO\n");
    assert!(silent.try_hear().is_none(), "nobody knows what it speaks");
    assert_eq!(slow.goodbye().unwrap().code, GoodbyeCode::TooSlow);
    greeted.ping();
}

/// Payloads that tell their place.
fn numbered(count: u32) -> Vec<Vec<u8>> {
    (0..count).map(|number| number.to_le_bytes().to_vec()).collect()
}

/// The frames up to the one with the last of so many messages, these as if each had come alone.
fn messages_in(frames: Vec<BrokerFrame>) -> Vec<MessageFrame> {
    let each = frames.into_iter().flat_map(|frame| match frame {
        BrokerFrame::Messages(messages) => messages.into_messages(),
        BrokerFrame::Message(message) => vec![*message],
        _ => Vec::new(),
    });
    each.collect()
}

fn hear_messages(member: &mut RawClient, count: usize) -> (Vec<MessageFrame>, Vec<BrokerFrame>) {
    let mut frames = Vec::new();
    loop {
        frames.push(member.hear());
        let messages = messages_in(frames.clone());
        if messages.len() >= count {
            return (messages, frames);
        }
    }
}

/// Given two members, of whom one knows of batches, when a sender writes many SENDs at once,
/// then they are committed together: the one gets them in few frames, the other one by one, both the
/// same; and each is answered, together if the sender knows of that too.
#[test]
fn g2_sends_of_one_write_are_committed_together() {
    // What would lie apart alone goes together too.
    for (knows, length) in [(false, 16), (true, 16), (true, 5_000)] {
        let fixture = Fixture::new();
        let features: &[&str] = if knows { &[BATCHES_FEATURE] } else { &[] };
        let mut sender = RawClient::greeted_with(fixture.stream(), features);
        let mut modern = RawClient::greeted_with(fixture.stream(), &[BATCHES_FEATURE]);
        let mut plain = fixture.client();
        let group = Destination::Group(modern.join("batch"));
        plain.join("batch");
        let first = sender.post(group, b"makes the lane");
        sender.outcome(first).unwrap();
        let mut payloads = numbered(60);
        payloads.iter_mut().for_each(|payload| payload.resize(length, b'.'));
        let payloads: Vec<&[u8]> = payloads.iter().map(|payload| &payload[..]).collect();
        let serials = sender.post_many(group, &payloads);

        let mut answered = Vec::new();
        let mut together = 0;
        while answered.len() < serials.len() {
            match sender.hear() {
                BrokerFrame::Receipt { id, receipt } => answered.push((id.serial, receipt)),
                BrokerFrame::Receipts(sends) => {
                    together = together.max(sends.serials.len());
                    answered.extend(sends.each().map(|(id, receipt)| (id.serial, receipt)));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(together > 1, knows, "{together}");
        assert_eq!(answered.iter().map(|(serial, _)| *serial).collect::<Vec<_>>(), serials);
        assert!(answered.iter().all(|(_, receipt)| receipt.recipients == 2));
        let serials_of_sender = answered.iter().map(|(_, receipt)| receipt.sender_serial);
        assert!(serials_of_sender.eq(2..62), "the first was the lane's");

        let (heard, frames) = hear_messages(&mut modern, 61);
        assert!(frames.iter().any(|frame| matches!(frame, BrokerFrame::Messages(_))));
        let (alone, frames) = hear_messages(&mut plain, 61);
        assert!(frames.iter().all(|frame| matches!(frame, BrokerFrame::Message(_))));
        assert_eq!(heard, alone);
        assert!(heard.is_sorted_by(|a, b| a.head.sequence < b.head.sequence));
        for ((message, (_, receipt)), payload) in heard[1..].iter().zip(&answered).zip(&payloads) {
            assert_eq!(message.head.sequence, receipt.sequence);
            assert_eq!(message.head.sender_serial, receipt.sender_serial);
            assert_eq!(&message.payload[..], *payload);
        }
        // All places are there again once all is credited, and not one more.
        modern.credit(61, heard.iter().map(MessageFrame::charged_bytes).sum());
        modern.ping();
        modern.credit(1, 0);
        assert_eq!(modern.goodbye().unwrap().code, GoodbyeCode::Protocol);
    }
}

/// Given a member whose queue holds less than a sender writes at once, then what fits comes together, the
/// rest as there is room, all of it in its order and each answered once (G5).
#[test]
fn g5_what_does_not_fit_waits_behind_what_does() {
    let fixture = Fixture::with(Limits { lane_messages: 64, ..small_queue(8) }, 1);
    let mut member = RawClient::greeted_with(fixture.stream(), &[BATCHES_FEATURE]);
    let mut sender = RawClient::greeted_with(fixture.stream(), &[BATCHES_FEATURE]);
    let group = Destination::Group(member.join("narrow"));
    let payloads = numbered(30);
    let payloads: Vec<&[u8]> = payloads.iter().map(|payload| &payload[..]).collect();
    sender.post_many(group, &payloads);
    member.wait_for_waiting_sends(1);
    let mut heard: Vec<MessageFrame> = Vec::new();
    while heard.len() < payloads.len() {
        let came = messages_in(vec![member.hear()]);
        let bytes = came.iter().map(MessageFrame::charged_bytes).sum();
        member.credit(u32::try_from(came.len()).unwrap(), bytes);
        heard.extend(came);
    }
    assert!(heard.is_sorted_by(|a, b| a.head.sequence < b.head.sequence));
    assert!(heard.iter().map(|message| &message.payload[..]).eq(payloads.iter().copied()));
    let mut answered = 0;
    while answered < payloads.len() {
        answered += match sender.hear() {
            BrokerFrame::Receipt { .. } => 1,
            BrokerFrame::Receipts(sends) => sends.serials.len(),
            other => panic!("{other:?}"),
        };
    }
    sender.ping();
}

/// Given sends that wait behind one that waits for room, when there is room for it and some more, then as many
/// as fit go together, and the others go on waiting (G3, G5).
#[test]
fn g5_what_has_waited_goes_together_once_there_is_room() {
    let fixture = Fixture::with(Limits { lane_messages: 64, ..small_queue(8) }, 1);
    let mut member = RawClient::greeted_with(fixture.stream(), &[BATCHES_FEATURE]);
    let mut sender = RawClient::greeted_with(fixture.stream(), &[BATCHES_FEATURE]);
    let group = Destination::Group(member.join("narrow"));
    let payloads = numbered(24);
    let payloads: Vec<&[u8]> = payloads.iter().map(|payload| &payload[..]).collect();
    let serials = sender.post_many(group, &payloads);
    let mut heard = Vec::new();
    for round in 0..3 {
        if round < 2 {
            member.wait_for_waiting_sends(1);
        }
        let (came, frames) = hear_messages(&mut member, 8);
        if round > 0 {
            let lengths = frames.iter().map(|frame| match frame {
                BrokerFrame::Messages(messages) => messages.count,
                _ => 1,
            });
            assert_eq!(lengths.collect::<Vec<_>>(), [1, 7], "the one that waited, the others");
        }
        member.credit(8, came.iter().map(MessageFrame::charged_bytes).sum());
        heard.extend(came);
    }
    assert!(heard.is_sorted_by(|a, b| a.head.sequence < b.head.sequence));
    assert!(heard.iter().map(|message| &message.payload[..]).eq(payloads.iter().copied()));
    let mut answered = Vec::new();
    while answered.len() < serials.len() {
        match sender.hear() {
            BrokerFrame::Receipt { id, receipt } => answered.push((id.serial, receipt.sequence)),
            BrokerFrame::Receipts(sends) => {
                answered.extend(sends.each().map(|(id, receipt)| (id.serial, receipt.sequence)));
            }
            other => panic!("{other:?}"),
        }
    }
    let sequences = heard.iter().map(|message| message.head.sequence);
    assert!(serials.into_iter().zip(sequences).eq(answered));
}
