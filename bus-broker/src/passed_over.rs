//! A large frame that its user has no bytes left for: it is read past, and refused by its head.
//!
//! Invariant: before memory is taken for a frame that comes in parts its user is charged for all of
//! it. Where that is refused nothing but the head is kept, so what a user's connections make the
//! broker keep is bounded by his limit; and the stream stays in step, so the client is told which of
//! its sends was refused and why, and goes on.

use bus_core::{LimitExceeded, wire::ClientFrame};
use bytes::{Buf, BytesMut};

/// A frame under way that is not kept.
#[derive(Debug)]
pub(crate) struct PassedOver {
    /// Its first bytes.
    pub(crate) head: Vec<u8>,
    /// How many of it are to come.
    left: usize,
    pub(crate) limit: LimitExceeded,
}

impl PassedOver {
    /// A frame of so many bytes.
    pub(crate) fn new(bytes: usize, limit: LimitExceeded) -> Self {
        Self { head: Vec::new(), left: bytes, limit }
    }

    /// Takes what has come of it off `unread`. True once all has.
    pub(crate) fn take(&mut self, unread: &mut BytesMut) -> bool {
        let come = self.left.min(unread.len());
        let wanted = come.min(ClientFrame::HEAD_BYTES - self.head.len());
        self.head.extend_from_slice(&unread[..wanted]);
        unread.advance(come);
        self.left -= come;
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use bus_core::{Ledger, Limits, Process, Resource};

    use super::*;

    #[test]
    fn the_head_is_kept_and_the_rest_is_not_however_it_comes() {
        let limits = Limits { user_bytes: 1, ..Limits::default() };
        let account = Ledger::new(&limits).open(1, 1, Process::Pid(1));
        let limit = account.charge(Resource::Bytes, 100).unwrap_err();
        for piece in [1, 7, 64, 200] {
            let mut passed = PassedOver::new(100, limit.clone());
            let stream: Vec<u8> = (0..200).collect();
            let mut rest = BytesMut::new();
            for bytes in stream.chunks(piece) {
                rest.extend_from_slice(bytes);
                if passed.take(&mut rest) {
                    break;
                }
                assert!(rest.is_empty());
            }
            assert_eq!(passed.head, stream[..ClientFrame::HEAD_BYTES]);
            assert!(rest.iter().eq(&stream[100..100 + rest.len()]), "the next frame is left");
        }
    }
}
