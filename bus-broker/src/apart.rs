//! Payloads that lie beside the stream: lent by their senders, or large; copied at most once, read in place.
//!
//! Invariants:
//! - **One copy for all who may share it.** A payload is copied into memory of its [`Audience`] when the
//!   first of them is to be given it, and the others are given the same place. Who is alone entitled to
//!   a message (it was sent to one endpoint, a filter chose, a monitor looks) is given a copy in memory of
//!   its own connection; so every payload in a memory is for everybody who has mapped it.
//! - **A large payload that nobody has lent** is taken for one whose loan has ended: its bytes have come
//!   with its message, and are there for those who cannot read in place. The copies in arenas are held
//!   by their readers only, so what one reader keeps for long keeps no memory for those who are slow.
//! - **A loan ends once** ([`Loan::finish`]): with the last message, delivery or reader that needs it, or when
//!   its time is over. Only then does the sender hear that its buffer is free, and before that nobody
//!   is left who takes what is written there next for this payload.
//! - Nothing here waits for a client, and nothing lies in memory that a client can write but payloads.
//!
//! | file | what it knows |
//! |---|---|
//! | here | a payload, its loan, and what is to be looked at in time |
//! | `apart/arena` | memory in which copies lie |
//! | `apart/pool` | memory that a sender writes |

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use bus_core::{Audience, Charge, CompletionQueue, GroupId, Lease, Limits, Payload, PayloadApart};
use bytes::Bytes;

use crate::log_limit::{LogEvent, LogLimit};
use arena::Budget;
pub(crate) use arena::{Arena, ArenaSegment, Piece};

pub(crate) use pool::{Pool, stride};

mod arena;
mod pool;

/// A payload that its sender has lent, or that is large.
#[derive(Debug)]
pub(crate) struct LentPayload {
    length: usize,
    lent: bool,
    /// Whose it is.
    uid: u32,
    state: Mutex<State>,
    settled: OnceLock<Bytes>,
}

#[derive(Debug)]
struct State {
    /// The sender's memory; none once there is a copy that serves everybody who is still to come.
    loan: Option<Arc<Loan>>,
    /// The copy for everybody who has the message's audience.
    shared: Option<(Audience, SharedCopy)>,
}

/// A copy that recipients share.
#[derive(Debug)]
enum SharedCopy {
    /// All that there is.
    Only(Arc<Piece>),
    /// There as long as somebody reads it; then it can be made again.
    Another(Weak<Piece>),
}

/// What a sender has lent.
#[derive(Debug)]
pub(crate) struct Loan {
    pub(crate) source: Source,
    length: usize,
    lease: Lease<Reader>,
    copied: AtomicBool,
    /// What its sender is charged meanwhile.
    charge: Mutex<Option<LoanCharge>>,
    lending: u32,
    completions: Arc<CompletionQueue>,
    log_limit: Arc<LogLimit>,
}

/// What is charged for a loan: its bytes, and the file's descriptor.
#[derive(Debug)]
pub(crate) struct LoanCharge {
    pub(crate) _bytes: Charge,
    pub(crate) _descriptor: Option<Charge>,
}

/// Where it lies.
#[derive(Debug)]
pub(crate) enum Source {
    /// At the beginning of a buffer.
    Pool { pool: Arc<Pool>, buffer: u32, generation: u64 },
    /// At the beginning of a file that nobody can change any more.
    File(OwnedFd),
}

/// A connection that reads where the sender can still write.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) hold: u32,
    pub(crate) moved: Arc<Moved>,
}

/// Payloads that a connection has to be given anew, because they are lent no longer.
#[derive(Debug)]
pub(crate) struct Moved {
    list: Mutex<Vec<(u32, Bytes)>>,
    waker: Waker,
}

/// What one connection has sent of late that is large. An arena that is made for a single payload of a
/// few pages costs more than it saves; so what nobody has lent goes there only once it is much.
#[derive(Debug, Default)]
pub(crate) struct LargeSends {
    since: Option<Instant>,
    bytes: usize,
}

/// What payloads of all connections share.
#[derive(Debug)]
pub(crate) struct Payloads {
    budget: Arc<Budget>,
    lent: Duration,
    /// From which size on a payload that came with its message is large.
    large: usize,
    arenas: Mutex<Arenas>,
    loans: Mutex<Loans>,
    started: Instant,
    /// When something is to be looked at, in microseconds since the start; `NEVER` if nothing is.
    next_look: AtomicU64,
}

/// Loans by the time at which they are over; all have the same term, so that is their order. One that has
/// ended before stays until its time, but there are never more of those than of the others, or a few.
#[derive(Debug, Default)]
struct Loans {
    list: VecDeque<(Instant, Weak<LentPayload>)>,
    /// How many there may be before those that have ended are taken out.
    most: usize,
}

#[derive(Debug, Default)]
struct Arenas {
    /// Of each group, of its last generations.
    groups: HashMap<GroupId, VecDeque<(Audience, Arc<Arena>)>>,
    private: Vec<Weak<Arena>>,
    swept: Option<Instant>,
}

impl LentPayload {
    pub(crate) fn new(uid: u32, loan: Loan) -> Arc<Self> {
        let length = loan.length;
        let state = Mutex::new(State { loan: Some(Arc::new(loan)), shared: None });
        Arc::new(Self { length, lent: true, uid, state, settled: OnceLock::new() })
    }

    /// One that came with its message.
    fn large(uid: u32, bytes: Bytes) -> Arc<Self> {
        let (length, state) = (bytes.len(), Mutex::new(State { loan: None, shared: None }));
        Arc::new(Self { length, lent: false, uid, state, settled: OnceLock::from(bytes) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing that can panic runs under this lock")
    }

    /// The loan, while it lasts.
    pub(crate) fn loan(&self) -> Option<Arc<Loan>> {
        self.lock().loan.clone()
    }

    /// A copy for those who have this audience, made by the first who asks, and whether that was this call.
    /// None if there is no memory.
    pub(crate) fn shared_piece(
        &self,
        audience: Audience,
        arena: impl FnOnce() -> Arc<Arena>,
    ) -> Option<(Arc<Piece>, bool)> {
        let mut state = self.lock();
        if let Some((of, copy)) = &state.shared
            && *of == audience
            && let Some(piece) = copy.get()
        {
            return Some((piece, false));
        }
        let piece = Arc::new(self.copy_to(&state, &arena())?);
        let copy = match self.settled.get() {
            Some(_) => SharedCopy::Another(Arc::downgrade(&piece)),
            None => SharedCopy::Only(Arc::clone(&piece)),
        };
        state.shared = Some((audience, copy));
        // Who is still to come has this audience, or copies from here.
        let over = state.loan.take();
        drop(state);
        drop(over);
        Some((piece, true))
    }

    /// A copy for one connection.
    pub(crate) fn private_piece(&self, arena: &Arena) -> Option<Piece> {
        self.copy_to(&self.lock(), arena)
    }

    fn copy_to(&self, state: &State, arena: &Arena) -> Option<Piece> {
        let piece = arena.place(self.uid, self.length)?;
        if let Some(loan) = &state.loan {
            if !loan.copy_into(&piece) {
                return None;
            }
            loan.copied.store(true, Ordering::Relaxed);
        } else if let Some(bytes) = self.settled.get() {
            piece.write(bytes);
        } else {
            piece.copy_from(&*state.shared.as_ref()?.1.get()?);
        }
        Some(piece)
    }

    /// Its time is over: copies what somebody may still want, and ends the loan. Gives the bytes copied.
    fn expire(&self) -> usize {
        let mut state = self.lock();
        let Some(loan) = state.loan.take() else { return 0 };
        let copied = if self.settled.get().is_none() { self.length } else { 0 };
        let bytes = self.settled.get_or_init(|| loan.copy_out()).clone();
        drop(state);
        loan.copied.store(true, Ordering::Relaxed);
        loan.finish(Some(&bytes));
        copied
    }
}

impl PayloadApart for LentPayload {
    fn len(&self) -> usize {
        self.length
    }

    fn settled(&self) -> &Bytes {
        let state = self.lock();
        let bytes = self.settled.get_or_init(|| match (&state.loan, &state.shared) {
            (Some(loan), _) => {
                loan.copied.store(true, Ordering::Relaxed);
                loan.copy_out()
            }
            (None, Some((_, SharedCopy::Only(shared)))) => shared.to_bytes(),
            (None, _) => unreachable!("a loan ends only after a copy"),
        });
        drop(state);
        bytes
    }

    fn was_lent(&self) -> bool {
        self.lent
    }
}

impl LargeSends {
    /// A payload that came with its message.
    pub(crate) fn payload(&mut self, uid: u32, bytes: Bytes, payloads: &Payloads) -> Payload {
        if bytes.len() < payloads.large {
            return bytes.into();
        }
        let now = Instant::now();
        let passed = now.saturating_duration_since(*self.since.get_or_insert(now));
        if passed >= SWEEP {
            self.bytes = if passed < 2 * SWEEP { self.bytes / 2 } else { 0 };
            self.since = Some(now);
        }
        self.bytes = self.bytes.saturating_add(bytes.len());
        match self.bytes >= ARENA_PAYS {
            true => Payload::apart(LentPayload::large(uid, bytes)),
            false => bytes.into(),
        }
    }
}

impl SharedCopy {
    fn get(&self) -> Option<Arc<Piece>> {
        match self {
            Self::Only(piece) => Some(Arc::clone(piece)),
            Self::Another(piece) => piece.upgrade(),
        }
    }
}

impl Loan {
    pub(crate) fn new(
        source: Source,
        length: usize,
        charge: LoanCharge,
        lending: u32,
        completions: Arc<CompletionQueue>,
        log_limit: Arc<LogLimit>,
    ) -> Self {
        Self {
            source,
            length,
            lease: Lease::new(),
            copied: AtomicBool::new(false),
            charge: Mutex::new(Some(charge)),
            lending,
            completions,
            log_limit,
        }
    }

    /// Lets a connection read where the sender can write, if that is still lent.
    pub(crate) fn let_in(&self, reader: Reader) -> bool {
        self.lease.enter(reader).is_ok()
    }

    /// The file, if it is one.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::File(file) => Some(file.as_fd()),
            Source::Pool { .. } => None,
        }
    }

    /// What the sender wrote, or writes: nobody else is to see this before it is copied.
    fn copy_out(&self) -> Bytes {
        let mut bytes = vec![0; self.length];
        match &self.source {
            Source::Pool { pool, buffer, .. } => pool.copy_out(*buffer, &mut bytes),
            Source::File(file) => {
                if let Err(error) = bus_memory::read_at(file.as_fd(), 0, &mut bytes) {
                    self.log_limit.log_of_broker(LogEvent::Memory, |suppressed| {
                        tracing::error!(%error, suppressed, "a sealed payload cannot be read");
                    });
                }
            }
        }
        bytes.into()
    }

    fn copy_into(&self, piece: &Piece) -> bool {
        match &self.source {
            Source::Pool { pool, buffer, .. } => {
                pool.copy_to(*buffer, piece);
                true
            }
            Source::File(_) => {
                piece.write(&self.copy_out());
                true
            }
        }
    }

    /// Ends the loan, once: nobody needs what was lent, or `instead` is what is read in its place.
    fn finish(&self, instead: Option<&Bytes>) {
        let Some(readers) = self.lease.end() else { return };
        if let Source::Pool { pool, buffer, generation } = &self.source {
            pool.revoke(*buffer, *generation);
        }
        if let Some(bytes) = instead {
            for Reader { hold, moved } in readers {
                moved.add(hold, bytes.clone());
            }
        }
        if let Source::Pool { pool, buffer, .. } = &self.source {
            pool.give_back(*buffer);
        }
        drop(self.charge.lock().expect("nothing panics under this lock").take());
        self.completions.complete(self.lending, self.copied.load(Ordering::Relaxed));
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.finish(None);
    }
}

impl Moved {
    pub(crate) fn new(waker: Waker) -> Self {
        Self { list: Mutex::default(), waker }
    }

    fn add(&self, hold: u32, bytes: Bytes) {
        self.list.lock().expect("nothing panics under this lock").push((hold, bytes));
        self.waker.wake_by_ref();
    }

    /// Takes what is to be given anew.
    pub(crate) fn take(&self) -> Vec<(u32, Bytes)> {
        std::mem::take(&mut *self.list.lock().expect("nothing panics under this lock"))
    }
}

impl Payloads {
    pub(crate) fn new(limits: &Limits, large: u32, log_limit: Arc<LogLimit>) -> Self {
        let large = if large == 0 { usize::MAX } else { large as usize };
        Self {
            budget: Arc::new(Budget::new(limits.arena_bytes, log_limit)),
            lent: limits.lent,
            large,
            arenas: Mutex::default(),
            loans: Mutex::default(),
            started: Instant::now(),
            next_look: AtomicU64::new(NEVER),
        }
    }

    /// Memory of one connection's own.
    pub(crate) fn private_arena(&self) -> Arc<Arena> {
        let arena = Arc::new(Arena::new(Arc::clone(&self.budget)));
        let mut arenas = self.arenas();
        arenas.private.retain(|arena| arena.strong_count() > 0);
        arenas.private.push(Arc::downgrade(&arena));
        drop(arenas);
        self.look_by(Instant::now() + SWEEP);
        arena
    }

    /// Memory for all who have this audience.
    pub(crate) fn arena(&self, audience: Audience) -> Arc<Arena> {
        let mut arenas = self.arenas();
        let of_group = arenas.groups.entry(audience.group()).or_default();
        if let Some((_, arena)) = of_group.iter().rev().find(|(of, _)| *of == audience) {
            return Arc::clone(arena);
        }
        let arena = Arc::new(Arena::new(Arc::clone(&self.budget)));
        of_group.push_back((audience, Arc::clone(&arena)));
        if of_group.len() > GENERATIONS {
            of_group.pop_front();
        }
        drop(arenas);
        self.look_by(Instant::now() + SWEEP);
        arena
    }

    /// A payload is lent from now on, and for as long as the limit says.
    pub(crate) fn lent(&self, payload: &Arc<LentPayload>) {
        let until = Instant::now() + self.lent;
        self.loans().add(until, payload);
        self.look_by(until);
    }

    /// How long nothing has to be looked at; none if nothing is.
    pub(crate) fn next_look(&self) -> Option<Duration> {
        let at = self.next_look.load(Ordering::Relaxed);
        (at != NEVER).then(|| Duration::from_micros(at).saturating_sub(self.started.elapsed()))
    }

    /// Ends loans whose time is over, and gives back memory that nobody uses.
    pub(crate) fn look(&self) {
        if self.next_look().is_none_or(|left| !left.is_zero()) {
            return;
        }
        self.next_look.store(NEVER, Ordering::Relaxed);
        let now = Instant::now();
        let mut copied = 0;
        loop {
            let mut loans = self.loans();
            while loans.list.front().is_some_and(|(_, payload)| payload.strong_count() == 0) {
                loans.list.pop_front();
            }
            let Some((until, _)) = loans.list.front() else { break };
            if *until > now || copied > COPIED_A_LOOK {
                let until = *until;
                drop(loans);
                self.look_by(until);
                break;
            }
            let payload = loans.list.pop_front().and_then(|(_, payload)| payload.upgrade());
            drop(loans);
            copied += payload.map_or(0, |payload| payload.expire());
        }
        self.sweep(now);
    }

    fn sweep(&self, now: Instant) {
        let mut arenas = self.arenas();
        let since = arenas.swept.get_or_insert(now);
        let due = *since + SWEEP;
        if due > now {
            let any = !arenas.groups.is_empty() || !arenas.private.is_empty();
            drop(arenas);
            if any {
                self.look_by(due);
            }
            return;
        }
        arenas.swept = Some(now);
        let (mut unused, mut quiet) = (Vec::new(), Vec::new());
        let mut any = false;
        arenas.groups.retain(|_, arenas| {
            arenas.retain(|(_, arena)| {
                quiet.extend(arena.newly_quiet());
                unused.extend(arena.take_unused());
                !arena.is_empty() || Arc::strong_count(arena) > 1
            });
            !arenas.is_empty()
        });
        any |= !arenas.groups.is_empty();
        let private: Vec<_> = arenas.private.iter().filter_map(Weak::upgrade).collect();
        arenas.private.retain(|arena| arena.strong_count() > 0);
        for arena in &private {
            quiet.extend(arena.newly_quiet());
            unused.extend(arena.take_unused());
            any |= !arena.is_empty();
        }
        drop(arenas);
        // Unmapped, and told to their readers, without a lock.
        drop(unused);
        drop(private);
        quiet.iter().for_each(|segment| segment.tell_readers());
        if any {
            self.look_by(now + SWEEP);
        }
    }

    fn look_by(&self, at: Instant) {
        let at = u64::try_from(at.saturating_duration_since(self.started).as_micros());
        self.next_look.fetch_min(at.unwrap_or(NEVER), Ordering::Relaxed);
    }

    fn loans(&self) -> MutexGuard<'_, Loans> {
        self.loans.lock().expect("nothing panics under this lock")
    }

    fn arenas(&self) -> MutexGuard<'_, Arenas> {
        self.arenas.lock().expect("nothing panics under this lock")
    }
}

impl Loans {
    fn add(&mut self, until: Instant, payload: &Arc<LentPayload>) {
        if self.list.len() >= self.most {
            self.list.retain(|(_, payload)| payload.strong_count() > 0);
            self.most = (2 * self.list.len()).max(ENDED_LOANS);
        }
        self.list.push_back((until, Arc::downgrade(payload)));
    }
}

const NEVER: u64 = u64::MAX;
/// Loans that have ended and may be in the list although hardly any last.
const ENDED_LOANS: usize = 1024;
/// How often memory that nobody uses is given back.
const SWEEP: Duration = Duration::from_secs(1);
/// Bytes within about a second that are worth an arena: what making one costs, in copies.
const ARENA_PAYS: usize = 256 << 10;
/// Generations of one group's membership of which payloads may be on their way.
const GENERATIONS: usize = 4;
/// Bytes that are copied for loans whose time is over before other work has its turn.
const COPIED_A_LOOK: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g8_loans_that_have_ended_are_not_kept_until_their_time() {
        let limits = Limits { lent: Duration::from_secs(600), ..Limits::default() };
        let payloads = Payloads::new(&limits, 4096, Arc::default());
        let lent = || LentPayload::large(1, Bytes::from_static(b"lent"));
        let lasting: Vec<_> = (0..100).map(|_| lent()).collect();
        for payload in &lasting {
            payloads.lent(payload);
            (0..1000).for_each(|_| payloads.lent(&lent()));
        }
        let loans = payloads.loans();
        assert!(loans.list.len() <= ENDED_LOANS + lasting.len(), "{}", loans.list.len());
        let last = loans.list.iter().filter(|(_, payload)| payload.strong_count() > 0).count();
        assert_eq!(last, lasting.len());
    }
}
