//! Bytes and descriptors in and out of one connection, and nothing about what they mean.
//!
//! [`Link`](crate::link::Link) puts rings in shared memory beside the socket.
//!
//! Every call is non-blocking, raises no signal, and is repeated when a signal handler of the
//! process (an embedding one may have them) interrupts it.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    buffer::spare_capacity,
    cmsg_space,
    io::{Errno, retry_on_intr},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags,
    },
};

use crate::output::Output;

/// A connected Unix stream socket.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes.
    Bytes(usize),
    /// Nothing is there now.
    Nothing,
    /// The other end is closed.
    End,
}

/// What one write left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Nothing.
    All,
    /// The other end has to read first.
    Rest,
    /// The other end has to read its ring first, and rings when it has.
    RingFull,
}

/// Descriptors that came and that no frame has claimed yet.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Some were lost: this process has no room for them.
    pub(crate) lost: bool,
}

impl Arrived {
    /// What is wrong, if more came than belong to any frame. To be asked after each read: they are
    /// descriptors of this process, which all clients share.
    pub(crate) fn excess(&self) -> Option<String> {
        let (count, most) = (self.descriptors.len(), MAX_DESCRIPTORS);
        let text = || format!("{count} descriptors came, and a frame has at most {most}");
        (count > most).then(text)
    }
}

impl Socket {
    /// Takes over a socket that is non-blocking.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Reads into `buffer`. Descriptors that come are added to `arrived`.
    pub(crate) fn receive(
        &self,
        buffer: &mut [u8],
        arrived: &mut Arrived,
    ) -> Result<Received, Errno> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(SCM_MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = retry_on_intr(|| {
            let mut slice = [IoSliceMut::new(buffer)];
            rustix::net::recvmsg(&self.0, &mut slice, &mut control, flags)
        });
        let received = match received {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(Received::Nothing),
            Err(error) => return Err(error),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                arrived.descriptors.extend(descriptors);
            }
        }
        // There is space for as many as the kernel passes at once, so this is not the client's
        // doing: the table of this process is full.
        arrived.lost |= received.flags.contains(ReturnFlags::CTRUNC);
        Ok(match received.bytes {
            0 => Received::End,
            bytes => Received::Bytes(bytes),
        })
    }

    /// Goes on reading into the unused capacity of `buffer`, where nothing but the rest of one
    /// frame belongs. Descriptors travel with a first byte, so any that came here would be
    /// nobody's; the kernel closes them.
    pub(crate) fn receive_rest(&self, buffer: &mut Vec<u8>) -> Result<Received, Errno> {
        let received = retry_on_intr(|| {
            let space = spare_capacity(buffer);
            rustix::net::recv(&self.0, space, RecvFlags::DONTWAIT)
        });
        match received {
            Ok((0, _)) => Ok(Received::End),
            Ok((bytes, _)) => Ok(Received::Bytes(bytes)),
            Err(Errno::AGAIN) => Ok(Received::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Writes what `output` holds, as far as the socket takes it.
    pub(crate) fn send(&self, output: &mut Output) -> Result<Sent, Errno> {
        loop {
            if let Some(bytes) = output.only_frames() {
                let offered = bytes.len();
                let sent = if offered > 0 { self.send_some(bytes, &[])?.unwrap_or(0) } else { 0 };
                output.advance(sent);
                return Ok(if sent < offered { Sent::Rest } else { Sent::All });
            }
            let batch = output.batch();
            let (offered, has_descriptors) = (batch.bytes, !batch.descriptors.is_empty());
            // What is left goes another way.
            if offered == 0 {
                return Ok(Sent::All);
            }
            match self.write(batch.slices(), batch.descriptors) {
                Ok(Some(sent)) => {
                    output.advance(sent);
                    if sent < offered {
                        return Ok(Sent::Rest);
                    }
                }
                Ok(None) => return Ok(Sent::Rest),
                Err(error @ (Errno::PIPE | Errno::CONNRESET)) => return Err(error),
                // Too many of this user are on their way through sockets, or they are of a kind
                // that must not be passed. That is their sender's doing, not this client's.
                Err(_) if has_descriptors => output.lose_descriptors(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes as much of `bytes` as the socket takes, with descriptors; `None` if that is nothing.
    pub(crate) fn send_some(
        &self,
        bytes: &[u8],
        descriptors: &[OwnedFd],
    ) -> Result<Option<usize>, Errno> {
        self.write(&[IoSlice::new(bytes)], descriptors)
    }

    fn write(
        &self,
        slices: &[IoSlice<'_>],
        descriptors: &[OwnedFd],
    ) -> Result<Option<usize>, Errno> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if let ([slice], []) = (slices, descriptors) {
            // Costs the kernel less, and most writes are so.
            return told(retry_on_intr(|| rustix::net::send(&self.0, slice, flags)));
        }
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(OwnedFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            let fits = control.push(SendAncillaryMessage::ScmRights(&borrowed));
            debug_assert!(fits, "the limits allow no message more than {MAX_DESCRIPTORS}");
        }
        told(retry_on_intr(|| rustix::net::sendmsg(&self.0, slices, &mut control, flags)))
    }
}

/// What a write came to: nothing if there was no room.
fn told(sent: Result<usize, Errno>) -> Result<Option<usize>, Errno> {
    match sent {
        Ok(sent) => Ok(Some(sent)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error),
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The most that the kernel passes with one message (`SCM_MAX_FD`).
const SCM_MAX_DESCRIPTORS: usize = 253;
/// The most that this program passes with one message.
const MAX_DESCRIPTORS: usize = bus_core::wire::MAX_DESCRIPTORS as usize;

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    fn pair() -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Socket::new(ours.into()), theirs)
    }

    #[test]
    fn reading_tells_bytes_nothing_and_end_apart() {
        let (socket, mut other) = pair();
        let (mut buffer, mut arrived) = ([0; 8], Arrived::default());
        let mut receive = || socket.receive(&mut buffer, &mut arrived);
        assert_eq!(receive(), Ok(Received::Nothing));
        other.write_all(b"abc").unwrap();
        assert_eq!(receive(), Ok(Received::Bytes(3)));
        drop(other);
        assert_eq!(receive(), Ok(Received::End));
    }

    #[test]
    fn the_rest_of_a_frame_takes_no_byte_of_the_next() {
        let (socket, mut other) = pair();
        other.write_all(b"rest, next").unwrap();
        let mut buffer = Vec::with_capacity(4);
        assert_eq!(buffer.capacity(), 4);
        assert_eq!(socket.receive_rest(&mut buffer), Ok(Received::Bytes(4)));
        assert_eq!(buffer, b"rest");
    }

    #[test]
    fn a_full_socket_keeps_the_rest_for_later() {
        let (socket, mut other) = pair();
        let mut output = Output::default();
        output.push_shared(vec![7; 4 << 20].into());
        assert_eq!(socket.send(&mut output), Ok(Sent::Rest));
        let mut read = 0;
        let mut buffer = vec![0; 1 << 20];
        while !output.is_empty() {
            read += other.read(&mut buffer).unwrap();
            socket.send(&mut output).unwrap();
        }
        drop(socket);
        let mut last = Vec::new();
        other.read_to_end(&mut last).unwrap();
        assert_eq!(read + last.len(), 4 << 20);
    }

    #[test]
    fn a_closed_other_end_is_an_error_and_no_signal() {
        let (socket, other) = pair();
        drop(other);
        let mut output = Output::default();
        output.frames().extend_from_slice(b"frame");
        assert_eq!(socket.send(&mut output), Err(Errno::PIPE));
    }
}
