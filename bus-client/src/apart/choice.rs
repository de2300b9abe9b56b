//! How a flagged send travels: decided before it is put into its lane.
//!
//! The flag asks for no copy and promises none. Below the crossover a copy into the stream is the cheaper
//! way; bytes that are not in a pool's buffer are put into one first, which is the one copy; and where
//! there is no buffer free they go inline, as if they had not been flagged.

use std::sync::Arc;

use bytes::Bytes;

use super::{Pool, PoolBuffer, PoolMemory, SealedFile};
use crate::connection::Connection;
use crate::error::SendError;
use crate::state::{Flagged, LentOut};

/// How the bytes of a payload travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Way {
    /// In the stream: copied into the kernel and out of it.
    Inline,
    /// In the broker's memory: copied once, by the broker, and read in place by all recipients.
    Arena,
    /// As a memory file that nobody can change: not copied, and mapped by each recipient.
    File,
    /// In a buffer of the sender's: not copied, and read in place by recipients that trust it.
    Buffer,
}

impl Way {
    /// What people call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inline => "inline",
            Self::Arena => "arena",
            Self::File => "file",
            Self::Buffer => "buffer",
        }
    }
}

/// What is to be lent, as the application gave it.
#[derive(Debug)]
pub(crate) enum Given {
    Buffer(PoolBuffer),
    File(SealedFile),
}

/// The payload and the flag of a message.
pub(crate) fn choose(
    connection: &Arc<Connection>,
    payload: Bytes,
    given: Option<Given>,
    flagged: bool,
    forced: Option<Way>,
) -> Result<(Bytes, Flagged), SendError> {
    let crossover = connection.calibration().map_or(usize::MAX, |found| found.crossover_bytes);
    let inline = |length: usize| match forced {
        Some(way) => way == Way::Inline,
        None => length < crossover,
    };
    let limit = u64::from(connection.limits().payload_bytes);
    let fits = |bytes: u64| match bytes > limit {
        true => Err(SendError::TooLarge { bytes, limit }),
        false => Ok(()),
    };
    match given {
        Some(Given::Buffer(buffer)) => {
            let (buffer, length) = buffer.into_parts();
            Ok(match length {
                0 => (Bytes::new(), Flagged::No),
                length if inline(length) => (buffer.copy(length).into(), Flagged::Inline),
                length => (Bytes::new(), Flagged::Lent(LentOut::Buffer(buffer, length))),
            })
        }
        Some(Given::File(file)) => {
            fits(file.len())?;
            let length = usize::try_from(file.len()).unwrap_or(usize::MAX);
            if length == 0 {
                return Ok((Bytes::new(), Flagged::No));
            }
            if inline(length)
                && let Ok(bytes) = file.read()
            {
                return Ok((bytes.into(), Flagged::Inline));
            }
            let (file, length) = file.into_parts();
            Ok((Bytes::new(), Flagged::Lent(LentOut::File(file, length))))
        }
        None if !flagged || payload.is_empty() => Ok((payload, Flagged::No)),
        None if inline(payload.len()) => Ok((payload, Flagged::Inline)),
        None if forced == Some(Way::File) => {
            let file = SealedFile::written(|file| std::io::Write::write_all(file, &payload));
            let file = file.map_err(|error| SendError::LimitExceeded(error.to_string()))?;
            let (file, length) = file.into_parts();
            Ok((Bytes::new(), Flagged::Lent(LentOut::File(file, length))))
        }
        None => Ok(match connection.own_pool(payload.len()).and_then(|pool| pool.try_take()) {
            None => (payload, Flagged::Inline),
            Some(mut buffer) => {
                buffer.set_len(payload.len());
                buffer.copy_from_slice(&payload);
                let (buffer, length) = buffer.into_parts();
                (Bytes::new(), Flagged::Lent(LentOut::Buffer(buffer, length)))
            }
        }),
    }
}

/// A connection's own pool, for bytes that come from elsewhere.
#[derive(Debug, Default)]
pub(crate) struct OwnPool(parking_lot::Mutex<Option<Kept>>);

#[derive(Debug)]
struct Kept {
    pool: Option<Arc<PoolMemory>>,
    /// What was asked for when there was none.
    bytes: usize,
}

impl OwnPool {
    /// A pool with buffers of at least this length; made on first use, and anew for longer ones. None if
    /// the broker gives none.
    pub(crate) fn get(&self, connection: &Arc<Connection>, bytes: usize) -> Option<Pool> {
        let mut kept = self.0.lock();
        let chores = connection.lock().chores()?;
        let enough = kept.as_ref().is_some_and(|kept| {
            let known = kept.pool.as_ref().is_none_or(|pool| pool.belongs_to(&chores));
            kept.bytes >= bytes && known
        });
        if !enough {
            let most = connection.limits().payload_bytes as usize;
            let bytes = bytes.next_power_of_two().max(LEAST_BYTES).min(most);
            let buffers = u32::try_from(OWN_BYTES / bytes).unwrap_or(1).clamp(2, 32);
            let pool = Pool::new(connection, buffers, bytes, None).ok();
            *kept = Some(Kept { pool: pool.map(|pool| pool.memory()), bytes });
        }
        let kept = kept.as_ref()?.pool.as_ref()?;
        Some(Pool::of(kept, connection))
    }
}

const LEAST_BYTES: usize = 64 << 10;
/// About how much memory such a pool has.
const OWN_BYTES: usize = 16 << 20;
