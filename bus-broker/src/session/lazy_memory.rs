//! A connection's [`Memory`], made when the first payload lies beside its stream.
//!
//! Most clients can read such payloads, and most never see one. Invariant: until the memory is made the
//! client has been given none and has lent none, so there is nothing that could be completed, released
//! or moved, and who asks only for what [is made](LazyMemory::made) misses nothing.

use std::sync::Arc;

use bus_core::Account;
use bus_core::wire::{FEATURE_APART, FEATURE_LEND, FEATURE_TRUST_OWN_USER, Hello};

use super::memory::Memory;
use crate::broker::Shared;
use crate::connection::Context;
use crate::inbox::{Inbox, Token};

/// What lies beside the stream, if the client knows of such a thing.
#[derive(Debug, Default)]
pub(super) enum LazyMemory {
    /// It does not.
    #[default]
    None,
    /// Nothing does yet.
    Promised(Promise),
    Made(Box<Memory>),
}

/// What it takes to make it.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) account: Account,
    pub(super) token: Token,
    pub(super) uid: u32,
    pub(super) skills: Skills,
}

/// What the client can do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Skills {
    /// It reads payloads that lie apart.
    pub(super) reads: bool,
    /// It may lend.
    pub(super) lends: bool,
    /// It reads in place what its own user's other programs can still write.
    pub(super) trusts: bool,
}

impl LazyMemory {
    /// As the client has asked in its greeting.
    pub(super) fn new(hello: &Hello, uid: u32, token: Token, context: &Context<'_>) -> Self {
        let skills = Skills::of(hello);
        if !(skills.reads || skills.lends) {
            return Self::None;
        }
        Self::Promised(Promise {
            shared: Arc::clone(context.shared),
            inbox: Arc::clone(context.inbox),
            account: context.account.clone(),
            token,
            uid,
            skills,
        })
    }

    /// What there is by now.
    pub(super) fn made(&mut self) -> Option<&mut Memory> {
        match self {
            Self::Made(memory) => Some(memory),
            Self::None | Self::Promised(_) => None,
        }
    }

    /// What there is from now on; none if the client knows of no such thing.
    pub(super) fn get(&mut self) -> Option<&mut Memory> {
        if let Self::Promised(promise) = self {
            *self = Self::Made(Box::new(Memory::new(promise.clone())));
        }
        self.made()
    }
}

impl Skills {
    fn of(hello: &Hello) -> Self {
        let has = |feature: &str| hello.features.iter().any(|of| of == feature);
        let reads = has(FEATURE_APART);
        Self { reads, lends: has(FEATURE_LEND), trusts: reads && has(FEATURE_TRUST_OWN_USER) }
    }

    /// The features that are switched on.
    pub(super) fn features(hello: &Hello) -> Vec<String> {
        let Self { reads, lends, trusts } = Self::of(hello);
        [(reads, FEATURE_APART), (lends, FEATURE_LEND), (trusts, FEATURE_TRUST_OWN_USER)]
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, name)| name.to_owned())
            .collect()
    }
}
