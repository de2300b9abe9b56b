//! An I/O thread: one epoll instance, and the connections that it alone serves.
//!
//! A turn is: wait; read each connection that has something, once; take the inbox; flush each
//! connection that was touched. So what one turn commits for this thread's own connections is
//! written in the same turn, coalesced, and the others' threads are rung through their inboxes.
//!
//! Epoll is level-triggered, but for the bells of rings. A connection that has more than one read holds is simply reported
//! again, after all others had their turn, so no list of half-drained sockets has to be kept and
//! fairness needs no argument; and a short read needs no second one to meet EAGAIN. `EPOLLOUT` is
//! asked for only while a socket is full.
//!
//! Invariant: the thread sleeps without a time limit unless a send of its own connections waits, a
//! request is unanswered, a payload is lent, memory is to be given back, a message of an ingress is unfinished, a connection lingers, or output or
//! accepting was put off. An idle broker has no wake-ups. Of a request's deadline at least the thread
//! that committed it knows when it goes to sleep.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bus_core::courtesy::Courtesy;
use bus_core::{Credentials, Eviction, EvictionCause, Table};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::acceptor::{Accepted, Acceptor};
use crate::bells::Bells;
use crate::broker::{Newcomer, RunError, Shared};
use crate::connection::{Connection, End, Flushed, Workspace};
use crate::door::Door;
use crate::inbox::{Inbox, Shelf, Token};
use crate::ingress::IngressListener;
use crate::log_limit::LogEvent;
use crate::orphans::Orphans;
use crate::relief::{self, Relief};
use crate::rings::{Rings, Stage};
use crate::slice::Slice;

/// One thread's part of a broker, before and while it runs.
#[derive(Debug)]
pub(crate) struct IoThread {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    epoll: OwnedFd,
    acceptor: Acceptor,
    accept_again: Option<Instant>,
    connections: Table<Connection>,
    generation: u32,
    workspace: Workspace,
    /// Connections to be flushed in this turn.
    dirty: Vec<Token>,
    /// Connections that have said goodbye, and until when they may take to hear it.
    lingering: VecDeque<(Instant, Token)>,
    /// Connections whose output was put off, and until when.
    put_off: Vec<Token>,
    put_off_until: Option<Instant>,
    /// Connections whose rings are looked at in each turn; those of the others are armed.
    hot: Vec<Token>,
    /// Those that were hot when the thread went to sleep and had something before. Whoever of them wakes it,
    /// the others need not ring.
    resting: Vec<Token>,
    /// When it has asked epoll.
    epoll_asked: Instant,
    /// Connections whose clients are to be rung.
    bells: Bells,
    /// Connections whose bells are not listened to, because they ring for nothing, and until when.
    unheeded: VecDeque<(Instant, Token)>,
    /// When to look which rings are idle.
    rings_look: Option<Instant>,
    /// Connections with an unfinished message that may become late, each once, and when to look.
    timed: BTreeSet<(Instant, u64)>,
    relief: Relief,
    orphans: Orphans,
    stopping: bool,
}

/// What a thread finds that does not sleep yet.
#[derive(Clone, Copy, Debug)]
struct Awake {
    /// When it has found something, if it knows.
    since: Option<Instant>,
    /// There is something in a ring, or epoll has told of something.
    has_input: bool,
}

impl IoThread {
    pub(crate) fn new(
        shared: Arc<Shared>,
        inbox: Arc<Inbox>,
        doors: Vec<Door>,
        ingresses: Vec<IngressListener>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*inbox, EventData::new_u64(BELL), EventFlags::IN)?;
        let acceptor = Acceptor::new(doors, ingresses);
        for socket in acceptor.sockets() {
            let data = EventData::new_u64(LISTENERS);
            epoll::add(&epoll, socket, data, EventFlags::IN)?;
        }
        Ok(Self {
            shared,
            inbox,
            epoll,
            acceptor,
            accept_again: None,
            connections: Table::new(),
            generation: 0,
            workspace: Workspace::new(),
            dirty: Vec::new(),
            lingering: VecDeque::new(),
            put_off: Vec::new(),
            put_off_until: None,
            hot: Vec::new(),
            resting: Vec::new(),
            epoll_asked: Instant::now(),
            bells: Bells::default(),
            unheeded: VecDeque::new(),
            rings_look: None,
            timed: BTreeSet::new(),
            relief: Relief::new(),
            orphans: Orphans::default(),
            stopping: false,
        })
    }

    /// Serves until the broker is stopped. Whatever ends it ends the others as well.
    pub(crate) fn run(mut self) -> Result<(), RunError> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS_A_TURN);
        let mut shelf = Shelf::default();
        let mut courtesy = Courtesy::default();
        let mut slice = Slice::of_this_thread();
        let mut turn_began = Instant::now();
        let mut looked = turn_began;
        while !(self.stopping && self.connections.is_empty()) {
            events.clear();
            let mut awake = Awake { since: None, has_input: self.has_ring_input() };
            if !awake.has_input
                && self.dirty.is_empty()
                && !self.inbox.has_something()
                && courtesy.pays()
            {
                awake = self.yields(&mut courtesy, &mut slice, &mut events);
            }
            // What there is beside input lies far apart in memory, so it is not looked at in each turn.
            let mut timeout = Some(NO_TIME);
            let looks = !awake.has_input || turn_began.duration_since(looked) >= TICK;
            if looks {
                looked = turn_began;
                let most = self.sleep_at_most().map(timespec);
                if !awake.has_input && (most == Some(NO_TIME) || self.arm_rings()) {
                    timeout = most;
                }
            }
            let asks_epoll =
                events.is_empty() && !self.passes_epoll_over(awake.since.unwrap_or(turn_began));
            let waited = match asks_epoll {
                true => epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()),
                false => Ok(events.len()),
            };
            match waited {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    let action = "wait for events";
                    let source = error.into();
                    return Err(RunError::System { action, source });
                }
            }
            if looks {
                self.inbox.wake_up();
            }
            self.warm_up();
            self.tick();
            self.shared.payloads.look();
            turn_began = awake.since.unwrap_or_else(Instant::now);
            if asks_epoll {
                self.epoll_asked = turn_began;
            }
            loop {
                for event in events.drain(..) {
                    self.handle(event.data.u64(), event.flags);
                }
                self.read_rings();
                shelf = self.take_inbox(shelf);
                if !self.gathers(turn_began) {
                    break;
                }
                if self.has_ring_input() {
                    continue;
                }
                match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&NO_TIME)) {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            self.hurry_put_off(turn_began);
            self.end_late(turn_began);
            self.heed_again(turn_began);
            self.end_orphans(turn_began);
            self.flush();
            self.ring_bells();
            self.end_idle_rings(turn_began);
            self.end_lingering();
            self.accept_again();
        }
        Ok(())
    }

    /// Lets others run for a while before the thread goes to sleep, and says what that has brought. What
    /// comes by a socket is only seen at the end, and is left in `events`.
    fn yields(&self, courtesy: &mut Courtesy, slice: &mut Slice, events: &mut Vec<Event>) -> Awake {
        let began = Instant::now();
        let yields = if self.hot.is_empty() { 1 } else { YIELDS };
        let mut took = Duration::ZERO;
        for in_vain in 0..yields {
            thread::yield_now();
            let found = self.has_ring_input();
            took = began.elapsed();
            if found {
                courtesy.note(true, took);
                slice.note(in_vain);
                return Awake { since: Some(began + took), has_input: true };
            }
            if Courtesy::is_long(took) {
                break;
            }
        }
        // An error will come again when it sleeps.
        let some = epoll::wait(&self.epoll, spare_capacity(events), Some(&NO_TIME));
        let has_input = some.is_ok_and(|count| count > 0);
        courtesy.note(has_input, took);
        Awake { since: None, has_input }
    }

    /// Whether to look for more input before the output of this turn is written. A write to each of
    /// many recipients takes so long that their senders have often sent more by its end; what is
    /// taken in first goes out with the same writes, and the recipients wake up once. It ends when
    /// there is no input, and after about the time that the writes take.
    fn gathers(&self, turn_began: Instant) -> bool {
        let writes = u32::try_from(self.dirty.len()).unwrap_or(u32::MAX);
        writes >= GATHER_FROM
            && turn_began.elapsed() < GATHER_MOST.min(WRITE_TAKES.saturating_mul(writes))
    }

    /// Writes out what was put off, once its time has come.
    fn hurry_put_off(&mut self, now: Instant) {
        if self.put_off_until.is_none_or(|until| until > now) {
            return;
        }
        self.put_off_until = None;
        for token in std::mem::take(&mut self.put_off) {
            if let Some(connection) = find(&mut self.connections, token) {
                connection.is_put_off = false;
                connection.hurry();
                mark_dirty(connection, &mut self.dirty);
            }
        }
    }

    /// Ends the streams whose unfinished messages are late.
    fn end_late(&mut self, now: Instant) {
        while let Some((at, number)) = self.timed.first().copied()
            && at <= now
        {
            self.timed.remove(&(at, number));
            let token = Token::from_u64(number);
            if let Some(connection) = find(&mut self.connections, token) {
                // If it is not late, the flush puts it back with its time.
                connection.is_timed = false;
                let result = connection.expire();
                self.conclude(token, result);
            }
        }
    }

    /// Ends connections that only what waits for them keeps open.
    fn end_orphans(&mut self, now: Instant) {
        if !self.orphans.is_due(now) {
            return;
        }
        let mut orphans = Vec::new();
        for (_, connection) in self.connections.iter_mut() {
            if connection.is_orphan() {
                orphans.push(connection.token());
            }
        }
        for token in orphans {
            self.conclude(token, Err(End::Orphan));
        }
        if self.shared.carries_descriptors() {
            self.orphans.expect(now, self.shared.bus.limits().stall);
        }
    }

    /// How long the thread may sleep; `None` for as long as nothing happens.
    fn sleep_at_most(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let relief = self.mind_memory(now);
        // May ring this thread itself, so before it looks whether anybody did.
        let services = self.shared.services.expire(now);
        let helper = self.shared.helper.get();
        let looks = helper.and_then(|helper| helper.expire(now, &self.shared));
        if !self.dirty.is_empty() || !self.inbox.fall_asleep() {
            return Some(Duration::ZERO);
        }
        let until = |at: Instant| at.saturating_duration_since(now);
        let lingering = self.lingering.front().map(|(at, _)| until(*at));
        let waiting = (self.workspace.waiting_sends > 0).then_some(TICK);
        let accept = self.accept_again.map(until);
        let put_off = self.put_off_until.map(until);
        let rings = self.rings_look.map(until);
        let unheeded = self.unheeded.front().map(|(at, _)| until(*at));
        let orphans = self.orphans.next_look().map(until);
        // The bus counts one second a tick at most.
        let deadline = self.shared.bus.next_deadline().map(|left| left.min(LONGEST_TICK));
        let timed = self.timed.first().map(|(at, _)| until(*at));
        let (services, looks) = (services.map(until), looks.map(until));
        let payloads = self.shared.payloads.next_look();
        let relief = relief.map(until);
        let ours = [lingering, waiting, accept, put_off, rings, unheeded, timed, relief, orphans];
        let shared = [payloads, deadline, services, looks];
        ours.into_iter().chain(shared).flatten().min()
    }

    /// Gives back memory that what has happened may have left behind, and says when to do it next.
    fn mind_memory(&mut self, now: Instant) -> Option<Instant> {
        if !self.shared.owns_process() {
            return None;
        }
        let bytes = self.inbox.counters.bytes_read.get();
        if self.relief.is_due(bytes, now) {
            self.connections.shrink();
            self.workspace.shrink();
            self.shared.roster.shrink();
            self.shared.bus.shrink();
            relief::give_back();
            self.inbox.counters.reliefs.add(1);
        }
        self.relief.next_look(bytes, now)
    }

    fn tick(&self) {
        // A clock before 1970 is no reason to stop.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        for evicted in self.shared.bus.tick(now.unwrap_or_default()) {
            let limit = &self.shared.log_limit;
            limit.log(LogEvent::Evicted, evicted.credentials, |suppressed| {
                log_eviction(&evicted, &self.shared, suppressed);
            });
        }
    }

    fn handle(&mut self, data: u64, flags: EventFlags) {
        match data {
            BELL => self.inbox.silence(),
            LISTENERS => self.accept(),
            data if data & RING_BELL != 0 => self.heed_bell(Token::from_u64(data & !RING_BELL)),
            data => self.handle_connection(Token::from_u64(data), flags),
        }
    }

    fn handle_connection(&mut self, token: Token, flags: EventFlags) {
        let Some(connection) = find(&mut self.connections, token) else {
            return;
        };
        let mut result = Ok(());
        if flags.contains(EventFlags::OUT) {
            connection.unblock();
        }
        if connection.reads_ring() {
            if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
                return self.hung_up(token);
            }
            if !connection.reads_socket() {
                // It is to be marked in the ring where this belongs; until then it stays there.
                mark_dirty(connection, &mut self.dirty);
                return;
            }
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            result = if connection.wants_input() {
                connection.read(&self.shared, &self.inbox, &mut self.workspace)
            } else if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
                if connection.outlives_its_peer() {
                    // Else it would be reported in each turn. What it waits for brings it back.
                    let _ = epoll::delete(&self.epoll, &*connection);
                    return;
                }
                Err(End::Gone)
            } else {
                Ok(())
            };
        }
        self.conclude(token, result);
    }

    /// Marks a connection for the flush, and ends it if it is to end.
    fn conclude(&mut self, token: Token, result: Result<(), End>) {
        let Some(connection) = find(&mut self.connections, token) else {
            return;
        };
        if let Err(end) = result {
            if connection.is_ending() {
                self.remove(token);
                return;
            }
            connection.end(&end, &self.shared, &self.inbox, &mut self.workspace);
            self.lingering.push_back((Instant::now() + LINGER, token));
        }
        mark_dirty(connection, &mut self.dirty);
    }

    fn take_inbox(&mut self, mut shelf: Shelf) -> Shelf {
        shelf = self.inbox.take(shelf);
        for newcomer in shelf.newcomers.drain(..) {
            self.welcome(newcomer);
        }
        for signal in shelf.signals.drain(..) {
            let (token, part) = signal.acknowledge();
            if let Some(connection) = find(&mut self.connections, token) {
                connection.ready(part, &self.shared, &self.inbox, &mut self.workspace);
                mark_dirty(connection, &mut self.dirty);
            }
        }
        if std::mem::take(&mut shelf.orphans) {
            self.orphans.expect(Instant::now(), self.shared.bus.limits().stall);
        }
        if std::mem::take(&mut shelf.review) {
            self.review();
        }
        if std::mem::take(&mut shelf.stop) {
            self.stop();
        }
        shelf
    }

    /// Ends the connections that have what the rules no longer allow.
    fn review(&mut self) {
        let shared = Arc::clone(&self.shared);
        let reviewed = self.connections.iter_mut().filter_map(|(_, connection)| {
            let end = connection.review(&shared).err()?;
            Some((connection.token(), end))
        });
        for (token, end) in reviewed.collect::<Vec<_>>() {
            self.conclude(token, Err(end));
        }
    }

    fn welcome(&mut self, newcomer: Newcomer) {
        if self.stopping {
            return;
        }
        self.generation = self.generation.wrapping_add(1);
        let token = Token {
            index: u32::try_from(self.connections.vacant_key())
                .expect("connections are limited to 2^20"),
            generation: self.generation,
        };
        // Of what no clock can count, far enough away.
        let now = Instant::now();
        let greeting_until =
            now.checked_add(self.shared.greeting).unwrap_or(now + LONGEST_GREETING);
        let connection = Connection::new(&self.shared, newcomer, token, greeting_until);
        let place = self.connections.insert(connection);
        let connection = &mut self.connections[place];
        // Who connects greets at once, and mostly has by now. Epoll hears of it, and its greeting gets
        // a deadline if it has not come, with the flush: behind the answer, which is waited for.
        let result = connection.read(&self.shared, &self.inbox, &mut self.workspace);
        self.conclude(token, result);
    }

    fn flush(&mut self) {
        let mut again = Vec::new();
        for token in std::mem::take(&mut self.dirty) {
            let Some(connection) = find(&mut self.connections, token) else {
                continue;
            };
            connection.is_dirty = false;
            let flushed = connection.flush(&self.shared, &self.inbox, &mut self.workspace);
            if !connection.is_timed
                && let Some(at) = connection.deadline()
            {
                connection.is_timed = true;
                self.timed.insert((at, token.as_u64()));
            }
            let has_rings = connection.rings().is_some();
            match flushed {
                Ok(Flushed::Idle) => self.update_interest(token),
                Ok(Flushed::More) => {
                    self.update_interest(token);
                    again.push(token);
                }
                Ok(Flushed::PutOff) => {
                    if !std::mem::replace(&mut connection.is_put_off, true) {
                        self.put_off.push(token);
                    }
                    self.put_off_until.get_or_insert_with(|| Instant::now() + TICK);
                    self.update_interest(token);
                }
                Ok(Flushed::Finished) => self.remove(token),
                Err(end) => self.conclude(token, Err(end)),
            }
            if has_rings {
                self.attend_rings(token);
            }
        }
        for token in again {
            if let Some(connection) = find(&mut self.connections, token) {
                mark_dirty(connection, &mut self.dirty);
            }
        }
    }

    fn update_interest(&mut self, token: Token) {
        let Some(connection) = find(&mut self.connections, token) else {
            return;
        };
        let Some(flags) = connection.new_interest() else {
            return;
        };
        let data = EventData::new_u64(token.as_u64());
        let watched = if connection.is_to_be_watched_again() {
            epoll::add(&self.epoll, &*connection, data, flags)
        } else {
            epoll::modify(&self.epoll, &*connection, data, flags)
        };
        if let Err(error) = watched {
            log_unwatched(connection, "socket", error, &self.shared);
            self.remove(token);
        }
    }

    // ---- Rings in shared memory

    /// Whether a ring that is looked at in each turn has something.
    fn has_ring_input(&self) -> bool {
        let has_input = |token: &Token| {
            let connection = self.connections.get(token.index as usize);
            connection.is_some_and(|one| one.token() == *token && one.has_ring_input())
        };
        self.hot.iter().any(has_input)
    }

    /// Whether this turn has its input from rings. Now and then it is epoll's turn all the same.
    fn passes_epoll_over(&self, now: Instant) -> bool {
        now.duration_since(self.epoll_asked) < EPOLL_WAITS && self.has_ring_input()
    }

    /// Reads each ring that has something, once.
    fn read_rings(&mut self) {
        for at in (0..self.hot.len()).rev() {
            let token = self.hot[at];
            let Some(connection) = find(&mut self.connections, token) else {
                self.hot.swap_remove(at);
                continue;
            };
            if connection.has_ring_input() {
                let result = connection.read(&self.shared, &self.inbox, &mut self.workspace);
                self.conclude(token, result);
            }
        }
    }

    /// Tells the clients of all rings that the thread sleeps. False if one of these has something.
    fn arm_rings(&mut self) -> bool {
        let (connections, resting) = (&mut self.connections, &mut self.resting);
        self.hot.retain(|token| {
            let Some(connection) = find(connections, *token) else {
                return false;
            };
            let stays = !connection.wants_input() || !connection.arm();
            connection.is_hot = stays;
            if !stays && connection.has_spoken() && resting.len() < MOST_RESTING {
                resting.push(*token);
            }
            stays
        });
        !self.has_ring_input()
    }

    /// Awake: looks again at the rings that it looked at before it slept.
    fn warm_up(&mut self) {
        for token in self.resting.drain(..) {
            if let Some(connection) = find(&mut self.connections, token) {
                warm(connection, &mut self.hot);
            }
        }
    }

    /// A client has rung: it has put something into its ring, or made room in ours.
    fn heed_bell(&mut self, token: Token) {
        let Some(connection) = find(&mut self.connections, token) else {
            return;
        };
        if !connection.heed_bell() {
            self.unheeded.push_back((Instant::now() + BELL_PAUSE, token));
            return self.watch_bell(token, EventFlags::empty());
        }
        mark_dirty(connection, &mut self.dirty);
        warm(connection, &mut self.hot);
    }

    /// Listens again to the bells of those who have rung for nothing, and looks what they have.
    fn heed_again(&mut self, now: Instant) {
        while let Some((at, token)) = self.unheeded.front().copied()
            && at <= now
        {
            self.unheeded.pop_front();
            self.watch_bell(token, BELL_FLAGS);
            if let Some(connection) = find(&mut self.connections, token) {
                connection.unblock();
                mark_dirty(connection, &mut self.dirty);
                warm(connection, &mut self.hot);
            }
        }
    }

    fn watch_bell(&mut self, token: Token, flags: EventFlags) {
        let Some(connection) = find(&mut self.connections, token) else {
            return;
        };
        let Some(rings) = connection.rings() else {
            return;
        };
        let data = EventData::new_u64(token.as_u64() | RING_BELL);
        // Who gave up his rings meanwhile, and has new ones, has them watched when they are opened.
        if rings.is_watched
            && let Err(error) = epoll::modify(&self.epoll, rings.bell(), data, flags)
        {
            log_unwatched(connection, "bell", error, &self.shared);
            self.remove(token);
        }
    }

    /// The client is gone. What it has put into its ring before counts.
    fn hung_up(&mut self, token: Token) {
        let Some(connection) = find(&mut self.connections, token) else {
            return;
        };
        let mut result = Ok(());
        for _ in 0..READS_OF_THE_DEAD {
            if result.is_err() || !connection.has_ring_input() {
                break;
            }
            result = connection.read(&self.shared, &self.inbox, &mut self.workspace);
        }
        self.conclude(token, result.and(Err(End::Gone)));
    }

    /// Does what a flush has left to be done about a connection's rings.
    fn attend_rings(&mut self, token: Token) {
        let Some(connection) = find(&mut self.connections, token) else {
            return;
        };
        let Some(rings) = connection.rings_mut() else {
            return;
        };
        if rings.stage == Stage::Over {
            if let Some(rings) = connection.take_rings() {
                self.forget_bell(*rings);
            }
            return;
        }
        if !std::mem::replace(&mut rings.is_watched, true) {
            let data = EventData::new_u64(token.as_u64() | RING_BELL);
            if let Err(error) = epoll::add(&self.epoll, rings.bell(), data, BELL_FLAGS) {
                log_unwatched(connection, "bell", error, &self.shared);
                return self.remove(token);
            }
            self.rings_look.get_or_insert_with(|| Instant::now() + RINGS_IDLE);
        }
        let owes = rings.owes_bell();
        // From when they are opened until the first sleep: nobody has said yet that we sleep.
        if rings.has_turned_in() && !std::mem::replace(&mut rings.was_hot, true) {
            warm(connection, &mut self.hot);
        }
        if owes && !std::mem::replace(&mut connection.is_to_be_rung, true) {
            self.bells.push(token);
        }
    }

    /// Rings those clients that sleep beside their input. While there is more to read this is put off:
    /// what comes of it goes with the same waking, and waking each of many takes longer than all else.
    fn ring_bells(&mut self) {
        if self.bells.is_empty() {
            return;
        }
        let has_more = self.has_ring_input();
        for token in self.bells.take_due(Instant::now(), has_more) {
            if let Some(connection) = find(&mut self.connections, token) {
                connection.is_to_be_rung = false;
                if let Some(rings) = connection.rings_mut() {
                    rings.ring();
                }
            }
        }
    }

    /// Takes back the rings through which nothing has passed for a while.
    fn end_idle_rings(&mut self, now: Instant) {
        if self.rings_look.is_none_or(|at| at > now) {
            return;
        }
        let mut any = false;
        for (_, connection) in self.connections.iter_mut() {
            match connection.has_used_rings() {
                Some(true) => any = true,
                Some(false) if connection.end_rings() => {
                    mark_dirty(connection, &mut self.dirty);
                }
                _ => {}
            }
        }
        self.rings_look = any.then(|| now + RINGS_IDLE);
    }

    /// The client has the bell too, so closing it would not make epoll forget it.
    fn forget_bell(&self, rings: Rings) {
        if rings.is_watched {
            let _ = epoll::delete(&self.epoll, rings.bell());
        }
    }

    fn end_lingering(&mut self) {
        while let Some((until, token)) = self.lingering.front().copied() {
            let lives = find(&mut self.connections, token).is_some();
            if lives && until > Instant::now() {
                return;
            }
            self.lingering.pop_front();
            self.remove(token);
        }
    }

    fn remove(&mut self, token: Token) {
        if find(&mut self.connections, token).is_some()
            && let Some(mut connection) = self.connections.remove(token.index as usize)
        {
            if let Some(rings) = connection.take_rings() {
                self.forget_bell(*rings);
            }
            self.relief.closed(self.connections.is_loose());
            connection.end(&End::Gone, &self.shared, &self.inbox, &mut self.workspace);
            // Dropped here: the socket closes, and epoll forgets it.
            if self.accept_again.is_some() {
                self.accept_again = Some(Instant::now());
            }
        }
    }

    fn accept(&mut self) {
        if self.acceptor.accept(&self.shared, &self.inbox) == Accepted::TryLater {
            self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
            self.watch_listeners(EventFlags::empty());
        }
    }

    fn accept_again(&mut self) {
        if self.accept_again.is_some_and(|at| at <= Instant::now()) {
            self.accept_again = None;
            self.watch_listeners(EventFlags::IN);
        }
    }

    fn watch_listeners(&self, flags: EventFlags) {
        for socket in self.acceptor.sockets() {
            let data = EventData::new_u64(LISTENERS);
            if let Err(error) = epoll::modify(&self.epoll, socket, data, flags) {
                self.shared.log_limit.log_of_broker(LogEvent::Watch, |suppressed| {
                    tracing::error!(%error, suppressed, "a listening socket cannot be watched");
                });
            }
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.accept_again = None;
        self.acceptor.close();
        // First of all, so that nobody is told how the others go.
        for (_, connection) in self.connections.iter_mut() {
            connection.fill_last(&mut self.workspace);
        }
        let tokens = self.connections.iter().map(|(_, connection)| connection.token());
        for token in tokens.collect::<Vec<_>>() {
            self.conclude(token, Err(End::Shutdown));
        }
    }
}

impl Drop for IoThread {
    /// However the thread ends, the broker ends with it, and nobody waits at its inbox.
    fn drop(&mut self) {
        self.inbox.close();
        self.shared.stop();
    }
}

fn log_eviction(evicted: &Eviction, shared: &Shared, suppressed: u64) {
    let program = shared.roster.program(evicted.endpoint);
    let Credentials { uid, pid } = evicted.credentials;
    if evicted.cause == EvictionCause::WorkerStalled {
        tracing::warn!(
            endpoint = %evicted.endpoint,
            program,
            suppressed,
            uid,
            pid,
            name = %evicted.name,
            sequence = %evicted.sequence,
            stalled = ?evicted.stalled,
            queued_messages = evicted.queued_messages,
            "put out of a shared name: it did not read while senders waited for a worker"
        );
        return;
    }
    tracing::warn!(
        endpoint = %evicted.endpoint,
        program,
        suppressed,
        uid,
        pid,
        group = %evicted.name,
        sequence = %evicted.sequence,
        cause = ?evicted.cause,
        stalled = ?evicted.stalled,
        queued_messages = evicted.queued_messages,
        back_off = ?evicted.back_off,
        "evicted: it did not read while senders waited for it"
    );
}

/// The system is out of what watching takes; who is closed for that is named.
fn log_unwatched(connection: &Connection, what: &'static str, error: Errno, shared: &Shared) {
    let client = connection.client();
    shared.log_limit.log(LogEvent::Watch, client.credentials(), |suppressed| {
        let _entered = client.span().entered();
        let program = client.program();
        tracing::error!(%error, what, program, suppressed, "cannot be watched, and its connection is closed");
    });
}

fn find(connections: &mut Table<Connection>, token: Token) -> Option<&mut Connection> {
    let connection = connections.get_mut(token.index as usize)?;
    (connection.token() == token).then_some(connection)
}

fn warm(connection: &mut Connection, hot: &mut Vec<Token>) {
    if !std::mem::replace(&mut connection.is_hot, true) {
        hot.push(connection.token());
        if let Some(rings) = connection.rings() {
            rings.disarm();
        }
    }
}

fn mark_dirty(connection: &mut Connection, dirty: &mut Vec<Token>) {
    if !std::mem::replace(&mut connection.is_dirty, true) {
        dirty.push(connection.token());
    }
}

fn timespec(duration: Duration) -> Timespec {
    // Rounded up: waking a moment too early would only mean to sleep once more.
    let millis = duration.as_nanos().div_ceil(1_000_000);
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    Timespec { tv_sec: millis / 1_000, tv_nsec: (millis % 1_000) * 1_000_000 }
}

/// Epoll's word for the inbox's bell. No token has it: connections are limited to 2^20.
const BELL: u64 = u64::MAX;
/// Epoll's word for all listening sockets.
const LISTENERS: u64 = u64::MAX - 1;
/// With a token: epoll's word for the bell of its rings. Indices are limited to 2^20.
const RING_BELL: u64 = 1 << 63;
/// Each ring of a bell once: then its count need not be taken back.
const BELL_FLAGS: EventFlags = EventFlags::IN.union(EventFlags::ET);
/// Yields before a sleep, where rings are looked at meanwhile.
const YIELDS: u32 = 16;
/// How long turns may have all of their input from rings: some turns with much to do, many with one message.
const EPOLL_WAITS: Duration = Duration::from_micros(100);
/// Rings that are looked at again after a sleep without having rung.
const MOST_RESTING: usize = 16;
/// Reads that empty the ring of a client that is gone.
const READS_OF_THE_DEAD: usize = 8;

/// How long a bell is not listened to that was rung for nothing.
const BELL_PAUSE: Duration = Duration::from_millis(10);
/// How long rings may be idle.
const RINGS_IDLE: Duration = Duration::from_secs(5);
/// Events taken at once.
const EVENTS_A_TURN: usize = 256;
/// The longest that a greeting may take.
const LONGEST_GREETING: Duration = Duration::from_secs(24 * 3600);
/// No time at all.
const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// Connections to be written to from which it pays to look for more input first.
const GATHER_FROM: u32 = 4;
/// What a write takes that wakes its reader, measured: about 4 microseconds.
const WRITE_TAKES: Duration = Duration::from_micros(4);
/// The longest that a message waits for others to be written with.
const GATHER_MOST: Duration = Duration::from_micros(250);
/// How often the bus is told the time while sends wait; how long output may be put off; how often a thread that
/// always has input looks what else is to be done.
const TICK: Duration = Duration::from_millis(100);
/// How long a thread sleeps at most while requests are unanswered.
const LONGEST_TICK: Duration = Duration::from_secs(1);
/// How long a connection that ends may take to hear why.
const LINGER: Duration = Duration::from_secs(1);
/// How long accepting rests when there is no descriptor even for a refusal.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
