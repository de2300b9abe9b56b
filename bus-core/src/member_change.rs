//! What happens to members beside that they come and go: asked, refused, other flags or filters.
//!
//! Nobody but monitors is told of these at their place in the order, so one is made only while there
//! are monitors. The directory is held from there to the commit: who monitors the bus does not
//! change in between.

use std::sync::Arc;

use crate::bus::BusInner;
use crate::group::Group;
use crate::id::{EndpointId, GroupId, Sequence};
use crate::intake::EndpointCore;
use crate::lock_set::{Held, LockBits};
use crate::membership::MemberFlags;
use crate::message::Credentials;
use crate::monitor::{MonitorList, Monitored};
use crate::name::GroupName;
use crate::send::Effects;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberEvent {
    /// The endpoint has made the group.
    Created,
    /// It asks to be admitted to the gated group.
    Asked,
    /// The owner has refused it.
    Refused,
    /// It asks no more.
    Withdrawn,
    /// The owner has changed how it is a member.
    Terms,
    /// It has changed what it wants to hear.
    Filter,
    /// Its messages to the group go to its peer endpoint no more, because that was full for the
    /// stall limit (G8).
    PeerStalled,
    /// The connection between it and the owner has ended.
    PeerClosed,
    /// It was the owner of the gated group, and is gone: nobody is admitted any more.
    OwnerGone,
}

/// Something that happened to a member or a candidate, as monitors are told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberChange {
    /// The group.
    pub group: GroupId,
    /// Its name.
    pub name: GroupName,
    /// Where in the order it happened.
    pub sequence: Sequence,
    /// To whom.
    pub endpoint: EndpointId,
    /// Whose endpoint that is.
    pub credentials: Credentials,
    /// What.
    pub event: MemberEvent,
    /// The member's flags after it, or those that a candidate would like to have.
    pub flags: MemberFlags,
}

impl MemberChange {
    pub(crate) fn new(group: &Group, who: &EndpointCore, event: MemberEvent) -> Self {
        Self {
            group: group.id,
            name: group.name.clone(),
            sequence: Sequence::from_raw(0),
            endpoint: who.id(),
            credentials: who.credentials,
            event,
            flags: MemberFlags::empty(),
        }
    }

    pub(crate) fn with_flags(self, flags: MemberFlags) -> Self {
        Self { flags, ..self }
    }

    /// Stands at its place; nobody else has it yet.
    pub(crate) fn stand(this: &mut Arc<Self>, sequence: Sequence) {
        Arc::get_mut(this).expect("nobody has a change before it happens").sequence = sequence;
    }
}

/// A change that monitors will be told of, made before the locks.
#[derive(Debug)]
pub(crate) struct ToBeSeen {
    monitors: Arc<MonitorList>,
    change: Arc<MemberChange>,
}

impl ToBeSeen {
    /// Locks that are to be held besides.
    pub(crate) fn locks(this: Option<&Self>) -> LockBits {
        this.map_or(LockBits::NONE, |seen| seen.monitors.locks())
    }

    /// Tells the monitors; their locks are held. To be dropped when they are released.
    pub(crate) fn tell(
        this: &mut Option<Self>,
        held: &mut Held<'_>,
        sequence: Sequence,
        effects: &mut Effects,
    ) {
        if let Some(Self { monitors, change }) = this {
            MemberChange::stand(change, sequence);
            monitors.tell(held, &Monitored::Member(Arc::clone(change)), effects);
        }
    }
}

impl BusInner {
    /// Makes a change for the monitors, if there are any. The directory is held.
    pub(crate) fn to_be_seen(
        &self,
        effects: &mut Effects,
        make: impl FnOnce() -> MemberChange,
    ) -> Option<ToBeSeen> {
        let monitors = self.monitors.list()?;
        effects.reserve(monitors.len());
        Some(ToBeSeen { monitors, change: Arc::new(make()) })
    }

    /// Tells the monitors of something that changes nothing else in the order. The directory is
    /// held.
    pub(crate) fn let_see(
        &self,
        by: &EndpointCore,
        effects: &mut Effects,
        make: impl FnOnce() -> MemberChange,
    ) {
        let mut seen = self.to_be_seen(effects, make);
        if seen.is_none() {
            return;
        }
        let mut held = self.locks.acquire(ToBeSeen::locks(seen.as_ref()));
        let sequence = held.draw(by.seen());
        ToBeSeen::tell(&mut seen, &mut held, sequence, effects);
    }
}
