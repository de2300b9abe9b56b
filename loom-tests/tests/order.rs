//! One order (G2), causality (G3), all or nothing (G1).

use bus_core_modelled::{MemberFlags, SendError};
use loom::thread;

use crate::given::{
    assert_one_order, bus, endpoint, endpoints, explore, explore_many, group, join, lane, queued,
    reader, sent, take_all, taken, texts, to,
};

/// Given two members, when two senders multicast at once, then each member gets both messages and
/// both get them in one order.
#[test]
fn g2_two_senders_reach_two_members_in_one_order() {
    explore(|| {
        let bus = bus(4);
        let [alice, bob, carol, dave] = endpoints(&bus);
        let both = group("g", &[&alice, &bob]);
        let (mut carols, mut daves) = (lane(&carol), lane(&dave));
        let one = thread::spawn(move || sent(&mut carols, both, "c"));
        let other = sent(&mut daves, both, "d");
        let one = one.join().unwrap();
        let (at_alice, at_bob) = (queued(&alice), queued(&bob));
        assert_one_order(&[&at_alice, &at_bob]);
        let mut expected = [(one.sequence, "c"), (other.sequence, "d")];
        expected.sort_unstable();
        assert_eq!(texts(&at_alice), expected.map(|(_, text)| text));
        assert_eq!(texts(&at_bob), expected.map(|(_, text)| text));
    });
}

/// The same while both members read, each until it has both messages.
#[test]
fn g2_two_members_that_read_meanwhile_see_one_order() {
    explore_many(|| {
        let bus = bus(4);
        let [alice, bob, carol, dave] = endpoints(&bus);
        let both = group("g", &[&alice, &bob]);
        let (mut carols, mut daves) = (lane(&carol), lane(&dave));
        let mut at_alice = reader(&alice);
        let sending = thread::spawn(move || sent(&mut carols, both, "c"));
        let reading = thread::spawn(move || [(); 2].map(|()| taken(at_alice.receive().unwrap())));
        sent(&mut daves, both, "d");
        sending.join().unwrap();
        let at_alice = reading.join().unwrap();
        assert_one_order(&[&at_alice, &queued(&bob)]);
    });
}

/// Given overlapping groups {1, 2, 7} and {2, 1}, joined in different orders, when a message goes
/// to each at once, then both senders get through and members 1 and 2 agree.
///
/// Endpoint 7 is behind the highest lock: who took its locks from there down would meet the other
/// sender half-way, each with a lock that the other one wants.
#[test]
fn g2_overlapping_groups_share_one_order() {
    explore(|| {
        let bus = bus(4);
        let [one, two, three, four, _, _, seven] = endpoints(&bus);
        let wide = group("wide", &[&one, &two, &seven]);
        let narrow = group("narrow", &[&two, &one]);
        let (mut threes, mut fours) = (lane(&three), lane(&four));
        let sending = thread::spawn(move || sent(&mut threes, wide, "wide"));
        sent(&mut fours, narrow, "narrow");
        sending.join().unwrap();
        let all = [queued(&one), queued(&two), queued(&seven)];
        assert_one_order(&[&all[0], &all[1], &all[2]]);
        assert_eq!(all[0].len(), 2);
        assert_eq!(texts(&all[2]), ["wide"]);
    });
}

/// Given a message to {1, 2} and, at the same time, one to 1 and then one to 2, then there is a
/// serial order that both queues agree with, and it is the order of the sequences.
#[test]
fn g2_multicast_and_unicast_share_one_order() {
    explore(|| {
        let bus = bus(4);
        let [one, two, three, four] = endpoints(&bus);
        let both = group("g", &[&one, &two]);
        let (to_one, to_two) = (to(&one), to(&two));
        let (mut threes, mut fours) = (lane(&three), lane(&four));
        let sending = thread::spawn(move || {
            let first = sent(&mut fours, to_one, "first");
            (first, sent(&mut fours, to_two, "second"))
        });
        let multicast = sent(&mut threes, both, "multicast");
        let (first, second) = sending.join().unwrap();
        assert!(first.sequence < second.sequence, "one lane keeps its order");
        let (at_one, at_two) = (queued(&one), queued(&two));
        assert_one_order(&[&at_one, &at_two]);
        let multicast_first = texts(&at_one) == ["multicast", "first"];
        if multicast_first {
            assert_eq!(texts(&at_two), ["multicast", "second"]);
        }
        assert_eq!(multicast_first, multicast.sequence < first.sequence);
    });
}

/// Given locks whose clocks differ, because much was sent to one member and nothing to the other,
/// when a message goes to both, and one to the second member at the same time, then the sequences
/// rise in each queue. Whose clock is ahead is tried both ways.
#[test]
fn g2_sequences_rise_where_clocks_differ() {
    for ahead in 0..2 {
        explore(move || {
            let bus = bus(8);
            let [one, two, three, four, five] = endpoints(&bus);
            let both = group("g", &[&one, &two]);
            let to_two = to(&two);
            let (mut threes, mut fours, mut fives) = (lane(&three), lane(&four), lane(&five));
            for text in ["early", "earlier", "later"] {
                sent(&mut fours, to([&one, &two][ahead]), text);
            }
            let sending = thread::spawn(move || sent(&mut fives, to_two, "unicast"));
            sent(&mut threes, both, "multicast");
            sending.join().unwrap();
            let (at_one, at_two) = (queued(&one), queued(&two));
            assert_eq!(at_one.len() + at_two.len(), 3 + 1 + 2);
            assert_one_order(&[&at_one, &at_two]);
        });
    }
}

/// Given endpoints behind different locks, when a message goes to each at once, then the two
/// commits, which share nothing, have different sequences.
#[test]
fn g2_sequences_of_disjoint_sends_are_unique() {
    explore(|| {
        let bus = bus(4);
        let [one, two, three, four] = endpoints(&bus);
        let (to_one, to_two) = (to(&one), to(&two));
        let (mut threes, mut fours) = (lane(&three), lane(&four));
        let sending = thread::spawn(move || sent(&mut fours, to_two, "two"));
        let one = sent(&mut threes, to_one, "one");
        assert_ne!(one.sequence, sending.join().unwrap().sequence);
    });
}

/// Given a cause that goes to 1 and 2, when 1 has received it and then sends to 2, then 2 gets the
/// cause before the effect.
#[test]
fn g3_an_effect_follows_its_cause_to_a_third_party() {
    explore(|| {
        let bus = bus(4);
        let [one, two, three] = endpoints(&bus);
        let both = group("g", &[&one, &two]);
        let to_two = to(&two);
        let mut threes = lane(&three);
        let sending = thread::spawn(move || sent(&mut threes, both, "cause"));
        let (mut reading, mut ones) = (reader(&one), lane(&one));
        reading.receive().unwrap();
        sent(&mut ones, to_two, "effect");
        let at_two = queued(&two);
        assert_eq!(texts(&at_two), ["cause", "effect"]);
        assert_one_order(&[&at_two]);
        sending.join().unwrap();
    });
}

/// Given a cause in one queue behind a lock whose clock is far ahead, when its reader sends to an
/// endpoint behind another lock, then the effect's sequence is greater, though the two commits share
/// no lock. The same for two lanes of one endpoint, the second used when the first has returned.
#[test]
fn g3_sequences_rise_along_a_chain_that_shares_no_lock() {
    explore(|| {
        let bus = bus(8);
        let [one, two, three, four] = endpoints(&bus);
        let (to_one, to_two, to_four) = (to(&one), to(&two), to(&four));
        let mut threes = lane(&three);
        for text in ["early", "earlier", "cause"] {
            sent(&mut threes, to_one, text);
        }
        let mut other_lane = lane(&three);
        let sending = thread::spawn(move || sent(&mut other_lane, to_four, "second lane"));
        let mut reading = reader(&one);
        let cause = take_all(&mut reading).last().unwrap().sequence;
        let effect = sent(&mut lane(&one), to_two, "effect");
        assert_eq!(effect.after, cause);
        assert!(effect.sequence > cause);
        assert!(sending.join().unwrap().sequence > cause);
        assert_eq!(texts(&queued(&two)), ["effect"]);
    });
}

/// Given members 1 and 2 with a place each, when two senders multicast at once without waiting,
/// then one message reaches both and the other is refused and reaches nobody.
#[test]
fn g1_a_refused_send_has_reached_nobody() {
    explore(|| {
        let bus = bus(1);
        let [one, two, three, four] = endpoints(&bus);
        let wide = group("wide", &[&one, &two]);
        let to_two = to(&two);
        let (mut threes, mut fours) = (lane(&three), lane(&four));
        let sending = thread::spawn(move || threes.try_send(wide, "wide"));
        let narrow = fours.try_send(to_two, "narrow");
        let wide = sending.join().unwrap();
        let (at_one, at_two) = (queued(&one), queued(&two));
        match (wide, narrow) {
            (Ok(_), Err(SendError::WouldBlock { full })) => {
                assert_eq!(full.named(), [two.id()]);
                assert_eq!((texts(&at_one), texts(&at_two)), (vec!["wide"], vec!["wide"]));
            }
            (Err(SendError::WouldBlock { full }), Ok(_)) => {
                assert_eq!(full.named(), [two.id()]);
                assert_eq!((texts(&at_one), texts(&at_two)), (vec![], vec!["narrow"]));
            }
            other => panic!("one of the two finds room: {other:?}"),
        }
    });
}

/// Given a member with `LOOPBACK`, when it and another send at once, then its own message comes
/// back to it in the order that the others see.
#[test]
fn g2_an_own_message_comes_back_in_the_common_order() {
    explore(|| {
        let bus = bus(4);
        let [one, two] = endpoints(&bus);
        let both = join(&one, "g", MemberFlags::LOOPBACK);
        join(&two, "g", MemberFlags::LOOPBACK);
        let three = endpoint(&bus);
        let (mut ones, mut threes) = (lane(&one), lane(&three));
        let sending = thread::spawn(move || sent(&mut threes, both, "three"));
        sent(&mut ones, both, "one");
        sending.join().unwrap();
        let (at_one, at_two) = (queued(&one), queued(&two));
        assert_eq!(at_one.len(), 2);
        assert_eq!(at_one, at_two);
        assert_one_order(&[&at_one]);
    });
}
