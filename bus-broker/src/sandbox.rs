//! What the program `bus-broker` gives up once it is set up and before it takes its first client.
//!
//! Invariants, of every thread that serves clients:
//! - It never gains a privilege (`no_new_privs`), and has no capability.
//! - Of the file system it reaches what a reload reads, and may remove its own sockets (Landlock). It
//!   reaches no network, and signals nobody else, where the kernel knows how to forbid that.
//! - It makes the system calls of [`calls`] and no others (seccomp): none that starts a program or
//!   another process, none that makes memory executable. What is not there fails with `ENOSYS`, which
//!   libraries expect of an old kernel: a call that somebody forgot is an error with a name and not
//!   the end of a bus. With `sandbox = "log"` it goes through, and the kernel logs it.
//!
//! All of it holds for the thread that enters, and for those that it starts: so it is entered before
//! the first of them. What needs more is the business of the helper, which is started before.
//! A broker inside another program never comes here.

use std::{io, path::Path, path::PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
    path_beneath_rules,
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::Deserialize;

use crate::config::{Config, Listen};
use crate::ingress::IngressAddress;

mod calls;

/// How far the program `bus-broker` confines itself. A broker inside another program ignores this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SandboxMode {
    /// As far as the kernel can.
    #[default]
    On,
    /// The same, but system calls that are not expected are logged by the kernel and go through: to
    /// find out what is missing.
    Log,
    /// Not at all.
    Off,
}

/// Why the sandbox was not entered. Some of it may hold already, so end the process, and start it
/// again with `sandbox = "off"` if it has to go without.
#[derive(Debug, thiserror::Error)]
#[error("cannot enter the sandbox ({what}): {source}; sandbox = \"off\" goes without")]
pub struct SandboxError {
    what: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Confines this thread and those that it starts from now on. For the program `bus-broker`, once its
/// sockets are bound and its helper runs.
///
/// # Errors
///
/// See [`SandboxError`]. A kernel without Landlock is none: it is said in the log.
pub fn enter_sandbox(config: &Config) -> Result<(), SandboxError> {
    if config.sandbox == SandboxMode::Off {
        tracing::warn!("no sandbox, as the configuration says");
        return Ok(());
    }
    drop_capabilities().map_err(failed("capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("no_new_privs"))?;
    let landlock = restrict_files(config).map_err(failed("landlock"))?;
    calls::restrict(config.sandbox).map_err(failed("seccomp"))?;
    match landlock {
        RulesetStatus::NotEnforced => {
            tracing::warn!("this kernel has no landlock: files are not out of reach");
        }
        status => tracing::info!(landlock = ?status, mode = ?config.sandbox, "in the sandbox"),
    }
    Ok(())
}

fn drop_capabilities() -> io::Result<()> {
    // Without the right to it the bounding set stays, and means nothing under no_new_privs.
    for capability in CapabilitySet::all().iter() {
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let _ = rustix::thread::clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)?;
    Ok(())
}

fn restrict_files(config: &Config) -> Result<RulesetStatus, RulesetError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let rules = path_beneath_rules(read_paths(config), read);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(BitFlags::from(Scope::Signal))?
        .create()?
        .add_rules(rules)?;
    for directory in socket_directories(config) {
        if let Ok(directory) = PathFd::new(directory) {
            let remove = BitFlags::from(AccessFs::RemoveFile);
            ruleset = ruleset.add_rule(PathBeneath::new(directory, remove))?;
        }
    }
    Ok(ruleset.restrict_self()?.ruleset)
}

/// What a reload reads. Directories, not files: an editor puts a new file in the old one's place.
fn read_paths(config: &Config) -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::from("/etc")];
    if let Some(source) = config.source() {
        paths.push(directory_of(source));
    }
    paths.extend(config.policy_directories.iter().cloned());
    paths.extend(config.service_directories());
    paths
}

/// Where its sockets are, which it removes when it ends.
fn socket_directories(config: &Config) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    match &config.listen {
        Listen::Path(path) => directories.push(directory_of(path)),
        Listen::Default => {
            let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            directories.extend(runtime.map(|runtime| runtime.join("unisono")));
        }
        Listen::Nowhere => {}
    }
    directories.extend(config.socket.iter().map(|socket| directory_of(&socket.path)));
    let ingresses = config.ingress.iter().filter_map(|ingress| match &ingress.listen {
        IngressAddress::Unix(path) => Some(directory_of(path)),
        IngressAddress::Tcp(_) => None,
    });
    directories.extend(ingresses);
    directories.extend(config.metrics.listen.as_deref().map(directory_of));
    directories
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn failed<E>(what: &'static str) -> impl FnOnce(E) -> SandboxError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| SandboxError { what, source: Box::new(source) }
}

/// The youngest interface of Landlock that is asked for; an older kernel does what it can.
const KNOWN: ABI = ABI::V6;

#[cfg(test)]
mod tests {
    use std::{fs, process::Command, thread};

    use rustix::net::{AddressFamily, SocketType};

    use super::*;

    /// Everything here is a thread's own, so a test has a thread for it.
    fn inside<T: Send + 'static>(config: Config, act: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = thread::spawn(move || {
            enter_sandbox(&config).expect("this kernel can");
            act()
        });
        thread.join().expect("no panic")
    }

    #[test]
    fn what_a_broker_does_not_need_it_cannot_do() {
        let top = tempfile::tempdir().unwrap();
        let (ours, theirs) = (top.path().join("ours"), top.path().join("theirs"));
        fs::create_dir(&ours).unwrap();
        fs::write(ours.join("rules.toml"), "x = 1").unwrap();
        fs::write(&theirs, "secret").unwrap();
        let mut config = Config::default();
        config.policy_directories = vec![ours.clone()];
        inside(config, move || {
            assert_eq!(fs::read_to_string(ours.join("rules.toml")).unwrap(), "x = 1");
            assert!(Command::new("/bin/true").spawn().is_err(), "no program");
            let stream = SocketType::STREAM;
            assert!(rustix::net::socket(AddressFamily::INET, stream, None).is_err(), "no network");
            rustix::net::socket(AddressFamily::UNIX, stream, None).unwrap();
            let status = fs::read_to_string("/proc/thread-self/status");
            if fs::read_to_string(&theirs).is_err() {
                assert!(status.is_err(), "nothing else either");
                assert!(fs::write(ours.join("new"), "x").is_err(), "it only reads");
            }
            thread::spawn(|| 7).join().expect("threads are started");
        });
    }

    #[test]
    fn a_socket_is_removed_where_it_was_made() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("bus");
        fs::write(&path, "").unwrap();
        let mut config = Config::default();
        config.listen = Listen::Path(path.clone());
        inside(config, move || fs::remove_file(&path).unwrap());
    }

    #[test]
    fn switched_off_it_does_nothing() {
        let mut config = Config::default();
        config.sandbox = SandboxMode::Off;
        inside(config, || Command::new("/bin/true").status().unwrap());
    }
}
