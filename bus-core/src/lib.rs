//! Ordered multicast between endpoints of one process.
#![deny(unsafe_code)]

mod attributes;
mod bus;
mod directory;
mod endpoint;
pub mod framing;
mod group;
mod id;
mod intake;
mod lane;
mod limits;
mod lock_set;
mod membership;
mod message;
#[cfg(bus_loom)]
pub mod modelled;
mod name;
mod notice;
mod queue;
mod receiver;
mod send;
mod sync;
mod view;
mod wait;
pub mod wire;

pub use attributes::{
    Attributes, AttributesBuilder, AttributesError, ContentType, Fields, MAX_ATTRIBUTES_BYTES,
    MAX_FIELDS, MAX_FIELDS_BYTES, MAX_KEY_BYTES, MAX_OPERATION_BYTES,
};
pub use bus::{
    Bus, CreateError, GroupInfo, JoinError, JoinOptions, Joined, LeaveError, LimitExceeded,
    MemberInfo, Stats, View,
};
pub use endpoint::{Endpoint, WatchError};
pub use id::{EndpointId, GroupId, Sequence};
pub use lane::{Lane, Submitted, Watch};
pub use limits::{LimitError, Limits};
pub use lock_set::LOCKS;
pub use membership::MemberFlags;
pub use message::{Credentials, Destination, Draft, Gap, Message, Payload};
pub use name::{GroupName, MAX_NAME_BYTES, NameError};
pub use notice::Eviction;
pub use receiver::{CreditError, Delivery, ReceiveError, Receiver};
pub use send::{FullRecipients, NAMED_RECIPIENTS, Receipt, SendError};
pub use view::{Change, Interest, ViewChange, Watching};
pub use wait::{MISSED_OFFERS, PATIENCE};
