//! Every value of wire version 1 at its limit, and one past it, over the wire.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{SystemTime, UNIX_EPOCH};

use bus_core::wire::{
    BrokerFrame, ClientFrame, Failure, FailureCode, GoodbyeCode, Handle, LaneNumber, Request,
    Response, Serial,
};
use bus_core::{Attributes, Destination, GroupId, Limits, MemberFlags};
use tests::broker::Broker;
use tests::process::Launch;
use tests::programs;
use tests::raw::{Answer, RawClient, frame_bytes, id, name, send_frame};

/// It was refused because of this limit, which has this value.
#[track_caller]
fn assert_limit<T: std::fmt::Debug>(answer: Answer<T>, limit: &str, value: u64) {
    let failure = answer.expect_err("past the limit");
    let Failure { code, limit: named, limit_value, .. } = *failure;
    assert_eq!(code, FailureCode::LimitExceeded);
    assert_eq!((named.as_deref(), limit_value), (Some(limit), Some(value)));
}

#[test]
fn defaults_are_told_in_the_greeting_and_by_status() {
    let broker = Broker::start();
    let told = broker.raw().welcome().limits.clone();
    assert_eq!(told, Limits::default());
    let status = broker.unisono("status --json").run().with(0).json_lines();
    let limits = &status[0]["limits"];
    for (limit, value) in [
        ("queue_messages", 256),
        ("queue_bytes", 1 << 20),
        ("payload_bytes", 16 << 20),
        ("descriptors", 16),
        ("lane_messages", 64),
        ("lane_bytes", 1 << 20),
        ("memberships", 64),
        ("lanes", 16),
        ("members", 10_000),
    ] {
        assert_eq!(limits[limit].as_u64(), Some(value), "{limit} in {limits}");
    }
    for (limit, value) in [("stall", "10000ms"), ("request_deadline", "25000ms")] {
        assert_eq!(limits[limit], value, "{limit} in {limits}");
    }
}

#[test]
fn the_stall_limit_can_be_100_ms_to_10_min() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("broker.toml");
    for (stall, range) in [("99ms", "100"), ("601s", "600000")] {
        std::fs::write(&file, format!("[limits]\nstall = \"{stall}\"\n")).unwrap();
        let broker = Launch::new(programs::bus_broker());
        let broker = broker.arg("--listen").arg(directory.path().join("bus"));
        let ended = broker.arg("--config").arg(&file).run().with(1);
        assert!(ended.errors.contains("broker.toml:2:9"), "{}", ended.errors);
        assert!(ended.errors.contains(range), "{}", ended.errors);
    }
    for (stall, millis) in [("100ms", 100), ("600s", 600_000)] {
        let broker = Broker::with_limits(&format!("stall = \"{stall}\""));
        let told = broker.raw().welcome().limits.stall;
        assert_eq!(told.as_millis(), millis);
    }
}

/// The body of a CALL to join, with whatever name; the codec makes none with a bad one.
fn join_body(group: &str) -> Vec<u8> {
    let mut body = b"\xa3\x62op\x64join\x65group".to_vec();
    let length = u16::try_from(group.len()).unwrap();
    body.push(0x79);
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(group.as_bytes());
    body.extend_from_slice(b"\x66create\xf5");
    body
}

fn join_by_bytes(client: &mut RawClient, group: &str) -> Answer<Response> {
    let serial = client.next_serial();
    client.write(&frame_bytes(0x02, 0, 0, serial.get(), &join_body(group)));
    client.answer(serial)
}

#[test]
fn names_have_1_to_255_bytes_and_no_empty_element() {
    let broker = Broker::start();
    let mut client = broker.raw();
    let long = "a".repeat(255);
    for good in ["a", "A-z_0.9", &long] {
        let joined = join_by_bytes(&mut client, good);
        assert!(matches!(joined, Ok(Response::Joined { .. })), "{good}: {joined:?}");
    }
    let longer = "a".repeat(256);
    for bad in ["", &longer, "a..b", ".a", "a.", ".", "a b", "a/b", "ä", "a\0"] {
        let refused = join_by_bytes(&mut client, bad).unwrap_err();
        assert_eq!(refused.code, FailureCode::BadName, "{bad:?}: {refused}");
    }
    client.ping();
}

/// The body of a SEND with this block of attributes.
fn send_body(group: GroupId, attributes: &[u8]) -> Vec<u8> {
    let mut body = group.get().to_le_bytes().to_vec();
    body.extend_from_slice(&0_u64.to_le_bytes());
    body.extend_from_slice(&u16::try_from(attributes.len()).unwrap().to_le_bytes());
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(attributes);
    body
}

fn item(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut item = vec![tag];
    item.extend_from_slice(&u16::try_from(value.len()).unwrap().to_le_bytes());
    item.extend_from_slice(value);
    item
}

fn field(name: &str, value: &str) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap();
    item(4, &[&[length], name.as_bytes(), value.as_bytes()].concat())
}

/// So many fields, of so many bytes together.
fn fields(count: usize, bytes: usize) -> Vec<u8> {
    let names: Vec<String> = (0..count).map(|number| format!("{number:02}")).collect();
    let rest = bytes - 2 * count;
    let value = "v".repeat(rest / count);
    let last = "v".repeat(rest - (count - 1) * (rest / count));
    let (final_name, others) = names.split_last().unwrap();
    let mut block: Vec<u8> = others.iter().flat_map(|name| field(name, &value)).collect();
    block.extend(field(final_name, &last));
    block
}

#[test]
fn attributes_at_their_limits_arrive_and_past_them_end_the_connection() {
    let broker = Broker::start();
    let mut member = broker.raw();
    let group = member.join("attributes");
    let long = [b'k'; 256];
    let rows: [(&str, bool, Vec<u8>); 12] = [
        ("an empty key", true, item(1, b"")),
        ("a key of 255 bytes", true, item(1, &long[..255])),
        ("a key of 256 bytes", false, item(1, &long)),
        ("an operation of 255 bytes", true, item(2, &long[..255])),
        ("an operation of 256 bytes", false, item(2, &long)),
        ("an empty operation", false, item(2, b"")),
        ("16 fields", true, fields(16, 160)),
        ("17 fields", false, fields(17, 170)),
        ("4096 bytes of fields", true, fields(16, 4096)),
        ("4097 bytes of fields", false, fields(16, 4097)),
        ("a key that is binary", true, item(1, &[0xff, 0, 0x80])),
        ("an operation that is no text", false, item(2, &[0xff])),
    ];
    for (case, good, block) in rows {
        let mut sender = broker.raw();
        let serial = sender.next_serial();
        let body = send_body(group, &block);
        sender.write(&frame_bytes(0x10, 0, 0, serial.get(), &body));
        if good {
            let receipt = sender.outcome(serial).expect(case);
            assert_eq!(receipt.recipients, 1, "{case}");
            assert_eq!(member.receive().attributes.encoded()[..], block[..], "{case}");
        } else {
            let goodbye = sender.goodbye().expect(case);
            assert_eq!(goodbye.code, GoodbyeCode::BadFrame, "{case}: {}", goodbye.text);
        }
    }
    member.ping();
}

#[test]
fn a_message_says_who_sent_it_when_and_as_which_of_its_sends() {
    let broker = Broker::with_limits("queue_messages = 2");
    let (mut member, mut sender) = (broker.raw(), broker.raw());
    let group = Destination::Group(member.join("header"));
    let nobody = Destination::Group(GroupId::from_raw(u64::MAX));
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let before = now();
    for serial in 1..=2 {
        assert!(sender.send(nobody, b"to nobody").is_err());
        let receipt = sender.send(group, b"hello").unwrap();
        assert_eq!(receipt.sender_serial, serial, "refused sends take none");
    }
    assert!(sender.try_send(group, b"no room").is_err());
    sender.resume();
    for serial in 1..=2 {
        let head = member.receive().head;
        assert_eq!((head.sender, head.sender_serial), (sender.endpoint(), serial));
        assert_eq!(head.credentials.pid, std::process::id());
        assert_eq!(head.credentials.uid, rustix::process::getuid().as_raw());
        let committed = u128::from(head.commit_time);
        // The broker's clock is a little behind: it looks at it at intervals.
        let slack = 5_000_000_000;
        assert!(committed + slack > before.as_nanos(), "{committed}");
        assert!(committed < now().as_nanos() + slack, "{committed}");
    }
    assert_eq!(sender.send(group, b"third").unwrap().sender_serial, 3);
    let serial = sender.next_serial();
    let mut send = send_frame(id(serial), group, b"urgent");
    send.head.deadline = 77;
    sender.say(&ClientFrame::Send(send));
    sender.outcome(serial).unwrap();
    member.receive();
    assert_eq!(member.receive().head.deadline, 77);
}

#[test]
fn g8_a_queue_holds_256_messages() {
    let broker = Broker::start();
    let (mut member, mut sender) = (broker.raw(), broker.raw());
    let group = Destination::Group(member.join("queue"));
    for number in 0..256 {
        sender.try_send(group, b"x").unwrap_or_else(|e| panic!("{number}: {e}"));
    }
    let refused = sender.try_send(group, b"x").unwrap_err();
    assert_eq!(refused.code, FailureCode::WouldBlock);
    assert_eq!((refused.full, refused.full_count), (vec![member.endpoint()], 1));
    sender.resume();
    // What is off the socket and not given back still counts.
    for _ in 0..256 {
        member.message();
    }
    assert!(sender.try_send(group, b"x").is_err());
    sender.resume();
    member.credit(1, 1);
    member.ping();
    sender.try_send(group, b"x").unwrap();
    assert!(sender.try_send(group, b"x").is_err());
}

#[test]
fn g8_a_queue_holds_1_mib_and_the_message_that_crosses_it() {
    let broker = Broker::start();
    let (mut member, mut sender) = (broker.raw(), broker.raw());
    let group = Destination::Group(member.join("queue"));
    let one_less = vec![0; (1 << 20) - 1];
    let large = vec![7; 4 << 20];
    sender.try_send(group, &one_less).unwrap();
    sender.try_send(group, &large).expect("the message that crosses the limit");
    assert!(sender.try_send(group, b"").is_err());
    sender.resume();
    assert_eq!(member.receive().payload.len(), one_less.len());
    member.ping();
    assert!(sender.try_send(group, b"").is_err(), "4 MiB are still there");
    sender.resume();
    assert!(member.receive().payload == large);
    member.ping();
    let exactly = vec![0; 1 << 20];
    sender.try_send(group, &exactly).unwrap();
    assert!(sender.try_send(group, b"").is_err(), "no room at the limit itself");
}

/// dbus-daemon: a message that is too large ended its sender's connection.
#[test]
fn payloads_have_up_to_16_mib() {
    let broker = Broker::start();
    let (mut member, mut sender) = (broker.raw(), broker.raw());
    let group = Destination::Group(member.join("large"));
    let mut payload = vec![0xa5; 16 << 20];
    sender.send(group, &payload).unwrap();
    assert!(member.receive().payload == payload);
    payload.push(0);
    let refused = sender.send(group, &payload).unwrap_err();
    assert_eq!(refused.code, FailureCode::TooLarge);
    assert_eq!(refused.limit.as_deref(), Some("payload_bytes"));
    assert_eq!(refused.limit_value, Some(16 << 20));
    sender.send(group, b"goes on").unwrap();
    assert_eq!(&member.receive().payload[..], b"goes on");
}

#[test]
fn a_message_has_up_to_16_descriptors() {
    let broker = Broker::start();
    let mut client = broker.raw();
    let address = client.address();
    let null = std::fs::File::open("/dev/null").unwrap();
    let many = vec![std::os::fd::AsFd::as_fd(&null); 17];
    let serial = client.post_descriptors(address, b"16", &many[..16]);
    client.outcome(serial).unwrap();
    client.hear_that(|frame| matches!(frame, BrokerFrame::DescriptorsTaken).then_some(()));
    assert_eq!(client.receive().head.descriptors, 16);
    assert_eq!(client.descriptors.len(), 16);
    client.say(&ClientFrame::DescriptorsTaken);

    // More are told by the header, or come without one that tells them.
    let body = send_body(GroupId::from_raw(1), &[]);
    client.write(&frame_bytes(0x10, 0, 17, 9, &body));
    assert_eq!(client.goodbye().unwrap().code, GoodbyeCode::BadFrame);
    let mut client = broker.raw();
    client.write_descriptors(&frame_bytes(0x10, 0, 16, 9, &body), &many);
    assert_eq!(client.goodbye().unwrap().code, GoodbyeCode::Protocol);
}

#[test]
fn g8_a_lane_takes_64_messages_that_wait() {
    let broker = Broker::with_limits("queue_messages = 1\nstall = \"600s\"");
    let (mut member, mut sender, mut innocent) = (broker.raw(), broker.raw(), broker.raw());
    let group = Destination::Group(member.join("lane"));
    sender.send(group, b"fills").unwrap();
    for _ in 0..64 {
        sender.post(group, b"waits");
    }
    sender.ping();
    assert_eq!(member.stats().waiting_sends, 1, "one of a lane, and the others behind it");
    sender.post(group, b"the 65th");
    let goodbye = sender.goodbye().unwrap();
    assert_eq!(goodbye.code, GoodbyeCode::Protocol);
    // G1: what had not been committed never is, and its room is free for others.
    assert_eq!(&member.receive().payload[..], b"fills");
    broker.until("the sends end", |stats| stats.waiting_sends == 0);
    innocent.send(group, b"next").unwrap();
    assert_eq!(&member.receive().payload[..], b"next");
}

#[test]
fn g8_a_lane_takes_1_mib_that_waits_and_the_send_that_crosses_it() {
    let broker = Broker::with_limits("queue_messages = 1\nstall = \"600s\"");
    let (mut member, mut sender) = (broker.raw(), broker.raw());
    let group = Destination::Group(member.join("lane"));
    sender.send(group, b"fills").unwrap();
    let one_less = vec![0; (1 << 20) - 1];
    let large = vec![0; 2 << 20];
    let sent = [sender.post(group, &one_less), sender.post(group, &large)];
    sender.ping();
    for length in [5, one_less.len(), large.len()] {
        assert_eq!(member.receive().payload.len(), length);
    }
    for serial in sent {
        sender.outcome(serial).unwrap();
    }
    sender.send(group, b"fills").unwrap();
    sender.post(group, &one_less);
    sender.post(group, &large);
    sender.post(group, b"");
    assert_eq!(sender.goodbye().unwrap().code, GoodbyeCode::Protocol);
}

#[test]
fn an_endpoint_has_16_lanes() {
    let broker = Broker::start();
    let mut client = broker.raw();
    let address = client.address();
    for lane in 0..16 {
        let serial = client.next_serial();
        let mut send = send_frame(id(serial), address, &[lane]);
        send.head.id.lane = LaneNumber::new(lane).unwrap();
        client.say(&ClientFrame::Send(send));
        client.outcome(serial).unwrap();
        assert_eq!(client.receive().payload[..], [lane]);
    }
    let mut bytes = frame_bytes(0x10, 0, 0, 99, &send_body(GroupId::from_raw(1), &[]));
    bytes[7] = 16;
    client.write(&bytes);
    assert_eq!(client.goodbye().unwrap().code, GoodbyeCode::BadFrame);
}

#[test]
fn an_endpoint_has_no_more_lanes_than_the_limit_says() {
    let broker = Broker::with_limits("lanes = 2");
    let mut client = broker.raw();
    let address = client.address();
    let mut send = |lane: u8| {
        let serial = client.next_serial();
        let mut send = send_frame(id(serial), address, &[lane]);
        send.head.id.lane = LaneNumber::new(lane).unwrap();
        client.say(&ClientFrame::Send(send));
        client.outcome(serial)
    };
    send(0).unwrap();
    send(1).unwrap();
    assert_limit(send(2), "lanes", 2);
    send(0).unwrap();
}

#[test]
fn an_endpoint_has_64_memberships() {
    let broker = Broker::start();
    let mut client = broker.raw();
    let groups: Vec<_> = (0..64).map(|n| client.join(&format!("group.{n}"))).collect();
    let one_more = client.join_with("group.64", MemberFlags::empty());
    assert_limit(one_more, "memberships", 64);
    assert!(broker.raw().find("group.64").is_err(), "nothing was made");
    let second = Handle::from_raw(1);
    client.open(second).unwrap();
    client.join_as(second, "group.0", MemberFlags::empty()).unwrap();
    client.call(Request::Leave { group_id: groups[7] }).unwrap();
    client.join("group.64");
}

/// Clients whose endpoints are members of `group`, so many together.
fn crowd(broker: &Broker, group: &str, mut count: u32) -> Vec<RawClient> {
    let per_connection = 64;
    let mut clients = Vec::new();
    while count > 0 {
        let mut client = broker.raw();
        let here = count.min(per_connection);
        let mut expected = Vec::new();
        for handle in 0..here {
            let endpoint = Handle::from_raw(handle);
            let mut requests = vec![Request::Join {
                group: name(group),
                flags: MemberFlags::empty(),
                create: true,
                filter: None,
                retain: None,
                state: false,
            }];
            if handle > 0 {
                requests.insert(0, Request::OpenEndpoint);
            }
            for request in requests {
                let serial = client.next_serial();
                client.say(&ClientFrame::Call { endpoint, serial, request });
                expected.push(serial);
            }
        }
        for serial in expected {
            client.answer(serial).unwrap();
        }
        count -= here;
        clients.push(client);
    }
    clients
}

#[test]
fn a_group_has_10_000_members_and_a_message_reaches_them_all() {
    let broker = Broker::start();
    let mut members = crowd(&broker, "crowd", 10_000);
    let mut late = broker.raw();
    let one_more = late.join_with("crowd", MemberFlags::empty());
    assert_limit(one_more, "members", 10_000);
    let group = Destination::Group(late.find("crowd").unwrap());
    let receipt = late.send(group, b"to all").unwrap();
    assert_eq!(receipt.recipients, 10_000);
    let mut heard = 0;
    for member in &mut members {
        let endpoints = (10_000_usize - heard).min(64);
        for _ in 0..endpoints {
            assert_eq!(member.message().head.sequence, receipt.sequence);
        }
        heard += endpoints;
    }
    assert_eq!(heard, 10_000);
    // The place of one who goes is free again.
    members.pop();
    broker.until("they are gone", |stats| stats.connections == 158);
    late.join("crowd");
}

#[test]
fn a_connection_has_64_endpoints() {
    let broker = Broker::start();
    let mut client = broker.raw();
    for handle in 1..64 {
        client.open(Handle::from_raw(handle)).unwrap();
    }
    let one_more = client.open(Handle::from_raw(u32::MAX));
    assert_limit(one_more, "endpoints_per_connection", 64);
    let used = client.open(Handle::from_raw(7)).unwrap_err();
    assert_eq!(used.code, FailureCode::BadRequest);
    client.call_as(Handle::from_raw(7), Request::CloseEndpoint).unwrap();
    client.open(Handle::from_raw(u32::MAX)).unwrap();
}

#[test]
fn an_endpoint_has_as_many_watches_as_the_limit_says() {
    let broker = Broker::with_limits("watches = 2\nqueue_messages = 1\nstall = \"600s\"");
    let (mut member, mut sender) = (broker.raw(), broker.raw());
    let group = Destination::Group(member.join("watched"));
    sender.send(group, b"fills").unwrap();
    let mut watch = || {
        let serial = sender.next_serial();
        sender.say(&ClientFrame::Watch {
            endpoint: Handle::FIRST,
            serial,
            destination: group,
            attributes: Attributes::EMPTY,
        });
        serial
    };
    let watches: [Serial; 3] = std::array::from_fn(|_| watch());
    let mut answer = |wanted: Serial| {
        sender.hear_that(|frame| match frame {
            BrokerFrame::Writable { serial, .. } if *serial == wanted => Some(Ok(())),
            BrokerFrame::Error { serial, failure, .. } if *serial == wanted => {
                Some(Err(failure.clone()))
            }
            _ => None,
        })
    };
    assert_limit(answer(watches[2]), "watches", 2);
    member.receive();
    answer(watches[0]).unwrap();
    answer(watches[1]).unwrap();
}

#[test]
fn g8_groups_connections_and_endpoints_of_a_bus_are_bounded() {
    let broker =
        Broker::with_limits("groups = 2\ngroups_created = 1\nconnections = 4\nendpoints = 5");
    let (mut one, mut two) = (broker.raw(), broker.raw());
    let create = |client: &mut RawClient, group: &str| {
        client.call(Request::Create { group: name(group), retain: None, stall_ms: None })
    };
    create(&mut one, "a").unwrap();
    assert_limit(create(&mut one, "b"), "groups_created", 1);
    create(&mut two, "b").unwrap();
    let mut three = broker.raw();
    assert_limit(create(&mut three, "c"), "groups", 2);
    for handle in 1..=2 {
        three.open(Handle::from_raw(handle)).unwrap();
    }
    assert_limit(three.open(Handle::from_raw(3)), "endpoints", 5);
    // No endpoint for a newcomer, and then, after one has gone, no connection either.
    let mut refused = RawClient::silent(broker.socket());
    refused.greet();
    assert_eq!(refused.goodbye().unwrap().code, GoodbyeCode::LimitExceeded);
    three.call_as(Handle::from_raw(1), Request::CloseEndpoint).unwrap();
    broker_settles(&mut one, 3);
    let _four = broker.raw();
    three.call_as(Handle::from_raw(2), Request::CloseEndpoint).unwrap();
    let mut refused = RawClient::silent(broker.socket());
    refused.greet();
    assert_eq!(refused.goodbye().unwrap().code, GoodbyeCode::LimitExceeded);
    one.ping();
}

/// Those that were refused are gone.
fn broker_settles(client: &mut RawClient, connections: u64) {
    tests::deadline::eventually("gone", || match client.stats().connections {
        count if count == connections => Ok(()),
        count => Err(count.to_string()),
    });
}
