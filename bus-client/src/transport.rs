//! The way to the broker: bytes and descriptors in, bytes and descriptors out, and readiness.
//!
//! Everything above this file sees a [`Transport`] and no socket, and does not know whether a socket
//! or rings in shared memory (`rings`) carry its bytes. Invariants: nothing here blocks but
//! [`wait`](Transport::wait), [`read_patiently`](Transport::read_patiently) and [`connect`]; every descriptor is close-on-exec; no write raises
//! `SIGPIPE`; a call that a signal interrupted is made again.
//!
//! The one descriptor for main loops is an epoll descriptor over the socket and over an eventfd,
//! the *bell*. Both belong to the *beacon*, which outlives the socket where the connection comes
//! back: main loops keep the descriptor that they poll. There the beacon also has a timer, which
//! tells when to try again.
//!
//! The bell has two uses that do not meet. Its count wakes the thread that sleeps in
//! [`wait`](Transport::wait). And since an eventfd can always be written to, asking epoll for that
//! makes the epoll descriptor readable: that says "something was put aside for you" without a
//! further descriptor, and is level-triggered by nature. It is asked for anew each time, because a
//! loop that polls for edges, as tokio does, would else miss the second of two between its looks: to
//! epoll, what is modified while it lies in the list of what is ready is no event.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bus_core::wire::MAX_DESCRIPTORS;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, recvmsg,
    send, sendmsg, shutdown, socket_with,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::long_read::NAP;
use crate::rings::{RingSleep, Rings, Turn};

/// A stream socket, rings where there are some, and what it takes to wait for them.
#[derive(Debug)]
pub(crate) struct Transport {
    socket: Socket,
    /// Locked for moments only: reads and writes are made under the connection's lock.
    rings: Mutex<Option<Rings>>,
    sleep: Mutex<Option<Arc<RingSleep>>>,
    /// The socket is to be looked at although input comes by the ring.
    looks_at_socket: AtomicBool,
    /// Whether reads may block, once that was tried.
    blocks: OnceLock<bool>,
    beacon: Arc<Beacon>,
}

/// A connected stream socket.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

/// What wakes threads and main loops, whatever socket there is.
#[derive(Debug)]
pub(crate) struct Beacon {
    bell: OwnedFd,
    epoll: OwnedFd,
    timer: Option<OwnedFd>,
}

/// What one read brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Read {
    /// Bytes. 0 is the end of the stream.
    pub(crate) bytes: usize,
    /// Whether descriptors came along.
    pub(crate) descriptors: bool,
    /// Whether there is more, though less came than there was room for.
    pub(crate) more: bool,
}

/// What a sleeper waits for beside input and the bell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Nothing is to be written.
    Idle,
    /// Output waits for room in the socket.
    Pending,
    /// Output waits for room in the ring, and the broker rings when there is.
    RingFull,
    /// There is no socket: the broker is gone, and the timer tells when to look for another.
    Away,
}

/// Connects to the socket at `path`; where its backlog is full, for at most `timeout`.
pub(crate) fn connect(path: &Path, timeout: Duration) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match retry_on_intr(|| rustix::net::connect(&socket, &address)) {
        // A blocking connect waits as long as a blocking send would. A zero would mean for ever.
        Err(Errno::AGAIN) => {
            rustix::io::ioctl_fionbio(&socket, false)?;
            let timeout = timeout.max(Duration::from_millis(1));
            set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
            retry_on_intr(|| rustix::net::connect(&socket, &address))?;
        }
        connected => connected?,
    }
    Ok(socket)
}

/// Writes what there is room for, and says how much; 0 if it failed, and then it will again.
pub(crate) fn say_at_once(socket: &OwnedFd, bytes: &[u8]) -> usize {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    retry_on_intr(|| send(socket, bytes, flags)).unwrap_or(0)
}

/// Connects to the socket at `path`, or fails, without waiting. A full backlog is a failure.
pub(crate) fn connect_now(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(socket)
}

impl Beacon {
    /// With a timer if the connection comes back.
    pub(crate) fn new(comes_back: bool) -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;

        let mut timer = None;
        if comes_back {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let new = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            epoll::add(&epoll, &new, epoll::EventData::new_u64(2), epoll::EventFlags::IN)?;
            timer = Some(new);
        }
        Ok(Self { bell, epoll, timer })
    }

    /// Wakes the thread that sleeps, or the next one that would.
    pub(crate) fn ring(&self) {
        // The count cannot overflow, for it is taken back before the next sleep; and a failure
        // would mean that it is above zero already.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// The descriptor for main loops, to be polled for reading.
    pub(crate) fn pollable(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Wakes everybody after this time, once and until it is set anew; or no more.
    fn set_timer(&self, after: Option<Duration>) {
        let Some(timer) = &self.timer else {
            return;
        };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Zero would switch it off.
        let after = after.map(|after| after.max(Duration::from_nanos(1)));
        let it_value = match after.map(Timespec::try_from) {
            Some(Ok(after)) => after,
            // What no clock can count never comes.
            Some(Err(_)) | None => zero,
        };
        let new = Itimerspec { it_interval: zero, it_value };
        let _ = timerfd_settime(timer, TimerfdTimerFlags::empty(), &new);
    }
}

impl Transport {
    /// Takes over a connected stream socket.
    pub(crate) fn new(socket: OwnedFd, beacon: Arc<Beacon>) -> io::Result<Self> {
        let epoll = &beacon.epoll;
        epoll::add(epoll, &socket, epoll::EventData::new_u64(0), interest(Output::Idle))?;
        Ok(Self {
            socket: Socket(socket),
            rings: Mutex::default(),
            sleep: Mutex::default(),
            looks_at_socket: AtomicBool::new(false),
            blocks: OnceLock::new(),
            beacon,
        })
    }

    /// Takes over another socket in this one's place, which main loops need not notice.
    pub(crate) fn renewed(&self, socket: OwnedFd) -> io::Result<Self> {
        Self::new(socket, Arc::clone(&self.beacon))
    }

    /// Ends the stream; [`pollable`](Beacon::pollable) does not look at it any more.
    pub(crate) fn retire(&self) {
        self.drop_rings();
        let _ = epoll::delete(&self.beacon.epoll, &self.socket);
        self.shut_down();
    }

    /// Wakes everybody after this time, once and until it is set anew; or no more.
    pub(crate) fn set_timer(&self, after: Option<Duration>) {
        self.beacon.set_timer(after);
    }

    /// Reads what is there, into one slice after the other. Descriptors are appended to
    /// `descriptors`; those for which this process has no room are lost.
    pub(crate) fn read(
        &self,
        into: &mut [IoSliceMut<'_>],
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<Read, Errno> {
        match &mut *self.rings.lock() {
            Some(rings) if rings.has_input_turned() => {
                let looks = self.looks_at_socket.swap(false, Ordering::Relaxed);
                rings.read(&self.socket, into, descriptors, looks)
            }
            _ => self.socket.read(into, descriptors),
        }
    }

    /// Whether [`read_patiently`](Self::read_patiently) can sleep. Every other call says by itself that it is
    /// not to block.
    pub(crate) fn can_block(&self) -> bool {
        *self.blocks.get_or_init(|| {
            set_socket_timeout(&self.socket, Timeout::Recv, Some(NAP)).is_ok()
                && rustix::io::ioctl_fionbio(&self.socket, false).is_ok()
        })
    }

    /// As [`read`](Self::read) of the socket, but waits up to [`NAP`] for something to read. A signal that
    /// comes meanwhile may end it like the time.
    pub(crate) fn read_patiently(
        &self,
        into: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<Read, Errno> {
        let into = &mut [IoSliceMut::new(into)];
        let read = self.socket.receive(into, descriptors, RecvFlags::CMSG_CLOEXEC);
        read.map_err(|error| if error == Errno::INTR { Errno::AGAIN } else { error })
    }

    /// Writes as much as there is room for; at least one byte. The descriptors go with the first.
    pub(crate) fn write(
        &self,
        slices: &[IoSlice<'_>],
        descriptors: &[OwnedFd],
    ) -> Result<usize, Errno> {
        match &mut *self.rings.lock() {
            Some(rings) if rings.has_output_turned() => {
                rings.write(&self.socket, slices, descriptors)
            }
            _ => self.socket.write(slices, descriptors),
        }
    }

    // ---- Rings

    /// Has rings from now on, which nothing uses yet. False if that cannot be.
    pub(crate) fn set_rings(&self, rings: Rings) -> bool {
        let sleep = Arc::clone(rings.sleep());
        let data = epoll::EventData::new_u64(3);
        let bell = self.beacon.bell.as_fd();
        let others = [bell, self.beacon.timer.as_ref().map_or(bell, |timer| timer.as_fd())];
        let others = if self.beacon.timer.is_some() { &others[..] } else { &others[..1] };
        if sleep.watch(self.socket.as_fd(), others).is_err()
            || epoll::add(&self.beacon.epoll, sleep.bell(), data, epoll::EventFlags::IN).is_err()
        {
            return false;
        }
        *self.rings.lock() = Some(rings);
        true
    }

    /// Input comes by the ring from here on. `early` was read behind that place.
    pub(crate) fn turn_in(&self, early: Vec<u8>) -> bool {
        let mut rings = self.rings.lock();
        let Some(rings) = rings.as_mut() else {
            return false;
        };
        rings.turn_in(early);
        *self.sleep.lock() = Some(Arc::clone(rings.sleep()));
        true
    }

    /// Input comes by the socket again. False if that is not next.
    pub(crate) fn turn_in_back(&self) -> bool {
        *self.sleep.lock() = None;
        self.rings.lock().as_mut().is_some_and(Rings::turn_in_back)
    }

    /// Output goes another way from here on.
    pub(crate) fn turn_out(&self, turn: Turn) {
        match turn {
            Turn::ToRings => {
                if let Some(rings) = self.rings.lock().as_mut() {
                    rings.turn_out();
                }
            }
            Turn::ToSocket => self.drop_rings(),
        }
    }

    /// Unmaps what there is.
    pub(crate) fn drop_rings(&self) {
        let sleep = self.sleep.lock().take();
        if let Some(rings) = self.rings.lock().take() {
            // The broker has this bell too, so epoll would not forget it.
            let _ = epoll::delete(&self.beacon.epoll, rings.sleep().bell());
        }
        drop(sleep);
    }

    /// Whether output waits for room in the ring, and not in the socket.
    pub(crate) fn is_ring_full(&self) -> bool {
        self.rings.lock().as_ref().is_some_and(Rings::is_full)
    }

    /// The next read is to notice the end of the socket, though input comes by the ring.
    pub(crate) fn look_at_socket(&self) {
        self.looks_at_socket.store(true, Ordering::Relaxed);
    }

    /// Makes [`pollable`](Beacon::pollable) readable when the ring has something. False if it has now.
    pub(crate) fn arm(&self) -> bool {
        self.sleep.lock().as_ref().is_none_or(|sleep| sleep.arm())
    }

    /// Sleeps until there is input, the bell is rung, output can go on, or the time has passed.
    /// May return early.
    pub(crate) fn wait(&self, output: Output, timeout: Option<Duration>) -> io::Result<()> {
        let bell = &self.beacon.bell;
        let timer = self.beacon.timer.as_ref().unwrap_or(bell);
        let (socket, flags) = match output {
            Output::Idle | Output::RingFull => (&self.socket.0, PollFlags::IN),
            Output::Pending => (&self.socket.0, PollFlags::IN | PollFlags::OUT),
            Output::Away => (timer, PollFlags::IN),
        };
        // What no clock can count is for ever.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let ring = self.sleep.lock().clone();
        if let Some(ring) = &ring {
            if output == Output::Pending {
                // The poll below goes by its level.
                ring.silence();
            }
            if !ring.fall_asleep() {
                return Ok(());
            }
            if output != Output::Pending {
                let woken = ring.sleep(timeout.as_ref());
                ring.woke();
                return match woken {
                    Ok(woken) => {
                        if woken.by_socket {
                            self.look_at_socket();
                        }
                        Ok(())
                    }
                    Err(Errno::INTR) => Ok(()),
                    Err(error) => Err(error.into()),
                };
            }
        }
        let ring_bell = ring.as_ref().map_or(bell.as_fd(), |ring| ring.bell());
        // Without a ring or a timer it is the bell once more.
        let waits = &mut [
            PollFd::new(socket, flags),
            PollFd::new(bell, PollFlags::IN),
            PollFd::from_borrowed_fd(ring_bell, PollFlags::IN),
            PollFd::new(timer, PollFlags::IN),
        ];
        let count = match (&ring, &self.beacon.timer) {
            (_, Some(_)) => 4,
            (Some(_), None) => 3,
            (None, None) => 2,
        };
        let waits = &mut waits[..count];
        let polled = poll(waits, timeout.as_ref());
        if let Some(ring) = &ring {
            ring.woke();
            if !waits[0].revents().is_empty() {
                self.look_at_socket();
            }
        }
        match polled {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Wakes the thread that sleeps in [`wait`](Self::wait), or the next one that would.
    pub(crate) fn ring(&self) {
        self.beacon.ring();
    }

    /// Takes back all ringing so far.
    pub(crate) fn quiet(&self) {
        let _ = rustix::io::read(&self.beacon.bell, &mut [0; 8]);
    }

    /// Makes [`pollable`](Beacon::pollable) readable when output can go on, or no longer so.
    pub(crate) fn watch_output(&self, output: Output) {
        let epoll = &self.beacon.epoll;
        // A modification would be no edge if nobody has looked since the last event.
        let _ = epoll::delete(epoll, &self.socket);
        let _ = epoll::add(epoll, &self.socket, epoll::EventData::new_u64(0), interest(output));
    }

    /// Makes [`pollable`](Beacon::pollable) readable whatever the socket does, which is an edge; or
    /// no longer so.
    pub(crate) fn signal(&self, on: bool) {
        let Beacon { epoll, bell, .. } = &*self.beacon;
        let data = epoll::EventData::new_u64(1);
        let _ = match on {
            true => epoll::add(epoll, bell, data, epoll::EventFlags::OUT),
            false => epoll::delete(epoll, bell),
        };
    }

    /// Ends the stream in both directions. [`pollable`](Beacon::pollable) stays readable, so that
    /// main loops notice.
    pub(crate) fn shut_down(&self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

impl Socket {
    /// Reads what is there, into one slice after the other. Descriptors are appended to `descriptors`; those for which this
    /// process has no room are lost.
    pub(crate) fn read(
        &self,
        into: &mut [IoSliceMut<'_>],
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<Read, Errno> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        retry_on_intr(|| self.receive(into, descriptors, flags))
    }

    fn receive(
        &self,
        into: &mut [IoSliceMut<'_>],
        descriptors: &mut Vec<OwnedFd>,
        flags: RecvFlags,
    ) -> Result<Read, Errno> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS as usize))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.0, into, &mut control, flags)?;
        let mut read = Read { bytes: received.bytes, ..Read::default() };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                read.descriptors = true;
                descriptors.extend(rights);
            }
        }
        Ok(read)
    }

    /// Writes as much as there is room for; at least one byte. The descriptors go with the first.
    pub(crate) fn write(
        &self,
        slices: &[IoSlice<'_>],
        descriptors: &[OwnedFd],
    ) -> Result<usize, Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if let ([slice], []) = (slices, descriptors) {
            // Costs the kernel less, and most writes are so.
            return retry_on_intr(|| send(&self.0, slice, flags));
        }
        let mut borrowed = [self.0.as_fd(); MAX_DESCRIPTORS as usize];
        let borrowed = &mut borrowed[..descriptors.len()];
        for (place, descriptor) in borrowed.iter_mut().zip(descriptors) {
            *place = descriptor.as_fd();
        }
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS as usize))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            let pushed = control.push(SendAncillaryMessage::ScmRights(borrowed));
            assert!(pushed, "the space is for as many as a frame may have");
        }
        retry_on_intr(|| sendmsg(&self.0, slices, &mut control, flags))
    }

    /// Whether the other end is closed and nothing is left to be read.
    pub(crate) fn is_closed(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match retry_on_intr(|| rustix::net::recv(&self.0, &mut [0], flags)) {
            Ok((_, bytes)) => bytes == 0,
            Err(error) => error != Errno::AGAIN,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn interest(output: Output) -> epoll::EventFlags {
    match output {
        Output::Idle | Output::RingFull | Output::Away => epoll::EventFlags::IN,
        Output::Pending => epoll::EventFlags::IN | epoll::EventFlags::OUT,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A loop that polls for edges, as tokio does.
    fn has_edge(outer: &OwnedFd) -> bool {
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut events = Vec::with_capacity(1);
        epoll::wait(outer, rustix::buffer::spare_capacity(&mut events), Some(&none)).unwrap() > 0
    }

    #[test]
    fn g6_what_is_put_aside_between_two_looks_of_a_loop_that_polls_for_edges_is_an_edge() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let beacon = Arc::new(Beacon::new(false).unwrap());
        let transport = Transport::new(ours.into(), Arc::clone(&beacon)).unwrap();
        let outer = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&outer, beacon.pollable(), epoll::EventData::new_u64(0), flags).unwrap();
        assert!(!has_edge(&outer), "nothing is there");
        transport.signal(true);
        assert!(has_edge(&outer));
        transport.signal(false);
        transport.signal(true);
        assert!(has_edge(&outer), "it was readable before, and this is something else");
        transport.watch_output(Output::Idle);
        transport.signal(false);
        assert!(!has_edge(&outer));
        transport.watch_output(Output::Pending);
        assert!(has_edge(&outer), "output can go on");
    }
}
