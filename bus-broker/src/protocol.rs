//! Which protocol a connection speaks.
//!
//! What comes in through an ingress is cut into messages by its framer. Elsewhere the first bytes
//! decide: Unisono's clients begin with 8 of their own that begin no other protocol which could come
//! here (D-Bus begins with a NUL). Whatever a connection speaks, it is the same to the event loop:
//! bytes and descriptors come in, parts become ready, and output is to be filled.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;

use crate::{
    broker::Shared,
    connection::{Context, End},
    inbox::{Part, Token},
    ingress::{IngressPlace, IngressStream},
    output::Output,
    passed_over::PassedOver,
    policy::{Gate, Subject},
    session::{Session, say},
    transport::Arrived,
};
use bus_core::{
    Credentials, LimitExceeded,
    wire::{self, ClientRings, Goodbye, GoodbyeCode},
};

/// A client that can be told of a limit in no other way.
pub(crate) fn refused(limit: &LimitExceeded) -> End {
    End::NoPlace(Goodbye::new(GoodbyeCode::LimitExceeded, limit.to_string()))
}

/// The state of a connection's conversation.
#[derive(Debug)]
pub(crate) enum Protocol {
    /// The first bytes have not come.
    Undecided { token: Token, credentials: Credentials, subject: Arc<Subject>, until: Instant },
    /// Unisono's own.
    Unisono(Box<Session>),
    /// Any other: what it says is carried, and not understood.
    Ingress(Box<IngressStream>),
}

/// How far a protocol came with the bytes that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It has taken all whole frames, and needs so many bytes, those that are left counted, to get
    /// further.
    Needs(usize),
    /// The client has to read before it may ask for more.
    OutputFull,
    /// It has had its share of this turn.
    TurnOver,
    /// It takes nothing more until something has happened on the bus.
    Waits,
    /// It has come to a frame about rings, and goes on once that is dealt with.
    Rings(ClientRings),
}

impl Protocol {
    /// A connection that has to say by `until` what it speaks, and who it is.
    pub(crate) fn new(
        token: Token,
        credentials: Credentials,
        subject: Arc<Subject>,
        until: Instant,
    ) -> Self {
        Self::Undecided { token, credentials, subject, until }
    }

    /// A stream that came in through an ingress, which knows what it carries.
    pub(crate) fn ingress(token: Token, place: IngressPlace, receive_buffer: usize) -> Self {
        Self::Ingress(Box::new(IngressStream::new(token, place, receive_buffer)))
    }

    /// Takes what has come, and does what it says. What is not taken stays in `unread`.
    pub(crate) fn input(
        &mut self,
        unread: &mut BytesMut,
        arrived: &mut Arrived,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Result<Progress, End> {
        if let Self::Undecided { token, credentials, subject, until } = self {
            let known = unread.len().min(wire::MAGIC.len());
            if unread[..known] != wire::MAGIC[..known] {
                return Err(End::UnknownProtocol);
            }
            if known < wire::MAGIC.len() {
                return Ok(Progress::Needs(wire::MAGIC.len()));
            }
            let _ = unread.split_to(known);
            let gate = Gate::new(Arc::clone(subject), &context.shared.policy);
            let session = Session::new(*token, *credentials, gate, *until);
            *self = Self::Unisono(Box::new(session));
        }
        match self {
            Self::Undecided { .. } => unreachable!("decided above"),
            Self::Unisono(session) => session.input(unread, arrived, output, context),
            Self::Ingress(stream) => stream.input(unread, arrived, context),
        }
    }

    /// A frame has come that is not kept, because of a limit.
    pub(crate) fn refuse_frame(
        &mut self,
        passed: &PassedOver,
        arrived: &mut Arrived,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Result<(), End> {
        match self {
            Self::Unisono(session) => session.refuse_frame(passed, arrived, output, context),
            Self::Undecided { .. } => Err(refused(&passed.limit)),
            Self::Ingress(_) => Err(End::Ingress(passed.limit.to_string())),
        }
    }

    /// The rules of the policy have changed.
    pub(crate) fn review(&mut self, shared: &Shared) -> Result<(), End> {
        match self {
            Self::Unisono(session) => session.review(shared),
            // An ingress is the configuration's, and who has not said what it speaks has nothing.
            Self::Undecided { .. } | Self::Ingress(_) => Ok(()),
        }
    }

    /// A part of the connection has something to do.
    pub(crate) fn ready(&mut self, part: Part, output: &mut Output, context: &mut Context<'_>) {
        match self {
            Self::Undecided { .. } => {}
            Self::Unisono(session) => session.ready(part, output, context),
            Self::Ingress(stream) => stream.ready(part, context),
        }
    }

    /// Moves messages from queues to `output` while it has room for them.
    pub(crate) fn fill(&mut self, output: &mut Output) {
        match self {
            Self::Undecided { .. } => {}
            Self::Unisono(session) => session.fill(output),
            Self::Ingress(stream) => stream.fill(output),
        }
    }

    /// Moves all that is queued to `output`: the broker ends.
    pub(crate) fn fill_last(&mut self, output: &mut Output) {
        if let Self::Unisono(session) = self {
            session.fill_last(output);
        }
    }

    /// Descriptors that were put into `output` are there, or could not be sent, and the client was
    /// told so.
    pub(crate) fn descriptors_done(&mut self) {
        if let Self::Unisono(session) = self {
            session.descriptors_done();
        }
    }

    /// Whether a frame with descriptors of the broker's own may go out now; then it is under way.
    pub(crate) fn begin_descriptors(&mut self) -> bool {
        match self {
            Self::Unisono(session) => session.begin_descriptors(),
            Self::Undecided { .. } | Self::Ingress(_) => false,
        }
    }

    /// Whether messages with descriptors wait for the other end.
    pub(crate) fn holds_descriptors(&mut self) -> bool {
        match self {
            Self::Unisono(session) => session.holds_descriptors(),
            Self::Undecided { .. } | Self::Ingress(_) => false,
        }
    }

    /// Whether `fill` would find messages now.
    pub(crate) fn has_more(&self) -> bool {
        match self {
            Self::Undecided { .. } => false,
            Self::Unisono(session) => session.has_more(),
            Self::Ingress(stream) => stream.has_more(),
        }
    }

    /// Whether `input` would take anything now.
    pub(crate) fn takes_input(&self) -> bool {
        match self {
            Self::Undecided { .. } | Self::Unisono(_) => true,
            Self::Ingress(stream) => stream.takes_input(),
        }
    }

    /// Whether its peer may write, go, and still be heard.
    pub(crate) fn hears_out(&self) -> bool {
        matches!(self, Self::Ingress(_))
    }

    /// Nothing more comes in. True if something is to go out yet.
    pub(crate) fn end_input(&mut self) -> bool {
        match self {
            Self::Undecided { .. } | Self::Unisono(_) => false,
            Self::Ingress(stream) => stream.end_input(),
        }
    }

    /// Whether nothing comes in any more, and nothing is to go out.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Undecided { .. } | Self::Unisono(_) => false,
            Self::Ingress(stream) => stream.is_done(),
        }
    }

    /// Why the conversation ends, if something that came from the bus has ended it.
    pub(crate) fn failure(&mut self) -> Result<(), End> {
        match self {
            Self::Undecided { .. } | Self::Unisono(_) => Ok(()),
            Self::Ingress(stream) => stream.failure(),
        }
    }

    /// When a greeting, or a message that is under way, is late.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Undecided { until, .. } => Some(*until),
            Self::Unisono(session) => session.greeting_until(),
            Self::Ingress(stream) => stream.deadline(),
        }
    }

    /// Ends the conversation if it is.
    pub(crate) fn expire(&mut self) -> Result<(), End> {
        match self {
            Self::Undecided { .. } | Self::Unisono(_) => match self.deadline() {
                Some(until) if until <= Instant::now() => Err(End::TooSlow),
                _ => Ok(()),
            },
            Self::Ingress(stream) => stream.expire(),
        }
    }

    /// It has ended with an error.
    pub(crate) fn count_failure(&self) {
        if let Self::Ingress(stream) = self {
            stream.count_failure();
        }
    }

    /// Gives up everything that the connection has on the bus, and says goodbye if the protocol
    /// has a word for that and the client may still hear it.
    pub(crate) fn close(&mut self, end: &End, output: &mut Output, context: &mut Context<'_>) {
        let session = match self {
            Self::Undecided { .. } => return,
            Self::Unisono(session) => session,
            Self::Ingress(stream) => return stream.close(context),
        };
        session.close(context);
        if let Some(goodbye) = end.goodbye() {
            say(wire::BrokerFrame::Goodbye(goodbye), output);
        }
    }
}
