//! Tasks of a tokio runtime that share one connection: no thread is blocked and none is started.
//!
//!     cargo run -p bus-client --example tokio --features embedded,tokio

use std::error::Error;

use bus_client::{Bus, Event, JoinOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    #[cfg(feature = "embedded")]
    let bus = Bus::embedded()?;
    #[cfg(not(feature = "embedded"))]
    let bus = Bus::connect()?;
    let listener = bus.open_endpoint()?;
    listener.join_async("org.example.Readings", JoinOptions::new()).await?;

    let listening = tokio::spawn(async move {
        let mut readings = Vec::new();
        while readings.len() < 3 {
            if let Event::Message(message) = listener.receive_async().await? {
                let (room, celsius): (String, f64) = message.decode()?;
                println!("{room}: {celsius} °C");
                readings.push(celsius);
            }
        }
        Ok::<_, Box<dyn Error + Send + Sync>>(readings)
    });

    let group = bus.group("org.example.Readings")?;
    for reading in [("kitchen", 21.5), ("cellar", 11.0), ("roof", 30.25)] {
        let message = bus_client::Outgoing::cbor(&reading)?.key(reading.0);
        let receipt = group.send_async(message).await?;
        println!("sent at {}", receipt.sequence);
    }
    let readings = listening.await?.map_err(|error| error.to_string())?;
    println!("{} readings, {} in all", readings.len(), readings.iter().sum::<f64>());
    Ok(())
}
