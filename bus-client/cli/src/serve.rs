//! `unisono serve -- COMMAND`: each request to the standard input of a command, its output the
//! reply.
//!
//! Invariant: at most `--jobs` commands run at a time, and what waits meanwhile waits in the queue
//! of this endpoint, where callers see it. So a flood of requests costs no process. A command whose
//! caller does not wait any more is killed: nobody would see what it says.

use std::{
    ffi::{CString, OsString},
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use bus_client::{
    Bus, Event, Fate, Message, NameOptions, Possession, Reconnected, Restored, SendError,
};
use nix::{
    errno::Errno,
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp},
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};
use serde::Serialize;

use crate::{
    call, cli, description,
    exit::{Exit, Failure},
    output::Output,
};

/// Serves until the count is reached, a signal comes, or the broker goes.
pub(crate) fn run(options: &cli::Serve, bus: &Bus, output: &mut Output) -> Result<Exit, Failure> {
    let endpoint = bus.endpoint_id().get();
    let mut how = NameOptions::new().shared(options.shared);
    if let (Some(path), Some(name)) = (&options.describe, &options.name) {
        how = how.describe(description::read(path, name)?);
    }
    let owned = options.name.as_deref().map(|name| bus.own_name_with(name, how));
    // Kept until the end: dropping it gives the name up.
    let owned = owned.transpose()?;
    let name = owned.as_ref().map(|owned| owned.name().as_str());
    if options.json {
        output.json(&Line::Serving { endpoint, name })?;
    } else {
        let name = name.unwrap_or("no name");
        output.note(&format!("serving {name} as endpoint {endpoint}"));
    }
    let limit = usize::try_from(bus.limits().payload_bytes).expect("32 bits fit");
    let (done, finished) = mpsc::channel();
    let mut server = Server { options, limit, output, jobs: Vec::new(), done, finished };
    let mut left = options.count;
    while left != Some(0) || !server.jobs.is_empty() {
        server.look()?;
        if left == Some(0) || server.jobs.len() >= options.jobs {
            // Only what has ended matters; the receipt of its reply, or the end of a request,
            // ends this too.
            bus.dispatch_timeout(LOOK_EVERY)?;
            continue;
        }
        let waits = if server.jobs.is_empty() { IDLE } else { LOOK_EVERY };
        match bus.receive_deadline(waits)? {
            Some(Event::Message(message)) if message.is_request() => {
                let begun = server.begin(message)?;
                left = left.map(|left| left - u64::from(begun));
            }
            Some(Event::NameLost(lost)) if !lost.waits => {
                let text = format_args!("{} has gone to another owner", lost.name);
                return Err(Failure::new(Exit::Gone, text));
            }
            Some(Event::Reconnected(back)) => server.tell_return(&back, name)?,
            Some(Event::Restored(restored)) => look_for_loss(&restored)?,
            _ => {}
        }
    }
    Ok(Exit::Done)
}

/// A line of `serve --json`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Line<'a> {
    /// Where it can be reached.
    Serving {
        endpoint: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<&'a str>,
    },
    /// A request has been dealt with.
    Request {
        sequence: u64,
        sender: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        operation: Option<String>,
        outcome: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
}

/// A command that runs for a request.
#[derive(Debug)]
struct Job {
    message: Message,
    /// None before it has been started, and once it has ended: then its number may be another's.
    process: Mutex<Option<Pid>>,
}

struct Server<'a> {
    options: &'a cli::Serve,
    /// The longest reply, in bytes.
    limit: usize,
    output: &'a mut Output,
    jobs: Vec<Arc<Job>>,
    done: Sender<(Arc<Job>, Said)>,
    finished: Receiver<(Arc<Job>, Said)>,
}

/// What a command came to.
#[derive(Debug)]
enum Said {
    /// Its output.
    Reply(Vec<u8>),
    /// It failed: its output, or why.
    Failed(Vec<u8>),
    TooLong,
}

impl Server<'_> {
    /// Starts the command for a request. False if it is none of ours.
    fn begin(&mut self, message: Message) -> Result<bool, Failure> {
        let wanted = self.options.operation.as_deref();
        if wanted.is_some_and(|wanted| message.operation() != Some(wanted)) {
            let text = format!("only {} is served here", wanted.unwrap_or_default());
            let sent = message.refuse(bus_client::Outgoing::text(text).operation(UNKNOWN));
            self.tell(&message, "refused", sent.err())?;
            return Ok(false);
        }
        let job = Arc::new(Job { message, process: Mutex::new(None) });
        self.jobs.push(Arc::clone(&job));
        let (command, limit) = (self.options.command.clone(), self.limit);
        let done = self.done.clone();
        thread::Builder::new()
            .name("command".to_owned())
            .spawn(move || {
                let said = job.run(&command, limit);
                // Nobody listens once the program ends.
                let _ = done.send((job, said));
            })
            .map_err(|error| Failure::about("cannot start a thread", error))?;
        Ok(true)
    }

    /// Answers what has ended, and kills what nobody waits for.
    fn look(&mut self) -> Result<(), Failure> {
        while let Ok((job, said)) = self.finished.try_recv() {
            self.jobs.retain(|other| !Arc::ptr_eq(other, &job));
            let (outcome, sent) = match said {
                Said::Reply(bytes) => ("replied", job.message.reply(call::outgoing(bytes))),
                Said::Failed(bytes) => {
                    let said = call::outgoing(bytes).operation(FAILED);
                    ("refused", job.message.refuse(said))
                }
                Said::TooLong => {
                    let text = format!("the reply has more than {} bytes", self.limit);
                    let said = bus_client::Outgoing::text(text).operation(FAILED);
                    ("refused", job.message.refuse(said))
                }
            };
            self.tell(&job.message, outcome, sent.err())?;
        }
        for job in self.jobs.iter().filter(|job| job.message.ended().is_some()) {
            job.kill();
        }
        Ok(())
    }

    /// Another broker has taken the place of the one before. Who had asked has gone with that one.
    fn tell_return(&mut self, back: &Reconnected, name: Option<&str>) -> Result<(), Failure> {
        back.restored.iter().try_for_each(look_for_loss)?;
        let endpoint = back.endpoint.get();
        if self.options.json {
            return self.output.json(&Line::Serving { endpoint, name });
        }
        self.output.note(&format!("connected again, as endpoint {endpoint}"));
        Ok(())
    }

    fn tell(
        &mut self,
        message: &Message,
        outcome: &'static str,
        error: Option<SendError>,
    ) -> Result<(), Failure> {
        let gone = error.as_ref().and_then(SendError::broker_gone).cloned();
        if let Some(gone) = gone
            && self.options.comeback.reconnect.is_none()
        {
            return Err(gone.into());
        }
        let outcome = if error.is_some() { "ended" } else { outcome };
        if self.options.json {
            return self.output.json(&Line::Request {
                sequence: message.sequence().get(),
                sender: message.sender().get(),
                operation: message.operation().map(str::to_owned),
                outcome,
                why: error.map(|error| error.to_string()),
            });
        }
        if let Some(error) = error {
            self.output.note(&format!("request {}: {error}", message.sequence()));
        }
        Ok(())
    }
}

/// A name that is another's now is the end, as it is at any other time.
fn look_for_loss(restored: &Restored) -> Result<(), Failure> {
    match (&restored.what, &restored.fate) {
        (Possession::Name(name), Fate::Lost { text, code }) => {
            let text = format_args!("cannot own {name} again: {text} ({code})");
            Err(Failure::new(Exit::Gone, text))
        }
        _ => Ok(()),
    }
}

impl Job {
    fn run(&self, command: &[OsString], limit: usize) -> Said {
        self.try_run(command, limit).unwrap_or_else(|error| {
            Said::Failed(format!("cannot run {}: {error}", command[0].display()).into_bytes())
        })
    }

    fn try_run(&self, command: &[OsString], limit: usize) -> io::Result<Said> {
        let (input, to_command) = io::pipe()?;
        let (from_command, output) = io::pipe()?;
        let child = {
            let mut process = self.process();
            let child = spawn(command, &self.message, input.into(), output.into())?;
            *process = Some(child);
            child
        };
        let (bytes, whole) = thread::scope(|scope| {
            scope.spawn(|| {
                // A command need not read what it is given.
                let _ = File::from(OwnedFd::from(to_command)).write_all(self.message.payload());
            });
            let mut bytes = Vec::new();
            let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
            let read = from_command.take(most).read_to_end(&mut bytes);
            let whole = bytes.len() <= limit;
            if !whole {
                self.kill();
            }
            read.map(|_| (bytes, whole))
        })?;
        // Its number stays its own until its end has been taken, which nobody kills meanwhile.
        let _ = waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let status = {
            let mut process = self.process();
            *process = None;
            waitpid(child, None)
        };
        Ok(match status {
            _ if !whole => Said::TooLong,
            Ok(WaitStatus::Exited(_, 0)) => Said::Reply(bytes),
            _ if !bytes.is_empty() => Said::Failed(bytes),
            Ok(WaitStatus::Exited(_, code)) => {
                Said::Failed(format!("the command ended with status {code}").into_bytes())
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                Said::Failed(format!("the command was ended by {signal}").into_bytes())
            }
            other => Said::Failed(format!("the command ended as {other:?}").into_bytes()),
        })
    }

    fn process(&self) -> MutexGuard<'_, Option<Pid>> {
        // What it holds is right at any time.
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill(&self) {
        if let Some(process) = *self.process() {
            let _ = kill(process, Signal::SIGKILL);
        }
    }
}

/// Starts a command with these ends of pipes, told by its environment what is asked.
fn spawn(
    command: &[OsString],
    message: &Message,
    input: OwnedFd,
    output: OwnedFd,
) -> io::Result<Pid> {
    let c_string = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| io::ErrorKind::InvalidInput);
    let arguments: Vec<CString> =
        command.iter().map(|word| c_string(word.as_bytes().to_vec())).collect::<Result<_, _>>()?;
    let own = [
        ("UNISONO_OPERATION", message.operation().unwrap_or_default().to_owned()),
        ("UNISONO_SENDER", message.sender().to_string()),
        ("UNISONO_REQUEST", message.sequence().to_string()),
    ];
    let others = std::env::vars_os().filter(|(name, _)| own.iter().all(|(own, _)| name != own));
    let others = others.map(|(name, value)| (name.into_vec(), value.into_vec()));
    let told =
        own.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.clone().into_bytes()));
    let environment: Vec<CString> = others
        .chain(told)
        .map(|(name, value)| c_string([name, b"=".to_vec(), value].concat()))
        .collect::<Result<_, _>>()?;
    let system = |error: Errno| io::Error::from(error);
    let mut attributes = PosixSpawnAttr::init().map_err(system)?;
    let flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
    attributes.set_flags(flags).map_err(system)?;
    // Ours are blocked, for the thread that waits for them.
    attributes.set_sigmask(&SigSet::empty()).map_err(system)?;
    let mut reset = SigSet::empty();
    reset.add(Signal::SIGPIPE);
    attributes.set_sigdefault(&reset).map_err(system)?;
    let mut actions = PosixSpawnFileActions::init().map_err(system)?;
    actions.add_dup2(input.as_fd().as_raw_fd(), 0).map_err(system)?;
    actions.add_dup2(output.as_fd().as_raw_fd(), 1).map_err(system)?;
    posix_spawnp(&arguments[0], &actions, &attributes, &arguments, &environment).map_err(system)
}

/// The operation of a refusal because the command failed.
const FAILED: &str = "failed";
/// The operation of a refusal because the operation is not served.
const UNKNOWN: &str = "unknown-operation";
/// How often to look after what runs, beside what happens on the connection.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long to wait for a request before waiting again.
const IDLE: Duration = Duration::from_secs(3_600);
