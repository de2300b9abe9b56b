//! Who is at the other end of a connection, as the kernel knows it.
//!
//! Invariant: a connection's credentials are those of its `connect()`, read once when it is
//! accepted, and never what a client says of itself. Every message carries them.
//!
//! No pidfd is held: it would cost every idle connection a second descriptor. It is asked for when
//! the rules want to know the process, looked at while the connection is accepted, and closed.
//!
//! # Safety
//!
//! Groups and label are read with `getsockopt` itself, for which neither nix nor rustix has a form:
//! the kernel writes at most as many bytes as it is told that there are, into memory that is ours,
//! initialised, and valid for any bytes.
#![expect(unsafe_code, reason = "two socket options that no crate knows")]

use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};

use crate::policy::{ProcessIdentity, Subject, process};

/// The peer of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerCredentials {
    pub(crate) uid: u32,
    /// 0 when the process is in a pid namespace that the broker cannot see into.
    pub(crate) pid: u32,
    gid: u32,
}

impl PeerCredentials {
    /// Asks the kernel.
    ///
    /// nix rather than rustix: rustix's type for the answer has no room for pid 0, which the kernel
    /// gives for a peer in a foreign pid namespace.
    pub(crate) fn of(socket: impl AsFd) -> nix::Result<Self> {
        let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
        let pid = u32::try_from(peer.pid()).unwrap_or(0);
        Ok(Self { uid: peer.uid(), pid, gid: peer.gid() })
    }

    /// Who that is to the rules.
    pub(crate) fn subject(self, socket: impl AsFd, came_in_at: Option<&str>) -> Subject {
        let with_own = |mut groups: Vec<u32>| {
            groups.push(self.gid);
            groups
        };
        Subject {
            uid: self.uid,
            user_groups: groups(&socket).map(with_own),
            label: label(&socket),
            socket: came_in_at.map(str::to_owned),
            ..Subject::default()
        }
    }

    /// What its process tells beside; nothing if the kernel cannot say which process it is.
    pub(crate) fn process(self, socket: impl AsFd) -> ProcessIdentity {
        match process::peer_process(&socket) {
            Some(process) => ProcessIdentity::look(process.as_fd(), self.pid),
            None => ProcessIdentity::default(),
        }
    }
}

/// The supplementary groups that the peer had when it connected.
fn groups(socket: &impl AsFd) -> Option<Vec<u32>> {
    // As many as a process can have.
    let bytes = option(socket, libc::SO_PEERGROUPS, 4 * 65_536)?;
    let groups = bytes
        .chunks_exact(4)
        .map(|group| u32::from_ne_bytes(group.try_into().expect("chunks of 4 bytes")));
    Some(groups.collect())
}

/// What a security module calls the peer.
fn label(socket: &impl AsFd) -> Option<String> {
    let mut bytes = option(socket, libc::SO_PEERSEC, 4_096)?;
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    String::from_utf8(bytes).ok().filter(|label| !label.is_empty())
}

/// The value of an option, if it has at most `most` bytes.
fn option(socket: &impl AsFd, name: libc::c_int, most: u32) -> Option<Vec<u8>> {
    // Most answers are short, and the kernel says how long one is that does not fit.
    let mut length: libc::socklen_t = 256;
    for _ in 0..2 {
        let mut value = vec![0_u8; length as usize];
        // SAFETY: the descriptor is borrowed for the call; `value` has `length` bytes, and the
        // kernel writes no more than that.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                name,
                value.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result == 0 {
            value.truncate(length as usize);
            return Some(value);
        }
        let is_longer = nix::errno::Errno::last() == nix::errno::Errno::ERANGE;
        if !is_longer || length > most || length as usize <= value.len() {
            return None;
        }
    }
    None
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
        let subject = peer.subject(&ours, None);
        let groups = subject.user_groups.expect("the kernel tells a peer's groups");
        for group in nix::unistd::getgroups().unwrap() {
            assert!(groups.contains(&group.as_raw()), "{group}");
        }
        assert!(groups.contains(&nix::unistd::getegid().as_raw()));
    }
}
