//! The naive broker: what comes from a sender is copied to every receiver, and that is all.
//!
//! It has no groups, no policy, no queues and no isolation: a receiver that does not read stops
//! everybody. It marks what is possible for a process in the middle. Since it alone writes, and
//! writes whole frames, all receivers see one order.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::net::{UnixListener, UnixStream},
    },
};

use rustix::event::{PollFd, PollFlags};

use super::{
    client::{Inbound, wait},
    plan::Plan,
};

/// What a client of the relay says it is.
pub(crate) const SENDER: u8 = b's';
pub(crate) const RECEIVER: u8 = b'r';
/// These two send to each other.
pub(crate) const CALLER: u8 = b'c';
pub(crate) const RESPONDER: u8 = b'a';

/// A client.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    what: u8,
    inbound: Inbound,
    ended: bool,
}

/// Relays until it is killed.
pub(crate) fn run(plan: &Plan, listening: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let listener = UnixListener::bind(plan.socket())?;
    listening()?;
    let mut clients: Vec<Client> = Vec::new();
    loop {
        let mut fds = vec![PollFd::new(&listener, PollFlags::IN)];
        let reading = |client: &&Client| client.what != RECEIVER;
        let streams = clients.iter().filter(reading).map(|c| c.stream.as_fd());
        fds.extend(streams.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        wait(&mut fds)?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let readers = (0..clients.len()).filter(|i| clients[*i].what != RECEIVER);
        let readers: Vec<usize> = readers.collect();
        for (index, _) in readers.iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            relay(&mut clients, *index, plan.size)?;
        }
        clients.retain(|client| !client.ended);
        if ready[0] {
            clients.push(accept(&listener, plan)?);
        }
    }
}

fn accept(listener: &UnixListener, plan: &Plan) -> io::Result<Client> {
    let mut stream = listener.accept()?.0;
    let mut what = [0];
    stream.read_exact(&mut what)?;
    stream.write_all(&what)?;
    Ok(Client { stream, what: what[0], inbound: Inbound::of_relay(plan), ended: false })
}

/// Copies what is whole of one client's input to those who are to have it.
fn relay(clients: &mut [Client], from: usize, size: usize) -> io::Result<()> {
    let (before, rest) = clients.split_at_mut(from);
    let Some((client, after)) = rest.split_first_mut() else {
        return Ok(());
    };
    match client.inbound.fill(&mut client.stream) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            client.ended = true;
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    let to = match client.what {
        CALLER => RESPONDER,
        RESPONDER => CALLER,
        _ => RECEIVER,
    };
    let whole = client.inbound.unread().len() / size * size;
    let bytes = &client.inbound.unread()[..whole];
    for other in before.iter_mut().chain(after).filter(|c| c.what == to) {
        other.stream.write_all(bytes)?;
    }
    client.inbound.consume(whole);
    Ok(())
}
