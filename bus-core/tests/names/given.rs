//! Small buses, and short words for what the tests do with names.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use bus_core::{
    Bus, Claimed, Credentials, Delivery, Destination, Endpoint, EndpointId, GroupName, Lane,
    Limits, NameEvent, NameFlags, NameId, OwnError, OwnOptions, Receipt, Receiver, SendError,
    Submitted,
};

pub(crate) fn bus(queue_messages: u32) -> Bus {
    bus_with(Limits { queue_messages, ..Limits::default() })
}

pub(crate) fn bus_with(limits: Limits) -> Bus {
    Bus::new(limits, 5).unwrap()
}

pub(crate) fn name(text: &str) -> GroupName {
    text.parse().unwrap()
}

/// What the claims in a table say.
pub(crate) const NONE: NameFlags = NameFlags::empty();

/// An endpoint with its reader and a lane.
pub(crate) struct Party {
    pub(crate) endpoint: Endpoint,
    pub(crate) reader: Receiver,
    pub(crate) lane: Lane,
}

impl Party {
    pub(crate) fn on(bus: &Bus) -> Self {
        let endpoint = bus.open_endpoint(Credentials { uid: 1000, pid: 1 }).unwrap();
        Self { reader: endpoint.receiver().unwrap(), lane: endpoint.lane().unwrap(), endpoint }
    }

    pub(crate) fn id(&self) -> EndpointId {
        self.endpoint.id()
    }

    pub(crate) fn own(&self, text: &str, flags: NameFlags) -> Result<Claimed, OwnError> {
        self.endpoint.own_name(&name(text), OwnOptions::new(flags))
    }

    /// Claims what it must get, or wait for.
    pub(crate) fn owns(&self, text: &str, flags: NameFlags) -> NameId {
        self.own(text, flags).unwrap().name
    }

    pub(crate) fn try_send(&mut self, to: NameId, text: &str) -> Result<Receipt, SendError> {
        self.lane.try_send(Destination::Name(to), text)
    }

    pub(crate) fn send(&mut self, to: NameId, text: &str) -> Receipt {
        self.try_send(to, text).unwrap()
    }

    /// Submits what must wait.
    pub(crate) fn wait(&mut self, to: NameId, text: &str) -> Arc<Wakes> {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let submitted = self.lane.submit(Destination::Name(to), text, waker).unwrap();
        assert_eq!(submitted, Submitted::Waiting, "{text}");
        wakes
    }

    pub(crate) fn outcome(&mut self) -> Result<Receipt, SendError> {
        self.lane.poll_outcome().expect("the waiting send has been decided")
    }

    /// Everything that is queued, as [`shown`] shows it.
    pub(crate) fn take_all(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.reader.try_receive().ok()).map(shown).collect()
    }
}

/// A delivery in short: a message's text, `+name`, `-name by N`, `name: old -> new`.
pub(crate) fn shown(delivery: Delivery) -> String {
    let id = |id: Option<EndpointId>| id.map_or_else(|| "nobody".to_owned(), |id| id.to_string());
    match delivery {
        Delivery::Message { message, .. } => String::from_utf8(message.payload().to_vec()).unwrap(),
        Delivery::Name(notice) => match notice.event {
            NameEvent::Acquired => format!("+{}", notice.text),
            NameEvent::Replaced { by, queued: true } => format!("-{} by {by}, waits", notice.text),
            NameEvent::Replaced { by, .. } => format!("-{} by {by}", notice.text),
            NameEvent::Stalled => format!("-{} stalled", notice.text),
            other => panic!("{other:?}"),
        },
        Delivery::Owner { change, missed } => {
            let (old, new) = (change.old.map(|o| o.endpoint), change.new.map(|n| n.endpoint));
            let missed = missed.map_or_else(String::new, |gap| format!(" after {}", gap.count));
            format!("{}: {} -> {}{missed}", change.text, id(old), id(new))
        }
        Delivery::OwnersLost { gap, .. } => format!("lost {}", gap.count),
        other => panic!("{other:?}"),
    }
}

/// Counts how often a waker was called.
#[derive(Debug, Default)]
pub(crate) struct Wakes(AtomicUsize);

impl Wakes {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}
