//! The listening socket of an ingress, Unix or TCP.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::{Ingress, IngressAddress, IngressError};
use crate::listener::Listener;

/// A listening socket, and what its streams are.
#[derive(Debug)]
pub(crate) struct IngressListener {
    socket: Socket,
    pub(crate) ingress: Arc<Ingress>,
}

#[derive(Debug)]
enum Socket {
    Unix(Listener),
    Tcp(OwnedFd),
}

impl IngressListener {
    pub(crate) fn bind(
        address: &IngressAddress,
        ingress: Arc<Ingress>,
    ) -> Result<Self, IngressError> {
        let socket = match address {
            IngressAddress::Unix(path) => Socket::Unix(Listener::bind(path)?),
            IngressAddress::Tcp(address) => {
                Socket::Tcp(listen_tcp(address).map_err(std::io::Error::from)?)
            }
        };
        Ok(Self { socket, ingress })
    }

    /// Where it listens, with the port that the system chose.
    pub(crate) fn address(&self) -> Option<IngressAddress> {
        match &self.socket {
            Socket::Unix(listener) => Some(IngressAddress::Unix(listener.address().to_owned())),
            Socket::Tcp(socket) => {
                let address = rustix::net::getsockname(socket).ok()?;
                Some(IngressAddress::Tcp(SocketAddr::try_from(address).ok()?))
            }
        }
    }

    /// Takes one waiting connection; `WouldBlock` when there is none.
    pub(crate) fn accept(&self) -> Result<OwnedFd, Errno> {
        match &self.socket {
            Socket::Unix(listener) => listener.accept(),
            Socket::Tcp(socket) => rustix::io::retry_on_intr(|| {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                rustix::net::accept_with(socket, flags)
            }),
        }
    }
}

impl AsFd for IngressListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(listener) => listener.as_fd(),
            Socket::Tcp(socket) => socket.as_fd(),
        }
    }
}

fn listen_tcp(address: &SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // A port of connections that have just ended is free again.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Connections that wait for `accept`.
const BACKLOG: i32 = 128;
