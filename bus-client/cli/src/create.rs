//! `unisono create`: a group that lives while this runs, and afterwards while it has a member.

use bus_client::{Bus, GroupOptions, Retain};
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
    let mut how = GroupOptions::new();
    if let Some(retain) = options.retain {
        let bytes = options.retain_bytes.unwrap_or(retain.bytes);
        how = how.retain(Retain { bytes, ..retain });
    }
    if let Some(stall) = options.stall {
        how = how.stall(stall);
    }
    bus.create_with(group, how)?;
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
