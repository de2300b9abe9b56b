//! G5: a send that waits holds nothing, stops nobody else, can be given up, and is not forgotten.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;

use bus_core::{Bus, Delivery, Destination, Lane, SendError, Submitted};

use crate::given::{Party, Wakes, bus, full, outcome, soon, take_all, wait};

fn parties<const N: usize>(bus: &Bus) -> [Party; N] {
    std::array::from_fn(|_| Party::on(bus))
}

#[test]
fn g5_a_send_that_waits_for_a_dead_member_does_not_stop_sends_to_the_others() {
    let bus = bus(1);
    let [mut sender, mut other, mut alive, mut dead] = parties(&bus);
    let group = alive.join("g");
    dead.join("g");
    other.send(dead.id(), "fills the dead one");
    sender.wait(group, "waits");
    for round in 0..100 {
        other.send(alive.id(), &format!("{round}"));
        assert_eq!(alive.take(), format!("{round}"));
    }
    assert_eq!(sender.lane.poll_outcome(), None);
    dead.take();
    assert!(outcome(&mut sender.lane).is_ok());
}

#[test]
fn g5_lanes_do_not_wait_for_each_other() {
    let bus = bus(1);
    let [mut sender, mut is_full, mut has_room] = parties(&bus);
    sender.send(is_full.id(), "fills");
    sender.wait(is_full.id(), "waits");
    assert_eq!(
        sender.try_send(has_room.id(), "behind it"),
        Err(SendError::LaneBusy),
        "a lane is first in, first out"
    );
    assert_eq!(
        sender.lane.submit(has_room.here(), "behind it", Waker::noop().clone()),
        Err(SendError::LaneBusy)
    );
    let mut second = sender.endpoint.lane().unwrap();
    assert!(second.try_send(has_room.here(), "beside it").is_ok());
    assert_eq!(has_room.take_all(), ["beside it"]);
    is_full.take();
    // Decided, and busy until somebody has asked.
    assert!(sender.lane.is_busy());
    assert_eq!(sender.try_send(has_room.id(), "x"), Err(SendError::LaneBusy));
    assert!(outcome(&mut sender.lane).is_ok());
    assert!(!sender.lane.is_busy());
    assert!(sender.try_send(has_room.id(), "x").is_ok());
}

#[test]
fn g5_sends_that_wait_for_one_queue_go_first_come_first_served() {
    let bus = bus(2);
    let mut reader = Party::on(&bus);
    let mut senders: Vec<Party> = (0..5).map(|_| Party::on(&bus)).collect();
    senders[0].send(reader.id(), "a");
    senders[0].send(reader.id(), "b");
    for (at, sender) in senders.iter_mut().enumerate() {
        sender.wait(reader.id(), &at.to_string());
    }
    assert_eq!(bus.stats().waiting_sends, 5);
    let taken: Vec<String> = (0..7).map(|_| reader.take()).collect();
    assert_eq!(taken, ["a", "b", "0", "1", "2", "3", "4"]);
    for sender in &mut senders {
        assert!(outcome(&mut sender.lane).is_ok());
    }
    assert_eq!(bus.stats().waiting_sends, 0);
}

#[test]
fn g5_a_newcomer_does_not_take_the_place_that_is_freed() {
    let bus = bus(1);
    let [mut waits, mut comes, mut reader] = parties(&bus);
    waits.send(reader.id(), "first");
    let wakes = waits.wait(reader.id(), "second");
    assert_eq!(reader.take(), "first");
    assert_eq!(wakes.count(), 1, "committed by the reader's own call");
    assert_eq!(full(comes.try_send(reader.id(), "third")).1, 1);
    assert_eq!(reader.take_all(), ["second"]);
}

#[test]
fn g5_one_read_of_many_lets_all_that_fit_go() {
    let bus = bus(4);
    let mut reader = Party::on(&bus);
    let mut senders: Vec<Party> = (0..6).map(|_| Party::on(&bus)).collect();
    for i in 0..4 {
        senders[0].send(reader.id(), &i.to_string());
    }
    for sender in &mut senders {
        sender.wait(reader.id(), "waits");
    }
    for _ in 0..4 {
        assert!(reader.reader.drain().is_some());
    }
    assert_eq!(bus.stats().waiting_sends, 6, "drained is not taken by the application");
    reader.reader.release(4, 4).unwrap();
    assert_eq!(bus.stats().waiting_sends, 2);
    assert_eq!(reader.reader.release(1, 0).unwrap_err().held_messages, 0);
}

#[test]
fn g5_a_waiting_send_is_woken_once_and_by_nothing_else() {
    let bus = bus(1);
    let [mut sender, mut a, mut b] = parties(&bus);
    let group = a.join("g");
    b.join("g");
    sender.send(group, "first");
    let wakes = sender.wait(group, "second");
    a.take();
    assert_eq!(wakes.count(), 0);
    b.take();
    assert_eq!(wakes.count(), 1);
    a.take();
    b.take();
    assert_eq!(wakes.count(), 1);
}

#[test]
fn g5_each_end_of_what_is_waited_for_decides_the_send() {
    struct Case {
        name: &'static str,
        /// What happens to the full recipient, after the send waits.
        happens: fn(&Bus, Party) -> Option<Party>,
        unicast: fn(&Party) -> SendError,
    }
    let cases = [
        Case {
            name: "close",
            happens: |_, party| {
                drop(party);
                None
            },
            unicast: |party| SendError::NoSuchEndpoint(party.id()),
        },
        Case {
            name: "shutdown_receive",
            happens: |_, party| {
                party.endpoint.shutdown_receive();
                Some(party)
            },
            unicast: |party| SendError::ReceiveShut(party.id()),
        },
    ];
    for case in cases {
        let bus = bus(1);
        let [mut sender, mut other, mut stays, is_full] = parties(&bus);
        let group = stays.join("g");
        is_full.join("g");
        other.send(is_full.id(), "fills");
        let unicast = (case.unicast)(&is_full);
        let to_group = sender.wait(group, "to the group");
        let to_it = other.wait(is_full.id(), "to it");
        let left = (case.happens)(&bus, is_full);
        assert_eq!((to_group.count(), to_it.count()), (1, 1), "{}", case.name);
        assert_eq!(outcome(&mut other.lane), Err(unicast), "{}", case.name);
        assert_eq!(outcome(&mut sender.lane).unwrap().recipients, 1);
        assert_eq!(stays.take_all(), ["to the group"], "{}", case.name);
        if let Some(mut left) = left {
            assert_eq!(left.take_all(), ["fills"], "queued stays readable");
        }
    }
}

#[test]
fn g5_the_end_of_a_group_decides_what_waits_for_it() {
    let bus = bus(1);
    let [mut sender, mut other] = parties(&bus);
    let creator = Party::on(&bus);
    let member = Party::on(&bus);
    let (group, _) = creator.endpoint.create_group(&"g".parse().unwrap()).unwrap();
    member.join("g");
    other.send(member.id(), "fills");
    let wakes = sender.wait(group, "waits");
    drop(creator);
    assert_eq!(wakes.count(), 0, "it has a member");
    member.endpoint.leave(group).unwrap();
    assert_eq!(wakes.count(), 1);
    assert_eq!(outcome(&mut sender.lane), Err(SendError::NoSuchGroup(group)));
    assert_eq!(sender.try_send(group, "later"), Err(SendError::NoSuchGroup(group)));
}

#[test]
fn g5_the_last_leave_sends_to_an_empty_group_that_lives() {
    let bus = bus(1);
    let [mut sender, mut other, creator, member] = parties(&bus);
    let (group, _) = creator.endpoint.create_group(&"g".parse().unwrap()).unwrap();
    member.join("g");
    other.send(member.id(), "fills");
    sender.wait(group, "waits");
    member.endpoint.leave(group).unwrap();
    assert_eq!(outcome(&mut sender.lane).unwrap().recipients, 0);
}

#[test]
fn g5_a_closed_sender_has_nothing_committed_afterwards() {
    let bus = bus(1);
    let [mut fills, mut sender, mut reader] = parties(&bus);
    fills.send(reader.id(), "fills");
    let wakes = sender.wait(reader.id(), "waits");
    let Party { endpoint, mut lane, .. } = sender;
    drop(endpoint);
    assert_eq!(wakes.count(), 1);
    assert_eq!(outcome(&mut lane), Err(SendError::Closed));
    assert_eq!(lane.try_send(reader.here(), "later"), Err(SendError::Closed));
    assert_eq!(reader.take_all(), ["fills"]);
}

#[test]
fn g5_a_dropped_lane_gives_its_send_up() {
    let bus = bus(1);
    let [mut sender, mut reader] = parties(&bus);
    sender.send(reader.id(), "fills");
    let mut second = sender.endpoint.lane().unwrap();
    wait(&mut second, reader.id(), "waits");
    drop(second);
    assert_eq!(bus.stats().waiting_sends, 0);
    assert_eq!(reader.take_all(), ["fills"]);
}

#[test]
fn g5_a_cancel_lets_the_next_one_in_line_be_the_first() {
    let bus = bus(1);
    let [mut first, mut second, mut reader] = parties(&bus);
    first.send(reader.id(), "fills");
    first.wait(reader.id(), "cancelled");
    second.wait(reader.id(), "goes");
    assert_eq!(first.lane.cancel(), Some(Err(SendError::Cancelled)));
    reader.take();
    assert!(outcome(&mut second.lane).is_ok());
    assert_eq!(reader.take_all(), ["goes"]);
}

#[test]
fn g5_waiting_for_oneself_alone_is_refused() {
    let bus = bus(1);
    let [mut me, mut other] = parties(&bus);
    let group = me.join_with("g", bus_core::MemberFlags::LOOPBACK);
    other.join("g");
    me.send(me.id(), "fills my own");
    assert_eq!(
        full(me.try_send(group, "x")),
        (vec![me.id()], 1),
        "who does not want to wait is told who is full"
    );
    let submitted = me.lane.submit(Destination::Group(group), "x", Waker::noop().clone());
    assert_eq!(submitted, Err(SendError::OwnQueueFull));
    assert_eq!(other.take_all(), [""; 0]);
    me.take();
    assert_eq!(me.send(group, "x").recipients, 2);
}

/// Given a blocked thread that alone reads its endpoint, when everybody else has made room, then
/// its send fails: nobody could ever make the room that it lacks. Whichever of the two full
/// recipients has the smaller id.
#[test]
fn g5_a_waiting_send_that_comes_to_lack_only_its_own_room_is_refused() {
    for me_first in [true, false] {
        let bus = bus(1);
        let [a, b, mut fills] = parties(&bus);
        let (mut me, mut other) = if me_first { (a, b) } else { (b, a) };
        let group = me.join_with("g", bus_core::MemberFlags::LOOPBACK);
        other.join("g");
        fills.send(group, "fills both");
        let wakes = me.wait(group, "waits");
        other.take();
        assert_eq!(wakes.count(), 1, "own id is the smaller one: {me_first}");
        assert_eq!(outcome(&mut me.lane), Err(SendError::OwnQueueFull));
        assert_eq!(other.take_all(), [""; 0]);
    }
}

#[test]
fn g5_a_blocked_thread_goes_on_when_there_is_room() {
    let bus = bus(1);
    let [mut sender, mut reader] = parties(&bus);
    let to = reader.here();
    let texts = thread::scope(|scope| {
        let sending = scope.spawn(move || {
            for i in 0..200 {
                let text = i.to_string();
                if i % 2 == 0 {
                    sender.lane.send(to, text).unwrap();
                } else {
                    sender.lane.send_deadline(to, text, soon()).unwrap();
                }
            }
        });
        let texts: Vec<String> = (0..200)
            .map(|_| match reader.reader.receive_deadline(soon()) {
                Ok(Delivery::Message { message, .. }) => crate::given::text(&message),
                other => panic!("{other:?}"),
            })
            .collect();
        sending.join().unwrap();
        texts
    });
    assert_eq!(texts, (0..200).map(|i| i.to_string()).collect::<Vec<_>>());
}

#[test]
fn g5_a_blocked_thread_is_told_of_the_end() {
    let bus = bus(1);
    let [mut sender, reader] = parties(&bus);
    let to = reader.here();
    let id = reader.id();
    sender.send(to, "fills");
    thread::scope(|scope| {
        let blocked = scope.spawn(move || sender.lane.send_deadline(to, "waits", soon()));
        while bus.stats().waiting_sends == 0 {
            thread::yield_now();
        }
        drop(reader);
        assert_eq!(blocked.join().unwrap(), Err(SendError::NoSuchEndpoint(id)));
    });
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(waker))
}

#[test]
fn g5_a_task_waits_without_a_thread() {
    let bus = bus(1);
    let [mut sender, mut reader] = parties(&bus);
    sender.send(reader.id(), "first");
    let (early, late) = (Wakes::new(), Wakes::new());
    {
        let mut future = pin!(sender.lane.send_async(reader.here(), "second"));
        assert!(poll(future.as_mut(), &early.waker()).is_pending());
        assert!(poll(future.as_mut(), &late.waker()).is_pending());
        reader.take();
        assert_eq!((early.count(), late.count()), (0, 1), "the waker of the last poll counts");
        let Poll::Ready(Ok(receipt)) = poll(future.as_mut(), &late.waker()) else {
            panic!("it was woken because it is decided");
        };
        assert_eq!(receipt.recipients, 1);
    }
    assert!(!sender.lane.is_busy());
    assert_eq!(reader.take_all(), ["second"]);
}

#[test]
fn g5_a_dropped_future_gives_its_send_up_and_no_other() {
    let bus = bus(1);
    let [mut sender, mut reader] = parties(&bus);
    sender.send(reader.id(), "fills");
    {
        let mut future = pin!(sender.lane.send_async(reader.here(), "dropped"));
        assert!(poll(future.as_mut(), Waker::noop()).is_pending());
    }
    assert!(!sender.lane.is_busy());
    assert_eq!(bus.stats().waiting_sends, 0);

    let wakes = sender.wait(reader.id(), "submitted");
    {
        let mut refused = pin!(sender.lane.send_async(reader.here(), "second in line"));
        assert_eq!(poll(refused.as_mut(), Waker::noop()), Poll::Ready(Err(SendError::LaneBusy)));
    }
    assert!(sender.lane.is_busy(), "the first one still waits");
    reader.take();
    assert_eq!(wakes.count(), 1);
    assert!(outcome(&mut sender.lane).is_ok());
    assert_eq!(reader.take_all(), ["submitted"]);
}

#[test]
fn g5_the_message_that_crosses_the_byte_limit_is_taken() {
    let bus = crate::given::bus_with(bus_core::Limits {
        queue_messages: 100,
        queue_bytes: 10,
        ..bus_core::Limits::default()
    });
    let [mut sender, mut reader] = parties(&bus);
    sender.send(reader.id(), "nine char");
    sender.send(reader.id(), "far beyond the limit of ten bytes");
    assert_eq!(full(sender.try_send(reader.id(), "")).1, 1);
    sender.wait(reader.id(), "waits");
    reader.take();
    assert_eq!(bus.stats().waiting_sends, 1, "33 bytes are still there");
    reader.take();
    assert!(outcome(&mut sender.lane).is_ok());
    assert_eq!(take_all(&mut reader.reader), ["waits"]);
}

/// Lanes that always have a send waiting for one endpoint.
struct Flood {
    lanes: Vec<Lane>,
    to: Destination,
}

impl Flood {
    fn new(bus: &Bus, lanes: usize, to: &Party) -> Self {
        let endpoint = Party::on(bus).endpoint;
        let mut flood =
            Self { lanes: (0..lanes).map(|_| endpoint.lane().unwrap()).collect(), to: to.here() };
        // The endpoint is needed as long as its lanes are.
        std::mem::forget(endpoint);
        flood.refill();
        flood
    }

    fn refill(&mut self) {
        for lane in &mut self.lanes {
            lane.poll_outcome();
            while !lane.is_busy() {
                let _ = lane.submit(self.to, "small", Waker::noop().clone()).unwrap();
            }
        }
    }
}

/// Two readers that never have room at the same time: a fan-out across both gets through all the
/// same, and soon.
#[test]
fn g5_a_fan_out_gets_through_readers_that_never_have_room_together() {
    let bus = bus(2);
    let [mut fan_out, mut left, mut right] = parties(&bus);
    let group = left.join("g");
    right.join("g");
    let mut floods = [Flood::new(&bus, 2, &left), Flood::new(&bus, 2, &right)];
    fan_out.wait(group, "fan-out");
    for _ in 0..4 {
        for (flood, reader) in floods.iter_mut().zip([&mut left, &mut right]) {
            reader.take_message();
            flood.refill();
        }
    }
    assert!(outcome(&mut fan_out.lane).is_ok());
}

/// Nobody, whatever it has suffered elsewhere, takes a place at the queue at which an older send
/// is next in line.
#[test]
fn g5_sends_that_missed_places_elsewhere_do_not_starve_who_is_next_in_line() {
    let bus = bus(1);
    // Ids rise in this order, so that the fan-outs look at the toggled queues first.
    let [mut one, mut two, mut busy] = parties(&bus);
    let [mut fills, mut waits, fans] = parties(&bus);
    let group = one.join("g");
    two.join("g");
    busy.join("g");
    fills.send(group, "fills all three");

    let mut fan_outs: Vec<Lane> = (0..10).map(|_| fans.endpoint.lane().unwrap()).collect();
    for lane in &mut fan_outs {
        wait(lane, group, "fan-out");
    }
    let mut small = waits.endpoint.lane().unwrap();
    waits.wait(busy.id(), "the patient one");
    // The fan-outs are offered all that they can be without any move of the busy queue.
    for _ in 0..10 {
        one.take_all();
        fills.try_send(one.id(), "refill").ok();
        two.take_all();
        fills.try_send(two.id(), "refill").ok();
    }
    drop(fan_outs.drain(..5));
    // Younger than the patient one, and treated likewise.
    let mut younger: Vec<Lane> = (0..5).map(|_| fans.endpoint.lane().unwrap()).collect();
    for lane in &mut younger {
        wait(lane, group, "younger");
    }
    for _ in 0..10 {
        one.take_all();
        fills.try_send(one.id(), "refill").ok();
        two.take_all();
        fills.try_send(two.id(), "refill").ok();
    }
    one.take_all();
    two.take_all();
    let mut before = 0;
    while waits.lane.is_busy() {
        let message = busy.take_message();
        assert_ne!(crate::given::text(&message), "younger", "overtaken");
        before += 1;
        assert!(before <= 7, "the ones that were there before it, no more");
        waits.lane.poll_outcome();
        one.take_all();
        two.take_all();
    }
    wait(&mut small, busy.id(), "next");
}

/// Given a send that keeps the reserve place of a queue, when an older one has come to stand in
/// line there, then the older one is the first.
#[test]
fn g5_a_place_that_is_kept_is_left_to_an_older_send_in_line_for_it() {
    let bus = bus(1);
    let [mut first, mut shared, mut last] = parties(&bus);
    let [mut older, mut younger, mut fills] = parties(&bus);
    let olders = first.join("older");
    shared.join("older");
    let youngers = shared.join("younger");
    last.join("younger");
    for reader in [&first, &shared, &last] {
        fills.send(reader.id(), "fills");
    }
    older.wait(olders, "older");
    younger.wait(youngers, "younger");
    // The younger one is offered a place, and keeps it; then the older one comes there.
    shared.take();
    fills.send(shared.id(), "refills");
    first.take();
    fills.send(first.id(), "refills");
    // All that the younger one lacks, but for the place that is the older one's first.
    last.take();
    assert_eq!(younger.lane.poll_outcome(), None);
    assert_eq!(shared.take(), "refills");
    assert!(outcome(&mut older.lane).is_ok());
    assert_eq!(shared.take(), "older");
    assert!(outcome(&mut younger.lane).is_ok());
}

/// Given senders that give their waiting sends up at any moment, members that come and go, and
/// readers that read, when all is over, then each message with a receipt has been read as often as
/// that says, each cancelled one by nobody, and nobody waits.
#[test]
fn g5_cancels_leaves_and_reads_under_load_lose_nothing() {
    const EACH: usize = 300;
    let bus = bus(1);
    let mut readers: Vec<Party> = (0..3).map(|_| Party::on(&bus)).collect();
    let keeper = Party::on(&bus);
    let groups: Vec<Destination> = ["a", "b"]
        .into_iter()
        .map(|name| {
            for reader in &readers {
                reader.join(name);
            }
            let name = name.parse().unwrap();
            let created = keeper.endpoint.bus().find_group(&name);
            Destination::Group(created.unwrap().id)
        })
        .collect();
    let done = AtomicBool::new(false);
    let (sent, read) = thread::scope(|scope| {
        let reading: Vec<_> = readers
            .iter_mut()
            .enumerate()
            .map(|(at, reader)| {
                let done = &done;
                scope.spawn(move || {
                    let mut read = Vec::new();
                    for turn in 0.. {
                        let last = done.load(Ordering::Acquire);
                        let taken = take_all(&mut reader.reader);
                        if last && taken.is_empty() {
                            return read;
                        }
                        read.extend(taken);
                        if at == 0 && turn % 16 == 0 {
                            let group = reader.endpoint.bus().find_group(&"a".parse().unwrap());
                            let group = group.expect("it has members").id;
                            if reader.endpoint.leave(group).is_err() {
                                reader.join("a");
                            }
                        }
                        thread::yield_now();
                    }
                    read
                })
            })
            .collect();
        let sending: Vec<_> = (0..3)
            .map(|n| {
                let (bus, groups) = (&bus, &groups);
                scope.spawn(move || {
                    let mut party = Party::on(bus);
                    let mut sent = Vec::new();
                    for i in 0..EACH {
                        let text = format!("{n} {i}");
                        let to = groups[(n + i) % 2];
                        let outcome = match i % 3 {
                            0 => party.lane.send_deadline(to, text.as_str(), soon()),
                            1 => party.lane.try_send(to, text.as_str()),
                            _ => {
                                match party.lane.submit(to, text.as_str(), Waker::noop().clone()) {
                                    Ok(Submitted::Committed(receipt)) => Ok(receipt),
                                    Ok(Submitted::Waiting) => {
                                        (0..i % 7).for_each(|_| thread::yield_now());
                                        party.lane.cancel().expect("it has been submitted")
                                    }
                                    Err(error) => Err(error),
                                }
                            }
                        };
                        sent.push((text, outcome));
                    }
                    sent
                })
            })
            .collect();
        let sent: Vec<_> = sending.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
        done.store(true, Ordering::Release);
        let read: Vec<String> =
            reading.into_iter().flat_map(|reader| reader.join().unwrap()).collect();
        (sent, read)
    });
    let mut counts: HashMap<&str, u32> = HashMap::new();
    for text in &read {
        *counts.entry(text).or_default() += 1;
    }
    for (text, outcome) in &sent {
        let promised = match outcome {
            Ok(receipt) => receipt.recipients,
            Err(SendError::Cancelled | SendError::WouldBlock { .. }) => 0,
            Err(error) => panic!("{error}"),
        };
        let found = counts.remove(text.as_str()).unwrap_or(0);
        assert_eq!(found, promised, "{text}: {outcome:?}");
    }
    assert!(counts.is_empty(), "nobody sent {counts:?}");
    assert_eq!(bus.stats().waiting_sends, 0);
}
