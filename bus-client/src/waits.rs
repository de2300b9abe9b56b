//! Who sleeps, who of them polls the socket, and how each is woken.
//!
//! The library has no thread of its own. Of the threads that wait on a connection one leads: it
//! sleeps on the socket, and takes in what comes for all. The others follow: each sleeps on a
//! condition variable of its own until what it waits for has come, or until it is told to lead.
//!
//! Invariant: while somebody sleeps, there is a leader or one who is on the way to become it.
//! Whoever stops waiting while nobody leads wakes a follower ([`hand_on`](Waits::hand_on)), and
//! that one looks for itself, under the lock, whether it has to lead. So the duty may be handed to
//! several, and is never lost. The leader sleeps on the socket and not on its condition variable,
//! so it is woken by the transport's bell; everything here happens under the connection's lock, so
//! none can be woken between looking and sleeping.
//!
//! Tasks are woken by their wakers, which are gathered here and called when the lock is released.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use parking_lot::Condvar;
use slab::Slab;

use crate::transport::Transport;

/// A thread that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaiterId(usize);

/// How to wake somebody.
#[derive(Clone, Debug)]
pub(crate) enum Wake {
    Thread(WaiterId),
    Task(Waker),
}

/// All who wait on one connection.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    waiters: Slab<Arc<Condvar>>,
    idle: Vec<Arc<Condvar>>,
    followers: VecDeque<WaiterId>,
    leader: Option<WaiterId>,
    /// Who led last and has not slept since.
    awake: Option<WaiterId>,
    /// The bell was rung since the leader went to sleep.
    rung: bool,
    /// The leader sleeps in a read, and does not hear the bell.
    is_deaf: bool,
    /// Somebody has needed such a leader.
    is_disturbed: bool,
    wakers: Vec<Waker>,
}

impl Waits {
    /// Makes the calling thread one that can be woken.
    pub(crate) fn enter(&mut self) -> WaiterId {
        let condvar = self.idle.pop().unwrap_or_default();
        WaiterId(self.waiters.insert(condvar))
    }

    /// Ends [`enter`](Self::enter).
    pub(crate) fn exit(&mut self, id: WaiterId) {
        let condvar = self.waiters.remove(id.0);
        self.awake = self.awake.filter(|awake| *awake != id);
        if self.idle.len() < IDLE_KEPT {
            self.idle.push(condvar);
        }
    }

    /// Whether somebody leads.
    pub(crate) fn is_led(&self) -> bool {
        self.leader.is_some()
    }

    /// Makes the thread the leader if there is none; `false` if it has to follow.
    #[must_use = "who follows sleeps on its condition variable"]
    pub(crate) fn lead(&mut self, id: WaiterId) -> bool {
        if self.leader.is_some() {
            return false;
        }
        self.leader = Some(id);
        self.awake = None;
        true
    }

    /// Makes a thread the leader that nobody can wake, if there is none: it looks again soon.
    #[must_use = "there is another leader"]
    pub(crate) fn lead_alone(&mut self) -> bool {
        self.lead(ALONE)
    }

    /// The leader is awake again and leads no more.
    pub(crate) fn woke(&mut self, transport: &Transport) {
        self.awake = self.leader.take();
        self.is_deaf = false;
        if std::mem::take(&mut self.rung) {
            transport.quiet();
        }
    }

    /// The leader goes to sleep in a [long read](crate::long_read).
    pub(crate) fn falls_deaf(&mut self) {
        self.is_deaf = true;
    }

    /// A leader that sleeps in a read was needed for something else.
    pub(crate) fn note_disturbance(&mut self) {
        self.is_disturbed = true;
    }

    /// Whether a leader that sleeps in a read was never needed for anything else.
    pub(crate) fn is_left_alone(&self) -> bool {
        !self.is_disturbed
    }

    /// Whether it led last and has not slept since: then it looks for itself before it sleeps.
    pub(crate) fn is_awake(&self, id: WaiterId) -> bool {
        self.awake == Some(id)
    }

    /// Adds a follower, and gives what it is to sleep on.
    pub(crate) fn follow(&mut self, id: WaiterId) -> Arc<Condvar> {
        self.awake = self.awake.filter(|awake| *awake != id);
        self.followers.push_back(id);
        Arc::clone(&self.waiters[id.0])
    }

    /// The follower is awake again.
    pub(crate) fn unfollow(&mut self, id: WaiterId) {
        self.followers.retain(|follower| *follower != id);
    }

    /// If nobody leads, tells a follower to; `false` if there is none to tell.
    pub(crate) fn hand_on(&mut self) -> bool {
        if self.leader.is_some() {
            return true;
        }
        let Some(follower) = self.followers.pop_front() else {
            return false;
        };
        self.waiters[follower.0].notify_one();
        true
    }

    /// Wakes one.
    pub(crate) fn wake(&mut self, wake: Wake, transport: &Transport) {
        match wake {
            Wake::Task(waker) => self.wakers.push(waker),
            Wake::Thread(id) if self.leader == Some(id) => self.wake_leader(transport),
            Wake::Thread(id) => {
                if let Some(condvar) = self.waiters.get(id.0) {
                    condvar.notify_one();
                }
            }
        }
    }

    /// Wakes the leader from its sleep, if there is one.
    pub(crate) fn wake_leader(&mut self, transport: &Transport) {
        self.is_disturbed |= self.is_deaf;
        if self.leader.is_some() && !std::mem::replace(&mut self.rung, true) {
            transport.ring();
        }
    }

    #[cfg(test)]
    pub(crate) fn is_followed(&self) -> bool {
        !self.followers.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn is_rung(&self) -> bool {
        self.rung
    }

    /// Wakes every thread.
    pub(crate) fn wake_threads(&mut self, transport: &Transport) {
        self.wake_leader(transport);
        for (_, condvar) in &self.waiters {
            condvar.notify_one();
        }
    }

    /// The wakers to call once the lock is released.
    pub(crate) fn take_wakers(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakers)
    }
}

/// A leader that is none of the waiters.
const ALONE: WaiterId = WaiterId(usize::MAX);
/// Condition variables that are kept for the next who waits.
const IDLE_KEPT: usize = 16;
