//! The program's logs: structured, to standard error and nowhere else.
//!
//! Standard output carries the one line `listening on PATH`, which scripts wait for.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::{LogConfig, LogFormat};

/// The filter of the configuration cannot be read; the message says where.
#[derive(Debug, thiserror::Error)]
#[error("log filter {filter:?}: {source}")]
pub struct LogFilterError {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Sends the logs of this process to standard error. For programs, not for libraries: it sets the
/// process-wide subscriber, unless there is one already.
///
/// # Errors
///
/// The filter is malformed.
pub fn log_to_stderr(config: &LogConfig) -> Result<(), LogFilterError> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|source| LogFilterError { filter: config.filter.clone(), source })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // It would be told on standard error, by a macro that panics where that is what fails: a
        // full disk under the log would end connections.
        .log_internal_errors(false)
        .with_target(false);
    // An error means that a subscriber was there before, and that one is served.
    let _ = match config.format {
        LogFormat::Text => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}
