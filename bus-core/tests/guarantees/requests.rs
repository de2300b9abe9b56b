//! Requests: exactly one outcome for each, deliverable whatever the caller's queue holds.

use std::time::Duration;

use bus_core::{
    Delivery, Destination, Draft, Kind, Limits, Outcome, ReceiveError, RequestEnd, SendError,
    Sequence, Submitted,
};

use crate::given::{Party, Wakes, assert_rising, bus, bus_with, outcome, text};

const ASK: Kind = Kind::Request { repeatable: false };

fn ask(text: &str) -> Draft {
    Draft { kind: ASK, ..Draft::from(text) }
}

fn sent_by(party: &mut Party, to: Destination, draft: Draft) -> Result<Sequence, SendError> {
    party.lane.try_send(to, draft).map(|receipt| receipt.sequence)
}

/// Asks, and gives the request's sequence.
fn request(caller: &mut Party, to: Destination, text: &str) -> Sequence {
    sent_by(caller, to, ask(text)).unwrap()
}

fn reply(callee: &mut Party, request: Sequence, text: &str) -> Result<Sequence, SendError> {
    sent_by(callee, Destination::Caller(request), text.into())
}

/// The outcome of the bus that comes next.
fn take_outcome(caller: &mut Party) -> (Sequence, RequestEnd) {
    match caller.reader.try_receive() {
        Ok(Delivery::Outcome(Outcome { request, why, .. })) => (request, why),
        other => panic!("an outcome was expected, not {other:?}"),
    }
}

/// Takes a request as it comes.
fn take_request(callee: &mut Party) -> Sequence {
    let message = callee.take_message();
    assert!(message.is_request());
    message.sequence()
}

fn nothing_left(party: &mut Party) {
    assert_eq!(party.reader.try_receive().unwrap_err(), ReceiveError::Empty);
}

#[test]
fn a_reply_answers_its_request_in_the_order_of_all_messages() {
    let bus = bus(8);
    let (mut caller, mut callee) = (Party::on(&bus), Party::on(&bus));
    let asked = request(&mut caller, callee.here(), "how much?");
    assert_eq!(bus.stats().open_requests, 1);
    let to_caller = caller.here();
    callee.send(to_caller, "before");
    let got = take_request(&mut callee);
    assert_eq!(got, asked, "a request is named by its sequence");
    let replied = reply(&mut callee, got, "42").unwrap();
    callee.send(to_caller, "after");

    assert_eq!(caller.take(), "before");
    let answer = caller.take_message();
    assert_eq!((text(&answer).as_str(), answer.answers()), ("42", Some(asked)));
    assert!(!answer.is_request() && !answer.is_refusal());
    assert_eq!(answer.sequence(), replied);
    assert_eq!(caller.take(), "after");
    assert_rising(&[asked, replied]);
    assert_eq!(bus.stats().open_requests, 0);
    nothing_left(&mut caller);
}

#[test]
fn a_second_reply_and_the_reply_of_a_stranger_are_refused() {
    let bus = bus(8);
    let (mut caller, mut callee, mut stranger) =
        (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let asked = request(&mut caller, callee.here(), "who?");
    let unknown = Err(SendError::NoSuchRequest(asked));
    assert_eq!(reply(&mut callee, asked, "not taken yet"), unknown);
    take_request(&mut callee);
    assert_eq!(reply(&mut stranger, asked, "I"), unknown);
    assert_eq!(reply(&mut caller, asked, "I myself"), unknown);
    reply(&mut callee, asked, "me").unwrap();
    assert_eq!(reply(&mut callee, asked, "me again"), unknown);
    let never = Sequence::from_raw(7);
    assert_eq!(reply(&mut callee, never, "?"), Err(SendError::NoSuchRequest(never)));
    assert_eq!(caller.take_all(), ["me"]);
}

#[test]
fn a_refusal_is_a_reply_that_says_so() {
    let bus = bus(8);
    let (mut caller, mut callee) = (Party::on(&bus), Party::on(&bus));
    let asked = request(&mut caller, callee.here(), "may I?");
    take_request(&mut callee);
    let no = Draft { kind: Kind::Refusal, ..Draft::from("no") };
    sent_by(&mut callee, Destination::Caller(asked), no).unwrap();
    let answer = caller.take_message();
    assert!(answer.is_refusal());
    assert_eq!(answer.answers(), Some(asked));
}

#[test]
fn what_is_no_question_to_one_endpoint_is_refused() {
    let bus = bus(8);
    let (mut caller, callee) = (Party::on(&bus), Party::on(&bus));
    let group = Destination::Group(callee.join("g"));
    assert_eq!(sent_by(&mut caller, group, ask("all?")), Err(SendError::WrongKind));
    let no = Draft { kind: Kind::Refusal, ..Draft::from("no") };
    assert_eq!(sent_by(&mut caller, callee.here(), no), Err(SendError::WrongKind));
    let nobody = Destination::Endpoint(bus_core::EndpointId::from_raw(99));
    let refused = sent_by(&mut caller, nobody, ask("there?"));
    assert!(matches!(refused, Err(SendError::NoSuchEndpoint(_))), "{refused:?}");
    assert_eq!(bus.stats().open_requests, 0);
}

#[test]
fn g8_requests_are_bounded_and_outcomes_find_a_place_in_a_full_queue() {
    let bus = bus_with(Limits { queue_messages: 2, requests: 3, ..Limits::default() });
    let (mut caller, mut callee, mut other) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let mut asked = Vec::new();
    for _ in 0..3 {
        asked.push(request(&mut caller, callee.here(), "?"));
        take_request(&mut callee);
    }
    let refused = sent_by(&mut caller, callee.here(), ask("one more"));
    assert!(matches!(refused, Err(SendError::RequestLimit(_))), "{refused:?}");

    let to_caller = caller.here();
    other.send(to_caller, "one");
    other.send(to_caller, "two");
    assert!(other.try_send(to_caller, "three").is_err(), "the queue is full");
    for request in &asked {
        reply(&mut callee, *request, "!").unwrap();
    }
    let refused = sent_by(&mut caller, callee.here(), ask("the outcomes are unread"));
    assert!(matches!(refused, Err(SendError::RequestLimit(_))), "{refused:?}");
    assert_eq!(caller.take(), "one");
    request(&mut caller, callee.here(), "a place is free again");
    assert_eq!(caller.take_all(), ["two", "!", "!", "!"]);
}

#[test]
fn g8_unread_outcomes_of_the_bus_keep_their_places_too() {
    let bus = bus_with(Limits { queue_messages: 2, requests: 2, ..Limits::default() });
    let (mut caller, mut callee) = (Party::on(&bus), Party::on(&bus));
    for _ in 0..2 {
        let asked = request(&mut caller, callee.here(), "?");
        take_request(&mut callee);
        assert!(callee.endpoint.decline_request(asked));
        assert!(!callee.endpoint.decline_request(asked));
    }
    let refused = sent_by(&mut caller, callee.here(), ask("?"));
    assert!(matches!(refused, Err(SendError::RequestLimit(_))), "{refused:?}");
    assert_eq!(take_outcome(&mut caller).1, RequestEnd::Gone);
    request(&mut caller, callee.here(), "?");
}

#[test]
fn g8_a_long_reply_waits_for_room_and_a_short_one_does_not() {
    let limits = Limits { queue_messages: 1, reply_bytes: 4, ..Limits::default() };
    let bus = bus_with(limits);
    let (mut caller, mut callee) = (Party::on(&bus), Party::on(&bus));
    let first = request(&mut caller, callee.here(), "?");
    take_request(&mut callee);
    let second = request(&mut caller, callee.here(), "?");
    take_request(&mut callee);
    let third = request(&mut caller, callee.here(), "?");
    take_request(&mut callee);
    let to_caller = caller.here();
    callee.send(to_caller, "full");
    let refused = reply(&mut callee, first, "12345");
    assert!(matches!(refused, Err(SendError::WouldBlock { .. })), "{refused:?}");
    let wakes = callee.wait(Destination::Caller(first), "12345");
    let mut lane = callee.endpoint.lane().unwrap();
    lane.try_send(Destination::Caller(second), "1234").unwrap();

    assert_eq!(caller.take_all(), ["full", "1234", "12345"]);
    assert_eq!(wakes.count(), 1);
    assert!(outcome(&mut callee.lane).is_ok());

    // One whose request ends meanwhile is refused.
    callee.send(to_caller, "full");
    callee.wait(Destination::Caller(third), "12345");
    assert!(caller.endpoint.cancel_request(third));
    assert_eq!(outcome(&mut callee.lane), Err(SendError::NoSuchRequest(third)));
    assert_eq!(caller.take(), "full");
    assert_eq!(take_outcome(&mut caller), (third, RequestEnd::Cancelled));
}

#[test]
fn a_cancelled_request_is_over_for_both_sides() {
    let bus = bus(8);
    let (mut caller, mut callee) = (Party::on(&bus), Party::on(&bus));
    let taken = request(&mut caller, callee.here(), "taken");
    let queued = request(&mut caller, callee.here(), "queued");
    take_request(&mut callee);
    for asked in [taken, queued] {
        assert!(caller.endpoint.cancel_request(asked));
        assert!(!caller.endpoint.cancel_request(asked), "it has its outcome");
        assert_eq!(take_outcome(&mut caller), (asked, RequestEnd::Cancelled));
    }
    assert!(!callee.endpoint.cancel_request(taken), "only its caller cancels it");
    match callee.reader.try_receive() {
        Ok(Delivery::RequestEnded(ended)) => {
            assert_eq!((ended.request, ended.why), (taken, RequestEnd::Cancelled));
        }
        other => panic!("the end of what it has taken was expected, not {other:?}"),
    }
    nothing_left(&mut callee);
    assert_eq!(reply(&mut callee, taken, "late"), Err(SendError::NoSuchRequest(taken)));
    nothing_left(&mut caller);
}

#[test]
fn the_end_of_a_request_wakes_the_callee_once() {
    let bus = bus(8);
    let (mut caller, mut callee) = (Party::on(&bus), Party::on(&bus));
    let asked = request(&mut caller, callee.here(), "?");
    // As a transport reads: the place stays taken, which keeps no end back.
    assert!(matches!(callee.reader.drain(), Some(Delivery::Message { .. })));
    let wakes = Wakes::new();
    assert!(callee.reader.sleep(wakes.waker()));
    caller.endpoint.cancel_request(asked);
    assert_eq!(wakes.count(), 1);
    assert!(!callee.reader.sleep(wakes.waker()), "there is something to read");
    assert!(matches!(callee.reader.drain(), Some(Delivery::RequestEnded(_))));
    assert!(callee.reader.sleep(wakes.waker()));
}

#[test]
fn a_request_times_out_by_the_buss_own_time() {
    let limits = Limits { request_deadline: Duration::from_secs(2), ..Limits::default() };
    let bus = bus_with(limits);
    let start = Duration::from_secs(1_700_000_000);
    bus.tick(start);
    let (mut caller, mut callee) = (Party::on(&bus), Party::on(&bus));
    assert_eq!(bus.next_deadline(), None);
    let by_default = request(&mut caller, callee.here(), "by default");
    assert_eq!(bus.next_deadline(), Some(Duration::from_secs(2)));
    let deadline = u64::try_from((start + Duration::from_millis(500)).as_nanos()).unwrap();
    let draft = Draft { deadline, ..ask("soon") };
    let soon = sent_by(&mut caller, callee.here(), draft).unwrap();
    assert_eq!(bus.next_deadline(), Some(Duration::from_millis(500)));
    assert_ne!(callee.take_message().deadline(), 0, "it is told by when");

    bus.tick(start + Duration::from_millis(499));
    nothing_left(&mut caller);
    bus.tick(start + Duration::from_millis(500));
    assert_eq!(take_outcome(&mut caller), (soon, RequestEnd::TimedOut));
    nothing_left(&mut callee);
    assert_eq!(bus.next_deadline(), Some(Duration::from_millis(1_500)));
    // A machine that slept for an hour has run for a second.
    bus.tick(start + Duration::from_secs(3_600));
    nothing_left(&mut caller);
    bus.tick(start + Duration::from_secs(3_601));
    assert_eq!(take_outcome(&mut caller), (by_default, RequestEnd::TimedOut));
    assert_eq!(bus.next_deadline(), None);
    assert!(matches!(callee.reader.try_receive(), Ok(Delivery::RequestEnded(_))));
    let late = Draft { deadline, ..ask("too late") };
    assert_eq!(sent_by(&mut caller, callee.here(), late), Err(SendError::DeadlinePassed));
}

#[test]
fn a_request_that_waits_for_room_until_its_deadline_reaches_nobody() {
    let limits =
        Limits { queue_messages: 1, request_deadline: Duration::from_secs(1), ..Limits::default() };
    let bus = bus_with(limits);
    bus.tick(Duration::from_secs(100));
    let (mut caller, mut callee) = (Party::on(&bus), Party::on(&bus));
    caller.send(callee.here(), "full");
    let wakes = Wakes::new();
    let submitted = caller.lane.submit(callee.here(), ask("waits"), wakes.waker());
    assert_eq!(submitted, Ok(Submitted::Waiting));
    bus.tick(Duration::from_secs(101));
    assert_eq!(outcome(&mut caller.lane), Err(SendError::DeadlinePassed));
    assert_eq!(callee.take_all(), ["full"]);
    assert_eq!(bus.stats().open_requests, 0);
}

#[test]
fn an_expired_request_is_not_delivered_and_gives_its_place_back() {
    let limits =
        Limits { queue_messages: 1, request_deadline: Duration::from_secs(1), ..Limits::default() };
    let bus = bus_with(limits);
    bus.tick(Duration::from_secs(100));
    let (mut caller, mut callee) = (Party::on(&bus), Party::on(&bus));
    let asked = request(&mut caller, callee.here(), "?");
    bus.tick(Duration::from_secs(101));
    let wakes = caller.wait(callee.here(), "next");
    assert!(callee.reader.drain().is_some_and(|delivery| match delivery {
        Delivery::Message { message, .. } => text(&message) == "next",
        _ => false,
    }));
    assert_eq!(wakes.count(), 1);
    assert_eq!(take_outcome(&mut caller), (asked, RequestEnd::TimedOut));
    callee.reader.release(1, 4).unwrap();
    assert!(callee.reader.release(1, 0).is_err(), "the dropped request's place is free already");
}

#[test]
fn g9_what_a_closed_endpoint_was_asked_is_gone() {
    let bus = bus(8);
    let (mut caller, mut callee) = (Party::on(&bus), Party::on(&bus));
    let taken = request(&mut caller, callee.here(), "taken");
    let queued = request(&mut caller, callee.here(), "queued");
    take_request(&mut callee);
    drop(callee);
    let mut outcomes = [take_outcome(&mut caller), take_outcome(&mut caller)];
    outcomes.sort_unstable_by_key(|(request, _)| *request);
    assert_eq!(outcomes, [(taken, RequestEnd::Gone), (queued, RequestEnd::Gone)]);
    nothing_left(&mut caller);
}

#[test]
fn g9_a_reader_that_outlives_its_endpoint_gets_no_request() {
    let bus = bus(8);
    let (mut caller, callee) = (Party::on(&bus), Party::on(&bus));
    let asked = request(&mut caller, callee.here(), "?");
    let Party { endpoint, mut reader, .. } = callee;
    drop(endpoint);
    nothing_left(&mut caller);
    assert_eq!(reader.try_receive().unwrap_err(), ReceiveError::Ended);
    assert_eq!(take_outcome(&mut caller), (asked, RequestEnd::Gone));
}

#[test]
fn g9_who_was_asked_learns_that_its_caller_has_gone() {
    let bus = bus(8);
    let (mut caller, mut callee) = (Party::on(&bus), Party::on(&bus));
    let taken = request(&mut caller, callee.here(), "taken");
    request(&mut caller, callee.here(), "queued");
    take_request(&mut callee);
    drop(caller);
    assert!(matches!(callee.reader.try_receive(), Ok(Delivery::RequestEnded(_))));
    nothing_left(&mut callee);
    assert_eq!(reply(&mut callee, taken, "!"), Err(SendError::NoSuchRequest(taken)));
    assert_eq!((bus.stats().open_requests, bus.next_deadline()), (0, None));
}

#[test]
fn g9_shutdown_receive_ends_the_requests_of_an_endpoint_without_outcomes() {
    let bus = bus(8);
    let (mut caller, mut callee) = (Party::on(&bus), Party::on(&bus));
    let asked = request(&mut caller, callee.here(), "?");
    take_request(&mut callee);
    caller.endpoint.shutdown_receive();
    assert_eq!(reply(&mut callee, asked, "!"), Err(SendError::NoSuchRequest(asked)));
    let refused = sent_by(&mut caller, callee.here(), ask("?"));
    assert_eq!(refused, Err(SendError::ReceiveShut(caller.id())));
    assert_eq!(bus.stats().open_requests, 0);
}

#[test]
fn an_endpoint_may_ask_itself() {
    let bus = bus(2);
    let mut one = Party::on(&bus);
    let here = one.here();
    let asked = request(&mut one, here, "?");
    take_request(&mut one);
    reply(&mut one, asked, "!").unwrap();
    assert_eq!(one.take_message().answers(), Some(asked));
    let asked = request(&mut one, here, "?");
    take_request(&mut one);
    let Party { endpoint, .. } = one;
    drop(endpoint);
    assert_eq!(bus.stats().open_requests, 0, "{asked}");
}
