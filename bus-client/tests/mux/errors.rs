//! Error handling: each stream's errors are its own, and its owner is woken.

use std::io::Write;

use bus_client::mux::{Attach, SendError, StreamError};
use rustix::event::PollFlags;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::given::*;

/// "An application should include a thread to monitor errors ... placing each TCP socket attached to
/// a KCM multiplexor in epoll set for POLLERR event."
#[test]
fn a_monitoring_thread_is_woken_by_the_event_of_the_stream_that_broke() {
    let mut given = given(1, 3);
    let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
    for (at, stream) in given.streams.iter().enumerate() {
        let data = EventData::new_u64(at as u64);
        epoll::add(&epoll, stream.broken_event(), data, EventFlags::empty()).unwrap();
    }
    let monitor = std::thread::spawn(move || {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(9) }; 3];
        let count = epoll::wait(&epoll, &mut events[..], None).unwrap();
        events[..count].iter().map(|e| ({ e.data }.u64(), { e.flags })).collect::<Vec<_>>()
    });
    drop(given.peers.remove(1));
    assert_eq!(given.until_broken(1), StreamError::Closed);
    assert_eq!(monitor.join().unwrap(), [(1, EventFlags::ERR)]);
    for at in [0, 2] {
        let none = poll_one(
            given.streams[at].broken_event(),
            PollFlags::empty(),
            std::time::Duration::ZERO,
        );
        assert!(none.is_empty(), "the others are well");
    }
}

/// "If an error occurs on an attached TCP socket, KCM sets an EPIPE on the socket", "KCM discontinues
/// using the socket".
#[test]
fn an_error_on_one_stream_is_epipe_and_the_others_go_on() {
    let mut given = given(2, 2);
    drop(given.peers.remove(0));
    assert_eq!(given.until_broken(0).errno(), 32, "EPIPE");
    given.come(0, &["on the other"]);
    assert_eq!(given.text(0), "on the other");
    for handle in &given.handles {
        handle.send(&message("out")).unwrap();
        assert_eq!(read_message(&given.peers[0]), b"out");
    }
    let detached = given.streams.remove(0).unattach();
    assert_eq!(detached.error, Some(StreamError::Closed));
    assert_eq!((given.mux.counters().broken, given.mux.counters().streams), (1, 1));
}

/// "It is assumed that once an error is posted on the TCP socket the data stream is unrecoverable
/// (i.e. an error may have occurred in the middle of receiving a message)."
#[test]
fn an_end_within_a_message_is_told_and_its_beginning_can_be_read_by_its_owner() {
    let mut given = given(1, 1);
    given.come(0, &["whole"]);
    given.peers[0].write_all(b"\x00\x09part").unwrap();
    drop(given.peers.remove(0));
    assert_eq!(given.text(0), "whole", "what came before is delivered");
    assert_eq!(given.until_broken(0), StreamError::Cut);
    assert_eq!(given.streams.remove(0).unattach().unread, b"\x00\x09part");
}

#[test]
fn a_broken_stream_is_replaced_while_threads_wait() {
    let mut given = given(2, 1);
    let handle = given.handles.pop().unwrap();
    given.handles[0].disable_receive();
    let waiting = std::thread::spawn(move || text(&handle.receive_deadline(PATIENCE).unwrap()));
    drop(given.peers.pop());
    let event = poll_one(given.streams[0].broken_event(), PollFlags::empty(), PATIENCE);
    assert_eq!(event, PollFlags::ERR);
    drop(given.streams.pop().unwrap().unattach());
    given.attach(Attach::new());
    given.come(0, &["on the new one"]);
    assert_eq!(waiting.join().unwrap(), "on the new one");
}

#[test]
fn a_sender_whose_streams_are_all_dead_gets_epipe_and_no_signal() {
    let mut given = given(1, 2);
    given.peers.clear();
    // The system may take one more before it says so.
    let error = (0..9).find_map(|_| given.handles[0].send(&message("x")).err());
    assert_eq!(error, Some(SendError::Broken));
    assert!(given.streams.iter().all(|stream| stream.error().is_some()));
}
