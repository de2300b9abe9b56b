//! Memory of large frames, kept to read the next ones into.
//!
//! Fresh memory for each large frame costs more than its copy: the allocator gives pages back to
//! the kernel, and each new one is a fault. Invariant: memory is used again only by whoever is its
//! last holder, so nothing that the application still has changes; and what is kept is bounded in
//! number and in bytes.

use bytes::{Bytes, BytesMut};

/// The newest large frames, whether or not somebody still has them.
#[derive(Debug, Default)]
pub(super) struct Kept(Vec<Bytes>);

impl Kept {
    /// Memory for a frame of `length` bytes, that begins with `beginning`. What follows that is
    /// whatever was there.
    pub(super) fn memory(&mut self, length: usize, beginning: &[u8]) -> BytesMut {
        let mut memory = self.free(length).unwrap_or_else(|| BytesMut::zeroed(length));
        memory.resize(length, 0);
        memory[..beginning.len()].copy_from_slice(beginning);
        memory
    }

    /// Memory that holds as much and that nobody has any more: the newest, which the processor's
    /// caches know best.
    fn free(&mut self, length: usize) -> Option<BytesMut> {
        let at = self.0.iter().rposition(|frame| frame.len() >= length && frame.is_unique())?;
        self.0.remove(at).try_into_mut().ok()
    }

    /// Takes note of a frame that is on its way to the application.
    pub(super) fn keep(&mut self, frame: Bytes) {
        if frame.len() > KEPT_BYTES / KEPT_FRAMES {
            return;
        }
        if self.0.len() == KEPT_FRAMES {
            self.0.remove(0);
        }
        self.0.push(frame);
    }
}

/// Frames that are kept at most: as many as a socket holds of them, and some that the application
/// has not let go yet.
const KEPT_FRAMES: usize = 8;
/// What they have together at most.
const KEPT_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kept: &mut Kept, length: usize) -> Bytes {
        let frame = kept.memory(length, b"head").freeze();
        kept.keep(frame.clone());
        frame
    }

    #[test]
    fn memory_is_used_again_once_the_application_has_let_go_of_it() {
        let mut kept = Kept::default();
        let first = frame(&mut kept, 1000);
        let place = first.as_ptr();
        let second = frame(&mut kept, 1000);
        assert_ne!(second.as_ptr(), place, "the application still has it");
        drop(first);
        let third = frame(&mut kept, 900);
        assert_eq!((third.as_ptr(), third.len()), (place, 900));
        assert_eq!(&third[..4], b"head");
    }

    #[test]
    fn g8_what_is_kept_is_bounded() {
        let mut kept = Kept::default();
        for _ in 0..3 * KEPT_FRAMES {
            frame(&mut kept, KEPT_BYTES / KEPT_FRAMES);
            frame(&mut kept, 16 << 20);
        }
        assert!(kept.0.len() <= KEPT_FRAMES);
        assert!(kept.0.iter().map(Bytes::len).sum::<usize>() <= KEPT_BYTES);
    }
}
