//! The broker's log and those who are to read it: who does not holds nobody up.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bus_core::Destination;
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::broker::Broker;

/// All that there is to be logged.
const EVERYTHING: &str = "[log]\nfilter = \"trace\"\nformat = \"json\"\n";

/// Has things logged, by clients that come and go, until lines were lost; meanwhile messages flow.
fn until_lines_are_lost(broker: &Broker) -> u64 {
    let (mut sender, mut member) = (broker.raw(), broker.raw());
    let to = Destination::Group(member.join("g"));
    let mut number = 0_u64;
    loop {
        let mut visitor = broker.raw();
        visitor.join("g");
        visitor.try_write(&[0xff; 64]);
        let _ = visitor.goodbye();
        let text = number.to_string();
        sender.send(to, text.as_bytes()).unwrap();
        assert_eq!(member.receive().payload, text.as_bytes());
        let lost = sender.stats().log_lines_lost;
        if lost > 100 {
            return lost;
        }
        number += 1;
    }
}

#[test]
fn g10_a_log_that_nobody_reads_holds_up_nobody_and_says_how_much_is_missing() {
    let mut broker = Broker::with_unread_log(EVERYTHING);
    let lost = until_lines_are_lost(&broker);
    broker.read_log();
    broker.until_logged(&["lines of the log are missing here"]);
    // All is written again: nothing was lost since.
    let mut client = broker.raw();
    client.join("afterwards");
    let missing: u64 = broker
        .log()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect(line))
        .map(|line| line["fields"]["lost"].as_u64().unwrap_or_default())
        .sum();
    assert!(missing >= lost, "{missing} of {lost}");
    assert_eq!(missing, client.stats().log_lines_lost, "each is told once");
}

#[test]
fn g9_a_broker_ends_well_though_nobody_reads_its_log() {
    let mut broker = Broker::with_unread_log(EVERYTHING);
    until_lines_are_lost(&broker);
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
}

#[test]
fn g10_a_log_on_a_full_disk_holds_up_nobody_and_its_lines_are_counted() {
    let redirect = ["sh", "-c", "exec \"$@\" 2>/dev/full", "sh"];
    let broker = Broker::run_by(&redirect, EVERYTHING);
    until_lines_are_lost(&broker);
}
