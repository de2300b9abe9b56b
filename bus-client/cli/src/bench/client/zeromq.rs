//! ZeroMQ without a broker: each sender publishes at a socket of its own, each receiver subscribes to
//! all of them. Its library is loaded when it is measured, so that building needs none.
//!
//! A sender counts the subscriptions before it is ready, because what is published before one has come
//! is not for it. The high-water marks are above the window, so that nothing is dropped within it.
//!
//! # Safety
//!
//! The functions are libzmq's own, looked up by name in version 5 of its interface, which has kept
//! their types since 2012 (`zmq.h`). A socket is used by one thread and closed once; buffers are ours
//! for the length of a call, and their lengths go with them.
#![expect(unsafe_code, reason = "a library of C, loaded while the program runs")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::mem::transmute;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::OnceLock;

use nix::libc;

use super::{Caller, Receiver, Responder, Sender};
use crate::bench::plan::Plan;
use crate::bench::stamp::Stamp;

// As `zmq.h` declares them.
type NewContext = unsafe extern "C" fn() -> *mut c_void;
type NewSocket = unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_void;
type Close = unsafe extern "C" fn(*mut c_void) -> c_int;
type Set = unsafe extern "C" fn(*mut c_void, c_int, *const c_void, usize) -> c_int;
type Attach = unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int;
type Send = unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int) -> c_int;
type Receive = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, c_int) -> c_int;

/// Where the loader says that a function begins.
type Symbol = NonNull<c_void>;

/// What of the library is used.
#[derive(Debug)]
struct Library {
    context: Context,
    socket: NewSocket,
    close: Close,
    set: Set,
    bind: Attach,
    connect: Attach,
    send: Send,
    receive: Receive,
}

/// There is one in a process, and it ends with that.
#[derive(Debug)]
struct Context(NonNull<c_void>);

// SAFETY: a context is the one thing of libzmq that any thread may use.
unsafe impl std::marker::Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// Whether the library is here.
pub(crate) fn is_installed() -> bool {
    library().is_some()
}

fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY.get_or_init(Library::load).as_ref()
}

impl Library {
    fn load() -> Option<Self> {
        // SAFETY: the name ends with a NUL; what its initialisers do is the library's business.
        let handle = unsafe { libc::dlopen(c"libzmq.so.5".as_ptr(), libc::RTLD_NOW) };
        let handle = NonNull::new(handle)?;
        // SAFETY: the handle is open and stays so; the name ends with a NUL.
        let find =
            |name: &CStr| unsafe { NonNull::new(libc::dlsym(handle.as_ptr(), name.as_ptr())) };
        let new = find(c"zmq_ctx_new")?;
        // SAFETY: `void *zmq_ctx_new(void)`.
        let new = unsafe { transmute::<Symbol, NewContext>(new) };
        // SAFETY: it may be called at any time.
        let context = Context(NonNull::new(unsafe { new() })?);
        // SAFETY: these are the types of the functions in `zmq.h`.
        unsafe {
            Some(Self {
                context,
                socket: transmute::<Symbol, NewSocket>(find(c"zmq_socket")?),
                close: transmute::<Symbol, Close>(find(c"zmq_close")?),
                set: transmute::<Symbol, Set>(find(c"zmq_setsockopt")?),
                bind: transmute::<Symbol, Attach>(find(c"zmq_bind")?),
                connect: transmute::<Symbol, Attach>(find(c"zmq_connect")?),
                send: transmute::<Symbol, Send>(find(c"zmq_send")?),
                receive: transmute::<Symbol, Receive>(find(c"zmq_recv")?),
            })
        }
    }
}

/// A socket of ZeroMQ's.
#[derive(Debug)]
struct Socket {
    library: &'static Library,
    socket: NonNull<c_void>,
}

impl Socket {
    fn new(plan: &Plan, kind: c_int) -> io::Result<Self> {
        let library = library().ok_or_else(|| io::Error::other("libzmq is not installed"))?;
        // SAFETY: the context is never ended.
        let socket = unsafe { (library.socket)(library.context.0.as_ptr(), kind) };
        let socket = NonNull::new(socket).ok_or_else(io::Error::last_os_error)?;
        let socket = Self { library, socket };
        let mark = MARK_OVER_WINDOW * plan.window().unwrap_or(0).max(plan.batch as u64);
        let mark = c_int::try_from(mark).map_err(io::Error::other)?;
        for (option, value) in [(SNDHWM, mark), (RCVHWM, mark), (RECONNECT_IVL, RECONNECT_MILLIS)] {
            socket.set(option, &value.to_ne_bytes())?;
        }
        Ok(socket)
    }

    fn set(&self, option: c_int, value: &[u8]) -> io::Result<()> {
        // SAFETY: the socket is open; the value has so many bytes.
        done(unsafe {
            (self.library.set)(self.socket.as_ptr(), option, value.as_ptr().cast(), value.len())
        })
    }

    fn bind(&self, path: &Path) -> io::Result<()> {
        let address = address(path)?;
        // SAFETY: the socket is open; the address ends with a NUL.
        done(unsafe { (self.library.bind)(self.socket.as_ptr(), address.as_ptr()) })
    }

    fn connect(&self, path: &Path) -> io::Result<()> {
        let address = address(path)?;
        // SAFETY: the socket is open; the address ends with a NUL.
        done(unsafe { (self.library.connect)(self.socket.as_ptr(), address.as_ptr()) })
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the socket is open; there are so many bytes, and the library copies them.
        done(unsafe {
            (self.library.send)(self.socket.as_ptr(), bytes.as_ptr().cast(), bytes.len(), 0)
        })
    }

    /// A message; how long it was, which may be more than there was room for.
    fn receive(&self, into: &mut [u8], flags: c_int) -> io::Result<usize> {
        // SAFETY: the socket is open; there is room for so many bytes, and no more are written.
        let received = unsafe {
            (self.library.receive)(
                self.socket.as_ptr(),
                into.as_mut_ptr().cast(),
                into.len(),
                flags,
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// The payload of a message.
    fn payload<'a>(&self, into: &'a mut [u8], flags: c_int) -> io::Result<&'a [u8]> {
        let length = self.receive(into, flags)?;
        into.get(..length).ok_or_else(|| io::Error::other("a message is larger than it can be"))
    }
}

impl Drop for Socket {
    /// What has not left yet does so behind this: the context lives on, and with it the thread that
    /// writes.
    fn drop(&mut self) {
        // SAFETY: it is open, and nobody uses it any more.
        let _ = unsafe { (self.library.close)(self.socket.as_ptr()) };
    }
}

#[derive(Debug)]
pub(super) struct Publisher {
    socket: Socket,
    payload: Vec<u8>,
}

impl Publisher {
    /// Ready once every receiver has subscribed.
    pub(super) fn new(plan: &Plan, index: usize) -> io::Result<Self> {
        let socket = Socket::new(plan, XPUB)?;
        socket.set(XPUB_VERBOSE, &1_i32.to_ne_bytes())?;
        socket.bind(&place(plan, index))?;
        for _ in 0..plan.receivers {
            socket.receive(&mut [0; 8], 0)?;
        }
        Ok(Self { socket, payload: vec![0; plan.size] })
    }
}

impl Sender for Publisher {
    fn send(&mut self, stamps: &[Stamp]) -> io::Result<()> {
        // The library's own thread writes, and puts together what is there by then.
        for stamp in stamps {
            stamp.write(&mut self.payload);
            self.socket.send(&self.payload)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Subscriber {
    socket: Socket,
    payload: Vec<u8>,
}

impl Subscriber {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        let socket = Socket::new(plan, SUB)?;
        socket.set(SUBSCRIBE, &[])?;
        for index in 0..plan.senders {
            socket.connect(&place(plan, index))?;
        }
        Ok(Self { socket, payload: vec![0; plan.size] })
    }
}

impl Receiver for Subscriber {
    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        sink(self.socket.payload(&mut self.payload, 0)?);
        for _ in 1..MOST_AT_ONCE {
            match self.socket.payload(&mut self.payload, DONTWAIT) {
                Ok(payload) => sink(payload),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// One end of a pair of sockets.
#[derive(Debug)]
pub(super) struct End {
    socket: Socket,
    payload: Vec<u8>,
}

impl End {
    pub(super) fn caller(plan: &Plan) -> io::Result<Self> {
        let socket = Socket::new(plan, PAIR)?;
        socket.connect(&place(plan, 0))?;
        Ok(Self { socket, payload: vec![0; plan.size] })
    }

    pub(super) fn responder(plan: &Plan) -> io::Result<Self> {
        let socket = Socket::new(plan, PAIR)?;
        socket.bind(&place(plan, 0))?;
        Ok(Self { socket, payload: vec![0; plan.size] })
    }
}

impl Caller for End {
    fn call(&mut self, stamp: Stamp, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        stamp.write(&mut self.payload);
        self.socket.send(&self.payload)?;
        sink(self.socket.payload(&mut self.payload, 0)?);
        Ok(())
    }
}

impl Responder for End {
    fn address(&self) -> String {
        String::new()
    }

    fn respond(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let payload = self.socket.payload(&mut self.payload, 0)?;
        self.socket.send(payload)?;
        sink(payload);
        Ok(())
    }
}

/// Where a sender of this number is found.
fn place(plan: &Plan, index: usize) -> std::path::PathBuf {
    plan.dir.join(format!("zeromq-{index}"))
}

fn address(path: &Path) -> io::Result<CString> {
    let text = format!("ipc://{}", path.display());
    CString::new(text).map_err(io::Error::other)
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

// As `zmq.h` has them.
const PAIR: c_int = 0;
const SUB: c_int = 2;
const XPUB: c_int = 9;
const SUBSCRIBE: c_int = 6;
const RECONNECT_IVL: c_int = 18;
const SNDHWM: c_int = 23;
const RCVHWM: c_int = 24;
const XPUB_VERBOSE: c_int = 40;
const DONTWAIT: c_int = 1;
/// A sender hears only for half a mark at a time what was taken.
const MARK_OVER_WINDOW: u64 = 4;
/// How soon to look again for a sender that is not there yet.
const RECONNECT_MILLIS: c_int = 5;
/// Messages that are taken before their arrival is told.
const MOST_AT_ONCE: usize = 256;
