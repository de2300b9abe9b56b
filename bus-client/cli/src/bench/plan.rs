//! What a run is: every process of a run gets the same plan, and its own role in it.

use std::path::PathBuf;

use bus_core::Limits;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::system::System;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Workload {
    /// One sender to many receivers, as fast as they take it
    Fanout,
    /// Many senders to the same receivers, one order
    Fanin,
    /// A message there and one back
    Rtt,
    /// The next message once all receivers have the last one
    Lockstep,
    /// Connect, be greeted, and go
    Connect,
    /// Fan-out of large payloads
    Large,
    /// Connections that do nothing: what they cost
    Idle,
    /// Streams to one group, each for those who filter it out of the others
    Filter,
    /// How long a fan-out send waits among small senders that never stop
    Fair,
}

impl Workload {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fanout => "fanout",
            Self::Fanin => "fanin",
            Self::Rtt => "rtt",
            Self::Lockstep => "lockstep",
            Self::Connect => "connect",
            Self::Large => "large",
            Self::Idle => "idle",
            Self::Filter => "filter",
            Self::Fair => "fair",
        }
    }

    /// Senders and receivers where nothing else is asked for. For `fair`, the senders are the
    /// small ones; for `connect` and `idle` they are processes that connect.
    pub(crate) fn default_counts(self) -> (usize, usize) {
        match self {
            Self::Fanout | Self::Lockstep | Self::Large => (1, 8),
            Self::Filter => (2, 8),
            Self::Fanin => (4, 8),
            Self::Rtt => (1, 1),
            Self::Connect => (1, 0),
            Self::Idle => (1, 1000),
            Self::Fair => (8, 8),
        }
    }

    pub(crate) fn default_size(self) -> usize {
        match self {
            Self::Large => 1 << 20,
            _ => 64,
        }
    }

    /// Whether it is about connections rather than messages.
    pub(crate) fn is_about_connections(self) -> bool {
        matches!(self, Self::Connect | Self::Idle)
    }
}

/// What a receiver does with a large payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reading {
    /// Has it in memory of its own: what lies elsewhere is copied out
    CopyOut,
    /// Sums a word of each 64 bytes of it, where it lies
    InPlace,
}

impl Reading {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CopyOut => "copy-out",
            Self::InPlace => "in-place",
        }
    }
}

/// How far ahead of its receivers our broker lets a sender be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LimitsOf {
    /// As far as the workload does, as with the peers; `fair` is about the default ones
    Raised,
    /// As without a configuration
    Default,
}

impl LimitsOf {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Default => "default",
        }
    }
}

/// When a sender has sent enough.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Limit {
    /// After this many messages (connections, for `connect`) of each sender.
    Count(u64),
    /// After this many nanoseconds.
    Nanoseconds(u64),
}

/// A run of one system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) system: System,
    pub(crate) workload: Workload,
    pub(crate) senders: usize,
    pub(crate) receivers: usize,
    /// Bytes of a payload.
    pub(crate) size: usize,
    /// Messages that are ready when a sender writes.
    pub(crate) batch: usize,
    pub(crate) limit: Limit,
    pub(crate) limits: LimitsOf,
    /// CPUs that every process of the run stays on; empty for all.
    pub(crate) pin: Vec<usize>,
    /// Receivers of `fair` that read 60 times a second.
    pub(crate) slow: usize,
    /// What receivers do with a payload, if that is measured.
    pub(crate) reading: Option<Reading>,
    /// Whether our sender asks for its payloads not to be copied.
    pub(crate) flagged: bool,
    /// Whether payloads lie where others see them, so that who wants one of his own has to copy it.
    pub(crate) apart: bool,
    /// The run's own folder.
    pub(crate) dir: PathBuf,
    /// For systems without Unix sockets.
    pub(crate) port: u16,
}

impl Plan {
    /// The socket of the broker.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("bus")
    }

    /// The socket of one receiver, where there is no broker.
    pub(crate) fn receiver_socket(&self, index: usize) -> PathBuf {
        self.dir.join(format!("receiver-{index}"))
    }

    /// The file of counters that the processes share.
    pub(crate) fn counters(&self) -> PathBuf {
        self.dir.join("counters")
    }

    /// The memory that all have mapped, where the system is that.
    pub(crate) fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// How many streams of serials there are: one a sender, but in `fair` the fan-out sender's
    /// and one for each receiver, which is the small sender's that writes to it.
    pub(crate) fn streams(&self) -> usize {
        match self.workload {
            Workload::Fair => 1 + self.receivers,
            _ => self.senders,
        }
    }

    /// The streams that a receiver hears.
    pub(crate) fn streams_of(&self, receiver: usize) -> Vec<usize> {
        match self.workload {
            Workload::Fair => vec![0, 1 + receiver],
            Workload::Filter => vec![receiver % self.senders],
            _ => (0..self.senders).collect(),
        }
    }

    /// The key of a stream's messages, where receivers filter.
    pub(crate) fn key_of(&self, stream: usize) -> Option<String> {
        (self.workload == Workload::Filter).then(|| format!("stream.{stream}"))
    }

    /// How many messages a sender may be ahead of the slowest receiver: the same for all systems,
    /// so that one that queues without bound does not win by it, and none loses messages to its
    /// quotas. None where the system has no way to lose time rather than messages.
    pub(crate) fn window(&self) -> Option<u64> {
        let messages = (WINDOW_BYTES / self.size.max(1)).clamp(8, 4096);
        self.system.is_lossless().then(|| messages.max(2 * self.batch) as u64)
    }

    /// The limits of our broker.
    pub(crate) fn limits(&self) -> Limits {
        // How fast one process can connect is measured too.
        let mut limits = Limits { user_connection_rate: 1 << 20, ..Limits::default() };
        if let (LimitsOf::Raised, Some(messages)) = (self.limits, self.window()) {
            let bytes = messages * self.size as u64;
            let messages = u32::try_from(messages).unwrap_or(u32::MAX);
            limits.lane_messages = limits.lane_messages.max(messages);
            limits.lane_bytes = limits.lane_bytes.max(bytes);
            // A receiver may be behind all of its senders.
            let senders = u32::try_from(self.senders).unwrap_or(u32::MAX);
            let queued = messages.saturating_mul(senders).min(MOST_QUEUED);
            limits.queue_messages = limits.queue_messages.max(queued);
            limits.queue_bytes = limits.queue_bytes.max(bytes * u64::from(senders));
        }
        limits
    }

    /// Whether every message carries the time, not just some.
    pub(crate) fn stamps_all(&self) -> bool {
        matches!(self.workload, Workload::Lockstep | Workload::Rtt | Workload::Fair)
    }
}

/// The widest queue that is raised for a workload.
const MOST_QUEUED: u32 = 1 << 18;

/// What one process of a run is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    /// The system's broker, where it is one of ours.
    Broker,
    /// Sender of this number.
    Sender(usize),
    /// Receiver of this number.
    Receiver(usize),
    /// Opens connections.
    Connector,
}

/// The first line that a worker reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) plan: Plan,
    pub(crate) role: Role,
}

/// The line that a worker writes when it has set up.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// Where it can be reached, for `rtt`.
    pub(crate) address: String,
}

/// The line that tells a worker to start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Go {
    /// The addresses of the receivers.
    pub(crate) receivers: Vec<String>,
}

/// The line that a worker writes when it is done. Times are nanoseconds of the monotonic clock.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) started: u64,
    pub(crate) finished: u64,
    /// Messages sent, or received, or connections made.
    pub(crate) messages: u64,
    /// Messages that a receiver should have had and had not.
    pub(crate) lost: u64,
    /// Messages that came behind a later one of their sender, or twice.
    pub(crate) misplaced: u64,
    /// Tells one sequence of messages from another.
    pub(crate) digest: u64,
    /// Latencies: nanoseconds, and how often.
    pub(crate) latencies: Vec<(u64, u64)>,
    /// How long fan-out sends waited, likewise.
    pub(crate) waits: Vec<(u64, u64)>,
    /// The most messages that were sent later than a fan-out message and came before it.
    pub(crate) overtaken_max: u64,
    /// CPU time in which a receiver read payloads, in nanoseconds.
    pub(crate) reading: u64,
}

/// A sender may be this far ahead, within 8 and 4096 messages.
const WINDOW_BYTES: usize = 4 << 20;

#[cfg(test)]
impl Plan {
    /// A fan-out of ours to 8 receivers.
    pub(crate) fn example(size: usize) -> Self {
        Self {
            system: System::Unisono,
            workload: Workload::Fanout,
            senders: 1,
            receivers: 8,
            size,
            batch: 1,
            limits: LimitsOf::Raised,
            limit: Limit::Count(1),
            pin: Vec::new(),
            slow: 0,
            reading: None,
            flagged: false,
            apart: false,
            dir: PathBuf::new(),
            port: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(limits: LimitsOf, size: usize) -> Limits {
        Plan { limits, ..Plan::example(size) }.limits()
    }

    #[test]
    fn raised_limits_let_a_sender_be_as_far_ahead_as_the_window_and_are_never_lower() {
        let default = Limits::default();
        let ours = limits(LimitsOf::Default, 64);
        assert_eq!(ours.lane_messages, default.lane_messages);
        assert_eq!(ours.queue_messages, default.queue_messages);
        let small = limits(LimitsOf::Raised, 64);
        assert_eq!((small.lane_messages, small.queue_messages), (4096, 4096));
        assert_eq!(small.lane_bytes, default.lane_bytes);
        let large = limits(LimitsOf::Raised, 1 << 20);
        assert_eq!((large.lane_messages, large.queue_messages), (64, 256));
        assert_eq!((large.lane_bytes, large.queue_bytes), (8 << 20, 8 << 20));
        let four = Plan { senders: 4, ..Plan::example(64) }.limits();
        assert_eq!((four.lane_messages, four.queue_messages), (4096, 4 * 4096));
    }
}
