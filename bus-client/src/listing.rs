//! Listings as they come: the broker sends them in parts while the connection takes them, and
//! nobody asks for the next one.
//!
//! Invariant: a [`Listing`] that is dropped before its end tells the broker so, and what was under
//! way then is passed over. What has come and was not yet looked at lies in memory: a connection
//! carries more than listings, so it is read whoever is slow. That is as much as the listing
//! has, which the broker's limits bound.

use std::collections::VecDeque;
use std::iter::FusedIterator;

use bus_core::wire::{Request, Response, Serial};
use bus_core::{GroupName, Sequence};

use crate::bus::Endpoint;
use crate::error::QueryError;
use crate::info::{GroupInfo, MemberInfo};
use crate::names::NameInfo;
use crate::state::{Interest, Purpose};

/// Entries of a long list, as they come. Each step blocks until the next entry is here.
///
/// ```no_run
/// # let bus = bus_client::Bus::connect()?;
/// let members = bus.list_members("org.example.Chat")?;
/// println!("at {}:", members.sequence());
/// for member in members.take(10) {
///     println!("{}", member?.endpoint);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Listing<T> {
    endpoint: Endpoint,
    /// None once the last part is here.
    under_way: Option<Serial>,
    sequence: Sequence,
    ready: VecDeque<T>,
    pick: fn(Response) -> Option<(Sequence, Vec<T>)>,
    about: Option<GroupName>,
}

impl<T> Listing<T> {
    pub(crate) fn begin(
        endpoint: &Endpoint,
        request: Request,
        about: Option<GroupName>,
        pick: fn(Response) -> Option<(Sequence, Vec<T>)>,
    ) -> Result<Self, QueryError> {
        let mut state = endpoint.inner.connection.lock();
        let called = state.call(endpoint.inner.key, Purpose::List, request);
        let serial = called.map_err(|error| QueryError::from_call(error, about.as_ref()))?;
        drop(state);
        let mut listing = Self {
            endpoint: endpoint.clone(),
            under_way: Some(serial),
            sequence: Sequence::from_raw(0),
            ready: VecDeque::new(),
            pick,
            about,
        };
        listing.take_part(serial)?;
        Ok(listing)
    }

    /// The place in the order for which the whole listing holds. A list of members is the view
    /// there. A list of groups or names has nothing that came later, and lacks what has gone
    /// since. A list of accounts has no place, and this is 0.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    fn take_part(&mut self, serial: Serial) -> Result<(), QueryError> {
        let connection = &self.endpoint.inner.connection;
        let part = connection
            .wait(Interest::Answer(serial), None, None, |state| state.take_part(serial))
            .expect("without a deadline, waiting ends with an answer");
        if !matches!(part, Ok((_, false))) {
            self.under_way = None;
        }
        let entries = part.and_then(|(response, _)| connection.pick(response, self.pick));
        let (sequence, entries) =
            entries.map_err(|error| QueryError::from_call(error, self.about.as_ref()))?;
        self.sequence = sequence;
        self.ready.extend(entries);
        Ok(())
    }
}

impl<T> Iterator for Listing<T> {
    type Item = Result<T, QueryError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Some(Ok(entry));
            }
            if let Err(error) = self.take_part(self.under_way?) {
                return Some(Err(error));
            }
        }
    }
}

impl<T> FusedIterator for Listing<T> {}

impl<T> Drop for Listing<T> {
    fn drop(&mut self) {
        if let Some(serial) = self.under_way {
            self.endpoint.inner.connection.lock().abandon_listing(serial);
        }
    }
}

impl Endpoint {
    /// All groups, by name, as they come. Blocks until the first of them are here.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn list_groups(&self) -> Result<Listing<GroupInfo>, QueryError> {
        Listing::begin(self, Request::Groups, None, |response| match response {
            Response::Groups { sequence, groups } => {
                Some((sequence, groups.into_iter().map(GroupInfo::from).collect()))
            }
            _ => None,
        })
    }

    /// All names that somebody owns, in their order, as they come. Blocks until the first of them
    /// are here.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn list_names(&self) -> Result<Listing<NameInfo>, QueryError> {
        Listing::begin(self, Request::Names, None, |response| match response {
            Response::Names { sequence, names } => {
                Some((sequence, names.into_iter().map(NameInfo::from).collect()))
            }
            _ => None,
        })
    }

    /// The members of a group, by rising endpoint id, as they come: the view at the listing's
    /// sequence, however long it takes. Blocks until the first of them are here.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn list_members(&self, group: &str) -> Result<Listing<MemberInfo>, QueryError> {
        let name: GroupName = group.parse()?;
        let group_id = self.look_up(&name)?.group_id;
        Listing::begin(self, Request::Members { group_id }, Some(name), |response| match response {
            Response::Members { sequence, members } => {
                Some((sequence, members.into_iter().map(MemberInfo::from).collect()))
            }
            _ => None,
        })
    }
}
