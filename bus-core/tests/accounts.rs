//! What accounts are charged, against a reference that counts by itself; and what is assured.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use bus_core::{
    Account, Amounts, Bus, Charge, Condition, Credentials, Delivery, Destination, Draft, Endpoint,
    Filter, JoinError, JoinOptions, Kind, Ledger, LimitExceeded, Limits, MemberFlags, OwnError,
    OwnOptions, Pattern, Process, Receiver, Resource, Retain, SendError,
};
use proptest::prelude::*;

const ME: Credentials = Credentials { uid: 1000, pid: 1 };

/// A user of two connections at most, each limit 8: 2 are assured to each connection, 4 are lent.
fn tight() -> Limits {
    Limits {
        user_connections: 2,
        user_endpoints: 8,
        user_messages: 8,
        user_bytes: 8,
        user_descriptors: 8,
        user_memberships: 8,
        user_groups: 8,
        user_retained_bytes: 8,
        user_names: 8,
        user_filter_bytes: 1_024,
        user_requests: 8,
        user_pinned_bytes: 8,
        ..Limits::default()
    }
}

fn held(account: &Account, resource: Resource) -> u64 {
    account.held().get(resource)
}

/// Charges one at a time until it is refused.
fn all(account: &Account, resource: Resource) -> Vec<Charge> {
    std::iter::from_fn(|| account.charge(resource, 1).ok()).collect()
}

#[test]
fn g10_the_first_greedy_program_leaves_as_much_as_it_takes_and_all_keep_what_is_assured() {
    for resource in Resource::ALL {
        if [Resource::Connections, Resource::FilterBytes].contains(&resource) {
            continue;
        }
        let ledger = Ledger::new(&tight());
        let greedy = ledger.open(1000, 1, Process::Pid(1));
        let taken = all(&greedy, resource);
        assert_eq!(taken.len(), 4, "{resource}: 2 assured, and 2 of the 4 that are lent");
        let innocent = ledger.open(1000, 2, Process::Pid(2));
        assert_eq!(all(&innocent, resource).len(), 3, "{resource}: 2 assured, half of the rest");
        // However many programs come, each finds what it is assured.
        let mut others = Vec::new();
        for pid in 3..6 {
            let other = ledger.open(1000, pid, Process::Pid(pid));
            others.push((all(&other, resource), other));
        }
        assert!(others.iter().all(|(charges, _)| charges.len() >= 2), "{resource}");
        drop(taken);
        assert_eq!(held(&greedy, resource), 0, "{resource}");
    }
}

#[test]
fn g10_connections_of_one_process_count_as_one() {
    let ledger = Ledger::new(&tight());
    let one = ledger.open(1000, 1, Process::Pid(1));
    let two = ledger.open(1000, 1, Process::Pid(1));
    let charges = (all(&one, Resource::Names), all(&two, Resource::Names));
    assert_eq!((charges.0.len(), charges.1.len()), (4, 2), "the second gets what it is assured");
    // With the same pid in another namespace it is another one.
    let other = ledger.open(1000, 1, Process::Pidfd(77));
    assert_eq!(all(&other, Resource::Names).len(), 3);
}

#[test]
fn users_do_not_count_for_each_other() {
    let ledger = Ledger::new(&tight());
    let one = ledger.open(1000, 1, Process::Pid(1));
    let taken = all(&one, Resource::Memberships);
    let other = ledger.open(1001, 1, Process::Pid(1));
    assert_eq!(all(&other, Resource::Memberships).len(), taken.len());
    assert_eq!(ledger.users(), [1000, 1001]);
    drop((other, taken, one));
    assert_eq!(ledger.users(), [0_u32; 0]);
    assert_eq!(ledger.usage(1000), None);
}

#[test]
fn a_user_may_have_limits_of_his_own() {
    let ledger = Ledger::new(&tight());
    let mut limits = ledger.limits(1000);
    limits.set(Resource::Names, 80);
    ledger.set_limits(1000, limits);
    let one = ledger.open(1000, 1, Process::Pid(1));
    assert_eq!(all(&one, Resource::Names).len(), 40);
    assert_eq!(all(&ledger.open(7, 1, Process::Pid(1)), Resource::Names).len(), 4);
}

#[test]
fn a_refusal_names_the_limit_its_value_and_who_holds_what() {
    let ledger = Ledger::new(&tight());
    let greedy = ledger.open(1000, 11, Process::Pid(11));
    let innocent = ledger.open(1000, 22, Process::Pid(22));
    let _taken = all(&greedy, Resource::Requests);
    let _some = innocent.charge(Resource::Requests, 3).unwrap();
    let refused = innocent.charge(Resource::Requests, 5).unwrap_err();
    assert_eq!((refused.limit, refused.value), ("user_requests", 8));
    let holders = refused.holders.as_deref().unwrap();
    assert_eq!((holders.uid, holders.asked, holders.connection), (1000, 5, 3));
    assert_eq!((holders.program, holders.user, holders.lent), (1, 3, 4));
    assert_eq!((holders.most_pid, holders.most), (11, 2));
    let text = refused.to_string();
    assert!(text.starts_with("the limit user_requests of 8 is reached: user 1000 has 3 of the 4"));
    assert_eq!(ledger.usage(1000).unwrap().refused.get(Resource::Requests), 2);
}

#[test]
fn g8_what_can_be_held_together_is_never_more_than_the_limit() {
    let ledger = Ledger::new(&tight());
    let accounts: Vec<_> = (1..=2).map(|n| ledger.open(1000, n, Process::Pid(n))).collect();
    let charges: Vec<_> = accounts.iter().map(|one| all(one, Resource::Bytes)).collect();
    assert!(charges.iter().map(Vec::len).sum::<usize>() <= 8);
    let usage = ledger.usage(1000).unwrap();
    assert_eq!(usage.held.get(Resource::Bytes), 7);
    assert_eq!(usage.connections.len(), 2);
}

/// What one endpoint is expected to hold.
#[derive(Default)]
struct Expected {
    memberships: BTreeMap<u8, u64>,
    names: Vec<u8>,
    created: Vec<u8>,
    requests: u64,
}

/// A connection with its endpoints, and what they should have.
struct Side {
    account: Account,
    endpoints: Vec<(Endpoint, Receiver, Expected)>,
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    Close(usize),
    Join { at: usize, group: u8, filter: bool },
    Leave { at: usize, group: u8 },
    SetFilter { at: usize, group: u8, long: bool },
    Own { at: usize, name: u8 },
    Release { at: usize, name: u8 },
    Create { at: usize, group: u8, retain: bool },
    Shut(usize),
    Ask { at: usize },
    Answer,
    CancelAll { at: usize },
}

fn steps() -> impl Strategy<Value = Vec<(bool, Step)>> {
    let at = || 0..4_usize;
    let few = || 0..4_u8;
    let step = prop_oneof![
        3 => Just(Step::Open),
        1 => at().prop_map(Step::Close),
        4 => (at(), few(), any::<bool>())
            .prop_map(|(at, group, filter)| Step::Join { at, group, filter }),
        2 => (at(), few()).prop_map(|(at, group)| Step::Leave { at, group }),
        1 => (at(), few(), any::<bool>())
            .prop_map(|(at, group, long)| Step::SetFilter { at, group, long }),
        3 => (at(), few()).prop_map(|(at, name)| Step::Own { at, name }),
        1 => (at(), few()).prop_map(|(at, name)| Step::Release { at, name }),
        3 => (at(), 4..8_u8, any::<bool>())
            .prop_map(|(at, group, retain)| Step::Create { at, group, retain }),
        1 => at().prop_map(Step::Shut),
        4 => at().prop_map(|at| Step::Ask { at }),
        3 => Just(Step::Answer),
        1 => at().prop_map(|at| Step::CancelAll { at }),
    ];
    prop::collection::vec((any::<bool>(), step), 1..80)
}

fn filter(long: bool) -> Filter {
    let key = if long { "k".repeat(100) } else { "k".to_owned() };
    Filter::new([vec![Condition::Key(Pattern::prefix(key))]]).unwrap()
}

/// 64 for the condition, and what it compares.
fn bytes_of_filter(long: bool) -> u64 {
    if long { 164 } else { 65 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever joins, leaves, claims, creates, asks, answers, shuts and closes, each account holds
    /// exactly what is there, and a refusal changes nothing.
    #[test]
    fn g8_an_account_holds_what_there_is_and_gives_it_back_once(steps in steps()) {
        let limits = Limits { user_retained_bytes: 16, ..tight() };
        let bus = Bus::new(limits.clone(), 1).unwrap();
        let ledger = Ledger::new(&limits);
        let server = bus.open_endpoint(ME).unwrap();
        let mut asked = server.receiver().unwrap();
        let mut answers = server.lane().unwrap();
        let mut open = Vec::new();
        // Groups that live, with whose they are and what they may retain.
        let mut groups: BTreeMap<u8, (bool, u64)> = BTreeMap::new();
        let side = |n| Side {
            account: ledger.open(1000, n, Process::Pid(n)),
            endpoints: Vec::new(),
        };
        let mut sides = [side(1), side(2)];
        for (second, step) in steps {
            let before = sides[usize::from(second)].account.held();
            let refused = run(
                &bus, &server, (&mut asked, &mut answers, &mut open), &mut groups,
                &mut sides, second, step,
            );
            if let Some(refused) = refused {
                prop_assert!(refused.limit.starts_with("user_"), "{refused}");
                prop_assert!(refused.holders.is_some());
                prop_assert_eq!(sides[usize::from(second)].account.held(), before);
            }
            for (at, side) in sides.iter().enumerate() {
                let expected = expected(side, &groups, at == 1);
                prop_assert_eq!(side.account.held(), expected);
            }
        }
        let [one, two] = sides;
        drop((one.endpoints, two.endpoints));
        prop_assert_eq!(one.account.held(), Amounts::default());
        prop_assert_eq!(two.account.held(), Amounts::default());
    }
}

fn expected(side: &Side, groups: &BTreeMap<u8, (bool, u64)>, second: bool) -> Amounts {
    let mut amounts = Amounts::default();
    amounts.set(Resource::Endpoints, side.endpoints.len() as u64);
    let sum = |f: fn(&Expected) -> u64| side.endpoints.iter().map(|(_, _, e)| f(e)).sum();
    amounts.set(Resource::Memberships, sum(|e| e.memberships.len() as u64));
    amounts.set(Resource::FilterBytes, sum(|e| e.memberships.values().sum()));
    amounts.set(Resource::Names, sum(|e| e.names.len() as u64));
    amounts.set(Resource::Requests, sum(|e| e.requests));
    let own = groups.values().filter(|(owner, _)| *owner == second);
    amounts.set(Resource::Groups, own.clone().count() as u64);
    amounts.set(Resource::RetainedBytes, own.map(|(_, bytes)| bytes).sum());
    amounts
}

type Asked<'a> = (
    &'a mut Receiver,
    &'a mut bus_core::Lane,
    &'a mut Vec<(bus_core::Sequence, bus_core::EndpointId)>,
);

/// Does one step; gives the limit that refused it.
fn run(
    bus: &Bus,
    server: &Endpoint,
    (asked, answers, open): Asked<'_>,
    groups: &mut BTreeMap<u8, (bool, u64)>,
    sides: &mut [Side; 2],
    second: bool,
    step: Step,
) -> Option<LimitExceeded> {
    let name = |n: u8| format!("n{n}").parse::<bus_core::GroupName>().unwrap();
    let side = &mut sides[usize::from(second)];
    let count = side.endpoints.len();
    let find = |at: usize| (count != 0).then(|| at % count);
    match step {
        Step::Open => match bus.open_endpoint_for(ME, &side.account) {
            Ok(endpoint) => {
                let receiver = endpoint.receiver().unwrap();
                side.endpoints.push((endpoint, receiver, Expected::default()));
            }
            Err(refused) => return Some(refused),
        },
        Step::Close(at) => {
            drop(find(at).map(|at| side.endpoints.remove(at)));
        }
        Step::Join { at, group, filter: filtered } => {
            let (endpoint, _, expected) = &mut side.endpoints[find(at)?];
            let filtered = filtered.then(|| filter(false));
            let bytes = filtered.as_ref().map_or(0, |_| bytes_of_filter(false));
            let options = JoinOptions { filter: filtered, ..JoinOptions::create() };
            match endpoint.join(&name(group), options) {
                Ok(joined) => {
                    expected.memberships.insert(group, bytes);
                    if joined.created {
                        groups.insert(group, (second, 0));
                        expected.created.push(group);
                    }
                }
                Err(JoinError::Limit(refused)) => return Some(refused),
                Err(_) => {}
            }
        }
        Step::Leave { at, group } => {
            let (endpoint, _, expected) = &mut side.endpoints[find(at)?];
            if let Some(info) = bus.find_group(&name(group)) {
                let left = endpoint.leave(info.id).is_ok();
                assert_eq!(left, expected.memberships.remove(&group).is_some());
            }
        }
        Step::SetFilter { at, group, long } => {
            let (endpoint, _, expected) = &mut side.endpoints[find(at)?];
            let info = bus.find_group(&name(group))?;
            match endpoint.set_filter(info.id, Some(filter(long))) {
                Ok(_) => {
                    *expected.memberships.get_mut(&group).unwrap() = bytes_of_filter(long);
                }
                Err(bus_core::FilterChangeError::Limit(refused)) => return Some(refused),
                Err(_) => {}
            }
        }
        Step::Own { at, name: n } => {
            let (endpoint, _, expected) = &mut side.endpoints[find(at)?];
            match endpoint.own_name(&name(n), OwnOptions::default()) {
                Ok(_) if !expected.names.contains(&n) => expected.names.push(n),
                Err(OwnError::Limit(refused)) => return Some(refused),
                _ => {}
            }
        }
        Step::Release { at, name: n } => {
            let (endpoint, _, expected) = &mut side.endpoints[find(at)?];
            if let Some(info) = bus.find_name(&name(n)) {
                let released = endpoint.release_name(info.id).is_some();
                assert_eq!(released, expected.names.contains(&n));
                expected.names.retain(|claimed| *claimed != n);
            }
        }
        Step::Create { at, group, retain } => {
            let (endpoint, _, expected) = &mut side.endpoints[find(at)?];
            let bytes = if retain { 3 } else { 0 };
            let created = match retain {
                true => {
                    let retain = Retain { bytes, ..Retain::last(1) };
                    endpoint.create_retaining(&name(group), retain)
                }
                false => endpoint.create_group(&name(group)),
            };
            match created {
                Ok(_) => {
                    groups.insert(group, (second, bytes));
                    expected.created.push(group);
                }
                Err(bus_core::CreateError::Limit(refused)) => return Some(refused),
                Err(_) => {}
            }
        }
        Step::Shut(at) => {
            let (endpoint, _, expected) = &mut side.endpoints[find(at)?];
            endpoint.shutdown_receive();
            expected.memberships.clear();
            expected.names.clear();
            expected.requests = 0;
        }
        Step::Ask { at } => {
            let (endpoint, _, expected) = &mut side.endpoints[find(at)?];
            let kind = Kind::Request { repeatable: false };
            let draft = Draft { kind, ..Draft::from("?") };
            let sent = endpoint.lane().unwrap().try_send(Destination::Endpoint(server.id()), draft);
            match sent {
                Ok(_) => expected.requests += 1,
                Err(SendError::RequestLimit(refused)) => return Some(refused),
                Err(_) => {}
            }
        }
        Step::Answer => {
            while let Ok(delivery) = asked.try_receive() {
                if let Delivery::Message { message, .. } = delivery {
                    open.push((message.sequence(), message.sender()));
                }
            }
            if let Some((request, caller)) = open.pop()
                && answers.try_send(Destination::Caller(request), "!").is_ok()
            {
                let mut endpoints = sides.iter_mut().flat_map(|side| &mut side.endpoints);
                let (_, receiver, expected) =
                    endpoints.find(|(endpoint, ..)| endpoint.id() == caller).unwrap();
                expected.requests -= 1;
                while receiver.try_receive().is_ok() {}
            }
        }
        Step::CancelAll { at } => {
            let (endpoint, receiver, expected) = &mut side.endpoints[find(at)?];
            while let Ok(delivery) = asked.try_receive() {
                if let Delivery::Message { message, .. } = delivery {
                    open.push((message.sequence(), message.sender()));
                }
            }
            for (request, caller) in open.iter() {
                if *caller == endpoint.id() && endpoint.cancel_request(*request) {
                    expected.requests -= 1;
                }
            }
            while receiver.try_receive().is_ok() {}
        }
    }
    // Groups that have ended with what was just done.
    groups.retain(|group, _| bus.find_group(&name(*group)).is_some());
    None
}

/// Memberships that others end are given back as well: here by an eviction.
#[test]
fn g8_an_evicted_member_is_charged_for_nothing_more() {
    use std::task::Waker;
    use std::time::Duration;
    let limits = Limits { queue_messages: 1, stall: Duration::from_millis(100), ..tight() };
    let bus = Bus::new(limits.clone(), 1).unwrap();
    let account = Ledger::new(&limits).open(1000, 1, Process::Pidfd(5));
    let stuck = bus.open_endpoint_for(ME, &account).unwrap();
    let group = "g".parse().unwrap();
    let to = Destination::Group(stuck.join(&group, JoinOptions::create()).unwrap().group);
    let sender = bus.open_endpoint(ME).unwrap();
    let mut lane = sender.lane().unwrap();
    lane.try_send(to, "first").unwrap();
    let _ = lane.submit(to, "second", Waker::noop().clone()).unwrap();
    assert_eq!(held(&account, Resource::Memberships), 1);
    let mut ticks = (1..40).map(|n| bus.tick(Duration::from_millis(1_000 + n * 50)));
    assert!(ticks.any(|evicted| evicted.len() == 1));
    assert_eq!(held(&account, Resource::Memberships), 0);

    // The back-off is the process's: another one of the same pid, which is in another namespace,
    // joins at once.
    let again = bus.open_endpoint_for(ME, &account).unwrap();
    assert!(matches!(again.join(&group, JoinOptions::default()), Err(JoinError::BackOff(..))));
    assert!(again.join(&group, JoinOptions::default().with(MemberFlags::DROP_WHEN_FULL)).is_ok());
    let namesake = Ledger::new(&limits).open(1000, 1, Process::Pidfd(6));
    let namesake = bus.open_endpoint_for(ME, &namesake).unwrap();
    assert!(namesake.join(&group, JoinOptions::default()).is_ok());
}

/// A charge that travels with a message is given back with the last recipient's.
#[test]
fn a_charge_goes_with_its_message() {
    let bus = Bus::new(tight(), 1).unwrap();
    let account = Ledger::new(&tight()).open(1000, 1, Process::Pid(1));
    let (sender, one, two) = (
        bus.open_endpoint(ME).unwrap(),
        bus.open_endpoint(ME).unwrap(),
        bus.open_endpoint(ME).unwrap(),
    );
    let group = "g".parse().unwrap();
    let to = Destination::Group(one.join(&group, JoinOptions::create()).unwrap().group);
    two.join(&group, JoinOptions::default()).unwrap();
    let charge = Some(account.charge(Resource::Descriptors, 2).unwrap());
    sender.lane().unwrap().try_send(to, Draft { charge, ..Draft::from("x") }).unwrap();
    drop(one.receiver().unwrap().try_receive().unwrap());
    assert_eq!(held(&account, Resource::Descriptors), 2);
    drop(two.receiver().unwrap().try_receive().unwrap());
    assert_eq!(held(&account, Resource::Descriptors), 0);
}
