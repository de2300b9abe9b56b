//! What `verify` found, and what it could not check.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

/// The kinds of violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Two messages stand in different orders, or a sequence does not rise (G2).
    Order,
    /// One sequence for two messages, two sequences or two contents for one (G2).
    Identity,
    /// A message that a member got twice.
    Duplicate,
    /// A member lacks a message that another one has, or that a sender's serials show (G1, G7).
    Gap,
    /// A member lacks a message that its sender has a receipt for (G1).
    Loss,
    /// A message stands outside of the membership (G4).
    View,
    /// A message stands before one that its sender had taken (G3).
    Causality,
    /// More members have a message than its receipt says (G1).
    Delivery,
}

/// One violation: what broke which promise, with its places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    /// `FILE:LINE`.
    pub(crate) place: String,
    /// Which message, and what is wrong with it.
    pub(crate) text: String,
}

/// The findings.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) traces: usize,
    /// Different messages in all traces together.
    pub(crate) messages: usize,
    pub(crate) receipts: usize,
    /// The first ones of each kind.
    pub(crate) violations: Vec<Violation>,
    /// How many there are of each kind.
    pub(crate) counts: BTreeMap<Kind, usize>,
    /// What was not checked, and why; and what was odd but broke nothing.
    pub(crate) not_checked: Vec<String>,
}

impl Report {
    /// Adds a violation. Place and text are made only if they will be shown.
    pub(crate) fn add(&mut self, kind: Kind, told: impl FnOnce() -> (String, String)) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= MOST_SHOWN {
            let (place, text) = told();
            self.violations.push(Violation { kind, place, text });
        }
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.not_checked.push(text.into());
    }

    /// Adds what was found in the order of another broker.
    pub(super) fn append(&mut self, incarnation: &str, other: Self) {
        let of = |text: String| match incarnation {
            "" => text,
            _ => format!("incarnation {incarnation}: {text}"),
        };
        self.traces += other.traces;
        self.messages += other.messages;
        self.receipts += other.receipts;
        for violation in other.violations {
            let same = self.violations.iter().filter(|shown| shown.kind == violation.kind);
            if same.count() < MOST_SHOWN {
                self.violations.push(violation);
            }
        }
        for (kind, count) in other.counts {
            *self.counts.entry(kind).or_default() += count;
        }
        self.not_checked.extend(other.not_checked.into_iter().map(of));
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Order => "order",
            Self::Identity => "identity",
            Self::Duplicate => "duplicate",
            Self::Gap => "gap",
            Self::Loss => "loss",
            Self::View => "view",
            Self::Causality => "causality",
            Self::Delivery => "delivery",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for violation in &self.violations {
            let Violation { kind, place, text } = violation;
            writeln!(f, "{place}: {kind}: {text}")?;
        }
        for (kind, count) in &self.counts {
            if *count > MOST_SHOWN {
                writeln!(f, "{kind}: and {} more", count - MOST_SHOWN)?;
            }
        }
        for note in &self.not_checked {
            writeln!(f, "note: {note}")?;
        }
        let found: usize = self.counts.values().sum();
        let verdict = match found {
            0 => "ok".to_owned(),
            1 => "1 violation".to_owned(),
            n => format!("{n} violations"),
        };
        let Self { traces, messages, receipts, .. } = self;
        writeln!(f, "{verdict}: {traces} traces, {messages} messages, {receipts} receipts")
    }
}

/// Violations of one kind that are shown; a broken trace can have as many as lines.
const MOST_SHOWN: usize = 20;
