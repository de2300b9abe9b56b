//! Client library for Unisono, the ordered multicast message bus.
//!
//! A program connects ([`Bus::connect`]), joins groups by name ([`Endpoint::join`]), sends to groups
//! and receives what others send. All members of a group see the same messages in the same order,
//! and a message reaches all of them or none.
//!
//! ```
//! use bus_client::{Bus, EmbeddedBroker};
//!
//! // A broker of our own; with one that runs already it is just `Bus::connect()`.
//! let broker = EmbeddedBroker::start()?;
//! let (alice, bob) = (broker.connect()?, broker.connect()?);
//! alice.join("org.example.Chat")?;
//! bob.join("org.example.Chat")?;
//!
//! let receipt = alice.group("org.example.Chat")?.send("hello")?;
//! let message = bob.receive()?.into_message().expect("nothing else was sent");
//! assert_eq!(message.text(), Some("hello"));
//! assert_eq!(message.sequence(), receipt.sequence, "its place in the order");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Sending
//!
//! | form | waits for | |
//! |---|---|---|
//! | [`send`](Group::send) | room at every recipient | the receipt says where in the order it stands |
//! | [`try_send`](Group::try_send) | the broker's answer | [`SendError::WouldBlock`] names those without room |
//! | [`send_deadline`](Group::send_deadline) | room, so long | [`SendError::TimedOut`]: it reached nobody |
//! | [`start_send`](Group::start_send) | a place in the lane's window | many are under way at once; see also [`Endpoint::cork`] |
//! | [`send_async`](Group::send_async) | room, as a future | |
//!
//! An endpoint's sends are one line: what waits holds back those behind it. A thread that must not be
//! held back by another takes a [`Lane`] of its own. [`Endpoint::endpoint`] sends to one endpoint.
//!
//! # Receiving
//!
//! All groups of an endpoint deliver into its one queue, from which [`receive`](Endpoint::receive),
//! [`try_receive`](Endpoint::try_receive), [`receive_deadline`](Endpoint::receive_deadline),
//! [`receive_async`](Endpoint::receive_async) and [`events`](Endpoint::events) take. A queue that is
//! full makes those wait who send to it, unless the membership is
//! [`drop_when_full`](JoinOptions::drop_when_full). Who makes others wait for too long is evicted
//! ([`Event::Evicted`]).
//!
//! # Who is there
//!
//! [`watch_members`](Endpoint::watch_members) tells every change of a group's membership as
//! [`Event::View`], at its place among the messages; [`members`](Endpoint::members) lists who is there
//! and at which place in the order, and [`Members::apply`] brings that list forward. A publisher that
//! only wants to spare itself work nobody sees asks with [`Group::watch_interest`].
//!
//! # State
//!
//! A group may retain its last messages, or the last of each key ([`Endpoint::create_retaining`],
//! [`JoinOptions::retain`]). Who joins [with its state](JoinOptions::with_state) gets these first, then
//! [`Event::Current`], then everything that was sent after the join: nothing is missing between, and
//! nothing comes twice.
//!
//! # Names
//!
//! A service owns a well-known name ([`own_name`](Endpoint::own_name)), so that others send to
//! it ([`Endpoint::name`]) without knowing who it is; who waits for the name takes over when it
//! goes. Several workers can share a name ([`NameOptions::shared`]); then each message is given to
//! one that has room. What a service says of itself, made from its types
//! with [`Describe`], is shown by [`Endpoint::describe_name`].
//!
//! # Two programs that wait for each other
//!
//! While a thread waits for a send it cannot read, and perhaps the one that it waits for is waiting for
//! it. So the library takes messages into a bounded backlog meanwhile ([`Builder::backlog`]), and
//! both go on. If the backlog is full as well the send fails with [`SendError::WouldDeadlock`]: it
//! has reached nobody; receive, then send again.
//!
//! # Threads, main loops, tasks
//!
//! Every handle can be used from every thread. The library starts no thread: whoever waits in a
//! blocking call does the connection's work for all.
//!
//! A main loop (GLib's, calloop's, epoll) polls one descriptor for reading, [`AsFd`] of [`Bus`] and
//! [`Endpoint`], and calls [`Endpoint::dispatch`] when it is readable. Futures need no particular runtime;
//! they are woken by whoever dispatches, or with the feature `tokio` by tokio's reactor.
//!
//! # The end
//!
//! When the broker goes, what had arrived can still be received; then every operation answers with
//! [`BrokerGone`]. What was in flight is [`SendError::Unknown`]. A connection that is to outlive its
//! broker is made with [`Builder::reconnect`]: it finds the next one, and says from which place in
//! the order on something may be missing. A connection does not survive `fork`; see [`Bus`].
//!
//! # Features
//!
//! - `embedded`: [`EmbeddedBroker`] and [`Bus::embedded`] run the broker in a thread.
//! - `tokio`: futures drive their connection on tokio's reactor.
//!
//! # Inside
//!
//! In reading order; each file needs mostly those above it.
//!
//! | file | what it knows |
//! |---|---|
//! | `error`, `info`, `message` | what applications see |
//! | `transport` | bytes and descriptors to and from the broker, and readiness |
//! | `outbox`, `inflow` | frames on their way out, and in |
//! | `inbox` | what has arrived for an endpoint, its backlog, and credit |
//! | `lane`, `pending` | sends that wait here, and what is not yet answered |
//! | `waits` | who sleeps, who polls for all, who is woken |
//! | `long_read` | sleeping in the read itself |
//! | `state` | all that threads share, and what each frame does to it |
//! | `reconnect` | what is told when another broker has taken the place of one |
//! | `connection` | the lock around it, the greeting, and sleeping |
//! | `drive`, `reactor` | who does the I/O while a future waits |
//! | `apart` | payloads beside the stream: lent, and read in place |
//! | `bus`, `group`, `gated`, `send`, `request`, `watch`, `views`, `names`, `describe`, `monitor`, `builder`, `embedded` | the public handles |
//! | [`mux`] | framed messages over byte streams of any protocol, shared by threads; needs no broker |
//!
//! **Invariant:** nothing blocks, waits or calls out under the connection's lock.
//!
//! **Invariant:** the library has no thread, no static and no signal of its own.
//!
//! [`AsFd`]: std::os::fd::AsFd
#![deny(unsafe_code)]
#![cfg_attr(
    not(feature = "embedded"),
    allow(rustdoc::broken_intra_doc_links, reason = "links to what the feature brings")
)]

mod accounts;
mod apart;
mod builder;
mod bus;
mod clock;
mod connection;
mod describe;
mod drive;
#[cfg(feature = "embedded")]
mod embedded;
mod error;
mod gated;
mod group;
mod inbox;
mod inflow;
mod info;
mod lane;
mod listing;
mod long_read;
mod look;
mod message;
mod monitor;
pub mod mux;
mod names;
mod outbox;
mod pending;
#[cfg(feature = "tokio")]
mod reactor;
mod reconnect;
mod request;
mod rings;
mod send;
mod state;
mod transport;
mod views;
mod waits;
mod watch;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use accounts::AccountInfo;
pub use apart::{
    Calibration, Completions, Pool, PoolBuffer, PoolError, Revoked, SealedFile, View, Way,
};
pub use builder::{Builder, Transport};
pub use bus::{Bus, Cork, Endpoint, Events, JoinFuture, Lane, ReceiveFuture};
pub use describe::{Describe, DescribeError};
#[cfg(feature = "embedded")]
pub use embedded::{EmbeddedBroker, EmbeddedBuilder};
pub use error::{
    BrokerGone, ConnectError, CreateError, DecodeError, EncodeError, FilterChangeError, GateError,
    GoneReason, JoinError, LeaveError, MessageError, OpenError, OwnError, QueryError, ReceiveError,
    SendError, WatchError,
};
pub use gated::{
    Admission, Candidacy, Candidate, Expelled, FlagsChanged, Gate, PeerGap, PeerNotice, Terms,
};
pub use group::{Group, GroupOptions, JoinOptions, Member, RemoteEndpoint};
pub use info::{GroupInfo, Joined, MemberInfo, Members, Reloaded, RoundTrip, Stats, Status};
pub use listing::Listing;
pub use message::{Current, Event, Evicted, Gap, Message, Outgoing};
pub use monitor::{Addressee, Monitored, MonitoredChange, MonitoredMember, MonitoredOutcome, Role};
pub use mux::{Worker, Workers};
pub use names::{
    Name, NameAcquired, NameInfo, NameLost, NameOptions, NameWatch, OwnedName, Owner, OwnerChange,
    OwnerChangesLost,
};
pub use reconnect::{Fate, Possession, Reconnect, Reconnected, Restored};
pub use request::{CallError, CallFuture, Callee, PendingCall};
pub use send::{PendingSend, SendFuture};
pub use views::{Change, Interest, InterestFuture, MembersWatch, ViewChange, WatchOptions};
pub use watch::Writable;

pub use bus_core::wire::inside;
pub use bus_core::{
    CompletedRange, Condition, ContentType, Credentials, DataType, Description, DescriptionError,
    EndpointId, FILTER_SECTION, Field, Filter, FilterError, FilterProgram, GroupId, GroupName,
    Limits, MAX_RETAINED_MESSAGES, NameError, NameId, Operation, Pattern, Receipt, Retain,
    Sequence, Signal, Variant, VariantType,
};
