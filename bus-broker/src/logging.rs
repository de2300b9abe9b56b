//! The program's logs: structured, to standard error and nowhere else.
//!
//! Standard output carries the one line `listening on PATH`, which scripts wait for.

use std::io;
use std::sync::Arc;

use tracing::Dispatch;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::log_writer::{LogWriter, Queue, Queued};
use crate::{LogConfig, LogFormat};

/// The filter of the configuration cannot be read; the message says where.
#[derive(Debug, thiserror::Error)]
#[error("log filter {filter:?}: {source}")]
pub struct LogFilterError {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Sends the logs of this process to standard error, once what this returns is
/// [started](LogWriter::start) or dropped. For programs, not for libraries: it sets the
/// process-wide subscriber, unless there is one already.
///
/// # Errors
///
/// The filter is malformed.
pub fn log_to_stderr(config: &LogConfig) -> Result<LogWriter, LogFilterError> {
    let queue = Arc::<Queue>::default();
    // An error means that a subscriber was there before, and that one is served.
    let _ = tracing::dispatcher::set_global_default(subscriber(config, Queued(queue.clone()))?);
    Ok(LogWriter::new(queue, subscriber(config, io::stderr)?))
}

fn subscriber<W>(config: &LogConfig, writer: W) -> Result<Dispatch, LogFilterError>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|source| LogFilterError { filter: config.filter.clone(), source })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        // It would be told on standard error, by a macro that panics where that is what fails: a
        // full disk under the log would end connections.
        .log_internal_errors(false)
        .with_target(false);
    Ok(match config.format {
        LogFormat::Text => {
            builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).finish().into()
        }
        LogFormat::Json => builder.json().finish().into(),
    })
}
