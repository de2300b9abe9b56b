//! Ordered multicast between endpoints of one process: groups whose messages reach every member or
//! none, in one order, with flow control instead of loss.
//!
//! Begin with [`Bus`]: it has an example of all that an application in this process needs. A broker
//! adds sockets to the same core, and decides nothing about the order.
//!
//! Invariant: nothing here does I/O, starts a thread or reads a clock. Deadlines and the time are
//! arguments; calls that block say so, and none of the others does.
//!
//! In reading order, each module needing mostly those above it:
//!
//! | module | what it is |
//! |---|---|
//! | `sync` | the facade: the only file that names locks and atomics |
//! | `id`, `name`, `limits` | numbers that must not be swapped, names, every bound |
//! | `account` | who holds how much of what there is |
//! | `attributes`, `payload`, `message`, `notice` | what endpoints hand over and are told |
//! | [`lease`], `completion` | payloads while they are lent; which of a connection's are free again |
//! | `table` | things in places, the lowest free one first |
//! | `lock_set` | the 8 locks, and the clocks that sequences come from |
//! | `queue`, `intake` | an endpoint's ring; what commits and what its reader change |
//! | `filter` | what a member wants to hear, and who wants a message |
//! | `membership`, `group`, `directory` | a group's members at one generation; who is on the bus |
//! | `retained` | what a group keeps for those who join later |
//! | `send` | from the cached membership to the commit point to the wake-ups |
//! | `batch` | several messages of one sender that take their places together |
//! | `wait` | sends that wait, and how far they can be overtaken |
//! | `request` | exactly one outcome for each request |
//! | `monitor`, `member_change` | who gets a copy of everything |
//! | `bus`, `view` | joins, leaves, evictions, and who is told of them |
//! | `ownership`, `name_registry`, `name_change` | who owns a well-known name, and who is told |
//! | `repeat` | a repeatable request, given again when who was asked died |
//! | `name_route` | which of its workers gets a message |
//! | `data_type`, `description` | what a service says of itself |
//! | `listing` | groups, names and members, for one place in the order |
//! | `gated` | groups whose owner decides who is admitted, and their peer endpoints |
//! | `tally`, `recorder`, `inside` | what is counted, what is kept of past messages, and who may ask |
//! | `endpoint`, `lane`, `receiver` | the public handles |
//! | `holdings` | what an endpoint has by name, for who decides what it may have |
//! | [`ring`] | bytes from one process to another through memory that both have |
//! | [`courtesy`] | whether to yield before going to sleep |
//! | [`wire`], [`framing`] | bytes to frames, of our protocol and of any other |
#![deny(unsafe_code)]

mod account;
mod attributes;
mod audience;
mod batch;
mod bus;
mod completion;
pub mod courtesy;
mod data_type;
mod description;
mod directory;
mod endpoint;
mod filter;
pub mod framing;
mod gated;
mod group;
mod holdings;
mod id;
mod inside;
mod intake;
mod lane;
pub mod lease;
mod limits;
mod listing;
mod lock_set;
mod member_change;
mod membership;
mod message;
#[cfg(bus_loom)]
pub mod modelled;
mod monitor;
mod name;
mod name_change;
mod name_registry;
mod name_route;
mod notice;
mod ownership;
mod payload;
mod queue;
mod receiver;
mod recorder;
mod repeat;
mod request;
mod retained;
pub mod ring;
mod send;
mod share;
mod sync;
mod table;
mod tally;
mod view;
mod wait;
pub mod wire;

pub use account::{
    Account, Amounts, Charge, ConnectionUsage, Holders, Ledger, Process, RESOURCES, Resource,
    UserUsage,
};
pub use attributes::{
    Attributes, AttributesBuilder, AttributesError, ContentType, Fields, MAX_ATTRIBUTES_BYTES,
    MAX_FIELDS, MAX_FIELDS_BYTES, MAX_KEY_BYTES, MAX_OPERATION_BYTES,
};
pub use audience::Audience;
pub use batch::{Batch, BatchDraft, BatchReceipt, MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, NoBatch};
pub use bus::{
    Bus, CreateError, GroupInfo, GroupOptions, JoinError, JoinOptions, Joined, LeaveError,
    LimitExceeded, MemberInfo, Stats,
};
pub use completion::{CompletedRange, CompletionQueue, Completions, CompletionsFull};
pub use data_type::{DataType, Field, MAX_TYPE_DEPTH, Variant, VariantType};
pub use description::{Description, DescriptionError, Operation, Signal};
pub use endpoint::{Endpoint, WatchError};
pub use filter::{
    CONTEXT_WORDS as FILTER_CONTEXT_WORDS, Condition, Filter, FilterChangeError, FilterError,
    FilterProgram, MAX_FILTER_CONDITIONS, MAX_PATTERN_BYTES, Pattern, SECTION as FILTER_SECTION,
};
pub use gated::{Candidacy, GateError, MAX_REASON_BYTES, Terms};
pub use holdings::Holding;
pub use id::{EndpointId, GroupId, NameId, Sequence};
pub use inside::{
    About, EndpointTraffic, Fate, GroupCounts, RecipientFate, Refusal, Story, WaitingSend, Why,
};
pub use lane::{Lane, Submitted, Watch};
pub use lease::Lease;
#[doc(hidden)]
pub use limits::duration_text;
pub use limits::{LimitError, Limits};
pub use listing::{ByName, Groups, Members, Names};
pub use lock_set::LOCKS;
pub use member_change::{MemberChange, MemberEvent};
pub use membership::MemberFlags;
pub use message::{Credentials, Destination, Draft, Gap, Message};
pub use monitor::{Addressee, MonitorError, Monitored, SeenOutcome};
pub use name::{GroupName, MAX_NAME_BYTES, NameError};
pub use name_change::{Holder, NameEvent, NameNotice, OwnerChange};
pub use name_registry::{Claimed, LISTED_OWNERS, NameInfo, NameWatching, OwnError, OwnOptions};
pub use notice::{Candidate, Eviction, EvictionCause, PeerChange};
pub use ownership::NameFlags;
pub use payload::{Payload, PayloadApart, lent_queued_bytes};
pub use receiver::{CreditError, Delivery, ReceiveError, Receiver};
pub use recorder::{PutOut, RecorderSize, RefusalReason};
pub use request::{Ended, Kind, Outcome, RequestEnd};
pub use retained::{MAX_RETAINED_MESSAGES, Retain};
pub use send::{FullRecipients, NAMED_RECIPIENTS, Receipt, SendError};
pub use table::Table;
pub use tally::{DWELL_BOUNDS, GroupTraffic, ReaderTimes, Sent, TimeInQueue};
pub use view::{Change, Interest, ViewChange, Watching};
pub use wait::{MISSED_OFFERS, PATIENCE};
