//! Members that miss messages rather than make senders wait, beside members that do not (G7).

use std::sync::Arc;

use bus_core_modelled::{Interest, JoinOptions, MemberFlags, Receipt};
use loom::thread;

use crate::given::{
    Alarm, Taken, bus, endpoints, explore, explore_many, join, lane, queued, reader, sent,
    take_all, taken, texts, to, waits,
};

/// What a member took, together with its gaps, is exactly what was sent to it, in order.
#[track_caller]
fn assert_accounted(all: &[Taken], sent: &[Receipt]) {
    let mut rest = sent.iter().map(|receipt| receipt.sequence).peekable();
    for taken in all {
        if let Some(gap) = taken.missed {
            let missed: Vec<_> = (0..gap.count).map_while(|_| rest.next()).collect();
            assert_eq!(missed.len() as u64, gap.count, "{all:?} of {sent:?}");
            assert_eq!(missed.first(), Some(&gap.first), "{all:?} of {sent:?}");
            assert_eq!(missed.last(), Some(&gap.last), "{all:?} of {sent:?}");
        }
        if taken.text != "gap" {
            assert_eq!(Some(taken.sequence), rest.next(), "{all:?} of {sent:?}");
        }
    }
    assert_eq!(rest.next(), None, "{all:?} of {sent:?}");
}

/// Given a group of a member that drops when full and one that does not, when three messages are
/// sent while the dropping one reads, then the other one has all three, nobody waited for the
/// dropping one, and what it took and what it was told it missed are the three, in order.
#[test]
fn g7_a_gap_says_exactly_what_was_missed() {
    explore(|| {
        let bus = bus(1);
        let [dropper, two, three] = endpoints(&bus);
        let everybody = join(&dropper, "g", MemberFlags::DROP_WHEN_FULL);
        let mut threes = lane(&three);
        let sending =
            thread::spawn(move || ["1", "2", "3"].map(|n| sent(&mut threes, everybody, n)));
        let mut reading = reader(&dropper);
        let mut all = take_all(&mut reading);
        all.extend(take_all(&mut reading));
        let receipts = sending.join().unwrap();
        all.extend(take_all(&mut reading));
        assert_accounted(&all, &receipts);
        let dropped = receipts.iter().map(|receipt| u64::from(receipt.dropped)).sum::<u64>();
        assert_eq!(bus.stats().dropped, dropped);
        drop(two);
    });
}

/// Given a full group of a member that drops and one that blocks, when a send waits for the blocking
/// one while both read, then it reaches the blocking one, and the dropping one has it or is told.
#[test]
fn g7_a_waiting_send_drops_where_it_may_and_blocks_where_it_must() {
    explore_many(|| {
        let bus = bus(1);
        let [dropper, blocker, three] = endpoints(&bus);
        let both = join(&dropper, "g", MemberFlags::DROP_WHEN_FULL);
        join(&blocker, "g", MemberFlags::empty());
        let mut threes = lane(&three);
        let first = sent(&mut threes, both, "first");
        let mut at_dropper = reader(&dropper);
        let sending = thread::spawn(move || threes.send(both, "second").unwrap());
        let reading = thread::spawn(move || {
            let all = take_all(&mut at_dropper);
            (at_dropper, all)
        });
        let mut at_blocker = reader(&blocker);
        let first_two = [(); 2].map(|()| taken(at_blocker.receive().unwrap()));
        assert_eq!(texts(&first_two), ["first", "second"]);
        let second = sending.join().unwrap();
        let (mut at_dropper, mut all) = reading.join().unwrap();
        all.extend(take_all(&mut at_dropper));
        assert_accounted(&all, &[first, second]);
    });
}

/// Given a dropping member that waits for what comes, when two messages are sent to its queue of one
/// place and then nothing, then it takes both or takes one and is told of the other: it does not
/// sleep beside a gap, and is told of the gap after what was queued before.
#[test]
fn g7_a_last_gap_is_told_to_a_reader_that_waits() {
    explore(|| {
        let bus = bus(1);
        let [dropper, two] = endpoints(&bus);
        let only = join(&dropper, "g", MemberFlags::DROP_WHEN_FULL);
        let mut twos = lane(&two);
        let sending = thread::spawn(move || ["1", "2"].map(|n| sent(&mut twos, only, n)));
        let mut reading = reader(&dropper);
        let all = [(); 2].map(|()| taken(reading.receive().unwrap()));
        assert_accounted(&all, &sending.join().unwrap());
    });
}

/// Given a dropping member that has drained its one message and sleeps, as a transport does, when the
/// next message is dropped while the place of the first is released, then the member is told: by the
/// one who drops, if all is taken already, or else by its own look after the release.
#[test]
fn g7_a_gap_is_told_to_a_reader_that_sleeps_beside_its_last_credit() {
    explore(|| {
        let bus = bus(1);
        let [dropper, two] = endpoints(&bus);
        let only = join(&dropper, "g", MemberFlags::DROP_WHEN_FULL);
        let mut twos = lane(&two);
        let first = sent(&mut twos, only, "1");
        let mut reading = reader(&dropper);
        let mut all = vec![taken(reading.drain().unwrap())];
        let alarm = Arc::new(Alarm::default());
        assert!(reading.sleep(alarm.waker()));
        let sending = thread::spawn(move || sent(&mut twos, only, "2"));
        reading.release(1, 1).unwrap();
        if !reading.has_lone_gap() {
            alarm.wait();
        }
        all.push(taken(reading.drain().unwrap()));
        assert_accounted(&all, &[first, sending.join().unwrap()]);
    });
}

/// Given a send that waits for a full endpoint, which is also a dropping member of a group, when its
/// reader frees a place while a message comes to the group, then the place is for who has waited and
/// the member misses the message: a flood through a group starves nobody.
#[test]
fn g7_a_dropping_membership_does_not_pass_a_waiting_send() {
    explore(|| {
        let bus = bus(1);
        let [dropper, two, three] = endpoints(&bus);
        let flooded = join(&dropper, "g", MemberFlags::DROP_WHEN_FULL);
        let (mut twos, mut threes, direct) = (lane(&two), lane(&three), to(&dropper));
        sent(&mut twos, direct, "first");
        waits(&mut twos, direct, "waited");
        let flooding = thread::spawn(move || sent(&mut threes, flooded, "flood"));
        let mut reading = reader(&dropper);
        reading.try_receive().unwrap();
        let flood = flooding.join().unwrap();
        assert!(twos.poll_outcome().is_some());
        let rest = take_all(&mut reading);
        assert_eq!(texts(&rest), ["waited", "gap"]);
        assert_eq!(rest[1].missed.map(|gap| gap.first), Some(flood.sequence));
        assert_eq!(queued(&two), []);
    });
}

/// The same for a notice: it makes nobody wait, and passes nobody who does.
#[test]
fn g4_a_notice_does_not_pass_a_waiting_send() {
    explore(|| {
        let bus = bus(1);
        let [watcher, two, three] = endpoints(&bus);
        let name = "g".parse().unwrap();
        watcher.watch_group(&name, Interest::Members, true).unwrap();
        let (mut twos, direct) = (lane(&two), to(&watcher));
        sent(&mut twos, direct, "first");
        waits(&mut twos, direct, "waited");
        let joining = thread::spawn(move || {
            let joined = three.join(&"g".parse().unwrap(), JoinOptions::default());
            (joined.unwrap(), three)
        });
        let mut reading = reader(&watcher);
        reading.try_receive().unwrap();
        let (joined, _three) = joining.join().unwrap();
        assert!(twos.poll_outcome().is_some());
        let rest = take_all(&mut reading);
        assert_eq!(texts(&rest), ["waited", "gap"]);
        assert_eq!(rest[1].missed.map(|gap| gap.first), Some(joined.sequence));
    });
}

/// Given a full group of a member that leaves rather than make senders wait, when it reads what it
/// has while a message is sent, then the send waits for nobody, and the member has the message or
/// was told that it is put out: never neither, never both.
#[test]
fn g8_a_member_that_leaves_when_full_makes_nobody_wait() {
    explore(|| {
        let bus = bus(1);
        let [leaver, two] = endpoints(&bus);
        let group = join(&leaver, "g", MemberFlags::LEAVE_WHEN_FULL);
        let mut twos = lane(&two);
        sent(&mut twos, group, "first");
        let sending = thread::spawn(move || twos.try_send(group, "second").unwrap());
        let mut reading = reader(&leaver);
        let mut all = take_all(&mut reading);
        let second = sending.join().unwrap();
        all.extend(take_all(&mut reading));
        match second.recipients {
            0 => assert_eq!(texts(&all), ["first", "Evicted"]),
            _ => assert_eq!(texts(&all), ["first", "second"]),
        }
    });
}
