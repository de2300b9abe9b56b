//! How a message is sent: from the cached membership to the commit point to the wake-ups.
//!
//! Invariant: nothing is pushed before every check has passed, and checks and pushes happen under
//! the same locks. So a message reaches all its recipients or none (G1), at one instant (G2).
//!
//! Under the locks nothing allocates, calls user code or a waker, or enters the kernel: the
//! message and the list of wakers are made before, wakers are called after.

use std::iter;
use std::slice;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use crate::account::Charge;
use crate::attributes::Attributes;
use crate::bus::{BusInner, LimitExceeded};
use crate::filter::selection::Selection;
use crate::filter::{Seen, Subject};
use crate::gated::Peer;
use crate::group::Group;
use crate::id::{EndpointId, Generation, GroupId, NameId, Sequence};
use crate::inside::Committed;
use crate::intake::{Drops, EndpointCore, Intake};
use crate::lock_set::{Held, IntakePlace, LockBits};
use crate::membership::{Member, MemberFlags, Membership};
use crate::message::{Destination, Message, Stamp};
use crate::monitor::{Addressee, MonitorList, Monitored};
use crate::name::GroupName;
use crate::name_route::NameRoute;
use crate::request::{self, Open};

use crate::share::{ShareSlot, ShareTable, Shares};
use crate::sync::{Mutant, mutated};
use crate::wait::{Line, Place, Turn};

/// The bus's answer to a send: its place in the order, and whom it reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The message's place in the order.
    pub sequence: Sequence,
    /// The sender's own count of its messages: 1, 2, 3 ...
    pub sender_serial: u64,
    /// The highest sequence that the sending endpoint had taken before the commit.
    pub after: Sequence,
    /// How many endpoints it was queued for.
    pub recipients: u32,
    /// How many drop-when-full members had no room for it.
    pub dropped: u32,
    /// The number of the completion that will say that its payload is free again. Only a client
    /// library gives one, to a send that asks for its payload not to be copied.
    pub completion: Option<u32>,
}

/// How many full recipients a refusal names.
pub const NAMED_RECIPIENTS: usize = 16;

/// Recipients without room: some by name, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FullRecipients {
    named: [EndpointId; NAMED_RECIPIENTS],
    count: u32,
    last: Option<EndpointId>,
}

impl FullRecipients {
    pub(crate) const fn none() -> Self {
        Self { named: [EndpointId::from_raw(0); NAMED_RECIPIENTS], count: 0, last: None }
    }

    /// One endpoint, which has room that is owed to others.
    pub(crate) fn one(id: EndpointId) -> Self {
        let mut full = Self::none();
        full.add(id);
        full
    }

    pub(crate) fn add(&mut self, id: EndpointId) {
        // A peer endpoint may lack room in its owner's queue and in its share of it.
        if self.last == Some(id) {
            return;
        }
        self.last = Some(id);
        if let Some(place) = self.named.get_mut(self.count as usize) {
            *place = id;
        }
        self.count += 1;
    }

    /// The first of them, at most [`NAMED_RECIPIENTS`].
    #[must_use]
    pub fn named(&self) -> &[EndpointId] {
        &self.named[..NAMED_RECIPIENTS.min(self.count as usize)]
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn is_only(&self, id: EndpointId) -> bool {
        self.count == 1 && self.named[0] == id
    }
}

/// Why a send did not happen. It has reached nobody (G1).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// There is no such group, or it has ended. Look the name up again, or create the group.
    #[error("there is no group {0}; it may have ended")]
    NoSuchGroup(GroupId),
    /// The endpoint was closed, or never was.
    #[error("there is no endpoint {0}; it may have been closed")]
    NoSuchEndpoint(EndpointId),
    /// Nobody owns the name any more. Look it up again, or watch it.
    #[error("nobody owns name {0}")]
    NoSuchName(NameId),
    /// The group is gated and the sender is outside. Ask its owner to be admitted.
    #[error("endpoint {1} is not a member of gated group {0}, and only members may send to it")]
    NotAMember(GroupId, EndpointId),
    /// The endpoint has called `shutdown_receive` (`EPIPE`).
    #[error("endpoint {0} receives nothing any more")]
    ReceiveShut(EndpointId),
    /// A recipient without `DROP_WHEN_FULL` has no room, or an older waiting send is owed it. Wait
    /// until the destination is writable (G6), or use a send that waits.
    #[error("{} recipients have no room, the first of them endpoint {}", .full.count(), .full.named()[0])]
    WouldBlock {
        /// Who they are.
        full: Box<FullRecipients>,
    },
    /// A send that would wait lacks only room in its own sender's queue. Take messages first:
    /// waiting would be for oneself.
    #[error("only the sender's own queue has no room; take messages and send again")]
    OwnQueueFull,
    /// The payload is larger than the bus accepts; it never fits.
    #[error("the payload has {given} bytes, and the limit is {limit}")]
    TooLarge {
        /// Its size in bytes.
        given: usize,
        /// The limit in bytes.
        limit: u32,
    },
    /// More descriptors than the bus accepts.
    #[error("the message carries {given} descriptors, and the limit is {limit}")]
    TooManyDescriptors {
        /// How many there are.
        given: usize,
        /// The limit.
        limit: u8,
    },
    /// The endpoint is stalled: it took nothing while this send waited for it for the stall limit.
    #[error("endpoint {0} has not read for the stall limit")]
    RecipientStalled(EndpointId),
    /// It was cancelled, or its deadline came, before it could be committed.
    #[error("the send was cancelled before it took its place")]
    Cancelled,
    /// A send of this lane is still waiting; a lane is first in, first out.
    #[error("an earlier send of this lane is still waiting")]
    LaneBusy,
    /// The sending endpoint has been closed.
    #[error("the sending endpoint has been closed")]
    Closed,
    /// Nobody waits for this reply: the request has its outcome already, or this endpoint was not
    /// asked. Go on with the next request.
    #[error("nobody waits for a reply to request {0} from this endpoint")]
    NoSuchRequest(Sequence),
    /// The request's deadline came before the request could be delivered.
    #[error("the request's deadline has passed")]
    DeadlinePassed,
    /// The sending endpoint has as many unanswered requests as it may have, unread outcomes
    /// included. Wait for one, or read.
    #[error(transparent)]
    RequestLimit(LimitExceeded),
    /// A request goes to one endpoint, and a refusal to a caller.
    #[error("a request goes to one endpoint or name, and a refusal only to a caller")]
    WrongKind,
}

/// Wakers to be called once every lock is released, and things to be dropped then.
///
/// Dropping a waker or a payload runs code of whoever made it. A waker may hold the last reference
/// to a task, the task a lane, and a lane that is dropped enters the waiting room: under its lock
/// that would be a deadlock.
#[derive(Debug)]
#[must_use = "a reader that is not woken sleeps beside a message"]
pub(crate) struct Effects {
    wakers: Vec<Waker>,
    discarded: Vec<(Option<Outgoing>, Option<Waker>)>,
    /// Messages that a group retains no longer.
    displaced: Vec<Arc<Message>>,
    /// Who had no room, after an [`Attempt::Full`]. Kept here because it is long, and an attempt
    /// is handed on several times.
    pub(crate) full: FullRecipients,
}

impl Default for Effects {
    fn default() -> Self {
        let full = FullRecipients::none();
        Self { wakers: Vec::new(), discarded: Vec::new(), displaced: Vec::new(), full }
    }
}

impl Effects {
    /// Makes room for `more` wakers, so that adding them under the locks does not allocate.
    pub(crate) fn reserve(&mut self, more: usize) {
        self.wakers.reserve(more);
    }

    pub(crate) fn wake(&mut self, waker: Option<Waker>) {
        self.wakers.extend(waker);
    }

    /// Keeps what is of no use any more until the locks are released.
    pub(crate) fn discard(&mut self, outgoing: Option<Outgoing>, waker: Option<Waker>) {
        if outgoing.is_some() || waker.is_some() {
            self.discarded.push((outgoing, waker));
        }
    }

    /// Calls the wakers and drops what was discarded. No lock of the bus may be held.
    pub(crate) fn run(&mut self) {
        let mut rest = WakeRest(self.wakers.drain(..));
        for waker in rest.0.by_ref() {
            waker.wake();
        }
        drop(rest);
        self.discarded.clear();
        self.displaced.clear();
    }
}

/// Wakers that have not been called. One that panics does not keep the others asleep: that would
/// be a lost wake-up of somebody who has nothing to do with it.
struct WakeRest<'a>(std::vec::Drain<'a, Waker>);

impl Drop for WakeRest<'_> {
    fn drop(&mut self) {
        for waker in &mut self.0 {
            waker.wake();
        }
    }
}

/// Where a send goes, resolved and cached: the recipient list and the locks that cover it.
#[derive(Clone, Debug)]
pub(crate) enum Route {
    Group {
        group: Arc<Group>,
        membership: Arc<Membership>,
        /// Where the sender stands in the membership if it is not a recipient itself.
        skip: Option<usize>,
        /// The peer endpoint of the sender, if its messages go there too.
        peer: Option<Arc<Peer>>,
        /// The group is gated, and the sender is not in it.
        outside: bool,
        locks: LockBits,
        /// Those who accept the message, if any member has a filter. Until a message has been
        /// chosen for, it is another one's.
        selection: Option<Box<Selection>>,
    },
    Endpoint(IntakePlace),
    /// To the caller of a request, as its reply.
    Caller {
        place: IntakePlace,
        /// What the caller knows the request by.
        id: Sequence,
        /// What the sender knows it by.
        request: Sequence,
    },
    Name(NameRoute),
    /// A peer endpoint of the sender.
    Peer(Arc<Peer>),
}

/// A recipient that a send needs and that has no room.
#[derive(Debug)]
pub(crate) struct FullRecipient {
    pub(crate) core: Arc<EndpointCore>,
    pub(crate) queued_messages: u64,
    /// It leaves rather than make anybody wait.
    pub(crate) leaves: bool,
    /// The queue has room, and the sender's user has his share of it.
    pub(crate) for_one_user: bool,
}

impl FullRecipient {
    /// None if there is room for messages of this user.
    pub(crate) fn of(intake: &mut Intake, user: u32) -> Option<Self> {
        let share = intake.share_of(user);
        let whole = !intake.has_room();
        let full = whole || (share.is_some() && !intake.has_room_of(share));
        let (core, queued_messages) = (Arc::clone(&intake.core), intake.depth().0);
        full.then_some(Self { core, queued_messages, leaves: false, for_one_user: !whole })
    }
}

/// One recipient of a route.
pub(crate) struct Recipient<'a> {
    /// The queue in which the message lies.
    pub(crate) place: IntakePlace,
    /// By which name it is known to senders.
    name: EndpointId,
    /// Where its losses are counted, if it drops when full.
    pub(crate) drops: Option<&'a Arc<Drops>>,
    /// The peer endpoint through which it gets the message.
    peer: Option<&'a Peer>,
}

impl<'a> Recipient<'a> {
    fn direct(place: IntakePlace, drops: Option<&'a Arc<Drops>>) -> Self {
        Self { place, name: place.id, drops, peer: None }
    }

    fn peer(peer: &'a Peer, drops: Option<&'a Arc<Drops>>) -> Self {
        Self { place: peer.owner, name: peer.share.id(), drops, peer: Some(peer) }
    }
}

impl Route {
    pub(crate) fn to_group(group: Arc<Group>, sender: EndpointId) -> Self {
        let membership = group.membership();
        let at = membership.position(sender);
        let outside = group.is_gated() && at.is_none() && !mutated(Mutant::OutsiderSends);
        let peer = at.and_then(|at| membership.members()[at].peer.clone());
        let skip = at.filter(|at| !membership.members()[*at].flags.contains(MemberFlags::LOOPBACK));
        let mut locks = membership.locks_without(skip);
        if let Some(peer) = &peer {
            locks.insert(peer.owner.lock);
        }
        if locks.is_empty() && !mutated(Mutant::EmptySetTakesNoLock) {
            locks = LockBits::one(group.home);
        }
        let selection = membership.has_filters().then(Box::default);
        Self::Group { group, membership, skip, peer, outside, locks, selection }
    }

    /// Selects who accepts a message, before any lock is taken.
    #[inline(never)]
    fn choose(&mut self, subject: Subject<'_>) {
        if let Self::Group { membership, skip, selection: Some(selection), .. } = self {
            selection.choose(membership, *skip, subject);
        }
    }

    pub(crate) fn destination(&self) -> Destination {
        match self {
            Self::Group { group, .. } => Destination::Group(group.id),
            Self::Endpoint(place) => Destination::Endpoint(place.id),
            Self::Caller { request, .. } => Destination::Caller(*request),
            Self::Name(route) => Destination::Name(route.name.id),
            Self::Peer(peer) => Destination::Endpoint(peer.share.id()),
        }
    }

    pub(crate) fn locks(&self) -> LockBits {
        let mut locks = match self {
            Self::Group { group, selection: Some(selection), peer, .. } => {
                let mut locks = selection.locks();
                if let Some(peer) = peer {
                    locks.insert(peer.owner.lock);
                }
                if locks.is_empty() { LockBits::one(group.home) } else { locks }
            }
            Self::Group { locks, .. } => *locks,
            Self::Endpoint(place) | Self::Caller { place, .. } => LockBits::one(place.lock),
            Self::Name(route) => route.locks(),
            Self::Peer(peer) => LockBits::one(peer.owner.lock),
        };
        if let Self::Group { group, .. } = self
            && group.retain().is_some()
            && !mutated(Mutant::RetainWithoutHome)
        {
            locks.insert(group.home);
        }
        locks
    }

    /// Where it leads, as monitors are told.
    fn addressee(&self) -> Addressee {
        match self {
            Self::Group { group, .. } => Addressee::Group(group.id, group.name.clone()),
            _ => {
                let one = self.recipients().next();
                let nobody = EndpointId::from_raw(0);
                let one = one.map_or(nobody, |recipient| recipient.place.id);
                match self.name() {
                    Some(route) => Addressee::Name(route.name.id, route.name.text.clone(), one),
                    None => Addressee::Endpoint(one),
                }
            }
        }
    }

    /// The name of the group that it leads to.
    pub(crate) fn group_name(&self) -> Option<GroupName> {
        match self {
            Self::Group { group, .. } => Some(group.name.clone()),
            _ => None,
        }
    }

    /// The group, if it retains what is sent to it.
    pub(crate) fn retaining(&self) -> Option<&Group> {
        match self {
            Self::Group { group, .. } if group.retain().is_some() => Some(group),
            _ => None,
        }
    }

    /// Whether the membership is still the group's current one; asked under the route's locks.
    pub(crate) fn is_current(&self) -> bool {
        match self {
            Self::Group { group, membership, .. } => {
                group.generation() == membership.generation || mutated(Mutant::SkipGenerationCheck)
            }
            Self::Endpoint(_) | Self::Caller { .. } | Self::Peer(_) => true,
            Self::Name(route) => route.is_current(),
        }
    }

    /// Goes by the current membership or owners, and selects from it.
    fn refresh(&mut self, sender: EndpointId, subject: Subject<'_>) {
        if let Self::Name(route) = self {
            *route = NameRoute::new(Arc::clone(&route.name));
        }
        let Self::Group { group, selection, .. } = self else {
            return;
        };
        let kept = selection.take();
        *self = Self::to_group(Arc::clone(group), sender);
        if let Self::Group { membership, skip, selection: Some(selection), .. } = self {
            if let Some(kept) = kept {
                *selection = kept;
            }
            selection.choose_again(membership, *skip, subject);
        }
    }

    /// Version of the membership that it goes by.
    pub(crate) fn generation(&self) -> Option<Generation> {
        match self {
            Self::Group { membership, .. } => Some(membership.generation),
            Self::Name(route) => Some(route.ownership.generation),
            Self::Endpoint(_) | Self::Caller { .. } | Self::Peer(_) => None,
        }
    }

    /// Since when the membership has had the members that it has, if a message goes to all of them,
    /// and to nobody else.
    pub(crate) fn audience(&self) -> Option<Generation> {
        match self {
            Self::Group { membership, selection: None, peer: None, .. } => {
                Some(membership.audience)
            }
            _ => None,
        }
    }

    /// Whether all that happens to a message along this route is that every member of a group gets it.
    pub(crate) fn is_plain_group(&self) -> bool {
        match self {
            Self::Group { group, membership, selection: None, peer: None, outside, .. } => {
                !outside && !membership.ended && group.retain().is_none()
            }
            _ => false,
        }
    }

    /// Whether its recipients differ from message to message.
    pub(crate) fn is_selective(&self) -> bool {
        matches!(self, Self::Group { selection: Some(_), .. })
    }

    /// The name that it leads to.
    pub(crate) fn name(&self) -> Option<&NameRoute> {
        match self {
            Self::Name(route) => Some(route),
            Self::Group { .. } | Self::Endpoint(_) | Self::Caller { .. } | Self::Peer(_) => None,
        }
    }

    /// The only endpoint that a message along this route can reach, if it is no group.
    pub(crate) fn sole_recipient(&self) -> Option<EndpointId> {
        match self {
            Self::Group { .. } => None,
            Self::Endpoint(place) | Self::Caller { place, .. } => Some(place.id),
            Self::Name(route) => route.ownership.sole_owner(),
            Self::Peer(peer) => Some(peer.owner.id),
        }
    }

    /// The queues that a message along it can come to lie in.
    fn places(&self) -> Vec<IntakePlace> {
        match self {
            Self::Name(route) => {
                route.ownership.owners().iter().map(|owner| owner.core.place).collect()
            }
            _ => self.recipients().map(|recipient| recipient.place).collect(),
        }
    }

    /// Why nobody can send along it, or not this sender.
    fn refusal(&self, sender: EndpointId) -> Option<SendError> {
        match self {
            Self::Group { group, membership, .. } if membership.ended => {
                Some(SendError::NoSuchGroup(group.id))
            }
            Self::Group { group, outside: true, .. } => {
                Some(SendError::NotAMember(group.id, sender))
            }
            _ => None,
        }
    }

    /// Whether a message along it goes to a peer endpoint of its sender's.
    pub(crate) fn has_peer(&self) -> bool {
        matches!(self, Self::Peer(_) | Self::Group { peer: Some(_), .. })
    }

    pub(crate) fn most_recipients(&self) -> usize {
        match self {
            Self::Group { membership, .. } => membership.members().len() + 1,
            Self::Endpoint(_) | Self::Caller { .. } | Self::Name(_) | Self::Peer(_) => 1,
        }
    }

    #[inline]
    pub(crate) fn recipients(&self) -> Recipients<'_> {
        match self {
            Self::Group { membership, selection, skip, peer, .. } => {
                let peer = peer.as_deref();
                let peer = peer.map(|peer| Recipient::peer(peer, peer.drops.as_ref()));
                let members = membership.members();
                if let Some(selection) = selection {
                    let positions = selection.positions().iter();
                    return Recipients::Chosen { members, positions, peer };
                }
                let (before, after) = match *skip {
                    Some(at) => (&members[..at], &members[at + 1..]),
                    None => (members, &[][..]),
                };
                Recipients::All { before: before.iter(), after: after.iter(), peer }
            }
            Self::Endpoint(place) | Self::Caller { place, .. } => {
                Recipients::One(Some(Recipient::direct(*place, None)))
            }
            Self::Peer(peer) => Recipients::One(Some(Recipient::peer(peer, None))),
            Self::Name(route) => {
                let one = route.recipient();
                Recipients::One(one.map(|place| Recipient::direct(place, None)))
            }
        }
    }

    /// Everything in which a message along this route needs room: the queues of its recipients,
    /// and a peer endpoint's share of its owner's queue.
    fn accounts(&self) -> impl Iterator<Item = Recipient<'_>> {
        let peer = match self {
            Self::Group { peer: Some(peer), .. } => Some((&**peer, peer.drops.as_ref())),
            Self::Peer(peer) => Some((&**peer, None)),
            _ => None,
        };
        let share = peer.map(|(peer, drops)| Recipient::direct(peer.share.place, drops));
        self.recipients().chain(share)
    }

    /// Whether some member of its group leaves rather than make a sender wait.
    pub(crate) fn has_leavers(&self) -> bool {
        matches!(self, Self::Group { membership, .. } if membership.has_leavers())
    }

    /// Whether this is such a member.
    fn leaves(&self, id: EndpointId) -> bool {
        matches!(self, Self::Group { membership, .. } if membership.leaves_when_full(id))
    }

    /// The stall limit of its group, if that has one of its own.
    pub(crate) fn stall(&self) -> Option<Duration> {
        match self {
            Self::Group { group, .. } => group.stall,
            _ => None,
        }
    }

    /// Whether a message along this route needs a place in the queue of `id`.
    pub(crate) fn needs(&self, id: EndpointId) -> bool {
        match self {
            Self::Group { membership, skip, selection, peer, .. } => {
                let member = membership.position(id).is_some_and(|at| {
                    let accepts = selection.as_ref().is_none_or(|chosen| chosen.contains(at));
                    accepts && Some(at) != *skip && membership.members()[at].drops.is_none()
                });
                member || peer.as_ref().is_some_and(|peer| peer.drops.is_none() && peer.is_of(id))
            }
            Self::Endpoint(_) | Self::Caller { .. } | Self::Name(_) => {
                self.sole_recipient() == Some(id)
            }
            Self::Peer(peer) => peer.is_of(id),
        }
    }
}

/// The recipients of a route: a group's members ascending, and the sender's peer endpoint behind
/// them.
pub(crate) enum Recipients<'a> {
    /// A group's members but for one.
    All {
        before: slice::Iter<'a, Member>,
        after: slice::Iter<'a, Member>,
        peer: Option<Recipient<'a>>,
    },
    /// Those who accept.
    Chosen {
        members: &'a [Member],
        positions: slice::Iter<'a, u32>,
        peer: Option<Recipient<'a>>,
    },
    One(Option<Recipient<'a>>),
}

impl<'a> Iterator for Recipients<'a> {
    type Item = Recipient<'a>;

    #[inline]
    fn next(&mut self) -> Option<Recipient<'a>> {
        let (member, peer) = match self {
            Self::All { before, after, peer } => (before.next().or_else(|| after.next()), peer),
            Self::Chosen { members, positions, peer } => {
                (positions.next().map(|at| &members[*at as usize]), peer)
            }
            Self::One(one) => return one.take(),
        };
        match member {
            Some(member) => Some(Recipient::direct(member.place, member.drops.as_ref())),
            None => peer.take(),
        }
    }
}

/// A send that has not been committed.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) sender: Arc<EndpointCore>,
    pub(crate) route: Route,
    /// Nobody else has it until its commit. None asks whether the route is writable.
    pub(crate) message: Option<Arc<Message>>,
    /// What a message would say for which it is asked whether the route is writable.
    asked: Option<Box<Attributes>>,
    /// Of a request: the running time at which it is over, in nanoseconds.
    pub(crate) until: Option<u64>,
    /// What the sender is charged for the request.
    pub(crate) charge: Option<Charge>,
}

impl Outgoing {
    /// A message on its way.
    #[inline]
    pub(crate) fn new(sender: Arc<EndpointCore>, mut route: Route, message: Arc<Message>) -> Self {
        if route.is_selective() {
            route.choose(subject(Some(&message), None));
        }
        if route.retaining().is_some() {
            // It will be kept for long, and looked at under locks.
            let _ = message.payload().as_bytes();
        }
        Self { sender, route, message: Some(message), asked: None, until: None, charge: None }
    }

    /// The question whether a message of these attributes would find room.
    pub(crate) fn asking(
        sender: Arc<EndpointCore>,
        mut route: Route,
        about: Box<Attributes>,
    ) -> Self {
        route.choose(subject(None, Some(&about)));
        Self { sender, route, message: None, asked: Some(about), until: None, charge: None }
    }

    /// The locks that its commit needs: a request's entry is made under its caller's.
    fn locks(&self) -> LockBits {
        let mut locks = self.route.locks();
        if self.until.is_some() {
            locks.insert(self.sender.place.lock);
        }
        locks
    }

    /// Goes by the current membership.
    fn refresh(&mut self) {
        let subject = subject(self.message.as_deref(), self.asked.as_deref());
        self.route.refresh(self.sender.id(), subject);
    }
}

/// What filters see of a send.
fn subject<'a>(message: Option<&'a Message>, asked: Option<&'a Attributes>) -> Subject<'a> {
    static NOTHING: Attributes = Attributes::EMPTY;
    match message {
        Some(message) => {
            let payload = Some(Seen::Of(message.payload()));
            Subject { attributes: message.attributes(), payload }
        }
        None => Subject { attributes: asked.unwrap_or(&NOTHING), payload: None },
    }
}

/// By which right a send takes places.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Standing<'a> {
    /// It has not waited: places that older waiting sends are owed are not for it.
    Newcomer,
    /// It waits, and leaves to older ones the places at the queues where they do.
    Waiter(Turn<'a>),
}

impl Standing<'_> {
    /// Whether room at a queue is owed to older waiting sends.
    #[inline]
    pub(crate) fn owes(self, core: &EndpointCore, share: Option<ShareSlot>) -> bool {
        if core.waiting_sends_at(share) == 0 {
            return false;
        }
        match self {
            Self::Newcomer => !mutated(Mutant::PassOlder),
            Self::Waiter(turn) => {
                let line = Line { queue: core.id(), share };
                turn.follows_another_at(line) && !mutated(Mutant::WaiterPassesOlder)
            }
        }
    }

    /// Whether it may go beyond a queue's capacity, or beyond its user's share of it.
    fn takes_reserve(self, intake: &Intake, share: Option<ShareSlot>) -> bool {
        match self {
            Self::Newcomer => false,
            Self::Waiter(turn) => {
                let line = Line { queue: intake.id(), share };
                intake.has_reserve(share) && turn.may_use_reserve(line)
            }
        }
    }
}

/// Which of the queues that a send lacks it waits at, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Preference {
    /// Where it stands in line: it has not been offered a place there yet.
    Stay,
    Full,
    /// It has been there, and somebody older took what it keeps.
    Kept,
    Owed,
    /// Its own queue is the last one: a sender that is blocked does not read it, so nobody would
    /// look again when the others have room and it is the only one.
    Own,
}

impl Preference {
    fn of(line: Line, own: EndpointId, room: bool, standing: Standing<'_>) -> Self {
        match standing {
            _ if line.queue == own && !mutated(Mutant::WaitAtOwnQueue) => Self::Own,
            Standing::Waiter(turn) if turn.is_at(line) => Self::Stay,
            _ if room => Self::Owed,
            Standing::Waiter(turn) if turn.keeps(line) => Self::Kept,
            _ => Self::Full,
        }
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum Attempt {
    Committed(Receipt),
    /// Nothing to commit: the route is writable.
    Writable,
    /// Some recipients have no place for it; [`Effects::full`] says who. `at` is the one to wait at:
    /// where it is, if that is one; the sender itself only if there is no other.
    Full {
        at: Place,
    },
    /// All others have room, and at `at` it is owed to older sends; where it is, if that is one.
    Owed {
        at: Place,
    },
    /// A recipient is another user's and does not count yet what others hold of its queue. It is
    /// made to, and the attempt made again; nobody but [`BusInner::attempt`] sees this.
    NoShares,
}

/// How many messages that are retained no longer a send takes away at a time.
const DISPLACED: usize = 4;

/// How often a send starts over because the membership moved, before it keeps changes out.
const RESTARTS: u32 = 2;

impl BusInner {
    /// Tries to commit a send.
    pub(crate) fn attempt(
        &self,
        outgoing: &mut Outgoing,
        standing: Standing<'_>,
        effects: &mut Effects,
    ) -> Result<Attempt, SendError> {
        for _ in 0..=RESTARTS {
            match self.attempt_once(outgoing, standing, effects) {
                Some(Ok(Attempt::NoShares)) => self.make_shares(outgoing),
                Some(ended) => return ended,
                None => outgoing.refresh(),
            }
        }
        // With the directory held nobody changes a membership.
        let _directory = self.directory.lock();
        loop {
            outgoing.refresh();
            match self.attempt_once(outgoing, standing, effects) {
                Some(Ok(Attempt::NoShares)) => self.make_shares(outgoing),
                Some(ended) => return ended,
                None => {}
            }
        }
    }

    /// Has recipients of other users count what those hold of their queues. What that allocates is
    /// made before any lock.
    #[cold]
    fn make_shares(&self, outgoing: &Outgoing) {
        let user = outgoing.sender.user;
        for place in outgoing.route.places() {
            let lacking = |held: &mut Held<'_>| {
                let intake = held.intake(place).filter(|intake| intake.lacks_shares(user));
                intake.map(|intake| Arc::clone(&intake.core))
            };
            let Some(core) = lacking(&mut self.locks.acquire(LockBits::one(place.lock))) else {
                continue;
            };
            core.shares.get_or_init(|| Box::new(Shares::new()));
            let mut table = Some(Box::new(ShareTable::new()));
            let mut held = self.locks.acquire(LockBits::one(place.lock));
            if lacking(&mut held).is_some()
                && let Some(intake) = held.intake(place)
            {
                intake.attach_shares(&mut table);
            }
            drop(held);
        }
    }

    /// None if the membership has moved.
    fn attempt_once(
        &self,
        outgoing: &mut Outgoing,
        standing: Standing<'_>,
        effects: &mut Effects,
    ) -> Option<Result<Attempt, SendError>> {
        let monitors = self.monitors.list();
        let mut locks = outgoing.locks();
        let mut copy = None;
        let mut copies = 0;
        if let Some(monitors) = &monitors {
            locks.insert_all(monitors.locks());
            copies = monitors.len();
            let message = outgoing.message.as_deref();
            copy = message.and_then(Message::without_descriptors).map(Arc::new);
        }
        effects.reserve(outgoing.route.most_recipients() + copies);
        if outgoing.route.retaining().is_some() {
            effects.displaced.reserve(DISPLACED);
        }
        let mut held = self.locks.acquire(locks);
        if !outgoing.route.is_current() || !self.monitors.are(monitors.as_deref()) {
            return None;
        }
        if let Some(refusal) = outgoing.route.refusal(outgoing.sender.id()) {
            return Some(Err(refusal));
        }
        if outgoing.sender.is_closed() && !mutated(Mutant::ClosedSenderCommits) {
            return Some(Err(SendError::Closed));
        }
        let checked = match outgoing.route {
            Route::Name(_) => self.choose(&mut held, outgoing, standing, &mut effects.full),
            _ => self.check(&mut held, outgoing, standing, &mut effects.full),
        };
        Some(match checked {
            Err(error) => Err(error),
            Ok(Some(refusal)) => Ok(refusal),
            Ok(None) if outgoing.message.is_none() => Ok(Attempt::Writable),
            Ok(None) => {
                let monitors = monitors.as_deref().map(|list| (list, copy));
                let receipt = self.commit(held, outgoing, standing, monitors, effects);
                if outgoing.until.is_some() || matches!(outgoing.route, Route::Caller { .. }) {
                    self.after_commit(outgoing, &receipt);
                }
                Ok(Attempt::Committed(receipt))
            }
        })
    }

    /// The recipients that a waiting send needs and that have no room for it.
    pub(crate) fn find_full(&self, outgoing: &Outgoing) -> Vec<FullRecipient> {
        let user = outgoing.sender.user;
        let mut route = outgoing.route.clone();
        let subject = subject(outgoing.message.as_deref(), outgoing.asked.as_deref());
        route.refresh(outgoing.sender.id(), subject);
        let mut full = Vec::with_capacity(route.most_recipients());
        let mut held = self.locks.acquire(route.locks());
        if let Route::Name(route) = &route {
            return route.find_full(&mut held, user);
        }
        for recipient in route.accounts().filter(|recipient| recipient.drops.is_none()) {
            let found = held.intake(recipient.place).and_then(|at| FullRecipient::of(at, user));
            full.extend(found.map(|found| FullRecipient {
                // Who has room for others is not put out at once because of one user.
                leaves: !found.for_one_user && route.leaves(found.core.id()),
                ..found
            }));
        }
        full
    }

    /// Chooses who of a name's owners gets the message. None if somebody does.
    fn choose(
        &self,
        held: &mut Held<'_>,
        outgoing: &mut Outgoing,
        standing: Standing<'_>,
        full: &mut FullRecipients,
    ) -> Result<Option<Attempt>, SendError> {
        if outgoing.until.is_some() {
            self.check_request(held, outgoing)?;
        }
        let (sender, commits) = (&outgoing.sender, outgoing.message.is_some());
        match &mut outgoing.route {
            Route::Name(route) => route.choose(held, sender, standing, commits, full),
            _ => Ok(None),
        }
    }

    /// Looks at every recipient before anything is pushed. None if all is well.
    fn check(
        &self,
        held: &mut Held<'_>,
        outgoing: &Outgoing,
        standing: Standing<'_>,
        full: &mut FullRecipients,
    ) -> Result<Option<Attempt>, SendError> {
        let is_plain = outgoing.until.is_none() && !matches!(outgoing.route, Route::Caller { .. });
        let user = outgoing.sender.user;
        if is_plain && all_have_room(held, &outgoing.route, user, standing) {
            return Ok(None);
        }
        self.find_refusal(held, outgoing, standing, full)
    }

    /// As [`check`](Self::check), and says what is wrong with whom.
    #[cold]
    fn find_refusal(
        &self,
        held: &mut Held<'_>,
        outgoing: &Outgoing,
        standing: Standing<'_>,
        full: &mut FullRecipients,
    ) -> Result<Option<Attempt>, SendError> {
        let (own, user) = (outgoing.sender.id(), outgoing.sender.user);
        *full = FullRecipients::none();
        let mut owed = false;
        let mut at: Option<(Preference, Place)> = None;
        if outgoing.until.is_some() {
            self.check_request(held, outgoing)?;
        }
        for recipient in outgoing.route.accounts() {
            let id = recipient.place.id;
            let Some(intake) = held.intake(recipient.place) else {
                return Err(SendError::NoSuchEndpoint(recipient.name));
            };
            if intake.is_receive_shut() && !mutated(Mutant::ShutStillReceives) {
                return Err(SendError::ReceiveShut(recipient.name));
            }
            if let Route::Caller { id, request, .. } = outgoing.route
                && self.has_kept_place(intake, outgoing, id, request)?
            {
                continue;
            }
            if intake.lacks_shares(user) {
                return Ok(Some(Attempt::NoShares));
            }
            if recipient.drops.is_some() {
                continue;
            }
            // It needs room in the queue, and in its user's share of that.
            let share = intake.share_of(user);
            for share in iter::once(None).chain(share.map(Some)) {
                let room = intake.has_room_of(share);
                if room && !standing.owes(&intake.core, share) {
                    continue;
                }
                let reserve = || standing.takes_reserve(intake, share);
                if !room && (reserve() || mutated(Mutant::DeliverToSome)) {
                    continue;
                }
                if room {
                    owed = true;
                } else {
                    full.add(recipient.name);
                }
                let preference = Preference::of(Line { queue: id, share }, own, room, standing);
                if at.as_ref().is_none_or(|(best, _)| preference < *best) {
                    at = Some((preference, Place { core: Arc::clone(&intake.core), share }));
                }
            }
        }
        Ok(at.map(|(_, at)| {
            if full.count() == 0 || (owed && full.is_only(own)) {
                Attempt::Owed { at }
            } else {
                Attempt::Full { at }
            }
        }))
    }

    /// Whether a request may be made now.
    fn check_request(&self, held: &mut Held<'_>, outgoing: &Outgoing) -> Result<(), SendError> {
        let own = held.intake(outgoing.sender.place).ok_or(SendError::Closed)?;
        if own.is_receive_shut() {
            return Err(SendError::ReceiveShut(own.id()));
        }
        match outgoing.message.as_ref().and_then(|message| message.repeats()) {
            Some(first) if own.requests.find(first).is_none() => {
                return Err(SendError::NoSuchRequest(first));
            }
            Some(_) => {}
            None => {
                request::check_limit(own, self.limits.requests).map_err(SendError::RequestLimit)?
            }
        }
        let running = self.running().as_nanos();
        if outgoing.until.is_some_and(|until| u128::from(until) <= running) {
            return Err(SendError::DeadlinePassed);
        }
        Ok(())
    }

    /// Whether a reply may use the place that its request has kept, room or not.
    fn has_kept_place(
        &self,
        caller: &Intake,
        outgoing: &Outgoing,
        id: Sequence,
        request: Sequence,
    ) -> Result<bool, SendError> {
        let open = caller.requests.find(id).filter(|open| open.asked_as == request);
        open.ok_or(SendError::NoSuchRequest(request))?;
        let bytes = outgoing.message.as_ref().map_or(0, |message| message.bytes());
        Ok(bytes <= u64::from(self.limits.reply_bytes))
    }

    /// The commit point: every lock is held and every check has passed.
    fn commit<'a>(
        &'a self,
        mut held: Held<'a>,
        outgoing: &mut Outgoing,
        standing: Standing<'_>,
        monitors: Option<(&MonitorList, Option<Arc<Message>>)>,
        effects: &mut Effects,
    ) -> Receipt {
        let after = outgoing.sender.taken();
        let sequence = held.draw(outgoing.sender.seen());
        let sender_serial = outgoing.sender.record_sent(sequence, 1);
        let mut message = outgoing.message.take().expect("a message was checked for");
        let commit_time = self.now();
        let audience = outgoing.route.audience();
        let stamp = Stamp { sequence, sender_serial, commit_time, audience };
        Arc::get_mut(&mut message).expect("nobody has a message before its commit").stamp(stamp);
        if let Some(group) = outgoing.route.retaining()
            && let Some(mut store) = group.store()
        {
            store.put(&message, &mut effects.displaced);
        }
        let mut receipt =
            Receipt { sequence, sender_serial, after, recipients: 0, dropped: 0, completion: None };
        let log = self.begin_log(&mut held, &outgoing.route);
        let mut callee = None;
        let first = message.repeats();
        for recipient in outgoing.route.recipients() {
            if mutated(Mutant::ReleaseBetweenPushes) {
                drop(held);
                held = self.locks.acquire(LockBits::one(recipient.place.lock));
            }
            let share_takes = match recipient.peer {
                Some(peer) if recipient.drops.is_some() => {
                    let share = held.intake(peer.share.place);
                    share.is_some_and(|share| takes_dropper(share, None, standing))
                }
                _ => true,
            };
            let Some(intake) = held.intake(recipient.place) else {
                continue;
            };
            if mutated(Mutant::DeliverToSome) && !intake.has_room() {
                continue;
            }
            let user = intake.share_of(outgoing.sender.user);
            if let Some(drops) = recipient.drops
                && !(share_takes && takes_dropper(intake, user, standing))
            {
                intake.drop_message(drops, sequence);
                receipt.dropped += 1;
                if !mutated(Mutant::DropWakesNobody) {
                    effects.wake(intake.take_reader_of_gap());
                }
                log.missed(&mut held, recipient.name);
            } else if let Route::Caller { id, .. } = outgoing.route {
                intake.requests.take(id);
                if message.bytes() <= u64::from(self.limits.reply_bytes) {
                    intake.push_reply(Arc::clone(&message));
                } else {
                    intake.push(Arc::clone(&message), None, user);
                }
                receipt.recipients += 1;
                effects.wake(intake.take_reader());
            } else {
                let missed = Intake::take_gap(recipient.drops);
                callee = Some(recipient.place);
                receipt.recipients += 1;
                let Some(peer) = recipient.peer else {
                    intake.push(Arc::clone(&message), missed, user);
                    effects.wake(intake.take_reader());
                    log.chosen(&mut held, recipient.name);
                    continue;
                };
                let share = Arc::clone(&peer.share);
                intake.push_from_peer(Arc::clone(&message), missed, share, user);
                effects.wake(intake.take_reader());
                log.chosen(&mut held, recipient.name);
                if let Some(share) = held.intake(peer.share.place) {
                    share.charge(sequence, message.charged_bytes());
                }
            }
        }
        if let Some((list, copy)) = monitors {
            let copy = match copy {
                Some(mut copy) => {
                    Arc::get_mut(&mut copy)
                        .expect("nobody has a copy before the commit")
                        .stamp(stamp);
                    copy
                }
                None => Arc::clone(&message),
            };
            let seen = Monitored::Message { message: copy, to: outgoing.route.addressee() };
            list.tell(&mut held, &seen, effects);
        }
        if let Some(counters) = held.counters() {
            counters.requests += u64::from(outgoing.until.is_some() && first.is_none());
            counters.answered += u64::from(matches!(outgoing.route, Route::Caller { .. }));
        }
        log.end(&mut held, &outgoing.route, &Committed::of(&message), &receipt);
        if let (Some(_), Some(asked)) = (outgoing.until, callee.and_then(|at| held.intake(at))) {
            asked.core.owe();
        }
        if let (Some(until), Some(callee)) = (outgoing.until, callee)
            && let Some(own) = held.intake(outgoing.sender.place)
        {
            match first {
                Some(first) => own.requests.given_again(first, sequence, callee),
                None => {
                    let open = Open { id: sequence, asked_as: sequence, callee, until };
                    own.requests.insert(open, outgoing.charge.take());
                }
            }
        }
        drop(held);
        receipt
    }
}

/// Whether every recipient takes a message that needs no more than room; what nearly all sends
/// find.
fn all_have_room(held: &mut Held<'_>, route: &Route, user: u32, standing: Standing<'_>) -> bool {
    route.accounts().all(|recipient| {
        held.intake(recipient.place).is_some_and(|intake| {
            let drops = recipient.drops.is_some();
            !intake.is_receive_shut()
                && (drops || (intake.has_room() && !standing.owes(&intake.core, None)))
                && (intake.is_of(user) || takes_foreign(intake, user, drops, standing))
        })
    })
}

/// Whether another user's queue, which has room, takes a message of this one.
#[cold]
fn takes_foreign(intake: &mut Intake, user: u32, drops: bool, standing: Standing<'_>) -> bool {
    let share = intake.share_of(user);
    let takes = drops || (intake.has_room_of(share) && !standing.owes(&intake.core, share));
    share.is_some() && takes
}

/// A drop-when-full member takes a message if it has room that no older waiting send is owed.
fn takes_dropper(intake: &Intake, share: Option<ShareSlot>, standing: Standing<'_>) -> bool {
    let owed = |share| standing.owes(&intake.core, share) && !mutated(Mutant::DropperPassesOlder);
    let takes = |share| intake.has_room_of(share) && !owed(share);
    takes(None) && (share.is_none() || takes(share))
}
