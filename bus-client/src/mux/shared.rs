//! What all handles of a multiplexor share, and the work that whoever waits does for all of them:
//! taking in what has come, and going on with what could not be written.
//!
//! Order of locks: a handle's sender, a stream's incoming half, its outgoing half, the hub, a shelf.
//! The list of streams and that of strays are held only to look or to change them. Nothing blocks
//! under any of these but the sender's, which only the calls of one handle share.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bus_core::framing::Framer;
use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::net::sockopt::{self, Timeout};
use rustix::pipe::PipeFlags;
use slab::Slab;

use super::hub::{Hub, Seat, Watch, Work};
use super::incoming::Incoming;
use super::outgoing::{Cut, Outgoing, Parcel, Ticket, write_parcel};
use super::readiness::{Bell, Readiness};
use super::stream::{Detached, Stream, StreamCore, StreamCounters, StreamError, count};
use super::{Attach, AttachError, Counters, Flavour, MAX_STREAMS, Message, Options};

/// Streams, handles, and what is on its way between them.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) hub: Hub<Message>,
    pub(super) readiness: Readiness,
    streams: RwLock<Slab<Arc<StreamCore>>>,
    /// Messages of streams that have died, which are to go whole on another.
    strays: Mutex<VecDeque<Cut>>,
    totals: Mutex<Totals>,
    resent: AtomicU64,
    pub(super) changed_stream: AtomicU64,
    /// Streams that are watched for room: while there is none, nobody has to ask the system.
    watched: AtomicUsize,
}

#[derive(Debug, Default)]
struct Totals {
    attached: u64,
    unattached: u64,
    broken: u64,
    too_long: u64,
    timed_out: u64,
    /// Of streams that are no longer attached.
    past: StreamCounters,
}

/// What a stream made of a parcel.
#[derive(Debug)]
pub(super) enum Wrote {
    /// All of it is written.
    All,
    /// Its beginning is, and the rest is kept and follows.
    Cut(Arc<Ticket>),
    /// Nothing is; whoever waits for room is told.
    Full,
    /// The stream is dead. Messages before this byte have gone.
    Dead(usize),
}

impl Shared {
    pub(super) fn new(options: Options) -> io::Result<Self> {
        Ok(Self {
            options,
            hub: Hub::new(Bell::new()?, options.steering),
            readiness: Readiness::new()?,
            streams: RwLock::default(),
            strays: Mutex::default(),
            totals: Mutex::default(),
            resent: AtomicU64::new(0),
            changed_stream: AtomicU64::new(0),
            watched: AtomicUsize::new(0),
        })
    }

    pub(super) fn flavour(&self) -> Flavour {
        self.options.flavour
    }

    /// Streams that are alive, from the least to the most loaded: by whether their sockets were
    /// full, then by how many handles stay on them, then by what went through.
    pub(super) fn by_load(&self) -> Vec<Arc<StreamCore>> {
        let load = |stream: &Arc<StreamCore>| {
            let full = stream.full.load(Ordering::Relaxed);
            let stayers = stream.stayers.load(Ordering::Relaxed);
            (full, stayers, stream.counters.sent_bytes.load(Ordering::Relaxed))
        };
        let streams = self.streams.read();
        let mut alive: Vec<_> = streams.iter().map(|(_, stream)| Arc::clone(stream)).collect();
        drop(streams);
        alive.retain(|stream| stream.is_alive());
        alive.sort_by_cached_key(load);
        alive
    }

    pub(super) fn attach(
        self: &Arc<Self>,
        socket: OwnedFd,
        framer: Arc<dyn Framer>,
        attach: Attach,
    ) -> Result<Stream, AttachError> {
        let system =
            |action| move |source: Errno| AttachError::System { action, source: source.into() };
        let kind = sockopt::socket_type(&socket).map_err(system("ask for the type of"))?;
        if kind != SocketType::STREAM {
            return Err(AttachError::NotAStream);
        }
        let maximum = match attach.maximum {
            Some(maximum) => maximum,
            None => sockopt::socket_recv_buffer_size(&socket)
                .map_err(system("ask for the buffer size of"))?
                .try_into()
                .map_err(|_| AttachError::NotAStream)?,
        };
        let timeout = match attach.timeout {
            Some(timeout) => timeout,
            None => sockopt::socket_timeout(&socket, Timeout::Recv)
                .map_err(system("ask for the time-out of"))?,
        };
        let (listening, alarm) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(system("make a pipe for"))?;
        let socket = Arc::new(socket);
        let incoming = Incoming::new(Arc::clone(&socket), maximum, timeout, attach.unread);
        let outgoing = Outgoing::new(Arc::clone(&socket));
        let mut streams = self.streams.write();
        if streams.len() >= MAX_STREAMS {
            return Err(AttachError::TooMany);
        }
        let entry = streams.vacant_entry();
        let key = entry.key();
        let core = StreamCore::new(key, framer, timeout.is_some(), incoming, outgoing, listening);
        let core = Arc::new(core);
        entry.insert(Arc::clone(&core));
        drop(streams);
        self.totals.lock().attached += 1;
        self.take_what_is_there(&core);
        if let Err(error) = self.readiness.add_stream(&socket, key) {
            drop(self.unattach(&core, socket));
            return Err(AttachError::System { action: "watch", source: error });
        }
        self.resend();
        self.hub.room();
        Ok(Stream { core, socket, alarm, shared: Arc::clone(self) })
    }

    /// Messages that came with the stream when it was attached.
    fn take_what_is_there(&self, stream: &Arc<StreamCore>) {
        let mut batch = Vec::new();
        let mut incoming = stream.incoming.lock();
        let cut = incoming.cut(&*stream.framer, Instant::now(), &mut batch);
        count(&stream.counters.received_messages, batch.len());
        if let Some(left) = incoming.time_left() {
            self.readiness.ring_within(left);
        }
        self.hub.deliver(&mut batch, None);
        drop(incoming);
        if let Err(error) = cut {
            self.break_stream(stream, error.into());
        }
    }

    pub(super) fn unattach(&self, stream: &Arc<StreamCore>, socket: Arc<OwnedFd>) -> Detached {
        stream.end(None);
        self.streams.write().try_remove(stream.key);
        // It may have gone already, when the stream broke.
        self.readiness.remove_input(&socket);
        let mut incoming = stream.incoming.lock();
        let unread = incoming.take_unread();
        let theirs = incoming.socket.take();
        drop(incoming);
        let mut outgoing = stream.outgoing.lock();
        let unsent = outgoing.cut.as_ref().map(|cut| cut.rest().to_vec()).unwrap_or_default();
        if let Some(cut) = outgoing.cut.take() {
            cut.lose();
        }
        self.watch(stream, &mut outgoing, false);
        let ours = outgoing.socket.take();
        drop(outgoing);
        drop((theirs, ours));
        let counters = stream.counters.get();
        let mut totals = self.totals.lock();
        totals.unattached += 1;
        totals.past += counters;
        drop(totals);
        self.hub.room();
        let socket = Arc::into_inner(socket)
            .expect("the halves' references were taken out under their locks, and never cloned");
        Detached { socket, unread, unsent, error: stream.error(), counters }
    }

    /// Reads the streams that have something, as long as somebody asks for messages.
    pub(super) fn take_in(&self, reader: Option<Seat>) {
        if !self.hub.may_read() {
            return;
        }
        let ready = {
            let streams = self.streams.read();
            let mut all = streams.iter();
            match (all.next(), all.next()) {
                // Asking which one it is would cost as much as reading it.
                (Some((_, only)), None) if !only.timed => vec![Arc::clone(only)],
                _ => {
                    drop(streams);
                    self.ready_streams()
                }
            }
        };
        let mut batch = Vec::new();
        for stream in ready {
            if !self.hub.may_read() {
                break;
            }
            self.read(&stream, &mut batch, reader);
        }
    }

    fn ready_streams(&self) -> Vec<Arc<StreamCore>> {
        let ready = self.readiness.input();
        if ready.timer {
            self.readiness.timer_seen();
        }
        let streams = self.streams.read();
        let mut found: Vec<_> =
            ready.streams.iter().filter_map(|key| streams.get(*key)).map(Arc::clone).collect();
        if ready.timer {
            let timed = streams.iter().map(|(_, stream)| stream);
            found.extend(timed.filter(|stream| stream.timed).map(Arc::clone));
        }
        found
    }

    /// One readiness of one stream: what it brings goes to one handle.
    fn read(&self, stream: &Arc<StreamCore>, batch: &mut Vec<Message>, reader: Option<Seat>) {
        // Whoever reads it now delivers it.
        let Some(mut incoming) = stream.incoming.try_lock() else { return };
        if !stream.is_alive() {
            return;
        }
        let read = incoming.read(&*stream.framer, batch);
        let counters = &stream.counters;
        if let Ok(bytes @ 1..) = read {
            count(&counters.received_bytes, bytes);
            count(&counters.readinesses, 1);
        }
        count(&counters.received_messages, batch.len());
        if let Some(left) = incoming.time_left() {
            self.readiness.ring_within(left);
        }
        // With the half's lock still held: what is read next must not be delivered before.
        self.hub.deliver(batch, reader);
        drop(incoming);
        if let Err(error) = read {
            self.break_stream(stream, error);
        }
    }

    /// Goes on with streams that have room again.
    pub(super) fn take_out(&self) {
        if self.watched.load(Ordering::Acquire) == 0 {
            return;
        }
        let ready = self.readiness.output();
        if ready.streams.is_empty() {
            return;
        }
        for key in ready.streams {
            let stream = self.streams.read().get(key).map(Arc::clone);
            if let Some(stream) = stream {
                self.go_on(&stream);
            }
        }
        self.resend();
        self.hub.room();
    }

    fn go_on(&self, stream: &Arc<StreamCore>) {
        let mut outgoing = stream.outgoing.lock();
        match self.flush(stream, &mut outgoing) {
            Ok(true) => {
                stream.full.store(false, Ordering::Relaxed);
                self.watch(stream, &mut outgoing, false);
            }
            Ok(false) => {}
            Err(errno) => {
                drop(outgoing);
                self.break_stream(stream, StreamError::System { errno: errno.raw_os_error() });
            }
        }
    }

    /// Writes the rest of a cut message. True if there is none any more.
    fn flush(&self, stream: &StreamCore, outgoing: &mut Outgoing) -> Result<bool, Errno> {
        let Outgoing { socket: Some(socket), cut: Some(cut), .. } = outgoing else {
            return Ok(true);
        };
        let (before, messages) = (cut.rest().len(), cut.messages());
        let all = cut.go_on(socket)?;
        count(&stream.counters.sent_bytes, before - cut.rest().len());
        count(&stream.counters.sent_messages, messages - cut.messages());
        if all {
            outgoing.cut = None;
        }
        Ok(all)
    }

    /// Writes a parcel to one stream, as far as it goes.
    pub(super) fn write(&self, stream: &Arc<StreamCore>, parcel: &Parcel<'_>) -> Wrote {
        let mut outgoing = stream.outgoing.lock();
        if !stream.is_alive() {
            return Wrote::Dead(parcel.from);
        }
        let (at, error) = match self.flush(stream, &mut outgoing) {
            Ok(true) => match &outgoing.socket {
                Some(socket) => {
                    let written = write_parcel(parcel, socket);
                    (written.at, written.error)
                }
                None => return Wrote::Dead(parcel.from),
            },
            Ok(false) => (parcel.from, Some(Errno::AGAIN)),
            Err(error) => (parcel.from, Some(error)),
        };
        count(&stream.counters.sent_bytes, at - parcel.from);
        count(&stream.counters.sent_messages, parcel.messages(parcel.from, at));
        match error {
            None => Wrote::All,
            Some(Errno::AGAIN) => {
                count(&stream.counters.full, 1);
                stream.full.store(true, Ordering::Relaxed);
                self.watch(stream, &mut outgoing, true);
                if at == parcel.from {
                    return Wrote::Full;
                }
                let ticket = Arc::new(Ticket::default());
                outgoing.cut = Some(parcel.cut_at(at, Some(Arc::clone(&ticket))));
                Wrote::Cut(ticket)
            }
            Some(error) => {
                drop(outgoing);
                let errno = error.raw_os_error();
                self.break_stream(stream, StreamError::System { errno });
                let whole = parcel.ends.partition_point(|&end| end <= at);
                let gone = whole.checked_sub(1).map_or(0, |last| parcel.ends[last]);
                Wrote::Dead(gone.max(parcel.from))
            }
        }
    }

    fn watch(&self, stream: &StreamCore, outgoing: &mut Outgoing, on: bool) {
        if outgoing.watched != on
            && let Some(socket) = &outgoing.socket
        {
            outgoing.watched = on;
            if on {
                self.watched.fetch_add(1, Ordering::AcqRel);
            } else {
                self.watched.fetch_sub(1, Ordering::AcqRel);
            }
            self.readiness.watch_output(socket, stream.key, on);
        }
    }

    /// The stream has failed: nobody uses it from now on, its owner sees it, and what it had not
    /// written goes elsewhere.
    fn break_stream(&self, stream: &Arc<StreamCore>, error: StreamError) {
        if !stream.end(Some(error)) {
            return;
        }
        let mut outgoing = stream.outgoing.lock();
        self.watch(stream, &mut outgoing, false);
        if let Some(socket) = &outgoing.socket {
            self.readiness.remove_input(socket);
        }
        let cut = outgoing.cut.take();
        drop(outgoing);
        if let Some(cut) = cut {
            self.stray(cut.rewound());
        }
        let mut totals = self.totals.lock();
        totals.broken += 1;
        totals.too_long += u64::from(error.errno() == Errno::MSGSIZE.raw_os_error());
        totals.timed_out += u64::from(error.errno() == Errno::TIMEDOUT.raw_os_error());
        drop(totals);
        self.resend();
        self.hub.room();
    }

    /// Messages that belong to no stream any more, to be sent on the next that has room.
    pub(super) fn stray(&self, cut: Cut) {
        self.strays.lock().push_back(cut);
    }

    /// Sends strays on, as far as there is room.
    pub(super) fn resend(&self) {
        let mut strays = self.strays.lock();
        if strays.is_empty() {
            return;
        }
        let streams = self.by_load();
        if streams.is_empty() {
            // Those whose senders wait are told; the others wait for a stream.
            let (waited, kept) = strays.drain(..).partition(Cut::is_waited_for);
            *strays = kept;
            VecDeque::into_iter(waited).for_each(Cut::lose);
            return;
        }
        let mut died = Vec::new();
        for stream in streams {
            let mut outgoing = stream.outgoing.lock();
            while outgoing.cut.is_none()
                && stream.is_alive()
                && let Some(stray) = strays.pop_front()
            {
                self.resent.fetch_add(1, Ordering::Relaxed);
                outgoing.cut = Some(stray);
                match self.flush(&stream, &mut outgoing) {
                    Ok(true) => {}
                    Ok(false) => {
                        stream.full.store(true, Ordering::Relaxed);
                        self.watch(&stream, &mut outgoing, true);
                    }
                    Err(errno) => died.push((Arc::clone(&stream), errno.raw_os_error())),
                }
                if !died.is_empty() {
                    break;
                }
            }
        }
        drop(strays);
        // One stream fewer each time, so this comes to an end.
        for (stream, errno) in died {
            self.break_stream(&stream, StreamError::System { errno });
        }
    }

    pub(super) fn counters(&self) -> Counters {
        let numbers = self.hub.numbers();
        let streams = self.streams.read();
        let totals = self.totals.lock();
        let mut all = totals.past;
        for (_, stream) in &*streams {
            all += stream.counters.get();
        }
        Counters {
            handles: numbers.handles,
            streams: streams.len(),
            attached: totals.attached,
            unattached: totals.unattached,
            broken: totals.broken,
            too_long: totals.too_long,
            timed_out: totals.timed_out,
            held_messages: numbers.held,
            moved_messages: numbers.moved,
            resent: self.resent.load(Ordering::Relaxed),
            changed_stream: self.changed_stream.load(Ordering::Relaxed),
            streams_together: all,
        }
    }
}

impl Work for Shared {
    fn dispatch(&self, reader: Option<Seat>) {
        self.take_out();
        self.take_in(reader);
    }

    fn sleep(&self, watch: Watch, left: Option<Duration>) {
        self.readiness.sleep(&self.hub.bell, watch, left);
    }
}
