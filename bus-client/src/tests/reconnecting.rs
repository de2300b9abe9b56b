//! A broker that ends, and others that take its place, at one address.

use std::future::Future;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use bus_core::wire::{
    BrokerFrame, FailureCode, GoodbyeCode, Handle, Incarnation, MessageFrame, Request, Response,
    Role, SendFlags, SendFrame,
};
use bus_core::{Attributes, Destination, EndpointId, Limits, NameId, Sequence};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use crate::testing::{FakeBroker, GROUP, PATIENCE, head, welcome};
use crate::{
    Bus, CallError, Event, Fate, GoneReason, JoinOptions, NameOptions, Possession, ReceiveError,
    Reconnect, Reconnected, SendError,
};

/// Where one broker after the other listens.
struct Home {
    listener: UnixListener,
    directory: TempDir,
}

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("bus")).unwrap();
        Self { listener, directory }
    }

    /// The next broker: greets as this incarnation, and as this endpoint.
    fn broker(&self, incarnation: u8) -> FakeBroker {
        self.broker_with(incarnation, Limits::default())
    }

    fn broker_with(&self, incarnation: u8, limits: Limits) -> FakeBroker {
        let mut broker = self.calls();
        let _ = broker.hello();
        let mut welcome = welcome(limits);
        welcome.incarnation = Incarnation::from_bytes([incarnation; 16]);
        welcome.endpoint = endpoint(incarnation);
        broker.put(&BrokerFrame::Welcome(Box::new(welcome)));
        broker
    }

    /// Somebody calls.
    fn calls(&self) -> FakeBroker {
        FakeBroker::on(self.listener.accept().unwrap().0)
    }

    fn connect(&self) -> (Bus, FakeBroker) {
        let ms = Duration::from_millis;
        self.connect_with(Reconnect::new().first(ms(1)).longest(ms(10)))
    }

    fn connect_with(&self, how: Reconnect) -> (Bus, FakeBroker) {
        let address = self.directory.path().join("bus").display().to_string();
        let builder = Bus::builder().address(address).reconnect(how);
        let connecting = thread::spawn(move || builder.connect());
        let broker = self.broker(1);
        (connecting.join().unwrap().unwrap(), broker)
    }
}

fn endpoint(incarnation: u8) -> EndpointId {
    EndpointId::from_raw(100 * u64::from(incarnation))
}

fn at(sequence: u64) -> Sequence {
    Sequence::from_raw(sequence)
}

/// Joins `g`, as the broker says.
fn join(bus: &Bus, broker: &mut FakeBroker) -> crate::Member {
    let joining = bus.clone();
    let joining = thread::spawn(move || joining.join("g"));
    broker.join();
    joining.join().unwrap().unwrap()
}

fn text(event: Event) -> String {
    match event {
        Event::Message(message) => message.text().unwrap().to_owned(),
        other => panic!("{other:?} where a message was expected"),
    }
}

fn back(event: Event) -> Reconnected {
    match event {
        Event::Reconnected(back) => *back,
        other => panic!("{other:?} where the return was expected"),
    }
}

/// Receives in a thread, which does the connection's work meanwhile.
fn receiving(bus: &Bus) -> thread::JoinHandle<Event> {
    let bus = bus.clone();
    thread::spawn(move || bus.receive().unwrap())
}

/// Answers a join of `g` that has been asked for again.
fn rejoin(broker: &mut FakeBroker, sequence: u64) -> Request {
    let (endpoint, serial, request) = broker.call();
    assert!(matches!(request, Request::Join { .. }), "{request:?}");
    let response =
        Response::Joined { group_id: GROUP, sequence: at(sequence), created: true, members: 1 };
    broker.done((endpoint, serial), response);
    request
}

#[test]
fn all_of_one_broker_comes_then_the_return_then_all_of_the_next() {
    let home = Home::new();
    let (bus, mut first) = home.connect();
    let member = join(&bus, &mut first);
    let last = first.message(b"one");
    assert_eq!(text(bus.receive().unwrap()), "one");
    let unread = first.message(b"two");
    drop(first);

    let received = receiving(&bus);
    assert_eq!(text(received.join().unwrap()), "two", "what had arrived is kept");
    let received = receiving(&bus);
    let mut second = home.broker(2);
    rejoin(&mut second, 50);
    let back = back(received.join().unwrap());
    assert_eq!((back.before, back.incarnation), ([1; 16], [2; 16]));
    assert_eq!((back.last, back.joined("g")), (Some(at(unread)), Some(at(50))));
    assert!(last < unread);
    assert_eq!((back.endpoint, bus.endpoint_id()), (endpoint(2), endpoint(2)));
    assert_eq!(back.restored.len(), 1);
    second.message(b"three");
    assert_eq!(text(bus.receive().unwrap()), "three");

    assert!(bus.try_receive().unwrap().is_none());
    // What was read by the first connection owes the second broker nothing.
    second.await_credit(1, 5);
    let leaving = thread::spawn(move || member.leave());
    let (handle, serial, request) = second.call();
    assert_eq!(request, Request::Leave { group_id: GROUP });
    second.done((handle, serial), Response::Left { sequence: at(60) });
    leaving.join().unwrap().unwrap();
}

#[test]
fn a_message_that_overtakes_the_answer_to_the_join_comes_after_the_return() {
    let home = Home::new();
    let (bus, mut first) = home.connect();
    join(&bus, &mut first);
    drop(first);
    let received = receiving(&bus);
    let mut second = home.broker(2);
    let (handle, serial, _) = second.call();
    second.message(b"early");
    let response =
        Response::Joined { group_id: GROUP, sequence: at(50), created: true, members: 1 };
    second.done((handle, serial), response);
    assert_eq!(back(received.join().unwrap()).joined("g"), Some(at(50)));
    let event = bus.receive().unwrap();
    assert!(matches!(&event, Event::Message(m) if m.group() == Some("g")), "{event:?}");
}

#[test]
fn what_was_in_flight_is_unknown_and_is_not_sent_again() {
    let home = Home::new();
    let (bus, mut first) = home.connect();
    let member = join(&bus, &mut first);
    let in_flight = member.start_send("in flight").unwrap();
    let _: SendFrame = first.send();
    drop(first);
    let error = in_flight.wait().unwrap_err();
    assert!(matches!(error, SendError::Unknown(_)), "{error}");
    let error = member.try_send("not now").unwrap_err();
    assert!(matches!(error, SendError::BrokerGone(_)), "{error}");
    let error = bus.endpoint(EndpointId::from_raw(8)).send("not there").unwrap_err();
    assert!(matches!(error, SendError::BrokerGone(_)), "the id was the old broker's: {error}");
    assert!(bus.ping().is_err());
    assert!(!bus.is_connected());

    let waiting = member.clone();
    let waiting = thread::spawn(move || waiting.send("waits"));
    let mut second = home.broker(2);
    rejoin(&mut second, 50);
    second.found(GROUP);
    let send = second.send();
    assert_eq!(&send.payload[..], b"waits");
    assert_eq!(send.head.destination, Destination::Group(GROUP));
    second.receipt(send.head.id);
    waiting.join().unwrap().unwrap();
    assert!(bus.is_connected());
    assert!(second.is_quiet());
}

#[test]
fn a_send_that_waits_for_a_broker_can_time_out() {
    let home = Home::new();
    let (bus, mut first) = home.connect();
    let member = join(&bus, &mut first);
    drop(first);
    while bus.is_connected() {
        bus.dispatch_timeout(PATIENCE).unwrap();
    }
    // Somebody listens, and says nothing.
    let error = member.send_deadline("x", Duration::from_millis(20)).unwrap_err();
    assert_eq!(error, SendError::TimedOut);
    assert_eq!(bus.wait_connected(Duration::from_millis(1)), Ok(false));
}

#[test]
fn calls_end_and_what_was_asked_cannot_be_answered_any_more() {
    let home = Home::new();
    let (bus, mut first) = home.connect();
    let call = bus.start_call(EndpointId::from_raw(8), "2+2").unwrap();
    let send = first.send();
    assert!(send.head.flags.contains(SendFlags::REQUEST));
    let request = |sequence| {
        let mut head = head(sequence);
        (head.group, head.role) = (None, Role::Request { first: None });
        BrokerFrame::Message(Box::new(MessageFrame {
            head,
            attributes: Attributes::EMPTY,
            payload: b"2+2".as_slice().into(),
        }))
    };
    first.put(&request(9));
    first.put(&request(10));
    let taken = bus.receive().unwrap().into_message().unwrap();
    drop(first);
    assert!(matches!(call.wait(), Err(CallError::BrokerGone(_))));
    let unread = bus.receive().unwrap().into_message().unwrap();
    assert_eq!(unread.sequence(), at(10));
    assert!(unread.ended().is_some() && taken.ended().is_some());

    let received = receiving(&bus);
    let mut second = home.broker(2);
    back(received.join().unwrap());
    // Others have these numbers now.
    second.put(&request(9));
    second.put(&request(10));
    let other = bus.receive().unwrap().into_message().unwrap();
    assert_eq!(unread.reply("four").unwrap_err(), SendError::NoSuchRequest(at(10)));
    assert_eq!(taken.reply("four").unwrap_err(), SendError::NoSuchRequest(at(9)));
    drop((unread, taken));
    let answered = thread::spawn(move || other.reply("four"));
    let send = second.send();
    assert_eq!(send.head.destination, Destination::Caller(at(9)), "the new one is answered");
    second.receipt(send.head.id);
    answered.join().unwrap().unwrap();
}

#[test]
fn what_was_given_up_is_not_asked_for_again_and_options_are_the_present_ones() {
    let home = Home::new();
    let (bus, mut first) = home.connect();
    let joining = bus.clone();
    let joining = thread::spawn(move || {
        let options = JoinOptions::new().loopback(true).create(false);
        let member = joining.join_with("g", options).unwrap();
        member.set_filter(Some("key=x".parse().unwrap())).unwrap();
        let claim = joining.own_name_with("n", NameOptions::new().shared(true)).unwrap();
        let other = joining.own_name("m").unwrap();
        other.release().unwrap();
        claim
    });
    first.join();
    let (handle, serial, _) = first.call();
    first.done((handle, serial), Response::FilterSet { sequence: at(3) });
    for id in [1, 2] {
        let (handle, serial, _) = first.call();
        let name_id = NameId::from_raw(id);
        let response = Response::Claimed { name_id, sequence: at(4), position: 0 };
        first.done((handle, serial), response);
    }
    let (handle, serial, request) = first.call();
    assert_eq!(request, Request::ReleaseName { name_id: NameId::from_raw(2) });
    first.done((handle, serial), Response::Released { sequence: at(5) });
    let claim = joining.join().unwrap();
    drop(first);

    let received = receiving(&bus);
    let mut second = home.broker(2);
    let Request::Join { flags, create, filter, .. } = rejoin(&mut second, 50) else {
        unreachable!("it is one");
    };
    assert!(flags.contains(bus_core::MemberFlags::LOOPBACK) && !create);
    assert_eq!(filter, Some("key=x".parse().unwrap()));
    let (handle, serial, request) = second.call();
    assert!(matches!(&request, Request::OwnName { name, .. } if name.as_str() == "n"));
    let name_id = NameId::from_raw(77);
    second.done((handle, serial), Response::Claimed { name_id, sequence: at(51), position: 0 });
    let back = back(received.join().unwrap());
    let fates: Vec<_> = back.restored.iter().map(|r| (&r.what, &r.fate)).collect();
    let (g, n) = ("g".parse().unwrap(), "n".parse().unwrap());
    let (member, name) = (Possession::Member(g), Possession::Name(n));
    assert_eq!(fates, [(&member, &Fate::At(at(50))), (&name, &Fate::At(at(51)))]);
    assert!(second.is_quiet());

    drop(claim);
    let (_, _, request) = second.call();
    assert_eq!(request, Request::ReleaseName { name_id }, "by its present id");
}

#[test]
fn what_is_not_there_yet_is_asked_for_until_it_is_and_what_is_refused_is_told() {
    let home = Home::new();
    let (bus, mut first) = home.connect();
    join(&bus, &mut first);
    let claiming = bus.clone();
    let claiming = thread::spawn(move || claiming.own_name("n").unwrap());
    let (handle, serial, _) = first.call();
    let name_id = NameId::from_raw(1);
    first.done((handle, serial), Response::Claimed { name_id, sequence: at(4), position: 0 });
    let _claim = claiming.join().unwrap();
    drop(first);

    let received = receiving(&bus);
    let mut second = home.broker(2);
    let (handle, serial, _) = second.call();
    second.error((handle, serial), FailureCode::NoSuchGroup);
    let (handle, serial, _) = second.call();
    second.error((handle, serial), FailureCode::NameTaken);
    let back = back(received.join().unwrap());
    let fates: Vec<_> = back.restored.into_iter().map(|restored| restored.fate).collect();
    let waiting = Fate::Waiting { code: "no-such-group".to_owned() };
    let lost = Fate::Lost { code: "name-taken".to_owned(), text: "because".to_owned() };
    assert_eq!(fates, [waiting, lost]);

    let received = receiving(&bus);
    let (handle, serial, _) = second.call();
    second.error((handle, serial), FailureCode::NoSuchGroup);
    rejoin(&mut second, 60);
    let Event::Restored(restored) = received.join().unwrap() else { panic!("it is there") };
    assert_eq!(restored.what, Possession::Member("g".parse().unwrap()));
    assert_eq!(restored.fate, Fate::At(at(60)));
}

#[test]
fn every_endpoint_is_opened_again_under_its_handle() {
    let home = Home::new();
    let (bus, mut first) = home.connect();
    let opening = bus.clone();
    let opening = thread::spawn(move || opening.open_endpoint().unwrap());
    let (handle, serial, _) = first.call();
    first.done((handle, serial), Response::Opened { endpoint: EndpointId::from_raw(5) });
    let other = opening.join().unwrap();
    assert_eq!(other.endpoint_id(), EndpointId::from_raw(5));
    drop(first);
    let received = thread::spawn(move || (other.receive().unwrap(), other));
    let mut second = home.broker(2);
    let (handle, serial, request) = second.call();
    assert_eq!((handle, request), (Handle::from_raw(1), Request::OpenEndpoint));
    second.done((handle, serial), Response::Opened { endpoint: EndpointId::from_raw(205) });
    let (event, other) = received.join().unwrap();
    assert_eq!(back(event).endpoint, EndpointId::from_raw(205));
    assert_eq!(other.endpoint_id(), EndpointId::from_raw(205));
    assert_eq!(back(bus.receive().unwrap()).endpoint, endpoint(2));
}

#[test]
fn who_does_not_read_keeps_what_came_first_and_is_told_of_the_rest() {
    let home = Home::new();
    let (bus, mut broker) = home.connect();
    join(&bus, &mut broker);
    let last = broker.message(b"first");
    for incarnation in 2..=20 {
        drop(broker);
        broker = home_after(&home, &bus, incarnation);
        rejoin(&mut broker, 50);
        broker.message(b"lost");
        // Takes it in.
        let before = Instant::now();
        while bus.is_connected() && before.elapsed() < Duration::from_millis(5) {
            bus.dispatch_timeout(Duration::from_millis(1)).unwrap();
        }
    }
    assert_eq!(text(bus.receive().unwrap()), "first");
    let told = back(bus.receive().unwrap());
    assert_eq!((told.before, told.incarnation), ([1; 16], [20; 16]));
    assert_eq!((told.last, told.skipped), (Some(at(last)), 18));
    assert_eq!(text(bus.receive().unwrap()), "lost", "what is there now");
}

/// The next broker, while this thread is the only one to do the connection's work.
fn home_after(home: &Home, bus: &Bus, incarnation: u8) -> FakeBroker {
    let listener = home.listener.try_clone().unwrap();
    let accepting = thread::spawn(move || {
        let directory = tempfile::tempdir().unwrap();
        Home { listener, directory }.broker(incarnation)
    });
    while !accepting.is_finished() {
        bus.dispatch_timeout(Duration::from_millis(1)).unwrap();
    }
    assert_eq!(bus.wait_connected(PATIENCE), Ok(true));
    accepting.join().unwrap()
}

#[test]
fn a_main_loop_that_polls_one_descriptor_is_enough() {
    let home = Home::new();
    let (bus, mut first) = home.connect();
    join(&bus, &mut first);
    let descriptor = bus.as_fd();
    let turn = || {
        let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut polled, Some(&patience)), Ok(1), "there is something to do");
        bus.dispatch().unwrap();
        bus.try_receive().unwrap()
    };
    // Nobody is there for a while.
    let path = home.directory.path().join("bus");
    let away = home.directory.path().join("away");
    std::fs::rename(&path, &away).unwrap();
    drop(first);
    for _ in 0..10 {
        assert!(turn().is_none());
    }
    std::fs::rename(&away, &path).unwrap();
    let broker = {
        let listener = home.listener.try_clone().unwrap();
        thread::spawn(move || {
            let directory = tempfile::tempdir().unwrap();
            let mut broker = Home { listener, directory }.broker(2);
            rejoin(&mut broker, 50);
            broker
        })
    };
    let event = loop {
        if let Some(event) = turn() {
            break event;
        }
    };
    assert_eq!(back(event).joined("g"), Some(at(50)));
    let mut broker = broker.join().unwrap();
    broker.message(b"on");
    let event = loop {
        if let Some(event) = turn() {
            break event;
        }
    };
    assert_eq!(text(event), "on");
}

#[test]
fn a_future_goes_on_with_the_next_broker() {
    let home = Home::new();
    let (bus, mut first) = home.connect();
    join(&bus, &mut first);
    drop(first);
    let brokers = thread::spawn(move || {
        let mut second = home.broker(2);
        rejoin(&mut second, 50);
        (home, second)
    });
    let mut future = pin!(bus.receive_async());
    let event = loop {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => break event.unwrap(),
            Poll::Pending => bus.dispatch_timeout(PATIENCE).unwrap(),
        }
    };
    assert_eq!(back(event).incarnation, [2; 16]);
    drop(brokers.join().unwrap());
}

#[test]
fn who_gives_up_says_why_the_broker_went() {
    let home = Home::new();
    let how = Reconnect::new()
        .first(Duration::from_millis(1))
        .give_up_after(Some(Duration::from_millis(30)));
    let (bus, mut first) = home.connect_with(how);
    let member = join(&bus, &mut first);
    let Home { listener, directory } = home;
    drop(listener);
    first.goodbye(GoodbyeCode::Shutdown, "for good");
    drop(first);
    let waiting = thread::spawn(move || member.send("x"));
    let ReceiveError::BrokerGone(gone) = bus.receive().unwrap_err() else { panic!() };
    assert!(gone.to_string().contains("for good"), "{gone}");
    assert!(matches!(waiting.join().unwrap(), Err(SendError::BrokerGone(_))));
    let mut polled = [PollFd::new(&bus, PollFlags::IN)];
    assert_eq!(poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1));
    drop(directory);
}

#[test]
fn a_broker_that_does_not_want_us_is_the_end() {
    let home = Home::new();
    let (bus, first) = home.connect();
    drop(first);
    let received = thread::spawn(move || bus.receive().unwrap_err());
    let mut second = home.calls();
    let _ = second.hello();
    second.goodbye(GoodbyeCode::PermissionDenied, "not you");
    let ReceiveError::BrokerGone(gone) = received.join().unwrap() else { panic!() };
    assert!(matches!(gone.reason(), GoneReason::Goodbye { .. }), "{gone}");
}

#[test]
fn a_broker_that_dies_while_it_greets_is_tried_again() {
    let home = Home::new();
    let (bus, first) = home.connect();
    drop(first);
    let received = receiving(&bus);
    drop(home.calls());
    let mut second = home.calls();
    let _ = second.hello();
    drop(second);
    let _third = home.broker(3);
    let back = back(received.join().unwrap());
    assert_eq!((back.before, back.incarnation, back.skipped), ([1; 16], [3; 16], 0));
}

#[test]
fn a_replys_place_is_the_old_brokers() {
    let home = Home::new();
    let (bus, mut first) = home.connect();
    let mut call = bus.start_call(EndpointId::from_raw(8), "2+2").unwrap();
    let send = first.send();
    first.receipt(send.head.id);
    let mut head = head(9);
    (head.group, head.role) = (None, Role::Reply { request: at(1), refusal: false });
    first.put(&BrokerFrame::Message(Box::new(MessageFrame {
        head,
        attributes: Attributes::EMPTY,
        payload: b"four".as_slice().into(),
    })));
    drop(first);
    // The loss is seen before anybody takes the reply.
    assert_eq!(bus.wait_connected(Duration::ZERO).ok(), Some(true));
    while bus.is_connected() {
        bus.dispatch_timeout(PATIENCE).unwrap();
    }
    let reply = call.try_wait().expect("it has come").unwrap();
    assert_eq!(reply.text(), Some("four"));
    let received = receiving(&bus);
    let mut second = home.broker(2);
    back(received.join().unwrap());
    second.message(b"a");
    bus.receive().unwrap();
    assert!(bus.try_receive().unwrap().is_none());
    second.await_credit(1, 1);
}

#[test]
fn without_being_asked_to_nobody_comes_back() {
    let (bus, broker) = crate::testing::pair();
    drop(broker);
    let error = bus.receive().unwrap_err();
    assert!(matches!(error, ReceiveError::BrokerGone(_)), "{error}");
}
