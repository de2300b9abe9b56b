//! Connecting, and how the library's errors become exit statuses.

use bus_client::{
    BrokerGone, Builder, Bus, ConnectError, CreateError, JoinError, LeaveError, OwnError,
    QueryError, ReceiveError, Reconnect, SendError, WatchError,
};

use crate::{
    cli::{Cli, Comeback, Patience},
    exit::{Exit, Failure},
};

/// Connects to the broker that the command line names.
pub(crate) fn connect(cli: &Cli) -> Result<Bus, Failure> {
    Ok(builder(cli).connect()?)
}

/// As [`connect`], for a verb that may go on with another broker.
pub(crate) fn connect_for_long(cli: &Cli, comeback: Comeback) -> Result<Bus, Failure> {
    let builder = match comeback.reconnect {
        Some(Patience(time)) => builder(cli).reconnect(Reconnect::new().give_up_after(time)),
        None => builder(cli),
    };
    Ok(builder.connect()?)
}

/// A connection still to be made, for verbs that set more about it.
pub(crate) fn builder(cli: &Cli) -> Builder {
    let builder = Bus::builder().program("unisono");
    // An empty variable is how a shell unsets one for a single command.
    match cli.address.as_deref().filter(|a| !a.is_empty()) {
        Some(address) => builder.address(address),
        None => builder,
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let exit = match &error {
            ConnectError::BadAddress { .. } => Exit::Usage,
            ConnectError::TimedOut { .. } => Exit::NotSent,
            ConnectError::Gone { .. } => Exit::Gone,
            _ => Exit::Error,
        };
        Self::new(exit, error)
    }
}

impl From<BrokerGone> for Failure {
    fn from(error: BrokerGone) -> Self {
        Self::new(Exit::Gone, error)
    }
}

impl From<ReceiveError> for Failure {
    fn from(error: ReceiveError) -> Self {
        let exit = match &error {
            ReceiveError::BrokerGone(_) => Exit::Gone,
            _ => Exit::Error,
        };
        Self::new(exit, error)
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        let exit = match &error {
            SendError::WouldBlock { .. } | SendError::TimedOut => Exit::NotSent,
            SendError::BrokerGone(_) | SendError::Unknown(_) => Exit::Gone,
            SendError::BadMessage(_) => Exit::Usage,
            _ => Exit::Error,
        };
        Self::new(exit, error)
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        let exit = match &error {
            JoinError::BadName(_) => Exit::Usage,
            JoinError::BrokerGone(_) => Exit::Gone,
            _ => Exit::Error,
        };
        Self::new(exit, error)
    }
}

impl From<WatchError> for Failure {
    fn from(error: WatchError) -> Self {
        let exit = match &error {
            WatchError::BadName(_) => Exit::Usage,
            WatchError::BrokerGone(_) => Exit::Gone,
            _ => Exit::Error,
        };
        Self::new(exit, error)
    }
}

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Self {
        let exit = match &error {
            CreateError::BadName(_) => Exit::Usage,
            CreateError::BrokerGone(_) => Exit::Gone,
            _ => Exit::Error,
        };
        Self::new(exit, error)
    }
}

impl From<LeaveError> for Failure {
    fn from(error: LeaveError) -> Self {
        let exit = match &error {
            LeaveError::BrokerGone(_) => Exit::Gone,
            _ => Exit::Error,
        };
        Self::new(exit, error)
    }
}

impl From<OwnError> for Failure {
    fn from(error: OwnError) -> Self {
        let exit = match &error {
            OwnError::BadName(_) => Exit::Usage,
            OwnError::BrokerGone(_) => Exit::Gone,
            _ => Exit::Error,
        };
        Self::new(exit, error)
    }
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        let exit = match &error {
            QueryError::BadName(_) => Exit::Usage,
            QueryError::BrokerGone(_) => Exit::Gone,
            _ => Exit::Error,
        };
        Self::new(exit, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_send_that_reached_nobody_for_want_of_room_is_3() {
        for (error, exit) in [
            (SendError::TimedOut, Exit::NotSent),
            (SendError::WouldBlock { full: Vec::new(), full_count: 1 }, Exit::NotSent),
            (SendError::RecipientStalled, Exit::Error),
            (SendError::TooLarge { bytes: 2, limit: 1 }, Exit::Error),
        ] {
            assert_eq!(Failure::from(error.clone()).exit(), exit, "{error}");
        }
    }
}
