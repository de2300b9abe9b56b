//! Payloads that are lent, between processes that die, leave, are stopped, or have no descriptors left.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::time::Duration;

use bus_client::{Bus, CompletedRange, JoinOptions, Message, Outgoing, Pool, Way};
use nix::sys::signal::Signal;
use tests::broker::Broker;
use tests::deadline::{DEADLINE, eventually};
use tests::loans::{self, is_whole, until_no_memory, write};
use tests::process::Process;
use tests::transports::run_by_each;

const MIB: usize = 1 << 20;

/// A loan ends by what the tests do, and not by the clock.
const LONG: &str = "queue_bytes = 16777216\nlent = \"600s\"";

fn builder(broker: &Broker) -> bus_client::Builder {
    Bus::builder().address(broker.socket().to_str().unwrap())
}

fn message(bus: &Bus) -> Message {
    let event = bus.receive_deadline(DEADLINE).unwrap().expect("a message comes");
    event.into_message().expect("nothing else comes")
}

/// A process that takes so many messages of `group` and keeps them; it has joined.
fn keeper(broker: &Broker, group: &str, count: usize, how: &str) -> Process {
    let keeper = loans::launch(broker, &format!("keep {group} {count} {how}"));
    let keeper = keeper.input_piped().start();
    assert_eq!(keeper.line(), "joined");
    keeper
}

/// A sender, the group, and a pool for it.
fn lender(broker: &Broker, group: &str, buffers: u32) -> (Bus, Pool) {
    let bus = builder(broker).zerocopy().connect().unwrap();
    let found = bus.find_group(group).unwrap().unwrap();
    let pool = bus.pool_for(found.group_id, buffers, MIB).unwrap();
    (bus, pool)
}

fn send(bus: &Bus, group: &str, pool: &Pool, number: u64) {
    let mut buffer = pool.take_deadline(DEADLINE).unwrap();
    write(number, &mut buffer);
    bus.group(group).unwrap().send(Outgoing::lent(buffer)).unwrap();
}

/// Waits for so many numbers.
fn completed(bus: &Bus, count: u32) -> Vec<CompletedRange> {
    let mut ranges = Vec::new();
    eventually("payloads are free again", || {
        bus.wait_completions(Duration::from_millis(100));
        ranges.extend(bus.completions());
        match ranges.iter().map(CompletedRange::count).sum::<u32>() {
            all if all == count => Ok(()),
            all => Err(format!("{all} of {count}")),
        }
    });
    ranges
}

/// Given readers in place and others that have not yet looked,
/// when the sender is killed,
/// then all of them read what it has sent, and nothing is left of it when they have.
#[test]
fn g9_a_sender_that_is_killed_takes_nothing_from_those_who_read() {
    let broker = Broker::with_limits(LONG);
    let trusting = builder(&broker).trust_own_user().connect().unwrap();
    let plain = builder(&broker).connect().unwrap();
    let members =
        [&trusting, &plain].map(|bus| bus.join_with("g", JoinOptions::new().create(true)).unwrap());
    let lender = loans::launch(&broker, &format!("lend g 3 {MIB}")).input_piped().start();
    (0..3).for_each(|number| assert_eq!(lender.line(), format!("sent {number}")));
    let kept: Vec<Message> = (0..3).map(|_| message(&trusting)).collect();
    // Of the later ones there may be the copy for those who do not trust, made in their turn.
    assert_eq!(kept[0].way(), Way::Buffer);
    let _ = lender.end_by(Signal::SIGKILL).killed_by(Signal::SIGKILL);
    broker.until("the sender is gone", |stats| stats.connections == 3);
    let copied: Vec<Message> = (0..3).map(|_| message(&plain)).collect();
    for message in kept.iter().chain(&copied) {
        assert!(is_whole(message).unwrap());
    }
    drop((kept, copied));
    drop(members);
    trusting.ping().unwrap();
    plain.ping().unwrap();
    until_no_memory(&broker);
}

/// Given recipients in place, one that is killed, one that leaves and one that is put out,
/// then what was lent to them is free again, and was not copied.
#[test]
fn g8_recipients_in_place_that_die_leave_or_are_evicted_let_go() {
    let broker = Broker::with_limits(&format!("{LONG}\nqueue_messages = 2\nstall = \"200ms\""));
    // It is killed while it reads in place.
    let killed = keeper(&broker, "dies", 1, "trust");
    let (bus, pool) = lender(&broker, "dies", 1);
    send(&bus, "dies", &pool, 1);
    assert_eq!(killed.line(), "buffer whole");
    assert!(!bus.wait_completions(Duration::from_millis(20)), "it keeps it");
    let _ = killed.end_by(Signal::SIGKILL);
    assert_eq!(completed(&bus, 1), [CompletedRange::new(0, 0, false)]);
    drop((bus, pool));

    // It leaves, and keeps nothing.
    let leaves = builder(&broker).trust_own_user().connect().unwrap();
    let member = leaves.join_with("leaves", JoinOptions::new().create(true)).unwrap();
    let (bus, pool) = lender(&broker, "leaves", 1);
    send(&bus, "leaves", &pool, 1);
    member.leave().unwrap();
    assert!(is_whole(&message(&leaves)).unwrap(), "what came before its leave is its own");
    leaves.ping().unwrap();
    assert_eq!(completed(&bus, 1), [CompletedRange::new(0, 0, false)]);
    drop((bus, pool));

    // It does not read: it is put out, and lets go when it is gone.
    let stopped = keeper(&broker, "evicted", 1, "trust");
    let (bus, pool) = lender(&broker, "evicted", 4);
    stopped.stop();
    for number in 0..3 {
        send(&bus, "evicted", &pool, number);
    }
    broker.until_members("evicted", "it is put out", |members| members.is_empty());
    stopped.go_on();
    let _ = stopped.end_by(Signal::SIGKILL);
    assert!(completed(&bus, 3).iter().all(|range| !range.copied), "nobody needed a copy");
    drop((bus, pool, leaves, member));
    until_no_memory(&broker);
}

/// Given a recipient in place that is stopped and keeps everything,
/// when the bound is over,
/// then the sender has its buffers again, and the recipient goes on from the copy.
#[test]
fn g8_a_recipient_that_is_stopped_cannot_hold_the_buffers_and_notices_nothing() {
    let broker = Broker::with_limits("queue_bytes = 16777216\nlent = \"100ms\"");
    let mut stopped = keeper(&broker, "g", 4, "trust");
    let (bus, pool) = lender(&broker, "g", 2);
    send(&bus, "g", &pool, 1);
    send(&bus, "g", &pool, 2);
    assert_eq!([stopped.line(), stopped.line()], ["buffer whole", "buffer whole"]);
    stopped.stop();
    assert!(completed(&bus, 2).iter().all(|range| range.copied), "copied after all");
    // The same two buffers are written again.
    send(&bus, "g", &pool, 3);
    send(&bus, "g", &pool, 4);
    stopped.go_on();
    let (third, fourth) = (stopped.line(), stopped.line());
    assert!(third.ends_with("whole") && fourth.ends_with("whole"), "{third}, {fourth}");
    let mut input = stopped.stdin();
    input.write_all(b"again\n").unwrap();
    for _ in 0..4 {
        let line = stopped.line();
        assert!(line.ends_with("whole"), "{line}");
    }
    drop(input);
    let _ = stopped.end().with(0);
}

/// Given a recipient that can take no descriptor,
/// then it gets the bytes of payloads that lie in memory which it could not be given.
#[test]
fn who_has_no_descriptor_left_fetches_what_lies_apart() {
    let broker = Broker::with_limits(LONG);
    let bus = builder(&broker).zerocopy().connect().unwrap();
    // What it has from its start on, and what the connection takes; the last attempt has too few.
    for most in (4..14).rev() {
        let script = format!("ulimit -n {most}; exec \"$0\" loans keep few 1 plain");
        let program = loans::program();
        let launch = broker.launch("sh").arg("-c").arg(&script).arg(&program);
        let keeper = launch.env("UNISONO_TRANSPORT", "socket").input_piped().start();
        let joined = keeper.first_line();
        assert_eq!(joined.as_deref(), Some("joined"), "with {most} it could not even connect");
        let pool = bus.pool(1, MIB).unwrap();
        send(&bus, "few", &pool, most);
        let line = keeper.line();
        assert!(line == "arena whole" || line == "inline whole", "{line}");
        let _ = keeper.end_by(Signal::SIGKILL);
        broker.until("it has gone", |stats| stats.connections == 2);
        if line == "inline whole" {
            return;
        }
    }
    panic!("descriptors were never few enough");
}

#[test]
fn the_same_by_each_transport() {
    run_by_each(&[8, 9]);
}
