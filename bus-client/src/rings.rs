//! Rings in shared memory, beside the socket: the client's half.
//!
//! `bus_core::ring` says how bytes pass through them, `PROTOCOL.md` how a connection turns to them and
//! back. Each direction stays one stream: what goes by the socket meanwhile (frames with descriptors,
//! pieces too large to be worth a copy) has its place marked in the ring. So nothing above
//! [`Transport`](crate::transport::Transport) knows which way it is.
//!
//! Bytes are copied out of the broker's ring before they are parsed, into the memory in which the
//! application gets them, so no reference into shared memory is ever made, and the ring's cells are
//! free again at once; places in the queue are not, those are the application's to return.
//!
//! Going to sleep: a few looks, then a few yields to whoever's turn it is, and only then the word "I
//! sleep" and the kernel. Where that brings nothing several times, it is left out for a while: nothing
//! spins in an idle system.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bus_core::ring::{RingError, RingRead, RingReader, RingSize, RingSleeper, RingWriter};
use bus_memory::{Mapping, check_read_only};
use rustix::io::{Errno, retry_on_intr};

use crate::transport::{Read, Socket};

/// Rings of one connection.
#[derive(Debug)]
pub(crate) struct Rings {
    writer: RingWriter<Arc<Mapping>>,
    reader: RingReader<Arc<Mapping>>,
    sleep: Arc<RingSleep>,
    bell_of_broker: OwnedFd,
    input: bool,
    output: bool,
    /// Bytes of the stream that come by the socket before the ring goes on.
    copying_in: usize,
    /// Bytes of the stream that have to go by the socket before the ring goes on.
    copying_out: usize,
    /// What came by the socket before the ring has said where it belongs.
    early: Vec<u8>,
    /// Output waits for room in the ring.
    is_full: bool,
}

/// What a thread that goes to sleep has to know of rings.
#[derive(Debug)]
pub(crate) struct RingSleep {
    sleeper: RingSleeper<Arc<Mapping>>,
    bell: OwnedFd,
    /// The ring has said that the socket's turn is next.
    copying: AtomicBool,
    spins: u32,
    in_vain: AtomicU32,
    rest: AtomicU32,
}

/// Which way output goes from a place in it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    ToRings,
    ToSocket,
}

impl Rings {
    /// Maps what the broker has offered: the client's memory, the broker's, the broker's bell, ours.
    /// `None` if that cannot be; then the connection keeps to its socket.
    pub(crate) fn map(
        files: Vec<OwnedFd>,
        submission_bytes: u32,
        delivery_bytes: u32,
    ) -> Option<Self> {
        let [mine, theirs, bell_of_broker, bell] = <[OwnedFd; 4]>::try_from(files).ok()?;
        let submission = RingSize::of_bytes(submission_bytes)?;
        let delivery = RingSize::of_bytes(delivery_bytes)?;
        check_read_only(theirs.as_fd(), delivery.memory_bytes() as u64).ok()?;
        let mine = Mapping::read_write(mine.as_fd(), submission.memory_bytes()).ok()?;
        let theirs = Mapping::read_only(theirs.as_fd(), delivery.memory_bytes()).ok()?;
        let (mine, theirs) = (Arc::new(mine), Arc::new(theirs));
        let reader = RingReader::new(Arc::clone(&mine), Arc::clone(&theirs), delivery);
        let several = thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        let sleep = RingSleep {
            sleeper: reader.sleeper(),
            bell,
            copying: AtomicBool::new(false),
            spins: if several { SPINS } else { 0 },
            in_vain: AtomicU32::new(0),
            rest: AtomicU32::new(0),
        };
        Some(Self {
            writer: RingWriter::new(mine, theirs, submission),
            reader,
            sleep: Arc::new(sleep),
            bell_of_broker,
            input: false,
            output: false,
            copying_in: 0,
            copying_out: 0,
            early: Vec::new(),
            is_full: false,
        })
    }

    pub(crate) fn sleep(&self) -> &Arc<RingSleep> {
        &self.sleep
    }

    /// Input comes by the ring from here on. `early` was read behind that place.
    pub(crate) fn turn_in(&mut self, early: Vec<u8>) {
        self.input = true;
        self.early = early;
    }

    /// Input comes by the socket again. False if the ring holds something yet.
    pub(crate) fn turn_in_back(&mut self) -> bool {
        self.input = false;
        !self.reader.has_input()
    }

    pub(crate) fn turn_out(&mut self) {
        self.output = true;
    }

    pub(crate) fn has_input_turned(&self) -> bool {
        self.input
    }

    pub(crate) fn has_output_turned(&self) -> bool {
        self.output
    }

    /// Whether output waits for room in the ring, and not in the socket.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// As a read of the socket: bytes, none for "nothing more will come", or `AGAIN`.
    pub(crate) fn read(
        &mut self,
        socket: &Socket,
        into: &mut [IoSliceMut<'_>],
        descriptors: &mut Vec<OwnedFd>,
        looks_at_socket: bool,
    ) -> Result<Read, Errno> {
        self.sleep.wake_up();
        let mut bytes = 0;
        'slices: for slice in &mut *into {
            let mut filled = 0;
            while filled < slice.len() && self.copying_in == 0 {
                match self.reader.read(&mut slice[filled..]).map_err(broken)? {
                    RingRead::Bytes(more) => {
                        filled += more;
                        bytes += more;
                    }
                    RingRead::Copy(more) if bytes == 0 => self.copying_in = more as usize,
                    RingRead::Copy(more) => {
                        self.copying_in = more as usize;
                        break 'slices;
                    }
                    RingRead::Nothing => break 'slices,
                }
            }
            if self.copying_in > 0 {
                break;
            }
        }
        if self.reader.finish() {
            self.ring();
        }
        self.sleep.copying.store(self.copying_in > 0, Ordering::Relaxed);
        if bytes > 0 {
            let more = self.copying_in > 0 || self.reader.has_input();
            return Ok(Read { bytes, descriptors: false, more });
        }
        if self.copying_in > 0 {
            return self.read_copied(socket, into, descriptors);
        }
        if looks_at_socket && socket.is_closed() && !self.reader.has_input() {
            return Ok(Read::default());
        }
        Err(Errno::AGAIN)
    }

    fn read_copied(
        &mut self,
        socket: &Socket,
        into: &mut [IoSliceMut<'_>],
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<Read, Errno> {
        let Some(first) = into.iter_mut().find(|slice| !slice.is_empty()) else {
            return Err(Errno::AGAIN);
        };
        let most = first.len().min(self.copying_in);
        let mut read = Read { bytes: most.min(self.early.len()), ..Read::default() };
        if read.bytes > 0 {
            first[..read.bytes].copy_from_slice(&self.early[..read.bytes]);
            self.early.drain(..read.bytes);
        } else {
            read = socket.read(&mut [IoSliceMut::new(&mut first[..most])], descriptors)?;
        }
        self.copying_in -= read.bytes;
        self.sleep.copying.store(self.copying_in > 0, Ordering::Relaxed);
        read.more = true;
        Ok(read)
    }

    /// As a write to the socket: at least one byte, or `AGAIN`.
    pub(crate) fn write(
        &mut self,
        socket: &Socket,
        slices: &[IoSlice<'_>],
        descriptors: &[OwnedFd],
    ) -> Result<usize, Errno> {
        let written = self.write_some(socket, slices, descriptors);
        if self.writer.publish() {
            self.ring();
        }
        written
    }

    fn write_some(
        &mut self,
        socket: &Socket,
        slices: &[IoSlice<'_>],
        descriptors: &[OwnedFd],
    ) -> Result<usize, Errno> {
        self.is_full = false;
        let first = &slices[0];
        if self.copying_out > 0 {
            let most = first.len().min(self.copying_out);
            let count = socket.write(&[IoSlice::new(&first[..most])], &[])?;
            self.copying_out -= count;
            return Ok(count);
        }
        loop {
            if !self.writer.has_room().map_err(broken)? && !self.find_room()? {
                self.is_full = true;
                return Err(Errno::AGAIN);
            }
            if !descriptors.is_empty() || first.len() >= COPY_FROM_BYTES {
                // First there, then marked here: what the system does not take is not announced.
                let count = socket.write(&[IoSlice::new(first)], descriptors)?;
                let bytes = u32::try_from(first.len()).map_err(|_| Errno::FBIG)?;
                self.writer.write_copy(bytes).map_err(broken)?;
                self.copying_out = first.len() - count;
                return Ok(count);
            }
            let mut written = 0;
            for slice in slices.iter().take_while(|slice| slice.len() < COPY_FROM_BYTES) {
                let count = self.writer.write(slice).map_err(broken)?;
                written += count;
                if count < slice.len() {
                    break;
                }
            }
            if written > 0 {
                return Ok(written);
            }
        }
    }

    fn find_room(&mut self) -> Result<bool, Errno> {
        if self.writer.publish() {
            self.ring();
        }
        self.writer.want_room().map_err(broken)
    }

    fn ring(&self) {
        let one = 1_u64.to_ne_bytes();
        // EAGAIN says that it is ringing already.
        let _ = retry_on_intr(|| rustix::io::write(&self.bell_of_broker, &one));
    }
}

impl RingSleep {
    /// Whether to go to sleep: true once the broker knows that we do. Before that it looks and yields
    /// a little, where that has paid lately.
    pub(crate) fn fall_asleep(&self) -> bool {
        if self.copying.load(Ordering::Relaxed) {
            return true;
        }
        if self.sleeper.has_input() || self.finds_something() {
            return false;
        }
        if self.sleeper.arm() {
            return true;
        }
        self.sleeper.disarm();
        false
    }

    /// Says to the broker that we sleep, for those who poll descriptors. False if there is input.
    pub(crate) fn arm(&self) -> bool {
        self.copying.load(Ordering::Relaxed) || self.sleeper.arm()
    }

    /// Awake after a sleep in which the bell was rung or not.
    pub(crate) fn woke(&self, rung: bool) {
        self.sleeper.disarm();
        if rung {
            self.silence();
        }
    }

    /// Awake for those who poll descriptors.
    fn wake_up(&self) {
        if self.sleeper.is_armed() {
            self.woke(true);
        }
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn silence(&self) {
        let mut rings = [0; 8];
        let _ = retry_on_intr(|| rustix::io::read(&self.bell, &mut rings));
    }

    fn finds_something(&self) -> bool {
        let rest = self.rest.load(Ordering::Relaxed);
        if rest > 0 {
            self.rest.store(rest - 1, Ordering::Relaxed);
            return false;
        }
        for _ in 0..self.spins {
            std::hint::spin_loop();
            if self.sleeper.has_input() {
                return true;
            }
        }
        let began = Instant::now();
        for _ in 0..YIELDS {
            thread::yield_now();
            let found = self.sleeper.has_input();
            if began.elapsed() > LONG_YIELD {
                // Who has work of his own has run instead, and goes on to; a sleeper's turn comes sooner.
                self.rest.store(REST, Ordering::Relaxed);
                return found;
            }
            if found {
                self.in_vain.store(0, Ordering::Relaxed);
                return true;
            }
        }
        let in_vain = self.in_vain.load(Ordering::Relaxed) + 1;
        // One that was followed by a rest is followed by the next at once.
        self.in_vain.store(in_vain.min(MOST_IN_VAIN - 1), Ordering::Relaxed);
        if in_vain == MOST_IN_VAIN {
            self.rest.store(REST, Ordering::Relaxed);
        }
        false
    }
}

/// The broker broke the rules of the ring.
fn broken(_: RingError) -> Errno {
    Errno::PROTO
}

/// Looks before the first yield: what another processor is about to publish.
const SPINS: u32 = 50;
/// Yields before a sleep.
const YIELDS: u32 = 8;
/// A yield that takes so long has gone to somebody who is not of the bus: every processor is busy.
const LONG_YIELD: Duration = Duration::from_micros(300);
/// Sleeps in a row before which yields have brought nothing.
const MOST_IN_VAIN: u32 = 4;
/// Sleeps without a yield.
const REST: u32 = 64;
/// Pieces of output from this size on go by the socket: one call carries more than the ring has room
/// for.
const COPY_FROM_BYTES: usize = 96 << 10;
