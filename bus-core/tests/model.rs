//! Random operations on a small bus, against a model that is simple enough to be seen to be right:
//! a list of queues, and a list of sends that wait.
//!
//! The model knows what must be true, and not how the bus decides who is next: which waiting sends
//! a step has committed is taken from the bus, in the order of its sequences, and each of them must
//! have been possible. After each step nothing that waits may be possible.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use bus_core::{
    Attributes, BatchDraft, Bus, Credentials, Delivery, Destination, Draft, Endpoint, EndpointId,
    Filter, Gap, GroupId, GroupName, JoinOptions, Lane, Limits, MemberFlags, NAMED_RECIPIENTS,
    Receipt, Receiver, SendError, Sequence, Submitted, Watch, WatchError,
};
use proptest::prelude::*;

const ENDPOINTS: usize = 5;
const GROUPS: usize = 3;
const LANES: usize = 2;
/// With users beside each other queues are larger, so that there are halves to speak of.
const QUEUE_MESSAGES: [u32; 2] = [2, 6];
const QUEUE_BYTES: [u64; 2] = [12, 40];
/// More than a queue ever holds.
const ALL: usize = 8;

#[derive(Clone, Copy, Debug)]
enum Target {
    Group(usize),
    Endpoint(usize),
}

#[derive(Clone, Debug)]
enum Op {
    Submit(usize, usize, Target, Shape),
    TrySend(usize, usize, Target, Shape),
    /// Sends two or three to a group at once.
    Batch(usize, usize, usize, [Shape; 3], usize),
    Cancel(usize, usize),
    Join(usize, usize, u8, Wanted),
    SetFilter(usize, usize, Wanted),
    Leave(usize, usize),
    /// Takes so many off the ring, and leaves their places taken.
    Drain(usize, usize),
    /// Frees the places of so many.
    Release(usize, usize),
    Watch(usize, Target, Shape),
    Unwatch(usize),
    Shutdown(usize),
    /// Closes an endpoint and opens another one in its stead.
    Replace(usize),
    Tick(u64),
}

/// What a message is like: its length beyond 4 bytes, and its key.
#[derive(Clone, Copy, Debug)]
struct Shape {
    pad: usize,
    key: Option<&'static str>,
}

impl Shape {
    fn attributes(self) -> Attributes {
        let key = self.key.map(|key| Attributes::builder().key(key).build().unwrap());
        key.unwrap_or_default()
    }

    fn bytes(self) -> u64 {
        (4 + self.pad + self.attributes().encoded().len()) as u64
    }
}

/// What a member's filter accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// There is none.
    All,
    Key(&'static str),
    AnyKey,
}

impl Wanted {
    fn filter(self) -> Option<Filter> {
        match self {
            Self::All => None,
            Self::Key(key) => Some(format!("key={key}").parse().unwrap()),
            Self::AnyKey => Some("key^=".parse().unwrap()),
        }
    }

    fn accepts(self, key: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::Key(wanted) => key == Some(wanted),
            Self::AnyKey => key.is_some(),
        }
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    let key = prop::sample::select(vec![None, None, Some("a"), Some("b")]);
    (0..6_usize, key).prop_map(|(pad, key)| Shape { pad, key })
}

fn plain() -> impl Strategy<Value = Shape> {
    (0..3_usize).prop_map(|pad| Shape { pad, key: None })
}

fn wanted() -> impl Strategy<Value = Wanted> {
    use Wanted::{All, AnyKey, Key};
    prop::sample::select(vec![All, All, All, Key("a"), Key("b"), Key("nothing"), AnyKey])
}

fn op() -> impl Strategy<Value = Op> {
    let target = prop_oneof![
        3 => (0..GROUPS).prop_map(Target::Group),
        1 => (0..ENDPOINTS).prop_map(Target::Endpoint),
    ];
    let (e, l, g) = (0..ENDPOINTS, 0..LANES, 0..GROUPS);
    prop_oneof![
        12 => (e.clone(), l.clone(), target.clone(), shape())
            .prop_map(|(e, l, t, shape)| Op::Submit(e, l, t, shape)),
        4 => (e.clone(), l.clone(), target.clone(), shape())
            .prop_map(|(e, l, t, shape)| Op::TrySend(e, l, t, shape)),
        4 => (e.clone(), l.clone(), g.clone(), (plain(), plain(), shape()), 2..4_usize)
            .prop_map(|(e, l, g, (one, two, three), n)| Op::Batch(e, l, g, [one, two, three], n)),
        2 => (e.clone(), l).prop_map(|(e, l)| Op::Cancel(e, l)),
        6 => (e.clone(), g.clone(), 0..4_u8, wanted())
            .prop_map(|(e, g, f, wanted)| Op::Join(e, g, f, wanted)),
        3 => (e.clone(), g.clone(), wanted()).prop_map(|(e, g, w)| Op::SetFilter(e, g, w)),
        2 => (e.clone(), g).prop_map(|(e, g)| Op::Leave(e, g)),
        9 => (e.clone(), 1..4_usize).prop_map(|(e, n)| Op::Drain(e, n)),
        9 => (e.clone(), 1..4_usize).prop_map(|(e, n)| Op::Release(e, n)),
        2 => (e.clone(), target, shape()).prop_map(|(e, t, shape)| Op::Watch(e, t, shape)),
        1 => e.clone().prop_map(Op::Unwatch),
        1 => e.clone().prop_map(Op::Shutdown),
        1 => e.prop_map(Op::Replace),
        2 => (1..300_u64).prop_map(Op::Tick),
    ]
}

/// What a queue holds in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    number: u32,
    bytes: u64,
    user: u32,
    sequence: Sequence,
    missed: Option<Gap>,
}

/// A send that waits.
#[derive(Clone, Debug)]
struct Waiting {
    number: u32,
    user: u32,
    shape: Shape,
    to: Destination,
}

/// An endpoint: the real one, and what the model says of it.
struct Party {
    user: u32,
    capacity: (u64, u64),
    endpoint: Endpoint,
    reader: Receiver,
    lanes: Vec<Lane>,
    waits: Vec<Option<(Waiting, Arc<Wakes>)>>,
    watch: Option<(Watch, Destination, Shape, Arc<Wakes>)>,

    queued: VecDeque<Entry>,
    /// Bytes and users of messages that were drained and whose places are still taken.
    drained: VecDeque<(u64, u32)>,
    /// Messages and bytes freed so far, and from when on the reserve place is free.
    freed: (u64, u64),
    reserve_free_at: (u64, u64),
    /// The same of each other user's share.
    share_freed: BTreeMap<u32, (u64, u64)>,
    share_free_at: BTreeMap<u32, (u64, u64)>,
    gaps: BTreeMap<GroupId, Gap>,
    last_pushed: Sequence,
    taken: Sequence,
    serial: u64,
    shut: bool,
}

#[derive(Debug)]
struct Group {
    id: GroupId,
    creator: Option<EndpointId>,
    members: BTreeMap<EndpointId, (MemberFlags, Wanted)>,
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wakes {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Party {
    fn open(bus: &Bus, user: u32) -> Self {
        let endpoint = bus.open_endpoint(Credentials { uid: user, pid: 1 }).unwrap();
        let capacity = (bus.limits().queue_messages.into(), bus.limits().queue_bytes);
        let zero = Sequence::from_raw(0);
        Self {
            user,
            capacity,
            reader: endpoint.receiver().unwrap(),
            lanes: (0..LANES).map(|_| endpoint.lane().unwrap()).collect(),
            waits: vec![None; LANES],
            watch: None,
            queued: VecDeque::new(),
            drained: VecDeque::new(),
            freed: (0, 0),
            reserve_free_at: (0, 0),
            share_freed: BTreeMap::new(),
            share_free_at: BTreeMap::new(),
            gaps: BTreeMap::new(),
            last_pushed: zero,
            taken: zero,
            serial: 0,
            shut: false,
            endpoint,
        }
    }

    fn who(&self) -> (EndpointId, u32) {
        (self.id(), self.user)
    }

    fn id(&self) -> EndpointId {
        self.endpoint.id()
    }

    fn depth(&self) -> (u64, u64) {
        self.depth_of(|_| true)
    }

    /// Messages and bytes that take places, of those users.
    fn depth_of(&self, who: impl Fn(u32) -> bool) -> (u64, u64) {
        let queued = self.queued.iter().map(|entry| (entry.bytes, entry.user));
        let taken = queued.chain(self.drained.iter().copied()).filter(|(_, user)| who(*user));
        taken.fold((0, 0), |(messages, all), (bytes, _)| (messages + 1, all + bytes))
    }

    fn has_room(&self) -> bool {
        let (messages, bytes) = self.depth();
        messages < self.capacity.0 && bytes < self.capacity.1
    }

    /// Another user holds less than half of what all others leave, or nothing (G10).
    fn has_share(&self, user: u32) -> bool {
        let (held, others) = (self.depth_of(|u| u == user), self.depth_of(|u| u != user));
        let half = |most: u64, others: u64| (most.saturating_sub(others) / 2).max(1);
        let (messages, bytes) = (half(self.capacity.0, others.0), half(self.capacity.1, others.1));
        user == self.user || held.0 < messages && held.1 < bytes
    }

    fn has_room_for(&self, user: u32) -> bool {
        self.has_room() && self.has_share(user)
    }

    fn push(&mut self, entry: Entry) {
        assert!(entry.sequence > self.last_pushed, "sequences rise");
        self.last_pushed = entry.sequence;
        if !self.has_share(entry.user) {
            let freed = self.share_freed.get(&entry.user).copied().unwrap_or_default();
            let free_at = self.share_free_at.entry(entry.user).or_default();
            assert!(
                freed.0 >= free_at.0 && freed.1 >= free_at.1,
                "beyond the share and its reserve place"
            );
            *free_at = (freed.0 + 1, freed.1 + entry.bytes);
        }
        if !self.has_room() {
            assert!(
                self.freed.0 >= self.reserve_free_at.0 && self.freed.1 >= self.reserve_free_at.1,
                "beyond the capacity and the reserve place"
            );
            self.reserve_free_at = (self.freed.0 + 1, self.freed.1 + entry.bytes);
        }
        self.queued.push_back(entry);
        assert!(self.depth().0 <= self.capacity.0 + 1);
    }

    fn lose(&mut self, group: GroupId, sequence: Sequence) {
        let gap =
            self.gaps.entry(group).or_insert(Gap { count: 0, first: sequence, last: sequence });
        gap.count += 1;
        gap.last = sequence;
    }
}

struct World {
    users: u32,
    bus: Bus,
    parties: Vec<Party>,
    groups: Vec<Option<Group>>,
    /// A destination that may be gone: what the name meant last.
    last_ids: Vec<Option<GroupId>>,
    numbers: u32,
    now: Duration,
    messages: u64,
    deliveries: u64,
    dropped: u64,
}

fn name(group: usize) -> GroupName {
    format!("g{group}").parse().unwrap()
}

fn payload(number: u32, pad: usize) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(4 + pad, 0);
    payload
}

/// Why the model refuses a send, or whom it lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Gone(SendError),
    /// These recipients have no room. None: it can be sent.
    Lacks(Vec<EndpointId>),
}

impl World {
    fn new(seed: u64, users: u32) -> Self {
        let size = usize::from(users > 1);
        let limits = Limits {
            queue_messages: QUEUE_MESSAGES[size],
            queue_bytes: QUEUE_BYTES[size],
            // Nobody is evicted in the time of a run.
            stall: Duration::from_secs(600),
            ..Limits::default()
        };
        let bus = Bus::new(limits, seed).unwrap();
        let now = Duration::from_secs(1);
        bus.tick(now);
        Self {
            users,
            parties: (0..).take(ENDPOINTS).map(|at| Party::open(&bus, at % users)).collect(),
            groups: (0..GROUPS).map(|_| None).collect(),
            last_ids: vec![None; GROUPS],
            numbers: 0,
            now,
            messages: 0,
            deliveries: 0,
            dropped: 0,
            bus,
        }
    }

    fn party(&mut self, id: EndpointId) -> Option<&mut Party> {
        self.parties.iter_mut().find(|party| party.id() == id)
    }

    fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.iter().flatten().find(|group| group.id == id)
    }

    /// Where a target is; none if the group has never been.
    fn destination(&self, target: Target) -> Option<Destination> {
        match target {
            Target::Group(group) => self.last_ids[group].map(Destination::Group),
            Target::Endpoint(at) => Some(Destination::Endpoint(self.parties[at].id())),
        }
    }

    /// All recipients of a send, with whether they drop when full.
    fn recipients(
        &self,
        sender: EndpointId,
        to: Destination,
        shape: Shape,
    ) -> Vec<(EndpointId, bool)> {
        match to {
            Destination::Endpoint(id) => vec![(id, false)],
            Destination::Name(_) => unreachable!("names have a model of their own"),
            Destination::Group(id) => {
                let members = self.group(id).map(|group| &group.members);
                let heard = |(id, (flags, wanted)): (&EndpointId, &(MemberFlags, Wanted))| {
                    let heard = *id != sender || flags.contains(MemberFlags::LOOPBACK);
                    (heard && wanted.accepts(shape.key))
                        .then_some((*id, flags.contains(MemberFlags::DROP_WHEN_FULL)))
                };
                members.into_iter().flatten().filter_map(heard).collect()
            }
            other => panic!("nothing is sent to {other:?}"),
        }
    }

    fn judge(&self, (sender, user): (EndpointId, u32), to: Destination, shape: Shape) -> Verdict {
        match to {
            Destination::Group(id) if self.group(id).is_none() => {
                return Verdict::Gone(SendError::NoSuchGroup(id));
            }
            Destination::Endpoint(id) => match self.parties.iter().find(|party| party.id() == id) {
                None => return Verdict::Gone(SendError::NoSuchEndpoint(id)),
                Some(party) if party.shut => {
                    return Verdict::Gone(SendError::ReceiveShut(id));
                }
                Some(_) => {}
            },
            Destination::Group(_) => {}
            other => panic!("nothing is sent to {other:?}"),
        }
        let lacks = self.recipients(sender, to, shape).into_iter();
        let full = |id: &EndpointId| {
            let mut parties = self.parties.iter();
            !parties.any(|party| party.id() == *id && party.has_room_for(user))
        };
        let lacks = lacks.filter(|(_, drops)| !drops).map(|(id, _)| id);
        Verdict::Lacks(lacks.filter(full).collect())
    }

    /// Puts a committed message where it belongs, and checks its receipt.
    fn commit(&mut self, sender: usize, wait: &Waiting, receipt: &Receipt) {
        let sender_id = self.parties[sender].id();
        let (mut recipients, mut dropped) = (0, 0);
        for (id, drops) in self.recipients(sender_id, wait.to, wait.shape) {
            let party = self.party(id).expect("a recipient is open");
            if drops && !party.has_room_for(wait.user) {
                let Destination::Group(group) = wait.to else { panic!("only a membership drops") };
                party.lose(group, receipt.sequence);
                dropped += 1;
                continue;
            }
            let missed = match wait.to {
                Destination::Group(group) if drops => party.gaps.remove(&group),
                _ => None,
            };
            party.push(Entry {
                number: wait.number,
                bytes: wait.shape.bytes(),
                user: wait.user,
                sequence: receipt.sequence,
                missed,
            });
            recipients += 1;
        }
        let party = &mut self.parties[sender];
        party.serial += 1;
        assert_eq!(receipt.sender_serial, party.serial);
        assert_eq!(receipt.after, party.taken);
        assert_eq!((receipt.recipients, receipt.dropped), (recipients, dropped), "{wait:?}");
        self.messages += 1;
        self.deliveries += u64::from(recipients);
        self.dropped += u64::from(dropped);
    }

    fn send(&mut self, at: usize, lane: usize, target: Target, shape: Shape, waits: bool) {
        let Some(to) = self.destination(target) else {
            return;
        };
        self.numbers += 1;
        let id = self.parties[at].id();
        let user = self.parties[at].user;
        let wait = Waiting { number: self.numbers, user, shape, to };
        let verdict = self.judge((id, user), to, shape);
        let party = &mut self.parties[at];
        let busy = party.waits[lane].is_some();
        let wakes = Arc::new(Wakes::default());
        let attributes = shape.attributes();
        let draft = Draft { attributes, ..Draft::from(payload(wait.number, shape.pad)) };
        let sent = if waits {
            party.lanes[lane].submit(to, draft, Waker::from(Arc::clone(&wakes)))
        } else {
            party.lanes[lane].try_send(to, draft).map(Submitted::Committed)
        };
        match (busy, verdict) {
            (true, _) => assert_eq!(sent, Err(SendError::LaneBusy)),
            (false, Verdict::Gone(why)) => assert_eq!(sent, Err(why)),
            (false, Verdict::Lacks(full)) if full.is_empty() => {
                let Ok(Submitted::Committed(receipt)) = sent else {
                    panic!("there is room everywhere, and yet {sent:?}");
                };
                self.commit(at, &wait, &receipt);
            }
            (false, Verdict::Lacks(full)) if !waits => {
                let Err(SendError::WouldBlock { full: told }) = sent else {
                    panic!("{full:?} are full, and yet {sent:?}");
                };
                assert_eq!(told.count() as usize, full.len());
                assert_eq!(told.named(), &full[..full.len().min(NAMED_RECIPIENTS)]);
            }
            (false, Verdict::Lacks(full)) if full == [id] => {
                assert_eq!(sent, Err(SendError::OwnQueueFull));
            }
            (false, Verdict::Lacks(_)) => {
                assert_eq!(sent, Ok(Submitted::Waiting));
                party.waits[lane] = Some((wait, wakes));
            }
        }
    }

    /// A batch is sent only if each of its messages could be, one after the other, and always if nothing
    /// but room matters and there is room.
    fn send_batch(&mut self, at: usize, lane: usize, group: usize, shapes: &[Shape]) {
        let Some(id) = self.last_ids[group] else {
            return;
        };
        let (sender, user) = self.parties[at].who();
        let to = Destination::Group(id);
        let numbers = self.numbers + 1..;
        self.numbers += u32::try_from(shapes.len()).unwrap();
        let waits = shapes.iter().zip(numbers);
        let waits: Vec<Waiting> =
            waits.map(|(shape, number)| Waiting { number, user, shape: *shape, to }).collect();
        let mut batch = BatchDraft::default();
        for wait in &waits {
            batch.push(&wait.shape.attributes(), &payload(wait.number, wait.shape.pad));
        }
        let busy = self.parties[at].waits[lane].is_some();
        let nobody_waits = self.parties.iter().all(|party| party.waits.iter().all(Option::is_none));
        let plain = self
            .group(id)
            .is_some_and(|group| group.members.values().all(|(_, wanted)| *wanted == Wanted::All));
        let (count, bytes) =
            (shapes.len() as u64, shapes.iter().map(|shape| shape.bytes()).sum::<u64>());
        let fits = self.recipients(sender, to, shapes[0]).into_iter().all(|(id, drops)| {
            let party = self.parties.iter().find(|party| party.id() == id).unwrap();
            let depth = party.depth();
            !drops
                && party.user == user
                && depth.0 + count <= party.capacity.0
                && depth.1 + bytes <= party.capacity.1
        });
        let sent = self.parties[at].lanes[lane].try_send_batch(id, batch);
        if !busy && plain && fits && nobody_waits {
            assert!(sent.is_ok(), "nothing stands in the way, and yet {sent:?}");
        }
        let Ok(receipts) = sent else {
            return;
        };
        assert!(!busy && plain && fits);
        assert_eq!(receipts.len() as usize, waits.len());
        for (wait, number) in waits.iter().zip(0..) {
            assert_eq!(self.judge((sender, user), to, wait.shape), Verdict::Lacks(vec![]));
            self.commit(at, wait, &receipts.get(number).unwrap());
        }
        assert_eq!(receipts.get(receipts.len()), None);
    }

    fn join(&mut self, at: usize, group: usize, flags: u8, wanted: Wanted) {
        let flags = match flags {
            0 | 1 => MemberFlags::empty(),
            2 => MemberFlags::DROP_WHEN_FULL,
            _ => MemberFlags::LOOPBACK,
        };
        let party = &mut self.parties[at];
        let id = party.id();
        let options = JoinOptions { filter: wanted.filter(), ..JoinOptions::create().with(flags) };
        let joined = party.endpoint.join(&name(group), options);
        let member = self.groups[group].as_ref().is_some_and(|g| g.members.contains_key(&id));
        if party.shut || member {
            assert!(joined.is_err());
            return;
        }
        let joined = joined.unwrap();
        assert_eq!(joined.created, self.groups[group].is_none());
        assert!(joined.sequence > party.last_pushed);
        let known = self.groups[group].get_or_insert_with(|| Group {
            id: joined.group,
            creator: Some(id),
            members: BTreeMap::new(),
        });
        assert_eq!(known.id, joined.group);
        known.members.insert(id, (flags, wanted));
        assert_eq!(joined.members as usize, known.members.len());
        self.last_ids[group] = Some(joined.group);
    }

    fn set_filter(&mut self, at: usize, group: usize, wanted: Wanted) {
        let Some(group_id) = self.last_ids[group] else {
            return;
        };
        let party = &self.parties[at];
        let id = party.id();
        let set = party.endpoint.set_filter(group_id, wanted.filter());
        let member = self.groups[group].as_mut().and_then(|g| g.members.get_mut(&id));
        match (set, member) {
            (Ok(set), Some(member)) => {
                assert!(set > party.last_pushed);
                member.1 = wanted;
            }
            (Err(_), None) => {}
            (set, member) => panic!("{set:?} of {member:?}"),
        }
    }

    fn leave(&mut self, at: usize, group: usize) {
        let Some(group_id) = self.last_ids[group] else {
            return;
        };
        let party = &self.parties[at];
        let id = party.id();
        let left = party.endpoint.leave(group_id);
        let removed = self.groups[group].as_mut().and_then(|g| g.members.remove(&id));
        assert_eq!(left.is_ok(), removed.is_some());
        if let Ok(left) = left {
            assert!(left > party.last_pushed);
        }
        self.end_groups();
    }

    /// Groups end that have no member and no creator.
    fn end_groups(&mut self) {
        for group in &mut self.groups {
            let over = |g: &Group| g.members.is_empty() && g.creator.is_none();
            if group.as_ref().is_some_and(over) {
                *group = None;
            }
        }
    }

    fn leave_all(&mut self, id: EndpointId) {
        for group in self.groups.iter_mut().flatten() {
            group.members.remove(&id);
        }
    }

    fn drain(&mut self, at: usize, most: usize) {
        let party = &mut self.parties[at];
        for _ in 0..most {
            match (party.reader.drain(), party.queued.pop_front()) {
                (Some(Delivery::Message { message, missed }), Some(entry)) => {
                    assert_eq!(message.sequence(), entry.sequence);
                    assert_eq!(message.payload()[..4], entry.number.to_le_bytes());
                    assert_eq!(missed, entry.missed);
                    party.drained.push_back((entry.bytes, entry.user));
                    party.taken = entry.sequence;
                }
                (Some(Delivery::Batch(batch)), Some(first)) => {
                    let mut entry = Some(first);
                    for message in batch.messages() {
                        let entry = entry.take().or_else(|| party.queued.pop_front()).unwrap();
                        assert_eq!(message.sequence(), entry.sequence);
                        assert_eq!(message.payload()[..4], entry.number.to_le_bytes());
                        assert_eq!(message.charged_bytes(), entry.bytes);
                        party.drained.push_back((entry.bytes, entry.user));
                        party.taken = entry.sequence;
                    }
                    assert_eq!(batch.last_sequence(), party.taken);
                }
                (Some(Delivery::Gap { group, gap }), None) => {
                    assert!(party.drained.is_empty(), "not before all is taken");
                    assert_eq!(party.gaps.remove(&group), Some(gap));
                }
                (None, None) => {
                    assert!(!party.drained.is_empty() || party.gaps.is_empty());
                    return;
                }
                (real, model) => panic!("{real:?} where the model has {model:?}"),
            }
        }
    }

    fn release(&mut self, at: usize, most: usize) {
        let party = &mut self.parties[at];
        let messages = most.min(party.drained.len());
        let released: Vec<(u64, u32)> = party.drained.drain(..messages).collect();
        let bytes: u64 = released.iter().map(|(bytes, _)| bytes).sum();
        for (bytes, user) in released {
            let freed = party.share_freed.entry(user).or_default();
            *freed = (freed.0 + 1, freed.1 + bytes);
        }
        party.freed.0 += messages as u64;
        party.freed.1 += bytes;
        party.reader.release(messages as u64, bytes).unwrap();
        let held = party.drained.len() as u64;
        assert!(party.reader.release(held + 1, 0).is_err());
    }

    fn watch(&mut self, at: usize, target: Target, shape: Shape) {
        let Some(to) = self.destination(target) else {
            return;
        };
        let verdict = self.judge(self.parties[at].who(), to, shape);
        let party = &mut self.parties[at];
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let watch = party.endpoint.watch_writable_for(to, shape.attributes(), waker);
        match verdict {
            Verdict::Gone(why) => assert_eq!(watch.unwrap_err(), WatchError::Destination(why)),
            Verdict::Lacks(full) => {
                let watch = watch.unwrap();
                assert_eq!(watch.is_none(), full.is_empty(), "{full:?}");
                party.watch = watch.map(|watch| (watch, to, shape, wakes)).or(party.watch.take());
            }
        }
    }

    fn replace(&mut self, at: usize) {
        let opened = Party::open(&self.bus, self.parties[at].user);
        let Party { endpoint, mut lanes, waits, watch, .. } =
            std::mem::replace(&mut self.parties[at], opened);
        let id = endpoint.id();
        drop(endpoint);
        for (lane, wait) in lanes.iter_mut().zip(waits) {
            let Some((_, wakes)) = wait else { continue };
            assert_eq!(lane.poll_outcome(), Some(Err(SendError::Closed)));
            assert_eq!(wakes.count(), 1);
        }
        if let Some((mut watch, ..)) = watch {
            // It may have been decided before.
            assert!(watch.outcome().is_none_or(|outcome| outcome.is_err()));
        }
        self.leave_all(id);
        for group in self.groups.iter_mut().flatten() {
            group.creator = group.creator.filter(|creator| *creator != id);
        }
        self.end_groups();
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Submit(at, lane, to, shape) => self.send(at, lane, to, shape, true),
            Op::TrySend(at, lane, to, shape) => self.send(at, lane, to, shape, false),
            Op::Batch(at, lane, group, shapes, n) => {
                self.send_batch(at, lane, group, &shapes[..n]);
            }
            Op::Cancel(at, lane) => {
                let party = &mut self.parties[at];
                let cancelled = party.lanes[lane].cancel();
                // What had been decided before this step is not there any more.
                let expected = party.waits[lane].take().map(|_| Err(SendError::Cancelled));
                assert_eq!(cancelled, expected);
            }
            Op::Join(at, group, flags, wanted) => self.join(at, group, flags, wanted),
            Op::SetFilter(at, group, wanted) => self.set_filter(at, group, wanted),
            Op::Leave(at, group) => self.leave(at, group),
            Op::Drain(at, most) => self.drain(at, most),
            Op::Release(at, most) => self.release(at, most),
            Op::Watch(at, to, shape) => self.watch(at, to, shape),
            Op::Unwatch(at) => self.parties[at].watch = None,
            Op::Shutdown(at) => {
                let party = &mut self.parties[at];
                assert!(party.endpoint.shutdown_receive() >= party.last_pushed);
                party.shut = true;
                let id = party.id();
                self.leave_all(id);
                self.end_groups();
            }
            Op::Replace(at) => self.replace(at),
            Op::Tick(millis) => {
                self.now += Duration::from_millis(millis);
                assert_eq!(self.bus.tick(self.now), []);
            }
        }
    }

    /// Takes in what the step has decided for those who wait.
    fn settle(&mut self) {
        let mut committed: Vec<(Receipt, usize, Waiting)> = Vec::new();
        let mut refused: Vec<(SendError, (EndpointId, u32), Waiting)> = Vec::new();
        for (at, party) in self.parties.iter_mut().enumerate() {
            let id = party.who();
            for (lane, wait) in party.lanes.iter_mut().zip(&mut party.waits) {
                let Some((_, wakes)) = wait else { continue };
                let outcome = lane.poll_outcome();
                assert_eq!(wakes.count(), usize::from(outcome.is_some()));
                match outcome {
                    None => {}
                    Some(Ok(receipt)) => {
                        let (wait, _) = wait.take().expect("it waited");
                        committed.push((receipt, at, wait));
                    }
                    Some(Err(error)) => {
                        let (wait, _) = wait.take().expect("it waited");
                        refused.push((error, id, wait));
                    }
                }
            }
        }
        committed.sort_unstable_by_key(|(receipt, _, _)| receipt.sequence);
        for (receipt, at, wait) in &committed {
            self.commit(*at, wait, receipt);
        }
        for (error, sender, wait) in refused {
            match self.judge(sender, wait.to, wait.shape) {
                Verdict::Gone(why) => assert_eq!(error, why),
                Verdict::Lacks(_) => {
                    assert_eq!(error, SendError::OwnQueueFull, "its destination is there");
                    let party = self.party(sender.0).unwrap();
                    assert!(!party.has_room());
                }
            }
        }
        self.first_come_first_served(&committed);
    }

    /// Of the sends of one user to one endpoint none has passed an older one.
    fn first_come_first_served(&self, committed: &[(Receipt, usize, Waiting)]) {
        let waiting = self.parties.iter().flat_map(|party| &party.waits).flatten();
        for (wait, _) in waiting {
            let Destination::Endpoint(_) = wait.to else {
                continue;
            };
            let younger = |other: &Waiting| {
                (other.to, other.user) == (wait.to, wait.user) && other.number > wait.number
            };
            let passed = committed.iter().find(|(_, _, other)| younger(other));
            assert!(passed.is_none(), "{wait:?} was passed by {passed:?}");
        }
    }

    /// What is true whenever nothing is going on.
    fn check(&mut self) {
        for party in &self.parties {
            for (wait, _) in party.waits.iter().flatten() {
                match self.judge(party.who(), wait.to, wait.shape) {
                    Verdict::Lacks(full) if !full.is_empty() && full != [party.id()] => {}
                    other => panic!("{wait:?} waits, and yet {other:?}"),
                }
            }
        }
        for at in 0..self.parties.len() {
            let Some((mut watch, to, shape, wakes)) = self.parties[at].watch.take() else {
                continue;
            };
            let outcome = watch.outcome();
            assert_eq!(wakes.count(), usize::from(outcome.is_some()));
            match (outcome, self.judge(self.parties[at].who(), to, shape)) {
                (None, Verdict::Lacks(full)) if !full.is_empty() => {
                    self.parties[at].watch = Some((watch, to, shape, wakes));
                }
                (None, other) => panic!("nobody was woken for {to:?}, and yet {other:?}"),
                // Somebody else may have been faster within the step.
                (Some(Ok(())), Verdict::Lacks(_)) => {}
                (Some(Err(error)), Verdict::Gone(why)) => assert_eq!(error, why),
                (outcome, verdict) => panic!("{outcome:?}, and yet {verdict:?}"),
            }
        }
        let waits = self.parties.iter().flat_map(|party| &party.waits).flatten();
        let waiting = waits.count();
        let stats = self.bus.stats();
        assert_eq!(stats.waiting_sends, waiting);
        assert_eq!(stats.endpoints, ENDPOINTS);
        assert_eq!(stats.groups, self.groups.iter().flatten().count());
        assert_eq!(
            (stats.messages, stats.deliveries, stats.dropped),
            (self.messages, self.deliveries, self.dropped)
        );
        let mut blocks = BTreeMap::new();
        for group in self.groups.iter().flatten() {
            let view = self.bus.members(group.id).unwrap();
            assert_eq!(view.len(), group.members.len());
            for member in view {
                assert_eq!(group.members[&member.endpoint].0, member.flags);
                let mut parties = self.parties.iter();
                let party = parties.find(|party| party.id() == member.endpoint).unwrap();
                let depth = (member.queued_messages, member.queued_bytes);
                assert_eq!(depth, party.depth());
                assert_eq!(member.full_since.is_none(), party.has_room());
                let full = (0..self.users).any(|user| !party.has_room_for(user));
                assert!(member.blocks == 0 || full);
                blocks.insert(member.endpoint, member.blocks);
            }
        }
        assert!(blocks.values().sum::<u32>() as usize <= waiting);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_operations_agree_with_the_model(
        seed in any::<u64>(),
        users in 1..4_u32,
        ops in prop::collection::vec(op(), 1..160),
    ) {
        let mut world = World::new(seed, users);
        for op in &ops {
            world.apply(op);
            world.settle();
            world.check();
        }
        // Everybody reads all: nothing waits any more.
        for _ in 0..4 * ENDPOINTS * (LANES + ALL) {
            for at in 0..ENDPOINTS {
                world.drain(at, ALL);
                world.release(at, ALL);
                world.settle();
                world.check();
            }
        }
        prop_assert_eq!(world.bus.stats().waiting_sends, 0);
    }
}
