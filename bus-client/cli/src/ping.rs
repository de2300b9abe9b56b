//! `unisono ping`: how long the broker takes to answer.

use std::{process, sync::mpsc, thread, time::Duration};

use serde::Serialize;

use crate::{
    cli::{self, Cli},
    connect,
    exit::{Exit, Failure},
    output::Output,
};

/// Asks as often as the options say, and prints the time of each answer.
pub(crate) fn run(options: &cli::Ping, cli: &Cli, output: &mut Output) -> Result<Exit, Failure> {
    let answered = watch(options.timeout)?;
    let bus = connect::builder(cli).timeout(options.timeout).connect()?;
    for _ in 0..options.count {
        let round_trip = bus.ping()?;
        // The watch ends only with us.
        let _ = answered.send(());
        if options.json {
            output.json(&Answer { round_trip_us: round_trip.as_secs_f64() * 1e6 })?;
        } else {
            output.line(&format!("answer in {round_trip:.1?}"))?;
        }
    }
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Answer {
    round_trip_us: f64,
}

/// Ends the process when an answer takes too long: a broker that is stopped still accepts
/// connections, by the kernel's hand, and its silence blocks whoever asked.
fn watch(timeout: Duration) -> Result<mpsc::Sender<()>, Failure> {
    let (answered, answers) = mpsc::channel();
    thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || {
            loop {
                match answers.recv_timeout(timeout) {
                    Ok(()) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        eprintln!("unisono: no answer from the broker for {timeout:?}");
                        process::exit(Exit::NotSent as i32);
                    }
                }
            }
        })
        .map_err(|error| Failure::about("cannot start a thread", error))?;
    Ok(answered)
}
