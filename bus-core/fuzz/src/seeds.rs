//! Writes the examples of PROTOCOL.md into the corpora, so that fuzzing begins with good frames.

use std::io;
use std::path::Path;
use std::{fs, iter};

const PAGE: &str = include_str!("../../PROTOCOL.md");

fn main() -> io::Result<()> {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (number, (side, bytes)) in examples().enumerate() {
        for target in ["client", "broker"] {
            if side == target || side == "either" {
                let corpus = corpora.join(format!("wire_{target}"));
                fs::create_dir_all(&corpus)?;
                fs::write(corpus.join(format!("page-{number:02}")), &bytes)?;
            }
        }
    }
    Ok(())
}

/// The fenced blocks that begin with `hex`, a side and a title. In them `;` begins a comment.
fn examples() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let mut lines = PAGE.lines();
    iter::from_fn(move || {
        let title = lines.find_map(|line| line.strip_prefix("```hex "))?;
        let block = lines.by_ref().take_while(|line| *line != "```");
        let bytes = block
            .flat_map(|line| {
                line.split(';')
                    .next()
                    .unwrap_or_default()
                    .split_whitespace()
            })
            .filter_map(|digits| u8::from_str_radix(digits, 16).ok())
            .collect();
        Some((title.split(' ').next().unwrap_or_default(), bytes))
    })
}
