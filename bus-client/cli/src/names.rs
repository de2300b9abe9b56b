//! `unisono names`: who owns which name, and what its service says of itself.

use bus_client::{Bus, NameInfo};
use serde_json::{Value, json};

use crate::{
    cli,
    exit::{Exit, Failure},
    listing,
    output::Output,
};

/// Lists the names, or describes one.
pub(crate) fn run(options: &cli::Names, bus: &Bus, output: &mut Output) -> Result<Exit, Failure> {
    if let Some(name) = &options.describe {
        return describe(name, options.json, bus, output);
    }
    if options.json {
        return listing::lines(bus.list_names()?, output);
    }
    let names = bus.names()?;
    let header = ["NAME", "OWNER", "UID", "PID", "OWNERS", "WAITING", "NOTES"];
    listing::table(header, names.iter().map(row), output)
}

fn row(info: &NameInfo) -> [String; 7] {
    let first = info.owners.first();
    let shown = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let notes = [(info.shared, "shared"), (info.described, "described")];
    let notes: Vec<_> = notes.iter().filter(|(set, _)| *set).map(|(_, note)| *note).collect();
    [
        info.name.to_string(),
        shown(first.map(|owner| owner.endpoint.get())),
        shown(first.map(|owner| owner.uid.into())),
        shown(first.map(|owner| owner.pid.into())),
        info.owner_count.to_string(),
        info.waiting.to_string(),
        notes.join(","),
    ]
}

fn describe(name: &str, json: bool, bus: &Bus, output: &mut Output) -> Result<Exit, Failure> {
    let description = bus.describe_name(name)?;
    if json {
        let mut value = serde_json::to_value(&description).map_err(Failure::error)?;
        if let Value::Object(map) = &mut value {
            map.insert("name".to_owned(), json!(name));
        }
        output.json(&value)?;
        return Ok(Exit::Done);
    }
    output.line(&format!("{name}: {}", description.summary))?;
    for operation in &description.operations {
        let doc = if operation.doc.is_empty() {
            String::new()
        } else {
            format!("\n      {}", operation.doc)
        };
        let (name, request, reply) = (&operation.name, &operation.request, &operation.reply);
        output.line(&format!("  {name}: {request} -> {reply}{doc}"))?;
    }
    Ok(Exit::Done)
}
