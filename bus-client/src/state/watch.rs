//! Watches: asking to be told when a send would not block.

use bus_core::Attributes;
use bus_core::wire::{ClientFrame, Failure, FailureCode, Serial};

use super::call::CallError;
use super::target::Target;
use super::{Entry, State, TOO_MUCH_PENDING, Urgency, handle};
use crate::waits::Wake;

#[derive(Debug)]
pub(super) struct WatchEntry {
    pub(super) endpoint: usize,
    pub(super) target: Target,
    /// What the message would say of itself.
    pub(super) attributes: Attributes,
    /// Whether it has left; else it waits for its group to be looked up.
    pub(super) left: bool,
    pub(super) retry_stale: bool,
    pub(super) answer: Option<Result<(), CallError>>,
    pub(super) wake: Option<Wake>,
}

impl State {
    pub(crate) fn watch(
        &mut self,
        key: usize,
        target: Target,
        attributes: Attributes,
    ) -> Result<Serial, CallError> {
        if let Some(gone) = &self.gone {
            return Err(CallError::Gone(gone.clone()));
        }
        let entry = Entry::Watch(Box::new(WatchEntry {
            endpoint: key,
            target,
            attributes,
            left: false,
            retry_stale: true,
            answer: None,
            wake: None,
        }));
        let serial = self.pending.insert(|| entry).ok_or_else(|| {
            CallError::Failed(Box::new(Failure::new(FailureCode::LimitExceeded, TOO_MUCH_PENDING)))
        })?;
        self.start_watch(serial);
        self.flush(Urgency::Soon);
        Ok(serial)
    }

    pub(super) fn start_watch(&mut self, serial: Serial) {
        let Some(Entry::Watch(watch)) = self.pending.get_mut(serial) else {
            return;
        };
        if watch.left || watch.answer.is_some() {
            return;
        }
        let key = watch.endpoint;
        match watch.target.destination() {
            Some(destination) => {
                watch.left = true;
                let (endpoint, attributes) = (handle(key), watch.attributes.clone());
                self.outbox.put(&ClientFrame::Watch { endpoint, serial, destination, attributes });
            }
            None => {
                let target = watch.target.clone();
                match self.resolve(key, &target, serial) {
                    Ok(()) => self.queued_watches.push(serial),
                    Err(error) => self.answer_watch(serial, Err(error)),
                }
            }
        }
    }

    /// Takes the watch's answer, and its entry with it.
    pub(crate) fn take_writable(&mut self, serial: Serial) -> Option<Result<(), CallError>> {
        match self.pending.get(serial) {
            Some(Entry::Watch(watch)) if watch.answer.is_some() => {}
            _ => return None,
        }
        match self.pending.remove(serial) {
            Some(Entry::Watch(watch)) => watch.answer,
            _ => unreachable!("it was there a moment ago"),
        }
    }

    /// Ends a watch that nobody waits for any more.
    pub(crate) fn unwatch(&mut self, serial: Serial) {
        let Some(Entry::Watch(watch)) = self.pending.get(serial) else {
            return;
        };
        let (key, open) = (watch.endpoint, watch.left && watch.answer.is_none());
        self.pending.remove(serial);
        self.queued_watches.retain(|queued| *queued != serial);
        if open && self.gone.is_none() {
            self.outbox.put(&ClientFrame::Unwatch { endpoint: handle(key), serial });
            self.flush(Urgency::Soon);
        }
    }

    pub(super) fn answer_watch(&mut self, serial: Serial, answer: Result<(), CallError>) {
        let Some(Entry::Watch(watch)) = self.pending.get_mut(serial) else {
            return;
        };
        if watch.answer.is_none() {
            watch.answer = Some(answer);
            let wake = watch.wake.take();
            self.woken(wake);
        }
    }
}
