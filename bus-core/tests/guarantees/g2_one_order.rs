//! G2: one serial order of all messages, of which every queue is a subsequence.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bus_core::{Delivery, Destination, MemberFlags, ReceiveError, Sequence};

use crate::given::{Party, assert_rising, bus, soon};

#[test]
fn g2_groups_and_direct_messages_share_one_order() {
    let bus = bus(64);
    let (mut x, mut y) = (Party::on(&bus), Party::on(&bus));
    let (mut a, mut b) = (Party::on(&bus), Party::on(&bus));
    let red = a.join("red");
    b.join("red");
    let blue = b.join("blue");
    a.join("blue");
    let mut sent = Vec::new();
    for round in 0..8 {
        sent.push(x.send(red, &format!("x red {round}")).sequence);
        sent.push(y.send(blue, &format!("y blue {round}")).sequence);
        sent.push(x.send(blue, &format!("x blue {round}")).sequence);
    }
    assert_rising(&sent);
    x.send(a.id(), "direct");
    y.send(red, "last");
    let (to_a, to_b) = (a.take_all(), b.take_all());
    assert_eq!(to_a[24..], ["direct", "last"]);
    assert_eq!(to_b[24..], ["last"]);
    assert_eq!(to_a[..24], to_b[..24]);
}

#[test]
fn g2_a_members_own_message_comes_back_at_its_place_with_loopback_only() {
    let bus = bus(8);
    let (mut with, mut without) = (Party::on(&bus), Party::on(&bus));
    let group = with.join_with("g", MemberFlags::LOOPBACK);
    without.join("g");
    assert_eq!(with.send(group, "1").recipients, 2);
    assert_eq!(without.send(group, "2").recipients, 1);
    assert_eq!(with.send(group, "3").recipients, 2);
    assert_eq!(with.take_all(), ["1", "2", "3"]);
    assert_eq!(without.take_all(), ["1", "3"]);
}

#[test]
fn g2_without_recipients_a_message_has_a_place_and_reaches_nobody() {
    let bus = bus(8);
    let mut alone = Party::on(&bus);
    let group = alone.join("g");
    let first = alone.send(group, "nobody hears");
    let second = alone.send(group, "this either");
    assert_eq!((first.recipients, second.recipients), (0, 0));
    assert_rising(&[first.sequence, second.sequence]);
    assert_eq!(alone.take_all(), [""; 0]);
    assert_eq!(bus.stats().messages, 2);
}

#[test]
fn g2_an_endpoint_can_send_to_itself() {
    let bus = bus(8);
    let mut me = Party::on(&bus);
    let receipt = me.send(me.id(), "note");
    let message = me.take_message();
    assert_eq!(message.sequence(), receipt.sequence);
    assert_eq!((message.sender(), message.destination()), (me.id(), me.here()));
}

/// Given senders that send to overlapping groups and to endpoints at the same time, when everything
/// has been read, then sequences rise in every queue, no two messages share one, and what two
/// queues have in common stands in both in the same order.
#[test]
fn g2_overlapping_sets_under_load_agree_about_the_order() {
    const EACH: usize = 400;
    // So few places that most sends wait.
    let bus = bus(2);
    let mut readers: Vec<Party> = (0..4).map(|_| Party::on(&bus)).collect();
    // Group n has all members but n, so any two groups share two.
    let groups: Vec<Destination> = (0..4)
        .map(|n| {
            let members = readers.iter().enumerate().filter(|(at, _)| *at != n);
            let joined: Vec<_> = members.map(|(_, r)| r.join(&format!("g{n}"))).collect();
            Destination::Group(joined[0])
        })
        .collect();
    let direct: Vec<Destination> = readers.iter().map(Party::here).collect();
    let finished = AtomicBool::new(false);

    let (taken, sent) = thread::scope(|scope| {
        let reading: Vec<_> = readers
            .iter_mut()
            .map(|party| {
                let finished = &finished;
                scope.spawn(move || {
                    let mut taken: Vec<(Sequence, Vec<u8>)> = Vec::new();
                    loop {
                        let done = finished.load(Ordering::Acquire);
                        match party.reader.try_receive() {
                            Ok(Delivery::Message { message, .. }) => {
                                taken.push((message.sequence(), message.payload().to_vec()));
                            }
                            Err(ReceiveError::Empty) if done => return taken,
                            Err(ReceiveError::Empty) => thread::yield_now(),
                            other => panic!("{other:?}"),
                        }
                    }
                })
            })
            .collect();
        let sending: Vec<_> = (0..4)
            .map(|n: usize| {
                let (bus, groups, direct) = (&bus, &groups, &direct);
                scope.spawn(move || {
                    let mut party = Party::on(bus);
                    let mut sent = Vec::new();
                    for i in 0..EACH {
                        let to = match i % 3 {
                            0 => groups[(n + i) % 4],
                            1 => groups[n],
                            _ => direct[(n + i) % 4],
                        };
                        let text = format!("{n} {i}");
                        let receipt = party.lane.send_deadline(to, text.as_str(), soon()).unwrap();
                        sent.push((receipt.sequence, text.into_bytes(), receipt.recipients));
                    }
                    sent
                })
            })
            .collect();
        let sent: Vec<_> = sending.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
        finished.store(true, Ordering::Release);
        let taken: Vec<_> = reading.into_iter().map(|r| r.join().unwrap()).collect();
        (taken, sent)
    });

    let by_sequence: HashMap<Sequence, &Vec<u8>> =
        sent.iter().map(|(sequence, text, _)| (*sequence, text)).collect();
    assert_eq!(by_sequence.len(), 4 * EACH, "no two share a sequence");
    for queue in &taken {
        assert_rising(&queue.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>());
        // Rising everywhere and unique: so any two queues agree about what they share.
        for (sequence, text) in queue {
            assert_eq!(by_sequence[sequence], text);
        }
    }
    let delivered: usize = taken.iter().map(Vec::len).sum();
    let promised: u32 = sent.iter().map(|(_, _, recipients)| *recipients).sum();
    assert_eq!(delivered, promised as usize, "nothing lost, nothing twice");
    for (sequence, _, recipients) in &sent {
        let holders = taken.iter().filter(|queue| queue.iter().any(|(s, _)| s == sequence));
        assert_eq!(holders.count(), *recipients as usize);
    }
}

#[test]
fn g2_sequences_are_unique_between_endpoints_that_share_nothing() {
    let bus = bus(64);
    let mut seen = HashSet::new();
    let mut parties: Vec<Party> = (0..32).map(|_| Party::on(&bus)).collect();
    for round in 0..32 {
        for party in &mut parties {
            let receipt = party.send(party.id(), "x");
            assert!(seen.insert(receipt.sequence), "round {round}");
        }
    }
}
