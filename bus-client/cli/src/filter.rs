//! Filters as they are given on the command line.
//!
//! What can be told from the text alone is told before anything is connected to or joined; files
//! are read when listening begins.

use std::path::PathBuf;

use bus_client::{Condition, Filter, FilterProgram};

use crate::exit::{Exit, Failure};

/// One `--filter`: conditions that must all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Condition(Condition),
    Program(PathBuf),
}

/// Reads conditions joined by ` && `.
pub(crate) fn parse(text: &str) -> Result<Wanted, String> {
    let part = |part: &str| match part.strip_prefix("bpf:") {
        Some("") => Err("bpf: is followed by the name of a file".to_owned()),
        Some(path) => Ok(Part::Program(path.into())),
        None => {
            let condition: Condition =
                part.parse().map_err(|error| format!("{error}, or bpf:FILE"))?;
            // The bounds of a condition are those of a filter that is nothing else.
            Filter::new([vec![condition.clone()]]).map_err(|error| error.to_string())?;
            Ok(Part::Condition(condition))
        }
    };
    let parts = text.split(" && ").map(part).collect::<Result<_, _>>()?;
    Ok(Wanted { text: text.to_owned(), parts })
}

/// The filter that accepts what one of these does; none if there are none.
pub(crate) fn load(wanted: &[Wanted]) -> Result<Option<Filter>, Failure> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let alternatives = wanted.iter().map(Wanted::load).collect::<Result<Vec<_>, _>>()?;
    let filter = Filter::new(alternatives);
    filter.map(Some).map_err(|error| Failure::new(Exit::Usage, error))
}

/// As it was given.
pub(crate) fn text(wanted: &[Wanted]) -> Option<String> {
    let all: Vec<&str> = wanted.iter().map(|wanted| wanted.text.as_str()).collect();
    (!all.is_empty()).then(|| all.join(" || "))
}

impl Wanted {
    fn load(&self) -> Result<Vec<Condition>, Failure> {
        let load = |part: &Part| match part {
            Part::Condition(condition) => Ok(condition.clone()),
            Part::Program(path) => {
                let file =
                    std::fs::read(path).map_err(|error| Failure::about(path.display(), error))?;
                let program = FilterProgram::load(&file);
                let program = program.map_err(|error| Failure::about(path.display(), error))?;
                Ok(Condition::Program(program))
            }
        };
        self.parts.iter().map(load).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_and_programs_are_named() {
        let wanted = parse("key^=a. && bpf:some/file").expect("good");
        assert_eq!(wanted.parts.len(), 2);
        assert_eq!(wanted.parts[1], Part::Program("some/file".into()));
        assert_eq!(
            text(&[wanted, parse("operation=O").expect("good")]).as_deref(),
            Some("key^=a. && bpf:some/file || operation=O")
        );
        assert_eq!(text(&[]), None);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_expected() {
        let long = format!("key={}", "k".repeat(256));
        for (text, words) in [
            ("payload=x", "field.NAME=VALUE or field.NAME^=PREFIX, or bpf:FILE"),
            ("key=a && ", "no condition"),
            ("bpf:", "file"),
            ("field.=x", "1 to 255"),
            (&long, "256 bytes"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
