//! Clients that send garbage, stop in the middle, or never read: they end or wait alone (G10).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bus_core::wire::{
    BrokerFrame, ClientFrame, FailureCode, GoodbyeCode, Handle, Hello, LaneNumber, MAGIC, Request,
    Response, SendId, Serial,
};
use bus_core::{Attributes, Destination, GroupId};
use bytes::BytesMut;
use nix::sys::signal::Signal;
use tests::broker::Broker;
use tests::process::Process;
use tests::random::Random;
use tests::raw::{RawClient, frame_bytes, header_bytes, id, name, send_frame};
use tests::trace::Trace;

/// A listener and a sender that go about their business meanwhile, and lose nothing.
struct Innocents {
    listener: Process,
    sender: Process,
    enough: Arc<AtomicBool>,
    feed: JoinHandle<u64>,
}

impl Innocents {
    fn start(broker: &Broker) -> Self {
        let listener = broker.listener("innocent", &broker.file("innocent"));
        // With a time-out each line waits for the receipt of the one before: a steady trickle.
        let sender = broker.unisono("send innocent --lines --timeout 50s --json");
        let mut sender = sender.input_piped().start();
        let enough = Arc::new(AtomicBool::new(false));
        let feed = sender.feed({
            let enough = Arc::clone(&enough);
            (0_u64..)
                .take_while(move |_| !enough.load(Ordering::Relaxed))
                .map(|number| number.to_string())
        });
        let _first_receipt = sender.line();
        Self { listener, sender, enough, feed }
    }

    /// They go on, and have heard everything in the end.
    fn end(mut self, broker: &Broker) {
        for _ in 0..3 {
            let _receipt = self.sender.line();
        }
        assert!(self.sender.runs() && self.listener.runs());
        self.enough.store(true, Ordering::Relaxed);
        let sent = self.feed.join().unwrap();
        let receipts = self.sender.end().with(0).json_lines();
        let sender = receipts[0]["sender"].as_u64().unwrap();
        let _ = self.listener.end_by(Signal::SIGINT).with(0);
        let trace = Trace::read(&broker.file("innocent"));
        trace.assert_ordered();
        let heard = &trace.by_sender()[&sender];
        let expected: Vec<String> = (0..sent).map(|number| number.to_string()).collect();
        assert!(*heard == expected, "{} of {sent} were heard", heard.len());
    }
}

/// The broker ends this connection, and says that what came was no frame.
#[track_caller]
fn assert_bad_frame(client: RawClient, case: &str) {
    assert_ended(client, GoodbyeCode::BadFrame, case);
}

fn assert_ended(mut client: RawClient, code: GoodbyeCode, case: &str) {
    let goodbye = client.goodbye().unwrap_or_else(|| panic!("{case}: no goodbye"));
    assert_eq!(goodbye.code, code, "{case}: {}", goodbye.text);
    assert!(!goodbye.text.is_empty(), "{case}: the offence is named");
}

#[test]
fn g10_random_bytes_end_their_connection_only() {
    let broker = Broker::start();
    let innocents = Innocents::start(&broker);
    let mut random = Random::new(1);
    for _ in 0..200 {
        let mut client = RawClient::silent(broker.socket());
        let length = 1 + random.below(20_000);
        // The first byte is another than the magic's, so this is nothing that is known here.
        let mut bytes = random.bytes(length);
        bytes[0] |= 0x80;
        client.try_write(&bytes);
        assert_eq!(client.goodbye(), None, "nobody here would understand it");
    }
    broker.until("all are counted", |stats| stats.protocol_errors == 200);
    innocents.end(&broker);
}

#[test]
fn g10_a_greeting_and_then_random_bytes_end_their_connection_only() {
    let broker = Broker::start();
    let innocents = Innocents::start(&broker);
    let mut random = Random::new(2);
    for round in 0..200 {
        let mut client = RawClient::silent(broker.socket());
        if round % 2 == 0 {
            client.write(&MAGIC);
        } else {
            client.greet();
            client.welcomed();
        }
        // A length of 2 GiB or more is none, whatever comes after it.
        let mut bytes = random.bytes(16 + random.clone().below(20_000));
        bytes[3] |= 0x80;
        client.try_write(&bytes);
        assert_bad_frame(client, &format!("round {round}"));
    }
    broker.until("all are counted", |stats| stats.protocol_errors == 200);
    innocents.end(&broker);
}

#[test]
fn g10_conversations_with_flipped_bits_harm_nobody_else() {
    let broker = Broker::start();
    let innocents = Innocents::start(&broker);
    let mut random = Random::new(3);
    let conversation = conversation();
    for _ in 0..400 {
        let mut bytes = conversation.clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        bytes.truncate(bytes.len() - random.below(40));
        let mut client = RawClient::silent(broker.socket());
        client.try_write(&bytes);
        // It may be right all the same, and then the broker waits for more.
        let _ = client.stream.shutdown(Shutdown::Write);
        let mut answers = Vec::new();
        if let Err(error) = client.stream.read_to_end(&mut answers) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        }
    }
    innocents.end(&broker);
}

/// A bit of everything that a client says.
fn conversation() -> Vec<u8> {
    let mut bytes = BytesMut::from(&MAGIC[..]);
    let serial = |number| Serial::new(number).unwrap();
    let call = |number, request| ClientFrame::Call {
        endpoint: Handle::FIRST,
        serial: serial(number),
        request,
    };
    let join = Request::Join {
        group: name("garbled"),
        flags: bus_core::MemberFlags::LOOPBACK,
        create: true,
        filter: None,
        retain: None,
        state: false,
    };
    let garbled = Destination::Group(GroupId::from_raw(2));
    let frames = [
        ClientFrame::Hello(Hello::new()),
        call(1, join),
        call(2, Request::Stats),
        ClientFrame::Send(send_frame(id(serial(3)), garbled, b"a garbled message")),
        ClientFrame::Watch {
            endpoint: Handle::FIRST,
            serial: serial(4),
            destination: garbled,
            attributes: Attributes::EMPTY,
        },
        ClientFrame::Credit { endpoint: Handle::FIRST, messages: 1, bytes: 17 },
        ClientFrame::Resume { endpoint: Handle::FIRST, lane: LaneNumber::FIRST },
        call(5, Request::Groups),
        ClientFrame::Cancel(id(serial(3))),
        ClientFrame::Unwatch { endpoint: Handle::FIRST, serial: serial(4) },
        call(6, Request::CloseEndpoint),
    ];
    for frame in frames {
        frame.encode(&mut bytes).unwrap();
    }
    bytes.to_vec()
}

/// Frames without a body that are known, and that this client's greeting has not switched on.
const OF_RINGS: std::ops::RangeInclusive<u8> = 0x20..=0x23;

/// Kinds of frames from clients, and how long their bodies are.
const KINDS: [(&str, u8, u32, u32); 11] = [
    ("HELLO", 0x01, 0, 4096),
    ("CALL", 0x02, 0, 65_536),
    ("SEND", 0x10, 20, 16_793_584),
    ("CANCEL", 0x11, 0, 0),
    ("RESUME", 0x12, 0, 0),
    ("FLUSH", 0x17, 0, 0),
    ("CREDIT", 0x13, 16, 16),
    ("WATCH", 0x14, 8, 4688),
    ("UNWATCH", 0x15, 0, 0),
    ("DESCRIPTORS_TAKEN", 0x16, 0, 0),
    ("GOODBYE", 0x1f, 0, 4096),
];

#[test]
fn every_kind_of_frame_with_a_bad_length_is_named_and_ends_its_connection() {
    let broker = Broker::start();
    let mut bystander = broker.raw();
    let mut ended = 0;
    for (frame, kind, least, most) in KINDS {
        let mut lengths = vec![0, 1, 15, 16 + most + 1, 0x7fff_ffff, u32::MAX];
        if least > 0 {
            lengths.extend([16, 16 + least - 1]);
        }
        for length in lengths {
            for greeted in [false, true] {
                let case = format!("{frame} of {length} bytes, greeted: {greeted}");
                let mut client = RawClient::silent(broker.socket());
                if greeted {
                    client.greet();
                    client.welcomed();
                } else {
                    client.write(&MAGIC);
                }
                // Only the header: the answer comes before anything of the body would.
                client.write(&header_bytes(length, kind, 1));
                assert_bad_frame(client, &case);
                ended += 1;
            }
        }
    }
    broker.until("all are counted", |stats| stats.protocol_errors == ended);
    bystander.ping();
}

#[test]
fn unknown_kinds_flags_and_fields_are_named_and_end_their_connection() {
    let broker = Broker::start();
    let mut bystander = broker.raw();
    for kind in 0..=u8::MAX {
        if KINDS.iter().any(|(_, known, _, _)| *known == kind) {
            continue;
        }
        let mut client = broker.raw();
        client.write(&header_bytes(16, kind, 0));
        let code =
            if OF_RINGS.contains(&kind) { GoodbyeCode::Protocol } else { GoodbyeCode::BadFrame };
        assert_ended(client, code, &format!("kind {kind:#04x}"));
    }
    for (frame, kind, least, _) in KINDS {
        let body = vec![0; usize::try_from(least).unwrap()];
        let mut flags = frame_bytes(kind, 0x80, 0, 1, &body);
        // All eight flags of a SEND mean something.
        if kind != 0x10 {
            let mut client = broker.raw();
            client.write(&flags);
            assert_bad_frame(client, &format!("{frame} with an unknown flag"));
        }
        flags[5] = 0;
        flags[7] = 16;
        let mut client = broker.raw();
        client.write(&flags);
        assert_bad_frame(client, &format!("{frame} for lane 16"));
        if kind != 0x10 {
            let mut client = broker.raw();
            client.write(&frame_bytes(kind, 0, 1, 1, &body));
            assert_bad_frame(client, &format!("{frame} with a descriptor"));
        }
    }
    for (case, kind, serial) in [
        ("a CALL without a serial", 0x02, 0),
        ("a SEND without a serial", 0x10, 0),
        ("a CREDIT with a serial", 0x13, 7),
        ("a RESUME with a serial", 0x12, 7),
        ("a GOODBYE with a serial", 0x1f, 7),
    ] {
        let least = KINDS.iter().find(|row| row.1 == kind).unwrap().2;
        let body = vec![0; usize::try_from(least).unwrap()];
        let mut client = broker.raw();
        client.write(&frame_bytes(kind, 0, 0, serial, &body));
        assert_bad_frame(client, case);
    }
    bystander.ping();
}

#[test]
fn good_frames_out_of_turn_end_their_connection() {
    let broker = Broker::start();
    let mut bystander = broker.raw();
    let hello = ClientFrame::Hello(Hello::new());
    let ping = |serial| ClientFrame::Call {
        endpoint: Handle::FIRST,
        serial: Serial::new(serial).unwrap(),
        request: Request::Ping,
    };
    let credit = |messages, bytes| ClientFrame::Credit { endpoint: Handle::FIRST, messages, bytes };
    let rows = [
        ("a second HELLO", true, hello),
        ("a CALL before HELLO", false, ping(1)),
        ("credit for nothing", true, credit(1, 0)),
        ("credit for bytes of nothing", true, credit(0, 1)),
        ("credit for very much", true, credit(u32::MAX, u64::MAX)),
        ("DESCRIPTORS_TAKEN for none", true, ClientFrame::DescriptorsTaken),
    ];
    for (case, greeted, frame) in rows {
        let mut client = RawClient::silent(broker.socket());
        if greeted {
            client.greet();
            client.welcomed();
        } else {
            client.write(&MAGIC);
        }
        client.say(&frame);
        let goodbye = client.goodbye().expect(case);
        assert_eq!(goodbye.code, GoodbyeCode::Protocol, "{case}");
    }
    let mut client = RawClient::silent(broker.socket());
    client.write(&MAGIC);
    client.say(&ClientFrame::Hello(Hello { versions: vec![0, 2, 65_535], ..Hello::default() }));
    assert_eq!(client.goodbye().unwrap().code, GoodbyeCode::NoCommonVersion);
    bystander.ping();
}

#[test]
fn frames_about_what_is_not_there_are_answered_or_passed_over() {
    let broker = Broker::start();
    let mut client = broker.raw();
    let nobody = Handle::from_raw(77);
    let serial = Serial::new(7_000).unwrap();
    let send = SendId { endpoint: nobody, lane: LaneNumber::FIRST, serial };
    let lane = LaneNumber::new(15).unwrap();
    for frame in [
        ClientFrame::Cancel(send),
        ClientFrame::Cancel(id(serial)),
        ClientFrame::Resume { endpoint: nobody, lane },
        ClientFrame::Resume { endpoint: Handle::FIRST, lane },
        ClientFrame::Credit { endpoint: nobody, messages: 9, bytes: 9 },
        ClientFrame::Unwatch { endpoint: Handle::FIRST, serial },
    ] {
        client.say(&frame);
    }
    let address = client.address();
    client.say(&ClientFrame::Send(send_frame(send, address, b"x")));
    let refused = client.outcome(serial).unwrap_err();
    assert_eq!(refused.code, FailureCode::NoSuchEndpoint);
    let left = client.call_as(nobody, Request::ShutdownReceive).unwrap_err();
    assert_eq!(left.code, FailureCode::NoSuchEndpoint);
    client.ping();
}

#[test]
fn a_call_that_cannot_be_read_is_answered_and_the_connection_goes_on() {
    let broker = Broker::start();
    let mut client = broker.raw();
    let rows: [(&str, &[u8], FailureCode); 6] = [
        ("nothing", b"", FailureCode::BadRequest),
        ("no CBOR", b"\xff\xff\xff", FailureCode::BadRequest),
        ("a number", b"\x01", FailureCode::BadRequest),
        ("an unknown operation", b"\xa1\x62op\x63fly", FailureCode::Unsupported),
        ("a join without a group", b"\xa1\x62op\x64join", FailureCode::BadRequest),
        ("bytes after the map", b"\xa1\x62op\x64ping\x00", FailureCode::BadRequest),
    ];
    for (case, body, code) in rows {
        let serial = client.next_serial();
        client.write(&frame_bytes(0x02, 0, 0, serial.get(), body));
        let failure = client.answer(serial).expect_err(case);
        assert_eq!(failure.code, code, "{case}: {failure}");
    }
    // Nested as deep as a frame is long: refused without a stack that deep.
    let serial = client.next_serial();
    client.write(&frame_bytes(0x02, 0, 0, serial.get(), &[0x81; 65_536]));
    assert_eq!(client.answer(serial).unwrap_err().code, FailureCode::BadRequest);
    client.ping();
}

#[test]
fn g10_clients_that_stop_in_the_middle_of_a_frame_delay_nobody() {
    let broker = Broker::start();
    let before = broker.resident_kib();
    let innocents = Innocents::start(&broker);
    let mut stalled = Vec::new();
    for (_, kind, _, most) in KINDS {
        for written in [1, 15, 16] {
            let mut client = broker.raw();
            let length = if most > 0 { 16 + most } else { 16 };
            let header = header_bytes(length, kind, 1);
            // Where the header is the frame, a part of it is all that can be in the middle.
            let written = if most == 0 { written.min(15) } else { written };
            client.write(&header[..written]);
            stalled.push(client);
        }
        let mut client = RawClient::silent(broker.socket());
        client.write(&MAGIC[..3]);
        stalled.push(client);
    }
    // Each of these announces 16 MiB, which all together is more than their user may have.
    let announces = |_| {
        let mut client = broker.raw();
        let mut bytes = header_bytes(16 + 20 + (16 << 20), 0x10, 1);
        bytes.extend([0; 1000]);
        client.write(&bytes);
        client
    };
    let mut announced: Vec<_> = (0..64).map(announces).collect();
    broker.raw().ping();
    innocents.end(&broker);
    let grown = broker.resident_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB for what has not come");
    // They are served again when they go on; for the last ones there are no bytes.
    let mut last = announced.pop().unwrap();
    for (client, answer) in
        [(&mut announced[0], FailureCode::NoSuchGroup), (&mut last, FailureCode::LimitExceeded)]
    {
        client.write(&vec![0; 20 + (16 << 20) - 1000]);
        assert_eq!(client.outcome(Serial::FIRST).unwrap_err().code, answer);
        client.ping();
    }
}

/// dbus-broker: if an error could not be queued, its caller was disconnected.
#[test]
fn g8_a_client_that_never_reads_its_answers_is_not_read_and_waits_alone() {
    let broker = Broker::start();
    let before = broker.resident_kib();
    let innocents = Innocents::start(&broker);
    let mut deaf = broker.raw();
    deaf.stream.set_nonblocking(true).unwrap();
    let mut written = 0_u64;
    let mut questions = BytesMut::new();
    let mut serial = Serial::FIRST;
    // `stats` has a longer answer than question. It must end: the broker stops reading.
    loop {
        if questions.is_empty() {
            let question =
                ClientFrame::Call { endpoint: Handle::FIRST, serial, request: Request::Stats };
            question.encode(&mut questions).unwrap();
            serial = serial.next();
            written += 1;
        }
        match deaf.stream.write(&questions) {
            Ok(count) => drop(questions.split_to(count)),
            // It took nothing for as long as the broker needed to answer another client: twice.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if is_stuck(&broker, &mut deaf, &questions) {
                    break;
                }
            }
            Err(error) => panic!("{error}"),
        }
        assert!(written < 1_000_000, "the broker reads for ever");
    }
    let grown = broker.resident_kib().saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB for answers that nobody reads");
    innocents.end(&broker);
    // Nothing was lost: it gets an answer for each question that it asked to its end.
    deaf.stream.set_nonblocking(false).unwrap();
    let mut answers = 0;
    let rest = questions.to_vec();
    let whole = written - u64::from(!rest.is_empty());
    while answers < whole {
        match deaf.hear() {
            BrokerFrame::Done { response: Response::Stats(_), .. } => answers += 1,
            other => panic!("{other:?}"),
        }
    }
    deaf.write(&rest);
    deaf.ping();
}

/// Whether the socket still takes nothing after the broker has answered somebody else several
/// times. (A broker that had not stopped reading would have read meanwhile.)
fn is_stuck(broker: &Broker, deaf: &mut RawClient, bytes: &[u8]) -> bool {
    let mut other = broker.raw();
    for _ in 0..20 {
        other.ping();
        let mut fds = [rustix::event::PollFd::new(&deaf.stream, rustix::event::PollFlags::OUT)];
        let none = rustix::time::Timespec::default();
        if rustix::event::poll(&mut fds, Some(&none)).unwrap() > 0 {
            return false;
        }
    }
    !bytes.is_empty()
}

#[test]
fn clients_that_come_and_go_at_once_leave_nothing() {
    let broker = Broker::start();
    let mut observer = broker.raw();
    observer.ping();
    let before = broker.descriptors();
    for round in 0..500 {
        let mut client = RawClient::silent(broker.socket());
        match round % 5 {
            0 => {}
            1 => client.write(&MAGIC[..5]),
            2 => client.greet(),
            3 => {
                client.greet();
                client.welcomed();
                client.join("brief");
            }
            _ => {
                client.greet();
                let _ = client.stream.shutdown(Shutdown::Both);
            }
        }
    }
    broker.until("all are gone", |stats| {
        (stats.connections, stats.endpoints, stats.groups) == (2, 2, 0)
    });
    tests::deadline::eventually("descriptors are closed", || match broker.descriptors() {
        count if count == before => Ok(()),
        count => Err(format!("{count} instead of {before}")),
    });
    observer.ping();
}
