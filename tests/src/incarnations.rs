//! What listeners printed that went on with one broker after the other, taken apart by brokers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::trace::{Heard, Trace};

/// What one listener heard of one incarnation of the bus.
#[derive(Clone, Debug)]
pub struct Stay {
    /// Which.
    pub incarnation: String,
    /// What it printed.
    pub trace: Trace,
    /// Up to where it is known to be complete; none where it stayed to the end.
    pub last: Option<u64>,
}

/// Takes a trace apart. The last line may be cut.
#[must_use]
pub fn stays(path: &Path) -> Vec<Stay> {
    let text = fs::read_to_string(path).unwrap();
    let mut stays: Vec<(String, String, Option<u64>)> = Vec::new();
    for line in text.lines() {
        let Ok(value) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let incarnation = || value["incarnation"].as_str().unwrap().to_owned();
        if value["type"] == "reconnected" {
            let (before, _, last) = stays.last_mut().expect("it was joined before");
            assert_eq!(value["before"], before.as_str(), "{line}");
            *last = Some(value["last"].as_u64().unwrap_or(0));
            stays.push((incarnation(), String::new(), None));
            continue;
        }
        if stays.is_empty() {
            assert_eq!(value["type"], "joined", "{line}");
            stays.push((incarnation(), String::new(), None));
        }
        let (_, text, _) = stays.last_mut().expect("there is one now");
        text.push_str(line);
        text.push('\n');
    }
    let stay = |(incarnation, text, last): (String, String, _)| Stay {
        incarnation,
        trace: Trace::parse(&text),
        last,
    };
    stays.into_iter().map(stay).collect()
}

/// G1, G2, G4 within each incarnation: all who were there at the same time heard the same in the
/// same order, each from its join up to the last that it tells of. Gives how many messages were
/// heard in each.
#[track_caller]
pub fn assert_agree(listeners: &[Vec<Stay>]) -> Vec<usize> {
    let mut all: BTreeMap<&str, BTreeMap<u64, &Heard>> = BTreeMap::new();
    for stay in listeners.iter().flatten() {
        let heard = all.entry(&stay.incarnation).or_default();
        for message in &stay.trace.messages {
            let same = heard.insert(message.sequence, message);
            assert!(same.is_none_or(|same| same == message), "{same:?} and {message:?}");
        }
    }
    for stay in listeners.iter().flatten() {
        let messages = all[&*stay.incarnation].values().copied().cloned().collect();
        let whole = Trace { joined: 0, messages, ..Trace::default() };
        let mut trace = stay.trace.clone();
        let last = trace.messages.last().map_or(trace.joined, |heard| heard.sequence);
        let told = stay.last.unwrap_or(last);
        assert!(told >= last || trace.messages.is_empty(), "{told} was told, and {last} heard");
        trace.left = Some(trace.left.unwrap_or(u64::MAX).min(told.max(trace.joined) + 1));
        trace.assert_part_of(&whole);
    }
    all.values().map(BTreeMap::len).collect()
}
