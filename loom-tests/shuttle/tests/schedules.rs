//! Random schedules of more threads than the model checker can take: a few fan-outs and small sends
//! that overlap, readers that free places, a member that comes and goes.
//!
//! A schedule that leaves a thread waiting for ever is a deadlock, and fails; histories are checked
//! for order, loss and duplicates. What this cannot see is a missing fence (all atomics are
//! sequentially consistent here); the models in `loom-tests` can.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bus_core_scheduled::{
    Bus, Credentials, Delivery, Destination, Endpoint, GroupId, JoinOptions, Limits, Receipt,
    Receiver, Sequence,
};
use shuttle::thread;

const SCHEDULES: usize = if cfg!(feature = "long") { 30_000 } else { 300 };
const SENDS: usize = 4;

fn check(model: impl Fn() + Send + Sync + 'static) {
    let model = Arc::new(model);
    let random = Arc::clone(&model);
    shuttle::check_random(move || random(), SCHEDULES);
    shuttle::check_pct(move || model(), SCHEDULES, 3);
}

fn bus(places: u32) -> Bus {
    let limits = Limits { queue_messages: places, ..Limits::default() };
    Bus::new(limits, 0).unwrap()
}

fn endpoint(bus: &Bus) -> Endpoint {
    bus.open_endpoint(Credentials { uid: 0, pid: 0 }).unwrap()
}

fn join(endpoint: &Endpoint, name: &str) -> GroupId {
    endpoint.join(&name.parse().unwrap(), JoinOptions::create()).unwrap().group
}

/// A thread that sends to each destination in turn, and waits where it must.
fn sender(bus: &Bus, to: Vec<Destination>) -> thread::JoinHandle<Vec<(Destination, Receipt)>> {
    let endpoint = endpoint(bus);
    thread::spawn(move || {
        let mut lane = endpoint.lane().unwrap();
        let sends = to.into_iter().cycle().take(SENDS);
        sends.map(|to| (to, lane.send(to, "x").unwrap())).collect()
    })
}

/// A thread that reads so many messages.
fn reader(mut receiver: Receiver, messages: usize) -> thread::JoinHandle<Vec<Sequence>> {
    thread::spawn(move || {
        let mut read = Vec::new();
        while read.len() < messages {
            match receiver.receive().unwrap() {
                Delivery::Message { message, .. } => read.push(message.sequence()),
                other => panic!("{other:?}"),
            }
        }
        read
    })
}

/// Three members of two overlapping groups with queues of one place, four senders, three readers:
/// seven threads, and every send has to wait for somebody.
#[test]
fn g2_g5_overlapping_fan_outs_and_small_sends_all_get_through_in_one_order() {
    check(|| {
        let bus = bus(1);
        let members = [endpoint(&bus), endpoint(&bus), endpoint(&bus)];
        let all = Destination::Group(join(&members[0], "all"));
        join(&members[1], "all");
        join(&members[2], "all");
        let two = Destination::Group(join(&members[1], "two"));
        join(&members[2], "two");
        let one = Destination::Endpoint(members[0].id());

        let senders = [
            sender(&bus, vec![all]),
            sender(&bus, vec![two]),
            sender(&bus, vec![one]),
            sender(&bus, vec![two, all]),
        ];
        // Of the last sender's messages half go to all.
        let expected = [SENDS + SENDS + SENDS / 2, SENDS + SENDS + SENDS, SENDS * 3];
        let readers: Vec<_> = (members.iter().zip(expected))
            .map(|(member, messages)| reader(member.receiver().unwrap(), messages))
            .collect();
        let mut sent: BTreeMap<Sequence, Destination> = BTreeMap::new();
        for sending in senders {
            for (to, receipt) in sending.join().unwrap() {
                assert!(sent.insert(receipt.sequence, to).is_none(), "a sequence is unique");
            }
        }
        let reaches: [&[Destination]; 3] = [&[all, one], &[all, two], &[all, two]];
        for (reading, reaches) in readers.into_iter().zip(reaches) {
            // What a member reads is what was sent to it, in the order of the bus: no loss, no
            // duplicate, no other order.
            let ordered = sent.iter().filter(|(_, to)| reaches.contains(to));
            let ordered: Vec<Sequence> = ordered.map(|(sequence, _)| *sequence).collect();
            assert_eq!(reading.join().unwrap(), ordered);
        }
    });
}

/// A member never reads and leaves in the end; small sends to the others do not wait for that.
#[test]
fn g5_those_who_need_only_healthy_members_do_not_wait_for_a_dead_one() {
    check(|| {
        let bus = bus(1);
        let (dead, one, two) = (endpoint(&bus), endpoint(&bus), endpoint(&bus));
        let group = join(&dead, "g");
        join(&one, "g");
        join(&two, "g");
        let all = Destination::Group(group);
        let fills = endpoint(&bus);
        fills.lane().unwrap().send(Destination::Endpoint(dead.id()), "fills").unwrap();

        let stuck = [sender(&bus, vec![all]), sender(&bus, vec![all])];
        let healthy = [
            sender(&bus, vec![Destination::Endpoint(one.id())]),
            sender(&bus, vec![Destination::Endpoint(two.id())]),
        ];
        let readers = [
            reader(one.receiver().unwrap(), SENDS * 3),
            reader(two.receiver().unwrap(), SENDS * 3),
        ];
        for sending in healthy {
            sending.join().unwrap();
        }
        // Only now the dead one goes, and the fan-outs with the others.
        dead.leave(group).unwrap();
        for sending in stuck {
            sending.join().unwrap();
        }
        for reading in readers {
            let read = reading.join().unwrap();
            assert!(read.is_sorted());
        }
    });
}

/// A member joins and leaves while two send: between its join and its leave it misses nothing.
#[test]
fn g4_a_member_that_comes_and_goes_has_no_hole_between() {
    check(|| {
        let bus = bus(64);
        let (stays, comes) = (endpoint(&bus), endpoint(&bus));
        let group = join(&stays, "g");
        let to = Destination::Group(group);
        let senders = [sender(&bus, vec![to]), sender(&bus, vec![to]), sender(&bus, vec![to])];
        let coming = thread::spawn(move || {
            let joined = comes.join(&"g".parse().unwrap(), JoinOptions::create()).unwrap();
            let left = comes.leave(group).unwrap();
            let mut receiver = comes.receiver().unwrap();
            let read = std::iter::from_fn(|| receiver.try_receive().ok());
            let read: Vec<Sequence> = read
                .map(|delivery| match delivery {
                    Delivery::Message { message, .. } => message.sequence(),
                    other => panic!("{other:?}"),
                })
                .collect();
            (joined.sequence, left, read)
        });
        let mut sent: Vec<Sequence> = Vec::new();
        for sending in senders {
            sent.extend(sending.join().unwrap().iter().map(|(_, receipt)| receipt.sequence));
        }
        sent.sort_unstable();
        let (joined, left, read) = coming.join().unwrap();
        let between = |sequence: &Sequence| (joined..left).contains(sequence);
        let expected: Vec<Sequence> = sent.into_iter().filter(between).collect();
        assert_eq!(read, expected);
    });
}
