//! What a broker and its helper say to each other: a TOML document a datagram, at most one
//! descriptor with it.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use bus_core::GroupName;
use rustix::{
    io::retry_on_intr,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{config::CommandServices, policy::Sandbox};

/// From the broker.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub(super) enum Order {
    /// Where the bus is, where its service files are, and who runs their commands.
    Introduce { address: Option<String>, directories: Vec<PathBuf>, commands: CommandServices },
    /// Start a service.
    Start { start: u64, name: GroupName },
    /// It owns its name.
    Arrived { start: u64 },
    /// What is the process whose descriptor comes with this?
    Look { look: u64, pid: u32 },
}

/// From the helper.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub(super) enum Report {
    /// A start came to nothing.
    Ended { start: u64, why: String },
    /// What there is to know of a process.
    Looked { look: u64, executable: Option<String>, sandbox: SandboxWord },
}

/// [`Sandbox`] in a document.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum SandboxWord {
    Unknown,
    Outside,
    Application(String),
}

impl From<SandboxWord> for Sandbox {
    fn from(word: SandboxWord) -> Self {
        match word {
            SandboxWord::Unknown => Self::Unknown,
            SandboxWord::Outside => Self::Outside,
            SandboxWord::Application(id) => Self::Application(id),
        }
    }
}

impl From<Sandbox> for SandboxWord {
    fn from(sandbox: Sandbox) -> Self {
        match sandbox {
            Sandbox::Unknown => Self::Unknown,
            Sandbox::Outside => Self::Outside,
            Sandbox::Application(id) => Self::Application(id),
        }
    }
}

pub(super) fn buffer() -> Vec<u8> {
    vec![0; MOST_BYTES]
}

/// Sends a document. Does not wait: an error if the other side has not taken those before.
pub(super) fn send<T: Serialize>(
    socket: impl AsFd,
    document: &T,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    send_with(socket, document, descriptor, super::SEND)
}

/// The same, and waits for the other side to take those before: the broker's thread that attends the
/// helper does nothing else, and an answer that is lost keeps a client waiting.
pub(super) fn report<T: Serialize>(socket: impl AsFd, document: &T) -> io::Result<()> {
    send_with(socket, document, None, SendFlags::NOSIGNAL)
}

fn send_with<T: Serialize>(
    socket: impl AsFd,
    document: &T,
    descriptor: Option<BorrowedFd<'_>>,
    flags: SendFlags,
) -> io::Result<()> {
    let text = toml::to_string(document).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let bytes = [io::IoSlice::new(text.as_bytes())];
    retry_on_intr(|| rustix::net::sendmsg(&socket, &bytes, &mut control, flags))?;
    Ok(())
}

/// Waits for a document. None once the other side has ended.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        let mut bytes = [io::IoSliceMut::new(&mut *buffer)];
        rustix::net::recvmsg(&socket, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)
    });
    let count = match received {
        Ok(received) => received.bytes,
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(error) => return Err(error.into()),
    };
    if count == 0 {
        return Ok(None);
    }
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptors.next();
        }
    }
    let text = std::str::from_utf8(&buffer[..count]).map_err(io::Error::other)?;
    let document = toml::from_str(text).map_err(io::Error::other)?;
    Ok(Some((document, descriptor)))
}

/// The longest document.
const MOST_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    #[test]
    fn no_report_is_lost_however_far_behind_its_reader_is() {
        let (ours, theirs) = pair();
        let said = |look| Report::Looked { look, executable: None, sandbox: SandboxWord::Unknown };
        let reporting = std::thread::spawn(move || {
            (0..5_000).for_each(|look| report(&ours, &said(look)).unwrap());
        });
        let mut buffer = buffer();
        for look in 0..5_000 {
            let (heard, _) = receive::<Report>(&theirs, &mut buffer).unwrap().unwrap();
            assert!(matches!(heard, Report::Looked { look: l, .. } if l == look), "{look}");
        }
        reporting.join().unwrap();
        assert!(receive::<Report>(&theirs, &mut buffer).unwrap().is_none());
    }

    #[test]
    fn what_is_said_is_heard() {
        let (ours, theirs) = pair();
        let mut buffer = buffer();
        let orders = [
            Order::Introduce {
                address: Some("/a b\n".into()),
                directories: vec!["/x".into()],
                commands: CommandServices::Systemd,
            },
            Order::Start { start: 7, name: "org.a".parse().unwrap() },
            Order::Look { look: 1, pid: 2 },
        ];
        for order in orders {
            send(&ours, &order, Some(ours.as_fd())).unwrap();
            let (heard, descriptor) = receive::<Order>(&theirs, &mut buffer).unwrap().unwrap();
            assert_eq!(heard, order);
            assert!(descriptor.is_some());
        }
        for sandbox in [Sandbox::Unknown, Sandbox::Outside, Sandbox::Application("a".into())] {
            let report =
                Report::Looked { look: 3, executable: None, sandbox: sandbox.clone().into() };
            send(&theirs, &report, None).unwrap();
            let (heard, descriptor) = receive::<Report>(&ours, &mut buffer).unwrap().unwrap();
            assert_eq!((heard, descriptor.is_none()), (report, true));
        }
        drop(theirs);
        assert!(receive::<Report>(&ours, &mut buffer).unwrap().is_none());
    }
}
