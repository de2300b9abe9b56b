//! Who may do what, as programs meet it: refusals that name their rule, reload, sockets with an
//! identity. (Tables of decisions are with the rules, in `bus-broker/src/policy`.)

use std::fs;
use std::path::Path;

use bus_client::{Bus, ConnectError, JoinError, QueryError, SendError};
use tests::broker::Broker;
use tests::deadline::eventually;
use tests::process::Launch;
use tests::programs;
use tests::users;

fn connect_at(address: &Path) -> Result<Bus, ConnectError> {
    Bus::builder().address(address.to_str().expect("a path of ours")).connect()
}

fn connect(broker: &Broker) -> Bus {
    connect_at(broker.socket()).expect("connected")
}

#[test]
fn a_refusal_names_the_rule_whatever_was_asked() {
    let broker = Broker::with(
        r#"[[policy]]
deny = ["own", "call", "create", "join", "watch", "send", "monitor"]
on = ["org.secret.*"]
"#,
    );
    let here = |text: &str| {
        assert!(text.contains("broker.toml:1"), "{text}");
        assert!(text.contains("user "), "{text}");
    };
    let bus = connect(&broker);
    match bus.join("org.secret.A") {
        Err(JoinError::PermissionDenied(text)) => here(&text),
        other => panic!("{other:?}"),
    }
    match bus.group("org.secret.A").unwrap().send("x") {
        Err(SendError::PermissionDenied(text)) => here(&text),
        other => panic!("{other:?}"),
    }
    match bus.name("org.secret.A").unwrap().call("x") {
        Err(error) => here(&error.to_string()),
        Ok(reply) => panic!("{reply:?}"),
    }
    here(&bus.own_name("org.secret.A").unwrap_err().to_string());
    here(&bus.create("org.secret.A").unwrap_err().to_string());
    here(&bus.watch_members("org.secret.A").map(drop).unwrap_err().to_string());
    // A monitor of everything would see that too.
    let monitor = broker.unisono("monitor").run().with(1);
    here(&monitor.errors);
    // What no rule is about is as free as ever.
    bus.join("org.open.A").unwrap();
    bus.group("org.open.A").unwrap().send("x").unwrap();
}

/// keepassxc#3837 (CVE-2018-19358): everybody on the bus could see, and ask, everybody.
#[test]
fn what_may_not_be_seen_is_not_listed() {
    let unisono = fs::canonicalize(programs::unisono()).unwrap();
    let broker = Broker::with(&format!(
        "[[policy]]\ndeny = \"*\"\non = [\"org.secret.*\"]\nexecutables = [{unisono:?}]\n"
    ));
    let bus = connect(&broker);
    for group in ["org.a", "org.secret.A", "org.z"] {
        bus.join(group).unwrap();
    }
    let listed = broker.unisono("groups").run().with(0).output;
    assert!(listed.contains("org.a") && listed.contains("org.z"), "{listed}");
    assert!(!listed.contains("secret"), "{listed}");
}

#[test]
fn a_user_who_may_not_connect_is_told_the_rule() {
    let broker = Broker::with("[[policy]]\ndeny = [\"connect\"]\n");
    let refused = broker.unisono("status").run();
    assert_ne!(refused.code(), Some(0));
    assert!(refused.errors.contains("broker.toml:1"), "{}", refused.errors);
}

/// dbus-broker#206 and #229: a reload in which the bus stood without rules.
#[test]
fn a_reload_takes_the_new_rules_whole_and_keeps_the_old_if_they_are_wrong() {
    let broker = Broker::with("");
    let bus = connect(&broker);
    let send = || bus.group("org.a").unwrap().send("x").map(drop);
    bus.join("org.a").unwrap();
    send().unwrap();

    let _ = broker.file_with("broker.toml", "[[policy]]\ndeny = [\"send\"]\non = [\"org.a\"]\n");
    assert_eq!(bus.reload().unwrap().rules, 1);
    assert!(matches!(send(), Err(SendError::PermissionDenied(_))), "a kept decision is no more");

    let _ = broker.file_with("broker.toml", "[[policy]]\ndeny = [\"fly\"]\n");
    match bus.reload() {
        Err(QueryError::Refused { text, .. }) => assert!(text.contains(":2:"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(send(), Err(SendError::PermissionDenied(_))), "the old rules stay");
    let told = broker.unisono("reload").run().with(1);
    assert!(told.errors.contains("broker.toml:2:"), "{}", told.errors);

    let _ = broker.file_with("broker.toml", "");
    broker.hang_up();
    eventually("allowed again", || send().map_err(|error| error.to_string()));
}

#[test]
fn a_reload_ends_the_connections_that_have_what_is_forbidden_now_and_no_other() {
    let broker = Broker::with("");
    let trace = broker.file("trace");
    let member = broker.listener("org.a", &trace);
    let bus = connect(&broker);
    bus.join("org.b").unwrap();
    let _ = broker.file_with("broker.toml", "[[policy]]\ndeny = [\"join\"]\non = [\"org.a\"]\n");
    broker.unisono("reload").run().with(0);
    let ended = member.end().with(4);
    let told = fs::read_to_string(&trace).unwrap() + &ended.errors;
    assert!(told.contains("broker.toml:1"), "{told}");
    bus.ping().unwrap();
    broker.until_logged(&["the rules have changed"]);
}

#[test]
fn rules_of_a_directory_come_first_in_the_order_of_their_names() {
    let broker = Broker::with("");
    let directory = broker.file("policy.d");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("20-open.toml"), "[[policy]]\nallow = [\"join\"]\n").unwrap();
    fs::write(directory.join("10-shut.toml"), "[[policy]]\ndeny = \"*\"\n").unwrap();
    fs::write(directory.join("notes.txt"), "no rules").unwrap();
    let check = |line: &str| {
        let config = broker.file("check.toml");
        broker.unisono("policy check").line(line).arg("--config").arg(config).run()
    };
    let named = |config: &str| {
        let text = format!("policy_directories = [{directory:?}]\n{config}");
        let _ = broker.file_with("check.toml", text);
    };
    named("");
    assert!(check("join org.a --as 4242").with(0).output.contains("20-open.toml:1"));
    assert!(check("send org.a --as 4242").with(1).output.contains("10-shut.toml:1"));
    named("[[policy]]\ndeny = [\"join\"]\n");
    assert!(check("join org.a --as 4242").with(1).output.contains("check.toml:2"));
}

/// dbus-broker#69 and #326: rules that nobody can find out about.
#[test]
fn policy_check_answers_offline_for_scripts() {
    let broker = Broker::with("");
    let config = broker.file_with(
        "rules.toml",
        r#"[[policy]]
allow = ["connect", "call"]
on = ["org.example.*"]
users = [4242]
executables = ["/usr/bin/clock"]
"#,
    );
    let check =
        |line: &str| broker.unisono("policy check").line(line).arg("--config").arg(&config).run();
    let as_clock = "--as 4242 --exe /usr/bin/clock";
    let allowed = check(&format!("call org.example.Clock {as_clock}")).with(0);
    assert!(allowed.output.ends_with("rules.toml:1\n"), "{}", allowed.output);
    assert_eq!(check("call org.example.Clock --as 4242").with(1).output, "no rule allows it\n");
    assert_eq!(
        check("own org.example.Clock --as 4242 --json").with(1).json_lines()[0]["rule"],
        "built-in"
    );
    check("own org.example.Clock --as root").with(0);
    check("monitor --as 4242").with(1);
    check("fly org.example.Clock").with(2);
    check("own").with(2);
    check("own a..b").with(2);
    let _ = broker.file_with("rules.toml", "[[policy]]\nallow = 7\n");
    assert!(check("own a").with(1).errors.contains("rules.toml:2:"));
}

/// flatpak#962 and #3636: a sandbox took a proxy process, and its start.
#[test]
fn a_socket_with_an_identity_has_rules_and_places_of_its_own() {
    let boxed = tempfile::tempdir().unwrap();
    let path = boxed.path().join("bus");
    let broker = Broker::with(&format!(
        r#"[[socket]]
path = {path:?}
identity = "org.example.Box"
connections = 2

[[policy]]
allow = ["call"]
on = ["org.example.Portal"]
sockets = ["org.example.Box"]
"#
    ));
    let bus = connect_at(&path).unwrap();
    let denied = bus.join("org.a").unwrap_err();
    assert!(denied.to_string().contains("org.example.Box"), "{denied}");
    assert!(matches!(bus.reload(), Err(QueryError::PermissionDenied(_))));
    let portal = broker.unisono("own org.example.Portal -n 1").start();
    let outside = connect(&broker);
    eventually("owned", || match outside.find_name("org.example.Portal") {
        Ok(Some(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    bus.name("org.example.Portal").unwrap().send("hello").unwrap();
    assert_eq!(portal.end().with(0).output, "hello\n");
    assert!(bus.endpoint(outside.endpoint_id()).send("x").is_err(), "not past the names");
    let _second = connect_at(&path).unwrap();
    assert!(connect_at(&path).is_err(), "it has two places");
    outside.join("org.a").unwrap();
}

/// flatpak#890, zbus#464: who a client is, and not whose pid it has got.
#[test]
fn a_program_is_known_by_the_file_that_it_executes() {
    let unisono = fs::canonicalize(programs::unisono()).unwrap();
    let broker = Broker::with(&format!(
        "[[policy]]\ndeny = [\"join\"]\n[[policy]]\nallow = [\"join\"]\nexecutables = [{unisono:?}]\n"
    ));
    let trace = broker.file("trace");
    let _member = broker.listener("org.a", &trace);
    let bus = connect(&broker);
    assert!(matches!(bus.join("org.a"), Err(JoinError::PermissionDenied(_))));
}

#[test]
fn rules_that_come_later_know_who_came_before() {
    let unisono = fs::canonicalize(programs::unisono()).unwrap();
    let broker = Broker::with("");
    let trace = broker.file("trace");
    let mut member = broker.listener("org.a", &trace);
    let bus = connect(&broker);
    bus.join("org.a").unwrap();
    let rule = |path: &Path| {
        let text = format!("[[policy]]\ndeny = [\"join\"]\nexecutables = [{path:?}]\n");
        let _ = broker.file_with("broker.toml", text);
        broker.unisono("reload").run().with(0);
    };
    rule(Path::new("/no/such/program"));
    bus.ping().unwrap();
    assert!(member.runs());
    rule(&unisono);
    member.end().with(4);
    bus.ping().unwrap();
}

#[test]
fn a_helper_that_does_not_answer_keeps_nobody_out() {
    let broker = Broker::with("");
    let children = format!("/proc/{0}/task/{0}/children", broker.pid());
    let helper = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper), nix::sys::signal::Signal::SIGSTOP)
        .unwrap();
    connect(&broker).ping().unwrap();
    broker.until_logged(&["the helper does not answer"]);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    broker.until_logged(&["the helper has ended"]);
    connect(&broker).ping().unwrap();
}

/// dbus-broker#435: a flood from a sandbox crashed the session's bus.
#[test]
fn a_flood_of_connections_at_a_sandboxes_socket_leaves_the_session_alone() {
    let boxed = tempfile::tempdir().unwrap();
    let path = boxed.path().join("bus");
    let broker = Broker::with(&format!(
        "[[socket]]\npath = {path:?}\nidentity = \"org.example.Box\"\nconnections = 4\n"
    ));
    let bus = connect(&broker);
    let flood: Vec<_> =
        (0..500).map(|_| std::os::unix::net::UnixStream::connect(&path).unwrap()).collect();
    connect(&broker).ping().unwrap();
    bus.ping().unwrap();
    drop(flood);
    eventually("there is room again", || match connect_at(&path) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    });
}

#[test]
#[cfg_attr(not(all(has_setpriv, has_root)), ignore = "needs setpriv, and to be root")]
fn needs_setpriv_other_users_are_told_apart_by_the_kernel() {
    let broker = users::open_to_all(
        r#"[[policy]]
allow = ["connect", "call"]
on = ["org.example.Clock"]
users = [4242]

[[policy]]
allow = ["connect", "join", "create"]
on = ["org.example.Audio.*"]
user_groups = [29]
"#,
    );
    let as_user = |uid, groups, line| users::run_as(&broker, uid, groups, line);
    let refused = as_user(4343, "4343", "status").with(1);
    assert!(refused.errors.contains("no rule allows it"), "{}", refused.errors);

    let _clock = broker.unisono("serve org.example.Clock -- cat").start();
    let bus = connect(&broker);
    eventually("owned", || match bus.find_name("org.example.Clock") {
        Ok(Some(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(as_user(4242, "4242", "call org.example.Clock now x").with(0).output, "x\n");
    for line in ["own org.example.Clock", "listen org.example.A", "monitor", "reload"] {
        let refused = as_user(4242, "4242", line).with(1);
        assert!(refused.errors.contains("permission"), "{line}: {}", refused.errors);
    }
    let listed = as_user(4242, "4242", "names").with(0).output;
    assert!(listed.contains("org.example.Clock"), "{listed}");

    as_user(4343, "29", "listen org.example.Audio.Main -t 50ms").with(3);
    assert!(as_user(4343, "29", "listen org.example.Other").with(1).errors.contains("no rule"));
}

#[test]
fn a_socket_with_an_identity_has_a_budget_of_its_own() {
    let boxed = tempfile::tempdir().unwrap();
    let path = boxed.path().join("bus");
    let broker = Broker::with(&format!(
        r#"[[socket]]
path = {path:?}
identity = "org.example.Box"
connections = 3
limits = {{ memberships = 12 }}

[[policy]]
allow = ["join", "create"]
sockets = ["org.example.Box"]
"#
    ));
    let inside = connect_at(&path).expect("it has places");
    let outside = connect(&broker);
    let joins = |bus: &Bus| {
        let mut joined = Vec::new();
        loop {
            match bus.join(&format!("org.g{}", joined.len())) {
                Ok(member) if joined.len() < 20 => joined.push(member),
                Ok(_) => return (20, String::new()),
                Err(error) => return (joined.len(), error.to_string()),
            }
        }
    };
    let (count, why) = joins(&inside);
    assert!((1..=12).contains(&count), "{count}: {why}");
    assert!(why.contains("memberships") && why.contains("12"), "{why}");
    assert_eq!(joins(&outside).0, 20, "the session's programs do not notice");
    // It sees its own account, and not that of the user whose it is.
    let accounts = Launch::new(programs::unisono())
        .line("accounts --json")
        .env("UNISONO_ADDRESS", &path)
        .run()
        .with(0);
    let uids: Vec<_> = accounts.json_lines().iter().map(|line| line["uid"].as_u64()).collect();
    assert!(!uids.is_empty() && uids.iter().all(|uid| *uid == Some(0xffff_0000)), "{uids:?}");
}
