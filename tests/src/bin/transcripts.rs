//! Records the transcripts anew: `transcripts [NAME...]`. Those that are there say what version 1 is;
//! record one again only where nothing of it was ever released.

#![deny(unsafe_code)]

use std::fs;

use tests::transcripts::SCENARIOS;

fn main() -> std::io::Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for scenario in SCENARIOS {
        if wanted.is_empty() || wanted.iter().any(|name| name == scenario.name) {
            fs::write(scenario.path(), scenario.record())?;
            println!("{}", scenario.path().display());
        }
    }
    Ok(())
}
