//! Ordered multicast between endpoints of one process.
#![deny(unsafe_code)]
