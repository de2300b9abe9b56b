//! Receive filters: what a member wants to hear of its group.
//!
//! A [`Filter`] is a list of alternatives, each a list of [`Condition`]s. It accepts a message if all
//! conditions of one alternative hold. It sees whole messages only, and accepts or rejects them
//! whole; what it rejects is not sent to the member, takes no lock of its, waits for no room there,
//! and is no loss (G7).
//!
//! Invariant: a filter that exists is within its bounds and its programs are verified, so running
//! it neither fails nor allocates, and takes a time that its size bounds.
//!
//! | file | what it knows |
//! |---|---|
//! | `text` | how conditions are written |
//! | `program` | a condition that is a BPF program, and what it sees |
//! | `trie` | all terms of a group, shared by its generations |
//! | `index` | from a message to the few members whose filters may accept it |
//! | `selection` | the accepting part of a membership: the recipients of one message |
//! | `change` | a filter that is changed later, at a place in the order |

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::attributes::{
    Attributes, MAX_FIELD_NAME_BYTES, MAX_KEY_BYTES, MAX_OPERATION_BYTES, RawItem,
};
use crate::framing::LoadError;
use crate::framing::bpf::VerifyError;
use crate::payload::Payload;

mod change;
pub(crate) mod index;
mod program;
pub(crate) mod selection;
mod text;
mod trie;

pub use change::FilterChangeError;

pub(crate) use index::MemberFilters;
pub use program::{CONTEXT_WORDS, FilterProgram, SECTION};

/// What a member wants to hear of a group. Cheap to clone.
///
/// ```
/// use bus_core::{Attributes, Filter};
///
/// let warm: Filter = "key^=sensor. && field.unit=C".parse()?;
/// let mine = Filter::any([warm, "operation=Reset".parse()?])?;
///
/// let reading = Attributes::builder().key("sensor.7").field("unit", "C").build()?;
/// assert!(mine.accepts(&reading, b"21.5"));
/// let kelvin = Attributes::builder().key("sensor.7").field("unit", "K").build()?;
/// assert!(!mine.accepts(&kelvin, b"294.6"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Filter(Arc<[Vec<Condition>]>);

/// One thing that must be so of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// It has a key, and the key is such.
    Key(Pattern),
    /// It has an operation, and that is such.
    Operation(Pattern),
    /// It has a field of this name, and its value is such.
    Field {
        /// The field's name.
        name: String,
        /// What its value is compared with.
        value: Pattern,
    },
    /// A program accepts it.
    Program(FilterProgram),
}

/// What bytes are compared with.
#[derive(Clone, PartialEq, Eq)]
pub enum Pattern {
    /// They are these.
    Exactly(Bytes),
    /// They begin with these.
    Prefix(Bytes),
}

/// Why something is no filter. Nothing has changed; whoever wrote it has to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// A condition is not written as one.
    #[error(
        "{0:?} is no condition; expected key=KEY, key^=PREFIX, operation=NAME, field.NAME=VALUE or \
         field.NAME^=PREFIX"
    )]
    Syntax(String),
    /// There is no alternative, or one without a condition. To accept everything, have no filter.
    #[error("a filter, and each of its alternatives, has at least one condition")]
    Empty,
    /// More conditions than [`MAX_FILTER_CONDITIONS`] in all alternatives together.
    #[error("a filter of {given} conditions, and the most is {MAX_FILTER_CONDITIONS}")]
    TooManyConditions {
        /// How many there are.
        given: usize,
    },
    /// Something compared is shorter or longer than it can be in a message, or than
    /// [`MAX_PATTERN_BYTES`].
    #[error("{what} has {given} bytes, and must have {least} to {most}")]
    Length {
        /// What it is.
        what: &'static str,
        /// Its length in bytes.
        given: usize,
        /// The least that is accepted.
        least: usize,
        /// The most that is accepted.
        most: usize,
    },
    /// An operation or a field is text, and this is none.
    #[error("{what} is not UTF-8")]
    NotText {
        /// What it is.
        what: &'static str,
    },
    /// A field's name contains `=`, and so is none.
    #[error("field name {0:?} contains `=`")]
    FieldName(String),
    /// The program is not one that may run.
    #[error("the program: {0}")]
    Program(#[from] LoadError),
}

impl From<VerifyError> for FilterError {
    fn from(error: VerifyError) -> Self {
        Self::Program(error.into())
    }
}

impl Filter {
    /// A filter that accepts what satisfies all conditions of one of these alternatives.
    ///
    /// # Errors
    ///
    /// The first thing that is beyond its bound.
    pub fn new(
        alternatives: impl IntoIterator<Item = Vec<Condition>>,
    ) -> Result<Self, FilterError> {
        let alternatives: Arc<[Vec<Condition>]> = alternatives.into_iter().collect();
        if alternatives.is_empty() || alternatives.iter().any(Vec::is_empty) {
            return Err(FilterError::Empty);
        }
        let given = alternatives.iter().map(Vec::len).sum();
        if given > MAX_FILTER_CONDITIONS {
            return Err(FilterError::TooManyConditions { given });
        }
        alternatives.iter().flatten().try_for_each(Condition::check)?;
        Ok(Self(alternatives))
    }

    /// A filter that accepts what one of these accepts.
    ///
    /// # Errors
    ///
    /// There is none, or they have too many conditions together.
    pub fn any(filters: impl IntoIterator<Item = Self>) -> Result<Self, FilterError> {
        Self::new(filters.into_iter().flat_map(|filter| filter.0.to_vec()))
    }

    /// The alternatives.
    #[must_use]
    pub fn alternatives(&self) -> &[Vec<Condition>] {
        &self.0
    }

    /// Whether it accepts a message of these attributes and this payload. Neither blocks nor
    /// allocates.
    #[must_use]
    pub fn accepts(&self, attributes: &Attributes, payload: &[u8]) -> bool {
        self.passes(Subject { attributes, payload: Some(Seen::Bytes(payload)) })
    }

    pub(crate) fn passes(&self, subject: Subject<'_>) -> bool {
        self.0.iter().any(|all| all.iter().all(|condition| condition.holds(subject)))
    }

    /// What it is charged for: what it compares and its programs, and something for each condition.
    pub(crate) fn bytes(&self) -> u64 {
        let conditions = self.0.iter().flatten().map(|condition| match condition {
            Condition::Key(pattern) | Condition::Operation(pattern) => pattern.bytes().len(),
            Condition::Field { name, value } => name.len() + value.bytes().len(),
            Condition::Program(program) => program.code().len(),
        });
        conditions.map(|bytes| bytes as u64 + CONDITION_BYTES).sum()
    }

    /// Instructions of all its programs: what one run takes at most.
    pub(crate) fn instructions(&self) -> usize {
        let programs = self.0.iter().flatten().filter_map(|condition| match condition {
            Condition::Program(program) => Some(program.instructions()),
            _ => None,
        });
        programs.sum()
    }
}

/// What filters are asked about: a message, or a message that somebody may send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) attributes: &'a Attributes,
    /// None if it is not known yet. Then programs are taken to accept: a destination is said to be
    /// writable only if no recipient that there may be lacks room (G6).
    pub(crate) payload: Option<Seen<'a>>,
}

/// A payload, of which the bytes are asked for only by a program: one that lies apart from its message
/// would have to be copied for them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seen<'a> {
    Bytes(&'a [u8]),
    Of(&'a Payload),
}

impl<'a> Seen<'a> {
    pub(crate) fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Of(payload) => payload,
        }
    }
}

impl Condition {
    fn holds(&self, subject: Subject<'_>) -> bool {
        let attributes = subject.attributes;
        match self {
            Self::Key(pattern) => attributes.key().is_some_and(|key| pattern.fits(key)),
            Self::Operation(pattern) => {
                let operation = attributes.items().find_map(|item| match item {
                    RawItem::Operation(operation) => Some(operation),
                    _ => None,
                });
                operation.is_some_and(|operation| pattern.fits(operation))
            }
            Self::Field { name, value } => attributes.items().any(|item| match item {
                RawItem::Field { name: found, value: bytes, .. } => {
                    found == name.as_bytes() && value.fits(bytes)
                }
                _ => false,
            }),
            Self::Program(program) => program.accepts(subject),
        }
    }

    fn check(&self) -> Result<(), FilterError> {
        match self {
            Self::Key(pattern) => pattern.check("the key", 0, MAX_KEY_BYTES),
            Self::Operation(pattern) => {
                let what = "the operation";
                pattern.check(what, 1, MAX_OPERATION_BYTES)?;
                pattern.check_text(what)
            }
            Self::Field { name, value } => {
                let (what, most) = ("the field's name", MAX_FIELD_NAME_BYTES);
                check_length(what, name.len(), 1, most)?;
                if name.contains('=') {
                    return Err(FilterError::FieldName(name.clone()));
                }
                let what = "the field's value";
                value.check(what, 0, MAX_PATTERN_BYTES)?;
                value.check_text(what)
            }
            Self::Program(_) => Ok(()),
        }
    }
}

impl Pattern {
    /// These bytes and no others.
    pub fn exactly(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Exactly(bytes.into().into())
    }

    /// What begins with these bytes; none of them means that there is something at all.
    pub fn prefix(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Prefix(bytes.into().into())
    }

    /// The bytes that are compared.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Exactly(bytes) | Self::Prefix(bytes) => bytes,
        }
    }

    fn fits(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Exactly(expected) => bytes == expected,
            Self::Prefix(prefix) => bytes.starts_with(prefix),
        }
    }

    fn check(&self, what: &'static str, least: usize, most: usize) -> Result<(), FilterError> {
        let least = if matches!(self, Self::Prefix(_)) { 0 } else { least };
        check_length(what, self.bytes().len(), least, most)
    }

    /// The beginning of a text may end inside of a character.
    fn check_text(&self, what: &'static str) -> Result<(), FilterError> {
        match std::str::from_utf8(self.bytes()) {
            Ok(_) => Ok(()),
            Err(_) => Err(FilterError::NotText { what }),
        }
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({self})")
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self {
            Self::Exactly(_) => "=",
            Self::Prefix(_) => "^=",
        };
        write!(f, "{sign}\"{}\"", self.bytes().escape_ascii())
    }
}

fn check_length(
    what: &'static str,
    given: usize,
    least: usize,
    most: usize,
) -> Result<(), FilterError> {
    if (least..=most).contains(&given) {
        return Ok(());
    }
    Err(FilterError::Length { what, given, least, most })
}

/// Conditions of one filter, of all its alternatives together.
pub const MAX_FILTER_CONDITIONS: usize = 64;
/// What a condition is charged for beside what it compares.
const CONDITION_BYTES: u64 = 64;
/// The longest value that a condition compares. It bounds how deep a group's terms lie.
pub const MAX_PATTERN_BYTES: usize = 255;

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    fn filter(text: &str) -> Filter {
        text.parse().expect("a good filter")
    }

    #[test]
    fn a_condition_compares_what_it_names_and_nothing_else() {
        let message = Attributes::builder()
            .key("a.b")
            .operation("Add")
            .field("n", "42")
            .field("unit", "")
            .build()
            .unwrap();
        for (text, accepted) in [
            ("key=a.b", true),
            ("key=a.", false),
            ("key=a.b.c", false),
            ("key^=", true),
            ("key^=a.", true),
            ("key^=a.b", true),
            ("key^=a.b.", false),
            ("operation=Add", true),
            ("operation=add", false),
            ("operation^=A", true),
            ("field.n=42", true),
            ("field.n=4", false),
            ("field.n^=4", true),
            ("field.unit=", true),
            ("field.m=42", false),
            ("key=a.b && field.n=42", true),
            ("key=a.b && field.n=43", false),
        ] {
            assert_eq!(filter(text).accepts(&message, b"payload"), accepted, "{text}");
            if text != "key^=" {
                assert!(!filter(text).accepts(&Attributes::EMPTY, b""), "{text}");
            }
        }
        let empty_key = Attributes::builder().key("").build().unwrap();
        assert!(
            filter("key=").accepts(&empty_key, b"") && filter("key^=").accepts(&empty_key, b"")
        );
        assert!(!filter("key=").accepts(&Attributes::EMPTY, b""), "no key is no empty one");
    }

    #[test]
    fn alternatives_are_or_and_their_conditions_are_and() {
        let any = Filter::any([filter("key=a && operation=O"), filter("field.n=1")]).unwrap();
        let build = |key: &str, operation: &str, n: &str| {
            let builder = Attributes::builder().key(key).operation(operation);
            builder.field("n", n).build().unwrap()
        };
        assert!(any.accepts(&build("a", "O", "0"), b""));
        assert!(any.accepts(&build("b", "P", "1"), b""));
        assert!(!any.accepts(&build("a", "P", "0"), b""));
        assert_eq!(any.to_string(), "key=a && operation=O || field.n=1");
    }

    #[test]
    fn g8_what_is_beyond_its_bound_is_no_filter() {
        let key = |length: usize| Condition::Key(Pattern::exactly(vec![b'k'; length]));
        let field = |name: &str, value: &[u8]| Condition::Field {
            name: name.to_owned(),
            value: Pattern::prefix(value),
        };
        let operation = |bytes: &[u8]| Condition::Operation(Pattern::exactly(bytes));
        let rows: Vec<(&str, Vec<Vec<Condition>>, bool)> = vec![
            ("no alternative", vec![], false),
            ("no condition", vec![vec![key(1)], vec![]], false),
            ("as many as may be", vec![vec![key(1); 32]; 2], true),
            ("one more", vec![vec![key(1); 32], vec![key(1); 33]], false),
            ("the longest key", vec![vec![key(255)]], true),
            ("a longer key", vec![vec![key(256)]], false),
            ("no operation", vec![vec![operation(b"")]], false),
            ("an operation that is no text", vec![vec![operation(&[0xff])]], false),
            ("the longest value", vec![vec![field("n", &[b'v'; 255])]], true),
            ("a longer value", vec![vec![field("n", &[b'v'; 256])]], false),
            ("a value that is no text", vec![vec![field("n", &[0xff])]], false),
            ("no name", vec![vec![field("", b"v")]], false),
            ("a name with =", vec![vec![field("a=b", b"v")]], false),
        ];
        for (case, alternatives, good) in rows {
            assert_eq!(Filter::new(alternatives).is_ok(), good, "{case}");
        }
    }
}
