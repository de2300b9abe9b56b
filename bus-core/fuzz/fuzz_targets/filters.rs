//! Filters as people write them, and messages that they are asked about.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/filters.rs"]
mod filters;

fuzz_target!(|input: &[u8]| filters::hold_to_the_rules(input));
