//! Memory that this process makes for others.
//!
//! Invariant: its size is fixed before anybody else can see it, so no access can fault. Until
//! [`seal`](Segment::seal), who is given the file may map it for writing; afterwards nobody can who
//! has not done so, whatever rights its descriptor has: the seal protects, not the way it was opened.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};

use crate::Mapping;

/// Memory that this process writes and others map.
#[derive(Debug)]
pub struct Segment {
    file: OwnedFd,
    mapping: Mapping,
}

impl Segment {
    /// Makes memory of `length` bytes, all 0, that others may map for reading only.
    ///
    /// # Errors
    ///
    /// The system's: no descriptor, no memory.
    pub fn for_readers(name: &str, length: usize) -> io::Result<Self> {
        let segment = Self::for_a_writer(name, length)?;
        segment.seal()?;
        Ok(segment)
    }

    /// Makes memory of `length` bytes, all 0, that one other process is about to map for writing.
    /// [`seal`](Self::seal) it before anybody else is given it.
    ///
    /// # Errors
    ///
    /// The system's: no descriptor, no memory.
    pub fn for_a_writer(name: &str, length: usize) -> io::Result<Self> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, length as u64)?;
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
        let mapping = Mapping::read_write(file.as_fd(), length)?;
        Ok(Self { file, mapping })
    }

    /// From now on nobody can map it for writing any more; mappings that exist stay.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn seal(&self) -> io::Result<()> {
        seal_writable(self.file.as_fd())
    }

    /// Its file and this process's mapping, which does not need the file any more.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, Mapping) {
        (self.file, self.mapping)
    }

    /// Takes all its pages now. Without that they come one by one at their first use, where want of
    /// memory is a signal and no error.
    ///
    /// # Errors
    ///
    /// The system's: no memory.
    pub fn take_pages(&self) -> io::Result<()> {
        take_pages(self.as_fd(), self.mapping.len())
    }

    /// This process's own mapping.
    #[must_use]
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mapping.is_empty()
    }
}

/// As [`Segment::seal`], for a file whose segment was taken apart.
///
/// # Errors
///
/// The system's.
pub fn seal_writable(file: BorrowedFd<'_>) -> io::Result<()> {
    fcntl_add_seals(file, SealFlags::FUTURE_WRITE | SealFlags::SEAL)?;
    Ok(())
}

/// As [`Segment::take_pages`], for the one that memory was made for: it takes time, and they are charged to who
/// takes them.
///
/// # Errors
///
/// The system's: no memory.
pub fn take_pages(file: BorrowedFd<'_>, length: usize) -> io::Result<()> {
    fallocate(file, FallocateFlags::empty(), 0, length as u64)?;
    Ok(())
}

impl AsFd for Segment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check_read_only;

    #[test]
    fn readers_see_what_is_written_and_cannot_write() {
        let segment = Segment::for_readers("test", 8192).unwrap();
        assert!(check_read_only(segment.as_fd(), 8192).is_err(), "holes");
        segment.take_pages().unwrap();
        check_read_only(segment.as_fd(), 8192).unwrap();
        let reader = Mapping::read_only(segment.as_fd(), 8192).unwrap();
        segment.mapping().copy_in(4090, b"across a page");
        let mut bytes = [0; 13];
        reader.copy_out(4090, &mut bytes);
        assert_eq!(&bytes, b"across a page");
        assert!(Mapping::read_write(segment.as_fd(), 8192).is_err(), "sealed");
        assert!(rustix::io::pwrite(&segment, b"x", 0).is_err(), "sealed");
        assert!(ftruncate(&segment, 0).is_err(), "sealed");
    }

    #[test]
    fn a_writer_that_mapped_in_time_keeps_writing_and_is_the_last() {
        let segment = Segment::for_a_writer("test", 4096).unwrap();
        let writer = Mapping::read_write(segment.as_fd(), 4096).unwrap();
        segment.seal().unwrap();
        segment.take_pages().unwrap();
        check_read_only(segment.as_fd(), 4096).unwrap();
        writer.copy_in(0, b"lent");
        let other = Segment::for_readers("copy", 4096).unwrap();
        other.mapping().copy_from(8, segment.mapping(), 0, 4);
        let mut bytes = [0; 4];
        other.mapping().copy_out(8, &mut bytes);
        assert_eq!(&bytes, b"lent");
        assert!(Mapping::read_write(segment.as_fd(), 4096).is_err(), "too late");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&segment.as_fd()));
        let again = std::fs::File::options().read(true).write(true).open(path).unwrap();
        assert!(Mapping::read_write(again.as_fd(), 4096).is_err(), "opening it anew does not help");
    }

    #[test]
    fn pages_are_taken_at_once_also_of_what_is_sealed() {
        let segment = Segment::for_readers("test", 1 << 20).unwrap();
        assert!(crate::check_fixed_size(segment.as_fd(), 1 << 20).is_err(), "holes");
        segment.take_pages().unwrap();
        crate::check_fixed_size(segment.as_fd(), 1 << 20).unwrap();
    }

    #[test]
    fn words_are_shared() {
        let segment = Segment::for_readers("test", 4096).unwrap();
        let reader = Mapping::read_only(segment.as_fd(), 4096).unwrap();
        segment.mapping().word(16).store(7, std::sync::atomic::Ordering::Release);
        assert_eq!(reader.word(16).load(std::sync::atomic::Ordering::Acquire), 7);
    }
}
