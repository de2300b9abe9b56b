//! The way to the broker: bytes and descriptors in, bytes and descriptors out, and readiness.
//!
//! Everything above this file sees a [`Transport`] and no socket, so that another way (rings in
//! shared memory) can take its place. Invariants: nothing here blocks but
//! [`wait`](Transport::wait) and [`connect`]; every descriptor is close-on-exec; no write raises
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
//! further descriptor, and is level-triggered by nature.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bus_core::wire::MAX_DESCRIPTORS;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, recvmsg,
    sendmsg, shutdown, socket_with,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

/// A stream socket, and what it takes to wait for it.
#[derive(Debug)]
pub(crate) struct Transport {
    socket: OwnedFd,
    beacon: Arc<Beacon>,
}

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
}

/// What a sleeper waits for beside input and the bell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Nothing is to be written.
    Idle,
    /// Output waits for room in the socket.
    Pending,
    /// There is no socket: the broker is gone, and the timer tells when to look for another.
    Away,
}

/// Connects to the socket at `path`; where its backlog is full, for at most `timeout`.
pub(crate) fn connect(path: &Path, timeout: Duration) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A blocking connect waits as long as a blocking send would. A zero would mean for ever.
    set_socket_timeout(&socket, Timeout::Send, Some(timeout.max(Duration::from_millis(1))))?;
    retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(socket)
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
        epoll::add(&epoll, &bell, epoll::EventData::new_u64(1), epoll::EventFlags::empty())?;
        let mut timer = None;
        if comes_back {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let new = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            epoll::add(&epoll, &new, epoll::EventData::new_u64(2), epoll::EventFlags::IN)?;
            timer = Some(new);
        }
        Ok(Self { bell, epoll, timer })
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
        Ok(Self { socket, beacon })
    }

    /// Takes over another socket in this one's place, which main loops need not notice.
    pub(crate) fn renewed(&self, socket: OwnedFd) -> io::Result<Self> {
        Self::new(socket, Arc::clone(&self.beacon))
    }

    /// Ends the stream; [`pollable`](Beacon::pollable) does not look at it any more.
    pub(crate) fn retire(&self) {
        let _ = epoll::delete(&self.beacon.epoll, &self.socket);
        self.shut_down();
    }

    /// Wakes everybody after this time, once and until it is set anew; or no more.
    pub(crate) fn set_timer(&self, after: Option<Duration>) {
        self.beacon.set_timer(after);
    }

    /// Reads what is there, into one slice after the other. Descriptors are appended to `descriptors`; those for which this
    /// process has no room are lost.
    pub(crate) fn read(
        &self,
        into: &mut [IoSliceMut<'_>],
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<Read, Errno> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS as usize))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = retry_on_intr(|| {
            recvmsg(&self.socket, into, &mut control, RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC)
        })?;
        let mut read = Read { bytes: received.bytes, descriptors: false };
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
        let mut borrowed = [self.socket.as_fd(); MAX_DESCRIPTORS as usize];
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
        retry_on_intr(|| {
            sendmsg(&self.socket, slices, &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
        })
    }

    /// Sleeps until there is input, the bell is rung, output can go on, or the time has passed.
    /// May return early.
    pub(crate) fn wait(&self, output: Output, timeout: Option<Duration>) -> io::Result<()> {
        let bell = &self.beacon.bell;
        let timer = self.beacon.timer.as_ref().unwrap_or(bell);
        let (socket, flags) = match output {
            Output::Idle => (&self.socket, PollFlags::IN),
            Output::Pending => (&self.socket, PollFlags::IN | PollFlags::OUT),
            Output::Away => (timer, PollFlags::IN),
        };
        let waits = &mut [
            PollFd::new(socket, flags),
            PollFd::new(bell, PollFlags::IN),
            PollFd::new(timer, PollFlags::IN),
        ];
        // Without a timer the third is the bell once more.
        let waits = &mut waits[..2 + usize::from(self.beacon.timer.is_some())];
        // What no clock can count is for ever.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(waits, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Wakes the thread that sleeps in [`wait`](Self::wait), or the next one that would.
    pub(crate) fn ring(&self) {
        // The count cannot overflow, for it is taken back before the next sleep; and a failure
        // would mean that it is above zero already.
        let _ = rustix::io::write(&self.beacon.bell, &1_u64.to_ne_bytes());
    }

    /// Takes back all ringing so far.
    pub(crate) fn quiet(&self) {
        let _ = rustix::io::read(&self.beacon.bell, &mut [0; 8]);
    }

    /// Makes [`pollable`](Beacon::pollable) readable when output can go on, or no longer so.
    pub(crate) fn watch_output(&self, output: Output) {
        let _ = epoll::modify(
            &self.beacon.epoll,
            &self.socket,
            epoll::EventData::new_u64(0),
            interest(output),
        );
    }

    /// Makes [`pollable`](Beacon::pollable) readable whatever the socket does, or no longer so.
    pub(crate) fn signal(&self, on: bool) {
        let flags = if on { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
        let _ = epoll::modify(
            &self.beacon.epoll,
            &self.beacon.bell,
            epoll::EventData::new_u64(1),
            flags,
        );
    }

    /// Ends the stream in both directions. [`pollable`](Beacon::pollable) stays readable, so that
    /// main loops notice.
    pub(crate) fn shut_down(&self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

fn interest(output: Output) -> epoll::EventFlags {
    match output {
        Output::Idle | Output::Away => epoll::EventFlags::IN,
        Output::Pending => epoll::EventFlags::IN | epoll::EventFlags::OUT,
    }
}
