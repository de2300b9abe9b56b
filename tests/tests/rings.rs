//! Rings in shared memory, with real processes: one order whichever way bytes take, memory that comes
//! and goes, clients and brokers that die, and a client that writes anything into its memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bus_client::{Bus, JoinOptions, Outgoing, Transport};
use bus_core::wire::{BrokerFrame, BrokerRings, ClientFrame, ClientRings, Hello, MAGIC};
use bus_memory::Mapping;
use bytes::BytesMut;
use nix::sys::signal::Signal;
use tests::broker::Broker;
use tests::deadline::eventually;
use tests::process::{Launch, Process};
use tests::random::Random;
use tests::raw::RawClient;
use tests::senders::{Senders, all_lines, verify};
use tests::trace::{Trace, assert_identical, assert_streams};

/// Rings that the broker has mapped.
fn rings_of(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().filter(|line| line.contains("unisono-delivery")).count()
}

fn until_rings(broker: &Broker, count: usize) {
    eventually("rings", || {
        let now = rings_of(broker.pid());
        if now == count { Ok(()) } else { Err(format!("{now} and not {count}")) }
    });
}

fn by_ring(broker: &Broker, line: &str) -> Launch {
    broker.unisono(line).env("UNISONO_TRANSPORT", "ring")
}

fn bus(broker: &Broker, transport: Transport) -> Bus {
    let address = broker.socket().display().to_string();
    Bus::builder().address(address).transport(transport).connect().unwrap()
}

/// A listener to `group` whose trace goes to a file; it has joined.
fn listener(broker: &Broker, group: &str, name: &str, ring: bool) -> (Process, PathBuf) {
    let path = broker.file(name);
    let line = format!("listen {group} --json");
    let launch = if ring { by_ring(broker, &line) } else { broker.unisono(&line) };
    let process = launch.output_to(&path).start();
    eventually("it has joined", || {
        let text = fs::read_to_string(&path).unwrap();
        if text.contains("joined") { Ok(()) } else { Err(text) }
    });
    (process, path)
}

#[test]
fn g2_listeners_by_ring_and_by_socket_see_one_order() {
    let broker = Broker::start();
    let listeners = [("one", true), ("two", false), ("three", true)]
        .map(|(name, ring)| listener(&broker, "mixed", name, ring));
    let senders = Senders::start(&broker, "mixed", 2);
    broker.until("much was sent", |stats| stats.messages > 20_000);
    assert!(rings_of(broker.pid()) >= 2, "the listeners have rings");
    let sent = senders.end();
    let traces = listeners.map(|(process, path)| {
        let _ = process.end_by(Signal::SIGINT).with(0);
        path
    });
    let heard = traces.each_ref().map(|path| Trace::read(path));
    assert_streams(&heard[0], &all_lines(&sent));
    assert_identical(&heard);
    let receipts: Vec<&Path> = sent.iter().map(|sent| sent.receipts.as_path()).collect();
    verify(&broker, traces.iter().map(PathBuf::as_path), receipts);
    until_rings(&broker, 0);
}

#[test]
fn g2_descriptors_and_large_payloads_keep_their_place_among_what_goes_by_the_ring() {
    let broker = Broker::start();
    let there = bus(&broker, Transport::Ring);
    let here = bus(&broker, Transport::Ring);
    let _member = there.join_with("places", JoinOptions::new().create(true)).unwrap();
    let group = here.group("places").unwrap();
    let sizes = [10, 5_000, 100_000, 300_000, 2_000_000, 0, 70_000];
    let rounds = 40;
    let sender = std::thread::spawn(move || {
        for round in 0..rounds {
            for (at, size) in sizes.into_iter().enumerate() {
                let mut payload = vec![u8::try_from(at).unwrap(); size];
                payload.extend_from_slice(format!("{round}.{at}").as_bytes());
                let mut message = Outgoing::bytes(payload);
                if at % 2 == 0 {
                    let file: OwnedFd = fs::File::open("/dev/null").unwrap().into();
                    message = message.descriptor(file);
                }
                group.send(message).unwrap();
            }
        }
    });
    for round in 0..rounds {
        for (at, size) in sizes.into_iter().enumerate() {
            let mut message = there.receive().unwrap().into_message().unwrap();
            let text = format!("{round}.{at}");
            assert_eq!(message.payload().len(), size + text.len(), "{text}");
            assert!(message.payload().ends_with(text.as_bytes()), "{text}");
            let descriptors = message.take_descriptors();
            assert_eq!(descriptors.len(), usize::from(at % 2 == 0), "{text}");
        }
    }
    sender.join().unwrap();
    assert!(rings_of(broker.pid()) == 2);
}

#[test]
fn idle_rings_are_taken_back_and_come_again_with_traffic() {
    let broker = Broker::start();
    let descriptors = broker.descriptors();
    let one = bus(&broker, Transport::Ring);
    assert_eq!(rings_of(broker.pid()), 0, "connected, and nothing said");
    let _member = one.join_with("now.and.then", JoinOptions::new().create(true)).unwrap();
    let other = bus(&broker, Transport::Ring);
    let group = other.group("now.and.then").unwrap();
    for round in 0..3 {
        // After a pause they are asked for at the sixteenth message, and not within a second.
        let mut sent = 0;
        eventually("both have rings", || {
            group.send(format!("{round}.{sent}")).unwrap();
            let message = one.receive().unwrap().into_message().unwrap();
            assert_eq!(message.text().unwrap(), format!("{round}.{sent}"));
            sent += 1;
            let rings = rings_of(broker.pid());
            if rings == 2 { Ok(()) } else { Err(format!("{rings} after {sent}")) }
        });
        // Somebody has to look at the sockets while the broker asks for them back.
        eventually("they are gone", || {
            assert!(one.try_receive().unwrap().is_none());
            assert!(other.try_receive().unwrap().is_none());
            let rings = rings_of(broker.pid());
            if rings == 0 { Ok(()) } else { Err(format!("{rings}")) }
        });
    }
    drop((group, one, other, _member));
    eventually("no descriptor is left", || {
        let now = broker.descriptors();
        if now <= descriptors { Ok(()) } else { Err(format!("{now}, and {descriptors} before")) }
    });
}

#[test]
fn g9_rings_of_killed_clients_are_given_back_and_others_go_on() {
    let broker = Broker::start();
    let (kept, trace) = listener(&broker, "kill", "kept", true);
    let mut senders = Senders::start(&broker, "kill", 2);
    broker.until("their traffic", |stats| stats.messages > 1_000);
    for round in 0..5 {
        // One is killed while it reads, one while it is stopped with its ring full, one while it sends.
        let (reads, _) = listener(&broker, "kill", &format!("reads.{round}"), true);
        let (stopped, _) =
            listener(&broker, "kill --drop-when-full", &format!("stops.{round}"), true);
        let feed = broker.file_with("feed", "x\n".repeat(200_000));
        let sends = by_ring(&broker, "send kill --lines -q").input_from(&feed).start();
        let before = broker.raw().stats().messages;
        stopped.stop();
        broker.until("traffic", |stats| stats.messages > before + 3_000);
        for process in [reads, stopped, sends] {
            let _ = process.end_by(Signal::SIGKILL);
        }
        eventually("only those that live have rings", || {
            let now = rings_of(broker.pid());
            if now <= 3 { Ok(()) } else { Err(format!("{now}")) }
        });
    }
    let killed = senders.kill_one();
    assert!(!killed.lines.is_empty());
    let _ = senders.end();
    let _ = kept.end_by(Signal::SIGINT).with(0);
    verify(&broker, [trace.as_path()], []);
    until_rings(&broker, 0);
}

#[test]
fn what_a_ring_held_when_the_broker_was_killed_is_read_and_then_an_error_comes() {
    let mut broker = Broker::start();
    let (process, trace) = listener(&broker, "last", "trace", true);
    let sender = bus(&broker, Transport::Socket);
    let group = sender.group("last").unwrap();
    let send = |number: u32| {
        let _ = group.send(format!("{number}")).unwrap();
    };
    // Until it has rings: with its first message it asks for them.
    (0..10).for_each(send);
    until_rings(&broker, 1);
    (10..20).for_each(send);
    let has = |count: usize| {
        eventually("it has heard", || {
            let text = fs::read_to_string(&trace).unwrap();
            let heard = text.matches("\"message\"").count();
            if heard >= count { Ok(()) } else { Err(format!("{heard}")) }
        });
    };
    has(20);
    process.stop();
    (20..50).for_each(send);
    // A receipt says that they are in its queue. They are in its ring once the broker has turned to it,
    // which it has before it answers what comes later.
    let _ = broker.raw().stats();
    broker.signal(Signal::SIGKILL);
    let _ = broker.ended();
    process.go_on();
    let _ = process.end().with(4);
    let text = fs::read_to_string(&trace).unwrap();
    for number in 0..50 {
        assert!(text.contains(&format!("\"{number}\"")), "{number} in {text}");
    }
}

#[test]
fn memory_comes_back_after_a_gigabyte_of_traffic() {
    let broker = Broker::start();
    let before = {
        let one = bus(&broker, Transport::Ring);
        one.ping().unwrap();
        broker.resident_kib()
    };
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let reader = bus(&broker, Transport::Ring);
            let member = reader.join_with("much", JoinOptions::new().create(true)).unwrap();
            std::thread::spawn(move || {
                let mut bytes = 0;
                while bytes < 256 << 20 {
                    bytes += reader.receive().unwrap().into_message().unwrap().payload().len();
                }
                (reader, member)
            })
        })
        .collect();
    let sender = bus(&broker, Transport::Ring);
    let group = sender.group("much").unwrap();
    let payload = vec![7; 64 << 10];
    for _ in 0..(256 << 20) / payload.len() {
        group.send(Outgoing::bytes(payload.as_slice())).unwrap();
    }
    for reader in readers {
        drop(reader.join().unwrap());
    }
    drop((group, sender));
    until_rings(&broker, 0);
    eventually("memory is back", || {
        let now = broker.resident_kib();
        // What threads keep for the next message is some hundred KiB.
        if now <= before + before / 10 {
            Ok(())
        } else {
            Err(format!("{now} KiB, {before} before"))
        }
    });
}

/// A client that has mapped its rings.
struct Rings {
    client: RawClient,
    mine: Arc<Mapping>,
    bell: OwnedFd,
}

impl Rings {
    fn open(broker: &Broker) -> Self {
        let mut client = RawClient::silent(broker.socket());
        let mut hello = BytesMut::from(&MAGIC[..]);
        let mut greeting = Hello::new();
        greeting.features.push("rings".to_owned());
        ClientFrame::Hello(greeting).encode(&mut hello).unwrap();
        client.write(&hello);
        client.welcomed();
        client.say(&ClientFrame::Rings(ClientRings::Wanted));
        let bytes = client.hear_that(|frame| match frame {
            BrokerFrame::Rings(BrokerRings::Offered { submission_bytes, .. }) => {
                Some(*submission_bytes as usize)
            }
            _ => None,
        });
        let mut files = client.descriptors.drain(..);
        let (mine, _theirs, bell) =
            (files.next().unwrap(), files.next().unwrap(), files.next().unwrap());
        let mine = Mapping::read_write(mine.as_fd(), 4096 + bytes).unwrap();
        drop(files);
        client.say(&ClientFrame::Rings(ClientRings::Taken));
        Self { client, mine: Arc::new(mine), bell }
    }

    fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    fn until_ended(&mut self) {
        while self.client.try_hear().is_some() {}
    }
}

#[test]
fn g10_a_client_that_writes_anything_into_its_memory_harms_nobody_else() {
    let broker = Broker::start();
    let (process, trace) = listener(&broker, "calm", "trace", true);
    let senders = Senders::start(&broker, "calm", 2);
    let mut random = Random::new(6);
    for round in 0..60_u64 {
        let mut rings = Rings::open(&broker);
        // Every byte of it, or only those that say where things are.
        let most = if round % 3 == 0 { rings.mine.len() } else { 512 };
        let stop = Arc::new(AtomicBool::new(false));
        let flipper = std::thread::spawn({
            let (mine, stop) = (Arc::clone(&rings.mine), Arc::clone(&stop));
            let mut random = Random::new(round);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let at = random.below(most);
                    mine.copy_in(at, &random.bytes(1));
                }
            }
        });
        // It ends at the first thing that cannot be, or when it has had enough.
        for _ in 0..random.below(2_000) {
            rings.ring();
        }
        let _ = rings.client.stream.shutdown(std::net::Shutdown::Write);
        if round % 2 == 0 {
            let _ = rings.client.stream.shutdown(std::net::Shutdown::Both);
        } else {
            let _ = rings.client.stream.flush();
        }
        drop(rings);
        stop.store(true, Ordering::Relaxed);
        flipper.join().unwrap();
    }
    let sent = senders.end();
    let _ = process.end_by(Signal::SIGINT).with(0);
    assert_streams(&Trace::read(&trace), &all_lines(&sent));
    until_rings(&broker, 0);
}

#[test]
fn a_position_that_jumps_ends_the_connection_and_says_why() {
    let broker = Broker::start();
    let mut rings = Rings::open(&broker);
    rings.mine.word(0).store(1 << 40, Ordering::Release);
    rings.ring();
    rings.until_ended();
    broker.until_logged(&["broke the protocol", "the tail of the ring jumped ahead"]);
    until_rings(&broker, 0);
}
