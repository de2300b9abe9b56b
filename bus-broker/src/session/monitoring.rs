//! What a monitor is told beside the copies of messages.

use bus_core::wire::{
    MonitoredChange, MonitoredMember, MonitoredOutcome, Notice, OwnerChanged, ViewNotice,
};
use bus_core::{Gap, Monitored};

use super::names;

/// The notice of a change. A message is no notice alone.
pub(super) fn notice_of(seen: Monitored, missed: Option<Gap>) -> Option<Notice> {
    let change = match seen {
        Monitored::View(change) => {
            return Some(Notice::MonitoredView(Box::new(ViewNotice::new(&change, missed))));
        }
        Monitored::Member(change) => MonitoredChange::Member(MonitoredMember::new(&change, missed)),
        Monitored::Owner(change) => {
            let change: OwnerChanged = names::owner_changed(&change, missed);
            MonitoredChange::Owner(change)
        }
        Monitored::Outcome(seen) => MonitoredChange::Outcome(MonitoredOutcome {
            request: seen.outcome.request,
            sequence: seen.outcome.sequence,
            why: seen.outcome.why.into(),
            caller: seen.caller,
            asked: seen.asked,
            missed,
        }),
        _ => return None,
    };
    Some(Notice::MonitoredChange(Box::new(change)))
}
