//! What goes wrong, one enum for each operation.
//!
//! Every operation can lose its broker; that part is one type, [`BrokerGone`], so that a program
//! handles it in one place. A send is special: what was in flight when the broker went is
//! [`SendError::Unknown`], because nobody is left who could tell.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bus_core::wire::{Failure, FailureCode};
use bus_core::{ContentType, EndpointId, GroupName, NameError, Sequence};

use crate::state::{CallError, Target};

/// The connection has ended, and why. Connect again to go on.
///
/// Cheap to clone: every operation of the connection answers with the same one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the broker is gone: {reason}")]
pub struct BrokerGone {
    reason: GoneReason,
}

impl BrokerGone {
    pub(crate) fn new(reason: GoneReason) -> Self {
        Self { reason }
    }

    /// What ended the connection.
    #[must_use]
    pub fn reason(&self) -> &GoneReason {
        &self.reason
    }
}

/// What ended a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GoneReason {
    /// The broker closed the connection without a word: it ended or was killed.
    Closed,
    /// The broker said goodbye. `code` is for programs, `text` for people.
    Goodbye {
        /// Short name of the reason, such as `shutting-down`.
        code: Arc<str>,
        /// The reason in words.
        text: Arc<str>,
    },
    /// The broker sent what the protocol does not allow; the connection was given up here.
    Protocol(Arc<str>),
    /// The system reported an error on the socket.
    Io(io::ErrorKind, Arc<str>),
    /// This side closed the connection with [`Bus::close`](crate::Bus::close).
    ClosedHere,
    /// This process is a child of the one that connected. A connection does not survive `fork`:
    /// connect anew in the child.
    Forked,
}

impl fmt::Display for GoneReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("it closed the connection without a word"),
            Self::Goodbye { code, text } if text.is_empty() => write!(f, "it said {code}"),
            Self::Goodbye { code, text } => write!(f, "it said {code}: {text}"),
            Self::Protocol(what) => write!(f, "it broke the protocol: {what}"),
            Self::Io(_, what) => write!(f, "the socket failed: {what}"),
            Self::ClosedHere => f.write_str("this side closed the connection"),
            Self::Forked => f.write_str(
                "this process was forked from the one that connected, and must connect itself",
            ),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nothing says where the broker is: give an address, or set one of the two variables.
    #[error(
        "no address of a broker: XDG_RUNTIME_DIR is not set; give one with --address PATH \
         or set UNISONO_ADDRESS"
    )]
    NoAddress,
    /// The address is neither a path nor `unix:PATH`.
    #[error("{address:?} is no address of a broker: {why}; expected PATH or unix:PATH")]
    BadAddress {
        /// The address as given.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No way for bytes to travel is called so: name another one.
    #[error("{transport:?} is no transport; expected auto, socket or ring")]
    BadTransport {
        /// What was named.
        transport: String,
    },
    /// Nobody answers there: start the broker, or give another address.
    #[error("cannot connect to the broker at {address}: {source}")]
    Unreachable {
        /// Where we tried.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The broker does not let us in (its words), or speaks no version that we do.
    #[error("the broker at {address} refused the connection: {text} ({code})")]
    Refused {
        /// Where we tried.
        address: String,
        /// Short name of the reason.
        code: String,
        /// The reason in words.
        text: String,
    },
    /// The greeting did not come in time. Whatever listens there may be no broker, or hang.
    #[error("no greeting from {address} within {after:?}")]
    TimedOut {
        /// Where we tried.
        address: String,
        /// How long we waited.
        after: Duration,
    },
    /// The connection ended before the greeting was complete.
    #[error("no greeting from {address}: {gone}")]
    Gone {
        /// Where we tried.
        address: String,
        /// What ended it.
        gone: BrokerGone,
    },
    /// The system gave no descriptor, no memory, no thread.
    #[error("cannot set up a connection: {0}")]
    System(#[from] io::Error),
}

/// Why a message did not reach anybody, or why nobody knows.
///
/// But for [`Unknown`](Self::Unknown) the message has reached nobody (G1).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// No group has this name (now). Join or create it, or wait for somebody who does.
    #[error("no group is named {0}")]
    NoSuchGroup(GroupName),
    /// Nobody owns this name (now). Watch it to learn when somebody does.
    #[error("nobody owns the name {0}")]
    NoSuchName(GroupName),
    /// The endpoint does not exist (any more).
    #[error("there is no endpoint {0}")]
    NoSuchEndpoint(EndpointId),
    /// The group ended while the send waited.
    #[error("group {0} has ended")]
    GroupEnded(GroupName),
    /// The group is gated, and this endpoint is not in it (any more). Join it, and wait for its
    /// owner to admit you.
    #[error("not a member of gated group {0}, and only members may send to it")]
    NotAMember(GroupName),
    /// The receiver takes no more messages (`EPIPE`).
    #[error("endpoint {0} has shut down receiving")]
    ReceiverShut(EndpointId),
    /// Only of the non-blocking form: recipients have no room. Wait with `watch_writable`, or
    /// drop the message.
    #[error("{full_count} of the recipients have no room{}", Listed(full))]
    WouldBlock {
        /// The first of them, at most 16.
        full: Vec<EndpointId>,
        /// How many there are.
        full_count: u32,
    },
    /// Only of the deadline form: the time passed while recipients had no room.
    #[error("timed out while recipients had no room; the message reached nobody")]
    TimedOut,
    /// The send was cancelled before its turn came.
    #[error("cancelled; the message reached nobody")]
    Cancelled,
    /// The send waits for others, and they may be waiting for this program to read: its queue and
    /// the library's backlog are full. Receive, then send again.
    #[error("endpoint {0} must read before its send can go on: its queue and the backlog are full")]
    WouldDeadlock(EndpointId),
    /// The sender is itself a recipient, and only its own queue lacks room. Receive, then send
    /// again. (The library retries blocking sends by itself where it can.)
    #[error("only the sender's own queue lacks room; it must read first")]
    OwnQueueFull,
    /// An earlier send of the same lane was refused, and this one was behind it.
    #[error("an earlier send of the same lane was refused")]
    LaneRefused,
    /// Nobody waits for this reply: the request has its outcome already, this endpoint was not
    /// asked, or the message is no request. Go on with the next one.
    #[error("nobody waits for a reply to request {0} from this endpoint")]
    NoSuchRequest(Sequence),
    /// The message is larger than the bus takes.
    #[error("a payload of {bytes} bytes is too large; the bus takes {limit}")]
    TooLarge {
        /// Bytes of the payload.
        bytes: u64,
        /// The most that the bus takes.
        limit: u64,
    },
    /// A key, operation or field of the message is beyond its bound.
    #[error(transparent)]
    BadMessage(#[from] MessageError),
    /// More descriptors than a message may carry.
    #[error("{given} descriptors are too many for a message; the bus takes {limit}")]
    TooManyDescriptors {
        /// Descriptors of the message.
        given: usize,
        /// The most that the bus takes.
        limit: usize,
    },
    /// The payload cannot be lent (`ENOBUFS`): lending was not switched on, or it would be past a limit.
    /// Read completions, or wait for some, or send without the flag.
    #[error("no buffers: {text}{}", if limit.is_empty() { String::new() } else { format!(" (limit {limit})") })]
    NoBuffers {
        /// Which limit; `zerocopy` if it was not switched on.
        limit: String,
        /// What it is about.
        text: String,
    },
    /// A recipient of a direct message has not read for the stall limit.
    #[error("the recipient is stalled: it has not read for the stall limit")]
    RecipientStalled,
    /// A bound of the bus is reached; the text names it and its value.
    #[error("limit exceeded: {0}")]
    LimitExceeded(String),
    /// The policy does not let this program send there.
    #[error("permission denied: {0}")]
    PermissionDenied(String),
    /// The broker refused for a reason that this library does not know.
    #[error("refused by the broker: {text} ({code})")]
    Refused {
        /// Short name of the reason.
        code: String,
        /// The reason in words.
        text: String,
    },
    /// The broker was gone before the message left.
    #[error("not sent: {0}")]
    BrokerGone(BrokerGone),
    /// The broker went while the send was in flight: it may have reached everybody or nobody.
    #[error("outcome unknown: {0}")]
    Unknown(BrokerGone),
}

impl SendError {
    /// Whether it is certain that the message has reached nobody. False only for
    /// [`Unknown`](Self::Unknown).
    #[must_use]
    pub fn reached_nobody(&self) -> bool {
        !matches!(self, Self::Unknown(_))
    }

    /// The loss of the broker, if that is what it was.
    #[must_use]
    pub fn broker_gone(&self) -> Option<&BrokerGone> {
        match self {
            Self::BrokerGone(gone) | Self::Unknown(gone) => Some(gone),
            _ => None,
        }
    }
}

struct Listed<'a>(&'a [EndpointId]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, endpoint) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { ": endpoint " } else { ", " })?;
            endpoint.fmt(f)?;
        }
        Ok(())
    }
}

/// Which part of a message is beyond its bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad message: {0}")]
pub struct MessageError(pub(crate) String);

/// Why there is nothing to receive, now or ever.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// All that had arrived was received, and no more will come on this connection.
    #[error(transparent)]
    BrokerGone(#[from] BrokerGone),
    /// The endpoint has [stopped receiving](crate::Endpoint::shutdown_receive), and all that came
    /// before was received.
    #[error("the endpoint receives nothing any more")]
    Ended,
}

/// Why a join did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The name breaks the rules for names.
    #[error(transparent)]
    BadName(#[from] NameError),
    /// The group does not exist and the options did not ask to create it.
    #[error("no group is named {0}")]
    NoSuchGroup(GroupName),
    /// The group is gated, and its owner does not admit this endpoint.
    #[error("the owner of {group} has refused: {reason}")]
    RefusedByOwner {
        /// The group.
        group: GroupName,
        /// The owner's words.
        reason: String,
    },
    /// The owner of the gated group is gone, and nobody is admitted any more.
    #[error("the owner of {0} is gone, and nobody is admitted any more")]
    OwnerGone(GroupName),
    /// This endpoint waits to be admitted already.
    #[error("a request to be admitted to {0} waits already")]
    AlreadyCandidate(GroupName),
    /// The request to be admitted was taken back.
    #[error("the request to be admitted to {0} was taken back")]
    Withdrawn(GroupName),
    /// This endpoint is already a member. Open another endpoint to be there twice.
    #[error("already a member of {0}")]
    AlreadyMember(GroupName),
    /// The endpoint's process was evicted from the group not long ago. Join with
    /// [`drop_when_full`](crate::JoinOptions::drop_when_full), or try again after this time.
    #[error(
        "evicted from {group} not long ago: only a join with drop-when-full is possible for \
         another {retry_after:?}"
    )]
    BackOff {
        /// The group.
        group: GroupName,
        /// How long a join without drop-when-full is refused.
        retry_after: Duration,
    },
    /// A bound of the bus is reached; the text names it and its value.
    #[error("limit exceeded: {0}")]
    LimitExceeded(String),
    /// The policy does not let this program join or create.
    #[error("permission denied: {0}")]
    PermissionDenied(String),
    /// The broker refused for a reason that this library does not know.
    #[error("refused by the broker: {text} ({code})")]
    Refused {
        /// Short name of the reason.
        code: String,
        /// The reason in words.
        text: String,
    },
    /// The connection has ended.
    #[error(transparent)]
    BrokerGone(#[from] BrokerGone),
}

/// Why a group was not created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The name breaks the rules for names.
    #[error(transparent)]
    BadName(#[from] NameError),
    /// Somebody has created it before. Join it, or use its handle.
    #[error("a group named {0} exists already")]
    GroupExists(GroupName),
    /// A bound of the bus is reached; the text names it and its value.
    #[error("limit exceeded: {0}")]
    LimitExceeded(String),
    /// The policy does not let this program create it.
    #[error("permission denied: {0}")]
    PermissionDenied(String),
    /// The broker refused for a reason that this library does not know.
    #[error("refused by the broker: {text} ({code})")]
    Refused {
        /// Short name of the reason.
        code: String,
        /// The reason in words.
        text: String,
    },
    /// The connection has ended.
    #[error(transparent)]
    BrokerGone(#[from] BrokerGone),
}

/// Why the owner of a gated group could not do something about a candidate or a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// The group has ended, or this endpoint does not own it.
    #[error("gated group {0} is not owned by this endpoint")]
    NotTheOwner(GroupName),
    /// It does not wait to be admitted: it has withdrawn, is gone, or was decided on before.
    #[error("the endpoint does not wait to be admitted to {0}")]
    NoCandidate(GroupName),
    /// It is not a member (any more).
    #[error("the endpoint is not a member of {0}")]
    NotAMember(GroupName),
    /// There is no such peer endpoint (any more).
    #[error("no such peer endpoint: {0}")]
    NoSuchPeer(String),
    /// The candidate was evicted not long ago: admit it with
    /// [`drop_when_full`](crate::Terms::drop_when_full), or after this time.
    #[error(
        "evicted from {group} not long ago: only an admission with drop-when-full is possible for \
         another {retry_after:?}"
    )]
    BackOff {
        /// The group.
        group: GroupName,
        /// How long an admission without drop-when-full is refused.
        retry_after: Duration,
    },
    /// A bound of the bus is reached; the text names it and its value.
    #[error("limit exceeded: {0}")]
    LimitExceeded(String),
    /// The broker refused for a reason that this library does not know.
    #[error("refused by the broker: {text} ({code})")]
    Refused {
        /// Short name of the reason.
        code: String,
        /// The reason in words.
        text: String,
    },
    /// The connection has ended.
    #[error(transparent)]
    BrokerGone(#[from] BrokerGone),
}

/// Why a leave did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaveError {
    /// The endpoint is no member (any more).
    #[error("not a member of {0}")]
    NotAMember(GroupName),
    /// The broker refused for a reason that this library does not know.
    #[error("refused by the broker: {text} ({code})")]
    Refused {
        /// Short name of the reason.
        code: String,
        /// The reason in words.
        text: String,
    },
    /// The connection has ended, and every membership with it.
    #[error(transparent)]
    BrokerGone(#[from] BrokerGone),
}

/// Why a filter was not changed. The old one holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterChangeError {
    /// The endpoint is no member (any more).
    #[error("not a member of {0}")]
    NotAMember(GroupName),
    /// A bound of the bus is reached; the text names it and its value.
    #[error("limit exceeded: {0}")]
    LimitExceeded(String),
    /// The broker refused for a reason that this library does not know.
    #[error("refused by the broker: {text} ({code})")]
    Refused {
        /// Short name of the reason.
        code: String,
        /// The reason in words.
        text: String,
    },
    /// The connection has ended, and every membership with it.
    #[error(transparent)]
    BrokerGone(#[from] BrokerGone),
}

/// Why a name is not owned, waited for or watched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OwnError {
    /// It breaks the rules for names.
    #[error(transparent)]
    BadName(#[from] NameError),
    /// Another endpoint owns it. [`wait`](crate::NameOptions::wait) for it, or do without.
    #[error("another endpoint owns the name {0}")]
    Taken(GroupName),
    /// Those who own the name [`share`](crate::NameOptions::shared) it and this one does not, or
    /// the other way round.
    #[error("the name {0} is shared by those who own it, or is not, and this was asked otherwise")]
    Mismatch(GroupName),
    /// The description is not whole; mend what the text names.
    #[error("bad description: {0}")]
    BadDescription(String),
    /// A bound of the bus is reached; the text names it and its value.
    #[error("limit exceeded: {0}")]
    LimitExceeded(String),
    /// The policy does not let this program own or watch the name.
    #[error("permission denied: {0}")]
    PermissionDenied(String),
    /// The broker refused for a reason that this library does not know.
    #[error("refused by the broker: {text} ({code})")]
    Refused {
        /// Short name of the reason.
        code: String,
        /// The reason in words.
        text: String,
    },
    /// The connection has ended.
    #[error(transparent)]
    BrokerGone(#[from] BrokerGone),
}

impl OwnError {
    pub(crate) fn from_call(error: CallError, name: &GroupName) -> Self {
        let failure = match error {
            CallError::Gone(gone) => return gone.into(),
            CallError::Failed(failure) => *failure,
        };
        match failure.code {
            FailureCode::NameTaken => Self::Taken(name.clone()),
            FailureCode::NameMismatch => Self::Mismatch(name.clone()),
            FailureCode::BadDescription => Self::BadDescription(failure.text),
            FailureCode::LimitExceeded => Self::LimitExceeded(failure.text),
            FailureCode::PermissionDenied => Self::PermissionDenied(failure.text),
            _ => {
                let (code, text) = other(failure);
                Self::Refused { code, text }
            }
        }
    }
}

/// Why a question about the bus has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// Nobody owns this name (now).
    #[error("nobody owns the name {0}")]
    NoSuchName(GroupName),
    /// Who owns this name says nothing of itself.
    #[error("the service of the name {0} has no description")]
    NoDescription(GroupName),
    /// The name breaks the rules for names.
    #[error(transparent)]
    BadName(#[from] NameError),
    /// No group has this name (now).
    #[error("no group is named {0}")]
    NoSuchGroup(GroupName),
    /// The policy does not let this program ask.
    #[error("permission denied: {0}")]
    PermissionDenied(String),
    /// The broker refused for a reason that this library does not know.
    #[error("refused by the broker: {text} ({code})")]
    Refused {
        /// Short name of the reason.
        code: String,
        /// The reason in words.
        text: String,
    },
    /// The connection has ended.
    #[error(transparent)]
    BrokerGone(#[from] BrokerGone),
}

/// Why there is no further endpoint or lane.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A bound of the bus is reached; the text names it and its value. Close one first.
    #[error("limit exceeded: {0}")]
    LimitExceeded(String),
    /// The broker refused for a reason that this library does not know.
    #[error("refused by the broker: {text} ({code})")]
    Refused {
        /// Short name of the reason.
        code: String,
        /// The reason in words.
        text: String,
    },
    /// The connection has ended.
    #[error(transparent)]
    BrokerGone(#[from] BrokerGone),
}

/// Why writability, or a membership, cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The name breaks the rules for names.
    #[error(transparent)]
    BadName(#[from] NameError),
    /// No group has this name (now), or it ended meanwhile.
    #[error("no group is named {0}")]
    NoSuchGroup(GroupName),
    /// Nobody owns this name (now).
    #[error("nobody owns the name {0}")]
    NoSuchName(GroupName),
    /// The endpoint does not exist (any more), or takes no more messages.
    #[error("there is no endpoint {0} that takes messages")]
    NoSuchEndpoint(EndpointId),
    /// A key, operation or field of the message that it is about is beyond its bound.
    #[error(transparent)]
    BadMessage(#[from] MessageError),
    /// Too many watches of this endpoint are outstanding; the text names the bound.
    #[error("limit exceeded: {0}")]
    LimitExceeded(String),
    /// The policy does not let this program watch or create the group.
    #[error("permission denied: {0}")]
    PermissionDenied(String),
    /// The broker refused for a reason that this library does not know.
    #[error("refused by the broker: {text} ({code})")]
    Refused {
        /// Short name of the reason.
        code: String,
        /// The reason in words.
        text: String,
    },
    /// The connection has ended.
    #[error(transparent)]
    BrokerGone(#[from] BrokerGone),
}

/// Why a payload is not the value that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The message says that it is neither CBOR nor JSON.
    #[error("the message says that its payload is {0:?}, which holds no typed value")]
    Untyped(ContentType),
    /// The payload is not valid CBOR, or not of this type.
    #[error("the payload is no such CBOR value: {0}")]
    Cbor(String),
    /// The payload is not valid JSON, or not of this type.
    #[error("the payload is no such JSON value: {0}")]
    Json(String),
}

/// Why a value cannot be made into a payload.
#[derive(Debug, thiserror::Error)]
#[error("the value cannot be written as {format}: {why}")]
pub struct EncodeError {
    pub(crate) format: &'static str,
    pub(crate) why: String,
}

/// What a failure means that has no variant of its own: its code, and its words.
fn other(failure: Failure) -> (String, String) {
    (failure.code.as_str().to_owned(), failure.text)
}

impl JoinError {
    pub(crate) fn from_call(error: CallError, group: &GroupName) -> Self {
        let failure = match error {
            CallError::Gone(gone) => return gone.into(),
            CallError::Failed(failure) => *failure,
        };
        match failure.code {
            FailureCode::NoSuchGroup => Self::NoSuchGroup(group.clone()),
            FailureCode::AlreadyMember => Self::AlreadyMember(group.clone()),
            FailureCode::RefusedByOwner => {
                Self::RefusedByOwner { group: group.clone(), reason: failure.text }
            }
            FailureCode::OwnerGone => Self::OwnerGone(group.clone()),
            FailureCode::AlreadyCandidate => Self::AlreadyCandidate(group.clone()),
            FailureCode::Cancelled => Self::Withdrawn(group.clone()),
            FailureCode::BackOff => Self::BackOff {
                group: group.clone(),
                retry_after: failure.retry_after.unwrap_or_default(),
            },
            FailureCode::LimitExceeded => Self::LimitExceeded(failure.text),
            FailureCode::PermissionDenied => Self::PermissionDenied(failure.text),
            _ => {
                let (code, text) = other(failure);
                Self::Refused { code, text }
            }
        }
    }
}

impl CreateError {
    pub(crate) fn from_call(error: CallError, group: &GroupName) -> Self {
        let failure = match error {
            CallError::Gone(gone) => return gone.into(),
            CallError::Failed(failure) => *failure,
        };
        match failure.code {
            FailureCode::GroupExists => Self::GroupExists(group.clone()),
            FailureCode::LimitExceeded => Self::LimitExceeded(failure.text),
            FailureCode::PermissionDenied => Self::PermissionDenied(failure.text),
            _ => {
                let (code, text) = other(failure);
                Self::Refused { code, text }
            }
        }
    }
}

impl GateError {
    pub(crate) fn from_call(error: CallError, group: &GroupName) -> Self {
        let failure = match error {
            CallError::Gone(gone) => return gone.into(),
            CallError::Failed(failure) => *failure,
        };
        match failure.code {
            FailureCode::NotTheOwner => Self::NotTheOwner(group.clone()),
            FailureCode::NoCandidate => Self::NoCandidate(group.clone()),
            FailureCode::NotAMember => Self::NotAMember(group.clone()),
            FailureCode::NoSuchEndpoint => Self::NoSuchPeer(failure.text),
            FailureCode::BackOff => Self::BackOff {
                group: group.clone(),
                retry_after: failure.retry_after.unwrap_or_default(),
            },
            FailureCode::LimitExceeded => Self::LimitExceeded(failure.text),
            _ => {
                let (code, text) = other(failure);
                Self::Refused { code, text }
            }
        }
    }
}

impl LeaveError {
    pub(crate) fn from_call(error: CallError, group: &GroupName) -> Self {
        let failure = match error {
            CallError::Gone(gone) => return gone.into(),
            CallError::Failed(failure) => *failure,
        };
        match failure.code {
            FailureCode::NotAMember | FailureCode::NoSuchGroup => Self::NotAMember(group.clone()),
            _ => {
                let (code, text) = other(failure);
                Self::Refused { code, text }
            }
        }
    }
}

impl FilterChangeError {
    pub(crate) fn from_call(error: CallError, group: &GroupName) -> Self {
        let failure = match error {
            CallError::Gone(gone) => return gone.into(),
            CallError::Failed(failure) => *failure,
        };
        match failure.code {
            FailureCode::NotAMember | FailureCode::NoSuchGroup => Self::NotAMember(group.clone()),
            FailureCode::LimitExceeded => Self::LimitExceeded(failure.text),
            _ => {
                let (code, text) = other(failure);
                Self::Refused { code, text }
            }
        }
    }
}

impl QueryError {
    pub(crate) fn from_call(error: CallError, group: Option<&GroupName>) -> Self {
        let failure = match error {
            CallError::Gone(gone) => return gone.into(),
            CallError::Failed(failure) => *failure,
        };
        match (&failure.code, group) {
            (FailureCode::NoSuchGroup, Some(group)) => Self::NoSuchGroup(group.clone()),
            (FailureCode::NoSuchName, Some(name)) => Self::NoSuchName(name.clone()),
            (FailureCode::NoDescription, Some(name)) => Self::NoDescription(name.clone()),
            (FailureCode::PermissionDenied, _) => Self::PermissionDenied(failure.text),
            _ => {
                let (code, text) = other(failure);
                Self::Refused { code, text }
            }
        }
    }
}

impl From<CallError> for OpenError {
    fn from(error: CallError) -> Self {
        let failure = match error {
            CallError::Gone(gone) => return gone.into(),
            CallError::Failed(failure) => *failure,
        };
        match failure.code {
            FailureCode::LimitExceeded => Self::LimitExceeded(failure.text),
            _ => {
                let (code, text) = other(failure);
                Self::Refused { code, text }
            }
        }
    }
}

impl WatchError {
    /// Of something that is about no group.
    pub(crate) fn from_any_call(error: CallError) -> Self {
        let failure = match error {
            CallError::Gone(gone) => return gone.into(),
            CallError::Failed(failure) => *failure,
        };
        match failure.code {
            FailureCode::LimitExceeded => Self::LimitExceeded(failure.text),
            FailureCode::PermissionDenied => Self::PermissionDenied(failure.text),
            _ => {
                let (code, text) = other(failure);
                Self::Refused { code, text }
            }
        }
    }

    /// Of a watch on a group's membership.
    pub(crate) fn from_group_call(error: CallError, group: &GroupName) -> Self {
        let failure = match error {
            CallError::Gone(gone) => return gone.into(),
            CallError::Failed(failure) => *failure,
        };
        match failure.code {
            FailureCode::NoSuchGroup => Self::NoSuchGroup(group.clone()),
            FailureCode::LimitExceeded => Self::LimitExceeded(failure.text),
            FailureCode::PermissionDenied => Self::PermissionDenied(failure.text),
            _ => {
                let (code, text) = other(failure);
                Self::Refused { code, text }
            }
        }
    }
    pub(crate) fn from_call(error: CallError, target: &Target) -> Self {
        let failure = match error {
            CallError::Gone(gone) => return gone.into(),
            CallError::Failed(failure) => *failure,
        };
        match (&failure.code, target) {
            (FailureCode::NoSuchGroup | FailureCode::GroupEnded, Target::Group(group)) => {
                Self::NoSuchGroup(group.name().clone())
            }
            (FailureCode::NoSuchName, Target::Name(name)) => Self::NoSuchName(name.name().clone()),
            (FailureCode::NoSuchEndpoint | FailureCode::EndpointClosed, Target::Endpoint(id)) => {
                Self::NoSuchEndpoint(*id)
            }
            (FailureCode::LimitExceeded, _) => Self::LimitExceeded(failure.text),
            _ => {
                let (code, text) = other(failure);
                Self::Refused { code, text }
            }
        }
    }
}
