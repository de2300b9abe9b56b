//! A little of the soak: `cargo run --release -p tests --bin soak -- --minutes N` is all of it.

use tests::soak::{Plan, run};

#[test]
fn g8_g10_after_a_little_bad_luck_of_every_kind_everything_is_as_before() {
    let findings = run(&Plan::brief(env!("CARGO_BIN_EXE_soak").into()), |line| println!("{line}"));
    assert!(findings.is_empty(), "{findings:#?}");
}
