//! Numbers that must not be swapped, each with a type of its own.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The number as it stands on the wire and in logs.
            #[inline]
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Takes a number from the wire. It may name nothing; look-ups say so.
            #[inline]
            #[must_use]
            pub const fn from_raw(raw: u64) -> Self {
                Self(raw)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// One endpoint for ever: never reused, so a stale id finds nobody rather than a stranger.
    EndpointId
}

number! {
    /// One group for ever: a group that ended and was created again has another id.
    GroupId
}

number! {
    /// One well-known name for ever: a name that nobody claimed and that came back has another id.
    NameId
}

number! {
    /// A place in the order of one bus (G2).
    ///
    /// Unique on the bus, and rising in every queue. Not dense; between endpoints that share no
    /// queue it says nothing about time.
    Sequence
}

/// Version of a group's membership, or of a name's owners: one greater after every change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Generation(pub(crate) u64);
