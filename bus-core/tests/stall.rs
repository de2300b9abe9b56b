//! Members that do not read are put out of the groups that they hold up (G8).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Waker;
use std::time::Duration;

use bus_core::{
    Bus, CreateError, Credentials, Delivery, Destination, Endpoint, Eviction, EvictionCause,
    GroupId, GroupOptions, JoinError, JoinOptions, Lane, Limits, MemberFlags, Receiver, SendError,
    Submitted,
};

const CAPACITY: u32 = 4;
const STALL: Duration = Duration::from_secs(10);

/// A bus whose time the test moves.
struct World {
    bus: Bus,
    now: Duration,
    processes: AtomicU32,
}

impl World {
    fn new() -> Self {
        Self::with(Limits { queue_messages: CAPACITY, stall: STALL, ..Limits::default() })
    }

    fn with(limits: Limits) -> Self {
        let world = Self {
            bus: Bus::new(limits, 1).unwrap(),
            now: Duration::from_secs(1_000_000),
            processes: AtomicU32::new(1),
        };
        world.bus.tick(world.now);
        world
    }

    fn endpoint(&self) -> Endpoint {
        let pid = self.processes.fetch_add(1, Ordering::Relaxed);
        self.bus.open_endpoint(Credentials { uid: 1000, pid }).unwrap()
    }

    /// Lets time pass in steps of 100 ms, as the broker does while sends wait.
    fn pass(&mut self, time: Duration) -> Vec<Eviction> {
        let end = self.now + time;
        let mut evicted = Vec::new();
        while self.now < end {
            self.now += Duration::from_millis(100);
            evicted.extend(self.bus.tick(self.now));
        }
        evicted
    }
}

fn join(endpoint: &Endpoint, group: &str) -> GroupId {
    endpoint.join(&group.parse().unwrap(), JoinOptions::create()).unwrap().group
}

/// Fills the destination until a send waits.
fn fill(lane: &mut Lane, to: Destination) {
    for _ in 0..=CAPACITY {
        if lane.submit(to, "x", Waker::noop().clone()).unwrap() == Submitted::Waiting {
            return;
        }
    }
    panic!("nothing had to wait");
}

/// Takes everything, and counts the messages.
fn take_all(reader: &mut Receiver) -> usize {
    std::iter::from_fn(|| reader.try_receive().ok())
        .filter(|delivery| matches!(delivery, Delivery::Message { .. }))
        .count()
}

#[test]
fn g8_a_stuck_member_is_evicted_told_and_the_senders_go_on() {
    let mut world = World::new();
    let (stuck, healthy, sender) = (world.endpoint(), world.endpoint(), world.endpoint());
    let group = join(&stuck, "g");
    join(&healthy, "g");
    let (mut stuck_reader, mut reader) = (stuck.receiver().unwrap(), healthy.receiver().unwrap());
    let mut lane = sender.lane().unwrap();
    fill(&mut lane, Destination::Group(group));
    take_all(&mut reader);

    assert_eq!(world.pass(STALL - Duration::from_secs(1)), [], "not before the limit");
    assert_eq!(lane.poll_outcome(), None);
    let evicted = world.pass(Duration::from_secs(2));
    assert_eq!(evicted.len(), 1);
    assert_eq!((evicted[0].endpoint, evicted[0].group), (stuck.id(), group));
    assert!(evicted[0].stalled >= STALL);

    let receipt = lane.poll_outcome().expect("the sender goes on").unwrap();
    assert_eq!(receipt.recipients, 1, "the healthy member alone");
    assert_eq!(take_all(&mut reader), 1);

    // What was queued stays readable, and the end stands behind it.
    for _ in 0..CAPACITY {
        let Ok(Delivery::Message { message, .. }) = stuck_reader.try_receive() else { panic!() };
        assert!(message.sequence() < evicted[0].sequence);
    }
    let Ok(Delivery::Evicted(told)) = stuck_reader.try_receive() else { panic!() };
    assert_eq!(*told, evicted[0]);
    assert!(receipt.sequence > told.sequence);
}

#[test]
fn g8_the_evicted_come_back_with_drop_when_full_until_a_doubling_back_off_ends() {
    let mut world = World::new();
    let (stuck, sender) = (world.endpoint(), world.endpoint());
    let name = "g".parse().unwrap();
    let mut reader = stuck.receiver().unwrap();
    let mut lane = sender.lane().unwrap();
    let evict = |world: &mut World, reader: &mut Receiver, lane: &mut Lane| {
        let group = stuck.join(&name, JoinOptions::create()).unwrap().group;
        fill(lane, Destination::Group(group));
        let evicted = world.pass(STALL + Duration::from_millis(200));
        assert_eq!(evicted.len(), 1);
        lane.poll_outcome();
        take_all(reader);
        evicted[0].back_off
    };
    assert_eq!(evict(&mut world, &mut reader, &mut lane), STALL);
    let refused = stuck.join(&name, JoinOptions::create());
    assert!(matches!(refused, Err(JoinError::BackOff(_, left)) if left <= STALL), "{refused:?}");

    let dropping = JoinOptions::create().with(MemberFlags::DROP_WHEN_FULL);
    let group = stuck.join(&name, dropping).unwrap().group;
    stuck.leave(group).unwrap();

    world.pass(STALL);
    assert_eq!(evict(&mut world, &mut reader, &mut lane), STALL * 2, "it doubles");

    // Another process of the same user is not concerned.
    let other = world.endpoint();
    assert!(other.join(&name, JoinOptions::create()).is_ok());
}

#[test]
fn g8_a_reader_of_one_message_in_9_9_s_is_stalled_and_an_honest_flooded_one_is_not() {
    for (case, interval, honest) in [
        ("one message in 9.9 s", Duration::from_millis(9_900), false),
        ("a capacity within the limit", Duration::from_millis(2_000), true),
    ] {
        let mut world = World::new();
        let (member, sender) = (world.endpoint(), world.endpoint());
        let to = Destination::Group(join(&member, "g"));
        let mut reader = member.receiver().unwrap();
        let mut lane = sender.lane().unwrap();
        fill(&mut lane, to);
        let mut evicted = Vec::new();
        for _ in 0..12 {
            evicted.extend(world.pass(interval));
            let _ = reader.try_receive();
            // The flood: a send waits at every moment.
            if lane.poll_outcome().is_some() && evicted.is_empty() {
                fill(&mut lane, to);
            }
        }
        assert_eq!(evicted.is_empty(), honest, "{case}");
    }
}

#[test]
fn g8_64_stuck_members_cost_one_stall_limit_together() {
    let mut world = World::new();
    let stuck: Vec<Endpoint> = (0..64).map(|_| world.endpoint()).collect();
    let sender = world.endpoint();
    let groups: Vec<GroupId> = stuck.iter().map(|endpoint| join(endpoint, "g")).collect();
    let mut lane = sender.lane().unwrap();
    fill(&mut lane, Destination::Group(groups[0]));
    let evicted = world.pass(STALL + Duration::from_millis(200));
    assert_eq!(evicted.len(), 64);
    // Evictions move it from queue to queue; it may keep places on the way.
    assert!(lane.poll_outcome().unwrap().is_ok());
}

#[test]
fn g8_members_that_wait_on_each_other_are_evicted_one_at_a_time() {
    let mut world = World::new();
    let (a, b) = (world.endpoint(), world.endpoint());
    let to = Destination::Group(join(&a, "g"));
    join(&b, "g");
    let (mut from_a, mut from_b) = (a.lane().unwrap(), b.lane().unwrap());
    fill(&mut from_a, to);
    fill(&mut from_b, to);
    let evicted = world.pass(STALL + Duration::from_secs(1));
    assert_eq!(evicted.len(), 1, "the other one can go on now");
    let (survivor, gone) = if evicted[0].endpoint == b.id() {
        (&mut from_a, &mut from_b)
    } else {
        (&mut from_b, &mut from_a)
    };
    assert_eq!(survivor.poll_outcome().unwrap().unwrap().recipients, 0);
    assert_eq!(gone.poll_outcome(), None, "it still waits for the survivor, which may read now");
}

#[test]
fn g8_a_direct_send_to_a_stalled_endpoint_ends() {
    let mut world = World::new();
    let (stuck, sender) = (world.endpoint(), world.endpoint());
    let mut lane = sender.lane().unwrap();
    fill(&mut lane, Destination::Endpoint(stuck.id()));
    assert_eq!(world.pass(STALL + Duration::from_secs(1)), []);
    assert_eq!(lane.poll_outcome(), Some(Err(SendError::RecipientStalled(stuck.id()))));
}

#[test]
fn g8_the_clock_runs_only_while_the_bus_does() {
    let mut world = World::new();
    let (stuck, sender) = (world.endpoint(), world.endpoint());
    let group = join(&stuck, "g");
    let mut lane = sender.lane().unwrap();
    fill(&mut lane, Destination::Group(group));
    world.pass(Duration::from_secs(1));
    // The machine sleeps for an hour.
    world.now += Duration::from_secs(3_600);
    assert_eq!(world.bus.tick(world.now), []);
    assert_eq!(world.pass(Duration::from_secs(7)), []);
    assert_eq!(world.pass(Duration::from_secs(2)).len(), 1);
}

#[test]
fn g8_ends_that_are_not_read_keep_their_places_taken() {
    let limits = Limits { queue_messages: CAPACITY, memberships: 2, ..Limits::default() };
    let bus = Bus::new(limits, 1).unwrap();
    let mut now = Duration::from_secs(1);
    bus.tick(now);
    let stuck = bus.open_endpoint(Credentials { uid: 1, pid: 1 }).unwrap();
    let sender = bus.open_endpoint(Credentials { uid: 1, pid: 2 }).unwrap();
    let mut lane = sender.lane().unwrap();
    for group in ["a", "b"] {
        fill(&mut lane, Destination::Group(join(&stuck, group)));
        for _ in 0..12 {
            now += Duration::from_secs(1);
            bus.tick(now);
        }
        assert!(lane.poll_outcome().unwrap().is_ok(), "evicted from {group}");
    }
    let refused = stuck.join(&"c".parse().unwrap(), JoinOptions::create());
    assert!(matches!(refused, Err(JoinError::Limit(_))), "{refused:?}");
    take_all(&mut stuck.receiver().unwrap());
    assert!(stuck.join(&"c".parse().unwrap(), JoinOptions::create()).is_ok());
}

#[test]
fn g8_a_reader_of_large_messages_that_takes_a_queue_full_of_bytes_is_not_stalled() {
    for (bytes, evicted) in [(10, false), (2, true)] {
        let mut world = World::with(Limits {
            queue_messages: 100,
            queue_bytes: 10,
            stall: STALL,
            ..Limits::default()
        });
        let (slow, sender) = (world.endpoint(), world.endpoint());
        let group = join(&slow, "g");
        let mut reader = slow.receiver().unwrap();
        let mut lanes: Vec<Lane> = (0..8).map(|_| sender.lane().unwrap()).collect();
        for lane in &mut lanes {
            let to = Destination::Group(group);
            while lane.submit(to, "0123456789", Waker::noop().clone()).unwrap()
                != Submitted::Waiting
            {}
        }
        let mut found = Vec::new();
        for _ in 0..4 {
            found.extend(world.pass(Duration::from_secs(3)));
            // The application takes a message, or a part of what it has been given.
            if let Some(Delivery::Message { .. }) = reader.drain() {
                reader.release(u64::from(bytes == 10), bytes).unwrap();
            }
        }
        assert_eq!(!found.is_empty(), evicted, "{bytes} bytes in 3 s");
    }
}

#[test]
fn g8_a_member_may_leave_instead_of_making_anybody_wait() {
    let mut world = World::new();
    let (keen, lazy, sender) = (world.endpoint(), world.endpoint(), world.endpoint());
    let to = Destination::Group(join(&keen, "g"));
    let leave = || JoinOptions { flags: MemberFlags::LEAVE_WHEN_FULL, ..JoinOptions::create() };
    lazy.join(&"g".parse().unwrap(), leave()).unwrap();
    let (mut of_keen, mut of_lazy) = (keen.receiver().unwrap(), lazy.receiver().unwrap());
    let mut lane = sender.lane().unwrap();
    for _ in 0..CAPACITY {
        assert_eq!(lane.try_send(to, "both").unwrap().recipients, 2);
        assert_eq!(take_all(&mut of_keen), 1);
    }
    let receipt = lane.try_send(to, "without it").unwrap();
    assert_eq!((receipt.recipients, receipt.dropped), (1, 0));
    let ended = loop {
        match of_lazy.try_receive().unwrap() {
            Delivery::Message { message, .. } => assert_eq!(&**message.payload(), b"both"),
            Delivery::Evicted(eviction) => break eviction,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((&ended.cause, ended.back_off), (&EvictionCause::Full, Duration::ZERO));
    assert!(ended.sequence < receipt.sequence);
    // It may come back as it was. While another one holds the sender up, it leaves all the same.
    lazy.join(&"g".parse().unwrap(), leave()).unwrap();
    fill(&mut lane, to);
    let mut direct = sender.lane().unwrap();
    while direct.try_send(Destination::Endpoint(lazy.id()), "fills it").is_ok() {}
    let evicted = world.pass(Duration::from_secs(1));
    assert_eq!(evicted.iter().map(|e| &e.cause).collect::<Vec<_>>(), [&EvictionCause::Full]);
    assert_eq!(lane.poll_outcome(), None, "the other one is given its time");
}

#[test]
fn g8_a_group_may_have_a_stall_limit_of_its_own() {
    let mut world = World::new();
    let (stuck, maker) = (world.endpoint(), world.endpoint());
    let hasty = Duration::from_secs(1);
    let create = |name: &str, stall| {
        let options = GroupOptions { stall: Some(stall), ..GroupOptions::default() };
        maker.create_group_with(&name.parse().unwrap(), options)
    };
    let (quick, _) = create("quick", hasty).unwrap();
    let (patient, _) = create("patient", 2 * STALL).unwrap();
    let plain = join(&stuck, "plain");
    join(&stuck, "quick");
    join(&stuck, "patient");
    let mut lanes: Vec<_> = [quick, plain, patient]
        .map(|group| {
            let mut lane = maker.lane().unwrap();
            fill(&mut lane, Destination::Group(group));
            lane
        })
        .into();
    let groups = |evicted: Vec<Eviction>| evicted.iter().map(|e| e.group).collect::<Vec<_>>();
    assert_eq!(groups(world.pass(hasty + Duration::from_millis(200))), [quick]);
    assert_eq!(groups(world.pass(STALL - hasty)), [plain]);
    assert_eq!(groups(world.pass(STALL)), [patient]);
    assert!(lanes.iter_mut().all(|lane| lane.poll_outcome().is_some_and(|sent| sent.is_ok())));
    for stall in [Duration::from_millis(99), Duration::from_millis(600_001), Duration::MAX] {
        assert_eq!(create("never", stall), Err(CreateError::Stall(stall)));
    }
}

#[test]
fn g8_the_limit_can_be_switched_off_within_a_process() {
    let off = Limits { queue_messages: CAPACITY, stall: Duration::MAX, ..Limits::default() };
    let mut world = World::with(off);
    let (stuck, sender) = (world.endpoint(), world.endpoint());
    let to = Destination::Group(join(&stuck, "g"));
    let mut lane = sender.lane().unwrap();
    fill(&mut lane, to);
    assert_eq!(world.pass(Duration::from_secs(700)), []);
    assert_eq!(lane.poll_outcome(), None);
}
