//! Who is at the other end of a connection, as the kernel knows it.
//!
//! Invariant: a connection's credentials are those of its `connect()`, read once when it is
//! accepted, and never what a client says of itself. Every message carries them.
//!
//! No pidfd is held: it would cost every idle connection a second descriptor. What needs the
//! process itself asks for it (`SO_PEERPIDFD`) when it decides.

use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt};

/// The peer of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerCredentials {
    pub(crate) uid: u32,
    /// 0 when the process is in a pid namespace that the broker cannot see into.
    pub(crate) pid: u32,
}

impl PeerCredentials {
    /// Asks the kernel.
    ///
    /// nix rather than rustix: rustix's type for the answer has no room for pid 0, which the kernel
    /// gives for a peer in a foreign pid namespace.
    pub(crate) fn of(socket: impl AsFd) -> nix::Result<Self> {
        let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
        Ok(Self { uid: peer.uid(), pid: u32::try_from(peer.pid()).unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_pair_of_ours_is_we() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = PeerCredentials::of(&ours).unwrap();
        assert_eq!(peer.pid, std::process::id());
        assert_eq!(peer.uid, nix::unistd::getuid().as_raw());
    }
}
