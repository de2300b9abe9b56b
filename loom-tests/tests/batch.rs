//! Several messages that take their places together: as good as one after the other (G1, G2, G4, G5).

use bus_core_modelled::{Attributes, BatchDraft, Destination, Lane, SendError, Sequence};
use loom::thread;

use crate::given::{
    assert_one_order, bus, endpoints, explore, group, id_of, join, lane, queued, reader, sent,
    taken, texts,
};
use bus_core_modelled::MemberFlags;

fn batch(messages: &[&str]) -> BatchDraft {
    let mut batch = BatchDraft::default();
    for text in messages {
        batch.push(&Attributes::EMPTY, text.as_bytes());
    }
    batch
}

/// Sends messages together; gives their sequences, or none if that could not be.
fn sent_together(lane: &mut Lane, to: Destination, messages: &[&str]) -> Option<Vec<Sequence>> {
    let receipts = lane.try_send_batch(id_of(to), batch(messages)).ok()?;
    let each =
        (0..receipts.len()).map(|number| receipts.get(number).expect("there are as many").sequence);
    Some(each.collect())
}

/// Given two members, when one sender multicasts two messages together and another one a message, then
/// each member gets all three, both in one order, with nothing between the two, and no sequence is
/// used twice.
#[test]
fn g2_a_batch_and_a_message_reach_two_members_in_one_order() {
    explore(|| {
        let bus = bus(4);
        let [alice, bob, carol, dave] = endpoints(&bus);
        let both = group("g", &[&alice, &bob]);
        let (mut carols, mut daves) = (lane(&carol), lane(&dave));
        let sending = thread::spawn(move || sent_together(&mut carols, both, &["c1", "c2"]));
        let other = sent(&mut daves, both, "d");
        let together = sending.join().unwrap().expect("there is room");
        let (at_alice, at_bob) = (queued(&alice), queued(&bob));
        assert_one_order(&[&at_alice, &at_bob]);
        let first = if other.sequence < together[0] {
            vec!["d", "c1", "c2"]
        } else {
            vec!["c1", "c2", "d"]
        };
        assert_eq!(texts(&at_alice), first);
        assert_eq!(texts(&at_bob), first);
    });
}

/// Given a member with one place left, when its reader takes a message off the ring and keeps the place,
/// then two messages together never find room, whoever is first.
#[test]
fn g1_a_batch_takes_no_place_that_is_not_free() {
    explore(|| {
        let bus = bus(2);
        let [alice, bob] = endpoints(&bus);
        let to_alice = group("g", &[&alice]);
        let mut bobs = lane(&bob);
        sent(&mut bobs, to_alice, "before");
        let mut alices = reader(&alice);
        let reading = thread::spawn(move || {
            taken(alices.drain().unwrap());
            alices
        });
        assert_eq!(sent_together(&mut bobs, to_alice, &["1", "2"]), None);
        let mut alices = reading.join().unwrap();
        alices.release(1, 6).unwrap();
        assert!(sent_together(&mut bobs, to_alice, &["1", "2"]).is_some());
    });
}

/// Given two messages that came together and fill a queue, when their reader has received one of them,
/// then one place is free, and not two.
#[test]
fn g5_a_message_of_a_batch_frees_its_own_place() {
    explore(|| {
        let bus = bus(2);
        let [alice, bob] = endpoints(&bus);
        let to_alice = group("g", &[&alice]);
        let mut bobs = lane(&bob);
        sent_together(&mut bobs, to_alice, &["1", "2"]).expect("there is room");
        let mut alices = reader(&alice);
        let reading = thread::spawn(move || {
            assert_eq!(taken(alices.receive().unwrap()).text, "1");
            alices
        });
        let early = bobs.try_send(to_alice, "3");
        let mut alices = reading.join().unwrap();
        let late = bobs.try_send(to_alice, "4");
        match early {
            Ok(_) => assert!(matches!(late, Err(SendError::WouldBlock { .. })), "{late:?}"),
            Err(_) => assert!(late.is_ok()),
        }
        assert!(matches!(bobs.try_send(to_alice, "5"), Err(SendError::WouldBlock { .. })));
        assert_eq!(taken(alices.receive().unwrap()).text, "2");
        assert!(taken(alices.receive().unwrap()).text.as_str() > "2");
    });
}

/// Given a sender that multicasts two messages together while somebody joins, then who joined before got
/// both and who joined after them none.
#[test]
fn g4_a_join_gets_all_of_a_batch_or_nothing() {
    explore(|| {
        let bus = bus(4);
        let [alice, bob, carol] = endpoints(&bus);
        let to_all = group("g", &[&alice]);
        let mut carols = lane(&carol);
        let joining = thread::spawn(move || {
            join(&bob, "g", MemberFlags::empty());
            bob
        });
        // A change of the membership may have made the list that it goes by an old one.
        let mut sent_at = None;
        while sent_at.is_none() {
            sent_at = sent_together(&mut carols, to_all, &["1", "2"]);
            if sent_at.is_none() {
                sent(&mut carols, to_all, "alone");
            }
        }
        let bob = joining.join().unwrap();
        let at_bob = texts(&queued(&bob)).iter().filter(|text| **text != "alone").count();
        assert!(at_bob == 0 || at_bob == 2, "{at_bob} of two");
        assert_eq!(texts(&queued(&alice)).last(), Some(&"2"));
    });
}
