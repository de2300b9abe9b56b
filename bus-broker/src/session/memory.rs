//! What one connection lends and what it is given that lies beside its stream.
//!
//! Invariants:
//! - A MESSAGE names only memory that the client was given before, in the same stream.
//! - Each payload that lies apart has a hold until the client releases it or is gone, and holds are
//!   bounded; past that a payload comes with its message, and is the client's own.
//! - Who alone keeps a segment is charged the whole of it for as long as that is so. If that is more than
//!   he may have, payloads come with their messages until it is not.
//! - Each SEND whose payload lies apart is completed once, committed or not: what ends the draft ends the
//!   loan.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::task::Waker;

use ahash::HashMap;
use bus_core::wire::{
    BrokerFrame, Failure, FailureCode, Lent, LentFrom, MemoryKind, Placed, PlacedIn, Request,
    Response,
};
use bus_core::{
    Account, Audience, Batch, Charge, CompletionQueue, Destination, Message, Payload,
    PayloadApart as _, Resource,
};
use bytes::BytesMut;

use super::lazy_memory::{Promise, Skills};
use super::{failure, say};
use crate::apart::{
    Arena, ArenaSegment, LentPayload, Loan, LoanCharge, Moved, Piece, Pool, Reader, Source,
};
use crate::broker::Shared;
use crate::inbox::{Part, Signal};
use crate::output::{Carried, Output};

/// The memory of one connection.
#[derive(Debug)]
pub(super) struct Memory {
    shared: Arc<Shared>,
    uid: u32,
    account: Account,
    skills: Skills,
    /// The last number that was given to a memory, and to a hold.
    numbers: (u32, u32),
    known: HashMap<Key, Known>,
    holds: HashMap<u32, Held>,
    held_bytes: u64,
    /// Copied in this turn, and memory that was made for that.
    copied_bytes: u64,
    /// It keeps more than it may be charged for.
    keeps_too_much: bool,
    private: Option<Arc<Arena>>,
    pools: HashMap<u32, Arc<Pool>>,
    completions: Arc<CompletionQueue>,
    completed: Waker,
    moved: Arc<Moved>,
    ended: Waker,
}

/// Which memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Arena(u64),
    Pool(usize),
}

/// Memory that the client was given.
#[derive(Debug)]
struct Known {
    id: u32,
    life: Life,
    /// Payloads there that the client has not released.
    holds: u32,
    /// For the whole of it, while only this client keeps it.
    charge: Option<Charge>,
}

#[derive(Debug)]
enum Life {
    Arena(Weak<ArenaSegment>),
    Pool(Weak<Pool>),
}

/// What the client has been given and has not released.
#[derive(Debug)]
struct Held {
    bytes: u64,
    what: HeldIn,
}

#[derive(Debug)]
enum HeldIn {
    Piece(Arc<Piece>),
    /// Where the sender lent it, for as long as that lasts.
    Loan {
        payload: Payload,
        /// It ends when nobody has it.
        loan: Arc<Loan>,
    },
    /// It has been given anew.
    Moved,
}

/// How a message's payload goes to the client.
#[derive(Debug)]
pub(super) enum Way {
    /// With the message.
    Inline,
    /// Where this says.
    Apart(Placed),
    /// Where this says, and the file that it is comes with the message.
    File(Placed, Arc<[OwnedFd]>),
    /// Once the client has taken the descriptors that are under way.
    Waits,
}

/// Who may be given the copy that others are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Company {
    /// Everybody to whom the message went.
    All,
    /// Nobody: it is a copy for a monitor, or was sent before this endpoint joined.
    Alone,
}

/// Descriptors under way.
#[derive(Debug)]
pub(super) struct Under<'a> {
    /// Some are, and have not been taken.
    pub(super) way: &'a mut bool,
    pub(super) output: &'a mut Output,
}

impl Memory {
    pub(super) fn new(promise: Promise) -> Self {
        let Promise { shared, inbox, account, token, uid, skills } = promise;
        let waker = |part| Signal::waker(&inbox, token, part);
        let ended = waker(Part::Memory);
        Self {
            shared,
            uid,
            account,
            skills,
            numbers: (0, 0),
            known: HashMap::default(),
            holds: HashMap::default(),
            held_bytes: 0,
            copied_bytes: 0,
            keeps_too_much: false,
            private: None,
            pools: HashMap::default(),
            completions: Arc::new(CompletionQueue::new()),
            completed: waker(Part::Completions),
            moved: Arc::new(Moved::new(ended.clone())),
            ended,
        }
    }

    /// Whether it is asked about in this request.
    pub(super) fn is_asked(request: &Request) -> bool {
        matches!(
            request,
            Request::CreatePool { .. } | Request::SealPool { .. } | Request::DropPool { .. }
        )
    }

    // ---- Lending

    /// Makes the payload of a SEND of what it refers to.
    pub(super) fn lend(
        &mut self,
        lent: &Lent,
        destination: Destination,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<Payload, Box<Failure>> {
        let result = self.borrow(lent, destination, descriptors);
        if result.is_err() {
            // It is as free as it was.
            self.completions.complete(lent.lending, false);
        }
        let payload = result?;
        self.shared.payloads.lent(&payload);
        Ok(Payload::apart(payload))
    }

    fn borrow(
        &self,
        lent: &Lent,
        destination: Destination,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<Arc<LentPayload>, Box<Failure>> {
        let file = match lent.from {
            LentFrom::File => Some(descriptors.pop().ok_or_else(|| bad("a file did not come"))?),
            LentFrom::Pool { .. } => None,
        };
        if !self.skills.lends {
            return Err(lends_nothing());
        }
        let limit = self.shared.bus.limits().payload_bytes;
        if lent.length > u64::from(limit) {
            let text = format!("the payload has {} bytes, and the limit is {limit}", lent.length);
            let failure = Failure::new(FailureCode::TooLarge, text);
            return Err(Box::new(failure.with_limit("payload_bytes", limit.into())));
        }
        if lent.length == 0 {
            return Err(bad("a payload of no bytes lies nowhere"));
        }
        let length = usize::try_from(lent.length).map_err(|_| bad("no such length"))?;
        let charge = |resource, amount| {
            self.account.charge(resource, amount).map_err(|limit| {
                Box::new(Failure { code: FailureCode::NoBuffers, ..failure::of_limit(&limit) })
            })
        };
        let (source, charge) = match (lent.from, file) {
            (LentFrom::Pool { pool, buffer }, _) => {
                let pool = self.pools.get(&pool).filter(|pool| pool.is_sealed());
                let pool = pool.ok_or_else(|| bad("no such pool, or it is not sealed"))?;
                if pool.group().is_some_and(|group| destination != Destination::Group(group)) {
                    return Err(bad("the pool is for another group, whose members may look there"));
                }
                let charge = LoanCharge {
                    _bytes: charge(Resource::PinnedBytes, lent.length)?,
                    _descriptor: None,
                };
                let generation = pool
                    .lend(buffer, lent.length)
                    .ok_or_else(|| bad("no such buffer, or it is lent, or too short"))?;
                (Source::Pool { pool: Arc::clone(pool), buffer, generation }, charge)
            }
            (LentFrom::File, Some(file)) => {
                bus_memory::check_unchangeable(std::os::fd::AsFd::as_fd(&file), lent.length)
                    .map_err(|error| bad(&format!("the file is not to be used: {error}")))?;
                let charge = LoanCharge {
                    _bytes: charge(Resource::PinnedBytes, lent.length)?,
                    _descriptor: Some(charge(Resource::Descriptors, 1)?),
                };
                (Source::File(file), charge)
            }
            (LentFrom::File, None) => return Err(bad("a file did not come")),
        };
        let completions = Arc::clone(&self.completions);
        let log_limit = Arc::clone(&self.shared.log_limit);
        let loan = Loan::new(source, length, charge, lent.lending, completions, log_limit);
        Ok(LentPayload::new(self.uid, loan))
    }

    /// Tells the client what is free again, while it reads.
    pub(super) fn say_completed(&mut self, output: &mut Output) {
        while output.has_room_for_answers()
            && let Some(range) = self.completions.read(&self.completed)
        {
            say(BrokerFrame::Completed(range), output);
        }
    }

    pub(super) fn call(
        &mut self,
        request: &Request,
        under: &mut Under<'_>,
    ) -> Option<Result<Response, Box<Failure>>> {
        let no_pool = || bad("no such pool");
        Some(match request {
            Request::CreatePool { buffers, bytes, group_id } => {
                self.create_pool(*buffers, *bytes, *group_id, under)
            }
            Request::SealPool { pool } => match self.pools.get(pool).map(|pool| pool.seal()) {
                None => Err(no_pool()),
                Some(Ok(())) => Ok(Response::PoolSealed),
                Some(Err(error)) => Err(bad(&format!("the pool is not to be used: {error}"))),
            },
            Request::DropPool { pool } => match self.pools.remove(pool) {
                None => Err(no_pool()),
                Some(_) => Ok(Response::PoolDropped),
            },
            _ => return None,
        })
    }

    fn create_pool(
        &mut self,
        buffers: u32,
        bytes: u64,
        group: Option<bus_core::GroupId>,
        under: &mut Under<'_>,
    ) -> Result<Response, Box<Failure>> {
        if !self.skills.lends {
            return Err(lends_nothing());
        }
        if *under.way {
            let text = "descriptors are under way to this client; take them first";
            return Err(Box::new(Failure::new(FailureCode::WouldBlock, text)));
        }
        let most = self.shared.bus.limits().payload_bytes;
        let each = usize::try_from(bytes).ok().filter(|_| (1..=most.into()).contains(&bytes));
        let each = each.filter(|_| (1..=MAX_BUFFERS).contains(&buffers));
        let each = each.ok_or_else(|| bad("no such pool can be: see the limits"))?;
        let all = buffers as usize * crate::apart::stride(each);
        let charge = self.account.charge(Resource::PinnedBytes, all as u64);
        let charge = charge.map_err(|limit| Box::new(failure::of_limit(&limit)))?;
        let pool = Pool::new(buffers, each, group, self.ended.clone(), charge);
        let pool = pool.map_err(|error| no_memory(&error))?;
        let id = self.next_memory();
        let length = pool.len() as u64;
        let [memory, _] = pool.files();
        let files =
            copies([memory]).ok_or_else(|| bad("the broker has no room for descriptors"))?;
        introduce(id, MemoryKind::Pool, length, files, under);
        self.pools.insert(id, pool);
        Ok(Response::Pool { pool: id })
    }

    // ---- Giving

    /// The connection has its turn.
    pub(super) fn begin_turn(&mut self) {
        self.copied_bytes = 0;
    }

    /// Whether so much was copied that others should have their turn. What was copied goes out, and its
    /// first readers read it while the next ones are copied.
    pub(super) fn has_copied_enough(&self) -> bool {
        self.copied_bytes >= COPIED_A_TURN
    }

    /// Decides how the payload of a message goes to this client.
    pub(super) fn way(
        &mut self,
        message: &Message,
        company: Company,
        under: &mut Under<'_>,
    ) -> Way {
        let Some(payload) = message.payload().as_apart::<LentPayload>() else {
            return Way::Inline;
        };
        let length = message.payload().len() as u64;
        if !self.skills.reads || self.is_full(length) || self.keeps_too_much {
            return Way::Inline;
        }
        let audience = message.audience().filter(|_| company == Company::All);
        let to_group = matches!(message.destination(), Destination::Group(_));
        if audience.is_none() && to_group && !message.payload().was_lent() {
            // It would be a copy for each of them.
            return Way::Inline;
        }
        if company == Company::All
            && let Some(loan) = payload.loan()
        {
            match &loan.source {
                Source::File(_) => {
                    let room = usize::from(bus_core::wire::MAX_DESCRIPTORS);
                    if message.descriptors().len() < room {
                        if *under.way {
                            return Way::Waits;
                        }
                        let own = message.descriptors().iter().map(AsFd::as_fd);
                        let Some(files) = copies(own.chain(loan.file())) else {
                            return Way::Inline;
                        };
                        let placed = self.hold_loan(message, &loan, PlacedIn::File, 0);
                        return Way::File(placed, files);
                    }
                }
                Source::Pool { pool, buffer, generation } => {
                    if let Some(audience) = audience
                        && self.skills.trusts
                        && message.credentials().uid == self.uid
                        && pool.may_be_shown_to(audience, &self.shared.bus)
                    {
                        let memory = match self.show_pool(pool, message, under) {
                            Ok(memory) => memory,
                            Err(way) => return way,
                        };
                        let hold = self.next_hold();
                        let reader = Reader { hold, moved: Arc::clone(&self.moved) };
                        if loan.let_in(reader) {
                            let generation = *generation;
                            let within = PlacedIn::Lent { memory, word: *buffer, generation };
                            let offset = pool.offset(*buffer) as u64;
                            return Way::Apart(self.hold_loan(message, &loan, within, offset));
                        }
                    }
                }
            }
        }
        self.place(payload, audience, !message.descriptors().is_empty(), under)
    }

    /// Decides how messages go to this client that took their places together.
    pub(super) fn way_of_batch(&mut self, batch: &Batch, under: &mut Under<'_>) -> Way {
        let payload = batch.payload().and_then(Payload::as_apart::<LentPayload>);
        let (Some(payload), Some(audience)) = (payload, batch.audience()) else {
            return Way::Inline;
        };
        if !self.skills.reads || self.keeps_too_much || self.is_full(payload.len() as u64) {
            return Way::Inline;
        }
        self.place(payload, Some(audience), false, under)
    }

    /// Whether it has no room for so many bytes more that lie apart.
    fn is_full(&self, length: u64) -> bool {
        self.holds.len() >= MAX_HOLDS || self.held_bytes + length > MAX_HELD_BYTES
    }

    /// Puts a payload into an arena: that of its audience, where it may be already, or the client's own.
    fn place(
        &mut self,
        payload: &LentPayload,
        audience: Option<Audience>,
        has_descriptors: bool,
        under: &mut Under<'_>,
    ) -> Way {
        let length = payload.len() as u64;
        let piece = match audience {
            Some(audience) => {
                payload.shared_piece(audience, || self.shared.payloads.arena(audience))
            }
            None => {
                let shared = &self.shared;
                let arena = self.private.get_or_insert_with(|| shared.payloads.private_arena());
                payload.private_piece(arena).map(|piece| (Arc::new(piece), true))
            }
        };
        let Some((piece, copied)) = piece else { return Way::Inline };
        if copied {
            self.copied_bytes += length + piece.made_bytes() as u64;
        }
        let memory = match self.show_arena(piece.segment(), has_descriptors, under) {
            Ok(memory) => memory,
            Err(way) => return way,
        };
        let hold = self.next_hold();
        let offset = piece.offset() as u64;
        self.held_bytes += length;
        self.enter(piece.segment());
        self.numbers.1 = hold;
        self.holds.insert(hold, Held { bytes: length, what: HeldIn::Piece(piece) });
        Way::Apart(Placed { hold, within: PlacedIn::Arena { memory }, offset, length })
    }

    fn hold_loan(
        &mut self,
        message: &Message,
        loan: &Arc<Loan>,
        within: PlacedIn,
        offset: u64,
    ) -> Placed {
        let length = message.payload().len() as u64;
        let hold = self.next_hold();
        let what = HeldIn::Loan { payload: message.payload().clone(), loan: Arc::clone(loan) };
        self.held_bytes += length;
        self.numbers.1 = hold;
        self.holds.insert(hold, Held { bytes: length, what });
        Placed { hold, within, offset, length }
    }

    /// How the client names a segment, which it is given if it has not got it; or how the message goes
    /// instead.
    fn show_arena(
        &mut self,
        segment: &Arc<ArenaSegment>,
        has_descriptors: bool,
        under: &mut Under<'_>,
    ) -> Result<u32, Way> {
        let key = Key::Arena(segment.number());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.id);
        }
        if *under.way {
            return Err(Way::Waits);
        }
        let files = copies([segment.memory().as_fd()]).ok_or(Way::Inline)?;
        let id = self.next_memory();
        segment.tell(self.ended.clone());
        let length = segment.memory().len() as u64;
        introduce(id, MemoryKind::Arena, length, files, under);
        let life = Life::Arena(Arc::downgrade(segment));
        self.known.insert(key, Known { id, life, holds: 0, charge: None });
        // Its own descriptors come after these.
        if has_descriptors { Err(Way::Waits) } else { Ok(id) }
    }

    fn show_pool(
        &mut self,
        pool: &Arc<Pool>,
        message: &Message,
        under: &mut Under<'_>,
    ) -> Result<u32, Way> {
        let key = Key::Pool(Arc::as_ptr(pool) as usize);
        match self.known.get(&key) {
            Some(Known { id, life: Life::Pool(known), .. }) if known.strong_count() > 0 => {
                return Ok(*id);
            }
            _ if *under.way => return Err(Way::Waits),
            _ => {}
        }
        let files = copies(pool.files()).ok_or(Way::Inline)?;
        let id = self.next_memory();
        pool.tell(self.ended.clone());
        let length = pool.len() as u64;
        introduce(id, MemoryKind::Lent, length, files, under);
        let life = Life::Pool(Arc::downgrade(pool));
        let known = Known { id, life, holds: 0, charge: None };
        if let Some(old) = self.known.insert(key, known) {
            say(BrokerFrame::Forget { id: old.id }, under.output);
        }
        if message.descriptors().is_empty() { Ok(id) } else { Err(Way::Waits) }
    }

    /// The client reads these no more. False if it never had one of them.
    pub(super) fn release(&mut self, holds: &[u32]) -> bool {
        holds.iter().all(|hold| match self.holds.remove(hold) {
            Some(held) => {
                self.held_bytes -= held.bytes;
                self.let_go(&held.what);
                true
            }
            None => false,
        })
    }

    /// The client has something more to read in this segment.
    fn enter(&mut self, segment: &ArenaSegment) {
        if let Some(known) = self.known.get_mut(&Key::Arena(segment.number())) {
            if known.holds == 0 {
                segment.enter();
            }
            known.holds += 1;
        }
    }

    fn let_go(&mut self, held: &HeldIn) {
        let HeldIn::Piece(piece) = held else { return };
        let segment = piece.segment();
        let Some(known) = self.known.get_mut(&Key::Arena(segment.number())) else { return };
        known.holds -= 1;
        if known.holds == 0 {
            segment.leave();
            if known.charge.take().is_some() || self.keeps_too_much {
                self.charge_kept();
            }
        }
    }

    /// Charges the client the segments that it alone keeps, and no others.
    fn charge_kept(&mut self) {
        self.keeps_too_much = false;
        for known in self.known.values_mut() {
            let Life::Arena(segment) = &known.life else { continue };
            let kept = segment.upgrade().filter(|it| known.holds > 0 && it.is_kept_by_one());
            match kept {
                None => known.charge = None,
                Some(_) if known.charge.is_some() => {}
                Some(segment) => {
                    let bytes = segment.memory().len() as u64;
                    match self.account.charge(Resource::PinnedBytes, bytes) {
                        Ok(charge) => known.charge = Some(charge),
                        Err(_) => self.keeps_too_much = true,
                    }
                }
            }
        }
    }

    /// The client cannot look where a payload lies: it is given the bytes. False if it has no such one.
    pub(super) fn fetch(&mut self, hold: u32, output: &mut Output) -> bool {
        let Some(held) = self.holds.get(&hold) else { return false };
        let bytes = match &held.what {
            HeldIn::Piece(piece) => piece.to_bytes(),
            HeldIn::Loan { payload, .. } => payload.as_bytes().clone(),
            // It is on its way.
            HeldIn::Moved => return true,
        };
        self.say_moved(hold, bytes, output);
        true
    }

    /// Something about this connection's memory has happened: memory has ended, or what was lent is not
    /// any more.
    pub(super) fn look(&mut self, output: &mut Output) {
        self.charge_kept();
        for (hold, bytes) in self.moved.take() {
            if self.holds.contains_key(&hold) {
                self.say_moved(hold, bytes, output);
            }
        }
        for (id, pool) in &self.pools {
            if pool.outdate(&self.shared.bus) {
                say(BrokerFrame::Forget { id: *id }, output);
            }
        }
        self.known.retain(|_, known| {
            let lives = match &known.life {
                Life::Arena(segment) => segment.strong_count() > 0,
                Life::Pool(pool) => pool.strong_count() > 0,
            };
            if !lives {
                say(BrokerFrame::Forget { id: known.id }, output);
            }
            lives
        });
    }

    /// The broker ends, and with it all loans: what the client reads where its sender can write is given
    /// to it.
    pub(super) fn move_lent(&mut self, output: &mut Output) {
        let lent = self.holds.iter().filter_map(|(hold, held)| match &held.what {
            HeldIn::Loan { payload, loan } if loan.file().is_none() => {
                Some((*hold, payload.as_bytes().clone()))
            }
            _ => None,
        });
        for (hold, bytes) in lent.collect::<Vec<_>>() {
            self.say_moved(hold, bytes, output);
        }
    }

    fn say_moved(&mut self, hold: u32, bytes: bytes::Bytes, output: &mut Output) {
        let Some(held) = self.holds.get_mut(&hold) else { return };
        let was = std::mem::replace(&mut held.what, HeldIn::Moved);
        self.let_go(&was);
        drop(was);
        let mut head = BytesMut::new();
        bus_core::wire::encode_moved_head(&mut head, hold, bytes.len());
        output.frames().extend_from_slice(&head);
        output.push_shared(bytes);
    }

    /// A number for a memory, which is known by no other one of this connection.
    fn next_memory(&mut self) -> u32 {
        let numbers = &mut self.numbers.0;
        loop {
            *numbers = numbers.wrapping_add(1);
            let is_taken = self.pools.contains_key(numbers)
                || self.known.values().any(|known| known.id == *numbers);
            if !is_taken {
                return *numbers;
            }
        }
    }

    /// The number of the hold that comes next. Who keeps one payload while 2^32 others come has none of them
    /// by the same number.
    fn next_hold(&self) -> u32 {
        next_free(self.numbers.1, &self.holds)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.completions.close();
        for held in std::mem::take(&mut self.holds).into_values() {
            self.let_go(&held.what);
        }
    }
}

/// Gives the client memory: a frame, and descriptors with it.
fn introduce(id: u32, kind: MemoryKind, length: u64, files: Arc<[OwnedFd]>, under: &mut Under<'_>) {
    let frame = |descriptors| {
        let mut bytes = BytesMut::new();
        let frame = BrokerFrame::Memory { id, kind, length, descriptors };
        frame.encode(&mut bytes).expect("it is short");
        bytes.freeze()
    };
    let count = u8::try_from(files.len()).expect("one or two");
    under.output.push_with_descriptors(frame(count), frame(0), Carried::Files(files));
    *under.way = true;
}

/// The number after `last` that nothing goes by.
fn next_free<T>(last: u32, taken: &HashMap<u32, T>) -> u32 {
    let mut number = last.wrapping_add(1);
    while taken.contains_key(&number) {
        number = number.wrapping_add(1);
    }
    number
}

/// Descriptors of these files that can be given away. None if this process has no room for them.
fn copies<'a>(files: impl IntoIterator<Item = BorrowedFd<'a>>) -> Option<Arc<[OwnedFd]>> {
    files.into_iter().map(|file| file.try_clone_to_owned().ok()).collect()
}

/// A client lends that has not said so with its greeting.
pub(super) fn lends_nothing() -> Box<Failure> {
    let text = "lending payloads was not switched on with the greeting";
    Box::new(Failure::new(FailureCode::NoBuffers, text))
}

fn bad(text: &str) -> Box<Failure> {
    Box::new(Failure::new(FailureCode::BadRequest, text))
}

fn no_memory(error: &std::io::Error) -> Box<Failure> {
    let text = format!("the system gives no memory: {error}");
    Box::new(Failure::new(FailureCode::LimitExceeded, text))
}

/// Buffers of one pool.
const MAX_BUFFERS: u32 = 4096;
/// Payloads that one connection may have and not release before further ones come with their messages.
const MAX_HOLDS: usize = 1024;
/// Bytes of these.
const MAX_HELD_BYTES: u64 = 64 << 20;
/// Bytes that are copied for one connection before others have their turn, and the payload that crosses.
const COPIED_A_TURN: u64 = 512 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_come_round_again_pass_over_those_in_use() {
        let held = [u32::MAX, 0, 1, 7].map(|number| (number, ())).into_iter().collect();
        assert_eq!(next_free(u32::MAX - 2, &held), u32::MAX - 1);
        assert_eq!(next_free(u32::MAX - 1, &held), 2);
        assert_eq!(next_free(5, &held), 6);
    }
}
