//! Configurations (N handles on one stream, M on N), and flow control.

use std::io::Write;
use std::thread;

use super::given::*;

/// "In an Nx1 configuration, KCM logically provides multiple socket handles to the same TCP
/// connection."
#[test]
fn n_handles_share_one_stream() {
    let mut given = given(3, 1);
    let mut peer = given.peers.pop().unwrap();
    let mux = given.mux.clone();
    thread::scope(|scope| {
        let workers: Vec<_> = given
            .handles
            .iter()
            .map(|handle| {
                scope.spawn(move || {
                    let mut sum = 0;
                    while let Ok(message) = handle.receive() {
                        sum += text(&message).parse::<u64>().unwrap();
                    }
                    sum
                })
            })
            .collect();
        for n in 0..1000 {
            peer.write_all(&message(n.to_string())).unwrap();
        }
        while mux.counters().streams_together.received_messages < 1000 {
            thread::yield_now();
        }
        mux.close();
        let total: u64 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        assert_eq!(total, 499_500);
    });
}

/// "In a MxN configuration, multiple connections are established to the same destination."
#[test]
fn handles_receive_from_all_streams() {
    let mut given = given(2, 3);
    for peer in 0..3 {
        given.come(peer, &[&format!("of stream {peer}")]);
    }
    let mut texts: Vec<_> = (0..3)
        .map(|n| {
            let at = n % 2;
            given.try_text(at).or_else(|| given.try_text(1 - at)).unwrap()
        })
        .collect();
    texts.sort();
    assert_eq!(texts, ["of stream 0", "of stream 1", "of stream 2"]);
}

#[test]
fn g8_a_peer_that_is_not_asked_fills_its_socket_and_no_memory() {
    let mut given = given(1, 1);
    given.peers[0].set_nonblocking(true).unwrap();
    let chunk: Vec<u8> = (0..100).flat_map(|n| message(format!("{n:0>1000}"))).collect();
    let mut written = 0;
    given.come(0, &["first"]);
    assert_eq!(given.text(0), "first");
    while let Ok(count) = given.peers[0].write(&chunk) {
        written += count;
        assert!(written < 64 << 20, "the socket never fills");
    }
    // Dispatching without asking reads nothing: the handle has not come back.
    given.mux.dispatch();
    assert_eq!(given.streams[0].counters().received_bytes, 7);
    let mut batch = Vec::new();
    given.handles[0].try_receive_batch(&mut batch, 1).unwrap();
    let read = given.streams[0].counters().received_bytes;
    assert!(read <= 7 + (64 << 10), "one read: {read}");
}
