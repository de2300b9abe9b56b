//! Switches bus-core's files, compiled here as this package's library, to the model checker.

fn main() {
    println!("cargo::rustc-cfg=bus_loom");
    println!("cargo::rerun-if-changed=build.rs");
}
