//! From runs to figures: medians, ratios, a table, JSON.
//!
//! Invariant: a figure is the median over the runs, and a ratio is one of medians. What would make
//! a run worthless is not: `lost` and `overtaken_max` are the worst of all runs, and `one_order`
//! holds only if it held in every run, since a median would hide a failure.

use std::collections::BTreeMap;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::{
    large::Large,
    plan::{LimitsOf, Plan, Workload},
    stage::Outcome,
};

/// What is told of one system.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    system: &'static str,
    transport: &'static str,
    workload: &'static str,
    senders: usize,
    receivers: usize,
    size: usize,
    runs: usize,
    deliveries_per_second: Option<f64>,
    bytes_per_second: Option<f64>,
    /// For `connect` and `idle`, of each connection.
    cpu_us_per_delivery: Option<f64>,
    /// Of the broker alone, for each message that was sent, however many it went to.
    broker_cpu_us_per_message: Option<f64>,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    broker_rss_kib: Option<f64>,
    lost: u64,
    one_order: bool,
    batch: usize,
    limits: LimitsOf,
    pinned: Option<Vec<usize>>,
    connects_per_second: Option<f64>,
    kib_per_connection: Option<f64>,
    p99_wait_us: Option<f64>,
    overtaken_max: Option<u64>,
    does_not_guarantee: &'static str,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    large: Option<Large>,
    #[serde(skip)]
    ours: bool,
    /// This over each other system's, in the objects of ours.
    ratio: BTreeMap<&'static str, Ratio>,
    #[serde(skip)]
    broken: bool,
}

/// Ours over theirs. Where nothing is delivered, `deliveries` is of connections.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Ratio {
    deliveries: Option<f64>,
    cpu: Option<f64>,
    p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kib_per_connection: Option<f64>,
}

impl Figures {
    /// Of the runs of a plan; there is at least one.
    pub(crate) fn new(plan: &Plan, transport: &'static str, outcomes: &[Outcome]) -> Self {
        let messages = !plan.workload.is_about_connections();
        let fair = plan.workload == Workload::Fair;
        let over = |figure: &dyn Fn(&Outcome) -> Option<f64>| {
            median(outcomes.iter().filter_map(figure).collect())
        };
        let rate = |count: u64, outcome: &Outcome| {
            let seconds = outcome.elapsed.as_secs_f64();
            (count > 0 && seconds > 0.0).then(|| count as f64 / seconds)
        };
        let lost = outcomes.iter().map(|o| o.lost).max().unwrap_or(0);
        let misplaced = outcomes.iter().any(|o| o.misplaced > 0);
        let one_order = outcomes.iter().all(|o| o.one_order);
        let complete = lost == 0 && !misplaced || !plan.system.is_lossless();
        let deliveries = over(&|o| rate(o.deliveries, o));
        Self {
            system: plan.system.name(),
            transport,
            workload: plan.workload.name(),
            senders: plan.senders,
            receivers: plan.receivers,
            size: plan.size,
            runs: outcomes.len(),
            deliveries_per_second: deliveries,
            bytes_per_second: deliveries.map(|rate| rate * plan.size as f64),
            cpu_us_per_delivery: over(&|o| {
                let count = o.deliveries.max(o.connected);
                (count > 0).then(|| o.cpu.as_secs_f64() * 1e6 / count as f64)
            }),
            broker_cpu_us_per_message: over(&|o| {
                let cpu = o.broker_cpu.filter(|_| o.sent > 0)?;
                Some(cpu.as_secs_f64() * 1e6 / o.sent as f64)
            }),
            p50_us: over(&|o| o.latencies.percentile(50.0)),
            p99_us: over(&|o| o.latencies.percentile(99.0)),
            broker_rss_kib: over(&|o| o.broker_rss.map(|kib| kib as f64)),
            lost,
            one_order,
            batch: plan.batch,
            limits: plan.limits,
            pinned: (!plan.pin.is_empty()).then(|| plan.pin.clone()),
            connects_per_second: over(&|o| rate(o.connected, o)),
            kib_per_connection: over(&|o| o.kib_per_connection),
            p99_wait_us: over(&|o| o.waits.percentile(99.0)),
            overtaken_max: fair.then(|| outcomes.iter().map(|o| o.overtaken_max).max()).flatten(),
            does_not_guarantee: plan.system.lacks(),
            large: Large::new(plan, outcomes),
            ours: plan.system.is_ours(),
            ratio: BTreeMap::new(),
            broken: !complete
                || plan.system.promises_one_order() && !one_order
                || messages && outcomes.iter().any(|o| o.deliveries == 0),
        }
    }

    /// Whether what was measured broke what its system promises.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    pub(crate) fn system(&self) -> &'static str {
        self.system
    }

    /// How its receivers read, if that was measured.
    pub(crate) fn reading(&self) -> Option<&'static str> {
        self.large.as_ref().map(Large::reading)
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.ours
    }

    pub(crate) fn large_mut(&mut self) -> Option<&mut Large> {
        self.large.as_mut()
    }

    fn over(&self, other: &Self) -> Ratio {
        let either = |figures: &Self| figures.deliveries_per_second.or(figures.connects_per_second);
        Ratio {
            deliveries: ratio(either(self), either(other)),
            cpu: ratio(self.cpu_us_per_delivery, other.cpu_us_per_delivery),
            p50: ratio(self.p50_us, other.p50_us),
            kib_per_connection: ratio(self.kib_per_connection, other.kib_per_connection),
        }
    }
}

/// Compares each of ours with every other system measured.
pub(crate) fn compare(all: &mut [Figures]) {
    for at in 0..all.len() {
        if all[at].ours {
            let others = all.iter().enumerate().filter(|(other, _)| *other != at);
            let ratios = others.map(|(_, other)| (other.system, all[at].over(other))).collect();
            all[at].ratio = ratios;
        }
    }
}

/// For people.
pub(crate) fn table(all: &[Figures]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic);
    let columns = columns(all);
    let mut header = vec!["system"];
    header.extend(columns.iter().map(|column| column.title));
    header.extend(["ours / theirs", "does not guarantee"]);
    table.set_header(header);
    let ours = all.first();
    for figures in all {
        let mut row = vec![Cell::new(figures.system)];
        row.extend(
            columns.iter().map(|column| {
                Cell::new((column.value)(figures)).set_alignment(CellAlignment::Right)
            }),
        );
        let ratio = ours.and_then(|ours| ours.ratio.get(figures.system));
        row.push(Cell::new(ratio.map_or_else(String::new, told)));
        row.push(Cell::new(figures.does_not_guarantee));
        table.add_row(row);
    }
    table
}

/// A column of the table.
#[derive(Clone, Copy)]
struct Column {
    title: &'static str,
    value: fn(&Figures) -> String,
}

/// Those that anything is known of.
fn columns(all: &[Figures]) -> Vec<Column> {
    let mut columns = Vec::new();
    for column in COLUMNS {
        if all.iter().any(|figures| !(column.value)(figures).is_empty()) {
            columns.push(*column);
        }
    }
    columns
}

const COLUMNS: &[Column] = &[
    Column { title: "deliveries/s", value: |f| number(f.deliveries_per_second) },
    Column {
        title: "MiB/s",
        value: |f| number(f.bytes_per_second.map(|rate| rate / f64::from(1 << 20))),
    },
    Column { title: "connects/s", value: |f| number(f.connects_per_second) },
    Column { title: "CPU µs each", value: |f| number(f.cpu_us_per_delivery) },
    Column { title: "p50 µs", value: |f| number(f.p50_us) },
    Column { title: "p99 µs", value: |f| number(f.p99_us) },
    Column { title: "p99 wait µs", value: |f| number(f.p99_wait_us) },
    Column {
        title: "overtaken",
        value: |f| f.overtaken_max.map_or_else(String::new, |n| n.to_string()),
    },
    Column { title: "broker µs/msg", value: |f| number(f.broker_cpu_us_per_message) },
    Column { title: "broker KiB", value: |f| number(f.broker_rss_kib) },
    Column { title: "KiB/connection", value: |f| number(f.kib_per_connection) },
    Column {
        title: "lost",
        value: |f| match f.deliveries_per_second {
            Some(_) => f.lost.to_string(),
            None => String::new(),
        },
    },
    Column {
        title: "one order",
        value: |f| match (f.deliveries_per_second, f.one_order) {
            (None, _) => String::new(),
            (Some(_), true) => "yes".to_owned(),
            (Some(_), false) => "no".to_owned(),
        },
    },
];

fn told(ratio: &Ratio) -> String {
    let parts = [
        ("rate", ratio.deliveries),
        ("CPU", ratio.cpu),
        ("p50", ratio.p50),
        ("KiB", ratio.kib_per_connection),
    ];
    let parts = parts.iter().filter_map(|(name, value)| {
        let value = (*value)?;
        Some(format!("{name} {value:.2}"))
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// Three digits are all that such measurements have.
fn number(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value >= 1e6 => format!("{:.2} M", value / 1e6),
        Some(value) if value >= 1e4 => format!("{:.1} k", value / 1e3),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.3}"),
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

fn ratio(ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    let theirs = theirs.filter(|theirs| *theirs > 0.0)?;
    Some(ours? / theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_between_the_two() {
        for (values, expected) in [
            (vec![], None),
            (vec![3.0], Some(3.0)),
            (vec![9.0, 1.0, 2.0], Some(2.0)),
            (vec![4.0, 1.0, 2.0, 9.0], Some(3.0)),
        ] {
            assert_eq!(median(values.clone()), expected, "{values:?}");
        }
    }

    #[test]
    fn nothing_over_nothing_is_no_ratio() {
        assert_eq!(ratio(Some(3.0), Some(2.0)), Some(1.5));
        assert_eq!(ratio(Some(3.0), Some(0.0)), None);
        assert_eq!(ratio(None, Some(2.0)), None);
    }
}
