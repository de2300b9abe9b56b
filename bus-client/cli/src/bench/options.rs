//! Options of `bench`.

use std::{ffi::OsString, time::Duration};

use clap::{Args, ValueEnum};

use super::{
    plan::{LimitsOf, Reading, Workload},
    system::System,
};
use crate::duration;

pub(crate) const NOTES: &str = "\
Every run starts a broker and its clients as processes of their own, and verifies what it measured: \
each receiver notes the sequence of (sender, serial) that it saw. Equal sequences are one order, \
equal counts are nothing lost; otherwise the status is 1. A sender may be 4 MiB (8 to 4096 \
messages) ahead of the slowest receiver, the same for all systems, and the limits of all brokers are \
raised so that it can; with --limits default, ours keeps those that it has without a configuration.

Workloads:
  fanout    1 sender to 8 receivers, as fast as they take it
  fanin     4 senders to the same 8 receivers
  rtt       a message and its reply, through the broker
  lockstep  the next message once all 8 receivers have the last one
  connect   connect, be greeted, close
  large     fanout with 1 MiB, lent, to receivers that copy it out, and to others that read it in
            place; beside that, what the number of receivers and the flag cost, and from which
            sizes on payloads travel otherwise than in the stream, and why
  idle      1000 connections that stay: what each costs the broker (--receivers says how many)
  filter    2 senders to one group of 8 receivers, which filter: each sender's messages are for 4
  fair      a fan-out sender that waits for its place, among 8 small senders that never stop";

/// Options of `bench`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// What to measure
    #[arg(value_name = "WORKLOAD")]
    pub(crate) workload: Workload,
    /// Processes that send
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) senders: Option<u16>,
    /// Processes that receive; connections, for idle
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=9000))]
    pub(crate) receivers: Option<u16>,
    /// Bytes of a payload, at least 16
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    pub(crate) size: Option<u32>,
    /// End a run after so many messages of each sender (connections, for connect)
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) count: Option<u64>,
    /// End a run after so long
    #[arg(long, value_name = "T", default_value = "1s", value_parser = duration::parse)]
    pub(crate) seconds: Duration,
    /// Messages that are ready for each write of a sender
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) batch: u16,
    /// Keep every process on these CPUs, such as 0 or 0,2-3
    #[arg(long, value_name = "CPUS", value_parser = cpus)]
    pub(crate) pin: Option<Cpus>,
    /// Runs of each system, in turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) runs: u16,
    /// How our bytes travel; of several the first is compared with the others
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "socket")]
    pub(crate) transport: Vec<Transport>,
    /// Use the bus as a library in one process, with a thread for each sender and receiver
    #[arg(long, conflicts_with_all = ["peer", "transport", "slow"])]
    pub(crate) in_process: bool,
    /// Also measure these, in the same runs; all means every one that is installed
    #[arg(long, value_name = "PEER", value_delimiter = ',', value_parser = peer)]
    pub(crate) peer: Vec<Peer>,
    /// How wide the lanes and queues of our broker are
    #[arg(long, value_name = "LIMITS", default_value = "raised")]
    pub(crate) limits: LimitsOf,
    /// Receivers that read only 60 times a second, each at another time; for fair
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) slow: u16,
    /// What receivers do with large payloads; for large
    #[arg(long, value_name = "HOW", value_delimiter = ',', default_value = "copy-out,in-place")]
    pub(crate) reading: Vec<Reading>,
    /// Print an array with a JSON object for each system, and each --reading of large
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// Options of a process that `bench` starts.
#[derive(Clone, Debug, Args)]
pub(crate) struct WorkerOptions {
    /// Stay on this CPU
    #[arg(long)]
    pub(crate) pin: Vec<usize>,
    /// Become this command
    #[arg(last = true)]
    pub(crate) command: Vec<OsString>,
}

/// How bytes travel between the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// A Unix stream socket
    Socket,
    /// Rings in shared memory
    Ring,
}

/// CPUs to stay on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cpus(pub(crate) Vec<usize>);

/// One peer, or all that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    One(System),
    All,
}

fn peer(text: &str) -> Result<Peer, String> {
    if text == "all" {
        return Ok(Peer::All);
    }
    System::from_str(text, false).map(Peer::One).map_err(|_| {
        let names: Vec<_> = System::value_variants()
            .iter()
            .filter(|system| !system.is_ours())
            .map(|system| system.name())
            .collect();
        format!("one of {}, or all", names.join(", "))
    })
}

/// Reads `0`, `0,1` or `0-3,6`.
fn cpus(text: &str) -> Result<Cpus, String> {
    let wrong = || "CPUs are numbers and ranges, such as 0,2-3".to_owned();
    let number = |text: &str| match text.parse::<usize>() {
        Ok(cpu) if cpu < MOST_CPUS => Ok(cpu),
        _ => Err(wrong()),
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            Some((first, last)) if number(first)? <= number(last)? => {
                cpus.extend(number(first)?..=number(last)?);
            }
            Some(_) => return Err(wrong()),
            None => cpus.push(number(part)?),
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(Cpus(cpus))
}

/// What the kernel's mask holds.
const MOST_CPUS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_numbers_and_ranges() {
        for (text, expected) in
            [("0", vec![0]), ("1,0", vec![0, 1]), ("0-2,5", vec![0, 1, 2, 5]), ("3,3", vec![3])]
        {
            assert_eq!(cpus(text), Ok(Cpus(expected)), "{text}");
        }
        for text in ["", "a", "2-1", "0,", "-1", "1024"] {
            assert!(cpus(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn peers_have_the_names_that_they_print() {
        for system in System::value_variants() {
            if !system.is_ours() {
                assert_eq!(peer(system.name()), Ok(Peer::One(*system)));
            }
        }
        assert_eq!(peer("all"), Ok(Peer::All));
        assert!(peer("unisono").is_err(), "that one is always measured");
    }
}
