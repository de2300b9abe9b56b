//! What a client may send, and what it may not.
#![no_main]

use bus_core::wire::ClientFrame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| bus_core_fuzz::hold_to_the_rules::<ClientFrame>(stream));
