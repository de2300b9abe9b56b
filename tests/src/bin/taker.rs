//! A process that takes descriptors: `taker GROUP COUNT`.
//!
//! It writes its id into whatever descriptors come with the first so many messages of a group, and
//! says of each message how many it took, or that they were lost on their way.

#![deny(unsafe_code)]

use std::env;
use std::error::Error;
use std::fs::File;
use std::io::Write;

use bus_client::Bus;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [group, count] = &arguments[..] else {
        return Err("taker GROUP COUNT".into());
    };
    let bus = Bus::connect()?;
    let _member = bus.join(group)?;
    println!("joined");
    for _ in 0..count.parse()? {
        let mut message = bus.receive()?.into_message().ok_or("no message")?;
        let descriptors = message.take_descriptors();
        let taken = descriptors.len();
        for descriptor in descriptors {
            // In one write: others write there too.
            File::from(descriptor).write_all(format!("{}\n", std::process::id()).as_bytes())?;
        }
        // All are closed again: a test may count on it.
        if message.descriptors_lost() {
            println!("lost, and {taken} taken");
        } else {
            println!("{taken} taken");
        }
    }
    Ok(())
}
