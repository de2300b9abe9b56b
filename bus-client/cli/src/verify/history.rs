//! Traces and receipts, read into what the checks need.
//!
//! Invariant: every fact keeps its place (file and line), so that a finding can name both sides.
//! Payloads are not kept but as a fingerprint; a trace of a million messages fits easily.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io::BufRead,
};

use crate::{
    exit::Failure,
    trace::{Content, Joined, Missed, ReceiptLine, TraceLine},
};

/// All that was read.
#[derive(Debug, Default)]
pub(super) struct History {
    files: Vec<String>,
    groups: Vec<String>,
    group_ids: HashMap<String, Group>,
    pub(super) traces: Vec<Trace>,
    pub(super) receipts: Vec<Receipt>,
    /// Whether there were files of receipts, be they empty.
    pub(super) has_receipts: bool,
    /// What was odd but no violation.
    pub(super) notes: Vec<String>,
}

/// A group, by the order in which groups were first seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Group(u32);

/// A line of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    file: u32,
    line: u64,
}

/// Who sent a message, and as which of its messages: what makes it this message and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Identity {
    pub(super) sender: u64,
    pub(super) serial: u64,
}

/// What one listener printed.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) file: u32,
    /// In the order of the lines.
    pub(super) messages: Vec<Heard>,
    pub(super) gaps: Vec<Gap>,
    /// In the order of the lines.
    pub(super) joins: Vec<Join>,
    pub(super) ends: Vec<Ended>,
    /// How far the trace says that it is complete.
    pub(super) through: Option<u64>,
    /// Whether it says how it ended.
    pub(super) ended: bool,
}

/// A message in a trace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) place: Place,
    pub(super) sequence: u64,
    pub(super) group: Option<Group>,
    pub(super) identity: Identity,
    pub(super) fingerprint: u64,
}

/// A loss that the listener was told of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap {
    pub(super) place: Place,
    pub(super) group: Group,
    pub(super) missed: Missed,
}

/// A membership's begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Join {
    pub(super) place: Place,
    pub(super) group: Group,
    pub(super) sequence: u64,
    /// The listener's endpoint, if what it sends itself does not come back to it.
    pub(super) deaf_to: Option<u64>,
    /// Whether it misses messages rather than make senders wait.
    pub(super) drops: bool,
    pub(super) filtered: bool,
}

/// A membership's end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) place: Place,
    pub(super) group: Group,
    pub(super) sequence: Option<u64>,
}

/// A sender's receipt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receipt {
    pub(super) place: Place,
    pub(super) sequence: u64,
    pub(super) group: Option<Group>,
    pub(super) identity: Identity,
    pub(super) recipients: u64,
    pub(super) after: u64,
}

impl History {
    /// Adds what one `listen --json` printed.
    pub(super) fn add_trace(&mut self, name: &str, text: impl BufRead) -> Result<(), Failure> {
        let file = self.add_file(name);
        let mut trace = Trace {
            file,
            messages: Vec::new(),
            gaps: Vec::new(),
            joins: Vec::new(),
            ends: Vec::new(),
            through: None,
            ended: false,
        };
        let mut unknown = 0_u64;
        self.each_line(file, text, |history, place, line| {
            history.add_line(&mut trace, place, line, &mut unknown);
        })?;
        if unknown > 0 {
            self.notes.push(format!("{name}: {unknown} lines of an unknown type passed over"));
        }
        self.traces.push(trace);
        Ok(())
    }

    /// Adds what one `send --json` printed.
    pub(super) fn add_receipts(&mut self, name: &str, text: impl BufRead) -> Result<(), Failure> {
        let file = self.add_file(name);
        self.has_receipts = true;
        self.each_line(file, text, |history, place, line: ReceiptLine| {
            let group = line.group.as_deref().map(|g| history.group(g));
            history.receipts.push(Receipt {
                place,
                sequence: line.sequence,
                group,
                identity: Identity { sender: line.sender, serial: line.sender_serial },
                recipients: line.recipients,
                after: line.after,
            });
        })
    }

    /// A place as `FILE:LINE`.
    pub(super) fn show(&self, place: Place) -> String {
        format!("{}:{}", self.file_name(place.file), place.line)
    }

    /// The name of a trace's file.
    pub(super) fn file_name(&self, file: u32) -> &str {
        &self.files[file as usize]
    }

    /// A group's name.
    pub(super) fn group_name(&self, group: Group) -> &str {
        &self.groups[group.0 as usize]
    }

    /// Every group that was named.
    pub(super) fn groups(&self) -> impl Iterator<Item = Group> {
        (0..).take(self.groups.len()).map(Group)
    }

    fn add_line(&mut self, trace: &mut Trace, place: Place, line: TraceLine, unknown: &mut u64) {
        match line {
            TraceLine::Message(message) => {
                let group = message.group.as_deref().map(|g| self.group(g));
                trace.messages.push(Heard {
                    place,
                    sequence: message.sequence,
                    group,
                    identity: Identity { sender: message.sender, serial: message.sender_serial },
                    fingerprint: fingerprint(&message.content),
                });
                if let (Some(missed), Some(group)) = (message.missed, group) {
                    trace.gaps.push(Gap { place, group, missed });
                }
            }
            TraceLine::Gap(gap) => {
                let group = self.group(&gap.group);
                trace.gaps.push(Gap { place, group, missed: gap.missed });
            }
            TraceLine::Joined(joined) => {
                let join = self.join(place, &joined);
                trace.joins.push(join);
            }
            TraceLine::Left(ended) | TraceLine::Evicted(ended) => {
                let group = self.group(&ended.group);
                trace.ends.push(Ended { place, group, sequence: ended.sequence });
            }
            TraceLine::End(end) => {
                trace.ended = true;
                trace.through = end.through;
            }
            // What came before the join is no part of what this listener heard of the order.
            TraceLine::Retained(_) | TraceLine::State(_) => {}
            TraceLine::Unknown => *unknown += 1,
        }
    }

    fn join(&mut self, place: Place, joined: &Joined) -> Join {
        let flag = |name: &str| joined.flags.iter().any(|f| f == name);
        let loopback = flag("loopback");
        let drops = flag("drop-when-full");
        Join {
            place,
            group: self.group(&joined.group),
            sequence: joined.sequence,
            deaf_to: joined.endpoint.filter(|_| !loopback),
            drops,
            filtered: joined.filter.is_some(),
        }
    }

    fn group(&mut self, name: &str) -> Group {
        if let Some(group) = self.group_ids.get(name) {
            return *group;
        }
        let group = Group(u32::try_from(self.groups.len()).expect("fewer groups than bytes read"));
        self.groups.push(name.to_owned());
        self.group_ids.insert(name.to_owned(), group);
        group
    }

    fn add_file(&mut self, name: &str) -> u32 {
        let file = u32::try_from(self.files.len()).expect("as many files as arguments");
        self.files.push(name.to_owned());
        file
    }

    /// Reads JSON lines. A last line without a newline that makes no sense was cut off by the
    /// death of its writer, and is passed over; any other one that makes no sense is an error.
    fn each_line<T: serde::de::DeserializeOwned>(
        &mut self,
        file: u32,
        mut text: impl BufRead,
        mut each: impl FnMut(&mut Self, Place, T),
    ) -> Result<(), Failure> {
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = text
                .read_until(b'\n', &mut line)
                .map_err(|error| Failure::about(self.file_name(file), error))?;
            if read == 0 {
                break;
            }
            let place = Place { file, line: number };
            if line.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice(&line) {
                Ok(value) => each(self, place, value),
                Err(_) if line.last() != Some(&b'\n') => {
                    let note = format!("{}: cut off in the middle, passed over", self.show(place));
                    self.notes.push(note);
                }
                Err(error) => return Err(Failure::about(self.show(place), error)),
            }
        }
        Ok(())
    }
}

/// The keys are fixed, so that equal contents have equal fingerprints in every trace.
fn fingerprint(content: &Content) -> u64 {
    let mut hasher = DefaultHasher::new();
    match &content.payload {
        Some(serde_json::Value::String(text)) => (1_u8, text).hash(&mut hasher),
        Some(value) => (2_u8, value.to_string()).hash(&mut hasher),
        None => 0_u8.hash(&mut hasher),
    }
    content.payload_base64.hash(&mut hasher);
    content.content_type.hash(&mut hasher);
    content.key.hash(&mut hasher);
    content.key_base64.hash(&mut hasher);
    content.operation.hash(&mut hasher);
    content.fields.hash(&mut hasher);
    hasher.finish()
}
