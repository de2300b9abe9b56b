//! PROTOCOL.md is right: its examples are decoded and encoded again, and it names all there is.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::super::cbor::text_under;
use super::super::inside::{Look, Seen};
use super::super::{
    BrokerFrame, BrokerRings, ChangeCode, ClaimChanged, ClientFrame, ClientRings, Copied, CopyCode,
    Entries, EvictionReason, Failure, FailureCode, Goodbye, GoodbyeCode, GroupInfo, HEADER_BYTES,
    Handle, Hello, Incarnation, LaneNumber, Lent, LentFrom, MAGIC, MAX_FRAME_BYTES, MAX_PART,
    MAX_TEXT_BYTES, MemberCode, MemoryKind, MessageFrame, MessageHead, MessagesFrame, Notice,
    OutcomeCode, Placed, PlacedIn, ReceiptsFrame, Request, Response, Role, SendFlags, SendFrame,
    SendHead, SendId, Serial, ViewNotice, Welcome, take_magic,
};
use super::{Direction, corpus, encoded};
use crate::{
    Attributes, CompletedRange, ContentType, Credentials, DataType, Description, Destination,
    EndpointId, Field, Filter, Gap, GroupId, Limits, MemberFlags, NameEvent, NameFlags, NameId,
    Operation, Receipt, Sequence, Signal,
};

const PAGE: &str = include_str!("../../../PROTOCOL.md");

/// An example of the page: its title after `hex`, and its bytes.
#[derive(Debug)]
struct Example {
    title: &'static str,
    bytes: Vec<u8>,
}

/// All fenced blocks that begin with `hex` and a title. In them `;` begins a comment.
fn examples() -> Vec<Example> {
    let mut examples = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("```hex ") {
            let block = lines.by_ref().take_while(|line| *line != "```");
            let digits: String = block
                .map(|line| line.split(';').next().unwrap())
                .flat_map(|line| line.chars().filter(|c| !c.is_whitespace()))
                .collect();
            let bytes = digits
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect();
            examples.push(Example { title, bytes });
        }
    }
    examples
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let lines: Vec<_> = digits.chunks(16).map(|line| line.join(" ")).collect();
    lines.join("\n")
}

fn check<F: Direction>(title: &str, frame: &F) {
    let expected = encoded(frame);
    let examples = examples();
    let example = examples
        .iter()
        .find(|example| example.title == title)
        .unwrap_or_else(|| panic!("no example {title:?}; it would be\n{}", hex(&expected)));
    let mut bytes = BytesMut::from(&example.bytes[..]);
    assert_eq!(hex(&bytes), hex(&expected), "{title}: the page has it on the left");
    assert_eq!(F::decode(&mut bytes).unwrap().as_ref(), Some(frame), "{title}");
    assert!(bytes.is_empty(), "{title}");
}

fn id() -> SendId {
    SendId { endpoint: Handle::FIRST, lane: LaneNumber::FIRST, serial: corpus::serial(3) }
}

/// A key that begins with `a.` and a field `unit` of `C`, or the operation `Reset`.
fn filter() -> Option<Filter> {
    let filters = ["key^=a. && field.unit=C", "operation=Reset"];
    Some(Filter::any(filters.map(|text| text.parse().unwrap())).unwrap())
}

/// `now` takes an optional zone and answers a time of two fields; `struck` goes to a group.
fn clock() -> Description {
    let time = ["hour", "minute"].map(|name| Field::new(name, DataType::U8));
    let zone = DataType::Option(Box::new(DataType::String));
    let now = Operation::new("now").argument(zone).reply(DataType::named("Time"));
    let struck = Signal::new("struck", DataType::U8).group("org.example.Hours".parse().unwrap());
    Description::new("Tells the time.")
        .operation(now.doc("There."))
        .signal(struck)
        .data_type("Time", DataType::Struct(time.into()))
}

fn client_examples() -> Vec<(&'static str, ClientFrame)> {
    let endpoint = Handle::FIRST;
    let group = Destination::Group(GroupId::from_raw(7));
    let attributes = Attributes::builder()
        .key(b"a.b")
        .operation("Add")
        .content_type(ContentType::Json)
        .field("n", "42")
        .build()
        .unwrap();
    let send = |destination, flags, descriptors, attributes, payload| {
        ClientFrame::Send(SendFrame {
            head: SendHead { id: id(), destination, flags, deadline: 0, descriptors },
            attributes,
            payload: Bytes::from_static(payload),
        })
    };
    vec![
        (
            "client HELLO",
            ClientFrame::Hello(Hello { program: Some("chat".into()), ..Hello::new() }),
        ),
        (
            "client CALL ping",
            ClientFrame::Call { endpoint, serial: Serial::FIRST, request: Request::Ping },
        ),
        (
            "client CALL look",
            ClientFrame::Call {
                endpoint,
                serial: corpus::serial(2),
                request: Request::Look(Look::Groups { after: None, max: 256 }),
            },
        ),
        (
            "client CALL join",
            ClientFrame::Call {
                endpoint,
                serial: corpus::serial(2),
                request: Request::Join {
                    group: "org.example.Chat".parse().unwrap(),
                    flags: MemberFlags::LOOPBACK,
                    create: true,
                    filter: None,
                    retain: None,
                    state: false,
                },
            },
        ),
        (
            "client CALL set-filter",
            ClientFrame::Call {
                endpoint,
                serial: corpus::serial(3),
                request: Request::SetFilter { group_id: GroupId::from_raw(7), filter: filter() },
            },
        ),
        (
            "client CALL own-name",
            ClientFrame::Call {
                endpoint,
                serial: corpus::serial(2),
                request: Request::OwnName {
                    name: "org.example.Clock".parse().unwrap(),
                    flags: NameFlags::SHARED,
                    description: None,
                },
            },
        ),
        (
            "client CALL own-name with a description",
            ClientFrame::Call {
                endpoint,
                serial: corpus::serial(2),
                request: Request::OwnName {
                    name: "org.example.Clock".parse().unwrap(),
                    flags: NameFlags::empty(),
                    description: Some(Box::new(clock())),
                },
            },
        ),
        (
            "client SEND of a lent payload",
            ClientFrame::Send(SendFrame {
                head: SendHead {
                    id: id(),
                    destination: group,
                    flags: SendFlags::APART,
                    deadline: 0,
                    descriptors: 0,
                },
                attributes: Attributes::EMPTY,
                payload: Bytes::copy_from_slice(
                    &Lent {
                        lending: 5,
                        from: LentFrom::Pool { pool: 3, buffer: 2 },
                        length: 1 << 20,
                    }
                    .encode(),
                ),
            }),
        ),
        ("client RELEASE", ClientFrame::Release(vec![9, 10])),
        ("client FETCH", ClientFrame::Fetch { hold: 9 }),
        (
            "client SEND to a name",
            send(
                Destination::Name(NameId::from_raw(5)),
                SendFlags::empty(),
                0,
                Attributes::EMPTY,
                b"hello",
            ),
        ),
        (
            "client CALL admit",
            ClientFrame::Call {
                endpoint,
                serial: corpus::serial(5),
                request: Request::Admit {
                    group_id: GroupId::from_raw(7),
                    endpoint: EndpointId::from_raw(21),
                    flags: MemberFlags::SEND_TO_PEER,
                    drop_at_peer: false,
                    filter: None,
                },
            },
        ),
        ("client SEND", send(group, SendFlags::empty(), 0, Attributes::EMPTY, b"hello")),
        ("client SEND with attributes", send(group, SendFlags::NONBLOCK, 0, attributes, b"{}")),
        (
            "client SEND with descriptors to an endpoint",
            send(
                Destination::Endpoint(EndpointId::from_raw(21)),
                SendFlags::INDEPENDENT,
                2,
                Attributes::EMPTY,
                b"",
            ),
        ),
        (
            "client SEND of a request",
            send(
                Destination::Endpoint(EndpointId::from_raw(21)),
                SendFlags::REQUEST,
                0,
                Attributes::EMPTY,
                b"2+2",
            ),
        ),
        (
            "client SEND of a reply",
            send(
                Destination::Caller(Sequence::from_raw(1000)),
                SendFlags::empty(),
                0,
                Attributes::EMPTY,
                b"4",
            ),
        ),
        ("client CANCEL", ClientFrame::Cancel(id())),
        ("client RESUME", ClientFrame::Resume { endpoint, lane: LaneNumber::FIRST }),
        ("client FLUSH", ClientFrame::Flush),
        ("client RINGS_WANTED", ClientFrame::Rings(ClientRings::Wanted)),
        ("client RINGS_TAKEN", ClientFrame::Rings(ClientRings::Taken)),
        ("client RINGS_DECLINED", ClientFrame::Rings(ClientRings::Declined)),
        ("client RINGS_LEFT", ClientFrame::Rings(ClientRings::Left)),
        ("client CREDIT", ClientFrame::Credit { endpoint, messages: 2, bytes: 300 }),
        (
            "client WATCH",
            ClientFrame::Watch {
                endpoint,
                serial: corpus::serial(4),
                destination: Destination::Endpoint(EndpointId::from_raw(21)),
                attributes: Attributes::EMPTY,
            },
        ),
        (
            "client WATCH for a key",
            ClientFrame::Watch {
                endpoint,
                serial: corpus::serial(4),
                destination: group,
                attributes: Attributes::builder().key("a.b").build().unwrap(),
            },
        ),
        ("client UNWATCH", ClientFrame::Unwatch { endpoint, serial: corpus::serial(4) }),
        ("either DESCRIPTORS_TAKEN", ClientFrame::DescriptorsTaken),
        ("either GOODBYE", ClientFrame::Goodbye(Goodbye::new(GoodbyeCode::Done, ""))),
    ]
}

fn broker_examples() -> Vec<(&'static str, BrokerFrame)> {
    let endpoint = Handle::FIRST;
    let message = |group, name, missed, payload| {
        BrokerFrame::from(MessageFrame {
            head: MessageHead {
                endpoint,
                sequence: Sequence::from_raw(1000),
                group,
                name,
                sender: EndpointId::from_raw(20),
                sender_serial: 1,
                commit_time: 1_700_000_000_000_000_000,
                deadline: 0,
                credentials: Credentials { uid: 1000, pid: 4242 },
                missed,
                retained: false,
                apart: false,
                lent: false,
                descriptors: 0,
                descriptors_lost: false,
                role: Role::Plain,
                peer: None,
            },
            attributes: Attributes::EMPTY,
            payload: Bytes::from_static(payload),
        })
    };
    let messages = |entries| {
        let BrokerFrame::Message(first) = message(Some(GroupId::from_raw(7)), None, None, b"")
        else {
            unreachable!("it makes a message");
        };
        let head = MessageHead { apart: matches!(entries, Entries::Apart(_)), ..first.head };
        BrokerFrame::Messages(Box::new(MessagesFrame { head, count: 2, entries }))
    };
    let apart = || {
        let BrokerFrame::Message(mut frame) = message(Some(GroupId::from_raw(7)), None, None, b"")
        else {
            unreachable!("it makes a message");
        };
        let within = PlacedIn::Arena { memory: 4 };
        let placed = Placed { hold: 9, within, offset: 4096, length: 1 << 20 };
        (frame.head.apart, frame.head.lent) = (true, true);
        frame.payload = Bytes::copy_from_slice(&placed.encode());
        BrokerFrame::Message(frame)
    };
    let role = |role, payload| {
        let BrokerFrame::Message(mut frame) = message(None, None, None, payload) else {
            unreachable!("it makes a message");
        };
        frame.head.role = role;
        BrokerFrame::Message(frame)
    };
    let group_id = GroupId::from_raw(7);
    let gap = Gap { count: 3, first: Sequence::from_raw(990), last: Sequence::from_raw(998) };
    vec![
        (
            "broker WELCOME",
            BrokerFrame::Welcome(Box::new(Welcome {
                version: 1,
                features: Vec::new(),
                incarnation: Incarnation::from_bytes([
                    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
                ]),
                endpoint: EndpointId::from_raw(20),
                limits: Limits { lanes: 4, stall: Duration::from_secs(5), ..Limits::default() },
            })),
        ),
        ("broker MESSAGE with a payload apart", apart()),
        ("broker COMPLETED", BrokerFrame::Completed(CompletedRange::new(5, 7, true))),
        (
            "broker MEMORY",
            BrokerFrame::Memory { id: 4, kind: MemoryKind::Arena, length: 1 << 22, descriptors: 1 },
        ),
        ("broker FORGET", BrokerFrame::Forget { id: 4 }),
        ("broker MOVED", BrokerFrame::Moved { hold: 9, payload: Bytes::from_static(b"hello") }),
        (
            "broker DONE pong",
            BrokerFrame::Done { endpoint, serial: Serial::FIRST, response: Response::Pong },
        ),
        (
            "broker DONE seen",
            BrokerFrame::Done {
                endpoint,
                serial: corpus::serial(2),
                response: Response::Seen(Box::new(Seen::Groups {
                    groups: vec![corpus::seen_group()],
                    more: false,
                })),
            },
        ),
        (
            "broker DONE joined",
            BrokerFrame::Done {
                endpoint,
                serial: corpus::serial(2),
                response: Response::Joined {
                    group_id,
                    sequence: Sequence::from_raw(999),
                    created: true,
                    members: 1,
                },
            },
        ),
        (
            "broker PART",
            BrokerFrame::Part {
                endpoint,
                serial: corpus::serial(2),
                response: Response::Groups {
                    sequence: Sequence::from_raw(999),
                    groups: vec![GroupInfo {
                        name: "org.example.Chat".parse().unwrap(),
                        group_id,
                        members: 2,
                        creator: None,
                        retain: None,
                        gated: false,
                    }],
                },
            },
        ),
        (
            "broker ERROR",
            BrokerFrame::Error {
                endpoint,
                serial: corpus::serial(2),
                failure: Box::new(
                    Failure::new(FailureCode::LimitExceeded, "64 memberships already")
                        .with_limit("memberships", 64),
                ),
            },
        ),
        (
            "broker RECEIPT",
            BrokerFrame::Receipt {
                id: id(),
                receipt: Receipt {
                    sequence: Sequence::from_raw(1000),
                    sender_serial: 1,
                    after: Sequence::from_raw(0),
                    recipients: 2,
                    dropped: 0,
                    completion: None,
                },
            },
        ),
        (
            "broker RECEIPTS",
            BrokerFrame::Receipts(Box::new(ReceiptsFrame {
                lane: (id().endpoint, id().lane),
                serials: vec![corpus::serial(3), corpus::serial(4)],
                first: Receipt {
                    sequence: Sequence::from_raw(1000),
                    sender_serial: 1,
                    after: Sequence::from_raw(0),
                    recipients: 2,
                    dropped: 0,
                    completion: None,
                },
            })),
        ),
        (
            "broker MESSAGES",
            messages(Entries::Here(vec![
                (Attributes::EMPTY, Bytes::from_static(b"hello")),
                (Attributes::EMPTY, Bytes::from_static(b"again")),
            ])),
        ),
        (
            "broker MESSAGES apart",
            messages(Entries::Apart(Placed {
                hold: 5,
                within: PlacedIn::Arena { memory: 2 },
                offset: 65536,
                length: 26,
            })),
        ),
        (
            "broker REFUSED",
            BrokerFrame::Refused {
                id: id(),
                failure: Box::new(
                    Failure::new(FailureCode::WouldBlock, "1 of 2 is full")
                        .with_full(&[EndpointId::from_raw(21)], 1),
                ),
            },
        ),
        ("broker MESSAGE", message(Some(group_id), None, None, b"hello")),
        ("broker MESSAGE after a gap", message(Some(group_id), None, Some(gap), b"hello")),
        ("broker MESSAGE to this endpoint", message(None, None, None, b"psst")),
        ("broker MESSAGE to a name", message(None, Some(NameId::from_raw(5)), None, b"hello")),
        ("broker MESSAGE that is a request", role(Role::Request { first: None }, b"2+2")),
        (
            "broker MESSAGE that is a reply",
            role(Role::Reply { request: Sequence::from_raw(1000), refusal: false }, b"4"),
        ),
        (
            "broker NOTICE outcome",
            BrokerFrame::Notice {
                endpoint,
                notice: Notice::Outcome {
                    request: Sequence::from_raw(1000),
                    sequence: Sequence::from_raw(1200),
                    why: OutcomeCode::TimedOut,
                },
            },
        ),
        (
            "broker NOTICE request-ended",
            BrokerFrame::Notice {
                endpoint,
                notice: Notice::RequestEnded {
                    request: Sequence::from_raw(1000),
                    why: OutcomeCode::TimedOut,
                },
            },
        ),
        ("broker MESSAGE that was retained", {
            let mut frame = message(Some(group_id), None, None, b"hello");
            if let BrokerFrame::Message(message) = &mut frame {
                message.head.retained = true;
            }
            frame
        }),
        (
            "broker MESSAGE through a peer endpoint",
            match message(Some(group_id), None, None, b"hello") {
                BrokerFrame::Message(mut message) => {
                    message.head.peer = Some(EndpointId::from_raw(22));
                    BrokerFrame::Message(message)
                }
                other => other,
            },
        ),
        (
            "broker NOTICE candidate",
            BrokerFrame::Notice {
                endpoint,
                notice: Notice::Candidate {
                    group_id,
                    group: "club".parse().unwrap(),
                    sequence: Sequence::from_raw(1100),
                    candidate: EndpointId::from_raw(21),
                    uid: 1000,
                    pid: 4242,
                    peer: EndpointId::from_raw(22),
                    flags: MemberFlags::LOOPBACK,
                },
            },
        ),
        (
            "broker NOTICE gap",
            BrokerFrame::Notice { endpoint, notice: Notice::Gap { group_id, gap } },
        ),
        (
            "broker DONE claimed",
            BrokerFrame::Done {
                endpoint,
                serial: corpus::serial(2),
                response: Response::Claimed {
                    name_id: NameId::from_raw(5),
                    sequence: Sequence::from_raw(999),
                    position: 0,
                },
            },
        ),
        (
            "broker NOTICE name-lost",
            BrokerFrame::Notice {
                endpoint,
                notice: Notice::Claim(Box::new(ClaimChanged {
                    name_id: NameId::from_raw(5),
                    name: "org.example.Clock".parse().unwrap(),
                    sequence: Sequence::from_raw(1200),
                    event: NameEvent::Replaced { by: EndpointId::from_raw(21), queued: true },
                })),
            },
        ),
        (
            "broker NOTICE evicted",
            BrokerFrame::Notice {
                endpoint,
                notice: Notice::Evicted {
                    group_id,
                    sequence: Sequence::from_raw(1200),
                    reason: EvictionReason::Stalled,
                    stalled: Duration::from_secs(10),
                    queued_messages: 256,
                    back_off: Duration::from_secs(1),
                },
            },
        ),
        (
            "broker NOTICE view",
            BrokerFrame::Notice {
                endpoint,
                notice: Notice::View(Box::new(ViewNotice {
                    group_id,
                    group: "org.example.Chat".parse().unwrap(),
                    sequence: Sequence::from_raw(1100),
                    change: ChangeCode::Joined,
                    endpoint: EndpointId::from_raw(21),
                    uid: 1000,
                    pid: 4242,
                    members: 2,
                    ended: false,
                    missed: None,
                })),
            },
        ),
        (
            "broker NOTICE monitored",
            BrokerFrame::Notice {
                endpoint,
                notice: Notice::Monitored(Box::new(Copied {
                    group: Some("org.example.Chat".parse().unwrap()),
                    to: None,
                    name: None,
                    kind: CopyCode::Message,
                    request: None,
                })),
            },
        ),
        (
            "broker NOTICE current",
            BrokerFrame::Notice {
                endpoint,
                notice: Notice::Current {
                    group_id,
                    sequence: Sequence::from_raw(1100),
                    messages: 1,
                },
            },
        ),
        ("broker WRITABLE", BrokerFrame::Writable { endpoint, serial: corpus::serial(4) }),
        (
            "broker RINGS",
            BrokerFrame::Rings(BrokerRings::Offered {
                submission_bytes: 128 << 10,
                delivery_bytes: 256 << 10,
            }),
        ),
        ("broker RINGS_REFUSED", BrokerFrame::Rings(BrokerRings::Refused)),
        ("broker RINGS_BEGIN", BrokerFrame::Rings(BrokerRings::Begin)),
        ("broker RINGS_END", BrokerFrame::Rings(BrokerRings::End)),
        ("either DESCRIPTORS_TAKEN", BrokerFrame::DescriptorsTaken),
        ("either GOODBYE", BrokerFrame::Goodbye(Goodbye::new(GoodbyeCode::Done, ""))),
    ]
}

#[test]
fn examples_of_client_frames_are_decoded_and_encoded_again() {
    for (title, frame) in client_examples() {
        check(title, &frame);
    }
}

#[test]
fn examples_of_broker_frames_are_decoded_and_encoded_again() {
    for (title, frame) in broker_examples() {
        check(title, &frame);
    }
}

#[test]
fn the_magic_of_the_page_is_taken() {
    let examples = examples();
    let magic = examples.iter().find(|example| example.title == "magic").unwrap();
    assert_eq!(magic.bytes, MAGIC);
    let mut bytes = BytesMut::from(&magic.bytes[..]);
    assert_eq!(take_magic(&mut bytes), Ok(true));
}

#[test]
fn no_example_goes_unchecked_and_every_kind_of_frame_has_one() {
    let client: Vec<_> = client_examples();
    let broker: Vec<_> = broker_examples();
    let checked: Vec<_> = client
        .iter()
        .map(|(title, _)| *title)
        .chain(broker.iter().map(|(title, _)| *title))
        .chain(["magic"])
        .collect();
    for example in examples() {
        assert!(checked.contains(&example.title), "{}", example.title);
    }
    fn kinds<F: Direction>(frames: &[(&'static str, F)]) -> Vec<u8> {
        let mut kinds: Vec<_> = frames.iter().map(|(_, frame)| encoded(frame)[4]).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }
    assert_eq!(kinds(&client), kinds(&corpus::client()));
    assert_eq!(kinds(&broker), kinds(&corpus::broker()));
}

#[test]
fn the_page_names_every_code_operation_limit_and_bound() {
    let operations = Request::OPERATIONS.iter().copied();
    let failures = FailureCode::ALL.iter().map(FailureCode::as_str);
    let goodbyes = GoodbyeCode::ALL.iter().map(GoodbyeCode::as_str);
    let changes = ChangeCode::ALL.iter().map(ChangeCode::as_str);
    let outcomes = OutcomeCode::ALL.iter().map(OutcomeCode::as_str);
    let members = MemberCode::ALL.iter().map(MemberCode::as_str);
    let copies = CopyCode::ALL.iter().map(CopyCode::as_str);
    let told = changes.chain(outcomes).chain(members).chain(copies);
    for word in operations.chain(failures).chain(goodbyes).chain(told) {
        assert!(PAGE.contains(&format!("`{word}`")), "{word}");
    }
    for (_, frame) in corpus::broker() {
        let bytes = encoded(&frame);
        if let Some(kind) = text_under(&bytes[HEADER_BYTES..], "type")
            && kind != "rain"
        {
            assert!(PAGE.contains(&format!("\n| `{kind}` |")), "{kind}");
        }
    }
    for (name, default) in super::super::limits_form::defaults() {
        assert!(PAGE.contains(&format!("| `{name}` | {default} |")), "{name}");
    }
    for bound in [
        MAX_FRAME_BYTES,
        MAX_FRAME_BYTES - HEADER_BYTES,
        MAX_TEXT_BYTES,
        MAX_PART,
        crate::MAX_ATTRIBUTES_BYTES,
        crate::MAX_FIELDS_BYTES,
        crate::MAX_FILTER_CONDITIONS,
        crate::MAX_PATTERN_BYTES,
        8 + crate::MAX_ATTRIBUTES_BYTES,
    ] {
        let number = bound.to_string();
        assert!(PAGE.contains(&number), "{number}");
    }
}
