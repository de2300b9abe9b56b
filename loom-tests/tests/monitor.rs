//! Monitors that begin while others send.

use bus_core_modelled::{Delivery, Draft, Kind, Limits, Monitored};
use loom::thread;

use crate::given::{bus, bus_with, endpoints, explore, lane, queued, reader, sent, to};

/// Given a sender that has looked for monitors and not yet locked, when one begins in that gap,
/// then it sees the message if that is later.
#[test]
fn g4_a_monitor_that_begins_before_the_commit_sees_it() {
    explore(|| {
        let bus = bus(2);
        let [receiver, watcher, sender] = endpoints(&bus);
        let mut lane = lane(&sender);
        let there = to(&receiver);
        let sending = thread::spawn(move || sent(&mut lane, there, "x").sequence);
        let begun = watcher.monitor(None).expect("the first");
        let place = sending.join().expect("sends");
        assert_eq!(queued(&watcher).len(), usize::from(place > begun));
    });
}

/// Given a request that is being cancelled, by who has looked for monitors and not yet locked, when
/// one begins in that gap, then it sees the outcome if that is later.
#[test]
fn g4_a_monitor_that_begins_before_an_outcome_sees_it() {
    explore(|| {
        let bus = bus_with(Limits {
            queue_messages: 2,
            memberships: 1,
            requests: 1,
            ..Limits::default()
        });
        let [callee, watcher, caller] = endpoints(&bus);
        let mut lane = lane(&caller);
        let kind = Kind::Request { repeatable: false };
        let draft = Draft { kind, ..Draft::from("?") };
        let request = lane.try_send(to(&callee), draft).expect("room everywhere").sequence;
        let cancelling = thread::spawn(move || {
            assert!(caller.cancel_request(request));
            match reader(&caller).try_receive() {
                Ok(Delivery::Outcome(outcome)) => outcome.sequence,
                other => panic!("an outcome was expected, not {other:?}"),
            }
        });
        let begun = watcher.monitor(None).expect("the first");
        let place = cancelling.join().expect("cancels");
        let seen = std::iter::from_fn({
            let mut reader = reader(&watcher);
            move || reader.try_receive().ok()
        });
        let outcomes = seen
            .filter(|seen| matches!(seen, Delivery::Monitored { seen: Monitored::Outcome(_), .. }));
        assert_eq!(outcomes.count(), usize::from(place > begun));
    });
}
