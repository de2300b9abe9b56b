//! Joins, leaves and ends against sends (G4, G9).

use std::time::Duration;

use bus_core_modelled::{
    Endpoint, Interest, JoinOptions, Limits, MemberFlags, ReceiveError, SendError,
};
use loom::thread;

use crate::given::{
    assert_one_order, bus, bus_with, endpoint, endpoints, explore, explore_many, group, id_of,
    join, lane, queued, reader, sent, take_all, taken, texts, to, waits,
};

/// Given a sender that has loaded the membership and not yet locked, when a join returns in that
/// gap, then the new member gets the message if it is later than the join.
///
/// The clock of the old member's lock is far ahead of the new one's, so a join that did not take
/// all locks would get a place before a message that had not counted it in.
#[test]
fn g4_join_that_returns_before_the_commit_leaves_no_hole() {
    explore(|| {
        let bus = bus(8);
        let [alice, bob, carol] = endpoints(&bus);
        let everybody = group("g", &[&alice]);
        let mut carols = lane(&carol);
        sent(&mut carols, everybody, "early");
        sent(&mut carols, everybody, "earlier");
        let joining = thread::spawn(move || {
            let joined = bob.join(&"g".parse().unwrap(), JoinOptions::default());
            (bob, joined.unwrap())
        });
        let receipt = sent(&mut carols, everybody, "message");
        let (bob, joined) = joining.join().unwrap();
        let heard = !queued(&bob).is_empty();
        assert_eq!(heard, receipt.sequence > joined.sequence);
        assert_eq!(receipt.recipients, 1 + u32::from(heard));
        assert_eq!(queued(&alice).len(), 3);
    });
}

/// The same for a lane that resolves the group while the join is under way, and so may load any
/// membership.
#[test]
fn g4_join_against_the_first_send_of_a_lane_leaves_no_hole() {
    explore(|| {
        let bus = bus(8);
        let [alice, bob, carol] = endpoints(&bus);
        let everybody = group("g", &[&alice]);
        let joining = thread::spawn(move || {
            let joined = bob.join(&"g".parse().unwrap(), JoinOptions::default());
            (bob, joined.unwrap())
        });
        let receipt = sent(&mut lane(&carol), everybody, "message");
        let (bob, joined) = joining.join().unwrap();
        let heard = !queued(&bob).is_empty();
        assert_eq!(heard, receipt.sequence > joined.sequence);
    });
}

/// Given a sender that has loaded the membership and not yet locked, when a leave returns in that
/// gap, then the former member gets the message only if it is earlier than the leave.
#[test]
fn g4_nothing_arrives_after_a_leave() {
    explore(|| {
        let bus = bus(8);
        let [alice, bob, carol] = endpoints(&bus);
        let everybody = group("g", &[&alice, &bob]);
        let mut carols = lane(&carol);
        sent(&mut carols, everybody, "early");
        let leaving = thread::spawn(move || {
            let left = bob.leave(id_of(everybody)).unwrap();
            // What the queue holds now is all that ever comes.
            let before = queued(&bob);
            (bob, left, before)
        });
        let receipt = sent(&mut carols, everybody, "message");
        let (bob, left, before) = leaving.join().unwrap();
        assert_eq!(queued(&bob), []);
        assert_eq!(before.len() == 2, receipt.sequence < left);
        assert!(before.iter().all(|taken| taken.sequence < left));
        assert_eq!(texts(&queued(&alice)), ["early", "message"]);
    });
}

/// Given a member that leaves one group and joins another, when a message goes to each at the same
/// time, then every queue has what belongs to it and the receipts say so.
#[test]
fn g4_changes_of_two_groups_take_places_in_one_order() {
    explore(|| {
        let bus = bus(8);
        let [alice, bob, carol] = endpoints(&bus);
        let left_group = group("left", &[&alice, &bob]);
        let joined_group = group("joined", &[&alice]);
        let mut carols = lane(&carol);
        let moving = thread::spawn(move || {
            let left = bob.leave(id_of(left_group)).unwrap();
            let joined = bob.join(&"joined".parse().unwrap(), JoinOptions::default());
            (bob, left, joined.unwrap().sequence)
        });
        let old = sent(&mut carols, left_group, "old");
        let new = sent(&mut carols, joined_group, "new");
        let (bob, left, joined) = moving.join().unwrap();
        assert!(left < joined);
        let mut expected = Vec::new();
        expected.extend((old.sequence < left).then_some("old"));
        expected.extend((new.sequence > joined).then_some("new"));
        assert_eq!(texts(&queued(&bob)), expected);
        assert_eq!(texts(&queued(&alice)), ["old", "new"]);
    });
}

/// Given a send that waits for a member's room, when another one joins while the room is made, then the
/// new member gets the message if it is later than the join.
#[test]
fn g4_a_join_while_a_send_waits_leaves_no_hole() {
    explore(|| {
        let bus = bus(1);
        let [alice, bob, carol] = endpoints(&bus);
        let everybody = group("g", &[&alice]);
        let mut carols = lane(&carol);
        sent(&mut carols, everybody, "first");
        waits(&mut carols, everybody, "second");
        let joining = thread::spawn(move || {
            let joined = bob.join(&"g".parse().unwrap(), JoinOptions::default());
            (bob, joined.unwrap())
        });
        let mut at_alice = reader(&alice);
        at_alice.try_receive().unwrap();
        let (bob, joined) = joining.join().unwrap();
        let second = carols.poll_outcome().unwrap().unwrap();
        let heard = second.sequence > joined.sequence;
        assert_eq!(second.recipients, 1 + u32::from(heard));
        assert_eq!(texts(&queued(&bob)), if heard { vec!["second"] } else { vec![] });
        assert_eq!(texts(&take_all(&mut at_alice)), ["second"]);
    });
}

/// Given a member that also watches the group, when another one joins while a message goes to the
/// group, then the watcher finds the join on the side of the message that the new member's queue
/// says.
#[test]
fn g4_a_watcher_is_told_of_a_join_at_its_place() {
    explore(|| {
        let bus = bus(4);
        let [watcher, bob, carol] = endpoints(&bus);
        let everybody = group("g", &[&watcher]);
        let name = "g".parse().unwrap();
        watcher.watch_group(&name, Interest::Members, false).unwrap();
        let joining = thread::spawn(move || {
            let joined = bob.join(&"g".parse().unwrap(), JoinOptions::default());
            (bob, joined.unwrap())
        });
        sent(&mut lane(&carol), everybody, "message");
        let (bob, joined) = joining.join().unwrap();
        let seen = queued(&watcher);
        assert_one_order(&[&seen]);
        let heard = !queued(&bob).is_empty();
        let expected = if heard { ["Joined", "message"] } else { ["message", "Joined"] };
        assert_eq!(texts(&seen), expected);
        let told = seen.iter().find(|taken| taken.text == "Joined");
        assert_eq!(told.map(|told| told.sequence), Some(joined.sequence));
    });
}

/// Given a watcher whose queue has one place, when two changes happen while it reads, then it is told
/// of each or of what it missed, in order, and nobody waits for it.
#[test]
fn g4_a_watcher_without_room_is_told_what_it_missed() {
    explore(|| {
        let bus = bus(1);
        let [watcher, bob] = endpoints(&bus);
        let name = "g".parse().unwrap();
        watcher.watch_group(&name, Interest::Members, true).unwrap();
        let changing = thread::spawn(move || {
            let joined = bob.join(&"g".parse().unwrap(), JoinOptions::default());
            let joined = joined.unwrap();
            (bob.leave(joined.group).unwrap(), joined.sequence, bob)
        });
        let mut reading = reader(&watcher);
        let mut all = take_all(&mut reading);
        let (left, joined, _bob) = changing.join().unwrap();
        all.extend(take_all(&mut reading));
        assert_one_order(&[&all]);
        let last = all.last().unwrap();
        let told = all.iter().map(|taken| taken.missed.map_or(0, |gap| gap.count));
        let told =
            told.sum::<u64>() + all.iter().filter(|taken| taken.text != "gap").count() as u64;
        assert_eq!((told, all[0].sequence == joined, last.sequence), (2, true, left));
    });
}

/// Given a group without members, when a message to it meets the first join, then the message is
/// before the join and reaches nobody, or after it and reaches the member; and two messages to
/// nobody have different places.
#[test]
fn g4_empty_recipient_set_against_a_join() {
    explore(|| {
        let bus = bus(8);
        let [alice, bob, carol] = endpoints(&bus);
        let (empty, _) = carol.create_group(&"g".parse().unwrap()).unwrap();
        let empty = bus_core_modelled::Destination::Group(empty);
        let joining = thread::spawn(move || {
            let joined = bob.join(&"g".parse().unwrap(), JoinOptions::default());
            (bob, joined.unwrap())
        });
        let first = sent(&mut lane(&alice), empty, "first");
        let second = sent(&mut lane(&carol), empty, "second");
        let (bob, joined) = joining.join().unwrap();
        assert_ne!(first.sequence, second.sequence);
        let mut expected = Vec::new();
        for (receipt, text) in [(first, "first"), (second, "second")] {
            assert_ne!(receipt.sequence, joined.sequence);
            let heard = receipt.sequence > joined.sequence;
            assert_eq!(receipt.recipients, u32::from(heard));
            expected.extend(heard.then_some(text));
        }
        assert_eq!(texts(&queued(&bob)), expected);
    });
}

/// Given a member that has held up a send for the stall limit, when the bus is told the time while the
/// member reads at last, then the send reaches it before the end of its membership, or not at all, and
/// the other member in any case.
#[test]
fn g8_an_eviction_takes_one_place_in_the_order() {
    explore(|| {
        let bus = bus_with(Limits {
            queue_messages: 1,
            stall: Duration::from_millis(100),
            ..Limits::default()
        });
        let [slow, two, three] = endpoints(&bus);
        let both = group("g", &[&slow, &two]);
        let mut threes = lane(&three);
        sent(&mut threes, to(&slow), "first");
        waits(&mut threes, both, "wide");
        let start = Duration::from_secs(1);
        bus.tick(start);
        bus.tick(start + Duration::from_millis(50));
        let ticking = bus.clone();
        let ticked = thread::spawn(move || ticking.tick(start + Duration::from_millis(150)));
        let mut at_slow = reader(&slow);
        let mut all = vec![taken(at_slow.try_receive().unwrap())];
        let evicted = !ticked.join().unwrap().is_empty();
        all.extend(take_all(&mut at_slow));
        let receipt = threes.poll_outcome().unwrap().unwrap();
        let mut expected = vec!["first"];
        expected.extend((receipt.recipients == 2).then_some("wide"));
        expected.extend(evicted.then_some("Evicted"));
        assert_eq!(texts(&all), expected);
        assert!(evicted || receipt.recipients == 2);
        assert_one_order(&[&all]);
        assert_eq!(texts(&queued(&two)), ["wide"]);
    });
}

/// Given an endpoint that is closed while one of its lanes sends, then no message of its takes a
/// place after the close has returned.
#[test]
fn g9_a_closed_endpoint_sends_nothing_more() {
    explore(|| {
        let bus = bus(8);
        let [alice, bob, carol] = endpoints(&bus);
        let (mut alices, to_bob) = (lane(&alice), to(&bob));
        let sending = thread::spawn(move || alices.try_send(to_bob, "last words"));
        drop(alice);
        sent(&mut lane(&carol), to_bob, "she is gone");
        let expected = match sending.join().unwrap() {
            Ok(_) => vec!["last words", "she is gone"],
            Err(SendError::Closed) => vec!["she is gone"],
            Err(error) => panic!("{error}"),
        };
        assert_eq!(texts(&queued(&bob)), expected);
    });
}

/// Given a member that is closed while a message goes to its group, then the receipt counts it if
/// and only if its reader, which is still there, can take the message.
#[test]
fn g9_a_closed_member_has_what_came_before() {
    explore(|| {
        let bus = bus(8);
        let [alice, bob, carol] = endpoints(&bus);
        let both = group("g", &[&alice, &bob]);
        let mut carols = lane(&carol);
        let mut at_bob = reader(&bob);
        let closing = thread::spawn(move || drop(bob));
        let receipt = sent(&mut carols, both, "message");
        let before = take_all(&mut at_bob);
        closing.join().unwrap();
        let after = take_all(&mut at_bob);
        assert_eq!(before.len() + after.len() == 1, receipt.recipients == 2);
        assert_eq!(at_bob.try_receive().unwrap_err(), ReceiveError::Ended);
        assert_eq!(queued(&alice).len(), 1);
    });
}

/// Given a reader that waits until its endpoint has ended, when a message to it meets
/// `shutdown_receive`, then the reader has it if and only if the sender has a receipt.
#[test]
fn g9_what_was_sent_before_shutdown_receive_is_still_read() {
    explore_many(|| {
        let bus = bus(8);
        let [alice, bob] = endpoints(&bus);
        let (mut bobs, to_alice) = (lane(&bob), to(&alice));
        let mut at_alice = reader(&alice);
        let reading = thread::spawn(move || {
            let mut all = Vec::new();
            loop {
                match at_alice.receive() {
                    Ok(delivery) => all.push(taken(delivery)),
                    Err(ReceiveError::Ended) => return all,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let sending = thread::spawn(move || bobs.try_send(to_alice, "message"));
        alice.shutdown_receive();
        let all = reading.join().unwrap();
        match sending.join().unwrap() {
            Ok(_) => assert_eq!(texts(&all), ["message"]),
            Err(SendError::ReceiveShut(id)) => {
                assert_eq!((all.len(), id), (0, alice.id()));
            }
            Err(error) => panic!("{error}"),
        }
    });
}

/// Given a lane that knows where an endpoint's queue was, when the endpoint is closed and another
/// one gets its slot, then a message to the old one reaches nobody or came before, and never the
/// stranger.
#[test]
fn g9_a_stranger_in_a_reused_slot_gets_nothing() {
    explore(|| {
        let bus = bus(8);
        let [alice, bob] = endpoints(&bus);
        let _others: [Endpoint; 7] = endpoints(&bus);
        let (mut alices, to_bob) = (lane(&alice), to(&bob));
        sent(&mut alices, to_bob, "early");
        let replacing = thread::spawn(move || {
            drop(bob);
            let stranger = endpoint(&bus);
            assert_eq!(stranger.id().get() % 8, 2, "behind the same lock");
            join(&stranger, "strangers", MemberFlags::empty());
            stranger
        });
        let last = alices.try_send(to_bob, "last");
        let stranger = replacing.join().unwrap();
        match last {
            Ok(_) | Err(SendError::NoSuchEndpoint(_)) => {}
            Err(error) => panic!("{error}"),
        }
        assert_eq!(queued(&stranger), []);
    });
}
