//! A chat in one group: what is typed goes to all, what others type is shown, and everybody sees
//! the same lines in the same order. With `--embedded` it brings its own broker, and says where
//! others find it.
//!
//!     cargo run -p bus-client --example chat --features embedded -- --embedded
//!     UNISONO_ADDRESS=... cargo run -p bus-client --example chat

use std::error::Error;
use std::io::{self, BufRead};
use std::thread;

use bus_client::{Bus, Event, JoinOptions};

fn main() -> Result<(), Box<dyn Error>> {
    #[cfg(feature = "embedded")]
    let broker = std::env::args()
        .any(|argument| argument == "--embedded")
        .then(bus_client::EmbeddedBroker::start)
        .transpose()?;
    #[cfg(feature = "embedded")]
    let bus = match &broker {
        Some(broker) => {
            println!("UNISONO_ADDRESS={}", broker.address());
            broker.connect()?
        }
        None => Bus::connect()?,
    };
    #[cfg(not(feature = "embedded"))]
    let bus = Bus::connect()?;

    // Everybody's own lines come back too, so all screens show one order.
    let chat = bus.join_with("org.example.Chat", JoinOptions::new().loopback(true))?;
    println!(
        "{} here; end with an end of file",
        match chat.joined().members {
            1 => "nobody else is".to_owned(),
            members => format!("{} others are", members - 1),
        }
    );

    // One thread reads what comes, this one what is typed. They share the connection.
    let screen = thread::spawn({
        let bus = bus.clone();
        move || show(&bus)
    });
    for line in io::stdin().lock().lines() {
        chat.send(line?)?;
    }
    chat.leave()?;
    bus.close();
    screen.join().expect("the screen does not panic");
    Ok(())
}

fn show(bus: &Bus) {
    for event in bus.events() {
        match event {
            Ok(Event::Message(message)) => {
                println!("{:>4}: {}", message.sender(), message.text().unwrap_or("(not text)"))
            }
            Ok(Event::Evicted(_)) => println!("the others went on without us"),
            Ok(_) => {}
            Err(_) => return,
        }
    }
}
