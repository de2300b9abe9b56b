//! Well-known names with a real broker in this process.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::thread;
use std::time::Duration;

use bus_client::{
    Bus, CallError, DataType, Describe, Description, EmbeddedBroker, Event, Limits, Message,
    NameOptions, Operation, OwnError, QueryError, SendError,
};
use serde::Deserialize;

/// Longer than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

const CLOCK: &str = "org.example.Clock";

fn broker() -> EmbeddedBroker {
    EmbeddedBroker::start().unwrap()
}

fn event(bus: &Bus) -> Event {
    bus.receive_deadline(PATIENCE).unwrap().expect("something comes")
}

fn message(bus: &Bus) -> Message {
    match event(bus) {
        Event::Message(message) => message,
        other => panic!("{other:?} where a message was expected"),
    }
}

#[test]
fn a_message_to_a_name_reaches_its_owner_and_says_so() {
    let broker = broker();
    let (clock, user) = (broker.connect().unwrap(), broker.connect().unwrap());
    let name = clock.own_name(CLOCK).unwrap();
    assert_eq!((name.name().as_str(), name.position()), (CLOCK, 0));

    let receipt = user.name(CLOCK).unwrap().send("what time is it?").unwrap();
    assert_eq!(receipt.recipients, 1);
    assert!(receipt.sequence > name.sequence());
    let asked = message(&clock);
    assert_eq!((asked.text(), asked.name()), (Some("what time is it?"), Some(CLOCK)));
    assert_eq!((asked.group(), asked.sender()), (None, user.endpoint_id()));

    clock.endpoint(asked.sender()).send("five to twelve").unwrap();
    assert_eq!(message(&user).text(), Some("five to twelve"));
}

#[test]
fn who_waits_is_told_when_the_name_comes() {
    let broker = broker();
    let (first, second) = (broker.connect().unwrap(), broker.connect().unwrap());
    let name = first.own_name(CLOCK).unwrap();
    assert_eq!(second.own_name(CLOCK).unwrap_err(), OwnError::Taken(CLOCK.parse().unwrap()));
    let waiting = second.own_name_with(CLOCK, NameOptions::new().wait(true)).unwrap();
    assert_eq!(waiting.position(), 1);
    assert_eq!(first.find_name(CLOCK).unwrap().unwrap().waiting, 1);
    drop(name);
    let Event::NameAcquired(acquired) = event(&second) else { panic!() };
    assert_eq!((acquired.name.as_str(), acquired.name_id), (CLOCK, waiting.id()));
    first.name(CLOCK).unwrap().send("x").unwrap();
    assert_eq!(message(&second).name(), Some(CLOCK));
    assert!(waiting.release().unwrap().is_some());
    assert_eq!(first.find_name(CLOCK).unwrap(), None);
}

#[test]
fn who_is_replaced_is_told_after_its_last_message() {
    let broker = broker();
    let (old, new) = (broker.connect().unwrap(), broker.connect().unwrap());
    let was = old.own_name_with(CLOCK, NameOptions::new().allow_replacement(true)).unwrap();
    let sender = broker.connect().unwrap();
    let to = sender.name(CLOCK).unwrap();
    to.send("before").unwrap();
    let _name = new.own_name_with(CLOCK, NameOptions::new().replace(true)).unwrap();
    to.send("after").unwrap();
    assert_eq!(message(&old).text(), Some("before"));
    let Event::NameLost(lost) = event(&old) else { panic!() };
    assert_eq!((lost.by, lost.waits), (Some(new.endpoint_id()), false));
    assert_eq!(message(&new).text(), Some("after"));
    assert_eq!(was.release().unwrap(), None, "it was lost before");
}

#[test]
fn a_handle_outlives_the_owner_and_finds_the_next() {
    let broker = broker();
    let (service, user) = (broker.connect().unwrap(), broker.connect().unwrap());
    let to = user.name(CLOCK).unwrap();
    let nobody = SendError::NoSuchName(CLOCK.parse().unwrap());
    assert_eq!(to.send("too early").unwrap_err(), nobody);
    for _ in 0..3 {
        let name = service.own_name(CLOCK).unwrap();
        to.send("hello").unwrap();
        assert_eq!(to.id(), Some(name.id()));
        assert_eq!(message(&service).text(), Some("hello"));
        name.release().unwrap();
        assert_eq!(to.try_send("too late").unwrap_err(), nobody);
    }
}

#[test]
fn each_message_to_a_shared_name_is_given_to_one_worker() {
    const MESSAGES: usize = 60;
    let broker = broker();
    let workers: Vec<Bus> = (0..3).map(|_| broker.connect().unwrap()).collect();
    let shared = NameOptions::new().shared(true);
    let _names: Vec<_> =
        workers.iter().map(|bus| bus.own_name_with(CLOCK, shared.clone()).unwrap()).collect();
    let user = broker.connect().unwrap();
    let mismatch = OwnError::Mismatch(CLOCK.parse().unwrap());
    assert_eq!(user.own_name(CLOCK).unwrap_err(), mismatch);
    let to = user.name(CLOCK).unwrap();
    for number in 0..MESSAGES {
        to.send(number.to_string()).unwrap();
    }
    let mut all = Vec::new();
    for worker in &workers {
        // All had as little to do.
        let next = || message(worker).text().unwrap().parse::<usize>().unwrap();
        let own: Vec<usize> = (0..MESSAGES / 3).map(|_| next()).collect();
        assert!(own.is_sorted(), "{own:?}");
        all.extend(own);
    }
    all.sort_unstable();
    assert_eq!(all, (0..MESSAGES).collect::<Vec<_>>());
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "described, not read")]
struct Time {
    hour: u8,
    minute: u8,
}

#[test]
fn a_service_says_what_it_does() {
    let broker = broker();
    let (service, user) = (broker.connect().unwrap(), broker.connect().unwrap());
    let text = || CLOCK.parse().unwrap();
    assert_eq!(user.describe_name(CLOCK), Err(QueryError::NoSuchName(text())));
    let silent = service.own_name(CLOCK).unwrap();
    assert_eq!(user.describe_name(CLOCK), Err(QueryError::NoDescription(text())));
    drop(silent);
    let clock = Describe::new("Tells the time.")
        .operation::<Option<String>, Time>("now", "The time there.")
        .operation::<Time, ()>("set", "Sets it.")
        .signal::<Time>("struck", "At every full hour.", "org.example.Hours")
        .finish()
        .unwrap();
    let options = NameOptions::new().describe(clock.clone());
    let _name = service.own_name_with(CLOCK, options).unwrap();
    assert_eq!(user.describe_name(CLOCK), Ok(clock));
    let names = user.names().unwrap();
    assert_eq!(names.len(), 1);
    assert!(names[0].described && !names[0].shared);
    let too_long = NameOptions::new().describe(Description::new("x".repeat(20_000)));
    let refused = service.own_name_with("a.b", too_long).unwrap_err();
    assert!(matches!(refused, OwnError::LimitExceeded(_)), "{refused}");
    let vague = Operation::new("now").reply(DataType::named("Time"));
    let vague = NameOptions::new().describe(Description::new("").operation(vague));
    let offence = "the reply of operation \"now\" is of type \"Time\", which is not described";
    let refused = service.own_name_with("a.b", vague).unwrap_err();
    assert_eq!(refused, OwnError::BadDescription(offence.into()));
}

#[test]
fn g4_a_watcher_is_told_of_each_owner_at_its_place() {
    let broker = broker();
    let (watcher, service) = (broker.connect().unwrap(), broker.connect().unwrap());
    let watch = watcher.watch_name(CLOCK).unwrap();
    assert_eq!(watch.owners(), []);
    let name = service.own_name(CLOCK).unwrap();
    let Event::OwnerChanged(change) = event(&watcher) else { panic!() };
    assert_eq!((change.sequence, change.owners), (name.sequence(), 1));
    assert_eq!(change.new.map(|new| new.endpoint), Some(service.endpoint_id()));
    assert_eq!(change.new.unwrap().pid, std::process::id());
    service.close();
    let Event::OwnerChanged(change) = event(&watcher) else { panic!() };
    assert_eq!(
        (change.old.map(|old| old.endpoint), change.new),
        (Some(service.endpoint_id()), None)
    );
    assert!(watch.end().unwrap() > change.sequence);
}

/// More changes than the watcher's queue holds, of which none was received: the connection lives,
/// and what was missed is told.
#[test]
fn g8_changes_that_nobody_receives_are_bounded() {
    let limits = Limits { queue_messages: 4, ..Limits::default() };
    let broker = EmbeddedBroker::builder().limits(limits).start().unwrap();
    let (watcher, service) = (broker.connect().unwrap(), broker.connect().unwrap());
    watcher.watch_name(CLOCK).unwrap();
    for _ in 0..50 {
        service.own_name(CLOCK).unwrap().release().unwrap();
        watcher.ping().unwrap();
    }
    let (mut told, mut lost) = (0, 0);
    while told + lost < 100 {
        match event(&watcher) {
            Event::OwnerChanged(change) => {
                told += 1;
                lost += change.missed.map_or(0, |gap| gap.count);
            }
            Event::OwnerChangesLost(changes) => lost += changes.gap.count,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((told, lost), (4, 96));
}

#[test]
fn a_request_to_a_name_is_answered_by_its_owner() {
    let broker = broker();
    let (clock, user) = (broker.connect().unwrap(), broker.connect().unwrap());
    let _name = clock.own_name(CLOCK).unwrap();
    thread::scope(|scope| {
        let service = scope.spawn(|| {
            for _ in 0..2 {
                let asked = message(&clock);
                assert_eq!(asked.name(), Some(CLOCK));
                asked.reply("five to twelve").unwrap();
            }
        });
        let name = user.name(CLOCK).unwrap();
        assert_eq!(name.call("time?").unwrap().text(), Some("five to twelve"));
        assert_eq!(user.call(&name, "time?").unwrap().text(), Some("five to twelve"));
        service.join().unwrap();
    });
}

#[test]
fn g9_a_request_to_a_name_whose_owner_dies_has_an_outcome() {
    let broker = broker();
    let (clock, user) = (broker.connect().unwrap(), broker.connect().unwrap());
    let name = clock.own_name(CLOCK).unwrap();
    let pending = user.name(CLOCK).unwrap().start_call("time?").unwrap();
    assert_eq!(message(&clock).text(), Some("time?"));
    drop(name);
    clock.close();
    assert!(matches!(pending.wait(), Err(CallError::Gone)));
    assert!(matches!(
        user.name(CLOCK).unwrap().call("time?"),
        Err(CallError::Send(SendError::NoSuchName(_)))
    ));
}

#[test]
fn g5_two_services_that_wait_for_each_other_go_on() {
    const MESSAGES: u32 = 200;
    let limits = Limits { queue_messages: 8, stall: PATIENCE, ..Limits::default() };
    let broker = EmbeddedBroker::builder().limits(limits).start().unwrap();
    let [a, b] = [0; 2].map(|_| broker.connect().unwrap());
    let _names = (a.own_name("to.a").unwrap(), b.own_name("to.b").unwrap());
    // Neither reads before it has sent everything, and the other's queue holds eight.
    let program = |bus: &Bus, other: &str| {
        let other = bus.name(other).unwrap();
        for number in 0..MESSAGES {
            other.send(number.to_string()).unwrap();
        }
        (0..MESSAGES).all(|expected| message(bus).text() == Some(&expected.to_string()))
    };
    thread::scope(|scope| {
        let one = scope.spawn(|| program(&a, "to.b"));
        assert!(program(&b, "to.a"));
        assert!(one.join().unwrap());
    });
}

#[test]
fn g6_a_name_becomes_writable_when_its_owner_has_read() {
    let limits = Limits { queue_messages: 1, ..Limits::default() };
    let broker = EmbeddedBroker::builder().limits(limits).start().unwrap();
    let (service, user) = (broker.connect().unwrap(), broker.connect().unwrap());
    let _name = service.own_name(CLOCK).unwrap();
    let to = user.name(CLOCK).unwrap();
    to.send("fills").unwrap();
    assert!(matches!(to.try_send("x").unwrap_err(), SendError::WouldBlock { full_count: 1, .. }));
    let mut writable = to.watch_writable();
    assert!(!writable.is_writable().unwrap());
    assert_eq!(message(&service).text(), Some("fills"));
    // Its place is free once the service sleeps or is about to.
    service.ping().unwrap();
    writable.wait().unwrap();
    to.try_send("x").unwrap();
}
