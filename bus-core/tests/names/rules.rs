//! Who may have a name, who waits for it, and what bounds there are.

use bus_core::{
    DataType, Description, DescriptionError, LimitExceeded, Limits, NameFlags, Operation, OwnError,
    OwnOptions, SendError,
};

use crate::given::{NONE, Party, bus, bus_with, name};

const ALLOW: NameFlags = NameFlags::ALLOW_REPLACEMENT;
const REPLACE: NameFlags = NameFlags::REPLACE_EXISTING;
const DONT: NameFlags = NameFlags::DO_NOT_QUEUE;
const SHARED: NameFlags = NameFlags::SHARED;

/// What comes of the second claim.
#[derive(Debug, PartialEq)]
enum Second {
    Owns,
    Waits,
    Taken,
    OtherKind,
}

#[test]
fn a_second_claim_goes_by_the_flags_of_both() {
    let rows = [
        ("it waits", NONE, NONE, Second::Waits),
        ("it does not want to wait", NONE, DONT, Second::Taken),
        ("replacement is refused to who asks", NONE, REPLACE, Second::Waits),
        ("and to who does not wait", NONE, REPLACE | DONT, Second::Taken),
        ("replacement is not asked for", ALLOW, NONE, Second::Waits),
        ("replacement is allowed and asked for", ALLOW, REPLACE, Second::Owns),
        ("the same by who does not wait", ALLOW, REPLACE | DONT, Second::Owns),
        ("both share", SHARED, SHARED, Second::Owns),
        ("the first shares", SHARED, NONE, Second::OtherKind),
        ("the second shares", NONE, SHARED, Second::OtherKind),
        ("sharing takes nothing over", ALLOW, SHARED | REPLACE, Second::OtherKind),
    ];
    for (case, first, second, expected) in rows {
        let bus = bus(8);
        let (one, two) = (Party::on(&bus), Party::on(&bus));
        assert_eq!(one.own("a", first).unwrap().position, 0, "{case}");
        let came = match two.own("a", second) {
            Ok(claimed) if claimed.position == 0 => Second::Owns,
            Ok(_) => Second::Waits,
            Err(OwnError::Taken(_, owner)) => {
                assert_eq!(owner, one.id(), "{case}");
                Second::Taken
            }
            Err(OwnError::OtherKind(_)) => Second::OtherKind,
            Err(error) => panic!("{case}: {error}"),
        };
        assert_eq!(came, expected, "{case}");
        let info = bus.find_name(&name("a")).unwrap();
        let owners: Vec<_> = info.owners.iter().map(|owner| owner.endpoint).collect();
        let owns = match (expected, second.contains(SHARED)) {
            (Second::Owns, true) => vec![one.id(), two.id()],
            (Second::Owns, false) => vec![two.id()],
            _ => vec![one.id()],
        };
        assert_eq!(owners, owns, "{case}");
    }
}

#[test]
fn those_who_wait_own_the_name_in_the_order_of_asking() {
    let bus = bus(8);
    let mut parties: Vec<Party> = (0..4).map(|_| Party::on(&bus)).collect();
    let positions: Vec<u32> =
        parties.iter().map(|party| party.own("a", NONE).unwrap().position).collect();
    assert_eq!(positions, [0, 1, 2, 3]);
    drop(parties.remove(0));
    assert_eq!(parties[0].take_all(), ["+a"]);
    let id = bus.find_name(&name("a")).unwrap().id;
    // Who waits may stop waiting; nobody is told.
    assert!(parties[1].endpoint.release_name(id).is_some());
    assert!(parties[0].endpoint.release_name(id).is_some());
    assert_eq!(parties[2].take_all(), ["+a"]);
    assert_eq!(parties[0].take_all(), Vec::<String>::new());
    drop(parties);
    assert_eq!(bus.find_name(&name("a")), None);
}

#[test]
fn who_is_replaced_waits_again_and_comes_first() {
    let bus = bus(8);
    let (mut one, two, mut three) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let id = one.owns("a", ALLOW);
    three.owns("a", NONE);
    assert_eq!(two.own("a", REPLACE).unwrap().position, 0);
    assert_eq!(one.take_all(), [format!("-a by {}, waits", two.id())]);
    two.endpoint.release_name(id);
    assert_eq!(one.take_all(), ["+a"]);
    assert_eq!(three.take_all(), Vec::<String>::new());
}

#[test]
fn who_is_replaced_and_does_not_wait_is_out() {
    let bus = bus(8);
    let (mut one, two) = (Party::on(&bus), Party::on(&bus));
    let id = one.owns("a", ALLOW | DONT);
    two.owns("a", REPLACE);
    assert_eq!(one.take_all(), [format!("-a by {}", two.id())]);
    assert_eq!(one.endpoint.release_name(id), None);
    drop(two);
    assert_eq!(bus.find_name(&name("a")), None);
}

#[test]
fn a_claim_made_again_changes_its_flags_and_keeps_its_description() {
    let bus = bus(8);
    let (one, two) = (Party::on(&bus), Party::on(&bus));
    let clock = Description::new("Tells the time.");
    let options = OwnOptions::default().describe(clock.clone());
    let first = one.endpoint.own_name(&name("a"), options).unwrap();
    let again = one.own("a", ALLOW).unwrap();
    assert_eq!((again.name, again.position), (first.name, 0));
    assert_eq!(bus.describe_name(&name("a")).as_deref(), Some(&clock));
    assert_eq!(two.own("a", REPLACE).unwrap().position, 0);
    assert_eq!(bus.describe_name(&name("a")), None, "it was the former owner's");
}

#[test]
fn ids_are_never_used_again() {
    let bus = bus(8);
    let mut one = Party::on(&bus);
    let first = one.owns("a", NONE);
    one.endpoint.release_name(first);
    let second = one.owns("a", NONE);
    assert_ne!(first, second);
    assert_eq!(one.try_send(first, "x"), Err(SendError::NoSuchName(first)));
    one.send(second, "y");
    assert_eq!(one.take_all(), ["y"]);
}

#[test]
fn g8_names_claims_and_descriptions_are_bounded() {
    let limits = Limits {
        names: 3,
        names_claimed: 2,
        name_claims: 2,
        description_bytes: 64,
        ..Limits::default()
    };
    let bus = bus_with(limits);
    let (one, two, three) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    let limit = |result: Result<_, OwnError>| match result {
        Err(OwnError::Limit(LimitExceeded { limit, .. })) => limit,
        other => panic!("{other:?}"),
    };
    one.owns("a", NONE);
    one.owns("b", NONE);
    assert_eq!(limit(one.own("c", NONE)), "names_claimed");
    two.owns("a", NONE);
    assert_eq!(limit(three.own("a", NONE)), "name_claims");
    two.owns("c", NONE);
    assert_eq!(limit(three.own("d", NONE)), "names");
    let long = OwnOptions::default().describe(Description::new("x".repeat(65)));
    assert_eq!(limit(one.endpoint.own_name(&name("a"), long)), "description_bytes");
    let fits = OwnOptions::default().describe(Description::new("x".repeat(64)));
    assert!(one.endpoint.own_name(&name("a"), fits).is_ok());
}

#[test]
fn a_description_that_is_not_whole_is_refused_by_name() {
    let bus = bus(8);
    let one = Party::on(&bus);
    let vague = Operation::new("now").reply(DataType::named("Time"));
    let vague = OwnOptions::default().describe(Description::new("").operation(vague));
    let refused = one.endpoint.own_name(&name("a"), vague).unwrap_err();
    let at = "the reply of operation \"now\"".to_owned();
    let offence = DescriptionError::NoSuchType { at, name: "Time".into() };
    assert_eq!(refused, OwnError::Description(offence));
    assert_eq!(bus.find_name(&name("a")), None, "a refused claim has changed nothing");
}

/// An owner that reads nothing is replaced again and again: what it has to be told is bounded, and
/// is all told.
#[test]
fn g8_notices_of_who_does_not_read_are_bounded() {
    let bus = bus_with(Limits { names_claimed: 4, queue_messages: 1, ..Limits::default() });
    let (mut lazy, other) = (Party::on(&bus), Party::on(&bus));
    let id = lazy.owns("a", ALLOW);
    let mut sender = Party::on(&bus);
    sender.send(id, "fills the queue");
    let mut rounds = 0;
    while other.own("a", REPLACE | DONT).is_ok() {
        rounds += 1;
        other.endpoint.release_name(id).unwrap();
        assert!(rounds < 100);
        let waits = bus.find_name(&name("a")).is_some();
        if !waits {
            break;
        }
    }
    let told = lazy.take_all();
    assert_eq!(told[0], "fills the queue");
    assert_eq!(told.iter().filter(|told| *told == "+a").count() + 1, rounds, "{told:?}");
    assert_eq!(told.last().unwrap(), &format!("-a by {}", other.id()), "it may not wait any more");
    assert!(told.len() <= 9, "{told:?}");
    assert_eq!(lazy.own("a", NONE).unwrap().position, 0, "it has read, and may ask again");
}

#[test]
fn g9_who_receives_nothing_owns_nothing() {
    let bus = bus(8);
    let (one, mut two) = (Party::on(&bus), Party::on(&bus));
    one.owns("a", NONE);
    two.owns("a", NONE);
    one.endpoint.shutdown_receive();
    assert_eq!(two.take_all(), ["+a"]);
    assert_eq!(one.own("a", NONE), Err(OwnError::ReceiveShut(one.id())));
    assert_eq!(one.endpoint.watch_name(&name("a")), Err(OwnError::ReceiveShut(one.id())));
}
