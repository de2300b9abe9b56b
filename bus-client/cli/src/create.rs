//! `unisono create`: a group that lives while this runs, and afterwards while it has a member.

use bus_client::{Bus, Retain};
use serde_json::json;

use crate::{
    cli,
    exit::{Exit, Failure},
    idle::{Idle, Woken},
    output::Output,
    owner,
    signals::Notice,
};

/// Creates the group and stays until a signal comes or the broker goes.
pub(crate) fn run(
    options: &cli::Create,
    bus: &Bus,
    notice: &Notice,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if options.gated {
        return owner::create(options, bus, notice, output);
    }
    let group = options.group.as_str();
    match options.retain {
        Some(retain) => {
            let bytes = options.retain_bytes.unwrap_or(retain.bytes);
            bus.create_retaining(group, Retain { bytes, ..retain })
        }
        None => bus.create(group),
    }?;
    if options.json {
        output.json(&json!({"type": "created", "group": group}))?;
    } else {
        output.note(&format!("created {group}; it is kept until this ends"));
    }
    let idle = Idle::new(bus, notice);
    loop {
        while bus.try_receive()?.is_some() {}
        if idle.wait(output, None)? == Woken::Signal {
            return Ok(Exit::Done);
        }
    }
}
