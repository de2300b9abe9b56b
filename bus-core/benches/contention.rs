//! What the number of locks buys: threads that send at the same time, to recipients of their own
//! and to the same ones.
//!
//! The seed of the lock set (multicast Unix sockets) weighs three solutions: one lock for all, a
//! lock for each recipient, and 8 hashed locks. Here all of them run the same few lines (take the
//! locks in ascending order, look at every queue, draw a sequence, push to every queue), which
//! differ in nothing but how many locks there are; and beside them the bus itself, which does more.
//! `sequence` compares a counter that all commits share with a clock behind each lock.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use bus_core::{Bus, Credentials, Destination, Endpoint, JoinOptions, Lane, Limits, Payload};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, MutexGuard};

/// What a queue holds by default.
const CAPACITY: usize = 256;
const PAYLOAD: &[u8; 64] = &[7; 64];

/// A message for some recipients.
trait Multicast: Sync {
    /// Sends to the recipients of `set`.
    fn send(&self, sender: usize, set: &[usize]);

    /// Empties all queues.
    fn empty(&mut self);
}

/// The least that a multicast in one order does, with any number of locks.
struct Model {
    /// Behind each lock: its clock, and the queues of the recipients that it covers.
    locks: Vec<CachePadded<Mutex<Shard>>>,
}

#[derive(Default)]
struct Shard {
    clock: u64,
    queues: Vec<VecDeque<(u64, Arc<[u8; 64]>)>>,
}

impl Model {
    fn new(locks: usize, recipients: usize) -> Self {
        let mut shards: Vec<Shard> = (0..locks).map(|_| Shard::default()).collect();
        for recipient in 0..recipients {
            shards[recipient % locks].queues.push(VecDeque::with_capacity(CAPACITY));
        }
        Self {
            locks: shards.into_iter().map(|shard| CachePadded::new(Mutex::new(shard))).collect(),
        }
    }
}

impl Multicast for Model {
    fn send(&self, _: usize, set: &[usize]) {
        let locks = self.locks.len();
        let message = Arc::new(*PAYLOAD);
        let mut needed: Vec<usize> = set.iter().map(|recipient| recipient % locks).collect();
        needed.sort_unstable();
        needed.dedup();
        let mut held: Vec<(usize, MutexGuard<'_, Shard>)> =
            needed.into_iter().map(|at| (at, self.locks[at].lock())).collect();
        let place = |held: &[(usize, MutexGuard<'_, Shard>)], recipient: usize| {
            held.binary_search_by_key(&(recipient % locks), |(at, _)| *at).unwrap()
        };
        for recipient in set {
            let shard = &held[place(&held, *recipient)].1;
            assert!(shard.queues[recipient / locks].len() < CAPACITY, "the batch is too long");
        }
        let sequence = held.iter().map(|(_, shard)| shard.clock).max().unwrap() + 1;
        for (_, shard) in &mut held {
            shard.clock = sequence;
        }
        for recipient in set {
            let at = place(&held, *recipient);
            held[at].1.queues[recipient / locks].push_back((sequence, Arc::clone(&message)));
        }
    }

    fn empty(&mut self) {
        for lock in &mut self.locks {
            lock.get_mut().queues.iter_mut().for_each(VecDeque::clear);
        }
    }
}

/// The bus: one group for each set, and endpoints chosen by their locks as the model's are.
struct OnBus {
    readers: Vec<(Endpoint, bus_core::Receiver)>,
    lanes: Vec<(Mutex<Lane>, Destination)>,
    _senders: Vec<Endpoint>,
}

impl OnBus {
    fn new(sets: &[Vec<usize>]) -> Self {
        let bus = Bus::new(Limits::default(), 1).unwrap();
        let open = || bus.open_endpoint(Credentials { uid: 1, pid: 1 }).unwrap();
        let most = sets.iter().flatten().max().unwrap();
        // The endpoint for recipient n has lock n of 8, as in a model of 8 locks.
        let mut members: Vec<Endpoint> = Vec::new();
        while members.len() <= *most {
            let wanted = members.len() % 8;
            members.push(std::iter::repeat_with(open).find(|one| one.lock() == wanted).unwrap());
        }
        let senders: Vec<Endpoint> = sets.iter().map(|_| open()).collect();
        let lanes = sets.iter().zip(&senders).enumerate().map(|(number, (set, sender))| {
            let name = format!("set{number}").parse().unwrap();
            let mut to = Destination::Group(sender.create_group(&name).unwrap().0);
            for recipient in set {
                let joined = members[*recipient].join(&name, JoinOptions::create()).unwrap();
                to = Destination::Group(joined.group);
            }
            (Mutex::new(sender.lane().unwrap()), to)
        });
        let lanes = lanes.collect();
        let reader = |member: Endpoint| {
            let receiver = member.receiver().unwrap();
            (member, receiver)
        };
        Self { readers: members.into_iter().map(reader).collect(), lanes, _senders: senders }
    }
}

impl Multicast for OnBus {
    fn send(&self, sender: usize, _: &[usize]) {
        let (lane, to) = &self.lanes[sender];
        let payload = Payload::from(Bytes::from_static(PAYLOAD));
        black_box(lane.lock().try_send(*to, payload)).unwrap();
    }

    fn empty(&mut self) {
        for (_, reader) in &mut self.readers {
            while reader.try_receive().is_ok() {}
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time; the core does not")]
fn now() -> Instant {
    Instant::now()
}

/// Time for each thread to do `times`, the threads at once, in batches that fit into a queue.
fn together(
    times: u64,
    threads: usize,
    system: &mut dyn Multicast,
    sets: &[Vec<usize>],
) -> Duration {
    let mut total = Duration::ZERO;
    let mut left = times;
    while left > 0 {
        let batch = left.min((CAPACITY / threads) as u64);
        let barrier = Barrier::new(threads);
        let shared: &dyn Multicast = system;
        let run = |sender: usize| {
            barrier.wait();
            let start = now();
            (0..batch).for_each(|_| shared.send(sender, &sets[sender]));
            start.elapsed()
        };
        total += thread::scope(|scope| {
            let others: Vec<_> =
                (1..threads).map(|sender| scope.spawn(move || run(sender))).collect();
            let own = run(0);
            others.into_iter().map(|other| other.join().unwrap()).fold(own, Duration::max)
        });
        system.empty();
        left -= batch;
    }
    total
}

/// The recipients of each thread: its own, on locks of its own (of 8), or the same for all.
fn sets(threads: usize, recipients: usize, shared: bool) -> Vec<Vec<usize>> {
    let locks_each = 8 / threads;
    (0..threads)
        .map(|thread| {
            let thread = if shared { 0 } else { thread };
            (0..recipients)
                .map(|n| (n / locks_each) * 8 + thread * locks_each + n % locks_each)
                .collect()
        })
        .collect()
}

fn contention(c: &mut Criterion) {
    for (threads, recipients) in [(1, 1), (1, 8), (2, 1), (2, 8), (4, 1), (4, 8)] {
        for shared in [false, true] {
            if threads == 1 && shared {
                continue;
            }
            let which = if shared { "shared" } else { "disjoint" };
            let mut group = c.benchmark_group(format!("{threads}_threads_to_{recipients}_{which}"));
            group.throughput(Throughput::Elements(threads as u64));
            let sets = sets(threads, recipients, shared);
            let all = sets.iter().flatten().max().unwrap() + 1;
            let fewer = [1, 2, 8, 32].into_iter().filter(|locks| *locks < all);
            for locks in fewer.chain([all]) {
                let name =
                    if locks == all { "per_recipient".to_owned() } else { locks.to_string() };
                let mut model = Model::new(locks, all);
                group.bench_function(BenchmarkId::new("model", name), |b| {
                    b.iter_custom(|times| together(times, threads, &mut model, &sets));
                });
            }
            let mut bus = OnBus::new(&sets);
            group.bench_function("bus", |b| {
                b.iter_custom(|times| together(times, threads, &mut bus, &sets));
            });
            group.finish();
        }
    }
}

/// Where sequences come from: a counter that all share, or a clock behind each thread's own lock.
fn sequence(c: &mut Criterion) {
    struct Draws {
        counter: Option<AtomicU64>,
        locks: Vec<CachePadded<Mutex<u64>>>,
    }
    impl Multicast for Draws {
        fn send(&self, sender: usize, _: &[usize]) {
            let mut clock = self.locks[sender].lock();
            *clock += 1;
            if let Some(counter) = &self.counter {
                *clock = counter.fetch_add(1, Ordering::Relaxed);
            }
            black_box(*clock);
        }

        fn empty(&mut self) {}
    }
    for threads in [1, 2, 4] {
        let mut group = c.benchmark_group(format!("sequence_{threads}_threads"));
        group.throughput(Throughput::Elements(threads as u64));
        let sets = vec![Vec::new(); threads];
        for (name, counter) in [("clock_per_lock", None), ("one_counter", Some(AtomicU64::new(0)))]
        {
            let locks = (0..threads).map(|_| CachePadded::new(Mutex::new(0))).collect();
            let mut draws = Draws { counter, locks };
            group.bench_function(name, |b| {
                b.iter_custom(|times| together(times, threads, &mut draws, &sets));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, contention, sequence);
criterion_main!(benches);
