//! The command line end to end: the very program, over real sockets, with a broker in this process.

mod call;
mod demo;
mod harness;
mod listen;
mod run;
mod send;
mod show;
mod verify;
