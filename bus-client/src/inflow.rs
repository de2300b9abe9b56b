//! Bytes as they come in, until they are frames.
//!
//! Invariant: between calls, `unread` holds what has come and is no whole frame yet. So its length
//! is below what one frame may have, which the codec checks before we take memory for it. Of
//! descriptors there are at most as many as one frame may have, because the broker may not send
//! more before we say that we have taken these.

use std::os::fd::OwnedFd;

use bus_core::wire::{BrokerFrame, MAX_DESCRIPTORS, MessageView};
use bytes::BytesMut;
use rustix::io::Errno;

use crate::transport::Transport;

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct Inflow {
    unread: BytesMut,
    /// A large frame is read where it will stay: `unread` has its full length then, and this much
    /// of it has come.
    large: Option<usize>,
    /// Where a read puts its bytes; it grows with what comes, so that an idle connection is small.
    scratch: Vec<u8>,
    /// How much of it the next read may fill.
    ask: usize,
    descriptors: Vec<OwnedFd>,
}

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// There may be more.
    More,
    /// There was no more when we looked.
    Drained,
    /// Nothing will come any more.
    End,
}

/// A frame: a message stays where it was read, so that taking it in allocates nothing.
#[derive(Debug)]
pub(crate) enum Frame {
    Message(MessageView),
    Other(BrokerFrame),
}

/// A frame, and the descriptors that came with it.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) frame: Frame,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// This process had no room for the descriptors.
    pub(crate) descriptors_lost: bool,
}

impl Inflow {
    pub(crate) fn new() -> Self {
        Self {
            unread: BytesMut::new(),
            large: None,
            scratch: vec![0; FIRST_READ_BYTES],
            ask: FIRST_READ_BYTES,
            descriptors: Vec::new(),
        }
    }

    /// Reads once.
    pub(crate) fn fill(&mut self, transport: &Transport) -> Result<Filled, Errno> {
        let place = match self.large {
            Some(filled) => &mut self.unread[filled..],
            None => &mut self.scratch[..self.ask],
        };
        let room = place.len();
        let read = match transport.read(place, &mut self.descriptors) {
            Ok(read) => read,
            Err(Errno::AGAIN) => return Ok(Filled::Drained),
            Err(error) => return Err(error),
        };
        match &mut self.large {
            Some(filled) => {
                *filled += read.bytes;
                if *filled == self.unread.len() {
                    self.large = None;
                    // Another may follow: its beginning is enough to read it into its place too.
                    self.ask = FIRST_READ_BYTES;
                }
            }
            None => {
                self.unread.extend_from_slice(&self.scratch[..read.bytes]);
                if read.bytes == room && room < READ_BYTES {
                    self.ask = 2 * room;
                    if self.scratch.len() < self.ask {
                        self.scratch.resize(self.ask, 0);
                    }
                }
            }
        }
        Ok(match read {
            read if read.bytes == 0 => Filled::End,
            // A read ends early after bytes that carried descriptors.
            read if read.bytes < room && !read.descriptors => Filled::Drained,
            _ => Filled::More,
        })
    }

    /// The next whole frame.
    ///
    /// # Errors
    ///
    /// What the broker did that the protocol does not allow.
    pub(crate) fn next(&mut self) -> Result<Option<Arrival>, String> {
        if self.large.is_some() {
            return Ok(None);
        }
        if self.descriptors.len() > usize::from(MAX_DESCRIPTORS) {
            return Err(format!(
                "{} descriptors at once, and a frame has at most {MAX_DESCRIPTORS}",
                self.descriptors.len()
            ));
        }
        let frame = if MessageView::is_next(&self.unread) {
            MessageView::decode(&mut self.unread).map(|view| view.map(Frame::Message))
        } else {
            BrokerFrame::decode(&mut self.unread).map(|frame| frame.map(Frame::Other))
        };
        let Some(frame) = frame.map_err(|error| error.to_string())? else {
            self.prepare()?;
            return Ok(None);
        };
        let mut arrival = Arrival { frame, descriptors: Vec::new(), descriptors_lost: false };
        if let Frame::Message(message) = &arrival.frame
            && message.descriptors() > 0
        {
            let announced = usize::from(message.descriptors());
            arrival.descriptors = std::mem::take(&mut self.descriptors);
            if arrival.descriptors.len() > announced {
                return Err(format!(
                    "MESSAGE announces {announced} descriptors, and {} came",
                    arrival.descriptors.len()
                ));
            }
            if arrival.descriptors.len() < announced {
                // Some are of no use to the application: it could not tell which.
                arrival.descriptors.clear();
                arrival.descriptors_lost = true;
            }
        }
        Ok(Some(arrival))
    }

    /// Gives a large frame memory of its own length, so that it is read into its place.
    fn prepare(&mut self) -> Result<(), String> {
        let needed = BrokerFrame::bytes_needed(&self.unread).map_err(|e| e.to_string())?;
        let have = self.unread.len();
        if needed > have + PLACE_BYTES {
            let mut own = BytesMut::zeroed(needed);
            own[..have].copy_from_slice(&self.unread);
            self.unread = own;
            self.large = Some(have);
        }
        Ok(())
    }
}

/// What is read at once from a connection that has not had more to read.
const FIRST_READ_BYTES: usize = 4 << 10;
/// A frame of which more than this is missing is read right into its place: below that, what is
/// copied once more costs less than a read of its own.
const PLACE_BYTES: usize = 16 << 10;
/// The most that is read at once, large frames apart.
const READ_BYTES: usize = 64 << 10;
