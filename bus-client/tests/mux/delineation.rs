//! Message delineation: framing programs, messages constructed from what each stream brings.

use std::io::Write;

use bus_client::mux::{Attach, Flavour, Multiplexor};
use bus_core::framing::BpfFramer;

use super::given::*;

/// The seed's own example, compiled by clang; its source lies beside it.
const THRIFT: &[u8] = include_bytes!("../../../bus-core/tests/fixtures/thrift.bpf.o");

/// "When attaching a TCP socket to a multiplexor a BPF program must be specified", "the BPF program
/// for parsing Thrift is".
#[test]
fn the_bpf_program_of_the_document_frames_a_tcp_stream() {
    let (ours, mut theirs) = tcp_pair();
    let mux = Multiplexor::new(Flavour::Datagram).unwrap();
    let handle = mux.handle().unwrap();
    let framer = BpfFramer::load(THRIFT).unwrap();
    let _stream = mux.attach(ours, framer, Attach::new()).unwrap();
    theirs
        .write_all(&[wide_message(5, 7), wide_message(0, 0), wide_message(70_000, 9)].concat())
        .unwrap();
    for expected in [wide_message(5, 7), wide_message(0, 0), wide_message(70_000, 9)] {
        assert_eq!(handle.receive_deadline(PATIENCE).unwrap(), expected[..]);
    }
}

/// "A Psock structure holds the state for constructing messages on receive": each stream has its own.
#[test]
fn messages_are_constructed_on_each_stream_by_itself() {
    let mut given = given(1, 2);
    let (first, second) = (message("first"), message("second"));
    for at in 0..first.len() {
        given.peers[0].write_all(&first[at..=at]).unwrap();
        given.peers[1].write_all(&second[at..=at]).unwrap();
        if at + 1 < first.len() {
            assert_eq!(given.try_text(0), None);
        }
    }
    assert_eq!(given.text(0), "first");
    given.peers[1].write_all(&second[first.len()..]).unwrap();
    assert_eq!(given.text(0), "second");
}

#[test]
fn a_message_longer_than_any_read_comes_whole() {
    let mut given = given(1, 0);
    given.attach_wide();
    let large = wide_message(5 << 20, 3);
    let mut peer = given.peers.pop().unwrap();
    let sent = [wide_message(10, 1), large.clone(), wide_message(11, 2)].concat();
    let writing = std::thread::spawn(move || peer.write_all(&sent).map(|()| peer));
    for expected in [wide_message(10, 1), large, wide_message(11, 2)] {
        assert!(given.handles[0].receive_deadline(PATIENCE).unwrap() == expected[..]);
    }
    writing.join().unwrap().unwrap();
}

#[test]
fn streams_of_different_framings_go_to_the_same_handles() {
    let mut given = given(1, 1);
    given.attach_wide();
    given.come(0, &["narrow"]);
    assert_eq!(given.text(0), "narrow");
    given.peers[1].write_all(&wide_message(3, b'w')).unwrap();
    assert_eq!(given.handles[0].receive_deadline(PATIENCE).unwrap(), wide_message(3, b'w')[..]);
}

/// Random portions, many messages: nothing is lost, doubled or cut, in the order of the stream.
#[test]
fn however_the_bytes_come_the_messages_are_the_same() {
    let mut given = given(1, 1);
    let mut peer = given.peers.pop().unwrap();
    let texts: Vec<String> =
        (0..3000).map(|n: usize| "x".repeat(n * 37 % 900) + &n.to_string()).collect();
    let bytes: Vec<u8> = texts.iter().flat_map(message).collect();
    let writing = std::thread::spawn(move || {
        let (mut at, mut step) = (0, 1_usize);
        while at < bytes.len() {
            step = step * 75 % 65_537;
            let to = bytes.len().min(at + step % 5000 + 1);
            peer.write_all(&bytes[at..to]).unwrap();
            at = to;
        }
        peer
    });
    for text in &texts {
        assert_eq!(&given.text(0), text);
    }
    writing.join().unwrap();
}
