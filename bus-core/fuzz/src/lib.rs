//! What must hold for any bytes that come from a peer, whatever they are.

use std::fmt::Debug;

use bus_core::wire::{BrokerFrame, ClientFrame, EncodeError, WireError};
use bytes::BytesMut;

/// One direction of the wire protocol.
pub trait Direction: Sized + PartialEq + Debug {
    /// As [`ClientFrame::decode`].
    fn decode(unread: &mut BytesMut) -> Result<Option<Self>, WireError>;
    /// As [`ClientFrame::bytes_needed`].
    fn bytes_needed(unread: &[u8]) -> Result<usize, WireError>;
    /// As [`ClientFrame::encode`].
    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError>;
}

macro_rules! direction {
    ($frame:ty) => {
        impl Direction for $frame {
            fn decode(unread: &mut BytesMut) -> Result<Option<Self>, WireError> {
                Self::decode(unread)
            }
            fn bytes_needed(unread: &[u8]) -> Result<usize, WireError> {
                Self::bytes_needed(unread)
            }
            fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
                self.encode(out)
            }
        }
    };
}

direction!(ClientFrame);
direction!(BrokerFrame);

/// Decodes a stream of frames to its end or its first offence, and holds every frame to the rules:
/// it has the length that was announced, it can be encoded, and its encoding is the same frame.
///
/// # Panics
///
/// A rule is broken: that is a finding.
pub fn hold_to_the_rules<F: Direction>(stream: &[u8]) {
    let mut unread = BytesMut::from(stream);
    loop {
        let before = unread.len();
        let needed = F::bytes_needed(&unread);
        match F::decode(&mut unread) {
            Ok(Some(frame)) => {
                assert_eq!(needed, Ok(before - unread.len()));
                let again = encoded(&frame);
                let decoded = F::decode(&mut again.clone());
                assert_eq!(decoded.as_ref(), Ok(&Some(frame)));
                let Ok(Some(decoded)) = decoded else { return };
                assert_eq!(encoded(&decoded), again, "encoding is settled");
            }
            Ok(None) => {
                assert_eq!(unread.len(), before, "nothing is taken of a frame that is not whole");
                assert!(needed.is_ok_and(|needed| needed > before));
                return;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        }
    }
}

fn encoded<F: Direction>(frame: &F) -> BytesMut {
    let mut out = BytesMut::new();
    frame.encode(&mut out).expect("a frame that was decoded fits a frame");
    out
}
