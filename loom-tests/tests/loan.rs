//! Lent payloads: the one end of a loan, its completion, and what a reader makes of bytes that their
//! sender may write again.

use std::sync::Arc;
use std::sync::atomic::Ordering as StdOrdering;
use std::task::{Wake, Waker};

use bus_core_modelled::{CompletedRange, CompletionQueue, Lease, lease};
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;

use crate::given::explore;

/// A waker that says that it was called.
struct Called(AtomicBool);

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// Given a lender that looks for completions and goes to sleep, when the last recipient lets go in
/// that moment, then the lender sees the completion or is woken for it.
#[test]
fn a_completion_that_comes_while_its_reader_goes_to_sleep_is_seen() {
    explore(|| {
        let queue = Arc::new(CompletionQueue::new());
        let letting_go = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.complete(7, false))
        };
        let called = Arc::new(Called(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&called));
        let Some(range) = queue.read(&waker) else {
            letting_go.join().unwrap();
            assert!(called.0.load(Ordering::Acquire), "asleep beside a completion");
            assert_eq!(queue.read(&waker), Some(CompletedRange::one(7, false)));
            return;
        };
        assert_eq!(range, CompletedRange::one(7, false));
        letting_go.join().unwrap();
    });
}

/// Given a lender that dies, when the last recipient lets go, then nobody is woken for it and nothing
/// is left behind.
#[test]
fn a_completion_for_a_lender_that_is_gone_is_nobodys() {
    explore(|| {
        let queue = Arc::new(CompletionQueue::new());
        let called = Arc::new(Called(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&called));
        assert_eq!(queue.read(&waker), None);
        let letting_go = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.complete(7, true))
        };
        queue.close();
        letting_go.join().unwrap();
        drop(waker);
        // Either it was woken before it died, or never.
        let _ = called.0.load(Ordering::Acquire);
        assert_eq!(Arc::strong_count(&called), 1, "the queue keeps no waker");
    });
}

/// Given a loan, when its last reader lets go while its time is over and another reader comes, then it
/// ends once, and the newcomer is told of the end or was not let in.
#[test]
fn a_loan_ends_once_and_whoever_was_let_in_is_told() {
    explore(|| {
        let loan = Arc::new(Lease::<u8>::new());
        let ended = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let ending = {
            let (loan, ended) = (Arc::clone(&loan), Arc::clone(&ended));
            thread::spawn(move || {
                let told = loan.end();
                ended.fetch_add(usize::from(told.is_some()), StdOrdering::Relaxed);
                told.unwrap_or_default()
            })
        };
        let coming = {
            let loan = Arc::clone(&loan);
            thread::spawn(move || loan.enter(1).is_ok())
        };
        let mut told = loan.end();
        ended.fetch_add(usize::from(told.is_some()), StdOrdering::Relaxed);
        let mut all = told.take().unwrap_or_default();
        all.extend(ending.join().unwrap());
        let let_in = coming.join().unwrap();
        assert_eq!(ended.load(StdOrdering::Relaxed), 1, "one end");
        assert_eq!(all.contains(&1), let_in, "whoever reads is told, and nobody else");
    });
}

/// Given a reader that copies lent bytes, when the loan ends and the sender writes the buffer again,
/// then a copy that has the new bytes is not taken for what was sent.
#[test]
fn a_copy_with_a_byte_of_the_next_payload_is_thrown_away() {
    explore(|| {
        let memory = Arc::new((AtomicU64::new(1), AtomicU64::new(0)));
        let over = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                lease::revoke(&memory.1, 1);
                lease::before_reuse();
                memory.0.store(2, Ordering::Relaxed);
            })
        };
        let copy = memory.0.load(Ordering::Relaxed);
        if lease::still_lent(&memory.1, 0) {
            assert_eq!(copy, 1, "the next payload's bytes");
        }
        over.join().unwrap();
    });
}
