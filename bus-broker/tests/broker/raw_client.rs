//! A client that is nothing but the codec on a socket, so that it can misbehave.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bus_core::wire::{
    BrokerFrame, ClientFrame, Failure, Goodbye, Handle, Hello, LaneNumber, MAGIC, MessageFrame,
    Request, Response, SendFlags, SendFrame, SendHead, SendId, Serial, Welcome,
};
use bus_core::{Attributes, Destination, EndpointId, GroupId, GroupName, MemberFlags, Receipt};
use bytes::BytesMut;
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags as SocketSendFlags,
};

/// Generous: a test that meets it has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct RawClient {
    pub(crate) stream: UnixStream,
    unread: BytesMut,
    /// Frames that came while another one was waited for.
    aside: VecDeque<BrokerFrame>,
    pub(crate) descriptors: VecDeque<OwnedFd>,
    serial: Serial,
    pub(crate) welcome: Option<Welcome>,
}

impl RawClient {
    /// A connection that has said nothing yet.
    pub(crate) fn silent(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self {
            stream,
            unread: BytesMut::new(),
            aside: VecDeque::new(),
            descriptors: VecDeque::new(),
            serial: Serial::FIRST,
            welcome: None,
        }
    }

    pub(crate) fn connect(path: &Path) -> Self {
        Self::greeted(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn greeted(stream: UnixStream) -> Self {
        Self::greeted_with(stream, &[])
    }

    pub(crate) fn greeted_with(stream: UnixStream, features: &[&str]) -> Self {
        let mut client = Self::silent(stream);
        client.write(&MAGIC);
        let features = features.iter().map(|feature| (*feature).to_owned()).collect();
        client.say(&ClientFrame::Hello(Hello { features, ..Hello::new() }));
        let BrokerFrame::Welcome(welcome) = client.hear() else {
            panic!("the first frame is no WELCOME")
        };
        client.welcome = Some(*welcome);
        client
    }

    pub(crate) fn endpoint(&self) -> EndpointId {
        self.welcome.as_ref().unwrap().endpoint
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn say(&mut self, frame: &ClientFrame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes).unwrap();
        self.write(&bytes);
    }

    /// The next frame; `None` at the end of the connection.
    pub(crate) fn try_hear(&mut self) -> Option<BrokerFrame> {
        if let Some(frame) = self.aside.pop_front() {
            return Some(frame);
        }
        self.read_frame()
    }

    pub(crate) fn hear(&mut self) -> BrokerFrame {
        self.try_hear().expect("the broker closed the connection")
    }

    fn read_frame(&mut self) -> Option<BrokerFrame> {
        loop {
            if let Some(frame) = BrokerFrame::decode(&mut self.unread).unwrap() {
                return Some(frame);
            }
            let mut buffer = [0; 64 << 10];
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(16))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = rustix::io::retry_on_intr(|| {
                rustix::net::recvmsg(
                    &self.stream,
                    &mut [IoSliceMut::new(&mut buffer)],
                    &mut control,
                    RecvFlags::CMSG_CLOEXEC,
                )
            });
            let count = match received {
                Ok(received) => received.bytes,
                Err(error) if std::io::Error::from(error).kind() == ErrorKind::ConnectionReset => 0,
                Err(error) => panic!("nothing came in time: {error}"),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.descriptors.extend(descriptors);
                }
            }
            if count == 0 {
                assert!(self.unread.is_empty(), "the broker stopped inside a frame");
                return None;
            }
            self.unread.extend_from_slice(&buffer[..count]);
        }
    }

    /// The next frame that `choose` likes; the others stay for later.
    pub(crate) fn hear_that<T>(&mut self, mut choose: impl FnMut(&BrokerFrame) -> Option<T>) -> T {
        for at in 0..self.aside.len() {
            if let Some(chosen) = choose(&self.aside[at]) {
                self.aside.remove(at);
                return chosen;
            }
        }
        loop {
            let frame = self.read_frame().expect("the broker closed the connection");
            if let Some(chosen) = choose(&frame) {
                return chosen;
            }
            self.aside.push_back(frame);
        }
    }

    pub(crate) fn next_serial(&mut self) -> Serial {
        let serial = self.serial;
        self.serial = serial.next();
        serial
    }

    pub(crate) fn call(&mut self, request: Request) -> Result<Response, Box<Failure>> {
        self.call_as(Handle::FIRST, request)
    }

    pub(crate) fn call_as(
        &mut self,
        endpoint: Handle,
        request: Request,
    ) -> Result<Response, Box<Failure>> {
        let serial = self.begin_as(endpoint, request);
        self.hear_that(|frame| match frame {
            BrokerFrame::Done { serial: s, response, .. } if *s == serial => {
                Some(Ok(response.clone()))
            }
            BrokerFrame::Error { serial: s, failure, .. } if *s == serial => {
                Some(Err(failure.clone()))
            }
            _ => None,
        })
    }

    /// Asks, and leaves the answer for later.
    pub(crate) fn begin(&mut self, request: Request) -> Serial {
        self.begin_as(Handle::FIRST, request)
    }

    fn begin_as(&mut self, endpoint: Handle, request: Request) -> Serial {
        let serial = self.next_serial();
        self.say(&ClientFrame::Call { endpoint, serial, request });
        serial
    }

    /// All frames up to one that `is_last`.
    pub(crate) fn hear_until(
        &mut self,
        is_last: impl Fn(&BrokerFrame) -> bool,
    ) -> Vec<BrokerFrame> {
        let mut heard = Vec::new();
        loop {
            heard.push(self.hear());
            if heard.last().is_some_and(&is_last) {
                return heard;
            }
        }
    }

    pub(crate) fn join(&mut self, group: &str) -> GroupId {
        self.join_with(group, MemberFlags::empty())
    }

    pub(crate) fn join_with(&mut self, group: &str, flags: MemberFlags) -> GroupId {
        let request = Request::Join {
            group: name(group),
            flags,
            create: true,
            filter: None,
            retain: None,
            state: false,
        };
        match self.call(request).unwrap() {
            Response::Joined { group_id, .. } => group_id,
            other => panic!("{other:?}"),
        }
    }

    /// Writes SENDs all at once, and gives their serials.
    pub(crate) fn post_many(
        &mut self,
        destination: Destination,
        payloads: &[&[u8]],
    ) -> Vec<Serial> {
        let mut bytes = BytesMut::new();
        let serials: Vec<_> = payloads.iter().map(|_| self.next_serial()).collect();
        for (payload, serial) in payloads.iter().zip(&serials) {
            let frame = send_frame(id(*serial), destination, payload, SendFlags::empty(), 0);
            frame.encode(&mut bytes).unwrap();
        }
        self.write(&bytes);
        serials
    }

    /// Writes a SEND and gives its serial.
    pub(crate) fn post(&mut self, destination: Destination, payload: &[u8]) -> Serial {
        self.post_with(destination, payload, SendFlags::empty())
    }

    pub(crate) fn post_with(
        &mut self,
        destination: Destination,
        payload: &[u8],
        flags: SendFlags,
    ) -> Serial {
        let serial = self.next_serial();
        let id = id(serial);
        self.say(&send_frame(id, destination, payload, flags, 0));
        serial
    }

    pub(crate) fn post_with_descriptors(
        &mut self,
        destination: Destination,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Serial {
        let serial = self.next_serial();
        let count = u8::try_from(descriptors.len()).unwrap();
        let frame = send_frame(id(serial), destination, payload, SendFlags::empty(), count);
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes).unwrap();
        self.write_with_descriptors(&bytes, descriptors);
        serial
    }

    pub(crate) fn write_with_descriptors(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        let slices = [IoSlice::new(bytes)];
        let flags = SocketSendFlags::NOSIGNAL;
        let sent = rustix::net::sendmsg(&self.stream, &slices, &mut control, flags).unwrap();
        self.write(&bytes[sent..]);
    }

    pub(crate) fn cancel(&mut self, serial: Serial) {
        self.say(&ClientFrame::Cancel(id(serial)));
    }

    pub(crate) fn resume(&mut self) {
        self.say(&ClientFrame::Resume { endpoint: Handle::FIRST, lane: LaneNumber::FIRST });
    }

    pub(crate) fn credit(&mut self, messages: u32, bytes: u64) {
        self.say(&ClientFrame::Credit { endpoint: Handle::FIRST, messages, bytes });
    }

    /// The answer to a SEND.
    pub(crate) fn outcome(&mut self, serial: Serial) -> Result<Receipt, Box<Failure>> {
        self.hear_that(|frame| match frame {
            BrokerFrame::Receipt { id, receipt } if id.serial == serial => Some(Ok(*receipt)),
            BrokerFrame::Refused { id, failure } if id.serial == serial => {
                Some(Err(failure.clone()))
            }
            _ => None,
        })
    }

    /// The next message, whose place stays taken.
    pub(crate) fn message(&mut self) -> MessageFrame {
        self.hear_that(|frame| match frame {
            BrokerFrame::Message(message) => Some((**message).clone()),
            _ => None,
        })
    }

    /// The next message; its place is given back.
    pub(crate) fn receive(&mut self) -> MessageFrame {
        let message = self.message();
        self.credit(1, message.charged_bytes());
        message
    }

    /// Reads to the end of the connection, and gives the last frame if it says why.
    pub(crate) fn goodbye(&mut self) -> Option<Goodbye> {
        let mut last = None;
        while let Some(frame) = self.try_hear() {
            last = Some(frame);
        }
        match last {
            Some(BrokerFrame::Goodbye(goodbye)) => Some(goodbye),
            _ => None,
        }
    }

    /// The broker answers: whatever was written before this has been seen by it.
    pub(crate) fn ping(&mut self) {
        assert_eq!(self.call(Request::Ping), Ok(Response::Pong));
    }

    /// Asks until so many sends wait at the broker.
    pub(crate) fn wait_for_waiting_sends(&mut self, count: u64) {
        self.wait_for(|stats| stats.waiting_sends == count);
    }

    pub(crate) fn wait_for(&mut self, reached: impl Fn(&bus_core::wire::Stats) -> bool) {
        let deadline = std::time::Instant::now() + DEADLINE;
        loop {
            match self.call(Request::Stats).unwrap() {
                Response::Stats(stats) if reached(&stats) => return,
                Response::Stats(stats) => {
                    assert!(std::time::Instant::now() < deadline, "{stats:?}");
                }
                other => panic!("{other:?}"),
            }
            std::thread::yield_now();
        }
    }
}

impl AsFd for RawClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

pub(crate) fn name(text: &str) -> GroupName {
    text.parse().unwrap()
}

pub(crate) fn id(serial: Serial) -> SendId {
    SendId { endpoint: Handle::FIRST, lane: LaneNumber::FIRST, serial }
}

pub(crate) fn send_frame(
    id: SendId,
    destination: Destination,
    payload: &[u8],
    flags: SendFlags,
    descriptors: u8,
) -> ClientFrame {
    ClientFrame::Send(SendFrame {
        head: SendHead { id, destination, flags, deadline: 0, descriptors },
        attributes: Attributes::EMPTY,
        payload: payload.to_vec().into(),
    })
}
