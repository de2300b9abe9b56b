//! An inspector that keeps what it is asked, and answers late, out of order and in batches.
//!
//! ```text
//! cargo run -p bus-client --example late_answers --features embedded
//! ```
//!
//! Requests come through a ring in memory that this process shares with the broker, and the packets that
//! they are about lie in memory beside it, which the broker has written once and this process reads where
//! it is. (The first few come with their requests: such memory is made once there is much for it.) They are
//! kept there for as long as the inspector likes: it decides on a whole stream at once, here on packets that
//! come in any order. What it keeps keeps nobody waiting: taking a request gives its place in the queue back,
//! and others' packets are written elsewhere. It keeps as much as its budget allows; what comes then is
//! copied. The answers of a batch leave together, with one publication in the ring; each caller gets its
//! own, whenever that is, and with its request the inspector lets the packet go.

use std::collections::BTreeMap;
use std::error::Error;
use std::thread;

use bus_client::{Bus, EmbeddedBroker, Message, PendingCall, Transport, Way};

/// Bytes of a packet: large enough to be left where they are.
const PACKET: usize = 48 << 10;
/// Requests that are kept before the inspector makes up its mind.
const BATCH: usize = 16;
/// Batches that are asked for.
const BATCHES: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let broker = EmbeddedBroker::start()?;
    let connect = || Bus::builder().address(broker.address()).transport(Transport::Ring).connect();
    let (inspector, caller) = (connect()?, connect()?);
    let to = inspector.endpoint_id();
    let inspecting = thread::spawn(move || inspect(&inspector).map_err(|error| error.to_string()));

    // All are asked before one is answered.
    let mut calls: Vec<(usize, PendingCall)> = Vec::new();
    for number in 0..BATCH * BATCHES {
        let mut packet = vec![u8::try_from(number)?; PACKET];
        packet[..8].copy_from_slice(&number.to_le_bytes());
        calls.push((number, caller.start_call(to, packet)?));
    }
    for (number, call) in calls {
        let answer = call.wait()?;
        println!("{number:2}: {}", answer.text().unwrap_or("?"));
    }
    inspecting.join().expect("no panic")?;
    Ok(())
}

/// Keeps requests until there is a batch of them, then answers those of even numbers in order, and
/// then the others from the last to the first.
fn inspect(bus: &Bus) -> Result<(), Box<dyn Error>> {
    for batch in 0..BATCHES {
        let mut kept: BTreeMap<usize, Message> = BTreeMap::new();
        while kept.len() < BATCH {
            let Some(message) = bus.receive()?.into_message().filter(Message::is_request) else {
                continue;
            };
            let number = message.payload().first_chunk().ok_or("no packet")?;
            kept.insert(usize::from_le_bytes(*number), message);
        }
        let in_place = kept.values().filter(|message| message.way() == Way::Arena).count();
        println!("keeps {in_place} of {BATCH} packets where they are");
        let even = kept.iter().filter(|(number, _)| *number % 2 == 0);
        let odd = kept.iter().rev().filter(|(number, _)| *number % 2 == 1);
        // They leave together.
        let cork = bus.cork();
        let mut answers = Vec::new();
        for (place, (_, message)) in even.chain(odd).enumerate() {
            // Read where it lies, now that all of the batch are there.
            let sum: u64 = message.payload()[8..].iter().copied().map(u64::from).sum();
            let verdict = format!("batch {batch}, answer {place}: sum {sum}");
            answers.push(message.start_reply(verdict)?);
        }
        drop(cork);
        for answer in answers {
            let _ = answer.wait()?;
        }
    }
    Ok(())
}
