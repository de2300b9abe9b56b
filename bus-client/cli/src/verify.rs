//! `unisono verify`: whether recorded traces keep the contract.
//!
//! Sequences of different brokers say nothing of each other, so each incarnation of the bus is
//! checked by itself; a trace that goes on with another broker belongs to several.
//!
//! Reading order: `history` reads traces and receipts into a compact form; `known` puts together
//! what all of them tell; `memberships` says what each trace must contain; `check` compares, with
//! `holes` for what nobody tells of; `report` holds what was found and what could not be checked.

mod check;
mod history;
mod holes;
mod known;
mod memberships;
mod report;

use std::path::{Path, PathBuf};

use crate::{
    cli,
    exit::{Exit, Failure},
    output::Output,
};

pub(crate) use report::Report;

/// Reads the files, prints the findings, and tells the exit status.
pub(crate) fn run(options: &cli::Verify, output: &mut Output) -> Result<Exit, Failure> {
    let report = verify(&options.traces, &options.sends)?;
    if options.json {
        output.json(&report)?;
    } else {
        output.bytes(report.to_string().as_bytes())?;
    }
    Ok(if report.is_clean() { Exit::Done } else { Exit::Violation })
}

/// Checks traces of listeners, with the receipts of senders where there are some.
pub(crate) fn verify(traces: &[PathBuf], sends: &[PathBuf]) -> Result<Report, Failure> {
    let mut histories = history::Histories::default();
    for path in traces {
        histories.add_trace(&name(path), open(path)?)?;
    }
    for path in sends {
        histories.add_receipts(&name(path), open(path)?)?;
    }
    let mut report = Report::default();
    for (incarnation, history) in histories.all() {
        report.append(&incarnation, check::check(&history));
    }
    Ok(report)
}

fn open(path: &Path) -> Result<std::io::BufReader<std::fs::File>, Failure> {
    std::fs::File::open(path)
        .map(std::io::BufReader::new)
        .map_err(|error| Failure::about(path.display(), error))
}

fn name(path: &Path) -> String {
    path.display().to_string()
}
