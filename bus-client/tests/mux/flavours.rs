//! Socket types: datagram and seqpacket.

use bus_client::mux::{Flavour, SendError};

use super::given::*;

#[test]
fn a_short_read_of_a_datagram_truncates_and_says_so() {
    let mut given = given(1, 1);
    given.come(0, &["a message", "the next"]);
    let mut buffer = [0; 5];
    let received = given.handles[0].receive_into(&mut buffer).unwrap();
    assert_eq!((received.bytes, received.end, received.truncated), (5, true, 6));
    assert_eq!(buffer, *b"\x00\x09a m");
    assert_eq!(given.text(0), "the next", "the rest is gone");
}

#[test]
fn a_short_read_of_a_seqpacket_leaves_the_rest() {
    let mut given = given_with(Flavour::SeqPacket, 1, 1);
    given.come(0, &["a message", "the next"]);
    let mut whole = Vec::new();
    let mut buffer = [0; 4];
    loop {
        let received = given.handles[0].receive_into(&mut buffer).unwrap();
        assert_eq!(received.truncated, 0);
        whole.extend_from_slice(&buffer[..received.bytes]);
        if received.end {
            break;
        }
    }
    assert_eq!(whole, message("a message"));
    assert_eq!(given.handles[0].receive_into(&mut buffer).unwrap().bytes, 4);
    assert_eq!(&*given.handles[0].receive().unwrap(), b"e next", "the rest in one call");
}

#[test]
fn a_seqpacket_message_is_built_in_pieces_until_its_end_of_record() {
    let given = given_with(Flavour::SeqPacket, 2, 1);
    let whole = message("in three pieces");
    given.handles[0].send_piece(&whole[..2]).unwrap();
    given.handles[0].send_piece(&whole[2..9]).unwrap();
    // Another handle's message does not come between.
    given.handles[1].send(&message("whole")).unwrap();
    given.handles[0].send(&whole[9..]).unwrap();
    assert_eq!(read_message(&given.peers[0]), b"whole");
    assert_eq!(read_message(&given.peers[0]), b"in three pieces");
    given.handles[0].send(&message("and the next is whole")).unwrap();
    assert_eq!(read_message(&given.peers[0]), b"and the next is whole");
}

#[test]
fn a_datagram_is_one_call() {
    let given = given(1, 1);
    assert_eq!(given.handles[0].send_piece(b"x"), Err(SendError::WholeOnly));
    assert_eq!(given.handles[0].send(b""), Err(SendError::Empty));
}
