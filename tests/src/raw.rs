//! A client that is nothing but the codec on a socket, so that it can misbehave.
//!
//! It sends and answers nothing by itself: no credit, no DESCRIPTORS_TAKEN, no GOODBYE.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use bus_core::wire::{
    AccountInfo, BrokerFrame, ClientFrame, Failure, Goodbye, Handle, Hello, LaneNumber, MAGIC,
    MemberInfo, MessageFrame, Notice, Request, Response, SendFlags, SendFrame, SendHead, SendId,
    Serial, Stats, Welcome,
};
use bus_core::{Attributes, Destination, EndpointId, GroupId, GroupName, MemberFlags, Receipt};
use bytes::BytesMut;
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags as SocketFlags,
};

use crate::deadline::DEADLINE;

/// The answer to something that was asked for.
pub type Answer<T> = Result<T, Box<Failure>>;

/// A connection.
#[derive(Debug)]
pub struct RawClient {
    /// The socket, for what no method does.
    pub stream: UnixStream,
    unread: BytesMut,
    /// Frames that came while another one was waited for.
    aside: VecDeque<BrokerFrame>,
    /// Descriptors that have come.
    pub descriptors: VecDeque<OwnedFd>,
    serial: Serial,
    welcome: Option<Welcome>,
}

impl RawClient {
    /// A connection that has said nothing yet.
    #[must_use]
    pub fn silent(socket: &Path) -> Self {
        Self::over(UnixStream::connect(socket).unwrap())
    }

    /// The same on a connection that somebody else has made.
    #[must_use]
    pub fn over(stream: UnixStream) -> Self {
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

    /// A connection that has been greeted.
    #[must_use]
    pub fn connect(socket: &Path) -> Self {
        let mut client = Self::silent(socket);
        client.greet();
        client.welcomed();
        client
    }

    /// A connection that has been greeted, and asked for these features.
    #[must_use]
    pub fn with_features(socket: &Path, features: &[&str]) -> Self {
        let mut client = Self::silent(socket);
        client.greet_for(features);
        client.welcomed();
        client
    }

    /// Writes magic and HELLO to a broker that may have refused the connection already.
    pub fn greet(&mut self) {
        self.greet_for(&[]);
    }

    fn greet_for(&mut self, features: &[&str]) {
        let mut bytes = BytesMut::from(&MAGIC[..]);
        let mut hello = Hello::new();
        hello.features.extend(features.iter().copied().map(str::to_owned));
        ClientFrame::Hello(hello).encode(&mut bytes).unwrap();
        self.try_write(&bytes);
    }

    /// Takes the answer to [`greet`](Self::greet).
    pub fn welcomed(&mut self) {
        match self.hear() {
            BrokerFrame::Welcome(welcome) => self.welcome = Some(*welcome),
            other => panic!("the first frame is no WELCOME: {other:?}"),
        }
    }

    /// What the broker greeted with.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        self.welcome.as_ref().unwrap()
    }

    /// The endpoint with handle 0.
    #[must_use]
    pub fn endpoint(&self) -> EndpointId {
        self.welcome().endpoint
    }

    /// It as a destination.
    #[must_use]
    pub fn address(&self) -> Destination {
        Destination::Endpoint(self.endpoint())
    }

    /// Writes bytes, whatever they are.
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Writes bytes to a broker that may have closed the connection.
    pub fn try_write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Writes a frame.
    pub fn say(&mut self, frame: &ClientFrame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes).unwrap();
        self.write(&bytes);
    }

    /// The next frame.
    #[track_caller]
    pub fn hear(&mut self) -> BrokerFrame {
        self.try_hear().expect("the broker closed the connection")
    }

    /// The next frame; `None` at the end of the connection.
    pub fn try_hear(&mut self) -> Option<BrokerFrame> {
        match self.aside.pop_front() {
            Some(frame) => Some(frame),
            None => self.read_frame(),
        }
    }

    /// The next frame that `choose` likes; the others stay for later.
    #[track_caller]
    pub fn hear_that<T>(&mut self, mut choose: impl FnMut(&BrokerFrame) -> Option<T>) -> T {
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

    fn read_frame(&mut self) -> Option<BrokerFrame> {
        loop {
            if let Some(frame) = BrokerFrame::decode(&mut self.unread).unwrap() {
                return Some(frame);
            }
            if self.read_some() == 0 {
                assert!(self.unread.is_empty(), "the broker stopped inside a frame");
                return None;
            }
        }
    }

    fn read_some(&mut self) -> usize {
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
        let count = match received.map_err(std::io::Error::from) {
            Ok(received) => received.bytes,
            // What the broker had not read when it closed.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("nothing came in time: {error}"),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        self.unread.extend_from_slice(&buffer[..count]);
        count
    }

    /// Reads to the end of the connection, and gives the last frame if it says why.
    pub fn goodbye(&mut self) -> Option<Goodbye> {
        let mut last = None;
        while let Some(frame) = self.try_hear() {
            last = Some(frame);
        }
        match last {
            Some(BrokerFrame::Goodbye(goodbye)) => Some(goodbye),
            _ => None,
        }
    }

    /// A serial that was not used before.
    pub fn next_serial(&mut self) -> Serial {
        let serial = self.serial;
        self.serial = serial.next();
        serial
    }

    /// Asks for something.
    pub fn call(&mut self, request: Request) -> Answer<Response> {
        self.call_as(Handle::FIRST, request)
    }

    /// Asks for something as one of its endpoints.
    pub fn call_as(&mut self, endpoint: Handle, request: Request) -> Answer<Response> {
        let serial = self.next_serial();
        self.say(&ClientFrame::Call { endpoint, serial, request });
        self.answer(serial)
    }

    /// The answer to a CALL.
    pub fn answer(&mut self, serial: Serial) -> Answer<Response> {
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

    /// The broker answers, so it has seen what was written before.
    pub fn ping(&mut self) {
        assert_eq!(self.call(Request::Ping), Ok(Response::Pong));
    }

    /// The broker's counters.
    pub fn stats(&mut self) -> Stats {
        match self.call(Request::Stats) {
            Ok(Response::Stats(stats)) => *stats,
            other => panic!("{other:?}"),
        }
    }

    /// Joins a group, which is made if it does not exist.
    pub fn join(&mut self, group: &str) -> GroupId {
        self.join_with(group, MemberFlags::empty()).unwrap()
    }

    /// Joins a group with flags.
    pub fn join_with(&mut self, group: &str, flags: MemberFlags) -> Answer<GroupId> {
        self.join_as(Handle::FIRST, group, flags)
    }

    /// Joins a group as one of its endpoints.
    pub fn join_as(
        &mut self,
        endpoint: Handle,
        group: &str,
        flags: MemberFlags,
    ) -> Answer<GroupId> {
        let request = Request::Join {
            group: name(group),
            flags,
            create: true,
            filter: None,
            retain: None,
            state: false,
        };
        match self.call_as(endpoint, request)? {
            Response::Joined { group_id, .. } => Ok(group_id),
            other => panic!("{other:?}"),
        }
    }

    /// Looks a group up.
    pub fn find(&mut self, group: &str) -> Answer<GroupId> {
        match self.call(Request::FindGroup { group: name(group) })? {
            Response::Group(info) => Ok(info.group_id),
            other => panic!("{other:?}"),
        }
    }

    /// A group's members.
    pub fn members(&mut self, group: &str) -> Answer<Vec<MemberInfo>> {
        let group_id = self.find(group)?;
        let serial = self.next_serial();
        let request = Request::Members { group_id };
        self.say(&ClientFrame::Call { endpoint: Handle::FIRST, serial, request });
        let mut all = Vec::new();
        loop {
            let (part, is_last) = self.listed(serial)?;
            match part {
                Response::Members { members, .. } => all.extend(members),
                other => panic!("{other:?}"),
            }
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Who holds how much, as far as this client may see it.
    pub fn accounts(&mut self) -> Vec<AccountInfo> {
        let serial = self.next_serial();
        let request = Request::Accounts;
        self.say(&ClientFrame::Call { endpoint: Handle::FIRST, serial, request });
        let mut all = Vec::new();
        loop {
            let (part, is_last) = self.listed(serial).unwrap();
            match part {
                Response::Accounts { accounts } => all.extend(accounts),
                other => panic!("{other:?}"),
            }
            if is_last {
                return all;
            }
        }
    }

    /// The next part of a listing, and whether it is the last.
    pub fn listed(&mut self, serial: Serial) -> Answer<(Response, bool)> {
        self.hear_that(|frame| match frame {
            BrokerFrame::Part { serial: s, response, .. } if *s == serial => {
                Some(Ok((response.clone(), false)))
            }
            BrokerFrame::Done { serial: s, response, .. } if *s == serial => {
                Some(Ok((response.clone(), true)))
            }
            BrokerFrame::Error { serial: s, failure, .. } if *s == serial => {
                Some(Err(failure.clone()))
            }
            _ => None,
        })
    }

    /// Opens an endpoint under this handle.
    pub fn open(&mut self, handle: Handle) -> Answer<EndpointId> {
        match self.call_as(handle, Request::OpenEndpoint)? {
            Response::Opened { endpoint } => Ok(endpoint),
            other => panic!("{other:?}"),
        }
    }

    /// Writes a SEND and gives its serial.
    pub fn post(&mut self, destination: Destination, payload: &[u8]) -> Serial {
        self.post_with(destination, payload, SendFlags::empty())
    }

    /// Writes a SEND with flags and gives its serial.
    pub fn post_with(
        &mut self,
        destination: Destination,
        payload: &[u8],
        flags: SendFlags,
    ) -> Serial {
        let serial = self.next_serial();
        let mut send = send_frame(id(serial), destination, payload);
        send.head.flags = flags;
        self.say(&ClientFrame::Send(send));
        serial
    }

    /// Writes a SEND with descriptors and gives its serial.
    pub fn post_descriptors(
        &mut self,
        destination: Destination,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Serial {
        let serial = self.next_serial();
        let mut send = send_frame(id(serial), destination, payload);
        send.head.descriptors = descriptors.len().try_into().unwrap();
        let mut bytes = BytesMut::new();
        ClientFrame::Send(send).encode(&mut bytes).unwrap();
        self.write_descriptors(&bytes, descriptors);
        serial
    }

    /// Writes bytes with descriptors.
    pub fn write_descriptors(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let sent = self.write_some_with(bytes, descriptors).unwrap();
        self.write(&bytes[sent..]);
    }

    /// Writes a few bytes with descriptors. False if the broker has ended the connection.
    pub fn try_write_descriptors(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> bool {
        self.write_some_with(bytes, descriptors).is_ok()
    }

    fn write_some_with(
        &mut self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        let slices = [IoSlice::new(bytes)];
        rustix::net::sendmsg(&self.stream, &slices, &mut control, SocketFlags::NOSIGNAL)
    }

    /// The answer to a SEND.
    pub fn outcome(&mut self, serial: Serial) -> Answer<Receipt> {
        self.hear_that(|frame| match frame {
            BrokerFrame::Receipt { id, receipt } if id.serial == serial => Some(Ok(*receipt)),
            BrokerFrame::Refused { id, failure } if id.serial == serial => {
                Some(Err(failure.clone()))
            }
            _ => None,
        })
    }

    /// Sends, and waits for the answer.
    pub fn send(&mut self, destination: Destination, payload: &[u8]) -> Answer<Receipt> {
        let serial = self.post(destination, payload);
        self.outcome(serial)
    }

    /// Sends without waiting for room.
    pub fn try_send(&mut self, destination: Destination, payload: &[u8]) -> Answer<Receipt> {
        let serial = self.post_with(destination, payload, SendFlags::NONBLOCK);
        self.outcome(serial)
    }

    /// Lets the lane that was refused go on.
    pub fn resume(&mut self) {
        self.say(&ClientFrame::Resume { endpoint: Handle::FIRST, lane: LaneNumber::FIRST });
    }

    /// The next message, whose place stays taken.
    #[track_caller]
    pub fn message(&mut self) -> MessageFrame {
        self.hear_that(|frame| match frame {
            BrokerFrame::Message(message) => Some((**message).clone()),
            _ => None,
        })
    }

    /// The next message; its place is given back.
    #[track_caller]
    pub fn receive(&mut self) -> MessageFrame {
        let message = self.message();
        self.credit(1, message.charged_bytes());
        message
    }

    /// The next notice.
    #[track_caller]
    pub fn notice(&mut self) -> Notice {
        self.hear_that(|frame| match frame {
            BrokerFrame::Notice { notice, .. } => Some(notice.clone()),
            _ => None,
        })
    }

    /// Gives places back.
    pub fn credit(&mut self, messages: u32, bytes: u64) {
        self.say(&ClientFrame::Credit { endpoint: Handle::FIRST, messages, bytes });
    }
}

impl AsFd for RawClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A group's name.
#[must_use]
pub fn name(text: &str) -> GroupName {
    text.parse().unwrap()
}

/// A SEND of the first endpoint and lane.
#[must_use]
pub fn id(serial: Serial) -> SendId {
    SendId { endpoint: Handle::FIRST, lane: LaneNumber::FIRST, serial }
}

/// A SEND with nothing but a payload.
#[must_use]
pub fn send_frame(id: SendId, destination: Destination, payload: &[u8]) -> SendFrame {
    SendFrame {
        head: SendHead { id, destination, flags: SendFlags::empty(), deadline: 0, descriptors: 0 },
        attributes: Attributes::EMPTY,
        payload: payload.to_vec().into(),
    }
}

/// A frame put together byte by byte: endpoint 0, lane 0.
#[must_use]
pub fn frame_bytes(kind: u8, flags: u8, descriptors: u8, serial: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap();
    let mut bytes = header_bytes(length, kind, serial);
    bytes[5] = flags;
    bytes[6] = descriptors;
    bytes.extend_from_slice(body);
    bytes
}

/// A header alone, which may lie about what follows.
#[must_use]
pub fn header_bytes(length: u32, kind: u8, serial: u32) -> Vec<u8> {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[kind, 0, 0, 0]);
    bytes.extend_from_slice(&0_u32.to_le_bytes());
    bytes.extend_from_slice(&serial.to_le_bytes());
    bytes
}
