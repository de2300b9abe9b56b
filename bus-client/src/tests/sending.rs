use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bus_core::wire::{
    BrokerFrame, ClientFrame, Failure, FailureCode, Request, Response, SendFlags, SendFrame,
};
use bus_core::{ContentType, Destination, EndpointId, GroupId, Limits, Receipt};

use crate::testing::{FIRST, FakeBroker, GROUP, pair, pair_with};
use crate::{Builder, Bus, Group, JoinOptions, Outgoing, PendingSend, SendError};

type Outcome = Result<Receipt, SendError>;

/// A bus and a handle of a group whose id it knows.
fn group() -> (Bus, Group, FakeBroker) {
    group_with(Limits::default(), Builder::new())
}

fn group_with(limits: Limits, builder: Builder) -> (Bus, Group, FakeBroker) {
    let (bus, mut broker) = pair_with(limits, builder);
    let group = bus.group("org.example.Chat").unwrap();
    let sending = in_thread(&group, |group| group.send("first"));
    broker.found(GROUP);
    let send = broker.send();
    broker.receipt(send.head.id);
    sending.join().unwrap().unwrap();
    (bus, group, broker)
}

fn in_thread<T: Send + 'static>(
    group: &Group,
    act: impl FnOnce(&Group) -> T + Send + 'static,
) -> JoinHandle<T> {
    let group = group.clone();
    thread::spawn(move || act(&group))
}

/// A member with loopback, and the handle.
fn loopback_member(limits: Limits, builder: Builder) -> (Bus, Group, FakeBroker) {
    let (bus, mut broker) = pair_with(limits, builder);
    let joining = thread::spawn({
        let bus = bus.clone();
        move || bus.join_with("org.example.Chat", JoinOptions::new().loopback(true))
    });
    broker.join();
    let member = joining.join().unwrap().unwrap();
    (bus, member.group().clone(), broker)
}

#[test]
fn a_send_looks_its_group_up_once_and_says_all() {
    let (bus, mut broker) = pair();
    let group = bus.group("org.example.Chat").unwrap();
    assert_eq!(group.id(), None);
    let sending = in_thread(&group, |group| {
        let message = Outgoing::json(&[1, 2]).unwrap().key("k").operation("op").field("a", "b");
        group.send(message)
    });
    broker.found(GROUP);
    let SendFrame { head, attributes, payload } = broker.send();
    assert_eq!(head.destination, Destination::Group(GROUP));
    assert_eq!(head.flags, SendFlags::empty());
    assert_eq!(payload, &b"[1,2]"[..]);
    assert_eq!(attributes.content_type(), ContentType::Json);
    assert_eq!((attributes.key(), attributes.operation()), (Some(&b"k"[..]), Some("op")));
    assert_eq!(attributes.field("a"), Some("b"));
    broker.receipt(head.id);
    assert_eq!(sending.join().unwrap().unwrap().sequence.get(), 1);
    assert_eq!(group.id(), Some(GROUP));

    let again = in_thread(&bus.group("org.example.Chat").unwrap(), |group| group.send("x"));
    let send = broker.send();
    broker.receipt(send.head.id);
    assert!(again.join().unwrap().is_ok(), "handles share what is known");
}

#[test]
fn a_send_to_a_group_that_does_not_exist_says_so() {
    let (bus, mut broker) = pair();
    let group = bus.group("org.example.Chat").unwrap();
    let sending = in_thread(&group, |group| group.send("x"));
    let (handle, serial, _) = broker.call();
    broker.error((handle, serial), FailureCode::NoSuchGroup);
    let error = sending.join().unwrap().unwrap_err();
    assert_eq!(error, SendError::NoSuchGroup(group.name().clone()));

    let pipelined = in_thread(&group, |group| group.start_send("x").map(|_| ()));
    let (handle, serial, _) = broker.call();
    broker.error((handle, serial), FailureCode::NoSuchGroup);
    assert!(matches!(pipelined.join().unwrap(), Err(SendError::NoSuchGroup(_))));
}

#[test]
fn a_group_that_was_made_anew_is_found_once_more() {
    let (_bus, group, mut broker) = group();
    let sending = in_thread(&group, |group| group.send("x"));
    let send = broker.send();
    broker.refuse(send.head.id, FailureCode::NoSuchGroup);
    broker.found(GroupId::from_raw(4));
    let send = broker.send();
    assert_eq!(send.head.destination, Destination::Group(GroupId::from_raw(4)));
    assert_eq!(send.payload, &b"x"[..]);
    broker.refuse(send.head.id, FailureCode::NoSuchGroup);
    let error = sending.join().unwrap().unwrap_err();
    assert!(matches!(error, SendError::NoSuchGroup(_)), "once, not for ever: {error}");
}

#[test]
fn a_direct_message_goes_to_an_endpoint() {
    let (bus, mut broker) = pair();
    let id = EndpointId::from_raw(55);
    let sending = thread::spawn(move || bus.endpoint(id).send("psst"));
    let send = broker.send();
    assert_eq!(send.head.destination, Destination::Endpoint(id));
    broker.refuse(send.head.id, FailureCode::EndpointClosed);
    assert_eq!(sending.join().unwrap(), Err(SendError::ReceiverShut(id)));
}

#[test]
fn large_payloads_leave_whole_among_small_ones() {
    let (_bus, group, mut broker) = group();
    let large: Vec<u8> = (0..3_000_000_u32).map(|i| i.to_le_bytes()[1]).collect();
    let expected = large.clone();
    let sending = in_thread(&group, move |group| {
        let sends =
            [group.start_send("before"), group.start_send(large), group.start_send("after")];
        sends.map(|send| send.unwrap().wait().unwrap())
    });
    let before = broker.send();
    assert_eq!(before.payload, &b"before"[..]);
    let middle = broker.send();
    assert!(middle.payload == expected);
    broker.receipt(before.head.id);
    broker.receipt(middle.head.id);
    let after = broker.send();
    assert_eq!(after.payload, &b"after"[..]);
    broker.receipt(after.head.id);
    sending.join().unwrap();
}

#[test]
fn g8_the_window_of_a_lane_is_kept() {
    let limits = Limits { lane_messages: 2, ..Limits::default() };
    let (_bus, group, mut broker) = group_with(limits, Builder::new());
    let sending = in_thread(&group, |group| {
        let sends: Vec<PendingSend> =
            (0..5).map(|number| group.start_send(number.to_string()).unwrap()).collect();
        sends.into_iter().map(PendingSend::wait).collect::<Vec<_>>()
    });
    let first = broker.send();
    let mut second = broker.send();
    let mut answered = first.head.id;
    for number in ["2", "3", "4"] {
        assert!(broker.is_quiet(), "two wait, and that is the window");
        broker.receipt(answered);
        answered = second.head.id;
        second = broker.send();
        assert_eq!(second.payload, number.as_bytes());
    }
    broker.receipt(answered);
    broker.receipt(second.head.id);
    let outcomes: Vec<Outcome> = sending.join().unwrap();
    let sequences: Vec<u64> =
        outcomes.into_iter().map(|outcome| outcome.unwrap().sequence.get()).collect();
    assert_eq!(sequences, [2, 3, 4, 5, 6]);
}

#[test]
fn receipts_of_lanes_may_come_in_any_order() {
    let (bus, group, mut broker) = group();
    let lane = bus.lane().unwrap();
    let other = group.on_lane(&lane);
    let one = in_thread(&group, |group| group.send("one"));
    let first = broker.send();
    let two = in_thread(&other, |group| group.send("two"));
    let second = broker.send();
    assert_eq!((first.head.id.lane.get(), second.head.id.lane.get()), (0, 1));
    broker.receipt(second.head.id);
    assert_eq!(two.join().unwrap().unwrap().sequence.get(), 2);
    broker.receipt(first.head.id);
    assert_eq!(one.join().unwrap().unwrap().sequence.get(), 3);
}

#[test]
fn an_endpoint_has_as_many_lanes_as_the_broker_says() {
    let limits = Limits { lanes: 3, ..Limits::default() };
    let (bus, group, mut broker) = group_with(limits, Builder::new());
    let lane = bus.lane().unwrap();
    let kept = bus.lane().unwrap();
    assert!(bus.lane().is_err());
    let on_lane = group.on_lane(&lane);
    drop(lane);
    assert!(bus.lane().is_err(), "a destination still uses it");
    let mut pending = on_lane.start_send("x").unwrap();
    drop(on_lane);
    assert!(bus.lane().is_err(), "a send still uses it");
    let send = broker.send();
    broker.receipt(send.head.id);
    while pending.try_wait().is_none() {
        bus.dispatch_timeout(Duration::from_secs(1)).unwrap();
    }
    drop(pending);
    let again = bus.lane().unwrap();
    assert_eq!(again.inner.number, send.head.id.lane);
    drop(kept);
}

#[test]
fn g6_would_block_names_the_full_ones_and_resumes_the_lane() {
    let (_bus, group, mut broker) = group();
    let trying = in_thread(&group, |group| group.try_send("x"));
    let send = broker.send();
    assert_eq!(send.head.flags, SendFlags::NONBLOCK);
    let full = [EndpointId::from_raw(5), EndpointId::from_raw(6)];
    let failure = Failure::new(FailureCode::WouldBlock, "").with_full(&full, 20);
    broker.put(&BrokerFrame::Refused { id: send.head.id, failure: Box::new(failure) });
    let error = trying.join().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "20 of the recipients have no room: endpoint 5, 6");
    assert!(matches!(broker.next(), ClientFrame::Resume { .. }));
}

#[test]
fn g3_nobody_elses_send_falls_with_a_refused_one() {
    let (_bus, group, mut broker) = group();
    let trying = in_thread(&group, |group| group.try_send("try"));
    let tried = broker.send();
    let other = in_thread(&group, |group| group.start_send("other")?.wait());
    // The other one is in its lane by now, or will be; it is behind in any case.
    assert!(broker.is_quiet());
    broker.refuse(tried.head.id, FailureCode::WouldBlock);
    assert!(trying.join().unwrap().is_err());
    assert!(matches!(broker.next(), ClientFrame::Resume { .. }));
    let send = broker.send();
    assert_eq!(send.payload, &b"other"[..]);
    broker.receipt(send.head.id);
    assert!(other.join().unwrap().is_ok());
}

#[test]
fn g3_a_pipeline_that_was_refused_stays_refused_until_it_is_resumed() {
    let (_bus, group, mut broker) = group();
    let sending = in_thread(&group, |group| {
        let tried = group.start_try_send("a")?;
        let behind = group.start_send("b")?;
        let alone = group.start_send(Outgoing::text("c").independent())?;
        Ok::<_, SendError>((tried.wait(), behind.wait(), alone.wait()))
    });
    let sends = [broker.send(), broker.send(), broker.send()];
    let flags = |at: usize| sends[at].head.flags - SendFlags::RECEIPT_MAY_WAIT;
    assert_eq!(flags(0), SendFlags::NONBLOCK);
    assert_eq!(flags(2), SendFlags::INDEPENDENT);
    assert_eq!(broker.next(), ClientFrame::Flush, "the application waits for the first");
    broker.refuse(sends[0].head.id, FailureCode::WouldBlock);
    broker.refuse(sends[1].head.id, FailureCode::LaneRefused);
    broker.receipt(sends[2].head.id);
    let (tried, behind, alone) = sending.join().unwrap().unwrap();
    assert!(matches!(tried, Err(SendError::WouldBlock { .. })));
    assert_eq!(behind, Err(SendError::LaneRefused));
    assert!(alone.is_ok());
    assert!(broker.is_quiet(), "that is for the application to say");
    group.resume();
    group.resume();
    assert!(matches!(broker.next(), ClientFrame::Resume { .. }));
    assert!(broker.is_quiet(), "once");
}

#[test]
fn g5_a_deadline_asks_to_cancel_and_the_broker_decides() {
    for (case, wins) in [("the message was faster", true), ("it was taken back", false)] {
        let (_bus, group, mut broker) = group();
        let sending = in_thread(&group, |group| group.send_deadline("x", Duration::from_millis(1)));
        let send = broker.send();
        let cancelled = broker.cancel();
        assert_eq!(cancelled, send.head.id, "{case}");
        if wins {
            broker.receipt(send.head.id);
            assert!(sending.join().unwrap().is_ok(), "{case}");
        } else {
            broker.refuse(send.head.id, FailureCode::Cancelled);
            assert_eq!(sending.join().unwrap(), Err(SendError::TimedOut), "{case}");
        }
    }
}

#[test]
fn g5_cancel_reaches_what_has_left_and_what_has_not() {
    let limits = Limits { lane_messages: 1, ..Limits::default() };
    let (_bus, group, mut broker) = group_with(limits, Builder::new());
    let first = group.start_send("first").unwrap();
    let sent = broker.send();
    let second = in_thread(&group, |group| group.send_deadline("second", Duration::from_millis(1)));
    assert_eq!(
        second.join().unwrap(),
        Err(SendError::TimedOut),
        "it never left, so nobody is asked"
    );
    assert!(broker.is_quiet());
    first.cancel();
    first.cancel();
    assert_eq!(broker.cancel(), sent.head.id);
    broker.refuse(sent.head.id, FailureCode::Cancelled);
    assert_eq!(first.wait(), Err(SendError::Cancelled));
    assert!(broker.is_quiet());
}

#[test]
fn a_send_in_flight_when_the_broker_goes_is_unknown() {
    let limits = Limits { lane_messages: 1, ..Limits::default() };
    let (bus, group, mut broker) = group_with(limits, Builder::new());
    let in_flight = in_thread(&group, |group| group.send("x"));
    broker.send();
    let queued = in_thread(&group, |group| group.send("y"));
    while bus.inner.connection.lock().queued_sends() == 0 {
        thread::yield_now();
    }
    drop(broker);
    let error = in_flight.join().unwrap().unwrap_err();
    assert!(matches!(error, SendError::Unknown(_)), "{error}");
    assert!(!error.reached_nobody());
    let error = queued.join().unwrap().unwrap_err();
    assert!(matches!(error, SendError::BrokerGone(_)), "{error}");
    assert!(error.reached_nobody() && error.broker_gone().is_some());
}

#[test]
fn g5_a_blocked_sender_takes_messages_into_its_backlog() {
    let limits = Limits { queue_messages: 2, ..Limits::default() };
    let (bus, group, mut broker) = group_with(limits, Builder::new().backlog(3, 1000));
    let sending = in_thread(&group, |group| group.send("x"));
    let send = broker.send();
    // Two in the queue and three in the backlog: all five come without anybody reading.
    for number in 1..=5_u32 {
        broker.message(&[0]);
        if number <= 3 {
            broker.await_credit(number, number.into());
        }
    }
    broker.cancel();
    broker.refuse(send.head.id, FailureCode::Cancelled);
    assert_eq!(sending.join().unwrap(), Err(SendError::WouldDeadlock(FIRST)));
    let mut sequences = Vec::new();
    while let Some(event) = bus.try_receive().unwrap() {
        sequences.push(event.into_message().unwrap().sequence().get());
    }
    assert_eq!(sequences, [2, 3, 4, 5, 6], "nothing is lost, and in order");
    broker.await_credit(5, 5);
}

#[test]
fn g5_a_deadlock_that_resolves_itself_is_none() {
    let limits = Limits { queue_messages: 1, ..Limits::default() };
    let (_bus, group, mut broker) = group_with(limits, Builder::new().backlog(0, 0));
    let sending = in_thread(&group, |group| group.send("x"));
    let send = broker.send();
    broker.message(b"");
    assert_eq!(broker.cancel(), send.head.id);
    broker.receipt(send.head.id);
    assert!(sending.join().unwrap().is_ok(), "the receipt was faster");
}

#[test]
fn g5_a_reader_on_another_thread_needs_no_backlog() {
    let limits = Limits { queue_messages: 1, ..Limits::default() };
    let (bus, group, mut broker) = group_with(limits, Builder::new().backlog(0, 0));
    broker.message(b"1");
    let reader = thread::spawn({
        let bus = bus.clone();
        move || {
            let first = bus.receive().unwrap().into_message().unwrap();
            (bus, first.sequence().get())
        }
    });
    let (bus, first) = reader.join().unwrap();
    assert_eq!(first, 2);
    let sending = in_thread(&group, |group| group.send("x"));
    let send = broker.send();
    broker.await_credit(1, 1);
    broker.message(b"2");
    broker.receipt(send.head.id);
    assert!(sending.join().unwrap().is_ok(), "no deadlock while another reads");
    assert!(bus.try_receive().unwrap().is_some());
}

#[test]
fn g5_a_sender_whose_own_queue_was_full_tries_again_when_it_has_room() {
    let limits = Limits { queue_messages: 2, ..Limits::default() };
    let (bus, group, mut broker) = loopback_member(limits, Builder::new().backlog(0, 0));
    // This thread is the one that reads, so the other one is in no danger of a deadlock.
    broker.message(b"0");
    assert!(bus.receive().is_ok());
    broker.await_credit(1, 1);
    broker.message(b"1");
    broker.message(b"2");
    while bus.inner.connection.lock().arrivals() < 4 {
        bus.dispatch_timeout(Duration::from_secs(1)).unwrap();
    }
    let pending = group.start_send("x").unwrap();
    let behind = in_thread(&group, |group| group.start_send("y")?.wait());
    let (first, second) = (broker.send(), broker.send());
    assert_eq!(second.payload, &b"y"[..], "it does not wait for the first one's receipt");
    broker.refuse(first.head.id, FailureCode::OwnQueueFull);
    // Not before there is room and all are back, and what is behind does not overtake it (G3).
    let event = bus.receive().unwrap();
    assert_eq!(event.into_message().unwrap().payload(), b"1");
    broker.refuse(second.head.id, FailureCode::LaneRefused);
    bus.dispatch_timeout(Duration::from_secs(1)).unwrap();
    // Who waits may have asked for the receipts.
    let stopped = std::iter::repeat_with(|| broker.next()).find(|next| *next != ClientFrame::Flush);
    assert!(matches!(stopped, Some(ClientFrame::Resume { .. })), "the lane goes on: {stopped:?}");
    let again = [broker.send(), broker.send()];
    assert_eq!(broker.credit[&0], (2, 2), "the credit comes first");
    assert_eq!(again.each_ref().map(|send| &send.payload[..]), [b"x", b"y"]);
    for send in again {
        broker.receipt(send.head.id);
    }
    assert!(pending.wait().is_ok());
    assert!(behind.join().unwrap().is_ok());
}

#[test]
fn g5_a_sender_whose_own_queue_stays_full_is_told_to_read() {
    let limits = Limits { queue_messages: 1, ..Limits::default() };
    let (_bus, group, mut broker) = loopback_member(limits, Builder::new().backlog(1, 100));
    let sending = in_thread(&group, |group| group.send("x"));
    let send = broker.send();
    broker.message(b"1");
    broker.await_credit(1, 1);
    broker.refuse(send.head.id, FailureCode::OwnQueueFull);
    assert!(matches!(broker.next(), ClientFrame::Resume { .. }));
    let again = broker.send();
    broker.message(b"2");
    broker.cancel();
    broker.refuse(again.head.id, FailureCode::OwnQueueFull);
    assert_eq!(sending.join().unwrap(), Err(SendError::WouldDeadlock(FIRST)));
}

#[test]
fn descriptors_leave_one_frame_at_a_time() {
    let (_bus, group, mut broker) = group();
    let (one, two) = UnixStream::pair().unwrap();
    let sending = in_thread(&group, move |group| {
        let first = group.start_send(Outgoing::text("1").descriptor(one))?;
        let second = group.start_send(Outgoing::text("2").descriptor(two))?;
        Ok::<_, SendError>((first.wait()?, second.wait()?))
    });
    let first = broker.send();
    assert_eq!((first.head.descriptors, broker.descriptors.len()), (1, 1));
    broker.receipt(first.head.id);
    assert!(broker.is_quiet(), "the first are not yet taken off the socket");
    broker.put(&BrokerFrame::DescriptorsTaken);
    let second = broker.send();
    assert_eq!((second.head.descriptors, broker.descriptors.len()), (1, 2));
    broker.put(&BrokerFrame::DescriptorsTaken);
    broker.receipt(second.head.id);
    sending.join().unwrap().unwrap();
}

#[test]
fn g6_writability_is_told_once_and_can_be_given_up() {
    let (_bus, group, mut broker) = group();
    let mut writable = group.watch_writable();
    let ClientFrame::Watch { endpoint, serial, destination, .. } = broker.next() else {
        panic!("a watch was expected");
    };
    assert_eq!(destination, Destination::Group(GROUP));
    assert_eq!(writable.is_writable(), Ok(false));
    assert_eq!(writable.wait_deadline(Duration::from_millis(1)), Ok(false));
    broker.put(&BrokerFrame::Writable { endpoint, serial });
    assert_eq!(writable.wait_deadline(Duration::from_secs(20)), Ok(true));
    assert_eq!(writable.is_writable(), Ok(true), "it stays so");
    drop(writable);
    assert!(broker.is_quiet());

    drop(group.watch_writable());
    let watched = broker.next();
    let ClientFrame::Unwatch { serial: given_up, .. } = broker.next() else {
        panic!("UNWATCH was expected");
    };
    assert!(matches!(watched, ClientFrame::Watch { serial, .. } if serial == given_up));
    // It may have crossed.
    broker.put(&BrokerFrame::Writable { endpoint, serial: given_up });
    let sending = in_thread(&group, |group| group.send("x"));
    let send = broker.send();
    broker.receipt(send.head.id);
    assert!(sending.join().unwrap().is_ok());
}

#[test]
fn g6_a_watch_looks_its_group_up_and_tells_if_there_is_none() {
    let (bus, mut broker) = pair();
    let group = bus.group("a").unwrap();
    let writable = group.watch_writable();
    broker.found(GROUP);
    let waiting = thread::spawn(move || writable.wait());
    let ClientFrame::Watch { endpoint, serial, .. } = broker.next() else {
        panic!("a watch was expected");
    };
    broker.put(&BrokerFrame::Writable { endpoint, serial });
    assert_eq!(waiting.join().unwrap(), Ok(()));

    let writable = bus.group("b").unwrap().watch_writable();
    let (handle, serial, _) = broker.call();
    broker.error((handle, serial), FailureCode::NoSuchGroup);
    assert!(writable.wait().is_err());
}

#[test]
fn a_cork_gathers_sends_into_one_write() {
    let (bus, group, mut broker) = group();
    let cork = bus.cork();
    let sends = ["a", "b", "c"].map(|text| group.start_send(text).unwrap());
    assert!(broker.is_quiet());
    drop(cork);
    assert!(broker.read());
    let ids = [0; 3].map(|_| broker.send().head.id);
    assert!(broker.is_quiet(), "all had come with one read");
    for id in ids {
        broker.receipt(id);
    }
    for send in sends {
        send.wait().unwrap();
    }
}

#[test]
fn who_waits_is_not_held_back_by_a_cork() {
    let (bus, group, mut broker) = group();
    let _cork = bus.cork();
    let sending = in_thread(&group, |group| group.send("x"));
    let send = broker.send();
    broker.receipt(send.head.id);
    assert!(sending.join().unwrap().is_ok());
}

#[test]
fn a_dropped_send_is_not_taken_back_and_its_answer_goes_nowhere() {
    let (_bus, group, mut broker) = group();
    drop(group.start_send("x").unwrap());
    let send = broker.send();
    broker.receipt(send.head.id);
    let sending = in_thread(&group, |group| group.send("y"));
    let send = broker.send();
    assert_eq!(send.payload, &b"y"[..]);
    broker.receipt(send.head.id);
    assert!(sending.join().unwrap().is_ok());
}

#[test]
fn refusals_are_told_apart() {
    type Expect = fn(&SendError) -> bool;
    let cases: [(FailureCode, Expect); 6] = [
        (
            FailureCode::PermissionDenied,
            |e| matches!(e, SendError::PermissionDenied(text) if text == "because"),
        ),
        (FailureCode::LimitExceeded, |e| matches!(e, SendError::LimitExceeded(_))),
        (FailureCode::TooLarge, |e| matches!(e, SendError::TooLarge { bytes: 1, .. })),
        (FailureCode::RecipientStalled, |e| matches!(e, SendError::RecipientStalled)),
        (
            FailureCode::from("on-holiday"),
            |e| matches!(e, SendError::Refused { code, .. } if code == "on-holiday"),
        ),
        (FailureCode::Cancelled, |e| matches!(e, SendError::Cancelled)),
    ];
    let (_bus, group, mut broker) = group();
    for (code, expect) in cases {
        let sending = in_thread(&group, |group| group.send("x"));
        let send = broker.send();
        broker.refuse(send.head.id, code.clone());
        let error = sending.join().unwrap().unwrap_err();
        assert!(expect(&error), "{code}: {error:?}");
        assert!(error.reached_nobody());
    }
}

#[test]
fn calls_ask_what_they_say() {
    let (bus, mut broker) = pair();
    let asking = thread::spawn(move || {
        let created = bus.create("a.b").map(|group| group.id());
        let twice = bus.create("a.b").map(|_| ());
        let groups = bus.groups();
        let missing = bus.find_group("nobody");
        let shut = bus.shutdown_receive();
        (created, twice, groups, missing, shut)
    });
    let (handle, serial, request) = broker.call();
    assert!(matches!(request, Request::Create { .. }));
    let sequence = bus_core::Sequence::from_raw(1);
    broker.done((handle, serial), Response::Created { group_id: GROUP, sequence });
    let (handle, serial, _) = broker.call();
    broker.error((handle, serial), FailureCode::GroupExists);
    let (handle, serial, request) = broker.call();
    assert_eq!(request, Request::Groups);
    for (part, more) in [(["a", "b"], true), (["c", "d"], false)] {
        let groups = part.map(|name| bus_core::wire::GroupInfo {
            name: name.parse().unwrap(),
            group_id: GROUP,
            members: 1,
            creator: None,
            retain: None,
            gated: false,
        });
        let groups = groups.to_vec();
        let response = Response::Groups { sequence, groups };
        broker.put(&match more {
            true => BrokerFrame::Part { endpoint: handle, serial, response },
            false => BrokerFrame::Done { endpoint: handle, serial, response },
        });
    }
    let (handle, serial, _) = broker.call();
    broker.error((handle, serial), FailureCode::NoSuchGroup);
    let (handle, serial, request) = broker.call();
    assert_eq!(request, Request::ShutdownReceive);
    broker.done((handle, serial), Response::Shut { sequence });

    let (created, twice, groups, missing, shut) = asking.join().unwrap();
    assert_eq!(created.unwrap(), Some(GROUP));
    assert!(twice.unwrap_err().to_string().contains("exists already"));
    let names: Vec<String> = groups.unwrap().iter().map(|group| group.name.to_string()).collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
    assert_eq!(missing.unwrap(), None);
    assert_eq!(shut.unwrap(), sequence);
}

#[test]
fn a_listing_that_is_dropped_is_given_up_and_what_was_under_way_is_passed_over() {
    let (bus, mut broker) = pair();
    let listing = thread::spawn(move || {
        let mut listing = bus.list_groups().unwrap();
        let first = listing.next().unwrap().unwrap();
        drop(listing);
        (first, bus)
    });
    let (endpoint, serial, request) = broker.call();
    assert_eq!(request, Request::Groups);
    let group = |name: &str| bus_core::wire::GroupInfo {
        name: name.parse().unwrap(),
        group_id: GROUP,
        members: 1,
        creator: None,
        retain: None,
        gated: true,
    };
    let sequence = bus_core::Sequence::from_raw(7);
    let part = |name| Response::Groups { sequence, groups: vec![group(name)] };
    broker.put(&BrokerFrame::Part { endpoint, serial, response: part("a") });
    assert_eq!(broker.next(), ClientFrame::Unwatch { endpoint, serial });
    broker.put(&BrokerFrame::Part { endpoint, serial, response: part("b") });
    broker.done((endpoint, serial), part("c"));
    let (first, bus) = listing.join().unwrap();
    assert!(first.gated && first.name.as_str() == "a");
    let asking = thread::spawn(move || bus.ping().map(|_| ()));
    let (endpoint, serial, _) = broker.call();
    broker.done((endpoint, serial), Response::Pong);
    asking.join().unwrap().unwrap();
}

#[test]
fn a_receipt_that_somebody_waits_for_is_asked_for_once() {
    let (_bus, group, mut broker) = group();
    let sending = in_thread(&group, |group| {
        let pending: Vec<_> = ["a", "b", "c"]
            .into_iter()
            .map(|text| group.start_send(text))
            .collect::<Result<_, _>>()?;
        pending.into_iter().map(PendingSend::wait).collect::<Result<Vec<_>, _>>()
    });
    let sends = [broker.send(), broker.send(), broker.send()];
    for send in &sends {
        assert_eq!(send.head.flags, SendFlags::RECEIPT_MAY_WAIT);
    }
    assert_eq!(broker.next(), ClientFrame::Flush);
    for send in &sends {
        broker.receipt(send.head.id);
    }
    assert_eq!(sending.join().unwrap().unwrap().len(), 3);
    assert!(broker.is_quiet(), "the first brought the others");
}
