//! Ordered multicast between endpoints of one process.
#![deny(unsafe_code)]

mod id;
mod limits;
mod name;

pub use id::{EndpointId, GroupId, Sequence};
pub use limits::{LimitError, Limits};
pub use name::{GroupName, MAX_NAME_BYTES, NameError};
