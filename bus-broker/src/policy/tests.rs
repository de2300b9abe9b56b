//! Tables of decisions, and the whole against the sentence that describes it.

use std::path::Path;

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
