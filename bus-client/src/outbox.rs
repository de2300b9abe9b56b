//! Frames on their way out.
//!
//! Invariants: frames leave in the order in which they were put here. Small frames lie end to end
//! in one buffer, so that many leave in one system call; a large payload stays where it is and is
//! referred to. A frame with descriptors is a chunk of its own, because descriptors travel with the
//! first byte of a write. Nearly always there is nothing but the buffer, and it stays where it is.
//! The bytes are bounded by whoever puts sends here (see `state`); other frames are few and small.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bus_core::Attributes;
use bus_core::wire::{ClientFrame, EncodeError, SendHead, Serial, encode_send, encode_send_head};
use bytes::{Buf, Bytes, BytesMut};
use rustix::io::Errno;

use crate::rings::{COPY_FROM_BYTES, Turn};
use crate::transport::Transport;

/// Frames on their way out, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    chunks: VecDeque<Chunk>,
    /// Small frames behind these.
    open: BytesMut,
    /// In both.
    bytes: usize,
}

#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    carried: Option<Carried>,
    /// It has no bytes: those behind it go another way.
    turn: Option<Turn>,
}

/// What goes with the first byte of a chunk.
#[derive(Debug)]
struct Carried {
    descriptors: Arc<[OwnedFd]>,
    send: Serial,
    /// Chunks of the frame: its head, and its payload if that lies elsewhere.
    chunks: usize,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// All is written.
    All,
    /// The socket has no room for more now.
    Blocked,
    /// The kernel takes no more descriptors under way. The frame of this send was taken out.
    TooManyDescriptors(Serial),
}

impl Outbox {
    /// Bytes not yet written.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.open.is_empty()
    }

    /// Puts a frame other than SEND last.
    pub(crate) fn put(&mut self, frame: &ClientFrame) {
        let open = self.open();
        let before = open.len();
        frame.encode(open).expect("what control messages hold was checked, and is short");
        self.bytes += open.len() - before;
    }

    /// Puts a SEND last.
    pub(crate) fn put_send(
        &mut self,
        head: &SendHead,
        attributes: &Attributes,
        payload: &Bytes,
        descriptors: Option<Arc<[OwnedFd]>>,
    ) -> Result<(), EncodeError> {
        let apart = payload.len() > COPY_BYTES;
        let mut own = BytesMut::new();
        let buffer = if descriptors.is_some() { &mut own } else { self.open() };
        let before = buffer.len();
        if apart {
            encode_send_head(buffer, head, attributes, payload.len())?;
        } else {
            encode_send(buffer, head, attributes, payload)?;
        }
        self.bytes += buffer.len() - before;
        if let Some(descriptors) = descriptors {
            self.push(Chunk {
                bytes: own.freeze(),
                carried: Some(Carried {
                    descriptors,
                    send: head.id.serial,
                    chunks: if apart { 2 } else { 1 },
                }),
                turn: None,
            });
        }
        if apart {
            self.bytes += payload.len();
            self.push(Chunk { bytes: payload.clone(), carried: None, turn: None });
        }
        Ok(())
    }

    /// What is put here from now on goes another way.
    pub(crate) fn put_turn(&mut self, turn: Turn) {
        self.push(Chunk { bytes: Bytes::new(), carried: None, turn: Some(turn) });
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.open.clear();
        self.bytes = 0;
    }

    /// Writes what the socket takes.
    pub(crate) fn write(&mut self, transport: &Transport) -> Result<Written, Errno> {
        while !self.is_empty() {
            if let Some(turn) = self.chunks.front().and_then(|first| first.turn) {
                self.chunks.pop_front();
                transport.turn_out(turn);
                continue;
            }
            match self.write_some(transport) {
                Ok(bytes) => self.written(bytes),
                Err(Errno::AGAIN) => return Ok(Written::Blocked),
                Err(Errno::TOOMANYREFS) => {
                    if let Some(send) = self.take_carrier() {
                        return Ok(Written::TooManyDescriptors(send));
                    }
                    return Err(Errno::TOOMANYREFS);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Written::All)
    }

    fn write_some(&self, transport: &Transport) -> Result<usize, Errno> {
        if self.chunks.is_empty() {
            return transport.write(&[self.open_piece()], &[]);
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            if count > 0 && (chunk.carried.is_some() || chunk.turn.is_some()) {
                break;
            }
            *slice = IoSlice::new(&chunk.bytes);
            count += 1;
        }
        if count == self.chunks.len()
            && let Some(last) = slices.get_mut(count)
        {
            *last = self.open_piece();
            count += 1;
        }
        let carried = self.chunks.front().and_then(|chunk| chunk.carried.as_ref());
        let descriptors = carried.map_or(&[][..], |carried| &carried.descriptors);
        transport.write(&slices[..count], descriptors)
    }

    /// What one write is given of the small frames.
    fn open_piece(&self) -> IoSlice<'_> {
        IoSlice::new(&self.open[..self.open.len().min(OPEN_BYTES)])
    }

    fn written(&mut self, mut bytes: usize) {
        self.bytes -= bytes;
        while let Some(chunk) = self.chunks.front_mut() {
            chunk.carried = None;
            if chunk.turn.is_some() {
                return;
            }
            let part = chunk.bytes.len().min(bytes);
            bytes -= part;
            chunk.bytes.advance(part);
            if !chunk.bytes.is_empty() {
                return;
            }
            self.chunks.pop_front();
            if bytes == 0 {
                return;
            }
        }
        if bytes == self.open.len() {
            self.open.clear();
        } else {
            self.open.advance(bytes);
        }
    }

    /// Takes out the first frame, if it has descriptors and none of it is written.
    fn take_carrier(&mut self) -> Option<Serial> {
        let carried = self.chunks.front()?.carried.as_ref()?;
        let send = carried.send;
        for _ in 0..carried.chunks {
            if let Some(chunk) = self.chunks.pop_front() {
                self.bytes -= chunk.bytes.len();
            }
        }
        Some(send)
    }

    /// Puts a chunk last.
    fn push(&mut self, chunk: Chunk) {
        if !self.open.is_empty() {
            let bytes = self.open.split().freeze();
            self.chunks.push_back(Chunk { bytes, carried: None, turn: None });
        }
        self.chunks.push_back(chunk);
    }

    /// The buffer at the end that small frames go to.
    #[inline]
    fn open(&mut self) -> &mut BytesMut {
        if self.open.is_empty() {
            self.open.reserve(BUFFER_BYTES);
        }
        &mut self.open
    }
}

/// Longer payloads are not copied here but referred to.
const COPY_BYTES: usize = 8 << 10;
/// Bytes of small frames for one write. What has gathered while a ring was full is to go by the ring too:
/// a larger piece would go by the socket, and what follows it with a call each.
const OPEN_BYTES: usize = 64 << 10;
const _: () = assert!(OPEN_BYTES < COPY_FROM_BYTES);
/// The least room of a new buffer.
const BUFFER_BYTES: usize = 4 << 10;
/// Chunks in one system call.
const MAX_SLICES: usize = 64;

#[cfg(test)]
mod tests {
    use bus_core::wire::{Handle, LaneNumber, SendFlags, SendId};
    use bus_core::{Destination, GroupId};

    use super::*;

    #[test]
    fn small_frames_are_written_in_pieces_that_a_ring_takes() {
        let id = SendId { endpoint: Handle::FIRST, lane: LaneNumber::FIRST, serial: Serial::FIRST };
        let destination = Destination::Group(GroupId::from_raw(1));
        let head =
            SendHead { id, destination, flags: SendFlags::empty(), deadline: 0, descriptors: 0 };
        let mut outbox = Outbox::default();
        let payload = Bytes::from(vec![7; COPY_BYTES]);
        while outbox.bytes() < 4 * OPEN_BYTES {
            outbox.put_send(&head, &Attributes::EMPTY, &payload, None).unwrap();
        }
        assert!(outbox.chunks.is_empty(), "no payload was long enough to stay where it is");
        let (mut left, mut pieces) = (outbox.bytes(), 0);
        while left > 0 {
            let piece = outbox.open_piece().len();
            assert!((1..=OPEN_BYTES).contains(&piece));
            outbox.written(piece);
            (left, pieces) = (left - piece, pieces + 1);
        }
        assert!(pieces > 4 && outbox.is_empty());
    }
}
