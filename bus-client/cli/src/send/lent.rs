//! `unisono send --zerocopy`: one message that is lent, and what became of its bytes.
//!
//! Invariant: what is told of how the bytes travelled is what the completion says, and that comes only
//! when nobody needs what was lent any more. So when this ends, so has the loan.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use bus_client::{Bus, ContentType, Outgoing, SealedFile, Way};
use clap::ValueEnum;

use crate::exit::Failure;

/// How the bytes are to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Travel {
    /// In the stream
    Inline,
    /// In a buffer that the broker made
    Buffer,
    /// As a memory file, sealed
    File,
}

/// How a message leaves, and why so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    pub(super) way: Way,
    bytes: usize,
    why: &'static str,
}

/// What became of what was lent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Back {
    pub(super) copied: bool,
    after: Duration,
}

/// Puts the bytes where they are lent from.
pub(super) fn lend(
    bus: &Bus,
    bytes: Vec<u8>,
    travel: Option<Travel>,
) -> Result<(Outgoing, Leaving), Failure> {
    let pays = bus.calibration().is_some_and(|found| bytes.len() >= found.crossover_bytes);
    let (travel, why) = match travel {
        Some(travel) => (travel, "as was asked for"),
        None if pays => (Travel::Buffer, "because they are enough for that to pay"),
        None => (Travel::Inline, "because they are too few for anything else to pay"),
    };
    let kind = match std::str::from_utf8(&bytes) {
        Ok(_) => ContentType::Text,
        Err(_) => ContentType::Bytes,
    };
    let length = bytes.len();
    let leaving = |way, why| Leaving { way, bytes: length, why };
    let (message, leaving) = match travel {
        Travel::Inline => (Outgoing::bytes(bytes), leaving(Way::Inline, why)),
        Travel::File => {
            let file = SealedFile::written(|file| file.write_all(&bytes));
            let file = file.map_err(|error| Failure::about("a memory file", error))?;
            (Outgoing::file(file), leaving(Way::File, why))
        }
        Travel::Buffer => match bus.pool(1, length.max(1)).ok().and_then(|pool| pool.try_take()) {
            Some(mut buffer) => {
                buffer.set_len(length);
                buffer.copy_from_slice(&bytes);
                (Outgoing::lent(buffer), leaving(Way::Buffer, why))
            }
            None => {
                let why = "because the broker gave no buffer";
                (Outgoing::bytes(bytes), leaving(Way::Inline, why))
            }
        },
    };
    Ok((message.content_type(kind).zerocopy().travel(leaving.way), leaving))
}

/// Waits until nobody needs what was lent any more. None if nothing was.
pub(super) fn wait(bus: &Bus, completion: Option<u32>) -> Result<Option<Back>, Failure> {
    let Some(number) = completion else { return Ok(None) };
    let began = Instant::now();
    loop {
        if let Some(range) = bus.completions().find(|range| range.contains(number)) {
            // With the broker's loss all is completed too, and nobody says what became of it.
            bus.dispatch()?;
            return Ok(Some(Back { copied: range.copied, after: began.elapsed() }));
        }
        if !bus.wait_completions(A_WHILE) {
            // Either not yet, or never: the loss of the broker is told here.
            bus.dispatch()?;
        }
    }
}

impl Leaving {
    /// How the bytes travelled, for people.
    pub(super) fn told(&self, recipients: u32, back: Option<Back>) -> String {
        let Self { way, bytes, why } = self;
        let Some(Back { copied, after }) = back else {
            return "nothing was lent: there are no bytes".to_owned();
        };
        let to = match recipients {
            1 => "1 recipient".to_owned(),
            count => format!("{count} recipients"),
        };
        let (how, who_copied) = match (way, copied) {
            (Way::Inline, _) => {
                return format!("{bytes} bytes went to {to} in the stream, {why}");
            }
            (Way::File, false) => ("as a sealed file", "nobody copied them"),
            (Way::File, true) => ("as a sealed file", "the broker had to copy them"),
            (_, false) => ("in a buffer", "nobody copied them"),
            (_, true) => ("in a buffer", "the broker copied them once for all"),
        };
        let after = after.as_secs_f64() * 1e3;
        format!(
            "{bytes} bytes went to {to} {how}, {why}; {who_copied}, and it was free again {after:.1} ms \
             after the receipt"
        )
    }
}

const A_WHILE: Duration = Duration::from_secs(1);
