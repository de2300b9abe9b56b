//! `unisono send`.

use bus_client::Event;
use serde_json::json;

use crate::harness::{Ended as _, Fixture, messages};

#[test]
fn all_of_standard_input_is_one_message() {
    let fixture = Fixture::new();
    let (listener, _) = fixture.listen("g -n 1");
    fixture.run_with("send g", b"one\n\ntwo\n").assert_code(0);
    assert_eq!(listener.json()["payload"], "one\n\ntwo\n");
}

#[test]
fn each_line_is_a_message_without_its_newline_empty_ones_too() {
    let fixture = Fixture::new();
    let (listener, _) = fixture.listen("g -n 4");
    let output = fixture.run_with("send g --lines --json", b"one\n\ntwo\r\nthree").assert_code(0);
    let lines = listener.finish().assert_code(0).lines();
    let payloads: Vec<_> = messages(&lines).iter().map(|m| m["payload"].clone()).collect();
    assert_eq!(json!(payloads), json!(["one", "", "two\r", "three"]));
    let serials: Vec<_> = output.lines().iter().map(|r| r["sender_serial"].clone()).collect();
    assert_eq!(json!(serials), json!([1, 2, 3, 4]));
}

#[test]
fn a_receipt_has_what_the_contract_names() {
    let fixture = Fixture::new();
    let _listeners = [fixture.listen("g"), fixture.listen("g")];
    let output = fixture.run("send g x --json").assert_code(0);
    let receipt = &output.lines()[0];
    assert_eq!(receipt["recipients"], 2);
    assert_eq!(receipt["sender_serial"], 1);
    for name in ["sequence", "sender", "after"] {
        assert!(receipt[name].is_u64(), "{name}: {receipt}");
    }
}

#[test]
fn a_receipt_is_printed_before_the_next_line_comes() {
    use std::io::Write as _;
    let fixture = Fixture::new();
    let _listener = fixture.listen("g");
    let mut sender = fixture.start("send g --lines --json");
    let mut stdin = sender.stdin();
    for serial in 1..=3 {
        stdin.write_all(b"line\n").expect("written");
        assert_eq!(sender.json()["sender_serial"], serial);
    }
    drop(stdin);
    sender.finish().assert_code(0);
}

#[test]
fn a_file_is_one_message_or_its_lines() {
    let fixture = Fixture::new();
    let (listener, _) = fixture.listen("g -n 3");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "a\nb\n").expect("written");
    let path = file.path().display();
    fixture.run(&format!("send g --file {path}")).assert_code(0);
    fixture.run(&format!("send g --lines --file {path}")).assert_code(0);
    let lines = listener.finish().assert_code(0).lines();
    let payloads: Vec<_> = messages(&lines).iter().map(|m| m["payload"].clone()).collect();
    assert_eq!(json!(payloads), json!(["a\nb\n", "a", "b"]));
}

#[test]
fn a_group_that_does_not_exist_is_1_and_named() {
    let fixture = Fixture::new();
    let output = fixture.run("send nobody x").assert_code(1);
    assert!(output.error().contains("no group is named nobody"), "{}", output.error());
}

#[test]
fn a_message_without_recipients_has_a_receipt_that_says_so() {
    let fixture = Fixture::new();
    let bus = fixture.connect();
    bus.create("g").expect("created");
    let output = fixture.run("send g x --json").assert_code(0);
    assert_eq!(output.lines()[0]["recipients"], 0);
}

#[test]
fn wait_members_waits_for_a_group_that_is_yet_to_be_created() {
    let fixture = Fixture::new();
    let sender = fixture.start("send g hello --wait-members 2 --json");
    let listeners = [fixture.listen("g -n 1"), fixture.listen("g -n 1")];
    assert_eq!(sender.finish().assert_code(0).lines()[0]["recipients"], 2);
    for (listener, _) in listeners {
        assert_eq!(listener.json()["payload"], "hello");
    }
}

#[test]
fn wait_members_in_vain_is_3() {
    let fixture = Fixture::new();
    let output = fixture.run("send g x --wait-members 1 --timeout 20ms").assert_code(3);
    assert!(output.error().contains("does not exist"), "{}", output.error());
    let _listener = fixture.listen("g");
    let output = fixture.run("send g x --wait-members 2 --timeout 20ms").assert_code(3);
    assert!(output.error().contains("has 1"), "{}", output.error());
}

/// Given a member that does not read,
/// when more lines are sent than its queue holds,
/// then status 3 tells that what has a receipt was delivered, and nothing else.
#[test]
fn g1_what_status_3_says_reached_nobody_did_reach_nobody() {
    for how in ["--nonblock", "--timeout 50ms"] {
        let fixture = Fixture::new();
        let reader = fixture.connect();
        let _member = reader.join("g").expect("joined");
        let lines: String = (0..2_000).map(|n| format!("{n}\n")).collect();
        let output = fixture
            .run_with(&format!("send g --lines --json {how}"), lines.as_bytes())
            .assert_code(3);
        let sent = output.lines().len();
        assert!(sent > 0 && sent < 2_000, "{how}: {sent}");
        let mut got = Vec::new();
        while let Some(event) = reader.try_receive().expect("connected") {
            if let Event::Message(message) = event {
                got.push(message.text().expect("text").parse::<usize>().expect("a number"));
            }
        }
        // The last ones may still be on their way; they are all there before a later one is.
        let fence = fixture.connect();
        fence.group("g").expect("a name").send("fence").expect("sent");
        loop {
            let Event::Message(message) = reader.receive().expect("connected") else {
                panic!("no gap");
            };
            match message.text() {
                Some("fence") => break,
                text => got.push(text.expect("text").parse().expect("a number")),
            }
        }
        assert_eq!(got, (0..sent).collect::<Vec<_>>(), "{how}");
    }
}

#[test]
fn a_payload_at_the_limit_passes_and_one_past_it_is_1() {
    let fixture = Fixture::new();
    let (listener, _) = fixture.listen("g -n 1");
    let limit = usize::try_from(fixture.connect().limits().payload_bytes).expect("fits");
    let mut payload = vec![b'x'; limit + 1];
    let output = fixture.run_with("send g", &payload).assert_code(1);
    assert!(output.error().contains("larger"), "{}", output.error());
    payload.pop();
    fixture.run_with("send g", &payload).assert_code(0);
    let message = listener.json();
    assert_eq!(message["payload"].as_str().map(str::len), Some(limit));
}

#[test]
fn the_loss_of_the_broker_is_4() {
    use std::io::Write as _;
    let fixture = Fixture::new();
    let _listener = fixture.listen("g");
    let mut sender = fixture.start("send g --lines --json");
    let mut stdin = sender.stdin();
    stdin.write_all(b"x\n").expect("written");
    assert_eq!(sender.json()["sender_serial"], 1);
    fixture.shutdown();
    let output = sender.finish().assert_code(4);
    assert!(output.error().contains("broker is gone"), "{}", output.error());
    drop(stdin);
}

#[test]
fn nothing_to_connect_to_is_1_and_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("bus").display().to_string();
    let output =
        crate::harness::output(crate::harness::unisono(["--address", &path, "send", "g", "x"]));
    let output = output.assert_code(1);
    assert!(output.error().contains(&path), "{}", output.error());
}

/// Given a file that is lent and read,
/// when the broker is gone before its reader has let go,
/// then the receipt was true, nothing is made up about the way, and the status says that the broker is gone.
#[test]
fn zerocopy_tells_of_a_broker_that_is_gone_and_makes_nothing_up() {
    let lent = std::time::Duration::from_secs(600);
    let fixture = Fixture::with(bus_client::Limits { lent, ..Default::default() });
    let reader = fixture.connect();
    let _member =
        reader.join_with("g", bus_client::JoinOptions::new().create(true)).expect("joins");
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    std::io::Write::write_all(&mut file, &vec![b'x'; 1 << 20]).expect("written");
    let line = format!("send g --zerocopy --travel file --json --file {}", file.path().display());
    let sender = fixture.start(&line);
    let kept = reader.receive().expect("it comes");
    fixture.shutdown();
    let output = sender.finish().assert_code(4);
    assert!(output.error().contains("the broker is gone"), "{}", output.error());
    assert!(!output.error().contains("recipient"), "{}", output.error());
    let lines = output.lines();
    assert_eq!(
        (lines.len(), &lines[0]["recipients"], &lines[0]["way"]),
        (1, &json!(1), &json!(null))
    );
    drop(kept);
}

#[test]
fn zerocopy_lends_the_file_and_says_how_it_travelled() {
    // Whoever takes its time is no reason for a copy here.
    let lent = std::time::Duration::from_secs(600);
    let fixture = Fixture::with(bus_client::Limits { lent, ..Default::default() });
    let (listener, _) = fixture.listen("g -n 3");
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let bytes = vec![b'x'; 1 << 20];
    std::io::Write::write_all(&mut file, &bytes).expect("written");
    let path = file.path().display();
    for (line, way, copied, said) in [
        (format!("send g --zerocopy --json --file {path}"), "buffer", true, "copied them once"),
        (
            format!("send g --zerocopy --travel file --json --file {path}"),
            "file",
            false,
            "nobody copied them",
        ),
        ("send g --zerocopy --json short".to_owned(), "inline", true, "too few"),
    ] {
        let output = fixture.run(&line).assert_code(0);
        let receipt = &output.lines()[0];
        assert_eq!((&receipt["way"], &receipt["copied"]), (&json!(way), &json!(copied)), "{line}");
        assert!(receipt["completion"].is_u64(), "{receipt}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(said) && told.contains("to 1 recipient "), "{told}");
    }
    let lines = listener.finish().assert_code(0).lines();
    let lengths: Vec<_> =
        messages(&lines).iter().map(|m| m["payload"].as_str().map(str::len)).collect();
    assert_eq!(lengths, [Some(1 << 20), Some(1 << 20), Some(5)]);
}
