//! Payloads as a person and as a program may see them.

use std::{borrow::Cow, fmt::Write as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Number, Value};

/// Bytes as base64 (standard alphabet, padded).
pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// One line of text for any bytes.
///
/// UTF-8 without control characters (tab is fine) is shown as it is. Anything else is shown with
/// escapes, backslashes included: a newline would look like the next message, and what a stranger
/// sends must not command the reader's terminal.
pub(crate) fn line(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(needs_escape) => Cow::Borrowed(text),
        _ => Cow::Owned(escaped(bytes)),
    }
}

fn needs_escape(c: char) -> bool {
    c.is_control() && c != '\t'
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\\' => text.push_str("\\\\"),
                // C0 and DEL are one byte; C1 controls are told apart from raw bytes.
                c if needs_escape(c) && c.is_ascii() => push_hex(&mut text, c as u32),
                c if needs_escape(c) => {
                    let _ = write!(text, "\\u{{{:x}}}", c as u32);
                }
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            push_hex(&mut text, u32::from(*byte));
        }
    }
    text
}

fn push_hex(text: &mut String, n: u32) {
    // Writing to a string cannot fail.
    let _ = write!(text, "\\x{n:02x}");
}

/// A JSON payload's value; `None` if it is not JSON.
pub(crate) fn from_json(bytes: &[u8]) -> Option<Value> {
    serde_json::from_slice(bytes).ok()
}

/// A CBOR payload as JSON; `None` if it is not exactly one CBOR item, or nested too deeply.
///
/// What JSON lacks is told thus: byte strings as base64, keys that are no text as their JSON text,
/// a tagged item as `{"tag": N, "value": ...}`, numbers that JSON cannot hold as text.
pub(crate) fn from_cbor(bytes: &[u8]) -> Option<Value> {
    let mut rest = bytes;
    let item: ciborium::Value =
        ciborium::de::from_reader_with_recursion_limit(&mut rest, MOST_DEPTH).ok()?;
    rest.is_empty().then(|| convert(item))
}

fn convert(item: ciborium::Value) -> Value {
    match item {
        ciborium::Value::Integer(n) => integer(n.into()),
        ciborium::Value::Bytes(bytes) => Value::String(base64(&bytes)),
        ciborium::Value::Float(x) => {
            Number::from_f64(x).map_or_else(|| Value::String(x.to_string()), Value::Number)
        }
        ciborium::Value::Text(text) => Value::String(text),
        ciborium::Value::Bool(b) => Value::Bool(b),
        ciborium::Value::Tag(tag, inner) => {
            let mut map = Map::new();
            map.insert("tag".to_owned(), Value::from(tag));
            map.insert("value".to_owned(), convert(*inner));
            Value::Object(map)
        }
        ciborium::Value::Array(items) => items.into_iter().map(convert).collect(),
        ciborium::Value::Map(pairs) => Value::Object(
            pairs
                .into_iter()
                .map(|(key, value)| (key_text(convert(key)), convert(value)))
                .collect(),
        ),
        // Null, and whatever a later version of the library may tell.
        _ => Value::Null,
    }
}

fn integer(n: i128) -> Value {
    u64::try_from(n)
        .map(Value::from)
        .or_else(|_| i64::try_from(n).map(Value::from))
        .unwrap_or_else(|_| Value::String(n.to_string()))
}

fn key_text(key: Value) -> String {
    match key {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// Half of what JSON readers commonly accept, because a tag becomes two levels.
const MOST_DEPTH: usize = 60;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_never_has_a_newline_or_a_terminal_escape() {
        for (bytes, shown) in [
            (&b"plain \\n text"[..], "plain \\n text"),
            ("grüß\tdich".as_bytes(), "grüß\tdich"),
            (b"", ""),
            (b"two\nlines", "two\\nlines"),
            (b"back\\slash\r", "back\\\\slash\\r"),
            (b"\x1b[31m", "\\x1b[31m"),
            (b"\xff\xfe", "\\xff\\xfe"),
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"),
            (b"\x7f\0", "\\x7f\\x00"),
        ] {
            assert_eq!(line(bytes), shown, "{bytes:?}");
        }
    }

    #[test]
    fn cbor_is_shown_as_json() {
        // {"a": [1, -2, h'ff', 1.5, true, null], 3: 1("x")}
        let bytes = [
            0xa2, 0x61, b'a', 0x86, 0x01, 0x21, 0x41, 0xff, 0xf9, 0x3e, 0x00, 0xf5, 0xf6, 0x03,
            0xc1, 0x61, b'x',
        ];
        assert_eq!(
            from_cbor(&bytes),
            Some(json!({"a": [1, -2, "/w==", 1.5, true, null], "3": {"tag": 1, "value": "x"}}))
        );
    }

    #[test]
    fn what_is_not_one_cbor_item_is_refused() {
        assert_eq!(from_cbor(b""), None);
        assert_eq!(from_cbor(&[0x01, 0x01]), None, "two items");
        assert_eq!(from_cbor(&[0x82, 0x01]), None, "cut off");
        assert_eq!(from_cbor(&vec![0x81; 100_000]), None, "nested too deeply");
    }

    #[test]
    fn the_deepest_cbor_we_show_is_json_that_can_be_read_back() {
        let mut bytes = vec![0xc1; MOST_DEPTH - 2];
        bytes.push(0x00);
        let text = from_cbor(&bytes).expect("shown").to_string();
        assert!(from_json(text.as_bytes()).is_some());
    }
}
