//! [`Filter`] as it goes over the wire: an array of alternatives, each an array of conditions, each a
//! map.
//!
//! Invariant: a filter that was read is one that exists, verified programs and all. A condition
//! has no key that this version does not know: to pass over one would accept something else than
//! was asked for.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::filter::{Condition, Filter, FilterError, FilterProgram, Pattern};

/// What serde's words begin with where a filter is well-formed, and none that can be used.
pub(super) const BAD_FILTER: &str = "bad filter: ";

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Form {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Blob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_prefix: Option<Blob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation_prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<Blob>,
}

impl From<&Condition> for Form {
    fn from(condition: &Condition) -> Self {
        let blob = |bytes: &Bytes| Some(Blob(bytes.to_vec()));
        let text = |bytes: &Bytes| Some(String::from_utf8_lossy(bytes).into_owned());
        let none = Self::default();
        match condition {
            Condition::Key(Pattern::Exactly(key)) => Self { key: blob(key), ..none },
            Condition::Key(Pattern::Prefix(key)) => Self { key_prefix: blob(key), ..none },
            Condition::Operation(Pattern::Exactly(name)) => Self { operation: text(name), ..none },
            Condition::Operation(Pattern::Prefix(name)) => {
                Self { operation_prefix: text(name), ..none }
            }
            Condition::Field { name, value: Pattern::Exactly(value) } => {
                Self { field: Some(name.clone()), value: text(value), ..none }
            }
            Condition::Field { name, value: Pattern::Prefix(value) } => {
                Self { field: Some(name.clone()), value_prefix: text(value), ..none }
            }
            Condition::Program(program) => Self { program: blob(program.code()), ..none },
        }
    }
}

impl Form {
    fn condition(self) -> Result<Condition, Refused> {
        let exactly = |text: String| Pattern::exactly(text);
        let condition = match self {
            Self { key: Some(key), key_prefix: None, .. } => {
                Condition::Key(Pattern::exactly(key.0))
            }
            Self { key: None, key_prefix: Some(key), .. } => Condition::Key(Pattern::prefix(key.0)),
            Self { operation: Some(name), .. } => Condition::Operation(exactly(name)),
            Self { operation_prefix: Some(name), .. } => {
                Condition::Operation(Pattern::prefix(name))
            }
            Self { field: Some(name), value: Some(value), .. } => {
                Condition::Field { name, value: exactly(value) }
            }
            Self { field: Some(name), value_prefix: Some(value), .. } => {
                Condition::Field { name, value: Pattern::prefix(value) }
            }
            Self { program: Some(code), .. } => {
                let program = FilterProgram::from_code(code.0.into());
                Condition::Program(program.map_err(FilterError::from)?)
            }
            _ => return Err(Refused::Shape),
        };
        Ok(condition)
    }

    /// How many keys it has, where one that goes with another is none of its own.
    fn subjects(&self) -> usize {
        let given = [
            self.key.is_some(),
            self.key_prefix.is_some(),
            self.operation.is_some(),
            self.operation_prefix.is_some(),
            self.field.is_some(),
            self.program.is_some(),
        ];
        given.into_iter().filter(|given| *given).count()
    }

    fn has_one_meaning(&self) -> bool {
        let values = usize::from(self.value.is_some()) + usize::from(self.value_prefix.is_some());
        self.subjects() == 1 && values == usize::from(self.field.is_some())
    }
}

/// Why what is well-formed is no filter.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(
        "a condition has one of the keys key, key_prefix, operation, operation_prefix and program, \
         or field with one of value and value_prefix"
    )]
    Shape,
    #[error(transparent)]
    Filter(#[from] FilterError),
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let forms = |all: &Vec<Condition>| all.iter().map(Form::from).collect::<Vec<_>>();
        s.collect_seq(self.alternatives().iter().map(forms).collect::<Vec<_>>())
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let alternatives = Vec::<Vec<Form>>::deserialize(d)?;
        read(alternatives).map_err(|error| de::Error::custom(format_args!("{BAD_FILTER}{error}")))
    }
}

fn read(alternatives: Vec<Vec<Form>>) -> Result<Filter, Refused> {
    // Counted first: a program is verified only if there are not too many of them.
    let given = alternatives.iter().map(Vec::len).sum();
    if given > crate::MAX_FILTER_CONDITIONS {
        return Err(FilterError::TooManyConditions { given }.into());
    }
    let condition = |form: Form| {
        if form.has_one_meaning() { form.condition() } else { Err(Refused::Shape) }
    };
    let all = |forms: Vec<Form>| forms.into_iter().map(condition).collect::<Result<Vec<_>, _>>();
    let alternatives = alternatives.into_iter().map(all).collect::<Result<Vec<_>, _>>()?;
    Ok(Filter::new(alternatives)?)
}

/// Bytes, where serde would make an array of numbers.
#[derive(Default)]
struct Blob(Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        d.deserialize_byte_buf(Visitor)
    }
}
