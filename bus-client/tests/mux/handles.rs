//! Creating a multiplexor, cloning, handles of equal function, steering, receive-disable.

use std::collections::BTreeMap;
use std::io::Write;
use std::thread;

use bus_client::mux::{Attach, Flavour, MAX_HANDLES, Multiplexor, ReceiveError};

use super::given::*;

/// "A new multiplexor and initial KCM socket is created", "additional sockets can be created by
/// cloning".
#[test]
fn a_handle_is_made_and_cloned_and_all_do_the_same() {
    let mut given = given(1, 1);
    let clone = given.handles[0].try_clone().unwrap();
    given.handles.push(clone);
    given.come(0, &["one"]);
    assert_eq!(given.text(0), "one");
    given.come(0, &["two"]);
    assert_eq!(given.text(1), "two");
    for (at, sent) in [(0, "from the first"), (1, "from the second")] {
        given.handles[at].send(&message(sent)).unwrap();
        assert_eq!(read_message(&given.peers[0]), sent.as_bytes());
    }
    assert_eq!(given.mux.counters().handles, 2);
}

#[test]
fn g8_handles_are_bounded() {
    let mux = Multiplexor::new(Flavour::Datagram).unwrap();
    let one = mux.handle().unwrap();
    let more: Vec<_> = (1..MAX_HANDLES).map_while(|_| one.try_clone().ok()).collect();
    // Either bound, ours or the system's of descriptors, ends in an error and harms nobody.
    assert!(one.try_clone().is_err());
    drop(more);
    assert!(one.try_clone().is_ok());
}

/// "The normal send and recv calls": each handle is polled on its own descriptor.
#[test]
fn each_handle_is_pollable_on_its_own_descriptor() {
    let mut given = given(2, 1);
    assert!(!is_readable(&given.handles[0]) && !is_readable(&given.handles[1]));
    given.come(0, &["one", "two"]);
    until_readable(&given.handles[0]);
    // The second one is woken as well, looks, and finds that it is the first one's turn.
    assert_eq!(given.try_text(1), None);
    assert!(is_readable(&given.handles[0]) && !is_readable(&given.handles[1]));
    assert_eq!(given.try_text(0).as_deref(), Some("one"));
    assert!(is_readable(&given.handles[0]), "one more is there");
    assert_eq!(given.try_text(0).as_deref(), Some("two"));
    assert!(!is_readable(&given.handles[0]));
}

/// "I/O operations in different sockets may be done in parallel without the need for
/// synchronization between threads".
#[test]
fn threads_share_the_streams_without_a_lock_of_their_own() {
    const EACH: usize = 500;
    let mut given = given(4, 2);
    let peers: Vec<_> = given.peers.drain(..).collect();
    let echoes: Vec<_> = peers
        .into_iter()
        .map(|mut peer| {
            thread::spawn(move || {
                let mut count = 0;
                while count < 4 * EACH {
                    let mut head = [0; 2];
                    if std::io::Read::read_exact(&mut peer, &mut head).is_err() {
                        break;
                    }
                    let mut body = vec![0; u16::from_be_bytes(head).into()];
                    std::io::Read::read_exact(&mut peer, &mut body).unwrap();
                    peer.write_all(&message(&body)).unwrap();
                    count += 1;
                }
            })
        })
        .collect();
    let mux = given.mux.clone();
    let workers: Vec<_> = given
        .handles
        .drain(..)
        .enumerate()
        .map(|(worker, handle)| {
            thread::spawn(move || {
                let mut seen = Vec::new();
                for n in 0..EACH {
                    handle.send(&message(format!("{worker} {n}"))).unwrap();
                    // Not necessarily one's own: any handle gets any message.
                    seen.push(text(&handle.receive_deadline(PATIENCE).unwrap()));
                }
                // What came for it meanwhile goes to the others with this.
                drop(handle);
                seen
            })
        })
        .collect();
    let mut all = BTreeMap::new();
    for worker in workers {
        for text in worker.join().unwrap() {
            *all.entry(text).or_insert(0) += 1;
        }
    }
    assert_eq!(all.len(), 4 * EACH, "each message came, whole");
    assert!(all.values().all(|count| *count == 1), "and once");
    let together = mux.counters().streams_together;
    assert_eq!((together.sent_messages, together.received_messages), (2000, 2000));
    drop((given, mux));
    for echo in echoes {
        echo.join().unwrap();
    }
}

/// "Complete messages are steered to a KCM socket": one readiness goes to one handle, the next moves on.
#[test]
fn what_comes_together_goes_to_one_handle_and_the_next_moves_on() {
    let mut given = given(3, 1);
    for round in 0..6 {
        let texts: Vec<String> = (0..4).map(|n| format!("{round}.{n}")).collect();
        given.come(0, &texts.iter().map(String::as_str).collect::<Vec<_>>());
        let handle = round % 3;
        assert_eq!(given.try_text((handle + 1) % 3), None, "it is not its turn");
        for text in &texts {
            assert_eq!(given.try_text(handle).as_ref(), Some(text));
        }
        // It asks again, and is the last in turn.
        assert_eq!(given.try_text(handle), None);
    }
    assert_eq!(given.streams[0].counters().readinesses, 6);
}

#[test]
fn a_handle_that_does_not_come_back_is_passed_over() {
    let mut given = given(2, 1);
    given.come(0, &["for the first"]);
    assert_eq!(given.text(0), "for the first");
    for n in 0..3 {
        given.come(0, &[&format!("for the second {n}")]);
        assert_eq!(given.text(1), format!("for the second {n}"), "the first is at work");
    }
}

/// "When receive is disabled, any pending messages in the socket's receive buffer are moved to
/// other sockets."
#[test]
fn disabling_moves_what_is_pending_to_another_handle_in_order() {
    let mut given = given(2, 1);
    given.come(0, &["one", "two", "three"]);
    assert_eq!(given.text(0), "one");
    given.handles[0].disable_receive();
    assert!(!given.handles[0].receives());
    assert_eq!((given.text(1), given.text(1)), ("two".into(), "three".into()));
    assert_eq!(given.try_text(0), None);
    given.come(0, &["four"]);
    assert_eq!(given.text(1), "four", "all goes to the other");
    assert!(!is_readable(&given.handles[0]), "and does not wake this one");
    assert_eq!(given.mux.counters().moved_messages, 2);
}

#[test]
fn enabling_puts_it_back_into_rotation_and_moved_messages_do_not_return() {
    let mut given = given(2, 1);
    given.come(0, &["one", "two"]);
    assert_eq!(given.text(0), "one");
    given.handles[0].disable_receive();
    given.handles[0].enable_receive();
    assert_eq!(given.try_text(0), None);
    assert_eq!(given.text(1), "two");
    given.come(0, &["three"]);
    assert_eq!(given.text(0), "three", "its turn has come");
}

#[test]
fn with_all_disabled_a_bound_is_held_and_streams_are_not_read() {
    let mut given = given(2, 1);
    given.come(0, &["one", "two"]);
    assert_eq!(given.text(0), "one");
    given.handles[1].disable_receive();
    given.handles[0].disable_receive();
    assert_eq!(given.mux.counters().held_messages, 1);
    let read = given.streams[0].counters().received_bytes;
    given.come(0, &["three"]);
    for handle in &given.handles {
        handle.dispatch();
        assert_eq!(handle.try_receive().unwrap_err(), ReceiveError::WouldBlock);
        assert!(!is_readable(handle), "nothing that it could do");
    }
    assert_eq!(given.streams[0].counters().received_bytes, read, "it was not read");
    given.handles[1].enable_receive();
    assert_eq!((given.text(1), given.text(1)), ("two".into(), "three".into()));
}

#[test]
fn a_handle_that_is_dropped_leaves_what_it_had_to_the_others() {
    let mut given = given(2, 1);
    given.come(0, &["one", "two"]);
    assert_eq!(given.text(0), "one");
    drop(given.handles.remove(0));
    assert_eq!(given.text(0), "two");
}

#[test]
fn a_thread_that_waits_gets_what_another_one_moves_to_it() {
    let mut given = given(2, 1);
    given.come(0, &["one", "two"]);
    assert_eq!(given.text(0), "one");
    let second = given.handles.pop().unwrap();
    let waiting = thread::spawn(move || text(&second.receive_deadline(PATIENCE).unwrap()));
    given.handles[0].disable_receive();
    assert_eq!(waiting.join().unwrap(), "two");
}

#[test]
fn a_thread_that_waits_while_disabled_goes_on_once_it_is_enabled() {
    let mut given = given(1, 1);
    given.handles[0].disable_receive();
    given.come(0, &["one"]);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| text(&given.handles[0].receive_deadline(PATIENCE).unwrap()));
        given.handles[0].enable_receive();
        assert_eq!(waiting.join().unwrap(), "one");
    });
}

#[test]
fn closing_ends_all_waiting_and_what_is_there_can_be_taken() {
    let mut given = given(2, 1);
    given.come(0, &["one", "two"]);
    assert_eq!(given.text(0), "one");
    let second = given.handles.pop().unwrap();
    let waiting = thread::spawn(move || second.receive());
    given.mux.close();
    assert_eq!(waiting.join().unwrap().unwrap_err(), ReceiveError::Closed);
    assert_eq!(given.text(0), "two");
    assert_eq!(given.handles[0].receive().unwrap_err(), ReceiveError::Closed);
}

#[test]
fn a_stream_that_is_attached_later_wakes_who_waits() {
    let mut given = given(1, 0);
    let handle = given.handles.pop().unwrap();
    let waiting = thread::spawn(move || text(&handle.receive_deadline(PATIENCE).unwrap()));
    given.attach(Attach::new());
    given.come(0, &["one"]);
    assert_eq!(waiting.join().unwrap(), "one");
}
