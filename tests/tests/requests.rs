//! Requests between processes: one outcome for each, whatever dies and whoever does not read.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::thread;

use bus_client::{Bus, Event};
use bus_core::wire::{
    BrokerFrame, Failure, FailureCode, Handle, Notice, OutcomeCode, Request, Response, Role,
    SendFlags,
};
use bus_core::{Destination, Sequence};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::broker::Broker;
use tests::process::Process;
use tests::raw::RawClient;
use tests::transports::run_by_each;

/// A started `serve --json` for this command, and its endpoint.
fn serve(broker: &Broker, line: &str, command: &[&str]) -> (Process, u64) {
    let mut launch = broker.unisono("serve --json").line(line).arg("--");
    for word in command {
        launch = launch.arg(word);
    }
    let server = launch.start();
    let serving = server.json();
    (server, serving["endpoint"].as_u64().unwrap())
}

/// Asks, and gives the request's sequence.
fn ask(caller: &mut RawClient, to: Destination) -> Result<Sequence, Box<Failure>> {
    let serial = caller.post_with(to, b"?", SendFlags::REQUEST);
    caller.outcome(serial).map(|receipt| receipt.sequence)
}

/// The next request that comes.
fn take_request(callee: &mut RawClient) -> Sequence {
    callee.hear_that(|frame| match frame {
        BrokerFrame::Message(message) => {
            assert_eq!(message.head.role, Role::Request { first: None });
            Some(message.head.sequence)
        }
        _ => None,
    })
}

/// The outcomes of so many requests: none for a reply.
fn outcomes(caller: &mut RawClient, count: usize) -> Vec<(Sequence, Option<OutcomeCode>)> {
    let outcome = |frame: &BrokerFrame| match frame {
        BrokerFrame::Message(message) => match message.head.role {
            Role::Reply { request, .. } => Some((request, None)),
            _ => None,
        },
        BrokerFrame::Notice { notice: Notice::Outcome { request, why, .. }, .. } => {
            Some((*request, Some(why.clone())))
        }
        _ => None,
    };
    (0..count).map(|_| caller.hear_that(outcome)).collect()
}

fn payload(line: &Value) -> &str {
    line["payload"].as_str().unwrap()
}

#[test]
fn a_command_answers_a_call() {
    let broker = Broker::start();
    let (server, endpoint) = serve(&broker, "-n 2", &["tr", "a-z", "A-Z"]);
    let plain = broker.unisono(&format!("call {endpoint} Shout hello")).run().with(0);
    assert_eq!(plain.output, "HELLO\n");
    let json = broker.unisono(&format!("request {endpoint} Shout --json again")).run().with(0);
    let reply = &json.json_lines()[0];
    assert_eq!((payload(reply), reply["sender"].as_u64()), ("AGAIN", Some(endpoint)));
    let outcomes = server.end().with(0).json_lines();
    assert_eq!(outcomes.len(), 2);
    assert!(outcomes.iter().all(|line| line["outcome"] == "replied"), "{outcomes:?}");
}

#[test]
fn a_command_that_fails_is_a_refusal_and_others_go_on() {
    let broker = Broker::start();
    let command = ["sh", "-c", "read -r x; echo \"$UNISONO_OPERATION of $x\"; test \"$x\" = ok"];
    let (server, endpoint) = serve(&broker, "--operation Test", &command);
    let failed = broker.unisono(&format!("call {endpoint} Test bad")).run().with(1);
    assert!(failed.errors.contains("Test of bad"), "{}", failed.errors);
    let other = broker.unisono(&format!("call {endpoint} Unheard ok")).run().with(1);
    assert!(other.errors.contains("only Test is served"), "{}", other.errors);
    let good = broker.unisono(&format!("call {endpoint} Test ok")).run().with(0);
    assert_eq!(good.output, "Test of ok\\n\n", "a line without its own end");
    let _ = server.end_by(Signal::SIGTERM).with(0);
}

#[test]
fn g9_a_callee_that_is_killed_while_it_works_is_gone() {
    let broker = Broker::start();
    // The command kills its server, and has no time to answer.
    let (server, endpoint) = serve(&broker, "", &["sh", "-c", "kill -9 $PPID"]);
    let call = broker.unisono(&format!("call {endpoint} Do it")).run().with(1);
    assert!(call.errors.contains("has gone without an answer"), "{}", call.errors);
    let _ = server.end().killed_by(Signal::SIGKILL);
    let nobody = broker.unisono(&format!("call {endpoint} Do it")).run().with(1);
    assert!(nobody.errors.contains(&format!("no endpoint {endpoint}")), "{}", nobody.errors);
}

/// dbus-native#137 and #378, pacemaker#720: calls that never end.
#[test]
fn a_deadline_ends_a_call_on_a_bus_where_nothing_else_happens() {
    let broker = Broker::start();
    let mut silent = broker.raw();
    let endpoint = silent.endpoint();
    let call = broker.unisono(&format!("call {endpoint} Wait x -t 50ms")).run().with(3);
    assert!(call.errors.contains("timed out"), "{}", call.errors);
    let asked = take_request(&mut silent);
    let (request, why) = silent.hear_that(|frame| match frame {
        BrokerFrame::Notice { notice: Notice::RequestEnded { request, why }, .. } => {
            Some((*request, why.clone()))
        }
        _ => None,
    });
    // The call's process ends with its call, so it may be the end that is told.
    assert_eq!(request, asked);
    assert!([OutcomeCode::TimedOut, OutcomeCode::Gone].contains(&why), "{why}");
    assert_eq!(silent.stats().open_requests, 0);
}

#[test]
fn g8_64_requests_wait_and_all_are_told_in_a_queue_that_is_full() {
    let broker = Broker::start();
    let (mut caller, mut callee, mut other) = (broker.raw(), broker.raw(), broker.raw());
    let to = callee.address();
    let asked: Vec<_> = (0..64).map(|_| ask(&mut caller, to).unwrap()).collect();
    let refused = ask(&mut caller, to).unwrap_err();
    assert_eq!(refused.code, FailureCode::LimitExceeded);
    assert_eq!((refused.limit.as_deref(), refused.limit_value), (Some("requests"), Some(64)));
    // Nothing of it is taken: no credit goes back.
    let full = caller.address();
    let mut sent = 0;
    while other.post_with(full, b"x", SendFlags::NONBLOCK).get() != 0 {
        let serial = other.post_with(full, b"x", SendFlags::NONBLOCK | SendFlags::INDEPENDENT);
        sent += 1;
        if other.outcome(serial).is_err() {
            break;
        }
    }
    assert!(sent >= 128, "{sent}");
    for request in &asked[..32] {
        assert_eq!(take_request(&mut callee), *request);
        let serial = callee.post(Destination::Caller(*request), b"!");
        callee.outcome(serial).unwrap();
    }
    drop(callee);
    let mut told = outcomes(&mut caller, 64);
    told.sort_unstable_by_key(|(request, _)| *request);
    let gone = |n: usize| (n >= 32).then_some(OutcomeCode::Gone);
    let expected: Vec<_> =
        asked.iter().enumerate().map(|(n, request)| (*request, gone(n))).collect();
    assert_eq!(told, expected);
    caller.ping();
}

#[test]
fn replies_that_nobody_waits_for_are_refused_and_harm_nobody() {
    let broker = Broker::start();
    let (mut caller, mut callee) = (broker.raw(), broker.raw());
    let to = callee.address();
    let request = ask(&mut caller, to).unwrap();
    assert_eq!(take_request(&mut callee), request);
    let replies: Vec<_> =
        (0..64).map(|_| callee.post(Destination::Caller(request), b"!")).collect();
    let taken = replies.into_iter().filter(|serial| match callee.outcome(*serial) {
        Ok(_) => true,
        Err(failure) => {
            assert_eq!(failure.code, FailureCode::NoSuchRequest);
            false
        }
    });
    assert_eq!(taken.count(), 1);
    assert_eq!(outcomes(&mut caller, 1), [(request, None)]);
    for number in 0..1_000 {
        let unknown = Destination::Caller(Sequence::from_raw(number));
        let serial = callee.post(unknown, b"!");
        assert_eq!(callee.outcome(serial).unwrap_err().code, FailureCode::NoSuchRequest);
    }
    for request_of_another in [request, Sequence::from_raw(1)] {
        let cancelled = callee.call(Request::CancelRequest { request: request_of_another });
        assert_eq!(cancelled, Ok(Response::RequestEnded { ended: false }));
    }
    caller.ping();
    assert_eq!(caller.stats().protocol_errors, 0);
}

#[test]
fn an_endpoint_that_is_closed_leaves_its_connections_others_alone() {
    let broker = Broker::start();
    let (mut caller, mut callee) = (broker.raw(), broker.raw());
    let second = Handle::from_raw(5);
    let closing = callee.open(second).unwrap();
    let to_closing = ask(&mut caller, Destination::Endpoint(closing)).unwrap();
    let to = callee.address();
    let to_first = ask(&mut caller, to).unwrap();
    callee.call_as(second, Request::CloseEndpoint).unwrap();
    assert_eq!(outcomes(&mut caller, 1), [(to_closing, Some(OutcomeCode::Gone))]);
    let serial = callee.post(Destination::Caller(to_first), b"!");
    // It has been delivered meanwhile.
    callee.outcome(serial).unwrap();
    assert_eq!(outcomes(&mut caller, 1), [(to_first, None)]);
}

/// The first worker to be asked kills its server and itself; the request is then the other one's.
#[test]
fn a_repeatable_call_is_given_to_another_worker_when_the_first_dies() {
    let broker = Broker::start();
    let marker = broker.file_with("marker", String::new());
    let marker = marker.to_str().unwrap().to_owned();
    // Who finds the marker takes it, and dies with its server; the other one answers.
    let script = format!("rm {marker} 2>/dev/null && kill -9 $PPID; echo done by $$");
    let serve = || {
        let launch = broker.unisono("serve org.example.Work --shared --json").arg("--");
        let server = launch.arg("sh").arg("-c").arg(&script).start();
        server.json();
        server
    };
    let mut servers = [serve(), serve()];
    let call = broker.unisono("call org.example.Work Do it --repeatable").run().with(0);
    assert!(call.output.starts_with("done by "), "{}", call.output);
    let alive = servers.iter_mut().filter_map(|server| server.runs().then_some(())).count();
    assert_eq!(alive, 1);
    // Without being repeatable it is gone.
    std::fs::write(&marker, "").unwrap();
    let _second = serve();
    let gone = broker.unisono("call org.example.Work Do it").run().with(1);
    assert!(gone.errors.contains("has gone without an answer"), "{}", gone.errors);
}

/// Commands that end only when they are told to: so many run as `--jobs` says, and no more.
#[test]
fn g8_serve_runs_at_most_so_many_jobs_and_the_rest_waits_in_the_queue() {
    let broker = Broker::start();
    let gate = broker.file_with("started", String::new());
    let (started, end) = (gate.to_str().unwrap().to_owned(), format!("{}.end", gate.display()));
    let script =
        format!("echo x >> {started}; until test -e {end}; do sleep 0.01; done; printf done");
    let (server, endpoint) = serve(&broker, "--jobs 3", &["sh", "-c", &script]);
    let calls: Vec<_> =
        (0..8).map(|_| broker.unisono(&format!("call {endpoint} Wait x -t 60s")).start()).collect();
    broker.until("all are asked", |stats| stats.open_requests == 8);
    let count = || std::fs::read_to_string(&started).unwrap().lines().count();
    tests::deadline::eventually("three run", || match count() {
        3 => Ok(()),
        other => Err(format!("{other}")),
    });
    // The server has seen all of them by now, or will start no more than that.
    let probe = broker.unisono(&format!("call {endpoint} Wait x -t 300ms")).run().with(3);
    assert!(probe.errors.contains("timed out"), "{}", probe.errors);
    assert_eq!(count(), 3);
    std::fs::write(&end, "").unwrap();
    for call in calls {
        assert_eq!(call.end().with(0).output, "done\n");
    }
    assert_eq!(count(), 8, "each was run once");
    let _ = server.end_by(Signal::SIGTERM).with(0);
}

#[test]
fn two_hundred_callers_get_their_own_replies() {
    const CALLERS: usize = 200;
    const CALLS: usize = 5;
    let broker = Broker::start();
    let connect = || Bus::builder().address(broker.socket().to_str().unwrap()).connect().unwrap();
    let service = connect();
    let to = service.endpoint_id();
    let serving = thread::spawn(move || {
        for _ in 0..CALLERS * CALLS {
            match service.receive().unwrap() {
                Event::Message(request) => {
                    let reply = format!("re {}", request.text().unwrap());
                    request.start_reply(reply).unwrap().wait().unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    });
    let callers: Vec<Bus> = (0..CALLERS).map(|_| connect()).collect();
    for round in 0..CALLS {
        let calls: Vec<_> = callers
            .iter()
            .enumerate()
            .map(|(n, caller)| caller.start_call(to, format!("{n}/{round}")).unwrap())
            .collect();
        for (n, call) in calls.into_iter().enumerate() {
            assert_eq!(call.wait().unwrap().text(), Some(format!("re {n}/{round}").as_str()));
        }
    }
    serving.join().unwrap();
    broker.until("no request is left", |stats| stats.open_requests == 0);
}

#[test]
fn what_is_promised_does_not_depend_on_how_bytes_travel() {
    run_by_each(&[8, 9]);
}
