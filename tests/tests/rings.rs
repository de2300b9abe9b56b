//! Rings in shared memory, with real processes: one order whichever way bytes take, memory that comes
//! and goes, clients and brokers that die, and a client that writes anything into its memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bus_client::{Bus, JoinOptions, Member, Outgoing, Retain, Transport, Way};
use bus_core::wire::{BrokerFrame, BrokerRings, ClientFrame, ClientRings};
use bus_memory::Mapping;
use nix::sys::signal::Signal;
use tests::broker::Broker;
use tests::deadline::{DEADLINE, eventually};
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
    broker.until("much was sent", |stats| stats.messages > 5_000);
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

/// Whoever has just read takes back the word that somebody sleeps, and here somebody does.
#[test]
fn a_thread_that_sleeps_is_woken_although_another_of_its_connection_looks_meanwhile() {
    let broker = Broker::start();
    let here = bus(&broker, Transport::Ring);
    let other = here.open_endpoint().unwrap();
    let _member = here.join_with("sleeper", JoinOptions::new().create(true)).unwrap();
    let sender = bus(&broker, Transport::Socket);
    let group = sender.group("sleeper").unwrap();
    let (hears, heard) = std::sync::mpsc::channel();
    let sleeper = std::thread::spawn(move || {
        for _ in 0..300 {
            hears.send(here.receive().unwrap()).unwrap();
        }
    });
    for round in 0..300 {
        // Long enough for it to fall asleep in most rounds.
        (0..200).for_each(|_| assert!(other.try_receive().unwrap().is_none()));
        let _ = group.send(format!("{round}")).unwrap();
        let event = heard.recv_timeout(DEADLINE).expect("it is woken");
        assert_eq!(event.into_message().unwrap().text().unwrap(), format!("{round}"));
    }
    sleeper.join().unwrap();
    assert_eq!(rings_of(broker.pid()), 1);
}

/// How often the threads of a process have gone to sleep.
fn sleeps(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let sleeps = tasks.map(|task| {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    });
    sleeps.sum()
}

#[test]
fn nothing_wakes_up_while_nothing_is_sent_with_rings_and_without() {
    let broker = Broker::start();
    let (listener, _) = listener(&broker, "quiet", "trace", true);
    let feed = broker.file_with("feed", "x\n".repeat(100));
    let sender = by_ring(&broker, "send quiet --lines -q").input_from(&feed).start();
    let _ = sender.end().with(0);
    until_rings(&broker, 1);
    for rings in [1, 0] {
        // That nothing happens can only be seen over a time. Now and then something does: rings that
        // are idle are taken back, once.
        eventually("a while in which nobody wakes up", || {
            let before = [broker.pid(), listener.pid()].map(sleeps);
            std::thread::sleep(Duration::from_millis(1_500));
            let woken = [broker.pid(), listener.pid()].map(sleeps);
            if woken == before { Ok(()) } else { Err(format!("{before:?}, then {woken:?}")) }
        });
        if rings == 1 {
            until_rings(&broker, 0);
        }
    }
}

/// What idle connections cost the broker in all, after each has said something. The first one is
/// not counted: it brings code into memory.
fn idle_kib(transport: Transport) -> u64 {
    let broker = Broker::start();
    let talk = |number: u64| {
        let bus = bus(&broker, transport);
        let member = bus.join(&format!("own.{number}")).unwrap();
        let to_itself = bus.endpoint(bus.endpoint_id());
        for _ in 0..20 {
            let _ = to_itself.send("x").unwrap();
            let _ = bus.receive().unwrap();
        }
        (member, bus)
    };
    let until_idle = |all: &[(Member, Bus)]| {
        eventually("no rings are left", || {
            all.iter().for_each(|(_, bus)| assert!(bus.try_receive().unwrap().is_none()));
            let rings = rings_of(broker.pid());
            if rings == 0 { Ok(()) } else { Err(format!("{rings}")) }
        });
        broker.resident_kib()
    };
    let mut all = vec![talk(0)];
    let before = until_idle(&all);
    all.extend((1..=IDLE).map(talk));
    until_idle(&all).saturating_sub(before)
}

#[test]
fn an_idle_connection_with_rings_costs_what_one_with_a_socket_does() {
    let [socket, ring] = [Transport::Socket, Transport::Ring].map(idle_kib);
    assert!(ring <= socket + 4 * IDLE, "{ring} KiB for {IDLE}, and {socket} by sockets");
}

/// Connections that are idle.
const IDLE: u64 = 100;

/// Arenas that the broker has, each with how often it is mapped in this process.
fn arenas(broker: &Broker) -> Vec<usize> {
    let maps = |process: &str| {
        let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
        let lines = maps.lines().filter(|line| line.contains("unisono-arena"));
        let inodes = lines.map(|line| line.split_whitespace().nth(4).unwrap().to_owned());
        inodes.collect::<Vec<String>>()
    };
    let here = maps("self");
    let mapped = maps(&broker.pid().to_string()).into_iter().map(|made| {
        let here = here.iter().filter(|inode| **inode == made);
        here.count()
    });
    let mut mapped: Vec<usize> = mapped.collect();
    mapped.sort_unstable();
    mapped
}

#[test]
fn g4_after_a_change_of_the_members_large_payloads_go_to_other_memory() {
    let broker = Broker::start();
    let [stays, leaves, sender] = [Transport::Ring; 3].map(|transport| bus(&broker, transport));
    let _stays = stays.join_with("changing", JoinOptions::new().create(true)).unwrap();
    let member = leaves.join("changing").unwrap();
    let group = sender.group("changing").unwrap();
    let payload = |number: u8| vec![number; 256 << 10];
    let heard = |bus: &Bus| bus.receive().unwrap().into_message().unwrap();
    let _ = group.send(payload(0)).unwrap();
    let (first, seen) = (heard(&stays), heard(&leaves));
    assert_eq!((first.way(), seen.way()), (Way::Arena, Way::Arena));
    assert_eq!(arenas(&broker), [2], "both read the same memory");
    let _ = member.leave().unwrap();
    let _ = group.send(payload(1)).unwrap();
    let second = heard(&stays);
    assert_eq!(second.way(), Way::Arena);
    assert_eq!(arenas(&broker), [1, 2], "who has left has not got the new one");
    // Where a filter chooses, they get what they would get anyway.
    let picky = JoinOptions::new().filter("key=k".parse().unwrap());
    let _picky = leaves.join_with("changing", picky).unwrap();
    let _ = group.send(Outgoing::bytes(payload(2)).key("k")).unwrap();
    let _ = group.send(payload(3)).unwrap();
    let [third, chosen] = [&stays, &leaves].map(heard);
    let fourth = heard(&stays);
    let all = [&third, &chosen, &fourth].map(bus_client::Message::way);
    assert_eq!(all, [Way::Inline; 3]);
    // What came before can be read as long as one likes.
    for (number, message) in (0..).zip([&first, &second, &third, &fourth]) {
        assert_eq!(message.payload(), payload(number));
    }
    assert_eq!(seen.payload(), payload(0));
}

#[test]
fn g8_who_alone_keeps_payloads_where_they_are_is_charged_their_whole_memory() {
    let broker = Broker::start();
    let [holder, other, sender] = [Transport::Ring; 3].map(|transport| bus(&broker, transport));
    let _members = [&holder, &other].map(|bus| bus.join("kept").unwrap());
    let group = sender.group("kept").unwrap();
    let pinned = || {
        let accounts = sender.list_accounts().unwrap().map(Result::unwrap);
        let mut held: Vec<u64> =
            accounts.filter(|a| a.connection.is_some()).map(|a| a.held["pinned_bytes"]).collect();
        held.sort_unstable();
        held
    };
    let _ = group.send(vec![7; 300_000]).unwrap();
    let [kept, shared] =
        [&holder, &other].map(|bus| bus.receive().unwrap().into_message().unwrap());
    assert_eq!((kept.way(), shared.way()), (Way::Arena, Way::Arena));
    let charged = |expected: bool| {
        eventually("it is charged", || {
            // Whoever has nothing to do has to look at what comes for it.
            assert!(holder.try_receive().unwrap().is_none());
            assert!(other.try_receive().unwrap().is_none());
            let held = pinned();
            let most = *held.last().unwrap();
            if (most >= 4 << 20) == expected { Ok(()) } else { Err(format!("{held:?}")) }
        });
    };
    drop(shared);
    charged(true);
    assert_eq!(kept.payload(), vec![7; 300_000]);
    drop(kept);
    charged(false);
}

/// A client that has mapped its rings.
struct Rings {
    client: RawClient,
    mine: Arc<Mapping>,
    bell: OwnedFd,
}

impl Rings {
    fn open(broker: &Broker) -> Self {
        let mut client = RawClient::with_features(broker.socket(), &["rings"]);
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

/// Given a state and a listing that are longer than a ring,
/// when whoever has asked for them, once, does nothing but take what comes,
/// then both come whole, in their order.
#[test]
fn a_state_and_a_listing_longer_than_a_ring_come_whole_without_being_asked_for_in_parts() {
    const RETAINED: u32 = 500;
    const GROUPS: usize = 1_000;
    let broker = Broker::start();
    let owner = bus(&broker, Transport::Socket);
    let group = owner.create_retaining("long", Retain::last(RETAINED)).unwrap();
    // Together a megabyte, and none so large that it lies elsewhere.
    for number in 0..RETAINED {
        let _ = group.send(format!("{number:2000}")).unwrap();
    }
    let _groups: Vec<_> =
        (1..GROUPS).map(|number| owner.create(&format!("{number:x>250}")).unwrap()).collect();

    let reader = bus(&broker, Transport::Ring);
    let itself = reader.endpoint(reader.endpoint_id());
    let _ = itself.send("asks for rings").unwrap();
    let _ = reader.receive().unwrap();
    until_rings(&broker, 1);
    let listed = reader.list_groups().unwrap();
    let options = JoinOptions::new().create(false).with_state(true);
    let _member = reader.join_with("long", options).unwrap();
    for number in 0..RETAINED {
        let event = reader.receive_deadline(DEADLINE).unwrap().expect("it comes");
        let message = event.into_message().unwrap();
        assert_eq!(message.text().map(str::trim), Some(&*number.to_string()));
    }
    assert_eq!(listed.map(Result::unwrap).count(), GROUPS);
    assert_eq!(rings_of(broker.pid()), 1);
}
