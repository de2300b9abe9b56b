//! A process that sends and receives: `peer GROUP MEMBERS COUNT TOTAL TRACE SENDS`.
//!
//! It joins the group with loopback, waits until that has so many members, and sends so many
//! messages, each of which says the highest sequence that it had taken before. It ends when it has
//! heard the total. What it heard and its receipts are written to two files, in the forms of
//! `listen --json` and `send --json`.

#![deny(unsafe_code)]

use std::env;
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Duration;

use bus_client::{Bus, Event, JoinOptions};
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [group, members, count, total, trace, sends] = &arguments[..] else {
        return Err("peer GROUP MEMBERS COUNT TOTAL TRACE SENDS".into());
    };
    let bus = Bus::connect()?;
    let options = JoinOptions::new().loopback(true).create(true);
    let member = bus.join_with(group, options)?;
    let mut trace = Trace { file: BufWriter::new(File::create(trace)?), heard: 0, seen: 0 };
    trace.line(&json!({
        "type": "joined", "group": group, "sequence": member.joined().sequence.get(),
        "endpoint": bus.endpoint_id().get(), "flags": ["loopback"],
    }))?;
    let members: usize = members.parse()?;
    while bus.members(group)?.members.len() < members {
        // The others may have begun already.
        if let Some(event) = bus.receive_deadline(Duration::from_millis(5))? {
            trace.take(&event)?;
        }
    }
    let mut sends = BufWriter::new(File::create(sends)?);
    for _ in 0..count.parse()? {
        while let Some(event) = bus.try_receive()? {
            trace.take(&event)?;
        }
        let receipt = member.send(trace.seen.to_string())?;
        let line = json!({
            "sequence": receipt.sequence.get(), "sender": bus.endpoint_id().get(),
            "sender_serial": receipt.sender_serial, "recipients": receipt.recipients,
            "after": receipt.after.get(), "group": group,
        });
        writeln!(sends, "{line}")?;
    }
    sends.flush()?;
    let total: u64 = total.parse()?;
    while trace.heard < total {
        trace.take(&bus.receive()?)?;
    }
    trace.line(&json!({ "type": "end", "reason": "count", "through": trace.seen }))?;
    trace.file.flush()?;
    Ok(())
}

struct Trace {
    file: BufWriter<File>,
    heard: u64,
    /// The highest sequence that was taken.
    seen: u64,
}

impl Trace {
    fn take(&mut self, event: &Event) -> Result<(), Box<dyn Error>> {
        let Event::Message(message) = event else {
            return Err(format!("no message, but {event:?}").into());
        };
        self.heard += 1;
        self.seen = message.sequence().get();
        let line = json!({
            "type": "message", "sequence": self.seen, "group": message.group(),
            "sender": message.sender().get(), "sender_serial": message.sender_serial(),
            "payload": message.text(),
        });
        self.line(&line)
    }

    fn line(&mut self, line: &serde_json::Value) -> Result<(), Box<dyn Error>> {
        writeln!(self.file, "{line}")?;
        Ok(())
    }
}
