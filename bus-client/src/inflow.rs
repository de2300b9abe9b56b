//! Bytes as they come in, until they are frames.
//!
//! Invariant: between calls, `unread` holds what has come and is no whole frame yet. So its length
//! is below what one frame may have, which the codec checks before we take memory for it. Of
//! descriptors there are at most as many as one frame may have, because the broker may not send
//! more before we say that we have taken these.

use std::os::fd::OwnedFd;

use std::io::IoSliceMut;

use bus_core::wire::{BatchView, BrokerFrame, BrokerRings, MAX_DESCRIPTORS, MessageView, PlainRun};
use bytes::BytesMut;
use rustix::io::Errno;

use crate::long_read::Landed;
use crate::transport::{Read, Transport};

mod kept;
mod landing;

use kept::Kept;
use landing::Landing;

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct Inflow {
    unread: BytesMut,
    /// A large frame is read where it will stay: `unread` has its full length then, and this much
    /// of it has come.
    large: Option<usize>,
    /// `unread` is the memory of one large frame, and nothing else.
    is_one_frame: bool,
    kept: Kept,
    landing: Landing,
    /// What came behind a large frame, and is not in `unread` yet.
    behind: BytesMut,
    descriptors: Vec<OwnedFd>,
    /// Whether a thread sleeps in a read, and somebody else has wanted to read meanwhile.
    lent: Option<Missed>,
}

/// Whether somebody wanted to read while another did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    Nobody,
    Somebody,
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
    Batch(BatchView),
    Other(BrokerFrame),
}

/// A frame, and what came with it.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) frame: Frame,
    pub(crate) attached: Option<Box<Attached>>,
}

/// The descriptors of a message. Few messages have any, so they stay out of its way.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Somebody had no room for them: this process, or the broker.
    pub(crate) lost: bool,
}

impl Inflow {
    pub(crate) fn new() -> Self {
        Self {
            unread: BytesMut::new(),
            large: None,
            is_one_frame: false,
            kept: Kept::default(),
            landing: Landing::new(),
            behind: BytesMut::new(),
            descriptors: Vec::new(),
            lent: None,
        }
    }

    /// Gives out what a thread needs to sleep in a read; `None` in the middle of a large frame. Until it is
    /// [taken back](Self::take_back), nobody else reads.
    pub(crate) fn lend(&mut self) -> Option<Landed> {
        if self.large.is_some() || self.lent.is_some() {
            return None;
        }
        self.go_on();
        self.landing.make_room(&mut self.unread);
        self.lent = Some(Missed::Nobody);
        let (block, room) = self.landing.lend();
        Some(Landed::new(block, room))
    }

    /// Takes in what a [long read](crate::long_read) has brought, and says whether anybody else had wanted to
    /// read.
    pub(crate) fn take_back(&mut self, landed: Landed) -> (Result<Filled, Errno>, Missed) {
        let Landed { block, room, mut descriptors, read } = landed;
        let Some(missed) = self.lent.take() else {
            // It was lent by the inflow of a stream that has been given up.
            return (Ok(Filled::Drained), Missed::Nobody);
        };
        self.landing.take_back(block);
        self.descriptors.append(&mut descriptors);
        (read.map_or_else(failed, |read| Ok(self.landed(&read, room))), missed)
    }

    /// Whether a thread sleeps in a read.
    pub(crate) fn is_lent(&self) -> bool {
        self.lent.is_some()
    }

    /// Whether nothing has come that is not taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.unread.is_empty() && self.behind.is_empty()
    }

    /// Reads once. While another thread sleeps in a read there is nothing to be had.
    pub(crate) fn fill(&mut self, transport: &Transport) -> Result<Filled, Errno> {
        if let Some(missed) = &mut self.lent {
            *missed = Missed::Somebody;
            return Ok(Filled::Drained);
        }
        self.go_on();
        let filled = self.large.unwrap_or(self.unread.len());
        match self.large {
            Some(_) => self.landing.make_room(&mut BytesMut::new()),
            None => self.landing.make_room(&mut self.unread),
        }
        let rest = &mut self.unread[filled..];
        let missing = rest.len();
        // What follows a large frame comes with the same call: so the read that brings the rest of
        // it also tells whether there is more, and the next frame's length.
        let free = self.landing.free();
        let room = missing + free.len();
        let mut slices = [IoSliceMut::new(rest), IoSliceMut::new(free)];
        let slices = if missing == 0 { &mut slices[1..] } else { &mut slices[..] };
        let read = match transport.read(slices, &mut self.descriptors) {
            Ok(read) => read,
            Err(error) => return failed(error),
        };
        if self.large.is_none() {
            return Ok(self.landed(&read, room));
        }
        let came = read.bytes.min(missing);
        self.large = (came < missing).then_some(filled + came);
        self.behind = self.landing.take(read.bytes - came);
        Ok(filled_by(&read, room))
    }

    /// Takes in what a read has put into the landing's memory, which had so much room.
    fn landed(&mut self, read: &Read, room: usize) -> Filled {
        self.unread.unsplit(self.landing.take(read.bytes));
        if read.bytes == room {
            self.landing.grow();
        }
        filled_by(read, room)
    }

    /// The next frames as far as they have come whole and are what nearly all are:
    /// [plain](MessageView::is_plain) messages, which have no memory of their own. `None` says nothing
    /// of what is [`next`](Self::next).
    pub(crate) fn plain_run(&mut self) -> Option<PlainRun> {
        let is_special = self.is_one_frame || !self.descriptors.is_empty();
        if is_special { None } else { PlainRun::take(&mut self.unread) }
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
        if self.unread.is_empty() {
            self.go_on();
        }
        let frame = if MessageView::is_next(&self.unread) {
            MessageView::decode(&mut self.unread).map(|view| view.map(Frame::Message))
        } else if BatchView::is_next(&self.unread) {
            BatchView::decode(&mut self.unread).map(|view| view.map(Frame::Batch))
        } else {
            BrokerFrame::decode(&mut self.unread).map(|frame| frame.map(Frame::Other))
        };
        let Some(frame) = frame.map_err(|error| error.to_string())? else {
            self.prepare()?;
            return Ok(None);
        };
        if std::mem::take(&mut self.is_one_frame) && self.unread.is_empty() {
            // Nothing of ours may hold on to its memory, or it could not be used again.
            self.unread = BytesMut::new();
            if let Frame::Message(message) = &frame {
                self.kept.keep(message.frame());
            }
        }
        let mut arrival = Arrival { frame, attached: None };
        if let Frame::Other(
            BrokerFrame::Rings(BrokerRings::Offered { .. })
            | BrokerFrame::Memory { descriptors: 1.., .. },
        ) = &arrival.frame
        {
            // Fewer than announced are of no use either; who takes them looks how many there are.
            let descriptors = std::mem::take(&mut self.descriptors);
            arrival.attached = Some(Box::new(Attached { descriptors, lost: false }));
        }
        if let Frame::Message(message) = &arrival.frame
            && (message.descriptors() > 0 || message.descriptors_lost())
        {
            let announced = usize::from(message.descriptors());
            let mut attached =
                Attached { descriptors: Vec::new(), lost: message.descriptors_lost() };
            if announced > 0 {
                attached.descriptors = std::mem::take(&mut self.descriptors);
            }
            if attached.descriptors.len() > announced {
                return Err(format!(
                    "MESSAGE announces {announced} descriptors, and {} came",
                    attached.descriptors.len()
                ));
            }
            if attached.descriptors.len() < announced {
                // Some are of no use to the application: it could not tell which.
                attached.descriptors.clear();
                attached.lost = true;
            }
            arrival.attached = Some(Box::new(attached));
        }
        Ok(Some(arrival))
    }

    /// Takes what has come behind the last frame.
    pub(crate) fn take_rest(&mut self) -> Vec<u8> {
        self.go_on();
        std::mem::take(&mut self.unread).into()
    }

    /// Goes on to what came behind a large frame.
    fn go_on(&mut self) {
        self.unread.unsplit(std::mem::take(&mut self.behind));
    }

    /// Gives a large frame memory of its own length, so that it is read into its place.
    fn prepare(&mut self) -> Result<(), String> {
        let needed = BrokerFrame::bytes_needed(&self.unread).map_err(|e| e.to_string())?;
        let have = self.unread.len();
        if needed > have + PLACE_BYTES {
            self.unread = self.kept.memory(needed, &self.unread);
            self.is_one_frame = true;
            // Another may follow: its beginning is enough to read it into its place too.
            self.landing.shrink();
            self.large = Some(have);
        }
        Ok(())
    }
}

/// What a read that brought something says of what comes next.
fn filled_by(read: &Read, room: usize) -> Filled {
    match read {
        read if read.bytes == 0 => Filled::End,
        // A read ends early after bytes that carried descriptors.
        read if read.bytes < room && !read.descriptors && !read.more => Filled::Drained,
        _ => Filled::More,
    }
}

/// What a read that brought nothing says.
fn failed(error: Errno) -> Result<Filled, Errno> {
    match error {
        Errno::AGAIN => Ok(Filled::Drained),
        error => Err(error),
    }
}

/// A frame of which more than this is missing is read right into its place: below that, what is
/// copied once more costs less than a read of its own.
const PLACE_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use bus_core::Attributes;
    use bus_core::wire::encode_message;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::head;
    use crate::transport::Beacon;

    fn message(sequence: u64, length: usize) -> BytesMut {
        let mut frame = BytesMut::new();
        let payload = vec![u8::try_from(sequence % 251).unwrap(); length];
        encode_message(&mut frame, &head(sequence), &Attributes::EMPTY, &payload).unwrap();
        frame
    }

    fn length() -> impl Strategy<Value = usize> {
        prop_oneof![0..200usize, 3_000..6_000usize, 15_000..18_000usize, 60_000..140_000usize]
    }

    /// As a connection takes frames: by the short way where that is open.
    fn next_messages(inflow: &mut Inflow) -> Vec<MessageView> {
        if let Some(run) = inflow.plain_run() {
            return run.map(Result::unwrap).collect();
        }
        let next = inflow.next().unwrap().map(|arrival| match arrival.frame {
            Frame::Message(message) => message,
            other => panic!("only messages were written, and this is {other:?}"),
        });
        next.into_iter().collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever the lengths, however the stream is cut, whoever keeps what for how long.
        #[test]
        fn frames_come_whole_and_in_their_order(
            frames in prop::collection::vec((length(), any::<bool>()), 1..24),
            cuts in prop::collection::vec(1..90_000usize, 1..8),
        ) {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.set_nonblocking(true).unwrap();
            let beacon = Arc::new(Beacon::new(false).unwrap());
            let transport = Transport::new(ours.into(), beacon).unwrap();
            let mut stream = Vec::new();
            for (sequence, (length, _)) in (1..).zip(&frames) {
                stream.extend_from_slice(&message(sequence, *length));
            }
            let mut inflow = Inflow::new();
            let mut kept = Vec::new();
            let (mut written, mut came) = (0, 0);
            for cut in cuts.iter().cycle() {
                if came == frames.len() {
                    break;
                }
                let end = stream.len().min(written + cut);
                written += theirs.write(&stream[written..end]).unwrap_or(0);
                inflow.fill(&transport).unwrap();
                loop {
                    let messages = next_messages(&mut inflow);
                    if messages.is_empty() {
                        break;
                    }
                    for message in messages {
                        let (length, keeps) = frames[came];
                        came += 1;
                        prop_assert_eq!(message.sequence().get(), came as u64);
                        prop_assert_eq!(message.payload().len(), length);
                        if keeps {
                            kept.push(message);
                        }
                    }
                }
            }
            for message in kept {
                let byte = u8::try_from(message.sequence().get() % 251).unwrap();
                prop_assert!(message.payload().iter().all(|b| *b == byte), "used again too early");
            }
        }
    }
}
