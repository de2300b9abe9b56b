//! Calls that are answered in parts.

use bus_core::wire::{ClientFrame, Response, Serial};

use super::call::{CallError, Purpose};
use super::{Entry, State, Urgency, handle};

impl State {
    /// The next part of an answer, and whether it is the last. The entry goes with the last one.
    pub(crate) fn take_part(
        &mut self,
        serial: Serial,
    ) -> Option<Result<(Response, bool), CallError>> {
        if let Some(Entry::Call(call)) = self.pending.get_mut(serial)
            && let Some(part) = call.parts.pop_front()
        {
            return Some(Ok((part, false)));
        }
        Some(self.take_response(serial)?.map(|response| (response, true)))
    }

    /// A part of an answer has come.
    pub(super) fn part(&mut self, serial: Serial, response: Response) -> Result<(), String> {
        let Some(Entry::Call(call)) = self.pending.get_mut(serial) else {
            return Err(format!("PART for a call that was not made: serial {serial}"));
        };
        let is_wanted = matches!(call.purpose, Purpose::List) && !call.abandoned;
        if !is_wanted {
            // It may have crossed with giving up.
            return Ok(());
        }
        if call.parts.len() >= MOST_PARTS {
            return Err(format!("more than {MOST_PARTS} parts of one listing"));
        }
        call.parts.push_back(response);
        let wake = call.wake.take();
        self.woken(wake);
        Ok(())
    }

    /// Nobody looks at the rest of a listing any more.
    pub(crate) fn abandon_listing(&mut self, serial: Serial) {
        let Some(Entry::Call(call)) = self.pending.get_mut(serial) else {
            return;
        };
        call.parts.clear();
        if call.answer.is_none() && self.gone.is_none() {
            let endpoint = handle(call.endpoint);
            self.outbox.put(&ClientFrame::Unwatch { endpoint, serial });
        }
        self.abandon(serial);
        self.flush(Urgency::Soon);
    }
}

/// Parts of one listing that may lie here: a million entries, which no listing of a bus with sensible
/// limits has.
const MOST_PARTS: usize = 1 << 14;
