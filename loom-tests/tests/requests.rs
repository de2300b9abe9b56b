//! Requests: one outcome, whoever decides (SPEC section 3), and nobody forgotten on the way.

use std::time::Duration;

use bus_core_modelled::{
    Bus, Delivery, Destination, Draft, Endpoint, Kind, Lane, Limits, ReceiveError, Receiver,
    RequestEnd, SendError, Sequence,
};
use loom::thread;

use crate::given::{bus_with, endpoints, explore, lane, reader, to};

const START: Duration = Duration::from_secs(1_000);
const SECOND: Duration = Duration::from_secs(1);

fn small_bus() -> Bus {
    let limits = Limits {
        queue_messages: 2,
        memberships: 1,
        requests: 2,
        request_deadline: SECOND,
        ..Limits::default()
    };
    let bus = bus_with(limits);
    bus.tick(START);
    bus
}

fn ask(lane: &mut Lane, callee: &Endpoint) -> Sequence {
    ask_until(lane, callee, 0)
}

fn ask_until(lane: &mut Lane, callee: &Endpoint, deadline: u64) -> Sequence {
    let kind = Kind::Request { repeatable: false };
    let draft = Draft { kind, deadline, ..Draft::from("?") };
    lane.try_send(to(callee), draft).expect("room everywhere").sequence
}

fn reply(lane: &mut Lane, request: Sequence) -> Result<(), SendError> {
    lane.try_send(Destination::Caller(request), "!").map(drop)
}

/// What a caller was told of its one request: None for the reply.
fn outcomes(caller: &Endpoint) -> Vec<Option<RequestEnd>> {
    let mut reader = reader(caller);
    let mut outcomes = Vec::new();
    loop {
        match reader.try_receive() {
            Ok(Delivery::Message { message, .. }) if message.answers().is_some() => {
                outcomes.push(None);
            }
            Ok(Delivery::Outcome(outcome)) => outcomes.push(Some(outcome.why)),
            Ok(other) => panic!("neither a reply nor an outcome: {other:?}"),
            Err(_) => return outcomes,
        }
    }
}

/// A caller whose request the callee has taken, and the callee's reader.
fn taken(bus: &Bus) -> (Endpoint, Endpoint, Sequence, Receiver) {
    let [caller, callee] = endpoints(bus);
    let request = ask(&mut lane(&caller), &callee);
    let mut at_callee = reader(&callee);
    at_callee.try_receive().expect("the request");
    (caller, callee, request, at_callee)
}

/// Given a request that was taken, when its callee replies while its caller cancels, then the
/// caller has the outcome of the one that both were told was first.
#[test]
fn a_reply_and_a_cancellation_make_one_outcome() {
    explore(|| {
        let bus = small_bus();
        let (caller, callee, request, _reader) = taken(&bus);
        let mut callees = lane(&callee);
        let replying = thread::spawn(move || reply(&mut callees, request));
        let cancelled = caller.cancel_request(request);
        let replied = replying.join().unwrap();
        match replied {
            Ok(()) => assert!(!cancelled),
            Err(error) => assert_eq!((error, cancelled), (SendError::NoSuchRequest(request), true)),
        }
        let expected = cancelled.then_some(RequestEnd::Cancelled);
        assert_eq!(outcomes(&caller), [expected]);
        assert_eq!(bus.stats().open_requests, 0);
    });
}

/// The same for its deadline.
#[test]
fn a_reply_and_a_deadline_make_one_outcome() {
    explore(|| {
        let bus = small_bus();
        let (caller, callee, request, _reader) = taken(&bus);
        let mut callees = lane(&callee);
        let replying = thread::spawn(move || reply(&mut callees, request));
        bus.tick(START + SECOND);
        let replied = replying.join().unwrap();
        let expected = replied.is_err().then_some(RequestEnd::TimedOut);
        assert_eq!(outcomes(&caller), [expected]);
        assert_eq!(bus.next_deadline(), None);
    });
}

/// The same for the end of the callee, whose last lane is still in use.
#[test]
fn g9_a_reply_and_the_close_of_its_sender_make_one_outcome() {
    explore(|| {
        let bus = small_bus();
        let (caller, callee, request, _reader) = taken(&bus);
        let mut callees = lane(&callee);
        let replying = thread::spawn(move || reply(&mut callees, request));
        drop(callee);
        let replied = replying.join().unwrap();
        let expected = replied.is_err().then_some(RequestEnd::Gone);
        assert_eq!(outcomes(&caller), [expected]);
    });
}

/// Given a request in a queue, when its reader takes it while the endpoint is closed, then its
/// caller is told, and once.
#[test]
fn g9_a_request_that_is_taken_while_its_callee_closes_is_gone() {
    explore(|| {
        let bus = small_bus();
        let [caller, callee] = endpoints(&bus);
        ask(&mut lane(&caller), &callee);
        let mut at_callee = reader(&callee);
        let reading = thread::spawn(move || drop(at_callee.try_receive()));
        drop(callee);
        reading.join().unwrap();
        assert_eq!(outcomes(&caller), [Some(RequestEnd::Gone)]);
    });
}

/// The same for a request that is sent meanwhile: it is refused, or its caller is told.
#[test]
fn g9_a_request_to_an_endpoint_that_closes_is_refused_or_gone() {
    explore(|| {
        let bus = small_bus();
        let [caller, callee] = endpoints(&bus);
        let mut callers = lane(&caller);
        let to_callee = to(&callee);
        let closing = thread::spawn(move || drop(callee));
        let kind = Kind::Request { repeatable: false };
        let asked = callers.try_send(to_callee, Draft { kind, ..Draft::from("?") });
        closing.join().unwrap();
        let expected = asked.is_ok().then_some(Some(RequestEnd::Gone));
        assert_eq!(outcomes(&caller), Vec::from_iter(expected));
        drop(callers);
        assert_eq!(bus.stats().open_requests, 0);
    });
}

/// Given a request in a queue, when its reader takes it while its caller cancels it, then the
/// reader does not get it, or is told that it is over.
#[test]
fn who_takes_a_request_that_is_cancelled_is_told_so() {
    explore(|| {
        let bus = small_bus();
        let [caller, callee] = endpoints(&bus);
        let request = ask(&mut lane(&caller), &callee);
        let mut at_callee = reader(&callee);
        let reading = thread::spawn(move || {
            let got = at_callee.try_receive().is_ok();
            (got, at_callee)
        });
        assert!(caller.cancel_request(request));
        let (got, mut at_callee) = reading.join().unwrap();
        match at_callee.try_receive() {
            Ok(Delivery::RequestEnded(ended)) => assert_eq!((ended.request, got), (request, true)),
            Err(ReceiveError::Empty) => assert!(!got, "it works for nobody"),
            other => panic!("{other:?}"),
        }
    });
}

/// Given a reader that has taken a request and sleeps, when the request is cancelled, then the
/// reader wakes.
#[test]
fn the_end_of_a_request_wakes_its_reader() {
    explore(|| {
        let bus = small_bus();
        let (caller, _callee, request, mut at_callee) = taken(&bus);
        let reading = thread::spawn(move || at_callee.receive());
        caller.cancel_request(request);
        let told = reading.join().unwrap();
        assert!(matches!(told, Ok(Delivery::RequestEnded(_))), "{told:?}");
    });
}

/// Given a request whose deadline has come, when another one with a later deadline is sent while the
/// bus looks, then that one times out too.
#[test]
fn a_deadline_that_is_set_while_the_bus_looks_is_not_lost() {
    explore(|| {
        let bus = small_bus();
        let [caller, callee] = endpoints(&bus);
        let mut callers = lane(&caller);
        ask(&mut callers, &callee);
        let looking = {
            let bus = bus.clone();
            thread::spawn(move || bus.tick(START + SECOND))
        };
        let later = u64::try_from((START + SECOND * 2).as_nanos()).expect("fits");
        ask_until(&mut callers, &callee, later);
        looking.join().unwrap();
        bus.tick(START + SECOND * 2);
        bus.tick(START + SECOND * 3);
        assert_eq!(outcomes(&caller), [Some(RequestEnd::TimedOut); 2]);
    });
}

/// Given two senders that reserve the last place for an outcome, then one is refused.
#[test]
fn g8_places_for_outcomes_are_not_promised_twice() {
    explore(|| {
        let bus = small_bus();
        let [caller, callee] = endpoints(&bus);
        let (mut one, mut two) = (lane(&caller), lane(&caller));
        let first = ask(&mut one, &callee);
        let mut at_callee = reader(&callee);
        at_callee.try_receive().expect("the request");
        let to_callee = to(&callee);
        let asks = move |lane: &mut Lane| {
            let kind = Kind::Request { repeatable: false };
            lane.try_send(to_callee, Draft { kind, ..Draft::from("?") }).is_ok()
        };
        let asking = thread::spawn(move || asks(&mut one));
        let second = asks(&mut two);
        assert!(second != asking.join().unwrap(), "there are two places, and {first} has one");
    });
}
