//! The verbs that only show something.

use crate::harness::{Ended as _, Fixture, output, unisono};

#[test]
fn members_shows_what_the_contract_names() {
    let fixture = Fixture::new();
    let (listener, joined) = fixture.listen("g --drop-when-full --loopback");
    let output = fixture.run("members g --json").assert_code(0);
    let [member] = &output.lines()[..] else {
        panic!("one member: {}", output.text());
    };
    for name in [
        "endpoint",
        "uid",
        "pid",
        "flags",
        "queued_messages",
        "queued_bytes",
        "capacity",
        "dropped",
        "full_since_sequence",
        "blocks",
    ] {
        assert!(member.get(name).is_some(), "{name}: {member}");
    }
    assert_eq!(member["pid"], listener.pid().as_raw());
    assert_eq!(member["endpoint"], joined["endpoint"]);
    assert_eq!(member["flags"], joined["flags"]);
    assert_eq!(member["capacity"], 256);
    let text = fixture.run("members g").assert_code(0);
    assert_eq!(text.text().lines().count(), 2, "{}", text.text());
}

#[test]
fn members_of_no_group_is_1() {
    let fixture = Fixture::new();
    let output = fixture.run("members g").assert_code(1);
    assert!(output.error().contains("no group is named g"), "{}", output.error());
}

#[test]
fn groups_are_an_object_a_line() {
    let fixture = Fixture::new();
    let _listener = fixture.listen("b a");
    let output = fixture.run("groups --json").assert_code(0);
    let names: Vec<_> = output.lines().iter().map(|g| g["name"].clone()).collect();
    assert_eq!(names, ["a", "b"]);
    let text = fixture.run("groups").assert_code(0);
    assert!(text.text().starts_with("GROUP"), "{}", text.text());
}

#[test]
fn stats_and_status_and_ping_are_objects() {
    let fixture = Fixture::new();
    let _listener = fixture.listen("g");
    let stats = &fixture.run("stats --json").assert_code(0).lines()[0];
    assert_eq!((&stats["waiting_sends"], &stats["groups"]), (&0.into(), &1.into()));
    assert_eq!(stats["endpoints"], 2, "the listener's and its own: {stats}");
    let status = &fixture.run("status --json").assert_code(0).lines()[0];
    assert_eq!(status["limits"]["queue_messages"], 256);
    assert_eq!(status["pid"], std::process::id());
    let pings = fixture.run("ping -n 3 --json").assert_code(0).lines();
    assert_eq!(pings.len(), 3);
    assert!(pings.iter().all(|p| p["round_trip_us"].as_f64() > Some(0.0)), "{pings:?}");
    let text = fixture.run("status").assert_code(0);
    assert!(text.text().contains("limits.queue_messages"), "{}", text.text());
}

/// A broker that is stopped still gets connections, by the kernel's hand.
#[test]
fn a_broker_that_says_nothing_is_3() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("bus");
    let _socket = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    let path = path.display().to_string();
    output(unisono(["--address", &path, "ping", "--timeout", "20ms"])).assert_code(3);
}

#[test]
fn completions_and_pages_come_from_the_definition() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = output(unisono(["completions", shell])).assert_code(0);
        assert!(script.text().contains("wait-members"), "{shell}");
    }
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().display().to_string();
    output(unisono(["man", "--dir", &path])).assert_code(0);
    for page in ["unisono.1", "unisono-listen.1", "unisono-send.1", "unisono-demo.1"] {
        assert!(dir.path().join(page).exists(), "{page}");
    }
    output(unisono(["man", "listen"])).assert_code(0);
    output(unisono(["frobnicate"])).assert_code(2);
    output(unisono::<&str>([])).assert_code(2);
    output(unisono(["--version"])).assert_code(0);
}
