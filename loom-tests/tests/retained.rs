//! What a group retains, and joins that get it.

use bus_core_modelled::{Destination, JoinOptions, MemberFlags, Retain};
use loom::thread;

use crate::given::{bus, endpoints, explore, join, lane, queued, sent, texts};

/// Given two members whose sends reach each other and so have no recipient in common, when both
/// send, then the group retains the one whose place in the order is the later.
#[test]
fn g4_the_retained_message_is_the_last_in_the_order() {
    explore(|| {
        let bus = bus(2);
        let [a, b, joiner] = endpoints(&bus);
        let name = "g".parse().expect("a good name");
        a.create_retaining(&name, Retain::last(1)).expect("the first of its name");
        let to = join(&a, "g", MemberFlags::empty());
        join(&b, "g", MemberFlags::empty());
        let mut lane_of_b = lane(&b);
        let other = thread::spawn(move || sent(&mut lane_of_b, to, "b").sequence);
        let mine = sent(&mut lane(&a), to, "a").sequence;
        let last = mine.max(other.join().expect("sends"));
        joiner.join(&name, JoinOptions::default().with_state()).expect("may join");
        assert_eq!(queued(&joiner)[0].sequence, last);
    });
}

/// Given a message on its way to a group that retains, when somebody joins with the state, then it
/// gets the message once: before the join as a part of the state, or after it.
#[test]
fn g4_a_join_with_state_leaves_no_hole_and_gets_nothing_twice() {
    explore(|| {
        let bus = bus(2);
        let [sender, joiner] = endpoints(&bus);
        let name = "g".parse().expect("a good name");
        let (group, _) = sender.create_retaining(&name, Retain::last(2)).expect("the first");
        let mut lane = lane(&sender);
        let sending =
            thread::spawn(move || sent(&mut lane, Destination::Group(group), "x").sequence);
        let joined = joiner.join(&name, JoinOptions::default().with_state()).expect("may join");
        let place = sending.join().expect("sends");
        let got = queued(&joiner);
        if place < joined.sequence {
            assert_eq!(texts(&got), ["retained x", "current"]);
        } else {
            assert_eq!(texts(&got), ["current", "x"]);
        }
    });
}
