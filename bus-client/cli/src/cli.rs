//! The command line's definition: verbs, options, help.
//!
//! Invariant: this is the only description of the command line. The parser, the shell completions
//! and the man pages are all made from it, so they cannot disagree.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use bus_client::{MAX_RETAINED_MESSAGES, Retain};
use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;

use crate::{bench, duration, filter, send::lent::Travel};

/// Ordered multicast between the programs of one machine.
///
/// Programs join named groups. A message that is sent to a group reaches every member or none, and
/// all members see all messages in the same order.
#[derive(Debug, Parser)]
#[command(
    name = "unisono",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_long_help = EXIT_CODES
)]
pub(crate) struct Cli {
    /// The broker's socket: a path, or unix:PATH.
    ///
    /// Without it, $UNISONO_ADDRESS; without that, $XDG_RUNTIME_DIR/unisono/bus.
    #[arg(
        long,
        global = true,
        env = "UNISONO_ADDRESS",
        hide_env = true,
        value_name = "PATH",
        value_hint = ValueHint::FilePath
    )]
    pub(crate) address: Option<String>,

    /// Say nothing on standard error but errors.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,

    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const EXIT_CODES: &str = "\
Exit status:
  0  done; also after SIGINT or SIGTERM, and when nobody reads the output any more
  1  error
  2  usage
  3  would block, or timed out: the message has reached nobody
  4  evicted, or the broker is gone
  5  verify found a violation

Durations are 250ms, 5s, 1min, or a number of seconds; fractions are fine.";

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Join groups and print a line for each message
    #[command(visible_alias = "sub", after_long_help = LISTEN_FORMS)]
    Listen(Listen),
    /// Send to a group, an endpoint or a name
    #[command(visible_alias = "pub")]
    Send(Send),
    /// Ask an endpoint, or who owns a name, and print the reply
    #[command(visible_alias = "request")]
    Call(Call),
    /// Answer requests with the output of a command
    #[command(visible_alias = "reply", after_long_help = SERVE_FORMS)]
    Serve(Serve),
    /// Create a group, and keep it until this ends
    #[command(after_long_help = OWNER_FORMS)]
    Create(Create),
    /// List the groups
    Groups(Listing),
    /// List the members of a group
    Members(Members),
    /// List the well-known names, or describe one
    Names(Names),
    /// Own a name, or wait for it, and print what is sent to it
    #[command(after_long_help = OWN_FORMS)]
    Own(Own),
    /// Show everything that happens on the bus; nobody waits for this
    #[command(after_long_help = MONITOR_FORMS)]
    Monitor(Monitor),
    /// Show who is in a group or owns a name, and every change of that
    #[command(after_long_help = WATCH_FORMS)]
    Watch(Watch),
    /// Own a gated group, and admit who asks for it
    #[command(after_long_help = OWNER_FORMS)]
    Admit(Admit),
    /// Show who holds how much: each user, and each of his connections
    Accounts(Listing),
    /// Show the broker's counters
    Stats(Listing),
    /// Show what the bus does, live: groups, endpoints, and who makes whom wait
    #[command(after_long_help = TOP_FORMS)]
    Top(Top),
    /// Tell what became of a message at each recipient, or why sends were refused
    #[command(after_long_help = WHY_FORMS)]
    Why(Why),
    /// Show the broker's version, incarnation and limits
    Status(Listing),
    /// Measure how long the broker takes to answer
    Ping(Ping),
    /// Ask what the rules allow, without a broker
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// Have the broker read its policy again; it must be yours
    Reload,
    /// Measure how fast the bus is, beside its peers
    #[command(after_long_help = bench::NOTES)]
    Bench(bench::Options),
    /// A process of bench
    #[command(hide = true)]
    BenchWorker(bench::WorkerOptions),
    /// Run a command with a private bus of its own
    Run(Run),
    /// Check recorded traces for one order, duplicates, gaps, loss and causality
    Verify(Verify),
    /// Show one order at work: several processes, several senders, equal digests
    Demo(Demo),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Print the manual page, or write all of them
    Man(Man),
}

const LISTEN_FORMS: &str = "\
Without --json a line is the payload. A payload that is not UTF-8, or has a newline or another \
control character but the tab in it, is shown with escapes (\\n, \\r, \\\\, \\x1b): use --json where it must \
be told apart. Typed payloads (CBOR, JSON) are shown as JSON. With several groups, a line begins \
with the group's name, a colon and a space. What is not a message is told on standard error.

A --filter is one of these, or several joined by ' && ' that must all hold. Given more than once, one \
of them is enough. The rest is not sent here, and senders do not wait for this program with it.
  key=KEY  key^=PREFIX                   the key is this, or begins so
  operation=NAME  operation^=PREFIX      the operation
  field.NAME=VALUE  field.NAME^=PREFIX   the value of a field
  bpf:FILE                               a BPF program over key and payload accepts it: an object
                                         file of clang's with a section \"socket\", or raw instructions

With --json a line is an object with a \"type\":
  joined   group, sequence, endpoint, flags, members, created; filter if there is one
  message  sequence, group, sender, sender_serial, and payload or payload_base64;
           where set: content_type, key or key_base64, operation, fields;
           after a loss: missed, first, last
  retained as message, of what a group retained before the join, with the original sequence
  state    group, sequence, messages: all that was retained is printed, and what follows is later
  flags    group, sequence, flags: the owner of the gated group has changed them
  gap      group, missed, first, last: a loss that no message has followed yet
  evicted  group, sequence, reason
  reconnected  with --reconnect: before and incarnation, of the bus before and now; last, the highest
           sequence before that was printed; endpoint; a line 'joined' follows for each group, once
           this is a member again: what was sent between last and there may be missing
  lost     group, reason: it could not be joined again
  left     group, sequence: everything up to that place has been printed
  end      reason, and through: the trace is complete up to that sequence";

const MONITOR_FORMS: &str = "\
A monitor sees every message, those to single endpoints too, and all else that takes a place in the \
order: joins and leaves, candidates, flags and filters, owners of names, requests without a reply. \
It never slows the bus: what it does not read in time it misses, and says so. It gets no descriptors.

With --json a line is an object with a \"type\":
  monitoring  sequence: everything later is shown
  message     as listen has it, with uid and pid of the sender; to, instead of group, where it went
              to one endpoint, and to_name if it was sent to that; kind: request, reply, refusal;
              request: which one it answers; after a loss: missed, first, last
  change      group, sequence, change, endpoint, uid, pid, members; after a loss as above
  member      group, sequence, change (created, asked, refused, withdrawn, terms, filter,
              peer-stalled, peer-closed, owner-gone), endpoint, uid, pid, flags
  owner       name, sequence, old, new, owners: their number
  outcome     request, sequence, why (gone, timed-out, cancelled), caller, asked: it gets no reply
  gap         missed, first, last: a loss that nothing has followed yet
  reconnected with --reconnect, as `listen` has it
  end         reason";

const WATCH_FORMS: &str = "\
The list comes first, then the changes after it, each at its place in the order: a message that \
`listen` shows reached the members of the last view or change before its sequence.

With --json a line is an object with a \"type\":
  view        group, sequence, members: as `members --json` has them; the list that holds there
  watching    group, sequence, members: their number; instead of the list, with --edges
  change      group, sequence, change (joined, left, evicted, closed, ended), endpoint, uid, pid,
              members: their number after it; ended, where the group has; after a loss: missed,
              first, last
  views-lost  group, missed, first, last: changes that were missed; a new view follows
  reconnected with --reconnect, as `listen` has it; a new view follows
  end         reason

With --name and --json:
  owners              name, sequence, owners: endpoint, uid and pid of each, of many some
  owner-changed       name, sequence, old and new: endpoint, uid, pid, or null; owners: their number
                      after it; after a loss: missed
  owner-changes-lost  missed
  end                 reason";

const OWN_FORMS: &str = "\
Without --json a line is the payload of a message, as `listen` shows it; what becomes of the name is \
told on standard error. When another endpoint takes the name over, the status is 4.

--describe reads what the service says of itself, from a JSON or .toml file, and `names --describe` shows \
it: summary; operations, an array of name, argument, reply and doc; signals, of name, payload, group and \
doc; types, a map from names to types. A type is one of serde's data model:
  \"u64\", \"string\", \"unit\" and other primitive types; \"any\"; {\"named\": \"Time\"}, one of types
  {\"option\": T}  {\"seq\": T}  {\"tuple\": [T, ..]}  {\"array\": {\"of\": T, \"length\": 4}}
  {\"map\": {\"key\": T, \"value\": T}}  {\"struct\": [{\"name\": \"hour\", \"type\": T}, ..]}
  {\"enum\": [{\"name\": \"off\"}, {\"name\": \"on\", \"holds\": {\"newtype\": T}}, ..]}

With --json a line is an object with a \"type\":
  claimed   name, sequence, endpoint, position: 0 for the owner, else how many are before it
  acquired  name, sequence: it waited for the name, and owns it from here on
  lost      name, sequence, by: endpoint, waits: whether it waits to own it again
  message   name, and what `listen --json` tells of a message
  reconnected  as `listen` has it; the name was claimed again
  end       reason";

const TOP_FORMS: &str = "\
Rates are those of the last interval. P50 and P99 are how long messages were in queues since the start, \
from their commits until the application had taken them; BLOCKS is how many sends wait for the endpoint \
now, BLOCKED how long others have waited. This program's own endpoint is not listed.

Keys: g groups, m members, w who waits for whom, Tab the next view, s the next sort key, p pause, + and - \
the interval, arrows and pages, q quit.

With --json an object a line: seconds, stats (as `stats --json`), rates, groups, endpoints, waits.";

const WHY_FORMS: &str = "\
The broker keeps a few words of each of the last messages ([recorder] in its settings), and nothing of \
their content. A recipient's fate is one of these:
  taken     the application has taken it
  handed    its connection was given it, and has not said that it was taken
  queued    it waits in the queue
  lost      the endpoint was closed before it was taken
  gone      the endpoint was closed; more is not known any more
  dropped   there was no room, and the member has DROP_WHEN_FULL
  filtered  a filter did not want it
  sender    it is the sender's own, without LOOPBACK
  put-out   it was evicted or expelled before
  unknown   it has been overwritten

With --json one object, or for refusals an object a line. The status is 1 where nothing is known.";

/// Options of `top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// What to show
    #[arg(long, short, value_enum, default_value = "members", value_name = "WHAT")]
    pub(crate) view: TopView,
    /// What stands first
    #[arg(long, short, value_enum, value_name = "KEY")]
    pub(crate) sort: Option<TopSort>,
    /// How long between two looks
    #[arg(long, short, value_name = "T", default_value = "1s", value_parser = duration::parse)]
    pub(crate) interval: Duration,
    /// Show this many rows at most, with --once
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) rows: Option<usize>,
    /// Print one table and end
    #[arg(long)]
    pub(crate) once: bool,
    /// Print a JSON object for each interval
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// Views of `top`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TopView {
    /// Groups, and what is sent to them
    Groups,
    /// Endpoints, their queues, and what goes in and out
    Members,
    /// Sends that wait, and for whom
    Waits,
}

impl TopView {
    /// The one after it.
    pub(crate) fn next(self) -> Self {
        match self {
            Self::Groups => Self::Members,
            Self::Members => Self::Waits,
            Self::Waits => Self::Groups,
        }
    }
}

/// Sort keys of `top`. A view that has none of them keeps its own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TopSort {
    /// Messages a second
    Rate,
    /// Messages a second into the queue
    In,
    /// Messages a second sent
    Out,
    /// Bytes a second, or in the queue
    Bytes,
    /// Messages in the queue
    Queue,
    /// How long messages are in the queue
    Time,
    /// How long others have waited for it
    Blocked,
    /// Messages missed
    Dropped,
    /// Members, or memberships
    Members,
    /// The group's name, or the endpoint
    Name,
}

impl TopSort {
    const ALL: [Self; 10] = [
        Self::Rate,
        Self::In,
        Self::Out,
        Self::Bytes,
        Self::Queue,
        Self::Time,
        Self::Blocked,
        Self::Dropped,
        Self::Members,
        Self::Name,
    ];

    /// The next one, and after the last none.
    pub(crate) fn after(sort: Option<Self>) -> Option<Self> {
        let at = sort.and_then(|sort| Self::ALL.iter().position(|other| *other == sort));
        Self::ALL.get(at.map_or(0, |at| at + 1)).copied()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::In => "in",
            Self::Out => "out",
            Self::Bytes => "bytes",
            Self::Queue => "queue",
            Self::Time => "time",
            Self::Blocked => "blocked",
            Self::Dropped => "dropped",
            Self::Members => "members",
            Self::Name => "name",
        }
    }
}

/// Options of `why`.
#[derive(Debug, Args)]
pub(crate) struct Why {
    /// The message's sequence, as receipts, `listen --json` and logs tell it
    #[arg(value_name = "SEQUENCE", required_unless_present_any = ["endpoint", "group", "refused"])]
    pub(crate) sequence: Option<u64>,
    /// Show the last refused sends of this endpoint, to it, or for want of its room
    #[arg(long, short, value_name = "ENDPOINT", conflicts_with_all = ["sequence", "group"])]
    pub(crate) endpoint: Option<u64>,
    /// Show the last refused sends to this group
    #[arg(long, short, value_name = "GROUP", conflicts_with = "sequence")]
    pub(crate) group: Option<String>,
    /// Show the last refused sends of everybody
    #[arg(long, conflicts_with_all = ["sequence", "group", "endpoint"])]
    pub(crate) refused: bool,
    /// Show this many refused sends at most
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) count: Option<u32>,
    /// Print JSON
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// Options of `names`.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Show what the service of this name says of itself
    #[arg(long, short, value_name = "NAME")]
    pub(crate) describe: Option<String>,
    /// Print a JSON object a line
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// Options of `own`.
#[derive(Debug, Args)]
pub(crate) struct Own {
    /// The name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Wait for the name if somebody else owns it
    #[arg(long, short)]
    pub(crate) wait: bool,
    /// Own it together with others that say the same; each message is given to one of them
    #[arg(long, short)]
    pub(crate) shared: bool,
    /// Let another endpoint take it over
    #[arg(long)]
    pub(crate) allow_replacement: bool,
    /// Take it over from an owner that lets it go
    #[arg(long)]
    pub(crate) replace: bool,
    /// Say what the service does: a JSON or TOML file
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) describe: Option<PathBuf>,
    /// End after this many messages
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// End with status 3 when no message has come for this long
    #[arg(long, short, value_name = "T", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) comeback: Comeback,
    /// Print a JSON object a line
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// Options of the verbs that stay on the bus.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Comeback {
    /// When the broker ends, go on with the next one, and tell what may be missing. With a time,
    /// end with status 4 when none has come for so long
    #[arg(
        long,
        value_name = "T",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "forever",
        value_parser = patience
    )]
    pub(crate) reconnect: Option<Patience>,
}

/// For how long to look for another broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience(pub(crate) Option<Duration>);

fn patience(text: &str) -> Result<Patience, String> {
    match text {
        "forever" => Ok(Patience(None)),
        text => duration::parse(text).map(Some).map(Patience),
    }
}

/// Options of `listen`.
#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// The groups to join; those that do not exist are created
    #[arg(required = true, value_name = "GROUP")]
    pub(crate) groups: Vec<String>,
    /// End after this many messages
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// End with status 3 when no message has come for this long
    #[arg(long, short, value_name = "T", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    /// Also receive what this endpoint itself sends
    #[arg(long)]
    pub(crate) loopback: bool,
    /// Miss messages rather than make senders wait; what is missed is counted and told
    #[arg(long)]
    pub(crate) drop_when_full: bool,
    /// Leave when there is no room for a message, rather than make senders wait; the status is 4
    #[arg(long, conflicts_with = "drop_when_full")]
    pub(crate) leave_when_full: bool,
    /// Receive only messages like this, such as key^=a. or 'field.unit=C'; see below
    #[arg(long, value_name = "FILTER", value_parser = filter::parse)]
    pub(crate) filter: Vec<filter::Wanted>,
    /// Fail if a group does not exist, rather than create it
    #[arg(long)]
    pub(crate) no_create: bool,
    /// First print what the groups retain; it does not count for --count
    #[arg(long)]
    pub(crate) with_state: bool,
    /// Have a group that is created by this retain its last messages: last, last:N, keys or keys:N
    #[arg(long, value_name = "WHAT", value_parser = retain, conflicts_with = "no_create")]
    pub(crate) retain: Option<Retain>,
    #[command(flatten)]
    pub(crate) comeback: Comeback,
    /// Print a JSON object a line
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// Options of `create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The group; it must not exist
    #[arg(value_name = "GROUP")]
    pub(crate) group: String,
    /// Retain the last N messages (last:N; last is one) or the last one of each of N keys
    /// (keys:N; keys is 256), for those who join with their state
    #[arg(long, value_name = "WHAT", value_parser = retain)]
    pub(crate) retain: Option<Retain>,
    /// How many bytes of these at most; 1 MiB without it
    #[arg(long, value_name = "N", requires = "retain")]
    pub(crate) retain_bytes: Option<u64>,
    /// Put a member out that makes senders wait for this long, from 100ms to 600s; the bus's time
    /// without it
    #[arg(long, value_name = "T", value_parser = duration::parse)]
    pub(crate) stall: Option<Duration>,
    /// Nobody is a member whom this owner has not admitted; decisions are read from standard input
    #[arg(long, conflicts_with = "retain")]
    pub(crate) gated: bool,
    /// So many candidates may wait at a time
    #[arg(long, value_name = "N", requires = "gated", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) backlog: Option<u16>,
    /// Print a JSON object, or with --gated an object a line
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// Options of `send`.
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// The group; it must exist, unless --wait-members waits for it. Not with --to
    #[arg(value_name = "GROUP", required_unless_present = "to")]
    group: Option<OsString>,
    /// The message. Without it, all of standard input is one message
    #[arg(value_name = "TEXT", conflicts_with_all = ["lines", "file"])]
    text: Option<OsString>,
    /// Send to an endpoint, by its number, or to who owns a well-known name
    #[arg(long, value_name = "ENDPOINT|NAME", conflicts_with = "wait_members")]
    pub(crate) to: Option<String>,
    /// Make each line of the input a message of its own, without its newline, empty ones too
    #[arg(long, short)]
    pub(crate) lines: bool,
    /// Read the input from a file; - is standard input
    #[arg(long, short, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// First wait until the group has this many members
    #[arg(long, short, value_name = "N")]
    pub(crate) wait_members: Option<u64>,
    /// Fail with status 3 rather than wait for room
    #[arg(long, conflicts_with = "timeout")]
    pub(crate) nonblock: bool,
    /// Fail with status 3 when a message, or --wait-members, has waited for this long
    #[arg(long, short, value_name = "T", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    /// A key for filters
    #[arg(long, short, value_name = "KEY")]
    pub(crate) key: Option<OsString>,
    /// An operation's name
    #[arg(long, short, value_name = "NAME")]
    pub(crate) operation: Option<String>,
    /// A field; may be given up to 16 times
    #[arg(long, value_name = "NAME=VALUE", value_parser = field)]
    pub(crate) field: Vec<(String, String)>,
    /// Ask for the bytes not to be copied on their way, and say how they travelled. Ends when nobody needs
    /// what was lent any more
    #[arg(long, conflicts_with = "lines")]
    pub(crate) zerocopy: bool,
    /// How the bytes leave, rather than as their number makes it pay
    #[arg(long, value_name = "HOW", requires = "zerocopy")]
    pub(crate) travel: Option<Travel>,
    /// Print a receipt a line, as a JSON object
    #[arg(long, short)]
    pub(crate) json: bool,
}

impl Send {
    /// The group, without --to.
    pub(crate) fn group(&self) -> Option<&OsString> {
        self.group.as_ref().filter(|_| self.to.is_none())
    }

    /// The message: with --to it stands first, where the group stands without.
    pub(crate) fn text(&self) -> Option<&OsString> {
        if self.to.is_some() { self.group.as_ref() } else { self.text.as_ref() }
    }

    /// What no rule of the parser says.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        match (&self.to, &self.group, &self.text) {
            (Some(_), Some(_), Some(_)) => Err("with --to there is no GROUP, only TEXT"),
            (Some(_), Some(_), None) if self.lines || self.file.is_some() => {
                Err("TEXT cannot be used with --lines or --file")
            }
            _ => Ok(()),
        }
    }
}

const SERVE_FORMS: &str = "\
Each request's payload is the command's standard input, and its output is the reply. When it fails, \
the caller gets a refusal with what it printed. The environment says what is asked: \
UNISONO_OPERATION, UNISONO_SENDER, UNISONO_REQUEST. A command whose caller does not wait any more is \
killed.

With --json a line is an object with a \"type\":
  serving  endpoint: where to call; and name, if one is owned; with --reconnect once more for each
           broker
  request  sequence, sender, operation, outcome (replied, refused, ended), and why";

/// Options of `call`.
#[derive(Debug, Args)]
pub(crate) struct Call {
    /// Whom to ask: the number of an endpoint, or a well-known name
    #[arg(value_name = "ENDPOINT|NAME")]
    pub(crate) target: String,
    /// The operation that is asked for
    #[arg(value_name = "OPERATION")]
    pub(crate) operation: String,
    /// What is asked. Without it, standard input, unless that is a terminal
    #[arg(value_name = "PAYLOAD")]
    pub(crate) payload: Option<OsString>,
    /// Fail with status 3 when there is no reply for this long; the bus's default is 25s
    #[arg(long, short, value_name = "T", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    /// It does no harm twice: another worker may be asked when the first one dies
    #[arg(long)]
    pub(crate) repeatable: bool,
    /// A key
    #[arg(long, short, value_name = "KEY")]
    pub(crate) key: Option<OsString>,
    /// A field; may be given up to 16 times
    #[arg(long, value_name = "NAME=VALUE", value_parser = field)]
    pub(crate) field: Vec<(String, String)>,
    /// Print the reply as a JSON object
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// A well-known name to own meanwhile; without one, callers need the endpoint's number
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Own the name together with other workers; each request is given to one of them
    #[arg(long, short, requires = "name")]
    pub(crate) shared: bool,
    /// Answer only requests for this operation, and refuse others
    #[arg(long, short, value_name = "NAME")]
    pub(crate) operation: Option<String>,
    /// Say what the service does: a JSON or TOML file, as for `own`
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, requires = "name")]
    pub(crate) describe: Option<PathBuf>,
    /// How many commands may run at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = jobs)]
    pub(crate) jobs: usize,
    /// End after this many requests
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) comeback: Comeback,
    /// Print a JSON object a line
    #[arg(long, short)]
    pub(crate) json: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=1024) => Ok(jobs),
        _ => Err("a number from 1 to 1024".to_owned()),
    }
}

/// Options of the verbs that only show something.
#[derive(Debug, Args)]
pub(crate) struct Listing {
    /// Print JSON: one object, or an object a line
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// Options of `members`.
#[derive(Debug, Args)]
pub(crate) struct Members {
    /// The group
    #[arg(value_name = "GROUP")]
    pub(crate) group: String,
    /// Print a JSON object a line
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// Options of `monitor`.
#[derive(Debug, Args)]
pub(crate) struct Monitor {
    /// Only what is sent to this group, and who comes and goes there
    #[arg(long, short, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// End after this many messages and changes
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// End with status 3 when nothing has happened for this long
    #[arg(long, short, value_name = "T", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) comeback: Comeback,
    /// Print a JSON object a line
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// Options of `watch`.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// The group; it is created if it does not exist
    #[arg(value_name = "GROUP")]
    pub(crate) group: String,
    /// It is a well-known name: show who owns it
    #[arg(long, conflicts_with_all = ["edges", "no_create"])]
    pub(crate) name: bool,
    /// Only tell when somebody comes into an empty group, and when the last one has gone
    #[arg(long)]
    pub(crate) edges: bool,
    /// End after this many changes
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// End with status 3 when nothing has changed for this long
    #[arg(long, short, value_name = "T", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    /// Fail if the group does not exist, rather than create it
    #[arg(long)]
    pub(crate) no_create: bool,
    #[command(flatten)]
    pub(crate) comeback: Comeback,
    /// Print a JSON object a line
    #[arg(long, short)]
    pub(crate) json: bool,
}

const OWNER_FORMS: &str = "\
Who joins a gated group waits until its owner has decided: `listen GROUP` is enough. The owner reads \
decisions from standard input, one a line:
  admit ENDPOINT [FLAG...]   flags: loopback, send-to-peer, drop-when-full, leave-when-full,
                             drop-at-peer
  refuse ENDPOINT [REASON]
  expel ENDPOINT [REASON]
  terms ENDPOINT [FLAG...]   changes how a member is one
             admit and terms may end with: filter CONDITIONS, as those of `listen --filter`, \
alternatives between ' || '; the member hears nothing else, and cannot see or change it
  close PEER                 ends the connection, and the memberships that came with it
  tell ENDPOINT TEXT         a private message

With --json a line is an object with a \"type\":
  created    group, endpoint: the owner's
  candidate  group, sequence, endpoint, uid, pid, peer, flags: what it would like
  admitted, terms  endpoint, sequence, flags
  refused    endpoint, reason
  expelled   endpoint, sequence, reason
  closed     peer, sequence
  told       endpoint, sequence
  error      decision, error
  message    as in `listen --json`, and peer: what a member with send-to-peer sent to the group,
             or without group a private message
  peer-gap   peer, group, missed, first, last: messages that the owner had no room for
  peer-stalled, peer-closed  peer, sequence
  end        reason";

/// Options of `admit`.
#[derive(Debug, Args)]
pub(crate) struct Admit {
    /// The gated group; it is created
    #[arg(value_name = "GROUP")]
    pub(crate) group: String,
    /// Admit this user's programs only; may be given several times
    #[arg(long, value_name = "UID")]
    pub(crate) uid: Vec<u32>,
    /// What to tell those who are refused
    #[arg(long, value_name = "REASON", default_value = "not admitted")]
    pub(crate) refusal: String,
    /// Members receive their own messages
    #[arg(long)]
    pub(crate) loopback: bool,
    /// Print what members send
    #[arg(long)]
    pub(crate) send_to_peer: bool,
    /// Members miss messages rather than make senders wait
    #[arg(long)]
    pub(crate) drop_when_full: bool,
    /// Members leave when there is no room for a message, rather than make senders wait
    #[arg(long, conflicts_with = "drop_when_full")]
    pub(crate) leave_when_full: bool,
    /// Miss what members send rather than make them wait
    #[arg(long, requires = "send_to_peer")]
    pub(crate) drop_at_peer: bool,
    /// Members hear only what this accepts, and cannot change it; as for listen
    #[arg(long, value_name = "F", value_parser = filter::parse)]
    pub(crate) filter: Vec<filter::Wanted>,
    /// End after this many were admitted; the members go on
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// So many candidates may wait at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) backlog: Option<u16>,
    /// Print a JSON object a line
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// Options of `ping`.
#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// Ask this many times
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: u64,
    /// End with status 3 when an answer takes longer than this
    #[arg(long, short, value_name = "T", default_value = "5s", value_parser = duration::parse)]
    pub(crate) timeout: Duration,
    /// Print a JSON object a line
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// What to do with rules.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Say whether somebody may do something, and which rule decides
    #[command(after_long_help = POLICY_FORMS)]
    Check(PolicyCheck),
}

const POLICY_FORMS: &str = "\
The status is 0 if it is allowed, 1 if it is denied or the rules cannot be read, 2 for a usage error.

The last rule that fits decides. Before all rules stands a built-in one, which allows everything to \
the bus's own user and to root, and nothing to others.";

/// Options of `policy check`.
#[derive(Debug, Args)]
pub(crate) struct PolicyCheck {
    /// What: connect, own, call, create, join, watch, send, direct or monitor
    #[arg(value_name = "ACTION", value_parser = action)]
    pub(crate) action: bus_broker::Action,
    /// The group or the well-known name; a monitor of everything has none
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Who asks, by name or number [default: this user]
    #[arg(long = "as", value_name = "USER")]
    pub(crate) user: Option<String>,
    /// A group that the user is in beside those that /etc/group says, by name or number
    #[arg(long, value_name = "GROUP")]
    pub(crate) user_group: Vec<String>,
    /// The program that asks
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) exe: Option<PathBuf>,
    /// The sandboxed application that asks
    #[arg(long, value_name = "ID")]
    pub(crate) sandbox: Option<String>,
    /// What the kernel's security module calls it
    #[arg(long, value_name = "LABEL")]
    pub(crate) label: Option<String>,
    /// The identity of the socket it has come in at
    #[arg(long, value_name = "IDENTITY")]
    pub(crate) socket: Option<String>,
    /// Whose bus it is [default: this user's]
    #[arg(long, value_name = "USER")]
    pub(crate) owner: Option<String>,
    /// The broker's configuration [default: /etc/unisono/session.toml if it is there]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// A further directory of rules
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub(crate) directory: Vec<PathBuf>,
    /// Print a JSON object
    #[arg(long, short)]
    pub(crate) json: bool,
}

fn action(text: &str) -> Result<bus_broker::Action, String> {
    let known = bus_broker::Action::ALL.into_iter().find(|action| action.as_str() == text);
    known.ok_or_else(|| {
        let all = bus_broker::Action::ALL.map(bus_broker::Action::as_str);
        format!("it is one of {}", all.join(", "))
    })
}

/// Options of `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The command and its arguments; UNISONO_ADDRESS tells it where the bus is
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND",
        value_hint = ValueHint::CommandWithArguments
    )]
    pub(crate) command: Vec<OsString>,
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// What `listen --json` printed, a file for each listener
    #[arg(required = true, value_name = "LISTEN", value_hint = ValueHint::FilePath)]
    pub(crate) traces: Vec<PathBuf>,
    /// What `send --json` printed; without it, causality and loss at all are not checked
    #[arg(long, num_args = 1.., value_name = "SEND", value_hint = ValueHint::FilePath)]
    pub(crate) sends: Vec<PathBuf>,
    /// Print the findings as one JSON object
    #[arg(long, short)]
    pub(crate) json: bool,
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Processes that listen
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub(crate) members: u64,
    /// Processes that send
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub(crate) senders: u64,
    /// Messages of each sender; the text is repeated as often as that takes
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) messages: u64,
    /// The text whose lines are sent, instead of the one that comes with the program
    #[arg(long, short, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// Keep the message lines of each member here, for sha256sum and verify, and the receipts in
    /// its folder sends
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) traces: Option<PathBuf>,
    /// Give up after this long
    #[arg(long, short, value_name = "T", default_value = "50s", value_parser = duration::parse)]
    pub(crate) timeout: Duration,
}

/// Options of `completions`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

/// Options of `man`.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// The verb whose page to print; without it, the page of unisono itself
    #[arg(value_name = "VERB")]
    pub(crate) verb: Option<String>,
    /// Write all pages into this folder instead
    #[arg(long, value_name = "DIR", conflicts_with = "verb", value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

fn retain(text: &str) -> Result<Retain, String> {
    let (what, count) = match text.split_once(':') {
        Some((what, count)) => {
            let count =
                count.parse().ok().filter(|count| (1..=MAX_RETAINED_MESSAGES).contains(count));
            (what, Some(count.ok_or(format!("N is 1 to {MAX_RETAINED_MESSAGES}"))?))
        }
        None => (text, None),
    };
    match what {
        "last" => Ok(Retain::last(count.unwrap_or(1))),
        "keys" => Ok(Retain::keys(count.unwrap_or(256))),
        _ => Err("it is last, last:N, keys or keys:N".to_owned()),
    }
}

fn field(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("the name is empty".to_owned()),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err("a field is NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("unisono").chain(line.split_whitespace()))
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn aliases_and_short_options_of_the_field_work() {
        let Verb::Listen(listen) = parse("sub a b -n 3 -j -q -t 250ms").expect("parses").verb
        else {
            panic!("sub is listen");
        };
        assert_eq!(listen.groups, ["a", "b"]);
        assert_eq!(listen.count, Some(3));
        assert_eq!(listen.timeout, Some(Duration::from_millis(250)));
        assert!(listen.json);

        let Verb::Send(send) = parse("pub g hello -t 1.5").expect("parses").verb else {
            panic!("pub is send");
        };
        assert_eq!(send.group(), Some(&"g".into()));
        assert_eq!(send.text(), Some(&"hello".into()));
        assert_eq!(send.timeout, Some(Duration::from_millis(1_500)));
    }

    #[test]
    fn with_a_destination_the_message_comes_first() {
        let Verb::Send(send) = parse("send --to 7 hello").expect("parses").verb else {
            panic!("send");
        };
        assert_eq!((send.group(), send.text()), (None, Some(&"hello".into())));
        assert_eq!(send.check(), Ok(()));
        for line in ["send --to a.b g hello", "send --to a.b hello --lines"] {
            let Verb::Send(send) = parse(line).expect(line).verb else { panic!("send") };
            assert!(send.check().is_err(), "{line}");
        }
        assert!(parse("send --to a.b --wait-members 1 x").is_err());
    }

    #[test]
    fn global_options_work_before_and_after_the_verb() {
        for line in ["--address /x groups", "groups --address /x"] {
            assert_eq!(parse(line).expect(line).address.as_deref(), Some("/x"), "{line}");
        }
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for line in [
            "send g text --lines",
            "send g text --file x",
            "send g text --nonblock --timeout 1s",
            "listen",
            "listen g --count 0",
            "listen g --timeout soon",
            "listen g --filter payload=x",
            "listen g --filter key",
            "listen g --retain some",
            "listen g --retain last:0",
            "send g x --field =v",
            "send g x --field novalue",
            "run",
            "verify",
            "demo --members 0",
            "frobnicate",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn run_takes_the_commands_own_options() {
        for line in ["run -- ls -l --json", "run ls -l --json"] {
            let Verb::Run(run) = parse(line).expect(line).verb else {
                panic!("run");
            };
            assert_eq!(run.command, ["ls", "-l", "--json"], "{line}");
        }
    }

    #[test]
    fn verify_takes_several_files_on_both_sides() {
        let Verb::Verify(verify) = parse("verify a b --sends c d").expect("parses").verb else {
            panic!("verify");
        };
        assert_eq!((verify.traces.len(), verify.sends.len()), (2, 2));
    }

    #[test]
    fn help_shows_the_aliases_and_exits_with_0() {
        let error = parse("--help").expect_err("help is told as an error");
        assert_eq!(error.kind(), ErrorKind::DisplayHelp);
        assert_eq!(error.exit_code(), 0);
        let help = error.to_string();
        assert!(help.contains("[alias: sub]") && help.contains("[alias: pub]"), "{help}");
    }
}
