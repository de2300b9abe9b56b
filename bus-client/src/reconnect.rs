//! Going on when the broker has ended and another has taken its place: how often to try, and what
//! is told of it.
//!
//! Invariant: nothing is lost without a word, and nothing comes twice. What had arrived can still be
//! received; then [`Event::Reconnected`](crate::Event::Reconnected) stands between the end of one
//! connection and the beginning of the next, in each endpoint's events; and all that comes later was
//! sent after the places that it names. What had been sent and not answered is
//! [`SendError::Unknown`](crate::SendError::Unknown), and is not sent again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use bus_core::{EndpointId, GroupName, Sequence};

/// How a connection comes back when its broker has ended; see
/// [`Builder::reconnect`](crate::Builder::reconnect).
///
/// ```
/// use std::time::Duration;
///
/// use bus_client::Reconnect;
///
/// let patient = Reconnect::new().longest(Duration::from_secs(30));
/// let hasty = Reconnect::new().give_up_after(Some(Duration::from_secs(2)));
/// # assert_ne!(patient, hasty);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconnect {
    first: Duration,
    longest: Duration,
    give_up_after: Option<Duration>,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self::new()
    }
}

impl Reconnect {
    /// Tries at once, then after 50 ms or somewhat less, then twice that and so on up to 5 s; never
    /// gives up.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            first: Duration::from_millis(50),
            longest: Duration::from_secs(5),
            give_up_after: None,
        }
    }

    /// The pause after the first attempt that has failed; it doubles with each further one. At least
    /// 1 ms.
    #[must_use]
    pub fn first(mut self, pause: Duration) -> Self {
        self.first = pause.max(LEAST);
        self
    }

    /// The longest pause.
    #[must_use]
    pub fn longest(mut self, pause: Duration) -> Self {
        self.longest = pause.max(LEAST);
        self
    }

    /// For how long to try after a loss, or without an end. Then the connection has ended, as one
    /// that does not come back.
    #[must_use]
    pub const fn give_up_after(mut self, time: Option<Duration>) -> Self {
        self.give_up_after = time;
        self
    }

    pub(crate) fn patience(&self) -> Option<Duration> {
        self.give_up_after
    }

    pub(crate) fn calm(&self) -> Duration {
        self.longest
    }

    /// How long to rest after so many failures in a row: between half of the doubled pause and all
    /// of it, so that the clients of one broker do not come back all at the same instant.
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(20));
        let most = doubled.min(self.longest);
        // A fresh state is seeded at random; more randomness than this is not needed.
        let part = RandomState::new().build_hasher().finish() % 1024;
        let part = u32::try_from(part).unwrap_or_default();
        most / 2 + most / 2 * part / 1024
    }
}

/// The connection to the bus was lost, and is there again. See
/// [`Event::Reconnected`](crate::Event::Reconnected).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reconnected {
    /// The incarnation of the bus that was lost. Ids and sequences of it mean nothing any more.
    pub before: [u8; 16],
    /// The highest sequence there that this endpoint was told of. What was later may be missing.
    pub last: Option<Sequence>,
    /// How many connections came and were lost in between, of which nothing is told: the endpoint
    /// had too much unread for that.
    pub skipped: u32,
    /// The incarnation now. It is the old one if only the connection was lost.
    pub incarnation: [u8; 16],
    /// The endpoint's new id.
    pub endpoint: EndpointId,
    /// What the endpoint had, in the order in which it had come by it.
    pub restored: Vec<Restored>,
}

impl Reconnected {
    /// Where the endpoint is a member of the group again: every later message comes. None if it was
    /// no member, or is not yet one again.
    #[must_use]
    pub fn joined(&self, group: &str) -> Option<Sequence> {
        self.restored.iter().find_map(|restored| match (&restored.what, &restored.fate) {
            (Possession::Member(name), Fate::At(at)) if name.as_str() == group => Some(*at),
            _ => None,
        })
    }
}

/// Something that an endpoint had on the bus, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// What it had.
    pub what: Possession,
    /// What became of it.
    pub fate: Fate,
}

/// Something that an endpoint has on the bus, beside its queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Possession {
    /// A membership. It is asked for with the same options, the present filter among them.
    Member(GroupName),
    /// A group that it has created.
    Group(GroupName),
    /// A gated group that it owns. Its members have to be admitted again.
    Gate(GroupName),
    /// A name that it owns or waits for.
    Name(GroupName),
    /// A watch on a group's members.
    Watch(GroupName),
    /// A watch on a name's owners.
    NameWatch(GroupName),
    /// It is a monitor, of one group or of all.
    Monitor(Option<GroupName>),
    /// It receives no more ([`shutdown_receive`](crate::Endpoint::shutdown_receive)).
    Shutdown,
}

/// What became of something after a reconnection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// It is there again, from this place in the order on.
    At(Sequence),
    /// It was asked for, and could not be had so far: its group is not there yet, or its owner has
    /// not decided. It is asked for again, and [`Event::Restored`](crate::Event::Restored) tells
    /// when that has come to an end.
    Waiting {
        /// Why, as a code of the wire protocol. Empty where the owner has not decided.
        code: String,
    },
    /// It is lost. The application may ask for it itself.
    Lost {
        /// Why, as a code of the wire protocol.
        code: String,
        /// Why, for people.
        text: String,
    },
}

/// The shortest pause between two attempts.
const LEAST: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_differ() {
        let ms = Duration::from_millis;
        let policy = Reconnect::new().first(ms(100)).longest(ms(1000));
        for (failures, most) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (60, 1000)] {
            for _ in 0..50 {
                let pause = policy.pause(failures);
                assert!((ms(most) / 2..=ms(most)).contains(&pause), "{failures}: {pause:?}");
            }
        }
        let pauses: Vec<_> = (0..20).map(|_| policy.pause(9)).collect();
        assert!(pauses.iter().any(|pause| *pause != pauses[0]), "all alike: {pauses:?}");
    }
}
