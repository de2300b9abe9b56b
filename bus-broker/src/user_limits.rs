//! Limits of particular users: `[users.NAME.limits]` in a configuration.
//!
//! What is said there of a user takes the place of the limits `user_*` under `[limits]`, one by one.
//! A user is named as in `/etc/passwd`, or by number. No name service is asked: it may be a client
//! of the bus. Invariant: no user is named twice, and no limit is out of its range.

use std::fmt;

use bus_core::{Amounts, LimitError, Limits, Resource};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::policy::user_id;

/// What a configuration says of particular users.
///
/// ```
/// use bus_broker::Config;
///
/// let text = "[users.0.limits]\nnames = 20000\n";
/// let config = Config::from_toml(text, "bus.toml".as_ref())?;
/// assert_eq!(config.users.uids().collect::<Vec<_>>(), [0]);
///
/// let error = Config::from_toml("[users.0.limits]\nmoons = 2\n", "bus.toml".as_ref());
/// assert!(error.unwrap_err().to_string().starts_with("bus.toml:2:1: "));
/// # Ok::<(), bus_broker::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsersConfig(Vec<UserConfig>);

/// One user's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct UserConfig {
    /// As it is written.
    name: String,
    uid: u32,
    limits: Vec<(Resource, u64)>,
}

/// What leads to a value.
type Keys = Box<[String; 4]>;

/// A user's table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    #[serde(default)]
    limits: AccountLimits,
}

/// Some limits of one user, or of a socket's clients together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountLimits(Vec<(Resource, u64)>);

impl AccountLimits {
    /// Those of `common` with these in their places.
    pub(crate) fn over(&self, mut common: Amounts) -> Amounts {
        for (resource, value) in &self.0 {
            common.set(*resource, *value);
        }
        common
    }
}

impl UsersConfig {
    /// The users of whom something is said, in its order.
    pub fn uids(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|user| user.uid)
    }

    /// The limits of each of them, where all others have those of `common`.
    pub(crate) fn limits(&self, common: &Limits) -> impl Iterator<Item = (u32, Amounts)> {
        let common = common.of_user();
        self.0.iter().map(move |user| {
            let mut limits = common;
            for (resource, value) in &user.limits {
                limits.set(*resource, *value);
            }
            (user.uid, limits)
        })
    }

    /// Looks at the range of each. An error comes with the keys that lead to it.
    pub(crate) fn check(&self, common: &Limits) -> Result<(), (LimitError, Keys)> {
        for user in &self.0 {
            for (resource, value) in &user.limits {
                let mut limits = common.of_user();
                limits.set(*resource, *value);
                let keys = ["users", &user.name, "limits", resource.name()];
                let at = || Box::new(keys.map(str::to_owned));
                common.clone().for_user(limits).check().map_err(|error| (error, at()))?;
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for UsersConfig {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = UsersConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table for each user")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UsersConfig, A::Error> {
                let mut users: Vec<UserConfig> = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let uid = user_id(&name).map_err(de::Error::custom)?;
                    if let Some(twice) = users.iter().find(|user| user.uid == uid) {
                        let text = format!("{name} and {} are the same user", twice.name);
                        return Err(de::Error::custom(text));
                    }
                    let Form { limits } = map.next_value()?;
                    users.push(UserConfig { name, uid, limits: limits.0 });
                }
                Ok(UsersConfig(users))
            }
        }
        d.deserialize_map(Map)
    }
}

impl<'de> Deserialize<'de> for AccountLimits {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = AccountLimits;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("limits of a user")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AccountLimits, A::Error> {
                let mut limits = Vec::new();
                while let Some(Name(resource)) = map.next_key()? {
                    limits.push((resource, map.next_value()?));
                }
                Ok(AccountLimits(limits))
            }
        }
        d.deserialize_map(Map)
    }
}

/// A resource as a key: so the error stands where the key does.
struct Name(Resource);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = String::deserialize(d)?;
        let unknown = || {
            let known: Vec<&str> = Resource::ALL.iter().map(|resource| resource.name()).collect();
            format!("unknown limit {name}; there are {}", known.join(", "))
        };
        Resource::named(&name).map(Self).ok_or_else(|| de::Error::custom(unknown()))
    }
}
