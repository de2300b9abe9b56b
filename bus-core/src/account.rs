//! Accounts: who holds how much of what a bus has to give (G8, G10).
//!
//! A **user** has a limit for each [`Resource`]. Half of it is divided evenly among as many
//! connections as the user may have: that part is *assured*, each connection has it whatever others
//! do. The other half is lent to whoever asks first, but no **program** (the connections of one
//! process) may hold more of that than it leaves. So on a desktop of one user no program takes more
//! than half, the next one finds as much as the first has taken, and a program that begins when all
//! is taken still has what it is assured.
//!
//! # Why it adds up
//!
//! Invariant: what is lent is taken from the user before it counts as the connection's, and is given
//! back after it has ceased to. So what a user's connections hold beyond what they are assured is
//! at no time more than is lent, and together with that never more than the limit. When nothing is
//! going on, the two are equal: each change of what a connection holds is one compare-and-exchange
//! from one value to the next, and what is lent changes by the difference of the two.
//!
//! A refused charge has changed nothing. A charge that races with another one may be refused
//! although one of the two would have fitted; never is one let pass that does not fit.
//!
//! A [`Charge`] is given back once, when it is dropped: it is a value that cannot be cloned.
//!
//! # What it costs
//!
//! A charge within what is assured is one atomic operation on a line that belongs to its connection.
//! Only beyond it the two counts of program and user are touched, which connections share. There is
//! no lock; the table of users is one, and only connecting takes it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use ahash::HashMap;

use crate::bus::LimitExceeded;
use crate::limits::Limits;
use crate::sync::{AtomicU64, Mutant, Mutex, Ordering, mutated};

pub use amounts::{Amounts, RESOURCES, Resource};

mod amounts;

/// The accounts of all users of a bus. Cheap to clone; all clones are the same ledger.
///
/// ```
/// use bus_core::{Ledger, Limits, Process, Resource};
///
/// let ledger = Ledger::new(&Limits { user_connections: 2, user_names: 8, ..Limits::default() });
/// let one = ledger.open(1000, 1, Process::Pid(1));
/// let other = ledger.open(1000, 2, Process::Pid(2));
///
/// // Of 8 names 4 are assured, 2 for each of 2 connections; 4 are lent, half of them to a program.
/// let held = one.charge(Resource::Names, 4)?;
/// let refused = one.charge(Resource::Names, 1).unwrap_err();
/// assert_eq!((refused.limit, refused.value), ("user_names", 8));
/// assert!(other.charge(Resource::Names, 3).is_ok());
///
/// drop(held);
/// assert!(one.charge(Resource::Names, 1).is_ok());
/// # Ok::<(), bus_core::LimitExceeded>(())
/// ```
#[derive(Clone, Debug)]
pub struct Ledger {
    inner: Arc<LedgerInner>,
}

#[derive(Debug)]
struct LedgerInner {
    users: Mutex<Users>,
}

#[derive(Debug, Default)]
struct Users {
    open: HashMap<u32, Weak<User>>,
    /// The limits of a user for whom no others were set.
    common: Amounts,
    /// Limits of particular users.
    limits: HashMap<u32, Amounts>,
    /// Numbers connections.
    last: u64,
    /// Users in the table at which those that are gone are looked for.
    tidy_at: usize,
}

/// Which process a connection belongs to. The connections of one process are one program.
///
/// A pid alone does not say it: it is 0 for a process in a pid namespace that the broker cannot see
/// into, and is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Process {
    /// The number that the kernel has given the process for as long as the machine runs.
    Pidfd(u64),
    /// A process id, where that is all that is known.
    Pid(u32),
    /// Nothing is known: each connection is a program of its own.
    Unknown(u64),
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pidfd(number) => write!(f, "process {number}"),
            Self::Pid(pid) => write!(f, "pid {pid}"),
            Self::Unknown(number) => write!(f, "unknown {number}"),
        }
    }
}

/// One user's counts.
#[derive(Debug)]
struct User {
    uid: u32,
    limits: Amounts,
    /// What each connection has in any case.
    assured: Amounts,
    /// What is lent out of `limits - assured * connections`.
    lent: [AtomicU64; RESOURCES],
    refused: [AtomicU64; RESOURCES],
    members: Mutex<Members>,
}

/// Who belongs to a user. Entries of those that are gone are removed by their own end.
#[derive(Debug, Default)]
struct Members {
    programs: HashMap<Process, Weak<Program>>,
    connections: BTreeMap<u64, Weak<Connection>>,
}

/// What the connections of one process hold of what is lent.
#[derive(Debug)]
struct Program {
    process: Process,
    pid: u32,
    lent: [AtomicU64; RESOURCES],
}

#[derive(Debug)]
struct Connection {
    number: u64,
    user: Arc<User>,
    program: Arc<Program>,
    held: [AtomicU64; RESOURCES],
}

/// The account of one connection. Cheap to clone; all clones are the same account.
#[derive(Clone, Debug)]
pub struct Account {
    connection: Arc<Connection>,
}

/// Something that an account holds; given back when it is dropped.
#[derive(Debug)]
#[must_use = "it is given back when it is dropped"]
pub struct Charge {
    connection: Arc<Connection>,
    resource: Resource,
    amount: u64,
}

/// Who held what when a charge was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holders {
    /// Whose limit it is.
    pub uid: u32,
    /// What was asked for.
    pub asked: u64,
    /// What the connection holds.
    pub connection: u64,
    /// What the connections of its process hold of what is lent.
    pub program: u64,
    /// What all connections of the user hold of what is lent.
    pub user: u64,
    /// What is lent to all of them together at most.
    pub lent: u64,
    /// The process that holds the most of it.
    pub most_pid: u32,
    /// What it holds.
    pub most: u64,
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uid, asked, connection, program, user, lent, most_pid, most } = self;
        write!(
            f,
            "user {uid} has {user} of the {lent} in use that are lent, most of all process \
             {most_pid} with {most}; this process has {program}, this connection {connection}, and \
             asks for {asked}; no process may have more than it leaves"
        )
    }
}

/// What one user's connections hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UserUsage {
    /// Which user.
    pub uid: u32,
    /// The limits.
    pub limits: Amounts,
    /// What each connection has in any case.
    pub assured: Amounts,
    /// What all connections hold together.
    pub held: Amounts,
    /// How often something was refused, since the user has had connections without a break.
    pub refused: Amounts,
    /// The connections in the order of their numbers, and closed ones of which something is held
    /// yet.
    pub connections: Vec<ConnectionUsage>,
}

/// What one connection holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionUsage {
    /// Its number: 1, 2, 3 ... in the order in which they came.
    pub number: u64,
    /// Its process id as it was told; 0 if it is not known here.
    pub pid: u32,
    /// Which process that is.
    pub process: Process,
    /// What it holds.
    pub held: Amounts,
}

impl Ledger {
    /// A ledger in which every user has the limits that `limits` says.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let users = Users { common: limits.of_user(), ..Users::default() };
        Self { inner: Arc::new(LedgerInner { users: Mutex::new(users) }) }
    }

    /// Gives a user limits of his own. Connections that he has keep the old ones until all of them
    /// are closed.
    pub fn set_limits(&self, uid: u32, limits: Amounts) {
        self.inner.users.lock().limits.insert(uid, limits);
    }

    /// Puts other limits in the place of all that were set: those of every user, and those of
    /// particular ones. Users who have connections keep the old ones until all of these are closed,
    /// so that what is assured to one of them stays so. Gives those whom that concerns.
    pub fn replace_limits(
        &self,
        common: Amounts,
        limits: impl IntoIterator<Item = (u32, Amounts)>,
    ) -> Vec<u32> {
        let limits: HashMap<u32, Amounts> = limits.into_iter().collect();
        let mut users = self.inner.users.lock();
        (users.common, users.limits) = (common, limits);
        let keep = |(uid, user): (&u32, &Weak<User>)| {
            let user = user.upgrade()?;
            let limits = users.limits.get(uid).unwrap_or(&users.common);
            (user.limits != *limits).then_some(*uid)
        };
        let mut keep: Vec<u32> = users.open.iter().filter_map(keep).collect();
        keep.sort_unstable();
        keep
    }

    /// The limits of a user.
    #[must_use]
    pub fn limits(&self, uid: u32) -> Amounts {
        let users = self.inner.users.lock();
        match users.open.get(&uid).and_then(Weak::upgrade) {
            Some(user) => user.limits,
            None => users.limits.get(&uid).copied().unwrap_or(users.common),
        }
    }

    /// Opens the account of a connection. Does not block.
    ///
    /// That it is one of the user's connections is for the caller to charge it for, as
    /// [`Resource::Connections`], and to keep that until it is closed.
    #[must_use]
    pub fn open(&self, uid: u32, pid: u32, process: Process) -> Account {
        let (user, number) = self.user(uid);
        let mut members = user.members.lock();
        let known = members.programs.get(&process).and_then(Weak::upgrade);
        let program = known.unwrap_or_else(|| {
            let program = Arc::new(Program { process, pid, lent: zeros() });
            members.programs.insert(process, Arc::downgrade(&program));
            program
        });
        let connection = Connection { number, user: Arc::clone(&user), program, held: zeros() };
        let connection = Arc::new(connection);
        members.connections.insert(number, Arc::downgrade(&connection));
        drop(members);
        Account { connection }
    }

    fn user(&self, uid: u32) -> (Arc<User>, u64) {
        let mut users = self.inner.users.lock();
        users.last += 1;
        let number = users.last;
        if let Some(user) = users.open.get(&uid).and_then(Weak::upgrade) {
            return (user, number);
        }
        if users.open.len() >= users.tidy_at {
            users.open.retain(|_, user| user.strong_count() != 0);
            users.tidy_at = 2 * users.open.len() + 16;
        }
        let limits = users.limits.get(&uid).copied().unwrap_or(users.common);
        let user = Arc::new(User::new(uid, limits));
        users.open.insert(uid, Arc::downgrade(&user));
        (user, number)
    }

    /// What a user's connections hold. None if there is none. Does not block.
    #[must_use]
    pub fn usage(&self, uid: u32) -> Option<UserUsage> {
        let user = self.inner.users.lock().open.get(&uid).and_then(Weak::upgrade)?;
        Some(user.usage())
    }

    /// A number for a connection that has no account, from the same count. Does not block.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        let mut users = self.inner.users.lock();
        users.last += 1;
        users.last
    }

    /// Connections of a user, those after the one of the number `after`: at most `most`. Does not
    /// block.
    #[must_use]
    pub fn connections(&self, uid: u32, after: u64, most: usize) -> Vec<ConnectionUsage> {
        let user = self.inner.users.lock().open.get(&uid).and_then(Weak::upgrade);
        user.map_or_else(Vec::new, |user| user.connections(after, most))
    }

    /// The users that have connections, ascending. Does not block.
    #[must_use]
    pub fn users(&self) -> Vec<u32> {
        let users = self.inner.users.lock();
        let open = users.open.iter().filter(|(_, user)| user.strong_count() != 0);
        let mut open: Vec<u32> = open.map(|(uid, _)| *uid).collect();
        open.sort_unstable();
        open
    }
}

impl User {
    fn new(uid: u32, limits: Amounts) -> Self {
        let connections = limits.get(Resource::Connections).max(1);
        let mut assured = Amounts::default();
        for resource in Resource::ALL {
            // A connection is no part of itself.
            if resource != Resource::Connections {
                assured.set(resource, limits.get(resource) / 2 / connections);
            }
        }
        let members = Mutex::new(Members::default());
        Self { uid, limits, assured, lent: zeros(), refused: zeros(), members }
    }

    /// What is lent of a resource at most.
    fn most_lent(&self, resource: Resource) -> u64 {
        let connections = self.limits.get(Resource::Connections);
        self.limits.get(resource) - self.assured.get(resource) * connections
    }

    fn usage(&self) -> UserUsage {
        let connections = self.connections(0, usize::MAX);
        let mut held = Amounts::default();
        for resource in Resource::ALL {
            let all = connections.iter().map(|connection| connection.held.get(resource));
            held.set(resource, all.sum());
        }
        let Self { uid, limits, assured, .. } = *self;
        let refused = read(&self.refused);
        UserUsage { uid, limits, assured, held, refused, connections }
    }

    fn connections(&self, after: u64, most: usize) -> Vec<ConnectionUsage> {
        use std::ops::Bound::{Excluded, Unbounded};
        // Taken out of the table first: dropping the last of one enters the table again.
        let open: Vec<Arc<Connection>> = {
            let members = self.members.lock();
            let rest = members.connections.range((Excluded(after), Unbounded));
            rest.filter_map(|(_, open)| open.upgrade()).take(most).collect()
        };
        open.iter().map(|open| open.usage()).collect()
    }

    /// The process that holds the most of what is lent.
    fn greediest(&self, resource: Resource) -> (u32, u64) {
        let programs: Vec<Arc<Program>> =
            self.members.lock().programs.values().filter_map(Weak::upgrade).collect();
        let lent = |program: &Arc<Program>| program.lent[resource.at()].load(Ordering::Relaxed);
        let most = programs.iter().max_by_key(|program| (lent(program), program.pid));
        most.map_or((0, 0), |most| (most.pid, lent(most)))
    }
}

impl Connection {
    fn usage(&self) -> ConnectionUsage {
        let Program { process, pid, .. } = *self.program;
        ConnectionUsage { number: self.number, pid, process, held: read(&self.held) }
    }

    /// What of so much is beyond what is assured.
    fn beyond(&self, resource: Resource, amount: u64) -> u64 {
        amount.saturating_sub(self.user.assured.get(resource))
    }

    fn take(&self, resource: Resource, amount: u64) -> Result<(), LimitExceeded> {
        let held = &self.held[resource.at()];
        let mut before = held.load(Ordering::Relaxed);
        loop {
            let after = before.checked_add(amount);
            let more =
                after.map(|after| self.beyond(resource, after) - self.beyond(resource, before));
            let (Some(after), Some(more)) = (after, more) else {
                return Err(self.refused(resource, amount));
            };
            if more != 0 && !self.borrow(resource, more) {
                return Err(self.refused(resource, amount));
            }
            if mutated(Mutant::HeldNotCompared) {
                held.store(after, Ordering::Relaxed);
                return Ok(());
            }
            match held.compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => {
                    self.pay_back(resource, more);
                    before = now;
                }
            }
        }
    }

    fn give(&self, resource: Resource, amount: u64) {
        if mutated(Mutant::LentBackEarly) {
            self.pay_back(resource, amount);
            self.held[resource.at()].fetch_sub(amount, Ordering::AcqRel);
            return;
        }
        let before = self.held[resource.at()].fetch_sub(amount, Ordering::AcqRel);
        let less = self.beyond(resource, before) - self.beyond(resource, before - amount);
        self.pay_back(resource, less);
    }

    /// Takes so much of what is lent, for this program. The program counts itself in first, so two
    /// of its connections can refuse each other, and never pass both where one fits.
    fn borrow(&self, resource: Resource, amount: u64) -> bool {
        let own = &self.program.lent[resource.at()];
        let lent = &self.user.lent[resource.at()];
        let most = self.user.most_lent(resource);
        let program = own.fetch_add(amount, Ordering::Relaxed).saturating_add(amount);
        let mut before = lent.load(Ordering::Relaxed);
        loop {
            let after = before.saturating_add(amount);
            // No more than is left then; of an odd number the half that is one more.
            let fits = after <= most && program <= (most - after).saturating_add(1);
            if !fits {
                own.fetch_sub(amount, Ordering::Relaxed);
                return false;
            }
            if mutated(Mutant::LentNotCompared) {
                lent.store(after, Ordering::Release);
                return true;
            }
            // Acquires what was released by who gave back: he has it no more.
            match lent.compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => before = now,
            }
        }
    }

    fn pay_back(&self, resource: Resource, amount: u64) {
        if amount != 0 {
            self.user.lent[resource.at()].fetch_sub(amount, Ordering::AcqRel);
            self.program.lent[resource.at()].fetch_sub(amount, Ordering::Relaxed);
        }
    }

    #[cold]
    fn refused(&self, resource: Resource, asked: u64) -> LimitExceeded {
        let (at, user) = (resource.at(), &self.user);
        if cfg!(bus_loom) {
            // Loom 0.7 fails an assertion of its own on loads of counts that others change with
            // relaxed operations; what is said of a refusal decides nothing.
            return LimitExceeded::new(resource.limit(), user.limits.get(resource));
        }
        user.refused[at].fetch_add(1, Ordering::Relaxed);
        let (most_pid, most) = user.greediest(resource);
        let holders = Holders {
            uid: user.uid,
            asked,
            connection: self.held[at].load(Ordering::Relaxed),
            program: self.program.lent[at].load(Ordering::Relaxed),
            user: user.lent[at].load(Ordering::Relaxed),
            lent: user.most_lent(resource),
            most_pid,
            most,
        };
        let (limit, value) = (resource.limit(), user.limits.get(resource));
        LimitExceeded { limit, value, holders: Some(Box::new(holders)) }
    }
}

impl Drop for Connection {
    /// Nothing is charged to it any more: each charge has it.
    fn drop(&mut self) {
        let mut members = self.user.members.lock();
        members.connections.remove(&self.number);
        // Others come to a program only through the table, so nobody else has it or can get it.
        if Arc::strong_count(&self.program) == 1 {
            members.programs.remove(&self.program.process);
        }
    }
}

impl Account {
    /// Takes so much for as long as the [`Charge`] lives. Does not block.
    ///
    /// # Errors
    ///
    /// The user's limit, with who holds what. Nothing has changed then.
    pub fn charge(&self, resource: Resource, amount: u64) -> Result<Charge, LimitExceeded> {
        let mut charge = self.nothing(resource);
        charge.set(amount)?;
        Ok(charge)
    }

    /// A charge of nothing yet, to be [set](Charge::set) later.
    pub fn nothing(&self, resource: Resource) -> Charge {
        Charge { connection: Arc::clone(&self.connection), resource, amount: 0 }
    }

    /// Whose it is.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.connection.user.uid
    }

    /// Which process it belongs to.
    #[must_use]
    pub fn process(&self) -> Process {
        self.connection.program.process
    }

    /// The number of its connection.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.connection.number
    }

    /// The limits of its user.
    #[must_use]
    pub fn limits(&self) -> Amounts {
        self.connection.user.limits
    }

    /// What its connection holds now.
    #[must_use]
    pub fn held(&self) -> Amounts {
        read(&self.connection.held)
    }

    /// What its user's connections hold now. Does not block.
    #[must_use]
    pub fn usage(&self) -> UserUsage {
        self.connection.user.usage()
    }
}

impl Charge {
    /// How much it is.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// Makes it more or less. Less is never refused.
    ///
    /// # Errors
    ///
    /// As [`Account::charge`]; it is what it was then.
    pub fn set(&mut self, amount: u64) -> Result<(), LimitExceeded> {
        if amount > self.amount {
            self.connection.take(self.resource, amount - self.amount)?;
            self.amount = amount;
        } else {
            self.lower(amount);
        }
        Ok(())
    }

    /// Makes it less, if it is more.
    pub fn lower(&mut self, amount: u64) {
        if amount < self.amount {
            let less = self.amount - amount;
            self.amount = amount;
            self.connection.give(self.resource, less);
        }
    }

    /// Takes over another charge of the same account and resource.
    ///
    /// # Panics
    ///
    /// It is another one's, or of something else.
    pub fn absorb(&mut self, mut other: Self) {
        let same = Arc::ptr_eq(&self.connection, &other.connection);
        assert!(same && self.resource == other.resource, "charges of different things");
        self.amount += std::mem::take(&mut other.amount);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.lower(0);
    }
}

fn zeros() -> [AtomicU64; RESOURCES] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

/// Exact for none at an instant while others change them.
fn read(counts: &[AtomicU64; RESOURCES]) -> Amounts {
    let mut amounts = Amounts::default();
    for resource in Resource::ALL {
        amounts.set(resource, counts[resource.at()].load(Ordering::Relaxed));
    }
    amounts
}
