//! From a message to the few members whose filters may accept it.
//!
//! Invariant: for each alternative of a member's filter there is a term, one of its conditions, that
//! holds whenever the alternative does; or the member is among those that are always asked. So
//! whom a look-up does not find rejects the message, and whom it finds accepts it for sure if the
//! term is all that there is, or is asked.
//!
//! A term is a beginning, or the whole, of one item of a message's attributes, byte for byte as it
//! stands in the block. So a look-up walks the block once, and a tree for each of its items.

use std::sync::Arc;

use super::trie::{Fit, Trie};
use super::{Condition, Filter, Pattern, Subject};
use crate::attributes::RawItem;
use crate::id::EndpointId;

/// The filters of one membership. Both must accept.
#[derive(Debug)]
pub(crate) struct MemberFilters {
    /// The member's own.
    pub(crate) own: Option<Filter>,
    /// The one that the owner of a gated group has set on the member's behalf, and that the member
    /// does not see.
    pub(crate) owners: Option<Filter>,
    terms: Terms,
}

/// How a membership is found. Sure terms come first of equal ones.
#[derive(Debug)]
enum Terms {
    /// Each accepting message has one of these.
    These(Vec<Term>),
    /// Nothing but the filter itself can tell.
    Always,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Term {
    item: Item,
    bytes: Vec<u8>,
    fit: Fit,
    /// Whether it is all that is asked for.
    unsure: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Key,
    Field,
    Operation,
}

/// A member that a term leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) id: EndpointId,
    /// Nothing else is asked for.
    pub(crate) sure: bool,
}

impl MemberFilters {
    /// None without any.
    pub(crate) fn new(own: Option<Filter>, owners: Option<Filter>) -> Option<Arc<Self>> {
        let terms = match (&own, &owners) {
            (None, None) => return None,
            (Some(one), None) | (None, Some(one)) => Terms::of(one, true),
            (Some(one), Some(other)) => match Terms::of(one, false) {
                Terms::Always => Terms::of(other, false),
                these @ Terms::These(_) => these,
            },
        };
        Some(Arc::new(Self { own, owners, terms }))
    }

    pub(crate) fn pass(&self, subject: Subject<'_>) -> bool {
        let passes =
            |filter: &Option<Filter>| filter.as_ref().is_none_or(|filter| filter.passes(subject));
        passes(&self.own) && passes(&self.owners)
    }

    /// Instructions of all programs.
    pub(crate) fn instructions(&self) -> u64 {
        let both = [&self.own, &self.owners].into_iter().flatten();
        both.map(|filter| filter.instructions() as u64).sum()
    }
}

impl Terms {
    /// `alone` if there is no other filter to be asked.
    fn of(filter: &Filter, alone: bool) -> Self {
        let term = |all: &Vec<Condition>| {
            let mut term = all.iter().filter_map(Term::of).max_by_key(Term::worth)?;
            term.unsure = !alone || all.len() > 1;
            Some(term)
        };
        let terms: Option<Vec<Term>> = filter.alternatives().iter().map(term).collect();
        let Some(mut terms) = terms else {
            return Self::Always;
        };
        terms.sort_unstable();
        terms.dedup_by(|next, before| {
            (next.item, &next.bytes, next.fit) == (before.item, &before.bytes, before.fit)
        });
        Self::These(terms)
    }
}

impl Term {
    /// None for what only a run can tell.
    fn of(condition: &Condition) -> Option<Self> {
        let term = |item, mut bytes: Vec<u8>, pattern: &Pattern| {
            bytes.extend_from_slice(pattern.bytes());
            let fit = match pattern {
                Pattern::Exactly(_) => Fit::Exactly,
                Pattern::Prefix(_) => Fit::Prefix,
            };
            Self { item, bytes, fit, unsure: false }
        };
        match condition {
            Condition::Key(pattern) => Some(term(Item::Key, Vec::new(), pattern)),
            Condition::Operation(pattern) => Some(term(Item::Operation, Vec::new(), pattern)),
            Condition::Field { name, value } => {
                // As the item stands in a block of attributes.
                let mut bytes = vec![u8::try_from(name.len()).ok()?];
                bytes.extend_from_slice(name.as_bytes());
                Some(term(Item::Field, bytes, value))
            }
            Condition::Program(_) => None,
        }
    }

    /// Which condition of an alternative is likely to hold for the fewest messages.
    fn worth(&self) -> (bool, std::cmp::Reverse<Item>, usize) {
        (self.fit == Fit::Exactly, std::cmp::Reverse(self.item), self.bytes.len())
    }
}

/// The filters of all members of a group at one generation, to be looked up in. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilterIndex {
    keys: Trie,
    operations: Trie,
    fields: Trie,
    /// Those that are always asked, sorted. Their programs are bounded for the group.
    always: Vec<Entry>,
    /// Members with a filter.
    members: usize,
    /// Instructions of all their programs.
    instructions: u64,
}

impl FilterIndex {
    /// No member has a filter.
    pub(crate) fn is_empty(&self) -> bool {
        self.members == 0
    }

    /// Instructions of all programs of all members.
    pub(crate) fn instructions(&self) -> u64 {
        self.instructions
    }

    pub(crate) fn add(&mut self, id: EndpointId, filters: &MemberFilters) {
        self.members += 1;
        self.instructions += filters.instructions();
        match &filters.terms {
            Terms::Always => {
                let entry = Entry { id, sure: false };
                let at = self.always.partition_point(|before| *before < entry);
                self.always.insert(at, entry);
            }
            Terms::These(terms) => {
                for term in terms {
                    let trie = self.trie(term.item);
                    *trie = trie.with(&term.bytes, term.fit, Entry { id, sure: !term.unsure });
                }
            }
        }
    }

    pub(crate) fn remove(&mut self, id: EndpointId, filters: &MemberFilters) {
        self.members -= 1;
        self.instructions -= filters.instructions();
        match &filters.terms {
            Terms::Always => self.always.retain(|entry| entry.id != id),
            Terms::These(terms) => {
                for term in terms {
                    let trie = self.trie(term.item);
                    *trie = trie.without(&term.bytes, term.fit, Entry { id, sure: !term.unsure });
                }
            }
        }
    }

    fn trie(&mut self, item: Item) -> &mut Trie {
        match item {
            Item::Key => &mut self.keys,
            Item::Operation => &mut self.operations,
            Item::Field => &mut self.fields,
        }
    }

    /// Finds the members that may accept: sorted, each once, and sure if one of its terms is.
    pub(super) fn find(&self, subject: Subject<'_>, found: &mut Vec<Entry>) {
        found.clear();
        found.extend_from_slice(&self.always);
        for item in subject.attributes.items() {
            match item {
                RawItem::Key(key) => self.keys.find(key, found),
                RawItem::Operation(operation) => self.operations.find(operation, found),
                RawItem::Field { whole, .. } => self.fields.find(whole, found),
                RawItem::Other => {}
            }
        }
        if found.len() > 1 {
            // Descending, so that of one member's entries the sure one comes first.
            found.sort_unstable_by(|a, b| b.cmp(a));
            found.dedup_by_key(|entry| entry.id);
            found.reverse();
        }
    }
}
