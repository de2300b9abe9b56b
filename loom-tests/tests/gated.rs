//! Gated groups: admissions, withdrawals, expulsions, and owners that go (G1, G4, G5, G9).

use std::task::Waker;

use bus_core_modelled::{
    Bus, Candidacy, Delivery, Destination, Endpoint, EndpointId, GateError, GroupId, JoinError,
    Limits, MemberFlags, SendError, Submitted, Terms,
};
use loom::thread;

use crate::given::{bus, bus_with, endpoints, explore, lane, reader};

/// A gated group `club` of `owner`'s.
fn club(owner: &Endpoint) -> GroupId {
    owner.create_gated(&"club".parse().expect("a good name"), None).expect("the first one").0
}

fn connect(candidate: &Endpoint) -> Candidacy {
    candidate.connect(&"club".parse().expect("a good name"), MemberFlags::empty()).expect("room")
}

/// Makes `member` one, and gives its peer endpoint.
fn admit(owner: &Endpoint, group: GroupId, member: &Endpoint, flags: MemberFlags) -> EndpointId {
    let request = connect(member);
    let peer = request.peer();
    owner.admit(group, member.id(), Terms::new(flags)).expect("a candidate");
    request.wait().expect("admitted");
    peer
}

fn small(bus_limits: u32, share: u32) -> Bus {
    bus_with(Limits { queue_messages: bus_limits, peer_messages: share, ..Limits::default() })
}

/// Given a candidate that asks what its request has come to while the owner admits it, when it hears
/// that it was admitted, then what others send to the group from then on reaches it.
#[test]
fn g4_a_candidate_that_hears_of_its_admission_is_a_member() {
    explore(|| {
        let bus = bus(8);
        let [owner, alice, bob] = endpoints(&bus);
        let group = club(&owner);
        admit(&owner, group, &bob, MemberFlags::empty());
        // Bob's lane knows the group, so it asks nobody who is in it.
        let mut bobs = lane(&bob);
        bobs.try_send(Destination::Group(group), "early").unwrap();
        let mut request = connect(&alice);
        let id = alice.id();
        let admitting = thread::spawn(move || {
            owner.admit(group, id, Terms::default()).unwrap();
            owner
        });
        if let Some(outcome) = request.poll_outcome() {
            outcome.unwrap();
            let receipt = bobs.try_send(Destination::Group(group), "hello").unwrap();
            assert_eq!(receipt.recipients, 1);
        }
        drop(admitting.join().unwrap());
    });
}

/// Given a candidate that withdraws while the owner admits it, then both have the same answer: it is
/// a member, or it is not.
#[test]
fn g4_a_withdrawal_against_an_admission_has_one_outcome() {
    explore(|| {
        let bus = bus(8);
        let [owner, alice] = endpoints(&bus);
        let group = club(&owner);
        let request = connect(&alice);
        let id = alice.id();
        let admitting = thread::spawn(move || {
            let admitted = owner.admit(group, id, Terms::default());
            (owner, admitted)
        });
        let outcome = request.withdraw();
        let (owner, admitted) = admitting.join().unwrap();
        match (outcome, admitted) {
            (Ok(joined), Ok(admitted)) => assert_eq!(joined, admitted),
            (Err(JoinError::Withdrawn(_)), Err(GateError::NoCandidate(..))) => {}
            different => panic!("{different:?}"),
        }
        drop(owner);
    });
}

/// Given a member that sends while the owner expels it, then its message is earlier than the end of
/// its membership, or it is told that it is none any more.
#[test]
fn g4_an_expelled_member_sends_nothing_more() {
    explore(|| {
        let bus = bus(8);
        let [owner, alice] = endpoints(&bus);
        let group = club(&owner);
        admit(&owner, group, &alice, MemberFlags::empty());
        let mut alices = lane(&alice);
        alices.try_send(Destination::Group(group), "early").unwrap();
        let id = alice.id();
        let expelling = thread::spawn(move || {
            let end = owner.expel(group, id, "manners").unwrap();
            (owner, end)
        });
        let sent = alices.try_send(Destination::Group(group), "late");
        let (owner, end) = expelling.join().unwrap();
        match sent {
            Ok(receipt) => assert!(receipt.sequence < end),
            Err(error) => assert_eq!(error, SendError::NotAMember(group, id)),
        }
        drop(owner);
    });
}

/// Given a send that goes to wait for room in a peer endpoint's share, when the owner takes what
/// fills it at the same time, then the send is committed.
#[test]
fn g5_a_place_freed_in_a_share_while_a_send_goes_to_wait_is_not_lost() {
    explore(|| {
        let bus = small(8, 1);
        let [owner, alice] = endpoints(&bus);
        let group = club(&owner);
        let peer = admit(&owner, group, &alice, MemberFlags::SEND_TO_PEER);
        let (mut owners, mut alices) = (reader(&owner), lane(&alice));
        assert!(matches!(owners.try_receive(), Ok(Delivery::Candidate(_))));
        alices.try_send(Destination::Endpoint(peer), "fills the share").unwrap();
        let reading = thread::spawn(move || {
            assert!(matches!(owners.try_receive(), Ok(Delivery::FromPeer { .. })));
            owners
        });
        let to = Destination::Group(group);
        let submitted = alices.submit(to, "waits", Waker::noop().clone()).unwrap();
        let owners = reading.join().unwrap();
        if submitted == Submitted::Waiting {
            alices.poll_outcome().expect("there is room, and nobody else would look").unwrap();
        }
        drop((owner, owners));
    });
}

/// Given a member with `SEND_TO_PEER` that sends while its owner goes, then the send reaches those
/// who are there: the owner does not take the group with it.
#[test]
fn g9_an_owner_that_goes_stops_nobody() {
    explore(|| {
        let bus = bus(8);
        let [owner, alice] = endpoints(&bus);
        let group = club(&owner);
        admit(&owner, group, &alice, MemberFlags::SEND_TO_PEER);
        let mut alices = lane(&alice);
        let going = thread::spawn(move || drop(owner));
        let receipt = alices.try_send(Destination::Group(group), "anybody?").unwrap();
        assert!(receipt.recipients <= 1);
        going.join().unwrap();
        let receipt = alices.try_send(Destination::Group(group), "nobody").unwrap();
        assert_eq!(receipt.recipients, 0);
    });
}
