//! `unisono call`: one request, and its outcome.

use std::{
    io::{self, IsTerminal as _},
    os::unix::ffi::OsStrExt as _,
};

use bus_client::{Bus, CallError, Callee, EndpointId, Outgoing};

use crate::{
    cli,
    exit::{Exit, Failure},
    input::Input,
    listen::{message_line, shown},
    output::Output,
};

/// Asks, and prints the reply.
pub(crate) fn run(options: &cli::Call, bus: &Bus, output: &mut Output) -> Result<Exit, Failure> {
    let target = target(&options.target, bus)?;
    let limit = usize::try_from(bus.limits().payload_bytes).expect("32 bits fit");
    let payload = match &options.payload {
        Some(payload) => payload.as_bytes().to_vec(),
        None if io::stdin().is_terminal() => Vec::new(),
        None => {
            let about = |error| Failure::about("standard input", error);
            let whole = Input::open(None).and_then(|input| input.read_whole(limit));
            whole.map_err(about)?.ok_or_else(|| {
                Failure::error(format_args!(
                    "the input is larger than the bus takes, {limit} bytes"
                ))
            })?
        }
    };
    let mut message = outgoing(payload).operation(&options.operation);
    if let Some(key) = &options.key {
        message = message.key(key.as_bytes());
    }
    for (name, value) in &options.field {
        message = message.field(name, value);
    }
    if let Some(timeout) = options.timeout {
        message = message.timeout(timeout);
    }
    if options.repeatable {
        message = message.repeatable();
    }
    let reply = bus.call(target, message)?;
    if options.json {
        output.json(&message_line(&reply))?;
    } else {
        output.line(&shown(&reply))?;
    }
    Ok(Exit::Done)
}

/// Text where it is some, bytes otherwise.
pub(crate) fn outgoing(payload: Vec<u8>) -> Outgoing {
    match String::from_utf8(payload) {
        Ok(text) => Outgoing::text(text),
        Err(error) => Outgoing::bytes(error.into_bytes()),
    }
}

/// An endpoint by its number, or whoever owns a name.
fn target(text: &str, bus: &Bus) -> Result<Callee, Failure> {
    match text.parse() {
        Ok(id) => Ok(EndpointId::from_raw(id).into()),
        Err(_) => match bus.name(text) {
            Ok(name) => Ok((&name).into()),
            Err(error) => Err(Failure::new(Exit::Usage, error)),
        },
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::TimedOut => Self::new(Exit::NotSent, "timed out without a reply"),
            CallError::Send(error) => error.into(),
            CallError::BrokerGone(gone) => gone.into(),
            other => Self::error(other),
        }
    }
}
