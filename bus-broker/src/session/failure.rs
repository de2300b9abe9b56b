//! What the bus refused, in the words of the wire.

use bus_core::{
    CreateError, FilterChangeError, GateError, JoinError, LeaveError, LimitExceeded, MonitorError,
    OwnError, SendError, WatchError,
    wire::{Failure, FailureCode, Held},
};

pub(super) fn of_limit(error: &LimitExceeded) -> Failure {
    let failure = Failure::new(FailureCode::LimitExceeded, error.to_string());
    let held = error.holders.as_deref().map(Held::from);
    failure.with_limit(error.limit, error.value).with_held(held)
}

pub(super) fn of_send(error: &SendError) -> Failure {
    let failure = |code| Failure::new(code, error.to_string());
    match error {
        SendError::NoSuchGroup(_) => failure(FailureCode::NoSuchGroup),
        SendError::NoSuchName(_) => failure(FailureCode::NoSuchName),
        SendError::NoSuchEndpoint(_) => failure(FailureCode::NoSuchEndpoint),
        SendError::ReceiveShut(_) | SendError::Closed => failure(FailureCode::EndpointClosed),
        SendError::WouldBlock { full } => {
            failure(FailureCode::WouldBlock).with_full(full.named(), full.count())
        }
        SendError::OwnQueueFull => failure(FailureCode::OwnQueueFull),
        SendError::TooLarge { limit, .. } => {
            failure(FailureCode::TooLarge).with_limit("payload_bytes", (*limit).into())
        }
        SendError::TooManyDescriptors { limit, .. } => {
            failure(FailureCode::LimitExceeded).with_limit("descriptors", (*limit).into())
        }
        SendError::NotAMember(..) => failure(FailureCode::NotAMember),
        SendError::RecipientStalled(_) => failure(FailureCode::RecipientStalled),
        SendError::Cancelled => failure(FailureCode::Cancelled),
        SendError::NoSuchRequest(_) => failure(FailureCode::NoSuchRequest),
        SendError::DeadlinePassed => failure(FailureCode::TimedOut),
        SendError::RequestLimit(error) => of_limit(error),
        // The broker submits one send of a lane at a time.
        _ => failure(FailureCode::BadRequest),
    }
}

pub(super) fn of_watch(error: &WatchError) -> Failure {
    match error {
        WatchError::Destination(error) => of_send(error),
        WatchError::Limit(error) => of_limit(error),
        _ => Failure::new(FailureCode::BadRequest, error.to_string()),
    }
}

pub(super) fn of_create(error: &CreateError) -> Failure {
    let failure = |code| Failure::new(code, error.to_string());
    match error {
        CreateError::Exists(_) => failure(FailureCode::GroupExists),
        CreateError::Closed(_) | CreateError::ReceiveShut(_) => {
            failure(FailureCode::EndpointClosed)
        }
        CreateError::Limit(error) => of_limit(error),
        _ => failure(FailureCode::BadRequest),
    }
}

pub(super) fn of_join(error: &JoinError) -> Failure {
    let failure = |code| Failure::new(code, error.to_string());
    match error {
        JoinError::NoSuchGroup(_) => failure(FailureCode::NoSuchGroup),
        JoinError::AlreadyMember(..) => failure(FailureCode::AlreadyMember),
        JoinError::SendToPeer(_) => failure(FailureCode::BadRequest),
        JoinError::ReceiveShut(_) | JoinError::Closed(_) => failure(FailureCode::EndpointClosed),
        JoinError::BackOff(_, left) => failure(FailureCode::BackOff).with_retry_after(*left),
        JoinError::Limit(error) => of_limit(error),
        JoinError::OwnerGone(_) => failure(FailureCode::OwnerGone),
        JoinError::OwnerBusy(_) => failure(FailureCode::LimitExceeded),
        JoinError::AlreadyCandidate(..) => failure(FailureCode::AlreadyCandidate),
        JoinError::Refused { reason, .. } => {
            Failure::new(FailureCode::RefusedByOwner, reason.clone())
        }
        JoinError::Withdrawn(_) => failure(FailureCode::Cancelled),
        _ => failure(FailureCode::BadRequest),
    }
}

pub(super) fn of_gate(error: &GateError) -> Failure {
    let failure = |code| Failure::new(code, error.to_string());
    match error {
        GateError::NotTheOwner(..) => failure(FailureCode::NotTheOwner),
        GateError::NoCandidate(..) => failure(FailureCode::NoCandidate),
        GateError::NotAMember(..) => failure(FailureCode::NotAMember),
        GateError::NoPeer(_) => failure(FailureCode::NoSuchEndpoint),
        GateError::Join(error) => of_join(error),
        _ => failure(FailureCode::BadRequest),
    }
}

pub(super) fn of_filter_change(error: &FilterChangeError) -> Failure {
    let failure = |code| Failure::new(code, error.to_string());
    match error {
        FilterChangeError::NotAMember(..) => failure(FailureCode::NotAMember),
        FilterChangeError::Limit(error) => of_limit(error),
        _ => failure(FailureCode::BadRequest),
    }
}

pub(super) fn of_own(error: &OwnError) -> Failure {
    let failure = |code| Failure::new(code, error.to_string());
    match error {
        OwnError::Taken(..) => failure(FailureCode::NameTaken),
        OwnError::OtherKind(_) => failure(FailureCode::NameMismatch),
        OwnError::ReceiveShut(_) | OwnError::Closed(_) => failure(FailureCode::EndpointClosed),
        OwnError::Description(_) => failure(FailureCode::BadDescription),
        OwnError::Limit(error) => of_limit(error),
        _ => failure(FailureCode::BadRequest),
    }
}

pub(super) fn of_monitor(error: &MonitorError) -> Failure {
    match error {
        MonitorError::Limit(error) => of_limit(error),
        _ => Failure::new(FailureCode::EndpointClosed, error.to_string()),
    }
}

pub(super) fn of_leave(error: &LeaveError) -> Failure {
    Failure::new(FailureCode::NotAMember, error.to_string())
}
