//! When a trace's listener was a member of what (G4), and so what its trace must contain.

use std::collections::HashMap;

use super::{
    history::{Ended, Group, History, Join, Place, Trace},
    known::show,
    report::{Kind, Report},
};

/// When one trace's listener was a member of what.
#[derive(Debug)]
pub(super) struct Memberships(HashMap<Group, Vec<Span>>);

/// One membership: everything in `(from, to]` is in the trace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) from: u64,
    pub(super) to: u64,
    /// Up to where messages may stand at all: the end of the membership, if it has one.
    pub(super) end: Option<(u64, Place)>,
    pub(super) join: Option<Join>,
}

impl Span {
    pub(super) fn filtered(&self) -> bool {
        self.join.is_some_and(|j| j.filtered)
    }

    pub(super) fn deaf_to(&self) -> Option<u64> {
        self.join.and_then(|j| j.deaf_to)
    }

    /// Whether messages may be missing for want of room.
    fn drops(&self, trace: &Trace, group: Group) -> bool {
        match self.join {
            Some(join) => join.drops,
            None => trace.gaps.iter().any(|gap| gap.group == group),
        }
    }

    /// A loss is told with the group's next message, or later; if none came, it was not told.
    fn end_at_last_word(&mut self, trace: &Trace, group: Group, heard: &[u64]) {
        let within = |sequence: &u64| (self.from..=self.to).contains(sequence);
        let gaps = trace.gaps.iter().filter(|gap| gap.group == group);
        let last_gap = gaps.map(|gap| gap.missed.last).filter(within).max();
        let last_heard = heard.iter().copied().filter(within).max();
        self.to = last_gap.max(last_heard).unwrap_or(self.from);
    }
}

impl Memberships {
    pub(super) fn of(history: &History, trace: &Trace) -> Self {
        let mut heard: HashMap<Group, Vec<u64>> = HashMap::new();
        for message in &trace.messages {
            if let Some(group) = message.group {
                heard.entry(group).or_default().push(message.sequence);
            }
        }
        let last_gap = trace.gaps.iter().map(|g| g.missed.last).max();
        let last_heard = trace.messages.iter().map(|m| m.sequence).max();
        let reach = trace.through.or(last_heard.max(last_gap)).unwrap_or(0);
        let mut spans = HashMap::new();
        for group in history.groups() {
            let mut heard = heard.remove(&group).unwrap_or_default();
            heard.sort_unstable();
            let mut of_group = spans_of(trace, group, &heard, reach);
            for span in of_group.iter_mut().filter(|s| s.drops(trace, group)) {
                span.end_at_last_word(trace, group, &heard);
            }
            if !of_group.is_empty() {
                spans.insert(group, of_group);
            }
        }
        Self(spans)
    }

    pub(super) fn spans(&self, group: Group) -> &[Span] {
        self.0.get(&group).map_or(&[], Vec::as_slice)
    }

    /// A member gets nothing from before its join or after its leave.
    pub(super) fn check_views(&self, history: &History, trace: &Trace, report: &mut Report) {
        for heard in &trace.messages {
            let Some(group) = heard.group else { continue };
            let spans = self.spans(group);
            let inside = |span: &Span| {
                heard.sequence >= span.from && span.end.is_none_or(|(end, _)| heard.sequence <= end)
            };
            if spans.iter().any(inside) {
                continue;
            }
            report.add(Kind::View, || {
                let told: Vec<String> = spans.iter().map(|span| show_span(history, span)).collect();
                (
                    history.show(heard.place),
                    format!(
                        "{} is outside of the membership in {} ({})",
                        show(heard.sequence, heard.identity),
                        history.group_name(group),
                        told.join("; ")
                    ),
                )
            });
        }
    }

    /// Says which ends of the trace cannot be judged.
    pub(super) fn tell_limits(&self, history: &History, trace: &Trace, report: &mut Report) {
        let name = history.file_name(trace.file);
        let mut groups: Vec<_> = self.0.iter().collect();
        groups.sort_unstable_by_key(|(group, _)| **group);
        for (group, spans) in groups {
            let group = history.group_name(*group);
            if spans.iter().any(|s| s.join.is_none()) {
                report.note(format!(
                    "{name}: no joined line for {group}: not checked whether something is missing \
                     before its first message"
                ));
            }
            if spans.iter().any(Span::filtered) {
                report.note(format!(
                    "{name}: receives {group} through a filter: not checked whether something is \
                     missing"
                ));
            }
            if spans.iter().any(|s| s.join.is_some_and(|j| j.drops)) {
                report.note(format!(
                    "{name}: may miss messages of {group} for want of room: not checked whether \
                     something is missing after its last message"
                ));
                continue;
            }
            let open = spans.last().is_some_and(|s| s.end.is_none());
            if open && !trace.ended {
                report.note(format!(
                    "{name}: does not say how it ended: not checked whether something of {group} \
                     is missing after its last line"
                ));
            }
        }
    }
}

/// A group's memberships in the trace, by their places in the order. `heard` is sorted.
fn spans_of(trace: &Trace, group: Group, heard: &[u64], reach: u64) -> Vec<Span> {
    enum Change<'a> {
        Join(&'a Join),
        End(&'a Ended),
    }
    // An end whose place nobody told is taken to be after all that was heard.
    let after_all = heard.last().map_or(reach, |s| s.saturating_add(1));
    let mut changes: Vec<(u64, Change<'_>)> = Vec::new();
    for join in trace.joins.iter().filter(|j| j.group == group) {
        changes.push((join.sequence, Change::Join(join)));
    }
    for end in trace.ends.iter().filter(|e| e.group == group) {
        changes.push((end.sequence.unwrap_or(after_all), Change::End(end)));
    }
    changes.sort_by_key(|(sequence, _)| *sequence);

    let before_first = heard.first().map_or(reach, |s| s.saturating_sub(1));
    let mut spans = Vec::new();
    let mut open: Option<&Join> = None;
    for (sequence, change) in changes {
        let close = |join: Option<&Join>, end: Option<(u64, Place)>, to: u64| Span {
            from: join.map_or(before_first.min(to), |j| j.sequence),
            to: trace.through.map_or(to, |through| to.min(through)),
            end,
            join: join.copied(),
        };
        match change {
            Change::Join(join) => {
                // Joined anew without a word about the end of the last time, as after the loss of
                // a connection: only what was heard is certain.
                if let Some(old) = open.replace(join) {
                    let heard_before = heard.partition_point(|s| *s <= sequence);
                    let last = heard[..heard_before].last().copied().unwrap_or(old.sequence);
                    spans.push(close(Some(old), Some((sequence, join.place)), last));
                }
            }
            Change::End(end) => {
                if open.is_some() || spans.is_empty() {
                    let last = sequence.saturating_sub(1);
                    spans.push(close(open.take(), Some((sequence, end.place)), last));
                }
            }
        }
    }
    match open {
        Some(join) => {
            spans.push(Span { from: join.sequence, to: reach, end: None, join: Some(*join) })
        }
        None if spans.is_empty() && !heard.is_empty() => {
            spans.push(Span { from: before_first, to: reach, end: None, join: None })
        }
        None => {}
    }
    spans
}

fn show_span(history: &History, span: &Span) -> String {
    let from = match span.join {
        Some(join) => format!("joined at {}, {}", join.sequence, history.show(join.place)),
        None => "no joined line".to_owned(),
    };
    match span.end {
        Some((sequence, place)) => format!("{from}, ended at {sequence}, {}", history.show(place)),
        None => from,
    }
}
