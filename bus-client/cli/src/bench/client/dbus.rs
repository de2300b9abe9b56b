//! D-Bus: a raw client that marshals a signal once and then only changes its payload.
//!
//! Invariant: what is received is skipped by the lengths in its header, so no message is taken for
//! another; only those of the kind that the client waits for, with a payload of the run's size, are
//! given on. Nothing else of a header is looked at.

use std::{
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{Caller, Inbound, Receiver, Responder, Sender, connect_socket};
use crate::bench::{plan::Plan, stamp::Stamp};

/// A connection that has been greeted.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    inbound: Inbound,
    /// The unique name.
    name: String,
}

impl Connection {
    pub(super) fn open(plan: &Plan) -> io::Result<Self> {
        Self::over(connect_socket(&plan.socket())?, plan.size)
    }

    /// Authenticates and says hello in one write, as the protocol allows.
    fn over(mut stream: UnixStream, size: usize) -> io::Result<Self> {
        let mut bytes = authentication(false);
        bytes.extend(driver_call(1, "Hello", ""));
        stream.write_all(&bytes)?;
        let mut inbound = Inbound::new(size + HEADER_ROOM);
        read_line(&mut stream, &mut inbound)?;
        let mut connection = Self { stream, inbound, name: String::new() };
        connection.name = connection.reply_text()?;
        Ok(connection)
    }

    /// Asks for the signals of this benchmark.
    fn add_match(&mut self) -> io::Result<()> {
        let rule = format!("type='signal',interface='{INTERFACE}'");
        self.stream.write_all(&driver_call(2, "AddMatch", &rule))?;
        self.reply_text().map(drop)
    }

    /// Waits for a reply, and gives its text where it begins with one.
    fn reply_text(&mut self) -> io::Result<String> {
        loop {
            while let Some(message) = Header::of(self.inbound.unread())? {
                let body = &self.inbound.unread()[message.body..message.end];
                let text = text(body);
                let kind = message.kind;
                self.inbound.consume(message.end);
                match kind {
                    METHOD_RETURN => return Ok(text),
                    ERROR => return Err(io::Error::other(format!("refused: {text}"))),
                    _ => {}
                }
            }
            self.inbound.fill(&mut self.stream)?;
        }
    }

    /// Waits for messages of a kind, and gives those that are there.
    fn receive(&mut self, kind: u8, size: usize, sink: &mut Sink<'_>) -> io::Result<()> {
        loop {
            let mut taken = false;
            while let Some(header) = Header::of(self.inbound.unread())? {
                let bytes = &self.inbound.unread()[..header.end];
                if header.kind == ERROR {
                    return Err(io::Error::other("the broker says an error"));
                }
                if header.kind == kind && header.end - header.body == size + ARRAY_LENGTH {
                    sink(&header, bytes, &bytes[header.body + ARRAY_LENGTH..]);
                    taken = true;
                }
                self.inbound.consume(header.end);
            }
            if taken {
                return Ok(());
            }
            self.inbound.fill(&mut self.stream)?;
        }
    }
}

/// Takes a header, the whole message, and its payload.
type Sink<'a> = dyn FnMut(&Header, &[u8], &[u8]) + 'a;

/// What of a header is needed to pass on.
#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u8,
    serial: u32,
    /// Where the body begins.
    body: usize,
    /// Where the message ends.
    end: usize,
}

impl Header {
    /// None while the message is not whole.
    fn of(bytes: &[u8]) -> io::Result<Option<Self>> {
        let Some(fixed) = bytes.first_chunk::<16>() else {
            return Ok(None);
        };
        if fixed[0] != b'l' {
            return Err(io::Error::other("a message that is not little-endian"));
        }
        let word = |at: usize| {
            let word = [fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]];
            u32::from_le_bytes(word)
        };
        let (length, serial, fields) = (word(4), word(8), word(12));
        let body = (16 + fields as usize).next_multiple_of(8);
        let end = body + length as usize;
        Ok((bytes.len() >= end).then_some(Self { kind: fixed[1], serial, body, end }))
    }
}

/// Sends signals.
#[derive(Debug)]
pub(super) struct SignalSender {
    connection: Connection,
    /// A batch of signals, marshalled.
    bytes: Vec<u8>,
    /// The bytes of one.
    one: usize,
    size: usize,
    serial: u32,
}

impl SignalSender {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        let connection = Connection::open(plan)?;
        let fields = Fields::new()
            .text(PATH, b'o', OBJECT)
            .text(INTERFACE_FIELD, b's', INTERFACE)
            .text(MEMBER, b's', "M")
            .signature("ay");
        let mut one = message(SIGNAL, 1, fields, &array(plan.size));
        // The next one begins where this one ends.
        debug_assert!(plan.size > 0);
        let length = one.len();
        one = one.repeat(plan.batch.max(1));
        Ok(Self { connection, bytes: one, one: length, size: plan.size, serial: 1 })
    }
}

impl Sender for SignalSender {
    fn send(&mut self, stamps: &[Stamp]) -> io::Result<()> {
        for (bytes, stamp) in self.bytes.chunks_exact_mut(self.one).zip(stamps) {
            self.serial = self.serial.wrapping_add(1).max(1);
            bytes[8..12].copy_from_slice(&self.serial.to_le_bytes());
            stamp.write(&mut bytes[self.one - self.size..]);
        }
        let bytes = &self.bytes[..self.one * stamps.len()];
        self.connection.stream.write_all(bytes)
    }
}

/// Receives signals.
#[derive(Debug)]
pub(super) struct SignalReceiver {
    connection: Connection,
    size: usize,
}

impl SignalReceiver {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        let mut connection = Connection::open(plan)?;
        connection.add_match()?;
        Ok(Self { connection, size: plan.size })
    }
}

impl Receiver for SignalReceiver {
    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.connection.receive(SIGNAL, self.size, &mut |_, _, payload| sink(payload))
    }
}

/// Calls a method.
#[derive(Debug)]
pub(super) struct MethodCaller {
    connection: Connection,
    bytes: Vec<u8>,
    size: usize,
    serial: u32,
}

impl MethodCaller {
    pub(super) fn new(connection: Connection, to: &str, size: usize) -> Self {
        let fields = Fields::new()
            .text(PATH, b'o', OBJECT)
            .text(INTERFACE_FIELD, b's', INTERFACE)
            .text(MEMBER, b's', "M")
            .text(DESTINATION, b's', to)
            .signature("ay");
        Self { connection, bytes: message(METHOD_CALL, 1, fields, &array(size)), size, serial: 1 }
    }
}

impl Caller for MethodCaller {
    fn call(&mut self, stamp: Stamp, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.serial = self.serial.wrapping_add(1).max(1);
        self.bytes[8..12].copy_from_slice(&self.serial.to_le_bytes());
        let at = self.bytes.len() - self.size;
        stamp.write(&mut self.bytes[at..]);
        self.connection.stream.write_all(&self.bytes)?;
        self.connection.receive(METHOD_RETURN, self.size, &mut |_, _, payload| sink(payload))
    }
}

/// Answers method calls.
#[derive(Debug)]
pub(super) struct MethodResponder {
    connection: Connection,
    /// A reply to the one who called first.
    reply: Vec<u8>,
    size: usize,
}

impl MethodResponder {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        Ok(Self { connection: Connection::open(plan)?, reply: Vec::new(), size: plan.size })
    }
}

impl Responder for MethodResponder {
    fn address(&self) -> String {
        self.connection.name.clone()
    }

    fn respond(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let Self { connection, reply, size } = self;
        let mut malformed = false;
        connection.receive(METHOD_CALL, *size, &mut |header, bytes, payload| {
            if reply.is_empty() {
                match sender_of(&bytes[..header.body]) {
                    Some(sender) => *reply = reply_to(&sender, *size),
                    None => malformed = true,
                }
            }
            if !malformed {
                reply[8..12].copy_from_slice(&header.serial.to_le_bytes());
                reply[REPLY_SERIAL_AT..REPLY_SERIAL_AT + 4]
                    .copy_from_slice(&header.serial.to_le_bytes());
                let at = reply.len() - payload.len();
                reply[at..].copy_from_slice(payload);
            }
            sink(payload);
        })?;
        if malformed {
            return Err(io::Error::other("a call without a sender"));
        }
        connection.stream.write_all(reply)
    }
}

fn reply_to(sender: &str, size: usize) -> Vec<u8> {
    // The reply serial comes first, so that its place does not depend on anything.
    let fields =
        Fields::new().number(REPLY_SERIAL, 1).text(DESTINATION, b's', sender).signature("ay");
    message(METHOD_RETURN, 1, fields, &array(size))
}

/// The sender in a header, which the broker has put there.
fn sender_of(header: &[u8]) -> Option<String> {
    let mut at = 16;
    while at + 4 < header.len() {
        at = usize::next_multiple_of(at, 8);
        let (code, signature) = (*header.get(at)?, *header.get(at + 2)?);
        at += 4;
        let length = match signature {
            b'g' => usize::from(*header.get(at)?) + 2,
            b'u' => 4,
            b's' | b'o' => {
                let length = header.get(at..)?.first_chunk()?;
                let length = u32::from_le_bytes(*length) as usize;
                if code == SENDER {
                    let text = header.get(at + 4..at + 4 + length)?;
                    return String::from_utf8(text.to_vec()).ok();
                }
                length + 5
            }
            _ => return None,
        };
        at += length;
    }
    None
}

/// Acts as the controller of a dbus-broker: gives it the socket to listen on, with a policy that
/// allows everything, and waits until it has taken both.
pub(crate) fn add_listener(
    controller: UnixStream,
    listener: BorrowedFd<'_>,
) -> io::Result<UnixStream> {
    let mut connection =
        Connection { stream: controller, inbound: Inbound::new(HEADER_ROOM), name: String::new() };
    connection.stream.write_all(&authentication(true))?;
    for _ in 0..2 {
        read_line(&mut connection.stream, &mut connection.inbound)?;
    }
    let fields = Fields::new()
        .text(PATH, b'o', "/org/bus1/DBus/Broker")
        .text(INTERFACE_FIELD, b's', "org.bus1.DBus.Broker")
        .text(MEMBER, b's', "AddListener")
        .number(UNIX_FDS, 1)
        .signature("ohv");
    let bytes = message(METHOD_CALL, 1, fields, &listener_body());
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [listener.as_fd()];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no space for a descriptor"));
    }
    let sent = sendmsg(
        &connection.stream,
        &[io::IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    connection.stream.write_all(&bytes[sent..])?;
    connection.reply_text()?;
    Ok(connection.stream)
}

/// `ohv`: a name for the listener, the index of its descriptor, and the policy.
fn listener_body() -> Vec<u8> {
    let batch = "bta(btbs)a(btssssuutt)a(btssssuutt)";
    let policy = format!("(a(u({batch}))a(buu({batch}))a(ss)bs)");
    let mut body = Body::default();
    body.text("/org/bus1/DBus/Listener/0");
    body.u32(0);
    body.signature(&policy);
    body.align(8);
    // For each user; u32::MAX is everybody else.
    body.list(8, |body| {
        body.align(8);
        body.u32(u32::MAX);
        body.align(8);
        body.u32(1);
        body.u64(1);
        // May own any name.
        body.list(8, |body| {
            body.align(8);
            body.u32(1);
            body.u64(1);
            body.u32(1);
            body.text("");
        });
        // May send anything, and receive anything.
        for _ in 0..2 {
            body.list(8, |body| {
                body.align(8);
                body.u32(1);
                body.u64(1);
                for _ in 0..4 {
                    body.text("");
                }
                body.u32(0);
                body.u32(0);
                body.u64(0);
                body.u64(u64::MAX);
            });
        }
    });
    // For each range of users or groups; SELinux names; AppArmor; the kind of bus.
    body.list(8, |_| {});
    body.list(8, |_| {});
    body.u32(0);
    body.text("session");
    body.0
}

/// SASL's EXTERNAL: the kernel says who we are.
fn authentication(descriptors: bool) -> Vec<u8> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
    let negotiate = if descriptors { "NEGOTIATE_UNIX_FD\r\n" } else { "" };
    format!("\0AUTH EXTERNAL {hex}\r\n{negotiate}BEGIN\r\n").into_bytes()
}

fn read_line(stream: &mut UnixStream, inbound: &mut Inbound) -> io::Result<()> {
    loop {
        let unread = inbound.unread();
        if let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&unread[..end]).into_owned();
            inbound.consume(end + 1);
            if line.starts_with("OK") || line.starts_with("AGREE") {
                return Ok(());
            }
            return Err(io::Error::other(format!("refused: {}", line.trim_end())));
        }
        inbound.fill(stream)?;
    }
}

/// A call of the bus driver's own method, with a text unless it is empty.
fn driver_call(serial: u32, method: &str, argument: &str) -> Vec<u8> {
    let mut fields = Fields::new()
        .text(PATH, b'o', "/org/freedesktop/DBus")
        .text(INTERFACE_FIELD, b's', "org.freedesktop.DBus")
        .text(MEMBER, b's', method)
        .text(DESTINATION, b's', "org.freedesktop.DBus");
    let mut body = Body::default();
    if !argument.is_empty() {
        fields = fields.signature("s");
        body.text(argument);
    }
    message(METHOD_CALL, serial, fields, &body.0)
}

fn message(kind: u8, serial: u32, fields: Fields, body: &[u8]) -> Vec<u8> {
    let Fields(fields) = fields;
    let mut bytes = Body(vec![b'l', kind, 0, 1]);
    bytes.u32(u32::try_from(body.len()).expect("a payload is far smaller"));
    bytes.u32(serial);
    bytes.u32(u32::try_from(fields.0.len()).expect("a few short fields"));
    bytes.0.extend(&fields.0);
    bytes.align(8);
    bytes.0.extend(body);
    bytes.0
}

/// A body that is one array of bytes.
fn array(size: usize) -> Vec<u8> {
    let length = u32::try_from(size).expect("the options bound it");
    let mut body = length.to_le_bytes().to_vec();
    body.resize(ARRAY_LENGTH + size, 0);
    body
}

/// The text that a body begins with, or nothing.
fn text(body: &[u8]) -> String {
    let length = body.first_chunk().map(|l| u32::from_le_bytes(*l) as usize);
    let text = length.and_then(|length| body.get(4..4 + length));
    String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
}

/// Bytes in the making, aligned as the protocol wants.
#[derive(Debug, Default)]
struct Body(Vec<u8>);

impl Body {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    /// Also a boolean, and the index of a descriptor.
    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u32(u32::try_from(text.len()).expect("short"));
        self.0.extend(text.bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(u8::try_from(signature.len()).expect("short"));
        self.0.extend(signature.bytes());
        self.0.push(0);
    }

    /// An array whose elements are aligned to `to`; the padding before the first does not count.
    fn list(&mut self, to: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(to);
        let start = self.0.len();
        fill(self);
        let length = u32::try_from(self.0.len() - start).expect("short");
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// The fields of a header.
#[derive(Debug)]
struct Fields(Body);

impl Fields {
    fn new() -> Self {
        Self(Body::default())
    }

    fn text(mut self, code: u8, kind: u8, text: &str) -> Self {
        self.begin(code, kind);
        self.0.text(text);
        self
    }

    fn number(mut self, code: u8, number: u32) -> Self {
        self.begin(code, b'u');
        self.0.u32(number);
        self
    }

    fn signature(mut self, signature: &str) -> Self {
        self.begin(SIGNATURE, b'g');
        self.0.signature(signature);
        self
    }

    fn begin(&mut self, code: u8, kind: u8) {
        // The fields begin at 16, which is aligned.
        self.0.align(8);
        self.0.0.extend([code, 1, kind, 0]);
    }
}

const INTERFACE: &str = "org.unisono.Bench";
const OBJECT: &str = "/b";
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;
const PATH: u8 = 1;
const INTERFACE_FIELD: u8 = 2;
const MEMBER: u8 = 3;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SENDER: u8 = 7;
const SIGNATURE: u8 = 8;
const UNIX_FDS: u8 = 9;
/// Where the first field's number lies.
const REPLY_SERIAL_AT: usize = 20;
/// Bytes before an array's elements.
const ARRAY_LENGTH: usize = 4;
/// More than any header that we are sent.
const HEADER_ROOM: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_skipped_by_its_own_lengths() {
        let mut bytes = driver_call(7, "AddMatch", "type='signal'");
        let length = bytes.len();
        assert!(length.is_multiple_of(2), "the body is last and not padded");
        bytes.extend(b"rest");
        let header = Header::of(&bytes).expect("well-formed").expect("whole");
        assert_eq!((header.kind, header.serial, header.end), (METHOD_CALL, 7, length));
        assert_eq!(text(&bytes[header.body..header.end]), "type='signal'");
        assert!(Header::of(&bytes[..length - 1]).expect("well-formed").is_none());
    }

    #[test]
    fn the_sender_is_found_among_the_fields() {
        let fields = Fields::new()
            .text(PATH, b'o', OBJECT)
            .number(REPLY_SERIAL, 3)
            .signature("ay")
            .text(SENDER, b's', ":1.42");
        let bytes = message(METHOD_CALL, 1, fields, &array(3));
        let header = Header::of(&bytes).expect("well-formed").expect("whole");
        assert_eq!(sender_of(&bytes[..header.body]).as_deref(), Some(":1.42"));
        assert_eq!(header.end - header.body, 3 + ARRAY_LENGTH);
    }

    #[test]
    fn a_replys_serial_is_where_it_is_patched() {
        let bytes = reply_to(":1.1", 16);
        assert_eq!(bytes[REPLY_SERIAL_AT..REPLY_SERIAL_AT + 4], 1_u32.to_le_bytes());
    }
}
