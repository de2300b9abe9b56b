//! Tables of decisions, and the whole against the sentence that describes it.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::Config;

fn policy(text: &str) -> Policy {
    Config::from_toml(text, Path::new("bus.toml")).expect(text).policy.of_owner(1000)
}

fn refused(text: &str) -> String {
    Config::from_toml(text, Path::new("bus.toml")).expect_err(text).to_string()
}

fn user(uid: u32) -> Subject {
    Subject {
        uid,
        user_groups: Some(vec![uid]),
        executable: Some("/usr/bin/app".to_owned()),
        sandbox: Sandbox::Outside,
        label: None,
        socket: None,
    }
}

fn name(text: &str) -> GroupName {
    text.parse().unwrap()
}

fn allows(policy: &Policy, subject: &Subject, action: Action, on: &str) -> bool {
    policy.decide(subject, action, Some(&name(on))).allowed
}

#[test]
fn without_rules_a_bus_is_its_users_and_roots() {
    let policy = Policy::private(1000);
    for action in Action::ALL {
        for (uid, expected) in [(1000, true), (0, true), (1001, false)] {
            let decision = policy.decide(&user(uid), action, None);
            assert_eq!(decision.allowed, expected, "{uid} {action}");
            assert_eq!(decision.rule, RulePlace::BuiltIn);
        }
    }
    assert!(policy.allows_everything(&user(1000)));
    assert!(!policy.allows_everything(&user(1001)));
}

#[test]
fn who_came_in_at_a_socket_of_its_own_may_only_connect() {
    let policy = Policy::private(1000);
    let boxed = Subject { socket: Some("box".to_owned()), ..user(1000) };
    for action in Action::ALL {
        let allowed = policy.decide(&boxed, action, None).allowed;
        assert_eq!(allowed, action == Action::Connect, "{action}");
    }
    assert!(!policy.is_trusted(&boxed));
}

#[test]
fn the_last_rule_that_fits_decides_and_is_named() {
    let policy = policy(
        r#"[[policy]]
allow = "*"
users = [7]

[[policy]]
deny = ["send", "call"]
on = ["org.example.*"]

[[policy]]
allow = ["send"]
on = ["org.example.Open"]
users = [7]
"#,
    );
    let decide = |uid, action, on: &str| {
        let decision = policy.decide(&user(uid), action, Some(&name(on)));
        (decision.allowed, decision.rule.to_string())
    };
    for (case, uid, action, on, expected) in [
        ("the first", 7, Action::Send, "org.other", (true, "bus.toml:1")),
        ("the second takes a part away", 7, Action::Send, "org.example.A", (false, "bus.toml:5")),
        ("the third gives some back", 7, Action::Send, "org.example.Open", (true, "bus.toml:9")),
        ("not for another action", 7, Action::Call, "org.example.Open", (false, "bus.toml:5")),
        ("nor another user", 1000, Action::Send, "org.example.Open", (false, "bus.toml:5")),
        ("the built-in one is before", 1000, Action::Send, "org.other", (true, "built-in")),
        ("a prefix ends in a dot", 7, Action::Send, "org.examples", (true, "bus.toml:1")),
        ("and has something behind it", 7, Action::Send, "org.example", (true, "bus.toml:1")),
    ] {
        let found = decide(uid, action, on);
        assert_eq!((found.0, found.1.as_str()), expected, "{case}");
    }
}

#[test]
fn every_condition_has_to_hold_and_one_of_its_alternatives() {
    let policy = policy(
        r#"[[policy]]
allow = ["own"]
users = [5, 7]
user_groups = [100]
executables = ["/usr/bin/app", "/opt/app/*"]
"#,
    );
    let good = Subject { user_groups: Some(vec![7, 100]), ..user(7) };
    assert!(allows(&policy, &good, Action::Own, "a"));
    let moved = Subject { executable: Some("/opt/app/bin/x".to_owned()), ..good.clone() };
    assert!(allows(&policy, &moved, Action::Own, "a"));
    for (case, subject) in [
        ("another user", Subject { uid: 6, ..good.clone() }),
        ("not in the group", Subject { user_groups: Some(vec![7]), ..good.clone() }),
        ("another program", Subject { executable: Some("/usr/bin/app2".to_owned()), ..good }),
    ] {
        assert!(!allows(&policy, &subject, Action::Own, "a"), "{case}");
    }
}

#[test]
fn what_is_not_known_helps_nobody() {
    let unknown = Subject { uid: 1000, ..Subject::default() };
    for condition in [
        "executables = [\"/usr/bin/app\"]",
        "sandboxes = [\"org.example.App\"]",
        "user_groups = [5]",
        "labels = [\"x\"]",
    ] {
        let denies = policy(&format!("[[policy]]\ndeny = \"*\"\n{condition}\n"));
        assert!(!allows(&denies, &unknown, Action::Join, "a"), "{condition}");
        assert!(!denies.allows_everything(&unknown), "{condition}");
        let allowing = policy(&format!("[[policy]]\nallow = \"*\"\n{condition}\n")).of_owner(5);
        assert!(!allows(&allowing, &unknown, Action::Join, "a"), "{condition}");
    }
}

#[test]
fn sandboxed_applications_are_told_apart() {
    let policy = policy(
        r#"[[policy]]
deny = "*"
sandboxes = ["*"]

[[policy]]
allow = ["connect", "call"]
on = ["org.example.Portal.*"]
sandboxes = ["org.example.*"]
"#,
    );
    let boxed = |id: &str| Subject { sandbox: Sandbox::Application(id.to_owned()), ..user(1000) };
    assert!(allows(&policy, &user(1000), Action::Call, "org.other"));
    assert!(!allows(&policy, &boxed("org.example.App"), Action::Call, "org.other"));
    assert!(allows(&policy, &boxed("org.example.App"), Action::Call, "org.example.Portal.Files"));
    assert!(!allows(&policy, &boxed("net.App"), Action::Call, "org.example.Portal.Files"));
    assert!(policy.decide(&boxed("org.example.App"), Action::Connect, None).allowed);
    assert!(policy.asks_for_processes());
}

#[test]
fn everything_is_allowed_only_if_no_part_is_denied() {
    let part = policy("[[policy]]\nallow = [\"monitor\"]\non = [\"org.example.*\"]\nusers = [7]\n");
    assert!(!part.decide(&user(7), Action::Monitor, None).allowed);
    assert!(allows(&part, &user(7), Action::Monitor, "org.example.A"));
    let hole = policy("[[policy]]\ndeny = [\"monitor\"]\non = [\"secret\"]\n");
    assert!(!hole.decide(&user(1000), Action::Monitor, None).allowed);
    assert!(allows(&hole, &user(1000), Action::Monitor, "org.example.A"));
}

#[test]
fn a_user_that_does_not_exist_is_nobody() {
    let policy = policy("[[policy]]\nallow = \"*\"\nusers = [\"nobody-has-this-name\"]\n");
    assert!(!allows(&policy, &user(7), Action::Join, "a"));
}

#[test]
fn a_mistake_is_told_with_its_line_and_column() {
    for (case, text, expected) in [
        ("neither", "x = 1", "bus.toml:1:1: "),
        ("no effect", "\n[[policy]]\nusers = [1]\n", "bus.toml:2:1: a rule has either"),
        (
            "two effects",
            "[[policy]]\nallow = \"*\"\ndeny = \"*\"\n",
            "bus.toml:1:1: a rule has either",
        ),
        ("unknown key", "[[policy]]\nallow = \"*\"\nuser = [1]\n", "bus.toml:3:1: "),
        ("unknown action", "[[policy]]\nallow = [\"fly\"]\n", "bus.toml:2:"),
        ("no action", "[[policy]]\nallow = []\n", "bus.toml:1:1: a rule about no action"),
        ("no name", "[[policy]]\nallow = \"*\"\non = []\n", "bus.toml:1:1: a rule about no name"),
        ("a star", "[[policy]]\nallow = \"*\"\non = [\"org.ex*\"]\n", "bus.toml:3:"),
        ("a bad name", "[[policy]]\nallow = \"*\"\non = [\"a..b\"]\n", "bus.toml:3:"),
        ("a relative path", "[[policy]]\nallow = \"*\"\nexecutables = [\"app\"]\n", "bus.toml:3:"),
    ] {
        let message = refused(text);
        assert!(message.starts_with(expected), "{case}: {message}");
    }
}

/// What `allows_everything` says by looking at rules is what asking for everything would say.
#[test]
fn open_to_whom_nothing_is_denied() {
    for (case, text, uid, expected) in [
        ("a denial of others", "[[policy]]\ndeny = \"*\"\nusers = [9]\n", 1000, true),
        ("a denial of a part", "[[policy]]\ndeny = [\"join\"]\non = [\"a\"]\n", 1000, false),
        (
            "taken back as a whole",
            "[[policy]]\ndeny = [\"join\"]\n[[policy]]\nallow = \"*\"\nusers = [7]\n",
            7,
            true,
        ),
        ("only a part allowed", "[[policy]]\nallow = [\"join\"]\nusers = [7]\n", 7, false),
    ] {
        assert_eq!(policy(text).allows_everything(&user(uid)), expected, "{case}");
    }
}

mod model {
    //! Rules against the sentence that describes them, said once more and as plainly as possible.

    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 4] = ["a", "a.b", "a.b.c", "z"];
    const PATTERNS: [&str; 5] = ["*", "a", "a.*", "a.b.*", "z"];

    #[derive(Clone, Debug)]
    struct Plain {
        allow: bool,
        actions: Option<Vec<Action>>,
        on: Option<Vec<&'static str>>,
        users: Option<Vec<u32>>,
        executables: Option<Vec<&'static str>>,
    }

    fn rule() -> impl Strategy<Value = Plain> {
        let actions = proptest::sample::subsequence(Action::ALL.to_vec(), 1..4);
        let on = proptest::sample::subsequence(PATTERNS.to_vec(), 1..3);
        let users = proptest::sample::subsequence(vec![0, 1000, 7, 8], 1..3);
        let executables = proptest::sample::subsequence(vec!["/x", "/d/*"], 1..3);
        let maybe = proptest::option::of::<proptest::strategy::BoxedStrategy<_>>;
        (
            any::<bool>(),
            maybe(actions.boxed()),
            proptest::option::of(on),
            proptest::option::of(users),
            proptest::option::weighted(0.2, executables),
        )
            .prop_map(|(allow, actions, on, users, executables)| Plain {
                allow,
                actions,
                on,
                users,
                executables,
            })
    }

    fn text(rules: &[Plain]) -> String {
        let mut text = String::new();
        for rule in rules {
            text += "[[policy]]\n";
            let effect = if rule.allow { "allow" } else { "deny" };
            let actions = rule.actions.as_ref();
            let words = actions.map(|all| all.iter().map(|a| a.as_str()).collect::<Vec<_>>());
            text += &match words {
                Some(words) => format!("{effect} = {words:?}\n"),
                None => format!("{effect} = \"*\"\n"),
            };
            for (key, list) in [("on", &rule.on), ("executables", &rule.executables)] {
                if let Some(list) = list {
                    text += &format!("{key} = {list:?}\n");
                }
            }
            if let Some(users) = &rule.users {
                text += &format!("users = {users:?}\n");
            }
        }
        text
    }

    fn matches(pattern: &str, name: &str) -> bool {
        match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == pattern,
        }
    }

    fn allowed(rules: &[Plain], subject: &Subject, action: Action, name: &str) -> bool {
        let is_about_a_name = !matches!(action, Action::Connect | Action::Direct);
        let mut answer = subject.uid == 1000 || subject.uid == 0;
        for rule in rules {
            let about_action = rule.actions.as_ref().is_none_or(|all| all.contains(&action));
            let about_name = match &rule.on {
                None => true,
                Some(on) if is_about_a_name => on.iter().any(|pattern| matches(pattern, name)),
                Some(_) => rule.actions.is_some(),
            };
            let about_user = rule.users.as_ref().is_none_or(|users| users.contains(&subject.uid));
            let about_program = match (&rule.executables, &subject.executable) {
                (None, _) => true,
                (Some(_), None) => !rule.allow,
                (Some(paths), Some(path)) => paths.iter().any(|pattern| matches(pattern, path)),
            };
            if about_action && about_name && about_user && about_program {
                answer = rule.allow;
            }
        }
        answer
    }

    fn subject_of(uid: u32, executable: Option<&str>) -> Subject {
        Subject { executable: executable.map(str::to_owned), ..user(uid) }
    }

    proptest! {
        #[test]
        fn the_rules_decide_as_the_sentence_says(
            rules in proptest::collection::vec(rule(), 0..6),
            uid in proptest::sample::select(vec![0, 1000, 7]),
            executable in proptest::sample::select(vec![None, Some("/x"), Some("/d/y"), Some("/z")]),
        ) {
            let policy = policy(&text(&rules));
            let subject = subject_of(uid, executable);
            let mut everything = true;
            for action in Action::ALL {
                for on in NAMES {
                    let expected = allowed(&rules, &subject, action, on);
                    prop_assert_eq!(allows(&policy, &subject, action, on), expected, "{} {}", action, on);
                    everything &= expected;
                }
                // What is allowed for all there can be is allowed for each.
                if policy.decide(&subject, action, None).allowed {
                    prop_assert!(NAMES.iter().all(|on| allowed(&rules, &subject, action, on)));
                }
            }
            if policy.allows_everything(&subject) {
                prop_assert!(everything);
            }
        }

        #[test]
        fn a_gate_says_what_the_rules_in_force_say(
            turns in proptest::collection::vec(proptest::collection::vec(rule(), 0..4), 1..4),
            uid in proptest::sample::select(vec![0, 1000, 7]),
        ) {
            let bus = bus_core::Bus::new(bus_core::Limits::default(), 7).unwrap();
            let credentials = bus_core::Credentials { uid, pid: 1 };
            let endpoint = bus.open_endpoint(credentials).unwrap();
            let groups: Vec<_> =
                NAMES.iter().map(|on| endpoint.create_group(&name(on)).unwrap().0).collect();
            let in_force = RulesInForce::new(Policy::private(1000));
            let mut gate = Gate::new(Arc::new(subject_of(uid, Some("/x"))), &in_force);
            for rules in turns {
                in_force.replace(policy(&text(&rules)));
                let subject = subject_of(uid, Some("/x"));
                // Twice: the second time it is kept.
                for (on, group) in NAMES.iter().zip(&groups).chain(NAMES.iter().zip(&groups)) {
                    let destination = bus_core::Destination::Group(*group);
                    let expected = allowed(&rules, &subject, Action::Send, on);
                    let found = gate.check_send(&in_force, &bus, destination).is_ok();
                    prop_assert_eq!(found, expected, "{}", on);
                }
            }
        }
    }
}
