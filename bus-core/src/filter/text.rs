//! How conditions and filters are written: `key^=a.`, `field.unit=C`, several joined by ` && `.
//!
//! What is written has no escapes: a value goes on to the end of its condition. So every value
//! without ` && ` in it can be written, and the library says the others.

use std::fmt;
use std::str::FromStr;

use super::{Condition, Filter, FilterError, Pattern};

impl FromStr for Condition {
    type Err = FilterError;

    /// Reads `key=K`, `key^=PREFIX`, `operation=O`, `operation^=PREFIX`, `field.NAME=V` or
    /// `field.NAME^=PREFIX`. Programs are loaded, see
    /// [`FilterProgram::load`](super::FilterProgram::load).
    fn from_str(text: &str) -> Result<Self, FilterError> {
        let syntax = || FilterError::Syntax(text.chars().take(SHOWN_CHARS).collect());
        let (name, value) = text.split_once('=').ok_or_else(syntax)?;
        let (name, pattern) = match name.strip_suffix('^') {
            Some(name) => (name, Pattern::prefix(value)),
            None => (name, Pattern::exactly(value)),
        };
        match (name, name.strip_prefix("field.")) {
            ("key", _) => Ok(Self::Key(pattern)),
            ("operation", _) => Ok(Self::Operation(pattern)),
            (_, Some(name)) => Ok(Self::Field { name: name.to_owned(), value: pattern }),
            _ => Err(syntax()),
        }
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    /// Reads conditions joined by ` && `, which must all hold. Several filters are joined with
    /// [`Filter::any`].
    fn from_str(text: &str) -> Result<Self, FilterError> {
        Self::new([text.split(AND).map(str::parse).collect::<Result<_, _>>()?])
    }
}

impl fmt::Display for Condition {
    /// As it is read, but for a program, and bytes that are no text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, value) = match self {
            Self::Program(program) => {
                return write!(f, "bpf:{} instructions", program.instructions());
            }
            Self::Key(pattern) | Self::Operation(pattern) | Self::Field { value: pattern, .. } => {
                let sign = match pattern {
                    Pattern::Exactly(_) => "=",
                    Pattern::Prefix(_) => "^=",
                };
                (sign, String::from_utf8_lossy(pattern.bytes()))
            }
        };
        match self {
            Self::Key(_) => write!(f, "key{sign}{value}"),
            Self::Operation(_) => write!(f, "operation{sign}{value}"),
            Self::Field { name, .. } => write!(f, "field.{name}{sign}{value}"),
            Self::Program(_) => Ok(()),
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, all) in self.alternatives().iter().enumerate() {
            f.write_str(if at == 0 { "" } else { " || " })?;
            for (at, condition) in all.iter().enumerate() {
                f.write_str(if at == 0 { "" } else { AND })?;
                condition.fmt(f)?;
            }
        }
        Ok(())
    }
}

const AND: &str = " && ";
/// How much of a text that is no condition is shown.
const SHOWN_CHARS: usize = 64;

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in [
            "key=a.b",
            "key=",
            "key^=",
            "key=a=b",
            "key=a^=b",
            "operation=Add",
            "operation^=A",
            "field.n=42",
            "field.n^=4",
            "field.a.b=",
            "key^=sensor. && field.unit=C && operation=Set",
        ] {
            assert_eq!(text.parse::<Filter>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_condition_is_said_with_what_is_expected() {
        for text in ["", "a", "key", "Key=a", "fields.n=1", "payload=x", "key~=a", "key=a && "] {
            let error = text.parse::<Filter>().unwrap_err();
            assert!(error.to_string().contains("expected key=KEY"), "{text:?}: {error}");
        }
        assert!(matches!("field.=1".parse::<Filter>(), Err(FilterError::Length { .. })));
    }
}
