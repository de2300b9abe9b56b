//! Connected mode: messages are sent atomically, on streams between which the load is balanced.

use std::io::Read;
use std::thread;

use bus_client::mux::{Attach, SendError};

use super::given::*;

/// "Messages written on a KCM socket are sent atomically on an appropriate TCP socket."
#[test]
fn messages_of_many_threads_are_not_mixed_on_a_stream() {
    let mut given = given(4, 0);
    given.attach_wide();
    let mut peer = given.peers.pop().unwrap();
    let handles = std::mem::take(&mut given.handles);
    thread::scope(|scope| {
        for (fill, handle) in (0_u8..).zip(&handles) {
            // Far longer than what a socket takes at once: all of them are cut.
            scope.spawn(move || {
                (0..4).for_each(|_| handle.send(&wide_message(1 << 20, fill)).unwrap())
            });
        }
        for _ in 0..16 {
            let mut head = [0; 4];
            peer.read_exact(&mut head).unwrap();
            let mut body = vec![0; u32::from_be_bytes(head) as usize];
            peer.read_exact(&mut body).unwrap();
            assert!(body.len() == 1 << 20 && body.iter().all(|byte| *byte == body[0]));
        }
    });
}

/// "Can use the different connections for load balancing when transmitting."
#[test]
fn handles_spread_over_the_streams_and_stay_there() {
    let given = given(4, 2);
    for round in 0..3 {
        for handle in &given.handles {
            handle.send(&message(format!("{round}"))).unwrap();
        }
    }
    let counts = [0, 1].map(|at: usize| given.streams[at].counters().sent_messages);
    assert_eq!(counts, [6, 6]);
    assert_eq!(given.mux.counters().changed_stream, 0);
}

#[test]
fn a_full_stream_is_left_for_the_least_loaded_one() {
    let mut given = given(1, 0);
    given.attach_wide();
    given.attach_wide();
    let large = wide_message(4 << 20, 1);
    given.handles[0].try_send(&large).unwrap();
    let full = usize::from(given.streams[0].counters().sent_bytes == 0);
    // The first one's rest waits for its peer, and the next goes on the other.
    given.handles[0].try_send(&wide_message(10, 2)).unwrap();
    assert_eq!(given.streams[1 - full].counters().sent_messages, 1);
    assert_eq!(given.mux.counters().changed_stream, 1);
    let mut bytes = vec![0; 14];
    given.peers[1 - full].read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, wide_message(10, 2));
    // The rest follows while somebody looks after it.
    let mut peer = given.peers[full].try_clone().unwrap();
    let reading = thread::spawn(move || {
        let mut bytes = vec![0; (4 << 20) + 4];
        peer.read_exact(&mut bytes).unwrap();
        bytes
    });
    while !reading.is_finished() {
        poll_one(
            &given.handles[0],
            rustix::event::PollFlags::IN,
            std::time::Duration::from_millis(20),
        );
        given.handles[0].dispatch();
    }
    assert!(reading.join().unwrap() == large);
}

#[test]
fn without_room_anywhere_a_send_would_block_and_is_told_when_not() {
    let mut given = given(2, 0);
    given.attach_wide();
    given.handles[0].try_send(&wide_message(1 << 20, 1)).unwrap();
    assert_eq!(given.handles[1].try_send(&wide_message(10, 2)), Err(SendError::WouldBlock));
    assert!(!is_readable(&given.handles[1]));
    let mut peer = given.peers[0].try_clone().unwrap();
    let reading = thread::spawn(move || {
        let mut bytes = vec![0; (1 << 20) + 4 + 14];
        peer.read_exact(&mut bytes).unwrap();
    });
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        assert!(std::time::Instant::now() < until);
        until_readable(&given.handles[1]);
        given.handles[1].dispatch();
        if given.handles[1].try_send(&wide_message(10, 2)).is_ok() {
            break;
        }
    }
    reading.join().unwrap();
}

#[test]
fn a_blocked_send_ends_with_its_deadline_and_no_byte_of_it_goes() {
    let mut given = given(2, 0);
    given.attach_wide();
    given.handles[0].try_send(&wide_message(1 << 20, 1)).unwrap();
    assert_eq!(
        given.handles[1].send_deadline(&wide_message(9, 2), std::time::Duration::ZERO),
        Err(SendError::TimedOut)
    );
    let mut peer = given.peers.pop().unwrap();
    let reading = thread::spawn(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        all
    });
    given.handles[0].send(&wide_message(3, 3)).unwrap();
    drop(given);
    assert!(reading.join().unwrap() == [wide_message(1 << 20, 1), wide_message(3, 3)].concat());
}

/// The choice: sent again, whole, on another stream, as in the kernel.
#[test]
fn a_message_cut_by_the_death_of_its_stream_goes_whole_on_another() {
    let mut given = given(1, 0);
    given.attach_wide();
    let large = wide_message(4 << 20, 5);
    given.handles[0].try_send(&large).unwrap();
    assert!(given.streams[0].counters().sent_messages == 0, "it is cut");
    given.attach_wide();
    drop(given.peers.remove(0));
    let mut peer = given.peers[0].try_clone().unwrap();
    let reading = thread::spawn(move || {
        let mut bytes = vec![0; (4 << 20) + 4];
        peer.read_exact(&mut bytes).unwrap();
        bytes
    });
    // It is sent while somebody waits; nothing is to be received.
    thread::scope(|scope| {
        let handle = &given.handles[0];
        let waiting = scope.spawn(move || handle.receive());
        assert!(reading.join().unwrap() == large);
        given.mux.close();
        waiting.join().unwrap().unwrap_err();
    });
    assert!(given.streams[0].error().is_some());
    assert_eq!(given.mux.counters().resent, 1);
}

#[test]
fn a_waiting_send_without_another_stream_ends_with_epipe() {
    let mut given = given(1, 0);
    given.attach_wide();
    let peer = given.peers.pop().unwrap();
    thread::scope(|scope| {
        let sending = scope.spawn(|| given.handles[0].send(&wide_message(4 << 20, 5)));
        while given.streams[0].counters().full == 0 {
            thread::yield_now();
        }
        drop(peer);
        assert_eq!(sending.join().unwrap(), Err(SendError::Broken));
    });
}

#[test]
fn an_accepted_message_waits_for_the_next_stream() {
    let mut given = given(1, 0);
    given.attach_wide();
    given.handles[0].try_send(&wide_message(1 << 20, 5)).unwrap();
    drop(given.peers.pop());
    let _ = given.until_broken(0);
    assert_eq!(given.handles[0].try_send(&wide_message(1, 1)), Err(SendError::Broken));
    given.attach_wide();
    let mut peer = given.peers.pop().unwrap();
    let reading = thread::spawn(move || {
        let mut bytes = vec![0; (1 << 20) + 4];
        peer.read_exact(&mut bytes).unwrap();
        bytes
    });
    while !reading.is_finished() {
        given.mux.dispatch();
        thread::yield_now();
    }
    assert!(reading.join().unwrap() == wide_message(1 << 20, 5));
}

#[test]
fn a_message_over_the_limit_is_refused_at_once() {
    let mut given = given(1, 0);
    given.attach(Attach::new());
    let error = SendError::TooLarge { given: (16 << 20) + 1, limit: 16 << 20 };
    assert_eq!(given.handles[0].try_send(&vec![0; (16 << 20) + 1]), Err(error));
}

#[test]
fn without_a_stream_a_send_is_epipe() {
    let given = given(1, 0);
    assert_eq!(given.handles[0].send(b"x"), Err(SendError::Broken));
}
