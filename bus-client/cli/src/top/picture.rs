//! From two samples to what is shown: rates, and rows in some order.
//!
//! Rates are differences of counters over the broker's own time between the samples, so neither a
//! slow answer nor a slow terminal changes them. What is new since the first sample counts from
//! nothing; what is gone is not shown.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use bus_client::inside::{EndpointTraffic, GroupTraffic, WaitingSend, Whose};
use bus_client::{EndpointId, GroupId, Stats};
use nix::unistd::{Uid, User};
use serde::Serialize;

use super::sample::Sample;
use crate::cli::{TopSort, TopView};
use crate::why::destination;

/// What is shown.
#[derive(Debug, Serialize)]
pub(super) struct Picture {
    /// Seconds between the samples.
    seconds: f64,
    stats: Stats,
    rates: Rates,
    groups: Vec<Group>,
    endpoints: Vec<Endpoint>,
    waits: Vec<WaitingSend>,
    /// There is more than was fetched.
    pub(super) more: bool,
    #[serde(skip)]
    users: BTreeMap<u32, String>,
}

/// Of the whole bus, a second.
#[derive(Debug, Serialize)]
struct Rates {
    messages: f64,
    message_bytes: f64,
    deliveries: f64,
    dropped: f64,
    refused: f64,
}

#[derive(Debug, Serialize)]
struct Group {
    #[serde(flatten)]
    now: GroupTraffic,
    messages_per_second: f64,
    bytes_per_second: f64,
    deliveries_per_second: f64,
    dropped_per_second: f64,
}

#[derive(Debug, Serialize)]
struct Endpoint {
    #[serde(flatten)]
    now: EndpointTraffic,
    received_per_second: f64,
    sent_per_second: f64,
    /// Of each second, how long it made sends wait, all of them together.
    blocked_per_second: f64,
}

/// Rows of text under a header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) header: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Picture {
    /// What happened between two samples; `own` is this program's endpoint, which is left out.
    pub(super) fn new(before: &Sample, after: &Sample, own: EndpointId) -> Self {
        let micros = after.stats.uptime_us.saturating_sub(before.stats.uptime_us).max(1);
        #[expect(clippy::cast_precision_loss, reason = "a rate is no exact number")]
        let per_second =
            |now: u64, then: u64| now.saturating_sub(then) as f64 / (micros as f64 / 1_000_000.0);
        let groups: HashMap<GroupId, &GroupTraffic> =
            before.groups.iter().map(|group| (group.group_id, group)).collect();
        let endpoints: HashMap<EndpointId, &EndpointTraffic> =
            before.endpoints.iter().map(|endpoint| (endpoint.endpoint, endpoint)).collect();
        let group = |now: &GroupTraffic| {
            let then = groups.get(&now.group_id);
            let rate =
                |of: fn(&GroupTraffic) -> u64| per_second(of(now), then.map_or(0, |t| of(t)));
            Group {
                now: now.clone(),
                messages_per_second: rate(|g| g.messages),
                bytes_per_second: rate(|g| g.bytes),
                deliveries_per_second: rate(|g| g.deliveries),
                dropped_per_second: rate(|g| g.dropped),
            }
        };
        let endpoint = |now: &EndpointTraffic| {
            let then = endpoints.get(&now.endpoint);
            let rate =
                |of: fn(&EndpointTraffic) -> u64| per_second(of(now), then.map_or(0, |t| of(t)));
            Endpoint {
                now: now.clone(),
                received_per_second: rate(|e| e.received_messages),
                sent_per_second: rate(|e| e.sent_messages),
                blocked_per_second: rate(|e| e.blocked_us) / 1_000_000.0,
            }
        };
        let (now, then) = (&after.stats, &before.stats);
        let others = after.endpoints.iter().filter(|endpoint| endpoint.endpoint != own);
        #[expect(clippy::cast_precision_loss, reason = "seconds to be shown")]
        let seconds = micros as f64 / 1_000_000.0;
        let mut picture = Self {
            seconds,
            stats: now.clone(),
            rates: Rates {
                messages: per_second(now.messages, then.messages),
                message_bytes: per_second(now.message_bytes, then.message_bytes),
                deliveries: per_second(now.deliveries, then.deliveries),
                dropped: per_second(now.dropped, then.dropped),
                refused: per_second(now.refused, then.refused),
            },
            groups: after.groups.iter().map(group).collect(),
            endpoints: others.map(endpoint).collect(),
            waits: after.waits.clone(),
            more: after.more,
            users: BTreeMap::new(),
        };
        for endpoint in &picture.endpoints {
            let uid = endpoint.now.of.uid;
            picture.users.entry(uid).or_insert_with(|| user_name(uid));
        }
        picture
    }

    /// The whole bus in a line.
    pub(super) fn headline(&self) -> String {
        let Stats { connections, endpoints, groups, waiting_sends, open_requests, .. } = self.stats;
        let times = &self.stats.time_in_queue;
        format!(
            "{} messages/s ({}/s), {} deliveries/s, {} dropped/s, {} refused/s; {connections} \
             connections, {endpoints} endpoints, {groups} groups, {waiting_sends} waiting sends, \
             {open_requests} open requests; in queues p50 {} p99 {}",
            number(self.rates.messages),
            bytes(self.rates.message_bytes),
            number(self.rates.deliveries),
            number(self.rates.dropped),
            number(self.rates.refused),
            at_most(times.messages, times.p50_us),
            at_most(times.messages, times.p99_us),
        )
    }

    /// One view as text.
    pub(super) fn table(&self, view: TopView, sort: Option<TopSort>) -> Table {
        match view {
            TopView::Groups => self.groups(sort),
            TopView::Members => self.members(sort),
            TopView::Waits => self.waits(),
        }
    }

    fn groups(&self, sort: Option<TopSort>) -> Table {
        let mut groups: Vec<&Group> = self.groups.iter().collect();
        groups.sort_by(|one, other| {
            let by = |g: &Group| match sort {
                Some(TopSort::Out | TopSort::Bytes) => g.bytes_per_second,
                Some(TopSort::Dropped) => g.dropped_per_second,
                Some(TopSort::Queue | TopSort::Members) => f64::from(g.now.members),
                Some(TopSort::Name) => 0.0,
                _ => g.messages_per_second,
            };
            let names = || one.now.group.cmp(&other.now.group);
            by(other).total_cmp(&by(one)).then_with(names)
        });
        let row = |group: &&Group| {
            vec![
                group.now.group.to_string(),
                group.now.members.to_string(),
                number(group.messages_per_second),
                bytes(group.bytes_per_second),
                number(group.deliveries_per_second),
                number(group.dropped_per_second),
                group.now.messages.to_string(),
                group.now.dropped.to_string(),
            ]
        };
        Table {
            header: vec![
                "GROUP", "MEMBERS", "MSG/S", "BYTES/S", "DELIV/S", "DROP/S", "MESSAGES", "DROPPED",
            ],
            rows: groups.iter().map(row).collect(),
        }
    }

    fn members(&self, sort: Option<TopSort>) -> Table {
        let mut endpoints: Vec<&Endpoint> = self.endpoints.iter().collect();
        endpoints.sort_by(|one, other| {
            #[expect(clippy::cast_precision_loss, reason = "only their order matters")]
            let by = |e: &Endpoint| match sort {
                Some(TopSort::In | TopSort::Rate) => e.received_per_second,
                Some(TopSort::Out) => e.sent_per_second,
                Some(TopSort::Bytes) => e.now.queued_bytes as f64,
                Some(TopSort::Dropped) => e.now.dropped as f64,
                Some(TopSort::Blocked) => e.now.blocked_us as f64,
                Some(TopSort::Time) => p99_rank(e),
                Some(TopSort::Members) => f64::from(e.now.memberships),
                Some(TopSort::Name) => 0.0,
                _ => e.now.blocks as f64 * 1e12 + e.now.queued_messages as f64,
            };
            let ids = || one.now.endpoint.cmp(&other.now.endpoint);
            by(other).total_cmp(&by(one)).then_with(ids)
        });
        let row = |endpoint: &&Endpoint| {
            let now = &endpoint.now;
            let times = &now.time_in_queue;
            let mut groups: Vec<_> = now.groups.iter().map(ToString::to_string).collect();
            let more = (now.memberships as usize).saturating_sub(groups.len());
            if more > 0 {
                groups.push(format!("+{more}"));
            }
            vec![
                now.endpoint.to_string(),
                program(&now.of),
                now.of.pid.to_string(),
                self.user(now.of.uid),
                format!("{}/{}", now.queued_messages, now.capacity),
                number(endpoint.received_per_second),
                number(endpoint.sent_per_second),
                at_most(times.messages, times.p50_us),
                at_most(times.messages, times.p99_us),
                now.blocks.to_string(),
                micros(now.blocked_us),
                now.dropped.to_string(),
                groups.join(","),
            ]
        };
        Table {
            header: vec![
                "ENDPOINT", "PROGRAM", "PID", "USER", "QUEUE", "IN/S", "OUT/S", "P50", "P99",
                "BLOCKS", "BLOCKED", "DROPPED", "GROUPS",
            ],
            rows: endpoints.iter().map(row).collect(),
        }
    }

    fn waits(&self) -> Table {
        let mut waits: Vec<&WaitingSend> = self.waits.iter().collect();
        waits.sort_by_key(|wait| (Reverse(wait.waited_us), wait.ticket));
        let row = |wait: &&WaitingSend| {
            let waited_for = wait.waits_for.iter().map(|awaited| {
                let of = &awaited.of;
                format!("{} ({}, pid {})", awaited.endpoint, program(of), of.pid)
            });
            vec![
                wait.sender.to_string(),
                program(&wait.of),
                wait.of.pid.to_string(),
                self.user(wait.of.uid),
                destination(&wait.to),
                micros(wait.waited_us),
                waited_for.collect::<Vec<_>>().join(", "),
                micros(wait.stood_us),
            ]
        };
        Table {
            header: vec![
                "SENDER",
                "PROGRAM",
                "PID",
                "USER",
                "TO",
                "WAITS",
                "FOR ENDPOINT",
                "SINCE",
            ],
            rows: waits.iter().map(row).collect(),
        }
    }

    fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }
}

/// Who has messages beyond the last range stands first.
#[expect(clippy::cast_precision_loss, reason = "only their order matters")]
fn p99_rank(endpoint: &Endpoint) -> f64 {
    let times = &endpoint.now.time_in_queue;
    match times.p99_us {
        Some(us) => us as f64,
        None if times.messages > 0 => f64::MAX,
        None => -1.0,
    }
}

fn program(of: &Whose) -> String {
    of.program.clone().unwrap_or_else(|| "-".to_owned())
}

fn user_name(uid: u32) -> String {
    let known = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    known.map_or_else(|| uid.to_string(), |user| user.name)
}

/// The end of the range in which a share of the messages are; beyond the last one there is no end.
fn at_most(messages: u64, us: Option<u64>) -> String {
    match us {
        Some(us) => format!("<{}", micros(us)),
        None if messages > 0 => ">10s".to_owned(),
        None => "-".to_owned(),
    }
}

fn micros(us: u64) -> String {
    match us {
        0 => "0".to_owned(),
        1..1_000 => format!("{us}us"),
        1_000..1_000_000 => format!("{}ms", us / 1_000),
        1_000_000..60_000_000 => format!("{}.{}s", us / 1_000_000, us / 100_000 % 10),
        _ => format!("{}m{:02}s", us / 60_000_000, us / 1_000_000 % 60),
    }
}

fn number(rate: f64) -> String {
    if rate >= 10.0 || rate == 0.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

fn bytes(rate: f64) -> String {
    match rate {
        ..1_024.0 => format!("{rate:.0}B"),
        ..1_048_576.0 => format!("{:.1}KiB", rate / 1_024.0),
        _ => format!("{:.1}MiB", rate / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(uptime_us: u64, messages: [u64; 2]) -> Sample {
        let group = |(at, messages): (u64, u64)| GroupTraffic {
            group: format!("g{at}").parse().expect("a name"),
            group_id: GroupId::from_raw(at),
            members: 1,
            messages,
            bytes: 10 * messages,
            deliveries: messages,
            dropped: 0,
        };
        let mut stats = Stats::default();
        (stats.uptime_us, stats.messages) = (uptime_us, messages.iter().sum());
        let groups = (1..).zip(messages).map(group).collect();
        Sample { stats, groups, ..Sample::default() }
    }

    #[test]
    fn rates_are_differences_over_the_brokers_time() {
        let (before, after) = (sample(1_000_000, [10, 20]), sample(3_000_000, [50, 20]));
        let picture = Picture::new(&before, &after, EndpointId::from_raw(0));
        let table = picture.table(TopView::Groups, None);
        assert_eq!(table.rows[0][..4], ["g1", "1", "20", "200B"]);
        assert_eq!(table.rows[1][..4], ["g2", "1", "0", "0B"]);
        let by_name = picture.table(TopView::Groups, Some(TopSort::Name));
        assert_eq!(by_name.rows[0][0], "g1");
        assert!(picture.headline().starts_with("20 messages/s"), "{}", picture.headline());
    }

    #[test]
    fn a_group_that_is_new_counts_from_nothing() {
        let before = Sample { stats: sample(0, [0, 0]).stats, ..Sample::default() };
        let picture = Picture::new(&before, &sample(500_000, [4, 0]), EndpointId::from_raw(0));
        assert_eq!(picture.table(TopView::Groups, None).rows[0][2], "8.0");
    }

    #[test]
    fn times_are_short() {
        for (us, text) in
            [(0, "0"), (300, "300us"), (3_000, "3ms"), (1_250_000, "1.2s"), (61_000_000, "1m01s")]
        {
            assert_eq!(micros(us), text);
        }
        assert_eq!(at_most(0, None), "-");
        assert_eq!(at_most(3, None), ">10s");
        assert_eq!(at_most(3, Some(300)), "<300us");
    }
}
