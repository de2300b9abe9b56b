//! Programs that a test needs and a machine may lack.

use std::process::{Command, Stdio};

/// The program, ready for arguments.
///
/// # Panics
///
/// It is missing; the message says what to install. (Where it is missing and not required, the test
/// was ignored, see `build.rs`.)
#[must_use]
pub fn needs(program: &str, package: &str) -> Command {
    let there =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(
        there.is_ok(),
        "this test needs {program}: install the package {package}, or run the tests without \
         UNISONO_REQUIRE"
    );
    Command::new(program)
}
