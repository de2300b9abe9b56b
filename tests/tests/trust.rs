//! What one program, or one user, can do to others and to the broker, and must not (G8, G10): several
//! users on one bus, descriptors that lead back to it, frames that never end, looking inside, and
//! what a reload takes.

use std::fs;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use bus_core::wire::{self, ClientFrame, FailureCode};
use bus_core::{Destination, MemberFlags, Resource};
use bytes::BytesMut;
use rustix::cmsg_space;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tests::broker::Broker;
use tests::deadline::eventually;
use tests::program::Program;
use tests::raw::{RawClient, frame_bytes, id, send_frame};
use tests::users;

const CONNECTOR: &str = env!("CARGO_BIN_EXE_connector");

/// Everybody may do everything but look inside.
const OPEN: &str = r#"[[policy]]
allow = ["connect", "join", "create", "send", "watch", "call", "own", "direct"]
"#;

/// Sends without waiting until a send would block, and gives how many went through.
fn flood(client: &mut RawClient, to: Destination) -> usize {
    for sent in 0.. {
        let serial = client.post_with(to, b"flood", wire::SendFlags::NONBLOCK);
        if let Err(failure) = client.outcome(serial) {
            assert_eq!(failure.code, FailureCode::WouldBlock, "{failure}");
            client.resume();
            return sent;
        }
    }
    unreachable!("a queue is bounded")
}

#[test]
#[cfg_attr(not(all(has_setpriv, has_root)), ignore = "needs setpriv, and to be root")]
fn needs_setpriv_g10_another_user_takes_half_of_a_queue_and_holds_up_nobody() {
    let broker = users::open_to_all(OPEN);
    let mut deaf = broker.raw();
    let group = Destination::Group(deaf.join("both"));
    let mut program = users::program_of(&broker, 4242, CONNECTOR);
    let mut stranger = program.client();
    assert_eq!(flood(&mut stranger, group), 128, "of 256");
    let waits = stranger.post(group, b"waits");
    broker.until("a send waits", |stats| stats.waiting_sends == 1);
    let mut other = users::program_of(&broker, 4343, CONNECTOR);
    assert_eq!(flood(&mut other.client(), group), 64, "half of what is left");
    let mut own = broker.raw();
    assert_eq!(flood(&mut own, deaf.address()), 64, "and the rest is its own user's");
    // It reads, and everybody goes on in his line.
    let mut users = Vec::new();
    while users.len() < 257 {
        users.push(deaf.receive().head.credentials.uid);
    }
    stranger.outcome(waits).unwrap();
    assert_eq!(users.iter().filter(|uid| **uid == 4242).count(), 129);
}

#[test]
#[cfg_attr(not(all(has_setpriv, has_root)), ignore = "needs setpriv, and to be root")]
fn needs_setpriv_g8_a_member_that_keeps_another_users_share_full_is_put_out() {
    let broker = users::open_to_all(&format!("{OPEN}[limits]\nstall = \"300ms\"\n"));
    let mut deaf = broker.raw();
    let group = Destination::Group(deaf.join("held"));
    let mut program = users::program_of(&broker, 4242, CONNECTOR);
    let mut stranger = program.client();
    for _ in 0..128 {
        stranger.send(group, b"x").unwrap();
    }
    // It waits for the share until the member that does not read is put out.
    assert_eq!(stranger.send(group, b"goes on").unwrap().recipients, 0);
    broker.until_logged(&["evicted", "held"]);
}

#[test]
#[cfg_attr(not(all(has_setpriv, has_root)), ignore = "needs setpriv, and to be root")]
fn needs_setpriv_who_looks_inside_is_the_owner_or_has_a_rule_to_monitor() {
    let rule = "[[policy]]\nallow = [\"monitor\"]\nusers = [4343]\n\
                [[policy]]\nallow = [\"monitor\"]\non = [\"org.example.Seen\"]\nusers = [4444]\n";
    let broker = users::open_to_all(&format!("{OPEN}{rule}"));
    let as_user = |uid: u32, line| users::run_as(&broker, uid, &uid.to_string(), line);
    let mut own = broker.raw();
    let group = Destination::Group(own.join("org.example.Seen"));
    let sequence = own.send(group, b"whose business is this?").unwrap().sequence;
    let why = format!("why {}", sequence.get());
    for line in [why.as_str(), "top --once", "why --group org.example.Seen", "monitor"] {
        let refused = as_user(4242, line).with(1);
        assert!(refused.errors.contains("user 4242 may not monitor"), "{line}: {}", refused.errors);
    }
    as_user(4343, &why).with(0);
    as_user(4343, "top --once").with(0);
    as_user(4444, "why --group org.example.Seen").with(0);
    as_user(4444, &why).with(1);
    broker.unisono(&why).run().with(0);
}

/// The broker in a user namespace sees all users that have no number there as 65534.
#[test]
#[cfg_attr(
    not(all(has_user_namespaces, has_setpriv, has_root)),
    ignore = "needs user namespaces, setpriv, and to be root"
)]
fn needs_setpriv_users_that_have_no_number_here_are_told_apart_by_their_processes() {
    let before = ["unshare", "--user", "--map-root-user"];
    let limits = "[limits]\nuser_connections = 16\nuser_names = 32\nuser_memberships = 32\n";
    let broker = users::let_all_in(Broker::run_by(&before, &format!("{OPEN}{limits}")));
    let mut programs = [4242, 4343].map(|uid| users::program_of(&broker, uid, CONNECTOR));
    let [mut greedy, mut innocent] = programs.each_mut().map(|program| program.client());
    let mut own = broker.raw();
    let group = Destination::Group(own.join("all"));
    let refused = (0..)
        .find_map(|number| greedy.join_with(&format!("g{number}"), MemberFlags::empty()).err());
    assert_eq!(refused.unwrap().code, FailureCode::LimitExceeded);
    for number in 0..4 {
        innocent.join(&format!("i{number}"));
    }
    // They work, and are known as what the kernel says: a user of whom nothing is known here.
    innocent.send(group, b"hello").unwrap();
    let message = own.receive();
    assert_eq!((&message.payload[..], message.head.credentials.uid), (&b"hello"[..], 65_534));
    assert_eq!(flood(&mut greedy, group), 128, "half of the queue");
    assert_eq!(flood(&mut innocent, group), 0, "for the bus they are one user");
}

/// A connection in a queue of its own would live for ever.
#[test]
fn g8_a_connection_to_the_bus_is_not_carried_by_it() {
    let broker = Broker::start();
    let mut bystander = broker.raw();
    bystander.ping();
    let before = broker.descriptors();
    let stream = UnixStream::connect(broker.socket()).unwrap();
    let itself = stream.try_clone().unwrap();
    let mut client = RawClient::over(stream);
    client.greet();
    client.welcomed();
    let (own, other) = (client.address(), bystander.address());
    for to in [own, other] {
        let serial = client.post_descriptors(to, b"me", &[itself.as_fd()]);
        let refused = client.outcome(serial).unwrap_err();
        assert!(refused.text.contains("connection to this bus"), "{refused}");
        client.resume();
    }
    // Any other socket is.
    let (one, _other) = UnixStream::pair().unwrap();
    let serial = client.post_descriptors(own, b"a socket", &[one.as_fd()]);
    client.outcome(serial).unwrap();
    drop((client, itself));
    eventually("all of it is closed", || match broker.descriptors() {
        now if now == before => Ok(()),
        now => Err(format!("{now} descriptors and not {before}")),
    });
    assert_eq!(bystander.stats().endpoints, 1);
}

/// The same by a way that the broker cannot see: the connection waits in another socket.
#[test]
fn g8_a_connection_that_its_own_queue_keeps_open_ends_when_its_process_has() {
    let broker = Broker::with_limits("stall = \"500ms\"");
    let mut bystander = broker.raw();
    bystander.ping();
    let before = broker.descriptors();
    let mut program = Program::start(CONNECTOR, broker.socket());
    let mut client = program.client();
    // It has room, but takes nothing that is more than this.
    let own = client.address();
    let (one, other) = UnixStream::pair().unwrap();
    let rights = [client.as_fd()];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&rights)));
    sendmsg(&one, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
    // Of two messages with descriptors the second waits until the first was taken.
    for _ in 0..2 {
        let serial = client.post_descriptors(own, b"the way back", &[other.as_fd()]);
        client.outcome(serial).unwrap();
    }
    drop((client, one, other, program));
    eventually("all of it is closed", || match broker.descriptors() {
        now if now == before => Ok(()),
        now => Err(format!("{now} descriptors and not {before}")),
    });
    assert_eq!(bystander.stats().endpoints, 1);
}

/// systemd#8166, dbus-broker#346: memory for what one client never finishes.
#[test]
fn g8_a_frame_that_has_come_in_part_is_charged_to_its_user() {
    let broker = Broker::with_limits("user_bytes = 400000\nuser_connections = 4");
    let mut slow = broker.raw();
    let held = |client: &mut RawClient| client.accounts()[0].held.get(Resource::Bytes);
    let mut other = broker.raw();
    assert_eq!(held(&mut other), 0);
    let whole = frame_bytes(0x10, 0, 0, 1, &vec![0; 100_000]);
    slow.write(&whole[..50_000]);
    eventually("all of it is charged", || match held(&mut other) {
        bytes if bytes == whole.len() as u64 => Ok(()),
        bytes => Err(bytes.to_string()),
    });
    drop(slow);
    eventually("it is given back", || match held(&mut other) {
        0 => Ok(()),
        bytes => Err(bytes.to_string()),
    });
}

#[test]
fn g8_a_frame_that_its_user_has_no_bytes_for_is_refused_and_the_stream_goes_on() {
    let broker = Broker::with_limits("user_bytes = 400000\nuser_connections = 2");
    let mut client = broker.raw();
    let own = client.address();
    let before = client.stats().messages;
    for _ in 0..3 {
        let serial = client.post(own, &vec![7; 1_000_000]);
        let refused = client.outcome(serial).unwrap_err();
        assert_eq!(refused.code, FailureCode::LimitExceeded, "{refused}");
        assert_eq!(refused.limit.as_deref(), Some("user_bytes"), "{refused}");
        assert_eq!(refused.limit_value, Some(400_000), "{refused}");
    }
    // With descriptors, which are closed.
    let descriptors = broker.descriptors();
    let file = fs::File::open("/dev/null").unwrap();
    let serial = client.post_descriptors(own, &vec![7; 1_000_000], &[file.as_fd()]);
    client.outcome(serial).unwrap_err();
    assert_eq!(broker.descriptors(), descriptors);
    // One behind it that does not want to wait is not dragged along.
    client.send(own, &vec![1; 60_000]).unwrap();
    assert_eq!(client.receive().payload.len(), 60_000);
    assert_eq!(client.stats().messages, before + 1);
    assert_eq!(client.accounts()[0].held.get(Resource::Bytes), 0);
}

/// Descriptors come with any byte, those of a frame that is read past too, and the broker has only so many.
#[test]
fn g8_descriptors_with_each_byte_of_a_frame_that_is_refused_end_the_connection() {
    let broker = Broker::with_limits("user_bytes = 400000\nuser_connections = 2");
    let mut client = broker.raw();
    let serial = client.next_serial();
    let frame = send_frame(id(serial), client.address(), &vec![7; 1_000_000]);
    let mut bytes = BytesMut::new();
    ClientFrame::Send(frame).encode(&mut bytes).unwrap();
    let (begun, rest) = bytes.split_at(100_000);
    client.write(begun);
    let file = fs::File::open("/dev/null").unwrap();
    let before = broker.descriptors();
    for byte in rest.chunks(1).take(200) {
        if !client.try_write_descriptors(byte, &[file.as_fd(); 16]) {
            break;
        }
    }
    let goodbye = client.goodbye().expect("it is told");
    assert!(goodbye.text.contains("a frame has at most 16"), "{goodbye:?}");
    eventually("they are closed", || match broker.descriptors() {
        now if now < before => Ok(()),
        now => Err(format!("{now}, and {before} before")),
    });
}

#[test]
fn a_reload_takes_limits_of_users_and_says_what_it_does_not_take() {
    let broker = Broker::with("[limits]\nuser_names = 64\n");
    let early = broker.raw();
    let file = broker.file("broker.toml");
    let told = |text: &str| {
        fs::write(&file, text).unwrap();
        broker.unisono("reload").run().with(0).output
    };
    assert_eq!(told("[limits]\nuser_names = 64\n"), "0 rules\n", "nothing is different");
    let text = told(
        "threads = 7\n[limits]\nuser_names = 128\nqueue_messages = 7\nuser_connection_rate = 77\n",
    );
    for part in
        ["threads: needs a restart", "limits.queue_messages: needs a restart", "limits of user"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("user_names") && !text.contains("user_connection_rate"), "{text}");
    broker.until_logged(&["not in force", "limits.queue_messages"]);
    assert_eq!(early.welcome().limits.user_names, 64);
    assert_eq!(broker.raw().welcome().limits.user_names, 64, "while its user has connections");
    drop(early);
    eventually("the new limits", || match broker.raw().welcome().limits.clone() {
        limits if limits.user_names == 128 => {
            assert_eq!(limits.queue_messages, 256);
            Ok(())
        }
        limits => Err(limits.user_names.to_string()),
    });
    let refused = {
        fs::write(&file, "[limits]\nuser_bytes = 0\n").unwrap();
        broker.unisono("reload").run().with(1)
    };
    assert!(refused.errors.contains("broker.toml:2:"), "{}", refused.errors);
}
