//! Real threads, random operations, and a look at the histories afterwards.
//!
//! The models in `loom-tests` know every interleaving of a few operations; this knows a few of the
//! interleavings of many, on the real locks and atomics of this machine. Each endpoint has a thread
//! that sends, joins and leaves, and one that reads. When all is over, the order is taken from the
//! receipts, and every queue must be what follows from it.
//!
//! `UNISONO_STRESS_RUNS` makes more than the few runs that are part of `cargo test`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use bus_core::{
    Bus, Credentials, Delivery, Destination, Endpoint, EndpointId, Gap, GroupId, JoinOptions, Lane,
    Limits, MemberFlags, Receipt, ReceiveError, Receiver, SendError, Sequence, Submitted,
};

const ENDPOINTS: usize = 5;
const GROUPS: usize = 3;
const OPERATIONS: usize = 400;

/// Nothing here waits for anything but another thread's progress: who is not through by then has
/// missed a wake-up.
const DEADLINE: Duration = Duration::from_secs(60);

/// Xorshift: enough to mix operations, and the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }
}

/// A send and what it came to.
#[derive(Debug)]
struct Sent {
    lane: usize,
    to: Destination,
    text: String,
    outcome: Result<Receipt, SendError>,
}

/// A membership: from its join to its leave.
#[derive(Debug)]
struct Stay {
    group: GroupId,
    flags: MemberFlags,
    joined: Sequence,
    left: Option<Sequence>,
}

/// What one endpoint did and got.
#[derive(Debug)]
struct History {
    endpoint: EndpointId,
    sent: Vec<Sent>,
    stays: Vec<Stay>,
    /// When it stopped to receive.
    shut: Sequence,
    received: Vec<Delivery>,
}

/// The thread that sends for an endpoint, and joins and leaves.
struct Owner<'a> {
    endpoint: &'a Endpoint,
    everybody: &'a [EndpointId],
    groups: &'a [GroupId],
    dice: Dice,
    lanes: [Lane; 2],
    /// The second lane's send that waits.
    waiting: Option<(Destination, String)>,
    sent: Vec<Sent>,
    stays: Vec<Stay>,
}

impl Owner<'_> {
    fn run(mut self) -> (Vec<Sent>, Vec<Stay>) {
        for n in 0..OPERATIONS {
            let text = format!("{}/{n}", self.endpoint.id());
            match self.dice.roll(16) {
                0..6 => self.send(text),
                6..9 => self.try_send(text),
                9..11 => self.send_in_time(text),
                11..14 => self.submit_or_cancel(text),
                _ => self.join_or_leave(),
            }
        }
        if let Some((to, text)) = self.waiting.take() {
            let outcome = self.lanes[1].cancel().unwrap();
            self.note(1, to, text, outcome);
        }
        (self.sent, self.stays)
    }

    fn target(&mut self) -> Destination {
        if self.dice.roll(4) == 0 {
            Destination::Endpoint(self.everybody[self.dice.roll(ENDPOINTS)])
        } else {
            Destination::Group(self.groups[self.dice.roll(GROUPS)])
        }
    }

    fn note(
        &mut self,
        lane: usize,
        to: Destination,
        text: String,
        outcome: Result<Receipt, SendError>,
    ) {
        self.sent.push(Sent { lane, to, text, outcome });
    }

    fn send(&mut self, text: String) {
        let to = self.target();
        let outcome = self.lanes[0].send(to, text.clone());
        self.note(0, to, text, outcome);
    }

    fn try_send(&mut self, text: String) {
        let to = self.target();
        let outcome = self.lanes[0].try_send(to, text.clone());
        self.note(0, to, text, outcome);
    }

    fn send_in_time(&mut self, text: String) {
        let to = self.target();
        let patience = Duration::from_micros(self.dice.roll(200) as u64);
        #[expect(clippy::disallowed_methods, reason = "a deadline needs a clock")]
        let deadline = Instant::now() + patience;
        let outcome = self.lanes[0].send_deadline(to, text.clone(), deadline);
        self.note(0, to, text, outcome);
    }

    fn submit_or_cancel(&mut self, text: String) {
        if let Some((to, text)) = self.waiting.take() {
            let outcome = match self.lanes[1].poll_outcome() {
                Some(outcome) => outcome,
                None => self.lanes[1].cancel().unwrap(),
            };
            self.note(1, to, text, outcome);
            return;
        }
        let to = self.target();
        match self.lanes[1].submit(to, text.clone(), Waker::noop().clone()) {
            Ok(Submitted::Committed(receipt)) => self.note(1, to, text, Ok(receipt)),
            Ok(Submitted::Waiting) => self.waiting = Some((to, text)),
            Err(error) => self.note(1, to, text, Err(error)),
        }
    }

    fn join_or_leave(&mut self) {
        let at = self.dice.roll(GROUPS);
        let group = self.groups[at];
        let stay = self.stays.iter_mut().rev().find(|stay| stay.group == group);
        if let Some(stay) = stay.filter(|stay| stay.left.is_none()) {
            stay.left = Some(self.endpoint.leave(group).unwrap());
            return;
        }
        let flags = [
            MemberFlags::empty(),
            MemberFlags::LOOPBACK,
            MemberFlags::DROP_WHEN_FULL,
            MemberFlags::DROP_WHEN_FULL | MemberFlags::LOOPBACK,
        ][self.dice.roll(4)];
        let name = format!("g{at}").parse().unwrap();
        let joined = self.endpoint.join(&name, JoinOptions::default().with(flags)).unwrap();
        self.stays.push(Stay { group, flags, joined: joined.sequence, left: None });
    }
}

/// Reads until its endpoint has ended: mostly as an application does, at times with credit that it
/// gives back late, as a transport does.
fn read(mut reader: Receiver, mut dice: Dice) -> Vec<Delivery> {
    let mut all = Vec::new();
    loop {
        match dice.roll(4) {
            0 => thread::yield_now(),
            1 => {
                let (mut messages, mut bytes) = (0, 0);
                while let Some(delivery) = reader.drain() {
                    if let Delivery::Message { message, .. } = &delivery {
                        messages += 1;
                        bytes += message.charged_bytes();
                    }
                    all.push(delivery);
                }
                reader.release(messages, bytes).unwrap();
            }
            _ => match reader.receive() {
                Ok(delivery) => all.push(delivery),
                Err(ReceiveError::Ended) => return all,
                Err(error) => panic!("{error}"),
            },
        }
    }
}

fn run(seed: u64) -> (Vec<History>, u64) {
    let limits = Limits { queue_messages: 3, ..Limits::default() };
    let bus = Bus::new(limits, seed).unwrap();
    let me = Credentials { uid: 0, pid: 0 };
    // Groups outlive their members, so that their ids stay the same.
    let founder = bus.open_endpoint(me).unwrap();
    let group = |at| founder.create_group(&format!("g{at}").parse().unwrap());
    let groups: Vec<GroupId> = (0..GROUPS).map(|at| group(at).unwrap().0).collect();
    let endpoints: Vec<Endpoint> = (0..ENDPOINTS).map(|_| bus.open_endpoint(me).unwrap()).collect();
    let everybody: Vec<EndpointId> = endpoints.iter().map(Endpoint::id).collect();
    let (groups, everybody) = (&groups, &everybody);
    let histories = thread::scope(|scope| {
        let readers: Vec<_> = endpoints
            .iter()
            .map(|endpoint| {
                let reader = endpoint.receiver().unwrap();
                let dice = Dice(seed ^ (endpoint.id().get() << 32));
                scope.spawn(move || read(reader, dice))
            })
            .collect();
        let owners: Vec<_> = endpoints
            .iter()
            .map(|endpoint| {
                let owner = Owner {
                    endpoint,
                    everybody,
                    groups,
                    dice: Dice(seed ^ endpoint.id().get()),
                    lanes: [(); 2].map(|()| endpoint.lane().unwrap()),
                    waiting: None,
                    sent: Vec::new(),
                    stays: Vec::new(),
                };
                scope.spawn(move || owner.run())
            })
            .collect();
        let done: Vec<_> = owners.into_iter().map(|owner| owner.join().unwrap()).collect();
        let shut: Vec<Sequence> = endpoints.iter().map(Endpoint::shutdown_receive).collect();
        let ended = done.into_iter().zip(shut).zip(readers).zip(everybody);
        ended
            .map(|((((sent, stays), shut), reader), endpoint)| History {
                endpoint: *endpoint,
                sent,
                stays,
                shut,
                received: reader.join().unwrap(),
            })
            .collect()
    });
    assert_eq!(bus.stats().waiting_sends, 0, "nobody was forgotten");
    (histories, bus.stats().messages)
}

/// What the order says that an endpoint gets: the messages to it and to its groups, each with
/// whether it may have been dropped.
fn expected(history: &History, all: &[History]) -> BTreeMap<Sequence, (String, Option<GroupId>)> {
    let mut expected = BTreeMap::new();
    for sender in all {
        for sent in &sender.sent {
            let Ok(receipt) = &sent.outcome else { continue };
            let droppable = match sent.to {
                Destination::Endpoint(id) if id == history.endpoint => Some(None),
                Destination::Endpoint(_) | Destination::Name(_) => None,
                Destination::Group(group) => stay_at(history, group, receipt.sequence)
                    .filter(|stay| {
                        sender.endpoint != history.endpoint
                            || stay.flags.contains(MemberFlags::LOOPBACK)
                    })
                    .map(|stay| {
                        let drops = stay.flags.contains(MemberFlags::DROP_WHEN_FULL);
                        drops.then_some(group)
                    }),
                other => panic!("nothing is sent to {other:?}"),
            };
            if let Some(droppable) = droppable {
                let twice = expected.insert(receipt.sequence, (sent.text.clone(), droppable));
                assert!(twice.is_none(), "two messages at {}", receipt.sequence);
            }
        }
    }
    expected
}

fn stay_at(history: &History, group: GroupId, sequence: Sequence) -> Option<&Stay> {
    history.stays.iter().find(|stay| {
        let left = stay.left.unwrap_or(history.shut);
        stay.group == group && stay.joined < sequence && sequence < left
    })
}

/// A queue held what the order says, in that order, except for what was dropped where that may be,
/// and the gaps name exactly that (G1, G2, G4, G7).
fn check_queue(history: &History, all: &[History]) {
    let expected = expected(history, all);
    let mut missing = expected.clone();
    let mut gaps: BTreeMap<GroupId, Vec<Gap>> = BTreeMap::new();
    let mut last = None;
    for delivery in &history.received {
        match delivery {
            Delivery::Message { message, missed } => {
                let sequence = message.sequence();
                assert!(last < Some(sequence), "{sequence} after {last:?}");
                last = Some(sequence);
                let text = String::from_utf8(message.payload().to_vec()).unwrap();
                let known = missing.remove(&sequence).map(|(text, _)| text);
                assert_eq!(known, Some(text), "at {sequence}");
                if let Some(gap) = missed {
                    let Destination::Group(group) = message.destination() else {
                        panic!("a gap before a direct message");
                    };
                    assert!(gap.last < sequence);
                    gaps.entry(group).or_default().push(*gap);
                }
            }
            Delivery::Gap { group, gap } => gaps.entry(*group).or_default().push(*gap),
            other => panic!("nobody was evicted and nobody watches: {other:?}"),
        }
    }
    let mut dropped: BTreeMap<GroupId, Vec<Sequence>> = BTreeMap::new();
    for (sequence, (text, droppable)) in missing {
        let group = droppable.unwrap_or_else(|| panic!("{text} at {sequence} got lost"));
        dropped.entry(group).or_default().push(sequence);
    }
    for (group, dropped) in &dropped {
        let mut rest = dropped.iter().copied();
        for gap in gaps.remove(group).unwrap_or_default() {
            let told: Vec<_> = (0..gap.count).map_while(|_| rest.next()).collect();
            let ends = (told.first().copied(), told.last().copied());
            assert_eq!(told.len() as u64, gap.count);
            assert_eq!(ends, (Some(gap.first), Some(gap.last)));
        }
        assert_eq!(rest.next(), None, "a loss that nobody was told of");
    }
    assert!(gaps.is_empty(), "gaps where nothing was lost: {gaps:?}");
}

/// Receipts tell the truth: places of their own, rising in each lane, after what the sender had
/// taken, and the recipients that the order says (G1, G3).
fn check_receipts(all: &[History], committed: u64) {
    let mut places = BTreeSet::new();
    let mut queued: BTreeMap<Sequence, u32> = BTreeMap::new();
    for history in all {
        for delivery in &history.received {
            if let Delivery::Message { message, .. } = delivery {
                *queued.entry(message.sequence()).or_default() += 1;
            }
        }
    }
    for history in all {
        let mut last = [None; 2];
        let mut serials = BTreeSet::new();
        for sent in &history.sent {
            let receipt = match &sent.outcome {
                Ok(receipt) => receipt,
                Err(
                    SendError::WouldBlock { .. } | SendError::Cancelled | SendError::OwnQueueFull,
                ) => continue,
                Err(error) => panic!("{error}"),
            };
            assert!(places.insert(receipt.sequence), "a place of its own");
            assert!(receipt.after < receipt.sequence);
            assert!(last[sent.lane] < Some(receipt.sequence), "one lane, one order");
            last[sent.lane] = Some(receipt.sequence);
            serials.insert(receipt.sender_serial);
            let reached = queued.remove(&receipt.sequence).unwrap_or(0);
            assert_eq!(reached, receipt.recipients, "{sent:?}");
        }
        let count = serials.len() as u64;
        assert!(serials.into_iter().eq(1..=count), "refused sends take no serial");
    }
    assert!(queued.is_empty(), "messages without receipts: {queued:?}");
    assert_eq!(places.len() as u64, committed);
}

#[test]
fn histories_of_many_threads_agree_with_one_order() {
    let runs = std::env::var("UNISONO_STRESS_RUNS").map_or(12, |runs| runs.parse().unwrap());
    let (done, over) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            for seed in 1..=runs {
                let (histories, committed) = run(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
                for history in &histories {
                    check_queue(history, &histories);
                }
                check_receipts(&histories, committed);
                done.send(seed).unwrap();
            }
        });
        for seed in 1..=runs {
            match over.recv_timeout(DEADLINE) {
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    eprintln!("run {seed} stands still: a wake-up was lost, or see above");
                    std::process::abort();
                }
            }
        }
    });
}
