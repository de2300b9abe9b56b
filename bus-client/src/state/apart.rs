//! What of this connection's payloads is lent, and the memory that others' lie in.
//!
//! Invariants:
//! - A flagged send has a place in [`Completions`] from when it is accepted. It takes its number with its
//!   receipt, and is completed once: at once if its bytes were copied into the stream, else when the
//!   broker is done with what was lent, whichever of the two comes first.
//! - A buffer is free again when the broker has said so. When the broker is gone it can tell readers
//!   nothing more, so what they have mapped is not written again: its pool is over.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use bus_core::wire::{
    ClientFrame, Lent, LentFrom, MAX_RELEASED, MemoryKind, MessageView, Placed, PlacedIn, Request,
};
use bus_core::{CompletedRange, Completions};
use bus_memory::{Mapping, check_read_only, check_unchangeable};
use bytes::Bytes;

use super::{Purpose, State};
use crate::apart::{Buffer, Chores, Found, LentRegion, Place, PoolMemory, Region};
use crate::connection::Connection;
use crate::error::SendError;

/// Payloads apart, of one connection.
#[derive(Debug)]
pub(super) struct Apart {
    chores: Arc<Chores>,
    connection: Option<Weak<Connection>>,
    regions: HashMap<u32, Region>,
    /// This connection's pools.
    pools: HashMap<u32, Weak<PoolMemory>>,
    /// Payloads that the broker may give anew.
    movable: HashMap<u32, Weak<Found>>,
    /// None if this connection does not lend.
    lending: Option<Lending>,
}

#[derive(Debug)]
struct Lending {
    completions: Completions,
    /// Nobody reads completions: they are passed over.
    quiet: bool,
    next: u32,
    lent: HashMap<u32, LentSend>,
}

/// A send whose payload is lent.
#[derive(Debug)]
struct LentSend {
    /// The buffer, until the broker is done with it.
    buffer: Option<Buffer>,
    length: u64,
    number: Numbered,
    completed: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbered {
    /// Its receipt has not come.
    NotYet,
    Number(u32),
    /// It failed.
    Never,
}

/// How a flagged send travels.
#[derive(Debug, Default)]
pub(crate) enum Flagged {
    /// It is not flagged.
    #[default]
    No,
    /// In the stream, like any other.
    Inline,
    /// Lent: the payload is what refers to it.
    Lent(LentOut),
    /// It has left, as what the number says.
    Left(u32),
}

/// What is to be lent.
#[derive(Debug)]
pub(crate) enum LentOut {
    Buffer(Buffer, usize),
    File(OwnedFd, u64),
}

/// What is lent anew.
#[derive(Debug)]
pub(super) enum Again {
    /// A buffer, once the send leaves.
    Buffer(LentOut),
    /// The file that goes with the send, under a new number.
    Reference(u32, Bytes),
}

impl Apart {
    pub(super) fn new(lends: Option<bool>, limit: u32) -> Self {
        Self {
            chores: Arc::default(),
            connection: None,
            regions: HashMap::new(),
            pools: HashMap::new(),
            movable: HashMap::new(),
            lending: lends.map(|quiet| Lending {
                completions: Completions::new(limit.max(1)),
                quiet,
                next: 0,
                lent: HashMap::new(),
            }),
        }
    }
}

impl Lending {
    fn complete(&mut self, number: u32, copied: bool) {
        self.completions.complete(number, copied);
        if self.quiet {
            while self.completions.read().is_some() {}
        }
    }
}

impl State {
    /// What is to be told by and by, of a connection that lends.
    pub(crate) fn chores(&self) -> Option<Arc<Chores>> {
        self.apart.lending.is_some().then(|| Arc::clone(&self.apart.chores))
    }

    /// Whether these are told to the broker of now.
    pub(crate) fn is_current(&self, chores: &Arc<Chores>) -> bool {
        Arc::ptr_eq(chores, &self.apart.chores)
    }

    /// A pool was made. If it came from a broker that is gone by now, it is over.
    pub(crate) fn know_pool(&mut self, pool: &Arc<PoolMemory>) {
        if !pool.belongs_to(&self.apart.chores) || self.gone.is_some() {
            pool.end();
        }
        self.apart.pools.insert(pool.id(), Arc::downgrade(pool));
    }

    /// Says whose state it is.
    pub(crate) fn set_connection(&mut self, connection: Weak<Connection>) {
        self.apart.chores.set_connection(connection.clone());
        self.apart.connection = Some(connection);
    }

    pub(crate) fn all_chores(&self) -> &Arc<Chores> {
        &self.apart.chores
    }

    /// Whether something has to be told.
    pub(super) fn has_chores(&self) -> bool {
        self.apart.chores.any()
    }

    /// Whether there is something to tell by and by that somebody waits for.
    pub(super) fn has_urgent_chores(&self) -> bool {
        self.apart.chores.any_urgent()
    }

    /// Puts what has to be told into the outbox.
    pub(super) fn put_chores(&mut self) {
        if !self.has_chores() || self.gone.is_some() {
            return;
        }
        let list = self.apart.chores.take();
        for holds in list.released.chunks(MAX_RELEASED) {
            self.outbox.put(&ClientFrame::Release(holds.to_vec()));
        }
        for hold in &list.released {
            self.apart.movable.remove(hold);
        }
        for pool in list.pools {
            self.apart.pools.remove(&pool);
            if let Ok(serial) = self.call(0, Purpose::Plain, Request::DropPool { pool }) {
                self.abandon(serial);
            }
        }
    }

    // ---- Sending

    /// Keeps a place for a flagged send.
    pub(super) fn admit_flagged(&mut self, flagged: &Flagged) -> Result<(), SendError> {
        if matches!(flagged, Flagged::No) {
            return Ok(());
        }
        let Some(lending) = &mut self.apart.lending else {
            return Err(SendError::NoBuffers {
                limit: "zerocopy".to_owned(),
                text: "it was not switched on for this connection".to_owned(),
            });
        };
        lending.completions.admit().map_err(|full| SendError::NoBuffers {
            limit: "completions".to_owned(),
            text: full.to_string(),
        })
    }

    /// Whether a buffer is of a pool that the broker of now knows.
    pub(super) fn knows(&self, buffer: &Buffer) -> bool {
        buffer.belongs_to(&self.apart.chores)
    }

    /// Lends what a send is about to refer to, and gives the reference.
    pub(super) fn lend(&mut self, out: LentOut) -> (Flagged, Bytes, Option<OwnedFd>) {
        let Some(lending) = &mut self.apart.lending else {
            unreachable!("a flagged send was admitted");
        };
        lending.next = lending.next.wrapping_add(1);
        let number = lending.next;
        let (from, length, buffer, file) = match out {
            LentOut::Buffer(buffer, length) => {
                let from = LentFrom::Pool { pool: buffer.pool(), buffer: buffer.index() };
                (from, length as u64, Some(buffer), None)
            }
            LentOut::File(file, length) => (LentFrom::File, length, None, Some(file)),
        };
        let reference = Lent { lending: number, from, length };
        let lent = LentSend { buffer, length, number: Numbered::NotYet, completed: None };
        lending.lent.insert(number, lent);
        (Flagged::Left(number), Bytes::copy_from_slice(&reference.encode()), file)
    }

    /// Takes back what a refused send has lent, to be lent anew. None if the broker's word that it is
    /// done with it has come first, and it may be somebody else's by now.
    pub(super) fn take_lent(&mut self, number: u32, has_file: bool) -> Option<Again> {
        let lending = self.apart.lending.as_mut()?;
        let entry = lending.lent.get_mut(&number)?;
        let (length, buffer) = (entry.length, entry.buffer.take());
        entry.number = Numbered::Never;
        self.settle_lent(number);
        if let Some(buffer) = buffer {
            let length = usize::try_from(length).ok()?;
            return Some(Again::Buffer(LentOut::Buffer(buffer, length)));
        }
        let lending = self.apart.lending.as_mut().filter(|_| has_file)?;
        lending.next = lending.next.wrapping_add(1);
        let number = lending.next;
        let lent = LentSend { buffer: None, length, number: Numbered::NotYet, completed: None };
        lending.lent.insert(number, lent);
        let reference = Lent { lending: number, from: LentFrom::File, length };
        Some(Again::Reference(number, Bytes::copy_from_slice(&reference.encode())))
    }

    /// A flagged send has its receipt, or failed; gives its number.
    pub(super) fn flagged_answered(&mut self, flagged: &Flagged, committed: bool) -> Option<u32> {
        if matches!(flagged, Flagged::No) {
            return None;
        }
        let lending = self.apart.lending.as_mut()?;
        let number = committed.then(|| lending.completions.take_number());
        if number.is_none() {
            lending.completions.give_up();
        }
        match (flagged, number) {
            (Flagged::Left(lent), number) => {
                let numbered = number.map_or(Numbered::Never, Numbered::Number);
                if let Some(entry) = lending.lent.get_mut(lent) {
                    entry.number = numbered;
                }
                self.settle_lent(*lent);
            }
            (_, Some(number)) => {
                lending.complete(number, true);
                self.completions_came();
            }
            (_, None) => {}
        }
        number
    }

    /// The broker is done with these.
    pub(super) fn completed(&mut self, range: CompletedRange) {
        for number in range.numbers().take(MAX_LENT) {
            let lending = self.apart.lending.as_mut();
            if let Some(entry) = lending.and_then(|lending| lending.lent.get_mut(&number)) {
                entry.buffer = None;
                entry.completed = Some(range.copied);
                self.settle_lent(number);
            }
        }
        // Somebody may wait for a buffer.
        self.attention = true;
    }

    /// Takes an entry out for which all is known.
    fn settle_lent(&mut self, lent: u32) {
        let Some(lending) = &mut self.apart.lending else { return };
        let Some(entry) = lending.lent.get(&lent) else { return };
        let (number, completed) = (entry.number, entry.completed);
        match (number, completed) {
            (Numbered::Number(number), Some(copied)) => {
                lending.lent.remove(&lent);
                lending.complete(number, copied);
                self.completions_came();
            }
            (Numbered::Never, Some(_)) => {
                lending.lent.remove(&lent);
            }
            _ => {}
        }
    }

    fn completions_came(&mut self) {
        self.attention = true;
    }

    /// Takes the oldest range of completions.
    pub(crate) fn read_completion(&mut self) -> Option<CompletedRange> {
        self.apart.lending.as_mut()?.completions.read()
    }

    /// Whether completions wait to be read.
    pub(crate) fn has_completions(&self) -> bool {
        self.apart.lending.as_ref().is_some_and(|lending| !lending.completions.is_empty())
    }

    /// The connection is gone: nothing is lent any more.
    pub(super) fn lose_apart(&mut self) {
        if let Some(lending) = &mut self.apart.lending {
            for (_, entry) in std::mem::take(&mut lending.lent) {
                if let Numbered::Number(number) = entry.number {
                    lending.complete(number, true);
                }
            }
        }
        // Who has mapped them may read them still, and would take what is written for what was sent.
        for (_, pool) in self.apart.pools.drain() {
            if let Some(pool) = pool.upgrade() {
                pool.end();
            }
        }
        // Numbers of this broker's mean nothing to the next one.
        self.apart.regions.clear();
        self.apart.movable.clear();
        self.apart.chores = Arc::default();
        if let Some(connection) = &self.apart.connection {
            self.apart.chores.set_connection(connection.clone());
        }
    }

    // ---- Receiving

    /// Memory was introduced.
    pub(super) fn memory_came(
        &mut self,
        id: u32,
        kind: MemoryKind,
        length: u64,
        mut files: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let wanted = if kind == MemoryKind::Lent { 2 } else { 1 };
        let length = usize::try_from(length).map_err(|error| error.to_string())?;
        let region = match (files.len() == wanted).then(|| (files.pop(), files.pop())) {
            Some((Some(file), None)) if kind == MemoryKind::Pool => Region::Pool { file, length },
            Some((Some(file), None)) => map(&file, length)?
                .map_or(Region::Missing, |mapping| Region::Arena(Arc::new(mapping))),
            Some((Some(words), Some(memory))) => {
                let size = rustix::fs::fstat(&words).map(|stat| stat.st_size).unwrap_or(0);
                let words = map(&words, usize::try_from(size).unwrap_or(0))?;
                match (map(&memory, length)?, words) {
                    (Some(memory), Some(words)) => {
                        Region::Lent(Arc::new(LentRegion { memory, words }))
                    }
                    _ => Region::Missing,
                }
            }
            _ => Region::Missing,
        };
        if self.apart.regions.len() >= MAX_REGIONS {
            return Err("more memory than a connection can have".to_owned());
        }
        if self.apart.regions.insert(id, region).is_some() {
            return Err(format!("memory {id} was introduced twice"));
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, id: u32) {
        self.apart.regions.remove(&id);
        if let Some(pool) = self.apart.pools.get(&id).and_then(Weak::upgrade) {
            pool.end();
            // Somebody may wait for a buffer.
            self.attention = true;
        }
    }

    /// A pool that was introduced.
    pub(crate) fn take_region(&mut self, id: u32) -> Option<Region> {
        self.apart.regions.remove(&id)
    }

    /// Finds the payload of a message that lies apart.
    pub(super) fn find_payload(
        &mut self,
        message: &mut MessageView,
        placed: Placed,
        file: Option<OwnedFd>,
    ) -> Result<(), String> {
        message.set_found(self.find(placed, file)?);
        Ok(())
    }

    /// Finds what lies apart.
    pub(super) fn find(
        &mut self,
        placed: Placed,
        file: Option<OwnedFd>,
    ) -> Result<Arc<Found>, String> {
        let number = |value: u64| usize::try_from(value).map_err(|error| error.to_string());
        let (offset, length) = (number(placed.offset)?, number(placed.length)?);
        let end = offset.saturating_add(length);
        let beyond = || "a payload beyond the memory that it lies in".to_owned();
        let place = match placed.within {
            PlacedIn::File => match file {
                None => Place::Elsewhere,
                Some(file) => {
                    check_unchangeable(file.as_fd(), end as u64)
                        .map_err(|error| format!("a payload's file: {error}"))?;
                    match Mapping::read_only(file.as_fd(), end.max(1)) {
                        Ok(mapping) => Place::File(mapping),
                        Err(_) => Place::Elsewhere,
                    }
                }
            },
            PlacedIn::Arena { memory } => match self.apart.regions.get(&memory) {
                Some(Region::Arena(mapping)) if end <= mapping.len() => {
                    Place::Arena(Arc::clone(mapping))
                }
                Some(Region::Missing) => Place::Elsewhere,
                Some(_) => return Err(beyond()),
                None => return Err(format!("a payload in memory {memory}, which was not given")),
            },
            PlacedIn::Lent { memory, word, generation } => match self.apart.regions.get(&memory) {
                Some(Region::Lent(region))
                    if end <= region.memory.len()
                        && 8 * (word as usize + 1) <= region.words.len() =>
                {
                    Place::Lent { region: Arc::clone(region), word, generation }
                }
                Some(Region::Missing) => Place::Elsewhere,
                Some(_) => return Err(beyond()),
                None => {
                    return Err(format!("a payload in memory {memory}, which was not given"));
                }
            },
        };
        let chores = Arc::clone(&self.apart.chores);
        let hold = placed.hold;
        if matches!(place, Place::Elsewhere) {
            self.outbox.put(&ClientFrame::Fetch { hold });
        }
        let found = Arc::new(Found::new(place, offset, length, hold, chores));
        if found.may_move() {
            self.apart.movable.insert(hold, Arc::downgrade(&found));
        }
        Ok(found)
    }

    /// A payload was given anew.
    pub(super) fn moved(&mut self, hold: u32, payload: Bytes) -> Result<(), String> {
        if let Some(found) = self.apart.movable.remove(&hold).and_then(|found| found.upgrade()) {
            found.set_moved(payload);
            for key in self.keys() {
                if let Some(endpoint) = self.endpoints.get_mut(key) {
                    endpoint.inbox.check_found().map_err(|error| error.to_string())?;
                }
                self.wake_receivers(key);
            }
        }
        Ok(())
    }
}

/// Maps a file of the broker's, after a look at what can be done to it. None if there is no room.
fn map(file: &OwnedFd, length: usize) -> Result<Option<Mapping>, String> {
    check_read_only(file.as_fd(), length as u64).map_err(|error| format!("memory: {error}"))?;
    Ok(Mapping::read_only(file.as_fd(), length).ok())
}

/// Memory that one connection may have been given: more would be the broker's mistake.
const MAX_REGIONS: usize = 4096;
/// Payloads that a range of completions can be about.
const MAX_LENT: usize = 1 << 20;
