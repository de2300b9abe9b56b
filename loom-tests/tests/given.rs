//! What the models start from, and how far each is explored.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bus_core_modelled::{
    Bus, Credentials, Delivery, Destination, Draft, Endpoint, Gap, JoinOptions, Limits,
    MemberFlags, Receiver, Sequence,
};

pub fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 50_000;
    builder
        .preemption_bound
        .get_or_insert(if cfg!(feature = "long") { 3 } else { 2 });
    let runs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    let start = Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!(
        "{} interleavings in {:?}",
        runs.load(Ordering::Relaxed),
        start.elapsed()
    );
}

pub fn bus(queue_messages: u32) -> Bus {
    let limits = Limits {
        queue_messages,
        ..Limits::default()
    };
    Bus::new(limits, 0).expect("limits in range")
}

pub fn endpoint(bus: &Bus) -> Endpoint {
    bus.open_endpoint(Credentials { uid: 1, pid: 1 })
        .expect("room for an endpoint")
}

pub fn join(endpoint: &Endpoint, name: &str, flags: MemberFlags) -> Destination {
    let name = name.parse().expect("a good name");
    let joined = endpoint.join(&name, JoinOptions::create().with(flags));
    Destination::Group(joined.expect("joins").group)
}

pub fn texts(receiver: &mut Receiver) -> Vec<(Sequence, String)> {
    let mut all = Vec::new();
    while let Ok(Delivery::Message { message, .. }) = receiver.try_receive() {
        let text = String::from_utf8_lossy(message.payload()).into_owned();
        all.push((message.sequence(), text));
    }
    all
}
