//! Watches on memberships: what the application gets of them as events, and what the library keeps
//! for those who only want to know whether anybody is there.
//!
//! Invariant: an endpoint has one watch a group at the broker, and its interest is the wider one of
//! what is asked for here. A notice that nobody here wants as an event gives its place back at
//! once: a publisher that never receives must not fill its queue with edges.

use bus_core::wire::{Failure, Handle, Request, Serial, ViewNotice};
use bus_core::{Gap, GroupId, GroupName, Interest, Sequence};

use super::call::{CallError, Purpose};
use super::{State, Urgency};
use crate::clock::Tick;
use crate::inbox::Item;
use crate::reconnect::Possession;
use crate::waits::Wake;

/// The watches of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Views {
    watched: Vec<Watched>,
    /// Who waits for the state of some group to change.
    pub(super) waiters: Vec<Wake>,
}

/// A group that is watched, or about to be.
#[derive(Debug)]
struct Watched {
    name: GroupName,
    /// None until the broker has answered, and after the group's end.
    group: Option<GroupId>,
    /// What the application gets as events, if anything.
    told: Option<Interest>,
    /// Handles that want to know whether anybody is there.
    handles: usize,
    members: u32,
    /// Where in the order that was so.
    at: Sequence,
    /// Why nothing is known.
    failure: Option<CallError>,
}

/// What is to be done about a notice.
#[derive(Clone, Copy, Debug, Default)]
struct Noted {
    /// The application wants it.
    is_event: bool,
    /// The broker is to be asked again for the present state.
    ask_again: bool,
}

impl Views {
    fn named(&mut self, name: &GroupName) -> Option<&mut Watched> {
        self.watched.iter_mut().find(|watched| watched.name == *name)
    }

    /// The name of a group that is watched.
    pub(super) fn name_of(&self, group: GroupId) -> Option<GroupName> {
        let watched = self.watched.iter().find(|watched| watched.group == Some(group));
        watched.map(|watched| watched.name.clone())
    }

    /// The broker is lost; only what is `kept` is watched again.
    pub(super) fn depart(&mut self, kept: impl Fn(&GroupName) -> bool) {
        for watched in &mut self.watched {
            (watched.group, watched.members, watched.failure) = (None, 0, None);
            watched.at = Sequence::from_raw(0);
            if !kept(&watched.name) {
                watched.told = None;
            }
        }
        self.forget_unwanted();
    }

    fn forget_unwanted(&mut self) {
        self.watched.retain(|watched| watched.told.is_some() || watched.handles > 0);
    }

    fn note(&mut self, notice: &ViewNotice) -> Noted {
        let Some(watched) = self.named(&notice.group) else {
            return Noted::default();
        };
        let is_event = watched.told.is_some();
        // A group that ended and one that has its name now are told apart by their ids.
        if watched.group.is_some_and(|group| group != notice.group_id) {
            return Noted { is_event, ask_again: false };
        }
        watched.learn(notice.members, notice.sequence);
        if !notice.ended {
            return Noted { is_event, ask_again: false };
        }
        watched.group = None;
        watched.told = None;
        let ask_again = watched.handles > 0;
        self.forget_unwanted();
        Noted { is_event, ask_again }
    }
}

impl Watched {
    fn learn(&mut self, members: u32, at: Sequence) {
        if at >= self.at {
            self.members = members;
            self.at = at;
        }
    }
}

impl State {
    /// Begins a watch whose changes become events, or without an interest one for a handle that
    /// wants to know whether anybody is there.
    pub(crate) fn watch_group(
        &mut self,
        key: usize,
        name: &GroupName,
        told: Option<Interest>,
        create: bool,
    ) -> Result<Serial, CallError> {
        let views = &mut self.endpoints[key].views;
        if views.named(name).is_none() {
            views.watched.push(Watched {
                name: name.clone(),
                group: None,
                told: None,
                handles: 0,
                members: 0,
                at: Sequence::from_raw(0),
                failure: None,
            });
        }
        let watched = views.named(name).expect("it was added a line above");
        match told {
            Some(_) => watched.told = told,
            None => watched.handles += 1,
        }
        self.ask_for_view(key, name, create)
    }

    fn ask_for_view(
        &mut self,
        key: usize,
        name: &GroupName,
        create: bool,
    ) -> Result<Serial, CallError> {
        let watched = self.endpoints[key].views.named(name);
        let interest = match watched.and_then(|watched| watched.told) {
            Some(Interest::Members) => Interest::Members,
            Some(Interest::Anybody) | None => Interest::Anybody,
        };
        let request = Request::WatchGroup { group: name.clone(), interest, create };
        self.call(key, Purpose::WatchGroup(name.clone()), request)
    }

    /// Asks without waiting for the answer: it is noted when it comes.
    fn ask_again(&mut self, key: usize, name: &GroupName) {
        match self.ask_for_view(key, name, true) {
            Ok(serial) => self.abandon(serial),
            Err(error) => self.watch_failed(key, name, error),
        }
    }

    /// The broker has begun a watch.
    pub(super) fn watching(
        &mut self,
        key: usize,
        name: &GroupName,
        group: GroupId,
        sequence: Sequence,
        members: u32,
    ) {
        if let Some(watched) = self.endpoints[key].views.named(name) {
            watched.group = Some(group);
            watched.failure = None;
            watched.learn(members, sequence);
        }
        self.wake_view_waiters(key);
    }

    /// The broker has refused to begin a watch.
    pub(super) fn watch_group_failed(&mut self, key: usize, name: &GroupName, failure: &Failure) {
        self.watch_failed(key, name, CallError::Failed(Box::new(failure.clone())));
    }

    fn watch_failed(&mut self, key: usize, name: &GroupName, error: CallError) {
        let views = &mut self.endpoints[key].views;
        if let Some(watched) = views.named(name)
            && watched.group.is_none()
        {
            watched.told = None;
            watched.failure = Some(error);
        }
        views.forget_unwanted();
        self.wake_view_waiters(key);
    }

    /// Events of a watch are wanted no more. The call to wait for, if the broker has to know.
    pub(crate) fn end_watch(
        &mut self,
        key: usize,
        name: &GroupName,
    ) -> Option<Result<Serial, CallError>> {
        let watched = self.endpoints[key].views.named(name)?;
        watched.told.take()?;
        self.narrow_watch(key, name)
    }

    /// A handle that wanted to know whether anybody is there has gone.
    pub(crate) fn end_interest(&mut self, key: usize, name: &GroupName) {
        let Some(watched) = self.endpoints.get_mut(key).and_then(|e| e.views.named(name)) else {
            return;
        };
        watched.handles -= 1;
        if watched.handles == 0
            && watched.told.is_none()
            && let Some(Ok(serial)) = self.narrow_watch(key, name)
        {
            self.abandon(serial);
            self.flush(Urgency::Soon);
        }
    }

    fn narrow_watch(&mut self, key: usize, name: &GroupName) -> Option<Result<Serial, CallError>> {
        let views = &mut self.endpoints[key].views;
        let watched = views.named(name)?;
        if watched.handles > 0 {
            return Some(self.ask_for_view(key, name, false));
        }
        let group_id = watched.group;
        views.forget_unwanted();
        self.endpoints[key].kept.forget(&Possession::Watch(name.clone()));
        Some(self.call(key, Purpose::Plain, Request::UnwatchGroup { group_id: group_id? }))
    }

    /// Whether anybody is in a group, as far as has arrived.
    pub(crate) fn is_anybody(&self, key: usize, name: &GroupName) -> Result<bool, CallError> {
        if let Some(gone) = self.gone() {
            return Err(CallError::Gone(gone.clone()));
        }
        // Without a broker there is nobody.
        let watched = &self.endpoints[key].views.watched;
        let watched = watched.iter().find(|watched| watched.name == *name);
        match watched.and_then(|watched| watched.failure.as_ref()) {
            Some(failure) => Err(failure.clone()),
            None => Ok(watched.is_some_and(|watched| watched.members > 0)),
        }
    }

    /// A watched membership has changed.
    pub(super) fn view_changed(
        &mut self,
        handle: Handle,
        notice: Box<ViewNotice>,
    ) -> Result<(), String> {
        let key = handle.get() as usize;
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return Err(format!("a view for handle {handle}, which is not open"));
        };
        if endpoint.closing {
            return Ok(());
        }
        let (name, ended) = (notice.group.clone(), notice.ended);
        let Noted { is_event, ask_again } = endpoint.views.note(&notice);
        if is_event {
            self.deliver(handle, Item::View(notice))?;
        } else {
            self.pass_over(handle)?;
        }
        if ask_again {
            self.ask_again(key, &name);
        } else if ended {
            self.endpoints[key].kept.forget(&Possession::Watch(name));
        }
        self.wake_view_waiters(key);
        Ok(())
    }

    /// Changes of a watched membership were missed, and nothing came after them.
    pub(super) fn views_lost(
        &mut self,
        handle: Handle,
        group_id: GroupId,
        gap: Gap,
    ) -> Result<(), String> {
        let key = handle.get() as usize;
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return Err(format!("a notice for handle {handle}, which is not open"));
        };
        let found = endpoint.views.watched.iter().find(|watched| watched.group == Some(group_id));
        let Some(watched) = found else {
            return Ok(());
        };
        let (name, told, asks) =
            (watched.name.clone(), watched.told.is_some(), watched.handles > 0);
        if asks && !endpoint.closing {
            self.ask_again(key, &name);
        }
        if told { self.deliver(handle, Item::ViewsLost { group_id, gap }) } else { Ok(()) }
    }

    /// Gives the place of a notice back that is not handed out.
    pub(super) fn pass_over(&mut self, handle: Handle) -> Result<(), String> {
        let key = handle.get() as usize;
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return Err(format!("a notice for handle {handle}, which is not open"));
        };
        if endpoint.closing {
            return Ok(());
        }
        endpoint.inbox.pass_over()?;
        if let Some(credit) = endpoint.inbox.return_all(Tick::now()) {
            self.put_credit(key, credit);
        }
        Ok(())
    }

    pub(super) fn wake_view_waiters(&mut self, key: usize) {
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return;
        };
        for wake in std::mem::take(&mut endpoint.views.waiters) {
            self.waits.wake(wake, &self.transport);
        }
    }
}
