//! How far a waiting send can be overtaken (G5): the offers that it misses, the reserve places that it
//! keeps, and who comes first among those who keep the same one.

use std::time::Duration;

use bus_core_modelled::{Bus, Destination, Endpoint, Lane, MISSED_OFFERS, PATIENCE, Receiver};
use loom::thread;

use crate::given::{
    bus, endpoints, explore, group, id_of, lane, reader, sent, take_all, taken, texts, to, waits,
};

/// A queue of one place that is full again as soon as it was read, if nobody waits for it.
struct Busy {
    reading: Receiver,
    refilling: Lane,
    place: Destination,
}

impl Busy {
    fn new(endpoint: &Endpoint, filler: &Endpoint) -> Self {
        let mut refilling = lane(filler);
        let place = to(endpoint);
        sent(&mut refilling, place, "filler");
        Self { reading: reader(endpoint), refilling, place }
    }

    /// Takes one message and puts in another, which is refused if the place is taken or owed.
    fn turn(&mut self) {
        self.read();
        let _ = self.refilling.try_send(self.place, "filler");
    }

    fn read(&mut self) -> String {
        taken(self.reading.try_receive().expect("it is full")).text
    }
}

/// Given three members whose queues are never empty at the same time, because small senders refill
/// them at once, when each has been read `MISSED_OFFERS` times, then a fan-out send that waited for
/// them is committed.
#[test]
fn g5_a_fan_out_misses_a_fixed_number_of_offers() {
    explore(|| {
        let bus = bus(1);
        let [one, two, three, four, filler] = endpoints(&bus);
        let all = group("g", &[&one, &two, &three]);
        let mut queues = [&one, &two, &three].map(|endpoint| Busy::new(endpoint, &filler));
        let mut fours = lane(&four);
        waits(&mut fours, all, "wide");
        let mut turns = 0;
        while fours.poll_outcome().is_none() {
            assert!(turns < 3 * MISSED_OFFERS as usize, "it waits still");
            queues[turns % 3].turn();
            turns += 1;
        }
        for queue in &mut queues {
            let all = take_all(&mut queue.reading);
            assert_eq!(all.iter().filter(|taken| taken.text == "wide").count(), 1);
        }
    });
}

/// The same with two readers, each with its refilling sender, in threads of their own: when each has
/// read twice, the send has been committed, however they met.
#[test]
fn g5_two_readers_that_alternate_as_they_like_do_not_starve_a_fan_out() {
    explore(|| {
        let bus = bus(1);
        let [one, two, three, filler] = endpoints(&bus);
        let both = group("g", &[&one, &two]);
        let mut first = Busy::new(&one, &filler);
        let mut second = Busy::new(&two, &filler);
        let mut threes = lane(&three);
        waits(&mut threes, both, "wide");
        let reading = thread::spawn(move || {
            first.turn();
            first.turn();
            first
        });
        second.turn();
        second.turn();
        let mut first = reading.join().unwrap();
        // Those of 2 may all have come before the first of 1, when nobody was in line at 2.
        second.turn();
        assert!(threes.poll_outcome().is_some());
        for queue in [&mut first, &mut second] {
            take_all(&mut queue.reading);
        }
    });
}

/// Two sends that keep the reserve place of queue 2, as a line of turns makes them: the older one, to
/// {1, 2}, stands in line at queue 1, whose reserve place is in use; the younger one, to {2, 3},
/// stands in line at 3.
struct Keepers {
    bus: Bus,
    older: Lane,
    younger: Lane,
    low: Destination,
    high: Destination,
    endpoints: [Endpoint; 3],
    queues: [Busy; 3],
    _others: [Endpoint; 4],
}

fn keepers() -> Keepers {
    let bus = bus(1);
    let [one, two, three] = endpoints(&bus);
    let [four, five, six, filler] = endpoints(&bus);
    let low = group("low", &[&one, &two]);
    let high = group("high", &[&two, &three]);
    let mut queues = [&one, &two, &three].map(|endpoint| Busy::new(endpoint, &filler));
    let (mut before, mut older, mut younger) = (lane(&four), lane(&five), lane(&six));
    waits(&mut before, low, "before");
    waits(&mut older, low, "older");
    waits(&mut younger, high, "younger");
    // The first two keep the reserve place of 1 and get in line at 2; there the first one takes the
    // place, and the reserve place of 1 with it.
    queues[0].turn();
    queues[1].turn();
    assert!(before.poll_outcome().is_some());
    // The next place at 2 is of no use to the other two.
    queues[1].turn();
    assert_eq!(older.poll_outcome(), None);
    assert_eq!(younger.poll_outcome(), None);
    Keepers {
        bus,
        older,
        younger,
        low,
        high,
        endpoints: [one, two, three],
        queues,
        _others: [four, five, six, filler],
    }
}

/// Given the two, when queue 3 is read, then the younger one does not take the reserve place that the
/// older one keeps; when 1 is read, the older one is committed, and the younger one with the next
/// message that 2 gives up.
#[test]
fn g5_a_younger_send_leaves_the_reserve_place_to_an_older_one() {
    explore(|| {
        let mut given = keepers();
        given.queues[2].turn();
        assert_eq!(given.younger.poll_outcome(), None);
        given.queues[0].read();
        assert!(given.older.poll_outcome().is_some());
        assert_eq!(given.younger.poll_outcome(), None);
        given.queues[1].read();
        assert!(given.younger.poll_outcome().is_some());
        let all = given.queues.map(|mut queue| take_all(&mut queue.reading));
        assert_eq!(texts(&all[1]), ["older", "younger"]);
    });
}

/// The same when queues 1 and 3 are read at once.
#[test]
fn g5_two_sends_that_keep_one_place_use_it_in_the_order_of_their_age() {
    explore(|| {
        let mut given = keepers();
        let [mut one, mut two, mut three] = given.queues;
        let reading = thread::spawn(move || {
            three.turn();
            three
        });
        one.read();
        let _three = reading.join().unwrap();
        assert!(given.older.poll_outcome().is_some());
        assert_eq!(given.younger.poll_outcome(), None);
        two.read();
        assert!(given.younger.poll_outcome().is_some());
        assert_eq!(texts(&take_all(&mut two.reading)), ["older", "younger"]);
    });
}

/// Given the two and a queue 3 that has been read, when queue 1 gives up nothing for `PATIENCE`, then
/// the younger one, which has waited for that as long and kept nothing itself, is committed with the
/// next message that 3 gives up; one tick earlier it is not. The next one then waits for nothing but
/// its own recipients.
#[test]
fn g5_a_send_that_waits_for_a_dead_member_withholds_nothing() {
    explore(|| {
        let mut given = keepers();
        given.queues[2].turn();
        let mut now = Duration::from_secs(1);
        given.bus.tick(now);
        now += PATIENCE / 2;
        given.bus.tick(now);
        given.queues[2].turn();
        assert_eq!(given.younger.poll_outcome(), None);
        given.bus.tick(now + PATIENCE / 2);
        given.queues[2].turn();
        assert!(given.younger.poll_outcome().is_some());
        waits(&mut given.younger, given.high, "next");
        for queue in [1, 2, 1, 2] {
            given.queues[queue].turn();
        }
        assert!(given.younger.poll_outcome().is_some());
        assert_eq!(given.older.poll_outcome(), None);
    });
}

/// Given an older and a younger send that keep the reserve place of queue 2, and the older one has not
/// used it for `PATIENCE`, though it has not stood in one line for so long, when the younger one lacks
/// only that place, then it is committed.
#[test]
fn g5_a_place_that_is_kept_and_not_used_is_for_who_can_use_it() {
    explore(|| {
        let bus = bus(1);
        let [one, two, three, four, five] = endpoints(&bus);
        let [six, seven, eight, filler] = endpoints(&bus);
        let first = group("first", &[&one, &five]);
        let low = group("low", &[&one, &two, &four]);
        let high = group("high", &[&two, &three]);
        let places = [&one, &two, &three, &four, &five];
        let mut queues = places.map(|endpoint| Busy::new(endpoint, &filler));
        let mut turn = |queue: usize| queues[queue - 1].turn();
        let (mut before, mut older, mut younger) = (lane(&six), lane(&seven), lane(&eight));
        waits(&mut before, first, "before");
        waits(&mut older, low, "older");
        waits(&mut younger, high, "younger");
        let start = Duration::from_secs(1);
        bus.tick(start);
        // The reserve place of 1 is in use then, the one of 2 is kept by both, and the older one
        // stands in line at 4, the younger one at 3.
        turn(1);
        turn(5);
        assert!(before.poll_outcome().is_some());
        turn(2);
        bus.tick(start + PATIENCE / 2);
        // They move on: the older one back to 1, the younger one back to 2.
        turn(4);
        turn(3);
        assert_eq!(older.poll_outcome(), None);
        assert_eq!(younger.poll_outcome(), None);
        bus.tick(start + PATIENCE);
        assert!(younger.poll_outcome().is_some());
        assert_eq!(older.poll_outcome(), None);
    });
}

/// Given the two, when member 2 leaves the older one's group while queue 3 is read, then the younger
/// one, which the change is not about, is committed: nobody else keeps the reserve place any more.
#[test]
fn g5_a_leave_gives_up_the_places_that_are_kept_for_it() {
    explore(|| {
        let mut given = keepers();
        let [one, two, mut three] = given.queues;
        let reading = thread::spawn(move || {
            three.turn();
            three
        });
        given.endpoints[1].leave(id_of(given.low)).unwrap();
        let _three = reading.join().unwrap();
        assert!(given.younger.poll_outcome().is_some());
        assert_eq!(given.older.poll_outcome(), None);
        drop((one, two));
    });
}

/// Given the two, when the older one is cancelled while queue 3 is read, then the younger one is
/// committed.
#[test]
fn g5_a_cancelled_send_gives_up_the_places_that_it_keeps() {
    explore(|| {
        let mut given = keepers();
        let [one, two, mut three] = given.queues;
        let reading = thread::spawn(move || {
            three.turn();
            three
        });
        given.older.cancel();
        let _three = reading.join().unwrap();
        assert!(given.younger.poll_outcome().is_some());
        drop((one, two));
    });
}
