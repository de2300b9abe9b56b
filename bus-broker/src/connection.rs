//! One connection: its socket, what has come and makes no whole frame yet, what waits to go out,
//! and the conversation.
//!
//! Invariant: memory for a frame is taken only once its length is known and within bounds, and a
//! connection has at most one unfinished frame. Small frames share the thread's buffer and leave at
//! most a beginning behind; a large one gets memory of exactly its size, is read right into it, and
//! is kept there as the message's payload.
//!
//! A connection that ends gives up its endpoints at once, and lingers only to say goodbye.

use std::{
    mem,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Instant,
};

use bus_core::{
    Account, Charge, Credentials, Resource,
    wire::{BrokerFrame, BrokerRings, ClientRings, Goodbye, GoodbyeCode},
};
use bytes::{Buf, Bytes, BytesMut};
use rustix::{event::epoll::EventFlags, io::Errno, net::sockopt};

use crate::{
    broker::{ConnectionPlace, Newcomer, Origin, Peer, Shared},
    credentials::PeerCredentials,
    door::DoorPlace,
    inbox::{Inbox, Part, Token},
    link::{Link, LinkError, is_at},
    log_limit::LogEvent,
    output::{Carried, Output, SpareBuffers, Turn},
    passed_over::PassedOver,
    peer_process,
    protocol::{Progress, Protocol},
    rings::{NoRings, Rings, Stage},
    roster::{CameFrom, Client, ClientEntry},
    session::say,
    transport::{Arrived, Received, Sent, Socket},
};

/// A connection, owned by one I/O thread.
#[derive(Debug)]
pub(crate) struct Connection {
    link: Link,
    token: Token,
    protocol: Protocol,
    /// The beginning of a frame, or whole frames while the output is full.
    unread: Vec<u8>,
    /// Bytes that the frame in `unread` needs to be whole.
    needs: usize,
    /// The last frame was a large one, so the next may be.
    expects_large: bool,
    /// What its user is charged for it, if it is a large one.
    unread_charge: Option<Charge>,
    /// A frame under way that is refused.
    passed_over: Option<Box<PassedOver>>,
    arrived: Arrived,
    output: Output,
    /// There is no room for more now.
    output_blocked: bool,
    /// It is the socket that has none.
    socket_blocked: bool,
    /// When rings may be asked for again.
    rings_from: Option<Instant>,
    /// They were asked for while other descriptors were under way.
    rings_asked: bool,
    /// Its ring is looked at in each turn.
    pub(crate) is_hot: bool,
    /// Already in the list of those whose bells are to be rung.
    pub(crate) is_to_be_rung: bool,
    /// Frames in `unread` wait for their turn, or for the client to read; until then it is not
    /// read itself.
    input_paused: bool,
    /// What epoll was last told to watch for.
    interest: EventFlags,
    /// What had been read at the last look for orphans.
    read_before: Option<u64>,
    /// Already in the list of those to be flushed.
    pub(crate) is_dirty: bool,
    /// Already in the list of those whose output was put off.
    pub(crate) is_put_off: bool,
    /// Epoll knows of it, from its first flush on.
    is_watched: bool,
    /// Already among those whose unfinished messages are looked at in time.
    pub(crate) is_timed: bool,
    ending: bool,
    entry: ClientEntry,
    place: ConnectionPlace,
    _door: Option<DoorPlace>,
}

/// What connections of one thread share.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Where a read puts its bytes.
    landing: Box<[u8]>,
    /// Where they are put together with the beginning of a frame from an earlier read.
    frames: BytesMut,
    spare: SpareBuffers,
    /// Sends of this thread's connections that wait in the bus.
    pub(crate) waiting_sends: usize,
}

/// What a connection needs of its surroundings to act.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) inbox: &'a Arc<Inbox>,
    /// Whose connection it is.
    pub(crate) client: &'a Arc<Client>,
    pub(crate) waiting_sends: &'a mut usize,
    /// What is charged for what the connection has.
    pub(crate) account: &'a Account,
}

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum End {
    /// Its other end was closed.
    #[error("the client is gone")]
    Gone,
    /// The client said goodbye.
    #[error("the client said goodbye: {}", .0.code)]
    Left(Goodbye),
    /// The first bytes begin no protocol that is spoken here.
    #[error("the first bytes begin no protocol that is known here")]
    UnknownProtocol,
    /// The client broke the protocol.
    #[error("{}", .0.text)]
    Fault(Goodbye),
    /// The policy does not allow what it has, or it to be here.
    #[error("{}", .0.text)]
    Denied(Goodbye),
    /// The broker has no place for it.
    #[error("{}", .0.text)]
    NoPlace(Goodbye),
    /// Its process has ended, and messages with descriptors that wait for it keep it open.
    #[error("its process has ended and left it open, with descriptors to take")]
    Orphan,
    /// The greeting did not come in time.
    #[error("the greeting did not come in time")]
    TooSlow,
    /// The broker ends.
    #[error("the broker ends")]
    Shutdown,
    /// A stream of an ingress is not in step with its messages, or leads nowhere any more.
    #[error("{0}")]
    Ingress(String),
    /// The system does not let us read or write.
    #[error("the socket failed: {0}")]
    Socket(Errno),
}

/// What is left of a connection after a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Nothing to do until something happens.
    Idle,
    /// There is more to write, and the socket takes it.
    More,
    /// What there is may go out with what comes next.
    PutOff,
    /// It has ended and said all that it had to.
    Finished,
}

impl Workspace {
    pub(crate) fn new() -> Self {
        Self {
            landing: vec![0; LANDING_BYTES].into_boxed_slice(),
            frames: BytesMut::with_capacity(2 * LANDING_BYTES),
            spare: SpareBuffers::default(),
            waiting_sends: 0,
        }
    }

    /// Gives back what was needed for more than there is.
    pub(crate) fn shrink(&mut self) {
        self.spare = SpareBuffers::default();
    }
}

impl Connection {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        newcomer: Newcomer,
        token: Token,
        greeting_until: Instant,
    ) -> Self {
        let Newcomer { socket, origin, place } = newcomer;
        let number = place.account().number();
        let mut came_in = None;
        let (credentials, came) = match &origin {
            Origin::Client(peer) => {
                let PeerCredentials { uid, pid, .. } = peer.credentials;
                let executable = peer.subject.executable.as_deref();
                let socket = peer.subject.socket.as_deref();
                (Credentials { uid, pid }, CameFrom::Program { executable, socket })
            }
            Origin::Ingress(place) => {
                (Credentials::UNAUTHENTICATED, CameFrom::Ingress(place.identity()))
            }
        };
        let entry = ClientEntry::new(shared, number, credentials, came);
        let protocol = match origin {
            Origin::Client(peer) => {
                let Peer { credentials: PeerCredentials { uid, pid, .. }, subject, door } = *peer;
                came_in = door;
                let credentials = Credentials { uid, pid };
                Protocol::new(token, credentials, shared.subjects.share(subject), greeting_until)
            }
            Origin::Ingress(stream) => {
                // Unless the ingress says otherwise, a message may fill the socket's buffer.
                let buffer = sockopt::socket_recv_buffer_size(&socket).unwrap_or(DEFAULT_MAXIMUM);
                Protocol::ingress(token, stream, buffer)
            }
        };
        if tracing::enabled!(tracing::Level::DEBUG) {
            entry.client().span().in_scope(|| tracing::debug!("accepted"));
        }
        Self {
            link: Link::new(Socket::new(socket)),
            token,
            protocol,
            unread: Vec::new(),
            needs: 0,
            expects_large: false,
            unread_charge: None,
            passed_over: None,
            arrived: Arrived::default(),
            output: Output::default(),
            output_blocked: false,
            socket_blocked: false,
            rings_from: None,
            rings_asked: false,
            is_hot: false,
            is_to_be_rung: false,
            input_paused: false,
            interest: EventFlags::empty(),
            read_before: None,
            is_dirty: false,
            is_put_off: false,
            is_watched: false,
            is_timed: false,
            ending: false,
            entry,
            place,
            _door: came_in,
        }
    }

    /// Who is at the other end.
    pub(crate) fn client(&self) -> &Arc<Client> {
        self.entry.client()
    }

    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// Whether it may be read.
    pub(crate) fn wants_input(&self) -> bool {
        !self.input_paused && !self.ending
    }

    /// Whether what has come is to be dealt with although the other end is closed: a program that
    /// writes to an ingress may write and go. Epoll tells of the closed end for as long as it
    /// watches, so it is not to until the connection is read again.
    pub(crate) fn outlives_its_peer(&mut self) -> bool {
        let outlives = self.input_paused && self.protocol.hears_out();
        self.is_watched &= !outlives;
        outlives
    }

    /// Whether epoll has to be told of it anew.
    pub(crate) fn is_to_be_watched_again(&mut self) -> bool {
        !mem::replace(&mut self.is_watched, true)
    }

    /// When an unfinished message is late.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.ending { None } else { self.protocol.deadline() }
    }

    /// Looks whether an unfinished message is late.
    pub(crate) fn expire(&mut self) -> Result<(), End> {
        if self.ending { Ok(()) } else { self.protocol.expire() }
    }

    /// Whether it has ended and only lingers to say goodbye.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending
    }

    /// Reads once, and does what it says. One read a turn: epoll is level-triggered, so whoever
    /// has more comes again after the others had their turn. Of a large frame the rest is read at once.
    pub(crate) fn read(
        &mut self,
        shared: &Arc<Shared>,
        inbox: &Arc<Inbox>,
        workspace: &mut Workspace,
    ) -> Result<(), End> {
        let is_rest = self.is_reading_one_frame();
        self.read_once(shared, inbox, workspace)?;
        if !is_rest && self.is_reading_one_frame() {
            self.read_once(shared, inbox, workspace)?;
        }
        Ok(())
    }

    fn read_once(
        &mut self,
        shared: &Arc<Shared>,
        inbox: &Arc<Inbox>,
        workspace: &mut Workspace,
    ) -> Result<(), End> {
        if self.is_reading_one_frame() {
            let received = self.link.receive_rest(&mut self.unread);
            let Some(count) = self.unless_over(bytes_of(received))? else { return Ok(()) };
            self.count_read(inbox, count);
            if self.unread.len() < self.needs {
                return Ok(());
            }
            let mut frames = BytesMut::from(Bytes::from(mem::take(&mut self.unread)));
            self.needs = 0;
            // From here on it is charged as what becomes of it.
            self.unread_charge = None;
            return self.interpret(&mut frames, shared, inbox, workspace);
        }
        // What of a large frame comes here is copied twice more.
        let most = if self.expects_large { BEGINNING_BYTES } else { LANDING_BYTES };
        let received = self.link.receive(&mut workspace.landing[..most], &mut self.arrived);
        let Some(count) = self.unless_over(bytes_of(received))? else { return Ok(()) };
        if count == 0 {
            return Ok(());
        }
        self.count_read(inbox, count);
        let mut frames = mem::take(&mut workspace.frames);
        frames.clear();
        frames.extend_from_slice(&self.unread);
        frames.extend_from_slice(&workspace.landing[..count]);
        self.unread.clear();
        self.expects_large = false;
        let result = match self.passed_over.as_mut().map(|passed| passed.take(&mut frames)) {
            Some(false) => self.arrived.excess().map_or(Ok(()), |text| Err(fault(&text))),
            Some(true) => self.refuse_frame(&mut frames, shared, inbox, workspace),
            None => self.interpret(&mut frames, shared, inbox, workspace),
        };
        workspace.frames = frames;
        result
    }

    /// What was read; `None` if the other end will write no more and is to get something yet.
    fn unless_over(&mut self, received: Result<usize, End>) -> Result<Option<usize>, End> {
        match received {
            Err(End::Gone) if self.protocol.end_input() => {
                // What it began to say will never be whole.
                (self.unread, self.needs, self.unread_charge) = (Vec::new(), 0, None);
                self.input_paused = true;
                Ok(None)
            }
            received => received.map(Some),
        }
    }

    /// Whether its process has ended and only what waits for it keeps it open, see `orphans.rs`.
    pub(crate) fn is_orphan(&mut self) -> bool {
        let read = self.entry.client().bytes_read.get();
        !self.ending
            && self.read_before.replace(read) == Some(read)
            && peer_process::has_ended(&self.link)
            && (self.output.holds_descriptors() || self.protocol.holds_descriptors())
    }

    /// The rules of the policy have changed.
    pub(crate) fn review(&mut self, shared: &Shared) -> Result<(), End> {
        if self.ending { Ok(()) } else { self.protocol.review(shared) }
    }

    /// A part of it has something to do.
    pub(crate) fn ready(
        &mut self,
        part: Part,
        shared: &Arc<Shared>,
        inbox: &Arc<Inbox>,
        workspace: &mut Workspace,
    ) {
        if self.ending {
            return;
        }
        self.output.lend(&mut workspace.spare);
        let client = self.entry.client();
        let waiting_sends = &mut workspace.waiting_sends;
        let account = self.place.account();
        let mut context = Context { shared, inbox, client, waiting_sends, account };
        self.protocol.ready(part, &mut self.output, &mut context);
    }

    /// What was put off is to be written after all.
    pub(crate) fn hurry(&mut self) {
        self.output.hurry();
    }

    /// The socket takes output again.
    pub(crate) fn unblock(&mut self) {
        self.output_blocked = false;
    }

    /// Fills the output from the queues and writes it, once.
    pub(crate) fn flush(
        &mut self,
        shared: &Arc<Shared>,
        inbox: &Arc<Inbox>,
        workspace: &mut Workspace,
    ) -> Result<Flushed, End> {
        if self.output_blocked {
            // Who does not read is heard all the same, as long as answers have room.
            self.resume(shared, inbox, workspace)?;
            return Ok(if self.may_resume() { Flushed::More } else { Flushed::Idle });
        }
        self.output.lend(&mut workspace.spare);
        if !self.ending {
            self.protocol.fill(&mut self.output);
            self.protocol.failure()?;
        }
        if self.output.is_urgent() {
            let before = self.output.len();
            let sent = self.link.send(&mut self.output)?;
            let written = before - self.output.len();
            inbox.counters.bytes_written.add(written);
            self.entry.client().bytes_written.add(written);
            self.output_blocked = sent != Sent::All;
            self.socket_blocked = sent == Sent::Rest;
            if self.output.take_descriptors_lost() {
                self.descriptors_lost();
            }
        }
        self.output.give_back(&mut workspace.spare);
        self.resume(shared, inbox, workspace)?;
        if self.protocol.is_done() && self.output.is_empty() && !self.ending {
            return Err(End::Gone);
        }
        Ok(if self.output_blocked {
            if self.may_resume() { Flushed::More } else { Flushed::Idle }
        } else if self.ending {
            Flushed::Finished
        } else if self.protocol.has_more()
            || (self.input_paused && self.protocol.takes_input())
            || self.output.is_urgent()
        {
            Flushed::More
        } else if !self.output.is_empty() {
            Flushed::PutOff
        } else {
            Flushed::Idle
        })
    }

    /// The broker ends: what was queued for this client is to reach it before the farewell.
    pub(crate) fn fill_last(&mut self, workspace: &mut Workspace) {
        if !self.ending {
            self.output.lend(&mut workspace.spare);
            self.protocol.fill_last(&mut self.output);
        }
    }

    /// Gives up everything that it has on the bus, and leaves what is to be said for the last
    /// flush.
    pub(crate) fn end(
        &mut self,
        end: &End,
        shared: &Arc<Shared>,
        inbox: &Arc<Inbox>,
        workspace: &mut Workspace,
    ) {
        if self.ending {
            return;
        }
        self.log(end, shared, inbox);
        self.ending = true;
        self.output.lend(&mut workspace.spare);
        let client = self.entry.client();
        let waiting_sends = &mut workspace.waiting_sends;
        let account = self.place.account();
        let mut context = Context { shared, inbox, client, waiting_sends, account };
        self.protocol.close(end, &mut self.output, &mut context);
        // Replies of an ingress that came before its end are as good as any.
        if end.goodbye().is_none() && !matches!(end, End::Ingress(_)) {
            self.output = Output::default();
        }
        (self.unread, self.unread_charge, self.passed_over) = (Vec::new(), None, None);
        self.arrived = Arrived::default();
    }

    /// What epoll should watch for from now on, if that has changed.
    pub(crate) fn new_interest(&mut self) -> Option<EventFlags> {
        let mut wanted = EventFlags::empty();
        if self.wants_input() && self.link.reads_socket() {
            wanted |= EventFlags::IN;
        }
        if self.socket_blocked {
            wanted |= EventFlags::OUT;
        }
        (mem::replace(&mut self.interest, wanted) != wanted).then_some(wanted)
    }

    fn is_reading_one_frame(&self) -> bool {
        self.needs > OWN_BUFFER_BYTES
    }

    /// Whether frames wait that may be acted on.
    fn may_resume(&self) -> bool {
        self.input_paused
            && !self.ending
            && self.protocol.takes_input()
            && self.output.has_room_for_answers()
    }

    fn resume(
        &mut self,
        shared: &Arc<Shared>,
        inbox: &Arc<Inbox>,
        workspace: &mut Workspace,
    ) -> Result<(), End> {
        if !self.may_resume() {
            return Ok(());
        }
        self.input_paused = false;
        let mut frames = BytesMut::from(Bytes::from(mem::take(&mut self.unread)));
        self.interpret(&mut frames, shared, inbox, workspace)
    }

    fn interpret(
        &mut self,
        frames: &mut BytesMut,
        shared: &Arc<Shared>,
        inbox: &Arc<Inbox>,
        workspace: &mut Workspace,
    ) -> Result<(), End> {
        self.output.lend(&mut workspace.spare);
        self.needs = 0;
        let progress = loop {
            let client = self.entry.client();
            let waiting_sends = &mut workspace.waiting_sends;
            let account = self.place.account();
            let mut context = Context { shared, inbox, client, waiting_sends, account };
            let progress =
                self.protocol.input(frames, &mut self.arrived, &mut self.output, &mut context)?;
            match progress {
                Progress::Rings(rings) => self.turn(rings, frames)?,
                progress => break progress,
            }
        };
        if mem::take(&mut self.rings_asked) {
            self.offer_rings();
        }
        match progress {
            Progress::Needs(bytes) if bytes > OWN_BUFFER_BYTES => {
                match self.place.account().charge(Resource::Bytes, bytes as u64) {
                    Ok(charge) => {
                        self.unread_charge = Some(charge);
                        (self.needs, self.expects_large) = (bytes, true);
                        self.unread = Vec::with_capacity(bytes);
                    }
                    Err(limit) => {
                        let mut passed = PassedOver::new(bytes, limit);
                        // It has not come whole.
                        passed.take(frames);
                        self.passed_over = Some(Box::new(passed));
                        return Ok(());
                    }
                }
            }
            Progress::Needs(_) => {}
            Progress::Rings(_) => unreachable!("dealt with above"),
            Progress::OutputFull | Progress::TurnOver | Progress::Waits => {
                self.input_paused = true;
            }
        }
        self.unread.extend_from_slice(frames);
        if self.unread.is_empty() {
            self.unread = Vec::new();
            let may_be_early = self.link.reads_ring();
            if (!self.arrived.descriptors.is_empty() || self.arrived.lost) && !may_be_early {
                return Err(fault("descriptors came with bytes that begin no frame that has some"));
            }
        }
        Ok(())
    }

    /// All of a frame has come that is not kept: tells its sender, and goes on behind it.
    fn refuse_frame(
        &mut self,
        rest: &mut BytesMut,
        shared: &Arc<Shared>,
        inbox: &Arc<Inbox>,
        workspace: &mut Workspace,
    ) -> Result<(), End> {
        let Some(passed) = self.passed_over.take() else { return Ok(()) };
        self.output.lend(&mut workspace.spare);
        let client = self.entry.client();
        let waiting_sends = &mut workspace.waiting_sends;
        let account = self.place.account();
        let mut context = Context { shared, inbox, client, waiting_sends, account };
        let (arrived, output) = (&mut self.arrived, &mut self.output);
        self.protocol.refuse_frame(&passed, arrived, output, &mut context)?;
        self.interpret(rest, shared, inbox, workspace)
    }

    // ---- Rings in shared memory

    pub(crate) fn rings(&self) -> Option<&Rings> {
        self.link.rings()
    }

    pub(crate) fn rings_mut(&mut self) -> Option<&mut Rings> {
        self.link.rings_mut()
    }

    /// Whether a read would find something in its ring.
    pub(crate) fn has_ring_input(&self) -> bool {
        self.wants_input() && self.link.has_ring_input()
    }

    /// Whether input comes by its ring.
    pub(crate) fn reads_ring(&self) -> bool {
        self.link.reads_ring()
    }

    /// Whether the socket has something to say although input comes by the ring.
    pub(crate) fn reads_socket(&self) -> bool {
        self.link.reads_socket()
    }

    /// Says to the client that we sleep; false if its ring is to be read first.
    pub(crate) fn arm(&self) -> bool {
        // Who is not read now is looked at when it is read again.
        !self.wants_input() || !self.reads_ring() || self.rings().is_none_or(Rings::arm)
    }

    /// Whether its ring had something since the last time that this was asked.
    pub(crate) fn has_spoken(&mut self) -> bool {
        self.rings_mut().is_some_and(|rings| mem::take(&mut rings.has_spoken))
    }

    /// Its client has rung. False if nobody is to listen to that bell for a while.
    pub(crate) fn heed_bell(&mut self) -> bool {
        let waits_for_room = std::mem::take(&mut self.output_blocked) && !self.socket_blocked;
        self.rings_mut().is_none_or(|rings| rings.heed(waits_for_room))
    }

    /// Gives up rings that it has; epoll has to forget their bell.
    pub(crate) fn take_rings(&mut self) -> Option<Box<Rings>> {
        self.link.take_rings()
    }

    /// Whether rings that it has were used since the last look.
    pub(crate) fn has_used_rings(&mut self) -> Option<bool> {
        self.rings_mut().map(|rings| mem::take(&mut rings.active))
    }

    /// Tells the client that its rings end, unless they are just being opened or ended.
    pub(crate) fn end_rings(&mut self) -> bool {
        let open = Stage::Open { output: true };
        if self.ending || !is_at(self.rings(), open) {
            return false;
        }
        say(BrokerFrame::Rings(BrokerRings::End), &mut self.output);
        self.output.push_turn(Turn::ToSocket);
        if let Some(rings) = self.rings_mut() {
            rings.stage = Stage::Ending { output: true };
        }
        true
    }

    /// The client has said something about rings. `rest` is what was read behind that.
    fn turn(&mut self, step: ClientRings, rest: &mut BytesMut) -> Result<(), End> {
        match step {
            ClientRings::Wanted if self.rings().is_none() && !self.rings_asked => {
                self.offer_rings();
                Ok(())
            }
            ClientRings::Taken if is_at(self.rings(), Stage::Offered) => {
                self.protocol.descriptors_done();
                self.link.keep_early(rest);
                rest.advance(rest.len());
                let rings = self.link.rings_mut().expect("looked at above");
                rings.open().map_err(|error| {
                    let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                    End::Socket(errno)
                })?;
                say(BrokerFrame::Rings(BrokerRings::Begin), &mut self.output);
                self.output.push_turn(Turn::ToRings);
                Ok(())
            }
            ClientRings::Declined if is_at(self.rings(), Stage::Offered) => {
                self.protocol.descriptors_done();
                self.rings_are_over();
                Ok(())
            }
            ClientRings::Left if is_at(self.rings(), Stage::Ending { output: false }) => {
                let left = self.rings().is_some_and(Rings::has_input);
                if left || !rest.is_empty() {
                    return Err(fault("something comes behind RINGS_LEFT"));
                }
                self.rings_are_over();
                Ok(())
            }
            step => Err(fault(&format!("RINGS: {step:?}, and that is not next"))),
        }
    }

    fn offer_rings(&mut self) {
        let too_early = self.rings_from.is_some_and(|from| from > Instant::now());
        if !self.protocol.begin_descriptors() {
            self.rings_asked = true;
            return;
        }
        let made = match too_early {
            true => Err(NoRings::TooEarly),
            false => Rings::new(self.place.account()),
        };
        let rings = match made {
            Ok(rings) => rings,
            Err(error) => {
                self.protocol.descriptors_done();
                tracing::debug!(parent: &self.entry.client().span(), %error, "no rings");
                return say(BrokerFrame::Rings(BrokerRings::Refused), &mut self.output);
            }
        };
        let (offered, files) = rings.offer();
        let encode = |frame| {
            let mut bytes = BytesMut::new();
            BrokerFrame::Rings(frame).encode(&mut bytes).expect("it has a fixed length");
            bytes.freeze()
        };
        let (with, without) = (encode(offered), encode(BrokerRings::Refused));
        self.output.push_with_descriptors(with, without, Carried::Files(files));
        self.link.offer(rings);
    }

    /// Descriptors could not be sent; those of a message, or rings.
    fn descriptors_lost(&mut self) {
        self.protocol.descriptors_done();
        if is_at(self.rings(), Stage::Offered) {
            self.rings_are_over();
        }
    }

    /// They are given back once epoll has forgotten them.
    fn rings_are_over(&mut self) {
        self.rings_from = Some(Instant::now() + RINGS_PAUSE);
        if let Some(rings) = self.rings_mut() {
            rings.stage = Stage::Over;
        }
    }

    fn count_read(&self, inbox: &Inbox, count: usize) {
        inbox.counters.bytes_read.add(count);
        self.entry.client().bytes_read.add(count);
    }

    fn log(&self, end: &End, shared: &Shared, inbox: &Inbox) {
        let event = match end {
            End::Gone | End::Left(_) | End::Shutdown | End::Socket(_) => {
                if tracing::enabled!(tracing::Level::DEBUG) {
                    let span = self.entry.client().span();
                    span.in_scope(|| tracing::debug!(reason = %end, "closed"));
                }
                return;
            }
            End::UnknownProtocol | End::Fault(_) | End::Ingress(_) => LogEvent::Protocol,
            End::NoPlace(_) | End::Denied(_) => LogEvent::NoPlace,
            End::TooSlow | End::Orphan => LogEvent::TooSlow,
        };
        if event == LogEvent::Protocol {
            inbox.counters.protocol_errors.add(1);
            self.protocol.count_failure();
        }
        let client = self.entry.client();
        shared.log_limit.log(event, client.credentials(), |suppressed| {
            let _entered = client.span().entered();
            let program = client.program();
            let program = program.as_deref();
            match event {
                LogEvent::Protocol => {
                    tracing::warn!(reason = %end, program, suppressed, "ended: the peer broke the protocol");
                }
                LogEvent::NoPlace => tracing::warn!(reason = %end, program, suppressed, "refused"),
                _ => tracing::warn!(reason = %end, program, suppressed, "closed"),
            }
        });
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

impl End {
    /// What the client is told, if it can still hear.
    pub(crate) fn goodbye(&self) -> Option<Goodbye> {
        match self {
            Self::Fault(goodbye) | Self::NoPlace(goodbye) | Self::Denied(goodbye) => {
                Some(goodbye.clone())
            }
            Self::Orphan => Some(Goodbye::new(GoodbyeCode::TooSlow, self.to_string())),
            Self::Shutdown => Some(Goodbye::new(GoodbyeCode::Shutdown, "the broker ends")),
            Self::TooSlow => Some(Goodbye::new(GoodbyeCode::TooSlow, self.to_string())),
            Self::Gone
            | Self::Left(_)
            | Self::UnknownProtocol
            | Self::Ingress(_)
            | Self::Socket(_) => None,
        }
    }
}

impl From<LinkError> for End {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Socket(Errno::CONNRESET) => Self::Gone,
            LinkError::Socket(error) => Self::Socket(error),
            LinkError::Ring(error) => fault(&error.to_string()),
        }
    }
}

fn bytes_of(received: Result<Received, LinkError>) -> Result<usize, End> {
    match received? {
        Received::Bytes(count) => Ok(count),
        Received::Nothing => Ok(0),
        Received::End => Err(End::Gone),
    }
}

fn fault(text: &str) -> End {
    End::Fault(Goodbye::new(GoodbyeCode::Protocol, text))
}

/// How long after its rings a client may not have new ones: making them is work.
const RINGS_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);
/// The longest message of an ingress whose socket does not say how much it holds.
const DEFAULT_MAXIMUM: usize = 64 << 10;
/// Bytes of one read: about a thousand small frames, and a third of what a socket holds.
const LANDING_BYTES: usize = 64 << 10;
/// Bytes of one read where a large frame is expected: its head, or some small ones.
const BEGINNING_BYTES: usize = 2 << 10;
/// A frame longer than this that has not come whole gets memory of its own.
const OWN_BUFFER_BYTES: usize = 16 << 10;
