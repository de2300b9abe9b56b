//! Clients that are there to be killed: the near end of [`zygote`](super::zygote).

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::until_stopped;

/// A process that makes them. They end with it, and it ends with this.
#[derive(Debug)]
pub(super) struct Victims {
    zygote: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    seed: u64,
}

/// One of them, killed or not.
#[derive(Debug)]
pub(super) struct Victim(i32);

/// What came of a storm.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storm {
    pub(super) killed: u64,
    /// By themselves.
    pub(super) ended: u64,
    /// In a second.
    pub(super) rate: f64,
}

/// How one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Killed,
    Exited(i32),
}

impl Victims {
    pub(super) fn start(zygote: &Path, socket: &Path) -> Self {
        let mut zygote = Command::new(zygote)
            .arg("--zygote")
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let asks = zygote.stdin.take().unwrap();
        let answers = BufReader::new(zygote.stdout.take().unwrap());
        Self { zygote, asks, answers, seed: 1 }
    }

    /// A new one.
    pub(super) fn make(&mut self, role: &str) -> Victim {
        let seed = self.next_seed();
        Victim(self.ask(&format!("make {role} {seed}")).parse().unwrap())
    }

    /// Has so many clients killed and replaced at a rate, for so long; see the zygote.
    pub(super) fn storm(&mut self, crowd: u64, rate: u32, time: Duration) -> Storm {
        let seed = self.next_seed();
        let answer = self.ask(&format!("storm {crowd} {rate} {} {seed}", time.as_millis()));
        let numbers: Vec<u64> = answer.split(' ').map(|number| number.parse().unwrap()).collect();
        let [killed, ended, micros] = numbers[..] else { panic!("{answer}") };
        Storm { killed, ended, rate: (killed + ended) as f64 * 1e6 / micros as f64 }
    }

    pub(super) fn kill(&mut self, victim: Victim) -> End {
        End::parse(&self.ask(&format!("kill {}", victim.0)))
    }

    /// Waits for the end of one.
    pub(super) fn end(&mut self, victim: Victim) -> End {
        End::parse(&self.ask(&format!("end {}", victim.0)))
    }

    fn next_seed(&mut self) -> u64 {
        self.seed += 1;
        self.seed
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.asks, "{line}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }
}

impl Victim {
    /// Stops it, wherever it is.
    pub(super) fn stop(&self) {
        kill(Pid::from_raw(self.0), Signal::SIGSTOP).unwrap();
        self.until_stopped();
    }

    /// Waits until it stands.
    pub(super) fn until_stopped(&self) {
        until_stopped(self.0.try_into().unwrap());
    }

    /// Lets it go on.
    pub(super) fn go_on(&self) {
        kill(Pid::from_raw(self.0), Signal::SIGCONT).unwrap();
    }
}

impl End {
    fn parse(text: &str) -> Self {
        match text.strip_prefix("exited-").and_then(|status| status.parse().ok()) {
            Some(status) => Self::Exited(status),
            None => {
                assert_eq!(text, "killed");
                Self::Killed
            }
        }
    }
}

impl Drop for Victims {
    fn drop(&mut self) {
        let _ = self.zygote.kill();
        let _ = self.zygote.wait();
    }
}
