//! A change of owner against messages, waiting sends and watchers.

use bus_core::{Destination, JoinOptions, NameFlags, SendError};

use crate::given::{NONE, Party, bus, name};

const ALLOW: NameFlags = NameFlags::ALLOW_REPLACEMENT;
const REPLACE: NameFlags = NameFlags::REPLACE_EXISTING;

#[test]
fn g4_old_and_new_owner_agree_where_the_name_changed_hands() {
    let bus = bus(8);
    let (mut one, mut two, mut sender) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let id = one.owns("a", ALLOW);
    let first = sender.send(id, "first");
    let claimed = two.own("a", REPLACE).unwrap();
    let second = sender.send(id, "second");
    assert!(first.sequence < claimed.sequence && claimed.sequence < second.sequence);
    assert_eq!(one.take_all(), ["first".to_owned(), format!("-a by {}, waits", two.id())]);
    assert_eq!(two.take_all(), ["second"]);
    drop(two);
    sender.send(id, "third");
    assert_eq!(one.take_all(), ["+a", "third"]);
}

/// A message to a name has room or not as its owner has; who owns it next starts afresh.
#[test]
fn g5_a_change_of_owner_re_routes_those_who_wait() {
    let bus = bus(1);
    let (mut one, mut two) = (Party::on(&bus), Party::on(&bus));
    let (mut first, mut second) = (Party::on(&bus), Party::on(&bus));
    let id = one.owns("a", NONE);
    two.owns("a", NONE);
    first.send(id, "fills");
    let wakes = first.wait(id, "waits");
    let later = second.wait(id, "waits longer");
    one.endpoint.release_name(id);
    assert_eq!(wakes.count(), 1);
    assert_eq!(first.outcome().unwrap().recipients, 1);
    assert_eq!(two.take_all(), ["+a", "waits", "waits longer"], "each as there is room");
    assert_eq!(later.count(), 1);
    assert_eq!(one.take_all(), ["fills"]);
}

#[test]
fn g5_those_who_wait_for_a_name_that_nobody_owns_any_more_are_told() {
    let bus = bus(1);
    let (one, mut sender, mut watcher) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let id = one.owns("a", NONE);
    let watched = watcher.endpoint.watch_name(&name("a")).unwrap();
    assert_eq!((watched.name, watched.owners[0].endpoint), (id, one.id()));
    sender.send(id, "fills");
    let wakes = sender.wait(id, "waits");
    let was = one.id();
    drop(one);
    assert_eq!(wakes.count(), 1);
    assert_eq!(sender.outcome(), Err(SendError::NoSuchName(id)));
    assert_eq!(sender.try_send(id, "x"), Err(SendError::NoSuchName(id)), "though it is watched");
    assert_eq!(watcher.take_all(), [format!("a: {was} -> nobody")]);
    // Being watched it keeps its id.
    let next = Party::on(&bus);
    assert_eq!(next.owns("a", NONE), id);
    assert_eq!(watcher.take_all(), [format!("a: nobody -> {}", next.id())]);
    assert_eq!(sender.send(id, "x").recipients, 1);
}

#[test]
fn g6_a_name_is_writable_when_its_owner_has_room() {
    let bus = bus(1);
    let (mut one, mut two, mut sender) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let id = one.owns("a", NONE);
    two.owns("a", NONE);
    sender.send(id, "fills");
    let wakes = std::sync::Arc::new(crate::given::Wakes::default());
    let waker = || std::task::Waker::from(std::sync::Arc::clone(&wakes));
    let to = Destination::Name(id);
    let mut watch = sender.endpoint.watch_writable(to, waker()).unwrap().expect("it is full");
    assert_eq!(watch.outcome(), None);
    one.take_all();
    assert_eq!((wakes.count(), watch.outcome()), (1, Some(Ok(()))));
    drop(watch);
    sender.send(id, "fills again");
    let mut watch = sender.endpoint.watch_writable(to, waker()).unwrap().expect("it is full");
    one.endpoint.release_name(id);
    assert_eq!((wakes.count(), watch.outcome()), (2, Some(Ok(()))), "the next owner has room");
    assert_eq!(two.take_all(), ["+a"]);
}

#[test]
fn g4_watchers_are_told_at_the_place_of_the_change() {
    let bus = bus(8);
    let (one, two, mut watcher) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let mut sender = Party::on(&bus);
    let group = watcher.endpoint.join(&name("g"), JoinOptions::create()).unwrap().group;
    let to = Destination::Group(group);
    let watched = watcher.endpoint.watch_name(&name("a")).unwrap();
    assert_eq!(watched.owners, []);
    sender.lane.try_send(to, "before").unwrap();
    let id = one.owns("a", ALLOW);
    two.owns("a", NONE);
    sender.lane.try_send(to, "between").unwrap();
    one.endpoint.release_name(id);
    sender.lane.try_send(to, "after").unwrap();
    assert_eq!(
        watcher.take_all(),
        [
            "before".to_owned(),
            format!("a: nobody -> {}", one.id()),
            "between".to_owned(),
            format!("a: {} -> {}", one.id(), two.id()),
            "after".to_owned(),
        ],
        "and nothing of who only waits"
    );
    watcher.endpoint.unwatch_name(id).unwrap();
    two.endpoint.release_name(id);
    assert_eq!(watcher.take_all(), Vec::<String>::new());
}

#[test]
fn g4_a_watcher_without_room_is_told_that_it_missed_changes() {
    let bus = bus(1);
    let (one, mut watcher) = (Party::on(&bus), Party::on(&bus));
    watcher.endpoint.watch_name(&name("a")).unwrap();
    let id = one.owns("a", NONE);
    one.endpoint.release_name(id);
    one.owns("a", NONE);
    assert_eq!(watcher.take_all(), [format!("a: nobody -> {}", one.id()), "lost 2".to_owned()]);
    one.endpoint.release_name(id);
    assert_eq!(watcher.take_all(), [format!("a: {} -> nobody", one.id())]);
}

#[test]
fn a_message_says_which_name_it_was_sent_to() {
    let bus = bus(8);
    let (mut one, mut sender) = (Party::on(&bus), Party::on(&bus));
    let (first, second) = (one.owns("a", NONE), one.owns("b", NONE));
    sender.send(first, "x");
    sender.send(second, "y");
    let mut to = || match one.reader.try_receive() {
        Ok(bus_core::Delivery::Message { message, .. }) => message.destination(),
        other => panic!("{other:?}"),
    };
    assert_eq!([to(), to()], [Destination::Name(first), Destination::Name(second)]);
}

#[test]
fn g9_a_closed_owner_is_told_nothing_and_its_queue_stays_readable() {
    let bus = bus(8);
    let (one, mut two, mut sender) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let id = one.owns("a", NONE);
    two.owns("a", NONE);
    sender.send(id, "x");
    let Party { endpoint, mut reader, .. } = one;
    drop(endpoint);
    sender.send(id, "y");
    let left: Vec<_> = std::iter::from_fn(|| reader.try_receive().ok()).collect();
    assert_eq!(left.len(), 1);
    assert_eq!(two.take_all(), ["+a", "y"]);
}
