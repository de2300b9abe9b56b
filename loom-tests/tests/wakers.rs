//! Wakers are called, and dropped, when no lock is held: one may do with the bus what it likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use bus_core_modelled::{Bus, Interest, JoinOptions, Lane, Limits, SendError, Submitted};

use crate::given::{bus, bus_with, endpoints, explore, group, id_of, lane, reader, sent, to};

/// A waker that asks the bus what only all of its locks together can tell.
struct Curious {
    bus: Bus,
    called: AtomicU32,
}

impl Curious {
    fn about(bus: &Bus) -> Arc<Self> {
        Arc::new(Self { bus: bus.clone(), called: AtomicU32::new(0) })
    }

    fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    #[track_caller]
    fn assert_called(&self) {
        assert_eq!(self.called.swap(0, Ordering::Relaxed), 1);
    }
}

impl Wake for Curious {
    fn wake(self: Arc<Self>) {
        let _stats = self.bus.stats();
        self.called.fetch_add(1, Ordering::Relaxed);
    }
}

/// Given a reader that sleeps, when a message comes, a watched group changes in each way that there
/// is, or the endpoint ends, then its waker is called once, without a lock.
#[test]
fn readers_are_woken_under_no_lock() {
    explore(|| {
        let bus = bus(16);
        let [alice, bob, carol] = endpoints(&bus);
        let curious = Curious::about(&bus);
        let mut at_alice = reader(&alice);
        let mut sleeps = || {
            while at_alice.try_receive().is_ok() {}
            assert!(at_alice.sleep(curious.waker()));
        };
        let name = "g".parse().unwrap();
        let watched = alice.watch_group(&name, Interest::Members, true).unwrap().group;
        sleeps();
        sent(&mut lane(&bob), to(&alice), "message");
        curious.assert_called();
        sleeps();
        bob.join(&name, JoinOptions::default()).unwrap();
        curious.assert_called();
        sleeps();
        bob.leave(watched).unwrap();
        curious.assert_called();
        carol.join(&name, JoinOptions::default()).unwrap();
        sleeps();
        drop(carol);
        curious.assert_called();
        sleeps();
        alice.shutdown_receive();
        curious.assert_called();
    });
}

/// Given sends that wait, when a reader makes room, a member leaves, time passes or an endpoint is
/// closed, then each waker is called once, without a lock. The same for a watch for writability.
#[test]
fn senders_are_woken_under_no_lock() {
    explore(|| {
        let bus = bus_with(Limits {
            queue_messages: 1,
            stall: Duration::from_millis(100),
            ..Limits::default()
        });
        let [alice, bob, carol] = endpoints(&bus);
        let curious = Curious::about(&bus);
        let only_alice = group("g", &[&alice]);
        let mut carols = lane(&carol);
        sent(&mut carols, to(&alice), "first");
        sent(&mut carols, to(&bob), "first");
        let wait = |lane: &mut Lane, to| {
            let submitted = lane.submit(to, "waits", curious.waker());
            assert_eq!(submitted, Ok(Submitted::Waiting));
        };

        wait(&mut carols, to(&alice));
        reader(&alice).try_receive().unwrap();
        curious.assert_called();
        assert!(carols.poll_outcome().unwrap().is_ok());

        wait(&mut carols, only_alice);
        alice.leave(id_of(only_alice)).unwrap();
        curious.assert_called();
        assert!(carols.poll_outcome().unwrap().is_ok(), "to nobody");

        wait(&mut carols, to(&bob));
        for millis in [0, 50, 150] {
            bus.tick(Duration::from_secs(1) + Duration::from_millis(millis));
        }
        curious.assert_called();
        let stalled = SendError::RecipientStalled(bob.id());
        assert_eq!(carols.poll_outcome(), Some(Err(stalled)));

        let watch = carol.watch_writable(to(&bob), curious.waker()).unwrap();
        reader(&bob).try_receive().unwrap();
        curious.assert_called();
        drop(watch);

        wait(&mut carols, to(&alice));
        let gone = SendError::NoSuchEndpoint(alice.id());
        drop(alice);
        curious.assert_called();
        assert_eq!(carols.poll_outcome(), Some(Err(gone)));
    });
}
