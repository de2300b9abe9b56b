//! A group as senders see it: a name, a current membership, and a generation to compare.

use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use ahash::RandomState;

use crate::id::{Generation, GroupId};
use crate::lock_set::{Held, LockIndex};
use crate::membership::Membership;
use crate::name::GroupName;
use crate::retained::{Retain, Retained, Store};
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, Snapshot};
use crate::tally::GroupTally;

/// A group that lives or has lived: handles outlast it, and its last membership says `ended`.
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) name: GroupName,
    /// The lock that a message takes when the group has no recipients for it.
    pub(crate) home: LockIndex,
    /// It is gated, and so many candidates may wait.
    pub(crate) gate: Option<u16>,
    /// After how long a member that makes its senders wait is stalled, if not after the bus's time.
    pub(crate) stall: Option<Duration>,
    membership: Snapshot<Membership>,
    generation: AtomicU64,
    /// What it retains. Every send to a group that retains holds the home lock, and every join all
    /// of them, so nobody ever waits for this mutex under the locks.
    store: Option<(Retain, Mutex<Store>)>,
    /// Who is to be woken when others are entitled to its messages. Only who has the directory looks
    /// here, and every change has it: so nobody waits for this mutex, and no change goes unseen.
    on_change: Mutex<Vec<Waker>>,
    /// What was sent to it. Behind a pointer: senders' lines are no neighbours of the generation.
    pub(crate) tally: Box<GroupTally>,
}

impl Group {
    pub(crate) fn new(id: GroupId, name: GroupName, home: LockIndex, gate: Option<u16>) -> Self {
        let membership = Snapshot::new(Arc::new(Membership::empty()));
        let (generation, tally) = (AtomicU64::new(0), Box::default());
        let on_change = Mutex::new(Vec::new());
        Self {
            id,
            name,
            home,
            gate,
            stall: None,
            membership,
            generation,
            store: None,
            on_change,
            tally,
        }
    }

    /// The same with a stall limit of its own.
    pub(crate) fn stalling_after(self, stall: Option<Duration>) -> Self {
        Self { stall, ..self }
    }

    /// The same, retaining messages.
    pub(crate) fn retaining(self, retain: Option<Retain>, hasher: &RandomState) -> Self {
        let retain = retain.filter(|retain| retain.messages > 0);
        let store = retain.map(|retain| (retain, Mutex::new(Store::new(retain, hasher.clone()))));
        Self { store, ..self }
    }

    /// What it retains, if anything.
    pub(crate) fn retain(&self) -> Option<Retain> {
        self.store.as_ref().map(|(retain, _)| *retain)
    }

    /// Copies what it retains; the home lock is held.
    pub(crate) fn copy_retained(&self, retained: &mut Retained) {
        if let Some(store) = self.store() {
            store.copy_to(retained);
        }
    }

    /// Where it retains it; the home lock is held.
    pub(crate) fn store(&self) -> Option<MutexGuard<'_, Store>> {
        self.store.as_ref().map(|(_, store)| store.lock())
    }

    pub(crate) fn is_gated(&self) -> bool {
        self.gate.is_some()
    }

    /// The membership, or one shortly before it: compare with [`generation`](Self::generation)
    /// under the locks.
    pub(crate) fn membership(&self) -> Arc<Membership> {
        self.membership.load()
    }

    /// The current generation. While any of the locks of a membership is held, it cannot change,
    /// because a change holds them all.
    pub(crate) fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// Leaves a waker for the next change of who is entitled to its messages. The caller has the
    /// directory.
    pub(crate) fn wake_on_change(&self, waker: Waker) {
        let mut wakers = self.on_change.lock();
        wakers.retain(|other| !other.will_wake(&waker));
        wakers.push(waker);
    }

    /// How many were left.
    pub(crate) fn wakers_on_change(&self) -> usize {
        self.on_change.lock().len()
    }

    /// Takes them. The caller has the directory.
    pub(crate) fn take_on_change(&self) -> Vec<Waker> {
        std::mem::take(&mut *self.on_change.lock())
    }

    /// Publishes a new membership; all locks are held. Gives back the one before it, to be dropped
    /// when they are released.
    pub(crate) fn publish(&self, _all: &Held<'_>, next: Arc<Membership>) -> Arc<Membership> {
        let generation = next.generation;
        let before = self.membership.swap(next);
        self.generation.store(generation.0, Ordering::Release);
        before
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("id", &self.id).field("name", &self.name).finish()
    }
}
