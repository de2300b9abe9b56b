//! The way between a connection and its client: a socket, and rings in shared memory where the client
//! has asked for them.
//!
//! Invariant: each direction is one stream of bytes. It turns from the socket to the ring and back at
//! a place in the stream ([`Turn`] in the output, the frames RINGS_TAKEN and RINGS_LEFT in the input),
//! and what goes by the socket meanwhile has its place marked in the ring. So whoever reads and writes
//! here need not know which way it is.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use bus_core::ring::{RingError, RingRead, RingReader};
use bus_memory::Mapping;
use rustix::io::Errno;

use crate::output::{Output, Turn};
use crate::rings::{Rings, Stage};
use crate::transport::{Arrived, Received, Sent, Socket};

/// A connection's way to its client.
#[derive(Debug)]
pub(crate) struct Link {
    socket: Socket,
    rings: Option<Box<Rings>>,
    /// What came by the socket before the ring has said where it belongs.
    early: Vec<u8>,
}

/// Why a link carries nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] Errno),
    /// The client broke the rules of its ring.
    #[error(transparent)]
    Ring(#[from] RingError),
}

impl Link {
    pub(crate) fn new(socket: Socket) -> Self {
        Self { socket, rings: None, early: Vec::new() }
    }

    pub(crate) fn rings(&self) -> Option<&Rings> {
        self.rings.as_deref()
    }

    pub(crate) fn rings_mut(&mut self) -> Option<&mut Rings> {
        self.rings.as_deref_mut()
    }

    /// Has rings from now on, which nothing uses yet.
    pub(crate) fn offer(&mut self, rings: Rings) {
        self.rings = Some(Box::new(rings));
    }

    /// Has no rings any more. Epoll has to forget their bell.
    pub(crate) fn take_rings(&mut self) -> Option<Box<Rings>> {
        self.rings.take()
    }

    /// What was read beyond the frame with which input has turned to the ring.
    pub(crate) fn keep_early(&mut self, bytes: &[u8]) {
        self.early.extend_from_slice(bytes);
    }

    /// Whether input comes by the ring.
    pub(crate) fn reads_ring(&self) -> bool {
        self.rings().is_some_and(Rings::has_turned_in)
    }

    /// Whether the socket is to be read now.
    pub(crate) fn reads_socket(&self) -> bool {
        self.rings().is_none_or(|rings| !rings.has_turned_in() || rings.copying_in > 0)
    }

    /// Whether the ring has something to read.
    pub(crate) fn has_ring_input(&self) -> bool {
        self.rings().is_some_and(|rings| {
            rings.has_turned_in()
                && if rings.copying_in > 0 { !self.early.is_empty() } else { rings.has_input() }
        })
    }

    /// Reads into `buffer`. Descriptors that come are added to `arrived`.
    pub(crate) fn receive(
        &mut self,
        buffer: &mut [u8],
        arrived: &mut Arrived,
    ) -> Result<Received, LinkError> {
        let Some(rings) = self.rings.as_deref_mut().filter(|rings| rings.has_turned_in()) else {
            return Ok(self.socket.receive(buffer, arrived)?);
        };
        if let Some(received) = read_ring(rings, |reader| reader.read(buffer))? {
            return Ok(received);
        }
        let most = buffer.len().min(rings.copying_in);
        let received = if self.early.is_empty() {
            self.socket.receive(&mut buffer[..most], arrived)?
        } else {
            let count = most.min(self.early.len());
            buffer[..count].copy_from_slice(&self.early[..count]);
            self.early.drain(..count);
            Received::Bytes(count)
        };
        if let Received::Bytes(count) = received {
            rings.copying_in -= count;
        }
        Ok(received)
    }

    /// Goes on reading into the unused capacity of `buffer`, where nothing but the rest of one frame
    /// belongs.
    pub(crate) fn receive_rest(&mut self, buffer: &mut Vec<u8>) -> Result<Received, LinkError> {
        if !self.reads_ring() {
            return Ok(self.socket.receive_rest(buffer)?);
        }
        let filled = buffer.len();
        let most = (buffer.capacity() - filled).min(STEP_BYTES);
        if let Some(rings) = self.rings.as_deref_mut()
            && let Some(received) = read_ring(rings, |reader| reader.read_more(most, buffer))?
        {
            return Ok(received);
        }
        buffer.resize(filled + most, 0);
        // Descriptors travel with a first byte, so any that came here would be nobody's.
        let received = self.receive(&mut buffer[filled..], &mut Arrived::default());
        let count = if let Ok(Received::Bytes(count)) = received { count } else { 0 };
        buffer.truncate(filled + count);
        received
    }

    /// Writes what `output` holds, as far as there is room.
    pub(crate) fn send(&mut self, output: &mut Output) -> Result<Sent, LinkError> {
        loop {
            while let Some(turn) = output.take_turn() {
                if let Some(rings) = self.rings.as_deref_mut() {
                    rings.turn_out(turn == Turn::ToRings);
                }
            }
            let sent = match self.rings.as_deref_mut() {
                Some(rings) if rings.has_turned_out() => send_by_ring(&self.socket, rings, output),
                _ => Ok(self.socket.send(output)?),
            };
            if sent != Ok(Sent::All) || !output.has_turn() {
                return sent;
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reads the ring, as far as it goes on; none where the socket has to.
fn read_ring(
    rings: &mut Rings,
    mut read: impl FnMut(&mut RingReader<Arc<Mapping>>) -> Result<RingRead, RingError>,
) -> Result<Option<Received>, RingError> {
    while rings.copying_in == 0 {
        let read = read(&mut rings.reader)?;
        rings.finish();
        match read {
            RingRead::Bytes(count) => return Ok(Some(Received::Bytes(count))),
            RingRead::Nothing => return Ok(Some(Received::Nothing)),
            RingRead::Copy(bytes) => rings.copying_in = bytes as usize,
        }
    }
    Ok(None)
}

fn send_by_ring(
    socket: &Socket,
    rings: &mut Rings,
    output: &mut Output,
) -> Result<Sent, LinkError> {
    let sent = fill_ring(socket, rings, output);
    rings.publish();
    sent
}

fn fill_ring(socket: &Socket, rings: &mut Rings, output: &mut Output) -> Result<Sent, LinkError> {
    while let Some(front) = output.front() {
        let bytes = front.bytes.len();
        if rings.copying_out > 0 {
            // More may have been appended since it was announced: that goes by the ring.
            let rest = &front.bytes[..bytes.min(rings.copying_out)];
            let Some(count) = socket.send_some(rest, &[])? else {
                return Ok(Sent::Rest);
            };
            rings.copying_out -= count;
            output.advance(count);
        } else if !front.descriptors.is_empty() || bytes >= COPY_FROM_BYTES {
            if !rings.writer.has_room()? {
                if rings.find_room()? {
                    continue;
                }
                return Ok(Sent::RingFull);
            }
            // First there, then marked here: what the system does not take is not announced.
            let has_descriptors = !front.descriptors.is_empty();
            let count = match socket.send_some(front.bytes, front.descriptors) {
                Ok(Some(count)) => count,
                Ok(None) => return Ok(Sent::Rest),
                Err(error @ (Errno::PIPE | Errno::CONNRESET)) => return Err(error.into()),
                Err(_) if has_descriptors => {
                    output.lose_descriptors();
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let announced = u32::try_from(bytes).map_err(|_| Errno::FBIG)?;
            rings.writer.write_copy(announced)?;
            rings.publish();
            rings.copying_out = bytes - count;
            output.advance(count);
        } else {
            let count = rings.writer.write(front.bytes)?;
            output.advance(count);
            if count < bytes && !rings.find_room()? {
                return Ok(Sent::RingFull);
            }
        }
    }
    Ok(Sent::All)
}

/// Whether the stage of rings fits a frame about them.
pub(crate) fn is_at(rings: Option<&Rings>, stage: Stage) -> bool {
    rings.is_some_and(|rings| rings.stage == stage)
}

/// What is read at once of a long frame: as much as a ring can hold.
const STEP_BYTES: usize = 128 << 10;
/// Pieces of output from this size on go by the socket: one call carries more than the ring has room
/// for.
const COPY_FROM_BYTES: usize = 192 << 10;

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use bus_core::{Ledger, Limits, Process};

    use super::*;

    #[test]
    fn what_is_appended_behind_a_piece_on_the_socket_goes_by_the_ring() {
        let account = Ledger::new(&Limits::default()).open(1, 1, Process::Pid(1));
        let (ours, mut client) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut link = Link::new(Socket::new(ours.into()));
        let mut rings = Rings::new(&account).unwrap();
        let (offered, files) = rings.offer();
        let bus_core::wire::BrokerRings::Offered { submission_bytes, delivery_bytes } = offered
        else {
            panic!("{offered:?}");
        };
        let size = |bytes| bus_core::ring::RingSize::of_bytes(bytes).unwrap();
        let (submission, delivery) = (size(submission_bytes), size(delivery_bytes));
        let mine = Mapping::read_write(files[0].as_fd(), submission.memory_bytes()).unwrap();
        let theirs = Mapping::read_only(files[1].as_fd(), delivery.memory_bytes()).unwrap();
        let mut reader = RingReader::new(Arc::new(mine), Arc::new(theirs), delivery);
        rings.open().unwrap();
        rings.turn_out(true);
        link.offer(rings);

        let mut output = Output::default();
        let mut expected = Vec::new();
        // More than a socket takes at once, and then more of it each time before that has left.
        for part in 0..40_u8 {
            let bytes = vec![part; if part == 0 { 2 * COPY_FROM_BYTES } else { 10_000 }];
            output.frames().extend_from_slice(&bytes);
            expected.extend_from_slice(&bytes);
            let _ = link.send(&mut output).unwrap();
        }
        let (mut heard, mut copying) = (Vec::new(), 0);
        while heard.len() < expected.len() {
            let _ = link.send(&mut output).unwrap();
            let mut buffer = vec![0; 64 << 10];
            if copying > 0 {
                let most = buffer.len().min(copying);
                let count = client.read(&mut buffer[..most]).unwrap();
                copying -= count;
                heard.extend_from_slice(&buffer[..count]);
                continue;
            }
            match reader.read(&mut buffer).unwrap() {
                RingRead::Bytes(count) => heard.extend_from_slice(&buffer[..count]),
                RingRead::Copy(bytes) => copying = bytes as usize,
                RingRead::Nothing => {}
            }
            let _ = reader.finish();
        }
        assert!(heard == expected, "in one order");
        assert!(client.read(&mut [0]).is_err(), "and nothing beside it");
    }
}
