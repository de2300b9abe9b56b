//! Random requests, replies, cancellations, closes and ticks, against a model of one table: each
//! request has exactly one outcome, the kept places are never lost, and never more than there are.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bus_core::{
    Bus, Credentials, Delivery, Destination, Draft, Endpoint, EndpointId, Kind, Lane, Limits,
    Receiver, RequestEnd, SendError, Sequence,
};
use proptest::prelude::*;

const ENDPOINTS: usize = 4;
const REQUESTS: u16 = 3;
const QUEUE: u32 = 2;
const DEADLINE: Duration = Duration::from_millis(400);

#[derive(Clone, Debug)]
enum Op {
    Ask(usize, usize),
    Send(usize, usize),
    /// Answers one of what it has taken: the how manieth, whether it refuses, how long it is.
    Reply(usize, usize, bool, usize),
    Cancel(usize, usize),
    Decline(usize, usize),
    Take(usize),
    Replace(usize),
    Shutdown(usize),
    Tick(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let (e, n) = (0..ENDPOINTS, 0..4_usize);
    prop_oneof![
        8 => (e.clone(), e.clone()).prop_map(|(from, to)| Op::Ask(from, to)),
        4 => (e.clone(), e.clone()).prop_map(|(from, to)| Op::Send(from, to)),
        7 => (e.clone(), n.clone(), any::<bool>(), 0..12_usize)
            .prop_map(|(e, n, refuses, long)| Op::Reply(e, n, refuses, long)),
        2 => (e.clone(), n.clone()).prop_map(|(e, n)| Op::Cancel(e, n)),
        2 => (e.clone(), n).prop_map(|(e, n)| Op::Decline(e, n)),
        12 => e.clone().prop_map(Op::Take),
        1 => e.clone().prop_map(Op::Replace),
        1 => e.prop_map(Op::Shutdown),
        3 => (1..300_u64).prop_map(Op::Tick),
    ]
}

struct Party {
    endpoint: Endpoint,
    reader: Receiver,
    lane: Lane,
    /// Its requests without an outcome, and when each is over.
    open: BTreeMap<Sequence, u64>,
    /// Requests that have an outcome in its queue.
    decided: BTreeMap<Sequence, Option<RequestEnd>>,
    /// Requests that it has taken, and their callers.
    taken: BTreeMap<Sequence, EndpointId>,
    /// Of these, those whose end it has not been told of.
    to_be_told: BTreeSet<Sequence>,
    shut: bool,
}

impl Party {
    fn on(bus: &Bus) -> Self {
        let endpoint = bus.open_endpoint(Credentials { uid: 1, pid: 1 }).unwrap();
        Self {
            reader: endpoint.receiver().unwrap(),
            lane: endpoint.lane().unwrap(),
            endpoint,
            open: BTreeMap::new(),
            decided: BTreeMap::new(),
            taken: BTreeMap::new(),
            to_be_told: BTreeSet::new(),
            shut: false,
        }
    }

    fn id(&self) -> EndpointId {
        self.endpoint.id()
    }

    fn nth(&self, n: usize) -> Option<Sequence> {
        self.taken.keys().nth(n % self.taken.len().max(1)).copied()
    }
}

struct World {
    bus: Bus,
    parties: Vec<Party>,
    /// Who was asked.
    callees: BTreeMap<Sequence, EndpointId>,
    now: u64,
}

const START: Duration = Duration::from_secs(1_000);

impl World {
    fn new() -> Self {
        let bus = Bus::new(
            Limits {
                queue_messages: QUEUE,
                queue_bytes: 64,
                requests: REQUESTS,
                reply_bytes: 8,
                request_deadline: DEADLINE,
                ..Limits::default()
            },
            3,
        )
        .unwrap();
        bus.tick(START);
        let parties = (0..ENDPOINTS).map(|_| Party::on(&bus)).collect();
        Self { bus, parties, callees: BTreeMap::new(), now: 0 }
    }

    fn party(&mut self, id: EndpointId) -> Option<&mut Party> {
        self.parties.iter_mut().find(|party| party.id() == id)
    }

    /// A request has no reply: its caller is told, and who has taken it.
    fn end(&mut self, caller: EndpointId, request: Sequence, why: RequestEnd) {
        let party = self.party(caller).unwrap();
        assert!(party.open.remove(&request).is_some(), "{request} has two outcomes");
        party.decided.insert(request, Some(why));
        if why != RequestEnd::Gone {
            self.tell(request);
        }
    }

    fn tell(&mut self, request: Sequence) {
        let callee = self.callees[&request];
        if let Some(callee) = self.party(callee)
            && callee.taken.contains_key(&request)
        {
            callee.to_be_told.insert(request);
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Ask(from, to) => {
                let kind = Kind::Request { repeatable: false };
                let draft = Draft { kind, ..Draft::from("?") };
                let (to, until) = (self.parties[to].id(), self.now + 400);
                let to_shut = self.parties.iter().any(|party| party.id() == to && party.shut);
                let from = &mut self.parties[from];
                let asked = from.lane.try_send(Destination::Endpoint(to), draft);
                match asked {
                    Ok(receipt) => {
                        assert!(!from.shut && from.open.len() < usize::from(REQUESTS));
                        from.open.insert(receipt.sequence, until);
                        self.callees.insert(receipt.sequence, to);
                    }
                    Err(SendError::ReceiveShut(_)) => assert!(from.shut || to_shut),
                    Err(SendError::RequestLimit(_)) => {
                        let used = from.open.len() + from.decided.len();
                        assert!(used >= usize::from(REQUESTS), "{used} places in use");
                    }
                    Err(SendError::WouldBlock { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Send(from, to) => {
                let to = Destination::Endpoint(self.parties[to].id());
                let sent = self.parties[from].lane.try_send(to, "x");
                assert!(matches!(
                    sent,
                    Ok(_) | Err(SendError::WouldBlock { .. } | SendError::ReceiveShut(_))
                ));
            }
            Op::Reply(at, n, refuses, long) => {
                let Some(request) = self.parties[at].nth(n) else {
                    return;
                };
                let kind = if refuses { Kind::Refusal } else { Kind::Message };
                let draft = Draft { kind, ..Draft::from("x".repeat(long)) };
                let party = &mut self.parties[at];
                let caller = party.taken[&request];
                let replied = party.lane.try_send(Destination::Caller(request), draft);
                let open = self.party(caller).is_some_and(|c| c.open.contains_key(&request));
                match replied {
                    Ok(_) => {
                        assert!(open, "{request} has two outcomes");
                        let caller = self.party(caller).unwrap();
                        caller.open.remove(&request);
                        caller.decided.insert(request, None);
                        self.parties[at].taken.remove(&request);
                    }
                    Err(SendError::NoSuchRequest(_)) => {
                        assert!(!open, "somebody waits for {request}");
                        assert!(self.parties[at].to_be_told.contains(&request));
                    }
                    Err(SendError::WouldBlock { .. }) => assert!(long > 8 && open),
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Cancel(at, n) => {
                let party = &self.parties[at];
                let Some(request) = party.open.keys().nth(n).copied() else {
                    return;
                };
                let caller = party.id();
                assert!(party.endpoint.cancel_request(request));
                assert!(!party.endpoint.cancel_request(request));
                self.end(caller, request, RequestEnd::Cancelled);
            }
            Op::Decline(at, n) => {
                let Some(request) = self.parties[at].nth(n) else {
                    return;
                };
                let party = &mut self.parties[at];
                let declined = party.endpoint.decline_request(request);
                let caller = party.taken[&request];
                if declined {
                    party.taken.remove(&request);
                    self.end(caller, request, RequestEnd::Gone);
                } else {
                    assert!(party.to_be_told.contains(&request));
                }
            }
            Op::Take(at) => self.take(at),
            Op::Replace(at) => {
                let fresh = Party::on(&self.bus);
                let gone = std::mem::replace(&mut self.parties[at], fresh);
                let id = gone.id();
                let open: Vec<_> = gone.open.keys().copied().collect();
                drop(gone);
                self.forget(&open);
                let asked = self.callees.iter().filter(|(_, callee)| **callee == id);
                for request in asked.map(|(request, _)| *request).collect::<Vec<_>>() {
                    let mut callers = self.parties.iter();
                    let caller = callers.find(|caller| caller.open.contains_key(&request));
                    if let Some(caller) = caller.map(Party::id) {
                        self.end(caller, request, RequestEnd::Gone);
                    }
                }
            }
            Op::Shutdown(at) => {
                let party = &mut self.parties[at];
                party.endpoint.shutdown_receive();
                party.shut = true;
                let open: Vec<_> = std::mem::take(&mut party.open).into_keys().collect();
                self.forget(&open);
            }
            Op::Tick(millis) => {
                self.now += millis;
                self.bus.tick(START + Duration::from_millis(self.now));
                for at in 0..ENDPOINTS {
                    let (caller, now) = (self.parties[at].id(), self.now);
                    let over = self.parties[at].open.iter().filter(|(_, until)| **until <= now);
                    for request in over.map(|(request, _)| *request).collect::<Vec<_>>() {
                        self.end(caller, request, RequestEnd::TimedOut);
                    }
                }
            }
        }
    }

    /// Their caller takes no outcomes any more.
    fn forget(&mut self, open: &[Sequence]) {
        for request in open {
            self.tell(*request);
        }
    }

    fn take(&mut self, at: usize) {
        let Ok(delivery) = self.parties[at].reader.try_receive() else {
            let party = &self.parties[at];
            assert!(party.decided.is_empty(), "nothing was told of {:?}", party.decided);
            assert!(party.to_be_told.is_empty(), "not told the end of {:?}", party.to_be_told);
            return;
        };
        let id = self.parties[at].id();
        match delivery {
            Delivery::Message { message, .. } if message.is_request() => {
                let request = message.sequence();
                assert_eq!(self.callees[&request], id, "somebody else was asked");
                let caller = self.party(message.sender()).expect("a caller that lives");
                assert!(caller.open.contains_key(&request), "{request} is over");
                self.parties[at].taken.insert(request, message.sender());
            }
            Delivery::Message { message, .. } => {
                if let Some(request) = message.answers() {
                    let told = self.parties[at].decided.remove(&request);
                    assert_eq!(told, Some(None), "an outcome for {request}");
                }
            }
            Delivery::Outcome(outcome) => {
                let told = self.parties[at].decided.remove(&outcome.request);
                assert_eq!(told, Some(Some(outcome.why)), "an outcome for {}", outcome.request);
            }
            Delivery::RequestEnded(ended) => {
                let party = &mut self.parties[at];
                assert!(party.to_be_told.remove(&ended.request));
                assert!(party.taken.remove(&ended.request).is_some());
            }
            other => panic!("{other:?}"),
        }
    }

    fn check(&self) {
        let open: usize = self.parties.iter().map(|party| party.open.len()).sum();
        assert_eq!(self.bus.stats().open_requests, open as u64);
        for party in &self.parties {
            let used = party.open.len();
            assert!(used <= usize::from(REQUESTS), "{used} requests");
        }
    }

    /// Everybody reads everything: nothing is left, and all places are free again.
    fn finish(mut self) {
        for _ in 0..2 {
            self.step(&Op::Tick(900));
        }
        for at in 0..ENDPOINTS {
            for _ in 0..64 {
                self.take(at);
            }
        }
        self.check();
        assert_eq!(self.bus.stats().open_requests, 0);
        let fresh = Party::on(&self.bus);
        for party in self.parties.iter_mut().filter(|party| !party.shut) {
            let mut reader = fresh.reader_of();
            for _ in 0..REQUESTS {
                let kind = Kind::Request { repeatable: false };
                let draft = Draft { kind, ..Draft::from("?") };
                let to = Destination::Endpoint(reader.id());
                let asked = party.lane.try_send(to, draft).map(|receipt| receipt.sequence);
                assert!(asked.is_ok(), "a kept place was lost: {asked:?}");
                reader.skip();
            }
        }
    }
}

/// A callee of the last step, which reads as fast as it is asked.
struct Skipping {
    endpoint: Endpoint,
    reader: Receiver,
}

impl Skipping {
    fn id(&self) -> EndpointId {
        self.endpoint.id()
    }

    fn skip(&mut self) {
        while self.reader.try_receive().is_ok() {}
    }
}

impl Party {
    /// Another endpoint on the same bus.
    fn reader_of(&self) -> Skipping {
        let endpoint = self.endpoint.bus().open_endpoint(self.endpoint.credentials()).unwrap();
        Skipping { reader: endpoint.receiver().unwrap(), endpoint }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn each_request_has_exactly_one_outcome(ops in proptest::collection::vec(op(), 1..120)) {
        let mut world = World::new();
        for op in &ops {
            world.step(op);
            world.check();
        }
        world.finish();
    }
}
