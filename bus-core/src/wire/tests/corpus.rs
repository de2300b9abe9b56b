//! At least one frame of every kind and form.

use std::time::Duration;

use bytes::Bytes;

use super::super::inside::{
    Awaited, Fate, GroupTraffic, Known, Look, Seen, Story, To, WaitingSend, Whose,
};
use super::super::{
    AccountInfo, BrokerFrame, BrokerRings, ChangeCode, ClaimChanged, ClientFrame, ClientRings,
    ControlError, Copied, CopyCode, Entries, EvictionReason, Failure, FailureCode, Goodbye,
    GoodbyeCode, GroupInfo, Handle, Held, Hello, Incarnation, LaneNumber, MemberCode, MemberInfo,
    MemoryKind, MessageFrame, MessageHead, MessagesFrame, MonitoredChange, MonitoredMember,
    MonitoredOutcome, NameInfo, Notice, OutcomeCode, Owner, OwnerChanged, Placed, PlacedIn,
    ReceiptsFrame, Request, Response, Role, SendFlags, SendFrame, SendHead, SendId, Serial, Stats,
    Status, ViewNotice, Welcome,
};
use crate::{
    Amounts, Attributes, CompletedRange, Condition, ContentType, Credentials, DataType,
    Description, Destination, EndpointId, Field, Filter, FilterProgram, Gap, GroupId, Interest,
    Limits, MemberFlags, NameEvent, NameFlags, NameId, Operation, Pattern, Receipt, Resource,
    Retain, Sequence, Signal, Variant, VariantType,
};

pub(super) fn serial(number: u32) -> Serial {
    Serial::new(number).unwrap()
}

pub(super) fn send_id() -> SendId {
    SendId { endpoint: Handle::from_raw(3), lane: LaneNumber::new(2).unwrap(), serial: serial(77) }
}

pub(super) fn attributes() -> Attributes {
    Attributes::builder()
        .key(b"a.b")
        .operation("Add")
        .content_type(ContentType::Json)
        .field("n", "1")
        .field("m", "")
        .build()
        .unwrap()
}

/// r6 = r1; r0 = the byte at 1; exit
pub(super) fn program() -> Condition {
    let code = [0xbf, 0x16, 0, 0, 0, 0, 0, 0, 0x30, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    Condition::Program(FilterProgram::load(&code).unwrap())
}

/// A condition of every kind.
pub(super) fn filter() -> Filter {
    let field = |value| Condition::Field { name: "n".into(), value };
    Filter::new([
        vec![Condition::Key(Pattern::prefix("a.")), field(Pattern::exactly("1"))],
        vec![Condition::Key(Pattern::exactly([0xff])), field(Pattern::prefix(""))],
        vec![Condition::Operation(Pattern::exactly("Add"))],
        vec![Condition::Operation(Pattern::prefix("A")), program()],
    ])
    .unwrap()
}

pub(super) fn send(attributes: Attributes, payload: &[u8]) -> ClientFrame {
    ClientFrame::Send(SendFrame {
        head: SendHead {
            id: send_id(),
            destination: Destination::Group(GroupId::from_raw(9)),
            flags: SendFlags::empty(),
            deadline: 0,
            descriptors: 0,
        },
        attributes,
        payload: Bytes::copy_from_slice(payload),
    })
}

fn whose(pid: u32) -> Whose {
    Whose { uid: 1000, pid, connection: Some(2), program: Some("clock".into()) }
}

pub(super) fn seen_group() -> GroupTraffic {
    GroupTraffic {
        group: "org.example.Chat".parse().unwrap(),
        group_id: GroupId::from_raw(9),
        members: 3,
        messages: 10,
        bytes: 100,
        deliveries: 30,
        dropped: 1,
    }
}

fn seen_wait() -> WaitingSend {
    let to = Destination::Group(GroupId::from_raw(9));
    WaitingSend {
        ticket: 7,
        sender: EndpointId::from_raw(4),
        of: whose(17),
        to: To::new(to, Some("org.example.Chat".parse().unwrap())),
        bytes: 64,
        waited_us: 1_500,
        waits_for: vec![Awaited { endpoint: EndpointId::from_raw(5), of: whose(18) }],
        stood_us: 1_000,
    }
}

fn seen_story() -> Story {
    let told = crate::RecipientFate {
        endpoint: EndpointId::from_raw(5),
        credentials: None,
        peer: None,
        fate: crate::Fate::Dropped,
    };
    Story {
        sequence: Sequence::from_raw(81),
        known: Known::Message,
        oldest: None,
        sender: Some(EndpointId::from_raw(4)),
        of: Some(whose(17)),
        to: To::new(Destination::Endpoint(EndpointId::from_raw(5)), None),
        commit_time: 1,
        bytes: 64,
        recipients: 0,
        incomplete: false,
        fates: vec![Fate { of: Some(whose(18)), ..Fate::from(&told) }],
        more: false,
    }
}

pub(super) fn client() -> Vec<(&'static str, ClientFrame)> {
    let call =
        |request| ClientFrame::Call { endpoint: Handle::from_raw(1), serial: serial(5), request };
    let group = || "org.example.Chat".parse().unwrap();
    let group_id = GroupId::from_raw(9);
    let name_id = NameId::from_raw(5);
    let endpoint = EndpointId::from_raw(5);
    vec![
        ("hello", ClientFrame::Hello(Hello::new())),
        (
            "hello with everything",
            ClientFrame::Hello(Hello {
                versions: vec![1, 2],
                features: vec!["ring".into()],
                program: Some("chat".into()),
            }),
        ),
        ("ping", call(Request::Ping)),
        ("status", call(Request::Status)),
        ("stats", call(Request::Stats)),
        ("reload", call(Request::Reload)),
        ("look at groups", call(Request::Look(Look::Groups { after: Some(group()), max: 5 }))),
        (
            "look at endpoints",
            call(Request::Look(Look::Endpoints { after: Some(EndpointId::from_raw(4)), max: 5 })),
        ),
        ("look at waits", call(Request::Look(Look::Waits { after: None, max: 5 }))),
        ("look at connections", call(Request::Look(Look::Connections { after: Some(3), max: 5 }))),
        ("look at ingresses", call(Request::Look(Look::Ingresses))),
        (
            "look why",
            call(Request::Look(Look::Why {
                sequence: Sequence::from_raw(81),
                after: None,
                max: 5,
            })),
        ),
        (
            "look at refusals",
            call(Request::Look(Look::Refusals { endpoint: None, group: Some(group()), max: 5 })),
        ),
        ("accounts", call(Request::Accounts)),
        ("open", call(Request::OpenEndpoint)),
        ("close", call(Request::CloseEndpoint)),
        ("shutdown", call(Request::ShutdownReceive)),
        ("create", call(Request::Create { group: group(), retain: None, stall_ms: None })),
        (
            "create retaining",
            call(Request::Create {
                group: group(),
                retain: Some(Retain::keys(100)),
                stall_ms: None,
            }),
        ),
        (
            "join",
            call(Request::Join {
                group: group(),
                flags: MemberFlags::empty(),
                create: false,
                filter: None,
                retain: None,
                state: false,
            }),
        ),
        (
            "join with everything",
            call(Request::Join {
                group: group(),
                flags: MemberFlags::all(),
                create: true,
                filter: Some(filter()),
                retain: Some(Retain::last(1)),
                state: true,
            }),
        ),
        ("set filter", call(Request::SetFilter { group_id, filter: Some(filter()) })),
        ("set no filter", call(Request::SetFilter { group_id, filter: None })),
        (
            "create gated",
            call(Request::CreateGated { group: group(), backlog: None, stall_ms: None }),
        ),
        (
            "create gated with everything",
            call(Request::CreateGated { group: group(), backlog: Some(3), stall_ms: None }),
        ),
        (
            "connect",
            call(Request::Connect { group: group(), flags: MemberFlags::all(), filter: None }),
        ),
        ("withdraw", call(Request::Withdraw { group: group() })),
        (
            "admit",
            call(Request::Admit {
                group_id,
                endpoint,
                flags: MemberFlags::all(),
                drop_at_peer: true,
                filter: Some(filter()),
            }),
        ),
        ("refuse", call(Request::Refuse { group_id, endpoint, text: "full house".into() })),
        ("expel", call(Request::Expel { group_id, endpoint, text: String::new() })),
        (
            "set terms",
            call(Request::SetTerms {
                group_id,
                endpoint,
                flags: MemberFlags::empty(),
                drop_at_peer: false,
                filter: None,
            }),
        ),
        ("close peer", call(Request::ClosePeer { peer: endpoint })),
        ("leave", call(Request::Leave { group_id })),
        (
            "create pool",
            call(Request::CreatePool { buffers: 8, bytes: 1 << 20, group_id: Some(group_id) }),
        ),
        ("seal pool", call(Request::SealPool { pool: 3 })),
        ("drop pool", call(Request::DropPool { pool: 3 })),
        ("release", ClientFrame::Release(vec![1, 7, u32::MAX])),
        ("fetch", ClientFrame::Fetch { hold: 7 }),
        (
            "watch-group",
            call(Request::WatchGroup {
                group: group(),
                interest: Interest::Members,
                create: false,
            }),
        ),
        (
            "watch-group with everything",
            call(Request::WatchGroup { group: group(), interest: Interest::Anybody, create: true }),
        ),
        ("monitor", call(Request::Monitor { group: None })),
        ("monitor a group", call(Request::Monitor { group: Some(group()) })),
        ("unmonitor", call(Request::Unmonitor)),
        ("unwatch-group", call(Request::UnwatchGroup { group_id })),
        ("find", call(Request::FindGroup { group: group() })),
        ("groups", call(Request::Groups)),
        ("members", call(Request::Members { group_id })),
        (
            "own name",
            call(Request::OwnName { name: group(), flags: NameFlags::empty(), description: None }),
        ),
        (
            "own name with everything",
            call(Request::OwnName {
                name: group(),
                flags: NameFlags::all(),
                description: Some(Box::new(description())),
            }),
        ),
        ("release name", call(Request::ReleaseName { name_id })),
        ("find name", call(Request::FindName { name: group() })),
        ("names", call(Request::Names)),
        ("describe name", call(Request::DescribeName { name: group() })),
        ("watch name", call(Request::WatchName { name: group() })),
        ("unwatch name", call(Request::UnwatchName { name_id })),
        (
            "call that is empty",
            ClientFrame::BadCall {
                endpoint: Handle::FIRST,
                serial: Serial::FIRST,
                problem: Request::decode(b"").unwrap_err(),
                body: Bytes::new(),
            },
        ),
        (
            "call of a later version",
            ClientFrame::BadCall {
                endpoint: Handle::FIRST,
                serial: Serial::FIRST,
                problem: ControlError::UnknownOperation("fly".into()),
                body: Bytes::from_static(b"\xa1\x62op\x63fly"),
            },
        ),
        ("send", send(Attributes::EMPTY, b"hello")),
        ("send of nothing", send(Attributes::EMPTY, b"")),
        ("send with attributes", send(attributes(), b"{}")),
        ("send that is not copied", send(attributes(), &[7; 20_000])),
        (
            "send with everything",
            ClientFrame::Send(SendFrame {
                head: SendHead {
                    id: send_id(),
                    destination: Destination::Endpoint(EndpointId::from_raw(0x0102_0304_0506)),
                    flags: SendFlags::NONBLOCK
                        | SendFlags::INDEPENDENT
                        | SendFlags::REQUEST
                        | SendFlags::REPEATABLE,
                    deadline: 1_700_000_000_000_000_000,
                    descriptors: 16,
                },
                attributes: attributes(),
                payload: Bytes::from_static(b"x"),
            }),
        ),
        (
            "send of a reply",
            ClientFrame::Send(SendFrame {
                head: SendHead {
                    id: send_id(),
                    destination: Destination::Caller(Sequence::from_raw(1000)),
                    flags: SendFlags::REFUSAL,
                    deadline: 0,
                    descriptors: 0,
                },
                attributes: Attributes::EMPTY,
                payload: Bytes::from_static(b"no"),
            }),
        ),
        ("cancel request", call(Request::CancelRequest { request: Sequence::from_raw(1000) })),
        ("decline request", call(Request::DeclineRequest { request: Sequence::from_raw(1000) })),
        ("cancel", ClientFrame::Cancel(send_id())),
        (
            "resume",
            ClientFrame::Resume {
                endpoint: Handle::from_raw(3),
                lane: LaneNumber::new(15).unwrap(),
            },
        ),
        ("flush", ClientFrame::Flush),
        (
            "credit",
            ClientFrame::Credit { endpoint: Handle::from_raw(3), messages: 17, bytes: 1 << 33 },
        ),
        (
            "watch a group",
            ClientFrame::Watch {
                endpoint: Handle::FIRST,
                serial: serial(6),
                destination: Destination::Group(group_id),
                attributes: Attributes::EMPTY,
            },
        ),
        (
            "watch a group for a message",
            ClientFrame::Watch {
                endpoint: Handle::FIRST,
                serial: serial(6),
                destination: Destination::Group(group_id),
                attributes: attributes(),
            },
        ),
        (
            "watch an endpoint",
            ClientFrame::Watch {
                endpoint: Handle::FIRST,
                serial: serial(6),
                destination: Destination::Endpoint(EndpointId::from_raw(4)),
                attributes: Attributes::EMPTY,
            },
        ),
        (
            "watch whether a name is writable",
            ClientFrame::Watch {
                endpoint: Handle::FIRST,
                serial: serial(6),
                destination: Destination::Name(name_id),
                attributes: Attributes::EMPTY,
            },
        ),
        ("unwatch", ClientFrame::Unwatch { endpoint: Handle::FIRST, serial: serial(6) }),
        ("descriptors taken", ClientFrame::DescriptorsTaken),
        ("rings wanted", ClientFrame::Rings(ClientRings::Wanted)),
        ("rings taken", ClientFrame::Rings(ClientRings::Taken)),
        ("rings declined", ClientFrame::Rings(ClientRings::Declined)),
        ("rings left", ClientFrame::Rings(ClientRings::Left)),
        ("goodbye", ClientFrame::Goodbye(Goodbye::new(GoodbyeCode::Done, ""))),
    ]
}

pub(super) fn message(missed: Option<Gap>, attributes: Attributes, payload: &[u8]) -> BrokerFrame {
    BrokerFrame::from(MessageFrame {
        head: MessageHead {
            endpoint: Handle::from_raw(3),
            sequence: Sequence::from_raw(1000),
            group: Some(GroupId::from_raw(9)),
            name: None,
            sender: EndpointId::from_raw(4),
            sender_serial: 12,
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
        attributes,
        payload: Bytes::copy_from_slice(payload),
    })
}

pub(super) fn messages(entries: Entries) -> BrokerFrame {
    let BrokerFrame::Message(first) = message(None, Attributes::EMPTY, b"") else {
        unreachable!("made above")
    };
    let count = match &entries {
        Entries::Here(entries) => u32::try_from(entries.len()).unwrap(),
        Entries::Apart(_) => 40,
    };
    let head = MessageHead { apart: matches!(entries, Entries::Apart(_)), ..first.head };
    BrokerFrame::Messages(Box::new(MessagesFrame { head, count, entries }))
}

pub(super) fn view(missed: Option<Gap>) -> ViewNotice {
    ViewNotice {
        group_id: GroupId::from_raw(9),
        group: "org.example.Chat".parse().unwrap(),
        sequence: Sequence::from_raw(1001),
        change: ChangeCode::Joined,
        endpoint: EndpointId::from_raw(4),
        uid: 1000,
        pid: 4242,
        members: 2,
        ended: false,
        missed,
    }
}

fn description() -> Description {
    let boxed = Box::new;
    let of_all = vec![
        Field::new("primitive", DataType::U8).doc("Small."),
        Field::new("tuple", DataType::Tuple(vec![DataType::I128, DataType::Char])),
        Field::new("array", DataType::Array { of: boxed(DataType::F32), length: 4 }),
        Field::new("seq", DataType::Seq(boxed(DataType::Option(boxed(DataType::String))))),
        Field::new(
            "map",
            DataType::Map { key: boxed(DataType::Bytes), value: boxed(DataType::Any) },
        ),
        Field::new("newtype", DataType::NewtypeStruct(boxed(DataType::UnitStruct))),
        Field::new("tuple_struct", DataType::TupleStruct(vec![DataType::Bool, DataType::U64])),
    ];
    let cases = vec![
        Variant::new("none", VariantType::Unit).doc("Nothing."),
        Variant::new("one", VariantType::Newtype(DataType::named("All"))),
        Variant::new("two", VariantType::Tuple(vec![DataType::U8, DataType::U8])),
        Variant::new("more", VariantType::Struct(vec![Field::new("x", DataType::Unit)])),
    ];
    let now = Operation::new("now").argument(DataType::named("Cases")).reply(DataType::U64);
    let struck =
        Signal::new("struck", DataType::U8).group("a.b".parse().unwrap()).doc("At every hour.");
    Description::new("Tells the time.")
        .operation(now.doc("Now."))
        .signal(struck)
        .data_type("All", DataType::Struct(of_all))
        .data_type("Cases", DataType::Enum(cases))
}

pub(super) fn gap() -> Gap {
    Gap { count: 3, first: Sequence::from_raw(990), last: Sequence::from_raw(998) }
}

pub(super) fn broker() -> Vec<(&'static str, BrokerFrame)> {
    let done =
        |response| BrokerFrame::Done { endpoint: Handle::from_raw(1), serial: serial(5), response };
    let failure = Failure::new(FailureCode::NoSuchGroup, "group 9 has ended");
    let sequence = Sequence::from_raw(1001);
    let mut amounts = Amounts::default();
    amounts.set(Resource::Bytes, 1 << 40);
    let group_id = GroupId::from_raw(9);
    let group = |creator| GroupInfo {
        name: "org.example.Chat".parse().unwrap(),
        group_id,
        members: 2,
        creator,
        gated: creator.is_some(),
        retain: None,
    };
    let role = |role| {
        let BrokerFrame::Message(mut frame) = message(None, Attributes::EMPTY, b"2+2") else {
            unreachable!("it makes a message");
        };
        (frame.head.group, frame.head.role) = (None, role);
        BrokerFrame::Message(frame)
    };
    let member = |full_since_sequence| MemberInfo {
        endpoint: EndpointId::from_raw(4),
        uid: 1000,
        pid: 4242,
        flags: MemberFlags::LOOPBACK | MemberFlags::DROP_WHEN_FULL,
        queued_messages: 3,
        queued_bytes: 300,
        capacity: 256,
        dropped: 1,
        full_since_sequence,
        blocks: 2,
    };
    let name_id = NameId::from_raw(5);
    let clock = || "org.example.Clock".parse().unwrap();
    let owner = Owner { endpoint: EndpointId::from_raw(4), uid: 1000, pid: 4242 };
    let name = |shared| NameInfo {
        name: clock(),
        name_id,
        owners: vec![owner],
        owner_count: 1,
        waiting: 2,
        shared,
        described: true,
    };
    let claim = |event| BrokerFrame::Notice {
        endpoint: Handle::FIRST,
        notice: Notice::Claim(Box::new(ClaimChanged { name_id, name: clock(), sequence, event })),
    };
    let owner_changed = |missed| OwnerChanged {
        name_id,
        name: clock(),
        sequence,
        old: Some(owner),
        new: None,
        owners: 0,
        missed,
    };
    let changed = |missed| BrokerFrame::Notice {
        endpoint: Handle::FIRST,
        notice: Notice::Owner(Box::new(owner_changed(missed))),
    };
    let chat = || "org.example.Chat".parse().unwrap();
    let monitored = |case, copied| {
        let notice = Notice::Monitored(Box::new(copied));
        (case, BrokerFrame::Notice { endpoint: Handle::FIRST, notice })
    };
    let copied = |group, to, name, kind, request| Copied { group, to, name, kind, request };
    let seen = |case, change| {
        let notice = Notice::MonitoredChange(Box::new(change));
        (case, BrokerFrame::Notice { endpoint: Handle::FIRST, notice })
    };
    let incarnation = Incarnation::from_bytes(*b"0123456789abcdef");
    let peer = EndpointId::from_raw(5);
    let notice = |notice| BrokerFrame::Notice { endpoint: Handle::FIRST, notice };
    vec![
        (
            "welcome",
            BrokerFrame::Welcome(Box::new(Welcome {
                version: 1,
                features: Vec::new(),
                incarnation,
                endpoint: EndpointId::from_raw(4),
                limits: Limits::default(),
            })),
        ),
        ("pong", done(Response::Pong)),
        (
            "status",
            done(Response::Status(Box::new(Status {
                version: "0.1.0".into(),
                protocol: 1,
                address: Some("/run/user/1000/unisono/bus".into()),
                incarnation,
                pid: 17,
                uptime_seconds: 60,
                limits: Limits { queue_messages: 4, ..Limits::default() },
            }))),
        ),
        ("stats", done(Response::Stats(Box::new(Stats { messages: 7, ..Stats::default() })))),
        (
            "reloaded",
            done(Response::Reloaded {
                rules: 3,
                pending: vec!["threads: needs a restart".to_owned()],
            }),
        ),
        (
            "accounts",
            done(Response::Accounts {
                accounts: vec![
                    AccountInfo {
                        uid: 1000,
                        limits: Some(amounts),
                        refused: Some(Amounts::default()),
                        held: amounts,
                        ..AccountInfo::default()
                    },
                    AccountInfo {
                        uid: 1000,
                        connection: Some(4),
                        pid: Some(17),
                        held: amounts,
                        ..AccountInfo::default()
                    },
                ],
            }),
        ),
        ("opened", done(Response::Opened { endpoint: EndpointId::from_raw(4) })),
        (
            "seen groups",
            done(Response::Seen(Box::new(Seen::Groups { groups: vec![seen_group()], more: true }))),
        ),
        (
            "seen waits",
            done(Response::Seen(Box::new(Seen::Waits { waits: vec![seen_wait()], more: false }))),
        ),
        ("seen why", done(Response::Seen(Box::new(Seen::Why(Box::new(seen_story())))))),
        (
            "seen ingresses",
            done(Response::Seen(Box::new(Seen::Ingresses { ingresses: Vec::new() }))),
        ),
        ("closed", done(Response::Closed)),
        ("shut", done(Response::Shut { sequence })),
        ("created", done(Response::Created { group_id, sequence })),
        ("joined", done(Response::Joined { group_id, sequence, created: true, members: 1 })),
        ("filter set", done(Response::FilterSet { sequence })),
        (
            "connected",
            done(Response::Connected { group_id, sequence, owner: EndpointId::from_raw(3), peer }),
        ),
        (
            "admitted",
            done(Response::Admitted {
                group_id,
                sequence,
                members: 2,
                flags: MemberFlags::all(),
                owner: EndpointId::from_raw(3),
                peer,
            }),
        ),
        ("changed", done(Response::Changed { sequence })),
        ("refused a candidate", done(Response::Refused)),
        ("withdrawn", done(Response::Withdrawn)),
        ("left", done(Response::Left { sequence })),
        ("watching", done(Response::Watching { group_id, sequence, members: 2 })),
        ("monitoring", done(Response::Monitoring { sequence })),
        ("unmonitored", done(Response::Unmonitored { sequence })),
        ("request ended", done(Response::RequestEnded { ended: true })),
        ("group", done(Response::Group(group(None)))),
        (
            "groups",
            done(Response::Groups {
                sequence,
                groups: vec![group(None), group(Some(EndpointId::from_raw(4)))],
            }),
        ),
        (
            "part of groups",
            BrokerFrame::Part {
                endpoint: Handle::from_raw(1),
                serial: serial(5),
                response: Response::Groups { sequence, groups: vec![group(None)] },
            },
        ),
        (
            "members",
            done(Response::Members {
                sequence,
                members: vec![member(None), member(Some(sequence))],
            }),
        ),
        ("claimed", done(Response::Claimed { name_id, sequence, position: 1 })),
        ("released", done(Response::Released { sequence })),
        ("name", done(Response::Name(name(false)))),
        ("names", done(Response::Names { sequence, names: vec![name(true), name(false)] })),
        ("description", done(Response::Description(Box::new(description())))),
        ("name watched", done(Response::NameWatched { name_id, sequence, owners: vec![owner] })),
        ("unwatched", done(Response::Unwatched { sequence })),
        ("name acquired", claim(NameEvent::Acquired)),
        ("name lost", claim(NameEvent::Replaced { by: EndpointId::from_raw(4), queued: true })),
        ("name lost by a stalled worker", claim(NameEvent::Stalled)),
        ("owner changed", changed(None)),
        ("owner changed after others", changed(Some(gap()))),
        (
            "owner changes lost",
            BrokerFrame::Notice {
                endpoint: Handle::FIRST,
                notice: Notice::OwnersLost { name_id, gap: gap() },
            },
        ),
        (
            "error",
            BrokerFrame::Error {
                endpoint: Handle::FIRST,
                serial: serial(5),
                failure: Box::new(failure.clone()),
            },
        ),
        (
            "error about a limit",
            BrokerFrame::Error {
                endpoint: Handle::FIRST,
                serial: serial(5),
                failure: Box::new(
                    Failure::new(FailureCode::LimitExceeded, "")
                        .with_limit("memberships", 64)
                        .with_held(Some(Held { uid: 1000, most: 7, ..Held::default() })),
                ),
            },
        ),
        (
            "error about a back-off",
            BrokerFrame::Error {
                endpoint: Handle::FIRST,
                serial: serial(5),
                failure: Box::new(
                    Failure::new(FailureCode::BackOff, "")
                        .with_retry_after(Duration::from_millis(1500)),
                ),
            },
        ),
        (
            "receipt",
            BrokerFrame::Receipt {
                id: send_id(),
                receipt: Receipt {
                    sequence,
                    sender_serial: 12,
                    after: Sequence::from_raw(0),
                    recipients: 10_000,
                    dropped: 2,
                    completion: None,
                },
            },
        ),
        (
            "receipts",
            BrokerFrame::Receipts(Box::new(ReceiptsFrame {
                lane: (send_id().endpoint, send_id().lane),
                serials: vec![serial(7), serial(300), serial(9)],
                first: Receipt {
                    sequence,
                    sender_serial: 12,
                    after: Sequence::from_raw(0),
                    recipients: 10_000,
                    dropped: 0,
                    completion: None,
                },
            })),
        ),
        (
            "messages",
            messages(Entries::Here(vec![
                (Attributes::EMPTY, Bytes::from_static(b"one")),
                (attributes(), Bytes::from_static(b"{}")),
                (Attributes::EMPTY, Bytes::new()),
            ])),
        ),
        (
            "messages apart",
            messages(Entries::Apart(Placed {
                hold: 4,
                within: PlacedIn::Arena { memory: 2 },
                offset: 4096,
                length: 5000,
            })),
        ),
        ("refused", BrokerFrame::Refused { id: send_id(), failure: Box::new(failure) }),
        (
            "refused because some are full",
            BrokerFrame::Refused {
                id: send_id(),
                failure: Box::new(
                    Failure::new(FailureCode::WouldBlock, "20 endpoints have no room")
                        .with_full(&[EndpointId::from_raw(4); 20], 20),
                ),
            },
        ),
        (
            "refused with a code of a later version",
            BrokerFrame::Refused {
                id: send_id(),
                failure: Box::new(Failure::new("on-holiday".into(), "back on Monday")),
            },
        ),
        ("message", message(None, Attributes::EMPTY, b"hello")),
        ("message of nothing", message(None, Attributes::EMPTY, b"")),
        ("message after a gap", message(Some(gap()), attributes(), b"{}")),
        ("message that is not copied", message(Some(gap()), attributes(), &[7; 20_000])),
        (
            "message to one endpoint",
            BrokerFrame::from(MessageFrame {
                head: MessageHead {
                    endpoint: Handle::FIRST,
                    sequence,
                    group: None,
                    name: None,
                    sender: EndpointId::from_raw(4),
                    sender_serial: 13,
                    commit_time: 1,
                    deadline: 2,
                    credentials: Credentials { uid: 0, pid: 1 },
                    missed: None,
                    retained: false,
                    apart: false,
                    lent: false,
                    descriptors: 0,
                    descriptors_lost: true,
                    role: Role::Plain,
                    peer: Some(EndpointId::from_raw(5)),
                },
                attributes: Attributes::EMPTY,
                payload: Bytes::from_static(b"psst"),
            }),
        ),
        ("request", role(Role::Request { first: None })),
        ("request given again", role(Role::Request { first: Some(sequence) })),
        ("reply", role(Role::Reply { request: sequence, refusal: false })),
        ("refusal", role(Role::Reply { request: sequence, refusal: true })),
        (
            "outcome",
            BrokerFrame::Notice {
                endpoint: Handle::FIRST,
                notice: Notice::Outcome { request: sequence, sequence, why: OutcomeCode::Gone },
            },
        ),
        (
            "request ended notice",
            BrokerFrame::Notice {
                endpoint: Handle::FIRST,
                notice: Notice::RequestEnded { request: sequence, why: OutcomeCode::Cancelled },
            },
        ),
        (
            "gap",
            BrokerFrame::Notice {
                endpoint: Handle::FIRST,
                notice: Notice::Gap { group_id, gap: gap() },
            },
        ),
        (
            "evicted",
            BrokerFrame::Notice {
                endpoint: Handle::FIRST,
                notice: Notice::Evicted {
                    group_id,
                    sequence,
                    reason: EvictionReason::Stalled,
                    stalled: Duration::from_secs(10),
                    queued_messages: 256,
                    back_off: Duration::from_secs(60),
                },
            },
        ),
        ("expelled", notice(Notice::Expelled { group_id, sequence, text: "manners".into() })),
        (
            "candidate",
            notice(Notice::Candidate {
                group_id,
                group: "org.example.Club".parse().unwrap(),
                sequence,
                candidate: EndpointId::from_raw(4),
                uid: 1000,
                pid: 4242,
                peer,
                flags: MemberFlags::LOOPBACK,
            }),
        ),
        ("peer gap", notice(Notice::PeerGap { group_id, peer, gap: gap() })),
        ("peer stalled", notice(Notice::PeerStalled { group_id, peer, sequence })),
        ("peer closed", notice(Notice::PeerClosed { peer, sequence })),
        (
            "view",
            BrokerFrame::Notice {
                endpoint: Handle::FIRST,
                notice: Notice::View(Box::new(view(None))),
            },
        ),
        (
            "view after others were missed",
            BrokerFrame::Notice {
                endpoint: Handle::FIRST,
                notice: Notice::View(Box::new(ViewNotice {
                    change: ChangeCode::Closed,
                    members: 0,
                    ended: true,
                    ..view(Some(gap()))
                })),
            },
        ),
        monitored("monitored", copied(Some(chat()), None, None, CopyCode::Message, None)),
        monitored(
            "monitored at an endpoint",
            copied(None, Some(EndpointId::from_raw(4)), None, CopyCode::Reply, Some(sequence)),
        ),
        monitored(
            "monitored request to a name",
            copied(None, Some(EndpointId::from_raw(4)), Some(chat()), CopyCode::Request, None),
        ),
        seen("monitored owner", MonitoredChange::Owner(owner_changed(Some(gap())))),
        seen(
            "monitored outcome",
            MonitoredChange::Outcome(MonitoredOutcome {
                request: sequence,
                sequence,
                why: OutcomeCode::TimedOut,
                caller: EndpointId::from_raw(4),
                asked: EndpointId::from_raw(5),
                missed: Some(gap()),
            }),
        ),
        seen(
            "monitored member",
            MonitoredChange::Member(MonitoredMember {
                group_id,
                group: chat(),
                sequence,
                change: MemberCode::Terms,
                endpoint: EndpointId::from_raw(4),
                uid: 1000,
                pid: 4242,
                flags: MemberFlags::LOOPBACK,
                missed: None,
            }),
        ),
        (
            "receive ended",
            BrokerFrame::Notice { endpoint: Handle::FIRST, notice: Notice::ReceiveEnded },
        ),
        (
            "flags changed",
            BrokerFrame::Notice {
                endpoint: Handle::FIRST,
                notice: Notice::FlagsChanged { group_id, flags: MemberFlags::LOOPBACK, sequence },
            },
        ),
        (
            "monitored view",
            BrokerFrame::Notice {
                endpoint: Handle::FIRST,
                notice: Notice::MonitoredView(Box::new(view(None))),
            },
        ),
        (
            "monitor gap",
            BrokerFrame::Notice {
                endpoint: Handle::FIRST,
                notice: Notice::MonitorGap { gap: gap() },
            },
        ),
        (
            "current",
            BrokerFrame::Notice {
                endpoint: Handle::FIRST,
                notice: Notice::Current { group_id, sequence, messages: 7 },
            },
        ),
        (
            "views lost",
            BrokerFrame::Notice {
                endpoint: Handle::FIRST,
                notice: Notice::ViewsLost { group_id, gap: gap() },
            },
        ),
        (
            "notice of a later version",
            BrokerFrame::Notice {
                endpoint: Handle::FIRST,
                notice: Notice::Unknown {
                    kind: "rain".into(),
                    body: Bytes::from_static(b"\xa1\x64type\x64rain"),
                    charged: true,
                },
            },
        ),
        ("completed", BrokerFrame::Completed(CompletedRange::new(u32::MAX, 2, true))),
        (
            "memory",
            BrokerFrame::Memory { id: 3, kind: MemoryKind::Lent, length: 1 << 22, descriptors: 2 },
        ),
        ("forget", BrokerFrame::Forget { id: 3 }),
        ("moved", BrokerFrame::Moved { hold: 9, payload: Bytes::from_static(b"moved") }),
        ("writable", BrokerFrame::Writable { endpoint: Handle::FIRST, serial: serial(6) }),
        ("descriptors taken", BrokerFrame::DescriptorsTaken),
        (
            "rings",
            BrokerFrame::Rings(BrokerRings::Offered {
                submission_bytes: 4 << 10,
                delivery_bytes: 1 << 20,
            }),
        ),
        ("rings refused", BrokerFrame::Rings(BrokerRings::Refused)),
        ("rings begin", BrokerFrame::Rings(BrokerRings::Begin)),
        ("rings end", BrokerFrame::Rings(BrokerRings::End)),
        ("goodbye", BrokerFrame::Goodbye(Goodbye::new(GoodbyeCode::Shutdown, "the session ends"))),
    ]
}
