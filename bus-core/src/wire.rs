//! The wire protocol, version 1: bytes to frames and back, without any I/O.
//!
//! `PROTOCOL.md` beside this crate says what every byte is. A client writes [`MAGIC`] and then
//! [`ClientFrame`]s, the broker answers with [`BrokerFrame`]s; each side appends frames to a
//! buffer with `encode` and takes them off one with `decode`.
//!
//! Invariant: a frame that exists is right, so nobody checks twice; and a peer's number is compared
//! with its bound before memory is taken for it, so what a peer can make us hold is what it has
//! sent. Where a frame is wrong the stream is not to be trusted any more, and the connection ends;
//! the exception is the body of a CALL, whose end is known: it is answered.
//!
//! | file | what it knows |
//! |---|---|
//! | `header` | the 16 bytes of every frame, and which kind may say what in them |
//! | `client`, `broker` | the frames of either direction |
//! | `batch` | several messages in one frame |
//! | `rings` | going over to rings in shared memory, and back |
//! | `body` | what both directions share |
//! | `apart` | payloads that lie beside the stream |
//! | `control`, `code`, `views`, `names`, `seen`, `filter_form` | bodies in CBOR, and what is in them |
//! | [`inside`] | what is asked and told of counters and past messages |
//! | `cbor` | what is checked before serde sees a body |

use bytes::{Buf, BytesMut};

use crate::AttributesError;

mod apart;
mod batch;
mod body;
mod broker;
mod cbor;
mod client;
mod code;
mod control;
mod filter_form;
mod header;
pub mod inside;
mod limits_form;
mod names;
mod rings;
mod seen;
mod view;
mod views;

pub use apart::{
    FEATURE_APART, FEATURE_LEND, FEATURE_TRUST_OWN_USER, LENT_BYTES, Lent, LentFrom, MAX_RELEASED,
    MemoryKind, PLACED_BYTES, Placed, PlacedIn,
};
pub use batch::{
    BATCHES_FEATURE, BatchView, Entries, MessagesFrame, ReceiptsFrame, SendRun, encode_batch_apart,
    encode_batch_head,
};
pub use broker::{
    BrokerFrame, MessageFrame, MessageHead, Role, encode_message, encode_message_head,
    encode_moved_head, encode_receipt, message_bytes,
};
pub use cbor::CborError;
pub use client::{
    ClientFrame, FrameHead, SendFlags, SendFrame, SendHead, SendId, encode_send, encode_send_head,
};
pub use code::{
    ChangeCode, CopyCode, EvictionReason, FailureCode, GoodbyeCode, MemberCode, OutcomeCode,
};
pub use control::{
    AccountInfo, ControlError, Failure, Goodbye, GroupInfo, Held, Hello, Incarnation,
    MAX_TEXT_BYTES, MemberInfo, Notice, Request, Response, Stats, Status, Welcome,
};
pub use header::{HEADER_BYTES, Handle, LaneNumber, MAX_DESCRIPTORS, MAX_LANES, Serial};
pub use names::{ClaimChanged, NameInfo, Owner, OwnerChanged};
pub use rings::{BrokerRings, ClientRings, RINGS_DESCRIPTORS, RINGS_FEATURE};
pub use seen::{Copied, MonitoredChange, MonitoredMember, MonitoredOutcome};
pub use view::{MessageView, PayloadFound, PlainRun};
pub use views::ViewNotice;

/// What a client writes first: `UNISONO` and a newline.
pub const MAGIC: [u8; 8] = *b"UNISONO\n";

/// The version of the protocol that this module speaks.
pub const VERSION: u16 = 1;

/// The longest frame: a payload of 16 MiB, and what stands before it.
///
/// There is room for a payload a little above the maximum, so that a broker can answer one with
/// `too-large` and go on.
pub const MAX_FRAME_BYTES: usize = (16 << 20) + (16 << 10);

/// Messages of up to this many bytes, attributes and payload together, are copied out of the
/// buffer that they were read into; longer ones stay in it and keep it alive.
///
/// So with read buffers of 64 KiB a message that is kept keeps at most four times its bytes.
pub const COPY_BYTES: usize = 16 << 10;

/// Entries of a listing that a broker puts into one frame at most: they fit, however long the names
/// are.
pub const MAX_PART: usize = 64;

/// Takes [`MAGIC`] off the start of what a client has written; `false` if it has not come whole.
///
/// ```
/// use bus_core::wire::{MAGIC, take_magic};
/// use bytes::BytesMut;
///
/// let mut bytes = BytesMut::from(&MAGIC[..5]);
/// assert!(!take_magic(&mut bytes)?);
/// bytes.extend_from_slice(&MAGIC[5..]);
/// assert!(take_magic(&mut bytes)?);
/// assert!(bytes.is_empty());
/// # Ok::<(), bus_core::wire::WireError>(())
/// ```
///
/// # Errors
///
/// [`WireError::Magic`] with the first byte that differs: this is no client of ours.
pub fn take_magic(unread: &mut BytesMut) -> Result<bool, WireError> {
    let differs = unread.iter().zip(MAGIC).position(|(&byte, magic)| byte != magic);
    if let Some(at) = differs {
        return Err(WireError::Magic { at, given: unread[at] });
    }
    let whole = unread.len() >= MAGIC.len();
    if whole {
        unread.advance(MAGIC.len());
    }
    Ok(whole)
}

/// Why bytes are no frame. The stream cannot be trusted any more: tell the peer with
/// [`Goodbye::from`], log it, and close that one connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The connection does not begin with [`MAGIC`].
    #[error("byte {at} of the connection is {given:#04x}, which is not Unisono's greeting")]
    Magic {
        /// Offset of the first byte that differs.
        at: usize,
        /// That byte.
        given: u8,
    },
    /// A kind that this version does not know in this direction.
    #[error("frame kind {kind:#04x} is unknown")]
    UnknownKind {
        /// The kind.
        kind: u8,
    },
    /// The whole frame is shorter than its kind needs, or longer than it may be.
    #[error("{frame} of {given} bytes, and it has {least} to {most}")]
    Length {
        /// Which kind of frame.
        frame: &'static str,
        /// The length in its header.
        given: usize,
        /// The least that is accepted.
        least: usize,
        /// The most that is accepted.
        most: usize,
    },
    /// Flags that the kind does not know.
    #[error("{frame} has flags {given:#04x}, and knows {known:#04x}")]
    UnknownFlags {
        /// Which kind of frame.
        frame: &'static str,
        /// All flags given.
        given: u16,
        /// All flags known.
        known: u16,
    },
    /// More descriptors than the kind may bring.
    #[error("{frame} with {given} descriptors, and it brings at most {most}")]
    Descriptors {
        /// Which kind of frame.
        frame: &'static str,
        /// How many it announces.
        given: u8,
        /// The most that is accepted.
        most: u8,
    },
    /// A lane that no endpoint has.
    #[error("{frame} for lane {given}, and the highest is {most}")]
    Lane {
        /// Which kind of frame.
        frame: &'static str,
        /// The lane given.
        given: u8,
        /// The most that is accepted; 0 where lanes mean nothing.
        most: u8,
    },
    /// A field that means nothing in this kind of frame is not 0.
    #[error("{frame} has {given} as its {field}, which must be 0")]
    NotZero {
        /// Which kind of frame.
        frame: &'static str,
        /// Which field.
        field: &'static str,
        /// Its value.
        given: u32,
    },
    /// A frame that answers, or wants an answer, has no serial.
    #[error("{frame} without a serial")]
    NoSerial {
        /// Which kind of frame.
        frame: &'static str,
    },
    /// A field has a value that it cannot have.
    #[error("{frame} has {given} as its {field}")]
    Value {
        /// Which kind of frame.
        frame: &'static str,
        /// Which field.
        field: &'static str,
        /// Its value.
        given: u64,
    },
    /// The attributes go on past the end of the frame.
    #[error("{frame} with {given} bytes of attributes, and it has {left} left")]
    AttributesCut {
        /// Which kind of frame.
        frame: &'static str,
        /// The length given for them.
        given: usize,
        /// Bytes left in the frame.
        left: usize,
    },
    /// The attributes are wrong.
    #[error("attributes of {frame}: {problem}")]
    Attributes {
        /// Which kind of frame.
        frame: &'static str,
        /// What is wrong.
        problem: AttributesError,
    },
    /// The control message is wrong.
    #[error("body of {frame}: {problem}")]
    Body {
        /// Which kind of frame.
        frame: &'static str,
        /// What is wrong.
        problem: ControlError,
    },
}

impl WireError {
    const fn not_zero(frame: &'static str, field: &'static str, given: u32) -> Self {
        Self::NotZero { frame, field, given }
    }
}

/// Why something cannot be written as a frame. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// It is too long; send less at a time, or give less text.
    #[error("a body of {given} bytes, and {frame} has at most {most}")]
    TooLong {
        /// Which kind of frame.
        frame: &'static str,
        /// Bytes of the body.
        given: usize,
        /// The most that is accepted.
        most: usize,
    },
    /// More descriptors than [`MAX_DESCRIPTORS`].
    #[error("{given} descriptors, and {frame} brings at most {MAX_DESCRIPTORS}")]
    Descriptors {
        /// Which kind of frame.
        frame: &'static str,
        /// How many.
        given: u8,
    },
}

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests;
