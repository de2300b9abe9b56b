//! Gated groups: who is admitted, what reaches the owner, and what ends when.

use bus_core::{
    Bus, Candidacy, Candidate, CreateError, Delivery, Destination, EndpointId, EvictionCause,
    GateError, GroupId, JoinError, Joined, LimitExceeded, Limits, MemberFlags, Message, PeerChange,
    ReceiveError, SendError, Terms,
};

use crate::given::{Party, Wakes, assert_rising, bus, bus_with, full, outcome, text};

const NONE: MemberFlags = MemberFlags::empty();
const TO_PEER: MemberFlags = MemberFlags::SEND_TO_PEER;

/// An owner of a gated group.
struct Owner {
    party: Party,
    group: GroupId,
}

impl Owner {
    fn on(bus: &Bus, name: &str) -> Self {
        let party = Party::on(bus);
        let (group, _) = party.endpoint.create_gated(&name.parse().unwrap(), None).unwrap();
        Self { party, group }
    }

    fn next(&mut self) -> Delivery {
        self.party.reader.try_receive().expect("something to take")
    }

    fn candidate(&mut self) -> Candidate {
        match self.next() {
            Delivery::Candidate(candidate) => *candidate,
            other => panic!("a candidate was expected, not {other:?}"),
        }
    }

    /// The peer endpoint through which the next message came, and the message.
    fn heard(&mut self) -> (EndpointId, std::sync::Arc<Message>) {
        match self.next() {
            Delivery::FromPeer { peer, message, missed: None } => (peer, message),
            other => panic!("a message through a peer endpoint was expected, not {other:?}"),
        }
    }

    fn is_idle(&mut self) -> bool {
        matches!(self.party.reader.try_receive(), Err(ReceiveError::Empty))
    }

    /// Admits whoever connects.
    fn take_in(&mut self, guest: &Party, name: &str, terms: Terms) -> (Joined, EndpointId) {
        let request = connect(guest, name);
        let candidate = self.candidate();
        assert_eq!(candidate.endpoint, guest.id());
        let admitted = self.party.endpoint.admit(self.group, guest.id(), terms).unwrap();
        assert_eq!(request.wait(), Ok(admitted));
        (admitted, candidate.peer)
    }
}

fn connect(guest: &Party, name: &str) -> Candidacy {
    guest.endpoint.connect(&name.parse().unwrap(), NONE).unwrap()
}

fn gap_of(delivery: Delivery) -> (GroupId, EndpointId, u64) {
    match delivery {
        Delivery::PeerGap { group, peer, gap } => (group, peer, gap.count),
        other => panic!("a gap was expected, not {other:?}"),
    }
}

#[test]
fn the_owner_sees_who_asks_and_decides() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "club");
    let (alice, bob) = (Party::on(&bus), Party::on(&bus));
    let name = "club".parse().unwrap();
    let mut request = alice.endpoint.connect(&name, MemberFlags::LOOPBACK).unwrap();
    let wakes = Wakes::new();
    assert!(request.sleep(wakes.waker()));
    let candidate = owner.candidate();
    assert_eq!((candidate.endpoint, candidate.peer), (alice.id(), request.peer()));
    assert_eq!(
        (candidate.credentials, candidate.wishes),
        (crate::given::ME, MemberFlags::LOOPBACK)
    );
    assert_eq!((candidate.sequence, request.owner()), (request.sequence(), owner.party.id()));
    assert!(request.poll_outcome().is_none());

    let terms = Terms::new(MemberFlags::LOOPBACK);
    let admitted = owner.party.endpoint.admit(owner.group, alice.id(), terms).unwrap();
    assert_eq!(wakes.count(), 1);
    assert_eq!(request.poll_outcome(), Some(Ok(admitted)));
    assert!(admitted.sequence > candidate.sequence);

    let request = connect(&bob, "club");
    owner.candidate();
    owner.party.endpoint.refuse(owner.group, bob.id(), "full house").unwrap();
    let reason = "full house".into();
    assert_eq!(request.wait(), Err(JoinError::Refused { group: name, reason }));
    let again = owner.party.endpoint.admit(owner.group, bob.id(), Terms::default());
    assert_eq!(again, Err(GateError::NoCandidate(owner.group, bob.id())), "decided before");
}

#[test]
fn nobody_enters_but_through_the_gate() {
    let bus = bus(8);
    let owner = Owner::on(&bus, "club");
    let guest = Party::on(&bus);
    let name = "club".parse().unwrap();
    let joined = guest.endpoint.join(&name, bus_core::JoinOptions::create());
    assert_eq!(joined, Err(JoinError::Gated(name.clone())));
    let own = owner.party.endpoint.connect(&name, NONE).unwrap_err();
    assert_eq!(own, JoinError::Owner(name, owner.party.id()));
    let open = "open".parse().unwrap();
    guest.join("open");
    let refused = Party::on(&bus).endpoint.connect(&open, NONE).unwrap_err();
    assert_eq!(refused, JoinError::Open(open));
    let stranger = Party::on(&bus).endpoint.admit(owner.group, guest.id(), Terms::default());
    assert!(matches!(stranger, Err(GateError::NotTheOwner(..))));
}

#[test]
fn only_members_send_to_the_group() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "club");
    let (mut alice, mut bob) = (Party::on(&bus), Party::on(&bus));
    let outside = |id| Err(SendError::NotAMember(owner.group, id));
    assert_eq!(alice.try_send(owner.group, "knock"), outside(alice.id()));
    let group = owner.group;
    owner.take_in(&alice, "club", Terms::default());
    owner.take_in(&bob, "club", Terms::default());
    alice.send(group, "hello");
    assert_eq!(bob.take_all(), ["hello"]);
    assert!(alice.take_all().is_empty(), "no loopback");
    assert!(owner.is_idle(), "nobody has SEND_TO_PEER");
    let from_owner = owner.party.try_send(group, "from above");
    assert_eq!(from_owner, Err(SendError::NotAMember(group, owner.party.id())));
    alice.endpoint.leave(group).unwrap();
    assert_eq!(alice.try_send(group, "again"), Err(SendError::NotAMember(group, alice.id())));
}

#[test]
fn private_messages_pass_before_admission_during_membership_and_after_a_leave() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "club");
    let mut alice = Party::on(&bus);
    let request = connect(&alice, "club");
    let peer = request.peer();
    owner.candidate();
    alice.send(peer, "before");
    owner.party.send(alice.id(), "who are you?");
    let (from, message) = owner.heard();
    assert_eq!((from, message.sender(), text(&message)), (peer, alice.id(), "before".to_owned()));
    assert_eq!(message.destination(), Destination::Endpoint(peer));

    owner.party.endpoint.admit(owner.group, alice.id(), Terms::default()).unwrap();
    request.wait().unwrap();
    alice.send(peer, "during");
    alice.endpoint.leave(owner.group).unwrap();
    alice.send(peer, "after");
    assert_eq!([owner.heard().1, owner.heard().1].map(|m| text(&m)), ["during", "after"]);
    assert_eq!(alice.take_all(), ["who are you?"]);

    let mut stranger = Party::on(&bus);
    let refused = stranger.try_send(peer, "hi");
    assert_eq!(refused, Err(SendError::NoSuchEndpoint(peer)), "it is there for alice alone");
}

#[test]
fn one_connection_is_admitted_to_several_groups() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "first");
    let second = "second".parse().unwrap();
    let (second, _) = owner.party.endpoint.create_gated(&second, None).unwrap();
    let mut alice = Party::on(&bus);
    let (_, peer) = owner.take_in(&alice, "first", Terms::new(TO_PEER));
    let request = connect(&alice, "second");
    assert_eq!(request.peer(), peer, "the same connection");
    assert_eq!(owner.candidate().group, second);
    owner.party.endpoint.admit(second, alice.id(), Terms::new(TO_PEER)).unwrap();
    request.wait().unwrap();
    alice.send(owner.group, "to the first");
    alice.send(second, "to the second");
    let heard = [owner.heard(), owner.heard()];
    assert_eq!(heard.each_ref().map(|(from, _)| *from), [peer; 2]);
    let to = [owner.group, second].map(Destination::Group);
    assert_eq!(heard.each_ref().map(|(_, message)| message.destination()), to);

    assert!(owner.party.endpoint.close_peer(peer).is_some());
    for group in [owner.group, second] {
        assert_eq!(alice.try_send(group, "?"), Err(SendError::NotAMember(group, alice.id())));
        let Ok(Delivery::Evicted(end)) = alice.reader.try_receive() else { panic!("told of both") };
        assert_eq!((end.group, &end.cause), (group, &EvictionCause::PeerClosed));
    }
    assert_eq!(alice.try_send(peer, "?"), Err(SendError::NoSuchEndpoint(peer)));
}

#[test]
fn g1_a_message_to_the_peer_endpoint_takes_the_same_place_as_for_the_members() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "club");
    let (mut alice, mut bob) = (Party::on(&bus), Party::on(&bus));
    owner.take_in(&alice, "club", Terms::new(TO_PEER | MemberFlags::LOOPBACK));
    owner.take_in(&bob, "club", Terms::new(TO_PEER));
    let first = alice.send(owner.group, "one");
    let second = bob.send(owner.group, "two");
    assert_eq!((first.recipients, second.recipients), (3, 2));
    assert_rising(&[first.sequence, second.sequence]);
    for sequences in [
        [owner.heard().1.sequence(), owner.heard().1.sequence()],
        [alice.take_message().sequence(), alice.take_message().sequence()],
    ] {
        assert_eq!(sequences, [first.sequence, second.sequence]);
    }
    assert_eq!(bob.take_all(), ["one"]);
}

#[test]
fn g1_a_full_peer_endpoint_refuses_for_everybody() {
    let bus = bus_with(Limits { queue_messages: 8, peer_messages: 2, ..Limits::default() });
    let mut owner = Owner::on(&bus, "club");
    let (mut alice, mut bob) = (Party::on(&bus), Party::on(&bus));
    let (_, peer) = owner.take_in(&alice, "club", Terms::new(TO_PEER));
    owner.take_in(&bob, "club", Terms::new(TO_PEER));
    alice.send(owner.group, "1");
    alice.send(peer, "2");
    assert_eq!(full(alice.try_send(owner.group, "3")), (vec![peer], 1), "its share is used up");
    assert_eq!(full(alice.try_send(peer, "3")), (vec![peer], 1));
    bob.send(owner.group, "bob's share is his own");
    assert_eq!(bob.take_all(), ["1"]);
    assert_eq!(text(&owner.heard().1), "1");
    alice.send(owner.group, "3");
}

#[test]
fn g10_one_member_cannot_fill_its_owners_queue() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "club");
    let mut alice = Party::on(&bus);
    let (_, peer) = owner.take_in(&alice, "club", Terms::default());
    let sent = (0..8).take_while(|_| alice.try_send(peer, "spam").is_ok()).count();
    assert_eq!(sent, 4, "half of the queue");
    let mut stranger = Party::on(&bus);
    stranger.send(owner.party.id(), "room is left");
}

#[test]
fn g5_a_send_that_waits_for_its_share_goes_on_when_the_owner_reads() {
    let bus = bus_with(Limits { queue_messages: 8, peer_messages: 1, ..Limits::default() });
    let mut owner = Owner::on(&bus, "club");
    let (mut alice, mut bob) = (Party::on(&bus), Party::on(&bus));
    let (_, peer) = owner.take_in(&alice, "club", Terms::new(TO_PEER));
    owner.take_in(&bob, "club", Terms::default());
    alice.send(peer, "private");
    let wakes = alice.wait(owner.group, "public");
    assert!(bob.take_all().is_empty());
    assert_eq!(text(&owner.heard().1), "private");
    assert_eq!(wakes.count(), 1, "the place was given back with the message");
    assert_eq!(outcome(&mut alice.lane).unwrap().recipients, 2);
    assert_eq!(bob.take_all(), ["public"]);
    assert_eq!(text(&owner.heard().1), "public");
}

#[test]
fn g5_a_send_that_waits_for_the_owners_queue_goes_on_when_the_owner_reads() {
    let bus = bus_with(Limits { queue_messages: 2, peer_messages: 1, ..Limits::default() });
    let mut owner = Owner::on(&bus, "club");
    let mut alice = Party::on(&bus);
    owner.take_in(&alice, "club", Terms::new(TO_PEER));
    let mut stranger = Party::on(&bus);
    stranger.send(owner.party.id(), "1");
    stranger.send(owner.party.id(), "2");
    let wakes = alice.wait(owner.group, "3");
    assert_eq!(owner.party.take(), "1");
    assert_eq!(wakes.count(), 1);
    outcome(&mut alice.lane).unwrap();
}

#[test]
fn g5_new_terms_wake_whom_they_concern() {
    let bus = bus_with(Limits { queue_messages: 4, peer_messages: 1, ..Limits::default() });
    let mut owner = Owner::on(&bus, "club");
    let (mut alice, bob) = (Party::on(&bus), Party::on(&bus));
    let (_, peer) = owner.take_in(&alice, "club", Terms::new(TO_PEER));
    owner.take_in(&bob, "club", Terms::default());
    alice.send(peer, "fills the share");
    let wakes = alice.wait(owner.group, "1");
    owner.party.endpoint.set_terms(owner.group, alice.id(), Terms::default()).unwrap();
    assert_eq!(wakes.count(), 1, "the peer endpoint is no recipient any more");
    let first = outcome(&mut alice.lane).unwrap();
    assert_eq!(first.recipients, 1);

    for n in 2..=4 {
        alice.send(owner.group, &n.to_string());
    }
    let wakes = alice.wait(owner.group, "5");
    let drop = Terms::new(MemberFlags::DROP_WHEN_FULL);
    let changed = owner.party.endpoint.set_terms(owner.group, bob.id(), drop).unwrap();
    assert_eq!(wakes.count(), 1, "bob drops now");
    let receipt = outcome(&mut alice.lane).unwrap();
    assert_eq!((receipt.recipients, receipt.dropped), (0, 1));
    assert_rising(&[first.sequence, changed, receipt.sequence]);
}

#[test]
fn g4_new_terms_hold_from_their_place_on() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "club");
    let mut alice = Party::on(&bus);
    owner.take_in(&alice, "club", Terms::default());
    let before = alice.send(owner.group, "before");
    let terms = Terms::new(TO_PEER | MemberFlags::LOOPBACK);
    let changed = owner.party.endpoint.set_terms(owner.group, alice.id(), terms).unwrap();
    let after = alice.send(owner.group, "after");
    assert_rising(&[before.sequence, changed, after.sequence]);
    assert_eq!((before.recipients, after.recipients), (0, 2));
    assert_eq!(alice.take(), "after");
    assert!(matches!(alice.reader.try_receive(), Ok(Delivery::Flags { .. })), "it is told");
    assert_eq!(text(&owner.heard().1), "after");
}

/// No flags, and a filter on the member's behalf.
fn filtered(filter: &str) -> Terms {
    let mut terms = Terms::default();
    terms.filter = Some(filter.parse().unwrap());
    terms
}

#[test]
fn g4_a_member_is_told_of_other_flags_and_not_of_its_owners_filter() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "club");
    let (mut alice, mut bob) = (Party::on(&bus), Party::on(&bus));
    owner.take_in(&alice, "club", Terms::default());
    owner.take_in(&bob, "club", Terms::default());
    let set =
        |who: &Party, terms| owner.party.endpoint.set_terms(owner.group, who.id(), terms).unwrap();
    let hidden = filtered("key=k");
    set(&alice, hidden.clone());
    assert!(matches!(alice.reader.try_receive(), Err(ReceiveError::Empty)), "it cannot see that");
    bob.send(owner.group, "rejected");
    // What was queued comes first, and of several changes the last is told.
    set(&bob, Terms::new(MemberFlags::LOOPBACK));
    bob.send(owner.group, "mine");
    let last = set(&bob, Terms::new(MemberFlags::DROP_WHEN_FULL));
    assert_eq!(bob.take(), "mine");
    let Ok(Delivery::Flags { group, flags, sequence }) = bob.reader.try_receive() else {
        panic!("told of its flags")
    };
    assert_eq!((group, flags, sequence), (owner.group, MemberFlags::DROP_WHEN_FULL, last));
    assert!(matches!(bob.reader.try_receive(), Err(ReceiveError::Empty)), "once");
    // Nobody is told of a membership that has ended.
    set(&bob, Terms::default());
    bob.endpoint.leave(owner.group).unwrap();
    assert!(matches!(bob.reader.try_receive(), Err(ReceiveError::Empty)));
}

#[test]
fn g8_owners_filters_for_one_member_are_bounded_and_take_nothing_of_its_own() {
    let bus = bus_with(Limits { filter_bytes: 100, ..Limits::default() });
    let mut owner = Owner::on(&bus, "club");
    let alice = Party::on(&bus);
    owner.take_in(&alice, "club", filtered("key=short"));
    alice.endpoint.set_filter(owner.group, Some("key=own".parse().unwrap())).unwrap();
    let long = filtered(&format!("key={}", "x".repeat(60)));
    let refused = owner.party.endpoint.set_terms(owner.group, alice.id(), long.clone());
    let is_limit = |error: GateError| error.to_string().contains("filter_bytes");
    assert!(is_limit(refused.unwrap_err()));
    let (second, _) = owner.party.endpoint.create_gated(&"other".parse().unwrap(), None).unwrap();
    let _asks = connect(&alice, "other");
    let refused = owner.party.endpoint.admit(second, alice.id(), long);
    assert!(is_limit(refused.unwrap_err()));
    owner.party.endpoint.set_terms(owner.group, alice.id(), Terms::default()).unwrap();
    let fits = filtered("key=fits");
    owner.party.endpoint.admit(second, alice.id(), fits).unwrap();
}

#[test]
fn g4_an_expelled_member_hears_nothing_later_and_is_told_why() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "club");
    let (mut alice, mut bob) = (Party::on(&bus), Party::on(&bus));
    let (_, peer) = owner.take_in(&alice, "club", Terms::default());
    owner.take_in(&bob, "club", Terms::default());
    bob.send(owner.group, "1");
    let end = owner.party.endpoint.expel(owner.group, alice.id(), "manners").unwrap();
    let later = bob.send(owner.group, "2");
    assert_eq!(later.recipients, 0);
    assert_eq!(alice.take(), "1");
    let Ok(Delivery::Evicted(told)) = alice.reader.try_receive() else { panic!("told of its end") };
    assert_eq!((told.sequence, told.cause), (end, EvictionCause::Expelled("manners".into())));
    assert_rising(&[end, later.sequence]);
    alice.send(peer, "sorry");
    assert_eq!(text(&owner.heard().1), "sorry", "it is still connected");
    owner.take_in(&alice, "club", Terms::default());
    let gone = owner.party.endpoint.expel(owner.group, EndpointId::from_raw(999), "");
    assert!(matches!(gone, Err(GateError::NotAMember(..))));
}

#[test]
fn g5_an_expelled_members_waiting_send_ends() {
    let bus = bus(1);
    let mut owner = Owner::on(&bus, "club");
    let (mut alice, bob) = (Party::on(&bus), Party::on(&bus));
    owner.take_in(&alice, "club", Terms::default());
    owner.take_in(&bob, "club", Terms::default());
    alice.send(owner.group, "1");
    let wakes = alice.wait(owner.group, "2");
    owner.party.endpoint.expel(owner.group, alice.id(), "").unwrap();
    assert_eq!(wakes.count(), 1);
    assert_eq!(outcome(&mut alice.lane), Err(SendError::NotAMember(owner.group, alice.id())));
}

#[test]
fn g7_what_a_dropping_peer_endpoint_misses_is_told() {
    let bus = bus_with(Limits { queue_messages: 8, peer_messages: 1, ..Limits::default() });
    let mut owner = Owner::on(&bus, "club");
    let mut alice = Party::on(&bus);
    let (_, peer) = owner.take_in(&alice, "club", Terms::new(TO_PEER).dropping_at_peer());
    alice.send(owner.group, "1");
    for _ in 0..3 {
        let receipt = alice.send(owner.group, "missed");
        assert_eq!((receipt.recipients, receipt.dropped), (0, 1));
    }
    assert_eq!(text(&owner.heard().1), "1");
    alice.send(owner.group, "5");
    let Delivery::FromPeer { missed: Some(gap), .. } = owner.next() else { panic!("a gap") };
    assert_eq!(gap.count, 3);
    alice.send(owner.group, "6");
    alice.send(owner.group, "missed");
    owner.heard();
    assert_eq!(gap_of(owner.next()), (owner.group, peer, 1), "told alone when nothing follows");
    assert!(owner.is_idle());
}

#[test]
fn g8_the_backlog_is_bounded_and_a_withdrawal_frees_its_place() {
    let bus = bus(8);
    let mut owner = Party::on(&bus);
    let name = "club".parse().unwrap();
    owner.endpoint.create_gated(&name, Some(2)).unwrap();
    let [first, second, third] = [(); 3].map(|()| Party::on(&bus));
    let _first = connect(&first, "club");
    let waits = connect(&second, "club");
    let refused = third.endpoint.connect(&name, NONE).unwrap_err();
    assert!(matches!(refused, JoinError::Limit(LimitExceeded { limit: "backlog", value: 2, .. })));
    let twice = first.endpoint.connect(&name, NONE).unwrap_err();
    assert!(matches!(twice, JoinError::Limit(_) | JoinError::AlreadyCandidate(..)));
    assert_eq!(waits.withdraw(), Err(JoinError::Withdrawn(name.clone())));
    let _third = connect(&third, "club");
    let told = std::iter::from_fn(|| owner.reader.try_receive().ok());
    assert_eq!(told.filter(|told| matches!(told, Delivery::Candidate(_))).count(), 3);
}

#[test]
fn g8_an_owner_that_does_not_read_is_not_flooded_with_candidates() {
    let bus = bus_with(Limits { backlog: 4, ..Limits::default() });
    let mut owner = Owner::on(&bus, "club");
    let guest = Party::on(&bus);
    let name = "club".parse().unwrap();
    for _ in 0..4 {
        drop(guest.endpoint.connect(&name, NONE).unwrap());
    }
    let refused = guest.endpoint.connect(&name, NONE).unwrap_err();
    assert!(matches!(refused, JoinError::Limit(_)), "{refused}");
    while !owner.is_idle() {}
    connect(&guest, "club").withdraw().unwrap_err();
}

#[test]
fn g8_a_candidate_finds_room_in_its_owners_queue_or_is_refused() {
    let bus = bus(2);
    let mut owner = Owner::on(&bus, "club");
    let [mut alice, bob] = [(); 2].map(|()| Party::on(&bus));
    let name: bus_core::GroupName = "club".parse().unwrap();
    alice.send(owner.party.id(), "1");
    alice.send(owner.party.id(), "2");
    let waits = alice.wait(owner.party.id(), "3");
    let refused = bob.endpoint.connect(&name, NONE).unwrap_err();
    assert_eq!(refused, JoinError::OwnerBusy(name.clone()));
    assert_eq!((owner.party.take(), waits.count()), ("1".to_owned(), 1));
    outcome(&mut alice.lane).unwrap();
    assert_eq!(owner.party.take_all(), ["2", "3"]);
    let _bob = connect(&bob, "club");
    owner.candidate();
}

#[test]
fn g8_a_stalled_owner_costs_its_members_send_to_peer_and_is_told() {
    let limits = Limits {
        queue_messages: 8,
        peer_messages: 1,
        stall: std::time::Duration::from_secs(1),
        ..Limits::default()
    };
    let bus = bus_with(limits);
    let mut owner = Owner::on(&bus, "club");
    let (mut alice, mut bob) = (Party::on(&bus), Party::on(&bus));
    let (_, peer) = owner.take_in(&alice, "club", Terms::new(TO_PEER));
    let (_, bobs) = owner.take_in(&bob, "club", Terms::new(TO_PEER));
    alice.send(owner.group, "1");
    bob.send(owner.group, "2");
    let waits = [alice.wait(owner.group, "3"), bob.wait(owner.group, "4")];
    let mut direct = alice.endpoint.lane().unwrap();
    crate::given::wait(&mut direct, peer, "private");
    let mut evictions = Vec::new();
    for second in 1..=4 {
        evictions.extend(bus.tick(std::time::Duration::from_secs(second)));
    }
    assert_eq!(waits.map(|wakes| wakes.count()), [1, 1]);
    assert_eq!(outcome(&mut alice.lane).unwrap().recipients, 1, "bob only");
    assert_eq!(outcome(&mut direct), Err(SendError::RecipientStalled(peer)));
    assert!(evictions.iter().all(|e| e.cause == EvictionCause::PeerStalled), "{evictions:?}");
    assert_eq!([bob.take(), bob.take()], ["1", "3"], "nobody was put out of the group");
    let Ok(Delivery::Flags { flags: NONE, .. }) = bob.reader.try_receive() else {
        panic!("its messages go to the owner no more")
    };
    let mut stalled = Vec::new();
    while let Ok(delivery) = owner.party.reader.try_receive() {
        if let Delivery::Peer { peer, change: PeerChange::Stalled, group, .. } = delivery {
            assert_eq!(group, owner.group);
            stalled.push(peer);
        }
    }
    stalled.sort();
    assert_eq!(stalled, [peer, bobs]);
    owner.party.endpoint.set_terms(owner.group, alice.id(), Terms::new(TO_PEER)).unwrap();
    alice.send(owner.group, "heard again");
    assert_eq!(text(&owner.heard().1), "heard again");
}

#[test]
fn g9_a_gone_owner_lets_its_members_go_on_and_nobody_in() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "club");
    let [mut alice, mut bob, carol] = [(); 3].map(|()| Party::on(&bus));
    let name: bus_core::GroupName = "club".parse().unwrap();
    let (_, peer) = owner.take_in(&alice, "club", Terms::new(TO_PEER));
    owner.take_in(&bob, "club", Terms::new(TO_PEER));
    let group = owner.group;
    alice.send(group, "1");
    let mut request = connect(&carol, "club");
    let wakes = Wakes::new();
    assert!(request.sleep(wakes.waker()));
    drop(owner);
    assert_eq!(wakes.count(), 1);
    assert_eq!(request.poll_outcome(), Some(Err(JoinError::OwnerGone(name.clone()))));
    assert_eq!(
        carol.endpoint.connect(&name, NONE).unwrap_err(),
        JoinError::OwnerGone(name.clone())
    );
    assert_eq!(alice.send(group, "2").recipients, 1, "they go on");
    assert_eq!([bob.take(), bob.take()], ["1", "2"]);
    assert!(matches!(bob.reader.try_receive(), Ok(Delivery::Flags { .. })));
    assert_eq!(alice.try_send(peer, "?"), Err(SendError::NoSuchEndpoint(peer)));
    alice.endpoint.leave(group).unwrap();
    assert!(bus.find_group(&name).is_some());
    bob.endpoint.leave(group).unwrap();
    assert!(bus.find_group(&name).is_none(), "it ends with its last member");
}

#[test]
fn g4_members_are_told_that_their_send_to_peer_went_with_the_owner() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "club");
    let (mut alice, mut bob) = (Party::on(&bus), Party::on(&bus));
    let loopback = TO_PEER | MemberFlags::LOOPBACK;
    owner.take_in(&alice, "club", Terms::new(loopback));
    owner.take_in(&bob, "club", Terms::default());
    let group = owner.group;
    let before = bob.send(group, "queued").sequence;
    drop(owner);
    let after = bob.send(group, "later").sequence;
    assert_eq!(alice.take(), "queued", "what was queued comes first");
    assert_eq!(alice.take(), "later");
    let Ok(Delivery::Flags { group: of, flags, sequence }) = alice.reader.try_receive() else {
        panic!("told of its flags")
    };
    assert_eq!((of, flags), (group, MemberFlags::LOOPBACK));
    assert!(before < sequence && sequence < after, "at the place of the owner's end");
    assert!(matches!(alice.reader.try_receive(), Err(ReceiveError::Empty)), "once");
    assert!(matches!(bob.reader.try_receive(), Err(ReceiveError::Empty)), "it has lost nothing");
}

#[test]
fn g9_what_waits_for_an_owner_that_is_gone_goes_on_or_ends() {
    let bus = bus_with(Limits { queue_messages: 8, peer_messages: 1, ..Limits::default() });
    let mut owner = Owner::on(&bus, "club");
    let (mut alice, mut bob) = (Party::on(&bus), Party::on(&bus));
    let (_, peer) = owner.take_in(&alice, "club", Terms::new(TO_PEER));
    owner.take_in(&bob, "club", Terms::default());
    let group = owner.group;
    alice.send(group, "1");
    let public = alice.wait(group, "2");
    let mut direct = alice.endpoint.lane().unwrap();
    let private = crate::given::wait(&mut direct, peer, "private");
    drop(owner);
    assert_eq!((public.count(), private.count()), (1, 1));
    assert_eq!(outcome(&mut alice.lane).unwrap().recipients, 1);
    assert_eq!(outcome(&mut direct), Err(SendError::NoSuchEndpoint(peer)));
    assert_eq!(bob.take_all(), ["1", "2"]);
}

#[test]
fn g9_an_owner_that_shuts_its_queue_is_gone_for_candidates() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "club");
    let mut alice = Party::on(&bus);
    owner.take_in(&alice, "club", Terms::new(TO_PEER));
    let group = owner.group;
    let bob = Party::on(&bus);
    let request = connect(&bob, "club");
    owner.party.endpoint.shutdown_receive();
    assert!(matches!(request.wait(), Err(JoinError::OwnerGone(_))));
    assert_eq!(alice.send(group, "still").recipients, 0);
    let closed = owner.party.endpoint.create_gated(&"other".parse().unwrap(), None);
    assert_eq!(closed, Err(CreateError::ReceiveShut(owner.party.id())));
}

#[test]
fn g9_the_owner_is_told_of_a_candidate_that_is_gone() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "club");
    let alice = Party::on(&bus);
    let (_, peer) = owner.take_in(&alice, "club", Terms::default());
    let id = alice.id();
    drop(alice);
    let Delivery::Peer { peer: told, change, .. } = owner.next() else { panic!("told") };
    assert_eq!((told, change), (peer, PeerChange::Closed));
    let gone = owner.party.endpoint.admit(owner.group, id, Terms::default());
    assert_eq!(gone, Err(GateError::NoCandidate(owner.group, id)));
    assert!(owner.is_idle());
}

#[test]
fn a_candidacy_that_is_dropped_leaves_nothing_behind() {
    let bus = bus(8);
    let mut owner = Owner::on(&bus, "club");
    let alice = Party::on(&bus);
    let request = connect(&alice, "club");
    owner.candidate();
    owner.party.endpoint.admit(owner.group, alice.id(), Terms::default()).unwrap();
    drop(request);
    assert_eq!(bus.find_group(&"club".parse().unwrap()).unwrap().members, 0);
}

#[test]
fn an_owners_filter_and_a_members_own_must_both_accept() {
    let bus = bus(64);
    let mut owner = Owner::on(&bus, "club");
    let (alice, mut bob) = (Party::on(&bus), Party::on(&bus));
    owner.take_in(&alice, "club", Terms::new(TO_PEER));
    let own = Some("key^=a.".parse().unwrap());
    let request = bob.endpoint.connect_with(&"club".parse().unwrap(), NONE, own).unwrap();
    owner.candidate();
    let terms = Terms::default().filtered("field.public=yes".parse().unwrap());
    owner.party.endpoint.admit(owner.group, bob.id(), terms).unwrap();
    request.wait().unwrap();
    let mut lane = alice.endpoint.lane().unwrap();
    let mut send = |key: &str, public: &str| {
        let attributes = bus_core::Attributes::builder().key(key).field("public", public);
        let attributes = attributes.build().unwrap();
        let draft = bus_core::Draft { attributes, ..bus_core::Draft::from(key) };
        lane.try_send(Destination::Group(owner.group), draft).unwrap()
    };
    let sent = [send("a.1", "yes"), send("a.2", "no"), send("b.1", "yes")];
    assert_eq!(sent.map(|receipt| receipt.recipients), [2, 1, 1], "the owner hears all of it");
    assert_eq!(bob.take_all(), ["a.1"]);
    bob.endpoint.set_filter(owner.group, None).unwrap();
    send("b.2", "no");
    send("b.3", "yes");
    assert_eq!(bob.take_all(), ["b.3"], "it cannot take away its owner's");
    owner.party.endpoint.set_terms(owner.group, bob.id(), Terms::default()).unwrap();
    send("b.4", "no");
    assert_eq!(bob.take_all(), ["b.4"]);
}

#[test]
fn a_request_to_the_peer_endpoint_is_answered_by_the_owner() {
    let bus = bus_with(Limits { queue_messages: 8, peer_messages: 2, ..Limits::default() });
    let mut owner = Owner::on(&bus, "club");
    let mut alice = Party::on(&bus);
    let (_, peer) = owner.take_in(&alice, "club", Terms::default());
    let ask = |text: &str| bus_core::Draft {
        kind: bus_core::Kind::Request { repeatable: false },
        ..bus_core::Draft::from(text)
    };
    let to = Destination::Endpoint(peer);
    let asked = alice.lane.try_send(to, ask("may I?")).unwrap().sequence;
    let (_, request) = owner.heard();
    assert!(request.is_request());
    owner.party.send(Destination::Caller(request.sequence()), "you may");
    assert_eq!(alice.take(), "you may");
    assert_eq!(request.sequence(), asked);
    // One that nobody waits for any more is passed over, and gives its share back.
    for _ in 0..4 {
        let asked = alice.lane.try_send(to, ask("never mind")).unwrap().sequence;
        assert!(alice.endpoint.cancel_request(asked));
        let _ = alice.reader.try_receive();
        assert!(owner.is_idle());
    }
    alice.send(peer, "1");
    alice.send(peer, "2");
    assert_eq!(full(alice.try_send(peer, "3")).1, 1);
}

#[test]
fn g9_a_request_that_lies_unread_at_an_owner_that_is_gone_has_its_outcome() {
    let bus = bus_with(Limits::default());
    let mut owner = Owner::on(&bus, "club");
    let mut alice = Party::on(&bus);
    let (_, peer) = owner.take_in(&alice, "club", Terms::default());
    let ask = bus_core::Draft {
        kind: bus_core::Kind::Request { repeatable: false },
        ..bus_core::Draft::from("may I?")
    };
    let asked = alice.lane.try_send(Destination::Endpoint(peer), ask).unwrap().sequence;
    drop(owner);
    let outcome =
        std::iter::from_fn(|| alice.reader.try_receive().ok()).find_map(
            |delivery| match delivery {
                Delivery::Outcome(outcome) => Some((outcome.request, outcome.why)),
                _ => None,
            },
        );
    assert_eq!(outcome, Some((asked, bus_core::RequestEnd::Gone)));
}
