//! `unisono watch`: who is in a group, and every change of that.
//!
//! Invariant: the watch begins before the list is fetched, and a change that is not later than the
//! list is not printed. So the list and the changes after it are the membership at every place in
//! the order, with nothing missing and nothing twice.

use std::time::Instant;

use bus_client::{
    Bus, Event, Gap, MemberInfo, Members, QueryError, Sequence, ViewChange, WatchOptions,
};
use serde::Serialize;

use crate::{
    cli,
    exit::{Exit, Failure},
    idle::{Idle, Woken},
    output::Output,
    signals::Notice,
    trace::{self, End, GapLine, Missed},
};

/// Watches and prints until the count is reached, a signal comes, or the group or the broker goes.
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
    let mut watcher = Watcher { options, bus, output, at: Sequence::from_raw(0), printed: 0 };
    watcher.begin()?;
    let end = watcher.watch(&Idle::new(bus, notice));
    match &end {
        Ok(why) => watcher.end(why)?,
        Err(failure) if failure.exit() == Exit::Gone => watcher.end("broker-gone")?,
        Err(_) => {}
    }
    match end? {
        TIMEOUT => Err(Failure::new(
            Exit::NotSent,
            format_args!("no change for {:?}", options.timeout.unwrap_or_default()),
        )),
        _ => Ok(Exit::Done),
    }
}

const TIMEOUT: &str = "timeout";

#[derive(Debug)]
struct Watcher<'a> {
    options: &'a cli::Watch,
    bus: &'a Bus,
    output: &'a mut Output,
    /// What is not later than this has been printed, as a part of the list.
    at: Sequence,
    printed: u64,
}

/// A line of `watch --json`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Line<'a> {
    Watching {
        group: &'a str,
        sequence: Sequence,
        members: u32,
    },
    View {
        group: &'a str,
        #[serde(flatten)]
        view: &'a Members,
    },
    Change {
        group: &'a str,
        sequence: Sequence,
        change: &'a str,
        endpoint: u64,
        uid: u32,
        pid: u32,
        members: u32,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        ended: bool,
        #[serde(flatten)]
        missed: Option<Missed>,
    },
    ViewsLost(GapLine),
    Reconnected(trace::Reconnected),
    End(End),
}

impl Watcher<'_> {
    fn begin(&mut self) -> Result<(), Failure> {
        let options = &self.options;
        let how = WatchOptions::new().edges(options.edges).create(!options.no_create);
        let watch = self.bus.watch_members_with(&options.group, how)?;
        if options.edges {
            let (sequence, members) = (watch.sequence(), watch.members());
            if options.json {
                let group = options.group.as_str();
                return self.output.json(&Line::Watching { group, sequence, members });
            }
            return self.output.line(&format!("{}: {members} members", options.group));
        }
        self.print_view()
    }

    /// Lists who is there now, and passes over changes that the list has already.
    fn print_view(&mut self) -> Result<(), Failure> {
        let group = self.options.group.as_str();
        let view = match self.bus.members(group) {
            Ok(view) => view,
            // Its end is told by the watch.
            Err(QueryError::NoSuchGroup(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        self.at = view.sequence;
        if self.options.json {
            return self.output.json(&Line::View { group, view: &view });
        }
        self.output.line(&format!(
            "{group}: {} members at {}",
            view.members.len(),
            view.sequence
        ))?;
        for MemberInfo { endpoint, uid, pid, flags, .. } in &view.members {
            let flags = flags.join(",");
            let line = format!("  endpoint {endpoint}, user {uid}, process {pid} {flags}");
            self.output.line(line.trim_end())?;
        }
        Ok(())
    }

    fn watch(&mut self, idle: &Idle<'_>) -> Result<&'static str, Failure> {
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
            Event::View(change) => {
                if change.sequence > self.at {
                    self.print_change(change)?;
                    self.printed += 1;
                }
                if change.ended {
                    return Ok(Some("group-ended"));
                }
                let done = self.options.count.is_some_and(|count| self.printed >= count);
                Ok(done.then_some("count"))
            }
            Event::Reconnected(back) => {
                if self.options.json {
                    self.output.json(&Line::Reconnected((&**back).into()))?;
                } else {
                    self.output.note(&format!("connected again, as endpoint {}", back.endpoint));
                }
                self.at = Sequence::from_raw(0);
                // A broker that is gone again will be followed by another one.
                if self.options.edges || !self.bus.is_connected() {
                    return Ok(None);
                }
                self.print_view()?;
                Ok(None)
            }
            Event::ViewsLost(gap) => {
                self.print_lost(gap)?;
                if !self.options.edges {
                    self.print_view()?;
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    fn print_change(&mut self, change: &ViewChange) -> Result<(), Failure> {
        if self.options.json {
            return self.output.json(&Line::Change {
                group: change.group.as_str(),
                sequence: change.sequence,
                change: change.change.as_str(),
                endpoint: change.endpoint.get(),
                uid: change.credentials.uid,
                pid: change.credentials.pid,
                members: change.members,
                ended: change.ended,
                missed: change.missed.as_ref().map(missed),
            });
        }
        if let Some(gap) = &change.missed {
            self.print_lost(gap)?;
        }
        let ViewChange { sequence, change: what, endpoint, credentials, members, .. } = change;
        let ended = if change.ended { "; the group has ended" } else { "" };
        self.output.line(&format!(
            "{sequence}: endpoint {endpoint} (user {}, process {}) {what}, {members} members{ended}",
            credentials.uid, credentials.pid,
        ))
    }

    fn print_lost(&mut self, gap: &Gap) -> Result<(), Failure> {
        if self.options.json {
            let group = self.options.group.clone();
            return self.output.json(&Line::ViewsLost(GapLine { group, missed: missed(gap) }));
        }
        let Gap { count, first, last, .. } = gap;
        self.output.note(&format!("missed {count} changes, {first} to {last}"));
        Ok(())
    }

    fn end(&mut self, reason: &str) -> Result<(), Failure> {
        if !self.options.json {
            return Ok(());
        }
        self.output.json(&Line::End(End { reason: reason.to_owned(), through: None }))
    }
}

fn missed(gap: &Gap) -> Missed {
    Missed { missed: gap.count, first: gap.first.get(), last: gap.last.get() }
}
