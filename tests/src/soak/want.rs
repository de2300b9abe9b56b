//! Brokers of their own, without descriptors, and with a log that has no room.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Fault, Faults, Field, TOO_FAST};
use crate::deadline::eventually;
use crate::programs;
use crate::raw::RawClient;

#[derive(Debug)]
struct Poor {
    child: Child,
    socket: PathBuf,
    directory: tempfile::TempDir,
}

impl Poor {
    /// A broker that a shell starts: `$0` is the program, `$1` its socket, `$2` its configuration,
    /// `$3` a file for its log.
    fn start(script: &str, filter: &str, log: Stdio) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus");
        let config = directory.path().join("broker.toml");
        let text = format!(
            "[limits]\nuser_connection_rate = 100000\n[log]\nfilter = \"{filter}\"\nformat = \"json\"\n"
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("sh")
            .arg("-c")
            .arg(script)
            .arg(programs::bus_broker())
            .arg(&socket)
            .arg(&config)
            .arg(directory.path().join("log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let poor = Self { child, socket, directory };
        eventually("it listens", || {
            std::os::unix::net::UnixStream::connect(&poor.socket)
                .map(drop)
                .map_err(|e| e.to_string())
        });
        poor
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Clients that come and go, and do something of which there is something to log, for so long
    /// and until lines are lost. Somebody else goes on all the while.
    fn until_lines_are_lost(&self, each: Duration) -> String {
        let began = Instant::now();
        let (mut clients, mut lost) = (0_u64, 0);
        let mut stays = RawClient::connect(&self.socket);
        while lost == 0 || began.elapsed() < each {
            let mut client = RawClient::connect(&self.socket);
            client.join("g");
            // Something to warn of.
            client.try_write(&[0xff; 64]);
            let _ = client.goodbye();
            lost = stays.stats().log_lines_lost;
            clients += 1;
        }
        format!("{clients} clients, each of whom should have been logged; {lost} lines lost")
    }
}

impl Drop for Poor {
    fn drop(&mut self) {
        let died = self.child.try_wait().unwrap();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() {
            assert_eq!(died, None, "it has ended by itself");
        }
    }
}

/// A broker with few descriptors: whoever is connected goes on, the others are told, and let in when
/// there is room again.
pub(super) fn descriptors(field: &mut Field<'_>) -> String {
    let script = "ulimit -n 64; exec \"$0\" --listen \"$1\" --config \"$2\" 2>\"$3\"";
    let poor = Poor::start(script, "info", Stdio::null());
    let began = Instant::now();
    let (mut rounds, mut refused) = (0_u64, 0_u64);
    let mut stays = RawClient::connect(&poor.socket);
    let mut inside = 0;
    while rounds == 0 || began.elapsed() < field.plan.each {
        rounds += 1;
        let mut clients = Vec::new();
        inside = 0;
        for _ in 0..100 {
            let mut client = RawClient::silent(&poor.socket);
            client.greet();
            clients.push(client);
        }
        for client in &mut clients {
            match client.try_hear() {
                Some(bus_core::wire::BrokerFrame::Welcome(_)) => inside += 1,
                _ => refused += 1,
            }
        }
        stays.ping();
        drop(clients);
        // There is room again.
        eventually("let in", || {
            let mut client = RawClient::silent(&poor.socket);
            client.greet();
            match client.try_hear() {
                Some(bus_core::wire::BrokerFrame::Welcome(_)) => Ok(()),
                other => {
                    refused += 1;
                    Err(format!("{other:?}"))
                }
            }
        });
    }
    // Until it is noticed that somebody has gone there may be no descriptor for the next.
    let mut faults = Faults::default();
    let what = "clients without a descriptor for them";
    for (message, about) in [
        ("connections are refused", "the broker has no descriptor"),
        ("connections are refused", TOO_FAST),
        ("cannot accept, and will try again", ""),
    ] {
        let fault = Fault { what, message, about, program: None, each: false };
        faults.injected(fault, refused);
    }
    let (told, findings) = faults.compare(&poor.log());
    field.findings.extend(findings);
    format!(
        "{rounds} rounds of 100 clients with 64 descriptors: {inside} inside, {refused} told no; its \
         log: {told}"
    )
}

/// A broker whose log cannot be written goes on without it.
pub(super) fn disk(field: &mut Field<'_>) -> String {
    let script = "exec \"$0\" --listen \"$1\" --config \"$2\" 2>/dev/full";
    Poor::start(script, "trace", Stdio::null()).until_lines_are_lost(field.plan.each)
}

/// A broker whose log nobody reads, though the pipe is there.
pub(super) fn unread_log(field: &mut Field<'_>) -> String {
    let script = "exec \"$0\" --listen \"$1\" --config \"$2\"";
    Poor::start(script, "trace", Stdio::piped()).until_lines_are_lost(field.plan.each)
}
