//! All messages that any file tells of, and the contradictions between those who tell of them.
//!
//! Invariant: each sequence belongs to one message and each message has one sequence; whoever says
//! otherwise has been reported and is not in here. The checks that follow rely on it.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{
    history::{Group, Heard, History, Identity, Place, Receipt, Trace},
    report::{Kind, Report},
};

/// All messages that any file tells of.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) by_sequence: HashMap<u64, Sighting>,
    pub(super) by_identity: HashMap<Identity, u64>,
    /// Sorted.
    pub(super) identities: Vec<Identity>,
    /// The sequences of each group, sorted.
    in_group: HashMap<Group, Vec<u64>>,
    /// Where each sender's messages went, as far as anybody saw; `None` is to one endpoint.
    pub(super) destinations: HashMap<u64, BTreeSet<Option<Group>>>,
    /// Senders of which there are receipts.
    pub(super) receipted: HashSet<u64>,
}

/// One message, and who told of it first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sighting {
    pub(super) place: Place,
    pub(super) identity: Identity,
    pub(super) group: Option<Group>,
    /// Where it was first heard, and what it carried.
    pub(super) heard: Option<(Place, u64)>,
    pub(super) receipt: Option<Place>,
    /// In how many traces it is.
    pub(super) traces: u64,
    /// The file of the last one of them.
    last_file: u32,
}

impl Known {
    pub(super) fn gather(history: &History, report: &mut Report) -> Self {
        let mut known = Self::default();
        for trace in &history.traces {
            for heard in &trace.messages {
                known.add_heard(history, trace, heard, report);
            }
        }
        let mut groups = history.groups();
        // Receipts of other programs may lack the group; where there is but one, it is that one.
        let only_group = groups.next().filter(|_| groups.next().is_none());
        for receipt in &history.receipts {
            known.add_receipt(history, receipt, receipt.group.or(only_group), report);
        }
        known.index();
        known
    }

    fn add_heard(&mut self, history: &History, trace: &Trace, heard: &Heard, report: &mut Report) {
        let new = Sighting {
            place: heard.place,
            identity: heard.identity,
            group: heard.group,
            heard: Some((heard.place, heard.fingerprint)),
            receipt: None,
            traces: 1,
            last_file: trace.file,
        };
        let Some(old) = self.add(history, heard.sequence, new, report) else {
            return;
        };
        if old.last_file != trace.file {
            old.traces += 1;
            old.last_file = trace.file;
        }
        let (first_place, fingerprint) = *old.heard.get_or_insert((heard.place, heard.fingerprint));
        if fingerprint != heard.fingerprint || old.group != heard.group {
            report.add(Kind::Identity, || {
                let message = show(heard.sequence, heard.identity);
                let first = history.show(first_place);
                (
                    history.show(heard.place),
                    format!("{message} has another content or group than at {first}"),
                )
            });
        }
    }

    fn add_receipt(
        &mut self,
        history: &History,
        receipt: &Receipt,
        group: Option<Group>,
        report: &mut Report,
    ) {
        self.receipted.insert(receipt.identity.sender);
        let new = Sighting {
            place: receipt.place,
            identity: receipt.identity,
            group,
            heard: None,
            receipt: Some(receipt.place),
            traces: 0,
            last_file: u32::MAX,
        };
        let Some(old) = self.add(history, receipt.sequence, new, report) else {
            return;
        };
        if let Some(first) = old.receipt {
            report.add(Kind::Duplicate, || {
                let message = show(receipt.sequence, receipt.identity);
                (
                    history.show(receipt.place),
                    format!("second receipt for {message}, after {}", history.show(first)),
                )
            });
        }
        old.receipt = Some(receipt.place);
    }

    /// Adds a sighting of a message that nobody told of before, or returns the one to add to;
    /// `None` also if the two contradict each other.
    fn add(
        &mut self,
        history: &History,
        sequence: u64,
        new: Sighting,
        report: &mut Report,
    ) -> Option<&mut Sighting> {
        let place = new.place;
        let identity = new.identity;
        let old_sequence = *self.by_identity.entry(identity).or_insert(sequence);
        if old_sequence != sequence {
            report.add(Kind::Identity, || {
                let at = self.by_sequence.get(&old_sequence).map(|s| history.show(s.place));
                (
                    history.show(place),
                    format!(
                        "{} has sequence {old_sequence} at {}",
                        show(sequence, identity),
                        at.unwrap_or_default()
                    ),
                )
            });
            return None;
        }
        match self.by_sequence.entry(sequence) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(new);
                None
            }
            std::collections::hash_map::Entry::Occupied(old) => {
                let old = old.into_mut();
                if old.identity == identity {
                    return Some(old);
                }
                report.add(Kind::Identity, || {
                    let first = history.show(old.place);
                    (
                        history.show(place),
                        format!(
                            "{} and {} at {first} have one sequence",
                            show(sequence, identity),
                            show(sequence, old.identity)
                        ),
                    )
                });
                None
            }
        }
    }

    fn index(&mut self) {
        for (sequence, sighting) in &self.by_sequence {
            self.destinations.entry(sighting.identity.sender).or_default().insert(sighting.group);
            if let Some(group) = sighting.group {
                self.in_group.entry(group).or_default().push(*sequence);
            }
        }
        for sequences in self.in_group.values_mut() {
            sequences.sort_unstable();
        }
        self.identities = self.by_identity.keys().copied().collect();
        self.identities.sort_unstable();
    }

    /// The messages of a group in `(from, to]`.
    pub(super) fn between(&self, group: Group, from: u64, to: u64) -> &[u64] {
        let all = self.in_group.get(&group).map_or(&[][..], Vec::as_slice);
        let first = all.partition_point(|s| *s <= from);
        let last = all.partition_point(|s| *s <= to);
        all.get(first..last).unwrap_or_default()
    }

    /// How many messages of a sender between two of its serials anybody knows of.
    pub(super) fn known_serials(&self, sender: u64, after: u64, before: u64) -> u64 {
        let position =
            |serial| self.identities.partition_point(|i| *i < Identity { sender, serial });
        let first = position(after.saturating_add(1));
        let last = position(before);
        u64::try_from(last.saturating_sub(first)).expect("a count fits")
    }
}

/// A message as findings name it.
pub(super) fn show(sequence: u64, identity: Identity) -> String {
    let Identity { sender, serial } = identity;
    format!("message {sequence} (sender {sender}, serial {serial})")
}
