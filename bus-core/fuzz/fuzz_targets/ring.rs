//! What a peer may write into its memory of a ring.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/ring/rules.rs"]
mod rules;

fuzz_target!(|input: &[u8]| {
    rules::hold_to_the_rules(input);
});
