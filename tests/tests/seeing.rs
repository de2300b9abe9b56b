//! Seeing inside, with real processes: what became of a message, who makes whom wait, the metrics
//! that a scraper gets, and logs that cannot be flooded.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use bus_core::wire::inside::{Look, Seen};
use bus_core::wire::{Request, Response};
use bus_core::{Destination, GroupId, MemberFlags, Sequence};
use serde_json::Value;
use tests::broker::Broker;
use tests::deadline::eventually;
use tests::raw::{RawClient, name};

/// What `unisono why --json` says of a message.
fn why(broker: &Broker, sequence: Sequence) -> Value {
    let ended = broker.unisono(&format!("why {sequence} --json")).run().with(0);
    ended.json_lines().remove(0)
}

/// The fate of a message at each endpoint, and the words beside it.
fn fates(story: &Value) -> BTreeMap<u64, (String, String)> {
    let fates = story["fates"].as_array().unwrap().iter();
    let word = |told: &Value, key: &str| told[key].as_str().unwrap_or_default().to_owned();
    fates
        .map(|told| (told["endpoint"].as_u64().unwrap(), (word(told, "fate"), word(told, "by"))))
        .collect()
}

fn join_filtered(client: &mut RawClient, group: &str, filter: &str) {
    let request = Request::Join {
        group: name(group),
        flags: MemberFlags::empty(),
        create: true,
        filter: Some(filter.parse().unwrap()),
        retain: None,
        state: false,
    };
    client.call(request).unwrap();
}

#[test]
fn why_tells_the_fate_of_a_message_at_each_recipient() {
    let broker = Broker::with_limits("queue_messages = 2\nstall = \"600s\"");
    let [mut sender, mut taker, mut holder, mut dropper, mut filtered] =
        std::array::from_fn(|_| broker.raw());
    let group = taker.join("g");
    let to = Destination::Group(group);
    for client in [&mut sender, &mut holder] {
        client.join("g");
    }
    dropper.join_with("g", MemberFlags::DROP_WHEN_FULL).unwrap();
    join_filtered(&mut filtered, "g", "key=a");

    let first = sender.send(to, b"one").unwrap();
    assert_eq!(first.recipients, 3);
    sender.send(to, b"two").unwrap();
    for client in [&mut taker, &mut holder] {
        for _ in 0..2 {
            client.receive();
        }
        client.ping();
    }
    let third = sender.send(to, b"three").unwrap();
    assert_eq!((third.recipients, third.dropped), (2, 1));
    taker.receive();
    taker.ping();
    holder.message();

    let story = why(&broker, third.sequence);
    assert_eq!(story["known"], "message", "{story}");
    assert_eq!(story["sender"], sender.endpoint().get(), "{story}");
    assert_eq!(story["of"]["pid"], std::process::id(), "{story}");
    // It has not said what it calls itself: the broker has found out.
    assert!(story["of"]["program"].as_str().is_some_and(|name| !name.is_empty()), "{story}");
    assert_eq!((&story["to"]["group"], &story["bytes"]), (&"g".into(), &5.into()), "{story}");
    assert_eq!((&story["recipients"], &story["incomplete"]), (&2.into(), &false.into()));
    let told = fates(&story);
    let fate = |client: &RawClient| told[&client.endpoint().get()].0.as_str();
    assert_eq!(fate(&taker), "taken", "{story}");
    assert_eq!(fate(&holder), "handed", "{story}");
    assert_eq!(fate(&dropper), "dropped", "{story}");
    assert_eq!(fate(&filtered), "filtered", "{story}");
    assert_eq!(fate(&sender), "sender", "{story}");
    let by = &told[&dropper.endpoint().get()].1;
    assert!(by.contains("no room") && by.contains("DROP_WHEN_FULL"), "{by}");
    assert!(told[&filtered.endpoint().get()].1.contains("own filter"), "{story}");

    // What it says for people names the same.
    let text = broker.unisono(&format!("why {}", third.sequence)).run().with(0).output;
    for part in ["to g: 5 bytes", "dropped", "filtered", "taken", "handed"] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(!text.contains("three"), "nothing of the content is kept:\n{text}");

    // Who goes takes with it what it had not taken.
    let gone = holder.endpoint().get();
    drop(holder);
    broker.until("it is gone", |stats| stats.connections == 5);
    assert_eq!(fates(&why(&broker, third.sequence))[&gone].0, "lost");
    assert_eq!(fates(&why(&broker, first.sequence))[&gone].0, "taken");
}

#[test]
fn why_says_queued_of_what_a_connection_has_no_room_for() {
    let broker = Broker::start();
    let (mut sender, reader) = (broker.raw(), broker.raw());
    let to = reader.address();
    let large = vec![0; 600 << 10];
    sender.send(to, &large).unwrap();
    let second = sender.send(to, &large).unwrap();
    let story = why(&broker, second.sequence);
    assert_eq!(fates(&story)[&reader.endpoint().get()].0, "queued", "{story}");
}

#[test]
fn why_says_so_where_nothing_is_known() {
    let broker = Broker::with("[recorder]\nbytes = 65536\n");
    let (mut sender, mut receiver) = (broker.raw(), broker.raw());
    let to = receiver.address();
    let first = sender.send(to, b"x").unwrap();
    receiver.receive();
    for _ in 0..600 {
        sender.send(to, b"x").unwrap();
        receiver.receive();
    }
    let ended = broker.unisono(&format!("why {}", first.sequence)).run().with(1);
    assert!(ended.errors.contains("too old"), "{}", ended.errors);
    let ended = broker.unisono("why 999999999").run().with(1);
    assert!(ended.errors.contains("no message's"), "{}", ended.errors);

    let silent = Broker::with("[recorder]\nbytes = 0\n");
    let ended = silent.unisono("why 8").run().with(1);
    assert!(ended.errors.contains("no flight recorder"), "{}", ended.errors);
}

/// dbus-broker#236, #361 and #396: dropped, and nobody says why.
#[test]
fn why_tells_which_sends_were_refused_and_by_what() {
    let broker = Broker::with_limits("queue_messages = 1\npayload_bytes = 100");
    let (mut sender, mut member) = (broker.raw(), broker.raw());
    let group = member.join("g");
    let to = Destination::Group(group);
    sender.send(to, b"x").unwrap();
    sender.try_send(to, b"y").unwrap_err();
    sender.resume();
    sender.send(to, &[0; 101]).unwrap_err();
    let refused = |line: &str| broker.unisono(line).run().with(0).json_lines();
    let all = refused("why --refused --json");
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[0]["by"].as_str().unwrap().contains("the limit is 100"), "{all:?}");
    let full = all[1]["by"].as_str().unwrap();
    assert!(full.contains(&format!("endpoint {}", member.endpoint())), "{full}");
    assert_eq!(all[1]["of"]["pid"], std::process::id());
    assert_eq!(refused("why --group g --json").len(), 2);
    assert_eq!(refused(&format!("why --endpoint {} --json", member.endpoint())).len(), 1);
    assert_eq!(refused(&format!("why --endpoint {} --json", sender.endpoint())).len(), 2);
}

/// dbus-broker#390 and #464: a bus that is stuck, and only a core dump tells by whom.
#[test]
fn top_shows_who_makes_whom_wait() {
    let broker = Broker::with_limits("queue_messages = 1\nstall = \"600s\"");
    let trace = broker.file("trace");
    let listener = broker.listener("busy", &trace);
    listener.stop();
    let first = broker.unisono("send busy one").run();
    let _ = first.with(0);
    let sender = broker.unisono("send busy two").start();
    broker.until("it waits", |stats| stats.waiting_sends == 1);

    let line = "top --once --json --interval 50ms";
    let picture = broker.unisono(line).run().with(0).json_lines().remove(0);
    let waits = picture["waits"].as_array().unwrap();
    assert_eq!(waits.len(), 1, "{picture}");
    let wait = &waits[0];
    assert_eq!(wait["of"]["pid"], sender.pid(), "{wait}");
    assert_eq!(wait["of"]["program"], "unisono", "{wait}");
    assert_eq!(wait["waits_for"][0]["of"]["pid"], listener.pid(), "{wait}");
    assert_eq!(wait["to"]["group"], "busy", "{wait}");
    let of = |pid: u32| {
        let mut all = picture["endpoints"].as_array().unwrap().iter();
        all.find(|endpoint| endpoint["of"]["pid"] == pid).unwrap()
    };
    let slow = of(listener.pid());
    assert_eq!((&slow["blocks"], &slow["queued_messages"]), (&1.into(), &1.into()), "{slow}");
    assert!(slow["full_since_sequence"].is_u64(), "{slow}");
    let group = &picture["groups"][0];
    assert_eq!((&group["group"], &group["messages"]), (&"busy".into(), &1.into()), "{group}");
    assert_eq!(picture["stats"]["waiting_sends"], 1);
    let listed = picture["endpoints"].as_array().unwrap().len();
    assert_eq!(listed, 2, "its own endpoint is not listed: {picture}");

    for (view, parts) in [
        ("waits", vec!["SENDER".to_owned(), "busy".to_owned(), format!("pid {}", listener.pid())]),
        ("members", vec!["BLOCKS".to_owned(), "1/1".to_owned(), listener.pid().to_string()]),
        ("groups", vec!["MSG/S".to_owned(), "busy".to_owned()]),
    ] {
        let line = format!("top --once --interval 50ms --view {view}");
        let text = broker.unisono(&line).run().with(0).output;
        for part in parts {
            assert!(text.contains(&part), "{view}: {part} is not in:\n{text}");
        }
    }
    let piped = broker.unisono("top").run().with(2);
    assert!(piped.errors.contains("no terminal"), "{}", piped.errors);

    listener.go_on();
    let _ = sender.end().with(0);
    let blocked = eventually("it has waited", || {
        let line = "top --once --json --interval 1ms";
        let picture = broker.unisono(line).run().with(0).json_lines().remove(0);
        let mut all = picture["endpoints"].as_array().unwrap().iter();
        let slow = all.find(|endpoint| endpoint["of"]["pid"] == listener.pid()).cloned();
        slow.filter(|slow| slow["blocked_sends"] == 1).ok_or(picture.to_string())
    });
    assert!(blocked["blocked_us"].as_u64() > Some(0), "{blocked}");
    let _ = listener.end_by(nix::sys::signal::Signal::SIGINT).with(0);
}

#[test]
fn connections_name_program_user_and_traffic() {
    let broker = Broker::start();
    let mut client = broker.raw();
    let look = Request::Look(Look::Connections { after: None, max: 10 });
    let Ok(Response::Seen(seen)) = client.call(look) else { panic!("it may look") };
    let Seen::Connections { connections, more } = *seen else { panic!("{seen:?}") };
    assert!(!more);
    assert_eq!(connections.len(), 1);
    let own = &connections[0];
    assert_eq!((own.pid, own.uid), (std::process::id(), nix::unistd::getuid().as_raw()));
    assert!(own.program.as_ref().is_some_and(|name| !name.is_empty()), "{own:?}");
    assert_eq!(own.endpoints, 1);
    assert!(own.bytes_read > 0 && own.bytes_written > 0, "{own:?}");
    let stats = broker.unisono("stats --json").run().with(0).json_lines().remove(0);
    for key in [
        "waiting_sends",
        "open_requests",
        "endpoints",
        "groups",
        "names",
        "connections",
        "messages",
        "message_bytes",
        "deliveries",
        "dropped",
        "refused",
        "protocol_errors",
        "bytes_read",
        "bytes_written",
        "connections_refused",
        "memory_given_back",
        "log_lines_suppressed",
        "log_lines_lost",
        "uptime_us",
    ] {
        assert!(stats[key].is_u64(), "{key} in {stats}");
    }
    assert!(stats["time_in_queue"]["counts"].is_array(), "{stats}");
}

/// What an HTTP server on a Unix socket answers.
fn get(socket: &Path, request: &str) -> (String, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    assert_eq!(length, Some(body.len().to_string().as_str()), "{head}");
    (head.to_owned(), body.to_owned())
}

/// A sample: the name that is written, its labels, its value.
type Sample = (String, BTreeMap<String, String>, f64);

/// Reads the text format of OpenMetrics 1.0, and asserts what it demands: families in one piece, with
/// a known type and the suffixes of that, units at the end of names, labels and values well-formed,
/// no sample twice, histograms that rise, and the end.
fn parse(text: &str) -> Vec<Sample> {
    let text = text.strip_suffix("# EOF\n").expect("it ends with EOF");
    let (mut samples, mut seen) = (Vec::new(), BTreeSet::new());
    let mut families: BTreeSet<String> = BTreeSet::new();
    let (mut family, mut kind) = (String::new(), String::new());
    for line in text.lines() {
        assert!(!line.is_empty(), "there are no empty lines");
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (what, name) = (words.next().unwrap(), words.next().expect(line));
            let value = words.next().expect(line);
            match what {
                "TYPE" => {
                    assert!(families.insert(name.to_owned()), "{name} comes in two pieces");
                    assert!(["gauge", "counter", "histogram", "info"].contains(&value), "{line}");
                    (family, kind) = (name.to_owned(), value.to_owned());
                }
                "UNIT" => assert!(name == family && name.ends_with(&format!("_{value}")), "{line}"),
                "HELP" => assert_eq!(name, family, "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (name, labels, value) = sample(line);
        let suffixes: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_count", "_sum"],
            _ => &[""],
        };
        let suffix = name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} in {family}"));
        assert!(suffixes.contains(&suffix), "{line} in {kind} {family}");
        assert!(kind == "gauge" || value >= 0.0, "{line}");
        assert!(seen.insert((name.clone(), labels.clone())), "twice: {line}");
        samples.push((name, labels, value));
    }
    let buckets = samples.iter().filter(|(name, ..)| name.ends_with("_bucket"));
    let counts: Vec<f64> = buckets.map(|(.., count)| *count).collect();
    assert!(counts.is_sorted(), "{counts:?}");
    samples
}

fn sample(line: &str) -> Sample {
    let is_name = |name: &str| {
        let mut chars = name.chars();
        chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let mut labels = BTreeMap::new();
    let end = line.find(['{', ' ']).expect(line);
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    if let Some(inner) = rest.strip_prefix('{') {
        let mut chars = inner.char_indices();
        let (mut key, mut value, mut within, mut closed) = (String::new(), String::new(), false, 0);
        while let Some((at, c)) = chars.next() {
            match (within, c) {
                (false, '}') => {
                    closed = at;
                    break;
                }
                (false, '=') => {
                    assert_eq!(chars.next().map(|(_, c)| c), Some('"'), "{line}");
                    within = true;
                }
                (false, ',') => {}
                (false, c) => key.push(c),
                (true, '\\') => match chars.next().map(|(_, c)| c) {
                    Some('n') => value.push('\n'),
                    Some(c @ ('\\' | '"')) => value.push(c),
                    other => panic!("{other:?} in {line}"),
                },
                (true, '"') => {
                    assert!(is_name(&key), "{line}");
                    let (key, value) = (std::mem::take(&mut key), std::mem::take(&mut value));
                    assert!(labels.insert(key, value).is_none(), "{line}");
                    within = false;
                }
                (true, c) => value.push(c),
            }
        }
        rest = &inner[closed + 1..];
    }
    let value = rest.strip_prefix(' ').expect(line);
    (name.to_owned(), labels, value.parse().expect(line))
}

/// The value of the sample with this name, and with these labels among its own.
fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let fits = |(of, own, _): &&Sample| {
        of == name && labels.iter().all(|(k, v)| own.get(*k).map(String::as_str) == Some(*v))
    };
    samples.iter().find(fits).map(|(.., value)| *value)
}

/// monitord#82 and #120: metrics without end.
#[test]
fn metrics_are_openmetrics_and_their_number_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("metrics");
    let broker = Broker::with(&format!(
        "[metrics]\nlisten = \"{}\"\ngroups = 2\nendpoints = 3\n",
        socket.display()
    ));
    let mut clients: Vec<RawClient> = (0..8).map(|_| broker.raw()).collect();
    let groups: Vec<GroupId> = (0..5).map(|at| clients[0].join(&format!("group.{at}"))).collect();
    for (at, group) in groups.iter().enumerate() {
        for _ in 0..=at {
            clients[1].send(Destination::Group(*group), b"12345").unwrap();
            clients[0].receive();
        }
    }
    clients[0].ping();
    let (head, body) = get(&socket, "GET /metrics HTTP/1.1\r\nHost: unisono\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: application/openmetrics-text; version=1.0.0"), "{head}");
    let samples = parse(&body);
    for (name, expected) in [
        ("unisono_connections", 8.0),
        ("unisono_groups", 5.0),
        ("unisono_messages_total", 15.0),
        ("unisono_message_bytes_total", 75.0),
        ("unisono_deliveries_total", 15.0),
        ("unisono_waiting_sends", 0.0),
        ("unisono_queue_seconds_count", 15.0),
    ] {
        assert_eq!(value(&samples, name, &[]), Some(expected), "{name} in:\n{body}");
    }
    // The two with the most messages are listed, and the other three counted.
    let messages = "unisono_group_messages_total";
    assert_eq!(value(&samples, messages, &[("group", "group.4")]), Some(5.0), "{body}");
    assert_eq!(value(&samples, messages, &[("group", "group.3")]), Some(4.0));
    assert_eq!(value(&samples, messages, &[("group", "group.2")]), None);
    assert_eq!(value(&samples, "unisono_unlisted", &[("kind", "groups")]), Some(3.0));
    assert_eq!(value(&samples, "unisono_unlisted", &[("kind", "endpoints")]), Some(5.0));
    let listed = samples.iter().filter(|(name, ..)| name == "unisono_endpoint_queued_messages");
    assert_eq!(listed.count(), 3);
    let sender = clients[1].endpoint().to_string();
    let sent = value(&samples, "unisono_endpoint_sent_messages_total", &[("endpoint", &sender)]);
    assert_eq!(sent, Some(15.0), "{body}");

    let (head, _) = get(&socket, "GET /elsewhere HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    let (head, _) = get(&socket, "nonsense\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
}

#[test]
fn a_slow_scraper_hurts_neither_the_bus_nor_for_long_another_scraper() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("metrics");
    let broker = Broker::with(&format!("[metrics]\nlisten = \"{}\"\n", socket.display()));
    let idle = broker.descriptors();
    let slow: Vec<UnixStream> = (0..20)
        .map(|at| {
            let mut slow = UnixStream::connect(&socket).unwrap();
            // Some say nothing, some begin, and some do not read.
            let said = ["", "GET /metr", "GET /metrics HTTP/1.1\r\n\r\n"][at % 3];
            slow.write_all(said.as_bytes()).unwrap();
            slow
        })
        .collect();
    let (mut sender, mut receiver) = (broker.raw(), broker.raw());
    for _ in 0..1_000 {
        sender.send(receiver.address(), b"x").unwrap();
        receiver.receive();
    }
    assert!(broker.descriptors() <= idle + 2 + 5, "it takes a few of them at a time");
    drop(slow);
    let (head, body) = get(&socket, "GET / HTTP/1.0\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(value(&parse(&body), "unisono_messages_total", &[]), Some(1_000.0));
}

#[test]
fn g8_who_breaks_the_protocol_a_thousand_times_is_a_few_lines_that_count_them() {
    let broker = Broker::with("[log]\nformat = \"json\"\n");
    for _ in 0..1_000 {
        let mut hostile = UnixStream::connect(broker.socket()).unwrap();
        // It may have been thrown out before all of it was written.
        let _ = hostile.write_all(b"SECRET payload that begins no protocol");
        let _ = hostile.read_to_end(&mut Vec::new());
    }
    broker.until("all are counted", |stats| stats.protocol_errors == 1_000);
    let lines = broker.until_counted("ended: the peer broke the protocol", 1_000);
    assert!(lines.len() <= 10, "{} lines", lines.len());
    for line in &lines {
        let program = line["fields"]["program"].as_str();
        assert!(program.is_some_and(|name| !name.is_empty()), "{line}");
        assert_eq!(line["span"]["uid"], nix::unistd::getuid().as_raw(), "{line}");
        assert_eq!(line["span"]["pid"], std::process::id(), "{line}");
    }
    assert!(!broker.log().contains("SECRET"), "payloads are never logged");
    let stats = broker.raw().stats();
    assert_eq!(stats.log_lines_suppressed, 1_000 - lines.len() as u64);
}

#[test]
fn g8_who_is_refused_a_hundred_times_is_named_by_a_few_lines_that_count_them() {
    let broker = Broker::with("[limits]\nconnections = 4\n[log]\nformat = \"json\"\n");
    let _inside: Vec<_> = (0..4).map(|_| broker.raw()).collect();
    for _ in 0..100 {
        let mut more = UnixStream::connect(broker.socket()).unwrap();
        // Until it was told no.
        more.read_to_end(&mut Vec::new()).unwrap();
    }
    let lines = broker.until_counted("connections are refused", 100);
    assert!(lines.len() <= 7, "{} lines", lines.len());
    for line in &lines {
        assert_eq!(line["fields"]["uid"], nix::unistd::getuid().as_raw(), "{line}");
        assert_eq!(line["fields"]["pid"], std::process::id(), "{line}");
        let program = line["fields"]["program"].as_str();
        assert!(program.is_some_and(|name| !name.is_empty()), "{line}");
    }
}
