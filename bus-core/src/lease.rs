//! A payload while it is lent: who reads it where its sender can write, and that this ends once.
//!
//! Invariants:
//! - Whoever is [let in](Lease::enter) is among those whom the end [hands out](Lease::end), and who comes
//!   later is not let in: one lock decides. So everybody who reads lent memory can be told that it is
//!   lent no longer, and the one end is reported once, whether the last reader has let go, the time is
//!   over, or both at once.
//! - A reader copies, and looks at the word of the loan only then ([`still_lent`]). The broker changes
//!   the word ([`revoke`]) before it tells the sender that its buffer is free, and the sender makes
//!   that news come before its next write ([`before_reuse`]). So a copy that has a byte of the
//!   next payload meets the changed word, and is thrown away.

use crate::sync::{AtomicU64, Mutant, Mutex, Ordering, fence, mutated};

/// What is lent, and to whom.
#[derive(Debug)]
pub struct Lease<R>(Mutex<Option<Vec<R>>>);

impl<R> Default for Lease<R> {
    fn default() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }
}

impl<R> Lease<R> {
    /// A loan that nobody reads yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets a reader in; gives it back if the loan has ended.
    ///
    /// # Errors
    ///
    /// The reader, who has to read a copy.
    pub fn enter(&self, reader: R) -> Result<(), R> {
        match &mut *self.0.lock() {
            Some(readers) => {
                readers.push(reader);
                Ok(())
            }
            None => Err(reader),
        }
    }

    /// Ends the loan, and gives those who are to be told; `None` if it had ended.
    pub fn end(&self) -> Option<Vec<R>> {
        if mutated(Mutant::LoanEndsTwice) {
            let ended = self.0.lock().is_none();
            return (!ended).then(|| self.0.lock().take().unwrap_or_default());
        }
        self.0.lock().take()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.lock().is_none()
    }
}

/// Whether bytes that were copied out of lent memory were lent until then: the copy is good if so, and
/// to be thrown away if not.
#[must_use]
pub fn still_lent(word: &AtomicU64, generation: u64) -> bool {
    if !mutated(Mutant::LookWithoutFence) {
        fence(Ordering::Acquire);
    }
    word.load(Ordering::Relaxed) == generation
}

/// Says that what was lent is so no longer: `generation` is another one. Before the sender is told.
pub fn revoke(word: &AtomicU64, generation: u64) {
    word.store(generation, Ordering::Relaxed);
    fence(Ordering::SeqCst);
}

/// Makes the news that a buffer is free come before what is written to it next.
pub fn before_reuse() {
    fence(Ordering::SeqCst);
}
