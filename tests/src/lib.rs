//! What the tests with real processes have in common: a broker, programs on its bus, clients that
//! misbehave, and what may be said of their traces.
//!
//! Nothing here knows a private item of another crate: a test starts the programs that a user
//! starts, and speaks the protocol that a stranger speaks.
//!
//! | module | what it does |
//! |---|---|
//! | [`programs`] | finds `bus-broker` and `unisono`, and builds them where they are missing |
//! | [`broker`] | a broker on a private socket, killed and looked after when it is dropped |
//! | [`process`] | a program whose lines, signals and end a test waits for |
//! | [`program`] | another program of the same user, whose connections a test uses |
//! | [`users`] | other users' programs, where the tests are root's |
//! | [`raw`] | a client that is nothing but the codec on a socket |
//! | [`senders`] | processes that send for as long as a test wants them to |
//! | [`trace`] | what `listen --json` printed, and the guarantees it must show |
//! | [`incarnations`] | the same of listeners that went on with another broker |
//! | [`deadline`] | waiting: for an event, with one deadline, without sleeping |
//! | [`needs`] | programs that a test needs and a machine may lack |
//! | [`loans`] | programs that lend payloads and keep them |
//! | [`soak`], [`fuzz`] | bad luck for as long as one likes; the program `soak` |
//! | [`transcripts`] | recorded conversations, to be had again |
//! | [`transports`] | a program's tests again, with bytes that travel another way |
//! | [`random`] | numbers that are the same in every run |
//!
//! **Waiting.** No test sleeps for something to have happened meanwhile. What can be an event is
//! waited for as one: a line, an end of file, a frame. The rest (counters, mostly) is looked at
//! again and again by [`deadline::eventually`], until it is so or the one deadline is reached.
//!
//! **Programs that may be missing.** A test that needs a program which is no part of the workspace is
//! named `needs_...` and ignored, with the reason, where it is missing; `UNISONO_REQUIRE=all` makes
//! it fail instead. `build.rs` says how.

#![deny(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod broker;
pub mod deadline;
pub mod fuzz;
pub mod incarnations;
pub mod loans;
pub mod needs;
pub mod process;
pub mod program;
pub mod programs;
pub mod random;
pub mod raw;
pub mod senders;
pub mod soak;
pub mod trace;
pub mod transcripts;
pub mod transports;
pub mod users;
