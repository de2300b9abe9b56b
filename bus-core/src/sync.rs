//! The facade: the only file that names parking_lot, arc-swap, `std::sync::atomic` or loom.
//!
//! `loom-tests` compiles these same sources with `cfg(bus_loom)`, and then every type here is
//! loom's, or a stand-in with the same contract where loom cannot execute the real one:
//!
//! - parking_lot's `Mutex` becomes loom's. Neither promises fairness, and nothing here relies on
//!   it: fairness comes from the tickets in `wait.rs`.
//! - arc-swap's `ArcSwap` becomes [`Snapshot`]'s table of versions behind one loom atomic. A mutex
//!   around an `Arc` would be simpler and wrong: it never shows a stale value, as a load racing
//!   with a store may, so the models would pass code that the real one breaks.
//!
//! `loom-tests/shuttle` does the same with `cfg(bus_shuttle)`: random schedules of more threads than
//! loom can take, in which all atomics are sequentially consistent.
//!
//! It also holds the [`Mutant`]s: single synchronisation decisions that a model switches off to
//! prove that it would notice.

#[cfg(not(any(bus_loom, bus_shuttle)))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

#[cfg(any(bus_loom, bus_shuttle))]
pub(crate) use checker::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// What the two ends of a ring share. It is loom's in a model, because who drops the last one
/// touches the slots, and only what loom sees orders that after the other end's last access. The
/// other `Arc`s guard nothing and stay invisible.
#[cfg(bus_loom)]
pub(crate) use loom::sync::Arc as RingArc;
#[cfg(not(bus_loom))]
pub(crate) use std::sync::Arc as RingArc;

use std::sync::Arc;
use std::task::{Wake, Waker};

#[cfg(bus_loom)]
use loom as checker;
#[cfg(bus_shuttle)]
use shuttle as checker;

#[cfg(not(any(bus_loom, bus_shuttle)))]
mod real {
    use std::time::Instant;

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(parking_lot::Mutex<T>);

    pub(crate) type MutexGuard<'a, T> = parking_lot::MutexGuard<'a, T>;

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(parking_lot::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock()
        }
    }

    /// A value that is replaced as a whole; a load never waits for the maker of the next one.
    ///
    /// A load that races with a store may give the older value: who needs the newest compares
    /// generations under the locks. The strategy is arc-swap's lock-based one, because its default
    /// has an unresolved report of a use after free (arc-swap issue 210), and no send with a
    /// current cache comes here.
    #[expect(clippy::disallowed_types, reason = "arc-swap's strategy is named by this type")]
    pub(crate) struct Snapshot<T>(arc_swap::ArcSwapAny<super::Arc<T>, std::sync::RwLock<()>>);

    #[expect(clippy::disallowed_types, reason = "arc-swap's strategy is named by this type")]
    impl<T> Snapshot<T> {
        pub(crate) fn new(value: super::Arc<T>) -> Self {
            Self(arc_swap::ArcSwapAny::with_strategy(value, std::sync::RwLock::default()))
        }

        pub(crate) fn load(&self) -> super::Arc<T> {
            self.0.load_full()
        }

        /// Publishes `value` and gives back the one before it, so that the caller decides where
        /// that is dropped.
        pub(crate) fn swap(&self, value: super::Arc<T>) -> super::Arc<T> {
            self.0.swap(value)
        }
    }

    /// Puts a thread to sleep until its waker is called.
    #[derive(Debug, Default)]
    pub(crate) struct Parker {
        woken: parking_lot::Mutex<bool>,
        changed: parking_lot::Condvar,
    }

    impl Parker {
        pub(super) fn unpark(&self) {
            *self.woken.lock() = true;
            self.changed.notify_one();
        }

        /// Sleeps until woken; a wake that came earlier counts.
        pub(crate) fn park(&self) {
            let mut woken = self.woken.lock();
            while !*woken {
                self.changed.wait(&mut woken);
            }
            *woken = false;
        }

        /// As [`park`](Self::park), and at most until `deadline`. False if that came first.
        pub(crate) fn park_deadline(&self, deadline: Instant) -> bool {
            let mut woken = self.woken.lock();
            while !*woken {
                if self.changed.wait_until(&mut woken, deadline).timed_out() {
                    return std::mem::take(&mut *woken);
                }
            }
            *woken = false;
            true
        }
    }
}

#[cfg(not(bus_loom))]
mod cell {
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        /// Runs `f` on a pointer for reading.
        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        /// Runs `f` on a pointer for writing.
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

#[cfg(any(bus_loom, bus_shuttle))]
mod modelled {
    use std::time::Instant;

    use super::checker;

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(checker::sync::Mutex<T>);

    pub(crate) type MutexGuard<'a, T> = checker::sync::MutexGuard<'a, T>;

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(checker::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a model that panicked under a lock has failed already")
        }
    }

    /// The stand-in for arc-swap: every version ever stored, and a loom atomic that says which one
    /// is current. Loom lets a load see any version that coherence allows, so a model meets the
    /// stale loads that the real one can show. The table itself is a std mutex, invisible to loom:
    /// it only grows, and an index is published after its entry.
    pub(crate) struct Snapshot<T> {
        versions: std::sync::Mutex<Vec<super::Arc<T>>>,
        current: checker::sync::atomic::AtomicUsize,
    }

    impl<T> Snapshot<T> {
        pub(crate) fn new(value: super::Arc<T>) -> Self {
            Self {
                versions: std::sync::Mutex::new(vec![value]),
                current: checker::sync::atomic::AtomicUsize::new(0),
            }
        }

        pub(crate) fn load(&self) -> super::Arc<T> {
            let current = self.current.load(super::Ordering::Acquire);
            self.versions.lock().expect("not poisoned")[current].clone()
        }

        pub(crate) fn swap(&self, value: super::Arc<T>) -> super::Arc<T> {
            let newest = {
                let mut versions = self.versions.lock().expect("not poisoned");
                versions.push(value);
                versions.len() - 1
            };
            let before = self.current.swap(newest, super::Ordering::AcqRel);
            self.versions.lock().expect("not poisoned")[before].clone()
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Parker {
        woken: checker::sync::Mutex<bool>,
        changed: checker::sync::Condvar,
    }

    impl Parker {
        pub(super) fn unpark(&self) {
            *self.woken.lock().expect("not poisoned") = true;
            self.changed.notify_one();
        }

        pub(crate) fn park(&self) {
            let mut woken = self.woken.lock().expect("not poisoned");
            while !*woken {
                woken = self.changed.wait(woken).expect("not poisoned");
            }
            *woken = false;
        }

        /// Loom has no time: a deadline is one that has passed, unless the wake came first.
        pub(crate) fn park_deadline(&self, _deadline: Instant) -> bool {
            std::mem::take(&mut *self.woken.lock().expect("not poisoned"))
        }
    }
}

#[cfg(not(bus_loom))]
pub(crate) use cell::UnsafeCell;
#[cfg(bus_loom)]
pub(crate) use loom::cell::UnsafeCell;
#[cfg(any(bus_loom, bus_shuttle))]
pub(crate) use modelled::{Mutex, MutexGuard, Parker, Snapshot};
#[cfg(not(any(bus_loom, bus_shuttle)))]
pub(crate) use real::{Mutex, MutexGuard, Parker, Snapshot};

/// A count that has one writer at a time, and that anybody may read.
///
/// It orders nothing and nothing depends on it, so both sides are relaxed and the writer needs no
/// read-modify-write. What makes the writer the only one is said where the count lives. Models do
/// not explore it, but for those that ask for it with [`seen`](Self::seen).
#[derive(Debug)]
pub(crate) struct Tally(TallyCell);

#[cfg(not(bus_loom))]
type TallyCell = std::sync::atomic::AtomicU64;

#[cfg(bus_loom)]
#[derive(Debug)]
enum TallyCell {
    Unseen(std::sync::atomic::AtomicU64),
    Seen(loom::sync::atomic::AtomicU64),
}

impl Default for Tally {
    fn default() -> Self {
        let cell = std::sync::atomic::AtomicU64::new(0);
        #[cfg(bus_loom)]
        let cell = TallyCell::Unseen(cell);
        Self(cell)
    }
}

impl Tally {
    /// One that a model explores.
    #[cfg(bus_loom)]
    pub(crate) fn seen() -> Self {
        Self(TallyCell::Seen(loom::sync::atomic::AtomicU64::new(0)))
    }

    /// Counts `more`.
    #[inline]
    pub(crate) fn add(&self, more: u64) {
        self.set(self.get().wrapping_add(more));
    }

    /// Puts a value in its place.
    #[inline]
    pub(crate) fn set(&self, value: u64) {
        #[cfg(not(bus_loom))]
        self.0.store(value, Ordering::Relaxed);
        #[cfg(bus_loom)]
        match &self.0 {
            TallyCell::Unseen(cell) => cell.store(value, Ordering::Relaxed),
            TallyCell::Seen(cell) => cell.store(value, Ordering::Relaxed),
        }
    }

    /// The count so far, or one shortly before it.
    #[inline]
    pub(crate) fn get(&self) -> u64 {
        #[cfg(not(bus_loom))]
        let value = self.0.load(Ordering::Relaxed);
        #[cfg(bus_loom)]
        let value = match &self.0 {
            TallyCell::Unseen(cell) => cell.load(Ordering::Relaxed),
            TallyCell::Seen(cell) => cell.load(Ordering::Relaxed),
        };
        value
    }
}

/// A mutex around what is only counted and told, for the rare writer and for who asks. Nothing else
/// is locked while it is held, and nothing depends on it, so models do not explore it.
#[derive(Debug, Default)]
pub(crate) struct Aside<T>(parking_lot::Mutex<T>);

impl<T> Aside<T> {
    pub(crate) fn lock(&self) -> parking_lot::MutexGuard<'_, T> {
        self.0.lock()
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.unpark();
    }
}

impl Parker {
    pub(crate) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }
}

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One synchronisation decision, switched off.
        ///
        /// Each is caught by a model in `loom-tests`, whose table says which; outside the models
        /// [`mutated`] is a constant `false` and nothing of this remains in the code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Mutant {
            $($(#[$doc])* $name,)*
        }

        #[cfg(bus_loom)]
        impl Mutant {
            /// Every mutant with its name.
            pub(crate) const ALL: &[(&str, Self)] = &[$((stringify!($name), Self::$name),)*];
        }
    };
}

mutants! {
    /// A queue is made by each of those who find that there is none.
    QueueMadeTwice,
    /// A send commits on the membership that it loaded, without looking at the generation again.
    SkipGenerationCheck,
    /// A change of membership takes only the lock of the endpoint that it is about.
    ChangeTakesOneLock,
    /// Locks are taken in descending order by those whose set holds the highest one.
    LocksOutOfOrder,
    /// Nothing is locked for a group without recipients.
    EmptySetTakesNoLock,
    /// A message of an endpoint that has been closed is still committed.
    ClosedSenderCommits,
    /// An endpoint's slot is used without comparing whose it is now.
    SlotNotCompared,
    /// An endpoint that receives nothing any more is still sent to.
    ShutStillReceives,
    /// A queue that once seemed full is not looked at again.
    RoomSeenOnce,
    /// A batch takes no more room than a message.
    BatchWithoutRoom,
    /// A batch draws one sequence, and the others follow from it.
    BatchDrawsOne,
    /// Who has received one message of a batch has freed the places of all.
    BatchFreedWhole,
    /// A message goes to those recipients that have room.
    DeliverToSome,
    /// Locks are released between the pushes to two recipients.
    ReleaseBetweenPushes,
    /// A send commits without looking again who monitors the bus.
    MonitorsNotCompared,
    /// An outcome of a request is told to who monitored the bus before the locks were taken.
    OutcomeMonitorsNotCompared,
    /// A send to a group that retains does not take the group's own lock.
    RetainWithoutHome,
    /// What a group retains is copied for a joiner before the locks of the join are held.
    StateBeforeJoin,
    /// A group's commits are counted in one place, whichever locks they hold.
    TallyInOneCell,
    /// The sequence is drawn from the lowest held lock's clock alone.
    SequenceFromOneClock,
    /// A commit moves on the clock of its lowest held lock only.
    AdvanceOneClock,
    /// Two commits with the same tick have the same sequence.
    SequenceWithoutLock,
    /// The sequence is drawn without regard to what the sender has taken.
    TakenNotFollowed,
    /// The sequence is drawn without regard to what the sender has sent.
    SentNotFollowed,
    /// The queue's tail is published with no ordering.
    TailRelaxed,
    /// The queue's head is published with no ordering.
    HeadRelaxed,
    /// A reader goes to sleep without looking at its queue again under its lock.
    SleepWithoutLook,
    /// A reader goes to sleep beside a gap that it has not been told of.
    SleepBesideGap,
    /// A reader that finds its queue empty, and then its endpoint ended, does not look again.
    EndWithoutLook,
    /// The reader's place is given to who asks, though somebody has it.
    SeatTakenTwice,
    /// A gap is told on its own before what was queued is read.
    LoneGapEarly,
    /// A reader that sleeps is not woken by a gap.
    DropWakesNobody,
    /// No fence between noting a gap and looking whether the reader has freed its last place.
    NoFenceInDrop,
    /// A waiting send does not look again after it was registered.
    NoSecondLook,
    /// No fence between freeing a place and looking for waiting sends.
    NoFenceInRelease,
    /// No fence between registering a waiting send and looking for room.
    NoFenceInRegister,
    /// A send that lacks its own sender's room and another's may wait at its own queue.
    WaitAtOwnQueue,
    /// A waiting send that found another recipient full stays registered where it was.
    StayRegistered,
    /// Who frees a place serves only the first waiting send.
    ServeOnlyOne,
    /// Who frees a place serves sends only, and no watches.
    ServeNoWatches,
    /// Who frees a place tries the youngest waiting send first.
    YoungestFirst,
    /// A newcomer takes a place that an older waiting send is owed.
    PassOlder,
    /// A waiting send takes a place that an older one waits for at another queue.
    WaiterPassesOlder,
    /// A drop-when-full member takes a place that an older waiting send is owed.
    DropperPassesOlder,
    /// A notice takes a place that an older waiting send is owed.
    NoticePassesOlder,
    /// A send that keeps a reserve place does not get it.
    NoReservePlace,
    /// A younger send takes the reserve place that an older one keeps.
    ReservePassesOlder,
    /// Who has stood in one line for too long keeps its places elsewhere.
    StuckKeepsClaims,
    /// A place that has been kept for too long without use is still withheld from younger sends.
    UnusedStaysWithheld,
    /// Who gives up a place that it kept serves nobody there.
    GiveUpServesNobody,
    /// A send that starts over goes to those whose filters accepted before.
    SelectionKept,
    /// Those who wait for a member are not served when its filter changes.
    FilterServesNobody,
    /// Those who wait for a member are not served when it leaves or is closed.
    LeaveServesNobody,
    /// A send keeps reserve places of queues that are no recipients of it any more.
    ChangeKeepsClaims,
    /// A send to a name commits on the owners that it loaded, without looking again.
    SkipOwnershipCheck,
    /// Sends that wait for a name are not looked at when its owners change.
    OwnerChangeServesNobody,
    /// A request that waits to be given again can be decided before it is known where it waits.
    AgainWithoutKey,
    /// A send to a shared name waits at one of its workers only.
    WaitAtOneWorker,
    /// A cancelled send stays where it was.
    CancelLeavesSend,
    /// A cancelled send is said to be so, though it was committed before.
    CancelForgetsOutcome,
    /// Who decides a request leaves it to others to decide as well.
    OutcomeTwice,
    /// A reader looks whether a request is still waited for before it notes that it was asked.
    AskedNotedLate,
    /// A look at deadlines is over before it is said that none is planned.
    LookBeforeNone,
    /// A reader that sleeps is not woken by the end of a request that it has taken.
    EndWakesNobody,
    /// Who is not in a gated group may send to it.
    OutsiderSends,
    /// An owner that frees a place of a peer endpoint's share serves only its own queue's line.
    ShareServesNobody,
    /// A member that leaves rather than make senders wait stays, and they wait.
    LeaverStays,
    /// A user may take all of another user's queue.
    ShareUnbounded,
    /// A reader gives a user's share back after it has looked who waits.
    ShareFreedLate,
    /// Who waits for his share of a queue is not registered at the queue.
    ShareWaitsAlone,
    /// A candidate hears that it was admitted before it is a member.
    AdmittedTooEarly,
    /// Members of a gated group go on sending to an owner that is gone.
    GoneOwnerKeepsPeers,
    /// A candidate that withdraws after it was admitted is said to be outside.
    WithdrawForgetsAdmission,
    /// What a connection holds is changed without comparing it with what it was.
    HeldNotCompared,
    /// What is lent to a user's connections is changed without comparing it with what it was.
    LentNotCompared,
    /// What was lent is given back before it is held no more.
    LentBackEarly,
    /// The tail of a ring in shared memory is published, or looked at, with no ordering.
    RingTailRelaxed,
    /// What was consumed of a ring in shared memory is told, or looked at, with no ordering.
    RingConsumedRelaxed,
    /// No fence between publishing in a ring and looking whether its reader sleeps.
    NoFenceInPublish,
    /// No fence between saying that a ring's reader sleeps and looking for bytes.
    NoFenceInArm,
    /// A reader of a shared ring that finds input when it says that it sleeps leaves it said.
    ArmedBesideInput,
    /// Who reads a ring says that nobody sleeps although another thread does.
    SleeperForgotten,
    /// No fence between saying that a ring's writer waits and looking for room.
    NoFenceInWantRoom,
    /// No fence between giving cells back and looking whether the ring's writer waits.
    NoFenceInFinish,
    /// That a ring's reader holds nothing any more is looked at with no ordering.
    HoldingRelaxed,
    /// Cells that the reader holds are written to.
    HeldNotPassed,
    /// Who reads completions looks for one and leaves its waker in two steps.
    CompletionUnseen,
    /// The end of a loan is decided and taken in two steps.
    LoanEndsTwice,
    /// A reader of lent memory looks at the word without a fence after its copy.
    LookWithoutFence,
}

#[cfg(not(bus_loom))]
#[inline(always)]
pub(crate) const fn mutated(_: Mutant) -> bool {
    false
}

/// Whether a mutant was chosen for this process, by `UNISONO_MUTANT`.
#[cfg(bus_loom)]
pub(crate) fn mutated(mutant: Mutant) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<Mutant>> = OnceLock::new();
    let chosen = || {
        let wanted = std::env::var("UNISONO_MUTANT").ok()?;
        let found = Mutant::ALL.iter().find(|(name, _)| *name == wanted);
        Some(found.expect("UNISONO_MUTANT names a mutant").1)
    };
    *CHOSEN.get_or_init(chosen) == Some(mutant)
}
