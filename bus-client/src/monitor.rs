//! Monitors: seeing everything that happens on the bus, without anybody waiting for it.

use bus_core::wire::{Request, Response};
use bus_core::{EndpointId, GroupId, GroupName, Sequence};

use crate::bus::Endpoint;
use crate::error::WatchError;
use crate::message::{Gap, Message};
use crate::state::Purpose;

/// A copy of a message that went elsewhere. It has no descriptors.
#[derive(Debug)]
#[non_exhaustive]
pub struct Monitored {
    /// Where it went.
    pub to: Addressee,
    /// The message; [`missed`](Message::missed) tells what this monitor missed just before it.
    pub message: Message,
}

/// Where a message went that a monitor sees.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Addressee {
    /// To a group.
    #[non_exhaustive]
    Group {
        /// Its id.
        id: Option<GroupId>,
        /// Its name.
        name: Option<GroupName>,
    },
    /// To one endpoint.
    Endpoint(EndpointId),
}

impl Addressee {
    /// The group's name, if it went to a group.
    #[must_use]
    pub fn group(&self) -> Option<&GroupName> {
        match self {
            Self::Group { name, .. } => name.as_ref(),
            Self::Endpoint(_) => None,
        }
    }
}

/// A loss of all that a monitor sees: of no group.
pub(crate) fn gap(gap: bus_core::Gap) -> Gap {
    let group_id = GroupId::from_raw(0);
    Gap { group: None, group_id, count: gap.count, first: gap.first, last: gap.last }
}

impl Endpoint {
    /// Makes this endpoint a monitor: every message that is committed from the returned place on
    /// comes as [`Event::Monitored`](crate::Event::Monitored), whoever it is for, and every change
    /// of a membership as [`Event::MonitoredView`](crate::Event::MonitoredView); only those of one
    /// group if it is named. Nobody waits for a monitor: what it has no room for it misses, and is
    /// told. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// The policy does not let this program see everything, or there are enough monitors.
    pub fn monitor(&self, group: Option<&str>) -> Result<Sequence, WatchError> {
        let group = group.map(str::parse::<GroupName>).transpose()?;
        self.ask_monitor(Request::Monitor { group })
    }

    /// Ends that. What was copied before may still come. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// It is no monitor, or the connection has ended.
    pub fn unmonitor(&self) -> Result<Sequence, WatchError> {
        self.ask_monitor(Request::Unmonitor)
    }

    fn ask_monitor(&self, request: Request) -> Result<Sequence, WatchError> {
        let answer =
            self.inner.connection.call(self.inner.key, Purpose::Plain, request, |response| {
                match response {
                    Response::Monitoring { sequence } | Response::Unmonitored { sequence } => {
                        Some(sequence)
                    }
                    _ => None,
                }
            });
        answer.map_err(WatchError::from_any_call)
    }
}
