//! One user, several programs: what one of them takes, floods or holds is never another one's loss
//! (G8, G10). Where users of other buses have suffered from it, the test says so.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use bus_core::wire::{
    AccountInfo, BrokerFrame, Failure, FailureCode, GoodbyeCode, Handle, Notice, Request, Response,
    SendFlags,
};
use bus_core::{
    Amounts, Condition, Destination, Filter, GroupId, MemberFlags, NameFlags, Pattern, Resource,
    Retain,
};
use tests::broker::Broker;
use tests::deadline::eventually;
use tests::program::Program;
use tests::raw::{RawClient, name};

const CONNECTOR: &str = env!("CARGO_BIN_EXE_connector");

fn program(broker: &Broker) -> Program {
    Program::start(CONNECTOR, broker.socket())
}

/// Limits of a user that a test reaches soon: of each 32, 1 is assured to each of 16 connections.
const TIGHT: &str = "\
user_connections = 16
user_endpoints = 32
user_messages = 32
user_bytes = 320000
user_descriptors = 32
user_memberships = 32
user_groups = 32
user_retained_bytes = 3200000
user_names = 32
user_filter_bytes = 2048
user_requests = 32
stall = \"600s\"";

/// A refusal for want of something that a user has a limit of: it names that and its value, and who
/// holds what.
#[track_caller]
fn assert_refused(failure: &Failure, resource: Resource) {
    assert_eq!(failure.code, FailureCode::LimitExceeded, "{failure}");
    assert_eq!(failure.limit.as_deref(), Some(resource.limit()), "{failure}");
    assert!(failure.limit_value.is_some(), "{failure}");
    let held = failure.held.unwrap_or_else(|| panic!("{failure} says who holds what"));
    assert_eq!(held.most_pid, std::process::id(), "{failure}");
    assert!(held.program <= held.user && held.user <= held.lent, "{held:?}");
    assert!(failure.text.contains(resource.limit()), "{failure}");
}

fn retain(bytes: u64) -> Retain {
    Retain { bytes, ..Retain::last(1) }
}

fn filter() -> Filter {
    Filter::new([vec![Condition::Key(Pattern::prefix("k"))]]).unwrap()
}

fn join(group: &str, filter: Option<Filter>) -> Request {
    let (flags, create) = (MemberFlags::empty(), true);
    Request::Join { group: name(group), flags, create, filter, retain: None, state: false }
}

/// One thing of a kind, the `number`th of this client.
type Act = fn(&mut RawClient, number: u32) -> Result<(), Box<Failure>>;

fn call(client: &mut RawClient, request: Request) -> Result<(), Box<Failure>> {
    client.call(request).map(drop)
}

/// What a program can ask for until it gets no more, one way for each thing that there is a limit of.
const GREED: [(Resource, Act); 8] = [
    (Resource::Endpoints, |client, n| client.open(Handle::from_raw(n + 1)).map(drop)),
    (Resource::Memberships, |client, n| {
        call(client, join(&format!("{}.{n}", client.endpoint()), None))
    }),
    (Resource::Groups, |client, n| {
        let group = name(&format!("g.{}.{n}", client.endpoint()));
        call(client, Request::Create { group, retain: None, stall_ms: None })
    }),
    (Resource::RetainedBytes, |client, n| {
        let group = name(&format!("r.{}.{n}", client.endpoint()));
        call(client, Request::Create { group, retain: Some(retain(120_000)), stall_ms: None })
    }),
    (Resource::Names, |client, n| {
        let name = name(&format!("n.{}.{n}", client.endpoint()));
        let (flags, description) = (NameFlags::empty(), None);
        call(client, Request::OwnName { name, flags, description })
    }),
    (Resource::FilterBytes, |client, n| {
        call(client, join(&format!("f.{}.{n}", client.endpoint()), Some(filter())))
    }),
    (Resource::Requests, |client, _| {
        let own = client.address();
        let serial = client.post_with(own, b"?", SendFlags::REQUEST);
        client.outcome(serial).map(drop)
    }),
    (Resource::Descriptors, |client, _| {
        let own = client.address();
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let serial = client.post_descriptors(own, b"fd", &[file.as_fd()]);
        client.outcome(serial).map(drop)
    }),
];

#[test]
fn g10_a_program_that_takes_all_it_can_get_of_anything_leaves_as_much_to_the_next() {
    for (resource, act) in GREED {
        let broker = Broker::with_limits(TIGHT);
        let mut greedy: Vec<RawClient> = (0..4).map(|_| broker.raw()).collect();
        let mut taken = 0;
        for client in &mut greedy {
            for number in 0.. {
                match act(client, number) {
                    Ok(()) => taken += 1,
                    Err(failure) => {
                        assert_refused(&failure, resource);
                        break;
                    }
                }
            }
        }
        assert!(taken > 4, "{resource}: {taken}");
        // It has half of what is lent, and another program as good as the other half: each of its
        // connections does what the greedy one's first could not any more.
        let mut innocent = program(&broker);
        let mut client = innocent.client();
        for number in 0..4 {
            act(&mut client, number).unwrap_or_else(|failure| panic!("{resource}: {failure}"));
        }
        // The greedy one goes on as well with what it has; and all is given back at its end.
        greedy[0].ping();
        drop(greedy);
        eventually("all is given back", || {
            let accounts = client.accounts();
            let held: u64 = others(&accounts, innocent.pid()).map(|a| a.held.get(resource)).sum();
            if held == 0 { Ok(()) } else { Err(format!("{resource}: {accounts:?}")) }
        });
    }
}

/// The connections of all programs but one.
fn others(accounts: &[AccountInfo], pid: u32) -> impl Iterator<Item = &AccountInfo> {
    accounts.iter().filter(move |account| account.pid.is_some_and(|other| other != pid))
}

fn held_by(accounts: &[AccountInfo], pid: u32) -> Amounts {
    let own = accounts.iter().filter(|account| account.pid == Some(pid));
    own.fold(Amounts::default(), |mut sum, account| {
        for (resource, amount) in account.held.iter() {
            sum.set(resource, sum.get(resource) + amount);
        }
        sum
    })
}

/// qBittorrent#11169, pac4cli#57: one program had all connections, and others could not log in.
#[test]
fn g10_a_program_that_connects_until_it_is_refused_leaves_connections_to_others() {
    let broker = Broker::with_limits(TIGHT);
    let mut greedy = Vec::new();
    let refused = loop {
        let mut client = RawClient::silent(broker.socket());
        client.greet();
        match client.hear() {
            BrokerFrame::Welcome(_) => greedy.push(client),
            BrokerFrame::Goodbye(goodbye) => break goodbye,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(greedy.len(), 8, "half of 16");
    assert_eq!(refused.code, GoodbyeCode::LimitExceeded);
    for part in ["user_connections of 16", &format!("process {} with 8", std::process::id())] {
        assert!(refused.text.contains(part), "{part}: {}", refused.text);
    }
    let mut innocent = program(&broker);
    let mut clients: Vec<RawClient> = (0..4).map(|_| innocent.client()).collect();
    clients.iter_mut().for_each(RawClient::ping);
    let _ = broker.unisono("ping -n 1").run().with(0);
}

/// dbus-broker#435: programs that connect in a circle from a sandbox crashed the session's bus.
#[test]
fn g8_a_program_that_connects_in_a_circle_is_told_so_and_others_connect() {
    let broker = Broker::with_limits("user_connection_rate = 100");
    let mut innocent = program(&broker);
    let refused = eventually("refused", || {
        let mut client = RawClient::silent(broker.socket());
        client.greet();
        match client.hear() {
            BrokerFrame::Goodbye(goodbye) => Ok(goodbye),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(refused.code, GoodbyeCode::LimitExceeded);
    for part in ["user_connection_rate of 100", "try again in"] {
        assert!(refused.text.contains(part), "{}", refused.text);
    }
    let mut client = innocent.client();
    client.ping();
    // And who was refused gets in a little later.
    eventually("connected", || {
        let mut client = RawClient::silent(broker.socket());
        client.greet();
        match client.hear() {
            BrokerFrame::Welcome(_) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// A member that never gives a place back, two that read, and somebody who floods the group with
/// 4 KiB messages: what stops dbus-daemon's publisher, throws out dbus-broker's healthy subscribers and
/// freezes busd with all who want to log in.
struct SlowConsumer {
    broker: Broker,
    group: GroupId,
    stuck: RawClient,
    readers: Vec<(Program, RawClient)>,
    flooder: (Program, RawClient),
}

impl SlowConsumer {
    fn new(flags: MemberFlags, limits: &str) -> Self {
        let broker = Broker::with_limits(limits);
        let mut stuck = broker.raw();
        let group = stuck.join_with("flooded", flags).unwrap();
        let mut readers = Vec::new();
        for _ in 0..3 {
            let mut reader = program(&broker);
            let mut client = reader.client();
            client.join("flooded");
            readers.push((reader, client));
        }
        let mut flooder = program(&broker);
        let client = flooder.client();
        Self { broker, group, stuck, readers, flooder: (flooder, client) }
    }

    /// Everybody but the stuck one, and who has only come, does what programs do.
    fn assert_others_are_well(&mut self) {
        let mut newcomer = program(&self.broker);
        let mut client = newcomer.client();
        let own = Destination::Group(client.join("quiet"));
        for (at, (_, reader)) in self.readers.iter_mut().enumerate() {
            let address = reader.address();
            // Messages both ways, whoever else is flooded.
            client.send(address, b"hello").unwrap();
            assert_eq!(&reader.receive().payload[..], b"hello");
            reader.send(own, b"hello, all").unwrap();
            assert_eq!(&client.receive().payload[..], b"hello, all");
            reader.join(&format!("another.{at}"));
        }
    }
}

/// systemd#22046, zenoh#2585, dbus-broker#236 and #167: one reader that does not read.
#[test]
fn g10_a_stuck_member_of_a_flooded_group_costs_its_sender_and_nobody_else() {
    let mut case = SlowConsumer::new(MemberFlags::empty(), "stall = \"600s\"");
    let to = Destination::Group(case.group);
    let payload = [7; 4 << 10];
    let (flooder, client) = &mut case.flooder;
    // The stuck one has room for 256; a send that is ready to wait waits then.
    let mut waiting = Vec::new();
    for number in 0..300 {
        let serial = client.post(to, &payload);
        if number < 256 {
            client.outcome(serial).unwrap();
            for (_, reader) in &mut case.readers {
                assert_eq!(reader.receive().payload.len(), payload.len());
            }
        } else {
            waiting.push(serial);
        }
    }
    case.broker.until("it waits", |stats| stats.waiting_sends == 1);
    // The flood is charged to who floods, and its payloads once.
    let flooder = flooder.pid();
    let accounts = case.readers[0].1.accounts();
    let held = held_by(&accounts, flooder);
    assert_eq!(held.get(Resource::Messages), 44);
    assert_eq!(held.get(Resource::Bytes), 44 * (4 << 10));
    for account in others(&accounts, flooder) {
        assert_eq!(account.held.get(Resource::Messages), 0, "{account:?}");
        assert_eq!(account.held.get(Resource::Bytes), 0, "{account:?}");
    }
    case.assert_others_are_well();
    // Nobody was thrown out, the stuck one neither; when it reads, all goes on in order.
    for _ in 0..300 {
        case.stuck.receive();
    }
    for serial in waiting {
        case.flooder.1.outcome(serial).unwrap();
    }
    for (_, reader) in &mut case.readers {
        for _ in 256..300 {
            assert_eq!(reader.receive().head.missed, None);
        }
    }
    let held = held_by(&case.readers[0].1.accounts(), flooder);
    assert_eq!((held.get(Resource::Messages), held.get(Resource::Bytes)), (0, 0));
}

#[test]
fn g10_a_stuck_member_that_drops_is_not_noticed_by_anybody() {
    let mut case = SlowConsumer::new(MemberFlags::DROP_WHEN_FULL, "stall = \"600s\"");
    let to = Destination::Group(case.group);
    let client = &mut case.flooder.1;
    for number in 0..1_000_u64 {
        let receipt = client.send(to, &[7; 4 << 10]).unwrap();
        assert_eq!(receipt.recipients, if number < 256 { 4 } else { 3 });
        for (_, reader) in &mut case.readers {
            assert_eq!(reader.receive().head.missed, None);
        }
    }
    case.assert_others_are_well();
    let held = held_by(&case.readers[0].1.accounts(), case.flooder.0.pid());
    assert_eq!(held.get(Resource::Bytes), 0);
    // It knows what it has missed.
    for _ in 0..256 {
        case.stuck.receive();
    }
    let Notice::Gap { gap, .. } = case.stuck.notice() else { panic!("a gap") };
    assert_eq!(gap.count, 744);
}

/// The same until the stall limit: the stuck one is put out and told, and the others go on.
#[test]
fn g10_a_stuck_member_is_put_out_alone() {
    let mut case = SlowConsumer::new(MemberFlags::empty(), "stall = \"100ms\"");
    let to = Destination::Group(case.group);
    let client = &mut case.flooder.1;
    for _ in 0..600 {
        client.send(to, &[7; 4 << 10]).unwrap();
        for (_, reader) in &mut case.readers {
            assert_eq!(reader.receive().head.missed, None);
        }
    }
    case.assert_others_are_well();
    for _ in 0..256 {
        case.stuck.receive();
    }
    assert!(matches!(case.stuck.notice(), Notice::Evicted { .. }));
    let members = case.broker.raw().members("flooded").unwrap();
    assert_eq!(members.len(), 3);
}

/// dbus-broker: bytes that wait are charged to whom they are for, so that floods from several
/// connections starve their victim. Here the flooder runs into its own limit, and only it.
#[test]
fn g10_a_flood_that_waits_meets_the_limit_of_its_sender() {
    let broker = Broker::with_limits(TIGHT);
    let mut deaf = broker.raw();
    let held = Destination::Group(deaf.join("held"));
    let mut filler = broker.raw();
    for _ in 0..256 {
        filler.send(held, b"x").unwrap();
    }
    // From the test's own process, in several connections: 8 of 16 that are lent, one assured each.
    let mut floods: Vec<RawClient> = (0..3).map(|_| broker.raw()).collect();
    let mut refused = 0;
    for flood in &mut floods {
        let serials: Vec<_> = (0..20).map(|_| flood.post(held, b"x")).collect();
        flood.ping();
        let mut last = None;
        for serial in serials.into_iter().rev() {
            // What waits has no answer; what is refused has, and the ping came after it.
            if last.is_none() {
                last = Some(flood.outcome(serial).unwrap_err());
            }
            refused += 1;
        }
        assert_refused(&last.unwrap(), Resource::Messages);
    }
    assert_eq!(refused, 60);
    let mut innocent = program(&broker);
    let mut client = innocent.client();
    let serials: Vec<_> = (0..4).map(|_| client.post(held, b"y")).collect();
    client.ping();
    let waiting = held_by(&client.accounts(), innocent.pid()).get(Resource::Messages);
    assert_eq!(waiting, 4, "there is room for it to wait");
    drop(floods);
    for _ in 0..256 {
        deaf.receive();
    }
    for serial in serials {
        client.outcome(serial).unwrap();
    }
}

/// wluma#170: replies that nobody read ate the user's quota, and nmcli failed.
#[test]
fn g10_replies_that_a_program_does_not_read_are_its_own_affair() {
    let broker = Broker::with_limits(TIGHT);
    let mut service = broker.raw();
    let (flags, description) = (NameFlags::empty(), None);
    let owned = service.call(Request::OwnName { name: name("svc"), flags, description });
    let Ok(Response::Claimed { name_id, .. }) = owned else { panic!("{owned:?}") };
    let to = Destination::Name(name_id);
    let mut lazy = program(&broker);
    let mut careless = lazy.client();
    let refused = (0..).find_map(|_| {
        let serial = careless.post_with(to, b"?", SendFlags::REQUEST);
        careless.outcome(serial).err()
    });
    assert_eq!(refused.unwrap().limit.as_deref(), Some("user_requests"));
    let mut other = program(&broker);
    let mut client = other.client();
    answers(&mut client, &mut service, to, careless.endpoint());
}

/// A call of `client` is answered by `service`, past those of somebody else.
fn answers(
    client: &mut RawClient,
    service: &mut RawClient,
    to: Destination,
    past: bus_core::EndpointId,
) {
    let serial = client.post_with(to, b"?", SendFlags::REQUEST);
    client.outcome(serial).unwrap();
    let request = loop {
        let message = service.receive();
        if message.head.sender != past {
            break message.head.sequence;
        }
    };
    service.send(Destination::Caller(request), b"!").unwrap();
    assert_eq!(&client.receive().payload[..], b"!");
}

/// dbus-broker#430: a monitoring daemon needs more than others.
#[test]
fn a_user_may_have_limits_of_his_own() {
    let uid = nix::unistd::getuid();
    let broker = Broker::with(&format!(
        "[limits]\nuser_names = 2\nuser_connections = 4\n[users.{uid}.limits]\nnames = 8\n"
    ));
    let mut client = broker.raw();
    let limits = &client.welcome().limits;
    assert_eq!((limits.user_names, limits.user_connections), (8, 4));
    let account = client.accounts().remove(0);
    assert_eq!(account.limits.unwrap().get(Resource::Names), 8);
    let act = GREED[4].1;
    let taken = (0..).take_while(|number| act(&mut client, *number).is_ok()).count();
    assert_eq!(taken, 3, "1 of 4 times 1 that is assured, 2 of 4 that are lent");
    let status = broker.unisono("status --json").run().with(0).json_lines();
    assert_eq!(status[0]["limits"]["user_names"], 8);
}

/// dbus-broker: 10^14 bytes in the configuration became 276 MB without a word.
#[test]
fn a_limit_that_is_too_large_is_refused_and_not_cut() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("broker.toml");
    for (text, place, named) in [
        ("[limits]\nuser_bytes = 100000000000000\n", "broker.toml:2:14", "user_bytes"),
        ("[limits]\nuser_bytes = 1e14\n", "broker.toml:2:14", "expected u64"),
        ("[users.0.limits]\nbytes = 100000000000000\n", "broker.toml:2:9", "user_bytes"),
        ("[users.0.limits]\nbyte = 1\n", "broker.toml:2:1", "byte"),
        ("[users.no-one-of-that-name.limits]\nbytes = 1\n", "broker.toml:1:", "no-one"),
    ] {
        std::fs::write(&file, text).unwrap();
        let broker = tests::process::Launch::new(tests::programs::bus_broker());
        let broker = broker.arg("--listen").arg(directory.path().join("bus"));
        let ended = broker.arg("--config").arg(&file).run().with(1);
        assert!(ended.errors.contains(place), "{place}: {}", ended.errors);
        assert!(ended.errors.contains(named), "{named}: {}", ended.errors);
    }
}

#[test]
fn the_command_line_shows_who_holds_how_much() {
    let broker = Broker::start();
    let mut other = program(&broker);
    let mut client = other.client();
    client.join("one");
    client.join("two");
    let lines = broker.unisono("accounts --json").run().with(0).json_lines();
    let uid = nix::unistd::getuid().as_raw();
    assert_eq!((&lines[0]["uid"], &lines[0]["connection"]), (&uid.into(), &().into()));
    assert_eq!(lines[0]["limits"]["connections"], 2048);
    assert_eq!(lines[0]["held"]["memberships"], 2);
    let own = lines.iter().find(|line| line["pid"] == other.pid()).unwrap();
    assert_eq!(own["held"]["memberships"], 2, "{own}");
    assert_eq!(own["held"]["connections"], 1, "{own}");
    let table = broker.unisono("accounts").run().with(0).output;
    assert!(table.contains("memberships=2/65536"), "{table}");
}

/// Whatever dies when, in whatever it is: what it was charged is given back, once.
#[test]
fn g8_what_a_killed_program_held_is_given_back() {
    let broker = Broker::with_limits(TIGHT);
    let mut deaf = broker.raw();
    let full = Destination::Group(deaf.join("full"));
    for _ in 0..256 {
        let own = deaf.address();
        deaf.send(own, b"x").unwrap();
    }
    let mut watcher = broker.raw();
    let before = held_of_user(&watcher.accounts());
    for round in 0..3 {
        let mut doomed = program(&broker);
        let mut client = doomed.client();
        for (resource, act) in GREED {
            if resource != Resource::Requests {
                act(&mut client, round).unwrap();
            }
        }
        client.post(full, b"this waits");
        client.ping();
        // And in the middle of a frame.
        client.write(&[200, 0, 0, 0, 0x10, 0, 0]);
        drop(doomed);
        drop(client);
        eventually("all is given back", || {
            let held = held_of_user(&watcher.accounts());
            if held == before { Ok(()) } else { Err(format!("{held:?} and not {before:?}")) }
        });
    }
}

fn held_of_user(accounts: &[AccountInfo]) -> BTreeMap<&'static str, u64> {
    accounts[0].held.iter().map(|(resource, amount)| (resource.name(), amount)).collect()
}

/// Runs a program in user and pid namespaces of its own, in which this user is root.
const UNSHARED: [&str; 6] =
    ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child=SIGKILL"];

/// A broker in a container sees none of the pids outside: all are 0.
#[test]
#[cfg_attr(not(has_user_namespaces), ignore = "needs user namespaces")]
fn clients_whose_pids_the_broker_cannot_see_are_told_apart() {
    let broker = Broker::run_by(&UNSHARED, &format!("[limits]\n{TIGHT}\n"));
    let mut greedy = broker.raw();
    let act = GREED[1].1;
    let refused = (0..).find_map(|number| act(&mut greedy, number).err()).unwrap();
    assert_eq!(refused.held.unwrap().most_pid, 0, "{refused}");
    let mut innocent = program(&broker);
    let mut client = innocent.client();
    for number in 0..4 {
        act(&mut client, number).unwrap();
    }
    let accounts = client.accounts();
    let pids: Vec<_> = accounts.iter().filter_map(|account| account.pid).collect();
    assert_eq!(pids, [0, 0]);
    // And they talk to each other as any.
    let to = Destination::Endpoint(greedy.endpoint());
    client.send(to, b"hello").unwrap();
    let message = greedy.receive();
    assert_eq!((&message.payload[..], message.head.credentials.pid), (&b"hello"[..], 0));
}

/// The back-off of a stalled member is its process's, and not that of all whose pids are unknown.
#[test]
#[cfg_attr(not(has_user_namespaces), ignore = "needs user namespaces")]
fn g8_a_back_off_is_not_that_of_all_whose_pids_are_unknown() {
    let broker = Broker::run_by(&UNSHARED, "[limits]\nstall = \"3s\"\n");
    let mut stuck = broker.raw();
    let group = stuck.join("held");
    let mut sender = program(&broker);
    let mut client = sender.client();
    // The last one waits until the stuck one is put out.
    for _ in 0..257 {
        client.send(Destination::Group(group), b"x").unwrap();
    }
    let mut again = broker.raw();
    let refused = again.join_with("held", MemberFlags::empty()).unwrap_err();
    assert_eq!(refused.code, FailureCode::BackOff);
    client.join_with("held", MemberFlags::empty()).unwrap();
}

/// A program in a sandbox with namespaces of its own is a client like any.
#[test]
#[cfg_attr(not(has_user_namespaces), ignore = "needs user namespaces")]
fn a_client_in_namespaces_of_its_own_is_one_like_any() {
    let broker = Broker::start();
    let mut sandboxed = Program::run_by(&UNSHARED, CONNECTOR, broker.socket());
    let mut client = sandboxed.client();
    let mut other = broker.raw();
    let group = other.join("both");
    client.join("both");
    client.send(Destination::Group(group), b"from inside").unwrap();
    let head = other.receive().head;
    assert_eq!(head.credentials.uid, nix::unistd::getuid().as_raw(), "as it is known outside");
    assert!(![0, 1, std::process::id()].contains(&head.credentials.pid), "{head:?}");
}
