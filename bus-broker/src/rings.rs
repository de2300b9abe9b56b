//! One connection's rings in shared memory: made here, sized, sealed, charged, and given back.
//!
//! `bus_core::ring` says how bytes pass through them and how nobody sleeps beside his input; this file
//! has the memory and the bells, and knows which of the two directions goes by the rings now.
//!
//! Trust: the client writes nothing but its own memory, and reads ours. Of what it writes the broker
//! believes nothing that it has not compared ([`RingError`] ends the connection), copies out what it
//! then parses, and never waits for it. A bell is an eventfd that does not block, so a client that
//! fills its count cannot stop us.
//!
//! Both memories have all their pages from the beginning, charged to the client's user, and go when
//! the rings have been idle for a while: an idle connection has none.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use bus_core::ring::{RingError, RingReader, RingSize, RingSleeper, RingWriter};
use bus_core::wire::BrokerRings;
use bus_core::{Charge, LimitExceeded};
use bus_memory::{Mapping, Segment};
use rustix::event::{EventfdFlags, eventfd};

/// The rings of one connection.
#[derive(Debug)]
pub(crate) struct Rings {
    pub(crate) writer: RingWriter<Arc<Mapping>>,
    pub(crate) reader: RingReader<Arc<Mapping>>,
    sleeper: RingSleeper<Arc<Mapping>>,
    /// What is passed to the client: its memory, ours, our bell, its bell.
    files: Arc<[OwnedFd]>,
    pub(crate) stage: Stage,
    /// Bytes of the stream that come by the socket before the ring goes on.
    pub(crate) copying_in: usize,
    /// Bytes of the stream that have to go by the socket before the ring goes on.
    pub(crate) copying_out: usize,
    /// The client's bell is to be rung.
    owes_bell: bool,
    /// Epoll knows our bell.
    pub(crate) is_watched: bool,
    /// They have been looked at in each turn.
    pub(crate) was_hot: bool,
    /// Something has passed since the last look.
    pub(crate) active: bool,
    /// What the connection's account is charged for the memory.
    pub(crate) pinned: Option<Charge>,
    _charge: RingCharge,
}

/// How far the two sides have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The client has not said whether it takes them.
    Offered,
    /// Input comes by them, and output goes by them from its turn on.
    Open {
        /// Output has had its turn.
        output: bool,
    },
    /// The client was told that they end, and is to say when it has left them.
    Ending {
        /// Output still goes by them.
        output: bool,
    },
    /// Nobody uses them any more.
    Over,
}

/// How much shared memory the rings of each user have.
#[derive(Debug, Default)]
pub(crate) struct RingLedger {
    users: Mutex<HashMap<u32, u64>>,
    /// What each may have.
    most: u64,
}

/// Memory that a user has; given back when dropped.
#[derive(Debug)]
struct RingCharge {
    ledger: Arc<RingLedger>,
    uid: u32,
    bytes: u64,
}

/// Why there are no rings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoRings {
    /// Its user has as many as it may have.
    #[error("user {uid} has no room for more rings")]
    Limit {
        /// Whose they would be.
        uid: u32,
    },
    /// Its account has none left for the memory.
    #[error(transparent)]
    Account(#[from] LimitExceeded),
    /// The system has no memory or no descriptors.
    #[error("cannot make rings: {0}")]
    System(#[from] io::Error),
}

impl Rings {
    /// Bytes of memory that the rings of one connection have.
    pub(crate) const BYTES: usize = SUBMISSION.memory_bytes() + DELIVERY.memory_bytes();

    /// Makes rings for a connection of user `uid`.
    pub(crate) fn new(ledger: &Arc<RingLedger>, uid: u32) -> Result<Self, NoRings> {
        let charge = ledger.charge(uid, Self::BYTES as u64).ok_or(NoRings::Limit { uid })?;
        let submission = Segment::for_a_writer("unisono-submission", SUBMISSION.memory_bytes())?;
        submission.take_pages()?;
        let delivery = Segment::for_readers("unisono-delivery", DELIVERY.memory_bytes())?;
        delivery.take_pages()?;
        let bell = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bells = (bell().map_err(io::Error::from)?, bell().map_err(io::Error::from)?);
        let (submission_file, submission) = submission.into_parts();
        let (delivery_file, delivery) = delivery.into_parts();
        let (theirs, ours) = (Arc::new(submission), Arc::new(delivery));
        let reader = RingReader::new(Arc::clone(&ours), Arc::clone(&theirs), SUBMISSION);
        Ok(Self {
            writer: RingWriter::new(ours, theirs, DELIVERY),
            sleeper: reader.sleeper(),
            reader,
            files: Arc::new([submission_file, delivery_file, bells.0, bells.1]),
            stage: Stage::Offered,
            copying_in: 0,
            copying_out: 0,
            owes_bell: false,
            is_watched: false,
            was_hot: false,
            active: true,
            pinned: None,
            _charge: charge,
        })
    }

    /// How they are announced.
    pub(crate) fn offer(&self) -> (BrokerRings, Arc<[OwnedFd]>) {
        let offered = BrokerRings::Offered {
            submission_bytes: SUBMISSION.bytes(),
            delivery_bytes: DELIVERY.bytes(),
        };
        (offered, Arc::clone(&self.files))
    }

    /// The client has mapped them: nobody else can map its memory for writing any more. Input comes
    /// by them from now on.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        bus_memory::seal_writable(self.files[0].as_fd())?;
        self.stage = Stage::Open { output: false };
        // The files have served: the memory stays mapped without them.
        if let Some(files) = Arc::get_mut(&mut self.files) {
            let bells = [files[2].try_clone()?, files[3].try_clone()?];
            self.files = Arc::new(bells);
        }
        Ok(())
    }

    /// Whether input comes by them.
    pub(crate) fn has_turned_in(&self) -> bool {
        !matches!(self.stage, Stage::Offered | Stage::Over)
    }

    /// Whether output goes by them.
    pub(crate) fn has_turned_out(&self) -> bool {
        matches!(self.stage, Stage::Open { output: true } | Stage::Ending { output: true })
    }

    /// Output goes by them from here on, or no more.
    pub(crate) fn turn_out(&mut self, to_rings: bool) {
        match &mut self.stage {
            Stage::Open { output } | Stage::Ending { output } => *output = to_rings,
            Stage::Offered | Stage::Over => {}
        }
    }

    /// Whether something is in the client's ring.
    pub(crate) fn has_input(&self) -> bool {
        self.reader.has_input()
    }

    /// Says to the client that we sleep; false if there is something to read.
    pub(crate) fn arm(&self) -> bool {
        !self.has_input() && self.sleeper.arm()
    }

    /// Says to the client that we are awake.
    pub(crate) fn disarm(&self) {
        self.sleeper.disarm();
    }

    /// Gives back what was read; a client that waits for room is rung at once.
    pub(crate) fn finish(&mut self) {
        self.active = true;
        if self.reader.finish() {
            self.ring();
        }
    }

    /// Lets the client see what was written. Its bell may be put off.
    pub(crate) fn publish(&mut self) {
        self.active = true;
        self.owes_bell |= self.writer.publish();
    }

    /// Whether there is room, or the client will ring when there is.
    pub(crate) fn find_room(&mut self) -> Result<bool, RingError> {
        self.publish();
        self.writer.want_room()
    }

    /// Whether the client's bell is to be rung.
    pub(crate) fn owes_bell(&self) -> bool {
        self.owes_bell
    }

    /// Rings the client's bell.
    pub(crate) fn ring(&mut self) {
        self.owes_bell = false;
        let one = 1_u64.to_ne_bytes();
        // EAGAIN says that it is ringing already.
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(self.bells().1, &one));
    }

    /// Silences our bell.
    pub(crate) fn silence(&self) {
        let mut rings = [0; 8];
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(self.bells().0, &mut rings));
    }

    /// Our bell, for epoll. The client has it too, so epoll does not forget it by itself.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bells().0
    }

    /// Ours and the client's.
    fn bells(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        let bells = &self.files[self.files.len() - 2..];
        (bells[0].as_fd(), bells[1].as_fd())
    }
}

impl RingLedger {
    /// A ledger in which each user may have `most` bytes.
    pub(crate) fn new(most: u64) -> Self {
        Self { users: Mutex::default(), most }
    }

    /// Whether anybody may have rings.
    pub(crate) fn allows_any(&self) -> bool {
        self.most > 0
    }

    fn charge(self: &Arc<Self>, uid: u32, bytes: u64) -> Option<RingCharge> {
        let mut users = self.users.lock().expect("nothing that can panic runs under this lock");
        let has = users.entry(uid).or_default();
        if *has + bytes > self.most {
            return None;
        }
        *has += bytes;
        Some(RingCharge { ledger: Arc::clone(self), uid, bytes })
    }
}

impl Drop for RingCharge {
    fn drop(&mut self) {
        let mut users =
            self.ledger.users.lock().expect("nothing that can panic runs under this lock");
        if let Some(has) = users.get_mut(&self.uid) {
            *has -= self.bytes;
            if *has == 0 {
                users.remove(&self.uid);
            }
        }
    }
}

const fn size(bytes: u32) -> RingSize {
    match RingSize::of_bytes(bytes) {
        Some(size) => size,
        None => panic!("no size of a ring"),
    }
}

/// What clients send through: some hundred small messages, or one large one in parts.
const SUBMISSION: RingSize = size(128 << 10);
/// What they get: as much as the output holds before messages stay in their queues.
const DELIVERY: RingSize = size(256 << 10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g8_a_user_has_a_bounded_share_and_gets_it_back() {
        let bytes = (SUBMISSION.memory_bytes() + DELIVERY.memory_bytes()) as u64;
        let ledger = Arc::new(RingLedger::new(2 * bytes));
        let one = Rings::new(&ledger, 1).unwrap();
        let _two = Rings::new(&ledger, 1).unwrap();
        assert!(matches!(Rings::new(&ledger, 1), Err(NoRings::Limit { uid: 1 })));
        let _other = Rings::new(&ledger, 2).expect("others have their own");
        drop(one);
        Rings::new(&ledger, 1).unwrap();
    }

    #[test]
    fn the_clients_memory_is_mapped_for_writing_once() {
        let ledger = Arc::new(RingLedger::new(1 << 30));
        let mut rings = Rings::new(&ledger, 1).unwrap();
        let (_, files) = rings.offer();
        let map = || Mapping::read_write(files[0].as_fd(), SUBMISSION.memory_bytes());
        assert!(Mapping::read_write(files[1].as_fd(), DELIVERY.memory_bytes()).is_err());
        let _client = map().unwrap();
        rings.open().unwrap();
        assert!(map().is_err(), "sealed");
    }
}
