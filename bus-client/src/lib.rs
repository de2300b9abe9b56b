//! Client library for Unisono, the ordered multicast message bus.
#![deny(unsafe_code)]

mod builder;
mod bus;
mod connection;
mod drive;
#[cfg(feature = "embedded")]
mod embedded;
mod error;
mod group;
mod inbox;
mod inflow;
mod info;
mod lane;
mod message;
mod outbox;
mod pending;
#[cfg(feature = "tokio")]
mod reactor;
mod send;
mod state;
mod transport;
mod waits;
mod watch;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use builder::Builder;
pub use bus::{Bus, Cork, Endpoint, Events, JoinFuture, Lane, ReceiveFuture};
#[cfg(feature = "embedded")]
pub use embedded::{EmbeddedBroker, EmbeddedBuilder};
pub use error::{
    BrokerGone, ConnectError, CreateError, DecodeError, EncodeError, GoneReason, JoinError,
    LeaveError, MessageError, OpenError, QueryError, ReceiveError, SendError, WatchError,
};
pub use group::{Group, JoinOptions, Member, RemoteEndpoint};
pub use info::{GroupInfo, Joined, MemberInfo, Members, RoundTrip, Stats, Status};
pub use message::{Event, Evicted, Gap, Message, Outgoing};
pub use send::{PendingSend, SendFuture};
pub use watch::Writable;

pub use bus_core::{
    ContentType, Credentials, EndpointId, GroupId, GroupName, Limits, NameError, Receipt, Sequence,
};
