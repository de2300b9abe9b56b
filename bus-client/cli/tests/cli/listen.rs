//! `unisono listen`.

use std::time::Duration;

use bus_client::{Limits, Outgoing};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Ended as _, Fixture, messages, output, unisono};

#[test]
fn a_line_a_message_and_an_end_after_the_count() {
    let fixture = Fixture::new();
    let listener = fixture.start("sub news -n 2 --quiet");
    fixture.run_with("pub news --lines --wait-members 1", b"one\ntwo\nthree\n").assert_code(0);
    let output = listener.finish().assert_code(0);
    assert_eq!((output.text(), output.error()), ("one\ntwo\n", ""));
}

#[test]
fn a_json_line_has_what_the_contract_names() {
    let fixture = Fixture::new();
    let (listener, joined) = fixture.listen("org.example.News --count 1");
    assert_eq!(joined["group"], "org.example.News");
    assert_eq!(joined["created"], true);
    let receipt = fixture
        .run("send org.example.News hello --key k --operation say --field a=b=c --json")
        .assert_code(0);
    let receipt = &receipt.lines()[0];
    let message = listener.json();
    assert!(message["sequence"].as_u64() > joined["sequence"].as_u64());
    let expected = json!({
        "type": "message", "sequence": receipt["sequence"], "group": "org.example.News",
        "sender": receipt["sender"], "sender_serial": 1, "payload": "hello", "key": "k",
        "operation": "say", "fields": {"a": "b=c"},
    });
    assert_eq!(message, expected);
    let end = listener.json();
    assert_eq!(end, json!({"type": "end", "reason": "count", "through": message["sequence"]}));
    listener.finish().assert_code(0);
}

#[test]
fn payloads_are_text_base64_or_the_value_of_their_type() {
    let fixture = Fixture::new();
    let (json_listener, _) = fixture.listen("g -n 4");
    let (_, text_listener) = {
        let listener = fixture.start("listen g -n 4 -q");
        let sender = fixture.connect();
        let group = sender.group("g").expect("a name");
        while sender.find_group("g").expect("answered").is_none_or(|g| g.members < 2) {
            std::thread::yield_now();
        }
        group.send("two\nlines").expect("sent");
        group.send(Outgoing::bytes(vec![0xff, 0x00])).expect("sent");
        group.send(Outgoing::cbor(&json!({"a": [1, null]})).expect("CBOR")).expect("sent");
        group.send(Outgoing::json(&json!({"b": "c"})).expect("JSON")).expect("sent");
        (sender, listener)
    };
    let lines = json_listener.finish().assert_code(0).lines();
    let told: Vec<_> = messages(&lines)
        .iter()
        .map(|m| (m["payload"].clone(), m["payload_base64"].clone(), m["content_type"].clone()))
        .collect();
    assert_eq!(
        json!(told),
        json!([
            ["two\nlines", null, null],
            [null, "/wA=", null],
            [{"a": [1, null]}, null, "cbor"],
            [{"b": "c"}, null, "json"],
        ])
    );
    assert_eq!(
        text_listener.finish().assert_code(0).text(),
        "two\\nlines\n\\xff\\x00\n{\"a\":[1,null]}\n{\"b\":\"c\"}\n"
    );
}

#[test]
fn several_groups_are_told_apart() {
    let fixture = Fixture::new();
    let listener = fixture.start("listen a b -n 2 -q");
    fixture.run("send b x --wait-members 1").assert_code(0);
    fixture.run("send a y --wait-members 1").assert_code(0);
    assert_eq!(listener.finish().assert_code(0).text(), "b: x\na: y\n");
}

#[test]
fn sigterm_ends_a_trace_that_is_complete_up_to_the_leave_with_0() {
    let fixture = Fixture::new();
    let (listener, _) = fixture.listen("g");
    let receipts = fixture.run_with("send g --lines --json", &b"x\n".repeat(100)).assert_code(0);
    let last = receipts.lines().last().expect("a receipt")["sequence"].as_u64();
    listener.signal(Signal::SIGTERM);
    let output = listener.finish().assert_code(0);
    assert_eq!(output.error(), "");
    let lines = output.lines();
    assert_eq!(messages(&lines).len(), 100);
    let [.., left, end] = &lines[..] else {
        panic!("left and end");
    };
    assert_eq!((&left["type"], &left["group"]), (&json!("left"), &json!("g")));
    assert!(left["sequence"].as_u64() > last, "{left}");
    assert_eq!((&end["type"], &end["reason"]), (&json!("end"), &json!("signal")));
}

#[test]
fn sigint_ends_text_quietly_with_0() {
    let fixture = Fixture::new();
    let listener = fixture.start("listen g");
    fixture.run("send g x --wait-members 1").assert_code(0);
    assert_eq!(listener.line(), "x");
    listener.signal(Signal::SIGINT);
    listener.finish().assert_code(0);
}

#[test]
fn a_closed_pipe_ends_it_with_0_though_no_message_comes() {
    let fixture = Fixture::new();
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", r#""$0" listen g --json | head -n 1; echo "done""#])
        .arg(env!("CARGO_BIN_EXE_unisono"))
        .env("UNISONO_ADDRESS", fixture.address());
    let output = output(command).assert_code(0);
    assert!(output.text().ends_with("}\ndone\n"), "{}", output.text());
    assert_eq!(output.error(), "");
}

#[test]
fn the_brokers_end_is_4_and_the_trace_says_so() {
    let fixture = Fixture::new();
    let (listener, _) = fixture.listen("g");
    fixture.run("send g x").assert_code(0);
    assert_eq!(listener.json()["payload"], "x");
    fixture.shutdown();
    let output = listener.finish().assert_code(4);
    assert_eq!(output.lines()[0]["reason"], "broker-gone");
    assert!(output.error().contains("broker is gone"), "{}", output.error());
}

#[test]
fn silence_for_the_timeout_is_3() {
    let fixture = Fixture::new();
    let output = fixture.run("listen g --timeout 10ms --json").assert_code(3);
    assert_eq!(output.lines()[1]["reason"], "timeout");
}

#[test]
fn a_group_is_not_created_against_ones_will() {
    let fixture = Fixture::new();
    let output = fixture.run("listen g --no-create").assert_code(1);
    assert!(output.error().contains("no group is named g"), "{}", output.error());
}

#[test]
fn a_bad_name_is_a_usage_error_that_names_the_offence() {
    let fixture = Fixture::new();
    for name in ["a..b", "a/b", &"x".repeat(256)] {
        let output = fixture.run(&format!("listen {name}")).assert_code(2);
        assert!(output.error().contains("name"), "{}", output.error());
    }
}

#[test]
fn without_an_address_it_fails_and_says_what_to_give() {
    let output = output(unisono(["listen", "g"])).assert_code(1);
    assert!(output.error().contains("--address"), "{}", output.error());
}

#[test]
fn g7_a_drop_when_full_listener_is_told_what_it_missed() {
    let fixture = Fixture::new();
    let (slow, _) = fixture.listen("g --drop-when-full");
    let (fast, _) = fixture.listen("g");
    slow.signal(Signal::SIGSTOP);
    let sent =
        fixture.run_with("send g --lines --json", &b"some text\n".repeat(3_000)).assert_code(0);
    slow.signal(Signal::SIGCONT);
    fixture.run("send g last").assert_code(0);

    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("sends"), sent.text()).expect("written");
    let mut whole = Vec::new();
    for (name, listener) in [("slow", slow), ("fast", fast)] {
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line: &String| !line.contains(r#""payload":"last""#)) {
            lines.push(listener.line());
        }
        std::fs::write(path(name), lines.join("\n") + "\n").expect("written");
        whole.push(lines);
    }
    let missed: u64 = whole[0]
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line))
        .filter_map(|line| line["missed"].as_u64())
        .sum();
    assert!(missed > 0, "3,000 messages are more than a queue holds");
    let got = whole[0].iter().filter(|l| l.contains(r#""type":"message""#)).count();
    assert_eq!(got as u64 + missed, 3_001);
    let line = format!("verify {} {} --sends {}", path("slow"), path("fast"), path("sends"));
    fixture.run(&line).assert_code(0);
}

/// Given a listener that is stopped while a sender waits for it,
/// when it goes on after the stall limit, then it says from where on it was no member, and ends
/// with 4; and the sender was not held up for ever.
#[test]
fn g8_a_stalled_listener_is_told_that_it_was_evicted() {
    let fixture = Fixture::with(Limits { stall: Duration::from_millis(100), ..Limits::default() });
    let (listener, _) = fixture.listen("g");
    listener.signal(Signal::SIGSTOP);
    let sent = fixture.run_with("send g --lines --json", &b"some text\n".repeat(2_000));
    let sent = sent.assert_code(0);
    assert_eq!(sent.lines().len(), 2_000);
    listener.signal(Signal::SIGCONT);
    let output = listener.finish().assert_code(4);
    assert!(output.error().contains("evicted"), "{}", output.error());
    let lines = output.lines();
    let [heard @ .., evicted, end] = &lines[..] else {
        panic!("evicted and end");
    };
    assert_eq!((&evicted["type"], &evicted["group"]), (&json!("evicted"), &json!("g")));
    assert_eq!((&end["type"], &end["reason"]), (&json!("end"), &json!("evicted")));
    let place = evicted["sequence"].as_u64();
    let before = sent.lines().iter().filter(|r| r["sequence"].as_u64() < place).count();
    assert_eq!(messages(heard).len(), before, "all that was sent before, and nothing after");
}
