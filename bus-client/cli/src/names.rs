//! `unisono names`: who owns which name, and what its service says of itself.

use bus_client::{Bus, NameInfo};

use crate::{
    cli, description,
    exit::{Exit, Failure},
    listing,
    output::Output,
};

/// Lists the names, or describes one.
pub(crate) fn run(options: &cli::Names, bus: &Bus, output: &mut Output) -> Result<Exit, Failure> {
    if let Some(name) = &options.describe {
        return description::show(name, &bus.describe_name(name)?, options.json, output);
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
