//! What is packaged fits together: files exist, configurations are read by the program that they are
//! for, units are right and closed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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

#[test]
fn scripts_are_scripts() {
    for name in ["debian/postinst", "debian/prerm", "95unisono"] {
        let checked = Command::new("sh").arg("-n").arg(packaged(name)).status().unwrap();
        assert!(checked.success(), "{name}");
    }
}
