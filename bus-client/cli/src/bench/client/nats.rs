//! NATS over loopback TCP, by its text protocol: it has no Unix socket.

use std::{
    io::{self, Write as _},
    net::{Ipv4Addr, TcpStream},
};

use super::{Caller, Inbound, PATIENCE, Receiver, Responder, Sender};
use crate::bench::{plan::Plan, stamp::Stamp};

/// A connection that has been greeted.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    inbound: Inbound,
    size: usize,
}

pub(super) fn connect(plan: &Plan) -> io::Result<Connection> {
    let stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, plan.port).into(), PATIENCE)?;
    stream.set_nodelay(true)?;
    let mut connection =
        Connection { stream, inbound: Inbound::new(plan.size + LINE_ROOM), size: plan.size };
    connection.expect("INFO")?;
    connection.confirm("CONNECT {\"verbose\":false,\"pedantic\":false}\r\n")?;
    Ok(connection)
}

impl Connection {
    fn subscribed(plan: &Plan, subject: &str) -> io::Result<Self> {
        let mut connection = connect(plan)?;
        connection.confirm(&format!("SUB {subject} 1\r\n"))?;
        Ok(connection)
    }

    /// Sends a line, and waits until the server has come that far.
    fn confirm(&mut self, line: &str) -> io::Result<()> {
        self.stream.write_all(format!("{line}PING\r\n").as_bytes())?;
        self.expect("PONG")
    }

    fn expect(&mut self, what: &str) -> io::Result<()> {
        loop {
            if let Some(end) = line_end(self.inbound.unread()) {
                let line = String::from_utf8_lossy(&self.inbound.unread()[..end]).into_owned();
                self.inbound.consume(end);
                if line.starts_with(what) {
                    return Ok(());
                }
                return Err(io::Error::other(format!("refused: {}", line.trim_end())));
            }
            self.inbound.fill(&mut self.stream)?;
        }
    }

    /// Waits for messages, and gives those that are there.
    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        loop {
            let mut taken = false;
            while let Some(end) = line_end(self.inbound.unread()) {
                let unread = self.inbound.unread();
                if unread.starts_with(b"PING") {
                    self.inbound.consume(end);
                    self.stream.write_all(b"PONG\r\n")?;
                    continue;
                }
                if !unread.starts_with(b"MSG") {
                    let line = String::from_utf8_lossy(&unread[..end]).into_owned();
                    return Err(io::Error::other(format!("refused: {}", line.trim_end())));
                }
                let Some(payload) = unread.get(end..end + self.size) else {
                    break;
                };
                if unread.len() < end + self.size + 2 {
                    break;
                }
                sink(payload);
                taken = true;
                self.inbound.consume(end + self.size + 2);
            }
            if taken {
                return Ok(());
            }
            self.inbound.fill(&mut self.stream)?;
        }
    }
}

/// Messages that lie ready in one buffer.
#[derive(Debug)]
struct Publication {
    bytes: Vec<u8>,
    one: usize,
    payload_at: usize,
    size: usize,
}

impl Publication {
    fn new(subject: &str, size: usize, batch: usize) -> Self {
        let mut one = format!("PUB {subject} {size}\r\n").into_bytes();
        let payload_at = one.len();
        one.resize(payload_at + size, 0);
        one.extend(b"\r\n");
        Self { one: one.len(), bytes: one.repeat(batch.max(1)), payload_at, size }
    }

    fn fill(&mut self, stamps: &[Stamp]) -> &[u8] {
        for (bytes, stamp) in self.bytes.chunks_exact_mut(self.one).zip(stamps) {
            stamp.write(&mut bytes[self.payload_at..]);
        }
        &self.bytes[..self.one * stamps.len()]
    }

    fn payload(&mut self) -> &mut [u8] {
        &mut self.bytes[self.payload_at..self.payload_at + self.size]
    }
}

#[derive(Debug)]
pub(super) struct Publisher {
    connection: Connection,
    publication: Publication,
}

impl Publisher {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        Ok(Self {
            connection: connect(plan)?,
            publication: Publication::new(SUBJECT, plan.size, plan.batch),
        })
    }
}

impl Sender for Publisher {
    fn send(&mut self, stamps: &[Stamp]) -> io::Result<()> {
        self.connection.stream.write_all(self.publication.fill(stamps))
    }
}

#[derive(Debug)]
pub(super) struct Subscriber(Connection);

impl Subscriber {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        Connection::subscribed(plan, SUBJECT).map(Self)
    }
}

impl Receiver for Subscriber {
    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.0.receive(sink)
    }
}

#[derive(Debug)]
pub(super) struct NatsCaller {
    connection: Connection,
    publication: Publication,
}

impl NatsCaller {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        Ok(Self {
            connection: Connection::subscribed(plan, BACK)?,
            publication: Publication::new(SUBJECT, plan.size, 1),
        })
    }
}

impl Caller for NatsCaller {
    fn call(&mut self, stamp: Stamp, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.connection.stream.write_all(self.publication.fill(&[stamp]))?;
        self.connection.receive(sink)
    }
}

#[derive(Debug)]
pub(super) struct NatsResponder {
    connection: Connection,
    publication: Publication,
}

impl NatsResponder {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        Ok(Self {
            connection: Connection::subscribed(plan, SUBJECT)?,
            publication: Publication::new(BACK, plan.size, 1),
        })
    }
}

impl Responder for NatsResponder {
    fn address(&self) -> String {
        String::new()
    }

    fn respond(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let Self { connection, publication } = self;
        connection.receive(&mut |payload| {
            publication.payload().copy_from_slice(payload);
            sink(payload);
        })?;
        connection.stream.write_all(&publication.bytes)
    }
}

/// Where the first line ends, its newline counted.
fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|b| *b == b'\n').map(|at| at + 1)
}

const SUBJECT: &str = "b";
const BACK: &str = "a";
/// More than any line that we are sent; the greeting is the longest.
const LINE_ROOM: usize = 4096;
