//! What the bus says about itself. All of it can be written as JSON with the field names that
//! the command line shows.

use std::time::Duration;

use bus_core::wire::inside::QueueTimes;
use bus_core::{EndpointId, GroupId, GroupName, Limits, MemberFlags, Retain, Sequence, wire};
use serde::Serialize;

use crate::gated::Admission;

/// A group, as [`Endpoint::groups`](crate::Endpoint::groups) lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GroupInfo {
    /// Its name.
    pub name: GroupName,
    /// Its id; a group that is created anew under the same name has another.
    pub group_id: GroupId,
    /// How many members it has.
    pub members: u32,
    /// Who created it, if that endpoint still lives.
    pub creator: Option<EndpointId>,
    /// What it retains for those who join later.
    pub retain: Option<Retain>,
    /// Its creator decides who is a member.
    pub gated: bool,
}

/// The members of a group at one place in the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Members {
    /// The place in the order at which this list holds.
    pub sequence: Sequence,
    /// The members, by rising endpoint id.
    pub members: Vec<MemberInfo>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemberInfo {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// User id of its process.
    pub uid: u32,
    /// Its process.
    pub pid: u32,
    /// Names of the member flags that are set: `loopback`, `drop-when-full`.
    pub flags: Vec<String>,
    /// Messages in its queue.
    pub queued_messages: u64,
    /// Bytes in its queue.
    pub queued_bytes: u64,
    /// Messages that its queue holds.
    pub capacity: u64,
    /// Messages that it has missed.
    pub dropped: u64,
    /// Since which place in the order it has been without room.
    pub full_since_sequence: Option<Sequence>,
    /// How many waiting sends wait for it.
    pub blocks: u64,
}

impl MemberInfo {
    /// A member of which nothing is known but whose it is.
    pub(crate) fn new(endpoint: EndpointId, uid: u32, pid: u32) -> Self {
        Self {
            endpoint,
            uid,
            pid,
            flags: Vec::new(),
            queued_messages: 0,
            queued_bytes: 0,
            capacity: 0,
            dropped: 0,
            full_since_sequence: None,
            blocks: 0,
        }
    }
}

/// The bus's live counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Sends that wait for room now.
    pub waiting_sends: u64,
    /// Requests that have no outcome yet.
    pub open_requests: u64,
    /// Endpoints that exist now.
    pub endpoints: u64,
    /// Groups that exist now.
    pub groups: u64,
    /// Well-known names that are claimed or watched now.
    pub names: u64,
    /// Connections now.
    pub connections: u64,
    /// Messages committed since the start.
    pub messages: u64,
    /// Bytes of these, attributes and payloads, each counted once.
    pub message_bytes: u64,
    /// Messages put into queues since the start: one message to three members counts three.
    pub deliveries: u64,
    /// Messages that drop-when-full members have missed since the start.
    pub dropped: u64,
    /// Sends refused since the start.
    pub refused: u64,
    /// Connections ended since the start because their program broke the protocol.
    pub protocol_errors: u64,
    /// Bytes read from connections since the start.
    pub bytes_read: u64,
    /// Bytes written to connections since the start.
    pub bytes_written: u64,
    /// Connections refused since the start because there were as many as there may be.
    pub connections_refused: u64,
    /// Times since the start that memory which was needed no more was given back to the system.
    pub memory_given_back: u64,
    /// Lines that were not logged since the start, because many were like them.
    pub log_lines_suppressed: u64,
    /// Lines that were logged since the start and not written, because nobody took them.
    pub log_lines_lost: u64,
    /// How long the broker has been running, in microseconds.
    pub uptime_us: u64,
    /// How long messages were in queues.
    pub time_in_queue: QueueTimes,
}

/// What the broker is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// The broker's version.
    pub version: String,
    /// Version of the wire protocol on this connection.
    pub protocol: u16,
    /// Where it listens, if it says so.
    pub address: Option<String>,
    /// The bus's incarnation, in hexadecimal.
    pub incarnation: String,
    /// The broker's process.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_seconds: u64,
    /// Its limits.
    pub limits: Limits,
}

/// What a join did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Joined {
    /// The group's id.
    pub group_id: GroupId,
    /// The place of the join in the order: every later message of the group arrives (G4).
    pub sequence: Sequence,
    /// Whether the join created the group.
    pub created: bool,
    /// How many members there are now, this one included.
    pub members: u32,
    /// In a gated group: who has admitted it, and how.
    pub admission: Option<Admission>,
}

/// How long a ping took.
pub type RoundTrip = Duration;

/// What a reload has come to, see [`Bus::reload`](crate::Endpoint::reload).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reloaded {
    /// How many rules there are now beside the built-in one.
    pub rules: u32,
    /// What has changed and is not in force: each with what it takes.
    pub pending: Vec<String>,
}

impl From<wire::GroupInfo> for GroupInfo {
    fn from(info: wire::GroupInfo) -> Self {
        Self {
            name: info.name,
            group_id: info.group_id,
            members: info.members,
            creator: info.creator,
            retain: info.retain,
            gated: info.gated,
        }
    }
}

impl From<wire::MemberInfo> for MemberInfo {
    fn from(info: wire::MemberInfo) -> Self {
        Self {
            endpoint: info.endpoint,
            uid: info.uid,
            pid: info.pid,
            flags: flag_names(info.flags),
            queued_messages: info.queued_messages,
            queued_bytes: info.queued_bytes,
            capacity: info.capacity,
            dropped: info.dropped,
            full_since_sequence: info.full_since_sequence,
            blocks: info.blocks,
        }
    }
}

impl From<wire::Stats> for Stats {
    fn from(stats: wire::Stats) -> Self {
        Self {
            waiting_sends: stats.waiting_sends,
            open_requests: stats.open_requests,
            endpoints: stats.endpoints,
            groups: stats.groups,
            names: stats.names,
            connections: stats.connections,
            messages: stats.messages,
            message_bytes: stats.message_bytes,
            deliveries: stats.deliveries,
            dropped: stats.dropped,
            refused: stats.refused,
            protocol_errors: stats.protocol_errors,
            bytes_read: stats.bytes_read,
            bytes_written: stats.bytes_written,
            connections_refused: stats.connections_refused,
            memory_given_back: stats.memory_given_back,
            log_lines_suppressed: stats.log_lines_suppressed,
            log_lines_lost: stats.log_lines_lost,
            uptime_us: stats.uptime_us,
            time_in_queue: stats.time_in_queue,
        }
    }
}

impl From<wire::Status> for Status {
    fn from(status: wire::Status) -> Self {
        Self {
            version: status.version,
            protocol: status.protocol,
            address: status.address,
            incarnation: status.incarnation.to_string(),
            pid: status.pid,
            uptime_seconds: status.uptime_seconds,
            limits: status.limits,
        }
    }
}

pub(crate) fn flag_names(flags: MemberFlags) -> Vec<String> {
    let names = [
        (MemberFlags::LOOPBACK, "loopback"),
        (MemberFlags::SEND_TO_PEER, "send-to-peer"),
        (MemberFlags::DROP_WHEN_FULL, "drop-when-full"),
        (MemberFlags::LEAVE_WHEN_FULL, "leave-when-full"),
    ];
    let set = names.iter().filter(|(flag, _)| flags.contains(*flag));
    set.map(|(_, name)| (*name).to_owned()).collect()
}
