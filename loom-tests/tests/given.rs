//! What the models start from, and how far each is explored.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Wake, Waker};
use std::time::Instant;

use bus_core_modelled::{
    Bus, Credentials, Delivery, Destination, Endpoint, Gap, GroupId, JoinOptions, Lane, Limits,
    MemberFlags, Monitored, Receipt, Receiver, Sequence, Submitted,
};

/// Runs a model of two threads under every interleaving with at most three preemptions, and under
/// the feature `long` under every one that there is. A switch where a thread waits or ends is none.
pub(crate) fn explore(model: impl Fn() + Send + Sync + 'static) {
    check((!cfg!(feature = "long")).then_some(3), model);
}

/// The same for three threads and more: at most two preemptions, and three under `long`.
///
/// Two suffice for most of what goes wrong between a few threads of one or two operations each;
/// the third multiplies the interleavings by 15 to 20.
pub(crate) fn explore_many(model: impl Fn() + Send + Sync + 'static) {
    check(Some(if cfg!(feature = "long") { 3 } else { 2 }), model);
}

/// `LOOM_MAX_PREEMPTIONS` overrides the bound.
fn check(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 100_000;
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    let interleavings = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&interleavings);
    let start = Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let interleavings = interleavings.load(Ordering::Relaxed);
    println!("{interleavings} interleavings in {:?}", start.elapsed());
}

/// A bus whose queues hold `places` messages.
pub(crate) fn bus(places: u32) -> Bus {
    // Without requests: the ring behind a queue is made anew in each interleaving.
    bus_with(Limits { queue_messages: places, requests: 0, ..Limits::default() })
}

pub(crate) fn bus_with(limits: Limits) -> Bus {
    Bus::new(limits, 0).expect("limits in range")
}

/// The next endpoint. The first is number 1; number `n` is behind lock `n` modulo 8.
pub(crate) fn endpoint(bus: &Bus) -> Endpoint {
    let nobody = Credentials { uid: 0, pid: 0 };
    bus.open_endpoint(nobody).expect("few endpoints")
}

/// The next `N` endpoints.
pub(crate) fn endpoints<const N: usize>(bus: &Bus) -> [Endpoint; N] {
    std::array::from_fn(|_| endpoint(bus))
}

/// Makes `member` a member of a group that is created if need be.
pub(crate) fn join(member: &Endpoint, name: &str, flags: MemberFlags) -> Destination {
    let name = name.parse().expect("a good name");
    let joined = member.join(&name, JoinOptions::create().with(flags));
    Destination::Group(joined.expect("may join").group)
}

/// A group with these members, without flags, joined in this order.
pub(crate) fn group(name: &str, members: &[&Endpoint]) -> Destination {
    let mut group = None;
    for member in members {
        group = Some(join(member, name, MemberFlags::empty()));
    }
    group.expect("at least one member")
}

pub(crate) fn id_of(group: Destination) -> GroupId {
    match group {
        Destination::Group(id) => id,
        other => panic!("{other:?} is no group"),
    }
}

pub(crate) fn to(endpoint: &Endpoint) -> Destination {
    Destination::Endpoint(endpoint.id())
}

pub(crate) fn lane(endpoint: &Endpoint) -> Lane {
    endpoint.lane().expect("few lanes")
}

pub(crate) fn reader(endpoint: &Endpoint) -> Receiver {
    endpoint.receiver().expect("nobody else reads")
}

/// Sends `text`, which must find room.
pub(crate) fn sent(lane: &mut Lane, to: Destination, text: &str) -> Receipt {
    lane.try_send(to, text).expect("room everywhere")
}

/// What came out of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// A message's payload; `"gap"` for a gap told on its own; the change of a view.
    pub(crate) text: String,
    /// A message's sequence; the last one missed of a gap told on its own.
    pub(crate) sequence: Sequence,
    /// What was missed of its group just before.
    pub(crate) missed: Option<Gap>,
}

pub(crate) fn taken(delivery: Delivery) -> Taken {
    match delivery {
        Delivery::Message { message, missed } => Taken {
            text: String::from_utf8_lossy(message.payload()).into_owned(),
            sequence: message.sequence(),
            missed,
        },
        Delivery::Gap { gap, .. } | Delivery::ViewsLost { gap, .. } => {
            Taken { text: "gap".to_owned(), sequence: gap.last, missed: Some(gap) }
        }
        Delivery::View { change, missed } => {
            Taken { text: format!("{:?}", change.change), sequence: change.sequence, missed }
        }
        Delivery::Monitored { seen, missed } => match seen {
            Monitored::Message { message, .. } => Taken {
                text: format!("saw {}", String::from_utf8_lossy(message.payload())),
                sequence: message.sequence(),
                missed,
            },
            other => panic!("an unknown sight {other:?}"),
        },
        Delivery::Retained { message } => Taken {
            text: format!("retained {}", String::from_utf8_lossy(message.payload())),
            sequence: message.sequence(),
            missed: None,
        },
        Delivery::Current { sequence, .. } => {
            Taken { text: "current".to_owned(), sequence, missed: None }
        }
        Delivery::Name(notice) => {
            Taken { text: format!("{:?}", notice.event), sequence: notice.sequence, missed: None }
        }
        Delivery::Evicted(eviction) => {
            Taken { text: "Evicted".to_owned(), sequence: eviction.sequence, missed: None }
        }
        other => panic!("an unknown delivery {other:?}"),
    }
}

/// Takes everything that is queued.
pub(crate) fn take_all(reader: &mut Receiver) -> Vec<Taken> {
    std::iter::from_fn(|| reader.try_receive().ok()).map(taken).collect()
}

/// Everything that is queued at an endpoint that nobody reads.
pub(crate) fn queued(endpoint: &Endpoint) -> Vec<Taken> {
    take_all(&mut reader(endpoint))
}

pub(crate) fn texts(all: &[Taken]) -> Vec<&str> {
    all.iter().map(|taken| taken.text.as_str()).collect()
}

/// Sequences rise in each queue, and two queues agree about what they have in common (G2).
#[track_caller]
pub(crate) fn assert_one_order(queues: &[&[Taken]]) {
    for queue in queues {
        let rising = queue.windows(2).all(|two| two[0].sequence < two[1].sequence);
        assert!(rising, "sequences do not rise in {queue:?}");
    }
    for (at, one) in queues.iter().enumerate() {
        for other in &queues[at + 1..] {
            let common = |these: &[Taken], those: &[Taken]| -> Vec<String> {
                let both =
                    these.iter().filter(|taken| those.iter().any(|that| that.text == taken.text));
                both.map(|taken| taken.text.clone()).collect()
            };
            assert_eq!(common(one, other), common(other, one), "two orders");
        }
    }
}

/// A waker that a model's thread can wait for.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    rung: loom::sync::Mutex<bool>,
    changed: loom::sync::Condvar,
}

impl Alarm {
    pub(crate) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    /// Waits until the waker is called; a call that came before counts.
    pub(crate) fn wait(&self) {
        let mut rung = self.rung.lock().expect("not poisoned");
        while !*rung {
            rung = self.changed.wait(rung).expect("not poisoned");
        }
        *rung = false;
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        *self.rung.lock().expect("not poisoned") = true;
        self.changed.notify_one();
    }
}

/// Hands in a send that has to wait. Whoever makes room for it commits it, so nobody needs to
/// stand by.
pub(crate) fn waits(lane: &mut Lane, to: Destination, text: &str) {
    let submitted = lane.submit(to, text, Waker::noop().clone());
    assert_eq!(submitted, Ok(Submitted::Waiting));
}
