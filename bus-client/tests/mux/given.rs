//! A multiplexor, and peers that are nothing but sockets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bus_client::mux::{
    Attach, Flavour, Handle, Message, Multiplexor, ReceiveError, Stream, StreamError,
};
use bus_core::framing::{Endianness, LengthPrefix, Width};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longer than anything here takes on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Two bytes, most significant first, and that many more.
pub(crate) fn framer() -> LengthPrefix {
    LengthPrefix::new(0, Width::Two, Endianness::Big, 2).unwrap()
}

/// Four bytes, most significant first, and that many more: for large messages.
pub(crate) fn wide() -> LengthPrefix {
    LengthPrefix::new(0, Width::Four, Endianness::Big, 4).unwrap()
}

pub(crate) fn message(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat()
}

pub(crate) fn wide_message(length: usize, fill: u8) -> Vec<u8> {
    [&u32::try_from(length).unwrap().to_be_bytes()[..], &vec![fill; length]].concat()
}

pub(crate) fn messages(texts: &[&str]) -> Vec<u8> {
    texts.iter().flat_map(message).collect()
}

pub(crate) fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    theirs.set_nodelay(true).unwrap();
    (ours, theirs)
}

pub(crate) fn unix_pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    (ours, theirs)
}

pub(crate) struct Given {
    pub(crate) mux: Multiplexor,
    pub(crate) handles: Vec<Handle>,
    pub(crate) streams: Vec<Stream>,
    pub(crate) peers: Vec<UnixStream>,
}

pub(crate) fn given(handles: usize, streams: usize) -> Given {
    given_with(Flavour::Datagram, handles, streams)
}

pub(crate) fn given_with(flavour: Flavour, handles: usize, streams: usize) -> Given {
    let mux = Multiplexor::new(flavour).unwrap();
    let mut given = Given { mux, handles: Vec::new(), streams: Vec::new(), peers: Vec::new() };
    for _ in 0..handles {
        given.handles.push(given.mux.handle().unwrap());
    }
    for _ in 0..streams {
        given.attach(Attach::new());
    }
    given
}

impl Given {
    pub(crate) fn attach(&mut self, attach: Attach) {
        let (ours, theirs) = unix_pair();
        self.streams.push(self.mux.attach(ours, framer(), attach).unwrap());
        self.peers.push(theirs);
    }

    /// A stream for messages of up to 16 MiB.
    pub(crate) fn attach_wide(&mut self) {
        let (ours, theirs) = unix_pair();
        let attach = Attach::new().maximum(NonZeroUsize::new(16 << 20).unwrap());
        self.streams.push(self.mux.attach(ours, wide(), attach).unwrap());
        self.peers.push(theirs);
    }

    /// The peer writes these in one piece.
    pub(crate) fn come(&mut self, peer: usize, texts: &[&str]) {
        self.peers[peer].write_all(&messages(texts)).unwrap();
    }

    pub(crate) fn try_text(&self, handle: usize) -> Option<String> {
        match self.handles[handle].try_receive() {
            Ok(message) => Some(text(&message)),
            Err(ReceiveError::WouldBlock) => None,
            Err(other) => panic!("{other}"),
        }
    }

    #[track_caller]
    pub(crate) fn text(&self, handle: usize) -> String {
        text(&self.handles[handle].receive_deadline(PATIENCE).unwrap())
    }

    /// Asks for messages, of which there are none, until a stream is broken, and says why.
    #[track_caller]
    pub(crate) fn until_broken(&self, stream: usize) -> StreamError {
        let until = Instant::now() + PATIENCE;
        loop {
            assert_eq!(self.try_text(0), None);
            if let Some(error) = self.streams[stream].error() {
                return error;
            }
            assert!(Instant::now() < until, "it did not break");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

pub(crate) fn text(message: &Message) -> String {
    String::from_utf8(message[2..].to_vec()).unwrap()
}

/// Reads one message off a peer's socket.
pub(crate) fn read_message(mut peer: impl Read) -> Vec<u8> {
    let mut head = [0; 2];
    peer.read_exact(&mut head).unwrap();
    let mut body = vec![0; u16::from_be_bytes(head).into()];
    peer.read_exact(&mut body).unwrap();
    body
}

/// What a poll of one descriptor says.
pub(crate) fn poll_one(of: impl AsFd, flags: PollFlags, patience: Duration) -> PollFlags {
    let mut fds = [PollFd::new(&of, flags)];
    let timeout = Timespec::try_from(patience).unwrap();
    loop {
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) => return fds[0].revents(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

pub(crate) fn is_readable(of: impl AsFd) -> bool {
    poll_one(of, PollFlags::IN, Duration::ZERO).contains(PollFlags::IN)
}

#[track_caller]
pub(crate) fn until_readable(of: impl AsFd) {
    assert!(poll_one(of, PollFlags::IN, PATIENCE).contains(PollFlags::IN), "never readable");
}
