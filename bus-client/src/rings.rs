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
//! Going to sleep: some yields to whoever's turn it is, and only then the word "I sleep" and the kernel. They
//! are left out for a while where they bring nothing ([`Courtesy`]): nothing spins in an idle system.
//!
//! Invariant: while a thread sleeps, the word is not taken back by another that reads for the same
//! connection ([`RingSleeper::fall_asleep`]). One that sleeps beside the socket, because the ring said that its
//! turn is next, has not given the word: who reads what comes there wakes it.
//!
//! A thread sleeps on an epoll descriptor that has the bell for its edges. Each ring is one, whether or not
//! the count was taken back, so waking takes no read, and falling asleep puts the thread into one
//! wait queue and not into three: of some 4 microseconds one is spared. Who polls descriptors gets the bell's
//! level, so once somebody does the count is taken back.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bus_core::courtesy::Courtesy;
use bus_core::ring::{RingError, RingRead, RingReader, RingSize, RingSleeper, RingWriter};
use bus_memory::{Mapping, check_read_only};
use parking_lot::Mutex;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::time::Timespec;

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
    /// What a thread sleeps on.
    epoll: OwnedFd,
    /// The ring has said that the socket's turn is next.
    copying: AtomicBool,
    /// Somebody polls for the bell's level.
    is_polled: AtomicBool,
    habits: Mutex<Habits>,
}

/// What is known of those who sleep.
#[derive(Debug, Default)]
struct Habits {
    /// A thread sleeps, or is about to, and has not said so: it waits for what comes by the socket.
    beside_socket: bool,
    courtesy: Courtesy,
}

/// What has woken a sleeper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Woken {
    /// The socket had something.
    pub(crate) by_socket: bool,
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
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).ok()?;
        epoll::add(&epoll, &bell, EventData::new_u64(OTHER), EventFlags::IN | EventFlags::ET)
            .ok()?;
        let sleep = RingSleep {
            sleeper: reader.sleeper(),
            bell,
            epoll,
            copying: AtomicBool::new(false),
            is_polled: AtomicBool::new(false),
            habits: Mutex::default(),
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
        self.sleep.set_copying(self.copying_in > 0);
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
        self.sleep.set_copying(self.copying_in > 0);
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
        ring(&self.bell_of_broker);
    }
}

impl RingSleep {
    /// Wakes sleepers when there is input from the connection's socket, or from something beside it.
    pub(crate) fn watch(
        &self,
        socket: BorrowedFd<'_>,
        others: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        epoll::add(&self.epoll, socket, EventData::new_u64(SOCKET), EventFlags::IN)?;
        for other in others {
            epoll::add(&self.epoll, other, EventData::new_u64(OTHER), EventFlags::IN)?;
        }
        Ok(())
    }

    /// Whether to go to sleep: true once the broker knows that we do, until [`woke`](Self::woke). Before that it
    /// yields a little, where that has paid lately.
    pub(crate) fn fall_asleep(&self) -> bool {
        let falls = {
            let mut habits = self.habits.lock();
            habits.beside_socket = self.copying.load(Ordering::Relaxed);
            habits.beside_socket
        };
        falls || !self.sleeper.has_input() && !self.finds_something() && self.sleeper.fall_asleep()
    }

    /// Sleeps until the bell is rung, one of the [watched](Self::watch) has something, or the time has
    /// passed.
    pub(crate) fn sleep(&self, timeout: Option<&Timespec>) -> Result<Woken, Errno> {
        let mut events = [MaybeUninit::uninit(); EVENTS_A_SLEEP];
        let (events, _) = epoll::wait(&self.epoll, &mut events, timeout)?;
        let by_socket = |event: &epoll::Event| event.data.u64() == SOCKET;
        Ok(Woken { by_socket: events.iter().any(by_socket) })
    }

    /// Says to the broker that we sleep, for those who poll descriptors. False if there is input.
    pub(crate) fn arm(&self) -> bool {
        if !self.is_polled.swap(true, Ordering::Relaxed) && !self.sleeper.is_asleep() {
            // Sleepers have left it ringing. Who sleeps now takes the count back himself.
            self.silence();
        }
        self.copying.load(Ordering::Relaxed) || self.sleeper.arm()
    }

    /// Awake after a sleep.
    pub(crate) fn woke(&self) {
        self.sleeper.woke();
        self.habits.lock().beside_socket = false;
        if self.is_polled.load(Ordering::Relaxed) {
            self.silence();
        }
    }

    /// Awake for those who poll descriptors. Whoever sleeps meanwhile has to be woken all the same.
    fn wake_up(&self) {
        if self.sleeper.wake_up() {
            self.silence();
        }
    }

    /// The ring has said that the socket's turn is next, or that is over.
    fn set_copying(&self, copying: bool) {
        if self.copying.load(Ordering::Relaxed) == copying {
            return;
        }
        // Under the lock: who sleeps beside the socket has either seen it, or is seen here.
        let habits = self.habits.lock();
        self.copying.store(copying, Ordering::Relaxed);
        if !copying && habits.beside_socket {
            ring(&self.bell);
        }
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Takes the bell's count back, before whatever is looked at next.
    pub(crate) fn silence(&self) {
        let mut rings = [0; 8];
        let _ = retry_on_intr(|| rustix::io::read(&self.bell, &mut rings));
    }

    fn finds_something(&self) -> bool {
        if !self.habits.lock().courtesy.pays() {
            return false;
        }
        let began = Instant::now();
        let (mut found, mut took) = (false, Duration::ZERO);
        for _ in 0..YIELDS {
            thread::yield_now();
            (found, took) = (self.sleeper.has_input(), began.elapsed());
            if found || Courtesy::is_long(took) {
                break;
            }
        }
        self.habits.lock().courtesy.note(found, took);
        found
    }
}

fn ring(bell: &OwnedFd) {
    // EAGAIN says that it is ringing already.
    let _ = retry_on_intr(|| rustix::io::write(bell, &1_u64.to_ne_bytes()));
}

/// The broker broke the rules of the ring.
fn broken(_: RingError) -> Errno {
    Errno::PROTO
}

/// Yields before a sleep. One that finds nobody else to run takes 0.6 microseconds, one that does 1.8.
const YIELDS: u32 = 16;
/// Epoll's word for the connection's socket.
const SOCKET: u64 = 0;
/// Epoll's word for whatever else wakes a sleeper.
const OTHER: u64 = 1;
/// More than there are descriptors to sleep on.
const EVENTS_A_SLEEP: usize = 4;
/// Pieces of output from this size on go by the socket: one call carries more than the ring has room
/// for.
pub(crate) const COPY_FROM_BYTES: usize = 96 << 10;
