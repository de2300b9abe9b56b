//! Seeing inside over the wire: what LOOK asks for, and what is seen.
//!
//! Lists come in parts, as all lists do: `after` is the last of the part before, `max` how many at
//! most, and `more` says whether to go on. Counters count since the start of what they are about.
//! Times are whole microseconds. All of it is for people and for what watches over the bus, so keys
//! are added freely; a reader passes over those that it does not know.

use serde::{Deserialize, Serialize};

use crate::{DWELL_BOUNDS, EndpointId, GroupId, GroupName, NameId, Sequence, TimeInQueue};

/// Entries of one part of a list here that a broker gives at most: they fit one frame.
pub const MAX_LOOK: u32 = 256;

/// Bytes of a program's name in [`Whose`] at most.
pub const MAX_PROGRAM_BYTES: usize = 64;

/// What is asked for with [`Request::Look`](super::Request::Look).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Look {
    /// Groups by name, with what was sent to them. Answered by [`Seen::Groups`].
    Groups {
        /// Where to go on: the last name of the part before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<GroupName>,
        /// How many at most.
        max: u32,
    },
    /// Endpoints by id, with what goes in and out of them. Answered by [`Seen::Endpoints`].
    Endpoints {
        /// Where to go on: the last endpoint of the part before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<EndpointId>,
        /// How many at most.
        max: u32,
    },
    /// Connections by number. Answered by [`Seen::Connections`].
    Connections {
        /// Where to go on: the last number of the part before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
        /// How many at most.
        max: u32,
    },
    /// Sends that wait, those that came first first. Answered by [`Seen::Waits`].
    Waits {
        /// Where to go on: the last ticket of the part before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
        /// How many at most.
        max: u32,
    },
    /// What comes in beside the bus's own protocol. Answered by [`Seen::Ingresses`].
    Ingresses,
    /// What became of a message. Answered by [`Seen::Why`].
    Why {
        /// Its place in the order.
        sequence: Sequence,
        /// Where to go on: the last recipient of the part before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<EndpointId>,
        /// How many recipients at most.
        max: u32,
    },
    /// The last sends that were refused, the youngest first. Answered by [`Seen::Refusals`].
    Refusals {
        /// Only those of this endpoint, to it, or for want of its room.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<EndpointId>,
        /// Only those to this group.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<GroupName>,
        /// How many at most.
        max: u32,
    },
}

/// What is seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Seen {
    /// To [`Look::Groups`].
    Groups {
        /// One part, ascending by name.
        groups: Vec<GroupTraffic>,
        /// Whether there are more after the last.
        more: bool,
    },
    /// To [`Look::Endpoints`].
    Endpoints {
        /// One part, ascending by endpoint.
        endpoints: Vec<EndpointTraffic>,
        /// Whether there are more after the last.
        more: bool,
    },
    /// To [`Look::Connections`].
    Connections {
        /// One part, ascending by number.
        connections: Vec<ConnectionTraffic>,
        /// Whether there are more after the last.
        more: bool,
    },
    /// To [`Look::Waits`].
    Waits {
        /// One part, ascending by ticket.
        waits: Vec<WaitingSend>,
        /// Whether there are more after the last.
        more: bool,
    },
    /// To [`Look::Ingresses`].
    Ingresses {
        /// All of them, in the order of the configuration.
        ingresses: Vec<IngressTraffic>,
    },
    /// To [`Look::Why`].
    Why(Box<Story>),
    /// To [`Look::Refusals`].
    Refusals {
        /// The youngest first.
        refusals: Vec<Refusal>,
    },
}

/// A group, and what was sent to it since it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupTraffic {
    /// Its name.
    pub group: GroupName,
    /// Its id.
    pub group_id: GroupId,
    /// How many members it has.
    pub members: u32,
    /// Messages committed.
    pub messages: u64,
    /// Bytes of these, attributes and payloads, each once.
    pub bytes: u64,
    /// Messages put into queues: one with three recipients counts three.
    pub deliveries: u64,
    /// Deliveries that did not happen because a drop-when-full member had no room.
    pub dropped: u64,
}

/// Whose an endpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Whose {
    /// User id of its process, from its `connect()`.
    pub uid: u32,
    /// Process id, from its `connect()`.
    pub pid: u32,
    /// Its connection's number, as logs have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<u64>,
    /// The program: its command's name as the system has it, or what it calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
}

/// An endpoint, and what has gone in and out of it since it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointTraffic {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whose it is.
    pub of: Whose,
    /// Groups that it is a member of, some of them.
    pub groups: Vec<GroupName>,
    /// How many those are.
    pub memberships: u32,
    /// Messages put into its queue, notices that take a place included.
    pub received_messages: u64,
    /// Bytes of these.
    pub received_bytes: u64,
    /// Messages that it has sent.
    pub sent_messages: u64,
    /// Bytes of these.
    pub sent_bytes: u64,
    /// Sends of its that were refused.
    pub refused: u64,
    /// Sends of its that had to wait for room.
    pub waits: u64,
    /// How long these have waited.
    pub waited_us: u64,
    /// Messages in its queue that it has not taken.
    pub queued_messages: u64,
    /// Bytes of these.
    pub queued_bytes: u64,
    /// Messages that its queue holds before it has no room.
    pub capacity: u64,
    /// The sequence at which its queue became full, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_since_sequence: Option<Sequence>,
    /// Messages that its drop-when-full memberships have missed.
    pub dropped: u64,
    /// Sends that wait for it now.
    pub blocks: u64,
    /// Sends that have waited for it, and do no more.
    pub blocked_sends: u64,
    /// How long these have waited for it.
    pub blocked_us: u64,
    /// Its requests that have no outcome yet.
    pub open_requests: u64,
    /// How long messages were in its queue.
    pub time_in_queue: QueueTimes,
}

/// How long messages were in a queue: from their commits until the application had taken them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueTimes {
    /// How many there were.
    pub messages: u64,
    /// Their times, all together.
    pub total_us: u64,
    /// Half of them took at most this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<u64>,
    /// 99 of 100 took at most this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
    /// How many took at most 100 us, 300 us, 1 ms, 3 ms and so on up to 10 s, and longer; each one
    /// counted once.
    pub counts: Vec<u64>,
}

impl From<&TimeInQueue> for QueueTimes {
    fn from(times: &TimeInQueue) -> Self {
        let us = |duration: std::time::Duration| u64::try_from(duration.as_micros()).ok();
        Self {
            messages: times.count(),
            total_us: us(times.total).unwrap_or(u64::MAX),
            p50_us: times.at_most(500).and_then(us),
            p99_us: times.at_most(990).and_then(us),
            counts: times.counts.to_vec(),
        }
    }
}

impl QueueTimes {
    /// The upper ends of the ranges of `counts`, in microseconds; the last range has none.
    #[must_use]
    pub fn bounds_us() -> Vec<u64> {
        DWELL_BOUNDS.iter().map(|nanos| nanos / 1_000).collect()
    }
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionTraffic {
    /// Its number, as logs have it.
    pub connection: u64,
    /// User id of its process, from its `connect()`.
    pub uid: u32,
    /// Process id, from its `connect()`.
    pub pid: u32,
    /// The name of its process's command, as the system has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// What the program calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_itself: Option<String>,
    /// The identity of the ingress that it came in at, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<String>,
    /// Endpoints that it has.
    pub endpoints: u32,
    /// Bytes read from it.
    pub bytes_read: u64,
    /// Bytes written to it.
    pub bytes_written: u64,
    /// How long it has been there.
    pub age_us: u64,
}

/// A send that waits, and for whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingSend {
    /// Rises in the order in which sends began to wait.
    pub ticket: u64,
    /// Who sends.
    pub sender: EndpointId,
    /// Whose endpoint that is.
    pub of: Whose,
    /// Where to.
    pub to: To,
    /// Bytes of the message.
    pub bytes: u64,
    /// How long it has waited.
    pub waited_us: u64,
    /// For whom it waits now: one endpoint, or workers that share a name, some of them.
    pub waits_for: Vec<Awaited>,
    /// How long it has waited for those; before, it waited for others.
    pub stood_us: u64,
}

/// An endpoint for which a send waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaited {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whose it is.
    pub of: Whose,
}

/// Where a message goes: one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct To {
    /// A group, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// A group, by id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_id: Option<GroupId>,
    /// An endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointId>,
    /// A well-known name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_id: Option<NameId>,
    /// The caller of this request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Sequence>,
}

impl To {
    /// A destination, and the group's name if that is known.
    #[must_use]
    pub fn new(to: crate::Destination, group: Option<GroupName>) -> Self {
        use crate::Destination::{Caller, Endpoint, Group, Name};
        let mut told = Self { group, ..Self::default() };
        match to {
            Group(id) => told.group_id = Some(id),
            Endpoint(id) => told.endpoint = Some(id),
            Name(id) => told.name_id = Some(id),
            Caller(request) => told.request = Some(request),
        }
        told
    }
}

/// An ingress, and what has come in at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressTraffic {
    /// Its identity.
    pub ingress: String,
    /// What it feeds, for people.
    pub feeds: String,
    /// Streams now.
    pub streams: u64,
    /// Streams since the start.
    pub accepted: u64,
    /// Streams that were closed at once because there were as many as there may be.
    pub refused: u64,
    /// Streams that ended with an error.
    pub failed: u64,
    /// Messages taken off streams.
    pub messages: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Replies put on streams.
    pub replies: u64,
}

/// What is known of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// Its place in the order, as it was asked for.
    pub sequence: Sequence,
    /// What the flight recorder knows.
    pub known: Known,
    /// With `too-old`: the oldest that is kept beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Sequence>,
    /// With `message`: who sent it, and all that follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<EndpointId>,
    /// Whose endpoint that was, if that is known still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Whose>,
    /// Where to.
    #[serde(default)]
    pub to: To,
    /// When it was committed, in nanoseconds since the Unix epoch.
    #[serde(default)]
    pub commit_time: u64,
    /// Its bytes, attributes and payload.
    #[serde(default)]
    pub bytes: u64,
    /// How many recipients it was queued for.
    #[serde(default)]
    pub recipients: u32,
    /// Something of what follows has been overwritten.
    #[serde(default)]
    pub incomplete: bool,
    /// One part of the recipients, ascending by endpoint.
    #[serde(default)]
    pub fates: Vec<Fate>,
    /// Whether there are more after the last.
    #[serde(default)]
    pub more: bool,
}

/// What the flight recorder knows of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Known {
    /// There is no flight recorder.
    Off,
    /// It was overwritten, if it ever was a message's.
    TooOld,
    /// No message has it: it is another event's, or has not been given yet.
    Unknown,
    /// What became of the message.
    Message,
}

/// What became of a message at one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fate {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whose it is, if that is known still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Whose>,
    /// The peer endpoint through which it came there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<EndpointId>,
    /// In a word: `taken`, `handed`, `queued`, `lost`, `gone`, `dropped`, `filtered`, `sender`,
    /// `put-out`, `unknown`.
    pub fate: String,
    /// With `lost` and `put-out`: where in the order the endpoint or its membership ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Sequence>,
    /// In words: by which rule or limit.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
}

impl From<&crate::RecipientFate> for Fate {
    fn from(told: &crate::RecipientFate) -> Self {
        use crate::Fate as F;
        let (fate, at, by) = match told.fate {
            F::Taken => ("taken", None, ""),
            F::Handed => ("handed", None, "the program has not said that it has taken it"),
            F::Queued => ("queued", None, "the program does not read, or its connection is full"),
            F::Lost(at) => ("lost", Some(at), "its endpoint was closed before it was taken"),
            F::Gone => ("gone", None, "its endpoint was closed; whether it was taken is not known"),
            F::Dropped => ("dropped", None, "no room in its queue, and its flag DROP_WHEN_FULL"),
            F::Filtered { own: true, owners: false } => ("filtered", None, "its own filter"),
            F::Filtered { own: false, owners: true } => {
                ("filtered", None, "the filter that the group's owner has set for it")
            }
            F::Filtered { .. } => ("filtered", None, "its own filter or the group's owner's"),
            F::Sender => ("sender", None, "it is the sender, without LOOPBACK"),
            F::PutOut(why, at) => {
                let by = match why {
                    crate::PutOut::Stalled => "the limit stall",
                    crate::PutOut::Full => "its flag LEAVE_WHEN_FULL",
                    crate::PutOut::Expelled => "the group's owner, who expelled it",
                    crate::PutOut::PeerClosed => "the group's owner, who closed the connection",
                };
                ("put-out", Some(at), by)
            }
            F::Unknown => ("unknown", None, "it has been overwritten"),
        };
        Self {
            endpoint: told.endpoint,
            of: None,
            peer: told.peer,
            fate: fate.to_owned(),
            at,
            by: by.to_owned(),
        }
    }
}

/// A send that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Who sent.
    pub sender: EndpointId,
    /// Whose endpoint that is.
    pub of: Whose,
    /// Where to.
    pub to: To,
    /// When, in nanoseconds since the Unix epoch.
    pub time: u64,
    /// Bytes of the message.
    pub bytes: u64,
    /// By which rule or limit, in words.
    pub by: String,
}
