//! A process that makes clients, and kills them, by `fork` and without `exec`: hundreds in a second,
//! on any machine. `soak --zygote SOCKET`.
//!
//! | a line on its standard input | what it does, and answers |
//! |---|---|
//! | `make ROLE SEED` | starts a client: its process id |
//! | `kill PID`, `end PID` | kills one, or waits for its end: how it ended |
//! | `storm CROWD RATE MILLISECONDS SEED` | has so many clients, and for so long kills one of them and starts another at this rate, in all roles; a rate of 0 is as fast as it can, with clients that do nothing. How many were killed, how many had ended by themselves, and the microseconds that it took |
//!
//! How one ended is `killed`, or `exited-STATUS`: then it was not killed, and has said why on standard
//! error. Who has not been asked about stays a zombie, so a process id is its own until then.
//!
//! It goes before its clients, if it may: they are to be killed in time although they use up the
//! processor. Nor does it wait for one to be dead before it goes on.
//!
//! # Safety
//!
//! `fork` in a process with several threads leaves the child with one of them and the locks of all.
//! This process has one thread, which starts none before it forks; the child may do whatever a
//! process may do.
#![expect(unsafe_code, reason = "fork, in a process with one thread")]

use std::collections::VecDeque;
use std::error::Error;
use std::io::{self, BufRead};
use std::panic::catch_unwind;
use std::process::{Command, ExitCode, Stdio, exit};
use std::time::{Duration, Instant};

use bus_client::{Bus, Event, JoinOptions, NameOptions, Outgoing, Transport};
use bus_core::Destination;
use bus_core::wire::ClientFrame;
use bytes::BytesMut;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use rustix::process::nice;

use crate::programs;
use crate::random::Random;
use crate::raw::{RawClient, id, send_frame};

/// Serves until nobody can ask any more; its clients end with it.
pub fn zygote(socket: &str) -> ExitCode {
    // Only root may.
    let _ = nice(-AHEAD);
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["make", role, seed] => println!("{}", make(socket, role, number(seed))),
            ["kill", pid] => println!("{}", killed(id_of(pid))),
            ["end", pid] => println!("{}", ended(id_of(pid))),
            ["storm", crowd, rate, millis, seed] => {
                let [crowd, rate, millis, seed] = [crowd, rate, millis, seed].map(number);
                println!("{}", storm(socket, crowd, rate, Duration::from_millis(millis), seed));
            }
            _ => panic!("what is {line:?}?"),
        }
    }
    ExitCode::SUCCESS
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

fn id_of(text: &str) -> Pid {
    Pid::from_raw(text.parse().unwrap())
}

/// How much before its clients it goes.
const AHEAD: i32 = 15;

fn storm(socket: &str, crowd: u64, rate: u64, time: Duration, seed: u64) -> String {
    let mut random = Random::new(seed);
    let start = |random: &mut Random| {
        let role = if rate == 0 { "nobody" } else { ROLES[random.below(ROLES.len())] };
        make(socket, role, random.draw())
    };
    let mut alive: Vec<Pid> = (0..crowd).map(|_| start(&mut random)).collect();
    let mut dying = VecDeque::new();
    let mut outcome = [0_u64; 2];
    let mut bury = |pid: Pid| outcome[usize::from(ended(pid) != "killed")] += 1;
    let began = Instant::now();
    let mut killed = 0;
    while began.elapsed() < time {
        let at = random.below(alive.len());
        let victim = std::mem::replace(&mut alive[at], start(&mut random));
        // Not waited for yet, so the number is its own.
        let _ = kill(victim, Signal::SIGKILL);
        killed += 1;
        dying.push_back(victim);
        while dying.len() > DYING {
            bury(dying.pop_front().unwrap());
        }
        if let Some(pause) = 1_000_000_000_u64.checked_div(rate) {
            let due = began + Duration::from_nanos(pause * killed);
            std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
        }
    }
    let took = began.elapsed().as_micros();
    dying.into_iter().for_each(&mut bury);
    for pid in alive {
        let _ = kill(pid, Signal::SIGKILL);
        let _ = ended(pid);
    }
    let [killed, ended] = outcome;
    format!("{killed} {ended} {took}")
}

/// So many may be dying at once.
const DYING: usize = 64;

fn make(socket: &str, role: &str, seed: u64) -> Pid {
    // SAFETY: this process has one thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let _ = set_pdeathsig(Signal::SIGKILL);
            // As everybody, if it went before. (Who could not has 0, and goes behind.)
            let _ = nice(AHEAD);
            let lived = catch_unwind(|| live(socket, role, seed));
            match lived {
                Ok(Ok(())) => exit(0),
                Ok(Err(error)) => {
                    eprintln!("soak: a client, {role}: {error}");
                    exit(1)
                }
                Err(_) => exit(101),
            }
        }
    }
}

fn killed(pid: Pid) -> String {
    // Not waited for yet, so the number is its own.
    let _ = kill(pid, Signal::SIGKILL);
    ended(pid)
}

fn ended(pid: Pid) -> String {
    match waitpid(pid, None).unwrap() {
        WaitStatus::Signaled(_, Signal::SIGKILL, _) => "killed".to_owned(),
        WaitStatus::Exited(_, status) => format!("exited-{status}"),
        other => format!("{other:?}").replace(' ', ""),
    }
}

/// What clients do until they are killed. What becomes of a single send or call is not their
/// concern: others die.
const ROLES: [&str; 11] = [
    "listener", "dropper", "sender", "large", "lender", "ring", "owner", "service", "caller",
    "visitor", "program",
];

/// The group that they use.
pub(super) const GROUP: &str = "victims";

fn live(socket: &str, role: &str, seed: u64) -> Result<(), Box<dyn Error>> {
    let mut random = Random::new(seed);
    let connect = || Bus::builder().address(socket).program("victim").connect();
    match role {
        // Nothing of the bus: what this machine needs for a process.
        "nobody" => loop {
            std::thread::park();
        },
        "half" => return half(socket, &mut random),
        "program" => return program(socket),
        "listener" | "dropper" => {
            let bus = connect()?;
            let mut drops = role == "dropper";
            loop {
                let options = JoinOptions::new().create(true).drop_when_full(drops);
                let _member = bus.join_with(GROUP, options)?;
                // Who is put out, for want of a turn of the processor, comes back as it may.
                while !matches!(bus.receive()?, Event::Evicted(_)) {}
                drops = true;
            }
        }
        "sender" => {
            let bus = connect()?;
            let group = bus.group(GROUP)?;
            let mut under_way = Vec::new();
            for number in 0.. {
                under_way.push(group.start_send(format!("{seed}.{number}"))?);
                if under_way.len() > random.below(64) {
                    under_way.drain(..).for_each(|send| drop(send.wait()));
                }
            }
        }
        "large" => {
            let group = connect()?.group(GROUP)?;
            loop {
                let _ = group.send(random.bytes(1 + random.clone().below(200_000)));
            }
        }
        "lender" => {
            let bus = Bus::builder().address(socket).zerocopy_quietly().connect()?;
            let group = bus.group(GROUP)?;
            loop {
                let _ = group.send(Outgoing::bytes(vec![7; 100_000]).zerocopy());
                let _ = bus.completions();
            }
        }
        "ring" => {
            let bus = Bus::builder().address(socket).transport(Transport::Ring).connect()?;
            let options = JoinOptions::new().create(true).drop_when_full(true).loopback(true);
            let member = bus.join_with(GROUP, options)?;
            loop {
                let _ = member.send_deadline("by a ring", Duration::from_secs(1));
                while bus.try_receive()?.is_some() {}
            }
        }
        "owner" => {
            let bus = connect()?;
            let _name = bus.own_name_with("org.example.Victim", NameOptions::new().wait(true))?;
            loop {
                bus.receive()?;
            }
        }
        "service" => {
            let bus = connect()?;
            let _name = bus.own_name_with("org.example.Served", NameOptions::new().shared(true))?;
            loop {
                if let Event::Message(message) = bus.receive()? {
                    let _ = message.reply("done");
                }
            }
        }
        "caller" => {
            let bus = connect()?;
            let served = bus.name("org.example.Served")?;
            loop {
                let _ = served.call(Outgoing::text("do").timeout(Duration::from_millis(200)));
            }
        }
        "visitor" => {
            let bus = connect()?;
            for visit in 0_u64.. {
                let group = format!("visited.{}", visit % 3);
                let options = JoinOptions::new().create(true).drop_when_full(true);
                let member = bus.join_with(&group, options)?;
                let _ = member.send("was here");
                member.leave()?;
            }
        }
        _ => return Err("no such role".into()),
    }
    Ok(())
}

/// The command line, and no child of ours any more but by its number.
fn program(socket: &str) -> Result<(), Box<dyn Error>> {
    use std::os::unix::process::CommandExt as _;
    let mut unisono = Command::new(programs::unisono());
    unisono.args(["listen", GROUP, "--drop-when-full", "--json", "--address", socket]);
    Err(unisono.stdout(Stdio::null()).exec().into())
}

/// Stops in the middle of a frame. Who lets it go on gets a client whose send was whole after all.
fn half(socket: &str, random: &mut Random) -> Result<(), Box<dyn Error>> {
    let mut client = RawClient::connect(socket.as_ref());
    let group = client.find("halves").map_err(|failure| failure.text)?;
    let serial = client.next_serial();
    let payload = random.bytes(1 + random.clone().below(100_000));
    let mut bytes = BytesMut::new();
    let frame = send_frame(id(serial), Destination::Group(group), &payload);
    ClientFrame::Send(frame).encode(&mut bytes)?;
    let at = 1 + random.below(bytes.len() - 1);
    client.write(&bytes[..at]);
    raise(Signal::SIGSTOP)?;
    client.write(&bytes[at..]);
    client.outcome(serial).map_err(|failure| failure.text)?;
    Ok(())
}
