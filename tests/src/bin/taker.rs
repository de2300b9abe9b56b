//! A process that writes its id into whatever descriptors come with the first message of a group:
//! `taker GROUP`.

#![deny(unsafe_code)]

use std::env;
use std::error::Error;
use std::fs::File;
use std::io::Write;

use bus_client::Bus;

fn main() -> Result<(), Box<dyn Error>> {
    let group = env::args().nth(1).ok_or("taker GROUP")?;
    let bus = Bus::connect()?;
    let _member = bus.join(&group)?;
    println!("joined");
    let mut message = bus.receive()?.into_message().ok_or("no message")?;
    for descriptor in message.take_descriptors() {
        writeln!(File::from(descriptor), "{}", std::process::id())?;
    }
    Ok(())
}
