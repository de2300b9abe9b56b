//! Every bound of the bus (G8), with its unit.
//!
//! These are the values that SPEC.md section 7 fixes for wire version 1. The broker reads them
//! from `[limits]` in its configuration, tells them to each client in its greeting, and shows them
//! in `unisono status`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The bounds of one bus.
///
/// ```
/// use bus_core::Limits;
///
/// let limits = Limits { queue_messages: 4, ..Limits::default() };
/// assert!(limits.check().is_ok());
/// assert!(Limits { queue_messages: 0, ..Limits::default() }.check().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Messages that an endpoint's queue holds before it has no room.
    pub queue_messages: u32,
    /// Bytes that an endpoint's queue holds before it has no room. The message that crosses this
    /// limit is still taken.
    pub queue_bytes: u64,
    /// Bytes of one inline payload.
    pub payload_bytes: u32,
    /// File descriptors of one message.
    pub descriptors: u8,
    /// Messages of one lane that may wait at the broker.
    pub lane_messages: u32,
    /// Bytes of one lane that may wait at the broker. The message that crosses it is still taken.
    pub lane_bytes: u64,
    /// Memberships of one endpoint.
    pub memberships: u16,
    /// Candidates of one gated group that wait for its owner's decision, unless the owner has asked
    /// for fewer; and those that one owner has not yet taken note of.
    pub backlog: u16,
    /// Messages that a peer endpoint may hold of its owner's queue; half of the queue at most.
    pub peer_messages: u32,
    /// Bytes that a peer endpoint may hold of its owner's queue; half of the queue at most. The
    /// message that crosses this limit is still taken.
    pub peer_bytes: u64,
    /// Lanes of one endpoint.
    pub lanes: u8,
    /// Writability watches of one endpoint that may be outstanding.
    pub watches: u16,
    /// Monitors of one bus.
    pub monitors: u16,
    /// Members of one group.
    pub members: u32,
    /// Bytes of the filters that one endpoint has in all its memberships: what they compare, 8 for
    /// each instruction of a program, and 64 for each condition.
    pub filter_bytes: u32,
    /// Instructions of all programs that filter for the members of one group. A send to the group
    /// may run them all.
    pub filter_instructions: u32,
    /// Groups of one bus.
    pub groups: u32,
    /// Groups that one endpoint has created and that still live.
    pub groups_created: u32,
    /// Messages that the living groups which one endpoint has created retain together.
    pub retained_messages: u32,
    /// Bytes of these. Also how many an endpoint may have before it that it has not read.
    pub retained_bytes: u64,
    /// Well-known names of one bus that are claimed or watched.
    pub names: u32,
    /// Names that one endpoint owns or waits for.
    pub names_claimed: u16,
    /// Endpoints that own one name or wait for it.
    pub name_claims: u16,
    /// Bytes of what a service says of itself.
    pub description_bytes: u32,
    /// Endpoints of one bus.
    pub endpoints: u32,
    /// Endpoints of one connection.
    pub endpoints_per_connection: u16,
    /// Connections of one broker.
    pub connections: u32,
    /// Connections of one user. Half of each limit of a user is divided among these, see [`Ledger`](crate::Ledger).
    pub user_connections: u64,
    /// Endpoints of one user's connections.
    pub user_endpoints: u64,
    /// Sends of one user that wait at the broker.
    pub user_messages: u64,
    /// Bytes of one user's sends that wait at the broker.
    pub user_bytes: u64,
    /// Descriptors that one user has sent and that not all recipients have taken.
    pub user_descriptors: u64,
    /// Memberships of one user's endpoints.
    pub user_memberships: u64,
    /// Groups that one user's endpoints have created and that still live.
    pub user_groups: u64,
    /// Bytes that these may retain together.
    pub user_retained_bytes: u64,
    /// Names that one user's endpoints own or wait for.
    pub user_names: u64,
    /// Bytes of one user's filters.
    pub user_filter_bytes: u64,
    /// Requests of one user's endpoints that have no outcome yet.
    pub user_requests: u64,
    /// Bytes of memory that is shared with one user's processes, and of the payloads that these have
    /// lent and that are not completed.
    pub user_pinned_bytes: u64,
    /// Connections that one user may make in a second, half of them by one process.
    pub user_connection_rate: u64,
    /// How long an endpoint may stay full while others wait for it before it is stalled (G8). With
    /// [`Duration::MAX`] never; no configuration can say that, so it is for a bus within a process
    /// and for embedded brokers.
    #[serde(with = "duration_text")]
    pub stall: Duration,
    /// Listings of one connection that are under way.
    pub listings: u16,
    /// Requests of one endpoint that have no outcome yet.
    pub requests: u16,
    /// Bytes of a reply for which its request keeps room. A longer one waits for room in its
    /// caller's queue.
    pub reply_bytes: u32,
    /// Flagged sends of one connection that are lent, or completed and unread.
    pub completions: u32,
    /// Bytes of the memory in which a broker puts payloads for its clients to read.
    pub arena_bytes: u64,
    /// How long a payload may stay lent before the broker copies it for those who have not read it.
    #[serde(with = "duration_text")]
    pub lent: Duration,
    /// Deadline of a request that names none.
    #[serde(with = "duration_text")]
    pub request_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue_messages: 256,
            queue_bytes: 1 << 20,
            payload_bytes: 16 << 20,
            descriptors: 16,
            lane_messages: 64,
            lane_bytes: 1 << 20,
            memberships: 64,
            backlog: 64,
            peer_messages: 32,
            peer_bytes: 128 << 10,
            lanes: 16,
            watches: 64,
            monitors: 8,
            members: 10_000,
            filter_bytes: 65_536,
            filter_instructions: 16_384,
            groups: 65_536,
            groups_created: 1_024,
            retained_messages: 16_384,
            retained_bytes: 8 << 20,
            names: 65_536,
            names_claimed: 64,
            name_claims: 256,
            description_bytes: 16 << 10,
            endpoints: 65_536,
            endpoints_per_connection: 64,
            connections: 16_384,
            listings: 4,
            requests: 64,
            reply_bytes: 4_096,
            user_connections: 2_048,
            user_endpoints: 49_152,
            user_messages: 65_536,
            user_bytes: 256 << 20,
            user_descriptors: 4_096,
            user_memberships: 65_536,
            user_groups: 16_384,
            user_retained_bytes: 256 << 20,
            user_names: 8_192,
            user_filter_bytes: 32 << 20,
            user_requests: 65_536,
            user_pinned_bytes: 1 << 30,
            user_connection_rate: 5_000,
            completions: 1_024,
            arena_bytes: 256 << 20,
            lent: Duration::from_secs(1),
            stall: Duration::from_secs(10),
            request_deadline: Duration::from_secs(25),
        }
    }
}

/// A limit that cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("limit {name} is {given}, and must be between {least} and {most}")]
#[non_exhaustive]
pub struct LimitError {
    /// Which field of [`Limits`].
    pub name: &'static str,
    /// What it was set to; durations in milliseconds.
    pub given: u64,
    /// The least that is accepted.
    pub least: u64,
    /// The most that is accepted.
    pub most: u64,
}

impl Limits {
    /// Checks every bound once, so that nothing is ever truncated silently later.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn check(&self) -> Result<(), LimitError> {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let stall = if self.stall == Duration::MAX { 600_000 } else { millis(self.stall) };
        let rows: &[(&'static str, u64, u64, u64)] = &[
            ("queue_messages", self.queue_messages.into(), 1, 1 << 20),
            ("queue_bytes", self.queue_bytes, 1, 1 << 40),
            ("payload_bytes", self.payload_bytes.into(), 1, 16 << 20),
            ("descriptors", self.descriptors.into(), 0, 16),
            ("lane_messages", self.lane_messages.into(), 1, 1 << 16),
            ("lane_bytes", self.lane_bytes, 1, 1 << 40),
            ("memberships", self.memberships.into(), 1, 4_096),
            ("backlog", self.backlog.into(), 1, 4_096),
            ("peer_messages", self.peer_messages.into(), 1, 1 << 20),
            ("peer_bytes", self.peer_bytes, 1, 1 << 40),
            ("lanes", self.lanes.into(), 1, 16),
            ("watches", self.watches.into(), 0, 4_096),
            ("monitors", self.monitors.into(), 0, 64),
            ("members", self.members.into(), 1, 1 << 20),
            ("filter_bytes", self.filter_bytes.into(), 0, 1 << 24),
            ("filter_instructions", self.filter_instructions.into(), 0, 1 << 24),
            ("groups", self.groups.into(), 1, 1 << 24),
            ("groups_created", self.groups_created.into(), 1, 1 << 20),
            ("retained_messages", self.retained_messages.into(), 0, 1 << 20),
            ("retained_bytes", self.retained_bytes, 0, 1 << 40),
            ("names", self.names.into(), 1, 1 << 24),
            ("names_claimed", self.names_claimed.into(), 0, 4_096),
            ("name_claims", self.name_claims.into(), 1, 4_096),
            ("description_bytes", self.description_bytes.into(), 0, 32 << 10),
            ("endpoints", self.endpoints.into(), 1, 1 << 24),
            ("endpoints_per_connection", self.endpoints_per_connection.into(), 1, 4_096),
            ("connections", self.connections.into(), 1, 1 << 20),
            ("listings", self.listings.into(), 1, 1_024),
            ("requests", self.requests.into(), 0, 1_024),
            ("reply_bytes", self.reply_bytes.into(), 0, 1 << 20),
            ("user_connections", self.user_connections, 1, 1 << 20),
            ("user_endpoints", self.user_endpoints, 1, 1 << 24),
            ("user_messages", self.user_messages, 1, 1 << 24),
            ("user_bytes", self.user_bytes, 1, 1 << 40),
            ("user_descriptors", self.user_descriptors, 0, 1 << 20),
            ("user_memberships", self.user_memberships, 1, 1 << 24),
            ("user_groups", self.user_groups, 1, 1 << 24),
            ("user_retained_bytes", self.user_retained_bytes, 0, 1 << 40),
            ("user_names", self.user_names, 0, 1 << 24),
            ("user_filter_bytes", self.user_filter_bytes, 0, 1 << 40),
            ("user_requests", self.user_requests, 0, 1 << 24),
            ("user_pinned_bytes", self.user_pinned_bytes, 0, 1 << 40),
            ("user_connection_rate", self.user_connection_rate, 1, 1 << 20),
            ("completions", self.completions.into(), 1, 1 << 20),
            ("arena_bytes", self.arena_bytes, 0, 1 << 40),
            ("lent", millis(self.lent), 1, 600_000),
            ("stall", stall, 100, 600_000),
            ("request_deadline", millis(self.request_deadline), 1, 86_400_000),
        ];
        for &(name, given, least, most) in rows {
            if !(least..=most).contains(&given) {
                return Err(LimitError { name, given, least, most });
            }
        }
        Ok(())
    }
}

/// Durations as text with a unit (`"10s"`, `"250ms"`), or a whole number of seconds: for
/// `#[serde(with)]` in configurations.
#[doc(hidden)]
pub mod duration_text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes milliseconds.
    ///
    /// # Errors
    ///
    /// The serializer's.
    pub fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format!("{}ms", d.as_millis()))
    }

    /// Reads either form.
    ///
    /// # Errors
    ///
    /// It is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Seconds(u64),
            Text(String),
        }
        match Form::deserialize(d)? {
            Form::Seconds(n) => Ok(Duration::from_secs(n)),
            Form::Text(text) => parse(&text).ok_or_else(|| {
                de::Error::custom(format!(
                    "{text:?} is not a duration such as \"10s\" or \"250ms\""
                ))
            }),
        }
    }

    fn parse(text: &str) -> Option<Duration> {
        if let Some(n) = text.strip_suffix("ms") {
            n.parse().ok().map(Duration::from_millis)
        } else if let Some(n) = text.strip_suffix("min") {
            n.parse::<u64>().ok()?.checked_mul(60).map(Duration::from_secs)
        } else {
            text.strip_suffix('s').unwrap_or(text).parse().ok().map(Duration::from_secs)
        }
    }
}

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_specified_ones_and_pass() {
        let limits = Limits::default();
        assert_eq!(limits.check(), Ok(()));
        assert_eq!((limits.queue_messages, limits.queue_bytes), (256, 1 << 20));
        assert_eq!((limits.lane_messages, limits.memberships, limits.lanes), (64, 64, 16));
        assert_eq!((limits.members, limits.descriptors), (10_000, 16));
    }

    #[test]
    fn stall_is_checked_at_both_ends() {
        for (millis, good) in [(99, false), (100, true), (600_000, true), (600_001, false)] {
            let limits = Limits { stall: Duration::from_millis(millis), ..Limits::default() };
            assert_eq!(limits.check().is_ok(), good, "{millis} ms");
        }
    }
}
