//! Rings in shared memory: what is handed over, and that nobody sleeps beside what he waits for.

use std::sync::Arc;

use bus_core_modelled::modelled::shared_ring;
use bus_core_modelled::ring::RingRead;
use loom::thread;

use crate::given::explore;

/// A bell: rung once or more before it is heard.
#[derive(Default)]
struct Bell {
    rung: loom::sync::Mutex<bool>,
    changed: loom::sync::Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().expect("no thread panics") = true;
        self.changed.notify_one();
    }

    fn silence(&self) {
        *self.rung.lock().expect("no thread panics") = false;
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().expect("no thread panics");
        while !*rung {
            rung = self.changed.wait(rung).expect("no thread panics");
        }
        *rung = false;
    }
}

/// Given a ring of two cells, when three records of a cell each are written while they are read,
/// then each is handed over finished, also where a cell is used again, and the order is kept.
#[test]
fn shared_ring_hands_over_finished_cells_across_its_wrap() {
    explore(|| {
        let (mut writer, mut reader) = shared_ring(2);
        let writing = thread::spawn(move || {
            for byte in [1, 2, 3] {
                while writer.write(&[byte; 56]).unwrap() == 0 {
                    thread::yield_now();
                }
                let _ = writer.publish();
            }
        });
        for byte in [1, 2, 3] {
            let mut into = [0; 56];
            while reader.read(&mut into).unwrap() == RingRead::Nothing {
                thread::yield_now();
            }
            let _ = reader.finish();
            assert_eq!(into, [byte; 56]);
        }
        writing.join().unwrap();
        assert_eq!(reader.read(&mut [0; 8]).unwrap(), RingRead::Nothing);
    });
}

/// Given a reader that goes to sleep, when a record is published at that time, then the reader sees
/// it or its bell is rung.
#[test]
fn shared_ring_wakes_a_reader_that_goes_to_sleep() {
    explore(|| {
        let (mut writer, mut reader) = shared_ring(4);
        let bell = Arc::new(Bell::default());
        let rings = Arc::clone(&bell);
        let writing = thread::spawn(move || {
            for byte in [1, 2] {
                assert_eq!(writer.write(&[byte]).unwrap(), 1);
                if writer.publish() {
                    rings.ring();
                }
            }
        });
        let sleeper = reader.sleeper();
        let mut bytes = 0;
        while bytes < 2 {
            match reader.read(&mut [0; 8]).unwrap() {
                RingRead::Bytes(more) => {
                    bytes += more;
                    let _ = reader.finish();
                }
                _ => {
                    if sleeper.arm() {
                        bell.wait();
                        sleeper.disarm();
                    } else {
                        // An event loop hears its bell also when it does not sleep.
                        bell.silence();
                    }
                }
            }
        }
        writing.join().unwrap();
    });
}

/// Given a thread that goes to sleep, when a record is published at that time and another thread of the
/// reader's side, which has found nothing, says that it is awake, then the first one is woken.
#[test]
fn shared_ring_wakes_a_thread_beside_which_another_reads() {
    explore(|| {
        let (mut writer, reader) = shared_ring(4);
        let bell = Arc::new(Bell::default());
        let rings = Arc::clone(&bell);
        let writing = thread::spawn(move || {
            assert_eq!(writer.write(&[1]).unwrap(), 1);
            if writer.publish() {
                rings.ring();
            }
        });
        let sleeper = reader.sleeper();
        let other = sleeper.clone();
        let reading = thread::spawn(move || {
            let _ = other.wake_up();
        });
        while !sleeper.has_input() {
            if sleeper.fall_asleep() {
                bell.wait();
                sleeper.woke();
            }
        }
        writing.join().unwrap();
        reading.join().unwrap();
    });
}

/// Given a full ring whose writer goes to wait for room, when the reader gives cells back at that
/// time, then the writer sees them or its bell is rung.
#[test]
fn shared_ring_wakes_a_writer_that_waits_for_room() {
    explore(|| {
        let (mut writer, mut reader) = shared_ring(2);
        assert_eq!(writer.write(&[1; 56]).unwrap(), 56);
        assert_eq!(writer.write(&[1; 56]).unwrap(), 56);
        let _ = writer.publish();
        let bell = Arc::new(Bell::default());
        let rings = Arc::clone(&bell);
        let reading = thread::spawn(move || {
            assert_eq!(reader.read(&mut [0; 112]).unwrap(), RingRead::Bytes(112));
            if reader.finish() {
                rings.ring();
            }
        });
        if !writer.want_room().unwrap() {
            bell.wait();
        }
        assert_eq!(writer.write(&[2; 8]).unwrap(), 8);
        reading.join().unwrap();
    });
}

/// Given a record that its reader holds, when the writer goes on and wraps, then it passes over the
/// held cell, and uses it again once it is given back.
#[test]
fn shared_ring_passes_over_what_is_held() {
    explore(|| {
        let (mut writer, mut reader) = shared_ring(4);
        assert_eq!(writer.write(&[1; 56]).unwrap(), 56);
        let _ = writer.publish();
        let writing = thread::spawn(move || {
            for byte in [2, 3, 4, 5] {
                while writer.write(&[byte; 56]).unwrap() == 0 {
                    thread::yield_now();
                }
                let _ = writer.publish();
            }
        });
        let held = reader.hold().unwrap().unwrap();
        let _ = reader.finish();
        for byte in [2, 3, 4] {
            let mut into = [0; 56];
            while reader.read(&mut into).unwrap() == RingRead::Nothing {
                thread::yield_now();
            }
            let _ = reader.finish();
            assert_eq!(into, [byte; 56]);
        }
        let mut into = [0; 56];
        assert_eq!(reader.copy_held(&held, 0, &mut into), 56);
        assert_eq!(into, [1; 56]);
        let _ = reader.release(&held);
        while reader.read(&mut into).unwrap() == RingRead::Nothing {
            thread::yield_now();
        }
        assert_eq!(into, [5; 56]);
        writing.join().unwrap();
    });
}
