//! Traces and receipts, read into what the checks need.
//!
//! Invariant: every fact keeps its place (file and line), so that a finding can name both sides.
//! Payloads are not kept but as a fingerprint; a trace of a million messages fits easily.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    io::BufRead,
};

use crate::{
    exit::Failure,
    trace::{Content, Joined, Missed, ReceiptLine, TraceLine},
};

/// All that was read, by incarnations of the bus: each has an order of its own.
#[derive(Debug, Default)]
pub(super) struct Histories {
    by_incarnation: BTreeMap<String, History>,
    /// There was a file of receipts with nothing in it.
    empty_receipts: bool,
}

/// What was read of one incarnation.
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
    /// Begins what one `listen --json` printed of this incarnation.
    fn begin_trace(&mut self, name: &str) -> Trace {
        let file = self.add_file(name);
        Trace {
            file,
            messages: Vec::new(),
            gaps: Vec::new(),
            joins: Vec::new(),
            ends: Vec::new(),
            through: None,
            ended: false,
        }
    }

    /// Adds what another history has.
    fn absorb(&mut self, other: Self) {
        let first_file = u32::try_from(self.files.len()).expect("as many files as arguments");
        let groups: Vec<Group> = other.groups.iter().map(|name| self.group(name)).collect();
        let group_of = |group: Group| groups[group.0 as usize];
        let moved = |place: &mut Place| place.file += first_file;
        self.files.extend(other.files);
        self.notes.extend(other.notes);
        self.has_receipts |= other.has_receipts;
        for mut trace in other.traces {
            trace.file += first_file;
            for heard in &mut trace.messages {
                moved(&mut heard.place);
                heard.group = heard.group.map(group_of);
            }
            for gap in &mut trace.gaps {
                moved(&mut gap.place);
                gap.group = group_of(gap.group);
            }
            for join in &mut trace.joins {
                moved(&mut join.place);
                join.group = group_of(join.group);
            }
            for end in &mut trace.ends {
                moved(&mut end.place);
                end.group = group_of(end.group);
            }
            self.traces.push(trace);
        }
        for mut receipt in other.receipts {
            moved(&mut receipt.place);
            receipt.group = receipt.group.map(group_of);
            self.receipts.push(receipt);
        }
    }

    fn add_receipt(&mut self, place: Place, line: &ReceiptLine) {
        let group = line.group.as_deref().map(|g| self.group(g));
        self.receipts.push(Receipt {
            place,
            sequence: line.sequence,
            group,
            identity: Identity { sender: line.sender, serial: line.sender_serial },
            recipients: line.recipients,
            after: line.after,
        });
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
            TraceLine::Retained(_) | TraceLine::State(_) | TraceLine::Flags(_) => {}
            // What could not be joined again has had its end with the broker before. A new broker
            // is another history.
            TraceLine::Lost(_) | TraceLine::Reconnected(_) => {}
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
}

impl Histories {
    /// Adds what one `listen --json` printed.
    pub(super) fn add_trace(&mut self, name: &str, text: impl BufRead) -> Result<(), Failure> {
        let mut of = None;
        let mut open: Option<Trace> = None;
        let mut unknown = 0_u64;
        each_line(name, text, |number, line| {
            let Ok(line) = line else {
                let note = format!("{name}:{number}: cut off in the middle, passed over");
                self.of(of.as_deref().unwrap_or_default()).notes.push(note);
                return;
            };
            let next = match &line {
                TraceLine::Joined(joined) if of.is_none() => joined.incarnation.clone(),
                TraceLine::Reconnected(back) => Some(back.incarnation.clone()),
                _ => None,
            };
            if let Some(next) = next {
                if let (Some(mut trace), TraceLine::Reconnected(back)) = (open.take(), &line) {
                    (trace.through, trace.ended) = (Some(back.last.unwrap_or(0)), true);
                    self.of(of.as_deref().unwrap_or_default()).traces.push(trace);
                }
                of = Some(next);
            }
            let history = self.of(of.as_deref().unwrap_or_default());
            let mut trace = open.take().unwrap_or_else(|| history.begin_trace(name));
            let place = Place { file: trace.file, line: number };
            history.add_line(&mut trace, place, line, &mut unknown);
            open = Some(trace);
        })?;
        let history = self.of(of.as_deref().unwrap_or_default());
        let trace = open.unwrap_or_else(|| history.begin_trace(name));
        history.traces.push(trace);
        if unknown > 0 {
            history.notes.push(format!("{name}: {unknown} lines of an unknown type passed over"));
        }
        Ok(())
    }

    /// Adds what one `send --json` printed.
    pub(super) fn add_receipts(&mut self, name: &str, text: impl BufRead) -> Result<(), Failure> {
        let mut files = HashMap::new();
        each_line(name, text, |number, line: Result<ReceiptLine, _>| {
            let of = line.as_ref().ok().and_then(|line| line.incarnation.clone());
            let of = of.unwrap_or_default();
            let history = self.of(&of);
            history.has_receipts = true;
            let file = *files.entry(of).or_insert_with(|| history.add_file(name));
            match line {
                Ok(line) => history.add_receipt(Place { file, line: number }, &line),
                Err(_) => {
                    let note = format!("{name}:{number}: cut off in the middle, passed over");
                    history.notes.push(note);
                }
            }
        })?;
        if files.is_empty() {
            self.empty_receipts = true;
        }
        Ok(())
    }

    /// Each incarnation's, with its name; that of files which do not tell has none.
    pub(super) fn all(mut self) -> Vec<(String, History)> {
        let mut told = self.by_incarnation.keys().filter(|name| !name.is_empty());
        match (told.next().cloned(), told.next()) {
            (None, _) => {
                self.of("");
            }
            // Where all who tell tell of one, the others are taken to be of that, too.
            (Some(only), None) => {
                if let Some(untold) = self.by_incarnation.remove("") {
                    self.of(&only).absorb(untold);
                }
            }
            (Some(_), Some(_)) => {}
        }
        if self.empty_receipts {
            self.by_incarnation.values_mut().for_each(|history| history.has_receipts = true);
        }
        self.by_incarnation.into_iter().collect()
    }

    fn of(&mut self, incarnation: &str) -> &mut History {
        if !self.by_incarnation.contains_key(incarnation) {
            self.by_incarnation.insert(incarnation.to_owned(), History::default());
        }
        let history = self.by_incarnation.get_mut(incarnation);
        history.expect("it is there, or was just put there")
    }
}

/// Reads JSON lines. A last line without a newline that makes no sense was cut off by the death of
/// its writer, and is passed on as what it is; any other one that makes no sense is an error.
fn each_line<T: serde::de::DeserializeOwned>(
    name: &str,
    mut text: impl BufRead,
    mut each: impl FnMut(u64, Result<T, CutOff>),
) -> Result<(), Failure> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read =
            text.read_until(b'\n', &mut line).map_err(|error| Failure::about(name, error))?;
        if read == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(value) => each(number, Ok(value)),
            Err(_) if line.last() != Some(&b'\n') => each(number, Err(CutOff)),
            Err(error) => return Err(Failure::about(format_args!("{name}:{number}"), error)),
        }
    }
    Ok(())
}

/// A line whose writer died within it.
#[derive(Debug)]
struct CutOff;

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
