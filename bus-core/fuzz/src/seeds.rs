//! Writes the examples of PROTOCOL.md and the programs that clang made into the corpora, so that
//! fuzzing begins with good frames and good programs.

use std::io;
use std::path::Path;
use std::{fs, iter};

use bus_core::framing::{SECTION, object};

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
    let corpus = corpora.join("framing");
    fs::create_dir_all(&corpus)?;
    for (name, file) in PROGRAMS {
        fs::write(corpus.join(format!("{name}.o")), file)?;
        let code = object::section(file, SECTION).map_err(io::Error::other)?;
        // Where the stream wraps, how many instructions there are, they, and the stream.
        let header = [2, u8::try_from(code.len() / 8).unwrap_or(u8::MAX)];
        let input = [&header, code, STREAM].concat();
        fs::write(corpus.join(name), input)?;
    }
    Ok(())
}

/// Something for each of the programs to find.
const STREAM: &[u8] = b"\0\0\0\x05hello7:varints,\x03abc";
const PROGRAMS: [(&str, &[u8]); 3] = [
    (
        "thrift",
        include_bytes!("../../tests/fixtures/thrift.bpf.o"),
    ),
    (
        "netstring",
        include_bytes!("../../tests/fixtures/netstring.bpf.o"),
    ),
    (
        "varint",
        include_bytes!("../../tests/fixtures/varint.bpf.o"),
    ),
];

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
