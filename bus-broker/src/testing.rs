//! What unit tests of several files need.

use std::fs::File;
use std::sync::Arc;

use bus_core::{Bus, Credentials, Delivery, Destination, Draft, Limits, Message};

/// The bus makes messages only by committing them.
pub(crate) fn message_with_descriptor() -> Arc<Message> {
    let bus = Bus::new(Limits::default(), 7).unwrap();
    let endpoint = bus.open_endpoint(Credentials { uid: 1, pid: 1 }).unwrap();
    let draft = Draft {
        descriptors: vec![File::open("/dev/null").unwrap().into()],
        ..Draft::from("payload")
    };
    let destination = Destination::Endpoint(endpoint.id());
    endpoint.lane().unwrap().try_send(destination, draft).unwrap();
    match endpoint.receiver().unwrap().drain() {
        Some(Delivery::Message { message, .. }) => message,
        other => panic!("{other:?}"),
    }
}
