//! Switches bus-core's files, compiled here as this package's library, to shuttle.

fn main() {
    println!("cargo::rustc-cfg=bus_shuttle");
    println!("cargo::rerun-if-changed=build.rs");
}
