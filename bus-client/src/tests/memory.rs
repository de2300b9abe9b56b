//! Memory that the client is given: it looks at what can be done to it before it maps it.

use std::os::fd::OwnedFd;

use bus_core::wire::{BrokerFrame, GoodbyeCode, MemoryKind, MessageHead, Placed, PlacedIn};
use bytes::Bytes;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::testing::{PATIENCE, head, pair};
use crate::{Event, Way};

const LENGTH: u64 = 8192;
const FIXED: SealFlags = SealFlags::GROW.union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// Memory with this many bytes, of which `written` are there.
fn memory(size: u64, written: usize, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("given", flags).unwrap();
    ftruncate(&file, size).unwrap();
    rustix::io::pwrite(&file, &vec![b'x'; written], 0).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

/// What is wrong with memory that is to be sealed like this, each by itself.
fn wrong(seals: SealFlags) -> Vec<(String, OwnedFd)> {
    let whole = usize::try_from(LENGTH).unwrap();
    let mut cases = vec![
        ("too short".to_owned(), memory(LENGTH - 1, whole - 1, seals)),
        ("holes".to_owned(), memory(LENGTH, 4096, seals)),
        ("no memory".to_owned(), rustix::pipe::pipe().unwrap().0),
    ];
    let missing = |seal| (format!("not sealed: {seal:?}"), memory(LENGTH, whole, seals - seal));
    cases.extend(seals.iter().map(missing));
    cases
}

fn placed(within: PlacedIn) -> Placed {
    Placed { hold: 5, within, offset: 0, length: LENGTH }
}

fn message(within: PlacedIn) -> BrokerFrame {
    BrokerFrame::from(bus_core::wire::MessageFrame {
        head: MessageHead { apart: true, ..head(80) },
        attributes: bus_core::Attributes::EMPTY,
        payload: Bytes::copy_from_slice(&placed(within).encode()),
    })
}

#[test]
fn memory_that_somebody_may_change_or_that_is_not_there_is_not_mapped() {
    for (case, file) in wrong(FIXED | SealFlags::FUTURE_WRITE) {
        let (bus, mut broker) = pair();
        let kind = MemoryKind::Arena;
        let frame = BrokerFrame::Memory { id: 2, kind, length: LENGTH, descriptors: 1 };
        broker.put_with_descriptors(&frame, &[file]);
        let _ = bus.dispatch();
        assert_eq!(broker.farewell().code, GoodbyeCode::Protocol, "{case}");
    }
}

#[test]
fn a_file_that_somebody_may_change_or_that_is_not_there_is_not_mapped() {
    for (case, file) in wrong(FIXED | SealFlags::WRITE) {
        let (bus, mut broker) = pair();
        broker.put_with_descriptors(&with_file(), &[file]);
        let _ = bus.dispatch();
        assert_eq!(broker.farewell().code, GoodbyeCode::Protocol, "{case}");
    }
    let (bus, mut broker) = pair();
    let file = memory(LENGTH, usize::try_from(LENGTH).unwrap(), FIXED | SealFlags::WRITE);
    broker.put_with_descriptors(&with_file(), &[file]);
    let Some(Event::Message(message)) = bus.receive_deadline(PATIENCE).unwrap() else {
        panic!("no message");
    };
    assert_eq!(message.way(), Way::File);
    assert!(message.payload().iter().all(|byte| *byte == b'x'));
}

fn with_file() -> BrokerFrame {
    let BrokerFrame::Message(mut frame) = message(PlacedIn::File) else { unreachable!() };
    frame.head.descriptors = 1;
    BrokerFrame::Message(frame)
}
