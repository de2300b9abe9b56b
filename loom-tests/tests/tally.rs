//! What is counted beside a commit: cells with one writer at a time, and no read-modify-write.

use std::sync::Arc;

use bus_core_modelled::modelled::counted;
use loom::thread;

use crate::given::explore;

/// Given two commits to one group that hold different locks, when both are counted at once, then
/// neither count is lost: each lock has a cell of its own.
#[test]
fn commits_that_share_no_lock_are_both_counted() {
    explore(|| {
        let counted = Arc::new(counted());
        let other = Arc::clone(&counted);
        let counting = thread::spawn(move || other.commit(&[1, 3]));
        counted.commit(&[2]);
        counting.join().unwrap();
        assert_eq!(counted.commits(), 2);
    });
}
