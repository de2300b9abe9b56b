//! `unisono watch --name`: who owns a name, and every change of that.

use std::time::Instant;

use bus_client::{Bus, Event, Owner, OwnerChange};
use serde::Serialize;

use crate::{
    cli,
    exit::{Exit, Failure},
    idle::{Idle, Woken},
    output::Output,
    signals::Notice,
    trace::{self, End},
};

/// Watches and prints until the count is reached, a signal comes, or the broker goes.
pub(crate) fn run(
    options: &cli::Watch,
    bus: &Bus,
    notice: &Notice,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if options.json {
        // A trace tells its end, from its first line on; text has nothing to say there.
        notice.ask();
    }
    let watch = bus.watch_name(&options.group)?;
    let name = watch.name().as_str();
    let (sequence, owners) = (watch.sequence().get(), watch.owners());
    if options.json {
        output.json(&Line::Owners { name, sequence, owners })?;
    } else {
        output.line(&format!("{name}: {}", all(owners)))?;
    }
    match watch_changes(options, bus, &Idle::new(bus, notice), output) {
        Ok(why) => {
            end(options, why, output)?;
            if why == TIMEOUT {
                let timeout = options.timeout.unwrap_or_default();
                let text = format_args!("no change for {timeout:?}");
                return Err(Failure::new(Exit::NotSent, text));
            }
            Ok(Exit::Done)
        }
        Err(failure) => {
            if failure.exit() == Exit::Gone {
                end(options, "broker-gone", output)?;
            }
            Err(failure)
        }
    }
}

const TIMEOUT: &str = "timeout";

/// A line of `watch --name --json`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Line<'a> {
    Owners {
        name: &'a str,
        sequence: u64,
        owners: &'a [Owner],
    },
    OwnerChanged {
        name: &'a str,
        sequence: u64,
        old: Option<Owner>,
        new: Option<Owner>,
        owners: u32,
        /// Changes that were missed just before it.
        #[serde(skip_serializing_if = "Option::is_none")]
        missed: Option<u64>,
    },
    OwnerChangesLost {
        missed: u64,
    },
    Reconnected(trace::Reconnected),
    End(End),
}

fn watch_changes(
    options: &cli::Watch,
    bus: &Bus,
    idle: &Idle<'_>,
    output: &mut Output,
) -> Result<&'static str, Failure> {
    let mut quiet_since = Instant::now();
    let mut printed = 0;
    loop {
        while let Some(event) = bus.try_receive()? {
            quiet_since = Instant::now();
            match event {
                Event::OwnerChanged(change) => {
                    print(options, &change, output)?;
                    printed += 1;
                    if options.count.is_some_and(|count| printed >= count) {
                        return Ok("count");
                    }
                }
                Event::Reconnected(back) => {
                    if options.json {
                        output.json(&Line::Reconnected((&*back).into()))?;
                    } else {
                        let endpoint = back.endpoint;
                        output.note(&format!("connected again, as endpoint {endpoint}"));
                    }
                }
                Event::OwnerChangesLost(lost) => {
                    let missed = lost.gap.count;
                    if options.json {
                        output.json(&Line::OwnerChangesLost { missed })?;
                    } else {
                        output.note(&format!("missed {missed} changes"));
                    }
                }
                _ => {}
            }
        }
        let left = options.timeout.map(|t| t.saturating_sub(quiet_since.elapsed()));
        match idle.wait(output, left)? {
            Woken::Bus => {}
            Woken::Signal => return Ok("signal"),
            Woken::Timeout => return Ok(TIMEOUT),
        }
    }
}

fn print(options: &cli::Watch, change: &OwnerChange, output: &mut Output) -> Result<(), Failure> {
    let OwnerChange { name, sequence, old, new, owners, missed, .. } = change;
    let missed = missed.map(|gap| gap.count);
    if options.json {
        return output.json(&Line::OwnerChanged {
            name: name.as_str(),
            sequence: sequence.get(),
            old: *old,
            new: *new,
            owners: *owners,
            missed,
        });
    }
    if let Some(missed) = missed {
        output.note(&format!("missed {missed} changes"));
    }
    let what = match (old, new) {
        (Some(old), Some(new)) => format!("{} instead of {}", one(new), one(old)),
        (None, Some(new)) => one(new),
        (Some(old), None) => format!("no longer {}", one(old)),
        (None, None) => "nobody".to_owned(),
    };
    output.line(&format!("{sequence}: {what}, {owners} own it"))
}

fn one(owner: &Owner) -> String {
    let Owner { endpoint, uid, pid, .. } = owner;
    format!("endpoint {endpoint} (user {uid}, process {pid})")
}

fn all(owners: &[Owner]) -> String {
    if owners.is_empty() {
        return "nobody".to_owned();
    }
    owners.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn end(options: &cli::Watch, reason: &str, output: &mut Output) -> Result<(), Failure> {
    if !options.json {
        return Ok(());
    }
    output.json(&Line::End(End { reason: reason.to_owned(), through: None }))
}
