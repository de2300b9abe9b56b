//! A description of a service from the Rust types that it reads and writes.
//!
//! Invariant: what is described is what serde reads. Each type's own `Deserialize` is asked what it
//! would read (`describe/trace.rs`), the attributes of its derivation included, so a description
//! cannot go another way than the code. A type that tells too little is an error, never a guess.

mod trace;

use bus_core::{DataType, Description, DescriptionError, GroupName, NameError, Operation, Signal};
use serde::Deserialize;

use trace::{Root, Untraced, root};

/// Describes a service by the types that it reads and writes, for
/// [`NameOptions::describe`](crate::NameOptions::describe).
///
/// All that is asked of a type is that it derives `Deserialize`.
///
/// ```
/// use bus_client::{DataType, Describe};
/// use serde::Deserialize;
///
/// #[derive(Deserialize)]
/// enum Zone {
///     Utc,
///     City(String),
/// }
///
/// #[derive(Deserialize)]
/// struct Time {
///     hour: u8,
///     minute: u8,
/// }
///
/// let clock = Describe::new("Tells the time.")
///     .operation::<Option<Zone>, Time>("now", "The time there, or here.")
///     .operation::<Time, ()>("set", "Sets it.")
///     .signal::<u8>("struck", "At every full hour.", "org.example.Hours")
///     .finish()?;
///
/// assert_eq!(clock.operations[0].argument.to_string(), "option<Zone>");
/// assert_eq!(clock.operations[1].reply, DataType::Unit);
/// assert_eq!(clock.types["Time"].to_string(), "{ hour: u8, minute: u8 }");
/// assert_eq!(clock.types["Zone"].to_string(), "Utc | City(string)");
/// # Ok::<(), bus_client::DescribeError>(())
/// ```
#[derive(Debug)]
#[must_use = "`finish` makes the description"]
pub struct Describe {
    summary: String,
    operations: Vec<Operation>,
    /// And the name of the group that each goes to.
    signals: Vec<(Signal, String)>,
    /// Of each operation the types of its argument and its reply, then of each signal its own.
    roots: [Vec<Root>; 2],
}

/// Why there is no description. Say the type by hand instead, with [`DataType`], or do what the
/// variant says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescribeError {
    /// A type does not say what it reads: it accepts whatever describes itself (`flatten`,
    /// `untagged`, `tag`), or refuses the values that it was tried with.
    #[error("{at}: {why}")]
    Untraceable {
        /// Where it is used.
        at: String,
        /// What the type said.
        why: String,
    },
    /// Variants of these enums were never met.
    #[error("not all variants of {} can be met", .0.join(", "))]
    Unseen(Vec<String>),
    /// The name of a signal's group breaks the rules for names.
    #[error(transparent)]
    Group(#[from] NameError),
    /// What is described is not whole.
    #[error(transparent)]
    NotWhole(#[from] DescriptionError),
}

impl Describe {
    /// A service that does this, in a sentence.
    pub fn new(summary: impl Into<String>) -> Self {
        let summary = summary.into();
        Self { summary, operations: Vec::new(), signals: Vec::new(), roots: Default::default() }
    }

    /// An operation that takes an `A` and answers an `R`, and what it does, in a sentence.
    pub fn operation<A, R>(mut self, name: &str, doc: &str) -> Self
    where
        A: Deserialize<'static>,
        R: Deserialize<'static>,
    {
        self.operations.push(Operation::new(name).doc(doc));
        self.roots[0].extend([root::<A> as Root, root::<R>]);
        self
    }

    /// A signal with a `P`, what it tells, in a sentence, and the group that it goes to.
    pub fn signal<P: Deserialize<'static>>(mut self, name: &str, doc: &str, group: &str) -> Self {
        self.signals.push((Signal::new(name, DataType::Unit).doc(doc), group.to_owned()));
        self.roots[1].push(root::<P>);
        self
    }

    /// Makes the description.
    ///
    /// # Errors
    ///
    /// See [`DescribeError`].
    pub fn finish(self) -> Result<Description, DescribeError> {
        let roots = self.roots.concat();
        let (types, named) = trace::trace(&roots).map_err(|untraced| match untraced {
            Untraced::Unseen(names) => DescribeError::Unseen(names),
            Untraced::Refused { root, why } => {
                DescribeError::Untraceable { at: self.at(root), why }
            }
        })?;
        let mut types = types.into_iter();
        let mut next = || types.next().expect("there are as many as roots");
        let mut description = Description::new(self.summary);
        for operation in self.operations {
            description = description.operation(operation.argument(next()).reply(next()));
        }
        for (signal, group) in self.signals {
            let group: GroupName = group.parse()?;
            let signal = Signal::new(signal.name, next()).doc(signal.doc).group(group);
            description = description.signal(signal);
        }
        description.types = named;
        description.check()?;
        Ok(description)
    }

    /// What a root is the type of.
    fn at(&self, root: usize) -> String {
        match self.operations.get(root / 2) {
            Some(operation) => {
                let which = if root.is_multiple_of(2) { "argument" } else { "reply" };
                format!("the {which} of operation {:?}", operation.name)
            }
            None => format!("signal {:?}", self.signals[root - 2 * self.operations.len()].0.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Deserialize)]
    enum Shade {
        Light,
        Dark,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "looked at, not used")]
    #[serde(rename_all = "kebab-case")]
    enum Color {
        Mixed(Vec<Self>),
        GreenOf(Shade),
        Rgb(u8, u8, u8),
        Cmyk {
            c: f32,
            m: f32,
            y: f32,
            #[serde(alias = "black")]
            k: f64,
        },
        #[serde(alias = "nothing")]
        None,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "looked at, not used")]
    struct Tree {
        #[serde(rename = "colour", alias = "color")]
        color: Option<Color>,
        below: Vec<Self>,
        digest: [u8; 32],
        id: Id,
        by_name: BTreeMap<String, (i8, char)>,
        nothing: Nothing,
        #[serde(skip)]
        secret: u8,
        more: Page<Shade>,
        rest: serde_json::Value,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "looked at, not used")]
    struct Page<T> {
        items: Vec<T>,
        next: Option<Box<Self>>,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "looked at, not used")]
    struct Id(std::num::NonZeroU64);

    #[derive(Deserialize)]
    struct Nothing;

    /// Its first variant alone never ends.
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "looked at, not used")]
    enum Chain {
        Link(Box<Self>),
        Pair(Box<(Self, Self)>),
        End(&'static str),
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "looked at, not used")]
    struct Endless(Box<Self>);

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "looked at, not used")]
    struct Loose {
        #[serde(flatten)]
        rest: BTreeMap<String, String>,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "looked at, not used")]
    #[serde(tag = "kind")]
    enum Tagged {
        A { a: u8 },
    }

    fn shown(description: &Description) -> Vec<String> {
        description.types.iter().map(|(name, of)| format!("{name} = {of}")).collect()
    }

    #[test]
    fn types_are_described_as_serde_reads_them() {
        let description = Describe::new("")
            .operation::<Tree, Vec<Tree>>("grow", "")
            .operation::<Page<u8>, (u8, i128)>("turn", "")
            .finish()
            .unwrap();
        let types = |at: usize| {
            let operation = &description.operations[at];
            (operation.argument.to_string(), operation.reply.to_string())
        };
        assert_eq!(types(0), ("Tree".into(), "seq<Tree>".into()));
        assert_eq!(types(1), ("Page<u8>".into(), "(u8, i128)".into()));
        assert_eq!(
            shown(&description),
            [
                "Color = mixed(seq<Color>) | green-of(Shade) | rgb(u8, u8, u8) \
             | cmyk { c: f32, m: f32, y: f32, black: f64 } | none",
                "Id = newtype_struct(u64)",
                "Nothing = unit_struct",
                "Page = { items: seq<Shade>, next: option<Page> }",
                "Page<u8> = { items: seq<u8>, next: option<Page<u8>> }",
                "Shade = Light | Dark",
                "Tree = { color: option<Color>, below: seq<Tree>, digest: [u8; 32], id: Id, \
             by_name: map<string, (i8, char)>, nothing: Nothing, more: Page, rest: any }",
            ]
        );
    }

    #[test]
    fn recursion_ends_where_a_value_can() {
        let chain = Describe::new("").operation::<Chain, ()>("pull", "").finish().unwrap();
        assert_eq!(shown(&chain), ["Chain = Link(Chain) | Pair((Chain, Chain)) | End(string)"]);
        let error = Describe::new("").operation::<Endless, ()>("fall", "").finish().unwrap_err();
        assert!(error.to_string().contains("without end"), "{error}");
    }

    #[test]
    fn what_cannot_be_described_is_refused_and_says_where() {
        for (at, description) in [
            ("the reply of operation \"spill\": ", {
                Describe::new("").operation::<(), Loose>("spill", "")
            }),
            ("the argument of operation \"tag\": ", {
                Describe::new("").operation::<Tagged, ()>("tag", "")
            }),
            ("signal \"address\": ", {
                Describe::new("")
                    .signal::<crate::GroupName>("lost", "", "a")
                    .signal::<Loose>("address", "", "a")
            }),
        ] {
            let error = description.finish().unwrap_err().to_string();
            assert!(error.starts_with(at) && error.contains("whatever there is"), "{error}");
        }
        let nowhere = Describe::new("").signal::<u8>("lost", "", "no/group").finish();
        assert!(matches!(nowhere, Err(DescribeError::Group(_))), "{nowhere:?}");
        let twice = Describe::new("").operation::<(), ()>("a", "").operation::<(), ()>("a", "");
        assert!(matches!(twice.finish(), Err(DescribeError::NotWhole(_))));
    }
}
