//! Where the programs under test are.
//!
//! Cargo tells a test only where the programs of its own package are (`CARGO_BIN_EXE_...`), and
//! `bus-broker` and `unisono` belong to others. Depending on their binaries is unstable; giving
//! this package binaries with their sources would test copies, built with this package's
//! dependencies.
//! So: a test runs from `TARGET/PROFILE/deps`, and cargo puts programs into `TARGET/PROFILE`.
//! `cargo test` in the workspace has built both by then, because their packages have integration
//! tests. `cargo test -p tests` has not, or has left old ones: then one of the files that they are
//! made of is younger, and this asks cargo to build them. Cargo holds no lock while tests run, and
//! makes those wait for each other that build at the same time.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The broker.
pub fn bus_broker() -> PathBuf {
    directory().join("bus-broker")
}

/// The command line.
pub fn unisono() -> PathBuf {
    directory().join("unisono")
}

/// Whether they were built with a sanitizer (`.ci/sanitize`).
pub(crate) fn are_sanitized() -> bool {
    env::var_os("UNISONO_SANITIZED").is_some()
}

fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = DIRECTORY.get_or_init(|| {
        // Others than those that this run would build, such as with sanitizers.
        if let Some(directory) = env::var_os("UNISONO_PROGRAMS") {
            return Ok(directory.into());
        }
        let directory = profile_directory();
        if !up_to_date(&directory) {
            build(&directory)?;
        }
        Ok(directory)
    });
    found.as_ref().expect("the programs under test")
}

fn profile_directory() -> PathBuf {
    let exe = env::current_exe().unwrap();
    // Tests run from a directory `deps` in it, and programs from itself.
    let deps = exe.ancestors().find(|path| path.ends_with("deps")).unwrap_or(&exe);
    deps.parent().expect("in a profile's directory").to_owned()
}

fn up_to_date(directory: &Path) -> bool {
    let built = PROGRAMS.map(|program| modified(&directory.join(program)));
    let [Some(one), Some(other)] = built else {
        return false;
    };
    let root = workspace();
    let sources = ["Cargo.toml", "Cargo.lock", "bus-core", "bus-broker", "bus-client"];
    let youngest = sources.iter().filter_map(|name| youngest(&root.join(name)));
    youngest.max() <= Some(one.min(other))
}

fn build(directory: &Path) -> Result<(), String> {
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(other) => other,
        None => panic!("{} has no name", directory.display()),
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--profile", profile, "--manifest-path"]);
    command.arg(workspace().join("Cargo.toml"));
    command.arg("--target-dir").arg(directory.parent().unwrap());
    for program in PROGRAMS {
        command.args(["--package", program, "--bin", program]);
    }
    let status = command.status().expect("cargo runs, as it ran this test");
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}")) }
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// When the youngest file of a tree was changed; those that programs are not made of do not count.
fn youngest(path: &Path) -> Option<SystemTime> {
    if !path.is_dir() {
        return modified(path);
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    entries
        .filter(|entry| {
            let name = entry.file_name();
            let is_text = Path::new(&name).extension().is_some_and(|end| end == "md");
            !is_text && !OTHERS.iter().any(|other| name == *other)
        })
        .filter_map(|entry| youngest(&entry.path()))
        .max()
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

/// Packages, and their programs of the same names.
const PROGRAMS: [&str; 2] = ["bus-broker", "unisono"];

const OTHERS: [&str; 5] = ["tests", "examples", "benches", "fuzz", "target"];
