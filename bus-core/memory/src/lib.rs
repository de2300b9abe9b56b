//! Memory that a broker and its clients share: made, sealed, checked, mapped.
//!
//! Invariant: who maps memory of another process has first checked by its seals what that process
//! can still do to it. Nothing here is shared but bytes and words: no lock, no count and no list lies
//! in memory that a client can write.
//!
//! | file | what it knows |
//! |---|---|
//! | `seals` | what the kernel promises of a memory file: who can still write it, or change its size |
//! | `fork` | whether this process is still the one that it was |
//! | `mapping` | a file in this process's memory |
//! | `streamed` | long copies of what others are to read |
//! | `segment` | memory that this process makes for others |
//!
//! All `unsafe` code is that of `fork`, `mapping` and `streamed`.
#![deny(unsafe_code)]

mod fork;
mod mapping;
mod seals;
mod segment;
mod streamed;

pub use fork::ForkMark;
pub use mapping::Mapping;
pub use seals::{FileError, check_fixed_size, check_read_only, check_unchangeable, read_at};
pub use segment::{Segment, seal_writable, take_pages};
