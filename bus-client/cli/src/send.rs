//! `unisono send`: one message, or each line of an input.
//!
//! Invariant: what was sent is a prefix of the input. Lines go down one lane, which keeps their
//! order, and after the first one that fails no further one is begun. With `--nonblock` or
//! `--timeout` a line waits for the receipt of the one before, so that status 3 means: this line
//! and all after it have reached nobody.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    time::{Duration, Instant},
};

use bus_client::{Bus, Outgoing, PendingSend, Receipt, SendError};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use self::lent::{Back, Leaving};
use crate::{
    cli,
    destination::Destination,
    exit::{Exit, Failure},
    input::{Input, NoLine},
    output::Output,
    progress::Progress,
    trace::ReceiptLine,
};

pub(crate) mod lent;

/// Sends what the command line asks for.
pub(crate) fn run(options: &cli::Send, bus: &Bus, output: &mut Output) -> Result<Exit, Failure> {
    options.check().map_err(|error| Failure::new(Exit::Usage, error))?;
    let group = options.group().map(|group| group.to_string_lossy().into_owned());
    let destination = match (&options.to, &group) {
        (Some(to), _) => Destination::parse(bus, to),
        (None, group) => Destination::group(bus, group.as_deref().unwrap_or_default()),
    };
    let destination = destination.map_err(|error| Failure::new(Exit::Usage, error))?;
    let mut sender = Sender {
        options,
        bus,
        descriptor: bus.as_fd(),
        group,
        destination,
        output,
        payload_limit: usize::try_from(bus.limits().payload_bytes).expect("32 bits fit"),
        incarnation: crate::trace::incarnation(bus.incarnation()),
    };
    // Opened first, so that a mistyped path is told before anybody is waited for.
    let input = match options.text() {
        Some(_) => None,
        None => Some(open(options)?),
    };
    if let Some(count) = options.wait_members {
        sender.wait_members(count)?;
    }
    match (options.text(), input) {
        (Some(text), _) if options.zerocopy => sender.send_lent(text.as_bytes().to_vec())?,
        (Some(text), _) => sender.send_one(text.as_bytes())?,
        (None, Some(input)) if options.lines => sender.send_lines(input)?,
        (None, Some(input)) => {
            let limit = sender.payload_limit;
            let mut progress = Progress::new(sender.output, input.total_bytes());
            let whole = input.read_whole_telling(limit, |bytes| progress.read(bytes));
            drop(progress);
            let whole = whole.map_err(|error| about_input(options, error))?;
            let whole = whole.ok_or_else(|| {
                Failure::error(format_args!(
                    "the input is larger than the bus takes, {limit} bytes"
                ))
            })?;
            match options.zerocopy {
                true => sender.send_lent(whole)?,
                false => sender.send_one(&whole)?,
            }
        }
        (None, None) => unreachable!("without a text the input was opened"),
    }
    Ok(Exit::Done)
}

fn open(options: &cli::Send) -> Result<Input, Failure> {
    let input =
        Input::open(options.file.as_deref()).map_err(|error| about_input(options, error))?;
    if !options.lines && options.file.is_none() && io::stdin().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "nothing to send: give TEXT, --file PATH, --lines, or pipe the message in",
        ));
    }
    Ok(input)
}

fn about_input(options: &cli::Send, error: io::Error) -> Failure {
    match &options.file {
        Some(path) => Failure::about(path.display(), error),
        None => Failure::about("standard input", error),
    }
}

#[derive(Debug)]
struct Sender<'a> {
    options: &'a cli::Send,
    bus: &'a Bus,
    descriptor: BorrowedFd<'a>,
    group: Option<String>,
    destination: Destination,
    output: &'a mut Output,
    payload_limit: usize,
    incarnation: String,
}

impl Sender<'_> {
    /// Waits until the group exists and has `count` members. We are none of them.
    ///
    /// The broker tells nobody when a group comes to be, so this asks again and again, at
    /// intervals that double up to a bound.
    fn wait_members(&self, count: u64) -> Result<(), Failure> {
        let group = self.group.as_deref().unwrap_or_default();
        let started = Instant::now();
        let mut interval = Duration::from_millis(1);
        loop {
            let members = self.bus.find_group(group)?.map(|g| g.members);
            if members.is_some_and(|n| u64::from(n) >= count) {
                return Ok(());
            }
            let left = self.options.timeout.map(|t| t.saturating_sub(started.elapsed()));
            if left.is_some_and(|left| left.is_zero()) {
                let found = members.map_or("does not exist".to_owned(), |n| format!("has {n}"));
                return Err(Failure::new(
                    Exit::NotSent,
                    format_args!("timed out waiting for {count} members: group {group} {found}"),
                ));
            }
            self.bus.dispatch_timeout(interval.min(left.unwrap_or(interval)))?;
            interval = (interval * 2).min(MOST_INTERVAL);
        }
    }

    fn send_one(&mut self, payload: &[u8]) -> Result<(), Failure> {
        let receipt = self.send(self.message(payload))?;
        self.print(&receipt)
    }

    fn send(&self, message: Outgoing) -> Result<Receipt, SendError> {
        match (self.options.nonblock, self.options.timeout) {
            (true, _) => self.destination.try_send(message),
            (false, Some(timeout)) => self.destination.send_deadline(message, timeout),
            (false, None) => self.destination.send(message),
        }
    }

    /// Sends what is lent, and tells how it travelled once it is free again.
    fn send_lent(&mut self, payload: Vec<u8>) -> Result<(), Failure> {
        let (message, leaving) = lent::lend(self.bus, payload, self.options.travel)?;
        let receipt = self.send(self.described(message))?;
        let waiting = Progress::waiting(self.output, "lent: recipients read");
        let back = lent::wait(self.bus, receipt.completion);
        drop(waiting);
        if back.is_err() {
            // It was sent all the same.
            self.print(&receipt)?;
        }
        let back = back?;
        self.print_as(&receipt, Some((leaving, back)))?;
        self.output.note(&leaving.told(receipt.recipients, back));
        Ok(())
    }

    fn send_lines(&mut self, mut input: Input) -> Result<(), Failure> {
        let progress = Progress::new(self.output, input.total_bytes());
        if self.options.nonblock || self.options.timeout.is_some() {
            self.send_lines_singly(&mut input, progress)
        } else {
            Pipeline::new(progress).run(self, &mut input)
        }
    }

    fn send_lines_singly(
        &mut self,
        input: &mut Input,
        mut progress: Progress,
    ) -> Result<(), Failure> {
        loop {
            match input.next_line(self.payload_limit) {
                Ok(line) => {
                    let line = line.to_vec();
                    self.send_one(&line)?;
                    progress.sent(input.read_bytes());
                }
                Err(NoLine::NotYet) => input.fill().map_err(|e| about_input(self.options, e))?,
                Err(NoLine::Ended) => return Ok(()),
                Err(NoLine::TooLong) => return Err(self.too_long()),
            }
        }
    }

    fn too_long(&self) -> Failure {
        let limit = self.payload_limit;
        Failure::error(format_args!("a line is longer than the bus takes, {limit} bytes"))
    }

    fn message(&self, payload: &[u8]) -> Outgoing {
        self.described(match std::str::from_utf8(payload) {
            Ok(text) => Outgoing::text(text),
            Err(_) => Outgoing::bytes(payload),
        })
    }

    fn described(&self, mut message: Outgoing) -> Outgoing {
        if let Some(key) = &self.options.key {
            message = message.key(key.as_bytes());
        }
        if let Some(operation) = &self.options.operation {
            message = message.operation(operation);
        }
        for (name, value) in &self.options.field {
            message = message.field(name, value);
        }
        message
    }

    fn print(&mut self, receipt: &Receipt) -> Result<(), Failure> {
        self.print_as(receipt, None)
    }

    fn print_as(
        &mut self,
        receipt: &Receipt,
        lent: Option<(Leaving, Option<Back>)>,
    ) -> Result<(), Failure> {
        if !self.options.json {
            return Ok(());
        }
        self.output.json(&ReceiptLine {
            sequence: receipt.sequence.get(),
            sender: self.bus.endpoint_id().get(),
            sender_serial: receipt.sender_serial,
            recipients: receipt.recipients.into(),
            after: receipt.after.get(),
            dropped: receipt.dropped.into(),
            group: self.group.clone(),
            incarnation: Some(self.incarnation.clone()),
            completion: receipt.completion,
            way: lent.map(|(leaving, _)| leaving.way.as_str().to_owned()),
            copied: lent.and_then(|(_, back)| Some(back?.copied)),
        })
    }
}

/// Lines on their way: sent, and not yet answered.
#[derive(Debug)]
struct Pipeline {
    pending: VecDeque<(PendingSend, u64)>,
    bytes: u64,
    ended: bool,
    failed: Option<Failure>,
    progress: Progress,
}

impl Pipeline {
    fn new(progress: Progress) -> Self {
        Self { pending: VecDeque::new(), bytes: 0, ended: false, failed: None, progress }
    }

    fn run(mut self, sender: &mut Sender<'_>, input: &mut Input) -> Result<(), Failure> {
        loop {
            self.settle(sender, input)?;
            self.fill(sender, input);
            if self.pending.is_empty() && (self.ended || self.failed.is_some()) {
                return self.failed.map_or(Ok(()), Err);
            }
            self.wait(sender, input)?;
        }
    }

    /// Takes the receipts that have come, in the order of the lines.
    fn settle(&mut self, sender: &mut Sender<'_>, input: &Input) -> Result<(), Failure> {
        while let Some((pending, bytes)) = self.pending.front_mut() {
            let Some(outcome) = pending.try_wait() else {
                break;
            };
            self.bytes -= *bytes;
            self.pending.pop_front();
            match outcome {
                Ok(receipt) => sender.print(&receipt)?,
                Err(error) => self.fail(error),
            }
            self.progress.sent(input.read_bytes());
        }
        Ok(())
    }

    /// Starts what the lane's window takes. Beyond it the library would block, and nobody would
    /// print the receipts that come meanwhile.
    fn fill(&mut self, sender: &Sender<'_>, input: &mut Input) {
        let cork = sender.bus.cork();
        while self.has_room(sender) {
            let line = match input.next_line(sender.payload_limit) {
                Ok(line) => line,
                Err(NoLine::NotYet) => break,
                Err(NoLine::Ended) => {
                    self.ended = true;
                    break;
                }
                Err(NoLine::TooLong) => {
                    self.failed = Some(sender.too_long());
                    break;
                }
            };
            let bytes = u64::try_from(line.len()).expect("a length fits");
            match sender.destination.start_send(sender.message(line)) {
                Ok(pending) => {
                    self.pending.push_back((pending, bytes));
                    self.bytes += bytes;
                }
                Err(error) => self.fail(error),
            }
        }
        drop(cork);
    }

    fn has_room(&self, sender: &Sender<'_>) -> bool {
        let limits = sender.bus.limits();
        let window = usize::try_from(limits.lane_messages).unwrap_or(usize::MAX);
        !self.ended
            && self.failed.is_none()
            && self.pending.len() < window
            && self.bytes < limits.lane_bytes
    }

    /// Waits for a receipt, or for more input where there is room for it.
    fn wait(&mut self, sender: &Sender<'_>, input: &mut Input) -> Result<(), Failure> {
        let wants_input = self.has_room(sender) && !input.ended();
        let mut fds = vec![PollFd::from_borrowed_fd(sender.descriptor, PollFlags::IN)];
        if wants_input {
            fds.push(PollFd::from_borrowed_fd(input.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Failure::error(io::Error::from(error))),
        }
        let bus_ready = !fds[0].revents().is_empty();
        let input_ready = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        drop(fds);
        if bus_ready {
            // The loss of the broker is told to each pending send.
            let gone = sender.bus.dispatch();
            if self.pending.is_empty() {
                gone?;
            }
        }
        if input_ready {
            input.fill().map_err(|e| about_input(sender.options, e))?;
        }
        Ok(())
    }

    /// Keeps the first failure; what was sent after it is still waited for.
    fn fail(&mut self, error: SendError) {
        if self.failed.is_none() {
            self.failed = Some(error.into());
        }
    }
}

/// The longest interval between two questions for the number of members.
const MOST_INTERVAL: Duration = Duration::from_millis(100);
