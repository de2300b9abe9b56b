//! What is packaged fits together: files exist, configurations are read by the program that they are
//! for, units are right and closed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::deadline::eventually;
use tests::needs::needs;
use tests::process::Launch;
use tests::programs;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn packaged(name: &str) -> PathBuf {
    root().join("packaging").join(name)
}

#[test]
fn every_file_of_the_debian_package_is_there() {
    let package = root().join("bus-client/cli");
    let text = fs::read_to_string(package.join("Cargo.toml")).unwrap();
    let assets = text.split_once("\nassets = [").unwrap().1.split_once("\n]").unwrap().0;
    let sources: Vec<&str> = assets.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert!(sources.len() > 10, "{assets}");
    for source in sources {
        match source.strip_prefix("target/release/") {
            Some(program) => assert!(["unisono", "bus-broker"].contains(&program), "{program}"),
            None => assert!(package.join(source).is_file(), "{source}"),
        }
    }
    assert!(text.contains("\nname = \"unisono\"\n"));
}

#[test]
fn the_packaged_rules_are_what_their_comments_say() {
    let check = |config: &str, line: &str| {
        let rules = packaged("config");
        Launch::new(programs::unisono())
            .line("policy check")
            .line(line)
            .line("--owner 990 --config")
            .arg(packaged(config))
            .arg("--directory")
            .arg(directory_with(&rules.join("10-everybody.toml")))
            .run()
    };
    let system = |line: &str| check("config/system.toml", line);
    system("connect --as 4242").with(0);
    system("own org.example.Clock --as 4242").with(1);
    system("call org.example.Clock --as 4242").with(1);
    system("monitor --as 4242").with(1);
    system("own org.example.Clock --as 990").with(0);
    system("monitor --as root").with(0);
    let session = Launch::new(programs::unisono())
        .line("policy check connect --as 4242 --owner 990 --config")
        .arg(packaged("config/session.toml"))
        .run();
    assert_eq!(session.with(1).output, "no rule allows it\n");
}

/// A directory with this file alone.
fn directory_with(file: &Path) -> PathBuf {
    let directory = tempfile::tempdir().unwrap().keep();
    fs::copy(file, directory.join(file.file_name().unwrap())).unwrap();
    directory
}

/// A unit as it would be installed, but for where the program is.
fn unit(kind: &str, into: &Path) -> PathBuf {
    for name in ["unisono.service", "unisono.socket"] {
        let text = fs::read_to_string(packaged("systemd").join(kind).join(name)).unwrap();
        let broker = programs::bus_broker();
        let text = text.replace("/usr/lib/unisono/bus-broker", broker.to_str().unwrap());
        fs::write(into.join(name), text).unwrap();
    }
    into.join("unisono.service")
}

#[test]
#[cfg_attr(not(has_systemd_analyze), ignore = "needs systemd-analyze")]
fn needs_systemd_analyze_the_units_are_right_and_closed() {
    // How open systemd takes a unit to be, of 10. It judges as if it were the system's; the user's
    // manager has no capabilities and no devices to take away.
    for (kind, most) in [("system", 2.0), ("user", 7.0)] {
        let directory = tempfile::tempdir().unwrap();
        let service = unit(kind, directory.path());
        let verified = needs("systemd-analyze", "systemd")
            .args(["verify", "--man=no"])
            .args([&service, &service.with_extension("socket")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        let ours: Vec<&str> = said.lines().filter(|line| line.contains("unisono")).collect();
        assert!(ours.is_empty(), "{kind}: {ours:?}");
        let judged = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(&service)
            .output()
            .unwrap();
        let judged = String::from_utf8_lossy(&judged.stdout).into_owned();
        println!("{kind}:\n{judged}");
        let overall = judged.lines().find(|line| line.contains("Overall exposure")).expect(&judged);
        let level: f64 =
            overall.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(level <= most, "{kind}: {overall}");
    }
}

/// A user's service manager without a session: it wants to see that the system has one, and its end is
/// the end of all that it has started.
const MANAGER: &str = "\
mount -t tmpfs none /run && mkdir -p /run/systemd/system || exit 1
/lib/systemd/systemd --user --unit=unisono.socket --log-target=console < /dev/null &
while read -r words; do
    systemctl --user --no-pager $words 2>&1
    echo done $?
done
";

/// The units as they are installed, under a service manager: the socket is there first, the first
/// client starts the broker, a reload reaches it, and the session's programs learn its address.
#[test]
#[cfg_attr(not(all(has_systemctl, has_root)), ignore = "needs systemd, and to be root")]
fn needs_systemctl_the_users_units_run_under_a_service_manager() {
    drop(needs("systemctl", "systemd"));
    let directory = tempfile::tempdir().unwrap();
    let (units, runtime) = (directory.path().join("units"), directory.path().join("run"));
    fs::create_dir(&units).unwrap();
    fs::create_dir(&runtime).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).unwrap();
    unit("user", &units);
    let config = packaged("config/session.toml");
    for (name, from, to) in [
        // Whoever runs this is root, who has no session.
        ("unisono.socket", "ConditionUser=!@system", ""),
        ("unisono.service", "/etc/unisono/session.toml", config.to_str().unwrap()),
    ] {
        let text = fs::read_to_string(units.join(name)).unwrap();
        assert!(text.contains(from), "{name}");
        fs::write(units.join(name), text.replace(from, to)).unwrap();
    }
    let mut manager = Launch::new("unshare")
        .line("--mount --pid --fork --mount-proc --kill-child=SIGKILL sh -c")
        .arg(MANAGER)
        .env("XDG_RUNTIME_DIR", &runtime)
        .env("SYSTEMD_UNIT_PATH", format!("{}:", units.display()))
        .env("SYSTEMD_GENERATOR_PATH", "/nonexistent")
        .env("SYSTEMD_ENVIRONMENT_GENERATOR_PATH", "/nonexistent")
        .input_piped()
        .start();
    let socket = runtime.join("unisono/bus");
    let status = eventually("the socket is there", || {
        let client = Launch::new(programs::unisono()).env("UNISONO_ADDRESS", &socket);
        let ended = client.line("status --json").run();
        if ended.code() == Some(0) { Ok(ended) } else { Err(ended.errors) }
    });
    assert_eq!(status.json_lines()[0]["protocol"], 1);
    let mut asks = manager.stdin();
    let mut ask = |words: &str| {
        writeln!(asks, "{words}").unwrap();
        let lines = std::iter::from_fn(|| Some(manager.line()));
        let mut said = String::new();
        for line in lines {
            if line.starts_with("done ") {
                return (said, line);
            }
            said += &line;
            said.push('\n');
        }
        unreachable!("a line at a time")
    };
    let (said, code) = ask("show unisono.service -p ActiveState -p SubState -p NotifyAccess");
    assert!(said.contains("ActiveState=active") && code == "done 0", "{said}");
    let (said, _) = ask("show-environment");
    assert!(said.contains(&format!("UNISONO_ADDRESS={}", socket.display())), "{said}");
    let (said, code) = ask("reload unisono.service");
    assert_eq!(code, "done 0", "{said}");
    ask("stop unisono.service unisono.socket");
    let (said, _) = ask("show unisono.service -p Result -p ActiveState");
    assert!(said.contains("Result=success") && said.contains("ActiveState=inactive"), "{said}");
}

#[test]
fn scripts_are_scripts() {
    for name in ["debian/postinst", "debian/prerm", "95unisono"] {
        let checked = Command::new("sh").arg("-n").arg(packaged(name)).status().unwrap();
        assert!(checked.success(), "{name}");
    }
}
