//! Sends that wait and end otherwise than by room: cancelled, or because something else has ended
//! (G5, G9).

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use bus_core_modelled::{Lane, MemberFlags, SendError, Submitted, WatchError};
use loom::thread;

use crate::given::{
    Alarm, bus, endpoints, explore, group, id_of, join, lane, queued, reader, sent, take_all,
    texts, to, waits,
};

/// Given a fan-out send that waits, when it is cancelled while the place that it lacks is freed,
/// then it says "cancelled" and has reached nobody, or says its place and has reached both.
#[test]
fn g5_a_cancelled_send_has_reached_nobody_and_a_receipt_means_everybody() {
    explore(|| {
        let bus = bus(1);
        let [one, two, three] = endpoints(&bus);
        let both = group("g", &[&one, &two]);
        let mut threes = lane(&three);
        sent(&mut threes, to(&one), "first");
        waits(&mut threes, both, "wide");
        let mut at_one = reader(&one);
        let reading = thread::spawn(move || {
            at_one.try_receive().unwrap();
            at_one
        });
        let outcome = threes.cancel().expect("it was waiting");
        let mut at_one = reading.join().unwrap();
        let expected = match outcome {
            Ok(_) => vec!["wide"],
            Err(SendError::Cancelled) => vec![],
            Err(error) => panic!("{error}"),
        };
        assert_eq!(texts(&take_all(&mut at_one)), expected);
        assert_eq!(texts(&queued(&two)), expected);
        assert_eq!(bus.stats().waiting_sends, 0);
    });
}

/// The same for a deadline that has come. (Loom has no time: the deadline comes whenever the send
/// would sleep.)
#[test]
fn g5_a_send_past_its_deadline_has_reached_nobody() {
    explore(|| {
        let bus = bus(1);
        let [one, two, three] = endpoints(&bus);
        let both = group("g", &[&one, &two]);
        let (mut threes, to_one) = (lane(&three), to(&one));
        sent(&mut threes, to_one, "first");
        let mut at_one = reader(&one);
        let reading = thread::spawn(move || {
            at_one.try_receive().unwrap();
            at_one
        });
        let deadline = std::time::Instant::now();
        let outcome = threes.send_deadline(both, "wide", deadline);
        let mut at_one = reading.join().unwrap();
        let expected = match outcome {
            Ok(_) => vec!["wide"],
            Err(SendError::Cancelled) => vec![],
            Err(error) => panic!("{error}"),
        };
        assert_eq!(texts(&take_all(&mut at_one)), expected);
        assert_eq!(texts(&queued(&two)), expected);
    });
}

/// Given an older send that waits first in line and lacks another member too, when it is cancelled
/// while the place is freed, then the younger one behind it gets the place.
#[test]
fn g5_a_cancelled_send_leaves_its_place_in_line_to_the_next() {
    explore(|| {
        let bus = bus(1);
        let [one, two, three, four] = endpoints(&bus);
        let both = group("g", &[&one, &two]);
        let (mut threes, mut fours) = (lane(&three), lane(&four));
        sent(&mut threes, both, "first");
        waits(&mut threes, both, "wide");
        waits(&mut fours, to(&one), "small");
        let mut at_one = reader(&one);
        let reading = thread::spawn(move || {
            at_one.try_receive().unwrap();
            at_one
        });
        assert_eq!(threes.cancel(), Some(Err(SendError::Cancelled)));
        let mut at_one = reading.join().unwrap();
        assert!(fours.poll_outcome().is_some());
        assert_eq!(texts(&take_all(&mut at_one)), ["small"]);
        assert_eq!(texts(&queued(&two)), ["first"]);
    });
}

/// Given a full member, when it leaves while a send to its group goes to wait for it, then the send
/// reaches the others.
#[test]
fn g5_a_leave_wakes_those_who_wait_for_the_member() {
    explore(|| {
        let bus = bus(1);
        let [one, two, three] = endpoints(&bus);
        let both = group("g", &[&one, &two]);
        let (mut threes, to_one) = (lane(&three), to(&one));
        sent(&mut threes, to_one, "first");
        let sending = thread::spawn(move || threes.send(both, "wide").unwrap());
        one.leave(id_of(both)).unwrap();
        assert_eq!(sending.join().unwrap().recipients, 1);
        assert_eq!(texts(&queued(&one)), ["first"]);
        assert_eq!(texts(&queued(&two)), ["wide"]);
    });
}

/// Given a full endpoint, when it is closed while a send goes to wait for it, then the send ends
/// with an error that says so.
#[test]
fn g9_a_close_wakes_those_who_wait_for_the_endpoint() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob] = endpoints(&bus);
        let (mut alices, to_bob, bob_id) = (lane(&alice), to(&bob), bob.id());
        sent(&mut alices, to_bob, "first");
        let sending = thread::spawn(move || alices.send(to_bob, "second"));
        drop(bob);
        assert_eq!(sending.join().unwrap(), Err(SendError::NoSuchEndpoint(bob_id)));
    });
}

/// The same for `shutdown_receive`, and for the end of the group with its last member.
#[test]
fn g9_shutdown_receive_wakes_those_who_wait_for_the_endpoint() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob, carol] = endpoints(&bus);
        let (mut alices, mut carols, to_bob) = (lane(&alice), lane(&carol), to(&bob));
        let only_bob = group("g", &[&bob]);
        sent(&mut alices, to_bob, "first");
        waits(&mut carols, only_bob, "to the group");
        let sending = thread::spawn(move || alices.send(to_bob, "second"));
        bob.shutdown_receive();
        assert_eq!(sending.join().unwrap(), Err(SendError::ReceiveShut(bob.id())));
        let to_the_group = carols.poll_outcome().expect("decided");
        assert_eq!(to_the_group.unwrap().recipients, 0, "bob made it, so it lives");
        assert_eq!(texts(&queued(&bob)), ["first"]);
    });
}

/// Given a group whose creator is gone, when its last member, which is full, leaves while a send and
/// somebody who wants to know begin to wait for it, then both are told that the group has ended, or
/// were early enough to find it.
#[test]
fn g9_the_end_of_a_group_wakes_those_who_wait_for_it() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob, creator] = endpoints(&bus);
        let name = "g".parse().unwrap();
        let (group, _) = creator.create_group(&name).unwrap();
        let only = join(&bob, "g", MemberFlags::empty());
        drop(creator);
        let mut alices = lane(&alice);
        sent(&mut alices, to(&bob), "first");
        let waiting = thread::spawn(move || {
            let alarm = Arc::new(Alarm::default());
            let watched = match alice.watch_writable(only, alarm.waker()) {
                Err(WatchError::Destination(error)) => Some(Err(error)),
                Ok(Some(mut watch)) => {
                    alarm.wait();
                    watch.outcome()
                }
                other => panic!("bob stays full: {other:?}"),
            };
            (alices.send(only, "to the group"), watched)
        });
        bob.leave(group).unwrap();
        let ended = SendError::NoSuchGroup(group);
        let (sent, watched) = waiting.join().unwrap();
        assert_eq!((sent, watched), (Err(ended.clone()), Some(Err(ended))));
        assert_eq!(texts(&queued(&bob)), ["first"]);
    });
}

/// Given a sending endpoint that is closed while its send goes to wait, then the send ends with an
/// error that says so, and reaches nobody.
#[test]
fn g9_a_close_ends_the_waiting_sends_of_the_endpoint() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob] = endpoints(&bus);
        let (mut alices, to_bob) = (lane(&alice), to(&bob));
        sent(&mut alices, to_bob, "first");
        let sending = thread::spawn(move || alices.send(to_bob, "second"));
        drop(alice);
        assert_eq!(sending.join().unwrap(), Err(SendError::Closed));
        assert_eq!(texts(&queued(&bob)), ["first"]);
        assert_eq!(bus.stats().waiting_sends, 0);
    });
}

/// Given a task that waits in `send_async` and is polled again with another waker while the place
/// is freed, then it is ready or the new waker is called.
#[test]
fn g5_a_task_that_is_polled_again_is_woken_by_its_last_waker() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob] = endpoints(&bus);
        let (mut alices, to_bob) = (lane(&alice), to(&bob));
        sent(&mut alices, to_bob, "first");
        let sending = thread::spawn(move || {
            let mut send = pin!(alices.send_async(to_bob, "second"));
            let early = send.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if let Poll::Ready(outcome) = early {
                return outcome.unwrap();
            }
            loop {
                let alarm = Arc::new(Alarm::default());
                match send.as_mut().poll(&mut Context::from_waker(&alarm.waker())) {
                    Poll::Ready(outcome) => return outcome.unwrap(),
                    Poll::Pending => alarm.wait(),
                }
            }
        });
        let mut reading = reader(&bob);
        reading.try_receive().unwrap();
        sending.join().unwrap();
        assert_eq!(texts(&take_all(&mut reading)), ["second"]);
    });
}

/// Given a lane whose submitted send waits, when `send_async` is refused with `LaneBusy`, then the
/// submitted one still waits, and is committed when there is room.
#[test]
fn g5_a_refused_async_send_leaves_the_lanes_waiting_send_alone() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob] = endpoints(&bus);
        let (mut alices, to_bob) = (lane(&alice), to(&bob));
        sent(&mut alices, to_bob, "first");
        waits(&mut alices, to_bob, "second");
        {
            let mut send = pin!(alices.send_async(to_bob, "third"));
            let refused = send.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(refused, Poll::Ready(Err(SendError::LaneBusy)));
        }
        assert_eq!(texts(&queued(&bob)), ["first", "second"]);
    });
}

/// Given a waker that holds the last reference to a task that owns a lane, when the send that it
/// was left with is cancelled, then it is dropped where the lane may be dropped: under no lock.
#[test]
fn g5_a_cancelled_sends_waker_is_dropped_without_a_lock() {
    struct Task {
        _owned: Mutex<Lane>,
    }
    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    explore(|| {
        let bus = bus(1);
        let [alice, bob] = endpoints(&bus);
        let (mut alices, mut owned, to_bob) = (lane(&alice), lane(&alice), to(&bob));
        sent(&mut alices, to_bob, "first");
        waits(&mut owned, to_bob, "the task's");
        let task = Arc::new(Task { _owned: Mutex::new(owned) });
        let submitted = alices.submit(to_bob, "second", Waker::from(task));
        assert_eq!(submitted, Ok(Submitted::Waiting));
        assert_eq!(alices.cancel(), Some(Err(SendError::Cancelled)));
        assert_eq!(bus.stats().waiting_sends, 0, "the task's send has gone with it");
    });
}
