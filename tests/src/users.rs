//! Other users of the machine, for tests that run as root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::broker::Broker;
use crate::needs::needs;
use crate::process::{Ended, Launch};
use crate::program::Program;
use crate::programs;

/// A bus that lets everybody as far as these rules, as a machine's does.
#[must_use]
pub fn open_to_all(rules: &str) -> Broker {
    let_all_in(Broker::with(rules))
}

/// Lets everybody to the socket of a broker, and to what others need that try.
#[must_use]
pub fn let_all_in(broker: Broker) -> Broker {
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    mode(broker.socket().parent().expect("in a directory"), 0o755);
    mode(broker.socket(), 0o666);
    // Where this was built others may not get to.
    fs::copy(programs::unisono(), broker.file("unisono")).expect("there is room");
    broker
}

/// The command line as another user, in these groups.
#[must_use]
pub fn run_as(broker: &Broker, uid: u32, groups: &str, line: &str) -> Ended {
    drop(needs("setpriv", "util-linux"));
    Launch::new("setpriv")
        .line(&format!("--reuid={uid} --regid={uid} --groups={groups} --inh-caps=-all"))
        .arg(broker.file("unisono"))
        .line(line)
        .env("UNISONO_ADDRESS", broker.socket())
        .run()
}

/// A program of another user's.
#[must_use]
pub fn program_of(broker: &Broker, uid: u32, connector: &str) -> Program {
    let copy = broker.file("connector");
    if !copy.exists() {
        fs::copy(connector, &copy).expect("there is room");
    }
    let copy = copy.to_str().expect("of the test's own making");
    let (user, group) = (format!("--reuid={uid}"), format!("--regid={uid}"));
    let before = ["setpriv", &user, &group, "--clear-groups", "--inh-caps=-all"];
    Program::run_by(&before, copy, broker.socket())
}
