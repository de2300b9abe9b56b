//! The library against a broker that follows a script, over a real socket.

mod batches;
mod greeting;
mod hostile;
mod long_reads;
mod loops;
mod memory;
mod receiving;
mod reconnecting;
mod requests;
mod sending;
mod threads;
