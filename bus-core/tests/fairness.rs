//! How long waiting sends wait, and how often they are overtaken, in simulated time (G5, G6, G10).
//!
//! A loop of events moves virtual time; nothing here reads a clock, so each run is the same. Run
//! with `--nocapture` to see the numbers that DESIGN.md quotes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Wake, Waker};
use std::time::Duration;

use bus_core::{
    Bus, Credentials, Destination, Endpoint, JoinOptions, Lane, Limits, MemberFlags, PATIENCE,
    Receipt, Receiver, SendError, Sequence, Submitted,
};

const SECOND: u64 = 1_000_000;
const MILLISECOND: u64 = 1_000;
/// One frame of a display that shows 60 a second.
const FRAME: u64 = SECOND / 60;
/// From a wake-up to the thread that runs.
const WAKE: u64 = 20;
const TICK: u64 = 50 * MILLISECOND;

type Time = u64;

/// How a reader reads.
#[derive(Clone, Copy)]
enum Reads {
    /// Everything that is there, once in a period.
    All(Time),
    /// One message in a period.
    One(Time),
    /// Never.
    Dead,
}

struct SimReader {
    receiver: Receiver,
    reads: Reads,
    /// Kept because dropping it closes the endpoint.
    endpoint: Endpoint,
}

struct SimSender {
    lane: Lane,
    to: Destination,
    /// A bit for each reader whose room it needs.
    needs: u128,
    /// Time between a commit and the next send; with zero it sends until it has to wait.
    pause: Time,
    /// How many it may still send.
    left: u64,
    /// Place among all sends of the run, and when it began to wait.
    waiting: Option<(u64, Time)>,
    overtaken: u64,
    record: Record,
    _endpoint: Endpoint,
}

/// What became of a sender's sends.
#[derive(Clone, Debug, Default)]
struct Record {
    committed: u64,
    dropped: u64,
    worst_wait: Time,
    worst_overtaken: u64,
    evicted: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick,
    Read(usize),
    Send(usize),
}

struct Woken(usize, mpsc::Sender<usize>);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.1.send(self.0).unwrap();
    }
}

struct Sim {
    bus: Bus,
    now: Time,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    scheduled: u64,
    sends: u64,
    readers: Vec<SimReader>,
    senders: Vec<SimSender>,
    woken: (mpsc::Sender<usize>, mpsc::Receiver<usize>),
    processes: u32,
}

impl Sim {
    fn new(capacity: u32) -> Self {
        let limits = Limits {
            queue_messages: capacity,
            // Evictions are not what is simulated.
            stall: Duration::from_secs(600),
            ..Limits::default()
        };
        let mut sim = Self {
            bus: Bus::new(limits, 1).unwrap(),
            now: 0,
            events: BinaryHeap::new(),
            scheduled: 0,
            sends: 0,
            readers: Vec::new(),
            senders: Vec::new(),
            woken: mpsc::channel(),
            processes: 0,
        };
        sim.at(0, Event::Tick);
        sim
    }

    fn at(&mut self, time: Time, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((time, self.scheduled, event)));
    }

    fn endpoint(&mut self) -> Endpoint {
        self.processes += 1;
        let pid = self.processes;
        self.bus.open_endpoint(Credentials { uid: 1000, pid }).unwrap()
    }

    fn reader(&mut self, reads: Reads, first: Time) -> usize {
        let endpoint = self.endpoint();
        self.readers.push(SimReader { receiver: endpoint.receiver().unwrap(), reads, endpoint });
        let at = self.readers.len() - 1;
        if !matches!(reads, Reads::Dead) {
            self.at(first, Event::Read(at));
        }
        at
    }

    fn group(&self, name: &str, members: &[usize], flags: MemberFlags) -> Destination {
        let mut group = None;
        for at in members {
            let options = JoinOptions::create().with(flags);
            let endpoint = &self.readers[*at].endpoint;
            group = Some(endpoint.join(&name.parse().unwrap(), options).unwrap().group);
        }
        Destination::Group(group.unwrap())
    }

    fn direct(&self, reader: usize) -> Destination {
        Destination::Endpoint(self.readers[reader].endpoint.id())
    }

    fn sender(&mut self, to: Destination, needs: &[usize], first: Time, pause: Time) -> usize {
        self.sender_of(to, needs, first, pause, u64::MAX)
    }

    /// A sender that sends so many times and no more.
    fn sender_of(
        &mut self,
        to: Destination,
        needs: &[usize],
        first: Time,
        pause: Time,
        left: u64,
    ) -> usize {
        let endpoint = self.endpoint();
        self.senders.push(SimSender {
            lane: endpoint.lane().unwrap(),
            to,
            needs: needs.iter().fold(0, |bits, at| bits | 1 << at),
            pause,
            left,
            waiting: None,
            overtaken: 0,
            record: Record::default(),
            _endpoint: endpoint,
        });
        let at = self.senders.len() - 1;
        self.at(first, Event::Send(at));
        at
    }

    fn run(&mut self, end: Time) {
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            self.now = time;
            if time > end {
                break;
            }
            match event {
                Event::Tick => {
                    self.bus.tick(Duration::from_micros(time + SECOND));
                    self.at(time + TICK, Event::Tick);
                }
                Event::Read(reader) => self.read(reader),
                Event::Send(sender) => self.send(sender),
            }
            self.settle();
        }
        // Who still waits has waited until the end.
        for sender in &mut self.senders {
            if let Some((_, since)) = sender.waiting {
                let record = &mut sender.record;
                record.worst_wait = record.worst_wait.max(self.now - since);
                record.worst_overtaken = record.worst_overtaken.max(sender.overtaken);
            }
        }
    }

    fn read(&mut self, at: usize) {
        let SimReader { receiver, reads, .. } = &mut self.readers[at];
        let (most, period) = match *reads {
            Reads::All(period) => (u64::MAX, period),
            Reads::One(period) => (1, period),
            Reads::Dead => return,
        };
        let mut taken = 0;
        while taken < most && receiver.drain().is_some() {
            taken += 1;
        }
        receiver.release(taken, 0).unwrap();
        self.at(self.now + period, Event::Read(at));
    }

    fn send(&mut self, at: usize) {
        loop {
            let sender = &mut self.senders[at];
            if sender.left == 0 || sender.waiting.is_some() {
                return;
            }
            sender.left -= 1;
            self.sends += 1;
            let waker = Waker::from(Arc::new(Woken(at, self.woken.0.clone())));
            match sender.lane.submit(sender.to, "", waker).unwrap() {
                Submitted::Waiting => {
                    sender.waiting = Some((self.sends, self.now));
                    sender.overtaken = 0;
                    return;
                }
                Submitted::Committed(receipt) => {
                    sender.record.committed += 1;
                    sender.record.dropped += u64::from(receipt.dropped);
                    let pause = sender.pause;
                    self.settle();
                    self.count_overtaken(at, self.sends, &receipt);
                    if pause != 0 {
                        self.at(self.now + pause, Event::Send(at));
                        return;
                    }
                }
            }
        }
    }

    /// Counts a commit for all older sends that wait for one of its recipients.
    fn count_overtaken(&mut self, by: usize, number: u64, receipt: &Receipt) {
        if receipt.recipients == 0 {
            return;
        }
        let needs = self.senders[by].needs;
        for sender in &mut self.senders {
            if let Some((older, _)) = sender.waiting
                && older < number
                && sender.needs & needs != 0
            {
                sender.overtaken += 1;
            }
        }
    }

    /// Hears what the waiting sends came to that somebody has decided, in the order of the bus.
    fn settle(&mut self) {
        let mut decided: Vec<(Sequence, usize, Receipt)> = Vec::new();
        while let Ok(at) = self.woken.1.try_recv() {
            match self.senders[at].lane.poll_outcome().unwrap() {
                Ok(receipt) => decided.push((receipt.sequence, at, receipt)),
                Err(SendError::RecipientStalled(_)) => self.senders[at].record.evicted += 1,
                Err(error) => panic!("{error}"),
            }
        }
        decided.sort_unstable_by_key(|(sequence, _, _)| *sequence);
        for (_, at, receipt) in decided {
            let sender = &mut self.senders[at];
            let (number, since) = sender.waiting.take().unwrap();
            let record = &mut sender.record;
            record.committed += 1;
            record.dropped += u64::from(receipt.dropped);
            record.worst_wait = record.worst_wait.max(self.now - since);
            record.worst_overtaken = record.worst_overtaken.max(sender.overtaken);
            let next = self.now + sender.pause + WAKE;
            self.count_overtaken(at, number, &receipt);
            self.at(next, Event::Send(at));
        }
    }

    fn record(&self, sender: usize) -> &Record {
        &self.senders[sender].record
    }
}

fn show(scenario: &str, record: &Record) {
    println!(
        "{scenario}: {} sends, worst wait {:.1} ms, worst number of overtaking commits {}",
        record.committed,
        record.worst_wait as f64 / MILLISECOND as f64,
        record.worst_overtaken
    );
}

/// Small senders that refill a reader's queue at once.
fn flood(sim: &mut Sim, reader: usize, lanes: usize) {
    let to = sim.direct(reader);
    for _ in 0..lanes {
        sim.sender(to, &[reader], 0, 0);
    }
}

/// What a send has to wait for a reader once, if it is the first in line.
const ONE_WAIT: u64 = FRAME + WAKE;

#[test]
fn g5_two_readers_half_a_frame_apart() {
    for lanes in [1, 4] {
        let mut sim = Sim::new(64);
        let left = sim.reader(Reads::All(FRAME), 0);
        let right = sim.reader(Reads::All(FRAME), FRAME / 2);
        flood(&mut sim, left, lanes);
        flood(&mut sim, right, lanes);
        let both = sim.group("both", &[left, right], MemberFlags::empty());
        let fan_out = sim.sender(both, &[left, right], 1, 0);
        sim.run(60 * SECOND);
        let record = sim.record(fan_out);
        show(&format!("60 Hz, {lanes} small lanes each"), record);
        assert!(record.committed >= 3_590, "one a frame");
        // It stands in line at each of the two once.
        assert!(record.worst_wait <= FRAME / 2 + ONE_WAIT);
        assert!(record.worst_overtaken <= 2 * 64);
    }
}

#[test]
fn g5_two_readers_half_a_frame_apart_and_a_dead_member_of_another_group() {
    let mut sim = Sim::new(64);
    let left = sim.reader(Reads::All(FRAME), 0);
    let right = sim.reader(Reads::All(FRAME), FRAME / 2);
    let dead = sim.reader(Reads::Dead, 0);
    flood(&mut sim, left, 2);
    flood(&mut sim, right, 2);
    let to_dead = sim.direct(dead);
    sim.sender_of(to_dead, &[dead], 0, 0, 64);
    let all = sim.group("all", &[left, dead, right], MemberFlags::empty());
    let stuck: Vec<usize> = (0..4).map(|_| sim.sender(all, &[left, dead, right], 1, 0)).collect();
    let both = sim.group("both", &[left, right], MemberFlags::empty());
    let fan_out = sim.sender(both, &[left, right], 2, 0);
    sim.run(60 * SECOND);
    let record = sim.record(fan_out);
    show("60 Hz, a dead member elsewhere", record);
    assert!(record.committed >= 3_580);
    assert!(record.worst_wait <= patience() + TICK + 2 * ONE_WAIT);
    for at in stuck {
        assert_eq!(sim.record(at).committed, 0);
    }
}

/// The same, but those that are stuck have been so for a while, as they are but for the beginning.
#[test]
fn g5_fan_outs_that_are_stuck_cost_healthy_ones_nothing_after_a_while() {
    let mut sim = Sim::new(64);
    let left = sim.reader(Reads::All(FRAME), 0);
    let right = sim.reader(Reads::All(FRAME), FRAME / 2);
    let dead = sim.reader(Reads::Dead, 0);
    flood(&mut sim, left, 2);
    flood(&mut sim, right, 2);
    let to_dead = sim.direct(dead);
    sim.sender_of(to_dead, &[dead], 0, 0, 64);
    let all = sim.group("all", &[left, dead, right], MemberFlags::empty());
    for _ in 0..50 {
        sim.sender(all, &[left, dead, right], 1, 0);
    }
    let both = sim.group("both", &[left, right], MemberFlags::empty());
    let fan_out = sim.sender(both, &[left, right], SECOND, 0);
    sim.run(11 * SECOND);
    let record = sim.record(fan_out);
    show("60 Hz, 50 stuck fan-outs since a second", record);
    assert!(record.committed >= 590, "one a frame");
    assert!(record.worst_wait <= FRAME / 2 + ONE_WAIT);
    assert!(record.worst_overtaken <= 2 * 64);
}

#[test]
fn g5_several_fan_outs_at_60_hz() {
    let mut sim = Sim::new(64);
    let readers: Vec<usize> =
        (0..4).map(|n| sim.reader(Reads::All(FRAME), n * FRAME / 4)).collect();
    for reader in &readers {
        flood(&mut sim, *reader, 2);
    }
    let mut fan_outs = Vec::new();
    for a in 0..4 {
        for b in a + 1..4 {
            let pair = [readers[a], readers[b]];
            let to = sim.group(&format!("p{a}{b}"), &pair, MemberFlags::empty());
            fan_outs.push(sim.sender(to, &pair, 1, 0));
        }
    }
    let to = sim.group("all", &readers, MemberFlags::empty());
    fan_outs.push(sim.sender(to, &readers, 1, 0));
    sim.run(10 * SECOND);
    let worst = |of: fn(&Record) -> u64| fan_outs.iter().map(|at| of(sim.record(*at))).max();
    let fewest = fan_outs.iter().map(|at| sim.record(*at).committed).min();
    println!(
        "60 Hz, six pairs of four readers and all four: at least {} sends in 10 s, worst wait {:.1} \
         ms, worst number of overtaking commits {}",
        fewest.unwrap(),
        worst(|record| record.worst_wait).unwrap() as f64 / MILLISECOND as f64,
        worst(|record| record.worst_overtaken).unwrap(),
    );
    // At most six of the others are older than it, and it waits for each of its readers once more
    // for each of these that takes what it keeps.
    assert!(worst(|record| record.worst_wait) <= Some(4 * ONE_WAIT));
    assert!(fewest >= Some(200));
}

/// A member that reads one message at a time, and everybody else's small sends.
#[test]
fn g5_a_fan_out_to_many_readers_of_different_speeds() {
    let mut sim = Sim::new(16);
    let periods: Vec<Time> = (1..=12).map(|n| n * 7 * MILLISECOND).collect();
    let readers: Vec<usize> =
        periods.iter().map(|period| sim.reader(Reads::One(*period), period / 3)).collect();
    for reader in &readers {
        flood(&mut sim, *reader, 1);
    }
    let to = sim.group("all", &readers, MemberFlags::empty());
    let all = sim.sender(to, &readers, 1, 0);
    sim.run(20 * SECOND);
    let record = sim.record(all);
    show("12 readers, one message in 7 to 84 ms each", record);
    // Once in line at each, behind one small send that was there before, and the message that uses
    // the reserve place.
    let bound: Time = periods.iter().map(|period| 3 * period).sum();
    assert!(record.worst_wait <= bound);
    assert!(record.committed >= 20 * SECOND / bound);
}

#[test]
fn g7_a_flood_through_a_dropping_membership_beside_a_waiter() {
    let mut sim = Sim::new(64);
    let reader = sim.reader(Reads::One(MILLISECOND), 0);
    let flooded = sim.group("flood", &[reader], MemberFlags::DROP_WHEN_FULL);
    let quiet = sim.group("quiet", &[reader], MemberFlags::empty());
    let floods: Vec<usize> = (0..3).map(|n| sim.sender(flooded, &[reader], n, 100)).collect();
    let waiter = sim.sender(quiet, &[reader], 5, 0);
    sim.run(10 * SECOND);
    let record = sim.record(waiter);
    show("a flood through a dropping membership, the waiter", record);
    assert!(record.worst_wait <= MILLISECOND);
    assert_eq!(record.worst_overtaken, 0);
    for flood in floods {
        let record = sim.record(flood);
        assert!(record.dropped >= 90_000 && record.worst_wait == 0, "it never waits");
    }
}

/// Many fan-outs to a slow reader and a fast one, all older than the one to two fast ones.
#[test]
fn g10_many_older_fan_outs_that_share_a_slow_reader() {
    let mut sim = Sim::new(16);
    let slow = sim.reader(Reads::One(200 * MILLISECOND), 0);
    let shared = sim.reader(Reads::All(FRAME), 3);
    let other = sim.reader(Reads::All(FRAME), FRAME / 2);
    for reader in [slow, shared, other] {
        flood(&mut sim, reader, 2);
    }
    let hostile = sim.group("hostile", &[slow, shared], MemberFlags::empty());
    let hostiles: Vec<usize> =
        (0..100).map(|n| sim.sender_of(hostile, &[slow, shared], 10 + n, 0, 1)).collect();
    let pair = sim.group("pair", &[shared, other], MemberFlags::empty());
    let victim = sim.sender(pair, &[shared, other], SECOND, 0);
    sim.run(30 * SECOND);
    let record = sim.record(victim);
    show("100 older fan-outs that share a slow reader, the victim", record);
    assert!(record.worst_wait <= 4 * ONE_WAIT);
    assert!(record.committed >= 29 * 55, "nearly one a frame");
    // And they get through too, at the pace of the slow one.
    assert!(hostiles.iter().all(|at| sim.record(*at).committed == 1));
}

/// As many fan-outs as one likes, all older, each of which withholds a place for as long as it can
/// while it waits for a dead reader, one after the other.
#[test]
fn g10_older_fan_outs_that_take_turns_at_withholding() {
    const EACH: usize = 20;
    let mut sim = Sim::new(4);
    // Theirs alone: each is full, and is read once, a little before the one before it gives up.
    let gates: Vec<usize> = (0..2 * EACH as u64)
        .map(|n| sim.reader(Reads::One(1000 * SECOND), SECOND + n / 2 * 240 * MILLISECOND))
        .collect();
    let pair = [sim.reader(Reads::All(FRAME), 0), sim.reader(Reads::All(FRAME), FRAME / 2)];
    let dead = sim.reader(Reads::Dead, 0);
    for reader in pair {
        flood(&mut sim, reader, 2);
    }
    let to_dead = sim.direct(dead);
    sim.sender_of(to_dead, &[dead], 0, 0, 4);
    for (n, gate) in gates.iter().enumerate() {
        let to = sim.direct(*gate);
        sim.sender_of(to, &[*gate], 0, 0, 4);
        let members = [*gate, pair[n % 2], dead];
        let hostile = sim.group(&format!("hostile{n}"), &members, MemberFlags::empty());
        sim.sender_of(hostile, &members, 1, 0, 1);
    }
    let both = sim.group("both", &pair, MemberFlags::empty());
    let victim = sim.sender(both, &pair, SECOND / 2, 0);
    sim.run(8 * SECOND);
    let record = sim.record(victim);
    show("older fan-outs that take turns, the victim", record);
    // Withheld for as long as one place can be, whatever their number.
    assert!(record.worst_wait <= patience() + TICK + 2 * ONE_WAIT);
}

fn patience() -> Time {
    Time::try_from(PATIENCE.as_micros()).unwrap()
}
