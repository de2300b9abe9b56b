//! The program `bus-broker`: a broker with a command line, signals, logs and a service manager.
#![deny(unsafe_code)]

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use anyhow::Context;
use bus_broker::{
    Broker, BrokerHandle, Config, HELPER_ARGUMENT, Helper, LAST_WORDS, Listen, activation_sockets,
    enter_sandbox, log_to_stderr, run_helper, stderr_takes_some,
};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;

/// Serves ordered groups to the programs of one user over a Unix socket.
#[derive(Debug, Parser)]
#[command(name = "bus-broker", version)]
struct Arguments {
    /// Where to listen: a path, or unix:PATH [default: $XDG_RUNTIME_DIR/unisono/bus]
    #[arg(long, value_name = "PATH")]
    listen: Option<Listen>,
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == HELPER_ARGUMENT) {
        return run_helper();
    }
    match serve(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not through the logs: they may be filtered, or not be there yet. And where nobody
            // takes it, the end is not to wait for that.
            if stderr_takes_some(LAST_WORDS) {
                eprintln!("bus-broker: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let mut config = match &arguments.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    // Dropped last, and so it writes the last lines too.
    let mut log = log_to_stderr(&config.log)?;
    raise_descriptor_limit();
    // Blocked before any thread is started, so that all inherit it and the signals wait for us.
    let signals = block_signals().context("cannot take over signals")?;

    // Before any thread and any socket: it is to have none of them.
    let helper = Helper::start().context("cannot start the helper")?;

    let sockets = activation_sockets()?;
    let broker = if sockets.is_empty() {
        if let Some(listen) = &arguments.listen {
            config.listen = listen.clone();
        }
        Broker::bind(&config)?
    } else {
        if arguments.listen.is_some() {
            anyhow::bail!("--listen has no meaning with a socket from the service manager");
        }
        Broker::with_sockets(&config, sockets)?
    };
    // Before any thread is started: each has what the one has that starts it.
    enter_sandbox(&config)?;
    log.start().context("cannot start a thread")?;
    let handle = broker.handle();
    broker.own_process();
    broker.attach(helper).context("cannot start a thread")?;
    thread::Builder::new()
        .name("bus-signals".to_owned())
        .spawn(move || mind_signals(&signals, &handle))
        .context("cannot start a thread")?;

    announce(broker.address().unwrap_or(Path::new("")))?;
    broker.run().context("the broker failed")
}

/// Standard output carries this one line: scripts wait for it.
fn announce(address: &Path) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "listening on {}", address.display()).and_then(|()| out.flush());
    written.context("cannot write to standard output")?;
    notify(NotifyState::Ready);
    tracing::info!(address = %address.display(), "listening");
    Ok(())
}

fn mind_signals(signals: &SignalFd, broker: &BrokerHandle) {
    loop {
        match signals.read_signal() {
            Ok(Some(signal)) if signal.ssi_signo == Signal::SIGHUP as u32 => {
                notify_reloading();
                if let Err(error) = broker.reload() {
                    tracing::error!(%error, "cannot reload");
                }
                notify(NotifyState::Ready);
            }
            Ok(Some(signal)) => {
                tracing::info!(signal = signal.ssi_signo, "ending");
                notify(NotifyState::Stopping);
                broker.shutdown();
                return;
            }
            Ok(None) | Err(nix::Error::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot read signals; ending");
                broker.shutdown();
                return;
            }
        }
    }
}

fn block_signals() -> nix::Result<SignalFd> {
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    ends.thread_block()?;
    SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC)
}

/// Each connection is a descriptor, and the soft limit is low for the sake of programs that use
/// `select`, which this is not.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of descriptors cannot be raised");
    }
}

/// The service manager wants to know when it began, and waits for the end.
fn notify_reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify_all(&[NotifyState::Reloading, now]);
    }
}

/// Tells the service manager, if there is one. That it cannot be told harms nobody here.
fn notify(state: NotifyState<'_>) {
    notify_all(&[state]);
}

fn notify_all(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
