//! The flight recorder against a model: after random joins, leaves, changes of filters, sends, reads
//! and closes, what it says of every message is what a list that was kept meanwhile says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use bus_core::{
    About, Attributes, Bus, Credentials, Delivery, Destination, Draft, Endpoint, EndpointId, Fate,
    Filter, GroupId, GroupName, JoinOptions, Lane, Limits, MemberFlags, PutOut, Receiver,
    RecorderSize, RefusalReason, SendError, Sequence, Why,
};
use proptest::prelude::*;

const ENDPOINTS: usize = 5;
const GROUPS: usize = 2;

#[derive(Clone, Debug)]
enum Op {
    Join { endpoint: usize, group: usize, drops: bool, loopback: bool, key: Option<&'static str> },
    SetFilter { endpoint: usize, group: usize, key: Option<&'static str> },
    Leave { endpoint: usize, group: usize },
    Send { endpoint: usize, group: usize, key: &'static str },
    Tell { endpoint: usize, to: usize },
    Drain { endpoint: usize, most: usize },
    Release { endpoint: usize, most: usize },
    Replace { endpoint: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let key = prop::sample::select(vec![None, Some("a"), Some("b")]);
    let (e, g) = (0..ENDPOINTS, 0..GROUPS);
    prop_oneof![
        4 => (e.clone(), g.clone(), any::<bool>(), any::<bool>(), key.clone()).prop_map(
            |(endpoint, group, drops, loopback, key)| Op::Join {
                endpoint, group, drops, loopback, key
            }
        ),
        1 => (e.clone(), g.clone(), key)
            .prop_map(|(endpoint, group, key)| Op::SetFilter { endpoint, group, key }),
        1 => (e.clone(), g.clone()).prop_map(|(endpoint, group)| Op::Leave { endpoint, group }),
        8 => (e.clone(), g, prop::sample::select(vec!["a", "b"]))
            .prop_map(|(endpoint, group, key)| Op::Send { endpoint, group, key }),
        2 => (e.clone(), e.clone()).prop_map(|(endpoint, to)| Op::Tell { endpoint, to }),
        4 => (e.clone(), 1..4_usize).prop_map(|(endpoint, most)| Op::Drain { endpoint, most }),
        4 => (e.clone(), 1..4_usize).prop_map(|(endpoint, most)| Op::Release { endpoint, most }),
        1 => e.prop_map(|endpoint| Op::Replace { endpoint }),
    ]
}

/// How an endpoint is a member, as the model has it.
#[derive(Clone, Copy, Debug)]
struct Member {
    drops: bool,
    loopback: bool,
    key: Option<&'static str>,
}

/// What became of a message at a member when it was sent.
#[derive(Clone, Copy, Debug)]
enum Sent {
    Sender,
    Filtered,
    Dropped,
    Delivered,
}

/// One endpoint, and what it has done.
struct Player {
    endpoint: Endpoint,
    lane: Lane,
    reader: Receiver,
    /// What was delivered, in order, with its bytes.
    delivered: Vec<(Sequence, u64)>,
    drained: usize,
    released: usize,
}

/// What an endpoint had done when it was closed.
struct Past {
    taken: Vec<Sequence>,
    closed: bool,
}

struct World {
    bus: Bus,
    players: Vec<Player>,
    members: BTreeMap<(usize, EndpointId), Member>,
    groups: [Option<GroupId>; GROUPS],
    /// What was sent, and what became of it then.
    messages: Vec<(Sequence, BTreeMap<EndpointId, Sent>)>,
    past: BTreeMap<EndpointId, Past>,
    /// How many of them went to one endpoint.
    told: u64,
    /// It keeps the groups alive.
    _keeper: Endpoint,
    time: u64,
}

fn name(group: usize) -> GroupName {
    format!("g{group}").parse().unwrap()
}

fn filter(key: Option<&str>) -> Option<Filter> {
    key.map(|key| format!("key={key}").parse().unwrap())
}

impl Player {
    fn new(bus: &Bus) -> Self {
        let endpoint = bus.open_endpoint(Credentials { uid: 1000, pid: 7 }).unwrap();
        let (lane, reader) = (endpoint.lane().unwrap(), endpoint.receiver().unwrap());
        Self { endpoint, lane, reader, delivered: Vec::new(), drained: 0, released: 0 }
    }

    fn id(&self) -> EndpointId {
        self.endpoint.id()
    }
}

impl World {
    fn new() -> Self {
        let limits = Limits { queue_messages: 3, ..Limits::default() };
        let bus = Bus::recording(limits, 7, RecorderSize::bytes(1 << 20).unwrap()).unwrap();
        let players = (0..ENDPOINTS).map(|_| Player::new(&bus)).collect();
        let keeper = bus.open_endpoint(Credentials { uid: 0, pid: 1 }).unwrap();
        let groups = std::array::from_fn(|at| Some(keeper.create_group(&name(at)).unwrap().0));
        Self {
            bus,
            players,
            members: BTreeMap::new(),
            groups,
            messages: Vec::new(),
            past: BTreeMap::new(),
            told: 0,
            _keeper: keeper,
            time: 1,
        }
    }

    fn step(&mut self, op: &Op) {
        // Each step has a time of its own, so that what was taken is known message by message.
        self.time += 1;
        self.bus.tick(Duration::from_millis(self.time));
        match *op {
            Op::Join { endpoint, group, drops, loopback, key } => {
                let mut flags = MemberFlags::empty();
                flags.set(MemberFlags::DROP_WHEN_FULL, drops);
                flags.set(MemberFlags::LOOPBACK, loopback);
                let options = JoinOptions { filter: filter(key), ..JoinOptions::default() };
                let player = &self.players[endpoint];
                if player.endpoint.join(&name(group), options.with(flags)).is_ok() {
                    let member = Member { drops, loopback, key };
                    self.members.insert((group, player.id()), member);
                }
            }
            Op::SetFilter { endpoint, group, key } => {
                let player = &self.players[endpoint];
                let Some(member) = self.members.get_mut(&(group, player.id())) else { return };
                let id = self.groups[group].unwrap();
                player.endpoint.set_filter(id, filter(key)).unwrap();
                member.key = key;
            }
            Op::Leave { endpoint, group } => {
                let player = &self.players[endpoint];
                let left = player.endpoint.leave(self.groups[group].unwrap()).is_ok();
                assert_eq!(left, self.members.remove(&(group, player.id())).is_some());
            }
            Op::Send { endpoint, group, key } => self.send(endpoint, group, key),
            Op::Tell { endpoint, to } => {
                let to = self.players[to].id();
                let sent = self.players[endpoint].lane.try_send(Destination::Endpoint(to), "x");
                if let Ok(receipt) = sent {
                    self.told += 1;
                    self.deliver(to, receipt.sequence, 1);
                    self.messages.push((receipt.sequence, [(to, Sent::Delivered)].into()));
                }
            }
            Op::Drain { endpoint, most } => {
                let player = &mut self.players[endpoint];
                let mut left = most;
                while left > 0 && player.drained < player.delivered.len() {
                    if let Some(Delivery::Message { message, .. }) = player.reader.drain() {
                        assert_eq!(message.sequence(), player.delivered[player.drained].0);
                        player.drained += 1;
                        left -= 1;
                    }
                }
            }
            Op::Release { endpoint, most } => {
                let player = &mut self.players[endpoint];
                let count = most.min(player.drained - player.released);
                let freed = &player.delivered[player.released..player.released + count];
                let bytes = freed.iter().map(|(_, bytes)| bytes).sum();
                player.reader.release(count as u64, bytes).unwrap();
                player.released += count;
            }
            Op::Replace { endpoint } => {
                let old = std::mem::replace(&mut self.players[endpoint], Player::new(&self.bus));
                self.members.retain(|(_, id), _| *id != old.id());
                let taken = old.delivered[..old.released].iter().map(|(at, _)| *at).collect();
                self.past.insert(old.id(), Past { taken, closed: true });
            }
        }
    }

    fn deliver(&mut self, to: EndpointId, sequence: Sequence, bytes: u64) {
        let player = self.players.iter_mut().find(|player| player.id() == to).unwrap();
        player.delivered.push((sequence, bytes));
    }

    fn send(&mut self, endpoint: usize, group: usize, key: &'static str) {
        let sender = self.players[endpoint].id();
        let attributes = Attributes::builder().key(key).build().unwrap();
        let bytes = (attributes.encoded().len() + 1) as u64;
        let draft = Draft { attributes, ..Draft::from("x") };
        let to = Destination::Group(self.groups[group].unwrap());
        let room: BTreeMap<EndpointId, bool> = (self.players.iter())
            .map(|player| (player.id(), player.delivered.len() - player.released < 3))
            .collect();
        let receipt = match self.players[endpoint].lane.try_send(to, draft) {
            Ok(receipt) => receipt,
            Err(SendError::WouldBlock { full }) => {
                let last = self.bus.refusals(About::Endpoint(sender), 1).remove(0);
                let first = full.named()[0];
                assert_eq!(last.why, RefusalReason::Full { first, count: full.count() });
                assert_eq!((last.sender, last.to), (sender, to));
                return;
            }
            Err(other) => panic!("{other}"),
        };
        let mut fates = BTreeMap::new();
        for ((of, id), member) in &self.members {
            if *of != group {
                continue;
            }
            let fate = if *id == sender && !member.loopback {
                Sent::Sender
            } else if member.key.is_some_and(|wanted| wanted != key) {
                Sent::Filtered
            } else if member.drops && !room[id] {
                Sent::Dropped
            } else {
                Sent::Delivered
            };
            fates.insert(*id, fate);
        }
        for (id, fate) in &fates {
            if matches!(fate, Sent::Delivered) {
                let player = self.players.iter_mut().find(|player| player.id() == *id).unwrap();
                player.delivered.push((receipt.sequence, bytes));
            }
        }
        self.messages.push((receipt.sequence, fates));
    }

    fn expected(&self, id: EndpointId, sequence: Sequence) -> Fate {
        if let Some(past) = self.past.get(&id) {
            assert!(past.closed);
            return match past.taken.contains(&sequence) {
                true => Fate::Taken,
                false => Fate::Lost(Sequence::from_raw(0)),
            };
        }
        let player = self.players.iter().find(|player| player.id() == id).unwrap();
        let at = player.delivered.iter().position(|(at, _)| *at == sequence).unwrap();
        if at < player.released {
            Fate::Taken
        } else if at < player.drained {
            Fate::Handed
        } else {
            Fate::Queued
        }
    }

    fn check(&self) {
        for (sequence, sent) in &self.messages {
            let Why::Message(story) = self.bus.why(*sequence, None, 100) else {
                panic!("{sequence} is not known");
            };
            assert!(!story.incomplete && !story.more, "{story:?}");
            let told: Vec<_> = story.fates.iter().map(|fate| fate.endpoint).collect();
            let expected: Vec<_> = sent.keys().copied().collect();
            assert_eq!(told, expected, "{story:?}");
            for told in &story.fates {
                let matches = match sent[&told.endpoint] {
                    Sent::Sender => told.fate == Fate::Sender,
                    Sent::Filtered => told.fate == Fate::Filtered { own: true, owners: false },
                    Sent::Dropped => told.fate == Fate::Dropped,
                    Sent::Delivered => match (self.expected(told.endpoint, *sequence), told.fate) {
                        (Fate::Lost(_), Fate::Lost(_)) => true,
                        (expected, told) => expected == told,
                    },
                };
                assert!(matches, "{told:?} of {sequence}, and it was {:?}", sent[&told.endpoint]);
                assert!(told.credentials.is_some(), "{told:?}");
            }
        }
        // The totals are those of the messages.
        let counts = self.bus.group_counts(None, 10);
        assert_eq!(self.bus.stats().messages, self.messages.len() as u64);
        let to_groups = self.messages.len() as u64 - self.told;
        assert_eq!(counts.iter().map(|group| group.traffic.messages).sum::<u64>(), to_groups);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_the_recorder_says_is_what_happened(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in &ops {
            world.step(op);
        }
        world.check();
    }
}

#[test]
fn g8_what_was_overwritten_is_said_to_be_too_old() {
    let size = RecorderSize::bytes(RecorderSize::BYTES.0).unwrap();
    let bus = Bus::recording(Limits::default(), 7, size).unwrap();
    let me = Credentials { uid: 1, pid: 1 };
    let (sender, receiver) = (bus.open_endpoint(me).unwrap(), bus.open_endpoint(me).unwrap());
    let (mut lane, mut reader) = (sender.lane().unwrap(), receiver.receiver().unwrap());
    let to = Destination::Endpoint(receiver.id());
    let mut all = Vec::new();
    for _ in 0..5_000 {
        all.push(lane.try_send(to, "x").unwrap().sequence);
        reader.try_receive().unwrap();
    }
    assert!(matches!(bus.why(*all.last().unwrap(), None, 1), Why::Message(_)));
    let Why::TooOld(oldest) = bus.why(all[0], None, 1) else { panic!("it is still there") };
    assert!(oldest > all[0]);
    assert!(matches!(bus.why(oldest, None, 1), Why::Message(_)));
    let later = Sequence::from_raw(all.last().unwrap().get() + 8);
    assert_eq!(bus.why(later, None, 1), Why::Unknown);
    let silent = Bus::new(Limits::default(), 7).unwrap();
    assert_eq!(silent.why(later, None, 1), Why::Off);
}

#[test]
fn who_was_put_out_before_is_told_with_the_place() {
    let limits =
        Limits { queue_messages: 1, stall: Duration::from_millis(100), ..Limits::default() };
    let bus = Bus::recording(limits, 7, RecorderSize::bytes(1 << 20).unwrap()).unwrap();
    let of = |pid| bus.open_endpoint(Credentials { uid: 1, pid }).unwrap();
    let (sender, reader, dead) = (of(1), of(2), of(3));
    let group = reader.join(&name(0), JoinOptions::create()).unwrap().group;
    dead.join(&name(0), JoinOptions::default()).unwrap();
    let (mut lane, mut queue) = (sender.lane().unwrap(), reader.receiver().unwrap());
    bus.tick(Duration::from_secs(10));
    let first = lane.try_send(Destination::Group(group), "x").unwrap().sequence;
    queue.try_receive().unwrap();
    let waker = std::task::Waker::noop().clone();
    let _ = lane.submit(Destination::Group(group), "y", waker).unwrap();
    let mut evicted = Vec::new();
    for tenth in 101..110 {
        evicted.extend(bus.tick(Duration::from_millis(100 * tenth)));
    }
    assert_eq!(evicted.len(), 1);
    let second = lane.poll_outcome().unwrap().unwrap();
    let fates = |sequence| match bus.why(sequence, None, 10) {
        Why::Message(story) => story.fates,
        other => panic!("{other:?}"),
    };
    let fate_of = |sequence, id| fates(sequence).into_iter().find(|told| told.endpoint == id);
    let told = fate_of(second.sequence, dead.id()).unwrap();
    assert_eq!(told.fate, Fate::PutOut(PutOut::Stalled, evicted[0].sequence));
    assert_eq!(told.credentials, Some(Credentials { uid: 1, pid: 3 }));
    // What it had not read before it was put out lies in its queue.
    assert_eq!(fate_of(first, dead.id()).unwrap().fate, Fate::Queued);
    assert_eq!(fate_of(first, reader.id()).unwrap().fate, Fate::Taken);
}

#[test]
fn time_in_queue_ends_with_the_credit_and_outlasts_the_endpoint() {
    let bus = Bus::new(Limits::default(), 7).unwrap();
    let me = Credentials { uid: 1, pid: 1 };
    let (sender, receiver) = (bus.open_endpoint(me).unwrap(), bus.open_endpoint(me).unwrap());
    let (mut lane, mut reader) = (sender.lane().unwrap(), receiver.receiver().unwrap());
    bus.tick(Duration::from_secs(100));
    for _ in 0..3 {
        lane.try_send(Destination::Endpoint(receiver.id()), "abc").unwrap();
    }
    bus.tick(Duration::from_millis(100_020));
    for _ in 0..3 {
        reader.drain().unwrap();
    }
    assert_eq!(bus.time_in_queues().count(), 0, "handed over is not taken");
    bus.tick(Duration::from_millis(100_500));
    reader.release(3, 9).unwrap();
    let times = bus.time_in_queues();
    assert_eq!((times.count(), times.total), (3, Duration::from_millis(1_500)));
    assert_eq!(times.at_most(500), Some(Duration::from_secs(1)));
    let (traffic, more) = bus.endpoint_traffic(Some(sender.id()), 5);
    assert!(!more);
    assert_eq!((traffic[0].received, traffic[0].queued), ((3, 9), (0, 0)));
    drop((reader, receiver));
    assert_eq!(bus.time_in_queues(), times);
    let (traffic, _) = bus.endpoint_traffic(None, 5);
    assert_eq!((traffic[0].sent_messages, traffic[0].sent.bytes), (3, 9));
}

#[test]
fn who_makes_whom_wait_and_for_how_long_is_told() {
    let limits = Limits { queue_messages: 1, ..Limits::default() };
    let bus = Bus::new(limits, 7).unwrap();
    let credentials = |pid| Credentials { uid: 1, pid };
    let sender = bus.open_endpoint(credentials(1)).unwrap();
    let slow = bus.open_endpoint(credentials(2)).unwrap();
    let group = slow.join(&"g".parse().unwrap(), JoinOptions::create()).unwrap().group;
    let (mut lane, mut reader) = (sender.lane().unwrap(), slow.receiver().unwrap());
    bus.tick(Duration::from_secs(1));
    lane.try_send(Destination::Group(group), "one").unwrap();
    let waker = std::task::Waker::noop().clone();
    let _ = lane.submit(Destination::Group(group), "more", waker).unwrap();
    bus.tick(Duration::from_millis(1_700));
    let waits = bus.waiting_sends(None, 10);
    assert_eq!(waits.len(), 1, "{waits:?}");
    let wait = &waits[0];
    assert_eq!((wait.sender, wait.credentials), (sender.id(), credentials(1)));
    assert_eq!(wait.at, [(slow.id(), credentials(2))]);
    assert_eq!((wait.waited, wait.stood), (Duration::from_millis(700), Duration::from_millis(700)));
    assert_eq!((wait.bytes, wait.group.as_ref().map(|g| g.as_str())), (4, Some("g")));
    assert_eq!(bus.waiting_sends(Some(wait.ticket), 10), []);
    reader.try_receive().unwrap();
    assert!(matches!(lane.poll_outcome(), Some(Ok(_))));
    let (traffic, _) = bus.endpoint_traffic(None, 10);
    let of = |id: EndpointId| traffic.iter().find(|traffic| traffic.id == id).unwrap();
    let blocked = of(slow.id());
    assert_eq!((blocked.blocked, blocked.blocked_time), (1, Duration::from_millis(700)));
    let waited = &of(sender.id()).sent;
    assert_eq!((waited.waits, waited.waited, waited.bytes), (1, Duration::from_millis(700), 7));
}
