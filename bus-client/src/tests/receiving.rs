use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bus_core::wire::{
    BrokerFrame, ChangeCode, ClientFrame, EvictionReason, Failure, FailureCode, Handle, Notice,
    Request, Response, ViewNotice,
};
use bus_core::{Attributes, ContentType, Gap, GroupId, Interest, Limits, Sequence};

use crate::apart::Haste;
use crate::testing::{GROUP, PATIENCE, encoded, pair, pair_with};
use crate::{Builder, Bus, Event, JoinError, Message};

fn small_queue(messages: u32) -> Limits {
    Limits { queue_messages: messages, ..Limits::default() }
}

fn message(bus: &Bus) -> Message {
    match bus.receive_deadline(PATIENCE).unwrap() {
        Some(Event::Message(message)) => message,
        other => panic!("{other:?} where a message was expected"),
    }
}

#[test]
fn frames_that_come_in_pieces_arrive_whole() {
    let (bus, mut broker) = pair();
    let first = encoded(&BrokerFrame::from(broker.group_message(b"one")));
    let second = encoded(&BrokerFrame::from(broker.group_message(b"two")));
    let all = [first, second].concat();
    for byte in &all[..all.len() - 1] {
        broker.put_bytes(&[*byte]);
        // Each piece is read by itself.
        let _ = bus.dispatch();
    }
    assert_eq!(message(&bus).payload(), b"one");
    assert!(bus.try_receive().unwrap().is_none());
    broker.put_bytes(&all[all.len() - 1..]);
    assert_eq!(message(&bus).payload(), b"two");
}

#[test]
fn large_messages_arrive_whole_among_small_ones() {
    let (bus, mut broker) = pair();
    let large: Vec<u8> = (0..900_000_u32).map(|i| i.to_le_bytes()[1]).collect();
    let expected = large.clone();
    let sending = thread::spawn(move || {
        broker.message(b"before");
        broker.message(&large);
        broker.message(b"after");
        broker
    });
    assert_eq!(message(&bus).payload(), b"before");
    assert!(message(&bus).into_payload() == expected);
    assert_eq!(message(&bus).payload(), b"after");
    sending.join().unwrap();
}

#[test]
fn a_message_tells_all_that_its_sender_said() {
    let (bus, mut broker) = pair();
    let joining = thread::spawn({
        let bus = bus.clone();
        move || bus.join("org.example.Chat").map(|_| ())
    });
    broker.join();
    joining.join().unwrap().unwrap();

    let mut frame = broker.group_message(br#"{"a": [1, 2]}"#);
    frame.attributes = Attributes::builder()
        .key(b"k")
        .operation("op")
        .content_type(ContentType::Json)
        .field("x", "1")
        .field("y", "2")
        .build()
        .unwrap();
    frame.head.commit_time = 1_500_000_000;
    frame.head.missed =
        Some(Gap { count: 2, first: Sequence::from_raw(1), last: Sequence::from_raw(2) });
    broker.put(&BrokerFrame::from(frame));
    let message = message(&bus);
    assert_eq!(message.group(), Some("org.example.Chat"));
    assert_eq!(message.group_id(), Some(GROUP));
    assert_eq!(message.sender().get(), 8);
    assert_eq!((message.credentials().uid, message.credentials().pid), (1, 2));
    assert_eq!(message.key(), Some(&b"k"[..]));
    assert_eq!(message.operation(), Some("op"));
    assert_eq!(message.fields().collect::<Vec<_>>(), [("x", "1"), ("y", "2")]);
    assert_eq!(message.field("y"), Some("2"));
    assert_eq!(message.content_type(), ContentType::Json);
    let value: std::collections::HashMap<String, Vec<u8>> = message.decode().unwrap();
    assert_eq!(value["a"], [1, 2]);
    assert!(message.decode::<String>().is_err());
    let since = message.commit_time().duration_since(std::time::UNIX_EPOCH);
    assert_eq!(since.unwrap(), Duration::from_millis(1500));
    let missed = message.missed().unwrap();
    assert_eq!((missed.count, missed.last.get()), (2, 2));
    assert_eq!(missed.group.as_ref().unwrap().as_str(), "org.example.Chat");
}

#[test]
fn a_direct_message_has_no_group() {
    let (bus, mut broker) = pair();
    let mut frame = broker.group_message(b"to you");
    frame.head.group = None;
    broker.put(&BrokerFrame::from(frame));
    let message = message(&bus);
    assert_eq!((message.group(), message.group_id()), (None, None));
    assert_eq!(message.text(), Some("to you"));
    assert!(message.decode::<String>().is_err(), "plain bytes are untyped");
}

#[test]
fn g7_a_gap_after_the_last_message_is_an_event() {
    let (bus, mut broker) = pair();
    broker.put(&BrokerFrame::Notice {
        endpoint: Handle::FIRST,
        notice: Notice::Unknown {
            kind: "of-tomorrow".to_owned(),
            body: {
                let mut body = Vec::new();
                let map = std::collections::BTreeMap::from([("type", "of-tomorrow")]);
                ciborium::into_writer(&map, &mut body).unwrap();
                body.into()
            },
            charged: false,
        },
    });
    let gap = Gap { count: 3, first: Sequence::from_raw(4), last: Sequence::from_raw(9) };
    broker.put(&BrokerFrame::Notice {
        endpoint: Handle::FIRST,
        notice: Notice::Gap { group_id: GROUP, gap },
    });
    match bus.receive_deadline(PATIENCE).unwrap() {
        Some(Event::Gap(gap)) => {
            assert_eq!((gap.count, gap.first.get(), gap.last.get()), (3, 4, 9));
            assert_eq!((gap.group_id, gap.group), (GROUP, None));
        }
        other => panic!("{other:?}, and notices that are unknown are passed over"),
    }
}

#[test]
fn g8_an_eviction_is_told_at_its_place_and_ends_the_membership() {
    let (bus, mut broker) = pair();
    let joining = thread::spawn({
        let bus = bus.clone();
        move || bus.join("org.example.Chat").map(|_| ())
    });
    broker.join();
    joining.join().unwrap().unwrap();
    broker.message(b"before");
    broker.put(&BrokerFrame::Notice {
        endpoint: Handle::FIRST,
        notice: Notice::Evicted {
            group_id: GROUP,
            sequence: Sequence::from_raw(40),
            reason: EvictionReason::Stalled,
            stalled: Duration::from_secs(10),
            queued_messages: 256,
            back_off: Duration::from_secs(1),
        },
    });
    assert_eq!(message(&bus).payload(), b"before");
    match bus.receive_deadline(PATIENCE).unwrap() {
        Some(Event::Evicted(evicted)) => {
            assert_eq!(evicted.group.unwrap().as_str(), "org.example.Chat");
            assert_eq!((evicted.group_id, evicted.sequence.get()), (GROUP, 40));
            assert_eq!(evicted.stalled, Duration::from_secs(10));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bus.inner.connection.lock().known_groups(0), 0);

    let joining = thread::spawn(move || bus.join("org.example.Chat").map(|_| ()));
    let (endpoint, serial, _) = broker.call();
    let failure = Failure::new(FailureCode::BackOff, "").with_retry_after(Duration::from_secs(1));
    broker.put(&BrokerFrame::Error { endpoint, serial, failure: Box::new(failure) });
    let error = joining.join().unwrap().unwrap_err();
    assert!(matches!(error, JoinError::BackOff { .. }), "{error}");
    assert!(error.to_string().contains("drop-when-full"), "{error}");
}

#[test]
fn g4_messages_that_overtake_the_answer_to_a_join_wait_for_the_name() {
    let (bus, mut broker) = pair();
    let joining = thread::spawn({
        let bus = bus.clone();
        move || bus.join("org.example.Chat").map(|_| ())
    });
    let (handle, serial, _) = broker.call();
    broker.message(b"early");
    assert!(bus.try_receive().unwrap().is_none());
    let batch = thread::spawn({
        let bus = bus.clone();
        move || {
            let mut events = Vec::new();
            bus.receive_batch(&mut events, 8).map(|_| events)
        }
    });
    let connection = &bus.inner.connection;
    while !batch.is_finished()
        && (connection.lock().arrivals() < 1 || !connection.lock().is_read(0))
    {
        bus.dispatch().unwrap();
    }
    let response = Response::Joined {
        group_id: GROUP,
        sequence: Sequence::from_raw(0),
        created: false,
        members: 2,
    };
    broker.done((handle, serial), response);
    joining.join().unwrap().unwrap();
    let early = batch.join().unwrap().unwrap().remove(0).into_message().unwrap();
    assert_eq!(early.group(), Some("org.example.Chat"));
    broker.message(b"later");
    assert_eq!(message(&bus).group(), Some("org.example.Chat"));
}

#[test]
fn g4_what_came_before_a_leave_still_has_its_name() {
    let (bus, mut broker) = pair();
    let leaving = thread::spawn({
        let bus = bus.clone();
        move || {
            let member = bus.join("org.example.Chat").unwrap();
            let sequence = member.leave().unwrap();
            (member, sequence)
        }
    });
    broker.join();
    broker.message(b"before");
    let (handle, serial, request) = broker.call();
    assert_eq!(request, Request::Leave { group_id: GROUP });
    let sequence = Sequence::from_raw(50);
    broker.done((handle, serial), Response::Left { sequence });
    let (_member, left) = leaving.join().unwrap();
    assert_eq!(left, sequence);
    assert_eq!(message(&bus).group(), Some("org.example.Chat"));
}

#[test]
fn credit_is_exact_when_the_reader_goes_to_sleep() {
    let (bus, mut broker) = pair();
    for payload in [&b"a"[..], b"bb", b"ccc"] {
        broker.message(payload);
    }
    let reading = thread::spawn(move || {
        for _ in 0..3 {
            message(&bus);
        }
        // Sleeps until the broker has gone.
        bus.receive().is_err()
    });
    broker.await_credit(3, 6);
    drop(broker);
    assert!(reading.join().unwrap());
}

#[test]
fn credit_is_exact_when_a_reader_that_polls_finds_nothing() {
    let (bus, mut broker) = pair();
    broker.message(b"a");
    assert_eq!(message(&bus).payload(), b"a");
    assert!(bus.try_receive().unwrap().is_none());
    broker.await_credit(1, 1);
}

#[test]
fn credit_is_gathered_while_there_is_more_to_read() {
    let (bus, mut broker) = pair_with(small_queue(64), Builder::new());
    for _ in 0..32 {
        broker.message(b"x");
    }
    // All of it is here before the first is taken.
    while bus.inner.connection.lock().arrivals() < 32 {
        bus.dispatch_timeout(PATIENCE).unwrap();
    }
    for _ in 0..32 {
        message(&bus);
    }
    assert!(bus.try_receive().unwrap().is_none(), "who looks for more returns the rest");
    broker.await_credit(32, 32);
    assert!(broker.credit_frames <= 16, "gathered: {} frames", broker.credit_frames);
}

#[test]
fn what_is_taken_in_one_batch_is_credited_with_one_frame() {
    let (bus, mut broker) = pair_with(small_queue(32), Builder::new());
    for _ in 0..32 {
        // Sent to this endpoint alone: what is plain is taken by another way.
        let mut frame = broker.group_message(b"1");
        frame.head.group = None;
        broker.put(&BrokerFrame::from(frame));
    }
    while bus.inner.connection.lock().arrivals() < 32 {
        bus.dispatch_timeout(PATIENCE).unwrap();
    }
    let mut events = Vec::new();
    assert_eq!(bus.receive_batch(&mut events, 32).unwrap(), 32);
    broker.await_credit(32, 32);
    assert_eq!(broker.credit_frames, 1, "and not one for each quarter of the queue");
}

#[test]
fn releases_that_nobody_waits_for_are_told_after_a_nap_at_the_latest() {
    let (bus, mut broker) = pair();
    let mut state = bus.inner.connection.lock();
    let chores = Arc::clone(state.all_chores());
    assert!(!state.before_nap(), "there is nothing to tell");
    chores.release(1, 1 << 20, Haste::None);
    chores.release(2, 1 << 20, Haste::None);
    assert!(state.before_nap(), "who comes back soon may keep them");
    state.take_in();
    assert!(broker.is_quiet());
    state.before_sleep();
    assert_eq!(broker.next(), ClientFrame::Release(vec![1, 2]));
    chores.release(3, 1 << 20, Haste::None);
    // Told when the lock is let go, or with what is said before the next sleep.
    chores.release(4, 1, Haste::Some);
    assert!(!state.before_nap(), "somebody waits");
    assert_eq!(broker.next(), ClientFrame::Release(vec![3, 4]));
    assert!(!state.before_nap(), "all was told");
    drop(state);
}

#[test]
fn g8_messages_beyond_the_credit_end_the_connection() {
    let limits = Limits { requests: 0, ..small_queue(2) };
    let (bus, mut broker) = pair_with(limits, Builder::new());
    for _ in 0..4 {
        broker.message(b"x");
    }
    while bus.dispatch_timeout(PATIENCE).is_ok() {}
    // Two of the queue, and one in the place that is kept.
    for _ in 0..3 {
        message(&bus);
    }
    let error = bus.receive().unwrap_err();
    assert!(error.to_string().contains("credit"), "{error}");
}

#[test]
fn events_end_after_the_loss_of_the_broker() {
    let (bus, mut broker) = pair();
    broker.message(b"1");
    broker.message(b"2");
    drop(broker);
    let outcomes: Vec<bool> = bus.events().map(|event| event.is_ok()).collect();
    assert_eq!(outcomes, [true, true, false]);
}

#[test]
fn a_deadline_without_an_event_gives_none() {
    let (bus, _broker) = pair();
    let event = bus.receive_deadline(Duration::from_millis(1)).unwrap();
    assert!(event.is_none());
}

#[test]
fn descriptors_come_with_their_message_and_are_acknowledged() {
    let (bus, mut broker) = pair();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut frame = broker.group_message(b"take this");
    frame.head.descriptors = 1;
    broker.message(b"plain");
    broker.put_with_descriptors(&BrokerFrame::from(frame), &[theirs.into()]);
    broker.message(b"plain");
    assert!(message(&bus).take_descriptors().is_empty());
    let mut with = message(&bus);
    assert!(!with.descriptors_lost());
    let taken = with.take_descriptors();
    assert_eq!((taken.len(), with.take_descriptors().len()), (1, 0));
    assert!(message(&bus).take_descriptors().is_empty());
    assert_eq!(broker.next(), ClientFrame::DescriptorsTaken);

    let mut file = File::from(taken.into_iter().next().unwrap());
    file.write_all(b"hi").unwrap();
    let mut said = [0; 2];
    let mut ours = ours;
    ours.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hi");
    let flags = rustix::io::fcntl_getfd(&file).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn descriptors_that_did_not_come_are_lost_and_the_message_is_not() {
    let (bus, mut broker) = pair();
    let mut frame = broker.group_message(b"announced");
    frame.head.descriptors = 2;
    broker.put(&BrokerFrame::from(frame));
    let mut message = message(&bus);
    assert!(message.descriptors_lost());
    assert!(message.take_descriptors().is_empty());
    assert_eq!(broker.next(), ClientFrame::DescriptorsTaken);
}

#[test]
fn descriptors_that_were_not_announced_end_the_connection() {
    let (bus, mut broker) = pair();
    let (one, two) = UnixStream::pair().unwrap();
    let mut frame = broker.group_message(b"one of two");
    frame.head.descriptors = 1;
    broker.put_with_descriptors(&BrokerFrame::from(frame), &[one.into(), two.into()]);
    let error = bus.receive().unwrap_err();
    assert!(error.to_string().contains("announces 1"), "{error}");
}

#[test]
fn each_endpoint_of_a_connection_has_its_own_queue() {
    let (bus, mut broker) = pair();
    let opening = thread::spawn({
        let bus = bus.clone();
        move || bus.open_endpoint()
    });
    let (handle, serial, request) = broker.call();
    assert_eq!((handle.get(), request), (1, Request::OpenEndpoint));
    let endpoint = bus_core::EndpointId::from_raw(77);
    broker.done((handle, serial), Response::Opened { endpoint });
    let second = opening.join().unwrap().unwrap();
    assert_eq!(second.endpoint_id(), endpoint);

    let mut frame = broker.group_message(b"for the second");
    frame.head.endpoint = handle;
    broker.put(&BrokerFrame::from(frame));
    broker.message(b"for the first");
    assert_eq!(message(&bus).payload(), b"for the first");
    let received = second.receive().unwrap().into_message().unwrap();
    assert_eq!(received.payload(), b"for the second");
    assert!(second.try_receive().unwrap().is_none());
    drop(second);
    let (closing, serial, request) = broker.call();
    assert_eq!((closing, request), (handle, Request::CloseEndpoint));
    assert_eq!(broker.credit[&1], (1, 14));

    // Until the answer, messages may still be under way.
    let mut late = broker.group_message(b"late");
    late.head.endpoint = handle;
    broker.put(&BrokerFrame::from(late));
    broker.done((handle, serial), Response::Closed);
    broker.message(b"still here");
    assert_eq!(message(&bus).payload(), b"still here");
}

#[test]
fn an_endpoint_that_the_broker_does_not_open_is_an_error() {
    let (bus, mut broker) = pair();
    let opening = thread::spawn({
        let bus = bus.clone();
        move || bus.open_endpoint()
    });
    let (handle, serial, _) = broker.call();
    broker.error((handle, serial), FailureCode::LimitExceeded);
    let error = opening.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("limit exceeded"), "{error}");
    broker.message(b"the first goes on");
    message(&bus);
}

#[test]
fn names_of_groups_that_were_left_are_forgotten_in_time() {
    let (bus, mut broker) = pair();
    let churning = thread::spawn({
        let bus = bus.clone();
        move || {
            for number in 0..3 {
                let member = bus.join(&format!("g{number}")).unwrap();
                member.leave().unwrap();
            }
        }
    });
    for number in 0..3 {
        let (handle, serial, _) = broker.call();
        let group_id = GroupId::from_raw(100 + number);
        let sequence = Sequence::from_raw(2 * number);
        let joined = Response::Joined { group_id, sequence, created: true, members: 1 };
        broker.done((handle, serial), joined);
        let (handle, serial, _) = broker.call();
        let sequence = Sequence::from_raw(2 * number + 1);
        broker.done((handle, serial), Response::Left { sequence });
    }
    churning.join().unwrap();
    assert_eq!(bus.inner.connection.lock().known_groups(0), 3);
    let mut frame = broker.group_message(b"later");
    frame.head.sequence = Sequence::from_raw(4);
    frame.head.group = Some(GroupId::from_raw(102));
    broker.put(&BrokerFrame::from(frame));
    let mut events = Vec::new();
    bus.receive_batch(&mut events, 8).unwrap();
    let later = events.remove(0).into_message().unwrap();
    assert_eq!(later.group(), Some("g2"), "it was left at 5");
    assert_eq!(bus.inner.connection.lock().known_groups(0), 1);
}

fn view_notice(sequence: u64, members: u32) -> Notice {
    Notice::View(Box::new(ViewNotice {
        group_id: GROUP,
        group: "org.example.Chat".parse().unwrap(),
        sequence: Sequence::from_raw(sequence),
        change: if members == 0 { ChangeCode::Left } else { ChangeCode::Joined },
        endpoint: crate::testing::FIRST,
        uid: 1,
        pid: 2,
        members,
        ended: false,
        missed: None,
    }))
}

/// Answers a watch on a membership.
fn watching(broker: &mut crate::testing::FakeBroker, sequence: u64, members: u32) -> Request {
    let (endpoint, serial, request) = broker.call();
    let sequence = Sequence::from_raw(sequence);
    let response = Response::Watching { group_id: GROUP, sequence, members };
    broker.put(&BrokerFrame::Done { endpoint, serial, response });
    request
}

fn notice(broker: &mut crate::testing::FakeBroker, notice: Notice) {
    broker.put(&BrokerFrame::Notice { endpoint: Handle::FIRST, notice });
}

#[test]
fn g4_a_view_is_an_event_and_gives_its_place_back_when_it_is_taken() {
    let (bus, mut broker) = pair_with(small_queue(2), Builder::new());
    let watcher = thread::spawn({
        let bus = bus.clone();
        move || bus.watch_members("org.example.Chat")
    });
    let request = watching(&mut broker, 10, 0);
    assert!(matches!(request, Request::WatchGroup { interest: Interest::Members, .. }));
    let watch = watcher.join().unwrap().unwrap();
    assert_eq!((watch.sequence().get(), watch.members()), (10, 0));
    notice(&mut broker, view_notice(11, 1));
    notice(&mut broker, view_notice(12, 2));
    for members in [1, 2] {
        match bus.receive_deadline(PATIENCE).unwrap() {
            Some(Event::View(change)) => assert_eq!(change.members, members),
            other => panic!("{other:?}"),
        }
    }
    bus.dispatch().unwrap();
    broker.await_credit(2, 0);
}

#[test]
fn a_notice_of_a_later_version_that_takes_a_place_gives_it_back() {
    let (bus, mut broker) = pair_with(small_queue(1), Builder::new());
    for _ in 0..3 {
        let body = std::collections::BTreeMap::from([("type", "of-tomorrow")]);
        let mut bytes = Vec::new();
        ciborium::into_writer(&body, &mut bytes).unwrap();
        let kind = "of-tomorrow".to_owned();
        notice(&mut broker, Notice::Unknown { kind, body: bytes.into(), charged: true });
    }
    assert!(bus.try_receive().unwrap().is_none());
    broker.await_credit(3, 0);
}

#[test]
fn an_interest_knows_and_fills_no_queue_and_asks_again_where_it_missed_something() {
    let (bus, mut broker) = pair_with(small_queue(1), Builder::new());
    let group = bus.group("org.example.Chat").unwrap();
    let begin = thread::spawn(move || group.watch_interest());
    let request = watching(&mut broker, 10, 0);
    assert!(matches!(request, Request::WatchGroup { interest: Interest::Anybody, .. }));
    let interest = begin.join().unwrap().unwrap();
    assert!(!interest.is_anybody().unwrap());
    notice(&mut broker, view_notice(11, 1));
    interest.wait(true).unwrap();
    notice(&mut broker, view_notice(12, 0));
    interest.wait(false).unwrap();
    broker.await_credit(2, 0);
    assert!(bus.try_receive().unwrap().is_none());

    let gap = Gap { count: 1, first: Sequence::from_raw(13), last: Sequence::from_raw(13) };
    notice(&mut broker, Notice::ViewsLost { group_id: GROUP, gap });
    let waiting = thread::spawn(move || {
        interest.wait(true).unwrap();
        interest
    });
    watching(&mut broker, 14, 1);
    let interest = waiting.join().unwrap();
    drop(interest);
    assert!(matches!(broker.call().2, Request::UnwatchGroup { group_id: GROUP }));
    assert!(bus.try_receive().unwrap().is_none());
}
