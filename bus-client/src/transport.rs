//! The way to the broker: bytes and descriptors in, bytes and descriptors out, and readiness.
//!
//! Everything above this file sees a [`Transport`] and no socket, so that another way (rings in
//! shared memory) can take its place. Invariants: nothing here blocks but
//! [`wait`](Transport::wait) and [`connect`]; every descriptor is close-on-exec; no write raises
//! `SIGPIPE`; a call that a signal interrupted is made again.
//!
//! The one descriptor for main loops is an epoll descriptor over the socket and over an eventfd,
//! the *bell*. The bell has two uses that do not meet. Its count wakes the thread that sleeps in
//! [`wait`](Transport::wait). And since an eventfd can always be written to, asking epoll for that
//! makes the epoll descriptor readable: that says "something was put aside for you" without a
//! further descriptor, and is level-triggered by nature.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
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

/// A stream socket, and what it takes to wait for it.
#[derive(Debug)]
pub(crate) struct Transport {
    socket: OwnedFd,
    bell: OwnedFd,
    epoll: OwnedFd,
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

impl Transport {
    /// Takes over a connected stream socket.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &socket, epoll::EventData::new_u64(0), interest(Output::Idle))?;
        epoll::add(&epoll, &bell, epoll::EventData::new_u64(1), epoll::EventFlags::empty())?;
        Ok(Self { socket, bell, epoll })
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
        let flags = match output {
            Output::Idle => PollFlags::IN,
            Output::Pending => PollFlags::IN | PollFlags::OUT,
        };
        let mut waits = [PollFd::new(&self.socket, flags), PollFd::new(&self.bell, PollFlags::IN)];
        // What no clock can count is for ever.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut waits, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Wakes the thread that sleeps in [`wait`](Self::wait), or the next one that would.
    pub(crate) fn ring(&self) {
        // The count cannot overflow, for it is taken back before the next sleep; and a failure
        // would mean that it is above zero already.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Takes back all ringing so far.
    pub(crate) fn quiet(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// The descriptor for main loops, to be polled for reading.
    pub(crate) fn pollable(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Makes [`pollable`](Self::pollable) readable when output can go on, or no longer so.
    pub(crate) fn watch_output(&self, output: Output) {
        let _ = epoll::modify(
            &self.epoll,
            &self.socket,
            epoll::EventData::new_u64(0),
            interest(output),
        );
    }

    /// Makes [`pollable`](Self::pollable) readable whatever the socket does, or no longer so.
    pub(crate) fn signal(&self, on: bool) {
        let flags = if on { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
        let _ = epoll::modify(&self.epoll, &self.bell, epoll::EventData::new_u64(1), flags);
    }

    /// Ends the stream in both directions. [`pollable`](Self::pollable) stays readable, so that
    /// main loops notice.
    pub(crate) fn shut_down(&self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

fn interest(output: Output) -> epoll::EventFlags {
    match output {
        Output::Idle => epoll::EventFlags::IN,
        Output::Pending => epoll::EventFlags::IN | epoll::EventFlags::OUT,
    }
}
