//! A camera: 60 frames a second of 1280 x 720 pixels, 4 bytes each, to four viewers.
//!
//! ```text
//! cargo run --release -p bus-client --features embedded --example camera -- 5
//! ```
//!
//! The camera writes each frame into a buffer that the broker has made, and lends it: nobody copies it but
//! the broker, once, and the viewers look at it where it lies. One of them takes a fifth of a second for
//! each frame. It has joined with `drop_when_full`, so it misses most of them, and the others notice
//! nothing. Every part is a process, so that the processor time of each can be told.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bus_client::{Bus, EmbeddedBroker, Event, JoinOptions, Message, Outgoing};

const FRAME_BYTES: usize = 1280 * 720 * 4;
const FRAME_TIME: Duration = Duration::from_nanos(1_000_000_000 / 60);
const VIEWERS: u32 = 4;
/// How long the slow viewer takes for a frame.
const SLOW: Duration = Duration::from_millis(200);
/// How long nothing comes once everything has.
const LAST: Duration = Duration::from_millis(300);
const GROUP: &str = "org.example.Camera";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["broker"] => broker(),
        ["viewer", address, name, seconds] => view(address, name, seconds.parse()?),
        ["camera", address, seconds] => film(address, seconds.parse()?),
        [] => stage("5"),
        [seconds] if is_time(seconds) => stage(seconds),
        _ => {
            eprintln!("usage: camera [SECONDS], of which there are a day's at most");
            std::process::exit(2);
        }
    }
}

fn is_time(seconds: &str) -> bool {
    seconds.parse().is_ok_and(|seconds| (0.0..=86_400.0).contains(&seconds))
}

/// Starts all of them, and shows what they say.
fn stage(seconds: &str) -> Result<(), Box<dyn Error>> {
    let mut broker = start(&["broker"])?;
    let mut said = BufReader::new(broker.stdout.take().ok_or("it has an output")?).lines();
    let address = said.next().ok_or("the broker says where it is")??;
    let mut parts = Vec::new();
    for number in 1..=VIEWERS {
        let name =
            if number == VIEWERS { "slow viewer".into() } else { format!("viewer {number}") };
        parts.push(start(&["viewer", &address, &name, seconds])?);
    }
    parts.push(start(&["camera", &address, seconds])?);
    for part in &mut parts {
        let output = part.stdout.take().ok_or("it has an output")?;
        for line in BufReader::new(output).lines() {
            println!("{}", line?);
        }
        part.wait()?;
    }
    // The end of its input is the broker's.
    drop(broker.stdin.take());
    for line in said {
        println!("{}", line?);
    }
    broker.wait()?;
    Ok(())
}

fn start(arguments: &[&str]) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
}

fn broker() -> Result<(), Box<dyn Error>> {
    let broker = EmbeddedBroker::builder().start()?;
    let began = Instant::now();
    println!("{}", broker.address());
    std::io::stdin().lines().for_each(drop);
    println!("broker: {:.1} % CPU", percent(began));
    Ok(())
}

fn film(address: &str, seconds: f64) -> Result<(), Box<dyn Error>> {
    let bus = Bus::builder().address(address).zerocopy().connect()?;
    while bus.find_group(GROUP)?.is_none_or(|group| group.members < VIEWERS) {
        bus.dispatch_timeout(Duration::from_millis(5))?;
    }
    let group = bus.group(GROUP)?;
    let pool = bus.pool(4, FRAME_BYTES)?;
    let began = Instant::now();
    let (mut frames, mut dropped, mut copied) = (0_u32, 0, 0);
    while began.elapsed().as_secs_f64() < seconds {
        let mut buffer = pool.take()?;
        paint(&mut buffer, frames);
        dropped += group.send(Outgoing::lent(buffer))?.dropped;
        frames += 1;
        copied +=
            bus.completions().filter(|done| done.copied).map(|done| done.count()).sum::<u32>();
        let due = began + FRAME_TIME * frames;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let rate = f64::from(frames) / began.elapsed().as_secs_f64();
    println!(
        "camera: {rate:.1} frames/s, {:.1} % CPU, {copied} frames copied once by the broker, {dropped} \
         not taken by a full viewer",
        percent(began)
    );
    Ok(())
}

/// A square that moves.
fn paint(frame: &mut [u8], number: u32) {
    frame.fill(32);
    let left = (number as usize * 8) % 1180;
    for row in frame.chunks_exact_mut(1280 * 4).skip(310).take(100) {
        row[left * 4..(left + 100) * 4].fill(255);
    }
}

fn view(address: &str, name: &str, seconds: f64) -> Result<(), Box<dyn Error>> {
    let slow = name.starts_with("slow");
    let bus = Bus::builder().address(address).connect()?;
    let mut options = JoinOptions::new().create(true);
    if slow {
        options = options.drop_when_full(true);
    }
    let _member = bus.join_with(GROUP, options)?;
    // It begins with the first frame.
    let Some(message) = bus.receive()?.into_message() else {
        return Err("a frame comes first".into());
    };
    let began = Instant::now();
    let (mut seen, mut missed) = (1_u32, 0);
    look_at(&message);
    drop(message);
    let time = Duration::from_secs_f64(seconds);
    while let Some(event) = bus.receive_deadline(time.saturating_sub(began.elapsed()))? {
        match event {
            Event::Message(message) => {
                missed += message.missed().map_or(0, |gap| gap.count);
                look_at(&message);
                if slow {
                    std::thread::sleep(SLOW);
                }
                seen += 1;
            }
            Event::Gap(gap) => missed += gap.count,
            _ => {}
        }
    }
    let rate = f64::from(seen) / began.elapsed().as_secs_f64();
    let percent = percent(began);
    // The camera has stopped. What was dropped last is told behind the frames that were not.
    while let Some(event) = bus.receive_deadline(LAST)? {
        missed += match event {
            Event::Message(message) => message.missed().map_or(0, |gap| gap.count),
            Event::Gap(gap) => gap.count,
            _ => 0,
        };
    }
    println!("{name}: {rate:.1} frames/s, {percent:.1} % CPU, {missed} frames dropped");
    Ok(())
}

/// Adds the brightness up, at one place of each line of the processor's cache.
fn look_at(message: &Message) -> u64 {
    let bytes = message.payload();
    std::hint::black_box(bytes.iter().step_by(64).map(|byte| u64::from(*byte)).sum())
}

/// This process's part of one processor since then.
fn percent(began: Instant) -> f64 {
    let mut nanoseconds: f64 = 0.0;
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    }
    nanoseconds / 1e7 / began.elapsed().as_secs_f64()
}
