//! A moderated room: an owner admits who asks, watches what members send, and decides what they
//! hear.
//!
//! ```text
//! cargo run -p bus-client --example moderator -- org.example.Room cats dogs &
//! unisono listen org.example.Room
//! ```
//!
//! The room is a gated group, and a message's key is its topic. The owner is no member: it hears
//! members because it admits them with `send_to_peer`, so each message reaches the members and the
//! owner at one place in the order. It would rather miss some of them than make a member wait
//! (`drop_at_peer`), and is told of the gap. What members hear is filtered on their behalf: the
//! topics that are open. One in which members shout is closed, from one place in the order on, and
//! who goes on shouting is put out.

use std::collections::{BTreeSet, HashMap};
use std::error::Error;

use bus_client::{
    Bus, Condition, EndpointId, Event, Filter, Gate, GateError, Message, Pattern, Terms,
};

/// A topic is closed, and a member put out, at so many shouts.
const PATIENCE: u32 = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let room = arguments.next().ok_or("moderator ROOM TOPIC...")?;
    moderate(&Bus::connect()?, &room, arguments.collect())
}

/// Keeps the room until the broker goes.
pub(crate) fn moderate(
    bus: &Bus,
    room: &str,
    topics: BTreeSet<String>,
) -> Result<(), Box<dyn Error>> {
    let gate = bus.create_gated(room)?;
    let mut moderator = Moderator { gate, topics, members: HashMap::new(), shouts: HashMap::new() };
    for event in bus.events() {
        moderator.take(&event?)?;
    }
    Ok(())
}

struct Moderator {
    gate: Gate,
    /// What may be talked of.
    topics: BTreeSet<String>,
    /// Who is in the room, and how often each has shouted, by peer endpoint.
    members: HashMap<EndpointId, (EndpointId, u32)>,
    /// How often somebody shouted in each topic.
    shouts: HashMap<String, u32>,
}

impl Moderator {
    fn take(&mut self, event: &Event) -> Result<(), Box<dyn Error>> {
        match event {
            Event::Candidate(candidate) => {
                println!("process {} asks to come in", candidate.credentials.pid);
                self.members.insert(candidate.peer, (candidate.endpoint, 0));
                tolerate(self.gate.admit(candidate.endpoint, self.terms()?))?;
            }
            Event::Message(message) if message.group().is_some() => self.hear(message)?,
            Event::Message(message) => {
                println!("endpoint {} asks privately: {:?}", message.sender(), message.text());
            }
            Event::PeerGap(missed) => println!("missed {} messages of a member", missed.gap.count),
            Event::PeerClosed(peer) => drop(self.members.remove(&peer.peer)),
            _ => {}
        }
        Ok(())
    }

    /// What a member may do, and what it is to hear: messages whose key is an open topic.
    fn terms(&self) -> Result<Terms, Box<dyn Error>> {
        let topic = |topic: &String| vec![Condition::Key(Pattern::Exactly(topic.clone().into()))];
        let open = Filter::new(self.topics.iter().map(topic))?;
        Ok(Terms::new().send_to_peer(true).drop_at_peer(true).filter(Some(open)))
    }

    fn hear(&mut self, message: &Message) -> Result<(), Box<dyn Error>> {
        let (Some(peer), Some(text)) = (message.peer(), message.text()) else {
            return Ok(());
        };
        println!("{} at {}: {text}", message.sender(), message.sequence());
        if !text.chars().any(char::is_alphabetic) || text != text.to_uppercase() {
            return Ok(());
        }
        if let Some((member, shouts)) = self.members.get_mut(&peer) {
            *shouts += 1;
            if *shouts >= PATIENCE {
                tolerate(self.gate.expel(*member, "no shouting in here"))?;
            }
        }
        let topic = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
        let shouts = self.shouts.entry(topic.clone()).or_default();
        *shouts += 1;
        // The last topic stays: a filter that accepts nothing would be a room of the deaf.
        if *shouts >= PATIENCE && self.topics.len() > 1 && self.topics.remove(&topic) {
            let terms = self.terms()?;
            for (member, _) in self.members.values() {
                tolerate(self.gate.set_terms(*member, terms.clone()))?;
            }
        }
        Ok(())
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
