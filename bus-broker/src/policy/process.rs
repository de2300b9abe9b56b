//! What is known of a client's process beside its user: which file it executes, which sandbox it is
//! in.
//!
//! Invariant: what is told is of the process that connected. Its number alone would not do, because
//! a number is used again; so the kernel is asked for a descriptor of the process that called
//! `connect()` (`SO_PEERPIDFD`), what stands under its number in `/proc` is read, and then the
//! descriptor is asked whether that process still lives. While it lives nobody else has its number.
//!
//! What it does not prove: a process may connect, and execute another file before it is looked at.
//! Programs of one user are not protected from each other by this; a sandbox's file is, because
//! a sandboxed process cannot leave its root.

use std::{
    io::Read,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};

use super::Sandbox;

/// What a look at a process has told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessIdentity {
    pub(crate) executable: Option<String>,
    pub(crate) sandbox: Sandbox,
}

/// A descriptor of the process at the other end; none if the kernel has no such thing, or the
/// process is gone.
pub(crate) fn peer_process(socket: impl AsFd) -> Option<OwnedFd> {
    getsockopt(&socket, sockopt::PeerPidfd).ok()
}

impl ProcessIdentity {
    /// Looks at the process `pid`, which `process` is a descriptor of. May block for as long as that
    /// process likes: its root can be a file system of its own making.
    pub(crate) fn look(process: BorrowedFd<'_>, pid: u32) -> Self {
        Self::look_at_once(process, pid).unwrap_or_else(|| {
            let found = Self { executable: executable(pid), sandbox: sandbox(pid) };
            if is_alive(process) { found } else { Self::default() }
        })
    }

    /// The same without blocking, of a process that sees the same file systems as this one: so it is
    /// in no sandbox. None of any other.
    pub(crate) fn look_at_once(process: BorrowedFd<'_>, pid: u32) -> Option<Self> {
        if pid == 0 {
            return Some(Self::default());
        }
        let namespace =
            |of: &str| rustix::fs::readlink(format!("/proc/{of}/ns/mnt"), Vec::new()).ok();
        if namespace(&pid.to_string())? != namespace("self")? {
            return None;
        }
        let found = Self { executable: executable(pid), sandbox: Sandbox::Outside };
        Some(if is_alive(process) { found } else { Self::default() })
    }
}

/// Whether a process runs.
pub(crate) fn is_alive(process: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(&process, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&now))) == Ok(0)
}

fn executable(pid: u32) -> Option<String> {
    let target = rustix::fs::readlink(format!("/proc/{pid}/exe"), Vec::new()).ok()?;
    // A file that was removed is known by its old name and this word; nothing may pass for it.
    let path = target.into_string().ok()?;
    (!path.ends_with(" (deleted)")).then_some(path)
}

/// Flatpak puts a file into the root of each sandbox, which the sandboxed cannot change.
fn sandbox(pid: u32) -> Sandbox {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(format!("/proc/{pid}/root"), directory, Mode::empty()) else {
        return Sandbox::Unknown;
    };
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&root, ".flatpak-info", flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::NOENT) => return Sandbox::Outside,
        Err(_) => return Sandbox::Unknown,
    };
    if !file.metadata().is_ok_and(|found| found.is_file()) {
        return Sandbox::Unknown;
    }
    let mut text = String::new();
    match file.take(MOST_INFO_BYTES).read_to_string(&mut text) {
        Ok(_) => application_of(&text).map_or(Sandbox::Unknown, Sandbox::Application),
        Err(_) => Sandbox::Unknown,
    }
}

/// `name` in the group `Application`, or in `Runtime` of a sandbox without an application.
fn application_of(info: &str) -> Option<String> {
    let mut in_group = false;
    for line in info.lines().map(str::trim) {
        if line.starts_with('[') {
            in_group = matches!(line, "[Application]" | "[Runtime]");
        } else if in_group
            && let Some((key, value)) = line.split_once('=')
            && key.trim() == "name"
        {
            return Some(value.trim().to_owned());
        }
    }
    None
}

/// More than any such file has.
const MOST_INFO_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_application_is_the_name_in_its_group() {
        let text = "[Context]\nname=no.Such\n[Application]\nname = org.example.App\nruntime=x\n";
        assert_eq!(application_of(text).as_deref(), Some("org.example.App"));
        assert_eq!(application_of("[Instance]\nname=x\n"), None);
        assert_eq!(application_of(""), None);
    }

    #[test]
    fn of_this_process_the_executable_is_known() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let Some(process) = peer_process(&ours) else { return };
        let found = ProcessIdentity::look(process.as_fd(), std::process::id());
        let exe = std::env::current_exe().unwrap();
        assert_eq!(found.executable.as_deref(), exe.to_str());
    }

    #[test]
    fn of_a_process_that_is_gone_nothing_is_known() {
        let mut child = std::process::Command::new("/bin/cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        child.kill().unwrap();
        child.wait().unwrap();
        let found = ProcessIdentity::look(process.unwrap().as_fd(), std::process::id());
        assert_eq!(found, ProcessIdentity::default());
    }
}
