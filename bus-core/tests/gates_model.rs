//! Random operations on gated groups, on a group that retains, and a monitor that sees it all, against
//! a model: who is connected to whom, who is a member and how, a list for each queue. What waits here
//! waits alone, until those who hold it up are stalled; waiting sends have a model of their own
//! (`model.rs`).
//!
//! The model says what each endpoint must find in its queue, in which order, and what it is told once
//! that is empty; and what the monitor sees of each step.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::Waker;
use std::time::Duration;

use bus_core::{
    Attributes, Bus, Candidacy, Credentials, Delivery, Destination, Draft, Endpoint, EndpointId,
    EvictionCause, Filter, GateError, GroupId, GroupName, JoinError, JoinOptions, Lane, Limits,
    MemberFlags, Monitored, PeerChange, ReceiveError, Receiver, Retain, SendError, Sequence,
    Submitted, Terms,
};
use proptest::prelude::*;

const GUESTS: usize = 3;
/// Gated groups of one owner.
const GATES: usize = 2;
const QUEUE: usize = 5;
const SHARE: usize = 2;

#[derive(Clone, Debug)]
enum Op {
    Connect(usize, usize, u8),
    Withdraw(usize, usize),
    Admit(usize, usize, Given),
    Refuse(usize, usize),
    Expel(usize, usize),
    SetTerms(usize, usize, Given),
    SetFilter(usize, usize, Wanted),
    Leave(usize, usize),
    Send(usize, usize, Key),
    /// The same until somebody is full; then one waits until all who hold it up are stalled.
    Stall(usize, usize, Key),
    ToOwner(usize),
    ToGuest(usize),
    /// From the owner's side, or from the guest's.
    ClosePeer(usize, bool),
    TakeOwner(usize),
    Take(usize, usize),
    ReplaceOwner,
    ReplaceGuest(usize),
    ShutOwner,
    ShutGuest(usize),
    Join(usize, bool),
    Quit(usize),
    Publish(usize, Key),
}

type Key = Option<&'static str>;

/// Terms, as the model keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Given {
    flags: u8,
    drop_at_peer: bool,
    filter: Wanted,
}

impl Given {
    fn flags(self) -> MemberFlags {
        MemberFlags::from_bits_truncate(self.flags)
    }

    fn terms(self) -> Terms {
        let mut terms = Terms::new(self.flags());
        terms.drop_at_peer = self.drop_at_peer;
        terms.filter = self.filter.filter();
        terms
    }
}

/// What a filter accepts; without a key everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted(Key);

impl Wanted {
    fn filter(self) -> Option<Filter> {
        self.0.map(|key| format!("key={key}").parse().unwrap())
    }

    fn accepts(self, key: Key) -> bool {
        self.0.is_none() || self.0 == key
    }
}

fn key() -> impl Strategy<Value = Key> {
    prop::sample::select(vec![None, Some("a"), Some("b")])
}

fn wanted() -> impl Strategy<Value = Wanted> {
    prop::sample::select(vec![None, None, None, Some("a")]).prop_map(Wanted)
}

fn given() -> impl Strategy<Value = Given> {
    (0..8_u8, any::<bool>(), wanted()).prop_map(|(flags, drop_at_peer, filter)| Given {
        flags,
        drop_at_peer,
        filter,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let (e, g) = (0..GUESTS, 0..2 * GATES);
    let both = (e.clone(), g.clone());
    prop_oneof![
        6 => (e.clone(), g.clone(), 0..8_u8).prop_map(|(e, g, f)| Op::Connect(e, g, f)),
        1 => both.clone().prop_map(|(e, g)| Op::Withdraw(e, g)),
        8 => (e.clone(), g.clone(), given()).prop_map(|(e, g, t)| Op::Admit(e, g, t)),
        1 => both.clone().prop_map(|(e, g)| Op::Refuse(e, g)),
        1 => both.clone().prop_map(|(e, g)| Op::Expel(e, g)),
        4 => (e.clone(), g.clone(), given()).prop_map(|(e, g, t)| Op::SetTerms(e, g, t)),
        2 => (e.clone(), g.clone(), wanted()).prop_map(|(e, g, w)| Op::SetFilter(e, g, w)),
        1 => both.clone().prop_map(|(e, g)| Op::Leave(e, g)),
        16 => (e.clone(), g.clone(), key()).prop_map(|(e, g, k)| Op::Send(e, g, k)),
        3 => (e.clone(), g, key()).prop_map(|(e, g, k)| Op::Stall(e, g, k)),
        4 => e.clone().prop_map(Op::ToOwner),
        2 => e.clone().prop_map(Op::ToGuest),
        1 => (e.clone(), any::<bool>()).prop_map(|(e, by)| Op::ClosePeer(e, by)),
        7 => (1..5_usize).prop_map(Op::TakeOwner),
        9 => (e.clone(), 1..5_usize).prop_map(|(e, n)| Op::Take(e, n)),
        1 => Just(Op::ReplaceOwner),
        1 => e.clone().prop_map(Op::ReplaceGuest),
        // Seldom: not much happens to who is shut.
        1 => (e.clone(), 0..16_u8).prop_map(|(e, rare)| match rare {
            0 => Op::ShutOwner,
            1 | 2 => Op::ShutGuest(e),
            _ => Op::TakeOwner(1),
        }),
        3 => (e.clone(), any::<bool>()).prop_map(|(e, state)| Op::Join(e, state)),
        2 => e.clone().prop_map(Op::Quit),
        5 => (e, key()).prop_map(|(e, k)| Op::Publish(e, k)),
    ]
}

/// What lies in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Message { number: u32, missed: u64 },
    FromPeer { peer: EndpointId, number: u32, missed: u64 },
    Candidate { group: GroupId, endpoint: EndpointId, wishes: MemberFlags },
    PutOut { group: GroupId },
    Retained { number: u32 },
    Current { group: GroupId, sequence: Sequence, messages: u32 },
}

impl Item {
    fn takes_a_place(&self) -> bool {
        !matches!(self, Self::PutOut { .. } | Self::Retained { .. } | Self::Current { .. })
    }
}

/// What is told once a queue is empty, in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Note {
    Gap(GroupId, u64),
    PeerGap(GroupId, EndpointId, u64),
    /// And where, if the model knows.
    Flags(GroupId, MemberFlags, Option<Sequence>),
    PeerClosed(EndpointId),
    PeerStalled(GroupId, EndpointId),
}

struct Party {
    endpoint: Endpoint,
    reader: Receiver,
    lane: Lane,
    queue: VecDeque<Item>,
    /// Messages of a group that were dropped, and those that a peer endpoint dropped.
    gaps: BTreeMap<GroupId, u64>,
    peer_gaps: BTreeMap<(GroupId, EndpointId), u64>,
    flags: BTreeMap<GroupId, (MemberFlags, Option<Sequence>)>,
    closed: Vec<EndpointId>,
    stalled: Vec<(GroupId, EndpointId)>,
    /// It receives nothing more.
    shut: bool,
    /// As a guest: the peer endpoint at the present owner, and the group for which it was made.
    peer: Option<(EndpointId, GroupId)>,
    requests: Vec<(GroupId, Candidacy)>,
    /// Gated groups that it is in, in the order of its admissions.
    joined: Vec<GroupId>,
    in_store: bool,
}

impl Party {
    /// An endpoint of a process of its own.
    fn open(bus: &Bus, pid: &mut u32) -> Self {
        *pid += 1;
        let endpoint = bus.open_endpoint(Credentials { uid: 1, pid: *pid }).unwrap();
        Self {
            reader: endpoint.receiver().unwrap(),
            lane: endpoint.lane().unwrap(),
            queue: VecDeque::new(),
            gaps: BTreeMap::new(),
            peer_gaps: BTreeMap::new(),
            flags: BTreeMap::new(),
            closed: Vec::new(),
            stalled: Vec::new(),
            shut: false,
            peer: None,
            requests: Vec::new(),
            joined: Vec::new(),
            in_store: false,
            endpoint,
        }
    }

    fn id(&self) -> EndpointId {
        self.endpoint.id()
    }

    fn has_room(&self) -> bool {
        self.queue.iter().filter(|item| item.takes_a_place()).count() < QUEUE
    }

    fn share_has_room(&self, peer: EndpointId) -> bool {
        let of_peer = |item: &&Item| matches!(item, Item::FromPeer { peer: p, .. } if *p == peer);
        self.queue.iter().filter(of_peer).count() < SHARE
    }

    fn notes(&self) -> Vec<Note> {
        let gaps = self.gaps.iter().map(|(group, count)| Note::Gap(*group, *count));
        let peers = self.peer_gaps.iter().map(|((g, p), count)| Note::PeerGap(*g, *p, *count));
        let flags = self.flags.iter().map(|(g, (flags, at))| Note::Flags(*g, *flags, *at));
        let closed = self.closed.iter().map(|peer| Note::PeerClosed(*peer));
        let stalled = self.stalled.iter().map(|(group, peer)| Note::PeerStalled(*group, *peer));
        gaps.chain(peers).chain(flags).chain(closed).chain(stalled).collect()
    }

    fn told(&mut self, note: &Note) {
        let known = |known: &Note| match (known, note) {
            (Note::Flags(group, flags, None), Note::Flags(of, told, _)) => {
                (group, flags) == (of, told)
            }
            (known, note) => known == note,
        };
        assert!(self.notes().iter().any(known), "{note:?} is not of {:?}", self.notes());
        match note {
            Note::Gap(group, _) => drop(self.gaps.remove(group)),
            Note::PeerGap(group, peer, _) => drop(self.peer_gaps.remove(&(*group, *peer))),
            Note::Flags(group, ..) => drop(self.flags.remove(group)),
            Note::PeerClosed(peer) => self.closed.retain(|closed| closed != peer),
            Note::PeerStalled(group, peer) => {
                let at = self.stalled.iter().position(|stalled| *stalled == (*group, *peer));
                self.stalled.remove(at.unwrap());
            }
        }
    }

    fn take(&mut self, most: usize) {
        for _ in 0..most {
            let taken = match self.reader.try_receive() {
                Ok(delivery) => delivery,
                Err(error) => {
                    assert_eq!(error == ReceiveError::Ended, self.shut);
                    assert_eq!((self.queue.front(), self.notes()), (None, Vec::new()));
                    return;
                }
            };
            match seen_in_queue(&taken) {
                Ok(item) => assert_eq!(Some(item), self.queue.pop_front()),
                Err(note) => {
                    assert!(self.queue.is_empty(), "{note:?} before {:?}", self.queue);
                    self.told(&note);
                }
            }
        }
    }

    fn leaves(&mut self, group: GroupId) {
        self.joined.retain(|joined| *joined != group);
        self.flags.remove(&group);
    }
}

fn number_of(payload: &[u8]) -> u32 {
    u32::from_le_bytes(payload[..4].try_into().unwrap())
}

/// A delivery as the model has it: in the queue, or beside it.
fn seen_in_queue(delivery: &Delivery) -> Result<Item, Note> {
    let count = |missed: &Option<bus_core::Gap>| missed.map_or(0, |gap| gap.count);
    Ok(match delivery {
        Delivery::Message { message, missed } => {
            Item::Message { number: number_of(message.payload()), missed: count(missed) }
        }
        Delivery::FromPeer { peer, message, missed } => Item::FromPeer {
            peer: *peer,
            number: number_of(message.payload()),
            missed: count(missed),
        },
        Delivery::Candidate(candidate) => Item::Candidate {
            group: candidate.group,
            endpoint: candidate.endpoint,
            wishes: candidate.wishes,
        },
        Delivery::Evicted(eviction) => {
            let cause = &eviction.cause;
            assert!(!matches!(cause, EvictionCause::PeerStalled), "told to the owner");
            Item::PutOut { group: eviction.group }
        }
        Delivery::Retained { message } => Item::Retained { number: number_of(message.payload()) },
        Delivery::Current { group, sequence, messages } => {
            Item::Current { group: *group, sequence: *sequence, messages: *messages }
        }
        Delivery::Gap { group, gap } => return Err(Note::Gap(*group, gap.count)),
        Delivery::PeerGap { group, peer, gap } => {
            return Err(Note::PeerGap(*group, *peer, gap.count));
        }
        Delivery::Flags { group, flags, sequence } => {
            return Err(Note::Flags(*group, *flags, Some(*sequence)));
        }
        Delivery::Peer { peer, change: PeerChange::Closed, .. } => {
            return Err(Note::PeerClosed(*peer));
        }
        Delivery::Peer { group, peer, change: PeerChange::Stalled, .. } => {
            return Err(Note::PeerStalled(*group, *peer));
        }
        other => panic!("{other:?}"),
    })
}

/// Whom a message is for.
#[derive(Default)]
struct Recipients {
    /// With room, and whether each would miss it without.
    takes: Vec<(usize, bool)>,
    drops: Vec<usize>,
    full: Vec<usize>,
    /// The peer endpoint, whether that has room, and whether it would miss it without.
    peer: Option<(EndpointId, bool, bool)>,
}

impl Recipients {
    /// Somebody makes it wait.
    fn is_full(&self) -> bool {
        !self.full.is_empty() || self.peer.is_some_and(|(_, room, dropping)| !room && !dropping)
    }
}

struct Gate {
    id: GroupId,
    name: GroupName,
    members: BTreeMap<EndpointId, (Given, Wanted)>,
    /// Its owner lives.
    owned: bool,
}

struct World {
    bus: Bus,
    owner: Party,
    guests: Vec<Party>,
    /// Those of the present owner last. Operations are on the last few.
    gates: Vec<Gate>,
    owners: u32,
    pids: u32,
    /// Seconds that the bus has been told of.
    now: u64,
    /// Who was evicted from where, and may not come back without `DROP_WHEN_FULL` for a while.
    evicted: BTreeSet<(EndpointId, GroupId)>,
    store: GroupId,
    per_key: bool,
    retained: Vec<(u32, Key)>,
    _keeper: Endpoint,
    monitor: Endpoint,
    watching: Receiver,
    /// What the monitor is to see of this step.
    seen: Vec<String>,
    numbers: u32,
}

const STORE: &str = "store";

impl World {
    fn new(seed: u64, per_key: bool) -> Self {
        let limits = Limits {
            queue_messages: u32::try_from(QUEUE).unwrap(),
            peer_messages: u32::try_from(SHARE).unwrap(),
            backlog: 1_000,
            memberships: 200,
            ..Limits::default()
        };
        let bus = Bus::new(limits, seed).unwrap();
        bus.tick(Duration::from_secs(1));
        let keeper = bus.open_endpoint(Credentials { uid: 1, pid: 2 }).unwrap();
        let retain = if per_key { Retain::keys(4) } else { Retain::last(2) };
        let (store, _) = keeper.create_retaining(&STORE.parse().unwrap(), retain).unwrap();
        let monitor = bus.open_endpoint(Credentials { uid: 1, pid: 3 }).unwrap();
        monitor.monitor(None).unwrap();
        let mut pids = 10;
        let mut world = Self {
            owner: Party::open(&bus, &mut pids),
            guests: (0..GUESTS).map(|_| Party::open(&bus, &mut pids)).collect(),
            gates: Vec::new(),
            owners: 0,
            pids,
            now: 1,
            evicted: BTreeSet::new(),
            store,
            per_key,
            retained: Vec::new(),
            _keeper: keeper,
            watching: monitor.receiver().unwrap(),
            monitor,
            seen: Vec::new(),
            numbers: 0,
            bus,
        };
        world.open_gates();
        world.check_monitor();
        world
    }

    fn open_gates(&mut self) {
        self.owners += 1;
        for number in 0..GATES {
            let name: GroupName = format!("owner{}.gate{number}", self.owners).parse().unwrap();
            let (id, _) = self.owner.endpoint.create_gated(&name, None).unwrap();
            self.seen.push(format!("Created {} {name}", self.owner.id()));
            self.gates.push(Gate { id, name, members: BTreeMap::new(), owned: true });
        }
    }

    /// A gate by its number: the present owner's come first.
    fn gate(&self, number: usize) -> Option<usize> {
        self.gates.len().checked_sub(number + 1)
    }

    fn draft(&mut self, key: Key) -> (u32, Draft) {
        self.numbers += 1;
        let attributes = key.map(|key| Attributes::builder().key(key).build().unwrap());
        let payload = self.numbers.to_le_bytes().to_vec();
        let draft = Draft { attributes: attributes.unwrap_or_default(), ..Draft::from(payload) };
        (self.numbers, draft)
    }

    fn sends_to_peer(given: &Given, owned: bool) -> bool {
        owned && given.flags().contains(MemberFlags::SEND_TO_PEER)
    }

    fn connect(&mut self, at: usize, gate: usize, wishes: u8) {
        let Some(gate) = self.gate(gate) else { return };
        let Gate { id, name, owned, members } = &self.gates[gate];
        let (id, owned) = (*id, *owned);
        let guest = &mut self.guests[at];
        let wishes = MemberFlags::from_bits_truncate(wishes);
        let asked = guest.endpoint.connect(name, wishes);
        if guest.shut {
            assert!(matches!(asked, Err(JoinError::ReceiveShut(_))), "{asked:?}");
        } else if !owned && members.is_empty() {
            assert!(matches!(asked, Err(JoinError::NoSuchGroup(_))), "{asked:?}");
        } else if guest.joined.contains(&id) {
            assert!(matches!(asked, Err(JoinError::AlreadyMember(..))), "{asked:?}");
        } else if !owned || self.owner.shut {
            assert!(matches!(asked, Err(JoinError::OwnerGone(_))), "{asked:?}");
        } else if guest.requests.iter().any(|(group, _)| *group == id) {
            assert!(matches!(asked, Err(JoinError::AlreadyCandidate(..))), "{asked:?}");
        } else if !self.owner.has_room() {
            assert!(matches!(asked, Err(JoinError::OwnerBusy(_))), "{asked:?}");
            self.end_if_idle(at);
        } else {
            let asked = asked.unwrap();
            assert!(guest.peer.is_none_or(|(peer, _)| peer == asked.peer()));
            guest.peer.get_or_insert((asked.peer(), id));
            let endpoint = guest.id();
            self.owner.queue.push_back(Item::Candidate { group: id, endpoint, wishes });
            self.seen.push(format!("Asked {endpoint} {name}"));
            guest.requests.push((id, asked));
        }
    }

    /// The peer endpoint of a guest that waits for nothing and is in no group of the owner's goes.
    fn end_if_idle(&mut self, at: usize) -> bool {
        let guest = &mut self.guests[at];
        let owned = |id: &GroupId| self.gates.iter().any(|gate| gate.id == *id && gate.owned);
        if !guest.requests.is_empty() || guest.joined.iter().any(owned) {
            return false;
        }
        guest.peer.take().is_some()
    }

    fn request(&mut self, at: usize, gate: usize) -> Option<Candidacy> {
        let id = self.gates[gate].id;
        let requests = &mut self.guests[at].requests;
        let found = requests.iter().position(|(group, _)| *group == id)?;
        Some(requests.remove(found).1)
    }

    fn withdraw(&mut self, at: usize, gate: usize) {
        let Some(gate) = self.gate(gate) else { return };
        let peer = self.guests[at].peer;
        let Some(request) = self.request(at, gate) else { return };
        assert!(matches!(request.withdraw(), Err(JoinError::Withdrawn(_))));
        let (id, name) = (self.guests[at].id(), &self.gates[gate].name);
        self.seen.push(format!("Withdrawn {id} {name}"));
        if self.end_if_idle(at) {
            self.owner.closed.push(peer.unwrap().0);
        }
    }

    fn admit(&mut self, at: usize, gate: usize, given: Given) {
        let Some(gate) = self.gate(gate) else { return };
        let (id, guest) = (self.gates[gate].id, self.guests[at].id());
        let admitted = self.owner.endpoint.admit(id, guest, given.terms());
        if !self.gates[gate].owned {
            return assert!(matches!(admitted, Err(GateError::NotTheOwner(..))), "{admitted:?}");
        }
        if let Err(GateError::Join(JoinError::BackOff(..))) = admitted {
            return assert!(self.is_held_off(at, gate, given) && self.asks(at, gate));
        }
        let Some(mut request) = self.request(at, gate) else {
            return assert!(matches!(admitted, Err(GateError::NoCandidate(..))), "{admitted:?}");
        };
        let admitted = admitted.unwrap();
        assert_eq!(request.poll_outcome(), Some(Ok(admitted)));
        let Gate { name, members, .. } = &mut self.gates[gate];
        members.insert(guest, (given, Wanted(None)));
        assert_eq!(admitted.members as usize, members.len());
        self.guests[at].joined.push(id);
        self.seen.push(format!("Joined {guest} {name}"));
    }

    /// Whether a guest may be refused without `DROP_WHEN_FULL`. For how long is not modelled.
    fn is_held_off(&self, at: usize, gate: usize, given: Given) -> bool {
        let evicted = self.evicted.contains(&(self.guests[at].id(), self.gates[gate].id));
        evicted && !given.flags().contains(MemberFlags::DROP_WHEN_FULL)
    }

    fn asks(&self, at: usize, gate: usize) -> bool {
        self.guests[at].requests.iter().any(|(group, _)| *group == self.gates[gate].id)
    }

    fn refuse(&mut self, at: usize, gate: usize) {
        let Some(gate) = self.gate(gate) else { return };
        let (id, guest) = (self.gates[gate].id, self.guests[at].id());
        let refused = self.owner.endpoint.refuse(id, guest, "no");
        let Some(mut request) = self.request(at, gate) else {
            return assert!(refused.is_err());
        };
        refused.unwrap();
        assert!(matches!(request.poll_outcome(), Some(Err(JoinError::Refused { .. }))));
        self.seen.push(format!("Refused {guest} {}", self.gates[gate].name));
        self.end_if_idle(at);
    }

    fn expel(&mut self, at: usize, gate: usize) {
        let Some(gate) = self.gate(gate) else { return };
        let Gate { id, name, members, owned } = &mut self.gates[gate];
        let guest = &mut self.guests[at];
        let expelled = self.owner.endpoint.expel(*id, guest.id(), "out");
        if !*owned || members.remove(&guest.id()).is_none() {
            return assert!(expelled.is_err());
        }
        expelled.unwrap();
        guest.leaves(*id);
        guest.queue.push_back(Item::PutOut { group: *id });
        self.seen.push(format!("Evicted {} {name}", guest.id()));
    }

    fn set_terms(&mut self, at: usize, gate: usize, given: Given) {
        let Some(gate) = self.gate(gate) else { return };
        let held_off = self.is_held_off(at, gate, given);
        let Gate { id, name, members, owned } = &mut self.gates[gate];
        let guest = &mut self.guests[at];
        let set = self.owner.endpoint.set_terms(*id, guest.id(), given.terms());
        let member = members.get_mut(&guest.id()).filter(|_| *owned);
        let Some((before, _)) = member else {
            return assert!(set.is_err());
        };
        if let Err(GateError::Join(JoinError::BackOff(..))) = set {
            return assert!(held_off);
        }
        if self.owner.shut && given.flags().contains(MemberFlags::SEND_TO_PEER) {
            return assert!(matches!(set, Err(GateError::NoPeer(_))), "{set:?}");
        }
        let set = set.unwrap();
        if before.flags() != given.flags() {
            guest.flags.insert(*id, (given.flags(), Some(set)));
        }
        *before = given;
        self.seen.push(format!("Terms {} {name}", guest.id()));
    }

    fn set_filter(&mut self, at: usize, gate: usize, wanted: Wanted) {
        let Some(gate) = self.gate(gate) else { return };
        let Gate { id, name, members, .. } = &mut self.gates[gate];
        let guest = &self.guests[at];
        let set = guest.endpoint.set_filter(*id, wanted.filter());
        match members.get_mut(&guest.id()) {
            Some((_, own)) => *own = wanted,
            None => return assert!(set.is_err()),
        }
        set.unwrap();
        self.seen.push(format!("Filter {} {name}", guest.id()));
    }

    fn leave(&mut self, at: usize, gate: usize) {
        let Some(gate) = self.gate(gate) else { return };
        let Gate { id, name, members, .. } = &mut self.gates[gate];
        let guest = &mut self.guests[at];
        let left = guest.endpoint.leave(*id);
        assert_eq!(left.is_ok(), members.remove(&guest.id()).is_some());
        if left.is_ok() {
            self.seen.push(format!("Left {} {name}", guest.id()));
            guest.leaves(*id);
        }
    }

    fn send(&mut self, at: usize, gate: usize, key: Key) {
        let Some(gate) = self.gate(gate) else { return };
        let (number, draft) = self.draft(key);
        let Gate { id, members, owned, .. } = &self.gates[gate];
        let sent = self.guests[at].lane.try_send(Destination::Group(*id), draft);
        if !*owned && members.is_empty() {
            return assert_eq!(sent, Err(SendError::NoSuchGroup(*id)));
        }
        let Some(set) = self.recipients(at, gate, key) else {
            return assert!(matches!(sent, Err(SendError::NotAMember(..))), "{sent:?}");
        };
        if set.is_full() {
            return assert!(matches!(sent, Err(SendError::WouldBlock { .. })), "{sent:?}");
        }
        let receipt = sent.unwrap();
        self.deliver(gate, number, set, (receipt.recipients, receipt.dropped));
    }

    /// Whom a message is for, and whether each has room and waits for it.
    fn recipients(&self, at: usize, gate: usize, key: Key) -> Option<Recipients> {
        let Gate { members, owned, .. } = &self.gates[gate];
        let sender = self.guests[at].id();
        let (own_terms, _) = members.get(&sender)?;
        let mut set = Recipients::default();
        for (member, (terms, own)) in members {
            let flags = terms.flags();
            let comes_back = *member != sender || flags.contains(MemberFlags::LOOPBACK);
            if !comes_back || !own.accepts(key) || !terms.filter.accepts(key) {
                continue;
            }
            let dropping = flags.contains(MemberFlags::DROP_WHEN_FULL);
            let guest = self.guests.iter().position(|guest| guest.id() == *member).unwrap();
            match (self.guests[guest].has_room(), dropping) {
                (true, _) => set.takes.push((guest, dropping)),
                (false, true) => set.drops.push(guest),
                (false, false) => set.full.push(guest),
            }
        }
        let peer = self.guests[at].peer.filter(|_| Self::sends_to_peer(own_terms, *owned));
        set.peer = peer.map(|(peer, _)| {
            let room = self.owner.has_room() && self.owner.share_has_room(peer);
            (peer, room, own_terms.drop_at_peer)
        });
        Some(set)
    }

    /// A message has been taken by all of these.
    fn deliver(&mut self, gate: usize, number: u32, set: Recipients, told: (u32, u32)) {
        let Gate { id, name, .. } = &self.gates[gate];
        let Recipients { takes, drops, peer, .. } = set;
        let reached = takes.len() + usize::from(peer.is_some_and(|(_, room, _)| room));
        let lost = drops.len() + usize::from(peer.is_some_and(|(_, room, _)| !room));
        assert_eq!((told.0 as usize, told.1 as usize), (reached, lost));
        for (guest, dropping) in takes {
            let guest = &mut self.guests[guest];
            let missed = dropping.then(|| guest.gaps.remove(id)).flatten().unwrap_or(0);
            guest.queue.push_back(Item::Message { number, missed });
        }
        for guest in drops {
            *self.guests[guest].gaps.entry(*id).or_default() += 1;
        }
        match peer {
            Some((peer, true, dropping)) => {
                let gap = dropping.then(|| self.owner.peer_gaps.remove(&(*id, peer))).flatten();
                let missed = gap.unwrap_or(0);
                self.owner.queue.push_back(Item::FromPeer { peer, number, missed });
            }
            Some((peer, false, _)) => {
                *self.owner.peer_gaps.entry((*id, peer)).or_default() += 1;
            }
            None => {}
        }
        self.seen.push(format!("message {number} to {name}"));
    }

    /// A send waits until those who hold it up are stalled: members are evicted, a peer endpoint costs
    /// its member `SEND_TO_PEER`, an owner that is full all who wait for it.
    fn stall(&mut self, at: usize, number: usize, key: Key) {
        let Some(gate) = self.gate(number) else { return };
        let is_full = |world: &Self| world.recipients(at, gate, key).filter(Recipients::is_full);
        for _ in 0..=QUEUE {
            if is_full(self).is_none() {
                self.send(at, number, key);
            }
        }
        let Some(set) = is_full(self) else { return };
        let blocked_peer = set.peer.filter(|(_, room, dropping)| !room && !dropping);
        let Gate { id, name, members, .. } = &self.gates[gate];
        let (id, name) = (*id, name.clone());
        let waits_for_owner = |guest: &Party| {
            members.get(&guest.id()).is_some_and(|(terms, _)| {
                terms.flags().contains(MemberFlags::SEND_TO_PEER) && !terms.drop_at_peer
            })
        };
        let affected: Vec<usize> = match blocked_peer {
            None => Vec::new(),
            Some(_) if self.owner.has_room() => vec![at],
            Some(_) => (0..GUESTS).filter(|at| waits_for_owner(&self.guests[*at])).collect(),
        };
        // Who only waits for itself is told at once, and who goes first of those that go twice is
        // not modelled.
        if set.full.contains(&at) || set.full.iter().any(|guest| affected.contains(guest)) {
            return;
        }
        let (number, draft) = self.draft(key);
        let waits =
            self.guests[at].lane.submit(Destination::Group(id), draft, Waker::noop().clone());
        assert_eq!(waits, Ok(Submitted::Waiting));
        let mut outcome = None;
        for _ in 0..30 {
            self.now += 1;
            self.bus.tick(Duration::from_secs(self.now));
            outcome = self.guests[at].lane.poll_outcome();
            if outcome.is_some() {
                break;
            }
        }
        for guest in set.full {
            let guest = &mut self.guests[guest];
            self.gates[gate].members.remove(&guest.id());
            guest.leaves(id);
            guest.queue.push_back(Item::PutOut { group: id });
            self.seen.push(format!("Evicted {} {name}", guest.id()));
            self.evicted.insert((guest.id(), id));
        }
        for guest in affected {
            let guest = &mut self.guests[guest];
            let (terms, _) = self.gates[gate].members.get_mut(&guest.id()).unwrap();
            terms.flags &= !MemberFlags::SEND_TO_PEER.bits();
            guest.flags.insert(id, (terms.flags(), None));
            self.owner.stalled.push((id, guest.peer.unwrap().0));
            self.seen.push(format!("PeerStalled {} {name}", guest.id()));
        }
        let receipt = outcome.expect("nobody holds it up any more").unwrap();
        let set = self.recipients(at, gate, key).unwrap();
        self.deliver(gate, number, set, (receipt.recipients, receipt.dropped));
    }

    fn tell_owner(&mut self, at: usize) {
        let Some((peer, _)) = self.guests[at].peer else { return };
        let (number, draft) = self.draft(None);
        let sent = self.guests[at].lane.try_send(Destination::Endpoint(peer), draft);
        if !self.owner.has_room() || !self.owner.share_has_room(peer) {
            return assert!(matches!(sent, Err(SendError::WouldBlock { .. })), "{sent:?}");
        }
        sent.unwrap();
        self.owner.queue.push_back(Item::FromPeer { peer, number, missed: 0 });
        self.seen.push(format!("message {number} to endpoint {}", self.owner.id()));
    }

    fn tell_guest(&mut self, at: usize) {
        let (number, draft) = self.draft(None);
        let guest = &mut self.guests[at];
        let sent = self.owner.lane.try_send(Destination::Endpoint(guest.id()), draft);
        if guest.shut {
            return assert!(matches!(sent, Err(SendError::ReceiveShut(_))), "{sent:?}");
        }
        if !guest.has_room() {
            return assert!(matches!(sent, Err(SendError::WouldBlock { .. })), "{sent:?}");
        }
        sent.unwrap();
        guest.queue.push_back(Item::Message { number, missed: 0 });
        self.seen.push(format!("message {number} to endpoint {}", guest.id()));
    }

    fn close_peer(&mut self, at: usize, by_owner: bool) {
        let guest = &mut self.guests[at];
        let Some((peer, made_for)) = guest.peer.take() else { return };
        let by = if by_owner { &self.owner.endpoint } else { &guest.endpoint };
        by.close_peer(peer).unwrap();
        assert_eq!(by.close_peer(peer), None);
        for (_, mut request) in std::mem::take(&mut guest.requests) {
            match request.poll_outcome() {
                Some(Err(JoinError::Refused { .. })) if by_owner => {}
                Some(Err(JoinError::Withdrawn(_))) if !by_owner => {}
                other => panic!("{other:?}"),
            }
        }
        for gate in self.gates.iter_mut().filter(|gate| gate.owned) {
            if gate.members.remove(&guest.id()).is_none() {
                continue;
            }
            let change = if by_owner { "Evicted" } else { "Left" };
            self.seen.push(format!("{change} {} {}", guest.id(), gate.name));
        }
        for group in guest.joined.clone() {
            if self.gates.iter().any(|gate| gate.id == group && gate.owned) {
                guest.leaves(group);
                if by_owner {
                    guest.queue.push_back(Item::PutOut { group });
                }
            }
        }
        let name = &self.gates.iter().find(|gate| gate.id == made_for).unwrap().name;
        self.seen.push(format!("PeerClosed {} {name}", guest.id()));
        if !by_owner {
            self.owner.closed.push(peer);
        }
    }

    fn replace_owner(&mut self) {
        let next = Party::open(&self.bus, &mut self.pids);
        // The old one is closed by that.
        let was_shut = std::mem::replace(&mut self.owner, next).shut;
        for gate in self.gates.iter_mut().filter(|gate| gate.owned && gate.members.is_empty()) {
            gate.owned = false;
            self.seen.push(format!("Ended {}", gate.name));
        }
        if !was_shut {
            self.bereave();
        }
        self.gates.iter_mut().for_each(|gate| gate.owned = false);
        self.open_gates();
    }

    /// The owner keeps its gates, and nobody is let in or heard any more.
    fn shut_owner(&mut self) {
        self.owner.endpoint.shutdown_receive();
        if !std::mem::replace(&mut self.owner.shut, true) {
            self.bereave();
        }
    }

    /// Members go on without their owner, and who waits for it is told.
    fn bereave(&mut self) {
        for gate in self.gates.iter_mut().filter(|gate| gate.owned && !gate.members.is_empty()) {
            self.seen.push(format!("OwnerGone {}", gate.name));
            for guest in &mut self.guests {
                let Some((terms, _)) = gate.members.get_mut(&guest.id()) else { continue };
                if terms.flags().contains(MemberFlags::SEND_TO_PEER) {
                    terms.flags &= !MemberFlags::SEND_TO_PEER.bits();
                    guest.flags.insert(gate.id, (terms.flags(), None));
                }
            }
        }
        for guest in &mut self.guests {
            guest.peer = None;
            for (_, mut request) in std::mem::take(&mut guest.requests) {
                let outcome = request.poll_outcome();
                assert!(matches!(outcome, Some(Err(JoinError::OwnerGone(_)))), "{outcome:?}");
            }
        }
    }

    /// A guest leaves everything, and may still say something to the owner.
    fn shut_guest(&mut self, at: usize) {
        let guest = &mut self.guests[at];
        let id = guest.id();
        guest.endpoint.shutdown_receive();
        if std::mem::replace(&mut guest.shut, true) {
            return;
        }
        for (_, mut request) in std::mem::take(&mut guest.requests) {
            let outcome = request.poll_outcome();
            assert!(matches!(outcome, Some(Err(JoinError::ReceiveShut(_)))), "{outcome:?}");
        }
        for gate in &mut self.gates {
            if gate.members.remove(&id).is_some() {
                self.seen.push(format!("Left {id} {}", gate.name));
                guest.leaves(gate.id);
            }
        }
        if std::mem::take(&mut guest.in_store) {
            self.seen.push(format!("Left {id} {STORE}"));
        }
    }

    fn replace_guest(&mut self, at: usize) {
        let opened = Party::open(&self.bus, &mut self.pids);
        let Party { endpoint, requests, peer, in_store, .. } =
            std::mem::replace(&mut self.guests[at], opened);
        let id = endpoint.id();
        drop(endpoint);
        for (_, mut request) in requests {
            let outcome = request.poll_outcome();
            assert!(matches!(outcome, Some(Err(JoinError::Closed(_)))), "{outcome:?}");
        }
        self.owner.closed.extend(peer.map(|(peer, _)| peer));
        for gate in &mut self.gates {
            if gate.members.remove(&id).is_some() {
                self.seen.push(format!("Closed {id} {}", gate.name));
            }
        }
        if in_store {
            self.seen.push(format!("Closed {id} {STORE}"));
        }
    }

    fn join(&mut self, at: usize, state: bool) {
        let guest = &mut self.guests[at];
        let options = JoinOptions { state, ..JoinOptions::default() };
        let joined = guest.endpoint.join(&STORE.parse().unwrap(), options);
        if guest.shut {
            return assert!(matches!(joined, Err(JoinError::ReceiveShut(_))), "{joined:?}");
        }
        if std::mem::replace(&mut guest.in_store, true) {
            return assert!(matches!(joined, Err(JoinError::AlreadyMember(..))), "{joined:?}");
        }
        let sequence = joined.unwrap().sequence;
        self.seen.push(format!("Joined {} {STORE}", guest.id()));
        if state {
            let retained = self.retained.iter();
            guest.queue.extend(retained.map(|(number, _)| Item::Retained { number: *number }));
            let messages = u32::try_from(self.retained.len()).unwrap();
            guest.queue.push_back(Item::Current { group: self.store, sequence, messages });
        }
    }

    fn quit(&mut self, at: usize) {
        let guest = &mut self.guests[at];
        let left = guest.endpoint.leave(self.store);
        assert_eq!(left.is_ok(), std::mem::replace(&mut guest.in_store, false));
        if left.is_ok() {
            self.seen.push(format!("Left {} {STORE}", guest.id()));
        }
    }

    fn publish(&mut self, at: usize, key: Key) {
        let (number, draft) = self.draft(key);
        let sender = self.guests[at].id();
        let sent = self.guests[at].lane.try_send(Destination::Group(self.store), draft);
        let others = |guest: &&mut Party| guest.in_store && guest.id() != sender;
        let mut takes: Vec<&mut Party> = self.guests.iter_mut().filter(others).collect();
        if takes.iter().any(|guest| !guest.has_room()) {
            return assert!(matches!(sent, Err(SendError::WouldBlock { .. })), "{sent:?}");
        }
        assert_eq!(sent.unwrap().recipients as usize, takes.len());
        for guest in &mut takes {
            guest.queue.push_back(Item::Message { number, missed: 0 });
        }
        if !self.per_key {
            self.retained.push((number, None));
            let over = self.retained.len().saturating_sub(2);
            self.retained.drain(..over);
        } else if key.is_some() {
            self.retained.retain(|(_, other)| *other != key);
            self.retained.push((number, key));
        }
        self.seen.push(format!("message {number} to {STORE}"));
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Connect(at, gate, wishes) => self.connect(at, gate, wishes),
            Op::Withdraw(at, gate) => self.withdraw(at, gate),
            Op::Admit(at, gate, given) => self.admit(at, gate, given),
            Op::Refuse(at, gate) => self.refuse(at, gate),
            Op::Expel(at, gate) => self.expel(at, gate),
            Op::SetTerms(at, gate, given) => self.set_terms(at, gate, given),
            Op::SetFilter(at, gate, wanted) => self.set_filter(at, gate, wanted),
            Op::Leave(at, gate) => self.leave(at, gate),
            Op::Send(at, gate, key) => self.send(at, gate, key),
            Op::Stall(at, gate, key) => self.stall(at, gate, key),
            Op::ToOwner(at) => self.tell_owner(at),
            Op::ToGuest(at) => self.tell_guest(at),
            Op::ClosePeer(at, by_owner) => self.close_peer(at, by_owner),
            Op::TakeOwner(most) => self.owner.take(most),
            Op::Take(at, most) => self.guests[at].take(most),
            Op::ReplaceOwner => self.replace_owner(),
            Op::ReplaceGuest(at) => self.replace_guest(at),
            Op::ShutOwner => self.shut_owner(),
            Op::ShutGuest(at) => self.shut_guest(at),
            Op::Join(at, state) => self.join(at, state),
            Op::Quit(at) => self.quit(at),
            Op::Publish(at, key) => self.publish(at, key),
        }
    }

    /// The monitor has seen this step, as far as it had room, and knows what it missed.
    fn check_monitor(&mut self) {
        let mut seen = Vec::new();
        let (mut missed, mut last) = (0, Sequence::from_raw(0));
        while let Ok(delivery) = self.watching.try_receive() {
            let (what, sequence) = match delivery {
                Delivery::Monitored { seen: Monitored::Message { message, to }, .. } => {
                    let to = match to {
                        bus_core::Addressee::Group(_, name) => name.to_string(),
                        bus_core::Addressee::Endpoint(id) => format!("endpoint {id}"),
                        other => panic!("{other:?}"),
                    };
                    let number = number_of(message.payload());
                    (format!("message {number} to {to}"), message.sequence())
                }
                Delivery::Monitored { seen: Monitored::View(change), .. } => {
                    let what = match change.change {
                        bus_core::Change::Ended => format!("Ended {}", change.name),
                        what => format!("{what:?} {} {}", change.endpoint, change.name),
                    };
                    (what, change.sequence)
                }
                Delivery::Monitored { seen: Monitored::Member(change), .. } => {
                    let what = match change.event {
                        bus_core::MemberEvent::OwnerGone => format!("OwnerGone {}", change.name),
                        what => format!("{what:?} {} {}", change.endpoint, change.name),
                    };
                    (what, change.sequence)
                }
                Delivery::MonitorGap { gap } => {
                    missed += gap.count;
                    continue;
                }
                other => panic!("{other:?}"),
            };
            assert!(sequence >= last, "{what} after {last}");
            last = sequence;
            seen.push(what);
        }
        let mut expected = std::mem::take(&mut self.seen);
        assert_eq!(seen.len() as u64 + missed, expected.len() as u64, "{seen:?} of {expected:?}");
        assert!(missed == 0 || seen.len() == QUEUE, "{missed} missed beside {seen:?}");
        for what in &seen {
            let at = expected.iter().position(|other| other == what);
            expected.remove(at.unwrap_or_else(|| panic!("{what} is not of {expected:?}")));
        }
    }

    /// What is true whenever nothing is going on.
    fn check(&mut self) {
        self.check_monitor();
        for gate in &self.gates {
            let Some(listed) = self.bus.members(gate.id) else {
                assert!(!gate.owned && gate.members.is_empty());
                continue;
            };
            let listed: Vec<_> = listed.map(|member| (member.endpoint, member.flags)).collect();
            let known = gate.members.iter().map(|(id, (terms, _))| (*id, terms.flags()));
            assert_eq!(listed, known.collect::<Vec<_>>());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_operations_at_gates_agree_with_the_model(
        seed in any::<u64>(),
        per_key in any::<bool>(),
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let mut world = World::new(seed, per_key);
        for op in &ops {
            world.apply(op);
            world.check();
        }
        // All is read in the end, and everybody knows what it missed.
        world.owner.take(1_000);
        for guest in &mut world.guests {
            guest.take(1_000);
        }
        prop_assert!(world.monitor.unmonitor().is_some());
    }
}
