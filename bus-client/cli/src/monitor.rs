//! `unisono monitor`: everything that happens on the bus, without anybody waiting for it.

use std::time::Instant;

use bus_client::{Addressee, Bus, Event, Gap, Monitored, ViewChange};
use serde::Serialize;

use crate::{
    cli,
    exit::{Exit, Failure},
    idle::{Idle, Woken},
    listen,
    output::Output,
    signals::Notice,
    trace::{self, End, MessageLine, Missed},
};

/// Monitors and prints until the count is reached, a signal comes, or the broker goes.
pub(crate) fn run(
    options: &cli::Monitor,
    bus: &Bus,
    notice: &Notice,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if options.json {
        notice.ask();
    }
    let sequence = bus.monitor(options.group.as_deref())?;
    if options.json {
        output.json(&Line::Monitoring { sequence: sequence.get() })?;
    } else {
        output.note(&format!("monitoring from {sequence} on"));
    }
    let end = watch(options, bus, notice, output);
    let reason = match &end {
        Ok(why) => why,
        Err(failure) if failure.exit() == Exit::Gone => "broker-gone",
        Err(_) => return end.map(|_| Exit::Done),
    };
    if options.json {
        output.json(&Line::End(End { reason: reason.to_owned(), through: None }))?;
    }
    match end? {
        TIMEOUT => Err(Failure::new(
            Exit::NotSent,
            format_args!("nothing for {:?}", options.timeout.unwrap_or_default()),
        )),
        _ => Ok(Exit::Done),
    }
}

const TIMEOUT: &str = "timeout";

/// A line of `monitor --json`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Line<'a> {
    Monitoring {
        sequence: u64,
    },
    Message {
        /// The endpoint that it went to, if not to a group.
        #[serde(skip_serializing_if = "Option::is_none")]
        to: Option<u64>,
        uid: u32,
        pid: u32,
        #[serde(flatten)]
        message: MessageLine,
    },
    Change {
        group: &'a str,
        sequence: u64,
        change: &'a str,
        endpoint: u64,
        uid: u32,
        pid: u32,
        members: u32,
        #[serde(flatten)]
        missed: Option<Missed>,
    },
    Gap(Missed),
    Reconnected(trace::Reconnected),
    End(End),
}

fn watch(
    options: &cli::Monitor,
    bus: &Bus,
    notice: &Notice,
    output: &mut Output,
) -> Result<&'static str, Failure> {
    let idle = Idle::new(bus, notice);
    let mut printed = 0;
    let mut quiet_since = Instant::now();
    loop {
        while let Some(event) = bus.try_receive()? {
            quiet_since = Instant::now();
            print(options.json, &event, output)?;
            let counts = matches!(event, Event::Monitored(_) | Event::MonitoredView(_));
            printed += u64::from(counts);
            if options.count.is_some_and(|count| printed >= count) {
                return Ok("count");
            }
            if notice.given() {
                return Ok("signal");
            }
        }
        let left = options.timeout.map(|timeout| timeout.saturating_sub(quiet_since.elapsed()));
        match idle.wait(output, left)? {
            Woken::Bus => {}
            Woken::Signal => return Ok("signal"),
            Woken::Timeout => return Ok(TIMEOUT),
        }
    }
}

fn print(json: bool, event: &Event, output: &mut Output) -> Result<(), Failure> {
    match event {
        Event::Monitored(monitored) if json => output.json(&message_line(monitored)),
        Event::Monitored(monitored) => {
            let Monitored { to, message, .. } = &**monitored;
            note_missed(message.missed(), output);
            let to = match to {
                Addressee::Endpoint(id) => format!("endpoint {id}"),
                to => to.group().map_or_else(|| "a group".to_owned(), ToString::to_string),
            };
            let (sequence, sender) = (message.sequence(), message.sender());
            output.line(&format!("{sequence}: {sender} -> {to}: {}", listen::shown(message)))
        }
        Event::MonitoredView(change) if json => output.json(&change_line(change)),
        Event::MonitoredView(change) => {
            note_missed(change.missed.as_ref(), output);
            let ViewChange { sequence, group, endpoint, change: what, members, .. } = change;
            output.line(&format!("{sequence}: {endpoint} {what} {group}, {members} members"))
        }
        Event::MonitorGap(gap) if json => output.json(&Line::Gap(listen::missed(gap))),
        Event::MonitorGap(gap) => {
            note_missed(Some(gap), output);
            Ok(())
        }
        Event::Reconnected(back) if json => output.json(&Line::Reconnected((&**back).into())),
        Event::Reconnected(back) => {
            output.note(&format!("connected again, as endpoint {}", back.endpoint));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn message_line(monitored: &Monitored) -> Line<'_> {
    let Monitored { to, message, .. } = monitored;
    let to = match to {
        Addressee::Endpoint(id) => Some(id.get()),
        _ => None,
    };
    let credentials = message.credentials();
    let (uid, pid) = (credentials.uid, credentials.pid);
    Line::Message { to, uid, pid, message: listen::message_line(message) }
}

fn change_line(change: &ViewChange) -> Line<'_> {
    Line::Change {
        group: change.group.as_str(),
        sequence: change.sequence.get(),
        change: change.change.as_str(),
        endpoint: change.endpoint.get(),
        uid: change.credentials.uid,
        pid: change.credentials.pid,
        members: change.members,
        missed: change.missed.as_ref().map(listen::missed),
    }
}

fn note_missed(gap: Option<&Gap>, output: &Output) {
    if let Some(Gap { count, first, last, .. }) = gap {
        output.note(&format!("missed {count}, {first} to {last}"));
    }
}
