//! Placeholder until the module map lands.
