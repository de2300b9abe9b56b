//! The verbs that only show something: `groups`, `members`, `accounts`, `stats`, `status`.
//!
//! With `--json`, lists are an object a line, so that they can be read as they come; what is one
//! thing is one object.

use std::collections::BTreeMap;

use bus_client::{AccountInfo, Bus, Listing, MemberInfo};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::{
    cli,
    exit::{Exit, Failure},
    output::Output,
};

/// Lists the groups.
pub(crate) fn groups(
    options: &cli::Listing,
    bus: &Bus,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if options.json {
        return lines(bus.list_groups()?, output);
    }
    let groups = bus.groups()?;
    let rows = groups.iter().map(|g| {
        [
            g.name.to_string(),
            if g.gated { "gated" } else { "open" }.to_owned(),
            g.members.to_string(),
            g.creator.map_or_else(|| "-".to_owned(), |id| id.to_string()),
        ]
    });
    table(["GROUP", "KIND", "MEMBERS", "CREATOR"], rows, output)
}

/// Lists a group's members.
pub(crate) fn members(
    options: &cli::Members,
    bus: &Bus,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if options.json {
        return lines(bus.list_members(&options.group)?, output);
    }
    let members = bus.members(&options.group)?.members;
    let header = [
        "ENDPOINT",
        "UID",
        "PID",
        "QUEUED",
        "BYTES",
        "CAPACITY",
        "DROPPED",
        "FULL SINCE",
        "BLOCKS",
        "FLAGS",
    ];
    table(header, members.iter().map(member_row), output)
}

/// Shows who holds how much.
pub(crate) fn accounts(
    options: &cli::Listing,
    bus: &Bus,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if options.json {
        return lines(bus.list_accounts()?, output);
    }
    let accounts = bus.list_accounts()?.collect::<Result<Vec<_>, _>>()?;
    let rows = accounts.iter().map(account_row);
    table(["UID", "CONNECTION", "PID", "HOLDS", "REFUSED"], rows, output)
}

/// What is 0 is left out.
fn account_row(account: &AccountInfo) -> [String; 5] {
    let limits = account.limits.as_ref();
    let some = |amounts: &BTreeMap<&'static str, u64>, of: Option<&BTreeMap<_, u64>>| {
        let some = amounts.iter().filter(|(_, amount)| **amount != 0);
        let texts = some.map(|(name, amount)| match of.and_then(|of| of.get(name)) {
            Some(limit) => format!("{name}={amount}/{limit}"),
            None => format!("{name}={amount}"),
        });
        texts.collect::<Vec<_>>().join(" ")
    };
    let or_dash = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
    [
        account.uid.to_string(),
        or_dash(account.connection.map(|number| number.to_string())),
        or_dash(account.pid.map(|pid| pid.to_string())),
        some(&account.held, limits),
        account.refused.as_ref().map_or_else(String::new, |refused| some(refused, None)),
    ]
}

/// Shows the counters.
pub(crate) fn stats(
    options: &cli::Listing,
    bus: &Bus,
    output: &mut Output,
) -> Result<Exit, Failure> {
    show(&bus.stats()?, options.json, output)
}

/// Shows what the broker is and how it is set.
pub(crate) fn status(
    options: &cli::Listing,
    bus: &Bus,
    output: &mut Output,
) -> Result<Exit, Failure> {
    show(&bus.status()?, options.json, output)
}

fn member_row(member: &MemberInfo) -> [String; 10] {
    let full_since = member.full_since_sequence;
    [
        member.endpoint.to_string(),
        member.uid.to_string(),
        member.pid.to_string(),
        member.queued_messages.to_string(),
        member.queued_bytes.to_string(),
        member.capacity.to_string(),
        member.dropped.to_string(),
        full_since.map_or_else(|| "-".to_owned(), |s| s.to_string()),
        member.blocks.to_string(),
        member.flags.join(","),
    ]
}

/// An object a line, as they come.
pub(crate) fn lines<T: Serialize>(
    values: Listing<T>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    for value in values {
        output.json(&value?)?;
    }
    Ok(Exit::Done)
}

fn show<T: Serialize>(value: &T, json: bool, output: &mut Output) -> Result<Exit, Failure> {
    if json {
        output.json(value)?;
        return Ok(Exit::Done);
    }
    let value = serde_json::to_value(value).map_err(Failure::error)?;
    let mut rows = Vec::new();
    flatten("", &value, &mut rows);
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        output.line(&format!("{name:width$}  {value}"))?;
    }
    Ok(Exit::Done)
}

/// Every leaf with its path, `limits.stall` for one.
fn flatten(path: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                let path = match path {
                    "" => name.clone(),
                    _ => format!("{path}.{name}"),
                };
                flatten(&path, inner, rows);
            }
        }
        Value::String(text) => rows.push((path.to_owned(), text.clone())),
        Value::Null => rows.push((path.to_owned(), "-".to_owned())),
        other => rows.push((path.to_owned(), other.to_string())),
    }
}

pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header)
        .add_rows(rows);
    for line in table.lines() {
        output.line(line.trim())?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_values_are_shown_by_their_paths() {
        let mut rows = Vec::new();
        let value = json!({"a": 1, "limits": {"stall": "10s", "none": null}, "list": [1, 2]});
        flatten("", &value, &mut rows);
        let rows: Vec<_> = rows.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(
            rows,
            [("a", "1"), ("limits.none", "-"), ("limits.stall", "10s"), ("list", "[1,2]")]
        );
    }
}
