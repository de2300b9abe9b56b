//! A broker under all the bad luck that we know of: `soak [--minutes N] [--seed N] [--connections N]`; or
//! nothing but programs that lend payloads and die, for so long: `soak --loans MINUTES [--seed N]`.
//!
//! Prints figures as they come, and ends with 1 if anything was found that should not be.

#![deny(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use tests::soak::{Plan, loans, run, zygote};

fn main() -> ExitCode {
    let this = std::env::current_exe().expect("a program has a file");
    let mut plan = Plan::within(Duration::from_secs(60), this.clone());
    let mut only_loans = false;
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == "loans").is_some() {
        // A part that a trial has started.
        return match tests::loans::act(&arguments.collect::<Vec<_>>()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("soak loans: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if arguments.next_if(|first| first == "--zygote").is_some() {
        return zygote(&arguments.next().unwrap_or_default());
    }
    while let Some(option) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<f64>().ok());
        let Some(value) = value.filter(|value| value.is_finite() && *value >= 0.0) else {
            eprintln!("usage: soak [--minutes N | --loans N] [--seed N] [--connections N]");
            return ExitCode::from(2);
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "what people type fits"
        )]
        let number = value as u32;
        match option.as_str() {
            "--minutes" => {
                let time = Duration::from_secs_f64(value * 60.0);
                plan.each = Plan::within(time, this.clone()).each;
            }
            "--loans" => {
                plan.each = Duration::from_secs_f64(value * 60.0);
                only_loans = true;
            }
            "--seed" => plan.seed = number.into(),
            "--connections" => plan.connections = number as usize,
            other => {
                eprintln!("soak: {other} is no option");
                return ExitCode::from(2);
            }
        }
    }
    let tell = |line: &str| println!("{line}");
    let findings = if only_loans { loans::alone(&plan, tell) } else { run(&plan, tell) };
    for finding in &findings {
        println!("FOUND: {finding}");
    }
    println!("{} findings", findings.len());
    if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
