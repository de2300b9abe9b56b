//! Whether this process is still the one that it was.
//!
//! # Safety
//!
//! The page is this process's own and anonymous; it is read as an atomic. The kernel fills it with zeros in
//! every child (`MADV_WIPEONFORK`), so a look costs no system call.
#![expect(unsafe_code, reason = "a page that the kernel wipes on fork")]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Remembers the process that made it, by a page that a child has only zeros in.
#[derive(Debug)]
pub struct ForkMark(NonNull<u8>);

// SAFETY: the page belongs to the process, and its one word is an atomic.
unsafe impl Send for ForkMark {}
// SAFETY: as above.
unsafe impl Sync for ForkMark {}

impl ForkMark {
    /// A mark of this process.
    ///
    /// ```
    /// let mark = bus_memory::ForkMark::new()?;
    /// assert!(mark.is_same_process());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The system's: no memory, or a kernel before 4.14.
    pub fn new() -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place, so nothing that is mapped is replaced.
        let page = unsafe {
            mmap_anonymous(std::ptr::null_mut(), PAGE_BYTES, protection, MapFlags::PRIVATE)
        }?;
        let mark = Self(NonNull::new(page.cast()).ok_or(io::ErrorKind::OutOfMemory)?);
        // SAFETY: the page is ours, and nothing else is in it.
        unsafe { madvise(page, PAGE_BYTES, Advice::LinuxWipeOnFork) }?;
        mark.word().store(1, Ordering::Relaxed);
        Ok(mark)
    }

    /// Whether this is the process that made it, and no child of that.
    #[inline]
    #[must_use]
    pub fn is_same_process(&self) -> bool {
        self.word().load(Ordering::Relaxed) == 1
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: the page is mapped for as long as `self` lives, and aligned.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().cast()) }
    }
}

impl Drop for ForkMark {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing refers to it any more.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), PAGE_BYTES) };
    }
}

/// One page.
const PAGE_BYTES: usize = 4096;
