//! What the kernel says of a broker that serves: what it has given up, and what it has kept.
//! (What it can no longer do is tried in `bus-broker/src/sandbox.rs`; that everything works without
//! is what all other tests here show, because it is on unless the configuration says otherwise.)

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;

use tests::broker::Broker;

/// `/proc/PID/task/*/status`, as keys and values.
fn threads(pid: u32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let pairs = |status: String| {
        let lines = status.lines().filter_map(|line| line.split_once(":\t"));
        lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
    };
    status.map(pairs).collect()
}

fn helper(broker: &Broker) -> u32 {
    let children = format!("/proc/{0}/task/{0}/children", broker.pid());
    fs::read_to_string(children).unwrap().trim().parse().unwrap()
}

const NOTHING: &str = "0000000000000000";

#[test]
fn every_thread_of_the_broker_is_in_the_sandbox() {
    let broker = Broker::with("threads = 3\n");
    broker.unisono("status").run().with(0);
    let threads = threads(broker.pid());
    assert!(threads.len() >= 5, "i/o, signals, helper: {}", threads.len());
    for thread in threads {
        assert_eq!(thread["NoNewPrivs"], "1", "{thread:?}");
        assert_eq!(thread["Seccomp"], "2", "{thread:?}");
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(thread[set], NOTHING, "{set}");
        }
    }
    broker.until_logged(&["in the sandbox"]);
}

#[test]
fn what_the_helper_starts_is_not_confined_by_the_broker() {
    let broker = Broker::start();
    for thread in threads(helper(&broker)) {
        assert_eq!((&*thread["NoNewPrivs"], &*thread["Seccomp"]), ("0", "0"));
    }
}

#[test]
fn the_limit_of_descriptors_is_as_high_as_it_may_be() {
    let broker = Broker::start();
    let limits = fs::read_to_string(format!("/proc/{}/limits", broker.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers[0], numbers[1], "{line}");
}

#[test]
fn without_the_sandbox_it_says_so_and_serves() {
    let broker = Broker::with("sandbox = \"off\"\n");
    broker.unisono("status").run().with(0);
    assert!(threads(broker.pid()).iter().all(|thread| thread["Seccomp"] == "0"));
    broker.until_logged(&["no sandbox"]);
}

#[test]
fn a_sandbox_that_only_logs_has_a_filter_all_the_same() {
    let broker = Broker::with("sandbox = \"log\"\n");
    broker.unisono("status").run().with(0);
    assert!(threads(broker.pid()).iter().all(|thread| thread["Seccomp"] == "2"));
}

#[test]
fn its_socket_goes_with_it() {
    let mut broker = Broker::start();
    broker.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(broker.ended().success());
    assert!(!broker.socket().exists());
}
