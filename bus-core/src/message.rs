//! Messages: what a sender hands over, and what every recipient shares.
//!
//! A message is written once and shared by all its recipients. It is immutable from its commit on;
//! the stamp (sequence, serial, time) is written by the commit itself, while nobody else has it.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::account::Charge;
use crate::attributes::Attributes;
use crate::audience::Audience;
use crate::id::{EndpointId, Generation, GroupId, NameId, Sequence};
use crate::lock_set::IntakePlace;
use crate::payload::Payload;
use crate::request::{Kind, Requested};

/// Who an endpoint belongs to, as the kernel said when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Process id.
    pub pid: u32,
}

impl Credentials {
    /// Of who is not known to the kernel as a user of the bus: what comes in through a broker's
    /// ingress. No process has this user id (it is `(uid_t) -1`), so nobody can pass for it, nor
    /// what has it for anybody.
    pub const UNAUTHENTICATED: Self = Self { uid: u32::MAX, pid: 0 };

    /// Whether the kernel has said whose they are.
    #[must_use]
    pub const fn is_authenticated(self) -> bool {
        self.uid != u32::MAX
    }
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Every member of a group, the sender only with `LOOPBACK`.
    Group(GroupId),
    /// One endpoint.
    Endpoint(EndpointId),
    /// The endpoint that waits for the reply to this request, which the sender has taken and not
    /// yet answered. The request is named by its sequence.
    Caller(Sequence),
    /// Who owns a well-known name when the message takes its place; of a shared one, one of its
    /// workers.
    Name(NameId),
}

/// What a sender hands over.
///
/// ```
/// let draft = bus_core::Draft::from("hello");
/// assert_eq!(&*draft.payload, b"hello");
/// ```
#[derive(Debug, Default)]
pub struct Draft {
    /// Key, operation, content type and fields.
    pub attributes: Attributes,
    /// The bytes.
    pub payload: Payload,
    /// Nanoseconds since the Unix epoch after which the message is of no use; 0 for never.
    pub deadline: u64,
    /// File descriptors that travel with the message, to all recipients or to none.
    pub descriptors: Vec<OwnedFd>,
    /// Whether it is a request, or an answer that says no.
    pub kind: Kind,
    /// What its sender's account is charged for it, until the last recipient has dropped it.
    pub charge: Option<Charge>,
}

impl<T: Into<Payload>> From<T> for Draft {
    fn from(payload: T) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }
}

/// A message that has taken its place in the order.
#[derive(Debug)]
pub struct Message {
    sender: EndpointId,
    credentials: Credentials,
    destination: Destination,
    draft: Draft,
    requested: Option<Requested>,
    stamp: Stamp,
}

/// What the commit adds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) sequence: Sequence,
    pub(crate) sender_serial: u64,
    pub(crate) commit_time: u64,
    /// The membership to all of which it went, if no filter chose among them.
    pub(crate) audience: Option<Generation>,
}

impl Stamp {
    /// Of what has not been committed.
    pub(crate) const NONE: Self =
        Self { sequence: Sequence::from_raw(0), sender_serial: 0, commit_time: 0, audience: None };
}

impl Message {
    pub(crate) fn new(
        sender: EndpointId,
        credentials: Credentials,
        destination: Destination,
        draft: Draft,
    ) -> Self {
        Self { sender, credentials, destination, draft, requested: None, stamp: Stamp::NONE }
    }

    /// Makes it a request.
    pub(crate) fn request(mut self, requested: Requested) -> Self {
        self.requested = Some(requested);
        self
    }

    pub(crate) fn is_repeatable(&self) -> bool {
        self.draft.kind == Kind::Request { repeatable: true }
    }

    /// The same request, for another endpoint. It has no descriptors.
    pub(crate) fn again(&self, caller: IntakePlace, first: Sequence) -> Self {
        let Draft { attributes, payload, deadline, kind, .. } = &self.draft;
        let draft = Draft {
            attributes: attributes.clone(),
            payload: payload.clone(),
            deadline: *deadline,
            kind: *kind,
            ..Draft::default()
        };
        let again = Self::new(self.sender, self.credentials, self.destination, draft);
        again.request(Requested { caller, first: Some(first) })
    }

    pub(crate) fn requested(&self) -> Option<&Requested> {
        self.requested.as_ref()
    }

    /// The same without its descriptors, for those who are not given them. None if it has none.
    pub(crate) fn without_descriptors(&self) -> Option<Self> {
        let Draft { attributes, payload, deadline, descriptors, kind, charge: _ } = &self.draft;
        if descriptors.is_empty() {
            return None;
        }
        let draft = Draft {
            attributes: attributes.clone(),
            payload: payload.clone(),
            deadline: *deadline,
            descriptors: Vec::new(),
            kind: *kind,
            charge: None,
        };
        Some(Self::new(self.sender, self.credentials, self.destination, draft))
    }

    pub(crate) fn stamp(&mut self, stamp: Stamp) {
        self.stamp = stamp;
    }

    /// The endpoint that sent it.
    #[inline]
    #[must_use]
    pub fn sender(&self) -> EndpointId {
        self.sender
    }

    /// Whose endpoint that was.
    #[inline]
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.credentials
    }

    /// The group, endpoint or name that it was sent to.
    #[inline]
    #[must_use]
    pub fn destination(&self) -> Destination {
        self.destination
    }

    /// Its place in the order of the bus (G2).
    #[inline]
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.stamp.sequence
    }

    /// 1, 2, 3 ... for each sender; refused sends take none.
    #[inline]
    #[must_use]
    pub fn sender_serial(&self) -> u64 {
        self.stamp.sender_serial
    }

    /// When it was committed, in nanoseconds since the Unix epoch, as precise as the calls of
    /// [`Bus::tick`](crate::Bus::tick) are frequent.
    #[inline]
    #[must_use]
    pub fn commit_time(&self) -> u64 {
        self.stamp.commit_time
    }

    /// See [`Draft::deadline`].
    #[inline]
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.draft.deadline
    }

    /// Key, operation, content type and fields.
    #[inline]
    #[must_use]
    pub fn attributes(&self) -> &Attributes {
        &self.draft.attributes
    }

    /// The bytes.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &Payload {
        &self.draft.payload
    }

    /// The descriptors that came with it. They are closed with the last recipient's message.
    #[inline]
    #[must_use]
    pub fn descriptors(&self) -> &[OwnedFd] {
        &self.draft.descriptors
    }

    /// Whether its sender waits for a reply, which goes to
    /// [`Caller`](Destination::Caller)`(self.sequence())`.
    #[inline]
    #[must_use]
    pub fn is_request(&self) -> bool {
        self.requested.is_some()
    }

    /// The first sequence of a request that another endpoint was given before, and died.
    #[inline]
    #[must_use]
    pub fn repeats(&self) -> Option<Sequence> {
        self.requested.and_then(|requested| requested.first)
    }

    /// The request that it answers, if it is a reply.
    #[inline]
    #[must_use]
    pub fn answers(&self) -> Option<Sequence> {
        match self.destination {
            Destination::Caller(request) => Some(request),
            _ => None,
        }
    }

    /// Whether it is a reply that says no.
    #[inline]
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.draft.kind == Kind::Refusal
    }

    /// Every member of the group that it was sent to, at its place in the order, if each of them is
    /// entitled to it: none of them has a filter, and it went to nobody else.
    #[must_use]
    pub fn audience(&self) -> Option<Audience> {
        match (self.destination, self.stamp.audience) {
            (Destination::Group(group), Some(generation)) => Some(Audience::new(group, generation)),
            _ => None,
        }
    }

    /// Its bytes: its encoded attributes and its payload, wherever that lies.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.draft.attributes.encoded().len() + self.draft.payload.len()) as u64
    }

    /// The bytes that it takes in a queue: its encoded attributes and what its payload takes there
    /// (see [`Payload::queued_bytes`]).
    #[inline]
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        self.draft.attributes.encoded().len() as u64 + self.draft.payload.queued_bytes()
    }
}

/// Messages of one group that a drop-when-full member did not get (G7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// How many.
    pub count: u64,
    /// Sequence of the first one.
    pub first: Sequence,
    /// Sequence of the last one.
    pub last: Sequence,
}
