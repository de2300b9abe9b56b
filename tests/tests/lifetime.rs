//! Crowds of connections, descriptors on their way, and the end of the broker.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use bus_core::wire::{BrokerFrame, ClientFrame, FailureCode, GoodbyeCode};
use bus_core::{Destination, GroupId, MemberFlags};
use nix::sys::signal::Signal;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use tests::broker::Broker;
use tests::deadline::eventually;
use tests::process::Process;
use tests::raw::RawClient;
use tests::senders::Senders;
use tests::trace::Trace;
use tests::transports::run_by_each;

/// Waits until the broker has so many descriptors open.
#[track_caller]
fn until_descriptors(broker: &Broker, count: usize) {
    eventually("descriptors are closed", || match broker.descriptors() {
        open if open == count => Ok(()),
        open => Err(format!("{open} are open, and there should be {count}")),
    });
}

#[test]
fn a_thousand_connections_hear_one_order_and_leave_nothing() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let broker = Broker::start();
    let mut senders = [broker.raw(), broker.raw()];
    senders[0].ping();
    let before = broker.descriptors();
    let mut members: Vec<RawClient> = (0..1_000).map(|_| broker.raw()).collect();
    let mut group = None;
    for member in &mut members {
        group = Some(member.join("thousand"));
    }
    let group = Destination::Group(group.unwrap());
    let sent: Vec<_> = (0..20_u8)
        .map(|number| {
            let sender = &mut senders[usize::from(number % 2)];
            (number % 2, sender.post(group, &[number]))
        })
        .collect();
    let mut places: Vec<u64> = sent
        .into_iter()
        .map(|(which, serial)| {
            let receipt = senders[usize::from(which)].outcome(serial).unwrap();
            assert_eq!(receipt.recipients, 1_000);
            receipt.sequence.get()
        })
        .collect();
    places.sort_unstable();
    for member in &mut members {
        let heard: Vec<u64> = places.iter().map(|_| member.receive().head.sequence.get()).collect();
        assert_eq!(heard, places);
    }
    assert_eq!(senders[0].stats().connections, 1_002);
    drop(members);
    broker.until("they are gone", |stats| (stats.connections, stats.groups) == (3, 0));
    until_descriptors(&broker, before);
}

/// A file of its own, with this in it.
fn file_with(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn text_of(descriptor: impl Into<File>) -> String {
    let file: File = descriptor.into();
    let mut text = [0; 64];
    let count = file.read_at(&mut text, 0).unwrap();
    String::from_utf8_lossy(&text[..count]).into_owned()
}

#[test]
fn g1_descriptors_reach_all_recipients_and_none_stays_behind() {
    let broker = Broker::start();
    let mut sender = broker.raw();
    let mut members = [broker.raw(), broker.raw(), broker.raw()];
    let mut group = None;
    for member in &mut members {
        group = Some(member.join("files"));
    }
    let group = Destination::Group(group.unwrap());
    let before = broker.descriptors();
    let files: Vec<File> = (0..16).map(|number| file_with(&format!("file {number}"))).collect();
    let descriptors: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    for round in 0..10_usize {
        let here = &descriptors[round..];
        let serial = sender.post_descriptors(group, b"files", here);
        assert_eq!(sender.outcome(serial).unwrap().recipients, 3);
        let taken =
            |frame: &BrokerFrame| matches!(frame, BrokerFrame::DescriptorsTaken).then_some(());
        sender.hear_that(taken);
        for member in &mut members {
            let message = member.receive();
            member.say(&ClientFrame::DescriptorsTaken);
            assert_eq!(usize::from(message.head.descriptors), here.len());
            assert!(!message.head.descriptors_lost);
            let texts: Vec<String> = member.descriptors.drain(..).map(text_of).collect();
            let expected: Vec<String> =
                (round..16).map(|number| format!("file {number}")).collect();
            assert_eq!(texts, expected);
        }
    }
    until_descriptors(&broker, before);
}

#[test]
fn descriptors_of_those_who_die_or_break_the_protocol_are_closed() {
    let broker = Broker::start();
    let mut bystander = broker.raw();
    bystander.ping();
    let before = broker.descriptors();
    // Closed everywhere, a pipe's write ends show to its reader as an end of file.
    let (mut reader, writer) = pipe().unwrap();
    let held = [writer.as_fd(); 16];
    // In the queue of one that does not read, and dies.
    let (mut deaf, mut sender) = (broker.raw(), broker.raw());
    let group = Destination::Group(deaf.join("files"));
    for _ in 0..5 {
        let serial = sender.post_descriptors(group, b"x", &held);
        sender.outcome(serial).unwrap();
        sender.hear_that(|frame| matches!(frame, BrokerFrame::DescriptorsTaken).then_some(()));
    }
    assert!(broker.descriptors() >= before + 4 * 16, "they wait in the queue");
    drop(deaf);
    // Of a SEND that is refused.
    let nobody = Destination::Group(GroupId::from_raw(u64::MAX));
    let serial = sender.post_descriptors(nobody, b"x", &held);
    let refused = sender.outcome(serial).unwrap_err();
    assert_eq!(refused.code, FailureCode::NoSuchGroup);
    drop(sender);
    // With a frame that announces none, and in the middle of one.
    let mut client = broker.raw();
    client.write_descriptors(&tests::raw::header_bytes(16, 0x16, 0), &held);
    assert_eq!(client.goodbye().unwrap().code, GoodbyeCode::Protocol);
    let mut client = broker.raw();
    client.write_descriptors(&[16, 0, 0], &held);
    drop(client);
    let mut client = broker.raw();
    let mut bytes = tests::raw::header_bytes(16 + 20 + 100, 0x10, 1);
    bytes[6] = 16;
    client.write_descriptors(&bytes, &held);
    drop(client);
    // More than a frame can bring.
    let mut client = broker.raw();
    client.write_descriptors(&bytes, &[writer.as_fd(); 40]);
    assert_eq!(client.goodbye().unwrap().code, GoodbyeCode::Protocol);
    drop(client);
    // To one that drops, and has no room for the message.
    let (mut full, mut sender) = (broker.raw(), broker.raw());
    let dropping = full.join_with("dropping", MemberFlags::DROP_WHEN_FULL).unwrap();
    let dropping = Destination::Group(dropping);
    for _ in 0..256 {
        sender.send(dropping, b"x").unwrap();
    }
    let serial = sender.post_descriptors(dropping, b"x", &held);
    assert_eq!(sender.outcome(serial).unwrap().dropped, 1);
    drop((full, sender));
    drop(writer);
    let mut rest = Vec::new();
    assert_eq!(reader.read_to_end(&mut rest).unwrap(), 0);
    until_descriptors(&broker, before);
    bystander.ping();
}

#[test]
fn descriptors_travel_between_processes() {
    let broker = Broker::start();
    let mut sender = broker.raw();
    let takers: Vec<Process> = (0..3)
        .map(|_| broker.launch(env!("CARGO_BIN_EXE_taker")).line("pipes 1").start())
        .collect();
    for taker in &takers {
        assert_eq!(taker.line(), "joined");
    }
    let group = Destination::Group(sender.find("pipes").unwrap());
    let (mut reader, writer): (PipeReader, _) = pipe().unwrap();
    let serial = sender.post_descriptors(group, b"write your pid", &[writer.as_fd()]);
    assert_eq!(sender.outcome(serial).unwrap().recipients, 3);
    drop(writer);
    let mut expected: Vec<String> = takers.iter().map(|taker| taker.pid().to_string()).collect();
    for taker in takers {
        let _ = taker.end().with(0);
    }
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let mut pids: Vec<&str> = text.lines().collect();
    pids.sort_unstable();
    expected.sort_unstable();
    assert_eq!(pids, expected);
}

/// Lets a process have no more descriptors than it has, or as many as before.
fn limit_descriptors(pid: u32, limit: Option<Rlimit>) -> Rlimit {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap();
    let limit = limit.unwrap_or(Rlimit {
        current: Some(open.count() as u64),
        maximum: getrlimit(Resource::Nofile).maximum,
    });
    prlimit(Some(pid), Resource::Nofile, limit).unwrap()
}

#[test]
fn a_receiver_without_room_for_descriptors_is_told_and_harms_nobody() {
    let broker = Broker::start();
    let mut sender = broker.raw();
    let start = || broker.launch(env!("CARGO_BIN_EXE_taker")).line("pipes 3").start();
    let (full, other) = (start(), start());
    assert_eq!((full.line(), other.line()), ("joined".to_owned(), "joined".to_owned()));
    let group = Destination::Group(sender.find("pipes").unwrap());
    let (mut reader, writer): (PipeReader, _) = pipe().unwrap();
    let mut send = || {
        let serial = sender.post_descriptors(group, b"write", &[writer.as_fd(); 3]);
        assert_eq!(sender.outcome(serial).unwrap().recipients, 2);
        sender.hear_that(|frame| matches!(frame, BrokerFrame::DescriptorsTaken).then_some(()));
    };
    send();
    assert_eq!((full.line(), other.line()), ("3 taken".to_owned(), "3 taken".to_owned()));
    let before = limit_descriptors(full.pid(), None);
    send();
    assert_eq!((full.line(), other.line()), ("lost, and 0 taken".to_owned(), "3 taken".to_owned()));
    limit_descriptors(full.pid(), Some(before));
    send();
    assert_eq!((full.line(), other.line()), ("3 taken".to_owned(), "3 taken".to_owned()));
    let pids = [full.pid(), other.pid()].map(|pid| pid.to_string());
    let _ = (full.end().with(0), other.end().with(0));
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let count = |pid: &str| text.lines().filter(|line| *line == pid).count();
    assert_eq!((count(&pids[0]), count(&pids[1])), (6, 9));
}

/// dbus-broker: EMFILE ended the whole bus; MSG_CTRUNC ended a connection without a word.
#[test]
fn g8_a_broker_without_room_for_descriptors_refuses_the_send_and_goes_on() {
    let broker = Broker::start();
    let (mut member, mut sender) = (broker.raw(), broker.raw());
    let group = Destination::Group(member.join("files"));
    let open = broker.descriptors();
    let file = file_with("a file");
    let before = limit_descriptors(broker.pid(), None);
    let serial = sender.post_descriptors(group, b"x", &[file.as_fd(); 16]);
    let refused = sender.outcome(serial).unwrap_err();
    assert_eq!(refused.code, FailureCode::LimitExceeded);
    let taken = |frame: &BrokerFrame| matches!(frame, BrokerFrame::DescriptorsTaken).then_some(());
    sender.hear_that(taken);
    sender.send(group, b"without").unwrap();
    assert_eq!(&member.receive().payload[..], b"without");
    limit_descriptors(broker.pid(), Some(before));
    let serial = sender.post_descriptors(group, b"with", &[file.as_fd(); 16]);
    sender.outcome(serial).unwrap();
    assert_eq!(&member.receive().payload[..], b"with");
    assert_eq!(member.descriptors.len(), 16);
    until_descriptors(&broker, open);
}

/// Programs of each kind, in the middle of things.
struct Bystanders {
    listener: Process,
    waits_for_input: Process,
    waits_for_room: Process,
    waits_for_members: Process,
    streaming: Senders,
    deaf: RawClient,
    raw: RawClient,
}

impl Bystanders {
    fn start(broker: &Broker) -> Self {
        let listener = broker.listener("ends", &broker.file("trace"));
        let streaming = Senders::start(broker, "ends", 2);
        let mut deaf = broker.raw();
        deaf.join("stuck");
        let input = broker.file_with("input", "line\n".repeat(1_000));
        let stuck = broker.unisono("send stuck --lines").input_from(&input);
        let patient = broker.unisono("send stuck x --wait-members 2");
        let idle = broker.unisono("send ends --lines").input_piped();
        let bystanders = Self {
            listener,
            waits_for_input: idle.start(),
            waits_for_room: stuck.start(),
            waits_for_members: patient.start(),
            streaming,
            deaf,
            raw: broker.raw(),
        };
        broker.until("all are in the middle", |stats| {
            // The six programs, two clients here, and the one that asks.
            stats.connections == 9 && stats.waiting_sends >= 1 && stats.messages > 1_000
        });
        bystanders
    }

    /// All of them notice, and end as they should.
    fn end(mut self, broker: &Broker) {
        // Its input goes on, so that nothing but the broker ends it.
        let _input = self.waits_for_input.stdin();
        let mut ended = vec![
            self.listener.end(),
            self.waits_for_input.end(),
            self.waits_for_room.end(),
            self.waits_for_members.end(),
        ];
        ended.extend(self.streaming.stop().into_iter().map(|(_, ended)| ended));
        for ended in ended {
            let ended = ended.with(4);
            assert!(ended.errors.contains("broker"), "{}", ended.errors);
        }
        let trace = Trace::read(&broker.file("trace"));
        assert_eq!(trace.end.as_deref(), Some("broker-gone"));
        trace.assert_ordered();
    }
}

#[test]
fn a_broker_that_is_told_to_end_tells_its_clients_and_ends_well() {
    let mut broker = Broker::start();
    let mut bystanders = Bystanders::start(&broker);
    broker.signal(Signal::SIGTERM);
    let (raw, deaf) = (&mut bystanders.raw, &mut bystanders.deaf);
    assert_eq!(raw.goodbye().unwrap().code, GoodbyeCode::Shutdown);
    assert_eq!(deaf.goodbye().unwrap().code, GoodbyeCode::Shutdown);
    bystanders.end(&broker);
    assert!(broker.ended().success());
    assert!(!broker.socket().exists(), "it takes its socket with it");
}

#[test]
fn clients_of_a_broker_that_is_killed_notice_and_the_next_broker_takes_its_place() {
    let mut broker = Broker::start();
    let bystanders = Bystanders::start(&broker);
    let incarnation = bystanders.raw.welcome().incarnation;
    broker.signal(Signal::SIGKILL);
    assert!(!broker.ended().success());
    bystanders.end(&broker);
    assert!(broker.socket().exists(), "it had no time to take it along");
    let without = broker.unisono("ping").run();
    assert_ne!(without.code(), Some(0));
    let next = broker.again();
    let _ = next.unisono("ping").run().with(0);
    let welcome = next.raw().welcome().clone();
    assert_ne!(welcome.incarnation, incarnation, "ids of the old one mean nothing");
}

#[test]
fn g9_groups_end_with_the_processes_that_held_them() {
    let broker = Broker::start();
    let mut observer = broker.raw();
    let listeners: Vec<Process> =
        (0..4).map(|number| broker.listener("mortal", &broker.file(&number.to_string()))).collect();
    let group = Destination::Group(observer.find("mortal").unwrap());
    assert_eq!(observer.send(group, b"x").unwrap().recipients, 4);
    for (left, listener) in (0..4).rev().zip(listeners) {
        // By turns in good order and dead at once.
        let signal = [Signal::SIGTERM, Signal::SIGKILL][left % 2];
        let ended = listener.end_by(signal);
        let _ = match signal {
            Signal::SIGTERM => ended.with(0),
            _ => ended.killed_by(signal),
        };
        broker.until("it is gone", |stats| stats.connections == left as u64 + 2);
        match observer.send(group, b"y") {
            Ok(receipt) => assert_eq!(receipt.recipients as usize, left),
            Err(failure) => {
                assert_eq!((left, failure.code), (0, FailureCode::NoSuchGroup));
            }
        }
    }
    assert_eq!(observer.stats().groups, 0);
}

#[test]
fn what_is_promised_does_not_depend_on_how_bytes_travel() {
    run_by_each(&[1, 8, 9]);
}
