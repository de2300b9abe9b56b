//! Several workers under one name: each message to exactly one that has room.

use std::time::Duration;

use bus_core::{
    Bus, Destination, Draft, EvictionCause, Kind, Limits, NameFlags, NameId, SendError,
};

use crate::given::{Party, bus, bus_with};

/// So many workers of one name.
fn workers(bus: &Bus, count: usize) -> (NameId, Vec<Party>) {
    let workers: Vec<Party> = (0..count).map(|_| Party::on(bus)).collect();
    let ids: Vec<NameId> =
        workers.iter().map(|worker| worker.owns("w", NameFlags::SHARED)).collect();
    assert!(ids.windows(2).all(|two| two[0] == two[1]));
    (ids[0], workers)
}

#[test]
fn equals_take_turns() {
    let bus = bus(8);
    let (id, mut workers) = workers(&bus, 3);
    let mut sender = Party::on(&bus);
    for text in ["0", "1", "2", "3", "4", "5"] {
        assert_eq!(sender.send(id, text).recipients, 1);
    }
    let taken: Vec<_> = workers.iter_mut().map(Party::take_all).collect();
    assert_eq!(taken, [["0", "3"], ["1", "4"], ["2", "5"]]);
}

#[test]
fn who_has_less_to_do_is_given_more() {
    let bus = bus(8);
    let (id, mut workers) = workers(&bus, 2);
    let mut sender = Party::on(&bus);
    let busy = Destination::Endpoint(workers[0].id());
    for _ in 0..3 {
        sender.lane.try_send(busy, "busy").unwrap();
    }
    for text in ["a", "b", "c"] {
        sender.send(id, text);
    }
    assert_eq!(workers[1].take_all(), ["a", "b", "c"]);
    assert_eq!(workers[0].take_all(), ["busy"; 3]);
}

#[test]
fn who_owes_more_answers_is_given_less() {
    let bus = bus(8);
    let (id, mut workers) = workers(&bus, 2);
    let mut sender = Party::on(&bus);
    let ask = |sender: &mut Party, text: &str| {
        let draft = Draft { kind: Kind::Request { repeatable: false }, ..Draft::from(text) };
        sender.lane.try_send(Destination::Name(id), draft).unwrap().sequence
    };
    let first = ask(&mut sender, "a");
    let second = ask(&mut sender, "b");
    // Both have taken what they were asked; one has answered.
    assert_eq!(workers[0].take_all(), ["a"]);
    assert_eq!(workers[1].take_all(), ["b"]);
    workers[1].lane.try_send(Destination::Caller(second), "done").unwrap();
    ask(&mut sender, "c");
    let fourth = ask(&mut sender, "d");
    assert_eq!(workers[1].take_all(), ["c"], "and then they are equal, and the first has its turn");
    assert_eq!(workers[0].take_all(), ["d"]);
    // Whatever ends a request ends what is owed.
    assert!(workers[0].endpoint.decline_request(first));
    assert!(workers[0].endpoint.decline_request(fourth));
    ask(&mut sender, "e");
    ask(&mut sender, "f");
    assert_eq!(workers[0].take_all(), ["e"], "it owed nothing, and the other one answer");
}

#[test]
fn g5_a_send_waits_at_all_workers_and_the_first_with_room_gets_it() {
    for freed in 0..3 {
        let bus = bus(1);
        let (id, mut workers) = workers(&bus, 3);
        let mut sender = Party::on(&bus);
        for _ in 0..3 {
            sender.send(id, "fills");
        }
        let Err(SendError::WouldBlock { full }) = sender.try_send(id, "x") else { panic!() };
        assert_eq!(full.count(), 3, "all are named");
        let wakes = sender.wait(id, "waits");
        assert_eq!(bus.stats().waiting_sends, 1);
        assert_eq!(workers[freed].take_all(), ["fills", "waits"], "{freed}");
        assert_eq!(wakes.count(), 1);
        assert_eq!(sender.outcome().unwrap().recipients, 1);
        for (at, worker) in workers.iter_mut().enumerate() {
            let left: &[&str] = if at == freed { &[] } else { &["fills"] };
            assert_eq!(worker.take_all(), left, "exactly one");
        }
        assert_eq!(bus.stats().waiting_sends, 0);
    }
}

/// Whatever comes later, to the name or to a worker directly, does not pass it.
#[test]
fn g5_nobody_passes_a_send_that_waits_at_a_worker() {
    let bus = bus(1);
    let (id, mut workers) = workers(&bus, 2);
    let [mut old, mut young, mut direct] = [(); 3].map(|()| Party::on(&bus));
    old.send(id, "fills");
    old.send(id, "fills");
    old.wait(id, "old");
    let to_second = Destination::Endpoint(workers[1].id());
    let waker = std::task::Waker::noop();
    assert_eq!(
        direct.lane.submit(to_second, "direct", waker.clone()),
        Ok(bus_core::Submitted::Waiting)
    );
    young.wait(id, "young");
    assert_eq!(workers[1].take_all(), ["fills", "old", "direct", "young"]);
    assert_eq!(workers[0].take_all(), ["fills"]);
}

#[test]
fn g5_a_worker_that_comes_serves_those_who_wait() {
    let bus = bus(1);
    let (id, mut workers) = workers(&bus, 1);
    let mut sender = Party::on(&bus);
    sender.send(id, "fills");
    let wakes = sender.wait(id, "waits");
    let mut second = Party::on(&bus);
    second.owns("w", NameFlags::SHARED);
    assert_eq!(wakes.count(), 1);
    assert_eq!(second.take_all(), ["waits"]);
    assert_eq!(workers[0].take_all(), ["fills"]);
}

#[test]
fn g5_a_worker_that_goes_leaves_those_who_wait_to_the_others() {
    let bus = bus(1);
    let (id, mut workers) = workers(&bus, 2);
    let mut sender = Party::on(&bus);
    sender.send(id, "fills");
    sender.send(id, "fills");
    let wakes = sender.wait(id, "waits");
    drop(workers.remove(0));
    assert_eq!(wakes.count(), 0, "the other is full");
    assert_eq!(workers[0].take_all(), ["fills", "waits"]);
    assert_eq!((wakes.count(), sender.outcome().is_ok()), (1, true));
    drop(workers);
    assert_eq!(sender.try_send(id, "x"), Err(SendError::NoSuchName(id)));
}

#[test]
fn g5_a_cancelled_send_leaves_all_lines() {
    let bus = bus(1);
    let (id, mut workers) = workers(&bus, 2);
    let [mut gone, mut stays] = [(); 2].map(|()| Party::on(&bus));
    gone.send(id, "fills");
    gone.send(id, "fills");
    gone.wait(id, "gone");
    stays.wait(id, "stays");
    assert_eq!(gone.lane.cancel(), Some(Err(SendError::Cancelled)));
    assert_eq!(workers[1].take_all(), ["fills", "stays"]);
    assert_eq!(workers[0].take_all(), ["fills"]);
    assert_eq!(bus.stats().waiting_sends, 0);
}

/// One worker reads nothing, and the other one next to nothing: only the first is put out, and then
/// the other one alone has the name.
#[test]
fn g8_a_stalled_worker_is_put_out_and_told() {
    let bus =
        bus_with(Limits { queue_messages: 1, stall: Duration::from_secs(1), ..Limits::default() });
    let (id, mut workers) = workers(&bus, 2);
    let mut sender = Party::on(&bus);
    sender.send(id, "fills");
    sender.send(id, "fills");
    let mut now = Duration::from_secs(1_000);
    bus.tick(now);
    sender.wait(id, "waits");
    let mut logged = Vec::new();
    let mut tick = |times: u32| {
        for _ in 0..times {
            now += Duration::from_millis(100);
            logged.extend(bus.tick(now));
        }
    };
    tick(5);
    // The second one reads, and is full again.
    assert_eq!(workers[1].take_all(), ["fills", "waits"]);
    assert!(sender.outcome().is_ok());
    sender.lane.try_send(Destination::Endpoint(workers[1].id()), "fills").unwrap();
    sender.wait(id, "waits");
    tick(30);
    let info = bus.names().next().unwrap();
    assert_eq!(info.owner_count, 1, "both were stalled by then, and one of them stays");
    let put_out = usize::from(info.owners[0].endpoint == workers[0].id());
    assert_eq!(workers[put_out].take_all(), ["fills", "-w stalled"]);
    let [out] = &logged[..] else { panic!("{logged:?}") };
    assert_eq!((out.endpoint, out.name.as_str()), (workers[put_out].id(), "w"));
    assert_eq!(out.cause, EvictionCause::WorkerStalled);
    assert_eq!(
        sender.outcome(),
        Err(SendError::RecipientStalled(workers[1 - put_out].id())),
        "the last one keeps the name, and who waits for it is told"
    );
}
