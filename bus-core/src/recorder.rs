//! The flight recorder: what became of the last messages, recipient by recipient.
//!
//! A commit leaves a [`Record`] of 64 bytes and, where its recipients are not simply the members at
//! its generation, their ids. Changes of memberships are kept beside it, so the members at that
//! generation can be found again from those that there are now ([`Members`]); how far each of them
//! has read is compared with the sequence. So what is kept of a message does not grow with its
//! recipients, and nothing of its content is kept at all.
//!
//! Invariant: a record is written under the lowest lock of its commit, into the [`Track`] of that
//! lock, which has its memory from the beginning. So no two writers meet, no line is shared that the
//! lock does not share, and nothing allocates. A sequence names that lock in its lowest bits, and in
//! a track sequences rise: who looks one up looks in one track, by halves.
//!
//! Everything is bounded by [`RecorderSize`]; what is older is overwritten, and who asks for it is
//! told so. Without a recorder a send pays one branch.

use std::collections::VecDeque;

use crate::id::{EndpointId, Generation, GroupId, Sequence};
use crate::limits::LimitError;
use crate::lock_set::LOCKS;
use crate::membership::{Member, MemberFlags, Membership};
use crate::message::{Credentials, Destination};
use crate::name::GroupName;
use crate::notice::EvictionCause;
use crate::send::SendError;
use crate::sync::Aside;

/// How many bytes the flight recorder may take; none switches it off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecorderSize {
    bytes: usize,
}

impl RecorderSize {
    /// The least that is of use, and the most.
    pub const BYTES: (usize, usize) = (64 << 10, 1 << 30);

    /// No recorder.
    #[must_use]
    pub const fn off() -> Self {
        Self { bytes: 0 }
    }

    /// So many bytes.
    ///
    /// # Errors
    ///
    /// They are not within [`BYTES`](Self::BYTES).
    pub fn bytes(bytes: usize) -> Result<Self, LimitError> {
        let (least, most) = Self::BYTES;
        if (least..=most).contains(&bytes) {
            return Ok(Self { bytes });
        }
        let (given, least, most) = (bytes as u64, least as u64, most as u64);
        Err(LimitError { name: "recorder.bytes", given, least, most })
    }

    fn of(self, parts: usize, item: usize) -> usize {
        self.bytes / parts / item
    }
}

/// What a message was sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    Endpoint,
    Group,
    Name,
    Caller,
}

/// One commit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Record {
    pub(crate) sequence: u64,
    pub(crate) sender: u64,
    /// The group, endpoint, name or request.
    pub(crate) to: u64,
    /// The generation of the group's membership, or the one recipient.
    pub(crate) which: u64,
    pub(crate) time: u64,
    /// Where its notes begin, counted from the first note ever.
    pub(crate) notes: u64,
    pub(crate) noted: u32,
    pub(crate) bytes: u32,
    pub(crate) recipients: u32,
    pub(crate) kind: Kind,
    /// All recipients are noted, because filters have chosen them; else only those who missed it.
    pub(crate) selective: bool,
}

/// In a note: the recipient had no room, and missed the message.
const MISSED: u64 = 1 << 63;

/// The records of one lock.
#[derive(Debug, Default)]
pub(crate) struct Track {
    records: Vec<Record>,
    most_records: usize,
    written: u64,
    notes: Vec<u64>,
    most_notes: usize,
    noted: u64,
}

/// What a track says of a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    Record(Record),
    /// The oldest record is this one's.
    TooOld(Sequence),
    /// It was no message's, or is not yet.
    Unknown,
}

impl Track {
    pub(crate) fn new(size: RecorderSize) -> Self {
        let most_records = size.of(2 * LOCKS, size_of::<Record>());
        let most_notes = size.of(4 * LOCKS, size_of::<u64>());
        // Taken now and touched when it is used: writing never allocates.
        Self {
            records: Vec::with_capacity(most_records),
            most_records,
            notes: Vec::with_capacity(most_notes),
            most_notes,
            ..Self::default()
        }
    }

    /// Where the next note goes.
    pub(crate) fn next_note(&self) -> u64 {
        self.noted
    }

    /// Notes a recipient of the commit that is being made.
    pub(crate) fn note(&mut self, recipient: EndpointId, missed: bool) {
        let word = recipient.get() | if missed { MISSED } else { 0 };
        put(&mut self.notes, self.most_notes, self.noted, word);
        self.noted += 1;
    }

    /// Keeps the record of a commit, after its notes.
    pub(crate) fn put(&mut self, record: Record) {
        put(&mut self.records, self.most_records, self.written, record);
        self.written += 1;
    }

    /// Looks a sequence up. Its notes go into `notes`, which has room for all that there may be;
    /// false if they are no longer all there.
    pub(crate) fn find(&self, sequence: Sequence, notes: &mut Vec<u64>) -> (Found, bool) {
        let kept = self.records.len() as u64;
        let oldest = self.written - kept;
        let record = |number: u64| get(&self.records, self.most_records, number);
        let (mut low, mut high) = (oldest, self.written);
        while low < high {
            let middle = low + (high - low) / 2;
            if record(middle).sequence < sequence.get() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low < self.written && record(low).sequence == sequence.get() {
            let found = record(low);
            let whole = found.noted == 0 || found.notes >= self.noted - self.notes.len() as u64;
            if whole {
                let range = found.notes..found.notes + u64::from(found.noted);
                notes.extend(range.map(|number| get(&self.notes, self.most_notes, number)));
            }
            return (Found::Record(found), whole);
        }
        if oldest > 0 && low == oldest {
            return (Found::TooOld(Sequence::from_raw(record(oldest).sequence)), true);
        }
        (Found::Unknown, true)
    }

    /// How many notes there may be.
    pub(crate) fn most_notes(&self) -> usize {
        self.most_notes
    }
}

fn put<T>(ring: &mut Vec<T>, most: usize, number: u64, item: T) {
    if ring.len() < most {
        // Within its capacity.
        ring.push(item);
    } else if let Some(place) = ring.get_mut(place_of(number, most)) {
        *place = item;
    }
}

fn get<T: Copy + Default>(ring: &[T], most: usize, number: u64) -> T {
    ring.get(place_of(number, most)).copied().unwrap_or_default()
}

fn place_of(number: u64, most: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "a remainder by a length fits")]
    let place = (number % (most.max(1) as u64)) as usize;
    place
}

/// A recipient of a commit, as it was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) endpoint: EndpointId,
    pub(crate) missed: bool,
}

impl Note {
    pub(crate) fn from_word(word: u64) -> Self {
        let endpoint = EndpointId::from_raw(word & !MISSED);
        Self { endpoint, missed: word & MISSED != 0 }
    }
}

/// How an endpoint was a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemberState {
    pub(crate) flags: MemberFlags,
    pub(crate) own_filter: bool,
    pub(crate) owners_filter: bool,
    /// The peer endpoint to which its own messages went besides, and whose queue that is.
    pub(crate) peer: Option<(EndpointId, EndpointId)>,
}

impl MemberState {
    pub(crate) fn of(member: &Member) -> Self {
        let filters = member.filters.as_ref();
        Self {
            flags: member.flags,
            own_filter: filters.is_some_and(|filters| filters.own.is_some()),
            owners_filter: filters.is_some_and(|filters| filters.owners.is_some()),
            peer: member.peer.as_ref().map(|peer| (peer.share.id(), peer.owner.id)),
        }
    }
}

/// Why a membership ended, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PutOut {
    /// It was stalled (G8).
    Stalled,
    /// It had no room, and left rather than make anybody wait.
    Full,
    /// The owner of the gated group has expelled it.
    Expelled,
    /// The owner of the gated group has closed its peer endpoint.
    PeerClosed,
}

impl PutOut {
    pub(crate) fn of(cause: &EvictionCause) -> Option<Self> {
        match cause {
            EvictionCause::Stalled => Some(Self::Stalled),
            EvictionCause::Full => Some(Self::Full),
            EvictionCause::Expelled(_) => Some(Self::Expelled),
            EvictionCause::PeerClosed => Some(Self::PeerClosed),
            EvictionCause::PeerStalled | EvictionCause::WorkerStalled => None,
        }
    }
}

/// One change of one membership.
#[derive(Clone, Debug)]
pub(crate) struct MemberChange {
    pub(crate) group: GroupId,
    pub(crate) name: GroupName,
    pub(crate) generation: Generation,
    pub(crate) sequence: Sequence,
    pub(crate) endpoint: EndpointId,
    /// What it was until then; nothing if it was no member.
    pub(crate) before: Option<MemberState>,
    pub(crate) put_out: Option<PutOut>,
}

/// How far an endpoint had come when it was closed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    pub(crate) endpoint: EndpointId,
    pub(crate) credentials: Credentials,
    /// Where in the order.
    pub(crate) sequence: Sequence,
    pub(crate) handed: Sequence,
    pub(crate) taken: Sequence,
}

/// A send that was refused.
#[derive(Clone, Debug)]
pub(crate) struct RefusalRecord {
    pub(crate) sender: EndpointId,
    pub(crate) credentials: Credentials,
    pub(crate) to: Destination,
    pub(crate) time: u64,
    pub(crate) bytes: u64,
    pub(crate) why: RefusalReason,
}

/// Why a send was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalReason {
    /// Recipients had no room: the first of them, and how many there were.
    Full {
        /// The first.
        first: EndpointId,
        /// How many.
        count: u32,
    },
    /// Anything else.
    Error(SendError),
    /// A rule that whoever carries the bus has made, in its words.
    Rule(Box<str>),
}

impl RefusalReason {
    pub(crate) fn of(error: &SendError) -> Self {
        match error {
            SendError::WouldBlock { full } => {
                let first = full.named().first().copied();
                let first = first.unwrap_or(EndpointId::from_raw(0));
                Self::Full { first, count: full.count() }
            }
            other => Self::Error(other.clone()),
        }
    }
}

/// What is recorded outside the locks.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    size: RecorderSize,
    annals: Aside<Annals>,
    refusals: Aside<VecDeque<RefusalRecord>>,
}

#[derive(Debug)]
pub(crate) struct Annals {
    /// The youngest last.
    pub(crate) changes: VecDeque<MemberChange>,
    /// The last change that was overwritten; changes come in the order of their sequences.
    forgotten: Sequence,
    pub(crate) endings: VecDeque<Ending>,
}

impl Default for Annals {
    fn default() -> Self {
        let forgotten = Sequence::from_raw(0);
        Self { changes: VecDeque::new(), forgotten, endings: VecDeque::new() }
    }
}

impl Recorder {
    pub(crate) fn new(size: RecorderSize) -> Self {
        Self { size, ..Self::default() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.size.bytes != 0
    }

    /// A membership was changed; the directory is held, so changes come in their order.
    pub(crate) fn membership_changed(
        &self,
        group: (GroupId, &GroupName),
        before: &Membership,
        next: &Membership,
        sequence: Sequence,
        put_out: Option<PutOut>,
    ) {
        if !self.is_on() {
            return;
        }
        let most = self.size.of(8, size_of::<MemberChange>());
        let mut annals = self.annals.lock();
        differences(before.members(), next.members(), |endpoint, before, after| {
            if annals.changes.len() >= most {
                let oldest = annals.changes.pop_front();
                annals.forgotten = oldest.map_or(annals.forgotten, |oldest| oldest.sequence);
            }
            annals.changes.push_back(MemberChange {
                group: group.0,
                name: group.1.clone(),
                generation: next.generation,
                sequence,
                endpoint,
                before,
                put_out: put_out.filter(|_| after.is_none()),
            });
        });
    }

    /// An endpoint was closed.
    pub(crate) fn ended(&self, ending: Ending) {
        if !self.is_on() {
            return;
        }
        let most = self.size.of(16, size_of::<Ending>());
        let mut annals = self.annals.lock();
        if annals.endings.len() >= most {
            annals.endings.pop_front();
        }
        annals.endings.push_back(ending);
    }

    /// A send was refused.
    pub(crate) fn refused(&self, refusal: RefusalRecord) {
        let most = self.size.of(16, size_of::<RefusalRecord>());
        let mut refusals = self.refusals.lock();
        let old = if refusals.len() >= most { refusals.pop_front() } else { None };
        refusals.push_back(refusal);
        drop(refusals);
        drop(old);
    }

    /// The last refusals that `which` picks, the youngest first.
    pub(crate) fn refusals(
        &self,
        which: impl Fn(&RefusalRecord) -> bool,
        most: usize,
    ) -> Vec<RefusalRecord> {
        let refusals = self.refusals.lock();
        refusals.iter().rev().filter(|refusal| which(refusal)).take(most).cloned().collect()
    }

    /// What is known of memberships and endings; the directory is held.
    pub(crate) fn annals<R>(&self, ask: impl FnOnce(&Annals) -> R) -> R {
        ask(&self.annals.lock())
    }
}

/// Calls `tell` for each member that is in one list and not in the other, or is another kind of
/// member there. Both are sorted by endpoint.
fn differences(
    before: &[Member],
    after: &[Member],
    mut tell: impl FnMut(EndpointId, Option<MemberState>, Option<MemberState>),
) {
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    loop {
        match (old.peek(), new.peek()) {
            (Some(a), Some(b)) if a.place.id == b.place.id => {
                let same_filters = match (&a.filters, &b.filters) {
                    (Some(one), Some(other)) => std::sync::Arc::ptr_eq(one, other),
                    (None, None) => true,
                    _ => false,
                };
                if a.flags != b.flags || a.peer.is_some() != b.peer.is_some() || !same_filters {
                    tell(a.place.id, Some(MemberState::of(a)), Some(MemberState::of(b)));
                }
                old.next();
                new.next();
            }
            (Some(a), Some(b)) if a.place.id > b.place.id => {
                tell(b.place.id, None, Some(MemberState::of(b)));
                new.next();
            }
            (Some(a), _) => {
                tell(a.place.id, Some(MemberState::of(a)), None);
                old.next();
            }
            (None, Some(b)) => {
                tell(b.place.id, None, Some(MemberState::of(b)));
                new.next();
            }
            (None, None) => return,
        }
    }
}

/// The members of a group at a generation of the past.
#[derive(Debug)]
pub(crate) struct Members {
    pub(crate) members: std::collections::BTreeMap<EndpointId, MemberState>,
    /// Those who had been put out before, and where in the order.
    pub(crate) put_out: Vec<(EndpointId, PutOut, Sequence)>,
    /// The group's name, if anything tells it.
    pub(crate) name: Option<GroupName>,
    /// Nothing between then and now was forgotten.
    pub(crate) whole: bool,
}

impl Members {
    /// Goes back from what the group is `now`, if it lives, to a generation, which a message with
    /// this sequence went by.
    pub(crate) fn at(
        annals: &Annals,
        group: GroupId,
        (generation, sequence): (Generation, Sequence),
        now: Option<&Membership>,
    ) -> Self {
        let state = |member: &Member| (member.place.id, MemberState::of(member));
        let members = now.map_or(&[][..], Membership::members).iter().map(state).collect();
        // Changes are forgotten from the oldest on.
        let whole = sequence > annals.forgotten;
        let mut at = Self { members, put_out: Vec::new(), name: None, whole };
        for change in annals.changes.iter().rev().filter(|change| change.group == group) {
            at.name.get_or_insert_with(|| change.name.clone());
            if change.generation > generation {
                match change.before {
                    Some(before) => at.members.insert(change.endpoint, before),
                    None => at.members.remove(&change.endpoint),
                };
                continue;
            }
            // Back where it was asked for: what follows is how it came about.
            if let Some(put_out) = change.put_out
                && !at.members.contains_key(&change.endpoint)
                && !at.put_out.iter().any(|(endpoint, ..)| *endpoint == change.endpoint)
            {
                at.put_out.push((change.endpoint, put_out, change.sequence));
            }
        }
        at
    }
}

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    fn record(sequence: u64) -> Record {
        Record { sequence, sender: sequence * 10, ..Record::default() }
    }

    #[test]
    fn g8_a_track_keeps_the_last_ones_and_says_what_is_too_old() {
        let size = RecorderSize::bytes(64 << 10).unwrap();
        let mut track = Track::new(size);
        let most = track.most_records as u64;
        let mut notes = Vec::new();
        assert!(matches!(track.find(Sequence::from_raw(8), &mut notes).0, Found::Unknown));
        for number in 1..=3 * most {
            track.put(record(number * 8));
        }
        assert_eq!(track.records.capacity(), track.most_records);
        for number in 1..=3 * most {
            let found = track.find(Sequence::from_raw(number * 8), &mut notes).0;
            match found {
                Found::Record(found) => {
                    assert!(number > 2 * most, "{number}");
                    assert_eq!(found.sender, number * 80);
                }
                Found::TooOld(oldest) => {
                    assert!(number <= 2 * most, "{number}");
                    assert_eq!(oldest.get(), (2 * most + 1) * 8);
                }
                Found::Unknown => panic!("{number}"),
            }
        }
        let between = track.find(Sequence::from_raw(3 * most * 8 - 4), &mut notes).0;
        assert!(matches!(between, Found::Unknown));
        let later = track.find(Sequence::from_raw(3 * most * 8 + 8), &mut notes).0;
        assert!(matches!(later, Found::Unknown));
    }

    #[test]
    fn g8_notes_that_were_overwritten_are_said_to_be() {
        let size = RecorderSize::bytes(64 << 10).unwrap();
        let mut track = Track::new(size);
        let put = |track: &mut Track, sequence: u64, noted: u64| {
            let notes = track.next_note();
            for id in 1..=noted {
                track.note(EndpointId::from_raw(id), id == 2);
            }
            let noted = u32::try_from(noted).unwrap();
            track.put(Record { notes, noted, ..record(sequence) });
        };
        put(&mut track, 8, 3);
        let mut notes = Vec::new();
        let (found, whole) = track.find(Sequence::from_raw(8), &mut notes);
        assert!(whole && matches!(found, Found::Record(_)));
        let read: Vec<_> = notes.iter().map(|word| Note::from_word(*word)).collect();
        let missed: Vec<_> = read.iter().map(|note| (note.endpoint.get(), note.missed)).collect();
        assert_eq!(missed, [(1, false), (2, true), (3, false)]);
        let most = track.most_notes as u64;
        put(&mut track, 16, most - 3);
        assert!(track.find(Sequence::from_raw(8), &mut notes).1, "just there");
        put(&mut track, 24, 1);
        assert!(!track.find(Sequence::from_raw(8), &mut notes).1, "one was overwritten");
        assert!(track.find(Sequence::from_raw(24), &mut notes).1);
    }

    #[test]
    fn no_recorder_takes_nothing() {
        let track = Track::new(RecorderSize::off());
        assert_eq!((track.records.capacity(), track.notes.capacity()), (0, 0));
        assert!(RecorderSize::bytes(1).is_err() && RecorderSize::bytes(usize::MAX).is_err());
    }
}
