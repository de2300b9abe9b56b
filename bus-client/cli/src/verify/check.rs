//! The checks.
//!
//! Every queue is a subsequence of the bus's one order (G2), and a message's sequence is its place
//! in it. So it suffices to check each trace against the sequences, and the sequences against each
//! other: if sequences rise in every trace, and no two traces disagree about which message a
//! sequence belongs to, then any two messages stand in the same order in any two traces. Nothing
//! is compared pairwise, and the time is that of some sorting and look-ups.
//!
//! What a trace must contain follows from its memberships: everything of the group that anybody
//! knows of, later than the join and not later than the trace reaches (G1, G4), but for what a gap
//! report covers (G7). A message that nobody knows of leaves a hole in its sender's serials.

use std::collections::{HashMap, HashSet};

use super::{
    history::{Gap, Group, Heard, History, Identity, Place, Trace},
    holes::Holes,
    known::{Known, Sighting, show},
    memberships::Memberships,
    report::{Kind, Report},
};

/// Checks everything that the history allows to check.
pub(super) fn check(history: &History) -> Report {
    let mut report = Report {
        traces: history.traces.len(),
        receipts: history.receipts.len(),
        ..Report::default()
    };
    let known = Known::gather(history, &mut report);
    report.messages = known.by_sequence.len();
    for trace in &history.traces {
        check_order(history, trace, &mut report);
    }
    check_senders(history, &known, &mut report);
    let mut holes = Holes::default();
    for trace in &history.traces {
        let memberships = Memberships::of(history, trace);
        memberships.check_views(history, trace, &mut report);
        check_complete(history, &known, trace, &memberships, &mut report);
        holes.check(history, &known, trace, &memberships, &mut report);
        memberships.tell_limits(history, trace, &mut report);
    }
    check_receipts(history, &known, &mut report);
    tell_unchecked(history, &known, &holes, &mut report);
    report
}

/// Within one trace sequences rise, and no message comes twice.
fn check_order(history: &History, trace: &Trace, report: &mut Report) {
    let mut seen: HashMap<Identity, Place> = HashMap::with_capacity(trace.messages.len());
    let mut highest: Option<&Heard> = None;
    for heard in &trace.messages {
        let message = || show(heard.sequence, heard.identity);
        if let Some(first) = seen.insert(heard.identity, heard.place) {
            report.add(Kind::Duplicate, || {
                (
                    history.show(heard.place),
                    format!("{} was there before, at {}", message(), history.show(first)),
                )
            });
            continue;
        }
        match highest {
            Some(above) if heard.sequence < above.sequence => report.add(Kind::Order, || {
                (
                    history.show(heard.place),
                    format!(
                        "{} comes after {} at {}",
                        message(),
                        show(above.sequence, above.identity),
                        history.show(above.place)
                    ),
                )
            }),
            _ => highest = Some(heard),
        }
    }
}

/// What a sender sent first stands first: serials are drawn at the commit point, as sequences are.
fn check_senders(history: &History, known: &Known, report: &mut Report) {
    for pair in known.identities.windows(2) {
        let [first, second] = [pair[0], pair[1]];
        if first.sender != second.sender {
            continue;
        }
        let [before, after] = [known.by_identity[&first], known.by_identity[&second]];
        if before < after {
            continue;
        }
        let (Some(one), Some(other)) =
            (known.by_sequence.get(&before), known.by_sequence.get(&after))
        else {
            continue;
        };
        report.add(Kind::Order, || {
            (
                history.show(other.place),
                format!(
                    "{} stands before {} at {}, which its sender sent first",
                    show(after, second),
                    show(before, first),
                    history.show(one.place)
                ),
            )
        });
    }
}

/// A member has every message of its membership, but for those that a gap report covers.
fn check_complete(
    history: &History,
    known: &Known,
    trace: &Trace,
    memberships: &Memberships,
    report: &mut Report,
) {
    let own: HashSet<u64> = trace.messages.iter().map(|m| m.sequence).collect();
    let mut gaps: Vec<(Gap, u64)> = trace.gaps.iter().map(|gap| (*gap, 0)).collect();
    gaps.sort_by_key(|(gap, _)| (gap.group, gap.missed.first));
    let lines = Lines::of(trace);
    for group in history.groups() {
        for span in memberships.spans(group).iter().filter(|s| !s.filtered()) {
            let mut run = Run::default();
            for sequence in known.between(group, span.from, span.to) {
                let sighting = &known.by_sequence[sequence];
                if own.contains(sequence) {
                    run.end(history, trace, &lines, report);
                } else if span.deaf_to() != Some(sighting.identity.sender)
                    && !covered(&mut gaps, group, *sequence)
                {
                    run.add(*sequence, sighting);
                }
            }
            run.end(history, trace, &lines, report);
        }
    }
    for (gap, known_missing) in &gaps {
        check_gap(history, known, trace, &own, gap, *known_missing, report);
    }
}

/// Counts the message towards the gap report that covers it, if there is one.
fn covered(gaps: &mut [(Gap, u64)], group: Group, sequence: u64) -> bool {
    let after = gaps.partition_point(|(g, _)| (g.group, g.missed.first) <= (group, sequence));
    let Some((gap, count)) = gaps[..after].last_mut() else {
        return false;
    };
    let inside = gap.group == group && sequence <= gap.missed.last;
    *count += u64::from(inside);
    inside
}

/// A gap report makes sense, and is about messages that are indeed missing.
fn check_gap(
    history: &History,
    known: &Known,
    trace: &Trace,
    own: &HashSet<u64>,
    gap: &Gap,
    known_missing: u64,
    report: &mut Report,
) {
    let missed = gap.missed;
    let told = format!(
        "gap report of {} in {}, {} to {}",
        missed.missed,
        history.group_name(gap.group),
        missed.first,
        missed.last
    );
    let place = || history.show(gap.place);
    let span = missed.last.checked_sub(missed.first);
    if missed.missed == 0 || span.is_none_or(|span| missed.missed - 1 > span) {
        report.add(Kind::Gap, || (place(), format!("{told}: contradicts itself")));
        return;
    }
    if known_missing > missed.missed {
        report.add(Kind::Gap, || (place(), format!("{told}: {known_missing} are missing there")));
    }
    let from = missed.first.saturating_sub(1);
    let heard = known.between(gap.group, from, missed.last);
    if let Some(sequence) = heard.iter().find(|s| own.contains(s)) {
        report.add(Kind::Gap, || {
            let at = trace.messages.iter().find(|m| m.sequence == *sequence);
            let at = at.map(|m| history.show(m.place)).unwrap_or_default();
            (place(), format!("{told}: message {sequence} was not missed, see {at}"))
        });
    }
}

/// Missing messages that follow each other; told as one violation.
#[derive(Debug, Default)]
struct Run(Option<Missing>);

#[derive(Debug)]
struct Missing {
    first: (u64, Sighting),
    last: (u64, Sighting),
    count: u64,
}

impl Run {
    fn add(&mut self, sequence: u64, sighting: &Sighting) {
        let this = (sequence, *sighting);
        match &mut self.0 {
            Some(missing) => {
                missing.last = this;
                missing.count += 1;
            }
            None => {
                self.0 = Some(Missing { first: this, last: this, count: 1 });
            }
        }
    }

    fn end(&mut self, history: &History, trace: &Trace, lines: &Lines, report: &mut Report) {
        let Some(Missing { first, last, count }) = self.0.take() else {
            return;
        };
        // Known from another listener: somebody got it. Known from its receipt alone: nobody did.
        let kind = match first.1.heard {
            Some(_) => Kind::Gap,
            None => Kind::Loss,
        };
        report.add(kind, || {
            let tell = |(sequence, sighting): (u64, Sighting)| {
                let place = history.show(sighting.place);
                format!("{} at {place}", show(sequence, sighting.identity))
            };
            let name = history.file_name(trace.file);
            let what = match count {
                1 => tell(first),
                _ => format!("{count} messages, from {} to {}", tell(first), tell(last)),
            };
            let group = first.1.group.map_or("", |g| history.group_name(g));
            let place = lines.around(history, trace, first.0);
            (place, format!("{name} lacks {what}, though a member of {group}"))
        });
    }
}

/// The lines of a trace by sequence.
#[derive(Debug)]
struct Lines(Vec<(u64, Place)>);

impl Lines {
    fn of(trace: &Trace) -> Self {
        let mut lines: Vec<_> = trace.messages.iter().map(|m| (m.sequence, m.place)).collect();
        lines.sort_by_key(|(sequence, _)| *sequence);
        Self(lines)
    }

    /// The line after which a message belongs.
    fn around(&self, history: &History, trace: &Trace, sequence: u64) -> String {
        let after = self.0.partition_point(|(s, _)| *s < sequence);
        match self.0[..after].last() {
            Some((_, place)) => history.show(*place),
            None => format!("{}:0", history.file_name(trace.file)),
        }
    }
}

/// What the receipts tell, beyond that the messages exist.
fn check_receipts(history: &History, known: &Known, report: &mut Report) {
    for receipt in &history.receipts {
        let message = || show(receipt.sequence, receipt.identity);
        if receipt.sequence <= receipt.after {
            report.add(Kind::Causality, || {
                let cause = known.by_sequence.get(&receipt.after);
                let cause = cause.map_or(String::new(), |s| {
                    format!(" ({} at {})", show(receipt.after, s.identity), history.show(s.place))
                });
                let after = receipt.after;
                (
                    history.show(receipt.place),
                    format!("{} was sent after its sender had taken {after}{cause}", message()),
                )
            });
        }
        let Some(sighting) = known.by_sequence.get(&receipt.sequence) else {
            continue;
        };
        if sighting.identity == receipt.identity && sighting.traces > receipt.recipients {
            report.add(Kind::Delivery, || {
                let (traces, recipients) = (sighting.traces, receipt.recipients);
                (
                    history.show(receipt.place),
                    format!(
                        "{} has {recipients} recipients, yet {traces} traces have it",
                        message()
                    ),
                )
            });
        }
    }
}

/// Says what the files did not suffice for.
fn tell_unchecked(history: &History, known: &Known, holes: &Holes, report: &mut Report) {
    for note in &history.notes {
        report.note(note);
    }
    if !history.has_receipts {
        report.note("no receipts (--sends): causality, and loss of what no trace has, not checked");
    } else {
        let without = known.destinations.keys().filter(|s| !known.receipted.contains(s));
        match without.count() {
            0 => {}
            n => report.note(format!(
                "no receipts of {n} senders: causality, and loss of what no trace has, not checked \
                 for them"
            )),
        }
    }
    let nowhere = known.by_sequence.values().filter(|s| s.heard.is_none() && s.group.is_none());
    match nowhere.count() {
        0 => {}
        n => report.note(format!(
            "{n} receipts name no group and no trace has their message: loss not checked for them"
        )),
    }
    match holes.unjudged {
        0 => {}
        n => report.note(format!(
            "{n} messages that the senders' serials show are in no file; they may have gone \
             elsewhere: not checked"
        )),
    }
}

#[cfg(test)]
mod tests;
