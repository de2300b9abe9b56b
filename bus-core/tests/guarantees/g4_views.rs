//! G4: joins and leaves have a place in the same order.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bus_core::{JoinError, JoinOptions, LeaveError, MemberFlags, Sequence};

use crate::given::{Party, bus, outcome, soon};

#[test]
fn g4_a_member_hears_what_comes_after_its_join_and_before_its_leave() {
    let bus = bus(8);
    let (mut sender, mut member, keeper) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let group = keeper.join("g");
    let before = sender.send(group, "before").sequence;
    let joined = member.endpoint.join(&"g".parse().unwrap(), JoinOptions::default()).unwrap();
    let during = sender.send(group, "during").sequence;
    let left = member.endpoint.leave(group).unwrap();
    let after = sender.send(group, "after").sequence;
    assert!(before < joined.sequence && joined.sequence < during);
    assert!(during < left && left < after);
    assert_eq!((joined.group, joined.members), (group, 2));
    assert_eq!(member.take_all(), ["during"], "readable after the leave");
}

#[test]
fn g4_joining_twice_and_leaving_twice_are_refused() {
    let bus = bus(8);
    let member = Party::on(&bus);
    let group = member.join("g");
    let name: bus_core::GroupName = "g".parse().unwrap();
    let options = JoinOptions::create().with(MemberFlags::LOOPBACK);
    assert_eq!(
        member.endpoint.join(&name, options),
        Err(JoinError::AlreadyMember(name.clone(), member.id()))
    );
    assert!(member.endpoint.leave(group).is_ok());
    assert_eq!(member.endpoint.leave(group), Err(LeaveError::NotAMember(group, member.id())));
}

#[test]
fn g4_a_join_without_create_finds_no_group() {
    let bus = bus(8);
    let member = Party::on(&bus);
    let name: bus_core::GroupName = "g".parse().unwrap();
    let missing = member.endpoint.join(&name, JoinOptions::default());
    assert_eq!(missing, Err(JoinError::NoSuchGroup(name.clone())));
    let flags = JoinOptions::create().with(MemberFlags::SEND_TO_PEER);
    assert_eq!(member.endpoint.join(&name, flags), Err(JoinError::SendToPeer(name.clone())));
    assert!(bus.find_group(&name).is_none(), "a refused join made nothing");
}

#[test]
fn g4_coming_back_with_other_flags_changes_what_is_heard() {
    let bus = bus(8);
    let mut member = Party::on(&bus);
    let group = member.join("g");
    member.send(group, "not heard");
    member.endpoint.leave(group).unwrap();
    // It was the only member; the group lived on, because its creator does.
    assert_eq!(member.join_with("g", MemberFlags::LOOPBACK), group);
    member.send(group, "heard");
    assert_eq!(member.take_all(), ["heard"]);
}

#[test]
fn g4_who_joins_while_a_send_waits_is_among_its_recipients() {
    let bus = bus(1);
    let (mut sender, mut member, mut late) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let group = member.join("g");
    sender.send(group, "fills");
    sender.wait(group, "waits");
    let joined = late.endpoint.join(&"g".parse().unwrap(), JoinOptions::default()).unwrap();
    member.take();
    let receipt = outcome(&mut sender.lane).unwrap();
    assert!(receipt.sequence > joined.sequence);
    assert_eq!(receipt.recipients, 2);
    assert_eq!(late.take_all(), ["waits"]);
}

#[test]
fn g4_a_member_that_leaves_while_a_send_waits_does_not_get_it() {
    let bus = bus(1);
    let (mut sender, mut stays, mut leaves) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let group = stays.join("g");
    leaves.join("g");
    sender.send(leaves.id(), "fills");
    let wakes = sender.wait(group, "waits");
    let left = leaves.endpoint.leave(group).unwrap();
    assert_eq!(wakes.count(), 1);
    let receipt = outcome(&mut sender.lane).unwrap();
    assert!(receipt.sequence > left);
    assert_eq!(receipt.recipients, 1);
    assert_eq!(stays.take_all(), ["waits"]);
    assert_eq!(leaves.take_all(), ["fills"]);
}

/// Given senders that never stop and a member that comes and goes, when it has read everything,
/// then it has exactly the messages between its joins and its leaves: no hole, nothing later.
#[test]
fn g4_joins_and_leaves_under_load_cut_the_order_cleanly() {
    const VISITS: usize = 60;
    let bus = bus(1 << 14);
    let mut keeper = Party::on(&bus);
    let group = keeper.join("g");
    let stop = AtomicBool::new(false);
    let (visits, heard, sent) = thread::scope(|scope| {
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let (bus, stop) = (&bus, &stop);
                scope.spawn(move || {
                    let mut party = Party::on(bus);
                    let mut sent = Vec::new();
                    while !stop.load(Ordering::Acquire) {
                        let to = bus_core::Destination::Group(group);
                        let receipt = party.lane.send_deadline(to, "x", soon()).unwrap();
                        sent.push(receipt.sequence);
                    }
                    sent
                })
            })
            .collect();
        let drains = scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                keeper.take_all();
            }
        });
        let mut guest = Party::on(&bus);
        let mut visits = Vec::new();
        let mut heard = BTreeSet::new();
        let mut hear = |guest: &mut Party| {
            while let Ok(bus_core::Delivery::Message { message, .. }) = guest.reader.try_receive() {
                assert!(heard.insert(message.sequence()), "twice");
            }
        };
        for _ in 0..VISITS {
            let joined =
                guest.endpoint.join(&"g".parse().unwrap(), JoinOptions::default()).unwrap();
            hear(&mut guest);
            let left = guest.endpoint.leave(group).unwrap();
            visits.push((joined.sequence, left));
            hear(&mut guest);
        }
        stop.store(true, Ordering::Release);
        drains.join().unwrap();
        let sent: BTreeSet<Sequence> =
            senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
        (visits, heard, sent)
    });
    let promised: BTreeSet<Sequence> =
        visits.iter().flat_map(|(joined, left)| sent.range(*joined..*left)).copied().collect();
    assert_eq!(heard, promised);
}
