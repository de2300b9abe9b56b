//! Well-known names: who owns them, who gets what is sent to them, and who is told (SPEC 3, G4,
//! G5, G8).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod changes;
mod given;
mod model;
mod requests;
mod rules;
mod workers;
