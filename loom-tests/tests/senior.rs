//! How far a waiting send can be overtaken (G5): the offers that it misses, the reserve places that
//! it keeps, and who comes first among those who keep one.

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
        Self {
            reading: reader(endpoint),
            refilling,
            place,
        }
    }

    /// Takes one message and puts in another, which is refused if the place is taken or owed.
    fn turn(&mut self) -> String {
        let text = self.read();
        let _ = self.refilling.try_send(self.place, "filler");
        text
    }

    fn read(&mut self) -> String {
        taken(self.reading.try_receive().expect("it is full")).text
    }
}

/// Given two members whose queues are never empty at the same time, because small senders refill
/// them at once, when a fan-out send has missed `MISSED_OFFERS` places of the one, then it is
/// committed at the next one of the other.
#[test]
fn g5_a_fan_out_is_overtaken_at_most_a_fixed_number_of_times() {
    explore(|| {
        let bus = bus(1);
        let [one, two, three, filler] = endpoints(&bus);
        let both = group("g", &[&one, &two]);
        let mut queues = [Busy::new(&one, &filler), Busy::new(&two, &filler)];
        let mut threes = lane(&three);
        waits(&mut threes, both, "wide");
        let mut turns = 0;
        while threes.poll_outcome().is_none() {
            queues[turns % 2].turn();
            turns += 1;
            assert!(turns <= 1 + MISSED_OFFERS as usize, "it waits still");
        }
        assert_eq!(turns, 1 + MISSED_OFFERS as usize);
        for queue in &mut queues {
            let all = take_all(&mut queue.reading);
            assert_eq!(all.iter().filter(|taken| taken.text == "wide").count(), 1);
        }
    });
}

/// The same with the two readers, each with its refilling sender, in threads of their own: after
/// `MISSED_OFFERS` reads of each queue it has been committed.
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
        // Where they did not meet, it has missed an offer for each read; these are the rest.
        for _ in 0..MISSED_OFFERS {
            first.turn();
            second.turn();
        }
        assert!(threes.poll_outcome().is_some());
    });
}

/// Two sends that keep places, as a line of turns makes them: the older one, to {1, 2}, stands in
/// line at queue 1, which is beyond its capacity, and keeps the reserve place of 2; the younger one,
/// to {2, 3}, has all but the reserve place of 2, which it keeps behind the older one.
struct Seniors {
    bus: Bus,
    older: Lane,
    younger: Lane,
    low: Destination,
    endpoints: [Endpoint; 3],
    queues: [Busy; 3],
    _others: [Endpoint; 4],
}

fn seniors() -> Seniors {
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
    // The first two are offered a place at 1 and keep it; at 2 the first is committed, with the
    // reserve place of 1, which the second one lacks then; so it goes back there and keeps 2, as the
    // third does behind it; which is then offered a place at 3.
    for queue in [1, 2, 2, 3] {
        queues[queue - 1].turn();
    }
    assert!(before.poll_outcome().is_some());
    assert_eq!(older.poll_outcome(), None);
    assert_eq!(younger.poll_outcome(), None);
    Seniors {
        bus,
        older,
        younger,
        low,
        endpoints: [one, two, three],
        queues,
        _others: [four, five, six, filler],
    }
}

/// Given the two, when queue 1 is read, then the older one is committed, and the younger one
/// after the next message that queue 2 gives up.
#[test]
fn g5_a_younger_senior_leaves_the_reserve_place_to_an_older_one() {
    explore(|| {
        let mut given = seniors();
        given.queues[0].read();
        assert!(given.older.poll_outcome().is_some());
        assert_eq!(given.younger.poll_outcome(), None);
        given.queues[1].read();
        assert!(given.younger.poll_outcome().is_some());
        let all = given.queues.map(|mut queue| take_all(&mut queue.reading));
        assert_eq!(texts(&all[1]), ["older", "younger"]);
    });
}

/// Given the two, when queue 1 gives up nothing for `PATIENCE`, then the younger one is committed;
/// one tick earlier it is not.
#[test]
fn g5_a_senior_stuck_on_a_dead_member_holds_back_nobody() {
    explore(|| {
        let mut given = seniors();
        let mut now = Duration::from_secs(1);
        given.bus.tick(now);
        now += PATIENCE / 2;
        given.bus.tick(now);
        assert_eq!(given.younger.poll_outcome(), None);
        given.bus.tick(now + PATIENCE / 2);
        assert!(given.younger.poll_outcome().is_some());
        assert_eq!(given.older.poll_outcome(), None);
    });
}

/// Given the two, when member 2 leaves the older one's group, then the younger one, which the
/// change is not about, is committed: nobody older keeps the reserve place any more.
#[test]
fn g5_a_leave_wakes_those_whom_it_frees_a_reserve_place() {
    explore(|| {
        let mut given = seniors();
        given.endpoints[1].leave(id_of(given.low)).unwrap();
        assert!(given.younger.poll_outcome().is_some());
        assert_eq!(given.older.poll_outcome(), None);
    });
}

/// Given the two, when the older one is cancelled, then the younger one is committed.
#[test]
fn g5_a_cancelled_senior_leaves_its_claims_to_the_next() {
    explore(|| {
        let mut given = seniors();
        given.older.cancel();
        assert!(given.younger.poll_outcome().is_some());
    });
}
