//! `unisono top`: what the bus does, live: groups, endpoints, and who makes whom wait.
//!
//! Two samples of counters make a picture; [`picture`] is a function of the two, so that the screen,
//! the plain table and the JSON object show the same. What this program itself does to the bus is
//! left out: its endpoint is not listed, and asking is no message.
//!
//! | file | what it knows |
//! |---|---|
//! | `sample` | what is asked of the broker |
//! | `picture` | from two samples to rows, sorted |
//! | `screen` | the terminal, and what keys do |

use std::io::IsTerminal;
use std::thread;

use bus_client::Bus;

use crate::{
    cli,
    exit::{Exit, Failure},
    output::Output,
    signals::Notice,
};
use picture::Picture;
use sample::Sample;

mod picture;
mod sample;
mod screen;

/// Shows until somebody has seen enough.
pub(crate) fn run(
    options: &cli::Top,
    bus: &Bus,
    notice: &Notice,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if options.once {
        let picture = next(options, bus, &Sample::take(bus)?)?.0;
        show(options, &picture, output)?;
        return Ok(Exit::Done);
    }
    if options.json {
        let mut before = Sample::take(bus)?;
        loop {
            let (picture, after) = next(options, bus, &before)?;
            show(options, &picture, output)?;
            before = after;
        }
    }
    if !std::io::stdout().is_terminal() {
        let text = "standard output is no terminal; --once prints a table, --json objects";
        return Err(Failure::new(Exit::Usage, text));
    }
    screen::run(options, bus, notice)
}

/// The picture of the next interval, and the sample at its end.
fn next(options: &cli::Top, bus: &Bus, before: &Sample) -> Result<(Picture, Sample), Failure> {
    thread::sleep(options.interval);
    let after = Sample::take(bus)?;
    let picture = Picture::new(before, &after, bus.endpoint_id());
    Ok((picture, after))
}

fn show(options: &cli::Top, picture: &Picture, output: &mut Output) -> Result<(), Failure> {
    if options.json {
        return output.json(picture);
    }
    output.line(&picture.headline())?;
    let table = picture.table(options.view, options.sort);
    let mut text = comfy_table::Table::new();
    text.load_style(comfy_table::presets::NOTHING)
        .set_content_arrangement(comfy_table::ContentArrangement::Disabled)
        .set_header(&table.header)
        .add_rows(table.rows.iter().take(options.rows.unwrap_or(usize::MAX)));
    for line in text.lines() {
        output.line(line.trim())?;
    }
    if picture.more {
        output.note("the bus has more than is shown");
    }
    Ok(())
}
