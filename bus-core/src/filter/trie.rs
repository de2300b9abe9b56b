//! All terms of one kind that a group's filters have, as a tree of common beginnings.
//!
//! A value is looked up along one path from the root. Every term that fits it lies on that path, and
//! terms that do not fit cost no more than the nodes at which they branch off: so a look-up takes
//! a time that the value's length bounds, however many terms there are.
//!
//! Invariant: a tree never changes. One with a term more, or less, is a new root that shares all
//! nodes but those on the path to the term; so the generations of a membership can each have one,
//! and to make the next costs little. No node but the root is without terms and has fewer than two
//! children, so the tree is no deeper than its longest term, and no larger than its terms need.

use std::sync::Arc;

use super::index::Entry;

/// A tree of terms; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Trie(Option<Arc<Node>>);

/// What values a term fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    Exactly,
    Prefix,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// The bytes between the node above and this one.
    label: Box<[u8]>,
    /// Whose terms fit values that end here, and values that go on. Sorted by endpoint.
    exact: Vec<Entry>,
    prefix: Vec<Entry>,
    /// By the first bytes of their labels, ascending.
    children: Vec<(u8, Arc<Self>)>,
}

impl Trie {
    /// The tree with one term more.
    pub(super) fn with(&self, bytes: &[u8], fit: Fit, entry: Entry) -> Self {
        let mut root = self.0.as_deref().cloned().unwrap_or_default();
        root.insert(bytes, fit, entry);
        Self(Some(Arc::new(root)))
    }

    /// The tree without a term.
    pub(super) fn without(&self, bytes: &[u8], fit: Fit, entry: Entry) -> Self {
        let Some(mut root) = self.0.as_deref().cloned() else {
            return self.clone();
        };
        root.remove(bytes, fit, entry);
        let empty = root.is_bare() && root.children.is_empty();
        Self((!empty).then(|| Arc::new(root)))
    }

    /// Adds all whose terms fit `value`.
    pub(super) fn find(&self, value: &[u8], found: &mut Vec<Entry>) {
        let Some(mut node) = self.0.as_ref() else {
            return;
        };
        let mut rest = value;
        loop {
            found.extend_from_slice(&node.prefix);
            let Some(first) = rest.first() else {
                found.extend_from_slice(&node.exact);
                return;
            };
            let Ok(at) = node.child(*first) else {
                return;
            };
            let child = &node.children[at].1;
            let Some(after) = rest.strip_prefix(&*child.label) else {
                return;
            };
            (node, rest) = (child, after);
        }
    }
}

impl Node {
    fn child(&self, first: u8) -> Result<usize, usize> {
        self.children.binary_search_by_key(&first, |(first, _)| *first)
    }

    fn entries(&mut self, fit: Fit) -> &mut Vec<Entry> {
        match fit {
            Fit::Exactly => &mut self.exact,
            Fit::Prefix => &mut self.prefix,
        }
    }

    fn is_bare(&self) -> bool {
        self.exact.is_empty() && self.prefix.is_empty()
    }

    /// Adds a term below; `rest` is what of it lies behind this node.
    fn insert(&mut self, rest: &[u8], fit: Fit, entry: Entry) {
        let Some(first) = rest.first() else {
            let entries = self.entries(fit);
            let at = entries.partition_point(|before| *before < entry);
            return entries.insert(at, entry);
        };
        let at = match self.child(*first) {
            Ok(at) => at,
            Err(at) => {
                let mut leaf = Self { label: rest.into(), ..Self::default() };
                leaf.insert(&[], fit, entry);
                return self.children.insert(at, (*first, Arc::new(leaf)));
            }
        };
        let below = &self.children[at].1;
        let common = below.label.iter().zip(rest).take_while(|(a, b)| a == b).count();
        let mut child = Self::clone(below);
        if common < child.label.len() {
            let label = child.label[..common].into();
            child.label = child.label[common..].into();
            let children = vec![(child.label[0], Arc::new(child))];
            child = Self { label, children, ..Self::default() };
        }
        child.insert(&rest[common..], fit, entry);
        self.children[at].1 = Arc::new(child);
    }

    /// Takes a term out below, and nodes that are of no use without it.
    fn remove(&mut self, rest: &[u8], fit: Fit, entry: Entry) {
        let Some(first) = rest.first() else {
            let entries = self.entries(fit);
            if let Ok(at) = entries.binary_search(&entry) {
                entries.remove(at);
            }
            return;
        };
        let Ok(at) = self.child(*first) else {
            return;
        };
        let Some(after) = rest.strip_prefix(&*self.children[at].1.label) else {
            return;
        };
        let mut child = Self::clone(&self.children[at].1);
        child.remove(after, fit, entry);
        match (child.is_bare(), &child.children[..]) {
            (true, []) => {
                self.children.remove(at);
            }
            (true, [(_, only)]) => {
                let mut joined = Self::clone(only);
                joined.label = [&child.label[..], &joined.label].concat().into();
                self.children[at].1 = Arc::new(joined);
            }
            _ => self.children[at].1 = Arc::new(child),
        }
    }
}

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::EndpointId;

    fn entry(id: u64) -> Entry {
        Entry { id: EndpointId::from_raw(id), sure: true }
    }

    /// A bare node other than the root branches.
    fn assert_minimal(node: &Node) {
        for (first, child) in &node.children {
            assert_eq!(child.label.first(), Some(first));
            assert!(!child.is_bare() || child.children.len() > 1, "{child:?}");
            assert_minimal(child);
        }
    }

    proptest! {
        #[test]
        fn finds_what_a_list_of_terms_would(
            terms in prop::collection::vec(
                (prop::collection::vec(0..3_u8, 0..6), any::<bool>(), any::<bool>()),
                0..40,
            ),
            values in prop::collection::vec(prop::collection::vec(0..3_u8, 0..8), 1..8),
        ) {
            let fit = |exact| if exact { Fit::Exactly } else { Fit::Prefix };
            let mut trie = Trie::default();
            for (id, (bytes, exact, _)) in (0..).zip(&terms) {
                trie = trie.with(bytes, fit(*exact), entry(id));
            }
            let whole = trie.clone();
            for (id, (bytes, exact, stays)) in (0..).zip(&terms) {
                if !stays {
                    trie = trie.without(bytes, fit(*exact), entry(id));
                }
            }
            for (trie, all) in [(&whole, true), (&trie, false)] {
                if let Some(root) = &trie.0 {
                    assert_minimal(root);
                }
                for value in &values {
                    let fits = |(bytes, exact, stays): &(Vec<u8>, bool, bool)| {
                        (all || *stays)
                            && if *exact { value == bytes } else { value.starts_with(bytes) }
                    };
                    let expected = (0..).zip(&terms).filter(|(_, term)| fits(term));
                    let expected: Vec<u64> = expected.map(|(id, _)| id).collect();
                    let mut found = Vec::new();
                    trie.find(value, &mut found);
                    let mut found: Vec<u64> = found.iter().map(|entry| entry.id.get()).collect();
                    found.sort_unstable();
                    prop_assert_eq!(found, expected);
                }
            }
            for (id, (bytes, exact, _)) in (0..).zip(&terms) {
                trie = trie.without(bytes, fit(*exact), entry(id));
            }
            prop_assert!(trie.0.is_none(), "nothing is left of it");
        }
    }
}
