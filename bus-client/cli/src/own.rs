//! `unisono own`: own a name, or wait for it, and print what is sent to it.

use std::time::Instant;

use bus_client::{Bus, Event, Fate, NameOptions, OwnedName};
use serde::Serialize;

use crate::{
    cli, description,
    exit::{Exit, Failure},
    idle::{Idle, Woken},
    listen,
    output::Output,
    signals::Notice,
    trace::{self, End, MessageLine},
};

/// Owns the name and prints until the count is reached, a signal comes, or the broker goes.
pub(crate) fn run(
    options: &cli::Own,
    bus: &Bus,
    notice: &Notice,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let mut how = NameOptions::new()
        .wait(options.wait)
        .shared(options.shared)
        .allow_replacement(options.allow_replacement)
        .replace(options.replace);
    if let Some(path) = &options.describe {
        how = how.describe(description::read(path, &options.name)?);
    }
    if options.json {
        // A trace tells its end, from its first line on; text has nothing to say there.
        notice.ask();
    }
    let name = bus.own_name_with(&options.name, how)?;
    let mut owner = Owner { options, bus, output, printed: 0 };
    owner.begin(&name)?;
    let end = owner.print_all(&Idle::new(bus, notice));
    match &end {
        Ok(why) => owner.end(why)?,
        Err(failure) if failure.exit() == Exit::Gone => owner.end("broker-gone")?,
        Err(_) => {}
    }
    match end? {
        TIMEOUT => Err(Failure::new(
            Exit::NotSent,
            format_args!("no message for {:?}", options.timeout.unwrap_or_default()),
        )),
        LOST => Err(Failure::new(Exit::Gone, format_args!("{} is another's now", options.name))),
        _ => Ok(Exit::Done),
    }
}

const TIMEOUT: &str = "timeout";
const LOST: &str = "lost";

#[derive(Debug)]
struct Owner<'a> {
    options: &'a cli::Own,
    bus: &'a Bus,
    output: &'a mut Output,
    printed: u64,
}

/// A line of `own --json`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Line<'a> {
    Claimed {
        name: &'a str,
        sequence: u64,
        endpoint: u64,
        /// How many are before it.
        position: u32,
    },
    Acquired {
        name: &'a str,
        sequence: u64,
    },
    Lost {
        name: &'a str,
        sequence: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<u64>,
        waits: bool,
    },
    Message {
        name: &'a str,
        #[serde(flatten)]
        message: Box<MessageLine>,
    },
    Reconnected(trace::Reconnected),
    End(End),
}

impl Owner<'_> {
    fn begin(&mut self, name: &OwnedName) -> Result<(), Failure> {
        let (text, position) = (name.name().as_str(), name.position());
        if self.options.json {
            return self.output.json(&Line::Claimed {
                name: text,
                sequence: name.sequence().get(),
                endpoint: self.bus.endpoint_id().get(),
                position,
            });
        }
        if position == 0 {
            self.output.note(&format!("owns {text}"));
        } else {
            self.output.note(&format!("waits for {text}, behind {position}"));
        }
        Ok(())
    }

    fn print_all(&mut self, idle: &Idle<'_>) -> Result<&'static str, Failure> {
        let mut quiet_since = Instant::now();
        loop {
            while let Some(event) = self.bus.try_receive()? {
                quiet_since = Instant::now();
                if let Some(why) = self.print(&event)? {
                    return Ok(why);
                }
            }
            let left = self.options.timeout.map(|t| t.saturating_sub(quiet_since.elapsed()));
            match idle.wait(self.output, left)? {
                Woken::Bus => {}
                Woken::Signal => return Ok("signal"),
                Woken::Timeout => return Ok(TIMEOUT),
            }
        }
    }

    /// Prints an event; tells why it was the last one, if it was.
    fn print(&mut self, event: &Event) -> Result<Option<&'static str>, Failure> {
        match event {
            Event::Message(message) => {
                let Some(name) = message.name() else {
                    return Ok(None);
                };
                if self.options.json {
                    let message = Box::new(listen::message_line(message));
                    self.output.json(&Line::Message { name, message })?;
                } else {
                    self.output.line(&listen::shown(message))?;
                }
                self.printed += 1;
                let done = self.options.count.is_some_and(|count| self.printed >= count);
                Ok(done.then_some("count"))
            }
            Event::NameAcquired(acquired) => {
                let (name, sequence) = (acquired.name.as_str(), acquired.sequence.get());
                if self.options.json {
                    self.output.json(&Line::Acquired { name, sequence })?;
                } else {
                    self.output.note(&format!("owns {name}"));
                }
                Ok(None)
            }
            Event::NameLost(lost) => {
                let (name, sequence) = (lost.name.as_str(), lost.sequence.get());
                let (by, waits) = (lost.by.map(|by| by.get()), lost.waits);
                if self.options.json {
                    self.output.json(&Line::Lost { name, sequence, by, waits })?;
                } else {
                    let by = by.map_or_else(String::new, |by| format!(" to endpoint {by}"));
                    self.output.note(&format!("lost {name}{by}"));
                }
                Ok((!waits).then_some(LOST))
            }
            Event::Reconnected(back) => {
                if self.options.json {
                    self.output.json(&Line::Reconnected((&**back).into()))?;
                } else {
                    self.output.note(&format!("connected again, as endpoint {}", back.endpoint));
                }
                let lost = back.restored.iter().any(|r| matches!(r.fate, Fate::Lost { .. }));
                Ok(lost.then_some(LOST))
            }
            Event::Restored(restored) => {
                Ok(matches!(restored.fate, Fate::Lost { .. }).then_some(LOST))
            }
            _ => Ok(None),
        }
    }

    fn end(&mut self, reason: &str) -> Result<(), Failure> {
        if !self.options.json {
            return Ok(());
        }
        self.output.json(&Line::End(End { reason: reason.to_owned(), through: None }))
    }
}
