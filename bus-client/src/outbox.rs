//! Frames on their way out.
//!
//! Invariants: frames leave in the order in which they were put here. Small frames lie end to end
//! in one buffer, so that many leave in one system call; a large payload stays where it is and is
//! referred to. A frame with descriptors begins a chunk, because descriptors travel with the first
//! byte of a write. The bytes are bounded by whoever puts sends here (see `state`); other frames
//! are few and small.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bus_core::Attributes;
use bus_core::wire::{ClientFrame, EncodeError, SendHead, Serial, encode_send, encode_send_head};
use bytes::{Buf, Bytes, BytesMut};
use rustix::io::Errno;

use crate::rings::Turn;
use crate::transport::Transport;

/// Frames on their way out, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// An empty buffer, kept for the next chunk.
    spare: BytesMut,
}

#[derive(Debug)]
struct Chunk {
    bytes: ChunkBytes,
    carried: Option<Carried>,
    /// It has no bytes: those behind it go another way.
    turn: Option<Turn>,
}

#[derive(Debug)]
enum ChunkBytes {
    /// Further small frames may follow in it.
    Open(BytesMut),
    Whole(Bytes),
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

impl ChunkBytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Open(bytes) => bytes,
            Self::Whole(bytes) => bytes,
        }
    }
}

impl Outbox {
    /// Bytes not yet written.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
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
            self.chunks.push_back(Chunk {
                bytes: ChunkBytes::Whole(own.freeze()),
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
            self.chunks.push_back(Chunk {
                bytes: ChunkBytes::Whole(payload.clone()),
                carried: None,
                turn: None,
            });
        }
        Ok(())
    }

    /// What is put here from now on goes another way.
    pub(crate) fn put_turn(&mut self, turn: Turn) {
        let bytes = ChunkBytes::Whole(Bytes::new());
        self.chunks.push_back(Chunk { bytes, carried: None, turn: Some(turn) });
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.bytes = 0;
    }

    /// Writes what the socket takes.
    pub(crate) fn write(&mut self, transport: &Transport) -> Result<Written, Errno> {
        while let Some(first) = self.chunks.front() {
            if let Some(turn) = first.turn {
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
        if let ([Chunk { bytes, carried: None, .. }], []) = self.chunks.as_slices() {
            return transport.write(&[IoSlice::new(bytes.as_slice())], &[]);
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            if count > 0 && (chunk.carried.is_some() || chunk.turn.is_some()) {
                break;
            }
            *slice = IoSlice::new(chunk.bytes.as_slice());
            count += 1;
        }
        let carried = self.chunks.front().and_then(|chunk| chunk.carried.as_ref());
        let descriptors = carried.map_or(&[][..], |carried| &carried.descriptors);
        transport.write(&slices[..count], descriptors)
    }

    fn written(&mut self, mut bytes: usize) {
        self.bytes -= bytes;
        while let Some(chunk) = self.chunks.front_mut() {
            chunk.carried = None;
            if chunk.turn.is_some() {
                return;
            }
            let part = chunk.bytes.as_slice().len().min(bytes);
            bytes -= part;
            match &mut chunk.bytes {
                ChunkBytes::Open(buffer) => buffer.advance(part),
                ChunkBytes::Whole(buffer) => buffer.advance(part),
            }
            if !chunk.bytes.as_slice().is_empty() {
                return;
            }
            if let Some(Chunk { bytes: ChunkBytes::Open(mut buffer), .. }) = self.chunks.pop_front()
                && self.spare.capacity() == 0
            {
                buffer.clear();
                self.spare = buffer;
            }
            if bytes == 0 {
                return;
            }
        }
    }

    /// Takes out the first frame, if it has descriptors and none of it is written.
    fn take_carrier(&mut self) -> Option<Serial> {
        let carried = self.chunks.front()?.carried.as_ref()?;
        let send = carried.send;
        for _ in 0..carried.chunks {
            if let Some(chunk) = self.chunks.pop_front() {
                self.bytes -= chunk.bytes.as_slice().len();
            }
        }
        Some(send)
    }

    /// The buffer at the end that small frames go to.
    fn open(&mut self) -> &mut BytesMut {
        let is_open = matches!(self.chunks.back(), Some(Chunk { bytes: ChunkBytes::Open(_), .. }));
        if !is_open {
            let mut buffer = std::mem::take(&mut self.spare);
            buffer.reserve(BUFFER_BYTES);
            let bytes = ChunkBytes::Open(buffer);
            self.chunks.push_back(Chunk { bytes, carried: None, turn: None });
        }
        match self.chunks.back_mut() {
            Some(Chunk { bytes: ChunkBytes::Open(buffer), .. }) => buffer,
            _ => unreachable!("an open chunk was just put there"),
        }
    }
}

/// Longer payloads are not copied here but referred to.
const COPY_BYTES: usize = 8 << 10;
/// The least room of a new buffer.
const BUFFER_BYTES: usize = 4 << 10;
/// Chunks in one system call.
const MAX_SLICES: usize = 64;
