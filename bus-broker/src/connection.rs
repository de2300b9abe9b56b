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
    Credentials,
    wire::{Goodbye, GoodbyeCode},
};
use bytes::{Bytes, BytesMut};
use rustix::{event::epoll::EventFlags, io::Errno, net::sockopt};

use crate::{
    broker::{ConnectionPlace, Newcomer, Origin, Peer, Shared},
    credentials::PeerCredentials,
    door::DoorPlace,
    inbox::{Inbox, Part, Token},
    output::{Output, SpareBuffers},
    protocol::{Progress, Protocol},
    transport::{Arrived, Received, Sent, Socket},
};

/// A connection, owned by one I/O thread.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Socket,
    token: Token,
    span: tracing::Span,
    protocol: Protocol,
    /// The beginning of a frame, or whole frames while the output is full.
    unread: Vec<u8>,
    /// Bytes that the frame in `unread` needs to be whole.
    needs: usize,
    arrived: Arrived,
    output: Output,
    /// The socket takes no more now.
    output_blocked: bool,
    /// Frames in `unread` wait for their turn, or for the client to read; until then it is not
    /// read itself.
    input_paused: bool,
    /// What epoll was last told to watch for.
    interest: EventFlags,
    /// Already in the list of those to be flushed.
    pub(crate) is_dirty: bool,
    /// Already in the list of those whose output was put off.
    pub(crate) is_put_off: bool,
    /// Epoll knows of it.
    is_watched: bool,
    /// Already among those whose unfinished messages are looked at in time.
    pub(crate) is_timed: bool,
    ending: bool,
    _place: ConnectionPlace,
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
    pub(crate) waiting_sends: &'a mut usize,
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
}

impl Connection {
    pub(crate) fn new(newcomer: Newcomer, token: Token, greeting_until: Instant) -> Self {
        let Newcomer { socket, origin, number, place } = newcomer;
        let mut came_in = None;
        let (span, protocol) = match origin {
            Origin::Client(peer) => {
                let Peer { credentials: PeerCredentials { uid, pid, .. }, subject, door } = *peer;
                came_in = door;
                let socket = subject.socket.as_deref();
                let span = tracing::info_span!("connection", number, uid, pid, socket);
                let credentials = Credentials { uid, pid };
                (span, Protocol::new(token, credentials, subject, greeting_until))
            }
            Origin::Ingress(place) => {
                let span = tracing::info_span!("ingress", number, identity = place.identity());
                // Unless the ingress says otherwise, a message may fill the socket's buffer.
                let buffer = sockopt::socket_recv_buffer_size(&socket).unwrap_or(DEFAULT_MAXIMUM);
                (span, Protocol::ingress(token, place, buffer))
            }
        };
        tracing::debug!(parent: &span, "accepted");
        Self {
            socket: Socket::new(socket),
            token,
            span,
            protocol,
            unread: Vec::new(),
            needs: 0,
            arrived: Arrived::default(),
            output: Output::default(),
            output_blocked: false,
            input_paused: false,
            interest: EventFlags::empty(),
            is_dirty: false,
            is_put_off: false,
            is_watched: true,
            is_timed: false,
            ending: false,
            _place: place,
            _door: came_in,
        }
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
    /// has more comes again after the others had their turn.
    pub(crate) fn read(
        &mut self,
        shared: &Arc<Shared>,
        inbox: &Arc<Inbox>,
        workspace: &mut Workspace,
    ) -> Result<(), End> {
        if self.is_reading_one_frame() {
            let received = self.socket.receive_rest(&mut self.unread);
            let Some(count) = self.unless_over(bytes_of(received))? else { return Ok(()) };
            shared.counters.bytes_read.add(count);
            if self.unread.len() < self.needs {
                return Ok(());
            }
            let mut frames = BytesMut::from(Bytes::from(mem::take(&mut self.unread)));
            self.needs = 0;
            return self.interpret(&mut frames, shared, inbox, workspace);
        }
        let received = self.socket.receive(&mut workspace.landing, &mut self.arrived);
        let Some(count) = self.unless_over(bytes_of(received))? else { return Ok(()) };
        if count == 0 {
            return Ok(());
        }
        shared.counters.bytes_read.add(count);
        let mut frames = mem::take(&mut workspace.frames);
        frames.clear();
        frames.extend_from_slice(&self.unread);
        frames.extend_from_slice(&workspace.landing[..count]);
        self.unread.clear();
        let result = self.interpret(&mut frames, shared, inbox, workspace);
        workspace.frames = frames;
        result
    }

    /// What was read; `None` if the other end will write no more and is to get something yet.
    fn unless_over(&mut self, received: Result<usize, End>) -> Result<Option<usize>, End> {
        match received {
            Err(End::Gone) if self.protocol.end_input() => {
                // What it began to say will never be whole.
                (self.unread, self.needs) = (Vec::new(), 0);
                self.input_paused = true;
                Ok(None)
            }
            received => received.map(Some),
        }
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
        let mut context = Context { shared, inbox, waiting_sends: &mut workspace.waiting_sends };
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
            return Ok(Flushed::Idle);
        }
        self.output.lend(&mut workspace.spare);
        if !self.ending {
            self.protocol.fill(&mut self.output);
            self.protocol.failure()?;
        }
        if self.output.is_urgent() {
            let before = self.output.len();
            let sent = self.socket.send(&mut self.output).map_err(End::Socket)?;
            shared.counters.bytes_written.add(before - self.output.len());
            self.output_blocked = sent == Sent::Rest;
            if self.output.take_descriptors_lost() {
                self.protocol.descriptors_lost();
            }
        }
        self.output.give_back(&mut workspace.spare);
        if self.input_paused
            && !self.ending
            && self.protocol.takes_input()
            && self.output.has_room_for_answers()
        {
            self.input_paused = false;
            self.resume_reading(shared, inbox, workspace)?;
        }
        if self.protocol.is_done() && self.output.is_empty() && !self.ending {
            return Err(End::Gone);
        }
        Ok(if self.output_blocked {
            Flushed::Idle
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
        self.log(end, shared);
        self.ending = true;
        self.output.lend(&mut workspace.spare);
        let mut context = Context { shared, inbox, waiting_sends: &mut workspace.waiting_sends };
        self.protocol.close(end, &mut self.output, &mut context);
        // Replies of an ingress that came before its end are as good as any.
        if end.goodbye().is_none() && !matches!(end, End::Ingress(_)) {
            self.output = Output::default();
        }
        self.unread = Vec::new();
        self.arrived = Arrived::default();
    }

    /// What epoll should watch for from now on, if that has changed.
    pub(crate) fn new_interest(&mut self) -> Option<EventFlags> {
        let mut wanted = EventFlags::empty();
        if self.wants_input() {
            wanted |= EventFlags::IN;
        }
        if self.output_blocked {
            wanted |= EventFlags::OUT;
        }
        (mem::replace(&mut self.interest, wanted) != wanted).then_some(wanted)
    }

    fn is_reading_one_frame(&self) -> bool {
        self.needs > OWN_BUFFER_BYTES
    }

    fn resume_reading(
        &mut self,
        shared: &Arc<Shared>,
        inbox: &Arc<Inbox>,
        workspace: &mut Workspace,
    ) -> Result<(), End> {
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
        let mut context = Context { shared, inbox, waiting_sends: &mut workspace.waiting_sends };
        let progress =
            self.protocol.input(frames, &mut self.arrived, &mut self.output, &mut context)?;
        self.needs = 0;
        match progress {
            Progress::Needs(bytes) if bytes > OWN_BUFFER_BYTES => {
                self.needs = bytes;
                self.unread = Vec::with_capacity(bytes);
            }
            Progress::Needs(_) => {}
            Progress::OutputFull | Progress::TurnOver | Progress::Waits => {
                self.input_paused = true;
            }
        }
        self.unread.extend_from_slice(frames);
        if self.unread.is_empty() {
            self.unread = Vec::new();
            if !self.arrived.descriptors.is_empty() || self.arrived.lost {
                return Err(End::Fault(Goodbye::new(
                    GoodbyeCode::Protocol,
                    "descriptors came with bytes that begin no frame that has some",
                )));
            }
        }
        Ok(())
    }

    fn log(&self, end: &End, shared: &Shared) {
        let _entered = self.span.enter();
        match end {
            End::Gone | End::Left(_) | End::Shutdown => tracing::debug!(reason = %end, "closed"),
            End::UnknownProtocol | End::Fault(_) | End::Ingress(_) => {
                shared.counters.protocol_errors.add(1);
                tracing::warn!(reason = %end, "ended: the peer broke the protocol");
            }
            End::NoPlace(_) | End::Denied(_) => tracing::warn!(reason = %end, "refused"),
            End::TooSlow => tracing::warn!(reason = %end, "closed"),
            End::Socket(_) => tracing::debug!(reason = %end, "closed"),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl End {
    /// What the client is told, if it can still hear.
    pub(crate) fn goodbye(&self) -> Option<Goodbye> {
        match self {
            Self::Fault(goodbye) | Self::NoPlace(goodbye) | Self::Denied(goodbye) => {
                Some(goodbye.clone())
            }
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

fn bytes_of(received: Result<Received, Errno>) -> Result<usize, End> {
    match received {
        Ok(Received::Bytes(count)) => Ok(count),
        Ok(Received::Nothing) => Ok(0),
        Ok(Received::End) | Err(Errno::CONNRESET) => Err(End::Gone),
        Err(error) => Err(End::Socket(error)),
    }
}

/// The longest message of an ingress whose socket does not say how much it holds.
const DEFAULT_MAXIMUM: usize = 64 << 10;
/// Bytes of one read: about a thousand small frames, and a third of what a socket holds.
const LANDING_BYTES: usize = 64 << 10;
/// A frame longer than this that has not come whole gets memory of its own.
const OWN_BUFFER_BYTES: usize = 16 << 10;
