//! Names of groups, checked once: a `GroupName` that exists is a good one.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// The name of a group: 1 to 255 bytes of `[A-Za-z0-9_.-]`, with no empty element between dots.
///
/// Cheap to clone.
///
/// ```
/// use bus_core::GroupName;
///
/// let name: GroupName = "org.example.Chat".parse()?;
/// assert_eq!(name.as_str(), "org.example.Chat");
/// assert!("org..Chat".parse::<GroupName>().is_err());
/// # Ok::<(), bus_core::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(Arc<str>);

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not between 1 and [`MAX_NAME_BYTES`] bytes.
    #[error("a name has 1 to {MAX_NAME_BYTES} bytes, and this one has {0}")]
    Length(usize),
    /// A byte outside `[A-Za-z0-9_.-]`.
    #[error("byte {byte:#04x} at {at} of name {name:?} is not one of A-Z a-z 0-9 _ . -")]
    Byte {
        /// The text as given.
        name: String,
        /// The offending byte.
        byte: u8,
        /// Its offset in bytes.
        at: usize,
    },
    /// Nothing before, between or after dots.
    #[error("name {0:?} has an empty element between dots")]
    EmptyElement(String),
}

impl GroupName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GroupName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > MAX_NAME_BYTES {
            return Err(NameError::Length(text.len()));
        }
        let good = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if let Some((at, byte)) = text.bytes().enumerate().find(|(_, b)| !good(b)) {
            return Err(NameError::Byte { name: text.to_owned(), byte, at });
        }
        if text.split('.').any(str::is_empty) {
            return Err(NameError::EmptyElement(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for GroupName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<GroupName> for String {
    fn from(name: GroupName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn names_at_their_limits() {
        let longest = "a".repeat(MAX_NAME_BYTES);
        let over = "a".repeat(MAX_NAME_BYTES + 1);
        for (case, text, good) in [
            ("one byte", "a", true),
            ("all kinds", "A-z_0.9", true),
            ("longest", longest.as_str(), true),
            ("one over", over.as_str(), false),
            ("empty", "", false),
            ("slash", "a/b", false),
            ("not ascii", "ä", false),
            ("leading dot", ".a", false),
            ("trailing dot", "a.", false),
            ("two dots", "a..b", false),
        ] {
            assert_eq!(text.parse::<GroupName>().is_ok(), good, "{case}");
        }
    }
}
