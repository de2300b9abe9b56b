//! Gated groups: their owners, the candidates, and the peer endpoints between them.
//!
//! A candidate connects to the owner of a gated group and asks to be admitted; the owner is told in
//! its queue, and admits or refuses it. Between an owner and a candidate there is one *peer
//! endpoint*, from the first connect until one of them ends it: the candidate's private address at
//! the owner, and with `SEND_TO_PEER` a recipient of what the member sends to the group.
//!
//! Invariants:
//! - A peer endpoint is an account, not a queue: a share of its owner's queue. Its messages lie in
//!   the owner's ring and take room in both, and it lives behind its owner's lock, so the checks and
//!   the pushes of a commit see both at once (G1). A send that lacks room in one of them stands in
//!   that one's line, like at any queue (`wait.rs`); the owner's reader frees places of both.
//! - A candidate's notice takes a place of its owner's queue, and is refused without one: so that an
//!   owner is told of every request that waits, and no candidate makes anybody wait (G4).
//! - Requests and peer endpoints change with the directory held. Who takes a request out of its
//!   list decides it before the directory is released, so each has one outcome. An admission is
//!   decided after its membership was published: who hears of it is a member.
//! - A membership names a peer endpoint only while that is there: what ends a peer endpoint
//!   publishes memberships without it before, or under the same locks (G9).

use std::sync::Arc;
use std::task::Waker;

use crate::bus::{Bus, BusInner, Departure, JoinError, Joined, LimitExceeded, MemberEntry};
use crate::directory::{Belonging, Directory, EndpointRecord};
use crate::filter::{Filter, MemberFilters};
use crate::group::Group;
use crate::id::{EndpointId, GroupId, Sequence};
use crate::intake::{Capacity, Drops, EndpointCore, Intake, Lost};
use crate::lock_set::{IntakePlace, LockBits};
use crate::member_change::{MemberChange, MemberEvent, ToBeSeen};
use crate::membership::{Member, MemberFlags};
use crate::name::GroupName;
use crate::notice::{Candidate, Eviction, EvictionCause, PeerChange};
use crate::send::Effects;
use crate::sync::{Mutant, Mutex, MutexGuard, Parker, mutated};
use crate::view::Step;
use crate::wait::{Changed, Stalled};

/// Bytes of the reason that an owner gives; what is beyond is cut off.
pub const MAX_REASON_BYTES: usize = 1024;

/// What the owner of a gated group decides for a member.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Terms {
    /// How it is a member. With `SEND_TO_PEER` what it sends to the group reaches its peer endpoint
    /// too, and waits for room there.
    pub flags: MemberFlags,
    /// The peer endpoint misses the member's messages to the group while it has no room, rather
    /// than make the member wait. The owner is told what it missed (G7).
    pub drop_at_peer: bool,
    /// What the member is to hear, if not everything. It cannot see, change or remove this, and may
    /// have a filter of its own: then both must accept.
    pub filter: Option<Filter>,
}

impl Terms {
    /// These flags; the peer endpoint misses nothing.
    #[must_use]
    pub fn new(flags: MemberFlags) -> Self {
        Self { flags, drop_at_peer: false, filter: None }
    }

    /// The same, and the peer endpoint misses messages while it has no room.
    #[must_use]
    pub fn dropping_at_peer(self) -> Self {
        Self { drop_at_peer: true, ..self }
    }

    /// The same, and the member hears only what this accepts.
    #[must_use]
    pub fn filtered(self, filter: Filter) -> Self {
        Self { filter: Some(filter), ..self }
    }
}

/// Why an owner could not do something about a candidate or a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// There is no such group, it is open, or somebody else owns it.
    #[error("endpoint {1} owns no gated group {0}")]
    NotTheOwner(GroupId, EndpointId),
    /// It does not wait to be admitted: it has withdrawn, is gone, or was decided on before.
    #[error("endpoint {1} does not wait to be admitted to group {0}")]
    NoCandidate(GroupId, EndpointId),
    /// It is not a member (any more).
    #[error("endpoint {1} is not a member of group {0}")]
    NotAMember(GroupId, EndpointId),
    /// The owner has shut down receiving, so nothing can be sent to it.
    #[error("endpoint {0} has no peer endpoint, and SEND_TO_PEER needs one")]
    NoPeer(EndpointId),
    /// The candidate cannot become a member so. It waits on.
    #[error(transparent)]
    Join(#[from] JoinError),
}

/// The address of one candidate or member at an owner.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The account: what of the owner's queue this peer endpoint holds.
    pub(crate) share: Arc<EndpointCore>,
    pub(crate) owner: IntakePlace,
    /// Where losses are counted, if it drops when full.
    pub(crate) drops: Option<Arc<Drops>>,
}

impl Peer {
    /// Whether a message that goes here needs room at `id`.
    pub(crate) fn is_of(&self, id: EndpointId) -> bool {
        self.share.id() == id || self.owner.id == id
    }
}

/// A peer endpoint, as the directory knows it.
#[derive(Debug)]
pub(crate) struct PeerRecord {
    share: Arc<EndpointCore>,
    owner: Arc<EndpointCore>,
    pub(crate) candidate: EndpointId,
    /// The group to which its candidate first connected.
    group: GroupId,
    requests: Vec<Pending>,
}

impl PeerRecord {
    /// The route of private messages from the candidate.
    pub(crate) fn address(&self) -> Arc<Peer> {
        let share = Arc::clone(&self.share);
        Arc::new(Peer { share, owner: self.owner.place, drops: None })
    }

    /// Takes out the request for a group.
    fn take(&mut self, group: GroupId) -> Option<Pending> {
        let at = self.requests.iter().position(|pending| pending.group.id == group)?;
        Some(self.requests.remove(at))
    }
}

/// A request that has not been decided.
#[derive(Debug)]
struct Pending {
    group: Arc<Group>,
    ticket: Arc<Ticket>,
    /// The candidate's own.
    filter: Option<Filter>,
}

/// What a request came to, and who is to be woken then.
#[derive(Debug, Default)]
pub(crate) struct Ticket(Mutex<TicketState>);

#[derive(Debug, Default)]
struct TicketState {
    outcome: Option<Result<Joined, JoinError>>,
    waker: Option<Waker>,
}

impl Ticket {
    pub(crate) fn decide(&self, outcome: Result<Joined, JoinError>, effects: &mut Effects) {
        let mut state = self.0.lock();
        state.outcome = Some(outcome);
        effects.wake(state.waker.take());
    }
}

/// A request to be admitted to a gated group. Dropping it withdraws the request; and ends the
/// membership, if it has been admitted and nobody has asked.
#[derive(Debug)]
#[must_use = "dropping it withdraws the request"]
pub struct Candidacy {
    bus: Bus,
    core: Arc<EndpointCore>,
    ticket: Arc<Ticket>,
    group: GroupId,
    owner: EndpointId,
    peer: EndpointId,
    sequence: Sequence,
    over: bool,
}

impl Candidacy {
    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The group's owner, whose private messages have it as their sender.
    #[must_use]
    pub fn owner(&self) -> EndpointId {
        self.owner
    }

    /// The peer endpoint: where to send what is for the owner alone, from now until the connection
    /// ends.
    #[must_use]
    pub fn peer(&self) -> EndpointId {
        self.peer
    }

    /// Where in the order the owner is told.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// What it came to, once. None while the owner has not decided. Does not block.
    ///
    /// # Errors
    ///
    /// The owner has refused it or is gone, or this endpoint receives nothing any more.
    pub fn poll_outcome(&mut self) -> Option<Result<Joined, JoinError>> {
        let outcome = self.ticket.0.lock().outcome.take()?;
        self.over = true;
        Some(outcome)
    }

    /// Leaves `waker` to be woken once it has been decided. False if it has been.
    pub fn sleep(&mut self, waker: Waker) -> bool {
        let mut state = self.ticket.0.lock();
        let left = match state.outcome {
            Some(_) => Some(waker),
            None => state.waker.replace(waker),
        };
        let waits = state.outcome.is_none();
        // A waker is dropped without the lock.
        drop(state);
        drop(left);
        waits
    }

    /// Waits for the owner's decision. Blocks the thread.
    ///
    /// # Errors
    ///
    /// As [`poll_outcome`](Self::poll_outcome).
    pub fn wait(mut self) -> Result<Joined, JoinError> {
        let parker = Arc::new(Parker::default());
        while self.sleep(parker.waker()) {
            parker.park();
        }
        self.poll_outcome().expect("it has been decided, and nobody else asks")
    }

    /// Withdraws the request: it ends with [`JoinError::Withdrawn`], or with what came first.
    ///
    /// # Errors
    ///
    /// Always, unless the owner was faster and has admitted it: then the endpoint is a member.
    pub fn withdraw(mut self) -> Result<Joined, JoinError> {
        self.over = true;
        self.bus.inner.withdraw(&self.core, self.group, &self.ticket)
    }
}

impl Drop for Candidacy {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if self.bus.inner.withdraw(&self.core, self.group, &self.ticket).is_ok() {
            self.bus.inner.depart(&self.core, Departure::Leave(self.group));
        }
    }
}

/// What ends with an endpoint that owns gated groups or is connected to owners.
#[derive(Debug, Default)]
pub(crate) struct Severed {
    pub(crate) peers: Vec<PeerRecord>,
    decided: Vec<(Arc<Ticket>, JoinError)>,
    /// Gated groups whose owner is gone.
    pub(crate) groups: Vec<Arc<Group>>,
    told: Vec<Note>,
    /// Members of these groups that had a peer endpoint, and the flags that they keep.
    bereft: Vec<(Arc<Group>, EndpointId, MemberFlags)>,
}

/// What an owner is told of a peer endpoint.
#[derive(Debug)]
struct Note {
    owner: Arc<EndpointCore>,
    group: GroupId,
    peer: EndpointId,
    change: PeerChange,
}

impl Severed {
    /// The peer endpoints that are to be taken out.
    pub(crate) fn places(&self) -> impl Iterator<Item = IntakePlace> {
        self.peers.iter().map(|peer| peer.share.place)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = EndpointId> {
        self.peers.iter().map(|peer| peer.share.id())
    }

    /// Notes whom of a group without an owner to tell that its flags have changed.
    pub(crate) fn bereave(&mut self, group: &Arc<Group>) {
        let membership = group.membership();
        let with_peer = membership.members().iter().filter(|member| member.peer.is_some());
        self.bereft.extend(with_peer.map(|member| {
            (Arc::clone(group), member.place.id, member.flags - MemberFlags::SEND_TO_PEER)
        }));
    }
}

impl Directory {
    /// The peer endpoint between an owner and a candidate.
    fn peer_between(&self, owner: EndpointId, candidate: EndpointId) -> Option<EndpointId> {
        let connections = &self.endpoints.get(&candidate)?.connections;
        let of_owner = |peer: &&EndpointId| {
            self.peers.get(peer).is_some_and(|record| record.owner.id() == owner)
        };
        connections.iter().find(of_owner).copied()
    }

    /// A gated group, if `owner` owns it.
    fn owned_gate(&self, owner: EndpointId, group: GroupId) -> Result<Arc<Group>, GateError> {
        let record = self
            .group(group)
            .filter(|record| record.group.is_gated() && record.creator == Some(owner));
        let record = record.ok_or(GateError::NotTheOwner(group, owner))?;
        Ok(Arc::clone(&record.group))
    }

    /// The groups of an owner in which `candidate` is a member.
    fn admissions(&self, owner: EndpointId, candidate: EndpointId) -> Vec<GroupId> {
        let Some(record) = self.endpoints.get(&candidate) else {
            return Vec::new();
        };
        let owned = |group: &&Belonging| {
            let known = self.group(group.id);
            group.is_gated() && known.is_some_and(|known| known.creator == Some(owner))
        };
        record.memberships.iter().filter(owned).map(|group| group.id).collect()
    }

    /// Takes a peer endpoint out, with its requests; the caller takes it out of its shard.
    fn remove_peer(&mut self, peer: EndpointId) -> Option<PeerRecord> {
        let record = self.peers.remove(&peer)?;
        if let Some(candidate) = self.endpoints.get_mut(&record.candidate) {
            candidate.connections.retain(|connection| *connection != peer);
        }
        if let Some(owner) = self.endpoints.get_mut(&record.owner.id()) {
            owner.peers.remove(&peer);
        }
        for pending in &record.requests {
            self.uncount(pending.group.id);
        }
        Some(record)
    }

    /// One candidate less waits for a group.
    fn uncount(&mut self, group: GroupId) {
        if let Some(record) = self.group_mut(group) {
            record.candidates -= 1;
        }
    }

    /// Takes out what ends with `id`, when it closes or receives nothing any more.
    pub(crate) fn sever(&mut self, id: EndpointId, closing: bool) -> Severed {
        let mut severed = Severed::default();
        let Some(record) = self.endpoints.get(&id) else {
            return severed;
        };
        let (owned, connected) = (record.peers.clone(), record.connections.clone());
        let created = record.created.iter().filter_map(|group| self.group(*group));
        let gated = created.map(|record| &record.group).filter(|group| group.is_gated());
        severed.groups = gated.cloned().collect();
        for mut peer in owned.into_iter().filter_map(|peer| self.remove_peer(peer)) {
            for pending in peer.requests.drain(..) {
                let gone = JoinError::OwnerGone(pending.group.name.clone());
                severed.decided.push((pending.ticket, gone));
            }
            severed.peers.push(peer);
        }
        for peer in connected {
            if !closing {
                // It can be no member any more, and may still send to the owners.
                let Some(record) = self.peers.get_mut(&peer) else {
                    continue;
                };
                for pending in std::mem::take(&mut record.requests) {
                    self.uncount(pending.group.id);
                    severed.decided.push((pending.ticket, JoinError::ReceiveShut(id)));
                }
                continue;
            }
            let Some(mut record) = self.remove_peer(peer) else {
                continue;
            };
            let pending = record.requests.drain(..);
            severed.decided.extend(pending.map(|p| (p.ticket, JoinError::Closed(id))));
            let (owner, group) = (Arc::clone(&record.owner), record.group);
            severed.told.push(Note { owner, group, peer, change: PeerChange::Closed });
            severed.peers.push(record);
        }
        severed
    }
}

impl BusInner {
    /// Asks the owner of a gated group for admission.
    pub(crate) fn connect(
        &self,
        bus: &Bus,
        core: &Arc<EndpointCore>,
        name: &GroupName,
        wishes: MemberFlags,
        filter: Option<Filter>,
    ) -> Result<Candidacy, JoinError> {
        let id = core.id();
        let mut directory = self.directory.lock();
        let record = directory.endpoints.get(&id).ok_or(JoinError::Closed(id))?;
        if record.receive_shut {
            return Err(JoinError::ReceiveShut(id));
        }
        if record.memberships.iter().any(|group| group.name == *name) {
            return Err(JoinError::AlreadyMember(name.clone(), id));
        }
        let connections = record.connections.len();
        let known = directory.named(name).ok_or_else(|| JoinError::NoSuchGroup(name.clone()))?;
        let group = Arc::clone(&known.group);
        let backlog = group.gate.ok_or_else(|| JoinError::Open(name.clone()))?;
        let gone = || JoinError::OwnerGone(name.clone());
        let owner = known.creator.and_then(|owner| directory.endpoints.get(&owner));
        let owner = owner.filter(|owner| !owner.receive_shut).ok_or_else(gone)?;
        let owner_core = Arc::clone(&owner.core);
        if owner_core.id() == id {
            return Err(JoinError::Owner(name.clone(), id));
        }
        LimitExceeded::check("backlog", known.candidates.into(), backlog)?;
        let most = self.limits.backlog;
        LimitExceeded::check("backlog (peers not yet read of)", owner.unread_notes(), most)?;
        let unread = {
            let shard = self.locks.acquire_one(owner_core.place.lock);
            let intake = shard.intakes.get(owner_core.place.slot as usize);
            intake.map_or(0, Intake::unread_candidates)
        };
        let unread = usize::try_from(unread).unwrap_or(usize::MAX);
        LimitExceeded::check("backlog (candidates not yet read of)", unread, most)?;

        let peer = match directory.peer_between(owner_core.id(), id) {
            Some(peer) => peer,
            None => {
                LimitExceeded::check(
                    "memberships (connections)",
                    connections,
                    self.limits.memberships,
                )?;
                LimitExceeded::check(
                    "members (connections)",
                    owner.peers.len(),
                    self.limits.members,
                )?;
                self.open_peer(&mut directory, &owner_core, core, group.id)
            }
        };
        let ticket = Arc::new(Ticket::default());
        let pending = Pending { group: Arc::clone(&group), ticket: Arc::clone(&ticket), filter };
        let record = directory.peers.get_mut(&peer).expect("it was found or made just now");
        if record.requests.iter().any(|pending| pending.group.id == group.id) {
            return Err(JoinError::AlreadyCandidate(name.clone(), id));
        }
        record.requests.push(pending);
        if let Some(known) = directory.group_mut(group.id) {
            known.candidates += 1;
        }

        let mut notice = Box::new(Candidate {
            group: group.id,
            name: name.clone(),
            sequence: Sequence::from_raw(0),
            endpoint: id,
            credentials: core.credentials,
            peer,
            wishes,
        });
        let mut effects = Effects::default();
        effects.reserve(1);
        let asked = || MemberChange::new(&group, core, MemberEvent::Asked).with_flags(wishes);
        let mut seen = self.to_be_seen(&mut effects, asked);
        let mut locks = LockBits::one(owner_core.place.lock);
        locks.insert_all(ToBeSeen::locks(seen.as_ref()));
        let mut held = self.locks.acquire(locks);
        let sequence = held.draw(core.seen());
        notice.sequence = sequence;
        let told = match held.intake(owner_core.place) {
            Some(intake) => {
                let pushed = intake.push_candidate(notice);
                effects.wake(if pushed.is_ok() { intake.take_reader() } else { None });
                pushed
            }
            None => Err(notice),
        };
        if told.is_ok() {
            ToBeSeen::tell(&mut seen, &mut held, sequence, &mut effects);
        }
        drop(held);
        if let Err(notice) = told {
            drop(notice);
            if let Some(record) = directory.peers.get_mut(&peer) {
                record.take(group.id);
            }
            directory.uncount(group.id);
            self.end_if_idle(&mut directory, core, peer);
            return Err(JoinError::OwnerBusy(name.clone()));
        }
        drop(directory);
        effects.run();
        Ok(Candidacy {
            bus: bus.clone(),
            core: Arc::clone(core),
            ticket,
            group: group.id,
            owner: owner_core.id(),
            peer,
            sequence,
            over: false,
        })
    }

    /// Makes the peer endpoint between an owner and a candidate.
    fn open_peer(
        &self,
        directory: &mut Directory,
        owner: &Arc<EndpointCore>,
        candidate: &EndpointCore,
        group: GroupId,
    ) -> EndpointId {
        let id = directory.next_endpoint_id();
        let lock = owner.place.lock;
        let slot = self.locks.acquire_one(lock).intakes.vacant_key();
        #[expect(clippy::cast_possible_truncation, reason = "endpoints are limited to 2^24")]
        let place = IntakePlace { id, lock, slot: slot as u32 };
        let capacity = Capacity::of_share(&self.limits);
        let mut share = EndpointCore::read_by(owner.id(), place, candidate.credentials, capacity);
        share.user = candidate.user;
        let share = Arc::new(share);
        let intake = Intake::new(Arc::clone(&share));
        self.locks.acquire_one(lock).intakes.insert(intake);
        let record = PeerRecord {
            share,
            owner: Arc::clone(owner),
            candidate: candidate.id(),
            group,
            requests: Vec::new(),
        };
        directory.peers.insert(id, record);
        if let Some(record) = directory.endpoints.get_mut(&owner.id()) {
            record.peers.insert(id);
        }
        if let Some(record) = directory.endpoints.get_mut(&candidate.id()) {
            record.connections.push(id);
        }
        id
    }

    /// Admits a candidate.
    pub(crate) fn admit(
        &self,
        owner: &EndpointCore,
        group: GroupId,
        candidate: EndpointId,
        terms: Terms,
    ) -> Result<Joined, GateError> {
        let mut directory = self.directory.lock();
        let group = directory.owned_gate(owner.id(), group)?;
        let absent = || GateError::NoCandidate(group.id, candidate);
        let peer = directory.peer_between(owner.id(), candidate).ok_or_else(absent)?;
        let requests = &directory.peers[&peer].requests;
        let pending = requests.iter().find(|pending| pending.group.id == group.id);
        let own = pending.ok_or_else(absent)?.filter.clone();
        let core = directory.endpoints.get(&candidate).ok_or_else(absent)?;
        let core = Arc::clone(&core.core);
        self.may_join(&mut directory, &core, &group.name, terms.flags, false)?;
        let before = group.membership();
        let members = before.members().len();
        LimitExceeded::check("members", members, self.limits.members).map_err(JoinError::from)?;
        if let Some(own) = &own {
            let checked = self.check_filter_bytes(&directory, candidate, own, 0);
            checked.map_err(JoinError::from)?;
        }
        if let Some(filter) = &terms.filter {
            let checked = self.check_owners_filter_bytes(&directory, candidate, filter, 0);
            checked.map_err(JoinError::from)?;
        }
        let filters = MemberFilters::new(own, terms.filter.clone());
        let checked = self.check_instructions(&before, None, filters.as_deref());
        checked.map_err(JoinError::from)?;
        let charges = Self::charge_membership(&core, filters.as_deref());
        let charges = charges.map_err(JoinError::from)?;
        let address = self.peer_of(&mut directory, owner, candidate, &group, &terms)?;
        let pending = directory.peers.get_mut(&peer).and_then(|record| record.take(group.id));
        let ticket = pending.map(|pending| pending.ticket);
        directory.uncount(group.id);
        if mutated(Mutant::AdmittedTooEarly)
            && let Some(ticket) = &ticket
        {
            let (group, sequence) = (group.id, Sequence::from_raw(0));
            let early = Joined { group, sequence, created: false, members: 0, flags: terms.flags };
            ticket.decide(Ok(early), &mut Effects::default());
        }
        let (flags, state) = (terms.flags, false);
        let entry = MemberEntry { flags, filters, state, peer: address, ticket, charges };
        Ok(self.enter(&core, directory, &group, entry)?)
    }

    /// Where a member's own messages go besides, as its terms say.
    fn peer_of(
        &self,
        directory: &mut Directory,
        owner: &EndpointCore,
        member: EndpointId,
        group: &Group,
        terms: &Terms,
    ) -> Result<Option<Arc<Peer>>, GateError> {
        if !terms.flags.contains(MemberFlags::SEND_TO_PEER) {
            return Ok(None);
        }
        let peer = directory.peer_between(owner.id(), member).ok_or(GateError::NoPeer(member))?;
        let share = Arc::clone(&directory.peers[&peer].share);
        let record = directory.endpoints.get_mut(&owner.id());
        let drops = record.filter(|_| terms.drop_at_peer).map(|record| {
            let lost = Lost::AtPeer(peer);
            let drops = record.drops_of(group.id, lost);
            record.keep_drops(&[], Some(&drops));
            self.replace_drops(owner, record);
            drops
        });
        Ok(Some(Arc::new(Peer { share, owner: owner.place, drops })))
    }

    /// Gives an endpoint's intake the list of losses that its record has.
    fn replace_drops(&self, core: &EndpointCore, record: &EndpointRecord) {
        let list = record.drops.clone();
        let mut held = self.locks.acquire(LockBits::one(core.place.lock));
        let old = held.intake(core.place).map(|intake| intake.replace_drops(list));
        drop(held);
        drop(old);
    }

    /// Refuses a candidate. It is disconnected, unless it is in another group of this owner's or
    /// waits for one.
    pub(crate) fn refuse(
        &self,
        owner: &EndpointCore,
        group: GroupId,
        candidate: EndpointId,
        reason: &str,
    ) -> Result<(), GateError> {
        let mut effects = Effects::default();
        let mut directory = self.directory.lock();
        let group = directory.owned_gate(owner.id(), group)?;
        let absent = GateError::NoCandidate(group.id, candidate);
        let Some(peer) = directory.peer_between(owner.id(), candidate) else {
            return Err(absent);
        };
        let pending = directory.peers.get_mut(&peer).and_then(|record| record.take(group.id));
        let ticket = pending.ok_or(absent)?.ticket;
        directory.uncount(group.id);
        let reason = clipped(reason);
        let refused = JoinError::Refused { group: group.name.clone(), reason };
        ticket.decide(Err(refused), &mut effects);
        if let Some(record) = directory.endpoints.get(&candidate) {
            let who = &record.core;
            let refused = || MemberChange::new(&group, who, MemberEvent::Refused);
            self.let_see(owner, &mut effects, refused);
        }
        let ended = self.end_if_idle(&mut directory, owner, peer);
        drop(directory);
        self.recheck(Changed { endpoints: ended, ..Changed::default() }, &mut effects);
        effects.run();
        Ok(())
    }

    /// Ends a request: with what it came to already, or with `Withdrawn`.
    fn withdraw(
        &self,
        core: &EndpointCore,
        group: GroupId,
        ticket: &Arc<Ticket>,
    ) -> Result<Joined, JoinError> {
        let mut effects = Effects::default();
        let mut directory = self.directory.lock();
        let record = directory.endpoints.get(&core.id());
        let connections = record.map_or_else(Vec::new, |record| record.connections.clone());
        let waits = |directory: &Directory, peer: EndpointId| {
            let requests = directory.peers.get(&peer).map(|record| &record.requests);
            requests.is_some_and(|all| all.iter().any(|p| Arc::ptr_eq(&p.ticket, ticket)))
        };
        let Some(peer) = connections.into_iter().find(|peer| waits(&directory, *peer)) else {
            drop(directory);
            let outcome = ticket.0.lock().outcome.take();
            if mutated(Mutant::WithdrawForgetsAdmission) {
                return Err(JoinError::Closed(core.id()));
            }
            // Who took the request out has decided it before it let go of the directory.
            return outcome.unwrap_or(Err(JoinError::Closed(core.id())));
        };
        let record = directory.peers.get_mut(&peer).expect("it was found just now");
        let owner = Arc::clone(&record.owner);
        record.take(group);
        directory.uncount(group);
        let found = directory.group(group).map(|record| Arc::clone(&record.group));
        let name = found.as_ref().map(|group| group.name.clone());
        let ended = self.end_if_idle(&mut directory, core, peer);
        let mut told = Vec::new();
        if !ended.is_empty() {
            told.push(Note { owner, group, peer, change: PeerChange::Closed });
        }
        let mut seen = found.and_then(|group| {
            let withdrawn = || MemberChange::new(&group, core, MemberEvent::Withdrawn);
            self.to_be_seen(&mut effects, withdrawn)
        });
        let mut held = self.locks.acquire(LockBits::all());
        let sequence = held.draw(core.seen());
        ToBeSeen::tell(&mut seen, &mut held, sequence, &mut effects);
        drop(held);
        self.tell_owners(&mut directory, told, sequence, &mut effects);
        drop(directory);
        self.recheck(Changed { endpoints: ended, ..Changed::default() }, &mut effects);
        effects.run();
        Err(name.map_or(JoinError::Closed(core.id()), JoinError::Withdrawn))
    }

    /// Ends a peer endpoint whose candidate waits for nothing and is in no group of its owner's.
    fn end_if_idle(
        &self,
        directory: &mut Directory,
        core: &EndpointCore,
        peer: EndpointId,
    ) -> Vec<EndpointId> {
        let Some(record) = directory.peers.get(&peer) else {
            return Vec::new();
        };
        let admissions = directory.admissions(record.owner.id(), record.candidate);
        if !record.requests.is_empty() || !admissions.is_empty() {
            return Vec::new();
        }
        let Some(record) = directory.remove_peer(peer) else {
            return Vec::new();
        };
        let mut held = self.hold_all(core);
        let intake = held.remove(record.share.place);
        drop(held);
        drop(intake);
        vec![peer]
    }

    /// Puts a member out, and tells it why.
    pub(crate) fn expel(
        &self,
        owner: &EndpointCore,
        group: GroupId,
        member: EndpointId,
        reason: &str,
    ) -> Result<Sequence, GateError> {
        let (core, eviction) = {
            let directory = self.directory.lock();
            let group = directory.owned_gate(owner.id(), group)?;
            let absent = GateError::NotAMember(group.id, member);
            let core = &directory.endpoints.get(&member).ok_or(absent)?.core;
            let cause = EvictionCause::Expelled(clipped(reason));
            (Arc::clone(core), put_out(core, &group, cause))
        };
        let departed = self.depart(&core, Departure::Evict(Box::new(eviction)));
        departed.ok_or(GateError::NotAMember(group, member))
    }

    /// Changes a member's flags, what its peer endpoint does when it is full, and the filter that the
    /// owner has set on its behalf.
    pub(crate) fn set_terms(
        &self,
        owner: &EndpointCore,
        group: GroupId,
        member: EndpointId,
        terms: Terms,
    ) -> Result<Sequence, GateError> {
        let mut directory = self.directory.lock();
        let group = directory.owned_gate(owner.id(), group)?;
        let before = group.membership();
        let absent = || GateError::NotAMember(group.id, member);
        let at = before.position(member).ok_or_else(absent)?;
        let core = &directory.endpoints.get(&member).ok_or_else(absent)?.core;
        let core = Arc::clone(core);
        self.check_back_off(&directory, &core, &group.name, terms.flags)?;
        let old = before.members()[at].filters.as_deref();
        let own = old.and_then(|old| old.own.clone());
        if let Some(filter) = &terms.filter {
            let instead = old.and_then(|old| old.owners.as_ref()).map_or(0, Filter::bytes);
            let checked = self.check_owners_filter_bytes(&directory, member, filter, instead);
            checked.map_err(JoinError::from)?;
        }
        let filters = MemberFilters::new(own, terms.filter.clone());
        let checked = self.check_instructions(&before, old, filters.as_deref());
        checked.map_err(JoinError::from)?;
        let peer = self.peer_of(&mut directory, owner, member, &group, &terms)?;
        let record = directory.endpoints.get_mut(&member).ok_or_else(absent)?;
        let drops = record.member_drops(group.id, terms.flags);
        record.keep_drops(&[], drops.as_ref());
        let list = record.drops.clone();
        let flags = terms.flags;
        let credentials = core.credentials;
        let next = Member { place: core.place, credentials, flags, drops, filters, peer };
        let seen = MemberChange::new(&group, &core, MemberEvent::Terms).with_flags(flags);
        let step = Step::unseen(&group, before.with(next)).aside([seen]);
        let old_flags = before.members()[at].flags;
        let mut effects = Effects::default();
        let then = |directory: &mut Directory, sequence, effects: &mut Effects| {
            if flags != old_flags {
                self.tell_flags(directory, &group, member, (flags, sequence), effects);
            }
        };
        let sequence = self.publish_then(&core, directory, step, list, None, &mut effects, then);
        let changed = Changed { groups: vec![group.id], ..Changed::default() };
        self.recheck(changed, &mut effects);
        effects.run();
        Ok(sequence)
    }

    /// Ends a peer endpoint, on behalf of its owner or of its candidate, and with it what memberships
    /// the candidate has in the owner's groups. None if it is neither's.
    pub(crate) fn close_peer(&self, core: &EndpointCore, peer: EndpointId) -> Option<Sequence> {
        let mut effects = Effects::default();
        let id = core.id();
        let (record, candidate, ends) = {
            let mut directory = self.directory.lock();
            let record = directory.peers.get(&peer)?;
            if record.owner.id() != id && record.candidate != id {
                return None;
            }
            let groups = directory.admissions(record.owner.id(), record.candidate);
            let candidate = directory.endpoints.get(&record.candidate)?;
            let candidate = Arc::clone(&candidate.core);
            // From here on nobody is admitted by way of it.
            let mut record = directory.remove_peer(peer)?;
            for pending in record.requests.drain(..) {
                let name = pending.group.name.clone();
                let reason = "the owner has closed the connection".into();
                let outcome = if record.candidate == id {
                    JoinError::Withdrawn(name)
                } else {
                    JoinError::Refused { group: name, reason }
                };
                pending.ticket.decide(Err(outcome), &mut effects);
            }
            let groups = groups.iter().filter_map(|group| directory.group(*group));
            let end = |group: &Arc<Group>| {
                if record.candidate == id {
                    return Departure::Leave(group.id);
                }
                let eviction = put_out(&candidate, group, EvictionCause::PeerClosed);
                Departure::Evict(Box::new(eviction))
            };
            let ends: Vec<Departure> = groups.map(|record| end(&record.group)).collect();
            (record, candidate, ends)
        };
        for departure in ends {
            self.depart(&candidate, departure);
        }
        let mut directory = self.directory.lock();
        let group = directory.group(record.group).map(|record| Arc::clone(&record.group));
        let mut seen = group.and_then(|group| {
            let closed = || MemberChange::new(&group, &candidate, MemberEvent::PeerClosed);
            self.to_be_seen(&mut effects, closed)
        });
        let mut held = self.hold_all(core);
        let sequence = held.draw(core.seen());
        ToBeSeen::tell(&mut seen, &mut held, sequence, &mut effects);
        let intake = held.remove(record.share.place);
        drop(held);
        drop(intake);
        if record.candidate == id {
            let (owner, group) = (Arc::clone(&record.owner), record.group);
            let note = Note { owner, group, peer, change: PeerChange::Closed };
            self.tell_owners(&mut directory, vec![note], sequence, &mut effects);
        }
        drop(directory);
        self.recheck(Changed { endpoints: vec![peer], ..Changed::default() }, &mut effects);
        effects.run();
        Some(sequence)
    }

    /// A stalled peer endpoint costs its member `SEND_TO_PEER`; an owner whose queue is full costs it
    /// all members who wait for that. None if `stalled` is neither.
    pub(crate) fn revoke(&self, stalled: &Stalled, group: GroupId) -> Option<Eviction> {
        let mut effects = Effects::default();
        let directory = self.directory.lock();
        let known = directory.group(group).filter(|known| known.group.is_gated())?;
        let (group, owner) = (Arc::clone(&known.group), known.creator?);
        let id = stalled.core.id();
        let one = directory.peers.get(&id).map(|peer| peer.candidate);
        if one.is_none() && id != owner {
            return None;
        }
        let before = group.membership();
        let which = |member: &&Member| {
            let blocks = member.peer.as_ref().is_some_and(|peer| peer.drops.is_none());
            blocks && one.is_none_or(|one| one == member.place.id)
        };
        let affected: Vec<(EndpointId, EndpointId)> = (before.members().iter().filter(which))
            .filter_map(|member| Some((member.place.id, member.peer.as_ref()?.share.id())))
            .collect();
        if affected.is_empty() {
            return None;
        }
        let next = before
            .without_peers(|id| affected.binary_search_by_key(&id, |(member, _)| *member).is_ok());
        let record = directory.endpoints.get(&owner)?;
        let (owner, list) = (Arc::clone(&record.core), record.drops.clone());
        let asides: Vec<MemberChange> = (before.members().iter())
            .filter(|member| affected.binary_search_by_key(&member.place.id, |(id, _)| *id).is_ok())
            .map(|member| MemberChange {
                group: group.id,
                name: group.name.clone(),
                sequence: Sequence::from_raw(0),
                endpoint: member.place.id,
                credentials: member.credentials,
                event: MemberEvent::PeerStalled,
                flags: member.flags - MemberFlags::SEND_TO_PEER,
            })
            .collect();
        let other_flags: Vec<_> =
            asides.iter().map(|aside| (aside.endpoint, aside.flags)).collect();
        let mut told = Vec::with_capacity(affected.len());
        for (_, peer) in affected {
            let (owner, change) = (Arc::clone(&owner), PeerChange::Stalled);
            told.push(Note { owner, group: group.id, peer, change });
        }
        let step = Step::unseen(&group, next).aside(asides);
        let sequence = self.publish_then(
            &owner,
            directory,
            step,
            list,
            None,
            &mut effects,
            |directory, sequence, effects| {
                self.tell_owners(directory, told, sequence, effects);
                for (member, flags) in other_flags {
                    self.tell_flags(directory, &group, member, (flags, sequence), effects);
                }
            },
        );
        let changed = Changed { groups: vec![group.id], ..Changed::default() };
        self.recheck(changed, &mut effects);
        effects.run();
        Some(Eviction {
            sequence,
            stalled: stalled.time,
            queued_messages: stalled.queued_messages,
            ..put_out(&owner, &group, EvictionCause::PeerStalled)
        })
    }

    /// Ends what a departure has severed; its locks are released, the directory is not.
    pub(crate) fn finish_severed(
        &self,
        directory: &mut Directory,
        severed: Severed,
        sequence: Sequence,
        effects: &mut Effects,
    ) {
        for (ticket, error) in severed.decided {
            ticket.decide(Err(error), effects);
        }
        self.tell_owners(directory, severed.told, sequence, effects);
        for (group, member, flags) in severed.bereft {
            self.tell_flags(directory, &group, member, (flags, sequence), effects);
        }
    }

    /// Notes for owners what happened to peer endpoints of theirs.
    fn tell_owners(
        &self,
        directory: &mut Directory,
        told: Vec<Note>,
        sequence: Sequence,
        effects: &mut Effects,
    ) {
        for part in told.chunk_by(|a, b| a.owner.id() == b.owner.id()) {
            let owner = &part[0].owner;
            let Some(record) = directory.endpoints.get_mut(&owner.id()) else {
                continue;
            };
            record.keep_drops(&[], None);
            let notes: Vec<Arc<Drops>> = (part.iter())
                .map(|note| Arc::new(Drops::new(note.group, Lost::Peer(note.peer, note.change))))
                .collect();
            record.drops.extend(notes.iter().cloned());
            let list = record.drops.clone();
            effects.reserve(1);
            let mut held = self.locks.acquire(LockBits::one(owner.place.lock));
            let mut old = None;
            if let Some(intake) = held.intake(owner.place) {
                old = Some(intake.replace_drops(list));
                for note in &notes {
                    intake.drop_message(note, sequence);
                }
                effects.wake(intake.take_reader_of_gap());
            }
            drop(held);
            drop(old);
        }
    }

    /// Notes for a member that its flags are others from `sequence` on; only the last such note of a
    /// group is kept.
    fn tell_flags(
        &self,
        directory: &mut Directory,
        group: &Group,
        member: EndpointId,
        (flags, sequence): (MemberFlags, Sequence),
        effects: &mut Effects,
    ) {
        let Some(record) = directory.endpoints.get_mut(&member) else {
            return;
        };
        record.keep_drops(&[], None);
        let earlier =
            |drops: &Arc<Drops>| matches!(drops.lost, Lost::Flags(_)) && drops.group == group.id;
        record.drops.retain(|drops| !earlier(drops));
        let note = Arc::new(Drops::new(group.id, Lost::Flags(flags)));
        record.drops.push(Arc::clone(&note));
        let (place, list) = (record.core.place, record.drops.clone());
        effects.reserve(1);
        let mut held = self.locks.acquire(LockBits::one(place.lock));
        let mut old = None;
        if let Some(intake) = held.intake(place) {
            old = Some(intake.replace_drops(list));
            intake.drop_message(&note, sequence);
            effects.wake(intake.take_reader_of_gap());
        }
        drop(held);
        drop(old);
    }

    /// Tries every wait that a change matters to.
    fn recheck(&self, changed: Changed, effects: &mut Effects) {
        if !changed.groups.is_empty() || !changed.endpoints.is_empty() {
            self.waiting.lock().recheck(self, &changed, effects);
        }
    }

    /// Publishes the step that makes a member, and then decides the request that asked for it.
    pub(crate) fn publish_admission(
        &self,
        core: &EndpointCore,
        directory: MutexGuard<'_, Directory>,
        step: Step,
        drops: Vec<Arc<Drops>>,
        ticket: &Ticket,
        joined: impl FnOnce(Sequence) -> Joined,
    ) -> Sequence {
        let mut effects = Effects::default();
        let sequence = self.publish_then(
            core,
            directory,
            step,
            drops,
            None,
            &mut effects,
            |_, sequence, effects| ticket.decide(Ok(joined(sequence)), effects),
        );
        effects.run();
        sequence
    }
}

fn clipped(reason: &str) -> Box<str> {
    reason[..reason.floor_char_boundary(MAX_REASON_BYTES)].into()
}

/// The end of a membership by somebody else's will; the sequence is drawn later.
fn put_out(core: &EndpointCore, group: &Group, cause: EvictionCause) -> Eviction {
    Eviction {
        endpoint: core.id(),
        credentials: core.credentials,
        group: group.id,
        name: group.name.clone(),
        sequence: Sequence::from_raw(0),
        cause,
        stalled: std::time::Duration::ZERO,
        queued_messages: 0,
        back_off: std::time::Duration::ZERO,
    }
}
