//! What a service says of itself: read from a file for `own` and `serve`, shown by `names`.
//!
//! What `names --describe NAME --json` prints is what `--describe FILE` reads.

use std::{fs, path::Path};

use bus_client::Description;
use serde_json::{Value, json};

use crate::{
    exit::{Exit, Failure},
    output::Output,
    payload,
};

/// Reads what the service of `name` says of itself: TOML if the file is called so, else JSON.
pub(crate) fn read(path: &Path, name: &str) -> Result<Description, Failure> {
    let about = |error: &dyn std::fmt::Display| Failure::about(path.display(), error);
    let text = fs::read_to_string(path).map_err(|error| about(&error))?;
    let is_toml = path.extension().is_some_and(|ending| ending == "toml");
    let description: Description = if is_toml {
        toml::from_str(&text).map_err(|error| about(&error))?
    } else {
        serde_json::from_str(&text).map_err(|error| about(&error))?
    };
    // Once more, with what was passed over.
    let mut given: Value = if is_toml {
        toml::from_str(&text).map_err(|error| about(&error))?
    } else {
        serde_json::from_str(&text).map_err(|error| about(&error))?
    };
    let described = given.as_object_mut().and_then(|map| map.remove("name"));
    if described.as_ref().is_some_and(|described| described != name) {
        return Err(about(&format_args!("it describes {}", described.unwrap_or_default())));
    }
    let understood = serde_json::to_value(&description).map_err(Failure::error)?;
    if let Some(key) = stray(&given, &understood) {
        return Err(about(&format_args!("there is no key {key} in a description")));
    }
    description.check().map_err(|error| about(&error))?;
    Ok(description)
}

/// The path of a key that was given and passed over: a description that says less than its author
/// wrote helps nobody.
fn stray(given: &Value, understood: &Value) -> Option<String> {
    match (given, understood) {
        (Value::Object(given), Value::Object(understood)) => {
            given.iter().find_map(|(key, value)| match understood.get(key) {
                Some(known) => stray(value, known).map(|inner| format!("{key}.{inner}")),
                None => (!says_nothing(value)).then(|| key.clone()),
            })
        }
        (Value::Array(given), Value::Array(understood)) => {
            given.iter().zip(understood).find_map(|(value, known)| stray(value, known))
        }
        _ => None,
    }
}

/// What is not written where it is this.
fn says_nothing(value: &Value) -> bool {
    [json!(null), json!(""), json!([]), json!({}), json!("unit")].contains(value)
}

/// Shows it, for people or as JSON.
pub(crate) fn show(
    name: &str,
    description: &Description,
    json: bool,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if json {
        let mut value = serde_json::to_value(description).map_err(Failure::error)?;
        if let Value::Object(map) = &mut value {
            map.insert("name".to_owned(), json!(name));
        }
        output.json(&value)?;
        return Ok(Exit::Done);
    }
    for line in lines(name, description) {
        // All of it is a stranger's text.
        output.line(&payload::line(line.as_bytes()))?;
    }
    Ok(Exit::Done)
}

fn lines(name: &str, description: &Description) -> Vec<String> {
    let mut lines = vec![format!("{name}: {}", description.summary)];
    let mut say = |line: String, doc: &str| {
        lines.push(line);
        if !doc.is_empty() {
            lines.push(format!("      {doc}"));
        }
    };
    for operation in &description.operations {
        let (argument, reply) = (&operation.argument, &operation.reply);
        say(format!("  {}: {argument} -> {reply}", operation.name), &operation.doc);
    }
    for signal in &description.signals {
        let to = signal.group.as_ref().map_or_else(String::new, |group| format!(" to {group}"));
        say(format!("  signal {}: {}{to}", signal.name, signal.payload), &signal.doc);
    }
    for (name, data_type) in &description.types {
        say(format!("  type {name} = {data_type}"), "");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(ending: &str, text: &str) -> Result<Description, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clock").with_extension(ending);
        fs::write(&path, text).unwrap();
        read(&path, "a.Clock").map_err(|failure| failure.to_string())
    }

    const TOML: &str = r#"
        summary = "Tells the time."

        [[operations]]
        name = "now"
        argument = { option = "string" }
        reply = { named = "Time" }
        doc = "Local\u001b[2J time."

        [[signals]]
        name = "struck"
        payload = "u8"
        group = "a.Hours"

        [types]
        Time = { struct = [{ name = "hour", type = "u8" }, { name = "minute", type = "u8" }] }
        Never = { enum = [{ name = "no" }, { name = "yes", holds = { newtype = "Nothing" } }] }
    "#;

    #[test]
    fn toml_and_json_say_the_same_and_a_person_reads_it() {
        let toml = TOML.replace("newtype = \"Nothing\"", "newtype = \"f64\"");
        let description = read_as("toml", &toml).unwrap();
        let json = serde_json::to_string(&description).unwrap();
        assert_eq!(read_as("json", &json), Ok(description.clone()));
        assert_eq!(
            lines("a.Clock", &description),
            [
                "a.Clock: Tells the time.",
                "  now: option<string> -> Time",
                "      Local\u{1b}[2J time.",
                "  signal struck: u8 to a.Hours",
                "  type Never = no | yes(f64)",
                "  type Time = { hour: u8, minute: u8 }",
            ]
        );
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        for (ending, text, words) in [
            ("json", "{\"sumary\": \"x\"}", "no key sumary"),
            ("json", "{\"name\": \"a.Other\"}", "it describes \"a.Other\""),
            ("json", "{\"operations\": [{\"name\": \"a\", \"reply\": \"int\"}]}", "`int`"),
            (
                "json",
                "{\"operations\": [{\"name\": \"a\", \"replies\": \"u8\"}]}",
                "operations.replies",
            ),
            ("json", "{\"operations\": [{\"name\": \"\"}]}", "operation 1 has no name"),
            ("toml", TOML, "`Nothing`"),
            ("toml", "summary = 1", "line 1, column 11"),
        ] {
            let error = read_as(ending, text).unwrap_err();
            assert!(error.contains(words) && error.contains("clock"), "{words}: {error}");
        }
        assert!(
            read_as("json", "{\"name\": \"a.Clock\", \"signals\": [], \"summary\": \"\"}").is_ok()
        );
    }
}
