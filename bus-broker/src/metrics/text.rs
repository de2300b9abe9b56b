//! The text format of OpenMetrics 1.0, as far as it is needed: gauges, counters, histograms, info.
//!
//! Invariant: all samples of a family stand together behind its description, and a label's value is
//! escaped here and nowhere else; so whoever calls a group or a program what it likes makes no line
//! of its own.

use std::fmt::Write as _;

/// The types of families that are written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Gauge,
    Counter,
    Histogram,
    Info,
}

/// A text that grows by families.
#[derive(Debug, Default)]
pub(super) struct Text(String);

/// A family that is being written.
#[derive(Debug)]
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
    kind: Type,
}

/// Labels of a sample: names that we choose, values that anybody may have chosen.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    /// Begins a family. The name has no suffix; `unit`, if there is one, is the end of it.
    pub(super) fn family<'a>(
        &'a mut self,
        name: &'a str,
        kind: Type,
        unit: &str,
        help: &str,
    ) -> Family<'a> {
        debug_assert!(unit.is_empty() || name.ends_with(unit), "{name} is in {unit}");
        let word = match kind {
            Type::Gauge => "gauge",
            Type::Counter => "counter",
            Type::Histogram => "histogram",
            Type::Info => "info",
        };
        let text = &mut self.0;
        line(text, format_args!("# TYPE {name} {word}"));
        if !unit.is_empty() {
            line(text, format_args!("# UNIT {name} {unit}"));
        }
        line(text, format_args!("# HELP {name} {help}"));
        Family { text, name, kind }
    }

    /// A family of one gauge without labels.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, Type::Gauge, "", help).sample(&[], value);
    }

    /// A family of one counter without labels.
    pub(super) fn counter(&mut self, name: &str, unit: &str, help: &str, value: u64) {
        self.family(name, Type::Counter, unit, help).sample(&[], value);
    }

    /// The whole text.
    pub(super) fn end(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

impl Family<'_> {
    /// One sample of a gauge, a counter or an info.
    pub(super) fn sample(&mut self, labels: Labels<'_>, value: u64) {
        let suffix = match self.kind {
            Type::Counter => "_total",
            Type::Info => "_info",
            Type::Gauge | Type::Histogram => "",
        };
        self.write(suffix, labels, format_args!("{value}"));
    }

    /// One sample in seconds.
    pub(super) fn seconds(&mut self, labels: Labels<'_>, micros: u64) {
        let suffix = if self.kind == Type::Counter { "_total" } else { "" };
        let (whole, rest) = (micros / 1_000_000, micros % 1_000_000);
        self.write(suffix, labels, format_args!("{whole}.{rest:06}"));
    }

    /// A histogram: how many are in each range that ends at a bound, and in the one beyond the last;
    /// and their sum. Bounds and sum are in microseconds, and written in seconds.
    pub(super) fn histogram(&mut self, bounds_us: &[u64], counts: &[u64], sum_us: u64) {
        let mut below = 0;
        let ends = bounds_us.iter().map(|us| {
            let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
            // As numbers are usually written: 0.0001, 1.0.
            let text = text.trim_end_matches('0');
            if text.ends_with('.') { format!("{text}0") } else { text.to_owned() }
        });
        for (end, count) in ends.chain(["+Inf".to_owned()]).zip(counts) {
            below += count;
            self.write("_bucket", &[("le", &end)], format_args!("{below}"));
        }
        self.write("_count", &[], format_args!("{below}"));
        let (whole, rest) = (sum_us / 1_000_000, sum_us % 1_000_000);
        self.write("_sum", &[], format_args!("{whole}.{rest:06}"));
    }

    fn write(&mut self, suffix: &str, labels: Labels<'_>, value: std::fmt::Arguments<'_>) {
        let text = &mut *self.text;
        text.push_str(self.name);
        text.push_str(suffix);
        if !labels.is_empty() {
            text.push('{');
            for (at, (name, value)) in labels.iter().enumerate() {
                if at > 0 {
                    text.push(',');
                }
                text.push_str(name);
                text.push_str("=\"");
                for c in value.chars() {
                    match c {
                        '\\' => text.push_str("\\\\"),
                        '"' => text.push_str("\\\""),
                        '\n' => text.push_str("\\n"),
                        c => text.push(c),
                    }
                }
                text.push('"');
            }
            text.push('}');
        }
        line(text, format_args!(" {value}"));
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("memory takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_the_format_says() {
        let mut text = Text::default();
        text.gauge("a_things", "Things now.", 3);
        text.counter("a_read_bytes", "bytes", "Bytes read.", 7);
        let mut waits = text.family("a_wait_seconds", Type::Counter, "seconds", "Time.");
        waits.seconds(&[("group", "g\"\\\n")], 1_500_000);
        let mut times = text.family("a_time_seconds", Type::Histogram, "seconds", "Times.");
        times.histogram(&[100, 1_000_000], &[1, 2, 3], 4_000_001);
        let expected = "\
# TYPE a_things gauge
# HELP a_things Things now.
a_things 3
# TYPE a_read_bytes counter
# UNIT a_read_bytes bytes
# HELP a_read_bytes Bytes read.
a_read_bytes_total 7
# TYPE a_wait_seconds counter
# UNIT a_wait_seconds seconds
# HELP a_wait_seconds Time.
a_wait_seconds_total{group=\"g\\\"\\\\\\n\"} 1.500000
# TYPE a_time_seconds histogram
# UNIT a_time_seconds seconds
# HELP a_time_seconds Times.
a_time_seconds_bucket{le=\"0.0001\"} 1
a_time_seconds_bucket{le=\"1.0\"} 3
a_time_seconds_bucket{le=\"+Inf\"} 6
a_time_seconds_count 6
a_time_seconds_sum 4.000001
# EOF
";
        assert_eq!(text.end(), expected);
    }
}
