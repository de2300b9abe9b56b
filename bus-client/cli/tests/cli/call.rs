//! `unisono call` and `unisono serve`.

use bus_client::{Event, Message};

use crate::harness::{Ended as _, Fixture, Running};

/// A started `serve --json`, and its endpoint.
fn serve(fixture: &Fixture, line: &str) -> (Running, u64) {
    let server = fixture.start(&format!("serve --json {line}"));
    let serving = server.json();
    assert_eq!(serving["type"], "serving");
    (server, serving["endpoint"].as_u64().expect("a number"))
}

fn request(event: Event) -> Message {
    event.into_message().filter(Message::is_request).expect("a request")
}

#[test]
fn standard_input_is_the_payload_where_none_is_given() {
    let fixture = Fixture::new();
    let (server, endpoint) = serve(&fixture, "-n 1 -- cat");
    let output = fixture.run_with(&format!("call {endpoint} Echo --json"), b"from a pipe\n");
    assert_eq!(output.assert_code(0).lines()[0]["payload"], "from a pipe\n");
    let lines = server.finish().assert_code(0).lines();
    assert_eq!((&lines[0]["type"], &lines[0]["outcome"]), (&"request".into(), &"replied".into()));
    assert_eq!(lines[0]["operation"], "Echo");
}

#[test]
fn a_call_says_all_that_it_was_told_to() {
    let fixture = Fixture::new();
    let bus = fixture.connect();
    let endpoint = bus.endpoint_id();
    let line = format!("call {endpoint} Add 2+2 --key k --field a=b --timeout 10s --repeatable");
    let call = fixture.start(&line);
    let request = request(bus.receive().expect("a request"));
    assert_eq!((request.operation(), request.text()), (Some("Add"), Some("2+2")));
    assert_eq!((request.key(), request.field("a")), (Some(&b"k"[..]), Some("b")));
    assert!(request.deadline().is_some());
    request.reply("4").expect("a reply");
    assert_eq!(call.line(), "4");
    call.finish().assert_code(0);
}

#[test]
fn outcomes_have_statuses_of_their_own() {
    let fixture = Fixture::new();
    let bus = fixture.connect();
    let endpoint = bus.endpoint_id();
    fixture.run(&format!("call {endpoint} X x --timeout 20ms")).assert_code(3);
    fixture.run("call 4000000000 X x").assert_code(1);
    let other = bus.open_endpoint().expect("opens");
    let refused = fixture.start(&format!("call {} X x", other.endpoint_id()));
    request(other.receive().expect("a request")).refuse("no").expect("refused");
    let output = refused.finish().assert_code(1);
    assert!(output.error().contains("refused: no"), "{}", output.error());
}

#[test]
fn a_command_whose_caller_has_gone_is_killed() {
    let fixture = Fixture::new();
    let (server, endpoint) = serve(&fixture, "-n 1 -- sleep 3600");
    fixture.run(&format!("call {endpoint} X x --timeout 20ms")).assert_code(3);
    let lines = server.finish().assert_code(0).lines();
    assert_eq!(lines[0]["outcome"], "ended");
}

#[test]
fn a_name_is_served_and_called() {
    let fixture = Fixture::new();
    let (server, _) = serve(&fixture, "org.example.Echo -n 2 -- cat");
    assert_eq!(fixture.run("call org.example.Echo X hello").assert_code(0).stdout, b"hello\n");
    let taken = fixture.run("serve org.example.Echo -- cat").assert_code(1);
    assert!(taken.error().contains("org.example.Echo"), "{}", taken.error());
    fixture.run("call org.example.Echo X hello").assert_code(0);
    server.finish().assert_code(0);
    let nobody = fixture.run("call org.example.Echo X hello").assert_code(1);
    assert!(nobody.error().contains("org.example.Echo"), "{}", nobody.error());
}

#[test]
fn workers_share_a_name_and_each_request_goes_to_one() {
    let fixture = Fixture::new();
    let workers = [(); 2].map(|()| serve(&fixture, "org.example.Work --shared -n 1 -- cat").0);
    for text in ["one", "two"] {
        let output = fixture.run(&format!("call org.example.Work X {text}")).assert_code(0);
        assert_eq!(output.stdout, format!("{text}\n").as_bytes());
    }
    for worker in workers {
        worker.finish().assert_code(0);
    }
}
