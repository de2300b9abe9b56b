//! Models of `bus-core`'s own code: every interleaving of a few threads with one or two operations
//! each, explored by loom. `given.rs` says how far, `mutants.rs` which guarantee is modelled where
//! and how each model is shown to notice what it is for.

mod accounts;
mod batch;
mod cancel;
mod drop_when_full;
mod filters;
mod gated;
mod given;
mod isolation;
mod loan;
mod membership;
mod monitor;
mod mutants;
mod names;
mod order;
mod queue;
mod reader;
mod requests;
mod reserve;
mod retained;
mod shared_ring;
mod shares;
mod tally;
mod waiting;
mod wakers;
