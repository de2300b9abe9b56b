//! What one user's messages take of another user's queue (G5, G10).

use std::task::Waker;

use bus_core_modelled::{Bus, Credentials, Endpoint, SendError, Submitted};
use loom::thread;

use crate::given::{bus, endpoint, explore, lane, reader, sent, to};

/// An endpoint of a user who is not the one of [`endpoint`].
fn stranger(bus: &Bus) -> Endpoint {
    bus.open_endpoint(Credentials { uid: 1, pid: 1 }).expect("few endpoints")
}

/// Given a send that goes to wait for its user's share of a queue, when the reader takes what fills
/// the share at the same time, then the send is committed.
#[test]
fn g5_a_share_freed_while_a_send_goes_to_wait_is_not_lost() {
    explore(|| {
        let bus = bus(2);
        let (own, stranger) = (endpoint(&bus), stranger(&bus));
        let (mut owns, mut strangers) = (reader(&own), lane(&stranger));
        sent(&mut strangers, to(&own), "half");
        let reading = thread::spawn(move || {
            owns.try_receive().expect("it was sent");
            owns
        });
        let submitted = strangers.submit(to(&own), "waits", Waker::noop().clone()).unwrap();
        let owns = reading.join().unwrap();
        if submitted == Submitted::Waiting {
            strangers.poll_outcome().expect("there is room, and nobody else would look").unwrap();
        }
        drop((own, owns));
    });
}

/// Given two endpoints of one user that send to another user's endpoint at once, when half of the
/// queue is one place, then one of them gets it.
#[test]
fn g10_two_sends_of_one_user_take_half_of_a_queue_together() {
    explore(|| {
        let bus = bus(2);
        let (own, one, other) = (endpoint(&bus), stranger(&bus), stranger(&bus));
        let there = to(&own);
        let mut others = lane(&other);
        let sending = thread::spawn(move || others.try_send(there, "x").is_ok());
        let mut ones = lane(&one);
        let first = ones.try_send(there, "y");
        let second = sending.join().unwrap();
        assert_ne!(first.is_ok(), second, "{first:?}");
        if let Err(error) = first {
            assert!(matches!(error, SendError::WouldBlock { .. }), "{error}");
        }
        sent(&mut lane(&own), there, "there is room for its own user's");
    });
}
