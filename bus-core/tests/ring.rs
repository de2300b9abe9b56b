//! Rings in shared memory, against a stream of bytes, and against a peer that writes anything.

#![expect(clippy::cast_possible_truncation, reason = "bytes of a pattern")]

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use bus_core::ring::{Held, Memory, RingError, RingRead};
use proptest::prelude::*;

#[path = "ring/rules.rs"]
mod rules;

use rules::{ends, hold_to_the_rules};

#[derive(Clone, Debug)]
enum Act {
    Write(usize),
    Copy(u32),
    Read(usize),
    Hold,
    Release(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..700usize).prop_map(Act::Write),
        1 => (1..100u32).prop_map(Act::Copy),
        4 => (1..900usize).prop_map(Act::Read),
        1 => Just(Act::Hold),
        1 => (0..8usize).prop_map(Act::Release),
    ]
}

/// What the stream has: bytes here, and those that come by the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Byte(u8),
    Copy(u32),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is written, read and held in which order: nothing is lost, doubled, moved, or written
    /// over while it is held; and a ring of which nothing is held or unread takes something.
    #[test]
    fn what_is_written_is_read_in_its_order(acts in prop::collection::vec(act(), 1..200)) {
        let (mut writer, mut reader, ..) = ends();
        let mut model = VecDeque::new();
        let mut held: Vec<(Held, Vec<u8>)> = Vec::new();
        let mut next = 0_u8;
        for act in acts {
            match act {
                Act::Write(length) => {
                    let bytes: Vec<u8> = (0..length).map(|at| next.wrapping_add(at as u8)).collect();
                    let written = writer.write(&bytes).unwrap();
                    if model.is_empty() && held.is_empty() && length > 0 {
                        prop_assert!(written > 0, "an empty ring has room");
                    }
                    next = next.wrapping_add(written as u8);
                    model.extend(bytes[..written].iter().map(|byte| Piece::Byte(*byte)));
                    let _ = writer.publish();
                }
                Act::Copy(bytes) => {
                    if writer.write_copy(bytes).unwrap() {
                        model.push_back(Piece::Copy(bytes));
                    }
                    let _ = writer.publish();
                }
                Act::Read(length) => {
                    // Over what is there, or behind it.
                    let mut into = vec![0; length];
                    let read = if length % 2 == 0 {
                        reader.read(&mut into).unwrap()
                    } else {
                        into.clear();
                        reader.read_more(length, &mut into).unwrap()
                    };
                    match read {
                        RingRead::Bytes(count) => {
                            for byte in &into[..count] {
                                prop_assert_eq!(model.pop_front(), Some(Piece::Byte(*byte)));
                            }
                        }
                        RingRead::Copy(bytes) => {
                            prop_assert_eq!(model.pop_front(), Some(Piece::Copy(bytes)));
                        }
                        RingRead::Nothing => prop_assert!(model.is_empty()),
                    }
                    let _ = reader.finish();
                }
                Act::Hold => {
                    if let Some(taken) = reader.hold().unwrap() {
                        let mut bytes = vec![0; 4096];
                        let count = reader.copy_held(&taken, 0, &mut bytes);
                        bytes.truncate(count);
                        for byte in &bytes {
                            prop_assert_eq!(model.pop_front(), Some(Piece::Byte(*byte)));
                        }
                        held.push((taken, bytes));
                    }
                    let _ = reader.finish();
                }
                Act::Release(at) => {
                    if at < held.len() {
                        let (taken, _) = held.swap_remove(at);
                        let _ = reader.release(&taken);
                    }
                }
            }
            for (taken, bytes) in &held {
                let mut now = vec![0; bytes.len()];
                reader.copy_held(taken, 0, &mut now);
                prop_assert_eq!(&now, bytes, "held, and written over");
            }
        }
    }

    /// Whatever a side writes into its memory, the other takes no more than there is, fills no cell
    /// that it may not, and does not panic.
    #[test]
    fn g10_a_peer_that_writes_anything_gets_errors_and_nothing_else(
        input in prop::collection::vec(any::<u8>(), 0..2_000),
    ) {
        hold_to_the_rules(&input);
    }
}

#[test]
fn positions_that_go_back_or_jump_ahead_are_told() {
    let (mut writer, mut reader, writers, readers) = ends();
    assert_eq!(writer.write(&[1; 4000]).unwrap(), 4000);
    let _ = writer.publish();
    readers.word(256).store(64, Ordering::Relaxed);
    assert!(matches!(writer.is_consumed(), Err(RingError::JumpedAhead { to: 64, most: 63, .. })));
    readers.word(256).store(10, Ordering::Relaxed);
    assert_eq!(writer.is_consumed(), Ok(false));
    readers.word(256).store(9, Ordering::Relaxed);
    assert!(matches!(writer.is_consumed(), Err(RingError::WentBack { from: 10, to: 9, .. })));

    writers.word(0).store(65, Ordering::Relaxed);
    let read = reader.read(&mut [0; 8]);
    assert!(matches!(read, Err(RingError::JumpedAhead { to: 65, most: 64, .. })), "{read:?}");
    writers.word(0).store(63, Ordering::Relaxed);
    // The first record says that it is longer than what was published.
    writers.word(4096).store(4096 | 1 << 32, Ordering::Relaxed);
    let read = reader.read(&mut [0; 8]);
    assert!(matches!(read, Err(RingError::BadRecord { state: 1, bytes: 4096, .. })), "{read:?}");
    writers.word(4096).store(8 | 9 << 32, Ordering::Relaxed);
    let read = reader.read(&mut [0; 8]);
    assert!(matches!(read, Err(RingError::BadRecord { state: 9, .. })), "{read:?}");
    // Who takes what comes by the socket goes on until there is some; with none he might go on for ever.
    writers.word(4096).store(2 << 32, Ordering::Relaxed);
    let read = reader.read(&mut [0; 8]);
    assert!(matches!(read, Err(RingError::BadRecord { state: 2, bytes: 0, .. })), "{read:?}");
}

#[test]
fn a_ring_full_of_held_records_is_full_and_each_that_is_released_makes_room() {
    let (mut writer, mut reader, ..) = ends();
    let mut held = Vec::new();
    // Half of the ring may be held.
    for _ in 0..32 {
        assert_eq!(writer.write(&[1; 56]).unwrap(), 56);
        let _ = writer.publish();
        held.push(reader.hold().unwrap().unwrap());
        let _ = reader.finish();
    }
    assert_eq!(writer.write(&[2; 56]).unwrap(), 56);
    let _ = writer.publish();
    assert_eq!(reader.hold().unwrap(), None, "no more than half");
    let mut into = [0; 56];
    // A hundred laps go by beside what is held.
    assert_eq!(reader.read(&mut into).unwrap(), RingRead::Bytes(56));
    let _ = reader.finish();
    for round in 0..3200_u32 {
        assert_eq!(writer.write(&[round as u8; 56]).unwrap(), 56, "{round}");
        let _ = writer.publish();
        assert_eq!(reader.read(&mut into).unwrap(), RingRead::Bytes(56));
        assert_eq!(into, [round as u8; 56]);
        let _ = reader.finish();
    }
    for one in held {
        let mut bytes = [0; 56];
        assert_eq!(reader.copy_held(&one, 0, &mut bytes), 56);
        assert_eq!(bytes, [1; 56]);
        let _ = reader.release(&one);
    }
    assert_eq!(writer.write(&[3; 4000]).unwrap(), 4000, "all of it is free again");
}
