//! `unisono why`: what became of a message at each of its recipients, and why sends were refused.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bus_client::inside::{Known, Look, MAX_LOOK, Refusal, Seen, Story, To, Whose};
use bus_client::{Bus, EndpointId, Sequence};

use crate::{
    cli,
    exit::{Exit, Failure},
    listing::table,
    output::Output,
};

/// Answers, or says that nothing is known any more.
pub(crate) fn run(options: &cli::Why, bus: &Bus, output: &mut Output) -> Result<Exit, Failure> {
    match options.sequence {
        Some(sequence) => message(Sequence::from_raw(sequence), options.json, bus, output),
        None => refusals(options, bus, output),
    }
}

fn message(
    sequence: Sequence,
    json: bool,
    bus: &Bus,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let story = bus.why(sequence)?;
    if json {
        output.json(&story)?;
    }
    let unknown = match story.known {
        Known::Message => None,
        Known::Off => Some("the broker has no flight recorder ([recorder] in its settings)".into()),
        Known::TooOld => {
            let oldest = story.oldest.map_or_else(|| "?".to_owned(), |oldest| oldest.to_string());
            Some(format!("{sequence} is too old: of its lock, {oldest} is the oldest that is kept"))
        }
        _ => Some(format!("{sequence} is no message's, or not yet: another event may have it")),
    };
    if let Some(text) = unknown {
        return Err(Failure::error(text));
    }
    if json {
        return Ok(Exit::Done);
    }
    output.line(&headline(&story))?;
    let rows = story.fates.iter().map(|told| {
        let at = told.at.map_or_else(String::new, |at| format!(" (at {at})"));
        let peer = told.peer.map_or_else(String::new, |peer| format!("peer {peer}: "));
        let (program, pid, uid) = shown(told.of.as_ref());
        let why = format!("{peer}{}{at}", told.by);
        [told.endpoint.to_string(), program, pid, uid, told.fate.clone(), why.trim().to_owned()]
    });
    table(["ENDPOINT", "PROGRAM", "PID", "UID", "FATE", "WHY"], rows, output)?;
    if story.incomplete {
        output.note("a part of what happened has been overwritten");
    }
    Ok(Exit::Done)
}

fn headline(story: &Story) -> String {
    let Story { sequence, bytes, recipients, .. } = story;
    let sender = story.sender.map_or_else(|| "?".to_owned(), |sender| sender.to_string());
    let (program, pid, uid) = shown(story.of.as_ref());
    let to = destination(&story.to);
    let ago = ago(story.commit_time);
    format!(
        "message {sequence} from endpoint {sender} ({program}, pid {pid}, uid {uid}) to {to}: \
         {bytes} bytes, {ago}, queued for {recipients}"
    )
}

fn refusals(options: &cli::Why, bus: &Bus, output: &mut Output) -> Result<Exit, Failure> {
    let group = options.group.as_deref().map(str::parse).transpose();
    let group = group.map_err(|error| Failure::new(Exit::Usage, error))?;
    let endpoint = options.endpoint.map(EndpointId::from_raw);
    let max = options.count.unwrap_or(20).min(MAX_LOOK);
    let refusals = match bus.look(Look::Refusals { endpoint, group, max })? {
        Seen::Refusals { refusals } => refusals,
        _ => Vec::new(),
    };
    if options.json {
        for refusal in &refusals {
            output.json(refusal)?;
        }
        return Ok(Exit::Done);
    }
    let row = |refusal: &Refusal| {
        let (program, pid, uid) = shown(Some(&refusal.of));
        let (sender, to) = (refusal.sender.to_string(), destination(&refusal.to));
        let (bytes, by) = (refusal.bytes.to_string(), refusal.by.clone());
        [ago(refusal.time), sender, program, pid, uid, to, bytes, by]
    };
    let header = ["WHEN", "SENDER", "PROGRAM", "PID", "UID", "TO", "BYTES", "WHY"];
    table(header, refusals.iter().map(row), output)
}

/// Program, process and user, as columns.
fn shown(of: Option<&Whose>) -> (String, String, String) {
    let nothing = || "-".to_owned();
    match of {
        Some(of) => {
            (of.program.clone().unwrap_or_else(nothing), of.pid.to_string(), of.uid.to_string())
        }
        None => (nothing(), nothing(), nothing()),
    }
}

/// Where a message went, in words.
pub(crate) fn destination(to: &To) -> String {
    match (&to.group, to.group_id, to.endpoint, to.name_id, to.request) {
        (Some(group), ..) => group.to_string(),
        (_, Some(id), ..) => format!("group {id}"),
        (_, _, Some(id), ..) => format!("endpoint {id}"),
        (_, _, _, Some(id), _) => format!("name {id}"),
        (.., Some(request)) => format!("the caller of {request}"),
        _ => "-".to_owned(),
    }
}

/// How long ago something was, to a millisecond.
fn ago(nanos: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ago = now.saturating_sub(Duration::from_nanos(nanos));
    let ago = Duration::from_millis(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
    format!("{ago:?} ago")
}
