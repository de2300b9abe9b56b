//! Relief for those who wait for this program while it waits for them.
//!
//! Who waits for a send cannot read meanwhile. If what it would read fills its queue, others wait
//! for it, and the very recipient that it waits for may be one of them. So while a send waits, what
//! arrives for endpoints that may go unread because of it goes to their backlogs, and its places go
//! back; and where queue and backlog are full, the send gives up with `WouldDeadlock` (G5).
//!
//! The backlog costs little and is filled in doubt. Giving up is for those only of whom it is
//! certain that they would have to read themselves: a thread for the endpoint that it read last, or
//! that nobody has ever read; a task for the endpoint that it read last, unless it waits to read at
//! the same time. Other tasks may read any time, and nobody can tell a slow one from none.

use std::task::Waker;
use std::thread::{self, ThreadId};

use bus_core::wire::Serial;

use super::send::CancelReason;
use super::{State, Urgency};

/// Who waits for a send.
#[derive(Clone, Debug)]
pub(crate) enum Sender {
    Thread(ThreadId),
    Task(Waker),
}

/// Who received from an endpoint last.
#[derive(Debug)]
pub(super) struct Reader {
    thread: ThreadId,
    task: Option<Waker>,
    /// The task waits for something to arrive, or was woken because it has.
    waits: bool,
}

impl Reader {
    /// The calling thread, or the task of this waker on it, is about to look for something.
    pub(super) fn note(reader: &mut Option<Self>, task: Option<&Waker>) {
        let thread = thread::current().id();
        match reader {
            Some(reader) => {
                reader.thread = thread;
                reader.waits = false;
                match (&mut reader.task, task) {
                    (Some(old), Some(new)) => old.clone_from(new),
                    (old, new) => *old = new.cloned(),
                }
            }
            None => {
                *reader = Some(Self { thread, task: task.cloned(), waits: false });
            }
        }
    }

    /// The task goes to sleep until something arrives.
    pub(super) fn note_waiting(reader: &mut Option<Self>) {
        if let Some(reader) = reader {
            reader.waits = true;
        }
    }
}

impl Sender {
    /// Whether an endpoint with this reader may go unread because this sender waits.
    fn may_keep(&self, reader: Option<&Reader>) -> bool {
        match (self, reader) {
            (_, None) => true,
            (Self::Thread(sender), Some(reader)) => *sender == reader.thread,
            (Self::Task(_), Some(reader)) => reader.task.is_some(),
        }
    }

    /// Whether an endpoint with this reader certainly goes unread because this sender waits.
    fn keeps(&self, reader: Option<&Reader>) -> bool {
        match (self, reader) {
            (Self::Thread(_), _) => self.may_keep(reader),
            (Self::Task(_), None) => false,
            (Self::Task(sender), Some(reader)) => {
                let same = |task: &Waker| task.will_wake(sender);
                reader.task.as_ref().is_some_and(same) && !reader.waits
            }
        }
    }
}

impl State {
    /// Somebody waits for a send and cannot read meanwhile.
    pub(crate) fn block(&mut self, serial: Serial, sender: Sender) {
        self.unblock(serial);
        self.blocked.push((serial, sender));
        if !self.is_request(serial) {
            self.hurry(serial);
        }
        self.relieve();
    }

    /// A thread waits to receive from this endpoint.
    pub(crate) fn starts_reading(&mut self, key: usize) {
        let endpoint = &mut self.endpoints[key];
        endpoint.reading += 1;
        Reader::note(&mut endpoint.reader, None);
    }

    pub(crate) fn stops_reading(&mut self, key: usize) {
        self.endpoints[key].reading -= 1;
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
            let reader = endpoint.reader.as_ref();
            if !self.blocked.iter().any(|(_, sender)| sender.may_keep(reader)) {
                continue;
            }
            endpoint.inbox.fill_backlog();
            // A thread that waits to receive is about to, if it does not already.
            if endpoint.reading == 0 && endpoint.inbox.is_stuck() {
                let id = endpoint.id;
                let kept = self.blocked.iter().filter(|(_, sender)| sender.keeps(reader));
                stuck.extend(kept.map(|(serial, _)| (*serial, id)));
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
