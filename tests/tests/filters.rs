//! Receive filters, with real processes: who gets what, who waits for whom, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bus_core::wire::{BrokerFrame, ClientFrame, FailureCode, Handle, Request, Response, Serial};
use bus_core::{
    Attributes, Condition, Destination, Filter, FilterProgram, GroupId, MemberFlags, Receipt,
};
use nix::sys::signal::Signal;
use tests::broker::Broker;
use tests::process::{Launch, Process};
use tests::raw::{Answer, RawClient, id, name, send_frame};
use tests::trace::Trace;

fn filter(text: &str) -> Filter {
    text.parse().unwrap()
}

/// r6 = r1; r0 = the byte at 0; exit: whether the first byte of key and payload is not 0.
const FIRST_BYTE: [u8; 24] =
    [0xbf, 0x16, 0, 0, 0, 0, 0, 0, 0x30, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// Asks for a membership with this filter.
fn join_with(client: &mut RawClient, group: &str, filter: Filter) -> Answer<GroupId> {
    let flags = MemberFlags::empty();
    let request = Request::Join {
        group: name(group),
        flags,
        create: true,
        filter: Some(filter),
        retain: None,
        state: false,
    };
    match client.call(request)? {
        Response::Joined { group_id, .. } => Ok(group_id),
        other => panic!("{other:?}"),
    }
}

fn join(client: &mut RawClient, group: &str, text: &str) -> Destination {
    Destination::Group(join_with(client, group, filter(text)).unwrap())
}

fn set(client: &mut RawClient, to: Destination, filter: Option<Filter>) -> u64 {
    let Destination::Group(group_id) = to else { panic!("{to:?} is no group") };
    match client.call(Request::SetFilter { group_id, filter }) {
        Ok(Response::FilterSet { sequence }) => sequence.get(),
        other => panic!("{other:?}"),
    }
}

fn key(key: &str) -> Attributes {
    Attributes::builder().key(key).build().unwrap()
}

/// Writes a SEND with a key, which is its payload too.
fn post(client: &mut RawClient, to: Destination, text: &str) -> Serial {
    let serial = client.next_serial();
    let mut send = send_frame(id(serial), to, text.as_bytes());
    send.attributes = key(text);
    client.say(&ClientFrame::Send(send));
    serial
}

fn send(client: &mut RawClient, to: Destination, text: &str) -> Receipt {
    let serial = post(client, to, text);
    client.outcome(serial).unwrap()
}

/// Fills the queue of the member that `text` is for.
fn fill(client: &mut RawClient, to: Destination, text: &str) {
    for _ in 0..QUEUE {
        assert_eq!(send(client, to, text).recipients, 1);
    }
}

const QUEUE: usize = 4;

fn broker() -> Broker {
    Broker::with_limits("queue_messages = 4\nstall = \"600s\"")
}

#[test]
fn listeners_get_what_they_want_and_verify_knows() {
    let broker = Broker::start();
    let program = broker.file_with("first-byte", FIRST_BYTE);
    let listen = |name: &str, filters: &[&str]| -> Process {
        let launch = broker.unisono("listen --json g").output_to(&broker.file(name));
        let with = |launch: Launch, filter: &&str| launch.arg("--filter").arg(filter);
        filters.iter().fold(launch, with).start()
    };
    let bpf = format!("bpf:{}", program.display());
    let listeners = [
        ("all", listen("all", &[])),
        ("prefix", listen("prefix", &["key^=a."])),
        ("either", listen("either", &["key=b", "operation=Set"])),
        ("both", listen("both", &["key^=a. && field.unit=C"])),
        ("program", listen("program", &[&bpf])),
    ];
    let send = |line: &str| -> u64 {
        let sent = broker.unisono("send --json --wait-members 5 g").line(line).run().with(0);
        sent.json_lines()[0]["recipients"].as_u64().unwrap()
    };
    assert_eq!(send("one --key a.1"), 3);
    assert_eq!(send("two --key a.2 --field unit=C"), 4);
    assert_eq!(send("three --key b --operation Get"), 3);
    assert_eq!(send("four --operation Set"), 3);
    assert_eq!(send("five"), 2);

    let heard = listeners.map(|(name, process)| {
        // The end is behind all of it.
        let _ = process.end_by(Signal::SIGINT).with(0);
        let trace = Trace::read(&broker.file(name));
        (name, trace.messages.into_iter().map(|heard| heard.payload).collect::<Vec<_>>())
    });
    for ((name, heard), expected) in heard.into_iter().zip([
        vec!["one", "two", "three", "four", "five"],
        vec!["one", "two"],
        vec!["three", "four"],
        vec!["two"],
        vec!["one", "two", "three", "four", "five"],
    ]) {
        assert_eq!(heard, expected, "{name}");
    }
    let verify = broker.unisono("verify").arg(broker.file("all")).arg(broker.file("prefix"));
    let verified = verify.run().with(0);
    assert!(verified.output.contains("filter"), "{}", verified.output);
    let first = std::fs::read_to_string(broker.file("either")).unwrap();
    assert!(first.lines().next().unwrap().contains(r#""filter":"key=b || operation=Set""#));
}

#[test]
fn a_filter_that_is_none_is_told_before_anything_is_joined() {
    let broker = Broker::start();
    let nonsense = broker.file_with("nonsense", [0xff; 8]);
    for (filter, status, words) in [
        ("payload=x", 2, "key=KEY"),
        ("key=a && field.=b", 2, "1 to 255"),
        ("bpf:/no/such/file", 1, "/no/such/file"),
        (&format!("bpf:{}", nonsense.display()), 1, "nonsense"),
    ] {
        let ended = broker.unisono("listen g --filter").arg(filter).run().with(status);
        assert!(ended.errors.contains(words), "{filter}: {}", ended.errors);
    }
    assert_eq!(broker.raw().find("g").unwrap_err().code, FailureCode::NoSuchGroup);
}

#[test]
fn g5_a_stopped_listener_holds_up_only_what_it_wants() {
    let broker = broker();
    let stopped = broker.unisono("listen g --filter key^=slow.").start();
    broker.until_members("g", "it has joined", |members| members.len() == 1);
    stopped.stop();
    let mut sender = broker.raw();
    let group = Destination::Group(sender.find("g").unwrap());
    // Its process may still have taken some of it off the socket.
    loop {
        let serial = sender.next_serial();
        let mut send = send_frame(id(serial), group, b"fills");
        send.attributes = key("slow.1");
        send.head.flags = bus_core::wire::SendFlags::NONBLOCK;
        sender.say(&ClientFrame::Send(send));
        if sender.outcome(serial).is_err() {
            break;
        }
    }
    sender.resume();
    assert_eq!(send(&mut sender, group, "fast.1").recipients, 0);
    let _ = broker.unisono("send g x --key fast.2").run().with(0);
    let _ = broker.unisono("send g x --key slow.2 --nonblock").run().with(3);
    stopped.go_on();
    let _ = broker.unisono("send g x --key slow.3").run().with(0);
    let _ = stopped.end_by(Signal::SIGINT).with(0);
}

#[test]
fn g4_a_filter_is_changed_at_its_place_and_lets_go_who_waits() {
    let broker = broker();
    let (mut member, mut sender) = (broker.raw(), broker.raw());
    let group = join(&mut member, "g", "key^=a");
    fill(&mut sender, group, "a");
    let waits = post(&mut sender, group, "a.late");
    broker.until("it waits", |stats| stats.waiting_sends == 1);
    let changed = set(&mut member, group, Some(filter("key=b")));
    let receipt = sender.outcome(waits).unwrap();
    assert_eq!(receipt.recipients, 0);
    assert!(receipt.sequence.get() > changed);
    for _ in 0..QUEUE {
        assert_eq!(&member.receive().payload[..], b"a");
    }
    assert_eq!(send(&mut sender, group, "a").recipients, 0);
    assert_eq!(send(&mut sender, group, "b").recipients, 1);
    let all = set(&mut member, group, None);
    assert!(send(&mut sender, group, "c").sequence.get() > all);
    assert_eq!(&member.receive().payload[..], b"b");
    assert_eq!(&member.receive().payload[..], b"c");

    let stranger = sender.call(Request::SetFilter { group_id: id_of(group), filter: None });
    assert_eq!(stranger.unwrap_err().code, FailureCode::NotAMember);
}

fn id_of(to: Destination) -> GroupId {
    match to {
        Destination::Group(group) => group,
        _ => panic!("{to:?} is no group"),
    }
}

#[test]
fn g6_a_watch_is_about_a_key() {
    let broker = broker();
    let (mut member, mut sender) = (broker.raw(), broker.raw());
    let group = join(&mut member, "g", "key^=a");
    fill(&mut sender, group, "a");
    let watch = |client: &mut RawClient, text: &str| -> Serial {
        let serial = client.next_serial();
        let (endpoint, attributes) = (Handle::FIRST, key(text));
        client.say(&ClientFrame::Watch { endpoint, serial, destination: group, attributes });
        serial
    };
    let writable = |client: &mut RawClient| -> Serial {
        client.hear_that(|frame| match frame {
            BrokerFrame::Writable { serial, .. } => Some(*serial),
            _ => None,
        })
    };
    let wanted = watch(&mut sender, "a");
    let unwanted = watch(&mut sender, "b");
    assert_eq!(writable(&mut sender), unwanted, "the other one waits");
    let _ = member.receive();
    assert_eq!(writable(&mut sender), wanted);
}

/// G8: hostile filters are refused, and neither harm the connection nor stay behind.
#[test]
fn g8_filters_are_bounded_and_a_bad_one_is_refused() {
    let broker =
        Broker::with_limits("filter_bytes = 160\nfilter_instructions = 6\nqueue_messages = 4");
    let mut client = broker.raw();
    let program = || {
        Filter::new([vec![Condition::Program(FilterProgram::load(&FIRST_BYTE).unwrap())]]).unwrap()
    };
    join_with(&mut client, "one", program()).unwrap();
    join_with(&mut client, "two", filter("key=a")).unwrap();
    let failure = join_with(&mut client, "three", filter("key=a")).unwrap_err();
    assert_eq!(
        (failure.code, failure.limit.as_deref()),
        (FailureCode::LimitExceeded, Some("filter_bytes"))
    );

    let mut other = broker.raw();
    join_with(&mut other, "one", program()).unwrap();
    let mut third = broker.raw();
    let failure = join_with(&mut third, "one", program()).unwrap_err();
    assert_eq!(failure.limit.as_deref(), Some("filter_instructions"));
    // Whoever is killed takes its filter with it.
    drop(other);
    // Whoever asks is one more.
    broker.until("it is gone", |stats| stats.connections == 3);
    join_with(&mut third, "one", program()).unwrap();

    // A program that jumps backwards, in the body of a set-filter.
    let mut body = b"\xa3\x62op\x6aset-filter\x68group_id\x01\x66filter".to_vec();
    body.extend_from_slice(b"\x81\x81\xa1\x67program\x48\x05\x00\xff\xff\x00\x00\x00\x00");
    let serial = third.next_serial();
    third.write(&tests::raw::frame_bytes(0x02, 0, 0, serial.get(), &body));
    let failure = third.answer(serial).unwrap_err();
    assert_eq!(failure.code, FailureCode::BadFilter);
    assert!(failure.text.contains("program"), "{failure}");
    third.ping();
}
