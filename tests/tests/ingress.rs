//! Programs that know nothing of Unisono, put on the bus by an ingress: plain sockets in, and a
//! member of the group that sees what comes out.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bus_client::{Bus, Event, Message};
use bus_core::Credentials;
use tests::broker::Broker;
use tests::deadline::{DEADLINE, eventually};
use thrift::protocol::{
    TBinaryOutputProtocol, TFieldIdentifier, TMessageIdentifier, TMessageType, TOutputProtocol,
    TStructIdentifier, TType,
};
use thrift::transport::{TFramedWriteTransport, TTcpChannel};

const GROUP: &str = "org.example.Readings";
const IDENTITY: &str = "org.example.Thermometer";

/// A broker with one ingress on a port of its own, whose messages are 4 bytes and so many more.
fn broker_with(limits: &str, settings: &str) -> Broker {
    Broker::with(&format!(
        "[limits]\n{limits}\n[[ingress]]\nlisten = \"tcp:127.0.0.1:0\"\nidentity = \"{IDENTITY}\"\n\
         group = \"{GROUP}\"\n{settings}\n"
    ))
}

const THRIFT: &str = "framing = { kind = \"length-prefix\", width = 4, bias = 4 }";

/// Where the first ingress listens.
fn address(broker: &Broker) -> String {
    eventually("the ingress is logged", || {
        let log = broker.log();
        let after = log.split("tcp:").nth(1).map(str::to_owned);
        let end = |text: String| {
            text.split(|c: char| !c.is_ascii_digit() && c != '.' && c != ':')
                .next()
                .map(str::to_owned)
        };
        after.and_then(end).ok_or(log)
    })
}

fn program(broker: &Broker) -> TcpStream {
    let stream = TcpStream::connect(address(broker)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn member(broker: &Broker) -> Bus {
    let bus = Bus::builder().address(broker.socket().to_str().unwrap()).connect().unwrap();
    bus.join(GROUP).unwrap();
    bus
}

fn framed(payload: &[u8]) -> Vec<u8> {
    [&u32::try_from(payload.len()).unwrap().to_be_bytes()[..], payload].concat()
}

#[track_caller]
fn next(bus: &Bus) -> Message {
    match bus.receive_deadline(DEADLINE).unwrap() {
        Some(Event::Message(message)) => message,
        other => panic!("{other:?}"),
    }
}

/// Reads until the broker has ended the stream.
#[track_caller]
fn until_ended(mut stream: impl Read) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => assert_eq!(rest, b"", "an ingress of a group answers nothing"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn a_foreign_programs_messages_reach_the_group_in_the_order_of_its_stream() {
    let broker = broker_with("", THRIFT);
    let (one, two) = (member(&broker), member(&broker));
    let mut program = program(&broker);
    let all: Vec<Vec<u8>> = (0..300).map(|n: usize| framed(&vec![b'x'; n * 7 % 5000])).collect();
    let bytes = all.concat();
    let writing = std::thread::spawn(move || {
        for piece in bytes.chunks(1111) {
            program.write_all(piece).unwrap();
        }
        program
    });
    let mut before = None;
    for expected in &all {
        let message = next(&one);
        assert!(message.payload() == expected, "whole, with its header");
        assert_eq!(message.group(), Some(GROUP));
        assert!(before < Some(message.sequence()));
        before = Some(message.sequence());
        assert_eq!(next(&two).sequence(), message.sequence(), "one order for all members");
    }
    writing.join().unwrap();
}

#[test]
fn its_messages_carry_the_configured_identity_and_are_marked_unauthenticated() {
    let broker = broker_with("", THRIFT);
    let bus = member(&broker);
    program(&broker).write_all(&framed(b"21.5")).unwrap();
    let message = next(&bus);
    assert_eq!(message.field("ingress"), Some(IDENTITY));
    assert_eq!(message.credentials(), Credentials::UNAUTHENTICATED);
    // Anybody can write the field; nobody else has these credentials.
    let forger = Bus::builder().address(broker.socket().to_str().unwrap()).connect().unwrap();
    let forged = bus_client::Outgoing::text("21.6").field("ingress", IDENTITY);
    forger.group(GROUP).unwrap().send(forged).unwrap();
    let message = next(&bus);
    assert_eq!(message.field("ingress"), Some(IDENTITY));
    assert!(message.credentials().is_authenticated());
}

#[test]
fn a_thrift_client_from_the_registry_talks_through_an_ingress() {
    // The seed's own program, as clang made it.
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../bus-core/tests/fixtures/thrift.bpf.o");
    let framing = format!("framing = {{ kind = \"bpf\", file = \"{program}\" }}");
    let broker = broker_with("", &framing);
    let bus = member(&broker);
    let mut channel = TTcpChannel::new();
    channel.open(address(&broker)).unwrap();
    let mut client = TBinaryOutputProtocol::new(TFramedWriteTransport::new(channel), true);
    for number in 1..=3 {
        let call = TMessageIdentifier::new("record", TMessageType::OneWay, number);
        client.write_message_begin(&call).unwrap();
        client.write_struct_begin(&TStructIdentifier::new("record_args")).unwrap();
        client.write_field_begin(&TFieldIdentifier::new("text", TType::String, 1)).unwrap();
        client.write_string(&format!("reading {number}")).unwrap();
        client.write_field_end().unwrap();
        client.write_field_stop().unwrap();
        client.write_struct_end().unwrap();
        client.write_message_end().unwrap();
        client.flush().unwrap();
    }
    for number in 1..=3 {
        let message = next(&bus);
        let (text, _) = thrift_call(message.payload());
        assert_eq!(text, format!("reading {number}"));
    }
}

/// Reads a call back with the registry's own code: its text, and its number.
fn thrift_call(message: &[u8]) -> (String, i32) {
    use thrift::protocol::{TBinaryInputProtocol, TInputProtocol};
    use thrift::transport::TFramedReadTransport;
    let mut input = TBinaryInputProtocol::new(TFramedReadTransport::new(message), true);
    let call = input.read_message_begin().unwrap();
    assert_eq!(call.name, "record");
    input.read_struct_begin().unwrap();
    let field = input.read_field_begin().unwrap();
    assert_eq!((field.id, field.field_type), (Some(1), TType::String));
    (input.read_string().unwrap(), call.sequence_number)
}

#[test]
fn a_unix_socket_serves_as_well_and_is_for_this_user_only() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("in");
    let broker = Broker::with(&format!(
        "[[ingress]]\nlisten = \"unix:{}\"\nidentity = \"{IDENTITY}\"\ngroup = \"{GROUP}\"\n{THRIFT}\n",
        path.display()
    ));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let bus = member(&broker);
    let mut program = UnixStream::connect(&path).unwrap();
    program.write_all(&framed(b"over unix")).unwrap();
    assert_eq!(next(&bus).payload(), framed(b"over unix"));
}

/// Writes until the socket takes no more; gives what was written.
fn fill(program: &mut TcpStream, message: &[u8]) -> usize {
    program.set_nonblocking(true).unwrap();
    let mut written = 0;
    let mut idle_since = Instant::now();
    // The broker reads until its group is full, so a socket that is full may yet take more.
    while idle_since.elapsed() < Duration::from_millis(300) {
        let at = written % message.len();
        match program.write(&message[at..]) {
            Ok(count) => (written, idle_since) = (written + count, Instant::now()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
        assert!(written < 256 << 20, "nothing holds it back");
    }
    program.set_nonblocking(false).unwrap();
    written
}

#[test]
fn g8_a_stream_whose_group_is_full_is_not_read_and_goes_on_when_it_is_not() {
    let broker = broker_with("queue_messages = 4\nstall = \"600s\"", THRIFT);
    let bus = member(&broker);
    let mut program = program(&broker);
    let before = broker.resident_kib();
    let message = framed(&[7; 10_000]);
    let written = fill(&mut program, &message);
    assert!(broker.resident_kib() < before + (4 << 10), "what it holds is bounded");
    broker.until("its message waits", |stats| stats.waiting_sends == 1);
    // A second stream and a client of the bus are not held back by it.
    let other = Bus::builder().address(broker.socket().to_str().unwrap()).connect().unwrap();
    other.join("elsewhere").unwrap();
    other.ping().unwrap();
    let rest = message.len() - written % message.len();
    let writing = std::thread::spawn(move || {
        program.write_all(&[7; 10_004][10_004 - rest..]).unwrap();
        program
    });
    for _ in 0..written.div_ceil(message.len()) {
        assert_eq!(next(&bus).payload().len(), message.len());
    }
    writing.join().unwrap();
}

#[test]
fn a_program_may_write_and_go_while_its_group_is_full() {
    let broker = broker_with("queue_messages = 1\nstall = \"600s\"", THRIFT);
    let bus = member(&broker);
    let mut program = program(&broker);
    let all: Vec<_> = (0..50_u8).map(|n| framed(&[n; 100])).collect();
    program.write_all(&all.concat()).unwrap();
    program.shutdown(Shutdown::Both).unwrap();
    drop(program);
    broker.until("it waits", |stats| stats.waiting_sends == 1);
    for expected in &all {
        assert_eq!(next(&bus).payload(), expected);
    }
    // And then it is gone.
    broker.until("its endpoint is closed", |stats| stats.waiting_sends == 0);
}

#[test]
fn hostile_streams_disturb_nobody() {
    let broker = broker_with("", &format!("{THRIFT}\ntimeout = \"200ms\"\nmaximum = 65536"));
    let bus = member(&broker);
    let mut good = program(&broker);
    let mut check = |what: &str| {
        good.write_all(&framed(what.as_bytes())).unwrap();
        assert_eq!(next(&bus).payload(), framed(what.as_bytes()));
    };
    check("before");
    for (case, bytes) in [
        ("4 GiB", &[0xff, 0xff, 0xff, 0xff][..]),
        ("one too many", &65_533_u32.to_be_bytes()),
        ("garbage", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ] {
        let mut bad = program(&broker);
        bad.write_all(bytes).unwrap();
        until_ended(&bad);
        check(case);
    }
    // A byte now and then: each comes in time, the message does not.
    let mut slow = program(&broker);
    slow.set_nonblocking(true).unwrap();
    let mut bytes = [0, 0, 0x0f].into_iter().chain(std::iter::repeat(b'z'));
    eventually("the slow one is ended", || {
        let _ = slow.write(&[bytes.next().unwrap()]);
        check("while it dawdles");
        match slow.read(&mut [0; 8]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err("it lives".to_owned()),
            _ => Ok(()),
        }
    });
    broker.until_logged(&["not complete", "200 ms"]);
    // One that says nothing is no harm, and is left alone.
    let silent = program(&broker);
    check("after");
    drop(silent);
    // A length of 0 is a message without a body in this framing: it is carried.
    let mut empty = program(&broker);
    empty.write_all(&[0; 4]).unwrap();
    assert_eq!(next(&bus).payload(), [0; 4]);
}

#[test]
fn a_length_of_0_that_counts_its_own_header_ends_the_stream() {
    let framing = "framing = { kind = \"length-prefix\", width = 4, endianness = \"little\" }";
    let broker = broker_with("", framing);
    let mut bad = program(&broker);
    bad.write_all(&[0; 4]).unwrap();
    until_ended(&bad);
    broker.until_logged(&["a message of 0 bytes", "header has 4"]);
}

#[test]
fn g8_streams_of_an_ingress_are_bounded() {
    let broker = broker_with("", &format!("{THRIFT}\nconnections = 2"));
    let bus = member(&broker);
    let mut two = [program(&broker), program(&broker)];
    for stream in &mut two {
        stream.write_all(&framed(b"in")).unwrap();
        next(&bus);
    }
    until_ended(program(&broker));
    let [first, mut second] = two;
    drop(first);
    eventually("its place is free", || {
        let mut third = program(&broker);
        third.write_all(&framed(b"third")).unwrap();
        match bus.receive_deadline(Duration::from_millis(200)) {
            Ok(Some(Event::Message(message))) if message.payload() == framed(b"third") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    second.write_all(&framed(b"still here")).unwrap();
    assert_eq!(next(&bus).payload(), framed(b"still here"));
}

#[test]
fn a_program_that_may_not_run_is_refused_at_the_start_with_its_reason() {
    let map = concat!(env!("CARGO_MANIFEST_DIR"), "/../bus-core/tests/fixtures/map.bpf.o");
    let mut config = bus_broker::Config::from_toml(
        &format!(
            "[[ingress]]\nlisten = \"tcp:127.0.0.1:0\"\nidentity = \"a\"\ngroup = \"b\"\n\
             framing = {{ kind = \"bpf\", file = \"{map}\" }}\n"
        ),
        "bus.toml".as_ref(),
    )
    .unwrap();
    config.listen = bus_broker::Listen::Nowhere;
    let error = bus_broker::Broker::bind(&config).unwrap_err().to_string();
    assert!(error.contains("ingress tcp:127.0.0.1:0") && error.contains("map.bpf.o"), "{error}");
}

const NAME: &str = "org.example.Clock";

/// A broker with one ingress whose messages are requests to [`NAME`].
fn broker_of_name(limits: &str, framing: &str) -> Broker {
    Broker::with(&format!(
        "[limits]\n{limits}\n[[ingress]]\nlisten = \"tcp:127.0.0.1:0\"\nidentity = \"{IDENTITY}\"\n\
         name = \"{NAME}\"\n{framing}\n"
    ))
}

/// The name's owner, on a connection of its own.
fn owner(broker: &Broker) -> (Bus, bus_client::OwnedName) {
    let bus = Bus::builder().address(broker.socket().to_str().unwrap()).connect().unwrap();
    let name = bus.own_name(NAME).unwrap();
    (bus, name)
}

/// The next request, whatever else is told meanwhile.
#[track_caller]
fn next_request(bus: &Bus) -> Message {
    loop {
        match bus.receive_deadline(DEADLINE).unwrap() {
            Some(Event::Message(message)) => {
                assert!(message.is_request());
                return message;
            }
            Some(_) => {}
            None => panic!("no request"),
        }
    }
}

fn read_framed(mut stream: impl Read) -> Vec<u8> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).unwrap();
    let mut body = vec![0; u32::from_be_bytes(head) as usize];
    stream.read_exact(&mut body).unwrap();
    body
}

#[test]
fn a_thrift_call_through_an_ingress_gets_the_reply_of_the_names_owner() {
    use thrift::protocol::{TBinaryInputProtocol, TInputProtocol};
    use thrift::transport::{TFramedReadTransport, TIoChannel};

    let broker = broker_of_name("", THRIFT);
    let (bus, _name) = owner(&broker);
    let service = std::thread::spawn(move || {
        for _ in 0..3 {
            let request = next_request(&bus);
            assert_eq!(request.credentials(), Credentials::UNAUTHENTICATED);
            assert_eq!(request.field("ingress"), Some(IDENTITY));
            let (text, number) = thrift_call(request.payload());
            // The reply is written by the registry's code as well, frame and all.
            let mut bytes = Vec::new();
            let mut out = TBinaryOutputProtocol::new(TFramedWriteTransport::new(&mut bytes), true);
            let reply = TMessageIdentifier::new("record", TMessageType::Reply, number);
            out.write_message_begin(&reply).unwrap();
            out.write_string(&format!("{text}, seen")).unwrap();
            out.write_message_end().unwrap();
            out.flush().unwrap();
            drop(out);
            request.reply(bus_client::Outgoing::bytes(bytes)).unwrap();
        }
        bus
    });
    let mut channel = TTcpChannel::new();
    channel.open(address(&broker)).unwrap();
    let (input, output) = channel.split().unwrap();
    let mut input = TBinaryInputProtocol::new(TFramedReadTransport::new(input), true);
    let mut output = TBinaryOutputProtocol::new(TFramedWriteTransport::new(output), true);
    for number in 1..=3 {
        let call = TMessageIdentifier::new("record", TMessageType::Call, number);
        output.write_message_begin(&call).unwrap();
        output.write_struct_begin(&TStructIdentifier::new("record_args")).unwrap();
        output.write_field_begin(&TFieldIdentifier::new("text", TType::String, 1)).unwrap();
        output.write_string(&format!("reading {number}")).unwrap();
        output.write_field_end().unwrap();
        output.write_field_stop().unwrap();
        output.write_struct_end().unwrap();
        output.write_message_end().unwrap();
        output.flush().unwrap();
        let reply = input.read_message_begin().unwrap();
        assert_eq!((reply.message_type, reply.sequence_number), (TMessageType::Reply, number));
        assert_eq!(input.read_string().unwrap(), format!("reading {number}, seen"));
        input.read_message_end().unwrap();
    }
    service.join().unwrap();
}

#[test]
fn replies_return_in_the_order_of_the_requests_whichever_is_answered_first() {
    let broker = broker_of_name("", THRIFT);
    let (bus, _name) = owner(&broker);
    let mut program = program(&broker);
    let requests: Vec<_> = (0..8_u8).map(|n| framed(&[n])).collect();
    program.write_all(&requests.concat()).unwrap();
    let asked: Vec<_> = requests.iter().map(|_| next_request(&bus)).collect();
    for request in asked.iter().rev() {
        let size = usize::from(request.payload()[4]) * 3000;
        let reply = framed(&vec![request.payload()[4]; size]);
        request.reply(bus_client::Outgoing::bytes(reply)).unwrap();
    }
    for n in 0..8_u8 {
        assert!(read_framed(&program) == vec![n; usize::from(n) * 3000], "reply {n}");
    }
}

#[test]
fn a_program_that_writes_no_more_still_gets_its_replies() {
    let broker = broker_of_name("", THRIFT);
    let (bus, _name) = owner(&broker);
    let mut program = program(&broker);
    program.write_all(&[framed(b"one"), framed(b"two")].concat()).unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    for request in [next_request(&bus), next_request(&bus)] {
        let reply = request.payload().to_vec();
        request.reply(bus_client::Outgoing::bytes(reply)).unwrap();
    }
    assert_eq!((read_framed(&program), read_framed(&program)), (b"one".to_vec(), b"two".to_vec()));
    until_ended(&program);
}

#[test]
fn g8_requests_of_a_stream_that_are_unanswered_are_bounded() {
    let broker = broker_of_name("", THRIFT);
    let (bus, _name) = owner(&broker);
    let mut program = program(&broker);
    let requests: Vec<_> = (0..40_u8).map(|n| framed(&[n])).collect();
    program.write_all(&requests.concat()).unwrap();
    let mut asked: Vec<_> = (0..16).map(|_| next_request(&bus)).collect();
    let none = bus.receive_deadline(Duration::from_millis(100)).unwrap();
    assert!(none.is_none(), "the seventeenth waits: {none:?}");
    for n in 0..40_u8 {
        let request = asked.remove(0);
        assert_eq!(request.payload()[4], n);
        request.reply(bus_client::Outgoing::bytes(framed(&[n]))).unwrap();
        assert_eq!(read_framed(&program), [n]);
        if n < 24 {
            asked.push(next_request(&bus));
        }
    }
}

#[test]
fn a_request_without_a_reply_ends_its_stream_and_those_before_are_answered() {
    let broker = broker_of_name("", THRIFT);
    // Nobody owns the name.
    let mut early = program(&broker);
    early.write_all(&framed(b"anybody?")).unwrap();
    until_ended(&early);
    let (bus, name) = owner(&broker);
    let mut program = program(&broker);
    program.write_all(&[framed(b"one"), framed(b"two")].concat()).unwrap();
    let (one, two) = (next_request(&bus), next_request(&bus));
    one.reply(bus_client::Outgoing::bytes(framed(b"1"))).unwrap();
    assert_eq!(read_framed(&program), b"1");
    // The owner goes and leaves the second unanswered.
    drop((one, two, name, bus));
    until_ended(&program);
    broker.until_logged(&["a request got no reply"]);
}
