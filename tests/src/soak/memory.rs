//! What a broker occupies, and what it may keep of what it had.
//!
//! Compared is the memory that is its own: anonymous pages. Pages of its program's file are counted
//! apart; they come as code runs for the first time, and the system takes them when it wants them.

use std::fmt;
use std::fs;

use bus_core::wire::Stats;

use crate::broker::Broker;
use crate::raw::RawClient;

/// In KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) own: u64,
    file: u64,
    shared: u64,
}

impl Memory {
    pub(super) fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            number.unwrap().parse().unwrap()
        };
        Self { own: kib("RssAnon:"), file: kib("RssFile:"), shared: kib("RssShmem:") }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { own, file, shared } = self;
        write!(f, "{own} KiB of its own ({file} of its program, {shared} shared)")
    }
}

impl Memory {
    /// What is wrong with it: more is kept of what came after `before` than may be. Of what is shared,
    /// rings and payloads, nothing may.
    pub(super) fn beyond(self, before: Self, kept: u64) -> Option<String> {
        let most = before.own + kept;
        let is_more = self.own > most || self.shared > before.shared;
        is_more.then(|| format!("memory: {before} before, {self} then, not {most} KiB"))
    }
}

/// Has each thread of a broker look for memory that it does not need, and waits until all have.
pub(super) fn until_given_back(broker: &Broker) {
    let threads = io_threads(broker.pid());
    let looked = |stats: &Stats| stats.memory_given_back;
    let before = looked(&broker.until("it counts", |_| true));
    // All at once, so that each thread has its part of them; and those are many.
    let many: Vec<_> = (0..threads * MANY).map(|_| RawClient::connect(broker.socket())).collect();
    drop(many);
    broker.until("memory is given back", |stats| looked(stats) >= before + threads as u64);
}

/// The first one is the process's.
fn io_threads(pid: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    1 + names.filter(|name| name.starts_with("bus-io")).count()
}

/// Connections that a thread closes and then looks what they have left.
const MANY: usize = 110;
/// What is kept by design: the flight recorder (1 MiB), the log's two buffers (256 KiB), what threads
/// read into and write from (256 KiB), stacks that were used; and pages of the heap in which something
/// of it lies.
pub(super) const KEPT_KIB: u64 = 3 << 10;
/// What may come on top of that in a second round: in which pages something lies is chance.
pub(super) const GROWTH_KIB: u64 = 1 << 10;
