use std::future::Future;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use bus_core::Limits;
use bus_core::wire::{ClientFrame, FailureCode, GoodbyeCode, Request, Response};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use crate::testing::{FakeBroker, GROUP, PATIENCE, pair, pair_with};
use crate::{Builder, Bus, Event, JoinOptions, SendError};

/// What a main loop sees, if it waits for so long.
fn is_readable(bus: &Bus, timeout: Duration) -> bool {
    let descriptor = bus.as_fd();
    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::try_from(timeout).unwrap())).unwrap() > 0
}

fn is_readable_now(bus: &Bus) -> bool {
    is_readable(bus, Duration::ZERO)
}

/// Brings the descriptor to rest.
fn settle(bus: &Bus) {
    let _ = bus.as_fd();
    bus.dispatch().unwrap();
}

/// Counts how often a task is woken.
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn counter() -> (Arc<Counter>, Waker) {
    let counter = Arc::new(Counter(AtomicUsize::new(0)));
    (Arc::clone(&counter), Waker::from(counter))
}

/// Polls a future to its end, dispatching in between, without any runtime.
fn block_on<F: Future>(bus: &Bus, future: F) -> F::Output {
    let mut future = pin!(future);
    let (_, waker) = counter();
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        let _ = bus.dispatch_timeout(PATIENCE);
    }
}

#[test]
fn the_descriptor_is_readable_when_a_message_has_come_and_until_it_is_taken() {
    let (bus, mut broker) = pair();
    settle(&bus);
    assert!(!is_readable_now(&bus));
    broker.message(b"1");
    broker.message(b"2");
    assert!(is_readable(&bus, PATIENCE));
    bus.dispatch().unwrap();
    while bus.inner.connection.lock().arrivals() < 2 {
        bus.dispatch().unwrap();
    }
    assert!(is_readable_now(&bus), "the events wait here, not in the socket");
    assert!(bus.try_receive().unwrap().is_some());
    assert!(is_readable_now(&bus), "one is left");
    assert!(bus.try_receive().unwrap().is_some());
    settle(&bus);
    assert!(!is_readable_now(&bus));
}

#[test]
fn the_descriptor_is_readable_when_another_call_has_put_messages_aside() {
    let (bus, mut broker) = pair();
    settle(&bus);
    let pinging = thread::spawn({
        let bus = bus.clone();
        move || bus.ping()
    });
    let (handle, serial, _) = broker.call();
    broker.message(b"aside");
    broker.done((handle, serial), Response::Pong);
    pinging.join().unwrap().unwrap();
    assert!(is_readable_now(&bus));
    bus.dispatch().unwrap();
    assert!(bus.try_receive().unwrap().is_some());
    settle(&bus);
    assert!(!is_readable_now(&bus));
}

#[test]
fn the_descriptor_is_readable_when_output_can_go_on() {
    let (bus, mut broker) = pair();
    settle(&bus);
    let looking_up = thread::spawn({
        let group = bus.group("g").unwrap();
        move || group.start_send("x").map(|_| ())
    });
    broker.found(GROUP);
    looking_up.join().unwrap().unwrap();
    broker.send();
    let group = bus.group("g").unwrap();
    let pending = group.start_send(vec![1; 700_000]).unwrap();
    settle(&bus);
    assert!(!is_readable_now(&bus), "the socket is full");
    let reading = thread::spawn(move || {
        let send = broker.send();
        (broker, send)
    });
    while !reading.is_finished() {
        if is_readable(&bus, Duration::from_millis(10)) {
            bus.dispatch().unwrap();
        }
    }
    let (mut broker, send) = reading.join().unwrap();
    assert_eq!(send.payload.len(), 700_000);
    settle(&bus);
    assert!(!is_readable_now(&bus));
    broker.receipt(send.head.id);
    assert!(pending.wait().is_ok());
}

#[test]
fn the_descriptor_is_readable_when_an_answer_was_put_aside() {
    let (bus, mut broker) = pair();
    let mut pending = {
        let group = bus.group("g").unwrap();
        let starting = thread::spawn(move || group.start_send("x"));
        broker.found(GROUP);
        starting.join().unwrap().unwrap()
    };
    let send = broker.send();
    settle(&bus);
    let pinging = thread::spawn({
        let bus = bus.clone();
        move || bus.ping()
    });
    let (handle, serial, _) = broker.call();
    broker.receipt(send.head.id);
    broker.done((handle, serial), Response::Pong);
    pinging.join().unwrap().unwrap();
    assert!(is_readable_now(&bus));
    bus.dispatch().unwrap();
    assert!(pending.try_wait().unwrap().is_ok());
    assert!(pending.try_wait().is_none(), "it is given once");
    settle(&bus);
    assert!(!is_readable_now(&bus));
}

#[test]
fn the_descriptor_stays_readable_when_the_broker_has_gone() {
    let (bus, mut broker) = pair();
    settle(&bus);
    broker.goodbye(GoodbyeCode::Shutdown, "bye");
    drop(broker);
    assert!(is_readable(&bus, PATIENCE));
    while bus.dispatch().is_ok() {}
    assert!(is_readable_now(&bus));
    assert!(bus.try_receive().is_err());
}

#[test]
fn g6_a_loop_that_polls_for_edges_gets_one_for_each_dispatch_that_is_due_and_none_for_what_waits() {
    let (bus, mut broker) = pair();
    settle(&bus);
    let outer = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&outer, bus.as_fd(), epoll::EventData::new_u64(0), flags).unwrap();
    let has_edge = |patience: Duration| {
        let mut events = Vec::with_capacity(1);
        let timeout = Timespec::try_from(patience).unwrap();
        epoll::wait(&outer, spare_capacity(&mut events), Some(&timeout)).unwrap() > 0
    };
    broker.message(b"one");
    assert!(has_edge(PATIENCE), "it has come");
    bus.dispatch().unwrap();
    assert!(has_edge(Duration::ZERO), "it is to be received");
    bus.dispatch().unwrap();
    assert!(!has_edge(Duration::ZERO), "a dispatch would bring nothing new");
    for _ in 0..2 {
        bus.inner.connection.lock().summon();
        assert!(has_edge(Duration::ZERO), "now it would, beside what waits");
        bus.inner.connection.lock().summon();
        assert!(!has_edge(Duration::ZERO), "it was said");
        bus.dispatch().unwrap();
    }
    assert!(bus.try_receive().unwrap().is_some());
}

#[test]
fn endpoints_that_threads_read_do_not_keep_a_main_loop_busy() {
    let (bus, mut broker) = pair();
    let opening = thread::spawn({
        let bus = bus.clone();
        move || bus.open_endpoint()
    });
    let (handle, serial, _) = broker.call();
    let endpoint = bus_core::EndpointId::from_raw(77);
    broker.done((handle, serial), Response::Opened { endpoint });
    let second = opening.join().unwrap().unwrap();
    settle(&bus);
    let mut frame = broker.group_message(b"for a thread");
    frame.head.endpoint = handle;
    broker.put(&bus_core::wire::BrokerFrame::from(frame));
    assert!(is_readable(&bus, PATIENCE));
    settle(&bus);
    assert!(!is_readable_now(&bus), "nobody polls for the second endpoint");
    assert!(second.receive().is_ok());
}

#[test]
fn futures_are_woken_by_whoever_dispatches() {
    let (bus, mut broker) = pair();
    let (count, waker) = counter();
    let mut context = Context::from_waker(&waker);
    let mut receiving = pin!(bus.receive_async());
    assert!(receiving.as_mut().poll(&mut context).is_pending());
    broker.message(b"x");
    bus.dispatch_timeout(PATIENCE).unwrap();
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    let Poll::Ready(Ok(Event::Message(message))) = receiving.as_mut().poll(&mut context) else {
        panic!("the message is here");
    };
    assert_eq!(message.payload(), b"x");
}

#[test]
fn a_receive_that_is_dropped_loses_nothing() {
    let (bus, mut broker) = pair();
    let (_, waker) = counter();
    let mut context = Context::from_waker(&waker);
    {
        let mut receiving = pin!(bus.receive_async());
        assert!(receiving.as_mut().poll(&mut context).is_pending());
    }
    broker.message(b"x");
    let event = block_on(&bus, bus.receive_async()).unwrap();
    assert_eq!(event.into_message().unwrap().payload(), b"x");
}

#[test]
fn a_send_as_a_future_needs_no_thread_of_its_own() {
    let (bus, mut broker) = pair();
    let answering = thread::spawn(move || {
        broker.found(GROUP);
        let send = broker.send();
        broker.receipt(send.head.id);
        broker
    });
    let group = bus.group("g").unwrap();
    assert!(block_on(&bus, group.send_async("x")).is_ok());
    answering.join().unwrap();
}

#[test]
fn g3_sends_as_futures_keep_the_order_in_which_they_were_first_polled() {
    let limits = Limits { lane_messages: 1, ..Limits::default() };
    let (bus, mut broker) = pair_with(limits, Builder::new());
    let group = bus.group("g").unwrap();
    let (_, waker) = counter();
    let mut context = Context::from_waker(&waker);
    let mut sends: Vec<_> = ["a", "b", "c"].map(|text| Box::pin(group.send_async(text))).into();
    for send in &mut sends {
        assert!(send.as_mut().poll(&mut context).is_pending());
    }
    broker.found(GROUP);
    for expected in ["a", "b", "c"] {
        bus.dispatch_timeout(PATIENCE).unwrap();
        let send = broker.send();
        assert_eq!(send.payload, expected.as_bytes());
        broker.receipt(send.head.id);
    }
    while !sends.is_empty() {
        sends.retain_mut(|send| send.as_mut().poll(&mut context).is_pending());
        let _ = bus.dispatch();
    }
}

#[test]
fn g5_a_send_future_that_is_dropped_is_taken_back() {
    let (bus, mut broker) = pair();
    let group = bus.group("g").unwrap();
    let (_, waker) = counter();
    let mut context = Context::from_waker(&waker);
    {
        let mut sending = Box::pin(group.send_async("x"));
        assert!(sending.as_mut().poll(&mut context).is_pending());
        broker.found(GROUP);
        bus.dispatch_timeout(PATIENCE).unwrap();
    }
    let send = broker.send();
    assert_eq!(broker.cancel(), send.head.id);
    broker.refuse(send.head.id, FailureCode::Cancelled);
    let pinging = thread::spawn(move || bus.ping());
    let (handle, serial, _) = broker.call();
    broker.done((handle, serial), Response::Pong);
    assert!(pinging.join().unwrap().is_ok(), "its answer goes nowhere");
}

/// A bus with a queue and a backlog of one each, from which `reader` has received once.
fn read_once_by(reader: &Waker) -> (Bus, FakeBroker) {
    let limits = Limits { queue_messages: 1, ..Limits::default() };
    let (bus, mut broker) = pair_with(limits, Builder::new().backlog(1, 100));
    broker.message(b"0");
    bus.dispatch_timeout(PATIENCE).unwrap();
    let mut context = Context::from_waker(reader);
    assert!(pin!(bus.receive_async()).poll(&mut context).is_ready());
    bus.dispatch().unwrap();
    broker.await_credit(1, 1);
    (bus, broker)
}

#[test]
fn g5_a_task_that_would_have_to_read_itself_is_told() {
    let (_, task) = counter();
    let (bus, mut broker) = read_once_by(&task);
    let mut context = Context::from_waker(&task);
    let endpoint = bus.endpoint(crate::EndpointId::from_raw(5));
    let mut sending = pin!(endpoint.send_async("x"));
    assert!(sending.as_mut().poll(&mut context).is_pending());
    let send = broker.send();
    broker.message(b"1");
    bus.dispatch_timeout(PATIENCE).unwrap();
    broker.await_credit(2, 2);
    broker.message(b"2");
    bus.dispatch_timeout(PATIENCE).unwrap();
    assert_eq!(broker.cancel(), send.head.id);
    broker.refuse(send.head.id, FailureCode::Cancelled);
    bus.dispatch_timeout(PATIENCE).unwrap();
    let outcome = sending.as_mut().poll(&mut context);
    assert!(matches!(outcome, Poll::Ready(Err(SendError::WouldDeadlock(_)))), "{outcome:?}");
}

#[test]
fn g5_a_task_waits_for_its_send_while_another_may_read() {
    let ((_, reader), (_, sender)) = (counter(), counter());
    let (bus, mut broker) = read_once_by(&reader);
    let mut context = Context::from_waker(&sender);
    let endpoint = bus.endpoint(crate::EndpointId::from_raw(5));
    let mut sending = pin!(endpoint.send_async("x"));
    assert!(sending.as_mut().poll(&mut context).is_pending());
    let send = broker.send();
    for number in 2..=4 {
        broker.message(b"m");
        bus.dispatch_timeout(PATIENCE).unwrap();
        if number == 2 {
            broker.await_credit(2, 2);
        }
    }
    assert!(broker.is_quiet(), "the backlog took one, and nobody is cancelled");
    broker.receipt(send.head.id);
    bus.dispatch_timeout(PATIENCE).unwrap();
    assert!(matches!(sending.as_mut().poll(&mut context), Poll::Ready(Ok(_))));
}

#[test]
fn g5_a_task_that_waits_to_read_at_the_same_time_waits_for_its_send() {
    let (_, task) = counter();
    let (bus, mut broker) = read_once_by(&task);
    let mut context = Context::from_waker(&task);
    let endpoint = bus.endpoint(crate::EndpointId::from_raw(5));
    let mut sending = pin!(endpoint.send_async("x"));
    let mut receiving = pin!(bus.receive_async());
    assert!(receiving.as_mut().poll(&mut context).is_pending());
    assert!(sending.as_mut().poll(&mut context).is_pending());
    broker.send();
    for _ in 0..3 {
        broker.message(b"m");
        bus.dispatch_timeout(PATIENCE).unwrap();
    }
    broker.await_credit(2, 2);
    assert!(broker.is_quiet(), "it was woken to read, and will");
    assert!(receiving.as_mut().poll(&mut context).is_ready());
}

#[test]
fn a_join_as_a_future_joins_and_leaves_again_if_it_is_dropped() {
    let (bus, mut broker) = pair();
    let (_, waker) = counter();
    let mut context = Context::from_waker(&waker);
    let mut joining = Box::pin(bus.join_async("g", JoinOptions::new()));
    assert!(joining.as_mut().poll(&mut context).is_pending());
    broker.join();
    let member = block_on(&bus, joining).unwrap();
    assert_eq!(member.joined().group_id, GROUP);

    for answered_first in [true, false] {
        let mut joining = Box::pin(bus.join_async("g", JoinOptions::new()));
        assert!(joining.as_mut().poll(&mut context).is_pending());
        let (handle, serial, _) = broker.call();
        let joined = Response::Joined {
            group_id: GROUP,
            sequence: bus_core::Sequence::from_raw(1),
            created: false,
            members: 1,
        };
        if answered_first {
            broker.done((handle, serial), joined);
            bus.dispatch_timeout(PATIENCE).unwrap();
            drop(joining);
        } else {
            drop(joining);
            // The group may be gated, and then its owner may never decide.
            let (asked, withdrawal, request) = broker.call();
            assert_eq!(request, Request::Withdraw { group: "g".parse().unwrap() });
            broker.done((asked, withdrawal), Response::Withdrawn);
            broker.done((handle, serial), joined);
            bus.dispatch_timeout(PATIENCE).unwrap();
        }
        let leave = left(&mut broker);
        assert_eq!(leave, Request::Leave { group_id: GROUP }, "{answered_first}");
    }
}

fn left(broker: &mut FakeBroker) -> Request {
    let (handle, serial, request) = broker.call();
    let sequence = bus_core::Sequence::from_raw(2);
    broker.done((handle, serial), Response::Left { sequence });
    request
}

#[test]
fn a_watch_is_a_future() {
    let (bus, mut broker) = pair();
    let writable = bus.endpoint(crate::EndpointId::from_raw(5)).watch_writable();
    let ClientFrame::Watch { endpoint, serial, .. } = broker.next() else {
        panic!("a watch was expected");
    };
    broker.put(&bus_core::wire::BrokerFrame::Writable { endpoint, serial });
    assert_eq!(block_on(&bus, writable), Ok(()));
}

#[test]
fn futures_end_when_the_broker_goes() {
    let (bus, broker) = pair();
    let group = bus.group("g").unwrap();
    let (count, waker) = counter();
    let mut context = Context::from_waker(&waker);
    let mut receiving = pin!(bus.receive_async());
    let mut sending = pin!(group.send_async("x"));
    assert!(receiving.as_mut().poll(&mut context).is_pending());
    assert!(sending.as_mut().poll(&mut context).is_pending());
    drop(broker);
    while bus.dispatch().is_ok() {}
    assert_eq!(count.0.load(Ordering::SeqCst), 2);
    assert!(matches!(receiving.as_mut().poll(&mut context), Poll::Ready(Err(_))));
    assert!(matches!(sending.as_mut().poll(&mut context), Poll::Ready(Err(_))));
}

#[cfg(feature = "tokio")]
mod tokio_runtime {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn tasks_drive_the_connection_themselves() {
        let (bus, mut broker) = pair();
        let scripted = thread::spawn(move || {
            broker.join();
            let send = broker.send();
            broker.message(b"while you wait");
            broker.receipt(send.head.id);
            broker.goodbye(GoodbyeCode::Shutdown, "");
            broker
        });
        let receiving = tokio::spawn({
            let bus = bus.clone();
            async move {
                let first = bus.receive_async().await.unwrap();
                assert!(bus.receive_async().await.is_err());
                first
            }
        });
        let member = bus.join_async("g", JoinOptions::new()).await.unwrap();
        member.send_async("x").await.unwrap();
        let event = receiving.await.unwrap();
        assert_eq!(event.into_message().unwrap().payload(), b"while you wait");
        scripted.join().unwrap();
    }

    #[test]
    fn a_connection_outlives_a_runtime() {
        let (bus, mut broker) = pair();
        for text in [b"1", b"2"] {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            let receiving = bus.receive_async();
            broker.message(text);
            let event = runtime.block_on(receiving).unwrap();
            assert_eq!(event.into_message().unwrap().payload(), text);
        }
    }
}
