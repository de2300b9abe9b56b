//! Raw Unix stream sockets: directly to each receiver, or through a relay that copies bytes.
//!
//! Every frame has the payload's size, which all ends know, so there is nothing to parse: this is
//! what the kernel costs and no more.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::net::{UnixListener, UnixStream},
    },
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use super::{Caller, Inbound, Receiver, Responder, Sender, connect_socket};
use crate::bench::{
    plan::{Plan, Workload},
    relay,
    stamp::Stamp,
    system::System,
};

/// Frames that lie ready in one buffer.
#[derive(Debug)]
struct Frames {
    bytes: Vec<u8>,
    size: usize,
}

impl Frames {
    fn new(plan: &Plan) -> Self {
        Self { bytes: vec![0; plan.size * plan.batch.max(1)], size: plan.size }
    }

    fn fill(&mut self, stamps: &[Stamp]) -> &[u8] {
        for (frame, stamp) in self.bytes.chunks_exact_mut(self.size).zip(stamps) {
            stamp.write(frame);
        }
        &self.bytes[..self.size * stamps.len()]
    }
}

/// A socket for each receiver, and a write for each.
#[derive(Debug)]
pub(super) struct DirectSender {
    receivers: Vec<UnixStream>,
    frames: Frames,
}

impl DirectSender {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        let receivers = (0..plan.receivers)
            .map(|index| connect_socket(&plan.receiver_socket(index)))
            .collect::<io::Result<_>>()?;
        Ok(Self { receivers, frames: Frames::new(plan) })
    }
}

impl Sender for DirectSender {
    fn send(&mut self, stamps: &[Stamp]) -> io::Result<()> {
        let bytes = self.frames.fill(stamps);
        for receiver in &mut self.receivers {
            receiver.write_all(bytes)?;
        }
        Ok(())
    }
}

/// A socket from each sender.
#[derive(Debug)]
pub(super) struct DirectReceiver {
    senders: Vec<(UnixStream, Inbound)>,
    size: usize,
}

impl DirectReceiver {
    pub(super) fn new(plan: &Plan, index: usize) -> io::Result<Self> {
        let listener = UnixListener::bind(plan.receiver_socket(index))?;
        let senders = (0..plan.senders)
            .map(|_| Ok((listener.accept()?.0, Inbound::new(plan.size))))
            .collect::<io::Result<_>>()?;
        Ok(Self { senders, size: plan.size })
    }
}

impl Receiver for DirectReceiver {
    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        if let [(sender, inbound)] = self.senders.as_mut_slice() {
            inbound.fill(sender)?;
            take_frames(inbound, self.size, sink);
            return Ok(());
        }
        let mut ready = Vec::with_capacity(self.senders.len());
        let fds = self.senders.iter().map(|(sender, _)| sender.as_fd());
        let mut fds: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        wait(&mut fds)?;
        ready.extend(fds.iter().map(|fd| !fd.revents().is_empty()));
        drop(fds);
        let mut ended = Vec::new();
        for (index, (sender, inbound)) in self.senders.iter_mut().enumerate() {
            if !ready[index] {
                continue;
            }
            match inbound.fill(sender) {
                Ok(()) => take_frames(inbound, self.size, sink),
                // One that has nothing more to say may go before the others.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => ended.push(index),
                Err(error) => return Err(error),
            }
        }
        for index in ended.into_iter().rev() {
            self.senders.remove(index);
        }
        if self.senders.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// Sends into the relay.
#[derive(Debug)]
pub(super) struct RelaySender {
    relay: UnixStream,
    frames: Frames,
}

impl RelaySender {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        Ok(Self { relay: join_relay(plan, relay::SENDER)?, frames: Frames::new(plan) })
    }
}

impl Sender for RelaySender {
    fn send(&mut self, stamps: &[Stamp]) -> io::Result<()> {
        self.relay.write_all(self.frames.fill(stamps))
    }
}

/// Receives from the relay.
#[derive(Debug)]
pub(super) struct RelayReceiver {
    relay: UnixStream,
    inbound: Inbound,
    size: usize,
}

impl RelayReceiver {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        Ok(Self {
            relay: join_relay(plan, relay::RECEIVER)?,
            inbound: Inbound::of_relay(plan),
            size: plan.size,
        })
    }
}

impl Receiver for RelayReceiver {
    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.inbound.fill(&mut self.relay)?;
        take_frames(&mut self.inbound, self.size, sink);
        Ok(())
    }
}

/// A round trip over one socket, with or without the relay in it.
#[derive(Debug)]
pub(super) struct StreamCaller {
    stream: UnixStream,
    payload: Vec<u8>,
}

impl StreamCaller {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        let stream = match plan.system {
            System::Relay | System::RelayPlain => join_relay(plan, relay::CALLER)?,
            _ => connect_socket(&plan.receiver_socket(0))?,
        };
        Ok(Self { stream, payload: vec![0; plan.size] })
    }
}

impl Caller for StreamCaller {
    fn call(&mut self, stamp: Stamp, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        stamp.write(&mut self.payload);
        self.stream.write_all(&self.payload)?;
        self.stream.read_exact(&mut self.payload)?;
        sink(&self.payload);
        Ok(())
    }
}

/// Sends back what comes.
#[derive(Debug)]
pub(super) struct StreamResponder {
    stream: UnixStream,
    payload: Vec<u8>,
}

impl StreamResponder {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        debug_assert!(plan.workload == Workload::Rtt);
        let stream = match plan.system {
            System::Relay | System::RelayPlain => join_relay(plan, relay::RESPONDER)?,
            _ => UnixListener::bind(plan.receiver_socket(0))?.accept()?.0,
        };
        Ok(Self { stream, payload: vec![0; plan.size] })
    }
}

impl Responder for StreamResponder {
    fn address(&self) -> String {
        String::new()
    }

    fn respond(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.stream.read_exact(&mut self.payload)?;
        self.stream.write_all(&self.payload)?;
        sink(&self.payload);
        Ok(())
    }
}

/// Says what we are, and waits until the relay has noted it.
fn join_relay(plan: &Plan, what: u8) -> io::Result<UnixStream> {
    let mut relay = connect_socket(&plan.socket())?;
    relay.write_all(&[what])?;
    relay.read_exact(&mut [0])?;
    Ok(relay)
}

fn take_frames(inbound: &mut Inbound, size: usize, sink: &mut dyn FnMut(&[u8])) {
    let frames = inbound.unread().chunks_exact(size);
    let whole = frames.len() * size;
    frames.for_each(sink);
    inbound.consume(whole);
}

/// Waits until one of them is ready.
pub(crate) fn wait(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    loop {
        match poll(fds, None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
