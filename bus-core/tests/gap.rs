//! What a drop-when-full member is told of its losses when no message of the group comes (G7).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use bus_core::{Bus, Credentials, Delivery, Destination, JoinOptions, Limits, MemberFlags};

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Given a transport that has drained all and whose application takes nothing,
/// when more is dropped, then the reader sleeps through it and is told once all is taken.
#[test]
fn g7_losses_of_one_who_takes_nothing_are_told_as_one_gap() {
    let limits = Limits { queue_messages: 2, ..Limits::default() };
    let bus = Bus::new(limits, 7).unwrap();
    let endpoint = || bus.open_endpoint(Credentials { uid: 1, pid: 1 }).unwrap();
    let (member, sender) = (endpoint(), endpoint());
    let options = JoinOptions::create().with(MemberFlags::DROP_WHEN_FULL);
    let group = member.join(&"group".parse().unwrap(), options).unwrap().group;
    let mut lane = sender.lane().unwrap();
    let mut send = || lane.try_send(Destination::Group(group), "four").unwrap();
    let mut reader = member.receiver().unwrap();
    let wakes = Arc::new(Count::default());

    send();
    send();
    while reader.drain().is_some() {}
    assert!(reader.sleep(Waker::from(Arc::clone(&wakes))));
    let dropped = [send(), send(), send()];
    assert!(dropped.iter().all(|receipt| receipt.dropped == 1));
    assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "there is nothing to read yet");
    reader.release(1, 4).unwrap();
    assert!(!reader.has_lone_gap());
    reader.release(1, 4).unwrap();
    assert!(reader.has_lone_gap());
    let Some(Delivery::Gap { gap, .. }) = reader.drain() else { panic!("no gap") };
    assert_eq!(gap.count, 3);
    assert_eq!((gap.first, gap.last), (dropped[0].sequence, dropped[2].sequence));
    assert!(reader.drain().is_none());
    assert!(!reader.has_lone_gap());
}
