//! Where messages go: a group by its name, or one endpoint by its id.

use std::time::Duration;

use bus_core::{EndpointId, GroupId, GroupName, Sequence};

use crate::bus::Lane;
use crate::error::{LeaveError, SendError};
use crate::info::Joined;
use crate::message::{Outgoing, Receipt};
use crate::send::{PendingSend, SendFuture};
use crate::watch::Writable;

/// How to join a group.
///
/// ```
/// use bus_client::JoinOptions;
///
/// // A dashboard: it may miss messages, and nobody waits for it.
/// let options = JoinOptions::new().drop_when_full(true);
/// assert_ne!(options, JoinOptions::new());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinOptions {
    pub(crate) loopback: bool,
    pub(crate) drop_when_full: bool,
    pub(crate) create: bool,
}

impl Default for JoinOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl JoinOptions {
    /// Creates the group if it does not exist; no loopback; senders wait for this member.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            loopback: false,
            drop_when_full: false,
            create: true,
        }
    }

    /// Whether the member's own messages come back to it.
    #[must_use]
    pub const fn loopback(mut self, yes: bool) -> Self {
        self.loopback = yes;
        self
    }

    /// Whether this member misses messages while its queue is full, rather than make senders
    /// wait. It is told what it missed.
    #[must_use]
    pub const fn drop_when_full(mut self, yes: bool) -> Self {
        self.drop_when_full = yes;
        self
    }

    /// Whether to create the group if it does not exist. True at first.
    #[must_use]
    pub const fn create(mut self, yes: bool) -> Self {
        self.create = yes;
        self
    }
}

/// A group to send to, by its name. One need not be a member. Cheap to clone.
///
/// The broker knows groups by id. The handle looks the id up when it is first needed, and once
/// more when the group it knew has ended and another has taken the name.
#[derive(Clone, Debug)]
pub struct Group {}

/// A membership. It ends with [`leave`](Self::leave), or with its endpoint; dropping the handle
/// ends nothing, so that a program which only receives need not keep it.
///
/// It is a [`Group`] to send to as well.
#[derive(Clone, Debug)]
pub struct Member {
    group: Group,
}

impl std::ops::Deref for Member {
    type Target = Group;

    fn deref(&self) -> &Group {
        &self.group
    }
}

impl Member {
    /// What the join did: the place in the order, whether it created the group, how many members.
    #[must_use]
    pub fn joined(&self) -> &Joined {
        unimplemented!()
    }

    /// Leaves the group. Nothing later than the returned place arrives; what came earlier may
    /// still be in the queue. Blocks for one round trip.
    ///
    /// # Errors
    ///
    /// Not a member any more, or the connection has ended.
    pub fn leave(&self) -> Result<Sequence, LeaveError> {
        unimplemented!()
    }
}

macro_rules! sending {
    ($type:ident) => {
        impl $type {
            /// Sends, and waits until the message has its place in the order: until every
            /// recipient has room. Meanwhile messages that arrive are taken into a bounded
            /// backlog, so that programs that wait for each other go on.
            ///
            /// # Errors
            ///
            /// See [`SendError`]; [`WouldDeadlock`](SendError::WouldDeadlock) when this program
            /// must read first.
            pub fn send(&self, message: impl Into<Outgoing>) -> Result<Receipt, SendError> {
                let _ = message.into();
                unimplemented!()
            }

            /// Sends if every recipient has room now. Blocks for one round trip to the broker,
            /// never for a recipient.
            ///
            /// # Errors
            ///
            /// [`WouldBlock`](SendError::WouldBlock) names those without room.
            pub fn try_send(&self, message: impl Into<Outgoing>) -> Result<Receipt, SendError> {
                let _ = message.into();
                unimplemented!()
            }

            /// As [`send`](Self::send), but gives up once `timeout` has passed. Then the broker
            /// is asked to cancel, and its word decides: a receipt if the message was faster.
            ///
            /// # Errors
            ///
            /// [`TimedOut`](SendError::TimedOut): it reached nobody.
            pub fn send_deadline(
                &self,
                message: impl Into<Outgoing>,
                timeout: Duration,
            ) -> Result<Receipt, SendError> {
                let _ = (message.into(), timeout);
                unimplemented!()
            }

            /// Sends without waiting for the receipt. Blocks while the lane's window is full
            /// (64 messages or 1 MiB unanswered, unless the broker says otherwise).
            ///
            /// Messages of one lane keep their order. The message is written at once, unless a
            /// [`Cork`](crate::Cork) is held.
            ///
            /// # Errors
            ///
            /// What is found before the message leaves; the rest is in the receipt.
            pub fn start_send(
                &self,
                message: impl Into<Outgoing>,
            ) -> Result<PendingSend, SendError> {
                let _ = message.into();
                unimplemented!()
            }

            /// Sends, as a future. It enters its lane when it is first polled.
            ///
            /// Without the feature `tokio` the future needs somebody who calls
            /// [`dispatch`](crate::Endpoint::dispatch), or a thread that waits in any blocking
            /// call of this connection.
            pub fn send_async(&self, message: impl Into<Outgoing>) -> SendFuture {
                let _ = message.into();
                unimplemented!()
            }

            /// Asks to be told when a send there would not block (G6). One answer for each
            /// watch. Blocks at most for one round trip, to look the destination up.
            ///
            /// # Errors
            ///
            /// None here; the answer says what is wrong.
            #[must_use]
            pub fn watch_writable(&self) -> Writable {
                unimplemented!()
            }

            /// The same destination, sending through another lane.
            ///
            /// # Panics
            ///
            /// If `lane` belongs to another endpoint.
            #[must_use]
            pub fn on_lane(&self, lane: &Lane) -> Self {
                let _ = lane;
                unimplemented!()
            }
        }
    };
}

sending!(Group);
sending!(RemoteEndpoint);

impl Group {
    /// The group's name.
    #[must_use]
    pub fn name(&self) -> &GroupName {
        unimplemented!()
    }

    /// The group's id, if it was needed so far.
    #[must_use]
    pub fn id(&self) -> Option<GroupId> {
        unimplemented!()
    }
}

/// One endpoint to send to, by its id. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RemoteEndpoint {}

impl RemoteEndpoint {
    /// The endpoint's id.
    #[must_use]
    pub fn id(&self) -> EndpointId {
        unimplemented!()
    }
}
