//! The lines of `listen --json` and of `send --json`: what is written, and what `verify` reads.
//!
//! Invariant: a message line says nothing that depends on who received it (loss apart), so that two
//! members that missed nothing print equal bytes, and equal digests show one order (G2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A line of `listen --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(crate) enum TraceLine {
    /// The listener is a member from this place on: what is later in the group's order reaches it.
    Joined(Joined),
    /// A message.
    Message(MessageLine),
    /// A message from before the join, that the group retained.
    Retained(MessageLine),
    /// All that a group retained has been printed.
    State(State),
    /// The owner of the gated group has changed the listener's flags.
    Flags(Flags),
    /// A loss that no message of the group has followed yet.
    Gap(GapLine),
    /// The broker ended the membership.
    Evicted(Ended),
    /// The broker was lost, and here is another one.
    Reconnected(Reconnected),
    /// A group could not be joined again after that.
    Lost(Ended),
    /// The membership was left; everything of the group before this place has been printed.
    Left(Ended),
    /// The last line.
    End(End),
    /// A line of a later version, which this one passes over.
    #[serde(other)]
    Unknown,
}

/// A membership's begin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    pub(crate) group: String,
    pub(crate) sequence: u64,
    /// The listener's own endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<u64>,
    /// The member's flags, as `members` names them: `loopback`, `drop-when-full`.
    #[serde(default)]
    pub(crate) flags: Vec<String>,
    /// Members of the group, the listener included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) members: Option<u64>,
    /// Whether the join created the group.
    #[serde(default)]
    pub(crate) created: bool,
    /// A receive filter, as it was given. What a filter rejects is no loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) filter: Option<String>,
    /// The incarnation of the bus, to which all sequences belong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) incarnation: Option<String>,
}

/// Where the order of one broker ends, and that of another begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reconnected {
    /// The incarnation before.
    pub(crate) before: String,
    /// The highest sequence of it that the listener was told of: all before it has been printed, and
    /// later messages may be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<u64>,
    /// Brokers in between of which nothing was told.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) skipped: u64,
    /// The incarnation now.
    pub(crate) incarnation: String,
    /// The listener's endpoint now.
    pub(crate) endpoint: u64,
}

impl From<&bus_client::Reconnected> for Reconnected {
    fn from(back: &bus_client::Reconnected) -> Self {
        Self {
            before: incarnation(back.before),
            last: back.last.map(bus_client::Sequence::get),
            skipped: back.skipped.into(),
            incarnation: incarnation(back.incarnation),
            endpoint: back.endpoint.get(),
        }
    }
}

/// An incarnation as it is printed.
pub(crate) fn incarnation(bytes: [u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct MessageLine {
    pub(crate) sequence: u64,
    /// The group; none for a message to this endpoint alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    pub(crate) sender: u64,
    pub(crate) sender_serial: u64,
    #[serde(flatten)]
    pub(crate) content: Content,
    /// Messages of the group that were missed just before this one.
    #[serde(flatten)]
    pub(crate) missed: Option<Missed>,
}

/// What a message carries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Content {
    /// `cbor` or `json`; none for text and bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) content_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    /// The key where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) operation: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) fields: BTreeMap<String, String>,
    /// Text, or a typed payload's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) payload: Option<Value>,
    /// The payload where it is neither UTF-8 nor of a type that we can show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) payload_base64: Option<String>,
}

/// The end of what a group retained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) group: String,
    /// The place of the join.
    pub(crate) sequence: u64,
    /// Retained messages.
    pub(crate) messages: u64,
}

/// Other flags of the listener's own membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Flags {
    pub(crate) group: String,
    /// From here on.
    pub(crate) sequence: u64,
    pub(crate) flags: Vec<String>,
}

/// How much was missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Missed {
    /// How many messages.
    pub(crate) missed: u64,
    /// The first one's sequence.
    pub(crate) first: u64,
    /// The last one's.
    pub(crate) last: u64,
}

/// A loss that was told on its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GapLine {
    pub(crate) group: String,
    #[serde(flatten)]
    pub(crate) missed: Missed,
}

/// A membership's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) group: String,
    /// Its place in the order, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sequence: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// The trace's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    /// `count`, `signal`, `timeout`, `broker-gone`, `evicted`.
    pub(crate) reason: String,
    /// The trace has everything up to and including this sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) through: Option<u64>,
}

/// A line of `send --json`: the receipt of one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReceiptLine {
    pub(crate) sequence: u64,
    pub(crate) sender: u64,
    pub(crate) sender_serial: u64,
    /// Endpoints that it was delivered to.
    pub(crate) recipients: u64,
    /// The highest sequence that the sending endpoint had taken.
    pub(crate) after: u64,
    /// Members that miss it because they were full (`DROP_WHEN_FULL`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) dropped: u64,
    /// Where it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    /// The incarnation of the bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) incarnation: Option<String>,
    /// With `--zerocopy`: the number of the loan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) completion: Option<u32>,
    /// With `--zerocopy`: how the bytes left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) way: Option<String>,
    /// With `--zerocopy`: whether they were copied on their way after all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) copied: Option<bool>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands its predicates a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> TraceLine {
        serde_json::from_str(line).expect(line)
    }

    #[test]
    fn lines_are_as_documented_and_read_back() {
        let rows = [
            (
                "a message has the contract's names, and only what is set",
                TraceLine::Message(MessageLine {
                    sequence: 7,
                    group: Some("g".to_owned()),
                    sender: 2,
                    sender_serial: 1,
                    content: Content { payload: Some(Value::from("hi")), ..Content::default() },
                    missed: None,
                }),
                r#"{"type":"message","sequence":7,"group":"g","sender":2,"sender_serial":1,"payload":"hi"}"#,
            ),
            (
                "a message after a loss has missed, first, last",
                TraceLine::Message(MessageLine {
                    sequence: 9,
                    group: Some("g".to_owned()),
                    sender: 2,
                    sender_serial: 3,
                    content: Content {
                        payload_base64: Some("/w==".to_owned()),
                        ..Content::default()
                    },
                    missed: Some(Missed { missed: 1, first: 8, last: 8 }),
                }),
                r#"{"type":"message","sequence":9,"group":"g","sender":2,"sender_serial":3,"payload_base64":"/w==","missed":1,"first":8,"last":8}"#,
            ),
            (
                "gap",
                TraceLine::Gap(GapLine {
                    group: "g".to_owned(),
                    missed: Missed { missed: 2, first: 8, last: 11 },
                }),
                r#"{"type":"gap","group":"g","missed":2,"first":8,"last":11}"#,
            ),
            (
                "left",
                TraceLine::Left(Ended { group: "g".to_owned(), sequence: Some(3), reason: None }),
                r#"{"type":"left","group":"g","sequence":3}"#,
            ),
            (
                "end",
                TraceLine::End(End { reason: "count".to_owned(), through: Some(9) }),
                r#"{"type":"end","reason":"count","through":9}"#,
            ),
        ];
        for (case, value, text) in rows {
            assert_eq!(serde_json::to_string(&value).expect(case), text, "{case}");
            assert_eq!(read(text), value, "{case}");
        }
    }

    #[test]
    fn lines_of_a_later_version_are_passed_over() {
        assert_eq!(read(r#"{"type":"view","members":3}"#), TraceLine::Unknown);
        let TraceLine::Joined(joined) =
            read(r#"{"type":"joined","group":"g","sequence":1,"new":{}}"#)
        else {
            panic!("joined");
        };
        assert_eq!((joined.sequence, joined.endpoint), (1, None));
    }

    #[test]
    fn receipts_have_the_contracts_names() {
        let receipt = ReceiptLine {
            sequence: 5,
            sender: 2,
            sender_serial: 1,
            recipients: 3,
            after: 0,
            dropped: 0,
            group: Some("g".to_owned()),
            incarnation: None,
            completion: None,
            way: None,
            copied: None,
        };
        let text =
            r#"{"sequence":5,"sender":2,"sender_serial":1,"recipients":3,"after":0,"group":"g"}"#;
        assert_eq!(serde_json::to_string(&receipt).expect("json"), text);
        assert_eq!(serde_json::from_str::<ReceiptLine>(text).expect("json"), receipt);
    }
}
