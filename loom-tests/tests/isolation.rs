//! A send that waits does not stop others whose recipients have room (G5).
//!
//! In each model one member stays full until the others are through: a wake-up that got lost
//! elsewhere then has nothing to hide behind.

use bus_core_modelled::Endpoint;
use loom::thread;

use crate::given::{
    assert_one_order, bus, endpoints, explore, explore_many, group, lane, reader, sent, take_all,
    taken, texts, to, waits,
};

/// Given a fan-out send that waits for both of its members, when the second one reads and a small
/// send to it comes, while the first one stays full until the small send is through, then the small
/// send gets through, and the fan-out send after it.
#[test]
fn g5_a_member_that_stays_full_does_not_stop_a_small_send_to_another() {
    explore_many(|| {
        let bus = bus(1);
        let [one, two, three, four] = endpoints(&bus);
        let both = group("g", &[&one, &two]);
        let to_two = to(&two);
        let (mut threes, mut fours) = (lane(&three), lane(&four));
        sent(&mut threes, both, "first");
        let wide = thread::spawn(move || threes.send(both, "wide").unwrap());
        let small = thread::spawn(move || fours.send(to_two, "small").unwrap());
        let (mut at_one, mut at_two) = (reader(&one), reader(&two));
        let all = [(); 2].map(|()| taken(at_two.receive().unwrap()));
        assert_eq!(texts(&all), ["first", "small"]);
        small.join().unwrap();
        let ones = [(); 2].map(|()| taken(at_one.receive().unwrap()));
        assert_eq!(texts(&ones), ["first", "wide"]);
        wide.join().unwrap();
        assert_eq!(texts(&take_all(&mut at_two)), ["wide"]);
    });
}

/// Given a fan-out send that waits at queue 2 while queue 1 has become full as well, when 2 is read
/// while a small send to it comes, then the fan-out send goes to wait at 1, where it is found when
/// 1 is read at last.
#[test]
fn g5_a_send_that_finds_another_queue_full_waits_there() {
    explore(|| {
        let bus = bus(1);
        let [one, two, three, four] = endpoints(&bus);
        let both = group("g", &[&one, &two]);
        let (to_one, to_two) = (to(&one), to(&two));
        let (mut threes, mut fours) = (lane(&three), lane(&four));
        sent(&mut fours, to_two, "first");
        waits(&mut threes, both, "wide");
        sent(&mut fours, to_one, "first");
        let small = thread::spawn(move || fours.send(to_two, "small").unwrap());
        let (mut at_one, mut at_two) = (reader(&one), reader(&two));
        let all = [(); 2].map(|()| taken(at_two.receive().unwrap()));
        assert_eq!(texts(&all), ["first", "small"]);
        small.join().unwrap();
        assert_eq!(threes.poll_outcome(), None);
        assert_eq!(texts(&take_all(&mut at_one)), ["first", "wide"]);
        assert_eq!(texts(&take_all(&mut at_two)), ["wide"]);
    });
}

/// Given two overlapping fan-out sends that wait, to {1, 2} and to {2, 3}, and a small one to 3 that
/// comes, when 2 and 3 are read while 1 stays full, then the small one and the second fan-out get
/// through, and the first one once 1 is read.
#[test]
fn g5_overlapping_fan_outs_do_not_hold_each_other_up() {
    explore_many(|| {
        let bus = bus(1);
        let [one, two, three, four, five, six] = endpoints(&bus);
        let low = group("low", &[&one, &two]);
        let high = group("high", &[&two, &three]);
        let (mut fours, mut fives, mut sixes) = (lane(&four), lane(&five), lane(&six));
        let [to_one, to_two, to_three] = [&one, &two, &three].map(to);
        for place in [to_one, to_two, to_three] {
            sent(&mut fours, place, "first");
        }
        waits(&mut fours, low, "low");
        waits(&mut fives, high, "high");
        let small = thread::spawn(move || sixes.send(to_three, "small").unwrap());
        let mut at_two = reader(&two);
        let reading = thread::spawn(move || {
            let first = taken(at_two.receive().unwrap());
            let high = taken(at_two.receive().unwrap());
            (at_two, [first, high])
        });
        let (mut at_one, mut at_three) = (reader(&one), reader(&three));
        let threes = [(); 3].map(|()| taken(at_three.receive().unwrap()));
        small.join().unwrap();
        let (mut at_two, twos) = reading.join().unwrap();
        assert_eq!(texts(&twos), ["first", "high"]);
        assert_one_order(&[&twos, &threes]);
        assert!(fives.poll_outcome().is_some());
        assert_eq!(fours.poll_outcome(), None);
        assert_eq!(texts(&take_all(&mut at_one)), ["first", "low"]);
        assert_eq!(texts(&take_all(&mut at_two)), ["low"]);
        assert!(fours.poll_outcome().is_some());
    });
}

/// Given fan-out sends to {1, 2}, {2, 3} and {1, 3} that wait while all three are full, when each queue
/// is read until it has given up three messages, then all three get through: what they keep for
/// themselves makes no cycle of waits, and no time passes that could break one.
#[test]
fn g5_a_cycle_of_fan_outs_gets_through() {
    explore_many(|| {
        let bus = bus(1);
        let [one, two, three] = endpoints(&bus);
        let [four, five, six] = endpoints(&bus);
        let mut lanes = [&four, &five, &six].map(lane);
        for member in [&one, &two, &three] {
            sent(&mut lanes[0], to(member), "first");
        }
        let groups = [("a", [&one, &two]), ("b", [&two, &three]), ("c", [&one, &three])];
        for (lane, (name, members)) in lanes.iter_mut().zip(groups) {
            waits(lane, group(name, &members), name);
        }
        let read = |endpoint: &Endpoint| {
            let mut reading = reader(endpoint);
            move || [(); 3].map(|()| taken(reading.receive().unwrap()))
        };
        let reading = [&one, &two].map(|endpoint| thread::spawn(read(endpoint)));
        let last = read(&three)();
        let [first, second] = reading.map(|reading| reading.join().unwrap());
        assert_one_order(&[&first, &second, &last]);
        assert!(lanes.iter_mut().all(|lane| lane.poll_outcome().is_some()));
    });
}
