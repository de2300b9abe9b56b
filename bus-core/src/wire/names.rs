//! Control messages about well-known names: claims, listings, and what their owners are told.

use serde::{Deserialize, Serialize};

use crate::{EndpointId, Gap, GroupName, Holder, NameFlags, NameId, Sequence};

/// One name in a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameInfo {
    /// The name.
    pub name: GroupName,
    /// Its id.
    pub name_id: NameId,
    /// Who owns it; of one that is shared by many, some of them.
    pub owners: Vec<Owner>,
    /// How many own it.
    pub owner_count: u32,
    /// How many wait to own it.
    #[serde(default)]
    pub waiting: u32,
    /// Several may own it together, and each message to it is given to one of them.
    #[serde(default)]
    pub shared: bool,
    /// It has a description.
    #[serde(default)]
    pub described: bool,
}

/// An endpoint that owns a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// User id of its process, from its `connect()`.
    pub uid: u32,
    /// Process id, from its `connect()`.
    pub pid: u32,
}

impl From<Holder> for Owner {
    fn from(holder: Holder) -> Self {
        let credentials = holder.credentials;
        Self { endpoint: holder.endpoint, uid: credentials.uid, pid: credentials.pid }
    }
}

/// A change of a watched name's owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerChanged {
    /// The name's id.
    pub name_id: NameId,
    /// The name.
    pub name: GroupName,
    /// Where in the order it happened.
    pub sequence: Sequence,
    /// Who owned it and does not any more.
    pub old: Option<Owner>,
    /// Who owns it now and did not.
    pub new: Option<Owner>,
    /// How many own it now.
    pub owners: u32,
    /// Changes that were not told just before this one, for want of room.
    pub missed: Option<Gap>,
}

/// What became of an endpoint's claim of a name without its own doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimChanged {
    /// The name's id.
    pub name_id: NameId,
    /// The name.
    pub name: GroupName,
    /// Where in the order it happened.
    pub sequence: Sequence,
    /// What happened.
    pub event: crate::NameEvent,
}

/// A notice about a name, as it stands on the wire.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(super) enum Form {
    NameAcquired {
        name_id: NameId,
        name: GroupName,
        sequence: Sequence,
    },
    NameLost {
        name_id: NameId,
        name: GroupName,
        sequence: Sequence,
        /// Missing if it was stalled.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<EndpointId>,
        #[serde(default, skip_serializing_if = "super::control::is_false")]
        queued: bool,
    },
    OwnerChanged {
        name_id: NameId,
        name: GroupName,
        sequence: Sequence,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        old: Option<Owner>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        new: Option<Owner>,
        owners: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        missed: Option<Gap>,
    },
    OwnerChangesLost {
        name_id: NameId,
        count: u64,
        first: Sequence,
        last: Sequence,
    },
}

impl Form {
    pub(super) const KINDS: &'static [&'static str] =
        &["name-acquired", "name-lost", "owner-changed", "owner-changes-lost"];
}

impl From<&ClaimChanged> for Form {
    fn from(claim: &ClaimChanged) -> Self {
        let (name_id, name, sequence) = (claim.name_id, claim.name.clone(), claim.sequence);
        let lost =
            |by, queued| Self::NameLost { name_id, name: name.clone(), sequence, by, queued };
        match claim.event {
            crate::NameEvent::Acquired => Self::NameAcquired { name_id, name, sequence },
            crate::NameEvent::Replaced { by, queued } => lost(Some(by), queued),
            crate::NameEvent::Stalled => lost(None, false),
        }
    }
}

impl From<&OwnerChanged> for Form {
    fn from(change: &OwnerChanged) -> Self {
        let OwnerChanged { name_id, name, sequence, old, new, owners, missed } = change.clone();
        Self::OwnerChanged { name_id, name, sequence, old, new, owners, missed }
    }
}

impl From<Form> for super::Notice {
    fn from(form: Form) -> Self {
        match form {
            Form::NameAcquired { name_id, name, sequence } => {
                let event = crate::NameEvent::Acquired;
                Self::Claim(Box::new(ClaimChanged { name_id, name, sequence, event }))
            }
            Form::NameLost { name_id, name, sequence, by, queued } => {
                let event = by.map_or(crate::NameEvent::Stalled, |by| crate::NameEvent::Replaced {
                    by,
                    queued,
                });
                Self::Claim(Box::new(ClaimChanged { name_id, name, sequence, event }))
            }
            Form::OwnerChanged { name_id, name, sequence, old, new, owners, missed } => {
                let change = OwnerChanged { name_id, name, sequence, old, new, owners, missed };
                Self::Owner(Box::new(change))
            }
            Form::OwnerChangesLost { name_id, count, first, last } => {
                Self::OwnersLost { name_id, gap: Gap { count, first, last } }
            }
        }
    }
}

/// A list of names of flags; one that is unknown is an error, because it asks for something.
pub(super) mod flag_names {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::NameFlags;

    const NAMES: [(NameFlags, &str); 4] = [
        (NameFlags::ALLOW_REPLACEMENT, "allow-replacement"),
        (NameFlags::REPLACE_EXISTING, "replace-existing"),
        (NameFlags::DO_NOT_QUEUE, "do-not-queue"),
        (NameFlags::SHARED, "shared"),
    ];

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(in super::super) fn serialize<S: Serializer>(
        flags: &NameFlags,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        let names = NAMES.iter().filter(|(flag, _)| flags.contains(*flag));
        s.collect_seq(names.map(|(_, name)| *name).collect::<Vec<_>>())
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<NameFlags, D::Error> {
        let names = Vec::<String>::deserialize(d)?;
        names.iter().try_fold(NameFlags::empty(), |flags, name| {
            let flag = NAMES.iter().find(|(_, known)| known == name).ok_or_else(|| {
                let name = super::super::control::clip(name, 64);
                de::Error::custom(format_args!("name flag {name:?} is unknown"))
            })?;
            Ok(flags | flag.0)
        })
    }
}
