//! Another program of the same user, or in other namespaces: a process whose connections the test
//! uses.
//!
//! A connection has the credentials of the process that made it, so the broker takes what the test
//! does with it for that process's doing.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::cmsg_space;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::deadline::DEADLINE;
use crate::raw::RawClient;

/// A process that connects for the test. It ends with this.
#[derive(Debug)]
pub struct Program {
    child: Child,
    asks: UnixStream,
}

impl Program {
    /// A program that connects to this socket.
    #[must_use]
    pub fn start(connector: &str, socket: &Path) -> Self {
        Self::run_by(&[], connector, socket)
    }

    /// The same, run by another program with these words before it.
    #[must_use]
    pub fn run_by(before: &[&str], connector: &str, socket: &Path) -> Self {
        let (asks, theirs) = UnixStream::pair().unwrap();
        asks.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut words = before.iter().copied().chain([connector]);
        let child = Command::new(words.next().unwrap())
            .args(words)
            .arg(socket)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        Self { child, asks }
    }

    /// Its process id, or that of the program that runs it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A connection of its own that has said nothing yet.
    #[must_use]
    pub fn silent(&mut self) -> RawClient {
        self.asks.write_all(b"?").unwrap();
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut byte)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.asks, &mut slices, &mut control, flags).unwrap();
        assert_eq!(received.bytes, 1, "the connector has ended");
        let passed = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        RawClient::over(passed.expect("a connection").into())
    }

    /// A connection of its own that has been greeted.
    #[must_use]
    pub fn client(&mut self) -> RawClient {
        let mut client = self.silent();
        client.greet();
        client.welcomed();
        client
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
