//! What is lent to a user's connections adds up, whoever charges and gives back at the same time
//! (G8, G10).

use bus_core_modelled::{Account, Ledger, Limits, Process, Resource};
use loom::thread;

use crate::given::explore;

/// Two connections of two programs, of a user who may have so many names.
fn two(names: u64, connections: u64) -> (Ledger, Account, Account) {
    let limits = Limits { user_connections: connections, user_names: names, ..Limits::default() };
    let ledger = Ledger::new(&limits);
    let one = ledger.open(1, 1, Process::Pid(1));
    let other = ledger.open(1, 2, Process::Pid(2));
    (ledger, one, other)
}

fn held(account: &Account) -> u64 {
    account.held().get(Resource::Names)
}

/// Given one name to lend, when two connections ask for it at once, then at most one of them has it
/// at a time.
#[test]
fn g8_what_is_lent_is_lent_once() {
    explore(|| {
        let (_ledger, one, other) = two(1, 64);
        let asks = thread::spawn(move || other.charge(Resource::Names, 1).ok());
        let got = one.charge(Resource::Names, 1).ok();
        let others = asks.join().unwrap();
        assert!(got.is_none() || others.is_none());
        drop((got, others));
        assert!(one.charge(Resource::Names, 1).is_ok(), "it was given back");
    });
}

/// Given a connection that has the one name there is, when it gives it back while another one asks,
/// then who gets it finds that nobody has it.
#[test]
fn g8_what_is_given_back_is_not_held_any_more() {
    explore(|| {
        let (_ledger, one, other) = two(1, 64);
        let charge = one.charge(Resource::Names, 1).unwrap();
        let gives = thread::spawn({
            let one = one.clone();
            move || {
                drop(charge);
                one
            }
        });
        if other.charge(Resource::Names, 1).is_ok() {
            assert_eq!(held(&one), 0);
        }
        gives.join().unwrap();
    });
}

/// Given a connection that is assured one name, when two of its threads charge and give back at
/// once, then nothing is lent in the end, and all that can be lent can be had.
#[test]
fn g8_one_connection_charged_from_two_threads_adds_up() {
    explore(|| {
        let (_ledger, one, other) = two(4, 2);
        let charges = thread::spawn({
            let one = one.clone();
            move || drop(one.charge(Resource::Names, 1))
        });
        drop(one.charge(Resource::Names, 1));
        charges.join().unwrap();
        assert_eq!(held(&one), 0);
        // One that is assured and one of two that are lent.
        let both = (one.charge(Resource::Names, 2), other.charge(Resource::Names, 2));
        assert!(both.0.is_ok() && both.1.is_ok());
        drop(both);
        assert_eq!((held(&one), held(&other)), (0, 0));
    });
}
