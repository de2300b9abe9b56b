//! UDP multicast over the loopback interface: no broker, no flow control, no promise.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use crate::bench::{plan::Plan, stamp::Stamp};

#[derive(Debug)]
pub(super) struct Sender {
    socket: UdpSocket,
    to: SocketAddrV4,
    payload: Vec<u8>,
}

impl Sender {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        sockopt::set_ip_multicast_if(&socket, &Ipv4Addr::LOCALHOST)?;
        sockopt::set_ip_multicast_loop(&socket, true)?;
        Ok(Self { socket, to: SocketAddrV4::new(GROUP, plan.port), payload: vec![0; plan.size] })
    }
}

impl super::Sender for Sender {
    fn send(&mut self, stamps: &[Stamp]) -> io::Result<()> {
        for stamp in stamps {
            stamp.write(&mut self.payload);
            self.socket.send_to(&self.payload, self.to)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Receiver {
    socket: UdpSocket,
    payload: Vec<u8>,
}

impl Receiver {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
        // All receivers share the port.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES)?;
        bind(&socket, &SocketAddrV4::new(GROUP, plan.port))?;
        sockopt::set_ip_add_membership(&socket, &GROUP, &Ipv4Addr::LOCALHOST)?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(SILENCE))?;
        Ok(Self { socket, payload: vec![0; plan.size + 1] })
    }
}

impl super::Receiver for Receiver {
    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        match self.socket.recv(&mut self.payload) {
            Ok(bytes) => {
                sink(&self.payload[..bytes]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::TimedOut.into())
            }
            Err(error) => Err(error),
        }
    }
}

/// Of the range for use within one site.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 77, 1);
/// What the baselines used: with the default it loses more.
const BUFFER_BYTES: usize = 4 << 20;
/// The last message may be lost, so silence has to end a run.
const SILENCE: Duration = Duration::from_millis(500);
