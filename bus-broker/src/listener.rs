//! The socket that clients connect to, and who may own its path.
//!
//! Invariant: whoever binds a path holds the lock on `PATH.lock` for as long as it listens. A
//! socket file found while one holds that lock, to which nobody answers, is therefore stale and may
//! be replaced; every other case is a refusal. (A socket that a service manager listens on has no
//! lock and answers, so it is refused as well.) The lock file stays when the broker ends: removing
//! it would let two brokers hold locks on two files of the same name.
//!
//! Only the broker's user gets in: the file is made 0600 between `bind` and `listen`, when nobody
//! can connect yet, because an embedded broker may not touch its process's umask.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

/// A listening socket, and with it the right to its path.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    /// What clients connect to, as it is announced.
    address: PathBuf,
    /// Of the socket that we bound ourselves; absent when it was passed to us.
    _claim: Option<Claim>,
}

/// Our hold on a path: the lock, and which file we put there.
#[derive(Debug)]
struct Claim {
    path: PathBuf,
    device: u64,
    inode: u64,
    _lock: OwnedFd,
}

/// Why the broker does not listen. Nothing was changed, except that a stale socket may be gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// There is no default path; name one.
    #[error("XDG_RUNTIME_DIR is not set to an absolute path; name a socket with --listen PATH")]
    NoRuntimeDirectory,
    /// The path does not fit into a socket address; use a shorter one.
    #[error("{path} is too long for a socket address (at most 107 bytes)")]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Another broker serves this path. Use it, end it, or listen elsewhere.
    #[error("another broker listens on {path}")]
    AlreadyRunning {
        /// The path.
        path: PathBuf,
    },
    /// Something that is no socket has this name; it is left alone. Remove it or listen elsewhere.
    #[error("{path} exists and is not a socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another user could replace the socket. Use a directory of your own.
    #[error("directory {path} {problem}")]
    UnsafeDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The system refused; the message says what and why.
    #[error("cannot {action} {path}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Listener {
    /// Listens on the default path, `$XDG_RUNTIME_DIR/unisono/bus`.
    pub(crate) fn bind_default() -> Result<Self, ListenError> {
        let path = default_path(env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))?;
        let directory = path.parent().expect("the default path has a directory");
        make_private_directory(directory)?;
        Self::bind_in_directory(&path)
    }

    /// Listens on `path`. A directory that does not exist is made, for this user only.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let directory = directory_of(path);
        if directory.symlink_metadata().is_ok() {
            check_directory(directory)?;
        } else {
            make_private_directory(directory)?;
        }
        Self::bind_in_directory(path)
    }

    /// Takes a socket that somebody else bound and listens on.
    pub(crate) fn passed(socket: OwnedFd) -> io::Result<Self> {
        let address = rustix::net::getsockname(&socket)?;
        let address = SocketAddrUnix::try_from(address)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        let address = address
            .path()
            .map(|path| PathBuf::from(OsStr::from_bytes(path.to_bytes())))
            .unwrap_or_default();
        Ok(Self { socket, address, _claim: None })
    }

    fn bind_in_directory(path: &Path) -> Result<Self, ListenError> {
        let address = SocketAddrUnix::new(path)
            .map_err(|_| ListenError::PathTooLong { path: path.to_owned() })?;
        let lock = lock(path)?;
        remove_if_stale(path, &address)?;
        let failed = |action| {
            move |source: Errno| ListenError::System {
                action,
                path: path.to_owned(),
                source: source.into(),
            }
        };
        let socket = new_socket().map_err(failed("make a socket for"))?;
        rustix::net::bind(&socket, &address).map_err(failed("bind"))?;
        rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR).map_err(failed("set the mode of"))?;
        let file = rustix::fs::lstat(path).map_err(failed("look at"))?;
        rustix::net::listen(&socket, BACKLOG).map_err(failed("listen on"))?;
        Ok(Self {
            socket,
            address: path.to_owned(),
            _claim: Some(Claim {
                path: path.to_owned(),
                device: file.st_dev,
                inode: file.st_ino,
                _lock: lock,
            }),
        })
    }

    /// What clients connect to.
    pub(crate) fn address(&self) -> &Path {
        &self.address
    }

    /// Takes one waiting connection; `WouldBlock` when there is none.
    pub(crate) fn accept(&self) -> Result<OwnedFd, Errno> {
        rustix::io::retry_on_intr(|| {
            rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Claim {
    /// Removes our socket, so that clients see "no broker" and not "connection refused". The lock
    /// is held until the fields are dropped, after this.
    fn drop(&mut self) {
        if let Ok(file) = rustix::fs::lstat(&self.path)
            && (file.st_dev, file.st_ino) == (self.device, self.inode)
        {
            // Nothing to be done about a failure: the next broker replaces it.
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

fn default_path(runtime: Option<PathBuf>) -> Result<PathBuf, ListenError> {
    match runtime {
        Some(directory) if directory.is_absolute() => Ok(directory.join("unisono").join("bus")),
        _ => Err(ListenError::NoRuntimeDirectory),
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a directory that only this user can enter, or sees to it that one that exists is so.
fn make_private_directory(directory: &Path) -> Result<(), ListenError> {
    let failed =
        |action| move |source| ListenError::System { action, path: directory.to_owned(), source };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed("make directory"))?;
    let found = directory.symlink_metadata().map_err(failed("look at"))?;
    let refuse =
        |problem| Err(ListenError::UnsafeDirectory { path: directory.to_owned(), problem });
    if !found.is_dir() {
        return refuse("is not a directory");
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return refuse("belongs to another user");
    }
    if found.mode() & 0o777 != 0o700 {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
            .map_err(failed("set the mode of"))?;
    }
    Ok(())
}

/// A directory that somebody named by hand may be open to others, but not so that they could put
/// their own socket in our place.
fn check_directory(directory: &Path) -> Result<(), ListenError> {
    let found = directory.metadata().map_err(|source| ListenError::System {
        action: "look at",
        path: directory.to_owned(),
        source,
    })?;
    let problem = if !found.is_dir() {
        "is not a directory"
    } else if found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0 {
        "can be written to by other users"
    } else {
        return Ok(());
    };
    Err(ListenError::UnsafeDirectory { path: directory.to_owned(), problem })
}

fn lock(path: &Path) -> Result<OwnedFd, ListenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let failed = |action| {
        let name = name.clone();
        move |source: Errno| ListenError::System { action, path: name, source: source.into() }
    };
    let lock = rustix::fs::open(
        &name,
        OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::RUSR | Mode::WUSR,
    )
    .map_err(failed("open"))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(ListenError::AlreadyRunning { path: path.to_owned() }),
        Err(error) => Err(failed("lock")(error)),
    }
}

/// The caller holds the lock of `path`.
fn remove_if_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    let failed = |action| {
        move |source: Errno| ListenError::System {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    };
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(file) if !rustix::fs::FileType::from_raw_mode(file.st_mode).is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    let probe = new_socket().map_err(failed("make a socket for"))?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => {}
        // EAGAIN is a full backlog: somebody listens, and is only busy.
        Ok(()) | Err(Errno::AGAIN) => {
            return Err(ListenError::AlreadyRunning { path: path.to_owned() });
        }
        Err(error) => return Err(failed("connect to")(error)),
    }
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed("remove the stale socket")(error)),
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Connections that wait for `accept`; the kernel takes the lesser of this and `somaxconn`.
const BACKLOG: i32 = 4_096;

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().mode() & 0o777
    }

    #[test]
    fn the_default_path_needs_an_absolute_runtime_directory() {
        for (case, given) in [("unset", None), ("empty", Some("")), ("relative", Some("run"))] {
            let refused = default_path(given.map(PathBuf::from)).expect_err(case);
            assert!(refused.to_string().contains("--listen"), "{case}");
        }
        assert_eq!(
            default_path(Some("/run/user/7".into())).unwrap(),
            Path::new("/run/user/7/unisono/bus")
        );
    }

    #[test]
    fn directory_and_socket_are_for_this_user_only() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("unisono").join("bus");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&path), 0o600);
        let _client = UnixStream::connect(&path).unwrap();
        assert!(listener.accept().is_ok());
        assert_eq!(listener.accept().unwrap_err(), Errno::AGAIN);
    }

    #[test]
    fn a_loose_default_directory_is_tightened() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("unisono");
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        make_private_directory(&directory).unwrap();
        assert_eq!(mode(&directory), 0o700);
    }

    #[test]
    fn a_second_broker_is_refused_and_the_first_goes_on() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("bus");
        let _first = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::AlreadyRunning { .. })));
        UnixStream::connect(&path).expect("the first still listens");
    }

    #[test]
    fn a_listener_without_a_lock_is_refused_too() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("bus");
        let _manager = UnixListener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::AlreadyRunning { .. })));
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("bus");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file");
        let _listener = Listener::bind(&path).unwrap();
        UnixStream::connect(&path).expect("the new one listens");
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("bus");
        std::fs::write(&path, "a letter").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a letter");
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let top = tempfile::tempdir().unwrap();
        std::fs::set_permissions(top.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            Listener::bind(&top.path().join("bus")),
            Err(ListenError::UnsafeDirectory { .. })
        ));
    }

    #[test]
    fn a_path_that_is_too_long_is_named() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("x".repeat(108));
        assert!(matches!(Listener::bind(&path), Err(ListenError::PathTooLong { .. })));
    }

    #[test]
    fn the_socket_goes_with_the_broker_unless_it_is_anothers() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("bus");
        drop(Listener::bind(&path).unwrap());
        assert!(!path.exists());
        let ours = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists(), "another's socket stays");
    }

    #[test]
    fn a_passed_socket_is_served_and_not_removed() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("bus");
        let socket = UnixListener::bind(&path).unwrap();
        let listener = Listener::passed(socket.into()).unwrap();
        assert_eq!(listener.address(), path);
        let _client = UnixStream::connect(&path).unwrap();
        assert!(listener.accept().is_ok());
        drop(listener);
        assert!(path.exists());
    }
}
