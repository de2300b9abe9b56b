//! Well-known names between processes: who takes over when an owner is killed, what is refused,
//! and workers that share a name.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use bus_client::{Bus, Describe, Description, NameOptions, Operation, OwnError};
use bus_core::wire::{FailureCode, Request, Response};
use bus_core::{Destination, NameFlags, NameId};
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::{Value, json};
use tests::broker::Broker;
use tests::process::Process;
use tests::raw::{RawClient, name};
use tests::transports::run_by_each;

const CLOCK: &str = "org.example.Clock";

fn connect(broker: &Broker) -> Bus {
    let socket = broker.socket().to_str().unwrap();
    Bus::builder().address(socket).connect().unwrap()
}

/// `unisono own`, once it has claimed the name; and where it stands.
fn owner(broker: &Broker, line: &str) -> (Process, Value) {
    let process = broker.unisono(&format!("own --json {line}")).start();
    let claimed = process.json();
    assert_eq!(claimed["type"], "claimed", "{claimed}");
    (process, claimed)
}

/// Everything until a line of this type, which is the last.
fn until(process: &Process, kind: &str) -> Vec<Value> {
    let mut lines = vec![process.json()];
    while lines[lines.len() - 1]["type"] != kind {
        lines.push(process.json());
    }
    lines
}

fn payloads(lines: &[Value]) -> Vec<u64> {
    let messages = lines.iter().filter(|line| line["type"] == "message");
    messages.map(|line| line["payload"].as_str().unwrap().parse().unwrap()).collect()
}

/// An owner is killed again and again while a program sends; the next in the queue takes over each
/// time. What an owner had in its queue dies with it, and nothing else: each message is with the
/// owner of its place in the order.
#[test]
fn g9_the_next_owner_takes_over_from_one_that_is_killed() {
    const OWNERS: usize = 4;
    const EACH: u64 = 50;
    let broker = Broker::start();
    let mut owners: Vec<(Process, Value)> =
        (0..OWNERS).map(|_| owner(&broker, &format!("{CLOCK} --wait"))).collect();
    let positions: Vec<_> = owners.iter().map(|(_, claimed)| claimed["position"].clone()).collect();
    assert_eq!(json!(positions), json!([0, 1, 2, 3]));
    let sender = connect(&broker);
    let to = sender.name(CLOCK).unwrap();
    let mut number = 0;
    let mut received = Vec::new();
    while !owners.is_empty() {
        let (process, claimed) = owners.remove(0);
        if claimed["position"] != 0 {
            assert_eq!(process.json()["type"], "acquired");
        }
        for _ in 0..EACH {
            to.send(number.to_string()).unwrap();
            number += 1;
        }
        // It has printed all that was sent to it, so nothing dies with it.
        let heard: Vec<u64> = (0..EACH)
            .map(|_| process.json()["payload"].as_str().unwrap().parse().unwrap())
            .collect();
        received.extend(heard);
        process.end_by(Signal::SIGKILL).killed_by(Signal::SIGKILL);
    }
    assert_eq!(received, (0..number).collect::<Vec<_>>());
    let deadline = std::time::Duration::from_secs(60);
    tests::deadline::eventually("nobody owns the name", || match to.send_deadline("x", deadline) {
        Err(bus_client::SendError::NoSuchName(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// A send that waits for a full owner goes to the next one when the owner is killed.
#[test]
fn g5_what_waits_for_an_owner_that_is_killed_goes_to_the_next() {
    let broker = Broker::with_limits("queue_messages = 4");
    let (first, _) = owner(&broker, &format!("{CLOCK} --wait"));
    let (next, _) = owner(&broker, &format!("{CLOCK} --wait"));
    first.stop();
    let lines: Vec<String> = (0..40_u64).map(|n| n.to_string()).collect();
    let input = broker.file_with("lines", lines.join("\n"));
    let sender =
        broker.unisono(&format!("send --to {CLOCK} --lines --json")).input_from(&input).start();
    broker.until("a send waits", |stats| stats.waiting_sends == 1);
    first.end_by(Signal::SIGKILL).killed_by(Signal::SIGKILL);
    assert_eq!(next.json()["type"], "acquired");
    let receipts = sender.end().with(0).json_lines();
    assert_eq!(receipts.len(), 40);
    let heard: Vec<u64> = (0..)
        .map(|_| next.json())
        .map(|line| line["payload"].as_str().unwrap().parse::<u64>().unwrap())
        .take_while(|number| *number != 39)
        .collect();
    // What the first one's queue and sockets held died with it, and that was the beginning.
    let lost = heard[0];
    assert!(lost > 0 && lost <= 40);
    assert_eq!(heard, (lost..39).collect::<Vec<_>>());
}

#[test]
fn two_hundred_names_of_many_endpoints_are_listed_and_each_finds_its_owner() {
    const NAMES: u64 = 200;
    let broker = Broker::start();
    let (one, two) = (connect(&broker), connect(&broker));
    let endpoints: Vec<_> = (0..8).map(|_| one.open_endpoint().unwrap()).collect();
    let owned: Vec<_> = (0..NAMES)
        .map(|n| {
            let endpoint = &endpoints[usize::try_from(n).unwrap() % endpoints.len()];
            (endpoint, endpoint.own_name(&format!("org.example.n{n:03}")).unwrap())
        })
        .collect();
    let names = two.names().unwrap();
    let listed: Vec<String> = names.iter().map(|info| info.name.to_string()).collect();
    assert_eq!(listed, (0..NAMES).map(|n| format!("org.example.n{n:03}")).collect::<Vec<_>>());
    let ids: BTreeSet<NameId> = names.iter().map(|info| info.name_id).collect();
    assert_eq!(ids.len(), names.len());
    for (endpoint, name) in &owned {
        two.name(name.name().as_str()).unwrap().send(name.name().as_str()).unwrap();
        let message = endpoint.receive().unwrap().into_message().unwrap();
        assert_eq!(message.text(), Some(name.name().as_str()));
        assert_eq!(message.name(), message.text());
    }
    let output = broker.unisono("names --json").start().end().with(0);
    assert_eq!(output.json_lines().len(), names.len());
    // No more names for one endpoint than it may have.
    let names_of_one: Vec<_> = (0..64).map(|n| two.own_name(&format!("a.n{n}")).unwrap()).collect();
    assert!(matches!(two.own_name("a.more"), Err(OwnError::LimitExceeded(_))));
    drop((owned, names_of_one));
    one.ping().unwrap();
    two.ping().unwrap();
    assert_eq!(two.names().unwrap(), []);
}

#[test]
fn a_name_is_taken_over_only_where_that_is_allowed() {
    let broker = Broker::start();
    let bus = connect(&broker);
    let (keeps, _) = owner(&broker, "keeps");
    let (gives, _) = owner(&broker, "gives --allow-replacement");
    let replace = || NameOptions::new().replace(true);
    let taken = OwnError::Taken("keeps".parse().unwrap());
    assert_eq!(bus.own_name_with("keeps", replace()).unwrap_err(), taken);
    let name = bus.own_name_with("gives", replace()).unwrap();
    let lost = gives.json();
    assert_eq!((&lost["type"], &lost["waits"]), (&json!("lost"), &json!(false)));
    assert_eq!(lost["by"], bus.endpoint_id().get());
    assert_eq!(lost["sequence"], name.sequence().get());
    let ended = gives.end().with(4);
    assert_eq!(ended.json_lines().last().unwrap()["reason"], "lost");
    broker.unisono("own keeps").start().end().with(1);
    broker.unisono("send --to keeps x").start().end().with(0);
    assert_eq!(keeps.json()["payload"], "x");
    broker.unisono("send --to nobody x").start().end().with(1);
}

/// Workers share a name; one is stopped, one is killed, and what is sent goes to those that have
/// room. Nothing is given to two.
#[test]
fn g5_workers_that_stop_or_die_do_not_hold_up_the_others() {
    const MESSAGES: u64 = 300;
    let broker = Broker::with_limits("queue_messages = 8");
    let workers: Vec<Process> =
        (0..4).map(|_| owner(&broker, &format!("{CLOCK} --shared")).0).collect();
    let [one, two, stopped, killed]: [Process; 4] = workers.try_into().unwrap();
    stopped.stop();
    killed.end_by(Signal::SIGKILL).killed_by(Signal::SIGKILL);
    let lines: Vec<String> = (0..MESSAGES).map(|n| n.to_string()).collect();
    let input = broker.file_with("lines", lines.join("\n"));
    let sender = broker.unisono(&format!("send --to {CLOCK} --lines")).input_from(&input).start();
    sender.end().with(0);
    stopped.go_on();
    let mut all = Vec::new();
    for worker in [one, two, stopped] {
        worker.signal(Signal::SIGTERM);
        let lines = until(&worker, "end");
        let heard = payloads(&lines);
        assert!(heard.is_sorted(), "{heard:?}");
        all.extend(heard);
    }
    let given = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), given, "a message was given to two workers");
    // A worker that ends takes with it what it had not taken, and that is one queue at most.
    assert!(all.len() as u64 + 3 * 8 >= MESSAGES, "{given} of {MESSAGES}");
}

#[test]
fn a_description_is_shown_as_it_was_given() {
    let broker = Broker::start();
    let description = "summary = 'Tells the time.'\n[[operations]]\nname = 'now'\n\
                       argument = { option = 'string' }\nreply = 'u64'\ndoc = 'Local.'\n";
    let file = broker.file_with("clock.toml", description);
    let (first, _) = owner(&broker, &format!("{CLOCK} --describe {}", file.display()));
    let ask = || broker.unisono(&format!("names --describe {CLOCK} --json")).start().end().with(0);
    let now = json!({
        "name": "now", "argument": {"option": "string"}, "reply": "u64", "doc": "Local.",
    });
    let expected = [json!({"name": CLOCK, "summary": "Tells the time.", "operations": [now]})];
    assert_eq!(ask().json_lines(), expected);
    // What is printed can be said again, by `serve` as well.
    first.end_by(Signal::SIGTERM).with(0);
    let file = broker.file_with("clock.json", expected[0].to_string());
    let line = format!("serve {CLOCK} --json --describe {} -- true", file.display());
    let server = broker.unisono(&line).start();
    assert_eq!(server.json()["type"], "serving");
    assert_eq!(ask().json_lines(), expected);
    broker.unisono("names --describe org.example.Nobody").start().end().with(1);
    let vague = broker
        .file_with("vague.json", r#"{"operations": [{"name": "a", "reply": {"named": "B"}}]}"#);
    let refused = broker.unisono(&format!("own a.b --describe {}", vague.display())).start().end();
    assert!(refused.with(1).errors.contains("type \"B\", which is not described"));
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "described, not read")]
enum Zone {
    Utc,
    City(String),
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "described, not read")]
struct Time {
    hour: u8,
    minute: u8,
}

/// From the types of a service in one process to a person who asks in another.
#[test]
fn a_description_made_of_types_is_published_and_shown() {
    let broker = Broker::start();
    let clock = Describe::new("Tells the time.")
        .operation::<Option<Zone>, Time>("now", "The time there, or here.")
        .signal::<u8>("struck", "At every full hour.", "org.example.Hours")
        .finish()
        .unwrap();
    let service = connect(&broker);
    let _owned = service.own_name_with(CLOCK, NameOptions::new().describe(clock)).unwrap();
    let shown = broker.unisono(&format!("names --describe {CLOCK}")).start().end().with(0);
    assert_eq!(
        shown.output,
        "org.example.Clock: Tells the time.\n  \
           now: option<Zone> -> Time\n      \
               The time there, or here.\n  \
           signal struck: u8 to org.example.Hours\n      \
               At every full hour.\n  \
           type Time = { hour: u8, minute: u8 }\n  \
           type Zone = Utc | City(string)\n"
    );
}

/// A description that is none is the fault of who gives it: it is answered, and named.
#[test]
fn a_bad_description_is_named_and_ends_nothing() {
    let broker = Broker::start();
    let mut client: RawClient = broker.raw();
    let operation = || Operation::new("now");
    let twice = Description::new("").operation(operation()).operation(operation());
    let (flags, description) = (NameFlags::empty(), Some(Box::new(twice)));
    let request = Request::OwnName { name: name("a"), flags, description };
    let failure = client.call(request).unwrap_err();
    assert_eq!(failure.code, FailureCode::BadDescription);
    assert_eq!(failure.text, "operation \"now\" is there twice");
    assert!(client.call(Request::Ping).is_ok());
}

#[test]
fn g4_a_watcher_in_another_process_is_told_of_each_owner() {
    let broker = Broker::start();
    let watcher = broker.unisono(&format!("watch --name {CLOCK} --json -n 3")).start();
    let first = watcher.json();
    assert_eq!((&first["type"], &first["owners"]), (&json!("owners"), &json!([])));
    let (one, claimed) = owner(&broker, &format!("{CLOCK} --wait"));
    let (two, _) = owner(&broker, &format!("{CLOCK} --wait"));
    let change = watcher.json();
    assert_eq!(change["new"]["endpoint"], claimed["endpoint"]);
    assert_eq!(change["sequence"], claimed["sequence"]);
    let (pid_one, pid_two) = (one.pid(), two.pid());
    one.end_by(Signal::SIGKILL).killed_by(Signal::SIGKILL);
    let change = watcher.json();
    assert_eq!((&change["old"]["pid"], &change["new"]["pid"]), (&json!(pid_one), &json!(pid_two)));
    two.end_by(Signal::SIGTERM).with(0);
    let change = watcher.json();
    assert_eq!((&change["old"]["pid"], &change["new"]), (&json!(pid_two), &Value::Null));
    watcher.end().with(0);
}

/// What a client may say wrongly about names is answered, and ends nothing.
#[test]
fn bad_questions_about_names_are_answered() {
    let broker = Broker::start();
    let mut client: RawClient = broker.raw();
    let mut refused = |request| client.call(request).unwrap_err().code;
    let nobody = NameId::from_raw(99);
    assert_eq!(refused(Request::ReleaseName { name_id: nobody }), FailureCode::NotClaimed);
    assert_eq!(refused(Request::UnwatchName { name_id: nobody }), FailureCode::NotWatching);
    assert_eq!(refused(Request::FindName { name: name("a") }), FailureCode::NoSuchName);
    assert_eq!(refused(Request::DescribeName { name: name("a") }), FailureCode::NoSuchName);
    let failure = client.send(Destination::Name(nobody), b"x").unwrap_err();
    assert_eq!(failure.code, FailureCode::NoSuchName);
    let flags = NameFlags::DO_NOT_QUEUE;
    let own = || Request::OwnName { name: name("a"), flags, description: None };
    let Ok(Response::Claimed { name_id, position: 0, .. }) = client.call(own()) else { panic!() };
    let mut other = broker.raw();
    assert_eq!(other.call(own()).unwrap_err().code, FailureCode::NameTaken);
    other.send(Destination::Name(name_id), b"x").unwrap();
    let message = client.receive();
    assert_eq!((message.head.group, message.head.name), (None, Some(name_id)));
}

#[test]
fn what_is_promised_does_not_depend_on_how_bytes_travel() {
    run_by_each(&[4, 5, 9]);
}
