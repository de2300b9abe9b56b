//! The guarantees of an in-process bus, one module each, through the public interface only.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod filters;
mod gated;
mod given;

mod g10_innocent;
mod g1_all_or_nothing;
mod g2_one_order;
mod g3_causality;
mod g4_views;
mod g5_blocking;
mod g6_readiness;
mod g7_dropping;
mod g8_bounds;
mod g9_lifetime;
mod listings;
mod reading;
mod requests;
