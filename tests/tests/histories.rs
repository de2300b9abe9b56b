//! Many senders and receivers as processes: what each one saw, checked for order, loss and
//! duplication.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use bus_core::wire::{ClientFrame, Handle, MessageFrame};
use bus_core::{Destination, EndpointId, MemberFlags};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::broker::Broker;
use tests::deadline::eventually;
use tests::process::Process;
use tests::random::Random;
use tests::raw::RawClient;
use tests::senders::{Senders, all_lines, lines, verify};
use tests::trace::{Trace, assert_identical, assert_streams};

#[test]
fn g2_three_listeners_see_forty_thousand_lines_of_four_senders_in_one_order() {
    let broker = Broker::start();
    let traces = [0, 1, 2].map(|number| broker.file(&format!("trace.{number}")));
    let listeners = traces.each_ref().map(|trace| broker.listener("big --count 40000", trace));
    let streams: Vec<Vec<String>> = (0..4).map(|sender| lines(sender, 10_000)).collect();
    let senders: Vec<(Process, PathBuf)> = streams
        .iter()
        .enumerate()
        .map(|(number, lines)| {
            let input = broker.file_with(&format!("input.{number}"), lines.join("\n") + "\n");
            let receipts = broker.file(&format!("receipts.{number}"));
            let send = broker.unisono("send big --lines --json --wait-members 3");
            let process = send.input_from(&input).output_to(&receipts).start();
            (process, receipts)
        })
        .collect();
    let receipts: Vec<PathBuf> = senders
        .into_iter()
        .map(|(process, receipts)| {
            let _ = process.end().with(0);
            receipts
        })
        .collect();
    for listener in listeners {
        let _ = listener.end().with(0);
    }
    let heard = traces.each_ref().map(|trace| Trace::read(trace));
    assert_eq!(heard[0].messages.len(), 40_000);
    assert_streams(&heard[0], &streams);
    assert_identical(&heard);
    let paths = || traces.iter().map(PathBuf::as_path);
    verify(&broker, paths(), []);
    verify(&broker, paths(), receipts.iter().map(PathBuf::as_path));
}

#[test]
fn g4_members_that_join_and_leave_midway_miss_nothing_between() {
    let broker = Broker::start();
    let stays = broker.file("stays");
    let listener = broker.listener("lively", &stays);
    let senders = Senders::start(&broker, "lively --timeout 50s", 3);
    // Visitors overlap: each comes before the one before it goes.
    let mut visits: Vec<PathBuf> = Vec::new();
    let mut visitor: Option<Process> = None;
    for number in 0..8 {
        let path = broker.file(&format!("visit.{number}"));
        let next = broker.listener("lively", &path);
        wait_for_lines(&path, 30);
        if let Some(previous) = visitor.replace(next) {
            let _ = previous.end_by(Signal::SIGINT).with(0);
        }
        visits.push(path);
    }
    let last = visitor.unwrap().end_by(Signal::SIGINT);
    let _ = last.with(0);
    let sent = senders.end();
    let _ = listener.end_by(Signal::SIGINT).with(0);
    let all = Trace::read(&stays);
    assert_streams(&all, &all_lines(&sent));
    for path in &visits {
        let visit = Trace::read(path);
        assert!(visit.left.is_some(), "it left in good order");
        assert!(visit.messages.len() >= 29);
        visit.assert_part_of(&all);
    }
    let traces = visits.iter().map(PathBuf::as_path).chain([stays.as_path()]);
    verify(&broker, traces, sent.iter().map(|sent| sent.receipts.as_path()));
}

#[test]
fn g2_overlapping_groups_are_in_one_order() {
    let broker = Broker::start();
    // Each pair has two groups in common, and nobody has them all.
    let memberships = ["a b c", "b c d", "c d a", "d a b"];
    let traces = [0, 1, 2, 3].map(|number| broker.file(&format!("trace.{number}")));
    let listeners: Vec<Process> = memberships
        .iter()
        .zip(&traces)
        .map(|(groups, trace)| {
            let listener = broker.listener(groups, trace);
            eventually("joined all", || {
                let text = fs::read_to_string(trace).unwrap();
                let joined = text.matches("\"joined\"").count();
                if joined == 3 { Ok(()) } else { Err(text) }
            });
            listener
        })
        .collect();
    let senders: Vec<Process> = ["a", "b", "c", "d"]
        .iter()
        .enumerate()
        .map(|(number, group)| {
            let text = lines(number, 1_000).join("\n");
            let input = broker.file_with(&format!("input.{group}"), text);
            let send = broker.unisono(&format!("send {group} --lines"));
            send.input_from(&input).start()
        })
        .collect();
    for sender in senders {
        let _ = sender.end().with(0);
    }
    for listener in listeners {
        let _ = listener.end_by(Signal::SIGINT).with(0);
    }
    let heard = traces.each_ref().map(|trace| Trace::read(trace));
    let mut places = HashMap::new();
    for trace in &heard {
        assert_eq!(trace.messages.len(), 3_000);
        trace.assert_ordered();
        for message in &trace.messages {
            let first = places.entry(message.sequence).or_insert(message);
            assert_eq!(*first, message, "one place, two messages");
        }
    }
    assert_eq!(places.len(), 4_000);
    verify(&broker, traces.iter().map(PathBuf::as_path), []);
}

/// What one endpoint got: where in the order, from whom, as which of its sends.
type Queue = Vec<(u64, EndpointId, u64)>;

#[test]
fn g2_direct_messages_stand_in_the_order_of_the_groups() {
    let broker = Broker::start();
    // Each connection has two endpoints, and each endpoint is a member of two groups of three.
    let names = ["one", "two", "three"];
    let mut clients: Vec<RawClient> = (0..3).map(|_| broker.raw()).collect();
    let mut groups = HashMap::new();
    let mut addresses = Vec::new();
    let second = Handle::from_raw(1);
    for (number, client) in clients.iter_mut().enumerate() {
        addresses.extend([client.endpoint(), client.open(second).unwrap()]);
        for (handle, shift) in [(Handle::FIRST, 0), (second, 1)] {
            for name in [names[(number + shift) % 3], names[(number + shift + 1) % 3]] {
                let group = client.join_as(handle, name, MemberFlags::empty()).unwrap();
                groups.insert(name, group);
            }
        }
    }
    let mut destinations: Vec<Destination> = groups.into_values().map(Destination::Group).collect();
    destinations.extend(addresses.iter().copied().map(Destination::Endpoint));
    let senders: Vec<_> = (0..4)
        .map(|seed| {
            let (mut sender, destinations) = (broker.raw(), destinations.clone());
            thread::spawn(move || {
                let mut random = Random::new(seed + 1);
                let mut recipients = 0;
                for _ in 0..400 {
                    let to = destinations[random.below(destinations.len())];
                    recipients += u64::from(sender.send(to, b"x").unwrap().recipients);
                }
                recipients
            })
        })
        .collect();
    // They read until the last message, which each endpoint gets on its own.
    let readers: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            thread::spawn(move || {
                let mut queues: HashMap<Handle, Queue> = HashMap::new();
                let mut ended = 0;
                while ended < 2 {
                    let MessageFrame { head, payload, .. } = client.message();
                    client.say(&ClientFrame::Credit {
                        endpoint: head.endpoint,
                        messages: 1,
                        bytes: payload.len() as u64,
                    });
                    ended += u8::from(payload.is_empty());
                    let queue = queues.entry(head.endpoint).or_default();
                    queue.push((head.sequence.get(), head.sender, head.sender_serial));
                }
                queues.into_values().collect::<Vec<Queue>>()
            })
        })
        .collect();
    let sent = senders.into_iter().map(|sender| sender.join().unwrap());
    let sent: u64 = sent.sum();
    let mut last = broker.raw();
    for address in &addresses {
        last.send(Destination::Endpoint(*address), b"").unwrap();
    }
    let queues = readers.into_iter().flat_map(|reader| reader.join().unwrap());
    let queues: Vec<Queue> = queues.collect();
    assert_eq!(queues.len(), 6);
    let mut places = HashMap::new();
    for queue in &queues {
        let mut serials = HashMap::new();
        assert!(queue.is_sorted_by(|one, next| one.0 < next.0), "sequences rise");
        for (sequence, sender, serial) in queue {
            let before = serials.insert(*sender, *serial);
            assert!(before < Some(*serial), "a lane keeps its order (G3)");
            let first = *places.entry(*sequence).or_insert((*sender, *serial));
            assert_eq!(first, (*sender, *serial), "one place, two messages");
        }
    }
    // G1: everybody got what the receipts say, and the six last ones.
    let got: usize = queues.iter().map(Vec::len).sum();
    assert_eq!(got as u64, sent + 6);
}

#[test]
fn g1_senders_that_are_killed_leave_no_message_half_delivered() {
    let broker = Broker::start();
    let traces = [0, 1, 2].map(|number| broker.file(&format!("trace.{number}")));
    let listeners = traces.each_ref().map(|trace| broker.listener("killing", trace));
    let mut senders = Senders::start(&broker, "killing", 4);
    let mut killed = Vec::new();
    for _ in 0..3 {
        let before = broker.raw().stats().messages;
        broker.until("in mid-stream", |stats| stats.messages > before + 500);
        killed.push(senders.kill_one());
    }
    let whole = senders.end();
    // What the killed had written before is read to its end.
    broker.until("they are gone", |stats| stats.connections == 4);
    for listener in listeners {
        let _ = listener.end_by(Signal::SIGINT).with(0);
    }
    let heard = traces.each_ref().map(|trace| Trace::read(trace));
    assert_identical(&heard);
    let mut streams: Vec<Vec<&str>> = heard[0].by_sender().into_values().collect();
    let survivor: Vec<&str> = whole[0].lines.iter().map(String::as_str).collect();
    let at = streams.iter().position(|stream| *stream == survivor);
    streams.remove(at.expect("the survivor's lines are whole"));
    assert_eq!(streams.len(), 3);
    for dead in &killed {
        // Its first lines, none missing and none twice, and at least those with receipts.
        let told = receipts(&dead.receipts);
        let own = streams.iter().filter(|stream| stream[0] == dead.lines[0]);
        let [own] = own.collect::<Vec<_>>()[..] else { panic!("one stream of each sender") };
        assert!(own.len() >= told.len(), "{} < {}", own.len(), told.len());
        assert!(own.iter().zip(&dead.lines).all(|(heard, sent)| heard == sent));
    }
    let sends = killed.iter().chain(&whole).map(|sent| whole_lines(&sent.receipts));
    let sends: Vec<PathBuf> = sends.collect();
    verify(&broker, traces.iter().map(PathBuf::as_path), sends.iter().map(PathBuf::as_path));
}

#[test]
fn g1_receivers_that_are_killed_have_the_beginning_and_the_others_everything() {
    let broker = Broker::start();
    let listen = |name: &str| {
        let path = broker.file(name);
        (broker.listener("killing", &path), path)
    };
    let stay = [listen("one"), listen("two")];
    let mut dead = Vec::new();
    let senders = Senders::start(&broker, "killing", 3);
    for number in 0..4 {
        let (victim, path) = listen(&format!("victim.{number}"));
        wait_for_lines(&path, 200);
        let _ = victim.end_by(Signal::SIGKILL).killed_by(Signal::SIGKILL);
        dead.push(path);
    }
    let sent = senders.end();
    let heard = stay.map(|(listener, path)| {
        let _ = listener.end_by(Signal::SIGINT).with(0);
        Trace::read(&path)
    });
    assert_streams(&heard[0], &all_lines(&sent));
    assert_identical(&heard);
    for path in dead {
        let trace = Trace::read_cut(&path);
        assert!(trace.messages.len() >= 199);
        trace.assert_beginning_of(&heard[0]);
    }
}

#[test]
fn g3_what_a_process_had_seen_stands_before_what_it_sent() {
    let broker = Broker::start();
    let traces = [0, 1, 2, 3].map(|number| broker.file(&format!("trace.{number}")));
    let sends = [0, 1, 2, 3].map(|number| broker.file(&format!("sends.{number}")));
    let witness = broker.listener("talk --count 2000", &broker.file("witness"));
    let peers: Vec<Process> = traces
        .iter()
        .zip(&sends)
        .map(|(trace, sends)| {
            let peer = broker.launch(env!("CARGO_BIN_EXE_peer"));
            // Four peers and a witness; 500 messages of each peer.
            peer.line("talk 5 500 2000").arg(trace).arg(sends).start()
        })
        .collect();
    for peer in peers {
        let _ = peer.end().with(0);
    }
    let _ = witness.end().with(0);
    let witness = Trace::read(&broker.file("witness"));
    let heard = traces.each_ref().map(|trace| Trace::read(trace));
    // G1, G2: with loopback, all of them saw all of it.
    assert_identical(&heard);
    assert!(heard[0].messages == witness.messages);
    let mut caused = 0;
    for path in &sends {
        for receipt in receipts(path) {
            let number = |key: &str| receipt[key].as_u64().unwrap();
            let (sequence, after) = (number("sequence"), number("after"));
            let at = witness.messages.binary_search_by_key(&sequence, |m| m.sequence);
            let message = &witness.messages[at.expect("every receipt has its message")];
            // The payload is the last sequence that the process had taken when it sent.
            let seen: u64 = message.payload.parse().unwrap();
            assert!(seen < sequence, "{seen} was seen before {sequence} was sent");
            assert!(seen <= after && after < sequence, "{seen} <= {after} < {sequence}");
            caused += u64::from(seen > 0);
        }
    }
    assert!(caused > 1_000, "most are caused by something: {caused}");
    let witness = broker.file("witness");
    let all = traces.iter().map(PathBuf::as_path).chain([witness.as_path()]);
    verify(&broker, all, sends.iter().map(PathBuf::as_path));
}

#[test]
fn verify_finds_what_was_done_to_a_trace() {
    let broker = Broker::start();
    let path = broker.file("trace");
    let listener = broker.listener("true --count 200", &path);
    let other = broker.file("other");
    let witness = broker.listener("true --count 200", &other);
    let input = broker.file_with("input", lines(0, 200).join("\n"));
    let send = broker.unisono("send true --lines --json").input_from(&input);
    let receipts = broker.file("receipts");
    let _ = send.output_to(&receipts).start().end().with(0);
    let _ = (listener.end().with(0), witness.end().with(0));
    verify(&broker, [path.as_path(), &other], [receipts.as_path()]);
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let forged = |change: &dyn Fn(&mut Vec<&str>)| {
        let mut lines = lines.clone();
        change(&mut lines);
        let forged = broker.file_with("forged", lines.join("\n") + "\n");
        let verify = broker.unisono("verify").arg(&forged).arg(&other);
        let ended = verify.arg("--sends").arg(&receipts).run();
        ended.with(5).output
    };
    for (case, output) in [
        ("a message is missing", forged(&|lines| _ = lines.remove(50))),
        ("two are swapped", forged(&|lines| lines.swap(50, 51))),
        ("one comes twice", forged(&|lines| lines.insert(51, lines[50]))),
    ] {
        assert!(!output.is_empty(), "{case}: verify says what it found");
    }
}

/// Waits until the file has so many whole lines.
fn wait_for_lines(path: &Path, count: usize) {
    eventually("lines", || {
        let text = fs::read(path).unwrap();
        let lines = text.iter().filter(|byte| **byte == b'\n').count();
        if lines >= count { Ok(()) } else { Err(format!("{lines} lines")) }
    });
}

/// The receipts in a file whose writer may have been killed in the middle of a line.
fn receipts(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(whole_lines(path)).unwrap();
    let lines = text.lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A copy without the last line, if that is not whole.
fn whole_lines(path: &Path) -> PathBuf {
    let text = fs::read(path).unwrap();
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let copy = path.with_added_extension("whole");
    fs::write(&copy, &text[..whole]).unwrap();
    copy
}
