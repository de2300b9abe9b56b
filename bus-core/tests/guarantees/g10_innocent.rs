//! G10: no user holds more than half of the room left in another user's queue.

use std::task::Waker;
use std::time::Duration;

use bus_core::{
    Bus, Credentials, Delivery, Destination, EndpointId, GroupId, GroupName, Limits, MemberFlags,
    NameFlags, OwnOptions, SendError,
};

use crate::given::{Party, bus, bus_with};

/// An endpoint of a user.
fn of(bus: &Bus, uid: u32) -> Party {
    let endpoint = bus.open_endpoint(Credentials { uid, pid: uid }).unwrap();
    Party { reader: endpoint.receiver().unwrap(), lane: endpoint.lane().unwrap(), endpoint }
}

/// Sends until a send would block, and gives how many went through and who is said to lack room.
fn flood(party: &mut Party, to: Destination) -> (u32, Vec<EndpointId>) {
    for sent in 0.. {
        match party.lane.try_send(to, "flood") {
            Ok(_) => {}
            Err(SendError::WouldBlock { full }) => return (sent, full.named().to_vec()),
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!("a queue is bounded")
}

fn group(party: &Party, flags: MemberFlags) -> Destination {
    Destination::Group(party.join_with("g", flags))
}

fn id_of(group: Destination) -> GroupId {
    let Destination::Group(id) = group else { panic!("{group:?} is no group") };
    id
}

#[test]
fn g10_a_user_takes_half_of_the_room_left_in_anothers_queue() {
    let bus = bus(16);
    let [mut own, mut second, mut third] = [1, 2, 3].map(|uid| of(&bus, uid));
    let reader = of(&bus, 1);
    assert_eq!(flood(&mut second, reader.here()), (8, vec![reader.id()]));
    assert_eq!(flood(&mut third, reader.here()).0, 4);
    assert_eq!(flood(&mut own, reader.here()).0, 4, "whose queue it is has the rest");
    let mut another = of(&bus, 2);
    assert_eq!(flood(&mut another, reader.here()).0, 0, "a user's endpoints share the half");
}

#[test]
fn g10_a_user_takes_half_of_the_bytes_and_one_message_of_any_size() {
    let bus = bus_with(Limits { queue_messages: 100, queue_bytes: 40, ..Limits::default() });
    let (reader, mut stranger) = (of(&bus, 1), of(&bus, 2));
    let mut sent = |text| stranger.lane.try_send(reader.here(), text).is_ok();
    assert_eq!(["0123456789"; 3].map(&mut sent), [true, true, false]);
    let reader = of(&bus, 1);
    let mut sent = |bytes: usize| stranger.lane.try_send(reader.here(), vec![0; bytes]).is_ok();
    assert!(sent(1_000) && !sent(1), "what crosses the limit is taken, and then no more");
}

#[test]
fn g10_who_waits_for_a_share_holds_up_nobody_else() {
    let bus = bus(8);
    let [mut own, mut second, mut third] = [1, 2, 3].map(|uid| of(&bus, uid));
    let mut reader = of(&bus, 1);
    let to = group(&reader, MemberFlags::empty());
    assert_eq!(flood(&mut second, to).0, 4);
    let wakes = second.wait(to, "waits");
    let member = bus.members(id_of(to)).unwrap().next().unwrap();
    assert_eq!((member.blocks, member.full_since), (1, None), "it blocks a send and is not full");
    own.send(to, "passes");
    third.send(to, "passes too");
    // Another endpoint of the same user does not pass.
    let mut another = of(&bus, 2);
    let younger = another.wait(to, "younger");
    assert_eq!(reader.take(), "flood");
    assert_eq!(wakes.count(), 0, "of the six places that others leave three are taken");
    assert_eq!(reader.take(), "flood");
    assert_eq!((wakes.count(), younger.count()), (1, 0), "one place, and it is the older one's");
    let texts = reader.take_all();
    assert_eq!(texts, ["flood", "flood", "passes", "passes too", "waits", "younger"]);
}

#[test]
fn g10_room_that_others_give_back_is_room_of_a_share() {
    let bus = bus(8);
    let (mut own, mut stranger, mut reader) = (of(&bus, 1), of(&bus, 2), of(&bus, 1));
    for _ in 0..4 {
        own.send(reader.here(), "own");
    }
    assert_eq!(flood(&mut stranger, reader.here()).0, 2);
    let wakes = stranger.wait(reader.here(), "waits");
    assert_eq!(reader.take(), "own");
    assert_eq!(wakes.count(), 0, "half of five is two");
    assert_eq!(reader.take(), "own");
    assert_eq!(wakes.count(), 1, "half of six is three");
}

#[test]
fn g10_a_dropping_member_misses_what_goes_beyond_a_users_share() {
    let bus = bus(8);
    let (mut stranger, mut own, mut reader) = (of(&bus, 2), of(&bus, 1), of(&bus, 1));
    let to = group(&reader, MemberFlags::DROP_WHEN_FULL);
    let receipts: Vec<u32> = (0..6).map(|_| stranger.send(to, "x").dropped).collect();
    assert_eq!(receipts, [0, 0, 0, 0, 1, 1]);
    assert_eq!(own.send(to, "own").dropped, 0, "there is room for its own user's");
    for _ in 0..4 {
        assert_eq!(reader.take(), "x");
    }
    let Ok(Delivery::Message { missed, .. }) = reader.reader.try_receive() else { panic!() };
    assert_eq!(missed.map(|gap| gap.count), Some(2));
}

#[test]
fn g6_a_queue_is_writable_for_one_user_and_not_for_another() {
    let bus = bus(8);
    let (mut stranger, own, mut reader) = (of(&bus, 2), of(&bus, 1), of(&bus, 1));
    flood(&mut stranger, reader.here());
    let watch = |party: &Party| {
        party.endpoint.watch_writable(reader.here(), Waker::noop().clone()).unwrap()
    };
    assert!(watch(&own).is_none(), "writable now");
    let mut watch = watch(&stranger).expect("not writable");
    assert_eq!(watch.outcome(), None);
    reader.take();
    assert_eq!(watch.outcome(), Some(Ok(())));
}

#[test]
fn g10_of_two_workers_the_one_that_has_room_for_the_user_gets_it() {
    let bus = bus(8);
    let name: GroupName = "org.example.Work".parse().unwrap();
    let (mut one, mut two, mut stranger) = (of(&bus, 1), of(&bus, 1), of(&bus, 2));
    for worker in [&one, &two] {
        let options = OwnOptions::new(NameFlags::SHARED);
        worker.endpoint.own_name(&name, options).unwrap();
    }
    let to = Destination::Name(bus.find_name(&name).unwrap().id);
    assert_eq!(flood(&mut stranger, to).0, 8, "half of each");
    let wakes = stranger.wait(to, "waits");
    let mut own = of(&bus, 1);
    own.send(to, "passes");
    let texts = [&mut one, &mut two].map(|worker| {
        std::iter::from_fn(|| match worker.reader.try_receive() {
            Ok(Delivery::Name(_)) => Some(String::new()),
            Ok(Delivery::Message { message, .. }) => Some(crate::given::text(&message)),
            _ => None,
        })
        .collect::<Vec<_>>()
    });
    assert_eq!(wakes.count(), 1);
    let all = texts.concat();
    assert_eq!(all.iter().filter(|text| *text == "waits").count(), 1);
    assert_eq!(all.iter().filter(|text| *text == "passes").count(), 1);
}

#[test]
fn g8_a_reader_that_takes_nothing_of_one_users_share_is_stalled_and_one_that_reads_is_not() {
    for reads in [false, true] {
        let limits =
            Limits { queue_messages: 8, stall: Duration::from_secs(10), ..Limits::default() };
        let bus = bus_with(limits);
        let mut now = Duration::from_secs(1_000);
        bus.tick(now);
        let (mut stranger, mut reader) = (of(&bus, 2), of(&bus, 1));
        let to = group(&reader, MemberFlags::empty());
        flood(&mut stranger, to);
        let mut lanes: Vec<_> = (0..12).map(|_| stranger.endpoint.lane().unwrap()).collect();
        for lane in &mut lanes {
            let _ = lane.submit(to, "waits", Waker::noop().clone()).unwrap();
        }
        let mut evicted = Vec::new();
        for _ in 0..14 {
            now += Duration::from_secs(1);
            evicted.extend(bus.tick(now));
            if reads && evicted.is_empty() {
                let _ = reader.reader.try_receive();
            }
        }
        assert_eq!(evicted.len(), usize::from(!reads), "reads: {reads}");
    }
}
