//! What a service says of itself: the operations that it takes, for whoever asks about its name.
//!
//! The bus keeps a description at the claim of who gave it, bounded, and never reads it: types are
//! text in serde's terms (`u64`, `Option<String>`, `{ hour: u8, minute: u8 }`), for people and for
//! tools.

use serde::{Deserialize, Serialize};

/// What a service says of itself.
///
/// ```
/// use bus_core::{Description, Operation};
///
/// let clock = Description::new("Tells the time.")
///     .operation(Operation::new("now").reply("{ hour: u8, minute: u8 }").doc("Local time."));
/// assert_eq!(clock.operations[0].request, "()");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Description {
    /// What it is for, in a sentence.
    pub summary: String,
    /// What it takes.
    pub operations: Vec<Operation>,
}

/// An operation of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Operation {
    /// Its name, as in a message's header.
    pub name: String,
    /// The type of what it takes.
    pub request: String,
    /// The type of what it answers.
    pub reply: String,
    /// What it does, in a sentence.
    pub doc: String,
}

impl Default for Operation {
    fn default() -> Self {
        Self::new("")
    }
}

impl Operation {
    /// An operation that takes and answers nothing.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        let nothing = || "()".to_owned();
        Self { name: name.into(), request: nothing(), reply: nothing(), doc: String::new() }
    }

    /// The same with another type of request.
    #[must_use]
    pub fn request(self, request: impl Into<String>) -> Self {
        Self { request: request.into(), ..self }
    }

    /// The same with another type of reply.
    #[must_use]
    pub fn reply(self, reply: impl Into<String>) -> Self {
        Self { reply: reply.into(), ..self }
    }

    /// The same with a sentence about what it does.
    #[must_use]
    pub fn doc(self, doc: impl Into<String>) -> Self {
        Self { doc: doc.into(), ..self }
    }
}

/// Bytes that an operation counts for beside its texts: what it costs to keep an empty one.
const OPERATION_BYTES: usize = std::mem::size_of::<Operation>();

impl Description {
    /// A description without operations.
    #[must_use]
    pub fn new(summary: impl Into<String>) -> Self {
        Self { summary: summary.into(), operations: Vec::new() }
    }

    /// The same with one operation more.
    #[must_use]
    pub fn operation(mut self, operation: Operation) -> Self {
        self.operations.push(operation);
        self
    }

    /// The bytes that it counts for against the limit `description_bytes`: its texts, and a
    /// constant for each operation.
    #[must_use]
    pub fn charged_bytes(&self) -> usize {
        let texts = |op: &Operation| {
            op.name.len() + op.request.len() + op.reply.len() + op.doc.len() + OPERATION_BYTES
        };
        self.summary.len() + self.operations.iter().map(texts).sum::<usize>()
    }
}
