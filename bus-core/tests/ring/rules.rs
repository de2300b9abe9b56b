//! Rings on the heap, and what holds of them whatever a peer writes into its memory. Used by plain
//! tests and by the fuzz target.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bus_core::ring::{Memory, RingRead, RingReader, RingSize, RingWriter};

/// Memory of one side, on the heap.
#[derive(Debug)]
pub(crate) struct Heap(Box<[AtomicU64]>);

impl Heap {
    pub(crate) fn new(size: RingSize) -> Arc<Self> {
        Arc::new(Self((0..size.memory_bytes() / 8).map(|_| AtomicU64::new(0)).collect()))
    }

    pub(crate) fn byte(&self, at: usize) -> u8 {
        self.0[at / 8].load(Ordering::Relaxed).to_le_bytes()[at % 8]
    }

    pub(crate) fn set_byte(&self, at: usize, byte: u8) {
        let mut bytes = self.0[at / 8].load(Ordering::Relaxed).to_le_bytes();
        bytes[at % 8] = byte;
        self.0[at / 8].store(u64::from_le_bytes(bytes), Ordering::Relaxed);
    }
}

impl Memory for Heap {
    fn word(&self, at: usize) -> &AtomicU64 {
        assert_eq!(at % 8, 0);
        &self.0[at / 8]
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        for (offset, byte) in bytes.iter().enumerate() {
            self.set_byte(at + offset, *byte);
        }
    }

    fn get(&self, at: usize, into: &mut [u8]) {
        for (offset, byte) in into.iter_mut().enumerate() {
            *byte = self.byte(at + offset);
        }
    }
}

const SIZE: RingSize = RingSize::of_bytes(4096).expect("a good size");

pub(crate) type Ends = (RingWriter<Arc<Heap>>, RingReader<Arc<Heap>>, Arc<Heap>, Arc<Heap>);

pub(crate) fn ends() -> Ends {
    let (writers, readers) = (Heap::new(SIZE), Heap::new(SIZE));
    (
        RingWriter::new(writers.clone(), readers.clone(), SIZE),
        RingReader::new(readers.clone(), writers.clone(), SIZE),
        writers,
        readers,
    )
}

/// Each five bytes of `input` are: where something is written, in whose memory, what, and what both
/// ends do then.
pub(crate) fn hold_to_the_rules(input: &[u8]) {
    let (mut writer, mut reader, writers, readers) = ends();
    let (mut writer_failed, mut reader_failed) = (false, false);
    for step in input.chunks_exact(5) {
        let word = usize::from(step[0] % 16);
        let byte = usize::from(step[1] % 8);
        let at = match word {
            0..6 => [0, 128, 256, 384, 512, 1024][word] + byte,
            // Heads and bytes of cells.
            _ => 4096 + usize::from(step[1]) * 16 + word - 6,
        };
        let memory = if step[2] % 2 == 0 { &writers } else { &readers };
        memory.set_byte(at, step[3]);
        if !writer_failed {
            let tried = writer.write(&[7; 255][..usize::from(step[4])]).and_then(|written| {
                assert!(written <= usize::from(step[4]));
                let _ = writer.publish();
                writer.want_room()
            });
            writer_failed = tried.is_err();
        }
        if !reader_failed {
            let mut into = [0; 200];
            let tried = match step[2] % 4 {
                2 => reader.hold().map(|held| {
                    if let Some(held) = held {
                        assert!(reader.copy_held(&held, 0, &mut into) <= into.len());
                        let _ = reader.release(&held);
                    }
                }),
                _ => reader.read(&mut into).map(|read| {
                    if let RingRead::Bytes(count) = read {
                        assert!(count <= into.len());
                    }
                }),
            };
            let _ = reader.finish();
            reader_failed = tried.is_err();
        }
    }
}
