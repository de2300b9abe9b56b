//! Random claims, releases, closes and sends against a reference model: after each step the owners
//! are those of the model, and every endpoint has been told just what the model says.

use std::collections::BTreeMap;

use bus_core::{NameFlags, NameId, OwnError, SendError};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::given::{Party, bus, name};

const PARTIES: usize = 4;
const NAMES: [&str; 2] = ["a", "b"];

#[derive(Clone, Debug)]
enum Step {
    Own(usize, usize, NameFlags),
    Release(usize, usize),
    /// Closes an endpoint; another one takes its place.
    Close(usize),
    Watch(usize, usize),
    Send(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let party = 0..PARTIES;
    let text = 0..NAMES.len();
    // Mostly of one kind, so that most claims meet their like.
    let flags = prop_oneof![4 => 0..8_u8, 1 => Just(8), 1 => 8..16_u8];
    let flags = flags.prop_map(|bits| NameFlags::from_bits(bits).unwrap());
    prop_oneof![
        6 => (party.clone(), text.clone(), flags).prop_map(|(p, n, f)| Step::Own(p, n, f)),
        3 => (party.clone(), text.clone()).prop_map(|(p, n)| Step::Release(p, n)),
        1 => (party.clone(), text.clone()).prop_map(|(p, n)| Step::Watch(p, n)),
        2 => party.prop_map(Step::Close),
                4 => text.prop_map(Step::Send),
    ]
}

/// A name as the rules have it: claims, the first of which owns it, or all if they share.
#[derive(Clone, Debug, Default)]
struct Name {
    /// Endpoint, flags, and how often it was put back.
    claims: Vec<(u64, NameFlags, u8)>,
    watchers: Vec<u64>,
}

impl Name {
    fn shared(&self) -> bool {
        self.claims.first().is_some_and(|(_, flags, _)| flags.contains(NameFlags::SHARED))
    }

    fn owners(&self) -> Vec<u64> {
        let most = if self.shared() { usize::MAX } else { 1 };
        self.claims.iter().take(most).map(|(id, ..)| *id).collect()
    }
}

/// What each endpoint is to have been told in a step.
type Told = BTreeMap<u64, Vec<String>>;

#[derive(Debug, Default)]
struct Model {
    names: BTreeMap<&'static str, Name>,
}

impl Model {
    /// What a change from one state of a name to the next tells to whom; `by` knows from a receipt.
    fn tell(&self, text: &'static str, before: &[u64], by: u64, told: &mut Told) {
        let name = &self.names[text];
        let after = name.owners();
        let old = before.iter().find(|id| !after.contains(id)).copied();
        let new = after.iter().find(|id| !before.contains(id)).copied();
        if let (Some(old), Some(new)) = (old, new)
            && old != by
        {
            let waits = name.claims.iter().any(|(id, ..)| *id == old);
            let waits = if waits { ", waits" } else { "" };
            told.entry(old).or_default().push(format!("-{text} by {new}{waits}"));
        }
        if let Some(new) = new.filter(|new| *new != by) {
            told.entry(new).or_default().push(format!("+{text}"));
        }
        if old.is_some() || new.is_some() {
            let shown = |id: Option<u64>| id.map_or("nobody".to_owned(), |id| id.to_string());
            for watcher in &name.watchers {
                let text = format!("{text}: {} -> {}", shown(old), shown(new));
                told.entry(*watcher).or_default().push(text);
            }
        }
    }

    fn own(&mut self, id: u64, text: &'static str, flags: NameFlags, told: &mut Told) -> Outcome {
        let name = self.names.entry(text).or_default();
        let shares = flags.contains(NameFlags::SHARED);
        let before = name.owners();
        let others = || name.claims.iter().filter(|(other, ..)| *other != id);
        if others().any(|(_, other, _)| other.contains(NameFlags::SHARED) != shares) {
            return Outcome::OtherKind;
        }
        let at = name.claims.iter().position(|(other, ..)| *other == id);
        let owned = name.claims.first().copied().filter(|(owner, ..)| *owner != id && !shares);
        match owned {
            Some((owner, theirs, times))
                if theirs.contains(NameFlags::ALLOW_REPLACEMENT)
                    && flags.contains(NameFlags::REPLACE_EXISTING) =>
            {
                name.claims.retain(|(other, ..)| *other != id);
                if theirs.contains(NameFlags::DO_NOT_QUEUE) || times == 8 {
                    name.claims.retain(|(other, ..)| *other != owner);
                } else {
                    name.claims[0].2 += 1;
                }
                name.claims.insert(0, (id, flags, 0));
            }
            Some((owner, ..)) if flags.contains(NameFlags::DO_NOT_QUEUE) => {
                return Outcome::Taken(owner);
            }
            _ => match at {
                Some(at) => name.claims[at] = (id, flags, 0),
                None => name.claims.push((id, flags, 0)),
            },
        }
        self.tell(text, &before, id, told);
        Outcome::Claimed
    }

    fn release(&mut self, id: u64, text: &'static str, told: &mut Told) -> bool {
        let name = self.names.entry(text).or_default();
        let before = name.owners();
        let claims = name.claims.len();
        name.claims.retain(|(other, ..)| *other != id);
        let released = name.claims.len() < claims;
        self.tell(text, &before, id, told);
        released
    }
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Claimed,
    Taken(u64),
    OtherKind,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn g4_owners_and_what_is_told_are_those_of_the_model(steps in vec(step(), 1..60)) {
        let bus = bus(64);
        let mut parties: Vec<Party> = (0..PARTIES).map(|_| Party::on(&bus)).collect();
        let mut sender = Party::on(&bus);
        let mut model = Model::default();
        let mut ids: BTreeMap<&str, NameId> = BTreeMap::new();
        let mut told = Told::new();
        for (number, step) in steps.into_iter().enumerate() {
            // Whom a message to a shared name goes to is the bus's choice; to one of these.
            let mut choice: Option<Vec<u64>> = None;
            let message = format!("message {number}");
            match step {
                Step::Own(party, text, flags) => {
                    let (party, text) = (&parties[party], NAMES[text]);
                    let came = match party.own(text, flags) {
                        Ok(claimed) => {
                            ids.insert(text, claimed.name);
                            Outcome::Claimed
                        }
                        Err(OwnError::Taken(_, owner)) => Outcome::Taken(owner.get()),
                        Err(OwnError::OtherKind(_)) => Outcome::OtherKind,
                        Err(error) => panic!("{error}"),
                    };
                    prop_assert_eq!(came, model.own(party.id().get(), text, flags, &mut told));
                }
                Step::Release(party, text) => {
                    let (party, text) = (&parties[party], NAMES[text]);
                    let id = ids.get(text).copied().unwrap_or(NameId::from_raw(99));
                    let released = party.endpoint.release_name(id).is_some();
                    prop_assert_eq!(released, model.release(party.id().get(), text, &mut told));
                }
                Step::Close(party) => {
                    let gone = std::mem::replace(&mut parties[party], Party::on(&bus));
                    let id = gone.id().get();
                    drop(gone);
                    let claimed: Vec<_> = model.names.keys().copied().collect();
                    for text in claimed {
                        let name = model.names.entry(text).or_default();
                        name.watchers.retain(|watcher| *watcher != id);
                        model.release(id, text, &mut told);
                    }
                }
                Step::Watch(party, text) => {
                    let (party, text) = (&parties[party], NAMES[text]);
                    let watched = party.endpoint.watch_name(&name(text)).unwrap();
                    ids.insert(text, watched.name);
                    let name = model.names.entry(text).or_default();
                    let owners: Vec<_> = watched.owners.iter().map(|o| o.endpoint.get()).collect();
                    prop_assert_eq!(owners, name.owners());
                    let id = party.id().get();
                    name.watchers.retain(|watcher| *watcher != id);
                    name.watchers.push(id);
                }
                Step::Send(text) => {
                    let text = NAMES[text];
                    let owners = model.names.entry(text).or_default().owners();
                    let id = ids.get(text).copied().unwrap_or(NameId::from_raw(99));
                    let sent = sender.try_send(id, &message);
                    if owners.is_empty() {
                        prop_assert_eq!(sent, Err(SendError::NoSuchName(id)));
                    } else {
                        prop_assert_eq!(sent.unwrap().recipients, 1);
                        choice = Some(owners);
                    }
                }
            }
            for text in NAMES {
                let info = bus.find_name(&name(text));
                let owners: Vec<u64> = info.iter().flat_map(|i| &i.owners)
                    .map(|owner| owner.endpoint.get()).collect();
                let model = model.names.get(text).cloned().unwrap_or_default();
                prop_assert_eq!(&owners, &model.owners());
                if let Some(info) = info {
                    prop_assert_eq!(info.shared, model.shared());
                    let waiting = model.claims.len() - owners.len();
                    prop_assert_eq!(info.waiting as usize, waiting);
                }
            }
            let mut given = Vec::new();
            for party in &mut parties {
                let id = party.id().get();
                let mut taken = party.take_all();
                if taken.contains(&message) {
                    taken.retain(|text| *text != message);
                    given.push(id);
                }
                let mut expected = told.remove(&id).unwrap_or_default();
                // Notices of one change to one endpoint stand in no order that matters.
                taken.sort();
                expected.sort();
                prop_assert_eq!(taken, expected, "{}", id);
            }
            match choice {
                None => prop_assert_eq!(given, Vec::<u64>::new()),
                Some(owners) => {
                    prop_assert_eq!(given.len(), 1);
                    prop_assert!(owners.contains(&given[0]));
                }
            }
            // Whoever has closed is told nothing.
            told.clear();
        }
    }
}
