//! Who is entitled to the same messages: what may lie in one memory for all of them.
//!
//! Invariant: two messages have the same audience only if exactly the same endpoints were entitled to
//! both. A membership keeps the generation since which that has been so; whoever comes, goes, or chooses
//! by a filter makes it another one, and who only watches does not.
//!
//! A change happens with the directory held, and so does leaving a waker for it. So a waker that was taken
//! is called by the next change, and none falls between a look and a change.

use std::task::Waker;

use crate::bus::Bus;
use crate::id::{Generation, GroupId};

/// All members of a group, for as long as they are the same: who has the same audience is entitled to
/// the same messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Audience {
    group: GroupId,
    since: Generation,
}

impl Audience {
    pub(crate) fn new(group: GroupId, since: Generation) -> Self {
        Self { group, since }
    }

    /// The group.
    #[must_use]
    pub fn group(self) -> GroupId {
        self.group
    }

    /// Whether it has seen more changes of the group's membership than another one.
    #[must_use]
    pub fn is_later_than(self, other: Self) -> bool {
        self.group == other.group && self.since > other.since
    }
}

impl Bus {
    /// Has a waker called, once, when others than this audience are entitled to its group's messages.
    /// False if that is so already, or the group has ended; then it is not called. Does not block.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::task::Waker;
    /// # use std::sync::atomic::{AtomicBool, Ordering};
    /// # #[derive(Default)]
    /// # struct Flag(AtomicBool);
    /// # impl std::task::Wake for Flag {
    /// #     fn wake(self: Arc<Self>) { self.0.store(true, Ordering::Relaxed); }
    /// # }
    /// use bus_core::{Bus, Credentials, Delivery, Destination, JoinOptions, Limits};
    ///
    /// let bus = Bus::new(Limits::default(), 7)?;
    /// let me = Credentials { uid: 1000, pid: 1 };
    /// let (alice, bob, carol) = (bus.open_endpoint(me)?, bus.open_endpoint(me)?, bus.open_endpoint(me)?);
    /// let chat = bob.join(&"org.example.Chat".parse()?, JoinOptions::create())?.group;
    /// alice.lane()?.send(Destination::Group(chat), "hello")?;
    /// let Delivery::Message { message, .. } = bob.receiver().expect("one reader").receive()? else {
    ///     unreachable!("nothing else was sent");
    /// };
    /// let audience = message.audience().expect("nobody filters");
    ///
    /// let woken = Arc::new(Flag::default());
    /// assert!(bus.wake_when_changed(audience, Waker::from(Arc::clone(&woken))));
    /// carol.join(&"org.example.Chat".parse()?, JoinOptions::default())?;
    /// assert!(woken.0.load(Ordering::Relaxed));
    /// assert!(!bus.wake_when_changed(audience, Waker::noop().clone()), "it is another one now");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "a waker that was not taken is never called"]
    pub fn wake_when_changed(&self, audience: Audience, waker: Waker) -> bool {
        let directory = self.inner.directory.lock();
        let Some(record) = directory.group(audience.group) else { return false };
        let now = record.group.membership();
        let is_current = now.audience == audience.since && !now.ended;
        if is_current {
            record.group.wake_on_change(waker);
        }
        is_current
    }
}
