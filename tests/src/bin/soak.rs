//! A broker under all the bad luck that we know of: `soak [--minutes N] [--seed N] [--connections N]`.
//!
//! Prints figures as they come, and ends with 1 if anything was found that should not be.

#![deny(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use tests::soak::{Plan, run};

fn main() -> ExitCode {
    let mut plan = Plan::within(Duration::from_secs(60));
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<f64>().ok());
        let Some(value) = value.filter(|value| value.is_finite() && *value >= 0.0) else {
            eprintln!("usage: soak [--minutes N] [--seed N] [--connections N]");
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
                plan.each = Plan::within(Duration::from_secs_f64(value * 60.0)).each;
            }
            "--seed" => plan.seed = number.into(),
            "--connections" => plan.connections = number as usize,
            other => {
                eprintln!("soak: {other} is no option");
                return ExitCode::from(2);
            }
        }
    }
    let findings = run(plan, |line| println!("{line}"));
    for finding in &findings {
        println!("FOUND: {finding}");
    }
    println!("{} findings", findings.len());
    if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
