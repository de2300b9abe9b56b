//! Gated groups between processes: owners, candidates, members, and what becomes of each when
//! another one dies.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::thread;

use bus_client::{
    Bus, Candidate, Event, Gate, GateError, JoinError, JoinOptions, Member, Message, Outgoing,
    SendError, Terms,
};
use bus_core::wire::{ClientFrame, FailureCode, Notice, Request, Response};
use bus_core::{Destination, MemberFlags};
use nix::sys::signal::Signal;
use tests::broker::Broker;
use tests::deadline::{DEADLINE, eventually};
use tests::raw::name;
use tests::transports::run_by_each;

#[path = "../../bus-client/examples/moderator.rs"]
#[expect(dead_code, reason = "its main is for people")]
mod moderator;

fn connect(broker: &Broker) -> Bus {
    Bus::builder().address(broker.socket().to_str().unwrap()).connect().unwrap()
}

fn next(bus: &Bus) -> Event {
    bus.receive_deadline(DEADLINE).unwrap().expect("an event in time")
}

fn candidate(owner: &Bus) -> Candidate {
    match next(owner) {
        Event::Candidate(candidate) => *candidate,
        other => panic!("a candidate was expected, not {other:?}"),
    }
}

fn message(bus: &Bus) -> Message {
    match next(bus) {
        Event::Message(message) => message,
        other => panic!("a message was expected, not {other:?}"),
    }
}

/// An owner and its gated group.
fn gate(broker: &Broker, group: &str) -> (Bus, Gate) {
    let owner = connect(broker);
    let gate = owner.create_gated(group).unwrap();
    (owner, gate)
}

#[test]
fn an_owner_admits_clients_and_hears_what_they_send() {
    let broker = Broker::start();
    let (owner, gate) = gate(&broker, "club");
    let [alice, bob] = [connect(&broker), connect(&broker)];
    let members: Vec<_> = [&alice, &bob]
        .into_iter()
        .map(|bus| {
            thread::scope(|scope| {
                let joining = scope.spawn(|| bus.join("club").unwrap());
                let asks = candidate(&owner);
                assert_eq!(asks.endpoint, bus.endpoint_id());
                assert_eq!(asks.credentials.pid, std::process::id());
                let admitted = gate.admit(asks.endpoint, Terms::new().send_to_peer(true)).unwrap();
                let member = joining.join().unwrap();
                assert_eq!(member.joined().sequence, admitted);
                let admission = member.joined().admission.clone().unwrap();
                assert_eq!((admission.owner, admission.peer), (owner.endpoint_id(), asks.peer));
                member
            })
        })
        .collect();
    let receipt = members[0].send("hello").unwrap();
    assert_eq!(receipt.recipients, 2);
    let heard = message(&owner);
    assert_eq!((heard.group(), heard.text()), (Some("club"), Some("hello")));
    assert_eq!(heard.peer(), Some(members[0].joined().admission.clone().unwrap().peer));
    assert_eq!(heard.sequence(), message(&bob).sequence());

    members[1].peer().unwrap().send("a word in private").unwrap();
    let heard = message(&owner);
    assert_eq!((heard.group(), heard.sender()), (None, bob.endpoint_id()));
    owner.endpoint(bob.endpoint_id()).send("yes?").unwrap();
    assert_eq!(message(&bob).text(), Some("yes?"));

    let end = gate.expel(alice.endpoint_id(), "manners").unwrap();
    let Event::Expelled(told) = next(&alice) else { panic!("alice is told") };
    assert_eq!((told.sequence, &*told.reason), (end, "manners"));
    assert!(matches!(members[0].send("still here?"), Err(SendError::NotAMember(_))));
    members[0].peer().unwrap().send("sorry").unwrap();
    assert_eq!(message(&owner).text(), Some("sorry"));
}

/// What the kernel patch was for: an owner that admits, watches and filters, as the example does.
#[test]
fn an_owner_admits_watches_through_send_to_peer_and_filters_for_its_members() {
    let broker = Broker::start();
    let room = connect(&broker);
    let topics = ["cats", "dogs"].map(str::to_owned).into();
    let moderator = thread::spawn(move || {
        moderator::moderate(&room, "room", topics).map_err(|error| error.to_string())
    });
    broker.until("the room is open", |stats| stats.groups == 1);
    let [alice, bob] = [connect(&broker), connect(&broker)];
    let [of_alice, of_bob] = [&alice, &bob].map(|bus| bus.join("room").unwrap());
    let say = |member: &Member, topic: &str, text: &str| {
        member.send(Outgoing::from(text).key(topic)).unwrap().recipients
    };
    // The other member and the peer endpoint, or the peer endpoint alone.
    assert_eq!(say(&of_bob, "cats", "purr"), 2);
    assert_eq!(say(&of_bob, "fish", "blub"), 1, "no topic in here");
    assert_eq!(say(&of_bob, "dogs", "WOOF"), 2);
    assert_eq!(say(&of_bob, "dogs", "WOOF"), 2);
    assert_eq!(say(&of_alice, "dogs", "QUIET"), 2);
    let heard: Vec<_> = (0..3).map(|_| message(&alice).text().unwrap().to_owned()).collect();
    assert_eq!(heard, ["purr", "WOOF", "WOOF"]);
    eventually("the topic is closed", || match say(&of_bob, "dogs", "anybody?") {
        1 => Ok(()),
        _ => Err(format!("alice hears {:?}", message(&alice).text())),
    });
    assert_eq!(say(&of_bob, "cats", "PURR"), 2);
    let Event::Expelled(told) = skip_messages(&bob) else { panic!("bob is put out") };
    assert_eq!(&*told.reason, "no shouting in here");
    assert_eq!(message(&alice).text(), Some("PURR"), "of the other topic she hears");
    drop(broker);
    assert!(moderator.join().unwrap().is_err(), "it ends with the broker");
}

/// The first event that is no message.
fn skip_messages(bus: &Bus) -> Event {
    loop {
        match next(bus) {
            Event::Message(_) => {}
            other => return other,
        }
    }
}

#[test]
fn private_messages_pass_before_the_admission_and_a_refusal_says_why() {
    let broker = Broker::start();
    let (owner, gate) = gate(&broker, "club");
    let alice = connect(&broker);
    let mut request = alice.connect_to("club", JoinOptions::new().loopback(true)).unwrap();
    let asks = candidate(&owner);
    assert_eq!(asks.wishes, Terms::new().loopback(true));
    request.peer().send("it is me").unwrap();
    assert_eq!(message(&owner).text(), Some("it is me"));
    assert!(request.join_deadline(std::time::Duration::ZERO).unwrap().is_none());
    gate.refuse(asks.endpoint, "full house").unwrap();
    match request.join() {
        Err(JoinError::RefusedByOwner { reason, .. }) => assert_eq!(reason, "full house"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(gate.admit(asks.endpoint, Terms::new()), Err(GateError::NoCandidate(_))));
}

#[test]
fn a_request_that_is_dropped_is_withdrawn() {
    let broker = Broker::start();
    let (owner, gate) = gate(&broker, "club");
    let alice = connect(&broker);
    drop(alice.connect_to("club", JoinOptions::new()).unwrap());
    alice.ping().unwrap();
    let asks = candidate(&owner);
    assert!(matches!(gate.admit(asks.endpoint, Terms::new()), Err(GateError::NoCandidate(_))));
    // One that waits in a join, too.
    let mut request = alice.connect_to("club", JoinOptions::new()).unwrap();
    assert!(request.join_deadline(std::time::Duration::ZERO).unwrap().is_none());
    drop(request);
    alice.ping().unwrap();
    let refused = loop {
        match next(&owner) {
            Event::Candidate(asks) => break gate.admit(asks.endpoint, Terms::new()),
            Event::PeerClosed(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(refused, Err(GateError::NoCandidate(_))), "{refused:?}");
}

#[test]
fn g5_a_member_waits_for_its_peer_endpoint_and_goes_on_when_the_terms_change() {
    let broker = Broker::with_limits("peer_messages = 1\nstall = \"600s\"");
    let (owner, gate) = gate(&broker, "club");
    let alice = connect(&broker);
    let member = thread::scope(|scope| {
        let joining = scope.spawn(|| alice.join("club").unwrap());
        gate.admit(candidate(&owner).endpoint, Terms::new().send_to_peer(true)).unwrap();
        joining.join().unwrap()
    });
    member.send("fills the share").unwrap();
    let peer = member.joined().admission.clone().unwrap().peer;
    match member.try_send("no room") {
        Err(SendError::WouldBlock { full, full_count }) => {
            assert_eq!((full, full_count), (vec![peer], 1));
        }
        other => panic!("{other:?}"),
    }
    let waits = member.start_send("waits").unwrap();
    broker.until("the member waits", |stats| stats.waiting_sends == 1);
    let terms = Terms::new().send_to_peer(true).drop_at_peer(true);
    let changed = gate.set_terms(alice.endpoint_id(), terms).unwrap();
    let receipt = waits.wait().unwrap();
    assert_eq!((receipt.recipients, receipt.dropped), (0, 1));
    assert!(receipt.sequence > changed);
    assert_eq!(message(&owner).text(), Some("fills the share"));
    let Event::PeerGap(missed) = next(&owner) else { panic!("the owner is told") };
    assert_eq!((missed.peer, missed.gap.count), (peer, 1));
}

#[test]
fn g8_an_owner_that_does_not_read_loses_send_to_peer_and_nobody_is_held_up() {
    let broker = Broker::with_limits("peer_messages = 1\nstall = \"300ms\"");
    let mut owner = broker.raw();
    let group =
        owner.call(Request::CreateGated { group: name("club"), backlog: None, stall_ms: None });
    let Ok(Response::Created { group_id, .. }) = group else { panic!("{group:?}") };
    let alice = connect(&broker);
    let member = thread::scope(|scope| {
        let joining = scope.spawn(|| alice.join("club").unwrap());
        let Notice::Candidate { candidate, .. } = owner.notice() else { panic!("somebody asks") };
        let flags = MemberFlags::SEND_TO_PEER;
        let admit = Request::Admit {
            group_id,
            endpoint: candidate,
            flags,
            drop_at_peer: false,
            filter: None,
        };
        assert!(matches!(owner.call(admit), Ok(Response::Changed { .. })));
        joining.join().unwrap()
    });
    // The raw owner returns no credit.
    member.send("1").unwrap();
    assert_eq!(member.send("2").unwrap().recipients, 0, "the stall limit decides");
    let first = owner.message();
    owner.credit(2, first.charged_bytes());
    match owner.notice() {
        Notice::PeerStalled { peer, .. } => {
            assert_eq!(peer, member.joined().admission.clone().unwrap().peer);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn g9_members_go_on_when_their_owner_is_killed_and_candidates_are_told() {
    let broker = Broker::start();
    let mut owner = broker.unisono("create club --gated --json").input_piped().start();
    assert_eq!(owner.json()["type"], "created");
    let listener = broker.unisono("listen club --json").start();
    let asks = owner.json();
    assert_eq!(
        (&asks["type"], asks["pid"].as_u64()),
        (&"candidate".into(), Some(listener.pid().into()))
    );
    let mut decisions = owner.stdin();
    writeln!(decisions, "admit {} send-to-peer", asks["endpoint"]).unwrap();
    assert_eq!(owner.json()["type"], "admitted");
    assert_eq!(listener.json()["flags"], serde_json::json!(["send-to-peer"]));

    let bob = connect(&broker);
    let waits = thread::spawn({
        let bob = bob.clone();
        move || bob.join("club")
    });
    assert_eq!(owner.json()["type"], "candidate");
    owner.signal(Signal::SIGKILL);
    let _ = owner.end().killed_by(Signal::SIGKILL);
    assert!(matches!(waits.join().unwrap(), Err(JoinError::OwnerGone(_))));
    assert!(matches!(bob.join("club"), Err(JoinError::OwnerGone(_))));
    assert_eq!(bob.members("club").unwrap().members.len(), 1);
    let lost = listener.json();
    assert_eq!((&lost["type"], &lost["flags"]), (&"flags".into(), &serde_json::json!([])));
    let ended = listener.end_by(Signal::SIGINT).with(0);
    assert_eq!(ended.json_lines().last().unwrap()["type"], "end");
    broker.until("the group has ended", |stats| stats.groups == 0);
}

#[test]
fn g9_an_owner_is_told_of_members_that_are_killed() {
    let broker = Broker::start();
    let (owner, gate) = gate(&broker, "club");
    let listener = broker.unisono("listen club --json").start();
    let asks = candidate(&owner);
    gate.admit(asks.endpoint, Terms::new()).unwrap();
    assert_eq!(listener.json()["type"], "joined");
    listener.signal(Signal::SIGKILL);
    let _ = listener.end().killed_by(Signal::SIGKILL);
    let Event::PeerClosed(told) = next(&owner) else { panic!("the owner is told") };
    assert_eq!(told.peer, asks.peer);
    assert!(matches!(gate.expel(asks.endpoint, ""), Err(GateError::NotAMember(_))));
}

#[test]
fn g8_two_hundred_candidates_find_a_bounded_backlog() {
    let broker = Broker::start();
    let (owner, gate) = gate(&broker, "club");
    let mut guests: Vec<_> = (0..200).map(|_| broker.raw()).collect();
    let mut waiting = 0;
    for guest in &mut guests {
        let connect =
            Request::Connect { group: name("club"), flags: MemberFlags::empty(), filter: None };
        match guest.call(connect) {
            Ok(Response::Connected { .. }) => waiting += 1,
            Err(failure) => assert_eq!(failure.code, FailureCode::LimitExceeded, "{failure}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(waiting, 64);
    for _ in 0..waiting {
        gate.admit(candidate(&owner).endpoint, Terms::new()).unwrap();
    }
    assert_eq!(owner.members("club").unwrap().members.len(), 64);
    let group = Destination::Group(gate.group_id());
    let refused = guests.last_mut().unwrap().send(group, b"let me in").unwrap_err();
    assert_eq!(refused.code, FailureCode::NotAMember);
    assert_eq!(guests[0].send(group, b"hello").unwrap().recipients, 63);
    drop(guests);
    broker.until("all are gone", |stats| stats.connections == 2);
    assert_eq!(owner.members("club").unwrap().members.len(), 0);
}

#[test]
fn hostile_requests_are_answered_and_harm_nobody() {
    let broker = Broker::start();
    let (owner, gate) = gate(&broker, "club");
    let mut stranger = broker.raw();
    let (group_id, endpoint) = (gate.group_id(), owner.endpoint_id());
    let text = String::new();
    let rows = [
        (
            Request::Admit {
                group_id,
                endpoint,
                flags: MemberFlags::all(),
                drop_at_peer: true,
                filter: None,
            },
            FailureCode::NotTheOwner,
        ),
        (Request::Refuse { group_id, endpoint, text: text.clone() }, FailureCode::NotTheOwner),
        (Request::Expel { group_id, endpoint, text }, FailureCode::NotTheOwner),
        (
            Request::SetTerms {
                group_id,
                endpoint,
                flags: MemberFlags::all(),
                drop_at_peer: false,
                filter: None,
            },
            FailureCode::NotTheOwner,
        ),
        (Request::ClosePeer { peer: endpoint }, FailureCode::NoSuchEndpoint),
        (Request::Withdraw { group: name("club") }, FailureCode::NoCandidate),
        (
            Request::Connect { group: name("nowhere"), flags: MemberFlags::empty(), filter: None },
            FailureCode::NoSuchGroup,
        ),
        (
            Request::CreateGated { group: name("club"), backlog: Some(0), stall_ms: None },
            FailureCode::GroupExists,
        ),
    ];
    for (request, code) in rows {
        let answer = stranger.call(request.clone()).unwrap_err();
        assert_eq!(answer.code, code, "{request:?}");
    }
    // Two joins wait with one request, and one that asks again after a withdrawal is another one.
    let join = Request::Join {
        group: name("club"),
        flags: MemberFlags::empty(),
        create: false,
        filter: None,
        retain: None,
        state: false,
    };
    let (first, second) = (stranger.next_serial(), stranger.next_serial());
    for serial in [first, second] {
        stranger.say(&ClientFrame::Call {
            endpoint: bus_core::wire::Handle::FIRST,
            serial,
            request: join.clone(),
        });
    }
    assert_eq!(stranger.answer(second).unwrap_err().code, FailureCode::AlreadyCandidate);
    assert!(matches!(
        stranger.call(Request::Withdraw { group: name("club") }),
        Ok(Response::Withdrawn)
    ));
    assert_eq!(stranger.answer(first).unwrap_err().code, FailureCode::Cancelled);
    let peer = match stranger.call(Request::Connect {
        group: name("club"),
        flags: MemberFlags::empty(),
        filter: None,
    }) {
        Ok(Response::Connected { peer, .. }) => peer,
        other => panic!("{other:?}"),
    };
    let mut other = broker.raw();
    let refused = other.send(Destination::Endpoint(peer), b"not mine").unwrap_err();
    assert_eq!(refused.code, FailureCode::NoSuchEndpoint);
    drop(stranger);
    owner.ping().unwrap();
}

#[test]
fn the_command_line_admits_by_rule() {
    let broker = Broker::start();
    let owner = broker.unisono("admit club --send-to-peer --json").start();
    assert_eq!(owner.json()["type"], "created");
    let listener = broker.unisono("listen club -n 1").start();
    assert_eq!(owner.json()["type"], "candidate");
    assert_eq!(owner.json()["type"], "admitted");
    let alice = connect(&broker);
    let member = alice.join("club").unwrap();
    assert_eq!(
        (owner.json()["type"].clone(), owner.json()["type"].clone()),
        ("candidate".into(), "admitted".into())
    );
    member.send("hello").unwrap();
    assert_eq!(listener.line(), "hello");
    let heard = owner.json();
    assert_eq!((&heard["type"], &heard["payload"]), (&"message".into(), &"hello".into()));
    assert_eq!(heard["peer"], member.joined().admission.clone().unwrap().peer.get());
    let _ = listener.end().with(0);
    let _ = owner.end_by(Signal::SIGTERM).with(0);
    assert!(member.send("alone").is_ok(), "members go on");

    let strict = broker.unisono("admit other --uid 4294967294 --refusal strangers").start();
    let refused = loop {
        match alice.join_with("other", JoinOptions::new().create(false)) {
            Err(JoinError::NoSuchGroup(_)) => thread::yield_now(),
            other => break other,
        }
    };
    assert!(
        matches!(refused, Err(JoinError::RefusedByOwner { reason, .. }) if reason == "strangers")
    );
    let _ = strict.end_by(Signal::SIGINT).with(0);
}

#[test]
fn what_is_promised_does_not_depend_on_how_bytes_travel() {
    run_by_each(&[5, 8, 9]);
}
