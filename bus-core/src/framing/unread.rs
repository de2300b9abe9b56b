//! Bytes of a stream that nobody has taken yet, where they lie.
//!
//! Invariant: the bytes are those of `first` and then those of `second`, and nothing else can be
//! told from outside: where the seam lies changes no answer. So a ring that has wrapped is framed
//! without a copy, and a program cannot be made to see a message differently by the moment at
//! which its bytes came.

/// The bytes that a stream has brought and that are not yet taken, as the up to two slices of a
/// ring.
///
/// ```
/// use bus_core::framing::Unread;
///
/// let unread = Unread::new(&[0, 0], &[1, 2, 0xff]);
/// assert_eq!(unread.len(), 5);
/// assert_eq!(unread.array(0).map(u32::from_be_bytes), Some(0x102));
/// assert_eq!(unread.array::<4>(2), None, "there are only three");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Unread<'a> {
    first: &'a [u8],
    second: &'a [u8],
}

impl<'a> Unread<'a> {
    /// The bytes of `first`, then those of `second`; either may be empty.
    #[must_use]
    pub const fn new(first: &'a [u8], second: &'a [u8]) -> Self {
        Self { first, second }
    }

    /// How many bytes there are.
    #[must_use]
    pub const fn len(self) -> usize {
        // Slices have at most `isize::MAX` bytes each.
        self.first.len() + self.second.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The byte at this offset; `None` past the end.
    #[must_use]
    pub fn byte(self, at: usize) -> Option<u8> {
        match self.first.get(at) {
            Some(&byte) => Some(byte),
            None => self.second.get(at - self.first.len()).copied(),
        }
    }

    /// The `N` bytes from this offset on; `None` if they are not all there.
    #[inline]
    #[must_use]
    pub fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        if let Some(found) = self.first.get(at..).and_then(<[u8]>::first_chunk) {
            return Some(*found);
        }
        self.array_elsewhere(at)
    }

    /// The same where the bytes are not all in the first slice.
    fn array_elsewhere<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        let end = at.checked_add(N)?;
        if end > self.len() {
            return None;
        }
        let mut found = [0; N];
        for (place, at) in found.iter_mut().zip(at..) {
            *place = self.byte(at)?;
        }
        Some(found)
    }
}

impl<'a> From<&'a [u8]> for Unread<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::new(bytes, &[])
    }
}

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn the_seam_changes_no_answer() {
        let bytes = [1, 2, 3, 4, 5, 6, 7];
        for seam in 0..=bytes.len() {
            let (first, second) = bytes.split_at(seam);
            let unread = Unread::new(first, second);
            assert_eq!(unread.len(), 7);
            for at in 0..10 {
                assert_eq!(unread.byte(at), bytes.get(at).copied(), "{seam} {at}");
                let whole = Unread::from(&bytes[..]);
                assert_eq!(unread.array::<4>(at), whole.array::<4>(at), "{seam} {at}");
                let four = bytes.get(at..at + 4).map(<[u8]>::to_vec);
                let found = unread.array::<4>(at).map(|four| four.to_vec());
                assert_eq!(found, four, "{seam} {at}");
            }
        }
    }

    #[test]
    fn an_offset_at_the_end_of_memory_is_past_the_end() {
        let unread = Unread::new(&[1, 2], &[3]);
        assert_eq!(unread.byte(usize::MAX), None);
        assert_eq!(unread.array::<8>(usize::MAX), None);
    }
}
