//! A broker's configuration file.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/configuration.rs"]
mod configuration;

fuzz_target!(|input: &[u8]| configuration::hold_to_the_rules(input));
