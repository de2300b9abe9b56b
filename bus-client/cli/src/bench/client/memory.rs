//! Memory that all have mapped: a copy for all receivers, and a call that wakes those who sleep.
//!
//! It marks what large payloads cost where nobody stands in the middle: nobody is asked, protected or
//! charged, what readers keep is written over, and whoever has the memory mapped can write what others read.
//! So a system that does more for its users cannot cost less, and what it costs beyond this is its own.
//!
//! With a process in the middle ([`copy_for_all`]) it marks the least that a broker takes: it is told of each
//! send, copies all that was lent by then out of the memory that its sender writes, and tells each receiver by
//! itself, whom it wakes only from sleep. That a receiver is done it sees in memory, and is woken for it never.
//!
//! Invariant: a place is written again only when all receivers have had what lay there. The window of the
//! run says so: there are as many places as it has messages, for payloads and for what is lent.
//!
//! # Safety
//!
//! References are made to payloads that were announced, and these stay as they are until their receiver
//! says that it has had them, which is after it has given up the reference.
#![expect(unsafe_code, reason = "payloads are read where they lie")]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::symlink,
    },
    process,
};

use bus_memory::Mapping;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::bench::{
    plan::Plan,
    shared::{Board, Shared},
    stamp::Stamp,
    system::System,
    turns,
};

/// Makes the memory of a run, which lives while the value does.
pub(crate) fn make_memory(plan: &Plan) -> io::Result<OwnedFd> {
    let file = memfd_create("unisono-bench", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, memory_bytes(plan) as u64)?;
    // Where the others find it.
    let here = format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd());
    symlink(here, plan.memory())?;
    Ok(file)
}

/// Copies each payload to the next place.
#[derive(Debug)]
pub(super) struct Writer {
    places: Places,
    payload: Vec<u8>,
    sent: u32,
}

impl Writer {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        if plan.senders != 1 {
            return Err(io::Error::other("it has one sender"));
        }
        Ok(Self { places: Places::open(plan, true)?, payload: vec![0; plan.size], sent: 0 })
    }
}

impl super::Sender for Writer {
    fn send(&mut self, stamps: &[Stamp]) -> io::Result<()> {
        for stamp in stamps {
            stamp.write(&mut self.payload);
            let at = self.places.offset(self.sent);
            self.places.memory.copy_in_for_others(at, &self.payload);
            self.sent = next(self.sent)?;
            self.places.shared.announce(Board::OfAll, self.sent);
        }
        Ok(())
    }
}

/// Writes payloads where the process in the middle finds them.
#[derive(Debug)]
pub(super) struct Lender {
    places: Places,
    sent: u32,
}

impl Lender {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        if plan.senders != 1 {
            return Err(io::Error::other("it has one sender"));
        }
        Ok(Self { places: Places::open(plan, true)?, sent: 0 })
    }
}

impl super::Sender for Lender {
    fn send(&mut self, stamps: &[Stamp]) -> io::Result<()> {
        for stamp in stamps {
            let mut head = [0; Stamp::BYTES];
            stamp.write(&mut head);
            self.places.memory.copy_in(self.places.lent_offset(self.sent), &head);
            self.sent = next(self.sent)?;
            self.places.shared.announce(Board::OfBroker, self.sent);
        }
        Ok(())
    }
}

/// Copies what is lent to where all see it, until it is killed.
pub(crate) fn copy_for_all(plan: &Plan, ready: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let places = Places::open(plan, true)?;
    let (memory, shared) = (&places.memory, &places.shared);
    ready()?;
    let mut had = 0;
    loop {
        let lent = shared.wait_announced(Board::OfBroker, had)?;
        while had < lent {
            let number = u64::from(had);
            if shared.floor(0) < (number + 1).saturating_sub(u64::from(places.count)) {
                return Err(io::Error::other("a place is to be written that is still read"));
            }
            memory.copy_from(places.offset(had), memory, places.lent_offset(had), places.size);
            had = next(had)?;
        }
        // Once for all: who is told of each payload by itself is woken for most of them.
        (0..plan.receivers).for_each(|receiver| shared.announce(Board::Of(receiver), had));
    }
}

/// Looks at each payload where it lies.
#[derive(Debug)]
pub(super) struct Looker {
    places: Places,
    board: Board,
    had: u32,
}

impl Looker {
    pub(super) fn new(plan: &Plan, index: usize) -> io::Result<Self> {
        let board = match plan.system {
            System::SharedMemoryBroker => Board::Of(index),
            _ => Board::OfAll,
        };
        Ok(Self { places: Places::open(plan, false)?, board, had: 0 })
    }
}

impl super::Receiver for Looker {
    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let announced = self.places.shared.wait_announced(self.board, self.had)?;
        while self.had < announced {
            let (at, size) = (self.places.offset(self.had), self.places.size);
            // SAFETY: see the header: it was announced, and this receiver has not said that it has had it.
            sink(unsafe { self.places.memory.bytes(at, size) });
            self.had += 1;
        }
        Ok(())
    }
}

/// The memory, mapped into this process.
#[derive(Debug)]
struct Places {
    memory: Mapping,
    shared: Shared,
    size: usize,
    stride: usize,
    count: u32,
}

impl Places {
    fn open(plan: &Plan, writes: bool) -> io::Result<Self> {
        let file = File::options().read(true).write(writes).open(plan.memory())?;
        let bytes = memory_bytes(plan);
        let memory = match writes {
            true => Mapping::read_write(file.as_fd(), bytes),
            false => Mapping::read_only(file.as_fd(), bytes),
        }?;
        memory.prepare();
        let count = u32::try_from(places(plan)).map_err(io::Error::other)?;
        let (size, stride) = (plan.size, place_bytes(plan));
        Ok(Self { memory, shared: Shared::open(plan)?, size, stride, count })
    }

    /// Where the message of this number lies.
    fn offset(&self, number: u32) -> usize {
        (number % self.count) as usize * self.stride
    }

    /// Where it was written, if a process in the middle copies it.
    fn lent_offset(&self, number: u32) -> usize {
        self.count as usize * self.stride + self.offset(number)
    }
}

/// What is lent lies behind what all see.
fn memory_bytes(plan: &Plan) -> usize {
    if plan.system == System::Turns {
        return turns::memory_bytes(plan);
    }
    let kinds = if plan.system == System::SharedMemoryBroker { 2 } else { 1 };
    kinds * places(plan) * place_bytes(plan)
}

fn next(number: u32) -> io::Result<u32> {
    number.checked_add(1).ok_or_else(|| io::Error::other("too many"))
}

fn places(plan: &Plan) -> usize {
    let window = plan.window().and_then(|window| usize::try_from(window).ok());
    window.expect("it is lossless, and a window is short")
}

fn place_bytes(plan: &Plan) -> usize {
    plan.size.next_multiple_of(PAGE_BYTES)
}

const PAGE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::bench::client::{self, Receiver as _};

    #[test]
    fn every_payload_is_found_where_it_was_put_as_often_as_places_are_used_again() {
        find_all(System::SharedMemory);
    }

    #[test]
    fn what_was_lent_is_found_where_the_process_in_the_middle_has_put_it() {
        find_all(System::SharedMemoryBroker);
    }

    fn find_all(system: System) {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan { system, receivers: 1, dir: dir.path().to_owned(), ..Plan::example(5000) };
        Shared::create(&plan).unwrap();
        let _memory = make_memory(&plan).unwrap();
        let window = plan.window().unwrap();
        let (mut looker, receiver) = (Looker::new(&plan, 0).unwrap(), Shared::open(&plan).unwrap());
        if system == System::SharedMemoryBroker {
            let plan = plan.clone();
            // It ends with the process.
            thread::spawn(move || copy_for_all(&plan, || Ok(())));
        }
        let sending = thread::spawn(move || {
            let mut writer = client::sender(&plan, 0).unwrap();
            let sender = Shared::open(&plan).unwrap();
            for serial in 0..3 * window {
                sender.sleep_until(0, (serial + 1).saturating_sub(window)).unwrap();
                writer.send(&[Stamp::new(0, serial, false, serial)]).unwrap();
            }
        });
        let mut had = 0;
        while had < 3 * window {
            let take = &mut |payload: &[u8]| {
                assert_eq!(payload.len(), 5000);
                assert_eq!(Stamp::read(payload), Some(Stamp::new(0, had, false, had)));
                had += 1;
                receiver.publish_and_wake(0, 0, had);
            };
            looker.receive(take).unwrap();
        }
        sending.join().unwrap();
    }
}
