//! A moderated room: an owner admits who asks, watches what members send, and puts out who shouts.
//!
//! ```text
//! cargo run -p bus-client --example moderator -- org.example.Room &
//! unisono listen org.example.Room
//! ```
//!
//! The room is a gated group. Its owner is no member: it hears members because it admits them with
//! `send_to_peer`, so each message reaches the members and the owner at one place in the order. It
//! would rather miss some of them than make a member wait (`drop_at_peer`), and is told of the gap.

use std::collections::HashMap;
use std::error::Error;

use bus_client::{Bus, EndpointId, Event, Gate, GateError, Message};

/// Members that shout this often are put out.
const PATIENCE: u32 = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let room = std::env::args().nth(1).ok_or("moderator ROOM")?;
    let bus = Bus::connect()?;
    let gate = bus.create_gated(&room)?;
    let mut moderator = Moderator { gate, shouts: HashMap::new() };
    for event in bus.events() {
        moderator.take(&event?)?;
    }
    Ok(())
}

struct Moderator {
    gate: Gate,
    /// How often each member has shouted, by its peer endpoint.
    shouts: HashMap<EndpointId, u32>,
}

impl Moderator {
    fn take(&mut self, event: &Event) -> Result<(), GateError> {
        match event {
            Event::Candidate(candidate) => {
                println!("process {} asks to come in", candidate.credentials.pid);
                let terms = candidate.wishes.clone().send_to_peer(true).drop_at_peer(true);
                tolerate(self.gate.admit(candidate.endpoint, terms))
            }
            Event::Message(message) if message.group().is_some() => self.hear(message),
            Event::Message(message) => {
                println!("endpoint {} asks privately: {:?}", message.sender(), message.text());
                Ok(())
            }
            Event::PeerGap(missed) => {
                println!("missed {} messages of a member", missed.gap.count);
                Ok(())
            }
            Event::PeerClosed(peer) => {
                self.shouts.remove(&peer.peer);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn hear(&mut self, message: &Message) -> Result<(), GateError> {
        let (Some(peer), Some(text)) = (message.peer(), message.text()) else {
            return Ok(());
        };
        let shouts = text.chars().any(char::is_alphabetic) && text == text.to_uppercase();
        let count = self.shouts.entry(peer).or_default();
        *count += u32::from(shouts);
        println!("{} at {}: {text}", message.sender(), message.sequence());
        if *count < PATIENCE {
            return Ok(());
        }
        *count = 0;
        tolerate(self.gate.expel(message.sender(), "no shouting in here"))
    }
}

/// Whoever was decided on may have gone meanwhile; that changes nothing for the others.
fn tolerate<T>(decided: Result<T, GateError>) -> Result<(), GateError> {
    match decided {
        Err(error @ GateError::BrokerGone(_)) => Err(error),
        Err(error) => {
            println!("{error}");
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}
