//! What `listen --json` printed, and what must hold between several of such traces.
//!
//! This checks the guarantees anew rather than with `unisono verify`, so that neither is trusted
//! alone: the tests ask both.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

/// The lines of one listener to one group.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Where it joined.
    pub joined: u64,
    /// Its endpoint.
    pub endpoint: u64,
    /// Where it left, if it did.
    pub left: Option<u64>,
    /// Why it was evicted, if it was.
    pub evicted: Option<String>,
    /// The `reason` of its last line, if it came to its end.
    pub end: Option<String>,
    /// Messages, as they came.
    pub messages: Vec<Heard>,
    /// Losses that were told: how many, the first and the last sequence.
    pub missed: Vec<(u64, u64, u64)>,
    /// The message lines, byte by byte.
    pub message_lines: String,
}

/// A message in a trace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Heard {
    /// Its place in the order.
    pub sequence: u64,
    /// Who sent it.
    pub sender: u64,
    /// The sender's number for it.
    pub sender_serial: u64,
    /// What it says.
    pub payload: String,
}

impl Trace {
    /// Reads a trace that ended as it should.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        Self::parse(&fs::read_to_string(path).unwrap())
    }

    /// Reads the whole lines of a trace; the last may be cut, as its writer was killed.
    #[must_use]
    pub fn read_cut(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        Self::parse(&text[..whole])
    }

    /// Takes a trace from its lines.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut trace = Self::default();
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).expect(line);
            let number = |key: &str| value[key].as_u64().unwrap_or_else(|| panic!("{key}: {line}"));
            if value.get("missed").is_some() {
                let missed = (number("missed"), number("first"), number("last"));
                trace.missed.push(missed);
            }
            match value["type"].as_str() {
                Some("joined") => {
                    trace.joined = number("sequence");
                    trace.endpoint = number("endpoint");
                }
                Some("message") => {
                    trace.messages.push(Heard {
                        sequence: number("sequence"),
                        sender: number("sender"),
                        sender_serial: number("sender_serial"),
                        payload: payload(&value).expect(line),
                    });
                    trace.message_lines.push_str(line);
                    trace.message_lines.push('\n');
                }
                Some("left") => trace.left = Some(number("sequence")),
                Some("evicted") => {
                    trace.evicted = Some(value["reason"].as_str().expect(line).to_owned());
                }
                Some("end") => trace.end = value["reason"].as_str().map(str::to_owned),
                // What was before the join is no part of the one order that traces share.
                Some("gap" | "retained" | "state") => {}
                _ => panic!("a line of an unknown type: {line}"),
            }
        }
        trace
    }

    /// How many messages it says it missed.
    #[must_use]
    pub fn missed_count(&self) -> u64 {
        self.missed.iter().map(|(count, _, _)| count).sum()
    }

    /// Payloads by sender, each in the order in which they came.
    #[must_use]
    pub fn by_sender(&self) -> BTreeMap<u64, Vec<&str>> {
        let mut senders = BTreeMap::<u64, Vec<&str>>::new();
        for heard in &self.messages {
            senders.entry(heard.sender).or_default().push(&heard.payload);
        }
        senders
    }

    /// G2 within one queue: sequences rise, after the join and before the leave, and each sender's
    /// serials do.
    #[track_caller]
    pub fn assert_ordered(&self) {
        let mut last = self.joined;
        let mut serials = HashMap::new();
        for heard in &self.messages {
            assert!(heard.sequence > last, "{heard:?} comes after {last}");
            last = heard.sequence;
            let serial = serials.insert(heard.sender, heard.sender_serial);
            assert!(serial < Some(heard.sender_serial), "{heard:?} comes after serial {serial:?}");
        }
        assert!(self.left.is_none_or(|left| last < left), "{last} is after the leave");
    }

    /// G1, G2 and G4 between this trace and a complete one: of what `all` has, this one has what
    /// lies between its join and its leave, and nothing else, but for what it says it missed.
    #[track_caller]
    pub fn assert_part_of(&self, all: &Self) {
        self.assert_ordered();
        let until = self.left.unwrap_or(u64::MAX);
        let expected: Vec<&Heard> = all
            .messages
            .iter()
            .filter(|heard| heard.sequence > self.joined && heard.sequence < until)
            .collect();
        let mut own = self.messages.iter().peekable();
        let mut missing = Vec::new();
        for heard in expected {
            if own.peek() == Some(&heard) {
                own.next();
            } else {
                missing.push(heard.sequence);
            }
        }
        assert_eq!(own.next(), None, "nobody else has this");
        let told = |sequence: &u64| {
            let mut ranges = self.missed.iter();
            ranges.any(|(_, first, last)| (first..=last).contains(&sequence))
        };
        let untold: Vec<_> = missing.iter().filter(|sequence| !told(sequence)).collect();
        assert!(untold.is_empty(), "missing, and not told: {untold:?}");
        assert_eq!(missing.len() as u64, self.missed_count(), "{:?}", self.missed);
    }

    /// As [`assert_part_of`](Self::assert_part_of) for a trace that was cut: it has the beginning.
    #[track_caller]
    pub fn assert_beginning_of(&self, all: &Self) {
        self.assert_ordered();
        let expected = all.messages.iter().filter(|heard| heard.sequence > self.joined);
        let expected: Vec<&Heard> = expected.take(self.messages.len()).collect();
        let own: Vec<&Heard> = self.messages.iter().collect();
        assert_eq!(own, expected);
    }
}

fn payload(line: &Value) -> Option<String> {
    let text = line.get("payload").or_else(|| line.get("payload_base64"))?;
    text.as_str().map(str::to_owned)
}

/// G1 and G2: all traces are the same, byte by byte, in order, and nothing comes twice.
#[track_caller]
pub fn assert_identical(traces: &[Trace]) {
    let (first, others) = traces.split_first().expect("there are some");
    for trace in traces {
        trace.assert_ordered();
        assert_eq!(trace.missed, []);
        let unique: HashSet<_> =
            trace.messages.iter().map(|m| (m.sender, m.sender_serial)).collect();
        assert_eq!(unique.len(), trace.messages.len(), "something comes twice");
    }
    for other in others {
        assert_eq!(other.messages.len(), first.messages.len());
        let pairs = first.message_lines.lines().zip(other.message_lines.lines());
        for (one, another) in pairs {
            assert_eq!(one, another);
        }
        assert!(other.message_lines == first.message_lines);
    }
}

/// Every sender's lines came whole and in their order, and nothing else: what each of these
/// functions of a line's number made.
#[track_caller]
pub fn assert_streams(trace: &Trace, expected: &[Vec<String>]) {
    let mut heard: Vec<Vec<&str>> = trace.by_sender().into_values().collect();
    heard.sort_unstable();
    let mut sent: Vec<Vec<&str>> =
        expected.iter().map(|lines| lines.iter().map(String::as_str).collect()).collect();
    sent.sort_unstable();
    assert!(heard == sent, "what was heard is not what was sent");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace of messages at these places, each the next of sender 9.
    fn trace(places: &[(u64, u64)]) -> Trace {
        let mut text = r#"{"type":"joined","group":"g","sequence":1,"endpoint":3}"#.to_owned();
        for (sequence, serial) in places {
            text += &format!(
                "\n{{\"type\":\"message\",\"sequence\":{sequence},\"group\":\"g\",\"sender\":9,\
                 \"sender_serial\":{serial},\"payload\":\"{serial}\"}}"
            );
        }
        Trace::parse(&text)
    }

    const WHOLE: [(u64, u64); 4] = [(2, 1), (5, 2), (7, 3), (8, 4)];

    #[track_caller]
    fn assert_refused(case: &str, check: impl FnOnce() + std::panic::UnwindSafe) {
        assert!(std::panic::catch_unwind(check).is_err(), "{case} was not noticed");
    }

    #[test]
    fn what_is_right_passes() {
        let whole = trace(&WHOLE);
        assert_identical(&[whole.clone(), whole.clone()]);
        whole.assert_part_of(&whole);
        trace(&WHOLE[..2]).assert_beginning_of(&whole);
        let texts = ["1", "2", "3", "4"].map(str::to_owned).to_vec();
        assert_streams(&whole, &[texts]);
        let mut visit = trace(&WHOLE[1..3]);
        (visit.joined, visit.left) = (3, Some(8));
        visit.assert_part_of(&whole);
        let mut lossy = trace(&[WHOLE[0], WHOLE[3]]);
        lossy.missed.push((2, 5, 7));
        lossy.assert_part_of(&whole);
    }

    #[test]
    fn what_is_wrong_is_noticed() {
        let whole = || trace(&WHOLE);
        assert_refused("an order", || trace(&[(2, 1), (7, 3), (5, 2)]).assert_ordered());
        assert_refused("a duplicate", || trace(&[(2, 1), (2, 1)]).assert_ordered());
        assert_refused("a sender's order", || trace(&[(2, 2), (5, 1)]).assert_ordered());
        assert_refused("a loss", || trace(&WHOLE[..3]).assert_part_of(&whole()));
        assert_refused("a hole", || trace(&[WHOLE[0], WHOLE[2]]).assert_beginning_of(&whole()));
        assert_refused("a message of nobody", || {
            trace(&[(2, 1), (3, 2)]).assert_part_of(&whole());
        });
        assert_refused("a message after the leave", || {
            let mut late = whole();
            late.left = Some(8);
            late.assert_ordered();
        });
        assert_refused("one of two that differ", || {
            assert_identical(&[whole(), trace(&WHOLE[..3])]);
        });
        assert_refused("a gap of another size", || {
            let mut lossy = trace(&[WHOLE[0], WHOLE[3]]);
            lossy.missed.push((1, 5, 7));
            lossy.assert_part_of(&whole());
        });
        assert_refused("a line that is not there", || {
            assert_streams(&whole(), &[vec!["1".to_owned()]]);
        });
    }
}
