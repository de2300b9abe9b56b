//! What filters cost a send that they do not want, what joining with one costs, and what they save:
//! two streams with readers of their own do not contend.
//!
//! `unwanted`: a send that one reader takes, in a group with 10,000 other members that reject it,
//! beside the same send with none. `streams`: two threads that send to one group at once, and one
//! thread alone for comparison. Without filters all readers take everything; with filters each stream
//! has its own readers, behind other locks or the same. On two free processors, streams that do not
//! contend take as long as one alone.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use bus_core::{
    Attributes, Bus, Condition, Credentials, Destination, Draft, Endpoint, Filter, JoinOptions,
    Lane, Limits, Pattern, Payload, Receiver,
};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const MEMBERS: usize = 10_000;
const BATCH: u64 = 64;
const PAYLOAD: &[u8; 64] = &[7; 64];

fn bus() -> Bus {
    // Short queues: ten thousand of them are made.
    bus_with(BATCH)
}

fn bus_with(queue_messages: u64) -> Bus {
    let limits = Limits {
        queue_messages: queue_messages.try_into().unwrap(),
        memberships: 1,
        members: 10_001,
        ..Limits::default()
    };
    Bus::new(limits, 1).unwrap()
}

fn endpoint(bus: &Bus) -> Endpoint {
    bus.open_endpoint(Credentials { uid: 1, pid: 1 }).unwrap()
}

fn join(member: &Endpoint, filter: Option<Filter>) -> Destination {
    let options = JoinOptions { filter, ..JoinOptions::create() };
    Destination::Group(member.join(&"g".parse().unwrap(), options).unwrap().group)
}

fn attributes() -> Attributes {
    let builder = Attributes::builder().key("sensors.kitchen.temperature").operation("Reading");
    builder.field("unit", "C").field("room", "kitchen").build().unwrap()
}

fn send(lane: &mut Lane, to: Destination, attributes: &Attributes) {
    let payload = Payload::from(Bytes::from_static(PAYLOAD));
    let draft = Draft { attributes: attributes.clone(), ..Draft::from(payload) };
    black_box(lane.try_send(to, draft)).unwrap();
}

fn empty(reader: &mut Receiver) {
    while reader.try_receive().is_ok() {}
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time; the core does not")]
fn now() -> Instant {
    Instant::now()
}

/// Filters that reject what is sent; the closer to it, the harder to tell.
fn unwanted_filter(kind: &str, n: usize) -> Option<Filter> {
    let exactly = |text: String| Pattern::exactly(text);
    let condition = match kind {
        "exact_keys" => Condition::Key(exactly(format!("sensors.kitchen.temperature.{n}"))),
        "prefixes" => Condition::Key(Pattern::prefix(format!("sensors.kitchen.t{n}."))),
        "fields" => {
            Condition::Field { name: "room".to_owned(), value: exactly(format!("kitchen-{n}")) }
        }
        "nested_prefixes" => {
            let key = "sensors.kitchen.temperature";
            let begins = &key[..1 + n % key.len()];
            Condition::Key(Pattern::prefix(format!("{begins}!{n}")))
        }
        _ => return None,
    };
    Some(Filter::new([vec![condition]]).unwrap())
}

fn unwanted(c: &mut Criterion) {
    let mut group = c.benchmark_group("unwanted");
    let kinds = ["nobody", "exact_keys", "prefixes", "nested_prefixes", "fields"];
    for kind in kinds {
        let bus = bus();
        let reader = endpoint(&bus);
        let to = join(&reader, None);
        let mut reading = reader.receiver().unwrap();
        let mut others = Vec::new();
        for n in 0..MEMBERS {
            if let Some(filter) = unwanted_filter(kind, n) {
                let member = endpoint(&bus);
                join(&member, Some(filter));
                others.push(member);
            }
        }
        let sender = endpoint(&bus);
        let mut lane = sender.lane().unwrap();
        let said = attributes();
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("{}_{kind}", others.len()), |b| {
            b.iter_custom(|times| {
                let mut total = Duration::ZERO;
                let mut left = times;
                while left > 0 {
                    let batch = left.min(BATCH);
                    let start = now();
                    (0..batch).for_each(|_| send(&mut lane, to, &said));
                    total += start.elapsed();
                    empty(&mut reading);
                    left -= batch;
                }
                total
            });
        });
    }
    group.finish();
}

/// All joins of a group of 10,000, one after the other, and all leaves.
fn join_and_leave(c: &mut Criterion) {
    let mut group = c.benchmark_group("join_and_leave");
    group.sample_size(10);
    for kind in ["nobody", "exact_keys", "prefixes", "fields"] {
        group.throughput(Throughput::Elements(MEMBERS as u64));
        group.bench_function(format!("{MEMBERS}_{kind}"), |b| {
            let bus = bus();
            let members: Vec<Endpoint> = (0..MEMBERS).map(|_| endpoint(&bus)).collect();
            b.iter(|| {
                let mut to = None;
                for (n, member) in members.iter().enumerate() {
                    to = Some(join(member, unwanted_filter(kind, n)));
                }
                let Some(Destination::Group(group)) = to else { panic!("nobody joined") };
                for member in &members {
                    member.leave(group).unwrap();
                }
            });
        });
    }
    group.finish();
}

/// Endpoints behind two locks, twice as many as are wanted of each. A direct message's sequence is
/// made unique by the lock that it took.
fn behind_locks(bus: &Bus, each: usize) -> [Vec<Endpoint>; 2] {
    let mut by_lock: [Vec<Endpoint>; 8] = Default::default();
    let prober = endpoint(bus);
    let mut probes = prober.lane().unwrap();
    loop {
        let endpoint = endpoint(bus);
        let probe = probes.try_send(Destination::Endpoint(endpoint.id()), "probe").unwrap();
        by_lock[usize::try_from(probe.sequence.get() % 8).unwrap()].push(endpoint);
        let mut full = by_lock.iter().enumerate().filter(|(_, these)| these.len() >= 2 * each);
        if let (Some((first, _)), Some((second, _))) = (full.next(), full.next()) {
            return [std::mem::take(&mut by_lock[first]), std::mem::take(&mut by_lock[second])];
        }
    }
}

/// Two threads that send to one group at the same time, each under a key of its own.
fn streams(c: &mut Criterion) {
    let mut group = c.benchmark_group("streams");
    const READERS: usize = 16;
    const STREAM: u64 = 1024;
    let rows = [
        ("no_filters_disjoint_locks", false, true, true),
        ("no_filters_one_lock", false, false, true),
        ("filters_disjoint_locks", true, true, true),
        ("filters_one_lock", true, false, true),
        ("no_filters_one_thread", false, true, false),
        ("filters_one_thread", true, true, false),
    ];
    for (name, filtered, disjoint, both) in rows {
        let bus = bus_with(2 * STREAM);
        let [first, second] = behind_locks(&bus, READERS);
        let halves = if disjoint {
            [&first[..READERS], &second[..READERS]]
        } else {
            [&first[..READERS], &first[READERS..2 * READERS]]
        };
        let mut to = None;
        let mut readers = Vec::new();
        for (half, key) in halves.into_iter().zip(["key^=a.", "key^=b."]) {
            for member in half {
                to = Some(join(member, filtered.then(|| key.parse().unwrap())));
                readers.push(member.receiver().unwrap());
            }
        }
        let to = to.unwrap();
        let senders = [endpoint(&bus), endpoint(&bus)];
        let mut lanes = senders.each_ref().map(|sender| sender.lane().unwrap());
        let said = ["a.1", "b.1"].map(|key| Attributes::builder().key(key).build().unwrap());
        group.throughput(Throughput::Elements(if both { 2 } else { 1 }));
        group.bench_function(name, |b| {
            b.iter_custom(|times| {
                let mut total = Duration::ZERO;
                let mut left = times;
                while left > 0 {
                    // Where all read both, the two together fill a queue.
                    let batch = left.min(STREAM);
                    let barrier = Barrier::new(if both { 2 } else { 1 });
                    let [first, second] = &mut lanes;
                    let run = |lane: &mut Lane, said: &Attributes| {
                        barrier.wait();
                        let start = now();
                        (0..batch).for_each(|_| send(lane, to, said));
                        start.elapsed()
                    };
                    total += thread::scope(|scope| {
                        let other = both.then(|| scope.spawn(|| run(second, &said[1])));
                        let ours = run(first, &said[0]);
                        other.map_or(ours, |other| ours.max(other.join().unwrap()))
                    });
                    readers.iter_mut().for_each(empty);
                    left -= batch;
                }
                total
            });
        });
    }
    group.finish();
}

criterion_group!(benches, unwanted, join_and_leave, streams);
criterion_main!(benches);
