//! `unisono run`.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use nix::sys::signal::Signal;

use crate::harness::{Ended as _, Running, output, unisono};

#[test]
fn a_command_gets_a_private_bus_and_its_status_is_ours() {
    let script = r#"
        "$0" listen g -n 1 -q &
        "$0" send g "from $1" --wait-members 1 || exit 1
        wait
        exit 7
    "#;
    let program = env!("CARGO_BIN_EXE_unisono");
    let output = output(unisono(["run", "--", "sh", "-c", script, program, "here"])).assert_code(7);
    assert_eq!(output.text(), "from here\n");
}

#[test]
fn the_socket_is_private_and_goes_with_the_command() {
    let output = output(unisono([
        "run",
        "--",
        "sh",
        "-c",
        r#"ls -ld "$(dirname "$UNISONO_ADDRESS")"; echo "$UNISONO_ADDRESS""#,
    ]));
    let output = output.assert_code(0);
    let (folder, address) = output.text().split_once('\n').expect("two lines");
    assert!(folder.starts_with("drwx------"), "{folder}");
    let path = address.trim().trim_start_matches("unix:");
    assert!(path.starts_with('/') && !Path::new(path).exists(), "{path}");
}

#[test]
fn what_cannot_be_run_is_127_or_126() {
    output(unisono(["run", "--", "no-such-command-anywhere"])).assert_code(127);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(file.path(), mode).expect("set");
    let path = file.path().display().to_string();
    output(unisono(["run", "--", &path])).assert_code(126);
}

#[test]
fn a_signal_is_passed_on_and_told_as_shells_tell_it() {
    let running = Running::start(unisono(["run", "--", "sh", "-c", "echo ready; exec sleep 600"]));
    assert_eq!(running.line(), "ready");
    running.signal(Signal::SIGTERM);
    running.finish().assert_code(128 + 15);
}

/// The program itself has signals blocked and SIGPIPE ignored; the command must not notice.
#[test]
fn the_command_gets_the_signals_as_we_got_them() {
    let script = "grep -E 'Sig(Blk|Ign)' /proc/self/status";
    let inner = output(unisono(["run", "--", "sh", "-c", script])).assert_code(0);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script]);
    let outer = output(command).assert_code(0);
    assert_eq!(inner.text(), outer.text());
}
