//! Buffers to lend: memory that the broker made and this program writes.
//!
//! # Safety
//!
//! A buffer is either free, in the pool's list, or in exactly one [`PoolBuffer`] or lent send. Only a
//! `PoolBuffer` gives references to its bytes. The broker and readers copy them only while it is lent, and
//! before it is written again their reading has ended: that is what a completion says.
#![expect(unsafe_code, reason = "buffers are written where they lie")]

use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bus_core::wire::{Request, Response};
use bus_core::{GroupId, lease};
use bus_memory::{Mapping, check_fixed_size};
use parking_lot::Mutex;

use super::{Chores, Region};
use crate::connection::Connection;
use crate::error::BrokerGone;
use crate::state::{CallError, Interest, Purpose};

/// Buffers of a connection's, to be written, lent with a send, and had back when all recipients are done.
///
/// Cheap to clone. When the last handle is gone the memory goes back, once nothing of it is lent.
///
/// The memory of a pool is used no more when others are entitled to see it than those who have it mapped, or
/// the broker that made it is gone. [`take`](Self::take) then asks for other memory of the same kind.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    memory: Mutex<Arc<PoolMemory>>,
    /// Who asks for other memory.
    renewing: Mutex<()>,
    connection: Arc<Connection>,
}

/// The memory. It goes back when neither a pool, nor a buffer, nor a lent send needs it.
#[derive(Debug)]
pub(crate) struct PoolMemory {
    id: u32,
    mapping: Mapping,
    bytes: usize,
    stride: usize,
    buffers: u32,
    group: Option<GroupId>,
    free: Mutex<Vec<u32>>,
    /// Nothing more is to be written here.
    over: AtomicBool,
    chores: Arc<Chores>,
}

/// A buffer of a pool, to be written as `[u8]` and then lent with [`Outgoing::lent`](crate::Outgoing::lent).
///
/// It goes back to its pool by itself: when it is dropped, or when what was sent is completed, or when the
/// send was refused.
#[derive(Debug)]
pub struct PoolBuffer {
    buffer: Buffer,
    length: usize,
}

/// A buffer that is not free; free again when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Arc<PoolMemory>,
    index: u32,
}

/// Why there is no pool, or no buffer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Lending was not switched on: see [`Builder::zerocopy`](crate::Builder::zerocopy).
    #[error("lending was not switched on for this connection")]
    NotEnabled,
    /// No buffer has this many bytes, or a bound of the bus is reached; the text says which.
    #[error("no such pool: {0}")]
    Refused(String),
    /// The memory did not come, or is not as it should be.
    #[error("the pool's memory cannot be used: {0}")]
    Memory(String),
    /// It was for a group, and the broker that knew the group is gone. Find the group, and ask for
    /// another pool.
    #[error("the pool was for a group of another broker")]
    OtherBroker,
    /// No buffer came back in time.
    #[error("all buffers are lent")]
    TimedOut,
    /// The connection has ended.
    #[error(transparent)]
    BrokerGone(#[from] BrokerGone),
}

impl From<CallError> for PoolError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Failed(failure) => Self::Refused(failure.text),
            CallError::Gone(gone) => Self::BrokerGone(gone),
        }
    }
}

impl Pool {
    /// Asks for a pool. Blocks for some round trips.
    pub(crate) fn new(
        connection: &Arc<Connection>,
        buffers: u32,
        bytes: usize,
        group: Option<GroupId>,
    ) -> Result<Self, PoolError> {
        Ok(Self::of(&PoolMemory::new(connection, buffers, bytes, group)?, connection))
    }

    /// A handle on memory of this connection's.
    pub(crate) fn of(memory: &Arc<PoolMemory>, connection: &Arc<Connection>) -> Self {
        let memory = Mutex::new(Arc::clone(memory));
        let connection = Arc::clone(connection);
        Self { shared: Arc::new(Shared { memory, renewing: Mutex::new(()), connection }) }
    }

    pub(crate) fn memory(&self) -> Arc<PoolMemory> {
        Arc::clone(&self.shared.memory.lock())
    }

    /// Bytes of each buffer.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.memory().bytes
    }

    /// A buffer, if one is free. It has its full length, and whatever was written to it last. None too
    /// while the pool needs [`other memory`](Self::is_over).
    #[must_use]
    pub fn try_take(&self) -> Option<PoolBuffer> {
        let memory = self.memory();
        if memory.is_over() {
            return None;
        }
        let index = memory.free.lock().pop()?;
        // Readers have let go before this program heard of it.
        lease::before_reuse();
        let length = memory.bytes;
        Some(PoolBuffer { buffer: Buffer { memory, index }, length })
    }

    /// Whether the pool's memory is to be written no more: the group's members are others than those who
    /// have it mapped, or the broker is gone. [`take`](Self::take) asks for other memory.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.memory().is_over()
    }

    /// A buffer; waits until one is free. Where the pool needs other memory it is asked for, which blocks
    /// for some round trips.
    ///
    /// # Errors
    ///
    /// The connection has ended, or there is no other memory. A pool for a group ends with its broker.
    pub fn take(&self) -> Result<PoolBuffer, PoolError> {
        self.take_until(None)
    }

    /// As [`take`](Self::take), and waits at most for `timeout`.
    ///
    /// # Errors
    ///
    /// [`PoolError::TimedOut`], or as with `take`.
    pub fn take_deadline(&self, timeout: Duration) -> Result<PoolBuffer, PoolError> {
        self.take_until(Instant::now().checked_add(timeout))
    }

    fn take_until(&self, deadline: Option<Instant>) -> Result<PoolBuffer, PoolError> {
        let connection = &self.shared.connection;
        if self.memory().lent_bytes() >= WARM_BYTES {
            // What has come back lies on top then.
            connection.lock().take_in();
        }
        loop {
            let taken = connection.wait(Interest::Anything, None, deadline, |state| {
                if let Some(buffer) = self.try_take() {
                    return Some(Ok(Some(buffer)));
                }
                match state.gone() {
                    Some(gone) => Some(Err(gone.clone().into())),
                    None => self.is_over().then_some(Ok(None)),
                }
            });
            match taken.unwrap_or(Err(PoolError::TimedOut))? {
                Some(buffer) => return Ok(buffer),
                None => self.renew()?,
            }
        }
    }

    /// Takes other memory, unless another handle has done so.
    fn renew(&self) -> Result<(), PoolError> {
        let _one_at_a_time = self.shared.renewing.lock();
        let old = self.memory();
        if !old.is_over() {
            return Ok(());
        }
        let connection = &self.shared.connection;
        // A group's number means nothing to another broker.
        if old.group.is_some() && !connection.lock().is_current(&old.chores) {
            return Err(PoolError::OtherBroker);
        }
        let memory = PoolMemory::new(connection, old.buffers, old.bytes, old.group)?;
        *self.shared.memory.lock() = memory;
        Ok(())
    }

    /// Buffers that are free now.
    #[must_use]
    pub fn free(&self) -> usize {
        self.memory().free.lock().len()
    }
}

impl PoolMemory {
    fn new(
        connection: &Arc<Connection>,
        buffers: u32,
        bytes: usize,
        group: Option<GroupId>,
    ) -> Result<Arc<Self>, PoolError> {
        let chores = connection.lock().chores().ok_or(PoolError::NotEnabled)?;
        let bytes_each = bytes as u64;
        let request = || Request::CreatePool { buffers, bytes: bytes_each, group_id: group };
        let mut tries = 0;
        let id = loop {
            let created =
                connection.call(0, Purpose::Plain, request(), |response| match response {
                    Response::Pool { pool } => Some(pool),
                    _ => None,
                });
            match created {
                // Other descriptors were under way; they have come with the answer.
                Err(CallError::Failed(failure))
                    if failure.code == bus_core::wire::FailureCode::WouldBlock && tries < TRIES =>
                {
                    tries += 1;
                }
                created => break created?,
            }
        };
        let Some(Region::Pool { file, length }) = connection.lock().take_region(id) else {
            return Err(PoolError::Memory("it did not come".to_owned()));
        };
        let stride = length / buffers as usize;
        let mapping = Mapping::read_write(file.as_fd(), length);
        let mapping = mapping.map_err(|error| PoolError::Memory(error.to_string()))?;
        bus_memory::take_pages(file.as_fd(), length)
            .map_err(|error| PoolError::Memory(error.to_string()))?;
        connection.call(0, Purpose::Plain, Request::SealPool { pool: id }, |response| {
            matches!(response, Response::PoolSealed).then_some(())
        })?;
        check_fixed_size(file.as_fd(), length as u64)
            .map_err(|error| PoolError::Memory(error.to_string()))?;
        mapping.prepare();
        let free = Mutex::new((0..buffers).rev().collect());
        let over = AtomicBool::new(false);
        let memory = Self { id, mapping, bytes, stride, buffers, group, free, over, chores };
        let memory = Arc::new(memory);
        connection.lock().know_pool(&memory);
        Ok(memory)
    }

    /// Bytes of buffers that are not free, as far as this program has heard.
    fn lent_bytes(&self) -> usize {
        (self.buffers as usize - self.free.lock().len()) * self.bytes
    }

    /// Nothing more is to be written there.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Whether it is of the broker to which these are told.
    pub(crate) fn belongs_to(&self, chores: &Arc<Chores>) -> bool {
        Arc::ptr_eq(&self.chores, chores)
    }
}

impl Drop for PoolMemory {
    fn drop(&mut self) {
        self.chores.drop_pool(self.id);
    }
}

impl PoolBuffer {
    /// Says how many bytes are sent; the buffer has at least that many.
    ///
    /// # Panics
    ///
    /// It has not.
    pub fn set_len(&mut self, length: usize) {
        assert!(length <= self.buffer.memory.bytes, "no more than the buffer has");
        self.length = length;
    }

    /// What is lent: the buffer, and how much of it.
    pub(crate) fn into_parts(self) -> (Buffer, usize) {
        (self.buffer, self.length)
    }
}

impl Deref for PoolBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let Buffer { memory, index } = &self.buffer;
        // SAFETY: see the header: this is the only handle on the buffer, and it is not lent.
        unsafe { memory.mapping.bytes(memory.stride * *index as usize, self.length) }
    }
}

impl DerefMut for PoolBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Buffer { memory, index } = &self.buffer;
        // SAFETY: as above, and the handle is borrowed for as long as the reference lives.
        unsafe { memory.mapping.bytes_mut(memory.stride * *index as usize, self.length) }
    }
}

impl Buffer {
    pub(crate) fn pool(&self) -> u32 {
        self.memory.id
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Whether its pool is of the broker to which these are told.
    pub(crate) fn belongs_to(&self, chores: &Arc<Chores>) -> bool {
        self.memory.belongs_to(chores)
    }

    /// What was written to it, for those who cannot be lent it.
    pub(crate) fn copy(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.mapping.copy_out(self.memory.stride * self.index as usize, &mut bytes);
        bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.memory.free.lock().push(self.index);
    }
}

/// From so much on that is lent, a look at what has come back precedes the next buffer: the one that came
/// back last is in the processor's caches, and one that was not used for long is not. A look is a read of
/// the socket; to copy 1 MiB from elsewhere costs a hundred of these.
const WARM_BYTES: usize = 1 << 20;
/// How often a pool is asked for while descriptors are under way.
const TRIES: u32 = 100;
