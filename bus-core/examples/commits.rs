//! Sends messages that readers take, and nothing else: to count what that costs, on a machine that
//! is too busy for times.
//!
//! ```sh
//! cargo build --release -p bus-core --example commits
//! valgrind --tool=callgrind target/release/examples/commits 20000 8 1048576
//! ```
//!
//! The arguments: how many messages, to how many members, and the bytes of the flight recorder.
//! Two runs with different numbers of messages differ by what those cost.
#![expect(clippy::unwrap_used, reason = "an example")]

use std::time::Duration;

use bus_core::{Bus, Credentials, Destination, JoinOptions, Limits, RecorderSize};

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().unwrap());
    let messages = arguments.next().unwrap_or(20_000);
    let members = arguments.next().unwrap_or(8);
    let recorder = match arguments.next() {
        Some(bytes) if bytes > 0 => RecorderSize::bytes(bytes).unwrap(),
        _ => RecorderSize::off(),
    };
    let bus = Bus::recording(Limits::default(), 7, recorder).unwrap();
    let me = Credentials { uid: 1000, pid: 1 };
    let readers: Vec<_> = (0..members).map(|_| bus.open_endpoint(me).unwrap()).collect();
    let name = "org.example.Load".parse().unwrap();
    let join =
        |endpoint: &bus_core::Endpoint| endpoint.join(&name, JoinOptions::create()).unwrap().group;
    let groups: Vec<_> = readers.iter().map(join).collect();
    let mut queues: Vec<_> = readers.iter().map(|reader| reader.receiver().unwrap()).collect();
    let sender = bus.open_endpoint(me).unwrap();
    let mut lane = sender.lane().unwrap();
    for number in 0..messages {
        if number % 64 == 0 {
            bus.tick(Duration::from_micros(1 + number as u64));
        }
        lane.send(Destination::Group(groups[0]), &b"sixty-four bytes"[..]).unwrap();
        for queue in &mut queues {
            queue.receive().unwrap();
        }
    }
}
