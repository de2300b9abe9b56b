//! The library against a real broker in this process: what several programs do to each other is
//! here done by several connections.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use bus_client::{
    Bus, EmbeddedBroker, Event, GoneReason, JoinError, JoinOptions, Limits, Message, Outgoing,
    PendingSend, ReceiveError, SendError,
};

/// Longer than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

fn broker(limits: Limits) -> EmbeddedBroker {
    EmbeddedBroker::builder().limits(limits).start().unwrap()
}

fn small_queues(messages: u32) -> EmbeddedBroker {
    broker(Limits {
        queue_messages: messages,
        // Nobody here is dead, only slow.
        stall: Duration::from_secs(600),
        ..Limits::default()
    })
}

fn message(bus: &Bus) -> Message {
    match bus.receive_deadline(PATIENCE).unwrap() {
        Some(Event::Message(message)) => message,
        other => panic!("{other:?} where a message was expected"),
    }
}

fn number(message: &Message) -> u32 {
    message.text().unwrap().parse().unwrap()
}

/// Runs both at the same time.
fn both<T: Send>(one: impl FnOnce() -> T + Send, other: impl FnOnce() -> T + Send) -> [T; 2] {
    thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        [one.join().unwrap(), other]
    })
}

#[test]
fn g5_two_programs_that_wait_for_each_other_go_on() {
    const MESSAGES: u32 = 200;
    let broker = small_queues(8);
    let [a, b] = [0; 2].map(|_| broker.connect().unwrap());
    a.join("to.a").unwrap();
    b.join("to.b").unwrap();
    let start = Barrier::new(2);
    // Neither reads before it has sent everything, and the other's queue holds eight.
    let program = |bus: &Bus, other: &str| {
        let other = bus.group(other).unwrap();
        start.wait();
        for number in 0..MESSAGES {
            other.send(number.to_string()).unwrap();
        }
        (0..MESSAGES).all(|expected| number(&message(bus)) == expected)
    };
    assert_eq!(both(|| program(&a, "to.b"), || program(&b, "to.a")), [true, true]);
}

#[test]
fn g5_programs_that_would_deadlock_are_told_and_go_on_after_reading() {
    const MESSAGES: u32 = 300;
    let broker = small_queues(4);
    let [a, b] = [0; 2]
        .map(|_| Bus::builder().address(broker.address()).backlog(4, 1 << 20).connect().unwrap());
    a.join("to.a").unwrap();
    b.join("to.b").unwrap();
    let program = |bus: &Bus, other: &str| {
        let other = bus.group(other).unwrap();
        let (mut received, mut deadlocks) = (0, 0);
        for number in 0..MESSAGES {
            while let Err(error) = other.send(number.to_string()) {
                assert!(matches!(error, SendError::WouldDeadlock(_)), "{error}");
                deadlocks += 1;
                while let Some(event) = bus.try_receive().unwrap() {
                    assert_eq!(self::number(&event.into_message().unwrap()), received);
                    received += 1;
                }
            }
        }
        while received < MESSAGES {
            assert_eq!(self::number(&message(bus)), received);
            received += 1;
        }
        deadlocks
    };
    let [one, other] = both(|| program(&a, "to.b"), || program(&b, "to.a"));
    assert!(one + other > 0, "600 messages do not fit into four queues of four");
}

#[test]
fn g5_a_service_multicasts_in_one_thread_and_replies_in_another() {
    const CLIENTS: u32 = 4;
    const REQUESTS: u32 = 100;
    let broker = small_queues(4);
    let service = broker.connect().unwrap();
    let done = AtomicBool::new(false);
    service.create("news").unwrap();
    thread::scope(|scope| {
        let multicasting = scope.spawn(|| {
            let lane = service.lane().unwrap();
            let news = service.group("news").unwrap().on_lane(&lane);
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                news.send("news").unwrap();
                sent += 1;
            }
            sent
        });
        let replying = scope.spawn(|| {
            for _ in 0..CLIENTS * REQUESTS {
                let request = message(&service);
                let reply = Outgoing::text(request.text().unwrap()).operation("reply");
                service.endpoint(request.sender()).send(reply).unwrap();
            }
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let bus = broker.connect().unwrap();
                    bus.join("news").unwrap();
                    let service = bus.endpoint(service.endpoint_id());
                    for number in 0..REQUESTS {
                        service.send(number.to_string()).unwrap();
                        // News come in between.
                        let reply = loop {
                            let message = message(&bus);
                            if message.operation() == Some("reply") {
                                break message;
                            }
                        };
                        assert_eq!(self::number(&reply), number);
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        replying.join().unwrap();
        done.store(true, Ordering::Relaxed);
        assert!(multicasting.join().unwrap() > 0);
    });
}

#[test]
fn g5_a_program_that_hears_itself_goes_on_beyond_its_own_queue() {
    const MESSAGES: u32 = 100;
    let broker = small_queues(8);
    let bus = broker.connect().unwrap();
    let options = JoinOptions::new().loopback(true);
    let echo = bus.join_with("echo", options).unwrap();
    for number in 0..MESSAGES {
        echo.send(number.to_string()).unwrap();
    }
    let pipelined: Vec<PendingSend> = (MESSAGES..2 * MESSAGES)
        .map(|number| echo.start_send(number.to_string()).unwrap())
        .collect();
    for pending in pipelined {
        pending.wait().unwrap();
    }
    for expected in 0..2 * MESSAGES {
        assert_eq!(number(&message(&bus)), expected);
    }
}

#[test]
fn g3_a_pipeline_keeps_its_order_through_windows_and_full_queues() {
    const MESSAGES: u32 = 5_000;
    let broker = small_queues(16);
    let (sender, receiver) = (broker.connect().unwrap(), broker.connect().unwrap());
    receiver.join("stream").unwrap();
    let sending = thread::spawn(move || {
        let stream = sender.group("stream").unwrap();
        let cork = sender.cork();
        let pending: Vec<PendingSend> =
            (0..MESSAGES).map(|number| stream.start_send(number.to_string()).unwrap()).collect();
        drop(cork);
        let mut before = 0;
        for pending in pending {
            let sequence = pending.wait().unwrap().sequence.get();
            assert!(before < sequence);
            before = sequence;
        }
    });
    for expected in 0..MESSAGES {
        assert_eq!(number(&message(&receiver)), expected);
    }
    sending.join().unwrap();
}

#[test]
fn g5_a_lane_that_waits_holds_back_no_other() {
    let broker = small_queues(1);
    let (sender, stuck, reader) =
        (broker.connect().unwrap(), broker.connect().unwrap(), broker.connect().unwrap());
    stuck.join("stuck").unwrap();
    reader.join("free").unwrap();
    let group = sender.group("stuck").unwrap();
    group.send("fills it").unwrap();
    let waiting = group.start_send("waits").unwrap();
    let lane = sender.lane().unwrap();
    let free = sender.group("free").unwrap().on_lane(&lane);
    for expected in 0..10 {
        free.send(expected.to_string()).unwrap();
        assert_eq!(number(&message(&reader)), expected);
    }
    assert_eq!(sender.stats().unwrap().waiting_sends, 1);
    waiting.cancel();
    assert_eq!(waiting.wait(), Err(SendError::Cancelled));
    assert_eq!(group.send_deadline("in time?", Duration::from_millis(5)), Err(SendError::TimedOut));
    assert_eq!(message(&stuck).text(), Some("fills it"));
    assert_eq!(group.send("now").unwrap().recipients, 1);
    assert_eq!(message(&stuck).text(), Some("now"));
}

#[test]
fn g6_would_block_is_followed_by_writable() {
    let broker = small_queues(2);
    let (sender, receiver) = (broker.connect().unwrap(), broker.connect().unwrap());
    receiver.join("g").unwrap();
    let group = sender.group("g").unwrap();
    group.try_send("1").unwrap();
    group.try_send("2").unwrap();
    let error = group.try_send("3").unwrap_err();
    let SendError::WouldBlock { full, full_count } = error else {
        panic!("{error}");
    };
    assert_eq!((full, full_count), (vec![receiver.endpoint_id()], 1));
    let mut writable = group.watch_writable();
    assert!(!writable.wait_deadline(Duration::from_millis(5)).unwrap());
    message(&receiver);
    message(&receiver);
    assert!(receiver.try_receive().unwrap().is_none());
    assert!(writable.wait_deadline(PATIENCE).unwrap());
    group.try_send("3").unwrap();
    assert_eq!(message(&receiver).text(), Some("3"));
}

#[test]
fn g3_what_was_pipelined_behind_a_refused_send_is_refused_until_the_resume() {
    let broker = small_queues(1);
    let (sender, receiver) = (broker.connect().unwrap(), broker.connect().unwrap());
    receiver.join("g").unwrap();
    receiver.join("h").unwrap();
    let (g, h) = (sender.group("g").unwrap(), sender.group("h").unwrap());
    g.send("fills").unwrap();
    // Both groups are known now, so all three leave together.
    assert!(h.try_send("is full too").is_err());
    let cork = sender.cork();
    let refused = g.start_try_send("a").unwrap();
    let behind = h.start_send("b").unwrap();
    drop(cork);
    assert!(matches!(refused.wait(), Err(SendError::WouldBlock { .. })));
    assert_eq!(behind.wait(), Err(SendError::LaneRefused));
    assert_eq!(message(&receiver).text(), Some("fills"));
    assert!(receiver.try_receive().unwrap().is_none());
    assert_eq!(g.try_send("still").unwrap_err(), SendError::LaneRefused);
    g.resume();
    g.send("c").unwrap();
    assert_eq!(message(&receiver).text(), Some("c"));
}

#[test]
fn g7_what_was_dropped_is_told() {
    let broker = small_queues(2);
    let (sender, receiver) = (broker.connect().unwrap(), broker.connect().unwrap());
    let options = JoinOptions::new().drop_when_full(true);
    receiver.join_with("g", options).unwrap();
    let group = sender.group("g").unwrap();
    let dropped: Vec<u64> = (0..6)
        .map(|number| group.send(number.to_string()).unwrap())
        .filter(|receipt| receipt.dropped == 1)
        .map(|receipt| receipt.sequence.get())
        .collect();
    assert_eq!(dropped.len(), 4);
    let told = |gap: &bus_client::Gap| {
        assert_eq!(gap.group.as_ref().unwrap().as_str(), "g");
        assert_eq!(gap.count, 4);
        assert_eq!(gap.first.get(), dropped[0]);
        assert_eq!(gap.last.get(), dropped[3]);
    };
    assert!(message(&receiver).missed().is_none());
    assert!(message(&receiver).missed().is_none());
    match receiver.receive_deadline(PATIENCE).unwrap() {
        Some(Event::Gap(gap)) => told(&gap),
        other => panic!("{other:?} where a gap was expected"),
    }
}

#[test]
fn g8_who_makes_others_wait_for_too_long_is_evicted_and_told() {
    let broker = broker(Limits {
        queue_messages: 1,
        stall: Duration::from_millis(100),
        ..Limits::default()
    });
    let (sender, receiver) = (broker.connect().unwrap(), broker.connect().unwrap());
    receiver.join("g").unwrap();
    let group = sender.group("g").unwrap();
    group.send("taken late").unwrap();
    assert_eq!(group.send("goes on").unwrap().recipients, 0);
    assert_eq!(message(&receiver).text(), Some("taken late"));
    match receiver.receive_deadline(PATIENCE).unwrap() {
        Some(Event::Evicted(evicted)) => {
            assert_eq!(evicted.group.unwrap().as_str(), "g");
            assert!(evicted.stalled >= Duration::from_millis(100));
        }
        other => panic!("{other:?} where an eviction was expected"),
    }
    let error = receiver.join("g").unwrap_err();
    assert!(matches!(error, JoinError::BackOff { .. }), "{error}");
    let options = JoinOptions::new().drop_when_full(true);
    receiver.join_with("g", options).unwrap();
}

#[test]
fn descriptors_reach_every_member() {
    const MEMBERS: usize = 3;
    let broker = broker(Limits::default());
    let sender = broker.connect().unwrap();
    let members: Vec<Bus> = (0..MEMBERS).map(|_| broker.connect().unwrap()).collect();
    for member in &members {
        member.join("files").unwrap();
    }
    let group = sender.group("files").unwrap();
    for round in 0..20 {
        let mut file = tempfile::tempfile().unwrap();
        write!(file, "round {round}").unwrap();
        let message = Outgoing::text("a file").descriptor(file);
        assert_eq!(group.send(message).unwrap().recipients, 3);
    }
    for member in &members {
        for round in 0..20 {
            let mut received = message(member);
            let mut descriptors = received.take_descriptors();
            assert_eq!((descriptors.len(), received.descriptors_lost()), (1, false));
            let mut file = File::from(descriptors.remove(0));
            let mut text = String::new();
            // The open file is one, and so is its position.
            let mut own = file.try_clone().unwrap();
            own.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, format!("round {round}"));
        }
    }
}

#[test]
fn the_largest_payload_arrives_and_one_byte_more_does_not_leave() {
    let broker = broker(Limits::default());
    let (sender, receiver) = (broker.connect().unwrap(), broker.connect().unwrap());
    receiver.join("g").unwrap();
    let group = sender.group("g").unwrap();
    let limit = sender.limits().payload_bytes as usize;
    let largest: Vec<u8> = (0..=250).cycle().take(limit).collect();
    let expected = largest.clone();
    let sending = thread::spawn(move || group.send(largest).map(|_| group));
    assert!(message(&receiver).into_payload() == expected);
    let group = sending.join().unwrap().unwrap();
    let error = group.send(vec![0; limit + 1]).unwrap_err();
    assert!(matches!(error, SendError::TooLarge { .. }), "{error}");
}

#[test]
fn typed_payloads_are_what_they_were() {
    let bus = Bus::embedded().unwrap();
    let options = JoinOptions::new().loopback(true);
    let group = bus.join_with("g", options).unwrap();
    let value = HashMap::from([("a".to_owned(), vec![1.5, 2.5])]);
    for message in [Outgoing::cbor(&value).unwrap(), Outgoing::json(&value).unwrap()] {
        group.send(message).unwrap();
        let received: HashMap<String, Vec<f64>> = message_of(&bus).decode().unwrap();
        assert_eq!(received, value);
    }
}

fn message_of(bus: &Bus) -> Message {
    message(bus)
}

#[test]
fn g2_threads_that_share_a_connection_see_one_order() {
    const THREADS: usize = 4;
    const EACH: usize = 300;
    let broker = small_queues(32);
    let (shared, other) = (broker.connect().unwrap(), broker.connect().unwrap());
    shared.join("g").unwrap();
    other.join("g").unwrap();
    let second = shared.open_endpoint().unwrap();
    second.join("g").unwrap();
    let senders = [shared.clone(), other.clone()];
    let read = |receive: &dyn Fn() -> Option<Event>, count: usize| -> Vec<u64> {
        (0..count).map(|_| receive().unwrap().into_message().unwrap().sequence().get()).collect()
    };
    let (all, half) = (2 * THREADS * EACH, THREADS * EACH);
    let (first_heard, second_heard, other_heard) = thread::scope(|scope| {
        for sender in &senders {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let lane = sender.lane().unwrap();
                    let group = sender.group("g").unwrap().on_lane(&lane);
                    for _ in 0..EACH {
                        group.send("x").unwrap();
                    }
                });
            }
        }
        let first = scope.spawn(|| read(&|| shared.receive_deadline(PATIENCE).unwrap(), half));
        let second = scope.spawn(|| read(&|| second.receive_deadline(PATIENCE).unwrap(), all));
        let other = scope.spawn(|| read(&|| other.receive_deadline(PATIENCE).unwrap(), half));
        (first.join().unwrap(), second.join().unwrap(), other.join().unwrap())
    });
    assert!(second_heard.is_sorted_by(|a, b| a < b), "sequences rise");
    let mut merged: Vec<u64> = first_heard.iter().chain(&other_heard).copied().collect();
    merged.sort_unstable();
    assert_eq!(merged, second_heard, "nobody hears itself, and the third hears both");
    assert!(first_heard.is_sorted_by(|a, b| a < b));
    assert!(other_heard.is_sorted_by(|a, b| a < b));
}

#[test]
fn the_bus_tells_of_itself() {
    let broker = broker(Limits::default());
    let bus = broker.connect().unwrap();
    let member = bus.join_with("b.group", JoinOptions::new().loopback(true)).unwrap();
    bus.create("a.group").unwrap();
    assert!(member.joined().created);
    let names: Vec<String> =
        bus.groups().unwrap().iter().map(|group| group.name.to_string()).collect();
    assert_eq!(names, ["a.group", "b.group"]);
    let members = bus.members("b.group").unwrap().members;
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].endpoint, bus.endpoint_id());
    assert_eq!(members[0].pid, std::process::id());
    assert_eq!(members[0].flags, ["loopback"]);
    assert_eq!(bus.find_group("b.group").unwrap().unwrap().members, 1);
    assert_eq!(bus.find_group("c.group").unwrap(), None);
    assert_eq!(bus.stats().unwrap().groups, 2);
    let status = bus.status().unwrap();
    assert_eq!(status.pid, std::process::id());
    assert_eq!(status.address.as_deref(), Some(broker.address()));
    assert!(bus.ping().unwrap() < PATIENCE);
    member.leave().unwrap();
    assert_eq!(bus.find_group("b.group").unwrap().unwrap().members, 0);
    assert!(member.leave().is_err());
}

#[test]
fn long_listings_come_in_parts() {
    const GROUPS: usize = 1500;
    let broker = broker(Limits { groups_created: 2000, ..Limits::default() });
    let bus = broker.connect().unwrap();
    for number in 0..GROUPS {
        bus.create(&format!("g{number:04}")).unwrap();
    }
    let groups = bus.groups().unwrap();
    assert_eq!(groups.len(), GROUPS);
    assert!(groups.is_sorted_by(|a, b| a.name < b.name));
    // What is given up leaves the connection as it was.
    for count in [0, 1, 64, 700] {
        let some = bus.list_groups().unwrap().take(count).map(|group| group.unwrap().name);
        assert_eq!(some.collect::<Vec<_>>().len(), count);
    }
    let listing = bus.list_groups().unwrap();
    let late = bus.create("a").unwrap();
    assert!(listing.sequence() > bus_client::Sequence::from_raw(0));
    assert_eq!(listing.count(), GROUPS, "what was made later is not in it");
    drop(late);
}

#[test]
fn g9_who_shut_receiving_is_sent_nothing_and_reads_what_it_had() {
    let broker = broker(Limits::default());
    let (sender, receiver) = (broker.connect().unwrap(), broker.connect().unwrap());
    let direct = sender.endpoint(receiver.endpoint_id());
    direct.send("before").unwrap();
    receiver.shutdown_receive().unwrap();
    let error = direct.send("after").unwrap_err();
    assert_eq!(error, SendError::ReceiverShut(receiver.endpoint_id()));
    assert_eq!(message(&receiver).text(), Some("before"));
    assert_eq!(receiver.receive().unwrap_err(), ReceiveError::Ended, "and then nothing, for ever");
    assert_eq!(receiver.try_receive().unwrap_err(), ReceiveError::Ended);
    assert!(receiver.events().next().is_none());
    receiver.endpoint(sender.endpoint_id()).send("it may still send").unwrap();
    assert_eq!(message(&sender).text(), Some("it may still send"));
}

#[test]
fn g9_who_waits_while_its_receiving_is_shut_is_told() {
    let broker = broker(Limits::default());
    let bus = broker.connect().unwrap();
    let waiting = thread::spawn({
        let bus = bus.clone();
        move || bus.receive().unwrap_err()
    });
    bus.shutdown_receive().unwrap();
    assert_eq!(waiting.join().unwrap(), ReceiveError::Ended);
}

#[test]
fn the_end_of_the_broker_is_told_to_all_who_wait() {
    let broker = small_queues(1);
    let (sender, receiver) = (broker.connect().unwrap(), broker.connect().unwrap());
    receiver.join("g").unwrap();
    let group = sender.group("g").unwrap();
    group.send("1").unwrap();
    receiver.dispatch_timeout(PATIENCE).unwrap();
    let in_flight = group.start_send("2").unwrap();
    assert_eq!(sender.stats().unwrap().waiting_sends, 1);
    let waiting = thread::spawn({
        let sender = sender.clone();
        move || sender.receive().unwrap_err()
    });
    broker.shutdown();
    let ReceiveError::BrokerGone(gone) = waiting.join().unwrap() else {
        panic!("a receive ends for no other reason");
    };
    assert!(
        matches!(gone.reason(), GoneReason::Goodbye { code, .. } if &**code == "shutdown"),
        "{gone}"
    );
    // Whether it was the broker's end or its recipient's, it does not wait for ever.
    let outcome = in_flight.wait();
    assert!(outcome.is_err() || outcome.is_ok_and(|receipt| receipt.recipients == 0));
    let error = group.send("3").unwrap_err();
    assert_eq!(error.broker_gone(), Some(&gone));
    assert_eq!(message(&receiver).text(), Some("1"), "what was here is received");
    assert_eq!(receiver.receive().unwrap_err(), ReceiveError::BrokerGone(gone));
}

#[test]
fn an_endpoint_that_is_dropped_is_closed() {
    let broker = broker(Limits { endpoints_per_connection: 2, ..Limits::default() });
    let bus = broker.connect().unwrap();
    for _ in 0..20 {
        let endpoint = bus.open_endpoint().unwrap();
        endpoint.join("g").unwrap();
        let id = endpoint.endpoint_id();
        bus.group("g").unwrap().send("x").unwrap();
        drop(endpoint);
        let error = bus.endpoint(id).send("y").unwrap_err();
        assert_eq!(error, SendError::NoSuchEndpoint(id));
    }
}

#[test]
fn a_group_that_was_made_anew_is_found_by_old_handles() {
    let broker = broker(Limits::default());
    let sender = broker.connect().unwrap();
    let group = sender.group("g").unwrap();
    assert!(matches!(group.send("x"), Err(SendError::NoSuchGroup(_))));
    let mut ids = Vec::new();
    for round in 0..3 {
        let receiver = sender.open_endpoint().unwrap();
        receiver.join("g").unwrap();
        assert_eq!(group.send(round.to_string()).unwrap().recipients, 1);
        ids.push(group.id());
        let received = receiver.receive().unwrap().into_message().unwrap();
        assert_eq!(received.text(), Some(&*round.to_string()));
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "its creator took each along");
    assert!(matches!(group.send("x"), Err(SendError::NoSuchGroup(_))));
}

#[test]
fn a_main_loop_serves_a_busy_connection() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    const MESSAGES: u32 = 2_000;
    let broker = small_queues(16);
    let (looping, sender) = (broker.connect().unwrap(), broker.connect().unwrap());
    looping.join("g").unwrap();
    let sending = thread::spawn(move || {
        let group = sender.group("g").unwrap();
        for number in 0..MESSAGES {
            group.send(number.to_string()).unwrap();
        }
    });
    let mut expected = 0;
    let patience = Timespec::try_from(PATIENCE).unwrap();
    while expected < MESSAGES {
        let descriptor = looping.as_fd();
        let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
        assert!(poll(&mut polled, Some(&patience)).unwrap() > 0);
        looping.dispatch().unwrap();
        // One for each turn, as some loops do.
        if let Some(event) = looping.try_receive().unwrap() {
            assert_eq!(number(&event.into_message().unwrap()), expected);
            expected += 1;
        }
    }
    sending.join().unwrap();
}

#[test]
fn tasks_of_several_threads_share_a_connection() {
    const TASKS: u32 = 8;
    const EACH: u32 = 100;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_io().build().unwrap();
    let broker = small_queues(16);
    let bus = broker.connect().unwrap();
    runtime.block_on(async {
        let listener = bus.open_endpoint().unwrap();
        listener.join_async("g", JoinOptions::new()).await.unwrap();
        let listening = tokio::spawn(async move {
            let mut last = 0;
            for _ in 0..TASKS * EACH {
                let event = listener.receive_async().await.unwrap();
                let sequence = event.into_message().unwrap().sequence().get();
                assert!(last < sequence);
                last = sequence;
            }
        });
        let sending: Vec<_> = (0..TASKS)
            .map(|_| {
                let group = bus.group("g").unwrap();
                tokio::spawn(async move {
                    for number in 0..EACH {
                        group.send_async(number.to_string()).await.unwrap();
                    }
                })
            })
            .collect();
        for task in sending {
            task.await.unwrap();
        }
        listening.await.unwrap();
    });
}

#[test]
fn connections_come_and_go_without_a_trace() {
    let broker = broker(Limits::default());
    let watcher = broker.connect().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let churning: Vec<_> = (0..3)
        .map(|_| {
            let (address, stop) = (broker.address().to_owned(), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let bus = Bus::builder().address(&address).connect().unwrap();
                    let member = bus.join("g").unwrap();
                    drop(member.start_send("and gone"));
                }
            })
        })
        .collect();
    watcher.join("g").unwrap();
    for _ in 0..200 {
        message(&watcher);
    }
    stop.store(true, Ordering::Relaxed);
    for thread in churning {
        thread.join().unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while watcher.stats().unwrap().connections > 1 {
        assert!(Instant::now() < deadline, "connections are left behind");
    }
    assert_eq!(watcher.stats().unwrap().endpoints, 1);
    assert_eq!(watcher.members("g").unwrap().members.len(), 1);
}

#[test]
fn what_is_promised_does_not_depend_on_how_bytes_travel() {
    for transport in ["socket", "ring"] {
        let mut again = Command::new(env::current_exe().unwrap());
        let again = again.args(["g2_", "g3_", "g5_", "g6_", "g7_", "g9_"]);
        let output = again.env("UNISONO_TRANSPORT", transport).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "by {transport}: {said}");
        assert!(!said.contains(" 0 passed"), "there are tests of these names: {said}");
    }
}
