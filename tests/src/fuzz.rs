//! The fuzz targets, run for a bounded time by changing good inputs at random, on any toolchain.
//!
//! What must hold is what the libFuzzer targets hold inputs to (`bus-core/fuzz`), by the very same
//! functions; there coverage guides the changes, here nothing does. A panic is a finding: its message
//! is preceded by the seed and the number of the input, with which it is found again.
//!
//! | target | reads | begins with |
//! |---|---|---|
//! | `wire-client`, `wire-broker` | streams of frames | the examples of PROTOCOL.md |
//! | `framing` | programs and the streams they cut | the programs of the tests |
//! | `filters` | filters as people write them, and messages | those of the documentation |
//! | `configuration` | a broker's configuration file | an example with everything in it |
//! | `ring` | what a peer writes into its memory, between the steps of both ends | steps that do no harm |

use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use bus_core::framing::{SECTION, object};
use bus_core::wire::{BrokerFrame, ClientFrame};

use crate::random::Random;

#[path = "../../bus-core/fuzz/src/configuration.rs"]
#[expect(unreachable_pub, reason = "it is a crate's there")]
mod configuration;
#[path = "../../bus-core/fuzz/src/filters.rs"]
#[expect(unreachable_pub, reason = "it is a crate's there")]
mod filters;
#[path = "../../bus-core/tests/framing/reference.rs"]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "naive on purpose")]
mod reference;
#[path = "../../bus-core/tests/ring/rules.rs"]
mod ring;
#[path = "../../bus-core/tests/framing/rules.rs"]
mod rules;
#[path = "../../bus-core/fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it is a crate's there")]
mod wire;

/// The clock that framing is given.
fn now() -> Instant {
    Instant::now()
}

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    check: fn(&[u8]),
    corpus: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    Target {
        name: "wire-client",
        check: wire::hold_to_the_rules::<ClientFrame>,
        corpus: || frames("client"),
    },
    Target {
        name: "wire-broker",
        check: wire::hold_to_the_rules::<BrokerFrame>,
        corpus: || frames("broker"),
    },
    Target {
        name: "framing",
        check: |input| {
            rules::hold_to_the_rules(input);
        },
        corpus: programs,
    },
    Target { name: "filters", check: filters::hold_to_the_rules, corpus: filters::corpus },
    Target {
        name: "configuration",
        check: configuration::hold_to_the_rules,
        corpus: configuration::corpus,
    },
    Target { name: "ring", check: |input| ring::hold_to_the_rules(input), corpus: steps },
];

impl Target {
    /// Changes good inputs for so long, and says how many it has tried.
    ///
    /// # Errors
    ///
    /// A rule was broken: which input it was.
    pub fn run(&self, seed: u64, time: Duration) -> Result<u64, String> {
        let corpus = (self.corpus)();
        let mut random = Random::new(seed);
        let until = Instant::now() + time;
        let mut tried = 0;
        while Instant::now() < until {
            for _ in 0..64 {
                let mut input = corpus[random.below(corpus.len())].clone();
                if random.below(4) == 0 {
                    input.extend_from_slice(&corpus[random.below(corpus.len())]);
                }
                if tried >= corpus.len() as u64 {
                    mutate(&mut input, &mut random);
                }
                tried += 1;
                let checked = catch_unwind(AssertUnwindSafe(|| (self.check)(&input)));
                if checked.is_err() {
                    let name = self.name;
                    return Err(format!("{name}: input {tried} of seed {seed}: {input:02x?}"));
                }
            }
        }
        Ok(tried)
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return bytes.push(random.bytes(1)[0]);
        }
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes[at] = random.bytes(1)[0],
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = EDGES[random.below(EDGES.len())],
            3 => bytes.truncate(at),
            4 => bytes.insert(at, random.bytes(1)[0]),
            5 => drop(bytes.remove(at)),
            6 => {
                let end = (at + random.below(24)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => {
                let other = random.below(bytes.len());
                bytes.swap(at, other);
            }
        }
    }
}

/// The examples of PROTOCOL.md that this side may send.
pub(crate) fn frames(side: &str) -> Vec<Vec<u8>> {
    let mut lines = PAGE.lines();
    let examples = iter::from_fn(move || {
        let title = lines.find_map(|line| line.strip_prefix("```hex "))?;
        let block = lines.by_ref().take_while(|line| *line != "```");
        let bytes: Vec<u8> = block
            .flat_map(|line| line.split(';').next().unwrap_or_default().split_whitespace())
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        Some((title.split_whitespace().next().unwrap_or_default(), bytes))
    });
    examples.filter(|(of, _)| *of == side || *of == "either").map(|(_, bytes)| bytes).collect()
}

/// A byte that is what it was, in either memory, and then a write and a read.
fn steps() -> Vec<Vec<u8>> {
    let step = |memory: u8, length: u8| [3, 0, memory, 0, length];
    [[1, 40], [0, 255], [2, 100]].map(|[memory, length]| step(memory, length).repeat(12)).to_vec()
}

fn programs() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for file in PROGRAMS {
        all.push(file.to_vec());
        let code = object::section(file, SECTION).unwrap();
        let header = [2, u8::try_from(code.len() / 8).unwrap_or(u8::MAX)];
        all.push([&header, code, b"\0\0\0\x05hello7:varints,\x03abc"].concat());
    }
    all
}

const PAGE: &str = include_str!("../../bus-core/PROTOCOL.md");
const PROGRAMS: [&[u8]; 3] = [
    include_bytes!("../../bus-core/tests/fixtures/thrift.bpf.o"),
    include_bytes!("../../bus-core/tests/fixtures/netstring.bpf.o"),
    include_bytes!("../../bus-core/tests/fixtures/varint.bpf.o"),
];
const EDGES: [u8; 10] = [0, 1, 2, 3, 4, 0x10, 0x7f, 0x80, 0xfe, 0xff];
