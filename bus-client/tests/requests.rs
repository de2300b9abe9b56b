//! Requests and replies through the library, against a real broker in this process.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use bus_client::{Bus, CallError, EmbeddedBroker, Event, Limits, Message, Outgoing, SendError};

/// Longer than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

fn broker() -> EmbeddedBroker {
    EmbeddedBroker::builder().start().unwrap()
}

fn broker_with(limits: Limits) -> EmbeddedBroker {
    EmbeddedBroker::builder().limits(limits).start().unwrap()
}

fn message(bus: &Bus) -> Message {
    match bus.receive_deadline(PATIENCE).unwrap() {
        Some(Event::Message(message)) => message,
        other => panic!("{other:?} where a message was expected"),
    }
}

fn request(bus: &Bus) -> Message {
    let message = message(bus);
    assert!(message.is_request());
    message
}

/// Answers so many requests with what they said, in capitals.
fn serve(bus: Bus, count: usize) -> thread::JoinHandle<Bus> {
    thread::spawn(move || {
        for _ in 0..count {
            let request = request(&bus);
            request.reply(request.text().unwrap().to_uppercase()).unwrap();
        }
        bus
    })
}

/// Waits until what is asked is so.
fn eventually(mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "it does not become so");
        thread::yield_now();
    }
}

#[test]
fn g9_calls_of_who_takes_no_outcomes_any_more_end() {
    let broker = broker();
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let to = callee.endpoint_id();
    let (answered, open) =
        (caller.start_call(to, "a").unwrap(), caller.start_call(to, "b").unwrap());
    request(&callee).reply("A").unwrap();
    let unanswered = request(&callee);
    caller.shutdown_receive().unwrap();
    assert_eq!(answered.wait().unwrap().text(), Some("A"), "what was queued is still told");
    assert!(matches!(open.wait().unwrap_err(), CallError::Gone));
    assert!(unanswered.reply("B").is_err());
    assert!(caller.call(to, "c").is_err(), "and asks nothing more");
}

#[test]
fn a_call_gets_its_reply_and_receive_does_not() {
    let broker = broker();
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let to = callee.endpoint_id();
    let serving = serve(callee, 3);
    for text in ["a", "b", "c"] {
        let reply = caller.call(to, text).unwrap();
        assert_eq!(reply.text(), Some(text.to_uppercase().as_str()));
        assert!(reply.answers().is_some() && !reply.is_request());
        assert_eq!(reply.sender(), to);
    }
    assert!(caller.try_receive().unwrap().is_none());
    serving.join().unwrap();
}

#[test]
fn typed_values_go_both_ways() {
    let broker = broker();
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let to = callee.endpoint_id();
    let serving = thread::spawn(move || {
        let request = request(&callee);
        assert_eq!(request.operation(), Some("Add"));
        assert!(request.deadline().is_some(), "the default deadline is told");
        let (a, b): (i32, i32) = request.decode().unwrap();
        request.reply(Outgoing::cbor(&(a + b)).unwrap()).unwrap();
    });
    let question = Outgoing::cbor(&(2, 3)).unwrap().operation("Add");
    let sum: i32 = caller.endpoint(to).call(question).unwrap().decode().unwrap();
    assert_eq!(sum, 5);
    serving.join().unwrap();
}

#[test]
fn a_refusal_is_told_with_its_message() {
    let broker = broker();
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let to = callee.endpoint_id();
    let serving = thread::spawn(move || {
        let request = request(&callee);
        request.refuse(Outgoing::text("2 is taken").operation("Taken")).unwrap();
        let again = request.reply("yes after all");
        assert!(matches!(again, Err(SendError::NoSuchRequest(_))), "{again:?}");
    });
    match caller.call(to, "2?") {
        Err(CallError::Refused(message)) => {
            assert_eq!((message.operation(), message.text()), (Some("Taken"), Some("2 is taken")));
        }
        other => panic!("{other:?}"),
    }
    serving.join().unwrap();
}

#[test]
fn calls_are_pipelined_and_answered_in_any_order() {
    const CALLS: usize = 40;
    let broker = broker();
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let to = caller.endpoint(callee.endpoint_id());
    let calls: Vec<_> = (0..CALLS).map(|n| to.start_call(n.to_string()).unwrap()).collect();
    let mut requests: Vec<_> = (0..CALLS).map(|_| request(&callee)).collect();
    requests.reverse();
    let replies: Vec<_> = requests
        .iter()
        .map(|request| request.start_reply(format!("re {}", request.text().unwrap())).unwrap())
        .collect();
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.wait().unwrap().text(), Some(format!("re {n}").as_str()));
    }
    for reply in replies {
        reply.wait().unwrap();
    }
}

#[test]
fn replies_and_signals_of_a_service_keep_their_order() {
    let broker = broker();
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let signals = caller.join("signals").unwrap();
    let (to, name) = (callee.endpoint_id(), signals.name().to_string());
    let serving = thread::spawn(move || {
        let group = callee.group(&name).unwrap();
        let request = request(&callee);
        group.send("before").unwrap();
        request.reply("reply").unwrap();
        group.send("after").unwrap();
    });
    let reply = caller.call(to, "?").unwrap();
    let [before, after] = [0; 2].map(|_| message(&caller));
    assert_eq!((before.text(), after.text()), (Some("before"), Some("after")));
    assert!(before.sequence() < reply.sequence() && reply.sequence() < after.sequence());
    serving.join().unwrap();
}

#[test]
fn a_dropped_request_is_gone_for_its_caller() {
    let broker = broker();
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let call = caller.start_call(callee.endpoint_id(), "?").unwrap();
    drop(request(&callee));
    assert!(matches!(call.wait(), Err(CallError::Gone)));
}

#[test]
fn g9_a_callee_that_closes_is_gone() {
    let broker = broker();
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let taken = caller.start_call(callee.endpoint_id(), "taken").unwrap();
    let request = request(&callee);
    let queued = caller.start_call(callee.endpoint_id(), "queued").unwrap();
    eventually(|| caller.stats().unwrap().open_requests == 2);
    callee.close();
    assert!(matches!(taken.wait(), Err(CallError::Gone)));
    assert!(matches!(queued.wait(), Err(CallError::Gone)));
    let late = request.reply("late");
    assert!(matches!(late, Err(SendError::BrokerGone(_))), "{late:?}");
    let nobody = caller.call(callee.endpoint_id(), "?");
    assert!(matches!(nobody, Err(CallError::Send(SendError::NoSuchEndpoint(_)))), "{nobody:?}");
}

#[test]
fn a_call_times_out_and_who_was_asked_is_told() {
    let broker = broker();
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let question = Outgoing::text("?").timeout(Duration::from_millis(20));
    let call = caller.start_call(callee.endpoint_id(), question).unwrap();
    let request = request(&callee);
    assert!(matches!(call.wait(), Err(CallError::TimedOut)));
    eventually(|| {
        callee.dispatch().unwrap();
        matches!(request.ended(), Some(CallError::TimedOut))
    });
    let late = request.reply("late");
    assert!(matches!(late, Err(SendError::NoSuchRequest(_))), "{late:?}");
}

#[test]
fn a_pending_call_that_is_dropped_is_cancelled() {
    // One thread reads all that has come before it writes anything.
    let broker = EmbeddedBroker::builder().threads(NonZeroUsize::MIN).start().unwrap();
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let call = caller.start_call(callee.endpoint_id(), "?").unwrap();
    let request = request(&callee);
    drop(call);
    eventually(|| {
        caller.dispatch().unwrap();
        callee.dispatch().unwrap();
        matches!(request.ended(), Some(CallError::Cancelled))
    });
    drop(request);

    // One that nobody has taken is not delivered. Both leave at once, or the broker may be faster.
    let cork = caller.cork();
    let call = caller.start_call(callee.endpoint_id(), "never read").unwrap();
    call.cancel();
    assert!(matches!(call.wait(), Err(CallError::Cancelled)));
    drop(cork);
    caller.endpoint(callee.endpoint_id()).send("next").unwrap();
    assert_eq!(message(&callee).text(), Some("next"));
}

#[test]
fn g8_calls_are_bounded_and_places_come_back() {
    let broker = broker_with(Limits { requests: 4, ..Limits::default() });
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let to = caller.endpoint(callee.endpoint_id());
    for _ in 0..3 {
        let calls: Vec<_> = (0..4).map(|_| to.start_call("?").unwrap()).collect();
        match to.call("one too many") {
            Err(CallError::Send(SendError::LimitExceeded(_))) => {}
            other => panic!("{other:?}"),
        }
        for _ in 0..4 {
            request(&callee).reply("!").unwrap();
        }
        for call in calls {
            assert_eq!(call.wait().unwrap().text(), Some("!"));
        }
        // Places of replies come back with credit.
        eventually(|| caller.ping().is_ok() && callee.ping().is_ok());
    }
}

#[test]
fn replies_reach_a_caller_whose_queue_is_full() {
    let limits = Limits { queue_messages: 2, ..Limits::default() };
    let broker = broker_with(limits);
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let to = caller.endpoint(callee.endpoint_id());
    let calls: Vec<_> = (0..2).map(|_| to.start_call("?").unwrap()).collect();
    let requests: Vec<_> = calls.iter().map(|_| request(&callee)).collect();
    let back = callee.endpoint(caller.endpoint_id());
    while back.try_send("fill").is_ok() {}
    for request in requests {
        request.reply("!").unwrap();
    }
    for mut call in calls {
        // Without reading anything: no thread waits, so nothing goes to the backlog.
        let mut reply = None;
        eventually(|| {
            reply = call.try_wait();
            reply.is_some()
        });
        assert_eq!(reply.unwrap().unwrap().text(), Some("!"));
    }
}

#[test]
fn long_replies_pass_through_small_queues_to_callers_that_do_not_read() {
    const LONG: usize = 100_000;
    let limits = Limits { queue_messages: 4, queue_bytes: 10_000, ..Limits::default() };
    let broker = broker_with(limits);
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let (to, back) = (callee.endpoint_id(), caller.endpoint_id());
    let serving = thread::spawn(move || {
        for _ in 0..20 {
            let request = request(&callee);
            callee.endpoint(back).send("x".repeat(9_000)).unwrap();
            request.reply("y".repeat(LONG)).unwrap();
        }
    });
    for _ in 0..20 {
        assert_eq!(caller.call(to, "?").unwrap().payload().len(), LONG);
    }
    serving.join().unwrap();
    for _ in 0..20 {
        assert_eq!(message(&caller).payload().len(), 9_000);
    }
}

#[test]
fn a_call_is_a_future_and_dropping_it_cancels() {
    let broker = broker();
    let [caller, callee] = [0; 2].map(|_| broker.connect().unwrap());
    let mut context = Context::from_waker(Waker::noop());
    let mut call = pin!(caller.call_async(callee.endpoint_id(), "?"));
    assert!(call.as_mut().poll(&mut context).is_pending());
    let asked = request(&callee);
    let mut reply = pin!(asked.reply_async("!"));
    eventually(|| {
        callee.dispatch().unwrap();
        reply.as_mut().poll(&mut context).is_ready()
    });
    let mut answer = None;
    eventually(|| {
        caller.dispatch().unwrap();
        match call.as_mut().poll(&mut context) {
            Poll::Ready(outcome) => answer = Some(outcome),
            Poll::Pending => return false,
        }
        true
    });
    assert_eq!(answer.unwrap().unwrap().text(), Some("!"));

    let mut dropped = Box::pin(caller.call_async(callee.endpoint_id(), "?"));
    assert!(dropped.as_mut().poll(&mut context).is_pending());
    let asked = request(&callee);
    drop(dropped);
    eventually(|| {
        caller.dispatch().unwrap();
        callee.dispatch().unwrap();
        asked.ended().is_some()
    });
}

#[test]
fn a_message_that_is_no_request_cannot_be_answered() {
    let broker = broker();
    let [one, other] = [0; 2].map(|_| broker.connect().unwrap());
    one.endpoint(other.endpoint_id()).send("hello").unwrap();
    let hello = message(&other);
    assert!(matches!(hello.reply("?"), Err(SendError::NoSuchRequest(_))));
}

#[test]
fn two_programs_that_call_each_other_at_once_go_on() {
    const CALLS: usize = 200;
    let broker = broker();
    let programs = [0; 2].map(|_| {
        let bus = broker.connect().unwrap();
        let serving = bus.open_endpoint().unwrap();
        (bus, serving)
    });
    let addresses = [&programs[1], &programs[0]].map(|(_, serving)| serving.endpoint_id());
    thread::scope(|scope| {
        for ((bus, serving), to) in programs.iter().zip(addresses) {
            scope.spawn(move || {
                for _ in 0..CALLS {
                    match serving.receive().unwrap() {
                        Event::Message(request) => drop(request.reply("!").unwrap()),
                        other => panic!("{other:?}"),
                    }
                }
            });
            scope.spawn(move || {
                for _ in 0..CALLS {
                    assert_eq!(bus.call(to, "?").unwrap().text(), Some("!"));
                }
            });
        }
    });
}
