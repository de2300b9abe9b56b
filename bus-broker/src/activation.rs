//! Sockets that systemd opened before it started us (socket activation).
//!
//! # Safety
//!
//! systemd passes descriptor *numbers* in the environment, and a number becomes an `OwnedFd` only
//! by assertion. It holds here because `take` reads the numbers meant for this very process id,
//! asks the kernel of each whether it is an open listening Unix stream socket, and hands them out
//! once: a second call finds the flag set. A program that embeds the broker never comes here.
#![expect(unsafe_code, reason = "descriptors arrive as numbers in the environment")]

use std::{
    io,
    os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::net::{AddressFamily, SocketType, sockopt};

/// Why the sockets that were passed cannot be used. Mend the socket unit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivationError {
    /// The environment variables are there and make no sense.
    #[error("socket activation: {0}")]
    Environment(#[source] io::Error),
    /// A descriptor that is no listening Unix stream socket; set `ListenStream=` to a path.
    #[error("socket activation: descriptor {0} is not a listening unix stream socket")]
    NotAListener(RawFd),
}

/// Takes the sockets passed to this process, if there are any and nobody took them before.
///
/// # Errors
///
/// The environment is inconsistent, or a descriptor is of the wrong kind.
pub fn activation_sockets() -> Result<Vec<OwnedFd>, ActivationError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let numbers = sd_notify::listen_fds().map_err(ActivationError::Environment)?;
    if numbers.len() == 0 || TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    numbers
        .map(|number| {
            // SAFETY: `listen_fds` has just set a flag on this descriptor, so it is open, and
            // nothing closes it during the call.
            let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
            if !is_listener(borrowed) {
                return Err(ActivationError::NotAListener(number));
            }
            // SAFETY: the service manager gave it to this process for this use, and TAKEN keeps it
            // from being handed out twice.
            Ok(unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect()
}

fn is_listener(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(fd) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(fd) == Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn only_listening_unix_sockets_are_taken() {
        let directory = tempfile::tempdir().unwrap();
        let listener =
            std::os::unix::net::UnixListener::bind(directory.path().join("bus")).unwrap();
        assert!(is_listener(listener.as_fd()));
        let (connected, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!is_listener(connected.as_fd()));
        let tcp = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        assert!(!is_listener(tcp.as_fd()));
    }

    #[test]
    fn without_a_service_manager_there_are_none() {
        assert_eq!(activation_sockets().unwrap().len(), 0);
    }
}
