//! Subjects that are alike, kept once for all their connections.
//!
//! On a desktop a few hundred connections are one user's, with the same groups and label. Nothing
//! changes a subject once its connection has a thread, so that one may stand for another.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::Subject;

/// The subjects of the last few who were different.
#[derive(Debug, Default)]
pub(crate) struct Subjects(Mutex<VecDeque<Arc<Subject>>>);

impl Subjects {
    /// The one that is the same, if it is known; else this one.
    pub(crate) fn share(&self, subject: Subject) -> Arc<Subject> {
        // What it holds is whole at any time.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.iter().find(|known| ***known == subject) {
            return Arc::clone(same);
        }
        let subject = Arc::new(subject);
        known.truncate(MOST_KNOWN - 1);
        known.push_front(Arc::clone(&subject));
        subject
    }
}

/// Subjects that are looked at for one that is the same.
const MOST_KNOWN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(uid: u32, label: &str) -> Subject {
        Subject { uid, label: Some(label.to_owned()), ..Subject::default() }
    }

    #[test]
    fn who_is_alike_shares_and_who_is_not_does_not() {
        let subjects = Subjects::default();
        let first = subjects.share(subject(1, "a"));
        assert!(Arc::ptr_eq(&first, &subjects.share(subject(1, "a"))));
        for other in [subject(2, "a"), subject(1, "b")] {
            assert_eq!(*subjects.share(other.clone()), other);
        }
        for uid in 10..100 {
            assert_eq!(subjects.share(subject(uid, "a")).uid, uid);
        }
        assert_eq!(*subjects.share(subject(1, "a")), *first, "forgotten, and still right");
        assert_eq!(subjects.0.lock().unwrap().len(), MOST_KNOWN);
    }
}
