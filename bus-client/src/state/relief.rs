//! Relief for those who wait for this program while it waits for them.
//!
//! A thread that waits for a send cannot read meanwhile. If what it would read fills its queue, others
//! wait for it, and the very recipient that it waits for may be one of them. So while a send waits,
//! what arrives for endpoints that nobody else reads goes to their backlogs and its places go back;
//! and where queue and backlog are full, the send gives up with `WouldDeadlock` (G5).

use std::thread::ThreadId;

use bus_core::wire::Serial;

use super::endpoint::Reader;
use super::send::CancelReason;
use super::{State, Urgency};

/// Who waits for a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Thread(ThreadId),
    Task,
}

impl Sender {
    /// Whether the endpoint with this reader may go unread while this sender waits. A task may
    /// share its thread with anybody, so a task is in doubt with every thread that blocks.
    fn keeps_from_reading(self, reader: Reader) -> bool {
        match (self, reader) {
            (_, Reader::Nobody | Reader::Task) => true,
            (Self::Thread(sender), Reader::Thread(reader)) => sender == reader,
            (Self::Task, Reader::Thread(_)) => false,
        }
    }
}

impl State {
    /// Somebody waits for a send and cannot read meanwhile.
    pub(crate) fn block(&mut self, serial: Serial, sender: Sender) {
        if !self.blocked.contains(&(serial, sender)) {
            self.blocked.push((serial, sender));
        }
        self.relieve();
    }

    pub(crate) fn unblock(&mut self, serial: Serial) {
        self.blocked.retain(|(blocked, _)| *blocked != serial);
    }

    /// Takes messages into the backlogs of endpoints that cannot be read while sends wait, so that
    /// others who wait for those endpoints go on. Where even that does not help, the send gives up.
    pub(super) fn relieve(&mut self) {
        if self.blocked.is_empty() || self.gone.is_some() {
            return;
        }
        let mut stuck = Vec::new();
        for key in self.keys() {
            let Some(endpoint) = self.endpoints.get_mut(key) else {
                continue;
            };
            if endpoint.inbox.is_empty() || endpoint.closing {
                continue;
            }
            let (id, reader) = (endpoint.id, endpoint.reader);
            let mut kept = self
                .blocked
                .iter()
                .filter(|(_, sender)| sender.keeps_from_reading(reader))
                .map(|(serial, _)| *serial)
                .peekable();
            if kept.peek().is_none() {
                continue;
            }
            endpoint.inbox.fill_backlog();
            if endpoint.inbox.is_stuck() {
                stuck.extend(kept.map(|serial| (serial, id)));
            }
        }
        self.return_all_credit();
        for (serial, endpoint) in stuck {
            if !self.waits_for_lookup(serial) {
                self.cancel(serial, CancelReason::Deadlock(endpoint));
            }
        }
        self.flush(Urgency::Soon);
    }
}
