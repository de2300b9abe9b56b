//! `unisono`: the bus from the command line.
//!
//! Reading order: [`cli`] says what can be asked for; a file per verb does it; [`trace`] is what
//! `listen`, `send` and `verify` have in common; [`output`], [`input`], [`signals`] and [`exit`]
//! are the edges to the process.

#![deny(unsafe_code)]

mod bench;
mod call;
mod cli;
mod connect;
mod create;
mod demo;
mod description;
mod destination;
mod duration;
mod exit;
mod filter;
mod idle;
mod input;
mod listen;
mod listing;
mod monitor;
mod names;
mod output;
mod own;
mod owner;
mod pages;
mod payload;
mod ping;
mod policy;
mod progress;
mod run;
mod send;
mod serve;
mod signals;
mod top;
mod trace;
mod verify;
mod watch;
mod watch_name;
mod why;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use nix::sys::signal::Signal;

use crate::{
    cli::{Cli, Verb},
    exit::Failure,
    output::Output,
    signals::Signals,
};

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let also: &[Signal] = match cli.verb {
        Verb::Run(_) => &[Signal::SIGCHLD],
        _ => &[],
    };
    let signals = Signals::block(also).context("cannot block signals")?;
    let mut output = Output::new(cli.quiet);
    Ok(match dispatch(&cli, signals, &mut output) {
        Ok(code) => code,
        Err(failure) => {
            if !matches!(failure, Failure::ClosedPipe) {
                eprintln!("unisono: {failure}");
            }
            failure.exit().into()
        }
    })
}

/// Does what the verb says. These two see to signals themselves; for all others SIGINT and SIGTERM
/// end the process wherever it is.
fn dispatch(cli: &Cli, signals: Signals, output: &mut Output) -> Result<ExitCode, Failure> {
    match &cli.verb {
        Verb::Run(options) => return run::run(options, &signals, output),
        Verb::Demo(options) => return demo::run(options, signals, output).map(ExitCode::from),
        _ => {}
    }
    let notice =
        signals.end_quietly().map_err(|error| Failure::about("cannot watch for signals", error))?;
    let connect = || connect::connect(cli);
    let stay = |comeback| connect::connect_for_long(cli, comeback);
    let done = match &cli.verb {
        Verb::Listen(options) => listen::run(options, &stay(options.comeback)?, &notice, output)?,
        Verb::Send(options) => {
            let builder = connect::builder(cli);
            let builder = if options.zerocopy { builder.zerocopy() } else { builder };
            send::run(options, &builder.connect()?, output)?
        }
        Verb::Call(options) => call::run(options, &connect()?, output)?,
        Verb::Serve(options) => serve::run(options, &stay(options.comeback)?, output)?,
        Verb::Create(options) => create::run(options, &connect()?, &notice, output)?,
        Verb::Groups(options) => listing::groups(options, &connect()?, output)?,
        Verb::Members(options) => listing::members(options, &connect()?, output)?,
        Verb::Names(options) => names::run(options, &connect()?, output)?,
        Verb::Own(options) => own::run(options, &stay(options.comeback)?, &notice, output)?,
        Verb::Watch(options) if options.name => {
            watch_name::run(options, &stay(options.comeback)?, &notice, output)?
        }
        Verb::Monitor(options) => monitor::run(options, &stay(options.comeback)?, &notice, output)?,
        Verb::Watch(options) => watch::run(options, &stay(options.comeback)?, &notice, output)?,
        Verb::Admit(options) => owner::admit(options, &connect()?, &notice, output)?,
        Verb::Accounts(options) => listing::accounts(options, &connect()?, output)?,
        Verb::Stats(options) => listing::stats(options, &connect()?, output)?,
        Verb::Top(options) => top::run(options, &connect()?, &notice, output)?,
        Verb::Why(options) => why::run(options, &connect()?, output)?,
        Verb::Status(options) => listing::status(options, &connect()?, output)?,
        Verb::Policy(cli::PolicyVerb::Check(options)) => policy::check(options, output)?,
        Verb::Reload => policy::reload(&connect()?, output)?,
        Verb::Ping(options) => ping::run(options, cli, output)?,
        Verb::Bench(options) => bench::run(options, &notice, output)?,
        Verb::BenchWorker(options) => bench::work(options)?,
        Verb::Verify(options) => verify::run(options, output)?,
        Verb::Completions(options) => pages::completions(options, output)?,
        Verb::Man(options) => pages::man(options, output)?,
        Verb::Run(_) | Verb::Demo(_) => unreachable!("both were handled above"),
    };
    Ok(done.into())
}
