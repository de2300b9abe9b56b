//! Where `send` sends: a group, an endpoint, or whoever owns a name.

use std::time::Duration;

use bus_client::{
    Bus, EndpointId, Group, Name, NameError, Outgoing, PendingSend, Receipt, RemoteEndpoint,
    SendError,
};

/// A handle to send to.
#[derive(Debug)]
pub(crate) enum Destination {
    Group(Group),
    Endpoint(RemoteEndpoint),
    Name(Name),
}

/// Does the same to whatever it is.
macro_rules! each {
    ($destination:expr, $handle:ident => $action:expr) => {
        match $destination {
            Destination::Group($handle) => $action,
            Destination::Endpoint($handle) => $action,
            Destination::Name($handle) => $action,
        }
    };
}

impl Destination {
    pub(crate) fn group(bus: &Bus, name: &str) -> Result<Self, NameError> {
        bus.group(name).map(Self::Group)
    }

    /// An endpoint by its number, or the owner of a name.
    pub(crate) fn parse(bus: &Bus, text: &str) -> Result<Self, NameError> {
        match text.parse() {
            Ok(id) => Ok(Self::Endpoint(bus.endpoint(EndpointId::from_raw(id)))),
            Err(_) => bus.name(text).map(Self::Name),
        }
    }

    pub(crate) fn send(&self, message: Outgoing) -> Result<Receipt, SendError> {
        each!(self, handle => handle.send(message))
    }

    pub(crate) fn try_send(&self, message: Outgoing) -> Result<Receipt, SendError> {
        each!(self, handle => handle.try_send(message))
    }

    pub(crate) fn send_deadline(
        &self,
        message: Outgoing,
        timeout: Duration,
    ) -> Result<Receipt, SendError> {
        each!(self, handle => handle.send_deadline(message, timeout))
    }

    pub(crate) fn start_send(&self, message: Outgoing) -> Result<PendingSend, SendError> {
        each!(self, handle => handle.start_send(message))
    }
}
