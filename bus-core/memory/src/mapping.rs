//! A memory file in this process's memory.
//!
//! # Safety
//!
//! The file's size is fixed before it is mapped (its maker has sealed that, and others have checked
//! the seals), so no access within `length` can fault. Another process may write these bytes at any
//! time: so no Rust reference to them is given away, but by [`Mapping::bytes`], whose caller answers for
//! it, and to words as atomics. Everything else copies, through raw pointers, bytes that may be torn
//! and are never taken for anything but bytes.
#![expect(unsafe_code, reason = "memory maps")]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::streamed;

/// A file that is mapped from its beginning; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
    writable: bool,
}

// SAFETY: a mapping is memory of the process, not of a thread, and all access is by copies through
// raw pointers or by atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of a file for reading. Its size must have been checked to be fixed: see
    /// [`check_read_only`](crate::check_read_only).
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn read_only(file: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        Self::new(file, length, false)
    }

    /// Maps `length` bytes of a file for reading and writing. Its size must be fixed.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn read_write(file: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        Self::new(file, length, true)
    }

    fn new(file: BorrowedFd<'_>, length: usize, writable: bool) -> io::Result<Self> {
        let protection =
            if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: the kernel chooses the place, so nothing that is mapped is replaced.
        let start =
            unsafe { mmap(ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length, writable })
    }

    /// Brings all pages into this process's tables at once, where the system can: one by one, at their
    /// first use, each costs an interruption.
    pub fn prepare(&self) {
        let how =
            if self.writable { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead };
        // SAFETY: the range is the mapping's own, and this advice changes no contents.
        let _ = unsafe { madvise(self.start.as_ptr().cast(), self.length, how) };
    }

    /// Bytes that are mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Where the bytes lie.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Copies bytes out. Where another process writes them meanwhile the copy is a mixture.
    ///
    /// # Panics
    ///
    /// The range is not within the mapping.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.check(offset, into.len());
        // SAFETY: the range is within the mapping, and the slice is this process's own.
        unsafe {
            ptr::copy_nonoverlapping(self.as_ptr().add(offset), into.as_mut_ptr(), into.len());
        }
    }

    /// As [`copy_out`](Self::copy_out), to the end of `into`.
    ///
    /// # Panics
    ///
    /// The range is not within the mapping.
    pub fn append_to(&self, offset: usize, length: usize, into: &mut Vec<u8>) {
        self.check(offset, length);
        into.reserve(length);
        // SAFETY: the range is within the mapping; the vector is this process's own, has room for
        // so many bytes more, and they are what it has when its length says so.
        unsafe {
            let end = into.as_mut_ptr().add(into.len());
            ptr::copy_nonoverlapping(self.as_ptr().add(offset), end, length);
            into.set_len(into.len() + length);
        }
    }

    /// Copies bytes in. Who else reads or writes them meanwhile finds a mixture.
    ///
    /// # Panics
    ///
    /// The range is not within the mapping, or it is for reading only.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        assert!(self.writable, "a mapping for reading is not written to");
        // SAFETY: the range is within the mapping, which is writable, and the slice is this
        // process's own.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.as_ptr().add(offset), bytes.len());
        }
    }

    /// As [`copy_in`](Self::copy_in), of what others are to read: long copies go around this processor's
    /// caches.
    ///
    /// # Panics
    ///
    /// The range is not within the mapping, or it is for reading only.
    pub fn copy_in_for_others(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        assert!(self.writable, "a mapping for reading is not written to");
        // SAFETY: the range is within the mapping, which is writable, and the slice is this
        // process's own.
        unsafe { streamed::copy(bytes.as_ptr(), self.as_ptr().add(offset), bytes.len()) }
    }

    /// Copies bytes that others are to read from one mapping to another: long copies go around this
    /// processor's caches.
    ///
    /// # Panics
    ///
    /// One of the ranges is not within its mapping, or this one is for reading only.
    pub fn copy_from(&self, offset: usize, source: &Self, from: usize, length: usize) {
        self.check(offset, length);
        source.check(from, length);
        assert!(self.writable, "a mapping for reading is not written to");
        // SAFETY: both ranges are within their mappings, and this one is writable. Two mappings may show
        // the same file, and then who asks for ranges that overlap gets a mixture.
        unsafe { streamed::copy(source.as_ptr().add(from), self.as_ptr().add(offset), length) }
    }

    /// The bytes where they lie.
    ///
    /// # Panics
    ///
    /// The range is not within the mapping.
    ///
    /// # Safety
    ///
    /// For as long as the reference lives nobody writes these bytes, in this process or another one:
    /// because the file is sealed against writing, or by agreement with the only one that can.
    #[inline]
    #[must_use]
    pub unsafe fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        self.check(offset, length);
        // SAFETY: the range is within the mapping, which lives as long as the reference; the caller
        // answers for the rest.
        unsafe { std::slice::from_raw_parts(self.as_ptr().add(offset), length) }
    }

    /// The bytes where they lie, to be written.
    ///
    /// # Panics
    ///
    /// The range is not within the mapping, or it is for reading only.
    ///
    /// # Safety
    ///
    /// For as long as the reference lives nobody else reads or writes these bytes through a
    /// reference, and nobody writes them at all.
    #[must_use]
    #[expect(clippy::mut_from_ref, reason = "the caller answers for there being one")]
    pub unsafe fn bytes_mut(&self, offset: usize, length: usize) -> &mut [u8] {
        self.check(offset, length);
        assert!(self.writable, "a mapping for reading is not written to");
        // SAFETY: as in `bytes`, and the mapping is writable.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr().add(offset), length) }
    }

    /// An aligned word of the mapping.
    ///
    /// # Panics
    ///
    /// The offset is no multiple of 8, or the word is not within the mapping.
    #[inline]
    #[must_use]
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        self.check(offset, 8);
        assert!(offset.is_multiple_of(8), "words are aligned");
        // SAFETY: the word is within the mapping, which begins at a page, so it is aligned; and other
        // processes access it as an atomic too. A store to a mapping for reading would fault: the
        // words of those are only loaded.
        unsafe { AtomicU64::from_ptr(self.as_ptr().add(offset).cast()) }
    }

    fn check(&self, offset: usize, length: usize) {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length), "within the mapping");
    }
}

impl bus_core::ring::Memory for Mapping {
    fn word(&self, at: usize) -> &AtomicU64 {
        Self::word(self, at)
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        self.copy_in(at, bytes);
    }

    fn get(&self, at: usize, into: &mut [u8]) {
        self.copy_out(at, into);
    }

    fn append(&self, at: usize, bytes: usize, into: &mut Vec<u8>) {
        self.append_to(at, bytes, into);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing that refers to it outlives it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}
