//! N threads over one connection: through the multiplexor, and with a socket behind mutexes.
//!
//! Each thread sends a window of messages and receives as many, whoever's they are; the other end
//! gives every byte back. Both ways send the same bytes through the same kind of socket. Runs are
//! interleaved, and what is printed are medians of ratios, so a busy machine disturbs both alike.
//!
//! Afterwards, what it costs to receive one message of many that are there: with a read and a
//! framer alone, and through the multiplexor (framing, steering, a message of one's own).

use std::error::Error;
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use bus_client::mux::{Attach, Flavour, Multiplexor, Options, Steering};
use bus_core::framing::{BpfFramer, Endianness, Framer, LengthPrefix, Unread, Width};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const THRIFT: &[u8] = include_bytes!("../../bus-core/tests/fixtures/thrift.bpf.o");
const RUNS: usize = 7;

fn framer() -> Outcome<LengthPrefix> {
    Ok(LengthPrefix::new(0, Width::Four, Endianness::Big, 4)?)
}

fn message(bytes: usize) -> Outcome<Vec<u8>> {
    let mut message = vec![7; bytes];
    message[..4].copy_from_slice(&u32::try_from(bytes - 4)?.to_be_bytes());
    Ok(message)
}

/// Gives back what comes, until the other end is closed.
fn echo(mut socket: UnixStream) {
    let mut buffer = vec![0; 1 << 18];
    while let Ok(count @ 1..) = socket.read(&mut buffer) {
        if socket.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

#[derive(Clone, Copy)]
struct Load {
    threads: usize,
    bytes: usize,
    window: usize,
    /// Of each thread.
    rounds: usize,
}

fn multiplexed(load: Load, steering: Steering) -> Outcome<Duration> {
    let (ours, theirs) = UnixStream::pair()?;
    let peer = thread::spawn(move || echo(theirs));
    let mut options = Options::default();
    options.steering = steering;
    let mux = Multiplexor::with(options)?;
    let maximum = NonZeroUsize::new(1 << 20).ok_or("not 0")?;
    let stream = mux.attach(ours, framer()?, Attach::new().maximum(maximum))?;
    let message = message(load.bytes)?;
    let handles = (0..load.threads).map(|_| mux.handle()).collect::<Result<Vec<_>, _>>()?;
    let began = Instant::now();
    thread::scope(|scope| {
        let work = |handle: bus_client::mux::Handle| -> Outcome<()> {
            for _ in 0..load.rounds {
                for _ in 0..load.window {
                    handle.send(&message)?;
                }
                for _ in 0..load.window {
                    handle.receive()?;
                }
            }
            Ok(())
        };
        let workers: Vec<_> = handles.into_iter().map(|h| scope.spawn(move || work(h))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a panic")?)
    })?;
    let took = began.elapsed();
    drop(stream.unattach());
    peer.join().map_err(|_| "a panic")?;
    Ok(took)
}

fn behind_mutexes(load: Load) -> Outcome<Duration> {
    let (ours, theirs) = UnixStream::pair()?;
    let peer = thread::spawn(move || echo(theirs));
    let writer = Mutex::new(ours.try_clone()?);
    let reader = Mutex::new(std::io::BufReader::with_capacity(64 << 10, ours));
    let message = message(load.bytes)?;
    let began = Instant::now();
    thread::scope(|scope| {
        let work = || -> Outcome<()> {
            for _ in 0..load.rounds {
                for _ in 0..load.window {
                    writer.lock().map_err(|_| "a panic")?.write_all(&message)?;
                }
                for _ in 0..load.window {
                    let mut reader = reader.lock().map_err(|_| "a panic")?;
                    let mut head = [0; 4];
                    reader.read_exact(&mut head)?;
                    let mut body = vec![0; u32::from_be_bytes(head) as usize];
                    reader.read_exact(&mut body)?;
                    drop(reader);
                    std::hint::black_box(body);
                }
            }
            Ok(())
        };
        let workers: Vec<_> = (0..load.threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a panic")?)
    })?;
    let took = began.elapsed();
    drop((writer, reader));
    peer.join().map_err(|_| "a panic")?;
    Ok(took)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare() -> Outcome<()> {
    println!(
        "messages a second, multiplexor : mutexes (above 1 is faster), medians of {RUNS} pairs\n"
    );
    println!("steering window   bytes   1 thread  2 threads  4 threads  8 threads");
    let both = [Steering::Rotate, Steering::Reader];
    for (steering, window) in both.into_iter().flat_map(|s| [(s, 1), (s, 16)]) {
        for bytes in [64, 1024, 16 << 10] {
            let name = format!("{steering:?}");
            let mut line = format!("{name:<8} {window:>6} {bytes:>7}");
            for threads in [1, 2, 4, 8] {
                // A window fits the socket, or all would write and none read.
                let rounds = 4000 / window / threads / (1 + bytes / 4096);
                let load = Load { threads, bytes, window: fit(window, bytes, threads), rounds };
                let mut ratios = Vec::new();
                for _ in 0..RUNS {
                    let (ours, theirs) = (multiplexed(load, steering)?, behind_mutexes(load)?);
                    ratios.push(theirs.as_secs_f64() / ours.as_secs_f64());
                }
                line += &format!("{:>11.2}", median(ratios));
            }
            println!("{line}");
        }
    }
    Ok(())
}

/// The window, or as much of it as all threads may have under way in one socket.
fn fit(window: usize, bytes: usize, threads: usize) -> usize {
    window.min((96 << 10) / bytes / threads).max(1)
}

/// Nanoseconds for each of `count` messages that lie in the socket, in portions that it holds.
fn cost(
    count: usize,
    mut receive: impl FnMut(&mut UnixStream, usize) -> Outcome<Duration>,
    mut peer: UnixStream,
) -> Outcome<f64> {
    const PORTION: usize = 256;
    let portion = message(64)?.repeat(PORTION);
    // A median: on a busy machine some portions are interrupted for long.
    let mut each = Vec::new();
    for _ in 0..count / PORTION {
        peer.write_all(&portion)?;
        each.push(receive(&mut peer, PORTION)?.as_secs_f64() * 1e9 / PORTION as f64);
    }
    Ok(median(each))
}

fn by_hand(framer: &dyn Framer) -> Outcome<f64> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut buffer = vec![0; 64 << 10];
    let receive = |_: &mut UnixStream, portion: usize| {
        let began = Instant::now();
        let mut found = 0;
        while found < portion {
            let count = ours.read(&mut buffer)?;
            let mut at = 0;
            while at < count {
                let length = framer.measure(Unread::from(&buffer[at..count]))?.ok_or("cut")?;
                std::hint::black_box(&buffer[at..at + length.get()]);
                at += length.get();
                found += 1;
            }
        }
        Ok(began.elapsed())
    };
    cost(100_000, receive, theirs)
}

fn through_the_multiplexor(framer: impl Framer + 'static, handles: usize) -> Outcome<f64> {
    let (ours, theirs) = UnixStream::pair()?;
    let mux = Multiplexor::new(Flavour::Datagram)?;
    let _stream = mux.attach(ours, framer, Attach::new())?;
    let handles = (0..handles).map(|_| mux.handle()).collect::<Result<Vec<_>, _>>()?;
    let mut next = 0;
    let receive = |_: &mut UnixStream, portion: usize| {
        // The handle whose turn it is.
        let handle = &handles[next % handles.len()];
        next += 1;
        let began = Instant::now();
        for _ in 0..portion {
            std::hint::black_box(handle.try_receive()?);
        }
        let took = began.elapsed();
        let _ = handle.try_receive();
        Ok(took)
    };
    cost(100_000, receive, theirs)
}

fn main() -> Outcome<()> {
    // `cargo test --benches` asks for a look only.
    if std::env::args().any(|argument| argument == "--test") {
        let load = Load { threads: 2, bytes: 64, window: 2, rounds: 5 };
        for steering in [Steering::Rotate, Steering::Reader] {
            multiplexed(load, steering)?;
        }
        behind_mutexes(load)?;
        return Ok(());
    }
    compare()?;
    println!("\nnanoseconds a message of 64 bytes, of 256 that came together, medians of {RUNS}\n");
    let mut rows: [(&str, Vec<f64>); 5] = [
        ("a read, framed by a length prefix", Vec::new()),
        ("a read, framed by the Thrift program", Vec::new()),
        ("a handle, length prefix", Vec::new()),
        ("a handle, Thrift program", Vec::new()),
        ("8 handles in turn, length prefix", Vec::new()),
    ];
    for _ in 0..RUNS {
        rows[0].1.push(by_hand(&framer()?)?);
        rows[1].1.push(by_hand(&BpfFramer::load(THRIFT)?)?);
        rows[2].1.push(through_the_multiplexor(framer()?, 1)?);
        rows[3].1.push(through_the_multiplexor(BpfFramer::load(THRIFT)?, 1)?);
        rows[4].1.push(through_the_multiplexor(framer()?, 8)?);
    }
    for (name, values) in rows {
        println!("{:>8.0}  {name}", median(values));
    }
    Ok(())
}
