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
//! Both memories have all their pages from the beginning, charged to the connection's account, and go
//! when the rings have been idle for a while: an idle connection has none.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bus_core::ring::{RingError, RingReader, RingSize, RingSleeper, RingWriter};
use bus_core::wire::BrokerRings;
use bus_core::{Account, Charge, LimitExceeded, Resource};
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
    /// Something was read since the last sleep.
    pub(crate) has_spoken: bool,
    /// Rings of our bell since there was last something for it.
    rung_in_vain: u32,
    _charge: Charge,
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

/// Why there are no rings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoRings {
    /// The connection had some a moment ago: making them is work.
    #[error("it had rings a moment ago")]
    TooEarly,
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

    /// Makes rings for a connection, whose account is charged for them as long as they are.
    pub(crate) fn new(account: &Account) -> Result<Self, NoRings> {
        let charge = account.charge(Resource::PinnedBytes, Self::BYTES as u64)?;
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
            has_spoken: false,
            rung_in_vain: 0,
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
        (self.active, self.has_spoken, self.rung_in_vain) = (true, true, 0);
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
    fn silence(&self) {
        let mut rings = [0; 8];
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(self.bells().0, &mut rings));
    }

    /// Our bell was rung. Epoll tells of each ring once, so its count is left as it is. False if that was too
    /// often for nothing, and nobody is to listen for a while. Who rings only where we sleep beside his
    /// input cannot come that far: his input is read between two bells.
    pub(crate) fn heed(&mut self, waited_for_room: bool) -> bool {
        if self.has_input() || waited_for_room {
            self.rung_in_vain = 0;
        } else {
            self.rung_in_vain += 1;
        }
        let heeds = self.rung_in_vain < MOST_IN_VAIN;
        if !heeds {
            // To watch it again would tell of the rings until then.
            self.silence();
        }
        heeds
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

const fn size(bytes: u32) -> RingSize {
    match RingSize::of_bytes(bytes) {
        Some(size) => size,
        None => panic!("no size of a ring"),
    }
}

/// Rings for nothing after which a bell is not listened to for a while.
const MOST_IN_VAIN: u32 = 64;
/// What clients send through: some hundred small messages, or one large one in parts.
const SUBMISSION: RingSize = size(128 << 10);
/// What they get: as much as the output holds before messages stay in their queues.
const DELIVERY: RingSize = size(256 << 10);

#[cfg(test)]
mod tests {
    use bus_core::{Ledger, Limits, Process};

    use super::*;

    fn account(rings: u64) -> Account {
        // Half of it is assured, and of the rest a program has half.
        let user_pinned_bytes = rings * Rings::BYTES as u64 * 4 / 3;
        let limits = Limits { user_connections: 1, user_pinned_bytes, ..Limits::default() };
        Ledger::new(&limits).open(1, 1, Process::Pid(1))
    }

    #[test]
    fn g8_the_memory_is_charged_to_the_account_and_given_back() {
        let account = account(2);
        let one = Rings::new(&account).unwrap();
        let _two = Rings::new(&account).unwrap();
        assert!(matches!(Rings::new(&account), Err(NoRings::Account(_))));
        drop(one);
        Rings::new(&account).unwrap();
    }

    #[test]
    fn a_bell_that_is_rung_for_nothing_is_not_listened_to_until_there_is_something() {
        let mut rings = Rings::new(&account(1)).unwrap();
        for _ in 1..MOST_IN_VAIN {
            assert!(rings.heed(false));
        }
        assert!(!rings.heed(false));
        assert!(!rings.heed(false), "after the pause it is as it was");
        assert!(rings.heed(true));
        assert!((1..MOST_IN_VAIN).all(|_| rings.heed(false)));
        rings.finish();
        assert!((1..MOST_IN_VAIN).all(|_| rings.heed(false)), "something was read");
    }

    #[test]
    fn the_clients_memory_is_mapped_for_writing_once() {
        let mut rings = Rings::new(&account(1)).unwrap();
        let (_, files) = rings.offer();
        let map = || Mapping::read_write(files[0].as_fd(), SUBMISSION.memory_bytes());
        assert!(Mapping::read_write(files[1].as_fd(), DELIVERY.memory_bytes()).is_err());
        let _client = map().unwrap();
        rings.open().unwrap();
        assert!(map().is_err(), "sealed");
    }
}
