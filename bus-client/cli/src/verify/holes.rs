//! Messages of which there is no trace but the serial that they took.

use std::collections::HashSet;

use super::{
    history::{Gap, Heard, History, Identity, Trace},
    known::{Known, show},
    memberships::Memberships,
    report::{Kind, Report},
};

/// Holes in senders' serials.
#[derive(Debug, Default)]
pub(super) struct Holes {
    told: HashSet<Identity>,
    pub(super) unjudged: u64,
}

impl Holes {
    /// Finds messages of which there is no trace but the number that they took.
    pub(super) fn check(
        &mut self,
        history: &History,
        known: &Known,
        trace: &Trace,
        memberships: &Memberships,
        report: &mut Report,
    ) {
        let mut heard: Vec<&Heard> = trace.messages.iter().collect();
        heard.sort_by_key(|m| m.identity);
        for pair in heard.windows(2) {
            let [before, after] = [pair[0], pair[1]];
            let (sender, serial) = (before.identity.sender, before.identity.serial);
            let between = after.identity.serial.saturating_sub(serial).saturating_sub(1);
            if sender != after.identity.sender || between == 0 {
                continue;
            }
            let unknown =
                between.saturating_sub(known.known_serials(sender, serial, after.identity.serial));
            if unknown == 0 || !self.told.insert(before.identity) {
                continue;
            }
            match judge(known, trace, memberships, before, after) {
                Hole::Unjudged => self.unjudged += unknown,
                Hole::Told => {}
                Hole::Gap => report.add(Kind::Gap, || {
                    (
                        history.show(after.place),
                        format!(
                            "{} follows serial {serial} at {}, and {unknown} between them are \
                             nowhere",
                            show(after.sequence, after.identity),
                            history.show(before.place)
                        ),
                    )
                }),
            }
        }
    }
}

/// What a hole means.
enum Hole {
    /// The trace should have had those messages.
    Gap,
    /// A gap report covers them.
    Told,
    /// They may have gone elsewhere.
    Unjudged,
}

fn judge(
    known: &Known,
    trace: &Trace,
    memberships: &Memberships,
    before: &Heard,
    after: &Heard,
) -> Hole {
    let sender = before.identity.sender;
    let destinations = known.destinations.get(&sender);
    // A sender whose receipts we have, or who is known to send elsewhere too, may have sent these
    // elsewhere.
    let only = destinations.filter(|d| d.len() == 1).and_then(|d| d.first());
    let Some(Some(group)) = only.filter(|_| !known.receipted.contains(&sender)) else {
        return Hole::Unjudged;
    };
    let (from, to) = (before.sequence, after.sequence);
    let throughout = memberships.spans(*group).iter().any(|span| {
        span.from < from && to <= span.to && !span.filtered() && span.deaf_to() != Some(sender)
    });
    if !throughout {
        return Hole::Unjudged;
    }
    let overlaps =
        |gap: &Gap| gap.group == *group && gap.missed.first < to && gap.missed.last > from;
    if trace.gaps.iter().any(overlaps) { Hole::Told } else { Hole::Gap }
}
