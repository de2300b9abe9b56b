//! Rings in memory that two processes share: how bytes pass from one writer to one reader without a
//! system call, and how each tells the other that it sleeps.
//!
//! Each side has one memory that it alone writes: a page of words, and behind it the cells of its
//! ring. The other side only reads that. So there is no lock, no count and no list in memory that a
//! peer can write; what a side writes about the other's ring (how far it has read, what it holds,
//! that it sleeps) stands in its own page, and can harm nobody but itself.
//!
//! | word of one's own page | says |
//! |---|---|
//! | tail | cells that I have ever published in my ring |
//! | armed | odd: I sleep, or am about to; one more at each change |
//! | consumed | cells of the other's ring that I am done with |
//! | room-at | not 0: I wait until the other has consumed so many cells of my ring |
//! | holding | cells of the other's ring that I keep although they are consumed |
//! | held | one bit a cell: which these are |
//!
//! A cell has 64 bytes. A record begins with a cell: 4 bytes of length, its state, and the bytes.
//! What lies before `consumed` is *unused*, what its writer has filled and not published *reserved*;
//! what is published is *valid* (so many bytes of the stream), *copy* (so many bytes of the stream
//! come by the socket, here in their place) or *skip* (passed over: the reader holds these cells).
//! The records are a stream: their borders mean nothing to who reads it.
//!
//! Invariants:
//! - The writer fills only cells that its reader has consumed and does not hold, and publishes them
//!   after they are finished (Release on `tail`, Acquire by the reader); the reader consumes them
//!   after it has copied them out (Release on `consumed`, Acquire by the writer).
//! - A word of the other's is read once, compared with what it may be, and then used. A position that
//!   goes back or jumps ahead is a [`RingError`], and nothing more of that ring is believed.
//! - Nobody sleeps beside what he waits for. Who goes to sleep writes that down (`armed`, `room-at`),
//!   then a full fence, then looks again; who publishes or consumes writes that down, then a full
//!   fence, then looks whether the other sleeps. One of the two sees the other. Where several threads of a
//!   side read for one another, one that sleeps stays written down until it is awake
//!   ([`RingSleeper::fall_asleep`]).
//!
//! Nothing here enters the kernel: a call that says "ring" leaves the ringing to its caller.

use crate::sync::{AtomicU64, Mutant, Mutex, Ordering, RingArc, fence, mutated};

/// Memory of one side: words, and bytes between them.
///
/// It is written by one process and read by another at the same time, so nothing here gives out a
/// reference to bytes. Offsets beyond its end panic.
pub trait Memory {
    /// The word at a multiple of 8.
    fn word(&self, at: usize) -> &AtomicU64;

    /// Copies bytes in. Only who owns the memory does.
    fn put(&self, at: usize, bytes: &[u8]);

    /// Copies bytes out.
    fn get(&self, at: usize, into: &mut [u8]);

    /// Copies so many bytes out, to the end of `into`.
    fn append(&self, at: usize, bytes: usize, into: &mut Vec<u8>) {
        let filled = into.len();
        into.resize(filled + bytes, 0);
        self.get(at, &mut into[filled..]);
    }
}

impl<M: Memory + ?Sized> Memory for RingArc<M> {
    fn word(&self, at: usize) -> &AtomicU64 {
        (**self).word(at)
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        (**self).put(at, bytes);
    }

    fn get(&self, at: usize, into: &mut [u8]) {
        (**self).get(at, into);
    }

    fn append(&self, at: usize, bytes: usize, into: &mut Vec<u8>) {
        (**self).append(at, bytes, into);
    }
}

/// How long a ring is: a power of two of cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSize {
    cells: u32,
}

impl RingSize {
    /// A ring of this many bytes, if there is one: a power of two, 4 KiB to 1 MiB.
    #[must_use]
    pub const fn of_bytes(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= LEAST_RING_BYTES && bytes <= MOST_RING_BYTES {
            Some(Self { cells: bytes / CELL })
        } else {
            None
        }
    }

    /// Bytes of the ring.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.cells * CELL
    }

    /// Bytes of the memory that a side needs for it: the ring and the page before it.
    #[must_use]
    pub const fn memory_bytes(self) -> usize {
        PAGE_BYTES + self.bytes() as usize
    }

    /// A ring of so few cells that a model wraps it.
    #[cfg(bus_loom)]
    pub(crate) const fn of_cells(cells: u32) -> Self {
        Self { cells }
    }
}

/// The other side broke the rules of the ring. Nothing of it can be believed any more: end the
/// connection, and log this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// A position lies behind what it was.
    #[error("{position} of the ring went back from {from} to {to}")]
    WentBack {
        /// Which.
        position: &'static str,
        /// Where it was.
        from: u64,
        /// Where it is said to be.
        to: u64,
    },
    /// A position lies beyond what there can be.
    #[error("{position} of the ring jumped ahead to {to}, and it can be {most} at most")]
    JumpedAhead {
        /// Which.
        position: &'static str,
        /// Where it is said to be.
        to: u64,
        /// The most that it can be.
        most: u64,
    },
    /// A record that there cannot be.
    #[error("a record of the ring in state {state} with {bytes} bytes, and {left} are left")]
    BadRecord {
        /// The state given.
        state: u32,
        /// The length given.
        bytes: u32,
        /// Bytes that it can have at most.
        left: u64,
    },
}

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingRead {
    /// So many bytes of the stream.
    Bytes(usize),
    /// So many bytes of the stream come by the socket; what the ring has next comes after them.
    Copy(u32),
    /// Nothing is there now.
    Nothing,
}

/// The side that fills a ring.
#[derive(Debug)]
pub struct RingWriter<M> {
    mine: M,
    theirs: M,
    cells: u64,
    tail: u64,
    published: u64,
    /// How far the reader was when last looked at: it can only be further.
    consumed: u64,
    /// For which sleep of the reader its bell was rung.
    rung: u64,
    waits: bool,
}

/// The side that empties a ring.
#[derive(Debug)]
pub struct RingReader<M> {
    mine: M,
    theirs: M,
    cells: u64,
    head: u64,
    /// How far the writer was when last looked at.
    tail: u64,
    consumed: u64,
    /// The record that is being read, and how much of it was.
    current: Option<(Record, u32)>,
    /// For which wait of the writer its bell was rung.
    rung: u64,
    held: u64,
}

/// Looks and sleeps for a reader, where that is somebody else's to move.
#[derive(Clone, Debug)]
pub struct RingSleeper<M> {
    mine: M,
    theirs: M,
    /// A thread sleeps that has said so. Where several read for one another, only it takes that back.
    asleep: RingArc<Mutex<bool>>,
}

/// A record that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    position: u64,
    bytes: u32,
}

/// A record that its reader keeps in the ring while it goes on reading.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what is held is never given back by itself"]
pub struct Held {
    record: Record,
}

impl<M: Memory> RingWriter<M> {
    /// The writing side of a ring in `mine`, whose reader's page is `theirs`.
    ///
    /// # Panics
    ///
    /// Using it, if the memories are shorter than [`RingSize::memory_bytes`].
    pub fn new(mine: M, theirs: M, size: RingSize) -> Self {
        let cells = size.cells.into();
        let (tail, published, consumed, rung) = (0, 0, 0, 0);
        Self { mine, theirs, cells, tail, published, consumed, rung, waits: false }
    }

    /// Copies as many of `bytes` as there is room for, and says how many. The reader sees them after
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// See [`RingError`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        self.begin_again(cells_of(bytes.len()))?;
        let mut written = 0;
        while written < bytes.len() {
            let left = &bytes[written..];
            let run = self.free_run(cells_of(left.len()))?;
            if run == 0 {
                break;
            }
            let part = &left[..left.len().min(room_in(run))];
            self.mine.put(offset(self.tail, self.cells) + HEADER_BYTES, part);
            let bytes = u32::try_from(part.len()).expect("a ring has at most 1 MiB");
            self.put_record(State::Valid, bytes, cells_of(part.len()));
            written += part.len();
        }
        Ok(written)
    }

    /// Says that the next `bytes` bytes of the stream come by the socket, one at least. False if there is
    /// no room to say so.
    ///
    /// # Errors
    ///
    /// See [`RingError`].
    pub fn write_copy(&mut self, bytes: u32) -> Result<bool, RingError> {
        debug_assert!(bytes > 0, "a reader takes it for a fault");
        if self.free_run(1)? == 0 {
            return Ok(false);
        }
        self.put_record(State::Copy, bytes, 1);
        Ok(true)
    }

    /// Whether there is room for a record.
    ///
    /// # Errors
    ///
    /// See [`RingError`].
    pub fn has_room(&mut self) -> Result<bool, RingError> {
        Ok(self.free_run(1)? > 0)
    }

    /// Lets the reader see what was written. True if its bell is to be rung: it sleeps, and has not
    /// been rung for this sleep.
    #[must_use = "a reader that is not rung sleeps beside its bytes"]
    pub fn publish(&mut self) -> bool {
        if self.tail == self.published {
            return false;
        }
        self.published = self.tail;
        self.mine.word(TAIL).store(self.tail, release_unless(Mutant::RingTailRelaxed));
        if !mutated(Mutant::NoFenceInPublish) {
            fence(Ordering::SeqCst);
        }
        let armed = self.theirs.word(ARMED).load(Ordering::Relaxed);
        let asleep = armed % 2 == 1 && armed != self.rung;
        if asleep {
            self.rung = armed;
        }
        asleep
    }

    /// Asks to be rung once about half of the ring is free. True if it has room already; then there
    /// is nothing to wait for.
    ///
    /// # Errors
    ///
    /// See [`RingError`].
    pub fn want_room(&mut self) -> Result<bool, RingError> {
        self.waits = true;
        let half = self.tail.saturating_sub(self.cells / 2).max(self.consumed + 1);
        self.mine.word(ROOM_AT).store(half, Ordering::Relaxed);
        if !mutated(Mutant::NoFenceInWantRoom) {
            fence(Ordering::SeqCst);
        }
        self.look()?;
        if self.consumed < half && self.free_run(1)? == 0 {
            return Ok(false);
        }
        self.waits = false;
        self.mine.word(ROOM_AT).store(0, Ordering::Relaxed);
        Ok(true)
    }

    /// Whether the reader is done with everything.
    ///
    /// # Errors
    ///
    /// See [`RingError`].
    pub fn is_consumed(&mut self) -> Result<bool, RingError> {
        self.look()?;
        Ok(self.consumed == self.tail)
    }

    /// Goes back to the beginning of a ring that is empty: those cells are in the caches, and a reader
    /// that keeps up never needs more than them. Not for what would not fit there.
    fn begin_again(&mut self, wanted: u64) -> Result<(), RingError> {
        let index = self.tail % self.cells;
        let is_late = index > 0 && index >= self.cells / 4;
        if !is_late || wanted > index || self.tail != self.published {
            return Ok(());
        }
        self.look()?;
        let holds = self.theirs.word(HOLDING).load(acquire_unless(Mutant::HoldingRelaxed)) != 0;
        if self.consumed == self.tail && !holds {
            let rest = self.cells - index;
            let bytes = u32::try_from(room_in(rest)).expect("a ring has at most 1 MiB");
            self.put_record(State::Skip, bytes, rest);
        }
        Ok(())
    }

    /// How many cells lie free from the tail on, up to the end of the memory; held ones are passed
    /// over. `wanted` are enough.
    fn free_run(&mut self, wanted: u64) -> Result<u64, RingError> {
        if self.cells - (self.tail - self.consumed) < wanted.min(self.cells) {
            self.look()?;
        }
        // Who has consumed a cell has said before whether it holds it. Acquire: where it holds none
        // any more, it has copied out what it held.
        if self.theirs.word(HOLDING).load(acquire_unless(Mutant::HoldingRelaxed)) != 0
            && !mutated(Mutant::HeldNotPassed)
        {
            return Ok(self.pass_held(wanted));
        }
        let free = self.cells - (self.tail - self.consumed);
        Ok(free.min(self.cells - self.tail % self.cells))
    }

    /// Marks held cells at the tail as skipped, if there are free ones behind them; and says how many of
    /// those there are, if that is not more than `wanted`.
    fn pass_held(&mut self, wanted: u64) -> u64 {
        let free = self.cells - (self.tail - self.consumed);
        let is_held = |position: u64| is_held(&self.theirs, position % self.cells);
        let Some(held) = (0..free).find(|ahead| !is_held(self.tail + ahead)) else {
            return 0;
        };
        let ahead = held..free.min(held + wanted.min(self.cells));
        let run = ahead.take_while(|ahead| !is_held(self.tail + ahead)).count() as u64;
        let mut left = held;
        while left > 0 {
            let part = left.min(self.cells - self.tail % self.cells);
            let bytes = u32::try_from(room_in(part)).expect("a ring has at most 1 MiB");
            self.put_record(State::Skip, bytes, part);
            left -= part;
        }
        run.min(self.cells - self.tail % self.cells)
    }

    fn put_record(&mut self, state: State, bytes: u32, cells: u64) {
        let word = u64::from(bytes) | (state as u64) << 32;
        self.mine.word(offset(self.tail, self.cells)).store(word, Ordering::Relaxed);
        self.tail += cells;
        if self.waits {
            self.waits = false;
            self.mine.word(ROOM_AT).store(0, Ordering::Relaxed);
        }
    }

    /// Looks how far the reader is.
    fn look(&mut self) -> Result<(), RingError> {
        let acquire = acquire_unless(Mutant::RingConsumedRelaxed);
        let to = self.theirs.word(CONSUMED).load(acquire);
        let position = "the consumed position";
        if to < self.consumed {
            return Err(RingError::WentBack { position, from: self.consumed, to });
        }
        if to > self.published {
            return Err(RingError::JumpedAhead { position, to, most: self.published });
        }
        self.consumed = to;
        Ok(())
    }
}

impl<M: Memory> RingReader<M> {
    /// The reading side of a ring in `theirs`; its own page is `mine`.
    ///
    /// # Panics
    ///
    /// Using it, if the memories are shorter than [`RingSize::memory_bytes`].
    pub fn new(mine: M, theirs: M, size: RingSize) -> Self {
        let cells = size.cells.into();
        let (head, tail, consumed, rung, held) = (0, 0, 0, 0, 0);
        Self { mine, theirs, cells, head, tail, consumed, current: None, rung, held }
    }

    /// Copies bytes of the stream out. The writer gets their cells back at
    /// [`finish`](Self::finish).
    ///
    /// # Errors
    ///
    /// See [`RingError`]. Bytes that were copied before are lost.
    pub fn read(&mut self, into: &mut [u8]) -> Result<RingRead, RingError> {
        let mut read = 0;
        self.read_with(into.len(), |memory, at, bytes| {
            memory.get(at, &mut into[read..read + bytes]);
            read += bytes;
        })
    }

    /// As [`read`](Self::read), so many bytes at most, to the end of `into`.
    ///
    /// # Errors
    ///
    /// See [`RingError`]. Bytes that were copied before are lost.
    pub fn read_more(&mut self, most: usize, into: &mut Vec<u8>) -> Result<RingRead, RingError> {
        self.read_with(most, |memory, at, bytes| memory.append(at, bytes, into))
    }

    fn read_with(
        &mut self,
        most: usize,
        mut copy: impl FnMut(&M, usize, usize),
    ) -> Result<RingRead, RingError> {
        let mut read = 0;
        while read < most {
            let Some((record, taken)) = self.current else {
                match self.next(read == 0)? {
                    Some((State::Valid, record)) => self.current = Some((record, 0)),
                    Some((_, record)) => return Ok(RingRead::Copy(record.bytes)),
                    None => break,
                }
                continue;
            };
            let (bytes, skip) = (record.bytes as usize, taken as usize);
            let part = (most - read).min(bytes - skip);
            let at = offset(record.position, self.cells) + HEADER_BYTES + skip;
            copy(&self.theirs, at, part);
            read += part;
            if skip + part == bytes {
                self.head = record.position + cells_of(bytes);
                self.current = None;
            } else {
                // Shorter than the record.
                self.current = Some((record, taken + u32::try_from(part).unwrap_or(0)));
            }
        }
        Ok(if read > 0 { RingRead::Bytes(read) } else { RingRead::Nothing })
    }

    /// Gives the writer back what was read. True if its bell is to be rung: it waits for room, and
    /// now there is.
    #[must_use = "a writer that is not rung waits beside free cells"]
    pub fn finish(&mut self) -> bool {
        if self.head == self.consumed {
            return false;
        }
        self.consumed = self.head;
        self.mine.word(CONSUMED).store(self.head, release_unless(Mutant::RingConsumedRelaxed));
        if !mutated(Mutant::NoFenceInFinish) {
            fence(Ordering::SeqCst);
        }
        let room_at = self.theirs.word(ROOM_AT).load(Ordering::Relaxed);
        let waits = room_at != 0 && room_at <= self.head && room_at != self.rung;
        if waits {
            self.rung = room_at;
        }
        waits
    }

    /// Whether something is there to be read.
    #[must_use]
    pub fn has_input(&self) -> bool {
        self.current.is_some() || self.theirs.word(TAIL).load(Ordering::Acquire) != self.head
    }

    /// Takes the next record and keeps it where it lies; the reader goes on behind it. `None` if
    /// nothing whole is next, or if it would hold more than half of the ring: then it is to be read.
    ///
    /// # Errors
    ///
    /// See [`RingError`].
    pub fn hold(&mut self) -> Result<Option<Held>, RingError> {
        if self.current.is_some() {
            return Ok(None);
        }
        let Some((State::Valid, record)) = self.next(false)? else {
            return Ok(None);
        };
        let cells = cells_of(record.bytes as usize);
        if self.held + cells > self.cells / 2 {
            self.current = Some((record, 0));
            return Ok(None);
        }
        self.held += cells;
        self.mark(record, cells, true);
        // The bits are out before the cells are given back.
        self.head = record.position + cells;
        Ok(Some(Held { record }))
    }

    /// Copies out of a held record, from its byte `from` on; how many bytes it had for that.
    pub fn copy_held(&self, held: &Held, from: usize, into: &mut [u8]) -> usize {
        let part = into.len().min((held.record.bytes as usize).saturating_sub(from));
        let at = offset(held.record.position, self.cells) + HEADER_BYTES + from;
        self.theirs.get(at, &mut into[..part]);
        part
    }

    /// Gives a held record back. True if the writer's bell is to be rung.
    #[must_use = "a writer that is not rung waits beside free cells"]
    pub fn release(&mut self, held: &Held) -> bool {
        let cells = cells_of(held.record.bytes as usize);
        self.held -= cells;
        self.mark(held.record, cells, false);
        if !mutated(Mutant::NoFenceInFinish) {
            fence(Ordering::SeqCst);
        }
        self.theirs.word(ROOM_AT).load(Ordering::Relaxed) != 0
    }

    /// Who sleeps for this reader.
    pub fn sleeper(&self) -> RingSleeper<M>
    where
        M: Clone,
    {
        let asleep = RingArc::new(Mutex::new(false));
        RingSleeper { mine: self.mine.clone(), theirs: self.theirs.clone(), asleep }
    }

    fn mark(&self, record: Record, cells: u64, held: bool) {
        for cell in record.position..record.position + cells {
            let (at, bit) = held_bit(cell % self.cells);
            let word = self.mine.word(at);
            let bits = word.load(Ordering::Relaxed);
            let bits = if held { bits | bit } else { bits & !bit };
            // Release, so that who sees a cell given back sees that it was copied out before.
            word.store(bits, Ordering::Release);
        }
        self.mine.word(HOLDING).store(self.held, Ordering::Release);
    }

    /// The next record, passing over what is skipped. A *copy* is taken only if `copies`: otherwise
    /// it is left for the next call.
    fn next(&mut self, copies: bool) -> Result<Option<(State, Record)>, RingError> {
        loop {
            if self.head == self.tail {
                self.look()?;
                if self.head == self.tail {
                    return Ok(None);
                }
            }
            // Read once; all that follows uses this copy.
            let word = self.theirs.word(offset(self.head, self.cells)).load(Ordering::Relaxed);
            let (bytes, state) = halves(word);
            let record = Record { position: self.head, bytes };
            let left = (self.tail - self.head).min(self.cells - self.head % self.cells);
            let bad =
                RingError::BadRecord { state, bytes: record.bytes, left: room_in(left) as u64 };
            let fits = record.bytes as usize <= room_in(left);
            match State::from_raw(state).ok_or(bad)? {
                State::Skip if fits => self.head += cells_of(record.bytes as usize),
                State::Valid if fits => return Ok(Some((State::Valid, record))),
                // Of no bytes it would be a step that leads nowhere, and who takes such steps as fast as
                // they are written never comes back.
                State::Copy if bytes == 0 => return Err(bad),
                State::Copy if copies => {
                    self.head += 1;
                    return Ok(Some((State::Copy, record)));
                }
                State::Copy => return Ok(None),
                State::Skip | State::Valid => return Err(bad),
            }
        }
    }

    /// Looks how far the writer is.
    fn look(&mut self) -> Result<(), RingError> {
        let to = self.theirs.word(TAIL).load(acquire_unless(Mutant::RingTailRelaxed));
        let position = "the tail";
        if to < self.tail {
            return Err(RingError::WentBack { position, from: self.tail, to });
        }
        let most = self.consumed + self.cells;
        if to > most {
            return Err(RingError::JumpedAhead { position, to, most });
        }
        self.tail = to;
        Ok(())
    }
}

impl<M: Memory> RingSleeper<M> {
    /// Whether something is there that was not consumed.
    #[must_use]
    pub fn has_input(&self) -> bool {
        let consumed = self.mine.word(CONSUMED).load(Ordering::Relaxed);
        self.theirs.word(TAIL).load(Ordering::Acquire) != consumed
    }

    /// Says that the reader sleeps. False if there is something to read: then it must not.
    #[must_use = "who sleeps beside its bytes is not woken"]
    pub fn arm(&self) -> bool {
        self.turn(1);
        if !mutated(Mutant::NoFenceInArm) {
            fence(Ordering::SeqCst);
        }
        if self.has_input() {
            // Or the next sleep would be the same one, for which the bell may have been rung already.
            if !mutated(Mutant::ArmedBesideInput) {
                self.disarm();
            }
            return false;
        }
        true
    }

    /// Says that the reader is awake.
    pub fn disarm(&self) {
        self.turn(0);
    }

    /// As [`arm`](Self::arm), for one of several threads that read for one another: until
    /// [`woke`](Self::woke) the others leave it said.
    #[must_use = "who sleeps beside its bytes is not woken"]
    pub fn fall_asleep(&self) -> bool {
        let mut asleep = self.asleep.lock();
        *asleep = self.arm();
        *asleep
    }

    /// The thread that [fell asleep](Self::fall_asleep) is awake.
    pub fn woke(&self) {
        let mut asleep = self.asleep.lock();
        *asleep = false;
        self.disarm();
    }

    /// Whether a thread sleeps, or is about to.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        *self.asleep.lock()
    }

    /// Says that the reader is awake, unless a thread sleeps that would not be woken then. True if it had
    /// said that it sleeps.
    pub fn wake_up(&self) -> bool {
        if !self.is_armed() {
            return false;
        }
        let asleep = self.asleep.lock();
        if *asleep && !mutated(Mutant::SleeperForgotten) {
            return false;
        }
        self.disarm();
        true
    }

    /// Whether it says that it sleeps.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.mine.word(ARMED).load(Ordering::Relaxed) % 2 == 1
    }

    fn turn(&self, parity: u64) {
        let word = self.mine.word(ARMED);
        let armed = word.load(Ordering::Relaxed);
        if armed % 2 != parity {
            // Two threads of one side may both say so; then it counts once.
            let next = armed.wrapping_add(1);
            let (ok, again) = (Ordering::Relaxed, Ordering::Relaxed);
            let _ = word.compare_exchange(armed, next, ok, again);
        }
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Valid = 1,
    Copy = 2,
    Skip = 3,
}

impl State {
    const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Valid),
            2 => Some(Self::Copy),
            3 => Some(Self::Skip),
            _ => None,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "these are its halves")]
const fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

fn release_unless(mutant: Mutant) -> Ordering {
    if mutated(mutant) { Ordering::Relaxed } else { Ordering::Release }
}

#[inline]
fn acquire_unless(mutant: Mutant) -> Ordering {
    if mutated(mutant) { Ordering::Relaxed } else { Ordering::Acquire }
}

/// Where a cell lies in its memory.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a ring has at most 1 MiB")]
fn offset(position: u64, cells: u64) -> usize {
    PAGE_BYTES + (position % cells) as usize * CELL_BYTES
}

/// Cells that a record of so many bytes takes.
#[inline]
fn cells_of(bytes: usize) -> u64 {
    (HEADER_BYTES + bytes).div_ceil(CELL_BYTES) as u64
}

/// Bytes that a record of so many cells has.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a ring has at most 1 MiB")]
fn room_in(cells: u64) -> usize {
    (cells as usize * CELL_BYTES).saturating_sub(HEADER_BYTES)
}

fn is_held<M: Memory>(page: &M, cell: u64) -> bool {
    let (at, bit) = held_bit(cell);
    page.word(at).load(Ordering::Acquire) & bit != 0
}

fn held_bit(cell: u64) -> (usize, u64) {
    (HELD + (cell / 64) as usize * 8, 1 << (cell % 64))
}

/// The page before a ring.
const PAGE_BYTES: usize = 4096;
/// Bytes of a cell.
const CELL_BYTES: usize = CELL as usize;
const CELL: u32 = 64;
/// Bytes of a record before its own.
const HEADER_BYTES: usize = 8;
/// The shortest ring.
const LEAST_RING_BYTES: u32 = 4 << 10;
/// The longest ring: the bits of its cells fit the page.
const MOST_RING_BYTES: u32 = 1 << 20;

// Words of the page; 128 bytes apart, because lines are fetched in pairs.
const TAIL: usize = 0;
const ARMED: usize = 128;
const CONSUMED: usize = 256;
const ROOM_AT: usize = 384;
const HOLDING: usize = 512;
const HELD: usize = 1024;
const _: () = assert!(HELD + MOST_RING_BYTES as usize / CELL_BYTES / 8 <= PAGE_BYTES);
