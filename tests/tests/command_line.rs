//! The command line on a real broker: exit statuses, and what scripts rely on.

use std::io::Write;
use std::process::Stdio;

use bus_core::Destination;
use nix::sys::signal::Signal;
use tests::broker::Broker;
use tests::process::Launch;
use tests::programs;
use tests::raw::RawClient;
use tests::trace::Trace;

/// A member that reads nothing, and whose queue is full.
fn full_member(broker: &Broker, group: &str) -> RawClient {
    let (mut member, mut sender) = (broker.raw(), broker.raw());
    let destination = Destination::Group(member.join(group));
    while sender.try_send(destination, b"fills").is_ok() {}
    member
}

#[test]
fn status_0_is_done() {
    let broker = Broker::start();
    let listener = broker.unisono("listen done --count 1").start();
    let _ = broker.unisono("send done hello --wait-members 1").run().with(0);
    assert_eq!(listener.line(), "hello");
    let _ = listener.end().with(0);
    for line in ["groups", "stats", "status", "ping", "groups --json", "ping --json"] {
        let ended = broker.unisono(line).run().with(0);
        assert_eq!(ended.errors, "", "{line}");
    }
}

#[test]
fn status_0_is_also_the_end_by_a_signal() {
    let broker = Broker::start();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let path = broker.file("trace");
        let listener = broker.listener("signals", &path);
        let ended = listener.end_by(signal).with(0);
        assert_eq!(ended.errors, "");
        let trace = Trace::read(&path);
        assert!(trace.left > Some(trace.joined));
        assert_eq!(trace.end.as_deref(), Some("signal"));
    }
}

#[test]
fn status_1_is_an_error() {
    let broker = Broker::start();
    let ended = broker.unisono("send nobody.here hello").run().with(1);
    assert!(ended.errors.contains("nobody.here"), "{}", ended.errors);
    let nowhere = Launch::new(programs::unisono()).line("ping").run().with(1);
    assert!(nowhere.errors.contains("--address"), "{}", nowhere.errors);
    let absent = broker.unisono("ping --address").arg(broker.file("absent"));
    let ended = absent.run();
    assert!(ended.errors.contains("absent"), "{}", ended.errors);
}

#[test]
fn status_2_is_usage() {
    let broker = Broker::start();
    for line in
        ["fly", "send", "listen g --count 0", "send g x --lines", "listen a..b", "send a..b x"]
    {
        let ended = broker.unisono(line).run().with(2);
        assert_ne!(ended.errors, "", "{line}");
        assert_eq!(ended.output, "", "{line}");
    }
}

#[test]
fn status_3_is_would_block_or_timed_out_and_has_reached_nobody() {
    let broker = Broker::with_limits("stall = \"600s\"");
    let mut member = full_member(&broker, "full");
    for line in [
        "send full x --nonblock",
        "send full x --timeout 50ms",
        "send full x --wait-members 2 --timeout 50ms",
        "send absent x --wait-members 1 --timeout 50ms",
        "listen other --timeout 50ms",
    ] {
        let ended = broker.unisono(line).run().with(3);
        assert_ne!(ended.errors, "", "{line}");
    }
    for _ in 0..256 {
        assert_eq!(&member.receive().payload[..], b"fills");
    }
    let _ = broker.unisono("send full room --timeout 50s").run().with(0);
    assert_eq!(&member.receive().payload[..], b"room", "and nothing before it");
}

#[test]
fn status_3_after_some_lines_means_that_the_rest_reached_nobody() {
    let broker = Broker::with_limits("stall = \"600s\"");
    let mut member = broker.raw();
    member.join("rest");
    let text: String = (0..300).map(|line| format!("{line}\n")).collect();
    let input = broker.file_with("input", text);
    let send = broker.unisono("send rest --lines --nonblock --json").input_from(&input);
    let ended = send.run().with(3);
    assert_eq!(ended.json_lines().len(), 256);
    for line in 0..256 {
        assert_eq!(member.receive().payload, line.to_string().as_bytes());
    }
    let _ = broker.unisono("send rest last").run().with(0);
    assert_eq!(&member.receive().payload[..], b"last");
}

#[test]
fn status_4_is_a_broker_that_is_gone() {
    let mut broker = Broker::start();
    let listener = broker.listener("gone", &broker.file("trace"));
    broker.signal(Signal::SIGTERM);
    let _ = listener.end().with(4);
    assert!(broker.ended().success());
}

#[test]
fn status_5_is_a_violation_that_verify_found() {
    let broker = Broker::start();
    let line = |sequence: u64, serial: u64| {
        format!(
            r#"{{"type":"message","sequence":{sequence},"group":"g","sender":9,"sender_serial":{serial},"payload":"x"}}"#
        )
    };
    let joined = r#"{"type":"joined","group":"g","sequence":1,"endpoint":3}"#;
    let trace = |name: &str, lines: &[String]| {
        broker.file_with(name, format!("{joined}\n{}\n", lines.join("\n")))
    };
    let good = trace("good", &[line(5, 1), line(6, 2)]);
    let bad = trace("bad", &[line(6, 2), line(5, 1)]);
    let _ = broker.unisono("verify").arg(&good).run().with(0);
    let ended = broker.unisono("verify").arg(&good).arg(&bad).run().with(5);
    assert!(ended.output.contains("bad"), "it says where: {}", ended.output);
}

#[test]
fn a_closed_pipe_ends_a_listener_quietly() {
    let broker = Broker::start();
    let mut sender = broker.raw();
    for arguments in ["listen piped --quiet", "listen piped --json"] {
        let mut listener = broker.unisono(arguments).start();
        broker.until_members("piped", "it has joined", |members| members.len() == 1);
        listener.close_output();
        // At the latest the next message's line finds nobody.
        let group = Destination::Group(sender.find("piped").unwrap());
        let _ = sender.try_send(group, b"x");
        let ended = listener.end().with(0);
        assert_eq!(ended.errors, "", "{arguments}");
        broker.until("it is gone", |stats| stats.groups == 0);
    }
}

#[test]
fn a_closed_pipe_ends_a_listing_and_a_sender_quietly() {
    let broker = Broker::start();
    let mut member = broker.raw();
    member.join("piped");
    let reads_nothing = |line: &str| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = std::process::Command::new(programs::unisono());
        command.args(line.split(' ')).env("UNISONO_ADDRESS", broker.socket());
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""), "{line}");
    };
    for line in
        ["groups", "groups --json", "members piped", "stats", "status --json", "ping", "--help"]
    {
        reads_nothing(line);
    }
    reads_nothing("send piped x --json");
}

#[test]
fn input_that_comes_in_pieces_makes_whole_lines() {
    let broker = Broker::start();
    let listener = broker.unisono("listen --json pieces --count 5").start();
    assert_eq!(listener.json()["type"], "joined");
    let mut sender = broker.unisono("send pieces --lines").input_piped().start();
    let mut stdin = sender.stdin();
    let text = "first\n\nthird with ü and ♥\n\ttab\nlast, without a newline";
    let payload = |value: serde_json::Value| value["payload"].as_str().unwrap().to_owned();
    // Byte by byte, and each line arrives before the next one is begun.
    let mut heard = Vec::new();
    for byte in text.as_bytes() {
        stdin.write_all(&[*byte]).unwrap();
        if *byte == b'\n' {
            heard.push(payload(listener.json()));
        }
    }
    drop(stdin);
    heard.push(payload(listener.json()));
    assert_eq!(heard.join("\n"), text);
    let _ = (sender.end().with(0), listener.end().with(0));
}

#[test]
fn without_lines_all_of_the_input_is_one_message() {
    let broker = Broker::start();
    let mut member = broker.raw();
    member.join("whole");
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let input = broker.file_with("input", &bytes);
    let _ = broker.unisono("send whole").input_from(&input).run().with(0);
    assert!(member.receive().payload == bytes);
    let _ = broker.unisono("send whole --file").arg(&input).run().with(0);
    assert!(member.receive().payload == bytes);
}

#[test]
fn run_gives_a_command_a_bus_of_its_own() {
    let broker = Broker::start();
    let unisono = programs::unisono();
    // The command finds the private bus, and not the one in the environment.
    let run = broker.unisono("run --").arg(&unisono).line("status --json");
    let status = run.run().with(0).json_lines();
    let address = status[0]["address"].as_str().unwrap();
    assert_ne!(address, broker.socket().to_str().unwrap());
    assert!(!std::path::Path::new(address).exists(), "it is gone with the command");
    // Its exit status is the command's.
    let run = |line: &str| broker.unisono("run --").arg(&unisono).line(line).run();
    let _ = run("fly").with(2);
    let _ = run("send nobody x").with(1);
    let _ = run("listen g --timeout 10ms").with(3);
    let _ = broker.unisono("run -- /nonexistent/command").run().with(127);
}

#[test]
fn run_passes_signals_on_and_cleans_up() {
    let broker = Broker::start();
    let listen = broker.unisono("run --").arg(programs::unisono());
    let run = listen.line("listen --json g").start();
    assert_eq!(run.json()["type"], "joined");
    let ended = run.end_by(Signal::SIGTERM).with(0);
    assert!(ended.output.contains("\"end\""), "{}", ended.output);
}

#[test]
fn demo_shows_equal_digests_and_keeps_traces_that_verify_accepts() {
    let broker = Broker::start();
    let traces = broker.file("traces");
    let demo = Launch::new(programs::unisono()).line("demo --messages 200 --traces");
    let ended = demo.arg(&traces).run().with(0);
    let mut verify = broker.unisono("verify");
    let mut count = 0;
    for entry in std::fs::read_dir(&traces).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            verify = verify.arg(path);
            count += 1;
        }
    }
    assert_eq!(count, 3, "a trace of each member");
    let _ = verify.run().with(0);
    assert!(ended.output.contains("800"), "4 senders, 200 messages each: {}", ended.output);
}

#[test]
#[cfg_attr(not(has_sha256sum), ignore = "needs sha256sum, from coreutils")]
fn needs_sha256sum_the_digests_of_the_demo_are_those_of_its_traces() {
    let directory = tempfile::tempdir().unwrap();
    let demo = Launch::new(programs::unisono()).line("demo --messages 100 --traces");
    let ended = demo.arg(directory.path()).run().with(0);
    let mut traces = 0;
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let output = tests::needs::needs("sha256sum", "coreutils").arg(&path).output();
            let text = String::from_utf8(output.unwrap().stdout).unwrap();
            let digest = text.split(' ').next().unwrap();
            assert_eq!(digest.len(), 64, "{text}");
            assert_eq!(ended.output.matches(digest).count(), 3, "{digest}: {}", ended.output);
            traces += 1;
        }
    }
    assert_eq!(traces, 3);
}
