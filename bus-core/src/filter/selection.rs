//! The accepting part of a membership: the recipients of one message, and the locks that cover them.
//!
//! Invariant: a selection belongs to one message and one generation of a membership. It is made
//! before any lock is taken, from bytes that nobody can write any more; the generation is compared
//! under the locks, and where it has moved, the selection is made again (G4).

use crate::lock_set::LockBits;
use crate::membership::Membership;
use crate::sync::{Mutant, mutated};

use super::Subject;
use super::index::Entry;

/// Who accepts a message. Kept with a lane's route, so that making one seldom allocates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// Places in the membership, ascending.
    positions: Vec<u32>,
    locks: Option<LockBits>,
    /// Room to work in.
    found: Vec<Entry>,
    accepting: Vec<u32>,
}

impl Selection {
    /// Selects from `membership` whoever accepts, but for the member at `skip`.
    pub(crate) fn choose(
        &mut self,
        membership: &Membership,
        skip: Option<usize>,
        subject: Subject<'_>,
    ) {
        let members = membership.members();
        membership.filters().find(subject, &mut self.found);
        self.accepting.clear();
        let mut from = 0;
        for entry in &self.found {
            let Some(at) = gallop(members.len(), from, |at| members[at].place.id < entry.id) else {
                break;
            };
            from = at;
            let member = &members[at];
            let filters = member.filters.as_ref();
            if member.place.id == entry.id
                && (entry.sure || filters.is_none_or(|filters| filters.pass(subject)))
            {
                self.accepting.extend(u32::try_from(at));
            }
        }
        self.merge(membership.unfiltered(), skip.and_then(|at| u32::try_from(at).ok()));
        let mut locks = LockBits::NONE;
        for at in &self.positions {
            locks.insert(members[*at as usize].place.lock);
        }
        self.locks = Some(locks);
    }

    /// As [`choose`](Self::choose), after the membership has moved.
    pub(crate) fn choose_again(
        &mut self,
        membership: &Membership,
        skip: Option<usize>,
        subject: Subject<'_>,
    ) {
        let fits = |at: &u32| (*at as usize) < membership.members().len();
        if mutated(Mutant::SelectionKept) && self.positions.iter().all(fits) {
            return;
        }
        self.choose(membership, skip, subject);
    }

    /// Two ascending lists become one.
    fn merge(&mut self, unfiltered: &[u32], skip: Option<u32>) {
        self.positions.clear();
        let mut accepting = self.accepting.iter().copied().peekable();
        for at in unfiltered {
            while let Some(before) = accepting.next_if(|other| other < at) {
                self.positions.push(before);
            }
            self.positions.push(*at);
        }
        self.positions.extend(accepting);
        if let Some(skip) = skip
            && let Ok(at) = self.positions.binary_search(&skip)
        {
            self.positions.remove(at);
        }
    }

    /// Places in the membership, ascending.
    pub(crate) fn positions(&self) -> &[u32] {
        &self.positions
    }

    pub(crate) fn contains(&self, position: usize) -> bool {
        u32::try_from(position).is_ok_and(|at| self.positions.binary_search(&at).is_ok())
    }

    /// The locks that cover the recipients; none where there are none.
    pub(crate) fn locks(&self) -> LockBits {
        self.locks.unwrap_or(LockBits::NONE)
    }
}

/// The first place from `from` on that is not `before`; none if all are. Takes the logarithm of the
/// distance, so that a few finds in a large group cost little, and many no more than a walk.
fn gallop(length: usize, from: usize, before: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut low, mut step) = (from, 1);
    while low + step <= length && before(low + step - 1) {
        low += step;
        step *= 2;
    }
    let mut high = (low + step - 1).min(length);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    (low < length).then_some(low)
}

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::gallop;

    #[test]
    fn gallop_finds_the_first_place() {
        for length in 0..40 {
            for from in 0..=length {
                for first in from..=length {
                    let expected = (first < length).then_some(first);
                    assert_eq!(gallop(length, from, |at| at < first), expected);
                }
            }
        }
    }
}
