//! Streams that mean harm: nobody else notices.

use std::io::Write;
use std::time::Duration;

use bus_client::mux::Attach;

use super::given::*;

/// A length of 0xFFFFFFFF makes the document's program say 3: that is within what it had already
/// seen if the bytes come one by one, and a message of 3 bytes if they come together.
#[test]
fn a_thrift_length_of_all_ones_ends_its_stream_only() {
    let thrift = include_bytes!("../../../bus-core/tests/fixtures/thrift.bpf.o");
    let framer = bus_core::framing::BpfFramer::load(thrift).unwrap();
    let mut given = given(1, 1);
    let (ours, mut theirs) = unix_pair();
    given.streams.push(given.mux.attach(ours, framer, Attach::new()).unwrap());
    for byte in [0xff; 4] {
        theirs.write_all(&[byte]).unwrap();
        assert_eq!(given.try_text(0), None);
    }
    assert_eq!(given.streams[1].error().unwrap().errno(), 71, "EPROTO");
    given.come(0, &["well"]);
    assert_eq!(given.text(0), "well");
}

#[test]
fn lengths_of_nothing_and_of_4_gib_and_garbage_break_their_streams_only() {
    let rows: [(&str, &[u8], i32); 3] = [
        ("4 GiB", &[0xff, 0xff, 0xff, 0xff], 90),
        ("2 GiB", &[0x7f, 0xff, 0xff, 0xff, 1, 2, 3], 90),
        ("garbage", b"GET / HTTP/1.1\r\n\r\n", 90),
    ];
    let mut given = given(1, 1);
    for (case, bytes, errno) in rows {
        given.attach_wide();
        let last = given.streams.len() - 1;
        given.peers[last].write_all(bytes).unwrap();
        assert_eq!(given.until_broken(last).errno(), errno, "{case}");
        given.come(0, &[case]);
        assert_eq!(given.text(0), case);
    }
    // A length that counts itself and is 0.
    let whole = bus_core::framing::LengthPrefix::new(
        0,
        bus_core::framing::Width::Four,
        bus_core::framing::Endianness::Little,
        0,
    );
    let (ours, mut theirs) = unix_pair();
    given.streams.push(given.mux.attach(ours, whole.unwrap(), Attach::new()).unwrap());
    theirs.write_all(&[0; 4]).unwrap();
    assert_eq!(given.until_broken(given.streams.len() - 1).errno(), 71, "EPROTO");
    given.come(0, &["still well"]);
    assert_eq!(given.text(0), "still well");
}

#[test]
fn a_stream_of_one_byte_now_and_then_is_late_and_disturbs_nobody() {
    let mut given = given(1, 1);
    given.attach(Attach::new().timeout(Some(Duration::from_millis(50))));
    let mut count = 0;
    while given.streams[1].error().is_none() {
        // Each byte is in time; the message is not.
        let _ = given.peers[1].write_all(if count == 0 { b"\x7f" } else { b"z" });
        given.come(0, &[&count.to_string()]);
        assert_eq!(given.text(0), count.to_string());
        count += 1;
        std::thread::park_timeout(Duration::from_millis(1));
    }
    assert_eq!(given.streams[1].error().unwrap().errno(), 110, "ETIMEDOUT");
}
