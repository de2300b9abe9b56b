//! What a message says about itself beside its payload: key, operation, content type, fields.
//!
//! Invariant: an [`Attributes`] is one block of bytes that was checked, whole, when it was made.
//! The block is the same on the wire in both directions, so the broker hands on what it checked
//! and nobody encodes it twice; and since its items stand in ascending order of their tags, every
//! accessor finds its item in at most three steps, without an index beside the block.

use std::fmt;
use std::str;

use bytes::{BufMut, Bytes, BytesMut};

/// What a message says about itself beside its payload.
///
/// All of it is optional; most messages have none, and then nothing is allocated. Cheap to clone.
/// Two are equal if their blocks are equal byte for byte.
///
/// ```
/// use bus_core::{Attributes, ContentType};
///
/// let attributes = Attributes::builder()
///     .key(b"sensor.7")
///     .content_type(ContentType::Text)
///     .field("unit", "K")
///     .build()?;
/// assert_eq!(attributes.key(), Some(&b"sensor.7"[..]));
/// assert_eq!(attributes.operation(), None);
/// assert_eq!(attributes.fields().collect::<Vec<_>>(), [("unit", "K")]);
///
/// // What goes over the wire is the same block, checked again where it arrives.
/// let arrived = Attributes::decode(attributes.encoded().to_vec().into())?;
/// assert_eq!(arrived, attributes);
/// # Ok::<(), bus_core::AttributesError>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Attributes(Bytes);

/// What the bytes of a payload are. The bus carries it and does not look at the payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ContentType {
    /// Bytes about which nothing is said.
    #[default]
    Bytes,
    /// UTF-8 text. The sender says so; a reader checks before it trusts.
    Text,
    /// One CBOR item.
    Cbor,
    /// One JSON text.
    Json,
}

/// Why a block of attributes is refused. Nothing of it was used.
///
/// A sender shortens or drops what is named; one that reads it from the wire has met a peer that
/// does not keep the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttributesError {
    /// The block is longer than all its items at their limits.
    #[error("a block of {given} bytes, and attributes have at most {MAX_ATTRIBUTES_BYTES}")]
    BlockTooLong {
        /// Bytes given.
        given: usize,
    },
    /// An item goes on past the end of the block.
    #[error("the item at {at} needs {needed} bytes more than the block has")]
    Cut {
        /// Offset of the item in the block.
        at: usize,
        /// Bytes missing.
        needed: usize,
    },
    /// A tag that this version does not know.
    #[error("tag {tag} at {at} is unknown")]
    UnknownTag {
        /// The tag.
        tag: u8,
        /// Offset of the item in the block.
        at: usize,
    },
    /// Tags ascend, and only fields repeat.
    #[error("tag {tag} at {at} comes after tag {after}")]
    Order {
        /// The tag.
        tag: u8,
        /// The tag before it.
        after: u8,
        /// Offset of the item in the block.
        at: usize,
    },
    /// An item is too short or too long.
    #[error("{item} has {given} bytes, and must have {least} to {most}")]
    Length {
        /// Which item.
        item: &'static str,
        /// Bytes given.
        given: usize,
        /// The least that is accepted.
        least: usize,
        /// The most that is accepted.
        most: usize,
    },
    /// An item that is text has other bytes.
    #[error("{item} is not UTF-8")]
    NotText {
        /// Which item.
        item: &'static str,
    },
    /// A content type that this version does not know.
    #[error("content type {0} is unknown")]
    ContentType(u8),
    /// A field's name contains `=`, which ends names where fields are written as text.
    #[error("field name {0:?} contains `=`")]
    FieldName(String),
    /// Two fields with one name.
    #[error("field {0:?} is there twice")]
    FieldTwice(String),
    /// More fields than [`MAX_FIELDS`].
    #[error("more than {MAX_FIELDS} fields")]
    TooManyFields,
    /// Names and values of all fields are longer than [`MAX_FIELDS_BYTES`].
    #[error("fields have {given} bytes together, and may have {MAX_FIELDS_BYTES}")]
    FieldsTooLong {
        /// Bytes of all names and values up to the first that is too much.
        given: usize,
    },
}

impl Attributes {
    /// No attributes at all; the same as `Attributes::default()`.
    pub const EMPTY: Self = Self(Bytes::new());

    /// Starts a block.
    pub fn builder() -> AttributesBuilder {
        AttributesBuilder::default()
    }

    /// Takes a block from the wire and checks it, in one pass and without an allocation.
    ///
    /// # Errors
    ///
    /// The first offence.
    pub fn decode(block: Bytes) -> Result<Self, AttributesError> {
        check(&block)?;
        Ok(Self(block))
    }

    /// The block as it stands on the wire.
    #[inline]
    #[must_use]
    pub fn encoded(&self) -> &Bytes {
        &self.0
    }

    /// Whether nothing is said.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What filters and retained state go by.
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        self.block().key()
    }

    /// The operation that a request asks for.
    #[must_use]
    pub fn operation(&self) -> Option<&str> {
        self.block().operation()
    }

    /// What the payload is; [`ContentType::Bytes`] where nothing was said.
    #[must_use]
    pub fn content_type(&self) -> ContentType {
        self.block().content_type()
    }

    /// All fields, name and value, in the order in which the sender gave them.
    #[must_use]
    pub fn fields(&self) -> Fields<'_> {
        self.block().fields()
    }

    /// The value of the field of this name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.block().field(name)
    }

    fn block(&self) -> Block<'_> {
        Block(&self.0)
    }

    /// All items as they stand in the block, for filters, which compare bytes.
    pub(crate) fn items(&self) -> RawItems<'_> {
        RawItems { rest: &self.0 }
    }

    /// For the frame decoder, which has just checked these very bytes where they lay.
    pub(crate) fn from_checked(block: Bytes) -> Self {
        debug_assert_eq!(check(&block), Ok(()), "the caller has checked the block");
        Self(block)
    }
}

/// A block of attributes that was checked, wherever it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'a>(&'a [u8]);

impl<'a> Block<'a> {
    pub(crate) fn of_checked(block: &'a [u8]) -> Self {
        debug_assert_eq!(check(block), Ok(()), "the caller has checked the block");
        Self(block)
    }

    pub(crate) fn key(self) -> Option<&'a [u8]> {
        self.find(KEY)
    }

    pub(crate) fn operation(self) -> Option<&'a str> {
        self.find(OPERATION).map(text)
    }

    pub(crate) fn content_type(self) -> ContentType {
        self.find(CONTENT_TYPE)
            .and_then(|value| ContentType::from_byte(*value.first()?))
            .unwrap_or_default()
    }

    pub(crate) fn fields(self) -> Fields<'a> {
        Fields { rest: self.0 }
    }

    pub(crate) fn field(self, name: &str) -> Option<&'a str> {
        self.fields().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// The value of an item that occurs at most once.
    fn find(self, tag: u8) -> Option<&'a [u8]> {
        let mut rest = self.0;
        while let Some((at, value, after)) = split_item(rest) {
            if at == tag {
                return Some(value);
            }
            if at > tag {
                return None;
            }
            rest = after;
        }
        None
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Attributes");
        if let Some(key) = self.key() {
            out.field("key", &format_args!("\"{}\"", key.escape_ascii()));
        }
        if let Some(operation) = self.operation() {
            out.field("operation", &operation);
        }
        out.field("content_type", &self.content_type());
        for (name, value) in self.fields() {
            out.field(name, &value);
        }
        out.finish()
    }
}

/// The fields of an [`Attributes`], from [`Attributes::fields`].
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some((tag, value, after)) = split_item(self.rest) {
            self.rest = after;
            if tag == FIELD {
                return split_field(value).map(|(name, value)| (text(name), text(value)));
            }
        }
        None
    }
}

/// An item of an [`Attributes`], in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RawItem<'a> {
    Key(&'a [u8]),
    Operation(&'a [u8]),
    Field {
        /// The length of the name, name and value.
        whole: &'a [u8],
        name: &'a [u8],
        value: &'a [u8],
    },
    Other,
}

/// The items of an [`Attributes`], from [`Attributes::items`].
#[derive(Clone, Debug)]
pub(crate) struct RawItems<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for RawItems<'a> {
    type Item = RawItem<'a>;

    #[inline]
    fn next(&mut self) -> Option<RawItem<'a>> {
        let (tag, item, after) = split_item(self.rest)?;
        self.rest = after;
        Some(match tag {
            KEY => RawItem::Key(item),
            OPERATION => RawItem::Operation(item),
            FIELD => match split_field(item) {
                Some((name, value)) => RawItem::Field { whole: item, name, value },
                None => RawItem::Other,
            },
            _ => RawItem::Other,
        })
    }
}

/// Gathers attributes; [`build`](Self::build) checks them all at once.
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct AttributesBuilder {
    key: Option<Vec<u8>>,
    operation: Option<String>,
    content_type: ContentType,
    fields: Vec<(String, String)>,
}

impl AttributesBuilder {
    /// Sets the key: at most [`MAX_KEY_BYTES`].
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Some(key.as_ref().to_vec());
        self
    }

    /// Sets the operation: 1 to [`MAX_OPERATION_BYTES`] bytes.
    pub fn operation(mut self, operation: impl Into<String>) -> Self {
        self.operation = Some(operation.into());
        self
    }

    /// Says what the payload is.
    pub fn content_type(mut self, content_type: ContentType) -> Self {
        self.content_type = content_type;
        self
    }

    /// Adds a field. Names have 1 to 255 bytes, no `=`, and occur once; there are at most
    /// [`MAX_FIELDS`], with at most [`MAX_FIELDS_BYTES`] together.
    pub fn field(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// The block of what was gathered.
    ///
    /// # Errors
    ///
    /// The first item that is over its limit.
    pub fn build(self) -> Result<Attributes, AttributesError> {
        let mut out = BytesMut::new();
        if let Some(key) = &self.key {
            put_item(&mut out, KEY, &[key])?;
        }
        if let Some(operation) = &self.operation {
            put_item(&mut out, OPERATION, &[operation.as_bytes()])?;
        }
        if self.content_type != ContentType::default() {
            put_item(&mut out, CONTENT_TYPE, &[&[self.content_type.to_byte()]])?;
        }
        if self.fields.len() > MAX_FIELDS {
            return Err(AttributesError::TooManyFields);
        }
        for (name, value) in &self.fields {
            let length = u8::try_from(name.len()).map_err(|_| AttributesError::Length {
                item: "a field's name",
                given: name.len(),
                least: 1,
                most: MAX_FIELD_NAME_BYTES,
            })?;
            put_item(&mut out, FIELD, &[&[length], name.as_bytes(), value.as_bytes()])?;
        }
        Attributes::decode(out.freeze())
    }
}

impl ContentType {
    pub(crate) const fn to_byte(self) -> u8 {
        match self {
            Self::Bytes => 0,
            Self::Text => 1,
            Self::Cbor => 2,
            Self::Json => 3,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Bytes),
            1 => Some(Self::Text),
            2 => Some(Self::Cbor),
            3 => Some(Self::Json),
            _ => None,
        }
    }
}

fn put_item(out: &mut BytesMut, tag: u8, parts: &[&[u8]]) -> Result<(), AttributesError> {
    let given = parts.iter().map(|part| part.len()).sum();
    // No single item may be longer than this, so that its length fits; `check` is more exact.
    let length = u16::try_from(given).map_err(|_| AttributesError::BlockTooLong { given })?;
    out.put_u8(tag);
    out.put_u16_le(length);
    for part in parts {
        out.put_slice(part);
    }
    Ok(())
}

/// Splits the first item off: tag, value, rest. `None` at the end, or where the item is cut.
fn split_item(block: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, low, high], rest) = block.split_first_chunk()?;
    let (value, rest) = rest.split_at_checked(u16::from_le_bytes([low, high]).into())?;
    Some((tag, value, rest))
}

/// Splits a field's item into name and value.
fn split_field(item: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = item.split_first()?;
    rest.split_at_checked(length.into())
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("text items were checked when the block was made")
}

/// Checks a whole block where it lies, in one pass.
pub(crate) fn check(block: &[u8]) -> Result<(), AttributesError> {
    if block.len() > MAX_ATTRIBUTES_BYTES {
        return Err(AttributesError::BlockTooLong { given: block.len() });
    }
    let mut items = Items { block, at: 0, before: 0 };
    while let Some((tag, value)) = items.next()? {
        match tag {
            KEY => check_length("the key", value, 0, MAX_KEY_BYTES)?,
            OPERATION => {
                check_length("the operation", value, 1, MAX_OPERATION_BYTES)?;
                check_text("the operation", value)?;
            }
            CONTENT_TYPE => {
                check_length("the content type", value, 1, 1)?;
                if ContentType::from_byte(value[0]).is_none() {
                    return Err(AttributesError::ContentType(value[0]));
                }
            }
            // Tags ascend, so from here on there are only fields.
            _ => return check_fields(value, &mut items),
        }
    }
    Ok(())
}

/// Checks all fields; `first` is the item of the first one, the others are what is left.
fn check_fields<'a>(first: &'a [u8], items: &mut Items<'a>) -> Result<(), AttributesError> {
    let mut names = [&[][..]; MAX_FIELDS];
    let mut count = 0;
    let mut given = 0;
    let mut next = Some(first);
    while let Some(item) = next {
        let name = check_field(item, items.at - ITEM_HEAD_BYTES - item.len())?;
        given += item.len() - 1;
        if given > MAX_FIELDS_BYTES {
            return Err(AttributesError::FieldsTooLong { given });
        }
        if names[..count].contains(&name) {
            return Err(AttributesError::FieldTwice(text(name).to_owned()));
        }
        *names.get_mut(count).ok_or(AttributesError::TooManyFields)? = name;
        count += 1;
        next = items.next()?.map(|(_, item)| item);
    }
    Ok(())
}

/// Walks a block item by item, and sees to it that tags are known and ascend.
struct Items<'a> {
    block: &'a [u8],
    at: usize,
    before: u8,
}

impl<'a> Items<'a> {
    fn next(&mut self) -> Result<Option<(u8, &'a [u8])>, AttributesError> {
        let (at, rest) = (self.at, &self.block[self.at..]);
        let Some(&tag) = rest.first() else {
            return Ok(None);
        };
        if !(KEY..=FIELD).contains(&tag) {
            return Err(AttributesError::UnknownTag { tag, at });
        }
        let (_, value, _) = split_item(rest).ok_or_else(|| cut(rest, at))?;
        if tag < self.before || (tag == self.before && tag != FIELD) {
            return Err(AttributesError::Order { tag, after: self.before, at });
        }
        self.before = tag;
        self.at += ITEM_HEAD_BYTES + value.len();
        Ok(Some((tag, value)))
    }
}

/// Checks one field's item, and gives its name.
fn check_field(item: &[u8], at: usize) -> Result<&[u8], AttributesError> {
    let (name, value) = split_field(item).ok_or_else(|| AttributesError::Cut {
        at,
        needed: item.first().map_or(1, |&n| usize::from(n) + 1 - item.len()),
    })?;
    check_length("a field's name", name, 1, MAX_FIELD_NAME_BYTES)?;
    check_text("a field's name", name)?;
    check_text("a field's value", value)?;
    if name.contains(&b'=') {
        return Err(AttributesError::FieldName(text(name).to_owned()));
    }
    Ok(name)
}

fn check_length(
    item: &'static str,
    value: &[u8],
    least: usize,
    most: usize,
) -> Result<(), AttributesError> {
    let given = value.len();
    if (least..=most).contains(&given) {
        return Ok(());
    }
    Err(AttributesError::Length { item, given, least, most })
}

fn check_text(item: &'static str, value: &[u8]) -> Result<(), AttributesError> {
    match str::from_utf8(value) {
        Ok(_) => Ok(()),
        Err(_) => Err(AttributesError::NotText { item }),
    }
}

/// How much is missing of an item that [`split_item`] could not split off.
fn cut(rest: &[u8], at: usize) -> AttributesError {
    let needed = match rest {
        [_, low, high, value @ ..] => usize::from(u16::from_le_bytes([*low, *high])) - value.len(),
        _ => ITEM_HEAD_BYTES - rest.len(),
    };
    AttributesError::Cut { at, needed }
}

/// The longest key.
pub const MAX_KEY_BYTES: usize = 255;
/// The longest operation.
pub const MAX_OPERATION_BYTES: usize = 255;
/// Fields of one message.
pub const MAX_FIELDS: usize = 16;
/// Bytes of the names and values of all fields together.
pub const MAX_FIELDS_BYTES: usize = 4096;
/// The longest name of a field.
pub(crate) const MAX_FIELD_NAME_BYTES: usize = 255;
/// Tag and length of an item.
const ITEM_HEAD_BYTES: usize = 3;
/// The longest block: every item at its limit.
pub const MAX_ATTRIBUTES_BYTES: usize = (ITEM_HEAD_BYTES + MAX_KEY_BYTES)
    + (ITEM_HEAD_BYTES + MAX_OPERATION_BYTES)
    + (ITEM_HEAD_BYTES + 1)
    + MAX_FIELDS * (ITEM_HEAD_BYTES + 1)
    + MAX_FIELDS_BYTES;

const KEY: u8 = 1;
const OPERATION: u8 = 2;
const CONTENT_TYPE: u8 = 3;
const FIELD: u8 = 4;

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    fn item(tag: u8, value: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend_from_slice(&u16::try_from(value.len()).expect("short").to_le_bytes());
        out.extend_from_slice(value);
        out
    }

    fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
        let length = u8::try_from(name.len()).expect("short");
        item(FIELD, &[&[length], name, value].concat())
    }

    #[test]
    fn what_is_built_is_read_back() {
        let attributes = Attributes::builder()
            .field("unit", "K")
            .key(b"\x00\xff")
            .content_type(ContentType::Cbor)
            .operation("Read")
            .field("empty", "")
            .build()
            .unwrap();
        assert_eq!(attributes.key(), Some(&b"\x00\xff"[..]));
        assert_eq!(attributes.operation(), Some("Read"));
        assert_eq!(attributes.content_type(), ContentType::Cbor);
        let fields: Vec<_> = attributes.fields().collect();
        assert_eq!(fields, [("unit", "K"), ("empty", "")]);
        assert_eq!(attributes.field("empty"), Some(""));
        assert_eq!(attributes.field("none"), None);
    }

    #[test]
    fn what_is_not_said_is_absent() {
        for attributes in
            [Attributes::EMPTY, Attributes::default(), Attributes::builder().build().unwrap()]
        {
            assert!(attributes.is_empty());
            assert_eq!(attributes.key(), None);
            assert_eq!(attributes.operation(), None);
            assert_eq!(attributes.content_type(), ContentType::Bytes);
            assert_eq!(attributes.fields().count(), 0);
        }
        let only_field = Attributes::builder().field("a", "b").build().unwrap();
        assert_eq!(only_field.key(), None);
        assert_eq!(only_field.operation(), None);
        assert_eq!(only_field.content_type(), ContentType::Bytes);
    }

    #[test]
    fn an_empty_key_is_a_key() {
        let attributes = Attributes::builder().key(b"").build().unwrap();
        assert_eq!(attributes.key(), Some(&[][..]));
    }

    #[test]
    fn limits_are_met_and_not_passed() {
        let build = Attributes::builder;
        let numbered = |count: usize| {
            (0..count).fold(build(), |builder, n| builder.field(format!("f{n}"), ""))
        };
        let text = |length: usize| "x".repeat(length);
        for (case, builder, good) in [
            ("longest key", build().key(text(255)), true),
            ("key one over", build().key(text(256)), false),
            ("longest operation", build().operation(text(255)), true),
            ("operation one over", build().operation(text(256)), false),
            ("empty operation", build().operation(""), false),
            ("as many fields as may be", numbered(16), true),
            ("one field too many", numbered(17), false),
            ("longest name", build().field(text(255), ""), true),
            ("name one over", build().field(text(256), ""), false),
            ("empty name", build().field("", "x"), false),
            ("longest fields", build().field("n", text(4095)), true),
            ("fields one over", build().field("n", text(4096)), false),
            ("together one over", build().field("n", text(2047)).field("m", text(2048)), false),
            ("a name twice", build().field("n", "1").field("n", "1"), false),
            ("a name with `=`", build().field("a=b", ""), false),
            ("a value with `=`", build().field("a", "="), true),
            ("a value beyond any item", build().field("a", text(70_000)), false),
            ("a key beyond any item", build().key(text(70_000)), false),
        ] {
            assert_eq!(builder.build().is_ok(), good, "{case}");
        }
    }

    #[test]
    fn the_longest_block_is_as_long_as_it_says() {
        let text = |length: usize| "x".repeat(length);
        // 15 fields of a byte or two, and one that takes what is left of the 4 KiB.
        let mut builder = Attributes::builder()
            .key(text(255))
            .operation(text(255))
            .content_type(ContentType::Json);
        for n in 0..15 {
            builder = builder.field(char::from(b'a' + n).to_string(), "");
        }
        let attributes = builder.field("z", text(4096 - 16)).build().unwrap();
        assert_eq!(attributes.encoded().len(), MAX_ATTRIBUTES_BYTES);
    }

    #[test]
    fn bad_blocks_are_refused_with_the_offence() {
        use AttributesError as E;
        let rows: Vec<(&str, Vec<u8>, AttributesError)> = vec![
            ("no length", vec![KEY], E::Cut { at: 0, needed: 2 }),
            ("half a length", vec![KEY, 1], E::Cut { at: 0, needed: 1 }),
            ("cut value", vec![KEY, 3, 0, 1], E::Cut { at: 0, needed: 2 }),
            (
                "cut second item",
                [item(KEY, b"k"), vec![OPERATION, 2, 0]].concat(),
                E::Cut { at: 4, needed: 2 },
            ),
            ("tag 0", item(0, b""), E::UnknownTag { tag: 0, at: 0 }),
            ("tag 5", item(5, b""), E::UnknownTag { tag: 5, at: 0 }),
            (
                "two keys",
                [item(KEY, b"k"), item(KEY, b"k")].concat(),
                E::Order { tag: 1, after: 1, at: 4 },
            ),
            (
                "key after operation",
                [item(OPERATION, b"o"), item(KEY, b"k")].concat(),
                E::Order { tag: 1, after: 2, at: 4 },
            ),
            ("operation not text", item(OPERATION, b"\xff"), E::NotText { item: "the operation" }),
            ("content type 4", item(CONTENT_TYPE, &[4]), E::ContentType(4)),
            (
                "content type of two bytes",
                item(CONTENT_TYPE, &[0, 0]),
                E::Length { item: "the content type", given: 2, least: 1, most: 1 },
            ),
            ("field of nothing", item(FIELD, b""), E::Cut { at: 0, needed: 1 }),
            ("field with a cut name", item(FIELD, b"\x03ab"), E::Cut { at: 0, needed: 1 }),
            ("field name not text", field(b"\xff", b""), E::NotText { item: "a field's name" }),
            ("field value not text", field(b"n", b"\xff"), E::NotText { item: "a field's value" }),
            ("field name with `=`", field(b"a=b", b""), E::FieldName("a=b".into())),
            (
                "a field twice",
                [field(b"n", b"1"), field(b"m", b"2"), field(b"n", b"3")].concat(),
                E::FieldTwice("n".into()),
            ),
            (
                "17 fields",
                (0..17).flat_map(|n| field(&[b'a' + n], b"")).collect(),
                E::TooManyFields,
            ),
            (
                "fields too long",
                [field(b"n", &[b'x'; 4000]), field(b"m", &[b'x'; 95])].concat(),
                E::FieldsTooLong { given: 4097 },
            ),
            (
                "block too long",
                vec![0; MAX_ATTRIBUTES_BYTES + 1],
                E::BlockTooLong { given: MAX_ATTRIBUTES_BYTES + 1 },
            ),
        ];
        for (case, block, error) in rows {
            assert_eq!(Attributes::decode(block.into()), Err(error), "{case}");
        }
    }

    #[test]
    fn a_default_that_is_said_is_accepted() {
        let said = Attributes::decode(item(CONTENT_TYPE, &[0]).into()).unwrap();
        assert_eq!(said.content_type(), ContentType::Bytes);
    }
}
