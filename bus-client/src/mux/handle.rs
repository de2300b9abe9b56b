//! A handle: sending and receiving of whole messages, as one thread's socket.
//!
//! Invariant: what one handle sends goes out in the order of its calls as long as it stays on one
//! stream, because its sender is locked for the whole of a call. A call that must not block and
//! finds another one inside says `WouldBlock`.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::hub::{Patience, Reason, Seat, Shelf, Slept, Work, is_over};
use super::outgoing::{Fate, Parcel, Ticket};
use super::shared::{Shared, Wrote};
use super::stream::StreamCore;
use super::{Flavour, HandleError, MAX_HANDLES, Message, ReceiveError, SendError};

/// One of a multiplexor's handles. All are alike; see the [module](super).
///
/// As a descriptor ([`AsFd`]) it is to be polled for reading: it is readable when there is something
/// to receive or to [`dispatch`](Self::dispatch), or when a send that found no room may be tried
/// again. It can be readable and the next call still find nothing.
///
/// Dropping it gives what it had not taken to the other handles.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    seat: Seat,
    shelf: Arc<Shelf<Message>>,
    sender: Mutex<Sender>,
    /// A message that was read in part, and from where on it is left.
    rest: Mutex<Option<Message>>,
}

/// What a read into a buffer brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// Bytes that are in the buffer.
    pub bytes: usize,
    /// The message ends with them: the end of the record.
    pub end: bool,
    /// Bytes of the message that did not fit and are gone (datagram), 0 if none.
    pub truncated: usize,
}

#[derive(Debug, Default)]
struct Sender {
    /// The stream on which it stays.
    stream: Option<Arc<StreamCore>>,
    batch: Option<Batch>,
    /// The pieces of a message so far.
    record: Vec<u8>,
}

/// Messages that wait for the last one of their batch.
#[derive(Debug)]
struct Batch {
    stream: Arc<StreamCore>,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// What came of an offer to the streams.
enum Offered {
    Gone,
    Begun(Arc<Ticket>),
    NoRoom,
}

impl Handle {
    pub(super) fn new(shared: &Arc<Shared>) -> Result<Self, HandleError> {
        let pollable = shared.readiness.pollable()?;
        let (seat, shelf) = shared.hub.open(pollable, MAX_HANDLES).ok_or(HandleError::TooMany)?;
        let (sender, rest) = (Mutex::default(), Mutex::default());
        Ok(Self { shared: Arc::clone(shared), seat, shelf, sender, rest })
    }

    /// Makes another handle of the same multiplexor.
    ///
    /// # Errors
    ///
    /// As [`Multiplexor::handle`](super::Multiplexor::handle).
    pub fn try_clone(&self) -> Result<Self, HandleError> {
        Self::new(&self.shared)
    }

    /// Waits for the next message, and takes it.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Closed`]. That streams break or that there is none is no error here: another
    /// may be attached.
    pub fn receive(&self) -> Result<Message, ReceiveError> {
        self.receive_until(Patience::Endless)
    }

    /// Takes the next message if there is one. Never blocks.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::WouldBlock`] if there is none, or none for this handle: its turn comes.
    pub fn try_receive(&self) -> Result<Message, ReceiveError> {
        self.receive_until(Patience::None)
    }

    /// Waits at most so long for the next message.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::TimedOut`] when the time is over.
    pub fn receive_deadline(&self, timeout: Duration) -> Result<Message, ReceiveError> {
        self.receive_until(Patience::within(timeout))
    }

    /// Waits for a message, and takes it with those that came with it, `most` at most. Appends them
    /// to `into` and says how many.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive).
    pub fn receive_batch(
        &self,
        into: &mut Vec<Message>,
        most: usize,
    ) -> Result<usize, ReceiveError> {
        self.batch_until(into, most, Patience::Endless)
    }

    /// The same with what is there. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`try_receive`](Self::try_receive).
    pub fn try_receive_batch(
        &self,
        into: &mut Vec<Message>,
        most: usize,
    ) -> Result<usize, ReceiveError> {
        self.batch_until(into, most, Patience::None)
    }

    /// Waits for a message and copies it into `buffer`, as far as it fits. What does not fit is
    /// gone if this is a datagram handle, and comes with the next call if it is a seqpacket one.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive).
    pub fn receive_into(&self, buffer: &mut [u8]) -> Result<Received, ReceiveError> {
        self.copy_until(buffer, Patience::Endless)
    }

    /// The same with what is there. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`try_receive`](Self::try_receive).
    pub fn try_receive_into(&self, buffer: &mut [u8]) -> Result<Received, ReceiveError> {
        self.copy_until(buffer, Patience::None)
    }

    /// Receives no more from now on: what it has not taken goes to the other handles, in its order,
    /// or is held until one asks. A message that was read in part stays.
    ///
    /// For a thread that is going to be busy for a while.
    pub fn disable_receive(&self) {
        self.shared.hub.disable(self.seat);
        self.shared.readiness.show_input(self.shelf.pollable_quietly(), false);
    }

    /// Receives again: it is the last in turn. What was moved does not come back.
    pub fn enable_receive(&self) {
        self.shared.readiness.show_input(self.shelf.pollable_quietly(), true);
        self.shared.hub.enable(self.seat);
    }

    /// Whether it receives.
    #[must_use]
    pub fn receives(&self) -> bool {
        self.shared.hub.is_enabled(self.seat)
    }

    /// Sends one message, and waits until all of it is written. In a batch it is the last.
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub fn send(&self, message: &[u8]) -> Result<(), SendError> {
        self.send_until(message, Patience::Endless)
    }

    /// Sends one message if a stream has room. Never blocks.
    ///
    /// Of a message that a socket took in part the rest is kept, and follows while somebody waits,
    /// polls or calls.
    ///
    /// # Errors
    ///
    /// [`SendError::WouldBlock`]; see [`SendError`].
    pub fn try_send(&self, message: &[u8]) -> Result<(), SendError> {
        self.send_until(message, Patience::None)
    }

    /// Sends one message as soon as a stream has room, within `timeout`. Of a message that is begun
    /// by then the rest follows as with [`try_send`](Self::try_send).
    ///
    /// # Errors
    ///
    /// [`SendError::TimedOut`]; see [`SendError`].
    pub fn send_deadline(&self, message: &[u8], timeout: Duration) -> Result<(), SendError> {
        self.send_until(message, Patience::within(timeout))
    }

    /// Sends several messages with one call, one after the other on one stream.
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub fn send_many(&self, messages: &[impl AsRef<[u8]>]) -> Result<(), SendError> {
        self.many_until(messages, Patience::Endless)
    }

    /// The same if a stream has room; all of them are taken then, or none. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`try_send`](Self::try_send).
    pub fn try_send_many(&self, messages: &[impl AsRef<[u8]>]) -> Result<(), SendError> {
        self.many_until(messages, Patience::None)
    }

    /// Sends one message, and says that more are to come: it may wait here until the last one,
    /// which comes by [`send`](Self::send) or [`flush`](Self::flush), and all go on one stream.
    /// Blocks only if much is waiting already.
    ///
    /// # Errors
    ///
    /// See [`SendError`]. [`SendError::Broken`] ends the batch: what of it has not been written is
    /// lost.
    pub fn send_more(&self, message: &[u8]) -> Result<(), SendError> {
        let sender = &mut *self.sender.lock();
        let given = message.len();
        self.check(given, 1)?;
        if sender.batch.as_ref().is_some_and(|batch| batch.bytes.len() + given > BATCH_BYTES) {
            self.write_batch(sender, &[], Patience::Endless)?;
        }
        let batch = match &mut sender.batch {
            Some(batch) => batch,
            None => {
                let stream = self.stay(&mut sender.stream).ok_or(SendError::Broken)?;
                sender.batch.insert(Batch { stream, bytes: Vec::new(), ends: Vec::new() })
            }
        };
        batch.bytes.extend_from_slice(message);
        batch.ends.push(batch.bytes.len());
        Ok(())
    }

    /// Ends a batch without a further message.
    ///
    /// # Errors
    ///
    /// As [`send_more`](Self::send_more).
    pub fn flush(&self) -> Result<(), SendError> {
        self.write_batch(&mut self.sender.lock(), &[], Patience::Endless)
    }

    /// Adds a piece to the message that the next [`send`](Self::send) ends and sends (seqpacket
    /// handles only). Does not block.
    ///
    /// # Errors
    ///
    /// [`SendError::WholeOnly`], [`SendError::TooLarge`]; the pieces before stay.
    pub fn send_piece(&self, piece: &[u8]) -> Result<(), SendError> {
        if self.shared.flavour() == Flavour::Datagram {
            return Err(SendError::WholeOnly);
        }
        let mut sender = self.sender.lock();
        self.check(sender.record.len() + piece.len(), 0)?;
        sender.record.extend_from_slice(piece);
        Ok(())
    }

    /// Does what is ready now, for all handles. Never blocks. To be called when the descriptor is
    /// readable, before it is polled again; the calls that send and receive do it as well.
    pub fn dispatch(&self) {
        self.shelf.set_room(false);
        self.shared.dispatch(None);
    }

    fn receive_until(&self, patience: Patience) -> Result<Message, ReceiveError> {
        if self.shared.flavour() == Flavour::SeqPacket
            && let Some(rest) = self.rest.lock().take()
        {
            return Ok(rest);
        }
        self.take_until(patience, || self.shelf.pop())
    }

    fn batch_until(
        &self,
        into: &mut Vec<Message>,
        most: usize,
        patience: Patience,
    ) -> Result<usize, ReceiveError> {
        if most == 0 {
            return Ok(0);
        }
        let rest = self.rest.lock().take();
        let first = usize::from(rest.is_some());
        into.extend(rest);
        if first == 1 {
            return Ok(1 + self.shelf.pop_many(most - 1, into));
        }
        self.take_until(patience, || match self.shelf.pop_many(most, into) {
            0 => None,
            count => Some(count),
        })
    }

    fn copy_until(&self, buffer: &mut [u8], patience: Patience) -> Result<Received, ReceiveError> {
        let message = self.receive_until(patience)?;
        let bytes = message.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&message[..bytes]);
        let left = message.len() - bytes;
        if left == 0 {
            return Ok(Received { bytes, end: true, truncated: 0 });
        }
        match self.shared.flavour() {
            Flavour::Datagram => Ok(Received { bytes, end: true, truncated: left }),
            Flavour::SeqPacket => {
                *self.rest.lock() = Some(message.after(bytes));
                Ok(Received { bytes, end: false, truncated: 0 })
            }
        }
    }

    fn take_until<T>(
        &self,
        patience: Patience,
        take: impl FnMut() -> Option<T>,
    ) -> Result<T, ReceiveError> {
        let shared = &self.shared;
        shared.hub.take_until(&**shared, self.seat, &self.shelf, patience, take)
    }

    fn send_until(&self, message: &[u8], patience: Patience) -> Result<(), SendError> {
        let sender = &mut *self.lock_sender(patience)?;
        if sender.record.is_empty() {
            self.check(message.len(), 1)?;
            return self.write_last(sender, message, patience);
        }
        self.check(sender.record.len() + message.len(), 1)?;
        let mut record = std::mem::take(&mut sender.record);
        let pieces = record.len();
        record.extend_from_slice(message);
        let result = self.write_last(sender, &record, patience);
        if result.is_err() {
            record.truncate(pieces);
            sender.record = record;
        }
        result
    }

    /// One message: the last of a batch if there is one.
    fn write_last(
        &self,
        sender: &mut Sender,
        message: &[u8],
        patience: Patience,
    ) -> Result<(), SendError> {
        if sender.batch.is_some() {
            return self.write_batch(sender, message, patience);
        }
        let parcel = Parcel { slices: &[message], ends: &[message.len()], from: 0 };
        self.write(&mut sender.stream, None, parcel, patience)
    }

    fn many_until(
        &self,
        messages: &[impl AsRef<[u8]>],
        patience: Patience,
    ) -> Result<(), SendError> {
        let sender = &mut *self.lock_sender(patience)?;
        let slices: Vec<&[u8]> = messages.iter().map(AsRef::as_ref).collect();
        let mut total = 0_usize;
        let mut ends = Vec::with_capacity(slices.len());
        for slice in &slices {
            if slice.is_empty() {
                return Err(SendError::Empty);
            }
            total = total.saturating_add(slice.len());
            ends.push(total);
        }
        self.check(total, 0)?;
        if total == 0 {
            return Ok(());
        }
        self.write_batch(sender, &[], patience)?;
        let parcel = Parcel { slices: &slices, ends: &ends, from: 0 };
        self.write(&mut sender.stream, None, parcel, patience)
    }

    fn write_batch(
        &self,
        sender: &mut Sender,
        last: &[u8],
        patience: Patience,
    ) -> Result<(), SendError> {
        let Some(mut batch) = sender.batch.take() else { return Ok(()) };
        let before = batch.ends.len();
        let slices = [&batch.bytes[..], last];
        if !last.is_empty() {
            batch.ends.push(batch.bytes.len() + last.len());
        }
        let parcel = Parcel { slices: &slices, ends: &batch.ends, from: 0 };
        let result = self.write(&mut sender.stream, Some(&batch.stream), parcel, patience);
        if matches!(result, Err(SendError::WouldBlock | SendError::TimedOut)) {
            batch.ends.truncate(before);
            sender.batch = Some(batch);
        }
        result
    }

    /// Puts a parcel on a stream: on `bound`, or on the one that has room.
    fn write(
        &self,
        current: &mut Option<Arc<StreamCore>>,
        bound: Option<&Arc<StreamCore>>,
        mut parcel: Parcel<'_>,
        patience: Patience,
    ) -> Result<(), SendError> {
        let hub = &self.shared.hub;
        let mut slept = false;
        let result = loop {
            let rooms = hub.rooms();
            let offered = match bound {
                Some(stream) => self.offer_one(stream, &mut parcel),
                None => self.offer(current, &mut parcel),
            };
            match offered {
                Ok(Offered::Gone) => break Ok(()),
                Err(error) => break Err(error),
                Ok(Offered::Begun(_)) if patience == Patience::None => break Ok(()),
                Ok(Offered::Begun(ticket)) => {
                    slept = true;
                    break self.await_fate(&ticket, patience.deadline());
                }
                Ok(Offered::NoRoom) => {}
            }
            if patience == Patience::None {
                self.shelf.set_room(false);
                hub.want_room(self.seat);
                // What has come meanwhile is seen here; what comes later, on the descriptor.
                if hub.rooms() != rooms {
                    continue;
                }
                break Err(SendError::WouldBlock);
            }
            slept = true;
            match self.sleep_for_room(rooms, patience.deadline()) {
                _ if hub.is_closed() => break Err(SendError::Closed),
                Slept::TimedOut => break Err(SendError::TimedOut),
                _ if is_over(patience.deadline()) => break Err(SendError::TimedOut),
                _ => {}
            }
        };
        if slept {
            hub.hand_on();
        }
        result
    }

    fn sleep_for_room(&self, rooms: u64, deadline: Option<Instant>) -> Slept {
        let hub = &self.shared.hub;
        let ready = || hub.rooms() != rooms;
        let sleep = |watch, left| self.shared.sleep(watch, left);
        let slept = hub.sleep(Reason::Send, deadline, ready, sleep);
        if slept == Slept::Led {
            self.shared.dispatch(None);
        }
        slept
    }

    /// Waits until a message that is begun has gone. It cannot be called back: when the time is
    /// over, the rest follows without us.
    fn await_fate(&self, ticket: &Ticket, deadline: Option<Instant>) -> Result<(), SendError> {
        let hub = &self.shared.hub;
        loop {
            let rooms = hub.rooms();
            match ticket.fate() {
                Fate::Gone => return Ok(()),
                Fate::Lost => return Err(SendError::Broken),
                Fate::UnderWay if hub.is_closed() || is_over(deadline) => return Ok(()),
                Fate::UnderWay => {}
            }
            if self.sleep_for_room(rooms, deadline) == Slept::TimedOut {
                return Ok(());
            }
        }
    }

    fn offer_one(
        &self,
        stream: &Arc<StreamCore>,
        parcel: &mut Parcel<'_>,
    ) -> Result<Offered, SendError> {
        match self.shared.write(stream, parcel) {
            Wrote::All => Ok(Offered::Gone),
            Wrote::Cut(ticket) => Ok(Offered::Begun(ticket)),
            Wrote::Full => Ok(Offered::NoRoom),
            Wrote::Dead(_) => Err(SendError::Broken),
        }
    }

    /// Offers a parcel to the stream on which the handle stays, if that has room, and then to the
    /// others by their load.
    fn offer(
        &self,
        current: &mut Option<Arc<StreamCore>>,
        parcel: &mut Parcel<'_>,
    ) -> Result<Offered, SendError> {
        if let Some(stream) = current
            && !stream.full.load(Ordering::Relaxed)
            && let Some(offered) = self.offer_to(stream, parcel)
        {
            return Ok(offered);
        }
        loop {
            let streams = self.shared.by_load();
            if streams.is_empty() {
                return Err(SendError::Broken);
            }
            let mut died = false;
            for stream in streams {
                match self.shared.write(&stream, parcel) {
                    Wrote::Full => continue,
                    Wrote::Dead(gone) => {
                        (parcel.from, died) = (gone, true);
                        continue;
                    }
                    Wrote::All => {
                        self.move_to(current, stream);
                        return Ok(Offered::Gone);
                    }
                    Wrote::Cut(ticket) => {
                        self.move_to(current, stream);
                        return Ok(Offered::Begun(ticket));
                    }
                }
            }
            if !died {
                return Ok(Offered::NoRoom);
            }
        }
    }

    fn offer_to(&self, stream: &Arc<StreamCore>, parcel: &mut Parcel<'_>) -> Option<Offered> {
        match self.shared.write(stream, parcel) {
            Wrote::All => Some(Offered::Gone),
            Wrote::Cut(ticket) => Some(Offered::Begun(ticket)),
            Wrote::Full => None,
            Wrote::Dead(gone) => {
                parcel.from = gone;
                None
            }
        }
    }

    /// The stream on which the handle stays, or the least loaded one.
    fn stay(&self, current: &mut Option<Arc<StreamCore>>) -> Option<Arc<StreamCore>> {
        let stays = current
            .as_ref()
            .is_some_and(|stream| stream.is_alive() && !stream.full.load(Ordering::Relaxed));
        if !stays {
            let best = self.shared.by_load().into_iter().next()?;
            self.move_to(current, best);
        }
        current.clone()
    }

    fn move_to(&self, current: &mut Option<Arc<StreamCore>>, stream: Arc<StreamCore>) {
        if let Some(before) = current {
            if Arc::ptr_eq(before, &stream) {
                return;
            }
            before.stayers.fetch_sub(1, Ordering::Relaxed);
            self.shared.changed_stream.fetch_add(1, Ordering::Relaxed);
        }
        stream.stayers.fetch_add(1, Ordering::Relaxed);
        *current = Some(stream);
    }

    fn check(&self, given: usize, least: usize) -> Result<(), SendError> {
        let limit = self.shared.options.send_bytes;
        match given {
            _ if self.shared.hub.is_closed() => Err(SendError::Closed),
            given if given < least => Err(SendError::Empty),
            given if given > limit => Err(SendError::TooLarge { given, limit }),
            _ => Ok(()),
        }
    }

    fn lock_sender(&self, patience: Patience) -> Result<MutexGuard<'_, Sender>, SendError> {
        match patience {
            Patience::None => self.sender.try_lock().ok_or(SendError::WouldBlock),
            Patience::Until(at) => self.sender.try_lock_until(at).ok_or(SendError::TimedOut),
            Patience::Endless => Ok(self.sender.lock()),
        }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shelf.pollable().as_fd()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let sender = self.sender.get_mut();
        if let Some(batch) = sender.batch.take() {
            // It was accepted; it goes where there is room.
            let parcel = Parcel { slices: &[&batch.bytes], ends: &batch.ends, from: 0 };
            self.shared.stray(parcel.cut_at(0, None));
            self.shared.resend();
        }
        if let Some(stream) = sender.stream.take() {
            stream.stayers.fetch_sub(1, Ordering::Relaxed);
        }
        self.shared.hub.close_seat(self.seat);
    }
}

/// Bytes of a batch beyond which its messages go out before its last one.
const BATCH_BYTES: usize = 64 << 10;
