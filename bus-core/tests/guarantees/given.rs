//! Small buses, and short words for what the tests do with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use bus_core::{
    Bus, Credentials, Delivery, Destination, Endpoint, EndpointId, Gap, GroupId, JoinOptions, Lane,
    Limits, MemberFlags, Message, Receipt, ReceiveError, Receiver, SendError, Sequence, Submitted,
};

pub(crate) const ME: Credentials = Credentials { uid: 1000, pid: 1 };

/// The one generous deadline of tests that wait for another thread.
pub(crate) fn soon() -> Instant {
    now() + Duration::from_secs(60)
}

#[expect(clippy::disallowed_methods, reason = "the caller of the core reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) fn bus_with(limits: Limits) -> Bus {
    Bus::new(limits, 1).unwrap()
}

/// A bus whose queues hold so many messages.
pub(crate) fn bus(queue_messages: u32) -> Bus {
    bus_with(Limits { queue_messages, ..Limits::default() })
}

/// An endpoint with its reader and a lane.
pub(crate) struct Party {
    pub(crate) endpoint: Endpoint,
    pub(crate) reader: Receiver,
    pub(crate) lane: Lane,
}

impl Party {
    pub(crate) fn on(bus: &Bus) -> Self {
        let endpoint = bus.open_endpoint(ME).unwrap();
        Self { reader: endpoint.receiver().unwrap(), lane: endpoint.lane().unwrap(), endpoint }
    }

    pub(crate) fn id(&self) -> EndpointId {
        self.endpoint.id()
    }

    /// Where to send what is for this endpoint alone.
    pub(crate) fn here(&self) -> Destination {
        Destination::Endpoint(self.id())
    }

    pub(crate) fn join(&self, group: &str) -> GroupId {
        self.join_with(group, MemberFlags::empty())
    }

    pub(crate) fn join_with(&self, group: &str, flags: MemberFlags) -> GroupId {
        let options = JoinOptions::create().with(flags);
        self.endpoint.join(&group.parse().unwrap(), options).unwrap().group
    }

    /// Sends what must not have to wait.
    pub(crate) fn send(&mut self, to: impl Into<To>, text: &str) -> Receipt {
        self.lane.try_send(to.into().0, text).unwrap()
    }

    pub(crate) fn try_send(&mut self, to: impl Into<To>, text: &str) -> Result<Receipt, SendError> {
        self.lane.try_send(to.into().0, text)
    }

    /// Submits what must wait, and gives what counts its wake-ups.
    pub(crate) fn wait(&mut self, to: impl Into<To>, text: &str) -> Arc<Wakes> {
        wait(&mut self.lane, to, text)
    }

    /// Takes one message and frees its place.
    pub(crate) fn take(&mut self) -> String {
        text(&self.take_message())
    }

    pub(crate) fn take_message(&mut self) -> Arc<Message> {
        match self.reader.try_receive() {
            Ok(Delivery::Message { message, .. }) => message,
            other => panic!("a message was expected, not {other:?}"),
        }
    }

    /// Takes everything, which must be messages.
    pub(crate) fn take_all(&mut self) -> Vec<String> {
        take_all(&mut self.reader)
    }

    /// The gap that comes next, alone.
    pub(crate) fn take_gap(&mut self) -> (GroupId, Gap) {
        match self.reader.try_receive() {
            Ok(Delivery::Gap { group, gap }) => (group, gap),
            other => panic!("a gap was expected, not {other:?}"),
        }
    }
}

/// Where to send, from whatever says so.
pub(crate) struct To(pub(crate) Destination);

impl From<GroupId> for To {
    fn from(group: GroupId) -> Self {
        Self(Destination::Group(group))
    }
}

impl From<EndpointId> for To {
    fn from(endpoint: EndpointId) -> Self {
        Self(Destination::Endpoint(endpoint))
    }
}

impl From<Destination> for To {
    fn from(to: Destination) -> Self {
        Self(to)
    }
}

pub(crate) fn text(message: &Message) -> String {
    String::from_utf8(message.payload().to_vec()).unwrap()
}

pub(crate) fn take_all(reader: &mut Receiver) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        match reader.try_receive() {
            Ok(Delivery::Message { message, .. }) => texts.push(text(&message)),
            Ok(other) => panic!("only messages were expected, not {other:?}"),
            Err(ReceiveError::Empty | ReceiveError::Ended) => return texts,
            Err(other) => panic!("{other}"),
        }
    }
}

pub(crate) fn wait(lane: &mut Lane, to: impl Into<To>, text: &str) -> Arc<Wakes> {
    let wakes = Wakes::new();
    let submitted = lane.submit(to.into().0, text, wakes.waker()).unwrap();
    assert_eq!(submitted, Submitted::Waiting, "{text}");
    wakes
}

/// Counts how often a waker was called.
#[derive(Debug, Default)]
pub(crate) struct Wakes(AtomicUsize);

impl Wakes {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub(crate) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The outcome of a waiting send that must have been decided.
pub(crate) fn outcome(lane: &mut Lane) -> Result<Receipt, SendError> {
    lane.poll_outcome().expect("the waiting send has been decided")
}

/// The named recipients and their number.
pub(crate) fn full(refused: Result<Receipt, SendError>) -> (Vec<EndpointId>, u32) {
    match refused {
        Err(SendError::WouldBlock { full }) => (full.named().to_vec(), full.count()),
        other => panic!("would block, not {other:?}"),
    }
}

pub(crate) fn assert_rising(sequences: &[Sequence]) {
    for pair in sequences.windows(2) {
        assert!(pair[0] < pair[1], "{} before {}", pair[0], pair[1]);
    }
}
