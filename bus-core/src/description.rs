//! What a service says of itself: its operations and signals and their types, for whoever asks
//! about its name.
//!
//! Invariant: a description that the bus keeps is whole. [`Description::check`] has passed it:
//! everything in it has a name, no name is there twice, every type that is named is there, and
//! none lies too deep. The bus keeps it at the claim of who gave it, bounded, and reads nothing else
//! of it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::attributes::MAX_OPERATION_BYTES;
use crate::data_type::{DataType, Field, MAX_TYPE_DEPTH, Variant, VariantType};
use crate::name::GroupName;

/// What the service of a name says of itself.
///
/// `bus_client::Describe` makes one from the Rust types that a service reads and writes.
///
/// ```
/// use bus_core::{DataType, Description, Field, Operation, Signal};
///
/// let time = DataType::Struct(["hour", "minute"].map(|name| Field::new(name, DataType::U8)).into());
/// let clock = Description::new("Tells the time.")
///     .operation(Operation::new("now").reply(DataType::named("Time")).doc("Local time."))
///     .signal(Signal::new("struck", DataType::U8).doc("At every full hour."))
///     .data_type("Time", time);
/// assert_eq!(clock.check(), Ok(()));
/// assert_eq!(clock.operations[0].argument, DataType::Unit);
///
/// let vague = Description::new("").operation(Operation::new("now").reply(DataType::named("Time")));
/// let error = vague.check().unwrap_err();
/// assert_eq!(error.to_string(), "the reply of operation \"now\" is of type \"Time\", which is not described");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Description {
    /// What it is for, in a sentence.
    pub summary: String,
    /// What it takes.
    pub operations: Vec<Operation>,
    /// What it sends unasked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signals: Vec<Signal>,
    /// The types that are named in the others.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub types: BTreeMap<String, DataType>,
}

/// An operation of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Operation {
    /// Its name, as in a message's header.
    pub name: String,
    /// The type of what it takes.
    #[serde(default)]
    pub argument: DataType,
    /// The type of what it answers.
    #[serde(default)]
    pub reply: DataType,
    /// What it does, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub doc: String,
}

impl Operation {
    /// An operation that takes and answers nothing.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        let (argument, reply) = (DataType::Unit, DataType::Unit);
        Self { name: name.into(), argument, reply, doc: String::new() }
    }

    /// The same with another type of argument.
    #[must_use]
    pub fn argument(self, argument: DataType) -> Self {
        Self { argument, ..self }
    }

    /// The same with another type of reply.
    #[must_use]
    pub fn reply(self, reply: DataType) -> Self {
        Self { reply, ..self }
    }

    /// The same with a sentence about what it does.
    #[must_use]
    pub fn doc(self, doc: impl Into<String>) -> Self {
        Self { doc: doc.into(), ..self }
    }
}

/// Messages that a service sends without being asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Signal {
    /// Its name, as the operation in a message's header.
    pub name: String,
    /// The type of its payload.
    #[serde(default)]
    pub payload: DataType,
    /// The group that it goes to. None if it goes to endpoints that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// What it tells, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub doc: String,
}

impl Signal {
    /// A signal.
    #[must_use]
    pub fn new(name: impl Into<String>, payload: DataType) -> Self {
        Self { name: name.into(), payload, group: None, doc: String::new() }
    }

    /// The same, to a group.
    #[must_use]
    pub fn group(self, group: GroupName) -> Self {
        Self { group: Some(group), ..self }
    }

    /// The same with a sentence about what it tells.
    #[must_use]
    pub fn doc(self, doc: impl Into<String>) -> Self {
        Self { doc: doc.into(), ..self }
    }
}

/// Why a description says too little, or too much. Mend what it names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptionError {
    /// Something has an empty name.
    #[error("{0} has no name")]
    NoName(String),
    /// A name is longer than an operation's may be.
    #[error("the name of {at} has {bytes} bytes, and {MAX_OPERATION_BYTES} are allowed")]
    LongName {
        /// What has it.
        at: String,
        /// How long it is.
        bytes: usize,
    },
    /// Two of the same kind have one name.
    #[error("{0} is there twice")]
    Twice(String),
    /// A type is named and not there.
    #[error("{at} is of type {name:?}, which is not described")]
    NoSuchType {
        /// What is of that type.
        at: String,
        /// The type's name.
        name: String,
    },
    /// Types lie deeper in each other than [`MAX_TYPE_DEPTH`]; give some of them names.
    #[error("types lie more than {MAX_TYPE_DEPTH} deep in {0}")]
    TooDeep(String),
}

impl Description {
    /// A description without operations.
    #[must_use]
    pub fn new(summary: impl Into<String>) -> Self {
        Self { summary: summary.into(), ..Self::default() }
    }

    /// The same with one operation more.
    #[must_use]
    pub fn operation(mut self, operation: Operation) -> Self {
        self.operations.push(operation);
        self
    }

    /// The same with one signal more.
    #[must_use]
    pub fn signal(mut self, signal: Signal) -> Self {
        self.signals.push(signal);
        self
    }

    /// The same with this under a name, for [`DataType::Named`].
    #[must_use]
    pub fn data_type(mut self, name: impl Into<String>, data_type: DataType) -> Self {
        self.types.insert(name.into(), data_type);
        self
    }

    /// Whether it is whole: what the bus asks of a description before it keeps it.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn check(&self) -> Result<(), DescriptionError> {
        all_named("operation", self.operations.iter().map(|operation| &operation.name))?;
        all_named("signal", self.signals.iter().map(|signal| &signal.name))?;
        all_named("type", self.types.keys())?;
        for Operation { name, argument, reply, .. } in &self.operations {
            self.check_type(argument, &|| format!("the argument of operation {name:?}"), 1)?;
            self.check_type(reply, &|| format!("the reply of operation {name:?}"), 1)?;
        }
        for Signal { name, payload, .. } in &self.signals {
            self.check_type(payload, &|| format!("signal {name:?}"), 1)?;
        }
        for (name, data_type) in &self.types {
            self.check_type(data_type, &|| format!("type {name:?}"), 1)?;
        }
        Ok(())
    }

    /// Checks a type that lies `depth` deep in what `at` says.
    fn check_type(
        &self,
        data_type: &DataType,
        at: &dyn Fn() -> String,
        depth: usize,
    ) -> Result<(), DescriptionError> {
        if depth > MAX_TYPE_DEPTH {
            return Err(DescriptionError::TooDeep(at()));
        }
        let inner = |inner: &DataType| self.check_type(inner, at, depth + 1);
        match data_type {
            DataType::Named(name) if !self.types.contains_key(name) => {
                Err(DescriptionError::NoSuchType { at: at(), name: name.clone() })
            }
            DataType::Option(of)
            | DataType::Seq(of)
            | DataType::NewtypeStruct(of)
            | DataType::Array { of, .. } => inner(of),
            DataType::Map { key, value } => inner(key).and_then(|()| inner(value)),
            DataType::Tuple(types) | DataType::TupleStruct(types) => {
                types.iter().try_for_each(inner)
            }
            DataType::Struct(fields) => self.check_fields(fields, at, depth),
            DataType::Enum(variants) => {
                all_named(&format!("in {}: variant", at()), variants.iter().map(|v| &v.name))?;
                variants.iter().try_for_each(|variant| match &variant.holds {
                    VariantType::Unit => Ok(()),
                    VariantType::Newtype(of) => inner(of),
                    VariantType::Tuple(types) => types.iter().try_for_each(inner),
                    VariantType::Struct(fields) => self.check_fields(fields, at, depth),
                })
            }
            _ => Ok(()),
        }
    }

    fn check_fields(
        &self,
        fields: &[Field],
        at: &dyn Fn() -> String,
        depth: usize,
    ) -> Result<(), DescriptionError> {
        all_named(&format!("in {}: field", at()), fields.iter().map(|field| &field.name))?;
        fields.iter().try_for_each(|Field { name, data_type, .. }| {
            self.check_type(data_type, &|| format!("in {}: field {name:?}", at()), depth + 1)
        })
    }

    /// The bytes that it counts for against the limit `description_bytes`: its texts, and what it
    /// costs to keep each operation, signal, field, variant and type.
    #[must_use]
    pub fn charged_bytes(&self) -> usize {
        let operation = |op: &Operation| {
            let texts = op.name.len() + op.doc.len();
            size_of::<Operation>() + texts + inside(&op.argument) + inside(&op.reply)
        };
        let signal = |signal: &Signal| {
            let group = signal.group.as_ref().map_or(0, |group| group.as_str().len());
            let texts = signal.name.len() + signal.doc.len() + group;
            size_of::<Signal>() + texts + inside(&signal.payload)
        };
        let named = |(name, data_type): (&String, &DataType)| {
            size_of::<(String, DataType)>() + name.len() + inside(data_type)
        };
        self.summary.len()
            + self.operations.iter().map(operation).sum::<usize>()
            + self.signals.iter().map(signal).sum::<usize>()
            + self.types.iter().map(named).sum::<usize>()
    }
}

/// Every one of a kind has a name, and none that another has.
fn all_named<'a>(
    kind: &str,
    names: impl Iterator<Item = &'a String>,
) -> Result<(), DescriptionError> {
    let mut seen = BTreeSet::new();
    for (at, name) in names.enumerate() {
        if name.is_empty() {
            return Err(DescriptionError::NoName(format!("{kind} {}", at + 1)));
        }
        if name.len() > MAX_OPERATION_BYTES {
            let at = format!("{kind} {}", at + 1);
            return Err(DescriptionError::LongName { at, bytes: name.len() });
        }
        if !seen.insert(name) {
            return Err(DescriptionError::Twice(format!("{kind} {name:?}")));
        }
    }
    Ok(())
}

/// What a type costs beside its own place.
fn inside(data_type: &DataType) -> usize {
    let boxed = |of: &DataType| size_of::<DataType>() + inside(of);
    let all = |types: &[DataType]| types.iter().map(boxed).sum();
    let fields = |fields: &[Field]| {
        let field = |field: &Field| {
            size_of::<Field>() + field.name.len() + field.doc.len() + inside(&field.data_type)
        };
        fields.iter().map(field).sum()
    };
    match data_type {
        DataType::Option(of)
        | DataType::Seq(of)
        | DataType::NewtypeStruct(of)
        | DataType::Array { of, .. } => boxed(of),
        DataType::Map { key, value } => boxed(key) + boxed(value),
        DataType::Tuple(types) | DataType::TupleStruct(types) => all(types),
        DataType::Struct(of) => fields(of),
        DataType::Enum(variants) => {
            let variant = |variant: &Variant| {
                let texts = size_of::<Variant>() + variant.name.len() + variant.doc.len();
                texts
                    + match &variant.holds {
                        VariantType::Unit => 0,
                        VariantType::Newtype(of) => inside(of),
                        VariantType::Tuple(types) => all(types),
                        VariantType::Struct(of) => fields(of),
                    }
            };
            variants.iter().map(variant).sum()
        }
        DataType::Named(name) => name.len(),
        _ => 0,
    }
}

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    fn takes(argument: DataType) -> Description {
        Description::new("").operation(Operation::new("do").argument(argument))
    }

    fn seq(of: DataType) -> DataType {
        DataType::Seq(Box::new(of))
    }

    #[test]
    fn what_is_wrong_is_named() {
        let deep = (0..MAX_TYPE_DEPTH).fold(DataType::U8, |of, _| seq(of));
        let two = |name: &str| vec![Field::new("a", DataType::U8), Field::new(name, DataType::U8)];
        let case = |name: &str| Variant::new(name, VariantType::Newtype(DataType::named("B")));
        let signal =
            |name: &str| Description::new("").signal(Signal::new(name, DataType::named("B")));
        for (offence, description) in [
            ("operation 1 has no name", Description::new("").operation(Operation::new(""))),
            ("the name of operation 1 has 256 bytes, and 255 are allowed", {
                Description::new("").operation(Operation::new("o".repeat(256)))
            }),
            (
                "operation \"do\" is there twice",
                takes(DataType::U8).operation(Operation::new("do")),
            ),
            ("signal \"B\" is of type \"B\", which is not described", signal("B")),
            ("type 1 has no name", Description::new("").data_type("", DataType::U8)),
            (
                "the argument of operation \"do\" is of type \"A\", which is not described",
                takes(seq(DataType::named("A"))),
            ),
            ("types lie more than 8 deep in the argument of operation \"do\"", takes(deep)),
            (
                "in the argument of operation \"do\": field \"a\" is there twice",
                takes(DataType::Struct(two("a"))),
            ),
            (
                "in type \"A\": field 2 has no name",
                Description::new("").data_type("A", DataType::Struct(two(""))),
            ),
            (
                "in type \"A\": variant \"on\" is there twice",
                Description::new("").data_type("A", DataType::Enum(vec![case("on"), case("on")])),
            ),
            (
                "type \"A\" is of type \"B\", which is not described",
                Description::new("").data_type("A", DataType::Enum(vec![case("on")])),
            ),
        ] {
            assert_eq!(description.check().map_err(|error| error.to_string()), Err(offence.into()));
        }
    }

    #[test]
    fn a_recursive_type_is_whole_and_as_deep_as_may_be_is_deep_enough() {
        let deep = (1..MAX_TYPE_DEPTH).fold(DataType::named("Tree"), |of, _| seq(of));
        let tree = takes(deep).data_type("Tree", seq(DataType::named("Tree")));
        assert_eq!(tree.check(), Ok(()));
    }

    #[test]
    fn g8_everything_in_a_description_is_charged() {
        let plain = takes(DataType::U8).charged_bytes();
        let field = Field::new("", DataType::U8).doc("says much");
        let variant = Variant::new("", VariantType::Tuple(vec![DataType::U8; 100]));
        for (case, more, least) in [
            ("nesting", seq(DataType::U8), 16),
            ("many", DataType::Tuple(vec![DataType::U8; 100]), 1600),
            ("fields", DataType::Struct(vec![field; 100]), 4000),
            ("variants", DataType::Enum(vec![variant; 10]), 16_000),
            ("names", DataType::named("n".repeat(100)), 100),
            ("maps", DataType::Map { key: Box::default(), value: Box::default() }, 32),
        ] {
            let charged = takes(more).charged_bytes() - plain;
            assert!(charged >= least, "{case}: {charged}");
        }
    }
}
