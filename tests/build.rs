//! Finds out which programs the tests can use, so that those that lack one are ignored.
//!
//! libtest decides what is ignored when a test is compiled, so this is where to look. For each
//! program that is there, the cfg `has_PROGRAM` is set; a test that needs one says
//! `#[cfg_attr(not(has_sha256sum), ignore = "needs sha256sum")]`, and is then reported by libtest
//! as ignored, with that reason. Under `UNISONO_REQUIRE=all` the cfg of every program is set: the
//! test runs, and `tests::needs` fails it with what to install. What cannot be installed (to be
//! root, to be let make namespaces) is not required; its tests are reported as ignored.

use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=UNISONO_REQUIRE");
    println!("cargo::rerun-if-env-changed=PATH");
    let required = env::var("UNISONO_REQUIRE").is_ok_and(|wanted| wanted == "all");
    // Only root can be somebody else for a while.
    println!("cargo::rustc-check-cfg=cfg(has_root)");
    if std::fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0) {
        println!("cargo::rustc-cfg=has_root");
    }
    println!("cargo::rustc-check-cfg=cfg(has_user_namespaces)");
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--pid", "--fork", "true"]);
    if unshare.status().is_ok_and(|status| status.success()) {
        println!("cargo::rustc-cfg=has_user_namespaces");
    }
    for program in PROGRAMS {
        let name = program.replace('-', "_");
        println!("cargo::rustc-check-cfg=cfg(has_{name})");
        let found = find(program);
        match &found {
            Some(path) => println!("cargo::rerun-if-changed={}", path.display()),
            // A file that does not exist counts as changed, so this looks again each time.
            None => println!("cargo::rerun-if-changed=missing-{program}"),
        }
        if required || found.is_some() {
            println!("cargo::rustc-cfg=has_{name}");
        }
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// What the tests use beside what they build.
const PROGRAMS: [&str; 4] = ["setpriv", "sha256sum", "systemctl", "systemd-analyze"];
