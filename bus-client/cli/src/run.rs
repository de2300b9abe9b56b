//! `unisono run -- COMMAND`: a command with a private bus of its own.
//!
//! The broker lives in this process, on a socket in a folder that only this user may enter, and
//! ends with the command. The command finds it by `UNISONO_ADDRESS`.

use std::{
    ffi::{CString, NulError, OsStr},
    os::unix::ffi::{OsStrExt, OsStringExt},
    process::ExitCode,
};

use bus_client::EmbeddedBroker;
use nix::{
    errno::Errno,
    libc,
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp},
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    cli,
    exit::{Exit, Failure},
    output::Output,
    signals::Signals,
};

/// Runs the command and tells its exit status.
pub(crate) fn run(
    options: &cli::Run,
    signals: &Signals,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let broker = EmbeddedBroker::start()?;
    let child = match spawn(&options.command, broker.address(), signals) {
        Ok(child) => child,
        Err(error) => {
            let command = options.command[0].display();
            output.note(&format!("cannot run {command}: {}", error.desc()));
            return Ok(ExitCode::from(not_run(error)));
        }
    };
    let code = wait(child, signals)?;
    broker.shutdown();
    Ok(ExitCode::from(code))
}

/// Starts the command with the signal mask that we were started with.
///
/// `std::process::Command` would pass on our own mask, and unblocking around it would let a signal
/// kill us before the socket is removed; `posix_spawn` sets the mask in the child.
fn spawn<S: AsRef<OsStr>>(command: &[S], address: &str, signals: &Signals) -> Result<Pid, Errno> {
    let arguments = c_strings(command.iter().map(|word| word.as_ref().as_bytes().to_vec()))
        .map_err(|_| Errno::EINVAL)?;
    let environment = environment(address).map_err(|_| Errno::EINVAL)?;
    let mut attributes = PosixSpawnAttr::init()?;
    let flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
    attributes.set_flags(flags)?;
    attributes.set_sigmask(signals.mask_before())?;
    // Rust programs ignore SIGPIPE, which the command must not inherit.
    let mut reset = SigSet::empty();
    reset.add(Signal::SIGPIPE);
    attributes.set_sigdefault(&reset)?;
    posix_spawnp(
        &arguments[0],
        &PosixSpawnFileActions::init()?,
        &attributes,
        &arguments,
        &environment,
    )
}

fn environment(address: &str) -> Result<Vec<CString>, NulError> {
    let own = OsStr::new(VARIABLE);
    let others = std::env::vars_os().filter(|(name, _)| name != own);
    let all = others.chain([(own.to_owned(), address.into())]);
    c_strings(all.map(|(name, value)| {
        let mut pair = name.into_vec();
        pair.push(b'=');
        pair.extend(value.into_vec());
        pair
    }))
}

fn c_strings(words: impl Iterator<Item = Vec<u8>>) -> Result<Vec<CString>, NulError> {
    words.map(CString::new).collect()
}

/// Waits for the child, and passes on the signals that were meant for both of us.
fn wait(child: Pid, signals: &Signals) -> Result<u8, Failure> {
    loop {
        // Signals of one kind merge, so the state of the child is what counts.
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(by_signal(signal)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Failure::about("cannot wait for the command", error)),
        }
        let info =
            signals.wait().map_err(|error| Failure::about("cannot wait for signals", error))?;
        if let Some(signal) = to_pass_on(info.ssi_signo, info.ssi_code) {
            // It may have ended just now; then the next look tells.
            let _ = kill(child, signal);
        }
    }
}

/// A terminal's interrupt goes to the whole foreground group, hence to the command as well; twice
/// would be once too often. What another process sent went to us alone.
fn to_pass_on(signal: u32, code: i32) -> Option<Signal> {
    let signal = i32::try_from(signal).ok().and_then(|n| Signal::try_from(n).ok())?;
    let from_kernel = code == libc::SI_KERNEL;
    (signal != Signal::SIGCHLD && !from_kernel).then_some(signal)
}

/// As shells tell it.
fn by_signal(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
}

/// As `env` and shells tell it: not found, or not to be run.
fn not_run(error: Errno) -> u8 {
    match error {
        Errno::ENOENT => 127,
        Errno::EACCES | Errno::ENOEXEC => 126,
        _ => Exit::Error as u8,
    }
}

const VARIABLE: &str = "UNISONO_ADDRESS";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_shells() {
        assert_eq!(by_signal(Signal::SIGKILL), 137);
        assert_eq!(not_run(Errno::ENOENT), 127);
        assert_eq!(not_run(Errno::EACCES), 126);
    }

    #[test]
    fn a_terminals_interrupt_is_not_passed_on_twice() {
        let int = Signal::SIGINT as u32;
        assert_eq!(to_pass_on(int, libc::SI_KERNEL), None);
        assert_eq!(to_pass_on(int, libc::SI_USER), Some(Signal::SIGINT));
        assert_eq!(to_pass_on(Signal::SIGCHLD as u32, libc::CLD_EXITED), None);
    }

    #[test]
    fn the_command_gets_one_address_and_the_rest_of_the_environment() {
        let environment = environment("/somewhere").expect("no NUL");
        let addresses: Vec<_> = environment
            .iter()
            .filter(|pair| pair.as_bytes().starts_with(b"UNISONO_ADDRESS="))
            .collect();
        assert_eq!(addresses, [c"UNISONO_ADDRESS=/somewhere"]);
        assert!(environment.iter().any(|pair| pair.as_bytes().starts_with(b"PATH=")));
    }
}
