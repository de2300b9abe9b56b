//! What is counted, told to what watches over the system: OpenMetrics over HTTP, on a Unix socket.
//!
//! Invariant: scrapers have a thread of their own, which holds nothing while it writes. A text is
//! made once, from counters that others leave behind, and then it is bytes that somebody reads or
//! not; who is slow loses its connection after [`PATIENCE`], and there are at most
//! [`MOST_SCRAPERS`] of them. So a scraper can keep other scrapers waiting for a while, and the bus
//! not at all.
//!
//! | file | what it knows |
//! |---|---|
//! | `http` | one request, one answer |
//! | `text` | the format of OpenMetrics 1.0 |
//! | `families` | which metrics there are |

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::time::Timespec;

use crate::broker::Shared;
use crate::config::MetricsConfig;
use crate::listener::{ListenError, Listener};
use crate::log_limit::LogEvent;

mod families;
mod http;
mod text;

/// The socket, before anybody serves it.
#[derive(Debug)]
pub(crate) struct Metrics {
    listener: Listener,
    groups: usize,
    endpoints: usize,
    stop: OwnedFd,
}

/// The thread that serves it; dropping this ends it.
#[derive(Debug)]
pub(crate) struct MetricsThread {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// Somebody who has connected.
#[derive(Debug)]
struct Scraper {
    socket: OwnedFd,
    until: Instant,
    request: Vec<u8>,
    /// Once the request has come whole.
    answer: Option<Vec<u8>>,
    written: usize,
    /// The answer is written, and the other side has to take it and go.
    done: bool,
}

impl Metrics {
    /// None if no socket is asked for.
    pub(crate) fn bind(config: &MetricsConfig) -> Result<Option<Self>, ListenError> {
        let Some(path) = &config.listen else {
            return Ok(None);
        };
        let listener = Listener::bind(path)?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| ListenError::System {
                action: "make an eventfd for",
                path: PathBuf::from(path),
                source: error.into(),
            })?;
        let (groups, endpoints) = (config.groups.into(), config.endpoints.into());
        Ok(Some(Self { listener, groups, endpoints, stop }))
    }

    /// Serves it until what comes back is dropped.
    pub(crate) fn start(self, shared: Arc<Shared>) -> io::Result<MetricsThread> {
        let stop = self.stop.try_clone()?;
        let thread = thread::Builder::new()
            .name("bus-metrics".to_owned())
            .spawn(move || self.serve(&shared))?;
        Ok(MetricsThread { stop, thread: Some(thread) })
    }

    fn serve(self, shared: &Arc<Shared>) {
        let mut scrapers: Vec<Scraper> = Vec::new();
        loop {
            let now = Instant::now();
            scrapers.retain(|scraper| now < scraper.until);
            let wait = scrapers.iter().map(|scraper| scraper.until - now).min();
            let room = scrapers.len() < MOST_SCRAPERS;
            let mut watched = vec![PollFd::new(&self.stop, PollFlags::IN)];
            let listening = if room { PollFlags::IN } else { PollFlags::empty() };
            watched.push(PollFd::new(&self.listener, listening));
            watched.extend(scrapers.iter().map(|scraper| {
                let wanted = if scraper.writes() { PollFlags::OUT } else { PollFlags::IN };
                PollFd::new(&scraper.socket, wanted)
            }));
            match poll(&mut watched, wait.map(timespec).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "metrics are not served any more");
                    return;
                }
            }
            let ready: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(watched);
            if ready[0] {
                return;
            }
            let mut at = 2;
            scrapers.retain_mut(|scraper| {
                at += 1;
                !ready[at - 1] || scraper.go_on(|| self.text(shared))
            });
            if ready[1] && room {
                self.accept(shared, &mut scrapers);
            }
        }
    }

    fn text(&self, shared: &Shared) -> Vec<u8> {
        families::text(shared, self.groups, self.endpoints).into_bytes()
    }

    fn accept(&self, shared: &Shared, scrapers: &mut Vec<Scraper>) {
        match self.listener.accept() {
            Ok(socket) => scrapers.push(Scraper {
                socket,
                until: Instant::now() + PATIENCE,
                request: Vec::new(),
                answer: None,
                written: 0,
                done: false,
            }),
            Err(Errno::AGAIN | Errno::CONNABORTED) => {}
            Err(error) => {
                shared.log_limit.log_of_broker(LogEvent::Scraper, |suppressed| {
                    tracing::warn!(%error, suppressed, "a scraper cannot be accepted");
                });
                // Out of descriptors, as a rule: asking again at once would be a circle.
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

impl Scraper {
    fn writes(&self) -> bool {
        self.answer.is_some() && !self.done
    }

    /// Reads or writes what there is. False if that is over.
    fn go_on(&mut self, text: impl FnOnce() -> Vec<u8>) -> bool {
        if self.answer.is_none() && !self.read(text) {
            return false;
        }
        if self.done {
            // It is to close first: then nothing that it has not read is thrown away.
            return self.skip();
        }
        while let Some(answer) = &self.answer
            && self.written < answer.len()
        {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.socket, &answer[self.written..], flags) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        if self.answer.is_some() {
            self.done = true;
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
        }
        true
    }

    /// Reads on. False if nothing can come of it.
    fn read(&mut self, text: impl FnOnce() -> Vec<u8>) -> bool {
        let mut bytes = [0; 4_096];
        let flags = RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.socket, &mut bytes, flags).map(|(count, _)| count) {
            Ok(0) => return false,
            Ok(count) => self.request.extend_from_slice(&bytes[..count]),
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Err(_) => return false,
        }
        self.answer = http::answer(&self.request, text);
        true
    }

    fn skip(&self) -> bool {
        let mut bytes = [0; 4_096];
        match rustix::net::recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((count, _)) => count != 0,
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }
}

impl Drop for MetricsThread {
    fn drop(&mut self) {
        let one = 1_u64.to_ne_bytes();
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(self.stop.as_fd(), &one));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).saturating_add(1);
    Timespec { tv_sec: millis / 1_000, tv_nsec: (millis % 1_000) * 1_000_000 }
}

/// Scrapers at a time.
const MOST_SCRAPERS: usize = 4;
/// How long one may take from its connection on until it has taken the answer and gone.
const PATIENCE: Duration = Duration::from_secs(10);
