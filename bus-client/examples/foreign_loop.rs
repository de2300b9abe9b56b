//! A main loop in GLib's manner, written by hand: sources with a descriptor, polled together, and
//! a callback for each that is readable. The bus is one such source; the loop knows nothing of it
//! but its descriptor, and never polls for writing.
//!
//!     cargo run -p bus-client --example foreign_loop --features embedded

use std::cell::Cell;
use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use bus_client::{Bus, Event, JoinOptions, Member};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What a main loop asks of a source.
trait Source {
    /// Becomes readable when there is something to do.
    fn descriptor(&self) -> BorrowedFd<'_>;
    /// Does it. It must not block.
    fn dispatch(&self) -> Result<(), Box<dyn Error>>;
}

/// Polls all sources until it is told to stop.
fn run(
    sources: &[&dyn Source],
    timer: &dyn Fn() -> Option<Duration>,
) -> Result<(), Box<dyn Error>> {
    while let Some(until_tick) = timer() {
        let descriptors: Vec<BorrowedFd<'_>> =
            sources.iter().map(|source| source.descriptor()).collect();
        let mut polled: Vec<PollFd<'_>> =
            descriptors.iter().map(|descriptor| PollFd::new(descriptor, PollFlags::IN)).collect();
        poll(&mut polled, Some(&Timespec::try_from(until_tick)?))?;
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        for (source, _) in sources.iter().zip(ready).filter(|(_, ready)| *ready) {
            source.dispatch()?;
        }
    }
    Ok(())
}

/// The bus as a source.
struct BusSource<'a> {
    bus: &'a Bus,
    received: &'a Cell<u32>,
}

impl Source for BusSource<'_> {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.bus.as_fd()
    }

    fn dispatch(&self) -> Result<(), Box<dyn Error>> {
        self.bus.dispatch()?;
        while let Some(event) = self.bus.try_receive()? {
            if let Event::Message(message) = event {
                println!("{}", message.text().unwrap_or("(not text)"));
                self.received.set(self.received.get() + 1);
            }
        }
        Ok(())
    }
}

/// Sends a line at each tick, without ever waiting for anybody.
fn tick(group: &Member, number: u32) -> Result<(), Box<dyn Error>> {
    match group.try_send(format!("tick {number}")) {
        Err(bus_client::SendError::WouldBlock { .. }) => println!("tick {number} was skipped"),
        other => drop(other?),
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    #[cfg(feature = "embedded")]
    let bus = Bus::embedded()?;
    #[cfg(not(feature = "embedded"))]
    let bus = Bus::connect()?;
    let group = bus.join_with("org.example.Ticks", JoinOptions::new().loopback(true))?;

    let received = Cell::new(0);
    let (ticks, next) = (Cell::new(0), Cell::new(Instant::now()));
    let timer = || {
        if received.get() == TICKS {
            return None;
        }
        if next.get() <= Instant::now() && ticks.get() < TICKS {
            ticks.set(ticks.get() + 1);
            next.set(Instant::now() + Duration::from_millis(100));
            if let Err(error) = tick(&group, ticks.get()) {
                eprintln!("{error}");
                return None;
            }
        }
        Some(next.get().saturating_duration_since(Instant::now()))
    };
    let source = BusSource { bus: &bus, received: &received };
    run(&[&source], &timer)?;
    println!("{} ticks were sent and received", received.get());
    Ok(())
}

const TICKS: u32 = 5;
