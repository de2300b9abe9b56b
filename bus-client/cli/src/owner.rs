//! `unisono create --gated` and `unisono admit`: the owner of a gated group.
//!
//! Invariant: each decision is answered by a line before the next one is read, so that whoever writes
//! decisions into a pipe can tell which came true.

use std::{
    fmt,
    io::{self, IsTerminal},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use bus_client::{
    Bus, Candidate, EndpointId, Event, Gate, GroupOptions, Message, PeerGap, PeerNotice, Sequence,
    Terms,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use serde::Serialize;

use crate::{
    cli,
    exit::{Exit, Failure},
    filter,
    listen::{message_line, missed, shown},
    output::Output,
    signals::Notice,
    trace::{End, GapLine, MessageLine},
};

/// Creates a gated group, and reads decisions until a signal comes or the broker goes.
pub(crate) fn create(
    options: &cli::Create,
    bus: &Bus,
    notice: &Notice,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if options.json {
        notice.ask();
    }
    let gate = gate(bus, &options.group, options.backlog, options.stall)?;
    Owner::new(bus, gate, None, None, options.json, output).run(&options.group, notice)
}

/// Owns a gated group and admits who asks for it.
pub(crate) fn admit(
    options: &cli::Admit,
    bus: &Bus,
    notice: &Notice,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if options.json {
        notice.ask();
    }
    let gate = gate(bus, &options.group, options.backlog, None)?;
    let rule = Rule {
        users: options.uid.clone(),
        refusal: options.refusal.clone(),
        terms: Terms::new()
            .loopback(options.loopback)
            .send_to_peer(options.send_to_peer)
            .drop_when_full(options.drop_when_full)
            .leave_when_full(options.leave_when_full)
            .drop_at_peer(options.drop_at_peer)
            .filter(filter::load(&options.filter)?),
    };
    let owner = Owner::new(bus, gate, Some(rule), options.count, options.json, output);
    owner.run(&options.group, notice)
}

fn gate(
    bus: &Bus,
    group: &str,
    backlog: Option<u16>,
    stall: Option<Duration>,
) -> Result<Gate, Failure> {
    let mut options = GroupOptions::new();
    if let Some(backlog) = backlog {
        options = options.backlog(backlog);
    }
    if let Some(stall) = stall {
        options = options.stall(stall);
    }
    Ok(bus.create_gated_with(group, options)?)
}

/// Who is admitted without being asked about, and how.
#[derive(Debug)]
struct Rule {
    /// Everybody if empty.
    users: Vec<u32>,
    refusal: String,
    terms: Terms,
}

#[derive(Debug)]
struct Owner<'a> {
    bus: &'a Bus,
    gate: Gate,
    rule: Option<Rule>,
    /// How many are to be admitted.
    count: Option<u64>,
    admitted: u64,
    json: bool,
    output: &'a mut Output,
    /// None at its end, or where nobody writes decisions.
    input: Option<io::Stdin>,
    unread: Vec<u8>,
}

/// A line of `create --json` and `admit --json`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Line<'a> {
    Created {
        group: &'a str,
        endpoint: EndpointId,
    },
    Candidate {
        group: &'a str,
        sequence: Sequence,
        endpoint: EndpointId,
        uid: u32,
        pid: u32,
        peer: EndpointId,
        flags: Vec<&'static str>,
    },
    Admitted {
        endpoint: EndpointId,
        sequence: Sequence,
        flags: Vec<&'static str>,
    },
    Refused {
        endpoint: EndpointId,
        reason: &'a str,
    },
    Expelled {
        endpoint: EndpointId,
        sequence: Sequence,
        reason: &'a str,
    },
    Terms {
        endpoint: EndpointId,
        sequence: Sequence,
        flags: Vec<&'static str>,
    },
    Closed {
        peer: EndpointId,
        sequence: Sequence,
    },
    Told {
        endpoint: EndpointId,
        sequence: Sequence,
    },
    Error {
        decision: &'a str,
        error: String,
    },
    Message {
        #[serde(flatten)]
        message: MessageLine,
        #[serde(skip_serializing_if = "Option::is_none")]
        peer: Option<EndpointId>,
    },
    PeerGap {
        peer: EndpointId,
        #[serde(flatten)]
        gap: GapLine,
    },
    PeerStalled {
        peer: EndpointId,
        sequence: Sequence,
    },
    PeerClosed {
        peer: EndpointId,
        sequence: Sequence,
    },
    End(End),
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created { group, endpoint } => {
                write!(f, "{group} is owned by endpoint {endpoint}")
            }
            Self::Candidate { endpoint, uid, pid, flags, .. } => {
                let flags = flags.join(" ");
                write!(f, "candidate {endpoint} (user {uid}, process {pid}) {flags}")
            }
            Self::Admitted { endpoint, sequence, .. } => {
                write!(f, "{sequence}: admitted {endpoint}")
            }
            Self::Refused { endpoint, reason } => write!(f, "refused {endpoint}: {reason}"),
            Self::Expelled { endpoint, sequence, reason } => {
                write!(f, "{sequence}: expelled {endpoint}: {reason}")
            }
            Self::Terms { endpoint, sequence, flags } => {
                write!(f, "{sequence}: terms of {endpoint}: {}", flags.join(" "))
            }
            Self::Closed { peer, sequence } => write!(f, "{sequence}: closed peer {peer}"),
            Self::Told { endpoint, sequence } => write!(f, "{sequence}: told {endpoint}"),
            Self::Error { decision, error } => write!(f, "{decision}: {error}"),
            Self::PeerGap { peer, gap } => {
                write!(f, "peer {peer}: missed {} messages", gap.missed.missed)
            }
            Self::PeerStalled { peer, .. } => write!(f, "peer {peer}: stalled"),
            Self::PeerClosed { peer, .. } => write!(f, "peer {peer}: closed"),
            Self::Message { .. } | Self::End(_) => Ok(()),
        }
    }
}

impl<'a> Owner<'a> {
    fn new(
        bus: &'a Bus,
        gate: Gate,
        rule: Option<Rule>,
        count: Option<u64>,
        json: bool,
        output: &'a mut Output,
    ) -> Self {
        let (admitted, unread, input) = (0, Vec::new(), Some(io::stdin()));
        Self { bus, gate, rule, count, admitted, json, output, input, unread }
    }

    fn run(mut self, group: &str, notice: &Notice) -> Result<Exit, Failure> {
        let endpoint = self.bus.endpoint_id();
        self.print(&Line::Created { group, endpoint })?;
        let end = self.serve(notice);
        let reason = match &end {
            Ok(reason) => *reason,
            Err(failure) if failure.exit() == Exit::Gone => "broker-gone",
            Err(_) => return end.map(|_| Exit::Done),
        };
        if self.json {
            let end = End { reason: reason.to_owned(), through: None };
            self.output.json(&Line::End(end))?;
        }
        end.map(|_| Exit::Done)
    }

    fn serve(&mut self, notice: &Notice) -> Result<&'static str, Failure> {
        let bus = self.bus;
        let descriptor = bus.as_fd();
        loop {
            while let Some(event) = bus.try_receive()? {
                self.take(&event)?;
                if self.count.is_some_and(|count| self.admitted >= count) {
                    return Ok("count");
                }
            }
            let Some(ready) = self.wait(descriptor, notice)? else {
                return Ok("signal");
            };
            if ready.input {
                self.read()?;
            }
            // The loss of the broker is told by the next receive, after all that had arrived.
            let _ = bus.dispatch();
        }
    }

    /// Waits for the bus or the input; none at a signal.
    fn wait(&self, bus: BorrowedFd<'_>, notice: &Notice) -> Result<Option<Ready>, Failure> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(bus, PollFlags::IN),
            PollFd::from_borrowed_fd(notice.as_fd(), PollFlags::IN),
            // No events are asked for: what is told anyway is that nobody reads any more.
            PollFd::from_borrowed_fd(self.output.as_fd(), PollFlags::empty()),
        ];
        if let Some(input) = &self.input {
            fds.push(PollFd::from_borrowed_fd(input.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Failure::error(io::Error::from(error))),
        }
        if !fds[1].revents().is_empty() {
            return Ok(None);
        }
        if fds[2].revents().contains(PollFlags::ERR) {
            return Err(Failure::ClosedPipe);
        }
        let input = fds.get(3).is_some_and(|input| !input.revents().is_empty());
        Ok(Some(Ready { input }))
    }

    /// Reads decisions; those of a terminal as well as of a pipe come in whole lines sooner or later.
    fn read(&mut self) -> Result<(), Failure> {
        let Some(input) = &self.input else {
            return Ok(());
        };
        let mut bytes = [0; 4096];
        match rustix::io::read(input, &mut bytes) {
            Ok(0) => self.input = None,
            Ok(count) => self.unread.extend_from_slice(&bytes[..count]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // A background job that may not read its terminal decides nothing.
            Err(_) if input.is_terminal() => self.input = None,
            Err(error) => return Err(Failure::about("standard input", io::Error::from(error))),
        }
        while let Some(at) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=at).collect();
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            if !line.is_empty() {
                self.decide(&line)?;
            }
        }
        Ok(())
    }

    fn decide(&mut self, line: &str) -> Result<(), Failure> {
        match Decision::parse(line) {
            Ok(decision) => self.act(line, &decision),
            Err(error) => self.print(&Line::Error { decision: line, error }),
        }
    }

    fn act(&mut self, line: &str, decision: &Decision<'_>) -> Result<(), Failure> {
        let gate = self.gate.clone();
        let done = match decision.clone() {
            Decision::Admit(endpoint, terms) => {
                gate.admit(endpoint, terms.clone()).map(|sequence| {
                    self.admitted += 1;
                    Line::Admitted { endpoint, sequence, flags: terms.names() }
                })
            }
            Decision::Refuse(endpoint, reason) => {
                gate.refuse(endpoint, reason).map(|()| Line::Refused { endpoint, reason })
            }
            Decision::Expel(endpoint, reason) => gate
                .expel(endpoint, reason)
                .map(|sequence| Line::Expelled { endpoint, sequence, reason }),
            Decision::Terms(endpoint, terms) => gate
                .set_terms(endpoint, terms.clone())
                .map(|sequence| Line::Terms { endpoint, sequence, flags: terms.names() }),
            Decision::Close(peer) => {
                gate.close_peer(peer).map(|sequence| Line::Closed { peer, sequence })
            }
            Decision::Tell(endpoint, text) => {
                let line = match self.bus.endpoint(endpoint).try_send(text) {
                    Ok(receipt) => Line::Told { endpoint, sequence: receipt.sequence },
                    Err(error) => Line::Error { decision: line, error: error.to_string() },
                };
                return self.print(&line);
            }
        };
        match done {
            Ok(done) => self.print(&done),
            Err(bus_client::GateError::BrokerGone(gone)) => Err(gone.into()),
            Err(error) => self.print(&Line::Error { decision: line, error: error.to_string() }),
        }
    }

    fn take(&mut self, event: &Event) -> Result<(), Failure> {
        match event {
            Event::Candidate(candidate) => self.meet(candidate),
            Event::Message(message) => self.hear(message),
            Event::PeerGap(PeerGap { peer, gap, .. }) => {
                let group = gap.group.as_ref().map(ToString::to_string).unwrap_or_default();
                let gap = GapLine { group, missed: missed(gap) };
                self.print(&Line::PeerGap { peer: *peer, gap })
            }
            Event::PeerStalled(PeerNotice { peer, sequence, .. }) => {
                self.print(&Line::PeerStalled { peer: *peer, sequence: *sequence })
            }
            Event::PeerClosed(PeerNotice { peer, sequence, .. }) => {
                self.print(&Line::PeerClosed { peer: *peer, sequence: *sequence })
            }
            _ => Ok(()),
        }
    }

    fn meet(&mut self, candidate: &Candidate) -> Result<(), Failure> {
        self.print(&Line::Candidate {
            group: candidate.group.as_str(),
            sequence: candidate.sequence,
            endpoint: candidate.endpoint,
            uid: candidate.credentials.uid,
            pid: candidate.credentials.pid,
            peer: candidate.peer,
            flags: candidate.wishes.names(),
        })?;
        let Some(rule) = &self.rule else {
            return Ok(());
        };
        let welcome = rule.users.is_empty() || rule.users.contains(&candidate.credentials.uid);
        let refusal = rule.refusal.clone();
        let decision = if welcome {
            Decision::Admit(candidate.endpoint, rule.terms.clone())
        } else {
            Decision::Refuse(candidate.endpoint, &refusal)
        };
        self.act("rule", &decision)
    }

    fn hear(&mut self, message: &Message) -> Result<(), Failure> {
        if self.json {
            let (message, peer) = (message_line(message), message.peer());
            return self.output.json(&Line::Message { message, peer });
        }
        let to = message.group().unwrap_or("private");
        self.output.line(&format!("{} to {to}: {}", message.sender(), shown(message)))
    }

    fn print(&mut self, line: &Line<'_>) -> Result<(), Failure> {
        if self.json {
            return self.output.json(line);
        }
        match line {
            Line::Created { .. } | Line::Error { .. } => self.output.note(&line.to_string()),
            _ => self.output.line(line.to_string().trim_end())?,
        }
        Ok(())
    }
}

/// What can be read.
#[derive(Clone, Copy, Debug)]
struct Ready {
    input: bool,
}

/// A line of the owner's input.
#[derive(Clone, Debug, PartialEq)]
enum Decision<'a> {
    Admit(EndpointId, Terms),
    Refuse(EndpointId, &'a str),
    Expel(EndpointId, &'a str),
    Terms(EndpointId, Terms),
    Close(EndpointId),
    Tell(EndpointId, &'a str),
}

impl<'a> Decision<'a> {
    fn parse(line: &'a str) -> Result<Self, String> {
        let (verb, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim_start();
        let (id, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let id: u64 = id.parse().map_err(|_| format!("{id:?} is no endpoint's number"))?;
        let (id, rest) = (EndpointId::from_raw(id), rest.trim_start());
        Ok(match verb {
            "admit" => Self::Admit(id, terms(rest)?),
            "terms" => Self::Terms(id, terms(rest)?),
            "refuse" => Self::Refuse(id, rest),
            "expel" => Self::Expel(id, rest),
            "close" => Self::Close(id),
            "tell" => Self::Tell(id, rest),
            _ => return Err(format!("{verb:?} is no decision")),
        })
    }
}

/// Flags, and after the word `filter` what the member is to hear: conditions as those of `--filter`,
/// alternatives between ` || `.
fn terms(text: &str) -> Result<Terms, String> {
    let words = format!(" {text}");
    let (flags, wanted) = match words.split_once(" filter ") {
        Some((flags, wanted)) => (flags, Some(wanted.trim())),
        None => (words.as_str(), None),
    };
    let filter = wanted.map(|wanted| {
        let wanted: Result<Vec<_>, _> = wanted.split(" || ").map(filter::parse).collect();
        filter::load(&wanted?).map_err(|failure| failure.to_string())
    });
    let terms = with_flags(flags)?;
    Ok(terms.filter(filter.transpose()?.flatten()))
}

fn with_flags(flags: &str) -> Result<Terms, String> {
    flags.split_whitespace().try_fold(Terms::new(), |terms, flag| {
        Ok(match flag {
            "loopback" => terms.loopback(true),
            "send-to-peer" => terms.send_to_peer(true),
            "drop-when-full" => terms.drop_when_full(true),
            "leave-when-full" => terms.leave_when_full(true),
            "drop-at-peer" => terms.drop_at_peer(true),
            _ => return Err(format!("{flag:?} is no flag of a member")),
        })
    })
}

#[cfg(test)]
mod tests {
    use bus_client::Filter;

    use super::*;

    #[test]
    fn decisions_are_read_and_nonsense_is_named() {
        let seven = EndpointId::from_raw(7);
        let peer = Terms::new().send_to_peer(true).drop_at_peer(true);
        let conditions = [vec!["key^=a.", "field.unit=C"], vec!["operation=Reset"]];
        let read = |all: Vec<&str>| all.iter().map(|one| one.parse().unwrap()).collect::<Vec<_>>();
        let wanted = Filter::new(conditions.map(read)).unwrap();
        let rows = [
            ("admit 7", Ok(Decision::Admit(seven, Terms::new()))),
            ("admit 7  send-to-peer drop-at-peer", Ok(Decision::Admit(seven, peer))),
            ("refuse 7 full house", Ok(Decision::Refuse(seven, "full house"))),
            ("expel 7", Ok(Decision::Expel(seven, ""))),
            ("terms 7 loopback", Ok(Decision::Terms(seven, Terms::new().loopback(true)))),
            (
                "terms 7 loopback filter key^=a. && field.unit=C || operation=Reset",
                Ok(Decision::Terms(seven, Terms::new().loopback(true).filter(Some(wanted)))),
            ),
            (
                "terms 7 filter key",
                Err("\"key\" is no condition; expected key=KEY, key^=PREFIX, operation=NAME, \
                     field.NAME=VALUE or field.NAME^=PREFIX, or bpf:FILE"
                    .to_owned()),
            ),
            ("close 7", Ok(Decision::Close(seven))),
            ("tell 7 hello there", Ok(Decision::Tell(seven, "hello there"))),
            ("admit me", Err("\"me\" is no endpoint's number".to_owned())),
            ("admit 7 flying", Err("\"flying\" is no flag of a member".to_owned())),
            ("fly 7", Err("\"fly\" is no decision".to_owned())),
        ];
        for (line, expected) in rows {
            assert_eq!(Decision::parse(line), expected, "{line}");
        }
    }
}
