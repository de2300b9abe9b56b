//! Types in serde's data model: what an operation of a service takes and answers.
//!
//! Invariant: a [`DataType`] says what serde would be told of a value, and nothing of how bytes
//! stand for it; so it holds for every content type that serde writes. What is recursive or used
//! twice stands once under a name, and is named where it is used: a type is a tree, and no deeper
//! than [`MAX_TYPE_DEPTH`] once `Description::check` has passed it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How deep types may lie in each other without a name between them.
pub const MAX_TYPE_DEPTH: usize = 8;

/// A type in serde's data model. In JSON, TOML and CBOR it is a text (`"u64"`), or a map of one key
/// (`{"option": "string"}`).
///
/// ```
/// use bus_core::{DataType, Field};
///
/// let time = DataType::Struct(vec![
///     Field::new("hour", DataType::U8),
///     Field::new("zone", DataType::Option(Box::new(DataType::named("Zone")))),
/// ]);
/// assert_eq!(time.to_string(), "{ hour: u8, zone: option<Zone> }");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[expect(missing_docs, reason = "the primitive types of serde's data model, by their names there")]
pub enum DataType {
    Bool,
    I8,
    I16,
    I32,
    I64,
    I128,
    U8,
    U16,
    U32,
    U64,
    U128,
    F32,
    F64,
    Char,
    String,
    Bytes,
    /// Nothing: what an operation without an argument takes.
    #[default]
    Unit,
    /// There or not.
    Option(Box<Self>),
    /// Any number of one type.
    Seq(Box<Self>),
    /// As many as stand here, each of its own type.
    Tuple(Vec<Self>),
    /// A tuple of one type.
    Array {
        /// The type.
        of: Box<Self>,
        /// How many.
        length: u32,
    },
    /// Keys and values.
    Map {
        /// The type of all keys.
        key: Box<Self>,
        /// The type of all values.
        value: Box<Self>,
    },
    /// A struct without contents.
    UnitStruct,
    /// A struct around one value, which is written like that value.
    NewtypeStruct(Box<Self>),
    /// A struct whose fields have no names.
    TupleStruct(Vec<Self>),
    /// A struct.
    Struct(Vec<Field>),
    /// One of several.
    Enum(Vec<Variant>),
    /// What stands under this name among the description's types.
    Named(String),
    /// Whatever describes itself, such as any JSON.
    Any,
}

impl DataType {
    /// What stands under this name among the description's types.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self::Named(name.into())
    }
}

/// A field of a struct.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub data_type: DataType,
    /// What it means, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub doc: String,
}

impl Field {
    /// A field without a word about it.
    #[must_use]
    pub fn new(name: impl Into<String>, data_type: DataType) -> Self {
        Self { name: name.into(), data_type, doc: String::new() }
    }

    /// The same with a sentence about what it means.
    #[must_use]
    pub fn doc(self, doc: impl Into<String>) -> Self {
        Self { doc: doc.into(), ..self }
    }
}

/// One of the cases of an enum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Variant {
    /// Its name.
    pub name: String,
    /// What it comes with.
    #[serde(default, skip_serializing_if = "VariantType::is_unit")]
    pub holds: VariantType,
    /// What it means, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub doc: String,
}

impl Variant {
    /// A case without a word about it.
    #[must_use]
    pub fn new(name: impl Into<String>, holds: VariantType) -> Self {
        Self { name: name.into(), holds, doc: String::new() }
    }

    /// The same with a sentence about what it means.
    #[must_use]
    pub fn doc(self, doc: impl Into<String>) -> Self {
        Self { doc: doc.into(), ..self }
    }
}

/// What a case of an enum comes with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VariantType {
    /// Nothing.
    #[default]
    Unit,
    /// One value.
    Newtype(DataType),
    /// Values without names.
    Tuple(Vec<DataType>),
    /// Values with names.
    Struct(Vec<Field>),
}

impl VariantType {
    fn is_unit(&self) -> bool {
        *self == Self::Unit
    }
}

impl fmt::Display for DataType {
    /// In a line, as a person would write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit => f.write_str("()"),
            Self::Option(of) => write!(f, "option<{of}>"),
            Self::Seq(of) => write!(f, "seq<{of}>"),
            Self::Map { key, value } => write!(f, "map<{key}, {value}>"),
            Self::Array { of, length } => write!(f, "[{of}; {length}]"),
            Self::Tuple(types) => listed(f, "(", types, ")"),
            Self::UnitStruct => f.write_str("unit_struct"),
            Self::NewtypeStruct(of) => write!(f, "newtype_struct({of})"),
            Self::TupleStruct(types) => listed(f, "tuple_struct(", types, ")"),
            Self::Struct(fields) => listed(f, "{ ", fields, " }"),
            Self::Enum(variants) => {
                for (at, variant) in variants.iter().enumerate() {
                    write!(f, "{}{variant}", if at == 0 { "" } else { " | " })?;
                }
                Ok(())
            }
            Self::Named(name) => f.write_str(name),
            Self::Bool => f.write_str("bool"),
            Self::I8 => f.write_str("i8"),
            Self::I16 => f.write_str("i16"),
            Self::I32 => f.write_str("i32"),
            Self::I64 => f.write_str("i64"),
            Self::I128 => f.write_str("i128"),
            Self::U8 => f.write_str("u8"),
            Self::U16 => f.write_str("u16"),
            Self::U32 => f.write_str("u32"),
            Self::U64 => f.write_str("u64"),
            Self::U128 => f.write_str("u128"),
            Self::F32 => f.write_str("f32"),
            Self::F64 => f.write_str("f64"),
            Self::Char => f.write_str("char"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Any => f.write_str("any"),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.data_type)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.holds {
            VariantType::Unit => Ok(()),
            VariantType::Newtype(of) => write!(f, "({of})"),
            VariantType::Tuple(types) => listed(f, "(", types, ")"),
            VariantType::Struct(fields) => listed(f, " { ", fields, " }"),
        }
    }
}

fn listed<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    begin: &str,
    items: &[T],
    end: &str,
) -> fmt::Result {
    f.write_str(begin)?;
    for (at, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if at == 0 { "" } else { ", " })?;
    }
    f.write_str(end)
}
