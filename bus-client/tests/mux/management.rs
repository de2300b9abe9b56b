//! Attach, unattach, limits and time-outs of assembly, monitoring of streams.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bus_client::mux::{Attach, AttachError, Flavour, Multiplexor, StreamError};
use bus_core::framing::{BpfFramer, FrameError};
use rustix::net::sockopt;

use super::given::*;

#[test]
fn tcp_and_unix_streams_are_attached_and_nothing_else() {
    let mux = Multiplexor::new(Flavour::Datagram).unwrap();
    let handle = mux.handle().unwrap();
    let (tcp, mut tcp_peer) = tcp_pair();
    let (unix, mut unix_peer) = unix_pair();
    let _tcp = mux.attach(tcp, framer(), Attach::new()).unwrap();
    let _unix = mux.attach(unix, framer(), Attach::new()).unwrap();
    tcp_peer.write_all(&message("over tcp")).unwrap();
    assert_eq!(text(&handle.receive_deadline(PATIENCE).unwrap()), "over tcp");
    unix_peer.write_all(&message("over unix")).unwrap();
    assert_eq!(text(&handle.receive_deadline(PATIENCE).unwrap()), "over unix");
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let refused = mux.attach(udp, framer(), Attach::new());
    assert!(matches!(refused, Err(AttachError::NotAStream)));
}

/// "Unattaching a transport socket": with the bytes read and not delivered.
#[test]
fn unattach_gives_the_stream_back_with_what_was_read_and_not_delivered() {
    let mut given = given(1, 2);
    given.come(0, &["whole"]);
    given.peers[0].write_all(b"\x00\x09part").unwrap();
    assert_eq!(given.text(0), "whole");
    let detached = given.streams.remove(0).unattach();
    assert_eq!((&detached.unread[..], detached.error), (&b"\x00\x09part"[..], None));
    assert_eq!(detached.counters.received_messages, 1);
    // The stream is as good as before.
    let mut ours = UnixStream::from(detached.socket);
    given.peers[0].write_all(b"rest").unwrap();
    let mut rest = [0; 4];
    ours.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"rest");
    ours.write_all(b"back").unwrap();
    given.peers[0].read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"back");
    // And the other one is not touched.
    given.come(1, &["other"]);
    assert_eq!(given.text(0), "other");
    assert_eq!(given.mux.counters().unattached, 1);
}

#[test]
fn an_unattached_stream_can_be_attached_again_with_its_bytes() {
    let mut given = given(1, 1);
    given.peers[0].write_all(b"\x00\x09part").unwrap();
    assert_eq!(given.try_text(0), None);
    let detached = given.streams.remove(0).unattach();
    let attach = Attach::new().unread(detached.unread);
    given.streams.push(given.mux.attach(detached.socket, framer(), attach).unwrap());
    given.peers[0].write_all(b" two").unwrap();
    assert_eq!(given.try_text(0), None, "one is missing");
    given.peers[0].write_all(b"!").unwrap();
    assert_eq!(given.text(0), "part two!");
}

#[test]
fn a_half_written_message_comes_back_with_its_stream() {
    let mut given = given(1, 0);
    given.attach_wide();
    let large = wide_message(1 << 20, 1);
    given.handles[0].try_send(&large).unwrap();
    let detached = given.streams.remove(0).unattach();
    assert!(!detached.unsent.is_empty() && large.ends_with(&detached.unsent));
}

/// "KCM limits the maximum receive message size to be the size of the receive socket buffer".
#[test]
fn the_maximum_is_the_receive_buffer_and_a_longer_message_is_emsgsize() {
    let mux = Multiplexor::new(Flavour::Datagram).unwrap();
    let handle = mux.handle().unwrap();
    let (ours, mut theirs) = unix_pair();
    sockopt::set_socket_recv_buffer_size(&ours, 8192).unwrap();
    let most = sockopt::socket_recv_buffer_size(&ours).unwrap();
    let stream = mux.attach(ours, wide(), Attach::new()).unwrap();
    theirs.write_all(&wide_message(most - 4, 1)).unwrap();
    assert_eq!(handle.receive_deadline(PATIENCE).unwrap().len(), most);
    theirs.write_all(&wide_message(most - 3, 1)[..100]).unwrap();
    let _ = handle.try_receive();
    let error = stream.error().expect("it is broken");
    let given = u64::try_from(most).unwrap() + 1;
    assert_eq!(error, StreamError::Frame(FrameError::TooLong { given, maximum: most }));
    assert_eq!((error.errno(), mux.counters().too_long), (90, 1));
    assert_eq!(stream.unattach().unread.len(), 100, "what was buffered is its owner's");
}

/// "The BPF program may also enforce a maximum messages size and report an error".
#[test]
fn a_program_may_end_the_stream_with_its_own_error() {
    let netstring = include_bytes!("../../../bus-core/tests/fixtures/netstring.bpf.o");
    let mux = Multiplexor::new(Flavour::Datagram).unwrap();
    let handle = mux.handle().unwrap();
    let (ours, mut theirs) = unix_pair();
    let stream = mux.attach(ours, BpfFramer::load(netstring).unwrap(), Attach::new()).unwrap();
    theirs.write_all(b"2:ok,x").unwrap();
    assert_eq!(handle.receive_deadline(PATIENCE).unwrap(), b"2:ok,"[..]);
    assert_eq!(stream.error().unwrap().errno(), 74, "EBADMSG");
    assert_eq!(stream.unattach().unread, b"x");
}

/// "The timeout value is taken from the receive timeout of the attached TCP socket".
#[test]
fn a_message_not_complete_in_time_is_etimedout() {
    let mux = Multiplexor::new(Flavour::Datagram).unwrap();
    let handle = mux.handle().unwrap();
    let (ours, mut theirs) = tcp_pair();
    ours.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
    let stream = mux.attach(ours, framer(), Attach::new()).unwrap();
    // Idle is not late.
    handle.receive_deadline(Duration::from_millis(90)).unwrap_err();
    assert_eq!(stream.error(), None);
    theirs.write_all(b"\x00\x09part").unwrap();
    // The thread that waits sees to it; there is nobody else.
    let waiting = std::thread::spawn(move || handle.receive());
    let event = poll_one(stream.broken_event(), rustix::event::PollFlags::empty(), PATIENCE);
    assert_eq!(event, rustix::event::PollFlags::ERR);
    assert_eq!(stream.error().unwrap().errno(), 110, "ETIMEDOUT");
    assert_eq!(mux.counters().timed_out, 1);
    mux.close();
    waiting.join().unwrap().unwrap_err();
    assert_eq!(stream.unattach().unread, b"\x00\x09part");
}

#[test]
fn a_foreign_loop_notices_a_time_out_by_its_descriptor() {
    let mut given = given(1, 0);
    given.attach(Attach::new().timeout(Some(Duration::from_millis(20))));
    given.peers[0].write_all(b"\x00").unwrap();
    let until = std::time::Instant::now() + PATIENCE;
    while given.streams[0].error().is_none() {
        assert!(std::time::Instant::now() < until);
        until_readable(&given.handles[0]);
        given.handles[0].dispatch();
    }
    assert_eq!(given.streams[0].error().unwrap().errno(), 110);
}

#[test]
fn the_time_in_which_nobody_asks_is_not_the_peers() {
    let mut given = given(1, 0);
    given.attach(Attach::new().timeout(Some(Duration::from_millis(20))));
    given.peers[0].write_all(b"\x00\x05he").unwrap();
    assert_eq!(given.try_text(0), None);
    given.handles[0].disable_receive();
    given.handles[0].receive_deadline(Duration::from_millis(60)).unwrap_err();
    given.peers[0].write_all(b"llo").unwrap();
    given.handles[0].enable_receive();
    assert_eq!(given.text(0), "hello");
    assert_eq!(given.streams[0].error(), None);
}

/// "The application does retain an open file descriptor to the socket so it will be able to get
/// statistics from the socket."
#[test]
fn the_owner_keeps_a_descriptor_for_statistics_and_counters() {
    let (ours, mut theirs) = tcp_pair();
    let local = ours.local_addr().unwrap();
    let mux = Multiplexor::new(Flavour::Datagram).unwrap();
    let handle = mux.handle().unwrap();
    let stream = mux.attach(ours, framer(), Attach::new()).unwrap();
    let descriptor = stream.as_fd();
    let address: std::net::SocketAddr =
        rustix::net::getsockname(descriptor).unwrap().try_into().unwrap();
    assert_eq!(address, local);
    assert!(sockopt::socket_recv_buffer_size(descriptor).unwrap() > 0);
    theirs.write_all(&messages(&["one", "two"])).unwrap();
    handle.receive_deadline(PATIENCE).unwrap();
    handle.send(&message("three")).unwrap();
    let counters = stream.counters();
    assert_eq!((counters.received_messages, counters.received_bytes), (2, 10));
    assert_eq!((counters.sent_messages, counters.sent_bytes), (1, 7));
    assert_eq!(mux.counters().streams_together, counters);
    assert_eq!((mux.counters().attached, mux.counters().streams), (1, 1));
}

#[test]
fn an_explicit_maximum_and_time_go_before_the_sockets() {
    let mut given = given(1, 0);
    given.attach(Attach::new().maximum(NonZeroUsize::new(6).unwrap()).timeout(None));
    given.come(0, &["four"]);
    assert_eq!(given.text(0), "four");
    given.come(0, &["fiver"]);
    assert_eq!(given.until_broken(0).errno(), 90);
}
