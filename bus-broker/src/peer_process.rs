//! Which process is at the other end of a connection, for the accounts.
//!
//! A pid does not say it: it is 0 for a peer in a pid namespace that the broker cannot see into, and
//! another process has it later. Since Linux 6.9 a pidfd is a file whose inode number belongs to one
//! process for as long as the machine runs, in whatever namespaces it is; so that is asked for
//! (`SO_PEERPIDFD`, since 6.5) and the pidfd closed again. On older kernels the pid must do, and a
//! peer without one is a program by itself.

use std::os::fd::AsFd;
use std::sync::OnceLock;

use bus_core::{Ledger, Process};
use nix::sys::socket::{getsockopt, sockopt};

use crate::policy::process;

/// Which process has connected. `pid` is its pid as far as the broker sees it.
pub(crate) fn of(socket: impl AsFd, pid: u32, ledger: &Ledger) -> Process {
    if let Some(number) = number_of_peer(&socket) {
        return Process::Pidfd(number);
    }
    match pid {
        0 => Process::Unknown(ledger.next_number()),
        pid => Process::Pid(pid),
    }
}

/// Whether the process at the other end has ended. False where the kernel does not say.
pub(crate) fn has_ended(socket: impl AsFd) -> bool {
    match getsockopt(&socket, sockopt::PeerPidfd) {
        Ok(process) => !process::is_alive(process.as_fd()),
        Err(error) => error == nix::errno::Errno::ESRCH,
    }
}

/// None where the kernel has no such number, or the process is gone already.
fn number_of_peer(socket: &impl AsFd) -> Option<u64> {
    if NUMBERS.get() == Some(&false) {
        return None;
    }
    let process = getsockopt(socket, sockopt::PeerPidfd).ok()?;
    let has_numbers = match NUMBERS.get() {
        Some(known) => *known,
        None => {
            let kind = rustix::fs::fstatfs(&process).ok()?.f_type;
            *NUMBERS.get_or_init(|| kind == PIDFS_MAGIC)
        }
    };
    if !has_numbers {
        return None;
    }
    Some(rustix::fs::fstat(&process).ok()?.st_ino)
}

/// Whether pidfds have numbers of their own, once that is known: a kernel does not learn it.
static NUMBERS: OnceLock<bool> = OnceLock::new();

/// What `fstatfs` says of a file whose inode number is a process's own. Before, all pidfds had one
/// number between them.
const PIDFS_MAGIC: rustix::fs::FsWord = 0x5049_4446;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use bus_core::Limits;

    use super::*;

    #[test]
    fn a_process_is_the_same_on_each_of_its_connections() {
        let ledger = Ledger::new(&Limits::default());
        let [one, other] = [(); 2].map(|()| UnixStream::pair().unwrap().0);
        let pid = std::process::id();
        assert_eq!(of(&one, pid, &ledger), of(&other, pid, &ledger));
        if let Process::Pidfd(number) = of(&one, 0, &ledger) {
            assert_ne!(number, 0);
        } else {
            assert_ne!(of(&one, 0, &ledger), of(&other, 0, &ledger), "nobody is told from anybody");
        }
    }
}
