//! `unisono listen`: join groups, and print what arrives.
//!
//! Invariant: a line is printed before the next event is taken, so what was taken and what was
//! printed differ by at most one message, whenever the process is stopped.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use bus_client::{
    Bus, ContentType, Event, Fate, Gap, GroupId, GroupName, JoinOptions, LeaveError, Member,
    Message, Outgoing, Possession, Reconnected, Restored, SendError, Sequence,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::{
    cli,
    exit::{Exit, Failure},
    filter,
    output::Output,
    payload,
    signals::Notice,
    trace::{
        Content, End, Ended, Flags, GapLine, Joined, MessageLine, Missed, State, TraceLine,
        incarnation,
    },
};

/// Joins and prints until the count is reached, a signal comes, or the broker goes.
pub(crate) fn run(
    options: &cli::Listen,
    bus: &Bus,
    notice: &Notice,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let mut listener = Listener {
        options,
        bus,
        descriptor: bus.as_fd(),
        output,
        members: Vec::new(),
        printed: 0,
        through: None,
    };
    if options.json {
        // A trace tells its end, from its first line on; text has nothing to say there.
        notice.ask();
    }
    listener.join()?;
    let end = listener.listen(notice);
    match &end {
        Ok(Why::Count) => listener.end("count")?,
        Ok(Why::Timeout) => listener.end("timeout")?,
        Ok(Why::Evicted) => listener.end("evicted")?,
        Ok(Why::Signal) => listener.leave()?,
        Err(failure) if failure.exit() == Exit::Gone => listener.end("broker-gone")?,
        Err(_) => {}
    }
    match end? {
        Why::Count | Why::Signal => Ok(Exit::Done),
        Why::Timeout => Err(Failure::new(
            Exit::NotSent,
            format_args!("no message for {:?}", options.timeout.unwrap_or_default()),
        )),
        Why::Evicted => Err(Failure::new(Exit::Gone, "evicted: no group is left to listen to")),
    }
}

/// Why listening ended, where nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Count,
    Signal,
    Timeout,
    /// From the last group.
    Evicted,
}

#[derive(Debug)]
struct Listener<'a> {
    options: &'a cli::Listen,
    bus: &'a Bus,
    descriptor: BorrowedFd<'a>,
    output: &'a mut Output,
    members: Vec<Member>,
    printed: u64,
    /// The highest sequence up to which everything was printed.
    through: Option<u64>,
}

impl Listener<'_> {
    fn join(&mut self) -> Result<(), Failure> {
        let mut options = JoinOptions::new()
            .loopback(self.options.loopback)
            .drop_when_full(self.options.drop_when_full)
            .leave_when_full(self.options.leave_when_full)
            .create(!self.options.no_create)
            .with_state(self.options.with_state);
        if let Some(filter) = filter::load(&self.options.filter)? {
            options = options.filter(filter);
        }
        if let Some(retain) = self.options.retain {
            options = options.retain(retain);
        }
        for group in &self.options.groups {
            let member = self.bus.join_with(group, options.clone())?;
            let joined = member.joined();
            if self.options.json {
                let line = TraceLine::Joined(Joined {
                    group: group.clone(),
                    sequence: joined.sequence.get(),
                    endpoint: Some(self.bus.endpoint_id().get()),
                    flags: self.flags(&member),
                    members: Some(joined.members.into()),
                    created: joined.created,
                    filter: filter::text(&self.options.filter),
                    incarnation: Some(incarnation(self.bus.incarnation())),
                });
                self.output.json(&line)?;
            } else {
                let (sequence, members) = (joined.sequence, joined.members);
                self.output.note(&format!("joined {group} at {sequence}, {members} members"));
            }
            self.members.push(member);
        }
        Ok(())
    }

    /// How we are a member; in a gated group its owner has decided that.
    fn flags(&self, member: &Member) -> Vec<String> {
        if let Some(admission) = &member.joined().admission {
            return admission.terms.names().into_iter().map(str::to_owned).collect();
        }
        let flags = [
            (self.options.loopback, "loopback"),
            (self.options.drop_when_full, "drop-when-full"),
            (self.options.leave_when_full, "leave-when-full"),
        ];
        flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned()).collect()
    }

    fn listen(&mut self, notice: &Notice) -> Result<Why, Failure> {
        let mut quiet_since = Instant::now();
        loop {
            while let Some(event) = self.bus.try_receive()? {
                quiet_since = Instant::now();
                if self.print(&event)? {
                    return Ok(Why::Count);
                }
                if self.members.is_empty() {
                    return Ok(Why::Evicted);
                }
                if notice.given() {
                    return Ok(Why::Signal);
                }
            }
            let left =
                self.options.timeout.map(|timeout| timeout.saturating_sub(quiet_since.elapsed()));
            if let Some(why) = self.wait(notice, left)? {
                return Ok(why);
            }
            // The loss of the broker is told by the next receive, after all that had arrived.
            let _ = self.bus.dispatch();
        }
    }

    /// Waits for anything to happen on the bus; tells if something else ends the listening.
    fn wait(&self, notice: &Notice, left: Option<Duration>) -> Result<Option<Why>, Failure> {
        let left = left.map(Timespec::try_from).transpose().map_err(Failure::error)?;
        let mut fds = [
            PollFd::from_borrowed_fd(self.descriptor, PollFlags::IN),
            PollFd::from_borrowed_fd(notice.as_fd(), PollFlags::IN),
            // No events are asked for: what is told anyway is that nobody reads any more.
            PollFd::from_borrowed_fd(self.output.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return Ok(Some(Why::Timeout)),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Failure::error(std::io::Error::from(error))),
        }
        if !fds[1].revents().is_empty() {
            return Ok(Some(Why::Signal));
        }
        if fds[2].revents().contains(PollFlags::ERR) {
            return Err(Failure::ClosedPipe);
        }
        Ok(None)
    }

    /// Prints an event; tells whether it was the last one that was asked for.
    fn print(&mut self, event: &Event) -> Result<bool, Failure> {
        match event {
            Event::Message(message) if message.retained() => {
                let group = message.group().unwrap_or_default();
                if self.options.json {
                    self.output.json(&TraceLine::Retained(message_line(message)))?;
                } else {
                    self.print_text(group, message)?;
                }
            }
            Event::Current(current) => {
                let group = group_name(current.group.as_ref(), current.group_id);
                if self.options.json {
                    self.output.json(&TraceLine::State(State {
                        group,
                        sequence: current.sequence.get(),
                        messages: current.messages.into(),
                    }))?;
                } else {
                    let (messages, at) = (current.messages, current.sequence);
                    self.output.note(&format!("{group} retained {messages} messages at {at}"));
                }
            }
            Event::Message(message) => {
                // Whatever was sent to this endpoint alone is no message of a group.
                let Some(group) = message.group() else {
                    return Ok(false);
                };
                if self.options.json {
                    self.output.json(&TraceLine::Message(message_line(message)))?;
                } else {
                    self.print_text(group, message)?;
                }
                self.through = self.through.max(Some(message.sequence().get()));
                self.printed += 1;
                return Ok(self.options.count.is_some_and(|count| self.printed >= count));
            }
            Event::Gap(gap) => {
                if self.options.json {
                    self.output.json(&TraceLine::Gap(GapLine {
                        group: group_name(gap.group.as_ref(), gap.group_id),
                        missed: missed(gap),
                    }))?;
                } else {
                    self.note_gap(gap);
                }
                self.through = self.through.max(Some(gap.last.get()));
            }
            Event::Evicted(evicted) => {
                let group = group_name(evicted.group.as_ref(), evicted.group_id);
                let reason = match evicted.left_when_full {
                    true => "left: its queue was full".to_owned(),
                    false => format!("stalled for {:?}", evicted.stalled),
                };
                self.print_evicted(group, evicted.sequence, reason)?;
            }
            Event::FlagsChanged(changed) => {
                let group = group_name(changed.group.as_ref(), changed.group_id);
                let flags: Vec<_> = changed.terms.names().iter().map(ToString::to_string).collect();
                let sequence = changed.sequence.get();
                if self.options.json {
                    self.output.json(&TraceLine::Flags(Flags { group, sequence, flags }))?;
                } else {
                    let flags = flags.join(",");
                    self.output.note(&format!("flags in {group} from {sequence} on: {flags}"));
                }
            }
            Event::Expelled(expelled) => {
                let group = group_name(expelled.group.as_ref(), expelled.group_id);
                let reason = format!("expelled: {}", expelled.reason);
                self.print_evicted(group, expelled.sequence, reason)?;
            }
            Event::Reconnected(back) => self.print_return(back)?,
            Event::Restored(restored) => self.print_restored(restored)?,
            _ => {}
        }
        Ok(false)
    }

    /// Another broker has taken the place of the one before.
    fn print_return(&mut self, back: &Reconnected) -> Result<(), Failure> {
        self.through = None;
        if self.options.json {
            self.output.json(&TraceLine::Reconnected(back.into()))?;
        } else {
            let last = back.last.map_or_else(|| "nothing".to_owned(), |last| last.to_string());
            self.output
                .note(&format!("connected again, as endpoint {}; had {last}", back.endpoint));
        }
        back.restored.iter().try_for_each(|restored| self.print_restored(restored))
    }

    fn print_restored(&mut self, restored: &Restored) -> Result<(), Failure> {
        let Possession::Member(group) = &restored.what else {
            return Ok(());
        };
        match &restored.fate {
            Fate::At(sequence) if self.options.json => {
                let member = self.members.iter().find(|member| member.name() == group);
                self.output.json(&TraceLine::Joined(Joined {
                    group: group.to_string(),
                    sequence: sequence.get(),
                    endpoint: Some(self.bus.endpoint_id().get()),
                    flags: member.map(|member| self.flags(member)).unwrap_or_default(),
                    members: None,
                    created: false,
                    filter: filter::text(&self.options.filter),
                    incarnation: Some(incarnation(self.bus.incarnation())),
                }))
            }
            Fate::At(sequence) => {
                self.output.note(&format!("joined {group} again at {sequence}"));
                Ok(())
            }
            Fate::Lost { code, text } => {
                self.members.retain(|member| member.name() != group);
                if self.options.json {
                    let (group, reason) = (group.to_string(), Some(code.clone()));
                    return self.output.json(&TraceLine::Lost(Ended {
                        group,
                        sequence: None,
                        reason,
                    }));
                }
                self.output.note(&format!("cannot join {group} again: {text} ({code})"));
                Ok(())
            }
            _ => {
                self.output.note(&format!("waits to join {group} again"));
                Ok(())
            }
        }
    }

    fn print_evicted(
        &mut self,
        group: String,
        sequence: Sequence,
        reason: String,
    ) -> Result<(), Failure> {
        self.members.retain(|member| member.name().as_str() != group);
        if self.options.json {
            self.output.json(&TraceLine::Evicted(Ended {
                group,
                sequence: Some(sequence.get()),
                reason: Some(reason),
            }))?;
        } else {
            self.output.note(&format!("evicted from {group}: {reason}"));
        }
        self.through = self.through.max(Some(sequence.get()));
        Ok(())
    }

    fn print_text(&mut self, group: &str, message: &Message) -> Result<(), Failure> {
        if let Some(gap) = message.missed() {
            self.note_gap(gap);
        }
        let shown = shown(message);
        if self.options.groups.len() > 1 {
            self.output.line(&format!("{group}: {shown}"))
        } else {
            self.output.line(&shown)
        }
    }

    fn note_gap(&self, gap: &Gap) {
        let Gap { count, first, last, .. } = gap;
        let group = group_name(gap.group.as_ref(), gap.group_id);
        self.output.note(&format!("missed {count} messages of {group}, {first} to {last}"));
    }

    /// Leaves the groups and finishes the trace, so that it is complete up to the leave.
    ///
    /// Receipts may overtake messages, so the leave's does not tell that all was received. A
    /// message to ourselves, sent after it, does: it stands behind everything else in our queue.
    fn leave(&mut self) -> Result<(), Failure> {
        if !self.bus.is_connected() {
            return self.end("signal");
        }
        let mut left = Vec::new();
        for member in std::mem::take(&mut self.members) {
            match member.leave() {
                Ok(sequence) => left.push((member.name().as_str().to_owned(), sequence.get())),
                // Its notice is on its way to us.
                Err(LeaveError::NotAMember(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.drain_to_fence()? {
            return self.end("count");
        }
        for (group, sequence) in left {
            self.through = self.through.max(Some(sequence));
            self.output.json(&TraceLine::Left(Ended {
                group,
                sequence: Some(sequence),
                reason: None,
            }))?;
        }
        self.end("signal")
    }

    /// Prints what arrives until a message that we send to ourselves; tells whether the count was
    /// reached meanwhile.
    fn drain_to_fence(&mut self) -> Result<bool, Failure> {
        let me = self.bus.endpoint(self.bus.endpoint_id());
        let mut fence = None;
        loop {
            while let Some(event) = self.bus.try_receive()? {
                if is_from(&event, self.bus) {
                    return Ok(false);
                }
                if self.print(&event)? {
                    return Ok(true);
                }
            }
            match &mut fence {
                None => fence = Some(me.start_send(Outgoing::bytes([]))?),
                Some(pending) => match pending.try_wait() {
                    // What we just took has made room.
                    Some(Err(SendError::OwnQueueFull)) => fence = None,
                    Some(Err(error)) => return Err(error.into()),
                    Some(Ok(_)) | None => {
                        let _ = self.bus.dispatch_timeout(FENCE_WAIT);
                    }
                },
            }
        }
    }

    fn end(&mut self, reason: &str) -> Result<(), Failure> {
        if !self.options.json {
            return Ok(());
        }
        self.output.json(&TraceLine::End(End { reason: reason.to_owned(), through: self.through }))
    }
}

fn is_from(event: &Event, bus: &Bus) -> bool {
    matches!(event, Event::Message(m) if m.group().is_none() && m.sender() == bus.endpoint_id())
}

pub(crate) fn message_line(message: &Message) -> MessageLine {
    MessageLine {
        sequence: message.sequence().get(),
        group: message.group().map(str::to_owned),
        sender: message.sender().get(),
        sender_serial: message.sender_serial(),
        content: content(message),
        missed: message.missed().map(missed),
    }
}

fn content(message: &Message) -> Content {
    let mut content =
        Content { operation: message.operation().map(str::to_owned), ..Content::default() };
    for (name, value) in message.fields() {
        content.fields.insert(name.to_owned(), value.to_owned());
    }
    match message.key().map(|key| (key, std::str::from_utf8(key))) {
        None => {}
        Some((_, Ok(key))) => content.key = Some(key.to_owned()),
        Some((key, Err(_))) => content.key_base64 = Some(payload::base64(key)),
    }
    content.content_type = type_name(message.content_type()).map(str::to_owned);
    content.payload = typed(message)
        .or_else(|| std::str::from_utf8(message.payload()).ok().map(serde_json::Value::from));
    if content.payload.is_none() {
        content.payload_base64 = Some(payload::base64(message.payload()));
    }
    content
}

/// Text is what a payload is unless its line says otherwise.
fn type_name(content_type: ContentType) -> Option<&'static str> {
    match content_type {
        ContentType::Cbor => Some("cbor"),
        ContentType::Json => Some("json"),
        _ => None,
    }
}

/// A typed payload's value, if it is what its type says.
fn typed(message: &Message) -> Option<serde_json::Value> {
    match message.content_type() {
        ContentType::Cbor => payload::from_cbor(message.payload()),
        ContentType::Json => payload::from_json(message.payload()),
        _ => None,
    }
}

pub(crate) fn shown(message: &Message) -> std::borrow::Cow<'_, str> {
    match typed(message) {
        Some(value) => value.to_string().into(),
        None => payload::line(message.payload()),
    }
}

/// The name, or what there is to tell where the library does not know it any more.
fn group_name(name: Option<&GroupName>, id: GroupId) -> String {
    match name {
        Some(name) => name.as_str().to_owned(),
        None => format!("group {id}"),
    }
}

pub(crate) fn missed(gap: &Gap) -> Missed {
    Missed { missed: gap.count, first: gap.first.get(), last: gap.last.get() }
}

/// How long to wait for the next bytes before looking again; nothing depends on it.
const FENCE_WAIT: Duration = Duration::from_millis(100);
