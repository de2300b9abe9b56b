//! Client library for Unisono, the ordered multicast message bus.
#![deny(unsafe_code)]

mod builder;
mod bus;
#[cfg(feature = "embedded")]
mod embedded;
mod error;
mod group;
mod info;
mod message;
mod send;
mod watch;

pub use builder::Builder;
pub use bus::{Bus, Cork, Endpoint, Events, JoinFuture, Lane, ReceiveFuture};
#[cfg(feature = "embedded")]
pub use embedded::EmbeddedBroker;
pub use error::{
    BrokerGone, ConnectError, CreateError, DecodeError, EncodeError, GoneReason, JoinError,
    LeaveError, MessageError, OpenError, QueryError, ReceiveError, SendError, WatchError,
};
pub use group::{Group, JoinOptions, Member, RemoteEndpoint};
pub use info::{GroupInfo, Joined, MemberInfo, Members, RoundTrip, Stats, Status};
pub use message::{ContentType, Credentials, Event, Gap, Message, Outgoing, Receipt};
pub use send::{PendingSend, SendFuture};
pub use watch::Writable;

pub use bus_core::{EndpointId, GroupId, GroupName, Limits, NameError, Sequence};
