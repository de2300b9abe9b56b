//! Connections and descriptors, in masses.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use bus_core::wire::SendFlags;
use bus_core::{Destination, MemberFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Fault, Field, TOO_FAST};
use crate::raw::RawClient;

/// Connections that come and go: silent ones, greeted ones, and such as go in mid-greeting.
pub(super) fn connections(field: &mut Field<'_>) -> String {
    let Field { broker, plan, faults, .. } = field;
    let began = Instant::now();
    let count = AtomicU64::new(0);
    thread::scope(|scope| {
        for kind in 0..4 {
            let (count, socket, each) = (&count, broker.socket(), plan.each);
            scope.spawn(move || {
                while began.elapsed() < each {
                    match kind {
                        // The backlog may be full.
                        0 => drop(UnixStream::connect(socket)),
                        1 => {
                            if let Ok(mut stream) = UnixStream::connect(socket) {
                                let _ = std::io::Write::write_all(&mut stream, b"UNISO");
                            }
                        }
                        _ => drop(RawClient::connect(socket)),
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let count = count.into_inner();
    let (what, message) = ("connections in a flood", "connections are refused");
    faults.injected(Fault { what, message, about: TOO_FAST, program: None, each: false }, count);
    let rate = count as f64 / began.elapsed().as_secs_f64();
    format!("{count} connections came and went, {rate:.0} a second")
}

/// As many idle connections as planned, or as the system lets this process have.
pub(super) fn idle(field: &mut Field<'_>) -> String {
    let Field { broker, plan, .. } = field;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    }
    let allowed = usize::try_from(hard).unwrap_or(usize::MAX).saturating_sub(SPARE);
    let wanted = plan.connections.min(allowed);
    let before = super::holdings(broker);
    let began = Instant::now();
    let clients: Vec<_> = (0..wanted).map(|_| RawClient::connect(broker.socket())).collect();
    let took = began.elapsed().as_secs_f64();
    let now = super::holdings(broker);
    // What was open for others may be closed by now.
    assert!(
        now.descriptors <= before.descriptors + wanted,
        "for {wanted} connections {now}, and before {before}"
    );
    let mut last = clients.into_iter().next_back().unwrap();
    // The quickest of some: what it takes, and not what else the machine does.
    let asked = |client: &mut RawClient| {
        let began = Instant::now();
        client.stats();
        began.elapsed()
    };
    let stats = (0..10).map(|_| asked(&mut last)).min().unwrap();
    format!(
        "{wanted} at once ({allowed} are allowed), opened in {took:.1} s; the broker held {now}, and \
         {before} before; it told its counters in {stats:.0?}"
    )
}

/// What else this process needs.
const SPARE: usize = 500;

/// Messages with as many descriptors as there may be, to members that do not take them.
pub(super) fn descriptors(field: &mut Field<'_>) -> String {
    let Field { broker, plan, .. } = field;
    let began = Instant::now();
    let file = File::open("/dev/null").unwrap();
    let sixteen = [file.as_fd(); 16];
    let (mut sent, mut refused, mut rounds) = (0_u64, 0_u64, 0_u64);
    while rounds == 0 || began.elapsed() < plan.each {
        rounds += 1;
        let mut members: Vec<_> = (0..4).map(|_| broker.raw()).collect();
        let group = members
            .iter_mut()
            .map(|m| m.join_with("descriptors", MemberFlags::DROP_WHEN_FULL).unwrap())
            .next_back()
            .unwrap();
        thread::scope(|scope| {
            let floods: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut sender = RawClient::connect(broker.socket());
                        let (mut sent, mut refused) = (0, 0);
                        for _ in 0..200 {
                            let to = Destination::Group(group);
                            let serial = sender.post_descriptors(to, b"d", &sixteen);
                            match sender.outcome(serial) {
                                Ok(_) => sent += 1,
                                Err(_) => refused += 1,
                            }
                            // The broker says when it has taken them; only then may others follow.
                            sender.ping();
                        }
                        (sent, refused)
                    })
                })
                .collect();
            for flood in floods {
                let (more, not) = flood.join().unwrap();
                sent += more;
                refused += not;
            }
        });
        // Some go with what they were sent, some without having looked.
        members.truncate(2);
        for member in &mut members {
            let serial = member.post_with(Destination::Group(group), b"", SendFlags::NONBLOCK);
            let _ = member.outcome(serial);
        }
    }
    format!("{sent} messages with 16 descriptors each, {refused} refused")
}
