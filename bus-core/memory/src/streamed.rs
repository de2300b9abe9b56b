//! Long copies of bytes that others are to read.
//!
//! An ordinary store first has its line brought into this processor's cache, and taken out of the caches
//! of everybody who has read what lay there before; of memory that is written and read again and again, by
//! turns and on several processors, that is nearly all that a copy costs. Stores that go around the
//! caches ask for no line: 1 MiB that two processors had read took 40 µs in place of 110, and reading it
//! for the first time afterwards 2 µs more. Below [`LEAST_BYTES`] it was not worth looking.
//!
//! # Safety
//!
//! Stores around the caches are not ordered with others, so the copy ends with a fence: what tells readers of
//! the bytes comes after it, as after any other copy.
#![expect(unsafe_code, reason = "stores that go around the caches")]

use std::ptr;

/// Copies `length` bytes, which may overlap only where a mixture does no harm.
///
/// # Safety
///
/// `source` can be read and `target` be written for so many bytes.
pub(crate) unsafe fn copy(source: *const u8, target: *mut u8, length: usize) {
    #[cfg(target_arch = "x86_64")]
    if length >= LEAST_BYTES {
        let head = target.align_offset(LINE_BYTES).min(length);
        let lines = (length - head) / LINE_BYTES;
        let tail = head + lines * LINE_BYTES;
        // SAFETY: the three parts make up what the caller answers for, and the second begins at a line.
        unsafe {
            ptr::copy(source, target, head);
            copy_lines(source.add(head), target.add(head), lines);
            ptr::copy(source.add(tail), target.add(tail), length - tail);
        }
        return;
    }
    // SAFETY: the caller answers for it.
    unsafe { ptr::copy(source, target, length) }
}

/// # Safety
///
/// `source` can be read and `target` be written for so many lines, and `target` is at the beginning of one.
#[cfg(target_arch = "x86_64")]
unsafe fn copy_lines(source: *const u8, target: *mut u8, lines: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    let (source, target) = (source.cast::<__m128i>(), target.cast::<__m128i>());
    // SAFETY: all are within the lines that the caller answers for, the target is aligned, and every
    // processor of this architecture has these instructions. The fence comes before any other access.
    unsafe {
        for line in 0..lines {
            let (from, to) = (source.add(4 * line), target.add(4 * line));
            let words = [
                _mm_loadu_si128(from),
                _mm_loadu_si128(from.add(1)),
                _mm_loadu_si128(from.add(2)),
                _mm_loadu_si128(from.add(3)),
            ];
            for (word, value) in words.into_iter().enumerate() {
                _mm_stream_si128(to.add(word), value);
            }
        }
        _mm_sfence();
    }
}

/// From this length on.
#[cfg(target_arch = "x86_64")]
const LEAST_BYTES: usize = 32 << 10;
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_copied_and_no_other_from_any_place_to_any_other() {
        let source: Vec<u8> = (0..70_000_u32).map(|at| at.to_le_bytes()[0] ^ 0x5a).collect();
        for length in [0, 1, 63, 64, 32_767, 32 << 10, 32_769, 32_831, 65_536, 65_599] {
            for (from, to) in [(0, 0), (0, 1), (1, 0), (7, 63), (64, 16), (63, 64)] {
                let mut target = vec![0xee; 70_000];
                assert!(from + length <= source.len() && to + length <= target.len());
                // SAFETY: both ranges lie in their vectors.
                unsafe { copy(source.as_ptr().add(from), target.as_mut_ptr().add(to), length) };
                let case = format!("{length} bytes from {from} to {to}");
                assert!(target[to..to + length] == source[from..from + length], "{case}");
                let others = target[..to].iter().chain(&target[to + length..]);
                assert!(others.copied().all(|byte| byte == 0xee), "{case}: beyond");
            }
        }
    }
}
