//! Brokers that are killed, and programs that go on with the next one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use bus_client::{Bus, Event, Possession, Reconnect, SendError};
use nix::sys::signal::Signal;
use tests::broker::Broker;
use tests::deadline::{DEADLINE, eventually};
use tests::incarnations::{assert_agree, stays};
use tests::process::Process;
use tests::programs;
use tests::senders::{Senders, verify};

/// The broker's death, without a word, and the next one at the same place.
fn kill(mut broker: Broker) -> Broker {
    broker.signal(Signal::SIGKILL);
    let _ = broker.ended();
    broker.again()
}

/// Waits until the file has so many lines of a type.
#[track_caller]
fn until_printed(path: &Path, kind: &str, count: usize) {
    let wanted = format!("\"type\":\"{kind}\"");
    eventually(kind, || {
        let text = fs::read_to_string(path).unwrap();
        let found = text.lines().filter(|line| line.contains(&wanted)).count();
        if found >= count { Ok(()) } else { Err(format!("{found} of {count} in {text:.500}")) }
    });
}

fn hasty() -> Reconnect {
    Reconnect::new().first(Duration::from_millis(2)).longest(Duration::from_millis(200))
}

fn connect(broker: &Broker) -> Bus {
    let address = broker.socket().display().to_string();
    Bus::builder().address(address).reconnect(hasty()).connect().unwrap()
}

/// A broker that is killed in mid-stream again and again: whoever went on tells where something may
/// be missing, and all of them agree on everything else.
#[test]
fn g2_histories_of_listeners_that_outlive_their_brokers_agree_within_each() {
    const ROUNDS: usize = 6;
    let mut broker = Broker::start();
    let traces = [0, 1, 2].map(|number| broker.file(&format!("trace.{number}")));
    let line = ["", " --loopback", ""].map(|more| format!("storm --reconnect{more}"));
    let listeners: Vec<Process> =
        traces.iter().zip(&line).map(|(trace, line)| broker.listener(line, trace)).collect();
    let mut receipts: Vec<PathBuf> = Vec::new();
    for round in 0..ROUNDS {
        for trace in &traces {
            until_printed(trace, "joined", round + 1);
        }
        let senders = Senders::with(&broker, "storm --lines --wait-members 3", 2);
        for sender in 0..2 {
            let receipts = broker.file(&format!("receipts.{sender}"));
            eventually("it is in the middle", || match fs::metadata(&receipts) {
                Ok(file) if file.len() > 0 => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
        broker.until("both are", |stats| stats.messages > 300);
        broker = kill(broker);
        for (sender, (sent, ended)) in senders.stop().into_iter().enumerate() {
            // What is cut off in mid-stream does not go on by itself.
            let _ = ended.with(4);
            let path = broker.file(&format!("receipts.{round}.{sender}"));
            fs::rename(sent.receipts, &path).unwrap();
            receipts.push(path);
        }
    }
    for trace in &traces {
        until_printed(trace, "joined", ROUNDS + 1);
    }
    for listener in listeners {
        let _ = listener.end_by(Signal::SIGINT).with(0);
    }
    let stays: Vec<_> = traces.iter().map(|trace| stays(trace)).collect();
    for listener in &stays {
        assert_eq!(listener.len(), ROUNDS + 1, "one for each broker");
        assert!(listener.last().unwrap().trace.left.is_some(), "it has left the last one");
    }
    let heard = assert_agree(&stays);
    assert!(heard.iter().sum::<usize>() > ROUNDS * 300, "{heard:?}");
    verify(&broker, traces.iter().map(PathBuf::as_path), receipts.iter().map(PathBuf::as_path));
}

/// dbus-broker#93, busd#138: a broker that ends takes the session with it.
#[test]
fn a_service_and_who_watches_it_go_on_with_the_next_broker() {
    let mut broker = Broker::start();
    let launch = broker.unisono("serve org.example.Shout --json --reconnect --");
    let server = launch.arg("tr").arg("a-z").arg("A-Z").start();
    assert_eq!(server.json()["type"], "serving");
    let owner = broker.unisono("own org.example.Log --json --reconnect").start();
    assert_eq!(owner.json()["type"], "claimed");
    let watcher = broker.unisono("watch lobby --json --reconnect").start();
    assert_eq!(watcher.json()["type"], "view");
    let impatient = broker.unisono("listen lobby --json --reconnect=1ms").start();
    assert_eq!(impatient.json()["type"], "joined");
    assert_eq!(watcher.json()["change"], "joined");

    broker.signal(Signal::SIGKILL);
    let _ = broker.ended();
    let ended = impatient.end().with(4);
    assert!(ended.errors.contains("broker is gone"), "{}", ended.errors);
    broker = broker.again();

    assert_eq!(server.json()["type"], "serving", "again");
    let reply = broker.unisono("call org.example.Shout Shout hello").run().with(0);
    assert_eq!(reply.output, "HELLO\n");
    assert_eq!(owner.json()["type"], "reconnected");
    let _ = broker.unisono("send --to org.example.Log noted").run().with(0);
    assert_eq!(owner.json()["payload"], "noted");
    assert_eq!(watcher.json()["type"], "reconnected");
    assert_eq!(watcher.json()["type"], "view");
    let visitor = broker.unisono("listen lobby").start();
    assert_eq!(watcher.json()["change"], "joined");
    for process in [server, owner, watcher, visitor] {
        let _ = process.end_by(Signal::SIGTERM).with(0);
    }
}

#[test]
fn a_broker_that_ends_in_good_order_is_waited_for_as_well() {
    let mut broker = Broker::start();
    let bus = connect(&broker);
    bus.join("g").unwrap();
    let before = bus.endpoint_id();
    broker.signal(Signal::SIGTERM);
    let _ = broker.ended();
    let broker = broker.again();
    let Event::Reconnected(back) = bus.receive().unwrap() else { panic!("it was lost") };
    assert!(back.joined("g").is_some());
    assert_ne!(back.endpoint, before);
    // What one remembers of the last broker finds nobody.
    let other = connect(&broker);
    let error = other.endpoint(before).send("who is there?").unwrap_err();
    assert_eq!(error, SendError::NoSuchEndpoint(before));
}

#[test]
fn sends_that_may_wait_go_on_and_none_comes_twice() {
    let mut broker = Broker::start();
    let (listener, sender) = (connect(&broker), connect(&broker));
    listener.join("g").unwrap();
    let sending = thread::spawn(move || {
        let group = sender.group("g").unwrap();
        let (mut certain, mut unknown) = (Vec::new(), Vec::new());
        for number in 0_u32.. {
            match group.send(number.to_string()) {
                Ok(_) => certain.push(number),
                Err(SendError::Unknown(_)) => unknown.push(number),
                // Its members are not back yet, or it had not left when the broker died.
                Err(SendError::NoSuchGroup(_) | SendError::BrokerGone(_)) => {}
                Err(other) => panic!("{other}"),
            }
            if unknown.len() >= 4 && certain.last().is_some_and(|last| Some(last) > unknown.last())
            {
                break;
            }
        }
        (certain, unknown)
    });
    let mut heard: Vec<u32> = Vec::new();
    let mut returns = 0;
    while !sending.is_finished() {
        let Some(event) = listener.receive_deadline(Duration::from_millis(10)).unwrap() else {
            continue;
        };
        match event {
            Event::Message(message) => heard.push(message.text().unwrap().parse().unwrap()),
            Event::Reconnected(_) => returns += 1,
            other => panic!("{other:?}"),
        }
        if heard.len() > 50 * (returns + 1) && returns < 40 && !sending.is_finished() {
            broker = kill(broker);
            // What had arrived comes first.
            loop {
                match listener.receive_deadline(DEADLINE).unwrap().expect("a broker is there") {
                    Event::Message(message) => heard.push(message.text().unwrap().parse().unwrap()),
                    Event::Reconnected(_) => break,
                    other => panic!("{other:?}"),
                }
            }
            returns += 1;
        }
    }
    let (certain, unknown) = sending.join().unwrap();
    while let Some(event) = listener.try_receive().unwrap() {
        heard.extend(event.into_message().map(|m| m.text().unwrap().parse::<u32>().unwrap()));
    }
    assert!(heard.is_sorted_by(|one, next| one < next), "in order, and none twice");
    for number in &heard {
        assert!(certain.contains(number) || unknown.contains(number), "{number}");
    }
    assert!(unknown.len() >= 4 && returns >= 4, "{returns}");
    drop(broker);
}

#[test]
fn a_gate_is_there_again_when_its_owner_is() {
    let mut broker = Broker::start();
    let owner = connect(&broker);
    let gate = owner.create_gated("club").unwrap();
    let joining = {
        let member = connect(&broker);
        thread::spawn(move || (member.join("club").unwrap(), member))
    };
    let candidate = |owner: &Bus| loop {
        if let Event::Candidate(candidate) = owner.receive().unwrap() {
            break candidate;
        }
    };
    let first = candidate(&owner);
    gate.admit(first.endpoint, first.wishes.clone()).unwrap();
    let (member, bus) = joining.join().unwrap();
    broker = kill(broker);
    let told = thread::spawn(move || {
        loop {
            match bus.receive().unwrap() {
                Event::Restored(restored) => break (restored, member.peer().unwrap().id(), bus),
                Event::Reconnected(_) => {}
                other => panic!("{other:?}"),
            }
        }
    });
    let again = candidate(&owner);
    assert_ne!(again.endpoint, first.endpoint);
    gate.admit(again.endpoint, again.wishes.clone()).unwrap();
    let (restored, peer, bus) = told.join().unwrap();
    assert_eq!(restored.what, Possession::Member("club".parse().unwrap()));
    assert_eq!(peer, again.peer);
    drop((bus, broker));
}

/// A broker that is started by whoever connects to its socket, as systemd does it.
fn activated(listener: &UnixListener) -> Child {
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\"";
    let socket: OwnedFd = listener.as_fd().try_clone_to_owned().unwrap();
    Command::new("sh")
        .args(["-c", script])
        .arg(programs::bus_broker())
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn who_waits_in_the_backlog_of_an_activated_socket_is_let_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus");
    let listener = UnixListener::bind(&path).unwrap();
    let address = path.display().to_string();
    let mut broker = activated(&listener);
    let bus = Bus::builder().address(address).reconnect(hasty()).connect().unwrap();
    bus.join("g").unwrap();
    broker.kill().unwrap();
    broker.wait().unwrap();
    // It connects while there is nobody, and waits for the greeting.
    while bus.is_connected() {
        bus.dispatch_timeout(Duration::from_millis(10)).unwrap();
    }
    assert_eq!(bus.wait_connected(Duration::from_millis(50)), Ok(false));
    let mut broker = activated(&listener);
    let event = bus.receive_deadline(DEADLINE).unwrap().unwrap();
    assert!(matches!(&event, Event::Reconnected(back) if back.joined("g").is_some()), "{event:?}");
    broker.kill().unwrap();
    broker.wait().unwrap();
}
