//! `unisono bench` in a tiny form, against our own broker alone: that each workload runs, keeps the
//! order, and prints what it promises to print. How fast is not a matter of tests.

use std::{
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Far beyond what anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

fn bench(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unisono"))
        .arg("bench")
        .args(line.split_whitespace())
        .output()
        .expect("it starts")
}

#[track_caller]
fn figures(line: &str) -> Value {
    let output = bench(&format!("{line} --json"));
    assert_eq!(
        output.status.code(),
        Some(0),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut all: Value = serde_json::from_slice(&output.stdout).expect(line);
    all[0].take()
}

/// Given runs that would take long,
/// when the user interrupts them,
/// then it ends quietly and leaves no process and no folder behind.
#[test]
fn an_interrupt_ends_it_quietly_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let child = Command::new(env!("CARGO_BIN_EXE_unisono"))
        .args(["bench", "fanout", "--seconds", "1h", "--receivers", "2"])
        .env("TMPDIR", folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let entries = || std::fs::read_dir(folder.path()).expect("readable").count();
    let deadline = Instant::now() + DEADLINE;
    while entries() == 0 {
        assert!(Instant::now() < deadline, "it never began");
        std::thread::yield_now();
    }
    let pid = i32::try_from(child.id()).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGINT).expect("it runs");
    // Workers have its standard error, so this waits for their end as well.
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(entries(), 0, "{said}");
}

/// Every field that the contract names is there, of its type or null.
const NUMBERS: [&str; 13] = [
    "deliveries_per_second",
    "bytes_per_second",
    "cpu_us_per_delivery",
    "broker_cpu_us_per_message",
    "p50_us",
    "p99_us",
    "broker_rss_kib",
    "lost",
    "batch",
    "connects_per_second",
    "kib_per_connection",
    "p99_wait_us",
    "overtaken_max",
];

#[test]
fn json_has_every_field_that_the_contract_names() {
    let output = bench("fanout --count 200 --runs 2 --json");
    assert_eq!(output.status.code(), Some(0));
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
    let figures = &all[0];
    for (name, expected) in [
        ("system", Value::from("unisono")),
        ("transport", Value::from("socket")),
        ("workload", Value::from("fanout")),
        ("senders", Value::from(1)),
        ("receivers", Value::from(8)),
        ("size", Value::from(64)),
        ("runs", Value::from(2)),
        ("lost", Value::from(0)),
        ("one_order", Value::from(true)),
        ("batch", Value::from(1)),
        ("limits", Value::from("raised")),
        ("pinned", Value::Null),
        ("ratio", Value::Object(serde_json::Map::new())),
    ] {
        assert_eq!(figures[name], expected, "{name}");
    }
    let object = figures.as_object().expect("an object");
    for name in NUMBERS {
        let value = object.get(name).expect(name);
        assert!(value.is_number() || value.is_null(), "{name}: {value}");
    }
    for name in ["deliveries_per_second", "cpu_us_per_delivery", "p50_us"] {
        assert!(figures[name].as_f64() > Some(0.0), "{name}: {figures}");
    }
}

#[test]
fn g2_every_workload_of_messages_keeps_one_order_and_loses_nothing() {
    for line in [
        "fanout --count 300 --runs 1 --receivers 3",
        "fanout --count 300 --runs 1 --receivers 3 --batch 32",
        "fanin --count 200 --runs 1 --senders 3 --receivers 3",
        "lockstep --count 100 --runs 1 --receivers 3",
        "rtt --count 100 --runs 1",
        "large --count 10 --runs 1 --receivers 2",
        "fair --count 50 --runs 1 --senders 2 --receivers 2",
        "fair --count 20 --runs 1 --senders 2 --receivers 2 --slow 1",
        "filter --count 300 --runs 1 --senders 2 --receivers 3",
        "filter --count 300 --runs 1 --senders 2 --receivers 3 --batch 8",
        "filter --count 300 --runs 1 --senders 2 --receivers 3 --in-process",
        "fanout --count 300 --runs 1 --receivers 3 --in-process",
        "fanin --count 300 --runs 1 --receivers 3 --in-process",
        "lockstep --count 100 --runs 1 --receivers 3 --in-process",
        "rtt --count 100 --runs 1 --in-process",
    ] {
        let figures = figures(line);
        assert_eq!(figures["one_order"], true, "{line}");
        assert_eq!(figures["lost"], 0, "{line}");
        assert!(figures["deliveries_per_second"].as_f64() > Some(0.0), "{line}");
    }
}

#[test]
fn what_fair_is_about_is_told() {
    let figures = figures("fair --count 50 --runs 1 --senders 2 --receivers 2");
    assert!(figures["p99_wait_us"].is_number(), "{figures}");
    assert!(figures["overtaken_max"].is_u64(), "{figures}");
}

#[test]
fn connections_are_counted() {
    let connect = figures("connect --count 50 --runs 1");
    assert!(connect["connects_per_second"].as_f64() > Some(0.0), "{connect}");
    let idle = figures("idle --receivers 50 --runs 1");
    assert!(idle["kib_per_connection"].is_number(), "{idle}");
    assert_eq!(idle["deliveries_per_second"], Value::Null);
}

#[test]
fn a_run_ends_by_the_clock_where_no_count_is_given() {
    let figures = figures("fanout --seconds 50ms --runs 1 --receivers 2 --pin 0");
    assert!(figures["deliveries_per_second"].as_f64() > Some(0.0));
    assert_eq!(figures["pinned"], serde_json::json!([0]));
}

#[test]
fn ratios_are_ours_over_theirs() {
    let output = bench("fanout --count 300 --runs 1 --receivers 2 --peer relay,raw-unix --json");
    assert_eq!(output.status.code(), Some(0));
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rate = |index: usize| all[index]["deliveries_per_second"].as_f64().expect("a rate");
    for (index, name) in [(1, "relay"), (2, "raw-unix")] {
        assert_eq!(all[index]["system"], name);
        assert_eq!(all[index]["one_order"], true, "one sender has one order");
        let ratio = all[0]["ratio"][name]["deliveries"].as_f64().expect("a ratio");
        assert!((ratio - rate(0) / rate(index)).abs() < 1e-9, "{name}");
    }
}

#[test]
fn what_is_not_in_this_version_or_makes_no_sense_is_2() {
    for line in [
        "filter --senders 3 --receivers 2",
        "fanout --size 8",
        "fanout --count 1 --seconds 1",
        "fanout --peer nobody",
        "rtt --batch 2",
        "lockstep --senders 2",
        "idle --in-process",
        "fanout --slow 1",
    ] {
        let output = bench(line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(!output.stderr.is_empty(), "{line}");
    }
}

#[test]
fn large_tells_of_reading_of_the_flag_and_of_the_crossover() {
    let output = bench("large --count 6 --runs 1 --receivers 2 --peer relay --json");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let kinds: Vec<_> = all.as_array().expect("an array").iter().collect();
    let kinds: Vec<_> = kinds.iter().map(|of| (&of["system"], &of["reading"])).collect();
    let expected = [
        ("unisono", "copy-out"),
        ("relay", "copy-out"),
        ("unisono", "in-place"),
        ("relay", "in-place"),
    ];
    assert_eq!(
        format!("{kinds:?}"),
        format!("{:?}", expected.map(|(s, r)| (Value::from(s), Value::from(r))))
    );
    for ours in [&all[0], &all[2]] {
        assert!(ours["ratio"]["relay"]["deliveries"].is_number(), "{ours}");
        for name in [
            "cpu_us_per_sent_mib",
            "cpu_us_per_sent_mib_one_receiver",
            "cpu_growth",
            "flag_cpu_ratio",
            "flag_rate_ratio",
        ] {
            assert!(ours[name].as_f64() > Some(0.0), "{name}: {ours}");
        }
        assert!(ours["crossover_bytes"].as_u64() > Some(0));
        assert!(ours["crossover_reason"].as_str().is_some_and(|why| why.contains("KiB")));
    }
    assert!(all[1]["cpu_us_per_sent_mib"].is_number() && all[1]["crossover_bytes"].is_null());
}
