//! CBOR bodies of control messages: checked as a whole first, then read by serde.
//!
//! Invariant: serde sees a body only after [`check`] has walked it from end to end. It is then one
//! item without anything after it, nested no deeper than [`MAX_DEPTH`], in the part of CBOR that
//! control messages use (definite lengths, no tags, UTF-8 text), and no count in it promises more
//! items than it has bytes. So what decoding allocates is bounded by the length of the body, which
//! the frame's header bounds, and a hostile body costs its sender as much as us.

use std::str;

use bytes::{BufMut, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a body is not CBOR of the kind that control messages use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at byte {at} of the body")]
pub struct CborError {
    at: usize,
    problem: &'static str,
}

/// Reads one value that fills `body`.
///
/// # Errors
///
/// `Err(Ok(..))` if the body is not well-formed, `Err(Err(..))` with serde's words if it is not
/// what was expected.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    check(body).map_err(DecodeError::Malformed)?;
    ciborium::from_reader(body).map_err(|error| {
        DecodeError::Content(match error {
            ciborium::de::Error::Semantic(_, text) => text,
            other => other.to_string(),
        })
    })
}

/// The two ways in which a body is wrong.
#[derive(Debug)]
pub(super) enum DecodeError {
    Malformed(CborError),
    Content(String),
}

/// Appends one value.
pub(super) fn encode<T: Serialize>(out: &mut BytesMut, value: &T) {
    ciborium::into_writer(value, out.writer())
        .expect("memory takes every write, and control messages hold only what CBOR can say");
}

/// The text under `key` of the map that `body` is, if all of that is so.
pub(super) fn text_under<'a>(body: &'a [u8], key: &str) -> Option<&'a str> {
    Walk { bytes: item_under(body, key)?, at: 0 }.text().ok()?
}

/// The item under `key` of the map that `body` is, if all of that is so.
pub(super) fn item_under<'a>(body: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let mut walk = Walk { bytes: body, at: 0 };
    let (MAP, pairs) = walk.head().ok()? else {
        return None;
    };
    for _ in 0..pairs {
        let found = walk.text().ok()? == Some(key);
        let start = walk.at;
        walk.item(1).ok()?;
        if found {
            return Some(&body[start..walk.at]);
        }
    }
    None
}

/// Walks one whole body; see the invariant above for what is so afterwards.
pub(super) fn check(body: &[u8]) -> Result<(), CborError> {
    let mut walk = Walk { bytes: body, at: 0 };
    walk.item(0)?;
    if walk.at < body.len() {
        return Err(walk.error("something follows the value"));
    }
    Ok(())
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    /// Passes over one item and all that is in it. The recursion ends at [`MAX_DEPTH`].
    fn item(&mut self, depth: usize) -> Result<(), CborError> {
        if depth > MAX_DEPTH {
            return Err(self.error("nested too deep"));
        }
        let start = self.at;
        let (major, argument) = self.head()?;
        match major {
            UNSIGNED | NEGATIVE => {}
            BYTES => drop(self.take(argument)?),
            TEXT => {
                let text = self.take(argument)?;
                if str::from_utf8(text).is_err() {
                    self.at = start;
                    return Err(self.error("text that is not UTF-8"));
                }
            }
            ARRAY => self.items(argument, depth)?,
            MAP => {
                let items = argument
                    .checked_mul(2)
                    .ok_or_else(|| self.error("a map longer than the body"))?;
                self.items(items, depth)?;
            }
            SIMPLE => {}
            _ => {
                self.at = start;
                return Err(self.error("a tag, which control messages do not use"));
            }
        }
        Ok(())
    }

    fn items(&mut self, count: u64, depth: usize) -> Result<(), CborError> {
        // Each item has at least one byte, so a count beyond the body is false at once.
        if count > self.left() {
            return Err(self.error("more items than the body has bytes"));
        }
        for _ in 0..count {
            self.item(depth + 1)?;
        }
        Ok(())
    }

    /// Reads an item's major type and argument. For simple values and floats the argument says
    /// nothing, and their bytes are passed over.
    fn head(&mut self) -> Result<(u8, u64), CborError> {
        let start = self.at;
        let initial = self.take(1)?[0];
        let (major, low) = (initial >> 5, initial & 0x1f);
        let argument = match low {
            0..=23 => u64::from(low),
            24..=27 => self
                .take(1 << (low - 24))?
                .iter()
                .fold(0, |number, &byte| number << 8 | u64::from(byte)),
            _ => {
                self.at = start;
                return Err(self.error("a length that is not definite"));
            }
        };
        if major == SIMPLE && !matches!(low, 20..=22 | 25..=27) {
            self.at = start;
            return Err(self.error("a simple value other than false, true and null"));
        }
        Ok((major, argument))
    }

    /// The next item, passed over, if it is a text.
    fn text(&mut self) -> Result<Option<&'a str>, CborError> {
        let start = self.at;
        if let (TEXT, length) = self.head()? {
            return Ok(str::from_utf8(self.take(length)?).ok());
        }
        self.at = start;
        self.item(1)?;
        Ok(None)
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], CborError> {
        let taken = usize::try_from(count)
            .ok()
            .and_then(|count| self.bytes.get(self.at..)?.get(..count))
            .ok_or_else(|| self.error("the body ends in the middle of an item"))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn error(&self, problem: &'static str) -> CborError {
        CborError { at: self.at, problem }
    }
}

/// How deep maps and arrays may lie in each other. A description needs the most: 4, and up to 6 for
/// each of the [`MAX_TYPE_DEPTH`](crate::MAX_TYPE_DEPTH) levels of its types.
const MAX_DEPTH: usize = 64;

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const SIMPLE: u8 = 7;

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_of_cbor_that_is_used_passes() {
        let nested = |depth: usize| [vec![0x81; depth], vec![0]].concat();
        let rows: Vec<(&str, Vec<u8>, bool)> = vec![
            ("an empty map", vec![0xa0], true),
            ("a small number", vec![0x17], true),
            ("the largest number", [vec![0x1b], vec![0xff; 8]].concat(), true),
            ("a negative number", vec![0x38, 0xff], true),
            ("a number in more bytes than needed", vec![0x19, 0, 1], true),
            ("bytes", vec![0x42, 0xff, 0], true),
            ("text", vec![0x62, 0xc3, 0xa4], true),
            ("text that is not UTF-8", vec![0x61, 0xff], false),
            ("an array", vec![0x82, 0, 1], true),
            ("false, true, null", vec![0x83, 0xf4, 0xf5, 0xf6], true),
            ("undefined", vec![0xf7], false),
            ("another simple value", vec![0xf0], false),
            ("a simple value in two bytes", vec![0xf8, 0xff], false),
            ("floats", vec![0x82, 0xf9, 0, 0, 0xfa, 0, 0, 0, 0], true),
            ("nothing", vec![], false),
            ("something after it", vec![0, 0], false),
            ("a cut number", vec![0x19, 0], false),
            ("a cut text", vec![0x62, b'a'], false),
            ("a cut array", vec![0x82, 0], false),
            ("a cut map", vec![0xa1, 0], false),
            ("a reserved length", vec![0x1c], false),
            ("an indefinite array", vec![0x9f, 0xff], false),
            ("an indefinite text", vec![0x7f, 0xff], false),
            ("a break", vec![0xff], false),
            ("a tag", vec![0xc0, 0], false),
            ("as deep as may be", nested(MAX_DEPTH), true),
            ("one deeper", nested(MAX_DEPTH + 1), false),
            ("very deep", nested(60_000), false),
            ("a huge array", [vec![0x9b], vec![0xff; 8]].concat(), false),
            ("a huge map", [vec![0xbb], vec![0xff; 8]].concat(), false),
            ("a huge text", [vec![0x7b], vec![0xff; 8]].concat(), false),
        ];
        for (case, body, good) in rows {
            assert_eq!(check(&body).is_ok(), good, "{case}: {:?}", check(&body));
        }
    }

    #[test]
    fn offences_are_told_with_their_place() {
        let error = check(&[0x82, 0, 0x61, 0xff]).unwrap_err();
        assert_eq!(error.to_string(), "text that is not UTF-8 at byte 2 of the body");
    }

    #[test]
    fn text_is_found_under_its_key_and_nowhere_else() {
        // {"a": {"op": "no"}, 7: "op", "op": "yes"}
        let body = b"\xa3\x61a\xa1\x62op\x62no\x07\x62op\x62op\x63yes";
        assert_eq!(text_under(body, "op"), Some("yes"));
        assert_eq!(text_under(body, "a"), None, "it is a map");
        assert_eq!(text_under(body, "b"), None);
        assert_eq!(text_under(b"\x62op", "op"), None, "not a map");
        assert_eq!(text_under(b"\xa1\x62op", "op"), None, "cut");
    }
}
