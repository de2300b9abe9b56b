//! [`Limits`] as it goes over the wire: plain numbers, and keys that may be missing or unknown.
//!
//! The form in a configuration refuses unknown keys, because there they are typing errors; here
//! they are limits of a later version. A key that is missing has its default, so of a bus that keeps to
//! the defaults nothing is said, which is most of what a greeting would be.

use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::control::milliseconds;
use crate::Limits;

macro_rules! form {
    ($($field:ident: $type:ty,)*) => {
        form! { @form $($field: $type,)* stall_ms: u64, lent_ms: u64, request_deadline_ms: u64, }

        impl From<&Limits> for Form {
            fn from(limits: &Limits) -> Self {
                Self {
                    $($field: limits.$field,)*
                    stall_ms: milliseconds::count(limits.stall),
                    lent_ms: milliseconds::count(limits.lent),
                    request_deadline_ms: milliseconds::count(limits.request_deadline),
                }
            }
        }

        impl From<Form> for Limits {
            fn from(form: Form) -> Self {
                Self {
                    $($field: form.$field,)*
                    stall: Duration::from_millis(form.stall_ms),
                    lent: Duration::from_millis(form.lent_ms),
                    request_deadline: Duration::from_millis(form.request_deadline_ms),
                }
            }
        }
    };
    (@form $($field:ident: $type:ty,)*) => {
        #[derive(Deserialize)]
        #[serde(default)]
        struct Form {
            $($field: $type,)*
        }

        /// All keys with their defaults.
        #[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
        pub(super) fn defaults() -> Vec<(&'static str, u64)> {
            let usual = Form::default();
            vec![$((stringify!($field), usual.$field.into())),*]
        }

        impl Serialize for Form {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                let usual = Self::default();
                let differing = [$(self.$field != usual.$field),*];
                let count = differing.into_iter().filter(|differs| *differs).count();
                let mut map = s.serialize_map(Some(count))?;
                $(if self.$field != usual.$field {
                    map.serialize_entry(stringify!($field), &self.$field)?;
                })*
                map.end()
            }
        }
    };
}

form! {
    queue_messages: u32,
    queue_bytes: u64,
    payload_bytes: u32,
    descriptors: u8,
    lane_messages: u32,
    lane_bytes: u64,
    memberships: u16,
    backlog: u16,
    peer_messages: u32,
    peer_bytes: u64,
    lanes: u8,
    watches: u16,
    monitors: u16,
    members: u32,
    filter_bytes: u32,
    filter_instructions: u32,
    groups: u32,
    groups_created: u32,
    retained_messages: u32,
    retained_bytes: u64,
    names: u32,
    names_claimed: u16,
    name_claims: u16,
    description_bytes: u32,
    endpoints: u32,
    endpoints_per_connection: u16,
    connections: u32,
    listings: u16,
    requests: u16,
    reply_bytes: u32,
    user_connections: u64,
    user_endpoints: u64,
    user_messages: u64,
    user_bytes: u64,
    user_descriptors: u64,
    user_memberships: u64,
    user_groups: u64,
    user_retained_bytes: u64,
    user_names: u64,
    user_filter_bytes: u64,
    user_requests: u64,
    user_pinned_bytes: u64,
    user_connection_rate: u64,
    completions: u32,
    arena_bytes: u64,
}

impl Default for Form {
    fn default() -> Self {
        Self::from(&Limits::default())
    }
}

pub(super) fn serialize<S: Serializer>(limits: &Limits, s: S) -> Result<S::Ok, S::Error> {
    Form::from(limits).serialize(s)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Limits, D::Error> {
    Form::deserialize(d).map(Limits::from)
}
