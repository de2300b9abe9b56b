//! A broker that does what a test says: the other end of a socket pair, with the codec.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use bus_core::wire::{
    BrokerFrame, ClientFrame, Failure, FailureCode, Goodbye, GoodbyeCode, Handle, Hello,
    Incarnation, MessageFrame, MessageHead, Request, Response, SendFrame, SendId, Serial, Welcome,
    encode_message, take_magic,
};
use bus_core::{Attributes, Credentials, EndpointId, GroupId, Limits, Sequence};
use bytes::BytesMut;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::{Builder, Bus};

/// Longer than anything here takes on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The id of the endpoint with handle 0.
pub(crate) const FIRST: EndpointId = EndpointId::from_raw(7);
/// The group that scripts use.
pub(crate) const GROUP: GroupId = GroupId::from_raw(3);

pub(crate) struct FakeBroker {
    socket: UnixStream,
    unread: BytesMut,
    /// Credit that came between the frames that a script expects, by handle.
    pub(crate) credit: HashMap<u32, (u32, u64)>,
    /// How many CREDIT frames that were.
    pub(crate) credit_frames: usize,
    pub(crate) descriptors: Vec<OwnedFd>,
    sequence: u64,
    impatient: bool,
}

/// A client and the broker that it has greeted.
pub(crate) fn pair() -> (Bus, FakeBroker) {
    pair_with(Limits::default(), Builder::new())
}

pub(crate) fn pair_with(limits: Limits, builder: Builder) -> (Bus, FakeBroker) {
    let (client, mut broker) = FakeBroker::new();
    let connecting = thread::spawn(move || builder.connect_socket(client, "test", None));
    broker.greet(limits);
    (connecting.join().unwrap().unwrap(), broker)
}

impl FakeBroker {
    pub(crate) fn new() -> (OwnedFd, Self) {
        let (client, socket) = UnixStream::pair().unwrap();
        (client.into(), Self::on(socket))
    }

    pub(crate) fn on(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            socket,
            unread: BytesMut::new(),
            credit: HashMap::new(),
            credit_frames: 0,
            descriptors: Vec::new(),
            sequence: 0,
            impatient: false,
        }
    }

    /// A client that says nothing for so long is taken to have ended.
    pub(crate) fn wait_no_longer_than(&mut self, patience: Duration) {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        self.impatient = true;
    }

    // ---- What the client sends

    /// Takes the greeting and answers it.
    pub(crate) fn greet(&mut self, limits: Limits) {
        assert_eq!(self.hello().versions, [1]);
        self.put(&BrokerFrame::Welcome(Box::new(welcome(limits))));
    }

    pub(crate) fn hello(&mut self) -> Hello {
        while !take_magic(&mut self.unread).unwrap() {
            assert!(self.read(), "the client has gone");
        }
        match self.next() {
            ClientFrame::Hello(hello) => hello,
            other => panic!("{other:?} where HELLO was expected"),
        }
    }

    /// The next frame; credit is counted and passed over.
    pub(crate) fn next(&mut self) -> ClientFrame {
        self.next_or_end().expect("the client has gone")
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) fn next_or_end(&mut self) -> Option<ClientFrame> {
        loop {
            match ClientFrame::decode(&mut self.unread).unwrap() {
                Some(ClientFrame::Credit { endpoint, messages, bytes }) => {
                    self.count_credit(endpoint, messages, bytes)
                }
                Some(frame) => return Some(frame),
                None if self.read() => {}
                None => return None,
            }
        }
    }

    /// Waits until this much credit has come for handle 0 in all, and no more.
    pub(crate) fn await_credit(&mut self, messages: u32, bytes: u64) {
        while self.credit.get(&0).is_none_or(|credit| credit.0 < messages) {
            match ClientFrame::decode(&mut self.unread).unwrap() {
                Some(ClientFrame::Credit { endpoint, messages, bytes }) => {
                    self.count_credit(endpoint, messages, bytes)
                }
                Some(other) => panic!("{other:?} where CREDIT was expected"),
                None => assert!(self.read(), "the client has gone"),
            }
        }
        assert_eq!(self.credit[&0], (messages, bytes));
    }

    fn count_credit(&mut self, endpoint: Handle, messages: u32, bytes: u64) {
        let credit = self.credit.entry(endpoint.get()).or_default();
        credit.0 += messages;
        credit.1 += bytes;
        self.credit_frames += 1;
    }

    pub(crate) fn call(&mut self) -> (Handle, Serial, Request) {
        match self.next() {
            ClientFrame::Call { endpoint, serial, request } => (endpoint, serial, request),
            other => panic!("{other:?} where a call was expected"),
        }
    }

    pub(crate) fn send(&mut self) -> SendFrame {
        match self.next() {
            ClientFrame::Send(send) => send,
            other => panic!("{other:?} where a send was expected"),
        }
    }

    pub(crate) fn cancel(&mut self) -> SendId {
        match self.next() {
            ClientFrame::Cancel(id) => id,
            other => panic!("{other:?} where CANCEL was expected"),
        }
    }

    /// Whether the client has written nothing that was not taken.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let mut byte = [0];
        let peeked = rustix::net::recv(&self.socket, &mut byte, RecvFlags::PEEK);
        self.socket.set_nonblocking(false).unwrap();
        self.unread.is_empty() && peeked == Err(rustix::io::Errno::AGAIN)
    }

    /// Bytes that the client has written and nobody has taken.
    pub(crate) fn read(&mut self) -> bool {
        let mut buffer = vec![0; 64 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let bytes = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(rustix::io::Errno::AGAIN) if self.impatient => 0,
            Err(error) => panic!("the client is silent: {error}"),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                self.descriptors.extend(rights);
            }
        }
        self.unread.extend_from_slice(&buffer[..bytes]);
        bytes > 0
    }

    // ---- What the broker says

    pub(crate) fn put(&mut self, frame: &BrokerFrame) {
        let bytes = encoded(frame);
        self.put_bytes(&bytes);
    }

    pub(crate) fn put_bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// As [`put_bytes`](Self::put_bytes); `false` if the client has gone.
    pub(crate) fn try_put_bytes(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }

    pub(crate) fn put_with_descriptors(&mut self, frame: &BrokerFrame, descriptors: &[OwnedFd]) {
        let bytes = encoded(frame);
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        let written = rustix::net::sendmsg(
            &self.socket,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        );
        assert_eq!(written, Ok(bytes.len()));
    }

    pub(crate) fn done(&mut self, (endpoint, serial): (Handle, Serial), response: Response) {
        self.put(&BrokerFrame::Done { endpoint, serial, response });
    }

    pub(crate) fn error(&mut self, (endpoint, serial): (Handle, Serial), code: FailureCode) {
        self.put(&BrokerFrame::Error {
            endpoint,
            serial,
            failure: Box::new(Failure::new(code, "because")),
        });
    }

    /// A receipt with the next sequence.
    pub(crate) fn receipt(&mut self, id: SendId) {
        self.sequence += 1;
        // By hand, because only the bus makes receipts.
        let mut frame = Vec::new();
        frame.extend_from_slice(&48_u32.to_le_bytes());
        frame.extend_from_slice(&[0x90, 0, 0, id.lane.get()]);
        frame.extend_from_slice(&id.endpoint.get().to_le_bytes());
        frame.extend_from_slice(&id.serial.get().to_le_bytes());
        frame.extend_from_slice(&self.sequence.to_le_bytes());
        frame.extend_from_slice(&self.sequence.to_le_bytes());
        frame.extend_from_slice(&0_u64.to_le_bytes());
        frame.extend_from_slice(&1_u32.to_le_bytes());
        frame.extend_from_slice(&0_u32.to_le_bytes());
        self.put_bytes(&frame);
    }

    pub(crate) fn refuse(&mut self, id: SendId, code: FailureCode) {
        let failure = Box::new(Failure::new(code, "because"));
        self.put(&BrokerFrame::Refused { id, failure });
    }

    /// A message from [`GROUP`] for handle 0, with the next sequence, which it gives.
    pub(crate) fn message(&mut self, payload: &[u8]) -> u64 {
        let frame = self.group_message(payload);
        self.put(&BrokerFrame::from(frame));
        self.sequence
    }

    pub(crate) fn group_message(&mut self, payload: &[u8]) -> MessageFrame {
        self.sequence += 1;
        MessageFrame {
            head: head(self.sequence),
            attributes: Attributes::EMPTY,
            payload: payload.to_vec().into(),
        }
    }

    /// Answers a join of [`GROUP`].
    pub(crate) fn join(&mut self) {
        let (endpoint, serial, request) = self.call();
        assert!(matches!(request, Request::Join { .. }), "{request:?}");
        self.sequence += 1;
        let response = Response::Joined {
            group_id: GROUP,
            sequence: Sequence::from_raw(self.sequence),
            created: false,
            members: 2,
        };
        self.done((endpoint, serial), response);
    }

    /// Answers the look-up of a name with this group.
    pub(crate) fn found(&mut self, group_id: GroupId) {
        let (endpoint, serial, request) = self.call();
        let Request::FindGroup { group } = request else {
            panic!("{request:?} where a look-up was expected");
        };
        let info = bus_core::wire::GroupInfo {
            name: group,
            group_id,
            members: 2,
            creator: None,
            retain: None,
            gated: false,
        };
        self.done((endpoint, serial), Response::Group(info));
    }

    pub(crate) fn goodbye(&mut self, code: GoodbyeCode, text: &str) {
        self.put(&BrokerFrame::Goodbye(Goodbye::new(code, text)));
    }

    /// Takes what the client still says, up to its GOODBYE.
    pub(crate) fn farewell(&mut self) -> Goodbye {
        while let Some(frame) = self.next_or_end() {
            if let ClientFrame::Goodbye(goodbye) = frame {
                return goodbye;
            }
        }
        panic!("the client went without GOODBYE");
    }

    /// Whether the client's end is closed, once all it wrote is taken.
    pub(crate) fn is_ended(&mut self) -> bool {
        let mut rest = Vec::new();
        self.socket.read_to_end(&mut rest).is_ok()
    }
}

/// RECEIPTS, by hand for the same reason.
pub(crate) fn receipts(endpoint: Handle, serials: &[Serial], sequence: u64) -> BrokerFrame {
    let mut frame = BytesMut::new();
    let length = u32::try_from(48 + 4 * serials.len()).unwrap();
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&[0x96, 0, 0, 0]);
    frame.extend_from_slice(&endpoint.get().to_le_bytes());
    frame.extend_from_slice(&0_u32.to_le_bytes());
    frame.extend_from_slice(&sequence.to_le_bytes());
    frame.extend_from_slice(&7_u64.to_le_bytes());
    frame.extend_from_slice(&0_u64.to_le_bytes());
    frame.extend_from_slice(&2_u64.to_le_bytes());
    for serial in serials {
        frame.extend_from_slice(&serial.get().to_le_bytes());
    }
    BrokerFrame::decode(&mut frame).unwrap().unwrap()
}

pub(crate) fn welcome(limits: Limits) -> Welcome {
    Welcome {
        version: 1,
        features: Vec::new(),
        incarnation: Incarnation::from_bytes([9; 16]),
        endpoint: FIRST,
        limits,
    }
}

pub(crate) fn head(sequence: u64) -> MessageHead {
    MessageHead {
        sequence: Sequence::from_raw(sequence),
        sender: EndpointId::from_raw(8),
        sender_serial: sequence,
        credentials: Credentials { uid: 1, pid: 2 },
        ..MessageHead::to_group(Handle::FIRST, GROUP)
    }
}

pub(crate) fn encoded(frame: &BrokerFrame) -> BytesMut {
    let mut bytes = BytesMut::new();
    match frame {
        BrokerFrame::Message(message) => {
            encode_message(&mut bytes, &message.head, &message.attributes, &message.payload)
                .unwrap();
        }
        frame => frame.encode(&mut bytes).unwrap(),
    }
    bytes
}
