//! Brokers of their own, without descriptors, and with a log that has no room.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::Field;
use crate::deadline::eventually;
use crate::programs;
use crate::raw::RawClient;

struct Poor {
    child: Child,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Poor {
    /// A broker that a shell starts: `$0` is the program, `$1` its socket, `$2` a
    /// configuration by which it logs all there is.
    fn start(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus");
        let config = directory.path().join("broker.toml");
        std::fs::write(&config, "[log]\nfilter = \"trace\"\n").unwrap();
        let child = Command::new("sh")
            .arg("-c")
            .arg(script)
            .arg(programs::bus_broker())
            .arg(&socket)
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let poor = Self { child, socket, _directory: directory };
        eventually("it listens", || {
            std::os::unix::net::UnixStream::connect(&poor.socket)
                .map(drop)
                .map_err(|e| e.to_string())
        });
        poor
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
    let poor = Poor::start("ulimit -n 64; exec \"$0\" --listen \"$1\"");
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
                other => Err(format!("{other:?}")),
            }
        });
    }
    format!(
        "{rounds} rounds of 100 clients with 64 descriptors: {inside} inside, {refused} told no"
    )
}

/// A broker whose log cannot be written goes on without it.
pub(super) fn disk(field: &mut Field<'_>) -> String {
    let poor = Poor::start("exec \"$0\" --listen \"$1\" --config \"$2\" 2>/dev/full");
    let began = Instant::now();
    let mut frames = 0_u64;
    let mut stays = RawClient::connect(&poor.socket);
    while frames == 0 || began.elapsed() < field.plan.each {
        let mut client = RawClient::connect(&poor.socket);
        client.join("g");
        // Something to warn of.
        client.try_write(&[0xff; 64]);
        let _ = client.goodbye();
        stays.ping();
        frames += 1;
    }
    format!("{frames} clients, each of whom should have been logged")
}
