//! G1: a message is put into every recipient's queue or into none.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use bus_core::{Draft, JoinOptions, Limits, Payload, SendError, Submitted};

use crate::given::{Party, Wakes, bus, bus_with, full, now, outcome};

#[test]
fn g1_a_refused_send_has_reached_nobody() {
    let bus = bus(1);
    let mut sender = Party::on(&bus);
    let (mut a, mut b, mut c) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let group = a.join("g");
    b.join("g");
    c.join("g");
    let to_b = b.id();
    sender.send(to_b, "fills b");

    let (named, count) = full(sender.try_send(group, "refused"));
    assert_eq!((named, count), (vec![b.id()], 1));
    assert_eq!(a.take_all(), [""; 0]);
    assert_eq!(b.take_all(), ["fills b"]);
    assert_eq!(c.take_all(), [""; 0]);

    let receipt = sender.send(group, "accepted");
    assert_eq!(receipt.recipients, 3);
    for party in [&mut a, &mut b, &mut c] {
        assert_eq!(party.take_all(), ["accepted"]);
    }
}

#[test]
fn g1_a_refused_send_takes_no_serial_and_no_message_count() {
    let bus = bus(1);
    let (mut sender, mut reader) = (Party::on(&bus), Party::on(&bus));
    assert_eq!(sender.send(reader.id(), "1").sender_serial, 1);
    full(sender.try_send(reader.id(), "refused"));
    assert_eq!(bus.stats().messages, 1);
    reader.take();
    assert_eq!(sender.send(reader.id(), "2").sender_serial, 2);
    assert_eq!(reader.take_message().sender_serial(), 2);
}

#[test]
fn g1_a_waiting_send_has_reached_nobody_until_all_have_room() {
    let bus = bus(1);
    let mut sender = Party::on(&bus);
    let (mut a, mut b) = (Party::on(&bus), Party::on(&bus));
    let group = a.join("g");
    b.join("g");
    sender.send(group, "first");
    let wakes = sender.wait(group, "second");

    assert_eq!(a.take(), "first");
    assert_eq!(a.take_all(), [""; 0], "b has no room yet");
    assert_eq!((wakes.count(), sender.lane.poll_outcome()), (0, None));

    assert_eq!(b.take(), "first");
    assert_eq!(wakes.count(), 1);
    assert_eq!(outcome(&mut sender.lane).unwrap().recipients, 2);
    assert_eq!((a.take(), b.take()), ("second".into(), "second".into()));
}

#[test]
fn g1_a_cancelled_send_has_reached_nobody() {
    let bus = bus(1);
    let mut sender = Party::on(&bus);
    let (mut a, mut b) = (Party::on(&bus), Party::on(&bus));
    let group = a.join("g");
    b.join("g");
    sender.send(a.id(), "fills a");
    let wakes = sender.wait(group, "cancelled");
    assert_eq!(sender.lane.cancel(), Some(Err(SendError::Cancelled)));
    assert_eq!(sender.lane.cancel(), None, "there is nothing to cancel twice");

    assert_eq!(a.take_all(), ["fills a"]);
    assert_eq!(b.take_all(), [""; 0]);
    assert_eq!(wakes.count(), 0, "who cancels knows");
    assert_eq!(bus.stats().waiting_sends, 0);
}

#[test]
fn g1_a_cancel_that_comes_too_late_gives_the_receipt() {
    let bus = bus(1);
    let (mut sender, mut reader) = (Party::on(&bus), Party::on(&bus));
    sender.send(reader.id(), "first");
    let wakes = sender.wait(reader.id(), "second");
    reader.take();
    assert_eq!(wakes.count(), 1);
    let receipt = sender.lane.cancel().unwrap().unwrap();
    assert_eq!(reader.take_message().sequence(), receipt.sequence);
}

#[test]
fn g1_a_deadline_that_has_passed_sends_at_once_or_to_nobody() {
    let bus = bus(1);
    let (mut sender, mut reader) = (Party::on(&bus), Party::on(&bus));
    let past = now() - Duration::from_secs(1);
    let to = reader.here();
    assert_eq!(
        sender.lane.send_deadline(to, "in time", past).map(|receipt| receipt.recipients),
        Ok(1)
    );
    assert_eq!(sender.lane.send_deadline(to, "too late", past), Err(SendError::Cancelled));
    assert_eq!(reader.take_all(), ["in time"]);
}

#[test]
fn g1_payloads_and_descriptors_at_their_limits() {
    let bus = bus_with(Limits { payload_bytes: 8, descriptors: 1, ..Limits::default() });
    let (mut sender, mut reader) = (Party::on(&bus), Party::on(&bus));
    let to = reader.here();
    assert_eq!(
        sender.lane.try_send(to, "nine char"),
        Err(SendError::TooLarge { given: 9, limit: 8 })
    );
    let draft = |descriptors: usize| Draft {
        descriptors: (0..descriptors).map(|_| std::io::pipe().unwrap().0.into()).collect(),
        ..Draft::default()
    };
    assert_eq!(
        sender.lane.try_send(to, draft(2)),
        Err(SendError::TooManyDescriptors { given: 2, limit: 1 })
    );
    assert_eq!(reader.take_all(), [""; 0]);
    assert!(sender.lane.try_send(to, "is eight").is_ok());
    assert!(sender.lane.try_send(to, draft(1)).is_ok());
    assert_eq!(reader.take(), "is eight");
    assert_eq!(reader.take_message().descriptors().len(), 1);
}

#[test]
fn g1_descriptors_of_a_refused_message_are_closed() {
    let bus = bus(1);
    let (mut sender, reader) = (Party::on(&bus), Party::on(&bus));
    sender.send(reader.id(), "fills");
    let (mut hears, speaks) = std::io::pipe().unwrap();
    let draft = Draft { descriptors: vec![speaks.into()], ..Draft::default() };
    full(sender.lane.try_send(reader.here(), draft));
    let mut heard = Vec::new();
    hears.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"", "the only writing end is gone");
}

/// A waker whose owner has a bug.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker of the application's");
    }
}

#[test]
fn g1_a_waker_that_panics_costs_no_other_reader_its_message_or_its_wake_up() {
    let bus = bus(4);
    let mut sender = Party::on(&bus);
    let mut members: Vec<Party> = (0..4).map(|_| Party::on(&bus)).collect();
    let mut wakes = Vec::new();
    let mut group = None;
    for (at, member) in members.iter_mut().enumerate() {
        group = Some(member.join("g"));
        let counts = Wakes::new();
        let waker = if at == 1 { Waker::from(Arc::new(Panics)) } else { counts.waker() };
        assert!(member.reader.sleep(waker));
        wakes.push(counts);
    }
    let group = group.unwrap();
    let sent = catch_unwind(AssertUnwindSafe(|| sender.send(group, "x")));
    assert!(sent.is_err(), "the panic reaches its own thread");
    for (at, member) in members.iter_mut().enumerate() {
        assert_eq!(member.take_all(), ["x"]);
        assert_eq!(wakes[at].count(), usize::from(at != 1), "member {at}");
    }
    // The lane goes on.
    assert_eq!(sender.send(group, "y").recipients, 4);
}

/// A payload that uses the bus when it is dropped, as a buffer pool over a bus may do.
struct UsesTheBus(bus_core::Bus, Vec<u8>);

impl AsRef<[u8]> for UsesTheBus {
    fn as_ref(&self) -> &[u8] {
        &self.1
    }
}

impl Drop for UsesTheBus {
    fn drop(&mut self) {
        // Takes every lock there is.
        let _ = self.0.stats();
        let party = Party::on(&self.0);
        party.join("dropped");
    }
}

fn uses_the_bus(bus: &bus_core::Bus) -> Payload {
    Payload::from(bytes::Bytes::from_owner(UsesTheBus(bus.clone(), vec![1; 8])))
}

#[test]
fn g1_payloads_are_dropped_with_no_lock_held() {
    let bus = bus(1);
    let (mut sender, mut reader) = (Party::on(&bus), Party::on(&bus));
    let to = reader.here();
    let wait = |sender: &mut Party| {
        let submitted = sender.lane.submit(to, uses_the_bus(&bus), Waker::noop().clone());
        assert_eq!(submitted, Ok(Submitted::Waiting));
    };
    // Refused, cancelled, taken.
    sender.send(to, "fills");
    full(sender.lane.try_send(to, uses_the_bus(&bus)));
    wait(&mut sender);
    assert_eq!(sender.lane.cancel(), Some(Err(SendError::Cancelled)));
    reader.take();
    assert!(sender.lane.try_send(to, uses_the_bus(&bus)).is_ok());
    drop(reader.take_message());

    // Own queue full, found at once.
    let own = sender.here();
    sender.send(own, "fills");
    let refused = sender.lane.submit(own, uses_the_bus(&bus), Waker::noop().clone());
    assert_eq!(refused, Err(SendError::OwnQueueFull));

    // The lane is dropped, the recipient is closed, the bus is left with a queued one.
    sender.send(to, "fills");
    let mut second = sender.endpoint.lane().unwrap();
    let submitted = second.submit(to, uses_the_bus(&bus), Waker::noop().clone());
    assert_eq!(submitted, Ok(Submitted::Waiting));
    drop(second);
    wait(&mut sender);
    let Party { endpoint, reader: its_reader, .. } = reader;
    let reader_id = endpoint.id();
    drop(endpoint);
    assert_eq!(outcome(&mut sender.lane), Err(SendError::NoSuchEndpoint(reader_id)));
    drop(its_reader);
    let last = Party::on(&bus);
    assert!(sender.lane.try_send(last.here(), uses_the_bus(&bus)).is_ok());
    drop(last);
    assert!(bus.find_group(&"dropped".parse().unwrap()).is_none());
}

/// A waker that uses the bus when it is dropped.
struct WakerUsesTheBus(bus_core::Bus);

impl Wake for WakerUsesTheBus {
    fn wake(self: Arc<Self>) {}
}

impl Drop for WakerUsesTheBus {
    fn drop(&mut self) {
        let _ = self.0.stats();
        let endpoint = self.0.open_endpoint(crate::given::ME).unwrap();
        endpoint.join(&"woken".parse().unwrap(), JoinOptions::create()).unwrap();
    }
}

#[test]
fn g1_wakers_are_dropped_with_no_lock_held() {
    let bus = bus(1);
    let waker = || Waker::from(Arc::new(WakerUsesTheBus(bus.clone())));
    let (mut sender, mut reader) = (Party::on(&bus), Party::on(&bus));
    let to = reader.here();
    assert!(reader.reader.sleep(waker()));
    assert!(reader.reader.sleep(waker()), "the first one is dropped");
    sender.send(to, "x");
    assert!(!reader.reader.sleep(waker()), "there is something to take");
    assert_eq!(sender.lane.submit(to, "waits", waker()), Ok(Submitted::Waiting));
    assert_eq!(sender.lane.cancel(), Some(Err(SendError::Cancelled)));
    let watch = sender.endpoint.watch_writable(to, waker()).unwrap();
    drop(watch.expect("it is not writable"));
    let own = sender.here();
    sender.send(own, "fills");
    assert_eq!(sender.lane.submit(own, "own", waker()), Err(SendError::OwnQueueFull));
    assert_eq!(sender.lane.submit(to, "waits", waker()), Ok(Submitted::Waiting));
    reader.take();
    assert!(outcome(&mut sender.lane).is_ok());
    assert_eq!(reader.take(), "waits");
}
