//! Listings: CALLs whose answer comes in parts, as the output has room for them.
//!
//! Invariant: nothing of a listing waits in the broker but the place that it has got to. A part is
//! made when the output has room, as a message is taken from a queue; nobody asks for it, and a
//! client that does not read is not made any. So a listing that is given up, by its client or by
//! the end of the connection, has cost what was read of it. How many are under way on one
//! connection is bounded (`listings`); they take turns with each other and with the messages.

use std::collections::VecDeque;

use bus_core::wire::{
    BrokerFrame, Failure, FailureCode, GroupInfo, Handle, MAX_PART, MemberInfo, NameInfo, Owner,
    Request, Response, Serial,
};
use bus_core::{Bus, Groups, Ledger, Members, Names};

use super::permission::{SEES_GROUP, SEES_NAME};
use super::{accounts::Accounts, calls::no_such_group, say};
use crate::output::Output;
use crate::policy::Gate;

/// The listings of one connection that are under way.
#[derive(Debug, Default)]
pub(super) struct Listings(VecDeque<Listing>);

#[derive(Debug)]
struct Listing {
    endpoint: Handle,
    serial: Serial,
    entries: Entries,
}

/// What is left to be told.
#[derive(Debug)]
enum Entries {
    Groups(Groups),
    Names(Names),
    Members(Members),
    Accounts(Accounts),
}

impl Listings {
    /// Begins a listing, if `request` asks for one. What it lists is decided here; what is told of
    /// each entry, when its turn comes.
    pub(super) fn begin(
        &mut self,
        endpoint: Handle,
        serial: Serial,
        request: &Request,
        (bus, ledger): (&Bus, &Ledger),
        user: Option<u32>,
    ) -> Option<Result<(), Box<Failure>>> {
        let entries = match request {
            Request::Groups => Entries::Groups(bus.groups()),
            Request::Names => Entries::Names(bus.names()),
            Request::Accounts => Entries::Accounts(Accounts::seen_by(user, ledger)),
            Request::Members { group_id } => match bus.members(*group_id) {
                Some(members) => Entries::Members(members),
                None => return Some(Err(Box::new(no_such_group(*group_id)))),
            },
            _ => return None,
        };
        let most = bus.limits().listings;
        if self.0.len() >= usize::from(most) {
            let text = format!("{most} listings of this connection are under way already");
            let failure = Failure::new(FailureCode::LimitExceeded, text);
            return Some(Err(Box::new(failure.with_limit("listings", most.into()))));
        }
        self.0.push_back(Listing { endpoint, serial, entries });
        Some(Ok(()))
    }

    /// Whether a part could be made now.
    pub(super) fn is_under_way(&self) -> bool {
        !self.0.is_empty()
    }

    /// Appends a part of the listing whose turn it is; there is room for it.
    /// What the connection may not see is left out.
    pub(super) fn fill(&mut self, output: &mut Output, gate: &Gate) {
        let Some(mut listing) = self.0.pop_front() else {
            return;
        };
        let (endpoint, serial) = (listing.endpoint, listing.serial);
        let (response, is_last) = listing.entries.part(gate);
        if is_last {
            say(BrokerFrame::Done { endpoint, serial, response }, output);
        } else {
            say(BrokerFrame::Part { endpoint, serial, response }, output);
            self.0.push_back(listing);
        }
    }

    /// The client gives a listing up.
    pub(super) fn cancel(&mut self, endpoint: Handle, serial: Serial, output: &mut Output) {
        let is_it = |listing: &Listing| listing.endpoint == endpoint && listing.serial == serial;
        self.end(is_it, "the listing was given up", output);
    }

    /// An endpoint is closed: those that asked in its name have their answer before that.
    pub(super) fn cancel_all(&mut self, endpoint: Handle, output: &mut Output) {
        self.end(|listing| listing.endpoint == endpoint, "the endpoint is closed", output);
    }

    /// The connection ends.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn end(&mut self, which: impl Fn(&Listing) -> bool, text: &str, output: &mut Output) {
        self.0.retain(|listing| {
            let ends = which(listing);
            if ends {
                let failure = Box::new(Failure::new(FailureCode::Cancelled, text));
                let (endpoint, serial) = (listing.endpoint, listing.serial);
                say(BrokerFrame::Error { endpoint, serial, failure }, output);
            }
            !ends
        });
    }
}

impl Entries {
    /// The next entries, and whether they are the last. Nobody looks ahead: of what has no known
    /// length, the part that is not full is the last, and may be empty.
    ///
    /// A part has at most so many entries as were looked at, so what may not be seen costs no more
    /// than what may.
    fn part(&mut self, gate: &Gate) -> (Response, bool) {
        let is_last = |count: usize| count < MAX_PART;
        match self {
            Self::Groups(rest) => {
                let mut groups: Vec<_> = rest.by_ref().take(MAX_PART).map(group_info).collect();
                let is_last = is_last(groups.len());
                groups.retain(|info| gate.sees(&SEES_GROUP, &info.name));
                (Response::Groups { sequence: rest.sequence(), groups }, is_last)
            }
            Self::Names(rest) => {
                let mut names: Vec<_> = rest.by_ref().take(MAX_PART).map(name_info).collect();
                let is_last = is_last(names.len());
                names.retain(|info| gate.sees(&SEES_NAME, &info.name));
                (Response::Names { sequence: rest.sequence(), names }, is_last)
            }
            Self::Accounts(rest) => rest.part(),
            Self::Members(rest) => {
                let members = rest.by_ref().take(MAX_PART).map(member_info).collect();
                let is_last = rest.len() == 0;
                (Response::Members { sequence: rest.sequence(), members }, is_last)
            }
        }
    }
}

pub(super) fn group_info(info: bus_core::GroupInfo) -> GroupInfo {
    GroupInfo {
        name: info.name,
        group_id: info.id,
        members: info.members,
        creator: info.creator,
        retain: info.retain,
        gated: info.gated,
    }
}

pub(super) fn name_info(info: bus_core::NameInfo) -> NameInfo {
    NameInfo {
        name: info.name,
        name_id: info.id,
        owners: info.owners.into_iter().map(Owner::from).collect(),
        owner_count: info.owner_count,
        waiting: info.waiting,
        shared: info.shared,
        described: info.described,
    }
}

fn member_info(info: bus_core::MemberInfo) -> MemberInfo {
    MemberInfo {
        endpoint: info.endpoint,
        uid: info.credentials.uid,
        pid: info.credentials.pid,
        flags: info.flags,
        queued_messages: info.queued_messages,
        queued_bytes: info.queued_bytes,
        capacity: info.capacity,
        dropped: info.dropped,
        full_since_sequence: info.full_since,
        blocks: info.blocks.into(),
    }
}
