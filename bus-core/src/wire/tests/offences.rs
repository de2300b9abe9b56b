//! What each offence is called. Every row is a good frame with something wrong put into it.

use bytes::{Buf, BytesMut};

use super::super::{
    BrokerFrame, ClientFrame, ControlError, Failure, FailureCode, Goodbye, GoodbyeCode, MAGIC,
    MAX_FRAME_BYTES, Request, WireError, take_magic,
};
use super::{Direction, corpus, encoded};
use crate::{Attributes, AttributesError};

/// The named frame of the corpus with some of its bytes overwritten.
fn spoiled<F: Direction>(case: &str, at: usize, bytes: &[u8]) -> BytesMut {
    let (_, frame) = F::corpus().into_iter().find(|(name, _)| *name == case).unwrap();
    let mut frame = encoded(&frame);
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn headers_that_break_a_rule_are_named() {
    fn check<F: Direction>(rows: Vec<(&str, usize, &[u8], WireError)>) {
        for (case, at, bytes, error) in rows {
            let mut frame = spoiled::<F>(case, at, bytes);
            let shown = format!("{case} with {bytes:02x?} at {at}");
            // As soon as the header is there, whatever may follow.
            assert_eq!(F::bytes_needed(&frame[..16]), Err(error.clone()), "{shown}");
            assert_eq!(F::decode(&mut frame), Err(error), "{shown}");
        }
    }
    let length = |frame, given, least, most| WireError::Length { frame, given, least, most };
    let not_zero = |frame, field, given| WireError::NotZero { frame, field, given };
    check::<ClientFrame>(vec![
        ("send", 4, &[0x00], WireError::UnknownKind { kind: 0x00 }),
        ("send", 4, &[0x92], WireError::UnknownKind { kind: 0x92 }),
        ("send", 0, &[0, 0, 0, 0], length("SEND", 0, 36, MAX_FRAME_BYTES)),
        ("send", 0, &[35, 0, 0, 0], length("SEND", 35, 36, MAX_FRAME_BYTES)),
        ("send", 0, &[0xff; 4], length("SEND", u32::MAX as usize, 36, MAX_FRAME_BYTES)),
        (
            "send",
            0,
            &[0x01, 0x40, 0x00, 0x01],
            length("SEND", MAX_FRAME_BYTES + 1, 36, MAX_FRAME_BYTES),
        ),
        ("ping", 0, &[0x11, 0, 1, 0], length("CALL", 65_553, 16, 65_552)),
        ("hello", 0, &[0x11, 0x10, 0, 0], length("HELLO", 4113, 16, 4112)),
        ("cancel", 0, &[17], length("CANCEL", 17, 16, 16)),
        ("credit", 0, &[31], length("CREDIT", 31, 32, 32)),
        ("ping", 5, &[1], WireError::UnknownFlags { frame: "CALL", given: 1, known: 0 }),
        ("send", 6, &[17], WireError::Descriptors { frame: "SEND", given: 17, most: 16 }),
        ("ping", 6, &[1], WireError::Descriptors { frame: "CALL", given: 1, most: 0 }),
        ("send", 7, &[16], WireError::Lane { frame: "SEND", given: 16, most: 15 }),
        ("credit", 7, &[1], WireError::Lane { frame: "CREDIT", given: 1, most: 0 }),
        ("hello", 8, &[1], not_zero("HELLO", "endpoint", 1)),
        ("credit", 12, &[1], not_zero("CREDIT", "serial", 1)),
        ("resume", 15, &[1], not_zero("RESUME", "serial", 1 << 24)),
        ("send", 12, &[0], WireError::NoSerial { frame: "SEND" }),
        ("ping", 12, &[0], WireError::NoSerial { frame: "CALL" }),
    ]);
    check::<BrokerFrame>(vec![
        ("message", 4, &[0x10], WireError::UnknownKind { kind: 0x10 }),
        ("message", 0, &[79, 0], length("MESSAGE", 79, 80, MAX_FRAME_BYTES)),
        ("receipt", 0, &[47], length("RECEIPT", 47, 48, 48)),
        ("receipt", 5, &[4], WireError::UnknownFlags { frame: "RECEIPT", given: 4, known: 0 }),
        ("message", 7, &[1], WireError::Lane { frame: "MESSAGE", given: 1, most: 0 }),
        ("message", 12, &[1], not_zero("MESSAGE", "serial", 1)),
        ("receipt", 12, &[0], WireError::NoSerial { frame: "RECEIPT" }),
    ]);
}

#[test]
fn bodies_that_break_a_rule_are_named() {
    fn check<F: Direction>(rows: Vec<(&str, usize, &[u8], WireError)>) {
        for (case, at, bytes, error) in rows {
            let mut frame = spoiled::<F>(case, at, bytes);
            let shown = format!("{case} with {bytes:02x?} at {at}");
            assert_eq!(F::decode(&mut frame), Err(error), "{shown}");
        }
    }
    let value = |field, given| WireError::Value { frame: "MESSAGE", field, given };
    let flags = |frame, given| WireError::Value { frame, field: "combination of flags", given };
    check::<ClientFrame>(vec![
        (
            "send",
            5,
            &[12],
            WireError::Value { frame: "SEND", field: "combination of flags", given: 12 },
        ),
        (
            "send",
            34,
            &[128],
            WireError::UnknownFlags { frame: "SEND", given: 0x8000, known: 0x1ff },
        ),
        ("send", 35, &[1], WireError::NotZero { frame: "SEND", field: "reserved", given: 1 }),
        ("send", 32, &[6, 0], WireError::AttributesCut { frame: "SEND", given: 6, left: 5 }),
        (
            "send",
            32,
            &[5, 0],
            WireError::Attributes {
                frame: "SEND",
                problem: AttributesError::UnknownTag { tag: b'h', at: 0 },
            },
        ),
        ("send", 5, &[0x24], flags("SEND", 0x24)),
        ("send", 5, &[0x30], flags("SEND", 0x30)),
        ("send", 5, &[0x40], flags("SEND", 0x40)),
        (
            "credit",
            20,
            &[0, 0, 0, 1],
            WireError::NotZero { frame: "CREDIT", field: "reserved", given: 1 << 24 },
        ),
    ]);
    check::<BrokerFrame>(vec![
        ("message", 5, &[8], flags("MESSAGE", 8)),
        ("request", 5, &[2 | 8 | 16], flags("MESSAGE", 2 | 8 | 16)),
        ("request", 5, &[2 | 32], flags("MESSAGE", 2 | 32)),
        ("request", 5, &[2 | 8 | 128], flags("MESSAGE", 2 | 8 | 128)),
        ("message", 74, &[2, 0], value("descriptors lost", 2)),
        (
            "message",
            76,
            &[128],
            WireError::UnknownFlags { frame: "MESSAGE", given: 0x8000, known: 0x3ff },
        ),
        ("message", 77, &[1], WireError::NotZero { frame: "MESSAGE", field: "reserved", given: 1 }),
        (
            "message",
            5,
            &[1],
            WireError::Length {
                frame: "MESSAGE after a gap",
                given: 85,
                least: 104,
                most: MAX_FRAME_BYTES,
            },
        ),
        ("message after a gap", 80, &[0], value("count of a gap from first to last", 0)),
        ("message after a gap", 96, &[0; 8], value("count of a gap from first to last", 3)),
    ]);
}

#[test]
fn a_header_is_found_out_before_it_is_whole() {
    let mut bytes = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 0x10][..]);
    assert!(matches!(ClientFrame::decode(&mut bytes), Err(WireError::Length { .. })));
    assert!(matches!(
        BrokerFrame::bytes_needed(&[0, 0, 0, 0, 0x77]),
        Err(WireError::UnknownKind { kind: 0x77 })
    ));
}

#[test]
fn control_bodies_of_known_frames_must_be_what_they_say() {
    for (case, frame, body) in [
        ("nothing", 0x01, &b""[..]),
        ("no map", 0x01, b"\x01"),
        ("no versions", 0x01, b"\xa0"),
        ("versions of text", 0x01, b"\xa1\x68versions\x61x"),
        ("a version too large", 0x01, b"\xa1\x68versions\x81\x1a\xff\xff\xff\xff"),
        ("versions twice", 0x01, b"\xa2\x68versions\x80\x68versions\x80"),
        ("a goodbye without a code", 0x1f, b"\xa0"),
        ("something after it", 0x1f, b"\xa1\x64code\x64done\x00"),
    ] {
        let mut bytes = BytesMut::new();
        let length = u32::try_from(16 + body.len()).unwrap();
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&[frame]);
        bytes.extend_from_slice(&[0; 11]);
        bytes.extend_from_slice(body);
        let error = ClientFrame::decode(&mut bytes).unwrap_err();
        assert!(matches!(error, WireError::Body { .. }), "{case}: {error}");
    }
}

#[test]
fn calls_that_cannot_be_read_are_answered_with_the_reason() {
    let filter = |filter: &[u8]| {
        [&b"\xa3\x62op\x6aset-filter\x68group_id\x07\x66filter"[..], filter].concat()
    };
    let description = |description: &[u8]| {
        [&b"\xa3\x62op\x68own-name\x64name\x61a\x6bdescription"[..], description].concat()
    };
    let long_op = [&b"\xa1\x62op\x79\x10\x00"[..], &[b'x'; 4096]].concat();
    for (case, body, code, words) in [
        ("nothing", &b""[..], FailureCode::BadRequest, "ends in the middle"),
        ("garbage", b"\xff\xff", FailureCode::BadRequest, "not definite"),
        ("no operation", b"\xa0", FailureCode::BadRequest, "op"),
        ("no map", b"\x64ping", FailureCode::BadRequest, ""),
        ("an unknown operation", b"\xa1\x62op\x63fly", FailureCode::Unsupported, "\"fly\""),
        ("a long operation", &long_op, FailureCode::Unsupported, "xxx"),
        ("a bad name", b"\xa2\x62op\x66create\x65group\x63a/b", FailureCode::BadName, "0x2f"),
        ("no name", b"\xa1\x62op\x66create", FailureCode::BadRequest, "group"),
        ("a number as a name", b"\xa2\x62op\x66create\x65group\x07", FailureCode::BadRequest, ""),
        ("a negative id", b"\xa2\x62op\x65leave\x68group_id\x20", FailureCode::BadRequest, ""),
        ("a filter without alternatives", &filter(b"\x80"), FailureCode::BadFilter, "at least one"),
        ("an alternative without conditions", &filter(b"\x81\x80"), FailureCode::BadFilter, ""),
        ("a condition of nothing", &filter(b"\x81\x81\xa0"), FailureCode::BadFilter, "one of"),
        (
            "a condition of two things",
            &filter(b"\x81\x81\xa2\x63key\x41a\x69operation\x61O"),
            FailureCode::BadFilter,
            "one of",
        ),
        (
            "a field without a value",
            &filter(b"\x81\x81\xa1\x65field\x61n"),
            FailureCode::BadFilter,
            "value",
        ),
        (
            "a key that is too long",
            &filter(&[&b"\x81\x81\xa1\x63key\x59\x01\x00"[..], &[b'k'; 256]].concat()),
            FailureCode::BadFilter,
            "256 bytes",
        ),
        (
            "a program that jumps back",
            &filter(&[&b"\x81\x81\xa1\x67program\x48\x05\x00\xff\xff"[..], &[0; 4]].concat()),
            FailureCode::BadFilter,
            "program",
        ),
        (
            "more conditions than may be",
            &filter(&[&b"\x81\x98\x41"[..], &b"\xa1\x63key\x40".repeat(65)].concat()),
            FailureCode::BadFilter,
            "65 conditions",
        ),
        (
            "a condition of a later version",
            &filter(b"\x81\x81\xa1\x65color\x63red"),
            FailureCode::BadRequest,
            "color",
        ),
        ("a text as a description", &description(b"\x61x"), FailureCode::BadDescription, "map"),
        (
            "an operation without a name",
            &description(b"\xa1\x6aoperations\x81\xa0"),
            FailureCode::BadDescription,
            "`name`",
        ),
        (
            "a type that serde does not have",
            &description(b"\xa1\x6aoperations\x81\xa2\x64name\x61a\x68argument\x63int"),
            FailureCode::BadDescription,
            "`int`",
        ),
        (
            "a type of two kinds",
            &description(b"\xa1\x65types\xa1\x61T\xa2\x63seq\x62u8\x66option\x62u8"),
            FailureCode::BadDescription,
            "",
        ),
        (
            "a group that is no name",
            &description(b"\xa1\x67signals\x81\xa2\x64name\x61s\x65group\x63a/b"),
            FailureCode::BadDescription,
            "0x2f",
        ),
    ] {
        let error = Request::decode(body).unwrap_err();
        let failure = Failure::from(&error);
        assert_eq!(failure.code, code, "{case}: {error}");
        assert!(failure.text.contains(words), "{case}: {error}");
        assert!(failure.text.len() < 300, "{case}: {error}");
    }
}

#[test]
fn an_unknown_response_is_an_error_and_an_unknown_notice_is_not() {
    let mut bytes = BytesMut::new();
    let body = b"\xa1\x64type\x63fly";
    for kind in [0x82, 0x93] {
        bytes.extend_from_slice(&[16 + 10, 0, 0, 0, kind, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&[u8::from(kind == 0x82), 0, 0, 0]);
        bytes.extend_from_slice(body);
    }
    let error = BrokerFrame::decode(&mut bytes).unwrap_err();
    let expected = |problem: &ControlError| matches!(problem, ControlError::Content(_));
    assert!(
        matches!(&error, WireError::Body { frame: "DONE", problem } if expected(problem)),
        "{error}"
    );
    bytes.advance(26);
    assert!(matches!(BrokerFrame::decode(&mut bytes), Ok(Some(BrokerFrame::Notice { .. }))));
}

#[test]
fn the_offence_goes_into_the_farewell() {
    let mut frame = spoiled::<ClientFrame>("send", 7, &[200]);
    let error = ClientFrame::decode(&mut frame).unwrap_err();
    let goodbye = Goodbye::from(&error);
    assert_eq!(goodbye.code, GoodbyeCode::BadFrame);
    assert_eq!(goodbye.text, "SEND for lane 200, and the highest is 15");
}

#[test]
fn the_magic_is_checked_byte_by_byte() {
    for (case, bytes, result) in [
        ("nothing", &b""[..], Ok(false)),
        ("a part", b"UNI", Ok(false)),
        ("all", b"UNISONO\n", Ok(true)),
        ("more", b"UNISONO\nmore", Ok(true)),
        ("D-Bus", b"\0AUTH", Err(WireError::Magic { at: 0, given: 0 })),
        (
            "a text file's end of line",
            b"UNISONO\r\n",
            Err(WireError::Magic { at: 7, given: b'\r' }),
        ),
    ] {
        let mut unread = BytesMut::from(bytes);
        let taken = if result == Ok(true) { MAGIC.len() } else { 0 };
        assert_eq!(take_magic(&mut unread), result, "{case}");
        assert_eq!(unread, bytes[taken..], "{case}");
    }
}

#[test]
fn attributes_that_end_with_the_frame_leave_an_empty_payload() {
    let frame = corpus::send(corpus::attributes(), b"");
    let mut bytes = encoded(&frame);
    assert_eq!(ClientFrame::decode(&mut bytes), Ok(Some(frame)));
    let frame = corpus::message(None, Attributes::EMPTY, b"");
    assert_eq!(BrokerFrame::decode(&mut encoded(&frame)), Ok(Some(frame)));
}
