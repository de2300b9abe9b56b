//! What a file with a framing program may hold, and what a stream may bring it.
//!
//! The rules and the second interpreter are those of `tests/framing.rs`, where plain tests hold
//! changed fixtures to them.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/framing/reference.rs"]
mod reference;
#[path = "../../tests/framing/rules.rs"]
mod rules;

fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fuzz_target!(|input: &[u8]| {
    rules::hold_to_the_rules(input);
});
