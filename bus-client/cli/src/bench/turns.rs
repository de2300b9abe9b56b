//! Processes that take turns, and one of them in the middle: what turns cost where next to nothing is done in one.
//!
//! It marks what the system's scheduler leaves to any broker that nobody sleeps at: who has nothing to read
//! yields, and looks again. What comes is copied to whom it is for. Nobody is protected from anybody, nothing is
//! queued, and an idle one would keep a processor busy. So a broker between as many processes cannot take less where
//! they have as many turns, and what it takes beyond this is its own.
//!
//! Invariant: each has one place, which is written by one process at a time and only when what lay there was read:
//! there is one message under way, which is what the workloads say that this is for. The count is stored behind the
//! payload, so who sees the count sees the payload.

use std::{fs::File, io, os::fd::AsFd as _, sync::atomic::Ordering, thread};

use bus_core::ring::Memory as _;
use bus_memory::Mapping;

use super::{
    client::{Caller, Receiver, Responder, Sender},
    plan::{Plan, Workload},
    stamp::Stamp,
};

/// Bytes of memory that a run has mapped.
pub(crate) fn memory_bytes(plan: &Plan) -> usize {
    (FIRST_RECEIVER + plan.receivers) * place_bytes(plan)
}

/// Passes on until it is killed.
pub(crate) fn run(plan: &Plan, listening: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let mut memory = Memory::open(plan)?;
    listening()?;
    let all = FIRST_RECEIVER..FIRST_RECEIVER + plan.receivers;
    let mut had = 0;
    loop {
        memory.wait(BROKER, had);
        memory.read(BROKER);
        had += 1;
        // A call and its answer come in turn.
        if plan.workload == Workload::Rtt && had % 2 == 0 {
            memory.pass(SENDER);
        } else {
            all.clone().for_each(|place| memory.pass(place));
        }
    }
}

/// Any process at the edge.
#[derive(Debug)]
pub(super) struct End {
    memory: Memory,
    place: usize,
    had: u64,
}

impl End {
    pub(super) fn sender(plan: &Plan) -> io::Result<Self> {
        Ok(Self { memory: Memory::open(plan)?, place: SENDER, had: 0 })
    }

    pub(super) fn receiver(plan: &Plan, index: usize) -> io::Result<Self> {
        Ok(Self { memory: Memory::open(plan)?, place: FIRST_RECEIVER + index, had: 0 })
    }

    fn hear(&mut self, sink: &mut dyn FnMut(&[u8])) {
        self.memory.wait(self.place, self.had);
        self.memory.read(self.place);
        self.had += 1;
        sink(&self.memory.payload);
    }

    fn say(&mut self, stamp: Stamp) {
        stamp.write(&mut self.memory.payload);
        self.memory.pass(BROKER);
    }
}

impl Sender for End {
    fn send(&mut self, stamps: &[Stamp]) -> io::Result<()> {
        stamps.iter().for_each(|stamp| self.say(*stamp));
        Ok(())
    }
}

impl Receiver for End {
    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.hear(sink);
        Ok(())
    }
}

impl Caller for End {
    fn call(&mut self, stamp: Stamp, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.say(stamp);
        self.hear(sink);
        Ok(())
    }
}

impl Responder for End {
    fn address(&self) -> String {
        String::new()
    }

    fn respond(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.hear(sink);
        self.memory.pass(BROKER);
        Ok(())
    }
}

/// The places, and what was read last or is to be written next.
#[derive(Debug)]
struct Memory {
    mapping: Mapping,
    stride: usize,
    payload: Vec<u8>,
}

impl Memory {
    fn open(plan: &Plan) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(plan.memory())?;
        let mapping = Mapping::read_write(file.as_fd(), memory_bytes(plan))?;
        mapping.prepare();
        Ok(Self { mapping, stride: place_bytes(plan), payload: vec![0; plan.size] })
    }

    /// Yields until there is something else than what this many were.
    fn wait(&self, place: usize, had: u64) {
        while self.mapping.word(place * self.stride).load(Ordering::Acquire) == had {
            thread::yield_now();
        }
    }

    fn read(&mut self, place: usize) {
        self.mapping.get(place * self.stride + LINE, &mut self.payload);
    }

    fn pass(&self, place: usize) {
        self.mapping.put(place * self.stride + LINE, &self.payload);
        self.mapping.word(place * self.stride).fetch_add(1, Ordering::Release);
    }
}

fn place_bytes(plan: &Plan) -> usize {
    LINE + plan.size.next_multiple_of(LINE)
}

/// Who reads what lies in the first places.
const BROKER: usize = 0;
const SENDER: usize = 1;
const FIRST_RECEIVER: usize = 2;
/// Bytes of a line of the processor's cache: the count has one of its own.
const LINE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{client::make_memory, system::System};

    fn plan(workload: Workload, receivers: usize, dir: &tempfile::TempDir) -> Plan {
        let dir = dir.path().to_owned();
        Plan { system: System::Turns, workload, receivers, dir, ..Plan::example(64) }
    }

    /// It runs until the process ends, as it does in a run.
    fn start_broker(plan: &Plan) {
        let plan = plan.clone();
        thread::spawn(move || run(&plan, || Ok(())));
    }

    #[test]
    fn what_is_sent_comes_to_all() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(Workload::Lockstep, 2, &dir);
        let _memory = make_memory(&plan).unwrap();
        start_broker(&plan);
        let mut sender = End::sender(&plan).unwrap();
        let mut receivers = [0, 1].map(|index| End::receiver(&plan, index).unwrap());
        for serial in 0..100 {
            let stamp = Stamp::new(0, serial, false, serial);
            sender.send(&[stamp]).unwrap();
            for receiver in &mut receivers {
                let mut heard = None;
                receiver.receive(&mut |payload| heard = Stamp::read(payload)).unwrap();
                assert_eq!(heard, Some(stamp));
            }
        }
    }

    #[test]
    fn a_call_is_answered_with_its_payload() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(Workload::Rtt, 1, &dir);
        let _memory = make_memory(&plan).unwrap();
        start_broker(&plan);
        let mut responder = End::receiver(&plan, 0).unwrap();
        thread::spawn(move || (0..100).for_each(|_| responder.respond(&mut |_| ()).unwrap()));
        let mut caller = End::sender(&plan).unwrap();
        for serial in 0..100 {
            let stamp = Stamp::new(0, serial, false, serial);
            let mut heard = None;
            caller.call(stamp, &mut |payload| heard = Stamp::read(payload)).unwrap();
            assert_eq!(heard, Some(stamp));
        }
    }
}
