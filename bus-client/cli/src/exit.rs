//! How the program ends: the exit status, and what is said on standard error.

use std::{fmt, process::ExitCode};

/// The exit status. Scripts rely on these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// An error that no other status tells better.
    Error = 1,
    /// The command line makes no sense; clap uses the same number.
    Usage = 2,
    /// Would block, or timed out: the message has reached nobody.
    NotSent = 3,
    /// Evicted, or the broker is gone.
    Gone = 4,
    /// `verify` found a violation.
    Violation = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a verb did not get to its end.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody reads the output any more. That ends the program quietly, and is no error.
    ClosedPipe,
    /// Anything else: `text` goes to standard error.
    Said {
        /// The exit status.
        exit: Exit,
        /// What happened, to whom, in lower case.
        text: String,
    },
}

impl Failure {
    pub(crate) fn new(exit: Exit, text: impl fmt::Display) -> Self {
        Self::Said { exit, text: text.to_string() }
    }

    /// An error with status 1.
    pub(crate) fn error(text: impl fmt::Display) -> Self {
        Self::new(Exit::Error, text)
    }

    /// An error with status 1 about `what`, usually a path.
    pub(crate) fn about(what: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self::error(format_args!("{what}: {cause}"))
    }

    /// The exit status that this failure ends the program with.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::ClosedPipe => Exit::Done,
            Self::Said { exit, .. } => *exit,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClosedPipe => f.write_str("nobody reads the output any more"),
            Self::Said { text, .. } => f.write_str(text),
        }
    }
}
