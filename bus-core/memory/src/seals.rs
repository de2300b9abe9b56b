//! What the kernel promises of a memory file.
//!
//! Invariant: a file that passed one of these checks keeps what was checked for ever, because it is
//! sealed against further changes of its seals as well. So a check holds for every later use.
//!
//! A file on disk and a pipe have no seals, and a plain file in `/dev/shm` answers the question for
//! them with "sealed against seals": so the needed bits are looked at, and not only whether there is
//! an answer.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::{Errno, pread, retry_on_intr};

/// Why a file of another process is not to be used as memory. Refuse what came with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It is no memory file, or may still be changed. Its maker has to seal it.
    #[error("it is no memory file that is sealed against {missing}")]
    Unsealed {
        /// What may still happen to it.
        missing: &'static str,
    },
    /// It is shorter than was said.
    #[error("it has {given} bytes, and {needed} were announced")]
    TooShort {
        /// Its size.
        given: u64,
        /// What it would have to have.
        needed: u64,
    },
    /// It has holes: whoever reads these through a mapping would pay for them. Its maker has to
    /// write all of it.
    #[error("it has holes: {given} of its {size} bytes are there")]
    Sparse {
        /// Bytes that are there.
        given: u64,
        /// Its size.
        size: u64,
    },
    /// It occupies much more than its size, so what it occupies does not tell that it has no holes. Its maker
    /// must take no memory behind its end.
    #[error("it occupies {given} bytes, and its size is {size}")]
    BeyondItsEnd {
        /// Bytes that are there.
        given: u64,
        /// Its size.
        size: u64,
    },
    /// The system did not say.
    #[error("cannot look at it: {0}")]
    System(#[from] io::Error),
}

/// Checks that nobody can change the contents or the size of a file any more, and that it has
/// `needed` bytes, all of them there. So it may be read through a mapping, for as long as one
/// likes, whoever made it.
///
/// # Errors
///
/// See [`FileError`].
pub fn check_unchangeable(file: BorrowedFd<'_>, needed: u64) -> Result<(), FileError> {
    need(file, SealFlags::WRITE, "changes of its contents")?;
    check_fixed_size(file, needed)
}

/// As [`check_unchangeable`], but that its maker, and who had it mapped before, may still write it. Its
/// maker has to have taken all its pages ([`Segment::take_pages`](crate::Segment::take_pages)).
///
/// # Errors
///
/// See [`FileError`].
pub fn check_read_only(file: BorrowedFd<'_>, needed: u64) -> Result<(), FileError> {
    need(file, SealFlags::FUTURE_WRITE, "new writers")?;
    check_fixed_size(file, needed)
}

/// Checks that nobody can change the size of a file any more, and that it has `needed` bytes, all of
/// them there.
///
/// # Errors
///
/// See [`FileError`].
pub fn check_fixed_size(file: BorrowedFd<'_>, needed: u64) -> Result<(), FileError> {
    need(file, SealFlags::SHRINK, "shrinking")?;
    need(file, SealFlags::GROW, "growing")?;
    need(file, SealFlags::SEAL, "changes of its seals")?;
    let stat = fstat(file).map_err(io::Error::from)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size < needed {
        return Err(FileError::TooShort { given: size, needed });
    }
    let given = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES);
    if given < size {
        return Err(FileError::Sparse { given, size });
    }
    // What was allocated behind the end is counted too, and might stand for holes before it.
    if given > size.saturating_add(HUGE_PAGE_BYTES) {
        return Err(FileError::BeyondItsEnd { given, size });
    }
    Ok(())
}

fn need(file: BorrowedFd<'_>, seal: SealFlags, missing: &'static str) -> Result<(), FileError> {
    match fcntl_get_seals(file) {
        Ok(seals) if seals.contains(seal) => Ok(()),
        // A pipe or a file on disk.
        Ok(_) | Err(Errno::INVAL | Errno::BADF) => Err(FileError::Unsealed { missing }),
        Err(error) => Err(FileError::System(error.into())),
    }
}

/// Reads from a file without mapping it: of what another process made, this costs its reader no
/// memory whatever the file is.
///
/// # Errors
///
/// The system's; a file that ends too early is [`io::ErrorKind::UnexpectedEof`].
pub fn read_at(file: BorrowedFd<'_>, mut offset: u64, mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        let read = retry_on_intr(|| pread(file, &mut *into, offset))?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        offset += read as u64;
        into = &mut into[read..];
    }
    Ok(())
}

/// The unit in which the kernel counts what a file occupies.
const BLOCK_BYTES: u64 = 512;
/// How much more than its size a file may occupy although nothing was taken behind its end: its last
/// page may be a huge one.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::fs::{
        FallocateFlags, MemfdFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
    };

    use super::*;

    fn file(seals: SealFlags, size: u64, written: usize) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("test", flags).unwrap();
        ftruncate(&file, size).unwrap();
        rustix::io::pwrite(&file, &vec![7; written], 0).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    }

    const ALL: SealFlags =
        SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

    #[test]
    fn only_a_file_with_every_seal_is_unchangeable() {
        let whole = file(ALL, 8192, 8192);
        check_unchangeable(whole.as_fd(), 8192).unwrap();
        let mut bytes = [0; 16];
        read_at(whole.as_fd(), 8176, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 16]);
        for seal in [SealFlags::WRITE, SealFlags::GROW, SealFlags::SHRINK, SealFlags::SEAL] {
            let unsealed = file(ALL - seal, 4096, 4096);
            let error = check_unchangeable(unsealed.as_fd(), 4096).unwrap_err();
            assert!(matches!(error, FileError::Unsealed { .. }), "{seal:?}: {error}");
        }
    }

    #[test]
    fn a_short_file_a_sparse_one_and_no_memory_at_all_are_refused() {
        let short = file(ALL, 4096, 4096);
        let error = check_unchangeable(short.as_fd(), 4097).unwrap_err();
        assert!(matches!(error, FileError::TooShort { given: 4096, needed: 4097 }));
        let sparse = file(ALL, 64 << 20, 4096);
        let error = check_unchangeable(sparse.as_fd(), 4096).unwrap_err();
        assert!(matches!(error, FileError::Sparse { given: 4096, .. }), "{error}");
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let hidden = memfd_create("test", flags).unwrap();
        ftruncate(&hidden, 8 << 20).unwrap();
        fallocate(&hidden, FallocateFlags::KEEP_SIZE, 8 << 20, 16 << 20).unwrap();
        fcntl_add_seals(&hidden, ALL).unwrap();
        let error = check_unchangeable(hidden.as_fd(), 4096).unwrap_err();
        assert!(matches!(error, FileError::BeyondItsEnd { size: 0x80_0000, .. }), "{error}");
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let error = check_unchangeable(pipe.as_fd(), 0).unwrap_err();
        assert!(matches!(error, FileError::Unsealed { .. }), "{error}");
        let disk = std::fs::File::open("/proc/self/exe").unwrap();
        let error = check_unchangeable(disk.as_fd(), 0).unwrap_err();
        assert!(matches!(error, FileError::Unsealed { .. }), "{error}");
    }
}
