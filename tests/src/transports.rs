//! A test program's own tests once more, with bytes that travel another way.
//!
//! What is promised does not depend on the transport, so the tests that guard it need not know of
//! it: they are run again with `UNISONO_TRANSPORT`, which programs and libraries go by that were not
//! told otherwise. Left to themselves they begin by the socket and go over to rings.

use std::env;
use std::process::Command;

/// Runs those tests of the calling program that guard one of these guarantees (`g2_...`), by the
/// socket alone, and then by rings from the first message on.
///
/// # Panics
///
/// One of them fails; what it said is printed.
pub fn run_by_each(guarantees: &[u8]) {
    let names: Vec<String> = guarantees.iter().map(|number| format!("g{number}_")).collect();
    for transport in ["socket", "ring"] {
        let mut command = Command::new(env::current_exe().unwrap());
        let output = command.args(&names).env("UNISONO_TRANSPORT", transport).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "by {transport}: {said}");
        assert!(!said.contains(" 0 passed"), "there are tests of these names: {said}");
    }
}
