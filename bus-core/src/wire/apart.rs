//! Payloads that lie beside the stream: how SEND and MESSAGE refer to them, and the frames about the
//! memory that they lie in.
//!
//! Invariant: a reference that exists has a way that is known and fields that mean something for it;
//! whether the memory that it names is there, and long enough, its reader checks before it looks.

use super::WireError;
use super::header::{u32_at, u64_at};

/// Where the payload of a SEND lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lent {
    /// The client's number for it: COMPLETED says when the broker is done with it.
    pub lending: u32,
    /// What it lies in.
    pub from: LentFrom,
    /// Bytes of the payload.
    pub length: u64,
}

/// What a payload lies in that a sender lends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LentFrom {
    /// At the beginning of a buffer of a pool.
    Pool {
        /// Which pool.
        pool: u32,
        /// Which of its buffers.
        buffer: u32,
    },
    /// At the beginning of a memory file, the last of the frame's descriptors, that nobody can
    /// change any more.
    File,
}

/// Where the payload of a MESSAGE lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The broker's number for it on this connection: RELEASE says when the client is done with it.
    pub hold: u32,
    /// What it lies in.
    pub within: PlacedIn,
    /// Where it begins there.
    pub offset: u64,
    /// Bytes of the payload.
    pub length: u64,
}

/// What a payload lies in that a recipient is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlacedIn {
    /// Memory of the broker's that nobody else can write: it stays as it is until it is released.
    Arena {
        /// Which memory.
        memory: u32,
    },
    /// A memory file, the last of the frame's descriptors, that nobody can change any more.
    File,
    /// Memory that its sender can still write. It is lent for as long as the word says so.
    Lent {
        /// Which memory.
        memory: u32,
        /// Which of the memory's words.
        word: u32,
        /// What that word says while the payload is lent.
        generation: u64,
    },
}

/// What a memory is to the client that is given it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// A pool that this client is to map for writing, and then to seal.
    Pool,
    /// An arena of the broker's, to be read.
    Arena,
    /// A pool of another client's, to be read, and with a second descriptor the words that say
    /// what of it is lent.
    Lent,
}

impl MemoryKind {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Pool => 1,
            Self::Arena => 2,
            Self::Lent => 3,
        }
    }

    pub(super) fn of(frame: &'static str, number: u8) -> Result<Self, WireError> {
        Ok(match number {
            1 => Self::Pool,
            2 => Self::Arena,
            3 => Self::Lent,
            other => return Err(WireError::Value { frame, field: "kind", given: other.into() }),
        })
    }
}

impl Lent {
    /// The reference as it stands in a SEND, in the place of the payload.
    #[must_use]
    pub fn encode(&self) -> [u8; LENT_BYTES] {
        let mut bytes = [0; LENT_BYTES];
        let (way, pool, buffer) = match self.from {
            LentFrom::Pool { pool, buffer } => (POOL, pool, buffer),
            LentFrom::File => (FILE, 0, 0),
        };
        bytes[0] = way;
        bytes[4..8].copy_from_slice(&self.lending.to_le_bytes());
        bytes[8..12].copy_from_slice(&pool.to_le_bytes());
        bytes[12..16].copy_from_slice(&buffer.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// It is none; the stream cannot be trusted any more.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let frame = "SEND of a lent payload";
        exact(frame, bytes, LENT_BYTES)?;
        let (pool, buffer) = (u32_at(bytes, 8), u32_at(bytes, 12));
        let from = match u32_at(bytes, 0) {
            way if way == u32::from(POOL) => LentFrom::Pool { pool, buffer },
            way if way == u32::from(FILE) && (pool, buffer) == (0, 0) => LentFrom::File,
            way => return Err(WireError::Value { frame, field: "way", given: way.into() }),
        };
        Ok(Self { lending: u32_at(bytes, 4), from, length: u64_at(bytes, 16) })
    }
}

impl Placed {
    /// The reference as it stands in a MESSAGE, in the place of the payload.
    #[must_use]
    pub fn encode(&self) -> [u8; PLACED_BYTES] {
        let mut bytes = [0; PLACED_BYTES];
        let (way, memory, word, generation) = match self.within {
            PlacedIn::Arena { memory } => (ARENA, memory, 0, 0),
            PlacedIn::File => (FILE, 0, 0, 0),
            PlacedIn::Lent { memory, word, generation } => (POOL, memory, word, generation),
        };
        bytes[0] = way;
        bytes[4..8].copy_from_slice(&self.hold.to_le_bytes());
        bytes[8..12].copy_from_slice(&memory.to_le_bytes());
        bytes[12..16].copy_from_slice(&word.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.length.to_le_bytes());
        bytes[32..40].copy_from_slice(&generation.to_le_bytes());
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// It is none; the stream cannot be trusted any more.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let frame = "MESSAGE with a payload apart";
        exact(frame, bytes, PLACED_BYTES)?;
        let (memory, word, generation) = (u32_at(bytes, 8), u32_at(bytes, 12), u64_at(bytes, 32));
        let plain = word == 0 && generation == 0;
        let within = match u32_at(bytes, 0) {
            way if way == u32::from(ARENA) && plain => PlacedIn::Arena { memory },
            way if way == u32::from(FILE) && plain && memory == 0 => PlacedIn::File,
            way if way == u32::from(POOL) => PlacedIn::Lent { memory, word, generation },
            way => return Err(WireError::Value { frame, field: "way", given: way.into() }),
        };
        let (offset, length) = (u64_at(bytes, 16), u64_at(bytes, 24));
        if length > super::MAX_FRAME_BYTES as u64 || offset.checked_add(length).is_none() {
            return Err(WireError::Value { frame, field: "length", given: length });
        }
        Ok(Self { hold: u32_at(bytes, 4), within, offset, length })
    }
}

fn exact(frame: &'static str, bytes: &[u8], length: usize) -> Result<(), WireError> {
    if bytes.len() == length {
        return Ok(());
    }
    Err(WireError::Length { frame, given: bytes.len(), least: length, most: length })
}

const POOL: u8 = 1;
const FILE: u8 = 2;
const ARENA: u8 = 3;
/// Bytes of a [`Lent`].
pub const LENT_BYTES: usize = 24;
/// Bytes of a [`Placed`].
pub const PLACED_BYTES: usize = 40;
/// The feature of a client that reads payloads which lie apart.
pub const FEATURE_APART: &str = "payloads-apart";
/// The feature of a client that lends payloads.
pub const FEATURE_LEND: &str = "lend-payloads";
/// The feature of a client that reads in place what other programs of its own user can still write.
pub const FEATURE_TRUST_OWN_USER: &str = "trust-own-user";
/// Payloads that one RELEASE may name.
pub const MAX_RELEASED: usize = 1024;
