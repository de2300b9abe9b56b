//! Programs that lend payloads and keep them, to be started and killed by tests: what they write, and
//! whether what was read is that.
//!
//! Each payload consists of one word again and again, another one each time. So bytes of two payloads,
//! or of none, are seen wherever they meet.

use std::collections::VecDeque;
use std::error::Error;
use std::io::BufRead;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bus_client::{Bus, Group, JoinOptions, Message, Outgoing, Pool, SealedFile, Way};

use crate::broker::Broker;
use crate::deadline::eventually;
use crate::process::Launch;
use crate::random::Random;

/// Writes the payload of this number.
pub fn write(number: u64, into: &mut [u8]) {
    let word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    for part in into.chunks_mut(8) {
        part.copy_from_slice(&word[..part.len()]);
    }
}

/// Whether a payload is of one piece, read where it lies.
///
/// # Errors
///
/// It was revoked, and its broker is gone.
pub fn is_whole(message: &Message) -> Result<bool, Box<dyn Error>> {
    let mut first = None;
    let mut whole = true;
    message.view().for_each_part(|part| {
        // Parts begin at multiples of 8.
        let first =
            *first.get_or_insert_with(|| part.first_chunk::<8>().copied().unwrap_or_default());
        whole &= part.chunks(8).all(|word| *word == first[..word.len()]);
    })?;
    Ok(whole)
}

/// What this program is, if its first argument is `loans`; see [`act`].
#[must_use]
pub fn launch(broker: &Broker, line: &str) -> Launch {
    broker.launch(program()).arg("loans").line(line)
}

/// The program that plays the parts. Tests run from a directory `deps` beside the programs, and programs from there.
#[must_use]
pub fn program() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let deps = exe.ancestors().find(|path| path.ends_with("deps")).unwrap_or(&exe);
    deps.parent().expect("in a profile's directory").join("soak")
}

/// Plays a part:
///
/// - `lend GROUP COUNT BYTES`: sends so many payloads from a pool for the group, says `sent` and the number of
///   each, and stays until its input ends;
/// - `keep GROUP COUNT plain|trust`: says `joined`; takes so many messages, says of each which way it came
///   and whether it is `whole`, and the same again when a line comes in, still keeping them;
/// - `lend-all GROUP SEED` and `keep-all GROUP SEED`: until they are killed, in all ways and sizes.
///
/// # Errors
///
/// Whatever goes wrong.
pub fn act(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["lend", group, count, bytes] => lend(group, count.parse()?, bytes.parse()?),
        ["keep", group, count, trust] => keep(group, count.parse()?, trust == "trust"),
        ["lend-all", group, seed] => lend_all(group, seed.parse()?),
        ["keep-all", group, seed] => keep_all(group, seed.parse()?),
        _ => Err(format!("no such part: {arguments:?}").into()),
    }
}

fn lend(group: &str, count: u64, bytes: usize) -> Result<(), Box<dyn Error>> {
    let bus = Bus::builder().zerocopy().connect()?;
    let (group, pool) = group_and_pool(&bus, group, u32::try_from(count)?, bytes)?;
    for number in 0..count {
        group.send(filled(&pool, number, bytes)?)?;
        println!("sent {number}");
    }
    std::io::stdin().lock().lines().for_each(drop);
    Ok(())
}

fn keep(group: &str, count: usize, trusts: bool) -> Result<(), Box<dyn Error>> {
    let bus = connect(trusts)?;
    let _member = bus.join(group)?;
    println!("joined");
    let mut kept = Vec::new();
    let tell = |message: &Message| -> Result<(), Box<dyn Error>> {
        let whole = if is_whole(message)? { "whole" } else { "torn" };
        println!("{} {whole}", message.way().as_str());
        Ok(())
    };
    for _ in 0..count {
        let message = bus.receive()?.into_message().ok_or("a message comes")?;
        tell(&message)?;
        kept.push(message);
    }
    for _ in std::io::stdin().lock().lines() {
        kept.iter().try_for_each(tell)?;
    }
    Ok(())
}

/// Lends in all ways.
fn lend_all(group: &str, seed: u64) -> Result<(), Box<dyn Error>> {
    let mut random = Random::new(seed);
    let bus = Bus::builder().zerocopy_quietly().connect()?;
    let (group, shown) = group_and_pool(&bus, group, 4, MOST)?;
    let plain = bus.pool(4, MOST)?;
    for number in seed.. {
        let bytes = 8 * (1 + random.below(MOST / 8));
        let message = match random.below(6) {
            0 | 1 => filled(&shown, number, bytes),
            2 | 3 => filled(&plain, number, bytes),
            4 => {
                let mut payload = vec![0; bytes];
                write(number, &mut payload);
                Ok(Outgoing::bytes(payload).zerocopy())
            }
            _ => SealedFile::written(|file| {
                let mut payload = vec![0; bytes];
                write(number, &mut payload);
                std::io::Write::write_all(file, &payload)
            })
            .map(Outgoing::file)
            .map_err(Into::into),
        };
        // Whoever is full, gone or past a limit makes it fail.
        if let Ok(message) = message {
            let _ = group.send_deadline(message, Duration::from_millis(50));
        }
        bus.dispatch()?;
    }
    Ok(())
}

/// Keeps some of what comes, and looks at it when it comes and when it goes.
fn keep_all(group: &str, seed: u64) -> Result<(), Box<dyn Error>> {
    let mut random = Random::new(seed);
    let bus = connect(random.below(2) == 0)?;
    let options = JoinOptions::new().create(true).drop_when_full(random.below(2) == 0);
    let mut member = bus.join_with(group, options.clone())?;
    let mut kept: VecDeque<Message> = VecDeque::new();
    let mut began = Instant::now();
    loop {
        match bus.receive_deadline(Duration::from_millis(20))? {
            Some(event) => {
                if let Some(message) = event.into_message() {
                    if !is_whole(&message)? {
                        println!("torn, from the beginning: {} {}", message.way().as_str(), seed);
                    }
                    kept.push_back(message);
                }
            }
            None if random.below(4) == 0 => kept.clear(),
            None => {}
        }
        if kept.len() > random.below(12)
            && let Some(message) = kept.pop_front()
            && !is_whole(&message)?
        {
            println!("torn, at the end: {} {}", message.way().as_str(), seed);
        }
        if began.elapsed() > Duration::from_millis(300) {
            // It leaves with what it keeps.
            member.leave().ok();
            member = bus.join_with(group, options.clone())?;
            began = Instant::now();
        }
    }
}

fn connect(trusts: bool) -> Result<Bus, Box<dyn Error>> {
    let builder = Bus::builder();
    Ok(if trusts { builder.trust_own_user() } else { builder }.connect()?)
}

fn group_and_pool(
    bus: &Bus,
    name: &str,
    buffers: u32,
    bytes: usize,
) -> Result<(Group, Pool), Box<dyn Error>> {
    let found = loop {
        match bus.find_group(name)?.filter(|group| group.members > 0) {
            Some(group) => break group,
            None => bus.dispatch_timeout(Duration::from_millis(2))?,
        };
    };
    Ok((bus.group(name)?, bus.pool_for(found.group_id, buffers, bytes)?))
}

fn filled(pool: &Pool, number: u64, bytes: usize) -> Result<Outgoing, Box<dyn Error>> {
    let mut buffer = pool.take_deadline(Duration::from_secs(10))?;
    buffer.set_len(bytes);
    write(number, &mut buffer);
    Ok(Outgoing::lent(buffer).travel(Way::Buffer))
}

/// Memory for payloads that the broker has open or mapped, as the system names it.
#[must_use]
pub fn memory_of(broker: &Broker) -> Vec<String> {
    let process = format!("/proc/{}", broker.pid());
    let is_ours = |text: &str| {
        ["arena", "pool", "words", "payload"]
            .iter()
            .any(|of| text.contains(&format!("unisono-{of}")))
    };
    let maps = std::fs::read_to_string(format!("{process}/maps")).unwrap();
    let mut found: Vec<String> =
        maps.lines().filter(|line| is_ours(line)).map(ToOwned::to_owned).collect();
    for entry in std::fs::read_dir(format!("{process}/fd")).unwrap().flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default().display().to_string();
        if is_ours(&target) {
            found.push(target);
        }
    }
    found
}

/// Waits until the broker has none of it any more.
///
/// # Panics
///
/// At the deadline.
pub fn until_no_memory(broker: &Broker) {
    eventually("memory for payloads is given back", || {
        let left = memory_of(broker);
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
}

/// Bytes of the longest payload that is lent at random.
const MOST: usize = 512 << 10;
