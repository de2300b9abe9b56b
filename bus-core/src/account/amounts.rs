//! What is counted for each user and connection, and amounts of it.

use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::Limits;

macro_rules! resources {
    ($($(#[$doc:meta])* $name:ident, $text:literal, $field:ident;)*) => {
        /// What a user has a limited amount of.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Resource {
            $($(#[$doc])* $name,)*
        }

        impl Resource {
            /// All of them.
            pub const ALL: [Self; RESOURCES] = [$(Self::$name,)*];

            /// Its name in listings and under `[users.NAME.limits]`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The name of its limit: the field of [`Limits`].
            #[must_use]
            pub const fn limit(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($field),)*
                }
            }
        }

        impl Limits {
            /// The limits of a user for whom nothing else is said.
            #[must_use]
            pub fn of_user(&self) -> Amounts {
                Amounts([$(self.$field,)*])
            }

            /// The same with the limits of one user.
            #[must_use]
            pub fn for_user(mut self, user: Amounts) -> Self {
                $(self.$field = user.get(Resource::$name);)*
                self
            }
        }
    };
}

/// How many resources there are.
pub const RESOURCES: usize = 12;

resources! {
    /// Connections that are open.
    Connections, "connections", user_connections;
    /// Endpoints, each with a queue of `queue_messages` and `queue_bytes`.
    Endpoints, "endpoints", user_endpoints;
    /// Sends that the broker has accepted and that have no place in the order yet.
    Messages, "messages", user_messages;
    /// Bytes of these.
    Bytes, "bytes", user_bytes;
    /// Descriptors that were sent and that not all recipients have taken.
    Descriptors, "descriptors", user_descriptors;
    /// Memberships of groups.
    Memberships, "memberships", user_memberships;
    /// Groups that were created and that live, whether or not their creator does.
    Groups, "groups", user_groups;
    /// Bytes that these may retain.
    RetainedBytes, "retained_bytes", user_retained_bytes;
    /// Claims of well-known names.
    Names, "names", user_names;
    /// Bytes of filters.
    FilterBytes, "filter_bytes", user_filter_bytes;
    /// Requests that have no outcome yet.
    Requests, "requests", user_requests;
    /// Bytes of memory that is shared with the user's processes: rings and pools; and of the payloads
    /// that these have lent.
    PinnedBytes, "pinned_bytes", user_pinned_bytes;
}

impl Resource {
    pub(super) const fn at(self) -> usize {
        self as usize
    }

    /// The resource of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.name() == name)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An amount of each resource. In text formats and on the wire a map by [`Resource::name`], in which
/// what is missing is 0 and what is unknown is passed over.
///
/// ```
/// use bus_core::{Amounts, Resource};
///
/// let mut held = Amounts::default();
/// held.set(Resource::Names, 3);
/// assert_eq!(held.get(Resource::Names), 3);
/// assert_eq!(held.iter().map(|(_, amount)| amount).sum::<u64>(), 3);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts([u64; RESOURCES]);

impl Amounts {
    /// How much of one.
    #[must_use]
    pub const fn get(&self, resource: Resource) -> u64 {
        self.0[resource.at()]
    }

    /// Says how much of one.
    pub const fn set(&mut self, resource: Resource, amount: u64) {
        self.0[resource.at()] = amount;
    }

    /// Each with its amount.
    pub fn iter(&self) -> impl Iterator<Item = (Resource, u64)> {
        let amounts = self.0;
        Resource::ALL.into_iter().map(move |resource| (resource, amounts[resource.at()]))
    }
}

impl Serialize for Amounts {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(RESOURCES))?;
        for (resource, amount) in self.iter() {
            map.serialize_entry(resource.name(), &amount)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Amounts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Amounts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of amounts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Amounts, A::Error> {
                let mut amounts = Amounts::default();
                while let Some(name) = map.next_key::<String>()? {
                    match Resource::named(&name) {
                        Some(resource) => amounts.set(resource, map.next_value()?),
                        None => {
                            map.next_value::<de::IgnoredAny>()?;
                        }
                    }
                }
                Ok(amounts)
            }
        }
        d.deserialize_map(Map)
    }
}
