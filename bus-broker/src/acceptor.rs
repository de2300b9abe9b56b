//! Taking new connections, and refusing them politely when there is no place.
//!
//! Invariant: one descriptor is kept in reserve. When the process has none left, the reserve is
//! given up to take the connection, to say why it is refused, and to close it; so clients learn the
//! reason and the listening socket does not stay readable for ever. If not even that works, the
//! listeners are left alone for a while instead of being asked in a circle.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bus_core::Credentials;
use bus_core::wire::{BrokerFrame, Goodbye, GoodbyeCode};
use bytes::BytesMut;
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::broker::{Origin, Peer, Shared};
use crate::connection_rate::ConnectionRate;
use crate::credentials::PeerCredentials;
use crate::door::Door;
use crate::helper::Parked;
use crate::inbox::Inbox;
use crate::ingress::IngressListener;
use crate::log_limit::LogEvent;
use crate::peer_process;

/// The listening sockets, and the descriptor in reserve.
#[derive(Debug, Default)]
pub(crate) struct Acceptor {
    doors: Vec<Door>,
    ingresses: Vec<IngressListener>,
    reserve: Option<OwnedFd>,
    /// How often who may connect; made with the first.
    rate: Option<ConnectionRate>,
}

/// How far accepting came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// Nobody waits, or epoll will say so again.
    Enough,
    /// Somebody waits who can be neither taken nor refused now.
    TryLater,
}

impl Acceptor {
    pub(crate) fn new(doors: Vec<Door>, ingresses: Vec<IngressListener>) -> Self {
        let mut acceptor = Self { doors, ingresses, ..Self::default() };
        acceptor.renew_reserve();
        acceptor
    }

    /// All sockets at which somebody may wait.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let ingresses = self.ingresses.iter().map(AsFd::as_fd);
        self.doors.iter().map(AsFd::as_fd).chain(ingresses)
    }

    /// Stops listening: paths that are ours are free again.
    pub(crate) fn close(&mut self) {
        *self = Self::default();
    }

    /// Takes those who wait, as many as one turn allows.
    pub(crate) fn accept(&mut self, shared: &Arc<Shared>, inbox: &Inbox) -> Accepted {
        for at in 0..self.doors.len() {
            for _ in 0..ACCEPTS_A_TURN {
                match self.doors[at].listener.accept() {
                    Ok(socket) => self.admit(at, socket, shared, inbox),
                    Err(Errno::AGAIN) => break,
                    // It was gone before it was taken.
                    Err(Errno::CONNABORTED | Errno::PERM) => {}
                    Err(Errno::MFILE | Errno::NFILE) if self.reserve.is_some() => {
                        self.reserve = None;
                        if let Ok(socket) = self.doors[at].listener.accept() {
                            inbox.counters.connections_refused.add(1);
                            self.refuse(shared, &socket, "the broker has no descriptor left");
                        }
                        self.renew_reserve();
                    }
                    Err(error) => {
                        self.renew_reserve();
                        cannot_accept(shared, error);
                        return Accepted::TryLater;
                    }
                }
            }
        }
        self.accept_streams(shared)
    }

    /// The same at each ingress. Nobody there would understand why he is refused.
    fn accept_streams(&mut self, shared: &Arc<Shared>) -> Accepted {
        for at in 0..self.ingresses.len() {
            for _ in 0..ACCEPTS_A_TURN {
                match self.ingresses[at].accept() {
                    Ok(socket) => self.admit_stream(at, socket, shared),
                    Err(Errno::AGAIN) => break,
                    Err(Errno::CONNABORTED | Errno::PERM) => {}
                    Err(Errno::MFILE | Errno::NFILE) if self.reserve.is_some() => {
                        self.reserve = None;
                        drop(self.ingresses[at].accept());
                        self.renew_reserve();
                    }
                    Err(error) => {
                        self.renew_reserve();
                        cannot_accept(shared, error);
                        return Accepted::TryLater;
                    }
                }
            }
        }
        Accepted::Enough
    }

    fn admit_stream(&mut self, at: usize, socket: OwnedFd, shared: &Arc<Shared>) {
        let ingress = &self.ingresses[at].ingress;
        match (ingress.take_place(), shared.take_stream_place()) {
            (Some(place), Ok(connection)) => {
                let _ = shared.assign(socket, Origin::Ingress(place), connection);
            }
            _ => {
                ingress.count_refused();
                shared.log_limit.log_of_broker(LogEvent::Stream, |suppressed| {
                    let identity = ingress.identity();
                    tracing::warn!(
                        identity,
                        suppressed,
                        "an ingress has as many streams as it may have"
                    );
                });
            }
        }
    }

    fn admit(&mut self, at: usize, socket: OwnedFd, shared: &Arc<Shared>, inbox: &Inbox) {
        let door = match self.doors[at].take_place() {
            Ok(door) => door,
            Err(limit) => {
                inbox.counters.connections_refused.add(1);
                let text = format!("this socket has {limit} connections already");
                return self.refuse(shared, &socket, &text);
            }
        };
        let credentials = match PeerCredentials::of(&socket) {
            Ok(credentials) => credentials,
            Err(error) => {
                return shared.log_limit.log_of_broker(LogEvent::Accept, |suppressed| {
                    tracing::warn!(%error, suppressed, "a peer has no credentials, and is closed");
                });
            }
        };
        let PeerCredentials { uid, pid, .. } = credentials;
        // Who came in at a door with an account of its own pays from that.
        let payer = self.doors[at].account().unwrap_or(uid);
        let process = peer_process::of(&socket, pid, &shared.ledger);
        let rate = shared.connection_rate.load(Ordering::Relaxed);
        let counts = self.rate.get_or_insert_with(|| ConnectionRate::new(rate));
        counts.set_rate(rate);
        if let Err(wait) = counts.count(payer, process, Instant::now()) {
            let text = format!(
                "the limit user_connection_rate of {rate} a second is reached, half of them for one \
                 process; try again in {wait:.0?}"
            );
            inbox.counters.connections_refused.add(1);
            return self.refuse(shared, &socket, &text);
        }
        match shared.take_connection_place(payer, pid, process) {
            Err(limit) => {
                inbox.counters.connections_refused.add(1);
                self.refuse(shared, &socket, &limit.to_string());
            }
            Ok(place) => {
                let mut subject = credentials.subject(&socket, self.doors[at].identity());
                // With a helper always, so that rules which ask for it later find it.
                let helper = shared.helper.get();
                if helper.is_none() && shared.policy.get().asks_for_processes() {
                    let process = credentials.process(&socket);
                    (subject.executable, subject.sandbox) = (process.executable, process.sandbox);
                }
                let peer = Box::new(Peer { credentials, subject, door });
                let parked = Parked { socket, peer, place };
                let parked = match helper {
                    Some(helper) => helper.look_at(pid, parked).err(),
                    None => Some(parked),
                };
                if let Some(Parked { socket, peer, place }) = parked {
                    // The only other answer is that the broker ends, and then it is closed.
                    let _ = shared.assign(socket, Origin::Client(peer), place);
                }
            }
        }
    }

    fn refuse(&self, shared: &Shared, socket: &impl AsFd, reason: &str) {
        // Who has gone already has credentials all the same.
        let peer =
            PeerCredentials::of(socket).map(|peer| Credentials { uid: peer.uid, pid: peer.pid });
        let peer = peer.unwrap_or(Credentials::UNAUTHENTICATED);
        shared.log_limit.log(LogEvent::Refusing, peer, |suppressed| {
            let program = shared.roster.program_of(peer);
            let Credentials { uid, pid } = peer;
            tracing::warn!(reason, uid, pid, program, suppressed, "connections are refused");
        });
        let goodbye = Goodbye::new(GoodbyeCode::LimitExceeded, reason);
        let mut bytes = BytesMut::new();
        if BrokerFrame::Goodbye(goodbye).encode(&mut bytes).is_ok() {
            // It fits the empty socket; and who is gone needs no reason.
            let _ = rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }

    fn renew_reserve(&mut self) {
        if self.reserve.is_none() {
            self.reserve = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).ok();
        }
    }
}

fn cannot_accept(shared: &Shared, error: Errno) {
    shared.log_limit.log_of_broker(LogEvent::Accept, |suppressed| {
        tracing::warn!(%error, suppressed, "cannot accept, and will try again");
    });
}

/// Connections taken from one listener before those that exist have their turn.
const ACCEPTS_A_TURN: usize = 64;
