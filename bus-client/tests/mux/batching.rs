//! Message batching: three ways to send together, and receiving together.

use bus_client::mux::{Attach, SendError};

use super::given::*;

fn reads(given: &Given, peer: usize, texts: &[&str]) {
    for text in texts {
        assert_eq!(read_message(&given.peers[peer]), text.as_bytes());
    }
}

/// "Send multiple messages in a single sendmmsg".
#[test]
fn several_messages_in_one_call_go_on_one_stream() {
    let given = given(1, 2);
    let texts: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    let sent: Vec<_> = texts.iter().map(message).collect();
    given.handles[0].send_many(&sent).unwrap();
    let counts = [0, 1].map(|at: usize| given.streams[at].counters().sent_messages);
    assert!(counts == [200, 0] || counts == [0, 200], "{counts:?}");
    let peer = usize::from(counts[0] == 0);
    reads(&given, peer, &texts.iter().map(String::as_str).collect::<Vec<_>>());
}

/// "All messages except the last have MSG_BATCH in the flags of sendmsg call".
#[test]
fn messages_with_more_to_come_wait_for_the_last_and_stay_on_one_stream() {
    let given = given(2, 2);
    given.handles[0].send_more(&message("one")).unwrap();
    given.handles[0].send_more(&message("two")).unwrap();
    assert_eq!(given.mux.counters().streams_together.sent_messages, 0, "they wait");
    given.handles[0].send(&message("three")).unwrap();
    let peer = usize::from(given.streams[0].counters().sent_messages == 0);
    assert_eq!(given.streams[peer].counters().sent_messages, 3);
    reads(&given, peer, &["one", "two", "three"]);
    given.handles[0].send_more(&message("four")).unwrap();
    given.handles[0].flush().unwrap();
    reads(&given, peer, &["four"]);
}

/// "Create 'super message' composed of multiple messages and send this with a single sendmsg".
#[test]
fn a_super_message_is_one_send_of_several() {
    let given = given(1, 1);
    given.handles[0].send(&messages(&["one", "two", "three"])).unwrap();
    reads(&given, 0, &["one", "two", "three"]);
}

/// "On receive, the KCM module attempts to queue messages received on the same KCM socket during
/// each TCP ready callback."
#[test]
fn what_came_together_is_received_with_one_call() {
    let mut given = given(2, 1);
    given.come(0, &["one", "two", "three"]);
    let mut batch = Vec::new();
    assert_eq!(given.handles[0].receive_batch(&mut batch, 2).unwrap(), 2);
    assert_eq!(given.handles[0].try_receive_batch(&mut batch, 99).unwrap(), 1);
    let texts: Vec<_> = batch.iter().map(text).collect();
    assert_eq!(texts, ["one", "two", "three"]);
}

#[test]
fn a_batch_whose_stream_dies_ends_with_epipe_and_the_next_goes_elsewhere() {
    let mut given = given(1, 1);
    given.handles[0].send_more(&message("one")).unwrap();
    given.attach(Attach::new());
    drop(given.peers.remove(0));
    assert_eq!(given.handles[0].send(&message("two")), Err(SendError::Broken));
    given.handles[0].send(&message("three")).unwrap();
    assert_eq!(read_message(&given.peers[0]), b"three");
}

#[test]
fn a_batch_that_is_never_ended_goes_out_with_its_handle() {
    let mut given = given(1, 1);
    given.handles[0].send_more(&message("one")).unwrap();
    drop(given.handles.pop());
    assert_eq!(read_message(&given.peers[0]), b"one");
}

#[test]
fn a_long_batch_goes_out_in_parts_and_in_order() {
    let given = given(1, 1);
    let peer = given.peers[0].try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        for n in 0..2000 {
            assert_eq!(read_message(&peer), format!("{n:0>500}").as_bytes());
        }
    });
    for n in 0..1999 {
        given.handles[0].send_more(&message(format!("{n:0>500}"))).unwrap();
    }
    given.handles[0].send(&message(format!("{:0>500}", 1999))).unwrap();
    reading.join().unwrap();
}
