//! What a commit costs, by the number of its recipients, what each part of it does, and what taking a
//! message costs.
//!
//! Sends are timed without the reading: queues are long enough for a batch, and are emptied between
//! batches.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use bus_core::{
    Attributes, BatchDraft, Bus, Credentials, Destination, Endpoint, JoinOptions, LOCKS, Lane,
    Limits, MemberFlags, Payload, Receiver,
};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// What a queue holds by default.
const BATCH: u64 = 256;
const PAYLOAD: &[u8; 64] = &[7; 64];

fn bus() -> Bus {
    Bus::new(Limits::default(), 1).unwrap()
}

fn endpoint(bus: &Bus) -> Endpoint {
    bus.open_endpoint(Credentials { uid: 1, pid: 1 }).unwrap()
}

/// Members with their readers.
struct Members {
    to: Destination,
    readers: Vec<(Endpoint, Receiver)>,
}

impl Members {
    fn new(bus: &Bus, name: &str, count: usize, flags: MemberFlags) -> Self {
        Self::of(bus, name, (0..count).map(|_| endpoint(bus)).collect(), flags)
    }

    fn of(bus: &Bus, name: &str, members: Vec<Endpoint>, flags: MemberFlags) -> Self {
        let creator = endpoint(bus);
        let name = name.parse().unwrap();
        let mut to = Destination::Group(creator.create_group(&name).unwrap().0);
        let mut readers = Vec::new();
        for member in members {
            let options = JoinOptions::create().with(flags);
            to = Destination::Group(member.join(&name, options).unwrap().group);
            let reader = member.receiver().unwrap();
            readers.push((member, reader));
        }
        // The group lives as long as its creator, and that is one more to keep.
        let reader = creator.receiver().unwrap();
        readers.push((creator, reader));
        Self { to, readers }
    }

    fn empty(&mut self) {
        for (_, reader) in &mut self.readers {
            while reader.try_receive().is_ok() {}
        }
    }
}

fn send(lane: &mut Lane, to: Destination) {
    let payload = Payload::from(Bytes::from_static(PAYLOAD));
    black_box(lane.try_send(to, payload)).unwrap();
}

/// Messages that are sent together.
const TOGETHER: u64 = 32;

fn send_together(lane: &mut Lane, to: Destination) {
    let Destination::Group(group) = to else { panic!("only groups") };
    let mut batch = BatchDraft::default();
    (0..TOGETHER).for_each(|_| batch.push(&Attributes::EMPTY, PAYLOAD));
    black_box(lane.try_send_batch(group, batch)).unwrap();
}

/// Runs batches until `times` are done; only `timed` counts.
fn batches(times: u64, mut timed: impl FnMut(u64), mut between: impl FnMut()) -> Duration {
    let mut total = Duration::ZERO;
    let mut left = times;
    while left > 0 {
        let batch = left.min(BATCH);
        let start = now();
        timed(batch);
        total += start.elapsed();
        between();
        left -= batch;
    }
    total
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time; the core does not")]
fn now() -> Instant {
    Instant::now()
}

fn commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("commit");
    for count in [0, 1, 8, 64, 512] {
        let bus = bus();
        let mut members = Members::new(&bus, "g", count, MemberFlags::empty());
        let sender = endpoint(&bus);
        let mut lane = sender.lane().unwrap();
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("{count}_members"), |b| {
            b.iter_custom(|times| {
                let to = members.to;
                batches(
                    times,
                    |batch| (0..batch).for_each(|_| send(&mut lane, to)),
                    || members.empty(),
                )
            });
        });
    }
    // The time of one message of 32 that are sent together.
    for count in [8, 64] {
        let bus = bus();
        let mut members = Members::new(&bus, "g", count, MemberFlags::empty());
        let sender = endpoint(&bus);
        let mut lane = sender.lane().unwrap();
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("{count}_members_32_together"), |b| {
            b.iter_custom(|times| {
                let to = members.to;
                batches(
                    times.next_multiple_of(TOGETHER),
                    |batch| (0..batch / TOGETHER).for_each(|_| send_together(&mut lane, to)),
                    || members.empty(),
                )
            });
        });
    }
    let bus = bus();
    let (sender, reader) = (endpoint(&bus), endpoint(&bus));
    let mut reading = reader.receiver().unwrap();
    let mut lane = sender.lane().unwrap();
    group.bench_function("one_endpoint", |b| {
        b.iter_custom(|times| {
            let to = Destination::Endpoint(reader.id());
            batches(
                times,
                |batch| (0..batch).for_each(|_| send(&mut lane, to)),
                || while reading.try_receive().is_ok() {},
            )
        });
    });
    group.finish();
}

/// The same 8 recipients, behind more and more of the locks.
fn lock_set(c: &mut Criterion) {
    let mut group = c.benchmark_group("lock_set");
    for locks in [1, 2, 4, LOCKS] {
        let bus = bus();
        let mut free = vec![8 / locks; locks];
        let mut chosen = Vec::new();
        while chosen.len() < 8 {
            let member = endpoint(&bus);
            if let Some(left) = free.get_mut(member.lock()).filter(|left| **left > 0) {
                *left -= 1;
                chosen.push(member);
            }
        }
        let mut members = Members::of(&bus, "g", chosen, MemberFlags::empty());
        let sender = endpoint(&bus);
        let mut lane = sender.lane().unwrap();
        group.bench_function(format!("8_members_behind_{locks}"), |b| {
            b.iter_custom(|times| {
                let to = members.to;
                batches(
                    times,
                    |batch| (0..batch).for_each(|_| send(&mut lane, to)),
                    || members.empty(),
                )
            });
        });
    }
    group.finish();
}

/// A send to 64 whose list of recipients is the one that it used last, and one before which somebody
/// has joined or left: its list is made anew from the snapshot. Each is timed alone, so both have the
/// clock's own time in them.
fn snapshot(c: &mut Criterion) {
    let mut group = c.benchmark_group("snapshot");
    for (which, moves) in [("the_same", false), ("another", true)] {
        let bus = bus();
        let mut members = Members::new(&bus, "g", 64, MemberFlags::empty());
        let (sender, other) = (endpoint(&bus), endpoint(&bus));
        let mut lane = sender.lane().unwrap();
        let name = "g".parse().unwrap();
        group.bench_function(which, |b| {
            b.iter_custom(|times| {
                let mut total = Duration::ZERO;
                for at in 0..times {
                    if moves {
                        let joined = other.join(&name, JoinOptions::default()).unwrap();
                        other.leave(joined.group).unwrap();
                    }
                    let start = now();
                    send(&mut lane, members.to);
                    total += start.elapsed();
                    if at % BATCH == BATCH - 1 {
                        members.empty();
                    }
                }
                members.empty();
                total
            });
        });
    }
    group.finish();
}

/// What is left of a send when it is refused: the route, the locks and the look at each queue.
fn refused(c: &mut Criterion) {
    let mut group = c.benchmark_group("refused");
    for count in [1, 64] {
        let limits = Limits { queue_messages: 1, ..Limits::default() };
        let bus = Bus::new(limits, 1).unwrap();
        let members = Members::new(&bus, "g", count, MemberFlags::empty());
        let sender = endpoint(&bus);
        let mut lane = sender.lane().unwrap();
        send(&mut lane, members.to);
        group.bench_function(format!("{count}_full_members"), |b| {
            b.iter(|| {
                let payload = Payload::from(Bytes::from_static(PAYLOAD));
                black_box(lane.try_send(members.to, payload)).unwrap_err()
            });
        });
    }
    let bus = bus();
    let members = Members::new(&bus, "g", 64, MemberFlags::empty());
    let sender = endpoint(&bus);
    group.bench_function("watch_of_64_writable_members", |b| {
        let waker = std::task::Waker::noop();
        b.iter(|| {
            let watch = sender.watch_writable(members.to, waker.clone());
            assert!(watch.unwrap().is_none());
        });
    });
    group.finish();
}

fn take(c: &mut Criterion) {
    let mut group = c.benchmark_group("take");
    let bus = bus();
    let (sender, reader) = (endpoint(&bus), endpoint(&bus));
    let mut reading = reader.receiver().unwrap();
    let mut lane = sender.lane().unwrap();
    let to = Destination::Endpoint(reader.id());
    let fill = |lane: &mut Lane| while lane.try_send(to, "x").is_ok() {};
    group.bench_function("queue_in_and_out", |b| {
        b.iter(|| {
            send(&mut lane, to);
            black_box(reading.try_receive()).unwrap()
        });
    });
    group.bench_function("try_receive", |b| {
        b.iter_custom(|times| {
            fill(&mut lane);
            let total = batches(
                times,
                |batch| {
                    for _ in 0..batch {
                        black_box(reading.try_receive()).unwrap();
                    }
                },
                || fill(&mut lane),
            );
            while reading.try_receive().is_ok() {}
            total
        });
    });
    group.bench_function("drain_and_one_release_a_batch", |b| {
        b.iter_custom(|times| {
            fill(&mut lane);
            let total = batches(
                times,
                |batch| {
                    for _ in 0..batch {
                        black_box(reading.drain()).unwrap();
                    }
                    reading.release(batch, 0).unwrap();
                },
                || fill(&mut lane),
            );
            while reading.try_receive().is_ok() {}
            total
        });
    });
    group.finish();
}

/// Two threads that send at the same time: to members of their own, and to the same.
fn two_threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("two_threads");
    for (count, shared) in [(1, false), (1, true), (8, false), (8, true)] {
        let bus = bus();
        let mut members = vec![Members::new(&bus, "g0", count, MemberFlags::empty())];
        if !shared {
            members.push(Members::new(&bus, "g1", count, MemberFlags::empty()));
        }
        let to = [members[0].to, members[members.len() - 1].to];
        let senders = [endpoint(&bus), endpoint(&bus)];
        let mut lanes = senders.each_ref().map(|sender| sender.lane().unwrap());
        let which = if shared { "shared" } else { "disjoint" };
        group.throughput(Throughput::Elements(2));
        group.bench_function(format!("{count}_{which}_members"), |b| {
            b.iter_custom(|times| {
                let mut total = Duration::ZERO;
                let mut left = times;
                while left > 0 {
                    // Both together fill a shared queue.
                    let batch = left.min(BATCH / 2);
                    let barrier = Barrier::new(2);
                    let [first, second] = &mut lanes;
                    let run = |lane: &mut Lane, to| {
                        barrier.wait();
                        let start = now();
                        (0..batch).for_each(|_| send(lane, to));
                        start.elapsed()
                    };
                    total += thread::scope(|scope| {
                        let other = scope.spawn(|| run(second, to[1]));
                        run(first, to[0]).max(other.join().unwrap())
                    });
                    members.iter_mut().for_each(Members::empty);
                    left -= batch;
                }
                total
            });
        });
    }
    group.finish();
}

criterion_group!(benches, commit, lock_set, snapshot, refused, take, two_threads);
criterion_main!(benches);
