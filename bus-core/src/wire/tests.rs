//! Frames of every kind there and back, and what bad bytes get.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod corpus;
mod mutations;
mod offences;
mod page;
mod properties;

use bytes::{Bytes, BytesMut};

use super::{
    BrokerFrame, COPY_BYTES, ClientFrame, EncodeError, Failure, FailureCode, Goodbye, GoodbyeCode,
    HEADER_BYTES, Hello, Incarnation, LaneNumber, MAX_PART, MAX_TEXT_BYTES, Request, Response,
    Serial, WireError,
};
use crate::{
    Attributes, EndpointId, GroupId, Limits, MAX_ATTRIBUTES_BYTES, MAX_NAME_BYTES, MemberFlags,
    Sequence,
};

/// What both directions have in common, so that every test runs on both.
trait Direction: Sized + PartialEq + std::fmt::Debug {
    fn decode(unread: &mut BytesMut) -> Result<Option<Self>, WireError>;
    fn bytes_needed(unread: &[u8]) -> Result<usize, WireError>;
    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError>;
    /// At least one frame of every kind and form.
    fn corpus() -> Vec<(&'static str, Self)>;
}

macro_rules! direction {
    ($frame:ident, $corpus:path) => {
        impl Direction for $frame {
            fn decode(unread: &mut BytesMut) -> Result<Option<Self>, WireError> {
                Self::decode(unread)
            }
            fn bytes_needed(unread: &[u8]) -> Result<usize, WireError> {
                Self::bytes_needed(unread)
            }
            fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
                self.encode(out)
            }
            fn corpus() -> Vec<(&'static str, Self)> {
                $corpus()
            }
        }
    };
}

direction!(ClientFrame, corpus::client);
direction!(BrokerFrame, corpus::broker);

fn encoded<F: Direction>(frame: &F) -> BytesMut {
    let mut out = BytesMut::new();
    frame.encode(&mut out).unwrap();
    out
}

/// Runs a generic check on both directions.
macro_rules! on_both {
    ($check:ident) => {
        $check::<ClientFrame>();
        $check::<BrokerFrame>();
    };
}

#[test]
fn every_frame_comes_back_as_it_was() {
    fn check<F: Direction>() {
        for (case, frame) in F::corpus() {
            let mut bytes = encoded(&frame);
            assert_eq!(F::bytes_needed(&bytes), Ok(bytes.len()), "{case}");
            assert_eq!(F::decode(&mut bytes).unwrap(), Some(frame), "{case}");
            assert!(bytes.is_empty(), "{case}");
        }
    }
    on_both!(check);
}

#[test]
fn a_frame_that_is_cut_anywhere_is_waited_for() {
    fn check<F: Direction>() {
        for (case, frame) in F::corpus() {
            let whole = encoded(&frame);
            for cut in 0..whole.len() {
                let mut bytes = BytesMut::from(&whole[..cut]);
                assert_eq!(F::decode(&mut bytes), Ok(None), "{case} cut at {cut}");
                assert_eq!(bytes, whole[..cut], "{case} cut at {cut}: nothing is taken");
                let needed = F::bytes_needed(&bytes).unwrap();
                let expected = if cut < HEADER_BYTES { HEADER_BYTES } else { whole.len() };
                assert_eq!(needed, expected, "{case} cut at {cut}");
            }
        }
    }
    on_both!(check);
}

#[test]
fn frames_that_come_together_are_taken_one_by_one() {
    fn check<F: Direction>() {
        let mut stream = BytesMut::new();
        for (_, frame) in F::corpus() {
            frame.encode(&mut stream).unwrap();
        }
        // In pieces that end nowhere in particular.
        let mut unread = BytesMut::new();
        let mut frames = Vec::new();
        for piece in stream.chunks(611) {
            unread.extend_from_slice(piece);
            while let Some(frame) = F::decode(&mut unread).unwrap() {
                frames.push(frame);
            }
        }
        let sent: Vec<_> = F::corpus().into_iter().map(|(_, frame)| frame).collect();
        assert_eq!(frames, sent);
        assert!(unread.is_empty());
    }
    on_both!(check);
}

#[test]
fn the_corpus_has_every_operation_and_response() {
    let requests: Vec<_> = corpus::client()
        .into_iter()
        .filter_map(|(_, frame)| match frame {
            ClientFrame::Call { request, .. } => Some(op_of(&request)),
            _ => None,
        })
        .collect();
    for op in Request::OPERATIONS {
        assert!(requests.iter().any(|request| request == op), "{op}");
    }
    for request in &requests {
        assert!(Request::OPERATIONS.contains(&request.as_str()), "{request}");
    }
}

/// The text under `op` that serde writes.
fn op_of(request: &Request) -> String {
    let mut body = BytesMut::new();
    super::cbor::encode(&mut body, request);
    super::cbor::text_under(&body, "op").unwrap().to_owned()
}

#[test]
fn a_small_message_does_not_keep_its_read_buffer() {
    for (payload, copied) in [(COPY_BYTES, true), (COPY_BYTES + 1, false)] {
        let frame = corpus::send(Attributes::EMPTY, &vec![1; payload]);
        let mut buffer = encoded(&frame);
        let memory = buffer.as_ptr_range();
        let Ok(Some(ClientFrame::Send(send))) = ClientFrame::decode(&mut buffer) else {
            panic!("a SEND");
        };
        assert_eq!(!memory.contains(&send.payload.as_ptr()), copied, "{payload}");
    }
}

#[test]
fn what_writes_the_payload_itself_writes_the_same_bytes() {
    let payload = b"how now";
    for gap in [None, Some(corpus::gap())] {
        let BrokerFrame::Message(message) = corpus::message(gap, corpus::attributes(), payload)
        else {
            panic!("a MESSAGE");
        };
        let mut out = BytesMut::new();
        super::encode_message_head(&mut out, &message.head, &message.attributes, payload.len())
            .unwrap();
        out.extend_from_slice(payload);
        let length = super::message_bytes(&message.head, &message.attributes, payload.len());
        assert_eq!(out.len(), length);
        assert_eq!(out, encoded(&BrokerFrame::Message(message)));
    }
    let ClientFrame::Send(send) = corpus::send(corpus::attributes(), payload) else {
        panic!("a SEND");
    };
    let mut out = BytesMut::new();
    super::encode_send_head(&mut out, &send.head, &send.attributes, payload.len()).unwrap();
    out.extend_from_slice(payload);
    assert_eq!(out, encoded(&ClientFrame::Send(send)));
}

#[test]
fn what_is_too_long_is_not_written() {
    let text = |length| "x".repeat(length);
    let long_call = ClientFrame::BadCall {
        endpoint: super::Handle::FIRST,
        serial: Serial::FIRST,
        problem: Request::decode(b"").unwrap_err(),
        body: vec![0; (64 << 10) + 1].into(),
    };
    let long_hello = ClientFrame::Hello(Hello { program: Some(text(5000)), ..Hello::new() });
    let long_send = corpus::send(Attributes::EMPTY, &vec![0; super::MAX_FRAME_BYTES]);
    for (case, frame) in [("call", long_call), ("hello", long_hello), ("send", long_send)] {
        let mut out = BytesMut::from(&b"before"[..]);
        let error = frame.encode(&mut out).unwrap_err();
        assert!(matches!(error, EncodeError::TooLong { .. }), "{case}");
        assert_eq!(out[..], b"before"[..], "{case}");
    }
}

#[test]
fn no_length_overflows_the_sum() {
    let BrokerFrame::Message(message) = corpus::message(None, Attributes::EMPTY, b"") else {
        panic!("a MESSAGE");
    };
    for payload in [usize::MAX, usize::MAX - 100, u32::MAX as usize] {
        let mut out = BytesMut::new();
        let result =
            super::encode_message_head(&mut out, &message.head, &message.attributes, payload);
        assert!(matches!(result, Err(EncodeError::TooLong { .. })), "{payload}");
        assert!(out.is_empty());
    }
}

#[test]
fn more_descriptors_than_a_frame_brings_are_not_written() {
    let ClientFrame::Send(mut send) = corpus::send(Attributes::EMPTY, b"") else {
        panic!("a SEND");
    };
    send.head.descriptors = 17;
    let mut out = BytesMut::new();
    assert_eq!(
        ClientFrame::Send(send).encode(&mut out),
        Err(EncodeError::Descriptors { frame: "SEND", given: 17 })
    );
    assert!(out.is_empty());
}

#[test]
fn a_payload_a_little_above_the_maximum_can_be_answered() {
    let block = Attributes::builder()
        .key([0; 255])
        .operation("x".repeat(255))
        .field("n", "x".repeat(4095))
        .build()
        .unwrap();
    let limit = Limits::default().payload_bytes as usize;
    let frame = corpus::send(block, &vec![0; limit + 1]);
    let mut bytes = encoded(&frame);
    assert_eq!(ClientFrame::decode(&mut bytes).unwrap(), Some(frame));
}

#[test]
fn every_longest_message_fits_a_frame() {
    let BrokerFrame::Message(message) =
        corpus::message(Some(corpus::gap()), Attributes::EMPTY, b"")
    else {
        panic!("a MESSAGE");
    };
    let head = super::message_bytes(&message.head, &Attributes::EMPTY, 0);
    let payload = Limits::default().payload_bytes as usize;
    assert!(head + MAX_ATTRIBUTES_BYTES + payload <= super::MAX_FRAME_BYTES);
}

#[test]
fn a_part_of_the_longest_entries_fits_a_frame() {
    let count = MAX_PART;
    let group = super::GroupInfo {
        name: "x".repeat(MAX_NAME_BYTES).parse().unwrap(),
        group_id: GroupId::from_raw(u64::MAX),
        members: u32::MAX,
        creator: Some(EndpointId::from_raw(u64::MAX)),
        retain: Some(crate::Retain { per_key: true, messages: u32::MAX, bytes: u64::MAX }),
        gated: true,
    };
    let owner =
        super::Owner { endpoint: EndpointId::from_raw(u64::MAX), uid: u32::MAX, pid: u32::MAX };
    let name = super::NameInfo {
        name: group.name.clone(),
        name_id: crate::NameId::from_raw(u64::MAX),
        owners: vec![owner; crate::LISTED_OWNERS],
        owner_count: u32::MAX,
        waiting: u32::MAX,
        shared: true,
        described: true,
    };
    let member = super::MemberInfo {
        endpoint: EndpointId::from_raw(u64::MAX),
        uid: u32::MAX,
        pid: u32::MAX,
        flags: MemberFlags::all(),
        queued_messages: u64::MAX,
        queued_bytes: u64::MAX,
        capacity: u64::MAX,
        dropped: u64::MAX,
        full_since_sequence: Some(Sequence::from_raw(u64::MAX)),
        blocks: u64::MAX,
    };
    let sequence = Sequence::from_raw(u64::MAX);
    for response in [
        Response::Groups { sequence, groups: vec![group; count] },
        Response::Names { sequence, names: vec![name; count] },
        Response::Members { sequence, members: vec![member; count] },
    ] {
        let frame =
            BrokerFrame::Part { endpoint: super::Handle::FIRST, serial: Serial::FIRST, response };
        assert_eq!(frame.encode(&mut BytesMut::new()), Ok(()));
    }
}

#[test]
fn payloads_are_not_shown() {
    let secret = b"a secret";
    let send = format!("{:?}", corpus::send(Attributes::EMPTY, secret));
    let message = format!("{:?}", corpus::message(None, Attributes::EMPTY, secret));
    for shown in [send, message] {
        assert!(shown.contains("8 bytes"), "{shown}");
        assert!(!shown.contains("secret"), "{shown}");
    }
}

#[test]
fn codes_are_their_text_and_unknown_ones_are_kept() {
    let mut seen = Vec::new();
    for code in FailureCode::ALL {
        let text = code.as_str();
        assert_eq!(&FailureCode::from(text), code);
        assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{text}");
        assert!(!seen.contains(&text), "{text} stands for two");
        seen.push(text);
    }
    for code in GoodbyeCode::ALL {
        assert_eq!(&GoodbyeCode::from(code.as_str()), code);
    }
    let unknown = FailureCode::from("on-holiday");
    assert_eq!(unknown, FailureCode::Other("on-holiday".into()));
    assert_eq!(unknown.to_string(), "on-holiday");
}

#[test]
fn keys_of_a_later_version_are_passed_over() {
    // {"op": "leave", "group_id": 9, "colour": [1, {"red": null}]}
    let body = b"\xa3\x62op\x65leave\x68group_id\x09\x66colour\x82\x01\xa1\x63red\xf6";
    assert_eq!(Request::decode(body), Ok(Request::Leave { group_id: GroupId::from_raw(9) }));
    // {"op": "ping", "colour": 1}
    assert_eq!(Request::decode(b"\xa2\x62op\x64ping\x66colour\x01"), Ok(Request::Ping));
}

#[test]
fn limits_that_a_later_broker_has_are_passed_over_and_missing_ones_have_defaults() {
    #[derive(serde::Deserialize)]
    struct Holder {
        #[serde(with = "super::limits_form")]
        limits: Limits,
    }
    // {"limits": {"lanes": 4, "moons": 2, "stall_ms": 250}}
    let body = b"\xa1\x66limits\xa3\x65lanes\x04\x65moons\x02\x68stall_ms\x18\xfa";
    let holder: Holder = super::control::decode(body).unwrap();
    let expected =
        Limits { lanes: 4, stall: std::time::Duration::from_millis(250), ..Limits::default() };
    assert_eq!(holder.limits, expected);
}

#[test]
fn flags_that_are_unknown_are_refused_in_a_request_and_passed_over_in_a_listing() {
    // {"op": "join", "group": "g", "flags": ["loopback", "sing"]}
    let body = b"\xa3\x62op\x64join\x65group\x61g\x65flags\x82\x68loopback\x64sing";
    let error = Request::decode(body).unwrap_err();
    assert_eq!(error.code(), FailureCode::BadRequest);
    assert!(error.to_string().contains("sing"), "{error}");

    let mut bytes = BytesMut::new();
    let member = corpus::broker().into_iter().find(|(case, _)| *case == "members").unwrap().1;
    member.encode(&mut bytes).unwrap();
    let text = b"drop-when-full";
    let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
    bytes[at..at + 4].copy_from_slice(b"sing");
    let Ok(Some(BrokerFrame::Done { response: Response::Members { members, .. }, .. })) =
        BrokerFrame::decode(&mut bytes)
    else {
        panic!("a list of members");
    };
    assert_eq!(members[0].flags, MemberFlags::LOOPBACK);
    assert_eq!(members[1].flags, MemberFlags::LOOPBACK | MemberFlags::DROP_WHEN_FULL);
}

#[test]
fn texts_for_people_are_bounded_and_not_cut_inside_a_character() {
    let long = "ä".repeat(MAX_TEXT_BYTES);
    let failure = Failure::new(FailureCode::BadRequest, long.clone());
    assert_eq!(failure.text.len(), MAX_TEXT_BYTES);
    let odd = format!("x{long}");
    let goodbye = Goodbye::new(GoodbyeCode::BadFrame, odd);
    assert_eq!(goodbye.text.len(), MAX_TEXT_BYTES - 1);
}

#[test]
fn a_refusal_names_16_full_recipients_and_counts_all() {
    let full = [EndpointId::from_raw(7); 40];
    let failure = Failure::new(FailureCode::WouldBlock, "").with_full(&full, 40);
    assert_eq!((failure.full.len(), failure.full_count), (16, 40));
}

#[test]
fn an_incarnation_is_bytes_of_one_length() {
    let incarnation = Incarnation::from_bytes([0xa5; 16]);
    assert_eq!(incarnation.to_string(), "a5".repeat(16));
    for (length, good) in [(15, false), (16, true), (17, false)] {
        let body = [vec![0x40 | length], vec![0xa5; length.into()]].concat();
        let result = super::control::decode::<Incarnation>(&body);
        assert_eq!(result.is_ok(), good, "{length}");
    }
}

#[test]
fn serials_are_never_0_and_start_again_after_the_last() {
    assert_eq!(Serial::new(0), None);
    let last = Serial::new(u32::MAX).unwrap();
    assert_eq!(last.next(), Serial::FIRST);
    assert_eq!(Serial::FIRST.next().get(), 2);
}

#[test]
fn there_are_16_lanes() {
    assert_eq!(LaneNumber::new(15).map(LaneNumber::index), Some(15));
    assert_eq!(LaneNumber::new(16), None);
}

#[test]
fn a_call_that_cannot_be_read_leaves_the_stream_good() {
    let mut bytes = BytesMut::new();
    for body in [&b"\xa1\x62op\x63fly"[..], b"\xff", b""] {
        ClientFrame::BadCall {
            endpoint: super::Handle::FIRST,
            serial: Serial::FIRST,
            problem: Request::decode(body).unwrap_err(),
            body: Bytes::copy_from_slice(body),
        }
        .encode(&mut bytes)
        .unwrap();
    }
    ClientFrame::DescriptorsTaken.encode(&mut bytes).unwrap();
    let mut codes = Vec::new();
    while let Some(frame) = ClientFrame::decode(&mut bytes).unwrap() {
        match frame {
            ClientFrame::BadCall { problem, .. } => codes.push(Failure::from(&problem).code),
            frame => assert_eq!(frame, ClientFrame::DescriptorsTaken),
        }
    }
    assert_eq!(codes, [FailureCode::Unsupported, FailureCode::BadRequest, FailureCode::BadRequest]);
    assert!(bytes.is_empty());
}
