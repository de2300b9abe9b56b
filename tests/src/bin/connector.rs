//! A process that connects for others: `connector SOCKET`.
//!
//! Its standard input is a Unix socket. For each byte that comes it connects and passes the
//! connection back, which is this process's then whoever uses it: a connection has the credentials of
//! who made it. It ends when nobody can ask any more.

#![deny(unsafe_code)]

use std::env;
use std::error::Error;
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("connector SOCKET")?;
    let mut asked = io::stdin();
    let mut byte = [0];
    while asked.read(&mut byte)? == 1 {
        let connection = UnixStream::connect(&path)?;
        let descriptors = [connection.as_fd()];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "there is space");
        let flags = SendFlags::NOSIGNAL;
        rustix::net::sendmsg(asked.as_fd(), &[IoSlice::new(&byte)], &mut control, flags)?;
    }
    Ok(())
}
