//! Monitors that begin while others send.

use loom::thread;

use crate::given::{bus, endpoints, explore, lane, queued, sent, to};

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
