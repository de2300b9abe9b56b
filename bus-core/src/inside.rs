//! Seeing inside: what was counted and recorded, put together for who asks.
//!
//! Nothing here is on the way of a send but [`CommitLog`], which leaves the counts and the record of
//! a commit under the locks that it holds anyway. All else is paid for by who asks: lists come in
//! parts, and take one lock at a time for one endpoint at a time.
//!
//! Whether somebody may see all of that is for the caller to know, as for monitors.

use std::sync::Arc;
use std::time::Duration;

use crate::bus::{Bus, BusInner};
use crate::id::{EndpointId, GroupId, Sequence};
use crate::intake::EndpointCore;
use crate::lock_set::{Held, LOCKS, LockIndex};
use crate::membership::MemberFlags;
use crate::message::{Credentials, Destination, Message};
use crate::name::GroupName;
use crate::recorder::{
    Found, Kind, MemberState, Members, Note, PutOut, Record, RefusalReason, RefusalRecord,
};
use crate::send::{Receipt, Route};
use crate::tally::{GroupTraffic, ReaderTimes, Sent, TimeInQueue};
use crate::{NameId, SendError};

/// What a commit leaves behind for who looks: begun before its pushes, ended after them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommitLog {
    /// Where its notes begin; none if nothing is recorded.
    notes: Option<u64>,
    selective: bool,
}

/// What is kept of a message, beside where it went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    pub(crate) sender: EndpointId,
    pub(crate) commit_time: u64,
    pub(crate) bytes: u64,
}

impl Committed {
    #[inline]
    pub(crate) fn of(message: &Message) -> Self {
        let (sender, commit_time) = (message.sender(), message.commit_time());
        Self { sender, commit_time, bytes: message.bytes() }
    }
}

impl BusInner {
    #[inline]
    pub(crate) fn begin_log(&self, held: &mut Held<'_>, route: &Route) -> CommitLog {
        if !self.recorder.is_on() {
            return CommitLog { notes: None, selective: false };
        }
        let notes = held.lowest().map(|(_, shard)| shard.track.next_note());
        CommitLog { notes, selective: route.is_selective() }
    }
}

impl CommitLog {
    /// A recipient had no room, and missed the message.
    pub(crate) fn missed(self, held: &mut Held<'_>, recipient: EndpointId) {
        if self.notes.is_some()
            && let Some((_, shard)) = held.lowest()
        {
            shard.track.note(recipient, true);
        }
    }

    /// A recipient was chosen by the filters.
    #[inline]
    pub(crate) fn chosen(self, held: &mut Held<'_>, recipient: EndpointId) {
        if self.selective
            && let Some((_, shard)) = held.lowest()
        {
            shard.track.note(recipient, false);
        }
    }

    /// Counts and records the commit.
    #[inline]
    pub(crate) fn end(
        self,
        held: &mut Held<'_>,
        route: &Route,
        committed: &Committed,
        receipt: &Receipt,
    ) {
        let Some((lowest, shard)) = held.lowest() else {
            return;
        };
        let &Committed { sender, commit_time, bytes } = committed;
        shard.counters.messages += 1;
        shard.counters.bytes += bytes;
        shard.counters.deliveries += u64::from(receipt.recipients);
        shard.counters.dropped += u64::from(receipt.dropped);
        if let Route::Group { group, .. } = route {
            group.tally.add(lowest, bytes, receipt.recipients, receipt.dropped);
        }
        let Some(notes) = self.notes else {
            return;
        };
        let (kind, to, which) = match route {
            Route::Group { group, membership, .. } => {
                (Kind::Group, group.id.get(), membership.generation.0)
            }
            Route::Endpoint(place) => (Kind::Endpoint, place.id.get(), place.id.get()),
            Route::Caller { place, request, .. } => (Kind::Caller, request.get(), place.id.get()),
            Route::Name(route) => {
                let chosen = route.recipient().map_or(0, |place| place.id.get());
                (Kind::Name, route.name.id.get(), chosen)
            }
            Route::Peer(peer) => (Kind::Endpoint, peer.share.id().get(), peer.owner.id.get()),
        };
        let noted = shard.track.next_note().wrapping_sub(notes);
        shard.track.put(Record {
            sequence: receipt.sequence.get(),
            sender: sender.get(),
            to,
            which,
            time: commit_time,
            notes,
            noted: u32::try_from(noted).unwrap_or(u32::MAX),
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            recipients: receipt.recipients,
            kind,
            selective: self.selective,
        });
    }
}

/// A group and what was sent to it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupCounts {
    /// Its id.
    pub id: GroupId,
    /// Its name.
    pub name: GroupName,
    /// How many members it has.
    pub members: u32,
    /// What was sent to it.
    pub traffic: GroupTraffic,
}

/// An endpoint and what went in and out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointTraffic {
    /// The endpoint.
    pub id: EndpointId,
    /// Whose it is.
    pub credentials: Credentials,
    /// Groups that it is a member of: some, by name, and how many there are.
    pub groups: (Vec<GroupName>, usize),
    /// Messages and bytes that were put into its queue, notices that take a place included.
    pub received: (u64, u64),
    /// Messages that it has sent.
    pub sent_messages: u64,
    /// What else is counted of its sends.
    pub sent: Sent,
    /// Messages and bytes in its queue that it has not taken.
    pub queued: (u64, u64),
    /// How many messages its queue holds.
    pub capacity: u64,
    /// The sequence of the message that filled its queue, if it is full.
    pub full_since: Option<Sequence>,
    /// Messages that its memberships with `DROP_WHEN_FULL` have missed.
    pub dropped: u64,
    /// Sends that wait for it now.
    pub blocks: u32,
    /// Sends that have waited for it, and do no more.
    pub blocked: u64,
    /// How long these have waited for it, all together.
    pub blocked_time: Duration,
    /// Its requests that have no outcome yet.
    pub open_requests: u64,
    /// How long messages were in its queue.
    pub time_in_queue: TimeInQueue,
}

/// A send that waits, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaitingSend {
    /// Rises in the order in which sends began to wait; to list those after it.
    pub ticket: u64,
    /// Who sends.
    pub sender: EndpointId,
    /// Whose endpoint that is.
    pub credentials: Credentials,
    /// Where to.
    pub to: Destination,
    /// The group's name, if it is one.
    pub group: Option<GroupName>,
    /// Bytes of the message.
    pub bytes: u64,
    /// How long it has waited.
    pub waited: Duration,
    /// In whose lines it stands: one endpoint's, or those of some of a name's workers.
    pub at: Vec<(EndpointId, Credentials)>,
    /// How long it has stood there; before that it waited for others.
    pub stood: Duration,
}

/// What the flight recorder says of a sequence.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Why {
    /// There is no recorder.
    Off,
    /// It has been overwritten, or was no message's; the oldest that is kept beside it is this.
    TooOld(Sequence),
    /// No message has it: it is another event's, or has not been given yet.
    Unknown,
    /// What became of the message.
    Message(Box<Story>),
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Story {
    /// Its place in the order.
    pub sequence: Sequence,
    /// Who sent it.
    pub sender: EndpointId,
    /// Whose endpoint that was, if that is known still.
    pub credentials: Option<Credentials>,
    /// Where to.
    pub to: Destination,
    /// The group's name, if it was one and that is known still.
    pub group: Option<GroupName>,
    /// When it was committed, in nanoseconds since the Unix epoch.
    pub time: u64,
    /// Its bytes, attributes and payload.
    pub bytes: u64,
    /// How many recipients it was queued for.
    pub recipients: u32,
    /// Who was a member then is not known any more for all of them, or who missed it.
    pub incomplete: bool,
    /// What became of it at each, by rising endpoint.
    pub fates: Vec<RecipientFate>,
    /// There are more; ask again after the last one.
    pub more: bool,
}

/// What became of a message at one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecipientFate {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whose it is, if that is known still.
    pub credentials: Option<Credentials>,
    /// The peer endpoint through which it came there.
    pub peer: Option<EndpointId>,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a message at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// The application has taken it.
    Taken,
    /// It was handed to the application's connection, which has not said that it was taken.
    Handed,
    /// It is in the queue.
    Queued,
    /// It was in the queue, or on the way to the application, when the endpoint was closed there.
    Lost(Sequence),
    /// It was queued, and the endpoint is gone: nothing more is known.
    Gone,
    /// The member had no room, and wants to miss messages then.
    Dropped,
    /// A filter of the member did not want it.
    Filtered {
        /// It has a filter of its own.
        own: bool,
        /// The owner of the gated group has set one.
        owners: bool,
    },
    /// It is the sender, which does not want its own messages.
    Sender,
    /// It was put out of the group before, there.
    PutOut(PutOut, Sequence),
    /// Whether it got it is not known any more.
    Unknown,
}

/// Of whom refusals are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// Of all.
    Anybody,
    /// Sends of this endpoint, and sends to it.
    Endpoint(EndpointId),
    /// Sends to this group.
    Group(GroupId),
}

/// A send that was refused.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Refusal {
    /// Who sent.
    pub sender: EndpointId,
    /// Whose endpoint that is.
    pub credentials: Credentials,
    /// Where to.
    pub to: Destination,
    /// When, in nanoseconds since the Unix epoch.
    pub time: u64,
    /// Bytes of the message.
    pub bytes: u64,
    /// Why.
    pub why: RefusalReason,
}

/// Groups of an endpoint that a list names.
const NAMED_GROUPS: usize = 4;

impl Bus {
    /// Lists groups with what was sent to them, in the order of their names: at most `most`, those
    /// after `after`. Does not block.
    #[must_use]
    pub fn group_counts(&self, after: Option<&GroupName>, most: usize) -> Vec<GroupCounts> {
        let directory = self.inner.directory.lock();
        let groups: Vec<_> = (directory.groups_after(after).take(most))
            .map(|record| Arc::clone(&record.group))
            .collect();
        drop(directory);
        let counts = groups.iter().map(|group| GroupCounts {
            id: group.id,
            name: group.name.clone(),
            members: u32::try_from(group.membership().members().len()).unwrap_or(u32::MAX),
            traffic: group.tally.sum(),
        });
        counts.collect()
    }

    /// Lists endpoints with what went in and out of them, by rising ids: at most `most`, those after
    /// `after`; and whether there are more. Does not block.
    #[must_use]
    pub fn endpoint_traffic(
        &self,
        after: Option<EndpointId>,
        most: usize,
    ) -> (Vec<EndpointTraffic>, bool) {
        let directory = self.inner.directory.lock();
        let mut ids: Vec<EndpointId> = directory.endpoints.keys().copied().collect();
        ids.retain(|id| Some(*id) > after);
        let more = ids.len() > most;
        if more {
            ids.select_nth_unstable(most);
            ids.truncate(most);
        }
        ids.sort_unstable();
        let listed: Vec<_> = ids
            .iter()
            .filter_map(|id| directory.endpoints.get(id))
            .map(|record| {
                let groups = record.memberships.iter().take(NAMED_GROUPS);
                let names: Vec<_> = groups.map(|group| group.name.clone()).collect();
                let dropped = record.drops.iter().map(|drops| drops.missed_messages()).sum();
                (Arc::clone(&record.core), (names, record.memberships.len()), dropped)
            })
            .collect();
        drop(directory);
        let traffic = listed
            .into_iter()
            .filter_map(|(core, groups, dropped)| self.inner.traffic_of(&core, groups, dropped));
        (traffic.collect(), more)
    }

    /// A place where readers that one thread has count together; see [`Endpoint::receiver_with`]. It
    /// counts as long as the bus is there.
    ///
    /// [`Endpoint::receiver_with`]: crate::Endpoint::receiver_with
    #[must_use]
    pub fn reader_times(&self) -> ReaderTimes {
        let times = ReaderTimes::new();
        self.inner.reader_times.lock().push(times.clone());
        times
    }

    /// How long messages were in queues, those of endpoints that have been closed included. Where readers
    /// count [together](Self::reader_times) it is what these have counted, and takes no longer the more
    /// endpoints there are; else each endpoint is looked at.
    #[must_use]
    pub fn time_in_queues(&self) -> TimeInQueue {
        let together = self.inner.reader_times.lock();
        if !together.is_empty() {
            let mut sum = TimeInQueue::default();
            together.iter().for_each(|times| sum.add(&times.sum()));
            return sum;
        }
        drop(together);
        let cores: Vec<_> = {
            let directory = self.inner.directory.lock();
            directory.endpoints.values().map(|record| Arc::clone(&record.core)).collect()
        };
        let mut sum = *self.inner.past_dwell.lock();
        let dwells = cores.iter().filter_map(|core| core.dwell());
        dwells.for_each(|dwell| sum.add(&dwell.sum()));
        sum
    }

    /// Lists sends that wait, in the order in which they began to: at most `most`, those after the
    /// ticket `after`. Does not block.
    #[must_use]
    pub fn waiting_sends(&self, after: Option<u64>, most: usize) -> Vec<WaitingSend> {
        let now = self.inner.running();
        let waiting = self.inner.waiting.lock().list(now, after, most);
        let of = |core: &Arc<EndpointCore>| (core.id(), core.credentials);
        let listed = waiting.into_iter().map(|waiting| WaitingSend {
            ticket: waiting.ticket,
            sender: waiting.sender.id(),
            credentials: waiting.sender.credentials,
            to: waiting.to,
            group: waiting.group,
            bytes: waiting.bytes,
            waited: waiting.waited,
            at: waiting.at.iter().map(of).collect(),
            stood: waiting.stood,
        });
        listed.collect()
    }

    /// What became of the message with this sequence, as the flight recorder has it: at most `most`
    /// recipients, those whose ids are greater than `after`. Does not block.
    ///
    /// ```
    /// use bus_core::{Bus, Credentials, Destination, Fate, JoinOptions, Limits, RecorderSize, Why};
    ///
    /// let bus = Bus::recording(Limits::default(), 7, RecorderSize::bytes(1 << 20)?)?;
    /// let me = Credentials { uid: 1000, pid: 1 };
    /// let (alice, bob) = (bus.open_endpoint(me)?, bus.open_endpoint(me)?);
    /// let chat = bob.join(&"org.example.Chat".parse()?, JoinOptions::create())?.group;
    /// let receipt = alice.lane()?.send(Destination::Group(chat), "hello")?;
    ///
    /// let fate = || match bus.why(receipt.sequence, None, 10) {
    ///     Why::Message(story) => story.fates[0].fate,
    ///     other => panic!("{other:?}"),
    /// };
    /// assert_eq!(fate(), Fate::Queued);
    /// bob.receiver().expect("nobody else reads").receive()?;
    /// assert_eq!(fate(), Fate::Taken);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn why(&self, sequence: Sequence, after: Option<EndpointId>, most: usize) -> Why {
        self.inner.why(sequence, after, most)
    }

    /// The last sends that were refused, the youngest first, as the flight recorder has them.
    #[must_use]
    pub fn refusals(&self, about: About, most: usize) -> Vec<Refusal> {
        let picked = |refusal: &RefusalRecord| match about {
            About::Anybody => true,
            About::Endpoint(id) => {
                refusal.sender == id
                    || refusal.to == Destination::Endpoint(id)
                    || matches!(refusal.why, RefusalReason::Full { first, .. } if first == id)
            }
            About::Group(id) => refusal.to == Destination::Group(id),
        };
        let refusals = self.inner.recorder.refusals(picked, most).into_iter();
        let told = refusals.map(|refusal| Refusal {
            sender: refusal.sender,
            credentials: refusal.credentials,
            to: refusal.to,
            time: refusal.time,
            bytes: refusal.bytes,
            why: refusal.why,
        });
        told.collect()
    }

    /// Notes a send that a rule of the caller's has refused, before it came to the bus.
    pub fn note_refusal(
        &self,
        sender: EndpointId,
        credentials: Credentials,
        to: Destination,
        rule: &str,
    ) {
        if !self.inner.recorder.is_on() {
            return;
        }
        let rule = &rule[..rule.floor_char_boundary(MOST_RULE_BYTES)];
        self.inner.recorder.refused(RefusalRecord {
            sender,
            credentials,
            to,
            time: self.inner.now(),
            bytes: 0,
            why: RefusalReason::Rule(rule.into()),
        });
    }
}

/// What is kept of the words of a rule.
const MOST_RULE_BYTES: usize = 200;

impl BusInner {
    fn traffic_of(
        &self,
        core: &EndpointCore,
        groups: (Vec<GroupName>, usize),
        dropped: u64,
    ) -> Option<EndpointTraffic> {
        let shard = self.locks.acquire_one(core.place.lock);
        let intake = shard.intakes.get(core.place.slot as usize);
        let intake = intake.filter(|intake| intake.id() == core.id())?;
        let (received, queued) = (intake.pushed(), intake.depth());
        let (full_since, open_requests) = (intake.full_since(), intake.requests.open_count());
        drop(shard);
        Some(EndpointTraffic {
            id: core.id(),
            credentials: core.credentials,
            groups,
            received,
            sent_messages: core.serials(),
            sent: core.sending.sum(),
            queued,
            capacity: core.capacity.messages,
            full_since,
            dropped,
            blocks: core.blocks(),
            blocked: core.blocking.sends.get(),
            blocked_time: Duration::from_nanos(core.blocking.nanos.get()),
            open_requests,
            time_in_queue: core.dwell().map(|dwell| dwell.sum()).unwrap_or_default(),
        })
    }

    fn why(&self, sequence: Sequence, after: Option<EndpointId>, most: usize) -> Why {
        if !self.recorder.is_on() {
            return Why::Off;
        }
        let lock = LockIndex::from_hash(sequence.get() % LOCKS as u64);
        let most_notes = self.locks.acquire_one(lock).track.most_notes();
        let mut notes = Vec::with_capacity(most_notes);
        let (found, whole) = self.locks.acquire_one(lock).track.find(sequence, &mut notes);
        let record = match found {
            Found::Record(record) => record,
            Found::TooOld(oldest) => return Why::TooOld(oldest),
            Found::Unknown => return Why::Unknown,
        };
        let mut notes: Vec<Note> = notes.into_iter().map(Note::from_word).collect();
        notes.sort_unstable_by_key(|note| note.endpoint);

        // With the directory held no membership changes and no endpoint goes.
        let directory = self.directory.lock();
        let sender = EndpointId::from_raw(record.sender);
        let core = |id: EndpointId| directory.endpoints.get(&id).map(|record| &record.core);
        let (to, group) = match record.kind {
            Kind::Endpoint => (Destination::Endpoint(EndpointId::from_raw(record.to)), None),
            Kind::Name => (Destination::Name(NameId::from_raw(record.to)), None),
            Kind::Caller => (Destination::Caller(Sequence::from_raw(record.to)), None),
            Kind::Group => {
                let id = GroupId::from_raw(record.to);
                (Destination::Group(id), Some(directory.group(id)))
            }
        };
        self.recorder.annals(|annals| {
            let known = |id: EndpointId| {
                let ended = || annals.endings.iter().rev().find(|ending| ending.endpoint == id);
                let living = core(id).map(|core| core.credentials);
                living.or_else(|| ended().map(|ending| ending.credentials))
            };
            let queued = |id: EndpointId| {
                let taken = |handed: Sequence, taken: Sequence| {
                    if taken >= sequence {
                        Fate::Taken
                    } else if handed >= sequence {
                        Fate::Handed
                    } else {
                        Fate::Queued
                    }
                };
                if let Some(core) = core(id) {
                    let acknowledged = core.dwell().map(|dwell| dwell.acknowledged());
                    return taken(core.taken(), acknowledged.unwrap_or(Sequence::from_raw(0)));
                }
                match annals.endings.iter().rev().find(|ending| ending.endpoint == id) {
                    Some(end) if taken(end.handed, end.taken) == Fate::Taken => Fate::Taken,
                    Some(end) => Fate::Lost(end.sequence),
                    None => Fate::Gone,
                }
            };
            let mut story = Story {
                sequence,
                sender,
                credentials: known(sender),
                to,
                group: None,
                time: record.time,
                bytes: record.bytes.into(),
                recipients: record.recipients,
                incomplete: !whole,
                fates: Vec::new(),
                more: false,
            };
            let Some(living) = group else {
                let endpoint = EndpointId::from_raw(record.which);
                let peer = match to {
                    Destination::Endpoint(to) if to != endpoint => Some(to),
                    _ => None,
                };
                if Some(endpoint) > after {
                    let (credentials, fate) = (known(endpoint), queued(endpoint));
                    story.fates.push(RecipientFate { endpoint, credentials, peer, fate });
                }
                return Why::Message(Box::new(story));
            };
            let membership = living.map(|record| record.group.membership());
            let generation = crate::id::Generation(record.which);
            let id = GroupId::from_raw(record.to);
            let at = (generation, sequence);
            let members = Members::at(annals, id, at, membership.as_deref());
            story.group = living.map(|record| record.group.name.clone()).or(members.name.clone());
            story.incomplete |= !members.whole;
            let mut fates = fates_of(&members, sender, &record, &notes, whole, queued);
            fates.retain(|fate| Some(fate.endpoint) > after);
            story.more = fates.len() > most;
            fates.truncate(most);
            for fate in &mut fates {
                fate.credentials = known(fate.endpoint);
            }
            story.fates = fates;
            Why::Message(Box::new(story))
        })
    }
}

/// What became of a message to a group at each who was, or had been, a member then.
fn fates_of(
    members: &Members,
    sender: EndpointId,
    record: &Record,
    notes: &[Note],
    noted: bool,
    queued: impl Fn(EndpointId) -> Fate,
) -> Vec<RecipientFate> {
    let note = |id: EndpointId| {
        notes.binary_search_by_key(&id, |note| note.endpoint).ok().map(|at| notes[at])
    };
    let delivered = |id: EndpointId, reader: EndpointId, filtered: Fate| match note(id) {
        Some(Note { missed: true, .. }) => Fate::Dropped,
        Some(_) => queued(reader),
        None if !noted => Fate::Unknown,
        None if record.selective => filtered,
        None => queued(reader),
    };
    let fate_at = |id: EndpointId, member: &MemberState| {
        if id == sender && !member.flags.contains(MemberFlags::LOOPBACK) {
            return Fate::Sender;
        }
        let (own, owners) = (member.own_filter, member.owners_filter);
        delivered(id, id, Fate::Filtered { own, owners })
    };
    let fate = |endpoint, peer, fate| RecipientFate { endpoint, credentials: None, peer, fate };
    let mut fates: Vec<_> = (members.members.iter())
        .map(|(id, member)| fate(*id, None, fate_at(*id, member)))
        .collect();
    if let Some(own) = members.members.get(&sender)
        && let Some((peer, owner)) = own.peer
        && own.flags.contains(MemberFlags::SEND_TO_PEER)
    {
        // Filters are not asked for a peer endpoint; where recipients are noted, it is.
        fates.push(fate(owner, Some(peer), delivered(peer, owner, Fate::Unknown)));
    }
    let put_out = members.put_out.iter();
    fates.extend(put_out.map(|(id, why, at)| fate(*id, None, Fate::PutOut(*why, *at))));
    fates.sort_by_key(|fate| fate.endpoint);
    fates
}

impl Refusal {
    /// What refused it, for people.
    #[must_use]
    pub fn text(&self) -> String {
        match &self.why {
            RefusalReason::Full { first, count } => {
                format!("{count} recipients had no room, the first of them endpoint {first}")
            }
            RefusalReason::Error(error) => SendError::to_string(error),
            RefusalReason::Rule(rule) => rule.to_string(),
        }
    }
}
