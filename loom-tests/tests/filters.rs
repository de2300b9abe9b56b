//! Filters that change while messages are on their way (G4, G5).

use std::task::Waker;

use bus_core_modelled::{Attributes, Draft, Filter, JoinOptions, Submitted};
use loom::thread;

use crate::given::{bus, endpoints, explore, group, id_of, join, lane, queued, sent, texts};

fn filter(text: &str) -> Filter {
    text.parse().expect("a good filter")
}

fn keyed(key: &str) -> Draft {
    let attributes = Attributes::builder().key(key).build().expect("a short key");
    Draft { attributes, ..Draft::from(key) }
}

/// Given a sender that has selected who accepts its message and not yet locked, when a change of a
/// filter returns in that gap, then the member gets the message if it is later than the change.
#[test]
fn g4_a_filter_that_opens_before_the_commit_leaves_no_hole() {
    explore(|| {
        let bus = bus(8);
        let [alice, bob, carol] = endpoints(&bus);
        let everybody = group("g", &[&alice]);
        let options = JoinOptions::default().filtered(filter("key=other"));
        bob.join(&"g".parse().unwrap(), options).unwrap();
        let mut carols = lane(&carol);
        // Moves the clock of the lock that bob does not share.
        sent(&mut carols, everybody, "early");
        sent(&mut carols, everybody, "earlier");
        let changing = thread::spawn(move || {
            let changed = bob.set_filter(id_of(everybody), Some(filter("key=a"))).unwrap();
            (bob, changed)
        });
        let receipt = carols.try_send(everybody, keyed("a")).unwrap();
        let (bob, changed) = changing.join().unwrap();
        let heard = !queued(&bob).is_empty();
        assert_eq!(heard, receipt.sequence > changed);
        assert_eq!(receipt.recipients, 1 + u32::from(heard));
    });
}

/// Given a send that goes to wait for a member's room, when the member's filter rejects it
/// meanwhile, then it goes on without the member, whatever came first.
#[test]
fn g5_a_filter_that_rejects_what_waits_lets_it_go() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob, carol] = endpoints(&bus);
        let everybody = group("g", &[&alice]);
        let mut carols = lane(&carol);
        sent(&mut carols, everybody, "fills");
        join(&bob, "g", bus_core_modelled::MemberFlags::empty());
        let changing = thread::spawn(move || {
            alice.set_filter(id_of(everybody), Some(filter("key=other"))).unwrap();
            alice
        });
        let submitted = carols.submit(everybody, keyed("a"), Waker::noop().clone()).unwrap();
        let alice = changing.join().unwrap();
        let receipt = match submitted {
            Submitted::Committed(receipt) => receipt,
            Submitted::Waiting => carols.poll_outcome().expect("it goes on").unwrap(),
        };
        assert_eq!(receipt.recipients, 1);
        assert_eq!(texts(&queued(&alice)), ["fills"]);
        assert_eq!(texts(&queued(&bob)), ["a"]);
    });
}

/// Given a send that waits, when a filter takes a new recipient in while room is made, then that one
/// gets the message if it is later than the change.
#[test]
fn g4_a_filter_that_opens_while_a_send_waits_leaves_no_hole() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob, carol] = endpoints(&bus);
        let everybody = group("g", &[&alice]);
        let options = JoinOptions::default().filtered(filter("key=other"));
        bob.join(&"g".parse().unwrap(), options).unwrap();
        let mut carols = lane(&carol);
        sent(&mut carols, everybody, "first");
        let waits = carols.submit(everybody, keyed("second"), Waker::noop().clone());
        assert_eq!(waits, Ok(Submitted::Waiting));
        let changing = thread::spawn(move || {
            let changed = bob.set_filter(id_of(everybody), Some(filter("key^="))).unwrap();
            (bob, changed)
        });
        let first = queued(&alice);
        assert_eq!(texts(&first)[0], "first");
        let (bob, changed) = changing.join().unwrap();
        let second = carols.poll_outcome().unwrap().unwrap();
        let heard = second.sequence > changed;
        assert_eq!(second.recipients, 1 + u32::from(heard));
        assert_eq!(texts(&queued(&bob)), if heard { vec!["second"] } else { vec![] });
    });
}
