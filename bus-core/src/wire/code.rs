//! Codes: short texts that programs compare, with a longer text for people beside them.
//!
//! A code is kebab-case text on the wire. One that this version does not know is kept as it came,
//! so that a client older than its broker still reports what the broker said.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! codes {
    (
        $(#[$doc:meta])*
        $name:ident { $( $(#[$code_doc:meta])* $code:ident = $text:literal, )* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $( $(#[$code_doc])* $code, )*
            /// A code of a later version, as it came. Treat it as a failure of its operation.
            Other(Box<str>),
        }

        impl $name {
            /// All codes of this version, in the order of their documentation.
            pub const ALL: &'static [Self] = &[$(Self::$code,)*];

            /// The code as it stands on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $( Self::$code => $text, )*
                    Self::Other(text) => text,
                }
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                match text {
                    $( $text => Self::$code, )*
                    other => Self::Other(other.into()),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d).map(|text| Self::from(text.as_str()))
            }
        }
    };
}

codes! {
    /// Why something that was asked for did not happen.
    ///
    /// ```
    /// use bus_core::wire::FailureCode;
    ///
    /// assert_eq!(FailureCode::WouldBlock.as_str(), "would-block");
    /// assert_eq!(FailureCode::from("would-block"), FailureCode::WouldBlock);
    /// assert_eq!(FailureCode::from("on-holiday").as_str(), "on-holiday");
    /// ```
    FailureCode {
        /// No group of that name or id; create it, or look its name up again.
        NoSuchGroup = "no-such-group",
        /// Nobody owns that name; watch it, or look it up again.
        NoSuchName = "no-such-name",
        /// Nobody owns that name, and the service that would has not started; the text says why.
        NotStarted = "not-started",
        /// Another endpoint owns the name, and the claim was not to wait.
        NameTaken = "name-taken",
        /// The name is shared by its owners and the claim does not share it, or the other way
        /// round.
        NameMismatch = "name-mismatch",
        /// The endpoint has no claim of the name.
        NotClaimed = "not-claimed",
        /// The owner of the name says nothing of itself.
        NoDescription = "no-description",
        /// No endpoint of that id, or of that handle on this connection.
        NoSuchEndpoint = "no-such-endpoint",
        /// The text is no group name.
        BadName = "bad-name",
        /// What is said of a filter is none; the text says why.
        BadFilter = "bad-filter",
        /// What is said of a service is no description, or not whole; the text says why.
        BadDescription = "bad-description",
        /// There is a group of that name already.
        GroupExists = "group-exists",
        /// The endpoint is a member of the group already.
        AlreadyMember = "already-member",
        /// The endpoint is not a member of the group.
        NotAMember = "not-a-member",
        /// The endpoint does not watch the group's membership.
        NotWatching = "not-watching",
        /// A recipient has no room; wait until the destination is writable (G6).
        WouldBlock = "would-block",
        /// Only the sender's own queue has no room: it must read before it can send (G5).
        OwnQueueFull = "own-queue-full",
        /// The payload is above the maximum; it never fits.
        TooLarge = "too-large",
        /// The send was cancelled while it waited.
        Cancelled = "cancelled",
        /// An earlier send of this lane was refused; send RESUME, then this again (G3).
        LaneRefused = "lane-refused",
        /// The endpoint that was sent to receives no more (`EPIPE`).
        EndpointClosed = "endpoint-closed",
        /// The group ended while the send waited.
        GroupEnded = "group-ended",
        /// A limit of the bus; [`Failure::limit`](super::Failure::limit) says which, and its value.
        LimitExceeded = "limit-exceeded",
        /// The payload cannot be lent: past a limit for that, or without its being switched on (`ENOBUFS`).
        /// [`Failure::limit`](super::Failure::limit) says which.
        NoBuffers = "no-buffers",
        /// Policy does not let this user do that.
        PermissionDenied = "permission-denied",
        /// The body of the call is not what its operation asks for.
        BadRequest = "bad-request",
        /// The broker does not know the operation or the option.
        Unsupported = "unsupported",
        /// The recipient was full for the stall limit and read too little (G8).
        RecipientStalled = "recipient-stalled",
        /// The endpoint was evicted from the group; until its back-off is over it may join only with
        /// `DROP_WHEN_FULL` (G8). [`Failure::retry_after`](super::Failure::retry_after) says when.
        BackOff = "back-off",
        /// Nobody waits for a reply to that request from this endpoint.
        NoSuchRequest = "no-such-request",
        /// The request's deadline came before the request could be delivered.
        TimedOut = "timed-out",
        /// The owner of the gated group does not admit the endpoint; the text is its reason.
        RefusedByOwner = "refused-by-owner",
        /// The owner of the gated group is gone, and nobody is admitted any more.
        OwnerGone = "owner-gone",
        /// The endpoint does not own the gated group.
        NotTheOwner = "not-the-owner",
        /// The endpoint does not wait to be admitted (any more).
        NoCandidate = "no-candidate",
        /// The endpoint waits to be admitted already.
        AlreadyCandidate = "already-candidate",
    }
}

codes! {
    /// Why a connection ends.
    GoodbyeCode {
        /// The client has finished.
        Done = "done",
        /// The broker is going down.
        Shutdown = "shutdown",
        /// What came was no frame of this protocol; the text names the offence.
        BadFrame = "bad-frame",
        /// Good frames in a wrong order or number: no HELLO, a second HELLO, a window exceeded,
        /// credit for what was never delivered, more than one frame with descriptors outstanding.
        Protocol = "protocol",
        /// No common version.
        NoCommonVersion = "no-common-version",
        /// The broker has as many connections as it may have.
        LimitExceeded = "limit-exceeded",
        /// Policy does not let this user in.
        PermissionDenied = "permission-denied",
        /// The client did not take what was written to it in time.
        NotReading = "not-reading",
        /// The greeting did not come in time.
        TooSlow = "too-slow",
    }
}

codes! {
    /// What a message is of which a monitor gets a copy.
    CopyCode {
        /// It asks for nothing and answers nothing.
        Message = "message",
        /// Its sender waits for a reply.
        Request = "request",
        /// It answers a request.
        Reply = "reply",
        /// It answers a request, and says no.
        Refusal = "refusal",
    }
}

codes! {
    /// What happened to a member or a candidate, as monitors are told.
    MemberCode {
        /// The endpoint has made the group.
        Created = "created",
        /// It asks to be admitted.
        Asked = "asked",
        /// The owner has refused it.
        Refused = "refused",
        /// It asks no more.
        Withdrawn = "withdrawn",
        /// The owner has changed how it is a member.
        Terms = "terms",
        /// It has changed what it wants to hear.
        Filter = "filter",
        /// Its messages go to its peer endpoint no more, because that was full.
        PeerStalled = "peer-stalled",
        /// The connection between it and the owner has ended.
        PeerClosed = "peer-closed",
        /// It was the owner, and is gone.
        OwnerGone = "owner-gone",
    }
}

codes! {
    /// What happened to a membership, as its watchers are told.
    ChangeCode {
        /// It began.
        Joined = "joined",
        /// The member left, or receives nothing any more.
        Left = "left",
        /// The member was stalled (G8).
        Evicted = "evicted",
        /// The member's endpoint was closed.
        Closed = "closed",
        /// No membership: the group ended because its creator is gone and nobody is left.
        Ended = "ended",
    }
}

codes! {
    /// Why a membership was ended by somebody else than the member.
    EvictionReason {
        /// The member held senders up for the stall limit, and read too little (G8).
        Stalled = "stalled",
        /// The member had no room, and `leave-when-full`.
        Full = "full",
    }
}

codes! {
    /// Why a request has no reply.
    OutcomeCode {
        /// The other side was closed, or dropped the request.
        Gone = "gone",
        /// Its deadline came.
        TimedOut = "timed-out",
        /// Its caller cancelled it.
        Cancelled = "cancelled",
    }
}

impl From<crate::RequestEnd> for OutcomeCode {
    fn from(why: crate::RequestEnd) -> Self {
        match why {
            crate::RequestEnd::Gone => Self::Gone,
            crate::RequestEnd::TimedOut => Self::TimedOut,
            crate::RequestEnd::Cancelled => Self::Cancelled,
        }
    }
}
