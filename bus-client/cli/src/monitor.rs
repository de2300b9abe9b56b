//! `unisono monitor`: everything that happens on the bus, without anybody waiting for it.

use std::time::Instant;

use bus_client::{
    Addressee, Bus, Event, Gap, Monitored, MonitoredChange, MonitoredMember, MonitoredOutcome,
    Owner, Role, ViewChange,
};
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
        /// The name under which that endpoint got it.
        #[serde(skip_serializing_if = "Option::is_none")]
        to_name: Option<&'a str>,
        /// `request`, `reply` or `refusal`.
        #[serde(skip_serializing_if = "Option::is_none")]
        kind: Option<&'static str>,
        /// The request that it answers, or as which it was first given.
        #[serde(skip_serializing_if = "Option::is_none")]
        request: Option<u64>,
        uid: u32,
        pid: u32,
        #[serde(flatten)]
        message: Box<MessageLine>,
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
    Owner {
        name: &'a str,
        sequence: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        old: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        new: Option<u64>,
        owners: u32,
        #[serde(flatten)]
        missed: Option<Missed>,
    },
    Outcome {
        request: u64,
        sequence: u64,
        why: &'a str,
        caller: u64,
        asked: u64,
        #[serde(flatten)]
        missed: Option<Missed>,
    },
    Member {
        group: &'a str,
        sequence: u64,
        change: &'a str,
        endpoint: u64,
        uid: u32,
        pid: u32,
        flags: &'a [String],
        #[serde(flatten)]
        missed: Option<Missed>,
    },
    Gap(Missed),
    Reconnected(trace::Reconnected),
    /// Something that this program does not know.
    Other,
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
            let Monitored { to, role, message, .. } = &**monitored;
            note_missed(message.missed(), output);
            let to = match to {
                Addressee::Endpoint(id) => format!("endpoint {id}"),
                Addressee::Name { name, endpoint, .. } => format!("{name} (endpoint {endpoint})"),
                to => to.group().map_or_else(|| "a group".to_owned(), ToString::to_string),
            };
            let (sequence, sender) = (message.sequence(), message.sender());
            let what = match role {
                Role::Request { .. } => "asks ".to_owned(),
                Role::Reply { request, refusal: false, .. } => format!("answers {request}: "),
                Role::Reply { request, refusal: true, .. } => format!("refuses {request}: "),
                _ => String::new(),
            };
            let operation = message.operation().map_or_else(String::new, |o| format!("{o} "));
            let shown = listen::shown(message);
            output.line(&format!("{sequence}: {sender} -> {to}: {what}{operation}{shown}"))
        }
        Event::MonitoredView(change) if json => output.json(&change_line(change)),
        Event::MonitoredView(change) => {
            note_missed(change.missed.as_ref(), output);
            let ViewChange { sequence, group, endpoint, change: what, members, .. } = &**change;
            output.line(&format!("{sequence}: {endpoint} {what} {group}, {members} members"))
        }
        Event::MonitoredChange(change) if json => output.json(&seen_line(change)),
        Event::MonitoredChange(change) => {
            let (missed, line) = seen_text(change);
            note_missed(missed, output);
            output.line(&line)
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
    let Monitored { to, role, message, .. } = monitored;
    let to_name = match to {
        Addressee::Name { name, .. } => Some(name.as_str()),
        _ => None,
    };
    let (kind, request) = match role {
        Role::Request { first, .. } => (Some("request"), *first),
        Role::Reply { request, refusal: false, .. } => (Some("reply"), Some(*request)),
        Role::Reply { request, refusal: true, .. } => (Some("refusal"), Some(*request)),
        _ => (None, None),
    };
    let (to, request) = (to.endpoint().map(|id| id.get()), request.map(|r| r.get()));
    let credentials = message.credentials();
    let (uid, pid) = (credentials.uid, credentials.pid);
    let message = Box::new(listen::message_line(message));
    Line::Message { to, to_name, kind, request, uid, pid, message }
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

fn seen_line(change: &MonitoredChange) -> Line<'_> {
    match change {
        MonitoredChange::Owner { change, missed, .. } => Line::Owner {
            name: change.name.as_str(),
            sequence: change.sequence.get(),
            old: change.old.as_ref().map(|owner| owner.endpoint.get()),
            new: change.new.as_ref().map(|owner| owner.endpoint.get()),
            owners: change.owners,
            missed: missed.as_ref().map(listen::missed),
        },
        MonitoredChange::Outcome(seen) => Line::Outcome {
            request: seen.request.get(),
            sequence: seen.sequence.get(),
            why: &seen.why,
            caller: seen.caller.get(),
            asked: seen.asked.get(),
            missed: seen.missed.as_ref().map(listen::missed),
        },
        MonitoredChange::Member(seen) => Line::Member {
            group: seen.group.as_str(),
            sequence: seen.sequence.get(),
            change: &seen.change,
            endpoint: seen.endpoint.get(),
            uid: seen.credentials.uid,
            pid: seen.credentials.pid,
            flags: &seen.flags,
            missed: seen.missed.as_ref().map(listen::missed),
        },
        _ => Line::Other,
    }
}

/// What was missed before a change, and the change in words.
fn seen_text(change: &MonitoredChange) -> (Option<&Gap>, String) {
    match change {
        MonitoredChange::Owner { change, missed, .. } => {
            let of = |owner: &Option<Owner>| {
                owner.as_ref().map_or_else(|| "nobody".to_owned(), |o| o.endpoint.to_string())
            };
            let (old, new) = (of(&change.old), of(&change.new));
            let (sequence, name, owners) = (change.sequence, &change.name, change.owners);
            let line = format!("{sequence}: {name} from {old} to {new}, {owners} owners");
            (missed.as_ref(), line)
        }
        MonitoredChange::Outcome(seen) => {
            let MonitoredOutcome { request, sequence, why, caller, asked, missed, .. } = seen;
            let line = format!("{sequence}: request {request} of {caller} to {asked}: {why}");
            (missed.as_ref(), line)
        }
        MonitoredChange::Member(seen) => {
            let MonitoredMember { group, sequence, change, endpoint, missed, .. } = seen;
            (missed.as_ref(), format!("{sequence}: {endpoint} {change} {group}"))
        }
        _ => (None, String::new()),
    }
}

fn note_missed(gap: Option<&Gap>, output: &Output) {
    if let Some(Gap { count, first, last, .. }) = gap {
        output.note(&format!("missed {count}, {first} to {last}"));
    }
}
