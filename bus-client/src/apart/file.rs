//! A file in memory that nobody can change any more: what may be lent without a pool.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use bus_memory::{FileError, check_unchangeable};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// A memory file, sealed against every change, to be sent with [`Outgoing::file`](crate::Outgoing::file).
///
/// For what is made once and sent once. For what is sent again and again a [`Pool`](crate::Pool) is
/// faster: making, mapping and freeing a file costs more than a copy up to some megabytes.
///
/// ```
/// use std::io::Write;
///
/// let file = bus_client::SealedFile::written(|file| file.write_all(b"for good"))?;
/// assert_eq!(file.len(), 8);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct SealedFile {
    file: OwnedFd,
    length: u64,
}

impl SealedFile {
    /// Makes a file of what `write` writes, and seals it.
    ///
    /// # Errors
    ///
    /// The system's, or those of `write`.
    pub fn written(write: impl FnOnce(&mut std::fs::File) -> io::Result<()>) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = std::fs::File::from(memfd_create("unisono-payload", flags)?);
        write(&mut file)?;
        file.flush()?;
        let length = file.metadata()?.len();
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        Ok(Self { file: file.into(), length })
    }

    /// Takes a file of which the first `length` bytes are to be sent.
    ///
    /// # Errors
    ///
    /// It can still be changed, is shorter, or has holes.
    pub fn new(file: OwnedFd, length: u64) -> Result<Self, FileError> {
        check_unchangeable(file.as_fd(), length)?;
        Ok(Self { file, length })
    }

    /// How many bytes are sent.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(crate) fn into_parts(self) -> (OwnedFd, u64) {
        (self.file, self.length)
    }

    /// What is in it, for those who are sent it inline.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.length).map_err(io::Error::other)?];
        bus_memory::read_at(self.file.as_fd(), 0, &mut bytes)?;
        Ok(bytes)
    }
}
